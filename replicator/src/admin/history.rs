//! What `history` answers: the schema `twinblk.history/1`.

use serde::{Deserialize, Serialize};

/// Value of [`HistoryReport::schema`].
pub const HISTORY_SCHEMA: &str = "twinblk.history/1";

/// What was decided about a resource, as one node noted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// [`HISTORY_SCHEMA`].
    pub schema: String,
    /// Who noted it.
    pub node: String,
    /// The resource.
    pub resource: String,
    /// Oldest first.
    pub entries: Vec<HistoryEntry>,
    /// Whether older ones were left out, or are not kept any more.
    pub more: bool,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Milliseconds since 1970-01-01 UTC, on the clock of the node that noted it.
    pub unix_millis: u64,
    /// `view`, `primary`, `secondary`, `takeover`, `refused`, `lease`, `order`, `failback`,
    /// `store` or `alarm`.
    pub kind: String,
    /// The view it is about.
    pub view: Option<u64>,
    /// Who decided: a node, or the user who gave the order.
    pub by: Option<String>,
    /// What and why, a sentence without a full stop.
    pub text: String,
}
