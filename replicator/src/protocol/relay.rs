//! The first bytes of a connection that is no data link: it carries one request of a control socket to
//! another node, or an NBD client to the Primary, or TLS, and any of these within.
//!
//! As long as a [`Preamble`], so that a listener takes as many bytes and then knows which of them it
//! has: an [`Opening`]. The answer is the same [`PreambleReply`](super::PreambleReply); if it
//! accepts, the other protocol follows: one request line and its answer lines as on the control
//! socket, or NBD from its first byte.

use zerocopy::little_endian::{U16, U64};

use super::preamble::{PREAMBLE_LEN, Preamble, PreambleError, VersionRange};
use crate::types::fixed::fixed_layout;
use crate::types::{NodeId, ResourceId};

const RELAY_MAGIC: [u8; 8] = *b"twinblkC";
const FORWARD_MAGIC: [u8; 8] = *b"twinblkN";
const SECURE_MAGIC: [u8; 8] = *b"twinblkT";

/// The only flag of a [`RelayPreamble`].
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

/// What a Secondary says first that passes an NBD client on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardPreamble {
    /// Which forms of what follows it can speak.
    pub versions: VersionRange,
    /// Hash of the cluster's identity.
    pub cluster: u64,
    /// The Secondary.
    pub from: NodeId,
    /// The node it takes for the Primary: nobody passes it on once more.
    pub to: NodeId,
    /// The client's resource.
    pub resource: ResourceId,
}

/// What is said in clear text before TLS. Nothing of it is believed: what it leads to is said again
/// within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurePreamble {
    /// Which forms of what follows it can speak.
    pub versions: VersionRange,
    /// Hash of the cluster's identity.
    pub cluster: u64,
    /// The node that dials.
    pub from: NodeId,
    /// The node it means to speak to.
    pub to: NodeId,
    /// What for.
    pub purpose: Purpose,
}

/// Who is to have the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The event loop: within TLS, a [`Preamble`] and frames.
    Link,
    /// The control thread: within TLS, a [`RelayPreamble`] or [`ForwardPreamble`] and what follows it.
    Call,
    /// The control thread: a node without a certificate wants one.
    Join,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Link, Self::Call, Self::Join];

    fn number(self) -> u64 {
        match self {
            Self::Link => 1,
            Self::Call => 2,
            Self::Join => 3,
        }
    }
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The peer dials for a resource; frames follow.
    Link(Preamble),
    /// Another node passes a request on; lines follow.
    Relay(RelayPreamble),
    /// The peer passes an NBD client on; NBD follows.
    Forward(ForwardPreamble),
    /// Another node wants TLS first.
    Secure(SecurePreamble),
}

fixed_layout! {
    /// Bytes of a [`RelayPreamble`], a [`ForwardPreamble`] and a [`SecurePreamble`].
    struct RawCall {
        magic: [u8; 8],
        version_min: U16,
        version_max: U16,
        from: u8,
        to: u8,
        flags: u8,
        reserved: u8,
        cluster: U64,
        subject: U64,
        reserved_2: [u8; 12],
        crc: [u8; 4],
    }
}

const _: () = assert!(size_of::<RawCall>() == PREAMBLE_LEN);

const CRC_AT: usize = core::mem::offset_of!(RawCall, crc);

/// What both kinds of call have in common.
struct Call {
    versions: VersionRange,
    cluster: u64,
    from: NodeId,
    to: NodeId,
    flag: bool,
    subject: u64,
}

impl Call {
    fn encode(&self, magic: [u8; 8], flag: u8) -> [u8; PREAMBLE_LEN] {
        let raw = RawCall {
            magic,
            version_min: self.versions.min.into(),
            version_max: self.versions.max.into(),
            from: self.from.raw(),
            to: self.to.raw(),
            flags: if self.flag { flag } else { 0 },
            reserved: 0,
            cluster: self.cluster.into(),
            subject: self.subject.into(),
            reserved_2: [0; 12],
            crc: [0; 4],
        };
        let mut bytes: [u8; PREAMBLE_LEN] = zerocopy::transmute!(raw);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; PREAMBLE_LEN], magic: [u8; 8], flag: u8) -> Result<Self, PreambleError> {
        let raw: RawCall = zerocopy::transmute!(*bytes);
        if raw.magic != magic {
            return Err(PreambleError::Foreign);
        }
        if crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() != raw.crc {
            return Err(PreambleError::Damaged);
        }
        let node = |raw| NodeId::from_raw(raw).ok_or(PreambleError::Value { field: "node" });
        // A flag of a later version is not understood, and may be what forbids the order.
        if raw.flags & !flag != 0 {
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
            flag: raw.flags & flag != 0,
            subject: raw.subject.get(),
        })
    }
}

impl VersionRange {
    /// What this code speaks after a [`RelayPreamble`]: one JSON value a line.
    pub const RELAY: Self = Self { min: 1, max: 1 };
    /// What this code speaks after a [`ForwardPreamble`]: fixed newstyle NBD.
    pub const FORWARD: Self = Self { min: 1, max: 1 };
    /// What this code speaks after a [`SecurePreamble`]: TLS 1.3.
    pub const SECURE: Self = Self { min: 1, max: 1 };
}

