//! The register that holds a resource's view: a compare-and-set cell on three voters, without log.
//!
//! Every voter runs an [`Acceptor`]; whoever wants to change the view runs a [`Round`]:
//!
//! ```text
//! proposer                                  voters (each persists before it answers, R1)
//!   Prepare(ballot) ───────────────────────▶  promise not to answer lower ballots
//!   ◀──────────────── Promise(last accepted)
//!   a majority: the highest accepted view is the current one
//!     not certainly chosen?  finish it: propose it again as it is
//!     chosen?                apply the proposal (view.rs) to it
//!   Accept(ballot, view) ──────────────────▶  accept unless a higher ballot was promised
//!   ◀──────────────────────────── Accepted
//!   a majority: the view is committed
//! ```
//!
//! Two majorities share a voter, so a round sees every view that was ever chosen; a lower round can
//! not be chosen any more once a majority promised a higher one. A view that a round does *not* see
//! is not dead for that: it may sit at the third voter and be finished by someone later. Only a
//! newer committed view kills it.

use replicator::types::{Ballot, CommittedView, NodeId, QuorumEvidence, View, VoterId, VoterSet};

use super::rules::Rules;
use super::view::era;

/// A voter's durable half of the register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Acceptor {
    /// No ballot below this one is answered.
    pub promised: Ballot,
    /// The view accepted last, and under which ballot.
    pub accepted: Option<(Ballot, View)>,
}

/// What an acceptor says to a ballot. Told only once the acceptor is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Agreed,
    /// It promised this higher ballot.
    Refused {
        /// The promised one.
        promised: Ballot,
    },
}

impl Acceptor {
    /// First phase: promises `ballot` unless a higher one was promised.
    pub fn prepare(&mut self, ballot: Ballot, rules: &Rules) -> Verdict {
        if ballot < self.promised && rules.ballots {
            return Verdict::Refused {
                promised: self.promised,
            };
        }
        self.promised = self.promised.max(ballot);
        Verdict::Agreed
    }

    /// Second phase: accepts `view` unless a higher ballot was promised, or the one accepted before is of
    /// a later era.
    pub fn accept(&mut self, ballot: Ballot, view: &View, rules: &Rules) -> Verdict {
        // Those who did not hear of a lineage that was forced meanwhile may have the higher ballot.
        let older = self
            .accepted
            .is_some_and(|(_, own)| era(view.number) < era(own.number));
        if (ballot < self.promised || older) && rules.ballots {
            return Verdict::Refused {
                promised: self.promised,
            };
        }
        self.promised = self.promised.max(ballot);
        self.accepted = Some((ballot, *view));
        Verdict::Agreed
    }
}

/// A voter's answer to a Prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    /// The voter's identity.
    pub voter: VoterId,
    /// What it accepted last.
    pub accepted: Option<(Ballot, View)>,
}

/// One attempt of a proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Round {
    /// Its number, never used before.
    pub ballot: Ballot,
    /// The promises of the first phase, by [`NodeId`].
    pub promises: [Option<Promise>; 3],
    /// The view of the second phase, once its Accept may leave.
    pub proposed: Option<View>,
    /// Who accepted it, by [`NodeId`].
    pub accepted_by: [Option<VoterId>; 3],
}

/// What a majority of promises says about the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// No voter of a majority ever accepted a view.
    Empty,
    /// This view is certainly chosen.
    Chosen(CommittedView),
    /// This view may or may not be chosen: it must be finished before anything else.
    Unfinished(View),
}

impl Round {
    /// Begins with `ballot`: a Prepare must go to all voters.
    #[must_use]
    pub fn new(ballot: Ballot) -> Self {
        Self {
            ballot,
            promises: [None; 3],
            proposed: None,
            accepted_by: [None; 3],
        }
    }

    /// A voter promised this round's ballot.
    pub fn note_promise(&mut self, from: NodeId, promise: Promise) {
        self.promises[from.index()] = Some(promise);
    }

    /// The identities met so far.
    #[must_use]
    pub fn met(&self) -> VoterSet {
        VoterSet(
            self.promises
                .map(|promise| promise.map(|promise| promise.voter)),
        )
    }

