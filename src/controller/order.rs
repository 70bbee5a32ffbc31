//! Orders by operators: how they end, and the words for it.

use core::time::Duration;

use replicator::types::ViewNumber;

use super::output::Blocker;

/// An order was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Nothing had to be done.
    pub already: bool,
    /// The newest committed view known then; 0 if the resource was never founded.
    pub view: ViewNumber,
}

/// An order was not carried out. Nothing stays half done: what was begun was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderRefusal {
    /// The resource is not configured on this node.
    UnknownResource,
    /// Another order for the resource is being carried out.
    Busy,
    /// `down` or `secondary` took its place.
    Superseded,
    /// The order cannot be carried out as things are, and waiting does not mend it; or it did not
    /// within the time given.
    Blocked {
        /// What stands in the way; never empty.
        blockers: Vec<Blocker>,
        /// How long was waited; zero if waiting cannot mend it.
        waited: Duration,
    },
}

/// How a refusal maps to `twinadm`'s exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// 4: refused by a safety rule.
    Safety,
    /// 5: no quorum, or a lease that is not over.
    Quorum,
    /// 7: no such resource.
    Unknown,
    /// 1: anything else.
    Failed,
}

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Stable id, `E0412`.
    pub id: &'static str,
    /// For the exit code.
    pub kind: RefusalKind,
    /// What was refused.
    pub what: String,
    /// Why, one reason a line.
    pub why: Vec<String>,
    /// What to do next, one step a line; never empty.
    pub next: Vec<String>,
}

/// Names for people, which the controller does not know.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The resource.
    pub resource: &'a str,
    /// This node.
    pub node: &'a str,
    /// The other data node.
    pub peer: &'a str,
}
