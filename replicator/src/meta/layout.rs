//! Where things are in an external metadata area.
//!
//! ```text
//! 0          4 KiB              508 KiB        512 KiB
//! | copy 0   | activity-log ring | … | copy 1   | bitmap pages …                |
//! ```
//!
//! The two superblock copies have fixed places, so that an area is recognised before anything in
//! it is believed, and lie half a megabyte apart, so that one bad spot of the device does not take
//! both. The rest follows from volume size and slot count alone.

use super::activity_log::{CONTEXT_SLOTS, SLOTS_MAX};
use super::bitmap::{BITS_PER_PAGE, BitmapPageNr};
use super::page::PAGE_LEN;
use crate::types::{BlockCount, ByteLen, ByteOffset};

const PAGE: u64 = PAGE_LEN as u64;

/// Places of the two superblock copies.
pub const SUPERBLOCK_OFFSETS: [ByteOffset; 2] = [ByteOffset(0), ByteOffset(508 << 10)];
/// Place of the activity-log ring.
pub const ACTIVITY_LOG_OFFSET: ByteOffset = ByteOffset(PAGE);
/// Place of the bitmap.
pub const BITMAP_OFFSET: ByteOffset = ByteOffset(512 << 10);
/// Largest volume: 1 PiB. Keeps extent numbers and page numbers far from 32 bits and the memory
/// for both indices within reason.
pub const VOLUME_BLOCKS_MAX: BlockCount = BlockCount(1 << 38);

/// Spare transactions beyond what one rewrite of the slot table needs: one for the page that a
/// crash tore, the rest lets an inspector see some history.
const RING_SPARE_PAGES: u32 = 6;

/// Where the parts of one volume's metadata are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: BlockCount,
    ring_pages: u32,
    bitmap_pages: u32,
}

impl Layout {
    /// The layout for a volume of `size` blocks and an activity log of `al_slots` slots. `None` if
    /// the volume is empty or larger than [`VOLUME_BLOCKS_MAX`], or there are more slots than
    /// [`SLOTS_MAX`].
    #[must_use]
    pub fn for_volume(size: BlockCount, al_slots: u16) -> Option<Self> {
        if size.0 == 0 || size > VOLUME_BLOCKS_MAX || al_slots > SLOTS_MAX {
            return None;
        }
        let bitmap_pages = u32::try_from(size.0.div_ceil(BITS_PER_PAGE)).ok()?;
        Some(Self {
            size,
            ring_pages: u32::from(al_slots.div_ceil(CONTEXT_SLOTS)) + RING_SPARE_PAGES,
            bitmap_pages,
        })
    }

    /// The largest volume whose metadata fits into an area of this length.
    #[must_use]
    pub fn largest_volume(area: ByteLen) -> BlockCount {
        let pages = area.0.saturating_sub(BITMAP_OFFSET.0) / PAGE;
        BlockCount(pages.saturating_mul(BITS_PER_PAGE)).min(VOLUME_BLOCKS_MAX)
    }

    /// Size of the volume.
    #[must_use]
    pub fn size(&self) -> BlockCount {
        self.size
    }

    /// Transactions in the activity-log ring.
    #[must_use]
    pub fn ring_pages(&self) -> u32 {
        self.ring_pages
    }

    /// Length of the activity-log ring.
    #[must_use]
    pub fn activity_log_len(&self) -> ByteLen {
        ByteLen(u64::from(self.ring_pages) * PAGE)
    }

    /// Place of the ring page that transaction `sequence` is written to.
    #[must_use]
    pub fn activity_log_page(&self, sequence: u64) -> ByteOffset {
        let position = sequence % u64::from(self.ring_pages);
        ByteOffset(ACTIVITY_LOG_OFFSET.0 + position * PAGE)
    }

    /// Pages in the bitmap.
    #[must_use]
    pub fn bitmap_pages(&self) -> u32 {
        self.bitmap_pages
    }

    /// Length of the bitmap.
    #[must_use]
    pub fn bitmap_len(&self) -> ByteLen {
        ByteLen(u64::from(self.bitmap_pages) * PAGE)
    }

    /// Place of one bitmap page.
    #[must_use]
    pub fn bitmap_page(&self, page: BitmapPageNr) -> ByteOffset {
        ByteOffset(BITMAP_OFFSET.0 + u64::from(page.0) * PAGE)
    }

    /// Bytes the whole area needs.
    #[must_use]
    pub fn total(&self) -> ByteLen {
        ByteLen(BITMAP_OFFSET.0 + self.bitmap_len().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap_even_with_the_longest_ring() {
        let layout = Layout::for_volume(BlockCount(1), SLOTS_MAX).unwrap();
        let ring_end = ACTIVITY_LOG_OFFSET.0 + layout.activity_log_len().0;
        assert!(ring_end <= SUPERBLOCK_OFFSETS[1].0);
        assert_eq!(SUPERBLOCK_OFFSETS[1].0 + PAGE, BITMAP_OFFSET.0);
    }

    #[test]
    fn a_tebibyte_needs_thirty_three_mebibytes() {
        let layout = Layout::for_volume(BlockCount(1 << 28), 1024).unwrap();
        assert_eq!(layout.ring_pages(), 8);
        assert_eq!(layout.bitmap_pages(), 8323);
        assert_eq!(layout.total(), ByteLen((512 << 10) + 8323 * 4096));
    }

    #[test]
    fn the_largest_volume_of_an_area_fits_and_one_block_more_does_not() {
        let total = |blocks| Layout::for_volume(BlockCount(blocks), SLOTS_MAX).map(|it| it.total());
        for area in [(512 << 10) + 4096, (512 << 10) + 3 * 4096 + 17, 40 << 20] {
            let area = ByteLen(area);
            let largest = Layout::largest_volume(area).0;
            assert!(total(largest).unwrap() <= area && total(largest + 1).unwrap() > area);
        }
        assert_eq!(Layout::largest_volume(ByteLen(4096)), BlockCount(0));
        assert_eq!(Layout::largest_volume(ByteLen(u64::MAX)), VOLUME_BLOCKS_MAX);
    }

    #[test]
    fn volumes_out_of_range_have_no_layout() {
        assert!(Layout::for_volume(BlockCount(0), 64).is_none());
        assert!(Layout::for_volume(BlockCount(VOLUME_BLOCKS_MAX.0 + 1), 64).is_none());
        assert!(Layout::for_volume(BlockCount(1), 65_535).is_none());
    }
}
