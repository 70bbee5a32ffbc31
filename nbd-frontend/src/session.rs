//! The server's side of one connection.
//!
//! [`Session`] is a value: bytes and completions go in, an [`Outbox`] fills. It owns the state of
//! the handshake and the requests in flight, and must not know who executes them. Invariant: the
//! outputs depend only on the bytes and completions and their order, never on how the bytes were
//! cut.

// SPDX-License-Identifier: MIT OR Apache-2.0

mod block_status;
mod in_flight;
pub mod limits;
mod negotiation;
mod output;
mod transmission;
mod validate;

use core::time::Duration;

use crate::export::{Access, ExportIndex, ExportList};
use crate::proto::error::NbdError;
use crate::proto::handshake;
use crate::proto::reply::ReplyStyle;
pub use block_status::{BlockStatus, Contexts};
pub use in_flight::RequestHandle;
use negotiation::{Negotiation, Security};
use output::Wire;
pub use output::{Outbox, Output, Request, RequestKind};
use transmission::Transmission;

/// Time a client has from connecting to the end of its handshake; the caller keeps the deadline and
/// closes the connection when [`Session::phase`] is still [`Phase::Handshake`] by then. QEMU's
/// server gives the same.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory that requests may take: where write payloads are received into, and room for what is
/// read.
pub trait BufferPool {
    /// A buffer. Dropping it gives it back.
    type Buffer: AsRef<[u8]> + AsMut<[u8]>;

    /// A buffer of exactly `len` bytes (1 to 64 MiB), content arbitrary. `None` when the pool is
    /// exhausted: the session then pauses with [`Pause::Pool`] until it is called again.
    fn take(&mut self, len: usize) -> Option<Self::Buffer>;

    /// Room for a read of `len` bytes, asked once before it is submitted. `false`
    /// pauses like an exhausted pool. The room is used until the reply has left for the client, or
    /// the request failed, or the connection is gone; the caller counts that.
    fn reserve_read(&mut self, len: usize) -> bool {
        let _ = len;
        true
    }
}

/// How a submitted request ended. `R` is the caller's data for reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion<R> {
    /// A write, flush, trim or write-zeroes succeeded.
    Done,
    /// A read succeeded with all its bytes.
    Data(R),
    /// What is known for a block status.
    Status(BlockStatus),
    /// The request failed. The guest sees this at once; during a role change hold the request or
    /// close the connection instead.
    Failed(NbdError),
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client gave the handshake up.
    #[error("client aborted the handshake")]
    Aborted,
    /// The client said goodbye; everything outstanding was answered.
    #[error("client disconnected")]
    Disconnected,
    /// The client's stream ended without goodbye.
    #[error("connection closed by the client")]
    PeerClosed,
    /// EXPORT_NAME while nothing may be served; that option knows no error reply.
    #[error("refused: this node may not serve now")]
    Refused,
    /// EXPORT_NAME for an export that does not exist.
    #[error("client asked for an unknown export by EXPORT_NAME")]
    UnknownExport,
    /// EXPORT_NAME after extended headers, which exclude it.
    #[error("client used EXPORT_NAME with extended headers")]
    ExportNameWithExtendedHeaders,
    /// Client flags that were not offered.
    #[error("unknown client flags {flags:#x}")]
    UnknownClientFlags {
        /// The whole word.
        flags: u32,
    },
    /// An option without its magic.
    #[error("option without magic")]
    BadOptionMagic,
    /// EXPORT_NAME, which can tell no error, before the TLS that this connection must have.
    #[error("client used EXPORT_NAME before TLS")]
    TlsRequired,
    /// Bytes in clear text behind STARTTLS: somebody's on the way, or a client that does not wait.
    /// Taking them for the client's own would let whoever put them there speak in its name
    /// (CVE-2021-3716).
    #[error("clear text behind STARTTLS")]
    ClearTextBehindStartTls,
    /// An option longer than [`limits::OPTION_LEN_MAX`].
    #[error("option of {len} bytes, limit {}", limits::OPTION_LEN_MAX)]
    OptionTooLong {
        /// Its length in bytes.
        len: u32,
    },
    /// More options than [`limits::OPTION_COUNT_MAX`].
    #[error("more than {} options", limits::OPTION_COUNT_MAX)]
    TooManyOptions,
    /// An option other than EXPORT_NAME from a client that did not choose fixed newstyle.
    #[error("option in plain newstyle negotiation")]
    OptionInPlainNewstyle,
    /// A request without its magic.
    #[error("request magic is {magic:#010x}")]
    BadRequestMagic {
        /// What was there instead.
        magic: u32,
    },
    /// A payload above what is accepted.
    #[error("payload of {len} bytes, limit 64 MiB")]
    PayloadTooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// The caller broke the session's contract; only this connection suffers.
    #[error("bug in the server: {0}")]
    Bug(&'static str),
}

