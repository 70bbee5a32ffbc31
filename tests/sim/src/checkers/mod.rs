//! Checkers: what must be true of a history, apart from who made it.
//!
//! | file | promise |
//! |---|---|
//! | [`history`] | acknowledged writes are there, reads are never stale, flushed data survives (K1, K2) |
//! | [`writer`] | one writer, solo only by majority, one view per number (K4) |
//! | [`dirty`] | what differs is marked (K7) |
//! | [`state`] | states say the truth, the pair converges (K6, K8) |

pub mod dirty;
pub mod history;
pub mod state;
pub mod writer;

use core::fmt;

/// A promise that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise, in two words.
    pub promise: &'static str,
    /// What was seen, with the numbers.
    pub detail: String,
}

impl Violation {
    /// A violation of `promise`.
    #[must_use]
    pub fn new(promise: &'static str, detail: String) -> Self {
        Self { promise, detail }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.detail)
    }
}

/// What a check says.
pub type Checked = Result<(), Violation>;
