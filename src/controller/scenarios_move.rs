//! Stories of a Primary that is moved by hand: at most one serves, and never nobody by order.

use replicator::types::InSync;

use super::world::{A, B, T, World, ms};
use super::*;

/// What a move was refused for; panics if it was not.
fn refused_for(world: &World, order: u64) -> Vec<Blocker> {
    match world.orders.get(&order) {
        Some(Err(OrderRefusal::Blocked { blockers, .. })) => blockers.clone(),
        other => panic!("not refused: {other:?}{}", world.story()),
    }
}

fn both_in_sync(world: &mut World, primary: usize) {
    world.run_until(ms(3_000), |world| {
        world.serves(primary) && world.view(primary).in_sync == InSync::BOTH
    });
}

#[test]
fn a_moved_primary_is_followed_at_once_and_stays_a_normal_node() {
    let mut world = World::pair(80);
    for (order, from, to) in [(8, A, B), (9, B, A), (10, A, B)] {
        let began = world.mark();
        world.order(order, from, Order::Move);
        world.run_until(ms(1_000), |world| world.serves(to));
        // The order itself may be answered a little later.
        world.run_until(ms(500), |world| world.orders.contains_key(&order));
        assert!(
            world.orders[&order]
                .as_ref()
                .is_ok_and(|done| !done.already)
        );
        world.run_until(ms(10), |world| world.first_ack_after_mark.is_some());
        let took = world.first_ack_after_mark.unwrap() - began;
        assert!(took < 200, "no wait for the grant: {took} ms");
        both_in_sync(&mut world, to);
        assert!(!world.view(to).held);
    }
    // Who was moved away takes over like any other when the new Primary dies.
    world.kill(B);
    let took = world.run_until(ms(2_000), |world| world.serves(A));
    assert!(took >= 590, "not before the grant is over: {took} ms");
}

#[test]
fn the_volume_is_down_for_less_than_any_lease() {
    for seed in 0..20 {
        let mut world = World::pair(8_000 + seed);
        world.order(8, A, Order::Move);
        world.run_until(ms(500), |world| !world.serves(A));
        let took = world.run_until(ms(500), |world| world.serves(B));
        assert!(took < 100, "seed {seed}: {took} ms");
    }
}

#[test]
fn a_move_needs_no_arbitrator() {
    let mut world = World::new(81, Timing::FAST, false);
    world.found(A);
    both_in_sync(&mut world, A);
    world.order(8, A, Order::Move);
    both_in_sync(&mut world, B);
}

#[test]
fn a_move_does_what_manual_failover_leaves_to_people() {
    let mut world = World::new(82, Timing::FAST, true);
    for node in [A, B] {
        world.kill(node);
    }
    world.configured.failover = Failover::Manual;
    for node in [A, B] {
        world.start(node);
    }
    world.found(A);
    world.order(8, A, Order::Move);
    both_in_sync(&mut world, B);
}

#[test]
fn a_peer_that_cannot_follow_refuses_the_move_at_once_and_guests_notice_nothing() {
    let mut world = World::pair(83);
    world.kill(B);
    world.run_until(ms(2_000), |world| {
        world.serves(A) && world.view(A).in_sync != InSync::BOTH
    });
    world.order(8, A, Order::Move);
    assert!(matches!(
        refused_for(&world, 8)[0],
        Blocker::PeerNotInSync { .. }
    ));
    assert!(world.serves(A));
    world.restart(B);
    both_in_sync(&mut world, A);
    world.order(9, B, Order::Down);
    world.run(ms(20));
    world.order(10, A, Order::Move);
    // What was said before the order may be out of date: the next beacon decides.
    world.run_until(ms(100), |world| world.orders.contains_key(&10));
    assert!(world.serves(A));
    let blockers = refused_for(&world, 10);
    let known =
        |blocker: &Blocker| matches!(blocker, Blocker::PeerNotUp | Blocker::PeerNotInSync { .. });
    assert!(blockers.iter().any(known), "{blockers:?}");
}

#[test]
fn a_move_of_what_the_peer_serves_is_done_already_and_of_what_nobody_serves_refused() {
    let mut world = World::pair(84);
    world.order(8, B, Order::Move);
    assert!(world.orders[&8].as_ref().is_ok_and(|done| done.already));
    world.order(9, A, Order::Secondary);
    world.run(ms(200));
    for (order, node) in [(10, A), (11, B)] {
        world.order(order, node, Order::Move);
        assert_eq!(refused_for(&world, order), [Blocker::NobodyServes]);
    }
}

