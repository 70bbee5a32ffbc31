//! Replies of the transmission phase.
//!
//! With structured replies or extended headers negotiated, a reply is one chunk with DONE set, or
//! for BLOCK_STATUS one chunk for each context. A read is answered once all its data is here, so a
//! data chunk may carry DONE (and DF needs no special case).

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::constants::{
    EXTENDED_REPLY_HEADER_LEN, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_HEADER_LEN, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_HEADER_LEN, STRUCTURED_REPLY_MAGIC, chunk,
};
use super::error::NbdError;
use super::request::HeaderFormat;
use super::wire::{ByteReader, WireBytes};

/// How replies look on a connection; in order of what they can express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ReplyStyle {
    /// 16 bytes and, for a read that succeeded, its data.
    #[default]
    Simple,
    /// Chunks that say what they hold.
    Structured,
    /// The same with heads of 32 bytes, and requests with 64-bit lengths.
    Extended,
}

/// What a reply repeats of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// The client's name for the request.
    pub cookie: u64,
    /// First byte of the request; extended replies repeat it.
    pub offset: u64,
}

/// A run of bytes with one status in a metadata context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes; not 0 on the wire.
    pub len: u64,
    /// Flags of the context, see [`super::constants::status`].
    pub status: u32,
}

impl ReplyStyle {
    /// How the requests that are answered so look.
    #[must_use]
    pub const fn request_format(self) -> HeaderFormat {
        match self {
            Self::Simple | Self::Structured => HeaderFormat::Compact,
            Self::Extended => HeaderFormat::Extended,
        }
    }

    /// Reply to a request that succeeded and returns no data.
    #[must_use]
    pub fn done(self, to: ReplyTo) -> WireBytes {
        match self {
            Self::Simple => WireBytes::from_parts(&[&simple_head(to, 0)]),
            Self::Structured | Self::Extended => {
                self.chunk(to, chunk::FLAG_DONE, chunk::NONE, [&[], &[], &[]], 0)
            }
        }
    }

    /// Head of the reply to a read of `len` > 0 bytes at the request's offset; the data follows it.
    #[must_use]
    pub fn data(self, to: ReplyTo, len: u32) -> WireBytes {
        match self {
            Self::Simple => WireBytes::from_parts(&[&simple_head(to, 0)]),
            Self::Structured | Self::Extended => {
                let offset = to.offset.to_be_bytes();
                let parts = [offset.as_slice(), &[], &[]];
                self.chunk(to, chunk::FLAG_DONE, chunk::OFFSET_DATA, parts, len)
            }
        }
    }

    /// Reply to a request that failed. `text` is for people and only chunks carry it; at most 40
    /// bytes of it cost no allocation.
    #[must_use]
    pub fn error(self, to: ReplyTo, error: NbdError, text: &'static str) -> WireBytes {
        match self {
            Self::Simple => WireBytes::from_parts(&[&simple_head(to, error.code())]),
            Self::Structured | Self::Extended => {
                let text_len = u16::try_from(text.len()).expect("error texts are short literals");
                let (code, text_len) = (error.code().to_be_bytes(), text_len.to_be_bytes());
                let parts = [code.as_slice(), &text_len, text.as_bytes()];
                self.chunk(to, chunk::FLAG_DONE, chunk::ERROR, parts, 0)
            }
        }
    }

    /// The chunk of one metadata context in the reply to BLOCK_STATUS, the `last` one or not.
    /// Without extended headers, lengths of extents must fit 32 bits.
    ///
    /// # Panics
    /// When there are so many extents that their bytes need more than 32 bits: there are at most as
    /// many as [`crate::session::limits::STATUS_EXTENT_COUNT_MAX`].
    #[must_use]
    pub fn block_status(
        self,
        to: ReplyTo,
        context_id: u32,
        extents: &[StatusExtent],
        last: bool,
    ) -> WireBytes {
        let (id, flags) = (context_id.to_be_bytes(), u16::from(last) * chunk::FLAG_DONE);
        let count = u32::try_from(extents.len())
            .expect("extents are bounded")
            .to_be_bytes();
        if self == Self::Extended {
            let list: Vec<u8> = extents.iter().flat_map(extended_extent).collect();
            self.chunk(to, flags, chunk::BLOCK_STATUS_EXT, [&id, &count, &list], 0)
        } else {
            let list: Vec<u8> = extents.iter().flat_map(compact_extent).collect();
            self.chunk(to, flags, chunk::BLOCK_STATUS, [&id, &list, &[]], 0)
        }
    }

