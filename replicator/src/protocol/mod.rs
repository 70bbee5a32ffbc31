//! What the two data nodes say to each other: values in [`message`], bytes in [`codec`].
//!
//! A connection begins with a [`preamble`]; then frames follow, each a fixed header ([`frame`]) and
//! its payload. One that begins with a [`relay`]'s preamble carries a request of the control socket
//! instead. Byte for byte in `docs/protocol.md`. Nothing that arrives panics: what is not a frame of
//! ours is a [`FrameError`], and the connection is closed.

pub mod codec;
mod control;
pub mod frame;
pub mod message;
pub mod preamble;
pub mod relay;

#[cfg(test)]
mod tests;

pub use codec::{Decoded, Encoded, Frame, decode, encode};
pub use frame::{FRAME_LEN_MAX, FrameError, HEADER_LEN, Header};
pub use message::{
    DataKind, DiskErrorCode, Hello, Message, MessageKind, RateOrder, Refusal, ReplicaClaim,
    ResyncReply, WriteId, WriteTerms,
};
pub use preamble::{
    PREAMBLE_LEN, PREAMBLE_REPLY_LEN, Preamble, PreambleError, PreambleReply, PreambleStatus,
    VersionRange,
};
pub use relay::{ForwardPreamble, Opening, Purpose, RelayPreamble, SecurePreamble};

use crate::types::fixed::FieldLayout;

/// The fixed layouts of the protocol, by name: `docs/protocol.md` is checked against them.
pub const FIXED_LAYOUTS: [(&str, &[FieldLayout]); 4] = [
    ("preamble", preamble::RawPreamble::FIELDS),
    ("preamble answer", preamble::RawPreambleReply::FIELDS),
    ("call preamble", relay::RawCall::FIELDS),
    ("frame header", frame::RawHeader::FIELDS),
];
