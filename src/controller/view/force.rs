//! The successor that an operator's word alone makes: another lineage, by a majority or without one.

use replicator::types::{
    DataGeneration, InSync, NodeId, ReplicaId, View, ViewCause, ViewNumber, VoterId, VoterSet,
};

use super::super::rules::Rules;
use super::{Abort, successor};

/// View numbers of one era: every view that a node decided alone begins one. Those that were out of
/// reach may have agreed on successors meanwhile, a few a month: the forced view outranks them all, and
/// whatever follows it.
pub const FORCE_ALONE_STEP: u64 = 1_000_000;

/// The same for ballots. Promises of rounds that nobody here heard of are below the next era's.
const FORCE_ALONE_ROUNDS: u32 = 1 << 20;

/// How many eras were begun by a node alone before this number's. Of two views, that of the later era
/// is the newer one, whatever their ballots: those who agreed on the other were not asked.
#[must_use]
pub fn era(number: ViewNumber) -> u64 {
    number.0 / FORCE_ALONE_STEP
}

/// A vote of one node alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alone {
    /// Its voter, the only one that counts from then on.
    pub voter: VoterId,
    /// The forced view's number, the first of an era.
    pub number: ViewNumber,
}

/// The round in which `node` decides alone after views up to `number` and rounds up to `round`: the first
/// of an era later than any known. The nodes have the odd and the even ones, so that of two that are
/// forced apart one is newer, and never the same.
#[must_use]
pub fn alone_round(node: NodeId, number: ViewNumber, round: u32) -> Option<u32> {
    let known = era(number).max(u64::from(round / FORCE_ALONE_ROUNDS));
    let next = known.checked_add(1)?;
    let theirs = next % 2 != u64::from(node == NodeId::B);
    let own = next.checked_add(u64::from(theirs))?;
    u32::try_from(own).ok()?.checked_mul(FORCE_ALONE_ROUNDS)
}

/// The number of a view that was decided alone in that round.
#[must_use]
pub fn alone_number(round: u32) -> ViewNumber {
    ViewNumber(u64::from(round / FORCE_ALONE_ROUNDS) * FORCE_ALONE_STEP)
}

/// The successor of `view` by an operator's word. Who may have it is not asked here: evidence that the
/// other node does not serve, and that the operator knows what is lost, was asked for before.
pub(super) fn force(
    view: &View,
    node: NodeId,
    replica: ReplicaId,
    data_generation: DataGeneration,
    alone: Option<Alone>,
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
    if let Some(Alone { voter, number }) = alone {
        if era(number) <= era(view.number) {
            return Err(exhausted);
        }
        next.number = number;
        next.voters = VoterSet::default();
        next.voters.0[node.index()] = Some(voter);
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

    fn forced(about: &View, alone: Option<Alone>) -> Change {
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
                let number = ViewNumber(FORCE_ALONE_STEP * 3);
                let voter = VoterId(7);
                for alone in [None, Some(Alone { voter, number })] {
                    let next = propose(node, forced(&view, alone), &view).unwrap();
                    assert_eq!((next.primary, next.in_sync), (node, InSync::only(node)));
                    assert_ne!(next.data_generation, view.data_generation);
                    assert!(next.forced && next.lossy && !next.held);
                    assert_eq!(next.replicas[node.index()], Some(ReplicaId(0xb3)));
                    let follows = alone.map_or(view.number.next(), |it| it.number);
                    assert_eq!(next.number, follows);
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
            propose(
                B,
                forced(
                    &late,
                    Some(Alone {
                        voter: VoterId(7),
                        number: late.number
                    })
                ),
                &late
            ),
            Err(Abort::Exhausted { view: late.number })
        );
    }

    /// However often either node is forced alone, and whatever it knew: what it begins is newer than
    /// that, by number and by ballot alike, and never has a number that the other one's has.
    #[test]
    fn what_two_nodes_decide_alone_never_has_one_number() {
        let mut begun: Vec<(NodeId, ViewNumber, u32)> = Vec::new();
        for known in [0, 5, 6, FORCE_ALONE_STEP - 1, FORCE_ALONE_STEP * 4 + 9] {
            for round in [1, 7, FORCE_ALONE_ROUNDS * 3 + 1] {
                for node in [A, B] {
                    let (mut number, mut round) = (ViewNumber(known), round);
                    for _ in 0..3 {
                        let next = alone_round(node, number, round).unwrap();
                        assert!(next > round && alone_number(next) > number);
                        (number, round) = (alone_number(next), next);
                        begun.push((node, number, round));
                    }
                }
            }
        }
        for (node, number, round) in &begun {
            for (other, its, its_round) in &begun {
                assert!(node == other || era(*number) != era(*its));
                assert_eq!(number.cmp(its), round.cmp(its_round));
            }
        }
        assert_eq!(alone_round(A, ViewNumber::MAX, 1), None);
        assert_eq!(alone_round(A, ViewNumber(1), u32::MAX), None);
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
