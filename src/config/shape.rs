//! First pass: files into drafts. Checks keys, types, units and words; knows nothing of how the
//! parts must fit together. Every default is here.

use std::time::Duration;

use replicator::admin::ErrorId;
use replicator::meta::activity_log::{SLOTS_DEFAULT, SLOTS_MAX, SLOTS_MIN};
use replicator::types::{Failback, Failover, ReplicationProtocol};
use toml::de::DeTable;

use super::diagnostic::Findings;
use super::effect;
use super::nbd::tls_dir_default;
use super::reader::{PerNode, Section, bad_value, shown};
use super::source::{FileKind, Located, Span};
use super::subject::CertificateSubject;
use super::types::{
    DemoteStep, GuestConfig, LogConfig, LogTarget, MetricsConfig, NbdConfig, NetConfig, NodeRole,
    OnNoQuorum, QuorumConfig, ResyncConfig, TimingProfile, Tls, VerifyConfig, Watchdog,
};

/// A peer that says nothing for this long is given up.
const NET_TIMEOUT: Duration = Duration::from_secs(3);
/// Guests' p99 write latency above which a resync backs off.
const GUEST_LATENCY_TARGET: Duration = Duration::from_millis(10);
/// NBD connections per resource: far more than any client opens, few enough to bound memory.
const NBD_CONNECTIONS: u32 = 1024;
/// Where the metrics page listens when nothing is written.
const METRICS_LISTEN: &str = "127.0.0.1:9943";

/// Everything the files say, part by part.
#[derive(Default)]
pub(super) struct Draft<'a> {
    pub(super) cluster: Option<String>,
    pub(super) nodes: Vec<DraftNode>,
    pub(super) quorum: QuorumConfig,
    pub(super) net: Option<DraftNet>,
    pub(super) resync: Option<ResyncConfig>,
    pub(super) verify: VerifyConfig,
    pub(super) nbd: DraftNbd<'a>,
    pub(super) metrics: Option<MetricsConfig>,
    pub(super) log: Option<LogConfig>,
    pub(super) resources: Vec<DraftResource<'a>>,
}

pub(super) struct DraftNode {
    pub(super) name: Located<String>,
    pub(super) role: NodeRole,
    pub(super) addresses: Vec<Located<std::net::SocketAddr>>,
    pub(super) libvirt: String,
}

pub(super) struct DraftNet {
    pub(super) net: NetConfig,
    pub(super) protocol: Option<Span>,
    pub(super) tls: Option<Span>,
}

#[derive(Default)]
pub(super) struct DraftNbd<'a> {
    pub(super) max_connections: Option<u32>,
    pub(super) listen: Option<Located<PerNode<'a>>>,
    pub(super) tls_dir: Option<Located<&'a str>>,
}

pub(super) struct DraftResource<'a> {
    pub(super) name: Located<String>,
    pub(super) prefer: Option<Located<&'a str>>,
    pub(super) failback: Failback,
    pub(super) hold_down: Duration,
    pub(super) priority: u32,
    pub(super) protocol: Option<Located<ReplicationProtocol>>,
    pub(super) failover: Failover,
    pub(super) forward: bool,
    pub(super) read_only_export: bool,
    pub(super) nbd_allow: Option<Vec<CertificateSubject>>,
    pub(super) volumes: Vec<DraftVolume<'a>>,
    pub(super) guest: Option<GuestConfig>,
}

pub(super) struct DraftVolume<'a> {
    pub(super) id: Located<u32>,
    pub(super) size: Option<Located<u64>>,
    pub(super) disk_timeout: Option<Duration>,
    pub(super) al_extents: u16,
    pub(super) disk: Option<Located<PerNode<'a>>>,
    pub(super) meta: Option<Located<PerNode<'a>>>,
    /// Of the keys that count for all volumes of a resource, those that are written here.
    pub(super) of_replica: Vec<(&'static str, Span)>,
}

/// Keys of `twinblk.toml`, for the hint in other files.
const CLUSTER_KEYS: [&str; 10] = [
    "config-version",
    "cluster",
    "node",
    "quorum",
    "net",
    "resync",
    "verify",
    "nbd",
    "metrics",
    "log",
];

