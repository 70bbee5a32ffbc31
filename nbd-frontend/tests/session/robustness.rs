//! Any bytes, cut anywhere.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::{BlockStatus, CloseReason, Completion, RequestKind};
use proptest::prelude::*;

use crate::extended::{extended, extended_write};
use crate::harness::{
    CACHE, DISC, FLUSH, Header, READ, STATUS, Server, TRIM, ZEROES, info_request, meta_request,
    option, request, write,
};

/// All that a client and an engine can see of a session.
#[derive(PartialEq, Eq)]
struct Seen {
    sent: Vec<u8>,
    submitted: Vec<RequestKind<Vec<u8>>>,
    closed: Option<CloseReason>,
}

/// Runs `script` cut at `cuts`; completes everything in order at the end, so that what is seen can
/// only depend on the bytes. `direct` receives long payloads in place where it can.
fn run(script: &[u8], cuts: impl Iterator<Item = usize>, direct: bool) -> Seen {
    let mut server = Server::new(None);
    let mut rest = script;
    for len in cuts {
        if rest.is_empty() {
            break;
        }
        let (piece, tail) = rest.split_at(len.clamp(1, rest.len()));
        rest = tail;
        let lent = if direct {
            server.session.begin_direct_receive()
        } else {
            None
        };
        match lent {
            Some(mut lent) => {
                let here = lent.tail().len().min(piece.len());
                lent.tail()[..here].copy_from_slice(&piece[..here]);
                server
                    .session
                    .end_direct_receive(lent, here, &mut server.out);
                server.collect();
                server.feed(&piece[here..]);
            }
            None => server.feed(piece),
        }
    }
    server.feed(rest);
    server.session.handle_eof(&mut server.out);
    server.collect();
    let mut submitted = Vec::new();
    while !server.submitted.is_empty() {
        let request = server.submitted.remove(0);
        let completion = match &request.kind {
            RequestKind::Read { len, .. } => {
                Completion::Data(vec![b'r'; usize::try_from(*len).unwrap()])
            }
            RequestKind::BlockStatus { .. } => Completion::Status(BlockStatus::default()),
            _ => Completion::Done,
        };
        submitted.push(request.kind);
        server.complete(request.handle, completion);
    }
    Seen {
        sent: server.sent,
        submitted,
        closed: server.closed,
    }
}

fn script() -> Vec<u8> {
    [
        3u32.to_be_bytes().to_vec(),
        option(3, &[]),
        option(77, b"unknown"),
        option(8, &[]),
        option(10, &meta_request("r0", &["base:allocation"])),
        option(6, &info_request("nope", &[3])),
        option(7, &info_request("r0", &[3, 1])),
        request(READ, 0, 1, 0, 512),
        write(1, 2, 4096, &[0x25; 300]),
        write(0, 3, u64::MAX, &[0x25; 300]),
        request(STATUS, 8, 4, 0, 4096),
        request(ZEROES, 2, 5, 0, 65_536),
        write(
            0,
            6,
            0,
            &(0u8..=255).cycle().take(70_000).collect::<Vec<_>>(),
        ),
        request(CACHE, 0, 7, 0, 1),
        request(FLUSH, 0, 8, 0, 0),
        request(99, 0, 9, 0, 0),
        request(TRIM, 0, 10, 0, 512),
        request(DISC, 0, 11, 0, 0),
    ]
    .concat()
}

#[test]
fn a_script_fed_byte_by_byte_is_seen_as_if_fed_at_once() {
    let script = script();
    let whole = run(&script, std::iter::once(usize::MAX), false);
    assert_eq!(
        (whole.submitted.len(), whole.closed),
        (7, Some(CloseReason::Disconnected))
    );
    for (cut, direct) in [(1, false), (7, true), (1000, true)] {
        assert!(
            run(&script, std::iter::repeat(cut), direct) == whole,
            "pieces of {cut} bytes"
        );
    }
}

#[test]
fn a_client_that_leaves_at_any_byte_leaves_a_session_that_ends() {
    let script = script();
    let long_payload = 1500..script.len() - 200;
    for end in (0..script.len()).filter(|end| !long_payload.contains(end) || end % 997 == 0) {
        let seen = run(&script[..end], std::iter::once(usize::MAX), false);
        assert!(seen.closed.is_some(), "cut at {end}");
    }
}

