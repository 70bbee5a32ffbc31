//! Randomness as a function: every draw comes from a key, none from a shared stream.
//!
//! A generator is made from `(seed, stream, ordinal)`. Taking one item out of a plan therefore
//! leaves the draws of all others as they were, which is what makes shrinking work.

/// What a generator is for; part of its key. The numbers only have to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Options of the plan.
    Options = 1,
    /// Workload items.
    Ops = 2,
    /// Fault items.
    Faults = 3,
    /// Datagram fates.
    Datagram = 4,
    /// Delays of connections.
    Link = 5,
    /// Disk latencies and errors.
    Disk = 6,
    /// What survives a power cut.
    Power = 7,
    /// Voter-store latencies.
    Store = 8,
    /// Random identities.
    Identity = 9,
    /// Queues between a node's threads.
    Thread = 10,
    /// Client behaviour.
    Client = 11,
}

/// `SplitMix64` (Steele, Lea, Flood 2014): one multiplication chain, passes BigCrush, any 64-bit
/// state is a good one. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator for one key.
    #[must_use]
    pub fn keyed(seed: u64, stream: Stream, ordinal: u64) -> Self {
        let state = mix(seed ^ 0x9e37_79b9_7f4a_7c15);
        let state = mix(state ^ (stream as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(mix(state ^ ordinal))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 128 bits, never zero (zero means "none" in every identity).
    pub fn next_id(&mut self) -> u128 {
        (u128::from(self.next_u64()) << 64 | u128::from(self.next_u64())).max(1)
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0. The bias is below 2^-32 for the bounds in use.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the high half of a product with a 64-bit bound")
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of the items.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        let index = self.below(items.len() as u64);
        items[usize::try_from(index).expect("an index below a length")]
    }

    /// Between `low` and `high`, each order of magnitude as likely as the next.
    pub fn log_between(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(1));
        let bits = u64::from(high.ilog2() - low.ilog2());
        let top = low << self.between(0, bits);
        self.between(low, high).min(self.between(top, top * 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_draws_the_same_numbers_and_another_key_others() {
        let draw = |ordinal| Rng::keyed(7, Stream::Ops, ordinal).next_u64();
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert_ne!(draw(3), Rng::keyed(7, Stream::Faults, 3).next_u64());
    }

    #[test]
    fn draws_stay_inside_their_bounds_and_reach_both_ends() {
        let mut rng = Rng::keyed(1, Stream::Ops, 0);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.between(3, 6)).collect();
        assert!(drawn.iter().all(|value| (3..=6).contains(value)));
        assert!((3..=6).all(|value| drawn.contains(&value)));
        assert!((0..1000).all(|_| (1..=100).contains(&rng.log_between(1, 100))));
    }
}
