//! The dry run: the situation as it would be, and the checks that would decide.

use core::time::Duration;

use replicator::types::{InSync, NodeId};

use super::super::output::Blocker;
use super::super::what_if::Fate;
use super::{Active, Context, Resource, seen_window};

impl Resource {
    /// What would become of the resource, as far as this data node is concerned, if `dead` died now.
    pub(in super::super) fn fate(&self, cx: &Context<'_>, dead: NodeId) -> Fate {
        let seen = 1 + cx
            .others()
            .filter(|node| *node != dead)
            .filter(|node| cx.peers[node.index()].is_seen(cx.now, seen_window(*node, cx.me)))
            .count();
        let peer_dies = dead == cx.me.node.peer();
        if let Some(active) = &self.active {
            return match peer_dies {
                true => self.fate_of_active(cx, active, seen),
                false => Fate::Unaffected,
            };
        }
        let peer_serves = self.fresh_claim(cx).is_some_and(|claim| claim.active);
        if peer_serves && !peer_dies {
            return Fate::Unaffected;
        }
        let mut situation = self.situation(cx, self.wants_primary());
        situation.voters_seen = seen;
        let mut after = situation.grant_remaining();
        if peer_dies {
            // Its last beacon renews what it was promised; then it is silent for all that time.
            if peer_serves {
                after = cx.me.timing.grant;
            }
            after = after.max(situation.head_start_until.since(cx.now));
            situation.claim = None;
            situation.awaits_peer = false;
            situation.now = cx.now.plus(after);
        }
        let checks = situation.checks().into_iter();
        let blockers: Vec<_> = checks.filter_map(|(_, check)| check.blocker()).collect();
        match blockers.is_empty() {
            true => {
                let ours = self
                    .record()
                    .newest()
                    .is_some_and(|view| view.primary == cx.me.node);
                let after = if ours { Duration::ZERO } else { after };
                Fate::ServesHere { after }
            }
            false => Fate::NobodyServes { blockers },
        }
    }

    fn fate_of_active(&self, cx: &Context<'_>, active: &Active, seen: usize) -> Fate {
        let peer = cx.me.node.peer();
        let in_sync = active.view.in_sync;
        // As strict as with an in-sync peer while an Add is undecided (R4), and no Remove is proposed from
        // a replica whose own disk is in doubt (R18).
        let alone = !in_sync.contains(peer) && self.add_at_large.is_none();
        let doubtful = self.replica.is_some_and(|replica| replica.doubtful);
        if alone {
            Fate::Unaffected
        } else if in_sync == InSync::only(peer) || self.local_failed || doubtful {
            Fate::NoData
        } else if seen < self.votes_needed() {
            let blocker = Blocker::NoQuorum { seen };
            Fate::Held { blocker }
        } else {
            let after = cx.me.timing.suspicion;
            Fate::GoesOn { after }
        }
    }
}
