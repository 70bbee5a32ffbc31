//! Looking at a metadata area without opening it: what is there, what of it is whole, and what an
//! opening would make of it. For `dump-md` and its like.
//!
//! Only looks: it never marks, repairs or refuses, and needs no memory that grows with the volume.
//! The one invariant: where [`Loader`](super::Loader) opens the area, the marks counted here are
//! those of the opened bitmap.

#[cfg(test)]
mod tests;

use super::activity_log::{self, ReplayError};
use super::bitmap::{self, BITS_PER_PAGE, BitmapPageNr, Loaded, WORDS_PER_PAGE};
use super::layout::{ACTIVITY_LOG_OFFSET, BITMAP_OFFSET, Layout, SUPERBLOCK_OFFSETS};
use super::page::{PAGE_LEN, PageBytes, ZERO_PAGE};
use super::recovery::{OpenError, READ_LEN_MAX, counts_as_all_marked};
use super::superblock::{ChooseError, Place, Superblock, SuperblockError, choose};
use crate::types::{BlockCount, BlockIndex, BlockRange, ByteLen, ByteRange, ExtentNr};

const PAGE: u64 = PAGE_LEN as u64;

/// Damaged bitmap pages named one by one; further ones are only counted.
pub const DAMAGED_PAGES_LISTED_MAX: usize = 1024;

/// What lies in the place of one superblock copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The area ends before it.
    Beyond,
    /// A whole one.
    Whole(Box<Superblock>),
    /// None that this version understands.
    Not(SuperblockError),
}

/// Why one copy counts and not the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Both are whole, and it was written later.
    Newer(Place),
    /// Both are whole and the same, as `create-md` leaves them.
    Same,
    /// The other is not whole.
    OnlyWhole(Place),
}

/// What the activity log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogContent {
    /// The replica was made without one.
    Absent,
    /// Whole.
    Whole {
        /// Number of the newest transaction; 0 = none yet.
        newest: u64,
        /// Extents it lists, ascending: writes to them may have been in flight.
        listed: Vec<ExtentNr>,
    },
    /// It lost something durable, so every block counts as marked.
    Lost(ReplayError),
    /// The area ends inside it.
    CutOff,
}

/// What the bitmap says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitmapContent {
    /// Pages that were never written.
    pub unwritten: u32,
    /// Whole pages.
    pub written: u32,
    /// Pages that are not whole: every block of theirs counts as marked.
    pub damaged: u32,
    /// The first of these, at most [`DAMAGED_PAGES_LISTED_MAX`].
    pub damaged_pages: Vec<BitmapPageNr>,
    /// Pages beyond the end of the area.
    pub missing: u32,
    /// Blocks marked by the pages alone.
    pub marked_on_disk: BlockCount,
    /// Blocks marked once the replica is opened: with those of the extents that the activity log
    /// lists and of whatever is damaged.
    pub marked: BlockCount,
}

/// What the superblock that counts leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// Why it does.
    pub choice: Choice,
    /// Where things are.
    pub layout: Layout,
    /// The activity log.
    pub activity_log: LogContent,
    /// The bitmap.
    pub bitmap: BitmapContent,
    /// Every block counts as marked, whatever the bitmap says.
    pub all_marked: bool,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Length of the area.
    pub area: ByteLen,
    /// The two places.
    pub copies: [Copy; 2],
    /// What could be read; also of an area that is too short to be opened.
    pub contents: Option<Contents>,
    /// Why it cannot be opened, if so.
    pub refusal: Option<OpenError>,
}

impl Inspection {
    /// Whether anything that was there is lost, though the rest may do.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let refused = matches!(
            self.refusal,
            Some(OpenError::Damaged | OpenError::AreaTooSmall { .. })
        );
        let copy_lost = |copy: &Copy| !matches!(copy, Copy::Whole(_));
        let part_lost = self.contents.as_ref().is_some_and(|contents| {
            self.copies.iter().any(copy_lost)
                || contents.bitmap.damaged > 0
                || matches!(contents.activity_log, LogContent::Lost(_))
        });
        refused || part_lost
    }
}

