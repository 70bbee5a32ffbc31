//! What is wrong, in one plain sentence, and what to do about it: the last lines of `status`.

use super::catalogue::ErrorId;
use super::status::{
    ClusterStatus, PeerStatus, PeerVolumeStatus, ResourceStatus, Status, VolumeStatus,
};
use crate::types::{ConnectionState, DiskState, Failover, ReplicationProtocol, Role};

/// How long a session may be away before that is a problem: each change of roles makes a new one,
/// within a few round trips and at worst after one refused dial.
const RECONNECT_SECONDS: f64 = 1.0;

/// What to say about a resource that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
struct Advice {
    /// `None`: worth a sentence, but not a problem.
    problem: Option<ErrorId>,
    status: String,
    action: Option<String>,
}

impl Status {
    /// Fills `status`, `action` and `problem` of each resource and the count of problems from the
    /// rest of the document. The daemon calls it last.
    #[must_use]
    pub fn concluded(mut self) -> Self {
        let mut problems = 0;
        for resource in &mut self.resources {
            let advice = advise(&self.node, &self.cluster, resource);
            let problem = advice.as_ref().and_then(|advice| advice.problem);
            problems += u32::from(problem.is_some());
            resource.problem = problem.map(|id| id.code().to_owned());
            (resource.status, resource.action) =
                advice.map_or((None, None), |advice| (Some(advice.status), advice.action));
        }
        problems += u32::from(self.cluster.arbitrator_lost());
        problems += u32::from(self.cluster.store_error.is_some());
        problems += u32::from(self.cluster.standby) + u32::from(self.cluster.maintenance);
        problems += u32::from(self.cluster.tls_mismatch.is_some());
        self.cluster.problems = problems;
        self
    }
}

impl ClusterStatus {
    /// Whether an arbitrator is configured and not heard of.
    #[must_use]
    pub fn arbitrator_lost(&self) -> bool {
        self.arbitrator
            .as_ref()
            .is_some_and(|arbitrator| !arbitrator.seen)
    }
}

/// The first of these that holds: guests wait, no data here, one copy, no peer, by hand, new, two
/// copies that differ.
fn advise(node: &str, cluster: &ClusterStatus, resource: &ResourceStatus) -> Option<Advice> {
    if !resource.up {
        return None;
    }
    guests_wait(node, cluster, resource)
        .or_else(|| local_disk_away(node, resource))
        .or_else(|| guest_trouble(node, resource))
        .or_else(|| local_disk_silent(node, resource))
        .or_else(|| sync_paused(resource))
        .or_else(|| resyncing(resource))
        .or_else(|| awaits_order(node, resource))
        .or_else(|| forced(resource))
        .or_else(|| {
            resource
                .peers
                .iter()
                .find_map(|peer| peer_away(resource, peer))
        })
        .or_else(|| never_founded(resource))
        .or_else(|| {
            resource
                .peers
                .iter()
                .find_map(|peer| peer_disk_away(resource, peer))
        })
        .or_else(|| local_disk_behind(node, resource))
        .or_else(|| held_by_hand(resource))
        .or_else(|| verify_found(resource))
}

