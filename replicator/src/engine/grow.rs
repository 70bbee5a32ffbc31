//! `resize`: a larger volume, on both replicas first and in the view last (interleavings F24).
//!
//! ```text
//! Primary, mirroring                           Secondary
//!   Grow{blocks} ────────────────────────────▶ zero them, flush, metadata
//!   zero them, flush, metadata                      │
//!   both have them durably  ◀───────── Grown ───────┘
//!   Event::GrowPrepared ─▶ the view n + 1 has the new size ─▶ guests see it
//! ```
//!
//! Until that view is committed the volume has its old size, whatever a replica has room for; from
//! then on it has the new one, which every replica of the view has durably. So a crash anywhere in
//! between leaves the old size or the new one, and nothing to be made good.
//!
//! The new blocks are zeroed on both and not marked: the replicas are equal there without a resync,
//! and guests wait for nothing. What zeroes them is told in the session, in the order of its writes,
//! so that a late order can never zero what guests have written since.
//!
//! On disk: the pages of the larger bitmap first, then the superblock that says how long it is. Both
//! superblock copies and the activity log stay where they are.

use super::ops::DiskOp;
use super::output::{Action, CloseReason, DiskCommand, Event, Outbox};
use super::session::Phase;
use super::{Engine, LocalDisk, MetaThen, edge};
use crate::meta::{BitmapPageNr, Layout};
use crate::protocol::{Message, WriteId};
use crate::types::{
    BlockCount, BlockIndex, BlockRange, ByteLen, DiskError, InSync, View, ViewNumber,
};

/// How long the devices of the attached replica are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Grows with each measurement.
    pub number: u64,
    /// The data device.
    pub device: ByteLen,
    /// The metadata area.
    pub meta: ByteLen,
    /// Slots of the activity log, for the layout of the metadata.
    pub al_slots: u16,
}

impl Room {
    /// The largest volume that both have room for.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        BlockCount::whole_blocks_in(self.device).min(Layout::largest_volume(self.meta))
    }
}

/// How an order to make the volume larger goes, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowReport {
    /// Grows with each order.
    pub number: u64,
    /// Blocks of the larger volume.
    pub to_blocks: u64,
    /// New blocks that are zeroed here.
    pub zeroed_blocks: u64,
    /// All new blocks.
    pub new_blocks: u64,
    /// How it ended; `None` while it runs.
    pub end: Option<GrowEnd>,
}

/// How an order to make the volume larger ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowEnd {
    /// The view has the new size.
    Done,
    /// Not both replicas were in sync and connected.
    NotMirrored,
    /// The device or the metadata area here has no room, or was not measured.
    NoRoom,
    /// The peer could not.
    PeerFailed(DiskError),
    /// This node's disk could not.
    DiskFailed(DiskError),
    /// The session with the peer ended.
    SessionLost,
    /// Something else was decided meanwhile.
    ViewChanged,
    /// This node is not Primary any more.
    RoleChanged,
    /// The view with the new size was under way when its disk, its role or the peer was lost: it may
    /// have been decided.
    Undecided,
}

/// What is known of growing.
#[derive(Clone, Debug, Default)]
pub(super) struct Grow {
    room: Option<Room>,
    measured: u64,
    /// How many runs began.
    runs: u64,
    run: Option<Run>,
    /// A piece is being zeroed, of this run or of one given up since: another may cover its blocks,
    /// and waits.
    zeroing: bool,
    order: Option<Order>,
    report: Option<GrowReport>,
}

/// This side's part.
#[derive(Clone, Debug)]
struct Run {
    range: BlockRange,
    stage: Stage,
    /// The Primary waits for the answer.
    asked: Option<WriteId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All before is zeroed.
    Zeroing(BlockIndex),
    /// The zeroes are being made durable.
    Flushing,
    /// All pages before are written.
    Pages(BitmapPageNr),
    /// The superblock is.
    Recording,
}

/// What a Primary was ordered.
#[derive(Clone, Debug)]
struct Order {
    id: WriteId,
    range: BlockRange,
    /// The view it began in: another one may name another replica.
    view: ViewNumber,
    here: bool,
    there: bool,
    /// The controller was told: the view decides.
    told: bool,
}

