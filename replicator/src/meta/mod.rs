//! On-disk structures as values: bytes in, bytes out. No files.
//!
//! A replica's metadata area holds two superblock copies, the activity-log ring and the bitmap
//! ([`Layout`]; byte for byte in `docs/on-disk-format.md`). The one invariant: whatever a crash
//! leaves of the pages being written, with one torn sector, opening the area ([`Loader`]) yields
//! the old or the new state, and marks at least every block that may differ (promises 4 and 7).

pub mod activity_log;
pub mod bitmap;
pub mod inspect;
pub mod layout;
pub mod page;
pub mod recovery;
pub mod superblock;

pub use activity_log::{Acquire, ActivityLog, Begin, Transaction};
pub use bitmap::{BITS_PER_PAGE, Bitmap, BitmapChunk, BitmapPageNr, ChunkError};
pub use inspect::{Inspection, Inspector};
pub use layout::Layout;
pub use page::{MetaPage, PAGE_LEN};
pub use recovery::{FormatPlan, Loader, OpenError, Recovered, format, probe};
pub use superblock::{Features, NewReplica, ReplicaState, Superblock, SuperblockWriter};

use crate::types::fixed::FieldLayout;

/// The fixed layouts of the format, by name: `docs/on-disk-format.md` is checked against them.
pub const FIXED_LAYOUTS: [(&str, &[FieldLayout]); 3] = [
    ("superblock", superblock::RawSuperblock::FIELDS),
    (
        "activity-log transaction",
        activity_log::RawTransaction::FIELDS,
    ),
    ("bitmap page header", bitmap::RawHeader::FIELDS),
];
