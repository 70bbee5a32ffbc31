//! Which states were seen: 64-bit fingerprints in one open table. Two states with one fingerprint
//! would hide one of them; with ten million states the chance of any is below 1 in 300,000.

/// A set of non-zero fingerprints.
#[derive(Debug)]
pub(super) struct Visited {
    slots: Vec<u64>,
    len: usize,
}

impl Visited {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![0; 1 << 16],
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether it was not there before.
    pub(super) fn insert(&mut self, fingerprint: u64) -> bool {
        if self.len * 10 >= self.slots.len() * 7 {
            self.grow();
        }
        let inserted = place(&mut self.slots, fingerprint.max(1));
        self.len += usize::from(inserted);
        inserted
    }

    fn grow(&mut self) {
        let mut larger = vec![0; self.slots.len() * 2];
        for fingerprint in self.slots.iter().filter(|slot| **slot != 0) {
            place(&mut larger, *fingerprint);
        }
        self.slots = larger;
    }
}

fn place(slots: &mut [u64], fingerprint: u64) -> bool {
    let mask = slots.len() - 1;
    let wide = usize::try_from(fingerprint & u64::from(u32::MAX)).expect("32 bits fit");
    let mut at = wide & mask;
    loop {
        match slots[at] {
            0 => {
                slots[at] = fingerprint;
                return true;
            }
            there if there == fingerprint => return false,
            _ => at = (at + 1) & mask,
        }
    }
}

/// Fingerprint of anything hashable: two independent multiply-rotate lanes, mixed at the end. The
/// standard hasher would do, at a third of the speed.
#[derive(Debug)]
pub(super) struct Fingerprint {
    one: u64,
    two: u64,
}

impl Fingerprint {
    pub(super) fn of(value: &impl core::hash::Hash) -> u64 {
        let mut hasher = Self {
            one: 0x243f_6a88_85a3_08d3,
            two: 0x1319_8a2e_0370_7344,
        };
        value.hash(&mut hasher);
        core::hash::Hasher::finish(&hasher)
    }

    fn word(&mut self, word: u64) {
        self.one = (self.one ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
        self.two = (self.two.rotate_left(23) ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
}

impl core::hash::Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.word(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn finish(&self) -> u64 {
        let mut mixed = self.one ^ self.two.rotate_left(32);
        mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fingerprint_is_new_once() {
        let mut visited = Visited::new();
        // More than the table begins with, so that it grows; each thirty collide in the low bits too.
        let fingerprints = (1..60_000_u64).map(|n| n << 32 | (n % 2048 * 32));
        for fingerprint in fingerprints.clone() {
            assert!(visited.insert(fingerprint));
        }
        for fingerprint in fingerprints {
            assert!(!visited.insert(fingerprint));
        }
        assert_eq!(visited.len(), 59_999);
    }

    #[test]
    fn neighbours_have_different_fingerprints() {
        let mut seen = Visited::new();
        for first in 0..300_u64 {
            for second in 0..300_u64 {
                assert!(seen.insert(Fingerprint::of(&(first, second, 0_u8))));
            }
        }
    }
}
