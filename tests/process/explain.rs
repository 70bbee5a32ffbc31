//! `why`, `quorum show` and `history` on real processes: the words fit what happens.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{A, ARBITRATOR, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::wait_for;

const LIMIT: Duration = Duration::from_secs(5);

#[track_caller]
fn json(cluster: &Cluster, asked: usize, words: &[&str]) -> Value {
    let words = [words, &["-o", "json"]].concat();
    let text = cluster.adm(asked, &words).ok();
    serde_json::from_str(&text).expect("JSON")
}

#[track_caller]
fn why(cluster: &Cluster, asked: usize, about: usize) -> Value {
    let report = json(cluster, asked, &["why", RES, NAMES[about]]);
    assert_eq!(report["schema"], "twinblk.why/1");
    assert_eq!(report["node"], NAMES[about]);
    report
}

/// Whether a precondition holds; `null` if it does not arise.
fn met<'v>(report: &'v Value, name: &str) -> &'v Value {
    let all = report["preconditions"].as_array().unwrap();
    let found = all.iter().find(|it| it["name"] == name);
    &found.unwrap_or_else(|| panic!("no {name} in {report:#}"))["met"]
}

#[track_caller]
fn wait_why(cluster: &Cluster, about: usize, verdict: &str) -> Value {
    let mut last = Value::Null;
    wait_for(&format!("{} is {verdict}", NAMES[about]), PATIENCE, || {
        last = why(cluster, about, about);
        (last["verdict"] == verdict).then(|| last.clone())
    })
}

#[test]
fn why_says_what_keeps_a_node_from_being_primary_and_what_helps() {
    let mut cluster = Cluster::serving(&Setup::default());
    let primary = why(&cluster, B, A);
    assert_eq!(primary["verdict"], "primary", "{primary:#}");
    assert_eq!(primary["lease"]["needed"], true);
    assert_eq!(met(&primary, "lease"), true);
    assert_eq!(met(&primary, "gate"), true);
    let secondary = why(&cluster, A, B);
    assert_eq!(secondary["verdict"], "secondary", "{secondary:#}");
    assert_eq!(met(&secondary, "peer-gone"), false);
    assert_eq!(met(&secondary, "in-sync"), true);
    assert_eq!(met(&secondary, "founded"), &Value::Null);
    assert_eq!(secondary["force_loses_bytes"], 0);
    assert!(secondary["grant"]["remaining_seconds"].as_f64().unwrap() > 0.0);
    let text = cluster.adm(B, &["why", RES]).ok();
    assert!(
        text.starts_with("kvm-b is Secondary for vm-web: kvm-a is Primary"),
        "{text}"
    );
    assert!(text.contains("twinadm move vm-web kvm-b"), "{text}");
    wait_for("all three are seen", PATIENCE, || {
        let text = cluster.adm(B, &["why", RES]).ok();
        text.contains("3 of 3 seen, 2 needed").then_some(())
    });

    // Stopped by hand: an order helps, and nothing else is missing.
    cluster.adm(A, &["secondary", RES]).ok();
    for node in [A, B] {
        let held = wait_why(&cluster, node, "awaits-order");
        assert_eq!(met(&held, "not-held"), false, "{held:#}");
        let help = held["help"].to_string();
        assert!(help.contains("twinadm primary"), "{help}");
    }
    cluster.adm(A, &["primary", RES]).ok();
    cluster.wait_both_up_to_date(A);

    // A replica that misses writes: no order helps, and it is told what force would lose.
    cluster.adm(A, &["pause-sync", RES]).ok();
    cluster.kill(B);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    for nr in 0..16 {
        nbd.write(nr << 16, &[7; 1 << 16]).unwrap();
    }
    cluster.start(B);
    cluster.wait_status(B, "its resync is held", |status| {
        status["peers"][0]["volumes"][0]["replication"] == "PausedSyncT"
    });
    let behind = why(&cluster, B, B);
    assert_eq!(met(&behind, "in-sync"), false, "{behind:#}");
    assert_eq!(met(&behind, "whole"), &Value::Null, "told once");
    assert!(behind["force_loses"].as_str().unwrap().contains("kvm-a"));
    assert!(
        behind["force_loses_bytes"].as_u64() >= Some(1 << 20),
        "{behind:#}"
    );
    assert_eq!(behind["verdict"], "blocked");
    let solo = why(&cluster, A, A);
    assert_eq!(solo["lease"]["needed"], false);
    drop(nbd);
    cluster.adm(A, &["resume-sync", RES]).ok();
    cluster.wait_both_up_to_date(A);

    // Alone: it would take over, but for the voters.
    cluster.kill(ARBITRATOR);
    cluster.kill(A);
    let alone = wait_for("its grant is over", PATIENCE, || {
        let report = why(&cluster, B, B);
        (met(&report, "peer-gone") == true && met(&report, "majority") == false).then_some(report)
    });
    assert_eq!(alone["verdict"], "waiting", "{alone:#}");
    let text = cluster.adm(B, &["why", RES]).ok();
    assert!(text.contains("kvm-b sees 1 of 3 voters"), "{text}");
    assert!(text.contains("kvm-a silent for"), "{text}");

    for (words, code) in [
        (vec!["why", "vm-none"], 7),
        (vec!["why", RES, "kvm-z"], 7),
        (vec!["why", RES, "kvm-a"], 6),
    ] {
        cluster.adm(B, &words).exits(code);
    }
}

