//! The superblock: who a replica is and what state it is in.
//!
//! Two copies, written in turn, each durable before the other may be written: whatever a crash
//! does to the one being written, the other is whole. The newest valid copy counts. Nothing here
//! ever answers "blank" for an area that is merely damaged.

#[cfg(test)]
mod tests;

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, IntoBytes};

use crate::meta::layout::{Layout, SUPERBLOCK_OFFSETS};
use crate::meta::page::{MetaPage, PAGE_LEN, PageBytes, ZERO_PAGE, is_sealed, seal};
use crate::types::fixed::fixed_layout;
use crate::types::{
    BlockCount, DataGeneration, NodeId, ReplicaId, ResourceId, ViewNumber, VolumeId,
};

/// First bytes of every superblock copy.
pub const MAGIC: [u8; 8] = *b"twinblk\x01";
/// Version of the format this code writes and the newest it reads.
pub const FORMAT_VERSION: u16 = 1;

/// What a replica is, as far as its own disk knows. The committed view has the last word; this can
/// only veto (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaState {
    /// Made by `create-md`; never written through twinblk and never synced.
    Blank,
    /// Named in `in_sync` by the view with this number, and none of that is known to have changed.
    InSync {
        /// The first such view.
        since: ViewNumber,
    },
    /// Whole but left behind.
    Outdated,
    /// A resync was going on: part old, part new (promise 8).
    SyncTarget,
    /// A write, flush or metadata write failed; only a full resync makes it a replica again.
    Failed,
}

/// Feature bits. An unknown `compat` bit is harmless, an unknown `ro_compat` or `incompat` bit
/// makes the area [`SuperblockError::TooNew`]: an attached replica is always written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "ext4's words, explained above")]
pub struct Features {
    pub compat: u64,
    pub ro_compat: u64,
    pub incompat: u64,
}

/// The `ro_compat` and `incompat` bits this code knows: none yet.
const KNOWN_FEATURES: Features = Features {
    compat: 0,
    ro_compat: 0,
    incompat: 0,
};

/// Content of a superblock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Superblock {
    /// Grows by one with each write; the copy with the greater one counts.
    pub sequence: u64,
    /// The resource.
    pub resource: ResourceId,
    /// The volume.
    pub volume: VolumeId,
    /// The node this replica was made for.
    pub node: NodeId,
    /// Identity of the replica's data.
    pub replica: ReplicaId,
    /// Its lineage; `None` while blank.
    pub data_generation: Option<DataGeneration>,
    /// Size of the volume.
    pub size: BlockCount,
    /// Slots of the activity log; 0 = no activity log, so a crash while open dirties everything.
    pub al_slots: u16,
    /// Its state.
    pub state: ReplicaState,
    /// Every block read as zero when the metadata was made.
    pub zero_proven: bool,
    /// The replica the bitmap is relative to; `None` = a device full of zeroes.
    pub bitmap_base: Option<ReplicaId>,
    /// The newest view this replica took part in.
    pub last_view: ViewNumber,
    /// "In sync from this view on", recorded before the Add's accept (R19). Void unless the
    /// register agrees.
    pub in_sync_from: Option<ViewNumber>,
    /// Attached, and possibly with unflushed writes. Found at attach, it means a crash.
    pub open: bool,
    /// Random id of the boot in which it was last opened.
    pub boot_id: u128,
    /// The bitmap cannot be believed: at load every bit counts as set.
    pub full_sync_needed: bool,
    /// Some bits come from an activity log after a crash or from a damaged page, so blocks may be
    /// equal.
    pub bits_coarse: bool,
    /// Bitmap pages never written since `create-md` (all zero) have every bit set, not clear.
    pub unwritten_bits_set: bool,
    /// It served under protocol A, with a peer in `in_sync`: guests may know of writes that the peer
    /// never got.
    pub may_be_ahead: bool,
    /// It took writes under protocol A: guests of the Primary may know of more than it has.
    pub may_be_behind: bool,
    /// Feature bits, kept as found.
    pub features: Features,
}

/// What `create-md` decides of a replica; the rest of a new superblock follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// The resource.
    pub resource: ResourceId,
    /// The volume.
    pub volume: VolumeId,
    /// The node it is made for.
    pub node: NodeId,
    /// Identity of its data, drawn for it.
    pub replica: ReplicaId,
    /// Size of the volume.
    pub size: BlockCount,
    /// Slots of the activity log; 0 = none.
    pub al_slots: u16,
    /// Every block of its device reads as zero.
    pub zero_proven: bool,
}

