//! Which operations may touch which blocks at the same time.
//!
//! Guest writes, replicated writes, resync and reads for the Primary all pass here, on both nodes:
//! conflicting ones go in order of arrival, each waiting for the former's completion
//! (interleavings F4). Reads share; anything else is alone on its blocks. A newcomer also waits
//! behind *waiting* conflicting ones, so nobody starves.

use std::collections::VecDeque;

use crate::types::BlockRange;

/// How the blocks are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Shared,
    Exclusive,
}

/// Names one holder or waiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Clone, Debug)]
struct Entry<Owner> {
    ticket: Ticket,
    range: BlockRange,
    access: Access,
    held: bool,
    owner: Owner,
}

/// Holders and waiters, in order of arrival. A plain list: a few hundred entries at most (bounded
/// by the requests in flight), and a scan of 32-byte entries beats a tree at that size.
#[derive(Clone, Debug)]
pub(super) struct Overlap<Owner> {
    entries: Vec<Entry<Owner>>,
    next: u64,
}

impl<Owner> Default for Overlap<Owner> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            next: 1,
        }
    }
}

impl<Owner: Copy> Overlap<Owner> {
    /// Takes a place for `range`; the flag says whether it is held at once. If not, `owner` is
    /// handed out by a later `release`.
    pub(super) fn acquire(
        &mut self,
        range: BlockRange,
        access: Access,
        owner: Owner,
    ) -> (Ticket, bool) {
        let ticket = Ticket(self.next);
        self.next += 1;
        let held = !self.conflicts(self.entries.len(), range, access);
        self.entries.push(Entry {
            ticket,
            range,
            access,
            held,
            owner,
        });
        (ticket, held)
    }

    /// Gives the place up, held or waiting; whoever may go now is appended to `granted`, in order
    /// of arrival.
    pub(super) fn release(&mut self, ticket: Ticket, granted: &mut VecDeque<Owner>) {
        let Ok(at) = self
            .entries
            .binary_search_by_key(&ticket, |entry| entry.ticket)
        else {
            return;
        };
        let gone = self.entries.remove(at);
        for index in at..self.entries.len() {
            let entry = &self.entries[index];
            if entry.held || !entry.range.overlaps(gone.range) {
                continue;
            }
            if !self.conflicts(index, entry.range, entry.access) {
                self.entries[index].held = true;
                granted.push_back(self.entries[index].owner);
            }
        }
    }

    /// Whether an entry before `index` stands in the way.
    fn conflicts(&self, index: usize, range: BlockRange, access: Access) -> bool {
        self.entries[..index].iter().any(|earlier| {
            earlier.range.overlaps(range)
                && (access == Access::Exclusive || earlier.access == Access::Exclusive)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{BlockCount, BlockIndex};

    fn blocks(start: u64, count: u64) -> BlockRange {
        BlockRange::new(BlockIndex(start), BlockCount(count))
    }

    #[test]
    fn a_read_behind_a_waiting_write_waits_too() {
        let mut overlap = Overlap::default();
        let (reader, held) = overlap.acquire(blocks(0, 4), Access::Shared, "first read");
        assert!(held);
        let (writer, held) = overlap.acquire(blocks(2, 1), Access::Exclusive, "write");
        assert!(!held);
        assert!(
            !overlap
                .acquire(blocks(2, 2), Access::Shared, "second read")
                .1
        );
        let mut granted = VecDeque::new();
        overlap.release(reader, &mut granted);
        assert_eq!(granted, ["write"]);
        overlap.release(writer, &mut granted);
        assert_eq!(granted, ["write", "second read"]);
    }

    proptest! {
        /// Oracle: an entry runs iff no conflicting entry that arrived earlier is still there.
        #[test]
        fn runs_exactly_when_nothing_earlier_conflicts(
            steps in proptest::collection::vec((0u64..8, 1u64..4, any::<bool>(), any::<bool>(), 0usize..8), 1..60)
        ) {
            let mut overlap = Overlap::default();
            let mut alive: Vec<(Ticket, BlockRange, Access, bool)> = Vec::new();
            for (nr, (start, count, shared, take, victim)) in steps.into_iter().enumerate() {
                if take || alive.is_empty() {
                    let access = if shared { Access::Shared } else { Access::Exclusive };
                    let range = blocks(start, count);
                    let (ticket, held) = overlap.acquire(range, access, nr);
                    alive.push((ticket, range, access, held));
                } else {
                    let (ticket, ..) = alive.remove(victim % alive.len());
                    let mut granted = VecDeque::new();
                    overlap.release(ticket, &mut granted);
                    for entry in &mut alive {
                        entry.3 |= overlap.entries.iter().any(|e| e.ticket == entry.0 && e.held);
                    }
                }
                for (index, (_, range, access, held)) in alive.iter().enumerate() {
                    let blocked = alive[..index].iter().any(|(_, other, theirs, _)| {
                        other.overlaps(*range)
                            && (*access == Access::Exclusive || *theirs == Access::Exclusive)
                    });
                    prop_assert_eq!(*held, !blocked);
                }
            }
        }
    }
}
