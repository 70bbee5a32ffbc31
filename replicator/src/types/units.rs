//! Units of space. Offsets, lengths, indices and counts are different types; conversions are named.
//!
//! The engine works in blocks of [`BLOCK_LEN`] bytes: locks, bits and disk operations all cover
//! whole blocks, so that no alignment question is left below the request's edge (`engine::edge`).

use core::fmt;

/// Bytes in a block: the unit of locking, tracking and disk I/O. A power of two, at least as large
/// as any sector (512 or 4096) of a backing device.
pub const BLOCK_LEN: u64 = 4096;
/// Bytes in an activity-log extent (DRBD: 4 MiB, drbd_int.h `AL_EXTENT_SIZE`).
pub const EXTENT_LEN: u64 = 4 << 20;
/// Blocks in an activity-log extent.
pub const EXTENT_BLOCKS: u64 = EXTENT_LEN / BLOCK_LEN;

/// A position in bytes from the start of a volume (or of a metadata area).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

/// A length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(pub u64);

/// A byte range; may be empty, never wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    offset: ByteOffset,
    len: ByteLen,
}

impl ByteRange {
    /// The range of `len` bytes at `offset`, or `None` if its end is beyond 2^64 - 1.
    #[must_use]
    pub fn new(offset: ByteOffset, len: ByteLen) -> Option<Self> {
        offset.0.checked_add(len.0).map(|_| Self { offset, len })
    }

    /// First byte.
    #[must_use]
    pub fn offset(self) -> ByteOffset {
        self.offset
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> ByteLen {
        self.len
    }

    /// Whether the range covers no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(self) -> ByteOffset {
        ByteOffset(self.offset.0 + self.len.0)
    }

    /// Whether both edges lie on block boundaries.
    #[must_use]
    pub fn is_block_aligned(self) -> bool {
        self.offset.0.is_multiple_of(BLOCK_LEN) && self.len.0.is_multiple_of(BLOCK_LEN)
    }

    /// The smallest range of whole blocks that covers this one.
    #[must_use]
    pub fn blocks_outward(self) -> BlockRange {
        let first = self.offset.0 / BLOCK_LEN;
        let end = self.end().0.div_ceil(BLOCK_LEN);
        BlockRange::new(BlockIndex(first), BlockCount(end.saturating_sub(first)))
    }
}

/// Index of a block from the start of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// A number of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(pub u64);

impl BlockCount {
    /// Length in bytes (saturating: no volume is 2^64 bytes).
    #[must_use]
    pub fn bytes(self) -> ByteLen {
        ByteLen(self.0.saturating_mul(BLOCK_LEN))
    }

    /// Whole blocks in `len` bytes, rounded down: a trailing part block is never used.
    #[must_use]
    pub fn whole_blocks_in(len: ByteLen) -> Self {
        Self(len.0 / BLOCK_LEN)
    }
}

/// A run of blocks; may be empty. The end saturates, so a hostile range never wraps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    start: BlockIndex,
    count: BlockCount,
}

impl BlockRange {
    /// The run of `count` blocks from `start`; the count is cut so that the end fits in 64 bits.
    #[must_use]
    pub fn new(start: BlockIndex, count: BlockCount) -> Self {
        Self {
            start,
            count: BlockCount(count.0.min(u64::MAX - start.0)),
        }
    }

    /// The run from `start` up to, not including, `end`; empty if `end <= start`.
    #[must_use]
    pub fn between(start: BlockIndex, end: BlockIndex) -> Self {
        Self {
            start,
            count: BlockCount(end.0.saturating_sub(start.0)),
        }
    }

    /// First block.
    #[must_use]
    pub fn start(self) -> BlockIndex {
        self.start
    }

    /// Number of blocks.
    #[must_use]
    pub fn count(self) -> BlockCount {
        self.count
    }

    /// One past the last block.
    #[must_use]
    pub fn end(self) -> BlockIndex {
        BlockIndex(self.start.0 + self.count.0)
    }

    /// Whether it covers no block.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// Whether the two runs share a block.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end()
            && other.start < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    /// Whether `other` lies inside this run.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Position of the first byte (saturating).
    #[must_use]
    pub fn offset(self) -> ByteOffset {
        ByteOffset(self.start.0.saturating_mul(BLOCK_LEN))
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> ByteLen {
        self.count.bytes()
    }

    /// The block indices, in order.
    pub fn iter(self) -> impl Iterator<Item = BlockIndex> {
        (self.start.0..self.end().0).map(BlockIndex)
    }

    /// The activity-log extents it touches, in order.
    pub fn extents(self) -> impl Iterator<Item = ExtentNr> {
        let first = self.start.0 / EXTENT_BLOCKS;
        let end = if self.is_empty() {
            first
        } else {
            (self.end().0 - 1) / EXTENT_BLOCKS + 1
        };
        (first..end).map(|nr| ExtentNr(u32::try_from(nr).unwrap_or(u32::MAX)))
    }
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start.0, self.end().0)
    }
}

/// Number of a 4 MiB activity-log extent. 32 bits reach 16 EiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentNr(pub u32);

impl ExtentNr {
    /// The blocks of this extent, cut at `volume` blocks.
    #[must_use]
    pub fn blocks(self, volume: BlockCount) -> BlockRange {
        let start = u64::from(self.0) * EXTENT_BLOCKS;
        BlockRange::between(
            BlockIndex(start.min(volume.0)),
            BlockIndex((start + EXTENT_BLOCKS).min(volume.0)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(start: u64, count: u64) -> BlockRange {
        BlockRange::new(BlockIndex(start), BlockCount(count))
    }

    #[test]
    fn a_part_block_at_each_edge_is_covered() {
        let range = ByteRange::new(ByteOffset(4095), ByteLen(2)).unwrap();
        assert_eq!(range.blocks_outward(), blocks(0, 2));
        assert!(!range.is_block_aligned());
    }

    #[test]
    fn a_range_past_the_last_byte_is_no_range() {
        assert!(ByteRange::new(ByteOffset(u64::MAX), ByteLen(1)).is_none());
        assert_eq!(blocks(u64::MAX - 1, 9).end(), BlockIndex(u64::MAX));
    }

    #[test]
    fn overlap_needs_a_shared_block() {
        assert!(blocks(0, 2).overlaps(blocks(1, 1)));
        assert!(!blocks(0, 2).overlaps(blocks(2, 1)));
        assert!(!blocks(1, 0).overlaps(blocks(0, 4)));
    }

    #[test]
    fn a_run_over_an_extent_edge_touches_both_extents() {
        let touched: Vec<_> = blocks(EXTENT_BLOCKS - 1, 2).extents().collect();
        assert_eq!(touched, [ExtentNr(0), ExtentNr(1)]);
        assert_eq!(blocks(5, 0).extents().count(), 0);
        assert_eq!(
            ExtentNr(1).blocks(BlockCount(EXTENT_BLOCKS + 3)),
            blocks(EXTENT_BLOCKS, 3)
        );
    }
}
