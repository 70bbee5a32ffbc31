//! Shards on files, and a blocking NBD client.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use core::time::Duration;

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{Client, ClientCommand, ClientError, ClientReply};
use replicator::engine::{AdminRequest, Event, Input, Snapshot};
use replicator::io::{Backend, clock};
use replicator::meta::{NewReplica, Superblock, format};
use replicator::types::{
    Activation, Ballot, BlockCount, CommittedView, DataGeneration, InSync, Instant, NodeId,
    QuorumEvidence, ReplicaId, ReplicationProtocol, ResourceId, ResyncRate, View, ViewCause,
    ViewNumber, VolumeId, VolumeRow, VoterId, VoterSet,
};

use crate::daemon::api::{
    AttachSetup, InheritedSocket, NbdClient, ResourceSetup, ResourceSnapshot, ShardCommand,
    ShardEvent, ShardHandle, ShardSetup, ShardSink, StoredMarks,
};
use crate::daemon::security::Security;
use crate::daemon::shard::{EngineFactory, ShardThread, Surroundings, engines, start_in};

/// Far beyond what anything here takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const SIZE: u64 = 16 << 20;
pub(super) const NBD_CONNECTIONS_MAX: usize = 8;
const RESOURCE: ResourceId = ResourceId(1);

/// A directory that goes away with its value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nr = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("twinblk-shard-{}-{nr}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What a shard told, kept for the test's thread.
struct Sink {
    events: Sender<ShardEvent>,
    snapshots: Sender<Option<ResourceSnapshot>>,
}

impl ShardSink for Sink {
    fn tell(&self, event: ShardEvent) {
        // Kept by the daemon; nothing follows from it here.
        if !matches!(event, ShardEvent::Listening { .. }) {
            drop(self.events.send(event));
        }
    }

    fn publish(&self, _resource: ResourceId, snapshot: Option<ResourceSnapshot>) {
        drop(self.snapshots.send(snapshot));
    }
}

/// One node: a shard with one resource, and the controller's side of it.
pub(super) struct Node {
    pub(super) id: NodeId,
    scratch: Arc<Scratch>,
    thread: Option<ShardThread>,
    events: Receiver<ShardEvent>,
    seen: Vec<Event>,
    snapshots: Receiver<Option<ResourceSnapshot>>,
    newest: Option<ResourceSnapshot>,
    lease: Arc<AtomicU64>,
    row: VolumeRow,
}

/// Where a node listens, where its peer does, and how they know each other.
type Network = (Vec<TcpListener>, Vec<SocketAddr>, Option<Arc<Security>>);

/// How to make the backend of each shard.
pub(super) type MakeBackend = fn() -> Result<Box<dyn Backend>, nix::errno::Errno>;

pub(super) fn backends() -> Vec<MakeBackend> {
    let portable: MakeBackend = || Ok(Box::new(replicator::io::Portable::new()?));
    let best: MakeBackend = replicator::io::open_backend;
    vec![portable, best]
}

impl Node {
    /// A started shard; `listeners` and `peer` as in the configuration.
    pub(super) fn start(
        scratch: &Arc<Scratch>,
        id: NodeId,
        listeners: Vec<TcpListener>,
        peer_addresses: Vec<SocketAddr>,
        backend: MakeBackend,
    ) -> Self {
        Self::start_secured(scratch, id, (listeners, peer_addresses, None), backend)
    }

    /// The same with keys.
    pub(super) fn start_secured(
        scratch: &Arc<Scratch>,
        id: NodeId,
        network: Network,
        backend: MakeBackend,
    ) -> Self {
        let surroundings = Surroundings {
            backend: Box::new(backend),
            ..Surroundings::real()
        };
        Self::start_in(scratch, id, network, surroundings, engines())
    }

    /// One that serves alone, with the whole machine as the test says.
    pub(super) fn alone_in(
        scratch: &Arc<Scratch>,
        surroundings: Surroundings,
        engines: EngineFactory,
    ) -> Self {
        let network = (Vec::new(), Vec::new(), None);
        Self::start_in(scratch, NodeId::A, network, surroundings, engines)
    }

