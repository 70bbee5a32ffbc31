//! Steps of voters and proposers, from the wish to the commit.

use replicator::types::{CommittedView, NodeId, View, ViewNumber, VoterSet};

use super::check::Violation;
use super::machine::{
    Action, FORCED_LINEAGE, Machine, NOW, Successor, end_session, node_id, small, voter_id,
};
use super::state::{Accepted, BallotCode, Kind, Node, PromiseNote, Sent, Stage, State, ViewIndex};
use crate::controller::decision::{Outcome, Step};
use crate::controller::register::Verdict;
use crate::controller::view::{Change, Proposal};

impl Machine {
    pub(super) fn begin(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let me = &state.nodes[node];
        let wishes = !self.wishes(state, node).is_empty();
        if me.stage != Stage::None || usize::from(state.rounds) >= self.scope.rounds || !wishes {
            return;
        }
        let mut next = *state;
        let promised = state.voters[node].promised.unpack().round;
        let ballot = replicator::types::Ballot {
            round: promised.max(u32::from(me.highest_round)) + 1,
            node: u8::from(node == 1),
            incarnation: u32::from(me.incarnation),
        };
        let code = BallotCode::pack(ballot);
        next.rounds += 1;
        let slot = next
            .sent
            .iter()
            .position(|sent| sent.ballot == BallotCode::default())
            .expect("a slot for each round of the scope");
        next.sent[slot] = Sent {
            ballot: code,
            view: ViewIndex::NONE,
        };
        // Its own voter answers like the others, but nothing is gained by losing that message.
        let mut acceptor = self.acceptor(&next.voters[node]);
        acceptor.prepare(ballot, &self.rules);
        self.keep(&mut next.voters[node], &acceptor);
        let voter = next.voters[node];
        let me = &mut next.nodes[node];
        me.ballot = code;
        me.committed_at_begin = me.committed;
        me.stage = Stage::Preparing;
        me.promises[node] = PromiseNote {
            given: true,
            replaced: voter.replaced,
            accepted: voter.accepted,
        };
        out.push((Action::Begin { node }, next, None));
    }

    pub(super) fn prepare(
        &mut self,
        state: &State,
        slot: usize,
        voter: usize,
        reply: bool,
        out: &mut Vec<Successor>,
    ) {
        let code = state.sent[slot].ballot;
        let ballot = code.unpack();
        let owner = usize::from(ballot.node);
        if voter == owner {
            return;
        }
        let mut next = *state;
        if let Some(other) = next.nodes.get_mut(voter) {
            // A higher round: ours, if nothing of it left yet, gives way.
            let gives_way = matches!(other.stage, Stage::Preparing | Stage::Draining);
            if gives_way && code > other.ballot {
                other.stage = Stage::None;
            }
        }
        let mut acceptor = self.acceptor(&next.voters[voter]);
        let verdict = acceptor.prepare(ballot, &self.rules);
        self.keep(&mut next.voters[voter], &acceptor);
        let answered = next.voters[voter];
        let proposer = &mut next.nodes[owner];
        let in_round = proposer.ballot == code && proposer.stage == Stage::Preparing;
        match verdict {
            Verdict::Agreed if reply && in_round => {
                proposer.promises[voter] = PromiseNote {
                    given: true,
                    replaced: answered.replaced,
                    accepted: answered.accepted,
                };
            }
            Verdict::Refused { promised } if reply => refused(proposer, code, promised.round, true),
            _ => {}
        }
        if next != *state {
            out.push((Action::Prepare { slot, voter, reply }, next, None));
        }
    }

    pub(super) fn decide(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let me = &state.nodes[node];
        if me.stage != Stage::Preparing {
            return;
        }
        let Some(read) = self.round(me).read(&self.rules) else {
            return;
        };
        let mut next = *state;
        let mut action = Action::Decide { node, kind: None };
        match Step::after(read, &self.knowledge(state, node)) {
            Step::Contradiction => out.push((action, next, Some(Violation::Forgotten))),
            Step::Overtaken => {
                next.nodes[node].stage = Stage::None;
                out.push((action, next, None));
            }
            Step::Resolved(committed) => {
                next.nodes[node].stage = Stage::None;
                let kind = me.undecided_kind;
                let violation = self.committed(&mut next, node, committed, kind);
                out.push((action, next, violation));
            }
            Step::Finish {
                view,
                own,
                superseded,
            } => {
                if superseded {
                    self.step_down(&mut next, node);
                }
                let kind = if own { me.undecided_kind } else { Kind::Finish };
                self.propose(&mut next, node, &view, kind);
                out.push((action, next, None));
            }
            Step::Decide {
                current,
                superseded,
            } => {
                if superseded {
                    self.step_down(&mut next, node);
                }
                if let Some(view) = current {
                    next.nodes[node].committed = self.table.index(&view);
                }
                for kind in self.wishes(&next, node) {
                    action = Action::Decide {
                        node,
                        kind: Some(kind),
                    };
                    let decided = self.wish(&next, node, kind, current.as_ref());
                    out.push((action, decided, None));
                }
            }
        }
    }

