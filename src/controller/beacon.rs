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

/// Voter ids of one node that are known to be of its past. Who reinstalls it more often while this
/// process runs, and was recorded each time, has worse to fear.
const RETIRED_MAX: usize = 4;

/// What is known of one other node.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    started: Instant,
    identity: Option<Identity>,
    /// Identities it had before this one, newest first.
    retired: [Option<VoterId>; RETIRED_MAX],
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
            retired: [None; RETIRED_MAX],
            heard_on: [None; PATHS_MAX],
            answered: None,
            rtt: None,
            beacon_at: now,
            was_seen: false,
        }
    }

    /// A datagram arrived by `path`. `answers` is when the newest beacon of this life was sent that it
    /// answers, if it answers any.
    pub(super) fn note_datagram(
        &mut self,
        now: Instant,
        path: u8,
        header: &Header,
        answers: Option<Instant>,
    ) -> Freshness {
        let freshness = self.note_header(header, answers);
        let of_this_life = self.identity.is_some_and(|known| {
            known.voter == header.voter && known.incarnation == header.incarnation
        });
        if of_this_life {
            self.heard_on[usize::from(path).min(PATHS_MAX - 1)] = Some(now);
        }
        freshness
    }

    fn note_header(&mut self, header: &Header, answers: Option<Instant>) -> Freshness {
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
        // Somebody who recorded a store that was replaced could otherwise make this node forget what
        // it heard of the one there is. An answer to a beacon newer than all that were answered is
        // none of a recording: then it was the datagram that retired this voter which was one.
        let of_the_past = self.retired.contains(&Some(header.voter))
            && answers.is_none_or(|sent| self.answered.is_some_and(|newest| sent <= newest));
        if of_the_past {
            return Freshness::Old;
        }
        if let Some(known) = self.identity.filter(|known| known.voter != header.voter) {
            self.retire(known.voter, header.voter);
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

    /// `next` took the place of `voter`.
    fn retire(&mut self, voter: VoterId, next: VoterId) {
        let mut retired = [None; RETIRED_MAX];
        retired[0] = Some(voter);
        let others = self.retired.iter().flatten();
        let others = others.filter(|other| **other != voter && **other != next);
        for (slot, other) in retired[1..].iter_mut().zip(others) {
            *slot = Some(*other);
        }
        self.retired = retired;
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
        assert_eq!(
            peer.note_datagram(at(1), 0, &header(1, 5), None),
            Freshness::New
        );
        assert_eq!(
            peer.note_datagram(at(2), 1, &header(1, 5), None),
            Freshness::Old
        );
        assert_eq!(peer.paths_up(at(3), Duration::from_millis(100)), 0b11);
        assert_eq!(
            peer.note_datagram(at(90), 1, &header(1, 4), None),
            Freshness::New
        );
        assert_eq!(peer.paths_up(at(110), Duration::from_millis(100)), 0b10);
    }

    #[test]
    fn a_restart_begins_a_new_life_and_the_old_one_is_not_heard_again() {
        let mut peer = Peer::new(at(0));
        assert_eq!(
            peer.note_datagram(at(1), 0, &header(1, 50), None),
            Freshness::New
        );
        assert_eq!(
            peer.note_datagram(at(2), 0, &header(2, 1), None),
            Freshness::NewLife
        );
        assert_eq!(
            peer.note_datagram(at(3), 0, &header(1, 51), None),
            Freshness::Old
        );
        assert_eq!(
            peer.note_datagram(at(3), 0, &header(2, 2), None),
            Freshness::New
        );
    }

    #[test]
    fn a_replaced_store_is_another_voter_whatever_its_number() {
        let mut peer = Peer::new(at(0));
        assert_eq!(
            peer.note_datagram(at(1), 0, &header(7, 50), None),
            Freshness::New
        );
        let replaced = Header {
            voter: VoterId(0x99),
            ..header(1, 1)
        };
        assert_eq!(
            peer.note_datagram(at(2), 0, &replaced, None),
            Freshness::NewLife
        );
        assert_eq!(peer.voter(), Some(VoterId(0x99)));
    }

    /// It was reinstalled, and is off: what was recorded of the store before makes nobody hear the
    /// last words of the present one again.
    #[test]
    fn a_recording_of_a_replaced_store_makes_nothing_new() {
        let mut peer = Peer::new(at(0));
        let of = |voter, seq| Header {
            voter: VoterId(voter),
            ..header(9, seq)
        };
        for voter in 1..=4 {
            let said = peer.note_datagram(at(1), 0, &of(voter, 1), None);
            assert_ne!(said, Freshness::Old);
        }
        peer.note_answer(at(9), at(8));
        for _ in 0..2 {
            for voter in 1..=3 {
                let again = peer.note_datagram(at(20), 0, &of(voter, 99), Some(at(8)));
                assert_eq!(again, Freshness::Old);
            }
            let again = peer.note_datagram(at(20), 0, &of(4, 1), Some(at(8)));
            assert_eq!(again, Freshness::Old);
        }
        assert_eq!(peer.voter(), Some(VoterId(4)));
    }

    /// A receiver that was restarted takes a recording for the next store: the living one is not
    /// locked out by it, and the recording is of the past from then on.
    #[test]
    fn a_living_voter_that_a_recording_retired_comes_back_by_its_answer() {
        let mut peer = Peer::new(at(0));
        let living = |seq| header(9, seq);
        let recorded = |seq| Header {
            voter: VoterId(1),
            ..header(9, seq)
        };
        peer.note_datagram(at(1), 0, &living(1), None);
        peer.note_answer(at(9), at(8));
        let first = peer.note_datagram(at(10), 0, &recorded(5), None);
        assert_eq!(first, Freshness::NewLife);
        let silent = peer.note_datagram(at(11), 0, &living(2), None);
        assert_eq!(silent, Freshness::Old);
        let answer = peer.note_datagram(at(12), 0, &living(3), Some(at(11)));
        assert_eq!(answer, Freshness::NewLife);
        let second = peer.note_datagram(at(13), 0, &recorded(6), None);
        assert_eq!(second, Freshness::Old);
        assert_eq!(
            peer.note_datagram(at(14), 0, &living(4), None),
            Freshness::New
        );
    }

    #[test]
    fn hearing_without_being_answered_does_not_clear_suspicion() {
        let mut peer = Peer::new(at(0));
        let patience = Duration::from_millis(200);
        for seq in 0..10 {
            peer.note_datagram(at(seq * 50), 0, &header(1, seq), None);
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
