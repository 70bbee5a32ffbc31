//! One NBD client: its session, its socket, and what is on its way in and out.

use std::collections::VecDeque;

use bytes::Bytes;
use nbd_frontend::{Phase, RequestHandle, Session};
use replicator::io::{AlignedBuf, BUFFER_ALIGN, BufferPool, SendQueue, Socket};
use replicator::types::ByteOffset;

use super::slots::Key;
use super::standing::Standing;
use super::tls::Tls;
use crate::daemon::api::NbdClient;

/// Bytes received at once: the requests of a deep queue of small writes come in one go.
const RECEIVE_LEN: usize = 256 << 10;
/// The same during the handshake, where hundreds of idle connections may be open.
const RECEIVE_LEN_HANDSHAKE: usize = 4 << 10;

/// Memory of all guests together: what they write, what was read for them and they have not taken,
/// and what they are received into. Beyond it their requests wait. Two clients with their largest
/// requests fit; a thousand with small ones do too.
pub(super) const GUEST_BYTES_MAX: usize = 256 << 20;
/// Of these, what long receive buffers may leave taken: connections that only idle must not keep
/// the others from their payloads. Beyond it a client keeps the short one of its handshake.
const RECEIVE_BYTES_MAX: usize = GUEST_BYTES_MAX / 2;
/// Of these, what writes held by `suspend-io` may take, of all resources together: it may last, and
/// must not keep other resources' guests from theirs. Beyond it the writes of resources that hold
/// some stay in their sockets, and what comes behind them.
pub(super) const SUSPENDED_BYTES_MAX: usize = GUEST_BYTES_MAX / 4;
/// Up to this length a client with nothing else in flight gets its buffer all the same, so that
/// clients which never read their answers cannot starve the others.
const LONE_REQUEST_LEN_MAX: usize = 1 << 20;
/// What this may come to beyond [`GUEST_BYTES_MAX`]; many clients have a shorter request each.
const LONE_BYTES_MAX: usize = 128 << 20;

/// A guest request in an engine's hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestRef {
    pub(super) client: Key,
    pub(super) handle: RequestHandle,
    /// Length of a read; 0 for others.
    pub(super) read_len: usize,
    /// What a block status found so far.
    pub(super) status: Option<Key>,
}

/// See the module.
pub(super) struct Client {
    /// `None`: came by TCP, and has not chosen.
    pub(super) resource: Option<Key>,
    /// What it may choose from: resources, and places of their volumes, in the order of its session's
    /// exports.
    pub(super) choice: Vec<(Key, usize)>,
    /// The volume it chose, once it has: no request of it is carried out before.
    pub(super) chosen: Option<Chosen>,
    pub(super) tls: Option<Box<Tls>>,
    pub(super) socket: Socket,
    pub(super) session: Session<AlignedBuf>,
    pub(super) queue: SendQueue,
    pub(super) incoming: Incoming,
    pub(super) identity: NbdClient,
    /// It sent as much at once as it could: the next receive gets the long buffer.
    pub(super) sends_much: bool,
    pub(super) reads: ReadRoom,
    /// The session is over; what is queued still goes out.
    pub(super) closing: bool,
    pub(super) dirty: bool,
    /// It waits for buffers to come back.
    pub(super) starved: bool,
    /// Grows from one connection to the next.
    pub(super) born: u64,
    /// As it was noted last.
    pub(super) standing: Option<Standing>,
    /// What is in an engine's hands, by slot of the session; bounded by what that has in flight.
    requests: Vec<Option<Key>>,
}

/// A volume of the client's resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    /// Its place in the row.
    pub(super) place: usize,
    /// Where it starts there.
    pub(super) start: ByteOffset,
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
        resource: Option<Key>,
        socket: Socket,
        session: Session<AlignedBuf>,
        identity: NbdClient,
        born: u64,
        buffers: &GuestBuffers,
    ) -> Self {
        let buffer = buffers.pool.take(RECEIVE_LEN_HANDSHAKE);
        Self {
            resource,
            choice: Vec::new(),
            chosen: None,
            tls: None,
            socket,
            session,
            queue: SendQueue::default(),
            incoming: Incoming::Here {
                buffer,
                start: 0,
                end: 0,
            },
            identity,
            sends_much: false,
            reads: ReadRoom::default(),
            closing: false,
            dirty: false,
            starved: false,
            born,
            standing: None,
            requests: Vec::new(),
        }
    }

    /// How far it is.
    pub(super) fn standing(&self) -> Standing {
        if self.is_attached() {
            Standing::Attached
        } else if self.is_shaking_hands() {
            Standing::Greeting
        } else {
            Standing::Leaving
        }
    }

    /// An engine has it.
    pub(super) fn note_submitted(&mut self, handle: RequestHandle, request: Key) {
        let slot = handle.slot() as usize;
        if slot >= self.requests.len() {
            self.requests.resize(slot + 1, None);
        }
        self.requests[slot] = Some(request);
    }

    /// It was answered.
    pub(super) fn note_completed(&mut self, handle: RequestHandle) {
        if let Some(request) = self.requests.get_mut(handle.slot() as usize) {
            *request = None;
        }
    }

    /// What engines have of it.
    pub(super) fn requests(&self) -> impl Iterator<Item = Key> {
        self.requests.iter().copied().flatten()
    }

    pub(super) fn is_shaking_hands(&self) -> bool {
        self.session.phase() == Phase::Handshake && !self.closing
    }

    /// Past its handshake, and still there: one that only waits for its last answers does not keep
    /// a resource from being demoted.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.session.phase(), Phase::Transmission(_))
    }

    /// Queues bytes for it.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.queue.push(bytes),
            Some(tls) => tls.push(bytes),
        }
    }

    /// The same by handle.
    pub(super) fn push_shared(&mut self, bytes: Bytes) {
        match &mut self.tls {
            None => self.queue.push_shared(bytes),
            Some(tls) => tls.push_shared(bytes),
        }
    }

    /// The session is over: what is queued still goes out.
    pub(super) fn close(&mut self) {
        self.closing = true;
        if let Some(tls) = &mut self.tls {
            tls.say_farewell();
        }
    }

    /// The buffer for the next receive of the stream.
    pub(super) fn receive_buffer(&self, buffer: AlignedBuf, buffers: &GuestBuffers) -> AlignedBuf {
        let longer = self.sends_much && self.is_attached() && buffer.len() < RECEIVE_LEN;
        if longer && buffers.taken() + RECEIVE_LEN <= RECEIVE_BYTES_MAX {
            buffers.pool.take(RECEIVE_LEN)
        } else {
            buffer
        }
    }

    /// Nothing of it waits for an engine, or for the client to take it.
    pub(super) fn has_nothing_under_way(&self) -> bool {
        self.session.in_flight_count() == 0 && self.reads.room == 0
    }

    /// A read was answered: its room is used until the answer has left.
    pub(super) fn note_answered(&mut self, read_len: usize) {
        if read_len > 0 {
            let end = self.reads.sent + self.session.unsent_bytes() as u64;
            self.reads.answers.push_back((end, room_of(read_len)));
        }
    }

    /// `len` bytes have left; the room that came free.
    pub(super) fn note_sent(&mut self, len: usize) -> usize {
        self.session.note_sent(len);
        self.reads.sent += len as u64;
        let sent = self.reads.sent;
        let mut freed = 0;
        while let Some((end, room)) = self.reads.answers.front()
            && *end <= sent
        {
            freed += room;
            self.reads.answers.pop_front();
        }
        self.reads.room -= freed;
        freed
    }
}

