//! The deadlines of guests, from those of leases.

use core::time::Duration;

use crate::controller::lease::{RATE_ERROR_PERCENT, Timing};

/// What the holder's and the successor's side agree on without talking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTiming {
    /// From the end of the lease until the guest is frozen: a lease that returns at once is not
    /// noticed.
    pub freeze_after: Duration,
    /// From the end of the lease until it is killed. The rest of κ is for the kernel to do it in.
    pub kill_after: Duration,
    /// From a takeover until the guest is started: κ, stretched by what two clocks may differ.
    pub start_after: Duration,
}

impl GuestTiming {
    /// Takeovers that are bound by `timing` leave the old host's guest this much later: κ is two
    /// fifths of the lease, 0.2 s, 1 s and 3.2 s for the three profiles.
    #[must_use]
    pub fn of(timing: &Timing) -> Self {
        let kappa = timing.lease * 2 / 5;
        Self {
            freeze_after: kappa / 4,
            kill_after: kappa / 2,
            start_after: kappa * (100 + RATE_ERROR_PERCENT) / (100 - RATE_ERROR_PERCENT)
                + Duration::from_nanos(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_worst_clocks_half_of_kappa_is_left_for_the_kernel() {
        for timing in [Timing::FAST, Timing::DEFAULT, Timing::RELAXED] {
            let guests = GuestTiming::of(&timing);
            // The holder's clock runs 1 % slow, the successor's 1 % fast. Real nanoseconds.
            let killed = (timing.lease + timing.effect + guests.kill_after).as_nanos() * 100 / 99;
            let started = (timing.grant + guests.start_after).as_nanos() * 100 / 101;
            let left = started - killed;
            assert!(
                left >= guests.kill_after.as_nanos() * 99 / 100,
                "{timing:?}"
            );
            assert!(guests.freeze_after < guests.kill_after);
        }
    }
}
