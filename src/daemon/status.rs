//! The snapshot of `status` from what the controller, the shard and the configuration say. Pure.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use replicator::admin::{
    ArbitratorStatus, ByteSpan, ClusterStatus, GuestStatus, LastResync, LastVerify, PAUSED_BY_USER,
    PeerStatus, PeerVolumeStatus, ResourceStatus, ResyncStatus, SCHEMA, Status, VERIFY_DONE,
    VerifyStatus, VolumeStatistics, VolumeStatus, rfc3339_seconds,
};
use replicator::engine::handshake::Rule;
use replicator::engine::{Counters, HeldReason, Progress, Snapshot, VerifyEnd, VerifyReport};
use replicator::protocol::Refusal;
use replicator::types::{
    BLOCK_LEN, BlockCount, BlockIndex, BlockRange, ConnectionState, DiskState, Instant, NodeId,
    ReplicationState, ResyncRate, Role, View,
};

use super::api::{READ_ONLY_SUFFIX, ResourceSnapshot, Traffic, VolumeSnapshot};
use super::board::{BoardState, Presence, ResourceBoard};
use super::words;
use crate::config::{Config, GuestConfig, ResourceConfig, VolumeConfig};

/// What the states are about.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The configuration; its resources are the next.
    pub config: &'a Config,
    /// The resources.
    pub resources: &'a [Arc<ResourceConfig>],
    /// This node.
    pub node: NodeId,
    /// The run directory: where NBD sockets are.
    pub run_dir: &'a Path,
}

/// The same moment on two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For differences.
    pub now: Instant,
    /// For people: milliseconds since 1970-01-01 UTC.
    pub unix_millis: u64,
}

impl Moment {
    /// An earlier moment of this node's clock as people write it.
    fn date_of(self, earlier: Instant) -> String {
        let ago = u64::try_from(self.now.since(earlier).as_millis()).unwrap_or(u64::MAX);
        rfc3339_seconds(self.unix_millis.saturating_sub(ago))
    }
}

/// The status of `resource`, or of all: the arbitrator has none.
#[must_use]
pub fn assemble(
    place: Place<'_>,
    board: &BoardState,
    moment: Moment,
    resource: Option<&str>,
) -> Status {
    let nobody = ResourceBoard::default();
    let configured = if place.node.is_data() {
        place.resources
    } else {
        &[]
    };
    let all: Vec<_> = configured
        .iter()
        .map(|it| {
            resource_status(
                place,
                it,
                board,
                board.resources.get(&it.id()).unwrap_or(&nobody),
                moment,
            )
        })
        .collect();
    let mut status = Status {
        schema: SCHEMA.to_owned(),
        generated: rfc3339_seconds(moment.unix_millis),
        node: place.config.node_name(place.node).to_owned(),
        cluster: cluster_status(place, board),
        resources: all,
    }
    .concluded();
    // After the problems of all were counted.
    status
        .resources
        .retain(|it| resource.is_none_or(|name| name == it.name));
    status
}

fn cluster_status(place: Place<'_>, board: &BoardState) -> ClusterStatus {
    let config = place.config;
    let count = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    let arbitrator_seen = board.node.as_ref().is_some_and(|node| {
        place.node == NodeId::ARBITRATOR || node.voters[NodeId::ARBITRATOR.index()].seen
    });
    ClusterStatus {
        name: config.cluster.clone(),
        quorum: board.node.as_ref().is_some_and(|node| node.quorum),
        voters: count(config.nodes.len()),
        voters_seen: board
            .node
            .as_ref()
            .map_or(1, |node| count(node.voters_seen)),
        problems: 0,
        arbitrator: config.arbitrator().map(|node| ArbitratorStatus {
            node: node.name.clone(),
            seen: arbitrator_seen,
        }),
        store_error: board.store_error.clone(),
        standby: board.automation.standby,
        maintenance: board.automation.maintenance,
        insecure: config.is_insecure(),
        tls: Some(config.net.tls.word().to_owned()),
        tls_mismatch: board.tls_mismatch.clone(),
    }
}

