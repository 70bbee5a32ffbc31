//! One word for scripts: `role`, `cstate`, `dstate`.

use replicator::admin::ResourceStatus;
use replicator::types::{ConnectionState, DiskState, Role};

/// The local role; `Unknown` while the resource is not up.
#[must_use]
pub fn role(resource: &ResourceStatus) -> String {
    resource.role.unwrap_or(Role::Unknown).to_string()
}

/// One line a peer; `StandAlone` while the resource is not up.
#[must_use]
pub fn cstate(resource: &ResourceStatus) -> String {
    let state = |up: bool, state: ConnectionState| {
        if up {
            state
        } else {
            ConnectionState::StandAlone
        }
    };
    let lines = resource
        .peers
        .iter()
        .map(|peer| state(resource.up, peer.connection).to_string());
    lines.collect::<Vec<_>>().join("\n")
}

/// One line `local/peer…` a volume.
#[must_use]
pub fn dstate(resource: &ResourceStatus) -> String {
    let lines = resource.volumes.iter().map(|volume| {
        let local = volume.disk.unwrap_or(DiskState::Diskless).to_string();
        let peers = resource.peers.iter().map(|peer| {
            let theirs = peer
                .volumes
                .iter()
                .find(|theirs| theirs.volume == volume.volume);
            theirs
                .map_or(DiskState::DUnknown, |theirs| theirs.disk)
                .to_string()
        });
        std::iter::once(local)
            .chain(peers)
            .collect::<Vec<_>>()
            .join("/")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_healthy_resource_in_words() {
        let status = samples::healthy();
        let resource = &status.resources[1];
        assert_eq!(role(resource), "Primary");
        assert_eq!(cstate(resource), "Connected");
        assert_eq!(dstate(resource), "UpToDate/UpToDate");
    }

    #[test]
    fn what_is_down_is_unknown() {
        let resource = samples::down();
        assert_eq!(role(&resource), "Unknown");
        assert_eq!(cstate(&resource), "StandAlone");
        assert_eq!(dstate(&resource), "Diskless/DUnknown");
    }
}
