//! Values the unit tests share.

use replicator::types::{
    Ballot, DataGeneration, InSync, NodeId, ReplicaId, View, ViewCause, ViewNumber, VoterId,
    VoterSet,
};

/// A ballot of `node` in its first life.
pub(crate) fn ballot(round: u32, node: u8) -> Ballot {
    Ballot {
        round,
        node,
        incarnation: 1,
    }
}

/// View 1, founded by A alone with all voters met.
pub(crate) fn founded() -> View {
    View {
        number: ViewNumber(1),
        primary: NodeId::A,
        in_sync: InSync::only(NodeId::A),
        data_generation: DataGeneration(7),
        replicas: [Some(ReplicaId(0xa)), None],
        voters: VoterSet([Some(VoterId(1)), Some(VoterId(2)), Some(VoterId(3))]),
        size_blocks: 64,
        held: false,
        lossy: false,
        forced: false,
        cause: ViewCause::Founded,
    }
}