impl Engine {
    /// Zeroed at once; one piece is under way. Long enough for sequential disks, short enough that
    /// guests do not wait long behind it.
    pub const GROW_PIECE_BLOCKS: u64 = 4096;
    /// Progress is told after so many pieces.
    const GROW_TOLD_EVERY: u64 = 64;

    // --- Room ------------------------------------------------------------------------------

    pub(super) fn note_room(&mut self, device: ByteLen, meta: ByteLen, out: &mut Outbox) {
        let Some(replica) = self.replica.as_ref().filter(|_| self.is_attached()) else {
            return;
        };
        self.grow.measured += 1;
        self.grow.room = Some(Room {
            number: self.grow.measured,
            device,
            meta,
            al_slots: replica.superblock.current().al_slots,
        });
        out.push(Action::Event(Event::Changed));
    }

    pub(super) fn forget_room(&mut self) {
        self.grow.room = None;
        self.grow.run = None;
    }

    pub(super) fn room(&self) -> Option<Room> {
        self.grow.room
    }

    fn has_room(&self, to: BlockIndex) -> bool {
        self.grow.room.is_some_and(|room| to.0 <= room.blocks().0)
    }

    fn is_attached(&self) -> bool {
        self.local == LocalDisk::Attached
    }

    // --- The Primary's order -----------------------------------------------------------------

    pub(super) fn grow_report(&self) -> Option<GrowReport> {
        self.grow.report
    }

    pub(super) fn begin_grow(&mut self, to: BlockCount, out: &mut Outbox) {
        if self.grow.order.is_some() {
            return;
        }
        let from = BlockIndex(self.volume_blocks().0);
        let range = BlockRange::between(from, BlockIndex(to.0.max(from.0)));
        let number = self.grow.report.map_or(0, |last| last.number) + 1;
        self.grow.report = Some(GrowReport {
            number,
            to_blocks: to.0,
            zeroed_blocks: 0,
            new_blocks: range.count().0,
            end: None,
        });
        let Some(view) = self.mirrored_view() else {
            return self.end_report(GrowEnd::NotMirrored, out);
        };
        if range.is_empty() {
            return self.end_report(GrowEnd::Done, out);
        }
        // After a promotion by force the replica may have less than the view says: it would show what it
        // grows before the peer has it.
        let whole = self.view.is_some_and(|view| view.size_blocks == from.0);
        if !whole || !self.has_room(range.end()) {
            return self.end_report(GrowEnd::NoRoom, out);
        }
        let id = WriteId(number);
        self.grow.order = Some(Order {
            id,
            range,
            view,
            here: false,
            there: false,
            told: false,
        });
        self.send(Message::Grow { id, range }, out);
        self.begin_run(range, None);
        out.push(Action::Event(Event::Changed));
    }

    /// The view of this Primary, while both replicas are in it and equal.
    fn mirrored_view(&self) -> Option<ViewNumber> {
        let active = self.active.as_ref()?;
        let session = self.session.as_ref()?;
        let mirrors = matches!(session.phase, Phase::MirrorSource) && session.is_equal();
        let both = active.view.in_sync == InSync::BOTH && active.add_begun.is_none();
        (active.serving && mirrors && both && self.local_usable()).then_some(active.view.number)
    }

    pub(super) fn on_peer_grown(
        &mut self,
        id: WriteId,
        range: BlockRange,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        // Of an order that ended since.
        let Some(order) = self.grow.order.as_mut().filter(|it| it.id == id) else {
            return;
        };
        if order.range != range {
            return self.end_session(CloseReason::Protocol, out);
        }
        match result {
            Ok(()) => order.there = true,
            Err(error) => return self.end_grow(GrowEnd::PeerFailed(error), out),
        }
        self.tell_growth(out);
    }