impl RelayPreamble {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let call = Call {
            versions: self.versions,
            cluster: self.cluster,
            from: self.from,
            to: self.to,
            flag: self.may_change,
            subject: self.uid.into(),
        };
        call.encode(RELAY_MAGIC, FLAG_MAY_CHANGE)
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        let call = Call::parse(bytes, RELAY_MAGIC, FLAG_MAY_CHANGE)?;
        let uid = u32::try_from(call.subject);
        Ok(Self {
            versions: call.versions,
            cluster: call.cluster,
            from: call.from,
            to: call.to,
            may_change: call.flag,
            uid: uid.map_err(|_| PreambleError::Value { field: "user" })?,
        })
    }
}

impl ForwardPreamble {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let call = Call {
            versions: self.versions,
            cluster: self.cluster,
            from: self.from,
            to: self.to,
            flag: false,
            subject: self.resource.0,
        };
        call.encode(FORWARD_MAGIC, 0)
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        let call = Call::parse(bytes, FORWARD_MAGIC, 0)?;
        Ok(Self {
            versions: call.versions,
            cluster: call.cluster,
            from: call.from,
            to: call.to,
            resource: ResourceId(call.subject),
        })
    }
}

impl SecurePreamble {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let call = Call {
            versions: self.versions,
            cluster: self.cluster,
            from: self.from,
            to: self.to,
            flag: false,
            subject: self.purpose.number(),
        };
        call.encode(SECURE_MAGIC, 0)
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        let call = Call::parse(bytes, SECURE_MAGIC, 0)?;
        let mut all = Purpose::ALL.into_iter();
        let purpose = all.find(|purpose| purpose.number() == call.subject);
        Ok(Self {
            versions: call.versions,
            cluster: call.cluster,
            from: call.from,
            to: call.to,
            purpose: purpose.ok_or(PreambleError::Value { field: "purpose" })?,
        })
    }
}

impl Opening {
    /// Reads the first bytes of a connection.
    ///
    /// # Errors
    /// If they are none of them.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, PreambleError> {
        if bytes.starts_with(&RELAY_MAGIC) {
            RelayPreamble::parse(bytes).map(Self::Relay)
        } else if bytes.starts_with(&FORWARD_MAGIC) {
            ForwardPreamble::parse(bytes).map(Self::Forward)
        } else if bytes.starts_with(&SECURE_MAGIC) {
            SecurePreamble::parse(bytes).map(Self::Secure)
        } else {
            Preamble::parse(bytes).map(Self::Link)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;

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

    fn forward() -> ForwardPreamble {
        ForwardPreamble {
            versions: VersionRange::FORWARD,
            cluster: 0x0102_0304_0506_0708,
            from: NodeId::B,
            to: NodeId::A,
            resource: ResourceId(u64::MAX - 9),
        }
    }

    fn secure(purpose: Purpose) -> SecurePreamble {
        SecurePreamble {
            versions: VersionRange::SECURE,
            cluster: 0x0102_0304_0506_0708,
            from: NodeId::B,
            to: NodeId::A,
            purpose,
        }
    }

    fn with_crc(mut bytes: [u8; PREAMBLE_LEN]) -> [u8; PREAMBLE_LEN] {
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn every_opening_survives_the_way() {
        for may_change in [false, true] {
            let relay = relay(may_change);
            assert_eq!(Opening::parse(&relay.encode()), Ok(Opening::Relay(relay)));
        }
        let parsed = Opening::parse(&forward().encode());
        assert_eq!(parsed, Ok(Opening::Forward(forward())));
        for purpose in Purpose::ALL {
            let secure = secure(purpose);
            let parsed = Opening::parse(&secure.encode());
            assert_eq!(parsed, Ok(Opening::Secure(secure)));
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
        let secure = secure(Purpose::Join).encode();
        for good in [relay(false).encode(), forward().encode(), secure] {
            for bit in 0..PREAMBLE_LEN * 8 {
                let mut bytes = good;
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Opening::parse(&bytes).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn nodes_and_flags_that_are_none_are_refused() {
        for (at, field) in [(12, "node"), (13, "node"), (14, "flags")] {
            for mut bytes in [relay(true).encode(), forward().encode()] {
                bytes[at] = 0x83;
                let refused = Err(PreambleError::Value { field });
                assert_eq!(Opening::parse(&with_crc(bytes)), refused, "byte {at}");
            }
        }
        let mut bytes = secure(Purpose::Link).encode();
        bytes[24] = 9;
        let refused = Err(PreambleError::Value { field: "purpose" });
        assert_eq!(Opening::parse(&with_crc(bytes)), refused);
        let mut bytes = relay(true).encode();
        bytes[30] = 1;
        let refused = Err(PreambleError::Value { field: "user" });
        assert_eq!(Opening::parse(&with_crc(bytes)), refused);
    }
}
