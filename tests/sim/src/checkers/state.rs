//! K6, K8: what nodes say of themselves, and where the pair must be once nothing is broken.

use replicator::engine::Snapshot;
use replicator::types::{ConnectionState, DiskState, NodeId, ReplicationState, Role, View};

use crate::disk::Device;

use super::{Checked, Violation, dirty};

/// A node that says UpToDate and knows the newest view must be in its `in_sync`.
///
/// # Errors
/// If it is not.
pub fn check_truth(node: NodeId, snapshot: &Snapshot, newest: Option<&View>) -> Checked {
    let Some(newest) = newest else {
        return Ok(());
    };
    let claims = snapshot.disk == DiskState::UpToDate && snapshot.view == newest.number;
    if claims && !newest.in_sync.contains(node) {
        return Err(Violation::new(
            "state truth",
            format!("{node:?} says UpToDate in {newest:?}"),
        ));
    }
    Ok(())
}

/// Why the pair is not where it must be; `None` when it is: one Primary, both UpToDate, connected,
/// nothing marked, nothing in flight.
#[must_use]
pub fn unsettled(snapshots: [&Snapshot; 2]) -> Option<String> {
    let primaries = snapshots
        .iter()
        .filter(|snapshot| snapshot.role == Role::Primary)
        .count();
    if primaries != 1 {
        return Some(format!("{primaries} Primaries"));
    }
    for (node, snapshot) in NodeId::ALL.into_iter().zip(snapshots) {
        let whole = snapshot.disk == DiskState::UpToDate
            && snapshot.connection == ConnectionState::Connected
            && snapshot.replication == ReplicationState::Established
            && snapshot.out_of_sync_blocks == 0
            && snapshot.inflight == 0;
        if !whole {
            return Some(format!("{node:?} is {snapshot:?}"));
        }
    }
    None
}

/// Both replicas read the same, where it counts.
///
/// # Errors
/// Names the first block that differs.
pub fn check_identical(a: &Device, b: &Device, counts: impl Fn(u64) -> bool) -> Checked {
    let mut pages: Vec<u64> = a.touched().chain(b.touched()).collect();
    pages.sort_unstable();
    match pages
        .into_iter()
        .filter(|page| counts(*page))
        .find(|page| !dirty::same(&a.current(*page), &b.current(*page)))
    {
        None => Ok(()),
        Some(page) => Err(Violation::new(
            "convergence",
            format!("block {page} differs between the settled replicas"),
        )),
    }
}
