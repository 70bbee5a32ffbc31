//! What a session asks of its caller.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::CloseReason;
use super::block_status::Contexts;
use super::in_flight::RequestHandle;
use crate::export::ExportIndex;
use crate::proto::wire::WireBytes;

/// A request for the engine. It must be answered exactly once by
/// [`Session::complete`](super::Session::complete), in any order, unless the session was closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<B> {
    /// Names the request in its completion. Cookies do not: two requests may carry the same.
    pub handle: RequestHandle,
    /// The export the connection is attached to.
    pub export: ExportIndex,
    /// What to do.
    pub kind: RequestKind<B>,
}

/// What a request does. Ranges lie inside the export and are not empty; they need not be aligned.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestKind<B> {
    /// Answer with [`Completion::Data`](super::Completion::Data) of exactly `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most 64 MiB.
        len: u32,
    },
    /// Write all of `data`.
    Write {
        /// First byte.
        offset: u64,
        /// The payload, as long as the write.
        data: B,
        /// Complete only when durable.
        fua: bool,
    },
    /// Complete when every write completed before this was submitted, on any connection, is
    /// durable.
    Flush,
    /// The range's content is no longer needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Complete only when durable.
        fua: bool,
    },
    /// The range must read as zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The range must stay allocated.
        no_hole: bool,
        /// Fail with [`NbdError::NotSupported`](crate::NbdError::NotSupported), at once and with
        /// nothing changed, unless this is faster than writing as many bytes.
        fast: bool,
        /// Complete only when durable.
        fua: bool,
    },
    /// Answer with [`Completion::Status`](super::Completion::Status).
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What is asked about; not empty.
        contexts: Contexts,
        /// Only the first extent of each context is wanted.
        one: bool,
    },
}

/// One thing for the caller to do. `B` is its buffer for write payloads, `R` its data for reads.
#[derive(Debug)]
pub enum Output<B, R> {
    /// Send these bytes.
    Send(WireBytes),
    /// Send these bytes: the data of a completed read, right after the `Send` before it.
    SendPayload(R),
    /// Execute this.
    Submit(Request<B>),
    /// Send what was asked before as it is, then begin TLS as its server; see
    /// [`Session::note_secured`](super::Session::note_secured).
    StartTls,
    /// Send what was asked before, then close the connection. Nothing follows.
    Close(CloseReason),
}

/// The caller's queue of outputs, in order. A session only appends; the caller drains it after each
/// call and reuses it, so that steady traffic allocates nothing.
#[derive(Debug)]
pub struct Outbox<B, R>(Vec<Output<B, R>>);

impl<B, R> Outbox<B, R> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes all outputs in order and leaves the queue empty.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Output<B, R>> {
        self.0.drain(..)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, output: Output<B, R>) {
        self.0.push(output);
    }
}

impl<B, R> Default for Outbox<B, R> {
    fn default() -> Self {
        Self::new()
    }
}

/// The outgoing side of a connection while one input is handled: counts what is sent.
pub(super) struct Wire<'a, B, R> {
    pub(super) unsent: &'a mut usize,
    pub(super) out: &'a mut Outbox<B, R>,
}

impl<B, R> Wire<'_, B, R> {
    pub(super) fn send(&mut self, bytes: WireBytes) {
        *self.unsent = self.unsent.saturating_add(bytes.len());
        self.out.push(Output::Send(bytes));
    }

    pub(super) fn send_payload(&mut self, payload: R, len: usize) {
        *self.unsent = self.unsent.saturating_add(len);
        self.out.push(Output::SendPayload(payload));
    }

    pub(super) fn submit(&mut self, request: Request<B>) {
        self.out.push(Output::Submit(request));
    }

    pub(super) fn has_room(&self) -> bool {
        *self.unsent <= super::limits::UNSENT_BYTES_MAX
    }
}
