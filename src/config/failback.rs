//! `failback` as people write it: `never`, `when-synced`, or a time of the week in UTC.
//!
//! A time is a part of what systemd calls a calendar event: days, if any, and an hour, with an end if
//! the window is not to last one hour: `Sat 02:00`, `Mon..Fri 22:00-04:00`, `03:30`.

use replicator::types::{Failback, Window};

use super::units::did_you_mean;

const NEVER: &str = "never";
const WHEN_SYNCED: &str = "when-synced";

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// Reads it; an error is a hint for people.
pub(super) fn parse_failback(text: &str) -> Result<Failback, String> {
    match text {
        NEVER => return Ok(Failback::Never),
        WHEN_SYNCED => return Ok(Failback::WhenSynced),
        _ => {}
    }
    let is_time = text.contains(':');
    if !is_time {
        return Err(match did_you_mean(text, [NEVER, WHEN_SYNCED]) {
            Some(close) => format!("did you mean \"{close}\"?"),
            None => "write \"never\", \"when-synced\" or a time such as \"Sat 02:00\"".to_owned(),
        });
    }
    let text = text.strip_suffix(" UTC").unwrap_or(text);
    let (days, hours) = match text.trim().rsplit_once(' ') {
        Some((days, hours)) => (parse_days(days)?, hours),
        None => (Window::DAILY, text.trim()),
    };
    let (begin, end) = match hours.split_once('-') {
        Some((begin, end)) => (parse_clock(begin)?, Some(parse_clock(end)?)),
        None => (parse_clock(hours)?, None),
    };
    let minutes = match end {
        None => Window::USUAL_MINUTES,
        Some(end) if end > begin => end - begin,
        Some(end) => end + Window::DAY_MINUTES - begin,
    };
    let window = Window::new(days, begin, minutes).filter(|_| end != Some(begin));
    window
        .map(Failback::Window)
        .ok_or_else(|| "write when the window begins and ends: \"Sat 02:00-04:00\"".to_owned())
}

fn parse_days(text: &str) -> Result<u8, String> {
    let mut days = 0;
    for item in text.split(',') {
        let item = item.trim();
        let (first, last) = match item.split_once("..") {
            Some((first, last)) => (parse_day(first)?, parse_day(last)?),
            None => (parse_day(item)?, parse_day(item)?),
        };
        let mut day = first;
        days |= 1 << day;
        while day != last {
            day = (day + 1) % 7;
            days |= 1 << day;
        }
    }
    Ok(days)
}

fn parse_day(text: &str) -> Result<u8, String> {
    let found = (0..7_u8).find(|day| {
        let at = usize::from(*day);
        [DAYS[at], LONG_DAYS[at]]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(text.trim()))
    });
    found.ok_or_else(|| {
        let days = DAYS.join(", ");
        format!("days are {days}; several: \"Sat,Sun\" or \"Mon..Fri\"")
    })
}

/// Minutes after midnight.
fn parse_clock(text: &str) -> Result<u16, String> {
    let hint = || format!("write hours and minutes such as \"02:00\", not {text:?}");
    let (hours, minutes) = text.trim().split_once(':').ok_or_else(hint)?;
    let number = |part: &str, digits: core::ops::RangeInclusive<usize>| {
        let plain = digits.contains(&part.len()) && part.bytes().all(|it| it.is_ascii_digit());
        part.parse::<u16>().ok().filter(|_| plain)
    };
    let hours = number(hours, 1..=2).ok_or_else(hint)?;
    let minutes = number(minutes, 2..=2).ok_or_else(hint)?;
    let at = hours * 60 + minutes;
    if minutes > 59 || at > Window::DAY_MINUTES {
        return Err(hint());
    }
    Ok(at)
}

/// As short as it can be written exactly.
#[must_use]
pub fn failback_text(failback: Failback) -> String {
    match failback {
        Failback::Never => NEVER.to_owned(),
        Failback::WhenSynced => WHEN_SYNCED.to_owned(),
        Failback::Window(window) => window_text(window),
    }
}

fn window_text(window: Window) -> String {
    let clock = |at: u16| format!("{:02}:{:02}", at / 60, at % 60);
    let mut text = days_text(window.days());
    text += &clock(window.begin());
    if window.minutes() != Window::USUAL_MINUTES {
        let end = window.begin() + window.minutes();
        let end = match end {
            Window::DAY_MINUTES => end,
            _ => end % Window::DAY_MINUTES,
        };
        text.push('-');
        text += &clock(end);
    }
    text
}

/// With a space behind; nothing for every day.
fn days_text(days: u8) -> String {
    if days == Window::DAILY {
        return String::new();
    }
    let mut items = Vec::new();
    let mut day = 0_usize;
    while day < 7 {
        let run = (day..7).take_while(|it| days >> it & 1 == 1).count();
        match run {
            0 => {}
            1 | 2 => items.extend(DAYS[day..day + run].iter().map(|it| (*it).to_owned())),
            _ => items.push(format!("{}..{}", DAYS[day], DAYS[day + run - 1])),
        }
        day += run.max(1);
    }
    format!("{} ", items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: u8, begin: u16, minutes: u16) -> Failback {
        Failback::Window(Window::new(days, begin, minutes).unwrap())
    }

    #[test]
    fn failbacks_read_as_written() {
        let written = [
            ("never", Failback::Never),
            ("when-synced", Failback::WhenSynced),
            ("Sat 02:00", window(1 << 5, 120, 60)),
            ("saturday 2:00 UTC", window(1 << 5, 120, 60)),
            ("03:30", window(Window::DAILY, 210, 60)),
            ("Mon..Fri 22:00-04:00", window(0b1_1111, 1320, 360)),
            ("Sat,Sun 00:00-24:00", window(0b110_0000, 0, 1440)),
            ("Fri..Mon 01:15-01:45", window(0b111_0001, 75, 30)),
        ];
        for (text, failback) in written {
            assert_eq!(parse_failback(text), Ok(failback), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_a_hint() {
        for text in [
            "",
            "sometimes",
            "Sat",
            "24:01",
            "2:0",
            "02:60",
            "Sat 02:00-02:00",
            "Sat02:00",
            "Caturday 02:00",
            "Sat 02:00:00",
            ":",
            "Sat +2:00",
            "Mon.. 02:00",
            "24:00",
            "é:00",
        ] {
            assert!(parse_failback(text).is_err(), "{text}");
        }
        let close = parse_failback("when-sync").unwrap_err();
        assert!(close.contains("when-synced"), "{close}");
    }

    #[test]
    fn every_window_reads_back_as_it_is_written() {
        for days in 1..=Window::DAILY {
            for (begin, minutes) in [(0, 1440), (120, 60), (1439, 2), (1380, 60), (1, 1439)] {
                let Some(one) = Window::new(days, begin, minutes) else {
                    continue;
                };
                let failback = Failback::Window(one);
                let text = failback_text(failback);
                let read = parse_failback(&text);
                // A whole day from any other hour than midnight ends where it begins.
                let ambiguous = minutes == Window::DAY_MINUTES && begin != 0;
                assert!(ambiguous || read == Ok(failback), "{text}: {read:?}");
            }
        }
    }
}
