//! A connection between two nodes that one thread waits on: in clear text, or within TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use replicator::io::clock;
use replicator::types::Instant;
use rustls::Connection;

use super::control::ClientStream;
use crate::identity::stream::SecureStream;

/// See the module.
#[derive(Debug)]
pub enum Wire {
    /// As it is.
    Clear(TcpStream),
    /// Who the other end is was shown.
    Secure(Box<SecureStream>),
}

impl Wire {
    /// The socket, for its options and addresses.
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Secure(stream) => stream.socket(),
        }
    }

    /// The same connection within TLS, once hands are shaken.
    pub(super) fn secure(self, connection: Connection, deadline: Instant) -> io::Result<Self> {
        match self {
            Self::Clear(socket) => {
                let left = || deadline.since(clock::now());
                let stream = SecureStream::new(connection, socket, left)?;
                Ok(Self::Secure(Box::new(stream)))
            }
            Self::Secure(_) => Err(io::Error::other("TLS within TLS")),
        }
    }

    /// Fills `bytes` by `deadline`: one that sends a byte now and then gets no more time for it.
    pub(super) fn read_until(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let left = deadline.since(clock::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket().set_read_timeout(Some(left))?;
            match self.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// For an event loop.
    pub(super) fn into_parts(self) -> (Option<Connection>, TcpStream) {
        match self {
            Self::Clear(socket) => (None, socket),
            Self::Secure(stream) => {
                let (connection, socket) = stream.into_parts();
                (Some(connection), socket)
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read(buffer),
            Self::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write(bytes),
            Self::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.flush(),
            Self::Secure(stream) => stream.flush(),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl ClientStream for Wire {
    fn gone(&self) -> (PollFlags, PollFlags) {
        // A node that passes a request on sends nothing after it, and so its end is all that can
        // be received; it never shuts one side alone.
        let gone = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        (PollFlags::POLLIN, gone)
    }

    fn limit_read(&self, timeout: Duration) -> io::Result<()> {
        self.socket().set_read_timeout(Some(timeout))
    }

    fn farewell(&mut self) {
        if let Self::Secure(stream) = self {
            stream.farewell();
        }
    }
}
