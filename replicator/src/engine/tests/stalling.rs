//! Disks that do not answer: who goes on, who waits, and what becomes of what lands late (R14).

use super::pair::{DISK_TIMEOUT, Shape};
use super::*;
use crate::types::{ConnectionState, InSync};

const BOUND: Duration = Duration::from_secs(6);

fn leave_prepared(pair: &Pair) -> bool {
    pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. }))
}

/// A's disk hangs on a write, a partial one, a read and a flush, and the peer serves.
fn hung() -> (Pair, Vec<u64>) {
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    pair.written(A, 6, 1);
    pair.hold_disk(A, true);
    let part = GuestKind::Write {
        offset: ByteOffset(8 * BLOCK + 5),
        payload: vec![8; 16].into(),
        fua: false,
    };
    let requests = vec![
        pair.write(A, 6, 6),
        pair.read(A, 1),
        pair.guest(A, part),
        pair.read(A, 6),
        pair.flush(A),
    ];
    pair.live(BOUND);
    for request in [requests[0], requests[2], requests[4]] {
        assert_eq!(pair.answer(request), None, "detach before ack (promise 5)");
    }
    assert!(leave_prepared(&pair));
    pair.leave(A);
    pair.run();
    (pair, requests)
}

#[test]
fn guests_of_a_primary_whose_disk_hangs_go_on_with_its_peer() {
    // promise 10: nothing that A's disk was asked ever ends.
    let (mut pair, requests) = hung();
    for request in &requests {
        assert!(
            matches!(pair.answer(*request), Some(Ok(_))),
            "request {request}: {:?}",
            pair.answer(*request)
        );
    }
    assert_eq!(pair.disk(B, 6), block(6));
    // The blocks of the write that hangs are free too.
    pair.written(A, 6, 7);
    pair.flushed(A);
    assert_eq!(pair.read_back(A, 6), block(7));
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
}

#[test]
fn a_write_that_lands_late_undoes_nothing() {
    // interleavings F2: w1 hangs, w2 and a resync write the same block, w1 lands.
    let (mut pair, _) = hung();
    pair.written(A, 6, 7);
    pair.admin(A, AdminRequest::Detach);
    pair.live(Duration::from_secs(30));
    assert_eq!(
        pair.snapshot(A).disk,
        DiskState::Detaching,
        "the device is not let go of before the last operation on it"
    );
    assert_eq!(pair.count(A, |event| *event == Event::Detached), 0);
    pair.take_over(B);
    pair.step_down(A);
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.disk(A, 6), block(6), "it landed");
    assert_eq!(pair.count(A, |event| *event == Event::Detached), 1);
    pair.attach(A);
    pair.connect();
    pair.add_peer(B);
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(A, 6), block(7));
}

#[test]
fn a_failed_disk_is_not_attached_while_something_may_land() {
    let (mut pair, _) = hung();
    pair.take_over(B);
    pair.step_down(A);
    pair.begin_attach(A);
    pair.run();
    let refused = Event::Attached(Err(AttachError::Disk(DiskError::Timeout)));
    assert!(pair.saw(A, |event| *event == refused));
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
}

#[test]
fn the_only_replica_waits_for_its_disk() {
    // An error would say that the write did not happen, and it may land the moment after.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.hold_disk(A, true);
    let write = pair.write(A, 6, 6);
    pair.live(Duration::from_secs(120));
    assert_eq!(pair.answer(write), None);
    assert_eq!(pair.snapshot(A).held, Some(HeldReason::Disk));
    assert_eq!(pair.nodes[0].engine.next_deadline(), None, "nothing to do");
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.snapshot(A).held, None);
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
}

#[test]
fn the_only_replica_whose_peer_was_just_removed_waits_too() {
    // A failed, and the Remove that had left before is committed: the late write is no error.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    let requests = [pair.write(A, 6, 6), pair.flush(A)];
    pair.live(BOUND);
    pair.remove_peer(A);
    pair.live(Duration::from_secs(60));
    for request in requests {
        assert_eq!(pair.answer(request), None);
    }
}

#[test]
fn a_session_lost_while_the_primarys_disk_hangs_does_not_cost_the_peer_its_place() {
    // The peer is whole and waits; what is missing is this side's disk, and then its greeting.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    let write = pair.write(A, 6, 6);
    pair.run();
    pair.cut_link();
    pair.start_link();
    pair.live(Duration::from_secs(4));
    assert!(!pair.saw(A, |event| *event == Event::PeerLost));
    pair.live(Duration::from_secs(3));
    assert!(!pair.saw(A, |event| *event == Event::PeerLost));
    assert!(leave_prepared(&pair), "it greets without its disk");
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 6), block(6));
}