    /// Both replicas have the new blocks durably.
    fn tell_growth(&mut self, out: &mut Outbox) {
        let now = self.mirrored_view();
        let Some(order) = self
            .grow
            .order
            .as_mut()
            .filter(|it| it.here && it.there && !it.told)
        else {
            return;
        };
        if now != Some(order.view) {
            return self.end_grow(GrowEnd::ViewChanged, out);
        }
        order.told = true;
        let (view, size_blocks) = (order.view.next(), order.range.end().0);
        out.push(Action::Event(Event::GrowPrepared { view, size_blocks }));
    }

    /// This Primary committed a view.
    pub(super) fn note_view_of_growth(&mut self, view: &View, out: &mut Outbox) {
        let Some(order) = &self.grow.order else {
            return;
        };
        if view.number == order.view {
            return;
        }
        let grown = view.size_blocks >= order.range.end().0;
        let end = if grown {
            GrowEnd::Done
        } else {
            GrowEnd::ViewChanged
        };
        self.end_grow(end, out);
        if grown {
            self.widen_verify();
        }
    }

    /// The session is over. A view that both are ready for may be on its way all the same.
    pub(super) fn lose_grow(&mut self, out: &mut Outbox) {
        self.grow.run = None;
        if self.grow.order.as_ref().is_some_and(|order| !order.told) {
            self.end_grow(GrowEnd::SessionLost, out);
        }
    }

    /// The order is over; a piece under way ends by itself.
    pub(super) fn end_grow(&mut self, end: GrowEnd, out: &mut Outbox) {
        self.grow.run = None;
        let Some(order) = self.grow.order.take() else {
            return;
        };
        let known = matches!(end, GrowEnd::Done | GrowEnd::ViewChanged);
        let end = if order.told && !known {
            GrowEnd::Undecided
        } else {
            end
        };
        self.end_report(end, out);
    }

    fn end_report(&mut self, end: GrowEnd, out: &mut Outbox) {
        if let Some(report) = &mut self.grow.report {
            report.end = Some(end);
        }
        out.push(Action::Event(Event::Changed));
    }

    // --- The Secondary is asked --------------------------------------------------------------

    pub(super) fn on_grow(&mut self, id: WriteId, range: BlockRange, out: &mut Outbox) {
        let mirrors = self
            .session
            .as_ref()
            .is_some_and(|session| matches!(session.phase, Phase::MirrorTarget));
        // What this node knows to be the volume's is never zeroed, whoever asks.
        if !mirrors || range.is_empty() || range.start().0 < self.volume_blocks().0 {
            return self.end_session(CloseReason::Protocol, out);
        }
        if !self.is_attached() || !self.has_room(range.end()) {
            let result = Err(DiskError::NoSpace.into());
            return self.send(Message::Grown { id, range, result }, out);
        }
        self.begin_run(range, Some(id));
    }

    // --- What each side does -----------------------------------------------------------------

    fn begin_run(&mut self, range: BlockRange, asked: Option<WriteId>) {
        self.grow.runs += 1;
        self.grow.run = Some(Run {
            range,
            stage: Stage::Zeroing(range.start()),
            asked,
        });
    }

    fn stage_of(&self, run: u64) -> Option<(Stage, BlockRange)> {
        let found = self.grow.run.as_ref().filter(|_| run == self.grow.runs)?;
        Some((found.stage, found.range))
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(run) = &mut self.grow.run {
            run.stage = stage;
        }
    }

    /// Begins the next piece, once nothing of an earlier run may still land on it.
    pub(super) fn pump_grow(&mut self, out: &mut Outbox) {
        let run = self.grow.runs;
        let Some((Stage::Zeroing(at), range)) = self.stage_of(run) else {
            return;
        };
        if self.grow.zeroing || !self.is_attached() {
            return;
        }
        let rest = BlockRange::between(at, range.end());
        let Some(piece) = edge::pieces(rest, Self::GROW_PIECE_BLOCKS).next() else {
            self.set_stage(Stage::Flushing);
            return self.disk(DiskOp::GrowFlush(run), DiskCommand::Flush, out);
        };
        self.grow.zeroing = true;
        let command = DiskCommand::Zeroes {
            range: piece,
            may_unmap: true,
            fua: false,
        };
        self.disk(DiskOp::GrowZeroes(run), command, out);
    }

