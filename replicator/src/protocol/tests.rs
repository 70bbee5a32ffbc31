use core::num::NonZeroU64;
use core::time::Duration;

use proptest::prelude::*;

use super::frame::{DIGEST_LEN, kind_numbers};
use super::*;
use crate::types::{
    BLOCK_LEN, BlockCount, BlockIndex, BlockRange, DataGeneration, DiskError, InSync, NodeId,
    Payload, ReplicaId, ReplicationProtocol, ResourceId, ResyncRate, SessionId, ViewNumber,
    VolumeId, WriteEpoch,
};

fn bytes(len: usize) -> impl Strategy<Value = Payload> {
    any::<u8>().prop_map(move |seed| {
        let byte = |at: usize| seed.wrapping_add(u8::try_from(at % 251).unwrap());
        Payload::from((0..len).map(byte).collect::<Vec<u8>>())
    })
}

/// A short range, and as many bytes for each of its blocks.
fn range_with(per_block: usize) -> impl Strategy<Value = (BlockRange, Payload)> {
    (0..u64::MAX / 2, 1..4_usize).prop_flat_map(move |(start, count)| {
        let blocks = BlockCount(u64::try_from(count).unwrap());
        let range = BlockRange::new(BlockIndex(start), blocks);
        (Just(range), bytes(count * per_block))
    })
}

fn ranges() -> impl Strategy<Value = BlockRange> {
    (any::<u32>(), 1..u64::from(u32::MAX))
        .prop_map(|(start, count)| BlockRange::new(BlockIndex(start.into()), BlockCount(count)))
}

fn ids() -> impl Strategy<Value = WriteId> {
    any::<u64>().prop_map(WriteId)
}

fn views() -> impl Strategy<Value = ViewNumber> {
    (0..=ViewNumber::MAX.0).prop_map(ViewNumber)
}

fn errors() -> impl Strategy<Value = DiskErrorCode> {
    any::<u8>().prop_map(DiskErrorCode)
}

fn blocks_of() -> usize {
    usize::try_from(BLOCK_LEN).unwrap()
}

prop_compose! {
    fn claims()(
        ids in any::<(u128, Option<u128>, Option<u128>)>(),
        counts in any::<(u64, u64)>(),
        bits in any::<[bool; 5]>(),
    ) -> ReplicaClaim {
        ReplicaClaim {
            replica: ReplicaId(ids.0),
            data_generation: ids.1.map(DataGeneration),
            size_blocks: counts.0,
            blank: bits[0],
            zero_proven: bits[1],
            bitmap_base: ids.2.map(ReplicaId),
            dirty_blocks: counts.1,
            marks_are_coarse: bits[2],
            inconsistent: bits[3],
            lost_volatile: bits[4],
        }
    }
}

prop_compose! {
    fn hellos()(
        replica in prop::option::of(claims()),
        ids in any::<(bool, u64, u16, u128, u128)>(),
        in_sync in any::<(bool, bool)>(),
        known in (views(), prop::option::of(views()), views()),
        terms in terms(),
    ) -> Hello {
        Hello {
            node: if ids.0 { NodeId::A } else { NodeId::B },
            resource: ResourceId(ids.1),
            volume: VolumeId(ids.2),
            replica,
            view: known.0,
            in_sync: InSync { a: in_sync.0, b: in_sync.1 },
            active: known.1,
            seal: known.2,
            boot_id: ids.3,
            incarnation: ids.4,
            protocol: terms.protocol,
        }
    }
}

fn terms() -> impl Strategy<Value = WriteTerms> {
    let protocols = [
        ReplicationProtocol::A,
        ReplicationProtocol::B,
        ReplicationProtocol::C,
    ];
    (any::<bool>(), 0..protocols.len(), any::<bool>()).prop_map(
        move |(fua, protocol, after_earlier)| WriteTerms {
            fua,
            protocol: protocols[protocol],
            after_earlier,
        },
    )
}

fn rates() -> impl Strategy<Value = Option<RateOrder>> {
    let limit = (1..u64::MAX - 1).prop_map(|rate| NonZeroU64::new(rate).expect("not 0"));
    let rate = prop_oneof![
        Just(ResyncRate::Unlimited),
        Just(ResyncRate::Auto),
        limit.prop_map(ResyncRate::BytesPerSecond)
    ];
    proptest::option::of((any::<u32>(), rate))
        .prop_map(|order| order.map(|(number, rate)| RateOrder { number, rate }))
}

