//! What this node wants to propose, given what it knows. Pure questions; asked before a round
//! begins and again with what the round read.

use core::time::Duration;

use replicator::types::{InSync, ReplicationProtocol, VoterSet};

use super::super::input::{Order, ReplicaFacts};
use super::super::output::EngineCommand;
use super::super::view::Change;
use super::orders::Stage;
use super::{Active, AddStage, Context, Resource, SESSION_GRACE, seen_window};

/// Before a node only asks what was decided, no other node has run a round for so long: several
/// times what a round with slow voter stores takes.
const ASK_AFTER_QUIET: Duration = Duration::from_secs(2);

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
        // Any other view in between may name another replica.
        if let Some((number, size_blocks)) = self.growth
            && number == view.number.next()
            && size_blocks > view.size_blocks
        {
            return Some(Change::Resize {
                size_blocks,
                number,
            });
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
            let lossy = self.answers_ahead() && !self.order.is_some_and(|it| it.quiesced);
            return newest.map(|_| Change::Hold { lossy });
        }
        let ordered = self.wants_primary();
        if let Some(change) = self.desire_force(cx) {
            return Some(change);
        }
        let situation = self.situation(cx, ordered);
        if !situation.allows() {
            return None;
        }
        let facts = self.replica?;
        let (replica, lossy) = (facts.replica, facts.lost_volatile);
        let Some(view) = newest else {
            return Some(self.found(cx, &facts));
        };
        if view.primary == me {
            return Some(Change::Recover {
                replica,
                lossy,
                ends_hold: ordered || self.ends_hold,
            });
        }
        if view.held {
            return Some(Change::Claim { replica, lossy });
        }
        // Under A the Primary's guests know of writes that never came here, unless it left in order.
        let left = self.peer_left == Some(view.number);
        let behind = self.answers_ahead() && !left;
        Some(Change::Takeover {
            replica,
            lossy: lossy || behind,
        })
    }

    /// Whether guests of the Primary may be told of writes that only its own disk has: by the
    /// protocol in force, or by what this replica recorded of the last one.
    pub(super) fn answers_ahead(&self) -> bool {
        let configured = self.configured.map(|it| it.protocol);
        configured == Some(ReplicationProtocol::A) || self.replica.is_some_and(|it| it.behind)
    }

    /// The first view, of a size that both disks have. Of several volumes the last is never cut to what
    /// a peer has that may be of another configuration: only its engine knows that the peer has the same
    /// volumes, and then its size is the smaller of the two.
    fn found(&self, cx: &Context<'_>, replica: &ReplicaFacts) -> Change {
        let several = self.configured.is_some_and(|it| it.blocks_min > 0);
        let peer_size = self
            .fresh_claim(cx)
            .filter(|claim| claim.attached && claim.size_blocks > 0 && !several)
            .map_or(u64::MAX, |claim| claim.size_blocks);
        Change::Found {
            replica: replica.replica,
            data_generation: self.generation,
            size_blocks: replica.size_blocks.min(peer_size),
            // Filled in by the round: the voters it met.
            voters: VoterSet::default(),
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

    pub(super) fn wants_primary(&self) -> bool {
        matches!(self.order_what(), Some(Order::Primary | Order::Force))
    }

    pub(super) fn wants_down(&self) -> bool {
        match self.order_what() {
            Some(Order::Secondary | Order::Down | Order::HandOver) => true,
            Some(Order::Move) => {
                matches!(self.order_stage(), Some(Stage::Quiescing | Stage::Leaving))
            }
            Some(Order::Primary | Order::Force | Order::Fenced | Order::Up) | None => false,
        }
    }
}

/// A voter that no view recorded yet and that is there: one that was heard once and is gone could not
/// accept, and a view that counts on it would leave a node that decides alone without a majority.
fn unmet_voter(cx: &Context<'_>, voters: &VoterSet) -> Option<Change> {
    cx.others().find_map(|voter| {
        let peer = &cx.peers[voter.index()];
        let id = peer.voter()?;
        let there = peer.is_seen(cx.now, seen_window(voter, cx.me));
        (there && voters.0[voter.index()].is_none()).then_some(Change::AddVoter { voter, id })
    })
}
