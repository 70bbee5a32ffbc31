//! Resync, the source's side, and what both sides share.
//!
//! Both send the marked parts of their bitmaps and unite them; the target makes the union durable
//! together with "I am a resync target", says so, and then pulls. Order does the locking between
//! the two: the source reads a block under a shared lock and answers in the same stream that
//! carries guest writes, so whatever the target applies in stream order ends with the newest
//! (drbd.md §2.7). A mark is cleared on each side once the block is on the target's disk; the
//! cleared state reaches a disk only after both flushed (promise 4).

use super::edge;
use super::handshake::Sync;
use super::ops::DiskOp;
use super::output::{DiskCommand, Event, MetaPage, Outbox, Progress};
use super::overlap::{Access, Ticket};
use super::session::Phase;
use super::slab::Key;
use super::{Action, CloseReason, Engine, LockOwner, MetaThen};
use crate::protocol::{Message, ResyncReply, WriteId};
use crate::types::{BLOCK_LEN, BlockCount, BlockIndex, BlockRange, DiskError, Instant, Payload};

/// Bytes of one block's digest on the wire: 128 bits, so that no resync of any size clears a mark
/// of a differing block by accident (interleavings F15).
pub(super) const DIGEST_LEN: usize = 16;

/// What the source keeps of a running resync.
#[derive(Clone, Debug)]
pub(super) struct SourceSync {
    pub(super) sync: Sync,
    /// The target's bitmap has arrived whole.
    united: bool,
    /// The target has recorded everything and pulls.
    pulling: bool,
    /// The closing flush round was asked for.
    closing: bool,
    /// A block could not be read: its mark stays, so this resync cannot end.
    unreadable: bool,
}

/// What the target keeps of a running resync.
#[derive(Clone, Debug)]
pub(super) struct TargetSync {
    pub(super) sync: Sync,
    /// Pulling has begun.
    pub(super) pulling: bool,
    /// Where to look for the next marked block.
    pub(super) cursor: BlockIndex,
    /// Requests under way.
    pub(super) requests: usize,
    /// Blocks the source could not read are asked for again then, one by one.
    pub(super) retry_at: Option<Instant>,
    /// Some could not be read: one block a request, so that a bad block spoils no other.
    pub(super) careful: bool,
    /// The pace, and nothing else, holds up the next request.
    pub(super) paced: bool,
}

/// A read at the source for the target.
#[derive(Clone, Debug)]
pub(super) struct SourceRead {
    id: WriteId,
    range: BlockRange,
    digests: Payload,
    ticket: Ticket,
    started: bool,
}

impl SourceSync {
    /// Bitmaps are still being exchanged or recorded.
    pub(super) fn is_exchanging(&self) -> bool {
        !self.pulling
    }

    /// Guests wait for it, and it can end.
    pub(super) fn will_be_equal(&self) -> bool {
        self.sync.equalise && !self.unreadable
    }
}

impl Engine {
    pub(super) fn begin_source(&mut self, sync: Sync, out: &mut Outbox) {
        let peer = self.config.node.peer();
        let named = self
            .active
            .as_ref()
            .is_some_and(|active| active.view.in_sync.contains(peer));
        if let Some(session) = &mut self.session {
            session.stranger = named && !sync.equalise;
        }
        self.note_payment();
        self.enter(
            Phase::SyncSource(SourceSync {
                sync,
                united: false,
                pulling: false,
                closing: false,
                unreadable: false,
            }),
            out,
        );
        if sync.full {
            self.mark_everything();
        }
        self.forget_marks_beyond(self.volume_blocks());
        if self.peer_is_named() && !sync.equalise {
            // The view counts on a replica that says itself that it is not whole: it leaves, so
            // that guests need not wait, and is added once it is.
            out.push(Action::Event(Event::PeerDiskFailed));
        }
        self.send_bitmap(out);
        let peer = self
            .session
            .as_ref()
            .and_then(super::session::Session::peer_replica);
        self.record_base(peer, out);
    }

