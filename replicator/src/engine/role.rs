//! Role and view: activation, step-down, Add, drain before a takeover, orderly quiescence.

use super::grow::GrowEnd;
use super::output::{Action, CloseReason, Event, Outbox, VerifyEnd};
use super::session::Phase;
use super::{Engine, LocalDisk, MetaThen};
use crate::meta::ReplicaState;
use crate::protocol::Message;
use crate::types::{Activation, CommittedView, Instant, ReplicationProtocol, View, ViewNumber};

/// A Primary's state.
#[derive(Clone, Debug)]
pub(super) struct Active {
    /// The view it began with.
    pub(super) began: ViewNumber,
    /// The newest view this activation committed.
    pub(super) view: View,
    /// The replica has recorded the activation.
    recorded: bool,
    /// It has, and nothing of before can land any more: guests are served.
    pub(super) serving: bool,
    /// An Add was started and not followed by a view that says how it ended (R4).
    pub(super) add_begun: Option<ViewNumber>,
    /// How far that Add is.
    pub(super) add_stage: AddStage,
}

/// How far an Add is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum AddStage {
    /// Its flush round is wanted or runs.
    #[default]
    Round,
    /// The peer is asked to record it.
    Asked,
    /// The controller was told: the accept may have left, so only a view (or the controller's word
    /// that none will come) ends `strict` (R4).
    Prepared,
}

/// How far an orderly quiescence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiesce {
    /// Waiting for admitted requests.
    Requests,
    /// Waiting for the closing flush round.
    Flush,
    /// Waiting for the activity log to be empty.
    ActivityLog,
    /// Said so.
    Done,
}

impl Engine {
    pub(super) fn activate(&mut self, activation: &Activation, out: &mut Outbox) {
        let view = *activation.view();
        if activation.node() != self.config.node {
            return;
        }
        if self.local != LocalDisk::Attached {
            out.push(Action::Event(Event::NotActivated { view: view.number }));
            return;
        }
        self.end_session(CloseReason::RoleChanged, out);
        self.forget_suspend();
        self.era += 1;
        self.old_ops = self.ops_that_count();
        self.lease_until = Instant::ZERO;
        self.draining = None;
        self.quiesce = None;
        // What an earlier activation answered ahead may still be missing on the peer.
        let beside_peer = view.in_sync.contains(self.config.node.peer());
        let tail = beside_peer && self.dirty_blocks() > 0;
        let record = self.replica.as_ref().map(|it| it.superblock.current());
        self.ahead_lost = tail && record.is_some_and(|it| it.may_be_ahead);
        self.peer_lost_reported = false;
        self.view = Some(view);
        self.active = Some(Active {
            began: view.number,
            view,
            recorded: false,
            serving: false,
            add_begun: None,
            add_stage: AddStage::default(),
        });
        // Guests are told of a loss when they are served (`note_told`). A process that dies before that
        // leaves it to the next activation, which must be a lossy one, too (R17): of no boot.
        if let Some(replica) = &mut self.replica {
            replica.lost_volatile = view.lossy;
        }
        let boot_id = if view.lossy { 0 } else { self.config.boot_id };
        let under_a = self.config.protocol == ReplicationProtocol::A;
        self.record(
            |superblock| {
                // An earlier activation's tail is nobody's concern once the peer has left.
                superblock.may_be_ahead = under_a || (superblock.may_be_ahead && beside_peer);
                superblock.may_be_behind = false;
                superblock.state = ReplicaState::InSync { since: view.number };
                superblock.data_generation = Some(view.data_generation);
                superblock.last_view = view.number;
                superblock.in_sync_from = None;
                superblock.open = true;
                superblock.boot_id = boot_id;
            },
            MetaThen::Activated(view.number),
            out,
        );
        out.push(Action::Event(Event::Changed));
    }

    pub(super) fn on_activation_recorded(&mut self, view: ViewNumber, out: &mut Outbox) {
        if let Some(active) = &mut self.active
            && active.began == view
        {
            active.recorded = true;
        }
        self.pump_serving(out);
    }