/// Why a session takes no further bytes for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// [`limits::REQUEST_COUNT_MAX`] requests are in flight.
    Requests,
    /// [`limits::REQUEST_BYTES_MAX`] bytes are in flight.
    RequestBytes,
    /// [`limits::UNSENT_BYTES_MAX`] bytes wait for the client to read.
    Unsent,
    /// The buffer pool is exhausted.
    Pool,
    /// The caller receives into a payload, see [`Session::begin_direct_receive`].
    DirectReceive,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Options; the handshake deadline runs.
    Handshake,
    /// Attached to an export.
    Transmission(ExportIndex),
    /// The client is gone or said goodbye; requests in flight finish.
    Draining(ExportIndex),
    /// [`Output::Close`] was emitted.
    Closed,
}

/// A write payload lent to the caller, to receive into it without a copy.
///
/// The caller owns it until [`Session::end_direct_receive`], so that a kernel may write into it
/// whatever happens to the session meanwhile.
#[derive(Debug)]
pub struct DirectReceive<B> {
    data: B,
    filled: usize,
}

impl<B> DirectReceive<B> {
    /// The buffer and how many bytes at its front are filled, for a kernel that takes buffers by
    /// value.
    #[must_use]
    pub fn into_parts(self) -> (B, usize) {
        (self.data, self.filled)
    }

    /// What [`Self::into_parts`] took apart.
    #[must_use]
    pub const fn from_parts(data: B, filled: usize) -> Self {
        Self { data, filled }
    }
}

impl<B: AsMut<[u8]>> DirectReceive<B> {
    /// The missing part of the payload; never empty. Bytes go to its front.
    pub fn tail(&mut self) -> &mut [u8] {
        &mut self.data.as_mut()[self.filled..]
    }
}

/// What the handshake agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attachment {
    export: ExportIndex,
    size: u64,
    access: Access,
    style: ReplyStyle,
    contexts: Contexts,
}

/// The server's side of one connection. `B` is the caller's buffer for write payloads.
///
/// The caller's part:
///
/// - Drain the [`Outbox`] after each call, in order. After [`Output::Close`] send what is queued,
///   shut the sending side down, and close; completions that still arrive may be given or dropped.
/// - Receive only while [`Self::can_receive`]. Bytes that [`Self::handle_bytes`] did not take are
///   kept and given again.
/// - While [`Self::pause`] is `Some`, call [`Self::handle_bytes`] with the kept bytes (none, if
///   there are none) after each [`Self::complete`], [`Self::note_sent`] or returned buffer.
/// - Report every byte that left with [`Self::note_sent`], or the session stalls.
/// - From [`Output::StartTls`] on everything but what was emitted before goes through TLS, both
///   ways; the session is given and gives what is inside it.
/// - Answer each [`Output::Submit`] once. To cut a client off, drop session and socket.
#[derive(Debug)]
pub struct Session<B> {
    exports: ExportList,
    state: State<B>,
    unsent: usize,
    pause: Option<Pause>,
}

#[derive(Debug)]
enum State<B> {
    Negotiating(Negotiation),
    Transmitting(Transmission<B>),
    Closed,
}

