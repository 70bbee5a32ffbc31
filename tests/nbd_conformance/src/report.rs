//! The table, and what it comes to.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::case::{Case, Level, Stop, Verdict};

/// Cases so far.
#[derive(Default)]
pub(crate) struct Report {
    quiet: bool,
    must: Tally,
    should: Tally,
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            ..Self::default()
        }
    }

    pub(crate) fn note(&mut self, case: &Case, name: &str, verdict: Verdict) {
        let tally = match case.level {
            Level::Must => &mut self.must,
            Level::Should => &mut self.should,
        };
        let level = case.level.word();
        match verdict {
            Ok(()) => {
                tally.passed += 1;
                if !self.quiet {
                    println!("pass  {level:<6}  {name}");
                }
            }
            Err(Stop::Skipped(why)) => {
                tally.skipped += 1;
                if !self.quiet {
                    println!("skip  {level:<6}  {name}: {why}");
                }
            }
            Err(Stop::Failed(why)) => {
                tally.failed += 1;
                println!("FAIL  {level:<6}  {name}: {why}");
                println!("              \"{}\" ({})", case.says, case.section);
            }
        }
    }

    pub(crate) fn finish(&self) {
        println!("\n        passed  failed  skipped");
        for (word, tally) in [("MUST", &self.must), ("SHOULD", &self.should)] {
            let Tally {
                passed,
                failed,
                skipped,
            } = tally;
            println!("{word:<6}  {passed:>6}  {failed:>6}  {skipped:>7}");
        }
    }

    /// Whether nothing binding was breached.
    pub(crate) fn is_conforming(&self, strict: bool) -> bool {
        self.must.failed == 0 && (!strict || self.should.failed == 0)
    }
}
