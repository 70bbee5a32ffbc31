//! A configuration written out again: one form for all ways of writing the same.
//!
//! ```text
//! Config → Vec<Table> → TOML here, JSON in twinadm
//! ```

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use replicator::meta::activity_log::SLOTS_DEFAULT;
use replicator::types::{Failback, Failover, NodeId};

use super::failback::failback_text;
use super::nbd::tls_dir_default;
use super::shape::{
    DISK_TIMEOUT_DEFAULT, FAILOVERS, HOLD_DOWN_DEFAULT, LIBVIRT, ON_DEMOTE, default_log,
    default_metrics, default_nbd, default_net, default_resync,
};
use super::types::{
    Config, GuestConfig, LogTarget, NodeRole, OnNoQuorum, QuorumConfig, Rate, ReplicaPaths,
    ResourceConfig, TimingProfile, VerifyConfig, VolumeConfig, Watchdog,
};
use super::units::{demote_steps_text, duration_text, size_text};

/// A value in its written form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A whole number.
    Number(u64),
    /// True or false.
    Truth(bool),
    /// A list of strings.
    List(Vec<String>),
    /// A string for each node.
    PerNode(Vec<(String, String)>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub value: Value,
    /// Whether leaving it out would mean the same.
    pub is_default: bool,
}

/// A table with its keys in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name in parts: `["resource", "vm-web", "volume"]`; empty for the top of the file.
    pub path: Vec<String>,
    /// One of several of that name, `[[…]]`.
    pub repeated: bool,
    /// Its keys.
    pub entries: Vec<Entry>,
}

