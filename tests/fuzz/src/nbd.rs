//! The NBD session and client against arbitrary bytes.
//!
//! Beyond "does not panic": bytes are left untaken only in a pause, nothing follows a close, every
//! session ends once its client is gone, and how the bytes were cut changes nothing.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{
    Access, BlockStatus, BufferPool, Client, ClientCommand, CloseReason, Completion, Export,
    ExportList, Outbox, Output, Refusal, Request, RequestKind, Session, StatusExtent,
};

const SIZE: u64 = 1 << 20;

/// Bytes of buffers handed out at most, so that a forged length costs no memory.
const POOL_BYTES: usize = 4 << 20;

/// Fuzzes the handshake: one byte of choices, then the client's stream from its first byte.
pub fn handshake(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else {
        return;
    };
    let mode = match choice & 3 {
        0 | 2 => Mode::Open,
        1 => Mode::Refused,
        _ => Mode::AwaitingTls,
    };
    compare(mode, stream, usize::from(choice >> 2));
}

/// Fuzzes the transmission phase: one byte of choices, then the stream after GO.
pub fn transmission(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else {
        return;
    };
    let mut script = 3u32.to_be_bytes().to_vec();
    if choice & 1 != 0 {
        let headers = if choice & 4 != 0 { 11 } else { 8 };
        script.extend(option(headers, &[]));
        script.extend(option(
            10,
            b"\0\0\0\0\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0dtwinblk:dirty",
        ));
    }
    let go: &[u8] = if choice & 2 != 0 {
        b"\0\0\0\x02ro\0\0"
    } else {
        b"\0\0\0\0\0\0"
    };
    script.extend(option(7, go));
    script.extend_from_slice(stream);
    compare(Mode::Open, &script, usize::from(choice >> 3));
}

/// Fuzzes the client: one byte of choices, then the server's stream after the greeting.
pub fn client(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else {
        return;
    };
    let style = match choice & 5 {
        5 => ReplyStyle::Extended,
        1 => ReplyStyle::Structured,
        _ => ReplyStyle::Simple,
    };
    let mut client = Client::new("", style);
    let mut script = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    if choice & 2 != 0 {
        if choice & 1 != 0 {
            let headers = if style == ReplyStyle::Extended { 11 } else { 8 };
            script.extend(option_reply(headers, 1, &[]));
        }
        script.extend(option_reply(
            7,
            3,
            &[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 5, 0x6d],
        ));
        script.extend(option_reply(7, 1, &[]));
    }
    if client.handle_bytes(&script).is_err() {
        panic!("the client refused a proper handshake");
    }
    // Cookies 1 to 4; refused while the handshake goes on, which is fine.
    for command in [
        ClientCommand::Read {
            offset: 0,
            len: 4096,
        },
        ClientCommand::Write {
            offset: 0,
            data: b"x",
            fua: true,
        },
        ClientCommand::Flush,
        ClientCommand::Read {
            offset: 4096,
            len: 3,
        },
    ] {
        if client.submit(command).is_err() {
            break;
        }
    }
    for piece in stream.chunks(usize::from(choice >> 3).max(1)) {
        if client.handle_bytes(piece).is_err() {
            return;
        }
        while let Some(reply) = client.next_reply() {
            let len = reply.result.map_or(0, |data| data.len());
            assert!((1..=4).contains(&reply.cookie) && [0, 3, 4096].contains(&len));
        }
    }
}

fn option(number: u32, payload: &[u8]) -> Vec<u8> {
    nbd_frontend::proto::handshake::encode_option(number, payload)
}

fn option_reply(number: u32, reply_type: u32, payload: &[u8]) -> Vec<u8> {
    nbd_frontend::proto::handshake::option_reply(number, reply_type, payload)
        .as_ref()
        .to_vec()
}

/// What a session is begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Refused,
    /// TLS never comes: what is given after STARTTLS is clear text.
    AwaitingTls,
}

/// All that a client and an engine can see of a session.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    sent: Vec<u8>,
    submitted: Vec<RequestKind<Vec<u8>>>,
    tls_starts: usize,
    closed: Option<CloseReason>,
}

fn compare(mode: Mode, stream: &[u8], cut: usize) {
    let whole = run(mode, stream, usize::MAX, false);
    let cut_up = run(mode, stream, cut.max(1), true);
    assert!(whole == cut_up, "cut into {cut} bytes");
}

fn run(mode: Mode, stream: &[u8], cut: usize, direct: bool) -> Seen {
    let mut server = Server::new(mode);
    for piece in stream.chunks(cut) {
        server.receive(piece, direct);
    }
    server.finish()
}

struct Pool {
    left: usize,
}

impl BufferPool for Pool {
    type Buffer = Vec<u8>;

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(len)?;
        Some(vec![0; len])
    }
}

struct Server {
    session: Session<Vec<u8>>,
    pool: Pool,
    out: Outbox<Vec<u8>, Vec<u8>>,
    kept: Vec<u8>,
    pending: Vec<Request<Vec<u8>>>,
    seen: Seen,
}

