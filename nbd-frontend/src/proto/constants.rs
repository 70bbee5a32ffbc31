//! Every number of the protocol, under the name proto.md gives it (without the `NBD_` prefix).
//!
//! Source: NBD proto.md, sections "Values" and "Size constraints"; for extended headers the same
//! sections on the branch `extension-ext-header`.

// SPDX-License-Identifier: MIT OR Apache-2.0

/// First eight bytes of the server's greeting, `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second half of the greeting and head of every option, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Head of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Head of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Head of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Head of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Head of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Length of the server's greeting in bytes.
pub const GREETING_LEN: usize = 18;
/// Length of the client flags in bytes.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Length of an option header in bytes: magic, option, payload length.
pub const OPTION_HEADER_LEN: usize = 16;
/// Length of an option reply header in bytes: magic, option, reply type, payload length.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Length of a compact request header in bytes.
pub const REQUEST_HEADER_LEN: usize = 28;
/// Length of an extended request header in bytes.
pub const EXTENDED_REQUEST_HEADER_LEN: usize = 32;
/// Length of a simple reply header in bytes.
pub const SIMPLE_REPLY_HEADER_LEN: usize = 16;
/// Length of a structured reply chunk header in bytes.
pub const STRUCTURED_REPLY_HEADER_LEN: usize = 20;
/// Length of an extended reply chunk header in bytes.
pub const EXTENDED_REPLY_HEADER_LEN: usize = 32;
/// Zeroes after the answer to EXPORT_NAME unless both sides agreed on NO_ZEROES.
pub const EXPORT_NAME_PADDING_LEN: usize = 124;
/// Longest string of the protocol in bytes (proto.md "Strings": MUST NOT exceed 4096).
pub const STRING_LEN_MAX: usize = 4096;

/// Handshake flags (server) and client flags share bit numbers: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: no 124 zeroes after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Transmission flags of an export, sixteen bits.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is understood on every command.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES and NO_HOLE are understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood; set exactly when structured replies or extended headers were negotiated.
    pub const SEND_DF: u16 = 1 << 7;
    /// FLUSH and FUA on one connection cover all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Option numbers (`NBD_OPT_*`).
pub mod option {
    /// Choose an export the old way; no error can be told.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Withdrawn.
    pub const PEEK_EXPORT: u32 = 4;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Switch to structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Switch to extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Option reply types (`NBD_REP_*`). Errors have bit 31 set.
pub mod option_reply {
    /// Bit that marks an error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Option unknown.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Refused by policy.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// Malformed or out of order.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// TLS is required first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The request is too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// Extended headers are in use and exclude what was asked for.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Information types (`NBD_INFO_*`).
pub mod info {
    /// Size and transmission flags, always sent.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands (`NBD_CMD_*`).
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask for the status of a range.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags (`NBD_CMD_FLAG_*`).
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ must answer in one content chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS must answer one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES must fail when not faster than a write.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers only: the length is that of a payload, not of the effect.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Structured reply chunk types (`NBD_REPLY_TYPE_*`). Errors have bit 15 set.
pub mod chunk {
    /// Bit that marks an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Flag: last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No content.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The same with 64-bit lengths; with extended headers only this one.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Error and text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// Error, text and offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// The metadata context that the protocol defines: what is allocated, what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// This server's own: what another copy of the volume may lack.
pub const TWINBLK_DIRTY: &str = "twinblk:dirty";

/// Status flags of an extent.
pub mod status {
    /// `base:allocation`: not allocated. Never set without [`ZERO`] here.
    pub const HOLE: u32 = 1 << 0;
    /// `base:allocation`: reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
    /// `twinblk:dirty`: another copy may lack these bytes.
    pub const DIRTY: u32 = 1 << 0;
}

/// Smallest request in bytes: any alignment is served.
pub const BLOCK_SIZE_MIN: u32 = 1;
/// Size in bytes from which requests are cheap.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;
/// Largest payload in bytes that is advertised (proto.md: the portable maximum).
pub const PAYLOAD_LEN_ADVERTISED: u32 = 32 << 20;
/// Largest payload in bytes that is accepted: some clients replay 64 MiB requests whatever the
/// server advertises.
pub const PAYLOAD_LEN_MAX: u32 = 64 << 20;
