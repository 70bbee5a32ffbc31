//! The successor that an operator's word alone makes: another lineage, by a majority or without one.

use replicator::types::{
    DataGeneration, InSync, NodeId, ReplicaId, View, ViewCause, ViewNumber, VoterId, VoterSet,
};

use super::super::rules::Rules;
use super::{Abort, successor};

/// Between the last view known and one that was forced without a majority: those that were out of
/// reach may have agreed on successors meanwhile, a few a month. The forced one outranks them all.
pub const FORCE_ALONE_STEP: u64 = 1000;

/// The same for ballots. Promises of rounds that nobody here heard of are below it.
pub const FORCE_ALONE_ROUNDS: u32 = 1 << 20;

/// The successor of `view` by an operator's word. Who may have it is not asked here: evidence that the
/// other node does not serve, and that the operator knows what is lost, was asked for before.
pub(super) fn force(
    view: &View,
    node: NodeId,
    replica: ReplicaId,
    data_generation: DataGeneration,
    alone: Option<VoterId>,
    rules: &Rules,
) -> Result<View, Abort> {
    let exhausted = Abort::Exhausted { view: view.number };
    if data_generation == view.data_generation && rules.new_lineage {
        return Err(Abort::SameLineage { view: view.number });
    }
    let mut next = View {
        primary: node,
        in_sync: InSync::only(node),
        data_generation,
        held: false,
        lossy: true,
        forced: true,
        ..successor(view, ViewCause::Forced)
    };
    next.replicas[node.index()] = Some(replica);
    if let Some(own) = alone {
        next.number.0 = view.number.0.saturating_add(FORCE_ALONE_STEP);
        next.voters = VoterSet::default();
        next.voters.0[node.index()] = Some(own);
    }
    if next.number > ViewNumber::MAX {
        return Err(exhausted);
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::super::{Change, Proposal};
    use super::*;
    use crate::controller::testing::founded;

    const A: NodeId = NodeId::A;
    const B: NodeId = NodeId::B;
    const REPLICA_B: ReplicaId = ReplicaId(0xb);
    const REMOVE: Change = Change::Remove { ends_add: false };

    fn both() -> View {
        View {
            number: ViewNumber(4),
            in_sync: InSync::BOTH,
            replicas: [Some(ReplicaId(0xa)), Some(REPLICA_B)],
            ..founded()
        }
    }

    fn propose(node: NodeId, change: Change, view: &View) -> Result<View, Abort> {
        Proposal { node, change }.apply(Some(view), &Rules::ALL)
    }

    fn forced(about: &View, alone: Option<VoterId>) -> Change {
        Change::Force {
            about: about.number,
            replica: ReplicaId(0xb3),
            data_generation: DataGeneration(99),
            alone,
        }
    }

    /// Whatever the view says: a forced successor names its proposer and nobody else, begins a lineage
    /// of its own, and says that it was forced; the next Add ends the alarm.
    #[test]
    fn a_forced_view_is_of_another_lineage_and_owes_nothing_to_the_old_one() {
        let solo = propose(A, REMOVE, &both()).unwrap();
        let held = propose(A, Change::Hold { lossy: false }, &both()).unwrap();
        for view in [both(), solo, held] {
            for node in [A, B] {
                for alone in [None, Some(VoterId(7))] {
                    let next = propose(node, forced(&view, alone), &view).unwrap();
                    assert_eq!((next.primary, next.in_sync), (node, InSync::only(node)));
                    assert_ne!(next.data_generation, view.data_generation);
                    assert!(next.forced && next.lossy && !next.held);
                    assert_eq!(next.replicas[node.index()], Some(ReplicaId(0xb3)));
                    let step = if alone.is_some() { FORCE_ALONE_STEP } else { 1 };
                    assert_eq!(next.number.0, view.number.0 + step);
                    let counts = next.voters.0.iter().flatten().count();
                    assert_eq!(counts, if alone.is_some() { 1 } else { 3 });
                    // The old Primary has nothing to come back with.
                    let other = node.peer();
                    let replica = ReplicaId(if other == A { 0xa } else { 0xb });
                    let takeover = Change::Takeover {
                        replica,
                        lossy: false,
                    };
                    assert!(propose(other, takeover, &next).is_err());
                    let add = Change::Add {
                        replica,
                        number: next.number.next(),
                    };
                    assert!(!propose(node, add, &next).unwrap().forced);
                }
            }
        }
    }

    #[test]
    fn a_forced_lineage_is_never_the_old_one_and_numbers_end_somewhere() {
        let same = Change::Force {
            about: both().number,
            replica: REPLICA_B,
            data_generation: both().data_generation,
            alone: None,
        };
        let view = both();
        assert_eq!(
            propose(B, same, &view),
            Err(Abort::SameLineage { view: view.number })
        );
        let late = View {
            number: ViewNumber(ViewNumber::MAX.0 - 1),
            ..both()
        };
        assert!(propose(B, forced(&late, None), &late).is_ok());
        assert_eq!(
            propose(B, forced(&late, Some(VoterId(7))), &late),
            Err(Abort::Exhausted { view: late.number })
        );
    }
    /// Story: while the order is on its way the old Primary comes back and serves again. What is given up
    /// now is not what the operator was told of.
    #[test]
    fn only_the_view_that_was_told_of_is_given_up() {
        let newer = propose(A, REMOVE, &both()).unwrap();
        assert_eq!(
            propose(B, forced(&both(), None), &newer),
            Err(Abort::WrongNumber { view: newer.number })
        );
    }
}
