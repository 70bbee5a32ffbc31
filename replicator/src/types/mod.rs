//! Leaf types: units, identities, states, the view, time. Knows nothing of the other modules.

pub mod error;
pub mod fixed;
pub mod ids;
pub mod payload;
pub mod placement;
pub mod state;
pub mod time;
pub mod units;
pub mod view;
pub mod volumes;

pub use error::{DiskError, StoreError};
pub use ids::{
    DataGeneration, NodeId, OpId, ReplicaId, RequestId, ResourceId, SessionId, ViewNumber,
    VolumeId, VoterId, WriteEpoch,
};
pub use payload::Payload;
pub use placement::{Failback, Window};
pub use state::{
    ConnectionState, DiskState, Failover, ReplicationProtocol, ReplicationState, ResyncRate, Role,
};
pub use time::Instant;
pub use units::{
    BLOCK_LEN, BlockCount, BlockIndex, BlockRange, ByteLen, ByteOffset, ByteRange, EXTENT_BLOCKS,
    EXTENT_LEN, ExtentNr,
};
pub use view::{
    Activation, Ballot, CommittedView, InSync, QuorumEvidence, View, ViewCause, VoterSet,
};
pub use volumes::VolumeRow;
