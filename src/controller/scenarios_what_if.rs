//! What the dry run foretells happens: told, then done.

use replicator::types::InSync;

use super::what_if::Fate;
use super::world::{A, B, T, World, ms};
use super::*;

#[test]
fn a_healthy_pair_survives_the_loss_of_any_one_as_foretold() {
    for dead in [A, B, T] {
        let mut world = World::pair(95);
        let fates = [A, B].map(|node| world.fate(node, dead));
        let grant = Timing::FAST.grant;
        match dead {
            A => assert_eq!(fates[B], Fate::ServesHere { after: grant }),
            B => assert_eq!(
                fates[A],
                Fate::GoesOn {
                    after: Timing::FAST.suspicion
                }
            ),
            _ => assert_eq!(fates, [Fate::Unaffected, Fate::Unaffected]),
        }
        world.mark();
        world.kill(dead);
        let took = world.run_until(ms(1_000), |world| {
            let serves = if dead == A { B } else { A };
            world.serves(serves) && (dead == T || world.view(serves).in_sync != InSync::BOTH)
        });
        let limit = match dead {
            A => 850,
            B => 400,
            _ => 10,
        };
        assert!(took < limit, "{dead}: {took} ms");
    }
}

/// Every combination of what may be missing: whether it is told that somebody serves is what comes.
#[test]
fn what_is_foretold_in_any_state_comes_true() {
    let mut served = 0;
    for nr in 0..32_u64 {
        let case = |bit: u64| nr >> bit & 1 == 1;
        let mut world = World::of(9_500 + nr, Timing::FAST, true, &[]);
        if case(0) {
            world.configured.failover = Failover::Manual;
        }
        for node in [A, B, T] {
            world.start(node);
        }
        world.found(A);
        if case(1) {
            world.kill(T);
        }
        if case(2) {
            // B was left behind and does not come back before A dies.
            world.data_cut = true;
        }
        if case(3) {
            world.order(8, A, Order::Secondary);
        }
        if case(4) {
            let gone = EngineReport::ReplicaGone;
            world.report(B, gone);
        }
        world.run(ms(5_000));
        let fate = world.fate(B, A);
        world.kill(A);
        world.run(ms(2_500));
        let serves = world.serves(B);
        served += u32::from(serves);
        match &fate {
            Fate::ServesHere { .. } | Fate::GoesOn { .. } | Fate::Unaffected => {
                assert!(serves, "case {nr:05b}: {fate:?}{}", world.story());
            }
            _ => assert!(!serves, "case {nr:05b}: {fate:?}{}", world.story()),
        }
    }
    assert!(served > 0);
}