fn resource_status(
    place: Place<'_>,
    resource: &ResourceConfig,
    board: &BoardState,
    known: &ResourceBoard,
    moment: Moment,
) -> ResourceStatus {
    let config = place.config;
    let up = known.presence != Presence::Away || known.controller.as_ref().is_some_and(|it| it.up);
    let engine = known.shard.as_ref().filter(|_| up).map(|it| &it.engine);
    let view = known.controller.as_ref().and_then(|it| it.view.as_ref());
    let suspended = engine.and_then(suspended);
    ResourceStatus {
        name: resource.name.clone(),
        up,
        // Between the start of the daemon and the shard's first word nothing is served.
        role: up.then(|| engine.map_or(Role::Secondary, |it| it.role)),
        protocol: config.protocol_of(resource),
        failover: resource.failover,
        io_backend: known
            .shard
            .as_ref()
            .and_then(|it| it.io_backend)
            .map(str::to_owned),
        view: view.map(|view| view.number.0),
        view_primary: view.map(|view| config.node_name(view.primary).to_owned()),
        in_sync: view
            .map(|view| in_sync_names(config, view))
            .unwrap_or_default(),
        held: view.is_some_and(|view| view.held),
        sync_paused: engine.is_some_and(|it| it.sync_paused),
        resync_limit_bytes_per_second: engine
            .and_then(|it| it.resync_rate.limit())
            .map(NonZeroU64::get),
        resync_unlimited: engine.is_some_and(|it| it.resync_rate == ResyncRate::Unlimited),
        lossy: view.is_some_and(|view| view.lossy),
        forced: view.is_some_and(|view| view.forced),
        prefer: resource
            .prefer
            .map(|node| config.node_name(node).to_owned()),
        may_promote: up && known.controller.as_ref().is_some_and(|it| it.may_promote),
        suspended: suspended.map(str::to_owned),
        guest: resource
            .guest
            .as_ref()
            .map(|guest| guest_status(place, guest, known, view)),
        volumes: resource
            .volumes
            .iter()
            .enumerate()
            .map(|volume| volume_status(place, resource, volume, known, up))
            .collect(),
        peers: vec![peer_status(place, resource, board, known, engine, moment)],
        // The node fills this in, which knows what was ordered by hand.
        placement: None,
        // `concluded` fills these.
        status: None,
        action: None,
        problem: None,
    }
}

/// This node knows of its own side only; the other one's is where the view says.
fn guest_status(
    place: Place<'_>,
    guest: &GuestConfig,
    known: &ResourceBoard,
    view: Option<&View>,
) -> GuestStatus {
    let shown = known.guest.shown.as_ref();
    let elsewhere = view.filter(|view| view.primary != place.node && !view.held);
    let (node, state, why) = match (shown, elsewhere) {
        (Some(shown), Some(_)) if shown.here => (place.node, shown.word, shown.why.clone()),
        (_, Some(view)) => (view.primary, "unknown", None),
        (Some(shown), None) => (place.node, shown.word, shown.why.clone()),
        (None, None) => (place.node, "unknown", None),
    };
    GuestStatus {
        domain: guest.domain.clone(),
        node: Some(place.config.node_name(node).to_owned()),
        state: state.to_owned(),
        why,
    }
}

fn in_sync_names(config: &Config, view: &View) -> Vec<String> {
    [NodeId::A, NodeId::B]
        .into_iter()
        .filter(|node| view.in_sync.contains(*node))
        .map(|node| config.node_name(node).to_owned())
        .collect()
}

/// Why guests are held, as the word after `suspended:`.
fn suspended(engine: &Snapshot) -> Option<&'static str> {
    if engine.role != Role::Primary {
        return None;
    }
    engine.held.map(|held| match held {
        HeldReason::Lease => "quorum",
        HeldReason::Peer => "peer",
        HeldReason::NoData => "no-data",
        HeldReason::Quiesce => "quiesce",
        HeldReason::Disk => "disk",
        HeldReason::User => "user",
    })
}

