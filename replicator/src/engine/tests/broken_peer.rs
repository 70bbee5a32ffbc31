//! An authenticated peer that says what makes no sense: the session ends, nothing panics, nothing
//! the other side relies on is believed.

use super::*;
use crate::protocol::{
    DataKind, DiskErrorCode, Hello, Message, ReplicaClaim, ResyncReply, WriteId, WriteTerms,
};
use crate::types::{
    BlockCount, BlockIndex, BlockRange, DataGeneration, InSync, Payload, ReplicaId, SessionId,
};

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

fn ids() -> Vec<WriteId> {
    [
        0,
        1,
        1 << 32,
        (1 << 32) + 1,
        (1 << 32) + 5,
        (2 << 32) + 1,
        u64::MAX,
    ]
    .into_iter()
    .map(WriteId)
    .collect()
}

/// One of every message, with values that are valid frames and make little sense.
fn messages() -> Vec<Message> {
    let mut all = vec![
        Message::BitmapChunk {
            first_block: 64,
            bits: vec![0xff; 8].into(),
        },
        Message::BitmapChunk {
            first_block: u64::MAX - 63,
            bits: vec![0xff; 4096].into(),
        },
        Message::BitmapChunk {
            first_block: 3,
            bits: vec![1; 5].into(),
        },
        Message::BitmapEnd,
        Message::ResyncReady,
        Message::Barrier {
            epoch: WriteEpoch(u64::MAX),
        },
        Message::BarrierAck {
            epoch: WriteEpoch(0),
        },
        Message::BarrierAck {
            epoch: WriteEpoch(u64::MAX),
        },
        Message::PrepareAdd {
            view: ViewNumber(u64::MAX),
        },
        Message::AddReady {
            view: ViewNumber(u64::MAX),
        },
        Message::LeaveMarks {
            view: ViewNumber(u64::MAX),
        },
        Message::LeaveReady {
            view: ViewNumber(0),
        },
        Message::Invalidate,
        Message::VerifyState { running: true },
        Message::VerifyState { running: false },
        Message::Pong,
        Message::Ping,
        Message::Goodbye,
        Message::Refused(Refusal::Foreign),
        Message::Hello(Box::new(hello())),
    ];
    for id in ids() {
        for range in [
            blocks(0, 0),
            blocks(0, 1),
            blocks(4095, 2),
            blocks(u64::MAX, 1),
        ] {
            all.extend([
                Message::Data {
                    write: id,
                    range,
                    kind: DataKind::Write(block(1).into()),
                    terms: WriteTerms {
                        fua: true,
                        ..WriteTerms::default()
                    },
                },
                Message::Data {
                    write: id,
                    range,
                    kind: DataKind::Zeroes { may_unmap: true },
                    terms: WriteTerms::default(),
                },
                Message::ReadRequest { read: id, range },
                Message::ReadReply {
                    read: id,
                    range,
                    data: Ok(block(1).into()),
                },
                Message::ReadReply {
                    read: id,
                    range,
                    data: Err(DiskErrorCode(200)),
                },
                Message::ResyncRequest {
                    id,
                    range,
                    digests: Payload::default(),
                },
                Message::ResyncRequest {
                    id,
                    range,
                    digests: vec![0; 16].into(),
                },
                Message::ResyncAck { id, range },
                Message::VerifyRequest {
                    id,
                    range,
                    in_turn: true,
                },
                Message::VerifyRequest {
                    id,
                    range,
                    in_turn: false,
                },
                Message::VerifyDigests {
                    id,
                    range,
                    digests: Ok(vec![0; 16].into()),
                },
                Message::VerifyDigests {
                    id,
                    range,
                    digests: Err(DiskErrorCode(200)),
                },
            ]);
            for reply in [
                ResyncReply::Data(block(1).into()),
                ResyncReply::Zeroes,
                ResyncReply::Same,
                ResyncReply::Unreadable,
            ] {
                for last in [true, false] {
                    let reply = reply.clone();
                    all.push(Message::ResyncData {
                        id,
                        range,
                        reply,
                        last,
                    });
                }
            }
        }
        all.push(Message::WriteAck { write: id });
        all.push(Message::NegAck {
            write: id,
            error: DiskErrorCode(1),
        });
    }
    all
}

