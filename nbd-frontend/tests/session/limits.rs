//! What one connection may cost, and what a broken caller costs.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::session::limits::{REQUEST_COUNT_MAX, UNSENT_BYTES_MAX};
use nbd_frontend::{CloseReason, Completion, Pause, RequestHandle, RequestKind};

use crate::harness::{FLUSH, READ, Server, TRIM, request, simple, write};

#[test]
fn requests_beyond_the_limit_wait_until_one_completes() {
    let mut server = Server::attached("r0", false);
    for cookie in 0..200 {
        server.feed(&request(TRIM, 0, cookie, 0, 1));
    }
    assert_eq!(server.submitted.len(), REQUEST_COUNT_MAX);
    assert_eq!(server.session.pause(), Some(Pause::Requests));
    assert!(!server.session.can_receive());
    assert_eq!(server.session.in_flight_count(), REQUEST_COUNT_MAX);
    let mut completed = 0;
    while !server.submitted.is_empty() {
        let handle = server.submitted.remove(0).handle;
        server.complete(handle, Completion::Done);
        completed += 1;
    }
    assert_eq!((completed, server.kept.len()), (200, 0));
    assert!(server.session.can_receive());
    let expected: Vec<u8> = (0..200).flat_map(|cookie| simple(0, cookie)).collect();
    assert_eq!(server.sent, expected);
}

#[test]
fn bytes_beyond_the_limit_wait_and_other_requests_keep_their_order() {
    let mut server = Server::big(1 << 30);
    for cookie in 0..4 {
        server.feed(&request(READ, 0, cookie, 0, 32 << 20));
    }
    server.feed(&request(FLUSH, 0, 4, 0, 0));
    assert_eq!(server.submitted.len(), 3);
    assert_eq!(server.session.pause(), Some(Pause::RequestBytes));
    let handle = server.submitted.remove(0).handle;
    server.complete(handle, Completion::Data(vec![0; 32 << 20]));
    assert_eq!(server.submitted.len(), 4);
    assert_eq!(server.submitted[3].kind, RequestKind::Flush);
    assert!(server.session.can_receive());
}

#[test]
fn a_read_without_room_waits_and_is_submitted_once() {
    let mut server = Server::attached("r0", false);
    server.pool.read_left = 4096;
    server.feed(&request(READ, 0, 1, 0, 4096));
    server.feed(&request(READ, 0, 2, 4096, 4096));
    assert_eq!(server.submitted.len(), 1);
    assert_eq!(server.session.pause(), Some(Pause::Pool));
    assert!(!server.session.can_receive());
    server.pump();
    assert_eq!(server.submitted.len(), 1);
    server.pool.read_left = 4096;
    server.pump();
    assert_eq!((server.submitted.len(), server.pool.read_left), (2, 0));
    assert!(server.session.can_receive());
}

#[test]
fn an_exhausted_pool_pauses_before_the_payload_is_taken() {
    let mut server = Server::attached("r0", false);
    server.pool.left = 0;
    server.feed(&write(0, 1, 0, b"data"));
    assert_eq!(
        (server.session.pause(), server.kept.len()),
        (Some(Pause::Pool), 4)
    );
    assert!(server.submitted.is_empty());
    server.pump();
    assert_eq!(server.session.pause(), Some(Pause::Pool));
    server.pool.left = 1;
    server.pump();
    let (_, kind) = server.take_request();
    assert_eq!(
        kind,
        RequestKind::Write {
            offset: 0,
            data: b"data".to_vec(),
            fua: false
        }
    );
    assert!(server.session.can_receive());
}

#[test]
fn a_client_that_does_not_read_its_replies_gets_no_further_requests_in() {
    let mut server = Server::attached("r0", false);
    server.reads = false;
    let mut rounds = 0;
    while server.session.pause().is_none() {
        server.feed(&request(READ, 0, 1, 0, 1 << 20));
        if let Some(request) = server.submitted.pop() {
            server.complete(request.handle, Completion::Data(vec![0; 1 << 20]));
        }
        rounds += 1;
        assert!(
            rounds < 100,
            "{} bytes unsent",
            server.session.unsent_bytes()
        );
    }
    assert_eq!(server.session.pause(), Some(Pause::Unsent));
    assert!(server.session.unsent_bytes() <= UNSENT_BYTES_MAX + (2 << 20));
    server.session.note_sent(4 << 20);
    server.pump();
    assert_eq!((server.session.pause(), server.kept.len()), (None, 0));
}

#[test]
fn a_client_that_does_not_read_error_replies_is_held_as_well() {
    let mut server = Server::attached("r0", true);
    server.reads = false;
    let refused = request(READ, 0, 1, u64::MAX, 1).repeat(1000);
    let mut rounds = 0;
    while server.session.pause().is_none() {
        server.feed(&refused);
        rounds += 1;
        assert!(rounds < 1000);
    }
    assert!(server.session.unsent_bytes() <= UNSENT_BYTES_MAX + 64);
}

