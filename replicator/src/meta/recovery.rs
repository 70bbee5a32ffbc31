//! Making a metadata area, and opening one after anything.

use thiserror::Error;

use super::activity_log::{self, ActivityLog};
use super::bitmap::{self, Bitmap, BitmapPageNr};
use super::layout::{
    ACTIVITY_LOG_OFFSET, BITMAP_OFFSET, Layout, SUPERBLOCK_OFFSETS, VOLUME_BLOCKS_MAX,
};
use super::page::{MetaPage, PAGE_LEN, PageBytes, ZERO_PAGE};
use super::superblock::{ChooseError, Features, Superblock, SuperblockWriter, choose};
use crate::types::{BlockRange, ByteLen, ByteOffset, ByteRange, ExtentNr};

/// Bytes read at once while loading: bounds the buffer, and a device answers it in one go.
pub const READ_LEN_MAX: u64 = 1 << 20;

const PAGE: u64 = PAGE_LEN as u64;

// --- Making ---------------------------------------------------------------------------------

/// What `create-md` does, in this order, each step durable before the next: zero `zero`, write
/// `pages`. A crash before the end leaves an area without a whole superblock, never a blank or
/// half-made replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatPlan {
    /// Bytes that must read as zero. A new sparse file does already.
    pub zero: ByteRange,
    /// The two superblock copies.
    pub pages: Vec<MetaPage>,
}

/// How to make the metadata of a new replica. Which bits are set is said by the superblock's
/// `unwritten_bits_set`, so that a large bitmap need not be written.
///
/// # Errors
/// If volume size or slot count are out of range.
pub fn format(superblock: &Superblock) -> Result<FormatPlan, FormatError> {
    let layout = superblock.layout().ok_or(FormatError {
        size_blocks: superblock.size.0,
        al_slots: superblock.al_slots,
    })?;
    let zero = ByteRange::new(ByteOffset(0), layout.total());
    Ok(FormatPlan {
        zero: zero.expect("the layout's size limit is far below 2^64"),
        pages: SuperblockWriter::both_copies(superblock).to_vec(),
    })
}

/// No metadata can be made with these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "no metadata for {size_blocks} blocks and {al_slots} slots: 1 to {} blocks and at most {} slots",
    VOLUME_BLOCKS_MAX.0,
    activity_log::SLOTS_MAX
)]
pub struct FormatError {
    /// Blocks asked for.
    pub size_blocks: u64,
    /// Slots asked for.
    pub al_slots: u16,
}

/// What is in an area, for `create-md` to refuse or not.
///
/// # Errors
/// Why it cannot be opened; [`ChooseError::NoMetadata`] says that both copies' places are empty.
pub fn probe(first: &PageBytes, second: &PageBytes) -> Result<Superblock, ChooseError> {
    choose(first, second).map(|(superblock, _)| superblock)
}

// --- Opening --------------------------------------------------------------------------------

/// Why an area cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// `create-md` was never run on it, or did not finish.
    #[error("no metadata")]
    NoMetadata,
    /// It holds something that is not ours.
    #[error("the area holds something else than metadata")]
    NotOurs,
    /// There was metadata, and no whole superblock is left.
    #[error("both superblock copies are damaged")]
    Damaged,
    /// Made by a newer version.
    #[error("made by a newer version (format {version}, features {features:?})")]
    TooNew {
        /// Its format version.
        version: u16,
        /// Its feature bits.
        features: Features,
    },
    /// The area ends before the metadata it should hold.
    #[error("the metadata needs {needed} bytes, the area has {found}")]
    AreaTooSmall {
        /// By the superblock.
        needed: u64,
        /// Length of the area.
        found: u64,
    },
}

impl From<ChooseError> for OpenError {
    fn from(error: ChooseError) -> Self {
        match error {
            ChooseError::NoMetadata => Self::NoMetadata,
            ChooseError::NotOurs => Self::NotOurs,
            ChooseError::Damaged => Self::Damaged,
            ChooseError::TooNew { version, features } => Self::TooNew { version, features },
        }
    }
}

