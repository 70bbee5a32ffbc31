//! Failures of what lies below the engine.

use thiserror::Error;

/// A disk operation failed. The kind decides nothing about retrying: nothing is ever retried
/// (promise 6); it is kept for people and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum DiskError {
    /// EIO: the device says the operation failed.
    #[error("I/O error")]
    Io,
    /// ENOSPC below a sparse file or thin volume.
    #[error("no space left on the backing device")]
    NoSpace,
    /// ENODEV, ENXIO: the device is gone.
    #[error("the backing device is gone")]
    Gone,
    /// EROFS, EPERM, EBADF: not writable (any more).
    #[error("the backing device is read-only")]
    ReadOnly,
    /// Fewer bytes than asked for: the device shrank or lies.
    #[error("short transfer")]
    Short,
    /// No completion within the disk timeout; the operation may still land (R14).
    #[error("no answer within the disk timeout")]
    Timeout,
    /// Any other errno.
    #[error("errno {0}")]
    Other(i32),
}

/// The voter store could not record something; nothing that depended on it may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("the voter store could not be written")]
pub struct StoreError;
