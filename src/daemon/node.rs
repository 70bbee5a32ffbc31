//! The running node as its other threads see it: who it is, and how to reach the controller, the
//! shard and the store.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use replicator::engine::{Event, ReplicaFacts, ReplicaMark};
use replicator::io::clock;
use replicator::types::{Instant, NodeId, OpId, ResourceId};

use super::api::{
    AttachFailure, ResourceSnapshot, ShardCommand, ShardEvent, ShardHandle, ShardSink, StoredMarks,
};
use super::automation::AutomationFile;
use super::board::{Board, Presence};
use super::history::History;
use super::listeners::Keeper;
use super::mailbox::Mailbox;
use super::placement::PlacementFile;
use super::relay_door::Knock;
use super::resources::Resources;
use super::security::Security;
use super::status::{Moment, Place};
use super::store_thread::{StoreRequest, StoreSink};
use crate::config::{Config, ResourceConfig};
use crate::controller::{
    self, EngineReport, Fate, Input, NodeSnapshot, Order, OrderId, VoterRecord, VotersSnapshot, Why,
};

/// Inputs waiting for the controller at most. It empties its mailbox many times a second; this
/// many means that its thread is stuck, and then this process must not go on.
pub(super) const CONTROLLER_INPUTS_MAX: usize = 64 * 1024;

/// What the controller's thread is told by others.
#[derive(Clone, Debug)]
pub(super) enum ControllerRequest {
    /// Hand this to the controller.
    Input(Input),
    /// Ask it; the answer goes to a queue with room for one.
    Ask(Question, SyncSender<Answer>),
    /// End the thread.
    Stop,
}

/// What the controller can be asked beside the snapshots on the board.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question {
    /// Why this node is Primary of that resource or is not.
    Why(ResourceId),
    /// Who votes, and what this voter recorded.
    Voters,
    /// What would become of all resources if that node died now.
    Fates(NodeId),
}

/// Its answer.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// `None`: it does not know the resource.
    Why(Option<Box<Why>>),
    Voters(Box<VotersSnapshot>),
    /// And who is seen.
    Fates(Vec<(ResourceId, Fate)>, NodeSnapshot),
}

/// How long the beacon thread may take over an answer; it turns many times a second.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// What all threads share.
pub(super) struct Node {
    /// Name of the program, for `version`.
    pub(super) program: &'static str,
    /// Where it is on the disk.
    pub(super) program_path: PathBuf,
    /// Listening sockets for the next life.
    pub(super) keeper: Keeper,
    /// When this process started, in seconds since 1970-01-01 UTC.
    pub(super) started: f64,
    /// As it was read at the start, without its resources.
    pub(super) config: Config,
    /// Where it was read.
    pub(super) config_dir: PathBuf,
    /// The resources of now.
    pub(super) resources: Resources,
    /// Held by who changes them.
    pub(super) adjusting: Mutex<()>,
    /// A SIGHUP waits for that.
    pub(super) hangups: AtomicBool,
    pub(super) node: NodeId,
    pub(super) run_dir: PathBuf,
    pub(super) history: History,
    /// Where what follows is kept, for its refusals.
    pub(super) state_dir: PathBuf,
    pub(super) automation: AutomationFile,
    pub(super) placement: PlacementFile,
    pub(super) board: Board,
    /// Wakes the main thread when `board.fatal` was set.
    pub(super) ended: Mailbox<()>,
    pub(super) controller: Mailbox<ControllerRequest>,
    pub(super) store: Arc<Mailbox<StoreRequest>>,
    /// Set once, before the first resource; never on the arbitrator.
    pub(super) shard: OnceLock<Arc<dyn ShardHandle>>,
    pub(super) orders: AtomicU64,
    /// Requests being passed on to other nodes.
    pub(super) relays: Arc<AtomicUsize>,
    /// How the nodes know each other; `None`: `tls = "off"`.
    pub(super) security: Option<Arc<Security>>,
    /// Requests from other nodes, on their way from the shard to the control thread.
    pub(super) knocks: Arc<Mailbox<Knock>>,
}

/// An order the controller has.
#[derive(Clone, Copy, Debug)]
pub(super) struct OrderUnderWay {
    order: OrderId,
    deadline: Instant,
}

impl OrderUnderWay {
    /// Its end may be so much later: what it began is brought to an end.
    pub(super) fn prolong(&mut self, by: Duration) {
        self.deadline = self.deadline.plus(by);
    }
}

impl Node {
    pub(super) fn place<'a>(&'a self, resources: &'a [Arc<ResourceConfig>]) -> Place<'a> {
        Place {
            config: &self.config,
            resources,
            node: self.node,
            run_dir: &self.run_dir,
        }
    }

    pub(super) fn name(&self) -> &str {
        self.config.node_name(self.node)
    }

    /// Hash of the cluster's identity, in datagrams and preambles.
    pub(super) fn cluster(&self) -> u64 {
        ResourceId::of_name(&self.config.cluster).0
    }

