//! Machines and the processes on them.

use std::collections::{BTreeMap, VecDeque};

use replicator::engine::{AdminRequest, Engine, Input as EngineInput, LinkDownReason};
use replicator::types::{Instant, NodeId, OpId, ReplicaId, RequestId, SessionId, VoterId};
use twinblk::controller::{Controller, Input as ControllerInput, VoterRecord};

use crate::clock::{MILLIS, NodeClock, SECS, SimTime};
use crate::disk::Device;
use crate::plan::Plan;
use crate::rng::{Rng, Stream};
use crate::store::Store;

use super::clients::Asked;
use super::disks::{Broken, Job, MetaJob};
use super::{Event, World};

/// Something that arrives at a process.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "moved once into the heap; a box more per event costs more"
)]
pub(super) enum Arrival {
    /// A datagram for the controller.
    Datagram { path: u8, bytes: Vec<u8> },
    /// From the engine's thread, the store's thread or an operator.
    Controller(ControllerInput),
    /// From the controller's thread, the disks or an operator.
    Engine(EngineInput),
    /// A guest's request.
    Guest { request: RequestId, asked: Asked },
    /// A connection is up.
    LinkUp(SessionId),
    /// A frame arrived.
    Frame { session: SessionId, bytes: Vec<u8> },
    /// A connection ended.
    LinkDown {
        session: SessionId,
        reason: LinkDownReason,
    },
    /// A deadline of the controller.
    ControllerTick,
    /// A deadline of the engine.
    EngineTick,
    /// The lease changed: look at it.
    Wake,
    /// No operation of an earlier process may land any more: attach.
    AttachNow,
}

impl Arrival {
    pub(super) fn code(&self) -> u64 {
        match self {
            Self::Datagram { bytes, .. } => 1 | (bytes.len() as u64) << 16,
            Self::Controller(_) => 2,
            Self::Engine(_) => 3,
            Self::Guest { request, .. } => 4 | request.0 << 16,
            Self::LinkUp(session) => 5 | session.0 << 16,
            Self::Frame { bytes, .. } => 6 | (bytes.len() as u64) << 16,
            Self::LinkDown { .. } => 7,
            Self::ControllerTick => 8,
            Self::EngineTick => 9,
            Self::Wake => 10,
            Self::AttachNow => 11,
        }
    }
}

/// What the voter store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StoreKey {
    /// The controller's record of the resource.
    Record,
}

/// A machine with its disks, and the process on it, if any.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) voter: VoterId,
    pub(super) replica: ReplicaId,
    pub(super) clock: NodeClock,
    rate_ppm: i64,
    pub(super) boot_id: u128,
    boots: u64,
    /// The machine has power.
    pub(super) powered: bool,
    /// Faults that keep the power off.
    pub(super) unpowered: u32,
    /// It lost its power and has not been seen whole since.
    pub(super) tainted: bool,
    /// Faults that hold the process down.
    pub(super) held_down: u32,
    /// Faults that hold the process still.
    pub(super) paused: u32,
    pub(super) inbox: VecDeque<Arrival>,
    pub(super) data: Device,
    pub(super) meta: Device,
    pub(super) store: Store<StoreKey, VoterRecord>,
    pub(super) store_waiters: VecDeque<OpId>,
    pub(super) store_free_at: SimTime,
    /// Disk operations not over, of this process and earlier ones.
    pub(super) jobs: BTreeMap<u64, Job>,
    pub(super) job_count: u64,
    pub(super) meta_queue: VecDeque<MetaJob>,
    pub(super) broken: Broken,
    /// Number of the process: things of another one are late.
    pub(super) life: u32,
    pub(super) process: Option<Process>,
}

/// A running daemon.
pub(super) struct Process {
    pub(super) controller: Controller,
    pub(super) controller_tick: Option<SimTime>,
    /// The arbitrator has none.
    pub(super) engine: Option<EngineSide>,
    /// The queues between the two threads keep order.
    pub(super) to_engine_at: SimTime,
    pub(super) to_controller_at: SimTime,
    pub(super) orders: u64,
}

/// The engine's thread.
pub(super) struct EngineSide {
    pub(super) engine: Engine,
    pub(super) tick: Option<SimTime>,
    /// Written by the controller, read at every turn.
    pub(super) lease: Instant,
    pub(super) lease_seen: Instant,
    /// The view it is activated in, as handed to it.
    pub(super) activated: Option<replicator::types::ViewNumber>,
    pub(super) serving: bool,
    /// Requests not answered.
    pub(super) asked: BTreeMap<RequestId, Asked>,
    /// Sessions this process has open.
    pub(super) sessions: Vec<SessionId>,
    pub(super) dial_backoff: u64,
    pub(super) attach_wanted: bool,
    pub(super) attach_failed: Option<String>,
}

