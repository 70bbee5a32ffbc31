//! What the preference of a node counts for in a resource: whether the peer is well enough to have it
//! back, and a head start for the preferred node where both start at once.
//!
//! Neither makes anything possible: the one is a fact for [`super::super::placement`], the other lets
//! a takeover wait a little longer.

use core::time::Duration;

use replicator::types::Instant;

use super::{Context, Me, Resource};

/// How much longer than its boot wait a node that starts leaves the first word to a preferred Primary
/// of record. Hosts of one power cut are seconds apart; a host that is dead costs no more than this,
/// and only if the other one has just started, too.
const HEAD_START: Duration = Duration::from_secs(5);

impl Resource {
    /// Whether the peer could follow this node at any moment; an interruption begins it anew.
    pub(super) fn note_peer_well(&mut self, cx: &Context<'_>) {
        if !cx.me.node.is_data() {
            return;
        }
        let silent = cx.peer().is_suspect(cx.now, cx.me.timing.suspicion);
        let connected = self.session_up && self.peer_lost_at.is_none() && !self.peer_failed;
        let ready = self
            .fresh_claim(cx)
            .is_some_and(|claim| claim.up && claim.attached && claim.eligible && claim.kept);
        let well = self.peer_is_in_sync(cx) && connected && ready && !silent;
        self.peer_well_since = match well {
            true => self.peer_well_since.or(Some(cx.now)),
            false => None,
        };
    }

    /// Until when this node does not take over by itself from a peer that is preferred, and was Primary
    /// when both of them stopped.
    pub(super) fn head_start_until(&self, me: &Me) -> Instant {
        if !me.node.is_data() {
            return Instant::ZERO;
        }
        let peer = me.node.peer();
        let preferred = self.configured.is_some_and(|it| it.prefer == Some(peer));
        let could = self
            .record()
            .newest()
            .is_some_and(|view| view.primary == peer && view.in_sync.contains(peer));
        match preferred && could {
            true => self.takes_part_since.plus(me.timing.grant + HEAD_START),
            false => Instant::ZERO,
        }
    }
}