#[test]
fn a_completion_that_comes_twice_or_for_nothing_costs_only_this_connection() {
    let bug = |first: Completion<Vec<u8>>, second: Option<Completion<Vec<u8>>>| {
        let mut server = Server::attached("r0", false);
        server.feed(&request(READ, 0, 1, 0, 2));
        let (handle, _) = server.take_request();
        server.complete(handle, first);
        if let Some(second) = second {
            assert_eq!(server.closed, None);
            server.complete(handle, second);
        }
        assert!(
            matches!(server.closed, Some(CloseReason::Bug(_))),
            "{:?}",
            server.closed
        );
    };
    let whole = || Completion::Data(vec![0; 2]);
    bug(whole(), Some(whole()));
    bug(Completion::Data(vec![0; 3]), None);
    bug(Completion::Data(vec![0; 1]), None);
    bug(Completion::Done, None);
    let mut server = Server::attached("r0", false);
    server.complete(RequestHandle::from_u64(77), Completion::Done);
    assert!(matches!(server.closed, Some(CloseReason::Bug(_))));
}

#[test]
fn completions_after_the_close_are_dropped() {
    let mut server = Server::attached("r0", false);
    server.feed(&[request(READ, 0, 1, 0, 2), vec![0; 28]].concat());
    assert_eq!(
        server.closed,
        Some(CloseReason::BadRequestMagic { magic: 0 })
    );
    let (handle, _) = server.take_request();
    server.complete(handle, Completion::Data(vec![0; 2]));
    server.session.handle_eof(&mut server.out);
    server.collect();
    assert!(server.sent.is_empty());
}

const LONG: usize = 128 << 10;

/// A server in the middle of a long write whose first `here` bytes have arrived.
fn receiving(here: usize) -> (Server, Vec<u8>) {
    let data: Vec<u8> = (0u8..=250).cycle().take(LONG).collect();
    let mut server = Server::attached("r0", false);
    server.feed(&write(0, 1, 512, &data)[..28 + here]);
    (server, data)
}

#[test]
fn a_long_payload_is_received_in_place_in_any_number_of_pieces() {
    let (mut server, data) = receiving(100);
    let mut filled = 100;
    for piece in [1, 30_000, 70_000] {
        let mut direct = server
            .session
            .begin_direct_receive()
            .expect("long and mostly missing");
        assert_eq!(server.session.pause(), Some(Pause::DirectReceive));
        assert!(server.session.begin_direct_receive().is_none());
        let tail = direct.tail();
        assert_eq!(tail.len(), LONG - filled);
        tail[..piece].copy_from_slice(&data[filled..filled + piece]);
        server
            .session
            .end_direct_receive(direct, piece, &mut server.out);
        filled += piece;
        assert!(server.session.can_receive());
    }
    server.feed(&data[filled..]);
    let (_, kind) = server.take_request();
    assert_eq!(
        kind,
        RequestKind::Write {
            offset: 512,
            data,
            fua: false
        }
    );
}

#[test]
fn a_direct_receive_that_fills_the_payload_submits_it() {
    let (mut server, data) = receiving(0);
    let mut direct = server.session.begin_direct_receive().unwrap();
    direct.tail().copy_from_slice(&data);
    server
        .session
        .end_direct_receive(direct, LONG, &mut server.out);
    server.collect();
    let (handle, _) = server.take_request();
    server.complete(handle, Completion::Done);
    assert_eq!(server.sent, simple(0, 1));
}

#[test]
fn short_payloads_and_short_tails_are_not_lent() {
    let (mut server, _) = receiving(LONG - 4095);
    assert!(server.session.begin_direct_receive().is_none());
    let mut server = Server::attached("r0", false);
    assert!(server.session.begin_direct_receive().is_none());
    server.feed(&write(0, 1, 0, &[0; 65_535])[..100]);
    assert!(server.session.begin_direct_receive().is_none());
    assert!(Server::new(None).session.begin_direct_receive().is_none());
}

#[test]
fn the_end_of_the_stream_in_a_direct_receive_drops_the_write() {
    let (mut server, _) = receiving(10);
    let direct = server.session.begin_direct_receive().unwrap();
    server
        .session
        .end_direct_receive(direct, 0, &mut server.out);
    server.session.handle_eof(&mut server.out);
    server.collect();
    assert_eq!(server.closed, Some(CloseReason::PeerClosed));
    assert!(server.submitted.is_empty());
}

#[test]
fn a_direct_receive_of_more_than_the_tail_is_a_bug_of_the_caller() {
    let (mut server, _) = receiving(0);
    let direct = server.session.begin_direct_receive().unwrap();
    server
        .session
        .end_direct_receive(direct, LONG + 1, &mut server.out);
    server.collect();
    assert!(matches!(server.closed, Some(CloseReason::Bug(_))));
}
