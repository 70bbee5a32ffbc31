//! Messages ↔ bytes. Payloads are moved as handles, never copied on the way out; on the way in the
//! shell decides where they land ([`Header::payload_len`]) and hands them over.

use core::num::NonZeroU64;
use core::time::Duration;

use super::control;
use super::frame::{DIGEST_LEN, Fields, FrameError, HEADER_LEN, Header, flag};
use super::message::{
    DataKind, DiskErrorCode, Message, MessageKind, RateOrder, Refusal, ResyncReply, WriteId,
    WriteTerms,
};
use crate::types::{
    BlockRange, Payload, ReplicationProtocol, ResyncRate, SessionId, ViewNumber, WriteEpoch,
};

/// A message on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// To be sent first.
    pub header: [u8; HEADER_LEN],
    /// To be sent right after it.
    pub payload: Option<Payload>,
}

/// A frame on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The session it was sent in.
    pub session: SessionId,
    /// The sender's view at that time.
    pub view: ViewNumber,
    /// The message.
    pub message: Message,
}

/// Answer of [`decode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The bytes end inside a frame; this many from its start are needed to go on.
    Incomplete {
        /// At most [`super::frame::FRAME_LEN_MAX`].
        needed: usize,
    },
    /// A frame, and how many bytes it took.
    Frame {
        /// The frame; its payload is a copy.
        frame: Frame,
        /// Bytes to skip.
        len: usize,
    },
}

/// The frame of a message.
///
/// # Panics
/// If a payload is larger than [`Message::MAX_PAYLOAD`]: the engine makes none.
#[must_use]
pub fn encode(session: SessionId, view: ViewNumber, message: &Message) -> Encoded {
    let (fields, payload) = parts_of(message);
    let bytes: &[u8] = payload.as_deref().unwrap_or_default();
    assert!(
        bytes.len() <= Message::MAX_PAYLOAD,
        "{:?} with a payload of {} bytes",
        message.kind(),
        bytes.len()
    );
    Encoded {
        header: Header::new(session, view, message.kind(), fields, bytes).encode(),
        payload: payload.filter(|payload| !payload.is_empty()),
    }
}

/// The first frame in `bytes`, payload included. For streams whose payloads are small; large ones
/// go through [`Header::parse`] and [`Message::from_parts`] without a copy.
///
/// # Errors
/// If the bytes are no frame; nothing behind them can be found any more.
pub fn decode(bytes: &[u8]) -> Result<Decoded, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Decoded::Incomplete { needed: HEADER_LEN });
    };
    let header = Header::parse(header)?;
    let len = HEADER_LEN + header.payload_len();
    let Some(payload) = rest.get(..header.payload_len()) else {
        return Ok(Decoded::Incomplete { needed: len });
    };
    let frame = Frame {
        session: header.session(),
        view: header.view(),
        message: Message::from_parts(&header, Payload::from(payload.to_vec()))?,
    };
    Ok(Decoded::Frame { frame, len })
}

