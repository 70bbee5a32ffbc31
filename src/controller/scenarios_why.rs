//! Stories told by `why`: what it says is in the way is in the way, and nothing else.

use replicator::types::InSync;

use super::world::{A, B, T, World, ms};
use super::*;

/// The unmet preconditions of a node, as things are.
fn in_the_way(world: &World, node: usize) -> Vec<Precondition> {
    let checks = world.why(node).checks.into_iter();
    checks
        .filter(|(_, check)| check.blocker().is_some())
        .map(|(precondition, _)| precondition)
        .collect()
}

#[test]
fn a_new_resource_waits_for_an_operator_and_for_nothing_else() {
    let mut world = World::new(90, Timing::FAST, true);
    world.up(A);
    world.up(B);
    world.run(ms(500));
    for node in [A, B] {
        assert_eq!(in_the_way(&world, node), [Precondition::Founded]);
        assert!(world.why(node).awaits_order());
    }
}

#[test]
fn a_secondary_has_its_peer_in_the_way_until_the_grant_is_over() {
    let mut world = World::pair(91);
    let why = world.why(B);
    assert_eq!(in_the_way(&world, B), [Precondition::PeerGone]);
    assert!(matches!(
        why.first_blocker(),
        Some(Blocker::PeerActive { .. })
    ));
    assert!(why.grant.remaining.is_some() && !why.awaits_order());
    let primary = world.why(A);
    assert!(primary.active.is_some() && primary.lease.needed && !primary.lease.lapsed);
    world.kill(A);
    world.run(ms(300));
    assert!(matches!(
        world.why(B).first_blocker(),
        Some(Blocker::LeaseWait { .. })
    ));
    // As soon as nothing is in the way it takes over, and not before.
    while !in_the_way(&world, B).is_empty() {
        assert!(!world.active(B));
        world.run(ms(1));
    }
    world.run_until(ms(100), |world| world.serves(B));
}

#[test]
fn what_an_order_would_mend_is_told_from_what_it_would_not() {
    let mut world = World::pair(92);
    world.order(8, A, Order::Secondary);
    world.run(ms(300));
    for node in [A, B] {
        assert_eq!(in_the_way(&world, node), [Precondition::NotHeld]);
        assert!(world.why(node).awaits_order());
    }
    world.order(9, A, Order::Primary);
    world.run_until(ms(1_000), |world| world.serves(A));
    world.kill(B);
    world.run_until(ms(2_000), |world| world.view(A).in_sync != InSync::BOTH);
    world.cut(A, B);
    world.restart(B);
    world.run(ms(1_000));
    // It misses writes: no order helps, though the peer is silent.
    let why = world.why(B);
    assert!(matches!(
        why.first_blocker(),
        Some(Blocker::NotInSync { .. })
    ));
    assert!(!why.awaits_order());
}

#[test]
fn manual_failover_and_a_missing_arbitrator_are_named() {
    for (has_arbitrator, failover) in [(true, Failover::Manual), (false, Failover::Auto)] {
        let mut world = World::of(93, Timing::FAST, has_arbitrator, &[]);
        world.configured.failover = failover;
        for node in [A, B, T] {
            if node != T || has_arbitrator {
                world.start(node);
            }
        }
        world.found(A);
        world.kill(A);
        world.run(ms(2_000));
        let unmet = in_the_way(&world, B);
        assert!(unmet.contains(&Precondition::Allowed), "{unmet:?}");
        assert_eq!(unmet.contains(&Precondition::Majority), !has_arbitrator);
        let blocker = Blocker::ByHandOnly { has_arbitrator };
        assert_eq!(world.why(B).first_blocker(), Some(blocker));
        assert_eq!(world.why(B).awaits_order(), has_arbitrator);
    }
}

#[test]
fn a_start_is_told_from_a_promise() {
    let mut world = World::pair(94);
    world.kill(A);
    world.kill(B);
    world.restart(B);
    world.run(ms(100));
    let why = world.why(B);
    assert!(
        why.grant.boot_wait && why.grant.remaining.is_some(),
        "{why:?}"
    );
    assert_eq!(in_the_way(&world, B), [Precondition::PeerGone]);
}
