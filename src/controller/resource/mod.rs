//! One resource at one node: what is known, what is wanted, what is being decided.
//!
//! Facts come in ([`Resource::on_report`], [`Resource::on_beacon`], [`Resource::on_order`], votes in
//! `vote.rs`), then [`Resource::drive`] compares what is with what is wanted (`desire.rs`) and runs
//! at most one round of the register at a time (`propose.rs`). Nothing is decided from memory: a
//! round reads the register first, and the wish is looked at again with what it read.

mod desire;
mod force;
mod hand_over;
mod orders;
mod preferred;
mod propose;
mod shown;
mod situation;
mod vote;
mod what_if;

use core::time::Duration;

use replicator::types::{
    Activation, DataGeneration, InSync, Instant, NodeId, OpId, ResourceId, View, ViewCause,
    ViewNumber, VoterId,
};

use super::Configured;
use super::beacon::Peer;
use super::decision::{News, answer_beacon};
use super::input::{Automation, EngineReport, OrderId, ReplicaFacts, ReplicaMark};
use super::lease::{Grant, GrantAnswer, Lease, Timing};
use super::message::{BeaconEntry, Part};
use super::order::{Done, OrderRefusal};
use super::output::{Action, ControllerEvent, EngineCommand, StepDownReason};
use super::random::Random;
use super::record::VoterRecord;
use super::rules::Rules;
use super::store::{Dependent, Store};
use super::view::{Abort, ProposalKind};
use orders::Pending;
use propose::{Attempt, Undecided};

/// What every resource of a node shares and never changes.
#[derive(Clone, Debug)]
pub(super) struct Me {
    pub(super) node: NodeId,
    pub(super) voter: VoterId,
    pub(super) incarnation: u32,
    pub(super) timing: Timing,
    pub(super) rules: Rules,
    pub(super) has_arbitrator: bool,
    /// This alone changes, by order.
    pub(super) automation: Automation,
}

impl Me {
    fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let (me, has_arbitrator) = (self.node, self.has_arbitrator);
        NodeId::ALL
            .into_iter()
            .filter(move |node| *node != me && (has_arbitrator || node.is_data()))
    }
}

/// What a step may look at and where its effects go.
pub(super) struct Context<'a> {
    pub(super) now: Instant,
    pub(super) me: &'a Me,
    pub(super) peers: &'a [Peer; 3],
    pub(super) random: &'a mut Random,
    pub(super) ops: &'a mut u64,
    pub(super) outlet: &'a mut Outlet,
}

/// Effects of one `handle`. Parts are packed into datagrams at its end.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    pub(super) actions: Vec<Action>,
    pub(super) parts: [Vec<Part>; 3],
    /// Resources of which the peer should hear at once, not at the next beacon.
    pub(super) urgent: Vec<ResourceId>,
}

impl Context<'_> {
    fn send(&mut self, to: NodeId, part: Part) {
        self.outlet.parts[to.index()].push(part);
    }

    fn send_others(&mut self, part: &Part) {
        for node in self.others() {
            self.send(node, part.clone());
        }
    }

    fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        self.me.others()
    }

    /// Whether another voter was heard lately, be it one-way.
    fn others_heard(&self) -> bool {
        self.others().any(|node| {
            let heard = self.peers[node.index()].heard();
            heard.is_some_and(|at| self.now < at.plus(seen_window(node, self.me)))
        })
    }

    fn event(&mut self, event: ControllerEvent) {
        self.outlet.actions.push(Action::Event(event));
    }

    /// The arbitrator has no engine: what follows for one from a view is for nobody there.
    fn engine(&mut self, resource: ResourceId, command: EngineCommand) {
        if self.me.node.is_data() {
            let action = Action::Engine { resource, command };
            self.outlet.actions.push(action);
        }
    }

    fn next_op(&mut self) -> OpId {
        *self.ops += 1;
        OpId(*self.ops)
    }

    fn peer(&self) -> &Peer {
        &self.peers[self.me.node.peer().index()]
    }

    /// Voters that answered recently, this one included.
    fn voters_seen(&self) -> usize {
        1 + self
            .others()
            .filter(|node| self.peers[node.index()].is_seen(self.now, seen_window(*node, self.me)))
            .count()
    }
}

