//! A disk with a volatile cache: what is current, what is durable, what a power cut leaves.
//!
//! The model is of 4 KiB pages. Each page has one durable version and the versions written since;
//! a flush makes durable what had *completed when the flush was submitted*, a power cut leaves for
//! each 512-byte sector any of the versions. Faults it may give, and why the pair recovers:
//!
//! * an operation fails (EIO): the replica leaves, the peer has the data;
//! * a failed write is torn: nobody believes a failed write;
//! * operations of a killed process land late: attach waits for them (R14);
//! * power is cut: see above; acknowledged data is on the peer, flushed data is durable.

use std::collections::BTreeMap;

use replicator::types::Payload;

use crate::rng::Rng;
use crate::stamp::CELL_LEN;

/// Bytes in a page: the block of the data device, the page of the metadata area.
pub const PAGE_LEN: usize = 4096;
const SECTORS_PER_PAGE: usize = PAGE_LEN / CELL_LEN;

/// Content of a page; `None` reads as zeroes.
pub type Content = Option<Payload>;

#[derive(Clone, Debug)]
struct Version {
    /// Position in the order of completions.
    completed: u64,
    content: Content,
}

#[derive(Clone, Debug, Default)]
struct Page {
    durable: Content,
    /// Since the last flush, oldest first.
    volatile: Vec<Version>,
}

impl Page {
    fn current(&self) -> &Content {
        self.volatile
            .last()
            .map_or(&self.durable, |version| &version.content)
    }
}

/// A flush that was submitted: covers the writes completed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushTicket(u64);

/// One device. Time is not its business: the world decides when an operation lands.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pages: BTreeMap<u64, Page>,
    completions: u64,
}

impl Device {
    /// A device full of zeroes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a read of `page` returns now.
    #[must_use]
    pub fn current(&self, page: u64) -> Content {
        self.pages
            .get(&page)
            .and_then(|page| page.current().clone())
    }

    /// What `page` would hold after a power cut if nothing volatile survived.
    #[must_use]
    pub fn durable(&self, page: u64) -> Content {
        self.pages.get(&page).and_then(|page| page.durable.clone())
    }

    /// Whether `page` has a version that is not durable.
    #[must_use]
    pub fn is_volatile(&self, page: u64) -> bool {
        self.pages
            .get(&page)
            .is_some_and(|page| !page.volatile.is_empty())
    }

    /// Pages ever written, in order.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// `count` pages from `first` on, as one buffer.
    #[must_use]
    pub fn read(&self, first: u64, count: u64) -> Payload {
        if count == 1
            && let Some(Some(payload)) = self.pages.get(&first).map(Page::current)
        {
            return payload.clone();
        }
        let len = usize::try_from(count).expect("a request fits in memory") * PAGE_LEN;
        let mut bytes = vec![0; len];
        for (page, entry) in self.pages.range(first..first + count) {
            if let Some(content) = entry.current() {
                let at = usize::try_from(page - first).expect("inside the buffer") * PAGE_LEN;
                bytes[at..at + PAGE_LEN].copy_from_slice(content);
            }
        }
        Payload::from(bytes)
    }

    /// A write of one page completes.
    ///
    /// # Panics
    /// If the content is not one page long.
    pub fn write(&mut self, page: u64, content: Content, fua: bool) {
        if let Some(content) = &content {
            assert_eq!(content.len(), PAGE_LEN, "page {page}");
        }
        self.completions += 1;
        let entry = self.pages.entry(page).or_default();
        if fua {
            entry.durable = content;
            entry.volatile.clear();
        } else {
            entry.volatile.push(Version {
                completed: self.completions,
                content,
            });
        }
    }

    /// A flush is submitted now.
    #[must_use]
    pub fn begin_flush(&self) -> FlushTicket {
        FlushTicket(self.completions)
    }

    /// That flush completes.
    pub fn end_flush(&mut self, ticket: FlushTicket) {
        for page in self.pages.values_mut() {
            let covered = page
                .volatile
                .partition_point(|version| version.completed <= ticket.0);
            if let Some(last) = page.volatile.drain(..covered).next_back() {
                page.durable = last.content;
            }
        }
    }