/// What a message puts into the header, and its payload.
fn parts_of(message: &Message) -> (Fields, Option<Payload>) {
    let id = |id: u64| Fields {
        id,
        ..Fields::default()
    };
    let ranged = |write: WriteId, range: BlockRange| Fields {
        id: write.0,
        start: range.start().0,
        count: range.count().0,
        ..Fields::default()
    };
    match message {
        Message::Hello(hello) => {
            let fields = with_flags(Fields::default(), protocol_flag(hello.protocol));
            (fields, Some(control::encode_hello(hello).into()))
        }
        Message::Refused(refusal) => (with_detail(Fields::default(), code_of(*refusal)), None),
        Message::BitmapChunk { first_block, bits } => {
            let fields = Fields {
                start: *first_block,
                ..Fields::default()
            };
            (fields, Some(bits.clone()))
        }
        Message::Data {
            write,
            range,
            kind,
            terms,
        } => {
            let (flags, payload) = match kind {
                DataKind::Write(payload) => (0, Some(payload.clone())),
                DataKind::Zeroes { may_unmap: false } => (flag::ZEROES, None),
                DataKind::Zeroes { may_unmap: true } => (flag::ZEROES | flag::MAY_UNMAP, None),
            };
            let flags = flags | flags_of(*terms);
            (with_flags(ranged(*write, *range), flags), payload)
        }
        Message::WriteAck { write } | Message::ReceiveAck { write } => (id(write.0), None),
        Message::ResyncControl { paused, rate } => {
            let fields = Fields {
                id: rate.map_or(0, |order| rate_number(order.rate)),
                detail: rate.map_or(0, |order| order.number),
                ..Fields::default()
            };
            let flags = if *paused { flag::PAUSED } else { 0 };
            (with_flags(fields, flags), None)
        }
        Message::ResyncAdvice { pace, latency } => {
            let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
            let pace = pace.map_or(0, NonZeroU64::get);
            (with_detail(id(pace), micros), None)
        }
        Message::NegAck { write, error } => (with_detail(id(write.0), error.0.into()), None),
        Message::Barrier { epoch } | Message::BarrierAck { epoch } => (id(epoch.0), None),
        Message::ReadRequest { read, range } => (ranged(*read, *range), None),
        Message::ReadReply { read, range, data } => match data {
            Ok(payload) => (ranged(*read, *range), Some(payload.clone())),
            Err(error) => {
                let fields = with_detail(ranged(*read, *range), error.0.into());
                (with_flags(fields, flag::ERROR), None)
            }
        },
        Message::ResyncRequest {
            id: request,
            range,
            digests,
        } => {
            let digest_len = if digests.is_empty() { 0 } else { DIGEST_LEN };
            let detail = u32::try_from(digest_len).expect("16");
            let fields = with_detail(ranged(*request, *range), detail);
            (fields, Some(digests.clone()))
        }
        Message::ResyncData {
            id: request,
            range,
            reply,
            last,
        } => {
            let (flags, payload) = match reply {
                ResyncReply::Data(payload) => (0, Some(payload.clone())),
                ResyncReply::Zeroes => (flag::ZEROES, None),
                ResyncReply::Same => (flag::SAME, None),
                ResyncReply::Unreadable => (flag::ERROR, None),
            };
            let last = if *last { flag::LAST } else { 0 };
            (with_flags(ranged(*request, *range), flags | last), payload)
        }
        Message::VerifyState { running } => {
            let flags = if *running { flag::RUNNING } else { 0 };
            (with_flags(Fields::default(), flags), None)
        }
        Message::VerifyRequest {
            id: request,
            range,
            in_turn,
        } => {
            let flags = if *in_turn { flag::IN_TURN } else { 0 };
            (with_flags(ranged(*request, *range), flags), None)
        }
        Message::VerifyDigests {
            id: request,
            range,
            digests,
        } => match digests {
            Ok(digests) => (ranged(*request, *range), Some(digests.clone())),
            Err(error) => {
                let fields = with_detail(ranged(*request, *range), error.0.into());
                (with_flags(fields, flag::ERROR), None)
            }
        },
        Message::ResyncAck { id: request, range } | Message::Grow { id: request, range } => {
            (ranged(*request, *range), None)
        }
        Message::Grown {
            id: request,
            range,
            result,
        } => {
            let fields = ranged(*request, *range);
            let fields = match result {
                Ok(()) => fields,
                Err(error) => with_flags(with_detail(fields, error.0.into()), flag::ERROR),
            };
            (fields, None)
        }
        Message::PrepareAdd { view }
        | Message::AddReady { view }
        | Message::LeaveMarks { view }
        | Message::LeaveReady { view } => (id(view.0), None),
        Message::BitmapEnd
        | Message::ResyncReady
        | Message::Invalidate
        | Message::Ping
        | Message::Pong
        | Message::Goodbye => (Fields::default(), None),
    }
}

fn with_flags(fields: Fields, flags: u16) -> Fields {
    Fields { flags, ..fields }
}

fn with_detail(fields: Fields, detail: u32) -> Fields {
    Fields { detail, ..fields }
}

