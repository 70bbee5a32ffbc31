//! Preferred nodes: what the daemon's placement thread does, with the production decision.
//!
//! The wall clock runs fast, so that a day of flap limit passes in seconds; what the preferred node says
//! when it is asked is taken from it, without the network between.

use replicator::engine::Snapshot;
use replicator::types::{Failback, Failover, NodeId, ReplicationProtocol, Role, View};
use twinblk::controller::placement::{
    Away, Busy, Clocks, Ended, Facts, Placement, Standing, Stay, Wish,
};
use twinblk::controller::{Automation, Order, OrderId, ResourceSnapshot};

use crate::clock::MILLIS;

use super::{Event, World};

/// How often it is looked.
const LOOK_EVERY: u64 = 50 * MILLIS;
/// A day of the wall clock takes 2.6 s.
const WALL_NANOS: u64 = 30_000;

/// What the placement of one node knows.
#[derive(Debug, Default)]
pub(super) struct Places {
    placement: Placement,
    /// Its order `move`, until it ends.
    moving: Option<OrderId>,
    /// An operator chose another node than the preferred one, and gave the order here. Survives the
    /// process, as its file does.
    chosen: bool,
    /// What an operator took from the process.
    pub(super) automation: Automation,
}

impl World {
    /// The process is another one: it remembers what the file says.
    pub(super) fn forget_places(&mut self, node: NodeId) {
        let went: Vec<_> = {
            let places = &self.places[node.index()];
            places.placement.went(self.resource).to_vec()
        };
        let places = &mut self.places[node.index()];
        places.moving = None;
        places.automation = Automation::default();
        places.placement = Placement::default();
        for unix_seconds in went {
            places.placement.remember(self.resource, unix_seconds);
        }
    }

    pub(super) fn look_at_places(&mut self) {
        if self.plan.options.prefer.is_none() {
            return;
        }
        for node in [NodeId::A, NodeId::B] {
            self.look_at_place(node);
        }
        self.schedule(LOOK_EVERY, Event::Places);
    }

    fn look_at_place(&mut self, node: NodeId) {
        let id = self.resource;
        if self.node(node).paused > 0 {
            return;
        }
        let (Some(controller), Some(engine)) = (self.controller_of(node), self.engine_of(node))
        else {
            return;
        };
        let preferred = self.plan.options.prefer == Some(node);
        let primary = controller.view.map(|view| view.primary);
        // Where it was sent from, or whence it was taken: then no choice holds any more.
        let home = if preferred { node } else { node.peer() };
        if primary == Some(home) && self.places[node.index()].moving.is_none() {
            self.places[node.index()].chosen = false;
        }
        let clocks = self.clocks_of(node);
        let places = &self.places[node.index()];
        let facts = facts(&controller, &engine, places);
        let standing = places
            .placement
            .standing(node, id, &self.wish(), &facts, clocks);
        if !facts.serves {
            self.places[node.index()].placement.note_gone(id);
        }
        if standing != Standing::Due {
            return;
        }
        let turn = self.places[node.index()]
            .placement
            .next([(id, 10)].into_iter(), clocks.now);
        if turn.is_none() {
            return;
        }
        let away = self.away(node.peer());
        let places = &mut self.places[node.index()];
        places.placement.note_peer(id, away, clocks.now);
        if away.is_none() {
            places.placement.begin(id, clocks);
            // Before it is given: it may end in this very step.
            let orders = self.node(node).process.as_ref().map(|it| it.orders);
            self.places[node.index()].moving = orders.map(|it| OrderId(it + 1));
            self.order(node, Order::Move);
        }
    }

    /// What the preferred node says when it is asked.
    fn away(&self, preferred: NodeId) -> Option<Away> {
        let target = &self.nodes[preferred.index()];
        let places = &self.places[preferred.index()];
        match &target.process {
            Some(_) if target.paused == 0 => None,
            _ => Some(Away::Unknown),
        }
        .or(places.automation.standby.then_some(Away::Standby))
        .or(places.automation.maintenance.then_some(Away::Maintenance))
        .or(places.chosen.then_some(Away::ByHand))
    }

