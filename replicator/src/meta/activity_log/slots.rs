//! The slot table in memory: which extent is in which slot, who holds it, which may go next.
//!
//! A hit costs one lookup in an array indexed by extent number; taking and putting a reference
//! moves the slot out of and into a list linked through the slots themselves. The list is in the
//! order of last use, and so, epochs never decreasing, in the order of last epochs: if its oldest
//! cannot go, none can.

use super::page::Change;
use crate::types::{BlockCount, BlockRange, EXTENT_BLOCKS, ExtentNr};

/// Number of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SlotNr(pub(super) u16);

impl SlotNr {
    fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Clone, Debug, Default)]
struct Slot {
    extent: Option<ExtentNr>,
    refs: u32,
    last_epoch: u64,
    /// Sequence of the last transaction for which a waiting request needs this slot to stay.
    protected_for: u64,
    older: Option<SlotNr>,
    newer: Option<SlotNr>,
}

#[derive(Clone, Debug)]
pub(super) struct SlotTable {
    slots: Vec<Slot>,
    /// Slot number + 1 by extent number, 0 = cold. Zeroed memory that is never touched costs
    /// nothing, so the size of the volume does not matter.
    index: Vec<u16>,
    /// Slots never used or emptied, the next to use last.
    free: Vec<SlotNr>,
    /// Ends of the list of hot slots without references.
    oldest: Option<SlotNr>,
    newest: Option<SlotNr>,
}

impl SlotTable {
    pub(super) fn new(slots: u16, volume: BlockCount) -> Self {
        let extents = usize::try_from(volume.0.div_ceil(EXTENT_BLOCKS))
            .expect("the layout's size limit keeps extents below 32 bits");
        Self {
            slots: vec![Slot::default(); usize::from(slots)],
            index: if slots == 0 {
                Vec::new()
            } else {
                vec![0; extents]
            },
            free: (0..slots).rev().map(SlotNr).collect(),
            oldest: None,
            newest: None,
        }
    }

    /// The volume is larger from now on; its new extents are cold.
    pub(super) fn grow(&mut self, volume: BlockCount) {
        let extents = usize::try_from(volume.0.div_ceil(EXTENT_BLOCKS))
            .expect("the layout's size limit keeps extents below 32 bits");
        if !self.is_disabled() {
            assert!(extents >= self.index.len(), "a volume only grows");
            self.index.resize(extents, 0);
        }
    }

