//! One bitmap page on disk: a header with checksum, then the bits.
//!
//! 504 words after a 64-byte header: a torn page is told from a whole one by itself, without a
//! second structure that could be torn apart from it. A page that is not whole has every bit set.

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, IntoBytes};

use crate::meta::page::{PAGE_LEN, PageBytes, ZERO_PAGE, is_sealed, seal};
use crate::types::fixed::fixed_layout;
use crate::types::{BlockCount, BlockIndex, BlockRange, ReplicaId};

/// 64-bit words of bits in a page.
pub(crate) const WORDS_PER_PAGE: usize = (PAGE_LEN - size_of::<RawHeader>()) / 8;
/// Bits in a page: 126 MiB of volume.
pub const BITS_PER_PAGE: u64 = WORDS_PER_PAGE as u64 * 64;

const MAGIC: u32 = u32::from_le_bytes(*b"tbBM");
const VERSION: u32 = 1;

fixed_layout! {
    /// Bytes before the bits. Bit `b` of the page is bit `b % 8` of byte `64 + b / 8`.
    struct RawHeader {
        magic: U32,
        version: U32,
        page: U32,
        crc: U32,
        sequence: U64,
        replica: U128,
        reserved: [u8; 24],
    }
}

const HEADER_LEN: usize = size_of::<RawHeader>();
const CRC_AT: usize = core::mem::offset_of!(RawHeader, crc);
const _: () = assert!(HEADER_LEN == 64);

/// Number of a bitmap page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitmapPageNr(pub u32);

impl BitmapPageNr {
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0).expect("32 bits fit")
    }

    /// The blocks whose bits it holds, not cut at the volume's end.
    #[must_use]
    pub fn blocks(self) -> BlockRange {
        let first = u64::from(self.0) * BITS_PER_PAGE;
        BlockRange::new(BlockIndex(first), BlockCount(BITS_PER_PAGE))
    }
}

/// The page of a range that lies in one.
pub(super) fn page_of(piece: BlockRange) -> BitmapPageNr {
    let nr = piece.start().0 / BITS_PER_PAGE;
    BitmapPageNr(u32::try_from(nr).expect("the layout's size limit"))
}

/// Cuts a range at page edges.
pub(super) fn pieces(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    let mut rest = range;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let edge = BlockIndex((rest.start().0 / BITS_PER_PAGE + 1) * BITS_PER_PAGE);
        let piece = BlockRange::between(rest.start(), edge.min(rest.end()));
        rest = BlockRange::between(piece.end(), rest.end());
        Some(piece)
    })
}

/// What a page on disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// Never written: all bits as the superblock says of such pages.
    Unwritten {
        /// They are set.
        set: bool,
    },
    /// Whole.
    Bits {
        /// The bits.
        words: Box<[u64; WORDS_PER_PAGE]>,
        /// Its sequence.
        sequence: u64,
    },
    /// Torn, rotten or foreign: every bit counts as set.
    Damaged,
}

/// Whether the page begins as a bitmap page does.
pub(crate) fn has_magic(page: &PageBytes) -> bool {
    page.starts_with(&MAGIC.to_le_bytes())
}

pub(super) fn encode(
    page: BitmapPageNr,
    sequence: u64,
    replica: ReplicaId,
    word: impl Fn(usize) -> u64,
) -> PageBytes {
    let header = RawHeader {
        magic: MAGIC.into(),
        version: VERSION.into(),
        page: page.0.into(),
        crc: 0.into(),
        sequence: sequence.into(),
        replica: replica.0.into(),
        reserved: [0; 24],
    };
    let mut bytes = ZERO_PAGE;
    bytes[..HEADER_LEN].copy_from_slice(header.as_bytes());
    let (places, _) = bytes[HEADER_LEN..].as_chunks_mut::<8>();
    for (at, place) in places.iter_mut().enumerate() {
        *place = word(at).to_le_bytes();
    }
    seal(&mut bytes, CRC_AT);
    bytes
}

/// Reads a page. Never fails: what is not whole is [`Loaded::Damaged`].
pub(crate) fn decode(
    bytes: &PageBytes,
    page: BitmapPageNr,
    replica: ReplicaId,
    unwritten_bits_set: bool,
) -> Loaded {
    if *bytes == ZERO_PAGE {
        return Loaded::Unwritten {
            set: unwritten_bits_set,
        };
    }
    let Ok((header, _)) = RawHeader::read_from_prefix(bytes) else {
        return Loaded::Damaged;
    };
    let ours = header.magic.get() == MAGIC
        && header.version.get() == VERSION
        && header.page.get() == page.0
        && header.replica.get() == replica.0
        && is_sealed(bytes, CRC_AT);
    if !ours {
        return Loaded::Damaged;
    }
    let mut words = Box::new([0; WORDS_PER_PAGE]);
    let (places, _) = bytes[HEADER_LEN..].as_chunks::<8>();
    for (word, place) in words.iter_mut().zip(places) {
        *word = u64::from_le_bytes(*place);
    }
    Loaded::Bits {
        words,
        sequence: header.sequence.get(),
    }
}
