//! What would become of a resource if another node died now: a dry run of the very checks that would
//! decide it, on the live state.

use core::time::Duration;

use super::output::Blocker;

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Whoever serves it goes on, and its guests notice nothing.
    Unaffected,
    /// It is served here, and its guests wait until the dead peer is left behind.
    GoesOn {
        /// About so long.
        after: Duration,
    },
    /// It is served here, but the dead peer could not be left behind: its guests wait.
    Held {
        /// Why not.
        blocker: Blocker,
    },
    /// It is served here from the peer's disk, and the peer has the only replica.
    NoData,
    /// This node serves it.
    ServesHere {
        /// After about so long.
        after: Duration,
    },
    /// Nobody would serve it.
    NobodyServes {
        /// Why this node would not; never empty.
        blockers: Vec<Blocker>,
    },
}
