//! The Secondary's data path: replicated writes, barriers, reads for a diskless Primary.
//!
//! Writes pass the same overlap tracker as everything else, in stream order (interleavings F4).
//! A barrier closes an epoch: when its writes have completed the disk is flushed, then the barrier
//! is acknowledged. Epochs are acknowledged in order.
//!
//! Under protocols A and B a guest was told of a write before it was on this disk, so what it wrote
//! next must not get there first (F4), and what was received is carried out even if the session
//! ends: this replica is at any moment what the Primary's disk was a little earlier.

use std::collections::VecDeque;

use super::ops::DiskOp;
use super::output::{DiskCommand, Outbox};
use super::overlap::{Access, Ticket};
use super::session::Phase;
use super::slab::Key;
use super::write::disk_command;
use super::{CloseReason, Engine, LockOwner};
use crate::protocol::{DataKind, Message, WriteId, WriteTerms};
use crate::types::{BlockRange, DiskError, Payload, ReplicationProtocol, SessionId, WriteEpoch};

/// Work for the Primary.
#[derive(Clone, Debug)]
pub(super) struct PeerWork {
    session: SessionId,
    id: WriteId,
    range: BlockRange,
    kind: PeerKind,
    ticket: Ticket,
    stage: Stage,
    /// Of writes: whose turn it is, see [`PeerOrder`].
    turn: u64,
}

/// What a piece of work waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its blocks.
    Lock,
    /// It has them; the writes it may not overtake.
    Turn,
    /// The disk.
    Disk,
}

#[derive(Clone, Debug)]
enum PeerKind {
    Write {
        kind: DataKind,
        terms: WriteTerms,
        epoch: u64,
    },
    Read,
}

/// Which writes may be on the disk at the same time: those of one turn. A write that says so begins
/// the next turn, which comes when every write of this one has completed.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerOrder {
    /// The turn it is.
    now: u64,
    /// Writes not completed, of each turn from `now` on; the last is the one that new ones join.
    pending: VecDeque<usize>,
    /// Writes of later turns, in order of arrival. Some may be gone.
    later: VecDeque<Key>,
}

impl PeerOrder {
    /// The turn of a write that arrives now.
    fn join(&mut self, after_earlier: bool) -> u64 {
        let fresh = match self.pending.back() {
            None => true,
            Some(last) => after_earlier && *last > 0,
        };
        if fresh {
            self.pending.push_back(0);
        }
        if let Some(last) = self.pending.back_mut() {
            *last += 1;
        }
        self.now + self.pending.len() as u64 - 1
    }

    /// A write of `turn` is over. Whether another turn has come.
    fn leave(&mut self, turn: u64) -> bool {
        let at = usize::try_from(turn - self.now).expect("few turns are known at a time");
        self.pending[at] -= 1;
        let mut moved = false;
        while self.pending.len() > 1 && self.pending.front() == Some(&0) {
            self.pending.pop_front();
            self.now += 1;
            moved = true;
        }
        moved
    }
}

/// Epochs of the session that are not acknowledged, oldest first; the last one is open.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerEpochs {
    /// Number of the first in `epochs`, counted on this side.
    first: u64,
    epochs: VecDeque<PeerEpoch>,
    flushing: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct PeerEpoch {
    pending: usize,
    barrier: Option<WriteEpoch>,
}

