//! A connection in its transmission phase. Whatever it receives is held against the rules for reply
//! messages, whichever case is running.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;

use crate::case::{Verdict, ensure, fail, same};
use crate::conn::Conn;
use crate::target::Facts;
use crate::wire::{Reader, Request, Style, cmd, err, flag};

/// See the module.
pub(crate) struct Attached {
    pub(crate) conn: Conn,
    pub(crate) style: Style,
    pub(crate) facts: Facts,
    next_cookie: u64,
    outstanding: BTreeMap<u64, (Request, Answer)>,
    finished: BTreeMap<u64, Answer>,
}

/// A whole reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 0 for success.
    pub(crate) error: u32,
    /// Of a read.
    pub(crate) data: Vec<u8>,
    /// Bytes of `data` that chunks gave.
    covered: Vec<(u64, u64)>,
    /// Of a block status: context id, then length and status of each extent.
    pub(crate) contexts: Vec<(u32, Vec<(u64, u64)>)>,
    /// Chunks with content.
    pub(crate) content_chunks: usize,
    /// Whether it was a simple reply.
    pub(crate) is_simple: bool,
}

/// Longest payload of a chunk without data.
const PLAIN_PAYLOAD_LEN_MAX: u64 = 32 << 20;

impl Attached {
    pub(crate) fn new(conn: Conn, style: Style, facts: Facts) -> Self {
        Self {
            conn,
            style,
            facts,
            next_cookie: 0x0102_0304_0506_0708,
            outstanding: BTreeMap::new(),
            finished: BTreeMap::new(),
        }
    }

    /// Sends a request and returns its cookie. A write's payload is `data`; others have none.
    pub(crate) fn submit(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
        data: &[u8],
    ) -> Verdict<u64> {
        self.next_cookie = self.next_cookie.wrapping_add(0x1111_1111_1111);
        let cookie = self.next_cookie;
        let is_write = command == cmd::WRITE && self.style == Style::Extended;
        let request = Request {
            command,
            flags: flags | if is_write { flag::PAYLOAD_LEN } else { 0 },
            cookie,
            offset,
            len,
        };
        self.submit_as(request, data)?;
        Ok(cookie)
    }

    /// The same with everything chosen by the caller.
    pub(crate) fn submit_as(&mut self, request: Request, data: &[u8]) -> Verdict {
        self.expect_outstanding(request);
        let mut bytes = request.encode(self.style);
        bytes.extend_from_slice(data);
        self.conn.send(&bytes)
    }

    /// Notes a request that the caller sends by itself.
    pub(crate) fn expect_outstanding(&mut self, request: Request) {
        self.outstanding
            .insert(request.cookie, (request, Answer::default()));
    }

    /// The answer to a request, whatever else is answered first.
    pub(crate) fn answer(&mut self, cookie: u64) -> Verdict<Answer> {
        loop {
            if let Some(answer) = self.finished.remove(&cookie) {
                return Ok(answer);
            }
            self.receive()?;
        }
    }

