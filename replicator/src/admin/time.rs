//! Points in time as text. The clock is read elsewhere.

/// `2026-11-21T20:04:11Z` from milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn rfc3339_seconds(unix_millis: u64) -> String {
    let second = unix_millis / 1000;
    let (year, month, day) = civil(second / 86_400);
    let of_day = second % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `2026-11-21T20:04:11.402Z` from milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn rfc3339_millis(unix_millis: u64) -> String {
    let mut text = rfc3339_seconds(unix_millis);
    text.pop();
    text + &format!(".{:03}Z", unix_millis % 1000)
}

/// Year, month (1-12) and day (1-31) of a day counted from 1970-01-01, by the proleptic Gregorian
/// calendar: years begin in March, so that the leap day is the last of its year.
fn civil(day: u64) -> (u64, u64, u64) {
    const DAYS_FROM_0000_03_01: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let day = day + DAYS_FROM_0000_03_01;
    let era = day / DAYS_OF_400_YEARS;
    let of_era = day % DAYS_OF_400_YEARS;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants_have_their_known_names() {
        assert_eq!(rfc3339_seconds(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_seconds(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(
            rfc3339_millis(1_795_291_451_402),
            "2026-11-21T20:04:11.402Z"
        );
        assert_eq!(rfc3339_seconds(4_107_542_399_000), "2100-02-28T23:59:59Z");
        assert_eq!(rfc3339_seconds(4_107_542_400_000), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn the_largest_input_does_not_overflow() {
        assert!(rfc3339_millis(u64::MAX).ends_with('Z'));
    }
}