impl Superblock {
    /// The superblock of a replica that was never in a view.
    #[must_use]
    pub fn blank(new: NewReplica) -> Self {
        Self {
            sequence: 1,
            resource: new.resource,
            volume: new.volume,
            node: new.node,
            replica: new.replica,
            data_generation: None,
            size: new.size,
            al_slots: new.al_slots,
            state: ReplicaState::Blank,
            zero_proven: new.zero_proven,
            bitmap_base: None,
            last_view: ViewNumber::NONE,
            in_sync_from: None,
            open: false,
            boot_id: 0,
            full_sync_needed: false,
            bits_coarse: false,
            // Not known to be zero: every block counts as different until it was copied once.
            unwritten_bits_set: !new.zero_proven,
            may_be_ahead: false,
            may_be_behind: false,
            features: Features::default(),
        }
    }
}

/// Why a page is no superblock of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// All zero: never written.
    #[error("the page is empty")]
    Empty,
    /// Something else is there, or the first sector of ours is lost.
    #[error("the page holds something else")]
    Foreign,
    /// Our magic, but the checksum or a value does not fit.
    #[error("the page is damaged")]
    Damaged,
    /// Whole, but made by a newer version.
    #[error("made by a newer version (format {version}, features {features:?})")]
    TooNew {
        /// Its format version.
        version: u16,
        /// Its feature bits.
        features: Features,
    },
}

/// Why an area has no usable superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum ChooseError {
    /// Both places are empty: `create-md` never finished here.
    #[error("no metadata")]
    NoMetadata,
    /// Neither place is empty or ours.
    #[error("the area holds something else")]
    NotOurs,
    /// There was a superblock, and no whole copy of it is left.
    #[error("both superblock copies are damaged")]
    Damaged,
    /// The newest copy was made by a newer version.
    #[error("made by a newer version (format {version}, features {features:?})")]
    TooNew {
        /// Its format version.
        version: u16,
        /// Its feature bits.
        features: Features,
    },
}

fixed_layout! {
    /// Bytes of a superblock copy; the rest of the page is zero.
    struct RawSuperblock {
        magic: [u8; 8],
        version: U16,
        reserved: U16,
        crc: U32,
        sequence: U64,
        features_compat: U64,
        features_ro_compat: U64,
        features_incompat: U64,
        resource: U64,
        volume: U16,
        node: u8,
        state: u8,
        flags: U32,
        replica: U128,
        data_generation: U128,
        bitmap_base: U128,
        boot_id: U128,
        size_blocks: U64,
        in_sync_since: U64,
        last_view: U64,
        in_sync_from: U64,
        al_slots: U16,
        reserved_2: U16,
        al_pages: U32,
        al_offset: U64,
        bitmap_offset: U64,
        bitmap_pages: U32,
        reserved_3: U32,
    }
}

const CRC_AT: usize = core::mem::offset_of!(RawSuperblock, crc);

const FLAG_ZERO_PROVEN: u32 = 1 << 0;
const FLAG_OPEN: u32 = 1 << 1;
const FLAG_FULL_SYNC_NEEDED: u32 = 1 << 2;
const FLAG_BITS_COARSE: u32 = 1 << 3;
const FLAG_UNWRITTEN_BITS_SET: u32 = 1 << 4;
const FLAG_MAY_BE_AHEAD: u32 = 1 << 5;
const FLAG_MAY_BE_BEHIND: u32 = 1 << 6;