#[test]
fn a_peer_that_is_gone_as_well_is_not_expelled_while_the_disk_hangs() {
    // interleavings F9: it may only be restarting, and then it is the one that can serve.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    let write = pair.write(A, 6, 6);
    pair.cut_link();
    pair.live(DISK_TIMEOUT * 10);
    assert!(!pair.saw(A, |event| *event == Event::PeerLost));
    pair.hold_disk(A, false);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::PeerLost));
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_disk_in_doubt_is_told_of_before_it_is_late_and_no_longer_than_that() {
    let mut pair = Pair::in_sync();
    let doubtful = |pair: &Pair| pair.facts(A).unwrap().doubtful;
    pair.hold_disk(A, true);
    pair.write(A, 6, 6);
    pair.live(DISK_TIMEOUT / Engine::DISK_DOUBT_PARTS / 2);
    assert!(!doubtful(&pair));
    pair.live(DISK_TIMEOUT / Engine::DISK_DOUBT_PARTS);
    assert!(doubtful(&pair));
    assert!(pair.saw(
        A,
        |event| matches!(event, Event::Replica(facts) if facts.doubtful)
    ));
    pair.hold_disk(A, false);
    pair.run();
    assert!(!doubtful(&pair));
}

#[test]
fn what_stops_both_disks_makes_nobody_write_his_own_off() {
    // A common cause: storage, a hypervisor. A's clock began one hop earlier; if it acted first and
    // B's disk never came back, nobody could ever serve again.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    pair.hold_disk(B, true);
    let write = pair.write(A, 6, 6);
    pair.live(DISK_TIMEOUT + Duration::from_millis(500));
    pair.hold_disk(A, false);
    pair.run();
    for _ in 0..4 {
        if pair.link.is_none() {
            pair.start_link();
        }
        pair.live(Duration::from_secs(3));
    }
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    assert!(!pair.nodes[0].marked_failed);
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_peer_that_owes_nothing_is_made_to_show_that_its_disk_works() {
    let stopped = |peer: bool| {
        let mut pair = Pair::in_sync();
        pair.written(A, 1, 1);
        pair.flushed(A);
        pair.hold_disk(A, true);
        pair.hold_disk(B, peer);
        pair.state(B).meta_held = peer;
        let read = pair.read(A, 1);
        pair.live(BOUND);
        (pair.snapshot(A).disk, leave_prepared(&pair), read)
    };
    let (disk, leaves, _) = stopped(false);
    assert_eq!((disk, leaves), (DiskState::Failed, true));
    let (disk, leaves, _) = stopped(true);
    assert_eq!((disk, leaves), (DiskState::UpToDate, false));
}

#[test]
fn a_long_queue_worked_through_in_order_is_no_hang() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    for nr in 0..40 {
        pair.write(A, nr, 1);
    }
    for _ in 0..40 {
        pair.live(Duration::from_secs(1));
        pair.end_disk_op(A, 0);
        assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    }
}

#[test]
fn one_that_others_pass_by_is_late_all_the_same() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    for nr in 0..40 {
        pair.write(A, nr, 1);
    }
    let long = DISK_TIMEOUT * Engine::SLOW_DISK_TIMEOUTS;
    for _ in 0..long.as_secs() + 1 {
        pair.live(Duration::from_secs(1));
        pair.end_disk_op(A, 1);
    }
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
}

#[test]
fn a_remove_that_overtakes_the_leave_leaves_a_replica_that_can_serve_again() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    pair.write(A, 6, 6);
    pair.live(BOUND);
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
    pair.remove_peer(A);
    pair.live(Duration::from_secs(2));
    pair.hold_disk(A, false);
    pair.run();
    pair.step_down(A);
    pair.admin(A, AdminRequest::Detach);
    pair.run();
    pair.begin_attach(A);
    pair.run();
    let facts = pair.facts(A).unwrap();
    assert!(facts.eligible && !pair.nodes[0].marked_failed);
    assert!(facts.lost_volatile, "its cache may be gone: marked lossy");
}

#[test]
fn a_write_not_asked_of_the_disk_yet_is_held_like_the_others() {
    // ADR 0008: it waits for the activity log, the metadata hangs, and a Remove is committed.
    let mut pair = Pair::in_sync();
    pair.state(A).meta_held = true;
    let write = pair.write(A, 3000, 6);
    pair.live(DISK_TIMEOUT * Engine::SLOW_DISK_TIMEOUTS + Duration::from_secs(1));
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
    pair.remove_peer(A);
    pair.live(Duration::from_secs(2));
    assert_eq!(pair.answer(write), None);
}

#[test]
fn a_primary_that_lets_its_failed_disk_go_meets_its_peer() {
    let (mut pair, _) = hung();
    pair.admin(A, AdminRequest::Detach);
    pair.run();
    pair.cut_link();
    pair.start_link();
    let write = pair.write(A, 9, 9);
    pair.live(Duration::from_secs(10));
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.snapshot(A).disk, DiskState::Detaching);
}

