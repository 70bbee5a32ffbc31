//! The Secondary's data path: replicated writes, barriers, reads for a diskless Primary.
//!
//! Writes pass the same overlap tracker as everything else, in stream order (interleavings F4).
//! A barrier closes an epoch: when its writes have completed the disk is flushed, then the barrier
//! is acknowledged. Epochs are acknowledged in order.

use std::collections::VecDeque;

use super::ops::DiskOp;
use super::output::{DiskCommand, Outbox};
use super::overlap::{Access, Ticket};
use super::session::Phase;
use super::slab::Key;
use super::write::disk_command;
use super::{CloseReason, Engine, LockOwner};
use crate::protocol::{DataKind, Message, WriteId};
use crate::types::{BlockRange, DiskError, Payload, SessionId, WriteEpoch};

/// Work for the Primary.
#[derive(Clone, Debug)]
pub(super) struct PeerWork {
    session: SessionId,
    id: WriteId,
    range: BlockRange,
    kind: PeerKind,
    ticket: Ticket,
    started: bool,
}

#[derive(Clone, Debug)]
enum PeerKind {
    Write {
        kind: DataKind,
        fua: bool,
        epoch: u64,
    },
    Read,
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
        fua: bool,
        out: &mut Outbox,
    ) {
        let fits = match &kind {
            DataKind::Write(payload) => payload.len() as u64 == range.len().0,
            DataKind::Zeroes { .. } => true,
        };
        let inside = !range.is_empty() && range.end().0 <= self.volume_blocks().0;
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
        let kind = PeerKind::Write { kind, fua, epoch };
        self.queue_peer_work(id, range, kind, Access::Exclusive, out);
    }

    pub(super) fn on_read_request(&mut self, id: WriteId, range: BlockRange, out: &mut Outbox) {
        let fits = !range.is_empty()
            && range.len().0 <= super::edge::PART_LEN_MAX
            && range.end().0 <= self.volume_blocks().0;
        // A resync target serves nothing (promise 8).
        let whole = self
            .session
            .as_ref()
            .is_some_and(|session| !matches!(session.phase, Phase::SyncTarget(_)));
        if !fits || !whole || self.peer_work.len() >= Self::PEER_WORK_MAX {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        self.queue_peer_work(id, range, PeerKind::Read, Access::Shared, out);
    }

    fn queue_peer_work(
        &mut self,
        id: WriteId,
        range: BlockRange,
        kind: PeerKind,
        access: Access,
        out: &mut Outbox,
    ) {
        let Some(session) = self.session.as_ref().map(|session| session.id) else {
            return;
        };
        let ticket = Ticket::default();
        let work = PeerWork {
            session,
            id,
            range,
            kind,
            ticket,
            started: false,
        };
        let key = self.peer_work.insert(work);
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
        work.started = true;
        let range = work.range;
        match &work.kind {
            PeerKind::Read => self.disk(DiskOp::PeerRead(key), DiskCommand::Read(range), out),
            PeerKind::Write { kind, fua, .. } => {
                let command = disk_command(range, kind.clone(), *fua);
                self.disk(DiskOp::PeerWrite(key), command, out);
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
        self.release_lock(work.ticket, out);
        let current = self
            .session
            .as_ref()
            .is_some_and(|session| session.id == work.session);
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

    /// The session is gone. Protocol C acknowledged nothing that has not completed, so what waits
    /// for a lock is the unacknowledged tail and is dropped; what is on the disk ends by itself
    /// (R13, R14).
    pub(super) fn drop_peer_work(&mut self, out: &mut Outbox) {
        let mut tickets = Vec::new();
        for key in self.peer_work.keys() {
            let waiting = self.peer_work.get(key).is_some_and(|work| !work.started);
            if waiting && let Some(work) = self.peer_work.remove(key) {
                tickets.push(work.ticket);
            }
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
        self.peer_epochs = PeerEpochs::default();
    }
}
