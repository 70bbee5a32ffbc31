//! Metrics in Prometheus' text format 0.0.4: base units, `_total` on counters only, states as one series
//! a state with one of them 1, so that no alert needs a magic number. What is unknown has no series.

use std::fmt::{self, Write as _};

use replicator::admin::{PeerStatus, PeerVolumeStatus, ResourceStatus, Status, VolumeStatus};
use replicator::types::{ConnectionState, DiskState, ReplicationState, Role};

use super::About;

/// All that `status` says in numbers.
pub(super) fn encode(status: &Status, about: About) -> String {
    let mut families = Families::default();
    families.of_process(about);
    families.of_cluster(status);
    for resource in &status.resources {
        families.of_resource(resource, &status.node);
    }
    families.to_string()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    /// Labels and value.
    samples: Vec<(String, f64)>,
}

/// Families in the order of their first sample; all samples of one together, as the format wants it.
#[derive(Default)]
struct Families(Vec<Family>);

type Labels<'a> = &'a [(&'static str, &'a str)];

impl Families {
    fn put(
        &mut self,
        (name, kind, help): (&'static str, Kind, &'static str),
        labels: Labels<'_>,
        value: f64,
    ) {
        let known = self.0.iter().position(|family| family.name == name);
        let at = known.unwrap_or_else(|| {
            self.0.push(Family {
                name,
                kind,
                help,
                samples: Vec::new(),
            });
            self.0.len() - 1
        });
        let mut text = String::new();
        for (nr, (label, value)) in labels.iter().enumerate() {
            let comma = if nr == 0 { "" } else { "," };
            _ = write!(text, "{comma}{label}=\"{}\"", Escaped(value));
        }
        self.0[at].samples.push((text, value));
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: f64) {
        self.put((name, Kind::Gauge, help), labels, value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: Labels<'_>, value: u64) {
        self.put((name, Kind::Counter, help), labels, number(value));
    }

    fn of_process(&mut self, about: About) {
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("program", about.program),
        ];
        self.gauge("twinblk_build_info", "Which program answers.", &labels, 1.0);
        self.gauge(
            "twinblk_start_time_seconds",
            "When it started, in seconds since 1970-01-01 UTC.",
            &[],
            about.started,
        );
    }

    fn of_cluster(&mut self, status: &Status) {
        let cluster = &status.cluster;
        let quorum = truth(cluster.quorum);
        self.gauge(
            "twinblk_quorum",
            "This node sees a majority of the voters.",
            &[],
            quorum,
        );
        let voters = f64::from(cluster.voters);
        self.gauge("twinblk_voters", "Configured voters.", &[], voters);
        let seen = f64::from(cluster.voters_seen);
        self.gauge(
            "twinblk_voters_seen",
            "Voters heard of lately, this node too.",
            &[],
            seen,
        );
        let problems = f64::from(cluster.problems);
        self.gauge(
            "twinblk_problems",
            "Resources with a problem, and the cluster's own.",
            &[],
            problems,
        );
    }

    fn of_resource(&mut self, resource: &ResourceStatus, node: &str) {
        let name = resource.name.as_str();
        let labels = [("resource", name)];
        self.gauge(
            "twinblk_resource_up",
            "`up` was ordered.",
            &labels,
            truth(resource.up),
        );
        if let Some(id) = &resource.problem {
            let labels = [("resource", name), ("id", id)];
            self.gauge(
                "twinblk_problem",
                "What is not as it should be, by the id of its message.",
                &labels,
                1.0,
            );
        }
        let primary = resource.role == Some(Role::Primary);
        self.gauge(
            "twinblk_resource_primary",
            "This node serves it.",
            &labels,
            truth(primary),
        );
        if let Some(role) = resource.role {
            self.states(
                "twinblk_resource_role",
                "Role of this node.",
                &labels,
                "role",
                Role::ALL,
                role,
                Role::word,
            );
        }
        if let Some(prefer) = &resource.prefer {
            self.gauge(
                "twinblk_resource_preferred",
                "This is the preferred node.",
                &labels,
                truth(prefer == node),
            );
        }
        self.gauge(
            "twinblk_resource_may_promote",
            "`primary` here would succeed, as far as is known.",
            &labels,
            truth(resource.may_promote),
        );
        self.gauge(
            "twinblk_resource_held",
            "Demoted by hand: no node promotes itself.",
            &labels,
            truth(resource.held),
        );
        self.gauge(
            "twinblk_resource_lossy",
            "Activated over data that may lack acknowledged writes.",
            &labels,
            truth(resource.lossy),
        );
        if let Some(guest) = &resource.guest {
            let here = guest.node.as_deref() == Some(node) && guest.state.starts_with("running");
            self.gauge(
                "twinblk_guest_up",
                "Its guest runs on this node.",
                &[("resource", name), ("domain", &guest.domain)],
                truth(here),
            );
        }
        if let Some(view) = resource.view {
            self.gauge(
                "twinblk_view_number",
                "Number of the newest view known here.",
                &labels,
                number(view),
            );
        }
        self.gauge(
            "twinblk_in_sync_replicas",
            "Replicas that the newest view known here names in sync.",
            &labels,
            number(resource.in_sync.len() as u64),
        );
        for reason in ["quorum", "peer", "no-data", "quiesce", "user"] {
            let labels = [("resource", name), ("reason", reason)];
            let held = resource.suspended.as_deref() == Some(reason);
            self.gauge(
                "twinblk_resource_suspended",
                "Guests are held, and why.",
                &labels,
                truth(held),
            );
        }
        for volume in &resource.volumes {
            self.of_volume(name, volume);
        }
        for peer in &resource.peers {
            self.of_peer(name, peer);
        }
    }

