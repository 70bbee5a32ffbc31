//! The voter store on the root disk: records that are durable when the write says so.
//!
//! One writer thread, so records become durable in order. A crash in the middle of a write leaves
//! the old or the new record (two slots, crc), never anything else.

use std::collections::{BTreeMap, VecDeque};

use crate::rng::Rng;

/// A store of records `V` under keys `K`.
#[derive(Clone, Debug)]
pub struct Store<K, V> {
    durable: BTreeMap<K, V>,
    pending: VecDeque<(K, V)>,
}

impl<K: Ord + Clone, V: Clone> Default for Store<K, V> {
    fn default() -> Self {
        Self {
            durable: BTreeMap::new(),
            pending: VecDeque::new(),
        }
    }
}

impl<K: Ord + Clone, V: Clone> Store<K, V> {
    /// Everything durable.
    #[must_use]
    pub fn durable(&self) -> &BTreeMap<K, V> {
        &self.durable
    }

    /// A write is handed to the store's thread.
    pub fn begin(&mut self, key: K, record: V) {
        self.pending.push_back((key, record));
    }

    /// The oldest write is durable.
    ///
    /// # Panics
    /// If there is none.
    pub fn end(&mut self) {
        let (key, record) = self.pending.pop_front().expect("a write was begun");
        self.durable.insert(key, record);
    }

    /// The oldest write failed; the record is the old one.
    ///
    /// # Panics
    /// If there is none.
    pub fn fail(&mut self) {
        self.pending.pop_front().expect("a write was begun");
    }

    /// The process or the power is gone: of the writes not reported, a prefix is durable.
    pub fn crash(&mut self, rng: &mut Rng) {
        while rng.chance(500)
            && let Some((key, record)) = self.pending.pop_front()
        {
            self.durable.insert(key, record);
        }
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn a_crash_leaves_a_prefix_of_what_was_begun() {
        let mut seen = [false; 4];
        for ordinal in 0..100 {
            let mut store = Store::default();
            store.begin(0, 1);
            store.end();
            store.begin(0, 2);
            store.begin(0, 3);
            store.crash(&mut Rng::keyed(1, Stream::Store, ordinal));
            seen[store.durable()[&0]] = true;
        }
        assert_eq!(seen, [false, true, true, true]);
    }
}
