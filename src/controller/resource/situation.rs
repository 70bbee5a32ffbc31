//! How a resource stands: what its node's preconditions look at, and the answers that rest on them.

use replicator::types::{Failover, Instant};

use super::super::Configured;
use super::super::beacon::Peer;
use super::super::output::Blocker;
use super::super::precondition::Situation;
use super::super::why::{GrantFacts, LeaseFacts, Why};
use super::{Context, KEPT_GRACE, Me, Resource};

impl Resource {
    pub(in super::super) fn configure(&mut self, now: Instant, configured: Option<Configured>) {
        if self.configured.is_none() {
            self.takes_part_since = now;
        }
        self.configured = configured;
    }

    pub(in super::super) fn configured(&self) -> bool {
        self.configured.is_some()
    }

    /// What decides whether this node, not active, may begin to serve: as things are, or with
    /// `ordered` as if an operator said `primary`.
    pub(super) fn situation(&self, cx: &Context<'_>, ordered: bool) -> Situation<'_> {
        Situation {
            now: cx.now,
            node: cx.me.node,
            up: cx.me.node.is_data() && self.record().up,
            leaving: self.wants_down() || self.stopping,
            ordered,
            ends_hold: self.ends_hold,
            view: self.record().newest(),
            replica: self.replica.as_ref(),
            disk_failed: self.local_failed,
            vetoed: self.vetoed,
            forced: false,
            claim: self
                .claim
                .filter(|(at, _)| cx.now < at.plus(cx.me.timing.suspicion)),
            kept_wait_end: self.kept_wait_end(cx.me),
            awaits_peer: self.awaits_peer_replica(cx),
            peer_left: self.peer_left,
            fenced: self.peer_fenced,
            grant_until: self.grant.until(),
            grant_counts: cx.me.rules.grant_outlives_lease,
            has_arbitrator: cx.me.has_arbitrator,
            failover: match self.configured {
                // A person decides to do without what the peer may not have got.
                Some(_) if self.answers_ahead() => Failover::Manual,
                configured => configured.map(|it| it.failover).unwrap_or_default(),
            },
            automation: cx.me.automation,
            head_start_until: self.head_start_until(cx.me),
            voters_seen: cx.voters_seen(),
            others_heard: cx.others_heard(),
            quiet_at: self.quiet_at(cx.me, cx.peers),
        }
    }

    /// Why `primary` would not succeed now. Empty on an active node.
    pub(super) fn blockers(&self, cx: &Context<'_>) -> Vec<Blocker> {
        if self.active.is_some() {
            return Vec::new();
        }
        let checks = self.situation(cx, true).checks();
        checks
            .into_iter()
            .filter_map(|(_, check)| check.blocker())
            .collect()
    }

    /// When a replica that lost acknowledged writes stops waiting for a silent peer (R17): so long
    /// after this node's start, and after the peer was last heard to have kept them. It may only be
    /// restarting.
    pub(super) fn kept_wait_end(&self, me: &Me) -> Instant {
        let since = self
            .peer_kept_at
            .map_or(self.takes_part_since, |at| at.max(self.takes_part_since));
        since.plus(me.timing.grant).plus(KEPT_GRACE)
    }

    /// When no other voter was heard for as long as an unplanned takeover waits.
    pub(super) fn quiet_at(&self, me: &Me, peers: &[Peer; 3]) -> Instant {
        let heard = me.others().filter_map(|node| peers[node.index()].heard());
        let since = heard
            .max()
            .map_or(self.takes_part_since, |at| at.max(self.takes_part_since));
        since.plus(me.timing.grant)
    }

    /// Whether the peer may be about to tell what replica it has.
    fn awaits_peer_replica(&self, cx: &Context<'_>) -> bool {
        match self.fresh_claim(cx) {
            None => cx.now < self.takes_part_since.plus(cx.me.timing.suspicion),
            Some(claim) => {
                let patience = self
                    .order_since()
                    .map(|at| at.plus(super::orders::ATTACH_PATIENCE));
                claim.up && !claim.attached && patience.is_some_and(|end| cx.now < end)
            }
        }
    }

    /// For `why`: everything that decides, with its evidence.
    pub(in super::super) fn why(&self, cx: &Context<'_>) -> Why {
        let situation = self.situation(cx, self.wants_primary());
        let timing = &cx.me.timing;
        Why {
            active: self.active.map(|active| active.view),
            checks: situation.checks(),
            order_blockers: self.blockers(cx),
            move_blockers: self.move_blockers(cx),
            view: self.record().newest().copied(),
            committed: self.committed_number(),
            lease: LeaseFacts {
                needed: self.needs_lease(cx) || self.add_at_large.is_some(),
                lapsed: self.lease_lapsed,
                remaining: self.lease.until().map(|until| until.since(cx.now)),
            },
            grant: GrantFacts {
                remaining: Some(situation.grant_remaining()).filter(|left| !left.is_zero()),
                boot_wait: self.grant.until() == self.takes_part_since.plus(timing.grant),
                seal: self.grant.seal(),
            },
            failover: situation.failover,
            order: self.order_what(),
            proposal: self.proposal_kind(),
            last_abort: self.last_abort,
        }
    }
}
