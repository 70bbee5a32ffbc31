//! `invalidate` and `invalidate-remote` with real processes.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{A, B, Cluster, NAMES, RES, Setup};
use crate::nbd::Nbd;

const LIMIT: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// The pair as `node` sees it.
fn pair(status: &Value) -> &Value {
    &status["peers"][0]["volumes"][0]
}

/// Bytes of B's backing file change, and nobody is told.
fn spoil(cluster: &Cluster) {
    cluster.wait_status(A, "it goes on alone", |status| {
        status["in_sync"].as_array().is_some_and(|it| it.len() == 1)
    });
    let file = OpenOptions::new()
        .write(true)
        .open(cluster.disk(B))
        .unwrap();
    for at in [0, 5 * MIB + 4096, 63 * MIB] {
        file.write_all_at(b"not what the Primary wrote", at)
            .unwrap();
    }
}

fn assert_disks_equal(cluster: &mut Cluster) {
    cluster.kill(B);
    cluster.kill(A);
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(a == b, "both disks hold the same");
}

/// All of it was copied, and `status` says why.
fn wait_copied(cluster: &Cluster) {
    cluster.wait_both_up_to_date(A);
    for node in [A, B] {
        cluster.wait_status(node, "all of it was copied", |status| {
            let last = &pair(status)["last_resync"];
            let why = last["why"].as_str().unwrap_or_default();
            why.contains("invalidate") && last["checked_bytes"] == 64 * MIB
        });
    }
}

#[test]
fn a_secondary_thrown_away_is_copied_whole_while_guests_write() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(5 * MIB, &vec![7; 1 << 20]).unwrap();
    nbd.flush().unwrap();
    cluster.kill(B);
    spoil(&cluster);
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    let order = ["invalidate", RES, "--from", NAMES[A]];
    let mut plan = order.to_vec();
    plan.push("--dry-run");
    let plan = cluster.adm(B, &plan);
    assert_eq!(plan.code, Some(14), "{plan:?}");
    let view = cluster.status(B).unwrap()["view"].as_u64().unwrap();
    cluster.adm(B, &order).ok();
    nbd.write(9 * MIB, &vec![9; 1 << 20]).unwrap();
    nbd.flush().unwrap();
    wait_copied(&cluster);
    let now = cluster.status(B).unwrap()["view"].as_u64().unwrap();
    assert!(now >= view + 2, "it left the view and was added again");
    drop(nbd);
    assert_disks_equal(&mut cluster);
}

#[test]
fn the_primary_orders_it_for_its_peer() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster.kill(B);
    spoil(&cluster);
    let refused = cluster.adm(A, &["invalidate-remote", RES, "--peer", NAMES[B]]);
    assert_eq!(refused.code, Some(6), "B is not there: {refused:?}");
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    cluster
        .adm(A, &["invalidate-remote", RES, "--peer", NAMES[B]])
        .ok();
    wait_copied(&cluster);
    assert_disks_equal(&mut cluster);
}

#[test]
fn it_is_refused_where_data_would_be_lost_and_done_once_when_asked_twice() {
    let mut cluster = Cluster::serving(&Setup::default());
    let on_primary = cluster.adm(A, &["invalidate", RES, "--from", NAMES[B]]);
    assert_eq!(on_primary.code, Some(4), "{on_primary:?}");
    assert!(on_primary.stderr.contains("E0408"), "{on_primary:?}");
    assert!(on_primary.stderr.contains("twinadm secondary"));
    assert_eq!(
        cluster.adm(B, &["invalidate", RES, "--from", "kvm-c"]).code,
        Some(7)
    );
    assert_eq!(cluster.adm(B, &["invalidate", RES]).code, Some(2));
    assert_eq!(
        cluster
            .adm(B, &["invalidate", "all", "--from", NAMES[A]])
            .code,
        Some(2)
    );
    // Held so slow that the second order finds the first one's resync.
    cluster
        .adm(A, &["resync", RES, "--max-rate", "1MiB/s"])
        .ok();
    cluster
        .adm(B, &["invalidate", RES, "--from", NAMES[A]])
        .ok();
    let status = cluster.wait_status(B, "it is copied again", |status| {
        pair(status)["replication"] == "SyncTarget"
    });
    assert_eq!(status["volumes"][0]["disk"], "Inconsistent");
    assert!(
        pair(&status)["resync"]["total_bytes"] == 64 * MIB,
        "{status}"
    );
    let again = cluster.adm(B, &["invalidate", RES, "--from", NAMES[A]]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stderr.contains("already"), "{again:?}");
    cluster.kill(B);
    // A's is the only copy now, and nobody is there to copy from.
    cluster.adm(A, &["secondary", RES]).ok();
    let only = cluster.adm(A, &["invalidate", RES, "--from", NAMES[B]]);
    assert_eq!(only.code, Some(4), "{only:?}");
    assert!(only.stderr.contains("only up-to-date copy"), "{only:?}");
    cluster.start(B);
    cluster.adm(A, &["primary", RES]).ok();
    cluster
        .adm(A, &["resync", RES, "--max-rate", "unlimited"])
        .ok();
    cluster.wait_both_up_to_date(A);
    assert_disks_equal(&mut cluster);
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_copy_or_one_to_be_copied_whole() {
    let mut cluster = Cluster::serving(&Setup::default());
    for (round, victim) in [(0, B), (1, A), (2, B)] {
        let order = ["invalidate", RES, "--from", NAMES[A]];
        cluster.adm(B, &order).ok();
        if round == 2 {
            cluster.wait_status(B, "some of it is copied", |status| {
                pair(status)["replication"] != "Established"
            });
        }
        cluster.kill(victim);
        cluster.start(victim);
        cluster.wait_both_up_to_date(A);
    }
    assert_disks_equal(&mut cluster);
}

#[test]
fn what_only_one_replica_has_is_lost_only_by_its_size() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(5 * MIB, &vec![7; 1 << 20]).unwrap();
    drop(nbd);
    cluster.kill(A);
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
    cluster.adm(B, &["disconnect", RES]).ok();
    cluster.start(A);
    // What A wrote last may be on its disk alone, and it is not connected.
    cluster.wait_status(A, "it knows that it is behind", |status| {
        status["volumes"][0]["disk"] == "Outdated"
            && pair(status)["out_of_sync_bytes"].as_u64() > Some(0)
            && status["peers"][0]["last_seen_seconds"].is_number()
    });
    let order = |more: &[&str]| {
        let words = ["invalidate", RES, "--from", NAMES[B]];
        cluster.adm(A, &[&words, more].concat())
    };
    let refused = order(&[]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.stderr.contains("E0203"), "{refused:?}");
    assert!(refused.stderr.contains("1024 blocks"), "{refused:?}");
    assert!(refused.stderr.contains("--yes-discard=4MiB"), "{refused:?}");
    assert_eq!(order(&["--yes-discard=3MiB"]).code, Some(4));
    order(&["--yes-discard=4MiB"]).ok();
    let status = cluster.status(A).unwrap();
    assert_eq!(status["volumes"][0]["disk"], "Inconsistent");
    cluster.adm(B, &["connect", RES]).ok();
    cluster.wait_both_up_to_date(B);
    assert_disks_equal(&mut cluster);
}
