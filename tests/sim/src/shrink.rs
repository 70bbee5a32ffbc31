//! Makes a failing plan small: takes items out as long as the same promise still breaks.

use crate::plan::Plan;
use crate::run::run_plan;
use crate::world::Planted;

/// Runs a shrink may take: seconds, not minutes.
const RUNS_MAX: usize = 400;

/// The smallest plan found that breaks the same promise, and how many runs it took (`ddmin` by
/// Zeller and Hildebrandt, over faults first, then requests).
#[must_use]
pub fn shrink(plan: &Plan, planted: Option<Planted>) -> (Plan, usize) {
    let mut runs = 0;
    let Some(first) = run_plan(plan, planted, false).violation else {
        return (plan.clone(), 1);
    };
    let mut breaks = |candidate: &Plan| {
        runs += 1;
        let violation = run_plan(candidate, planted, false).violation;
        violation.is_some_and(|violation| violation.promise == first.promise)
    };
    let mut smallest = plan.clone();
    let mut budget = RUNS_MAX;
    smallest.faults = minimise(&plan.faults, &mut budget, |faults| {
        breaks(&Plan {
            faults: faults.to_vec(),
            ..smallest.clone()
        })
    });
    smallest.ops = minimise(&plan.ops, &mut budget, |ops| {
        breaks(&Plan {
            ops: ops.to_vec(),
            ..smallest.clone()
        })
    });
    (smallest, runs)
}

fn minimise<T: Clone>(
    items: &[T],
    budget: &mut usize,
    mut breaks: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut items = items.to_vec();
    let mut chunk = items.len().max(1);
    loop {
        let mut from = 0;
        while from < items.len() && *budget > 0 {
            let mut without = items.clone();
            without.drain(from..(from + chunk).min(items.len()));
            *budget -= 1;
            if breaks(&without) {
                items = without;
            } else {
                from += chunk;
            }
        }
        if chunk == 1 || *budget == 0 {
            return items;
        }
        chunk = chunk.div_ceil(2).min(items.len().max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_items_that_matter_stay() {
        let items: Vec<u32> = (0..100).collect();
        let mut budget = RUNS_MAX;
        let left = minimise(&items, &mut budget, |items| {
            items.contains(&17) && items.contains(&80)
        });
        assert_eq!(left, [17, 80]);
    }
}
