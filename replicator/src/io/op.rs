//! Operations and their completions, the same for every backend.
//!
//! An operation owns what it uses: its descriptor (a counted handle) and its memory. Both come
//! back with the completion, so neither can be closed or reused while the kernel works on them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage};

use super::buffer::AlignedBuf;
use super::send_batch::SendBatch;

/// The submitter's name for an operation; comes back with its completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The backend's name for an operation in flight, for [`super::Backend::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpKey(pub(super) u64);

/// How operations on one file are carried out; decided when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRoute {
    /// On the ring, if there is one: the file can tell when it would have to wait.
    Ring,
    /// By a thread: on the ring each operation would occupy a kernel thread anyway.
    Threads,
    /// At once, by the loop itself: the file lives in memory.
    Inline,
}

/// An open file or block device.
#[derive(Clone, Debug)]
pub struct IoFile {
    fd: Arc<OwnedFd>,
    /// How operations on it are carried out.
    pub route: FileRoute,
}

impl IoFile {
    /// Takes an open descriptor.
    #[must_use]
    pub fn new(fd: OwnedFd, route: FileRoute) -> Self {
        Self {
            fd: Arc::new(fd),
            route,
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for IoFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An open socket; closed when the last handle and the last operation on it are gone.
#[derive(Clone, Debug)]
pub struct Socket {
    fd: Arc<OwnedFd>,
}

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Another handle of the socket, with a descriptor of its own.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Sends nothing more; the other end receives all that was sent, and then the end.
    pub fn end_sending(&self) {
        if let Err(errno) = nix::sys::socket::shutdown(self.raw(), Shutdown::Write) {
            tracing::trace!(%errno, "ending one direction of a socket");
        }
    }

    /// Ends the connection: what is in flight on it completes soon (a receive with 0 bytes, a send
    /// with an error). Bytes that a completed send gave to the kernel still go out.
    pub fn shutdown(&self) {
        // ENOTCONN: the peer was faster. Nothing else can happen to an open socket.
        if let Err(errno) = nix::sys::socket::shutdown(self.raw(), Shutdown::Both) {
            tracing::trace!(%errno, "shutting a socket down");
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a range of a file is made to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// Deallocate it (`FALLOC_FL_PUNCH_HOLE`); on a block device: discard where that zeroes.
    Punch,
    /// Keep it allocated (`FALLOC_FL_ZERO_RANGE`).
    Zero,
}

/// A run of a file's bytes that is allocated, or is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Bytes; not 0.
    pub len: u64,
    /// Not allocated, so that it reads as zeroes.
    pub is_hole: bool,
}

/// An operation. Offsets and lengths are in bytes.
#[derive(Debug)]
pub enum Op {
    /// Fill `buf` from `offset`. Completes with the count, which is less only at the end of file.
    Read {
        /// From where.
        file: IoFile,
        /// At which position.
        offset: u64,
        /// Into what.
        buf: AlignedBuf,
    },
    /// Write the payload at `offset`. Completes with the count.
    Write {
        /// Where to.
        file: IoFile,
        /// At which position.
        offset: u64,
        /// What; aligned as the file wants it.
        payload: Bytes,
        /// Durable on completion.
        durable: bool,
    },
    /// Make every completed write durable.
    Sync {
        /// Of which file.
        file: IoFile,
    },
    /// Make a range read as zeroes. `EOPNOTSUPP` where the file cannot.
    Zero {
        /// In which file.
        file: IoFile,
        /// From which position.
        offset: u64,
        /// How much.
        len: u64,
        /// How.
        mode: ZeroMode,
    },
    /// Find what is allocated of a range (`SEEK_DATA`, `SEEK_HOLE`); always on a thread, since it
    /// may have to read the filesystem's own blocks. Completes with the count of extents.
    FindExtents {
        /// Of which file.
        file: IoFile,
        /// From which position.
        offset: u64,
        /// How much.
        len: u64,
        /// After so many it may stop.
        count_max: usize,
        /// What was found, from `offset` on; empty at first.
        found: Vec<FileExtent>,
    },
    /// Receive into `buf[start..end]`. Completes with the count; 0 is the end of the stream.
    Recv {
        /// From where.
        socket: Socket,
        /// Into what.
        buf: AlignedBuf,
        /// First byte to fill.
        start: usize,
        /// One past the last byte to fill.
        end: usize,
        /// Complete only when full, or at the end of the stream, or on an error.
        fill: bool,
    },
    /// Send the whole batch. Completes with its length or an error, never in part.
    Send {
        /// Where to.
        socket: Socket,
        /// What.
        batch: SendBatch,
    },
    /// Take one connection. Completes with [`Done::Accepted`].
    Accept {
        /// From which listener.
        listener: Socket,
    },
    /// Connect a fresh socket.
    Connect {
        /// Which.
        socket: Socket,
        /// Where to.
        address: Box<SockaddrStorage>,
    },
}

impl Op {
    /// The file it works on, for file operations.
    pub(super) fn file(&self) -> Option<&IoFile> {
        match self {
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file }
            | Self::Zero { file, .. }
            | Self::FindExtents { file, .. } => Some(file),
            Self::Recv { .. } | Self::Send { .. } | Self::Accept { .. } | Self::Connect { .. } => {
                None
            }
        }
    }

    /// How it is carried out, for file operations.
    pub(super) fn route(&self) -> Option<FileRoute> {
        match self {
            Self::FindExtents { .. } => Some(FileRoute::Threads),
            _ => self.file().map(|file| file.route),
        }
    }

    /// How many bytes complete it; it also ends at the first step that moves none, or fails.
    pub(super) fn wanted(&self) -> usize {
        match self {
            Self::Read { buf, .. } => buf.len(),
            Self::Write { payload, .. } => payload.len(),
            Self::Send { batch, .. } => batch.len(),
            Self::Recv {
                start,
                end,
                fill: true,
                ..
            } => end - start,
            Self::Recv { fill: false, .. } => 1,
            Self::Sync { .. }
            | Self::Zero { .. }
            | Self::FindExtents { .. }
            | Self::Accept { .. }
            | Self::Connect { .. } => 0,
        }
    }
}

/// What an operation achieved.
#[derive(Debug)]
pub enum Done {
    /// Bytes moved or extents found; 0 where there is nothing of either.
    Count(usize),
    /// A connection, ready for this backend's operations.
    Accepted(Socket),
}

/// The end of an operation: exactly one for each that was submitted.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// The operation with everything it owned.
    pub op: Op,
    /// How it ended.
    pub result: Result<Done, Errno>,
}

impl Completion {
    /// Bytes moved, for operations that do not accept.
    ///
    /// # Errors
    /// The operation's errno.
    pub fn count(&self) -> Result<usize, Errno> {
        match &self.result {
            Ok(Done::Count(count)) => Ok(*count),
            Ok(Done::Accepted(_)) => Ok(0),
            Err(errno) => Err(*errno),
        }
    }
}
