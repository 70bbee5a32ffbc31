//! Promotion by force: an operator gives up what this replica lacks, or the voters that are gone.
//!
//! What the peer may still do is not given up: while it is heard as Primary, and until its lease is
//! certainly over, nothing is forced. A majority of the voters is asked like for any other change. Only
//! if none of the others that the view counts is there, for as long as an unplanned takeover would
//! wait, this voter decides alone, and from then on counts alone until it meets another.
//!
//! Invariant: a forced view begins a lineage of its own, so that of two nodes that served apart neither
//! is overwritten by meeting the other.

use replicator::types::{Ballot, DataGeneration, Instant, NodeId, View, ViewNumber, VoterSet};

use super::super::input::Order;
use super::super::output::{Blocker, StepDownReason};
use super::super::precondition::Situation;
use super::super::view::{Alone, Change, Proposal, alone_number, alone_round, era};
use super::propose::Attempt;
use super::{Context, Me, Resource};

impl Resource {
    /// Whether this voter stands for a view that it decided alone and does not serve: others may have gone
    /// on without it, so it counts for nothing until it serves again or hears what they decided.
    pub(super) fn is_idle_alone(&self, me: &Me) -> bool {
        self.active.is_none()
            && self.record().newest().is_some_and(|view| {
                view.voters.needed() == 1 && view.voters.recognises(me.node, me.voter)
            })
    }

    /// What others hear of: the newest committed view, unless this node stands for it alone.
    pub(super) fn committed_for_others(&self, me: &Me) -> Option<View> {
        self.committed().filter(|_| !self.is_idle_alone(me))
    }

    /// Others went on from the view that this node left alone, and it does not serve: they are followed.
    /// What is on its replica stays there, of a lineage of its own.
    pub(super) fn yield_to_others(&mut self, cx: &mut Context<'_>, view: &View) {
        let went_on =
            view.number > self.grant.seal() && era(view.number) < era(self.newest_number());
        if !went_on || !self.is_idle_alone(cx.me) {
            return;
        }
        self.attempt = None;
        self.undecided = None;
        self.store.change(|record| {
            record.acceptor.accepted = None;
            record.committed = None;
        });
    }

    /// Up to which view the peer is refused before this node serves in `view`. What it decided alone
    /// before nobody else serves in, and those who went on are not to be refused for it.
    pub(super) fn seal_before(&self, me: &Me) -> ViewNumber {
        if self.is_idle_alone(me) {
            self.grant.seal()
        } else {
            self.newest_number()
        }
    }

    /// Votes that change the newest view known here.
    pub(super) fn votes_needed(&self) -> usize {
        self.record()
            .newest()
            .map_or(VoterSet::MAJORITY, |view| view.voters.needed())
    }

    /// What keeps the order to become Primary from succeeding now.
    pub(super) fn order_blockers(&self, cx: &Context<'_>) -> Vec<Blocker> {
        if self.order_what() != Some(Order::Force) || self.active.is_some() {
            return self.blockers(cx);
        }
        let checks = self.forced_situation(cx).checks().into_iter();
        let mut blockers: Vec<_> = checks.filter_map(|(_, check)| check.blocker()).collect();
        if self.view_moved() {
            let view = self.newest_number();
            blockers.push(Blocker::ViewMoved { view });
        }
        blockers
    }

    pub(super) fn newest_number(&self) -> ViewNumber {
        self.record()
            .newest()
            .map_or(ViewNumber::NONE, |view| view.number)
    }

    /// Whether another view is the newest than when the order was given. Its own successor, which this
    /// node's voter has accepted and whose fate is open, is none.
    fn view_moved(&self) -> bool {
        let newest = self.newest_number();
        let own = self
            .undecided
            .is_some_and(|undecided| undecided.view.number == newest);
        self.order_about() != Some(newest) && !own
    }