    pub(super) fn is_disabled(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn len(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("made from a u16")
    }

    /// Slots with an extent, hot or arriving.
    pub(super) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of extents in the volume.
    pub(super) fn volume_extents(&self) -> usize {
        self.index.len()
    }

    fn position(extent: ExtentNr) -> usize {
        usize::try_from(extent.0).expect("32 bits fit")
    }

    fn slot_of(&self, extent: ExtentNr) -> Option<SlotNr> {
        let position = Self::position(extent);
        assert!(
            position < self.index.len(),
            "extent {} of a volume with {}",
            extent.0,
            self.index.len()
        );
        self.index[position].checked_sub(1).map(SlotNr)
    }

    pub(super) fn is_hot(&self, extent: ExtentNr) -> bool {
        self.slot_of(extent).is_some()
    }

    pub(super) fn is_pinned(&self, extent: ExtentNr, retired: u64) -> bool {
        self.slot_of(extent).is_some_and(|nr| {
            let slot = &self.slots[nr.index()];
            slot.refs > 0 || slot.last_epoch > retired
        })
    }

    /// One more reference on a hot extent.
    pub(super) fn take(&mut self, extent: ExtentNr) {
        let nr = self.slot_of(extent).expect("checked hot");
        if self.slots[nr.index()].refs == 0 {
            self.unlink(nr);
        }
        self.slots[nr.index()].refs += 1;
    }

    /// One reference less.
    pub(super) fn put(&mut self, extent: ExtentNr, epoch: u64) {
        let nr = self.slot_of(extent).expect("referenced extents stay hot");
        let slot = &mut self.slots[nr.index()];
        assert!(slot.refs > 0, "extent {} is not referenced", extent.0);
        slot.refs -= 1;
        slot.last_epoch = slot.last_epoch.max(epoch);
        if slot.refs == 0 {
            self.link_newest(nr);
        }
    }

    /// Keeps the hot extents of `range` from being replaced in transaction `sequence`.
    pub(super) fn protect(&mut self, range: BlockRange, sequence: u64) {
        for extent in range.extents() {
            let Some(nr) = self.slot_of(extent) else {
                continue;
            };
            self.slots[nr.index()].protected_for = sequence;
            if self.slots[nr.index()].refs == 0 {
                self.unlink(nr);
                self.link_newest(nr);
            }
        }
    }

    /// Whether `count` slots are free or can be freed now.
    pub(super) fn can_free(&self, count: usize, retired: u64, sequence: u64) -> bool {
        let wanted = count.saturating_sub(self.free.len());
        let evictable = core::iter::successors(self.oldest, |nr| self.slots[nr.index()].newer)
            .map(|nr| &self.slots[nr.index()])
            .take_while(|slot| slot.last_epoch <= retired && slot.protected_for != sequence);
        evictable.take(wanted).count() == wanted
    }

    /// Puts `extent` into a free slot or in place of the least recently used. It is not hot before
    /// [`SlotTable::activate`]; what it replaces is cold at once.
    pub(super) fn replace(&mut self, extent: ExtentNr) -> Change {
        let slot = self.free.pop().or(self.oldest);
        let slot = slot.expect("can_free said that there is one");
        let leaving = self.slots[slot.index()].extent;
        if let Some(old) = leaving {
            self.unlink(slot);
            self.index[Self::position(old)] = 0;
        }
        self.slots[slot.index()] = Slot {
            extent: Some(extent),
            ..Slot::default()
        };
        Change {
            slot,
            leaving,
            arriving: extent,
        }
    }

    /// The slot's extent is durable: hot from now on.
    pub(super) fn activate(&mut self, nr: SlotNr) {
        let extent = self.slots[nr.index()].extent;
        let extent = extent.expect("an arriving extent keeps its slot");
        self.index[Self::position(extent)] = nr.0 + 1;
        self.link_newest(nr);
    }

    /// Whether no extent is referenced or waits for its epoch.
    pub(super) fn all_free(&self, retired: u64) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.refs == 0 && slot.last_epoch <= retired)
    }

    /// Empties every slot.
    pub(super) fn clear(&mut self) {
        for slot in &self.slots {
            if let Some(extent) = slot.extent {
                self.index[Self::position(extent)] = 0;
            }
        }
        self.slots.fill(Slot::default());
        self.free = (0..self.len()).rev().map(SlotNr).collect();
        self.oldest = None;
        self.newest = None;
    }

    /// Content of up to `len` slots from `first` on.
    pub(super) fn window(&self, first: u16, len: u16) -> Vec<Option<ExtentNr>> {
        self.slots
            .iter()
            .skip(usize::from(first))
            .take(usize::from(len))
            .map(|slot| slot.extent)
            .collect()
    }

    /// All extents in slots, hot or arriving, in slot order.
    pub(super) fn extents(&self) -> impl Iterator<Item = ExtentNr> + '_ {
        self.slots.iter().filter_map(|slot| slot.extent)
    }

    fn link_newest(&mut self, nr: SlotNr) {
        let before = self.newest.replace(nr);
        self.slots[nr.index()].older = before;
        self.slots[nr.index()].newer = None;
        match before {
            Some(before) => self.slots[before.index()].newer = Some(nr),
            None => self.oldest = Some(nr),
        }
    }

    fn unlink(&mut self, nr: SlotNr) {
        let slot = &mut self.slots[nr.index()];
        let (older, newer) = (slot.older.take(), slot.newer.take());
        match older {
            Some(older) => self.slots[older.index()].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.slots[newer.index()].older = older,
            None => self.newest = older,
        }
    }
}
