//! Explores every order in which messages, crashes and lapses can happen to the view register, on
//! the production functions of `crate::controller`, in a world small enough to exhaust.
//!
//! Two data nodes and an arbitrator. Voters, rounds, proposals, decisions, grants and seals are the
//! production code (`register`, `view`, `decision`, `lease`); time is reduced to "the lease has
//! ended, so the grant may end", and the engines to which acknowledged write is on which disk. After
//! every step: at most one gate is open, whoever's is open has every acknowledged write and is in
//! sync in its view, does without its peer only if no view with the peer in sync can be chosen any
//! more, a view number names one view, and nothing of an old session lands on a Primary's disk. A
//! promotion by force begins another lineage, and then each of these holds within a lineage: two
//! nodes may serve only apart, and then never meet.
//!
//! A checker that finds nothing proves little about itself: each safety rule can be taken away
//! ([`Rules`]), and then a violation must be found ([`mutants`]).
//!
//! Not in the model: clock arithmetic (`lease.rs` has its own proof as a test), founding, Leave, a
//! force without a majority (`scenarios_force.rs`), power loss of disk caches; these are the simulator's.

mod check;
mod engines;
mod events;
mod machine;
mod rounds;
mod search;
mod state;
mod visited;
mod words;

pub use check::Violation;
pub use search::{Found, Report, mutants, run, run_with, walk};

pub use crate::controller::rules::Rules;

/// How much may happen. Everything is bounded so that the end is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Where it begins.
    pub start: Start,
    /// Rounds of the register that may be begun after the founding one.
    pub rounds: usize,
    /// Guest writes.
    pub writes: usize,
    /// Crashes of data nodes, each followed by a restart.
    pub crashes: usize,
    /// Cuts of the session between the data nodes.
    pub cuts: usize,
    /// Losses of the arbitrator's store.
    pub wipes: usize,
    /// Demotions by hand.
    pub orders: usize,
    /// Promotions by force; at most one, since a state tells two lineages apart.
    pub forces: usize,
}

/// Where an exploration begins: A serves in view 1, and everybody knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Both are in sync, A holds a lease.
    Both,
    /// Only A is in sync; B is connected and misses nothing.
    Solo,
}

impl Scope {
    /// Exhausted by a test, in seconds even without optimisation.
    pub const TINY: Self = Self::of(Start::Both, [1, 1, 1, 0, 0, 0]);

    /// Exhausted by CI, in about a minute of one core: three rounds without a crash, two with one;
    /// an Add undecided; a voter wiped; an operator's demotion and claim; a promotion by force.
    pub const CI: [Self; 7] = [
        Self::of(Start::Both, [3, 1, 0, 0, 0, 0]),
        Self::of(Start::Both, [2, 1, 1, 0, 0, 0]),
        Self::of(Start::Solo, [2, 1, 0, 1, 0, 0]),
        Self::of(Start::Both, [2, 1, 0, 0, 1, 0]),
        Self::of(Start::Both, [2, 1, 0, 0, 0, 1]),
        Self::of(Start::Solo, [2, 1, 0, 0, 0, 0]).with_force(),
        Self::of(Start::Both, [2, 1, 0, 0, 0, 0]).with_force(),
    ];

    /// Most rounds a state can hold.
    pub const ROUNDS_MAX: usize = state::ROUNDS_MAX - 1;
    /// Most writes a state can hold.
    pub const WRITES_MAX: usize = 8;
    /// Most crashes a ballot can tell apart.
    pub const CRASHES_MAX: usize = 7;

    /// Rounds, writes, crashes, cuts, wipes, orders.
    #[must_use]
    pub const fn of(start: Start, bounds: [usize; 6]) -> Self {
        let [rounds, writes, crashes, cuts, wipes, orders] = bounds;
        Self {
            start,
            rounds,
            writes,
            crashes,
            cuts,
            wipes,
            orders,
            forces: 0,
        }
    }

    /// The same, where an operator may promote a node by force, once.
    #[must_use]
    pub const fn with_force(self) -> Self {
        Self { forces: 1, ..self }
    }
}
