//! Flush rounds, barriers, what survives power loss, the activity log's shortage.

use super::pair::Shape;
use super::*;

#[test]
fn an_acknowledged_flush_survives_the_power_loss_of_both() {
    // I2.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.flushed(A);
    pair.lose_power(A);
    pair.lose_power(B);
    pair.restart(A);
    pair.restart(B);
    assert_eq!(
        (pair.disk(A, 1), pair.disk(B, 1)),
        (block(0x11), block(0x11))
    );
    assert!(pair.facts(A).unwrap().lost_volatile && pair.facts(B).unwrap().lost_volatile);
    pair.recover(A);
    pair.remove_peer(A);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn a_write_with_fua_is_durable_on_both_when_answered() {
    let mut pair = Pair::in_sync();
    for kind in [
        GuestKind::Write {
            offset: ByteOffset(BLOCK),
            payload: block(7).into(),
            fua: true,
        },
        GuestKind::Write {
            offset: ByteOffset(2 * BLOCK + 1),
            payload: vec![7; 9].into(),
            fua: true,
        },
    ] {
        let request = pair.guest(A, kind);
        pair.run();
        assert!(pair.answer(request).is_some());
    }
    for node in [A, B] {
        assert_eq!(pair.durable(node, 1), block(7));
        assert_eq!(pair.durable(node, 2)[1..10], [7; 9]);
    }
}

#[test]
fn a_flush_of_a_new_primary_covers_what_came_over_the_old_session() {
    // interleavings F23: nothing was written in this activation, the disk is flushed all the same.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.crash(A);
    pair.take_over(B);
    pair.flushed(B);
    assert_eq!(pair.durable(B, 1), block(0x11));
}

#[test]
fn a_flush_waits_until_a_peer_that_lost_its_cache_is_equal_again() {
    // interleavings F7, F8 (R15, R16): w1 was acknowledged; B lost it; the flush must not be
    // answered from a barrier that came before w1 was copied again.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.hold_disk(B, true);
    let flush = pair.flush(A);
    pair.run();
    pair.lose_power(B);
    pair.hold_disk(B, false);
    pair.restart(B);
    pair.start_link();
    for _ in 0..400 {
        if pair.answer(flush).is_some() {
            break;
        }
        pair.step(1);
    }
    pair.run();
    assert!(pair.answer(flush).is_some());
    assert_eq!(pair.durable(B, 1), block(0x11));
}

#[test]
fn no_answer_of_any_kind_precedes_the_equality_of_a_returned_peer() {
    // The same, watched at every step, with writes and reads that wait meanwhile.
    let mut pair = Pair::in_sync();
    for nr in 0..40 {
        pair.written(A, nr * 2, 0x11);
    }
    pair.hold_disk(B, true);
    pair.write(A, 1, 0x22);
    pair.flush(A);
    pair.read(A, 1);
    pair.run();
    pair.lose_power(B);
    pair.hold_disk(B, false);
    pair.restart(B);
    pair.start_link();
    let before = pair.answered.len();
    while pair.step_any(|_| 0) {
        if pair.answered.len() > before {
            assert_eq!(
                pair.disk(B, 0),
                block(0x11),
                "answered before B has w1 again"
            );
        }
    }
    assert_eq!(pair.answered.len(), before + 3);
    pair.assert_replicas_equal();
}

#[test]
fn an_answer_that_waited_for_the_lease_waits_for_a_restarted_peer_too() {
    // interleavings F8 (R16): both legs were done, the lease was over, B loses what it had.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let write = pair.write(A, 1, 0x11);
    pair.run();
    pair.lapse_lease(A);
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.answer(write), None);
    pair.lose_power(B);
    pair.restart(B);
    pair.renew_lease(A);
    pair.run();
    assert_eq!(pair.answer(write), None, "no replica but A's has it");
    pair.connect();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 1), block(0x11));
}

#[test]
fn a_replica_that_was_made_whole_again_says_so() {
    // R16: otherwise it would abstain from every later takeover.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.lose_power(B);
    pair.restart(B);
    assert!(pair.facts(B).unwrap().lost_volatile);
    pair.connect();
    assert!(!pair.facts(B).unwrap().lost_volatile);
    pair.crash(B);
    pair.restart(B);
    assert!(!pair.facts(B).unwrap().lost_volatile, "and it is recorded");
}

/// Story: a host lost power, came back and is shut down in order before its replica was made whole.
/// The next start must not take it for complete.
#[test]
fn an_orderly_detach_does_not_bring_back_what_power_loss_took() {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.lose_power(B);
    pair.restart(B);
    assert!(pair.facts(B).unwrap().lost_volatile);
    pair.admin(B, AdminRequest::Detach);
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Detached));
    pair.crash(B);
    pair.restart(B);
    assert!(pair.facts(B).unwrap().lost_volatile);
}