impl Config {
    /// All tables in canonical order.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![
            table(&[], vec![required("config-version", Value::Number(1))]),
            table(&["cluster"], vec![required("name", text(&self.cluster))]),
        ];
        tables.extend(self.nodes.iter().map(|node| {
            let role = match node.role {
                NodeRole::Data => "data",
                NodeRole::Arbitrator => "arbitrator",
            };
            let addresses = node.addresses.iter().map(ToString::to_string).collect();
            let role = optional("role", text(role), &text("data"));
            let mut entries = vec![role, required("address", Value::List(addresses))];
            if node.role == NodeRole::Data {
                entries.push(optional("libvirt", text(&node.libvirt), &text(LIBVIRT)));
            }
            table(&["node", &node.name], entries)
        }));
        tables.extend([self.quorum_table(), self.net_table(), self.resync_table()]);
        tables.extend([
            self.verify_table(),
            self.nbd_table(),
            self.metrics_table(),
            self.log_table(),
        ]);
        for resource in &self.resources {
            self.push_resource(resource, &mut tables);
        }
        tables
    }

    /// The whole configuration as one TOML file, which reads back as the same configuration.
    #[must_use]
    pub fn to_toml(&self, show_defaults: bool) -> String {
        let mut out = String::new();
        for table in self.tables() {
            let shown = |entry: &&Entry| show_defaults || !entry.is_default;
            let entries: Vec<&Entry> = table.entries.iter().filter(shown).collect();
            if entries.is_empty() && !table.is_named() {
                continue;
            }
            if !table.path.is_empty() {
                let path = table
                    .path
                    .iter()
                    .map(|part| key_text(part))
                    .collect::<Vec<_>>()
                    .join(".");
                let header = if table.repeated {
                    format!("[[{path}]]")
                } else {
                    format!("[{path}]")
                };
                _ = writeln!(out, "\n{header}");
            }
            for entry in entries {
                _ = writeln!(out, "{} = {}", entry.key, toml_text(&entry.value));
            }
        }
        out
    }

    fn quorum_table(&self) -> Table {
        let words = |quorum: &QuorumConfig| {
            let timing = match quorum.timing {
                TimingProfile::Fast => "fast",
                TimingProfile::Default => "default",
                TimingProfile::Relaxed => "relaxed",
            };
            let answer = match quorum.on_no_quorum {
                OnNoQuorum::SuspendIo => "suspend-io",
                OnNoQuorum::IoError => "io-error",
            };
            let watchdog = match quorum.watchdog {
                Watchdog::Auto => "auto",
                Watchdog::Off => "off",
                Watchdog::Required => "required",
            };
            [timing, answer, watchdog].map(text)
        };
        let keys = ["timing", "on-no-quorum", "watchdog"];
        pairs(
            "quorum",
            keys,
            words(&self.quorum),
            words(&QuorumConfig::default()),
        )
    }

    fn net_table(&self) -> Table {
        let values = |net: &super::NetConfig| {
            let timeout = duration_text(net.timeout);
            [
                text(net.protocol.word()),
                text(net.tls.word()),
                Value::Truth(net.insecure),
                text(&timeout),
            ]
        };
        let keys = ["protocol", "tls", "insecure", "timeout"];
        pairs("net", keys, values(&self.net), values(&default_net()))
    }

    fn resync_table(&self) -> Table {
        let values = |resync: &super::ResyncConfig| {
            let rate = match resync.max_rate {
                Rate::Auto => "auto".to_owned(),
                Rate::Unlimited => "unlimited".to_owned(),
                Rate::BytesPerSecond(rate) => format!("{}/s", size_text(rate)),
            };
            [
                text(&rate),
                text(&duration_text(resync.guest_latency_target)),
                Value::Number(resync.parallel.into()),
                Value::Truth(resync.checksum_first),
            ]
        };
        let keys = [
            "max-rate",
            "guest-latency-target",
            "parallel",
            "checksum-first",
        ];
        pairs(
            "resync",
            keys,
            values(&self.resync),
            values(&default_resync()),
        )
    }

    fn verify_table(&self) -> Table {
        let values = |verify: &VerifyConfig| {
            let repair = if verify.repair_from_primary {
                "from-primary"
            } else {
                "report"
            };
            [text(&verify.schedule), text(repair)]
        };
        let default = values(&VerifyConfig::default());
        pairs(
            "verify",
            ["schedule", "repair"],
            values(&self.verify),
            default,
        )
    }

    fn nbd_table(&self) -> Table {
        let values = |nbd: &super::NbdConfig| {
            let dir = nbd
                .tls_dir
                .as_deref()
                .map_or("".into(), Path::to_string_lossy);
            [
                Value::Number(nbd.max_connections.into()),
                self.listen_value(nbd.listen),
                text(&dir),
            ]
        };
        let keys = ["max-connections", "listen", "tls-dir"];
        let default = super::NbdConfig {
            tls_dir: tls_dir_default(&self.nbd.listen),
            ..default_nbd()
        };
        pairs("nbd", keys, values(&self.nbd), values(&default))
    }

    fn listen_value(&self, [a, b]: [Option<SocketAddr>; 2]) -> Value {
        if a == b {
            return listen_text(a);
        }
        let each = [(NodeId::A, a), (NodeId::B, b)].into_iter();
        let each = each.filter_map(|(node, address)| {
            Some((self.node_name(node).to_owned(), address?.to_string()))
        });
        Value::PerNode(each.collect())
    }

    fn metrics_table(&self) -> Table {
        let value = |listen| [listen_text(listen)];
        let default = value(default_metrics().listen);
        pairs("metrics", ["listen"], value(self.metrics.listen), default)
    }

    fn log_table(&self) -> Table {
        let values = |log: &super::LogConfig| {
            let target = match log.target {
                LogTarget::Auto => "auto",
                LogTarget::Journald => "journald",
                LogTarget::Stderr => "stderr",
            };
            [text(&log.level), text(target)]
        };
        pairs(
            "log",
            ["level", "target"],
            values(&self.log),
            values(&default_log()),
        )
    }

    fn push_resource(&self, resource: &ResourceConfig, tables: &mut Vec<Table>) {
        let path = ["resource", resource.name.as_str()];
        let mut entries = Vec::new();
        if let Some(prefer) = resource.prefer {
            entries.push(required("prefer", text(self.node_name(prefer))));
        }
        entries.push(optional(
            "failback",
            text(&failback_text(resource.failback)),
            &text(&failback_text(Failback::default())),
        ));
        let hold_down = |time: Duration| text(&duration_text(time));
        entries.push(optional(
            "hold-down",
            hold_down(resource.hold_down),
            &hold_down(HOLD_DOWN_DEFAULT),
        ));
        entries.push(optional(
            "priority",
            Value::Number(resource.priority.into()),
            &Value::Number(10),
        ));
        if let Some(protocol) = resource.protocol {
            entries.push(required("protocol", text(protocol.word())));
        }
        let failover = |failover: Failover| {
            let known = FAILOVERS.iter().find(|(_, value)| *value == failover);
            text(known.map_or("auto", |(word, _)| word))
        };
        entries.push(optional(
            "failover",
            failover(resource.failover),
            &failover(Failover::Auto),
        ));
        entries.push(optional(
            "forward",
            Value::Truth(resource.forward),
            &Value::Truth(false),
        ));
        entries.push(optional(
            "read-only-export",
            Value::Truth(resource.read_only_export),
            &Value::Truth(false),
        ));
        if let Some(allowed) = &resource.nbd_allow {
            let allowed = allowed.iter().map(ToString::to_string).collect();
            entries.push(required("nbd-allow", Value::List(allowed)));
        }
        tables.push(table(&path, entries));
        for volume in &resource.volumes {
            tables.push(Table {
                repeated: true,
                ..table(
                    &[path[0], path[1], "volume"],
                    self.volume_entries(volume, resource.volumes.first() == Some(volume)),
                )
            });
        }
        if let Some(guest) = &resource.guest {
            tables.push(table(&[path[0], path[1], "guest"], guest_entries(guest)));
        }
    }

    /// What counts for all volumes of a resource stands beside the first.
    fn volume_entries(&self, volume: &VolumeConfig, is_first: bool) -> Vec<Entry> {
        let mut entries = vec![required("id", Value::Number(volume.id.0.into()))];
        if let Some(size) = volume.size {
            entries.push(required("size", text(&size_text(size.0))));
        }
        let disk = self.path_value(volume, |paths| &paths.disk);
        if !is_first {
            entries.push(required("disk", disk));
            return entries;
        }
        let patience =
            |timeout: Option<Duration>| text(&duration_text(timeout.unwrap_or_default()));
        entries.push(optional(
            "disk-timeout",
            patience(volume.disk_timeout),
            &patience(Some(DISK_TIMEOUT_DEFAULT)),
        ));
        let slots = |slots: u16| Value::Number(slots.into());
        entries.push(optional(
            "al-extents",
            slots(volume.al_extents),
            &slots(SLOTS_DEFAULT),
        ));
        entries.push(required("disk", disk));
        let meta = self.path_value(volume, |paths| &paths.meta);
        entries.push(required("meta", meta));
        entries
    }

    fn path_value(&self, volume: &VolumeConfig, of: impl Fn(&ReplicaPaths) -> &Path) -> Value {
        let [a, b] = [NodeId::A, NodeId::B]
            .map(|node| of(volume.replica(node)).to_string_lossy().into_owned());
        if a == b {
            return Value::Text(a);
        }
        let name = |node| self.node_name(node).to_owned();
        Value::PerNode(vec![(name(NodeId::A), a), (name(NodeId::B), b)])
    }
}