/// Reads one file into the draft.
pub(super) fn read_file<'a>(
    kind: FileKind,
    file: usize,
    table: &'a DeTable<'a>,
    draft: &mut Draft<'a>,
    found: &mut Findings,
) {
    let mut root = Section::root(file, table);
    for (name, section) in root.named_sections("resource", found) {
        draft.resources.push(read_resource(name, section, found));
    }
    match kind {
        FileKind::Cluster => {
            read_cluster(&mut root, draft, found);
            root.finish(&[], found);
        }
        FileKind::Resources => refuse_cluster_keys(root, found),
    }
}

fn refuse_cluster_keys(mut root: Section<'_>, found: &mut Findings) {
    for key in CLUSTER_KEYS {
        root.accept(key);
        if let Some(span) = root.key_span(key) {
            let message = format!("`{key}` in a file of resources.d");
            found.at(
                ErrorId::UnknownKey,
                span,
                message,
                "belongs in twinblk.toml",
            );
        }
    }
    root.finish(&[], found);
}

fn read_cluster<'a>(root: &mut Section<'a>, draft: &mut Draft<'a>, found: &mut Findings) {
    read_version(root, found);
    root.require("cluster", "a table: [cluster] with name = \"lab\"", found);
    if let Some(section) = root.section("cluster", "`[cluster]`".into(), found) {
        draft.cluster = read_cluster_name(section, found);
    }
    for (name, section) in root.named_sections("node", found) {
        draft.nodes.push(read_node(name, section, found));
    }
    if let Some(section) = root.section("quorum", "`[quorum]`".into(), found) {
        draft.quorum = read_quorum(section, found);
    }
    draft.net = root
        .section("net", "`[net]`".into(), found)
        .map(|s| read_net(s, found));
    draft.resync = root
        .section("resync", "`[resync]`".into(), found)
        .map(|s| read_resync(s, found));
    if let Some(section) = root.section("verify", "`[verify]`".into(), found) {
        draft.verify = read_verify(section, found);
    }
    if let Some(section) = root.section("nbd", "`[nbd]`".into(), found) {
        draft.nbd = read_nbd(section, found);
    }
    draft.metrics = root
        .section("metrics", "`[metrics]`".into(), found)
        .map(|s| read_metrics(s, found));
    draft.log = root
        .section("log", "`[log]`".into(), found)
        .map(|s| read_log(s, found));
}

fn read_cluster_name(mut section: Section<'_>, found: &mut Findings) -> Option<String> {
    section.require("name", "name = \"lab\"", found);
    let name = section.string("name", found);
    if let Some(name) = &name {
        check_name(found, "cluster", name.value, name.span);
    }
    section.finish(&[], found);
    name.map(|name| name.value.to_owned())
}

fn read_version(root: &mut Section<'_>, found: &mut Findings) {
    if let Some(version) = root.integer("config-version", 0..=u32::MAX, found)
        && version.value != 1
    {
        let message = format!("config-version {} is not known here", version.value);
        let label = "this program reads version 1";
        found.at(ErrorId::ConfigVersion, version.span, message, label);
    }
}

/// Reports a name that cannot be one.
pub(super) fn check_name(found: &mut Findings, what: &str, name: &str, span: Span) {
    if let Some(fault) = super::units::name_fault(name) {
        let message = format!("\"{}\" cannot name a {what}", shown(name));
        found.at(ErrorId::BadValue, span, message, fault);
    }
}

fn read_node(name: Located<String>, mut section: Section<'_>, found: &mut Findings) -> DraftNode {
    check_name(found, "node", &name.value, name.span);
    let roles = [
        ("data", NodeRole::Data),
        ("arbitrator", NodeRole::Arbitrator),
    ];
    let role = section
        .word("role", &roles, found)
        .map_or(NodeRole::Data, |role| role.value);
    let written = section.strings("address", found);
    section.require("address", "address = [\"10.9.0.1:7790\"]", found);
    let addresses = written.unwrap_or_default().into_iter();
    let addresses = addresses
        .filter_map(|text| read_address(&text, found))
        .collect::<Vec<_>>();
    let libvirt = section.string("libvirt", found);
    section.finish(&[], found);
    DraftNode {
        name,
        role,
        addresses,
        libvirt: libvirt.map_or(LIBVIRT, |uri| uri.value).to_owned(),
    }
}

