//! What may differ from the peer: bitmap, activity log, and writes not retired yet.
//!
//! The one invariant (promise 4): a block that differs is marked in the bitmap, or its extent is in
//! the durable activity log, or its write is in `unretired` on a live session.

use std::collections::VecDeque;

use super::output::{MetaPage, Outbox};
use super::overlap::Ticket;
use super::slab::Key;
use super::write::Leg;
use super::{Engine, LockOwner, MetaThen};
use crate::meta::{Acquire, ActivityLog, Begin, Bitmap, SuperblockWriter};
use crate::types::{
    BlockCount, BlockIndex, BlockRange, ExtentNr, Payload, ReplicationProtocol, WriteEpoch,
};

/// The attached (or failed) replica's own structures.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) superblock: SuperblockWriter,
    pub(super) activity_log: ActivityLog,
    pub(super) bitmap: Bitmap,
    /// The boot that last had it open was another one, and it was not closed: completed but
    /// unflushed writes may be gone.
    pub(super) lost_volatile: bool,
}

/// Writes whose durability on both replicas is not known yet, in order of submission.
#[derive(Clone, Debug, Default)]
pub(super) struct Unretired {
    writes: VecDeque<(WriteEpoch, BlockRange)>,
    /// Blocks of all of them; one that is written twice counts twice.
    blocks: u64,
}

impl Unretired {
    fn push(&mut self, epoch: WriteEpoch, range: BlockRange) {
        self.blocks += range.count().0;
        self.writes.push_back((epoch, range));
    }

    /// The first, if it is not newer than `epoch`.
    fn pop_up_to(&mut self, epoch: WriteEpoch) -> Option<BlockRange> {
        let first = self.writes.front().filter(|(theirs, _)| *theirs <= epoch);
        let (_, range) = *first?;
        self.writes.pop_front();
        self.blocks -= range.count().0;
        Some(range)
    }
}

impl Engine {
    // --- Marks -----------------------------------------------------------------------------

    pub(super) fn mark_dirty(&mut self, range: BlockRange) {
        if let Some(replica) = &mut self.replica {
            replica.bitmap.set(range);
        }
    }

    pub(super) fn mark_everything(&mut self) {
        // What the replica has beyond the volume is forgotten again, where it is certain.
        let replica = BlockRange::new(BlockIndex(0), self.replica_blocks());
        self.mark_dirty(replica);
    }

    /// A device may be larger than the volume both agreed on; marks there mean nothing, and the
    /// peer could neither take nor clear them. Between sessions only: nothing is unsettled then.
    pub(super) fn forget_marks_beyond(&mut self, volume: BlockCount) {
        if let Some(Replica { bitmap, .. }) = &mut self.replica {
            let beyond = BlockRange::between(BlockIndex(volume.0), BlockIndex(bitmap.size().0));
            if bitmap.any_in(beyond) {
                bitmap.clear(beyond);
                bitmap.begin_settle();
                bitmap.end_settle();
            }
        }
    }

    pub(super) fn clear_dirty(&mut self, range: BlockRange) {
        if let Some(replica) = &mut self.replica {
            replica.bitmap.clear(range);
        }
    }

    pub(super) fn dirty_blocks(&self) -> u64 {
        self.replica
            .as_ref()
            .map_or(0, |replica| replica.bitmap.count().0)
    }

    pub(super) fn unsettled_blocks(&self) -> u64 {
        self.replica
            .as_ref()
            .map_or(0, |replica| replica.bitmap.unsettled_count().0)
    }

    pub(super) fn next_dirty_run(&self, from: BlockIndex) -> Option<BlockRange> {
        let max = BlockCount(Self::RESYNC_REQUEST_BLOCKS);
        self.replica.as_ref()?.bitmap.next_run(from, max)
    }

    pub(super) fn set_coarse(&mut self, coarse: bool) {
        self.coarse = coarse;
    }

    pub(super) fn bitmap_chunks(&self) -> Vec<(u64, Payload)> {
        let mut chunks = Vec::new();
        let Some(replica) = &self.replica else {
            return chunks;
        };
        let mut from = BlockIndex(0);
        while let Some(chunk) = replica.bitmap.next_chunk(from) {
            from = BlockIndex(chunk.end().0.next_multiple_of(64));
            chunks.push((chunk.first_block.0, chunk.bits));
        }
        chunks
    }

    pub(super) fn unite_bitmap(&mut self, first_block: u64, bits: &Payload) -> bool {
        let first = BlockIndex(first_block);
        self.replica
            .as_mut()
            .is_some_and(|r| r.bitmap.union_chunk(first, bits).is_ok())
    }

