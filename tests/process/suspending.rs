//! `suspend-io` and `resume-io` with real processes.

use std::thread;
use std::time::Duration;

use crate::cluster::{A, B, Cluster, NAMES, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::hold_for;

const LIMIT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

#[test]
fn suspended_writes_wait_both_disks_are_equal_and_whoever_would_undo_it_is_refused() {
    let cluster = Cluster::serving(&Setup::default());
    let attach = || Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    let (mut writer, mut reader) = (attach(), attach());
    writer.write(5 * MIB, &vec![7; 1 << 20]).unwrap();
    let plan = cluster.adm(A, &["suspend-io", RES, "--dry-run"]);
    assert_eq!(plan.code, Some(14), "{plan:?}");
    let elsewhere = cluster.adm(B, &["suspend-io", RES]).exits(4);
    assert!(
        elsewhere.contains(&format!("--node {}", NAMES[A])),
        "{elsewhere}"
    );

    let told = cluster.adm(A, &["suspend-io", RES]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("both disks hold the same"), "{told:?}");
    cluster.adm(A, &["suspend-io", RES]).ok();
    // What snapshots of the backing devices would hold.
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(
        a == b && a[5 << 20] == 7,
        "both disks hold what was written"
    );
    let waits = thread::spawn(move || writer.write(5 * MIB, &vec![9; 1 << 20]));
    let status = cluster.status(A).unwrap();
    assert_eq!(status["suspended"], "user", "{status}");
    assert_eq!(status["problem"], "W0150", "{status}");
    assert_eq!(cluster.adm(A, &["status", "--check"]).code, Some(13));
    hold_for(Duration::from_millis(300), || {
        assert!(!waits.is_finished(), "it is suspended");
        assert_eq!(reader.read(7 * MIB, 4096).unwrap(), vec![0; 4096]);
    });
    for order in [
        &["secondary", RES][..],
        &["down", RES],
        &["move", RES, NAMES[B]],
    ] {
        let refused = cluster.adm(A, order).exits(4);
        assert!(refused.contains("E0450"), "{refused}");
        assert!(refused.contains("twinadm resume-io"), "{refused}");
    }

    cluster.adm(A, &["resume-io", RES]).ok();
    waits.join().unwrap().unwrap();
    assert_eq!(reader.read(5 * MIB, 4096).unwrap(), vec![9; 4096]);
    let status = cluster.status(A).unwrap();
    assert!(status["suspended"].is_null() && status["problem"].is_null());
    // A script that made snapshots meanwhile must see that they may differ.
    let again = cluster.adm(A, &["resume-io", RES]).exits(4);
    assert!(again.contains("E0453"), "{again}");
}
