//! True time of the simulated world, and each node's idea of it.

use replicator::types::Instant;
use replicator::types::time::Duration;

/// Nanoseconds since the world began. Nodes never see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimTime(pub u64);

impl SimTime {
    /// This moment plus `nanos`.
    #[must_use]
    pub fn plus(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

/// One microsecond in the world's unit.
pub const MICROS: u64 = 1_000;
/// One millisecond in the world's unit.
pub const MILLIS: u64 = 1_000_000;
/// One second in the world's unit.
pub const SECS: u64 = 1_000_000_000;

/// A node's monotonic clock: an arbitrary base at boot and a constant rate error.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    booted: SimTime,
    base: u64,
    /// Parts per million, inside the promised bound of 1 %.
    rate_ppm: i64,
}

impl NodeClock {
    /// A clock that shows `base` at `booted`.
    #[must_use]
    pub fn new(booted: SimTime, base: u64, rate_ppm: i64) -> Self {
        assert!(rate_ppm.abs() <= 10_000, "{rate_ppm} ppm is beyond rho");
        Self {
            booted,
            base,
            rate_ppm,
        }
    }

    /// What it shows at `now`.
    #[must_use]
    pub fn read(&self, now: SimTime) -> Instant {
        let elapsed = i128::from(now.0 - self.booted.0);
        let shown = elapsed + elapsed * i128::from(self.rate_ppm) / 1_000_000;
        Instant(self.base + u64::try_from(shown).expect("a rate error below 100 %"))
    }

    /// The first true moment at which it shows `local` or later; never before `now`.
    #[must_use]
    pub fn when(&self, local: Instant, now: SimTime) -> SimTime {
        let shown = i128::from(local.0.saturating_sub(self.base));
        let scale = 1_000_000 + i128::from(self.rate_ppm);
        let elapsed = (shown * 1_000_000).div_euclid(scale) + 1;
        let at = i128::from(self.booted.0) + elapsed;
        let mut at = SimTime(u64::try_from(at).unwrap_or(u64::MAX)).max(now);
        // Rounding may be off by one step either way; the caller relies on "or later".
        while at.0 != u64::MAX && self.read(at) < local {
            at = at.plus(1);
        }
        at
    }
}

/// A duration in the world's unit.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_on_a_skewed_clock_is_reached_exactly_when_the_clock_shows_it() {
        for rate_ppm in [-10_000, -37, 0, 1, 10_000] {
            let clock = NodeClock::new(SimTime(5 * SECS), 777, rate_ppm);
            for delta in [999, 1_000_003, 5 * SECS + 7] {
                let local = Instant(777 + delta);
                let at = clock.when(local, SimTime(5 * SECS));
                assert!(clock.read(at) >= local, "{rate_ppm} {delta}");
                assert!(clock.read(SimTime(at.0 - 3)) < local, "{rate_ppm} {delta}");
            }
        }
    }

    #[test]
    fn a_deadline_in_the_past_is_now() {
        let clock = NodeClock::new(SimTime(0), 1_000, 0);
        assert_eq!(clock.when(Instant(5), SimTime(50)), SimTime(50));
    }
}
