//! What `what-if` answers: the schema `twinblk.what-if/1`.

use serde::{Deserialize, Serialize};

/// Value of [`WhatIfReport::schema`].
pub const WHAT_IF_SCHEMA: &str = "twinblk.what-if/1";

/// What would become of the resources if a node died now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhatIfReport {
    /// [`WHAT_IF_SCHEMA`].
    pub schema: String,
    /// When, as [`super::rfc3339_seconds`].
    pub generated: String,
    /// Who says so: a data node that would be left.
    pub node: String,
    /// The node that would be dead.
    pub dead: String,
    /// Ordered by name.
    pub resources: Vec<FateReport>,
    /// What it would mean for the next loss, a sentence without a full stop.
    pub outlook: String,
}

/// What would become of one resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FateReport {
    /// Its name.
    pub resource: String,
    /// The short answer.
    pub fate: FateKind,
    /// The answer in one sentence, without a full stop.
    pub text: String,
    /// Who serves it now, as far as it is known.
    pub primary_now: Option<String>,
    /// Who would serve it then.
    pub primary_then: Option<String>,
    /// How long its guests would wait, about; `None` if for ever or not at all.
    pub after_seconds: Option<f64>,
    /// Why nobody would serve it, or its guests would wait; empty if neither.
    pub why: Vec<String>,
    /// What would have to be done first; empty if nothing.
    pub help: Vec<String>,
}

/// The short answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FateKind {
    /// Nothing happens to it.
    Unaffected,
    /// Its Primary goes on after a pause.
    GoesOn,
    /// It moves to the node that is left.
    Moves,
    /// Its guests would wait.
    Held,
    /// Nobody would serve it.
    NobodyServes,
}