/// Looks at an area piece by piece: ask [`Inspector::next_read`], read, [`Inspector::feed`], until
/// there is nothing to read; then [`Inspector::finish`].
#[derive(Clone, Debug)]
pub struct Inspector {
    step: Step,
    pages: [Option<Box<PageBytes>>; 2],
    inspection: Inspection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FirstCopy,
    SecondCopy,
    ActivityLog,
    Bitmap { next_page: u32, end: u32 },
    Done,
}

impl Inspector {
    /// For an area of this length.
    #[must_use]
    pub fn new(area: ByteLen) -> Self {
        let mut inspector = Self {
            step: Step::FirstCopy,
            pages: [None, None],
            inspection: Inspection {
                area,
                copies: [Copy::Beyond, Copy::Beyond],
                contents: None,
                refusal: None,
            },
        };
        if area.0 < PAGE {
            inspector.settle_copies();
        }
        inspector
    }

    /// What to read next, at most [`READ_LEN_MAX`] bytes, all of it inside the area; `None` when
    /// [`Inspector::finish`] has the answer.
    #[must_use]
    pub fn next_read(&self) -> Option<ByteRange> {
        let layout = self.inspection.contents.as_ref().map(|it| it.layout);
        let (offset, len) = match self.step {
            Step::FirstCopy => (SUPERBLOCK_OFFSETS[0], PAGE),
            Step::SecondCopy => (SUPERBLOCK_OFFSETS[1], PAGE),
            Step::ActivityLog => (ACTIVITY_LOG_OFFSET, layout?.activity_log_len().0),
            Step::Bitmap { next_page, end } => (
                layout?.bitmap_page(BitmapPageNr(next_page)),
                (u64::from(end - next_page) * PAGE).min(READ_LEN_MAX),
            ),
            Step::Done => return None,
        };
        ByteRange::new(offset, ByteLen(len)).filter(|range| !range.is_empty())
    }

    /// Takes the bytes of [`Inspector::next_read`].
    ///
    /// # Panics
    /// If they are not as many as asked for: a short read is a disk error, not metadata.
    pub fn feed(&mut self, bytes: &[u8]) {
        let asked = self.next_read().expect("nothing was asked for");
        assert_eq!(u64::try_from(bytes.len()), Ok(asked.len().0), "short read");
        let (pages, _) = bytes.as_chunks::<PAGE_LEN>();
        match self.step {
            Step::FirstCopy => {
                self.pages[0] = Some(Box::new(pages[0]));
                self.step = Step::SecondCopy;
                if self.inspection.area < ByteLen(BITMAP_OFFSET.0) {
                    self.settle_copies();
                }
            }
            Step::SecondCopy => {
                self.pages[1] = Some(Box::new(pages[0]));
                self.settle_copies();
            }
            Step::ActivityLog => {
                self.note_activity_log(bytes);
                self.begin_bitmap();
            }
            Step::Bitmap { next_page, end } => {
                for (nr, page) in (next_page..).zip(pages) {
                    self.note_bitmap_page(BitmapPageNr(nr), page);
                }
                let read = u32::try_from(pages.len()).expect("READ_LEN_MAX");
                self.step = Step::Bitmap {
                    next_page: next_page + read,
                    end,
                };
                self.end_bitmap();
            }
            Step::Done => {}
        }
    }

    /// What was found.
    ///
    /// # Panics
    /// If there was something left to read.
    #[must_use]
    pub fn finish(self) -> Inspection {
        assert!(self.next_read().is_none(), "not everything was read");
        self.inspection
    }

    // --- Superblocks ------------------------------------------------------------------------

