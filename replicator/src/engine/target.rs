//! Resync, the target's side: record, pull, write, acknowledge.

use super::handshake::Sync;
use super::ops::DiskOp;
use super::output::{DiskCommand, Outbox};
use super::overlap::{Access, Ticket};
use super::resync::{TargetSync, digests, request_blocks};
use super::session::Phase;
use super::slab::Key;
use super::write::disk_command;
use super::{CloseReason, Engine, LockOwner, MetaThen};
use crate::protocol::{DataKind, Message, ResyncReply, WriteId};
use crate::types::time::earliest;
use crate::types::{BlockCount, BlockIndex, BlockRange, DiskError, Instant, Payload};

/// A request to the source.
#[derive(Clone, Debug)]
pub(super) struct TargetRequest {
    range: BlockRange,
    /// The first block not answered yet: pieces come in order and leave nothing out.
    next: BlockIndex,
    /// Digests were sent, so "the same" is an answer.
    digested: bool,
    /// Pieces being written.
    writing: usize,
    /// The source has sent its last piece.
    answered: bool,
    /// A piece could not be read there; the marks stay.
    unreadable: bool,
    /// The digests are still being made.
    digesting: bool,
}

/// A piece being written.
#[derive(Clone, Debug)]
pub(super) struct TargetWrite {
    request: Key,
    range: BlockRange,
    kind: DataKind,
    ticket: Ticket,
    started: bool,
}

impl TargetRequest {
    /// Whether this is the next piece of the answer. What is left out would lose its mark.
    fn expects(&self, range: BlockRange, reply: &ResyncReply, last: bool) -> bool {
        let in_turn = !self.answered && !self.digesting && range.start() == self.next;
        let inside = !range.is_empty() && self.range.contains(range);
        let fits = match reply {
            ResyncReply::Data(payload) => payload.len() as u64 == range.len().0,
            ResyncReply::Same => self.digested,
            ResyncReply::Zeroes | ResyncReply::Unreadable => true,
        };
        in_turn && inside && fits && last == (range.end() == self.range.end())
    }
}