    /// A write of one page that may land wholly, in part or not at all: what an error or a power
    /// cut in the middle of it does.
    pub fn write_torn(&mut self, page: u64, content: &Content, rng: &mut Rng) {
        let old = self.current(page);
        let mixed = match rng.below(3) {
            0 => return,
            1 => content.clone(),
            _ => mix_sectors(&[old, content.clone()], rng),
        };
        self.write(page, mixed, false);
    }

    /// The power goes: each sector keeps the durable version or any later one.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for page in self.pages.values_mut() {
            if page.volatile.is_empty() {
                continue;
            }
            let mut versions = vec![page.durable.take()];
            versions.extend(page.volatile.drain(..).map(|version| version.content));
            page.durable = match rng.below(3) {
                0 => versions.swap_remove(0),
                1 => versions.pop().expect("at least the durable one"),
                _ => mix_sectors(&versions, rng),
            };
        }
    }

    /// Flips a byte of the current and durable content; for the checkers' own tests.
    pub fn corrupt(&mut self, page: u64) {
        let entry = self.pages.entry(page).or_default();
        let mut bytes = entry
            .current()
            .as_deref()
            .map_or(vec![0; PAGE_LEN], <[u8]>::to_vec);
        bytes[0] ^= 0x40;
        entry.durable = Some(Payload::from(bytes));
        entry.volatile.clear();
    }
}

fn mix_sectors(versions: &[Content], rng: &mut Rng) -> Content {
    let mut bytes = vec![0; PAGE_LEN];
    for sector in 0..SECTORS_PER_PAGE {
        let nr = usize::try_from(rng.below(versions.len() as u64)).expect("below a length");
        if let Some(content) = &versions[nr] {
            let span = sector * CELL_LEN..(sector + 1) * CELL_LEN;
            bytes[span.clone()].copy_from_slice(&content[span]);
        }
    }
    Some(Payload::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn page(byte: u8) -> Content {
        Some(Payload::from(vec![byte; PAGE_LEN]))
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_was_submitted_and_no_more() {
        let mut device = Device::new();
        device.write(1, page(1), false);
        let ticket = device.begin_flush();
        device.write(1, page(2), false);
        device.write(2, page(3), false);
        device.end_flush(ticket);
        assert_eq!(device.durable(1), page(1));
        assert_eq!(device.current(1), page(2));
        assert_eq!(device.durable(2), None);
    }

    #[test]
    fn fua_is_durable_alone() {
        let mut device = Device::new();
        device.write(1, page(1), false);
        device.write(2, page(2), true);
        assert!(device.is_volatile(1));
        assert!(!device.is_volatile(2));
    }

    /// The dumb oracle: after a cut, each sector is one of the versions since the last flush, and
    /// over many cuts every version is seen.
    #[test]
    fn a_power_cut_leaves_any_version_since_the_flush_in_each_sector() {
        let mut seen = [false; 256];
        for ordinal in 0..200 {
            let mut device = Device::new();
            for byte in 1..=4 {
                device.write(0, page(byte), false);
                if byte == 2 {
                    let ticket = device.begin_flush();
                    device.end_flush(ticket);
                }
            }
            device.power_cut(&mut Rng::keyed(1, Stream::Power, ordinal));
            assert!(!device.is_volatile(0));
            let content = device.current(0).unwrap();
            for sector in content.chunks(CELL_LEN) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                seen[usize::from(sector[0])] = true;
            }
        }
        assert_eq!(
            (seen[1], seen[2], seen[3], seen[4]),
            (false, true, true, true)
        );
    }

    #[test]
    fn a_read_over_holes_and_pages_joins_them() {
        let mut device = Device::new();
        device.write(1, page(9), false);
        let bytes = device.read(0, 3);
        assert!(bytes[..PAGE_LEN].iter().all(|byte| *byte == 0));
        assert!(bytes[PAGE_LEN..2 * PAGE_LEN].iter().all(|byte| *byte == 9));
        assert!(bytes[2 * PAGE_LEN..].iter().all(|byte| *byte == 0));
    }
}
