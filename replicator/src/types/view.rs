//! The agreed truth about a resource, and the proofs that it was agreed.
//!
//! A [`View`] is only data. What may be *done* because of a view needs a [`CommittedView`] (made
//! from the acceptances of a majority, which it counts itself) or an [`Activation`] (a committed
//! view that names this node Primary): the only doors to dropping a peer from the
//! acknowledgement set and to serving guests (R8).

use serde::{Deserialize, Serialize};

use super::ids::{DataGeneration, NodeId, ReplicaId, ViewNumber, VoterId};

/// The replicas that hold every acknowledged write. Never empty in a view.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct InSync {
    /// Whether the first data node is in it.
    pub a: bool,
    /// Whether the second data node is in it.
    pub b: bool,
}

impl InSync {
    /// Both replicas.
    pub const BOTH: Self = Self { a: true, b: true };

    /// Only `node`.
    ///
    /// # Panics
    /// For the arbitrator, which holds no data.
    #[must_use]
    pub fn only(node: NodeId) -> Self {
        assert!(node.is_data(), "the arbitrator holds no data");
        Self {
            a: node == NodeId::A,
            b: node == NodeId::B,
        }
    }

    /// Whether `node` is in it.
    #[must_use]
    pub fn contains(self, node: NodeId) -> bool {
        (node == NodeId::A && self.a) || (node == NodeId::B && self.b)
    }

    /// Whether no replica is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        !self.a && !self.b
    }
}

/// Why a view came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ViewCause {
    /// The first `primary` of a new resource.
    Founded,
    /// The Primary of record serves again.
    Recovered,
    /// The peer took over after the Primary's lease was certainly over.
    TookOver,
    /// The Primary removed a peer it could not reach.
    Removed,
    /// The Primary added a peer that caught up.
    Added,
    /// The Primary's own disk failed; it serves from the peer's.
    Left,
    /// An operator demoted the Primary; no node promotes itself.
    Held,
    /// An operator promoted the other node after such a demotion.
    Claimed,
    /// A voter was met for the first time.
    VoterAdded,
    /// An operator made this node Primary by force, over what the voters say: a new lineage.
    Forced,
    /// The volume is larger: both replicas have its new blocks.
    Resized,
}

/// The agreed truth about a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Place in the chain of views; each successor adds one.
    pub number: ViewNumber,
    /// The node that may serve, once activated.
    pub primary: NodeId,
    /// The replicas that hold every acknowledged write.
    pub in_sync: InSync,
    /// Lineage of the data.
    pub data_generation: DataGeneration,
    /// Identities of the two replicas, as met when they were founded or added.
    pub replicas: [Option<ReplicaId>; 2],
    /// The voters whose vote counts: identities recorded when each was first met.
    pub voters: VoterSet,
    /// Size of volume 0 in blocks, as agreed when founded, or since: it only grows.
    pub size_blocks: u64,
    /// An operator said stop: no node promotes itself until `primary`, `move` or `up`.
    pub held: bool,
    /// Activated over data that may lack acknowledged writes (R17).
    pub lossy: bool,
    /// The lineage was begun by `--force`, and since then no replica was added: a replica of the old
    /// lineage may exist and hold what this one lacks.
    pub forced: bool,
    /// Why.
    pub cause: ViewCause,
}

/// Identities of the voters of a resource, by [`NodeId`]. A missing one was never met and has no
/// vote; a different one was wiped, replaced or restored and has no vote either (R11).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct VoterSet(pub [Option<VoterId>; 3]);

impl VoterSet {
    /// Votes needed, always of three: with one voter not met yet both others are needed.
    pub const MAJORITY: usize = 2;

    /// Votes that decide here: [`Self::MAJORITY`]. Where only one voter is recorded, which no
    /// founding does but a forced view whose node was left alone, that one decides until it met
    /// another.
    #[must_use]
    pub fn needed(&self) -> usize {
        let recorded = self.0.iter().flatten().count();
        if recorded == 1 { 1 } else { Self::MAJORITY }
    }

    /// Whether `voter` is the recorded identity of `node`.
    #[must_use]
    pub fn recognises(&self, node: NodeId, voter: VoterId) -> bool {
        self.0[node.index()] == Some(voter)
    }
}

