//! When a resource goes back to the node it is preferred on.

use super::time::Duration;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;
const WEEK: u64 = 7 * DAY;

/// 1970-01-01 was a Thursday, the fourth day of a week that begins on Monday.
const EPOCH_IN_WEEK: u64 = 3 * DAY;

/// When it goes back by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Failback {
    /// Not by itself.
    Never,
    /// As soon as that node has everything and was well for a while.
    #[default]
    WhenSynced,
    /// The same, but only then.
    Window(Window),
}

/// A time of the week, in UTC: the two nodes must mean the same, wherever they are, and no hour of it
/// is missing or comes twice in spring and autumn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Bit n is the n-th day, Monday first; never 0.
    days: u8,
    /// Begins so many minutes after midnight.
    begin: u16,
    /// Lasts so many minutes, a day at most.
    minutes: u16,
}

impl Window {
    /// All days.
    pub const DAILY: u8 = 0x7f;
    /// How long a window is open that says only when it begins.
    pub const USUAL_MINUTES: u16 = 60;
    /// Minutes of a day.
    pub const DAY_MINUTES: u16 = 24 * 60;

    /// A window; `None` for one that never opens or does not fit into a day.
    #[must_use]
    pub fn new(days: u8, begin: u16, minutes: u16) -> Option<Self> {
        let days_known = days != 0 && days & !Self::DAILY == 0;
        let fits = begin < Self::DAY_MINUTES && (1..=Self::DAY_MINUTES).contains(&minutes);
        (days_known && fits).then_some(Self {
            days,
            begin,
            minutes,
        })
    }

    /// Its days, as bits, Monday first.
    #[must_use]
    pub fn days(&self) -> u8 {
        self.days
    }

    /// When it begins, in minutes after midnight.
    #[must_use]
    pub fn begin(&self) -> u16 {
        self.begin
    }

    /// How long it is open, in minutes.
    #[must_use]
    pub fn minutes(&self) -> u16 {
        self.minutes
    }

    /// How long until it is open, so many seconds after 1970-01-01 UTC; nothing if it is.
    #[must_use]
    pub fn opens_in(&self, unix_seconds: u64) -> Duration {
        let now = (unix_seconds % WEEK + EPOCH_IN_WEEK) % WEEK;
        let open_for = u64::from(self.minutes) * MINUTE;
        let days = (0..7_u64).filter(|day| self.days >> day & 1 == 1);
        let waits = days.map(|day| {
            let begin = day * DAY + u64::from(self.begin) * MINUTE;
            let since = (now + WEEK - begin) % WEEK;
            if since < open_for { 0 } else { WEEK - since }
        });
        Duration::from_secs(waits.min().unwrap_or(WEEK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21, a Saturday, 02:00:00 UTC.
    const SATURDAY_AT_TWO: u64 = 1_795_226_400;

    #[test]
    fn a_saturday_is_a_saturday() {
        let window = Window::new(1 << 5, 120, 60).unwrap();
        assert_eq!(window.opens_in(SATURDAY_AT_TWO), Duration::ZERO);
        assert_eq!(window.opens_in(SATURDAY_AT_TWO + 3599), Duration::ZERO);
        let week = Duration::from_secs(WEEK);
        let hour = Duration::from_secs(3600);
        assert_eq!(window.opens_in(SATURDAY_AT_TWO + 3600), week - hour);
        let second = Duration::from_secs(1);
        assert_eq!(window.opens_in(SATURDAY_AT_TWO - 1), second);
    }

    #[test]
    fn windows_that_never_open_or_are_no_times_are_none() {
        for (days, begin, minutes) in [(0, 0, 60), (0x80, 0, 60), (1, 1440, 60), (1, 0, 0)] {
            assert_eq!(Window::new(days, begin, minutes), None);
        }
        assert_eq!(Window::new(1, 0, 1441), None);
    }

    /// The slow way: counts minutes from a Monday until one lies in the window.
    fn oracle(window: Window, minute_of_week: u64) -> u64 {
        let inside = |minute: u64| {
            // Of a window that began today, or yesterday and lasts over midnight.
            (0..2).any(|back| {
                let day = (minute / 1440 + 7 - back) % 7;
                let from = u64::from(window.begin);
                let at = minute % 1440 + back * 1440;
                window.days >> day & 1 == 1
                    && (from..from + u64::from(window.minutes)).contains(&at)
            })
        };
        (0..10_080)
            .find(|wait| inside((minute_of_week + wait) % 10_080))
            .expect("each window opens within a week")
    }

    #[test]
    fn the_wait_is_what_counting_minutes_gives() {
        // 1970-01-05 was a Monday.
        let monday = 4 * DAY;
        for days in [1, 1 << 6, 0b110_0000, 0b000_1010, Window::DAILY] {
            for (begin, minutes) in [(0, 1440), (120, 60), (1439, 2), (1380, 1440), (0, 1)] {
                let window = Window::new(days, begin, minutes).unwrap();
                for minute in (0..10_080).step_by(127) {
                    let now = monday + 13 * WEEK + minute * MINUTE;
                    let wait = Duration::from_secs(oracle(window, minute) * MINUTE);
                    assert_eq!(window.opens_in(now), wait, "{window:?} minute {minute}");
                }
            }
        }
    }
}