impl Message {
    /// The message of a header and the payload that followed it.
    ///
    /// # Errors
    /// If the payload is not the one the header announces, or a value makes no sense.
    pub fn from_parts(header: &Header, payload: Payload) -> Result<Self, FrameError> {
        let (kind, fields) = (header.kind(), &header.fields);
        if !header.matches(&payload) {
            return Err(FrameError::PayloadChecksum { kind });
        }
        let bad = |field: &'static str| FrameError::Value { kind, field };
        let error = || {
            u8::try_from(fields.detail)
                .map(DiskErrorCode)
                .map_err(|_| bad("error"))
        };
        let id = WriteId(fields.id);
        let range = fields.range();
        let epoch = WriteEpoch(fields.id);
        let view = || ViewNumber::from_raw(fields.id).ok_or(bad("view"));
        Ok(match kind {
            MessageKind::Hello => {
                let protocol = protocol_of(fields).ok_or(bad("flags"))?;
                let hello = control::decode_hello(&payload, protocol).ok_or(bad("hello"))?;
                Self::Hello(Box::new(hello))
            }
            MessageKind::Refused => Self::Refused(refusal_of(fields.detail).ok_or(bad("refusal"))?),
            MessageKind::BitmapChunk => Self::BitmapChunk {
                first_block: Some(fields.start)
                    .filter(|block| block.is_multiple_of(64))
                    .ok_or(bad("first block"))?,
                bits: payload,
            },
            MessageKind::BitmapEnd => Self::BitmapEnd,
            MessageKind::ResyncReady => Self::ResyncReady,
            MessageKind::Data => Self::Data {
                write: id,
                range,
                kind: data_kind(fields, payload).ok_or(bad("flags"))?,
                terms: terms_of(fields).ok_or(bad("flags"))?,
            },
            MessageKind::WriteAck => Self::WriteAck { write: id },
            MessageKind::NegAck => Self::NegAck {
                write: id,
                error: error()?,
            },
            MessageKind::Barrier => Self::Barrier { epoch },
            MessageKind::BarrierAck => Self::BarrierAck { epoch },
            MessageKind::ReadRequest => Self::ReadRequest { read: id, range },
            MessageKind::ReadReply => Self::ReadReply {
                read: id,
                range,
                data: if fields.has(flag::ERROR) {
                    Err(error()?)
                } else {
                    Ok(payload)
                },
            },
            MessageKind::ResyncRequest => Self::ResyncRequest {
                id,
                range,
                digests: payload,
            },
            MessageKind::ResyncData => Self::ResyncData {
                id,
                range,
                reply: resync_reply(fields, payload).ok_or(bad("flags"))?,
                last: fields.has(flag::LAST),
            },
            MessageKind::ResyncAck => Self::ResyncAck { id, range },
            MessageKind::PrepareAdd => Self::PrepareAdd { view: view()? },
            MessageKind::AddReady => Self::AddReady { view: view()? },
            MessageKind::LeaveMarks => Self::LeaveMarks { view: view()? },
            MessageKind::LeaveReady => Self::LeaveReady { view: view()? },
            MessageKind::Ping => Self::Ping,
            MessageKind::Pong => Self::Pong,
            MessageKind::Goodbye => Self::Goodbye,
            MessageKind::Invalidate => Self::Invalidate,
            MessageKind::VerifyState => Self::VerifyState {
                running: fields.has(flag::RUNNING),
            },
            MessageKind::VerifyRequest => Self::VerifyRequest {
                id,
                range,
                in_turn: fields.has(flag::IN_TURN),
            },
            MessageKind::VerifyDigests => Self::VerifyDigests {
                id,
                range,
                digests: if fields.has(flag::ERROR) {
                    Err(error()?)
                } else {
                    Ok(payload)
                },
            },
            MessageKind::Grow => Self::Grow { id, range },
            MessageKind::Grown => Self::Grown {
                id,
                range,
                result: if fields.has(flag::ERROR) {
                    Err(error()?)
                } else {
                    Ok(())
                },
            },
            MessageKind::ReceiveAck => Self::ReceiveAck { write: id },
            MessageKind::ResyncAdvice => Self::ResyncAdvice {
                pace: NonZeroU64::new(fields.id),
                latency: Duration::from_micros(fields.detail.into()),
            },
            MessageKind::ResyncControl => Self::ResyncControl {
                paused: fields.has(flag::PAUSED),
                rate: rate_of(fields.id).map(|rate| RateOrder {
                    number: fields.detail,
                    rate,
                }),
            },
        })
    }
}