    /// Serves once the activation is recorded and no operation of an earlier session or activation
    /// can land any more (R14): a write of the old Primary that this disk was slow to take would
    /// show up after a flush that did not cover it. A takeover drained before; a claim did not.
    pub(super) fn pump_serving(&mut self, out: &mut Outbox) {
        let drained = (self.old_ops == 0 && self.peer_work.is_empty()) || !self.local_usable();
        if let Some(active) = &mut self.active
            && active.recorded
            && drained
            && !active.serving
        {
            active.serving = true;
            let lossy = active.view.lossy;
            out.push(Action::Event(Event::Serving));
            out.push(Action::Event(Event::Changed));
            if lossy && self.local == LocalDisk::Attached {
                self.note_told(out);
            }
        }
    }

    /// The loss that the view speaks of is no secret any more. Told twice is told, so nothing waits
    /// for the record.
    fn note_told(&mut self, out: &mut Outbox) {
        if let Some(replica) = &mut self.replica {
            replica.lost_volatile = false;
        }
        let boot_id = self.config.boot_id;
        self.record(
            |superblock| superblock.boot_id = boot_id,
            MetaThen::Nothing,
            out,
        );
    }

    /// R9: everything in flight fails for ever; its blocks are remembered as marks.
    pub(super) fn step_down(&mut self, out: &mut Outbox) {
        if self.active.take().is_none() {
            return;
        }
        self.drop_guests(out);
        // First, or they would get the locks that the verify gives back.
        self.drop_waiting_writes(out);
        self.end_verify(VerifyEnd::RoleChanged, out);
        self.end_grow(GrowEnd::RoleChanged, out);
        self.end_session(CloseReason::RoleChanged, out);
        self.mark_unretired();
        self.drop_waiting_writes(out);
        self.drop_waiting_reads(out);
        self.next_round = super::flush::NextRound::default();
        self.quiesce = None;
        self.lease_until = Instant::ZERO;
        out.push(Action::Event(Event::NotServing));
        out.push(Action::Event(Event::Changed));
    }

    pub(super) fn committed(&mut self, committed: &CommittedView, out: &mut Outbox) {
        let view = *committed.view();
        let node = self.config.node;
        let newer = self
            .view
            .as_ref()
            .is_none_or(|known| known.number < view.number);
        if !newer {
            return;
        }
        let Some(active) = &mut self.active else {
            return self.learned(view, out);
        };
        if view.primary != node {
            // The controller steps down; nothing here may rest on this view.
            return;
        }
        self.view = Some(view);
        let overtaken = active
            .add_begun
            .filter(|add| *add != view.number || !view.in_sync.contains(node.peer()));
        let needed = active.view.in_sync.contains(node.peer()) || active.add_begun.is_some();
        let added =
            view.in_sync.contains(node.peer()) && !active.view.in_sync.contains(node.peer());
        active.view = view;
        active.add_begun = None;
        self.note_view_of_growth(&view, out);
        if let Some(view) = overtaken {
            self.next_round.add = None;
            out.push(Action::Event(Event::AddAborted { view }));
        }
        if needed && !view.in_sync.contains(node.peer()) {
            self.end_session(CloseReason::Removed, out);
        }
        if self.is_only_replica() && self.local == LocalDisk::Failed {
            self.record_only(view.number, out);
        }
        // An Add that was decided late, after the peer's record of it went with its session: the
        // peer would never count itself as in sync. It has to leave and be added again.
        let unprepared = self
            .session
            .as_ref()
            .is_some_and(|session| session.prepared != Some(view.number));
        if added && unprepared {
            out.push(Action::Event(Event::PeerUnprepared));
        }
        let under_a = self.config.protocol == ReplicationProtocol::A;
        let beside_peer = view.in_sync.contains(node.peer());
        self.record(
            |superblock| {
                superblock.last_view = view.number;
                superblock.may_be_ahead &= under_a || beside_peer;
            },
            MetaThen::Nothing,
            out,
        );
        out.push(Action::Event(Event::Changed));
    }