fn hello() -> Hello {
    Hello {
        node: B,
        resource: ResourceId(1),
        volume: VolumeId(0),
        replica: Some(ReplicaClaim {
            replica: ReplicaId(5),
            data_generation: Some(DataGeneration(77)),
            size_blocks: u64::MAX,
            blank: false,
            zero_proven: true,
            bitmap_base: None,
            dirty_blocks: u64::MAX,
            marks_are_coarse: true,
            inconsistent: false,
            lost_volatile: true,
        }),
        view: ViewNumber(u64::MAX),
        in_sync: InSync::BOTH,
        active: None,
        seal: ViewNumber::NONE,
        boot_id: 0,
        incarnation: 0,
        protocol: ReplicationProtocol::C,
    }
}

/// A mirroring pair with work under way on both.
fn mirroring() -> Pair {
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    pair.hold_disk(B, true);
    pair.write(A, 1, 1);
    pair.write(A, 1, 2);
    pair.read(A, 3);
    pair.flush(A);
    pair.run();
    pair
}

/// A pair that stands still after so many steps of a resync.
fn resyncing(steps: usize) -> Pair {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    for nr in (0..300).step_by(10) {
        pair.write(A, nr, 1);
    }
    pair.run();
    pair.start_link();
    pair.step(steps);
    pair.hold_disk(A, true);
    pair.hold_disk(B, true);
    pair.write(A, 5, 5);
    pair.run();
    pair
}

/// A pair in each of the phases a session can be in.
const PHASES: [fn() -> Pair; 9] = [
    || {
        let mut greeting = Pair::in_sync();
        greeting.disconnect();
        greeting.hold_inbox(A, true);
        greeting.hold_inbox(B, true);
        greeting.connect();
        greeting
    },
    || {
        let mut idle = Pair::new();
        idle.connect();
        idle
    },
    mirroring,
    || {
        // Its first blocks are looked at.
        let mut verifying = Pair::in_sync();
        for nr in 0..20 {
            verifying.state(B).disk.completed.insert(nr, block(9));
        }
        let repair = true;
        let order = VerifyOrder::Start { repair };
        verifying.admin(A, AdminRequest::Verify(order));
        verifying.step(40);
        verifying
    },
    || resyncing(6),
    || resyncing(12),
    || resyncing(20),
    || resyncing(40),
    || {
        let mut left = mirroring();
        left.fail_disk(A);
        left.hold_disk(A, false);
        left.run();
        left.leave(A);
        left.read(A, 9);
        left.run();
        left
    },
];

#[test]
fn no_message_in_any_phase_panics_or_sticks() {
    let messages = messages();
    for phase in PHASES {
        for to in [A, B] {
            let mut pair = phase();
            for message in &messages {
                if pair.link.is_none() {
                    pair = phase();
                }
                pair.inject(to, message.clone());
                pair.step(3);
            }
            pair.cut_link();
            pair.hold_disk(A, false);
            pair.hold_disk(B, false);
            pair.hold_inbox(A, false);
            pair.hold_inbox(B, false);
            pair.run();
        }
    }
}

#[test]
fn an_acknowledgement_of_what_was_never_asked_is_not_believed() {
    let mut pair = Pair::in_sync();
    pair.hold_inbox(B, true);
    let write = pair.write(A, 1, 1);
    let flush = pair.flush(A);
    pair.run();
    for id in ids() {
        if id == WriteId(1 << 32) {
            continue;
        }
        pair.inject(A, Message::WriteAck { write: id });
    }
    pair.inject(
        A,
        Message::BarrierAck {
            epoch: WriteEpoch(999),
        },
    );
    pair.run();
    assert_eq!((pair.answer(write), pair.answer(flush)), (None, None));
}