fn read_address(
    text: &Located<&str>,
    found: &mut Findings,
) -> Option<Located<std::net::SocketAddr>> {
    let fault = match text.value.parse::<std::net::SocketAddr>() {
        Err(_) => "write IP:PORT, such as \"10.9.0.1:7790\" or \"[fd00::1]:7790\"",
        Ok(address) if address.port() == 0 => "the port must be fixed: the other nodes dial it",
        Ok(address) if address.ip().is_unspecified() || address.ip().is_multicast() => {
            "write an address of this very node: the other nodes dial it"
        }
        Ok(value) => {
            return Some(Located {
                value,
                span: text.span,
            });
        }
    };
    super::reader::bad_value(found, "address", text.value, text.span, fault);
    None
}

fn read_quorum(mut section: Section<'_>, found: &mut Findings) -> QuorumConfig {
    let timings = [
        ("fast", TimingProfile::Fast),
        ("default", TimingProfile::Default),
        ("relaxed", TimingProfile::Relaxed),
    ];
    let answers = [
        ("suspend-io", OnNoQuorum::SuspendIo),
        ("io-error", OnNoQuorum::IoError),
    ];
    let watchdogs = [
        ("auto", Watchdog::Auto),
        ("off", Watchdog::Off),
        ("required", Watchdog::Required),
    ];
    let quorum = QuorumConfig {
        timing: section
            .word("timing", &timings, found)
            .map(|w| w.value)
            .unwrap_or_default(),
        on_no_quorum: section
            .word("on-no-quorum", &answers, found)
            .map(|w| w.value)
            .unwrap_or_default(),
        watchdog: section
            .word("watchdog", &watchdogs, found)
            .map(|w| w.value)
            .unwrap_or_default(),
    };
    section.finish(effect::QUORUM, found);
    quorum
}

/// `[net]` when the section is missing.
pub(super) fn default_net() -> NetConfig {
    NetConfig {
        protocol: ReplicationProtocol::C,
        tls: Tls::Required,
        insecure: false,
        timeout: NET_TIMEOUT,
    }
}

const PROTOCOLS: [(&str, ReplicationProtocol); 3] = [
    ("C", ReplicationProtocol::C),
    ("B", ReplicationProtocol::B),
    ("A", ReplicationProtocol::A),
];

pub(super) const FAILOVERS: [(&str, Failover); 2] =
    [("auto", Failover::Auto), ("manual", Failover::Manual)];

fn read_net(mut section: Section<'_>, found: &mut Findings) -> DraftNet {
    let tls_words = [
        ("required", Tls::Required),
        ("control-only", Tls::ControlOnly),
        ("off", Tls::Off),
    ];
    let default = default_net();
    let protocol = section.word("protocol", &PROTOCOLS, found);
    let tls = section.word("tls", &tls_words, found);
    let net = NetConfig {
        protocol: protocol
            .as_ref()
            .map_or(default.protocol, |word| word.value),
        tls: tls.as_ref().map_or(default.tls, |word| word.value),
        insecure: section
            .boolean("insecure", found)
            .unwrap_or(default.insecure),
        timeout: section
            .duration("timeout", found)
            .unwrap_or(default.timeout),
    };
    section.finish(effect::NET, found);
    DraftNet {
        net,
        protocol: protocol.map(|word| word.span),
        tls: tls.map(|word| word.span),
    }
}

/// `[resync]` when the section is missing.
pub(super) fn default_resync() -> ResyncConfig {
    ResyncConfig {
        max_rate: super::types::Rate::Auto,
        guest_latency_target: GUEST_LATENCY_TARGET,
        parallel: 1,
        checksum_first: false,
    }
}

fn read_resync(mut section: Section<'_>, found: &mut Findings) -> ResyncConfig {
    let default = default_resync();
    let resync = ResyncConfig {
        max_rate: section.rate("max-rate", found).unwrap_or(default.max_rate),
        guest_latency_target: section
            .duration("guest-latency-target", found)
            .unwrap_or(default.guest_latency_target),
        parallel: section
            .integer("parallel", 1..=64, found)
            .map_or(default.parallel, |n| n.value),
        checksum_first: section
            .boolean("checksum-first", found)
            .unwrap_or(default.checksum_first),
    };
    section.finish(effect::RESYNC, found);
    resync
}

