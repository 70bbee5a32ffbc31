//! The one place of the tools that reads a clock or waits.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a state is looked at while waiting for it.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// Now, on the monotonic clock.
#[allow(
    clippy::disallowed_methods,
    reason = "deadlines of people, and the demo's stop-watch"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A point in time to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `wait` from now; `None` never comes.
    pub(crate) fn after(wait: Option<Duration>) -> Self {
        // A wait beyond the clock's range never ends either.
        Self(wait.and_then(|wait| now().checked_add(wait)))
    }

    /// Whether it is over.
    pub(crate) fn is_over(self) -> bool {
        self.0.is_some_and(|end| now() >= end)
    }
}

/// Waits: between two looks at something, until a deadline, never in the hope that it happened.
#[allow(clippy::disallowed_methods, reason = "the pause between two looks")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Milliseconds since 1970-01-01 UTC.
#[allow(clippy::disallowed_methods, reason = "time stamps for people")]
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
