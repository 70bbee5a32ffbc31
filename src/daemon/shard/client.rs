//! One NBD client: its session, its socket, and what is on its way in and out.

use nbd_frontend::{Phase, RequestHandle, Session};
use replicator::io::{AlignedBuf, BufferPool, SendQueue, Socket};

use super::slots::Key;
use crate::daemon::api::NbdClient;

/// Bytes received at once: the requests of a deep queue of small writes come in one go.
const RECEIVE_LEN: usize = 256 << 10;
/// The same during the handshake, where hundreds of idle connections may be open.
const RECEIVE_LEN_HANDSHAKE: usize = 4 << 10;

/// Bytes that buffers may hold (data of guests' requests, and frames to and from the peer) before
/// clients' payloads wait. Two clients with their largest requests fit; a thousand with small ones
/// do too.
const GUEST_BYTES_MAX: usize = 256 << 20;
/// Up to this length a client with nothing else in flight gets its buffer all the same, so that
/// clients which never read their answers cannot starve the others.
const LONE_REQUEST_LEN_MAX: usize = 1 << 20;

/// A guest request in an engine's hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestRef {
    pub(super) client: Key,
    pub(super) handle: RequestHandle,
}

/// See the module.
pub(super) struct Client {
    pub(super) resource: Key,
    pub(super) socket: Socket,
    pub(super) session: Session<AlignedBuf>,
    pub(super) queue: SendQueue,
    pub(super) incoming: Incoming,
    pub(super) identity: NbdClient,
    /// The session is over; what is queued still goes out.
    pub(super) closing: bool,
    pub(super) dirty: bool,
    /// Grows from one connection to the next.
    pub(super) born: u64,
}

/// The receiving side.
pub(super) enum Incoming {
    /// No receive in flight; `buffer[start..end]` was received and not taken by the session.
    Here {
        buffer: AlignedBuf,
        start: usize,
        end: usize,
    },
    /// A receive is in flight, into the buffer.
    Receiving,
    /// A receive is in flight, into a payload; the stream's buffer waits here, empty.
    Direct { buffer: AlignedBuf },
}

impl Client {
    pub(super) fn new(
        resource: Key,
        socket: Socket,
        session: Session<AlignedBuf>,
        identity: NbdClient,
        born: u64,
        pool: &BufferPool,
    ) -> Self {
        let buffer = pool.take(RECEIVE_LEN_HANDSHAKE);
        Self {
            resource,
            socket,
            session,
            queue: SendQueue::default(),
            incoming: Incoming::Here {
                buffer,
                start: 0,
                end: 0,
            },
            identity,
            closing: false,
            dirty: false,
            born,
        }
    }

    pub(super) fn is_shaking_hands(&self) -> bool {
        self.session.phase() == Phase::Handshake && !self.closing
    }

    /// Past its handshake, and still there: one that only waits for its last answers does not keep
    /// a resource from being demoted.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.session.phase(), Phase::Transmission(_))
    }

    /// The buffer for the next receive of the stream.
    pub(super) fn receive_buffer(&self, buffer: AlignedBuf, pool: &BufferPool) -> AlignedBuf {
        if self.is_attached() && buffer.len() < RECEIVE_LEN {
            pool.take(RECEIVE_LEN)
        } else {
            buffer
        }
    }
}

/// Memory for the payloads of guests' writes.
pub(super) struct GuestBuffers {
    pool: BufferPool,
    /// The client served now has no request in flight.
    pub(super) lone: bool,
}

impl GuestBuffers {
    pub(super) fn new(pool: BufferPool) -> Self {
        Self { pool, lone: false }
    }
}

impl nbd_frontend::BufferPool for GuestBuffers {
    type Buffer = AlignedBuf;

    fn take(&mut self, len: usize) -> Option<AlignedBuf> {
        let lone = std::mem::take(&mut self.lone) && len <= LONE_REQUEST_LEN_MAX;
        let fits = self.pool.out_bytes() + len <= GUEST_BYTES_MAX;
        (lone || fits).then(|| self.pool.take(len))
    }
}
