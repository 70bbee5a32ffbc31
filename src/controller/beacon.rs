//! What is known of another node from the datagrams that arrived: identity, liveness per path.
//!
//! Only round trips count: an answer carries the send time of the beacon it answers, and a node is
//! suspected when its newest answer is to a beacon older than S. A one-way link therefore never
//! looks alive.

use core::time::Duration;

use replicator::types::{Instant, VoterId};

use super::message::Header;

/// Paths told apart; more share the last one.
pub(super) const PATHS_MAX: usize = 8;

/// What is known of one other node.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    started: Instant,
    identity: Option<Identity>,
    heard_on: [Option<Instant>; PATHS_MAX],
    answered: Option<Instant>,
    rtt: Option<Duration>,
    /// When the next beacon to it is due.
    pub(super) beacon_at: Instant,
    /// Whether it counted as seen when last looked at, for events.
    pub(super) was_seen: bool,
}

/// Who speaks, and what was already heard of that life.
#[derive(Clone, Copy, Debug)]
struct Identity {
    voter: VoterId,
    boot_id: u128,
    incarnation: u32,
    window: SeqWindow,
}

/// What a header says about its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Not heard before.
    New,
    /// The first of another life of the node: what the old life said is void.
    NewLife,
    /// Heard before, by another path or doubled; or of an older life; or far too late.
    Old,
}

impl Peer {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            identity: None,
            heard_on: [None; PATHS_MAX],
            answered: None,
            rtt: None,
            beacon_at: now,
            was_seen: false,
        }
    }

    /// A datagram arrived by `path`.
    pub(super) fn note_datagram(&mut self, now: Instant, path: u8, header: &Header) -> Freshness {
        let freshness = self.note_header(header);
        let of_this_life = self.identity.is_some_and(|known| {
            known.voter == header.voter && known.incarnation == header.incarnation
        });
        if of_this_life {
            self.heard_on[usize::from(path).min(PATHS_MAX - 1)] = Some(now);
        }
        freshness
    }

    fn note_header(&mut self, header: &Header) -> Freshness {
        let same_life = self.identity.as_mut().filter(|known| {
            known.voter == header.voter
                && known.incarnation == header.incarnation
                && known.boot_id == header.boot_id
        });
        if let Some(known) = same_life {
            return match known.window.note(header.seq) {
                true => Freshness::New,
                false => Freshness::Old,
            };
        }
        let older_life = self.identity.is_some_and(|known| {
            known.voter == header.voter && header.incarnation <= known.incarnation
        });
        if older_life {
            return Freshness::Old;
        }
        let first = self.identity.is_none();
        let mut window = SeqWindow::default();
        window.note(header.seq);
        self.identity = Some(Identity {
            voter: header.voter,
            boot_id: header.boot_id,
            incarnation: header.incarnation,
            window,
        });
        if first {
            Freshness::New
        } else {
            Freshness::NewLife
        }
    }

    /// It answered a beacon sent at `sent`.
    pub(super) fn note_answer(&mut self, now: Instant, sent: Instant) {
        if self.answered.is_none_or(|newest| sent > newest) {
            self.answered = Some(sent);
            self.rtt = Some(now.since(sent));
        }
    }

    /// The identity of its voter store, if it was heard.
    pub(super) fn voter(&self) -> Option<VoterId> {
        self.identity.map(|known| known.voter)
    }

    /// Send time of the newest answered beacon.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// Round trip of the newest answer.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// When silence longer than `patience` makes it suspect.
    pub(super) fn suspect_at(&self, patience: Duration) -> Instant {
        self.answered.unwrap_or(self.started).plus(patience)
    }

    /// Whether its silence is longer than `patience`.
    pub(super) fn is_suspect(&self, now: Instant, patience: Duration) -> bool {
        now >= self.suspect_at(patience)
    }

    /// Whether it answered a beacon sent less than `window` ago.
    pub(super) fn is_seen(&self, now: Instant, window: Duration) -> bool {
        self.answered.is_some() && !self.is_suspect(now, window)
    }

    /// When something was last heard from it, one-way.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.heard_on.iter().flatten().copied().max()
    }

    /// Bit n: path n brought something less than `window` ago.
    pub(super) fn paths_up(&self, now: Instant, window: Duration) -> u8 {
        self.heard_on.iter().rev().fold(0, |bits, heard| {
            bits << 1 | u8::from(heard.is_some_and(|at| now < at.plus(window)))
        })
    }
}

