//! A controller's inputs and actions, and the voter store, as the daemon carries them out.

use replicator::engine::{AdminRequest, Input as EngineInput};
use replicator::protocol::Refusal;
use replicator::types::time::Duration;
use replicator::types::{
    DiskState, Failover, InSync, Instant, NodeId, OpId, Role, StoreError, View,
};
use twinblk::controller::{
    Action, Configured, Controller, ControllerSettings, Datagram, EngineCommand, Input, Order,
    OrderId, Rules, Timing, VoterRecord,
};

use crate::net::{Path, Wire};
use crate::plan::Profile;
use crate::rng::{Rng, Stream};
use crate::trace::code_of;

use super::engine::short;
use super::node::{Arrival, StoreKey};
use super::{Event, Planted, World};

/// Hash of the cluster's name, the same everywhere.
const CLUSTER: u64 = 0x5157_1b1c;

impl World {
    pub(super) fn new_controller(&self, node: NodeId, record: Option<VoterRecord>) -> Controller {
        let target = &self.nodes[node.index()];
        let settings = ControllerSettings {
            node,
            cluster: CLUSTER,
            voter: target.voter,
            boot_id: target.boot_id,
            incarnation: target.life,
            timing: match self.plan.options.profile {
                Profile::Fast => Timing::FAST,
                Profile::Default => Timing::DEFAULT,
            },
            has_arbitrator: true,
            seed: Rng::keyed(
                self.plan.seed,
                Stream::Identity,
                u64::from(target.life) << 16,
            )
            .next_id(),
            configured: if node.is_data() {
                vec![Configured {
                    protocol: self.plan.options.protocol,
                    failover: self.plan.options.failover,
                    prefer: self.plan.options.prefer,
                    ..Configured::usual(self.resource)
                }]
            } else {
                Vec::new()
            },
            stored: record
                .map(|record| (self.resource, record))
                .into_iter()
                .collect(),
        };
        let rules = self.planted.map_or(Rules::ALL, Planted::rules);
        Controller::with_rules(settings, target.clock.read(self.now), rules)
            .expect("the profiles are consistent")
    }

    pub(super) fn on_controller_tick(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(process) = &mut self.node(node).process {
            if process.controller_tick == Some(now) {
                process.controller_tick = None;
            }
            self.step_controller(node, Input::Tick);
        }
    }

    pub(super) fn on_datagram(&mut self, node: NodeId, path: u8, bytes: &[u8]) {
        match Datagram::decode(bytes) {
            Ok(datagram) => self.step_controller(node, Input::Received { path, datagram }),
            Err(error) => self.fail(crate::checkers::Violation::new(
                "codec",
                format!("{node:?} cannot decode a datagram: {error}"),
            )),
        }
    }

    pub(super) fn step_controller(&mut self, node: NodeId, input: Input) {
        let local = self.local_now(node);
        if self.trace.is_text() && !is_dull(&input) {
            let text = short(&input);
            self.trace
                .say(self.now, || format!("{node:?} controller < {text}"));
        }
        let mut out = Vec::new();
        let Some(process) = &mut self.node(node).process else {
            return;
        };
        process.controller.handle(local, input, &mut out);
        for action in out {
            self.carry_controller(node, action);
        }
        self.schedule_controller_tick(node);
    }

    fn schedule_controller_tick(&mut self, node: NodeId) {
        let now = self.now;
        let target = self.node(node);
        let (life, clock) = (target.life, target.clock);
        let Some(process) = &mut target.process else {
            return;
        };
        let Some(deadline) = process.controller.next_deadline() else {
            return;
        };
        let at = clock.when(deadline, now);
        if process
            .controller_tick
            .is_none_or(|tick| tick > at || tick <= now)
        {
            process.controller_tick = Some(at);
            self.schedule_at(
                at,
                Event::Arrive {
                    node,
                    life,
                    what: Arrival::ControllerTick,
                },
            );
        }
    }

