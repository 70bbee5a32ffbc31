//! The stream of a peer against arbitrary bytes.
//!
//! Checksums stop a fuzzer at the door, so every other input gets the right ones first. Beyond "does
//! not panic": no header asks for more than the largest payload, a frame is found in the same bytes
//! however they are cut, and what was understood can be said again and means the same.

// SPDX-License-Identifier: MIT OR Apache-2.0

use replicator::protocol::{
    Decoded, FRAME_LEN_MAX, HEADER_LEN, Opening, PREAMBLE_LEN, PREAMBLE_REPLY_LEN, PreambleReply,
    decode, encode,
};
use replicator::types::ViewNumber;

/// Place of the header's payload length and checksum, and of its own checksum.
const PAYLOAD_LEN_AT: usize = 52;
const PAYLOAD_CRC_AT: usize = 56;
const HEADER_CRC_AT: usize = 60;
/// Place of an opening's checksum.
const OPENING_CRC_AT: usize = PREAMBLE_LEN - 4;

/// Fuzzes a connection: one byte of choices, then what the peer sends.
pub fn frame(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let mut stream = bytes.to_vec();
    if choice & 1 != 0 {
        make_checksums_right(&mut stream);
    }
    preambles(&stream);
    if let Some(opening) = stream.first_chunk::<PREAMBLE_LEN>() {
        let mut opening = *opening;
        put_crc(&mut opening, OPENING_CRC_AT);
        preambles(&opening);
    }
    frames(&stream);
}

fn preambles(stream: &[u8]) {
    if let Some(bytes) = stream.first_chunk::<PREAMBLE_LEN>()
        && let Ok(opening) = Opening::parse(bytes)
    {
        let again = match opening {
            Opening::Link(preamble) => preamble.encode(),
            Opening::Relay(preamble) => preamble.encode(),
            Opening::Forward(preamble) => preamble.encode(),
            Opening::Secure(preamble) => preamble.encode(),
        };
        assert_eq!(Opening::parse(&again), Ok(opening));
    }
    if let Some(bytes) = stream.first_chunk::<PREAMBLE_REPLY_LEN>()
        && let Ok(reply) = PreambleReply::parse(bytes)
    {
        assert_eq!(PreambleReply::parse(&reply.encode()), Ok(reply));
    }
}

fn frames(mut stream: &[u8]) {
    loop {
        match decode(stream) {
            Err(_) => return,
            Ok(Decoded::Incomplete { needed }) => {
                assert!(needed > stream.len() && needed <= FRAME_LEN_MAX);
                return;
            }
            Ok(Decoded::Frame { frame, len }) => {
                let cut = decode(&stream[..len - 1]);
                assert!(matches!(cut, Ok(Decoded::Incomplete { .. })), "{cut:?}");
                let view = frame.view;
                let again = encode(frame.session, view, &frame.message);
                let mut bytes = again.header.to_vec();
                bytes.extend_from_slice(again.payload.as_deref().unwrap_or_default());
                let len_again = bytes.len();
                let expected = Decoded::Frame {
                    frame,
                    len: len_again,
                };
                assert_eq!(decode(&bytes), Ok(expected));
                assert!(view <= ViewNumber::MAX, "its successor is near an overflow");
                stream = &stream[len..];
            }
        }
    }
}

/// Walks the stream as if every length were true.
fn make_checksums_right(stream: &mut [u8]) {
    let mut rest = stream;
    while rest.len() >= HEADER_LEN {
        let (header, after) = rest.split_at_mut(HEADER_LEN);
        let len: [u8; 4] = header[PAYLOAD_LEN_AT..PAYLOAD_CRC_AT]
            .try_into()
            .expect("four bytes");
        let len = usize::try_from(u32::from_le_bytes(len)).expect("32 bits fit");
        let Some(payload) = after.get(..len) else {
            put_crc(header, HEADER_CRC_AT);
            return;
        };
        let crc = if payload.is_empty() {
            0
        } else {
            crc32c::crc32c(payload)
        };
        header[PAYLOAD_CRC_AT..HEADER_CRC_AT].copy_from_slice(&crc.to_le_bytes());
        put_crc(header, HEADER_CRC_AT);
        rest = &mut after[len..];
    }
}

fn put_crc(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
