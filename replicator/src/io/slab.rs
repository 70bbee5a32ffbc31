//! Where operations in flight live.

use super::op::OpKey;

/// Values by key, O(1). A key names one stay of one value: when a place is used again its keys
/// differ, so that a late completion or cancellation finds nothing instead of a stranger.
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    count: usize,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn insert(&mut self, value: T) -> OpKey {
        self.count += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                value: None,
            });
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 operations in flight")
        });
        let place = &mut self.places[index as usize];
        // Generation 0 is never given out, so that key 0 names nothing.
        place.generation = place.generation.wrapping_add(1).max(1);
        place.value = Some(value);
        OpKey(u64::from(place.generation) << 32 | u64::from(index))
    }

    pub(super) fn get(&self, key: OpKey) -> Option<&T> {
        let place = self.places.get(index_of(key) as usize)?;
        place
            .value
            .as_ref()
            .filter(|_| u64::from(place.generation) == key.0 >> 32)
    }

    pub(super) fn get_mut(&mut self, key: OpKey) -> Option<&mut T> {
        self.place(key)?.value.as_mut()
    }

    pub(super) fn remove(&mut self, key: OpKey) -> Option<T> {
        let value = self.place(key)?.value.take()?;
        self.count -= 1;
        self.free.push(index_of(key));
        Some(value)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = OpKey> {
        self.places
            .iter()
            .zip(0_u64..)
            .filter_map(|(place, index)| {
                place
                    .value
                    .as_ref()
                    .map(|_| OpKey(u64::from(place.generation) << 32 | index))
            })
    }

    fn place(&mut self, key: OpKey) -> Option<&mut Place<T>> {
        let place = self.places.get_mut(index_of(key) as usize)?;
        (u64::from(place.generation) == key.0 >> 32).then_some(place)
    }
}

fn index_of(key: OpKey) -> u32 {
    u32::try_from(key.0 & u64::from(u32::MAX)).expect("masked to 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_an_earlier_stay_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(index_of(first), index_of(second), "the place is used again");
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.keys().collect::<Vec<_>>(), [second]);
        assert_eq!(slab.get_mut(OpKey(0)), None);
    }
}