    fn settle_copies(&mut self) {
        let copy = |page: &Option<Box<PageBytes>>| match page.as_deref().map(Superblock::decode) {
            None => Copy::Beyond,
            Some(Ok(superblock)) => Copy::Whole(Box::new(superblock)),
            Some(Err(error)) => Copy::Not(error),
        };
        self.inspection.copies = [copy(&self.pages[0]), copy(&self.pages[1])];
        let page = |at: usize| self.pages[at].as_deref().unwrap_or(&ZERO_PAGE);
        let chosen = choose(page(0), page(1));
        self.inspection.refusal = self.refusal(&chosen);
        match chosen {
            Ok((superblock, place)) => self.begin_contents(superblock, place),
            Err(_) => self.step = Step::Done,
        }
    }

    /// A short area is said to be short only if it is ours: enlarging a foreign one mends nothing.
    fn refusal(&self, chosen: &Result<(Superblock, Place), ChooseError>) -> Option<OpenError> {
        let found = self.inspection.area.0;
        let needed = match chosen {
            Ok((superblock, _)) => superblock.layout()?.total().0,
            Err(ChooseError::Damaged) => BITMAP_OFFSET.0,
            // Shorter than a page and not empty: nothing to tell it by.
            Err(ChooseError::NoMetadata) if 0 < found && found < PAGE => BITMAP_OFFSET.0,
            Err(error) => return Some(OpenError::from(*error)),
        };
        if found < needed {
            return Some(OpenError::AreaTooSmall { needed, found });
        }
        chosen.as_ref().err().map(|error| OpenError::from(*error))
    }

    fn choice(&self, place: Place) -> Choice {
        match &self.inspection.copies {
            [Copy::Whole(a), Copy::Whole(b)] if a == b => Choice::Same,
            [Copy::Whole(_), Copy::Whole(_)] => Choice::Newer(place),
            _ => Choice::OnlyWhole(place),
        }
    }

    fn begin_contents(&mut self, superblock: Superblock, place: Place) {
        // Decoded superblocks have a layout.
        let Some(layout) = superblock.layout() else {
            self.step = Step::Done;
            return;
        };
        let log_end = ACTIVITY_LOG_OFFSET.0 + layout.activity_log_len().0;
        let readable = self.inspection.area.0 >= log_end;
        self.inspection.contents = Some(Contents {
            choice: self.choice(place),
            layout,
            activity_log: LogContent::CutOff,
            bitmap: BitmapContent::default(),
            all_marked: false,
            superblock,
        });
        self.step = Step::ActivityLog;
        if !readable {
            self.begin_bitmap();
        }
    }

    // --- Activity log and bitmap ------------------------------------------------------------

    fn note_activity_log(&mut self, ring: &[u8]) {
        let Some(contents) = &mut self.inspection.contents else {
            return;
        };
        let Superblock {
            al_slots, replica, ..
        } = contents.superblock;
        contents.activity_log = match activity_log::replay(contents.layout, al_slots, replica, ring)
        {
            Ok(_) if al_slots == 0 => LogContent::Absent,
            Ok((log, mut listed)) => {
                listed.sort_unstable();
                LogContent::Whole {
                    newest: log.sequence(),
                    listed,
                }
            }
            Err(error) => LogContent::Lost(error),
        };
    }

    fn begin_bitmap(&mut self) {
        let area = self.inspection.area.0;
        let Some(contents) = &mut self.inspection.contents else {
            return;
        };
        let lost = matches!(
            contents.activity_log,
            LogContent::Lost(_) | LogContent::CutOff
        );
        contents.all_marked = counts_as_all_marked(&contents.superblock, lost);
        let pages = contents.layout.bitmap_pages();
        let there = area.saturating_sub(BITMAP_OFFSET.0) / PAGE;
        let end = u32::try_from(there).map_or(pages, |there| pages.min(there));
        contents.bitmap.missing = pages - end;
        for page in end..pages {
            let blocks = in_volume(BitmapPageNr(page), contents.layout.size());
            contents.bitmap.marked.0 += blocks.count().0;
        }
        self.step = Step::Bitmap { next_page: 0, end };
        self.end_bitmap();
    }

    fn end_bitmap(&mut self) {
        if !matches!(self.step, Step::Bitmap { next_page, end } if next_page == end) {
            return;
        }
        self.step = Step::Done;
        if let Some(contents) = &mut self.inspection.contents
            && contents.all_marked
        {
            contents.bitmap.marked = contents.layout.size();
        }
    }

