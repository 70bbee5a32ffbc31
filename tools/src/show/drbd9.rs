//! The shape of `drbdsetup status --json`, so that existing checks keep working: sizes in KiB,
//! only what is known, resources that are not up left out.

use replicator::admin::{
    PeerStatus, PeerVolumeStatus, ResourceStatus, ResyncStatus, Status, VolumeStatus,
};
use replicator::types::{DiskState, Role};
use serde_json::{Value, json};

/// The whole document.
#[must_use]
pub fn drbd9(status: &Status) -> Value {
    status
        .resources
        .iter()
        .filter(|resource| resource.up)
        .map(resource)
        .collect()
}

fn resource(resource: &ResourceStatus) -> Value {
    let has = |reason: &str| resource.suspended.as_deref() == Some(reason);
    json!({
        "name": resource.name,
        "role": resource.role.unwrap_or(Role::Unknown),
        "suspended": resource.suspended.is_some(),
        "suspended-user": has("user"),
        "suspended-no-data": has("no-data"),
        "suspended-quorum": has("quorum"),
        "devices": resource.volumes.iter().map(|volume| device(volume, !has("quorum"))).collect::<Vec<_>>(),
        "connections": resource.peers.iter().map(|peer| connection(resource, peer)).collect::<Vec<_>>(),
    })
}

fn device(volume: &VolumeStatus, quorum: bool) -> Value {
    let counters = volume.statistics.unwrap_or_default();
    json!({
        "volume": volume.volume,
        "disk-state": volume.disk.unwrap_or(DiskState::Diskless),
        "open": volume.nbd_clients > 0,
        "quorum": quorum,
        "size": kib(volume.size_bytes.unwrap_or(0)),
        "read": kib(counters.read_bytes),
        "written": kib(counters.written_bytes),
        "al-writes": counters.activity_log_writes,
        "bm-writes": counters.bitmap_writes,
    })
}

fn connection(resource: &ResourceStatus, peer: &PeerStatus) -> Value {
    let devices = peer
        .volumes
        .iter()
        .map(|volume| peer_device(resource, volume));
    json!({
        "name": peer.node,
        "connection-state": peer.connection,
        "peer-role": peer.role,
        "peer_devices": devices.collect::<Vec<_>>(),
    })
}

fn peer_device(resource: &ResourceStatus, volume: &PeerVolumeStatus) -> Value {
    let out_of_sync = volume.out_of_sync_bytes.unwrap_or(0);
    let own = resource
        .volumes
        .iter()
        .find(|own| own.volume == volume.volume);
    let size = own.and_then(|own| own.size_bytes).unwrap_or(0);
    let paused = volume.resync.as_ref().is_some_and(ResyncStatus::is_paused);
    json!({
        "volume": volume.volume,
        "replication-state": volume.replication,
        "peer-disk-state": volume.disk,
        "out-of-sync": kib(out_of_sync),
        "percent-in-sync": percent_in_sync(out_of_sync, size),
        "resync-suspended": if paused { "user" } else { "no" },
        "has-sync-details": volume.resync.is_some(),
    })
}

fn kib(bytes: u64) -> u64 {
    bytes / 1024
}

/// Two digits, rounded down, so that 100.0 means all of it.
#[allow(clippy::cast_precision_loss, reason = "a percentage")]
fn percent_in_sync(out_of_sync: u64, size: u64) -> f64 {
    if size == 0 {
        return if out_of_sync == 0 { 100.0 } else { 0.0 };
    }
    let in_sync = size.saturating_sub(out_of_sync);
    (in_sync as f64 / size as f64 * 10_000.0).floor() / 100.0
}

#[cfg(test)]
mod tests {
    use super::super::samples::{down, healthy, resyncing};
    use super::*;

    #[test]
    fn checks_for_drbd_find_their_keys() {
        let document = drbd9(&resyncing());
        let device = &document[0]["connections"][0]["peer_devices"][0];
        assert_eq!(document[0]["devices"][0]["disk-state"], "UpToDate");
        assert_eq!(
            document[0]["connections"][0]["connection-state"],
            "Connected"
        );
        assert_eq!(device["replication-state"], "SyncSource");
        assert_eq!(device["peer-disk-state"], "Inconsistent");
        assert_eq!(device["out-of-sync"], 26_972_389_376_u64 / 1024);
        assert_eq!(device["percent-in-sync"], 37.2);
    }

    #[test]
    fn all_in_sync_is_exactly_100_and_what_is_down_is_absent() {
        let mut status = healthy();
        status.resources[0] = down();
        let document = drbd9(&status);
        assert_eq!(document.as_array().unwrap().len(), 1);
        assert_eq!(
            document[0]["connections"][0]["peer_devices"][0]["percent-in-sync"],
            100.0
        );
    }
}
