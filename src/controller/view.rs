//! Proposals: pure functions from the view a majority holds to its successor, or a reason why not.
//!
//! A proposal is made with what the proposer knows about itself and is applied to what the register
//! really holds, read by the same round that will write the successor: between the two nothing can
//! change unnoticed. The arbitrator never proposes; a data node proposes only itself; only the
//! Primary changes who is in sync.

mod force;

use core::fmt;

use replicator::types::{
    DataGeneration, InSync, NodeId, ReplicaId, View, ViewCause, ViewNumber, VoterId, VoterSet,
};
use thiserror::Error;

use super::rules::Rules;
use force::force;

pub use force::{Alone, FORCE_ALONE_STEP, alone_number, alone_round, era};

/// What a data node can propose. `node` is always the proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// The proposer.
    pub node: NodeId,
    /// What.
    pub change: Change,
}

/// The kinds of proposal, with what each needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The first view of a new resource.
    Found {
        /// The proposer's replica.
        replica: ReplicaId,
        /// Identity of the new lineage.
        data_generation: DataGeneration,
        /// Size of the volume.
        size_blocks: u64,
        /// The voters met, to be recorded.
        voters: VoterSet,
    },
    /// The Primary of record, not active, serves again; also ends a hold.
    Recover {
        /// The proposer's replica.
        replica: ReplicaId,
        /// Acknowledged writes may be missing (R17).
        lossy: bool,
        /// An operator said so: a hold ends.
        ends_hold: bool,
    },
    /// The peer's grant is over: this node serves instead.
    Takeover {
        /// The proposer's replica.
        replica: ReplicaId,
        /// Acknowledged writes may be missing (R17).
        lossy: bool,
    },
    /// The active Primary goes on without its peer.
    Remove {
        /// An Add of this activation is undecided: the view that ends it may look like no change
        /// (R4: only a committed successor makes sure that the Add never happens).
        ends_add: bool,
    },
    /// The active Primary counts on a replica that caught up.
    Add {
        /// That replica.
        replica: ReplicaId,
        /// The number the engines prepared it for.
        number: ViewNumber,
    },
    /// The active Primary's own disk failed: it serves from the peer's (R18).
    Leave {
        /// The number the engines prepared it for.
        number: ViewNumber,
    },
    /// The Primary of record, not active, promises that nobody promotes itself.
    Hold {
        /// It alone may have writes that guests were told of: it stopped without an orderly end under
        /// protocol A.
        lossy: bool,
    },
    /// This node serves where a hold says that the peer does not.
    Claim {
        /// The proposer's replica.
        replica: ReplicaId,
        /// Acknowledged writes may be missing (R17).
        lossy: bool,
    },
    /// An operator makes this node Primary whatever the view says, over the data that its replica
    /// has: a new lineage, so that what it lacks is refused when it returns and not overwritten.
    Force {
        /// The view that the operator was told about: no other is given up.
        about: ViewNumber,
        /// The proposer's replica.
        replica: ReplicaId,
        /// Identity of the new lineage.
        data_generation: DataGeneration,
        /// No majority can be asked: this voter decides alone, from now on.
        alone: Option<Alone>,
    },
    /// The active Primary met a voter for the first time.
    AddVoter {
        /// Which.
        voter: NodeId,
        /// Its identity.
        id: VoterId,
    },
    /// The active Primary makes the volume larger (interleavings F24).
    Resize {
        /// Blocks that both replicas have durably.
        size_blocks: u64,
        /// The number the engines prepared it for.
        number: ViewNumber,
    },
}

/// A proposal's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names of `Change`")]
pub enum ProposalKind {
    Found,
    Recover,
    Takeover,
    Remove,
    Add,
    Leave,
    Hold,
    Claim,
    Force,
    AddVoter,
    Resize,
}

impl fmt::Display for ProposalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Found => "Found",
            Self::Recover => "Recover",
            Self::Takeover => "Takeover",
            Self::Remove => "Remove",
            Self::Add => "Add",
            Self::Leave => "Leave",
            Self::Hold => "Hold",
            Self::Claim => "Claim",
            Self::Force => "Force",
            Self::AddVoter => "AddVoter",
            Self::Resize => "Resize",
        })
    }
}

