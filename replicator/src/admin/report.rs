//! What a refused or failed order says: what, why, what next.

use serde::{Deserialize, Serialize};

use super::catalogue::ErrorId;

/// Exit codes of `twinadm` and of the daemons; documented in every man page.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// The operation failed.
    pub const FAILED: u8 = 1;
    /// Wrong command line.
    pub const USAGE: u8 = 2;
    /// Invalid configuration.
    pub const CONFIG: u8 = 3;
    /// A safety rule forbids it.
    pub const REFUSED: u8 = 4;
    /// No quorum, or no lease.
    pub const QUORUM: u8 = 5;
    /// Daemon or peer not reachable.
    pub const UNREACHABLE: u8 = 6;
    /// No such resource, node or guest.
    pub const NOT_FOUND: u8 = 7;
    /// Not permitted.
    pub const PERMISSION: u8 = 8;
    /// Timed out waiting.
    pub const TIMEOUT: u8 = 9;
    /// `status --check`: degraded.
    pub const DEGRADED: u8 = 12;
    /// `status --check`: data unavailable or held.
    pub const UNAVAILABLE: u8 = 13;
    /// `--dry-run`: something would change.
    pub const PENDING: u8 = 14;
    /// Interrupted.
    pub const INTERRUPTED: u8 = 130;
}

/// An error as users see it. Made from a catalogue entry, so that it always has an id, an exit
/// code and a next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// Stable id, `E` and four digits.
    pub id: String,
    /// What was not done; no full stop.
    pub what: String,
    /// Why; no full stop. May be empty when `what` says it all.
    pub why: String,
    /// What to do next, most likely first; never empty.
    pub next: Vec<String>,
    /// Exit code of the command.
    pub exit: u8,
}

impl ErrorReport {
    /// A report with the catalogue's next steps.
    #[must_use]
    pub fn new(id: ErrorId, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            id: id.code().to_owned(),
            what: what.into(),
            why: why.into(),
            next: id.next().iter().map(|step| (*step).to_owned()).collect(),
            exit: id.exit(),
        }
    }

    /// The same with one better next step for this very case; repeated calls append.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        let general = ErrorId::from_code(&self.id).map_or(&[][..], ErrorId::next);
        if self
            .next
            .iter()
            .map(String::as_str)
            .eq(general.iter().copied())
        {
            self.next.clear();
        }
        self.next.push(step.into());
        self
    }
}