fn guests_wait(node: &str, cluster: &ClusterStatus, resource: &ResourceStatus) -> Option<Advice> {
    let peers = names(&resource.peers);
    let (status, action) = match resource.suspended.as_deref()? {
        "quorum" => {
            let (seen, voters) = (cluster.voters_seen, cluster.voters);
            let arbitrator = match &cluster.arbitrator {
                Some(arbitrator) => format!(" or {}", arbitrator.node),
                None => String::new(),
            };
            (
                format!(
                    "{node} sees {seen} of {voters} voters and holds all reads and writes; \
                     {peers} may have taken over"
                ),
                format!(
                    "restore the link to {peers}{arbitrator}; I/O then resumes, or, if {peers} \
                     took over, {node} rejoins as Secondary by itself"
                ),
            )
        }
        "no-data" => (
            "no up-to-date copy is reachable, so all reads and writes are held".to_owned(),
            format!(
                "mend the disk and run `twinadm attach {}`, or bring {peers} back",
                resource.name
            ),
        ),
        "disk" => (
            format!("the disk of {node} does not answer and has the only copy: requests wait"),
            "mend the disk; what waits then goes on, nothing is lost by waiting".to_owned(),
        ),
        "user" => {
            return Some(Advice {
                problem: Some(ErrorId::WritesSuspended),
                status: "an operator suspended writes: guests wait, reads go on".to_owned(),
                action: Some(format!(
                    "twinadm resume-io {}, once the snapshots are taken",
                    resource.name
                )),
            });
        }
        "quiesce" => (
            "reads and writes are held while the role changes".to_owned(),
            String::new(),
        ),
        _ => (
            format!("reads and writes are held until {peers} answers or is left behind"),
            match cluster.quorum {
                true => String::new(),
                false => format!(
                    "too few voters are seen to leave {peers} behind: bring it or another voter back; \
                     twinadm why {} says what else helps",
                    resource.name
                ),
            },
        ),
    };
    let action = (!action.is_empty()).then_some(action);
    Some(Advice {
        problem: Some(ErrorId::Held),
        status,
        action,
    })
}

/// The volume is served, and its guest is not there for people.
fn guest_trouble(node: &str, resource: &ResourceStatus) -> Option<Advice> {
    let guest = resource.guest.as_ref()?;
    let domain = &guest.domain;
    let action = match guest.state.as_str() {
        "blocked" => format!(
            "mend it, then `virsh start {domain}` on {node}: from then on it is looked after again"
        ),
        "waiting-to-retry" => "none; it is tried again by itself".to_owned(),
        "running-unguarded" => {
            format!("see the log of {node}; until then {domain} outlives a daemon that hangs")
        }
        "stop-failed" => format!("shut {domain} down from within, or give the order with --force"),
        _ => return None,
    };
    let why = guest.why.as_deref().unwrap_or("the log says why");
    Some(Advice {
        problem: Some(ErrorId::GuestTrouble),
        status: format!("the guest {domain} on {node} is {}: {why}", guest.state),
        action: Some(action),
    })
}

fn local_disk_away(node: &str, resource: &ResourceStatus) -> Option<Advice> {
    let away = |volume: &&VolumeStatus| match volume.disk {
        None | Some(DiskState::Diskless | DiskState::Detaching | DiskState::Failed) => true,
        // It tries again and again.
        Some(DiskState::Attaching) => volume.disk_error.is_some(),
        Some(_) => false,
    };
    // One that failed takes the others of its replica with it.
    let failed = |volume: &&VolumeStatus| volume.disk == Some(DiskState::Failed);
    let volumes = || resource.volumes.iter();
    let volume = volumes().find(failed).or_else(|| volumes().find(away))?;
    let disk = volume.disk.unwrap_or(DiskState::Diskless);
    let several = resource.volumes.len() > 1 && disk == DiskState::Failed;
    let path = volume.disk_path.as_deref().filter(|_| several);
    let why = match (&volume.disk_error, path) {
        (Some(why), _) => format!(": {why}"),
        (None, Some(path)) => format!(" (volume {}, {path})", volume.volume),
        (None, None) => ", so there is one copy at most".to_owned(),
    };
    let name = &resource.name;
    // What guests see is elsewhere now; the disk is attached where they are not served.
    let first = if disk == DiskState::Failed && resource.role == Some(Role::Primary) {
        let peers = names(&resource.peers);
        format!("twinadm move {name} {peers}, and here: ")
    } else {
        String::new()
    };
    let action = match disk {
        DiskState::Attaching => "mend the disk; it is then attached by itself".to_owned(),
        _ => format!("mend the disk, then: {first}twinadm attach {name}"),
    };
    Some(Advice {
        problem: Some(ErrorId::LocalDiskAway),
        status: format!("the replica on {node} is {disk}{why}"),
        action: Some(action),
    })
}

