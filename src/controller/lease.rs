//! Leases and grants: who may rely on whose silence, for how long.
//!
//! The holder (an active Primary whose peer is in sync) serves only until *send time of an
//! acknowledged beacon + L*, on its own clock. The granter (the peer, the only possible successor)
//! promises no takeover until *receipt of that beacon + G*, on its own clock. No clock is compared
//! with another; only their rates are assumed to differ by at most [`RATE_ERROR_PERCENT`].

use core::time::Duration;

use replicator::types::{Instant, ViewNumber};
use thiserror::Error;

use super::rules::Rules;

/// How far a clock's rate may be off, in percent, each way: `CLOCK_MONOTONIC_RAW` is a plain
/// crystal (well under 0.1 %), the rest is margin.
pub const RATE_ERROR_PERCENT: u32 = 1;

/// The durations everything here is made of. Both nodes must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// h: time between beacons to the peer.
    pub beacon: Duration,
    /// S: without an answer for this long the peer is suspected and a Primary removes it.
    pub suspicion: Duration,
    /// L: a lease lasts this long from the send time of the acknowledged beacon.
    pub lease: Duration,
    /// σ: worst time from a gate check to its effect leaving the process.
    pub effect: Duration,
    /// G: a grant lasts this long from receipt.
    pub grant: Duration,
}

/// Why a timing is unsafe or useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TimingError {
    /// G is too short: two nodes could serve.
    #[error("the grant must last at least {needed:?} for this lease")]
    GrantTooShort {
        /// The shortest safe grant.
        needed: Duration,
    },
    /// S is too long: a Primary would freeze before it removes a dead peer.
    #[error("the suspicion time must leave half of the lease for the removal")]
    SuspicionTooLong,
    /// h is too long: one lost beacon would look like a lost peer.
    #[error("there must be at least three beacons in a suspicion time")]
    BeaconTooSlow,
}

impl Timing {
    /// A dedicated backplane: takeover in about 0.7 s.
    pub const FAST: Self = Self::millis(50, 200, 500, 100, 650);
    /// Takeover in about 3 s.
    pub const DEFAULT: Self = Self::millis(200, 1_000, 2_500, 250, 3_000);
    /// Shared or long links: takeover in about 10 s.
    pub const RELAXED: Self = Self::millis(500, 3_000, 8_000, 1_000, 10_000);

    const fn millis(beacon: u64, suspicion: u64, lease: u64, effect: u64, grant: u64) -> Self {
        Self {
            beacon: Duration::from_millis(beacon),
            suspicion: Duration::from_millis(suspicion),
            lease: Duration::from_millis(lease),
            effect: Duration::from_millis(effect),
            grant: Duration::from_millis(grant),
        }
    }

    /// The shortest grant that is safe for this lease: (L + σ)(1 + ρ)/(1 − ρ), rounded up.
    #[must_use]
    pub fn grant_min(&self) -> Duration {
        let effect_over = self.lease.saturating_add(self.effect);
        effect_over.saturating_mul(100 + RATE_ERROR_PERCENT) / (100 - RATE_ERROR_PERCENT)
            + Duration::from_nanos(1)
    }

    /// Checked when a controller is made.
    ///
    /// # Errors
    /// [`TimingError`] names the inequality that does not hold.
    pub fn check(&self) -> Result<(), TimingError> {
        let needed = self.grant_min();
        if self.grant < needed {
            return Err(TimingError::GrantTooShort { needed });
        }
        if self.suspicion * 2 > self.lease {
            return Err(TimingError::SuspicionTooLong);
        }
        if self.beacon * 3 > self.suspicion {
            return Err(TimingError::BeaconTooSlow);
        }
        Ok(())
    }
}

/// The holder's side: until when the peer certainly does not take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    until: Option<Instant>,
}

impl Lease {
    /// A beacon sent at `sent` was acknowledged without refusal. Returns the new end if it moved.
    pub fn note_ack(&mut self, sent: Instant, timing: &Timing) -> Option<Instant> {
        let until = sent.plus(timing.lease);
        if self.until.is_some_and(|old| old >= until) {
            return None;
        }
        self.until = Some(until);
        Some(until)
    }

    /// The activation it served is over.
    pub fn clear(&mut self) {
        self.until = None;
    }

    /// When it ends or ended; `None` if there was none in this activation.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether it holds now.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// The granter's side: until when this node must not take over, and which views it refuses.
///
/// Grant check and seal are one step on one value, so that no beacon can be acknowledged between
/// them (R22).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    until: Instant,
    seal: ViewNumber,
}

/// What a granter does with an active peer's beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantAnswer {
    /// No takeover for G from now on.
    Granted,
    /// The view is sealed: step down.
    Refused {
        /// The highest refused view.
        seal: ViewNumber,
    },
}

impl Grant {
    /// At start, whatever was granted before is unknown: a grant given just before the restart is
    /// assumed (R7). `seal` is the durable one.
    #[must_use]
    pub fn at_start(now: Instant, seal: ViewNumber, timing: &Timing, rules: &Rules) -> Self {
        let until = if rules.boot_wait {
            now.plus(timing.grant)
        } else {
            now
        };
        Self { until, seal }
    }