fn volume_status(
    place: Place<'_>,
    resource: &ResourceConfig,
    (nr, volume): (usize, &VolumeConfig),
    known: &ResourceBoard,
    up: bool,
) -> VolumeStatus {
    let shard = known.shard.as_ref().filter(|_| up);
    let view = known.controller.as_ref().and_then(|it| it.view.as_ref());
    let own = shard.and_then(|it| it.volumes.get(nr));
    let of_row = |total: u64| resource.row().blocks(nr, BlockCount(total)).count().0;
    let size_blocks = match own {
        Some(own) => Some(own.size_blocks),
        None => shard
            .and_then(|it| it.engine.size_blocks)
            .or(view.map(|view| view.size_blocks))
            .map(of_row),
    };
    let size_blocks = size_blocks.filter(|size| *size > 0);
    // Of several the one that broke is the one to look at.
    let failed = shard.and_then(|it| it.failed_place.filter(|_| !it.volumes.is_empty()));
    let export = export_name(resource, nr, volume);
    let clients = |it: &ResourceSnapshot| it.nbd_clients.iter().filter(|it| it.place == nr).count();
    let socket = nbd_socket(place.run_dir, &resource.name);
    VolumeStatus {
        volume: volume.id.0,
        disk: up.then(|| match shard {
            Some(_) if known.presence == Presence::Leaving => DiskState::Detaching,
            Some(shard) if known.retried && shard.engine.disk == DiskState::Diskless => {
                DiskState::Attaching
            }
            Some(shard) => match (shard.engine.disk, failed) {
                (DiskState::Diskless, Some(failed)) if failed == nr => DiskState::Failed,
                (DiskState::Failed, Some(failed)) if failed != nr => DiskState::Detaching,
                (disk, _) => disk,
            },
            None => DiskState::Diskless,
        }),
        size_bytes: size_blocks.map(|blocks| blocks.saturating_mul(BLOCK_LEN)),
        disk_path: Some(volume.replica(place.node).disk.display().to_string()),
        export: up.then(|| format!("nbd+unix:///{export}?socket={}", socket.display())),
        export_read_only: (up && resource.read_only_export).then(|| {
            format!(
                "nbd+unix:///{export}{READ_ONLY_SUFFIX}?socket={}",
                socket.display()
            )
        }),
        export_tcp: nbd_tcp_uri(place, &export).filter(|_| up),
        nbd_clients: shard.map_or(0, |it| u32::try_from(clients(it)).unwrap_or(u32::MAX)),
        disk_error: match known.presence {
            Presence::Leaving => Some(words::STILL_LEAVING.to_owned()),
            Presence::Running | Presence::Away => shard.and_then(disk_words),
        },
        statistics: shard
            .filter(|it| it.engine.disk != DiskState::Diskless)
            .map(|it| match it.volumes.get(nr) {
                Some(own) => statistics_of_one(it.engine.counters, nr, own.traffic),
                None => statistics(it.engine.counters),
            }),
    }
}

/// What a client asks for to get the volume.
fn export_name(resource: &ResourceConfig, nr: usize, volume: &VolumeConfig) -> String {
    match nr {
        0 => resource.name.clone(),
        _ => format!("{}/{}", resource.name, volume.id.0),
    }
}

/// How clients of other machines reach a resource, if they can.
fn nbd_tcp_uri(place: Place<'_>, resource: &str) -> Option<String> {
    let nbd = &place.config.nbd;
    let address = nbd.listen_of(place.node)?;
    let scheme = if nbd.tls_dir.is_some() { "nbds" } else { "nbd" };
    if address.ip().is_unspecified() {
        let name = place.config.node_name(place.node);
        return Some(format!("{scheme}://{name}:{}/{resource}", address.port()));
    }
    Some(format!("{scheme}://{address}/{resource}"))
}

