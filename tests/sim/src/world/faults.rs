//! The plan's faults, and the heal after which everything must come right.

use core::num::NonZeroU64;

use replicator::engine::{AdminRequest, Engine, Input, ResyncOrder, VerifyOrder};
use replicator::types::time::Duration;
use replicator::types::{BlockCount, DiskState, NodeId, ReplicationState, ResyncRate, Role};
use twinblk::controller::{Automation, Input as ControllerInput, Order};

use crate::checkers::{Violation, state};
use crate::clock::{MILLIS, SECS};
use crate::plan::{Fault, FaultWhat};

use super::{Event, Planted, World};

/// How often the healed world is looked at.
const LOOK_EVERY: u64 = 100 * MILLIS;

impl World {
    pub(super) fn fault_begins(&mut self, nr: usize) {
        if self.healed {
            return;
        }
        let fault = self.plan.faults[nr].clone();
        self.figures.faults += 1;
        self.trace
            .say(self.now, || format!("FAULT {nr} begins: {:?}", fault.what));
        self.expect_answers_despite(nr, &fault);
        match fault.what {
            FaultWhat::Kill(node) => {
                self.node(node).held_down += 1;
                self.kill(node);
            }
            FaultWhat::Power(node) => {
                self.node(node).unpowered += 1;
                self.cut_power(node);
            }
            FaultWhat::Pause(node) => self.node(node).paused += 1,
            FaultWhat::Cut(wires) => wires.into_iter().for_each(|wire| self.wires.cut(wire)),
            FaultWhat::Slow { extra } => self.slow += extra,
            FaultWhat::DiskError {
                node,
                op,
                per_mille,
            } => {
                self.node(node).broken.data.push((op, per_mille));
            }
            FaultWhat::MetaError { node, per_mille } => {
                self.node(node).broken.meta.push(per_mille);
            }
            FaultWhat::DiskStall(node) => self.node(node).broken.stalls += 1,
            FaultWhat::DiskHang(node) => self.disk_hangs(node),
            FaultWhat::StoreStall { node, extra } => self.node(node).broken.store_extra += extra,
            FaultWhat::HoldResync(node) => self.order_resync(node, ResyncOrder::Pause),
            FaultWhat::PaceResync { node, rate } => {
                let rate =
                    NonZeroU64::new(rate).map_or(ResyncRate::Unlimited, ResyncRate::BytesPerSecond);
                self.order_resync(node, ResyncOrder::Rate(rate));
            }
            FaultWhat::Invalidate(node) => self.admin(node, AdminRequest::Invalidate),
            FaultWhat::Verify { node, repair } => {
                self.admin(node, AdminRequest::Verify(VerifyOrder::Start { repair }));
            }
            FaultWhat::Rot { node, block } => self.rot(node, block),
            FaultWhat::SuspendIo(node) => self.admin(node, AdminRequest::SuspendIo),
            FaultWhat::Grow { to } => self.grow(to),
            FaultWhat::Move { from, .. } => self.order(from, Order::Secondary),
            FaultWhat::Stop(node) => self.order(node, Order::HandOver),
            FaultWhat::MoveAway(node) => {
                self.note_choice(node, node.peer());
                self.order(node, Order::Move);
            }
            FaultWhat::Promote(node) => {
                self.note_choice(node, node);
                self.order(node, Order::Primary);
            }
            FaultWhat::Disconnect(node) => self.admin(node, AdminRequest::Disconnect),
            FaultWhat::Force(node) => self.order_beside_a_dead_peer(node, Order::Force),
            FaultWhat::Fenced(node) => self.order_beside_a_dead_peer(node, Order::Fenced),
            FaultWhat::Automation { node, maintenance } => {
                self.automate(
                    node,
                    Automation {
                        standby: !maintenance,
                        maintenance,
                    },
                );
            }
        }
        self.active_faults.insert(nr);
        self.schedule(fault.length, Event::FaultEnds(nr));
    }

    /// A Primary's disk hangs while nothing else is wrong: its guests are answered within a bound
    /// all the same (promise 10).
    fn expect_answers_despite(&mut self, nr: usize, fault: &Fault) {
        self.watched_hang = None;
        let FaultWhat::DiskHang(node) = fault.what else {
            return;
        };
        let state = |node: NodeId| Some(self.nodes[node.index()].engine()?.snapshot());
        let (Some(own), Some(peer)) = (state(node), state(node.peer())) else {
            return;
        };
        let serves = own.role == Role::Primary && own.held.is_none();
        let mirrored = own.disk == DiskState::UpToDate
            && peer.disk == DiskState::UpToDate
            && own.replication == ReplicationState::Established;
        let arbitrator = self.nodes[NodeId::ARBITRATOR.index()].process.is_some();
        if self.active_faults.is_empty() && serves && mirrored && arbitrator {
            self.watched_hang = Some(nr);
            self.schedule(self.hang_bound(), Event::HangLook { nr, node });
        }
    }