    /// What the promises say; `None` while they are no majority of the voters that count.
    #[must_use]
    pub fn read(&self, rules: &Rules) -> Option<Read> {
        let promises = || self.promises.iter().flatten();
        let highest = promises()
            .filter_map(|promise| promise.accepted)
            .max_by_key(|(ballot, view)| (era(view.number), *ballot));
        let Some((ballot, view)) = highest else {
            // Blank counts as a promise only here: while nothing was ever founded.
            return (promises().count() >= VoterSet::MAJORITY).then_some(Read::Empty);
        };
        let counts = |node: &NodeId| {
            self.promises[node.index()].is_some_and(|promise| {
                !rules.known_voters || view.voters.recognises(*node, promise.voter)
            })
        };
        if NodeId::ALL.iter().filter(|node| counts(node)).count() < view.voters.needed() {
            return None;
        }
        let accepted_by = self.promises.map(|promise| {
            promise
                .filter(|promise| promise.accepted == Some((ballot, view)))
                .map(|promise| promise.voter)
        });
        let evidence = QuorumEvidence {
            ballot,
            accepted_by,
        };
        Some(match CommittedView::prove(view, evidence) {
            Some(committed) => Read::Chosen(committed),
            None => Read::Unfinished(view),
        })
    }

    /// Begins the second phase: an Accept must go to all voters.
    pub fn propose(&mut self, view: View) {
        assert!(self.proposed.is_none(), "a ballot proposes one view only");
        self.proposed = Some(view);
    }