    /// The changes the node may want; `begin` asks so that no round is begun for nothing.
    fn wishes(&self, state: &State, node: usize) -> Vec<Kind> {
        let me = &state.nodes[node];
        let other = &state.nodes[1 - node];
        let Some(active) = self.table.view(me.active) else {
            let mut kinds = vec![Kind::Recover, Kind::Takeover];
            if me.stopped {
                kinds = vec![Kind::Hold];
            } else if self.scope.orders > 0 {
                kinds.extend([Kind::Resume, Kind::Claim]);
            }
            if !me.stopped && usize::from(state.forces) < self.scope.forces {
                kinds.push(Kind::Force);
            }
            return kinds;
        };
        if !me.undecided.is_none() {
            let change = self.change(state, node, me.undecided_kind);
            let retried = change.and_then(|change| change.retry(&self.rules));
            match retried {
                Some(Change::Remove { ends_add: true }) => return vec![Kind::EndAdd],
                Some(_) => return vec![me.undecided_kind],
                None => {} // The mutant: taken for dead; see `wish`.
            }
        }
        let mut kinds = Vec::new();
        if active.in_sync.contains(node_id(1 - node)) {
            kinds.push(Kind::Remove);
        } else {
            // R19: the engines prepared it, nothing is missing and the lease holds.
            let equal = other.data & me.data == me.data && other.queue == 0;
            if me.add_ready && me.session && me.lease && equal {
                kinds.push(Kind::Add);
            }
        }
        kinds
    }

    fn wish(&mut self, state: &State, node: usize, kind: Kind, current: Option<&View>) -> State {
        let mut next = *state;
        let me = &mut next.nodes[node];
        if !me.active.is_none() && !me.undecided.is_none() && !self.rules.end_undecided_add {
            // The mutant: not seen, so it is thought dead, and the engine loosens.
            me.undecided = ViewIndex::NONE;
            me.strict_add = false;
        }
        me.stage = Stage::None;
        let Some(change) = self.change(state, node, kind) else {
            return next;
        };
        let proposal = Proposal {
            node: node_id(node),
            change,
        };
        let Ok(view) = proposal.apply(current, &self.rules) else {
            next.nodes[node].undecided = ViewIndex::NONE;
            return next;
        };
        next.forces += u8::from(kind == Kind::Force);
        if matches!(kind, Kind::Takeover | Kind::Force) {
            self.begin_drain(&mut next, node, &view, kind);
        } else {
            self.propose(&mut next, node, &view, kind);
        }
        next
    }

    fn begin_drain(&mut self, next: &mut State, node: usize, view: &View, kind: Kind) {
        let seal = ViewNumber(view.number.0 - 1);
        let mut grant = self.grant(&next.nodes[node]);
        let rules = match kind {
            Kind::Force => self.rules.of_force(),
            _ => self.rules,
        };
        if !grant.seal_if_over(NOW, seal, &rules) {
            return;
        }
        let proposed = self.table.index(view);
        let me = &mut next.nodes[node];
        me.seal = small(grant.seal().0);
        me.stage = Stage::Draining;
        me.kind = kind;
        me.proposed = proposed;
        end_session(&mut next.nodes[1 - node]);
    }

    pub(super) fn drained(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let me = &state.nodes[node];
        if me.stage != Stage::Draining || (me.queue != 0 && self.rules.drain) {
            return;
        }
        let mut next = *state;
        if self.rules.durable_seal {
            next.nodes[node].seal_on_disk = me.seal;
        }
        let view = self.table.get(me.proposed);
        self.propose(&mut next, node, &view, me.kind);
        out.push((Action::Drained { node }, next, None));
    }

    fn propose(&mut self, next: &mut State, node: usize, view: &View, kind: Kind) {
        let index = self.table.index(view);
        let me = &mut next.nodes[node];
        me.stage = Stage::Accepting;
        me.kind = kind;
        me.proposed = index;
        if kind != Kind::Finish {
            me.undecided = index;
            me.undecided_kind = kind;
        }
        let ballot = me.ballot;
        let sent = next.sent.iter_mut().find(|sent| sent.ballot == ballot);
        sent.expect("its Prepare was sent").view = index;
    }