    fn of_volume(&mut self, resource: &str, volume: &VolumeStatus) {
        let number_of = volume.volume.to_string();
        let labels = [("resource", resource), ("volume", number_of.as_str())];
        if let Some(disk) = volume.disk {
            self.states(
                "twinblk_volume_disk_state",
                "The replica of this node.",
                &labels,
                "state",
                DiskState::ALL,
                disk,
                DiskState::word,
            );
        }
        if let Some(size) = volume.size_bytes {
            self.gauge(
                "twinblk_volume_size_bytes",
                "Size of the volume.",
                &labels,
                number(size),
            );
        }
        let clients = f64::from(volume.nbd_clients);
        self.gauge(
            "twinblk_nbd_clients",
            "Attached NBD clients.",
            &labels,
            clients,
        );
        let Some(counts) = volume.statistics else {
            return;
        };
        let all = [
            (
                "twinblk_volume_read_bytes_total",
                "Bytes guests read.",
                counts.read_bytes,
            ),
            (
                "twinblk_volume_written_bytes_total",
                "Bytes guests wrote.",
                counts.written_bytes,
            ),
            (
                "twinblk_volume_read_ops_total",
                "Reads of guests.",
                counts.reads,
            ),
            (
                "twinblk_volume_write_ops_total",
                "Writes of guests.",
                counts.writes,
            ),
            (
                "twinblk_volume_flush_ops_total",
                "Flushes of guests.",
                counts.flushes,
            ),
            (
                "twinblk_volume_io_errors_total",
                "Operations of the local disk that failed.",
                counts.io_errors,
            ),
        ];
        for (name, help, value) in all {
            self.counter(name, help, &labels, value);
        }
        let kinds = [
            ("activity_log", counts.activity_log_writes),
            ("bitmap", counts.bitmap_writes),
            ("superblock", counts.superblock_writes),
        ];
        for (kind, value) in kinds {
            let labels = [
                ("resource", resource),
                ("volume", number_of.as_str()),
                ("kind", kind),
            ];
            self.counter(
                "twinblk_metadata_writes_total",
                "Writes to the metadata area.",
                &labels,
                value,
            );
        }
    }

    fn of_peer(&mut self, resource: &str, peer: &PeerStatus) {
        let labels = [("resource", resource), ("peer", peer.node.as_str())];
        self.states(
            "twinblk_peer_connection_state",
            "The connection of this resource.",
            &labels,
            "state",
            ConnectionState::ALL,
            peer.connection,
            ConnectionState::word,
        );
        if let Some(rtt) = peer.rtt_seconds {
            self.gauge(
                "twinblk_peer_rtt_seconds",
                "Round trip of the last ping.",
                &labels,
                rtt,
            );
        }
        for volume in &peer.volumes {
            self.of_peer_volume(resource, &peer.node, volume);
        }
    }