    /// A voter accepted this round's view. Returns the proof once a majority did.
    pub fn note_accepted(&mut self, from: NodeId, voter: VoterId) -> Option<CommittedView> {
        let view = self.proposed?;
        self.accepted_by[from.index()] = Some(voter);
        CommittedView::prove(
            view,
            QuorumEvidence {
                ballot: self.ballot,
                accepted_by: self.accepted_by,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::{InSync, ViewCause, ViewNumber};

    use super::*;
    use crate::controller::testing::{ballot, founded};
    use crate::controller::view::FORCE_ALONE_STEP;

    const RULES: Rules = Rules::ALL;
    const VOTERS: [VoterId; 3] = [VoterId(1), VoterId(2), VoterId(3)];

    fn view(number: u64) -> View {
        View {
            number: ViewNumber(number),
            ..founded()
        }
    }

    fn promise(node: usize, accepted: Option<(Ballot, View)>) -> Promise {
        Promise {
            voter: VOTERS[node],
            accepted,
        }
    }

    #[test]
    fn an_acceptor_refuses_what_is_below_its_promise() {
        let mut acceptor = Acceptor::default();
        assert_eq!(acceptor.prepare(ballot(2, 0), &RULES), Verdict::Agreed);
        let refused = Verdict::Refused {
            promised: ballot(2, 0),
        };
        assert_eq!(acceptor.prepare(ballot(1, 1), &RULES), refused);
        assert_eq!(acceptor.accept(ballot(1, 1), &view(1), &RULES), refused);
        assert_eq!(acceptor.accepted, None);
        assert_eq!(
            acceptor.accept(ballot(2, 0), &view(1), &RULES),
            Verdict::Agreed
        );
        assert_eq!(acceptor.prepare(ballot(2, 1), &RULES), Verdict::Agreed);
        assert_eq!(acceptor.accepted, Some((ballot(2, 0), view(1))));
    }

    /// Those who did not hear of a forced lineage went on with higher ballots: that makes it no older.
    #[test]
    fn a_later_era_outranks_every_ballot() {
        let forced = view(FORCE_ALONE_STEP);
        let mut acceptor = Acceptor::default();
        acceptor.accept(ballot(2, 0), &forced, &RULES);
        let refused = Verdict::Refused {
            promised: ballot(2, 0),
        };
        assert_eq!(acceptor.accept(ballot(9, 1), &view(8), &RULES), refused);
        let mut round = Round::new(ballot(10, 0));
        round.note_promise(NodeId::A, promise(0, Some((ballot(9, 1), view(8)))));
        round.note_promise(NodeId::B, promise(1, Some((ballot(2, 0), forced))));
        assert_eq!(round.read(&RULES), Some(Read::Unfinished(forced)));
    }

    #[test]
    fn an_accept_that_outran_its_prepare_binds_like_one() {
        let mut acceptor = Acceptor::default();
        assert_eq!(
            acceptor.accept(ballot(5, 1), &view(1), &RULES),
            Verdict::Agreed
        );
        assert_eq!(acceptor.promised, ballot(5, 1));
    }

    #[test]
    fn one_voter_is_no_majority() {
        let mut round = Round::new(ballot(3, 0));
        round.note_promise(NodeId::A, promise(0, None));
        assert_eq!(round.read(&RULES), None);
        round.note_promise(NodeId::A, promise(0, None));
        assert_eq!(round.read(&RULES), None);
        round.note_promise(NodeId::ARBITRATOR, promise(2, None));
        assert_eq!(round.read(&RULES), Some(Read::Empty));
        assert_eq!(
            round.met(),
            VoterSet([Some(VOTERS[0]), None, Some(VOTERS[2])])
        );
    }

    #[test]
    fn the_highest_accepted_view_is_the_current_one() {
        let mut round = Round::new(ballot(9, 1));
        round.note_promise(NodeId::A, promise(0, Some((ballot(2, 0), view(3)))));
        round.note_promise(NodeId::B, promise(1, Some((ballot(3, 1), view(2)))));
        assert_eq!(round.read(&RULES), Some(Read::Unfinished(view(2))));
    }

    #[test]
    fn a_view_that_a_majority_accepted_together_is_chosen() {
        let mut round = Round::new(ballot(9, 1));
        round.note_promise(NodeId::A, promise(0, Some((ballot(2, 0), view(3)))));
        round.note_promise(
            NodeId::ARBITRATOR,
            promise(2, Some((ballot(2, 0), view(3)))),
        );
        let Some(Read::Chosen(committed)) = round.read(&RULES) else {
            panic!("{:?}", round.read(&RULES));
        };
        assert_eq!(*committed.view(), view(3));
        assert_eq!(committed.evidence().ballot, ballot(2, 0));
    }

    #[test]
    fn the_same_view_under_two_ballots_is_not_certainly_chosen() {
        let mut round = Round::new(ballot(9, 1));
        round.note_promise(NodeId::A, promise(0, Some((ballot(2, 0), view(3)))));
        round.note_promise(NodeId::B, promise(1, Some((ballot(3, 1), view(3)))));
        assert_eq!(round.read(&RULES), Some(Read::Unfinished(view(3))));
    }

    #[test]
    fn a_wiped_voter_has_no_vote() {
        // T lost its store: its promise of nothing must not help to overlook a view.
        let mut round = Round::new(ballot(9, 1));
        round.note_promise(NodeId::B, promise(1, Some((ballot(2, 0), view(3)))));
        let wiped = Promise {
            voter: VoterId(0x99),
            accepted: None,
        };
        round.note_promise(NodeId::ARBITRATOR, wiped);
        assert_eq!(round.read(&RULES), None);
        round.note_promise(NodeId::A, promise(0, Some((ballot(2, 0), view(3)))));
        assert!(matches!(round.read(&RULES), Some(Read::Chosen(_))));
        round.propose(view(4));
        assert_eq!(round.note_accepted(NodeId::B, VOTERS[1]), None);
        assert_eq!(round.note_accepted(NodeId::ARBITRATOR, VoterId(0x99)), None);
        assert!(round.note_accepted(NodeId::A, VOTERS[0]).is_some());
    }

    #[test]
    fn acceptances_count_only_for_a_proposed_view() {
        let mut round = Round::new(ballot(9, 1));
        assert_eq!(round.note_accepted(NodeId::A, VOTERS[0]), None);
        assert_eq!(round.note_accepted(NodeId::B, VOTERS[1]), None);
        let next = View {
            in_sync: InSync::only(NodeId::A),
            cause: ViewCause::Removed,
            ..view(2)
        };
        round.propose(next);
        assert_eq!(round.note_accepted(NodeId::A, VOTERS[0]), None);
        let committed = round.note_accepted(NodeId::ARBITRATOR, VOTERS[2]);
        assert_eq!(committed.map(|committed| *committed.view()), Some(next));
    }
}