/// Requests, most of them nearly right; `long` with extended headers.
fn any_request(long: bool) -> impl Strategy<Value = Vec<u8>> {
    let edge = prop_oneof![
        0u64..1 << 21,
        Just((1 << 20) - 1),
        Just(u64::MAX),
        Just(1 << 63),
        any::<u64>()
    ];
    let len = prop_oneof![0u32..2000, 60_000u32..140_000, Just(u32::MAX), any::<u32>()];
    (
        0u16..10,
        prop_oneof![4 => Just(0u16), 2 => 0u16..64, 1 => any::<u16>()],
        edge,
        len,
    )
        .prop_map(move |(command, flags, offset, len)| {
            let len = if command == 1 { len % 140_000 } else { len };
            if long {
                return match command {
                    1 => extended_write(flags, offset, offset, &vec![b'p'; len as usize]),
                    _ => extended(
                        command,
                        flags,
                        offset,
                        offset,
                        u64::from(len) << (flags % 33),
                    ),
                };
            }
            let header = Header {
                flags,
                command,
                cookie: offset ^ 0xabcd,
                offset,
                len,
            }
            .bytes();
            let payload_len = if command == 1 { len } else { 0 };
            [header, vec![b'p'; usize::try_from(payload_len).unwrap()]].concat()
        })
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(info_request("r0", &[1, 2, 3])),
        Just(info_request("r0/1", &[])),
        Just(meta_request("", &["base:", "base:allocation"])),
        Just(Vec::new()),
    ];
    // EXPORT_NAME, ABORT and GO end the handshake: seldom.
    let number = prop_oneof![
        12 => prop_oneof![Just(3u32), Just(6), Just(8), Just(9), Just(10), 12u32..14],
        1 => prop_oneof![Just(1u32), Just(2), Just(7), any::<u32>()],
    ];
    (number, data).prop_map(|(number, data)| option(number, &data))
}

fn any_session() -> impl Strategy<Value = Vec<u8>> {
    let options = proptest::collection::vec(any_option(), 0..12);
    let junk = proptest::collection::vec(any::<u8>(), 0..64);
    let requests = any::<bool>().prop_flat_map(|long| {
        proptest::collection::vec(any_request(long), 0..24).prop_map(move |all| (long, all))
    });
    (0u32..4, options, prop::bool::weighted(0.8), requests, junk).prop_map(
        |(flags, options, attach, (long, requests), junk)| {
            let agree = option(if long { 11 } else { 8 }, &[]);
            let contexts = meta_request("r0", &["base:allocation", "twinblk:dirty"]);
            let select = option(10, &contexts);
            let attach = if attach {
                [agree, select, option(7, &info_request("r0", &[]))].concat()
            } else {
                Vec::new()
            };
            let head = flags.to_be_bytes().to_vec();
            [head, options.concat(), attach, requests.concat(), junk].concat()
        },
    )
}

/// Lengths of pieces: tiny, of header size, and long.
fn any_cuts() -> impl Strategy<Value = Vec<usize>> {
    let cut = prop_oneof![1usize..5, 20usize..40, 1000usize..100_000];
    proptest::collection::vec(cut, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_cut_of_any_session_is_seen_the_same(
        script in any_session(),
        cuts in any_cuts(),
        direct in any::<bool>(),
    ) {
        let whole = run(&script, std::iter::once(usize::MAX), false);
        prop_assert!(whole.closed.is_some());
        prop_assert!(run(&script, cuts.iter().copied().cycle(), direct) == whole);
    }

    #[test]
    fn random_bytes_end_in_an_answer_or_a_close(
        junk in proptest::collection::vec(any::<u8>(), 0..2000),
        attached in any::<bool>(),
    ) {
        let mut server = if attached { Server::attached("r0", true) } else { Server::new(None) };
        server.feed(&junk);
        server.session.handle_eof(&mut server.out);
        server.collect();
        prop_assert!(server.closed.is_some());
    }
}
