//! The frame header: 64 fixed little-endian bytes before every message and its payload.
//!
//! A header is checked completely (its own checksum, the kind, the payload's length by the rules of
//! that kind) before a byte of the payload is received or allocated for.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};

use super::message::{Message, MessageKind};
use crate::types::fixed::fixed_layout;
use crate::types::{BLOCK_LEN, BlockCount, BlockIndex, BlockRange, SessionId, ViewNumber};

/// Bytes in a header.
pub const HEADER_LEN: usize = size_of::<RawHeader>();
/// Bytes in the largest frame.
pub const FRAME_LEN_MAX: usize = HEADER_LEN + Message::MAX_PAYLOAD;
/// Version of the frames this code writes and reads; agreed by the preamble.
pub const PROTOCOL_VERSION: u8 = 1;
/// Largest control payload (a hello).
pub const CONTROL_LEN_MAX: usize = 4096;
/// Bytes of one digest.
pub const DIGEST_LEN: usize = 16;

/// First bytes of every frame.
const MAGIC: u32 = u32::from_le_bytes(*b"tbLK");

/// Bytes that are not a frame of ours. The connection is of no use afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not our magic: the stream is out of step, or somebody else speaks.
    #[error("no frame begins here (magic {found:08x})")]
    Magic {
        /// What is there.
        found: u32,
    },
    /// Another protocol version than agreed.
    #[error("frame of protocol version {found}")]
    Version {
        /// Its version.
        found: u8,
    },
    /// The header's checksum does not match.
    #[error("frame header damaged")]
    HeaderChecksum,
    /// The payload's checksum does not match.
    #[error("payload of {kind:?} damaged")]
    PayloadChecksum {
        /// Of which message.
        kind: MessageKind,
    },
    /// No message has this kind.
    #[error("unknown message kind {found}")]
    Kind {
        /// Its number.
        found: u8,
    },
    /// The payload is too long or too short for the message.
    #[error("{kind:?} with a payload of {len} bytes")]
    PayloadLength {
        /// Of which message.
        kind: MessageKind,
        /// Its length.
        len: u32,
    },
    /// A value that the message does not allow.
    #[error("{kind:?} with an impossible {field}")]
    Value {
        /// Of which message.
        kind: MessageKind,
        /// Which.
        field: &'static str,
    },
}

fixed_layout! {
    /// Bytes of a header. What the middle fields mean depends on the kind; unused ones are zero.
    struct RawHeader {
        magic: U32,
        version: u8,
        kind: u8,
        flags: U16,
        session: U64,
        view: U64,
        id: U64,
        start: U64,
        count: U64,
        detail: U32,
        payload_len: U32,
        payload_crc: U32,
        header_crc: U32,
    }
}

const CRC_AT: usize = core::mem::offset_of!(RawHeader, header_crc);
const _: () = assert!(HEADER_LEN == 64);
const _: () = assert!(CRC_AT + 4 == HEADER_LEN);

/// Flag bits.
pub(super) mod flag {
    /// Data: durable before the ack.
    pub(in crate::protocol) const FUA: u16 = 1 << 0;
    /// Data of zeroes: deallocating is allowed.
    pub(in crate::protocol) const MAY_UNMAP: u16 = 1 << 1;
    /// Data, ResyncData: the blocks are zero, there is no payload.
    pub(in crate::protocol) const ZEROES: u16 = 1 << 2;
    /// ResyncData: last piece of the request.
    pub(in crate::protocol) const LAST: u16 = 1 << 3;
    /// ResyncData: the target has these blocks already.
    pub(in crate::protocol) const SAME: u16 = 1 << 4;
    /// ReadReply, ResyncData, VerifyDigests: the blocks could not be read.
    pub(in crate::protocol) const ERROR: u16 = 1 << 5;
    /// Hello: configured with protocol A. Data: sent under it.
    pub(in crate::protocol) const PROTOCOL_A: u16 = 1 << 6;
    /// The same of protocol B; neither means C.
    pub(in crate::protocol) const PROTOCOL_B: u16 = 1 << 7;
    /// Data: not before everything sent earlier has completed.
    pub(in crate::protocol) const AFTER_EARLIER: u16 = 1 << 8;
    /// ResyncControl: resyncs are held.
    pub(in crate::protocol) const PAUSED: u16 = 1 << 9;
    /// VerifyState: one runs.
    pub(in crate::protocol) const RUNNING: u16 = 1 << 10;
    /// VerifyRequest: behind every earlier write of the blocks.
    pub(in crate::protocol) const IN_TURN: u16 = 1 << 11;
}

/// What a message puts into the header's middle fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) flags: u16,
    pub(super) id: u64,
    pub(super) start: u64,
    pub(super) count: u64,
    pub(super) detail: u32,
}

impl Fields {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The range; its end was checked when the header was parsed.
    pub(super) fn range(&self) -> BlockRange {
        BlockRange::new(BlockIndex(self.start), BlockCount(self.count))
    }
}

