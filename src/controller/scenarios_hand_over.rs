//! Stories of a Primary that stops in order and is followed by its peer.

use replicator::types::InSync;

use super::view::ProposalKind;
use super::world::{A, B, T, World, ms};
use super::*;

#[test]
fn a_primary_that_stops_is_followed_at_once() {
    let mut world = World::pair(64);
    let began = world.mark();
    world.order(8, A, Order::HandOver);
    let took = world.run_until(ms(500), |world| world.serves(B));
    assert!(took < 200, "no wait for the grant: {took} ms");
    world.run(ms(100));
    assert!(world.orders[&8].is_ok());
    assert!(world.first_ack_after_mark.unwrap() - began < 300);
    // It never serves again in this life, whatever happens to the successor.
    world.kill(B);
    world.run(ms(3_000));
    assert!(!world.active(A));
    world.restart(B);
    world.run_until(ms(3_000), |world| world.serves(B));
}

#[test]
fn a_primary_hands_over_without_an_arbitrator_too() {
    let mut world = World::new(65, Timing::FAST, false);
    world.found(A);
    world.run_until(ms(3_000), |world| world.view(A).in_sync == InSync::BOTH);
    world.order(8, A, Order::HandOver);
    world.run_until(ms(500), |world| world.serves(B));
}

#[test]
fn without_a_peer_that_could_follow_nothing_is_handed_over() {
    let mut world = World::pair(66);
    world.kill(B);
    world.run(ms(1_000));
    world.order(8, A, Order::HandOver);
    world.run(ms(500));
    assert!(world.orders[&8].as_ref().is_ok_and(|done| done.already));
    assert!(world.serves(A), "it goes on until it is stopped");
}

#[test]
fn word_of_an_earlier_view_shortens_no_later_wait() {
    let mut world = World::pair(67);
    world.order(8, A, Order::HandOver);
    world.run_until(ms(500), |world| world.serves(B));
    world.kill(A);
    world.restart(A);
    world.run_until(ms(3_000), |world| world.view(B).in_sync == InSync::BOTH);
    // Now B serves; what A once said about its own view must not let anybody hurry.
    world.kill(B);
    let took = world.run_until(ms(2_000), |world| world.serves(A));
    assert!(took >= 590, "not before the grant is over: {took} ms");
}

#[test]
fn nothing_is_handed_over_before_everything_is_durable() {
    let mut world = World::pair(68);
    world.quiesce_takes = ms(1_000);
    world.order(8, A, Order::HandOver);
    world.run(ms(900));
    assert!(world.active(A) && !world.active(B));
    world.run_until(ms(500), |world| world.serves(B));
}

#[test]
fn nothing_is_handed_over_to_a_peer_that_is_being_left_out() {
    // The peer gives its data up while the Primary makes everything durable; the answers to the
    // Remove are late, so that whether it was chosen is not known when the engine is quiet.
    let mut world = World::pair(87);
    world.quiesce_takes = ms(200);
    world.order(8, A, Order::HandOver);
    world.run(ms(100));
    world.report(A, EngineReport::PeerGivesUpData);
    world.run_until(ms(100), |world| {
        world.snapshot(A).proposal == Some(ProposalKind::Remove)
    });
    world.cut_one_way(B, A);
    world.cut_one_way(T, A);
    world.run(ms(200));
    assert!(world.active(A), "{}", world.story());
    world.heal();
    world.run_until(ms(500), |world| world.orders.contains_key(&8));
    let done = &world.orders[&8];
    let story = world.story();
    assert!(done.as_ref().is_ok_and(|done| done.already), "{story}");
    world.run_until(ms(3_000), |world| world.serves(A));
    assert!(!world.active(B), "{}", world.story());
}
