//! One connection to the peer: its set-up, and frames out of its stream.

use replicator::io::{AlignedBuf, BufferPool, OpKey, SendQueue, Socket};
use replicator::protocol::Message;
use replicator::protocol::codec;
use replicator::protocol::frame::{FrameError, HEADER_LEN, Header};
use replicator::protocol::preamble::{PREAMBLE_LEN, PREAMBLE_REPLY_LEN};
use replicator::types::{SessionId, ViewNumber};

use super::secure_link::LinkTls;
use super::slots::Key;

/// Bytes received at once: a batch of a deep queue of small writes comes in one go.
const RECEIVE_LEN: usize = 256 << 10;
/// Shortest missing part of a payload worth a receive of its own, straight into its buffer.
const DIRECT_LEN_MIN: usize = 64 << 10;

/// See the module.
pub(super) struct Link {
    pub(super) socket: Socket,
    /// Known from the start where this side dials, after the preamble where it listens.
    pub(super) resource: Option<Key>,
    pub(super) phase: LinkPhase,
    pub(super) queue: SendQueue,
    /// What is received and sent is within it, once it is there.
    pub(super) tls: Option<Box<LinkTls>>,
    pub(super) incoming: Incoming,
    pub(super) closing: bool,
    pub(super) dirty: bool,
    /// Grows from one connection to the next.
    pub(super) born: u64,
    /// It comes from an address of the peer's: a flood from elsewhere does not drive it out.
    pub(super) of_peer: bool,
    /// Frame that is being received.
    partial: Option<Partial>,
}

/// How far a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkPhase {
    /// This side dials; the connection is being made.
    Connecting {
        operation: OpKey,
        session: SessionId,
    },
    /// This side dialled and asked for TLS; the answer to that is awaited.
    AwaitTls { session: SessionId },
    /// This side dialled; the answer to its preamble is awaited.
    AwaitReply { session: SessionId },
    /// The peer dialled; its preamble is awaited.
    AwaitPreamble,
    /// Frames go both ways.
    Up { session: SessionId },
}

/// The receiving side.
pub(super) enum Incoming {
    /// No receive in flight; `buffer[start..end]` is not taken yet.
    Here {
        buffer: AlignedBuf,
        start: usize,
        end: usize,
    },
    /// A receive is in flight, into the buffer behind what is not taken yet.
    Receiving,
    /// A receive is in flight, into the partial frame's payload; the stream's buffer waits here,
    /// empty.
    Direct { buffer: AlignedBuf },
}

/// A frame whose payload is not complete.
struct Partial {
    header: Header,
    /// `None` while the kernel receives into it.
    payload: Option<AlignedBuf>,
    filled: usize,
}

/// A receive for the backend.
pub(super) struct Receive {
    pub(super) buf: AlignedBuf,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) fill: bool,
}

/// Something complete on the stream.
#[derive(Debug)]
pub(super) enum Arrived {
    Preamble([u8; PREAMBLE_LEN]),
    Reply([u8; PREAMBLE_REPLY_LEN]),
    Frame(SessionId, Message),
}

impl Link {
    pub(super) fn new(
        socket: Socket,
        resource: Option<Key>,
        phase: LinkPhase,
        born: u64,
        pool: &BufferPool,
    ) -> Self {
        Self {
            socket,
            resource,
            phase,
            queue: SendQueue::default(),
            tls: None,
            incoming: Incoming::Here {
                buffer: pool.take(RECEIVE_LEN),
                start: 0,
                end: 0,
            },
            closing: false,
            dirty: false,
            born,
            of_peer: false,
            partial: None,
        }
    }

    /// The session, once frames go both ways.
    pub(super) fn session(&self) -> Option<SessionId> {
        match self.phase {
            LinkPhase::Up { session } => Some(session),
            _ => None,
        }
    }

    /// Whether everything that was received has been taken, and no receive is in flight.
    pub(super) fn is_taken(&self) -> bool {
        matches!(&self.incoming, Incoming::Here { start, end, .. } if start == end)
    }

    /// Queues a message of its session.
    pub(super) fn push(&mut self, session: SessionId, view: ViewNumber, message: &Message) {
        let encoded = codec::encode(session, view, message);
        match &mut self.tls {
            None => {
                self.queue.push(&encoded.header);
                if let Some(payload) = encoded.payload {
                    self.queue.push_shared(payload.bytes().clone());
                }
            }
            Some(secure) => {
                secure.tls.push(&encoded.header);
                if let Some(payload) = encoded.payload {
                    secure.tls.push_shared(payload.bytes().clone());
                }
            }
        }
    }

