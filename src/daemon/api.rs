//! The seam between the shard (event loop, disks, links, NBD) and the rest of the daemon.
//!
//! Owns only the shapes of what crosses it. Both directions are bounded queues plus a wake-up, so
//! neither side ever waits for the other; the lease travels beside them as a plain atomic, because
//! it is renewed many times a second and only its newest value matters.
//!
//! ```text
//! controller thread ── ShardCommand ──▶ shard ── ShardEvent ──▶ controller, store thread
//!                   ── lease: AtomicU64 ─▶       ── ResourceSnapshot ─▶ control socket
//! ```

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use replicator::engine::{AttachError, Event, GuestKind, Input, ReplicaMark, Snapshot};
use replicator::io::{Disk, OpenError};
use replicator::types::{
    BlockIndex, ByteLen, Instant, NodeId, OpId, ReplicaId, ReplicationProtocol, ResourceId,
    ResyncRate, StoreError, ViewNumber, VolumeRow,
};

use super::certificates::Certificates;
use super::forward::Caller;
use super::relay_door::Knock;
use super::security::Security;
use super::wire::Wire;
use crate::config::CertificateSubject;
use crate::controller::VoterRecord;

/// Commands a shard may have waiting. The controller sends a few per view change and none while
/// nothing changes, so this many means that the shard is stuck: the sender then stops the process
/// rather than act on a belief the shard does not share.
pub const SHARD_COMMANDS_MAX: usize = 65_536;

/// What a shard is told once, when its thread starts.
#[derive(Debug)]
pub struct ShardSetup {
    /// This node.
    pub node: NodeId,
    /// Hash of the cluster's name; part of the link preamble.
    pub cluster: u64,
    /// Listening sockets, one per configured address of this node, bound and listening already
    /// (a taken address is found before anything starts). Nonblocking.
    pub listeners: Vec<TcpListener>,
    /// The peer's addresses, in order of preference. Data node 1 dials, node 0 listens.
    pub peer_addresses: Vec<SocketAddr>,
    /// Random id of this boot of the machine.
    pub boot_id: u128,
    /// Random id of this process.
    pub incarnation: u128,
    /// Most NBD connections per resource.
    pub nbd_connections_max: usize,
    /// How the Primary is called for clients of a Secondary.
    pub caller: Arc<Caller>,
    /// The TCP listener of NBD, if there is one.
    pub nbd_tcp: Option<NbdTcp>,
    /// NBD sockets that this process was started with.
    pub doors: Vec<InheritedSocket<OwnedFd>>,
    /// How the nodes know each other; `None`: `tls = "off"`.
    pub security: Option<Arc<Security>>,
}

/// Where NBD clients of other machines come in.
#[derive(Debug)]
pub struct NbdTcp {
    /// Bound and listening. Nonblocking.
    pub listener: TcpListener,
    /// What TLS is set up with; `None`: clear text, on a loopback address.
    pub certificates: Option<Arc<Certificates>>,
    /// Whether the empty name means the one resource that is configured.
    pub has_default: bool,
    /// It was there before this process: who waits in it waits for a resource to be served.
    pub inherited: bool,
}

/// A Unix socket for NBD that somebody else made, or a life of this daemon before.
#[derive(Debug)]
pub struct InheritedSocket<S> {
    /// Where it is bound, as the resource names it.
    pub path: PathBuf,
    /// It.
    pub socket: S,
    /// Made by a life of this daemon: its path goes with its resource.
    pub own: bool,
    /// Its resource is about to be up: who waits in it goes on waiting.
    pub awaited: bool,
}

/// What the name of an export that is only to be read ends with.
pub const READ_ONLY_SUFFIX: &str = "/ro";

/// One resource as the shard runs it, from `up` to `down`.
#[derive(Debug)]
pub struct ResourceSetup {
    /// Its id.
    pub resource: ResourceId,
    /// Its name; also the NBD export name.
    pub name: String,
    /// Where its volumes lie.
    pub row: VolumeRow,
    /// Where its NBD socket is to be.
    pub nbd_socket: PathBuf,
    /// Whose certificate opens it over TCP; `None`: any of the authority's, and clear text.
    pub nbd_allow: Option<Vec<CertificateSubject>>,
    /// End of the lease on this node's clock, in nanoseconds ([`Instant`]); 0 before the first
    /// grant. Written by the controller thread, read by the shard each turn.
    pub lease: Arc<AtomicU64>,
    /// How long the peer may leave a request or ping unanswered.
    pub peer_timeout: core::time::Duration,
    /// How long the disk may leave an operation unanswered.
    pub disk_timeout: Option<core::time::Duration>,
    /// When a write is acknowledged.
    pub protocol: ReplicationProtocol,
    /// How fast resyncs may go.
    pub resync_rate: ResyncRate,
    /// The 99th percentile of guests' writes that a resync is to leave them.
    pub guest_latency_target: core::time::Duration,
    /// Resyncs compare digests before they copy.
    pub checksum_first: bool,
    /// A Secondary passes NBD clients on to the Primary.
    pub forward: bool,
    /// There is an export to be read only, too.
    pub read_only_export: bool,
}

