//! Reproducible randomness: back-off and the ids of new lineages. Seeded by the daemon.

use core::time::Duration;

/// SplitMix64: two runs with one seed draw the same.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
    salt: u64,
}

impl Random {
    pub(super) fn new(seed: u128) -> Self {
        let (low, high) = (seed & u128::from(u64::MAX), seed >> 64);
        let half = |bits| u64::try_from(bits).expect("both halves have 64 bits");
        Self {
            state: half(low),
            salt: half(high),
        }
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31) ^ self.salt
    }

    /// Never 0, which means "none" in ids.
    pub(super) fn next_u128(&mut self) -> u128 {
        let drawn = u128::from(self.next_u64()) << 64 | u128::from(self.next_u64());
        drawn.max(1)
    }

    /// Evenly from nothing to just under `end`.
    pub(super) fn below(&mut self, end: Duration) -> Duration {
        let nanos = u64::try_from(end.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.next_u64() % nanos)
    }
}
