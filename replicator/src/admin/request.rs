//! Requests and answers of the control socket.

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::history::HistoryReport;
use super::report::ErrorReport;
use super::status::Status;
use super::what_if::WhatIfReport;
use super::why::{QuorumReport, WhyReport};

/// One request: one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What is wanted.
    #[serde(flatten)]
    pub verb: Verb,
    /// The node it is about; absent: the node that answers. A daemon that is not that node passes
    /// the request on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How long the client is ready to wait for what can still arrive; absent: the verb's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What a client can want. `resource` is always one configured resource: the client expands `all`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are the verbs' own words")]
pub enum Verb {
    /// The snapshot of one resource or of all; answered by [`Response::Status`].
    Status { resource: Option<String> },
    /// Attach, connect, export; lifts a hold made by hand.
    Up { resource: String },
    /// The reverse; a Primary is demoted first. `force` drops attached NBD clients.
    Down {
        resource: String,
        #[serde(default)]
        force: bool,
    },
    /// Attach the backing device.
    Attach {
        resource: String,
        volume: Option<u16>,
    },
    /// Let go of the backing device.
    Detach {
        resource: String,
        volume: Option<u16>,
    },
    /// Connect to the peer, and stay so.
    Connect {
        resource: String,
        peer: Option<String>,
    },
    /// Drop the connection, and do not reconnect.
    Disconnect {
        resource: String,
        peer: Option<String>,
    },
    /// Become Primary: waits for what can still arrive, refuses at once what waiting cannot mend.
    /// With `force` whatever the view and the voters say, if `yes_lose` is `RES@VIEW`, the resource and
    /// the newest view known: what this replica lacks is given up here.
    Primary {
        resource: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        yes_lose: Option<String>,
    },
    /// Stop being Primary, and hold so. `force` drops attached NBD clients.
    Secondary {
        resource: String,
        #[serde(default)]
        force: bool,
    },
    /// Make `to` the Primary in place of the node that is. Answered by the Primary, whoever is asked;
    /// `passed_on` says that somebody thought this one was, and looked no further.
    Move {
        resource: String,
        to: String,
        #[serde(default)]
        passed_on: bool,
    },
    /// Move everything that the node serves to the other one, and take nothing over until `node-resume`.
    NodeDrain,
    /// The end of it.
    NodeResume,
    /// This node takes nothing over by itself while it is `on`, and hands nothing over when it stops.
    Maintenance { on: bool },
    /// The operator's word that the node `dead` does not run: what it was promised needs no waiting.
    ConfirmFenced { dead: String },
    /// Hold the resource's resyncs, those to come too.
    PauseSync { resource: String },
    /// Do not hold them here any more.
    ResumeSync { resource: String },
    /// Hold guests' writes; done once all before them is durable on every replica in sync.
    SuspendIo { resource: String },
    /// Let guests write again.
    ResumeIo { resource: String },
    /// Make the volume larger: of this size in bytes, or as large as both disks allow. Answered by the
    /// Primary.
    Resize {
        resource: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// How large the volume, of several the last, could be here, asked by the Primary: with `size` a metadata file is
    /// lengthened for it first. Answered by [`Response::Room`].
    Room {
        resource: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// Set how fast the resource's resyncs may go, on both nodes.
    Resync { resource: String, max_rate: MaxRate },
    /// Make what runs match the files, of one resource or of all; with `dry_run` only say what would
    /// change. Answered by [`Response::Adjusted`].
    Adjust {
        resource: Option<String>,
        #[serde(default)]
        dry_run: bool,
    },
    /// Throw this Secondary's data away and copy everything from the peer.
    Invalidate {
        resource: String,
        from: String,
        /// Most bytes that only this replica has and that may be lost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        yes_discard: Option<u64>,
    },
    /// The same for the peer's, asked on the node whose data are kept.
    InvalidateRemote {
        resource: String,
        peer: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        yes_discard: Option<u64>,
    },
    /// Compare both replicas and write again what differs if `repair`; or stop that.
    Verify {
        resource: String,
        #[serde(default)]
        repair: bool,
        #[serde(default)]
        stop: bool,
    },
    /// The snapshot as events, then each change, until the client closes; with `now` the snapshot
    /// alone. Answered by [`Response::Event`] lines.
    Events2 {
        resource: Option<String>,
        #[serde(default)]
        now: bool,
    },
    /// Why the node is Primary of the resource, or is not; answered by [`Response::Why`].
    Why { resource: String },
    /// Who votes, and what was decided; answered by [`Response::Quorum`].
    Quorum,
    /// What would become of the resources if the node `kill` died now; answered by
    /// [`Response::WhatIf`], by a data node that would be left, whoever is asked.
    WhatIf { kill: String },
    /// The newest `count` decisions about the resource; answered by [`Response::History`].
    History { resource: String, count: u32 },
    /// Start the daemon's program again in its place; its clients reconnect. Answered before it is done.
    Reexec,
    /// Which program answers; answered by [`Response::Version`].
    Version,
}

/// How fast resyncs may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaxRate {
    /// As fast as guests do not feel it.
    Auto,
    /// As fast as the disks and the link allow, whatever guests feel.
    Unlimited,
    /// So many at most; not 0.
    BytesPerSecond(u64),
}

impl MaxRate {
    /// The limit in bytes a second, if it is one.
    #[must_use]
    pub fn limit(self) -> Option<u64> {
        match self {
            Self::Auto | Self::Unlimited => None,
            Self::BytesPerSecond(rate) => Some(rate),
        }
    }
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Response {
    /// Final: the order is carried out, or there was nothing to do.
    Done {
        /// `false`: it was so already.
        changed: bool,
        /// For a person, without a full stop: "vm-web is up", "already up".
        message: String,
    },
    /// Final: it was not done.
    Error(ErrorReport),
    /// Not final: what is being waited for.
    Progress {
        /// For a person, without a full stop.
        message: String,
    },
    /// Final: the snapshot.
    Status(Box<Status>),
    /// One event of `events2`; final only for `now`, after [`Event::end_of_snapshot`].
    Event(Event),
    /// Final: what the files say differently, and what became of it.
    Adjusted {
        /// In the order of the keys' names, new and removed resources first.
        changes: Vec<ConfigChange>,
        /// Nothing was changed.
        dry_run: bool,
    },
    /// Final: why.
    Why(Box<WhyReport>),
    /// Final: the voters.
    Quorum(Box<QuorumReport>),
    /// Final: a dry run.
    WhatIf(Box<WhatIfReport>),
    /// Final: decisions.
    History(HistoryReport),
    /// Final: what there is room for.
    Room(RoomReport),
    /// Final: who answers.
    Version(VersionInfo),
}

/// A difference between what a daemon runs with and its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// `net.timeout`, `vm-web.volume[0].disk`, or `resource vm-web` for all of it.
    pub key: String,
    /// Its value so far, as TOML; absent for a whole resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its value in the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What becomes of it.
    pub effect: ChangeEffect,
}

/// What becomes of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeEffect {
    /// In force at once, nothing is interrupted.
    Live,
    /// A new resource, known from then on.
    Added,
    /// A resource that is down is forgotten.
    Removed,
    /// The resource is up: it stays as it is until it is down and `adjust` is given again.
    WaitsForDown,
    /// Counts from the next start of the daemon.
    WaitsForRestart,
    /// Counts for metadata that are made from now on: a volume that is there is resized by order.
    ForNewMetadata,
    /// The same, and no order changes what is there: where each volume of a replica starts is fixed.
    OnlyForNewMetadata,
}

