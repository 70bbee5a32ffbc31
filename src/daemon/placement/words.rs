//! How a resource stands to its preferred node, in words.

use std::time::Duration;

use replicator::admin::{PlacementStatus, rfc3339_seconds};
use replicator::types::Instant;

use super::super::board::PlacementShown;
use super::file::{Chosen, Mark};
use crate::config::duration_text;
use crate::controller::placement::{Away, Busy, FAILBACKS_MAX, Standing, Stay};
use crate::controller::{Automation, Names};

/// Everything there is to tell from.
pub(super) struct Told<'a> {
    pub(super) names: Names<'a>,
    /// This node is the preferred one.
    pub(super) is_preferred: bool,
    pub(super) mark: Option<&'a Mark>,
    pub(super) automation: Automation,
    /// A guest is bound, and could not be started here.
    pub(super) guest_fails: bool,
    /// When it goes back, by this node's file.
    pub(super) failback: &'a str,
    /// What was found when it was looked at last.
    pub(super) shown: Option<PlacementShown>,
    pub(super) now: Instant,
    /// The same of the wall clock.
    pub(super) unix_seconds: u64,
}

pub(super) fn tell(told: &Told<'_>) -> PlacementStatus {
    let standing = told.shown.map_or(Standing::NotHere, |it| it.standing);
    let plain = |word: &str, text: String| PlacementStatus {
        word: word.to_owned(),
        text,
        left_seconds: None,
        failback: Some(told.failback.to_owned()),
    };
    let Names {
        resource,
        node,
        peer,
    } = told.names;
    match standing {
        Standing::NoPreference => plain("none", "no node is preferred".to_owned()),
        Standing::Home => plain("home", format!("{node} is preferred, and serves it")),
        Standing::Due => plain("due", format!("goes back to {peer} now")),
        Standing::NotHere => match told.mark.filter(|mark| mark.chosen != Chosen::Here) {
            Some(mark) if told.is_preferred => plain(
                "by-hand",
                format!(
                    "moved to {peer} {}; stays there until: twinadm up {resource}, on {node}",
                    mark_words(mark)
                ),
            ),
            _ if told.is_preferred && told.automation.standby => plain(
                "standby",
                format!("{node} is preferred and in standby: twinadm node resume {node}"),
            ),
            _ if told.is_preferred && told.automation.maintenance => plain(
                "maintenance",
                format!("{node} is preferred, and maintenance is on there"),
            ),
            _ if told.is_preferred && told.guest_fails => plain(
                "guest",
                format!(
                    "{node} is preferred, but its guest could not be started there: libvirt does not \
                     answer or does not know it, or `on-failover` leaves it off"
                ),
            ),
            _ if told.is_preferred => plain(
                "not-here",
                format!("{node} is preferred; the node that serves it decides when it goes back"),
            ),
            _ => plain(
                "not-here",
                format!("{peer} is preferred, {node} does not serve it"),
            ),
        },
        Standing::Stays(stay) => {
            let elapsed = told
                .shown
                .map_or(Duration::ZERO, |it| told.now.since(it.at));
            let left = stay.left().map(|left| left.saturating_sub(elapsed));
            PlacementStatus {
                word: stay.word().to_owned(),
                text: format!("stays on {node}: {}", stay_words(told, stay, left)),
                left_seconds: left.map(|left| left.as_secs_f64()),
                failback: Some(told.failback.to_owned()),
            }
        }
    }
}

fn mark_words(mark: &Mark) -> String {
    match mark.unix_seconds {
        0 => format!("by {}", mark.by),
        unix_seconds => {
            let when = rfc3339_seconds(unix_seconds.saturating_mul(1000));
            format!("by hand at {when}, by {}", mark.by)
        }
    }
}

fn stay_words(told: &Told<'_>, stay: Stay, left: Option<Duration>) -> String {
    let Names {
        resource,
        node,
        peer,
    } = told.names;
    let seconds = left.map_or(0, |left| left.as_secs() + 1);
    let left = left.map_or_else(String::new, |left| {
        // Nobody waits for fractions of a second.
        duration_words(Duration::from_secs(left.as_secs() + 1))
    });
    match stay {
        Stay::Never => format!("{peer} is preferred, but failback = \"never\""),
        Stay::Manual => {
            format!("failover is manual, so people decide: twinadm move {resource} {peer}")
        }
        Stay::ByHand => {
            let who = told.mark.map(mark_words).unwrap_or_default();
            format!(
                "chosen {who}; {peer} is preferred again after: twinadm up {resource}, on {node}"
            )
        }
        Stay::Maintenance => format!("maintenance is on at {node}: twinadm maintenance off"),
        Stay::Lossy => format!(
            "acknowledged writes may be missing: once that was looked into, twinadm move {resource} \
             {peer}"
        ),
        Stay::PeerNotWell => {
            format!("{peer} is preferred, and is not connected, in sync and ready to take it over")
        }
        Stay::HoldDown { .. } => format!("{peer} is well; hold-down ends in {left}"),
        Stay::Window { .. } => format!(
            "the window of its failback opens in {left}, at {}",
            rfc3339_seconds(
                told.unix_seconds
                    .saturating_add(seconds)
                    .saturating_mul(1000)
            )
        ),
        Stay::FlapLimit { .. } => format!(
            "flap limit: a move back was begun {FAILBACKS_MAX} times within a day; again in {left}, or now: \
             twinadm move {resource} {peer}"
        ),
        Stay::BackOff { .. } => format!(
            "the last try to go back came to nothing, the next is in {left}: twinadm history {resource}"
        ),
        Stay::PeerAway(Away::Standby) => {
            format!("{peer} is in standby: twinadm node resume {peer}")
        }
        Stay::PeerAway(Away::Maintenance) => {
            format!("maintenance is on at {peer}: twinadm maintenance off --node {peer}")
        }
        Stay::PeerAway(Away::ByHand) => format!(
            "moved here by hand; {peer} is preferred again after: twinadm up {resource} --node {peer}"
        ),
        Stay::PeerAway(Away::OtherWish) => format!(
            "the files of {node} and {peer} differ in its `prefer`, `failback` or `failover`: make them \
             the same, then on both: twinadm adjust {resource}"
        ),
        Stay::PeerAway(Away::Guest) => format!(
            "its guest could not be started on {peer}: twinadm why {resource} --node {peer}"
        ),
        Stay::GuestIdle => {
            format!("its guest does not run here, and going back to {peer} would start it")
        }
        Stay::PeerAway(Away::Unknown) => {
            format!("{peer} did not say whether it wants it back; it is asked again")
        }
        Stay::Busy(Busy::Order) => "an order is being carried out".to_owned(),
        Stay::Busy(Busy::Held) => "its writes are held".to_owned(),
        Stay::Busy(Busy::Resync) => "until the resync ends".to_owned(),
        Stay::Busy(Busy::Verify) => "until the verify ends".to_owned(),
        Stay::Blocked(blocker) => blocker.why(&told.names),
    }
}