    /// A chunk of `parts`, after which `more` bytes of payload follow.
    fn chunk(self, to: ReplyTo, flags: u16, kind: u16, parts: [&[u8]; 3], more: u32) -> WireBytes {
        let [a, b, c] = parts;
        let own = u32::try_from(a.len() + b.len() + c.len()).expect("payloads are bounded");
        let payload_len = own.saturating_add(more);
        if self == Self::Extended {
            WireBytes::from_parts(&[&extended_head(to, flags, kind, payload_len), a, b, c])
        } else {
            WireBytes::from_parts(&[&structured_head(to, flags, kind, payload_len), a, b, c])
        }
    }
}

fn compact_extent(extent: &StatusExtent) -> [u8; 8] {
    let mut bytes = [0; 8];
    let len = u32::try_from(extent.len).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    bytes[4..].copy_from_slice(&extent.status.to_be_bytes());
    bytes
}

fn extended_extent(extent: &StatusExtent) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&extent.len.to_be_bytes());
    bytes[8..].copy_from_slice(&u64::from(extent.status).to_be_bytes());
    bytes
}

fn simple_head(to: ReplyTo, error: u32) -> [u8; SIMPLE_REPLY_HEADER_LEN] {
    let mut bytes = [0; SIMPLE_REPLY_HEADER_LEN];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    bytes
}

fn structured_head(
    to: ReplyTo,
    flags: u16,
    kind: u16,
    payload_len: u32,
) -> [u8; STRUCTURED_REPLY_HEADER_LEN] {
    let mut bytes = [0; STRUCTURED_REPLY_HEADER_LEN];
    bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&payload_len.to_be_bytes());
    bytes
}

fn extended_head(
    to: ReplyTo,
    flags: u16,
    kind: u16,
    payload_len: u32,
) -> [u8; EXTENDED_REPLY_HEADER_LEN] {
    let mut bytes = [0; EXTENDED_REPLY_HEADER_LEN];
    bytes[0..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&to.offset.to_be_bytes());
    bytes[24..32].copy_from_slice(&u64::from(payload_len).to_be_bytes());
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

/// A chunk's head, as a client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Chunk flags, see [`chunk::FLAG_DONE`].
    pub flags: u16,
    /// Chunk type, see [`chunk`].
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset, in extended headers.
    pub offset: Option<u64>,
    /// Bytes of payload that follow.
    pub payload_len: u64,
}

