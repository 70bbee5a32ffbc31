//! Quantities with units, and names.

use std::time::Duration;

use super::types::{DemoteStep, Rate};

const SIZES: [(&str, u64); 6] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("B", 1),
];

const TIMES: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// Longest name of a cluster, node or resource: a host name has 64 at most, and a resource's name
/// must fit into the path of its socket (108 bytes in all).
pub const NAME_LEN_MAX: usize = 64;

/// Bytes in `40GiB`; the error is a hint for people.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor = SIZES
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor);
    match (number.parse::<u64>(), factor) {
        (Ok(number), Some(factor)) => number
            .checked_mul(factor)
            .ok_or_else(|| "more than 16 EiB".to_owned()),
        (Ok(number), None) => Err(format!(
            "write a unit: \"{number}{}\"",
            likely_size_unit(unit)
        )),
        (Err(_), _) => Err("write a size such as \"40GiB\"".to_owned()),
    }
}

/// A length of time such as `6s`.
///
/// # Errors
/// A hint for people.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let factor = TIMES
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor);
    match (number.parse::<u64>(), factor) {
        (Ok(number), Some(factor)) => number
            .checked_mul(factor)
            .map(Duration::from_nanos)
            .ok_or_else(|| "more than 500 years".to_owned()),
        (Ok(number), None) => Err(format!("write a unit: \"{number}s\" or \"{number}ms\"")),
        (Err(_), _) => Err("write a time such as \"6s\" or \"500ms\"".to_owned()),
    }
}

/// A rate such as `250MiB/s`, `auto` or `unlimited`.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    match text {
        "auto" => return Ok(Rate::Auto),
        "unlimited" => return Ok(Rate::Unlimited),
        _ => {}
    }
    let hint = || "write \"auto\", \"unlimited\" or a rate such as \"250MiB/s\"".to_owned();
    match parse_size(text.strip_suffix("/s").ok_or_else(hint)?) {
        Ok(0) | Err(_) => Err(hint()),
        Ok(rate) => Ok(Rate::BytesPerSecond(rate)),
    }
}

/// A size as short as it can be written exactly: `40GiB`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes.is_multiple_of(*factor) && bytes >= *factor;
    let (unit, factor) = SIZES
        .iter()
        .filter(fits)
        .max_by_key(|(_, factor)| *factor)
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// A duration as short as it can be written exactly: `6s`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fits = |(_, factor): &&(&str, u64)| {
        nanos.is_multiple_of(u128::from(*factor)) && nanos >= u128::from(*factor)
    };
    let (unit, factor) = TIMES
        .iter()
        .filter(fits)
        .max_by_key(|(_, factor)| *factor)
        .unwrap_or(&("us", 1_000));
    format!("{}{unit}", nanos / u128::from(*factor))
}

/// Why `name` cannot name a cluster, node or resource; `None` if it can.
pub(super) fn name_fault(name: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > NAME_LEN_MAX {
        Some("it is longer than 64 bytes")
    } else if !name.bytes().all(allowed) {
        Some("only letters, digits, `.`, `_` and `-` are allowed")
    } else if name.starts_with(['.', '-']) {
        Some("it must begin with a letter, a digit or `_`")
    } else if name == "all" {
        Some("`all` means every resource")
    } else {
        None
    }
}

