//! The transmission phase, row by row of the protocol's sections "Request types" and "Error
//! values".

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::{
    BlockStatus, CloseReason, Completion, Contexts, NbdError, Phase, RequestKind, StatusExtent,
};

use crate::harness::{
    CACHE, DISC, FLUSH, READ, SIZE, STATUS, Server, TRIM, WRITE, ZEROES, chunk, error_chunk,
    info_request, meta_request, option, request, simple, write,
};

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

#[test]
fn a_read_is_answered_simply_or_in_one_chunk() {
    let mut server = Server::attached("r0", false);
    server.feed(&request(READ, 0, 7, 4096, 3));
    let (handle, kind) = server.take_request();
    assert_eq!(
        kind,
        RequestKind::Read {
            offset: 4096,
            len: 3
        }
    );
    server.complete(handle, Completion::Data(b"abc".to_vec()));
    assert_eq!(server.sent, [simple(0, 7).as_slice(), b"abc"].concat());

    for flags in [0, DF, FUA] {
        let mut server = Server::attached("r0", true);
        server.feed(&request(READ, flags, 7, 4096, 3));
        let (handle, _) = server.take_request();
        server.complete(handle, Completion::Data(b"abc".to_vec()));
        let payload = [4096u64.to_be_bytes().as_slice(), b"abc"].concat();
        assert_eq!(server.sent, chunk(1, 7, &payload));
    }
}

#[test]
fn a_write_is_submitted_whole_and_answered_when_done() {
    for (structured, reply) in [(false, simple(0, 9)), (true, chunk(0, 9, &[]))] {
        for (flags, fua) in [(0, false), (FUA, true)] {
            let mut server = Server::attached("r0", structured);
            server.feed(&write(flags, 9, 513, b"payload"));
            let (handle, kind) = server.take_request();
            let data = b"payload".to_vec();
            assert_eq!(
                kind,
                RequestKind::Write {
                    offset: 513,
                    data,
                    fua
                }
            );
            assert!(server.sent.is_empty(), "no reply before the write is done");
            server.complete(handle, Completion::Done);
            assert_eq!(server.sent, reply);
        }
    }
}

#[test]
fn commands_without_payload_are_submitted_with_their_flags() {
    let len = 1 << 19;
    let trim = |fua| RequestKind::Trim {
        offset: 5,
        len: 7,
        fua,
    };
    let cases = [
        (request(FLUSH, 0, 3, 0, 0), RequestKind::Flush),
        (request(FLUSH, FUA, 3, 0, 0), RequestKind::Flush),
        (request(TRIM, 0, 3, 5, 7), trim(false)),
        (request(TRIM, FUA, 3, 5, 7), trim(true)),
        (request(ZEROES, 0, 3, 0, len), zeroes(len, false, false)),
        (
            request(ZEROES, FUA | NO_HOLE, 3, 0, len),
            zeroes(len, true, true),
        ),
    ];
    for (bytes, expected) in cases {
        let mut server = Server::attached("r0", false);
        server.feed(&bytes);
        let (handle, kind) = server.take_request();
        assert_eq!(kind, expected);
        server.complete(handle, Completion::Done);
        assert_eq!(server.sent, simple(0, 3));
    }
}

fn zeroes(len: u32, no_hole: bool, fua: bool) -> RequestKind<Vec<u8>> {
    RequestKind::WriteZeroes {
        offset: 0,
        len: len.into(),
        no_hole,
        fast: false,
        fua,
    }
}

#[test]
fn cache_and_empty_ranges_succeed_without_the_engine() {
    for structured in [false, true] {
        let reply = if structured {
            chunk(0, 3, &[])
        } else {
            simple(0, 3)
        };
        let cases = [
            (CACHE, 0, 4096),
            (CACHE, SIZE, 0),
            (READ, 0, 0),
            (READ, SIZE, 0),
            (WRITE, SIZE, 0),
            (TRIM, 0, 0),
            (ZEROES, 1, 0),
        ];
        for (command, offset, len) in cases {
            let mut server = Server::attached("r0", structured);
            server.feed(&request(command, 0, 3, offset, len));
            assert!(server.submitted.is_empty());
            assert_eq!(server.sent, reply, "command {command}");
        }
    }
}

/// Checks that `bytes` are answered with `error` and that the stream stays in step.
fn assert_error(export: &str, structured: bool, bytes: &[u8], error: u32) {
    let mut server = Server::attached(export, structured);
    server.feed(bytes);
    assert!(server.submitted.is_empty(), "{:?}", server.submitted);
    let sent = server.take_sent();
    let code = if structured {
        &sent[20..24]
    } else {
        &sent[4..8]
    };
    assert_eq!(code, error.to_be_bytes(), "{:x?}", &bytes[..28]);
    assert_eq!(sent[8..16], bytes[8..16], "the cookie comes back");
    assert!(sent.len() <= 78, "an error costs no allocation");
    server.feed(&request(CACHE, 0, 0x55, 0, 1));
    assert_eq!(
        server.sent,
        if structured {
            chunk(0, 0x55, &[])
        } else {
            simple(0, 0x55)
        }
    );
}

