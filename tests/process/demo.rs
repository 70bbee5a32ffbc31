//! `twinadm demo` itself: each fault passes, and a corrupted disk fails.

use std::process::Command;

use serde_json::Value;

use crate::tools::{Ran, run, twinadm};
use crate::turn::Turn;

/// Longest run, in seconds: what the demo promises a newcomer.
const WALL_MAX: f64 = 20.0;

fn demo(arguments: &[&str]) -> (Ran, Value) {
    let _turn = Turn::take();
    let ran = run(Command::new(twinadm())
        .args(["demo", "--json"])
        .args(arguments));
    let verdict =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error} in {ran:#?}"));
    (ran, verdict)
}

fn passes(fault: &str) -> Value {
    let (ran, verdict) = demo(&["--fault", fault]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(verdict["verdict"], "PASS");
    assert_eq!(verdict["lost"], 0);
    assert_eq!(verdict["identical"], true);
    assert!(verdict["acknowledged"].as_u64().unwrap() > 100, "{verdict}");
    assert!(verdict["seconds"].as_f64().unwrap() < WALL_MAX, "{verdict}");
    verdict
}

#[test]
fn a_killed_primary_loses_nothing() {
    let verdict = passes("kill");
    assert!(verdict["takeover_seconds"].as_f64().is_some());
    let resynced = verdict["resynced_bytes"].as_u64().unwrap();
    assert!(
        resynced > 0 && resynced < verdict["size_bytes"].as_u64().unwrap() / 2,
        "{verdict}"
    );
}

#[test]
fn a_paused_primary_loses_nothing() {
    passes("pause");
}

#[test]
fn a_partitioned_primary_loses_nothing() {
    passes("partition");
}

#[test]
fn a_lost_arbitrator_loses_nothing() {
    let verdict = passes("arbitrator-loss");
    assert!(
        verdict["stall_seconds"].as_f64().unwrap() < 0.5,
        "{verdict}"
    );
}

#[test]
fn both_killed_at_once_lose_nothing() {
    passes("both-power-loss");
}

#[test]
fn a_corrupted_disk_is_a_fail() {
    let (ran, verdict) = demo(&["--corrupt"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(verdict["verdict"], "FAIL");
    assert_eq!(verdict["identical"], false);
    assert!(verdict["lost"].as_u64().unwrap() > 0);
}