    /// Gossip of a committed view: a Secondary brings its own record in line.
    pub(super) fn learned(&mut self, view: View, out: &mut Outbox) {
        let newer = self
            .view
            .as_ref()
            .is_none_or(|known| known.number < view.number);
        if !newer || self.active.is_some() {
            return;
        }
        self.view = Some(view);
        out.push(Action::Event(Event::Changed));
        self.leave_superseded(&view, out);
        self.align_with_view(out);
    }

    /// A Secondary's own record follows the newest view, whichever was known first.
    pub(super) fn align_with_view(&mut self, out: &mut Outbox) {
        let Some(view) = self.view.filter(|_| self.active.is_none()) else {
            return;
        };
        let named = view.in_sync.contains(self.config.node);
        let Some(superblock) = self
            .replica
            .as_ref()
            .map(|r| r.superblock.current().clone())
        else {
            return;
        };
        // A voter store may be behind what the replica heard of before its process died.
        let newer = view.number > superblock.last_view;
        let recorded = superblock
            .in_sync_from
            .is_some_and(|from| from <= view.number);
        match superblock.state {
            ReplicaState::InSync { .. } if !named && newer => {
                let change = |s: &mut crate::meta::Superblock| {
                    s.state = ReplicaState::Outdated;
                    s.last_view = view.number;
                };
                self.record(change, MetaThen::Nothing, out);
            }
            ReplicaState::Outdated | ReplicaState::SyncTarget if named && recorded => {
                let change = |s: &mut crate::meta::Superblock| {
                    s.state = ReplicaState::InSync { since: view.number };
                    s.in_sync_from = None;
                    s.last_view = view.number;
                };
                self.record(change, MetaThen::Nothing, out);
                self.mark(super::ReplicaMark::Clean, out);
            }
            _ => {}
        }
    }

    /// Whether this replica may be promoted as far as its own record goes (R10). The register
    /// decides whether a view names it.
    pub(super) fn eligible(&self) -> bool {
        let Some(replica) = &self.replica else {
            return false;
        };
        let superblock = replica.superblock.current();
        let whole = matches!(superblock.state, ReplicaState::InSync { .. })
            || (superblock.in_sync_from.is_some() && superblock.state != ReplicaState::Failed);
        self.local == LocalDisk::Attached && whole
    }

    // --- Add -------------------------------------------------------------------------------

    /// The Add's round ended: if both sides are flushed and nothing is marked, the peer records it.
    pub(super) fn on_add_round(&mut self, view: ViewNumber, durable: bool, out: &mut Outbox) {
        let current = self.active.as_ref().is_some_and(|active| {
            active.add_begun == Some(view) && active.add_stage == AddStage::Round
        });
        if !current {
            return;
        }
        let equal = matches!(
            self.session.as_ref().map(|session| &session.phase),
            Some(Phase::MirrorSource)
        );
        if durable && equal && self.dirty_blocks() == 0 {
            if let Some(active) = &mut self.active {
                active.add_stage = AddStage::Asked;
            }
            self.send(Message::PrepareAdd { view }, out);
        } else {
            self.abort_add(out);
        }
    }

    /// The Add being prepared came to nothing. Unless its accept may have left, the Primary is as
    /// free as before.
    pub(super) fn abort_add(&mut self, out: &mut Outbox) {
        let Some(active) = &mut self.active else {
            return;
        };
        let Some(view) = active.add_begun else { return };
        if active.add_stage != AddStage::Prepared {
            active.add_begun = None;
        }
        self.next_round.add = None;
        out.push(Action::Event(Event::AddAborted { view }));
    }

    /// The controller's word that a Leave or Add it was told of will never be a view; or that a
    /// takeover will not.
    pub(super) fn on_proposal_aborted(&mut self, out: &mut Outbox) {
        self.draining = None;
        if let Some(active) = &mut self.active
            && let Some(view) = active.add_begun.take()
        {
            self.next_round.add = None;
            out.push(Action::Event(Event::AddAborted { view }));
        }
        // Another Leave is prepared (`pump_leave`).
        self.leave_asked = None;
    }