    /// Sends a request without payload; its answer.
    pub(crate) fn ask(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Verdict<Answer> {
        let cookie = self.submit(command, flags, offset, len, &[])?;
        self.answer(cookie)
    }

    /// The same; only its error.
    pub(crate) fn error_of(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Verdict<u32> {
        Ok(self.ask(command, flags, offset, len)?.error)
    }

    pub(crate) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> Verdict<u32> {
        let cookie = self.submit(cmd::WRITE, flags, offset, data.len() as u64, data)?;
        Ok(self.answer(cookie)?.error)
    }

    /// A write that must succeed.
    pub(crate) fn put(&mut self, offset: u64, data: &[u8]) -> Verdict {
        same("error of a write", self.write(0, offset, data)?, err::NONE)
    }

    /// A read that must succeed.
    pub(crate) fn get(&mut self, offset: u64, len: u64) -> Verdict<Vec<u8>> {
        let answer = self.ask(cmd::READ, 0, offset, len)?;
        same("error of a read", answer.error, err::NONE)?;
        Ok(answer.data)
    }

    /// What is there must be this.
    pub(crate) fn expect_data(&mut self, offset: u64, wanted: &[u8]) -> Verdict {
        let found = self.get(offset, wanted.len() as u64)?;
        match found.iter().zip(wanted).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => fail(format!("other data from byte {} on", offset + at as u64)),
        }
    }

    /// A request that must fail with `error`, after which the connection goes on.
    pub(crate) fn expect_error(
        &mut self,
        command: u16,
        flags: u16,
        range: (u64, u64),
        error: u32,
    ) -> Verdict {
        let found = self.error_of(command, flags, range.0, range.1)?;
        same("error", found, error)?;
        self.expect_alive()
    }

    /// The same for a write, whose payload must be consumed.
    pub(crate) fn expect_write_error(
        &mut self,
        flags: u16,
        offset: u64,
        len: usize,
        error: u32,
    ) -> Verdict {
        // A payload that would be taken for requests, were it not consumed.
        let payload: Vec<u8> = [0x25, 0x60, 0x95, 0x13]
            .iter()
            .copied()
            .cycle()
            .take(len)
            .collect();
        let found = self.write(flags, offset, &payload)?;
        same("error", found, error)?;
        self.expect_alive()
    }

    /// The next request is still understood.
    pub(crate) fn expect_alive(&mut self) -> Verdict {
        let len = self.facts.size.min(512);
        self.get(0, len).map(drop)
    }

    /// Receives one message.
    fn receive(&mut self) -> Verdict {
        let magic = self.conn.take(4)?;
        match (magic.as_slice(), self.style) {
            ([0x67, 0x44, 0x66, 0x98], Style::Simple | Style::Structured) => self.receive_simple(),
            ([0x66, 0x8e, 0x33, 0xef], Style::Structured) => {
                let head = self.conn.take(16)?;
                let mut reader = Reader(&head);
                let words = (reader.u16(), reader.u16(), reader.u64(), reader.u32());
                let (Some(flags), Some(kind), Some(cookie), Some(len)) = words else {
                    return fail("a short head");
                };
                self.receive_chunk(flags, kind, cookie, len.into())
            }
            ([0x6e, 0x8a, 0x27, 0x8c], Style::Extended) => {
                let head = self.conn.take(28)?;
                let mut reader = Reader(&head);
                let words = (reader.u16(), reader.u16(), reader.u64());
                let (Some(flags), Some(kind), Some(cookie)) = words else {
                    return fail("a short head");
                };
                let asked = self
                    .outstanding
                    .get(&cookie)
                    .map(|(request, _)| request.offset);
                same("offset of a reply", reader.u64(), asked)?;
                let len = reader.u64().unwrap_or(u64::MAX);
                self.receive_chunk(flags, kind, cookie, len)
            }
            (other, style) => fail(format!("magic {other:02x?} among {} replies", style.word())),
        }
    }

    fn receive_simple(&mut self) -> Verdict {
        let head = self.conn.take(12)?;
        let mut reader = Reader(&head);
        let (error, cookie) = (reader.u32().unwrap_or(0), reader.u64().unwrap_or(0));
        let Some(request) = self.outstanding.get(&cookie).map(|(request, _)| *request) else {
            return fail(format!(
                "a reply to cookie {cookie:#x}, which is not outstanding"
            ));
        };
        check_error(error)?;
        let is_read = request.command == cmd::READ;
        ensure(!is_read || self.style == Style::Simple, || {
            "a simple reply to a read, with structured replies agreed".to_owned()
        })?;
        let data = if is_read && error == err::NONE {
            self.conn
                .take(usize::try_from(request.len).unwrap_or(usize::MAX))?
        } else {
            Vec::new()
        };
        self.outstanding.remove(&cookie);
        let answer = Answer {
            error,
            data,
            is_simple: true,
            ..Answer::default()
        };
        self.finished.insert(cookie, answer);
        Ok(())
    }

    fn receive_chunk(&mut self, flags: u16, kind: u16, cookie: u64, len: u64) -> Verdict {
        let Some((request, mut answer)) = self.outstanding.remove(&cookie) else {
            return fail(format!(
                "a chunk for cookie {cookie:#x}, which is not outstanding"
            ));
        };
        let len_max = request.len.saturating_add(8).max(PLAIN_PAYLOAD_LEN_MAX);
        ensure(len <= len_max, || format!("a chunk of {len} bytes"))?;
        ensure(flags & !1 == 0, || {
            format!("unknown reply flags {flags:#x}")
        })?;
        let payload = self.conn.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let is_done = flags & 1 != 0;
        answer.take_chunk(&request, self.style, kind, &payload, is_done)?;
        if is_done {
            answer.check_whole(&request)?;
            self.finished.insert(cookie, answer);
        } else {
            self.outstanding.insert(cookie, (request, answer));
        }
        Ok(())
    }
}

fn check_error(error: u32) -> Verdict {
    ensure(err::ALL.contains(&error), || {
        format!("error value {error} is not one of the protocol's")
    })
}

impl Answer {
    fn take_chunk(
        &mut self,
        request: &Request,
        style: Style,
        kind: u16,
        payload: &[u8],
        is_done: bool,
    ) -> Verdict {
        let mut reader = Reader(payload);
        match kind {
            0 => {
                same("length of a chunk NONE", payload.len(), 0)?;
                ensure(is_done, || "a chunk NONE without DONE".to_owned())
            }
            1 if payload.len() >= 9 => {
                let offset = reader.u64().unwrap_or(0);
                self.take_content(request, offset, reader.0.len() as u64)?;
                let at = usize::try_from(offset - request.offset).unwrap_or(usize::MAX);
                self.data[at..at + reader.0.len()].copy_from_slice(reader.0);
                Ok(())
            }
            2 if payload.len() == 12 => {
                let (offset, len) = (reader.u64().unwrap_or(0), reader.u32().unwrap_or(0));
                self.take_content(request, offset, len.into())
            }
            5 if style == Style::Structured => self.take_extents(request, style, reader),
            6 if style == Style::Extended => self.take_extents(request, style, reader),
            kind if kind & 0x8000 != 0 => self.take_error(reader),
            _ => fail(format!(
                "a chunk of type {kind} with {} bytes",
                payload.len()
            )),
        }
    }

