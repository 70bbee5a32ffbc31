//! The promises, as properties of one state.

use replicator::types::View;
use thiserror::Error;

use super::machine::{Machine, node_id};
use super::state::State;

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Two nodes would serve guests.
    #[error("two gates are open")]
    TwoServers,
    /// A node would serve without a write that a guest believes in.
    #[error("a node serves without an acknowledged write")]
    LostWrite,
    /// A node would serve in a view that leaves it out.
    #[error("a stale replica serves")]
    StaleServes,
    /// A node would serve without its peer while a view that has the peer in sync may be chosen.
    #[error("a Primary does without a peer that may still be in sync")]
    LooseTooSoon,
    /// Two views with one number are committed.
    #[error("two views have one number")]
    TwoViews,
    /// A majority of voters does not know a committed view.
    #[error("a majority forgot a committed view")]
    Forgotten,
    /// A write of an earlier session reached the disk of a Primary.
    #[error("a write of an old session landed on a Primary's disk")]
    LateWrite,
}

impl Machine {
    pub(super) fn check(&self, state: &State) -> Option<Violation> {
        let open = [self.is_open(state, 0), self.is_open(state, 1)];
        if open == [true, true] {
            // Whoever needs nobody's promise to serve may not have heard of the forced one yet. But a lease
            // was waited for, and none is given after the seal.
            let old = (0..2).find(|node| !state.nodes[*node].forced);
            let apart = state.nodes[0].forced != state.nodes[1].forced;
            if !apart || old.is_some_and(|node| self.is_strict(state, node)) {
                return Some(Violation::TwoServers);
            }
        }
        let mut serving = (0..2).filter(|node| open[*node]);
        serving.find_map(|node| self.check_server(state, node))
    }

    fn check_server(&self, state: &State, node: usize) -> Option<Violation> {
        let me = &state.nodes[node];
        let acked = if me.forced {
            state.acked_forced
        } else {
            state.acked
        };
        if acked & !me.data != 0 {
            return Some(Violation::LostWrite);
        }
        let view = self.table.get(me.active);
        if !view.in_sync.contains(node_id(node)) {
            return Some(Violation::StaleServes);
        }
        let loose = !self.is_strict(state, node);
        (loose && self.peer_may_be_in_sync(state, 1 - node, &view))
            .then_some(Violation::LooseTooSoon)
    }

    /// Whether some two voters would tell a proposer now that `peer` is in sync, in the lineage of
    /// `own`: what was forced apart counts on other data.
    fn peer_may_be_in_sync(&self, state: &State, peer: usize, own: &View) -> bool {
        let mut pairs = [(0, 1), (0, 2), (1, 2)].into_iter();
        pairs.any(|(one, other)| {
            let (one, other) = (&state.voters[one], &state.voters[other]);
            let highest = if one.accepted.ballot > other.accepted.ballot {
                one.accepted
            } else {
                other.accepted
            };
            let view = self.table.view(highest.view);
            !one.replaced
                && !other.replaced
                && view.is_some_and(|view| {
                    view.data_generation == own.data_generation
                        && view.in_sync.contains(node_id(peer))
                })
        })
    }
}
