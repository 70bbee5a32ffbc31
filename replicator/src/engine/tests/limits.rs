//! Every queue has a limit (promise 10), and reaching it ends in nothing worse than waiting.

use super::pair::Shape;
use super::*;

#[test]
fn a_peer_that_never_acknowledges_a_barrier_fills_no_memory() {
    let mut pair = Pair::in_sync();
    pair.written(A, 0, 0);
    pair.flush(A);
    // B's flush never ends; its writes do.
    pair.hold_disk(B, true);
    pair.run();
    for round in 0..40 {
        for nr in 0..500 {
            pair.write(A, nr, round);
        }
        pair.run();
        while pair.disk_ops(B).len() > 1 {
            // The first is the flush.
            pair.end_disk_op(B, 1);
        }
        pair.run();
    }
    let engine = &pair.nodes[0].engine;
    assert!(engine.unretired_len() <= 2 * Engine::UNRETIRED_MAX + Engine::WRITES_MAX);
    pair.hold_disk(B, false);
    pair.run();
    assert!(pair.nodes[0].unanswered.is_empty());
}

/// A disk is written from end to end, nobody flushes, and the link is cut for a moment.
#[test]
fn a_short_cut_after_large_writes_costs_a_bounded_resync() {
    let mut shape = Shape::SMALL;
    shape.blocks = [4 * Engine::UNRETIRED_BLOCKS_MAX; 2];
    let mut pair = Pair::in_sync_shaped(shape);
    let part = 1 << 10;
    for nr in 0..shape.blocks[0] / part {
        pair.guest(
            A,
            GuestKind::Zeroes {
                offset: ByteOffset(nr * part * BLOCK),
                len: ByteLen(part * BLOCK),
                may_unmap: true,
                fua: false,
            },
        );
        pair.run();
    }
    pair.disconnect();
    let marked = pair.snapshot(A).out_of_sync_blocks;
    assert!(marked <= Engine::UNRETIRED_BLOCKS_MAX, "{marked}");
    pair.connect();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
}

#[test]
fn a_request_for_a_whole_volume_of_zeroes_goes_in_windows() {
    // 4,000 parts: the peer's window is not overrun, the request is answered once.
    let blocks = 4000 * (64 << 20) / BLOCK;
    let mut pair = Pair::in_sync_shaped(Shape {
        blocks: [blocks; 2],
        al_slots: 0,
        zero_proven: true,
        protocol: ReplicationProtocol::C,
        resync_rate: ResyncRate::Unlimited,
        second_at: 0,
    });
    // What a real disk does at once would be 65 million map entries here.
    pair.hold_disk(A, true);
    pair.hold_disk(B, true);
    let request = pair.guest(
        A,
        GuestKind::Zeroes {
            offset: ByteOffset(0),
            len: ByteLen(blocks * BLOCK),
            may_unmap: true,
            fua: false,
        },
    );
    pair.run();
    assert!(pair.disk_ops(A).len() <= Engine::WRITES_MAX);
    assert!(pair.disk_ops(B).len() <= Engine::WRITES_MAX);
    pair.end_all_without_effect();
    assert_eq!(pair.answer(request), Some(Ok(GuestReply::Done)));
    assert!(pair.link.is_some(), "the peer did not hang up");
}

#[test]
fn a_step_down_in_the_middle_of_a_huge_request_forgets_its_rest() {
    let blocks = 4000 * (64 << 20) / BLOCK;
    let mut pair = Pair::in_sync_shaped(Shape {
        blocks: [blocks; 2],
        al_slots: 0,
        zero_proven: true,
        protocol: ReplicationProtocol::C,
        resync_rate: ResyncRate::Unlimited,
        second_at: 0,
    });
    pair.hold_disk(A, true);
    let zeroes = GuestKind::Zeroes {
        offset: ByteOffset(0),
        len: ByteLen(blocks * BLOCK),
        may_unmap: true,
        fua: false,
    };
    pair.hold_inbox(B, true);
    pair.guest(A, zeroes);
    pair.cut_link();
    pair.input(A, Input::StepDown);
    pair.hold_inbox(B, false);
    pair.end_all_without_effect();
    assert!(pair.nodes[0].engine.writes.is_empty());
}

#[test]
fn large_reads_of_a_diskless_primary_do_not_overrun_the_peer() {
    let mut pair = Pair::in_sync_shaped(Shape {
        blocks: [16 * 1024; 2],
        ..Shape::SMALL
    });
    pair.written(A, 1, 1);
    pair.fail_disk(A);
    pair.write(A, 2, 2);
    pair.run();
    pair.leave(A);
    pair.run();
    pair.hold_disk(B, true);
    let read = |pair: &mut Pair| {
        let (offset, len) = (ByteOffset(0), ByteLen(16 << 20));
        pair.guest(A, GuestKind::Read { offset, len })
    };
    for _ in 0..200 {
        read(&mut pair);
    }
    pair.run();
    assert!(pair.link.is_some(), "the peer did not hang up");
    assert!(pair.disk_ops(B).len() <= Engine::WRITES_MAX);
    // What an answer frees is used by the next in line.
    let waiting = pair.nodes[0].engine.parked_reads.len();
    for _ in 0..16 {
        pair.end_disk_op(B, 0);
    }
    pair.run();
    assert_eq!(pair.nodes[0].engine.parked_reads.len(), waiting - 1);
    assert_eq!(pair.nodes[0].unanswered.len(), 199);
}

#[test]
fn a_long_chain_of_overlapping_requests_unwinds_without_a_deep_stack() {
    // Each waits for the one before; when the disk is gone, all of them end in one step.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.hold_disk(A, true);
    let partial = GuestKind::Write {
        offset: ByteOffset(100),
        payload: vec![1; 10].into(),
        fua: false,
    };
    let requests: Vec<_> = (0..1000).map(|_| pair.guest(A, partial.clone())).collect();
    pair.run();
    pair.fail_disk(A);
    pair.write(A, 9, 9);
    pair.hold_disk(A, false);
    pair.run();
    for request in requests {
        assert!(matches!(pair.answer(request), Some(Err(GuestError::Io(_)))));
    }
}

#[test]
fn requests_of_no_length_are_answered_once() {
    let mut pair = Pair::in_sync();
    let empty = [
        GuestKind::Read {
            offset: ByteOffset(0),
            len: ByteLen(0),
        },
        GuestKind::Write {
            offset: ByteOffset(4096 * BLOCK),
            payload: Vec::new().into(),
            fua: true,
        },
        GuestKind::Trim {
            offset: ByteOffset(5),
            len: ByteLen(100),
            fua: false,
        },
        GuestKind::Zeroes {
            offset: ByteOffset(5),
            len: ByteLen(0),
            may_unmap: true,
            fua: false,
        },
    ];
    for kind in empty {
        let request = pair.guest(A, kind);
        pair.run();
        assert!(matches!(pair.answer(request), Some(Ok(_))));
    }
    for (offset, len) in [(4096 * BLOCK, 1), (u64::MAX, 1), (1, u64::MAX)] {
        let (offset, len) = (ByteOffset(offset), ByteLen(len));
        let request = pair.guest(A, GuestKind::Read { offset, len });
        assert_eq!(pair.answer(request), Some(Err(GuestError::OutOfRange)));
    }
}
