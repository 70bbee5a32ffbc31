//! The crate's client against its session, over random operations, beside a model of the disk.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{
    Client, ClientCommand, ClientError, ClientReply, Completion, NbdError, RequestHandle,
    RequestKind,
};
use proptest::prelude::*;

use crate::harness::{SIZE, Server};

/// A disk that applies each request when it is submitted, and completes it when told.
#[derive(Debug)]
struct Disk {
    bytes: Vec<u8>,
    done: Vec<(RequestHandle, Completion<Vec<u8>>)>,
}

impl Disk {
    fn new() -> Self {
        Self {
            bytes: vec![0; index(SIZE)],
            done: Vec::new(),
        }
    }

    fn execute(&mut self, handle: RequestHandle, kind: RequestKind<Vec<u8>>) {
        let completion = match kind {
            RequestKind::Read { offset, len } => {
                Completion::Data(self.range(offset, len.into()).to_vec())
            }
            RequestKind::Write { offset, data, .. } => {
                let len = u64::try_from(data.len()).unwrap();
                self.range(offset, len).copy_from_slice(&data);
                Completion::Done
            }
            RequestKind::Trim { offset, len, .. }
            | RequestKind::WriteZeroes { offset, len, .. } => {
                self.range(offset, len).fill(0);
                Completion::Done
            }
            RequestKind::Flush => Completion::Done,
            RequestKind::BlockStatus { .. } => Completion::Status(Default::default()),
        };
        self.done.push((handle, completion));
    }

    fn range(&mut self, offset: u64, len: u64) -> &mut [u8] {
        &mut self.bytes[index(offset)..index(offset + len)]
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

#[derive(Debug, Clone)]
enum Operation {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
        fill: u8,
    },
    Zero {
        offset: u64,
        len: u32,
    },
    Trim {
        offset: u64,
        len: u32,
    },
    Flush,
    /// Moves up to this many bytes each way.
    Transfer {
        len: usize,
    },
    /// Completes one of the requests the disk has done.
    Complete {
        pick: usize,
    },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let offset = || prop_oneof![0..SIZE, SIZE - 200..SIZE + 200];
    let len = || prop_oneof![4 => 0u32..5000, 1 => 60_000u32..200_000];
    let one = prop_oneof![
        (offset(), len()).prop_map(|(offset, len)| Operation::Read { offset, len }),
        (offset(), len(), any::<u8>()).prop_map(|(offset, len, fill)| Operation::Write {
            offset,
            len,
            fill
        }),
        (offset(), len()).prop_map(|(offset, len)| Operation::Zero { offset, len }),
        (offset(), len()).prop_map(|(offset, len)| Operation::Trim { offset, len }),
        Just(Operation::Flush),
        (1usize..100_000).prop_map(|len| Operation::Transfer { len }),
        any::<usize>().prop_map(|pick| Operation::Complete { pick }),
    ];
    proptest::collection::vec(one, 1..80)
}

struct World {
    client: Client,
    server: Server,
    disk: Disk,
    /// Bytes on their way to the server.
    upstream: Vec<u8>,
    /// The disk as the client should see it.
    model: Vec<u8>,
    expected: Vec<ClientReply>,
    answered: Vec<ClientReply>,
}

impl World {
    fn new(style: ReplyStyle) -> Self {
        let mut world = Self {
            client: Client::new("r0", style),
            server: Server::new(None),
            disk: Disk::new(),
            upstream: Vec::new(),
            model: vec![0; index(SIZE)],
            expected: Vec::new(),
            answered: Vec::new(),
        };
        while world.client.export().is_none() {
            world.transfer(usize::MAX);
        }
        world
    }