/// The newest sequence number and which of the 64 before it were heard: doubles are told from
/// datagrams that merely overtook each other.
#[derive(Clone, Copy, Debug, Default)]
struct SeqWindow {
    newest: Option<u64>,
    heard: u64,
}

impl SeqWindow {
    /// Whether `seq` is heard for the first time and is not older than the window.
    fn note(&mut self, seq: u64) -> bool {
        let Some(newest) = self.newest else {
            self.newest = Some(seq);
            self.heard = 1;
            return true;
        };
        if seq > newest {
            let shift = u32::try_from(seq - newest).unwrap_or(u32::MAX);
            self.heard = self.heard.checked_shl(shift).unwrap_or(0) | 1;
            self.newest = Some(seq);
            return true;
        }
        let back = newest - seq;
        if back >= 64 || self.heard & (1 << back) != 0 {
            return false;
        }
        self.heard |= 1 << back;
        true
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::NodeId;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO.plus(Duration::from_millis(millis))
    }

    fn header(incarnation: u32, seq: u64) -> Header {
        Header {
            cluster: 1,
            from: NodeId::B,
            to: NodeId::A,
            boot_id: 3,
            voter: VoterId(2),
            incarnation,
            seq,
        }
    }

    #[test]
    fn a_double_by_the_other_path_is_old_but_keeps_that_path_up() {
        let mut peer = Peer::new(at(0));
        assert_eq!(peer.note_datagram(at(1), 0, &header(1, 5)), Freshness::New);
        assert_eq!(peer.note_datagram(at(2), 1, &header(1, 5)), Freshness::Old);
        assert_eq!(peer.paths_up(at(3), Duration::from_millis(100)), 0b11);
        assert_eq!(peer.note_datagram(at(90), 1, &header(1, 4)), Freshness::New);
        assert_eq!(peer.paths_up(at(110), Duration::from_millis(100)), 0b10);
    }

    #[test]
    fn a_restart_begins_a_new_life_and_the_old_one_is_not_heard_again() {
        let mut peer = Peer::new(at(0));
        assert_eq!(peer.note_datagram(at(1), 0, &header(1, 50)), Freshness::New);
        assert_eq!(
            peer.note_datagram(at(2), 0, &header(2, 1)),
            Freshness::NewLife
        );
        assert_eq!(peer.note_datagram(at(3), 0, &header(1, 51)), Freshness::Old);
        assert_eq!(peer.note_datagram(at(3), 0, &header(2, 2)), Freshness::New);
    }

    #[test]
    fn a_replaced_store_is_another_voter_whatever_its_number() {
        let mut peer = Peer::new(at(0));
        assert_eq!(peer.note_datagram(at(1), 0, &header(7, 50)), Freshness::New);
        let replaced = Header {
            voter: VoterId(0x99),
            ..header(1, 1)
        };
        assert_eq!(peer.note_datagram(at(2), 0, &replaced), Freshness::NewLife);
        assert_eq!(peer.voter(), Some(VoterId(0x99)));
    }

    #[test]
    fn hearing_without_being_answered_does_not_clear_suspicion() {
        let mut peer = Peer::new(at(0));
        let patience = Duration::from_millis(200);
        for seq in 0..10 {
            peer.note_datagram(at(seq * 50), 0, &header(1, seq));
        }
        assert!(peer.is_suspect(at(450), patience));
        peer.note_answer(at(451), at(440));
        assert!(!peer.is_suspect(at(451), patience));
        assert_eq!(peer.suspect_at(patience), at(640));
        assert_eq!(peer.rtt(), Some(Duration::from_millis(11)));
    }

    #[test]
    fn a_window_accepts_each_number_once() {
        let mut window = SeqWindow::default();
        for seq in [10, 12, 11, 80, 17, 1_000] {
            assert!(window.note(seq), "{seq}");
            assert!(!window.note(seq), "{seq}");
        }
        assert!(!window.note(900));
    }
}
