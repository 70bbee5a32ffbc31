//! TLS of one connection, as either side, between the socket's bytes and the session's.
//!
//! A transformer: bytes of the wire and bytes inside go in, the other kind comes out, and nothing
//! here knows a socket or waits. What leaves is sealed only once the wire has taken what was sealed
//! before, so a client that does not read costs one round of sealed bytes, and what is inside stays
//! bounded by its session.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use rustls::Connection;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConfig, ServerConnection};

/// Bytes inside that are sealed at once: with their record headers just below what a send queue
/// keeps allocated, and far more than a socket takes at a time.
const ROUND_BYTES_MAX: usize = 240 << 10;
/// Bytes inside that one [`Tls::open`] gives at most, and a record more.
const OPEN_BYTES_MAX: usize = 64 << 10;
/// Payloads up to this length are copied together: a record of its own costs more.
const COPY_LEN_MAX: usize = 4 << 10;

/// See the module.
pub(super) struct Tls {
    connection: Connection,
    /// Nothing more can be sealed or opened; at most an alert goes out.
    failed: bool,
    /// The client will send nothing more.
    ended: bool,
    /// The session is over, and the client was not told yet.
    farewell: bool,
    waiting: Outgoing,
    /// Bytes inside of what the wire was given last.
    under_way: usize,
    /// Opened, and not taken by the session yet.
    kept: Vec<u8>,
}

impl Tls {
    /// `in_the_clear`: bytes that were sent before, and of which the wire has not said yet that they
    /// have left.
    pub(super) fn new(
        config: Arc<ServerConfig>,
        in_the_clear: usize,
    ) -> Result<Self, rustls::Error> {
        let connection = ServerConnection::new(config)?;
        Ok(Self::over(Connection::Server(connection), in_the_clear))
    }

    /// Goes on with a connection, of whichever side. What it had opened already is kept.
    pub(super) fn over(mut connection: Connection, in_the_clear: usize) -> Self {
        // What may wait is bounded here.
        connection.set_buffer_limit(None);
        let mut tls = Self {
            connection,
            failed: false,
            ended: false,
            farewell: false,
            waiting: Outgoing::default(),
            under_way: in_the_clear,
            kept: Vec::new(),
        };
        let mut kept = Vec::new();
        // Nothing more is to be had: that is no failure, nor is an end, which comes again.
        tls.connection.reader().read_to_end(&mut kept).ok();
        tls.kept = kept;
        tls
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The client said that it will send nothing more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What the other end showed; its signature and its authority are checked.
    pub(super) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// Opens bytes of the wire, from the front, and appends what is inside; how many it took. All of
    /// them, unless it gave [`OPEN_BYTES_MAX`] or the handshake came to its end: then it has to be
    /// found out first who the client is. After an error there is nothing more to open.
    pub(super) fn open(
        &mut self,
        wire: &[u8],
        inside: &mut Vec<u8>,
    ) -> Result<usize, rustls::Error> {
        let was_handshaking = self.is_handshaking();
        let mut rest = wire;
        while !rest.is_empty() && inside.len() < OPEN_BYTES_MAX {
            // From memory: it cannot fail, and takes nothing only after the end.
            if self.connection.read_tls(&mut rest).unwrap_or(0) == 0 {
                self.ended = true;
            }
            if self.ended || self.failed {
                // Bytes behind the end are nobody's.
                return Ok(wire.len());
            }
            let state = self
                .connection
                .process_new_packets()
                .inspect_err(|_| self.failed = true)?;
            let start = inside.len();
            inside.resize(start + state.plaintext_bytes_to_read(), 0);
            let mut reader = self.connection.reader();
            if let Err(error) = reader.read_exact(&mut inside[start..]) {
                self.failed = true;
                return Err(rustls::Error::General(error.to_string()));
            }
            self.ended = state.peer_has_closed();
            if was_handshaking && !self.is_handshaking() {
                break;
            }
        }
        Ok(wire.len() - rest.len())
    }

    /// Bytes that [`Self::open`] gave and the session did not take.
    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }

    pub(super) fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }

    pub(super) fn keep(&mut self, inside: &[u8]) {
        self.kept.extend_from_slice(inside);
    }

    pub(super) fn drop_kept(&mut self, len: usize) {
        self.kept.drain(..len);
        if self.kept.is_empty() {
            self.kept = Vec::new();
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.waiting.push(bytes);
    }

    pub(super) fn push_shared(&mut self, bytes: Bytes) {
        self.waiting.push_shared(bytes);
    }

    /// The session is over: once everything inside has left, the client is told.
    pub(super) fn say_farewell(&mut self) {
        self.farewell = true;
    }

    /// Seals a round of what waits and hands it to `wire`. Only while the wire has nothing to send.
    pub(super) fn seal(&mut self, mut wire: impl FnMut(&[u8])) {
        if !self.failed && !self.is_handshaking() {
            let round = self.waiting.take(ROUND_BYTES_MAX);
            let slices: Vec<IoSlice<'_>> = round.iter().map(|it| IoSlice::new(it)).collect();
            let len: usize = round.iter().map(Bytes::len).sum();
            // Without a limit it takes all, and into memory it cannot fail on a sound connection.
            match self.connection.writer().write_vectored(&slices) {
                Ok(written) if written == len => self.under_way += len,
                Ok(_) | Err(_) => self.failed = true,
            }
        }
        if self.farewell && self.waiting.is_empty() {
            self.farewell = false;
            if !self.failed && !self.is_handshaking() {
                self.connection.send_close_notify();
            }
        }
        while self.connection.wants_write() {
            let mut sink = Sink(&mut wire);
            if self.connection.write_tls(&mut sink).is_err() {
                self.failed = true;
                return;
            }
        }
    }

    /// The wire has sent everything it was given: how many bytes inside those were.
    pub(super) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.under_way)
    }
}

/// Lets a connection write to a function.
struct Sink<'a, F>(&'a mut F);

impl<F: FnMut(&[u8])> Write for Sink<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes);
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        pieces.iter().for_each(|piece| (self.0)(piece));
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes inside that wait to be sealed, in order: short ones together, long ones by handle.
#[derive(Default)]
struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Behind the pieces.
    copied: Vec<u8>,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.copied.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.copied.extend_from_slice(bytes);
    }

    fn push_shared(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_LEN_MAX {
            self.push(&bytes);
        } else {
            self.close_copied();
            self.pieces.push_back(bytes);
        }
    }

    fn close_copied(&mut self) {
        if !self.copied.is_empty() {
            self.pieces
                .push_back(Bytes::from(std::mem::take(&mut self.copied)));
        }
    }

    /// Up to `len` bytes off the front.
    fn take(&mut self, len: usize) -> Vec<Bytes> {
        self.close_copied();
        let mut left = len;
        let mut taken = Vec::new();
        while left > 0
            && let Some(mut piece) = self.pieces.pop_front()
        {
            if piece.len() > left {
                self.pieces.push_front(piece.split_off(left));
            }
            left -= piece.len();
            taken.push(piece);
        }
        taken
    }
}

#[cfg(test)]
mod tests;
