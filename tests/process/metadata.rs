//! What an administrator does with metadata while daemons run, and after they died.

use crate::cluster::{A, B, Cluster, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::wait_for;

use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// An administrator looks at a node that serves, while its guest writes without a pause: what is
/// shown is whole, nothing is disturbed, and after a SIGKILL the listed extents are seen.
#[test]
fn metadata_is_shown_while_a_guest_writes_and_after_its_daemon_died() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    for round in 0_u64..40 {
        nbd.write(round % 16 * (4 << 20), &[1; 4096]).unwrap();
        let ran = cluster.adm(A, &["dump-md", RES]);
        assert!(ran.stderr.contains("may be changing"), "{ran:?}");
        let shown = ran.ok();
        for part in [
            " in-use:yes\n",
            "\nstate InSync ",
            " ours:yes\n",
            "open:yes",
        ] {
            assert!(shown.contains(part), "{part:?} not in\n{shown}");
        }
    }
    nbd.flush().unwrap();
    let shown = cluster.adm(A, &["show-gi", RES]).ok();
    for part in [
        "\nview number:",
        " in-sync:kvm-a,kvm-b\n",
        "\npeer kvm-b connection:Connected role:Secondary disk:UpToDate ",
        "both are newest",
    ] {
        assert!(shown.contains(part), "{part:?} not in\n{shown}");
    }
    cluster.kill(A);
    let shown = wait_for("the lock is let go", LIMIT, || {
        let shown = cluster.adm(A, &["dump-md", RES]).ok();
        shown.contains(" in-use:no\n").then_some(shown)
    });
    assert!(shown.contains("\nextents first:0 "), "{shown}");
    assert!(!shown.contains("\nmarked blocks:0 "), "{shown}");
}

/// A replica is given up: not while anything uses it, then for good, and the other one serves on.
#[test]
fn metadata_is_erased_only_when_nobody_uses_it() {
    let cluster = Cluster::serving(&Setup::default());
    let wipe = &["wipe-md", RES, "--yes"];
    assert!(cluster.adm(B, wipe).exits(4).contains("twinadm down"));
    cluster.adm(B, &["detach", RES]).ok();
    assert!(
        cluster.adm(B, wipe).exits(4).contains("is up on kvm-b"),
        "without its disk it is up all the same"
    );
    cluster.adm(B, &["attach", RES]).ok();
    cluster.wait_both_up_to_date(A);
    cluster.adm(B, &["down", RES]).ok();
    cluster.adm(B, wipe).ok();
    assert!(cluster.adm(B, wipe).ok().is_empty(), "and once more");
    assert!(cluster.adm(B, &["up", RES]).exits(4).contains("create-md"));

    cluster.adm(B, &["down", RES]).ok();
    // Under the name of one that was trusted, a new one is a stranger (R10).
    cluster.adm(B, &["create-md", RES]).ok();
    let refused = cluster.adm(B, &["up", RES]).exits(4);
    assert!(refused.contains("another replica"), "{refused}");
    assert_eq!(cluster.status(A).unwrap()["role"], "Primary");
}