    fn carry_controller(&mut self, node: NodeId, action: Action) {
        if self.trace.is_text() && !is_dull_action(&action) {
            let text = short(&action);
            self.trace
                .say(self.now, || format!("{node:?} controller > {text}"));
        }
        match action {
            Action::Send { to, datagram } => self.send_datagram(node, to, &datagram),
            Action::Persist {
                op,
                resource,
                record,
            } => {
                assert_eq!(resource, self.resource);
                self.store_write(node, op, record);
            }
            Action::Engine { command, .. } => self.command_engine(node, command),
            Action::OrderDone { order, result } => {
                self.trace.note(self.now, code_of(&(order, &result)));
                self.note_move_ended(node, order, result.is_ok());
            }
            Action::Event(event) => self.trace.note(self.now, code_of(&event)),
        }
    }

    fn send_datagram(&mut self, from: NodeId, to: NodeId, datagram: &Datagram) {
        let bytes = datagram.encode();
        let life = self.node(to).life;
        for path in Path::ALL {
            let wire = Wire { from, to, path };
            if !path.joins(from, to) {
                continue;
            }
            for delay in self.wires.datagram(wire) {
                let what = Arrival::Datagram {
                    path: path as u8,
                    bytes: bytes.clone(),
                };
                // A datagram reaches whatever process listens then, also a later one.
                let life = if self.node(to).process.is_some() {
                    life
                } else {
                    life + 1
                };
                self.schedule(
                    delay + self.slow,
                    Event::Arrive {
                        node: to,
                        life,
                        what,
                    },
                );
            }
        }
    }

    fn command_engine(&mut self, node: NodeId, command: EngineCommand) {
        let input = match command {
            EngineCommand::Lease { until } => {
                self.set_lease(node, until);
                return;
            }
            EngineCommand::Activate(activation) => EngineInput::Activate(activation),
            EngineCommand::StepDown => EngineInput::StepDown,
            EngineCommand::Committed(committed) => EngineInput::Committed(committed),
            EngineCommand::Learned(view) => EngineInput::Learned(view),
            EngineCommand::Drain { seal } => EngineInput::Drain { seal },
            EngineCommand::BeginAdd { view } => EngineInput::BeginAdd { view },
            EngineCommand::ProposalAborted => EngineInput::ProposalAborted,
            EngineCommand::MarkDone { op, ok } => EngineInput::MarkDone {
                op,
                result: if ok { Ok(()) } else { Err(StoreError) },
            },
            EngineCommand::Quiesce => EngineInput::Admin(AdminRequest::Quiesce),
            EngineCommand::Unquiesce => EngineInput::Admin(AdminRequest::Unquiesce),
        };
        self.tell_engine(node, input);
    }

    /// The lease goes beside the queue: an atomic the shard reads at each turn, and a wake-up.
    fn set_lease(&mut self, node: NodeId, until: Instant) {
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        side.lease = until;
        let delay = self.draw(Stream::Thread, self.plan.options.thread_delay);
        self.send_to(node, delay, Arrival::Wake);
    }

    /// Hands a record to the store's thread.
    fn store_write(&mut self, node: NodeId, op: OpId, record: VoterRecord) {
        let latency = self.draw(Stream::Store, self.plan.options.store_latency);
        let now = self.now;
        let target = self.node(node);
        target.store.begin(StoreKey::Record, record);
        target.store_waiters.push_back(op);
        let begin = target.store_free_at.max(now);
        target.store_free_at = begin.plus(latency + target.broken.store_extra);
        let (at, life) = (target.store_free_at, target.life);
        self.schedule_at(at, Event::StoreEnds { node, life });
    }

    pub(super) fn store_ends(&mut self, node: NodeId, life: u32) {
        let target = self.node(node);
        if target.life != life {
            return;
        }
        let Some(op) = target.store_waiters.pop_front() else {
            return;
        };
        target.store.end();
        self.note_store(node);
        self.arrive(
            node,
            life,
            Arrival::Controller(Input::Persisted { op, ok: true }),
        );
    }

