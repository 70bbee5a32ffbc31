//! Data of a write or read, as a handle: the engine moves it, never its bytes.

use core::fmt;

use bytes::Bytes;

/// Reference-counted bytes. In production they live in 4 KiB-aligned pooled buffers
/// (`io::buffer`); pure code and tests make them from vectors, and the executor copies those into
/// an aligned buffer when a disk needs it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(Bytes);

impl Payload {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes `start..end` of it, sharing the same memory.
    ///
    /// # Panics
    /// If the range is not inside the payload: callers cut what they measured.
    #[must_use]
    pub fn slice(&self, start: usize, end: usize) -> Self {
        Self(self.0.slice(start..end))
    }

    /// The handle below.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl core::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Payload({} bytes, crc32c {:08x})",
            self.len(),
            crc32c::crc32c(self)
        )
    }
}
