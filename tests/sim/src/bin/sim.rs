//! `sim`: runs seeds and says what broke.

use std::process::ExitCode;
use std::time::Duration;

use sim::checkers::Violation;
use sim::plan::{PLACEMENT_FROM, Plan};
use sim::run::{Summary, campaign, run_plan, run_seed};
use sim::shrink::shrink;
use sim::world::Planted;

/// Seeds within which every planted defect shows, several times over.
const ZOO_SEEDS: u64 = 2_000;

const USAGE: &str = "\
sim --seeds N [--base B] [--minutes M] [--threads T]   N seeds from B on (B is random by default)
sim --seed S [-v] [--shrink] [--twice]                 one seed; -v prints the last events
sim --corpus FILE                                      every seed in FILE
sim --planted NAME --seeds N [--base B]                the same with a planted defect: must fail
sim --zoo [--seeds N]                                  each planted defect is found within N seeds";

#[derive(Debug, Default)]
struct Arguments {
    seeds: Option<u64>,
    base: Option<u64>,
    minutes: Option<u64>,
    threads: Option<usize>,
    seed: Option<u64>,
    corpus: Option<String>,
    planted: Option<Planted>,
    zoo: bool,
    verbose: bool,
    shrink: bool,
    twice: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{argument}: {text} is not a number"))
        };
        match argument.as_str() {
            "--seeds" => parsed.seeds = Some(number(value()?)?),
            "--base" => parsed.base = Some(number(value()?)?),
            "--minutes" => parsed.minutes = Some(number(value()?)?),
            "--threads" => {
                parsed.threads = Some(usize::try_from(number(value()?)?).unwrap_or(1).max(1));
            }
            "--seed" => parsed.seed = Some(number(value()?)?),
            "--corpus" => parsed.corpus = Some(value()?),
            "--planted" => {
                let name = value()?;
                let known = Planted::ALL
                    .into_iter()
                    .find(|one| format!("{one:?}") == name);
                let names = Planted::ALL.map(|one| format!("{one:?}")).join(" ");
                parsed.planted = Some(known.ok_or(format!("{name} is none of: {names}"))?);
            }
            "--zoo" => parsed.zoo = true,
            "-v" => parsed.verbose = true,
            "--shrink" => parsed.shrink = true,
            "--twice" => parsed.twice = true,
            _ => return Err(format!("unknown argument {argument}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("sim: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // A panic of the code under test is reported as a violation, with its seed.
    if !arguments.verbose {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let good = match (&arguments.seed, &arguments.corpus, arguments.seeds) {
        _ if arguments.zoo => zoo(arguments.seeds.unwrap_or(ZOO_SEEDS)),
        (Some(seed), _, _) => one_seed(*seed, &arguments),
        (None, Some(path), _) => corpus(path, &arguments),
        (None, None, Some(seeds)) => many_seeds(seeds, &arguments),
        (None, None, None) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn one_seed(seed: u64, arguments: &Arguments) -> bool {
    let mut plan = Plan::of_seed(seed);
    if arguments.shrink {
        let (small, runs) = shrink(&plan, arguments.planted);
        println!(
            "shrunk in {runs} runs to {} faults and {} requests",
            small.faults.len(),
            small.ops.len()
        );
        plan = small;
    }
    println!("seed {seed}: {:?}", plan.options);
    for (nr, fault) in plan.faults.iter().enumerate() {
        println!("  fault {nr}: {fault:?}");
    }
    let outcome = run_plan(&plan, arguments.planted, arguments.verbose);
    print!("{}", outcome.trace);
    println!("{:?}", outcome.figures);
    println!("trace hash {:016x}", outcome.hash);
    if arguments.twice {
        let again = run_plan(&plan, arguments.planted, false);
        if again.hash != outcome.hash {
            println!("FAILED: the second run's hash is {:016x}", again.hash);
            return false;
        }
    }
    match &outcome.violation {
        None => println!("OK: seed {seed} holds every promise"),
        Some(violation) => println!("FAILED: seed {seed}: {violation}"),
    }
    outcome.violation.is_none()
}

fn corpus(path: &str, arguments: &Arguments) -> bool {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            println!("FAILED: {path}: {error}");
            return false;
        }
    };
    let seeds: Vec<u64> = match sim::run::parse_corpus(&text) {
        Ok(seeds) => seeds,
        Err(error) => {
            println!("FAILED: {path}: {error}");
            return false;
        }
    };
    let threads = arguments.threads.unwrap_or(2);
    let next = |nr| seeds.get(usize::try_from(nr).ok()?).copied();
    let summary = campaign(threads, arguments.planted, next, tell);
    report(&summary, arguments)
}

fn many_seeds(seeds: u64, arguments: &Arguments) -> bool {
    let base = arguments.base.unwrap_or_else(fresh_base);
    println!("sim: {seeds} seeds from base {base}");
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(minutes * 60));
    let clock = sim::run::Stopwatch::start();
    let threads = arguments.threads.unwrap_or(2);
    let next = |nr| {
        let in_time = limit.is_none_or(|limit| clock.elapsed() < limit);
        (nr < seeds && in_time).then_some(base + nr)
    };
    let summary = campaign(threads, arguments.planted, next, tell);
    let seconds = clock.elapsed().as_secs_f64().max(0.001);
    println!("sim: {:.1} seeds/s", per_second(summary.seeds, seconds));
    report(&summary, arguments)
}

/// Every planted defect is found, each by some seed from 0 on.
fn zoo(seeds: u64) -> bool {
    let mut missed = 0;
    for planted in Planted::ALL {
        let found = (0..seeds)
            .find_map(|seed| Some((seed, run_seed(seed, Some(planted), false).violation?)));
        if let Some((seed, violation)) = found {
            println!("{planted:?}: seed {seed}: {}", violation.promise);
        } else {
            println!("{planted:?}: not found in {seeds} seeds");
            missed += 1;
        }
    }
    let verdict = if missed == 0 { "OK" } else { "FAILED" };
    println!(
        "{verdict}: {} of {} defects found",
        Planted::ALL.len() - missed,
        Planted::ALL.len()
    );
    missed == 0
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

/// Seeds nobody has run yet, in all likelihood; small enough to be typed.
fn fresh_base() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let hasher = std::collections::hash_map::RandomState::new().build_hasher();
    PLACEMENT_FROM + hasher.finish() % 1_000_000_000
}

fn tell(seed: u64, violation: &Violation) {
    println!("seed {seed}: {violation}");
    println!("  replay: cargo xtask sim --seed {seed} -v");
}

fn report(summary: &Summary, arguments: &Arguments) -> bool {
    let figures = &summary.figures;
    if let Some((seed, _)) = summary.failures.first() {
        let outcome = run_seed(*seed, arguments.planted, true);
        let lines: Vec<_> = outcome.trace.lines().collect();
        println!("last events of seed {seed}:");
        for line in &lines[lines.len().saturating_sub(40)..] {
            println!("  {line}");
        }
    }
    println!(
        "sim: {} seeds, {} events, {} writes, {} reads, {} flushes, {} faults, {} failovers, \
         {} forced, {} failbacks, {} grown, {} over budget",
        summary.seeds,
        figures.events,
        figures.writes,
        figures.reads,
        figures.flushes,
        figures.faults,
        figures.failovers,
        figures.forced,
        figures.failbacks,
        figures.grown,
        figures.over_budget,
    );
    let failed = summary.failures.len();
    let verdict = if failed == 0 { "OK" } else { "FAILED" };
    println!(
        "{verdict}: {} passed, {failed} failed",
        summary.seeds - failed as u64
    );
    failed == 0
}
