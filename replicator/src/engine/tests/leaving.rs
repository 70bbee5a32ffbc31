//! A Primary whose own disk failed (R18), and who may serve for it.

use super::*;
use crate::protocol::Message;
use crate::types::InSync;

/// A's disk failed, the Leave is committed, B serves for A.
fn left() -> Pair {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    pair.fail_disk(A);
    pair.write(A, 6, 6);
    pair.run();
    pair.leave(A);
    pair.run();
    pair
}

#[test]
fn a_failed_write_is_never_old_again_after_a_restart() {
    // interleavings F9: the disk answers again after the restart; it is out of the view.
    let mut pair = left();
    pair.state(A).disk.failing = false;
    pair.crash(A);
    pair.restart(A);
    assert!(
        !pair.facts(A).unwrap().eligible,
        "its own record forbids it"
    );
    pair.take_over(B);
    assert_eq!(pair.read_back(B, 6), block(6));
    pair.connect();
    pair.add_peer(B);
    pair.assert_replicas_equal();
}

#[test]
fn a_failed_primary_comes_back_by_a_full_resync_only() {
    // interleavings F9: nobody kept track of what its disk misses.
    let mut pair = left();
    pair.state(A).disk.failing = false;
    // What silently went missing on the failing disk.
    for nr in [1, 2, 3] {
        pair.nodes[0].disk.bad.insert(nr);
    }
    pair.crash(A);
    pair.nodes[0].disk.bad.clear();
    pair.restart(A);
    pair.take_over(B);
    pair.connect();
    assert_eq!(
        pair.snapshot(B)
            .resync
            .map(|progress| progress.total_blocks),
        Some(4096)
    );
}

#[test]
fn a_disk_attached_to_a_primary_that_left_serves_nobody() {
    // promise 3: the new disk is empty, B has the data.
    let mut pair = left();
    pair.admin(A, AdminRequest::Detach);
    pair.replace_disk(A, true);
    pair.begin_attach(A);
    pair.run();
    let refused = Event::Attached(Err(AttachError::Serving));
    assert!(pair.saw(A, |event| *event == refused));
    assert_eq!(pair.read_back(A, 1), block(1));
    pair.written(A, 2, 2);
    assert_eq!(pair.disk(B, 2), block(2));
    assert_eq!(pair.disk(A, 2), block(0), "it is no replica yet");
}

#[test]
fn a_failed_disk_is_not_attached_again_before_the_leave_is_committed() {
    // promise 6: it missed a write, and would answer reads with what was there before.
    let mut pair = Pair::in_sync();
    pair.written(A, 6, 1);
    pair.fail_disk(A);
    pair.write(A, 6, 6);
    pair.run();
    pair.state(A).disk.failing = false;
    pair.begin_attach(A);
    pair.run();
    let read = pair.read(A, 6);
    pair.run();
    assert_eq!(pair.answer(read), None);
    pair.leave(A);
    pair.run();
    assert_eq!(
        pair.answer(read),
        Some(Ok(GuestReply::Data(block(6).into())))
    );
}

#[test]
fn a_session_that_ends_before_the_leave_is_prepared_only_delays_it() {
    // promise 10: the link comes back, the Leave must go on.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(B, true);
    pair.fail_disk(A);
    let write = pair.write(A, 6, 6);
    pair.run();
    pair.cut_link();
    pair.hold_inbox(B, false);
    pair.run();
    assert!(!pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.connect();
    assert!(pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 6), block(6));
}

