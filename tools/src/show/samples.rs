//! Status documents for tests: the documented samples.

use replicator::admin::{
    ArbitratorStatus, ClusterStatus, GuestStatus, LastResync, PeerStatus, PeerVolumeStatus,
    ResourceStatus, ResyncStatus, SCHEMA, Status, VolumeStatus,
};
use replicator::types::{
    ConnectionState, DiskState, Failover, ReplicationProtocol, ReplicationState, Role,
};

pub(crate) fn healthy() -> Status {
    let mut db = resource("vm-db", Role::Secondary, "kvm-b");
    db.peers[0].role = Role::Primary;
    Status {
        schema: SCHEMA.to_owned(),
        generated: "2026-11-21T20:04:11Z".to_owned(),
        node: "kvm-a".to_owned(),
        cluster: ClusterStatus {
            name: "lab".to_owned(),
            quorum: true,
            voters: 3,
            voters_seen: 3,
            problems: 0,
            arbitrator: Some(ArbitratorStatus {
                node: "arb".to_owned(),
                seen: true,
            }),
            store_error: None,
            standby: false,
            maintenance: false,
            insecure: false,
            tls: Some("required".to_owned()),
            tls_mismatch: None,
        },
        resources: vec![db, resource("vm-web", Role::Primary, "kvm-a")],
    }
    .concluded()
}

/// vm-web alone, its peer a resync target.
pub(crate) fn resyncing() -> Status {
    let mut status = healthy();
    status.resources.remove(0);
    let volume = &mut status.resources[0].peers[0].volumes[0];
    volume.disk = DiskState::Inconsistent;
    volume.replication = ReplicationState::SyncSource;
    volume.out_of_sync_bytes = Some(26_972_389_376);
    let resync = ResyncStatus::new(15_977_152_512, 42_949_541_888, Some(222_298_112), None);
    volume.resync = Some(resync);
    status.concluded()
}

/// vm-web alone, cut off from everybody.
pub(crate) fn quorum_lost() -> Status {
    let mut status = healthy();
    status.resources.remove(0);
    status.cluster.quorum = false;
    status.cluster.voters_seen = 1;
    if let Some(arbitrator) = &mut status.cluster.arbitrator {
        arbitrator.seen = false;
    }
    let resource = &mut status.resources[0];
    resource.suspended = Some("quorum".to_owned());
    if let Some(guest) = &mut resource.guest {
        guest.state = "paused-io".to_owned();
    }
    let peer = &mut resource.peers[0];
    peer.connection = ConnectionState::Connecting;
    peer.last_seen_seconds = Some(48.2);
    peer.role = Role::Unknown;
    peer.volumes[0].disk = DiskState::DUnknown;
    peer.volumes[0].replication = ReplicationState::Off;
    status.concluded()
}

/// Configured, not up.
pub(crate) fn down() -> ResourceStatus {
    let mut down = resource("vm-web", Role::Secondary, "kvm-a");
    down.up = false;
    down.role = None;
    down.volumes[0].disk = None;
    down.peers[0].connection = ConnectionState::StandAlone;
    down.peers[0].volumes[0].disk = DiskState::DUnknown;
    down
}

fn resource(name: &str, role: Role, prefer: &str) -> ResourceStatus {
    ResourceStatus {
        name: name.to_owned(),
        up: true,
        role: Some(role),
        protocol: ReplicationProtocol::C,
        failover: Failover::Auto,
        io_backend: Some("io_uring".to_owned()),
        view: Some(7),
        view_primary: Some(prefer.to_owned()),
        in_sync: vec!["kvm-a".to_owned(), "kvm-b".to_owned()],
        held: false,
        sync_paused: false,
        resync_limit_bytes_per_second: None,
        resync_unlimited: false,
        lossy: false,
        forced: false,
        prefer: Some(prefer.to_owned()),
        placement: None,
        may_promote: false,
        suspended: None,
        guest: Some(GuestStatus {
            domain: name.trim_start_matches("vm-").to_owned(),
            node: Some(prefer.to_owned()),
            state: "running".to_owned(),
            why: None,
        }),
        volumes: vec![VolumeStatus {
            volume: 0,
            disk: Some(DiskState::UpToDate),
            disk_error: None,
            size_bytes: Some(40 << 30),
            disk_path: Some(format!("/dev/vg0/{name}")),
            export: Some(format!(
                "nbd+unix:///{name}?socket=/run/twinblk/nbd/{name}.sock"
            )),
            export_read_only: None,
            export_tcp: None,
            nbd_clients: 1,
            statistics: None,
        }],
        peers: vec![PeerStatus {
            node: "kvm-b".to_owned(),
            connection: ConnectionState::Connected,
            role: Role::Secondary,
            rtt_seconds: Some(0.000_041),
            last_seen_seconds: None,
            disconnected_seconds: None,
            sync_paused: false,
            refused: None,
            diverged: false,
            volumes: vec![PeerVolumeStatus {
                volume: 0,
                disk: DiskState::UpToDate,
                replication: ReplicationState::Established,
                out_of_sync_bytes: Some(0),
                lag_bytes: 0,
                lag_seconds: 0.0,
                verify: None,
                last_verify: None,
                last_resync: LastResync::default(),
                resync: None,
            }],
        }],
        status: None,
        action: None,
        problem: None,
    }
}
