//! The simulator's promise about itself: equal seeds give equal runs, and its checkers can fail.
//!
//! Few seeds, because this is the slow build; `cargo xtask sim` runs thousands in the fast one.

use sim::plan::Plan;
use sim::run::{parse_corpus, run_seed};
use sim::shrink::shrink;
use sim::world::Planted;

#[test]
fn the_same_seed_gives_the_same_run_event_by_event() {
    for seed in [1, 2, 3] {
        let (first, second) = (run_seed(seed, None, false), run_seed(seed, None, true));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.figures, second.figures, "seed {seed}");
        assert_eq!(first.violation, None, "seed {seed}");
    }
}

#[test]
fn the_corpus_is_readable() {
    let seeds = parse_corpus(include_str!("../../seeds.txt")).unwrap();
    assert!(!seeds.is_empty());
}

/// A defect of the simulated wiring that any run with a write shows: were the checkers asleep, this
/// would be the first to notice. The other planted defects have their seeds in the fast build.
#[test]
fn a_planted_acknowledgement_without_the_peer_is_found_and_shrinks() {
    let planted = Some(Planted::AckWithoutPeer);
    let found = (0..20).find(|seed| run_seed(*seed, planted, false).violation.is_some());
    let seed = found.expect("found in twenty seeds");
    let plan = Plan::of_seed(seed);
    let (small, _) = shrink(&plan, planted);
    assert!(
        small.ops.len() < plan.ops.len() / 4,
        "{} requests left",
        small.ops.len()
    );
}