/// `4m10s`, `3h`, `6d 23h`: the two largest units.
fn duration_words(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d "), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = span.as_secs();
    let Some(first) = UNITS.iter().position(|(unit, _)| seconds >= *unit) else {
        return duration_text(Duration::from_secs(0));
    };
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, name) in UNITS.iter().skip(first).take(2) {
        if rest / unit > 0 {
            text += &format!("{}{name}", rest / unit);
        }
        rest %= unit;
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Blocker;

    const NAMES: Names<'_> = Names {
        resource: "vm-web",
        node: "kvm-b",
        peer: "kvm-a",
    };

    fn told(standing: Standing) -> Told<'static> {
        Told {
            names: NAMES,
            is_preferred: false,
            mark: None,
            automation: Automation::default(),
            guest_fails: false,
            failback: "when-synced",
            shown: Some(PlacementShown {
                standing,
                at: Instant(0),
            }),
            now: Instant(10_000_000_000),
            unix_seconds: 1_795_226_400,
        }
    }

    #[test]
    fn what_is_left_is_told_as_of_now() {
        let left = Duration::from_secs(259);
        let told = tell(&told(Standing::Stays(Stay::HoldDown { left })));
        assert_eq!(told.word, "hold-down");
        assert_eq!(
            told.text,
            "stays on kvm-b: kvm-a is well; hold-down ends in 4m10s"
        );
        assert_eq!(told.left_seconds, Some(249.0));
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (1, "1s"),
            (60, "1m"),
            (250, "4m10s"),
            (3_661, "1h1m"),
            (86_400, "1d"),
            (6 * 86_400 + 23 * 3_600 + 59, "6d 23h"),
        ] {
            assert_eq!(duration_words(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn every_reason_is_told_and_has_its_word() {
        let left = Duration::from_secs(1);
        let stays = [
            Stay::Never,
            Stay::Manual,
            Stay::ByHand,
            Stay::Maintenance,
            Stay::Lossy,
            Stay::PeerNotWell,
            Stay::HoldDown { left },
            Stay::Window { left },
            Stay::FlapLimit { left },
            Stay::BackOff { left },
            Stay::PeerAway(Away::Standby),
            Stay::PeerAway(Away::Unknown),
            Stay::PeerAway(Away::OtherWish),
            Stay::GuestIdle,
            Stay::Busy(Busy::Verify),
            Stay::Blocked(Blocker::NoQuorum { seen: 1 }),
        ];
        let mut words = Vec::new();
        for stay in stays {
            let told = tell(&told(Standing::Stays(stay)));
            assert!(told.text.starts_with("stays on kvm-b: ") && !words.contains(&told.word));
            words.push(told.word);
        }
    }

    #[test]
    fn the_preferred_node_says_why_it_does_not_want_it() {
        let mark = Mark {
            chosen: Chosen::Away,
            unix_seconds: 1_795_226_400,
            by: "user 0".to_owned(),
        };
        let away = Told {
            is_preferred: true,
            mark: Some(&mark),
            ..told(Standing::NotHere)
        };
        let told_away = tell(&away);
        assert_eq!(told_away.word, "by-hand");
        assert!(
            told_away.text.contains("2026-11-21T02:00:00Z"),
            "{told_away:?}"
        );
        let standby = Told {
            mark: None,
            automation: Automation {
                standby: true,
                maintenance: false,
            },
            ..away
        };
        assert_eq!(tell(&standby).word, "standby");
        let unknown = Mark {
            chosen: Chosen::Unknown,
            ..mark.clone()
        };
        let guest = Told {
            automation: Automation::default(),
            guest_fails: true,
            ..standby
        };
        assert_eq!(tell(&guest).word, "guest");
        let damaged = Told {
            mark: Some(&unknown),
            ..guest
        };
        assert_eq!(tell(&damaged).word, "by-hand");
    }
}
