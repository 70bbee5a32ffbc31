//! One transaction as a 4 KiB page.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64, U128};

use super::slots::SlotNr;
use super::{CHANGES_MAX, CONTEXT_SLOTS};
use crate::meta::page::{PAGE_LEN, PageBytes, is_sealed, seal};
use crate::types::fixed::fixed_layout;
use crate::types::{ExtentNr, ReplicaId};

/// First bytes of a transaction.
const MAGIC: u32 = u32::from_le_bytes(*b"tbAL");
const VERSION: u16 = 1;
/// The table was empty before this transaction.
const FLAG_RESET: u16 = 1;
/// "No extent" in a slot. No volume reaches this extent.
const NO_EXTENT: u32 = u32::MAX;

/// One slot gets another extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) slot: SlotNr,
    pub(super) leaving: Option<ExtentNr>,
    pub(super) arriving: ExtentNr,
}

/// What a transaction says, to be encoded.
pub(super) struct Content<'a> {
    /// The table is empty before the changes.
    pub(super) reset: bool,
    /// At most [`CHANGES_MAX`].
    pub(super) changes: &'a [Change],
    /// First slot of the context window.
    pub(super) context_first: u16,
    /// The window's slots *after* the changes, at most [`CONTEXT_SLOTS`].
    pub(super) context: &'a [Option<ExtentNr>],
}

fixed_layout! {
    /// Bytes of a transaction.
    struct RawTransaction {
        magic: U32,
        version: U16,
        flags: U16,
        reserved: U32,
        crc: U32,
        sequence: U64,
        replica: U128,
        slots: U16,
        change_count: U16,
        context_first: U16,
        context_count: U16,
        reserved_2: [u8; 16],
        change_slots: [U16; CHANGES_MAX],
        change_extents: [U32; CHANGES_MAX],
        context: [U32; CONTEXT_SLOTS as usize],
    }
}

const CRC_AT: usize = core::mem::offset_of!(RawTransaction, crc);
const _: () = assert!(size_of::<RawTransaction>() == PAGE_LEN);

/// Whether the page begins as a transaction does.
pub(crate) fn has_magic(page: &PageBytes) -> bool {
    page.starts_with(&MAGIC.to_le_bytes())
}

pub(super) fn encode(
    sequence: u64,
    replica: ReplicaId,
    slots: u16,
    content: &Content<'_>,
) -> PageBytes {
    let raw_extent = |extent: Option<ExtentNr>| U32::new(extent.map_or(NO_EXTENT, |nr| nr.0));
    let count = |len: usize| U16::new(u16::try_from(len).expect("bounded by the page's arrays"));
    let mut raw = RawTransaction {
        magic: MAGIC.into(),
        version: VERSION.into(),
        flags: if content.reset { FLAG_RESET } else { 0 }.into(),
        reserved: 0.into(),
        crc: 0.into(),
        sequence: sequence.into(),
        replica: replica.0.into(),
        slots: slots.into(),
        change_count: count(content.changes.len()),
        context_first: content.context_first.into(),
        context_count: count(content.context.len()),
        reserved_2: [0; 16],
        change_slots: [0.into(); CHANGES_MAX],
        change_extents: [0.into(); CHANGES_MAX],
        context: [0.into(); CONTEXT_SLOTS as usize],
    };
    for (at, change) in content.changes.iter().enumerate() {
        raw.change_slots[at] = change.slot.0.into();
        raw.change_extents[at] = raw_extent(Some(change.arriving));
    }
    for (at, extent) in content.context.iter().enumerate() {
        raw.context[at] = raw_extent(*extent);
    }
    let mut page: PageBytes = zerocopy::transmute!(raw);
    seal(&mut page, CRC_AT);
    page
}

/// A transaction read back, its counts checked.
pub(super) struct Decoded<'a> {
    raw: &'a RawTransaction,
}

impl<'a> Decoded<'a> {
    /// `None` unless the page is a whole transaction of this replica and slot count.
    pub(super) fn read(page: &'a PageBytes, replica: ReplicaId, slots: u16) -> Option<Self> {
        if !is_sealed(page, CRC_AT) {
            return None;
        }
        let raw = RawTransaction::ref_from_bytes(page).ok()?;
        let window_end =
            usize::from(raw.context_first.get()) + usize::from(raw.context_count.get());
        let ours = raw.magic.get() == MAGIC
            && raw.version.get() == VERSION
            && raw.replica.get() == replica.0
            && raw.slots.get() == slots
            && usize::from(raw.change_count.get()) <= CHANGES_MAX
            && raw.context_count.get() <= CONTEXT_SLOTS
            && window_end <= usize::from(slots);
        ours.then_some(Self { raw })
    }

    pub(super) fn sequence(&self) -> u64 {
        self.raw.sequence.get()
    }

    pub(super) fn is_reset(&self) -> bool {
        self.raw.flags.get() & FLAG_RESET != 0
    }

    /// Slot contents it states: the context window, then the changes.
    pub(super) fn statements(&self) -> impl Iterator<Item = (SlotNr, Option<ExtentNr>)> + '_ {
        let extent = |raw: &U32| Some(raw.get()).filter(|nr| *nr != NO_EXTENT).map(ExtentNr);
        let window = (self.raw.context_first.get()..)
            .zip(&self.raw.context[..usize::from(self.raw.context_count.get())])
            .map(move |(slot, raw)| (SlotNr(slot), extent(raw)));
        let count = usize::from(self.raw.change_count.get());
        let changes = self.raw.change_slots[..count]
            .iter()
            .zip(&self.raw.change_extents[..count])
            .map(move |(slot, raw)| (SlotNr(slot.get()), extent(raw)));
        window.chain(changes)
    }
}
