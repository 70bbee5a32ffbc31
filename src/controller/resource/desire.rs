//! What this node wants to propose, given what it knows. Pure questions; asked before a round
//! begins and again with what the round read.

use core::time::Duration;

use replicator::types::{
    Failover, InSync, Instant, NodeId, ReplicaId, ReplicationProtocol, View, VoterSet,
};

use super::super::input::{Order, ReplicaFacts};
use super::super::output::{Blocker, EngineCommand};
use super::super::view::Change;
use super::orders::Stage;
use super::{Active, AddStage, Context, KEPT_GRACE, Me, Resource, SESSION_GRACE};

/// Before a node only asks what was decided, no other node has run a round for so long: several
/// times what a round with slow voter stores takes.
const ASK_AFTER_QUIET: Duration = Duration::from_secs(2);

impl Resource {
    /// When a replica that lost acknowledged writes stops waiting for a silent peer (R17): so long
    /// after this node's start, and after the peer was last heard to have kept them. It may only be
    /// restarting.
    pub(super) fn kept_wait_end(&self, me: &Me) -> Instant {
        let since = self
            .peer_kept_at
            .map_or(self.takes_part_since, |at| at.max(self.takes_part_since));
        since.plus(me.timing.grant).plus(KEPT_GRACE)
    }
}

impl Resource {
    /// The change to propose now, if any.
    pub(super) fn desire(&self, cx: &Context<'_>) -> Option<Change> {
        if self.configured.is_none() || !cx.me.node.is_data() {
            return None;
        }
        match &self.active {
            Some(active) => self.desire_active(cx, active),
            None => self.desire_inactive(cx),
        }
    }

    /// Whether a round of the register is to be run: to change it, or only to read it.
    pub(super) fn wants_round(&self, cx: &Context<'_>) -> bool {
        self.desire(cx).is_some() || self.wants_to_know(cx)
    }

    /// Whether to ask the voters although there is nothing to change: a view may have been decided
    /// for this node while it was down or cut off, and whoever decided it died before telling. A
    /// read that finds one finishes it.
    fn wants_to_know(&self, cx: &Context<'_>) -> bool {
        // The successor may have decided something before it fell silent.
        let returning = self.order_stage() == Some(Stage::Returning);
        let could_serve = self.configured.is_some()
            && cx.me.node.is_data()
            && self.active.is_none()
            && self.record().up
            && self.replica.is_some()
            && (self.order.is_none() || returning);
        let peer_serves = self.fresh_claim(cx).is_some_and(|claim| claim.active);
        // Nobody's decision is to be outrun by a question.
        let others_decide = cx.now < self.others_round_at.plus(ASK_AFTER_QUIET) && !returning;
        self.may_be_behind
            && could_serve
            && !peer_serves
            && !others_decide
            && !self.grant.runs(cx.now)
    }

    fn desire_active(&self, cx: &Context<'_>, active: &Active) -> Option<Change> {
        // What left and was not answered goes first.
        if let Some(undecided) = &self.undecided {
            return undecided.change.retry(&cx.me.rules);
        }
        if self.add_at_large.is_some() && cx.me.rules.end_undecided_add {
            return Some(Change::Remove { ends_add: true });
        }
        if let Some(number) = self.leave {
            return Some(Change::Leave { number });
        }
        let view = &active.view;
        // Nothing was acknowledged that rests on it: this costs nobody anything, and it is the only
        // way on when the local disk failed in between.
        if view.in_sync == InSync::BOTH && self.peer_unprepared {
            return Some(Change::Remove { ends_add: false });
        }
        if self.local_failed {
            return None;
        }
        // A Primary whose own disk hangs needs its peer more than anything (R18): it waits.
        let doubtful = self.replica.is_some_and(|replica| replica.doubtful);
        if view.in_sync == InSync::BOTH && self.peer_is_lost(cx, active) && !doubtful {
            return Some(Change::Remove { ends_add: false });
        }
        if let Some(change) = unmet_voter(cx, &view.voters) {
            return Some(change);
        }
        match self.add {
            AddStage::Prepared { number, replica } if self.lease.holds(cx.now) => {
                Some(Change::Add { replica, number })
            }
            _ => None,
        }
    }

