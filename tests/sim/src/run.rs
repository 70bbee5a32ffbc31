//! Runs of many seeds, and what is told about them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checkers::Violation;
use crate::plan::Plan;
use crate::world::{Figures, Outcome, Planted, World};

/// One run of a plan. A panic of the code under test is a violation like any other.
#[must_use]
pub fn run_plan(plan: &Plan, planted: Option<Planted>, text: bool) -> Outcome {
    let world = AssertUnwindSafe(|| World::new(plan.clone(), planted, text).run());
    catch_unwind(world).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".into());
        Outcome {
            violation: Some(Violation::new("no panic", message)),
            figures: Figures::default(),
            hash: 0,
            trace: String::new(),
        }
    })
}

/// One run of a seed.
#[must_use]
pub fn run_seed(seed: u64, planted: Option<Planted>, text: bool) -> Outcome {
    run_plan(&Plan::of_seed(seed), planted, text)
}

/// Sums over many runs.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Runs made.
    pub seeds: u64,
    /// Sums.
    pub figures: Figures,
    /// Seeds with a violation, in order.
    pub failures: Vec<(u64, Violation)>,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        let (sum, one) = (&mut self.figures, outcome.figures);
        sum.events += one.events;
        sum.writes += one.writes;
        sum.reads += one.reads;
        sum.flushes += one.flushes;
        sum.failovers += one.failovers;
        sum.faults += one.faults;
        sum.forced += one.forced;
        sum.grown += one.grown;
        sum.failbacks += one.failbacks;
        sum.over_budget += one.over_budget;
        if let Some(violation) = outcome.violation {
            self.failures.push((seed, violation));
        }
    }
}

/// Failures after which a campaign ends: more of them teach nothing.
pub const FAILURES_MAX: usize = 20;

/// Runs seeds given by `next` on `threads` threads until it gives none; `found` hears of each
/// violation at once.
#[must_use]
pub fn campaign(
    threads: usize,
    planted: Option<Planted>,
    next: impl Fn(u64) -> Option<u64> + Sync,
    found: impl Fn(u64, &Violation) + Sync,
) -> Summary {
    let summary = Mutex::new(Summary::default());
    let ordinal = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = next(ordinal.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_seed(seed, planted, false);
                    if let Some(violation) = &outcome.violation {
                        found(seed, violation);
                    }
                    let mut summary = summary.lock().expect("runs do not panic");
                    summary.add(seed, outcome);
                    if summary.failures.len() >= FAILURES_MAX {
                        return;
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("runs do not panic");
    summary.failures.sort_by_key(|(seed, _)| *seed);
    summary
}

/// The seeds of a corpus file: one a line, `#` begins a comment.
///
/// # Errors
/// Names the line that is no number.
pub fn parse_corpus(text: &str) -> Result<Vec<u64>, String> {
    text.lines()
        .zip(1..)
        .map(|(line, nr)| (line.split('#').next().unwrap_or_default().trim(), nr))
        .filter(|(seed, _)| !seed.is_empty())
        .map(|(seed, nr)| {
            seed.parse()
                .map_err(|_| format!("line {nr}: {seed} is no seed"))
        })
        .collect()
}

/// Wall time of a campaign; no simulation sees it.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        reason = "measures the simulator, not the simulated"
    )]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> std::time::Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_has_comments_and_its_mistakes_have_lines() {
        assert_eq!(parse_corpus("1 # first\n\n# none\n22\n"), Ok(vec![1, 22]));
        assert!(parse_corpus("1\nx\n").is_err_and(|error| error.contains("line 2")));
    }
}
