//! K4: one writer. Fed by the voters' durable records and by every acknowledgement.

use std::collections::BTreeMap;

use replicator::types::{Ballot, NodeId, View, ViewNumber, VoterId};

use super::{Checked, Violation};

/// What a voter has durably accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The voter's identity.
    pub voter: VoterId,
    /// Under which ballot.
    pub ballot: Ballot,
    /// Which view.
    pub view: View,
}

/// The truth about who may write, from outside.
#[derive(Clone, Debug, Default)]
pub struct OneWriter {
    accepted: [Option<Accepted>; 3],
    chosen: BTreeMap<ViewNumber, View>,
    acknowledged: BTreeMap<ViewNumber, NodeId>,
}

impl OneWriter {
    /// The newest view a majority ever durably accepted.
    #[must_use]
    pub fn newest(&self) -> Option<&View> {
        self.chosen.last_key_value().map(|(_, view)| view)
    }

    /// How often the Primary changed.
    #[must_use]
    pub fn failovers(&self) -> usize {
        self.chosen
            .values()
            .zip(self.chosen.values().skip(1))
            .filter(|(old, new)| old.primary != new.primary)
            .count()
    }

    /// A voter's record became durable.
    ///
    /// # Errors
    /// If two views of one number were chosen, or the chain has a gap.
    pub fn note_accepted(&mut self, node: NodeId, accepted: Accepted) -> Checked {
        self.accepted[node.index()] = Some(accepted);
        let votes = NodeId::ALL
            .into_iter()
            .filter(|voter| {
                self.accepted[voter.index()].is_some_and(|other| {
                    other.ballot == accepted.ballot
                        && other.view == accepted.view
                        && accepted.view.voters.recognises(*voter, other.voter)
                })
            })
            .count();
        if votes < 2 {
            return Ok(());
        }
        let view = accepted.view;
        if let Some(other) = self.chosen.get(&view.number)
            && *other != view
        {
            return Err(Violation::new(
                "one view per number",
                format!("both {other:?} and {view:?} were chosen"),
            ));
        }
        if let Some(newest) = self.newest()
            && view.number > newest.number.next()
        {
            return Err(Violation::new(
                "views form a chain",
                format!("{view:?} was chosen after {newest:?}"),
            ));
        }
        self.chosen.insert(view.number, view);
        Ok(())
    }

    /// `node` answers a guest (a write, a flush or a read) in its activation `view`.
    ///
    /// # Errors
    /// If another node has answered in this view or a newer one, or the right is over.
    pub fn note_answer(&mut self, node: NodeId, view: ViewNumber) -> Checked {
        if let Some((newer, other)) = self.acknowledged.range(view..).next_back()
            && (*newer > view || *other != node)
        {
            return Err(Violation::new(
                "one writer",
                format!("{node:?} answered in view {view} after {other:?} did in view {newer}"),
            ));
        }
        self.acknowledged.insert(view, node);
        match self.newest() {
            Some(newest) if newest.primary != node => Err(Violation::new(
                "one writer",
                format!("{node:?} answered in view {view} though {newest:?} was chosen"),
            )),
            Some(_) => Ok(()),
            None => Err(Violation::new(
                "one writer",
                format!("{node:?} answered in view {view} before any was chosen"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::{DataGeneration, InSync, ViewCause, VoterSet};

    use super::*;

    fn view(number: u64, primary: NodeId) -> View {
        View {
            number: ViewNumber(number),
            primary,
            in_sync: InSync::BOTH,
            data_generation: DataGeneration(1),
            replicas: [None, None],
            voters: VoterSet([Some(VoterId(1)), Some(VoterId(2)), Some(VoterId(3))]),
            size_blocks: 8,
            held: false,
            lossy: false,
            forced: false,
            cause: ViewCause::Founded,
        }
    }

    fn choose(writer: &mut OneWriter, view: View, round: u32) -> Checked {
        for node in [NodeId::A, NodeId::ARBITRATOR] {
            writer.note_accepted(
                node,
                Accepted {
                    voter: VoterId(u128::from(node.raw()) + 1),
                    ballot: Ballot {
                        round,
                        node: view.primary.raw(),
                        incarnation: 1,
                    },
                    view,
                },
            )?;
        }
        Ok(())
    }

    #[test]
    fn an_answer_after_the_peer_was_chosen_is_caught() {
        let mut writer = OneWriter::default();
        assert!(writer.note_answer(NodeId::A, ViewNumber(1)).is_err());
        choose(&mut writer, view(1, NodeId::A), 1).unwrap();
        assert!(writer.note_answer(NodeId::A, ViewNumber(1)).is_ok());
        choose(&mut writer, view(2, NodeId::B), 2).unwrap();
        assert!(writer.note_answer(NodeId::A, ViewNumber(1)).is_err());
        assert!(writer.note_answer(NodeId::B, ViewNumber(2)).is_ok());
        assert_eq!(writer.failovers(), 1);
    }

    #[test]
    fn two_views_of_one_number_are_caught() {
        let mut writer = OneWriter::default();
        choose(&mut writer, view(1, NodeId::A), 1).unwrap();
        assert!(choose(&mut writer, view(1, NodeId::B), 2).is_err());
    }
}