    pub(super) fn send_bitmap(&mut self, out: &mut Outbox) {
        for (first_block, bits) in self.bitmap_chunks() {
            self.send(Message::BitmapChunk { first_block, bits }, out);
        }
        self.send(Message::BitmapEnd, out);
    }

    pub(super) fn on_bitmap_chunk(&mut self, first_block: u64, bits: &Payload, out: &mut Outbox) {
        let expected = self
            .session
            .as_ref()
            .is_some_and(|session| match &session.phase {
                Phase::SyncSource(source) => !source.united,
                Phase::SyncTarget(target) => !target.pulling,
                _ => false,
            });
        if !expected || !self.unite_bitmap(first_block, bits) {
            self.end_session(CloseReason::Protocol, out);
        }
    }

    pub(super) fn on_bitmap_end(&mut self, out: &mut Outbox) {
        let now = self.now;
        match self.session.as_mut().map(|session| &mut session.phase) {
            Some(Phase::SyncSource(source)) if !source.united => source.united = true,
            Some(Phase::SyncTarget(target)) if !target.pulling => {
                target.pulling = true;
                self.record_target(out);
            }
            _ => {
                self.end_session(CloseReason::Protocol, out);
                return;
            }
        }
        let total_blocks = self.dirty_blocks();
        self.progress = Some(Progress {
            total_blocks,
            rule: self.session.as_ref().and_then(|session| session.rule),
            full: self.sync_of().is_some_and(|sync| sync.full),
            began: now,
            ..Progress::default()
        });
    }

    pub(super) fn on_resync_ready(&mut self, out: &mut Outbox) {
        if let Some(source) = self.source_sync()
            && source.united
            && !source.pulling
        {
            source.pulling = true;
            self.close_resync_when_done(out);
        } else {
            self.end_session(CloseReason::Protocol, out);
        }
    }

    fn source_sync(&mut self) -> Option<&mut SourceSync> {
        match &mut self.session.as_mut()?.phase {
            Phase::SyncSource(source) => Some(source),
            _ => None,
        }
    }

    pub(super) fn on_resync_request(
        &mut self,
        id: WriteId,
        range: BlockRange,
        digests: Payload,
        out: &mut Outbox,
    ) {
        let blocks = range.count().0;
        let digested =
            digests.is_empty() || digests.len() as u64 == blocks.saturating_mul(DIGEST_LEN as u64);
        let fits = !range.is_empty()
            && blocks <= Self::RESYNC_REQUEST_BLOCKS
            && range.end().0 <= self.volume_blocks().0;
        let pulling = self.source_sync().is_some_and(|source| source.pulling);
        if !pulling || !fits || !digested || self.source_reads.len() >= Self::RESYNC_REQUESTS_MAX {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        let read = SourceRead {
            id,
            range,
            digests,
            ticket: Ticket::default(),
            started: false,
        };
        let key = self.source_reads.insert(read);
        let (ticket, held) = self
            .overlap
            .acquire(range, Access::Shared, LockOwner::Source(key));
        if let Some(read) = self.source_reads.get_mut(key) {
            read.ticket = ticket;
        }
        if held {
            self.on_source_locked(key, out);
        }
    }

    pub(super) fn on_source_locked(&mut self, key: Key, out: &mut Outbox) {
        let Some(read) = self.source_reads.get_mut(key) else {
            return;
        };
        read.started = true;
        let range = read.range;
        self.disk(DiskOp::SourceRead(key), DiskCommand::Read(range), out);
    }

    pub(super) fn on_source_read(
        &mut self,
        key: Key,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(read) = self.source_reads.remove(key) else {
            return;
        };
        if self.source_sync().is_some() {
            self.answer_resync(&read, result, out);
        }
        self.release_lock(read.ticket, out);
    }

    /// Answers in runs of like blocks: equal by digest, all zero, or data.
    fn answer_resync(
        &mut self,
        read: &SourceRead,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let (id, range) = (read.id, read.range);
        let data = match result {
            Ok(data) => data,
            Err(error) => return self.answer_unreadable(read, error, out),
        };
        let runs = runs(&data, &read.digests, &self.digest_key());
        let last_run = runs.len() - 1;
        for (nr, (first, count, kind)) in runs.into_iter().enumerate() {
            let piece = BlockRange::new(
                BlockIndex(range.start().0 + first as u64),
                BlockCount(count as u64),
            );
            let block = usize::try_from(BLOCK_LEN).unwrap_or(usize::MAX);
            let reply = match kind {
                RunKind::Same => ResyncReply::Same,
                RunKind::Zeroes => ResyncReply::Zeroes,
                RunKind::Data => {
                    ResyncReply::Data(data.slice(first * block, (first + count) * block))
                }
            };
            if let Some(progress) = &mut self.progress {
                match kind {
                    RunKind::Same => progress.same_blocks += count as u64,
                    RunKind::Zeroes | RunKind::Data => progress.copied_blocks += count as u64,
                }
            }
            let last = nr == last_run;
            self.send(
                Message::ResyncData {
                    id,
                    range: piece,
                    reply,
                    last,
                },
                out,
            );
        }
    }

    fn answer_unreadable(&mut self, read: &SourceRead, error: DiskError, out: &mut Outbox) {
        self.counters.io_errors += 1;
        if self.peer_kept_everything() {
            // Guests wait for a resync that cannot end, and the peer holds all they were told of.
            self.fail_local_disk(error, out);
            return;
        }
        if let Some(source) = self.source_sync() {
            source.unreadable = true;
        }
        let message = Message::ResyncData {
            id: read.id,
            range: read.range,
            reply: ResyncReply::Unreadable,
            last: true,
        };
        self.send(message, out);
    }

    /// Whether the target is in `in_sync` and did not lose what it had acknowledged.
    fn peer_kept_everything(&mut self) -> bool {
        let lost = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref()?.replica.as_ref())
            .is_none_or(|claim| claim.lost_volatile);
        !lost
            && self
                .source_sync()
                .is_some_and(|source| source.sync.equalise)
    }