/// Why a proposal does not apply to the view the register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Abort {
    /// A view exists already.
    #[error("the resource was founded already")]
    AlreadyFounded,
    /// No view exists.
    #[error("the resource was never founded")]
    NotFounded,
    /// Fewer than two voters were met.
    #[error("founding needs two voters")]
    TooFewVoters,
    /// The view names another Primary.
    #[error("view {view} names the peer Primary")]
    PeerIsPrimary {
        /// Which view.
        view: ViewNumber,
    },
    /// The view names the proposer Primary already.
    #[error("view {view} names this node Primary already")]
    SelfIsPrimary {
        /// Which view.
        view: ViewNumber,
    },
    /// The proposer's replica is not in sync in that view.
    #[error("view {view} leaves this replica out")]
    NotInSync {
        /// Which view.
        view: ViewNumber,
    },
    /// The peer is not in sync in that view: nothing to remove, nobody to leave to.
    #[error("view {view} does not have the peer in sync")]
    PeerNotInSync {
        /// Which view.
        view: ViewNumber,
    },
    /// Both are in sync already.
    #[error("view {view} has both replicas in sync")]
    BothInSync {
        /// Which view.
        view: ViewNumber,
    },
    /// The attached replica is not the one the view names (R10).
    #[error("view {view} names another replica than the attached one")]
    WrongReplica {
        /// Which view.
        view: ViewNumber,
    },
    /// An operator's hold.
    #[error("view {view} is held by an operator's order")]
    Held {
        /// Which view.
        view: ViewNumber,
    },
    /// There is no such hold.
    #[error("view {view} is not held")]
    NotHeld {
        /// Which view.
        view: ViewNumber,
    },
    /// It was prepared, or ordered, for another one.
    #[error("view {view} was not the one it was meant for")]
    WrongNumber {
        /// The view the register holds.
        view: ViewNumber,
    },
    /// There are no numbers left, which only a forged view explains.
    #[error("view {view} is the last there can be")]
    Exhausted {
        /// Which view.
        view: ViewNumber,
    },
    /// A forced lineage must differ from the one it leaves.
    #[error("view {view} has that lineage already")]
    SameLineage {
        /// Which view.
        view: ViewNumber,
    },
    /// A volume never gets smaller.
    #[error("the volume of view {view} is as large already")]
    NotLarger {
        /// Which view.
        view: ViewNumber,
    },
    /// The voter is recorded, with this or another identity.
    #[error("view {view} records that voter already")]
    VoterRecorded {
        /// Which view.
        view: ViewNumber,
    },
}

impl Change {
    /// Its name.
    #[must_use]
    pub fn kind(&self) -> ProposalKind {
        match self {
            Self::Found { .. } => ProposalKind::Found,
            Self::Recover { .. } => ProposalKind::Recover,
            Self::Takeover { .. } => ProposalKind::Takeover,
            Self::Remove { .. } => ProposalKind::Remove,
            Self::Add { .. } => ProposalKind::Add,
            Self::Leave { .. } => ProposalKind::Leave,
            Self::Hold { .. } => ProposalKind::Hold,
            Self::Claim { .. } => ProposalKind::Claim,
            Self::Force { .. } => ProposalKind::Force,
            Self::AddVoter { .. } => ProposalKind::AddVoter,
            Self::Resize { .. } => ProposalKind::Resize,
        }
    }
}

