//! Stories of what is used up, a voter's disk or the numbers of its rounds: people are told, once.

use super::world::{A, B, T, World, ms};
use super::*;

/// Each change of state is said once, however often the write is tried again.
#[test]
fn a_voter_store_that_fails_for_long_is_said_once() {
    let mut world = World::pair(45);
    world.break_store(T, true);
    world.kill(B);
    world.events.clear();
    world.run(ms(10_000));
    let told = |world: &World| {
        let events = world.events.iter().filter(|(node, _)| *node == T);
        let failed = |event: &ControllerEvent| matches!(event, ControllerEvent::StoreFailed { .. });
        let back = |event: &ControllerEvent| matches!(event, ControllerEvent::StoreReturned { .. });
        let counts =
            events.map(|(_, event)| (usize::from(failed(event)), usize::from(back(event))));
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    assert_eq!(told(&world), (1, 0), "{}", world.story());
    world.break_store(T, false);
    world.run_until(ms(3_000), |world| world.serves(A));
    assert_eq!(told(&world), (1, 1), "{}", world.story());
}

/// A forged ballot used the last round: nothing can be decided, no number overflows, and people
/// are told, once.
#[test]
fn a_node_without_rounds_says_so_once() {
    let mut world = World::pair(44);
    world.kill(A);
    world.use_up_rounds(A);
    world.events.clear();
    world.restart(A);
    world.run(ms(5_000));
    let said = world.events.iter().filter(|(node, event)| {
        *node == A && matches!(event, ControllerEvent::RoundsExhausted { .. })
    });
    assert_eq!(said.count(), 1, "{}", world.story());
}