#[test]
fn metadata_that_hangs_counts_as_a_hanging_disk() {
    let mut pair = Pair::in_sync();
    pair.state(A).meta_held = true;
    let write = pair.write(A, 3000, 6);
    pair.live(DISK_TIMEOUT * Engine::SLOW_DISK_TIMEOUTS + Duration::from_secs(1));
    assert!(leave_prepared(&pair));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    pair.written(A, 3001, 6);
}

#[test]
fn a_secondary_whose_disk_hangs_says_so_and_comes_back_by_itself() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let write = pair.write(A, 6, 6);
    pair.live(BOUND);
    assert!(pair.saw(A, |event| *event == Event::PeerDiskFailed));
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    pair.written(A, 6, 7);
    pair.start_link();
    pair.live(BOUND);
    assert_ne!(
        pair.snapshot(B).connection,
        ConnectionState::Connected,
        "what hangs may still land on what is resynced"
    );
    pair.hold_disk(B, false);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
    assert_eq!(
        pair.snapshot(A)
            .resync
            .map(|progress| progress.total_blocks),
        Some(1),
        "nothing was written off"
    );
}

#[test]
fn the_only_good_replica_of_a_diskless_primary_waits_for_its_disk() {
    let (mut pair, _) = hung();
    pair.input(B, Input::Learned(pair.view.unwrap()));
    pair.hold_disk(B, true);
    let write = pair.write(A, 9, 9);
    pair.live(DISK_TIMEOUT * 2);
    assert_eq!(pair.answer(write), None);
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    assert_eq!(pair.view.unwrap().in_sync, InSync::only(B));
}

#[test]
fn a_process_that_was_stopped_blames_no_disk() {
    // The answers are there, behind the tick.
    let mut pair = Pair::in_sync();
    let write = pair.write(A, 6, 6);
    pair.now = pair.now.plus(Duration::from_secs(600));
    pair.input(A, Input::Tick);
    pair.run();
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    pair.connect();
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_disk_that_does_other_things_meanwhile_gets_longer_but_not_for_ever() {
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    let lost = pair.write(A, 6, 6);
    pair.run();
    let mut other = 100;
    let mut go_on = |pair: &mut Pair, turns: u32| {
        for _ in 0..turns {
            other += 1;
            pair.write(A, other, 1);
            pair.live(Duration::from_secs(1));
            pair.end_disk_op(A, 1);
        }
    };
    go_on(&mut pair, 15);
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    go_on(&mut pair, 4);
    pair.live(Duration::from_secs(3));
    assert!(leave_prepared(&pair));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(lost), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_timeout_of_none_waits_for_ever() {
    let mut pair = Pair::in_sync();
    pair.state(A).engine.config.disk_timeout = None;
    pair.hold_disk(A, true);
    let write = pair.write(A, 6, 6);
    pair.live(Duration::from_secs(600));
    assert_eq!(pair.answer(write), None);
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
}

/// Two volumes, and the first one's disk of that node hangs.
fn half_hung(node: NodeId) -> Pair {
    let mut pair = Pair::in_sync_shaped(Shape {
        second_at: 2048,
        ..Shape::SMALL
    });
    pair.state(node).disk.held_below = 2048;
    pair
}

/// The other volume's disk goes on answering.
fn use_the_other(pair: &mut Pair, time: Duration) {
    const STEP: Duration = Duration::from_millis(200);
    let steps = u64::try_from(time.as_millis() / STEP.as_millis()).unwrap();
    for nr in 0..steps {
        pair.read(A, 3000 + nr);
        pair.write(A, 2100 + nr, 7);
        pair.live(STEP);
    }
}

#[test]
fn one_disk_that_hangs_is_not_hidden_by_another_volumes() {
    let mut pair = half_hung(A);
    let write = pair.write(A, 6, 6);
    use_the_other(&mut pair, Duration::from_secs(2));
    assert!(pair.facts(A).unwrap().doubtful, "R18: no moment to expel");
    use_the_other(&mut pair, DISK_TIMEOUT - Duration::from_secs(1));
    assert!(leave_prepared(&pair), "after the timeout, not four of them");
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.disk(B, 6), block(6));
}

#[test]
fn the_peer_is_not_expelled_while_one_of_the_primarys_disks_hangs() {
    let mut pair = half_hung(A);
    pair.write(A, 6, 6);
    use_the_other(&mut pair, Duration::from_secs(2));
    pair.cut_link();
    use_the_other(&mut pair, DISK_TIMEOUT);
    assert!(!pair.saw(A, |event| *event == Event::PeerLost));
    assert!(pair.facts(A).unwrap().doubtful);
}

#[test]
fn a_secondary_with_one_disk_that_hangs_says_so() {
    let mut pair = half_hung(B);
    let write = pair.write(A, 6, 6);
    use_the_other(&mut pair, DISK_TIMEOUT + Duration::from_secs(1));
    assert!(pair.saw(A, |event| *event == Event::PeerLost));
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}
