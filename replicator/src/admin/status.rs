//! The snapshot `status` prints: the schema `twinblk.status/1`.
//!
//! Within `/1` fields are only added. `None` is JSON `null` and means unknown or not applicable;
//! sizes are bytes, times seconds, enums the words users see.

use serde::{Deserialize, Serialize};

use crate::types::{
    ConnectionState, DiskState, Failover, ReplicationProtocol, ReplicationState, Role,
};

/// Value of [`Status::schema`].
pub const SCHEMA: &str = "twinblk.status/1";

/// Value of [`ResyncStatus::held`] while an operator holds it.
pub const PAUSED_BY_USER: &str = "paused:user";

/// What one node knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: String,
    /// When, as [`super::rfc3339_seconds`].
    pub generated: String,
    /// Who says so.
    pub node: String,
    /// The cluster as this node sees it.
    pub cluster: ClusterStatus,
    /// Ordered by name.
    pub resources: Vec<ResourceStatus>,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Whether this node sees a majority of the voters, itself included.
    pub quorum: bool,
    /// Configured voters.
    pub voters: u8,
    /// Voters heard of lately, this node included.
    pub voters_seen: u8,
    /// Resources with a `problem`, plus problems of the cluster itself.
    pub problems: u32,
    /// The arbitrator, if one is configured.
    #[serde(default)]
    pub arbitrator: Option<ArbitratorStatus>,
    /// Why this node cannot record its votes any more, so that it has none until it is started
    /// again; `None` while it can.
    #[serde(default)]
    pub store_error: Option<String>,
    /// This node is in standby: it takes nothing over by itself.
    #[serde(default)]
    pub standby: bool,
    /// Maintenance is on here: this node takes nothing over by itself, and hands nothing over when it
    /// stops.
    #[serde(default)]
    pub maintenance: bool,
    /// The nodes talk in clear text beyond loopback (`insecure = true`).
    #[serde(default)]
    pub insecure: bool,
    /// `[net] tls`: `required`, `control-only` or `off`.
    #[serde(default)]
    pub tls: Option<String>,
    /// What another node says lately and has no effect, since its keys or its `[net] tls` are others.
    /// Anybody on the network could make this appear; nothing is decided by it.
    #[serde(default)]
    pub tls_mismatch: Option<String>,
}

/// The third voter as one node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArbitratorStatus {
    /// Its name.
    pub node: String,
    /// Whether it was heard of lately.
    pub seen: bool,
}

/// One configured resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Its name.
    pub name: String,
    /// Whether `up` was ordered.
    pub up: bool,
    /// Primary only while activated; `None` unless up.
    pub role: Option<Role>,
    /// When a write is acknowledged.
    pub protocol: ReplicationProtocol,
    /// `auto` or `manual`: whether the survivor takes over by itself.
    #[serde(default)]
    pub failover: Failover,
    /// `io_uring` or `portable`.
    pub io_backend: Option<String>,
    /// Number of the newest view known here; `None` before the first.
    pub view: Option<u64>,
    /// The node that view names Primary.
    #[serde(default)]
    pub view_primary: Option<String>,
    /// The nodes that view names in sync.
    pub in_sync: Vec<String>,
    /// An operator demoted it by hand: no node promotes itself until `primary` or `up`.
    #[serde(default)]
    pub held: bool,
    /// Resyncs are held by an order given on this node.
    #[serde(default)]
    pub sync_paused: bool,
    /// How fast resyncs may go, as configured or ordered; `None`: no limit, or not up.
    #[serde(default)]
    pub resync_limit_bytes_per_second: Option<u64>,
    /// They do not slow down for guests, as configured or ordered.
    #[serde(default)]
    pub resync_unlimited: bool,
    /// The view was activated over data that may lack acknowledged writes.
    #[serde(default)]
    pub lossy: bool,
    /// The view goes back to a `primary --force`, and no replica was added since: what others hold of
    /// before may not be here.
    #[serde(default)]
    pub forced: bool,
    /// Preferred node, as configured.
    pub prefer: Option<String>,
    /// How it stands to that node; `None` without one.
    #[serde(default)]
    pub placement: Option<PlacementStatus>,
    /// Whether `primary` here would succeed, as far as is known here.
    pub may_promote: bool,
    /// Why guests are held: `quorum`, `peer`, `no-data`, `quiesce`; `None` if they are not.
    pub suspended: Option<String>,
    /// The guest that uses it, if one is bound.
    pub guest: Option<GuestStatus>,
    /// Ordered by number.
    pub volumes: Vec<VolumeStatus>,
    /// Ordered by name.
    pub peers: Vec<PeerStatus>,
    /// One plain sentence about what is not as it should be; `None` when all is well.
    pub status: Option<String>,
    /// What to do about it; `None` when nothing needs doing.
    pub action: Option<String>,
    /// Id of the problem, for alerts and `--problems`; `None` when all is well.
    pub problem: Option<String>,
}

