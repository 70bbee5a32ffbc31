//! A set of blocks that costs memory only where it is neither empty nor full.

use super::page::{BITS_PER_PAGE, BitmapPageNr, WORDS_PER_PAGE, page_of, pieces};
use crate::types::{BlockCount, BlockIndex, BlockRange};

type Words = [u64; WORDS_PER_PAGE];

/// A page of bits. `Full` is a page whose bits inside the volume are all set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Page {
    Empty,
    Full,
    Mixed { words: Box<Words>, count: u64 },
}

/// The set. Bits beyond the volume are never set.
#[derive(Clone, Debug)]
pub(super) struct SparseBits {
    size: BlockCount,
    pages: Vec<Page>,
    count: u64,
}

impl SparseBits {
    pub(super) fn new(size: BlockCount) -> Self {
        let pages = usize::try_from(size.0.div_ceil(BITS_PER_PAGE)).expect("the layout's limit");
        Self {
            size,
            pages: vec![Page::Empty; pages],
            count: 0,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The blocks of a page that are inside the volume.
    fn volume_part(&self, page: BitmapPageNr) -> BlockRange {
        let blocks = page.blocks();
        BlockRange::between(blocks.start(), blocks.end().min(BlockIndex(self.size.0)))
    }

    /// Adds a range inside one page; returns how many blocks are new.
    pub(super) fn insert(&mut self, piece: BlockRange) -> u64 {
        self.change(piece, |word, mask| word | mask)
    }

    /// Takes a range inside one page out; returns how many blocks were in.
    pub(super) fn remove(&mut self, piece: BlockRange) -> u64 {
        self.change(piece, |word, mask| word & !mask)
    }

    /// Moves those blocks of a range inside one page that are in this set to another.
    pub(super) fn move_to(&mut self, piece: BlockRange, other: &mut Self) {
        match &self.pages[page_of(piece).index()] {
            Page::Empty => return,
            Page::Full => {
                other.insert(piece);
            }
            Page::Mixed { words, .. } => {
                for word in masks(piece) {
                    other.insert_word(word.base, words[word.at] & word.mask);
                }
            }
        }
        self.remove(piece);
    }

    /// Moves everything to another set.
    pub(super) fn move_all_to(&mut self, other: &mut Self) {
        let pages: Vec<BitmapPageNr> = self.pages_with_bits().collect();
        for page in pages {
            self.move_to(self.volume_part(page), other);
        }
    }

    /// Fills an empty page with the bits read from disk, but for those beyond the volume.
    pub(super) fn load_words(&mut self, page: BitmapPageNr, mut words: Box<Words>) {
        let part = self.volume_part(page);
        let whole_words = usize::try_from(part.count().0 / 64).expect("at most a page's words");
        if let Some((last, beyond)) = words[whole_words..].split_first_mut() {
            *last &= (1 << (part.count().0 % 64)) - 1;
            beyond.fill(0);
        }
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let state = &mut self.pages[page.index()];
        assert_eq!(*state, Page::Empty, "a page is loaded once");
        *state = Page::Mixed { words, count };
        state.simplify(part);
        self.count += count;
    }

    fn insert_word(&mut self, base: u64, bits: u64) {
        for (start, len) in runs_of(bits) {
            self.insert(BlockRange::new(BlockIndex(base + start), BlockCount(len)));
        }
    }

    /// The volume is larger from now on; none of the new blocks is in the set.
    pub(super) fn grow(&mut self, size: BlockCount) {
        assert!(size >= self.size, "{size:?} is less than {:?}", self.size);
        let last = BitmapPageNr(u32::try_from(self.pages.len().saturating_sub(1)).expect("limit"));
        let part = self.volume_part(last);
        // "Full" means the blocks inside the volume.
        if let Some(page @ Page::Full) = self.pages.get_mut(last.index()) {
            *page = Page::Mixed {
                words: full_words(part),
                count: part.count().0,
            };
        }
        let pages = usize::try_from(size.0.div_ceil(BITS_PER_PAGE)).expect("the layout's limit");
        self.pages.resize(pages, Page::Empty);
        self.size = size;
        let part = self.volume_part(last);
        if let Some(page) = self.pages.get_mut(last.index()) {
            page.simplify(part);
        }
    }

    /// Empties the set.
    pub(super) fn clear(&mut self) {
        self.pages.fill(Page::Empty);
        self.count = 0;
    }

    fn change(&mut self, piece: BlockRange, apply: impl Fn(u64, u64) -> u64) -> u64 {
        if piece.is_empty() {
            return 0;
        }
        let page = page_of(piece);
        let part = self.volume_part(page);
        let state = &mut self.pages[page.index()];
        let before = state.count(part);
        let whole = piece.contains(part);
        let after = if whole {
            let becomes_full = apply(0, 1) == 1;
            *state = if becomes_full {
                Page::Full
            } else {
                Page::Empty
            };
            state.count(part)
        } else {
            state.change_words(piece, part, apply)
        };
        self.count = self.count + after - before;
        after.abs_diff(before)
    }

    pub(super) fn any_in(&self, range: BlockRange) -> bool {
        pieces(range).any(|piece| match &self.pages[page_of(piece).index()] {
            Page::Empty => false,
            Page::Full => true,
            Page::Mixed { words, .. } => masks(piece).any(|word| words[word.at] & word.mask != 0),
        })
    }

    /// How many blocks of `range` are in the set. Whole pages cost no look at their words.
    pub(super) fn count_in(&self, range: BlockRange) -> u64 {
        if self.count == 0 {
            return 0;
        }
        pieces(range)
            .map(|piece| {
                let page = page_of(piece);
                match &self.pages[page.index()] {
                    Page::Empty => 0,
                    Page::Full => piece.count().0,
                    Page::Mixed { count, .. } if piece.contains(self.volume_part(page)) => *count,
                    Page::Mixed { words, .. } => masks(piece)
                        .map(|word| u64::from((words[word.at] & word.mask).count_ones()))
                        .sum(),
                }
            })
            .sum()
    }

    /// The first run of at most `max` blocks at or after `from`.
    pub(super) fn next_run(&self, from: BlockIndex, max: BlockCount) -> Option<BlockRange> {
        let start = self.find(from, true)?;
        let limit = BlockIndex(start.0.saturating_add(max.0).min(self.size.0));
        let end = self.find_before(start, limit, false);
        Some(BlockRange::between(start, end))
    }

    /// The first block at or after `from` that is (or is not) in the set.
    fn find(&self, from: BlockIndex, wanted: bool) -> Option<BlockIndex> {
        let end = BlockIndex(self.size.0);
        let found = self.find_before(from, end, wanted);
        (found < end).then_some(found)
    }

    /// As [`SparseBits::find`], or `end` if there is none before it.
    fn find_before(&self, from: BlockIndex, end: BlockIndex, wanted: bool) -> BlockIndex {
        for piece in pieces(BlockRange::between(from, end)) {
            match (&self.pages[page_of(piece).index()], wanted) {
                (Page::Empty, true) | (Page::Full, false) => {}
                (Page::Empty, false) | (Page::Full, true) => return piece.start(),
                (Page::Mixed { words, .. }, _) => {
                    let hit = masks(piece)
                        .map(|word| {
                            let bits = if wanted {
                                words[word.at]
                            } else {
                                !words[word.at]
                            };
                            (word.base, bits & word.mask)
                        })
                        .find(|(_, bits)| *bits != 0);
                    if let Some((base, bits)) = hit {
                        return BlockIndex(base + u64::from(bits.trailing_zeros()));
                    }
                }
            }
        }
        end
    }

    /// A page's words, made up for pages without memory.
    pub(super) fn words(&self, page: BitmapPageNr) -> Box<Words> {
        match &self.pages[page.index()] {
            Page::Empty => Box::new([0; WORDS_PER_PAGE]),
            Page::Full => full_words(self.volume_part(page)),
            Page::Mixed { words, .. } => words.clone(),
        }
    }

    /// Pages with any bit set.
    pub(super) fn pages_with_bits(&self) -> impl Iterator<Item = BitmapPageNr> + '_ {
        (0..)
            .map(BitmapPageNr)
            .zip(&self.pages)
            .filter(|(_, page)| !matches!(page, Page::Empty))
            .map(|(nr, _)| nr)
    }
}

impl Page {
    fn count(&self, part: BlockRange) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Full => part.count().0,
            Self::Mixed { count, .. } => *count,
        }
    }

    /// Changes the bits of `piece` and returns the new count; lets go of the memory when the bits
    /// are all alike again.
    fn change_words(
        &mut self,
        piece: BlockRange,
        part: BlockRange,
        apply: impl Fn(u64, u64) -> u64,
    ) -> u64 {
        let no_change = match self {
            Self::Empty => apply(0, 1) == 0,
            Self::Full => apply(1, 1) == 1,
            Self::Mixed { .. } => false,
        };
        if no_change {
            return self.count(part);
        }
        let before = self.count(part);
        if !matches!(self, Self::Mixed { .. }) {
            let words = match self {
                Self::Full => full_words(part),
                _ => Box::new([0; WORDS_PER_PAGE]),
            };
            *self = Self::Mixed {
                words,
                count: before,
            };
        }
        let Self::Mixed { words, count } = self else {
            unreachable!("made so above");
        };
        for touched in masks(piece) {
            let word = &mut words[touched.at];
            let changed = apply(*word, touched.mask);
            *count = *count + u64::from(changed.count_ones()) - u64::from(word.count_ones());
            *word = changed;
        }
        self.simplify(part);
        self.count(part)
    }

    /// Lets go of the memory if the bits are all alike.
    fn simplify(&mut self, part: BlockRange) {
        match self.count(part) {
            0 => *self = Self::Empty,
            count if count == part.count().0 => *self = Self::Full,
            _ => {}
        }
    }
}

