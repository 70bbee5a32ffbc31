//! What each verb does, as a list of steps a newcomer can read.

use std::path::PathBuf;

use crate::Outcome;
use crate::report::Report;
use crate::{deny, kernel, packages as debian, run};

/// The profile of the simulator and the explorer: optimised, with assertions.
const SIM_PROFILE: &str = "--profile sim";

/// Seeds that found something once, and 3,000 in a row.
const CORPUS: &str = "tests/seeds.txt";

/// Seeds that nobody has run yet; their base is printed, so that a failure can be run again.
const FRESH_SEEDS: &str = "1500";

/// More than cores: a test with processes mostly waits for what they do after a second or three.
const TEST_THREADS: &str = "4";

pub(crate) fn demo(arguments: &[String]) -> Outcome {
    println!("building twinblkd, twinblk-arbitrator and twinadm (optimised); then: twinadm demo");
    if !run::passes(&mut run::cargo(
        "build --release --locked -p twinblk -p twinblk-tools --bins",
    ))? {
        return Ok(false);
    }
    let program = run::target_dir().join("release").join("twinadm");
    let mut command = std::process::Command::new(program);
    run::passes(command.arg("demo").args(arguments))
}

/// The end-to-end comparison; the programs it starts lie beside it in the release profile.
pub(crate) fn bench_peers(arguments: &[String]) -> Outcome {
    if !run::passes(&mut run::cargo(
        "build --release --locked -p twinblk -p twinblk-tools --bins",
    ))? {
        return Ok(false);
    }
    let mut command = run::cargo("bench --locked -p benches --bench peers --");
    run::passes(command.args(arguments))
}

pub(crate) fn test(_arguments: &[String]) -> Outcome {
    let mut report = Report::new();
    report.check("packages", || {
        let all = debian::install()? & kernel::fetch()?;
        // What cannot be had skips tests; only CI insists on all of it.
        Ok(all || !is_ci())
    });
    report.check("format", || {
        run::passes(&mut run::cargo("fmt --all --check"))
    });
    report.check("clippy", || {
        run::passes(&mut run::cargo(
            "clippy --locked --workspace --all-targets -- -D warnings",
        ))
    });
    report.check("pure", || {
        // Each alone: a workspace build unifies features and hides a leak.
        Ok(run::passes(&mut run::cargo(
            "check --locked -p replicator --no-default-features",
        ))? & run::passes(&mut run::cargo(
            "check --locked -p twinblk --no-default-features --lib",
        ))?)
    });
    report.check("deny", deny::check);
    report.check("build", || {
        run::passes(&mut run::cargo("build --locked --workspace --bins"))
    });
    let skipped = skip_list();
    report.tests("test", || {
        // What was just built goes to the disk first, or the tests' own syncs wait behind it.
        run::passes(&mut std::process::Command::new("sync"))?;
        let mut command = run::cargo("test --locked --workspace --no-fail-fast");
        command.env("RUST_TEST_THREADS", TEST_THREADS);
        command.env("TWINBLK_TEST_SKIPS", &skipped);
        command.env("TWINBLK_TEST_GUEST_KERNEL", kernel::dir());
        run::counted(&mut command)
    });
    report.check("explore", || explore(&[]));
    report.check("sim corpus", || sim(&["--corpus".into(), CORPUS.into()]));
    report.check("sim fresh", || sim(&["--seeds".into(), FRESH_SEEDS.into()]));
    report.check("sim zoo", || sim(&["--zoo".into()]));
    let skipped = std::fs::read_to_string(&skipped).unwrap_or_default();
    let skipped: Vec<String> = skipped.lines().map(str::to_owned).collect();
    Ok(report.finish(&skipped))
}

pub(crate) fn ci(arguments: &[String]) -> Outcome {
    // Through a child, because a running process's environment is not ours to change.
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = std::process::Command::new(program);
    run::passes(command.arg("test").args(arguments).env("CI", "true"))
}

pub(crate) fn tidy(_arguments: &[String]) -> Outcome {
    Ok(run::passes(&mut run::cargo("fmt --all --check"))?
        & run::passes(&mut run::cargo(
            "test --quiet --locked -p twinblk --test architecture",
        ))?)
}

pub(crate) fn fix(_arguments: &[String]) -> Outcome {
    run::passes(&mut run::cargo("fmt --all"))
}

pub(crate) fn sim(arguments: &[String]) -> Outcome {
    optimised("--bin sim", arguments)
}

pub(crate) fn explore(arguments: &[String]) -> Outcome {
    optimised("--bin explore", arguments)
}

pub(crate) fn nbd_conformance(arguments: &[String]) -> Outcome {
    let mut command = run::cargo("run --quiet --locked -p nbd-conformance --");
    run::passes(command.args(arguments))
}

pub(crate) fn packages(_arguments: &[String]) -> Outcome {
    Ok(debian::install()? & kernel::fetch()?)
}

fn optimised(what: &str, arguments: &[String]) -> Outcome {
    let mut command = run::cargo(&format!(
        "run --quiet --locked {SIM_PROFILE} -p sim {what} --"
    ));
    run::passes(command.args(arguments))
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// A fresh, empty file to which tests that skip themselves add one line each.
fn skip_list() -> PathBuf {
    let path = run::target_dir().join("skipped-tests.txt");
    if let Err(error) = std::fs::write(&path, "") {
        eprintln!(
            "xtask: {}: {error}; skipped tests will not be listed",
            path.display()
        );
    }
    path
}