    pub(super) fn on_grow_zeroes(
        &mut self,
        run: u64,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        self.grow.zeroing = false;
        let Some((Stage::Zeroing(at), range)) = self.stage_of(run) else {
            return;
        };
        if let Err(error) = result {
            // Nothing of the volume: the replica is as good as before.
            return self.end_run(Err(error), out);
        }
        let next = BlockIndex(at.0.saturating_add(Self::GROW_PIECE_BLOCKS)).min(range.end());
        self.set_stage(Stage::Zeroing(next));
        let zeroed = next.0 - range.start().0;
        if self.grow.order.is_some()
            && let Some(report) = &mut self.grow.report
        {
            report.zeroed_blocks = zeroed;
        }
        if zeroed.is_multiple_of(Self::GROW_PIECE_BLOCKS * Self::GROW_TOLD_EVERY) {
            out.push(Action::Event(Event::Changed));
        }
    }

    pub(super) fn on_grow_flush(
        &mut self,
        run: u64,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        if let Err(error) = result {
            // A flush covers the device: what of the volume was in its cache may be gone (promise 6).
            return self.fail_local_disk(error, out);
        }
        let Some((Stage::Flushing, _)) = self.stage_of(run) else {
            return;
        };
        let Some(replica) = &self.replica else { return };
        let first = replica.bitmap.first_growth_page();
        self.set_stage(Stage::Pages(first));
        self.write_growth(run, out);
    }

    /// Writes the next pages of the larger bitmap, and after the last one the superblock.
    pub(super) fn write_growth(&mut self, run: u64, out: &mut Outbox) {
        let Some((Stage::Pages(next), range)) = self.stage_of(run) else {
            return;
        };
        let Some(replica) = &mut self.replica else {
            return;
        };
        let size = BlockCount(range.end().0);
        // A device that was larger than the volume from the beginning.
        if replica.bitmap.size() >= size {
            return self.end_run(Ok(()), out);
        }
        let al_slots = replica.superblock.current().al_slots;
        let Some(layout) = Layout::for_volume(size, al_slots) else {
            return self.end_run(Err(DiskError::NoSpace), out);
        };
        let most = u32::try_from(Self::META_PAGES_MAX).expect("a few hundred");
        let end = layout.bitmap_pages().min(next.0.saturating_add(most));
        let pages: Vec<_> = (next.0..end)
            .map(|page| {
                let bitmap = &mut replica.bitmap;
                bitmap.write_growth_page(&layout, BitmapPageNr(page))
            })
            .collect();
        if pages.is_empty() {
            self.set_stage(Stage::Recording);
            let change = |superblock: &mut crate::meta::Superblock| superblock.size = size;
            return self.record(change, MetaThen::Grown(run), out);
        }
        self.counters.bitmap_writes += pages.len() as u64;
        self.set_stage(Stage::Pages(BitmapPageNr(end)));
        self.meta_write(pages, MetaThen::GrowPages(run), out);
    }

    /// The superblock says so, whether or not anybody still waits for it.
    pub(super) fn on_growth_recorded(&mut self, run: u64, out: &mut Outbox) {
        if let Some(replica) = &mut self.replica
            && let Some(layout) = replica.superblock.current().layout()
        {
            replica.bitmap.grow(layout);
            replica.activity_log.grow(layout);
        }
        if let Some((Stage::Recording, _)) = self.stage_of(run) {
            self.end_run(Ok(()), out);
        }
    }

    fn end_run(&mut self, result: Result<(), DiskError>, out: &mut Outbox) {
        let Some(run) = self.grow.run.take() else {
            return;
        };
        out.push(Action::Event(Event::Changed));
        if let Some(id) = run.asked {
            let (range, result) = (run.range, result.map_err(Into::into));
            return self.send(Message::Grown { id, range, result }, out);
        }
        match result {
            Err(error) => self.end_grow(GrowEnd::DiskFailed(error), out),
            Ok(()) => {
                if let Some(order) = &mut self.grow.order {
                    order.here = true;
                }
                self.tell_growth(out);
            }
        }
    }
}
