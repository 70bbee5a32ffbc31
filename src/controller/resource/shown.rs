//! What others see of a resource at this node: the beacon, `status`, and news for who is behind.

use replicator::types::{View, ViewNumber};

use super::super::message::BeaconEntry;
use super::super::output::{PeerClaim, ResourceSnapshot};
use super::{Context, Me, Resource};

impl Resource {
    /// This node's beacon about the resource.
    pub(in super::super) fn beacon_entry(&self, me: &Me) -> BeaconEntry {
        let known = self.committed_for_others(me).map(|view| view.number);
        let replica = self.replica;
        BeaconEntry {
            resource: self.id,
            view: self
                .active
                .map_or(known.unwrap_or(self.grant.seal()), |active| {
                    active.view.number
                }),
            up: self.record().up,
            active: self.active.is_some(),
            attached: replica.is_some(),
            eligible: replica.is_some_and(|facts| facts.eligible)
                && !self.vetoed
                && !self.local_failed,
            kept: replica.is_some_and(|facts| !facts.lost_volatile),
            blank: replica.is_some_and(|facts| facts.blank),
            handed_over: self.active.is_none() && self.handed_over == Some(self.committed_number()),
            size_blocks: replica.map_or(0, |facts| facts.size_blocks),
        }
    }

    /// The newest committed view if a node that knows only `known` should hear of it.
    pub(in super::super) fn news_for(&self, me: &Me, known: ViewNumber) -> Option<View> {
        self.committed_for_others(me)
            .filter(|view| view.number > known)
    }

    /// For `status`.
    pub(in super::super) fn snapshot(&self, cx: &Context<'_>) -> ResourceSnapshot {
        let blockers = self.blockers(cx);
        let lease_remaining = self
            .lease
            .until()
            .filter(|_| self.needs_lease(cx))
            .map(|until| until.since(cx.now));
        ResourceSnapshot {
            up: self.record().up,
            activated: self.active.is_some(),
            view: self.committed(),
            lease_remaining,
            lease_lapsed: self.lease_lapsed,
            may_promote: self.active.is_none() && blockers.is_empty(),
            blockers,
            proposal: self.proposal_kind(),
            last_abort: self.last_abort,
            peer: self.fresh_claim(cx).map(|entry| PeerClaim {
                up: entry.up,
                active: entry.active,
                attached: entry.attached,
                eligible: entry.eligible,
                view: entry.view,
            }),
            peer_well_since: self.peer_well_since,
            move_blocker: self
                .active
                .and_then(|_| self.move_blockers(cx).first().copied()),
        }
    }

    /// What the peer said about the resource, if it was heard less than S ago.
    pub(super) fn fresh_claim(&self, cx: &Context<'_>) -> Option<BeaconEntry> {
        self.claim
            .filter(|(at, _)| cx.now < at.plus(cx.me.timing.suspicion))
            .map(|(_, entry)| entry)
    }
}