impl Superblock {
    /// The layout of this replica's metadata; `None` if size or slots are out of range.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        Layout::for_volume(self.size, self.al_slots)
    }

    /// Its 4096 bytes.
    ///
    /// # Panics
    /// If size or slots are out of range: `create-md` checks them, and so does whoever makes the volume larger.
    #[must_use]
    pub fn encode(&self) -> PageBytes {
        let layout = self
            .layout()
            .expect("whoever made or enlarged it checked size and slots");
        let (state, in_sync_since) = encode_state(self.state);
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let raw = RawSuperblock {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            reserved: 0.into(),
            crc: 0.into(),
            sequence: self.sequence.into(),
            features_compat: self.features.compat.into(),
            features_ro_compat: self.features.ro_compat.into(),
            features_incompat: self.features.incompat.into(),
            resource: self.resource.0.into(),
            volume: self.volume.0.into(),
            node: self.node.raw(),
            state,
            flags: (flag(self.zero_proven, FLAG_ZERO_PROVEN)
                | flag(self.open, FLAG_OPEN)
                | flag(self.full_sync_needed, FLAG_FULL_SYNC_NEEDED)
                | flag(self.bits_coarse, FLAG_BITS_COARSE)
                | flag(self.unwritten_bits_set, FLAG_UNWRITTEN_BITS_SET)
                | flag(self.may_be_ahead, FLAG_MAY_BE_AHEAD)
                | flag(self.may_be_behind, FLAG_MAY_BE_BEHIND))
            .into(),
            replica: self.replica.0.into(),
            data_generation: self.data_generation.map_or(0, |id| id.0).into(),
            bitmap_base: self.bitmap_base.map_or(0, |id| id.0).into(),
            boot_id: self.boot_id.into(),
            size_blocks: self.size.0.into(),
            in_sync_since: in_sync_since.0.into(),
            last_view: self.last_view.0.into(),
            in_sync_from: self.in_sync_from.unwrap_or(ViewNumber::NONE).0.into(),
            al_slots: self.al_slots.into(),
            reserved_2: 0.into(),
            al_pages: layout.ring_pages().into(),
            al_offset: crate::meta::layout::ACTIVITY_LOG_OFFSET.0.into(),
            bitmap_offset: crate::meta::layout::BITMAP_OFFSET.0.into(),
            bitmap_pages: layout.bitmap_pages().into(),
            reserved_3: 0.into(),
        };
        let mut page = ZERO_PAGE;
        page[..size_of::<RawSuperblock>()].copy_from_slice(raw.as_bytes());
        seal(&mut page, CRC_AT);
        page
    }

    /// Reads a page.
    ///
    /// # Errors
    /// Whatever is not a whole superblock this version understands; see [`SuperblockError`].
    pub fn decode(page: &PageBytes) -> Result<Self, SuperblockError> {
        if *page == ZERO_PAGE {
            return Err(SuperblockError::Empty);
        }
        let (raw, _) =
            RawSuperblock::read_from_prefix(page).map_err(|_| SuperblockError::Damaged)?;
        if raw.magic != MAGIC {
            return Err(SuperblockError::Foreign);
        }
        // Magic, version and checksum keep their places in every version: "too new" is said only
        // of pages that are whole.
        if !is_sealed(page, CRC_AT) {
            return Err(SuperblockError::Damaged);
        }
        let features = Features {
            compat: raw.features_compat.get(),
            ro_compat: raw.features_ro_compat.get(),
            incompat: raw.features_incompat.get(),
        };
        let unknown = features.ro_compat & !KNOWN_FEATURES.ro_compat
            | features.incompat & !KNOWN_FEATURES.incompat;
        if raw.version.get() > FORMAT_VERSION || unknown != 0 {
            return Err(SuperblockError::TooNew {
                version: raw.version.get(),
                features,
            });
        }
        Self::from_raw(&raw, features).ok_or(SuperblockError::Damaged)
    }

    /// `None` if a value is out of its range, which a right checksum makes a bug or an attack.
    fn from_raw(raw: &RawSuperblock, features: Features) -> Option<Self> {
        let flags = raw.flags.get();
        let superblock = Self {
            sequence: raw.sequence.get(),
            resource: ResourceId(raw.resource.get()),
            volume: VolumeId(raw.volume.get()),
            node: NodeId::from_raw(raw.node).filter(|node| node.is_data())?,
            replica: some_unless_zero(raw.replica.get()).map(ReplicaId)?,
            data_generation: some_unless_zero(raw.data_generation.get()).map(DataGeneration),
            size: BlockCount(raw.size_blocks.get()),
            al_slots: raw.al_slots.get(),
            state: decode_state(raw.state, ViewNumber::from_raw(raw.in_sync_since.get())?)?,
            zero_proven: flags & FLAG_ZERO_PROVEN != 0,
            bitmap_base: some_unless_zero(raw.bitmap_base.get()).map(ReplicaId),
            last_view: ViewNumber::from_raw(raw.last_view.get())?,
            in_sync_from: Some(ViewNumber::from_raw(raw.in_sync_from.get())?)
                .filter(|view| *view != ViewNumber::NONE),
            open: flags & FLAG_OPEN != 0,
            boot_id: raw.boot_id.get(),
            full_sync_needed: flags & FLAG_FULL_SYNC_NEEDED != 0,
            bits_coarse: flags & FLAG_BITS_COARSE != 0,
            unwritten_bits_set: flags & FLAG_UNWRITTEN_BITS_SET != 0,
            may_be_ahead: flags & FLAG_MAY_BE_AHEAD != 0,
            may_be_behind: flags & FLAG_MAY_BE_BEHIND != 0,
            features,
        };
        let layout = superblock.layout()?;
        // Nobody writes that often; a forged number must not overflow the next write's.
        let may_grow = superblock.sequence < u64::MAX / 2;
        let same_places = raw.version.get() == FORMAT_VERSION
            && raw.al_pages.get() == layout.ring_pages()
            && raw.al_offset.get() == crate::meta::layout::ACTIVITY_LOG_OFFSET.0
            && raw.bitmap_offset.get() == crate::meta::layout::BITMAP_OFFSET.0
            && raw.bitmap_pages.get() == layout.bitmap_pages();
        (may_grow && same_places).then_some(superblock)
    }
}