/// An opened area: the replica's state, with every block marked that may differ.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The newest superblock, ready to be written again. Its `bits_coarse` is already true if this
    /// opening marked anything coarsely; on disk only after the next write.
    pub superblock: SuperblockWriter,
    /// The activity log. If it is not clean, make the bitmap durable (`grown_pages`), then reset it.
    pub activity_log: ActivityLog,
    /// The bitmap, with the blocks of all `replayed` extents marked.
    pub bitmap: Bitmap,
    /// Extents the activity log listed, in slot order.
    pub replayed: Vec<ExtentNr>,
    /// Bitmap pages that were not whole; all their blocks are marked.
    pub damaged_bitmap_pages: u32,
    /// The activity log lost something durable, so every block is marked. The pages empty the ring;
    /// to be written once the bitmap is durable and before the first transaction.
    pub activity_log_repair: Option<Vec<MetaPage>>,
}

/// Opens an area piece by piece: ask [`Loader::next_read`], read, [`Loader::feed`], until there is
/// nothing to read; then [`Loader::finish`].
#[derive(Clone, Debug)]
pub struct Loader {
    area: ByteLen,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    FirstCopy,
    SecondCopy {
        first: Box<PageBytes>,
    },
    ActivityLog(Box<Opening>),
    Bitmap {
        opening: Box<Opening>,
        next_page: u32,
    },
    Refused(OpenError),
}

#[derive(Clone, Debug)]
struct Opening {
    layout: Layout,
    recovered: Recovered,
}

impl Loader {
    /// A loader for an area of this length.
    #[must_use]
    pub fn new(area: ByteLen) -> Self {
        let needed = BITMAP_OFFSET.0;
        let stage = if area.0 < needed {
            Stage::Refused(OpenError::AreaTooSmall {
                needed,
                found: area.0,
            })
        } else {
            Stage::FirstCopy
        };
        Self { area, stage }
    }

    /// What to read next, at most [`READ_LEN_MAX`] bytes; `None` when [`Loader::finish`] has the
    /// answer.
    #[must_use]
    pub fn next_read(&self) -> Option<ByteRange> {
        let (offset, len) = match &self.stage {
            Stage::FirstCopy => (SUPERBLOCK_OFFSETS[0], PAGE),
            Stage::SecondCopy { .. } => (SUPERBLOCK_OFFSETS[1], PAGE),
            Stage::ActivityLog(opening) => {
                (ACTIVITY_LOG_OFFSET, opening.layout.activity_log_len().0)
            }
            Stage::Bitmap { opening, next_page } => {
                let offset = opening.layout.bitmap_page(BitmapPageNr(*next_page));
                let rest = u64::from(opening.layout.bitmap_pages() - next_page) * PAGE;
                (offset, rest.min(READ_LEN_MAX))
            }
            Stage::Refused(_) => return None,
        };
        ByteRange::new(offset, ByteLen(len)).filter(|range| !range.is_empty())
    }

    /// Takes the bytes of [`Loader::next_read`].
    ///
    /// # Panics
    /// If they are not as many as asked for: a short read is a disk error, not metadata.
    pub fn feed(&mut self, bytes: &[u8]) {
        let asked = self.next_read().expect("nothing was asked for");
        assert_eq!(u64::try_from(bytes.len()), Ok(asked.len().0), "short read");
        let (pages, _) = bytes.as_chunks::<PAGE_LEN>();
        let stage = core::mem::replace(&mut self.stage, Stage::FirstCopy);
        self.stage = match stage {
            Stage::FirstCopy => Stage::SecondCopy {
                first: Box::new(pages[0]),
            },
            Stage::SecondCopy { first } => match Opening::of(self.area, &first, &pages[0]) {
                Ok(opening) => Stage::ActivityLog(Box::new(opening)),
                Err(error) => Stage::Refused(error),
            },
            Stage::ActivityLog(mut opening) => {
                opening.load_activity_log(bytes);
                Stage::Bitmap {
                    opening,
                    next_page: 0,
                }
            }
            Stage::Bitmap {
                mut opening,
                mut next_page,
            } => {
                for page in pages {
                    opening.load_bitmap_page(BitmapPageNr(next_page), page);
                    next_page += 1;
                }
                Stage::Bitmap { opening, next_page }
            }
            Stage::Refused(error) => Stage::Refused(error),
        };
    }

