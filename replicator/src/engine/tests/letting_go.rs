//! A disk that is let go, and a lease that is taken back: nothing of before counts afterwards.

use super::*;

#[test]
fn a_failed_disk_is_let_go_only_after_its_last_operation_ended() {
    // R14: the executor forgets a detached device, and takes what still completes on it for an
    // operation of the next one.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    for nr in 0..3 {
        pair.write(A, nr, 0x11);
    }
    pair.run();
    pair.state(A).disk.failing = true;
    pair.end_disk_op(A, 0);
    pair.run();
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
    pair.leave(A);
    pair.run();
    pair.admin(A, AdminRequest::Detach);
    for left in [2, 1] {
        pair.run();
        assert_eq!(pair.disk_ops(A).len(), left);
        assert_eq!(pair.snapshot(A).disk, DiskState::Detaching);
        assert_eq!(pair.count(A, |event| *event == Event::Detached), 0);
        pair.end_disk_op(A, 0);
    }
    pair.run();
    assert_eq!(pair.count(A, |event| *event == Event::Detached), 1);
    assert_eq!(pair.snapshot(A).disk, DiskState::Diskless);
}

#[test]
fn metadata_that_fails_while_it_is_closed_is_let_go_after_the_record_of_that() {
    // The marks and the closing record fail; the record of the failure is under way when the
    // closing one is given up.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    pair.write(A, 5, 0x22);
    pair.run();
    pair.step_down(A);
    pair.admin(A, AdminRequest::Detach);
    pair.run();
    pair.state(A).meta_held = true;
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.meta_ops(A), 2, "marks, and the closing record");
    pair.state(A).meta_failing = true;
    for left in [2, 1, 0] {
        assert_ne!(pair.snapshot(A).disk, DiskState::Diskless);
        assert!(!pair.saw(A, |event| *event == Event::Detached));
        pair.end_meta_op(A);
        assert_eq!(pair.meta_ops(A), left);
    }
    assert!(pair.saw(A, |event| *event == Event::Detached));
    assert!(pair.nodes[0].marked_failed, "in a second place (R23)");
}

#[test]
fn a_detaching_disk_is_not_called_gone_before_its_closing_record() {
    // `down` takes the resource away once it is Diskless; the closing record must be on the disk.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    pair.admin(B, AdminRequest::Detach);
    pair.run();
    assert_ne!(pair.snapshot(B).disk, DiskState::Diskless);
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.snapshot(B).disk, DiskState::Diskless);
    assert!(!pair.recovered(B).superblock.current().open);
}

#[test]
fn a_lease_of_zero_takes_back_the_one_that_held() {
    // The clock did not count while the machine slept: what was granted before is void, though its
    // end has not come by this clock (R2).
    let mut pair = Pair::in_sync();
    let before = pair.now.plus(Duration::from_secs(1000));
    let void = Instant::ZERO;
    pair.input(A, Input::Lease { until: void });
    let read = pair.read(A, 1);
    pair.run();
    assert_eq!(pair.answer(read), None);
    assert_eq!(pair.snapshot(A).held, Some(HeldReason::Lease));
    let until = before.plus(Duration::from_secs(1));
    pair.input(A, Input::Lease { until });
    pair.run();
    assert!(pair.answer(read).is_some());
}

#[test]
fn a_detach_while_the_metadata_is_read_is_not_lost() {
    // The first read of it hangs.
    let mut pair = Pair::in_sync();
    pair.crash(B);
    pair.state(B).meta_held = true;
    pair.begin_attach(B);
    pair.run();
    assert_eq!(pair.snapshot(B).disk, DiskState::Attaching);
    pair.admin(B, AdminRequest::Detach);
    pair.run();
    let detached = |event: &Event| *event == Event::Detached;
    assert!(!pair.saw(B, detached), "the read may still be under way");
    pair.state(B).meta_held = false;
    pair.run();
    assert!(pair.saw(B, detached));
    assert_eq!(pair.snapshot(B).disk, DiskState::Diskless);
    pair.attach(B);
}
