//! Identities. Each is its own type; none converts silently into another.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A voter's place in the cluster: 0 and 1 are the data nodes (in the order of their names),
/// 2 is the arbitrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(u8);

impl NodeId {
    /// The data node whose name sorts first.
    pub const A: Self = Self(0);
    /// The other data node.
    pub const B: Self = Self(1);
    /// The arbitrator: votes, holds no data.
    pub const ARBITRATOR: Self = Self(2);
    /// All three, in order.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::ARBITRATOR];

    /// From a number on the wire or on disk; `None` unless 0, 1 or 2.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        (raw < 3).then_some(Self(raw))
    }

    /// The number on the wire and on disk.
    #[must_use]
    pub fn raw(self) -> u8 {
        self.0
    }

    /// As an index into arrays of three.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Whether it holds data (A or B).
    #[must_use]
    pub fn is_data(self) -> bool {
        self.0 < 2
    }

    /// The other data node.
    ///
    /// # Panics
    /// For the arbitrator, which has no peer.
    #[must_use]
    pub fn peer(self) -> Self {
        assert!(self.is_data(), "node {} has no peer", self.0);
        Self(1 - self.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $raw);
    };
}

id!(
    /// A resource, everywhere but in front of people: 64-bit FNV-1a of its name (the same on every
    /// node; the configuration refuses two names with one hash).
    ResourceId(u64)
);
id!(
    /// Number of a volume inside its resource, as configured.
    VolumeId(u16)
);
id!(
    /// Number of a view. Views of one resource form a chain: 0 is "no view yet".
    ViewNumber(u64)
);
id!(
    /// One connection to the peer. Chosen by the dialling side, never reused by it: anything tagged
    /// with another id is late or foreign and dropped (R21).
    SessionId(u64)
);
id!(
    /// One effect asked of the executor; its completion carries the same id, exactly once.
    OpId(u64)
);
id!(
    /// One guest request, named by the shell; answered exactly once or dropped with its client.
    RequestId(u64)
);
id!(
    /// Number of a write epoch inside a session: writes between two barriers.
    WriteEpoch(u64)
);
id!(
    /// Random identity of one replica's data, made by `create-md`. 0 means none.
    ReplicaId(u128)
);
id!(
    /// Random identity of a voter's store, made when the store is created. 0 means none.
    VoterId(u128)
);
id!(
    /// Random identity of a lineage of data; changes only on `--force`, so that two lineages can
    /// never rejoin silently. 0 means none.
    DataGeneration(u128)
);

impl ResourceId {
    /// The id of the resource called `name`.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}

impl ViewNumber {
    /// No view is committed or known.
    pub const NONE: Self = Self(0);

    /// The largest number a view may have. A change of view a nanosecond does not come this far in
    /// a century: whatever brings a larger one is damaged or forged, and its successor would not
    /// be far from an overflow.
    pub const MAX: Self = Self(1 << 63);

    /// The number off a wire or a disk, `None` beyond [`Self::MAX`].
    #[must_use]
    pub fn from_raw(raw: u64) -> Option<Self> {
        Some(Self(raw)).filter(|number| *number <= Self::MAX)
    }

    /// The number of the next view in the chain.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_data_node_is_the_others_peer() {
        assert_eq!(NodeId::A.peer(), NodeId::B);
        assert_eq!(NodeId::B.peer(), NodeId::A);
        assert_eq!(NodeId::from_raw(3), None);
    }

    #[test]
    fn a_resource_has_the_same_id_on_every_node() {
        // Published FNV-1a test vector: the id is part of the wire format.
        assert_eq!(ResourceId::of_name("a"), ResourceId(0xaf63_dc4c_8601_ec8c));
    }
}