    pub(super) fn moment() -> Moment {
        Moment {
            now: clock::now(),
            unix_millis: clock::unix_millis(),
        }
    }

    /// Name of a resource for people.
    pub(super) fn resource_name(&self, id: ResourceId) -> String {
        self.resources.with_id(id).map_or_else(
            || format!("resource {:016x}", id.0),
            |resource| resource.name.clone(),
        )
    }

    pub(super) fn shard(&self) -> Option<&Arc<dyn ShardHandle>> {
        self.shard.get()
    }

    /// Sends to the shard. The arbitrator has none, and its controller commands no engines.
    pub(super) fn command(&self, command: ShardCommand) {
        if let Some(shard) = self.shard() {
            shard.send(command);
        }
    }

    /// Hands an input to the controller.
    pub(super) fn tell_controller(&self, input: Input) {
        if self
            .controller
            .push(ControllerRequest::Input(input))
            .is_err()
        {
            self.fatal("the controller does not take its inputs any more");
        }
    }

    /// Asks the controller. `None`: its thread does not answer, or ends.
    pub(super) fn ask(&self, question: Question) -> Option<Answer> {
        let (sender, receiver) = sync_channel(1);
        let request = ControllerRequest::Ask(question, sender);
        self.controller.push(request).ok()?;
        receiver.recv_timeout(ANSWER_PATIENCE).ok()
    }

    /// The process cannot go on: the main thread ends it.
    pub(super) fn fatal(&self, why: &str) {
        tracing::error!("{why}");
        self.board.update(|state| {
            state.fatal.get_or_insert_with(|| why.to_owned());
        });
        self.ended.wake();
    }

    /// Gives an order to the controller and waits for its end. `None`: it did not end within the
    /// time, and half a second more for the answer, or `goes_on` said that nobody waits any more.
    pub(super) fn order(
        &self,
        resource: &ResourceConfig,
        what: Order,
        timeout: Duration,
        goes_on: impl FnMut() -> bool,
    ) -> Option<Result<controller::Done, controller::OrderRefusal>> {
        let order = self.begin_order(resource, what, timeout);
        self.end_order(order, goes_on)
    }

    /// The first half of [`Self::order`].
    pub(super) fn begin_order(
        &self,
        resource: &ResourceConfig,
        what: Order,
        timeout: Duration,
    ) -> OrderUnderWay {
        let order = OrderId(self.orders.fetch_add(1, Ordering::Relaxed));
        let deadline = clock::now().plus(timeout);
        self.tell_controller(Input::Order {
            order,
            resource: resource.id(),
            what,
            deadline,
        });
        OrderUnderWay { order, deadline }
    }

    /// The second half: waits, and asks `goes_on` twice a second.
    pub(super) fn end_order(
        &self,
        under_way: OrderUnderWay,
        mut goes_on: impl FnMut() -> bool,
    ) -> Option<Result<controller::Done, controller::OrderRefusal>> {
        const GRACE: Duration = Duration::from_millis(500);
        const LOOK: Duration = Duration::from_millis(500);
        let OrderUnderWay { order, deadline } = under_way;
        loop {
            let left = deadline.plus(GRACE).since(clock::now());
            let outcome = self
                .board
                .wait(left.min(LOOK), |state| state.take_outcome(order));
            if outcome.is_some() || left.is_zero() || !goes_on() {
                return outcome;
            }
        }
    }

    /// What the voter store says about the replica here: failed earlier, and which it was.
    pub(super) fn marks(&self, resource: ResourceId) -> StoredMarks {
        self.board
            .read(|state| state.resources.get(&resource).map(|it| it.marks))
            .unwrap_or_default()
    }
}

/// The controller's words for what an engine says; `None` for what it need not know.
fn report_of(event: &Event) -> Option<EngineReport> {
    Some(match *event {
        Event::Replica(facts) => EngineReport::Replica(facts_of(facts)),
        Event::Detached => EngineReport::ReplicaGone,
        Event::DiskFailed(_) => EngineReport::LocalDiskFailed,
        Event::PeerLost => EngineReport::PeerLost,
        Event::PeerDiskFailed => EngineReport::PeerDiskFailed,
        Event::PeerBehind => EngineReport::PeerBehind,
        Event::PeerGivesUpData => EngineReport::PeerGivesUpData,
        Event::PeerUnprepared => EngineReport::PeerUnprepared,
        Event::NotActivated { view } => EngineReport::NotActivated { view },
        Event::PeerLostWrites => EngineReport::PeerLostWrites,
        Event::Connected { peer_replica } => EngineReport::SessionUp { peer_replica },
        Event::Disconnected => EngineReport::SessionDown,
        Event::ResyncDone => EngineReport::ResyncDone,
        Event::AddPrepared { view, replica } => EngineReport::AddPrepared { view, replica },
        Event::AddAborted { view } => EngineReport::AddAborted { view },
        Event::LeavePrepared { view } => EngineReport::LeavePrepared { view },
        Event::GrowPrepared { view, size_blocks } => {
            EngineReport::GrowPrepared { view, size_blocks }
        }
        Event::Drained { seal, ok } => EngineReport::Drained { seal, ok },
        Event::Quiesced => EngineReport::Quiesced,
        Event::Changed
        | Event::Verified(_)
        | Event::Attached(_)
        | Event::Refused(_)
        | Event::Serving
        | Event::NotServing => return None,
    })
}