/// Where the NBD socket of a resource is.
#[must_use]
pub fn nbd_socket(run_dir: &Path, resource: &str) -> std::path::PathBuf {
    nbd_directory(run_dir).join(format!("{resource}.sock"))
}

/// Where all of them are.
pub fn nbd_directory(run_dir: &Path) -> std::path::PathBuf {
    run_dir.join("nbd")
}

fn statistics(counters: Counters) -> VolumeStatistics {
    VolumeStatistics {
        reads: counters.reads,
        read_bytes: counters.read_bytes,
        writes: counters.writes,
        written_bytes: counters.written_bytes,
        flushes: counters.flushes,
        activity_log_writes: counters.activity_log_writes,
        bitmap_writes: counters.bitmap_writes,
        superblock_writes: counters.superblock_writes,
        io_errors: counters.io_errors,
    }
}

/// Of one of several volumes. What is counted of a replica as a whole is said of its first.
fn statistics_of_one(counters: Counters, nr: usize, traffic: Traffic) -> VolumeStatistics {
    let Traffic {
        reads,
        read_bytes,
        writes,
        written_bytes,
        flushes,
    } = traffic;
    let of_replica = match nr {
        0 => statistics(counters),
        _ => VolumeStatistics::default(),
    };
    VolumeStatistics {
        reads,
        read_bytes,
        writes,
        written_bytes,
        flushes,
        ..of_replica
    }
}

fn peer_status(
    place: Place<'_>,
    resource: &ResourceConfig,
    board: &BoardState,
    known: &ResourceBoard,
    engine: Option<&Snapshot>,
    moment: Moment,
) -> PeerStatus {
    let peer = place.node.peer();
    let connection = engine.map_or(ConnectionState::StandAlone, |it| it.connection);
    let voter = board.node.as_ref().map(|node| node.voters[peer.index()]);
    PeerStatus {
        node: place.config.node_name(peer).to_owned(),
        connection,
        role: engine.map_or(Role::Unknown, |it| it.peer_role),
        rtt_seconds: engine.and_then(|it| it.rtt).map(|rtt| rtt.as_secs_f64()),
        last_seen_seconds: voter
            .and_then(|voter| voter.last_seen)
            .filter(|_| connection != ConnectionState::Connected)
            .map(|ago| ago.as_secs_f64()),
        disconnected_seconds: engine
            .and_then(|it| it.disconnected_at)
            .map(|at| moment.now.since(at).as_secs_f64()),
        sync_paused: engine.is_some_and(|it| it.peer_sync_paused),
        refused: engine.and_then(|it| it.refused).map(refusal_words),
        diverged: engine.is_some_and(|it| it.refused == Some(Refusal::Diverged)),
        volumes: resource
            .volumes
            .iter()
            .enumerate()
            .map(|volume| peer_volume_status(volume, known, engine, moment))
            .collect(),
    }
}

