//! The activity log: which 4 MiB extents may differ from the peer without a bit in the bitmap.
//!
//! A write to a *hot* extent (one in the table) costs nothing; a write to a cold one first puts the
//! extent into the table with one durable 4 KiB transaction, shared by everything that waits for
//! it. After a crash the extents in the table are marked out of sync as a whole.
//!
//! The table has a fixed number of slots. A transaction holds up to [`CHANGES_MAX`] slot changes
//! and a window of [`CONTEXT_SLOTS`] slots of the table; the window moves on by its length each
//! time, so that the last few transactions of the ring always hold the whole table, whatever is
//! overwritten (DRBD's idea: drbd_actlog.c `al_write_transaction`).
//!
//! ```text
//! acquire ── Hot ───────────────► write the data … release(epoch) … retire(epoch): evictable
//!    └─ Cold ─► begin_transaction ─► bitmap pages of `leaving` durable ─► page durable
//!                                                    ─► commit_done ─► acquire again, in order
//! ```
//!
//! It knows nothing of requests, sessions or the peer: epochs are numbers the engine gives.

mod page;
mod replay;
mod slots;

#[cfg(test)]
mod tests;

pub(crate) use page::RawTransaction;
pub(crate) use page::has_magic;
pub use replay::{ReplayError, replay};

use page::{Change, Content};
use slots::SlotTable;

use super::layout::Layout;
use super::page::MetaPage;
use crate::types::{BlockRange, ExtentNr, ReplicaId};

/// Slot changes in one transaction. Also the most extents one request may cover.
pub const CHANGES_MAX: usize = 64;
/// Slots of the table repeated in each transaction: what fits beside the changes.
pub const CONTEXT_SLOTS: u16 = 912;
/// Slots unless configured otherwise: at most 4 GiB to resync after a crash.
pub const SLOTS_DEFAULT: u16 = 1024;
/// Most slots: a slot number and "none" must fit in 16 bits.
pub const SLOTS_MAX: u16 = 65_534;
/// Fewest slots a configuration may ask for, other than 0: DRBD's minimum, and enough for the
/// largest request while every slot of the one before is still pinned (interleavings F19).
pub const SLOTS_MIN: u16 = 67;

/// Answer to [`ActivityLog::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// All extents are in the durable table and now referenced: the data may be written.
    Hot,
    /// Nothing was taken. Park the request and see [`ActivityLog::begin_transaction`].
    Cold,
}

/// Answer to [`ActivityLog::begin_transaction`] and [`ActivityLog::begin_reset`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Make this durable, then call [`ActivityLog::commit_done`].
    Transaction(Transaction),
    /// Nothing needs one.
    NotNeeded,
    /// One is under way; call again after its `commit_done`.
    InFlight,
    /// No slot can be freed: all are referenced or belong to epochs not retired. Close the write
    /// epoch (F19) and call again after [`ActivityLog::retire`].
    Starved,
}

/// One change of the durable table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The page to write, after the bitmap pages of `leaving`.
    pub page: MetaPage,
    /// Extents that drop out. Before the page is written, every bit of theirs must be durable.
    pub leaving: Vec<ExtentNr>,
    /// Extents that are hot once the page is durable.
    pub activated: Vec<ExtentNr>,
}

/// The table of hot extents with its place in the ring.
#[derive(Clone, Debug)]
pub struct ActivityLog {
    layout: Layout,
    replica: ReplicaId,
    table: SlotTable,
    /// Sequence of the newest transaction, durable or being written; 0 before the first.
    sequence: u64,
    /// First slot of the next context window.
    next_context: u16,
    retired: u64,
    /// The changes of the transaction under way.
    in_flight: Option<Vec<Change>>,
    /// Extents that the durable ring lists and the table does not: from before a crash, or about
    /// to go with a reset under way. They leave with the next transaction.
    stale: Vec<ExtentNr>,
}

impl ActivityLog {
    /// An empty log over an empty (all zero) ring. With 0 slots there is no log: everything is
    /// always hot and nothing is ever written.
    #[must_use]
    pub fn new(layout: Layout, al_slots: u16, replica: ReplicaId) -> Self {
        Self {
            layout,
            replica,
            table: SlotTable::new(al_slots, layout.size()),
            sequence: 0,
            next_context: 0,
            retired: 0,
            in_flight: None,
            stale: Vec::new(),
        }
    }

    /// The volume is larger from now on. The ring is where it was.
    ///
    /// # Panics
    /// If `layout` is of a smaller volume.
    pub fn grow(&mut self, layout: Layout) {
        self.table.grow(layout.size());
        self.layout = layout;
    }

    /// Takes a reference on every extent of `range`, or on none.
    ///
    /// # Panics
    /// If the range is not inside the volume or covers more than [`CHANGES_MAX`] extents: requests
    /// were checked and split.
    pub fn acquire(&mut self, range: BlockRange) -> Acquire {
        if self.table.is_disabled() {
            return Acquire::Hot;
        }
        assert!(
            range.extents().nth(CHANGES_MAX).is_none(),
            "{range:?} needs more extents than one transaction can bring in"
        );
        if !range.extents().all(|extent| self.table.is_hot(extent)) {
            return Acquire::Cold;
        }
        for extent in range.extents() {
            self.table.take(extent);
        }
        Acquire::Hot
    }

