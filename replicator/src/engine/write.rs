//! The guest write path of the Primary.
//!
//! ```text
//! begin_write ── lock held? ──▶ edges whole? ──▶ activity log hot? ──▶ submit_write
//!                  │ no            │ no             │ no                 │        │
//!                  ▼               ▼                ▼                 Disk     Send Data
//!              wait for it    read, merge    transaction first          │        │
//!                                                                    local    WriteAck
//!                                                                     leg      peer leg
//!                                                                       └───┬────┘
//!                         both legs over: lock and log released ◀───────────┤
//!                         policy + gate allow: the guest is answered ◀──────┘
//! ```
//! A write that may not be answered yet (lease over, peer lost while strict) waits in `blocked`.

use super::edge::{self, Content, Part};
use super::ops::DiskOp;
use super::output::{CloseReason, DiskCommand, Outbox};
use super::overlap::{Access, Ticket};
use super::session::Session;
use super::slab::Key;
use super::{Engine, LockOwner};
use crate::protocol::{DataKind, Message, WriteId, WriteTerms};
use crate::types::{
    BlockCount, BlockIndex, BlockRange, DiskError, Instant, Payload, ReplicationProtocol,
    WriteEpoch,
};

/// One part of a guest write in progress.
#[derive(Clone, Debug)]
pub(super) struct Write {
    request: Key,
    pub(super) range: BlockRange,
    content: Content,
    fua: bool,
    /// No guest's: it mends a block for this verify.
    mends: Option<u64>,
    ticket: Ticket,
    /// Edge blocks of a partial write, as read so far.
    edge: [Option<Payload>; 2],
    edges_pending: usize,
    pub(super) submitted: Option<Submitted>,
}

impl Write {
    /// The blocks that are read before it can be written, if any ever are.
    fn wanted_edges(&self) -> Option<[Option<BlockIndex>; 2]> {
        match &self.content {
            Content::Partial { skip, bytes } => Some(edge::edges(self.range, *skip, bytes.len())),
            Content::AsItIs => Some([Some(self.range.start()), None]),
            Content::Whole(_) | Content::Zeroes { .. } => None,
        }
    }

    fn merge_edges(&mut self) {
        let edge = [self.edge[0].as_ref(), self.edge[1].as_ref()];
        let whole = match &self.content {
            Content::Partial { skip, bytes } => edge::merge(self.range, *skip, bytes, edge),
            Content::AsItIs => edge::merge(self.range, 0, &[], edge),
            Content::Whole(_) | Content::Zeroes { .. } => return,
        };
        self.content = Content::Whole(whole);
        self.edge = [None, None];
    }
}

/// What is known of a write after both its legs were started in one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Submitted {
    pub(super) epoch: WriteEpoch,
    pub(super) local: Leg,
    pub(super) peer: Leg,
    /// What the guest's answer needs of the peer is there, though its leg may not be over: it was
    /// sent (protocol A) or received (B). Means nothing once the session is over.
    promised: bool,
    /// As it was sent.
    pub(super) protocol: ReplicationProtocol,
    /// The guest was answered before the peer's leg was over, at this time.
    pub(super) ahead_since: Option<Instant>,
    /// Its extents are referenced in the activity log.
    pub(super) logged: bool,
    /// Lock and activity-log references were given back.
    released: bool,
}

/// One replica's share of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// Not asked of that replica.
    Unneeded,
    /// Under way.
    Pending,
    /// Completed there.
    Done,
    /// It failed there.
    Failed(DiskError),
    /// The session ended before the answer: unknown there, marked here.
    Lost,
}

impl Engine {
    pub(super) fn begin_write(&mut self, request: Key, part: Part, fua: bool, out: &mut Outbox) {
        let range = part.range;
        let mends = (part.content == Content::AsItIs).then_some(self.verifies_begun());
        let key = self.writes.insert(Write {
            request,
            range,
            content: part.content,
            fua,
            mends,
            ticket: Ticket::default(),
            edge: [None, None],
            edges_pending: 0,
            submitted: None,
        });
        let (ticket, held) = self
            .overlap
            .acquire(range, Access::Exclusive, LockOwner::Write(key));
        if let Some(write) = self.writes.get_mut(key) {
            write.ticket = ticket;
        }
        if held {
            self.on_write_locked(key, out);
        }
    }

    pub(super) fn on_write_locked(&mut self, key: Key, out: &mut Outbox) {
        let Some(write) = self.writes.get_mut(key) else {
            return;
        };
        let Some(wanted) = write.wanted_edges() else {
            self.queue_for_activity_log(key, out);
            return;
        };
        write.edges_pending = wanted.iter().flatten().count();
        for (edge, block) in wanted.into_iter().enumerate() {
            if let Some(block) = block {
                let range = BlockRange::new(block, BlockCount(1));
                self.read_blocks(DiskOp::Edge { write: key, edge }, range, out);
            }
        }
    }

