//! `primary --force` and what follows: two histories, and the end of one.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{A, B, Cluster, NAMES, RES, Setup};
use crate::nbd::Nbd;

const LIMIT: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

fn diverged(status: &Value) -> bool {
    status["problem"] == "E0301" && status["peers"][0]["diverged"] == true
}

/// B was left behind, and A dies with what B lacks. By force B serves without it; A returns and keeps
/// it, until B's history is chosen and A's size is typed.
#[test]
fn a_replica_left_behind_serves_by_force_and_the_other_history_is_kept_until_given_up() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster.kill(B);
    cluster.wait_status(A, "it goes on alone", |status| {
        status["in_sync"].as_array().is_some_and(|it| it.len() == 1)
    });
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(5 * MIB, &vec![7; 1 << 20]).unwrap();
    nbd.flush().unwrap();
    // Neither by force while the other one serves and is heard.
    cluster.start(B);
    let force = ["primary", RES, "--force", "--yes-lose=vm-web@1"];
    cluster.wait_both_up_to_date(A);
    let live = cluster.adm(B, &force);
    assert_eq!(live.code, Some(4), "{live:?}");
    assert!(live.stderr.contains("E0412"), "{live:?}");
    cluster.kill(B);
    cluster.wait_status(A, "it goes on alone again", |status| {
        status["in_sync"].as_array().is_some_and(|it| it.len() == 1)
    });
    nbd.write(9 * MIB, &vec![9; 1 << 20]).unwrap();
    nbd.flush().unwrap();
    cluster.kill(A);
    drop(nbd);
    cluster.start(B);
    cluster.wait_status(B, "it knows that it is left out", |status| {
        status["volumes"][0]["disk"] == "Outdated"
    });
    let mut told = None;
    for words in [
        &force[..3],
        &["primary", RES, "--force", "--yes-lose=vm-web"],
        &force,
    ] {
        let refused = cluster.adm(B, words);
        assert_eq!(refused.code, Some(4), "{refused:?}");
        for wanted in [
            "E0424",
            "what was acknowledged on kvm-a",
            "--yes-lose=vm-web@",
        ] {
            assert!(refused.stderr.contains(wanted), "{wanted}: {refused:?}");
        }
        let mut words = refused.stderr.split_whitespace();
        told = words
            .rfind(|word| word.starts_with("--yes-lose=vm-web@"))
            .map(str::to_owned);
    }
    let told = told.expect("the word to say");
    cluster
        .adm(B, &["primary", RES, "--force", told.as_str()])
        .ok();
    let forced = cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
    assert_eq!(
        (&forced["forced"], &forced["problem"]),
        (&true.into(), &"W0141".into())
    );
    let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(5 * MIB, 4096).unwrap(), vec![7; 4096]);
    assert_eq!(nbd.read(9 * MIB, 4096).unwrap(), vec![0; 4096]);
    nbd.write(9 * MIB, &vec![11; 4096]).unwrap();
    // A keeps what only it has.
    cluster.start(A);
    cluster.wait_status(B, "it refuses the other history", diverged);
    cluster.wait_status(A, "it refuses, too", diverged);
    let shown = cluster.adm(B, &["split-brain", "show", RES, "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["diverged"], true, "{shown}");
    assert!(
        shown["sides"][1]["marked_bytes"].as_u64() >= Some(MIB),
        "{shown}"
    );
    let resolve = ["split-brain", "resolve", RES, "--keep", NAMES[B]];
    let other = cluster.adm(B, &["split-brain", "resolve", RES, "--keep", NAMES[A]]);
    assert!(
        other.code == Some(4) && other.stderr.contains("E0423"),
        "{other:?}"
    );
    let sized = cluster.adm(B, &resolve);
    assert!(
        sized.code == Some(4) && sized.stderr.contains("E0203"),
        "{sized:?}"
    );
    cluster
        .adm(B, &[&resolve[..], &["--yes-discard"]].concat())
        .ok();
    let whole = cluster.wait_both_up_to_date(B);
    assert_eq!(whole["forced"], false);
    let again = cluster.adm(B, &resolve);
    assert!(
        again.code == Some(4) && again.stderr.contains("E0413"),
        "{again:?}"
    );
    drop(nbd);
    cluster.kill(A);
    cluster.kill(B);
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(a == b, "both disks hold the same");
}
