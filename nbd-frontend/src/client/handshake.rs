//! The client's handshake: flags, EXTENDED_HEADERS or STRUCTURED_REPLY if wanted, GO.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::{ClientError, ExportInfo};
use crate::proto::constants::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_LEN, INIT_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_HEADER_LEN, OPTION_REPLY_MAGIC, info, option, option_reply,
};
use crate::proto::handshake::{InfoRequest, encode_option};
use crate::proto::reply::ReplyStyle;
use crate::proto::wire::ByteReader;

/// Longest option reply that is taken, in bytes: two strings of the protocol and some words.
const REPLY_LEN_MAX: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Handshake {
    stage: Stage,
    name: String,
    wanted: ReplyStyle,
    agreed: ReplyStyle,
    /// Size and transmission flags, once told.
    export: Option<(u64, u16)>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Greeting,
    ExtendedHeaders,
    StructuredReply,
    Go,
}

impl Handshake {
    pub(super) fn new(name: &str, wanted: ReplyStyle) -> Self {
        Self {
            stage: Stage::Greeting,
            name: name.to_owned(),
            wanted,
            agreed: ReplyStyle::Simple,
            export: None,
        }
    }

    /// Understands one message at the front of `bytes`: its length (0: not whole yet), and the
    /// export once the server agreed.
    pub(super) fn step(
        &mut self,
        bytes: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(usize, Option<ExportInfo>), ClientError> {
        match self.stage {
            Stage::Greeting => {
                let Some(greeting) = bytes.get(..GREETING_LEN) else {
                    return Ok((0, None));
                };
                self.on_greeting(greeting, output)?;
                Ok((GREETING_LEN, None))
            }
            Stage::ExtendedHeaders | Stage::StructuredReply | Stage::Go => {
                let Some((reply, len)) = parse_reply(bytes)? else {
                    return Ok((0, None));
                };
                Ok((len, self.on_reply(&reply, output)?))
            }
        }
    }

    fn on_greeting(&mut self, greeting: &[u8], output: &mut Vec<u8>) -> Result<(), ClientError> {
        let mut reader = ByteReader::new(greeting);
        let magics = (reader.u64(), reader.u64());
        let flags = reader.u16().unwrap_or(0);
        if magics != (Some(INIT_MAGIC), Some(OPTION_MAGIC)) || flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ClientError::NotNewstyle);
        }
        let ours = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        output.extend(u32::from(ours).to_be_bytes());
        match self.wanted {
            ReplyStyle::Simple => self.go(output),
            ReplyStyle::Structured => self.ask_for_structured_replies(output),
            ReplyStyle::Extended => {
                output.extend(encode_option(option::EXTENDED_HEADERS, &[]));
                self.stage = Stage::ExtendedHeaders;
            }
        }
        Ok(())
    }

    fn ask_for_structured_replies(&mut self, output: &mut Vec<u8>) {
        output.extend(encode_option(option::STRUCTURED_REPLY, &[]));
        self.stage = Stage::StructuredReply;
    }

    fn go(&mut self, output: &mut Vec<u8>) {
        let request = InfoRequest {
            name: &self.name,
            wants_name: false,
            wants_description: false,
            wants_block_size: true,
        };
        output.extend(encode_option(option::GO, &request.encode()));
        self.stage = Stage::Go;
    }

    fn on_reply(
        &mut self,
        reply: &Reply<'_>,
        output: &mut Vec<u8>,
    ) -> Result<Option<ExportInfo>, ClientError> {
        match (self.stage, reply.reply_type) {
            (Stage::ExtendedHeaders, option_reply::ACK) => {
                self.agreed = ReplyStyle::Extended;
                self.go(output);
                Ok(None)
            }
            (Stage::ExtendedHeaders, option_reply::ERR_UNSUP) => {
                self.ask_for_structured_replies(output);
                Ok(None)
            }
            (Stage::StructuredReply, option_reply::ACK) => {
                self.agreed = ReplyStyle::Structured;
                self.go(output);
                Ok(None)
            }
            (Stage::StructuredReply, option_reply::ERR_UNSUP) => {
                self.go(output);
                Ok(None)
            }
            (Stage::Go, option_reply::INFO) => {
                self.on_info(reply.payload)?;
                Ok(None)
            }
            (Stage::Go, option_reply::ACK) => {
                let (size, transmission_flags) = self
                    .export
                    .ok_or(ClientError::Protocol("GO without INFO_EXPORT"))?;
                Ok(Some(ExportInfo {
                    size,
                    transmission_flags,
                    style: self.agreed,
                }))
            }
            (_, error) if error & option_reply::ERROR_BIT != 0 => Err(ClientError::Refused {
                reply_type: error,
                text: String::from_utf8_lossy(reply.payload)
                    .escape_debug()
                    .to_string(),
            }),
            _ => Err(ClientError::Protocol("unexpected option reply")),
        }
    }

    fn on_info(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let mut reader = ByteReader::new(payload);
        if reader.u16() != Some(info::EXPORT) {
            return Ok(());
        }
        match (reader.u64(), reader.u16(), reader.is_empty()) {
            (Some(size), Some(flags), true) if size <= i64::MAX.unsigned_abs() => {
                self.export = Some((size, flags));
                Ok(())
            }
            _ => Err(ClientError::Protocol("malformed INFO_EXPORT")),
        }
    }
}

struct Reply<'a> {
    reply_type: u32,
    payload: &'a [u8],
}

/// One option reply and its length; `None` when it is not whole.
fn parse_reply(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, ClientError> {
    let mut reader = ByteReader::new(bytes);
    let head = (reader.u64(), reader.u32(), reader.u32(), reader.u32());
    let (Some(magic), Some(_option), Some(reply_type), Some(payload_len)) = head else {
        return Ok(None);
    };
    if magic != OPTION_REPLY_MAGIC {
        return Err(ClientError::Protocol("option reply without magic"));
    }
    match usize::try_from(payload_len) {
        Ok(len) if len <= REPLY_LEN_MAX => Ok(reader.bytes(len).map(|payload| {
            (
                Reply {
                    reply_type,
                    payload,
                },
                OPTION_REPLY_HEADER_LEN + len,
            )
        })),
        _ => Err(ClientError::Protocol("option reply too long")),
    }
}
