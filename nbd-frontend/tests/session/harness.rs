//! A caller for a session: keeps what the socket and the engine would get.
//!
//! Bytes are built by hand here, not by the crate's encoders, so that a mistake there shows.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::{
    Access, BufferPool, CloseReason, Completion, Export, ExportList, NbdError, Outbox, Output,
    Refusal, Request, RequestHandle, RequestKind, Session,
};

pub(crate) const SIZE: u64 = 1 << 20;

/// Hands out buffers while `left` lasts.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) left: usize,
    /// Bytes that may still be read.
    pub(crate) read_left: usize,
}

impl BufferPool for Pool {
    type Buffer = Vec<u8>;

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(1)?;
        // Old content: whatever a session does not overwrite would show.
        Some(vec![0xee; len])
    }

    fn reserve_read(&mut self, len: usize) -> bool {
        let left = self.read_left.checked_sub(len);
        self.read_left = left.unwrap_or(self.read_left);
        left.is_some()
    }
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) session: Session<Vec<u8>>,
    pub(crate) pool: Pool,
    pub(crate) out: Outbox<Vec<u8>, Vec<u8>>,
    /// What the client would have received since [`Server::take_sent`].
    pub(crate) sent: Vec<u8>,
    pub(crate) submitted: Vec<Request<Vec<u8>>>,
    pub(crate) closed: Option<CloseReason>,
    /// How often it asked for TLS.
    pub(crate) tls_starts: usize,
    /// Bytes the session did not take yet.
    pub(crate) kept: Vec<u8>,
    /// Whether the client reads its replies.
    pub(crate) reads: bool,
}

pub(crate) fn exports() -> ExportList {
    let mut first = Export::new("r0", SIZE);
    first.description = "volume 0".to_owned();
    first.aliases.push("r0/0".to_owned());
    let mut backup = Export::new("r0/1", SIZE / 2);
    backup.access = Access::ReadOnly;
    let unlisted = first.read_only("r0/ro", vec!["r0/0/ro".to_owned()]);
    ExportList::new(vec![first, backup, unlisted]).unwrap()
}

fn refused(exports: &ExportList, reason: &str) -> ExportList {
    let refuse = |export: &Export| Export {
        refusal: Some(Refusal::NotNow(reason.to_owned())),
        ..export.clone()
    };
    ExportList::new(exports.iter().map(refuse).collect()).unwrap()
}

impl Server {
    /// A connection that has just been greeted; the greeting is in `sent`.
    pub(crate) fn new(refusal: Option<&str>) -> Self {
        let mut out = Outbox::new();
        let offered = match refusal {
            Some(reason) => refused(&exports(), reason),
            None => exports(),
        };
        let session = Session::new(offered, &mut out);
        Self::of(session, out)
    }

    /// A connection that must have TLS; the greeting is in `sent`.
    pub(crate) fn awaiting_tls() -> Self {
        let mut out = Outbox::new();
        let session = Session::new_awaiting_tls(&mut out);
        Self::of(session, out)
    }

    fn of(session: Session<Vec<u8>>, out: Outbox<Vec<u8>, Vec<u8>>) -> Self {
        let mut server = Self {
            session,
            pool: Pool {
                left: usize::MAX,
                read_left: usize::MAX,
            },
            out,
            sent: Vec::new(),
            submitted: Vec::new(),
            closed: None,
            tls_starts: 0,
            kept: Vec::new(),
            reads: true,
        };
        server.collect();
        server
    }

    /// Greeted, with fixed newstyle and NO_ZEROES agreed; nothing in `sent`.
    pub(crate) fn haggling() -> Self {
        let mut server = Self::new(None);
        server.feed(&3u32.to_be_bytes());
        server.sent.clear();
        server
    }

    /// Attached to `name`; nothing in `sent`.
    pub(crate) fn attached(name: &str, structured: bool) -> Self {
        let mut server = Self::haggling();
        if structured {
            server.feed(&option(8, &[]));
        }
        server.feed(&option(7, &info_request(name, &[])));
        assert!(
            matches!(server.session.phase(), nbd_frontend::Phase::Transmission(_)),
            "{server:?}"
        );
        server.sent.clear();
        server
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        self.pump();
    }

    /// Offers the kept bytes again.
    pub(crate) fn pump(&mut self) {
        let taken = self
            .session
            .handle_bytes(&self.kept, &mut self.pool, &mut self.out);
        assert!(
            taken == self.kept.len() || self.session.pause().is_some(),
            "bytes left without a pause: {taken} of {}",
            self.kept.len()
        );
        self.kept.drain(..taken);
        self.collect();
    }

    pub(crate) fn complete(&mut self, handle: RequestHandle, completion: Completion<Vec<u8>>) {
        self.session.complete(handle, completion, &mut self.out);
        self.collect();
        if self.session.pause().is_some() {
            self.pump();
        }
    }

