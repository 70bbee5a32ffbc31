//! The proposer's decisions as pure functions: what a read, a commit, gossip or a beacon means for
//! a node that knows this and that. `resource/` acts on them; the explorer drives the same ones.

use replicator::types::{Activation, CommittedView, Instant, NodeId, View, ViewNumber};

use super::lease::{Grant, GrantAnswer, Timing};
use super::register::Read;
use super::rules::Rules;
use super::view::Change;

/// What a node knows about a resource besides what a round reads.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge {
    /// Which node.
    pub node: NodeId,
    /// The newest view it knows to be committed.
    pub committed: Option<View>,
    /// Number of the newest it knew when its round began: every voter that promised later must
    /// have been told of it by a majority.
    pub committed_at_begin: ViewNumber,
    /// The view it serves in, if it does.
    pub active: Option<View>,
    /// A view it proposed in this life and whose fate it does not know.
    pub undecided: Option<View>,
}

/// What a read of the register leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A majority does not know a view that was committed before it was asked: voters were
    /// restored from old copies (R11).
    Contradiction,
    /// A newer view was committed and heard of while the promises came in: the round is too late.
    Overtaken,
    /// This node's undecided view is committed.
    Resolved(CommittedView),
    /// The view may be chosen or not: it must be proposed again as it is.
    Finish {
        /// Which view.
        view: View,
        /// It is this node's undecided one.
        own: bool,
        /// It ends this node's activation, which stops first.
        superseded: bool,
    },
    /// The register certainly holds `current`: the wish may be applied to it.
    Decide {
        /// What it holds.
        current: Option<View>,
        /// It ends this node's activation, which stops first.
        superseded: bool,
    },
}

impl Step {
    /// The step after `read`.
    #[must_use]
    pub fn after(read: Read, known: &Knowledge) -> Self {
        let current = match read {
            Read::Empty => None,
            Read::Chosen(committed) => Some(*committed.view()),
            Read::Unfinished(view) => Some(view),
        };
        let number = |view: Option<View>| view.map_or(ViewNumber::NONE, |view| view.number);
        if number(current) < known.committed_at_begin {
            return Self::Contradiction;
        }
        if number(current) < number(known.committed) {
            return Self::Overtaken;
        }
        let own = current.is_some() && current == known.undecided;
        let newer = known
            .active
            .is_some_and(|active| number(current) > active.number);
        match read {
            Read::Chosen(committed) if own => Self::Resolved(committed),
            // These promises alone do not prove it, but it was proved before.
            Read::Unfinished(view) if own || known.committed != Some(view) => Self::Finish {
                view,
                own,
                superseded: newer && !(own && view.primary == known.node && !view.held),
            },
            _ => Self::Decide {
                current,
                superseded: newer,
            },
        }
    }
}

/// What a commit by this node's own round leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives for one call; a box would only cost Copy"
)]
pub enum Outcome {
    /// It may begin to serve (R8).
    Activate(Activation),
    /// It serves on, in the new view.
    Continue,
    /// It serves no more.
    StepDown,
    /// It did not serve and does not.
    Learn,
}

impl Outcome {
    /// The outcome of `committed` for a node that knows this. `own` is the change this node made
    /// it with, `None` if it only finished another's view. `newest` is the newest view its own voter
    /// accepted: an answer that came late must not wake a Primary that others replaced already.
    #[must_use]
    pub fn of(
        committed: CommittedView,
        known: &Knowledge,
        own: Option<Change>,
        newest: ViewNumber,
    ) -> Self {
        let view = committed.view();
        let node = known.node;
        let ours = own.is_some() && view.primary == node && !view.held;
        let replaced = newest > view.number
            || known
                .committed
                .is_some_and(|committed| committed.number > view.number);
        match known.active {
            // Also when the view it serves in was accepted once more for a voter that missed it.
            Some(active) if ours || active == *view => Self::Continue,
            Some(_) => Self::StepDown,
            None => Activation::of(committed, node)
                .filter(|_| own.is_some_and(|change| change.activates()) && !replaced)
                .map_or(Self::Learn, Self::Activate),
        }
    }
}

/// What gossip of a committed view leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Known already, or older.
    Old,
    /// Another view with the number of a known one.
    Contradiction,
    /// This node's own undecided view, finished by another: its own round will prove it.
    Own,
    /// It ends this node's activation.
    StepDown,
    /// Worth knowing.
    Learn,
}

impl News {
    /// What it means that others say that `view` is committed.
    #[must_use]
    pub fn of(view: &View, known: &Knowledge) -> Self {
        match known.committed {
            Some(committed) if committed.number > view.number => Self::Old,
            Some(committed) if committed.number == view.number => {
                if committed == *view {
                    Self::Old
                } else {
                    Self::Contradiction
                }
            }
            _ if known.active.is_none() => Self::Learn,
            _ if known.undecided == Some(*view) => Self::Own,
            _ => Self::StepDown,
        }
    }
}

/// A granter's answer to a beacon of `from`, active in `view` (R5, R6). A successor known to be
/// committed refuses like a seal does.
pub fn answer_beacon(
    grant: &mut Grant,
    committed: Option<View>,
    from: NodeId,
    view: ViewNumber,
    now: Instant,
    timing: &Timing,
) -> GrantAnswer {
    let superseded =
        committed.filter(|known| known.number > view && (known.primary != from || known.held));
    match superseded {
        Some(known) => GrantAnswer::Refused { seal: known.number },
        None => grant.note_beacon(now, view, timing),
    }
}

impl Change {
    /// Whether its commit makes its proposer Primary.
    #[must_use]
    pub fn activates(&self) -> bool {
        matches!(
            self,
            Self::Found { .. }
                | Self::Recover { .. }
                | Self::Takeover { .. }
                | Self::Claim { .. }
                | Self::Force { .. }
        )
    }

    /// What an active Primary proposes after this change left and its fate is unknown: the same
    /// again; but after an Add the view that makes sure that it never happens. That a round does not
    /// see the Add is not enough: it may sit at the third voter (R4, never two Adds in a row).
    /// `None`: nothing, the change is taken for dead.
    #[must_use]
    pub fn retry(self, rules: &Rules) -> Option<Self> {
        match self {
            Self::Add { .. } => rules
                .end_undecided_add
                .then_some(Self::Remove { ends_add: true }),
            change => Some(change),
        }
    }
}
