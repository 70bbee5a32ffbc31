//! Replies of the transmission phase.
//!
//! With structured replies negotiated, every reply is one chunk with DONE set; a read is answered
//! once all its data is here, so a data chunk may carry DONE (and DF needs no special case).

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::constants::{
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_HEADER_LEN, STRUCTURED_REPLY_MAGIC, chunk,
};
use super::error::NbdError;
use super::wire::{ByteReader, WireBytes};

/// How replies look on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplyStyle {
    /// 16 bytes and, for a read that succeeded, its data.
    #[default]
    Simple,
    /// Chunks that say what they hold.
    Structured,
}

impl ReplyStyle {
    /// Reply to a request that succeeded and returns no data.
    #[must_use]
    pub fn done(self, cookie: u64) -> WireBytes {
        match self {
            Self::Simple => WireBytes::from_parts(&[&simple_header(cookie, 0)]),
            Self::Structured => WireBytes::from_parts(&[&chunk_header(cookie, chunk::NONE, 0)]),
        }
    }

    /// Head of the reply to a read of `len` > 0 bytes at `offset`; the data follows it.
    #[must_use]
    pub fn data(self, cookie: u64, offset: u64, len: u32) -> WireBytes {
        match self {
            Self::Simple => WireBytes::from_parts(&[&simple_header(cookie, 0)]),
            Self::Structured => WireBytes::from_parts(&[
                &chunk_header(cookie, chunk::OFFSET_DATA, len.saturating_add(8)),
                &offset.to_be_bytes(),
            ]),
        }
    }

    /// Reply to a request that failed. `text` is for people and only structured replies carry it;
    /// at most 38 bytes of it cost no allocation.
    #[must_use]
    pub fn error(self, cookie: u64, error: NbdError, text: &'static str) -> WireBytes {
        match self {
            Self::Simple => WireBytes::from_parts(&[&simple_header(cookie, error.code())]),
            Self::Structured => {
                let text_len = u16::try_from(text.len()).expect("error texts are short literals");
                WireBytes::from_parts(&[
                    &chunk_header(cookie, chunk::ERROR, 6 + u32::from(text_len)),
                    &error.code().to_be_bytes(),
                    &text_len.to_be_bytes(),
                    text.as_bytes(),
                ])
            }
        }
    }
}

/// Structured reply to BLOCK_STATUS with one extent.
#[must_use]
pub fn block_status(cookie: u64, context_id: u32, extent_len: u32, status: u32) -> WireBytes {
    WireBytes::from_parts(&[
        &chunk_header(cookie, chunk::BLOCK_STATUS, 12),
        &context_id.to_be_bytes(),
        &extent_len.to_be_bytes(),
        &status.to_be_bytes(),
    ])
}

fn simple_header(cookie: u64, error: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

fn chunk_header(cookie: u64, kind: u16, payload_len: u32) -> [u8; STRUCTURED_REPLY_HEADER_LEN] {
    let mut bytes = [0; STRUCTURED_REPLY_HEADER_LEN];
    bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&payload_len.to_be_bytes());
    bytes
}

/// A simple reply's head, as a client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleHeader {
    /// Error value, 0 for success.
    pub error: u32,
    /// The request's cookie.
    pub cookie: u64,
}

/// A structured chunk's head, as a client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Chunk flags, see [`chunk::FLAG_DONE`].
    pub flags: u16,
    /// Chunk type, see [`chunk`].
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub payload_len: u32,
}

/// Any reply's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// 16 bytes.
    Simple(SimpleHeader),
    /// 20 bytes.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Bytes the head has, judged by its magic; `None` for a magic that is neither.
    #[must_use]
    pub const fn len_of(magic: u32) -> Option<usize> {
        match magic {
            SIMPLE_REPLY_MAGIC => Some(super::constants::SIMPLE_REPLY_HEADER_LEN),
            STRUCTURED_REPLY_MAGIC => Some(STRUCTURED_REPLY_HEADER_LEN),
            _ => None,
        }
    }

    /// Parses a head; `None` when bytes are missing or the magic is neither.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        match reader.u32()? {
            SIMPLE_REPLY_MAGIC => Some(Self::Simple(SimpleHeader {
                error: reader.u32()?,
                cookie: reader.u64()?,
            })),
            STRUCTURED_REPLY_MAGIC => Some(Self::Chunk(ChunkHeader {
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: reader.u64()?,
                payload_len: reader.u32()?,
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x1122_3344_5566_7788;

    #[test]
    fn simple_replies_are_sixteen_bytes() {
        let done = ReplyStyle::Simple.done(COOKIE);
        assert_eq!(
            done.as_ref(),
            [
                0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88
            ]
        );
        assert_eq!(ReplyStyle::Simple.data(COOKIE, 7, 9), done);
        let error = ReplyStyle::Simple.error(COOKIE, NbdError::NoSpace, "text is not carried");
        assert_eq!(error.as_ref()[4..8], [0, 0, 0, 28]);
        assert_eq!(error.len(), 16);
    }

    #[test]
    fn structured_replies_are_one_chunk_with_done() {
        let done = ReplyStyle::Structured.done(COOKIE);
        assert_eq!(
            done.as_ref(),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
                0, 0, 0, 0
            ]
        );
        let data = ReplyStyle::Structured.data(COOKIE, 4096, 512);
        assert_eq!(data.as_ref()[4..8], [0, 1, 0, 1]);
        assert_eq!(
            data.as_ref()[16..28],
            [0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0]
        );
        let error = ReplyStyle::Structured.error(COOKIE, NbdError::Invalid, "no");
        assert_eq!(error.as_ref()[4..8], [0, 1, 0x80, 1]);
        assert_eq!(
            error.as_ref()[16..],
            [0, 0, 0, 8, 0, 0, 0, 22, 0, 2, b'n', b'o']
        );
        let status = block_status(COOKIE, 1, 4096, 0);
        assert_eq!(status.as_ref()[4..8], [0, 1, 0, 5]);
        assert_eq!(
            status.as_ref()[16..],
            [0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn heads_parse_back() {
        let chunk = ReplyHeader::parse(ReplyStyle::Structured.data(5, 0, 1).as_ref());
        assert_eq!(
            chunk,
            Some(ReplyHeader::Chunk(ChunkHeader {
                flags: 1,
                kind: 1,
                cookie: 5,
                payload_len: 9
            }))
        );
        assert_eq!(ReplyHeader::parse(&[0; 20]), None);
    }
}