    /// The peer is active in `view` and asks to go on (R5).
    pub fn note_beacon(&mut self, now: Instant, view: ViewNumber, timing: &Timing) -> GrantAnswer {
        if view <= self.seal {
            return GrantAnswer::Refused { seal: self.seal };
        }
        self.until = self.until.max(now.plus(timing.grant));
        GrantAnswer::Granted
    }

    /// When the grant ends or ended.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether the peer may still rely on it.
    #[must_use]
    pub fn runs(&self, now: Instant) -> bool {
        now < self.until
    }

    /// The highest refused view.
    #[must_use]
    pub fn seal(&self) -> ViewNumber {
        self.seal
    }

    /// Refuses every view up to `view` from this very moment: its Primary said itself that it will
    /// never serve in it again, so nothing relies on a grant any more (R12).
    pub fn seal_handed_over(&mut self, view: ViewNumber, rules: &Rules) {
        if rules.seal {
            self.seal = self.seal.max(view);
        }
    }

    /// Refuses every view up to `view` from this very moment, if the grant is over. Returns
    /// whether it is.
    pub fn seal_if_over(&mut self, now: Instant, view: ViewNumber, rules: &Rules) -> bool {
        if self.runs(now) && rules.grant_outlives_lease {
            return false;
        }
        if rules.seal {
            self.seal = self.seal.max(view);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO.plus(Duration::from_millis(millis))
    }

    #[test]
    fn every_profile_is_safe() {
        for timing in [Timing::FAST, Timing::DEFAULT, Timing::RELAXED] {
            assert_eq!(timing.check(), Ok(()), "{timing:?}");
        }
    }

    #[test]
    fn a_grant_shorter_than_the_stretched_lease_is_refused() {
        let timing = Timing {
            grant: Duration::from_millis(600),
            ..Timing::FAST
        };
        // (500 + 100) * 101 / 99 is a little more than 612 ms.
        assert!(matches!(
            timing.check(),
            Err(TimingError::GrantTooShort { needed }) if needed > Duration::from_millis(612)
        ));
    }

    #[test]
    fn a_suspicion_that_leaves_no_time_to_remove_is_refused() {
        let timing = Timing {
            suspicion: Duration::from_millis(300),
            ..Timing::FAST
        };
        assert_eq!(timing.check(), Err(TimingError::SuspicionTooLong));
        let timing = Timing {
            beacon: Duration::from_millis(100),
            ..Timing::FAST
        };
        assert_eq!(timing.check(), Err(TimingError::BeaconTooSlow));
    }

    #[test]
    fn a_lease_counts_from_the_send_time_and_never_shrinks() {
        let mut lease = Lease::default();
        assert!(!lease.holds(at(0)));
        assert_eq!(lease.note_ack(at(100), &Timing::FAST), Some(at(600)));
        assert_eq!(lease.note_ack(at(50), &Timing::FAST), None);
        assert!(lease.holds(at(599)) && !lease.holds(at(600)));
    }

    #[test]
    fn with_the_worst_clocks_the_last_effect_precedes_the_takeover() {
        // The holder's clock runs 1 % slow, the granter's 1 % fast. Real time in nanoseconds.
        for timing in [Timing::FAST, Timing::DEFAULT, Timing::RELAXED] {
            let last_effect = (timing.lease + timing.effect).as_nanos() * 100 / 99;
            let takeover = timing.grant.as_nanos() * 100 / 101;
            assert!(last_effect < takeover, "{timing:?}");
        }
    }

    #[test]
    fn a_restarted_granter_waits_a_whole_grant() {
        let grant = Grant::at_start(at(1_000), ViewNumber::NONE, &Timing::FAST, &Rules::ALL);
        assert!(grant.runs(at(1_649)) && !grant.runs(at(1_650)));
    }

    #[test]
    fn a_seal_waits_for_the_grant_and_refuses_at_once() {
        let mut grant = Grant::at_start(at(0), ViewNumber::NONE, &Timing::FAST, &Rules::ALL);
        assert_eq!(
            grant.note_beacon(at(600), ViewNumber(4), &Timing::FAST),
            GrantAnswer::Granted
        );
        assert!(!grant.seal_if_over(at(1_249), ViewNumber(4), &Rules::ALL));
        assert!(grant.seal_if_over(at(1_250), ViewNumber(4), &Rules::ALL));
        let refused = GrantAnswer::Refused {
            seal: ViewNumber(4),
        };
        assert_eq!(
            grant.note_beacon(at(1_250), ViewNumber(4), &Timing::FAST),
            refused
        );
        assert_eq!(
            grant.note_beacon(at(1_250), ViewNumber(3), &Timing::FAST),
            refused
        );
        assert_eq!(
            grant.note_beacon(at(1_250), ViewNumber(5), &Timing::FAST),
            GrantAnswer::Granted
        );
    }
}