impl Proposal {
    /// The successor of `read`, the view a majority of voters holds (`None`: none was ever
    /// accepted).
    ///
    /// # Errors
    /// [`Abort`] says why the proposal does not apply to that view.
    pub fn apply(&self, read: Option<&View>, rules: &Rules) -> Result<View, Abort> {
        let node = self.node;
        if let Change::Found {
            replica,
            data_generation,
            size_blocks,
            voters,
        } = self.change
        {
            return match read {
                Some(_) => Err(Abort::AlreadyFounded),
                None => found(node, replica, data_generation, size_blocks, voters),
            };
        }
        let view = read.ok_or(Abort::NotFounded)?;
        if view.number >= ViewNumber::MAX {
            return Err(Abort::Exhausted { view: view.number });
        }
        match self.change {
            Change::Found { .. } => Err(Abort::AlreadyFounded),
            Change::Recover {
                replica,
                lossy,
                ends_hold,
            } => recover(view, node, replica, lossy, ends_hold, rules),
            Change::Takeover { replica, lossy } => takeover(view, node, replica, lossy, rules),
            Change::Remove { ends_add } => remove(view, node, ends_add),
            Change::Add { replica, number } => add(view, node, replica, number),
            Change::Leave { number } => leave(view, node, number),
            Change::Hold { lossy } => hold(view, node, lossy),
            Change::Claim { replica, lossy } => claim(view, node, replica, lossy, rules),
            Change::Force {
                about,
                replica,
                data_generation,
                alone,
            } => {
                require_number(view, about.next())?;
                let lineage = match rules.new_lineage {
                    true => data_generation,
                    false => view.data_generation,
                };
                force(view, node, replica, lineage, alone, rules)
            }
            Change::AddVoter { voter, id } => add_voter(view, node, voter, id),
            Change::Resize {
                size_blocks,
                number,
            } => resize(view, node, size_blocks, number),
        }
    }
}

fn found(
    node: NodeId,
    replica: ReplicaId,
    data_generation: DataGeneration,
    size_blocks: u64,
    voters: VoterSet,
) -> Result<View, Abort> {
    if voters.0.iter().flatten().count() < VoterSet::MAJORITY {
        return Err(Abort::TooFewVoters);
    }
    let mut replicas = [None; 2];
    replicas[node.index()] = Some(replica);
    Ok(View {
        number: ViewNumber::NONE.next(),
        primary: node,
        in_sync: InSync::only(node),
        data_generation,
        replicas,
        voters,
        size_blocks,
        held: false,
        lossy: false,
        forced: false,
        cause: ViewCause::Founded,
    })
}

fn recover(
    view: &View,
    node: NodeId,
    replica: ReplicaId,
    lossy: bool,
    ends_hold: bool,
    rules: &Rules,
) -> Result<View, Abort> {
    require_primary(view, node)?;
    require_whole(view, node, replica, rules)?;
    if view.held && !ends_hold {
        return Err(Abort::Held { view: view.number });
    }
    Ok(View {
        held: false,
        lossy,
        ..successor(view, ViewCause::Recovered)
    })
}

fn takeover(
    view: &View,
    node: NodeId,
    replica: ReplicaId,
    lossy: bool,
    rules: &Rules,
) -> Result<View, Abort> {
    require_other_primary(view, node)?;
    require_whole(view, node, replica, rules)?;
    if view.held {
        return Err(Abort::Held { view: view.number });
    }
    Ok(View {
        primary: node,
        in_sync: InSync::only(node),
        lossy,
        ..successor(view, ViewCause::TookOver)
    })
}

fn remove(view: &View, node: NodeId, ends_add: bool) -> Result<View, Abort> {
    require_primary(view, node)?;
    if !view.in_sync.contains(node) {
        return Err(Abort::NotInSync { view: view.number });
    }
    if !view.in_sync.contains(node.peer()) && !ends_add {
        return Err(Abort::PeerNotInSync { view: view.number });
    }
    Ok(View {
        in_sync: InSync::only(node),
        ..successor(view, ViewCause::Removed)
    })
}

fn add(view: &View, node: NodeId, replica: ReplicaId, number: ViewNumber) -> Result<View, Abort> {
    require_primary(view, node)?;
    if view.in_sync == InSync::BOTH {
        return Err(Abort::BothInSync { view: view.number });
    }
    require_number(view, number)?;
    // Usually the peer; after a Leave it is the Primary's own replica that returns.
    let added = if view.in_sync.contains(node) {
        node.peer()
    } else {
        node
    };
    let mut next = successor(view, ViewCause::Added);
    next.in_sync = InSync::BOTH;
    next.forced = false;
    next.replicas[added.index()] = Some(replica);
    Ok(next)
}

