//! The controller: who may serve a resource, decided by three voters. Pure; one per node.

mod codec;
pub mod input;
pub mod lease;
pub mod message;
pub mod order;
pub mod output;
pub mod record;
pub mod rules;
#[cfg(test)]
mod testing;
pub mod view;

use replicator::types::{NodeId, ResourceId, VoterId};

pub use codec::CodecError;
pub use input::{EngineReport, Input, Order, OrderId, ReplicaFacts};
pub use lease::{Timing, TimingError};
pub use message::{DATAGRAM_LEN_MAX, Datagram};
pub use order::{Done, Explanation, Names, OrderRefusal, RefusalKind};
pub use output::{
    Action, Blocker, ControllerEvent, EngineCommand, NodeSnapshot, PeerClaim, ResourceSnapshot,
    StepDownReason, VoterSnapshot,
};
pub use record::VoterRecord;
pub use rules::Rules;

/// What a controller is made with. Nothing of it changes during a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerSettings {
    /// This node.
    pub node: NodeId,
    /// Hash of the cluster's identity: datagrams of others are dropped.
    pub cluster: u64,
    /// Identity of this node's voter store.
    pub voter: VoterId,
    /// Random id of this boot.
    pub boot_id: u128,
    /// Number of this start, durably one more than the last: makes ballots unique.
    pub incarnation: u32,
    /// The same on all nodes.
    pub timing: Timing,
    /// Whether the cluster has an arbitrator.
    pub has_arbitrator: bool,
    /// Randomness for back-off and for the ids of new lineages.
    pub seed: u128,
    /// Resources configured on this node, whether up or not; none on an arbitrator.
    pub configured: Vec<ResourceId>,
    /// All records of the voter store.
    pub stored: Vec<(ResourceId, VoterRecord)>,
}
