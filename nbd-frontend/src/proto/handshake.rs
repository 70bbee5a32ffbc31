//! The handshake: greeting, options and their replies.
//!
//! Parsers check lengths and strings; whether an export exists or may be served is the session's
//! question.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::constants::{
    self, BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, EXPORT_NAME_PADDING_LEN, FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_LEN_ADVERTISED,
    STRING_LEN_MAX, info, option_reply,
};
use super::wire::{ByteReader, WireBytes};

/// The server's first 18 bytes.
#[must_use]
pub fn greeting() -> WireBytes {
    WireBytes::from_parts(&[
        &INIT_MAGIC.to_be_bytes(),
        &OPTION_MAGIC.to_be_bytes(),
        &(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes(),
    ])
}

/// What the client said about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientFlags {
    /// Options other than EXPORT_NAME may be used.
    pub fixed_newstyle: bool,
    /// EXPORT_NAME is answered without padding.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Parses the four bytes after the greeting. `Err` holds the whole word when it has a bit
    /// that was not offered: the server must drop the connection.
    pub fn parse(word: u32) -> Result<Self, u32> {
        const KNOWN: u32 = (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) as u32;
        if word & !KNOWN != 0 {
            return Err(word);
        }
        Ok(Self {
            fixed_newstyle: word & u32::from(FLAG_FIXED_NEWSTYLE) != 0,
            no_zeroes: word & u32::from(FLAG_NO_ZEROES) != 0,
        })
    }
}

/// Head of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Option number, see [`constants::option`].
    pub option: u32,
    /// Bytes of data that follow, as claimed by the client.
    pub payload_len: u32,
}

impl OptionHeader {
    /// Parses 16 bytes; `None` when they are too few or the magic is wrong.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        if reader.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self {
            option: reader.u32()?,
            payload_len: reader.u32()?,
        })
    }
}

/// Why an option's data is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedOption {
    /// The lengths inside the data do not add up to the data.
    #[error("lengths inside the option do not add up")]
    Lengths,
    /// A string is longer than 4096 bytes.
    #[error("string longer than 4096 bytes")]
    StringTooLong,
    /// A string is not UTF-8 or holds a NUL.
    #[error("string is not UTF-8 without NUL")]
    NotText,
}

impl MalformedOption {
    /// The reply type that tells the client.
    #[must_use]
    pub const fn reply_type(self) -> u32 {
        match self {
            Self::Lengths | Self::NotText => option_reply::ERR_INVALID,
            Self::StringTooLong => option_reply::ERR_TOO_BIG,
        }
    }
}

/// Checks a string of the protocol: UTF-8, no NUL, at most 4096 bytes.
pub fn parse_string(bytes: &[u8]) -> Result<&str, MalformedOption> {
    if bytes.len() > STRING_LEN_MAX {
        return Err(MalformedOption::StringTooLong);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(MalformedOption::NotText),
    }
}

/// Data of INFO and GO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// Export name; empty means the default export.
    pub name: &'a str,
    /// NAME was asked for.
    pub wants_name: bool,
    /// DESCRIPTION was asked for.
    pub wants_description: bool,
    /// BLOCK_SIZE was asked for.
    pub wants_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    /// Parses the data of INFO or GO. Unknown information types are ignored, as the spec wants.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MalformedOption> {
        let mut reader = ByteReader::new(payload);
        let name = reader.counted().ok_or(MalformedOption::Lengths)?;
        let count = reader.u16().ok_or(MalformedOption::Lengths)?;
        if reader.rest().len() != 2 * usize::from(count) {
            return Err(MalformedOption::Lengths);
        }
        let mut request = Self {
            name: parse_string(name)?,
            wants_name: false,
            wants_description: false,
            wants_block_size: false,
        };
        while let Some(kind) = reader.u16() {
            match kind {
                info::NAME => request.wants_name = true,
                info::DESCRIPTION => request.wants_description = true,
                info::BLOCK_SIZE => request.wants_block_size = true,
                _ => {}
            }
        }
        Ok(request)
    }

    /// Encodes the data of INFO or GO as a client sends it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let wanted = [
            (self.wants_name, info::NAME),
            (self.wants_description, info::DESCRIPTION),
            (self.wants_block_size, info::BLOCK_SIZE),
        ];
        let kinds: Vec<u16> = wanted
            .iter()
            .filter(|(wants, _)| *wants)
            .map(|(_, kind)| *kind)
            .collect();
        let mut payload = counted(self.name.as_bytes());
        payload.extend(
            u16::try_from(kinds.len())
                .expect("at most three kinds")
                .to_be_bytes(),
        );
        payload.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
        payload
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// Export name; empty means the default export.
    pub name: &'a str,
    /// Queries in the order sent.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaContextRequest<'a> {
    /// Parses the data; every byte must be accounted for.
    pub fn parse(payload: &'a [u8]) -> Result<Self, MalformedOption> {
        let mut reader = ByteReader::new(payload);
        let name = reader.counted().ok_or(MalformedOption::Lengths)?;
        let count = reader.u32().ok_or(MalformedOption::Lengths)?;
        // The count is the client's word: collect what is really there instead of reserving.
        let mut queries = Vec::new();
        for _ in 0..count {
            let query = reader.counted().ok_or(MalformedOption::Lengths)?;
            queries.push(parse_string(query)?);
        }
        if !reader.is_empty() {
            return Err(MalformedOption::Lengths);
        }
        Ok(Self {
            name: parse_string(name)?,
            queries,
        })
    }
}