/// First and longest pause between two attempts to connect.
const DIAL_BACKOFF_MIN: u64 = 50 * MILLIS;
const DIAL_BACKOFF_MAX: u64 = SECS;

impl EngineSide {
    fn new(engine: Engine) -> Self {
        Self {
            engine,
            tick: None,
            lease: Instant::ZERO,
            lease_seen: Instant::ZERO,
            activated: None,
            serving: false,
            asked: BTreeMap::new(),
            sessions: Vec::new(),
            dial_backoff: DIAL_BACKOFF_MIN,
            attach_wanted: false,
            attach_failed: None,
        }
    }

    pub(super) fn next_backoff(&mut self) -> u64 {
        let backoff = self.dial_backoff;
        self.dial_backoff = (backoff * 2).min(DIAL_BACKOFF_MAX);
        backoff
    }

    pub(super) fn reset_backoff(&mut self) {
        self.dial_backoff = DIAL_BACKOFF_MIN;
    }
}

fn random_id(plan: &Plan, node: NodeId, nr: u64) -> u128 {
    Rng::keyed(plan.seed, Stream::Identity, nr * 4 + u64::from(node.raw())).next_id()
}

impl Node {
    pub(super) fn new(id: NodeId, plan: &Plan) -> Self {
        let rate_ppm = plan.options.rate_ppm[id.index()];
        let mut node = Self {
            id,
            voter: VoterId(random_id(plan, id, 1)),
            replica: ReplicaId(random_id(plan, id, 2)),
            clock: NodeClock::new(SimTime(0), 0, rate_ppm),
            rate_ppm,
            boot_id: 0,
            boots: 0,
            powered: true,
            unpowered: 0,
            tainted: false,
            held_down: 0,
            paused: 0,
            inbox: VecDeque::new(),
            data: Device::new(),
            meta: Device::new(),
            store: Store::default(),
            store_waiters: VecDeque::new(),
            store_free_at: SimTime(0),
            jobs: BTreeMap::new(),
            job_count: 0,
            meta_queue: VecDeque::new(),
            broken: Broken::default(),
            life: 0,
            process: None,
        };
        node.boot(SimTime(0), plan, false);
        node
    }

    /// The machine gets power: a new boot id and a clock that starts anywhere.
    /// A planted defect makes the boot id the same as before.
    pub(super) fn boot(&mut self, now: SimTime, plan: &Plan, same_id: bool) {
        self.boots += 1;
        self.powered = true;
        let boot = if same_id { 1 } else { self.boots };
        self.boot_id = random_id(plan, self.id, 16 + boot);
        let base = Rng::keyed(plan.seed, Stream::Identity, 8 + u64::from(self.id.raw()))
            .below(1000 * SECS);
        self.clock = NodeClock::new(now, base + SECS, self.rate_ppm);
    }

    pub(super) fn engine_side(&mut self) -> Option<&mut EngineSide> {
        self.process.as_mut()?.engine.as_mut()
    }

    /// The durable record of the resource, if there is one.
    pub(super) fn record(&self) -> VoterRecord {
        self.store
            .durable()
            .get(&StoreKey::Record)
            .copied()
            .unwrap_or_default()
    }

    pub(super) fn has_session(&self, session: SessionId) -> bool {
        let side = self
            .process
            .as_ref()
            .and_then(|process| process.engine.as_ref());
        side.is_some_and(|side| side.sessions.contains(&session))
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        Some(&self.process.as_ref()?.engine.as_ref()?.engine)
    }
}

impl World {
    pub(super) fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    pub(super) fn local_now(&self, node: NodeId) -> Instant {
        self.nodes[node.index()].clock.read(self.now)
    }

    /// Something arrives at a process: now, or when it is no longer paused.
    pub(super) fn arrive(&mut self, node: NodeId, life: u32, what: Arrival) {
        let target = self.node(node);
        if target.life != life || target.process.is_none() {
            return;
        }
        if target.paused > 0 {
            target.inbox.push_back(what);
            return;
        }
        self.deliver(node, what);
    }

    fn deliver(&mut self, node: NodeId, what: Arrival) {
        match what {
            Arrival::Datagram { path, bytes } => self.on_datagram(node, path, &bytes),
            Arrival::Controller(input) => self.step_controller(node, input),
            Arrival::Engine(input) => self.step_engine(node, input),
            Arrival::Guest { request, asked } => self.on_guest(node, request, asked),
            Arrival::LinkUp(session) => self.on_link_up(node, session),
            Arrival::Frame { session, bytes } => self.on_frame(node, session, &bytes),
            Arrival::LinkDown { session, reason } => self.on_link_down(node, session, reason),
            Arrival::ControllerTick => self.on_controller_tick(node),
            Arrival::EngineTick | Arrival::Wake => self.on_engine_tick(node),
            Arrival::AttachNow => self.attach(node),
        }
    }