#[test]
fn digests_that_were_never_asked_for_end_the_session() {
    let mut pair = Pair::in_sync();
    let session = pair.link.unwrap().session;
    let message = Message::VerifyDigests {
        id: WriteId((1 << 32) + 1),
        range: blocks(0, 1),
        digests: Ok(vec![0; 16].into()),
    };
    pair.input(A, Input::Received { session, message });
    assert!(pair.nodes[A.index()].engine.session.is_none());
    assert_eq!(pair.snapshot(A).verify, None);
}

#[test]
fn an_add_is_not_prepared_by_an_answer_that_was_not_asked_for() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.connect();
    pair.hold_inbox(B, true);
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.inject(A, Message::AddReady { view });
    assert!(!pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
}

#[test]
fn a_target_serves_no_reads_and_takes_no_data_before_its_record() {
    // promise 8.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    for nr in 0..300 {
        pair.write(A, nr, 1);
    }
    pair.run();
    pair.hold_inbox(B, true);
    pair.start_link();
    pair.run();
    pair.hold_inbox(B, false);
    // Only the hello arrives: the target has recorded nothing.
    pair.step_any(|_| 0);
    pair.hold_inbox(B, true);
    let range = blocks(0, 1);
    let read = WriteId(1);
    pair.inject(B, Message::ReadRequest { read, range });
    assert!(pair.disk_ops(B).is_empty());
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.hold_inbox(B, true);
    pair.start_link();
    pair.run();
    pair.hold_inbox(B, false);
    pair.step_any(|_| 0);
    pair.hold_inbox(B, true);
    pair.inject(
        B,
        Message::Data {
            write: read,
            range,
            kind: DataKind::Zeroes { may_unmap: true },
            terms: WriteTerms::default(),
        },
    );
    assert!(pair.disk_ops(B).is_empty());
}

#[test]
fn an_answer_that_leaves_blocks_out_clears_no_mark() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    for nr in 0..64 {
        pair.write(A, nr, 1);
    }
    pair.run();
    pair.hold_inbox(A, true);
    pair.start_link();
    pair.step(2);
    pair.hold_inbox(A, false);
    while pair
        .messages_to(A)
        .iter()
        .all(|message| !matches!(message, Message::ResyncRequest { .. }))
    {
        assert!(pair.step_any(|_| 0));
    }
    pair.hold_inbox(A, true);
    let request = pair
        .messages_to(A)
        .into_iter()
        .find_map(|message| match message {
            Message::ResyncRequest { id, range, .. } => Some((*id, *range)),
            _ => None,
        });
    let (id, range) = request.unwrap();
    assert_eq!(range, blocks(0, 64));
    let marked = pair.snapshot(B).out_of_sync_blocks;
    let (reply, last) = (ResyncReply::Zeroes, true);
    pair.inject(
        B,
        Message::ResyncData {
            id,
            range: blocks(0, 1),
            reply,
            last,
        },
    );
    pair.run();
    assert_eq!(pair.snapshot(B).out_of_sync_blocks, marked);
}

#[test]
fn messages_of_another_session_are_dropped() {
    // promise 11, R21.
    let mut pair = Pair::in_sync();
    let session = SessionId(4711);
    for message in messages() {
        for node in [A, B] {
            let message = message.clone();
            pair.input(node, Input::Received { session, message });
        }
    }
    pair.run();
    pair.written(A, 1, 1);
    pair.assert_replicas_equal();
}

#[test]
fn nothing_is_said_or_done_before_both_greeted() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    for message in messages() {
        if matches!(message, Message::Hello(_)) {
            continue;
        }
        pair.hold_inbox(A, true);
        pair.hold_inbox(B, true);
        pair.start_link();
        pair.inject(B, message);
        assert!(pair.disk_ops(B).is_empty());
        pair.cut_link();
        pair.hold_inbox(A, false);
        pair.hold_inbox(B, false);
        pair.run();
    }
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}
