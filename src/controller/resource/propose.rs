//! This node as a proposer: one round of the register at a time, from the wish to the commit.

use replicator::types::{
    Ballot, CommittedView, InSync, Instant, NodeId, View, ViewNumber, VoterId,
};

use super::super::decision::{Knowledge, Outcome, Step};
use super::super::message::Part;
use super::super::output::{ControllerEvent, EngineCommand, Evidence, StepDownReason};
use super::super::register::{Promise, Read, Round};
use super::super::view::{Abort, Change, Proposal, ProposalKind};
use super::{AddStage, Context, Resource};

/// A round under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    round: Round,
    stage: Stage,
    /// When to ask again those who did not answer.
    again_at: Instant,
    repeats: u32,
    /// The newest committed view known when it began.
    committed_at_begin: ViewNumber,
    /// Voters that refused this round, as bits.
    refused_by: u8,
    /// Its ballot outranks rounds that nobody here heard of: this voter may decide alone.
    alone: bool,
}

#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one exists per resource under decision; a box would only cost Copy"
)]
enum Stage {
    /// Waiting for a majority of promises.
    Preparing,
    /// A takeover was decided and sealed: it waits for the seal on the disk and for the engine.
    Draining {
        view: View,
        change: Change,
        seal: ViewNumber,
        seal_version: u64,
        drained: bool,
    },
    /// Waiting for a majority of acceptances. `change` is ours, or `None` when another's view is
    /// being finished.
    Accepting { change: Option<Change> },
}

/// A view of ours whose accept left and whose fate is not known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Undecided {
    pub(super) view: View,
    pub(super) change: Change,
}

/// Repetitions at the beacon's pace; then once a second, so that a long partition is quiet.
const EAGER_REPEATS: u32 = 10;
const LAZY_REPEAT: core::time::Duration = core::time::Duration::from_secs(1);

/// Back-off windows double up to this power of two: 16 quarter beacons.
const BACK_OFF_DOUBLINGS_MAX: u32 = 4;

impl Attempt {
    pub(super) fn again_at(&self) -> Instant {
        self.again_at
    }

    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    pub(super) fn round_number(&self) -> u32 {
        self.round.ballot.round
    }

    /// Whether that voter promised.
    pub(super) fn has_promise_of(&self, node: NodeId) -> bool {
        self.round.promises[node.index()].is_some()
    }
}

impl Resource {
    /// Name of what is being decided, for `status`.
    pub(super) fn proposal_kind(&self) -> Option<ProposalKind> {
        match self.attempt?.stage {
            Stage::Preparing => self.undecided.map(|undecided| undecided.change.kind()),
            Stage::Draining { change, .. } => Some(change.kind()),
            Stage::Accepting { change } => change.map(|change| change.kind()),
        }
    }

    /// Begins, continues or gives up rounds as the wish and the answers say.
    pub(super) fn progress_rounds(&mut self, cx: &mut Context<'_>) {
        match self.attempt.map(|attempt| attempt.stage) {
            None => self.begin_round(cx),
            Some(Stage::Preparing) => self.progress_preparing(cx),
            Some(Stage::Draining { .. }) => self.progress_draining(cx),
            Some(Stage::Accepting { .. }) => self.progress_accepting(cx),
        }
        self.repeat(cx);
    }

    fn begin_round(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.pause_until || !self.wants_round(cx) {
            return;
        }
        let promised = self.record().acceptor.promised.round;
        let highest = self.highest_round.max(promised);
        if highest >= Ballot::ROUND_MAX {
            return self.end_of_rounds(cx);
        }
        self.begin_round_at(cx, highest + 1, false);
    }

    /// Begins the round of that number, which none had before.
    pub(super) fn begin_round_at(&mut self, cx: &mut Context<'_>, number: u32, alone: bool) {
        self.highest_round = number;
        let ballot = Ballot {
            round: number,
            node: cx.me.node.raw(),
            incarnation: cx.me.incarnation,
        };
        self.attempt = Some(Attempt {
            round: Round::new(ballot),
            stage: Stage::Preparing,
            again_at: cx.now.plus(cx.me.timing.beacon),
            repeats: 0,
            committed_at_begin: self.committed_number(),
            refused_by: 0,
            alone,
        });
        cx.send_others(&Part::Prepare {
            resource: self.id,
            ballot,
        });
        self.on_prepare(cx, cx.me.node, ballot);
    }

