//! `suspend-io`: writes wait, everything before them is durable on both, and it ends when it should.

use super::pair::Shape;
use super::*;
use crate::types::RequestId;

fn suspend(pair: &mut Pair) {
    pair.admin(A, AdminRequest::SuspendIo);
    pair.run();
}

fn resume(pair: &mut Pair) {
    pair.admin(A, AdminRequest::ResumeIo);
    pair.run();
}

/// Snapshots of both devices, taken now, would be equal and need nothing of any cache.
fn assert_settled(pair: &Pair) {
    assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settled));
    assert_eq!(pair.snapshot(A).held, Some(HeldReason::User));
    for node in [A, B] {
        let disk = &pair.nodes[node.index()].disk;
        assert_eq!(disk.completed, disk.durable, "{node:?} has it in a cache");
    }
    pair.assert_replicas_equal();
}

#[test]
fn writes_wait_and_reads_and_flushes_go_on_until_it_is_resumed() {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    suspend(&mut pair);
    assert_settled(&pair);
    let zeroes = GuestKind::Zeroes {
        offset: ByteOffset(2 * 4096),
        len: ByteLen(4096),
        may_unmap: true,
        fua: false,
    };
    let first = pair.write(A, 1, 0x22);
    let second = pair.write(A, 1, 0x33);
    let third = pair.guest(A, zeroes);
    pair.live(Duration::from_secs(10));
    for waits in [first, second, third] {
        assert_eq!(pair.answer(waits), None);
    }
    assert_eq!(pair.read_back(A, 7), block(0), "reads go on");
    pair.flushed(A);
    assert_settled(&pair);
    assert_eq!(pair.snapshot(A).inflight, 3);
    assert_eq!(pair.state(A).engine.suspended_bytes(), 2 * 4096);
    resume(&mut pair);
    for waits in [first, second, third] {
        assert_eq!(pair.answer(waits), Some(Ok(GuestReply::Done)));
    }
    assert_eq!(pair.read_back(A, 1), block(0x33), "in their order");
    let snapshot = pair.snapshot(A);
    assert_eq!((snapshot.suspension, snapshot.held), (None, None));
    pair.assert_replicas_equal();
}

#[test]
fn it_is_settled_only_once_what_was_begun_is_on_both_disks_and_flushed() {
    // DRBD before 9.2.14 returned too early: snapshots lacked what was under way.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let begun = pair.write(A, 1, 0x11);
    pair.run();
    suspend(&mut pair);
    let later = pair.write(A, 2, 0x22);
    pair.run();
    assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settling));
    assert_eq!(pair.answer(begun), None);
    pair.hold_disk(B, false);
    // One thing at a time: never settled too early.
    while pair.snapshot(A).suspension != Some(Suspension::Settled) {
        pair.step(1);
    }
    assert_settled(&pair);
    assert_eq!(pair.answer(begun), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.answer(later), None);
    resume(&mut pair);
    assert_eq!(pair.answer(later), Some(Ok(GuestReply::Done)));
}

#[test]
fn below_protocol_c_it_waits_for_the_peers_disk_too() {
    for protocol in [ReplicationProtocol::A, ReplicationProtocol::B] {
        let mut pair = Pair::in_sync_shaped(Shape::under(protocol));
        pair.hold_disk(B, true);
        pair.written(A, 1, 0x11);
        suspend(&mut pair);
        assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settling));
        pair.hold_disk(B, false);
        pair.run();
        assert_settled(&pair);
    }
}

#[test]
fn a_peer_that_goes_meanwhile_is_waited_for_until_the_view_leaves_it_out() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    pair.write(A, 1, 0x11);
    pair.run();
    suspend(&mut pair);
    pair.disconnect();
    pair.run();
    assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settling));
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settled));
    let disk = &pair.nodes[A.index()].disk;
    assert_eq!(disk.completed, disk.durable);
}

#[test]
fn a_flush_that_fails_settles_nothing_before_the_replica_has_left() {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.state(A).disk.fail_next_flush = true;
    suspend(&mut pair);
    assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settling));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.snapshot(A).suspension, Some(Suspension::Settled));
    assert_eq!(pair.durable(B, 1), block(0x11), "the only replica has it");
}

