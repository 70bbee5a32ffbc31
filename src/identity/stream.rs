//! TLS over a blocking socket, for whoever says a few lines and is done.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustls::Connection;
use rustls::pki_types::CertificateDer;

use super::message::MESSAGE_LEN_MAX;

/// See the module. What is dropped without [`Self::farewell`] looks cut off to the other end.
pub struct SecureStream {
    connection: Connection,
    socket: TcpStream,
}

impl core::fmt::Debug for SecureStream {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SecureStream")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl SecureStream {
    /// Shakes hands; `left` says how long it may still take.
    ///
    /// # Errors
    /// If there is no TLS to be had with the other end, or not in time.
    pub fn new(
        connection: Connection,
        socket: TcpStream,
        mut left: impl FnMut() -> Duration,
    ) -> io::Result<Self> {
        let mut stream = Self { connection, socket };
        while stream.connection.is_handshaking() {
            stream.send()?;
            if stream.connection.is_handshaking() {
                let left = left();
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                stream.socket.set_read_timeout(Some(left))?;
                stream.receive()?;
            }
        }
        stream.send()?;
        Ok(stream)
    }

    /// What the other end showed; its signature and its authority are checked.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// The socket, for its options and addresses.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// For whoever goes on otherwise.
    #[must_use]
    pub fn into_parts(self) -> (Connection, TcpStream) {
        (self.connection, self.socket)
    }

    /// Says that nothing more will come.
    pub fn farewell(&mut self) {
        self.connection.send_close_notify();
        // Whoever is gone already misses nothing.
        self.send().ok();
    }

    /// Sends one message: its length, then its bytes.
    ///
    /// # Errors
    /// Of the connection, or if it is too long.
    pub fn write_message(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        self.write_all(&[&len.to_le_bytes(), bytes].concat())
    }

    /// Receives one.
    ///
    /// # Errors
    /// Of the connection, or if it is longer than any may be.
    pub fn read_message(&mut self, mut left: impl FnMut() -> Duration) -> io::Result<Vec<u8>> {
        let mut len = [0; 2];
        self.read_whole(&mut len, &mut left)?;
        let len = usize::from(u16::from_le_bytes(len));
        if len > MESSAGE_LEN_MAX {
            return Err(io::Error::other("a message longer than any"));
        }
        let mut bytes = vec![0; len];
        self.read_whole(&mut bytes, &mut left)?;
        Ok(bytes)
    }

    /// Fills `bytes`; one that sends a byte now and then gets no more time for it.
    ///
    /// # Errors
    /// Of the connection, or if the time is over.
    pub fn read_whole(
        &mut self,
        bytes: &mut [u8],
        mut left: impl FnMut() -> Duration,
    ) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let left = left();
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Takes what comes next; whether the other end closed.
    fn receive(&mut self) -> io::Result<bool> {
        let count = self.connection.read_tls(&mut self.socket)?;
        let processed = self.connection.process_new_packets();
        if processed.is_err() {
            // The other end is owed the reason.
            self.send().ok();
        }
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if count == 0 && self.connection.is_handshaking() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count == 0)
    }
}

/// One that is `Interrupted` received something, and nothing of it can be read yet: whoever has a
/// deadline looks at it then, as a record of TLS may come byte by byte for ever.
impl Read for SecureStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.connection.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        let ended = self.receive()?;
        self.send()?;
        match self.connection.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !ended => {
                Err(io::ErrorKind::Interrupted.into())
            }
            result => result,
        }
    }
}

impl Write for SecureStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(bytes)?;
        self.send()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