    fn transfer(&mut self, len: usize) {
        self.upstream.extend(self.client.take_output());
        let up = len.min(self.upstream.len());
        let bytes: Vec<u8> = self.upstream.drain(..up).collect();
        self.server.feed(&bytes);
        self.serve();
        let down = len.min(self.server.sent.len());
        let bytes: Vec<u8> = self.server.sent.drain(..down).collect();
        self.client.handle_bytes(&bytes).unwrap();
        while let Some(reply) = self.client.next_reply() {
            self.answered.push(reply);
        }
    }

    fn serve(&mut self) {
        for request in self.server.submitted.drain(..) {
            self.disk.execute(request.handle, request.kind);
        }
    }

    fn complete(&mut self, pick: usize) {
        if !self.disk.done.is_empty() {
            let (handle, completion) = self.disk.done.swap_remove(pick % self.disk.done.len());
            self.server.complete(handle, completion);
            self.serve();
        }
    }

    /// Applies a change to the model and notes what the client must be told.
    fn submit(&mut self, operation: &Operation) {
        let data;
        let (command, result) = match *operation {
            Operation::Read { offset, len } => {
                let result = self.range(offset, len).map(|bytes| bytes.to_vec());
                (
                    ClientCommand::Read { offset, len },
                    result.ok_or(NbdError::Invalid),
                )
            }
            Operation::Write { offset, len, fill } => {
                data = vec![fill; usize::try_from(len).unwrap()];
                let result = self.range(offset, len).map(|bytes| bytes.fill(fill));
                let command = ClientCommand::Write {
                    offset,
                    data: &data,
                    fua: fill % 2 == 0,
                };
                (
                    command,
                    result.map(|()| Vec::new()).ok_or(NbdError::NoSpace),
                )
            }
            Operation::Zero { offset, len } => {
                let result = self.range(offset, len).map(|bytes| bytes.fill(0));
                let command = ClientCommand::WriteZeroes {
                    offset,
                    len,
                    no_hole: true,
                    fua: false,
                };
                (
                    command,
                    result.map(|()| Vec::new()).ok_or(NbdError::NoSpace),
                )
            }
            Operation::Trim { offset, len } => {
                let result = self.range(offset, len).map(|bytes| bytes.fill(0));
                let command = ClientCommand::Trim {
                    offset,
                    len,
                    fua: false,
                };
                (
                    command,
                    result.map(|()| Vec::new()).ok_or(NbdError::Invalid),
                )
            }
            Operation::Flush => (ClientCommand::Flush, Ok(Vec::new())),
            Operation::Transfer { len } => return self.transfer(len),
            Operation::Complete { pick } => return self.complete(pick),
        };
        let cookie = self.client.submit(command).unwrap();
        self.expected.push(ClientReply { cookie, result });
    }