fn leave(view: &View, node: NodeId, number: ViewNumber) -> Result<View, Abort> {
    require_primary(view, node)?;
    if !view.in_sync.contains(node) {
        return Err(Abort::NotInSync { view: view.number });
    }
    if !view.in_sync.contains(node.peer()) {
        return Err(Abort::PeerNotInSync { view: view.number });
    }
    require_number(view, number)?;
    Ok(View {
        in_sync: InSync::only(node.peer()),
        ..successor(view, ViewCause::Left)
    })
}

fn hold(view: &View, node: NodeId, lossy: bool) -> Result<View, Abort> {
    require_primary(view, node)?;
    if view.held {
        return Err(Abort::Held { view: view.number });
    }
    Ok(View {
        held: true,
        lossy,
        ..successor(view, ViewCause::Held)
    })
}

fn claim(
    view: &View,
    node: NodeId,
    replica: ReplicaId,
    lossy: bool,
    rules: &Rules,
) -> Result<View, Abort> {
    require_other_primary(view, node)?;
    require_whole(view, node, replica, rules)?;
    if !view.held {
        return Err(Abort::NotHeld { view: view.number });
    }
    Ok(View {
        primary: node,
        in_sync: InSync::only(node),
        held: false,
        // What the old Primary had alone when the order came stays there.
        lossy: lossy || view.lossy,
        ..successor(view, ViewCause::Claimed)
    })
}

fn add_voter(view: &View, node: NodeId, voter: NodeId, id: VoterId) -> Result<View, Abort> {
    require_primary(view, node)?;
    if view.voters.0[voter.index()].is_some() {
        return Err(Abort::VoterRecorded { view: view.number });
    }
    let mut next = successor(view, ViewCause::VoterAdded);
    next.voters.0[voter.index()] = Some(id);
    Ok(next)
}

/// Both replicas of the view have the blocks: only these may ever be promoted in it.
fn resize(view: &View, node: NodeId, size_blocks: u64, number: ViewNumber) -> Result<View, Abort> {
    require_primary(view, node)?;
    if !view.in_sync.contains(node) {
        return Err(Abort::NotInSync { view: view.number });
    }
    if !view.in_sync.contains(node.peer()) {
        return Err(Abort::PeerNotInSync { view: view.number });
    }
    require_number(view, number)?;
    if size_blocks <= view.size_blocks {
        return Err(Abort::NotLarger { view: view.number });
    }
    Ok(View {
        size_blocks,
        ..successor(view, ViewCause::Resized)
    })
}

fn successor(view: &View, cause: ViewCause) -> View {
    View {
        number: view.number.next(),
        cause,
        ..*view
    }
}

fn require_primary(view: &View, node: NodeId) -> Result<(), Abort> {
    if view.primary == node {
        Ok(())
    } else {
        Err(Abort::PeerIsPrimary { view: view.number })
    }
}

fn require_other_primary(view: &View, node: NodeId) -> Result<(), Abort> {
    if view.primary == node {
        Err(Abort::SelfIsPrimary { view: view.number })
    } else {
        Ok(())
    }
}

/// Promise 3: a replica outside `in_sync`, or another replica than the one named, never serves.
fn require_whole(
    view: &View,
    node: NodeId,
    replica: ReplicaId,
    rules: &Rules,
) -> Result<(), Abort> {
    if !rules.in_sync {
        return Ok(());
    }
    if !view.in_sync.contains(node) {
        return Err(Abort::NotInSync { view: view.number });
    }
    if view.replicas[node.index()] != Some(replica) {
        return Err(Abort::WrongReplica { view: view.number });
    }
    Ok(())
}

fn require_number(view: &View, number: ViewNumber) -> Result<(), Abort> {
    if view.number.next() == number {
        Ok(())
    } else {
        Err(Abort::WrongNumber { view: view.number })
    }
}

#[cfg(test)]
mod tests;
