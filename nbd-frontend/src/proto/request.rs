//! Requests of the transmission phase.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::constants::{
    EXTENDED_REQUEST_HEADER_LEN, EXTENDED_REQUEST_MAGIC, REQUEST_HEADER_LEN, REQUEST_MAGIC,
    command, command_flag,
};
use super::wire::ByteReader;

/// How request headers look on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFormat {
    /// 28 bytes, lengths of 32 bits; only WRITE has a payload.
    Compact,
    /// 32 bytes, lengths of 64 bits; WRITE has a payload, and any command with the flag.
    Extended,
}

impl HeaderFormat {
    /// Bytes a header has.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::Compact => REQUEST_HEADER_LEN,
            Self::Extended => EXTENDED_REQUEST_HEADER_LEN,
        }
    }

    const fn magic(self) -> u32 {
        match self {
            Self::Compact => REQUEST_MAGIC,
            Self::Extended => EXTENDED_REQUEST_MAGIC,
        }
    }
}

/// Head of a request, as the client sent it and not yet judged. Both formats fit.
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
    /// Bytes: of payload or of effect, see [`Self::payload_len`].
    pub length: u64,
}

impl RequestHeader {
    /// Parses a request's head. `Err` holds the wrong magic (0 when the bytes are too few): the
    /// stream cannot be trusted any further.
    pub fn parse(format: HeaderFormat, bytes: &[u8]) -> Result<Self, u32> {
        let mut reader = ByteReader::new(bytes);
        let magic = reader.u32().ok_or(0u32)?;
        if magic != format.magic() {
            return Err(magic);
        }
        let rest = |reader: &mut ByteReader<'_>| {
            Some(Self {
                flags: reader.u16()?,
                command: reader.u16()?,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                length: match format {
                    HeaderFormat::Compact => u64::from(reader.u32()?),
                    HeaderFormat::Extended => reader.u64()?,
                },
            })
        };
        rest(&mut reader).ok_or(0)
    }

    /// Bytes of payload that follow the head.
    ///
    /// A client must set PAYLOAD_LEN on an extended WRITE, but QEMU (as of 10.0) does not, and
    /// sends its payload all the same. Whoever took its word would lose step with the stream.
    #[must_use]
    pub const fn payload_len(&self, format: HeaderFormat) -> u64 {
        let is_flagged = match format {
            HeaderFormat::Compact => false,
            HeaderFormat::Extended => self.flags & command_flag::PAYLOAD_LEN != 0,
        };
        if is_flagged || self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }

    /// Encodes a compact request; `None` when `length` needs more than 32 bits.
    #[must_use]
    pub fn encode_compact(&self) -> Option<[u8; REQUEST_HEADER_LEN]> {
        let mut bytes = [0; REQUEST_HEADER_LEN];
        bytes[0..24].copy_from_slice(&self.encode_front(REQUEST_MAGIC));
        bytes[24..28].copy_from_slice(&u32::try_from(self.length).ok()?.to_be_bytes());
        Some(bytes)
    }

    /// Encodes an extended request.
    #[must_use]
    pub fn encode_extended(&self) -> [u8; EXTENDED_REQUEST_HEADER_LEN] {
        let mut bytes = [0; EXTENDED_REQUEST_HEADER_LEN];
        bytes[0..24].copy_from_slice(&self.encode_front(EXTENDED_REQUEST_MAGIC));
        bytes[24..32].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// What both formats have in common: all but the length.
    fn encode_front(&self, magic: u32) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[0..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes
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
        assert_eq!(
            RequestHeader::parse(HeaderFormat::Compact, &WRITE_HEX),
            Ok(header)
        );
    }

    #[test]
    fn a_wrong_magic_is_named_and_a_short_header_refused() {
        let mut wrong = WRITE_HEX;
        wrong[0] = 0;
        assert_eq!(
            RequestHeader::parse(HeaderFormat::Compact, &wrong),
            Err(0x0060_9513)
        );
        assert_eq!(
            RequestHeader::parse(HeaderFormat::Compact, &WRITE_HEX[..27]),
            Err(0)
        );
    }

    #[test]
    fn an_extended_request_round_trips_byte_for_byte() {
        let header = RequestHeader {
            flags: command_flag::PAYLOAD_LEN,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 1 << 40,
        };
        let bytes = header.encode_extended();
        assert_eq!(bytes[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1]);
        assert_eq!(bytes[24..], [0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(
            RequestHeader::parse(HeaderFormat::Extended, &bytes),
            Ok(header)
        );
        assert_eq!(
            RequestHeader::parse(HeaderFormat::Compact, &bytes),
            Err(EXTENDED_REQUEST_MAGIC)
        );
        assert_eq!(header.encode_compact(), None);
    }

    #[test]
    fn only_a_write_or_a_flag_announces_a_payload() {
        let header = |command, flags| RequestHeader {
            flags,
            command,
            cookie: 0,
            offset: 0,
            length: 7,
        };
        for (command, flags, compact, extended) in [
            (command::WRITE, 0, 7, 7),
            (command::WRITE, command_flag::PAYLOAD_LEN, 7, 7),
            (command::READ, command_flag::PAYLOAD_LEN, 0, 7),
            (command::READ, 0, 0, 0),
        ] {
            let header = header(command, flags);
            assert_eq!(header.payload_len(HeaderFormat::Compact), compact);
            assert_eq!(header.payload_len(HeaderFormat::Extended), extended);
        }
    }
}