/// Words with the bits of `part`, a page's blocks inside the volume, set.
fn full_words(part: BlockRange) -> Box<Words> {
    let mut words = Box::new([0; WORDS_PER_PAGE]);
    for word in masks(part) {
        words[word.at] = word.mask;
    }
    words
}

/// A word of a page, and some of its bits.
struct WordMask {
    /// Index in the page.
    at: usize,
    /// Block of its first bit.
    base: u64,
    /// The bits.
    mask: u64,
}

/// The words that `piece` (inside one page) touches, with the touched bits.
fn masks(piece: BlockRange) -> impl Iterator<Item = WordMask> {
    let page_start = piece.start().0 / BITS_PER_PAGE * BITS_PER_PAGE;
    let start = piece.start().0 - page_start;
    let end = start + piece.count().0;
    let words = if piece.is_empty() {
        0..0
    } else {
        start / 64..(end - 1) / 64 + 1
    };
    words.map(move |word| {
        let first = start.saturating_sub(word * 64);
        let last = (end - word * 64).min(64);
        WordMask {
            at: usize::try_from(word).expect("below a page's words"),
            base: page_start + word * 64,
            mask: (u64::MAX << first) & (u64::MAX >> (64 - last)),
        }
    })
}

/// The runs of ones in a word, as (first bit, length).
pub(super) fn runs_of(word: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut rest = word;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let start = rest.trailing_zeros();
        let len = (rest >> start).trailing_ones();
        rest &= !((u64::MAX >> (64 - len)) << start);
        Some((u64::from(start), u64::from(len)))
    })
}