fn read_verify(mut section: Section<'_>, found: &mut Findings) -> VerifyConfig {
    let schedule = section
        .string("schedule", found)
        .map_or("", |text| text.value);
    let repairs = [("report", false), ("from-primary", true)];
    let repair = section
        .word("repair", &repairs, found)
        .is_some_and(|word| word.value);
    section.finish(effect::VERIFY, found);
    VerifyConfig {
        schedule: schedule.to_owned(),
        repair_from_primary: repair,
    }
}

/// `[nbd]` when the section is missing.
pub(super) fn default_nbd() -> NbdConfig {
    NbdConfig {
        max_connections: NBD_CONNECTIONS,
        listen: [None; 2],
        tls_dir: tls_dir_default(&[None; 2]),
    }
}

fn read_nbd<'a>(mut section: Section<'a>, found: &mut Findings) -> DraftNbd<'a> {
    let connections = section.integer("max-connections", 1..=65_536, found);
    let nbd = DraftNbd {
        max_connections: connections.map(|n| n.value),
        listen: section.string_per_node("listen", "IP:PORT", found),
        tls_dir: section.string("tls-dir", found),
    };
    section.finish(effect::NBD, found);
    nbd
}

/// `[metrics]` when the section is missing.
pub(super) fn default_metrics() -> MetricsConfig {
    MetricsConfig {
        listen: METRICS_LISTEN.parse().ok(),
        explicit: false,
    }
}

fn read_metrics(mut section: Section<'_>, found: &mut Findings) -> MetricsConfig {
    let listen = section.listen("listen", found);
    section.finish(effect::METRICS, found);
    listen.map_or_else(default_metrics, |listen| MetricsConfig {
        listen,
        explicit: true,
    })
}

/// `[log]` when the section is missing.
pub(super) fn default_log() -> LogConfig {
    LogConfig {
        level: "info".to_owned(),
        target: LogTarget::Auto,
    }
}

fn read_log(mut section: Section<'_>, found: &mut Findings) -> LogConfig {
    let default = default_log();
    let targets = [
        ("auto", LogTarget::Auto),
        ("journald", LogTarget::Journald),
        ("stderr", LogTarget::Stderr),
    ];
    let level = section.string("level", found);
    let log = LogConfig {
        level: level.map_or(default.level, |text| text.value.to_owned()),
        target: section
            .word("target", &targets, found)
            .map_or(default.target, |word| word.value),
    };
    section.finish(effect::LOG, found);
    log
}

fn read_resource<'a>(
    name: Located<String>,
    mut section: Section<'a>,
    found: &mut Findings,
) -> DraftResource<'a> {
    check_name(found, "resource", &name.value, name.span);
    let prefer = section.string("prefer", found);
    let failback = section.failback("failback", found).unwrap_or_default();
    let hold_down = section.duration("hold-down", found);
    let priority = section
        .integer("priority", 0..=1_000_000, found)
        .map_or(10, |n| n.value);
    let protocol = section.word("protocol", &PROTOCOLS, found);
    let failover = section.word("failover", &FAILOVERS, found);
    let forward = section.boolean("forward", found).unwrap_or(false);
    let read_only_export = section.boolean("read-only-export", found).unwrap_or(false);
    let nbd_allow = read_nbd_allow(&mut section, found);
    let volumes = section.repeated_sections("volume", found);
    let example = format!(
        "a table: [[resource.{}.volume]] with id, disk and meta",
        name.value
    );
    section.require("volume", &example, found);
    let what = format!("guest of {}", section.what());
    let guest = section
        .section("guest", what, found)
        .and_then(|s| read_guest(s, found));
    section.finish(effect::RESOURCE, found);
    let volumes = volumes
        .into_iter()
        .filter_map(|section| read_volume(section, found))
        .collect();
    DraftResource {
        name,
        prefer,
        failback,
        hold_down: hold_down.unwrap_or(HOLD_DOWN_DEFAULT),
        priority,
        protocol,
        failover: failover.map_or(Failover::Auto, |word| word.value),
        forward,
        read_only_export,
        nbd_allow,
        volumes,
        guest,
    }
}