/// Attached, and something is wrong with it all the same.
fn local_disk_silent(node: &str, resource: &ResourceStatus) -> Option<Advice> {
    let attached = |disk| {
        matches!(
            disk,
            DiskState::UpToDate
                | DiskState::Consistent
                | DiskState::Outdated
                | DiskState::Inconsistent
        )
    };
    let why = resource
        .volumes
        .iter()
        .filter(|volume| volume.disk.is_some_and(attached))
        .find_map(|volume| volume.disk_error.as_ref())?;
    Some(Advice {
        problem: Some(ErrorId::LocalDiskAway),
        status: format!("the replica on {node} cannot be used: {why}"),
        action: Some("mend the disk; the replica then goes on by itself".to_owned()),
    })
}

/// An operator holds the resync: it needs the same words where it was said.
fn sync_paused(resource: &ResourceStatus) -> Option<Advice> {
    let paused =
        |volume: &PeerVolumeStatus| volume.resync.as_ref().is_some_and(|it| it.is_paused());
    if !volumes(resource).any(paused) {
        return None;
    }
    let name = &resource.name;
    let here = resource
        .sync_paused
        .then(|| format!("twinadm resume-sync {name}"));
    let there = resource.peers.iter().filter(|peer| peer.sync_paused);
    let there = there.map(|peer| format!("twinadm resume-sync {name} --node {}", peer.node));
    let orders: Vec<String> = here.into_iter().chain(there).collect();
    Some(Advice {
        problem: Some(ErrorId::SyncPaused),
        status: "one up-to-date copy, and the resync is held by order".to_owned(),
        action: Some(orders.join(" and ")),
    })
}

/// The copies differ, and nobody knows which one is good: the view counts on both.
fn verify_found(resource: &ResourceStatus) -> Option<Advice> {
    let found = |volume: &PeerVolumeStatus| {
        let last = volume.last_verify.as_ref();
        last.is_some_and(|it| it.unrepaired_bytes() > 0)
    };
    // Elsewhere it is what was found before somebody else became Primary.
    let serves = resource.role == Some(Role::Primary);
    let name = &resource.name;
    (serves && volumes(resource).any(found)).then(|| Advice {
        problem: Some(ErrorId::VerifyFound),
        status: "the last verify found blocks that differ between the two replicas".to_owned(),
        action: Some(format!(
            "find out which copy is good; if it is the Primary's: twinadm verify {name} --repair"
        )),
    })
}

fn resyncing(resource: &ResourceStatus) -> Option<Advice> {
    volumes(resource)
        .any(|volume| volume.resync.is_some())
        .then(|| Advice {
            problem: Some(ErrorId::Resyncing),
            status: "one up-to-date copy until the resync ends".to_owned(),
            action: None,
        })
}

/// It was connected a moment ago and is expected back: worth no word yet.
fn reconnects(peer: &PeerStatus) -> bool {
    let for_a_moment = |seconds| seconds < RECONNECT_SECONDS;
    peer.connection == ConnectionState::Connecting
        && peer.refused.is_none()
        && peer.disconnected_seconds.is_some_and(for_a_moment)
}

/// The Primary is away, and nobody takes over without a person.
fn awaits_order(node: &str, resource: &ResourceStatus) -> Option<Advice> {
    let could = resource.in_sync.iter().any(|name| name == node);
    let manual = resource.failover == Failover::Manual && !resource.held && could;
    let primary = resource.view_primary.as_deref()?;
    let peer = resource.peers.iter().find(|peer| peer.node == primary)?;
    if !manual || peer.connection != ConnectionState::Connecting || reconnects(peer) {
        return None;
    }
    let lost = match resource.protocol {
        ReplicationProtocol::A => "; what it had not sent yet is lost then",
        ReplicationProtocol::B | ReplicationProtocol::C => "",
    };
    Some(Advice {
        problem: Some(ErrorId::PeerAway),
        status: format!("{primary} is away, and failover is manual: nobody serves"),
        action: Some(format!(
            "bring {primary} back; or here: twinadm primary {}{lost}",
            resource.name
        )),
    })
}

/// Served by force, and nobody has seen yet what the other side holds.
fn forced(resource: &ResourceStatus) -> Option<Advice> {
    let serves = resource.role == Some(Role::Primary);
    let unseen =
        |peer: &&PeerStatus| !peer.diverged && peer.connection != ConnectionState::Connected;
    let peer = resource.peers.iter().find(unseen)?;
    (serves && resource.forced).then(|| Advice {
        problem: Some(ErrorId::Forced),
        status: format!(
            "made Primary by force: what {} holds of before may not be here, and is kept there",
            peer.node
        ),
        action: Some(format!(
            "bring {} back, then: twinadm split-brain show {}",
            peer.node, resource.name
        )),
    })
}