    /// The block that edge `edge` of a partial write reads.
    pub(super) fn edge_block(&self, key: Key, edge: usize) -> Option<BlockRange> {
        let block = self.writes.get(key)?.wanted_edges()?[edge]?;
        Some(BlockRange::new(block, BlockCount(1)))
    }

    pub(super) fn on_edge_read(
        &mut self,
        key: Key,
        edge: usize,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(write) = self.writes.get_mut(key) else {
            return;
        };
        write.edges_pending -= 1;
        match result {
            Ok(block) => write.edge[edge] = Some(block),
            Err(error) => {
                // Nothing was written anywhere: the request fails, the replica is not to blame yet.
                let Some(write) = self.writes.remove(key) else {
                    return;
                };
                if let Some(verify) = write.mends {
                    self.on_mended(verify, false);
                } else {
                    self.failed_parts.push((write.request, error));
                }
                self.release_lock(write.ticket, out);
                self.pump_failed_parts(out);
                return;
            }
        }
        if write.edges_pending > 0 {
            return;
        }
        write.merge_edges();
        self.queue_for_activity_log(key, out);
    }

    /// The write's extents are in the activity log (or there is no local disk): both replicas get
    /// it in one step.
    pub(super) fn submit_write(&mut self, key: Key, logged: bool, out: &mut Outbox) {
        let local_usable = self.local_usable();
        let replicating = self.replicating();
        let protocol = self.protocol_now();
        let Some(write) = self.writes.get_mut(key) else {
            return;
        };
        let kind = data_kind(&write.content);
        let (range, epoch) = (write.range, self.epoch);
        let terms = WriteTerms {
            fua: write.fua,
            protocol,
            after_earlier: replicating && core::mem::take(&mut self.answered_ahead),
        };
        let leg = |asked: bool| if asked { Leg::Pending } else { Leg::Unneeded };
        let submitted = Submitted {
            epoch,
            local: leg(local_usable),
            peer: leg(replicating),
            promised: protocol == ReplicationProtocol::A && !terms.fua,
            protocol,
            ahead_since: None,
            logged,
            released: false,
        };
        write.submitted = Some(submitted);
        self.open_writes += 1;
        if replicating {
            self.note_debt();
            self.owed_acks += 1;
            self.note_unretired(epoch, range);
            let message = Message::Data {
                write: WriteId(key.0),
                range,
                kind: kind.clone(),
                terms,
            };
            self.send(message, out);
        } else {
            self.mark_dirty(range);
        }
        if local_usable {
            let command = disk_command(range, kind, terms.fua);
            self.disk(DiskOp::Write(key), command, out);
        }
        self.last_write = self.now;
        if submitted.local == Leg::Unneeded && submitted.peer == Leg::Unneeded {
            // The disk failed between admission and here and the peer is away: an error, or
            // (`resend_forwarded`) the peer's when it returns.
            self.settle_write(key, out);
        }
    }

    pub(super) fn on_local_write(
        &mut self,
        key: Key,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        if let Some(Submitted { local, .. }) = self.submitted_mut(key) {
            *local = match result {
                Ok(()) => Leg::Done,
                Err(error) => Leg::Failed(error),
            };
        }
        match result {
            Ok(()) => {}
            Err(_) if self.active.is_some() && self.is_only_replica() && !self.strict() => {
                self.fail_this_write(key, out)
            }
            Err(error) => self.fail_local_disk(error, out),
        }
        self.settle_write(key, out);
    }

    /// The only replica there is could not take a write: its guest hears of it, as from any disk,
    /// and everything else goes on. Failing the replica would leave nothing that could ever serve
    /// again, for a full filesystem as little as for a bad sector. A peer being resynced may have
    /// the write: its session ends, so that the marks say again what differs.
    fn fail_this_write(&mut self, key: Key, out: &mut Outbox) {
        self.counters.io_errors += 1;
        if let Some(range) = self.writes.get(key).map(|write| write.range) {
            self.mark_dirty(range);
        }
        self.end_session(CloseReason::DiskChanged, out);
    }

    pub(super) fn on_write_ack(&mut self, id: WriteId, out: &mut Outbox) {
        let key = Key(id.0);
        if let Some(submitted) = self.submitted_mut(key)
            && submitted.peer == Leg::Pending
        {
            submitted.peer = Leg::Done;
            self.owed_acks -= 1;
            self.note_peer_disk();
            self.settle_write(key, out);
        }
    }