/// Backing devices to open for a resource. The shard opens and locks them (R14), then offers them
/// to the engine.
#[derive(Clone, Debug)]
pub struct AttachSetup {
    /// The data devices or files, one for each volume.
    pub disks: Vec<PathBuf>,
    /// The metadata area, external.
    pub meta: PathBuf,
    /// What the voter store remembers.
    pub stored: StoredMarks,
}

/// What the voter store remembers of a resource's replica on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredMarks {
    /// It failed earlier (R23).
    pub failed: bool,
    /// Which one was last attached.
    pub replica: Option<ReplicaId>,
    /// The highest view this node sealed (R6).
    pub seal: ViewNumber,
}

impl StoredMarks {
    /// Of a resource without a record.
    pub const NONE: Self = Self {
        failed: false,
        replica: None,
        seal: ViewNumber::NONE,
    };

    /// Those of a record.
    #[must_use]
    pub fn of(record: &VoterRecord) -> Self {
        Self {
            failed: record.replica_failed,
            replica: record.replica,
            seal: record.seal,
        }
    }
}

impl Default for StoredMarks {
    fn default() -> Self {
        Self::NONE
    }
}

/// What the shard is asked to do. Carried out in order per resource.
#[derive(Debug)]
pub enum ShardCommand {
    /// Make the resource's engine and NBD socket; no disk, no connection yet.
    Add(Box<ResourceSetup>),
    /// Take it away: NBD socket, clients, session, engine. The engine was quiesced or stepped down
    /// before if it served. Answered by [`ShardEvent::Removed`] once no disk operation is left.
    Remove {
        /// Which.
        resource: ResourceId,
    },
    /// Open the devices and attach. Answered by `Event::Attached` or [`ShardEvent::OpenFailed`],
    /// unless a detach comes while it waits for a device in use.
    Attach {
        /// Which.
        resource: ResourceId,
        /// What.
        setup: Box<AttachSetup>,
    },
    /// Tell the engine how long the attached devices are now, after making a metadata file at least so
    /// long.
    Measure {
        /// Which.
        resource: ResourceId,
        /// For a larger volume.
        meta: Option<ByteLen>,
    },
    /// From the shard's own helper: the devices of an attach are open, or cannot be opened.
    Opened {
        /// Of which.
        resource: ResourceId,
        /// Of which attach.
        order: u64,
        /// Data and metadata.
        devices: Result<Box<(Vec<Disk>, Disk)>, OpenError>,
    },
    /// Hand this to the resource's engine.
    Engine {
        /// Which.
        resource: ResourceId,
        /// What.
        input: Box<Input>,
    },
    /// A mark is durable, or is not: becomes `Input::MarkDone`.
    MarkDone {
        /// Which.
        resource: ResourceId,
        /// Which operation.
        op: OpId,
        /// How.
        result: Result<(), StoreError>,
    },
    /// From the shard's own helper: the Primary was called for a client.
    Called {
        /// Which client.
        forward: u64,
        /// The connection, or why there is none.
        answer: Result<Wire, String>,
    },
    /// The peer passes a client on, and is known to be the peer; nothing was answered yet.
    Forwarded {
        /// Of which resource.
        resource: ResourceId,
        /// The connection.
        stream: Wire,
    },
    /// Who may open what over TCP, from now on: clients that have attached stay.
    NbdAccess(Box<NbdAccess>),
    /// Accept nobody any more, and leave the paths of NBD sockets where they are: another life of this
    /// daemon accepts.
    KeepListeners,
    /// End the thread. Everything was removed before in an orderly stop.
    Stop,
}

/// What is configured of NBD over TCP, by resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdAccess {
    /// See [`NbdTcp::has_default`].
    pub has_default: bool,
    /// See [`ResourceSetup::nbd_allow`].
    pub allowed: BTreeMap<ResourceId, Option<Vec<CertificateSubject>>>,
}

