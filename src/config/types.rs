//! A checked configuration.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use replicator::types::{
    BlockCount, ByteLen, Failback, Failover, NodeId, ReplicationProtocol, ResourceId, ResyncRate,
    VolumeId, VolumeRow,
};

use super::subject::CertificateSubject;

/// The whole configuration, the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// The data nodes in the order of their names, then the arbitrator if there is one: a node's
    /// index is its [`NodeId`].
    pub nodes: Vec<NodeConfig>,
    /// `[quorum]`
    pub quorum: QuorumConfig,
    /// `[net]`
    pub net: NetConfig,
    /// `[resync]`
    pub resync: ResyncConfig,
    /// `[verify]`
    pub verify: VerifyConfig,
    /// `[nbd]`
    pub nbd: NbdConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[log]`
    pub log: LogConfig,
    /// In the order of their names.
    pub resources: Vec<ResourceConfig>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// Holds a replica of each resource.
    Data,
    /// Votes only.
    Arbitrator,
}

/// `[node.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name: `uname -n` or the daemon's `--node`.
    pub name: String,
    /// What it is for.
    pub role: NodeRole,
    /// Where it listens, TCP and UDP, in order of preference; never empty, unique in the cluster.
    pub addresses: Vec<SocketAddr>,
    /// How its libvirt is reached.
    pub libvirt: String,
}

/// Deadlines of leases and takeovers (DESIGN §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimingProfile {
    /// Takeover in about 0.7 s.
    Fast,
    /// About 3 s.
    #[default]
    Default,
    /// About 10 s: slow or long links.
    Relaxed,
}

/// What a Primary without a majority does with its guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNoQuorum {
    /// They wait.
    #[default]
    SuspendIo,
    /// They get errors.
    IoError,
}

/// Whether the node fences itself by a hardware watchdog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of the configuration")]
pub enum Watchdog {
    #[default]
    Auto,
    Off,
    Required,
}

/// `[quorum]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuorumConfig {
    /// Which deadlines.
    pub timing: TimingProfile,
    /// What guests get without a majority.
    pub on_no_quorum: OnNoQuorum,
    /// Self-fencing.
    pub watchdog: Watchdog,
}

/// Encryption between the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Everything.
    #[default]
    Required,
    /// Votes and beacons, not the data.
    ControlOnly,
    /// Nothing: loopback, or `insecure = true`.
    Off,
}

impl Tls {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::ControlOnly => "control-only",
            Self::Off => "off",
        }
    }
}

/// `[net]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// When a write is acknowledged.
    pub protocol: ReplicationProtocol,
    /// Encryption.
    pub tls: Tls,
    /// `tls = "off"` was asked for beyond loopback.
    pub insecure: bool,
    /// A silent peer is given up after this.
    pub timeout: Duration,
}

/// A rate limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rate {
    /// Found out by measuring.
    #[default]
    Auto,
    /// None.
    Unlimited,
    /// Bytes per second, never 0.
    BytesPerSecond(u64),
}

impl Rate {
    /// What a resync keeps to.
    #[must_use]
    pub fn resync_rate(self) -> ResyncRate {
        match self {
            Self::Auto => ResyncRate::Auto,
            Self::Unlimited => ResyncRate::Unlimited,
            Self::BytesPerSecond(rate) => {
                NonZeroU64::new(rate).map_or(ResyncRate::Auto, ResyncRate::BytesPerSecond)
            }
        }
    }
}

/// `[resync]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncConfig {
    /// Upper limit.
    pub max_rate: Rate,
    /// Back off when guests' p99 write latency passes this.
    pub guest_latency_target: Duration,
    /// Resyncs at once; never 0.
    pub parallel: u32,
    /// Compare before sending.
    pub checksum_first: bool,
}

/// `[verify]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyConfig {
    /// systemd OnCalendar; empty: never.
    pub schedule: String,
    /// Repair from the Primary what differs, or only report it.
    pub repair_from_primary: bool,
}

/// `[nbd]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdConfig {
    /// Connections per resource; never 0.
    pub max_connections: u32,
    /// TCP address by data node, if any.
    pub listen: [Option<SocketAddr>; 2],
    /// Certificates for it; `None`: clear text, on loopback addresses only.
    pub tls_dir: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where; `None`: off.
    pub listen: Option<SocketAddr>,
    /// Written in the file: if the address is taken that is an error, else only a warning.
    pub explicit: bool,
}

/// Where the log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// journald under systemd, else stderr.
    #[default]
    Auto,
    /// journald.
    Journald,
    /// stderr.
    Stderr,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `info`, or directives such as `info,replicator=debug`.
    pub level: String,
    /// Where.
    pub target: LogTarget,
}