    /// Whether the Primary must go on without its in-sync peer.
    fn peer_is_lost(&self, cx: &Context<'_>, active: &Active) -> bool {
        let silent = cx.peer().is_suspect(cx.now, cx.me.timing.suspicion);
        let no_session = self
            .peer_lost_at
            .is_some_and(|lost| cx.now >= lost.plus(SESSION_GRACE.max(cx.me.timing.suspicion)));
        let left = self
            .claim
            .is_some_and(|(at, claim)| at >= active.since && !claim.up);
        silent || no_session || left || self.peer_failed || self.remove_unclean
    }

    fn desire_inactive(&self, cx: &Context<'_>) -> Option<Change> {
        let record = self.record();
        let me = cx.me.node;
        let newest = record.newest();
        if self.order_stage() == Some(Stage::Holding) {
            return newest.map(|_| Change::Hold);
        }
        if !record.up || self.wants_down() || self.stopping {
            return None;
        }
        let replica = self.replica?;
        let ordered = self.wants_primary();
        let Some(view) = newest else {
            return ordered.then(|| self.desire_found(cx, &replica)).flatten();
        };
        if !is_whole(view, me, &replica) || self.vetoed || self.local_failed {
            return None;
        }
        let lossy = replica.lost_volatile;
        let replica_id = replica.replica;
        if !view.in_sync.contains(me) || self.waits_for_kept(cx, view, &replica) {
            return None;
        }
        if view.primary == me {
            let ends_hold = ordered || self.ends_hold;
            return (!view.held || ends_hold).then_some(Change::Recover {
                replica: replica_id,
                lossy,
                ends_hold,
            });
        }
        if view.held {
            return ordered.then_some(Change::Claim {
                replica: replica_id,
                lossy,
            });
        }
        // Positive evidence needs neither the wait nor a third voter (R12).
        let left = self.peer_left == Some(view.number);
        let configured = self.configured?;
        let automatic = cx.me.has_arbitrator && configured.failover == Failover::Auto;
        let allowed = automatic || ordered || left;
        let over = left || !self.grant.runs(cx.now) || !cx.me.rules.grant_outlives_lease;
        // Under A the Primary's guests know of writes that never came here, unless it left in order.
        let behind = configured.protocol == ReplicationProtocol::A && !left;
        (allowed && over).then_some(Change::Takeover {
            replica: replica_id,
            lossy: lossy || behind,
        })
    }

    /// The first view: once it is clear whether the peer is there, and how large its disk is.
    fn desire_found(&self, cx: &Context<'_>, replica: &ReplicaFacts) -> Option<Change> {
        if self.founding_blocker(cx).is_some() || self.awaits_peer_replica(cx) {
            return None;
        }
        let peer_size = self
            .fresh_claim(cx)
            .filter(|claim| claim.attached && claim.size_blocks > 0)
            .map_or(u64::MAX, |claim| claim.size_blocks);
        Some(Change::Found {
            replica: replica.replica,
            data_generation: self.generation,
            size_blocks: replica.size_blocks.min(peer_size),
            // Filled in by the round: the voters it met.
            voters: VoterSet::default(),
        })
    }