/// The candidate that `word` most likely was meant to be: at most a third of its letters differ.
pub(super) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let close = candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1));
    close
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`; words over 64 characters
/// are far from everything, so that a hostile file costs no time.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().max(b.len()) > NAME_LEN_MAX {
        return usize::MAX;
    }
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

fn split(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `G`, `GB` and `gib` all were meant to be `GiB`.
fn likely_size_unit(unit: &str) -> &'static str {
    let first = unit.chars().next().map(|c| c.to_ascii_uppercase());
    SIZES
        .iter()
        .find(|(name, _)| name.chars().next() == first)
        .map_or("GiB", |(name, _)| name)
}

/// Reads the steps of `on-demote`: any number of `shutdown:TIME`, then perhaps `destroy`.
pub(super) fn parse_demote_steps(text: &str) -> Result<Vec<DemoteStep>, String> {
    let step = |word: &str| match word.trim().split_once(':') {
        Some(("shutdown", time)) => parse_duration(time).map(DemoteStep::Shutdown),
        None if word.trim() == "destroy" => Ok(DemoteStep::Destroy),
        _ => Err("write \"shutdown:TIME\", \"destroy\", or both with a comma between".to_owned()),
    };
    text.split(',').map(step).collect()
}

/// The steps as they are written.
pub(super) fn demote_steps_text(steps: &[DemoteStep]) -> String {
    let words = steps.iter().map(|step| match step {
        DemoteStep::Shutdown(time) => format!("shutdown:{}", duration_text(*time)),
        DemoteStep::Destroy => "destroy".to_owned(),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_and_say_which() {
        assert_eq!(parse_size("40GiB"), Ok(40 << 30));
        assert_eq!(parse_size("512 B"), Ok(512));
        assert_eq!(parse_size("40G"), Err("write a unit: \"40GiB\"".to_owned()));
        assert_eq!(parse_size("40"), Err("write a unit: \"40GiB\"".to_owned()));
        assert_eq!(parse_size("7mb"), Err("write a unit: \"7MiB\"".to_owned()));
        assert!(parse_size("-1GiB").is_err());
        assert!(parse_size("99999999999999999999B").is_err());
        assert!(parse_size("16384PiB").is_err());
    }

    #[test]
    fn durations_and_rates_read_as_written() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse_duration("3").is_err());
        assert!(parse_duration("999999999999d").is_err());
        assert_eq!(parse_rate("250MiB/s"), Ok(Rate::BytesPerSecond(250 << 20)));
        assert_eq!(parse_rate("auto"), Ok(Rate::Auto));
        assert!(parse_rate("0B/s").is_err());
        assert!(parse_rate("250MiB").is_err());
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        for bytes in [1, 512, 4096, 40 << 30, 3 << 20, (1 << 40) + 512] {
            assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
        }
        for millis in [1, 10, 1000, 3000, 90_000, 86_400_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&duration_text(duration)), Ok(duration));
        }
        assert_eq!(size_text(0), "0B");
        assert_eq!(duration_text(Duration::ZERO), "0us");
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_nonsense_is_not() {
        let keys = ["prefer", "failback", "priority", "volume", "guest"];
        assert_eq!(did_you_mean("prefered", keys), Some("prefer"));
        assert_eq!(did_you_mean("pirority", keys), Some("priority"));
        assert_eq!(did_you_mean("sausage", keys), None);
        assert_eq!(did_you_mean(&"x".repeat(10_000), keys), None);
    }

    #[test]
    fn names_fit_into_paths_and_selectors() {
        for good in ["vm-web", "a", "_x", "kvm-a.example.org", "0"] {
            assert_eq!(name_fault(good), None, "{good}");
        }
        for bad in [
            "",
            "a/b",
            "a:b",
            "-x",
            ".x",
            "..",
            "all",
            "ä",
            "a b",
            &"x".repeat(65),
        ] {
            assert!(name_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn steps_of_on_demote_are_read_in_order_and_written_back() {
        let minute = DemoteStep::Shutdown(Duration::from_secs(60));
        let both = parse_demote_steps("shutdown:60s, destroy").unwrap();
        assert_eq!(both, [minute, DemoteStep::Destroy]);
        assert_eq!(parse_demote_steps("destroy"), Ok(vec![DemoteStep::Destroy]));
        for wrong in [
            "",
            "shutdown",
            "destroy:5s",
            "kill",
            "shutdown:soon",
            "destroy,",
        ] {
            assert!(parse_demote_steps(wrong).is_err(), "{wrong}");
        }
        let text = demote_steps_text(&both);
        assert_eq!(parse_demote_steps(&text), Ok(both));
    }
}
