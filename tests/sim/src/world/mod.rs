//! The world: a heap of events in virtual time, three machines, a network, clients, and the
//! checkers that look on.
//!
//! Nothing here decides anything about replication or views: engines and controllers are the
//! production values, and this module only carries their actions out, late, out of order, torn or
//! not at all, as the plan says.
//!
//! | file | carries out |
//! |---|---|
//! | [`node`] | machines and processes: start, kill, power, pause, queues between threads |
//! | `engine` | an engine's inputs and actions |
//! | `controller` | a controller's inputs and actions, the voter store |
//! | `disks` | disk operations |
//! | `links` | sessions between the data nodes |
//! | `clients` | guests |
//! | `faults` | the plan's faults, and the heal |
//! | `watch` | calls of the checkers |

mod clients;
mod controller;
mod disks;
mod engine;
mod faults;
mod frames;
mod links;
pub mod node;
mod placement;
mod verify;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use replicator::types::{NodeId, RequestId, ResourceId, SessionId};
use twinblk::controller::Rules;

use crate::checkers::Violation;
use crate::checkers::history::History;
use crate::checkers::writer::OneWriter;
use crate::clock::{MILLIS, SECS, SimTime};
use crate::net::{Connection, End, Wires};
use crate::plan::{Plan, Profile};
use crate::rng::{Rng, Stream};
use crate::stamp::CELLS_PER_BLOCK;
use crate::trace::Trace;

use clients::Client;
use node::{Arrival, Node};

/// Events a run may take: a run that needs more goes in circles.
const EVENTS_MAX: u64 = 3_000_000;

/// A defect planted on purpose, to show that the checkers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The Primary believes that the peer has a write as soon as it is sent.
    AckWithoutPeer,
    /// A Secondary's flush does nothing.
    FlushIgnored,
    /// Bitmap pages never reach the metadata.
    BitmapNotWritten,
    /// Activity-log pages never reach the metadata.
    ActivityLogNotWritten,
    /// A new process does not wait for the disk operations of the one before (R14).
    LateWrites,
    /// A power cut looks like a crash of the process (R16).
    PowerCutUnnoticed,
    /// A takeover does not wait for the peer's lease (R5). The other rules of the register need
    /// more luck than seeds have: the explorer takes each of them away.
    NoGrantWait,
    /// What a disk that hangs was asked counts as over as soon as it is given up (R14).
    LateForgotten,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::AckWithoutPeer,
        Self::FlushIgnored,
        Self::BitmapNotWritten,
        Self::ActivityLogNotWritten,
        Self::LateWrites,
        Self::PowerCutUnnoticed,
        Self::NoGrantWait,
        Self::LateForgotten,
    ];

    fn rules(self) -> Rules {
        let mut rules = Rules::ALL;
        rules.grant_outlives_lease = self != Self::NoGrantWait;
        rules
    }
}

/// Something that happens at a moment.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "moved once into the heap; a box more per event costs more"
)]
enum Event {
    /// At a process, if it still lives; waits while it is paused.
    Arrive {
        node: NodeId,
        life: u32,
        what: Arrival,
    },
    /// A disk operation ends, whatever became of the process.
    JobEnds { node: NodeId, job: u64 },
    /// The metadata operation at the head ends.
    MetaEnds { node: NodeId, life: u32 },
    /// A write of the voter store ends.
    StoreEnds { node: NodeId, life: u32 },
    /// Something may have arrived on a connection.
    Wire { session: SessionId, from: End },
    /// The dialler tries to connect.
    Dial { life: u32 },
    /// A client looks for something to do.
    Client(usize),
    /// A fault begins.
    FaultBegins(usize),
    /// A fault ends.
    FaultEnds(usize),
    /// A disk has hung for so long that nobody may wait for it.
    HangLook { nr: usize, node: NodeId },
    /// A process is started.
    Start { node: NodeId },
    /// An operator looks whether an order is needed.
    Operator,
    /// Everything is mended for ever.
    Heal,
    /// Does something go back to its preferred node?
    Places,
    /// Are we there yet?
    Look,
}