#[test]
fn the_end_of_the_role_ends_it_and_a_later_activation_begins_without_it() {
    let mut pair = Pair::in_sync();
    suspend(&mut pair);
    let waits = pair.write(A, 1, 0x11);
    pair.step_down(A);
    pair.run();
    assert_eq!(pair.snapshot(A).suspension, None);
    assert_eq!(pair.answer(waits), None, "its client asks whoever serves");
    pair.recover(A);
    pair.connect();
    assert_eq!(pair.snapshot(A).suspension, None);
    resume(&mut pair);
    pair.written(A, 1, 0x22);
}

#[test]
fn an_orderly_end_of_the_role_goes_through_in_spite_of_it() {
    let mut pair = Pair::in_sync();
    suspend(&mut pair);
    let waits = pair.write(A, 1, 0x11);
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
    assert_eq!(pair.answer(waits), None);
}

#[test]
fn a_secondary_takes_no_such_order() {
    let mut pair = Pair::in_sync();
    pair.admin(B, AdminRequest::SuspendIo);
    pair.run();
    assert_eq!(pair.snapshot(B).suspension, None);
    pair.written(A, 1, 0x11);
}

#[test]
fn a_repair_waits_and_goes_on_afterwards() {
    let mut pair = Pair::in_sync();
    pair.written(A, 7, 0x11);
    pair.state(B).disk.completed.insert(7, block(0xbb));
    suspend(&mut pair);
    pair.admin(A, AdminRequest::Verify(VerifyOrder::Start { repair: true }));
    pair.run();
    assert_eq!(pair.disk(B, 7), block(0xbb), "nothing is written");
    resume(&mut pair);
    assert_eq!(pair.disk(B, 7), block(0x11));
}

#[test]
fn what_the_gate_holds_and_what_the_order_holds_keep_their_order() {
    let mut pair = Pair::in_sync();
    suspend(&mut pair);
    let first = pair.write(A, 1, 0x11);
    pair.lapse_lease(A);
    let second = pair.write(A, 1, 0x22);
    resume(&mut pair);
    assert_eq!((pair.answer(first), pair.answer(second)), (None, None));
    pair.renew_lease(A);
    pair.run();
    assert_eq!(pair.read_back(A, 1), block(0x22));
    assert!(pair.answer(first).is_some());
}

#[test]
fn a_flush_of_an_earlier_order_settles_nothing_for_the_next_one() {
    for seed in 1..200_usize {
        let mut pair = Pair::in_sync();
        pair.written(A, 1, 0x11);
        let mut chance = seed;
        let mut step = |pair: &mut Pair| {
            chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            assert!(pair.step_any(|count| (chance >> 33) % count));
        };
        pair.admin(A, AdminRequest::SuspendIo);
        pair.admin(A, AdminRequest::ResumeIo);
        let between = pair.write(A, 1, 0x22);
        while pair.answer(between).is_none() {
            step(&mut pair);
        }
        pair.admin(A, AdminRequest::SuspendIo);
        while pair.snapshot(A).suspension != Some(Suspension::Settled) {
            step(&mut pair);
        }
        assert_settled(&pair);
    }
}

#[test]
fn a_read_of_what_a_held_write_changes_waits_behind_it() {
    // Its client may be gone: the next one must not see it change later.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    suspend(&mut pair);
    let write = pair.write(A, 1, 0x22);
    let same = pair.read(A, 1);
    let other = pair.read(A, 2);
    pair.run();
    assert_eq!((pair.answer(write), pair.answer(same)), (None, None));
    assert!(pair.answer(other).is_some(), "another block");
    resume(&mut pair);
    let read = Some(Ok(GuestReply::Data(block(0x22).into())));
    assert_eq!(pair.answer(same), read);
}

#[test]
fn what_a_client_that_is_gone_had_waiting_is_never_written() {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    suspend(&mut pair);
    let gone = pair.write(A, 1, 0x22);
    let of_another = pair.write(A, 2, 0x33);
    let behind = pair.read(A, 1);
    pair.input(A, Input::GuestGone(RequestId(gone)));
    pair.run();
    assert_eq!(pair.answer(gone), Some(Err(GuestError::Forgotten)));
    let read = Some(Ok(GuestReply::Data(block(0x11).into())));
    assert_eq!(pair.answer(behind), read, "it waits for nothing any more");
    // Of one that is answered already nothing is known.
    pair.input(A, Input::GuestGone(RequestId(gone)));
    resume(&mut pair);
    assert_eq!(pair.read_back(A, 1), block(0x11));
    assert_eq!(pair.answer(of_another), Some(Ok(GuestReply::Done)));
    pair.assert_replicas_equal();
}
