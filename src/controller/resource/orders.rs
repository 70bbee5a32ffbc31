//! Orders by hand: each is done, refused with its reasons, or given up at its deadline; nothing
//! stays half done.

use core::time::Duration;

use replicator::types::{DataGeneration, Instant, ViewNumber};

use super::super::input::{Order, OrderId};
use super::super::order::{Done, OrderRefusal};
use super::super::output::{Blocker, EngineCommand, StepDownReason};
use super::super::store::Dependent;
use super::{Context, Me, Resource};

/// How long founding waits for a peer that is up but has not attached its replica yet.
pub(super) const ATTACH_PATIENCE: Duration = Duration::from_secs(2);

/// An order being carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    id: OrderId,
    what: Order,
    since: Instant,
    deadline: Instant,
    pub(super) stage: Stage,
    /// When that stage began.
    stage_since: Instant,
    /// The newest view known when it was given.
    about: ViewNumber,
    /// Everything that guests were told of is on both disks.
    pub(super) quiesced: bool,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// `primary`: the wish alone drives it.
    Promoting,
    /// A demotion waits until a majority is seen: without one the hold could not be recorded, and
    /// the node could not serve again either.
    AwaitingQuorum,
    /// The engine makes everything durable.
    Quiescing,
    /// The node serves no more; the hold is being committed.
    Holding,
    /// The node serves no more and said so; the peer is to take over.
    Leaving,
    /// The peer did not: this node serves again.
    Returning,
    /// `up` changed; it is being written.
    Recording,
}

impl Pending {
    pub(super) fn deadlines(&self, me: &Me) -> [Instant; 4] {
        [
            self.deadline,
            self.since.plus(ATTACH_PATIENCE),
            self.since.plus(me.timing.suspicion),
            self.stage_since.plus(self.patience(me)),
        ]
    }
}

impl Pending {
    pub(super) fn is(&self, what: Order) -> bool {
        self.what == what
    }
}

impl Resource {
    pub(super) fn order_stage(&self) -> Option<Stage> {
        self.order.map(|order| order.stage)
    }

    pub(super) fn order_what(&self) -> Option<Order> {
        self.order.map(|order| order.what)
    }

    /// The newest view known when the order was given.
    pub(super) fn order_about(&self) -> Option<ViewNumber> {
        self.order.map(|order| order.about)
    }

    pub(super) fn order_since(&self) -> Option<Instant> {
        self.order.map(|order| order.since)
    }

    /// Whether the running order's stage has lasted as long as it may.
    pub(super) fn stage_is_over(&self, cx: &Context<'_>) -> bool {
        self.order
            .is_some_and(|order| cx.now >= order.stage_since.plus(order.patience(cx.me)))
    }

    /// Someone orders something.
    pub(in super::super) fn on_order(
        &mut self,
        cx: &mut Context<'_>,
        id: OrderId,
        what: Order,
        deadline: Instant,
    ) {
        if self.configured.is_none() {
            self.order_done(cx, id, Err(OrderRefusal::UnknownResource));
            return;
        }
        if what == Order::Fenced {
            // It carries nothing out, and what waits for it need not be given again.
            let result = self.note_fenced(cx);
            return self.order_done(cx, id, result);
        }
        if let Some(running) = self.order {
            let promotes = |order| matches!(order, Order::Primary | Order::Force);
            let overrules = promotes(running.what) && !promotes(what) && what != Order::Move;
            if !overrules {
                self.order_done(cx, id, Err(OrderRefusal::Busy));
                return;
            }
            self.order = None;
            self.order_done(cx, running.id, Err(OrderRefusal::Superseded));
        }
        match self.first_stage(cx, what) {
            None => self.order_done(cx, id, Ok(self.done(true))),
            Some(stage) => {
                self.order = Some(Pending {
                    id,
                    what,
                    since: cx.now,
                    deadline,
                    stage,
                    stage_since: cx.now,
                    about: self.newest_number(),
                    quiesced: false,
                });
                self.ends_hold = false;
                if what == Order::Force {
                    // The one at hand may be that of the view which is left behind.
                    self.generation = DataGeneration(cx.random.next_u128());
                }
                if stage == Stage::Recording {
                    self.record_up(what);
                }
            }
        }
    }

