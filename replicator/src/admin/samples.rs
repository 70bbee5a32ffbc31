//! Status documents for tests of this crate.

use super::status::{
    ArbitratorStatus, ClusterStatus, LastResync, PeerStatus, PeerVolumeStatus, ResourceStatus,
    SCHEMA, Status, VolumeStatus,
};
use crate::types::{
    ConnectionState, DiskState, Failover, ReplicationProtocol, ReplicationState, Role,
};

/// Primary here, everything well.
pub(super) fn healthy() -> Status {
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
        resources: vec![ResourceStatus {
            name: "vm-web".to_owned(),
            up: true,
            role: Some(Role::Primary),
            protocol: ReplicationProtocol::C,
            failover: Failover::Auto,
            io_backend: Some("io_uring".to_owned()),
            view: Some(7),
            view_primary: Some("kvm-a".to_owned()),
            in_sync: vec!["kvm-a".to_owned(), "kvm-b".to_owned()],
            held: false,
            sync_paused: false,
            resync_limit_bytes_per_second: None,
            resync_unlimited: false,
            lossy: false,
            forced: false,
            prefer: Some("kvm-a".to_owned()),
            may_promote: false,
            suspended: None,
            guest: None,
            volumes: vec![VolumeStatus {
                volume: 0,
                disk: Some(DiskState::UpToDate),
                disk_error: None,
                size_bytes: Some(40 << 30),
                disk_path: Some("/dev/vg0/vm-web".to_owned()),
                export: Some("nbd+unix:///vm-web?socket=/run/twinblk/nbd/vm-web.sock".to_owned()),
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
        }],
    }
}
