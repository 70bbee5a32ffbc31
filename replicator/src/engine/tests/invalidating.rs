//! An operator throws a Secondary's data away: the view goes first, then the data, then everything
//! is copied.

use super::pair::Shape;
use super::*;
use crate::meta::ReplicaState;

fn invalidate(pair: &mut Pair) {
    pair.admin(B, AdminRequest::Invalidate);
}

fn learn(pair: &mut Pair) {
    let view = pair.view.unwrap();
    pair.input(B, Input::Learned(view));
}

/// What the Primary was asked for, and its controller did.
fn remove(pair: &mut Pair) {
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::PeerGivesUpData));
    pair.remove_peer(A);
    learn(pair);
    pair.run();
}

fn state(pair: &Pair) -> ReplicaState {
    pair.nodes[B.index()].engine.replica_state().unwrap()
}

/// Blocks of B's disk change below the engine.
fn spoil(pair: &mut Pair, blocks: &[u64]) {
    for nr in blocks {
        pair.state(B).disk.completed.insert(*nr, block(0xbd));
        pair.state(B).disk.durable.insert(*nr, block(0xbd));
    }
}

#[test]
fn everything_is_copied_once_the_view_left_it_out() {
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 3);
    spoil(&mut pair, &[3, 7, 4000]);
    invalidate(&mut pair);
    pair.run();
    // It counts until the view says otherwise, and guests wait for nothing.
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    assert!(pair.facts(B).unwrap().eligible && pair.snapshot(B).invalidate_pending);
    pair.written(A, 9, 9);
    assert_eq!(pair.disk(B, 9), block(9));
    remove(&mut pair);
    assert_eq!(pair.snapshot(B).disk, DiskState::Inconsistent);
    assert_eq!(pair.snapshot(B).invalidations, 1);
    assert!(!pair.snapshot(B).invalidate_pending);
    pair.connect();
    for node in [A, B] {
        let progress = pair.snapshot(node).resync.unwrap();
        assert_eq!(progress.rule, Some(handshake::Rule::NoLineage));
        assert!(progress.full && progress.total_blocks == 4096);
        assert_eq!(progress.copied_blocks, 4096);
    }
    pair.add_peer(A);
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    pair.assert_replicas_equal();
}

#[test]
fn it_is_done_only_when_it_is_durable() {
    let mut pair = Pair::in_sync();
    invalidate(&mut pair);
    pair.run();
    pair.state(B).meta_held = true;
    remove(&mut pair);
    assert_eq!(pair.snapshot(B).invalidations, 0);
    // Whoever takes it back now must hear that it cannot be.
    pair.admin(B, AdminRequest::KeepData);
    assert!(pair.snapshot(B).invalidate_pending);
    pair.start_link();
    pair.run();
    assert_eq!(
        pair.snapshot(B).connection,
        crate::types::ConnectionState::Connecting
    );
    pair.state(B).meta_held = false;
    pair.run();
    assert_eq!(pair.snapshot(B).invalidations, 1);
    assert!(!pair.snapshot(B).invalidate_pending);
    pair.add_peer(A);
    assert_eq!(pair.snapshot(A).resync.unwrap().copied_blocks, 4096);
}

#[test]
fn a_crash_anywhere_leaves_the_old_replica_or_a_resync_target() {
    for victim in [A, B] {
        for steps in 0..40 {
            let mut pair = Pair::in_sync();
            pair.written(A, 3, 3);
            invalidate(&mut pair);
            for step in 0..steps {
                if step == 12 {
                    pair.remove_peer(A);
                }
                if step == 16 {
                    learn(&mut pair);
                }
                if step == 20 {
                    pair.start_link();
                }
                pair.step(1);
                let named = pair.view.unwrap().in_sync.contains(B);
                let whole = matches!(state(&pair), ReplicaState::InSync { .. });
                assert!(whole || !named, "not whole while a view names it");
            }
            pair.crash(victim);
            pair.assert_dirty_superset();
            pair.restart(victim);
            if victim == A {
                pair.recover(A);
            }
            if pair.view.unwrap().in_sync.contains(B) {
                assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
                pair.remove_peer(A);
            }
            learn(&mut pair);
            pair.connect();
            if !pair.saw(A, |event| *event == Event::ResyncDone) {
                // Given up in the first session, copied in the next.
                pair.connect();
            }
            pair.add_peer(A);
            pair.assert_replicas_equal();
            assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
        }
    }
}