    pub(crate) fn fail(&mut self, handle: RequestHandle, error: NbdError) {
        self.complete(handle, Completion::Failed(error));
    }

    /// The one request submitted since the last call.
    pub(crate) fn take_request(&mut self) -> (RequestHandle, RequestKind<Vec<u8>>) {
        assert_eq!(self.submitted.len(), 1, "{:?}", self.submitted);
        let request = self.submitted.remove(0);
        (request.handle, request.kind)
    }

    pub(crate) fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    pub(crate) fn collect(&mut self) {
        for output in self.out.drain() {
            assert_eq!(self.closed, None, "nothing follows a close");
            match output {
                Output::Send(bytes) => self.sent.extend_from_slice(bytes.as_ref()),
                Output::SendPayload(data) => self.sent.extend_from_slice(&data),
                Output::Submit(request) => self.submitted.push(request),
                Output::StartTls => self.tls_starts += 1,
                Output::Close(reason) => self.closed = Some(reason),
            }
        }
        if self.reads {
            self.session.note_sent(self.session.unsent_bytes());
        }
    }
}

pub(crate) fn option(number: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [
        b"IHAVEOPT".as_slice(),
        &number.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub(crate) fn counted(text: &[u8]) -> Vec<u8> {
    [
        u32::try_from(text.len()).unwrap().to_be_bytes().as_slice(),
        text,
    ]
    .concat()
}

pub(crate) fn info_request(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut payload = counted(name.as_bytes());
    payload.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    payload.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    payload
}

pub(crate) fn meta_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = counted(name.as_bytes());
    payload.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    payload.extend(queries.iter().flat_map(|query| counted(query.as_bytes())));
    payload
}

pub(crate) fn option_reply(number: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let magic = [0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9];
    let len = u32::try_from(payload.len()).unwrap();
    [
        magic.as_slice(),
        &number.to_be_bytes(),
        &kind.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub(crate) fn ack(number: u32) -> Vec<u8> {
    option_reply(number, 1, &[])
}

/// INFO_EXPORT with these flags.
pub(crate) fn info_export(size: u64, flags: u16) -> Vec<u8> {
    [[0, 0].as_slice(), &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

/// Reply types of the error replies in `sent`, which must hold option replies only.
pub(crate) fn reply_types(mut sent: &[u8]) -> Vec<u32> {
    let mut types = Vec::new();
    while !sent.is_empty() {
        types.push(u32::from_be_bytes(sent[12..16].try_into().unwrap()));
        let len = u32::from_be_bytes(sent[16..20].try_into().unwrap());
        sent = &sent[20 + usize::try_from(len).unwrap()..];
    }
    types
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;

impl Header {
    pub(crate) fn bytes(self) -> Vec<u8> {
        [
            [0x25, 0x60, 0x95, 0x13].as_slice(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.len.to_be_bytes(),
        ]
        .concat()
    }
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    Header {
        flags,
        command,
        cookie,
        offset,
        len,
    }
    .bytes()
}

pub(crate) fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [request(WRITE, flags, cookie, offset, len).as_slice(), data].concat()
}

pub(crate) fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [
        [0x67, 0x44, 0x66, 0x98].as_slice(),
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
    ]
    .concat()
}

/// A structured chunk with DONE.
pub(crate) fn chunk(kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [
        [0x66, 0x8e, 0x33, 0xef, 0, 1].as_slice(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub(crate) fn error_chunk(cookie: u64, error: u32, text: &str) -> Vec<u8> {
    let text_len = u16::try_from(text.len()).unwrap();
    let payload = [
        error.to_be_bytes().as_slice(),
        &text_len.to_be_bytes(),
        text.as_bytes(),
    ]
    .concat();
    chunk(0x8001, cookie, &payload)
}

impl Server {
    /// Attached to an export of `size` bytes, with simple replies.
    pub(crate) fn big(size: u64) -> Self {
        Self::sized(size, false)
    }

    /// Attached to an export of `size` bytes, with structured replies.
    pub(crate) fn big_structured(size: u64) -> Self {
        Self::sized(size, true)
    }

    /// Attached to "r0", with the contexts of `queries` selected.
    pub(crate) fn with_contexts(style: u32, queries: &[&str]) -> Self {
        let mut server = Self::haggling();
        server.feed(&option(style, &[]));
        server.feed(&option(10, &meta_request("", queries)));
        server.feed(&option(7, &info_request("r0", &[])));
        server.sent.clear();
        server
    }

    fn sized(size: u64, structured: bool) -> Self {
        let exports = ExportList::new(vec![Export::new("big", size)]).unwrap();
        let mut server = Self::new(None);
        server.session = Session::new(exports, &mut server.out);
        server.feed(&3u32.to_be_bytes());
        if structured {
            server.feed(&option(8, &[]));
        }
        server.feed(&option(7, &info_request("", &[])));
        server.sent.clear();
        server
    }
}