    /// The opened area.
    ///
    /// # Errors
    /// Why there is none.
    ///
    /// # Panics
    /// If there was something left to read.
    pub fn finish(self) -> Result<Recovered, OpenError> {
        assert!(self.next_read().is_none(), "not everything was read");
        match self.stage {
            Stage::Refused(error) => Err(error),
            Stage::Bitmap { opening, .. } => Ok(opening.finish()),
            Stage::FirstCopy | Stage::SecondCopy { .. } | Stage::ActivityLog(_) => {
                unreachable!("these stages read something")
            }
        }
    }
}

impl Opening {
    fn of(area: ByteLen, first: &PageBytes, second: &PageBytes) -> Result<Self, OpenError> {
        let (superblock, place) = choose(first, second)?;
        let layout = superblock.layout().ok_or(OpenError::Damaged)?;
        if area < layout.total() {
            return Err(OpenError::AreaTooSmall {
                needed: layout.total().0,
                found: area.0,
            });
        }
        let replica = superblock.replica;
        Ok(Self {
            layout,
            recovered: Recovered {
                activity_log: ActivityLog::new(layout, superblock.al_slots, replica),
                bitmap: Bitmap::new(layout, replica),
                superblock: SuperblockWriter::new(superblock, place),
                replayed: Vec::new(),
                damaged_bitmap_pages: 0,
                activity_log_repair: None,
            },
        })
    }

    fn load_activity_log(&mut self, ring: &[u8]) {
        let superblock = self.recovered.superblock.current();
        match activity_log::replay(self.layout, superblock.al_slots, superblock.replica, ring) {
            Ok((log, listed)) => {
                self.recovered.activity_log = log;
                self.recovered.replayed = listed;
            }
            Err(error) => {
                tracing::warn!(%error, "every block counts as out of sync");
                let pages = (0..u64::from(self.layout.ring_pages()))
                    .map(|place| MetaPage::new(self.layout.activity_log_page(place), &ZERO_PAGE));
                self.recovered.activity_log_repair = Some(pages.collect());
            }
        }
    }

    fn load_bitmap_page(&mut self, page: BitmapPageNr, bytes: &PageBytes) {
        let superblock = self.recovered.superblock.current();
        let unwritten = superblock.unwritten_bits_set;
        let loaded = bitmap::decode(bytes, page, superblock.replica, unwritten);
        if loaded == bitmap::Loaded::Damaged {
            self.recovered.damaged_bitmap_pages += 1;
        }
        self.recovered.bitmap.load_page(page, loaded);
    }

    fn finish(self) -> Recovered {
        let Self {
            layout,
            mut recovered,
        } = self;
        let superblock = recovered.superblock.current();
        let log_lost = recovered.activity_log_repair.is_some();
        let everything = counts_as_all_marked(superblock, log_lost);
        if everything {
            recovered.bitmap.set_all();
        }
        for extent in &recovered.replayed {
            let blocks: BlockRange = extent.blocks(layout.size());
            recovered.bitmap.set(blocks);
        }
        if everything || !recovered.replayed.is_empty() || recovered.damaged_bitmap_pages > 0 {
            recovered.superblock.note_bits_coarse();
        }
        recovered
    }
}

/// Whether every block counts as marked when this replica is opened, whatever its bitmap says.
pub(super) fn counts_as_all_marked(superblock: &Superblock, log_lost: bool) -> bool {
    let no_log = superblock.al_slots == 0 && superblock.open;
    superblock.full_sync_needed || log_lost || no_log
}