    /// Time to find out and to commit a Leave over a bad network.
    fn hang_bound(&self) -> u64 {
        let found_out = self.disk_timeout() * Engine::SLOW_DISK_TIMEOUTS;
        u64::try_from(found_out.as_nanos()).expect("seconds") + 2 * SECS
    }

    pub(super) fn hang_look(&mut self, nr: usize, node: NodeId) {
        if self.watched_hang != Some(nr) || !self.active_faults.contains(&nr) {
            return;
        }
        let asked_by = self.now.0 - self.hang_bound();
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        let waits = side
            .asked
            .values()
            .find(|asked| asked.invoked.0 <= asked_by);
        if let Some(waits) = waits {
            let detail = format!("{node:?}'s disk hangs, and {waits:?} waits for it");
            self.fail(Violation::new("bounded stall", detail));
        }
        self.schedule(LOOK_EVERY, Event::HangLook { nr, node });
    }

    pub(super) fn fault_ends(&mut self, nr: usize) {
        if !self.active_faults.remove(&nr) {
            return;
        }
        let fault = self.plan.faults[nr].clone();
        self.trace
            .say(self.now, || format!("FAULT {nr} ends: {:?}", fault.what));
        match fault.what {
            FaultWhat::Kill(node) => {
                self.node(node).held_down -= 1;
                self.schedule(0, Event::Start { node });
            }
            FaultWhat::Power(node) => self.power_returns(node),
            FaultWhat::Pause(node) => {
                let target = self.node(node);
                target.paused = target.paused.saturating_sub(1);
                self.resume(node);
            }
            FaultWhat::Cut(wires) => wires.into_iter().for_each(|wire| self.wires.mend(wire)),
            FaultWhat::Slow { extra } => self.slow -= extra,
            FaultWhat::DiskError {
                node,
                op,
                per_mille,
            } => {
                let errors = &mut self.node(node).broken.data;
                if let Some(at) = errors.iter().position(|error| *error == (op, per_mille)) {
                    errors.remove(at);
                }
            }
            FaultWhat::MetaError { node, per_mille } => {
                let errors = &mut self.node(node).broken.meta;
                if let Some(at) = errors.iter().position(|error| *error == per_mille) {
                    errors.remove(at);
                }
            }
            FaultWhat::DiskStall(node) => {
                self.node(node).broken.stalls -= 1;
                self.disk_resumes(node);
            }
            FaultWhat::DiskHang(node) => self.disk_answers(node),
            FaultWhat::StoreStall { node, extra } => self.node(node).broken.store_extra -= extra,
            FaultWhat::HoldResync(node) => self.order_resync(node, ResyncOrder::Resume),
            FaultWhat::PaceResync { node, .. } => {
                self.order_resync(node, ResyncOrder::Rate(ResyncRate::Unlimited));
            }
            FaultWhat::Invalidate(node) => self.admin(node, AdminRequest::KeepData),
            FaultWhat::Verify { node, .. } => {
                self.admin(node, AdminRequest::Verify(VerifyOrder::Stop));
            }
            FaultWhat::Rot { .. } | FaultWhat::Grow { .. } => {}
            FaultWhat::SuspendIo(node) => self.admin(node, AdminRequest::ResumeIo),
            FaultWhat::Move { to, .. } => self.order(to, Order::Primary),
            FaultWhat::Disconnect(node) => self.admin(node, AdminRequest::Connect),
            FaultWhat::MoveAway(_)
            | FaultWhat::Promote(_)
            | FaultWhat::Force(_)
            | FaultWhat::Fenced(_) => {}
            FaultWhat::Automation { node, .. } => self.automate(node, Automation::default()),
            FaultWhat::Stop(node) => {
                self.kill(node);
                self.schedule(MILLIS, Event::Start { node });
            }
        }
    }

    /// What the operator says is true. A force without a majority would make two lineages live at once,
    /// which no checker here understands: it is given up before it comes to that.
    fn order_beside_a_dead_peer(&mut self, node: NodeId, order: Order) {
        const LESS_THAN_A_GRANT: Duration = Duration::from_millis(500);
        if self.nodes[node.peer().index()].process.is_none() {
            self.order_within(node, order, LESS_THAN_A_GRANT);
        }
    }

    /// Kept across restarts by the daemon; here a process that starts anew has forgotten it.
    fn automate(&mut self, node: NodeId, automation: Automation) {
        if self.nodes[node.index()].process.is_some() {
            self.places[node.index()].automation = automation;
            self.tell_controller(node, ControllerInput::Automation(automation));
        }
    }

    /// Both devices are measured, and whoever is Primary enlarges the volume.
    fn grow(&mut self, to: u64) {
        let (device, meta) = (self.device_blocks().bytes(), self.meta_len());
        for node in [NodeId::A, NodeId::B] {
            self.admin(node, AdminRequest::Measured { device, meta });
        }
        let to = BlockCount(to);
        for node in [NodeId::A, NodeId::B] {
            self.admin(node, AdminRequest::Grow { to });
        }
    }

