//! Time as an input.

pub use core::time::Duration;

/// Nanoseconds of a node's monotonic clock (`CLOCK_MONOTONIC_RAW` in production: NTP does not slew
/// it, so its *rate* can be bounded). Only differences on one node mean anything; never persisted,
/// never compared across nodes. `std::time::Instant` is banned in pure modules because it can only
/// be made by reading a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment the clock started.
    pub const ZERO: Self = Self(0);
    /// Later than any deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// This moment plus `duration`, saturating at [`Instant::NEVER`].
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// Time since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The earlier of two optional deadlines.
#[must_use]
pub fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_to_the_end_of_time_stays_there() {
        assert_eq!(Instant::NEVER.plus(Duration::from_secs(1)), Instant::NEVER);
        assert_eq!(Instant(5).since(Instant(9)), Duration::ZERO);
    }

    #[test]
    fn no_deadline_is_later_than_any() {
        assert_eq!(earliest(None, Some(Instant(3))), Some(Instant(3)));
        assert_eq!(
            earliest(Some(Instant(2)), Some(Instant(3))),
            Some(Instant(2))
        );
    }
}
