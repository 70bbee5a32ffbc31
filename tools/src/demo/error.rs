//! Why a demo could not be brought to its verdict.

use std::io;
use std::time::Duration;

/// Each ends the demo; none is a verdict.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The system said no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's words.
        source: io::Error,
    },
    /// A program is not where it should be.
    #[error("{program} is not beside twinadm ({dir})")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Where it was looked for.
        dir: String,
    },
    /// A child ended although nobody killed it.
    #[error("{node} ended by itself ({status}); its last words: {words}")]
    ChildEnded {
        /// Which node's.
        node: String,
        /// How.
        status: String,
        /// The end of its log.
        words: String,
    },
    /// A verb of twinadm failed.
    #[error("`twinadm {verb}` on {node} failed: {words}")]
    Verb {
        /// The verb and its arguments.
        verb: String,
        /// On which node.
        node: String,
        /// What it wrote to stderr.
        words: String,
    },
    /// Something did not happen in time.
    #[error("waited {} s in vain until {what}", limit.as_secs())]
    Waited {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A thread of the demo ended early.
    #[error("the writer stopped: {0}")]
    Writer(String),
}

impl DemoError {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}
