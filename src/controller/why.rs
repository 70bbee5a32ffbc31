//! Why a node is Primary of a resource or is not: the facts, for whoever puts them into words.

use core::time::Duration;

use replicator::types::{Failover, NodeId, View, ViewNumber};

use super::input::Order;
use super::output::Blocker;
use super::precondition::{Check, Precondition};
use super::view::{Abort, ProposalKind};

/// Everything that decides whether a node serves a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The view it serves in, if it does.
    pub active: Option<View>,
    /// What must hold before it may begin to, as things are.
    pub checks: Vec<(Precondition, Check)>,
    /// What would be in the way of the order `primary`; empty if nothing.
    pub order_blockers: Vec<Blocker>,
    /// What would be in the way of the order `move` on this node; empty if nothing.
    pub move_blockers: Vec<Blocker>,
    /// The newest view heard of, committed or only accepted by this node's voter.
    pub view: Option<View>,
    /// The newest known to be committed.
    pub committed: ViewNumber,
    /// What an active node has from its peer.
    pub lease: LeaseFacts,
    /// What its peer has from it.
    pub grant: GrantFacts,
    /// Whether the node takes over by itself.
    pub failover: Failover,
    /// The order being carried out here.
    pub order: Option<Order>,
    /// The proposal being decided.
    pub proposal: Option<ProposalKind>,
    /// Why the last one did not apply, if that was the last thing that happened.
    pub last_abort: Option<(ProposalKind, Abort)>,
}

/// The holder's side of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseFacts {
    /// The view counts on the peer, so that serving needs its promise.
    pub needed: bool,
    /// It is over: guests are held.
    pub lapsed: bool,
    /// How long it runs; `None` if there was none in this activation.
    pub remaining: Option<Duration>,
}

/// The granter's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantFacts {
    /// How long the peer may still rely on this node's silence; `None` if it may not.
    pub remaining: Option<Duration>,
    /// It is one that may have been given before this node started (R7).
    pub boot_wait: bool,
    /// Views up to this one are refused.
    pub seal: ViewNumber,
}

/// What making the node Primary by force would give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForceLoss {
    /// There never was anything.
    NeverServed,
    /// Unknown: the view leaves the node out.
    LeftOut,
    /// Unknown: the replica here may lack what the view promises, for this reason.
    Replica(Blocker),
    /// Unknown: the view was forced on this node alone, and others may have gone on.
    MayBeOverruled,
    /// Unknown: too few voters are seen to know that the view is the newest.
    MayBeOld,
    /// No acknowledged write.
    Nothing,
}

impl Why {
    /// What force would give up at `node`, where this was asked. What speaks against its replica comes
    /// before what the view says: the view does not know of it.
    #[must_use]
    pub fn force_loss(&self, node: NodeId) -> ForceLoss {
        let Some(view) = &self.view else {
            return ForceLoss::NeverServed;
        };
        if !view.in_sync.contains(node) {
            return ForceLoss::LeftOut;
        }
        let unmet = |wanted: &[Precondition]| {
            let mut of = self.checks.iter().filter(|(it, _)| wanted.contains(it));
            of.find_map(|(_, check)| check.blocker())
        };
        let of_replica = [
            Precondition::Attached,
            Precondition::SameReplica,
            Precondition::Whole,
            Precondition::KeptEverything,
        ];
        if let Some(blocker) = unmet(&of_replica) {
            ForceLoss::Replica(blocker)
        } else if view.voters.needed() == 1 {
            ForceLoss::MayBeOverruled
        } else if unmet(&[Precondition::Majority]).is_some() {
            ForceLoss::MayBeOld
        } else {
            ForceLoss::Nothing
        }
    }

    /// The first thing that keeps the node from beginning to serve by itself.
    #[must_use]
    pub fn first_blocker(&self) -> Option<Blocker> {
        let unmet = || self.checks.iter().filter_map(|(_, check)| check.blocker());
        // What waiting cannot mend says more than what it can.
        unmet()
            .find(|blocker| !blocker.may_pass())
            .or_else(|| unmet().next())
    }

    /// Whether an operator's `primary` would do, and nothing else is missing.
    #[must_use]
    pub fn awaits_order(&self) -> bool {
        self.active.is_none() && self.first_blocker().is_some() && self.order_blockers.is_empty()
    }
}
