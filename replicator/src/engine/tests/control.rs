//! Operators hold a resync, let it go on, or set its speed.

use core::num::NonZeroU64;

use super::pair::Shape;
use super::*;

const MIB: u64 = 1 << 20;

fn order(pair: &mut Pair, node: NodeId, order: ResyncOrder) {
    pair.admin(node, AdminRequest::Resync(order));
    pair.run();
}

fn at_most(rate: u64) -> ResyncOrder {
    ResyncOrder::Rate(ResyncRate::BytesPerSecond(NonZeroU64::new(rate).unwrap()))
}

/// B misses so many blocks and is not connected.
fn behind_by(shape: Shape, blocks: u64) -> Pair {
    let mut pair = Pair::in_sync_shaped(shape);
    pair.disconnect();
    pair.remove_peer(A);
    for nr in 0..blocks {
        pair.write(A, nr, 1);
    }
    pair.run();
    pair
}

/// Time passes as far as the engines ask for it, each time they do.
fn run_until_equal(pair: &mut Pair) {
    for _ in 0..20_000 {
        pair.run();
        if pair.snapshot(A).replication == ReplicationState::Established {
            return;
        }
        let deadline = |node: NodeId| pair.nodes[node.index()].engine.next_deadline();
        let next = earliest(deadline(A), deadline(B)).expect("something is waited for");
        pair.pass(next.since(pair.now));
    }
    panic!("the engines ask to be woken too often, or the resync never ends");
}

fn copied(pair: &Pair) -> u64 {
    pair.snapshot(B).resync.unwrap().copied_blocks
}

/// Both sides say that it is held, and nobody takes B for a good copy.
fn assert_paused(pair: &Pair) {
    let (a, b) = (pair.snapshot(A), pair.snapshot(B));
    assert_eq!(a.replication, ReplicationState::PausedSyncS);
    assert_eq!(b.replication, ReplicationState::PausedSyncT);
    assert_eq!(a.peer_disk, DiskState::Inconsistent);
    assert_eq!(b.disk, DiskState::Inconsistent);
    assert!(a.resync.unwrap().ended.is_none());
    assert!(!pair.facts(B).unwrap().eligible, "promise 8");
}

#[test]
fn a_resync_held_on_either_side_waits_and_goes_on() {
    for node in [A, B] {
        let mut pair = behind_by(Shape::SMALL, 300);
        order(&mut pair, node, ResyncOrder::Pause);
        pair.connect();
        pair.live(Duration::from_secs(10));
        assert_paused(&pair);
        assert_eq!(copied(&pair), 0);
        pair.assert_dirty_superset();
        let added = pair.count(A, |event| *event == Event::ResyncDone);
        order(&mut pair, node, ResyncOrder::Resume);
        assert_eq!(
            pair.count(A, |event| *event == Event::ResyncDone),
            added + 1
        );
        pair.add_peer(A);
        assert_eq!(copied(&pair), 300);
        pair.assert_replicas_equal();
    }
}

#[test]
fn a_resync_held_in_the_middle_answers_what_was_asked_for_and_stops() {
    for (node, steps) in [(A, 5), (B, 5), (A, 30), (B, 30)] {
        let mut pair = behind_by(Shape::SMALL, 4096);
        pair.start_link();
        while pair.snapshot(B).replication != ReplicationState::SyncTarget {
            pair.step(1);
        }
        pair.step(steps);
        order(&mut pair, node, ResyncOrder::Pause);
        let before = copied(&pair);
        assert!(before > 0 && before < 4096, "{before}");
        pair.live(Duration::from_secs(10));
        assert_paused(&pair);
        assert_eq!(copied(&pair), before);
        pair.assert_dirty_superset();
        order(&mut pair, node, ResyncOrder::Resume);
        pair.add_peer(A);
        pair.assert_replicas_equal();
    }
}

