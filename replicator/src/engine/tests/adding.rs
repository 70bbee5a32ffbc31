//! Making the peer part of `in_sync` (R19), losing it (R21), and what counts as acknowledged.

use super::*;
use crate::types::InSync;

fn behind() -> Pair {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.connect();
    pair
}

#[test]
fn a_view_from_before_the_add_does_not_outdate_what_the_add_made_whole() {
    // Found by the simulator (seed 1400004582): the replica had heard of the Add, its voter store
    // had not when the process died. Then A's disk failed, and nobody could serve.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    let before = pair.view.unwrap();
    pair.input(B, Input::Learned(before));
    pair.run();
    pair.connect();
    pair.add_peer(A);
    pair.crash(B);
    pair.attach(B);
    pair.input(B, Input::Learned(before));
    pair.run();
    assert!(pair.facts(B).unwrap().eligible);
    pair.remove_peer(A);
    let newer = pair.view.unwrap();
    pair.input(B, Input::Learned(newer));
    pair.run();
    assert!(!pair.facts(B).unwrap().eligible);
}

#[test]
fn a_write_admitted_before_an_add_is_answered_by_the_stricter_rule() {
    // interleavings F5a: local only would do at admission, not at the reply.
    let mut pair = behind();
    pair.hold_disk(A, true);
    pair.hold_inbox(B, true);
    let write = pair.write(A, 9, 9);
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.answer(write), None);
    assert!(!pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
    pair.hold_inbox(B, false);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert!(pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
    assert_eq!(pair.disk(B, 9), block(9));
}

#[test]
fn a_flush_admitted_before_an_add_is_durable_on_both() {
    // interleavings F5b.
    let mut pair = behind();
    pair.written(A, 9, 9);
    pair.hold_disk(A, true);
    let flush = pair.flush(A);
    pair.run();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.hold_disk(A, false);
    while pair.answer(flush).is_none() {
        assert!(pair.step_any(|_| 0), "the flush is never answered");
    }
    assert_eq!(pair.durable(B, 9), block(9));
}

#[test]
fn what_was_answered_before_an_add_is_durable_on_the_peer_when_it_is_prepared() {
    // interleavings F5, order of the Add.
    let mut pair = behind();
    pair.hold_inbox(B, true);
    pair.write(A, 9, 9);
    pair.run();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.hold_inbox(B, false);
    while !pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })) {
        assert!(pair.step_any(|_| 0));
    }
    assert_eq!(pair.durable(B, 9), block(9));
    let superblock = pair.recovered(B).superblock.current().clone();
    assert_eq!(
        superblock.in_sync_from,
        Some(view),
        "recorded before it is said"
    );
    pair.assert_dirty_superset();
}

#[test]
fn a_peer_that_dies_before_an_add_is_prepared_holds_nobody() {
    // promise 10: no accept can have left, so the Primary is as free as before.
    let mut pair = behind();
    pair.hold_inbox(B, true);
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    pair.crash(B);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::AddAborted { view }));
    pair.written(A, 5, 5);
}