    /// Waiting does not mend these.
    pub(super) fn founding_blocker(&self, cx: &Context<'_>) -> Option<Blocker> {
        let replica = self.replica?;
        if !replica.blank {
            return Some(Blocker::NotBlank);
        }
        let claim = self.fresh_claim(cx)?;
        (claim.attached && !claim.blank).then_some(Blocker::PeerNotBlank)
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

    /// R16: this replica lost acknowledged writes that the peer's in-sync replica may have kept.
    pub(super) fn waits_for_kept(
        &self,
        cx: &Context<'_>,
        view: &View,
        replica: &ReplicaFacts,
    ) -> bool {
        if !replica.lost_volatile || !view.in_sync.contains(cx.me.node.peer()) {
            return false;
        }
        let may_still_come = cx.now < self.kept_wait_end(cx.me);
        match self.fresh_claim(cx).filter(|claim| claim.attached) {
            None => may_still_come,
            Some(claim) if !claim.eligible => false,
            Some(claim) if claim.kept => true,
            // Both lost it: the Primary of record goes first.
            Some(_) => view.primary != cx.me.node && may_still_come,
        }
    }

    /// Begins an Add when nothing speaks against it.
    pub(super) fn begin_add(&mut self, cx: &mut Context<'_>) {
        let Some(active) = self.active else { return };
        let free = cx.now >= self.pause_until
            && self.attempt.is_none()
            && self.undecided.is_none()
            && self.desire(cx).is_none();
        let peer_there = self.session_up && !cx.peer().is_suspect(cx.now, cx.me.timing.suspicion);
        if self.add == AddStage::Resynced
            && active.view.in_sync != InSync::BOTH
            && free
            && peer_there
            && self.lease.holds(cx.now)
        {
            let view = active.view.number.next();
            self.add = AddStage::Preparing(view);
            cx.engine(self.id, EngineCommand::BeginAdd { view });
        }
    }

    /// Why `primary` would not succeed now. Empty on an active node.
    pub(super) fn blockers(&self, cx: &Context<'_>) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        if self.active.is_some() {
            return blockers;
        }
        if !cx.me.node.is_data() || !self.record().up {
            blockers.push(Blocker::NotUp);
        }
        match &self.replica {
            None => blockers.push(Blocker::NoReplica),
            Some(replica) => self.replica_blockers(cx, replica, &mut blockers),
        }
        let seen = cx.voters_seen();
        if seen < VoterSet::MAJORITY {
            blockers.push(Blocker::NoQuorum { seen });
        }
        blockers
    }

    fn replica_blockers(
        &self,
        cx: &Context<'_>,
        replica: &ReplicaFacts,
        blockers: &mut Vec<Blocker>,
    ) {
        let me = cx.me.node;
        let Some(view) = self.record().newest() else {
            blockers.extend(self.founding_blocker(cx));
            return;
        };
        if !view.in_sync.contains(me) {
            blockers.push(Blocker::NotInSync { view: view.number });
        } else if !names(view, me, replica.replica) {
            blockers.push(Blocker::WrongReplica);
        } else if !is_whole(view, me, replica) || self.vetoed || self.local_failed {
            blockers.push(Blocker::Ineligible);
        } else if self.waits_for_kept(cx, view, replica) {
            blockers.push(Blocker::PeerKeptMore);
        }
        if view.primary != me && !view.held {
            match self.fresh_claim(cx).filter(|claim| claim.active) {
                Some(claim) => blockers.push(Blocker::PeerActive {
                    view: claim.view,
                    last_seen: self
                        .claim
                        .map_or_else(Default::default, |(at, _)| cx.now.since(at)),
                }),
                None if self.peer_left == Some(view.number) => {}
                None if self.grant.runs(cx.now) => blockers.push(Blocker::LeaseWait {
                    remaining: self.grant.until().since(cx.now),
                }),
                None => {}
            }
        }
    }

    fn wants_primary(&self) -> bool {
        self.order_what() == Some(Order::Primary)
    }

    pub(super) fn wants_down(&self) -> bool {
        match self.order_what() {
            Some(Order::Secondary | Order::Down | Order::HandOver) => true,
            Some(Order::Move) => {
                matches!(self.order_stage(), Some(Stage::Quiescing | Stage::Leaving))
            }
            Some(Order::Primary | Order::Up) | None => false,
        }
    }
}

fn names(view: &View, node: NodeId, replica: ReplicaId) -> bool {
    view.replicas[node.index()] == Some(replica)
}

/// Whether the replica holds what `view` needs: its own word, or that it is the blank replica with
/// which the resource was founded. That one becomes not blank durably before its first
/// acknowledged write, so blank means that there was none, even after a crash in between.
fn is_whole(view: &View, node: NodeId, replica: &ReplicaFacts) -> bool {
    replica.eligible || (replica.blank && names(view, node, replica.replica))
}

/// A voter that no view recorded yet and that is there.
fn unmet_voter(cx: &Context<'_>, voters: &VoterSet) -> Option<Change> {
    cx.others().find_map(|voter| {
        let id = cx.peers[voter.index()].voter()?;
        voters.0[voter.index()]
            .is_none()
            .then_some(Change::AddVoter { voter, id })
    })
}
