//! Stories of things half done: somebody died before telling, an engine changed its mind. Each must
//! end by itself.

use replicator::types::{Failover, InSync, NodeId};

use super::view::ProposalKind;
use super::world::{A, B, T, World, lost_its_cache, ms, used_replica};
use super::*;

/// A serves alone; B just came back and is being added: the engines prepare it.
fn being_added(seed: u64) -> World {
    let mut world = World::pair(seed);
    world.kill(B);
    world.run_until(ms(1_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
    world.restart(B);
    world.run_until(ms(3_000), World::add_is_begun);
    world
}

#[test]
fn a_view_decided_for_a_node_that_nobody_told_is_found_by_it() {
    let mut world = being_added(70);
    // The accept of the Add reaches the arbitrator alone; then A dies for good.
    world.run_until(ms(2_000), |world| {
        world.snapshot(A).proposal == Some(ProposalKind::Add)
    });
    world.cut(A, B);
    world.run_until(ms(1_000), |world| world.view(A).in_sync == InSync::BOTH);
    assert_eq!(world.view(B).in_sync, InSync::only(NodeId::A));
    world.kill(A);
    world.heal();
    world.run_until(ms(4_000), |world| world.serves(B));
}

#[test]
fn a_view_that_only_the_arbitrator_can_prove_is_found_after_a_restart() {
    let mut world = being_added(71);
    world.run_until(ms(2_000), |world| {
        world.snapshot(A).proposal == Some(ProposalKind::Add)
    });
    world.cut(A, B);
    world.run_until(ms(1_000), |world| world.view(A).in_sync == InSync::BOTH);
    world.kill(A);
    world.kill(B);
    world.heal();
    world.restart(B);
    world.run_until(ms(4_000), |world| world.serves(B));
}

#[test]
fn a_node_at_rest_asks_the_voters_once() {
    let mut world = World::pair(72);
    world.order(5, A, Order::Secondary);
    world.run(ms(5_000));
    let promised = world.record(T).acceptor.promised;
    world.run(ms(20_000));
    assert_eq!(world.record(T).acceptor.promised, promised);
}

#[test]
fn an_add_that_the_engines_gave_up_is_tried_again() {
    let mut world = being_added(73);
    let view = world.view(A).number.next();
    world.report(A, EngineReport::AddAborted { view });
    world.run_until(ms(2_000), |world| world.view(A).in_sync == InSync::BOTH);
}

#[test]
fn a_prepared_add_whose_session_ends_before_its_accept_does_not_bind_the_primary() {
    let mut world = being_added(74);
    // Nobody promises in time, so no accept leaves.
    world.weather.store = ms(2_000);
    world.run(ms(20));
    world.cut(A, B);
    assert!(world.add_is_begun());
    world.run(ms(1_000));
    assert!(!world.add_is_begun());
    assert!(world.serves(A), "guests need nobody else");
}

#[test]
fn a_primary_goes_on_with_a_voter_that_missed_its_view() {
    let mut world = World::pair(75);
    world.kill(B);
    world.run_until(ms(1_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
    // B never accepted the view it comes back to, and is needed for a majority now.
    world.kill(T);
    world.events.clear();
    world.restart(B);
    world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
    let stepped_down = |(node, event): &(usize, ControllerEvent)| {
        *node == A && matches!(event, ControllerEvent::SteppedDown { .. })
    };
    assert!(!world.events.iter().any(stepped_down), "{}", world.story());
}

#[test]
fn a_diskless_primary_makes_way_when_its_peer_lost_acknowledged_writes() {
    let mut world = World::pair(76);
    world.idle = true;
    world.report(A, EngineReport::LocalDiskFailed);
    let view = world.view(A).number.next();
    world.report(A, EngineReport::LeavePrepared { view });
    world.run(ms(500));
    let failed = ReplicaFacts {
        eligible: false,
        ..used_replica(A)
    };
    world.report_facts(A, failed);
    world.kill(B);
    world.run(ms(50));
    world.start(B);
    let lost = lost_its_cache(B);
    world.report_facts(B, lost);
    world.run(ms(100));
    assert!(world.active(A));
    world.report(A, EngineReport::PeerLostWrites);
    assert!(!world.active(A));
    world.run_until(ms(3_000), |world| world.serves(B));
    assert!(world.view(B).lossy, "what was lost is not hidden");
}

#[test]
fn a_node_whose_disk_failed_is_no_reason_to_wait_for_it() {
    // The Leave was never committed, so the view still counts on both; A's last word about its
    // replica is of before it failed.
    let mut world = World::pair(77);
    world.idle = true;
    world.report(A, EngineReport::LocalDiskFailed);
    world.kill(B);
    world.run(ms(50));
    world.start(B);
    let lost = lost_its_cache(B);
    world.report_facts(B, lost);
    world.run(ms(100));
    world.report(A, EngineReport::PeerLostWrites);
    world.run_until(ms(3_000), |world| world.serves(B));
}

#[test]
fn a_primary_whose_only_replica_is_let_go_steps_down_and_serves_again_with_it() {
    let mut world = World::pair(78);
    world.kill(B);
    world.run(ms(1_000));
    world.report(A, EngineReport::LocalDiskFailed);
    world.run(ms(100));
    world.report(A, EngineReport::ReplicaGone);
    assert!(!world.active(A));
    world.run(ms(1_000));
    assert!(!world.active(A));
    world.attach(A);
    world.run_until(ms(2_000), |world| world.serves(A));
}

#[test]
fn an_engine_that_could_not_be_activated_leaves_no_phantom_primary() {
    let mut world = World::pair(79);
    let view = world.view(A).number;
    world.report(A, EngineReport::NotActivated { view });
    assert!(!world.active(A));
    world.run_until(ms(3_000), |world| world.serves(A) || world.serves(B));
}

#[test]
fn guests_of_a_solo_primary_do_not_wait_for_a_peer_whose_beacons_stopped() {
    let mut world = being_added(80);
    world.weather.store = ms(20_000); // No round ends.
    world.silence_beacons_between_hosts();
    world.run(ms(1_500));
    assert!(!world.add_is_begun());
    assert!(world.serves(A));
}

#[test]
fn a_host_that_lost_its_cache_waits_for_a_peer_that_only_restarts() {
    let mut world = World::pair(81);
    world.order(5, A, Order::Secondary);
    world.run(ms(500));
    world.kill(A);
    world.start(A);
    let lost = lost_its_cache(A);
    world.report_facts(A, lost);
    // Long after A's own start, B's daemon is restarted; B kept everything.
    world.run(ms(10_000));
    world.kill(B);
    world.order_within(6, A, Order::Primary, ms(3_000));
    world.run(ms(1_000));
    assert!(!world.active(A), "B may be back at any moment");
    world.restart(B);
    world.run(ms(3_000));
    assert!(!world.active(A), "B kept what A lost");
}

#[test]
fn a_primary_whose_disk_is_in_doubt_does_not_remove_its_peer() {
    // interleavings F9: the peer only restarts, and will have to serve when the disk is given up.
    let mut world = World::pair(79);
    let facts = ReplicaFacts {
        doubtful: true,
        ..used_replica(A)
    };
    world.report_facts(A, facts);
    world.kill(B);
    world.run(ms(3_000));
    assert_eq!(world.view(A).in_sync, InSync::BOTH);
    let answering = ReplicaFacts {
        doubtful: false,
        ..facts
    };
    world.report_facts(A, answering);
    world.run_until(ms(1_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
}

#[test]
fn a_primary_whose_disk_failed_is_rid_of_a_peer_that_never_joined() {
    // Simulator, seed 1500002624: the Add was decided late, the peer's record of it had gone with
    // its session, and the only replica's metadata had failed in between.
    let mut world = World::pair(80);
    world.report(A, EngineReport::LocalDiskFailed);
    world.run(ms(1_000));
    assert_eq!(
        world.view(A).in_sync,
        InSync::BOTH,
        "it may have to serve (R18)"
    );
    world.report(A, EngineReport::PeerUnprepared);
    world.run_until(ms(1_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
}

#[test]
fn late_word_of_an_unprepared_peer_does_not_remove_it_from_a_later_view() {
    let mut world = World::pair(82);
    world.kill(B);
    world.run_until(ms(3_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
    world.report(A, EngineReport::PeerUnprepared);
    world.restart(B);
    world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
    let joined = world.view(A);
    world.run(ms(2_000));
    assert_eq!(world.view(A), joined, "{}", world.story());
}

#[test]
fn a_peer_that_gives_its_data_up_is_left_out_and_added_again() {
    let mut world = World::pair(86);
    world.report(A, EngineReport::PeerGivesUpData);
    let both = world.view(A).number;
    world.run_until(ms(3_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
    assert_eq!(world.view(A).number, both.next(), "{}", world.story());
    world.run_until(ms(5_000), |world| world.view(A).in_sync == InSync::BOTH);
    let joined = world.view(A);
    world.run(ms(2_000));
    assert_eq!(world.view(A), joined, "once: {}", world.story());
}

#[test]
fn a_resource_that_is_configured_later_is_one_like_the_others() {
    let mut world = World::new(83, Timing::FAST, true);
    let configured = world.configured;
    for node in [A, B] {
        world.configure(node, Vec::new());
    }
    world.order(1, A, Order::Up);
    world.run(ms(50));
    assert_eq!(world.orders[&1], Err(OrderRefusal::UnknownResource));
    for node in [A, B] {
        world.configure(node, vec![configured]);
    }
    world.found(A);
    world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
    world.kill(A);
    world.run_until(ms(3_000), |world| world.serves(B));
}

#[test]
fn failover_by_hand_counts_from_the_moment_it_is_configured() {
    let mut world = World::pair(84);
    let manual = Configured {
        failover: Failover::Manual,
        ..world.configured
    };
    world.configure(B, vec![manual]);
    world.kill(A);
    world.run(ms(5_000));
    assert!(!world.active(B), "{}", world.story());
    world.configure(B, vec![world.configured]);
    world.run_until(ms(3_000), |world| world.serves(B));
}