/// Encodes an option as a client sends it.
///
/// # Panics
/// When `payload` is 4 GiB or longer; callers send at most a name and a few words.
#[must_use]
pub fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("option data is shorter than 4 GiB");
    [
        OPTION_MAGIC.to_be_bytes().as_slice(),
        &option.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// One reply to an option.
///
/// # Panics
/// When `payload` is 4 GiB or longer; every payload here is a few strings of at most 4096 bytes.
#[must_use]
pub fn option_reply(option: u32, reply_type: u32, payload: &[u8]) -> WireBytes {
    let len = u32::try_from(payload.len()).expect("option replies are short");
    WireBytes::from_parts(&[
        &OPTION_REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &reply_type.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ])
}

/// Longest text in an error reply, in bytes. QEMU treats texts above 1000 bytes as a broken server.
pub const ERROR_TEXT_LEN_MAX: usize = 512;

/// An error reply to an option with a text for people, clipped to [`ERROR_TEXT_LEN_MAX`].
#[must_use]
pub fn option_error(option: u32, reply_type: u32, text: &str) -> WireBytes {
    let mut end = text.len().min(ERROR_TEXT_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    option_reply(option, reply_type, &text.as_bytes()[..end])
}

/// A client's string made fit for an error text: escaped, and clipped to 64 characters.
#[must_use]
pub fn quoted(name: &str) -> String {
    const CHAR_COUNT_MAX: usize = 64;
    let clipped: String = name.chars().take(CHAR_COUNT_MAX).collect();
    let dots = if clipped.len() < name.len() {
        "..."
    } else {
        ""
    };
    format!("\"{}{dots}\"", clipped.escape_debug())
}

/// Payload of a SERVER reply: one export of a list.
#[must_use]
pub fn server_entry(name: &str, description: &str) -> Vec<u8> {
    [counted(name.as_bytes()).as_slice(), description.as_bytes()].concat()
}

/// Payload of INFO_EXPORT.
#[must_use]
pub fn info_export(size: u64, transmission_flags: u16) -> Vec<u8> {
    [
        info::EXPORT.to_be_bytes().as_slice(),
        &size.to_be_bytes(),
        &transmission_flags.to_be_bytes(),
    ]
    .concat()
}

/// Payload of INFO_NAME or INFO_DESCRIPTION.
#[must_use]
pub fn info_text(kind: u16, text: &str) -> Vec<u8> {
    [kind.to_be_bytes().as_slice(), text.as_bytes()].concat()
}

/// Payload of INFO_BLOCK_SIZE: the sizes of [`constants`].
#[must_use]
pub fn info_block_size() -> Vec<u8> {
    [
        info::BLOCK_SIZE.to_be_bytes().as_slice(),
        &BLOCK_SIZE_MIN.to_be_bytes(),
        &BLOCK_SIZE_PREFERRED.to_be_bytes(),
        &PAYLOAD_LEN_ADVERTISED.to_be_bytes(),
    ]
    .concat()
}

/// Payload of a META_CONTEXT reply.
#[must_use]
pub fn meta_context(id: u32, name: &str) -> Vec<u8> {
    [id.to_be_bytes().as_slice(), name.as_bytes()].concat()
}

/// The answer to EXPORT_NAME, which has no reply header.
#[must_use]
pub fn export_name_answer(size: u64, transmission_flags: u16, no_zeroes: bool) -> WireBytes {
    let padding_len = if no_zeroes {
        0
    } else {
        EXPORT_NAME_PADDING_LEN
    };
    WireBytes::from_parts(&[
        &size.to_be_bytes(),
        &transmission_flags.to_be_bytes(),
        &[0; EXPORT_NAME_PADDING_LEN][..padding_len],
    ])
}

fn counted(text: &[u8]) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("strings are at most 4096 bytes");
    [len.to_be_bytes().as_slice(), text].concat()
}

// The advertised sizes must satisfy proto.md "Size constraints".
const _: () = {
    assert!(BLOCK_SIZE_MIN.is_power_of_two() && BLOCK_SIZE_MIN <= 1 << 16);
    assert!(BLOCK_SIZE_PREFERRED.is_power_of_two() && BLOCK_SIZE_PREFERRED >= 512);
    assert!(PAYLOAD_LEN_ADVERTISED >= BLOCK_SIZE_PREFERRED);
    assert!(PAYLOAD_LEN_ADVERTISED >= 1 << 20);
    assert!(constants::PAYLOAD_LEN_MAX >= PAYLOAD_LEN_ADVERTISED);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_flags_other_than_the_two_offered_are_refused() {
        assert_eq!(
            ClientFlags::parse(3),
            Ok(ClientFlags {
                fixed_newstyle: true,
                no_zeroes: true
            })
        );
        assert_eq!(ClientFlags::parse(0), Ok(ClientFlags::default()));
        assert_eq!(ClientFlags::parse(4), Err(4));
        assert_eq!(ClientFlags::parse(0x8000_0001), Err(0x8000_0001));
    }

    #[test]
    fn an_info_request_round_trips_and_unknown_kinds_are_ignored() {
        let request = InfoRequest {
            name: "r0/1",
            wants_name: true,
            wants_description: false,
            wants_block_size: true,
        };
        assert_eq!(InfoRequest::parse(&request.encode()), Ok(request));
        let with_unknown = [&[0, 0, 0, 0][..], &[0, 2], &[0, 99], &[0, 3]].concat();
        assert_eq!(
            InfoRequest::parse(&with_unknown).map(|r| r.wants_block_size),
            Ok(true)
        );
    }

    #[test]
    fn an_info_request_whose_lengths_do_not_nest_is_refused() {
        let cases: [&[u8]; 6] = [
            &[],
            &[0, 0, 0, 1, b'a'],
            &[0, 0, 0, 9, b'a', 0, 0],
            &[255, 255, 255, 255, 0, 0],
            &[0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 7],
        ];
        for case in cases {
            assert_eq!(
                InfoRequest::parse(case),
                Err(MalformedOption::Lengths),
                "{case:?}"
            );
        }
    }

    #[test]
    fn names_must_be_short_text_without_nul() {
        assert_eq!(parse_string(b"a\0b"), Err(MalformedOption::NotText));
        assert_eq!(parse_string(&[0xff]), Err(MalformedOption::NotText));
        assert_eq!(
            parse_string(&[b'a'; 4097]),
            Err(MalformedOption::StringTooLong)
        );
        assert!(parse_string(&[b'a'; 4096]).is_ok());
    }

    #[test]
    fn a_meta_context_request_must_account_for_every_byte() {
        let good = [
            &[0, 0, 0, 1, b'r'][..],
            &[0, 0, 0, 1],
            &[0, 0, 0, 2, b'x', b':'],
        ]
        .concat();
        assert_eq!(
            MetaContextRequest::parse(&good),
            Ok(MetaContextRequest {
                name: "r",
                queries: vec!["x:"]
            })
        );
        let trailing = [good.as_slice(), &[0]].concat();
        assert_eq!(
            MetaContextRequest::parse(&trailing),
            Err(MalformedOption::Lengths)
        );
        let many = [0, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(
            MetaContextRequest::parse(&many),
            Err(MalformedOption::Lengths)
        );
    }

    #[test]
    fn error_texts_stay_short_and_names_are_escaped() {
        let long = "ä".repeat(2000);
        let reply = option_error(7, option_reply::ERR_UNKNOWN, &long);
        assert!(reply.len() <= 20 + ERROR_TEXT_LEN_MAX);
        assert!(std::str::from_utf8(&reply.as_ref()[20..]).is_ok());
        assert_eq!(quoted("a\nb\""), r#""a\nb\"""#);
        assert!(quoted(&"\u{1}".repeat(4096)).len() < ERROR_TEXT_LEN_MAX);
    }
}