    /// Two billion rounds: only a forged ballot gets here. Others would refuse a higher one.
    pub(super) fn end_of_rounds(&mut self, cx: &mut Context<'_>) {
        if !core::mem::replace(&mut self.exhausted, true) {
            cx.event(ControllerEvent::RoundsExhausted { resource: self.id });
        }
    }

    fn progress_preparing(&mut self, cx: &mut Context<'_>) {
        let Some(attempt) = self.attempt else { return };
        if !self.wants_round(cx) {
            self.attempt = None;
            return;
        }
        match self.read_round(cx, &attempt) {
            None => self.progress_alone(cx, &attempt),
            // A first view should record everyone who is there: wait a little for the third.
            Some(Read::Empty) if self.awaits_third_voter(cx, &attempt) => {}
            Some(read) => self.decide(cx, read),
        }
    }

    /// What the promises say. Where one vote decided, that voter's promise alone tells of it, also when
    /// it was overruled since: this node needs its own too, and what it knows to be over is no answer.
    fn read_round(&self, cx: &Context<'_>, attempt: &Attempt) -> Option<Read> {
        let read = attempt.round.read(&cx.me.rules)?;
        let view = match &read {
            Read::Empty => return Some(read),
            Read::Chosen(committed) => committed.view(),
            Read::Unfinished(view) => view,
        };
        let alone = view.voters.needed() == 1;
        let known = view.number >= self.committed_number();
        (!alone || (known && attempt.has_promise_of(cx.me.node))).then_some(read)
    }

    fn awaits_third_voter(&self, cx: &Context<'_>, attempt: &Attempt) -> bool {
        if attempt.round.promises[cx.me.node.index()].is_none() {
            // Its own store may be the slowest. A founder that is not recorded itself has no vote:
            // with one of the others gone nothing could be changed any more.
            return true;
        }
        let missing_but_seen = cx.others().any(|node| {
            attempt.round.promises[node.index()].is_none()
                && cx.peers[node.index()].voter().is_some()
        });
        missing_but_seen && attempt.repeats < 2
    }

    /// A majority told what the register holds: finish it, or change it as wished.
    fn decide(&mut self, cx: &mut Context<'_>, read: Read) {
        let undecided = self.undecided;
        let step = Step::after(read, &self.knowledge(cx));
        self.may_be_behind &= matches!(step, Step::Finish { .. });
        match step {
            Step::Contradiction => {
                self.contradiction(cx, self.committed_number());
                self.give_up_round(cx);
                self.pause_until = cx.now.plus(LAZY_REPEAT);
            }
            Step::Overtaken => self.give_up_round(cx),
            Step::Resolved(committed) => {
                self.attempt = None;
                self.on_committed(cx, committed, undecided.map(|undecided| undecided.change));
            }
            Step::Finish {
                view,
                own,
                superseded,
            } => {
                if superseded {
                    self.step_down(cx, StepDownReason::Superseded);
                }
                let change = undecided.filter(|_| own).map(|undecided| undecided.change);
                self.accept(cx, view, change);
            }
            Step::Decide {
                current,
                superseded,
            } => {
                if superseded {
                    self.step_down(cx, StepDownReason::Superseded);
                }
                if let Some(view) = current.filter(|view| view.number > self.committed_number()) {
                    self.note_committed(cx, view);
                    cx.engine(self.id, EngineCommand::Learned(view));
                }
                self.decide_on(cx, current);
            }
        }
    }

    /// What this node knows besides the register.
    pub(super) fn knowledge(&self, cx: &Context<'_>) -> Knowledge {
        let proposed = self.attempt.and_then(|attempt| match attempt.stage {
            Stage::Accepting { change } => attempt.round.proposed.filter(|_| change.is_some()),
            Stage::Preparing | Stage::Draining { .. } => None,
        });
        Knowledge {
            node: cx.me.node,
            committed: self.committed(),
            committed_at_begin: self
                .attempt
                .map_or(ViewNumber::NONE, |attempt| attempt.committed_at_begin),
            active: self.active.map(|active| active.view),
            undecided: proposed.or(self.undecided.map(|undecided| undecided.view)),
        }
    }

