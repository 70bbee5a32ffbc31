//! Runs named steps one after the other, times them, and says at the end what each came to.

use std::time::{Duration, Instant};

use crate::counts::Counts;

/// One finished step.
struct Line {
    name: &'static str,
    took: Duration,
    ok: bool,
    counts: Counts,
}

/// The steps so far.
pub(crate) struct Report {
    started: Instant,
    lines: Vec<Line>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            started: now(),
            lines: Vec::new(),
        }
    }

    /// Runs a step that is one check: it counts as one passed or failed.
    pub(crate) fn check(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> Result<bool, String>,
    ) {
        self.tests(name, || {
            let ok = step()?;
            Ok((
                ok,
                Counts {
                    passed: u64::from(ok),
                    failed: u64::from(!ok),
                    skipped: 0,
                },
            ))
        });
    }

    /// Runs a step that counts tests of its own.
    pub(crate) fn tests(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> Result<(bool, Counts), String>,
    ) {
        println!("\n== {name}");
        let begun = now();
        let (ok, mut counts) = step().unwrap_or_else(|why| {
            eprintln!("xtask: {name}: {why}");
            (false, Counts::default())
        });
        if !ok && counts.failed == 0 {
            // It broke before it could count: a build error, a missing program.
            counts.failed = 1;
        }
        self.lines.push(Line {
            name,
            took: begun.elapsed(),
            ok,
            counts,
        });
    }

    /// Prints the table and, last, `xtask: N passed, N failed`; true when nothing failed.
    pub(crate) fn finish(self, skipped_tests: &[String]) -> bool {
        println!("\n== summary");
        for line in &self.lines {
            let mark = if line.ok { "ok    " } else { "FAILED" };
            println!(
                "  {mark} {:<12} {:>7.1} s",
                line.name,
                line.took.as_secs_f64()
            );
        }
        println!(
            "         {:<12} {:>7.1} s",
            "all",
            self.started.elapsed().as_secs_f64()
        );
        for skipped in skipped_tests {
            println!("  skipped: {skipped}");
        }
        let mut sum = self
            .lines
            .iter()
            .fold(Counts::default(), |sum, line| sum.plus(line.counts));
        // A test that skips itself is reported as passed by the test harness.
        let skipped = u64::try_from(skipped_tests.len()).unwrap_or(u64::MAX);
        sum.passed = sum.passed.saturating_sub(skipped);
        sum.skipped += skipped;
        let tail = if sum.skipped > 0 {
            format!(", {} skipped", sum.skipped)
        } else {
            String::new()
        };
        println!("xtask: {} passed, {} failed{tail}", sum.passed, sum.failed);
        sum.failed == 0 && self.lines.iter().all(|line| line.ok)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a build script's stop-watch; decides nothing"
)]
fn now() -> Instant {
    Instant::now()
}
