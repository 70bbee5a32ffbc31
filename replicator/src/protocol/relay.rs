//! The first bytes of a connection that carries one request of a control socket to another node.
//!
//! As long as a [`Preamble`], so that a listener takes as many bytes and then knows which of the two
//! it has: an [`Opening`]. The answer is the same [`PreambleReply`](super::PreambleReply); if it
//! accepts, one request line and its answer lines follow, as on the control socket.

use zerocopy::little_endian::{U16, U32, U64};

use super::preamble::{PREAMBLE_LEN, Preamble, PreambleError, VersionRange};
use crate::types::NodeId;
use crate::types::fixed::fixed_layout;

const MAGIC: [u8; 8] = *b"twinblkC";

/// The only flag there is.
const FLAG_MAY_CHANGE: u8 = 1;

/// What the passing node says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayPreamble {
    /// Which forms of what follows it can speak.
    pub versions: VersionRange,
    /// Hash of the cluster's identity.
    pub cluster: u64,
    /// The node that passes the request on.
    pub from: NodeId,
    /// The node it is meant for: nobody passes it on once more.
    pub to: NodeId,
    /// Whether whoever asked there may change anything.
    pub may_change: bool,
    /// The asking user there.
    pub uid: u32,
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The peer dials for a resource; frames follow.
    Link(Preamble),
    /// Another node passes a request on; lines follow.
    Relay(RelayPreamble),
}

fixed_layout! {
    /// Bytes of a relay's preamble.
    struct RawRelayPreamble {
        magic: [u8; 8],
        version_min: U16,
        version_max: U16,
        from: u8,
        to: u8,
        flags: u8,
        reserved: u8,
        cluster: U64,
        uid: U32,
        reserved_2: [u8; 16],
        crc: U32,
    }
}

const _: () = assert!(size_of::<RawRelayPreamble>() == PREAMBLE_LEN);

const CRC_AT: usize = core::mem::offset_of!(RawRelayPreamble, crc);

impl VersionRange {
    /// What this code speaks after a [`RelayPreamble`]: one JSON value a line.
    pub const RELAY: Self = Self { min: 1, max: 1 };
}

impl RelayPreamble {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let raw = RawRelayPreamble {
            magic: MAGIC,
            version_min: self.versions.min.into(),
            version_max: self.versions.max.into(),
            from: self.from.raw(),
            to: self.to.raw(),
            flags: if self.may_change { FLAG_MAY_CHANGE } else { 0 },
            reserved: 0,
            cluster: self.cluster.into(),
            uid: self.uid.into(),
            reserved_2: [0; 16],
            crc: 0.into(),
        };
        let mut bytes: [u8; PREAMBLE_LEN] = zerocopy::transmute!(raw);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        let raw: RawRelayPreamble = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(PreambleError::Foreign);
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != raw.crc.get() {
            return Err(PreambleError::Damaged);
        }
        let node = |raw| NodeId::from_raw(raw).ok_or(PreambleError::Value { field: "node" });
        // A flag of a later version is not understood, and may be what forbids the order.
        if raw.flags & !FLAG_MAY_CHANGE != 0 {
            return Err(PreambleError::Value { field: "flags" });
        }
        Ok(Self {
            versions: VersionRange {
                min: raw.version_min.get(),
                max: raw.version_max.get(),
            },
            cluster: raw.cluster.get(),
            from: node(raw.from)?,
            to: node(raw.to)?,
            may_change: raw.flags & FLAG_MAY_CHANGE != 0,
            uid: raw.uid.get(),
        })
    }
}

impl Opening {
    /// Reads the first bytes of a connection.
    ///
    /// # Errors
    /// If they are neither.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        if bytes.starts_with(&MAGIC) {
            RelayPreamble::parse(bytes).map(Self::Relay)
        } else {
            Preamble::parse(bytes).map(Self::Link)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ResourceId, SessionId};

    fn relay(may_change: bool) -> RelayPreamble {
        RelayPreamble {
            versions: VersionRange::RELAY,
            cluster: 0x0102_0304_0506_0708,
            from: NodeId::ARBITRATOR,
            to: NodeId::A,
            may_change,
            uid: 1000,
        }
    }

    fn with_crc(mut bytes: [u8; PREAMBLE_LEN]) -> [u8; PREAMBLE_LEN] {
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn either_opening_survives_the_way() {
        for may_change in [false, true] {
            let relay = relay(may_change);
            assert_eq!(Opening::parse(&relay.encode()), Ok(Opening::Relay(relay)));
        }
        let link = Preamble {
            versions: VersionRange::OURS,
            cluster: 1,
            resource: ResourceId(9),
            from: NodeId::B,
            session: SessionId(10),
        };
        assert_eq!(Opening::parse(&link.encode()), Ok(Opening::Link(link)));
    }

    #[test]
    fn no_flipped_bit_passes() {
        let good = relay(false).encode();
        for bit in 0..PREAMBLE_LEN * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Opening::parse(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn nodes_and_flags_that_are_none_are_refused() {
        for (at, field) in [(12, "node"), (13, "node"), (14, "flags")] {
            let mut bytes = relay(true).encode();
            bytes[at] = 0x83;
            let refused = Err(PreambleError::Value { field });
            assert_eq!(Opening::parse(&with_crc(bytes)), refused, "byte {at}");
        }
    }
}