/// What a client's reads take of [`GUEST_BYTES_MAX`].
#[derive(Debug, Default)]
pub(super) struct ReadRoom {
    /// In bytes, of reads under way and of answers that have not left.
    pub(super) room: usize,
    /// Bytes that have left since the connection began.
    sent: u64,
    /// Answers that have not: where they end in the stream, and their room.
    answers: VecDeque<(u64, usize)>,
}

/// Bytes that a read of `len` may hold: one block more than it is long when it is not aligned, in a
/// buffer of the pool's classes.
pub(super) fn room_of(read_len: usize) -> usize {
    match read_len {
        0 => 0,
        len => BufferPool::footprint(len + BUFFER_ALIGN),
    }
}

/// The memory of guests.
#[derive(Default)]
pub(super) struct GuestBuffers {
    /// What they write and are received into.
    pool: BufferPool,
    /// What is read for them, or will be.
    read_room: usize,
    /// Of that, what the client served now was given.
    granted: usize,
    /// The longest request that the client served now gets room for in any case: it has nothing
    /// under way.
    lone_len_max: usize,
    /// The client served now is of a suspended resource, and these hold as much as they may.
    suspended_full: bool,
}

impl GuestBuffers {
    /// Bytes in use.
    pub(super) fn taken(&self) -> usize {
        self.pool.out_bytes() + self.read_room
    }

    /// What held writes take, if the client served next has a part in it.
    pub(super) fn note_suspended(&mut self, bytes: usize) {
        self.suspended_full = bytes >= SUSPENDED_BYTES_MAX;
    }

    /// Whatever is taken next is for one client of so many.
    pub(super) fn begin_serving(&mut self, client: &Client, clients: usize) {
        self.lone_len_max = match client.has_nothing_under_way() {
            true => LONE_REQUEST_LEN_MAX.min(LONE_BYTES_MAX / clients.max(1)),
            false => 0,
        };
        self.granted = 0;
    }

    /// The room for reads that it was given.
    pub(super) fn end_serving(&mut self) -> usize {
        std::mem::take(&mut self.granted)
    }

    /// Room for reads is not used any more.
    pub(super) fn free_read_room(&mut self, room: usize) {
        self.read_room -= room;
    }

    fn has_room_for(&mut self, len: usize, room: usize) -> bool {
        let lone = len <= std::mem::take(&mut self.lone_len_max);
        lone || self.taken() + room <= GUEST_BYTES_MAX
    }
}

impl nbd_frontend::BufferPool for GuestBuffers {
    type Buffer = AlignedBuf;

    fn take(&mut self, len: usize) -> Option<AlignedBuf> {
        let fits = !self.suspended_full && self.has_room_for(len, BufferPool::footprint(len));
        fits.then(|| self.pool.take(len))
    }

    fn reserve_read(&mut self, len: usize) -> bool {
        let room = room_of(len);
        let fits = self.has_room_for(len, room);
        if fits {
            self.read_room += room;
            self.granted += room;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use nbd_frontend::BufferPool as _;

    use super::*;

    #[test]
    fn writes_that_are_held_do_not_take_all_the_memory_of_guests() {
        let mut buffers = GuestBuffers::default();
        buffers.note_suspended(SUSPENDED_BYTES_MAX - 1);
        assert!(buffers.take(4096).is_some());
        buffers.note_suspended(SUSPENDED_BYTES_MAX);
        assert!(buffers.take(4096).is_none());
        assert!(buffers.reserve_read(4096), "a read takes none of it");
        buffers.note_suspended(0);
        assert!(buffers.take(4096).is_some());
    }
}
