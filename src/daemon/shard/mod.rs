//! The data path: one thread that owns a backend and everything that moves bytes on it, the
//! engines and disks of its resources, their NBD clients, and the links to the peer.
//!
//! One turn: wait; take commands, completions and deadlines as inputs of engines and sessions; carry
//! out what they ask for; then send, once per socket, everything that was queued for it. It decides
//! nothing: whether a write may be acknowledged is the engine's business, whether this node may
//! serve is the controller's.
//!
//! ```text
//!             ┌── completion ─────────────── backend.turn() ◀───────────────┐
//!             ▼                                                             │
//!   NBD session, link decoder ──▶ inputs ──▶ Engine::handle ──▶ actions ──▶ disk and metadata
//!             ▲                                                 │           queues, send queues
//!             └───────────── replies, frames ◀──────────────────┘
//! ```
//!
//! Invariant: an action is carried out in the turn that made it, and in its order; nothing sent
//! waits for anything but its socket.

mod actions;
mod attach;
mod block_status;
mod client;
mod commands;
mod doors;
mod engine;
mod forward;
mod link;
mod links;
mod nbd;
mod queue;
mod resource;
mod secure_link;
mod slots;
mod standing;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod token;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use core::time::Duration;

use nbd_frontend::NbdError;
use nix::errno::Errno;
use replicator::engine::{HeldReason, Input, Outbox};
use replicator::io::clock::SuspendWatch;
use replicator::io::{Backend, BufferPool, Completion, OpKey, Wait, clock, open_backend};
use replicator::types::{Instant, Payload, ResourceId, Role, time::earliest};

use crate::daemon::api::{ShardCommand, ShardEvent, ShardSetup, ShardSink};
pub use attach::{Devices, Opener};
use block_status::StatusQuery;
use client::{Client, GuestBuffers, GuestRef};
pub use engine::{EngineFactory, ReplicationEngine, engines};
use forward::Forward;
use link::Link;
pub use queue::ShardQueue;
use resource::Resource;
use slots::{Key, Slots};
use standing::Standings;
use token::Owner;

/// A turn that took longer than this was stopped (SIGSTOP, a debugger, a swapped-out machine). A
/// reply it made passed the gate at a time that is no longer now, so the gate is asked again before
/// anything is sent. Below the clock allowance of the fastest timing profile (100 ms).
const STALL: Duration = Duration::from_millis(50);

/// Snapshots of a busy resource are published this often; changes of state at once.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(500);

/// The shard's thread.
#[derive(Debug)]
pub struct ShardThread {
    /// How to reach it.
    pub queue: Arc<ShardQueue>,
    /// Ends after [`ShardCommand::Stop`].
    pub thread: JoinHandle<()>,
}

/// Starts the shard's thread and waits until it can be reached.
///
/// # Errors
/// When no thread, backend or socket is to be had.
pub fn start(
    setup: ShardSetup,
    sink: Box<dyn ShardSink>,
    engines: EngineFactory,
) -> io::Result<ShardThread> {
    start_in(Surroundings::real(), setup, sink, engines)
}

/// What the shard's thread finds around it; tests put other things there.
pub struct Surroundings {
    /// Makes the backend, on the thread that uses it.
    pub backend: Box<dyn FnOnce() -> Result<Box<dyn Backend>, Errno> + Send>,
    /// Time the machine has been suspended since it booted.
    pub suspended: Box<dyn Fn() -> Duration + Send>,
    /// Opens devices, on a thread of its own.
    pub opener: Opener,
}

impl Surroundings {
    /// This host's.
    #[must_use]
    pub fn real() -> Self {
        Self {
            backend: Box::new(open_backend),
            suspended: Box::new(clock::suspended),
            opener: Arc::new(attach::open_devices),
        }
    }
}

