//! `verify` with real processes: bytes of a backing file change, and it finds and mends them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Bytes of B's backing file change while it is down, and nobody is told: four blocks.
fn spoil(cluster: &mut Cluster) {
    cluster.kill(B);
    cluster.wait_status(A, "it goes on alone", |status| {
        status["in_sync"].as_array().is_some_and(|it| it.len() == 1)
    });
    let file = OpenOptions::new()
        .write(true)
        .open(cluster.disk(B))
        .unwrap();
    for at in [3 * MIB - 1, 9 * MIB, 64 * MIB - 4096] {
        file.write_all_at(b"rot", at).unwrap();
    }
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
}

/// Ends the guest, whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Guests write while `during` runs: blocks 0 to 255, over and over.
fn while_guests_write(cluster: &Cluster, during: impl FnOnce()) {
    let stopped = AtomicBool::new(false);
    let stopped = &stopped;
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    std::thread::scope(|scope| {
        let guest = scope.spawn(move || {
            let mut count = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                let byte = u8::try_from(count % 251).unwrap();
                nbd.write(count * 37 % 256 * 4096, &[byte; 4096]).unwrap();
                count += 1;
            }
            nbd.flush().unwrap();
            count
        });
        let stop = Stop(stopped);
        during();
        drop(stop);
        assert!(guest.join().unwrap() > 10, "guests were served meanwhile");
    });
}

fn assert_disks_equal(cluster: &mut Cluster) {
    cluster.kill(B);
    cluster.kill(A);
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(a == b, "both disks hold the same");
}

#[test]
fn silent_corruption_is_found_told_and_mended_while_guests_write() {
    let mut cluster = Cluster::serving(&Setup::default());
    while_guests_write(&cluster, || {
        cluster.adm(A, &["verify", RES, "--wait"]).ok();
    });
    let status = cluster.status(A).unwrap();
    assert_eq!(pair(&status)["last_verify"]["checked_bytes"], 64 * MIB);
    assert_eq!(pair(&status)["last_verify"]["why"], "done");
    assert_eq!(status["problem"], Value::Null);
    spoil(&mut cluster);
    while_guests_write(&cluster, || {
        let found = cluster.adm(A, &["verify", RES, "--wait"]);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(found.stderr.contains("E1010"), "{found:?}");
        assert!(found.stderr.contains("16.0 KiB of 64.0 MiB"), "{found:?}");
    });
    let status = cluster.status(A).unwrap();
    let last = &pair(&status)["last_verify"];
    assert_eq!(last["differing_bytes"], 4 * 4096);
    assert_eq!(last["ranges"][0]["offset_bytes"], 3 * MIB - 4096);
    assert_eq!(last["ranges"][0]["len_bytes"], 2 * 4096);
    assert_eq!(status["problem"], "W0140");
    assert_eq!(pair(&status)["out_of_sync_bytes"], 0, "nothing is marked");
    assert_eq!(pair(&status)["disk"], "UpToDate");
    // Asked on the Secondary, it is the Primary that does it.
    while_guests_write(&cluster, || {
        let mended = cluster.adm(B, &["verify", RES, "--repair", "--wait"]);
        assert_eq!(mended.code, Some(0), "{mended:?}");
        assert!(mended.stderr.contains("16.0 KiB differed"), "{mended:?}");
    });
    let status = cluster.status(A).unwrap();
    assert_eq!(pair(&status)["last_verify"]["repaired_bytes"], 4 * 4096);
    assert_eq!(status["problem"], Value::Null);
    cluster.adm(A, &["verify", RES, "--wait"]).ok();
    assert_disks_equal(&mut cluster);
}

#[test]
fn one_that_runs_is_shown_stopped_and_ended_by_a_lost_peer() {
    let mut cluster = Cluster::serving(&Setup::default());
    // 64 s for all of it.
    cluster
        .adm(A, &["resync", RES, "--max-rate", "1MiB/s"])
        .ok();
    let plan = cluster.adm(A, &["verify", RES, "--dry-run"]);
    assert_eq!(plan.code, Some(14), "{plan:?}");
    cluster.adm(A, &["verify", RES]).ok();
    for (node, state) in [(A, "VerifyS"), (B, "VerifyT")] {
        cluster.wait_status(node, "it is compared", |status| {
            pair(status)["replication"] == state
        });
    }
    let status = cluster.wait_status(A, "it goes on", |status| {
        pair(status)["verify"]["done_bytes"].as_u64() > Some(0)
    });
    let verify = &pair(&status)["verify"];
    assert_eq!(verify["total_bytes"], 64 * MIB);
    assert_eq!(verify["limit_bytes_per_second"], MIB);
    assert_eq!(status["problem"], Value::Null, "both are up to date");
    let text = cluster.adm(A, &["status", RES]).ok();
    assert!(
        text.contains("64.0 MiB") && text.contains("verify"),
        "{text}"
    );
    let again = cluster.adm(A, &["verify", RES]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stderr.contains("already"), "{again:?}");
    let other = cluster.adm(A, &["verify", RES, "--repair"]);
    assert_eq!(other.code, Some(4), "{other:?}");
    cluster.adm(B, &["verify", RES, "--stop"]).ok();
    let status = cluster.wait_status(A, "it is stopped", |status| {
        pair(status)["replication"] == "Established"
    });
    assert_eq!(pair(&status)["last_verify"]["why"], "stopped by order");
    let again = cluster.adm(A, &["verify", RES, "--stop"]);
    assert!(again.stderr.contains("already"), "{again:?}");
    cluster.adm(A, &["verify", RES]).ok();
    cluster.kill(B);
    cluster.wait_status(A, "it ended", |status| {
        pair(status)["last_verify"]["why"] == "the connection ended"
    });
    cluster.wait_status(A, "it goes on alone", |status| {
        status["in_sync"].as_array().is_some_and(|it| it.len() == 1)
    });
    let refused = cluster.adm(A, &["verify", RES]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    cluster
        .adm(A, &["resync", RES, "--max-rate", "unlimited"])
        .ok();
    cluster.adm(A, &["secondary", RES]).ok();
    let nobody = cluster.adm(B, &["verify", RES]);
    assert_eq!(nobody.code, Some(4), "{nobody:?}");
    assert!(nobody.stderr.contains("E0423"), "{nobody:?}");
    let up = ["primary", RES, "--node", NAMES[A]];
    cluster.adm(B, &up).ok();
    cluster.wait_both_up_to_date(A);
    cluster.wait_status(B, "A serves", |status| {
        status["peers"][0]["role"] == "Primary"
    });
    cluster.adm(B, &["verify", RES, "--wait"]).ok();
    assert_disks_equal(&mut cluster);
}