    /// Where an order begins; `None` if there is nothing to do.
    fn first_stage(&self, cx: &Context<'_>, what: Order) -> Option<Stage> {
        let active = self.active.is_some();
        let up = self.record().up;
        match what {
            Order::Primary => (!active).then_some(Stage::Promoting),
            Order::Force => (!active || self.lease_lapsed).then_some(Stage::Promoting),
            Order::Up => (!up).then_some(Stage::Recording),
            Order::Secondary | Order::Down if active => Some(Stage::AwaitingQuorum),
            Order::Fenced => None,
            Order::HandOver => {
                let moves = self.peer_is_in_sync(cx) && !cx.me.automation.maintenance;
                moves.then_some(Stage::AwaitingQuorum)
            }
            Order::Move => (!self.peer_serves(cx)).then_some(Stage::AwaitingQuorum),
            Order::Down => up.then_some(Stage::Recording),
            Order::Secondary => {
                // The Primary of record would serve again by itself: that, too, must be held.
                let of_record = self
                    .record()
                    .newest()
                    .is_some_and(|view| view.primary == cx.me.node && !view.held);
                (of_record && up).then_some(Stage::Holding)
            }
        }
    }

    /// An operator says that the peer is dead: positive evidence, as long as nothing speaks against it.
    fn note_fenced(&mut self, cx: &Context<'_>) -> Result<Done, OrderRefusal> {
        let peer = cx.peer();
        let heard = peer
            .heard()
            .is_some_and(|at| cx.now < at.plus(cx.me.timing.suspicion));
        // Be it one-way, or by the data connection alone.
        let connected = self.session_up && self.peer_lost_at.is_none();
        if heard || connected || !peer.is_suspect(cx.now, cx.me.timing.suspicion) {
            let last_seen = peer.heard().map_or(Duration::ZERO, |at| cx.now.since(at));
            return Err(OrderRefusal::Blocked {
                blockers: vec![Blocker::PeerHeard { last_seen }],
                waited: Duration::ZERO,
            });
        }
        let newest = self.record().newest().map(|view| view.number);
        let waits = self.active.is_none() && self.grant.runs(cx.now) && newest.is_some();
        if waits {
            self.peer_fenced = newest;
        }
        Ok(self.done(!waits))
    }

    fn record_up(&mut self, what: Order) {
        let up = what == Order::Up;
        self.ends_hold = up;
        let version = self.store.change(|record| record.up = up);
        self.store.when_durable(version, Dependent::UpRecorded);
    }

    /// Moves the running order on.
    pub(super) fn progress_order(&mut self, cx: &mut Context<'_>) {
        let Some(order) = self.order else { return };
        match order.stage {
            Stage::Promoting => self.progress_promotion(cx),
            Stage::AwaitingQuorum | Stage::Quiescing if order.what == Order::Move => {
                self.progress_move(cx, order.stage);
            }
            Stage::AwaitingQuorum => {
                let handover = order.what == Order::HandOver;
                if handover && !self.peer_is_in_sync(cx) {
                    // It was removed meanwhile, or this node serves no more.
                    self.end_order(cx, true);
                } else if handover && !self.peer_could_follow(cx) {
                    // Its next beacon may say that it can.
                } else if handover && self.removes_peer(cx) {
                    // The view that follows leaves nobody else to serve.
                } else if self.active.is_none() {
                    self.set_stage(cx, Stage::Holding);
                } else if cx.voters_seen() >= self.votes_needed() {
                    self.begin_quiesce(cx);
                }
            }
            // Stepped down meanwhile for another reason.
            Stage::Quiescing if self.active.is_none() => {
                let leaves = order.what == Order::HandOver;
                self.set_stage(
                    cx,
                    if leaves {
                        Stage::Leaving
                    } else {
                        Stage::Holding
                    },
                );
            }
            Stage::Holding => self.progress_hold(cx, order.what),
            Stage::Leaving => self.progress_leaving(cx, order.what),
            Stage::Returning => self.progress_returning(cx),
            Stage::Quiescing | Stage::Recording => {}
        }
        let over = |order: Pending| cx.now >= order.deadline && !order.is_past_its_deadline();
        if self.order.is_some_and(over) {
            self.give_order_up(cx);
        }
    }

