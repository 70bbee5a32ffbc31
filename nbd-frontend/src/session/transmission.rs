//! The transmission phase: requests in, replies out in any order.
//!
//! One request is taken through these stages; a rejected one is answered after its payload was
//! skipped by the same reader, so that the stream stays in step:
//!
//! ```text
//! Header ──valid──▶ Held ──slot, bytes, buffer──▶ submitted          (no payload)
//!   │                                       └──▶ Payload ──full──▶ submitted
//!   │                                              │  ▲
//!   │                                              ▼  │ the caller receives into the buffer
//!   │                                              Lent
//!   ├──rejected──▶ Skip ──▶ error reply
//!   └──DISC, end of stream──▶ Draining ──nothing in flight──▶ closed
//! ```

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::in_flight::{Answer, InFlight, Pending, RequestHandle};
use super::limits::{DIRECT_RECEIVE_LEN_MIN, DIRECT_RECEIVE_TAIL_MIN};
use super::output::{Request, RequestKind, Wire};
use super::validate::{self, Fault, Plan};
use super::{Attachment, BufferPool, CloseReason, Completion, DirectReceive, Pause};
use crate::proto::constants::{PAYLOAD_LEN_MAX, command};
use crate::proto::reply::ReplyTo;
use crate::proto::request::RequestHeader;
use crate::proto::wire::Gather;

#[derive(Debug)]
pub(super) struct Transmission<B> {
    attachment: Attachment,
    header: Gather,
    stage: Stage<B>,
    in_flight: InFlight,
}

#[derive(Debug)]
enum Stage<B> {
    Header,
    Held {
        to: ReplyTo,
        plan: Plan,
    },
    Payload(Incoming<B>),
    Lent(WriteHead),
    Skip {
        missing: u64,
        to: ReplyTo,
        fault: Fault,
    },
    Draining(CloseReason),
}

/// A write whose payload is on its way.
#[derive(Debug)]
struct Incoming<B> {
    head: WriteHead,
    data: B,
    filled: usize,
}

#[derive(Debug, Clone, Copy)]
struct WriteHead {
    handle: RequestHandle,
    offset: u64,
    fua: bool,
}

/// Where the phase stands after the bytes given so far.
#[derive(Debug)]
pub(super) enum Progress {
    NeedsInput,
    Paused(Pause),
    Close(CloseReason),
}