fn peer_volume_status(
    (nr, volume): (usize, &VolumeConfig),
    known: &ResourceBoard,
    engine: Option<&Snapshot>,
    moment: Moment,
) -> PeerVolumeStatus {
    let volumes = known.shard.as_ref().map_or(&[][..], |it| &it.volumes);
    let own = volumes.get(nr).filter(|_| engine.is_some());
    // Resyncs and verifies are the resource's, and told once.
    let resync = engine.and_then(|it| it.resync);
    let running = resync.filter(|it| it.ended.is_none() && nr == resynced_now(volumes));
    let verify = engine.and_then(|it| it.verify.as_ref());
    let differs = |it: &VerifyReport| !own_ranges(it, own).is_empty();
    let verify = verify.filter(|it| nr == 0 || differs(it));
    // What differed then was copied anew since.
    let copied_since = resync.is_some_and(|it| {
        let after = verify.and_then(|verify| verify.end).map(|(at, _)| at);
        it.full && it.ended.is_some() && after.is_some_and(|at| it.began >= at)
    });
    PeerVolumeStatus {
        volume: volume.id.0,
        disk: engine.map_or(DiskState::DUnknown, |it| it.peer_disk),
        replication: engine.map_or(ReplicationState::Off, |it| it.replication),
        out_of_sync_bytes: engine
            .filter(|it| it.disk != DiskState::Diskless)
            .map(|it| bytes(own.map_or(it.out_of_sync_blocks, |own| own.marked_blocks))),
        // Of one stream, whatever its volumes.
        lag_bytes: engine.filter(|_| nr == 0).map_or(0, |it| it.lag_bytes),
        lag_seconds: engine
            .filter(|_| nr == 0)
            .and_then(|it| it.lag_since)
            .map_or(0.0, |since| moment.now.since(since).as_secs_f64()),
        last_resync: resync
            .filter(|_| nr == 0)
            .map(|it| last_resync(&it, moment))
            .unwrap_or_default(),
        resync: running.map(|it| {
            let rate = known.rate.blocks_per_second().map(bytes);
            let held = engine.and_then(held_words);
            ResyncStatus::new(bytes(it.done_blocks), bytes(it.total_blocks), rate, held)
                .limited(engine.and_then(|it| it.resync_pace))
        }),
        verify: verify
            .filter(|it| it.end.is_none() && nr == 0)
            .map(|it| verify_status(it, known, engine)),
        last_verify: verify
            .and_then(|it| {
                let all = last_verify(it, it.end?, moment);
                Some(match own {
                    None => all,
                    Some(_) => last_verify_of_one(all, it, nr, own),
                })
            })
            .filter(|_| !copied_since),
    }
}

/// Place of the volume that the running resync is at: it goes from the first block to the last.
fn resynced_now(volumes: &[VolumeSnapshot]) -> usize {
    let marked = volumes.iter().position(|volume| volume.marked_blocks > 0);
    marked.unwrap_or(volumes.len().saturating_sub(1))
}

/// The first differences that a verify found on one of several volumes, from that volume's start on.
fn own_ranges(report: &VerifyReport, own: Option<&VolumeSnapshot>) -> Vec<BlockRange> {
    let Some(own) = own else {
        return report.ranges.clone();
    };
    let (start, end) = (own.start.0, own.start.0 + own.size_blocks);
    let of_volume = |range: &BlockRange| {
        let (from, to) = (range.start().0.max(start), range.end().0.min(end));
        (from < to).then(|| BlockRange::between(BlockIndex(from - start), BlockIndex(to - start)))
    };
    report.ranges.iter().filter_map(of_volume).collect()
}

/// The sums stay with the first volume, the places go to their own.
fn last_verify_of_one(
    all: LastVerify,
    report: &VerifyReport,
    nr: usize,
    own: Option<&VolumeSnapshot>,
) -> LastVerify {
    let ranges = own_ranges(report, own).iter().map(span).collect();
    let sums = match nr {
        0 => all,
        _ => LastVerify {
            checked_bytes: 0,
            differing_bytes: 0,
            unreadable_bytes: 0,
            repaired_bytes: 0,
            ..all
        },
    };
    LastVerify { ranges, ..sums }
}

fn span(range: &BlockRange) -> ByteSpan {
    ByteSpan {
        offset_bytes: range.offset().0,
        len_bytes: range.len().0,
    }
}

/// Why the running resync does not go at full speed.
fn held_words(engine: &Snapshot) -> Option<String> {
    let paused = matches!(
        engine.replication,
        ReplicationState::PausedSyncS | ReplicationState::PausedSyncT
    );
    if paused {
        return Some(PAUSED_BY_USER.to_owned());
    }
    throttled_words(engine)
}

