//! Descriptors: the only module that opens, reads, writes, sends or receives anything.
//!
//! A [`Backend`] is a proactor: operations go in with everything they own, completions come out of
//! [`Backend::turn`], which is the one place where the loop waits. [`ring`] is io_uring;
//! [`portable`] does the same by `poll(2)` and threads. [`disk`] opens backing devices, [`buffer`]
//! gives them aligned memory, [`clock`] tells the time.
//!
//! Invariant: an operation's descriptor and memory live until its completion was delivered,
//! whatever happens to their owners meanwhile.

pub mod buffer;
pub mod clock;
pub mod disk;
pub mod disk_queue;
mod file_pool;
mod file_work;
pub mod inherited;
pub mod meta_queue;
pub mod op;
pub mod pidfd;
pub mod portable;
pub mod realtime;
pub mod ring;
pub mod send_batch;
mod slab;
mod sys;
pub mod waker;

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;

pub use buffer::{AlignedBuf, BUFFER_ALIGN, BufferPool};
pub use disk::{Disk, OpenError};
pub use disk_queue::{DiskQueue, DiskResult};
pub use meta_queue::MetaQueue;
pub use op::{Completion, Done, FileExtent, FileRoute, IoFile, Op, OpKey, Socket, Token, ZeroMode};
pub use portable::Portable;
pub use ring::Ring;
pub use send_batch::{SendBatch, SendQueue};
pub use waker::Waker;

/// Which machinery carries operations out, as `status` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// A ring.
    IoUring,
    /// System calls and threads.
    Portable,
}

impl BackendKind {
    /// The word in `status`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Portable => "portable",
        }
    }

    /// What carries operations on a file of this route out.
    #[must_use]
    pub fn for_route(self, route: FileRoute) -> Self {
        match route {
            FileRoute::Ring => self,
            FileRoute::Threads | FileRoute::Inline => Self::Portable,
        }
    }
}

/// How long a [`Backend::turn`] waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// At most this long; `None`: for ever.
    pub timeout: Option<Duration>,
    /// The caller can do nothing with the first completion before the second: a write's own disk
    /// and its peer's answer. They may then be awaited together, for a short while.
    pub for_two: bool,
}

impl Wait {
    /// At most this long, for anything.
    #[must_use]
    pub fn at_most(timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
            for_two: false,
        }
    }
}

/// Carries operations out. Owned by one thread; only its [`Waker`] crosses threads.
pub trait Backend {
    /// What it is.
    fn kind(&self) -> BackendKind;

    /// A handle that makes `turn` return from another thread.
    fn waker(&self) -> Waker;

    /// Makes a connected, listening or fresh socket usable here.
    ///
    /// # Errors
    /// The errno of `fcntl(2)`.
    fn adopt(&self, fd: OwnedFd) -> Result<Socket, Errno>;

    /// Takes an operation; it begins at the latest with the next `turn`. At most one send and one
    /// receive may be in flight on a socket (else their bytes would mix).
    fn submit(&mut self, token: Token, op: Op) -> OpKey;

    /// Asks for the early end of a socket operation: it completes soon, with `ECANCELED` unless it
    /// was faster. Operations on files cannot be recalled.
    fn cancel(&mut self, key: OpKey);

    /// Submits everything taken, waits as `wait` says until something completes or the waker is
    /// used, and appends the completions to `done`. May return early with none.
    ///
    /// # Errors
    /// Only when the machinery itself fails; failures of operations are in their completions.
    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Errno>;

    /// Operations taken whose completion was not delivered.
    fn in_flight(&self) -> usize;
}

/// The best backend this host allows: a ring, else the portable one, saying why.
///
/// # Errors
/// When not even an eventfd can be had.
pub fn open_backend() -> Result<Box<dyn Backend>, Errno> {
    match Ring::new() {
        Ok(ring) => Ok(Box::new(ring)),
        Err(why) => {
            tracing::warn!(%why, "io_uring cannot be used; using poll and threads");
            Ok(Box::new(Portable::new()?))
        }
    }
}
