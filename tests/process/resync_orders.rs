//! `pause-sync`, `resume-sync` and `resync --max-rate` with real processes.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{A, B, Cluster, NAMES, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{hold_for, now};

const LIMIT: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// The Primary's pair and resync as `node` sees them.
fn pair(status: &Value) -> &Value {
    &status["peers"][0]["volumes"][0]
}

fn write(nbd: &mut Nbd, mib: u64, byte: u8) {
    let piece = vec![byte; 256 << 10];
    for nr in 0..mib * 4 {
        nbd.write(nr * MIB / 4, &piece).unwrap();
    }
}

/// B was away while A's guests wrote so much, and is back.
fn with_a_peer_behind_by(cluster: &mut Cluster, mib: u64) -> Nbd {
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    cluster.kill(B);
    write(&mut nbd, mib, 7);
    cluster.start(B);
    nbd
}

fn assert_disks_equal(cluster: &mut Cluster) {
    cluster.kill(B);
    cluster.kill(A);
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(a == b, "both disks hold the same");
}

#[test]
fn a_held_resync_waits_while_guests_write_and_goes_on_when_told() {
    let mut cluster = Cluster::serving(&Setup::default());
    let plan = cluster.adm(A, &["pause-sync", RES, "--dry-run"]);
    assert_eq!(plan.code, Some(14), "{plan:?}");
    cluster.adm(A, &["pause-sync", RES]).ok();
    cluster.adm(A, &["pause-sync", RES]).ok();
    let plan = cluster.adm(A, &["pause-sync", RES, "--dry-run"]);
    assert_eq!(plan.code, Some(0), "it is so already: {plan:?}");
    let mut nbd = with_a_peer_behind_by(&mut cluster, 8);
    for (node, state) in [(A, "PausedSyncS"), (B, "PausedSyncT")] {
        let status = cluster.wait_status(node, "its resync is held", |status| {
            pair(status)["replication"] == state
        });
        assert_eq!(pair(&status)["resync"]["held"], "paused:user");
        assert_eq!(pair(&status)["resync"]["eta_seconds"], Value::Null);
    }
    let written = now();
    write(&mut nbd, 1, 9);
    nbd.flush().unwrap();
    assert!(written.elapsed() < LIMIT, "guests do not wait for it");
    hold_for(Duration::from_secs(2), || {
        let status = cluster.status(A).unwrap();
        assert_eq!(status["in_sync"].as_array().unwrap().len(), 1, "{status}");
        assert_eq!(pair(&status)["disk"], "Inconsistent");
    });
    let text = cluster.adm(B, &["status", RES]).ok();
    assert!(text.contains("paused:user"), "{text}");
    let resume = format!("twinadm resume-sync {RES} --node {}", NAMES[A]);
    assert!(text.replace("\n        ", " ").contains(&resume), "{text}");
    assert_eq!(cluster.adm(A, &["status", "--check"]).code, Some(12));
    let told = cluster.adm(B, &["resume-sync", RES]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(
        told.stderr.contains(&resume),
        "it is A that holds it: {told:?}"
    );
    cluster.adm(A, &["resume-sync", RES]).ok();
    cluster.wait_both_up_to_date(A);
    drop(nbd);
    assert_disks_equal(&mut cluster);
}

#[test]
fn a_limit_is_kept_to_shown_and_lifted() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster
        .adm(A, &["resync", RES, "--max-rate", "1MiB/s"])
        .ok();
    let plan = cluster.adm(A, &["resync", RES, "--max-rate", "1MiB/s", "--dry-run"]);
    assert_eq!(plan.code, Some(0), "it is so already: {plan:?}");
    let nbd = with_a_peer_behind_by(&mut cluster, 24);
    for node in [A, B] {
        let status = cluster.wait_status(node, "the limit is shown", |status| {
            pair(status)["resync"]["limit_bytes_per_second"] == MIB
        });
        assert_eq!(status["resync_limit_bytes_per_second"], MIB);
    }
    let done = |cluster: &Cluster| {
        let status = cluster.status(A).unwrap();
        pair(&status)["resync"]["done_bytes"].as_u64().unwrap()
    };
    let (began, before) = (now(), done(&cluster));
    hold_for(Duration::from_secs(3), || {});
    let (passed, copied) = (began.elapsed().as_secs_f64(), done(&cluster) - before);
    #[allow(clippy::cast_precision_loss, reason = "a few MiB")]
    let rate = copied as f64 / passed / MIB as f64;
    assert!((0.5..1.5).contains(&rate), "{rate} MiB/s");
    cluster
        .adm(B, &["resync", RES, "--max-rate", "unlimited"])
        .ok();
    cluster.wait_both_up_to_date(A);
    drop(nbd);
    assert_disks_equal(&mut cluster);
}

#[test]
fn orders_about_resyncs_are_refused_where_there_is_nothing_to_order() {
    let cluster = Cluster::serving(&Setup::default());
    cluster.adm(B, &["down", RES]).ok();
    let orders: [&[&str]; 3] = [
        &["pause-sync", RES],
        &["resume-sync", RES],
        &["resync", RES, "--max-rate", "auto"],
    ];
    for order in orders {
        let refused = cluster.adm(B, order);
        assert_eq!(refused.code, Some(4), "{refused:?}");
        assert!(refused.stderr.contains("E0405"), "{refused:?}");
        assert!(refused.stderr.contains("twinadm up"), "{refused:?}");
    }
    assert_eq!(cluster.adm(A, &["pause-sync", "vm-none"]).code, Some(7));
    assert_eq!(cluster.adm(A, &["resync", RES]).code, Some(2));
}