/// How old the newest answer of a node may be for it to count as seen. The arbitrator is asked once
/// a second, so three questions may go unanswered.
pub(super) fn seen_window(node: NodeId, me: &Me) -> Duration {
    if node.is_data() && me.node.is_data() {
        me.timing.suspicion
    } else {
        me.timing
            .suspicion
            .max(super::ARBITRATOR_BEACON * 3 + me.timing.beacon)
    }
}

/// How long an in-sync peer whose beacons arrive may be without a session before it is removed:
/// the longest pause between two attempts to connect, so that a single reset costs no resync.
const SESSION_GRACE: Duration = Duration::from_secs(1);

/// How long after the boot wait a replica that lost acknowledged writes still waits for the peer
/// that may have kept them (R16), before it serves without them (R17).
const KEPT_GRACE: Duration = Duration::from_secs(5);

/// An activation of this node in this life.
#[derive(Clone, Copy, Debug)]
struct Active {
    view: View,
    since: Instant,
}

/// How far the return of a replica into `in_sync` is (R19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddStage {
    /// A resync is needed or running.
    Idle,
    /// The engine says that nothing is missing any more.
    Resynced,
    /// The engines prepare it as this view.
    Preparing(ViewNumber),
    /// They were told to let it be. What they said before may still be on its way, so nothing is
    /// prepared anew until they confirm.
    Cancelling(ViewNumber),
    /// They did; the register must agree.
    Prepared {
        number: ViewNumber,
        replica: replicator::types::ReplicaId,
    },
}

impl AddStage {
    fn prepares(self, view: ViewNumber) -> bool {
        match self {
            Self::Idle | Self::Resynced => false,
            Self::Preparing(number) | Self::Cancelling(number) | Self::Prepared { number, .. } => {
                number == view
            }
        }
    }
}

/// Everything this node knows and does about one resource.
#[derive(Debug)]
pub(super) struct Resource {
    id: ResourceId,
    configured: Option<Configured>,
    /// Since when this node takes part: waits for what others have not said yet begin here.
    takes_part_since: Instant,
    store: Store,
    grant: Grant,

    // What the engine said.
    replica: Option<ReplicaFacts>,
    /// A drain failed: this replica may miss acknowledged writes (R13).
    vetoed: bool,
    /// The local device failed in this activation: no Remove, no Recover (R18).
    local_failed: bool,
    session_up: bool,
    peer_lost_at: Option<Instant>,
    peer_failed: bool,
    /// The view names the peer by an Add that it has no record of.
    peer_unprepared: bool,
    /// Activated over a replica whose blocks may differ from the peer's: serve first, resync then.
    remove_unclean: bool,
    add: AddStage,
    leave: Option<ViewNumber>,
    /// A larger volume, in blocks, that both replicas are prepared for as this view.
    growth: Option<(ViewNumber, u64)>,

    // What the peer said.
    claim: Option<(Instant, BeaconEntry)>,
    /// When the peer last said that it has a whole replica that kept everything.
    peer_kept_at: Option<Instant>,
    /// The newest view in which the peer was Primary and never will be active again, by its own
    /// word. Bound to that view, it stays true whatever is late: activation needs a newer one.
    peer_left: Option<ViewNumber>,
    /// The view that was the newest when an operator said that the peer is dead. Forgotten as soon as it
    /// is heard.
    peer_fenced: Option<ViewNumber>,

    /// Since when it could have followed this node, active, at any moment.
    peer_well_since: Option<Instant>,

    // What this node is and does.
    /// The newest view in which this node served and will never serve again, to be followed by the
    /// peer. It may serve in a later one: the register decides who has that.
    handed_over: Option<ViewNumber>,
    /// The process is about to stop: it serves nothing any more.
    stopping: bool,
    active: Option<Active>,
    lease: Lease,
    lease_lapsed: bool,
    attempt: Option<Attempt>,
    undecided: Option<Undecided>,
    /// An Add as this view whose accept left: until a view with this number or a newer one is
    /// committed it may be chosen, whatever else was proposed since (R4).
    add_at_large: Option<ViewNumber>,
    /// No new round before this: back-off.
    pause_until: Instant,
    nacks: u32,
    highest_round: u32,
    /// It was said that no round is left above `highest_round`.
    exhausted: bool,
    last_abort: Option<(ProposalKind, Abort)>,
    /// The register may hold a view that nobody told this node of.
    may_be_behind: bool,
    /// When another node last ran a round here.
    others_round_at: Instant,