impl Server {
    fn new(mode: Mode) -> Self {
        let refusal = (mode == Mode::Refused).then(|| Refusal::NotNow("not now".to_owned()));
        let mut read_only = Export::new("ro", SIZE);
        read_only.access = Access::ReadOnly;
        let mut writable = Export::new("rw", SIZE);
        for export in [&mut read_only, &mut writable] {
            export.refusal.clone_from(&refusal);
        }
        let exports = ExportList::new(vec![writable, read_only]).expect("two proper exports");
        let mut out = Outbox::new();
        let session = match mode {
            Mode::AwaitingTls => Session::new_awaiting_tls(&mut out),
            Mode::Open | Mode::Refused => Session::new(exports, &mut out),
        };
        let seen = Seen {
            sent: Vec::new(),
            submitted: Vec::new(),
            tls_starts: 0,
            closed: None,
        };
        let pool = Pool { left: POOL_BYTES };
        let mut server = Self {
            session,
            pool,
            out,
            kept: Vec::new(),
            pending: Vec::new(),
            seen,
        };
        server.collect();
        server
    }

    fn receive(&mut self, piece: &[u8], direct: bool) {
        let mut piece = piece;
        if direct && self.kept.is_empty() {
            if let Some(mut lent) = self.session.begin_direct_receive() {
                let len = lent.tail().len().min(piece.len());
                lent.tail()[..len].copy_from_slice(&piece[..len]);
                self.session.end_direct_receive(lent, len, &mut self.out);
                self.collect();
                piece = &piece[len..];
            }
        }
        self.kept.extend_from_slice(piece);
        self.offer_kept();
        // Complete only when the session asks for it, so that the order of what is seen depends
        // on the stream alone.
        while self.session.pause().is_some() && !self.pending.is_empty() {
            self.complete_first();
            self.offer_kept();
        }
    }

    fn offer_kept(&mut self) {
        let taken = self
            .session
            .handle_bytes(&self.kept, &mut self.pool, &mut self.out);
        assert!(taken == self.kept.len() || self.session.pause().is_some());
        self.kept.drain(..taken);
        self.collect();
    }

    fn complete_first(&mut self) {
        let request = self.pending.remove(0);
        let completion = match &request.kind {
            RequestKind::Read { len, .. } => {
                Completion::Data(vec![7; usize::try_from(*len).expect("32 bits fit")])
            }
            RequestKind::Write { data, .. } => {
                self.pool.left += data.len();
                Completion::Done
            }
            RequestKind::BlockStatus { offset, len, .. } => {
                Completion::Status(some_status(*offset, *len))
            }
            _ => Completion::Done,
        };
        self.session
            .complete(request.handle, completion, &mut self.out);
        self.seen.submitted.push(request.kind);
        self.collect();
    }

    fn finish(mut self) -> Seen {
        self.session.handle_eof(&mut self.out);
        self.collect();
        while !self.pending.is_empty() {
            self.complete_first();
        }
        assert!(
            self.seen.closed.is_some(),
            "a session whose client left must end"
        );
        assert_eq!(self.session.in_flight_count(), 0);
        self.seen
    }

    fn collect(&mut self) {
        for output in self.out.drain() {
            assert_eq!(self.seen.closed, None, "nothing follows a close");
            match output {
                Output::Send(bytes) => self.seen.sent.extend_from_slice(bytes.as_ref()),
                Output::SendPayload(data) => self.seen.sent.extend_from_slice(&data),
                Output::Submit(request) => {
                    check_range(&request.kind);
                    self.pending.push(request);
                }
                Output::StartTls => self.seen.tls_starts += 1,
                Output::Close(reason) => self.seen.closed = Some(reason),
            }
        }
        self.session.note_sent(self.session.unsent_bytes());
    }
}

/// Knowledge of a range that depends on nothing but the range, and not always covers it.
fn some_status(offset: u64, len: u64) -> BlockStatus {
    let extent = |len, status| StatusExtent { len, status };
    BlockStatus {
        allocation: vec![extent(offset % 5, 3), extent(len / 2, 0), extent(7, 3)],
        dirty: vec![extent(len & offset, 1), extent(u64::MAX, 0)],
    }
}

