//! Stories of a promotion by force: what it overrides, what it never does, and how the two sides of it
//! meet again.

use replicator::types::{DataGeneration, InSync, OpId, ViewCause, VoterSet};

use super::view::{FORCE_ALONE_STEP, era};
use super::world::{A, B, T, World, ms};
use super::*;

/// A pair whose B was left behind, and whose A then died with the writes that B lacks.
fn left_behind(seed: u64) -> World {
    let mut world = World::pair(seed);
    world.kill(B);
    world.run_until(ms(1_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
    world.run(ms(100));
    world.kill(A);
    world.restart(B);
    world.run(ms(1_500));
    world
}

fn blockers(world: &World, order: u64) -> Vec<Blocker> {
    match world.orders.get(&order) {
        Some(Err(OrderRefusal::Blocked { blockers, .. })) => blockers.clone(),
        other => panic!("not refused: {other:?}{}", world.story()),
    }
}

fn lineage(world: &World, node: usize) -> DataGeneration {
    world.view(node).data_generation
}

#[test]
fn an_outdated_replica_serves_by_force_alone_and_the_better_one_is_kept_apart() {
    let mut world = left_behind(120);
    let before = world.view(B);
    world.order(8, B, Order::Primary);
    world.run(ms(100));
    assert!(matches!(
        blockers(&world, 8)[..],
        [Blocker::NotInSync { .. }]
    ));
    world.order(9, B, Order::Force);
    let took = world.run_until(ms(1_000), |world| world.serves(B));
    assert!(
        took < 200,
        "the voters are there and nothing is waited for: {took} ms"
    );
    world.run(ms(10));
    assert!(matches!(world.orders[&9], Ok(Done { already: false, .. })));
    let forced = world.view(B);
    assert_eq!(forced.number, before.number.next());
    assert!(forced.forced && forced.lossy && forced.cause == ViewCause::Forced);
    assert_eq!(forced.voters, before.voters);
    assert_ne!(forced.data_generation, before.data_generation);
    // A returns: it has more than B, is no Primary, is not overwritten and not counted on.
    world.restart(A);
    world.run(ms(3_000));
    assert!(world.serves(B) && !world.active(A));
    assert_eq!(world.view(A), world.view(B));
    assert_eq!(world.view(B).in_sync, InSync::only(NodeId::B));
    assert!(world.view(B).forced, "said until somebody decided");
    // Not even by force while B is Primary.
    world.order(10, A, Order::Force);
    world.run(ms(100));
    assert!(matches!(
        blockers(&world, 10)[..],
        [Blocker::PeerActive { .. }]
    ));
    // Its data are given up: an ordinary pair again.
    world.forget_lineage(A);
    world.run_until(ms(3_000), |world| world.view(B).in_sync == InSync::BOTH);
    assert!(!world.view(B).forced);
    world.kill(B);
    world.run_until(ms(2_000), |world| world.serves(A));
}

#[test]
fn what_was_decided_unheard_of_is_not_given_up_by_an_order_that_knew_less() {
    let mut world = World::pair(128);
    // B does not hear that A goes on without it.
    world.kill(B);
    world.cut(A, B);
    world.cut(B, T);
    world.run_until(ms(1_000), |world| {
        world.view(A).in_sync == InSync::only(NodeId::A)
    });
    world.run(ms(50));
    world.kill(A);
    world.restart(B);
    world.run(ms(1_000));
    let known = world.view(B).number;
    world.order(8, B, Order::Force);
    world.run(ms(100));
    world.heal();
    world.run(ms(1_500));
    let [Blocker::ViewMoved { view }] = blockers(&world, 8)[..] else {
        panic!("{:?}", world.orders[&8])
    };
    assert!(
        view > known && !world.active(B),
        "{view} after {known}{}",
        world.story()
    );
    // Told of that one, he may still want it.
    world.order(9, B, Order::Force);
    world.run_until(ms(1_000), |world| world.serves(B));
}

#[test]
fn a_live_primary_is_never_forced_aside() {
    for behind in [false, true] {
        let mut world = World::pair(121);
        world.data_cut = behind;
        world.run(ms(2_000));
        world.order(8, B, Order::Force);
        world.run(ms(100));
        assert!(matches!(
            blockers(&world, 8)[..],
            [Blocker::PeerActive { .. }, ..]
        ));
        assert!(world.serves(A) && !world.view(A).forced);
    }
}

#[test]
fn what_needs_no_force_is_done_without() {
    // B is in sync: the lease is waited for, and the old lineage goes on.
    let mut world = World::pair(122);
    let old = lineage(&world, A);
    world.kill(A);
    world.run(ms(300));
    world.order(8, B, Order::Force);
    let took = world.run_until(ms(2_000), |world| world.serves(B));
    assert!(took >= 290, "the grant counts: {took} ms");
    world.run_until(ms(500), |world| world.orders.contains_key(&8));
    assert!(world.orders[&8].is_ok(), "{:?}", world.orders[&8]);
    assert!(!world.view(B).forced && lineage(&world, B) == old);
    // A new resource is founded like by `primary`.
    let mut world = World::new(123, Timing::FAST, true);
    world.up(A);
    world.up(B);
    world.order(8, A, Order::Force);
    world.run_until(ms(2_000), |world| world.serves(A));
    assert!(!world.view(A).forced);
}

#[test]
fn a_node_without_any_voter_decides_alone_and_meets_the_others_as_newer() {
    let mut world = World::pair(124);
    let old = world.view(A);
    world.kill(A);
    world.kill(T);
    world.run(ms(3_000));
    assert!(!world.active(B), "no majority, no takeover");
    world.order(8, B, Order::Force);
    let took = world.run_until(ms(3_000), |world| world.serves(B));
    assert!(took >= 590, "as long as a takeover waits: {took} ms");
    world.run(ms(10));
    assert!(matches!(world.orders[&8], Ok(Done { already: false, .. })));
    let forced = world.view(B);
    assert!(forced.number.0 == FORCE_ALONE_STEP && forced.number > old.number);
    assert_eq!(forced.voters.0.iter().flatten().count(), 1);
    // Across a restart it counts on itself alone too, if somebody says so again, and after a wait.
    world.kill(B);
    world.restart(B);
    world.run(ms(3_000));
    assert!(!world.active(B), "others may have gone on");
    world.kill(B);
    world.restart(B);
    world.order(9, B, Order::Primary);
    let took = world.run_until(ms(3_000), |world| world.serves(B));
    assert!(took >= 590, "nobody may be heard for so long: {took} ms");
    assert_eq!(lineage(&world, B), forced.data_generation);
    // The arbitrator returns with the old view on record: it votes for the new one, and counts again.
    world.restart(T);
    let met = |world: &World| world.view(B).voters.0.iter().flatten().count();
    world.run_until(ms(5_000), |world| met(world) == 2);
    assert_eq!(world.view(B).voters.needed(), VoterSet::MAJORITY);
    // So does the old Primary, which serves nothing and keeps what it has.
    world.restart(A);
    world.run_until(ms(5_000), |world| met(world) == 3);
    world.run(ms(2_000));
    assert!(world.serves(B) && !world.active(A));
    assert_eq!(world.view(B).in_sync, InSync::only(NodeId::B));
    world.forget_lineage(A);
    world.run_until(ms(3_000), |world| world.view(B).in_sync == InSync::BOTH);
    world.kill(B);
    world.run_until(ms(2_000), |world| world.serves(A));
}

/// Story: B was forced alone and died, and A and T, who never heard of it, have gone on for long.
#[test]
fn a_node_once_forced_alone_does_not_come_back_over_those_who_went_on() {
    let mut world = World::pair(129);
    world.kill(A);
    world.kill(T);
    world.run(ms(1_000));
    world.order(8, B, Order::Force);
    world.run_until(ms(3_000), |world| world.serves(B));
    world.run(ms(100));
    world.kill(B);
    world.restart(A);
    world.restart(T);
    world.run_until(ms(5_000), |world| world.serves(A));
    let goes_on = world.view(A);
    // B boots: cut off from both, then heard by one of them.
    world.cut(A, B);
    world.cut(B, T);
    world.restart(B);
    world.run(ms(3_000));
    assert!(world.serves(A) && !world.active(B));
    let heard_by_arbitrator = |world: &mut World| {
        world.heal();
        world.cut(A, B);
        world.run(ms(2_500));
    };
    heard_by_arbitrator(&mut world);
    assert!(world.serves(A) && !world.active(B), "{}", world.story());
    assert_eq!((world.view(A), world.view(B)), (goes_on, goes_on));
    world.heal();
    world.run(ms(1_000));
    assert!(world.serves(A) && world.view(A).in_sync == InSync::only(NodeId::A));
    // Once its data are given up it is an ordinary standby.
    world.forget_lineage(B);
    world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
    world.kill(A);
    world.run_until(ms(3_000), |world| world.serves(B));
}

/// Story: B was forced alone; when it boots the arbitrator is there, which knows of no newer view.
#[test]
fn a_node_once_forced_alone_asks_again_where_another_voter_is_heard() {
    let mut world = World::pair(131);
    world.kill(A);
    world.kill(T);
    world.run(ms(1_000));
    world.order(8, B, Order::Force);
    world.run_until(ms(3_000), |world| world.serves(B));
    world.run(ms(100));
    let forced = lineage(&world, B);
    world.kill(B);
    world.restart(T);
    world.restart(B);
    world.run(ms(3_000));
    world.order(9, B, Order::Primary);
    world.run(ms(100));
    assert!(matches!(
        blockers(&world, 9)[..],
        [Blocker::DecidedAlone { heard: true, .. }]
    ));
    world.order(10, B, Order::Force);
    world.run_until(ms(3_000), |world| world.serves(B));
    assert_ne!(lineage(&world, B), forced, "others may have served");
    world.run_until(ms(5_000), |world| {
        world.view(B).voters.needed() == VoterSet::MAJORITY
    });
}

/// Story: the link between the nodes is cut and the arbitrator gone, and both are forced. Whoever is met
/// by the arbitrator first, one number is one view, one of them ends, and the other goes on.
#[test]
fn of_two_nodes_forced_apart_one_goes_on_and_the_other_is_refused() {
    for seed in 0..8 {
        let mut world = World::pair(13_000 + seed);
        world.kill(T);
        world.cut(A, B);
        world.run(ms(2_000));
        // Also where one of them was forced before, and knows of more ballots.
        if seed % 4 >= 2 {
            world.order(7, B, Order::Force);
            world.run_until(ms(3_000), |world| world.serves(B));
            world.kill(B);
            world.restart(B);
            world.run(ms(1_000));
        }
        world.order(8, B, Order::Force);
        world.order(9, A, Order::Force);
        world.run_until(ms(5_000), |world| world.serves(A) && world.serves(B));
        world.run(ms(50));
        let [a, b] = [A, B].map(|node| world.view(node));
        assert_ne!(a.number, b.number);
        assert_ne!(a.data_generation, b.data_generation);
        let later = if a.number > b.number { A } else { B };
        if seed % 2 == 0 {
            world.restart(T);
            world.run(ms(4_000));
            assert!(
                world.serves(later) && !world.active(1 - later),
                "{}",
                world.story()
            );
        }
        world.heal();
        world.run(ms(3_000));
        assert!(
            world.serves(later) && !world.active(1 - later),
            "{}",
            world.story()
        );
        assert_eq!(world.view(A).number, world.view(B).number);
        // It can still change something, and come back.
        if seed % 2 == 1 {
            world.restart(T);
        }
        world.run(ms(4_000));
        assert_eq!(world.view(later).voters.0.iter().flatten().count(), 3);
        world.kill(later);
        world.restart(later);
        world.run_until(ms(5_000), |world| world.serves(later));
        assert!(!world.active(1 - later));
        world.forget_lineage(1 - later);
        world.run_until(ms(5_000), |world| world.view(later).in_sync == InSync::BOTH);
        assert_eq!(era(world.view(A).number), era(a.number.max(b.number)));
    }
}

/// Story: a majority was there and is gone before it accepted. The order goes on without it, or says that
/// it may still be carried out.
#[test]
fn a_majority_that_is_gone_half_way_is_not_waited_for() {
    for (patient, seed) in [(true, 135), (false, 136)] {
        let mut world = left_behind(seed);
        let limit = if patient { ms(5_000) } else { ms(300) };
        world.order_within(8, B, Order::Force, limit);
        world.run_until(ms(1_000), |world| {
            let sealed = |event: &ControllerEvent| matches!(event, ControllerEvent::Sealed { .. });
            world
                .events
                .iter()
                .any(|(node, event)| *node == B && sealed(event))
        });
        world.kill(T);
        world.run(ms(400));
        assert!(world.record(B).newest().unwrap().forced && !world.active(B));
        if patient {
            world.run_until(ms(3_000), |world| world.serves(B));
            assert_eq!(world.view(B).voters.needed(), 1);
        } else {
            assert_eq!(blockers(&world, 8), [Blocker::Undecided]);
        }
    }
}

/// Story: the arbitrator that B meets answers, but its store takes nothing.
#[test]
fn a_node_that_decides_alone_gives_its_vote_to_nobody_who_cannot_vote() {
    let mut world = World::pair(137);
    world.kill(A);
    world.kill(T);
    world.run(ms(1_000));
    world.order(8, B, Order::Force);
    world.run_until(ms(3_000), |world| world.serves(B));
    world.break_store(T, true);
    world.restart(T);
    world.run(ms(4_000));
    assert_eq!(world.record(B).newest().unwrap().voters.needed(), 1);
    world.break_store(T, false);
    world.run_until(ms(5_000), |world| world.view(B).voters.needed() == 2);
}

/// Story: B sealed for a forced view and died before it decided. A and T return and know of none of it.
#[test]
fn a_force_alone_that_was_left_half_done_refuses_only_what_it_left() {
    let mut world = World::pair(132);
    world.kill(A);
    world.kill(T);
    world.run(ms(1_000));
    world.order(8, B, Order::Force);
    world.run_until(ms(3_000), |world| world.record(B).seal > ViewNumber::NONE);
    world.kill(B);
    assert!(
        !world.record(B).newest().unwrap().forced,
        "nothing was decided"
    );
    world.restart(A);
    world.restart(T);
    world.run_until(ms(5_000), |world| world.serves(A));
    let before = world.events.len();
    world.restart(B);
    world.run(ms(3_000));
    let steps = world.events[before..]
        .iter()
        .filter(|(_, event)| matches!(event, ControllerEvent::SteppedDown { .. }));
    assert!(steps.count() <= 1 && world.serves(A), "{}", world.story());
}

/// Story: B's replica could not drain, so it may lack what A acknowledged, whatever the view says.
#[test]
fn what_a_failed_replica_lacks_is_told_as_unknown() {
    let mut world = World::pair(133);
    assert_eq!(world.why(B).force_loss(NodeId::B), ForceLoss::Nothing);
    world.break_drain(B);
    world.kill(A);
    world.run(ms(2_000));
    assert!(world.view(B).in_sync.contains(NodeId::B) && !world.active(B));
    let loss = world.why(B).force_loss(NodeId::B);
    assert_eq!(loss, ForceLoss::Replica(Blocker::Ineligible));
    world.kill(T);
    world.run(ms(5_000));
    assert_eq!(world.why(B).force_loss(NodeId::B), loss);
}

/// Story: the disk had failed, and was forced all the same. That it failed is of the lineage before.
#[test]
fn what_was_forced_is_served_again_after_a_restart_although_its_disk_had_failed() {
    let mut world = left_behind(134);
    let mark = ReplicaMark::Failed;
    world.report(B, EngineReport::Mark { op: OpId(1), mark });
    world.run(ms(100));
    assert!(world.record(B).replica_failed);
    world.order(8, B, Order::Force);
    world.run_until(ms(2_000), |world| world.serves(B));
    world.run(ms(100));
    assert!(!world.record(B).replica_failed);
}

#[test]
fn voters_that_are_there_are_asked_and_only_replaced_ones_are_not() {
    let mut world = left_behind(125);
    world.kill(T);
    world.run(ms(5_000));
    // A new arbitrator is no voter of the old view: with A gone nobody is left.
    world.wipe_store(T);
    world.start(T);
    world.run(ms(5_000));
    world.order(8, B, Order::Force);
    world.run_until(ms(3_000), |world| world.serves(B));
    world.run_until(ms(3_000), |world| {
        world.view(B).voters.0[T] == Some(VoterId(902)) && world.view(B).voters.needed() == 2
    });
}

#[test]
fn a_held_primary_whom_nobody_is_left_to_free_goes_on_by_force() {
    let mut world = World::pair(126);
    let old = lineage(&world, A);
    world.kill(T);
    world.run(ms(5_000));
    world.kill(B);
    world.run(ms(2_000));
    assert!(world.active(A) && !world.serves(A), "frozen: B may serve");
    world.order(8, A, Order::Primary);
    world.run(ms(10));
    assert!(matches!(world.orders[&8], Ok(Done { already: true, .. })));
    let acked = world.acked;
    world.order(9, A, Order::Force);
    world.run_until(ms(3_000), |world| world.serves(A));
    assert!(world.acked >= acked, "it had every write");
    assert_ne!(lineage(&world, A), old);
    // B could have served: it is refused until somebody says that it did not.
    world.restart(B);
    world.run(ms(3_000));
    assert!(world.serves(A) && world.view(A).in_sync == InSync::only(NodeId::A));
}

#[test]
fn nothing_is_forced_out_of_a_replica_that_never_held_anything() {
    let mut world = left_behind(127);
    world.report_facts(
        B,
        ReplicaFacts {
            replica: replicator::types::ReplicaId(0xbad),
            blank: true,
            ..super::world::used_replica(B)
        },
    );
    world.order(8, B, Order::Force);
    world.run(ms(100));
    assert_eq!(blockers(&world, 8), [Blocker::NoData]);
    assert!(!world.active(B));
}

/// Whatever is lost on the way, at most one node serves each lineage, and what is forced is forced once.
#[test]
fn force_in_rough_weather_is_as_safe() {
    for seed in 0..12 {
        let mut world = left_behind(12_800 + seed);
        world.weather = super::world::Weather::ROUGH;
        world.order(8, B, Order::Force);
        world.run_until(ms(10_000), |world| world.serves(B));
        world.run_until(ms(500), |world| world.orders.contains_key(&8));
        assert!(
            world.orders[&8].is_ok(),
            "{:?}{}",
            world.orders[&8],
            world.story()
        );
        let forced = lineage(&world, B);
        world.restart(A);
        world.run(ms(5_000));
        if seed % 2 == 0 {
            world.kill(B);
            world.restart(B);
        }
        world.run_until(ms(10_000), |world| world.serves(B));
        assert_eq!(lineage(&world, B), forced);
        assert!(!world.active(A));
    }
}