/// Whether the stage machine goes on.
enum Turn {
    Again,
    Stop(Progress),
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Transmission<B> {
    pub(super) fn new(attachment: Attachment) -> Self {
        Self {
            attachment,
            header: Gather::default(),
            stage: Stage::Header,
            in_flight: InFlight::default(),
        }
    }

    pub(super) const fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub(super) const fn in_flight_count(&self) -> usize {
        self.in_flight.count()
    }

    pub(super) const fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining(_))
    }

    /// Takes bytes off the front of `input` until they run out or no further request fits.
    pub(super) fn advance<P: BufferPool<Buffer = B>, R>(
        &mut self,
        input: &mut &[u8],
        pool: &mut P,
        wire: &mut Wire<'_, B, R>,
    ) -> Progress {
        loop {
            let turn = match std::mem::replace(&mut self.stage, Stage::Header) {
                Stage::Header => self.on_header(input, wire),
                Stage::Held { to, plan } => self.on_held(to, plan, pool, wire),
                Stage::Payload(incoming) => self.on_payload(incoming, input, wire),
                Stage::Skip { missing, to, fault } => self.on_skip(missing, to, fault, input, wire),
                Stage::Lent(head) => {
                    self.stage = Stage::Lent(head);
                    Turn::Stop(Progress::Paused(Pause::DirectReceive))
                }
                Stage::Draining(reason) => {
                    // A client must not send anything after DISC; what it sends is ignored.
                    *input = &[];
                    self.drain(reason)
                }
            };
            if let Turn::Stop(progress) = turn {
                return progress;
            }
        }
    }

    fn on_header<R>(&mut self, input: &mut &[u8], wire: &mut Wire<'_, B, R>) -> Turn {
        if !wire.has_room() {
            return Turn::Stop(Progress::Paused(Pause::Unsent));
        }
        let format = self.attachment.style.request_format();
        if !self.header.fill(input, format.header_len()) {
            return Turn::Stop(Progress::NeedsInput);
        }
        let parsed = RequestHeader::parse(format, self.header.bytes());
        self.header.clear();
        match parsed {
            Err(magic) => Turn::Stop(Progress::Close(CloseReason::BadRequestMagic { magic })),
            Ok(header) => self.judge(&header, wire),
        }
    }

    fn judge<R>(&mut self, header: &RequestHeader, wire: &mut Wire<'_, B, R>) -> Turn {
        if header.command == command::DISC {
            self.stage = Stage::Draining(CloseReason::Disconnected);
            return Turn::Again;
        }
        let payload_len = header.payload_len(self.attachment.style.request_format());
        if payload_len > u64::from(PAYLOAD_LEN_MAX) {
            return Turn::Stop(Progress::Close(CloseReason::PayloadTooLong {
                len: payload_len,
            }));
        }
        let to = ReplyTo {
            cookie: header.cookie,
            offset: header.offset,
        };
        match validate::plan(header, &self.attachment) {
            Ok(Plan::Nothing) => wire.send(self.attachment.style.done(to)),
            Ok(plan) => self.stage = Stage::Held { to, plan },
            Err(fault) => {
                self.stage = Stage::Skip {
                    missing: payload_len,
                    to,
                    fault,
                }
            }
        }
        Turn::Again
    }

    /// Admits a request once a slot, its bytes and a buffer or room are there.
    fn on_held<P: BufferPool<Buffer = B>, R>(
        &mut self,
        to: ReplyTo,
        plan: Plan,
        pool: &mut P,
        wire: &mut Wire<'_, B, R>,
    ) -> Turn {
        let bytes = match plan {
            Plan::Read { len, .. } | Plan::Write { len, .. } => len,
            _ => 0,
        };
        let missing = if !self.in_flight.has_slot() {
            Some(Pause::Requests)
        } else if !self.in_flight.has_room_for(bytes) {
            Some(Pause::RequestBytes)
        } else {
            None
        };
        if let Some(pause) = missing {
            self.stage = Stage::Held { to, plan };
            return Turn::Stop(Progress::Paused(pause));
        }
        if let Plan::Write { offset, len, fua } = plan {
            return self.begin_write(to, plan, WriteRange { offset, len, fua }, pool);
        }
        if let Plan::Read { len, .. } = plan
            && !pool.reserve_read(usize::try_from(len).unwrap_or(usize::MAX))
        {
            self.stage = Stage::Held { to, plan };
            return Turn::Stop(Progress::Paused(Pause::Pool));
        }
        let (answer, kind) = match plan {
            Plan::Read { offset, len } => (Answer::Data { len }, RequestKind::Read { offset, len }),
            Plan::Flush => (Answer::Done, RequestKind::Flush),
            Plan::Trim { offset, len, fua } => {
                (Answer::Done, RequestKind::Trim { offset, len, fua })
            }
            Plan::WriteZeroes {
                offset,
                len,
                no_hole,
                fast,
                fua,
            } => (
                Answer::Done,
                RequestKind::WriteZeroes {
                    offset,
                    len,
                    no_hole,
                    fast,
                    fua,
                },
            ),
            Plan::BlockStatus {
                offset,
                len,
                contexts,
                one,
            } => (
                Answer::Status { contexts, len, one },
                RequestKind::BlockStatus {
                    offset,
                    len,
                    contexts,
                    one,
                },
            ),
            Plan::Nothing | Plan::Write { .. } => {
                unreachable!("answered in judge or begun above: {plan:?}")
            }
        };
        let handle = self.in_flight.insert(Pending { to, answer, bytes });
        wire.submit(Request {
            handle,
            export: self.attachment.export,
            kind,
        });
        Turn::Again
    }

    fn begin_write<P: BufferPool<Buffer = B>>(
        &mut self,
        to: ReplyTo,
        plan: Plan,
        write: WriteRange,
        pool: &mut P,
    ) -> Turn {
        let WriteRange { offset, len, fua } = write;
        let wanted = usize::try_from(len).unwrap_or(usize::MAX);
        let Some(data) = pool.take(wanted) else {
            self.stage = Stage::Held { to, plan };
            return Turn::Stop(Progress::Paused(Pause::Pool));
        };
        if data.as_ref().len() != wanted {
            return bug("the pool gave a buffer of another length");
        }
        let handle = self.in_flight.insert(Pending {
            to,
            answer: Answer::Done,
            bytes: len,
        });
        let head = WriteHead {
            handle,
            offset,
            fua,
        };
        self.stage = Stage::Payload(Incoming {
            head,
            data,
            filled: 0,
        });
        Turn::Again
    }

    fn on_payload<R>(
        &mut self,
        mut incoming: Incoming<B>,
        input: &mut &[u8],
        wire: &mut Wire<'_, B, R>,
    ) -> Turn {
        let tail = &mut incoming.data.as_mut()[incoming.filled..];
        let len = tail.len().min(input.len());
        let (head, rest) = input.split_at(len);
        tail[..len].copy_from_slice(head);
        *input = rest;
        incoming.filled += len;
        self.submit_if_full(incoming, wire)
    }

    fn submit_if_full<R>(&mut self, incoming: Incoming<B>, wire: &mut Wire<'_, B, R>) -> Turn {
        if incoming.filled < incoming.data.as_ref().len() {
            self.stage = Stage::Payload(incoming);
            return Turn::Stop(Progress::NeedsInput);
        }
        let WriteHead {
            handle,
            offset,
            fua,
        } = incoming.head;
        let kind = RequestKind::Write {
            offset,
            data: incoming.data,
            fua,
        };
        wire.submit(Request {
            handle,
            export: self.attachment.export,
            kind,
        });
        Turn::Again
    }

    fn on_skip<R>(
        &mut self,
        missing: u64,
        to: ReplyTo,
        fault: Fault,
        input: &mut &[u8],
        wire: &mut Wire<'_, B, R>,
    ) -> Turn {
        let here = u64::try_from(input.len()).unwrap_or(u64::MAX).min(missing);
        *input = &input[usize::try_from(here).unwrap_or(input.len())..];
        if here < missing {
            self.stage = Stage::Skip {
                missing: missing - here,
                to,
                fault,
            };
            return Turn::Stop(Progress::NeedsInput);
        }
        wire.send(self.attachment.style.error(to, fault.error, fault.text));
        Turn::Again
    }

    /// Takes no more requests; ends when none is in flight.
    fn drain(&mut self, reason: CloseReason) -> Turn {
        if self.in_flight.is_empty() {
            return Turn::Stop(Progress::Close(reason));
        }
        self.stage = Stage::Draining(reason);
        Turn::Stop(Progress::NeedsInput)
    }

    /// The client will send no more: a request that is not whole is dropped, the others finish.
    pub(super) fn handle_eof(&mut self) -> Progress {
        let reason = match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Payload(Incoming { head, .. }) | Stage::Lent(head) => {
                self.in_flight.remove(head.handle);
                CloseReason::PeerClosed
            }
            Stage::Draining(reason) => reason,
            Stage::Header | Stage::Held { .. } | Stage::Skip { .. } => CloseReason::PeerClosed,
        };
        match self.drain(reason) {
            Turn::Stop(progress) => progress,
            Turn::Again => Progress::NeedsInput,
        }
    }

    pub(super) fn begin_direct_receive(&mut self) -> Option<DirectReceive<B>> {
        let Stage::Payload(incoming) = &self.stage else {
            return None;
        };
        let len = incoming.data.as_ref().len();
        if len < DIRECT_RECEIVE_LEN_MIN || len - incoming.filled < DIRECT_RECEIVE_TAIL_MIN {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Payload(Incoming { head, data, filled }) => {
                self.stage = Stage::Lent(head);
                Some(DirectReceive { data, filled })
            }
            other => {
                self.stage = other;
                None
            }
        }
    }

    pub(super) fn end_direct_receive<R>(
        &mut self,
        receive: DirectReceive<B>,
        received: usize,
        wire: &mut Wire<'_, B, R>,
    ) -> Progress {
        let Stage::Lent(head) = self.stage else {
            return Progress::Close(CloseReason::Bug(
                "a direct receive ended that had not begun",
            ));
        };
        let DirectReceive { data, filled } = receive;
        let filled = filled.saturating_add(received);
        if filled > data.as_ref().len() {
            return Progress::Close(CloseReason::Bug("a direct receive exceeded its buffer"));
        }
        self.stage = Stage::Header;
        match self.submit_if_full(Incoming { head, data, filled }, wire) {
            Turn::Stop(progress) => progress,
            Turn::Again => Progress::NeedsInput,
        }
    }

    pub(super) fn complete<R: AsRef<[u8]>>(
        &mut self,
        handle: RequestHandle,
        completion: Completion<R>,
        wire: &mut Wire<'_, B, R>,
    ) -> Progress {
        let Some(pending) = self.in_flight.remove(handle) else {
            return Progress::Close(CloseReason::Bug("a completion for no request in flight"));
        };
        let (style, to) = (self.attachment.style, pending.to);
        match (pending.answer, completion) {
            (_, Completion::Failed(error)) => wire.send(style.error(to, error, error.text())),
            (Answer::Done, Completion::Done) => wire.send(style.done(to)),
            (Answer::Data { len }, Completion::Data(data)) => {
                let data_len = data.as_ref().len();
                if u32::try_from(data_len) != Ok(len) {
                    return Progress::Close(CloseReason::Bug("a read completed at wrong length"));
                }
                wire.send(style.data(to, len));
                wire.send_payload(data, data_len);
            }
            (Answer::Status { contexts, len, one }, Completion::Status(status)) => {
                let mut contexts = contexts.iter().peekable();
                while let Some((id, _)) = contexts.next() {
                    let extents = status.answer(id, len, one);
                    wire.send(style.block_status(to, id, &extents, contexts.peek().is_none()));
                }
            }
            (Answer::Done | Answer::Data { .. } | Answer::Status { .. }, _) => {
                return Progress::Close(CloseReason::Bug("a completion of the wrong kind"));
            }
        }
        match self.stage {
            Stage::Draining(reason) if self.in_flight.is_empty() => Progress::Close(reason),
            _ => Progress::NeedsInput,
        }
    }
}

/// Range and durability of a write.
#[derive(Debug, Clone, Copy)]
struct WriteRange {
    offset: u64,
    len: u32,
    fua: bool,
}

const fn bug(what: &'static str) -> Turn {
    Turn::Stop(Progress::Close(CloseReason::Bug(what)))
}
