//! Fixed little-endian fields, written and read one after the other.

use thiserror::Error;

/// A record ended early or holds a value that means nothing to this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("field `{0}` cannot be read")]
pub(super) struct BadField(pub &'static str);

/// Longest text in a record, in bytes: names of clusters, nodes and resources are far shorter.
const TEXT_LEN_MAX: usize = 255;

/// Appends fields to bytes.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A text of at most 255 bytes; longer ones are cut at a character, they only help people.
    pub(super) fn text(&mut self, value: &str) {
        let mut len = value.len().min(TEXT_LEN_MAX);
        while !value.is_char_boundary(len) {
            len -= 1;
        }
        self.u8(u8::try_from(len).unwrap_or(u8::MAX));
        self.0.extend_from_slice(&value.as_bytes()[..len]);
    }
}

/// Takes fields from bytes; never reads past their end.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BadField> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BadField(field))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, BadField> {
        self.take::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, BadField> {
        self.take(field).map(u32::from_le_bytes)
    }

    pub(super) fn u128(&mut self, field: &'static str) -> Result<u128, BadField> {
        self.take(field).map(u128::from_le_bytes)
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, BadField> {
        let len = usize::from(self.u8(field)?);
        let (head, rest) = self.0.split_at_checked(len).ok_or(BadField(field))?;
        self.0 = rest;
        core::str::from_utf8(head).map_err(|_| BadField(field))
    }
}
