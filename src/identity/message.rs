//! What the joining node and the issuer say to each other, within TLS: bytes ↔ values.
//!
//! Each says one message: its length (2 bytes, little-endian), then as many bytes.

use core::fmt;

use thiserror::Error;

use super::SECRET_LEN;
use super::token::{NAME_LEN_MAX, TOKEN_SECRET_LEN};

/// Longest message: two certificates of below 1 KiB each.
pub const MESSAGE_LEN_MAX: usize = 8 << 10;
/// Bytes of a P-256 public key, uncompressed.
pub const PUBLIC_KEY_LEN: usize = 65;

const REQUEST_VERSION: u8 = 1;

/// What the joining node says.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Which token.
    pub token: u64,
    /// What is in it.
    pub secret: [u8; TOKEN_SECRET_LEN],
    /// The name it wants.
    pub node: String,
    /// The public half of the key it made.
    pub public_key: [u8; PUBLIC_KEY_LEN],
}

/// What it is given.
#[derive(Clone, PartialEq, Eq)]
pub struct Admission {
    /// The cluster's name.
    pub cluster: String,
    /// The secret that all its nodes have.
    pub secret: [u8; SECRET_LEN],
    /// The node's certificate, DER.
    pub certificate: Vec<u8>,
    /// The authority's, DER.
    pub authority: Vec<u8>,
}

/// Why it is given nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// Unknown, used, run out, or not with this secret: which of them is nobody's business.
    #[error("the token is used, has run out, or is not of this node")]
    Token,
    /// Another node than the token was made for, or none that can join.
    #[error(
        "the token is for another node, or the issuer's configuration has no node of that name"
    )]
    Node,
    /// The issuer could not record it.
    #[error("the issuer cannot write to its state directory")]
    Failed,
}

/// The issuer's answer.
pub type JoinAnswer = Result<Admission, JoinRefusal>;

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl JoinRequest {
    /// Its bytes, without the length.
    ///
    /// # Panics
    /// If the name is longer than [`NAME_LEN_MAX`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![REQUEST_VERSION];
        bytes.extend_from_slice(&self.token.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.public_key);
        put_name(&mut bytes, &self.node);
        bytes
    }

    /// Reads one; `None` if it is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.array()? != [REQUEST_VERSION] {
            return None;
        }
        let token = u64::from_le_bytes(fields.array()?);
        let secret = fields.array()?;
        let public_key = fields.array()?;
        let [len] = fields.array()?;
        let node = fields.name(usize::from(len))?;
        fields.end()?;
        Some(Self {
            token,
            secret,
            node,
            public_key,
        })
    }
}

/// The bytes of an answer, without the length.
///
/// # Panics
/// If the name is longer than [`NAME_LEN_MAX`] or a certificate longer than a message.
#[must_use]
pub fn encode_answer(answer: &JoinAnswer) -> Vec<u8> {
    let admission = match answer {
        Ok(admission) => admission,
        Err(refusal) => return vec![number_of(*refusal)],
    };
    let mut bytes = vec![ADMITTED];
    bytes.extend_from_slice(&admission.secret);
    put_name(&mut bytes, &admission.cluster);
    for certificate in [&admission.certificate, &admission.authority] {
        let len = u16::try_from(certificate.len()).expect("a certificate of ours fits a message");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(certificate);
    }
    assert!(bytes.len() <= MESSAGE_LEN_MAX, "two certificates of ours");
    bytes
}

/// Reads an answer; `None` if it is none.
#[must_use]
pub fn parse_answer(bytes: &[u8]) -> Option<JoinAnswer> {
    let mut fields = Fields::new(bytes);
    let [kind] = fields.array()?;
    if kind != ADMITTED {
        fields.end()?;
        return refusal_of(kind).map(Err);
    }
    let secret = fields.array()?;
    let [len] = fields.array()?;
    let cluster = fields.name(usize::from(len))?;
    let mut certificate = || {
        let len = u16::from_le_bytes(fields.array()?);
        fields.take(usize::from(len)).map(<[u8]>::to_vec)
    };
    let (certificate, authority) = (certificate()?, certificate()?);
    fields.end()?;
    Some(Ok(Admission {
        cluster,
        secret,
        certificate,
        authority,
    }))
}

const ADMITTED: u8 = 1;

fn number_of(refusal: JoinRefusal) -> u8 {
    match refusal {
        JoinRefusal::Token => 2,
        JoinRefusal::Node => 3,
        JoinRefusal::Failed => 4,
    }
}

fn refusal_of(number: u8) -> Option<JoinRefusal> {
    Some(match number {
        2 => JoinRefusal::Token,
        3 => JoinRefusal::Node,
        4 => JoinRefusal::Failed,
        _ => return None,
    })
}

fn put_name(bytes: &mut Vec<u8>, name: &str) {
    assert!(name.len() <= NAME_LEN_MAX, "makers keep to the bound");
    bytes.push(u8::try_from(name.len()).expect("the bound fits a byte"));
    bytes.extend_from_slice(name.as_bytes());
}

/// Takes fields off the front; everything is `None` once they run out.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    /// Text of this length, not empty.
    pub(super) fn name(&mut self, len: usize) -> Option<String> {
        if len == 0 || len > NAME_LEN_MAX {
            return None;
        }
        let name = core::str::from_utf8(self.take(len)?).ok()?;
        Some(name.to_owned())
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> JoinRequest {
        JoinRequest {
            token: 3,
            secret: [1; TOKEN_SECRET_LEN],
            node: "kvm-b".to_owned(),
            public_key: [4; PUBLIC_KEY_LEN],
        }
    }

    fn answers() -> Vec<JoinAnswer> {
        let admission = Admission {
            cluster: "lab".to_owned(),
            secret: [7; SECRET_LEN],
            certificate: vec![1, 2, 3],
            authority: vec![4; 900],
        };
        vec![
            Ok(admission),
            Err(JoinRefusal::Token),
            Err(JoinRefusal::Node),
            Err(JoinRefusal::Failed),
        ]
    }

    #[test]
    fn messages_survive_the_way_and_no_part_of_one_is_one() {
        let bytes = request().encode();
        assert_eq!(JoinRequest::parse(&bytes), Some(request()));
        for end in 0..bytes.len() {
            assert_eq!(JoinRequest::parse(&bytes[..end]), None, "{end}");
        }
        for answer in answers() {
            let mut bytes = encode_answer(&answer);
            assert_eq!(parse_answer(&bytes), Some(answer.clone()));
            for end in 0..bytes.len() {
                assert_eq!(parse_answer(&bytes[..end]), None, "{answer:?} {end}");
            }
            bytes.push(0);
            assert_eq!(parse_answer(&bytes), None, "{answer:?} and more");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let text = format!("{:?} {:?}", request(), answers());
        assert!(!text.contains("[7"), "{text}");
        assert!(!text.contains("[1, 1"), "{text}");
    }
}
