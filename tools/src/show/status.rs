//! `status` for people: DRBD's indent and `key:value` words, problems in plain sentences.

use replicator::admin::{
    ClusterStatus, GuestStatus, PeerStatus, PeerVolumeStatus, ResourceStatus, Status,
};
use replicator::types::{ConnectionState, DiskState, ReplicationState, Role};

use super::resync::{resync_line, verify_line};
use super::size::{duration, size_word};

/// Text of an action is broken here, so that it fits an 80-column terminal.
const WIDTH: usize = 79;

/// What to show beside the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Only resources with a problem.
    pub problems_only: bool,
    /// View, event loop, size and clients too.
    pub verbose: bool,
}

/// The whole status, every line ended.
#[must_use]
pub fn status_text(status: &Status, detail: Detail) -> String {
    let mut lines = vec![header(status)];
    for resource in &status.resources {
        if !detail.problems_only || resource.problem.is_some() {
            push_resource(resource, detail, &mut lines);
        }
    }
    if let Some(why) = &status.cluster.store_error {
        let node = &status.node;
        lines.extend(wrapped(
            "status:",
            &format!("{node} cannot record its votes, so it has none: {why}."),
        ));
        lines.extend(wrapped(
            "action:",
            "free space on the disk of its state directory, or mend it, then restart the daemon; \
             until then the loss of another node holds I/O.",
        ));
    }
    push_automation(status, &mut lines);
    if let Some(why) = &status.cluster.tls_mismatch {
        lines.extend(wrapped("status:", &format!("{why}.")));
        lines.extend(wrapped(
            "action:",
            "write the same [net] tls on all nodes, give each its keys (twinadm init, join), and \
             restart their daemons.",
        ));
    }
    if status.cluster.arbitrator_lost() {
        let name = status
            .cluster
            .arbitrator
            .as_ref()
            .map_or("", |arbitrator| &arbitrator.node);
        lines.push(format!("status: the arbitrator {name} does not answer."));
        lines.extend(wrapped(
            "action:",
            "bring it or the link to it back; until then the loss of a node holds I/O.",
        ));
    }
    lines.join("\n") + "\n"
}

/// What this node does not do by itself, by order.
fn push_automation(status: &Status, lines: &mut Vec<String>) {
    let node = &status.node;
    if status.cluster.maintenance {
        let text = format!(
            "maintenance is on at {node} (W0143): it takes nothing over by itself, and hands nothing over \
             when it stops."
        );
        lines.extend(wrapped("status:", &text));
        lines.push("action: twinadm maintenance off".to_owned());
    }
    if status.cluster.standby {
        let text = format!("{node} is in standby (W0142): it takes nothing over by itself.");
        lines.extend(wrapped("status:", &text));
        lines.push(format!("action: twinadm node resume {node}"));
    }
}

/// One resource on one line, without numbers that move by themselves: one line a change.
#[must_use]
pub fn resource_line(resource: &ResourceStatus) -> String {
    let mut words = vec![own_words(resource, Detail::default())];
    for peer in &resource.peers {
        words.push(format!("| {}", peer_words(peer, resource.up, false)));
    }
    words.join(" ")
}

fn header(status: &Status) -> String {
    let ClusterStatus {
        name,
        quorum,
        voters,
        voters_seen,
        problems,
        ..
    } = &status.cluster;
    let mut words = vec![
        name.clone(),
        format!("node:{}", status.node),
        format!(
            "quorum:{}({voters_seen}/{voters})",
            if *quorum { "yes" } else { "no" }
        ),
    ];
    if let Some(arbitrator) = &status.cluster.arbitrator {
        let state = if arbitrator.seen { "ok" } else { "lost" };
        words.push(format!("arbitrator:{}({state})", arbitrator.node));
    }
    words.push(format!("resources:{}", status.resources.len()));
    words.push(format!("problems:{problems}"));
    if status.cluster.standby {
        words.push("standby:yes".to_owned());
    }
    if status.cluster.maintenance {
        words.push("MAINTENANCE:on".to_owned());
    }
    if status.cluster.insecure {
        words.push("INSECURE:clear-text".to_owned());
    }
    if status.cluster.tls.as_deref() == Some("control-only") {
        words.push("tls:control-only(data in clear text)".to_owned());
    }
    words.join("  ")
}

fn push_resource(resource: &ResourceStatus, detail: Detail, lines: &mut Vec<String>) {
    lines.push(own_words(resource, detail));
    if resource.up {
        push_volumes(resource, lines);
        for peer in &resource.peers {
            push_peer(peer, lines);
        }
    }
    if let Some(sentence) = &resource.status {
        lines.extend(wrapped(
            "status:",
            &format!("{}: {sentence}.", resource.name),
        ));
        let action = resource
            .action
            .as_deref()
            .unwrap_or("none; it continues by itself.");
        lines.extend(wrapped("action:", action));
    }
}