#[test]
fn a_leave_that_was_overtaken_by_another_view_is_prepared_again() {
    let mut pair = Pair::in_sync();
    pair.fail_disk(A);
    let write = pair.write(A, 6, 6);
    pair.run();
    // A voter was met meanwhile: the number is taken.
    let committed = pair.commit(A, |_| {});
    pair.input(A, Input::Committed(committed));
    pair.input(A, Input::ProposalAborted);
    pair.run();
    let wanted = pair.view.unwrap().number.next();
    assert!(pair.saw(A, |event| *event == Event::LeavePrepared { view: wanted }));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_disk_that_fails_while_the_peer_is_made_equal_hands_over_to_it() {
    // promise 10: B only reconnected, its content is whole; A's disk dies in the middle.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(B, true);
    for nr in 0..60 {
        pair.write(A, nr * 3, 1);
    }
    pair.run();
    pair.cut_link();
    pair.hold_inbox(B, false);
    pair.start_link();
    pair.step(12);
    pair.fail_disk(A);
    let write = pair.write(A, 1, 9);
    pair.run();
    if pair.link.is_none() {
        pair.connect();
    }
    assert!(pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert!(pair.nodes[0].unanswered.is_empty());
}

#[test]
fn requests_of_a_diskless_primary_survive_a_lost_session() {
    // promise 10 and no EIO for a lost link: overlapping writes, partial ones, reads.
    let mut pair = left();
    pair.hold_disk(B, true);
    let mut requests = vec![pair.write(A, 8, 1), pair.write(A, 8, 2)];
    let part = |at: u64, byte: u8| GuestKind::Write {
        offset: ByteOffset(8 * BLOCK + at),
        payload: vec![byte; 16].into(),
        fua: false,
    };
    requests.push(pair.guest(A, part(0, 3)));
    requests.push(pair.guest(A, part(100, 4)));
    requests.push(pair.read(A, 8));
    requests.push(pair.read(A, 1));
    requests.push(pair.flush(A));
    pair.run();
    pair.cut_link();
    pair.run();
    pair.hold_disk(B, false);
    pair.run();
    for request in &requests {
        assert_eq!(pair.answer(*request), None);
    }
    pair.connect();
    for request in &requests {
        assert!(
            matches!(pair.answer(*request), Some(Ok(_))),
            "request {request}: {:?}",
            pair.answer(*request)
        );
    }
    let content = pair.read_back(A, 8);
    assert_eq!((content[0], content[100]), (3, 4), "both parts are there");
    assert_eq!(content[200], 2);
}

#[test]
fn a_step_down_of_a_diskless_primary_leaves_no_lock_behind() {
    // promise 10: a read parked for the peer held its blocks for ever.
    let mut pair = left();
    pair.hold_disk(B, true);
    pair.read(A, 8);
    pair.write(A, 9, 9);
    pair.run();
    pair.cut_link();
    pair.run();
    pair.input(A, Input::StepDown);
    pair.hold_disk(B, false);
    pair.take_over(B);
    pair.step_down(A);
    pair.admin(A, AdminRequest::Detach);
    pair.replace_disk(A, true);
    pair.attach(A);
    for nr in 0..20 {
        pair.written(B, nr, 5);
    }
    pair.connect();
    pair.add_peer(B);
    pair.assert_replicas_equal();
}

#[test]
fn a_replaced_disk_under_a_trusted_name_serves_no_diskless_primary() {
    // promise 3: the view names node B, but B's disk is a new one.
    let mut pair = left();
    pair.crash(B);
    pair.replace_disk(B, true);
    pair.restart(B);
    pair.connect();
    let read = pair.read(A, 1);
    pair.run();
    assert_eq!(pair.answer(read), None, "zeroes are not what was written");
}

#[test]
fn a_peer_that_lost_its_cache_serves_no_diskless_primary() {
    // interleavings F12: the guest lives on and believes that its writes are there.
    let mut pair = left();
    pair.written(A, 3, 3);
    pair.lose_power(B);
    pair.restart(B);
    pair.connect();
    let flush = pair.flush(A);
    pair.run();
    assert_eq!(pair.answer(flush), None);
}

#[test]
fn the_only_good_replica_says_so_when_it_fails() {
    // R18: with no peer in in_sync a failed write is an error, also while one catches up.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.connect();
    pair.hold_disk(A, true);
    let first = pair.write(A, 2, 2);
    let second = pair.write(A, 2, 3);
    pair.run();
    pair.fail_disk(A);
    pair.hold_disk(A, false);
    pair.run();
    for request in [first, second] {
        assert!(matches!(pair.answer(request), Some(Err(GuestError::Io(_)))));
    }
    // As from any disk: the next write may be taken, and nothing is written off for good.
    assert_eq!(pair.snapshot(A).held, None);
    assert!(!pair.nodes[0].marked_failed);
    pair.heal_disk(A);
    pair.written(A, 2, 4);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn the_only_good_replica_holds_after_a_failed_flush_until_it_is_attached_again() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.state(A).disk.fail_next_flush = true;
    let flush = pair.flush(A);
    pair.run();
    assert!(matches!(pair.answer(flush), Some(Err(GuestError::Io(_)))));
    assert_eq!(pair.snapshot(A).held, Some(HeldReason::NoData));
    assert!(!pair.nodes[0].marked_failed);
    pair.admin(A, AdminRequest::Detach);
    pair.run();
    pair.step_down(A);
    pair.attach(A);
    let lost = |event: &Event| matches!(event, Event::Replica(facts) if facts.lost_volatile);
    assert!(pair.saw(A, lost), "the failed flush may have lost writes");
    pair.recover(A);
    pair.written(A, 1, 5);
    assert_eq!(pair.read_back(A, 1)[0], 5);
}

#[test]
fn a_failed_flush_is_answered_only_by_the_peer_after_the_leave() {
    // promise 6 and 5 together.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    pair.state(A).disk.fail_next_flush = true;
    let flush = pair.flush(A);
    pair.run();
    assert_eq!(pair.answer(flush), None);
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(flush), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.durable(B, 1), block(1));
    assert_eq!(pair.read_back(A, 1), block(1));
}

#[test]
fn a_block_that_cannot_be_read_comes_from_an_equal_peer_only() {
    // interleavings F16.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    pair.state(A).disk.bad.insert(1);
    assert_eq!(pair.read_back(A, 1), block(1));
    pair.disconnect();
    pair.remove_peer(A);
    pair.state(A).disk.bad.clear();
    pair.written(A, 1, 2);
    pair.state(A).disk.bad.insert(1);
    pair.connect();
    let read = pair.read(A, 1);
    pair.run();
    assert_eq!(pair.answer(read), Some(Err(GuestError::Io(DiskError::Io))));
}

#[test]
fn a_disk_replaced_while_old_writes_are_under_way_harms_nobody() {
    // promise 12: references of the old activity log are not given back to the new one.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(B, true);
    pair.fail_disk(A);
    let write = pair.write(A, 6, 6);
    pair.run();
    pair.leave(A);
    pair.run();
    pair.admin(A, AdminRequest::Detach);
    pair.replace_disk(A, true);
    pair.begin_attach(A);
    pair.hold_inbox(B, false);
    pair.run();
    if pair.link.is_none() {
        pair.connect();
    }
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.view.unwrap().in_sync, InSync::only(B));
}

#[test]
fn the_only_good_replica_is_not_written_off_by_the_flush_of_its_detach() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.step_down(A);
    pair.run();
    pair.state(A).disk.fail_next_flush = true;
    pair.admin(A, AdminRequest::Detach);
    pair.run();
    pair.attach(A);
    let lost = |event: &Event| matches!(event, Event::Replica(facts) if facts.lost_volatile && facts.eligible);
    assert!(pair.saw(A, lost), "it may serve, marked lossy");
}

#[test]
fn a_write_that_no_log_lists_waits_for_the_leave() {
    // Simulator, seed 2100002554: the log's own write failed, the write it was for went to the peer,
    // and both died before anything was durable that said so.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(B, true);
    pair.state(A).meta_failing = true;
    let cold = pair.write(A, 3000, 0x33);
    pair.run();
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
    let sent = |pair: &Pair| {
        let messages = pair.messages_to(B);
        let data = |message: &&Message| matches!(message, Message::Data { .. });
        messages.into_iter().filter(data).count()
    };
    assert_eq!(sent(&pair), 0);
    pair.hold_inbox(B, false);
    pair.run();
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(cold), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 3000), block(0x33));
}