    /// What an operator would do: found the resource, keep both nodes up, end holds after the heal.
    pub(super) fn operator_turn(&mut self) {
        const PATIENCE: u64 = 200 * crate::clock::MILLIS;
        for node in [NodeId::A, NodeId::B] {
            let up = self.node(node).record().up;
            if !up {
                self.order(node, Order::Up);
            }
        }
        self.resolve_diverged();
        match self.writer.newest().copied() {
            None => self.order(NodeId::A, Order::Primary),
            Some(view) if self.healed => self.put_right(view),
            Some(_) => {}
        }
        self.schedule(PATIENCE, Event::Operator);
    }

    /// `split-brain resolve`: the Primary's history is kept.
    fn resolve_diverged(&mut self) {
        for node in [NodeId::A, NodeId::B] {
            let state = |node: NodeId| Some(self.nodes[node.index()].engine()?.snapshot());
            let (Some(own), Some(peer)) = (state(node), state(node.peer())) else {
                continue;
            };
            let diverged = own.refused == Some(Refusal::Diverged);
            if diverged && own.role != Role::Primary && peer.role == Role::Primary {
                self.admin(node, AdminRequest::Invalidate);
            }
            if own.refused.is_some() {
                self.admin(node, AdminRequest::Connect);
            }
        }
    }

    /// Ends a hold, and moves a Primary that serves from its peer's disk to that peer. Where the
    /// Primary of record is refused, the other replica in sync is tried the next time.
    fn put_right(&mut self, view: View) {
        for node in [NodeId::A, NodeId::B] {
            if view.in_sync == InSync::only(node) && view.primary == node {
                self.attach_again(node);
            }
        }
        // A force whose order was given up may have been decided all the same: its replica's own record
        // knows nothing of it.
        if view.forced && !self.is_served() {
            return self.order(view.primary, Order::Force);
        }
        let turn = usize::try_from(self.figures.events % 2).unwrap_or_default();
        let good = [NodeId::A, NodeId::B][turn];
        let wanted =
            view.held || (self.plan.options.failover == Failover::Manual && !self.is_served());
        if wanted && view.in_sync.contains(good) {
            self.order(good, Order::Primary);
        } else if !view.held && !view.in_sync.contains(view.primary) {
            self.order(view.primary, Order::Secondary);
        }
    }

    fn is_served(&self) -> bool {
        self.nodes.iter().any(|node| {
            node.engine()
                .is_some_and(|engine| engine.snapshot().role == Role::Primary)
        })
    }

    /// The only replica failed and its disk is well again: it is let go of and attached anew.
    fn attach_again(&mut self, node: NodeId) {
        let disk = self.nodes[node.index()]
            .engine()
            .map(|engine| engine.snapshot().disk);
        match disk {
            Some(DiskState::Failed) => {
                self.step_engine(node, EngineInput::Admin(AdminRequest::Detach));
            }
            Some(DiskState::Diskless) => {
                if let Some(side) = self.node(node).engine_side() {
                    side.attach_wanted = true;
                }
                self.attach_if_quiet(node);
            }
            _ => {}
        }
    }

    pub(super) fn order(&mut self, node: NodeId, what: Order) {
        self.order_within(node, what, Duration::from_secs(2));
    }

    pub(super) fn order_within(&mut self, node: NodeId, what: Order, limit: Duration) {
        let deadline = self.local_now(node).plus(limit);
        let resource = self.resource;
        let Some(process) = &mut self.node(node).process else {
            return;
        };
        process.orders += 1;
        let order = OrderId(process.orders);
        self.tell_controller(
            node,
            Input::Order {
                order,
                resource,
                what,
                deadline,
            },
        );
    }
}

fn is_dull(input: &Input) -> bool {
    use twinblk::controller::message::Part;
    match input {
        Input::Tick => true,
        Input::Received { datagram, .. } => datagram
            .parts
            .iter()
            .all(|part| matches!(part, Part::Beacon { .. } | Part::BeaconAck { .. })),
        _ => false,
    }
}

fn is_dull_action(action: &Action) -> bool {
    use twinblk::controller::message::Part;
    match action {
        Action::Send { datagram, .. } => datagram
            .parts
            .iter()
            .all(|part| matches!(part, Part::Beacon { .. } | Part::BeaconAck { .. })),
        Action::Engine {
            command: EngineCommand::Lease { .. },
            ..
        } => true,
        _ => false,
    }
}