/// Figures of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Events handled.
    pub events: u64,
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Flushes acknowledged.
    pub flushes: u64,
    /// Changes of the Primary.
    pub failovers: u64,
    /// Promotions by force.
    pub forced: u64,
    /// Faults that began.
    pub faults: u64,
    /// Primaries that went back to their preferred node by themselves.
    pub failbacks: u64,
    /// Larger volumes that both replicas were ready for.
    pub grown: u64,
    /// Runs in which too much broke to demand more than safety.
    pub over_budget: u64,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
    /// Figures.
    pub figures: Figures,
    /// Hash of everything that happened.
    pub hash: u64,
    /// The last events, if text was asked for.
    pub trace: String,
}

/// The simulated world.
pub struct World {
    plan: Plan,
    planted: Option<Planted>,
    resource: ResourceId,
    now: SimTime,
    heap: BTreeMap<(SimTime, u64), Event>,
    sequence: u64,
    nodes: [Node; 3],
    wires: Wires,
    /// Extra delay of everything that travels.
    slow: u64,
    /// What the data nodes know of preferred places.
    places: [placement::Places; 3],
    connections: BTreeMap<SessionId, Connection<Vec<u8>>>,
    sessions: u64,
    clients: Vec<Client>,
    requests: u64,
    healed: bool,
    active_faults: BTreeSet<usize>,
    /// The fault of a hanging disk that is the only thing wrong.
    watched_hang: Option<usize>,
    /// Blocks of a bad combination of faults: only safety is demanded.
    over_budget: bool,
    history: History,
    writer: OneWriter,
    verified: verify::Verified,
    /// Something happened after which all in-sync replicas are looked at before the next answer.
    disturbed: bool,
    figures: Figures,
    /// The largest size that a guest was shown.
    largest: u64,
    violation: Option<Violation>,
    done: bool,
    trace: Trace,
}

impl World {
    /// A world about to run `plan`.
    #[must_use]
    pub fn new(plan: Plan, planted: Option<Planted>, text: bool) -> Self {
        let cells = plan.options.device_blocks * CELLS_PER_BLOCK;
        let nodes = NodeId::ALL.map(|node| Node::new(node, &plan));
        let clients = (0..plan.options.clients)
            .map(|_| Client::default())
            .collect();
        Self {
            wires: Wires::new(plan.seed, plan.options.net),
            planted,
            resource: ResourceId::of_name("sim"),
            now: SimTime(0),
            heap: BTreeMap::new(),
            sequence: 0,
            nodes,
            slow: 0,
            places: Default::default(),
            connections: BTreeMap::new(),
            sessions: 0,
            clients,
            requests: 0,
            healed: false,
            active_faults: BTreeSet::new(),
            watched_hang: None,
            over_budget: false,
            history: History::new(cells),
            writer: OneWriter::default(),
            verified: verify::Verified::default(),
            disturbed: false,
            figures: Figures::default(),
            largest: 0,
            violation: None,
            done: false,
            trace: Trace::new(text),
            plan,
        }
    }

