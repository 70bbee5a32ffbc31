//! The handshake, row by row of the protocol's sections "Fixed newstyle negotiation" and "Option
//! types".

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::{CloseReason, ExportIndex, Phase};

use crate::harness::{
    SIZE, Server, ack, counted, info_export, info_request, meta_request, option, option_reply,
    reply_types,
};

const UNSUP: u32 = 0x8000_0001;
const POLICY: u32 = 0x8000_0002;
const INVALID: u32 = 0x8000_0003;
const EXT_HEADER_REQD: u32 = 0x8000_000a;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 0xd6d;
const DF: u16 = 0x80;
/// HAS_FLAGS, READ_ONLY, FLUSH, FUA, CAN_MULTI_CONN, CACHE.
const FLAGS_READ_ONLY: u16 = 0x50f;

#[test]
fn the_greeting_offers_fixed_newstyle_and_no_zeroes() {
    assert_eq!(Server::new(None).sent, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn unknown_client_flags_close() {
    let mut server = Server::new(None);
    server.feed(&0x11u32.to_be_bytes());
    assert_eq!(
        server.closed,
        Some(CloseReason::UnknownClientFlags { flags: 0x11 })
    );
}

#[test]
fn a_wrong_option_magic_closes() {
    let mut server = Server::haggling();
    server.feed(b"IHAVEOPU\0\0\0\x03\0\0\0\0");
    assert_eq!(server.closed, Some(CloseReason::BadOptionMagic));
    assert!(server.sent.is_empty());
}

#[test]
fn an_unknown_option_is_unsupported_and_its_data_skipped() {
    for number in [0, 4, 5, 12, 99, u32::MAX] {
        let mut server = Server::haggling();
        server.feed(&option(number, &vec![b'I'; 65_536]));
        assert_eq!(reply_types(&server.take_sent()), [UNSUP], "{number}");
        server.feed(&option(2, &[]));
        assert_eq!(server.sent, ack(2));
    }
}

#[test]
fn an_option_above_64_kib_closes_before_its_data_is_read() {
    let mut server = Server::haggling();
    server.feed(&option(99, &[])[..12]);
    server.feed(&65_537u32.to_be_bytes());
    assert_eq!(
        server.closed,
        Some(CloseReason::OptionTooLong { len: 65_537 })
    );
}

#[test]
fn the_129th_option_closes() {
    let mut server = Server::haggling();
    for _ in 0..128 {
        server.feed(&option(99, &[]));
    }
    assert_eq!(
        (server.closed, reply_types(&server.sent).len()),
        (None, 128)
    );
    server.feed(&option(99, &[]));
    assert_eq!(server.closed, Some(CloseReason::TooManyOptions));
}

#[test]
fn abort_is_acknowledged_even_with_data() {
    for data in [&[][..], b"whatever"] {
        let mut server = Server::haggling();
        server.feed(&option(2, data));
        assert_eq!(server.sent, ack(2));
        assert_eq!(server.closed, Some(CloseReason::Aborted));
    }
}

#[test]
fn list_names_each_export_once_with_its_description() {
    let mut server = Server::haggling();
    server.feed(&option(3, &[]));
    let first = [counted(b"r0").as_slice(), b"volume 0"].concat();
    let expected = [
        option_reply(3, 2, &first),
        option_reply(3, 2, &counted(b"r0/1")),
        ack(3),
    ]
    .concat();
    assert_eq!(server.take_sent(), expected);
    server.feed(&option(3, &[]));
    assert_eq!(
        server.sent, expected,
        "a second list is as good as the first"
    );
}

#[test]
fn an_export_that_is_not_listed_is_there_for_who_knows_its_name() {
    const READ_ONLY_FLAGS: u16 = 0b101_0000_1111;
    for name in ["r0/ro", "r0/0/ro"] {
        let mut server = Server::haggling();
        server.feed(&option(7, &info_request(name, &[])));
        let info = option_reply(7, 3, &info_export(SIZE, READ_ONLY_FLAGS));
        assert_eq!(server.sent, [info, ack(7)].concat());
        let phase = Phase::Transmission(ExportIndex(2));
        assert_eq!(server.session.phase(), phase);
    }
}

#[test]
fn list_with_data_is_invalid() {
    let mut server = Server::haggling();
    server.feed(&option(3, b"x"));
    assert_eq!(reply_types(&server.sent), [INVALID]);
    assert_eq!(server.closed, None);
}

#[test]
fn info_and_go_answer_what_was_asked_and_only_go_attaches() {
    let block_size = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0];
    for number in [6, 7] {
        let mut server = Server::haggling();
        server.feed(&option(number, &info_request("r0/0", &[3, 1, 2, 77])));
        let expected = [
            option_reply(number, 3, &info_export(SIZE, FLAGS)),
            option_reply(number, 3, b"\0\x01r0"),
            option_reply(number, 3, b"\0\x02volume 0"),
            option_reply(number, 3, &block_size),
            ack(number),
        ]
        .concat();
        assert_eq!(server.sent, expected);
        let phase = if number == 7 {
            Phase::Transmission(ExportIndex(0))
        } else {
            Phase::Handshake
        };
        assert_eq!(server.session.phase(), phase);
    }
}

#[test]
fn go_without_requests_sends_size_and_flags_only() {
    let mut server = Server::haggling();
    server.feed(&option(7, &info_request("", &[])));
    let expected = [option_reply(7, 3, &info_export(SIZE, FLAGS)), ack(7)].concat();
    assert_eq!(server.sent, expected);
}

#[test]
fn a_description_that_is_empty_is_not_sent() {
    let mut server = Server::haggling();
    server.feed(&option(7, &info_request("r0/1", &[2])));
    let expected = [
        option_reply(7, 3, &info_export(SIZE / 2, FLAGS_READ_ONLY)),
        ack(7),
    ]
    .concat();
    assert_eq!(server.sent, expected);
    assert_eq!(server.session.phase(), Phase::Transmission(ExportIndex(1)));
}

#[test]
fn an_unknown_name_is_answered_and_the_handshake_goes_on() {
    for name in ["nope", "r0/", &"n".repeat(4096), "R0"] {
        let mut server = Server::haggling();
        server.feed(&option(7, &info_request(name, &[])));
        assert_eq!(reply_types(&server.sent), [UNKNOWN]);
        assert!(server.sent.len() < 1000, "QEMU takes no longer text");
        server.feed(&option(7, &info_request("r0", &[])));
        assert_eq!(server.session.phase(), Phase::Transmission(ExportIndex(0)));
    }
}

#[test]
fn malformed_names_and_lengths_are_invalid() {
    let cases: [(&[u8], u32); 8] = [
        (b"", INVALID),
        (b"\0\0\0\x02r0", INVALID),
        (b"\0\0\0\x03r0\0\0", INVALID),
        (b"\xff\xff\xff\xffr0\0\0", INVALID),
        (b"\0\0\0\x02r0\0\x01", INVALID),
        (b"\0\0\0\x02r0\0\0\0", INVALID),
        (b"\0\0\0\x02r\0\0\0", INVALID),
        (b"\0\0\0\x02\xff\xfe\0\0", INVALID),
    ];
    for number in [6, 7] {
        for (data, reply) in cases {
            let mut server = Server::haggling();
            server.feed(&option(number, data));
            assert_eq!(reply_types(&server.sent), [reply], "{data:?}");
            assert_eq!(server.session.phase(), Phase::Handshake);
        }
        let mut server = Server::haggling();
        server.feed(&option(number, &info_request(&"n".repeat(4097), &[])));
        assert_eq!(reply_types(&server.sent), [TOO_BIG]);
    }
}

#[test]
fn structured_replies_are_agreed_once_and_set_df() {
    let mut server = Server::haggling();
    server.feed(&option(8, b"x"));
    assert_eq!(reply_types(&server.take_sent()), [INVALID]);
    server.feed(&option(8, &[]));
    assert_eq!(server.take_sent(), ack(8));
    server.feed(&option(8, &[]));
    assert_eq!(reply_types(&server.take_sent()), [INVALID]);
    server.feed(&option(6, &info_request("r0", &[])));
    let expected = [option_reply(6, 3, &info_export(SIZE, FLAGS | DF)), ack(6)].concat();
    assert_eq!(server.sent, expected);
}

#[test]
fn export_name_answers_without_header_and_pads_unless_agreed() {
    for (client_flags, padding) in [(3u32, 0), (2, 0), (1, 124), (0, 124)] {
        let mut server = Server::new(None);
        server.sent.clear();
        server.feed(&client_flags.to_be_bytes());
        server.feed(&option(1, b"r0"));
        let expected = [
            SIZE.to_be_bytes().as_slice(),
            &FLAGS.to_be_bytes(),
            &vec![0; padding],
        ]
        .concat();
        assert_eq!(server.sent, expected);
        assert_eq!(server.session.phase(), Phase::Transmission(ExportIndex(0)));
    }
}

#[test]
fn export_name_takes_the_empty_name_and_closes_on_others() {
    let mut server = Server::haggling();
    server.feed(&option(1, b""));
    assert_eq!(server.session.phase(), Phase::Transmission(ExportIndex(0)));
    for name in [
        b"nope".to_vec(),
        b"r\0".to_vec(),
        vec![0xff],
        vec![b'n'; 5000],
    ] {
        let mut server = Server::haggling();
        server.feed(&option(1, &name));
        assert_eq!(server.closed, Some(CloseReason::UnknownExport));
        assert!(server.sent.is_empty());
    }
}

#[test]
fn plain_newstyle_knows_only_export_name() {
    let mut server = Server::new(None);
    server.feed(&0u32.to_be_bytes());
    server.feed(&option(7, &info_request("r0", &[])));
    assert_eq!(server.closed, Some(CloseReason::OptionInPlainNewstyle));
}

#[test]
fn a_refusal_answers_info_and_go_with_its_reason_and_list_as_ever() {
    let reason = "this node is Secondary";
    let mut server = Server::new(Some(reason));
    server.feed(&3u32.to_be_bytes());
    server.sent.clear();
    for number in [6, 7] {
        server.feed(&option(number, &info_request("r0", &[3])));
        assert_eq!(
            server.take_sent(),
            option_reply(number, POLICY, reason.as_bytes())
        );
    }
    server.feed(&option(7, &info_request("nope", &[])));
    assert_eq!(reply_types(&server.take_sent()), [UNKNOWN]);
    server.feed(&option(3, &[]));
    assert_eq!(reply_types(&server.take_sent()), [2, 2, 1]);
    server.feed(&option(1, b"r0"));
    assert_eq!(server.closed, Some(CloseReason::Refused));
}

#[test]
fn metadata_contexts_need_structured_replies() {
    for number in [9, 10] {
        let mut server = Server::haggling();
        server.feed(&option(number, &meta_request("r0", &["base:allocation"])));
        assert_eq!(reply_types(&server.sent), [INVALID]);
    }
}

#[test]
fn list_meta_context_finds_contexts_by_name_wildcard_and_no_query() {
    let allocation = option_reply(9, 4, b"\0\0\0\0base:allocation");
    let dirty = option_reply(9, 4, b"\0\0\0\0twinblk:dirty");
    let found = [allocation.clone(), ack(9)].concat();
    let cases: [(&[&str], Vec<u8>); 9] = [
        (&[], [allocation.clone(), dirty.clone(), ack(9)].concat()),
        (&["twinblk:"], [dirty.clone(), ack(9)].concat()),
        (
            &["twinblk:dirt", "twinblk:dirty"],
            [dirty.clone(), ack(9)].concat(),
        ),
        (&["twinblk:", "base:"], [allocation, dirty, ack(9)].concat()),
        (&["base:"], found.clone()),
        (&["x-other:", "base:allocation", "base:"], found),
        (&["x-other:thing"], ack(9)),
        (&["base:allocatio"], ack(9)),
        (&["qemu:dirty-bitmap:a"], ack(9)),
    ];
    for (queries, expected) in cases {
        let mut server = structured();
        server.feed(&option(9, &meta_request("r0", queries)));
        assert_eq!(server.sent, expected, "{queries:?}");
    }
}

#[test]
fn set_meta_context_selects_contexts_by_their_names_only() {
    let allocation = option_reply(10, 4, b"\0\0\0\x01base:allocation");
    let dirty = option_reply(10, 4, b"\0\0\0\x02twinblk:dirty");
    let found = [allocation.clone(), ack(10)].concat();
    let cases: [(&[&str], Vec<u8>); 7] = [
        (&["twinblk:dirty"], [dirty.clone(), ack(10)].concat()),
        (
            &["twinblk:dirty", "base:allocation"],
            [allocation, dirty, ack(10)].concat(),
        ),
        (&["twinblk:"], ack(10)),
        (&["base:allocation"], found.clone()),
        (&["base:allocation", "base:allocation"], found),
        (&["base:"], ack(10)),
        (&[], ack(10)),
    ];
    for (queries, expected) in cases {
        let mut server = structured();
        server.feed(&option(10, &meta_request("", queries)));
        assert_eq!(server.sent, expected, "{queries:?}");
    }
}

#[test]
fn malformed_metadata_requests_are_invalid_and_the_stream_stays_in_step() {
    let good = meta_request("r0", &["base:allocation"]);
    let trailing = [good.as_slice(), &[0]].concat();
    let cases: [(&[u8], u32); 5] = [
        (&[], INVALID),
        (&good[..good.len() - 1], INVALID),
        (&trailing, INVALID),
        (b"\0\0\0\0\xff\xff\xff\xff", INVALID),
        (&meta_request("nope", &[]), UNKNOWN),
    ];
    for number in [9, 10] {
        for (data, reply) in cases {
            let mut server = structured();
            server.feed(&option(number, data));
            assert_eq!(reply_types(&server.take_sent()), [reply], "{data:?}");
            server.feed(&option(2, &[]));
            assert_eq!(server.sent, ack(2));
        }
    }
}

#[test]
fn extended_headers_are_agreed_once_with_or_without_structured_replies() {
    for structured in [false, true] {
        let mut server = Server::haggling();
        if structured {
            server.feed(&option(8, &[]));
            server.sent.clear();
        }
        server.feed(&option(11, b"x"));
        assert_eq!(reply_types(&server.take_sent()), [INVALID]);
        server.feed(&option(11, &[]));
        assert_eq!(server.take_sent(), ack(11));
        server.feed(&option(11, &[]));
        assert_eq!(reply_types(&server.take_sent()), [INVALID]);
        server.feed(&option(8, &[]));
        assert_eq!(reply_types(&server.take_sent()), [EXT_HEADER_REQD]);
        server.feed(&option(9, &meta_request("r0", &["base:"])));
        assert_eq!(reply_types(&server.take_sent()), [4, 1]);
        server.feed(&option(6, &info_request("r0", &[])));
        let expected = [option_reply(6, 3, &info_export(SIZE, FLAGS | DF)), ack(6)].concat();
        assert_eq!(server.sent, expected);
    }
}

#[test]
fn export_name_after_extended_headers_closes() {
    let mut server = Server::haggling();
    server.feed(&option(11, &[]));
    server.feed(&option(1, b"r0"));
    assert_eq!(
        server.closed,
        Some(CloseReason::ExportNameWithExtendedHeaders)
    );
}

#[test]
fn bytes_after_go_belong_to_the_transmission_phase() {
    let mut server = Server::haggling();
    let disc = crate::harness::request(2, 0, 0, 0, 0);
    server.feed(&[option(7, &info_request("r0", &[])), disc].concat());
    assert_eq!(server.closed, Some(CloseReason::Disconnected));
}

#[test]
fn a_client_that_leaves_at_any_byte_of_the_handshake_is_just_gone() {
    let script = [
        3u32.to_be_bytes().to_vec(),
        option(8, &[]),
        option(10, &meta_request("r0", &["base:allocation"])),
        option(7, &info_request("r0", &[3])),
    ]
    .concat();
    for end in 0..script.len() {
        let mut server = Server::new(None);
        server.feed(&script[..end]);
        server.session.handle_eof(&mut server.out);
        server.collect();
        assert_eq!(server.closed, Some(CloseReason::PeerClosed));
        assert!(server.submitted.is_empty());
    }
}

fn structured() -> Server {
    let mut server = Server::haggling();
    server.feed(&option(8, &[]));
    server.sent.clear();
    server
}