    /// Protocol B: the peer holds it, and will have it on its disk even if the session ends.
    pub(super) fn on_receive_ack(&mut self, id: WriteId, out: &mut Outbox) {
        let key = Key(id.0);
        let Some(write) = self.writes.get_mut(key) else {
            return;
        };
        let fua = write.fua;
        let Some(submitted) = &mut write.submitted else {
            return;
        };
        if submitted.protocol != ReplicationProtocol::B {
            self.end_session(CloseReason::Protocol, out);
        } else if submitted.peer == Leg::Pending && !fua {
            submitted.promised = true;
            self.settle_write(key, out);
        }
    }

    /// The protocol that counts for a write submitted now. Without `strict` nothing is promised on
    /// the peer's behalf, and without a local disk the peer's is the only one: C.
    fn protocol_now(&self) -> ReplicationProtocol {
        let ahead = self.strict() && self.local_usable() && self.peer_is_equal();
        let session = self.session.as_ref().filter(|_| ahead);
        session.map_or(ReplicationProtocol::C, Session::protocol)
    }

    pub(super) fn submitted_mut(&mut self, key: Key) -> Option<&mut Submitted> {
        self.writes.get_mut(key)?.submitted.as_mut()
    }

    /// Both legs over: give back what the write held. Policy and gate allow: answer.
    pub(super) fn settle_write(&mut self, key: Key, out: &mut Outbox) {
        let Some(write) = self.writes.get_mut(key) else {
            return;
        };
        let Some(submitted) = &mut write.submitted else {
            return;
        };
        let over = submitted.local != Leg::Pending && submitted.peer != Leg::Pending;
        let first_time = over && !submitted.released;
        submitted.released |= over;
        let (ticket, range, epoch, request) =
            (write.ticket, write.range, submitted.epoch, write.request);
        let mends = write.mends;
        let submitted = *submitted;
        if first_time {
            if submitted.logged {
                self.release_extents(range, epoch);
            }
            if submitted.ahead_since.is_some() {
                self.ahead_bytes -= range.len().0;
            }
            if let Some(verify) = mends {
                self.on_mended(
                    verify,
                    submitted.local == Leg::Done && submitted.peer == Leg::Done,
                );
            }
            self.end_epoch_write(epoch, out);
            self.release_lock(ticket, out);
        }
        // Without `strict` the guest is answered as soon as the local leg is over, even while a
        // replica that is not in sync still works on it.
        let mut wanted = self.requests.get(request).is_some();
        if wanted
            && self.may_reply()
            && let Some(result) = self.write_result(submitted)
        {
            self.end_part(request, result.map(|()| None), out);
            wanted = false;
            if let Some(write) = self.writes.get_mut(key) {
                write.request = Key::default();
            }
            if !over && submitted.promised {
                self.answer_ahead(key, out);
            }
        }
        if over && !wanted {
            self.writes.remove(key);
        } else if over && !self.blocked.contains(&key) {
            self.blocked.push(key);
        }
    }

    /// The guest was told, and may now write the same blocks again: here that is ordered by this
    /// write being over, on the peer by the order of arrival.
    fn answer_ahead(&mut self, key: Key, out: &mut Outbox) {
        self.answered_ahead = true;
        let now = self.now;
        let Some(write) = self.writes.get_mut(key) else {
            return;
        };
        let (ticket, len) = (write.ticket, write.range.len().0);
        if let Some(submitted) = &mut write.submitted {
            submitted.ahead_since = Some(now);
        }
        self.ahead_bytes += len;
        self.release_lock(ticket, out);
    }

    /// Since when the oldest answered write is not known to be on the peer's disk.
    pub(super) fn ahead_since(&self) -> Option<Instant> {
        if self.ahead_bytes == 0 {
            return None;
        }
        let pending = self.writes.iter().filter_map(|(_, write)| write.submitted);
        pending
            .filter(|submitted| submitted.peer == Leg::Pending)
            .filter_map(|submitted| submitted.ahead_since)
            .min()
    }

    /// What the guest may be told, if anything yet: the completion policy (R3, R4).
    fn write_result(&self, submitted: Submitted) -> Option<Result<(), DiskError>> {
        let active = self.active.as_ref()?;
        if !self.strict() {
            return match (submitted.local, submitted.peer) {
                // Nothing is recalled from a peer that still works on it.
                (Leg::Pending, _) | (Leg::Failed(_) | Leg::Unneeded, Leg::Pending) => None,
                (Leg::Done, _) => Some(Ok(())),
                // The only good replica failed: the guest must know, whatever a peer that catches
                // up made of it.
                // It may still land: no error may say that it did not.
                (Leg::Failed(DiskError::Timeout), _) => None,
                (Leg::Failed(error), _) => Some(Err(error)),
                // The only replica failed before it was asked, and may be attached again (ADR 0008).
                (Leg::Unneeded | Leg::Lost, _) => None,
            };
        }
        // Protocols A and B: this disk has it, and the peer will.
        let promised =
            submitted.promised && submitted.local == Leg::Done && submitted.peer == Leg::Pending;
        let bounded = self.ahead_bytes < Self::AHEAD_BYTES_MAX;
        if promised && bounded && self.peer_is_equal() && self.local_usable() {
            return Some(Ok(()));
        }
        // The peer may have lost what it had before it came back: nothing is told on its behalf
        // before it is equal again (R16).
        if !self.peer_is_equal() || submitted.local == Leg::Pending || submitted.peer != Leg::Done {
            return None;
        }
        // Detached before acknowledged (promise 5): what this disk does not have counts once the
        // Leave is committed.
        let mine_counts = active.view.in_sync.contains(self.config.node);
        (submitted.local == Leg::Done || !mine_counts).then_some(Ok(()))
    }

