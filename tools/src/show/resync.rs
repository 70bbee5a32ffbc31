//! The resync line: bar, percent, done/total, rate, ETA, then the reason if it is held. The same
//! in `status`, `wait-sync` and wherever else a resync is shown (order as in /proc/mdstat).

use replicator::admin::{ResyncStatus, VerifyStatus};

use super::size::{duration, part_of, size};

/// Characters between the brackets.
const BAR_LEN: usize = 20;

/// One line without indent, without its end.
#[must_use]
pub fn resync_line(resync: &ResyncStatus) -> String {
    let ratio = if resync.done_ratio.is_finite() {
        resync.done_ratio.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let rate = resync
        .rate_bytes_per_second
        .map_or("--".to_owned(), |rate| format!("{}/s", size(rate)));
    let eta = resync.eta_seconds.map_or("--".to_owned(), duration);
    let mut line = format!(
        "[{}] {}%  {}  {rate}  eta {eta}",
        bar(ratio),
        percent(ratio),
        part_of(
            resync.done_bytes.min(resync.total_bytes),
            resync.total_bytes
        ),
    );
    if let Some(limit) = resync.limit_bytes_per_second {
        line += &format!("  limit {}/s", size(limit));
    }
    if let Some(held) = &resync.held {
        line += &format!("  {held}");
    }
    line
}

/// The same of a verify, with what it found so far.
#[must_use]
pub fn verify_line(verify: &VerifyStatus) -> String {
    let line = resync_line(&verify.progress);
    match verify.differing_bytes {
        0 => format!("{line}  verify"),
        bytes => format!("{line}  verify: {} differ", size(bytes)),
    }
}

/// Never `100.0` before the end.
fn percent(ratio: f64) -> String {
    let percent = if ratio < 1.0 {
        (ratio * 100.0).min(99.9)
    } else {
        100.0
    };
    format!("{percent:.1}")
}

fn bar(ratio: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "0 to BAR_LEN"
    )]
    let full = ((ratio * BAR_LEN as f64) as usize).min(BAR_LEN);
    let head = usize::from(full < BAR_LEN);
    format!(
        "{}{}{}",
        "=".repeat(full),
        ">".repeat(head),
        ".".repeat(BAR_LEN - full - head)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verify_says_so_and_what_it_found() {
        let mut verify = VerifyStatus {
            progress: ResyncStatus::new(1 << 20, 4 << 20, Some(1 << 20), None),
            repair: false,
            differing_bytes: 0,
        };
        let line = "[=====>..............] 25.0%  1.0/4.0 MiB  1.0 MiB/s  eta 3s  verify";
        assert_eq!(verify_line(&verify), line);
        verify.differing_bytes = 8192;
        assert_eq!(verify_line(&verify), format!("{line}: 8.0 KiB differ"));
    }

    fn line(done: u64, total: u64, rate: Option<u64>, held: Option<&str>) -> String {
        resync_line(&ResyncStatus::new(
            done,
            total,
            rate,
            held.map(str::to_owned),
        ))
    }

    #[test]
    fn the_documented_line() {
        assert_eq!(
            line(15_977_152_512, 42_949_541_888, Some(222_298_112), None),
            "[=======>............] 37.2%  14.9/40.0 GiB  212 MiB/s  eta 2m01s"
        );
    }

    #[test]
    fn a_limit_is_shown_where_the_document_shows_it() {
        let resync = ResyncStatus::new(15_977_152_512, 42_949_541_888, Some(222_298_112), None);
        assert_eq!(
            resync_line(&resync.limited(Some(250 << 20))),
            "[=======>............] 37.2%  14.9/40.0 GiB  212 MiB/s  eta 2m01s  limit 250 MiB/s"
        );
    }

    #[test]
    fn what_is_unknown_is_two_dashes() {
        assert_eq!(
            line(0, 1 << 30, None, None),
            "[>...................] 0.0%  0.0/1.0 GiB  --  eta --"
        );
    }

    #[test]
    fn a_held_resync_says_why_and_has_no_eta() {
        assert_eq!(
            line(
                1 << 29,
                1 << 30,
                Some(5 << 20),
                Some("paused:waiting-for vm-db")
            ),
            "[==========>.........] 50.0%  0.5/1.0 GiB  5.0 MiB/s  eta --  paused:waiting-for vm-db"
        );
    }

    #[test]
    fn percent_is_clamped_and_is_100_only_at_the_end() {
        assert_eq!(
            line(u64::MAX, 4096, None, None),
            "[====================] 100.0%  4.0/4.0 KiB  --  eta --"
        );
        assert!(line((1 << 40) - 1, 1 << 40, None, None).contains("99.9%"));
        let mut broken = ResyncStatus::new(1, 2, None, None);
        broken.done_ratio = f64::NAN;
        assert!(resync_line(&broken).contains(" 0.0%"));
        broken.done_ratio = -5497.0;
        assert!(resync_line(&broken).contains(" 0.0%"));
    }
}