fn replicated() -> impl Strategy<Value = Message> {
    let write = (ids(), range_with(blocks_of()), terms());
    let zeroes = (ids(), ranges(), any::<bool>(), terms());
    prop_oneof![
        write.prop_map(|(write, (range, payload), terms)| Message::Data {
            write,
            range,
            kind: DataKind::Write(payload),
            terms,
        }),
        zeroes.prop_map(|(write, range, may_unmap, terms)| Message::Data {
            write,
            range,
            kind: DataKind::Zeroes { may_unmap },
            terms,
        }),
        ids().prop_map(|write| Message::WriteAck { write }),
        ids().prop_map(|write| Message::ReceiveAck { write }),
        (any::<bool>(), rates()).prop_map(|(paused, rate)| Message::ResyncControl { paused, rate }),
        (any::<u64>(), any::<u32>()).prop_map(|(pace, micros)| Message::ResyncAdvice {
            pace: NonZeroU64::new(pace),
            latency: Duration::from_micros(micros.into()),
        }),
        Just(Message::Invalidate),
        any::<bool>().prop_map(|running| Message::VerifyState { running }),
        (ids(), ranges(), any::<bool>()).prop_map(|(id, range, in_turn)| Message::VerifyRequest {
            id,
            range,
            in_turn
        }),
        (ids(), ranges(), errors()).prop_map(|(id, range, error)| Message::VerifyDigests {
            id,
            range,
            digests: Err(error),
        }),
        (ids(), ranges()).prop_map(|(id, range)| Message::Grow { id, range }),
        (ids(), ranges(), prop::option::of(errors())).prop_map(|(id, range, error)| {
            let result = error.map_or(Ok(()), Err);
            Message::Grown { id, range, result }
        }),
        (ids(), errors()).prop_map(|(write, error)| Message::NegAck { write, error }),
        any::<u64>().prop_map(|epoch| Message::Barrier {
            epoch: WriteEpoch(epoch)
        }),
        any::<u64>().prop_map(|epoch| Message::BarrierAck {
            epoch: WriteEpoch(epoch)
        }),
        (ids(), ranges()).prop_map(|(read, range)| Message::ReadRequest { read, range }),
        (ids(), range_with(blocks_of())).prop_map(|(read, (range, payload))| {
            let data = Ok(payload);
            Message::ReadReply { read, range, data }
        }),
        (ids(), ranges(), errors()).prop_map(|(read, range, error)| {
            let data = Err(error);
            Message::ReadReply { read, range, data }
        }),
    ]
}

fn resync() -> impl Strategy<Value = Message> {
    let chunk = (any::<u32>(), 1..=512_usize)
        .prop_flat_map(|(word, words)| (Just(u64::from(word) * 64), bytes(words * 8)));
    let data = (ids(), range_with(blocks_of()), any::<bool>());
    let no_data = prop_oneof![
        Just(ResyncReply::Zeroes),
        Just(ResyncReply::Same),
        Just(ResyncReply::Unreadable)
    ];
    let without_data = (ids(), ranges(), no_data, any::<bool>());
    prop_oneof![
        chunk.prop_map(|(first_block, bits)| Message::BitmapChunk { first_block, bits }),
        Just(Message::BitmapEnd),
        Just(Message::ResyncReady),
        (ids(), ranges()).prop_map(|(id, range)| Message::ResyncRequest {
            id,
            range,
            digests: Payload::default(),
        }),
        (ids(), range_with(DIGEST_LEN)).prop_map(|(id, (range, digests))| Message::ResyncRequest {
            id,
            range,
            digests
        }),
        data.prop_map(|(id, (range, payload), last)| Message::ResyncData {
            id,
            range,
            reply: ResyncReply::Data(payload),
            last,
        }),
        without_data.prop_map(|(id, range, reply, last)| Message::ResyncData {
            id,
            range,
            reply,
            last,
        }),
        (ids(), ranges()).prop_map(|(id, range)| Message::ResyncAck { id, range }),
    ]
}

