//! Scenarios of two engines with virtual disks, link and time. The simulator in `tests/sim` does
//! the same at random; these are the stories a reader should know.

mod adding;
mod ahead;
mod broken_peer;
mod control;
mod faults;
mod flushing;
mod growing;
mod invalidating;
mod leaving;
mod letting_go;
mod limits;
mod pair;
mod questions;
mod random;
mod resyncs;
mod stalling;
mod suspending;
mod takeover;
mod verifying;

use self::pair::{Pair, block};
use super::*;
use crate::types::{ByteLen, ByteOffset, DiskState, ReplicationState, Role};

const A: NodeId = NodeId::A;
const B: NodeId = NodeId::B;

#[test]
fn two_blank_zero_replicas_are_in_sync_without_copying() {
    let mut pair = Pair::new();
    pair.found(A);
    pair.connect();
    pair.add_peer(A);
    assert_eq!(pair.snapshot(A).peer_disk, DiskState::UpToDate);
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    assert_eq!(
        pair.snapshot(A)
            .resync
            .map(|progress| progress.copied_blocks),
        Some(0)
    );
}

#[test]
fn a_write_is_answered_once_both_disks_have_it() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let request = pair.write(A, 5, 0xaa);
    pair.run();
    assert_eq!(
        pair.answer(request),
        None,
        "the peer's disk has not completed it"
    );
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.answer(request), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 5), block(0xaa));
    assert_eq!(pair.disk(A, 5), block(0xaa));
}

#[test]
fn a_flush_is_answered_once_it_is_durable_on_both() {
    let mut pair = Pair::in_sync();
    pair.write(A, 1, 0x11);
    pair.run();
    assert_eq!(pair.durable(B, 1), block(0), "completed is not durable");
    let flush = pair.guest(A, GuestKind::Flush);
    pair.run();
    assert_eq!(pair.answer(flush), Some(Ok(GuestReply::Done)));
    assert_eq!(
        (pair.durable(A, 1), pair.durable(B, 1)),
        (block(0x11), block(0x11))
    );
}

#[test]
fn bytes_inside_blocks_change_and_their_neighbours_stay() {
    let mut pair = Pair::in_sync();
    pair.write(A, 2, 0x22);
    pair.write(A, 3, 0x33);
    pair.run();
    let offset = ByteOffset(3 * BLOCK - 1);
    pair.guest(
        A,
        GuestKind::Write {
            offset,
            payload: vec![0xff; 2].into(),
            fua: false,
        },
    );
    pair.run();
    let read = pair.guest(
        A,
        GuestKind::Read {
            offset: ByteOffset(3 * BLOCK - 2),
            len: ByteLen(4),
        },
    );
    pair.run();
    assert_eq!(
        pair.answer(read),
        Some(Ok(GuestReply::Data(vec![0x22, 0xff, 0xff, 0x33].into())))
    );
    assert_eq!(pair.disk(A, 2), pair.disk(B, 2));
    assert_eq!(pair.disk(A, 3), pair.disk(B, 3));
}

const BLOCK: u64 = crate::types::BLOCK_LEN;

#[test]
fn a_lapsed_lease_holds_reads_and_writes_until_it_returns() {
    let mut pair = Pair::in_sync();
    pair.lapse_lease(A);
    let write = pair.write(A, 1, 1);
    let read = pair.guest(
        A,
        GuestKind::Read {
            offset: ByteOffset(0),
            len: ByteLen(512),
        },
    );
    pair.run();
    assert_eq!((pair.answer(write), pair.answer(read)), (None, None));
    assert_eq!(pair.snapshot(A).held, Some(HeldReason::Lease));
    pair.renew_lease(A);
    pair.run();
    assert!(pair.answer(write).is_some() && pair.answer(read).is_some());
}