/// A subject that cannot be read stays out: its own error says enough, and no client is let in for
/// it.
fn read_nbd_allow(
    section: &mut Section<'_>,
    found: &mut Findings,
) -> Option<Vec<CertificateSubject>> {
    let written = section.strings("nbd-allow", found)?;
    let subjects = written.into_iter().filter_map(|text| {
        CertificateSubject::parse(text.value)
            .map_err(|hint| bad_value(found, "nbd-allow", text.value, text.span, hint))
            .ok()
    });
    Some(subjects.collect())
}

/// A host that was just mended has shown by then that it stays up.
pub(super) const HOLD_DOWN_DEFAULT: Duration = Duration::from_secs(600);

/// How libvirt is reached where a node's table does not say.
pub(super) const LIBVIRT: &str = "qemu:///system";

/// A guest gets a minute to shut down.
pub(super) const ON_DEMOTE: [DemoteStep; 2] = [
    DemoteStep::Shutdown(Duration::from_secs(60)),
    DemoteStep::Destroy,
];

/// Longer than a disk with a full queue takes for one operation of it. A flush gets more.
pub(super) const DISK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Shorter than this a healthy disk that is busy for a moment would be written off.
pub(super) const DISK_TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Keys of a volume that are of the whole replica: those of volume 0 count.
const OF_REPLICA: [&str; 3] = ["disk-timeout", "al-extents", "meta"];

fn read_volume<'a>(mut section: Section<'a>, found: &mut Findings) -> Option<DraftVolume<'a>> {
    let id = section.integer("id", 0..=u32::from(u16::MAX), found);
    let size = section.size("size", found);
    let disk_timeout = section
        .patience("disk-timeout", DISK_TIMEOUT_MIN, found)
        .unwrap_or(DISK_TIMEOUT_DEFAULT);
    let al_range = u32::from(SLOTS_MIN)..=u32::from(SLOTS_MAX);
    let al_extents = section.integer("al-extents", al_range, found);
    let disk = section.string_per_node("disk", "path", found);
    let meta = section.string_per_node("meta", "path", found);
    section.require("id", "id = 0", found);
    section.require("disk", "disk = \"/dev/VG/LV\"", found);
    if id.as_ref().is_none_or(|id| id.value == 0) {
        section.require("meta", "meta = \"/dev/VG/LV.md\"", found);
    }
    let of_replica = OF_REPLICA
        .iter()
        .filter_map(|key| Some((*key, section.key_span(key)?)))
        .collect();
    section.finish(&[], found);
    Some(DraftVolume {
        id: id?,
        size,
        // DRBD's word for never.
        disk_timeout: Some(disk_timeout).filter(|timeout| !timeout.is_zero()),
        al_extents: al_extents
            .and_then(|slots| u16::try_from(slots.value).ok())
            .unwrap_or(SLOTS_DEFAULT),
        disk,
        meta,
        of_replica,
    })
}

/// virsh(1) looks a domain up by its id, then by its UUID, then by its name.
fn is_no_domain_name(name: &str) -> bool {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    let uuid = name.len() >= 32 && name.bytes().all(hex);
    name.is_empty() || digits || uuid || name.starts_with('-')
}

fn read_guest(mut section: Section<'_>, found: &mut Findings) -> Option<GuestConfig> {
    let actions = [("start", true), ("leave", false)];
    let domain = section
        .string("domain", found)
        .map(|text| text.value.to_owned());
    section.require("domain", "domain = \"NAME\"", found);
    if let Some(at) = section.key_span("domain")
        && let Some(name) = domain.as_deref()
        && is_no_domain_name(name)
    {
        let message = format!("{} is not taken for the name of a domain", shown(name));
        let label = "virsh takes it for an option, an id or a UUID: rename the domain";
        found.at(ErrorId::BadValue, at, message, label);
    }
    let target = section
        .string("target", found)
        .map(|text| text.value.to_owned());
    let start = section.word("on-failover", &actions, found);
    let on_demote = section.demote_steps("on-demote", found);
    section.finish(&[], found);
    Some(GuestConfig {
        domain: domain?,
        target,
        start_on_failover: start.is_none_or(|word| word.value),
        on_demote: on_demote.unwrap_or_else(|| ON_DEMOTE.to_vec()),
    })
}
