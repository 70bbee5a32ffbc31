//! What the preferred node says when it is asked whether it wants its resource back.
//!
//! Invariant: only one answer is a yes, and everything that is not understood is a no. Whoever asks does
//! not wait for long: nobody is there to give up for it.

use std::io;

use replicator::admin::{PlacementStatus, Response};
use replicator::io::clock;
use replicator::types::{Failback, Instant};

use crate::config::failback_text;
use crate::controller::placement::{Away, Wish};
use crate::daemon::board::Board;
use crate::daemon::control::Answers;

/// The final answer, if it comes before the deadline and before the node stops.
pub(super) struct Asked<'a> {
    pub(super) board: &'a Board,
    pub(super) deadline: Instant,
    pub(super) response: Option<Response>,
}

impl Answers for Asked<'_> {
    fn send_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_gone() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let response: Response = serde_json::from_slice(line)?;
        if response.is_final() {
            self.response = Some(response);
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        clock::now() >= self.deadline || self.board.read(|board| board.stopping)
    }
}

/// What of its status counts.
pub(super) struct Said<'a> {
    pub(super) standby: bool,
    pub(super) maintenance: bool,
    /// Whom its file prefers.
    pub(super) prefer: Option<&'a str>,
    pub(super) place: Option<&'a PlacementStatus>,
}

/// Why it does not want it. `failback` is what is wanted here, in [`wish_text`].
pub(super) fn away(said: &Said<'_>, target: &str, failback: &str) -> Option<Away> {
    let word = said.place.map(|it| it.word.as_str());
    let same_failback = said.place.and_then(|it| it.failback.as_deref()) == Some(failback);
    match word {
        _ if said.standby => Some(Away::Standby),
        _ if said.maintenance => Some(Away::Maintenance),
        Some("by-hand") => Some(Away::ByHand),
        _ if said.prefer != Some(target) => Some(Away::OtherWish),
        Some("guest") => Some(Away::Guest),
        Some("not-here") if same_failback => None,
        Some("not-here") => Some(Away::OtherWish),
        // It believes that it serves, or it is of an older version.
        _ => Some(Away::Unknown),
    }
}

/// When a resource goes back, for the comparison of two nodes' files.
pub(super) fn wish_text(wish: &Wish) -> String {
    match wish.manual && wish.failback != Failback::Never {
        true => "manual".to_owned(),
        false => failback_text(wish.failback),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(word: &str, failback: &str) -> PlacementStatus {
        PlacementStatus {
            word: word.to_owned(),
            text: String::new(),
            left_seconds: None,
            failback: Some(failback.to_owned()),
        }
    }

    fn answer(prefer: Option<&str>, place: Option<&PlacementStatus>) -> Option<Away> {
        let said = Said {
            standby: false,
            maintenance: false,
            prefer,
            place,
        };
        away(&said, "kvm-a", "when-synced")
    }

    #[test]
    fn both_nodes_must_want_it_and_only_one_word_is_a_yes() {
        let yes = place("not-here", "when-synced");
        assert_eq!(answer(Some("kvm-a"), Some(&yes)), None);
        for prefer in [None, Some("kvm-b")] {
            assert_eq!(answer(prefer, Some(&yes)), Some(Away::OtherWish));
        }
        for failback in ["never", "manual", "Sat 02:00", ""] {
            let other = place("not-here", failback);
            let said = answer(Some("kvm-a"), Some(&other));
            assert_eq!(said, Some(Away::OtherWish), "{failback}");
        }
        for (word, wanted) in [
            ("by-hand", Away::ByHand),
            ("guest", Away::Guest),
            ("home", Away::Unknown),
            ("due", Away::Unknown),
            ("something new", Away::Unknown),
        ] {
            let said = answer(Some("kvm-a"), Some(&place(word, "when-synced")));
            assert_eq!(said, Some(wanted), "{word}");
        }
        // An older version.
        assert_eq!(answer(Some("kvm-a"), None), Some(Away::Unknown));
    }

    #[test]
    fn standby_and_maintenance_are_believed_whatever_else_is_said() {
        let yes = place("not-here", "when-synced");
        let said = Said {
            standby: true,
            maintenance: false,
            prefer: Some("kvm-a"),
            place: Some(&yes),
        };
        assert_eq!(away(&said, "kvm-a", "when-synced"), Some(Away::Standby));
        let said = Said {
            standby: false,
            maintenance: true,
            ..said
        };
        assert_eq!(away(&said, "kvm-a", "when-synced"), Some(Away::Maintenance));
    }
}