    pub(super) fn on_resync_ack(&mut self, range: BlockRange, out: &mut Outbox) {
        if range.end().0 > self.volume_blocks().0 || self.source_sync().is_none() {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        self.clear_dirty(range);
        self.note_progress();
        self.settle_now_and_then(out);
        self.close_resync_when_done(out);
    }

    /// Both sides' cleared marks reach the disks now and then, so that an interruption does not
    /// start from zero.
    fn settle_now_and_then(&mut self, out: &mut Outbox) {
        if self.unsettled_blocks() >= Self::SETTLE_EVERY_BLOCKS && self.round.is_none() {
            self.want_round(out);
        }
    }

    /// No mark left on either side: one more round makes it durable, then the peer is equal.
    pub(super) fn close_resync_when_done(&mut self, out: &mut Outbox) {
        let clean = self.dirty_blocks() == 0;
        if let Some(source) = self.source_sync()
            && source.pulling
            && clean
            && !source.closing
        {
            source.closing = true;
            self.want_round(out);
        }
    }

    /// A round ended; if it closed the resync, the peer now holds everything durably.
    pub(super) fn on_round_over(&mut self, with_peer: bool, out: &mut Outbox) {
        let Some(source) = self.source_sync() else {
            return;
        };
        if !source.closing || !with_peer {
            return;
        }
        let equalise = source.sync.equalise;
        if self.dirty_blocks() > 0 || self.unsettled_blocks() > 0 {
            if let Some(source) = self.source_sync() {
                source.closing = false;
            }
            self.close_resync_when_done(out);
            if self.dirty_blocks() == 0 {
                self.want_round(out);
            }
            return;
        }
        self.end_progress();
        self.coarse = false;
        self.enter(Phase::MirrorSource, out);
        if !equalise {
            out.push(Action::Event(Event::ResyncDone));
        }
    }

    pub(super) fn note_progress(&mut self) {
        let left = self.dirty_blocks();
        if let Some(progress) = &mut self.progress {
            progress.done_blocks = progress.total_blocks.saturating_sub(left);
        }
    }

    pub(super) fn end_progress(&mut self) {
        let now = self.now;
        self.note_progress();
        if let Some(progress) = &mut self.progress {
            progress.ended.get_or_insert(now);
        }
    }

    /// The session ended in the middle: reads under way end by themselves, marks come back.
    pub(super) fn abandon_resync(&mut self, phase: Phase, out: &mut Outbox) {
        if matches!(phase, Phase::SyncSource(_) | Phase::SyncTarget(_)) {
            self.end_progress();
        }
        self.unsettle();
        let mut tickets = Vec::new();
        for key in self.source_reads.keys() {
            let waiting = self.source_reads.get(key).is_some_and(|read| !read.started);
            if waiting && let Some(read) = self.source_reads.remove(key) {
                tickets.push(read.ticket);
            }
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
        self.abandon_target(out);
    }

    /// Digests are keyed by the session, so that equal digests of differing blocks cannot be
    /// prepared by a guest.
    pub(super) fn digest_key(&self) -> [u8; 32] {
        let id = self.session.as_ref().map_or(0, |session| session.id.0);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&id.to_le_bytes());
        key[8..16].copy_from_slice(&self.config.resource.0.to_le_bytes());
        key
    }

    pub(super) fn persist_bitmap(&mut self, then: MetaThen, out: &mut Outbox) {
        let pages: Vec<MetaPage> = self.dirty_bitmap_pages();
        self.counters.bitmap_writes += pages.len() as u64;
        if pages.is_empty() && then == MetaThen::Nothing {
            return;
        }
        self.meta_write(pages, then, out);
    }
}

/// The digest of one block.
pub(super) fn digest(block: &[u8], key: &[u8; 32]) -> [u8; DIGEST_LEN] {
    let hash = blake3::keyed_hash(key, block);
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(&hash.as_bytes()[..DIGEST_LEN]);
    digest
}

/// The digests of whole blocks, one after the other.
pub(super) fn digests(data: &Payload, key: &[u8; 32]) -> Payload {
    let block_len = usize::try_from(BLOCK_LEN).unwrap_or(usize::MAX);
    let all: Vec<u8> = data
        .chunks(block_len)
        .flat_map(|block| digest(block, key))
        .collect();
    all.into()
}

/// What a run of blocks needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunKind {
    Same,
    Zeroes,
    Data,
}