#[test]
fn writes_go_on_and_are_replicated_while_a_resync_is_held() {
    let mut pair = behind_by(Shape::SMALL, 100);
    order(&mut pair, A, ResyncOrder::Pause);
    pair.connect();
    pair.written(A, 7, 2);
    pair.written(A, 500, 3);
    pair.flushed(A);
    assert_eq!((pair.disk(B, 7), pair.disk(B, 500)), (block(2), block(3)));
    assert_paused(&pair);
    pair.assert_dirty_superset();
    order(&mut pair, A, ResyncOrder::Resume);
    pair.add_peer(A);
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(B, 7), block(2));
}

#[test]
fn both_sides_must_let_it_go_on() {
    let mut pair = behind_by(Shape::SMALL, 10);
    order(&mut pair, A, ResyncOrder::Pause);
    order(&mut pair, B, ResyncOrder::Pause);
    pair.connect();
    order(&mut pair, A, ResyncOrder::Resume);
    assert_paused(&pair);
    assert!(pair.snapshot(A).peer_sync_paused && !pair.snapshot(A).sync_paused);
    order(&mut pair, B, ResyncOrder::Resume);
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn repeated_orders_change_nothing() {
    let mut pair = behind_by(Shape::SMALL, 10);
    for _ in 0..3 {
        order(&mut pair, A, ResyncOrder::Pause);
    }
    pair.connect();
    order(&mut pair, A, ResyncOrder::Pause);
    assert_paused(&pair);
    order(&mut pair, A, ResyncOrder::Resume);
    order(&mut pair, A, ResyncOrder::Resume);
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn a_pause_outlives_sessions_and_not_the_process() {
    let mut pair = behind_by(Shape::SMALL, 100);
    order(&mut pair, B, ResyncOrder::Pause);
    for _ in 0..3 {
        pair.connect();
        assert_paused(&pair);
        pair.disconnect();
        assert!(!pair.snapshot(A).peer_sync_paused, "nobody says so now");
    }
    pair.connect();
    pair.crash(A);
    pair.restart(A);
    pair.recover(A);
    pair.connect();
    assert_paused(&pair);
    pair.crash(B);
    pair.restart(B);
    assert!(!pair.snapshot(B).sync_paused);
    pair.connect();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn a_resync_with_nothing_to_copy_ends_although_it_is_held() {
    let mut pair = Pair::new();
    pair.found(A);
    order(&mut pair, A, ResyncOrder::Pause);
    pair.connect();
    pair.add_peer(A);
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
}

#[test]
fn a_resync_that_guests_wait_for_runs_on() {
    // R15: nothing is answered before both are equal, so a pause would hold guests for ever.
    for node in [A, B] {
        let mut shape = Shape::SMALL;
        shape.resync_rate = ResyncRate::BytesPerSecond(NonZeroU64::MIN);
        let mut pair = Pair::in_sync_shaped(shape);
        order(&mut pair, node, ResyncOrder::Pause);
        // In two requests, so that a pace would show.
        pair.hold_inbox(B, true);
        let other = pair.write(A, 900, 0x44);
        pair.run();
        let write = pair.write_here_only(A, 3, 0x33);
        let read = pair.read(A, 3);
        pair.connect();
        assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
        assert_eq!(pair.answer(other), Some(Ok(GuestReply::Done)));
        assert!(pair.answer(read).is_some());
        assert_eq!(pair.disk(B, 3), block(0x33));
        assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
        assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    }
}

#[test]
fn a_peer_whose_resync_is_held_never_takes_over_for_a_lost_primary() {
    let mut pair = behind_by(Shape::SMALL, 50);
    pair.start_link();
    while pair.snapshot(B).replication != ReplicationState::SyncTarget {
        pair.step(1);
    }
    order(&mut pair, B, ResyncOrder::Pause);
    pair.crash(A);
    let seal = pair.view.unwrap().number;
    pair.input(B, Input::Drain { seal });
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Drained { seal, ok: false }));
}

#[test]
fn a_held_resync_does_not_hold_a_leave_or_an_orderly_demotion() {
    let mut pair = behind_by(Shape::SMALL, 50);
    order(&mut pair, A, ResyncOrder::Pause);
    pair.connect();
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
}

#[test]
fn a_limited_resync_takes_the_time_it_must() {
    for limit in [4096, 64 << 10, MIB, 8 * MIB] {
        let mut shape = Shape::SMALL;
        shape.resync_rate = ResyncRate::BytesPerSecond(NonZeroU64::new(limit).unwrap());
        let blocks = (limit * 4 / BLOCK).min(2000);
        let mut pair = behind_by(shape, blocks);
        let began = pair.now;
        pair.start_link();
        run_until_equal(&mut pair);
        let (took, wanted) = (
            pair.now.since(began),
            Duration::from_nanos(blocks * BLOCK * 1_000_000_000 / limit),
        );
        // The last request may go out early by its own length, and one burst is free.
        assert!(
            took + Duration::from_millis(300) + wanted / 4 >= wanted,
            "{limit}: {took:?}"
        );
        assert!(took <= wanted + Duration::from_secs(2), "{limit}: {took:?}");
        pair.add_peer(A);
        pair.assert_replicas_equal();
    }
}

#[test]
fn an_order_about_speed_counts_on_both_and_is_shown_by_both() {
    let mut pair = behind_by(Shape::SMALL, 4000);
    order(&mut pair, A, at_most(MIB));
    pair.start_link();
    pair.run();
    for node in [A, B] {
        assert_eq!(pair.snapshot(node).resync_pace, Some(MIB));
    }
    order(&mut pair, B, at_most(2 * MIB));
    for node in [A, B] {
        assert_eq!(pair.snapshot(node).resync_pace, Some(2 * MIB));
    }
    assert!(copied(&pair) < 4000);
    order(&mut pair, A, ResyncOrder::Rate(ResyncRate::Unlimited));
    pair.add_peer(A);
    assert_eq!(pair.snapshot(B).resync_rate, ResyncRate::Unlimited);
    pair.assert_replicas_equal();
}

#[test]
fn the_newer_order_about_speed_counts_when_they_meet() {
    let mut pair = behind_by(Shape::SMALL, 10);
    order(&mut pair, A, at_most(MIB));
    order(&mut pair, B, at_most(5 * MIB));
    order(&mut pair, B, at_most(7 * MIB));
    pair.connect();
    for node in [A, B] {
        let rate = pair.snapshot(node).resync_rate;
        assert_eq!(rate.limit().map(NonZeroU64::get), Some(7 * MIB));
    }
    // Of two that are equal in age both take the slower.
    pair.disconnect();
    order(&mut pair, A, ResyncOrder::Rate(ResyncRate::Unlimited));
    order(&mut pair, B, at_most(9 * MIB));
    pair.connect();
    for node in [A, B] {
        let rate = pair.snapshot(node).resync_rate;
        assert_eq!(rate.limit().map(NonZeroU64::get), Some(9 * MIB));
    }
}

/// Guests of the Primary wait while B catches up: B is told to go slower, says so, and goes on.
#[test]
fn a_resync_makes_room_for_guests_on_both_sides() {
    for (rate, makes_room) in [
        (ResyncRate::Auto, true),
        (ResyncRate::BytesPerSecond(NonZeroU64::MAX), true),
        (ResyncRate::Unlimited, false),
    ] {
        let mut shape = Shape::SMALL;
        shape.resync_rate = rate;
        let mut pair = behind_by(shape, 4000);
        pair.start_link();
        while pair.snapshot(A).replication != ReplicationState::SyncSource || copied(&pair) == 0 {
            pair.step(1);
        }
        pair.hold_disk(A, true);
        let write = pair.write(A, 4090, 7);
        pair.pass(Engine::THROTTLE_WINDOW * 2);
        pair.run();
        assert!(copied(&pair) < 4000);
        let (a, b) = (pair.snapshot(A), pair.snapshot(B));
        assert_eq!(a.throttled.is_some(), makes_room, "{rate:?}");
        assert_eq!(a.throttled.map(as_sent), b.throttled, "{rate:?}");
        assert_eq!(a.resync_pace, b.resync_pace);
        assert!(!makes_room || a.resync_pace.is_some_and(|pace| pace < 1 << 40));
        pair.hold_disk(A, false);
        run_until_equal(&mut pair);
        pair.add_peer(A);
        assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
        assert_eq!(pair.snapshot(A).throttled, None);
        assert_eq!(pair.snapshot(B).throttled, None, "of that session only");
        pair.assert_replicas_equal();
    }
}

/// Whatever a peer advises, the next advice counts.
#[test]
fn an_absurd_pace_is_forgotten_with_the_next_one() {
    let mut shape = Shape::SMALL;
    shape.resync_rate = ResyncRate::Auto;
    let mut pair = behind_by(shape, 4000);
    pair.start_link();
    while pair.snapshot(B).replication != ReplicationState::SyncTarget || copied(&pair) == 0 {
        pair.step(1);
    }
    let session = pair.link.unwrap().session;
    for pace in [1, 8 * MIB].map(NonZeroU64::new) {
        let message = crate::protocol::Message::ResyncAdvice {
            pace,
            latency: Duration::MAX,
        };
        pair.input(B, Input::Received { session, message });
        pair.run();
        pair.pass(Duration::from_millis(200));
    }
    let began = pair.now;
    run_until_equal(&mut pair);
    let took = pair.now.since(began);
    assert!(took < Duration::from_secs(5), "{took:?}");
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

/// The Primary begins anew after a pause, and so does the target: what guests left before does not count.
#[test]
fn after_a_pause_the_old_pace_is_forgotten_on_both_sides() {
    let mut shape = Shape::SMALL;
    shape.resync_rate = ResyncRate::Auto;
    let mut pair = behind_by(shape, 4000);
    pair.start_link();
    while pair.snapshot(A).replication != ReplicationState::SyncSource || copied(&pair) == 0 {
        pair.step(1);
    }
    pair.hold_disk(A, true);
    pair.write(A, 4090, 7);
    pair.pass(Engine::THROTTLE_WINDOW * 2);
    pair.run();
    assert!(pair.snapshot(B).resync_pace.is_some());
    pair.hold_disk(A, false);
    order(&mut pair, A, ResyncOrder::Pause);
    order(&mut pair, A, ResyncOrder::Resume);
    for node in [A, B] {
        assert_eq!(pair.snapshot(node).resync_pace, None, "{node:?}");
    }
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

fn as_sent(latency: Duration) -> Duration {
    Duration::from_micros(u64::try_from(latency.as_micros()).unwrap())
}

#[test]
fn a_paced_target_wants_to_be_woken_once_and_not_at_once() {
    let mut pair = behind_by(Shape::SMALL, 4000);
    order(&mut pair, B, at_most(MIB));
    pair.start_link();
    pair.run();
    let engine = &pair.nodes[B.index()].engine;
    let due = engine.next_deadline().unwrap();
    assert!(due > pair.now && due.since(pair.now) <= Duration::from_millis(200));
    order(&mut pair, B, ResyncOrder::Pause);
    let engine = &pair.nodes[B.index()].engine;
    let silence = engine.next_deadline().unwrap();
    assert!(silence.since(pair.now) > Duration::from_millis(500), "held");
}

#[test]
fn orders_before_the_greeting_break_the_session_and_nothing_else() {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    let session = SessionId(99);
    pair.hold_disk(A, true);
    pair.input(A, Input::LinkUp { session });
    let message = crate::protocol::Message::ResyncControl {
        paused: true,
        rate: None,
    };
    pair.input(A, Input::Received { session, message });
    assert!(!pair.snapshot(A).peer_sync_paused);
    assert_eq!(
        pair.snapshot(A).connection,
        crate::types::ConnectionState::Connecting
    );
}