    /// An order of a node ended: it may be this one's.
    pub(super) fn note_move_ended(&mut self, node: NodeId, order: OrderId, done: bool) {
        let clocks = self.clocks_of(node);
        let places = &mut self.places[node.index()];
        if places.moving == Some(order) {
            places.moving = None;
            let ended = if done { Ended::Home } else { Ended::Failed };
            places.placement.end(self.resource, ended, clocks);
            self.figures.failbacks += u64::from(done);
        }
    }

    /// An operator chooses `to` by an order given at `node`; it holds if that is not the preferred one.
    pub(super) fn note_choice(&mut self, node: NodeId, to: NodeId) {
        let against = self.plan.options.prefer == Some(to.peer());
        self.places[node.index()].chosen |= against;
    }

    /// Whether nothing keeps the resource from its preferred node for ever: then it must get there.
    pub(super) fn not_at_home(&self, primary: NodeId) -> Option<String> {
        let preferred = self.plan.options.prefer?;
        let view = self.writer.newest()?;
        let people_decide = self.wish().manual || view.lossy;
        let standing = self.standing_of(primary);
        // After tries that failed it waits for longer than a run lasts.
        let waits = matches!(
            standing,
            Some(Standing::Stays(
                Stay::BackOff { .. } | Stay::FlapLimit { .. }
            ))
        );
        (primary != preferred && !people_decide && !waits)
            .then(|| format!("{primary:?} serves, {preferred:?} is preferred: {standing:?}"))
    }

    /// After the heal no choice by hand holds.
    pub(super) fn end_choices(&mut self) {
        for places in &mut self.places {
            places.chosen = false;
        }
    }

    fn standing_of(&self, node: NodeId) -> Option<Standing> {
        let (controller, engine) = (self.controller_of(node)?, self.engine_of(node)?);
        let places = &self.places[node.index()];
        let facts = facts(&controller, &engine, places);
        let clocks = self.clocks_of(node);
        Some(
            places
                .placement
                .standing(node, self.resource, &self.wish(), &facts, clocks),
        )
    }

    fn controller_of(&self, node: NodeId) -> Option<ResourceSnapshot> {
        let process = self.nodes[node.index()].process.as_ref()?;
        let now = self.local_now(node);
        process.controller.snapshot(now, self.resource)
    }

    fn engine_of(&self, node: NodeId) -> Option<Snapshot> {
        Some(self.nodes[node.index()].engine()?.snapshot())
    }

    fn clocks_of(&self, node: NodeId) -> Clocks {
        Clocks {
            now: self.local_now(node),
            unix_seconds: self.now.0 / WALL_NANOS,
        }
    }

    fn wish(&self) -> Wish {
        let options = &self.plan.options;
        Wish {
            prefer: options.prefer,
            failback: Failback::WhenSynced,
            hold_down: core::time::Duration::from_nanos(options.hold_down),
            priority: 10,
            manual: options.failover == Failover::Manual
                || options.protocol == ReplicationProtocol::A,
        }
    }
}

fn facts(controller: &ResourceSnapshot, engine: &Snapshot, places: &Places) -> Facts {
    let lossy = |view: &View| view.lossy;
    let busy = if engine.held.is_some() || engine.suspension.is_some() {
        Some(Busy::Held)
    } else if engine.resync.is_some_and(|it| it.ended.is_none()) {
        Some(Busy::Resync)
    } else {
        let verifies = engine.verify.as_ref().is_some_and(|it| it.end.is_none());
        verifies.then_some(Busy::Verify)
    };
    Facts {
        serves: engine.role == Role::Primary && controller.activated,
        by_hand: places.chosen,
        maintenance: places.automation.maintenance,
        lossy: controller.view.as_ref().is_some_and(lossy),
        peer_well_since: controller.peer_well_since,
        blocker: controller.move_blocker,
        busy,
        guest_idle: false,
    }
}