impl Engine {
    pub(super) fn begin_target(&mut self, sync: Sync, out: &mut Outbox) {
        let cursor = BlockIndex(0);
        let target = TargetSync {
            sync,
            pulling: false,
            cursor,
            requests: 0,
            retry_at: None,
            careful: false,
            paced: false,
        };
        self.enter(Phase::SyncTarget(Box::new(target)), out);
        let volume = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref()?.replica.as_ref())
            .map_or(self.volume_blocks(), |source| {
                BlockCount(source.size_blocks)
            });
        if sync.full {
            self.mark_everything();
        }
        self.forget_marks_beyond(volume);
        self.send_bitmap(out);
    }

    /// The union and "resync target" are durable.
    pub(super) fn on_target_recorded(&mut self, out: &mut Outbox) {
        self.recording = false;
        self.send(Message::ResyncReady, out);
        self.pull(out);
        self.pump_deferred(out);
    }

    /// What a power cut took is here again, and that is recorded.
    pub(super) fn on_whole_recorded(&mut self, out: &mut Outbox) {
        self.recording = false;
        self.pump_deferred(out);
    }

    fn target_sync(&mut self) -> Option<&mut TargetSync> {
        match &mut self.session.as_mut()?.phase {
            Phase::SyncTarget(target) => Some(target),
            _ => None,
        }
    }

    /// Keeps the window of requests full.
    pub(super) fn pull(&mut self, out: &mut Outbox) {
        if let Some(target) = self.target_sync() {
            target.paced = false;
        }
        loop {
            let Some(target) = self.target_sync() else {
                return;
            };
            let (cursor, coarse, careful) = (target.cursor, target.sync.coarse, target.careful);
            if !target.pulling || target.requests >= Self::RESYNC_WINDOW || self.recording {
                return;
            }
            let Some(run) = self.next_dirty_run(cursor) else {
                self.finish_target_when_done(out);
                return;
            };
            // Only here: with nothing left to ask for it ends, held or not.
            if self.sync_is_paused() {
                return;
            }
            if self.pace_due().is_some() {
                if let Some(target) = self.target_sync() {
                    target.paced = true;
                }
                return;
            }
            let max = if careful { 1 } else { self.paced_blocks_max() };
            let range = request_blocks(run, max);
            self.note_paced(range.count());
            if let Some(target) = self.target_sync() {
                target.cursor = range.end();
                target.requests += 1;
            }
            let digesting = coarse || self.config.checksum_first;
            let request = TargetRequest {
                range,
                next: range.start(),
                digested: false,
                writing: 0,
                answered: false,
                unreadable: false,
                digesting,
            };
            let key = self.target_requests.insert(request);
            if digesting {
                self.disk(DiskOp::TargetDigest(key), DiskCommand::Read(range), out);
            } else {
                self.request_blocks_of(key, range, Payload::default(), out);
            }
        }
    }

    fn request_blocks_of(
        &mut self,
        key: Key,
        range: BlockRange,
        digests: Payload,
        out: &mut Outbox,
    ) {
        self.send(
            Message::ResyncRequest {
                id: WriteId(key.0),
                range,
                digests,
            },
            out,
        );
    }

    /// This side's blocks were read: their digests go to the source. A guest write may overtake
    /// the read; then the digest is of what was there before, and the source, answering in stream
    /// order, says "same" only of what it held before sending that write.
    pub(super) fn on_target_digest(
        &mut self,
        key: Key,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let digest_key = self.digest_key();
        let Some(request) = self.target_requests.get_mut(key) else {
            return;
        };
        request.digesting = false;
        let range = request.range;
        // An unreadable target block has no digest: it is simply asked for.
        let answer = result.map_or_else(|_| Payload::default(), |data| digests(&data, &digest_key));
        if let Some(request) = self.target_requests.get_mut(key) {
            request.digested = !answer.is_empty();
        }
        self.request_blocks_of(key, range, answer, out);
    }

    pub(super) fn on_resync_data(
        &mut self,
        id: WriteId,
        range: BlockRange,
        reply: ResyncReply,
        last: bool,
        out: &mut Outbox,
    ) {
        let key = Key(id.0);
        let sane = self
            .target_requests
            .get(key)
            .is_some_and(|request| request.expects(range, &reply, last));
        if !sane {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        let Some(request) = self.target_requests.get_mut(key) else {
            return;
        };
        request.next = range.end();
        request.answered = last;
        let count = range.count().0;
        let (kind, copied) = match reply {
            ResyncReply::Data(payload) => (Some(DataKind::Write(payload)), true),
            ResyncReply::Zeroes => (Some(DataKind::Zeroes { may_unmap: true }), true),
            ResyncReply::Same => (None, false),
            ResyncReply::Unreadable => {
                request.unreadable = true;
                if let Some(target) = self.target_sync() {
                    target.careful = true;
                }
                (None, false)
            }
        };
        if let Some(progress) = &mut self.progress {
            let counter = if copied {
                &mut progress.copied_blocks
            } else {
                &mut progress.same_blocks
            };
            *counter += count;
        }
        if let Some(kind) = kind {
            self.write_resynced(key, range, kind, out);
        }
        self.settle_target_request(key, out);
    }

    fn write_resynced(
        &mut self,
        request: Key,
        range: BlockRange,
        kind: DataKind,
        out: &mut Outbox,
    ) {
        if let Some(request) = self.target_requests.get_mut(request) {
            request.writing += 1;
        }
        let ticket = Ticket::default();
        let write = TargetWrite {
            request,
            range,
            kind,
            ticket,
            started: false,
        };
        let key = self.target_writes.insert(write);
        let owner = LockOwner::Target(key);
        let (ticket, held) = self.overlap.acquire(range, Access::Exclusive, owner);
        if let Some(write) = self.target_writes.get_mut(key) {
            write.ticket = ticket;
        }
        if held {
            self.on_target_locked(key, out);
        }
    }

    pub(super) fn on_target_locked(&mut self, key: Key, out: &mut Outbox) {
        let Some(write) = self.target_writes.get_mut(key) else {
            return;
        };
        write.started = true;
        let command = disk_command(write.range, write.kind.clone(), false);
        self.disk(DiskOp::TargetWrite(key), command, out);
    }

    pub(super) fn on_target_write(
        &mut self,
        key: Key,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        let Some(write) = self.target_writes.remove(key) else {
            return;
        };
        self.release_lock(write.ticket, out);
        if let Err(error) = result {
            self.fail_local_disk(error, out);
            return;
        }
        if let Some(request) = self.target_requests.get_mut(write.request) {
            request.writing -= 1;
        }
        self.settle_target_request(write.request, out);
    }

    fn settle_target_request(&mut self, key: Key, out: &mut Outbox) {
        let over = self
            .target_requests
            .get(key)
            .is_some_and(|r| r.answered && r.writing == 0);
        if !over {
            return;
        }
        let Some(request) = self.target_requests.remove(key) else {
            return;
        };
        if let Some(target) = self.target_sync() {
            target.requests -= 1;
        }
        if !request.unreadable {
            self.clear_dirty(request.range);
            let range = request.range;
            self.send(
                Message::ResyncAck {
                    id: WriteId(key.0),
                    range,
                },
                out,
            );
        }
        self.note_progress();
        self.pull(out);
    }

    fn finish_target_when_done(&mut self, out: &mut Outbox) {
        let done = self.dirty_blocks() == 0;
        let retry_at = self.now.plus(Self::RESYNC_RETRY_AFTER);
        let Some(target) = self.target_sync() else {
            return;
        };
        if target.requests > 0 {
            return;
        }
        if done {
            let equalised = target.sync.equalise;
            self.end_progress();
            self.enter(Phase::MirrorTarget, out);
            if equalised {
                self.record_whole(out);
            }
        } else {
            // What is left could not be read at the source.
            target.retry_at.get_or_insert(retry_at);
        }
    }

    /// Asks for more when the pace allows it, and again for what could not be read.
    pub(super) fn tick_target(&mut self, out: &mut Outbox) {
        let now = self.now;
        let held_up = self.target_sync().is_some_and(|target| target.paced);
        if held_up && self.pace_due().is_none() {
            self.pull(out);
        }
        if let Some(target) = self.target_sync()
            && target.retry_at.is_some_and(|at| now >= at)
        {
            target.retry_at = None;
            target.cursor = BlockIndex(0);
            self.pull(out);
        }
    }

    pub(super) fn target_deadline(&self) -> Option<Instant> {
        match &self.session.as_ref()?.phase {
            Phase::SyncTarget(target) => {
                let pace = target.paced.then_some(self.control.due);
                earliest(target.retry_at, pace)
            }
            _ => None,
        }
    }

    /// The session ended: pieces on the disk end by themselves, the rest is forgotten.
    pub(super) fn abandon_target(&mut self, out: &mut Outbox) {
        for key in self.target_requests.keys() {
            self.target_requests.remove(key);
        }
        let mut tickets = Vec::new();
        for key in self.target_writes.keys() {
            let waiting = self
                .target_writes
                .get(key)
                .is_some_and(|write| !write.started);
            if waiting && let Some(write) = self.target_writes.remove(key) {
                tickets.push(write.ticket);
            }
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
    }

    /// R19: records "in sync from `view`", if nothing is missing.
    pub(super) fn on_prepare_add(&mut self, view: crate::types::ViewNumber, out: &mut Outbox) {
        let equal = matches!(
            self.session.as_ref().map(|session| &session.phase),
            Some(Phase::MirrorTarget)
        );
        if !equal || self.dirty_blocks() > 0 {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        // The source sends this only after the round that made both sides durable.
        self.settle();
        self.set_coarse(false);
        self.persist_bitmap(MetaThen::Nothing, out);
        self.record_in_sync_from(view, out);
    }
}