/// Number of a proposal: totally ordered, unique per proposer and process.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ballot {
    /// Grows with each attempt.
    pub round: u32,
    /// The proposer, as [`NodeId::raw`]; makes equal rounds of two nodes different.
    pub node: u8,
    /// Grows with each start of the proposer's process; makes equal rounds of two lives different.
    pub incarnation: u32,
}

impl Ballot {
    /// The last round: twenty a second last for three years of nothing but failed rounds. Larger
    /// ones off a wire or a disk are damaged or forged, and would leave no round above them.
    pub const ROUND_MAX: u32 = 1 << 31;
}

/// Who accepted a view under one ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuorumEvidence {
    /// The ballot under which all of them accepted.
    pub ballot: Ballot,
    /// The identity with which each voter accepted, by [`NodeId`].
    pub accepted_by: [Option<VoterId>; 3],
}

/// A view that a majority of its recorded voters durably accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommittedView {
    view: View,
    evidence: QuorumEvidence,
}

impl CommittedView {
    /// Counts the majority itself: `None` if fewer recorded voters accepted than are
    /// [needed](VoterSet::needed).
    #[must_use]
    pub fn prove(view: View, evidence: QuorumEvidence) -> Option<Self> {
        let votes = NodeId::ALL
            .into_iter()
            .filter(|node| {
                evidence.accepted_by[node.index()]
                    .is_some_and(|voter| view.voters.recognises(*node, voter))
            })
            .count();
        (votes >= view.voters.needed()).then_some(Self { view, evidence })
    }

    /// The view.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Who accepted it.
    #[must_use]
    pub fn evidence(&self) -> &QuorumEvidence {
        &self.evidence
    }
}

/// The right of one node to serve as Primary in one view: only its own commit gives it (R8), it
/// dies with the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Activation {
    committed: CommittedView,
    node: NodeId,
}

impl Activation {
    /// The activation of `node` by `committed`; `None` unless the view names it Primary, is not
    /// held, and was proposed by it.
    #[must_use]
    pub fn of(committed: CommittedView, node: NodeId) -> Option<Self> {
        let own_ballot = committed.evidence.ballot.node == node.raw();
        (committed.view.primary == node && !committed.view.held && own_ballot)
            .then_some(Self { committed, node })
    }

    /// The view it rests on.
    #[must_use]
    pub fn view(&self) -> &View {
        self.committed.view()
    }

    /// The node that may serve.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            number: ViewNumber(1),
            primary: NodeId::A,
            in_sync: InSync::only(NodeId::A),
            data_generation: DataGeneration(7),
            replicas: [Some(ReplicaId(1)), None],
            voters: VoterSet([Some(VoterId(10)), Some(VoterId(11)), None]),
            size_blocks: 64,
            held: false,
            lossy: false,
            forced: false,
            cause: ViewCause::Founded,
        }
    }

    fn evidence(accepted_by: [Option<VoterId>; 3]) -> QuorumEvidence {
        QuorumEvidence {
            ballot: Ballot {
                round: 1,
                node: 0,
                incarnation: 1,
            },
            accepted_by,
        }
    }

    #[test]
    fn one_vote_is_no_majority() {
        assert!(CommittedView::prove(view(), evidence([Some(VoterId(10)), None, None])).is_none());
    }

    #[test]
    fn a_replaced_voter_does_not_count() {
        let wiped = evidence([Some(VoterId(10)), Some(VoterId(99)), Some(VoterId(5))]);
        assert!(CommittedView::prove(view(), wiped).is_none());
    }

    #[test]
    fn a_node_left_alone_by_force_decides_by_itself_until_it_met_another() {
        let alone = View {
            voters: VoterSet([Some(VoterId(10)), None, None]),
            ..view()
        };
        let own = evidence([Some(VoterId(10)), None, None]);
        assert!(CommittedView::prove(alone, own).is_some());
        let others = evidence([None, Some(VoterId(11)), Some(VoterId(12))]);
        assert!(CommittedView::prove(alone, others).is_none());
        assert!(CommittedView::prove(view(), own).is_none());
        assert_eq!(VoterSet::default().needed(), VoterSet::MAJORITY);
    }

    #[test]
    fn only_the_proposing_primary_is_activated() {
        let both = evidence([Some(VoterId(10)), Some(VoterId(11)), None]);
        let committed = CommittedView::prove(view(), both).unwrap();
        assert!(Activation::of(committed, NodeId::A).is_some());
        assert!(Activation::of(committed, NodeId::B).is_none());
    }
}