    fn take_content(&mut self, request: &Request, offset: u64, len: u64) -> Verdict {
        same(
            "command that is answered with content",
            request.command,
            cmd::READ,
        )?;
        let end = offset.saturating_add(len);
        let inside = offset >= request.offset && end <= request.offset + request.len && len > 0;
        ensure(inside, || "content outside the request".to_owned())?;
        let overlaps = self.covered.iter().any(|(a, b)| offset < *b && *a < end);
        ensure(!overlaps, || "content chunks overlap".to_owned())?;
        self.covered.push((offset, end));
        self.content_chunks += 1;
        self.data
            .resize(usize::try_from(request.len).unwrap_or(0), 0);
        Ok(())
    }

    fn take_extents(&mut self, request: &Request, style: Style, mut reader: Reader<'_>) -> Verdict {
        same(
            "command that is answered with extents",
            request.command,
            cmd::BLOCK_STATUS,
        )?;
        let id = reader.u32().unwrap_or(0);
        let mut extents = Vec::new();
        if style == Style::Extended {
            let count = reader.u32().unwrap_or(0);
            same(
                "bytes of extents",
                reader.0.len() as u64,
                u64::from(count) * 16,
            )?;
            while let (Some(len), Some(status)) = (reader.u64(), reader.u64()) {
                extents.push((len, status));
            }
        } else {
            same("bytes of extents, modulo 8", reader.0.len() % 8, 0)?;
            while let (Some(len), Some(status)) = (reader.u32(), reader.u32()) {
                extents.push((len.into(), status.into()));
            }
        }
        ensure(!extents.is_empty(), || "a chunk without extents".to_owned())?;
        ensure(extents.iter().all(|(len, _)| *len > 0), || {
            "an empty extent".to_owned()
        })?;
        let known = self.contexts.iter().any(|(other, _)| *other == id);
        ensure(!known, || format!("two chunks for context {id}"))?;
        self.contexts.push((id, extents));
        Ok(())
    }

    fn take_error(&mut self, mut reader: Reader<'_>) -> Verdict {
        let (Some(error), Some(len)) = (reader.u32(), reader.u16()) else {
            return fail("an error chunk of less than 6 bytes");
        };
        check_error(error)?;
        ensure(error != err::NONE, || {
            "an error chunk without error".to_owned()
        })?;
        let Some(text) = reader.bytes(len.into()) else {
            return fail("an error text longer than its chunk");
        };
        ensure(len <= 4096 && std::str::from_utf8(text).is_ok(), || {
            "an error text that is no string".to_owned()
        })?;
        self.error = error;
        Ok(())
    }

    fn check_whole(&self, request: &Request) -> Verdict {
        if self.error != err::NONE || request.command != cmd::READ {
            return Ok(());
        }
        let covered: u64 = self.covered.iter().map(|(start, end)| end - start).sum();
        same(
            "bytes that a successful read was answered",
            covered,
            request.len,
        )
    }
}

/// Bytes that differ everywhere and with `seed`.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Never zero, so that a hole shows.
        state.to_be_bytes()[0] | 1
    };
    (0..len).map(|_| next()).collect()
}