    /// Runs to the end.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        self.create_metadata();
        for node in NodeId::ALL {
            self.schedule(0, Event::Start { node });
        }
        self.schedule(MILLIS, Event::Operator);
        if self.plan.options.prefer.is_some() {
            self.schedule(MILLIS, Event::Places);
        }
        self.schedule_plan();
        while !self.done && self.violation.is_none() {
            let Some(((at, _), event)) = self.heap.pop_first() else {
                self.fail(Violation::new(
                    "liveness",
                    "nothing happens any more".into(),
                ));
                break;
            };
            self.now = at;
            self.figures.events += 1;
            if self.figures.events > EVENTS_MAX {
                let detail = format!("{EVENTS_MAX} events and no end");
                self.fail(Violation::new("liveness", detail));
            }
            self.handle(event);
        }
        self.figures.failovers = self.writer.failovers() as u64;
        self.figures.over_budget = u64::from(self.over_budget);
        if let Some(violation) = &self.violation {
            self.trace
                .say(self.now, || format!("VIOLATION {violation}"));
        }
        Outcome {
            violation: self.violation,
            figures: self.figures,
            hash: self.trace.hash(),
            trace: self.trace.to_string(),
        }
    }

    fn handle(&mut self, event: Event) {
        let (code, node) = match &event {
            Event::Arrive { node, what, .. } => (what.code(), node.raw()),
            Event::JobEnds { node, job } => (0x100 | job << 16, node.raw()),
            Event::MetaEnds { node, .. } => (0x101, node.raw()),
            Event::StoreEnds { node, .. } => (0x102, node.raw()),
            Event::Wire { session, .. } => (0x103 | session.0 << 16, 0),
            Event::Dial { .. } => (0x104, 0),
            Event::Client(client) => (0x105 | (*client as u64) << 16, 0),
            Event::FaultBegins(nr) => (0x106 | (*nr as u64) << 16, 0),
            Event::FaultEnds(nr) => (0x107 | (*nr as u64) << 16, 0),
            Event::Start { node } => (0x108, node.raw()),
            Event::Operator => (0x109, 0),
            Event::Heal => (0x10a, 0),
            Event::Look => (0x10b, 0),
            Event::Places => (0x10d, 0),
            Event::HangLook { nr, node } => (0x10c | (*nr as u64) << 16, node.raw()),
        };
        self.trace.note(self.now, code << 2 | u64::from(node));
        match event {
            Event::Arrive { node, life, what } => self.arrive(node, life, what),
            Event::JobEnds { node, job } => self.job_ends(node, job),
            Event::MetaEnds { node, life } => self.meta_ends(node, life),
            Event::StoreEnds { node, life } => self.store_ends(node, life),
            Event::Wire { session, from } => self.wire(session, from),
            Event::Dial { life } => self.dial(life),
            Event::Client(client) => self.client_turn(client),
            Event::FaultBegins(nr) => self.fault_begins(nr),
            Event::FaultEnds(nr) => self.fault_ends(nr),
            Event::Start { node } => self.start(node),
            Event::Operator => self.operator_turn(),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
            Event::Places => self.look_at_places(),
            Event::HangLook { nr, node } => self.hang_look(nr, node),
        }
    }

    fn schedule_plan(&mut self) {
        for client in 0..self.clients.len() {
            self.schedule(MILLIS, Event::Client(client));
        }
        for nr in 0..self.plan.ops.len() {
            let op = self.plan.ops[nr];
            let client = usize::try_from(op.client).expect("few clients");
            self.schedule(op.at.0, Event::Client(client));
        }
        for nr in 0..self.plan.faults.len() {
            let at = self.plan.faults[nr].at;
            self.schedule(at.0, Event::FaultBegins(nr));
        }
        let heal = self.plan.options.safety.0;
        self.schedule(heal, Event::Heal);
    }

    /// Puts an event `after` nanoseconds from now.
    fn schedule(&mut self, after: u64, event: Event) {
        self.schedule_at(self.now.plus(after), event);
    }

    fn schedule_at(&mut self, at: SimTime, event: Event) {
        self.sequence += 1;
        self.heap.insert((at.max(self.now), self.sequence), event);
    }

    fn fail(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    fn check(&mut self, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            self.fail(violation);
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// A generator for this moment's draws of one kind.
    fn rng(&self, stream: Stream) -> Rng {
        Rng::keyed(self.plan.seed, stream, self.sequence)
    }

    fn draw(&self, stream: Stream, range: [u64; 2]) -> u64 {
        self.rng(stream).between(range[0], range[1])
    }

    /// How long the healed pair may take until everything is equal.
    fn settle_limit(&self) -> u64 {
        let alone = match self.plan.options.profile {
            Profile::Fast => 60 * SECS,
            Profile::Default => 120 * SECS,
        };
        // A try to go home that came to nothing is repeated after a minute or two.
        let home = self.plan.options.prefer.map_or(0, |_| 240 * SECS);
        alone + home
    }
}