impl Engine {
    pub(super) fn on_data(
        &mut self,
        id: WriteId,
        range: BlockRange,
        kind: DataKind,
        terms: WriteTerms,
        out: &mut Outbox,
    ) {
        let fits = match &kind {
            DataKind::Write(payload) => payload.len() as u64 == range.len().0,
            DataKind::Zeroes { .. } => true,
        };
        let inside = !range.is_empty() && range.end().0 <= self.replica_blocks().0;
        if !fits || !inside || self.peer_work.len() >= Self::PEER_WORK_MAX {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        if self.peer_epochs.epochs.is_empty() {
            self.peer_epochs.epochs.push_back(PeerEpoch::default());
        }
        let epoch = self.peer_epochs.first + self.peer_epochs.epochs.len() as u64 - 1;
        if let Some(open) = self.peer_epochs.epochs.back_mut() {
            open.pending += 1;
        }
        let turn = self.peer_order.join(terms.after_earlier);
        if terms.protocol == ReplicationProtocol::B {
            self.send(Message::ReceiveAck { write: id }, out);
        }
        let kind = PeerKind::Write { kind, terms, epoch };
        self.queue_peer_work(id, range, kind, turn, out);
    }

    pub(super) fn on_read_request(&mut self, id: WriteId, range: BlockRange, out: &mut Outbox) {
        let fits = !range.is_empty()
            && range.len().0 <= super::edge::PART_LEN_MAX
            && range.end().0 <= self.replica_blocks().0;
        // A resync target serves nothing (promise 8).
        let whole = self
            .session
            .as_ref()
            .is_some_and(|session| !matches!(session.phase, Phase::SyncTarget(_)));
        if !fits || !whole || self.peer_work.len() >= Self::PEER_WORK_MAX {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        let turn = self.peer_order.now;
        self.queue_peer_work(id, range, PeerKind::Read, turn, out);
    }

    fn queue_peer_work(
        &mut self,
        id: WriteId,
        range: BlockRange,
        kind: PeerKind,
        turn: u64,
        out: &mut Outbox,
    ) {
        let Some(session) = self.session.as_ref().map(|session| session.id) else {
            return;
        };
        let access = match kind {
            PeerKind::Write { .. } => Access::Exclusive,
            PeerKind::Read => Access::Shared,
        };
        let ticket = Ticket::default();
        let work = PeerWork {
            session,
            id,
            range,
            kind,
            ticket,
            stage: Stage::Lock,
            turn,
        };
        let key = self.peer_work.insert(work);
        if turn != self.peer_order.now {
            self.peer_order.later.push_back(key);
        }
        let (ticket, held) = self.overlap.acquire(range, access, LockOwner::Peer(key));
        if let Some(work) = self.peer_work.get_mut(key) {
            work.ticket = ticket;
        }
        if held {
            self.on_peer_locked(key, out);
        }
    }

    pub(super) fn on_peer_locked(&mut self, key: Key, out: &mut Outbox) {
        let Some(work) = self.peer_work.get_mut(key) else {
            return;
        };
        // A read waits for the blocks only: whoever asked knows of no order beyond them.
        let is_write = matches!(work.kind, PeerKind::Write { .. });
        if is_write && work.turn != self.peer_order.now {
            work.stage = Stage::Turn;
            return;
        }
        work.stage = Stage::Disk;
        let range = work.range;
        match &work.kind {
            PeerKind::Read => self.disk(DiskOp::PeerRead(key), DiskCommand::Read(range), out),
            PeerKind::Write { kind, terms, .. } => {
                let command = disk_command(range, kind.clone(), terms.fua);
                self.disk(DiskOp::PeerWrite(key), command, out);
            }
        }
    }

    /// A write is over, or dropped: those of the next turn that have their blocks begin.
    fn leave_turn(&mut self, turn: u64, out: &mut Outbox) {
        if !self.peer_order.leave(turn) {
            return;
        }
        while let Some(key) = self.peer_order.later.front().copied() {
            let work = self.peer_work.get(key);
            if work.is_some_and(|work| work.turn > self.peer_order.now) {
                break;
            }
            self.peer_order.later.pop_front();
            if work.is_some_and(|work| work.stage == Stage::Turn) {
                self.on_peer_locked(key, out);
            }
        }
    }

    pub(super) fn on_peer_write(
        &mut self,
        key: Key,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        let Some(work) = self.peer_work.remove(key) else {
            return;
        };
        let current = self
            .session
            .as_ref()
            .is_some_and(|session| session.id == work.session);
        if result.is_ok() {
            self.leave_turn(work.turn, out);
        }
        self.release_lock(work.ticket, out);
        if let Err(error) = result {
            if current {
                let write = work.id;
                self.send(
                    Message::NegAck {
                        write,
                        error: error.into(),
                    },
                    out,
                );
            }
            self.fail_local_disk(error, out);
            // Only now is its turn over: nothing passes the hole, and nothing is left waiting.
            self.drop_unbegun_peer_work(|_| false, out);
            self.leave_turn(work.turn, out);
            return;
        }
        if !current {
            return;
        }
        self.send(Message::WriteAck { write: work.id }, out);
        if let PeerKind::Write { epoch, .. } = work.kind
            && let Some(at) = epoch.checked_sub(self.peer_epochs.first)
            && let Some(epoch) = usize::try_from(at)
                .ok()
                .and_then(|at| self.peer_epochs.epochs.get_mut(at))
        {
            epoch.pending -= 1;
        }
        self.pump_peer_flush(out);
    }

    pub(super) fn on_peer_read(
        &mut self,
        key: Key,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(work) = self.peer_work.remove(key) else {
            return;
        };
        self.release_lock(work.ticket, out);
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.id == work.session)
        {
            let (read, range) = (work.id, work.range);
            let data = result.map_err(Into::into);
            self.send(Message::ReadReply { read, range, data }, out);
        }
    }

    pub(super) fn on_barrier(&mut self, barrier: WriteEpoch, out: &mut Outbox) {
        if self.peer_epochs.epochs.len() >= Self::PEER_EPOCHS_MAX {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        if self.peer_epochs.epochs.is_empty() {
            self.peer_epochs.epochs.push_back(PeerEpoch::default());
        }
        if let Some(open) = self.peer_epochs.epochs.back_mut() {
            open.barrier = Some(barrier);
        }
        self.peer_epochs.epochs.push_back(PeerEpoch::default());
        // The source sends a barrier only after the round before it ended on both sides: what was
        // cleared before that barrier was acknowledged is settled.
        self.end_settle(out);
        self.pump_peer_flush(out);
    }

    fn pump_peer_flush(&mut self, out: &mut Outbox) {
        if self.peer_epochs.flushing {
            return;
        }
        let ready = self
            .peer_epochs
            .epochs
            .front()
            .is_some_and(|epoch| epoch.pending == 0 && epoch.barrier.is_some());
        if ready {
            self.peer_epochs.flushing = true;
            self.begin_settle();
            self.disk(DiskOp::PeerFlush, DiskCommand::Flush, out);
        }
    }

    pub(super) fn on_peer_flush(&mut self, result: Result<(), DiskError>, out: &mut Outbox) {
        let current = core::mem::take(&mut self.peer_epochs.flushing);
        if let Err(error) = result {
            // Also when its session is gone: the next flush would succeed and prove nothing
            // (promise 6).
            self.fail_local_disk(error, out);
            return;
        }
        if !current {
            return;
        }
        if let Some(PeerEpoch {
            barrier: Some(epoch),
            ..
        }) = self.peer_epochs.epochs.pop_front()
        {
            self.peer_epochs.first += 1;
            self.send(Message::BarrierAck { epoch }, out);
        }
        self.pump_peer_flush(out);
    }

    /// The session is gone. Protocol C acknowledged nothing that has not completed, so what was not
    /// begun is the unacknowledged tail and is dropped. Of protocol B it was acknowledged, and of A
    /// whoever takes over had better have it: carried out, as long as there is a disk. What is on
    /// the disk ends by itself (R13, R14).
    pub(super) fn drop_peer_work(&mut self, out: &mut Outbox) {
        let attached = self.local == super::LocalDisk::Attached;
        let kept = |work: &PeerWork| match &work.kind {
            PeerKind::Write { terms, .. } => attached && terms.protocol != ReplicationProtocol::C,
            PeerKind::Read => false,
        };
        self.drop_unbegun_peer_work(kept, out);
        self.peer_epochs = PeerEpochs::default();
    }

    fn drop_unbegun_peer_work(&mut self, kept: impl Fn(&PeerWork) -> bool, out: &mut Outbox) {
        let mut dropped = Vec::new();
        for key in self.peer_work.keys() {
            let drop = self
                .peer_work
                .get(key)
                .is_some_and(|work| work.stage != Stage::Disk && !kept(work));
            if drop && let Some(work) = self.peer_work.remove(key) {
                dropped.push(work);
            }
        }
        for work in dropped {
            if matches!(work.kind, PeerKind::Write { .. }) {
                self.leave_turn(work.turn, out);
            }
            self.release_lock(work.ticket, out);
        }
    }
}