fn peer_away(resource: &ResourceStatus, peer: &PeerStatus) -> Option<Advice> {
    if reconnects(peer) {
        return None;
    }
    let name = &peer.node;
    let (status, action) = match (&peer.refused, peer.connection) {
        (_, ConnectionState::Connected) => return None,
        (Some(_), _) if peer.diverged => {
            return Some(Advice {
                problem: Some(ErrorId::Diverged),
                status: format!(
                    "{name} has another history: both served apart, and neither is overwritten"
                ),
                action: Some(format!("twinadm split-brain show {}", resource.name)),
            });
        }
        (Some(why), _) => (
            format!("{name} is refused: {why}"),
            format!("twinadm status {} on both nodes", resource.name),
        ),
        (None, ConnectionState::StandAlone) => (
            format!("disconnected from {name} by hand, so there is one up-to-date copy at most"),
            format!("twinadm connect {}", resource.name),
        ),
        (None, ConnectionState::Connecting) => (
            format!("{name} does not answer, so there is one up-to-date copy at most"),
            format!("bring {name} or the link to it back; it rejoins and resyncs by itself"),
        ),
    };
    Some(Advice {
        problem: Some(ErrorId::PeerAway),
        status,
        action: Some(action),
    })
}

fn never_founded(resource: &ResourceStatus) -> Option<Advice> {
    resource.view.is_none().then(|| Advice {
        problem: None,
        status: "new: no node has been Primary yet".to_owned(),
        action: Some(format!(
            "twinadm primary {} on the node that shall serve",
            resource.name
        )),
    })
}

fn peer_disk_away(resource: &ResourceStatus, peer: &PeerStatus) -> Option<Advice> {
    // What cannot be known for a moment is not away.
    if reconnects(peer) {
        return None;
    }
    let volume = peer
        .volumes
        .iter()
        .find(|volume| volume.disk != DiskState::UpToDate)?;
    let disk = volume.disk;
    let mend = matches!(disk, DiskState::Diskless | DiskState::Failed).then(|| {
        format!(
            "mend the disk on {0}, then there: twinadm attach {1}",
            peer.node, resource.name
        )
    });
    let nobody = resource.role != Some(Role::Primary) && peer.role != Role::Primary;
    let promote = || nobody.then(|| format!("twinadm primary {}", resource.name));
    Some(Advice {
        problem: Some(ErrorId::PeerDiskAway),
        status: format!("the replica on {} is {disk}", peer.node),
        action: mend.or_else(promote),
    })
}

/// Attached and connected, and yet not up to date: it lasts a moment, or needs a resync that only
/// a Primary starts.
fn local_disk_behind(node: &str, resource: &ResourceStatus) -> Option<Advice> {
    let volumes = resource.volumes.iter();
    let disk = volumes
        .filter_map(|volume| volume.disk)
        .find(|disk| *disk != DiskState::UpToDate)?;
    let peer_serves = resource.peers.iter().any(|peer| peer.role == Role::Primary);
    Some(Advice {
        problem: Some(ErrorId::LocalDiskAway),
        status: format!("the replica on {node} is {disk}"),
        action: (!peer_serves).then(|| {
            format!(
                "twinadm primary {} on the node that is up to date",
                resource.name
            )
        }),
    })
}

fn held_by_hand(resource: &ResourceStatus) -> Option<Advice> {
    resource.held.then(|| Advice {
        problem: None,
        status: "demoted by hand: no node promotes itself".to_owned(),
        action: Some(format!(
            "twinadm primary {} where it shall serve",
            resource.name
        )),
    })
}

fn volumes(resource: &ResourceStatus) -> impl Iterator<Item = &PeerVolumeStatus> {
    resource.peers.iter().flat_map(|peer| &peer.volumes)
}

fn names(peers: &[PeerStatus]) -> String {
    peers
        .iter()
        .map(|peer| peer.node.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests;