#[test]
fn a_lost_peer_holds_writes_until_its_remove_and_only_the_difference_is_copied() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    let held = pair.write(A, 7, 7);
    pair.run();
    assert_eq!(pair.answer(held), None, "the peer may still take over");
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(held), Some(Ok(GuestReply::Done)));
    pair.write(A, 9, 9);
    pair.run();
    pair.connect();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
    assert_eq!(
        pair.snapshot(B).disk,
        DiskState::Inconsistent,
        "no view names it yet"
    );
    pair.add_peer(A);
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    assert_eq!(
        pair.snapshot(A)
            .resync
            .map(|progress| progress.copied_blocks),
        Some(2)
    );
    assert_eq!((pair.disk(B, 7), pair.disk(B, 9)), (block(7), block(9)));
}

#[test]
fn after_a_takeover_the_old_primary_gets_what_it_missed_and_loses_what_it_never_acknowledged() {
    let mut pair = Pair::in_sync();
    pair.write(A, 1, 1);
    pair.run();
    // A's last write reaches its own disk only.
    pair.write_here_only(A, 2, 0xee);
    pair.crash(A);
    pair.take_over(B);
    pair.write(B, 3, 3);
    pair.run();
    pair.restart(A);
    pair.connect();
    pair.add_peer(B);
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    assert_eq!(pair.snapshot(B).role, Role::Primary);
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(A, 2), block(0));
    assert_eq!(pair.disk(A, 3), block(3));
}

#[test]
fn a_step_down_forgets_requests_but_never_their_blocks() {
    // interleavings F3: w1 is on A's disk only; A steps down; B never saw it.
    let mut pair = Pair::in_sync();
    let forgotten = pair.write_here_only(A, 4, 0x44);
    pair.take_over(B);
    pair.step_down(A);
    pair.run();
    assert_eq!(pair.answer(forgotten), None);
    pair.connect();
    pair.add_peer(B);
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(A, 4), block(0));
}

#[test]
fn a_failed_local_write_is_answered_only_after_the_leave_is_committed() {
    let mut pair = Pair::in_sync();
    pair.fail_disk(A);
    let write = pair.write(A, 6, 6);
    pair.run();
    assert_eq!(pair.answer(write), None, "detach before ack (promise 5)");
    assert!(pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    let read = pair.guest(
        A,
        GuestKind::Read {
            offset: ByteOffset(6 * BLOCK),
            len: ByteLen(BLOCK),
        },
    );
    pair.run();
    assert_eq!(
        pair.answer(read),
        Some(Ok(GuestReply::Data(block(6).into())))
    );
    assert_eq!(pair.disk(B, 6), block(6));
}

#[test]
fn guest_writes_during_a_resync_end_newest_on_both() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    for nr in 0..200 {
        pair.write(A, nr, 1);
    }
    pair.run();
    pair.start_link();
    for round in 0..50 {
        pair.step(7);
        pair.write(A, round * 3, 2);
    }
    pair.run();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn an_orderly_demotion_leaves_nothing_in_the_activity_log() {
    let mut pair = Pair::in_sync();
    pair.write(A, 8, 8);
    pair.run();
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
    assert_eq!(
        (pair.durable(A, 8), pair.durable(B, 8)),
        (block(8), block(8))
    );
    pair.crash(A);
    pair.restart(A);
    assert_eq!(pair.snapshot(A).out_of_sync_blocks, 0);
}

#[test]
fn a_read_never_tells_what_only_the_primary_has() {
    // interleavings F7b: w1 is on A's disk, not on B's, and a read of it waits behind it.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let write = pair.write(A, 3, 0x33);
    let read = pair.guest(
        A,
        GuestKind::Read {
            offset: ByteOffset(3 * BLOCK),
            len: ByteLen(BLOCK),
        },
    );
    pair.run();
    pair.cut_link();
    pair.run();
    assert_eq!((pair.answer(write), pair.answer(read)), (None, None));
    pair.remove_peer(A);
    pair.run();
    assert_eq!(
        pair.answer(read),
        Some(Ok(GuestReply::Data(block(0x33).into())))
    );
}

#[test]
fn a_lost_peer_is_reported_once_each_time() {
    let mut pair = Pair::in_sync();
    pair.cut_link();
    pair.write(A, 1, 1);
    pair.run();
    assert_eq!(pair.count(A, |event| *event == Event::PeerLost), 1);
    pair.connect();
    pair.cut_link();
    assert_eq!(pair.count(A, |event| *event == Event::PeerLost), 2);
}