fn facts_of(facts: ReplicaFacts) -> controller::ReplicaFacts {
    controller::ReplicaFacts {
        replica: facts.replica,
        size_blocks: facts.size_blocks,
        eligible: facts.eligible,
        blank: facts.blank,
        lost_volatile: facts.lost_volatile,
        unclean: facts.unclean,
        doubtful: facts.doubtful,
        behind: facts.behind,
    }
}

fn mark_of(mark: ReplicaMark) -> controller::ReplicaMark {
    match mark {
        ReplicaMark::Failed => controller::ReplicaMark::Failed,
        ReplicaMark::Clean => controller::ReplicaMark::Clean,
        ReplicaMark::Attached(replica) => controller::ReplicaMark::Attached(replica),
    }
}

/// What the shard and the store tell goes to the controller and the board.
pub(super) struct NodeSink(pub(super) Arc<Node>);

impl Drop for NodeSink {
    /// Each essential thread owns one: when such a thread panics the process must end, because
    /// beacons that go on for a dead event loop would keep the peer from taking over.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fatal("a thread of this daemon panicked");
        }
    }
}

impl NodeSink {
    fn engine_event(&self, resource: ResourceId, event: &Event) {
        let node = &self.0;
        if *event != Event::Changed {
            tracing::debug!(resource = node.resource_name(resource), ?event, "engine");
        }
        if let Event::Attached(result) = event {
            let result = result.map_err(AttachFailure::Engine);
            node.board
                .update(|state| state.resource(resource).attach = Some(result));
        }
        if *event == Event::Quiesced {
            node.board
                .update(|state| state.resource(resource).quiesced = true);
        }
        if let Some(report) = report_of(event) {
            node.tell_controller(Input::Engine { resource, report });
        }
    }
}

impl ShardSink for NodeSink {
    fn tell(&self, event: ShardEvent) {
        let node = &self.0;
        match event {
            ShardEvent::Engine { resource, event } => self.engine_event(resource, &event),
            ShardEvent::Mark { resource, op, mark } => {
                let report = EngineReport::Mark {
                    op,
                    mark: mark_of(mark),
                };
                node.tell_controller(Input::Engine { resource, report });
            }
            ShardEvent::OpenFailed { resource, error } => {
                tracing::warn!(resource = node.resource_name(resource), %error, "attach failed");
                let result = Err(AttachFailure::Open(error));
                node.board
                    .update(|state| state.resource(resource).attach = Some(result));
            }
            ShardEvent::Listening {
                resource,
                path,
                fd,
                own,
            } => {
                let name = node.resource_name(resource);
                node.keeper.keep_unix(&name, &path, fd, own);
            }
            ShardEvent::Removed { resource } => {
                node.keeper.forget(&node.resource_name(resource));
                node.board.update(|state| {
                    let known = state.resource(resource);
                    known.presence = Presence::Away;
                    known.note_shard(None);
                });
            }
            ShardEvent::AddFailed { resource, error } => {
                tracing::warn!(
                    resource = node.resource_name(resource),
                    error,
                    "no NBD socket"
                );
                node.board.update(|state| {
                    let known = state.resource(resource);
                    known.presence = Presence::Away;
                    known.add_failed = Some(error);
                });
            }
            ShardEvent::Call(knock) => {
                if node.knocks.push(knock).is_err() {
                    tracing::warn!("too much passed on by other nodes at once: one is closed");
                }
            }
            ShardEvent::Fatal { error } => node.fatal(&error),
        }
    }

    fn publish(&self, resource: ResourceId, snapshot: Option<ResourceSnapshot>) {
        self.0
            .board
            .update(|state| state.resource(resource).note_shard(snapshot));
    }
}

impl StoreSink for NodeSink {
    fn persisted(&self, op: OpId, resource: ResourceId, record: &VoterRecord, ok: bool) {
        if ok {
            let marks = StoredMarks::of(record);
            self.0
                .board
                .update(|state| state.resource(resource).marks = marks);
        }
        self.0.tell_controller(Input::Persisted { op, ok });
    }

    fn failed(&self, error: &io::Error) {
        tracing::error!(
            %error,
            "the voter store cannot be written: no vote from here until it is mended and the \
             daemon restarted"
        );
        let why = format!("writing the voter store failed: {error}");
        self.0.board.update(|state| state.store_error = Some(why));
    }
}