fn messages() -> impl Strategy<Value = Message> {
    let refusal = prop::sample::select(codec::REFUSALS.to_vec());
    prop_oneof![
        4 => replicated(),
        4 => resync(),
        1 => hellos().prop_map(|hello| Message::Hello(Box::new(hello))),
        1 => refusal.prop_map(|(_, refusal)| Message::Refused(refusal)),
        1 => views().prop_map(|view| Message::PrepareAdd { view }),
        1 => views().prop_map(|view| Message::AddReady { view }),
        1 => views().prop_map(|view| Message::LeaveMarks { view }),
        1 => views().prop_map(|view| Message::LeaveReady { view }),
        1 => prop::sample::select(vec![Message::Ping, Message::Pong, Message::Goodbye]),
    ]
}

fn on_the_wire(message: &Message) -> Vec<u8> {
    let encoded = encode(SessionId(5), ViewNumber(6), message);
    let mut bytes = encoded.header.to_vec();
    bytes.extend_from_slice(encoded.payload.as_deref().unwrap_or_default());
    bytes
}

/// A header with other bytes in it and a right checksum: what a hostile peer can send.
fn forged(mut header: [u8; HEADER_LEN], changes: &[(usize, u8)]) -> [u8; HEADER_LEN] {
    for (at, byte) in changes {
        header[*at] = *byte;
    }
    let crc = crc32c::crc32c(&header[..HEADER_LEN - 4]);
    header[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    header
}

proptest! {
    #[test]
    fn what_is_sent_is_received(message in messages()) {
        let wire = on_the_wire(&message);
        let frame = Frame { session: SessionId(5), view: ViewNumber(6), message };
        prop_assert_eq!(decode(&wire), Ok(Decoded::Frame { frame, len: wire.len() }));
    }

    #[test]
    fn every_beginning_of_a_stream_is_waited_for_and_no_more_is_asked_than_sent(
        sent in prop::collection::vec(messages(), 1..4),
    ) {
        let stream: Vec<u8> = sent.iter().flat_map(on_the_wire).collect();
        let (mut start, mut received) = (0, Vec::new());
        let mut end = 0;
        while start < stream.len() {
            match decode(&stream[start..end]).unwrap() {
                Decoded::Incomplete { needed } => {
                    prop_assert!(needed > end - start && start + needed <= stream.len());
                    end = start + needed;
                }
                Decoded::Frame { frame, len } => {
                    received.push(frame.message);
                    start += len;
                }
            }
        }
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn a_damaged_frame_is_never_taken_for_a_whole_one(
        message in messages(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut wire = on_the_wire(&message);
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        prop_assert!(decode(&wire).is_err());
    }

    #[test]
    fn any_header_with_a_right_checksum_is_bounded_and_never_panics(
        message in messages(),
        changes in prop::collection::vec((5..HEADER_LEN - 4, any::<u8>()), 0..6),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let header = forged(encode(SessionId(5), ViewNumber(6), &message).header, &changes);
        if let Ok(header) = Header::parse(&header) {
            prop_assert!(header.payload_len() <= Message::MAX_PAYLOAD);
            let _verdict = Message::from_parts(&header, payload.into());
        }
    }

    #[test]
    fn a_hostile_hello_is_taken_or_refused(payload in prop::collection::vec(any::<u8>(), 1..400)) {
        if let Some(hello) = control::decode_hello(&payload, ReplicationProtocol::B) {
            prop_assert_eq!(control::encode_hello(&hello), payload);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _verdict = decode(&bytes);
    }
}

#[test]
fn a_length_the_message_does_not_allow_is_refused_before_its_payload_is_read() {
    let range = BlockRange::new(BlockIndex(0), BlockCount(1));
    let write = Message::Data {
        write: WriteId(1),
        range,
        kind: DataKind::Write(vec![1; 4096].into()),
        terms: WriteTerms::default(),
    };
    let header = encode(SessionId(1), ViewNumber(1), &write).header;
    // payload_len is at 52: 0xffffffff, and two blocks for a range of one.
    let huge = forged(header, &[(52, 0xff), (53, 0xff), (54, 0xff), (55, 0xff)]);
    let two = forged(header, &[(53, 0x20)]);
    for (bytes, len) in [(huge, u32::MAX), (two, 8192)] {
        let kind = MessageKind::Data;
        assert_eq!(
            Header::parse(&bytes),
            Err(FrameError::PayloadLength { kind, len })
        );
    }
}

#[test]
fn a_range_past_the_end_of_everything_is_refused() {
    let range = BlockRange::new(BlockIndex(7), BlockCount(1));
    let ack = Message::ResyncAck {
        id: WriteId(1),
        range,
    };
    let header = encode(SessionId(1), ViewNumber(1), &ack).header;
    let start: Vec<(usize, u8)> = (32..40).map(|at| (at, 0xff)).collect();
    let value = |field| FrameError::Value {
        kind: MessageKind::ResyncAck,
        field,
    };
    assert_eq!(Header::parse(&forged(header, &start)), Err(value("range")));
    assert_eq!(
        Header::parse(&forged(header, &[(40, 0)])),
        Err(value("range"))
    );
}

#[test]
fn a_view_whose_successor_could_overflow_is_refused() {
    let beyond = ViewNumber(ViewNumber::MAX.0 + 1);
    let refused = |message: &Message, view| {
        let frame = encode(SessionId(1), view, message);
        let payload = frame.payload.as_deref().unwrap_or_default();
        match decode(&[&frame.header, payload].concat()) {
            Err(FrameError::Value { field, .. }) => Some(field),
            _ => None,
        }
    };
    let good = ViewNumber::MAX;
    assert_eq!(refused(&Message::Ping, good), None);
    assert_eq!(refused(&Message::Ping, beyond), Some("view"));
    let of_view = |view| {
        [
            Message::PrepareAdd { view },
            Message::AddReady { view },
            Message::LeaveMarks { view },
            Message::LeaveReady { view },
        ]
    };
    for message in of_view(good) {
        assert_eq!(refused(&message, good), None);
    }
    for message in of_view(beyond) {
        assert_eq!(refused(&message, good), Some("view"));
    }
    let hello = Hello {
        node: NodeId::A,
        resource: ResourceId(1),
        volume: VolumeId(0),
        replica: None,
        view: good,
        in_sync: InSync { a: true, b: true },
        active: Some(good),
        seal: good,
        boot_id: 1,
        incarnation: 1,
        protocol: ReplicationProtocol::C,
    };
    let say = |hello: &Hello| refused(&Message::Hello(Box::new(hello.clone())), good);
    assert_eq!(say(&hello), None);
    let forged = [
        Hello {
            view: beyond,
            ..hello.clone()
        },
        Hello {
            active: Some(beyond),
            ..hello.clone()
        },
        Hello {
            seal: ViewNumber(u64::MAX),
            ..hello.clone()
        },
    ];
    for forged in forged {
        assert_eq!(say(&forged), Some("hello"));
    }
}

#[test]
fn a_number_no_message_has_is_refused() {
    let header = encode(SessionId(1), ViewNumber(1), &Message::Ping).header;
    let highest = kind_numbers().map(|(number, _)| number).max().unwrap();
    for found in [0, highest + 1, 255] {
        let forged = forged(header, &[(5, found)]);
        assert_eq!(Header::parse(&forged), Err(FrameError::Kind { found }));
    }
}

#[test]
fn the_largest_write_fits_and_its_payload_is_not_copied() {
    let payload = Payload::from(vec![9; Message::MAX_PAYLOAD]);
    let write = Message::Data {
        write: WriteId(1),
        range: BlockRange::new(BlockIndex(0), BlockCount(256)),
        kind: DataKind::Write(payload.clone()),
        terms: WriteTerms::default(),
    };
    let encoded = encode(SessionId(1), ViewNumber(1), &write);
    let sent = encoded.payload.unwrap();
    assert_eq!(sent.as_ptr(), payload.as_ptr());
    let header = Header::parse(&encoded.header).unwrap();
    assert_eq!(Message::from_parts(&header, sent), Ok(write));
}

#[test]
fn a_disk_error_this_version_does_not_know_is_an_io_error() {
    assert_eq!(DiskError::from(DiskErrorCode(200)), DiskError::Io);
}
