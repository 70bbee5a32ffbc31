//! Where time and randomness come from. Nothing else reads them.

use std::fs;
use std::io::{self, Read};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::types::Instant;

/// Now, on this node's `CLOCK_MONOTONIC_RAW`: NTP does not slew it, so its rate is the crystal's.
///
/// # Panics
/// If the kernel does not know the clock (before Linux 2.6.28).
#[must_use]
pub fn now() -> Instant {
    let elapsed = read(ClockId::CLOCK_MONOTONIC_RAW);
    Instant(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Milliseconds since 1970-01-01 UTC, for people only: this clock may jump.
#[must_use]
pub fn unix_millis() -> u64 {
    u64::try_from(read(ClockId::CLOCK_REALTIME).as_millis()).unwrap_or(u64::MAX)
}

/// Time since this machine booted, suspensions included: what start times of processes are told in.
#[must_use]
pub fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Time this machine has spent suspended since it booted. When it has grown between two looks,
/// the machine slept in between, `now()` did not count that, and every lease and grant is void.
/// Too low by the time between reading two clocks, never too high.
#[must_use]
pub fn suspended() -> Duration {
    let since_boot = read(ClockId::CLOCK_BOOTTIME);
    since_boot.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

/// A growth of [`suspended`] that is a suspension and not the time between reading two clocks.
pub const SUSPENSION_MIN: Duration = Duration::from_millis(20);

/// Notices that the machine slept. A look that was interrupted between its two clocks shows too
/// little and is made good by the next, so the most that was ever seen is what counts.
#[derive(Clone, Copy, Debug)]
pub struct SuspendWatch {
    seen: Duration,
}

impl SuspendWatch {
    /// Looks that the first figure is the best of: all of them interrupted is no coincidence.
    const FIRST_LOOKS: usize = 8;

    /// Watches from now on; `suspended` is [`suspended`] or a test's.
    pub fn new(suspended: impl Fn() -> Duration) -> Self {
        let looks = (0..Self::FIRST_LOOKS).map(|_| suspended());
        Self {
            seen: looks.max().unwrap_or_default(),
        }
    }

    /// How long it slept since the last look, if it did.
    pub fn look(&mut self, suspended: Duration) -> Option<Duration> {
        let slept = suspended.saturating_sub(self.seen);
        self.seen = self.seen.max(suspended);
        (slept >= SUSPENSION_MIN).then_some(slept)
    }
}

fn read(clock: ClockId) -> Duration {
    Duration::from(clock_gettime(clock).expect("the clock exists on every supported kernel"))
}

/// Random id of this boot of the machine: the same for every process until the next boot.
///
/// # Errors
/// When `/proc` is not mounted or holds no UUID.
pub fn boot_id() -> io::Result<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    parse_uuid(text.trim()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("boot id {text:?} is not a UUID"),
        )
    })
}

fn parse_uuid(text: &str) -> Option<u128> {
    let digits: String = text.split('-').collect();
    (digits.len() == 32)
        .then(|| u128::from_str_radix(&digits, 16).ok())
        .flatten()
}

/// A random number, never 0 (0 means "none" in every id).
///
/// # Errors
/// When `/dev/urandom` cannot be read.
pub fn random_id() -> io::Result<u128> {
    let mut source = fs::File::open("/dev/urandom")?;
    loop {
        let mut bytes = [0; 16];
        source.read_exact(&mut bytes)?;
        match u128::from_le_bytes(bytes) {
            0 => {}
            id => return Ok(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards() {
        let before = now();
        assert!(now() >= before);
        assert!(before > Instant::ZERO);
    }

    #[test]
    fn two_looks_in_a_row_are_no_suspension() {
        let mut watch = SuspendWatch::new(suspended);
        assert_eq!(watch.look(suspended()), None);
    }

    #[test]
    fn a_look_that_was_interrupted_makes_no_suspension_of_the_next() {
        let second = Duration::from_secs(1);
        let mut watch = SuspendWatch::new(|| 5 * second);
        assert_eq!(watch.look(4 * second), None, "a second between two clocks");
        assert_eq!(watch.look(5 * second), None);
        assert_eq!(watch.look(6 * second), Some(second));
        assert_eq!(watch.look(6 * second), None, "once");
    }

    #[test]
    fn the_boot_id_stays_and_random_ids_differ() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(random_id().unwrap(), random_id().unwrap());
        assert_eq!(parse_uuid("0-1"), None);
    }
}