#[test]
fn an_add_on_its_way_is_waited_for() {
    // B recorded "in sync from the next view": whether there is one it cannot know.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    learn(&mut pair);
    pair.written(A, 1, 1);
    pair.connect();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    assert!(pair.saw(A, |event| matches!(event, Event::AddPrepared { .. })));
    invalidate(&mut pair);
    pair.run();
    assert!(pair.snapshot(B).invalidate_pending, "nothing is given up");
    assert!(pair.facts(B).unwrap().eligible);
    let committed = pair.commit(A, |view| view.in_sync = crate::types::InSync::BOTH);
    pair.input(A, Input::Committed(committed));
    pair.run();
    assert!(!pair.saw(A, |event| *event == Event::PeerGivesUpData));
    learn(&mut pair);
    remove(&mut pair);
    assert_eq!(pair.snapshot(B).disk, DiskState::Inconsistent);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn one_that_is_left_out_already_gives_up_at_once() {
    for connected in [false, true] {
        let mut pair = Pair::in_sync();
        pair.disconnect();
        pair.remove_peer(A);
        learn(&mut pair);
        pair.written(A, 1, 1);
        if connected {
            pair.start_link();
            pair.step(9);
        }
        invalidate(&mut pair);
        pair.run();
        assert_eq!(pair.snapshot(B).invalidations, 1);
        pair.connect();
        pair.add_peer(A);
        assert_eq!(pair.snapshot(A).resync.unwrap().copied_blocks, 4096);
        pair.assert_replicas_equal();
    }
}

#[test]
fn the_greeting_of_the_primary_tells_what_gossip_did_not() {
    let mut pair = Pair::in_sync();
    invalidate(&mut pair);
    pair.run();
    pair.remove_peer(A);
    pair.run();
    assert_eq!(
        pair.snapshot(B).invalidations,
        0,
        "it knows of no such view"
    );
    pair.connect();
    assert_eq!(pair.snapshot(B).invalidations, 1);
    pair.connect();
    pair.add_peer(A);
    assert_eq!(pair.snapshot(A).resync.unwrap().copied_blocks, 4096);
}

#[test]
fn an_interrupted_copy_of_everything_goes_on_where_it_was() {
    let mut pair = Pair::in_sync();
    spoil(&mut pair, &[0, 4000]);
    invalidate(&mut pair);
    remove(&mut pair);
    pair.start_link();
    pair.step(60);
    pair.crash(B);
    pair.restart(B);
    assert_eq!(pair.snapshot(B).disk, DiskState::Inconsistent);
    learn(&mut pair);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn an_order_taken_back_or_overtaken_by_a_takeover_does_nothing() {
    let mut pair = Pair::in_sync();
    pair.hold_inbox(A, true);
    invalidate(&mut pair);
    pair.admin(B, AdminRequest::KeepData);
    pair.hold_inbox(A, false);
    // The Primary may still leave it out: then it gets what it missed, and that is little.
    remove(&mut pair);
    assert_eq!(pair.snapshot(B).disk, DiskState::Outdated);
    pair.connect();
    pair.add_peer(A);
    assert_eq!(pair.snapshot(B).invalidations, 0);

    pair.hold_inbox(A, true);
    invalidate(&mut pair);
    pair.crash(A);
    pair.take_over(B);
    pair.run();
    assert!(!pair.snapshot(B).invalidate_pending);
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
}

#[test]
fn a_primary_without_its_own_disk_lets_its_only_replica_go_for_nothing() {
    let mut pair = Pair::in_sync();
    pair.fail_disk(A);
    pair.write(A, 6, 6);
    pair.run();
    invalidate(&mut pair);
    pair.run();
    assert!(!pair.saw(A, |event| *event == Event::PeerGivesUpData));
    pair.leave(A);
    learn(&mut pair);
    pair.run();
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    assert_eq!(pair.snapshot(B).invalidations, 0);
}

#[test]
fn it_works_under_b_and_with_blocks_beyond_the_volume() {
    let shape = Shape {
        blocks: [4096, 5000],
        ..Shape::under(ReplicationProtocol::B)
    };
    let mut pair = Pair::in_sync_shaped(shape);
    pair.written(A, 3, 3);
    invalidate(&mut pair);
    remove(&mut pair);
    pair.connect();
    assert_eq!(pair.snapshot(B).resync.unwrap().total_blocks, 4096);
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn nothing_is_given_up_for_a_primary_whose_disk_failed() {
    // The view counts on A alone, B is nearly copied, and A's disk dies: B has all there is.
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 3);
    pair.disconnect();
    pair.remove_peer(A);
    learn(&mut pair);
    pair.fail_disk(A);
    pair.flush(A);
    pair.run();
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
    pair.connect();
    invalidate(&mut pair);
    pair.run();
    assert_eq!(pair.snapshot(B).invalidations, 0);
    assert_eq!(pair.snapshot(B).disk, DiskState::Outdated);
}

#[test]
fn a_primary_whose_disk_fails_after_it_agreed_finds_the_copy_there() {
    // A's Remove is on its way when its write fails; it asks B to serve, and is left alone.
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 3);
    invalidate(&mut pair);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::PeerGivesUpData));
    pair.fail_disk(A);
    pair.write(A, 6, 6);
    pair.run();
    assert!(pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.remove_peer(A);
    learn(&mut pair);
    pair.run();
    assert_eq!(pair.snapshot(B).invalidations, 0);
    assert!(!pair.snapshot(B).invalidate_pending);
    assert_eq!(pair.snapshot(B).disk, DiskState::Outdated);
}

#[test]
fn a_view_heard_of_without_a_session_gives_nothing_up() {
    // The link is cut before A can say that its disk failed; the view names A alone all the same.
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 3);
    invalidate(&mut pair);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::PeerGivesUpData));
    pair.disconnect();
    pair.remove_peer(A);
    pair.fail_disk(A);
    pair.flush(A);
    pair.run();
    assert_eq!(pair.snapshot(A).disk, DiskState::Failed);
    learn(&mut pair);
    pair.run();
    assert_eq!(pair.snapshot(B).invalidations, 0);
    assert_eq!(pair.snapshot(B).disk, DiskState::Outdated);
    pair.connect();
    assert_eq!(pair.snapshot(B).invalidations, 0, "A has no disk");
}