#[test]
fn quorum_show_names_the_voters_and_what_they_recorded() {
    let mut cluster = Cluster::serving(&Setup::default());
    for node in [A, B, ARBITRATOR] {
        // The arbitrator and the data nodes greet each other once a second.
        let report = wait_for("all three are seen", PATIENCE, || {
            let report = json(&cluster, node, &["quorum", "show"]);
            (report["votes_seen"] == 3).then_some(report)
        });
        assert_eq!(report["schema"], "twinblk.quorum/1");
        assert_eq!(report["quorum"], true);
        let ids: Vec<_> = report["voters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["id"])
            .collect();
        assert!(ids.iter().all(|id| id.is_string()), "{report:#}");
        let record = &report["resources"][0];
        assert_eq!(record["accepted_view"]["primary"], "kvm-a", "{report:#}");
        assert_eq!(record["recorded"].as_array().unwrap().len(), 3);
        assert_eq!(report["timing"]["profile"], "fast");
    }
    cluster.kill(ARBITRATOR);
    let text = wait_for("its silence is noticed", PATIENCE, || {
        let text = cluster.adm(A, &["quorum", "show"]).ok();
        text.contains("arb arbitrator silent for").then_some(text)
    });
    assert!(text.contains("the arbitrator is away"), "{text}");
    assert!(
        text.contains("takes over after 0.65 s of silence"),
        "{text}"
    );
}

fn history(cluster: &Cluster, node: usize) -> Vec<Value> {
    let report = json(cluster, node, &["history", RES, "--last", "1000"]);
    assert_eq!(report["schema"], "twinblk.history/1");
    report["entries"].as_array().unwrap().clone()
}

fn has(entries: &[Value], kind: &str, words: &str) -> bool {
    entries
        .iter()
        .any(|it| it["kind"] == kind && it["text"].as_str().unwrap().contains(words))
}

/// Story: a takeover at night. In the morning both nodes say what was decided, by whom and why, though
/// their daemons were killed and one file ends in the middle of a line.
#[test]
fn decisions_explain_themselves_after_a_restart_too() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster.adm(B, &["move", RES, NAMES[B]]).ok();
    cluster.wait_both_up_to_date(B);
    cluster.kill(B);
    cluster.wait_status(A, "it serves", |status| status["role"] == "Primary");
    let entries = history(&cluster, A);
    assert!(
        has(
            &entries,
            "order",
            "move to kvm-b: vm-web moved from kvm-a to kvm-b"
        ),
        "{entries:#?}"
    );
    assert!(has(&entries, "secondary", "so ordered"), "{entries:#?}");
    assert!(
        has(&entries, "takeover", "kvm-b was silent"),
        "{entries:#?}"
    );
    assert!(has(
        &entries,
        "view",
        "(TookOver), Primary kvm-a: kvm-a serves instead of kvm-b"
    ));
    assert!(has(&entries, "primary", "Primary here in view"));
    let by_user = entries.iter().find(|it| it["kind"] == "order").unwrap();
    assert!(
        by_user["by"].as_str().unwrap().starts_with("user "),
        "{by_user}"
    );
    let refused = cluster.adm(A, &["move", RES, NAMES[B]]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    cluster.kill(A);
    let path = cluster.dir.join("kvm-b/state/history.log");
    let mut file = File::options().append(true).open(path).unwrap();
    file.write_all(b"00000000 {\"resource\":\"vm-web\",\"unix_mil")
        .unwrap();
    for node in [A, B] {
        cluster.start(node);
    }
    let serving = wait_for("one of them serves", PATIENCE, || {
        [A, B].into_iter().find(|node| {
            let status = cluster.status(*node);
            status.is_some_and(|status| status["role"] == "Primary")
        })
    });
    cluster.wait_both_up_to_date(serving);
    let entries = history(&cluster, A);
    assert!(
        has(&entries, "takeover", "kvm-b was silent"),
        "{entries:#?}"
    );
    assert!(
        has(&entries, "order", "move to kvm-b refused, E0419"),
        "{entries:#?}"
    );
    let entries = history(&cluster, B);
    assert!(
        has(&entries, "takeover", "kvm-a said that it serves no more"),
        "{entries:#?}"
    );
    assert!(has(&entries, "view", "(Added)"), "{entries:#?}");
    let text = cluster.adm(A, &["history", RES, "--last", "2"]).ok();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.starts_with("(there were more before)"), "{text}");
    let explained = why(&cluster, A, A);
    assert_eq!(explained["history"].as_array().unwrap().len(), 3);
    cluster.adm(A, &["history", "vm-none"]).exits(7);
    cluster.adm(ARBITRATOR, &["history", RES]).exits(4);
}

