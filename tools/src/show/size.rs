//! Sizes, rates and times for people: three significant digits or so, binary units.

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `40.0 GiB`, `212 MiB`, `512 B`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let (number, unit) = scaled(bytes, unit_of(bytes));
    format!("{number} {unit}")
}

/// The same as one word: `40.0GiB`.
#[must_use]
pub fn size_word(bytes: u64) -> String {
    size(bytes).replace(' ', "")
}

/// `14.9/40.0 GiB`: both in the unit of the whole.
#[must_use]
pub fn part_of(done: u64, total: u64) -> String {
    let unit = unit_of(total);
    let decimals = usize::from(unit > 0);
    format!(
        "{:.decimals$}/{:.decimals$} {}",
        in_unit(done, unit),
        in_unit(total, unit),
        UNITS[unit]
    )
}

/// `2m01s`, `41s`, `3h07m`, `2d04h`.
#[must_use]
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn scaled(bytes: u64, unit: usize) -> (String, &'static str) {
    let number = in_unit(bytes, unit);
    let decimals = usize::from(unit > 0 && number < 99.95);
    (format!("{number:.decimals$}"), UNITS[unit])
}

/// The largest unit of which there is at least one.
fn unit_of(bytes: u64) -> usize {
    (1..UNITS.len())
        .rev()
        .find(|unit| bytes >> (10 * unit) > 0)
        .unwrap_or(0)
}

#[allow(clippy::cast_precision_loss, reason = "a number for people")]
fn in_unit(bytes: u64, unit: usize) -> f64 {
    bytes as f64 / (1_u64 << (10 * unit)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(4096), "4.0 KiB");
        assert_eq!(size(222_298_112), "212 MiB");
        assert_eq!(size(40 << 30), "40.0 GiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        assert_eq!(size_word(40 << 30), "40.0GiB");
    }

    #[test]
    fn a_part_is_in_the_unit_of_the_whole() {
        assert_eq!(part_of(15_977_152_512, 42_949_541_888), "14.9/40.0 GiB");
        assert_eq!(part_of(0, 100), "0/100 B");
    }

    #[test]
    fn times_have_two_parts_at_most() {
        let shown = [0, 59, 121, 3600 + 7 * 60, 2 * 86_400 + 4 * 3600].map(duration);
        assert_eq!(shown, ["0s", "59s", "2m01s", "1h07m", "2d04h"]);
    }
}
