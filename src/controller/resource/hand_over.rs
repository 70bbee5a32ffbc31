//! Stepping aside for the peer: before a stop (`HandOver`), and as the planned change of the Primary
//! (`Move`). The peer needs to wait for no lease: this node says that it will never serve in the
//! view again, after everything of it became durable on both replicas (R20).
//!
//! Invariant: what was moved is never left to nobody by the order. A peer that falls silent or does
//! not take over within G is waited for no more, and this node proposes to serve again in a newer
//! view; if the peer still takes over, the register lets one of the two.

use core::time::Duration;

use replicator::types::View;

use super::super::input::Order;
use super::super::output::{Blocker, EngineCommand, StepDownReason};
use super::super::view::Change;
use super::orders::{Pending, Stage};
use super::{Context, Me, Resource};

/// How long a move may hold guests until everything is durable on both replicas: longer than any
/// disk in order takes, shorter than what guests give up after.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// Grants that a return may last: a Recover over a bad network, and the wait for a lease or a Remove.
const RETURN_GRANTS: u32 = 2;

impl Pending {
    /// How long its stage may last, where that is not the order's own deadline.
    pub(super) fn patience(&self, me: &Me) -> Duration {
        match self.stage {
            Stage::Quiescing => QUIET_MAX,
            // As long as the peer would have waited before an unplanned takeover.
            Stage::Leaving => me.timing.grant,
            Stage::Returning => me.timing.grant * RETURN_GRANTS,
            Stage::Promoting if self.is(Order::Force) => me.timing.grant,
            Stage::Promoting | Stage::AwaitingQuorum | Stage::Holding | Stage::Recording => {
                Duration::ZERO
            }
        }
    }

    /// Whether it must be brought to an end of its own: a move that left nobody serving is not
    /// given up in between.
    pub(super) fn is_past_its_deadline(&self) -> bool {
        self.is(Order::Move) && matches!(self.stage, Stage::Leaving | Stage::Returning)
    }
}

impl Resource {
    pub(super) fn peer_is_in_sync(&self, cx: &Context<'_>) -> bool {
        self.active
            .is_some_and(|active| active.view.in_sync.contains(cx.me.node.peer()))
    }

    /// Whether a view without the peer is wanted, or may have been chosen.
    pub(super) fn removes_peer(&self, cx: &Context<'_>) -> bool {
        matches!(self.desire(cx), Some(Change::Remove { .. }))
    }

    /// Whether the peer would take over at once if this node stepped aside.
    pub(super) fn peer_could_follow(&self, cx: &Context<'_>) -> bool {
        self.peer_is_in_sync(cx)
            && self
                .fresh_claim(cx)
                .is_some_and(|claim| claim.up && claim.attached && claim.eligible)
    }

    /// Whether the newest view names the peer and the peer says that it serves.
    pub(super) fn peer_serves(&self, cx: &Context<'_>) -> bool {
        self.active.is_none()
            && self.names_peer(cx)
            && self.fresh_claim(cx).is_some_and(|claim| claim.active)
    }

    fn names_peer(&self, cx: &Context<'_>) -> bool {
        self.committed()
            .is_some_and(|view| view.primary == cx.me.node.peer())
    }

    /// Why this node cannot make way for its peer now; empty if it can.
    pub(super) fn move_blockers(&self, cx: &Context<'_>) -> Vec<Blocker> {
        let Some(active) = self.active else {
            return vec![Blocker::NobodyServes];
        };
        let mut blockers = Vec::new();
        if !self.peer_is_in_sync(cx) {
            let view = active.view.number;
            blockers.push(Blocker::PeerNotInSync { view });
        }
        let silent = cx.peer().is_suspect(cx.now, cx.me.timing.suspicion);
        match self.fresh_claim(cx).filter(|_| !silent) {
            None => blockers.push(Blocker::PeerSilent),
            Some(claim) if !claim.up => blockers.push(Blocker::PeerNotUp),
            // One that lost acknowledged writes would wait for this node to give them back.
            Some(claim) if !(claim.attached && claim.eligible && claim.kept) => {
                blockers.push(Blocker::PeerNotReady);
            }
            Some(_) => {}
        }
        let seen = cx.voters_seen();
        if seen < self.votes_needed() {
            blockers.push(Blocker::NoQuorum { seen });
        }
        // What left and was not answered is settled first.
        if self.undecided.is_some() {
            blockers.push(Blocker::Undecided);
        }
        blockers
    }

