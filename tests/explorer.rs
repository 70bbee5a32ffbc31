//! The explorer's quick half: what a minute of unoptimised code can show. `cargo xtask explore` (and
//! CI) exhausts the whole scope and runs every mutant, optimised.

use twinblk::explorer::{Rules, Scope, Start, mutants, run, run_with, walk};

/// Unoptimised, more states take too long for a test.
const QUICK_STATES_MAX: usize = 40_000;

#[test]
fn the_tiny_scope_is_exhausted_and_clean() {
    let report = run(Scope::TINY);
    assert!(report.exhausted, "{report:?}");
    assert!(report.found.is_none(), "{report:#?}");
    assert!(report.states > 10_000, "the scope is not empty: {report:?}");
}

/// Also by force nobody serves beside one whose lease runs.
#[test]
fn a_tiny_scope_with_a_force_is_exhausted_and_clean() {
    let report = run(Scope::of(Start::Both, [1, 1, 0, 0, 0, 0]).with_force());
    assert!(report.exhausted && report.found.is_none(), "{report:#?}");
}

#[test]
fn random_walks_beyond_the_exhausted_scope_are_clean() {
    let scope = Scope::of(Start::Both, [7, 3, 3, 2, 0, 1]);
    let report = walk(scope, Rules::ALL, 20_261_121, 300, 120);
    assert!(report.found.is_none(), "{report:#?}");
}

#[test]
fn a_rule_taken_away_is_noticed() {
    let mut noticed = 0;
    for (name, rules, scope) in mutants() {
        let report = run_with(scope, rules, QUICK_STATES_MAX);
        let too_large = report.states > QUICK_STATES_MAX;
        assert!(
            report.found.is_some() || too_large,
            "{name}: {} states without a violation",
            report.states
        );
        noticed += usize::from(report.found.is_some());
    }
    assert!(noticed >= 10, "only {noticed} are quick");
}

/// Two lineages may be served side by side for a while, but not where one was to be waited for.
#[test]
fn a_force_that_is_too_early_is_noticed() {
    let (_, rules, scope) = mutants()
        .into_iter()
        .find(|(name, ..)| *name == "a force does not wait for the lease")
        .expect("it is in the list");
    let found = run_with(scope, rules, QUICK_STATES_MAX).found;
    assert!(found.is_some());
}

#[test]
fn each_rule_has_a_mutant_of_its_own() {
    let mut seen = Vec::new();
    for (name, rules, _) in mutants() {
        assert_ne!(rules, Rules::ALL, "{name} takes nothing away");
        assert!(!seen.contains(&rules), "{name} is another's double");
        seen.push(rules);
    }
    // All of them gone differs from all of them there in exactly as many rules as there are mutants.
    assert_eq!(seen.len(), Rules::COUNT);
}

#[test]
fn a_violation_is_told_step_by_step() {
    let (_, rules, scope) = mutants()
        .into_iter()
        .find(|(name, ..)| *name == "no boot wait")
        .expect("it is in the list");
    let found = run_with(scope, rules, QUICK_STATES_MAX)
        .found
        .expect("noticed");
    assert!(found.trace[0].starts_with("B crashes"), "{found:#?}");
    assert!(found.trace.last().expect("steps").contains("gate open"));
}