#[test]
fn ranges_beyond_the_end_are_refused_with_the_error_of_their_command() {
    let beyond = [
        (SIZE, 1),
        (SIZE - 1, 2),
        (0, u32::try_from(SIZE).unwrap() + 1),
        (u64::MAX, 1),
        (u64::MAX - 3, 4),
        (u64::MAX - 511, 1024),
        (1 << 63, 512),
    ];
    for (offset, len) in beyond {
        for structured in [false, true] {
            for (command, error) in [
                (READ, EINVAL),
                (TRIM, EINVAL),
                (CACHE, EINVAL),
                (ZEROES, ENOSPC),
            ] {
                assert_error(
                    "r0",
                    structured,
                    &request(command, 0, 1, offset, len),
                    error,
                );
            }
            let data = vec![0x25; usize::try_from(len).unwrap()];
            assert_error("r0", structured, &write(0, 1, offset, &data), ENOSPC);
        }
    }
}

#[test]
fn an_empty_range_beyond_the_end_is_refused_too() {
    assert_error("r0", false, &request(READ, 0, 1, SIZE + 1, 0), EINVAL);
    assert_error("r0", false, &request(WRITE, 0, 1, SIZE + 1, 0), ENOSPC);
}

#[test]
fn unknown_commands_are_invalid() {
    for command in [8, 9, 99, 0xffff] {
        assert_error("r0", false, &request(command, 0, 1, 0, 0), EINVAL);
        assert_error("r0", true, &request(command, 0, 1, 0, 512), EINVAL);
    }
}

#[test]
fn flags_that_a_command_does_not_take_are_invalid_and_payload_is_consumed() {
    let allowed = |command, structured| match command {
        READ if structured => FUA | DF,
        ZEROES => FUA | NO_HOLE | FAST_ZERO,
        STATUS => FUA | REQ_ONE,
        _ => FUA,
    };
    for structured in [false, true] {
        for command in [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS] {
            for bit in 0..16 {
                let flag = 1 << bit;
                if allowed(command, structured) & flag != 0 {
                    continue;
                }
                let bytes = match command {
                    WRITE => write(flag, 1, 0, &[0x25; 600]),
                    FLUSH => request(FLUSH, flag, 1, 0, 0),
                    _ => request(command, flag, 1, 0, 512),
                };
                assert_error("r0", structured, &bytes, EINVAL);
            }
        }
    }
}

#[test]
fn a_flush_with_offset_or_length_is_invalid() {
    assert_error("r0", false, &request(FLUSH, 0, 1, 1, 0), EINVAL);
    assert_error("r0", false, &request(FLUSH, 0, 1, 0, 1), EINVAL);
}

#[test]
fn a_read_only_export_refuses_every_write_and_consumes_its_payload() {
    for structured in [false, true] {
        assert_error("r0/1", structured, &write(0, 1, 0, &[0x25; 512]), EPERM);
        assert_error("r0/1", structured, &write(0, 1, SIZE, &[0x25; 512]), EPERM);
        assert_error("r0/1", structured, &request(TRIM, 0, 1, 0, 512), EPERM);
        assert_error("r0/1", structured, &request(ZEROES, 0, 1, 0, 512), EPERM);
    }
    let mut server = Server::attached("r0/1", false);
    server.feed(&request(FLUSH, 0, 1, 0, 0));
    assert_eq!(server.take_request().1, RequestKind::Flush);
}

#[test]
fn an_error_chunk_carries_the_error_and_a_short_text() {
    let mut server = Server::attached("r0", true);
    server.feed(&request(READ, 0, 4, SIZE, 1));
    assert_eq!(
        server.sent,
        error_chunk(4, EINVAL, "range beyond the end of the export")
    );
}

#[test]
fn a_failed_request_is_answered_with_its_error_and_no_data() {
    for command in [READ, TRIM] {
        let mut server = Server::attached("r0", false);
        server.feed(&request(command, 0, 4, 0, 512));
        let (handle, _) = server.take_request();
        server.fail(handle, NbdError::Io);
        assert_eq!(server.sent, simple(EIO, 4));

        let mut server = Server::attached("r0", true);
        server.feed(&request(command, 0, 4, 0, 512));
        let (handle, _) = server.take_request();
        server.fail(handle, NbdError::Io);
        assert_eq!(server.sent, error_chunk(4, EIO, "input/output error"));
    }
}