fn own_words(resource: &ResourceStatus, detail: Detail) -> String {
    let mut words = vec![resource.name.clone()];
    if !resource.up {
        words.push("up:no".to_owned());
        return words.join(" ");
    }
    words.push(format!("role:{}", resource.role.unwrap_or(Role::Unknown)));
    if let [volume] = resource.volumes.as_slice() {
        words.push(format!(
            "disk:{}",
            volume.disk.unwrap_or(DiskState::Diskless)
        ));
    }
    if let Some(reason) = &resource.suspended {
        if reason == "quorum" {
            words.push("quorum:no".to_owned());
        }
        words.push(format!("suspended:{reason}"));
    }
    let flags = [
        ("held:yes", resource.held),
        ("pause-sync:yes", resource.sync_paused),
        ("lossy:yes", resource.lossy),
    ];
    words.extend(
        flags
            .iter()
            .filter(|(_, on)| *on)
            .map(|(word, _)| (*word).to_owned()),
    );
    if let Some(prefer) = &resource.prefer {
        words.push(format!("prefer:{prefer}"));
    }
    let placement = resource.placement.as_ref().map(|it| it.word.as_str());
    if let Some(word) = placement.filter(|word| !["home", "not-here", "none"].contains(word)) {
        words.push(format!("failback:{word}"));
    }
    words.extend(resource.guest.as_ref().map(guest_word));
    push_details(resource, detail, &mut words);
    words.join(" ")
}

/// The event loop is named when it is not the usual one, or when asked.
fn push_details(resource: &ResourceStatus, detail: Detail, words: &mut Vec<String>) {
    if let Some(backend) = &resource.io_backend
        && (detail.verbose || backend != "io_uring")
    {
        words.push(format!("io:{backend}"));
    }
    if detail.verbose {
        words.extend(resource.view.map(|view| format!("view:{view}")));
        words.push(format!("protocol:{}", resource.protocol));
        for volume in &resource.volumes {
            words.extend(
                volume
                    .size_bytes
                    .map(|bytes| format!("size:{}", size_word(bytes))),
            );
            words.push(format!("clients:{}", volume.nbd_clients));
        }
    }
}

fn guest_word(guest: &GuestStatus) -> String {
    let node = guest
        .node
        .as_ref()
        .map_or(String::new(), |node| format!("@{node}"));
    let state = match guest.state.as_str() {
        "running" | "unknown" => String::new(),
        state => format!("({state})"),
    };
    format!("guest:{}{node}{state}", guest.domain)
}

/// As DRBD: volumes get their own lines only when there are several.
fn push_volumes(resource: &ResourceStatus, lines: &mut Vec<String>) {
    if resource.volumes.len() > 1 {
        for volume in &resource.volumes {
            let disk = volume.disk.unwrap_or(DiskState::Diskless);
            lines.push(format!("  volume:{} disk:{disk}", volume.volume));
        }
    }
}

fn push_peer(peer: &PeerStatus, lines: &mut Vec<String>) {
    lines.push(format!("  {}", peer_words(peer, true, true)));
    let several = peer.volumes.len() > 1;
    for volume in &peer.volumes {
        if several && peer.connection == ConnectionState::Connected {
            let mut words = vec![format!("volume:{}", volume.volume)];
            push_peer_volume(volume, true, &mut words);
            lines.push(format!("    {}", words.join(" ")));
        }
        if let Some(resync) = &volume.resync {
            lines.push(format!("    {}", resync_line(resync)));
        }
        if let Some(verify) = &volume.verify {
            lines.push(format!("    {}", verify_line(verify)));
        }
    }
}

/// A connected peer by its role, another by its connection. `numbers`: those that move too.
fn peer_words(peer: &PeerStatus, up: bool, numbers: bool) -> String {
    let mut words = vec![peer.node.clone()];
    if !up {
        return words.join(" ");
    }
    if peer.connection == ConnectionState::Connected {
        words.push(format!("role:{}", peer.role));
    } else {
        words.push(format!("connection:{}", peer.connection));
        if let Some(seconds) = peer.last_seen_seconds.filter(|_| numbers) {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "`as` saturates"
            )]
            let seconds = seconds as u64;
            words.push(format!("last-seen:{}", duration(seconds)));
        }
    }
    if peer.sync_paused {
        words.push("pause-sync:yes".to_owned());
    }
    if let [volume] = peer.volumes.as_slice() {
        if peer.connection == ConnectionState::Connected {
            push_peer_volume(volume, numbers, &mut words);
        } else {
            push_out_of_sync(volume, numbers, &mut words);
        }
    }
    words.join(" ")
}

fn push_peer_volume(volume: &PeerVolumeStatus, numbers: bool, words: &mut Vec<String>) {
    if !matches!(
        volume.replication,
        ReplicationState::Established | ReplicationState::Off
    ) {
        words.push(format!("replication:{}", volume.replication));
    }
    words.push(format!("peer-disk:{}", volume.disk));
    if volume.resync.is_none() {
        push_out_of_sync(volume, numbers, words);
    }
}

fn push_out_of_sync(volume: &PeerVolumeStatus, numbers: bool, words: &mut Vec<String>) {
    let bytes = volume
        .out_of_sync_bytes
        .filter(|bytes| numbers && *bytes > 0);
    words.extend(bytes.map(|bytes| format!("out-of-sync:{}", size_word(bytes))));
}

/// `head text` over as many lines as needed, indented like the first.
pub(super) fn wrapped(head: &str, text: &str) -> Vec<String> {
    let mut lines = vec![head.to_owned()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is a first line");
        if last.chars().count() + 1 + word.chars().count() <= WIDTH {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(format!("{} {word}", " ".repeat(head.len())));
        }
    }
    lines
}

#[cfg(test)]
mod tests;
