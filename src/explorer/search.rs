//! Breadth first through all states, or at random through a few.

use std::collections::VecDeque;

use super::check::Violation;
use super::machine::{Action, Machine};
use super::state::State;
use super::visited::{Fingerprint, Visited};
use super::{Rules, Scope, Start};

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Different states seen.
    pub states: usize,
    /// Steps looked at.
    pub steps: usize,
    /// Steps from the beginning to the farthest state.
    pub depth: usize,
    /// Nothing was left to look at.
    pub exhausted: bool,
    /// The first broken promise.
    pub found: Option<Found>,
}

/// A broken promise and the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What.
    pub violation: Violation,
    /// The steps, in words.
    pub trace: Vec<String>,
}

/// Exhausts `scope` with all rules.
#[must_use]
pub fn run(scope: Scope) -> Report {
    run_with(scope, Rules::ALL, usize::MAX)
}

/// Searches breadth first with some rules until the end, a violation, or `states_max` states.
#[must_use]
pub fn run_with(scope: Scope, rules: Rules, states_max: usize) -> Report {
    let mut machine = Machine::new(scope, rules);
    let mut visited = Visited::new();
    let mut queue = VecDeque::new();
    // For each state in order of discovery: its parent, and which of the parent's successors it is.
    let mut origins: Vec<(u32, u16)> = Vec::new();
    let mut successors = Vec::new();
    let initial = machine.initial();
    visited.insert(Fingerprint::of(&initial));
    origins.push((0, 0));
    queue.push_back((0_u32, 0_usize, initial));
    let (mut steps, mut depth) = (0, 0);
    while let Some((index, at_depth, state)) = queue.pop_front() {
        depth = at_depth;
        machine.successors(&state, &mut successors);
        steps += successors.len();
        for (choice, (_, next, violation)) in successors.iter().enumerate() {
            let new = visited.insert(Fingerprint::of(next));
            if !new && violation.is_none() {
                continue;
            }
            let choice = u16::try_from(choice).expect("a state has few successors");
            origins.push((index, choice));
            let next_index = u32::try_from(origins.len() - 1).expect("fewer states than 2^32");
            if let Some(violation) = *violation {
                let choices = way_to(&origins, next_index);
                let found = Some(retrace(scope, rules, &choices, violation));
                let states = visited.len();
                return Report {
                    states,
                    steps,
                    depth: depth + 1,
                    exhausted: false,
                    found,
                };
            }
            queue.push_back((next_index, at_depth + 1, *next));
        }
        if visited.len() > states_max {
            break;
        }
    }
    Report {
        states: visited.len(),
        steps,
        depth,
        exhausted: queue.is_empty(),
        found: None,
    }
}

fn way_to(origins: &[(u32, u16)], end: u32) -> Vec<u16> {
    let mut choices = Vec::new();
    let mut at = end;
    while at != 0 {
        let (parent, choice) = origins[usize::try_from(at).expect("it is an index")];
        choices.push(choice);
        at = parent;
    }
    choices.reverse();
    choices
}

/// Takes the same steps again, to tell them.
fn retrace(scope: Scope, rules: Rules, choices: &[u16], violation: Violation) -> Found {
    let mut machine = Machine::new(scope, rules);
    let mut state = machine.initial();
    let mut successors = Vec::new();
    let mut trace = Vec::new();
    for choice in choices {
        machine.successors(&state, &mut successors);
        let (action, next, _) = successors[usize::from(*choice)];
        trace.push(machine.tell(&state, &action, &next));
        state = next;
    }
    Found { violation, trace }
}