/// Any reply's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// 16 bytes.
    Simple(SimpleHeader),
    /// 20 bytes, or 32 if extended.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Bytes the head has, judged by its magic; `None` for a magic that is none of the three.
    #[must_use]
    pub const fn len_of(magic: u32) -> Option<usize> {
        match magic {
            SIMPLE_REPLY_MAGIC => Some(SIMPLE_REPLY_HEADER_LEN),
            STRUCTURED_REPLY_MAGIC => Some(STRUCTURED_REPLY_HEADER_LEN),
            EXTENDED_REPLY_MAGIC => Some(EXTENDED_REPLY_HEADER_LEN),
            _ => None,
        }
    }

    /// Parses a head; `None` when bytes are missing or the magic is none of the three.
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
                offset: None,
                payload_len: reader.u32()?.into(),
            })),
            EXTENDED_REPLY_MAGIC => Some(Self::Chunk(ChunkHeader {
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: reader.u64()?,
                offset: Some(reader.u64()?),
                payload_len: reader.u64()?,
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x1122_3344_5566_7788;
    const TO: ReplyTo = ReplyTo {
        cookie: COOKIE,
        offset: 4096,
    };
    const EXTENTS: [StatusExtent; 2] = [
        StatusExtent {
            len: 4096,
            status: 3,
        },
        StatusExtent {
            len: 512,
            status: 0,
        },
    ];

    #[test]
    fn simple_replies_are_sixteen_bytes() {
        let done = ReplyStyle::Simple.done(TO);
        assert_eq!(
            done.as_ref(),
            [
                0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88
            ]
        );
        assert_eq!(ReplyStyle::Simple.data(TO, 9), done);
        let error = ReplyStyle::Simple.error(TO, NbdError::NoSpace, "text is not carried");
        assert_eq!(error.as_ref()[4..8], [0, 0, 0, 28]);
        assert_eq!(error.len(), 16);
    }

    #[test]
    fn structured_replies_are_one_chunk_with_done() {
        let done = ReplyStyle::Structured.done(TO);
        assert_eq!(
            done.as_ref(),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
                0, 0, 0, 0
            ]
        );
        let data = ReplyStyle::Structured.data(TO, 512);
        assert_eq!(data.as_ref()[4..8], [0, 1, 0, 1]);
        assert_eq!(
            data.as_ref()[16..28],
            [0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0]
        );
        let error = ReplyStyle::Structured.error(TO, NbdError::Invalid, "no");
        assert_eq!(error.as_ref()[4..8], [0, 1, 0x80, 1]);
        assert_eq!(
            error.as_ref()[16..],
            [0, 0, 0, 8, 0, 0, 0, 22, 0, 2, b'n', b'o']
        );
    }

    #[test]
    fn extended_replies_have_long_heads_that_repeat_the_offset() {
        let head = |kind: [u8; 2], payload_len: u8| {
            let mut bytes = vec![0x6e, 0x8a, 0x27, 0x8c, 0, 1];
            bytes.extend(kind);
            bytes.extend(COOKIE.to_be_bytes());
            bytes.extend([0, 0, 0, 0, 0, 0, 0x10, 0]);
            bytes.extend([0, 0, 0, 0, 0, 0, 0, payload_len]);
            bytes
        };
        assert_eq!(ReplyStyle::Extended.done(TO).as_ref(), head([0, 0], 0));
        let data = [head([0, 1], 9).as_slice(), &4096u64.to_be_bytes()].concat();
        assert_eq!(ReplyStyle::Extended.data(TO, 1).as_ref(), data);
        let error = [head([0x80, 1], 8).as_slice(), &[0, 0, 0, 22, 0, 2], b"no"].concat();
        let sent = ReplyStyle::Extended.error(TO, NbdError::Invalid, "no");
        assert_eq!(sent.as_ref(), error);
    }

    #[test]
    fn block_status_has_one_chunk_for_each_context() {
        let status = ReplyStyle::Structured.block_status(TO, 1, &EXTENTS, true);
        assert_eq!(status.as_ref()[4..8], [0, 1, 0, 5]);
        let payload = [0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0];
        assert_eq!(
            status.as_ref()[16..],
            [&[0, 0, 0, 20], payload.as_slice()].concat()
        );

        let status = ReplyStyle::Extended.block_status(TO, 2, &EXTENTS[..1], false);
        assert_eq!(status.as_ref()[4..8], [0, 0, 0, 6]);
        let payload = [
            0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 3,
        ];
        assert_eq!(status.as_ref()[31..], [&[24], payload.as_slice()].concat());
    }

    #[test]
    fn heads_parse_back() {
        for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
            let sent = style.data(TO, 1);
            let header = ChunkHeader {
                flags: 1,
                kind: 1,
                cookie: COOKIE,
                offset: (style == ReplyStyle::Extended).then_some(4096),
                payload_len: 9,
            };
            assert_eq!(
                ReplyHeader::parse(sent.as_ref()),
                Some(ReplyHeader::Chunk(header))
            );
        }
        assert_eq!(ReplyHeader::parse(&[0; 20]), None);
    }
}