/// How a resource stands to the node that it is preferred on, as one node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementStatus {
    /// `home`; `not-here` where the other node serves it or nobody does; `due` when it is about to go
    /// back; else why it does not: `never`, `manual`, `by-hand`, `maintenance`, `standby`, `lossy`,
    /// `not-ready`, `hold-down`, `window`, `flap-limit`, `back-off`, `other-wish` (the two nodes'
    /// files differ), `guest` (it does not run here, or could not be started there), `unknown`,
    /// `busy` or `blocked`.
    pub word: String,
    /// The same in one sentence without a full stop.
    pub text: String,
    /// How long that lasts, where only time is missing.
    pub left_seconds: Option<f64>,
    /// `failback` as this node's file has it, or `manual` where people decide: the node that serves
    /// compares it with its own.
    #[serde(default)]
    pub failback: Option<String>,
}

/// A guest bound to a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// libvirt domain.
    pub domain: String,
    /// Where it runs.
    pub node: Option<String>,
    /// `running`, `paused-io`, `off` and others; `unknown` where it cannot be seen from here.
    pub state: String,
    /// Why, where that is not plain.
    #[serde(default)]
    pub why: Option<String>,
}

/// The local side of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its number.
    pub volume: u16,
    /// The local replica; `None` unless up.
    pub disk: Option<DiskState>,
    /// Why the backing device could not be attached or failed, if it did.
    #[serde(default)]
    pub disk_error: Option<String>,
    /// As agreed, or as attached; `None` before either.
    pub size_bytes: Option<u64>,
    /// Path of the backing device on this node.
    pub disk_path: Option<String>,
    /// URI for clients; `None` unless up.
    pub export: Option<String>,
    /// URI for clients that only read; `None` unless up and configured.
    #[serde(default)]
    pub export_read_only: Option<String>,
    /// URI for clients of other machines; `None` unless up and served by TCP.
    #[serde(default)]
    pub export_tcp: Option<String>,
    /// Attached NBD clients.
    pub nbd_clients: u32,
    /// Counters since the daemon started; `None` unless attached.
    #[serde(default)]
    pub statistics: Option<VolumeStatistics>,
}

/// Counters of one volume; monotone while the daemon lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct VolumeStatistics {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub activity_log_writes: u64,
    pub bitmap_writes: u64,
    pub superblock_writes: u64,
    pub io_errors: u64,
}

/// The other data node as this one sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// The connection of this resource.
    pub connection: ConnectionState,
    /// Its role, as it said last; Unknown while unreachable.
    pub role: Role,
    /// Round trip of the last ping.
    pub rtt_seconds: Option<f64>,
    /// Since when nothing was heard of it; `None` while connected or never seen.
    #[serde(default)]
    pub last_seen_seconds: Option<f64>,
    /// Since when there is no session any more; `None` while connected and if there never was one.
    #[serde(default)]
    pub disconnected_seconds: Option<f64>,
    /// Resyncs are held by an order given there, as it said while connected.
    #[serde(default)]
    pub sync_paused: bool,
    /// Why it is StandAlone, if it is by a refusal.
    #[serde(default)]
    pub refused: Option<String>,
    /// It is refused because its data have another history: one of the two must be given up.
    #[serde(default)]
    pub diverged: bool,
    /// Ordered by number.
    pub volumes: Vec<PeerVolumeStatus>,
}

/// What a pair does with one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerVolumeStatus {
    /// Its number.
    pub volume: u16,
    /// The peer's replica; UpToDate only if the committed view names it in sync.
    pub disk: DiskState,
    /// What the pair does.
    pub replication: ReplicationState,
    /// What the peer's replica misses, as far as this side marked it; `None` if not attached.
    pub out_of_sync_bytes: Option<u64>,
    /// Acknowledged to guests but not yet on the peer (protocol A).
    pub lag_bytes: u64,
    /// Age of the oldest of these.
    pub lag_seconds: f64,
    /// The last resync that ended, or what the running one did so far.
    pub last_resync: LastResync,
    /// The running one.
    pub resync: Option<ResyncStatus>,
    /// The verify that this Primary runs.
    #[serde(default)]
    pub verify: Option<VerifyStatus>,
    /// The last one that ended here since the daemon started.
    #[serde(default)]
    pub last_verify: Option<LastVerify>,
}