impl Table {
    /// Whether it says something by being there, without a key.
    fn is_named(&self) -> bool {
        self.path.len() > 1
    }
}

fn guest_entries(guest: &GuestConfig) -> Vec<Entry> {
    let mut entries = vec![required("domain", text(&guest.domain))];
    if let Some(target) = &guest.target {
        entries.push(required("target", text(target)));
    }
    let start = if guest.start_on_failover {
        "start"
    } else {
        "leave"
    };
    entries.push(optional("on-failover", text(start), &text("start")));
    entries.push(optional(
        "on-demote",
        text(&demote_steps_text(&guest.on_demote)),
        &text(&demote_steps_text(&ON_DEMOTE)),
    ));
    entries
}

fn table(path: &[&str], entries: Vec<Entry>) -> Table {
    Table {
        path: path.iter().map(|part| (*part).to_owned()).collect(),
        repeated: false,
        entries,
    }
}

fn pairs<const N: usize>(
    name: &str,
    keys: [&'static str; N],
    values: [Value; N],
    defaults: [Value; N],
) -> Table {
    let entries = keys.into_iter().zip(values).zip(&defaults);
    table(
        &[name],
        entries
            .map(|((key, value), default)| optional(key, value, default))
            .collect(),
    )
}

fn required(key: &'static str, value: Value) -> Entry {
    Entry {
        key,
        value,
        is_default: false,
    }
}

fn optional(key: &'static str, value: Value, default: &Value) -> Entry {
    Entry {
        is_default: value == *default,
        key,
        value,
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn listen_text(listen: Option<SocketAddr>) -> Value {
    Value::Text(listen.map_or_else(String::new, |address| address.to_string()))
}

pub(super) fn toml_text(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Number(number) => number.to_string(),
        Value::Truth(truth) => truth.to_string(),
        Value::List(items) => {
            format!(
                "[{}]",
                items
                    .iter()
                    .map(|item| quoted(item))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        Value::PerNode(each) => {
            let each = each
                .iter()
                .map(|(node, text)| format!("{} = {}", key_text(node), quoted(text)));
            format!("{{ {} }}", each.collect::<Vec<_>>().join(", "))
        }
    }
}

fn key_text(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !key.is_empty() && key.bytes().all(bare) {
        key.to_owned()
    } else {
        quoted(key)
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => _ = write!(out, "\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