    pub(super) fn begin_settle(&mut self) {
        if let Some(replica) = &mut self.replica {
            replica.bitmap.begin_settle();
        }
    }

    /// Both replicas flushed since `begin_settle`.
    pub(super) fn end_settle(&mut self, out: &mut Outbox) {
        if let Some(replica) = &mut self.replica {
            replica.bitmap.end_settle();
            self.persist_bitmap(MetaThen::Nothing, out);
        }
    }

    /// Both replicas flushed, and nothing was cleared since.
    pub(super) fn settle(&mut self) {
        if let Some(replica) = &mut self.replica {
            replica.bitmap.end_settle();
            replica.bitmap.begin_settle();
            replica.bitmap.end_settle();
        }
    }

    pub(super) fn unsettle(&mut self) {
        if let Some(replica) = &mut self.replica {
            replica.bitmap.unsettle_all();
        }
    }

    pub(super) fn dirty_bitmap_pages(&mut self) -> Vec<MetaPage> {
        let Some(replica) = &mut self.replica else {
            return Vec::new();
        };
        let pages: Vec<_> = replica.bitmap.dirty_pages().collect();
        pages
            .into_iter()
            .map(|page| replica.bitmap.write_page(page))
            .collect()
    }

    // --- Writes not retired yet ------------------------------------------------------------

    pub(super) fn note_unretired(&mut self, epoch: WriteEpoch, range: BlockRange) {
        self.unretired.push(epoch, range);
    }

    pub(super) fn unretired_len(&self) -> usize {
        self.unretired.writes.len()
    }

    /// As many as a lost session may leave to be made equal while guests wait.
    pub(super) fn unretired_is_long(&self) -> bool {
        self.unretired_len() >= Self::UNRETIRED_MAX
            || self.unretired.blocks >= Self::UNRETIRED_BLOCKS_MAX
    }

    /// More waits at the gate until a round has ended.
    pub(super) fn unretired_is_full(&self) -> bool {
        self.unretired_len() >= 2 * Self::UNRETIRED_MAX
            || self.unretired.blocks >= 2 * Self::UNRETIRED_BLOCKS_MAX
    }

    /// A round ended: everything up to `epoch` is durable here and, `with_peer`, there.
    pub(super) fn retire(&mut self, epoch: WriteEpoch, with_peer: bool, out: &mut Outbox) {
        while let Some(range) = self.unretired.pop_up_to(epoch) {
            if !with_peer {
                self.mark_dirty(range);
            }
        }
        if let Some(replica) = &mut self.replica {
            replica.activity_log.retire(epoch.0);
        }
        if with_peer {
            self.end_settle(out);
        }
        self.pump_activity_log(out);
    }

    /// The session is over: what the peer has not made durable is marked, before anything is
    /// acknowledged without it (R21).
    pub(super) fn mark_unretired(&mut self) {
        while let Some(range) = self.unretired.pop_up_to(WriteEpoch(u64::MAX)) {
            self.mark_dirty(range);
        }
    }

    /// Answers that can never come are lost. Their writes are settled by `pump` at the end of this
    /// very step, after `mark_unretired`: marks first, then anything that may answer.
    pub(super) fn lose_legs(&mut self) {
        self.owed_acks = 0;
        for key in self.writes.keys() {
            if let Some(submitted) = self.submitted_mut(key)
                && submitted.peer == Leg::Pending
            {
                submitted.peer = Leg::Lost;
                let ahead = submitted.ahead_since.is_some();
                let gone = ahead && submitted.protocol == ReplicationProtocol::A;
                self.ahead_lost |= gone;
                self.lost_legs.push(key);
            }
        }
    }

    // --- Activity log ----------------------------------------------------------------------

    /// A write whose blocks are whole waits here until its extents are hot.
    pub(super) fn queue_for_activity_log(&mut self, key: Key, out: &mut Outbox) {
        if !self.local_usable() && !self.leaving() {
            self.submit_write(key, false, out);
            return;
        }
        if self.cold.is_empty() && self.try_hot(key) {
            self.submit_write(key, true, out);
            return;
        }
        self.cold.push_back(key);
        self.pump_activity_log(out);
    }

    fn try_hot(&mut self, key: Key) -> bool {
        let Some(range) = self.writes.get(key).map(|write| write.range) else {
            return true;
        };
        let Some(replica) = &mut self.replica else {
            return true;
        };
        replica.activity_log.acquire(range) == Acquire::Hot
    }