/// A running verify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// How far it is.
    #[serde(flatten)]
    pub progress: ResyncStatus,
    /// What differs is written again, as it is on the Primary.
    pub repair: bool,
    /// Found to differ so far.
    pub differing_bytes: u64,
}

/// Value of [`LastVerify::why`] when everything was compared.
pub const VERIFY_DONE: &str = "done";

/// What a verify found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastVerify {
    /// What differed was to be written again.
    pub repair: bool,
    /// Compared.
    pub checked_bytes: u64,
    /// Of these different.
    pub differing_bytes: u64,
    /// Could not be read on one side.
    pub unreadable_bytes: u64,
    /// Of the different and unreadable ones, written again on both.
    pub repaired_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// When it ended, as [`super::rfc3339_seconds`].
    pub ended: Option<String>,
    /// [`VERIFY_DONE`], or why it ended early.
    pub why: Option<String>,
    /// Where the first differences are.
    pub ranges: Vec<ByteSpan>,
}

/// A piece of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteSpan {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
}

impl LastVerify {
    /// Found and not mended.
    #[must_use]
    pub fn unrepaired_bytes(&self) -> u64 {
        let found = self.differing_bytes.saturating_add(self.unreadable_bytes);
        found.saturating_sub(self.repaired_bytes)
    }
}

/// What a resync did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastResync {
    /// Sent and written.
    pub copied_bytes: u64,
    /// Looked at: copied or found equal.
    pub checked_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// When it ended, as [`super::rfc3339_seconds`]; `None` while it runs or if there was none.
    pub ended: Option<String>,
    /// Why it was needed or why it ended early.
    pub why: Option<String>,
}

/// A running resync.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// Done of this resync.
    pub done_bytes: u64,
    /// All of this resync.
    pub total_bytes: u64,
    /// 0 to 1, of this resync.
    pub done_ratio: f64,
    /// Mean of the last 30 s; `None` until known.
    pub rate_bytes_per_second: Option<u64>,
    /// `None` until known.
    pub eta_seconds: Option<u64>,
    /// The limit it keeps to; `None`: none.
    #[serde(default)]
    pub limit_bytes_per_second: Option<u64>,
    /// Why it does not go at full speed, as it is printed: `paused:user`,
    /// `paused:waiting-for vm-db`, `throttled:guest-latency 14ms`, `stalled 95s`.
    pub held: Option<String>,
}

impl ResyncStatus {
    /// Ratio and ETA of a resync that did `done` of `total` bytes at `rate` bytes a second. Never
    /// beyond 0 to 1, whatever the counters say; no rate, no ETA.
    #[must_use]
    pub fn new(done: u64, total: u64, rate: Option<u64>, held: Option<String>) -> Self {
        let done = done.min(total);
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let done_ratio = if total == 0 {
            1.0
        } else {
            done as f64 / total as f64
        };
        let moves = held
            .as_deref()
            .is_none_or(|why| why.starts_with("throttled"));
        let eta_seconds = rate
            .filter(|rate| *rate > 0 && moves)
            .map(|rate| (total - done) / rate);
        Self {
            done_bytes: done,
            total_bytes: total,
            done_ratio,
            rate_bytes_per_second: rate,
            eta_seconds,
            limit_bytes_per_second: None,
            held,
        }
    }

    /// The same under a limit.
    #[must_use]
    pub fn limited(mut self, bytes_per_second: Option<u64>) -> Self {
        self.limit_bytes_per_second = bytes_per_second;
        self
    }

    /// Whether an operator holds it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.held.as_deref() == Some(PAUSED_BY_USER)
    }
}

impl ResourceStatus {
    /// Disk state of volume `volume`; `None` unless up.
    #[must_use]
    pub fn disk(&self, volume: u16) -> Option<DiskState> {
        self.volumes.iter().find(|v| v.volume == volume)?.disk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_never_leaves_its_range() {
        let over = ResyncStatus::new(u64::MAX, 4096, Some(1), None);
        assert!((over.done_ratio - 1.0).abs() < f64::EPSILON);
        assert_eq!(over.eta_seconds, Some(0));
        assert!((ResyncStatus::new(0, 0, None, None).done_ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn without_a_rate_or_while_held_there_is_no_eta() {
        assert_eq!(ResyncStatus::new(0, 10, None, None).eta_seconds, None);
        assert_eq!(ResyncStatus::new(0, 10, Some(0), None).eta_seconds, None);
        assert_eq!(
            ResyncStatus::new(0, 10, Some(5), Some("paused:user".into())).eta_seconds,
            None
        );
        assert_eq!(ResyncStatus::new(0, 11, Some(5), None).eta_seconds, Some(2));
    }
}
