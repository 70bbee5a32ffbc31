//! Frames on their way: the production codec, both ways.

use replicator::protocol::{Decoded, Message, codec};
use replicator::types::{SessionId, ViewNumber};

pub(super) fn encode(session: SessionId, view: ViewNumber, message: &Message) -> Vec<u8> {
    let encoded = codec::encode(session, view, message);
    let payload = encoded.payload.as_deref().unwrap_or_default();
    let mut bytes = Vec::with_capacity(encoded.header.len() + payload.len());
    bytes.extend_from_slice(&encoded.header);
    bytes.extend_from_slice(payload);
    bytes
}

/// The message, if the bytes are one whole frame of this session.
pub(super) fn decode(session: SessionId, bytes: &[u8]) -> Result<Message, String> {
    match codec::decode(bytes) {
        Ok(Decoded::Frame { frame, len }) if len == bytes.len() && frame.session == session => {
            Ok(frame.message)
        }
        Ok(other) => Err(format!("{other:?} of {} bytes", bytes.len())),
        Err(error) => Err(error.to_string()),
    }
}