/// Guests come first.
fn throttled_words(engine: &Snapshot) -> Option<String> {
    let latency = engine.throttled?.as_secs_f64() * 1000.0;
    let digits = usize::from(latency < 10.0);
    Some(format!("throttled:guest-latency {latency:.digits$}ms"))
}

fn last_resync(progress: &Progress, moment: Moment) -> LastResync {
    let end = progress.ended.unwrap_or(moment.now);
    LastResync {
        copied_bytes: bytes(progress.copied_blocks),
        checked_bytes: bytes(progress.copied_blocks.saturating_add(progress.same_blocks)),
        seconds: end.since(progress.began).as_secs_f64(),
        ended: progress.ended.map(|at| moment.date_of(at)),
        why: progress.rule.and_then(why_words).map(str::to_owned),
    }
}

fn verify_status(
    report: &VerifyReport,
    known: &ResourceBoard,
    engine: Option<&Snapshot>,
) -> VerifyStatus {
    let rate = known.rate.blocks_per_second().map(bytes);
    let (done, total) = (bytes(report.checked_blocks), bytes(report.total_blocks));
    let limit = engine.and_then(|it| it.resync_rate.limit());
    VerifyStatus {
        progress: ResyncStatus::new(done, total, rate, engine.and_then(throttled_words))
            .limited(limit.map(NonZeroU64::get)),
        repair: report.repair,
        differing_bytes: bytes(report.differing_blocks),
    }
}

fn last_verify(report: &VerifyReport, end: (Instant, VerifyEnd), moment: Moment) -> LastVerify {
    let (at, why) = end;
    LastVerify {
        repair: report.repair,
        checked_bytes: bytes(report.checked_blocks),
        differing_bytes: bytes(report.differing_blocks),
        unreadable_bytes: bytes(report.unreadable_blocks),
        repaired_bytes: bytes(report.repaired_blocks),
        seconds: at.since(report.began).as_secs_f64(),
        ended: Some(moment.date_of(at)),
        why: Some(
            match why {
                VerifyEnd::Done => VERIFY_DONE,
                VerifyEnd::Stopped => "stopped by order",
                VerifyEnd::SessionLost => "the connection ended",
                VerifyEnd::RoleChanged => "the node is not Primary any more",
                VerifyEnd::DiskFailed => "a disk failed",
            }
            .to_owned(),
        ),
        ranges: report.ranges.iter().map(span).collect(),
    }
}

/// Why a resync was needed.
fn why_words(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::BothInSyncMarked => "both in sync, and blocks may differ after a crash or a cut",
        Rule::BitmapBaseMatches => "the peer missed writes",
        Rule::PeerBehind => "guests know of writes that the peer may lack (protocol A)",
        Rule::BlankZeroes => "a new replica of zeroes",
        Rule::BitmapBaseUnknown => "what the replica holds is not known",
        Rule::NoLineage => "its data were given up (invalidate)",
        _ => return None,
    })
}

fn bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_LEN)
}

/// Why a session was refused, in words.
#[must_use]
pub fn refusal_words(refusal: Refusal) -> String {
    match refusal {
        Refusal::Foreign => {
            "the peer's replica belongs to another resource, or to one with other volumes"
        }
        Refusal::Diverged => "the two replicas have different histories",
        Refusal::SizeMismatch => "the two replicas have different sizes",
        Refusal::BothActive => "both nodes claimed to be Primary",
        Refusal::Sealed => "one side has been superseded",
        Refusal::UnknownReplica => "the peer's replica is not the one the view recorded",
        _ => "the handshake refused it",
    }
    .to_owned()
}

/// Why the disk could not be attached, or cannot be used, in words.
fn disk_words(shard: &ResourceSnapshot) -> Option<String> {
    if shard.engine.held == Some(HeldReason::Disk) {
        return Some("the disk does not answer".to_owned());
    }
    shard.attach_error.as_ref().map(words::attach_failure_words)
}

#[cfg(test)]
pub(super) mod tests;
