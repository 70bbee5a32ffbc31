//! Stories of what a node does not do by itself: standby, maintenance, and the word that its peer is
//! dead.

use replicator::types::InSync;

use super::world::{A, B, T, World, ms};
use super::*;

const STANDBY: Automation = Automation {
    standby: true,
    maintenance: false,
};
const MAINTENANCE: Automation = Automation {
    standby: false,
    maintenance: true,
};

#[test]
fn a_node_in_standby_or_maintenance_takes_nothing_over_until_it_may_again() {
    for automation in [STANDBY, MAINTENANCE] {
        let mut world = World::pair(130);
        world.automate(B, automation);
        world.kill(A);
        world.run(ms(3_000));
        assert!(!world.active(B));
        let blocker = if automation.standby {
            Blocker::Standby
        } else {
            Blocker::Maintenance
        };
        assert_eq!(world.why(B).first_blocker(), Some(blocker));
        assert!(world.why(B).awaits_order());
        world.automate(B, Automation::default());
        world.run_until(ms(200), |world| world.serves(B));
    }
}

#[test]
fn an_order_by_hand_and_a_move_are_followed_all_the_same() {
    for automation in [STANDBY, MAINTENANCE] {
        let mut world = World::pair(131);
        world.automate(B, automation);
        world.order(8, A, Order::Move);
        world.run_until(ms(1_000), |world| world.serves(B));
        world.run_until(ms(3_000), |world| world.view(B).in_sync == InSync::BOTH);
        world.order(9, B, Order::Move);
        world.run_until(ms(1_000), |world| world.serves(A));
        world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
        world.kill(A);
        world.run(ms(250));
        world.order(10, B, Order::Primary);
        world.run_until(ms(2_000), |world| world.serves(B));
    }
}

#[test]
fn what_a_node_served_it_serves_again_and_goes_on_serving() {
    let mut world = World::pair(132);
    for node in [A, B] {
        world.automate(node, MAINTENANCE);
    }
    // The loss of the peer is no change of place.
    world.kill(B);
    world.run_until(ms(1_000), |world| {
        world.serves(A) && world.view(A).in_sync == InSync::only(NodeId::A)
    });
    world.kill(A);
    world.restart(A);
    world.automate(A, MAINTENANCE);
    world.run_until(ms(2_000), |world| world.serves(A));
}

#[test]
fn in_maintenance_a_stop_hands_nothing_over() {
    let mut world = World::pair(133);
    world.automate(A, MAINTENANCE);
    world.order(8, A, Order::HandOver);
    world.run(ms(500));
    assert!(matches!(world.orders[&8], Ok(Done { already: true, .. })));
    assert!(world.serves(A) && !world.active(B));
    world.automate(A, Automation::default());
    world.order(9, A, Order::HandOver);
    world.run_until(ms(1_000), |world| world.serves(B));
}

/// Story: A is not answered, since nothing of B arrives there; but B hears it.
#[test]
fn a_peer_that_is_heard_one_way_is_not_dead() {
    let mut world = World::pair(135);
    world.cut_one_way(B, A);
    world.run(ms(400));
    world.order(8, B, Order::Fenced);
    world.run(ms(10));
    assert!(
        matches!(
            &world.orders[&8],
            Err(OrderRefusal::Blocked { blockers, .. })
                if matches!(blockers[..], [Blocker::PeerHeard { .. }])
        ),
        "{:?}",
        world.orders[&8]
    );
}

#[test]
fn a_peer_said_to_be_dead_is_waited_for_no_more_unless_it_is_heard() {
    let mut world = World::pair(134);
    world.order(8, B, Order::Fenced);
    world.run(ms(10));
    let Err(OrderRefusal::Blocked { blockers, .. }) = &world.orders[&8] else {
        panic!("it is alive");
    };
    assert!(matches!(blockers[..], [Blocker::PeerHeard { .. }]));
    world.kill(A);
    world.run(ms(250));
    assert!(!world.active(B));
    world.order(9, B, Order::Fenced);
    let took = world.run_until(ms(500), |world| world.serves(B));
    assert!(took < 100, "no wait for what A was promised: {took} ms");
    assert!(matches!(world.orders[&9], Ok(Done { already: false, .. })));
    // A returns to what became of it.
    world.restart(A);
    world.run_until(ms(3_000), |world| world.view(B).in_sync == InSync::BOTH);
    world.order(10, B, Order::Fenced);
    world.run(ms(10));
    assert!(world.orders[&10].is_err(), "it is heard again");
}

#[test]
fn a_word_about_one_life_says_nothing_of_the_next() {
    let mut world = World::pair(135);
    world.kill(T);
    world.kill(A);
    world.run(ms(250));
    // No majority: the word alone decides nothing.
    world.order(8, B, Order::Fenced);
    world.run(ms(200));
    assert!(!world.active(B));
    world.restart(A);
    world.run_until(ms(3_000), |world| world.serves(A));
    assert!(!world.active(B));
}

#[test]
fn manual_failover_stays_manual_after_the_word() {
    let mut world = World::of(136, Timing::FAST, true, &[]);
    world.configured.failover = Failover::Manual;
    for node in [A, B, T] {
        world.start(node);
    }
    world.found(A);
    world.kill(A);
    world.run(ms(250));
    world.order(8, B, Order::Fenced);
    world.run(ms(2_000));
    assert!(!world.active(B));
    world.order(9, B, Order::Primary);
    world.run_until(ms(500), |world| world.serves(B));
}
