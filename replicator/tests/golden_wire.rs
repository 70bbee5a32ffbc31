//! The bytes of every message, frozen for protocol version 1. If this test fails, peers of two
//! releases no longer understand each other: change the version, not the fixture.

// SPDX-License-Identifier: MIT OR Apache-2.0

mod hex;

use core::num::NonZeroU64;
use core::time::Duration;

use replicator::protocol::{
    DataKind, Decoded, DiskErrorCode, Frame, HEADER_LEN, Hello, Message, Opening, Preamble,
    PreambleReply, PreambleStatus, Purpose, RateOrder, Refusal, RelayPreamble, ReplicaClaim,
    ResyncReply, SecurePreamble, VersionRange, WriteId, WriteTerms, decode, encode,
};
use replicator::types::{
    BlockCount, BlockIndex, BlockRange, DataGeneration, InSync, NodeId, Payload, ReplicaId,
    ReplicationProtocol, ResourceId, ResyncRate, SessionId, ViewNumber, VolumeId, WriteEpoch,
};

const SESSION: SessionId = SessionId(0x1122_3344_5566_7788);
const VIEW: ViewNumber = ViewNumber(3);
const WRITE: WriteId = WriteId(0x0102_0304);

fn range() -> BlockRange {
    BlockRange::new(BlockIndex(0x1000), BlockCount(1))
}

fn block() -> Payload {
    Payload::from(vec![0xab; 4096])
}

fn hello(replica: Option<ReplicaClaim>) -> Message {
    Message::Hello(Box::new(Hello {
        node: NodeId::B,
        resource: ResourceId::of_name("vm-web"),
        volume: VolumeId(0),
        replica,
        view: ViewNumber(9),
        in_sync: InSync { a: true, b: false },
        active: Some(ViewNumber(9)),
        seal: ViewNumber(8),
        boot_id: 0xb007,
        incarnation: 0x1234,
        protocol: ReplicationProtocol::C,
    }))
}

fn under_b() -> Message {
    let Message::Hello(mut hello) = hello(None) else {
        unreachable!("made above");
    };
    hello.protocol = ReplicationProtocol::B;
    Message::Hello(hello)
}