    /// One that was started with such sockets.
    pub(super) fn with_doors(
        scratch: &Arc<Scratch>,
        backend: MakeBackend,
        doors: Vec<InheritedSocket<OwnedFd>>,
    ) -> Self {
        let surroundings = Surroundings {
            backend: Box::new(backend),
            ..Surroundings::real()
        };
        let network = (Vec::new(), Vec::new(), None);
        Self::start_with(scratch, NodeId::A, network, surroundings, engines(), doors)
    }

    fn start_in(
        scratch: &Arc<Scratch>,
        id: NodeId,
        network: Network,
        surroundings: Surroundings,
        engines: EngineFactory,
    ) -> Self {
        Self::start_with(scratch, id, network, surroundings, engines, Vec::new())
    }

    fn start_with(
        scratch: &Arc<Scratch>,
        id: NodeId,
        (listeners, peer_addresses, security): Network,
        surroundings: Surroundings,
        engines: EngineFactory,
        doors: Vec<InheritedSocket<OwnedFd>>,
    ) -> Self {
        let (event_sender, events) = channel();
        let (snapshot_sender, snapshots) = channel();
        let setup = ShardSetup {
            caller: Arc::default(),
            node: id,
            cluster: 0xc1,
            listeners,
            peer_addresses,
            boot_id: clock::boot_id().unwrap(),
            incarnation: clock::random_id().unwrap(),
            nbd_connections_max: NBD_CONNECTIONS_MAX,
            nbd_tcp: None,
            doors,
            security,
        };
        let sink = Sink {
            events: event_sender,
            snapshots: snapshot_sender,
        };
        let thread = start_in(surroundings, setup, Box::new(sink), engines).unwrap();
        Self {
            id,
            scratch: Arc::clone(scratch),
            thread: Some(thread),
            events,
            seen: Vec::new(),
            snapshots,
            newest: None,
            lease: Arc::new(AtomicU64::new(0)),
            row: VolumeRow::only(VolumeId(0)),
        }
    }

    /// With a second volume, number 5, that begins there. Before [`Self::create`].
    pub(super) fn split_at(&mut self, start: u64) {
        let sizes = [(VolumeId(0), start / 4096), (VolumeId(5), 0)];
        let sizes = sizes.map(|(volume, blocks)| (volume, BlockCount(blocks)));
        self.row = VolumeRow::new(&sizes).unwrap();
    }

    /// A file for each volume.
    fn images(&self) -> Vec<PathBuf> {
        match self.row.is_several() {
            true => vec![self.file("img"), self.file("log")],
            false => vec![self.file("img")],
        }
    }

    pub(super) fn send(&self, command: ShardCommand) {
        self.thread.as_ref().unwrap().queue.send(command);
    }

    pub(super) fn input(&self, input: Input) {
        self.send(ShardCommand::Engine {
            resource: RESOURCE,
            input: Box::new(input),
        });
    }