#[test]
fn a_prepared_add_stays_strict_until_its_end_is_known() {
    // R4: the accept may have left.
    let mut pair = behind();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    assert!(pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
    pair.cut_link();
    let write = pair.write(A, 5, 5);
    pair.run();
    assert_eq!(pair.answer(write), None);
    pair.input(A, Input::ProposalAborted);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_session_that_ends_in_an_add_aborts_it() {
    let mut pair = behind();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.cut_link();
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::AddAborted { view }));
    assert!(!pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
}

#[test]
fn a_record_of_an_add_that_never_was_makes_nobody_in_sync() {
    // interleavings F5: void unless the register names the replica.
    let mut pair = behind();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    pair.cut_link();
    pair.remove_peer(A);
    pair.written(A, 7, 7);
    pair.crash(B);
    pair.restart(B);
    assert_ne!(pair.snapshot(B).disk, DiskState::UpToDate);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn acknowledgements_of_a_dead_session_are_nothing() {
    // interleavings F14: Remove first, then the old session's answers arrive.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(A, true);
    let write = pair.write(A, 3, 3);
    pair.flush(A);
    pair.run();
    let old = pair.link.unwrap().session;
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    pair.written(A, 3, 4);
    for message in [
        crate::protocol::Message::WriteAck {
            write: crate::protocol::WriteId(1 << 32),
        },
        crate::protocol::Message::BarrierAck {
            epoch: WriteEpoch(1),
        },
    ] {
        pair.input(
            A,
            Input::Received {
                session: old,
                message,
            },
        );
    }
    pair.hold_inbox(A, false);
    pair.run();
    pair.flushed(A);
    pair.assert_dirty_superset();
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(B, 3), block(4));
}

#[test]
fn a_half_open_link_ends_by_itself_and_is_reported() {
    // promise 10: B hears nothing and says nothing, the connection stays up.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(A, true);
    let write = pair.write(A, 3, 3);
    for _ in 0..20 {
        pair.pass(Duration::from_millis(200));
        pair.run();
    }
    assert!(pair.saw(A, |event| *event == Event::PeerLost));
    assert_eq!(pair.answer(write), None);
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_peer_whose_disk_hangs_is_lost_after_a_bound() {
    // promise 10: its network answers, its disk never does, and it is patient with it.
    let mut pair = Pair::in_sync();
    pair.state(B).engine.config.disk_timeout = None;
    pair.hold_disk(B, true);
    let write = pair.write(A, 3, 3);
    pair.live(Duration::from_secs(60));
    assert!(pair.saw(A, |event| *event == Event::PeerLost));
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn a_slow_but_living_peer_is_kept() {
    let mut pair = Pair::in_sync();
    pair.state(B).engine.config.disk_timeout = None;
    pair.hold_disk(B, true);
    for nr in 0..40 {
        pair.write(A, nr, 3);
    }
    for _ in 0..40 {
        pair.live(Duration::from_secs(2));
        pair.end_disk_op(B, 0);
    }
    pair.run();
    assert!(!pair.saw(A, |event| *event == Event::PeerLost));
}

#[test]
fn a_crash_right_after_a_remove_loses_no_mark() {
    // R21: un-barriered requests are in the log or marked before the first solo answer.
    let mut pair = Pair::in_sync();
    for nr in 0..20 {
        pair.written(A, nr * 100, 1);
    }
    pair.hold_inbox(B, true);
    for nr in 0..20 {
        pair.write(A, nr * 100, 2);
    }
    pair.run();
    pair.cut_link();
    pair.hold_inbox(B, false);
    pair.remove_peer(A);
    while pair.step_any(|_| 0) {
        pair.assert_dirty_superset();
    }
    pair.crash(A);
    pair.assert_dirty_superset();
    pair.restart(A);
    pair.recover(A);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
    assert_eq!(pair.view.unwrap().in_sync, InSync::BOTH);
}

#[test]
fn an_add_asked_for_twice_stays_prepared_when_the_session_ends() {
    // A controller that lags behind two sessions asks once for each. The accept may have left.
    let mut pair = behind();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    assert!(pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    pair.cut_link();
    let write = pair.write(A, 5, 5);
    pair.run();
    assert_eq!(pair.answer(write), None, "the Add may be chosen (R4)");
}

#[test]
fn another_view_tells_that_an_add_under_way_is_void() {
    let mut pair = behind();
    let view = pair.view.unwrap().number.next();
    pair.hold_inbox(B, true);
    pair.input(A, Input::BeginAdd { view });
    let committed = pair.commit(A, |_| {});
    pair.input(A, Input::Committed(committed));
    assert!(pair.saw(A, |event| *event == Event::AddAborted { view }));
}

#[test]
fn an_activation_without_a_replica_is_refused_aloud() {
    let mut pair = Pair::in_sync();
    pair.fail_disk(B);
    pair.write(A, 1, 1);
    pair.run();
    let committed = pair.commit(B, |view| {
        view.primary = B;
        view.in_sync = InSync::only(B);
    });
    let view = committed.view().number;
    let activation = crate::types::Activation::of(committed, B).unwrap();
    pair.input(B, Input::Activate(activation));
    assert!(pair.saw(B, |event| *event == Event::NotActivated { view }));
}