fn some_unless_zero(raw: u128) -> Option<u128> {
    (raw != 0).then_some(raw)
}

fn encode_state(state: ReplicaState) -> (u8, ViewNumber) {
    match state {
        ReplicaState::Blank => (1, ViewNumber::NONE),
        ReplicaState::InSync { since } => (2, since),
        ReplicaState::Outdated => (3, ViewNumber::NONE),
        ReplicaState::SyncTarget => (4, ViewNumber::NONE),
        ReplicaState::Failed => (5, ViewNumber::NONE),
    }
}

fn decode_state(raw: u8, since: ViewNumber) -> Option<ReplicaState> {
    match raw {
        1 => Some(ReplicaState::Blank),
        2 => Some(ReplicaState::InSync { since }),
        3 => Some(ReplicaState::Outdated),
        4 => Some(ReplicaState::SyncTarget),
        5 => Some(ReplicaState::Failed),
        _ => None,
    }
}

/// One of the two places of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the start of the area.
    First,
    /// Half a megabyte further.
    Second,
}

impl Place {
    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Where it begins.
    #[must_use]
    pub fn offset(self) -> crate::types::ByteOffset {
        match self {
            Self::First => SUPERBLOCK_OFFSETS[0],
            Self::Second => SUPERBLOCK_OFFSETS[1],
        }
    }
}

/// The newest valid of the two copies, and where it was.
///
/// # Errors
/// When there is none, why; when the newest is too new for this version, that.
pub fn choose(first: &PageBytes, second: &PageBytes) -> Result<(Superblock, Place), ChooseError> {
    use SuperblockError as E;
    match (Superblock::decode(first), Superblock::decode(second)) {
        // A newer version wrote here last or is about to: the older copy is not the truth.
        (Err(E::TooNew { version, features }), _) | (_, Err(E::TooNew { version, features })) => {
            Err(ChooseError::TooNew { version, features })
        }
        (Ok(a), Ok(b)) => choose_of_two(a, b),
        (Ok(a), Err(_)) => Ok((a, Place::First)),
        (Err(_), Ok(b)) => Ok((b, Place::Second)),
        (Err(E::Empty), Err(E::Empty)) => Err(ChooseError::NoMetadata),
        (Err(E::Foreign), Err(E::Foreign | E::Empty)) | (Err(E::Empty), Err(E::Foreign)) => {
            Err(ChooseError::NotOurs)
        }
        (Err(_), Err(_)) => Err(ChooseError::Damaged),
    }
}

fn choose_of_two(a: Superblock, b: Superblock) -> Result<(Superblock, Place), ChooseError> {
    // `create-md` writes both with one sequence; nothing else makes equal ones, and two different
    // replicas in one area (half of an old image copied over) are no replica.
    let mixed = a.replica != b.replica || (a.sequence == b.sequence && a != b);
    match () {
        () if mixed => Err(ChooseError::Damaged),
        () if b.sequence > a.sequence => Ok((b, Place::Second)),
        () => Ok((a, Place::First)),
    }
}

/// The superblock in use, with the turn of its copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperblockWriter {
    current: Superblock,
    newest: Place,
}

impl SuperblockWriter {
    /// From what [`choose`] found.
    #[must_use]
    pub fn new(current: Superblock, newest: Place) -> Self {
        Self { current, newest }
    }

    /// The newest content, written or being written.
    #[must_use]
    pub fn current(&self) -> &Superblock {
        &self.current
    }

    /// Applies a change and gives the page that makes it durable: the *other* copy, one sequence
    /// further. Before the next call this page must be durable or the replica given up, or a crash
    /// may find both copies torn; metadata requests being carried out one after the other (each
    /// made durable) is enough.
    pub fn next_write(&mut self, change: impl FnOnce(&mut Superblock)) -> MetaPage {
        let sequence = self.current.sequence;
        change(&mut self.current);
        self.current.sequence = sequence + 1;
        self.newest = self.newest.other();
        MetaPage::new(self.newest.offset(), &self.current.encode())
    }

    /// This opening marked blocks that may be equal; on disk with the next write.
    pub(crate) fn note_bits_coarse(&mut self) {
        self.current.bits_coarse = true;
    }

    /// Both copies with one content, for `create-md`.
    #[must_use]
    pub(crate) fn both_copies(superblock: &Superblock) -> [MetaPage; 2] {
        let page = superblock.encode();
        [Place::Second, Place::First].map(|place| MetaPage::new(place.offset(), &page))
    }
}

const _: () = assert!(size_of::<RawSuperblock>() <= PAGE_LEN);