    /// The peer was made equal: it has every write whose answer was lost with an earlier session,
    /// or that was submitted while there was none.
    pub(super) fn settle_equalised(&mut self) {
        for key in self.writes.keys() {
            if let Some(Submitted { local, peer, .. }) = self.submitted_mut(key)
                && *local == Leg::Done
                && matches!(peer, Leg::Lost | Leg::Unneeded)
            {
                *peer = Leg::Done;
            }
        }
        self.ahead_lost = false;
    }

    /// Step-down: parts that were submitted nowhere are forgotten; the others end by themselves.
    pub(super) fn drop_waiting_writes(&mut self, out: &mut Outbox) {
        self.cold.clear();
        self.blocked.clear();
        self.waiting_parts.clear();
        self.failed_parts.clear();
        let mut tickets = Vec::new();
        for key in self.writes.keys() {
            let gone = self
                .writes
                .get(key)
                .is_some_and(|write| match write.submitted {
                    None => true,
                    Some(submitted) => submitted.released,
                });
            if gone && let Some(write) = self.writes.remove(key) {
                tickets.push(write.ticket);
            }
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
    }

    /// Tells guests of parts that failed before they were submitted; an error is an answer, so it
    /// passes the gate too (R2).
    pub(super) fn pump_failed_parts(&mut self, out: &mut Outbox) {
        if self.failed_parts.is_empty() || !self.may_reply() {
            return;
        }
        for (request, error) in core::mem::take(&mut self.failed_parts) {
            self.end_part(request, Err(error), out);
        }
    }

    /// Tries again to answer writes that waited for a lease, a Remove, a Leave or the peer.
    pub(super) fn pump_blocked(&mut self, out: &mut Outbox) {
        if self.blocked.is_empty() || !self.may_reply() {
            return;
        }
        for key in core::mem::take(&mut self.blocked) {
            self.settle_write(key, out);
        }
    }

    /// A diskless Primary's unanswered writes may exist nowhere else: all of them are sent again in
    /// the new session, in the order in which they got their blocks, so that a partial write is
    /// not undone by the one whose bytes it was merged with.
    pub(super) fn resend_forwarded(&mut self, out: &mut Outbox) {
        let mut unanswered: Vec<(Ticket, Key)> = self
            .writes
            .iter()
            .filter(|(_, write)| write.submitted.is_some())
            .map(|(key, write)| (write.ticket, key))
            .collect();
        unanswered.sort_unstable();
        for (_, key) in unanswered {
            self.note_debt();
            let Some(write) = self.writes.get_mut(key) else {
                continue;
            };
            let range = write.range;
            let terms = WriteTerms {
                fua: write.fua,
                ..WriteTerms::default()
            };
            let kind = data_kind(&write.content);
            let Some(submitted) = &mut write.submitted else {
                continue;
            };
            if submitted.peer != Leg::Pending {
                submitted.peer = Leg::Pending;
                self.owed_acks += 1;
                self.send(
                    Message::Data {
                        write: WriteId(key.0),
                        range,
                        kind,
                        terms,
                    },
                    out,
                );
            }
        }
    }
}

/// What a write whose edges are merged sends.
fn data_kind(content: &Content) -> DataKind {
    match content {
        Content::Whole(payload) => DataKind::Write(payload.clone()),
        Content::Zeroes { may_unmap } => DataKind::Zeroes {
            may_unmap: *may_unmap,
        },
        Content::Partial { .. } | Content::AsItIs => {
            unreachable!("edges are merged before the activity log")
        }
    }
}

/// The disk command for a replicated or local write.
pub(super) fn disk_command(range: BlockRange, kind: DataKind, fua: bool) -> DiskCommand {
    match kind {
        DataKind::Write(payload) => DiskCommand::Write {
            range,
            payload,
            fua,
        },
        DataKind::Zeroes { may_unmap } => DiskCommand::Zeroes {
            range,
            may_unmap,
            fua,
        },
    }
}
