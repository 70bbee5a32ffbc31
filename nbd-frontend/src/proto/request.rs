//! Requests of the transmission phase.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::constants::{REQUEST_HEADER_LEN, REQUEST_MAGIC};
use super::wire::ByteReader;

/// Head of a request, as the client sent it and not yet judged.
///
/// `length` is 64 bits wide so that extended headers fit the same type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags, see [`super::constants::command_flag`].
    pub flags: u16,
    /// Command, see [`super::constants::command`].
    pub command: u16,
    /// The client's name for the request; opaque, not necessarily unique.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes: of payload for WRITE, of effect otherwise.
    pub length: u64,
}

impl RequestHeader {
    /// Parses the 28 bytes of a compact request. `Err` holds the wrong magic (0 when the bytes are
    /// too few): the stream cannot be trusted any further.
    pub fn parse_compact(bytes: &[u8]) -> Result<Self, u32> {
        let mut reader = ByteReader::new(bytes);
        let magic = reader.u32().ok_or(0u32)?;
        if magic != REQUEST_MAGIC {
            return Err(magic);
        }
        let rest = |reader: &mut ByteReader<'_>| {
            Some(Self {
                flags: reader.u16()?,
                command: reader.u16()?,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                length: u64::from(reader.u32()?),
            })
        };
        rest(&mut reader).ok_or(0)
    }

    /// Encodes a compact request; `None` when `length` needs more than 32 bits.
    #[must_use]
    pub fn encode_compact(&self) -> Option<[u8; REQUEST_HEADER_LEN]> {
        let mut bytes = [0; REQUEST_HEADER_LEN];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&u32::try_from(self.length).ok()?.to_be_bytes());
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE_HEX: [u8; 28] = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];

    #[test]
    fn a_compact_request_round_trips_byte_for_byte() {
        let header = RequestHeader {
            flags: 1,
            command: 1,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 512,
        };
        assert_eq!(header.encode_compact(), Some(WRITE_HEX));
        assert_eq!(RequestHeader::parse_compact(&WRITE_HEX), Ok(header));
    }

    #[test]
    fn a_wrong_magic_is_named_and_a_short_header_refused() {
        let mut wrong = WRITE_HEX;
        wrong[0] = 0;
        assert_eq!(RequestHeader::parse_compact(&wrong), Err(0x0060_9513));
        assert_eq!(RequestHeader::parse_compact(&WRITE_HEX[..27]), Err(0));
    }
}
