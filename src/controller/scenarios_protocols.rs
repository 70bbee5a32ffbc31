//! Below protocol C: who may take over, and what a view says about it.

use replicator::types::{Failover, ReplicationProtocol};

use super::world::{A, B, T, World, lost_its_cache, ms, used_replica};
use super::*;

fn configured(protocol: ReplicationProtocol, failover: Failover) -> World {
    let mut world = World::of(90, Timing::FAST, true, &[]);
    world.configured = Configured {
        protocol,
        failover,
        ..world.configured
    };
    for node in [A, B, T] {
        world.start(node);
    }
    world.found(A);
    world
}

#[test]
fn under_manual_failover_the_survivor_waits_for_an_order() {
    for (protocol, lossy) in [
        (ReplicationProtocol::C, false),
        (ReplicationProtocol::B, false),
        (ReplicationProtocol::A, true),
    ] {
        let mut world = configured(protocol, Failover::Manual);
        world.kill(A);
        world.run(ms(20_000));
        assert!(!world.active(B), "{protocol:?}");
        world.order(2, B, Order::Primary);
        world.run_until(ms(3_000), |world| world.serves(B));
        assert_eq!(world.view(B).lossy, lossy, "{protocol:?}");
    }
}

#[test]
fn under_manual_failover_the_primary_of_record_still_serves_again_by_itself() {
    let mut world = configured(ReplicationProtocol::A, Failover::Manual);
    world.kill(A);
    world.run(ms(2_000));
    world.restart(A);
    world.run_until(ms(3_000), |world| world.serves(A));
    assert!(!world.view(A).lossy, "its disk has all that was answered");
}

#[test]
fn a_primary_of_record_without_its_cache_leaves_the_choice_to_a_person() {
    // The peer has what was acknowledged; serving from here would overwrite it.
    let mut world = configured(ReplicationProtocol::C, Failover::Manual);
    world.kill(A);
    world.run(ms(50));
    world.start(A);
    let lost = lost_its_cache(A);
    world.report_facts(A, lost);
    world.run(ms(20_000));
    assert!(!world.active(A) && !world.active(B));
    world.order(2, B, Order::Primary);
    world.run_until(ms(3_000), |world| world.serves(B));
    assert!(!world.view(B).lossy);
}

#[test]
fn a_demotion_in_order_under_a_loses_nothing() {
    let mut world = configured(ReplicationProtocol::A, Failover::Manual);
    world.order(2, A, Order::Secondary);
    world.run(ms(2_000));
    assert!(!world.active(A));
    world.order(3, B, Order::Primary);
    world.run_until(ms(3_000), |world| world.serves(B));
    assert!(!world.view(B).lossy);
}

#[test]
fn a_peer_that_took_writes_under_a_waits_for_a_person_whatever_is_configured_now() {
    let mut world = configured(ReplicationProtocol::C, Failover::Auto);
    let behind = ReplicaFacts {
        behind: true,
        ..used_replica(1)
    };
    world.report_facts(B, behind);
    world.kill(A);
    world.run(ms(20_000));
    assert!(!world.active(B), "nobody said so");
    world.order(2, B, Order::Primary);
    world.run_until(ms(3_000), |world| world.serves(B));
    assert!(world.view(B).lossy);
}

#[test]
fn a_hold_of_a_primary_that_did_not_end_in_order_is_claimed_as_a_loss() {
    for (protocol, lossy) in [
        (ReplicationProtocol::C, false),
        (ReplicationProtocol::B, false),
        (ReplicationProtocol::A, true),
    ] {
        let mut world = configured(protocol, Failover::Manual);
        world.kill(A);
        world.run(ms(50));
        world.start(A);
        world.report(A, EngineReport::ReplicaGone);
        world.order(2, A, Order::Secondary);
        world.run(ms(3_000));
        assert!(world.view(A).held, "{protocol:?}");
        world.order(3, B, Order::Primary);
        world.run_until(ms(3_000), |world| world.serves(B));
        assert_eq!(world.view(B).lossy, lossy, "{protocol:?}");
    }
}