    /// How things are for one whose operator gives up what this replica lacks.
    pub(super) fn forced_situation(&self, cx: &Context<'_>) -> Situation<'_> {
        Situation {
            forced: true,
            grant_counts: cx.me.rules.of_force().grant_outlives_lease,
            ..self.situation(cx, true)
        }
    }

    /// The forced change, if one was ordered, is allowed, and nothing milder will do.
    pub(super) fn desire_force(&self, cx: &Context<'_>) -> Option<Change> {
        self.force_ordered_since()?;
        let about = self.order_about()?;
        let replica = self.replica?.replica;
        self.record().newest()?;
        if self.view_moved() || !self.forced_situation(cx).allows() || !self.force_is_needed(cx) {
            return None;
        }
        Some(Change::Force {
            about,
            replica,
            data_generation: self.generation,
            alone: None,
        })
    }

    /// A promotion by force left here, and whether it will be decided is not known.
    pub(super) fn force_is_at_large(&self) -> bool {
        self.undecided
            .is_some_and(|undecided| matches!(undecided.change, Change::Force { .. }))
    }

    fn force_ordered_since(&self) -> Option<Instant> {
        self.order_since()
            .filter(|_| self.order_what() == Some(Order::Force))
    }

    /// Whether an order without force would be refused, or would wait for voters in vain.
    fn force_is_needed(&self, cx: &Context<'_>) -> bool {
        let checks = self.situation(cx, true).checks().into_iter();
        let mut unmet = checks.filter_map(|(_, check)| check.blocker());
        unmet.any(|blocker| !blocker.may_pass()) || self.is_left_alone(cx)
    }

    /// Whether none of the other voters that the newest view counts was there for as long as an
    /// unplanned takeover would wait. One that is seen under another identity was replaced.
    pub(super) fn is_left_alone(&self, cx: &Context<'_>) -> bool {
        let (Some(since), Some(view)) = (self.force_ordered_since(), self.record().newest()) else {
            return false;
        };
        let counts = |node: &NodeId| {
            let peer = &cx.peers[node.index()];
            let voter = peer.voter();
            peer.is_seen(cx.now, super::seen_window(*node, cx.me))
                && voter.is_some_and(|voter| view.voters.recognises(*node, voter))
        };
        cx.now >= since.plus(cx.me.timing.grant)
            && view.voters.recognises(cx.me.node, cx.me.voter)
            && !cx.others().any(|node| counts(&node))
    }

    /// A Primary whose lease is over and whom no voter is left to free: it begins anew, of another
    /// lineage, since its peer may have taken over. Whether the order was one of force to an active
    /// node that still waits.
    pub(super) fn progress_forced_primary(&mut self, cx: &mut Context<'_>) -> bool {
        if self.force_ordered_since().is_none() || !self.lease_lapsed {
            return false;
        }
        if self.is_left_alone(cx) {
            self.step_down(cx, StepDownReason::Ordered);
        }
        true
    }

    /// No majority promised so far: begins to decide alone, or does, if that was ordered and nothing
    /// else is left.
    pub(super) fn progress_alone(&mut self, cx: &mut Context<'_>, attempt: &Attempt) {
        let wished = matches!(self.desire(cx), Some(Change::Force { .. }));
        if !wished || !self.is_left_alone(cx) {
            return;
        }
        if !attempt.is_alone() {
            // Its own voter promises it like any other round, and says so only when that is durable.
            let round = alone_round(cx.me.node, self.newest_number(), self.highest_round);
            match round.filter(|round| *round < Ballot::ROUND_MAX) {
                Some(round) => self.begin_round_at(cx, round, true),
                None => self.end_of_rounds(cx),
            }
            return;
        }
        let (Some(newest), Some(facts)) = (self.record().newest().copied(), self.replica) else {
            return;
        };
        if !attempt.has_promise_of(cx.me.node) {
            return;
        }
        if newest.data_generation == self.generation {
            // That of a majority's forced view, which was begun and whose voters are gone since.
            self.generation = DataGeneration(cx.random.next_u128());
        }
        let change = Change::Force {
            about: newest.number,
            replica: facts.replica,
            data_generation: self.generation,
            alone: Some(Alone {
                voter: cx.me.voter,
                number: alone_number(attempt.round_number()),
            }),
        };
        let proposal = Proposal {
            node: cx.me.node,
            change,
        };
        match proposal.apply(Some(&newest), &cx.me.rules) {
            Ok(view) => self.begin_drain(cx, view, change),
            Err(reason) => self.abort(cx, change, reason),
        }
    }
}