#[test]
fn requests_with_one_cookie_are_told_apart_by_their_handles() {
    let mut server = Server::attached("r0", false);
    server.feed(&[request(READ, 0, 5, 0, 1), request(READ, 0, 5, 1, 1)].concat());
    let handles: Vec<_> = server
        .submitted
        .drain(..)
        .map(|request| request.handle)
        .collect();
    assert_ne!(handles[0], handles[1]);
    server.complete(handles[1], Completion::Data(vec![b'b']));
    server.complete(handles[0], Completion::Data(vec![b'a']));
    assert_eq!(
        server.sent,
        [simple(0, 5), vec![b'b'], simple(0, 5), vec![b'a']].concat()
    );
}

#[test]
fn a_wrong_request_magic_closes_at_once() {
    let mut server = Server::attached("r0", false);
    server.feed(&[0; 28]);
    assert_eq!(
        server.closed,
        Some(CloseReason::BadRequestMagic { magic: 0 })
    );
    assert_eq!(server.session.phase(), Phase::Closed);
}

#[test]
fn disc_finishes_what_is_outstanding_and_ignores_what_follows() {
    let mut server = Server::attached("r0", false);
    server.feed(&write(0, 1, 0, b"one"));
    let trailing = b"a client must not send anything more";
    let disc = request(DISC, 0, 3, 0, 0);
    server.feed(&[request(READ, 0, 2, 0, 1), disc, trailing.to_vec()].concat());
    server.feed(trailing);
    assert_eq!(server.closed, None);
    assert!(!server.session.can_receive());
    assert!(matches!(server.session.phase(), Phase::Draining(_)));
    let handles: Vec<_> = server
        .submitted
        .drain(..)
        .map(|request| request.handle)
        .collect();
    server.complete(handles[1], Completion::Data(vec![b'x']));
    assert_eq!(server.closed, None);
    server.complete(handles[0], Completion::Done);
    assert_eq!(
        server.sent,
        [simple(0, 2), vec![b'x'], simple(0, 1)].concat()
    );
    assert_eq!(server.closed, Some(CloseReason::Disconnected));
}

#[test]
fn disc_with_nothing_outstanding_closes_at_once() {
    let mut server = Server::attached("r0", true);
    server.feed(&request(DISC, 0, 3, 0, 0));
    assert_eq!(
        (server.closed, server.sent.len()),
        (Some(CloseReason::Disconnected), 0)
    );
}

#[test]
fn the_end_of_the_stream_drops_half_a_write_and_finishes_the_rest() {
    let whole = [write(0, 1, 0, b"one"), write(0, 2, 0, b"two")].concat();
    let first_len = 28 + 3;
    for end in first_len..whole.len() {
        let mut server = Server::attached("r0", false);
        server.feed(&whole[..end]);
        server.session.handle_eof(&mut server.out);
        server.collect();
        assert_eq!(server.closed, None);
        let (handle, _) = server.take_request();
        server.complete(handle, Completion::Done);
        assert_eq!(server.sent, simple(0, 1));
        assert_eq!(server.closed, Some(CloseReason::PeerClosed));
    }
}

#[test]
fn lengths_up_to_64_mib_are_taken_and_longer_writes_close() {
    let size = 1 << 30;
    let mut server = Server::big(size);
    let data = vec![0xa5; 64 << 20];
    server.feed(&write(0, 1, 0, &data));
    let (handle, kind) = server.take_request();
    assert!(matches!(kind, RequestKind::Write { data, .. } if data.len() == 64 << 20));
    server.complete(handle, Completion::Done);
    server.feed(&request(READ, 0, 2, 0, 64 << 20));
    assert_eq!(
        server.take_request().1,
        RequestKind::Read {
            offset: 0,
            len: 64 << 20
        }
    );
    server.feed(&request(WRITE, 0, 3, 0, (64 << 20) + 1));
    assert_eq!(
        server.closed,
        Some(CloseReason::PayloadTooLong {
            len: (64 << 20) + 1
        })
    );
}

#[test]
fn a_read_above_64_mib_is_an_error_not_an_end() {
    for (structured, error) in [(false, EINVAL), (true, EOVERFLOW)] {
        let mut server = Server::big(1 << 40);
        if structured {
            server = Server::big_structured(1 << 40);
        }
        server.feed(&request(READ, 0, 2, 0, u32::MAX));
        let sent = server.take_sent();
        let code = if structured {
            &sent[20..24]
        } else {
            &sent[4..8]
        };
        assert_eq!(code, error.to_be_bytes());
        server.feed(&request(ZEROES, 0, 2, 0, u32::MAX));
        let expected = RequestKind::WriteZeroes {
            offset: 0,
            len: u32::MAX.into(),
            no_hole: false,
            fast: false,
            fua: false,
        };
        assert_eq!(
            server.take_request().1,
            expected,
            "zeroes may be as long as they like"
        );
    }
}