    /// First come, first in: nobody overtakes a large request for ever (interleavings F19).
    pub(super) fn pump_activity_log(&mut self, out: &mut Outbox) {
        // Not listed here, and the peer keeps marks for this replica only once the Leave is
        // prepared: sent now, the write could be there, not here, and known to nobody (promise 4).
        if self.leaving() {
            return;
        }
        while let Some(key) = self.cold.front().copied() {
            let logged = self.writes.get(key).is_some() && self.local_usable();
            if logged && !self.try_hot(key) {
                break;
            }
            self.cold.pop_front();
            self.submit_write(key, logged, out);
        }
        if self.cold.is_empty() {
            return;
        }
        let waiting: Vec<BlockRange> = self
            .cold
            .iter()
            .filter_map(|key| self.writes.get(*key))
            .map(|w| w.range)
            .collect();
        let Some(replica) = &mut self.replica else {
            return;
        };
        match replica.activity_log.begin_transaction(waiting) {
            Begin::Transaction(transaction) => {
                self.write_leaving(&transaction.leaving, out);
                self.counters.activity_log_writes += 1;
                self.meta_write(vec![transaction.page], MetaThen::ActivityLog, out);
            }
            Begin::Starved => self.starved = true,
            Begin::NotNeeded | Begin::InFlight => {}
        }
    }

    /// The marks of extents that drop out must be durable before the log forgets them; metadata
    /// requests are carried out in order, so asking first is enough.
    fn write_leaving(&mut self, leaving: &[ExtentNr], out: &mut Outbox) {
        let Some(replica) = &mut self.replica else {
            return;
        };
        let size = replica.bitmap.size();
        let mut pages = Vec::new();
        for extent in leaving {
            let grown: Vec<_> = replica.bitmap.grown_pages_in(extent.blocks(size)).collect();
            pages.extend(
                grown
                    .into_iter()
                    .map(|page| replica.bitmap.write_page(page)),
            );
        }
        if !pages.is_empty() {
            self.counters.bitmap_writes += pages.len() as u64;
            self.meta_write(pages, MetaThen::Nothing, out);
        }
    }

    pub(super) fn on_activity_log_written(&mut self, out: &mut Outbox) {
        if let Some(replica) = &mut self.replica {
            replica.activity_log.commit_done();
        }
        self.pump_activity_log(out);
        self.pump_quiesce(out);
    }

    /// Slots are short: a round must retire some (asked once; answered by `retire`).
    pub(super) fn activity_log_is_short(&mut self) -> bool {
        core::mem::take(&mut self.starved)
    }

    pub(super) fn release_extents(&mut self, range: BlockRange, epoch: WriteEpoch) {
        if let Some(replica) = &mut self.replica {
            replica.activity_log.release(range, epoch.0);
        }
    }

    /// Empties the log when nothing pins it: the orderly end of an activation.
    pub(super) fn reset_activity_log(&mut self, out: &mut Outbox) -> bool {
        // What a failed replica lists no longer matters: it gets everything when it comes back.
        let failed = matches!(
            self.local,
            super::LocalDisk::Failed | super::LocalDisk::LettingGo
        );
        let Some(replica) = self.replica.as_mut().filter(|_| !failed) else {
            return true;
        };
        if replica.activity_log.is_clean() {
            return true;
        }
        if let Begin::Transaction(transaction) = replica.activity_log.begin_reset() {
            self.write_leaving(&transaction.leaving, out);
            self.counters.activity_log_writes += 1;
            self.meta_write(vec![transaction.page], MetaThen::ActivityLog, out);
        }
        false
    }

    // --- Locks -----------------------------------------------------------------------------

    /// Gives blocks back and starts whoever waited for them. Starting one may end it at once and
    /// so give more back: those go on the same list, not on the stack, however long the chain.
    pub(super) fn release_lock(&mut self, ticket: Ticket, out: &mut Outbox) {
        self.overlap.release(ticket, &mut self.granted);
        if core::mem::replace(&mut self.granting, true) {
            return;
        }
        while let Some(owner) = self.granted.pop_front() {
            match owner {
                LockOwner::Write(key) => self.on_write_locked(key, out),
                LockOwner::Read(key) => self.on_read_locked(key, out),
                LockOwner::Peer(key) => self.on_peer_locked(key, out),
                LockOwner::Source(key) => self.on_source_locked(key, out),
                LockOwner::Target(key) => self.on_target_locked(key, out),
                LockOwner::Verify(key) => self.on_verify_locked(key, out),
                LockOwner::Digests(key) => self.on_digests_locked(key, out),
            }
        }
        self.granting = false;
    }
}