/// A step's effect on the whole session.
enum Step {
    Stay(Option<Pause>),
    Attach(Attachment),
    StartTls,
    Close(CloseReason),
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Session<B> {
    /// Begins a connection in clear text: emits the greeting.
    ///
    /// An export with a [`Refusal`](crate::Refusal) is answered ERR_POLICY and its text to INFO and
    /// GO, and EXPORT_NAME by closing.
    pub fn new<R>(exports: ExportList, out: &mut Outbox<B, R>) -> Self {
        Self::begin(exports, Security::Clear, out)
    }

    /// Begins a connection that must have TLS: emits the greeting. Until [`Output::StartTls`] every
    /// option but STARTTLS and ABORT is refused, and there is nothing to offer; see
    /// [`Self::note_secured`].
    pub fn new_awaiting_tls<R>(out: &mut Outbox<B, R>) -> Self {
        Self::begin(ExportList::empty(), Security::TlsWanted, out)
    }

    fn begin<R>(exports: ExportList, security: Security, out: &mut Outbox<B, R>) -> Self {
        let mut session = Self {
            exports,
            state: State::Negotiating(Negotiation::new(security)),
            unsent: 0,
            pause: None,
        };
        session.wire(out).send(handshake::greeting());
        session
    }

    /// The TLS that [`Output::StartTls`] asked for stands, and the client is known: what it may ask
    /// for. Whatever was negotiated before is forgotten. Bytes that are given before this close the
    /// connection.
    pub fn note_secured<R>(&mut self, exports: ExportList, out: &mut Outbox<B, R>) {
        match &mut self.state {
            State::Negotiating(negotiation) if negotiation.is_starting_tls() => {
                negotiation.restart_secured();
                self.exports = exports;
            }
            State::Closed => {}
            State::Negotiating(_) | State::Transmitting(_) => {
                self.apply(Step::Close(CloseReason::Bug("TLS without STARTTLS")), out);
            }
        }
    }

    /// Takes bytes from the client; how many it took. Less than all only while [`Self::pause`] is
    /// `Some`; give the rest again then.
    pub fn handle_bytes<P: BufferPool<Buffer = B>, R>(
        &mut self,
        bytes: &[u8],
        pool: &mut P,
        out: &mut Outbox<B, R>,
    ) -> usize {
        let mut input = bytes;
        loop {
            let mut wire = Wire {
                unsent: &mut self.unsent,
                out,
            };
            let step = match &mut self.state {
                State::Negotiating(negotiation) => negotiation
                    .advance(&self.exports, &mut input, &mut wire)
                    .into(),
                State::Transmitting(transmission) => {
                    transmission.advance(&mut input, pool, &mut wire).into()
                }
                State::Closed => return bytes.len(),
            };
            if !self.apply(step, out) {
                return bytes.len() - input.len();
            }
        }
    }

    /// The client's stream ended. Requests in flight still finish; then the session closes. Give
    /// bytes kept from a pause first, and end a direct receive first.
    pub fn handle_eof<R>(&mut self, out: &mut Outbox<B, R>) {
        let step = match &mut self.state {
            State::Negotiating(_) => Step::Close(CloseReason::PeerClosed),
            State::Transmitting(transmission) => transmission.handle_eof().into(),
            State::Closed => return,
        };
        self.apply(step, out);
    }

    /// A submitted request ended; emits its reply.
    ///
    /// A handle that is not in flight, data of another length than was asked for, or an answer of
    /// the wrong kind closes this connection with [`CloseReason::Bug`].
    pub fn complete<R: AsRef<[u8]>>(
        &mut self,
        handle: RequestHandle,
        completion: Completion<R>,
        out: &mut Outbox<B, R>,
    ) {
        let mut wire = Wire {
            unsent: &mut self.unsent,
            out,
        };
        let step = match &mut self.state {
            State::Transmitting(transmission) => {
                match transmission.complete(handle, completion, &mut wire) {
                    transmission::Progress::Close(reason) => Step::Close(reason),
                    // A completion does not lift a pause by itself: the kept bytes come first.
                    _ => return,
                }
            }
            State::Negotiating(_) => {
                Step::Close(CloseReason::Bug("a completion during the handshake"))
            }
            State::Closed => return,
        };
        self.apply(step, out);
    }

    /// `len` bytes of what was emitted have left for the client.
    pub const fn note_sent(&mut self, len: usize) {
        self.unsent = self.unsent.saturating_sub(len);
    }

    /// Lends out the payload being received, when it is long and enough of it is missing
    /// ([`limits::DIRECT_RECEIVE_LEN_MIN`], [`limits::DIRECT_RECEIVE_TAIL_MIN`]). Ask when all
    /// bytes received so far were taken.
    pub fn begin_direct_receive(&mut self) -> Option<DirectReceive<B>> {
        let State::Transmitting(transmission) = &mut self.state else {
            return None;
        };
        let lent = transmission.begin_direct_receive()?;
        self.pause = Some(Pause::DirectReceive);
        Some(lent)
    }

    /// Takes the payload back with `received` more bytes at the front of its tail; 0 is fine. On a
    /// closed session the buffer is just dropped.
    pub fn end_direct_receive<R>(
        &mut self,
        receive: DirectReceive<B>,
        received: usize,
        out: &mut Outbox<B, R>,
    ) {
        let mut wire = Wire {
            unsent: &mut self.unsent,
            out,
        };
        let step = match &mut self.state {
            State::Transmitting(transmission) => transmission
                .end_direct_receive(receive, received, &mut wire)
                .into(),
            State::Negotiating(_) => {
                Step::Close(CloseReason::Bug("a direct receive during the handshake"))
            }
            State::Closed => return,
        };
        self.apply(step, out);
    }

    /// Whether the caller should receive from the client now.
    #[must_use]
    pub const fn can_receive(&self) -> bool {
        let open = match &self.state {
            State::Negotiating(_) => true,
            State::Transmitting(transmission) => !transmission.is_draining(),
            State::Closed => false,
        };
        open && self.pause.is_none()
    }

    /// Why bytes are not taken now, as of the last call that took bytes.
    #[must_use]
    pub const fn pause(&self) -> Option<Pause> {
        self.pause
    }

    /// Where the connection stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match &self.state {
            State::Negotiating(_) => Phase::Handshake,
            State::Transmitting(transmission) if transmission.is_draining() => {
                Phase::Draining(transmission.attachment().export)
            }
            State::Transmitting(transmission) => {
                Phase::Transmission(transmission.attachment().export)
            }
            State::Closed => Phase::Closed,
        }
    }

    /// Requests admitted and not completed, with the write being received.
    #[must_use]
    pub const fn in_flight_count(&self) -> usize {
        match &self.state {
            State::Transmitting(transmission) => transmission.in_flight_count(),
            State::Negotiating(_) | State::Closed => 0,
        }
    }

    /// Bytes emitted and not reported as sent.
    #[must_use]
    pub const fn unsent_bytes(&self) -> usize {
        self.unsent
    }

    const fn wire<'a, R>(&'a mut self, out: &'a mut Outbox<B, R>) -> Wire<'a, B, R> {
        Wire {
            unsent: &mut self.unsent,
            out,
        }
    }

    /// Applies a step; whether the new state should look at the rest of the input.
    fn apply<R>(&mut self, step: Step, out: &mut Outbox<B, R>) -> bool {
        match step {
            Step::Stay(pause) => {
                self.pause = pause;
                false
            }
            Step::Attach(attachment) => {
                self.state = State::Transmitting(Transmission::new(attachment));
                true
            }
            Step::StartTls => {
                self.pause = None;
                out.push(Output::StartTls);
                true
            }
            Step::Close(reason) => {
                self.state = State::Closed;
                self.pause = None;
                out.push(Output::Close(reason));
                true
            }
        }
    }
}

impl From<negotiation::Progress> for Step {
    fn from(progress: negotiation::Progress) -> Self {
        match progress {
            negotiation::Progress::NeedsInput => Self::Stay(None),
            negotiation::Progress::Paused(pause) => Self::Stay(Some(pause)),
            negotiation::Progress::Attached(attachment) => Self::Attach(attachment),
            negotiation::Progress::StartTls => Self::StartTls,
            negotiation::Progress::Close(reason) => Self::Close(reason),
        }
    }
}

impl From<transmission::Progress> for Step {
    fn from(progress: transmission::Progress) -> Self {
        match progress {
            transmission::Progress::NeedsInput => Self::Stay(None),
            transmission::Progress::Paused(pause) => Self::Stay(Some(pause)),
            transmission::Progress::Close(reason) => Self::Close(reason),
        }
    }
}