/// `[resource.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceConfig {
    /// Its name.
    pub name: String,
    /// Preferred Primary.
    pub prefer: Option<NodeId>,
    /// When it goes back there by itself.
    pub failback: Failback,
    /// How long the node it goes back to must have been well.
    pub hold_down: Duration,
    /// Lower goes back first.
    pub priority: u32,
    /// When a write is acknowledged, if not as `[net]` says.
    pub protocol: Option<ReplicationProtocol>,
    /// Whether the survivor takes over by itself.
    pub failover: Failover,
    /// A Secondary passes NBD clients on to the Primary.
    pub forward: bool,
    /// It is offered to be read only, too, by a name of its own.
    pub read_only_export: bool,
    /// Whose certificates open it over TCP; `None`: any of the authority's, and clear text.
    pub nbd_allow: Option<Vec<CertificateSubject>>,
    /// In the order of their numbers; never empty.
    pub volumes: Vec<VolumeConfig>,
    /// The guest that uses it.
    pub guest: Option<GuestConfig>,
}

/// `[[resource.NAME.volume]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its number.
    pub id: VolumeId,
    /// As configured, whole blocks; `None`: as the smaller disk.
    pub size: Option<ByteLen>,
    /// A disk operation that is not over after this long counts as failed; `None`: never. The first
    /// volume's counts for all of a resource.
    pub disk_timeout: Option<Duration>,
    /// Slots of the activity log that `create-md` makes: the first volume's count for all of a
    /// resource.
    pub al_extents: u16,
    /// Where it is, by data node.
    pub replicas: [ReplicaPaths; 2],
}

/// Devices of one replica, absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaPaths {
    /// The data.
    pub disk: PathBuf,
    /// The metadata, external: one area for all volumes of a resource.
    pub meta: PathBuf,
}

/// `[resource.NAME.guest]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// libvirt domain.
    pub domain: String,
    /// Its disk.
    pub target: Option<String>,
    /// Start it where the resource is promoted.
    pub start_on_failover: bool,
    /// What to do with it before giving the lease away, in this order; never empty.
    pub on_demote: Vec<DemoteStep>,
}

/// One step of `on-demote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoteStep {
    /// Ask it to shut down, and wait that long.
    Shutdown(Duration),
    /// End it.
    Destroy,
}

impl Config {
    /// The id of the node called `name`.
    #[must_use]
    pub fn node_id(&self, name: &str) -> Option<NodeId> {
        NodeId::ALL
            .into_iter()
            .find(|id| self.node(*id).is_some_and(|node| node.name == name))
    }

    /// A node; `None` for the arbitrator when there is none.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeConfig> {
        self.nodes.get(id.index())
    }

    /// Name of a node, for people; `arbitrator` when there is none.
    #[must_use]
    pub fn node_name(&self, id: NodeId) -> &str {
        self.node(id).map_or("arbitrator", |node| &node.name)
    }

    /// The arbitrator, if there is one.
    #[must_use]
    pub fn arbitrator(&self) -> Option<&NodeConfig> {
        self.node(NodeId::ARBITRATOR)
    }

    /// When a write to `resource` is acknowledged.
    #[must_use]
    pub fn protocol_of(&self, resource: &ResourceConfig) -> ReplicationProtocol {
        resource.protocol.unwrap_or(self.net.protocol)
    }

    /// The resource called `name`.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&ResourceConfig> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// Whether every address is a loopback address: all nodes are on one machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.nodes
            .iter()
            .flat_map(|node| &node.addresses)
            .all(|address| address.ip().is_loopback())
    }
}

impl ResourceConfig {
    /// Its id on the wire and on disk; unique in a checked configuration.
    #[must_use]
    pub fn id(&self) -> ResourceId {
        ResourceId::of_name(&self.name)
    }

    /// Where its volumes lie.
    #[must_use]
    pub fn row(&self) -> VolumeRow {
        let sizes: Vec<_> = self
            .volumes
            .iter()
            .map(|volume| {
                let size = volume.size.unwrap_or(ByteLen(0));
                (volume.id, BlockCount::whole_blocks_in(size))
            })
            .collect();
        // A checked configuration makes one.
        VolumeRow::new(&sizes).unwrap_or_else(|| VolumeRow::only(VolumeId(0)))
    }

    /// What its replicas call it: its id, unless it has several volumes.
    #[must_use]
    pub fn replica_id(&self) -> ResourceId {
        self.row().identity(self.id())
    }
}

impl VolumeConfig {
    /// The devices of `node`'s replica.
    ///
    /// # Panics
    /// For the arbitrator, which holds no data.
    #[must_use]
    pub fn replica(&self, node: NodeId) -> &ReplicaPaths {
        assert!(node.is_data(), "the arbitrator holds no data");
        &self.replicas[node.index()]
    }
}