    fn file(&self, what: &str) -> PathBuf {
        self.scratch.path(&format!("{}.{what}", self.id.raw()))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    /// Makes the resource's files and metadata.
    pub(super) fn create(&self) {
        for (place, image) in self.images().iter().enumerate() {
            let len = self.row.blocks(place, BlockCount(SIZE / 4096)).len().0;
            File::create(image).unwrap().set_len(len).unwrap();
        }
        let superblock = Superblock::blank(NewReplica {
            resource: self.row.identity(RESOURCE),
            volume: VolumeId(0),
            node: self.id,
            replica: ReplicaId(100 + u128::from(self.id.raw())),
            size: BlockCount(SIZE / 4096),
            al_slots: 67,
            zero_proven: true,
        });
        let plan = format(&superblock).unwrap();
        let file = File::create(self.file("md")).unwrap();
        file.set_len(plan.zero.len().0).unwrap();
        for page in plan.pages {
            file.write_all_at(&page.bytes, page.offset.0).unwrap();
        }
    }

    /// `up`: adds, attaches, connects.
    pub(super) fn up(&mut self) {
        self.add();
        self.attach();
        self.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
        self.input(Input::Admin(AdminRequest::Connect));
    }

    pub(super) fn add(&self) {
        let setup = ResourceSetup {
            forward: false,
            read_only_export: false,
            resource: RESOURCE,
            name: "r0".to_owned(),
            row: self.row.clone(),
            nbd_socket: self.socket(),
            nbd_allow: None,
            lease: Arc::clone(&self.lease),
            peer_timeout: Duration::from_secs(3),
            disk_timeout: Some(Duration::from_secs(5)),
            protocol: ReplicationProtocol::C,
            resync_rate: ResyncRate::Auto,
            guest_latency_target: Duration::from_millis(10),
            checksum_first: false,
        };
        self.send(ShardCommand::Add(Box::new(setup)));
    }

    pub(super) fn attach(&self) {
        let setup = AttachSetup {
            disks: self.images(),
            meta: self.file("md"),
            stored: StoredMarks::NONE,
        };
        self.send(ShardCommand::Attach {
            resource: RESOURCE,
            setup: Box::new(setup),
        });
    }

    pub(super) fn renew_lease(&self) {
        let until = clock::now().plus(Duration::from_secs(3600));
        self.store_lease(until);
    }

    pub(super) fn store_lease(&self, until: Instant) {
        self.lease.store(until.0, Ordering::Release);
        self.wake();
    }

    pub(super) fn wake(&self) {
        self.thread.as_ref().unwrap().queue.wake();
    }

    /// The next event of the shard, answering marks as a store would.
    fn next_event(&mut self, deadline: Instant) -> ShardEvent {
        loop {
            let left = deadline.since(clock::now());
            let event = self
                .events
                .recv_timeout(left)
                .expect("the awaited event does not come");
            if let ShardEvent::Mark { resource, op, .. } = event {
                self.send(ShardCommand::MarkDone {
                    resource,
                    op,
                    result: Ok(()),
                });
                continue;
            }
            return event;
        }
    }

    /// Waits for an event of the engine; those before it are forgotten.
    pub(super) fn wait_event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = clock::now().plus(PATIENCE);
        loop {
            let event = match (0..self.seen.len()).next() {
                Some(_) => self.seen.remove(0),
                None => match self.next_event(deadline) {
                    ShardEvent::Engine { event, .. } => event,
                    other => panic!("{other:?}"),
                },
            };
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Returns after the shard has taken everything that was sent and stored before.
    pub(super) fn settle(&mut self) {
        let nobody = ResourceId(99);
        self.send(ShardCommand::Remove { resource: nobody });
        match self.wait_shard_event() {
            ShardEvent::Removed { resource } => assert_eq!(resource, nobody),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for something that is no event of the engine.
    pub(super) fn wait_shard_event(&mut self) -> ShardEvent {
        let deadline = clock::now().plus(PATIENCE);
        loop {
            match self.next_event(deadline) {
                ShardEvent::Engine { event, .. } => self.seen.push(event),
                other => return other,
            }
        }
    }

    /// Waits until the published state is as wanted.
    pub(super) fn wait_state(&mut self, wanted: impl Fn(&ResourceSnapshot) -> bool) {
        let deadline = clock::now().plus(PATIENCE);
        while !self.newest.as_ref().is_some_and(&wanted) {
            let left = deadline.since(clock::now());
            match self.snapshots.recv_timeout(left) {
                Ok(snapshot) => self.newest = snapshot,
                Err(_) => panic!("the awaited state does not come: {:?}", self.newest),
            }
        }
    }

    pub(super) fn wait_engine(&mut self, wanted: impl Fn(&Snapshot) -> bool) {
        self.wait_state(|state| wanted(&state.engine));
    }

    pub(super) fn newest_clients(&self) -> &[NbdClient] {
        self.newest
            .as_ref()
            .map_or(&[], |newest| &newest.nbd_clients)
    }

    pub(super) fn remove(&self) {
        self.send(ShardCommand::Remove { resource: RESOURCE });
    }

    /// The volumes, one behind the other.
    pub(super) fn image(&self) -> Vec<u8> {
        let images = self.images();
        let images = images.iter().map(|image| std::fs::read(image).unwrap());
        images.collect::<Vec<_>>().concat()
    }

    pub(super) fn client(&self) -> Guest {
        Guest::connect(&self.socket()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(ShardThread { queue, thread }) = self.thread.take() {
            queue.send(ShardCommand::Stop);
            if !std::thread::panicking() {
                thread.join().unwrap();
            }
        }
    }
}

/// The views of a cluster whose voters all agree.
pub(super) struct Register {
    view: Option<View>,
}

impl Register {
    pub(super) fn new() -> Self {
        Self { view: None }
    }

    pub(super) fn view(&self) -> View {
        self.view.unwrap()
    }

    pub(super) fn commit(
        &mut self,
        proposer: NodeId,
        change: impl FnOnce(&mut View),
    ) -> CommittedView {
        let voters = VoterSet([Some(VoterId(1)), Some(VoterId(2)), Some(VoterId(3))]);
        let mut view = self.view.unwrap_or(View {
            number: ViewNumber::NONE,
            primary: proposer,
            in_sync: InSync::only(proposer),
            data_generation: DataGeneration(77),
            replicas: [None, None],
            voters,
            size_blocks: SIZE / 4096,
            held: false,
            lossy: false,
            forced: false,
            cause: ViewCause::Founded,
        });
        view.number = view.number.next();
        change(&mut view);
        self.view = Some(view);
        let ballot = Ballot {
            round: 1,
            node: proposer.raw(),
            incarnation: 1,
        };
        let evidence = QuorumEvidence {
            ballot,
            accepted_by: voters.0,
        };
        CommittedView::prove(view, evidence).unwrap()
    }

    pub(super) fn activate(&mut self, node: &mut Node, change: impl FnOnce(&mut View)) {
        let committed = self.commit(node.id, change);
        node.input(Input::Activate(Activation::of(committed, node.id).unwrap()));
        node.wait_event(|event| *event == Event::Serving);
        // Grants of before the activation do not count.
        node.renew_lease();
    }
}

/// A guest: the client of this project on a blocking socket.
pub(super) struct Guest {
    stream: UnixStream,
    client: Client,
}

impl Guest {
    pub(super) fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_to(path, "r0")
    }

    pub(super) fn connect_to(path: &Path, export: &str) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self {
            stream,
            client: Client::new(export, ReplyStyle::Structured),
        };
        while guest.client.export().is_none() {
            if !guest.exchange()? {
                return Err(ClientError::Protocol("closed during the handshake"));
            }
        }
        Ok(guest)
    }

    pub(super) fn size(&self) -> u64 {
        self.client.export().unwrap().size
    }

    /// Sends what is to be sent and receives something; `false` at the end of the stream.
    fn exchange(&mut self) -> Result<bool, ClientError> {
        let out = self.client.take_output();
        let mut bytes = vec![0; 64 << 10];
        let ended = self.stream.write_all(&out).is_err();
        let count = if ended {
            0
        } else {
            self.stream.read(&mut bytes).unwrap_or(0)
        };
        self.client.handle_bytes(&bytes[..count])?;
        Ok(count > 0)
    }

    pub(super) fn submit(&mut self, command: ClientCommand<'_>) -> u64 {
        self.client.submit(command).unwrap()
    }

    /// Sends what was submitted.
    pub(super) fn send(&mut self) {
        let out = self.client.take_output();
        self.stream.write_all(&out).unwrap();
    }

    /// The next reply, or `None` when the server closed the connection.
    pub(super) fn next_reply(&mut self) -> Option<ClientReply> {
        loop {
            if let Some(reply) = self.client.next_reply() {
                return Some(reply);
            }
            if !self.exchange().unwrap() {
                return None;
            }
        }
    }

    pub(super) fn run(&mut self, command: ClientCommand<'_>) -> ClientReply {
        self.submit(command);
        self.next_reply().expect("the server closed the connection")
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let reply = self.run(ClientCommand::Write {
            offset,
            data,
            fua: false,
        });
        assert_eq!(reply.result, Ok(Vec::new()));
    }

    pub(super) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.run(ClientCommand::Read { offset, len })
            .result
            .unwrap()
    }

    pub(super) fn flush(&mut self) {
        assert_eq!(self.run(ClientCommand::Flush).result, Ok(Vec::new()));
    }

    /// Sends the head of a write of `len` bytes and only `sent` bytes of it all.
    pub(super) fn send_part_of_a_write(&mut self, offset: u64, len: usize, sent: usize) {
        self.submit(ClientCommand::Write {
            offset,
            data: &vec![1; len],
            fua: false,
        });
        let out = self.client.take_output();
        self.stream.write_all(&out[..sent]).unwrap();
    }

    pub(super) fn disconnect(mut self) {
        self.client.disconnect();
        while self.exchange().unwrap() {}
    }
}
