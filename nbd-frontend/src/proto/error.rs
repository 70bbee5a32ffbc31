//! The closed set of error values a reply may carry.

// SPDX-License-Identifier: MIT OR Apache-2.0

/// An error as the protocol knows it (proto.md "Error values").
///
/// Clients hand these to their guests at once and without retry, so a failover must never surface
/// as one: the caller holds the request or drops the connection instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{}", self.text())]
pub enum NbdError {
    /// EPERM: a write to a read-only export.
    NotPermitted,
    /// EIO: the disk failed.
    Io,
    /// ENOMEM. proto.md asks servers to avoid it; a session never sends it by itself.
    NoMemory,
    /// EINVAL: unknown command, flag not allowed, read out of range.
    Invalid,
    /// ENOSPC: a write out of range, or the backing store is full.
    NoSpace,
    /// EOVERFLOW: the answer would be too long.
    Overflow,
    /// ENOTSUP: WRITE_ZEROES with FAST_ZERO that would not be fast.
    NotSupported,
    /// ESHUTDOWN: the server is going down.
    Shutdown,
}

impl NbdError {
    /// The value on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }

    /// Words for the text of a structured error; also what `Display` writes.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "operation not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "out of memory",
            Self::Invalid => "invalid argument",
            Self::NoSpace => "no space left on device",
            Self::Overflow => "value too large",
            Self::NotSupported => "operation not supported",
            Self::Shutdown => "server is shutting down",
        }
    }

    /// The error for a value from the wire. Unknown values count as [`Self::Invalid`], as proto.md
    /// tells clients to treat them; zero is no error.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::NotPermitted),
            5 => Some(Self::Io),
            12 => Some(Self::NoMemory),
            28 => Some(Self::NoSpace),
            75 => Some(Self::Overflow),
            95 => Some(Self::NotSupported),
            108 => Some(Self::Shutdown),
            _ => Some(Self::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_as_the_same_error() {
        for code in [1, 5, 12, 22, 28, 75, 95, 108] {
            assert_eq!(NbdError::from_code(code).map(NbdError::code), Some(code));
        }
        assert_eq!(NbdError::from_code(0), None);
        assert_eq!(NbdError::from_code(7), Some(NbdError::Invalid));
    }
}