#[test]
fn guests_are_not_held_for_long_by_a_peer_that_cannot_make_things_durable() {
    let mut world = World::pair(85);
    world.quiesce_takes = ms(60_000);
    world.order(8, A, Order::Move);
    world.run(ms(4_900));
    assert!(!world.serves(A), "held");
    world.run(ms(200));
    assert_eq!(refused_for(&world, 8), [Blocker::NotQuiet]);
    assert!(world.serves(A));
}

/// Story: the Primary's own disk failed, and its guests are served from the peer's. They move there.
#[test]
fn a_primary_without_a_disk_moves_to_the_only_replica() {
    let mut world = World::pair(88);
    world.idle = true;
    world.report(A, EngineReport::LocalDiskFailed);
    let view = world.view(A).number.next();
    world.report(A, EngineReport::LeavePrepared { view });
    world.run(ms(500));
    world.order(8, A, Order::Move);
    world.run_until(ms(500), |world| world.serves(B));
    world.run(ms(200));
    assert!(world.orders[&8].is_ok(), "{}", world.story());
}

/// Story: the peer dies while guests are held for the move. It is not waited for.
#[test]
fn a_successor_that_dies_before_the_primary_left_ends_the_move() {
    let mut world = World::pair(86);
    world.quiesce_takes = ms(2_000);
    world.order(8, A, Order::Move);
    world.run(ms(50));
    world.kill(B);
    world.run_until(ms(1_500), |world| world.orders.contains_key(&8));
    assert!(!refused_for(&world, 8).is_empty());
    world.run_until(ms(1_000), |world| world.serves(A));
}

/// Story: the peer dies, stands still or is cut off at any moment of the move. Unless it had been
/// decided that it serves, the old Primary serves again, no later than an unplanned failover would
/// take; and whatever happened, nothing is held and somebody serves once the peer is back.
#[test]
fn a_successor_that_fails_in_the_middle_leaves_nobody_without_a_primary() {
    let (mut returned, mut followed) = (0, 0);
    for seed in 0..120 {
        let mut world = World::pair(8_100 + seed);
        world.order_within(8, A, Order::Move, ms(2_000));
        world.run_until(ms(500), |world| !world.active(A));
        let moment = world.mark();
        world.run(ms(seed / 3));
        match seed % 3 {
            0 => world.kill(B),
            1 => world.pause(B, true),
            _ => {
                world.cut(A, B);
                world.cut(B, T);
            }
        }
        world.run(ms(3_500));
        let story = world.story();
        let ended = world.orders.get(&8).expect("the order ended");
        if world.serves(A) {
            returned += 1;
            assert_eq!(refused_for(&world, 8), [Blocker::NotTaken], "{story}");
            let took = world.first_ack_after_mark.unwrap() - moment;
            assert!(took < 2_000, "seed {seed}: {took} ms {story}");
        } else {
            followed += 1;
            assert!(ended.is_ok(), "seed {seed}: {ended:?}{story}");
        }
        match seed % 3 {
            0 => world.restart(B),
            1 => world.pause(B, false),
            _ => world.heal(),
        }
        world.run_until(ms(5_000), |world| {
            world.who_serves().is_some_and(|node| {
                let view = world.view(node);
                view.in_sync == InSync::BOTH && !view.held
            })
        });
    }
    assert!(returned > 10 && followed > 10, "{returned} {followed}");
}

/// Story: the arbitrator's and the peer's stores are slow, so that the old Primary goes back to
/// serving while the peer takes over. One of them does.
#[test]
fn a_late_successor_and_a_returning_primary_do_not_both_serve() {
    for seed in 0..30 {
        let mut world = World::pair(8_400 + seed);
        world.weather.store = ms(100 + 30 * seed);
        world.order(8, A, Order::Move);
        world.run(ms(6_000));
        assert!(world.orders.contains_key(&8), "{}", world.story());
        world.weather.store = ms(5);
        world.run_until(ms(5_000), |world| {
            world
                .who_serves()
                .is_some_and(|node| world.view(node).in_sync == InSync::BOTH)
        });
    }
}

#[test]
fn a_move_that_is_under_way_is_not_given_up_for_an_impatient_client() {
    let mut world = World::pair(87);
    world.order_within(8, A, Order::Move, ms(1));
    world.run(ms(3_000));
    // Refused before it began, or carried out to the end.
    match &world.orders[&8] {
        Ok(_) => assert!(world.serves(B)),
        Err(_) => assert!(world.serves(A), "{}", world.story()),
    }
    let again = world.who_serves().unwrap();
    world.order(9, again, Order::Move);
    both_in_sync(&mut world, 1 - again);
}
