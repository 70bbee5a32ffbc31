//! The token by which one node joins: text ↔ values.
//!
//! `tbj1.` and base64url of, little-endian and without padding: cluster id (16), token id (8), token
//! secret (16), SHA-256 of the authority's certificate (32), length and name of the issuer (1 + n),
//! number of addresses (1), each as family (4 or 6), address, port; then crc32c of all that (4).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::message::Fields;

const PREFIX: &str = "tbj1.";

/// Longest text that is looked at: that of the longest name and [`ADDRESSES_MAX`] IPv6 addresses has
/// about 520 characters.
pub const TOKEN_LEN_MAX: usize = 640;
/// Addresses in a token at most; a node has one or two.
pub const ADDRESSES_MAX: usize = 8;
/// Longest name of a node that can issue or join.
pub const NAME_LEN_MAX: usize = 128;
/// Bytes of the secret in a token: nobody guesses 128 bits in 15 minutes.
pub const TOKEN_SECRET_LEN: usize = 16;

/// What a token says.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Random id of the cluster's keys.
    pub cluster: u128,
    /// Which token of the issuer it is.
    pub id: u64,
    /// What only its holder knows.
    pub secret: [u8; TOKEN_SECRET_LEN],
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// The node that issued it.
    pub issuer: String,
    /// Where that node listens.
    pub addresses: Vec<SocketAddr>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not begin like one.
    #[error("it does not begin with {PREFIX}")]
    Foreign,
    /// A character that is in none, or more characters than any has.
    #[error("it was not copied whole, or something is copied with it")]
    Characters,
    /// The checksum does not match.
    #[error("its checksum does not match: a character is wrong or missing")]
    Checksum,
    /// What is behind the checksum makes no sense.
    #[error("it was made by another version")]
    Content,
}

impl Token {
    /// The text to hand over.
    ///
    /// # Panics
    /// If the name or the number of addresses exceeds its bound: makers keep to them.
    #[must_use]
    pub fn encode(&self) -> String {
        assert!(self.issuer.len() <= NAME_LEN_MAX && self.addresses.len() <= ADDRESSES_MAX);
        let count = |len: usize| u8::try_from(len).expect("both bounds fit a byte");
        let mut bytes = self.cluster.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.authority);
        bytes.push(count(self.issuer.len()));
        bytes.extend_from_slice(self.issuer.as_bytes());
        bytes.push(count(self.addresses.len()));
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let mut text = PREFIX.to_owned();
        put_base64(&bytes, &mut text);
        text
    }

    /// Reads one; white space around it does not matter.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TOKEN_LEN_MAX {
            return Err(TokenError::Characters);
        }
        let rest = text.strip_prefix(PREFIX).ok_or(TokenError::Foreign)?;
        let bytes = base64(rest).ok_or(TokenError::Characters)?;
        let (content, crc) = bytes.split_last_chunk().ok_or(TokenError::Characters)?;
        if crc32c::crc32c(content).to_le_bytes() != *crc {
            return Err(TokenError::Checksum);
        }
        content_of(content).ok_or(TokenError::Content)
    }
}

fn content_of(bytes: &[u8]) -> Option<Token> {
    let mut fields = Fields::new(bytes);
    let cluster = u128::from_le_bytes(fields.array()?);
    let id = u64::from_le_bytes(fields.array()?);
    let secret = fields.array()?;
    let authority = fields.array()?;
    let [len] = fields.array()?;
    let issuer = fields.name(usize::from(len))?;
    let [count] = fields.array()?;
    if usize::from(count) > ADDRESSES_MAX {
        return None;
    }
    let addresses = (0..count)
        .map(|_| address(&mut fields))
        .collect::<Option<_>>()?;
    fields.end()?;
    Some(Token {
        cluster,
        id,
        secret,
        authority,
        issuer,
        addresses,
    })
}

fn address(fields: &mut Fields<'_>) -> Option<SocketAddr> {
    let [family] = fields.array()?;
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::from(fields.array::<4>()?)),
        6 => IpAddr::V6(Ipv6Addr::from(fields.array::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_le_bytes(fields.array()?)))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn put_base64(bytes: &[u8], text: &mut String) {
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for index in 0..3 {
            bits = bits << 8 | u32::from(group.get(index).copied().unwrap_or(0));
        }
        for index in 0..=group.len() {
            let digit = bits >> (18 - 6 * index) & 63;
            text.push(char::from(ALPHABET[digit as usize]));
        }
    }
}

/// The bytes; `None` for what [`put_base64`] never makes: each value has one text.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for index in 0..4 {
            let digit = match group.get(index) {
                Some(letter) => ALPHABET.iter().position(|it| it == letter)?,
                None => 0,
            };
            bits = bits << 6 | u32::try_from(digit).ok()?;
        }
        let whole = group.len().checked_sub(1).filter(|count| *count > 0)?;
        let [_, all @ ..] = bits.to_be_bytes();
        if all[whole..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&all[..whole]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token {
            cluster: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
            id: 77,
            secret: [9; TOKEN_SECRET_LEN],
            authority: [5; 32],
            issuer: "kvm-a".to_owned(),
            addresses: vec![
                "10.9.0.1:7790".parse().unwrap(),
                "[fd00::1]:7790".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn a_token_survives_the_way_and_its_debug_form_says_nothing() {
        let text = token().encode();
        assert_eq!(Token::parse(&text), Ok(token()));
        assert_eq!(Token::parse(&format!("  {text}\n")), Ok(token()));
        assert_eq!(format!("{:?}", token()), "Token { issuer: \"kvm-a\", .. }");
        let longest = Token {
            issuer: "n".repeat(NAME_LEN_MAX),
            addresses: vec!["[fd00::1]:7790".parse().unwrap(); ADDRESSES_MAX],
            ..token()
        };
        assert!(longest.encode().len() <= TOKEN_LEN_MAX);
        assert_eq!(Token::parse(&longest.encode()), Ok(longest));
    }

    #[test]
    fn no_changed_or_missing_character_passes() {
        let text = token().encode();
        for at in 0..text.len() {
            assert!(Token::parse(&text[..at]).is_err(), "cut at {at}");
            for other in ['A', 'x', '_', '+', ' '] {
                let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                if changed != text {
                    assert!(Token::parse(&changed).is_err(), "{changed}");
                }
            }
        }
        assert_eq!(Token::parse("hello"), Err(TokenError::Foreign));
        let twice = format!("{text}{text}");
        assert_eq!(Token::parse(&twice), Err(TokenError::Characters));
    }

    proptest! {
        #[test]
        fn each_text_of_bytes_is_read_back_and_is_the_only_one(bytes: Vec<u8>) {
            let mut text = String::new();
            put_base64(&bytes, &mut text);
            prop_assert_eq!(base64(&text), Some(bytes));
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "[A-Za-z0-9_-]{0,24}") {
            if let Some(bytes) = base64(&text) {
                let mut again = String::new();
                put_base64(&bytes, &mut again);
                prop_assert_eq!(again, text);
            }
        }
    }
}