    fn order_resync(&mut self, node: NodeId, order: ResyncOrder) {
        self.admin(node, AdminRequest::Resync(order));
    }

    /// An operator's order; a process that is down or stands still hears none.
    pub(super) fn admin(&mut self, node: NodeId, request: AdminRequest) {
        self.step_engine(node, Input::Admin(request));
    }

    fn power_returns(&mut self, node: NodeId) {
        self.node(node).unpowered -= 1;
        if self.node(node).unpowered > 0 {
            return;
        }
        let now = self.now;
        let same_id = self.planted == Some(Planted::PowerCutUnnoticed);
        self.nodes[node.index()].boot(now, &self.plan, same_id);
        self.trace.say(now, || format!("{node:?} has power"));
        self.schedule(MILLIS, Event::Start { node });
    }

    /// Everything is mended, for ever. From here on it must come right in bounded time.
    pub(super) fn heal(&mut self) {
        self.trace.say(self.now, || "HEAL".into());
        for nr in core::mem::take(&mut self.active_faults) {
            self.active_faults.insert(nr);
            self.fault_ends(nr);
        }
        self.healed = true;
        self.end_choices();
        self.schedule(LOOK_EVERY, Event::Look);
    }

    /// The healed pair: settled, still on its way, or stuck.
    pub(super) fn look(&mut self) {
        self.reattach();
        self.over_budget |= self.no_good_replica_left();
        let unsettled = self.unsettled();
        if unsettled.is_none() && self.is_verified_at_end() {
            self.watch_end();
            self.done = true;
            return;
        }
        let limit = self.plan.options.safety.plus(self.settle_limit());
        if self.now > limit {
            self.done = true;
            if !self.over_budget {
                let seconds = self.settle_limit() / SECS;
                let why = unsettled.unwrap_or_default();
                let view = self.writer.newest().copied();
                let blockers = [NodeId::A, NodeId::B].map(|node| self.blockers(node));
                let detail = format!(
                    "{seconds} s after the heal: {why}; blockers {blockers:?}; newest {view:?}"
                );
                self.fail(Violation::new("liveness", detail));
            }
            return;
        }
        self.schedule(LOOK_EVERY, Event::Look);
    }

    /// Why a node does not serve, in its controller's words.
    fn blockers(&self, node: NodeId) -> String {
        let now = self.local_now(node);
        let process = self.nodes[node.index()].process.as_ref();
        let snapshot = process.and_then(|process| process.controller.snapshot(now, self.resource));
        snapshot.map_or_else(String::new, |snapshot| {
            format!(
                "{:?} {:?} {:?}",
                snapshot.blockers, snapshot.proposal, snapshot.last_abort
            )
        })
    }

    fn unsettled(&self) -> Option<String> {
        let snapshots = [NodeId::A, NodeId::B].map(|node| {
            self.nodes[node.index()]
                .engine()
                .map(|engine| engine.snapshot())
        });
        let [Some(a), Some(b)] = snapshots else {
            return Some("a node is down".into());
        };
        if a.lag_bytes + b.lag_bytes > 0 {
            return Some("the peer has not got everything yet".to_owned());
        }
        if let Some(why) = state::unsettled([&a, &b]) {
            return Some(why);
        }
        let primary = match a.role {
            Role::Primary => NodeId::A,
            Role::Secondary | Role::Unknown => NodeId::B,
        };
        if let Some(why) = self.not_at_home(primary) {
            return Some(why);
        }
        (!self.clients_done()).then(|| format!("clients wait: {:?}", self.clients))
    }

    /// After the heal an operator attaches what failed once more; it comes back by a resync.
    fn reattach(&mut self) {
        for node in [NodeId::A, NodeId::B] {
            let Some(engine) = self.nodes[node.index()].engine() else {
                continue;
            };
            let snapshot = engine.snapshot();
            if snapshot.role == Role::Primary {
                continue;
            }
            match snapshot.disk {
                // As the daemon does it: the controller must hear that the failed device is gone, or it
                // would count as failed for as long as the process lives.
                DiskState::Failed => self.admin(node, AdminRequest::Detach),
                DiskState::Diskless => self.want_attach(node),
                _ => {}
            }
        }
    }

    /// Every replica the view counts on has failed: nothing but `--force` helps, and a simulation
    /// does not force.
    fn no_good_replica_left(&self) -> bool {
        let Some(view) = self.writer.newest() else {
            return false;
        };
        [NodeId::A, NodeId::B]
            .into_iter()
            .filter(|node| view.in_sync.contains(*node))
            .all(|node| self.is_marked_failed(node))
    }

    pub(super) fn is_marked_failed(&self, node: NodeId) -> bool {
        self.nodes[node.index()].record().replica_failed || self.superblock_says_failed(node)
    }
}