    fn range(&mut self, offset: u64, len: u32) -> Option<&mut [u8]> {
        let end = offset + u64::from(len);
        self.model.get_mut(index(offset)..index(end))
    }
}

fn any_style() -> impl Strategy<Value = ReplyStyle> {
    prop_oneof![
        Just(ReplyStyle::Simple),
        Just(ReplyStyle::Structured),
        Just(ReplyStyle::Extended)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_operations_read_back_what_a_model_holds(
        operations in operations(),
        style in any_style(),
    ) {
        let mut world = World::new(style);
        for operation in &operations {
            world.submit(operation);
        }
        let mut rounds = 0;
        while world.answered.len() < world.expected.len() {
            world.transfer(usize::MAX);
            world.complete(rounds);
            rounds += 1;
            prop_assert!(rounds < 10_000, "{} of {}", world.answered.len(), world.expected.len());
        }
        world.answered.sort_by_key(|reply| reply.cookie);
        prop_assert_eq!(world.answered, world.expected);
        prop_assert_eq!(world.disk.bytes, world.model);
        world.client.disconnect();
        world.server.feed(&world.client.take_output());
        prop_assert_eq!(world.server.closed, Some(nbd_frontend::CloseReason::Disconnected));
    }

    #[test]
    fn a_client_survives_any_server(
        junk in proptest::collection::vec(any::<u8>(), 0..400),
        style in any_style(),
    ) {
        let mut world = World::new(style);
        world.client.submit(ClientCommand::Read { offset: 0, len: 8 }).unwrap();
        // A right magic and cookie get the junk past the first check.
        let magic = match style {
            ReplyStyle::Simple => [0x67, 0x44, 0x66, 0x98],
            ReplyStyle::Structured => [0x66, 0x8e, 0x33, 0xef],
            ReplyStyle::Extended => [0x6e, 0x8a, 0x27, 0x8c],
        };
        let bytes = [magic.as_slice(), &junk].concat();
        let after_attach = world.client.handle_bytes(&bytes);
        let mut fresh = Client::new("r0", style);
        let greeted = [b"NBDMAGICIHAVEOPT\0\x03", junk.as_slice()].concat();
        let after_greeting = fresh.handle_bytes(&greeted);
        // Either is fine; what must not happen is a panic or an attachment to nothing.
        prop_assert!(fresh.export().is_none(), "{after_attach:?} {after_greeting:?}");
    }
}

#[test]
fn a_client_learns_why_it_was_refused() {
    let mut server = Server::new(Some("this node is Secondary"));
    let mut client = Client::new("r0", ReplyStyle::Structured);
    let error = loop {
        let bytes = server.take_sent();
        match client.handle_bytes(&bytes) {
            Ok(()) => server.feed(&client.take_output()),
            Err(error) => break error,
        }
    };
    let text = "this node is Secondary".to_owned();
    assert_eq!(
        error,
        ClientError::Refused {
            reply_type: 0x8000_0002,
            text
        }
    );
    assert_eq!(
        client.submit(ClientCommand::Flush),
        Err(ClientError::NotAttached)
    );
}

#[test]
fn a_client_puts_chunks_and_holes_together_and_refuses_overlaps() {
    let attached = || {
        let mut world = World::new(ReplyStyle::Structured);
        let cookie = world
            .client
            .submit(ClientCommand::Read {
                offset: 100,
                len: 6,
            })
            .unwrap();
        (world.client, cookie)
    };
    let chunk = |flags: u16, kind: u16, cookie: u64, payload: &[u8]| {
        let mut bytes = crate::harness::chunk(kind, cookie, payload);
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes
    };
    let data = |offset: u64, text: &[u8]| [offset.to_be_bytes().as_slice(), text].concat();
    let hole =
        |offset: u64, len: u32| [offset.to_be_bytes().as_slice(), &len.to_be_bytes()].concat();

    let (mut client, cookie) = attached();
    client
        .handle_bytes(&chunk(0, 1, cookie, &data(103, b"def")))
        .unwrap();
    client
        .handle_bytes(&chunk(0, 2, cookie, &hole(100, 3)))
        .unwrap();
    assert_eq!(client.next_reply(), None);
    client.handle_bytes(&chunk(1, 0, cookie, &[])).unwrap();
    assert_eq!(
        client.next_reply().map(|r| r.result),
        Some(Ok(b"\0\0\0def".to_vec()))
    );

    let broken: [&[(u16, u16, Vec<u8>)]; 6] = [
        &[(0, 1, data(100, b"abc")), (0, 1, data(102, b"c"))],
        &[(1, 1, data(100, b"abc"))],
        &[(0, 1, data(99, b"a"))],
        &[(0, 1, data(105, b"ab"))],
        &[(0, 2, hole(100, u32::MAX))],
        &[(1, 0, Vec::new())],
    ];
    for chunks in broken {
        let (mut client, cookie) = attached();
        let bytes: Vec<u8> = chunks
            .iter()
            .flat_map(|(flags, kind, payload)| chunk(*flags, *kind, cookie, payload))
            .collect();
        assert!(matches!(
            client.handle_bytes(&bytes),
            Err(ClientError::Protocol(_))
        ));
    }
}