/// As fast as guests do not feel it.
const RATE_AUTO: NonZeroU64 = NonZeroU64::new(u64::MAX - 1).expect("not 0");

/// No rate is 0, and no limit the greatest number.
fn rate_number(rate: ResyncRate) -> u64 {
    match rate {
        ResyncRate::Unlimited => u64::MAX,
        ResyncRate::Auto => RATE_AUTO.get(),
        ResyncRate::BytesPerSecond(rate) => rate.get(),
    }
}

fn rate_of(number: u64) -> Option<ResyncRate> {
    NonZeroU64::new(number).map(|number| match number {
        NonZeroU64::MAX => ResyncRate::Unlimited,
        RATE_AUTO => ResyncRate::Auto,
        rate => ResyncRate::BytesPerSecond(rate),
    })
}

fn flags_of(terms: WriteTerms) -> u16 {
    let when = |asked: bool, flag: u16| if asked { flag } else { 0 };
    protocol_flag(terms.protocol)
        | when(terms.fua, flag::FUA)
        | when(terms.after_earlier, flag::AFTER_EARLIER)
}

fn protocol_flag(protocol: ReplicationProtocol) -> u16 {
    match protocol {
        ReplicationProtocol::A => flag::PROTOCOL_A,
        ReplicationProtocol::B => flag::PROTOCOL_B,
        ReplicationProtocol::C => 0,
    }
}

fn protocol_of(fields: &Fields) -> Option<ReplicationProtocol> {
    match (fields.has(flag::PROTOCOL_A), fields.has(flag::PROTOCOL_B)) {
        (false, false) => Some(ReplicationProtocol::C),
        (true, false) => Some(ReplicationProtocol::A),
        (false, true) => Some(ReplicationProtocol::B),
        (true, true) => None,
    }
}

fn terms_of(fields: &Fields) -> Option<WriteTerms> {
    Some(WriteTerms {
        fua: fields.has(flag::FUA),
        protocol: protocol_of(fields)?,
        after_earlier: fields.has(flag::AFTER_EARLIER),
    })
}

fn data_kind(fields: &Fields, payload: Payload) -> Option<DataKind> {
    let may_unmap = fields.has(flag::MAY_UNMAP);
    match (fields.has(flag::ZEROES), may_unmap) {
        (true, _) => Some(DataKind::Zeroes { may_unmap }),
        (false, false) => Some(DataKind::Write(payload)),
        (false, true) => None,
    }
}

fn resync_reply(fields: &Fields, payload: Payload) -> Option<ResyncReply> {
    match fields.flags & !flag::LAST {
        0 => Some(ResyncReply::Data(payload)),
        flag::ZEROES => Some(ResyncReply::Zeroes),
        flag::SAME => Some(ResyncReply::Same),
        flag::ERROR => Some(ResyncReply::Unreadable),
        _ => None,
    }
}

/// Refusals with their numbers on the wire, for the format document.
pub const REFUSALS: [(u32, Refusal); 6] = [
    (1, Refusal::Foreign),
    (2, Refusal::Diverged),
    (3, Refusal::SizeMismatch),
    (4, Refusal::BothActive),
    (5, Refusal::Sealed),
    (6, Refusal::UnknownReplica),
];

fn code_of(refusal: Refusal) -> u32 {
    REFUSALS
        .iter()
        .find_map(|(code, known)| (*known == refusal).then_some(*code))
        .expect("every refusal is in the table")
}

fn refusal_of(code: u32) -> Option<Refusal> {
    REFUSALS
        .iter()
        .find_map(|(known, refusal)| (*known == code).then_some(*refusal))
}