/// A parsed header: everything but the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    session: SessionId,
    view: ViewNumber,
    pub(super) kind: MessageKind,
    pub(super) fields: Fields,
    payload_len: u32,
    payload_crc: u32,
}

impl Header {
    pub(super) fn new(
        session: SessionId,
        view: ViewNumber,
        kind: MessageKind,
        fields: Fields,
        payload: &[u8],
    ) -> Self {
        Self {
            session,
            view,
            kind,
            fields,
            payload_len: u32::try_from(payload.len()).expect("the engine's payloads are bounded"),
            payload_crc: checksum(payload),
        }
    }

    /// The session the frame belongs to.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The sender's view.
    #[must_use]
    pub fn view(&self) -> ViewNumber {
        self.view
    }

    /// The message's kind.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        self.kind
    }

    /// Bytes that follow the header; at most [`Message::MAX_PAYLOAD`].
    #[must_use]
    pub fn payload_len(&self) -> usize {
        usize::try_from(self.payload_len).expect("bounded when parsed")
    }

    /// Whether `payload` is what the sender sent.
    pub(super) fn matches(&self, payload: &[u8]) -> bool {
        payload.len() == self.payload_len() && checksum(payload) == self.payload_crc
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let raw = RawHeader {
            magic: MAGIC.into(),
            version: PROTOCOL_VERSION,
            kind: number_of(self.kind),
            flags: self.fields.flags.into(),
            session: self.session.0.into(),
            view: self.view.0.into(),
            id: self.fields.id.into(),
            start: self.fields.start.into(),
            count: self.fields.count.into(),
            detail: self.fields.detail.into(),
            payload_len: self.payload_len.into(),
            payload_crc: self.payload_crc.into(),
            header_crc: 0.into(),
        };
        let mut bytes: [u8; HEADER_LEN] = zerocopy::transmute!(raw);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// What is wrong with it; see [`FrameError`].
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic.get() != MAGIC {
            return Err(FrameError::Magic {
                found: raw.magic.get(),
            });
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != raw.header_crc.get() {
            return Err(FrameError::HeaderChecksum);
        }
        if raw.version != PROTOCOL_VERSION {
            return Err(FrameError::Version { found: raw.version });
        }
        let header = Self {
            session: SessionId(raw.session.get()),
            view: ViewNumber(raw.view.get()),
            kind: kind_of(raw.kind).ok_or(FrameError::Kind { found: raw.kind })?,
            fields: Fields {
                flags: raw.flags.get(),
                id: raw.id.get(),
                start: raw.start.get(),
                count: raw.count.get(),
                detail: raw.detail.get(),
            },
            payload_len: raw.payload_len.get(),
            payload_crc: raw.payload_crc.get(),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FrameError> {
        let kind = self.kind;
        let rules = Rules::of(kind, &self.fields);
        if self.view > ViewNumber::MAX {
            let field = "view";
            return Err(FrameError::Value { kind, field });
        }
        if self.fields.flags & !rules.flags != 0 {
            let field = "flag";
            return Err(FrameError::Value { kind, field });
        }
        let end = self.fields.start.checked_add(self.fields.count);
        if end.is_none() || (rules.has_range && self.fields.count == 0) {
            let field = "range";
            return Err(FrameError::Value { kind, field });
        }
        let no_checksum = self.payload_len == 0 && self.payload_crc != 0;
        if no_checksum || !rules.payload.allows(self.payload_len) {
            let len = self.payload_len;
            return Err(FrameError::PayloadLength { kind, len });
        }
        Ok(())
    }
}

/// Checksum of a payload; 0 if there is none.
fn checksum(payload: &[u8]) -> u32 {
    if payload.is_empty() {
        0
    } else {
        crc32c::crc32c(payload)
    }
}

/// What a kind of message allows in its header.
struct Rules {
    flags: u16,
    has_range: bool,
    payload: PayloadRule,
}

enum PayloadRule {
    None,
    /// As many bytes for each block of the range.
    PerBlock(u64, BlockCount),
    /// Not empty, whole units, up to a limit.
    Units {
        unit: usize,
        max: usize,
    },
}

impl PayloadRule {
    fn allows(&self, len: u32) -> bool {
        let len = u64::from(len);
        let max = |max: usize| u64::try_from(max).is_ok_and(|max| len <= max);
        match *self {
            Self::None => len == 0,
            Self::PerBlock(bytes, count) => {
                count.0.checked_mul(bytes) == Some(len) && max(Message::MAX_PAYLOAD)
            }
            Self::Units { unit, max: limit } => {
                len > 0 && len.is_multiple_of(unit as u64) && max(limit)
            }
        }
    }
}

impl Rules {
    fn of(kind: MessageKind, fields: &Fields) -> Self {
        use PayloadRule as P;
        let count = BlockCount(fields.count);
        let plain = |payload: PayloadRule| (0, false, payload);
        let data_or = |no_payload: u16| {
            if fields.has(no_payload) {
                P::None
            } else {
                P::PerBlock(BLOCK_LEN, count)
            }
        };
        let (flags, has_range, payload) = match kind {
            MessageKind::Hello => {
                let payload = P::Units {
                    unit: 1,
                    max: CONTROL_LEN_MAX,
                };
                (flag::PROTOCOL_A | flag::PROTOCOL_B, false, payload)
            }
            MessageKind::BitmapChunk => plain(P::Units {
                unit: 8,
                max: Message::MAX_BITMAP_CHUNK,
            }),
            MessageKind::Data => {
                let kind = flag::MAY_UNMAP | flag::ZEROES;
                let protocol = flag::PROTOCOL_A | flag::PROTOCOL_B;
                let flags = kind | protocol | flag::FUA | flag::AFTER_EARLIER;
                (flags, true, data_or(flag::ZEROES))
            }
            MessageKind::ReadRequest | MessageKind::ResyncAck | MessageKind::Grow => {
                (0, true, P::None)
            }
            MessageKind::Grown => (flag::ERROR, true, P::None),
            MessageKind::ReadReply => (flag::ERROR, true, data_or(flag::ERROR)),
            MessageKind::ResyncRequest if fields.detail == 0 => (0, true, P::None),
            MessageKind::ResyncRequest => (0, true, P::PerBlock(DIGEST_LEN as u64, count)),
            MessageKind::ResyncData => {
                let empty = flag::ZEROES | flag::SAME | flag::ERROR;
                (empty | flag::LAST, true, data_or(empty))
            }
            MessageKind::ResyncControl => (flag::PAUSED, false, P::None),
            MessageKind::VerifyState => (flag::RUNNING, false, P::None),
            MessageKind::VerifyRequest => (flag::IN_TURN, true, P::None),
            MessageKind::VerifyDigests if fields.has(flag::ERROR) => (flag::ERROR, true, P::None),
            MessageKind::VerifyDigests => (0, true, P::PerBlock(DIGEST_LEN as u64, count)),
            MessageKind::Refused
            | MessageKind::BitmapEnd
            | MessageKind::ResyncReady
            | MessageKind::WriteAck
            | MessageKind::NegAck
            | MessageKind::Barrier
            | MessageKind::BarrierAck
            | MessageKind::PrepareAdd
            | MessageKind::AddReady
            | MessageKind::LeaveMarks
            | MessageKind::LeaveReady
            | MessageKind::Ping
            | MessageKind::Pong
            | MessageKind::Goodbye
            | MessageKind::ReceiveAck
            | MessageKind::ResyncAdvice
            | MessageKind::Invalidate => plain(P::None),
        };
        Self {
            flags,
            has_range,
            payload,
        }
    }
}

/// All kinds; a kind's number is its place here plus one. New ones go to the end.
const KINDS: [MessageKind; 31] = [
    MessageKind::Hello,
    MessageKind::Refused,
    MessageKind::BitmapChunk,
    MessageKind::BitmapEnd,
    MessageKind::ResyncReady,
    MessageKind::Data,
    MessageKind::WriteAck,
    MessageKind::NegAck,
    MessageKind::Barrier,
    MessageKind::BarrierAck,
    MessageKind::ReadRequest,
    MessageKind::ReadReply,
    MessageKind::ResyncRequest,
    MessageKind::ResyncData,
    MessageKind::ResyncAck,
    MessageKind::PrepareAdd,
    MessageKind::AddReady,
    MessageKind::LeaveMarks,
    MessageKind::LeaveReady,
    MessageKind::Ping,
    MessageKind::Pong,
    MessageKind::Goodbye,
    MessageKind::ReceiveAck,
    MessageKind::ResyncControl,
    MessageKind::Invalidate,
    MessageKind::VerifyState,
    MessageKind::VerifyRequest,
    MessageKind::VerifyDigests,
    MessageKind::Grow,
    MessageKind::Grown,
    MessageKind::ResyncAdvice,
];

/// All kinds of message with their numbers on the wire, for the format document.
pub fn kind_numbers() -> impl Iterator<Item = (u8, MessageKind)> {
    (1..).zip(KINDS)
}

fn kind_of(number: u8) -> Option<MessageKind> {
    KINDS.get(usize::from(number).checked_sub(1)?).copied()
}

fn number_of(kind: MessageKind) -> u8 {
    kind_numbers()
        .find_map(|(number, known)| (known == kind).then_some(number))
        .expect("every kind is in the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_number() {
        for (number, kind) in kind_numbers() {
            assert_eq!(number_of(kind), number);
            assert_eq!(kind_of(number), Some(kind));
        }
        assert_eq!(kind_of(0), None);
        assert_eq!(kind_of(32), None);
    }
}