/// [`start`] in surroundings of the caller's choice.
///
/// # Errors
/// When no thread, backend or socket is to be had.
pub fn start_in(
    surroundings: Surroundings,
    setup: ShardSetup,
    sink: Box<dyn ShardSink>,
    engines: EngineFactory,
) -> io::Result<ShardThread> {
    let (ready, is_ready) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("shard".to_owned())
        .spawn(move || {
            // The ring is made by the thread that uses it: the kernel insists on one issuer.
            let Surroundings {
                backend,
                suspended,
                opener,
            } = surroundings;
            let shard = backend()
                .map_err(io::Error::from)
                .and_then(|backend| Shard::new(setup, sink, engines, backend, suspended, opener));
            match shard {
                Ok(shard) => {
                    if ready.send(Ok(Arc::clone(&shard.queue))).is_ok() {
                        shard.run();
                    }
                }
                // Nobody waits any more: nothing was started, so nothing is left to tell.
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
    let queue = is_ready
        .recv()
        .map_err(|_| io::Error::other("the shard ended at once"))??;
    Ok(ShardThread { queue, thread })
}

/// What has a deadline besides engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A client's handshake or farewell takes too long.
    Client(Key),
    /// A link's set-up or farewell takes too long.
    Link(Key),
    /// A link's TLS handshake goes on; the oldest link first.
    LinkHandshake { born: u64, link: Key },
    /// A look for holes takes too long.
    Look(Key),
    /// A client's TLS handshake goes on; the oldest client first.
    Handshake { born: u64, client: Key },
    /// TCP clients are accepted again.
    Accept,
    /// Who waits at a door is turned away again, or has waited long enough for its resource.
    Door(Key),
}

struct Shard {
    setup: ShardSetup,
    sink: Box<dyn ShardSink>,
    engines: EngineFactory,
    backend: Box<dyn Backend>,
    suspended: Box<dyn Fn() -> Duration>,
    suspend: SuspendWatch,
    queue: Arc<ShardQueue>,
    /// For disks; bounded by the engines' own limits.
    pool: BufferPool,
    /// For what is received from the peer. Apart from the guests', so that none of them can keep
    /// the acknowledgements of all from coming in.
    link_pool: BufferPool,
    /// For clients that are passed on.
    forward_pool: BufferPool,
    guest_buffers: GuestBuffers,
    /// When this turn's inputs were looked at.
    now: Instant,
    stopping: bool,

    resources: Slots<Resource>,
    by_id: BTreeMap<ResourceId, Key>,
    opener: Opener,
    /// Resources whose devices a thread is opening, and for which attach.
    opening: BTreeMap<ResourceId, u64>,
    attach_orders: u64,
    clients: Slots<Client>,
    /// Of the clients by TCP that have not chosen a resource.
    undecided: Standings,
    forwards: Slots<Forward>,
    links: Slots<Link>,
    /// Guest requests that engines have not answered.
    requests: Slots<GuestRef>,
    /// What block statuses among them found so far.
    statuses: Slots<StatusQuery>,
    /// Looks for holes under way, also those that nobody waits for any more.
    looks: usize,
    timers: BTreeSet<(Instant, Timer)>,
    link_listeners: Vec<links::Listener>,
    link_ration: tcp::Ration,
    /// The same for those from an address of the peer's.
    peer_ration: tcp::Ration,
    tcp: Option<tcp::Door>,
    /// Of the accept on it that is in flight.
    tcp_accept: Option<OpKey>,
    doors: Slots<doors::Door>,
    /// Another life of this daemon accepts from now on.
    keeps_listeners: bool,
    /// Sessions dialled so far; part of the next one's id.
    sessions_dialled: u32,
    /// Connections of either kind so far.
    connections: u64,

    /// Work of this turn.
    inputs: VecDeque<(Key, Input)>,
    /// Guest requests that fail without an engine.
    refused: VecDeque<(Key, NbdError)>,
    dirty_clients: Vec<Key>,
    dirty_links: Vec<Key>,
    /// Connections that wait for buffers to come back.
    starved: Vec<Owner>,

    /// Writes sent to the peer by this turn.
    fresh_mirrored_writes: usize,

    /// Kept for their capacity.
    actions: Outbox,
    nbd_out: nbd_frontend::Outbox<replicator::io::AlignedBuf, Payload>,
}

impl Shard {
    fn new(
        mut setup: ShardSetup,
        sink: Box<dyn ShardSink>,
        engines: EngineFactory,
        backend: Box<dyn Backend>,
        suspended: Box<dyn Fn() -> Duration + Send>,
        opener: Opener,
    ) -> io::Result<Self> {
        let listeners = std::mem::take(&mut setup.listeners);
        let nbd_tcp = setup.nbd_tcp.take();
        let mut shard = Self {
            queue: Arc::new(ShardQueue::new(backend.waker())),
            guest_buffers: GuestBuffers::default(),
            pool: BufferPool::new(),
            link_pool: BufferPool::new(),
            forward_pool: BufferPool::new(),
            setup,
            sink,
            engines,
            backend,
            suspend: SuspendWatch::new(&suspended),
            suspended,
            now: clock::now(),
            stopping: false,
            resources: Slots::new(),
            by_id: BTreeMap::new(),
            opener,
            opening: BTreeMap::new(),
            attach_orders: 0,
            clients: Slots::new(),
            undecided: Standings::default(),
            forwards: Slots::new(),
            links: Slots::new(),
            requests: Slots::new(),
            statuses: Slots::new(),
            looks: 0,
            timers: BTreeSet::new(),
            link_listeners: Vec::new(),
            link_ration: tcp::Ration::new(clock::now()),
            peer_ration: tcp::Ration::new(clock::now()),
            tcp: None,
            tcp_accept: None,
            doors: Slots::new(),
            keeps_listeners: false,
            sessions_dialled: 0,
            connections: 0,
            inputs: VecDeque::new(),
            refused: VecDeque::new(),
            dirty_clients: Vec::new(),
            dirty_links: Vec::new(),
            starved: Vec::new(),
            fresh_mirrored_writes: 0,
            actions: Outbox::new(),
            nbd_out: nbd_frontend::Outbox::new(),
        };
        shard.listen_for_links(listeners)?;
        shard.listen_for_clients(nbd_tcp)?;
        shard.set_up_doors()?;
        Ok(shard)
    }

    /// Runs until told to stop. A broken backend or a violated invariant ends it with
    /// [`ShardEvent::Fatal`]: the process must not go on without it.
    fn run(mut self) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.turns()));
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(errno)) => format!("the event loop failed: {errno}"),
            Err(_) => "the event loop panicked; its message is above".to_owned(),
        };
        self.sink.tell(ShardEvent::Fatal { error });
    }

    fn turns(&mut self) -> Result<(), Errno> {
        let mut done = Vec::new();
        while !self.stopping {
            let timeout = self
                .next_deadline()
                .map(|deadline| deadline.since(clock::now()));
            // The first guest write of an idle pair: nothing to do before both answers are here.
            let for_two = self.requests.len() == 1 && self.fresh_mirrored_writes == 1;
            self.fresh_mirrored_writes = 0;
            self.backend.turn(Wait { timeout, for_two }, &mut done)?;
            self.queue.note_turn();
            self.now = clock::now();
            self.look_at_suspension();
            self.look_at_leases();
            self.take_commands();
            for completion in done.drain(..) {
                self.on_completion(completion);
                self.work();
            }
            self.meet_deadlines();
            self.retry_starved();
            self.work();
            self.drop_forwards_of_primaries();
            self.publish();
            self.flush();
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion) {
        match Owner::of(completion.token) {
            Some(Owner::Disk(place)) => self.on_disk(place, completion),
            Some(Owner::Meta(place)) => self.on_meta(place, completion),
            Some(Owner::NbdAccept(key)) => self.on_client_accepted(key, completion),
            Some(Owner::NbdTcpAccept) => self.on_tcp_accepted(completion),
            Some(Owner::ClientRecv(key)) => self.on_client_received(key, completion),
            Some(Owner::ClientSend(key)) => self.on_client_sent(key, completion),
            Some(Owner::LinkAccept { listener }) => self.on_link_accepted(listener, completion),
            Some(Owner::LinkConnect(key)) => self.on_link_connected(key, &completion),
            Some(Owner::LinkRecv(key)) => self.on_link_received(key, completion),
            Some(Owner::LinkSend(key)) => self.on_link_sent(key, completion),
            Some(Owner::ForwardRecv(key, side)) => self.on_forward_received(key, side, completion),
            Some(Owner::ForwardSend(key, side)) => self.on_forward_sent(key, side, completion),
            Some(Owner::Door(key)) => self.on_turned_away(key, completion),
            Some(Owner::Extents(key)) => self.on_extents_found(key, completion),
            None => tracing::error!(
                token = completion.token.0,
                "completion of nobody's operation"
            ),
        }
    }

    /// Gives inputs to engines and carries out what they ask, until nothing is left to do.
    fn work(&mut self) {
        loop {
            self.work_inputs();
            let Some((request, error)) = self.refused.pop_front() else {
                return;
            };
            self.answer_request(request, |_, _| nbd_frontend::Completion::Failed(error));
        }
    }

    fn work_inputs(&mut self) {
        while let Some((key, input)) = self.inputs.pop_front() {
            let Some(resource) = self.resources.get_mut(key) else {
                continue;
            };
            if resource.removing {
                continue;
            }
            let mut actions = std::mem::take(&mut self.actions);
            resource.handle(self.now, input, &mut actions);
            for action in actions.drain(..) {
                self.act(key, action);
            }
            self.actions = actions;
            self.look_at_returning(key);
        }
    }

    /// A lapsed lease that returned, or one that was prolonged (R5).
    fn look_at_leases(&mut self) {
        for key in self.resources.keys_where(Resource::lease_changed) {
            if let Some(resource) = self.resources.get_mut(key) {
                let until = resource.take_lease();
                self.inputs.push_back((key, Input::Lease { until }));
            }
        }
        self.work();
    }

    /// The clock of the leases did not count while the machine slept: all of them are void, and
    /// what was to be answered under them is not (R2). Two readings of clocks without a system
    /// call, so that it can be asked before anybody is answered, each turn.
    fn look_at_suspension(&mut self) {
        let Some(slept) = self.suspend.look((self.suspended)()) else {
            return;
        };
        tracing::warn!(slept_ms = slept.as_millis(), "suspended: leases are void");
        for key in self.resources.keys_where(|_| true) {
            if let Some(resource) = self.resources.get_mut(key) {
                resource.void_lease();
            }
            let until = Instant::ZERO;
            self.inputs.push_back((key, Input::Lease { until }));
        }
        self.work();
        self.drop_clients_at_shut_gates();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let of_resources = self
            .resources
            .iter()
            .map(|(_, resource)| resource.next_deadline());
        let of_timers = self.timers.first().map(|&(deadline, _)| deadline);
        of_resources.fold(of_timers, earliest)
    }

    fn meet_deadlines(&mut self) {
        for (key, duties) in self.due_resources() {
            if duties.tick {
                self.inputs.push_back((key, Input::Tick));
            }
            if duties.attach {
                self.try_attach(key);
            }
            if duties.dial {
                self.dial(key);
            }
            if duties.accept {
                self.arm_nbd_accept(key);
            }
        }
        while let Some(&(deadline, timer)) = self.timers.first() {
            if deadline > self.now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Client(key) => self.on_client_timer(key),
                Timer::Link(key) => self.on_link_timer(key),
                Timer::Look(key) => self.end_look(key, Vec::new()),
                Timer::Handshake { client, .. } => self.pump_client(client),
                Timer::LinkHandshake { link, .. } => self.pump_link(link),
                Timer::Accept => self.arm_tcp_accept(),
                Timer::Door(key) => self.turn_away(key),
            }
        }
    }

    fn due_resources(&self) -> Vec<(Key, resource::Duties)> {
        let due = |(key, resource): (Key, &Resource)| {
            resource.duties(self.now).map(|duties| (key, duties))
        };
        self.resources.iter().filter_map(due).collect()
    }

    fn note_starved(&mut self, owner: Owner) {
        let known = match owner {
            Owner::ClientRecv(key) => self
                .clients
                .get_mut(key)
                .is_none_or(|client| std::mem::replace(&mut client.starved, true)),
            // Of links there are a few.
            _ => self.starved.contains(&owner),
        };
        if !known {
            self.starved.push(owner);
        }
    }

    /// Tries again what waited for buffers. They come back through this loop's own work, so no
    /// wake-up is needed for it.
    fn retry_starved(&mut self) {
        for owner in std::mem::take(&mut self.starved) {
            match owner {
                Owner::ClientRecv(key) => {
                    if let Some(client) = self.clients.get_mut(key) {
                        client.starved = false;
                    }
                    self.pump_client(key);
                }
                Owner::LinkRecv(key) => self.pump_link(key),
                _ => {}
            }
        }
    }

    fn publish(&mut self) {
        let of_loop = self.backend.kind();
        let due = self
            .resources
            .keys_where(|resource| resource.is_publication_due(self.now));
        for key in due {
            self.renew_list(key);
            let Some(resource) = self.resources.get_mut(key) else {
                continue;
            };
            if let Some(snapshot) = resource.next_publication(self.now, of_loop) {
                self.sink.publish(resource.setup.resource, Some(snapshot));
            }
            if resource.wants_dial(self.now) {
                self.dial(key);
            }
        }
    }

    /// Sends everything queued, one send per socket.
    fn flush(&mut self) {
        self.look_at_suspension();
        if clock::now().since(self.now) > STALL {
            self.check_gates_again();
        }
        for key in std::mem::take(&mut self.dirty_clients) {
            self.flush_client(key);
        }
        for key in std::mem::take(&mut self.dirty_links) {
            self.flush_link(key);
        }
    }

    /// R2 after a stall: replies that wait to be sent were made when the lease held; if it does not
    /// any more, they go down with their sockets.
    fn check_gates_again(&mut self) {
        self.now = clock::now();
        self.look_at_leases();
        self.drop_clients_at_shut_gates();
    }

    fn drop_clients_at_shut_gates(&mut self) {
        for key in self
            .resources
            .keys_where(|resource| resource.role() == Role::Primary)
        {
            self.inputs.push_back((key, Input::Tick));
            self.work();
            let closed = self.resources.get(key).is_some_and(|resource| {
                let snapshot = resource.snapshot();
                snapshot.role != Role::Primary || snapshot.held == Some(HeldReason::Lease)
            });
            if closed {
                tracing::warn!("stopped or suspended past the lease; guests reconnect");
                self.drop_clients(key);
            }
        }
    }

    /// An age for a new connection.
    fn next_born(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    fn take_commands(&mut self) {
        for command in self.queue.take() {
            if matches!(command, ShardCommand::Stop) {
                self.stopping = true;
                return;
            }
            self.on_command(command);
            self.work();
        }
    }
}