    pub(super) fn accept(
        &mut self,
        state: &State,
        slot: usize,
        voter: usize,
        reply: bool,
        out: &mut Vec<Successor>,
    ) {
        let sent = state.sent[slot];
        let Some(view) = self.table.view(sent.view) else {
            return;
        };
        let ballot = sent.ballot.unpack();
        let owner = usize::from(ballot.node);
        let mut next = *state;
        let mut acceptor = self.acceptor(&next.voters[voter]);
        let verdict = acceptor.accept(ballot, &view, &self.rules);
        self.keep(&mut next.voters[voter], &acceptor);
        let mut violation = self.note_chosen(&mut next, sent);
        let replaced = next.voters[voter].replaced;
        let proposer = &mut next.nodes[owner];
        let in_round = proposer.ballot == sent.ballot && proposer.stage == Stage::Accepting;
        match verdict {
            Verdict::Agreed if reply && in_round => {
                proposer.accepted_by |= 1 << voter;
                proposer.accepted_by_replaced |= u8::from(replaced) << voter;
                let mut round = self.round(&next.nodes[owner]);
                let from = NodeId::ALL[voter];
                if let Some(committed) = round.note_accepted(from, voter_id(voter, replaced)) {
                    let kind = next.nodes[owner].kind;
                    next.nodes[owner].stage = Stage::None;
                    violation = violation.or(self.committed(&mut next, owner, committed, kind));
                }
            }
            Verdict::Refused { promised } if reply => {
                refused(proposer, sent.ballot, promised.round, false);
            }
            _ => {}
        }
        if next != *state {
            out.push((Action::Accept { slot, voter, reply }, next, violation));
        }
    }

    /// The monitor: a majority of the recorded voters holds this view under one ballot.
    fn note_chosen(&mut self, next: &mut State, sent: Sent) -> Option<Violation> {
        let votes = next.voters.iter().filter(|voter| {
            !voter.replaced
                && voter.accepted
                    == Accepted {
                        ballot: sent.ballot,
                        view: sent.view,
                    }
        });
        if votes.count() < VoterSet::MAJORITY {
            return None;
        }
        self.choose(next, sent.view)
    }

    fn choose(&mut self, next: &mut State, view: ViewIndex) -> Option<Violation> {
        let number = usize::from(small(self.table.get(view).number.0));
        let known = &mut next.chosen[number];
        if !known.is_none() && *known != view {
            return Some(Violation::TwoViews);
        }
        *known = view;
        None
    }

    fn committed(
        &mut self,
        next: &mut State,
        node: usize,
        committed: CommittedView,
        kind: Kind,
    ) -> Option<Violation> {
        let view = *committed.view();
        let index = self.table.index(&view);
        let violation = self.choose(next, index);
        let own = self.change(next, node, kind);
        let accepted = self.table.view(next.voters[node].accepted.view);
        let newest = accepted.map_or(ViewNumber::NONE, |view| view.number);
        let known = self.table.view(next.nodes[node].committed);
        let outcome = Outcome::of(committed, &self.knowledge(next, node), own, newest);
        let me = &mut next.nodes[node];
        me.undecided = ViewIndex::NONE;
        if known.is_none_or(|known| known.number < view.number) {
            me.committed = index;
        }
        match outcome {
            Outcome::Activate(_) if me.stopped => {}
            Outcome::Activate(_) => self.activate(next, node, index),
            Outcome::Continue => {
                me.active = index;
                me.add_ready = false;
                if matches!(kind, Kind::Remove | Kind::EndAdd) {
                    me.strict_add = false;
                    end_session(me);
                }
            }
            Outcome::StepDown => self.step_down(next, node),
            Outcome::Learn => {
                if kind == Kind::Hold {
                    me.stopped = false;
                }
            }
        }
        violation
    }

    pub(super) fn activate(&self, next: &mut State, node: usize, view: ViewIndex) {
        let me = &mut next.nodes[node];
        me.active = view;
        me.forced = self.table.get(view).data_generation == FORCED_LINEAGE;
        me.lease = false;
        me.strict_add = false;
        end_session(me);
    }

    /// R9: what is in flight fails for ever.
    pub(super) fn step_down(&self, next: &mut State, node: usize) {
        let me = &mut next.nodes[node];
        me.active = ViewIndex::NONE;
        me.lease = false;
        me.strict_add = false;
        me.undecided = ViewIndex::NONE;
        end_session(me);
        if self.rules.drop_inflight {
            me.inflight = 0;
        }
    }
}

/// A refusal reached its proposer.
fn refused(proposer: &mut Node, ballot: BallotCode, promised_round: u32, preparing: bool) {
    let same_phase = match proposer.stage {
        Stage::Preparing => preparing,
        Stage::Accepting => !preparing,
        Stage::None | Stage::Draining => false,
    };
    if proposer.ballot == ballot && same_phase {
        proposer.highest_round = proposer
            .highest_round
            .max(u8::try_from(promised_round).expect("rounds of a scope are few"));
        proposer.stage = Stage::None;
    }
}