impl ConfigChange {
    /// Whether `adjust` carries it out.
    #[must_use]
    pub fn is_carried_out(&self) -> bool {
        !matches!(
            self.effect,
            ChangeEffect::WaitsForDown
                | ChangeEffect::WaitsForRestart
                | ChangeEffect::OnlyForNewMetadata
        )
    }
}

/// One line, as `adjust` prints it: `~ vm-web.failover  "auto" → "manual"  live`.
impl std::fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sign, words) = match self.effect {
            ChangeEffect::Live => ('~', "live, no interruption"),
            ChangeEffect::Added => (
                '+',
                "known now; if it is new: twinadm create-md, then twinadm up",
            ),
            ChangeEffect::Removed => (
                '-',
                "no longer known here; its disks and its name's history stay",
            ),
            ChangeEffect::WaitsForDown => ('!', "kept while it is up: twinadm down, adjust, up"),
            ChangeEffect::WaitsForRestart => ('!', "with the next start of the daemon"),
            ChangeEffect::ForNewMetadata => (
                '~',
                "for create-md; the volume that is there: twinadm resize",
            ),
            ChangeEffect::OnlyForNewMetadata => (
                '!',
                "for create-md only: a replica that is there keeps its volumes, or is not attached",
            ),
        };
        write!(f, "{sign} {}", self.key)?;
        if self.from.is_some() || self.to.is_some() {
            let value = |value: &Option<String>| value.clone().unwrap_or("unset".to_owned());
            write!(f, "  {} → {}", value(&self.from), value(&self.to))?;
        }
        write!(f, "  {words}")
    }
}

/// What a node has room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomReport {
    /// Path of the data device.
    pub disk: String,
    /// Its length now.
    pub disk_bytes: u64,
    /// Path of the metadata area.
    pub meta: String,
    /// Its length now.
    pub meta_bytes: u64,
    /// Length that it needs for the size asked about, if one was.
    #[serde(default)]
    pub meta_needed_bytes: Option<u64>,
}

/// Which program answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// `twinblkd` or `twinblk-arbitrator`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// The node it runs as.
    pub node: String,
    /// When it started, in seconds since 1970-01-01 UTC.
    #[serde(default)]
    pub started: f64,
}

impl Response {
    /// Whether nothing follows it. `events2` never ends by itself unless `now` was asked for.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Progress { .. } | Self::Event(_))
    }
}

impl From<Verb> for Request {
    fn from(verb: Verb) -> Self {
        Self {
            verb,
            node: None,
            timeout_ms: None,
        }
    }
}
