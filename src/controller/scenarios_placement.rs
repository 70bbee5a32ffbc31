//! Stories of preferred nodes: when a peer counts as well, and who is first where both could serve.

use replicator::types::InSync;

use super::world::{A, B, RESOURCE, World, ms};
use super::*;

fn prefer(node: NodeId) -> Configured {
    Configured {
        prefer: Some(node),
        ..Configured::usual(RESOURCE)
    }
}

fn pair_preferring(seed: u64, node: NodeId) -> World {
    let mut world = World::pair(seed);
    for at in [A, B] {
        world.configure(at, vec![prefer(node)]);
    }
    world.configured = prefer(node);
    world
}

#[test]
fn a_peer_is_well_from_the_add_on_and_anew_after_each_interruption() {
    let mut world = World::pair(200);
    assert_eq!(
        world.snapshot(B).peer_well_since,
        None,
        "nobody asks a Secondary"
    );
    assert_eq!(world.snapshot(B).move_blocker, None);
    let first = world.snapshot(A).peer_well_since.expect("both are in sync");
    world.run(ms(2_000));
    assert_eq!(world.snapshot(A).peer_well_since, Some(first));
    assert_eq!(world.snapshot(A).move_blocker, None);
    // The data connection alone, for a moment: nobody is removed for it.
    world.data_cut = true;
    world.run(ms(100));
    assert_eq!(world.snapshot(A).peer_well_since, None);
    world.heal();
    world.run(ms(1_000));
    let second = world.snapshot(A).peer_well_since.expect("connected again");
    assert!(second > first);
    world.kill(B);
    world.run(ms(2_000));
    assert_eq!(world.snapshot(A).peer_well_since, None);
    assert!(world.snapshot(A).move_blocker.is_some());
    world.restart(B);
    world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
    world.run(ms(500));
    assert!(world.snapshot(A).peer_well_since > Some(second));
}

/// Story: the power of both hosts fails, and the preferred one, which served, boots more slowly.
#[test]
fn a_preferred_primary_that_boots_later_is_waited_for() {
    for (late, first) in [(ms(4_000), A), (ms(9_000), B)] {
        let mut world = pair_preferring(201, NodeId::A);
        for node in [A, B] {
            world.kill(node);
        }
        world.run(ms(50));
        world.restart(B);
        world.run(ms(1_500));
        if world.who_serves().is_none() {
            let waits = world.why(B).first_blocker();
            assert!(
                matches!(waits, Some(Blocker::HeadStart { .. })),
                "{waits:?}"
            );
        }
        world.run(late - ms(1_500));
        world.restart(A);
        world.run_until(ms(3_000), |world| world.who_serves().is_some());
        assert_eq!(world.who_serves(), Some(first), "{late:?}");
    }
}

#[test]
fn an_order_and_the_word_that_it_is_dead_wait_for_no_preferred_node() {
    for (order, fenced) in [(Order::Primary, false), (Order::Fenced, true)] {
        let mut world = pair_preferring(203, NodeId::A);
        for node in [A, B] {
            world.kill(node);
        }
        world.restart(B);
        // Long enough that the other one counts as silent.
        world.run(ms(400));
        world.order(8, B, order);
        let took = world.run_until(ms(2_500), |world| world.serves(B));
        assert!(took < 1_500 && (!fenced || took < 600), "{took} ms");
    }
}

#[test]
fn an_unplanned_takeover_from_a_preferred_node_takes_no_longer() {
    let took = [false, true].map(|preferring| {
        let mut world = match preferring {
            true => pair_preferring(202, NodeId::A),
            false => World::pair(202),
        };
        world.run(ms(6_000));
        world.kill(A);
        world.run_until(ms(2_000), |world| world.serves(B))
    });
    assert_eq!(took[0], took[1]);
}