/// Story: a Primary is stopped in order and its host reboots: everything was flushed, nothing is
/// missing.
#[test]
fn a_primary_that_left_in_order_lost_nothing_with_the_power() {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    pair.input(A, Input::StepDown);
    pair.admin(A, AdminRequest::Detach);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Detached));
    pair.lose_power(A);
    pair.restart(A);
    assert!(!pair.facts(A).unwrap().lost_volatile);
    assert!(!pair.facts(A).unwrap().unclean);
    assert_eq!(pair.disk(A, 1), block(0x11));
}

#[test]
fn a_replica_that_lost_nothing_anybody_needs_says_so() {
    // Everything was flushed before: the pair mirrors at once, without a resync.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.flushed(A);
    pair.lose_power(B);
    pair.restart(B);
    pair.connect();
    assert!(!pair.facts(B).unwrap().lost_volatile);
}

#[test]
fn an_idle_volume_lets_go_of_its_activity_log() {
    // interleavings F19b: without a flush by anybody.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    assert_eq!(pair.durable(B, 1), block(0));
    pair.live(Duration::from_secs(2));
    assert_eq!(
        (pair.durable(A, 1), pair.durable(B, 1)),
        (block(1), block(1))
    );
}

const FEW_SLOTS: Shape = Shape {
    blocks: [64 * 1024; 2],
    al_slots: 3,
    zero_proven: true,
    protocol: ReplicationProtocol::C,
    resync_rate: ResyncRate::Unlimited,
    second_at: 0,
};

#[test]
fn a_full_activity_log_closes_the_epoch_by_itself() {
    // interleavings F19: mirrored, solo, and while the peer catches up.
    let mut pair = Pair::in_sync_shaped(FEW_SLOTS);
    let spread = |pair: &mut Pair, byte: u8| {
        let requests: Vec<_> = (0..64).map(|nr| pair.write(A, nr * 1024, byte)).collect();
        pair.run();
        for request in requests {
            assert_eq!(pair.answer(request), Some(Ok(GuestReply::Done)));
        }
    };
    spread(&mut pair, 1);
    pair.disconnect();
    pair.remove_peer(A);
    spread(&mut pair, 2);
    pair.start_link();
    pair.step(60);
    spread(&mut pair, 3);
    pair.add_peer(A);
    spread(&mut pair, 4);
    pair.assert_replicas_equal();
}

#[test]
fn a_flush_that_cannot_be_answered_does_not_stop_the_activity_log() {
    // interleavings F19: the lease is over, a flush waits for it, and the log is full.
    let mut pair = Pair::in_sync_shaped(FEW_SLOTS);
    pair.hold_disk(B, true);
    let writes: Vec<_> = (0..8).map(|nr| pair.write(A, nr * 1024, 1)).collect();
    let flush = pair.flush(A);
    pair.run();
    pair.lapse_lease(A);
    pair.hold_disk(B, false);
    pair.run();
    for nr in 0..8 {
        assert_eq!(pair.disk(B, nr * 1024), block(1), "the eighth is stuck");
    }
    let deadline = pair.nodes[0].engine.next_deadline().unwrap();
    assert!(deadline > pair.now, "a deadline in the past is a busy loop");
    pair.renew_lease(A);
    pair.run();
    for request in writes.into_iter().chain([flush]) {
        assert_eq!(pair.answer(request), Some(Ok(GuestReply::Done)));
    }
}

#[test]
fn a_metadata_write_that_fails_is_a_failed_replica() {
    // interleavings F10 (R23): marks that cannot be made durable are no marks.
    let mut pair = Pair::in_sync();
    pair.state(A).meta_failing = true;
    let write = pair.write(A, 1, 1);
    pair.run();
    assert_eq!(pair.answer(write), None);
    assert!(pair.nodes[0].marked_failed);
    assert!(pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 1), block(1));
}

#[test]
fn a_secondary_whose_metadata_fails_is_failed_after_a_restart_too() {
    // interleavings F10: the mark on the dead device is lost, the voter store's is not.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    pair.fail_disk(B);
    pair.state(B).meta_failing = true;
    pair.write(A, 2, 2);
    pair.run();
    pair.crash(A);
    pair.state(B).disk.failing = false;
    pair.state(B).meta_failing = false;
    pair.crash(B);
    pair.restart(B);
    assert!(!pair.facts(B).unwrap().eligible);
}
