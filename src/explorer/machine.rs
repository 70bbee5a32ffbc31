//! What can happen next: every step of voters and proposers, made with the production functions.
//!
//! Messages are never removed: a Prepare or an Accept that was sent may arrive at any time, twice,
//! after its sender died, or never. Replies come with their request or are lost. Whether to wish for
//! something is left to chance; whether it is *allowed* is what the production functions say.

use replicator::types::{
    DataGeneration, InSync, Instant, NodeId, ReplicaId, View, ViewCause, ViewNumber, VoterId,
    VoterSet,
};

use super::check::Violation;
use super::state::{
    Accepted, BallotCode, Kind, NUMBERS_MAX, Node, ROUNDS_MAX, Sent, Stage, State, Table,
    ViewIndex, Voter,
};
use super::{Scope, Start};
use crate::controller::decision::Knowledge;
use crate::controller::lease::{Grant, Timing};
use crate::controller::register::{Acceptor, Promise, Round};
use crate::controller::rules::Rules;
use crate::controller::view::Change;

/// One thing that happened, for the trace of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are the steps; `Display` says them in words"
)]
pub(super) enum Action {
    Begin {
        node: usize,
    },
    Prepare {
        slot: usize,
        voter: usize,
        reply: bool,
    },
    Decide {
        node: usize,
        kind: Option<Kind>,
    },
    Drained {
        node: usize,
    },
    Accept {
        slot: usize,
        voter: usize,
        reply: bool,
    },
    Learn {
        node: usize,
        number: usize,
    },
    Beacon {
        node: usize,
        reply: bool,
    },
    LeaseEnds {
        node: usize,
    },
    GrantEnds {
        node: usize,
    },
    Crash {
        node: usize,
        lands: bool,
    },
    Wipe,
    Stop {
        node: usize,
    },
    GiveStopUp {
        node: usize,
    },
    Connect {
        node: usize,
    },
    Cut {
        node: usize,
    },
    Write {
        node: usize,
    },
    Replicate {
        node: usize,
        write: u8,
    },
    Land {
        node: usize,
        write: u8,
    },
    Complete {
        node: usize,
        write: u8,
    },
    Resync {
        node: usize,
    },
    BeginAdd {
        node: usize,
    },
}

/// A successor, and the violation if its step broke a promise on the way.
pub(super) type Successor = (Action, State, Option<Violation>);

/// The rules, the scope, and the views met.
pub(super) struct Machine {
    pub(super) rules: Rules,
    pub(super) scope: Scope,
    pub(super) table: Table,
}

/// The model has no clock: a grant runs or it does not. Production grants are made at this moment.
pub(super) const NOW: Instant = Instant(10);
pub(super) const TIMING: Timing = Timing::FAST;

impl Machine {
    pub(super) fn new(scope: Scope, rules: Rules) -> Self {
        assert!(scope.rounds < ROUNDS_MAX && scope.rounds + 2 < NUMBERS_MAX);
        Self {
            rules,
            scope,
            table: Table::default(),
        }
    }

    /// A serves in view 1, all know it.
    pub(super) fn initial(&mut self) -> State {
        let both = self.scope.start == Start::Both;
        let view = View {
            number: ViewNumber(1),
            primary: NodeId::A,
            in_sync: InSync { a: true, b: both },
            data_generation: LINEAGE,
            replicas: [Some(replica(0)), Some(replica(1))],
            voters: VoterSet([0, 1, 2].map(|voter| Some(voter_id(voter, false)))),
            size_blocks: 1,
            held: false,
            lossy: false,
            forced: false,
            cause: ViewCause::Founded,
        };
        let index = self.table.index(&view);
        let ballot = BallotCode::pack(replicator::types::Ballot {
            round: 1,
            node: 0,
            incarnation: 0,
        });
        let mut state = State::default();
        for voter in &mut state.voters {
            *voter = Voter {
                promised: ballot,
                accepted: Accepted {
                    ballot,
                    view: index,
                },
                replaced: false,
            };
        }
        for node in &mut state.nodes {
            node.committed = index;
        }
        state.nodes[0].active = index;
        state.nodes[0].session = true;
        state.nodes[0].lease = both;
        state.nodes[1].granted = both;
        state.chosen[1] = index;
        state
    }