    // What people want.
    order: Option<Pending>,
    /// `up` was given on the Primary of record: its hold ends.
    ends_hold: bool,
    /// Lineage for a first view.
    generation: DataGeneration,
}

impl Resource {
    pub(super) fn new(
        id: ResourceId,
        configured: Option<Configured>,
        record: VoterRecord,
        now: Instant,
        me: &Me,
        random: &mut Random,
    ) -> Self {
        Self {
            id,
            configured,
            takes_part_since: now,
            grant: Grant::at_start(now, record.seal, &me.timing, &me.rules),
            highest_round: record.acceptor.promised.round,
            store: Store::new(record),
            replica: None,
            vetoed: false,
            local_failed: false,
            session_up: false,
            peer_lost_at: None,
            peer_failed: false,
            peer_unprepared: false,
            remove_unclean: false,
            add: AddStage::Idle,
            leave: None,
            growth: None,
            claim: None,
            peer_kept_at: None,
            peer_left: None,
            peer_fenced: None,
            peer_well_since: None,
            handed_over: None,
            stopping: false,
            active: None,
            lease: Lease::default(),
            lease_lapsed: false,
            attempt: None,
            undecided: None,
            add_at_large: None,
            pause_until: now,
            nacks: 0,
            exhausted: false,
            last_abort: None,
            may_be_behind: true,
            others_round_at: now,
            order: None,
            ends_hold: false,
            generation: DataGeneration(random.next_u128()),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.record().up
    }

    pub(super) fn record(&self) -> &VoterRecord {
        self.store.record()
    }

    fn committed(&self) -> Option<View> {
        self.record().committed
    }

    fn committed_number(&self) -> ViewNumber {
        self.committed()
            .map_or(ViewNumber::NONE, |view| view.number)
    }

    // ---- facts ----

    /// The engine says something.
    pub(super) fn on_report(&mut self, cx: &mut Context<'_>, report: EngineReport) {
        match report {
            EngineReport::Replica(facts) => self.on_replica(cx, facts),
            EngineReport::ReplicaGone => {
                self.replica = None;
                self.session_up = false;
                self.leave_without_replica(cx);
            }
            EngineReport::NotActivated { view } => {
                if self.active.is_some_and(|active| active.view.number == view) {
                    self.step_down(cx, StepDownReason::NoReplica);
                }
            }
            EngineReport::SessionUp { peer_replica } => {
                self.session_up = true;
                self.peer_lost_at = None;
                // A peer without a disk answers but acknowledges nothing: as good as failed.
                self.peer_failed = peer_replica.is_none();
            }
            EngineReport::SessionDown => {
                self.session_up = false;
                self.forget_add(cx, AddStage::Idle);
            }
            EngineReport::PeerLost => {
                self.peer_lost_at.get_or_insert(cx.now);
            }
            EngineReport::PeerDiskFailed
            | EngineReport::PeerGivesUpData
            | EngineReport::PeerBehind => {
                self.peer_failed = true;
            }
            EngineReport::PeerUnprepared => {
                // Late, when the peer was removed meanwhile: it says nothing of the next Add.
                self.peer_unprepared = self
                    .active
                    .as_ref()
                    .is_some_and(|active| active.view.in_sync == InSync::BOTH);
            }
            EngineReport::LocalDiskFailed => self.local_failed = true,
            EngineReport::PeerLostWrites => self.on_peer_lost_writes(cx),
            EngineReport::ResyncDone => {
                if self.add == AddStage::Idle {
                    self.add = AddStage::Resynced;
                }
            }
            EngineReport::AddPrepared { view, replica } => {
                if self.add == AddStage::Preparing(view) {
                    self.add = AddStage::Prepared {
                        number: view,
                        replica,
                    };
                }
            }
            // The engines are equal all the same: a mark was in the way, or the flush. Tried again
            // after a pause; if the session ended, that is told next and ends it.
            EngineReport::AddAborted { view } => {
                if self.add.prepares(view) {
                    self.pause_until = self.pause_until.max(cx.now.plus(cx.me.timing.beacon));
                    self.forget_add(cx, AddStage::Resynced);
                }
            }
            EngineReport::LeavePrepared { view } => self.leave = Some(view),
            EngineReport::GrowPrepared { view, size_blocks } => {
                self.growth = Some((view, size_blocks));
            }
            EngineReport::Drained { seal, ok } => self.on_drained(cx, seal, ok),
            EngineReport::Quiesced => self.on_quiesced(cx),
            EngineReport::Mark { op, mark } => self.on_mark(op, mark),
        }
    }

    /// An Add came to nothing at the engines. One that they had prepared binds them until they hear
    /// that it will never be a view; if its accept left that is not known, and a Remove ends it (R4).
    fn forget_add(&mut self, cx: &mut Context<'_>, next: AddStage) {
        if matches!(self.add, AddStage::Prepared { .. }) && self.add_at_large.is_none() {
            cx.engine(self.id, EngineCommand::ProposalAborted);
        }
        self.add = next;
    }

    /// An Add under way binds the guests to a lease that a solo Primary would not need: if the peer
    /// is not heard any more, they are let go before they notice much.
    fn cancel_add_without_lease(&mut self, cx: &mut Context<'_>) {
        if let AddStage::Preparing(view) | AddStage::Prepared { number: view, .. } = self.add
            && self.add_at_large.is_none()
            && !self.lease.holds(cx.now)
        {
            cx.engine(self.id, EngineCommand::ProposalAborted);
            self.add = AddStage::Cancelling(view);
        }
    }

    /// A Primary whose replica is gone and that no other replica serves for has nothing to serve.
    fn leave_without_replica(&mut self, cx: &mut Context<'_>) {
        let only_here = InSync::only(cx.me.node);
        if self
            .active
            .is_some_and(|active| active.view.in_sync == only_here)
        {
            self.step_down(cx, StepDownReason::NoReplica);
        }
    }

    /// The only replica left is the peer's, and it restarted without writes that guests of this
    /// activation were told of (R16). They cannot be served as if nothing had happened (R17): this
    /// node makes way for the peer's lossy takeover.
    fn on_peer_lost_writes(&mut self, cx: &mut Context<'_>) {
        if self.local_failed {
            self.step_down(cx, StepDownReason::WritesLost);
        }
    }

    fn on_replica(&mut self, cx: &mut Context<'_>, facts: ReplicaFacts) {
        if self.replica.is_none_or(|old| old.replica != facts.replica) {
            self.vetoed = false;
            self.local_failed = false;
        }
        self.replica = Some(facts);
        // The engine may have been made after the view was learned.
        if let Some(view) = self.committed().filter(|_| self.active.is_none()) {
            cx.engine(self.id, EngineCommand::Learned(view));
        }
        let seal = self.grant.seal();
        if seal > ViewNumber::NONE && seal >= self.committed_number() {
            cx.engine(self.id, EngineCommand::Drain { seal });
        }
    }

    fn on_mark(&mut self, op: OpId, mark: ReplicaMark) {
        let version = self.store.change(|record| match mark {
            ReplicaMark::Failed => record.replica_failed = true,
            ReplicaMark::Clean => record.replica_failed = false,
            ReplicaMark::Attached(replica) => record.replica = Some(replica),
        });
        self.store.when_durable(version, Dependent::Mark { op });
    }

    /// What the peer's beacon says about this resource. Returns whether an active peer may go on.
    pub(super) fn on_beacon(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        entry: BeaconEntry,
    ) -> Option<GrantAnswer> {
        self.claim = Some((cx.now, entry));
        self.peer_fenced = None;
        if entry.attached && entry.eligible && entry.kept {
            self.peer_kept_at = Some(cx.now);
        }
        if entry.handed_over {
            self.peer_left = self.peer_left.max(Some(entry.view));
        }
        if !entry.active {
            return None;
        }
        // What it decides last it may not live to tell.
        self.may_be_behind = true;
        let committed = self.committed_for_others(cx.me);
        let (now, timing) = (cx.now, &cx.me.timing);
        Some(answer_beacon(
            &mut self.grant,
            committed,
            from,
            entry.view,
            now,
            timing,
        ))
    }

    /// The peer promised not to take over for a while after the beacon of `sent`.
    pub(super) fn on_granted(&mut self, cx: &mut Context<'_>, view: ViewNumber, sent: Instant) {
        // An answer to a beacon of an earlier activation does not count for this one.
        let counts = self
            .active
            .is_some_and(|active| sent >= active.since && view <= active.view.number);
        if !counts {
            return;
        }
        if let Some(until) = self.lease.note_ack(sent, &cx.me.timing) {
            cx.engine(self.id, EngineCommand::Lease { until });
        }
    }

    /// The peer sealed the views up to `seal`: this node must move on, at once (F18).
    pub(super) fn on_refused(&mut self, cx: &mut Context<'_>, seal: ViewNumber) {
        if self.active.is_some_and(|active| active.view.number <= seal) {
            self.step_down(cx, StepDownReason::Refused);
        }
    }

    /// Others say that `view` is committed.
    pub(super) fn on_learned(&mut self, cx: &mut Context<'_>, view: View) {
        self.yield_to_others(cx, &view);
        match News::of(&view, &self.knowledge(cx)) {
            News::Old => {}
            News::Contradiction => self.contradiction(cx, view.number),
            News::Own => self.note_committed(cx, view),
            News::StepDown => {
                self.note_committed(cx, view);
                self.step_down(cx, StepDownReason::Superseded);
                cx.engine(self.id, EngineCommand::Learned(view));
            }
            News::Learn => {
                self.note_committed(cx, view);
                cx.engine(self.id, EngineCommand::Learned(view));
            }
        }
    }

    fn note_committed(&mut self, cx: &mut Context<'_>, view: View) {
        if view.number <= self.committed_number() {
            return;
        }
        if self.add_at_large.is_some_and(|add| view.number >= add) {
            self.add_at_large = None;
        }
        // Written with whatever is written next; nothing waits for it.
        self.store.change(|record| record.committed = Some(view));
        self.last_abort = None;
        cx.event(ControllerEvent::ViewChanged {
            resource: self.id,
            view,
        });
    }

    fn contradiction(&mut self, cx: &mut Context<'_>, view: ViewNumber) {
        cx.event(ControllerEvent::Contradiction {
            resource: self.id,
            view,
        });
    }

    // ---- this node's role ----

    fn activate(&mut self, cx: &mut Context<'_>, activation: Activation) {
        let view = *activation.view();
        self.active = Some(Active {
            view,
            since: cx.now,
        });
        self.lease.clear();
        self.lease_lapsed = false;
        self.add = AddStage::Idle;
        self.leave = None;
        self.growth = None;
        self.peer_lost_at = None;
        self.peer_failed = false;
        self.peer_unprepared = false;
        self.ends_hold = false;
        self.remove_unclean =
            view.in_sync == InSync::BOTH && self.replica.is_some_and(|replica| replica.unclean);
        if view.cause == ViewCause::Forced {
            // Whatever was on record of its disk: it is what the resource is from now on.
            self.store.change(|record| record.replica_failed = false);
        }
        cx.engine(self.id, EngineCommand::Activate(activation));
        cx.event(ControllerEvent::Activated {
            resource: self.id,
            view,
        });
        cx.outlet.urgent.push(self.id);
    }

    fn step_down(&mut self, cx: &mut Context<'_>, reason: StepDownReason) {
        if self.active.take().is_none() {
            return;
        }
        self.lease.clear();
        self.lease_lapsed = false;
        self.add = AddStage::Idle;
        self.leave = None;
        self.growth = None;
        self.undecided = None;
        self.add_at_large = None;
        self.remove_unclean = false;
        cx.engine(self.id, EngineCommand::StepDown);
        cx.event(ControllerEvent::SteppedDown {
            resource: self.id,
            reason,
        });
        cx.outlet.urgent.push(self.id);
    }

    // ---- time ----

    /// Acts on everything that is due. Called after every input that concerns the resource.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.release(cx);
        if self.configured.is_some() {
            self.note_lease(cx);
            self.note_peer_well(cx);
            self.progress_order(cx);
            self.cancel_add_without_lease(cx);
            self.begin_add(cx);
            self.progress_rounds(cx);
            self.release(cx);
        }
        let op = cx.next_op();
        if let Some(record) = self.store.next_write(cx.now, op) {
            cx.outlet.actions.push(Action::Persist {
                op,
                resource: self.id,
                record,
            });
        }
    }

