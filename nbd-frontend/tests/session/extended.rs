//! Extended headers: 64-bit lengths, payloads announced by a flag, long reply heads.

// SPDX-License-Identifier: MIT OR Apache-2.0

use nbd_frontend::{
    BlockStatus, CloseReason, Completion, Export, ExportList, NbdError, RequestKind, Session,
    StatusExtent,
};

use crate::harness::{
    CACHE, DISC, FLUSH, READ, SIZE, STATUS, Server, TRIM, WRITE, ZEROES, info_request, option,
};

const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

pub(crate) fn extended(command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    [
        [0x21, 0xe4, 0x1c, 0x71].as_slice(),
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

pub(crate) fn extended_write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let len = u64::try_from(data.len()).unwrap();
    let head = extended(WRITE, flags | PAYLOAD_LEN, cookie, offset, len);
    [head.as_slice(), data].concat()
}

/// An extended chunk with DONE.
fn chunk(kind: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let len = u64::try_from(payload.len()).unwrap();
    [
        [0x6e, 0x8a, 0x27, 0x8c, 0, 1].as_slice(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

fn attached(name: &str) -> Server {
    let mut server = Server::haggling();
    server.feed(&option(11, &[]));
    server.feed(&option(7, &info_request(name, &[])));
    server.sent.clear();
    server
}

fn big(size: u64) -> Server {
    let exports = ExportList::new(vec![Export::new("big", size)]).unwrap();
    let mut server = Server::new(None);
    server.session = Session::new(exports, &mut server.out);
    server.feed(&3u32.to_be_bytes());
    server.feed(&option(11, &[]));
    server.feed(&option(7, &info_request("", &[])));
    server.sent.clear();
    server
}

/// Checks that `bytes` are answered with `error` and that the stream stays in step.
fn assert_error(export: &str, bytes: &[u8], error: u32) {
    let mut server = attached(export);
    server.feed(bytes);
    assert!(server.submitted.is_empty(), "{:?}", server.submitted);
    let sent = server.take_sent();
    assert_eq!(sent[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0x80, 1]);
    assert_eq!(sent[8..24], bytes[8..24], "cookie and offset come back");
    assert_eq!(sent[32..36], error.to_be_bytes(), "{:x?}", &bytes[..32]);
    assert!(sent.len() <= 78, "an error costs no allocation");
    server.feed(&extended(CACHE, 0, 0x55, 0, 1));
    assert_eq!(server.sent, chunk(0, 0x55, 0, &[]));
}

#[test]
fn reads_and_writes_are_answered_with_long_heads() {
    for flags in [0, DF] {
        let mut server = attached("r0");
        server.feed(&extended(READ, flags, 7, 4096, 3));
        let (handle, kind) = server.take_request();
        let expected = RequestKind::Read {
            offset: 4096,
            len: 3,
        };
        assert_eq!(kind, expected);
        server.complete(handle, Completion::Data(b"abc".to_vec()));
        let payload = [4096u64.to_be_bytes().as_slice(), b"abc"].concat();
        assert_eq!(server.sent, chunk(1, 7, 4096, &payload));
    }
    let mut server = attached("r0");
    server.feed(&extended_write(1, 9, 513, b"payload"));
    let (handle, kind) = server.take_request();
    let expected = RequestKind::Write {
        offset: 513,
        data: b"payload".to_vec(),
        fua: true,
    };
    assert_eq!(kind, expected);
    server.complete(handle, Completion::Done);
    assert_eq!(server.sent, chunk(0, 9, 513, &[]));
}

#[test]
fn a_compact_request_closes() {
    let mut server = attached("r0");
    server.feed(&crate::harness::request(READ, 0, 1, 0, 512));
    server.feed(&[0; 4]);
    assert_eq!(
        server.closed,
        Some(CloseReason::BadRequestMagic { magic: 0x2560_9513 })
    );
}

#[test]
fn a_write_has_a_payload_even_if_its_flag_was_forgotten() {
    // QEMU 10.0 forgets it.
    let mut server = attached("r0");
    server.feed(&[extended(WRITE, 0, 9, 512, 3).as_slice(), b"abc"].concat());
    let (handle, kind) = server.take_request();
    assert!(matches!(kind, RequestKind::Write { data, .. } if data == b"abc"));
    server.complete(handle, Completion::Done);
    assert_eq!(server.sent, chunk(0, 9, 512, &[]));
}

#[test]
fn the_payload_of_any_other_command_is_skipped_and_refused() {
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES, STATUS, 8, 99] {
        let head = extended(command, PAYLOAD_LEN, 1, 0, 600);
        assert_error("r0", &[head, vec![0x21; 600]].concat(), EINVAL);
    }
}

#[test]
fn rejected_writes_are_skipped() {
    assert_error("r0", &extended_write(0, 1, SIZE, &[0x21; 512]), ENOSPC);
    assert_error("r0", &extended_write(2, 1, 0, &[0x21; 512]), EINVAL);
    assert_error("r0/1", &extended_write(0, 1, 0, &[0x21; 512]), EPERM);
}

#[test]
fn lengths_of_64_bits_are_judged_against_the_size() {
    for len in [SIZE + 1, 1 << 32, 1 << 63, u64::MAX] {
        assert_error("r0", &extended(READ, 0, 1, 0, len), EINVAL);
        assert_error("r0", &extended(TRIM, 0, 1, 1, len), EINVAL);
        assert_error("r0", &extended(ZEROES, 0, 1, 1, len), ENOSPC);
    }
    let size = 1 << 40;
    let mut server = big(size);
    server.feed(&extended(ZEROES, FAST_ZERO, 1, 0, size));
    let expected = RequestKind::WriteZeroes {
        offset: 0,
        len: size,
        no_hole: false,
        fast: true,
        fua: false,
    };
    assert_eq!(server.take_request().1, expected);
    server.feed(&extended(TRIM, 0, 1, 0, size));
    assert!(matches!(server.take_request().1, RequestKind::Trim { len, .. } if len == size));
    server.feed(&extended(READ, 0, 2, 0, 1 << 33));
    assert_eq!(server.sent[32..36], EOVERFLOW.to_be_bytes());
}

#[test]
fn a_payload_above_64_mib_closes_whatever_the_command() {
    for command in [WRITE, READ, 99] {
        for len in [(64 << 20) + 1, u64::MAX] {
            let mut server = attached("r0");
            server.feed(&extended(command, PAYLOAD_LEN, 1, 0, len));
            assert_eq!(server.closed, Some(CloseReason::PayloadTooLong { len }));
        }
    }
}

#[test]
fn block_status_has_extents_of_64_bits() {
    for flags in [0, REQ_ONE] {
        let mut server = Server::with_contexts(11, &["base:allocation"]);
        server.feed(&extended(STATUS, flags, 6, 4096, SIZE - 4096));
        let (handle, _) = server.take_request();
        let extent = |len, status| StatusExtent { len, status };
        let status = BlockStatus {
            allocation: vec![extent(8192, 3), extent(u64::MAX, 0)],
            dirty: Vec::new(),
        };
        server.complete(handle, Completion::Status(status));
        let mut extents = vec![[8192u64, 3]];
        if flags == 0 {
            extents.push([SIZE - 4096 - 8192, 0]);
        }
        let count = u32::try_from(extents.len()).unwrap();
        let mut payload = [1u32.to_be_bytes(), count.to_be_bytes()].concat();
        payload.extend(extents.iter().flatten().flat_map(|word| word.to_be_bytes()));
        assert_eq!(server.sent, chunk(6, 6, 4096, &payload));
    }
}

#[test]
fn a_failure_and_a_goodbye_look_as_ever() {
    let mut server = attached("r0");
    server.feed(&extended(FLUSH, 0, 4, 0, 0));
    let (handle, _) = server.take_request();
    server.feed(&extended(DISC, 0, 5, 0, 0));
    assert_eq!(server.closed, None);
    server.fail(handle, NbdError::Io);
    assert_eq!(server.sent[32..36], 5u32.to_be_bytes());
    assert_eq!(server.closed, Some(CloseReason::Disconnected));
}
