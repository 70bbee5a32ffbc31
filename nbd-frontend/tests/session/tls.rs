//! Connections that must have TLS (the specification's FORCEDTLS mode), and exports that are not
//! for every client.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::{CloseReason, Export, ExportIndex, ExportList, Phase, Refusal, Session};

use crate::harness::{
    SIZE, Server, ack, exports, info_request, meta_request, option, option_reply, reply_types,
};

const POLICY: u32 = 0x8000_0002;
const INVALID: u32 = 0x8000_0003;
const TLS_REQD: u32 = 0x8000_0005;
const UNKNOWN: u32 = 0x8000_0006;

/// Flags agreed, nothing in `sent`.
fn awaiting_tls() -> Server {
    let mut server = Server::awaiting_tls();
    assert_eq!(server.take_sent(), b"NBDMAGICIHAVEOPT\x00\x03");
    server.feed(&3u32.to_be_bytes());
    server
}

/// The same with TLS set up.
fn secured(exports: ExportList) -> Server {
    let mut server = awaiting_tls();
    server.feed(&option(5, &[]));
    assert_eq!((server.take_sent(), server.tls_starts), (ack(5), 1));
    server.session.note_secured(exports, &mut server.out);
    server
}

#[test]
fn before_tls_every_option_but_starttls_and_abort_is_refused() {
    let mut server = awaiting_tls();
    for (number, data) in [
        (3, Vec::new()),
        (6, info_request("r0", &[3])),
        (7, info_request("r0", &[3])),
        (8, Vec::new()),
        (9, meta_request("r0", &[])),
        (10, meta_request("r0", &["base:allocation"])),
        (11, Vec::new()),
        (99, vec![b'I'; 65_536]),
    ] {
        server.feed(&option(number, &data));
        assert_eq!(reply_types(&server.take_sent()), [TLS_REQD], "{number}");
    }
    server.feed(&option(2, &[]));
    assert_eq!(server.take_sent(), ack(2));
    assert_eq!(server.closed, Some(CloseReason::Aborted));
}

#[test]
fn export_name_before_tls_closes() {
    for client_flags in [0u32, 3] {
        let mut server = Server::awaiting_tls();
        server.feed(&client_flags.to_be_bytes());
        server.feed(&option(1, b"r0"));
        assert_eq!(server.closed, Some(CloseReason::TlsRequired));
    }
}

#[test]
fn starttls_with_data_is_invalid_and_may_be_tried_again() {
    let mut server = awaiting_tls();
    server.feed(&option(5, b"x"));
    assert_eq!(reply_types(&server.take_sent()), [INVALID]);
    assert_eq!(server.tls_starts, 0);
    server.feed(&option(5, &[]));
    assert_eq!((server.take_sent(), server.tls_starts), (ack(5), 1));
    assert_eq!(server.session.phase(), Phase::Handshake);
}

/// CVE-2021-3716: somebody on the way puts an option behind the client's STARTTLS, to be taken for
/// the client's own once TLS stands.
#[test]
fn clear_text_behind_starttls_closes_however_it_was_cut() {
    for injected in [
        option(8, &[]),
        option(7, &info_request("r0", &[])),
        vec![0x16],
    ] {
        let mut server = awaiting_tls();
        server.feed(&[option(5, &[]), injected.clone()].concat());
        assert_eq!(server.closed, Some(CloseReason::ClearTextBehindStartTls));
        assert_eq!(server.sent, ack(5), "and nothing but the ACK was said");

        let mut server = awaiting_tls();
        server.feed(&option(5, &[]));
        server.feed(&injected[..1]);
        assert_eq!(server.closed, Some(CloseReason::ClearTextBehindStartTls));
    }
}

#[test]
fn within_tls_the_handshake_begins_again_without_flags() {
    let mut server = secured(exports());
    server.feed(&option(5, &[]));
    assert_eq!(reply_types(&server.take_sent()), [INVALID], "TLS in TLS");
    server.feed(&option(3, &[]));
    assert_eq!(reply_types(&server.take_sent()), [2, 2, 1]);
    // Nothing was agreed yet: metadata contexts still want structured replies.
    server.feed(&option(10, &meta_request("r0", &["base:allocation"])));
    assert_eq!(reply_types(&server.take_sent()), [INVALID]);
    server.feed(&option(7, &info_request("r0", &[])));
    assert_eq!(server.session.phase(), Phase::Transmission(ExportIndex(0)));
}

/// The count of options is one for both halves, so that TLS does not double what a client may cost.
#[test]
fn options_before_tls_count() {
    let mut server = awaiting_tls();
    for _ in 0..127 {
        server.feed(&option(3, &[]));
    }
    server.feed(&option(5, &[]));
    server.session.note_secured(exports(), &mut server.out);
    server.feed(&option(3, &[]));
    assert_eq!(server.closed, Some(CloseReason::TooManyOptions));
}

#[test]
fn tls_that_nobody_asked_for_is_a_bug_that_costs_one_connection() {
    let mut server = Server::haggling();
    server.session.note_secured(exports(), &mut server.out);
    server.collect();
    assert!(matches!(server.closed, Some(CloseReason::Bug(_))));
}

#[test]
fn an_export_for_others_is_not_listed_and_refused_by_every_door() {
    let reason = "the certificate CN=kvm-b may not open r1";
    let mut other = Export::new("r1", SIZE);
    other.refusal = Some(Refusal::NotAllowed(reason.to_owned()));
    let exports = ExportList::new(vec![Export::new("r0", SIZE), other]).unwrap();
    let mut server = secured(exports);
    server.feed(&option(3, &[]));
    assert_eq!(reply_types(&server.take_sent()), [2, 1]);
    for number in [6, 7] {
        server.feed(&option(number, &info_request("r1", &[])));
        let refused = option_reply(number, POLICY, reason.as_bytes());
        assert_eq!(server.take_sent(), refused);
    }
    server.feed(&option(8, &[]));
    server.take_sent();
    for number in [9, 10] {
        server.feed(&option(number, &meta_request("r1", &["base:allocation"])));
        assert_eq!(reply_types(&server.take_sent()), [POLICY]);
    }
    server.feed(&option(1, b"r1"));
    assert_eq!(server.closed, Some(CloseReason::Refused));
}

#[test]
fn without_a_default_the_empty_name_is_unknown() {
    let mut server = Server::haggling();
    server.session = Session::new(exports().without_default(), &mut server.out);
    server.collect();
    server.sent.clear();
    server.feed(&3u32.to_be_bytes());
    for number in [6, 7] {
        server.feed(&option(number, &info_request("", &[])));
        assert_eq!(reply_types(&server.take_sent()), [UNKNOWN]);
    }
    server.feed(&option(1, b""));
    assert_eq!(server.closed, Some(CloseReason::UnknownExport));
}