    /// A write of the record ended.
    pub(super) fn on_persisted(&mut self, cx: &mut Context<'_>, op: OpId, ok: bool) {
        if !self.store.note_written(cx.now, op, ok) {
            return;
        }
        let resource = self.id;
        cx.event(match ok {
            true => ControllerEvent::StoreReturned { resource },
            false => ControllerEvent::StoreFailed { resource },
        });
    }

    /// Does what waited for the disk.
    fn release(&mut self, cx: &mut Context<'_>) {
        for dependent in self.store.take_ready() {
            match dependent {
                Dependent::Reply { to, part } if to == cx.me.node => {
                    self.on_reply(cx, to, cx.me.voter, &part);
                }
                Dependent::Reply { to, part } => cx.send(to, part),
                Dependent::Mark { op } => {
                    cx.engine(self.id, EngineCommand::MarkDone { op, ok: true });
                }
                Dependent::UpRecorded => self.end_order(cx, false),
            }
        }
    }

    fn needs_lease(&self, cx: &Context<'_>) -> bool {
        self.active
            .is_some_and(|active| active.view.in_sync.contains(cx.me.node.peer()))
    }

    fn note_lease(&mut self, cx: &mut Context<'_>) {
        let Some(active) = self.active else { return };
        let over = match self.lease.until() {
            Some(until) => cx.now >= until,
            None => cx.now >= active.since.plus(cx.me.timing.suspicion),
        };
        let lapsed = self.needs_lease(cx) && over;
        if lapsed == self.lease_lapsed {
            return;
        }
        self.lease_lapsed = lapsed;
        let resource = self.id;
        cx.event(if lapsed {
            ControllerEvent::LeaseLapsed { resource }
        } else {
            ControllerEvent::LeaseReturned { resource }
        });
    }

