//! `node drain`, `maintenance`, `confirm-fenced`: what a node leaves to people.

use serde_json::Value;

use crate::cluster::{A, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::tools::wait_for;

/// Waits until `node` could take over but for what an operator took from it.
#[track_caller]
fn wait_held_back(cluster: &Cluster, node: usize, word: &str) {
    wait_for("nothing else is in the way", PATIENCE, || {
        let ran = cluster.adm(node, &["why", RES, "-o", "json"]);
        let why: Value = serde_json::from_str(&ran.stdout).ok()?;
        let unmet: Vec<_> = why["preconditions"]
            .as_array()?
            .iter()
            .filter(|it| it["met"] == false)
            .collect();
        let alone = unmet.len() == 1 && unmet[0]["name"] == "allowed";
        (alone && why["summary"].as_str()?.contains(word)).then_some(())
    });
    assert_eq!(cluster.status(node).unwrap()["role"], "Secondary");
}

fn told(cluster: &Cluster, node: usize) -> Value {
    let ran = cluster.adm(node, &["status", "--json"]);
    let mut status: Value = serde_json::from_str(&ran.stdout).unwrap();
    status["cluster"].take()
}

/// A is drained and stays so across a restart; then the whole pair is in maintenance, which a node that
/// is told alone leaves alone.
#[test]
fn a_drained_node_and_a_pair_in_maintenance_take_nothing_over_until_told() {
    let mut cluster = Cluster::serving(&Setup::default());
    let two = cluster.adm(A, &["node", "resume", NAMES[B]]);
    assert_eq!(two.code, Some(7), "--node names another: {two:?}");
    let plan = cluster.adm(A, &["node", "drain", NAMES[A], "--dry-run"]);
    assert!(
        plan.code == Some(14) && plan.stdout.contains("move to kvm-b"),
        "{plan:?}"
    );
    let drained = cluster.adm(A, &["node", "drain", NAMES[A]]);
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert!(drained.stderr.contains("1 moved to kvm-b"), "{drained:?}");
    cluster.wait_both_up_to_date(B);
    cluster.kill(A);
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
    assert_eq!(told(&cluster, A)["standby"], true);
    let alive = cluster.adm(A, &["confirm-fenced", NAMES[B]]);
    assert!(
        alive.code == Some(4) && alive.stderr.contains("E0426"),
        "{alive:?}"
    );
    cluster.kill(B);
    wait_held_back(&cluster, A, "standby");
    cluster.adm(A, &["node", "resume", NAMES[A]]).ok();
    cluster.wait_status(A, "it serves", |status| status["role"] == "Primary");
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    for node in [A, B] {
        cluster.adm(node, &["maintenance", "on"]).ok();
        let told = told(&cluster, node);
        assert!(
            told["maintenance"] == true && told["problems"] == 1,
            "{told}"
        );
    }
    cluster.kill(A);
    wait_held_back(&cluster, B, "maintenance");
    cluster.adm(B, &["maintenance", "off"]).ok();
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
}
