//! The first bytes of a connection: who dials, for which resource, and as which session.
//!
//! The dialling node sends a [`Preamble`], the other answers with a [`PreambleReply`]; if it says
//! [`PreambleStatus::Accepted`], frames of the agreed version follow in both directions. It carries
//! nothing secret and changes no state.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};

use super::frame::PROTOCOL_VERSION;
use crate::types::fixed::fixed_layout;
use crate::types::{NodeId, ResourceId, SessionId};

/// Bytes of a preamble.
pub const PREAMBLE_LEN: usize = size_of::<RawPreamble>();
/// Bytes of its answer.
pub const PREAMBLE_REPLY_LEN: usize = size_of::<RawPreambleReply>();

const MAGIC: [u8; 8] = *b"twinblkL";
const REPLY_MAGIC: u32 = u32::from_le_bytes(*b"tbLR");

/// Versions of the frame protocol a side can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// What this code speaks.
    pub const OURS: Self = Self {
        min: PROTOCOL_VERSION as u16,
        max: PROTOCOL_VERSION as u16,
    };

    /// The newest version both sides speak.
    #[must_use]
    pub fn newest_common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// What the dialling side says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// What it can speak.
    pub versions: VersionRange,
    /// Hash of the cluster's identity.
    pub cluster: u64,
    /// The resource.
    pub resource: ResourceId,
    /// The dialling node.
    pub from: NodeId,
    /// The session this connection is.
    pub session: SessionId,
}

/// What the listening side says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreambleStatus {
    /// Frames may follow.
    Accepted,
    /// No common version.
    Version,
    /// Another cluster.
    Cluster,
    /// A resource not configured here, or not `up`.
    Resource,
    /// Not the node expected to dial.
    Node,
    /// Not now (the resource is stopping, or another connection is being set up): dial again.
    Busy,
    /// TLS is configured on one side and not on the other.
    Tls,
}

/// Answer to a preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreambleReply {
    /// The verdict.
    pub status: PreambleStatus,
    /// The version agreed; the answerer's newest if it is not accepted.
    pub version: u16,
}

/// Bytes that are no preamble or no answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PreambleError {
    /// Somebody else speaks.
    #[error("the connection does not begin like one of ours")]
    Foreign,
    /// The checksum does not match.
    #[error("damaged")]
    Damaged,
    /// A value makes no sense.
    #[error("impossible {field}")]
    Value {
        /// Which.
        field: &'static str,
    },
}

fixed_layout! {
    /// Bytes of a preamble.
    struct RawPreamble {
        magic: [u8; 8],
        version_min: U16,
        version_max: U16,
        from: u8,
        reserved: [u8; 3],
        cluster: U64,
        resource: U64,
        session: U64,
        reserved_2: U32,
        crc: U32,
    }
}

fixed_layout! {
    /// Bytes of the answer.
    struct RawPreambleReply {
        magic: U32,
        status: u8,
        reserved: u8,
        version: U16,
    }
}

const CRC_AT: usize = core::mem::offset_of!(RawPreamble, crc);

impl Preamble {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let raw = RawPreamble {
            magic: MAGIC,
            version_min: self.versions.min.into(),
            version_max: self.versions.max.into(),
            from: self.from.raw(),
            reserved: [0; 3],
            cluster: self.cluster.into(),
            resource: self.resource.0.into(),
            session: self.session.0.into(),
            reserved_2: 0.into(),
            crc: 0.into(),
        };
        let mut bytes: [u8; PREAMBLE_LEN] = zerocopy::transmute!(raw);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a preamble.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        let raw: RawPreamble = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(PreambleError::Foreign);
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != raw.crc.get() {
            return Err(PreambleError::Damaged);
        }
        let from = NodeId::from_raw(raw.from).filter(|node| node.is_data());
        Ok(Self {
            versions: VersionRange {
                min: raw.version_min.get(),
                max: raw.version_max.get(),
            },
            cluster: raw.cluster.get(),
            resource: ResourceId(raw.resource.get()),
            from: from.ok_or(PreambleError::Value { field: "node" })?,
            session: SessionId(raw.session.get()),
        })
    }
}

/// Statuses with their numbers on the wire.
pub const STATUSES: [(u8, PreambleStatus); 7] = [
    (1, PreambleStatus::Accepted),
    (2, PreambleStatus::Version),
    (3, PreambleStatus::Cluster),
    (4, PreambleStatus::Resource),
    (5, PreambleStatus::Node),
    (6, PreambleStatus::Busy),
    (7, PreambleStatus::Tls),
];

impl PreambleReply {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_REPLY_LEN] {
        let status = STATUSES
            .iter()
            .find_map(|(number, status)| (*status == self.status).then_some(*number));
        zerocopy::transmute!(RawPreambleReply {
            magic: REPLY_MAGIC.into(),
            status: status.expect("every status is in the table"),
            reserved: 0,
            version: self.version.into(),
        })
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; PREAMBLE_REPLY_LEN]) -> Result<Self, PreambleError> {
        let raw: RawPreambleReply = zerocopy::transmute!(*bytes);
        if raw.magic.get() != REPLY_MAGIC {
            return Err(PreambleError::Foreign);
        }
        let status = STATUSES
            .iter()
            .find_map(|(number, status)| (*number == raw.status).then_some(*status));
        Ok(Self {
            status: status.ok_or(PreambleError::Value { field: "status" })?,
            version: raw.version.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble() -> Preamble {
        Preamble {
            versions: VersionRange::OURS,
            cluster: 0x0102_0304_0506_0708,
            resource: ResourceId(9),
            from: NodeId::B,
            session: SessionId(10),
        }
    }

    #[test]
    fn a_preamble_survives_the_way() {
        assert_eq!(Preamble::parse(&preamble().encode()), Ok(preamble()));
        for (_, status) in STATUSES {
            let reply = PreambleReply { status, version: 1 };
            assert_eq!(PreambleReply::parse(&reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn no_flipped_bit_passes() {
        let good = preamble().encode();
        for bit in 0..PREAMBLE_LEN * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Preamble::parse(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_newest_common_version_is_agreed_or_none() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).newest_common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).newest_common(range(2, 5)), None);
        assert_eq!(range(4, 9).newest_common(range(2, 5)), Some(5));
    }
}