fn claim() -> ReplicaClaim {
    ReplicaClaim {
        replica: ReplicaId(0xaaaa),
        data_generation: Some(DataGeneration(0xbbbb)),
        size_blocks: 262_144,
        blank: false,
        zero_proven: true,
        bitmap_base: None,
        dirty_blocks: 12,
        marks_are_coarse: true,
        inconsistent: false,
        lost_volatile: true,
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let (write, range, id, read) = (WRITE, range(), WRITE, WRITE);
    let (epoch, view) = (WriteEpoch(77), ViewNumber(10));
    let error = DiskErrorCode(2);
    let under = |kind, terms| Message::Data {
        write,
        range,
        kind,
        terms,
    };
    let data = |kind, fua| {
        let terms = WriteTerms {
            fua,
            ..WriteTerms::default()
        };
        under(kind, terms)
    };
    let ordered = |protocol| WriteTerms {
        fua: false,
        protocol,
        after_earlier: true,
    };
    let resync = |reply, last| Message::ResyncData {
        id,
        range,
        reply,
        last,
    };
    let request = |digests: Vec<u8>| Message::ResyncRequest {
        id,
        range,
        digests: digests.into(),
    };
    let zeroes = |may_unmap| DataKind::Zeroes { may_unmap };
    let control = |paused, rate| Message::ResyncControl { paused, rate };
    let ordered_rate = |number, rate| Some(RateOrder { number, rate });
    let limited = ordered_rate(
        5,
        ResyncRate::BytesPerSecond(NonZeroU64::new(250 << 20).expect("not 0")),
    );
    let unlimited = ordered_rate(6, ResyncRate::Unlimited);
    vec![
        ("Hello with a replica", hello(Some(claim()))),
        ("Hello without", hello(None)),
        ("Refused", Message::Refused(Refusal::Diverged)),
        (
            "BitmapChunk",
            Message::BitmapChunk {
                first_block: 640,
                bits: vec![1, 0, 0, 0, 0, 0, 0, 0x80].into(),
            },
        ),
        ("BitmapEnd", Message::BitmapEnd),
        ("ResyncReady", Message::ResyncReady),
        ("Data", data(DataKind::Write(block()), false)),
        ("Data with FUA", data(DataKind::Write(block()), true)),
        ("Data of zeroes", data(zeroes(false), false)),
        ("Data of zeroes, unmapped", data(zeroes(true), true)),
        ("WriteAck", Message::WriteAck { write }),
        ("NegAck", Message::NegAck { write, error }),
        ("Barrier", Message::Barrier { epoch }),
        ("BarrierAck", Message::BarrierAck { epoch }),
        ("ReadRequest", Message::ReadRequest { read, range }),
        (
            "ReadReply",
            Message::ReadReply {
                read,
                range,
                data: Ok(block()),
            },
        ),
        (
            "ReadReply with an error",
            Message::ReadReply {
                read,
                range,
                data: Err(error),
            },
        ),
        ("ResyncRequest", request(Vec::new())),
        ("ResyncRequest with digests", request(vec![0xcd; 16])),
        ("ResyncData", resync(ResyncReply::Data(block()), false)),
        ("ResyncData of zeroes", resync(ResyncReply::Zeroes, true)),
        ("ResyncData, same", resync(ResyncReply::Same, true)),
        (
            "ResyncData, unreadable",
            resync(ResyncReply::Unreadable, true),
        ),
        ("ResyncAck", Message::ResyncAck { id, range }),
        ("PrepareAdd", Message::PrepareAdd { view }),
        ("AddReady", Message::AddReady { view }),
        ("LeaveMarks", Message::LeaveMarks { view }),
        ("LeaveReady", Message::LeaveReady { view }),
        ("Ping", Message::Ping),
        ("Pong", Message::Pong),
        ("Goodbye", Message::Goodbye),
        (
            "Data under A, in order",
            under(DataKind::Write(block()), ordered(ReplicationProtocol::A)),
        ),
        (
            "Data under B, in order",
            under(zeroes(false), ordered(ReplicationProtocol::B)),
        ),
        ("ReceiveAck", Message::ReceiveAck { write }),
        ("Hello under B", under_b()),
        ("ResyncControl, paused", control(true, None)),
        ("ResyncControl with a rate", control(false, limited)),
        ("ResyncControl without limit", control(true, unlimited)),
        ("Invalidate", Message::Invalidate),
        (
            "VerifyState, running",
            Message::VerifyState { running: true },
        ),
        (
            "VerifyRequest, in turn",
            Message::VerifyRequest {
                id: write,
                range,
                in_turn: true,
            },
        ),
        (
            "VerifyDigests",
            Message::VerifyDigests {
                id: write,
                range,
                digests: Ok(vec![0xcd; 16].into()),
            },
        ),
        (
            "VerifyDigests, unreadable",
            Message::VerifyDigests {
                id: write,
                range,
                digests: Err(DiskErrorCode(2)),
            },
        ),
        ("Grow", Message::Grow { id: write, range }),
        (
            "Grown",
            Message::Grown {
                id: write,
                range,
                result: Ok(()),
            },
        ),
        (
            "Grown, no room",
            Message::Grown {
                id: write,
                range,
                result: Err(DiskErrorCode(2)),
            },
        ),
        (
            "ResyncControl, auto",
            control(false, ordered_rate(8, ResyncRate::Auto)),
        ),
        (
            "ResyncAdvice",
            Message::ResyncAdvice {
                pace: NonZeroU64::new(250 << 20),
                latency: Duration::from_micros(14_250),
            },
        ),
    ]
}

fn wire(message: &Message) -> Vec<u8> {
    let encoded = encode(SESSION, VIEW, message);
    let mut bytes = encoded.header.to_vec();
    bytes.extend_from_slice(encoded.payload.as_deref().unwrap_or_default());
    bytes
}

fn preamble() -> Preamble {
    Preamble {
        versions: VersionRange { min: 1, max: 1 },
        cluster: 0xc1c2_c3c4_c5c6_c7c8,
        resource: ResourceId::of_name("vm-web"),
        from: NodeId::B,
        session: SESSION,
    }
}

fn relay() -> RelayPreamble {
    RelayPreamble {
        versions: VersionRange { min: 1, max: 1 },
        cluster: 0xc1c2_c3c4_c5c6_c7c8,
        from: NodeId::B,
        to: NodeId::ARBITRATOR,
        may_change: true,
        uid: 0x0a0b_0c0d,
    }
}

fn secure() -> SecurePreamble {
    SecurePreamble {
        versions: VersionRange { min: 1, max: 1 },
        cluster: 0xc1c2_c3c4_c5c6_c7c8,
        from: NodeId::B,
        to: NodeId::A,
        purpose: Purpose::Link,
    }
}

#[test]
fn no_byte_of_protocol_version_1_has_changed() {
    let reply = PreambleReply {
        status: PreambleStatus::Accepted,
        version: 1,
    };
    let mut text = hex::block("Preamble", &preamble().encode());
    text += &hex::block("PreambleReply", &reply.encode());
    text += &hex::block("RelayPreamble", &relay().encode());
    text += &hex::block("SecurePreamble", &secure().encode());
    for (name, message) in messages() {
        text += &hex::block(name, &wire(&message));
    }
    hex::assert_same(
        &text,
        include_str!("golden/wire-1.txt"),
        "golden/wire-1.txt",
    );
}

#[test]
fn the_frozen_bytes_are_still_understood() {
    let frozen = hex::read(include_str!("golden/wire-1.txt"));
    for (name, message) in messages() {
        let bytes = &frozen[name];
        assert!(bytes.len() >= HEADER_LEN, "{name}");
        let frame = Frame {
            session: SESSION,
            view: VIEW,
            message,
        };
        let len = bytes.len();
        assert_eq!(decode(bytes), Ok(Decoded::Frame { frame, len }), "{name}");
    }
    let bytes = frozen["Preamble"].as_slice().try_into();
    let parsed = Preamble::parse(&bytes.expect("its length is frozen"));
    assert_eq!(parsed, Ok(preamble()));
    let bytes = frozen["RelayPreamble"].as_slice().try_into();
    let parsed = Opening::parse(&bytes.expect("its length is frozen"));
    assert_eq!(parsed, Ok(Opening::Relay(relay())));
    let bytes = frozen["SecurePreamble"].as_slice().try_into();
    let parsed = Opening::parse(&bytes.expect("its length is frozen"));
    assert_eq!(parsed, Ok(Opening::Secure(secure())));
}