/// A Primary whose peer stands still holds its guests, and says for whom it waits.
#[test]
fn why_tells_a_primary_without_a_lease_from_one_that_serves() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster.kill(ARBITRATOR);
    cluster.signal(B, Signal::SIGSTOP);
    let held = wait_for("the lease is over", PATIENCE, || {
        let report = why(&cluster, A, A);
        (report["lease"]["lapsed"] == true).then_some(report)
    });
    assert_eq!(held["verdict"], "primary", "{held:#}");
    assert_eq!(met(&held, "lease"), false);
    assert!(
        held["summary"]
            .as_str()
            .unwrap()
            .contains("requests wait for kvm-b")
    );
    assert!(held["help"].to_string().contains("twinadm quorum show"));
    cluster.signal(B, Signal::SIGCONT);
    wait_for("the lease is back", PATIENCE, || {
        (why(&cluster, A, A)["lease"]["lapsed"] == false).then_some(())
    });
}

/// The only resource's fate if `dead` died now.
#[track_caller]
fn fate(cluster: &Cluster, asked: usize, dead: usize) -> Value {
    let report = json(cluster, asked, &["what-if", "kill", NAMES[dead]]);
    assert_eq!(report["schema"], "twinblk.what-if/1");
    assert_eq!(report["dead"], NAMES[dead]);
    assert_ne!(report["node"], NAMES[dead], "the dead tell nothing");
    report["resources"][0].clone()
}

#[track_caller]
fn wait_fate(cluster: &Cluster, asked: usize, dead: usize, wanted: &str) -> Value {
    wait_for(
        &format!("without {} it {wanted}", NAMES[dead]),
        PATIENCE,
        || {
            let told = fate(cluster, asked, dead);
            (told["fate"] == wanted).then_some(told)
        },
    )
}

#[test]
fn what_if_foretells_what_then_happens() {
    let mut cluster = Cluster::serving(&Setup::default());
    for asked in [A, B, ARBITRATOR] {
        let moves = wait_fate(&cluster, asked, A, "moves");
        assert_eq!(moves["primary_now"], "kvm-a");
        assert_eq!(moves["primary_then"], "kvm-b");
        assert_eq!(moves["after_seconds"], 0.65);
        let goes_on = wait_fate(&cluster, asked, B, "goes-on");
        assert_eq!(goes_on["primary_then"], "kvm-a");
        assert_eq!(fate(&cluster, asked, ARBITRATOR)["fate"], "unaffected");
    }
    let text = cluster.adm(A, &["what-if", "kill", "arb"]).ok();
    assert!(text.contains("the arbitrator is away"), "{text}");
    cluster.adm(A, &["what-if", "kill", "kvm-z"]).exits(7);

    cluster.kill(ARBITRATOR);
    let nobody = wait_fate(&cluster, B, A, "nobody-serves");
    assert!(
        nobody["why"].to_string().contains("sees 1 of 3 voters"),
        "{nobody}"
    );
    assert!(!nobody["help"].as_array().unwrap().is_empty());
    let held = wait_fate(&cluster, A, B, "held");
    assert_eq!(held["primary_then"], Value::Null);
    cluster.kill(A);
    let alone = wait_for("its grant is over", PATIENCE, || {
        let report = why(&cluster, B, B);
        (met(&report, "peer-gone") == true).then_some(report)
    });
    assert_eq!(alone["verdict"], "waiting", "as foretold: {alone:#}");
    cluster.start(ARBITRATOR);
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
}
