//! Numbers of the protocol and how its messages are put together.

// SPDX-License-Identifier: MIT OR Apache-2.0

/// How a connection's requests and replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Structured => "structured",
            Self::Extended => "extended",
        }
    }

    /// The option that agrees on it.
    pub(crate) const fn option(self) -> Option<u32> {
        match self {
            Self::Simple => None,
            Self::Structured => Some(opt::STRUCTURED_REPLY),
            Self::Extended => Some(opt::EXTENDED_HEADERS),
        }
    }
}

/// `NBD_OPT_*`.
pub(crate) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const PEEK_EXPORT: u32 = 4;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// `NBD_REP_*`.
pub(crate) mod rep {
    pub(crate) const ERROR_BIT: u32 = 1 << 31;
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = ERROR_BIT | 1;
    pub(crate) const ERR_INVALID: u32 = ERROR_BIT | 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// `NBD_INFO_*`.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// `NBD_FLAG_*`, of an export.
pub(crate) mod has {
    pub(crate) const FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const FUA: u16 = 1 << 3;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const DF: u16 = 1 << 7;
    pub(crate) const MULTI_CONN: u16 = 1 << 8;
    pub(crate) const CACHE: u16 = 1 << 10;
    pub(crate) const FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// `NBD_CMD_*`.
pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// `NBD_CMD_FLAG_*`.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Error values.
pub(crate) mod err {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const EPERM: u32 = 1;
    pub(crate) const EINVAL: u32 = 22;
    pub(crate) const ENOSPC: u32 = 28;
    pub(crate) const EOVERFLOW: u32 = 75;
    pub(crate) const ENOTSUP: u32 = 95;
    /// All that a reply may carry.
    pub(crate) const ALL: [u32; 9] = [NONE, EPERM, 5, 12, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, 108];
}

/// A request, to be encoded in the style of its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Request {
    pub(crate) fn encode(&self, style: Style) -> Vec<u8> {
        let magic: u32 = if style == Style::Extended {
            0x21e4_1c71
        } else {
            0x2560_9513
        };
        let mut bytes = [
            magic.to_be_bytes().as_slice(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
        ]
        .concat();
        match u32::try_from(self.len) {
            Ok(len) if style != Style::Extended => bytes.extend(len.to_be_bytes()),
            _ => bytes.extend(self.len.to_be_bytes()),
        }
        bytes
    }
}

pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [
        b"IHAVEOPT".as_slice(),
        &number.to_be_bytes(),
        &len32(data).to_be_bytes(),
        data,
    ]
    .concat()
}

pub(crate) fn counted(text: &[u8]) -> Vec<u8> {
    [len32(text).to_be_bytes().as_slice(), text].concat()
}

/// Data of INFO and GO.
pub(crate) fn info_request(name: &[u8], kinds: &[u16]) -> Vec<u8> {
    let count = u16::try_from(kinds.len()).expect("a handful of kinds");
    let mut data = counted(name);
    data.extend(count.to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta_request(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).expect("a handful of queries");
    let mut data = counted(name);
    data.extend(count.to_be_bytes());
    data.extend(queries.iter().flat_map(|query| counted(query.as_bytes())));
    data
}

fn len32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("messages built here are short")
}

/// Takes numbers off the front of a message.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