    /// A move before this node steps down: it is given up at once where waiting mends nothing, and
    /// guests are not held for a peer that went away meanwhile.
    pub(super) fn progress_move(&mut self, cx: &mut Context<'_>, stage: Stage) {
        if self.peer_serves(cx) {
            return self.end_order(cx, false);
        }
        let mut blockers = self.move_blockers(cx);
        let quiescing = stage == Stage::Quiescing;
        if quiescing && blockers.is_empty() && self.stage_is_over(cx) {
            blockers.push(Blocker::NotQuiet);
        }
        // Its next beacon may say otherwise than one from before the order.
        let since = self.order_since().unwrap_or(cx.now);
        let heard = self.claim.is_some_and(|(at, _)| at > since);
        let hopeless = blockers
            .iter()
            .any(|blocker| !blocker.may_pass() && (heard || *blocker != Blocker::PeerNotUp));
        if quiescing && !blockers.is_empty() {
            self.unquiesce(cx);
            self.refuse_order(cx, blockers);
        } else if hopeless {
            self.refuse_order(cx, blockers);
        } else if !quiescing && blockers.is_empty() {
            self.begin_quiesce(cx);
        }
    }

    pub(super) fn unquiesce(&mut self, cx: &mut Context<'_>) {
        if self.active.is_some() {
            cx.engine(self.id, EngineCommand::Unquiesce);
        }
    }

    /// Everything is durable on both replicas: this node serves no more, and says so at once.
    pub(super) fn leave_to_peer(&mut self, cx: &mut Context<'_>, view: &View, what: Order) {
        if what == Order::Move {
            let blockers = self.move_blockers(cx);
            if !blockers.is_empty() {
                self.unquiesce(cx);
                return self.refuse_order(cx, blockers);
            }
        }
        let leaves_nobody = !self.peer_is_in_sync(cx) || self.removes_peer(cx);
        if what == Order::HandOver && leaves_nobody {
            // A view without the peer may be chosen already: nobody could follow. Guests are
            // served until it is known.
            self.unquiesce(cx);
            return self.set_stage(cx, Stage::AwaitingQuorum);
        }
        self.handed_over = Some(view.number);
        self.stopping = what == Order::HandOver;
        self.step_down(cx, StepDownReason::Ordered);
        self.set_stage(cx, Stage::Leaving);
    }

    pub(super) fn progress_leaving(&mut self, cx: &mut Context<'_>, what: Order) {
        if self
            .committed()
            .is_none_or(|view| view.primary != cx.me.node)
        {
            return self.end_order(cx, false);
        }
        // A view that was on its way when this node left may have removed the peer.
        let peer = cx.me.node.peer();
        let cannot = self
            .committed()
            .is_some_and(|view| !view.in_sync.contains(peer));
        let silent = cx.peer().is_suspect(cx.now, cx.me.timing.suspicion);
        if what == Order::Move && (cannot || silent || self.stage_is_over(cx)) {
            self.set_stage(cx, Stage::Returning);
        }
    }

    pub(super) fn progress_returning(&mut self, cx: &mut Context<'_>) {
        if self.active.is_some() {
            self.refuse_order(cx, vec![Blocker::NotTaken]);
        } else if self.names_peer(cx) {
            self.end_order(cx, false);
        } else if self.stage_is_over(cx) {
            // It goes on trying by itself: nothing is held.
            let mut blockers = self.blockers(cx);
            blockers.push(Blocker::Undecided);
            self.refuse_order(cx, blockers);
        }
    }
}