    fn note_bitmap_page(&mut self, page: BitmapPageNr, bytes: &PageBytes) {
        let Some(contents) = &mut self.inspection.contents else {
            return;
        };
        let Superblock {
            replica,
            unwritten_bits_set,
            ..
        } = contents.superblock;
        let bitmap = &mut contents.bitmap;
        let mut words = match bitmap::decode(bytes, page, replica, unwritten_bits_set) {
            Loaded::Unwritten { set } => {
                bitmap.unwritten += 1;
                Box::new([if set { u64::MAX } else { 0 }; WORDS_PER_PAGE])
            }
            Loaded::Bits { words, .. } => {
                bitmap.written += 1;
                words
            }
            Loaded::Damaged => {
                bitmap.damaged += 1;
                if bitmap.damaged_pages.len() < DAMAGED_PAGES_LISTED_MAX {
                    bitmap.damaged_pages.push(page);
                }
                Box::new([u64::MAX; WORDS_PER_PAGE])
            }
        };
        let size = contents.layout.size();
        let blocks = in_volume(page, size);
        bitmap.marked_on_disk.0 += count_in(&words, page, blocks);
        if let LogContent::Whole { listed, .. } = &contents.activity_log {
            for extent in overlapping(listed, blocks, size) {
                fill(&mut words, page, extent);
            }
        }
        bitmap.marked.0 += count_in(&words, page, blocks);
    }
}

/// The page's blocks, cut at the volume's end.
fn in_volume(page: BitmapPageNr, size: BlockCount) -> BlockRange {
    let blocks = page.blocks();
    cut(blocks, BlockRange::new(BlockIndex(0), size))
}

fn cut(range: BlockRange, by: BlockRange) -> BlockRange {
    let end = range.end().min(by.end());
    BlockRange::between(range.start().max(by.start()).min(end), end)
}

/// The parts of `listed` (ascending) that lie in `blocks`.
fn overlapping(
    listed: &[ExtentNr],
    blocks: BlockRange,
    size: BlockCount,
) -> impl Iterator<Item = BlockRange> + '_ {
    let first = listed.partition_point(|extent| extent.blocks(size).end() <= blocks.start());
    listed[first..]
        .iter()
        .map(move |extent| cut(extent.blocks(size), blocks))
        .take_while(|range| !range.is_empty())
}

/// Word of the page and the bits of it, for each word that `blocks` touch.
fn words_of(page: BitmapPageNr, blocks: BlockRange) -> impl Iterator<Item = (usize, u64)> {
    let base = u64::from(page.0) * BITS_PER_PAGE;
    let (start, end) = (blocks.start().0 - base, blocks.end().0 - base);
    (start / 64..end.div_ceil(64)).map(move |word| {
        let from = start.max(word * 64) - word * 64;
        let to = end.min((word + 1) * 64) - word * 64;
        let below = |bits: u64| {
            if bits == 64 {
                u64::MAX
            } else {
                (1 << bits) - 1
            }
        };
        let at = usize::try_from(word).expect("below a page's words");
        (at, below(to) & !below(from))
    })
}

fn count_in(words: &[u64; WORDS_PER_PAGE], page: BitmapPageNr, blocks: BlockRange) -> u64 {
    words_of(page, blocks)
        .map(|(at, bits)| u64::from((words[at] & bits).count_ones()))
        .sum()
}

fn fill(words: &mut [u64; WORDS_PER_PAGE], page: BitmapPageNr, blocks: BlockRange) {
    for (at, bits) in words_of(page, blocks) {
        words[at] |= bits;
    }
}

/// Whether a page that is not zero is one of ours by its first bytes: of an activity log or of a
/// bitmap, whole or not. What is left when an area was erased only in part.
#[must_use]
pub fn is_log_or_bitmap(page: &PageBytes) -> bool {
    activity_log::has_magic(page) || bitmap::has_magic(page)
}
