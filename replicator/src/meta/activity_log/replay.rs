//! From the bytes of the ring back to the table.
//!
//! The ring is exactly the last transactions in their places, but for the one place a crash may
//! have caught half written: the one after the newest. Anything else (a hole, an old page where a
//! newer one must be) means that pages were lost *after* they were durable; then the table is not
//! guessed, and the caller marks everything.
//!
//! A torn transaction keeps its place until the next one is written there, and if that one is torn
//! too, sectors of both may together be the first one, whole: it comes back from the dead. It
//! replaced extents of the very table that was replayed; so none of these may be written to before
//! a further transaction is durable. That is why a replayed log is cold and its first transaction
//! begins with an empty table.

use thiserror::Error;

use super::ActivityLog;
use super::page::Decoded;
use crate::meta::layout::Layout;
use crate::meta::page::{PAGE_LEN, PageBytes, ZERO_PAGE};
use crate::types::{ExtentNr, ReplicaId};

/// Why the table cannot be rebuilt. Everything may differ then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A transaction that must be there is not, or not whole.
    #[error("transaction {expected} is missing from the activity log")]
    Missing {
        /// Its sequence.
        expected: u64,
    },
    /// Whole transactions contradict each other or the volume.
    #[error("transaction {sequence} makes no sense")]
    Nonsense {
        /// The first bad one.
        sequence: u64,
    },
    /// Not as many bytes as the ring has.
    #[error("the activity log has {found} bytes, not {expected}")]
    WrongLength {
        /// By the layout.
        expected: u64,
        /// Given.
        found: usize,
    },
}

enum RingPage<'a> {
    Zero,
    Whole(Decoded<'a>),
    Unreadable,
}

/// Rebuilds the log from its ring. The extents listed (in slot order) may differ from the peer:
/// the caller sets their bits. None of them is hot; they leave with the next transaction.
///
/// # Errors
/// [`ReplayError`]: the ring lost something that was durable.
pub fn replay(
    layout: Layout,
    al_slots: u16,
    replica: ReplicaId,
    ring: &[u8],
) -> Result<(ActivityLog, Vec<ExtentNr>), ReplayError> {
    let mut log = ActivityLog::new(layout, al_slots, replica);
    let expected = layout.activity_log_len().0;
    if u64::try_from(ring.len()) != Ok(expected) {
        return Err(ReplayError::WrongLength {
            expected,
            found: ring.len(),
        });
    }
    if al_slots == 0 {
        return Ok((log, Vec::new()));
    }
    let pages = read_pages(layout, al_slots, replica, ring);
    let newest = pages.iter().filter_map(sequence_of).max().unwrap_or(0);
    let chain = chain_to(newest, &pages)?;
    let table = apply(&log, &chain)?;
    let listed: Vec<ExtentNr> = table.into_iter().flatten().collect();
    log.sequence = newest;
    log.stale.clone_from(&listed);
    Ok((log, listed))
}

fn read_pages(layout: Layout, al_slots: u16, replica: ReplicaId, ring: &[u8]) -> Vec<RingPage<'_>> {
    let (pages, _) = ring.as_chunks::<PAGE_LEN>();
    let read = |(position, page)| {
        let page: &PageBytes = page;
        if *page == ZERO_PAGE {
            return RingPage::Zero;
        }
        Decoded::read(page, replica, al_slots)
            .filter(|found| found.sequence() % u64::from(layout.ring_pages()) == position)
            .filter(|found| found.sequence() > 0 && found.sequence() < u64::MAX / 2)
            .map_or(RingPage::Unreadable, RingPage::Whole)
    };
    (0..).zip(pages).map(read).collect()
}

fn sequence_of(page: &RingPage<'_>) -> Option<u64> {
    match page {
        RingPage::Whole(found) => Some(found.sequence()),
        RingPage::Zero | RingPage::Unreadable => None,
    }
}

/// All transactions of the ring up to `newest`, oldest first; checks that each is in its place.
fn chain_to<'a>(
    newest: u64,
    pages: &'a [RingPage<'_>],
) -> Result<Vec<&'a Decoded<'a>>, ReplayError> {
    let ring = u64::try_from(pages.len()).expect("a page count");
    let place = |sequence: u64| usize::try_from(sequence % ring).expect("below the page count");
    // The place of the next transaction is the only one that may hold anything.
    let oldest = (newest + 2).saturating_sub(ring).max(1);
    let mut chain = Vec::new();
    for sequence in oldest..=newest {
        match &pages[place(sequence)] {
            RingPage::Whole(found) if found.sequence() == sequence => chain.push(found),
            _ => return Err(ReplayError::Missing { expected: sequence }),
        }
    }
    // Places not reached yet in the first round are as `create-md` left them.
    for sequence in newest + 2..=ring {
        if !matches!(pages[place(sequence)], RingPage::Zero) {
            return Err(ReplayError::Missing { expected: sequence });
        }
    }
    Ok(chain)
}

fn apply(log: &ActivityLog, chain: &[&Decoded<'_>]) -> Result<Vec<Option<ExtentNr>>, ReplayError> {
    let mut table: Vec<Option<ExtentNr>> = vec![None; usize::from(log.slots())];
    let mut stated = vec![chain.first().is_none_or(|first| first.sequence() == 1); table.len()];
    for transaction in chain {
        let sequence = transaction.sequence();
        if transaction.is_reset() {
            table.fill(None);
            stated.fill(true);
        }
        for (slot, extent) in transaction.statements() {
            let at = usize::from(slot.0);
            let in_volume = extent.is_none_or(|nr| {
                usize::try_from(nr.0).is_ok_and(|nr| nr < log.table.volume_extents())
            });
            if at >= table.len() || !in_volume {
                return Err(ReplayError::Nonsense { sequence });
            }
            table[at] = extent;
            stated[at] = true;
        }
    }
    let newest = chain.last().map_or(0, |last| last.sequence());
    let mut extents: Vec<ExtentNr> = table.iter().flatten().copied().collect();
    let count = extents.len();
    extents.sort_unstable();
    extents.dedup();
    if extents.len() != count || stated.contains(&false) {
        return Err(ReplayError::Nonsense { sequence: newest });
    }
    Ok(table)
}