    /// When `drive` must be called even if nothing happens.
    pub(super) fn next_deadline(
        &self,
        now: Instant,
        me: &Me,
        peers: &[Peer; 3],
    ) -> Option<Instant> {
        let mut next = self.store.next_deadline();
        let mut at = |deadline: Instant| {
            if deadline > now {
                next = Some(next.map_or(deadline, |next: Instant| next.min(deadline)));
            }
        };
        if self.configured.is_none() || !me.node.is_data() {
            return next;
        }
        at(self.pause_until);
        if let Some(attempt) = &self.attempt {
            at(attempt.again_at());
        }
        if let Some(order) = &self.order {
            order.deadlines(me).into_iter().for_each(&mut at);
        }
        let peer = &peers[me.node.peer().index()];
        match &self.active {
            Some(active) => {
                at(self
                    .lease
                    .until()
                    .unwrap_or(active.since.plus(me.timing.suspicion)));
                at(peer.suspect_at(me.timing.suspicion));
                if let Some(lost) = self.peer_lost_at {
                    at(lost.plus(SESSION_GRACE.max(me.timing.suspicion)));
                }
            }
            None => {
                if self.order_stage() == Some(orders::Stage::Leaving) {
                    at(peer.suspect_at(me.timing.suspicion));
                }
                at(self.grant.until());
                at(self.quiet_at(me, peers));
                at(self.kept_wait_end(me));
                at(self.takes_part_since.plus(me.timing.suspicion));
                at(self.head_start_until(me));
            }
        }
        next
    }

    /// Until when this node's activation may serve by what it knows itself: for ever alone, else
    /// until its lease ends. As strict as it gets while an Add is undecided (R4).
    pub(super) fn serves_until(&self, me: &Me) -> Option<Instant> {
        let active = self.active?;
        let alone = !active.view.in_sync.contains(me.node.peer()) && self.add_at_large.is_none();
        if alone {
            return Some(Instant::NEVER);
        }
        Some(self.lease.until().unwrap_or(active.since))
    }

    // ---- what the peer says ----

    /// The peer began another life: what it claimed is void.
    pub(super) fn forget_claim(&mut self) {
        self.claim = None;
        self.peer_fenced = None;
    }

    fn order_done(
        &mut self,
        cx: &mut Context<'_>,
        order: OrderId,
        result: Result<Done, OrderRefusal>,
    ) {
        cx.outlet.actions.push(Action::OrderDone { order, result });
    }
}