    /// Everything that can happen in `state`.
    pub(super) fn successors(&mut self, state: &State, out: &mut Vec<Successor>) {
        out.clear();
        for node in 0..2 {
            self.begin(state, node, out);
            self.decide(state, node, out);
            self.drained(state, node, out);
            self.learn(state, node, out);
            self.beacon(state, node, out);
            self.ends(state, node, out);
            self.crash(state, node, out);
            self.stop(state, node, out);
            self.engine(state, node, out);
        }
        for slot in 0..ROUNDS_MAX {
            if state.sent[slot].ballot != BallotCode::default() {
                for voter in 0..3 {
                    for reply in [true, false] {
                        self.prepare(state, slot, voter, reply, out);
                        self.accept(state, slot, voter, reply, out);
                    }
                }
            }
        }
        self.wipe(state, out);
        for (_, next, violation) in out.iter_mut() {
            normalise(next);
            if violation.is_none() {
                *violation = self.check(next);
            }
        }
    }

    // ---- packing ----

    pub(super) fn acceptor(&self, voter: &Voter) -> Acceptor {
        Acceptor {
            promised: voter.promised.unpack(),
            accepted: self.accepted(voter.accepted),
        }
    }

    pub(super) fn accepted(&self, accepted: Accepted) -> Option<(replicator::types::Ballot, View)> {
        let view = self.table.view(accepted.view)?;
        Some((accepted.ballot.unpack(), view))
    }

    pub(super) fn keep(&mut self, voter: &mut Voter, acceptor: &Acceptor) {
        voter.promised = BallotCode::pack(acceptor.promised);
        if let Some((ballot, view)) = &acceptor.accepted {
            voter.accepted = Accepted {
                ballot: BallotCode::pack(*ballot),
                view: self.table.index(view),
            };
        }
    }

    pub(super) fn round(&self, node: &Node) -> Round {
        let mut round = Round::new(node.ballot.unpack());
        for (voter, note) in node.promises.iter().enumerate() {
            if note.given {
                let promise = Promise {
                    voter: voter_id(voter, note.replaced),
                    accepted: self.accepted(note.accepted),
                };
                round.note_promise(NodeId::ALL[voter], promise);
            }
        }
        if node.stage == Stage::Accepting {
            round.propose(self.table.get(node.proposed));
            for voter in 0..3 {
                if node.accepted_by >> voter & 1 == 1 {
                    let replaced = node.accepted_by_replaced >> voter & 1 == 1;
                    round.note_accepted(NodeId::ALL[voter], voter_id(voter, replaced));
                }
            }
        }
        round
    }

    pub(super) fn grant(&self, node: &Node) -> Grant {
        let seal = ViewNumber(u64::from(node.seal));
        let began = if node.granted { NOW } else { Instant::ZERO };
        let grant = Grant::at_start(began, seal, &MODEL_GRANT, &Rules::ALL);
        debug_assert_eq!(grant.runs(NOW), node.granted);
        grant
    }

    pub(super) fn knowledge(&self, state: &State, node: usize) -> Knowledge {
        let me = &state.nodes[node];
        let proposed = me.stage == Stage::Accepting && me.kind != Kind::Finish;
        let undecided = if proposed { me.proposed } else { me.undecided };
        Knowledge {
            node: node_id(node),
            committed: self.table.view(me.committed),
            committed_at_begin: self
                .table
                .view(me.committed_at_begin)
                .map_or(ViewNumber::NONE, |view| view.number),
            active: self.table.view(me.active),
            undecided: self.table.view(undecided),
        }
    }