/// What the shard tells.
#[derive(Debug)]
pub enum ShardEvent {
    /// The engine said so.
    Engine {
        /// Which.
        resource: ResourceId,
        /// What.
        event: Event,
    },
    /// The engine wants this recorded on the root disk; answered by [`ShardCommand::MarkDone`].
    Mark {
        /// Which.
        resource: ResourceId,
        /// Echoed by the answer.
        op: OpId,
        /// What.
        mark: ReplicaMark,
    },
    /// The backing devices could not be opened.
    OpenFailed {
        /// Which.
        resource: ResourceId,
        /// Why, for people.
        error: OpenError,
    },
    /// A resource has its NBD socket.
    Listening {
        /// Which.
        resource: ResourceId,
        /// Where.
        path: PathBuf,
        /// Another handle of the socket.
        fd: OwnedFd,
        /// See [`InheritedSocket::own`].
        own: bool,
    },
    /// Answer to [`ShardCommand::Remove`].
    Removed {
        /// Which.
        resource: ResourceId,
    },
    /// A resource could not be added: its NBD socket could not be made.
    AddFailed {
        /// Which.
        resource: ResourceId,
        /// The path and the system's words.
        error: String,
    },
    /// Another node passes something on: not the shard's business until it is known to be that node.
    Call(Knock),
    /// The shard cannot go on (its ring broke): the process must end, guests reconnect elsewhere.
    Fatal {
        /// Why.
        error: String,
    },
}

/// One NBD client, for the refusals that name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NbdClient {
    /// Process id, where the socket tells it.
    pub pid: Option<i32>,
    /// User id, where the socket tells it.
    pub uid: Option<u32>,
    /// The peer passes it on.
    pub forwarded: bool,
    /// Address, over TCP.
    pub address: Option<SocketAddr>,
    /// Place of the volume it has; 0 while that is not known.
    pub place: usize,
}

impl NbdClient {
    /// One that the peer passes on.
    pub const FORWARDED: Self = Self {
        pid: None,
        uid: None,
        forwarded: true,
        address: None,
        place: 0,
    };
}

/// State of one resource as the control socket shows it. Published by the shard whenever it
/// changed, and at least twice a second while a resync runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceSnapshot {
    /// The engine's.
    pub engine: Snapshot,
    /// When it was taken.
    pub at: Instant,
    /// Clients past their handshake; of many the list may lag by half a second.
    pub nbd_clients: Arc<[NbdClient]>,
    /// Name of the ring in use, `io_uring` or `portable`; `None` without a disk.
    pub io_backend: Option<&'static str>,
    /// Outcome of the newest attach that failed; `None` once one succeeded.
    pub attach_error: Option<AttachFailure>,
    /// What is different from one volume to the next; empty where there is only one.
    pub volumes: Vec<VolumeSnapshot>,
    /// Place of the volume whose disk failed, since the last attach that succeeded.
    pub failed_place: Option<usize>,
}

/// One of several volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSnapshot {
    /// Where it starts in the row.
    pub start: BlockIndex,
    /// Its size; 0 while it is not known.
    pub size_blocks: u64,
    /// Marked blocks toward the peer.
    pub marked_blocks: u64,
    /// What guests asked of it since the resource is up here.
    pub traffic: Traffic,
}

/// Guests' requests, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Traffic {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
}

impl Traffic {
    /// One more.
    pub fn note(&mut self, kind: &GuestKind) {
        match kind {
            GuestKind::Read { len, .. } => {
                self.reads += 1;
                self.read_bytes += len.0;
            }
            GuestKind::Write { payload, .. } => {
                self.writes += 1;
                self.written_bytes += payload.len() as u64;
            }
            GuestKind::Flush => self.flushes += 1,
            GuestKind::Trim { .. } | GuestKind::Zeroes { .. } => {}
        }
    }
}

/// Why there is no disk although one was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachFailure {
    /// It could not be opened.
    Open(OpenError),
    /// The engine refused what it read.
    Engine(AttachError),
}

/// Where a shard puts what it tells. Implementations never block: called on the event loop.
pub trait ShardSink: Send {
    /// Something happened.
    fn tell(&self, event: ShardEvent);
    /// The state of a resource changed (`None`: it was removed).
    fn publish(&self, resource: ResourceId, snapshot: Option<ResourceSnapshot>);
}

/// How the rest of the daemon reaches a shard.
pub trait ShardHandle: Send + Sync {
    /// Queues a command and wakes the shard.
    ///
    /// # Panics
    /// When [`SHARD_COMMANDS_MAX`] commands are waiting.
    fn send(&self, command: ShardCommand);
    /// Wakes the shard so that it looks at the leases again: a lapsed one returned.
    fn wake(&self);
    /// Turns made so far. One that waits makes another when woken; one that hangs does not.
    fn turns(&self) -> u64;
}
