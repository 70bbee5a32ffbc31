//! `twinadm demo`: a pair and an arbitrator on this machine, a writer, a fault, a verdict.
//!
//! Owns a temporary directory, three child processes of the programs that lie beside `twinadm`,
//! and a writer that talks real NBD. Knows nothing of how replication works: it orders with
//! `twinadm`'s own verbs, watches `status --json`, and judges from the writer's journal and the
//! bytes of both backing files alone, never from a daemon's word.
//!
//! ```text
//! story ──▶ cluster (config, processes, relay)      what happens, in which order
//!       ──▶ writer  (NBD, journal)                  what was acknowledged
//!       ──▶ verdict (journal + both files)          whether it is still there
//! ```

// SPDX-License-Identifier: MIT OR Apache-2.0

mod cluster;
mod error;
mod interrupt;
mod journal;
mod options;
mod pattern;
mod ports;
mod random;
mod relay;
mod report;
mod story;
mod verdict;
mod writer;

pub use options::{DemoArgs, Fault};

use error::DemoError;
use interrupt::Interrupt;
use replicator::admin::exit;
use report::Reporter;

/// Runs the demo and prints its story; the exit code of `twinadm`. `json` makes the verdict one
/// JSON object on stdout and moves the story to stderr.
#[must_use]
pub fn run(args: &DemoArgs, json: bool) -> u8 {
    let mut reporter = Reporter::new(json || args.json);
    let interrupt = match Interrupt::on_signals() {
        Ok(interrupt) => interrupt,
        Err(error) => return reporter.failed(&error),
    };
    match story::tell(args, &interrupt, &mut reporter) {
        Ok(outcome) => {
            reporter.verdict(&outcome);
            if outcome.passed() {
                exit::OK
            } else {
                exit::FAILED
            }
        }
        Err(DemoError::Interrupted) => exit::INTERRUPTED,
        Err(error) => reporter.failed(&error),
    }
}
