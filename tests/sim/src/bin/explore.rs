//! `cargo xtask explore`: exhausts the view register's small scope and looks for every removed rule.
//!
//! ```text
//! explore                                    the scope of CI, then all mutants
//! explore --mutants                          only these
//! explore --scope 4,1,1,0,0,0                rounds,writes,crashes,cuts,wipes,orders[,forces]
//! explore --walks 100000 [--seed S] [--scope ...]   random walks, 120 steps each
//! ```
//! The last line is the verdict; exit 1 if a promise was broken or a mutant was not noticed.

use std::process::ExitCode;
use std::time::Instant;

use twinblk::explorer::{Report, Rules, Scope, Start, mutants, run_with, walk};

/// Enough for every mutant; a mutant that needs more is not noticed.
const MUTANT_STATES_MAX: usize = 20_000_000;
const WALK_LEN: usize = 120;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match ask(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(complaint) => {
            eprintln!("explore: {complaint}");
            ExitCode::from(2)
        }
    }
}

fn ask(arguments: &[String]) -> Result<bool, String> {
    let mut scope = None;
    let mut walks = None;
    let mut seed = 1;
    if arguments == ["--mutants"] {
        return Ok(all_mutants_noticed());
    }
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = rest.next().ok_or(format!("{argument} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{value} is no number"))
        };
        match argument.as_str() {
            "--scope" => scope = Some(parse_scope(value)?),
            "--walks" => walks = Some(number()?),
            "--seed" => seed = number()?,
            _ => return Err(format!("unknown argument {argument}")),
        }
    }
    Ok(match (scope, walks) {
        (scope, Some(walks)) => {
            let scope = scope.unwrap_or(Scope::of(Start::Both, [7, 3, 3, 2, 0, 1]));
            let walks = usize::try_from(walks).map_err(|error| error.to_string())?;
            clean("random walks", || {
                walk(scope, Rules::ALL, seed, walks, WALK_LEN)
            })
        }
        (Some(scope), None) => exhausted(scope),
        (None, None) => Scope::CI.into_iter().all(exhausted) & all_mutants_noticed(),
    })
}

/// `3,1,0,0,0,0`, or `solo:` before it to begin with only A in sync; `,1` after it for one promotion by
/// force.
fn parse_scope(text: &str) -> Result<Scope, String> {
    let (start, text) = match text.strip_prefix("solo:") {
        Some(rest) => (Start::Solo, rest),
        None => (Start::Both, text),
    };
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    let mut numbers = numbers.map_err(|error| format!("{text}: {error}"))?;
    let forces = if numbers.len() == 7 {
        numbers.pop().unwrap_or(0)
    } else {
        0
    };
    let bounds: [usize; 6] = numbers
        .try_into()
        .map_err(|_| "a scope has six numbers: rounds,writes,crashes,cuts,wipes,orders")?;
    if bounds[0] > Scope::ROUNDS_MAX
        || bounds[1] > Scope::WRITES_MAX
        || bounds[2] > Scope::CRASHES_MAX
        || forces > 1
    {
        return Err("that scope is larger than a state can hold".to_owned());
    }
    let scope = Scope::of(start, bounds);
    Ok(if forces == 1 {
        scope.with_force()
    } else {
        scope
    })
}

fn exhausted(scope: Scope) -> bool {
    clean(&format!("{scope:?}"), || {
        run_with(scope, Rules::ALL, usize::MAX)
    })
}

fn clean(what: &str, search: impl FnOnce() -> Report) -> bool {
    let report = timed(what, search);
    let clean = report.found.is_none();
    let verdict = if clean { "no violation" } else { "VIOLATION" };
    println!("explore: {verdict}");
    clean
}

fn timed(what: &str, search: impl FnOnce() -> Report) -> Report {
    let began = now();
    let report = search();
    let seconds = began.elapsed().as_secs_f64();
    let end = if report.exhausted { ", exhausted" } else { "" };
    println!(
        "{what}: {} states, {} steps, depth {}{end}, {seconds:.1} s",
        report.states, report.steps, report.depth
    );
    if let Some(found) = &report.found {
        println!("  {}:", found.violation);
        for (index, step) in found.trace.iter().enumerate() {
            println!("  {:3} {step}", index + 1);
        }
    }
    report
}

fn all_mutants_noticed() -> bool {
    let mut missed = Vec::new();
    for (name, rules, scope) in mutants() {
        let report = timed(name, || run_with(scope, rules, MUTANT_STATES_MAX));
        if report.found.is_none() {
            missed.push(name);
        }
    }
    if missed.is_empty() {
        println!("explore: every removed rule was noticed");
    } else {
        println!("explore: NOT NOTICED: {}", missed.join(", "));
    }
    missed.is_empty()
}

#[allow(clippy::disallowed_methods, reason = "only says how long it took")]
fn now() -> Instant {
    Instant::now()
}