    pub(super) fn on_add_ready(&mut self, view: ViewNumber, out: &mut Outbox) {
        let replica = self
            .session
            .as_ref()
            .and_then(super::session::Session::peer_replica);
        if let (Some(active), Some(replica)) = (&mut self.active, replica)
            && active.add_begun == Some(view)
            && active.add_stage != AddStage::Round
        {
            active.add_stage = AddStage::Prepared;
            self.coarse = false;
            if let Some(session) = &mut self.session {
                session.prepared = Some(view);
            }
            out.push(Action::Event(Event::AddPrepared { view, replica }));
        }
    }

    // --- Drain before a takeover -----------------------------------------------------------

    /// R13: the session is over, and nothing that was submitted may land later.
    pub(super) fn drain(&mut self, seal: ViewNumber, out: &mut Outbox) {
        self.seal = self.seal.max(seal);
        self.draining = Some(seal);
        self.end_session(CloseReason::Drained, out);
    }

    pub(super) fn pump_drain(&mut self, out: &mut Outbox) {
        if let Some(seal) = self.draining
            && self.disk_is_quiet()
            && self.peer_work.is_empty()
        {
            self.draining = None;
            out.push(Action::Event(Event::Drained {
                seal,
                ok: self.eligible(),
            }));
        }
    }

    // --- Orderly quiescence ----------------------------------------------------------------

    pub(super) fn begin_quiesce(&mut self, out: &mut Outbox) {
        if self.active.is_none() {
            out.push(Action::Event(Event::Quiesced));
        } else if self.quiesce.is_none() {
            self.quiesce = Some(Quiesce::Requests);
        } else if self.quiesce == Some(Quiesce::Done) {
            out.push(Action::Event(Event::Quiesced));
        }
    }

    pub(super) fn pump_quiesce(&mut self, out: &mut Outbox) {
        let idle = self.requests.is_empty() && self.writes.is_empty() && self.reads.is_empty();
        if self.quiesce == Some(Quiesce::Requests) && idle {
            self.quiesce = Some(Quiesce::Flush);
            self.next_round.quiesce = true;
            self.pump_round(out);
        }
        // A replica that left has no log to close.
        if self.quiesce == Some(Quiesce::ActivityLog)
            && (!self.local_usable() || self.reset_activity_log(out))
        {
            self.quiesce = Some(Quiesce::Done);
            out.push(Action::Event(Event::Quiesced));
        }
    }

    /// The closing round ended: it began after the last request was answered. One that retired
    /// nothing leaves the log pinned, so another has to.
    pub(super) fn on_quiesce_round(&mut self, retired: bool, with_peer: bool, out: &mut Outbox) {
        if self.quiesce != Some(Quiesce::Flush) {
            return;
        }
        if !retired || (self.strict() && !with_peer) {
            self.quiesce = Some(Quiesce::Requests);
        } else {
            self.quiesce = Some(Quiesce::ActivityLog);
            self.pump_quiesce(out);
        }
    }

    /// A Secondary needs no activity log: what an earlier activation left in it becomes marks, so
    /// that the next start does not bring it back.
    pub(super) fn tidy_secondary(&mut self, out: &mut Outbox) {
        let quiet = self.active.is_none()
            && self.local == LocalDisk::Attached
            && self.writes.is_empty()
            && self.round.is_none()
            && self.meta_ops == 0;
        let unclean = self
            .replica
            .as_ref()
            .is_some_and(|r| !r.activity_log.is_clean());
        if !quiet || !unclean {
            return;
        }
        // Every block of a failed or unretired write is marked; once the marks are durable the log
        // has nothing left to say.
        self.persist_bitmap(MetaThen::Nothing, out);
        let epoch = self.epoch;
        if let Some(replica) = &mut self.replica {
            replica.activity_log.retire(epoch.0);
        }
        self.reset_activity_log(out);
    }
}