    /// The register holds `current`, certainly. What is wished now, with this knowledge?
    fn decide_on(&mut self, cx: &mut Context<'_>, current: Option<View>) {
        let Some(attempt) = self.attempt else { return };
        let Some(mut change) = self.desire(cx) else {
            return self.correct_own_vote(cx, current);
        };
        if let Change::AddVoter { voter, .. } = change
            && current.is_some_and(|view| view.voters.needed() == 1)
            && !attempt.has_promise_of(voter)
        {
            // From then on nothing is decided without it: one that only answers beacons is no voter.
            return;
        }
        if let Change::Found { voters, .. } = &mut change {
            *voters = attempt.round.met();
        }
        let proposal = Proposal {
            node: cx.me.node,
            change,
        };
        match proposal.apply(current.as_ref(), &cx.me.rules) {
            Ok(view) if matches!(change, Change::Takeover { .. } | Change::Force { .. }) => {
                self.begin_drain(cx, view, change);
            }
            Ok(view) => self.accept(cx, view, Some(change)),
            Err(reason) => self.abort(cx, change, reason),
        }
    }

    /// Nothing is to be changed. But this node's own voter may hold a view that lost to a later
    /// round, and as long as it does this node takes it for the newest: proposing again what the
    /// register holds puts it right.
    fn correct_own_vote(&mut self, cx: &mut Context<'_>, current: Option<View>) {
        let misled = self.active.is_none() && self.record().newest() != current.as_ref();
        match current.filter(|_| misled) {
            Some(view) => self.accept(cx, view, None),
            None => self.attempt = None,
        }
    }

    /// R22: grant check and seal are one step; R13: the engine drains meanwhile.
    pub(super) fn begin_drain(&mut self, cx: &mut Context<'_>, view: View, change: Change) {
        // What it is the successor of, or what a node that decides alone leaves behind.
        let seal = match change {
            Change::Force { .. } => self.seal_before(cx.me),
            _ => ViewNumber(view.number.0 - 1),
        };
        let rules = match change {
            Change::Force { .. } => cx.me.rules.of_force(),
            _ => cx.me.rules,
        };
        let handed_over = self.peer_left == Some(seal);
        let fenced = self.peer_fenced.is_some()
            && self.peer_fenced == self.record().newest().map(|view| view.number);
        let evidence = match (handed_over, fenced) {
            (true, _) => Evidence::HandedOver,
            (false, true) => Evidence::Fenced,
            (false, false) => Evidence::Silence,
        };
        if evidence != Evidence::Silence {
            self.grant.seal_handed_over(seal, &cx.me.rules);
        } else if !self.grant.seal_if_over(cx.now, seal, &rules) {
            self.attempt = None;
            return;
        }
        let sealed = self.grant.seal();
        let seal_version = self.store.change(|record| {
            if cx.me.rules.durable_seal {
                record.seal = sealed;
            }
        });
        if let Some(attempt) = &mut self.attempt {
            attempt.stage = Stage::Draining {
                view,
                change,
                seal,
                seal_version,
                drained: false,
            };
        }
        cx.event(ControllerEvent::Sealed {
            resource: self.id,
            seal,
            evidence,
        });
        cx.engine(self.id, EngineCommand::Drain { seal });
    }