    fn of_peer_volume(&mut self, resource: &str, peer: &str, volume: &PeerVolumeStatus) {
        let number_of = volume.volume.to_string();
        let labels = [
            ("resource", resource),
            ("volume", number_of.as_str()),
            ("peer", peer),
        ];
        self.states(
            "twinblk_peer_disk_state",
            "The peer's replica.",
            &labels,
            "state",
            DiskState::ALL,
            volume.disk,
            DiskState::word,
        );
        self.states(
            "twinblk_peer_replication_state",
            "What the pair does.",
            &labels,
            "state",
            ReplicationState::ALL,
            volume.replication,
            ReplicationState::word,
        );
        if let Some(bytes) = volume.out_of_sync_bytes {
            self.gauge(
                "twinblk_peer_out_of_sync_bytes",
                "What the peer's replica misses, as marked here.",
                &labels,
                number(bytes),
            );
        }
        self.gauge(
            "twinblk_peer_lag_bytes",
            "Answered to guests and not yet on the peer's disk.",
            &labels,
            number(volume.lag_bytes),
        );
        self.gauge(
            "twinblk_peer_lag_seconds",
            "Age of the oldest of these.",
            &labels,
            volume.lag_seconds,
        );
        if let Some(resync) = &volume.resync {
            self.gauge(
                "twinblk_resync_done_bytes",
                "Done of the running resync.",
                &labels,
                number(resync.done_bytes),
            );
            self.gauge(
                "twinblk_resync_total_bytes",
                "All of the running resync.",
                &labels,
                number(resync.total_bytes),
            );
            self.gauge(
                "twinblk_resync_paused",
                "An operator holds it.",
                &labels,
                truth(resync.is_paused()),
            );
            if let Some(rate) = resync.rate_bytes_per_second {
                self.gauge(
                    "twinblk_resync_rate_bytes_per_second",
                    "Mean of the last 30 s.",
                    &labels,
                    number(rate),
                );
            }
            if let Some(eta) = resync.eta_seconds {
                self.gauge(
                    "twinblk_resync_eta_seconds",
                    "Until it is done, at that rate.",
                    &labels,
                    number(eta),
                );
            }
        }
        if volume.last_resync.ended.is_some() {
            self.gauge(
                "twinblk_resync_last_duration_seconds",
                "How long the last resync took.",
                &labels,
                volume.last_resync.seconds,
            );
        }
        if let Some(verify) = &volume.verify {
            self.gauge(
                "twinblk_verify_progress_ratio",
                "Of the running verify.",
                &labels,
                verify.progress.done_ratio,
            );
        }
        if let Some(verify) = &volume.last_verify {
            self.gauge(
                "twinblk_verify_out_of_sync_bytes",
                "Found to differ by the last verify, and not written again.",
                &labels,
                number(verify.unrepaired_bytes()),
            );
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "a family and its state, in one line each"
    )]
    fn states<S: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        label: &'static str,
        all: &[S],
        is: S,
        word: fn(S) -> &'static str,
    ) {
        for state in all {
            let mut labels = labels.to_vec();
            labels.push((label, word(*state)));
            self.gauge(name, help, &labels, truth(*state == is));
        }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match family.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            writeln!(f, "# HELP {} {}", family.name, family.help)?;
            writeln!(f, "# TYPE {} {kind}", family.name)?;
            for (labels, value) in &family.samples {
                match labels.is_empty() {
                    true => writeln!(f, "{} {value}", family.name)?,
                    false => writeln!(f, "{}{{{labels}}} {value}", family.name)?,
                }
            }
        }
        Ok(())
    }
}

/// A label's value.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                char => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "samples are floating point numbers"
)]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::daemon::status::tests::of_a_serving_primary;

    use super::*;

    const ABOUT: About = About {
        program: "twinblkd",
        started: 1.5,
    };

    #[test]
    fn the_text_keeps_the_format() {
        let text = encode(&of_a_serving_primary(), ABOUT);
        let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(families.insert(name), "{name} twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                family = name;
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert_eq!(name.split('{').next(), Some(family), "{line}");
                assert!(series.insert(name), "{name} twice");
            }
        }
        assert!(families.len() > 20, "{text}");
    }

    #[test]
    fn one_state_of_each_set_is_true() {
        let text = encode(&of_a_serving_primary(), ABOUT);
        let of = |what: &str| {
            text.lines()
                .filter(|line| line.starts_with(what) && line.ends_with(" 1"))
                .count()
        };
        let resources = of_a_serving_primary().resources.len();
        assert_eq!(of("twinblk_resource_role{"), resources);
        assert_eq!(of("twinblk_volume_disk_state{"), resources);
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(Escaped("a\\b\"c\nd").to_string(), "a\\\\b\\\"c\\nd");
    }
}