    /// Drops the references of one successful [`ActivityLog::acquire`] of the same range. The
    /// extents stay pinned until `epoch` is retired. Epochs may repeat but never decrease.
    ///
    /// # Panics
    /// If they were not acquired.
    pub fn release(&mut self, range: BlockRange, epoch: u64) {
        if self.table.is_disabled() {
            return;
        }
        for extent in range.extents() {
            self.table.put(extent, epoch);
        }
    }

    /// Every write of the epochs up to `epoch` is durable on both replicas, or its bits are.
    pub fn retire(&mut self, epoch: u64) {
        self.retired = self.retired.max(epoch);
    }

    /// Brings the extents of the waiting requests in, in their order, all of a request or none of
    /// it, as many requests as one transaction and the free slots allow. Stops at the first that
    /// does not fit, so that a large request is not overtaken for ever.
    ///
    /// Slots of a waiting request that are hot already are not taken away for another.
    pub fn begin_transaction(&mut self, waiting: impl IntoIterator<Item = BlockRange>) -> Begin {
        if self.table.is_disabled() {
            return Begin::NotNeeded;
        }
        if self.in_flight.is_some() {
            return Begin::InFlight;
        }
        let sequence = self.sequence + 1;
        let mut changes: Vec<Change> = Vec::new();
        let mut starved = false;
        for range in waiting {
            let cold: Vec<ExtentNr> = range
                .extents()
                .filter(|extent| !self.table.is_hot(*extent))
                .filter(|extent| changes.iter().all(|change| change.arriving != *extent))
                .take(CHANGES_MAX + 1)
                .collect();
            self.table.protect(range, sequence);
            if changes.len() + cold.len() > CHANGES_MAX {
                break;
            }
            if !self.table.can_free(cold.len(), self.retired, sequence) {
                starved = true;
                break;
            }
            changes.extend(cold.into_iter().map(|extent| self.table.replace(extent)));
        }
        match (changes.is_empty(), starved) {
            (true, true) => Begin::Starved,
            (true, false) => Begin::NotNeeded,
            (false, _) => Begin::Transaction(self.write_changes(changes)),
        }
    }

    /// Empties the table, for a clean stop or after a crash once the replayed extents' bits are
    /// durable. Starved while any extent is referenced or not retired.
    pub fn begin_reset(&mut self) -> Begin {
        if self.in_flight.is_some() {
            return Begin::InFlight;
        }
        if self.is_clean() {
            return Begin::NotNeeded;
        }
        if !self.table.all_free(self.retired) {
            return Begin::Starved;
        }
        self.stale.extend(self.table.extents());
        self.table.clear();
        self.next_context = 0;
        Begin::Transaction(self.write_changes(Vec::new()))
    }

    fn write_changes(&mut self, changes: Vec<Change>) -> Transaction {
        self.sequence += 1;
        let context_first = self.next_context;
        let context = self.table.window(context_first, CONTEXT_SLOTS);
        let context_end = context_first.saturating_add(CONTEXT_SLOTS);
        self.next_context = if context_end < self.table.len() {
            context_end
        } else {
            0
        };
        let content = Content {
            reset: !self.stale.is_empty(),
            changes: &changes,
            context_first,
            context: &context,
        };
        let bytes = page::encode(self.sequence, self.replica, self.table.len(), &content);
        let replaced = changes.iter().filter_map(|change| change.leaving);
        let transaction = Transaction {
            page: MetaPage::new(self.layout.activity_log_page(self.sequence), &bytes),
            leaving: self.stale.iter().copied().chain(replaced).collect(),
            activated: changes.iter().map(|change| change.arriving).collect(),
        };
        self.in_flight = Some(changes);
        transaction
    }

    /// The page of the transaction under way is durable: its extents are hot now.
    ///
    /// # Panics
    /// If none is under way.
    pub fn commit_done(&mut self) {
        let in_flight = self.in_flight.take();
        let changes = in_flight.expect("a completion belongs to a transaction");
        for change in changes {
            self.table.activate(change.slot);
        }
        self.stale.clear();
    }

    /// Whether a transaction is under way.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether a reader of the ring finds no extent: the clean state.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        // Asked at every event: by counts, never by a walk over the slots.
        self.in_flight.is_none() && self.table.used() == 0 && self.stale.is_empty()
    }

    /// The extents a crash at this moment may leave listed: what the ring lists, with both the
    /// leaving and the arriving extents of a transaction under way. In no particular order; an
    /// extent that left and came back may be named twice.
    pub fn listed(&self) -> impl Iterator<Item = ExtentNr> + '_ {
        let replaced = self.in_flight.iter().flatten().filter_map(|c| c.leaving);
        let stale = self.stale.iter().copied();
        self.table.extents().chain(replaced).chain(stale)
    }

    /// Whether any extent of `range` is referenced or not retired: it may differ from the peer for
    /// a reason other than its bits (R15).
    #[must_use]
    pub fn is_unsettled(&self, range: BlockRange) -> bool {
        !self.table.is_disabled()
            && range
                .extents()
                .any(|extent| self.table.is_pinned(extent, self.retired))
    }

    /// Number of the newest transaction, durable or being written; 0 before the first.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u16 {
        self.table.len()
    }

    /// Number of slots in use.
    #[must_use]
    pub fn slots_used(&self) -> usize {
        self.table.used()
    }
}