    /// Guests' new requests wait from here on.
    pub(super) fn begin_quiesce(&mut self, cx: &mut Context<'_>) {
        self.set_stage(cx, Stage::Quiescing);
        cx.engine(self.id, EngineCommand::Quiesce);
    }

    fn progress_promotion(&mut self, cx: &mut Context<'_>) {
        if self.active.is_some() {
            if !self.progress_forced_primary(cx) {
                self.end_order(cx, false);
            }
            return;
        }
        let blockers = self.order_blockers(cx);
        if blockers.iter().any(|blocker| !blocker.may_pass()) {
            self.refuse_order(cx, blockers);
        }
    }

    fn progress_hold(&mut self, cx: &mut Context<'_>, what: Order) {
        let held_or_not_ours = self
            .committed()
            .is_none_or(|view| view.held || view.primary != cx.me.node);
        let newer_accepted = self
            .record()
            .newest()
            .is_some_and(|view| Some(view.number) > self.committed().map(|view| view.number));
        if !held_or_not_ours || newer_accepted {
            return;
        }
        if what == Order::Down {
            self.set_stage(cx, Stage::Recording);
            self.record_up(what);
        } else {
            self.end_order(cx, false);
        }
    }

    /// The engine holds new requests and everything is durable.
    pub(super) fn on_quiesced(&mut self, cx: &mut Context<'_>) {
        let Some(order) = self.order.filter(|it| it.stage == Stage::Quiescing) else {
            return;
        };
        let Some(active) = self.active else { return };
        match order.what {
            Order::HandOver | Order::Move => self.leave_to_peer(cx, &active.view, order.what),
            _ => {
                self.step_down(cx, StepDownReason::Ordered);
                self.set_stage(cx, Stage::Holding);
                if let Some(order) = &mut self.order {
                    order.quiesced = true;
                }
            }
        }
    }

    pub(super) fn set_stage(&mut self, cx: &Context<'_>, stage: Stage) {
        if let Some(order) = &mut self.order {
            order.stage = stage;
            order.stage_since = cx.now;
        }
    }

    pub(super) fn end_order(&mut self, cx: &mut Context<'_>, already: bool) {
        if let Some(order) = self.order.take() {
            self.order_done(cx, order.id, Ok(self.done(already)));
        }
    }

    fn give_order_up(&mut self, cx: &mut Context<'_>) {
        let mut blockers = match self.order_stage() {
            Some(Stage::Promoting) if self.force_is_at_large() => Vec::new(),
            Some(Stage::Promoting) => self.order_blockers(cx),
            Some(Stage::Quiescing) => {
                cx.engine(self.id, EngineCommand::Unquiesce);
                vec![Blocker::NotQuiet]
            }
            Some(Stage::Recording) => vec![Blocker::StoreSlow],
            Some(Stage::Holding) => {
                // The hold may have been accepted somewhere; the refused order leaves none behind.
                self.ends_hold = true;
                Vec::new()
            }
            Some(Stage::AwaitingQuorum) if self.order_what() == Some(Order::Move) => {
                self.move_blockers(cx)
            }
            Some(Stage::AwaitingQuorum | Stage::Leaving | Stage::Returning) | None => Vec::new(),
        };
        let seen = cx.voters_seen();
        if blockers.is_empty() && seen < self.votes_needed() && !self.force_is_at_large() {
            blockers.push(Blocker::NoQuorum { seen });
        }
        if blockers.is_empty() {
            blockers.push(Blocker::Undecided);
        }
        self.refuse_order(cx, blockers);
    }

    pub(super) fn refuse_order(&mut self, cx: &mut Context<'_>, blockers: Vec<Blocker>) {
        if let Some(order) = self.order.take() {
            let waited = cx.now.since(order.since);
            let refusal = OrderRefusal::Blocked { blockers, waited };
            self.order_done(cx, order.id, Err(refusal));
        }
    }

    fn done(&self, already: bool) -> Done {
        Done {
            already,
            view: self.committed_number(),
        }
    }
}
