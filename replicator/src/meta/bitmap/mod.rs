//! The bitmap: which blocks may differ from the peer's replica. One bit for each 4 KiB block.
//!
//! Three facts are kept for each block, because clearing a bit has an order (promise 4): it may
//! leave the *disk* only after both replicas hold the block durably.
//!
//! ```text
//!   set ───────────────► marked ──────── clear ───────► unsettled      (disk: still set)
//!                          ▲  ▲                           │ begin_settle: flush both replicas
//!                          │  └── unsettle_all (session lost) ──┐
//!                        set again                        settling     (disk: still set)
//!                          │                              │ end_settle: both flushed
//!                          └───────────────────────────── clean        (disk: may be cleared)
//! ```
//!
//! What goes to disk is marked | unsettled | settling, so a page may be written at any moment.
//! In memory a page costs nothing while its bits are all alike.

mod page;
mod sparse;

#[cfg(test)]
mod tests;

pub(crate) use page::RawHeader;
pub use page::{BITS_PER_PAGE, BitmapPageNr};
pub(crate) use page::{Loaded, WORDS_PER_PAGE, decode, has_magic};

use thiserror::Error;

use self::sparse::SparseBits;
use super::layout::Layout;
use super::page::{MetaPage, PageBytes};
use crate::types::{BlockCount, BlockIndex, BlockRange, Payload, ReplicaId};

/// Whole little-endian 64-bit words of marks, as `Message::BitmapChunk` carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapChunk {
    /// Block of the first bit; a multiple of 64.
    pub first_block: BlockIndex,
    /// The words; never empty, at most one page's.
    pub bits: Payload,
}

impl BitmapChunk {
    /// The first block after it.
    #[must_use]
    pub fn end(&self) -> BlockIndex {
        let bits = u64::try_from(self.bits.len()).map_or(u64::MAX, |bytes| bytes * 8);
        BlockIndex(self.first_block.0.saturating_add(bits))
    }
}

/// A peer's chunk that fits no bitmap of this volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// It does not begin at a multiple of 64 blocks or is not made of whole words.
    #[error("the bitmap piece at block {first_block} ({bytes} bytes) is not made of whole words")]
    Unaligned {
        /// Its first block.
        first_block: u64,
        /// Its length.
        bytes: usize,
    },
    /// It marks blocks the volume does not have.
    #[error("the bitmap piece at block {first_block} marks blocks beyond the volume's {size}")]
    OutOfVolume {
        /// Its first block.
        first_block: u64,
        /// Blocks of the volume.
        size: u64,
    },
}

/// What a page on disk lacks compared to memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dirt {
    /// A mark that is not on disk: must be written before anything relies on it.
    grown: bool,
    /// A mark on disk that is settled: may be written when convenient.
    shrunk: bool,
}

/// The bitmap of one replica.
#[derive(Clone, Debug)]
pub struct Bitmap {
    layout: Layout,
    replica: ReplicaId,
    marked: SparseBits,
    unsettled: SparseBits,
    settling: SparseBits,
    dirt: Vec<Dirt>,
    /// Greatest sequence of any page written or loaded.
    sequence: u64,
}

impl Bitmap {
    /// A bitmap with no block marked, and nothing to write.
    #[must_use]
    pub fn new(layout: Layout, replica: ReplicaId) -> Self {
        let pages = usize::try_from(layout.bitmap_pages()).expect("32 bits fit");
        Self {
            layout,
            replica,
            marked: SparseBits::new(layout.size()),
            unsettled: SparseBits::new(layout.size()),
            settling: SparseBits::new(layout.size()),
            dirt: vec![Dirt::default(); pages],
            sequence: 0,
        }
    }

    /// Blocks of the volume.
    #[must_use]
    pub fn size(&self) -> BlockCount {
        self.layout.size()
    }

    // --- Marks -----------------------------------------------------------------------------

    /// Marks the blocks of `range` (cut at the volume's end).
    pub fn set(&mut self, range: BlockRange) {
        let range = self.in_volume(range);
        for piece in page::pieces(range) {
            // A block whose clearing has not settled is still marked on disk.
            let on_disk = self.unsettled.remove(piece) + self.settling.remove(piece);
            if self.marked.insert(piece) > on_disk {
                self.dirt[page::page_of(piece).index()].grown = true;
            }
        }
    }

    /// Marks every block.
    pub fn set_all(&mut self) {
        self.set(BlockRange::new(BlockIndex(0), self.size()));
    }

    /// Clears the marks of `range`: both replicas hold the same content. On disk they stay until
    /// that is durable, see [`Bitmap::begin_settle`].
    pub fn clear(&mut self, range: BlockRange) {
        let range = self.in_volume(range);
        for piece in page::pieces(range) {
            self.marked.move_to(piece, &mut self.unsettled);
        }
    }