    /// Queues bytes that are no frame.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.queue.push(bytes),
            Some(secure) => secure.tls.push(bytes),
        }
    }

    /// The next complete thing in what was received.
    ///
    /// # Errors
    /// When what is there is no frame; the stream is of no use any more.
    pub(super) fn next(&mut self, pool: &BufferPool) -> Result<Option<Arrived>, FrameError> {
        let Incoming::Here { buffer, start, end } = &mut self.incoming else {
            return Ok(None);
        };
        let (bytes, start) = match &mut self.tls {
            None => (&buffer.as_ref()[*start..*end], start),
            Some(secure) => (&secure.plain[secure.taken..], &mut secure.taken),
        };
        match self.phase {
            LinkPhase::Connecting { .. } => Ok(None),
            LinkPhase::AwaitPreamble => Ok(bytes.first_chunk().map(|preamble| {
                *start += PREAMBLE_LEN;
                Arrived::Preamble(*preamble)
            })),
            LinkPhase::AwaitTls { .. } | LinkPhase::AwaitReply { .. } => {
                Ok(bytes.first_chunk().map(|reply| {
                    *start += PREAMBLE_REPLY_LEN;
                    Arrived::Reply(*reply)
                }))
            }
            LinkPhase::Up { .. } => {
                let mut rest = bytes;
                if self.partial.is_none() {
                    let Some((header, behind)) = bytes.split_first_chunk::<HEADER_LEN>() else {
                        return Ok(None);
                    };
                    let header = Header::parse(header)?;
                    *start += HEADER_LEN;
                    rest = behind;
                    let payload = Some(pool.take(header.payload_len()));
                    self.partial = Some(Partial {
                        header,
                        payload,
                        filled: 0,
                    });
                }
                let Some(partial) = &mut self.partial else {
                    return Ok(None);
                };
                *start += partial.fill(rest);
                self.take_complete()
            }
        }
    }

    fn take_complete(&mut self) -> Result<Option<Arrived>, FrameError> {
        let Some(partial) = self.partial.take_if(|partial| partial.missing() == 0) else {
            return Ok(None);
        };
        let Partial {
            header, payload, ..
        } = partial;
        let payload = payload.filter(|payload| !payload.is_empty());
        let payload = payload.map(AlignedBuf::freeze).unwrap_or_default();
        let message = Message::from_parts(&header, payload)?;
        Ok(Some(Arrived::Frame(header.session(), message)))
    }

    /// The receive to make when `next` had nothing; `None` while one is in flight.
    pub(super) fn begin_receive(&mut self) -> Option<Receive> {
        let Incoming::Here { .. } = self.incoming else {
            return None;
        };
        let Incoming::Here {
            mut buffer,
            start,
            end,
        } = std::mem::replace(&mut self.incoming, Incoming::Receiving)
        else {
            return None;
        };
        // What is within TLS has to be opened first.
        if let Some(partial) = self
            .partial
            .as_mut()
            .filter(|p| self.tls.is_none() && p.missing() >= DIRECT_LEN_MIN)
            && let Some(payload) = partial.payload.take()
        {
            debug_assert_eq!(start, end, "a partial payload took everything received");
            self.incoming = Incoming::Direct { buffer };
            let end = partial.header.payload_len();
            return Some(Receive {
                buf: payload,
                start: partial.filled,
                end,
                fill: true,
            });
        }
        buffer.as_mut().copy_within(start..end, 0);
        let (start, end) = (end - start, buffer.len());
        Some(Receive {
            buf: buffer,
            start,
            end,
            fill: false,
        })
    }

    /// Takes a receive back with `count` more bytes.
    pub(super) fn end_receive(&mut self, buf: AlignedBuf, start: usize, count: usize) {
        match std::mem::replace(&mut self.incoming, Incoming::Receiving) {
            Incoming::Direct { buffer } => {
                self.incoming = Incoming::Here {
                    buffer,
                    start: 0,
                    end: 0,
                };
                if let Some(partial) = &mut self.partial {
                    partial.payload = Some(buf);
                    partial.filled = start + count;
                }
            }
            Incoming::Receiving | Incoming::Here { .. } => {
                self.incoming = Incoming::Here {
                    buffer: buf,
                    start: 0,
                    end: start + count,
                };
            }
        }
    }
}

impl Partial {
    fn missing(&self) -> usize {
        self.header.payload_len() - self.filled
    }

    /// Copies what it misses from the front of `bytes`; how much that was.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let count = self.missing().min(bytes.len());
        if let Some(payload) = &mut self.payload {
            payload.as_mut()[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
        }
        self.filled += count;
        count
    }
}