#[test]
fn zeroes_that_would_not_be_fast_are_not_supported() {
    for structured in [false, true] {
        let mut server = Server::attached("r0", structured);
        server.feed(&request(ZEROES, FAST_ZERO, 9, 0, 4096));
        let (handle, kind) = server.take_request();
        assert!(matches!(kind, RequestKind::WriteZeroes { fast: true, .. }));
        server.fail(handle, NbdError::NotSupported);
        let expected = if structured {
            error_chunk(9, ENOTSUP, "operation not supported")
        } else {
            simple(ENOTSUP, 9)
        };
        assert_eq!(server.sent, expected);
    }
}

fn allocation(extents: &[(u64, u32)]) -> Completion<Vec<u8>> {
    let extent = |(len, status): &(u64, u32)| StatusExtent {
        len: *len,
        status: *status,
    };
    Completion::Status(BlockStatus {
        allocation: extents.iter().map(extent).collect(),
        dirty: Vec::new(),
    })
}

#[test]
fn block_status_tells_what_the_caller_knows_of_the_selected_export() {
    let mut server = Server::with_contexts(8, &["base:allocation"]);
    server.feed(&request(STATUS, 0, 6, 512, 4096));
    let (handle, kind) = server.take_request();
    let expected = RequestKind::BlockStatus {
        offset: 512,
        len: 4096,
        contexts: Contexts {
            allocation: true,
            dirty: false,
        },
        one: false,
    };
    assert_eq!(kind, expected);
    server.complete(handle, allocation(&[(1024, 3), (1 << 20, 0)]));
    let extents = [0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 3, 0, 0, 12, 0, 0, 0, 0, 0];
    assert_eq!(server.sent, chunk(5, 6, &extents));
}

#[test]
fn block_status_of_one_extent_answers_one() {
    let mut server = Server::with_contexts(8, &["base:allocation"]);
    server.feed(&request(STATUS, REQ_ONE, 6, 512, 4096));
    let (handle, kind) = server.take_request();
    assert!(matches!(kind, RequestKind::BlockStatus { one: true, .. }));
    server.complete(handle, allocation(&[(1024, 3), (1 << 20, 0)]));
    let extent = [0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 3];
    assert_eq!(server.sent, chunk(5, 6, &extent));
}

#[test]
fn block_status_of_the_unknown_is_data_that_others_may_lack() {
    let mut server = Server::with_contexts(8, &["base:allocation", "twinblk:dirty"]);
    server.feed(&request(STATUS, 0, 6, 512, 4096));
    let (handle, _) = server.take_request();
    server.complete(handle, Completion::Status(BlockStatus::default()));
    let mut first = chunk(5, 6, &[0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0]);
    first[4..6].copy_from_slice(&[0, 0]);
    let second = chunk(5, 6, &[0, 0, 0, 2, 0, 0, 16, 0, 0, 0, 0, 1]);
    assert_eq!(
        server.sent,
        [first, second].concat(),
        "only the last is DONE"
    );
}

#[test]
fn block_status_without_a_context_of_this_export_or_a_range_is_invalid() {
    let einval = |mut server: Server, bytes: &[u8]| {
        server.feed(bytes);
        assert_eq!(server.sent[20..24], EINVAL.to_be_bytes());
        assert!(server.submitted.is_empty());
    };
    let allocation = || Server::with_contexts(8, &["base:allocation"]);
    einval(allocation(), &request(STATUS, 0, 6, 0, 0));
    einval(allocation(), &request(STATUS, 0, 6, SIZE, 1));
    einval(
        Server::with_contexts(8, &[]),
        &request(STATUS, 0, 6, 0, 4096),
    );
    let mut other = Server::haggling();
    other.feed(&option(8, &[]));
    other.feed(&option(10, &meta_request("r0/1", &["base:allocation"])));
    other.feed(&option(7, &info_request("r0", &[])));
    other.sent.clear();
    einval(other, &request(STATUS, 0, 6, 0, 4096));
    assert_error("r0", true, &request(STATUS, 0, 6, 0, 4096), EINVAL);
    assert_error("r0", false, &request(STATUS, 0, 6, 0, 4096), EINVAL);
}

#[test]
fn a_failed_set_meta_context_forgets_the_selection() {
    let mut server = Server::haggling();
    server.feed(&option(8, &[]));
    server.feed(&option(10, &meta_request("r0", &["base:allocation"])));
    server.feed(&option(10, &meta_request("nope", &["base:allocation"])));
    server.feed(&option(7, &info_request("r0", &[])));
    server.sent.clear();
    server.feed(&request(STATUS, 0, 6, 0, 4096));
    assert_eq!(server.sent[20..24], EINVAL.to_be_bytes());
}