fn check_range(kind: &RequestKind<Vec<u8>>) {
    let (offset, len) = match kind {
        RequestKind::Read { offset, len } => (*offset, u64::from(*len)),
        RequestKind::Write { offset, data, .. } => {
            (*offset, u64::try_from(data.len()).expect("a length fits"))
        }
        RequestKind::Trim { offset, len, .. } | RequestKind::WriteZeroes { offset, len, .. } => {
            (*offset, *len)
        }
        RequestKind::BlockStatus {
            offset,
            len,
            contexts,
            ..
        } => {
            assert!(!contexts.is_empty());
            (*offset, *len)
        }
        RequestKind::Flush => return,
    };
    assert!(
        len > 0 && offset.checked_add(len).is_some_and(|end| end <= SIZE),
        "{offset} {len}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator, so that the smoke run needs nothing and repeats exactly.
    struct Lcg(u64);

    impl Lcg {
        fn next(&mut self) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 33
        }

        fn below(&mut self, bound: usize) -> usize {
            usize::try_from(self.next()).expect("31 bits fit") % bound
        }
    }

    fn request(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
        [
            [0x25, 0x60, 0x95, 0x13].as_slice(),
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &[0, 1, 2, 3, 4, 5, 6, 7],
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
        ]
        .concat()
    }

    fn extended(command: u16, flags: u16, offset: u64, len: u64) -> Vec<u8> {
        [
            [0x21, 0xe4, 0x1c, 0x71].as_slice(),
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &[0, 1, 2, 3, 4, 5, 6, 7],
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
        ]
        .concat()
    }

    fn extended_requests() -> Vec<u8> {
        let mut stream = extended(0, 4, 0, 4096);
        stream.extend(extended(1, 33, 512, 70_000));
        stream.extend([9; 70_000]);
        stream.extend(extended(1, 32, SIZE, 512));
        stream.extend([9; 512]);
        stream.extend(extended(7, 32, 0, 12));
        stream.extend([0; 12]);
        for (command, flags) in [(4, 1), (5, 0), (6, 16), (7, 8), (7, 0), (1, 0), (99, 0)] {
            stream.extend(extended(command, flags, 0, SIZE));
        }
        stream.extend(extended(6, 0, 0, u64::MAX));
        stream.extend(extended(3, 0, 0, 0));
        stream.extend(extended(2, 0, 0, 0));
        stream
    }

    fn requests() -> Vec<u8> {
        let mut stream = Vec::new();
        for _ in 0..150 {
            stream.extend(request(0, 0, 0, 4096));
        }
        stream.extend(request(1, 1, 512, 70_000));
        stream.extend([9; 70_000]);
        stream.extend(request(1, 0, SIZE, 512));
        stream.extend([9; 512]);
        for (command, flags) in [
            (3, 0),
            (4, 1),
            (5, 0),
            (6, 2),
            (7, 8),
            (6, 16),
            (99, 0),
            (2, 0),
        ] {
            let len = if command == 3 || command == 2 { 0 } else { 512 };
            stream.extend(request(command, flags, 0, len));
        }
        stream
    }

    fn options() -> Vec<u8> {
        let mut stream = 3u32.to_be_bytes().to_vec();
        for (number, payload) in [
            (3, &[][..]),
            (77, b"unknown"),
            (8, &[]),
            (11, &[]),
            (9, b"\0\0\0\0\0\0\0\0"),
            (10, b"\0\0\0\x02rw\0\0\0\x01\0\0\0\x05base:"),
            (6, b"\0\0\0\x04nope\0\x01\0\x03"),
            (7, b"\0\0\0\x02rw\0\x02\0\x03\0\x01"),
        ] {
            stream.extend(option(number, payload));
        }
        stream
    }

    fn mutate_and_run(seed: Vec<u8>, rounds: usize, target: fn(&[u8])) {
        let mut random = Lcg(1);
        for _ in 0..rounds {
            let mut data = vec![u8::try_from(random.below(256)).expect("below 256")];
            data.extend_from_slice(&seed);
            for _ in 0..random.below(4) {
                let at = random.below(data.len());
                data[at] = u8::try_from(random.below(256)).expect("below 256");
            }
            data.truncate(random.below(data.len() + 1));
            target(&data);
        }
    }

    #[test]
    fn the_handshake_target_runs_on_mutated_sessions() {
        mutate_and_run([options(), requests()].concat(), 300, handshake);
        mutate_and_run(options(), 3000, handshake);
    }

    #[test]
    fn the_transmission_target_runs_on_mutated_requests() {
        mutate_and_run(requests(), 300, transmission);
        mutate_and_run(extended_requests(), 600, transmission);
    }

    #[test]
    fn the_client_target_runs_on_mutated_replies() {
        let replies = [
            b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x02".as_slice(),
            b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x03\0\0\0\0",
            b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x04\0\0\0\x0b\0\0\0\0\0\0\x10\0abc",
            b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x01\0\0\0\x06\0\0\0\x05\0\0",
        ];
        mutate_and_run(replies.concat(), 5000, client);
        let mut extended = Vec::new();
        for (kind, cookie, offset, payload) in [
            (0, 2, 0, &[][..]),
            (1, 4, 4096, b"\0\0\0\0\0\0\x10\0abc"),
            (0x8001, 1, 0, b"\0\0\0\x05\0\0"),
        ] {
            extended.extend(0x6e8a_278c_u32.to_be_bytes());
            extended.extend([0, 1]);
            extended.extend(u16::to_be_bytes(kind));
            extended.extend(u64::to_be_bytes(cookie));
            extended.extend(u64::to_be_bytes(offset));
            extended.extend((payload.len() as u64).to_be_bytes());
            extended.extend(payload);
        }
        mutate_and_run(extended, 5000, client);
    }
}
