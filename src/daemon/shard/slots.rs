//! Connections and requests by key.

/// Names one stay of one value in its [`Slots`]. A place used again has another generation, so
/// that a late completion finds nothing instead of a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Key {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_u64(number: u64) -> Self {
        let [g0, g1, g2, g3, i0, i1, i2, i3] = number.to_be_bytes();
        Self {
            index: u32::from_be_bytes([i0, i1, i2, i3]),
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
        }
    }
}

/// A slab with generations.
#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                value: None,
            });
            u32::try_from(self.places.len() - 1).expect("every kind of value here is capped")
        });
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1).max(1);
        place.value = Some(value);
        Key {
            index,
            generation: place.generation,
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        place
            .value
            .as_ref()
            .filter(|_| place.generation == key.generation)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        place
            .value
            .as_mut()
            .filter(|_| place.generation == key.generation)
    }

    /// The key of whatever is at `index` now.
    pub(super) fn key_at(&self, index: u32) -> Option<Key> {
        let place = self.places.get(index as usize)?;
        place.value.as_ref().map(|_| Key {
            index,
            generation: place.generation,
        })
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        self.free.push(key.index);
        self.places[key.index as usize].value.take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..).zip(&self.places).filter_map(|(index, place)| {
            let key = Key {
                index,
                generation: place.generation,
            };
            place.value.as_ref().map(|value| (key, value))
        })
    }

    /// Keys of the values that satisfy `wanted`, collected so that they can then be changed.
    pub(super) fn keys_where(&self, wanted: impl Fn(&T) -> bool) -> Vec<Key> {
        self.iter()
            .filter(|(_, value)| wanted(value))
            .map(|(key, _)| key)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_value_without_finding_the_next_one() {
        let mut slots = Slots::new();
        let first = slots.insert("a");
        assert_eq!(Key::from_u64(first.to_u64()), first);
        assert_eq!(slots.remove(first), Some("a"));
        assert_eq!(slots.key_at(first.index), None);
        let second = slots.insert("b");
        assert_eq!(second.index, first.index);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut "b"));
        assert_eq!(slots.key_at(second.index), Some(second));
        assert_eq!(slots.keys_where(|_| true), [second]);
    }
}