    /// The engine answers a drain.
    pub(super) fn on_drained(&mut self, cx: &mut Context<'_>, seal: ViewNumber, ok: bool) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let Stage::Draining {
            seal: asked,
            change,
            drained,
            ..
        } = &mut attempt.stage
        else {
            return;
        };
        if *asked != seal {
            return;
        }
        // By force also over a replica that may miss writes: only nothing may land late.
        if ok || matches!(change, Change::Force { .. }) {
            *drained = true;
        } else {
            self.attempt = None;
            self.vetoed = true;
            cx.event(ControllerEvent::Vetoed { resource: self.id });
        }
    }

    fn progress_draining(&mut self, cx: &mut Context<'_>) {
        let Some(Attempt {
            stage:
                Stage::Draining {
                    view,
                    change,
                    seal_version,
                    drained,
                    ..
                },
            ..
        }) = self.attempt
        else {
            return;
        };
        // The replica may have gone or the order been given up meanwhile.
        if self
            .desire(cx)
            .is_none_or(|wish| wish.kind() != change.kind())
        {
            self.attempt = None;
            return;
        }
        if (drained || !cx.me.rules.drain) && self.store.is_durable(seal_version) {
            self.accept(cx, view, Some(change));
        }
    }

    fn accept(&mut self, cx: &mut Context<'_>, view: View, change: Option<Change>) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        attempt.round.propose(view);
        attempt.stage = Stage::Accepting { change };
        attempt.again_at = cx.now.plus(cx.me.timing.beacon);
        attempt.repeats = 0;
        let ballot = attempt.round.ballot;
        if let Some(change) = change {
            // From here on the outcome is unknown until a majority answers.
            self.undecided = Some(Undecided { view, change });
            if matches!(change, Change::Add { .. }) {
                self.add_at_large = Some(view.number);
            }
        }
        cx.send_others(&Part::Accept {
            resource: self.id,
            ballot,
            view,
        });
        self.on_accept(cx, cx.me.node, ballot, &view);
    }

    pub(super) fn abort(&mut self, cx: &mut Context<'_>, change: Change, reason: Abort) {
        let kind = change.kind();
        self.attempt = None;
        // No successor will ever do: that is not tried as if something could change.
        let pause = match reason {
            Abort::Exhausted { .. } => LAZY_REPEAT,
            _ => cx.me.timing.beacon,
        };
        self.pause_until = cx.now.plus(pause);
        self.last_abort = Some((kind, reason));
        self.undecided = None;
        match change {
            // Nothing of it ever left, or a newer view outranks it: the engine may prepare anew.
            Change::Leave { .. } => {
                self.leave = None;
                cx.engine(self.id, EngineCommand::ProposalAborted);
            }
            Change::Resize { .. } => self.growth = None,
            Change::Add { .. } if self.add_at_large.is_none() => {
                self.add = AddStage::Resynced;
                cx.engine(self.id, EngineCommand::ProposalAborted);
            }
            _ => {}
        }
        cx.event(ControllerEvent::Aborted {
            resource: self.id,
            kind,
            reason,
        });
    }

    fn progress_accepting(&mut self, cx: &mut Context<'_>) {
        let Some(attempt) = self.attempt else { return };
        // Two refusals leave no majority; one may, but not for long.
        let refusals = attempt.refused_by.count_ones();
        // Those who were to accept it are gone, and by order nobody is waited for.
        let in_vain = !attempt.alone && self.is_left_alone(cx);
        if in_vain || refusals >= 2 || (refusals == 1 && cx.now >= attempt.again_at) {
            self.give_up_round(cx);
        }
    }

    /// Asks again those who did not answer. Everything said is idempotent.
    fn repeat(&mut self, cx: &mut Context<'_>) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if cx.now < attempt.again_at {
            return;
        }
        attempt.repeats += 1;
        let pace = if attempt.repeats < EAGER_REPEATS {
            cx.me.timing.beacon
        } else {
            LAZY_REPEAT.max(cx.me.timing.beacon)
        };
        attempt.again_at = cx.now.plus(pace);
        let (round, resource) = (attempt.round, self.id);
        let ballot = round.ballot;
        for node in cx.others() {
            match round.proposed {
                None if round.promises[node.index()].is_none() => {
                    cx.send(node, Part::Prepare { resource, ballot });
                }
                Some(view) if round.accepted_by[node.index()].is_none() => {
                    cx.send(
                        node,
                        Part::Accept {
                            resource,
                            ballot,
                            view,
                        },
                    );
                }
                _ => {}
            }
        }
    }

    /// A voter answers a round; ours, or one long given up.
    pub(in super::super) fn on_reply(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        voter: VoterId,
        part: &Part,
    ) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let round = &mut attempt.round;
        match part {
            Part::Promise {
                ballot, accepted, ..
            } if *ballot == round.ballot => {
                round.note_promise(
                    from,
                    Promise {
                        voter,
                        accepted: *accepted,
                    },
                );
            }
            Part::Accepted { ballot, .. } if *ballot == round.ballot => {
                if let Some(committed) = round.note_accepted(from, voter) {
                    let Stage::Accepting { change } = attempt.stage else {
                        return;
                    };
                    self.attempt = None;
                    self.on_committed(cx, committed, change);
                }
            }
            Part::Nack {
                ballot, promised, ..
            } if *ballot == round.ballot => {
                attempt.refused_by |= 1 << from.index();
                self.highest_round = self.highest_round.max(promised.round);
                if !matches!(attempt.stage, Stage::Accepting { .. }) {
                    self.give_up_round(cx);
                }
            }
            _ => {}
        }
    }

    /// Somebody else's round is higher: ours, if nothing of it left yet, only stands in its way. In
    /// particular a sealed node leaves the way to the Primary's Recover (F18).
    pub(super) fn yield_to(&mut self, cx: &mut Context<'_>, ballot: Ballot) {
        self.highest_round = self.highest_round.max(ballot.round);
        let gives_way = self.attempt.is_some_and(|attempt| {
            ballot > attempt.round.ballot && !matches!(attempt.stage, Stage::Accepting { .. })
        });
        if gives_way {
            self.give_up_round(cx);
        }
    }

    /// Ends the round without result and waits a random while, longer each time in a row: duels end.
    fn give_up_round(&mut self, cx: &mut Context<'_>) {
        self.attempt = None;
        let doublings = self.nacks.min(BACK_OFF_DOUBLINGS_MAX);
        self.nacks = self.nacks.saturating_add(1);
        let window = cx.me.timing.beacon / 4 * (1 << doublings);
        self.pause_until = cx.now.plus(cx.random.below(window));
    }

    /// A majority durably accepted `committed`. `change` is ours, or `None` if it was another's.
    fn on_committed(
        &mut self,
        cx: &mut Context<'_>,
        committed: CommittedView,
        change: Option<Change>,
    ) {
        let view = *committed.view();
        self.nacks = 0;
        self.pause_until = cx.now;
        self.undecided = None;
        self.may_be_behind = false;
        self.note_committed(cx, view);
        cx.send_others(&Part::Learned {
            resource: self.id,
            view,
        });
        cx.outlet.urgent.push(self.id);
        let newest = self
            .record()
            .newest()
            .map_or(ViewNumber::NONE, |view| view.number);
        match Outcome::of(committed, &self.knowledge(cx), change, newest) {
            Outcome::Activate(activation) if self.can_serve() => self.activate(cx, activation),
            Outcome::Activate(_) | Outcome::Learn => {
                cx.engine(self.id, EngineCommand::Committed(committed));
            }
            Outcome::Continue => {
                if let Some(active) = &mut self.active {
                    active.view = view;
                }
                if view.in_sync != InSync::BOTH {
                    // Also when a round finished for an undecided one carries no change of ours: the
                    // flag spoke of a view that is over, and must not remove the peer from a later one.
                    self.peer_unprepared = false;
                }
                self.note_own_commit(change);
                cx.engine(self.id, EngineCommand::Committed(committed));
            }
            Outcome::StepDown => {
                self.step_down(cx, StepDownReason::Superseded);
                cx.engine(self.id, EngineCommand::Learned(view));
            }
        }
    }

    /// Whether this node still can and wants to serve, now that the voters agreed.
    fn can_serve(&self) -> bool {
        self.record().up && self.replica.is_some() && !self.local_failed && !self.wants_down()
    }

    fn note_own_commit(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Remove { .. }) => {
                self.peer_lost_at = None;
                self.peer_failed = false;
                self.peer_unprepared = false;
                self.remove_unclean = false;
                self.add = AddStage::Idle;
            }
            Some(Change::Add { .. }) => self.add = AddStage::Idle,
            Some(Change::Leave { .. }) => self.leave = None,
            Some(Change::Resize { .. }) => self.growth = None,
            _ => {}
        }
    }
}
