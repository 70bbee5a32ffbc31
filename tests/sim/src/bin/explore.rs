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
use std::sync::Mutex;
use std::time::Instant;

use twinblk::explorer::{Report, Rules, Scope, Start, mutants, run_with, walk};

/// Enough for every mutant; a mutant that needs more is not noticed.
const MUTANT_STATES_MAX: usize = 20_000_000;
const WALK_LEN: usize = 120;
/// Searches at once: CI has two cores, and each search uses one.
const WORKERS: usize = 2;

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
        (None, None) => everything(),
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
    let (report, text) = timed(what, search);
    print!("{text}");
    is_clean(&report)
}

fn is_clean(report: &Report) -> bool {
    let clean = report.found.is_none();
    let verdict = if clean { "no violation" } else { "VIOLATION" };
    println!("explore: {verdict}");
    clean
}

/// The report, and what people read of it.
fn timed(what: &str, search: impl FnOnce() -> Report) -> (Report, String) {
    let began = now();
    let report = search();
    let seconds = began.elapsed().as_secs_f64();
    let end = if report.exhausted { ", exhausted" } else { "" };
    let mut text = format!(
        "{what}: {} states, {} steps, depth {}{end}, {seconds:.1} s\n",
        report.states, report.steps, report.depth
    );
    if let Some(found) = &report.found {
        text.push_str(&format!("  {}:\n", found.violation));
        for (index, step) in found.trace.iter().enumerate() {
            text.push_str(&format!("  {:3} {step}\n", index + 1));
        }
    }
    (report, text)
}

/// One search, by its name.
type Search = (String, Box<dyn FnOnce() -> Report + Send>);

fn scopes() -> Vec<Search> {
    let search = |scope: Scope| -> Search {
        let run = move || run_with(scope, Rules::ALL, usize::MAX);
        (format!("{scope:?}"), Box::new(run))
    };
    Scope::CI.into_iter().map(search).collect()
}

fn planted() -> Vec<Search> {
    let search = |(name, rules, scope): (&str, Rules, Scope)| -> Search {
        let run = move || run_with(scope, rules, MUTANT_STATES_MAX);
        (name.to_owned(), Box::new(run))
    };
    mutants().into_iter().map(search).collect()
}

fn everything() -> bool {
    let scopes = scopes();
    let count = scopes.len();
    let mut searches = scopes;
    searches.extend(planted());
    let mut reports = run_all(searches);
    let of_mutants = reports.split_off(count);
    let mut clean = true;
    for (_, report, text) in reports {
        print!("{text}");
        clean &= is_clean(&report);
    }
    clean & noticed(of_mutants)
}

fn all_mutants_noticed() -> bool {
    noticed(run_all(planted()))
}

fn noticed(reports: Vec<(String, Report, String)>) -> bool {
    let mut missed = Vec::new();
    for (name, report, text) in reports {
        print!("{text}");
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

/// Runs searches beside each other; their reports come in the order of the searches.
fn run_all(searches: Vec<Search>) -> Vec<(String, Report, String)> {
    let waiting = Mutex::new(searches.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let next = || waiting.lock().expect("nobody panicked").next();
    let work = || {
        while let Some((nr, (name, search))) = next() {
            let (report, text) = timed(&name, search);
            let mut done = done.lock().expect("nobody panicked");
            done.push((nr, (name, report, text)));
        }
    };
    std::thread::scope(|threads| {
        for _ in 0..WORKERS {
            threads.spawn(work);
        }
    });
    let mut done = done.into_inner().expect("nobody panicked");
    done.sort_by_key(|(nr, _)| *nr);
    done.into_iter().map(|(_, one)| one).collect()
}

#[allow(clippy::disallowed_methods, reason = "only says how long it took")]
fn now() -> Instant {
    Instant::now()
}