/// Runs of like blocks: (first, count, kind), in order, covering all of `data`.
fn runs(data: &Payload, digests: &[u8], key: &[u8; 32]) -> Vec<(usize, usize, RunKind)> {
    let block_len = usize::try_from(BLOCK_LEN).unwrap_or(usize::MAX);
    let mut runs: Vec<(usize, usize, RunKind)> = Vec::new();
    for (nr, block) in data.chunks(block_len).enumerate() {
        let theirs = digests.get(nr * DIGEST_LEN..(nr + 1) * DIGEST_LEN);
        let kind = if theirs.is_some_and(|theirs| theirs == digest(block, key)) {
            RunKind::Same
        } else if block.iter().all(|byte| *byte == 0) {
            RunKind::Zeroes
        } else {
            RunKind::Data
        };
        match runs.last_mut() {
            Some((_, count, last)) if *last == kind => *count += 1,
            _ => runs.push((nr, 1, kind)),
        }
    }
    runs
}

/// The first part of `range` that is asked for in one request of at most `max` blocks.
pub(super) fn request_blocks(range: BlockRange, max: u64) -> BlockRange {
    edge::pieces(range, max).next().unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_blocks_travel_as_one_run() {
        let key = [7; 32];
        let mut data = vec![0u8; 4 * 4096];
        data[2 * 4096..].fill(9);
        let mut digests = vec![0u8; 4 * DIGEST_LEN];
        digests[3 * DIGEST_LEN..].copy_from_slice(&digest(&data[3 * 4096..], &key));
        let found = runs(&data.into(), &digests, &key);
        assert_eq!(
            found,
            [
                (0, 2, RunKind::Zeroes),
                (2, 1, RunKind::Data),
                (3, 1, RunKind::Same)
            ]
        );
    }
}
