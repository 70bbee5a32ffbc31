//! What `why` and `quorum show` answer: the schemas `twinblk.why/1` and `twinblk.quorum/1`.
//!
//! Within `/1` fields are only added. `None` is JSON `null` and means unknown or not applicable.

use serde::{Deserialize, Serialize};

use super::history::HistoryEntry;
use super::status::PlacementStatus;
use crate::types::Failover;

/// Value of [`WhyReport::schema`].
pub const WHY_SCHEMA: &str = "twinblk.why/1";

/// Value of [`QuorumReport::schema`].
pub const QUORUM_SCHEMA: &str = "twinblk.quorum/1";

/// How a node stands to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is Primary.
    Primary,
    /// The other node is, and is alive.
    Secondary,
    /// Nothing is in the way: it is about to be.
    Proposing,
    /// Something is in the way that may pass by itself.
    Waiting,
    /// It waits for an operator's order, and nothing else is in the way.
    AwaitsOrder,
    /// Something is in the way that waiting does not mend.
    Blocked,
}

/// Why a node is Primary of a resource or is not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyReport {
    /// [`WHY_SCHEMA`].
    pub schema: String,
    /// When, as [`super::rfc3339_seconds`].
    pub generated: String,
    /// The node it is about; it says so itself.
    pub node: String,
    /// The resource.
    pub resource: String,
    /// The short answer.
    pub verdict: Verdict,
    /// The answer in one sentence, without a full stop.
    pub summary: String,
    /// What must hold, in the order in which it is asked.
    pub preconditions: Vec<PreconditionReport>,
    /// The newest view known there.
    pub view: Option<ViewReport>,
    /// Whom it sees.
    pub voters: Vec<VoterReport>,
    /// Votes needed to change a view.
    pub votes_needed: u8,
    /// What it has from its peer while it is Primary.
    pub lease: LeaseReport,
    /// What its peer has from it.
    pub grant: GrantReport,
    /// Whether it takes over by itself.
    pub failover: Failover,
    /// The order being carried out there.
    pub order: Option<String>,
    /// The proposal being decided.
    pub proposal: Option<String>,
    /// Why the last proposal came to nothing, if that was the last thing that happened.
    pub last_abort: Option<String>,
    /// What its peer said last, while it is heard.
    pub peer: Option<PeerReport>,
    /// What would be lost if it were made Primary by force now, in words.
    pub force_loses: String,
    /// The same in bytes, if it is known; what is known may be less than what would be lost.
    pub force_loses_bytes: Option<u64>,
    /// How it stands to its preferred node; `None` without one.
    #[serde(default)]
    pub placement: Option<PlacementStatus>,
    /// The last decisions noted there, oldest first.
    pub history: Vec<HistoryEntry>,
    /// Commands that help, most likely first; empty when nothing needs help.
    pub help: Vec<String>,
}

/// One precondition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreconditionReport {
    /// Its stable word.
    pub name: String,
    /// Whether it holds; `None`: it does not arise as things are.
    pub met: Option<bool>,
    /// The evidence, in words.
    pub text: String,
}

/// A view for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewReport {
    /// Its number.
    pub number: u64,
    /// Whether it is known to be committed.
    pub committed: bool,
    /// Whom it names Primary.
    pub primary: String,
    /// Whom it counts on.
    pub in_sync: Vec<String>,
    /// An order by hand holds.
    pub held: bool,
    /// Acknowledged writes may be missing.
    pub lossy: bool,
    /// Why it was made: `Founded`, `TookOver`, ….
    pub cause: String,
}

/// One voter as a node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VoterReport {
    /// Its name.
    pub node: String,
    /// `data` or `arbitrator`.
    pub role: String,
    /// Identity of its voter store in hexadecimal; `None` while it was never heard.
    pub id: Option<String>,
    /// Whether it answered lately.
    pub seen: bool,
    /// How long ago; `None`: never since the daemon started.
    pub last_seen_seconds: Option<f64>,
    /// Round trip of its last answer.
    pub rtt_seconds: Option<f64>,
    /// Paths that brought something from it lately.
    pub paths_up: u8,
}

/// The holder's side of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// Serving needs it, because the view counts on the peer.
    pub needed: bool,
    /// It is needed and over: guests wait.
    pub lapsed: bool,
    /// How long it runs; `None` without one.
    pub remaining_seconds: Option<f64>,
}

/// The granter's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrantReport {
    /// How long the peer may still rely on this node's silence; `None` if it may not.
    pub remaining_seconds: Option<f64>,
    /// It may have been given before the daemon started.
    pub boot_wait: bool,
    /// Views up to this one are refused.
    pub seal: u64,
}

/// What a peer's beacons say about the resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name.
    pub node: String,
    /// It takes part there.
    pub up: bool,
    /// It serves there.
    pub active: bool,
    /// A replica is attached there.
    pub attached: bool,
    /// The newest view it knows.
    pub view: u64,
}

/// Who votes, and what was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuorumReport {
    /// [`QUORUM_SCHEMA`].
    pub schema: String,
    /// When, as [`super::rfc3339_seconds`].
    pub generated: String,
    /// Who says so.
    pub node: String,
    /// The cluster.
    pub cluster: String,
    /// Whether a majority is seen.
    pub quorum: bool,
    /// Voters seen, this node included.
    pub votes_seen: u8,
    /// Votes needed.
    pub votes_needed: u8,
    /// All configured ones.
    pub voters: Vec<VoterReport>,
    /// Why this node's own votes are not recorded; `None` while they are.
    pub store_error: Option<String>,
    /// The deadlines.
    pub timing: TimingReport,
    /// What the loss of one more voter would mean, a sentence without a full stop.
    pub outlook: String,
    /// One per resource that this voter has a record of, by name.
    pub resources: Vec<BallotReport>,
}

/// The timing profile and what follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimingReport {
    /// `fast`, `default` or `relaxed`.
    pub profile: String,
    /// Time between beacons.
    pub beacon_seconds: f64,
    /// Silence after which a Primary goes on without its peer.
    pub suspicion_seconds: f64,
    /// How long a Primary may serve after its last answered beacon.
    pub lease_seconds: f64,
    /// How long its peer waits before it takes over.
    pub grant_seconds: f64,
    /// The same in sentences, without full stops.
    pub words: Vec<String>,
}

/// What one voter recorded about one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BallotReport {
    /// Its name; on the arbitrator, which knows no names, its id.
    pub resource: String,
    /// The ballot below which this voter takes nothing: `round.node.life`.
    pub promised: String,
    /// The ballot of what it accepted last.
    pub accepted: Option<String>,
    /// The view it accepted last.
    pub accepted_view: Option<ViewReport>,
    /// The newest view it knows to be committed.
    pub committed_view: Option<u64>,
    /// Voters that the view counts, by name.
    pub recorded: Vec<String>,
    /// Views up to this one are refused here.
    pub seal: u64,
}