    /// Puts an arrival at the living process of `node` on the heap.
    pub(super) fn send_to(&mut self, node: NodeId, after: u64, what: Arrival) {
        let life = self.node(node).life;
        self.schedule(after, Event::Arrive { node, life, what });
    }

    /// Through the queue from the controller's thread to the engine's.
    pub(super) fn tell_engine(&mut self, node: NodeId, input: EngineInput) {
        let delay = self.draw(Stream::Thread, self.plan.options.thread_delay);
        let earliest = self.now.plus(delay);
        let life = self.node(node).life;
        let Some(process) = &mut self.node(node).process else {
            return;
        };
        process.to_engine_at = process.to_engine_at.max(earliest);
        let at = process.to_engine_at;
        let what = Arrival::Engine(input);
        self.schedule_at(at, Event::Arrive { node, life, what });
    }

    /// Through the queue from the engine's thread to the controller's.
    pub(super) fn tell_controller(&mut self, node: NodeId, input: ControllerInput) {
        let delay = self.draw(Stream::Thread, self.plan.options.thread_delay);
        let earliest = self.now.plus(delay);
        let life = self.node(node).life;
        let Some(process) = &mut self.node(node).process else {
            return;
        };
        process.to_controller_at = process.to_controller_at.max(earliest);
        let at = process.to_controller_at;
        let what = Arrival::Controller(input);
        self.schedule_at(at, Event::Arrive { node, life, what });
    }

    /// The daemon starts.
    pub(super) fn start(&mut self, node: NodeId) {
        let target = self.node(node);
        if !target.powered || target.held_down > 0 || target.process.is_some() {
            return;
        }
        target.life += 1;
        target.inbox.clear();
        let life = target.life;
        let record = target.store.durable().get(&StoreKey::Record).copied();
        target.store_free_at = SimTime(0);
        let controller = self.new_controller(node, record);
        let engine = node
            .is_data()
            .then(|| EngineSide::new(self.new_engine(node)));
        let now = self.now;
        self.node(node).process = Some(Process {
            controller,
            controller_tick: None,
            engine,
            to_engine_at: now,
            to_controller_at: now,
            orders: 0,
        });
        self.forget_places(node);
        self.trace
            .say(now, || format!("{node:?} starts, life {life}"));
        self.step_controller(node, ControllerInput::Tick);
        if node.is_data() {
            self.step_engine(node, EngineInput::Admin(AdminRequest::Connect));
            self.want_attach(node);
            if node == NodeId::B {
                self.schedule(0, Event::Dial { life });
            }
        }
    }

    /// SIGKILL: the process is gone, the machine's caches and what the kernel has are not.
    pub(super) fn kill(&mut self, node: NodeId) {
        if self.node(node).process.is_none() {
            return;
        }
        self.watch_crash(node, "before a kill");
        self.trace.say(self.now, || format!("{node:?} is killed"));
        self.watch_kill(node);
        self.forget_requests(node);
        self.end_connections(node, false);
        let mut rng = self.rng(Stream::Power);
        let target = self.node(node);
        target.process = None;
        target.paused = 0;
        target.inbox.clear();
        target.store_waiters.clear();
        target.store.crash(&mut rng);
        self.note_store(node);
        self.abandon_jobs(node);
        self.watch_crash(node, "after a kill");
    }

    /// The power goes.
    pub(super) fn cut_power(&mut self, node: NodeId) {
        if !self.node(node).powered {
            return;
        }
        self.watch_crash(node, "before a power cut");
        self.trace.say(self.now, || format!("{node:?} loses power"));
        self.forget_requests(node);
        self.end_connections(node, true);
        let mut rng = self.rng(Stream::Power);
        let target = self.node(node);
        target.process = None;
        target.powered = false;
        target.paused = 0;
        target.life += 1;
        target.inbox.clear();
        target.store_waiters.clear();
        target.store.crash(&mut rng);
        self.note_store(node);
        self.lose_jobs(node);
        let mut rng = self.rng(Stream::Power);
        let target = self.node(node);
        target.data.power_cut(&mut rng);
        target.meta.power_cut(&mut rng);
        self.watch_power(node);
        self.watch_crash(node, "after a power cut");
    }

    /// SIGCONT: what waited is handled now, in order, at the time the clock shows now.
    pub(super) fn resume(&mut self, node: NodeId) {
        let life = self.node(node).life;
        while self.node(node).paused == 0
            && self.node(node).life == life
            && let Some(what) = self.node(node).inbox.pop_front()
        {
            self.deliver(node, what);
        }
    }
}
