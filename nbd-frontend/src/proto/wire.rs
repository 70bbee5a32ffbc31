//! Reading and building big-endian byte strings, checked.

// SPDX-License-Identifier: MIT OR Apache-2.0

/// Bytes a connection sends, kept inline when short so that a reply costs no allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct WireBytes(Repr);

#[derive(Clone, PartialEq, Eq)]
enum Repr {
    Inline {
        len: u8,
        bytes: [u8; WireBytes::INLINE_LEN_MAX],
    },
    Heap(Vec<u8>),
}

impl WireBytes {
    /// Bytes that fit without an allocation: every reply header and every error chunk whose text
    /// is at most 40 bytes.
    pub const INLINE_LEN_MAX: usize = 78;

    /// Joins `parts`; allocates only when they are longer than [`Self::INLINE_LEN_MAX`].
    #[must_use]
    pub fn from_parts(parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        match u8::try_from(len) {
            Ok(short) if len <= Self::INLINE_LEN_MAX => {
                let mut bytes = [0; Self::INLINE_LEN_MAX];
                let mut rest: &mut [u8] = &mut bytes;
                for part in parts {
                    let (head, tail) = rest.split_at_mut(part.len());
                    head.copy_from_slice(part);
                    rest = tail;
                }
                Self(Repr::Inline { len: short, bytes })
            }
            _ => Self(Repr::Heap(parts.concat())),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_ref().is_empty()
    }
}

impl From<Vec<u8>> for WireBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Repr::Heap(bytes))
    }
}

impl AsRef<[u8]> for WireBytes {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for WireBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WireBytes({:02x?})", self.as_ref())
    }
}

/// Takes integers and strings off the front of untrusted bytes; `None` once they run out.
#[derive(Debug, Clone, Copy)]
pub struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Takes `len` bytes.
    pub const fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        match self.0.split_at_checked(len) {
            Some((head, tail)) => {
                self.0 = tail;
                Some(head)
            }
            None => None,
        }
    }

    /// Takes a 16-bit integer.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a 32-bit integer.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a 64-bit integer.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a 32-bit length and that many bytes.
    pub fn counted(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len)
    }

    /// Whether everything was taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was not taken yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }
}

/// Collects a part of known length from a stream that arrives in pieces of any size.
///
/// Keeps its allocation between parts, so that a long session stops allocating.
#[derive(Debug, Default)]
pub(crate) struct Gather(Vec<u8>);

impl Gather {
    /// Moves bytes from the front of `input` until `want` bytes are here; whether they are.
    /// `want` must be the same until [`Self::clear`].
    pub(crate) fn fill(&mut self, input: &mut &[u8], want: usize) -> bool {
        let missing = want.saturating_sub(self.0.len());
        let (head, tail) = input.split_at(missing.min(input.len()));
        self.0.extend_from_slice(head);
        *input = tail;
        self.0.len() >= want
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_inline_and_on_the_heap() {
        let short = WireBytes::from_parts(&[&[1, 2], &[], &[3]]);
        assert_eq!(short.as_ref(), [1, 2, 3]);
        assert!(matches!(short.0, Repr::Inline { .. }));
        let long = WireBytes::from_parts(&[&[7; 70], &[8; 9]]);
        assert_eq!(long.len(), 79);
        assert!(matches!(long.0, Repr::Heap(_)));
    }

    #[test]
    fn a_reader_gives_none_instead_of_reading_past_the_end() {
        let mut reader = ByteReader::new(&[0, 0, 0, 2, 9, 8, 7]);
        assert_eq!(reader.counted(), Some([9, 8].as_slice()));
        assert_eq!(reader.u16(), None);
        assert_eq!(reader.rest(), [7]);
        assert_eq!(ByteReader::new(&[255, 255, 255, 255]).counted(), None);
    }

    #[test]
    fn a_gather_takes_exactly_what_is_wanted() {
        let mut gather = Gather::default();
        let mut input: &[u8] = &[1, 2];
        assert!(!gather.fill(&mut input, 3));
        input = &[3, 4];
        assert!(gather.fill(&mut input, 3));
        assert_eq!(
            (gather.bytes(), input),
            ([1, 2, 3].as_slice(), [4].as_slice())
        );
    }
}