/// Walks at random from the beginning, `walks` times up to `length` steps: reaches depths that
/// cannot be exhausted. The same seed walks the same ways.
#[must_use]
pub fn walk(scope: Scope, rules: Rules, seed: u64, walks: usize, length: usize) -> Report {
    let mut machine = Machine::new(scope, rules);
    let mut random = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut successors = Vec::new();
    let (mut steps, mut depth) = (0, 0);
    for _ in 0..walks {
        let mut state: State = machine.initial();
        let mut taken: Vec<(State, Action, State)> = Vec::new();
        for _ in 0..length {
            machine.successors(&state, &mut successors);
            let Some(choice) = draw(&mut random, successors.len()) else {
                break;
            };
            let (action, next, violation) = successors[choice];
            taken.push((state, action, next));
            steps += 1;
            depth = depth.max(taken.len());
            if let Some(violation) = violation {
                let tell = |(state, action, next): &(State, Action, State)| {
                    machine.tell(state, action, next)
                };
                let trace = taken.iter().map(tell).collect();
                return Report {
                    states: steps,
                    steps,
                    depth,
                    exhausted: false,
                    found: Some(Found { violation, trace }),
                };
            }
            state = next;
        }
    }
    Report {
        states: steps,
        steps,
        depth,
        exhausted: false,
        found: None,
    }
}

/// An index below `count`, by a xorshift generator.
fn draw(random: &mut u64, count: usize) -> Option<usize> {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
    usize::try_from((*random >> 11) % count).ok()
}

/// Every rule taken away alone, with a scope in which that must be noticed.
#[must_use]
pub fn mutants() -> Vec<(&'static str, Rules, Scope)> {
    let all = Rules::ALL;
    let mutant = |name, take_away: fn(&mut Rules), start, bounds| {
        let mut rules = all;
        take_away(&mut rules);
        (name, rules, Scope::of(start, bounds))
    };
    let forced = |(name, rules, scope): (_, _, Scope)| (name, rules, scope.with_force());
    let (both, solo) = (Start::Both, Start::Solo);
    vec![
        mutant(
            "volatile seal",
            |rules| rules.durable_seal = false,
            both,
            [1, 1, 1, 0, 0, 0],
        ),
        mutant(
            "no seal",
            |rules| rules.seal = false,
            both,
            [1, 1, 0, 0, 0, 0],
        ),
        mutant(
            "grant shorter than lease",
            |rules| rules.grant_outlives_lease = false,
            both,
            [1, 1, 0, 0, 0, 0],
        ),
        mutant(
            "no boot wait",
            |rules| rules.boot_wait = false,
            both,
            [1, 1, 1, 0, 0, 0],
        ),
        mutant(
            "Add without strictness",
            |rules| rules.strict_add = false,
            solo,
            [1, 1, 0, 0, 0, 0],
        ),
        mutant(
            "undecided Add taken for dead",
            |rules| rules.end_undecided_add = false,
            solo,
            [3, 1, 0, 0, 0, 0],
        ),
        mutant(
            "serving without an own commit",
            |rules| rules.own_commit = false,
            both,
            [2, 1, 1, 0, 0, 0],
        ),
        mutant(
            "in_sync ignored",
            |rules| rules.in_sync = false,
            solo,
            [1, 1, 0, 0, 0, 0],
        ),
        mutant(
            "ballots not compared",
            |rules| rules.ballots = false,
            both,
            [2, 1, 0, 0, 0, 0],
        ),
        mutant(
            "amnesiac voters",
            |rules| rules.durable_votes = false,
            both,
            [2, 1, 1, 0, 0, 0],
        ),
        mutant(
            "requests survive a step-down",
            |rules| rules.drop_inflight = false,
            both,
            [3, 1, 0, 0, 0, 0],
        ),
        mutant(
            "no drain",
            |rules| rules.drain = false,
            both,
            [1, 1, 0, 0, 0, 0],
        ),
        mutant(
            "strangers vote",
            |rules| rules.known_voters = false,
            both,
            [2, 1, 0, 0, 1, 0],
        ),
        forced(mutant(
            "a force goes on with the old lineage",
            |rules| rules.new_lineage = false,
            solo,
            [1, 1, 0, 0, 0, 0],
        )),
        forced(mutant(
            "a force does not wait for the lease",
            |rules| rules.force_waits = false,
            both,
            [1, 1, 0, 0, 0, 0],
        )),
    ]
}