    /// Whether the block is marked.
    #[must_use]
    pub fn is_set(&self, block: BlockIndex) -> bool {
        self.marked
            .any_in(self.in_volume(BlockRange::new(block, BlockCount(1))))
    }

    /// Whether any block of `range` is marked.
    #[must_use]
    pub fn any_in(&self, range: BlockRange) -> bool {
        self.marked.any_in(self.in_volume(range))
    }

    /// The first run of marked blocks at or after `from`, cut at `max` blocks; `None` if there is
    /// no further mark. The rest of a longer run is found from the end of the piece on.
    #[must_use]
    pub fn next_run(&self, from: BlockIndex, max: BlockCount) -> Option<BlockRange> {
        self.marked.next_run(from, max)
    }

    /// Number of marked blocks.
    #[must_use]
    pub fn count(&self) -> BlockCount {
        BlockCount(self.marked.count())
    }

    /// Number of marked blocks of `range`.
    #[must_use]
    pub fn count_in(&self, range: BlockRange) -> BlockCount {
        BlockCount(self.marked.count_in(self.in_volume(range)))
    }

    /// Whether no block is marked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.marked.count() == 0
    }

    // --- Settling --------------------------------------------------------------------------

    /// Blocks cleared in memory whose clearing may not reach the disk yet.
    #[must_use]
    pub fn unsettled_count(&self) -> BlockCount {
        BlockCount(self.unsettled.count() + self.settling.count())
    }

    /// Begins to settle everything cleared so far: to be called *before* both replicas are asked
    /// to flush. `false` if there is nothing to settle or a settling is under way.
    pub fn begin_settle(&mut self) -> bool {
        if self.settling.count() > 0 || self.unsettled.count() == 0 {
            return false;
        }
        core::mem::swap(&mut self.settling, &mut self.unsettled);
        true
    }

    /// Both flushes succeeded: what [`Bitmap::begin_settle`] took is clean, and its pages may be
    /// written.
    pub fn end_settle(&mut self) {
        for page in self.settling.pages_with_bits() {
            self.dirt[page.index()].shrunk = true;
        }
        self.settling.clear();
    }

    /// The session ended before the flush: everything cleared and not settled is marked again.
    pub fn unsettle_all(&mut self) {
        self.unsettled.move_all_to(&mut self.marked);
        self.settling.move_all_to(&mut self.marked);
    }

    // --- To disk ---------------------------------------------------------------------------

    /// Whether a mark is only in memory.
    #[must_use]
    pub fn is_grown(&self) -> bool {
        self.dirt.iter().any(|dirt| dirt.grown)
    }

    /// Pages with marks that are only in memory. They must be durable before anything relies on
    /// the marks: an extent leaving the activity log, a solo acknowledgement, a handshake answer.
    pub fn grown_pages(&self) -> impl Iterator<Item = BitmapPageNr> + '_ {
        self.pages_where(|dirt| dirt.grown)
    }

    /// Those of them that hold bits of `range`.
    pub fn grown_pages_in(&self, range: BlockRange) -> impl Iterator<Item = BitmapPageNr> + '_ {
        page::pieces(self.in_volume(range))
            .map(page::page_of)
            .filter(|page| self.dirt[page.index()].grown)
    }

    /// Pages that differ from the disk in any way: grown ones, and those with settled clearings.
    pub fn dirty_pages(&self) -> impl Iterator<Item = BitmapPageNr> + '_ {
        self.pages_where(|dirt| dirt.grown || dirt.shrunk)
    }

    fn pages_where(&self, wanted: impl Fn(&Dirt) -> bool) -> impl Iterator<Item = BitmapPageNr> {
        (0..)
            .map(BitmapPageNr)
            .zip(&self.dirt)
            .filter(move |(_, dirt)| wanted(dirt))
            .map(|(page, _)| page)
    }

    /// The page to write, whatever it holds; it counts as written from now on (a failed metadata
    /// write is the end of the replica, R23).
    ///
    /// # Panics
    /// If the bitmap has no such page.
    pub fn write_page(&mut self, page: BitmapPageNr) -> MetaPage {
        self.dirt[page.index()] = Dirt::default();
        // For people only, so a forged greatest one does no harm.
        self.sequence = self.sequence.saturating_add(1);
        MetaPage::new(self.layout.bitmap_page(page), &self.page_bytes(page))
    }

    /// What the page holds on disk if written now.
    #[must_use]
    pub fn page_bytes(&self, page: BitmapPageNr) -> PageBytes {
        let words = self.marked.words(page);
        let unsettled = self.unsettled.words(page);
        let settling = self.settling.words(page);
        let on_disk = |at: usize| words[at] | unsettled[at] | settling[at];
        page::encode(page, self.sequence, self.replica, on_disk)
    }

    /// Takes over a page read from disk (see [`decode`]).
    pub(crate) fn load_page(&mut self, page: BitmapPageNr, loaded: Loaded) {
        let range = self.in_volume(page.blocks());
        match loaded {
            Loaded::Unwritten { set: false } => {}
            Loaded::Unwritten { set: true } => {
                self.marked.insert(range);
            }
            Loaded::Bits { words, sequence } => {
                self.marked.load_words(page, words);
                self.sequence = self.sequence.max(sequence);
            }
            Loaded::Damaged => {
                self.marked.insert(range);
                self.dirt[page.index()].grown = true;
            }
        }
    }

    // --- A larger volume -------------------------------------------------------------------

    /// The page that holds the bit of the last block. From there on pages are written before a
    /// superblock says that the volume is larger.
    #[must_use]
    pub fn first_growth_page(&self) -> BitmapPageNr {
        let last = BlockIndex(self.size().0 - 1);
        page::page_of(BlockRange::new(last, BlockCount(1)))
    }

    /// The page as it must be on disk before the volume has the size of `layout`: none of the new
    /// blocks is marked. What is there now may be anything, and the superblock may say of pages never
    /// written that all their bits are set.
    ///
    /// # Panics
    /// If the larger bitmap has no such page.
    pub fn write_growth_page(&mut self, layout: &Layout, page: BitmapPageNr) -> MetaPage {
        assert!(page.0 < layout.bitmap_pages(), "{page:?} of {layout:?}");
        if page.0 < self.layout.bitmap_pages() {
            return self.write_page(page);
        }
        self.sequence = self.sequence.saturating_add(1);
        let bytes = page::encode(page, self.sequence, self.replica, |_| 0);
        MetaPage::new(layout.bitmap_page(page), &bytes)
    }

    /// The volume is larger from now on: its growth pages and a superblock that says so are durable.
    ///
    /// # Panics
    /// If `layout` is of a smaller volume.
    pub fn grow(&mut self, layout: Layout) {
        for map in [&mut self.marked, &mut self.unsettled, &mut self.settling] {
            map.grow(layout.size());
        }
        let pages = usize::try_from(layout.bitmap_pages()).expect("32 bits fit");
        self.dirt.resize(pages, Dirt::default());
        self.layout = layout;
    }

    // --- To the peer -----------------------------------------------------------------------

    /// The next piece of marks at or after the block `from` (a multiple of 64), without zero words
    /// at its ends; `None` at the end. Holds unsettled marks too: more is safe.
    #[must_use]
    pub fn next_chunk(&self, from: BlockIndex) -> Option<BitmapChunk> {
        let any = BlockCount(1);
        let maps = [&self.marked, &self.unsettled, &self.settling];
        let starts = maps.iter().filter_map(|map| map.next_run(from, any));
        let first = starts.map(BlockRange::start).min()?;
        let page = page::page_of(BlockRange::new(first, any));
        let in_page = |block: BlockIndex| {
            usize::try_from((block.0 - page.blocks().start().0) / 64).expect("below a page's words")
        };
        let rows = maps.map(|map| map.words(page));
        let words: Vec<u64> = (in_page(first)..page::WORDS_PER_PAGE)
            .map(|at| rows.iter().fold(0, |word, row| word | row[at]))
            .collect();
        let used = words.iter().rposition(|word| *word != 0)? + 1;
        let bits: Vec<u8> = words[..used].iter().flat_map(|w| w.to_le_bytes()).collect();
        Some(BitmapChunk {
            first_block: BlockIndex(first.0 - first.0 % 64),
            bits: bits.into(),
        })
    }

    /// Marks everything the peer's piece marks.
    ///
    /// # Errors
    /// If it does not fit this volume; then nothing was marked.
    pub fn union_chunk(&mut self, first_block: BlockIndex, bits: &[u8]) -> Result<(), ChunkError> {
        let (words, rest) = bits.as_chunks::<8>();
        if !first_block.0.is_multiple_of(64) || !rest.is_empty() {
            return Err(ChunkError::Unaligned {
                first_block: first_block.0,
                bytes: bits.len(),
            });
        }
        let mut runs = Vec::new();
        for (nr, word) in (0..).zip(words.iter().map(|bytes| u64::from_le_bytes(*bytes))) {
            let base = first_block.0.saturating_add(nr * 64);
            runs.extend(sparse::runs_of(word).map(|(at, len)| (base.saturating_add(at), len)));
        }
        let fits = |(start, len): &(u64, u64)| {
            start
                .checked_add(*len)
                .is_some_and(|end| end <= self.size().0)
        };
        if !runs.iter().all(fits) {
            return Err(ChunkError::OutOfVolume {
                first_block: first_block.0,
                size: self.size().0,
            });
        }
        for (start, len) in runs {
            self.set(BlockRange::new(BlockIndex(start), BlockCount(len)));
        }
        Ok(())
    }

    fn in_volume(&self, range: BlockRange) -> BlockRange {
        let end = self.size().0;
        BlockRange::between(
            BlockIndex(range.start().0.min(end)),
            BlockIndex(range.end().0.min(end)),
        )
    }
}