    pub(super) fn change(&self, state: &State, node: usize, kind: Kind) -> Option<Change> {
        let active = self.table.view(state.nodes[node].active);
        let number = active.map_or(ViewNumber::NONE, |view| view.number.next());
        Some(match kind {
            Kind::Finish => return None,
            Kind::Recover | Kind::Resume => Change::Recover {
                replica: replica(node),
                lossy: false,
                ends_hold: kind == Kind::Resume,
            },
            Kind::Takeover => Change::Takeover {
                replica: replica(node),
                lossy: false,
            },
            Kind::Remove => Change::Remove { ends_add: false },
            Kind::EndAdd => Change::Remove { ends_add: true },
            Kind::Add => Change::Add {
                replica: replica(1 - node),
                number,
            },
            Kind::Force => Change::Force {
                // What was known when the round began is what the operator was told.
                about: self
                    .table
                    .view(state.nodes[node].committed_at_begin)
                    .map_or(ViewNumber::NONE, |view| view.number),
                replica: replica(node),
                data_generation: FORCED_LINEAGE,
                alone: None,
            },
            Kind::Hold => Change::Hold { lossy: false },
            Kind::Claim => Change::Claim {
                replica: replica(node),
                lossy: false,
            },
        })
    }
}

const LINEAGE: DataGeneration = DataGeneration(1);
pub(super) const FORCED_LINEAGE: DataGeneration = DataGeneration(2);

/// So short that a grant given at zero is over at [`NOW`], and one given now is not.
const MODEL_GRANT: Timing = Timing {
    grant: core::time::Duration::from_nanos(5),
    ..TIMING
};

pub(super) fn node_id(node: usize) -> NodeId {
    NodeId::ALL[node]
}

fn replica(node: usize) -> ReplicaId {
    [ReplicaId(1), ReplicaId(2)][node]
}

pub(super) fn voter_id(voter: usize, replaced: bool) -> VoterId {
    let original = [VoterId(1), VoterId(2), VoterId(3)][voter];
    VoterId(original.0 + if replaced { 100 } else { 0 })
}

pub(super) fn small(number: u64) -> u8 {
    u8::try_from(number).expect("view numbers of a scope are small")
}

/// R21: the session's id dies first; its late acknowledgements do not count.
pub(super) fn end_session(node: &mut Node) {
    node.session = false;
    node.add_ready = false;
    node.peer_has = 0;
}

/// Forgets what can not matter any more, so that equal worlds look equal.
fn normalise(state: &mut State) {
    for (node, voter) in state.nodes.iter_mut().zip(&state.voters) {
        if u32::from(node.highest_round) <= voter.promised.unpack().round {
            node.highest_round = 0;
        }
        if node.stage == Stage::None {
            node.ballot = BallotCode::default();
        }
        if !matches!(node.stage, Stage::Draining | Stage::Accepting) {
            node.kind = Kind::Finish;
            node.proposed = ViewIndex::NONE;
        }
        if node.stage != Stage::Preparing {
            node.promises = Default::default();
            node.committed_at_begin = ViewIndex::NONE;
        }
        if node.stage != Stage::Accepting {
            node.accepted_by = 0;
            node.accepted_by_replaced = 0;
        }
        if node.queue == 0 {
            node.queue_view = 0;
        }
        if node.undecided.is_none() {
            node.undecided_kind = Kind::Finish;
        }
    }
    let (voters, nodes) = (state.voters, state.nodes);
    for sent in &mut state.sent {
        // Every voter would refuse it, and nobody waits for the answer.
        let refused = voters.iter().all(|voter| voter.promised > sent.ballot);
        let awaited = nodes.iter().any(|node| node.ballot == sent.ballot);
        if refused && !awaited {
            *sent = Sent::default();
        }
    }
    state
        .sent
        .sort_unstable_by_key(|sent| core::cmp::Reverse(sent.ballot));
}
