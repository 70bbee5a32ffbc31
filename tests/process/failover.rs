//! What the first page promises: kill the Primary, the other serves, the dead one comes back.

use std::fs;
use std::time::Duration;

use crate::cluster::{A, ARBITRATOR, B, Cluster, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{have, now, program, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

/// By hand as on the first page: qemu-io writes, the Primary is killed, the peer serves the same
/// data, the killed one returns by itself and only what changed is copied.
#[test]
fn a_killed_primary_is_replaced_and_returns_with_only_the_changes_copied() {
    if !have(&["qemu-io"]) {
        return;
    }
    let mut cluster = Cluster::serving(&Setup {
        disk_len: 256 << 20,
        ..Setup::default()
    });
    qemu_io(&cluster, A, &["write -P 0x5a 1M 3M", "flush"]);

    let killed = now();
    cluster.kill(A);
    let mut nbd = wait_for("the peer serves", LIMIT, || {
        Nbd::attach(&cluster.nbd_socket(B), RES, Duration::from_secs(1)).ok()
    });
    assert!(
        nbd.read(1 << 20, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x5a)
    );
    assert!(
        killed.elapsed() < LIMIT,
        "served after {:?}",
        killed.elapsed()
    );
    drop(nbd);
    qemu_io(
        &cluster,
        B,
        &["read -P 0x5a 1M 3M", "write -P 0xa5 8M 64k", "flush"],
    );

    cluster.start(A);
    let status = cluster.wait_both_up_to_date(B);
    let copied = status["peers"][0]["volumes"][0]["last_resync"]["copied_bytes"]
        .as_u64()
        .unwrap();
    assert!(
        copied >= 64 << 10,
        "what was written meanwhile is copied: {copied}"
    );
    assert!(copied < 32 << 20, "and not the whole volume: {copied}");
    let returned =
        cluster.wait_status(A, "it is Secondary", |status| status["role"] == "Secondary");
    assert_eq!(returned["volumes"][0]["disk"], "UpToDate");
    cluster.kill(B);
    cluster.kill(A);
    assert!(same_bytes(&cluster), "both disks hold the same");
}

/// A planned change of places needs no failure and loses nothing either.
#[test]
fn roles_change_places_by_hand() {
    let cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[7; 4096]).unwrap();
    drop(nbd);
    cluster.adm(A, &["secondary", RES]).ok();
    cluster.adm(B, &["primary", RES]).ok();
    cluster.wait_both_up_to_date(B);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [7; 4096]);
    assert!(
        Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).is_err(),
        "a Secondary serves nobody"
    );
}

/// Both die at once; whichever comes first, what was acknowledged is there.
#[test]
fn both_killed_at_once_come_back_in_either_order() {
    for first in [A, B] {
        let mut cluster = Cluster::serving(&Setup::default());
        let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
        nbd.write(0, &[9; 4096]).unwrap();
        cluster.kill(A);
        cluster.kill(B);
        cluster.start(first);
        cluster.start(1 - first);
        let serving = wait_for("one of them serves", crate::cluster::PATIENCE, || {
            [A, B].into_iter().find(|node| {
                cluster
                    .status(*node)
                    .is_some_and(|status| status["role"] == "Primary")
            })
        });
        cluster.wait_both_up_to_date(serving);
        let mut nbd = Nbd::attach(&cluster.nbd_socket(serving), RES, LIMIT).unwrap();
        assert_eq!(nbd.read(0, 4096).unwrap(), [9; 4096]);
    }
}

/// An orderly stop of an idle Primary needs no failover: the peer serves before the daemon is gone.
#[test]
fn a_stopped_primary_without_a_client_hands_over_first() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[3; 4096]).unwrap();
    drop(nbd);
    wait_for("the client is gone", LIMIT, || {
        let clients = cluster.status(A)?["volumes"][0]["nbd_clients"].as_u64();
        (clients == Some(0)).then_some(())
    });
    cluster.terminate(A, LIMIT);
    let log = cluster.logs();
    assert!(log.contains("handed over"), "{log}");
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [3; 4096]);
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
}

/// With a client attached the daemon is expected back within the client's reconnect delay.
#[test]
fn a_stopped_primary_with_a_client_serves_again_when_it_returns() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[3; 4096]).unwrap();
    cluster.terminate(A, LIMIT);
    drop(nbd);
    cluster.start(A);
    let serving = wait_for("one of them serves", crate::cluster::PATIENCE, || {
        [A, B].into_iter().find(|node| {
            cluster
                .status(*node)
                .is_some_and(|status| status["role"] == "Primary")
        })
    });
    let mut nbd = Nbd::attach(&cluster.nbd_socket(serving), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [3; 4096]);
    cluster.wait_both_up_to_date(serving);
}

/// Story: both hosts are shut down for a night, the Primary with its guest still attached. Nothing
/// was lost, so nothing may be said to be: no replica waits for the other's data, no view is lossy.
#[test]
fn a_planned_stop_and_reboot_of_both_loses_nothing() {
    for order in [[A, B], [B, A]] {
        let mut cluster = Cluster::serving(&Setup::default());
        let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
        nbd.write(0, &[7; 4096]).unwrap();
        for node in order {
            cluster.terminate(node, LIMIT);
        }
        drop(nbd);
        cluster.terminate(ARBITRATOR, LIMIT);
        for node in [A, B] {
            assert!(cluster.reboot(node), "left open\n{}", cluster.logs());
        }
        // Alone it would have to wait for the peer, had its replica lost writes.
        cluster.start(ARBITRATOR);
        cluster.start(A);
        let status = cluster.wait_status(A, "it serves", |status| status["role"] == "Primary");
        assert_eq!(status["lossy"], false, "{}", cluster.logs());
        let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
        assert_eq!(nbd.read(0, 4096).unwrap(), [7; 4096]);
        cluster.start(B);
        let status = cluster.wait_both_up_to_date(A);
        assert_eq!(status["lossy"], false, "{}", cluster.logs());
    }
}

/// A new resource whose peer never came is promoted alone, by its node and the arbitrator, and the
/// peer joins when it comes.
#[test]
fn a_first_primary_needs_only_the_arbitrator() {
    let mut cluster = Cluster::new(&Setup::default());
    for node in [A, B] {
        cluster.adm(node, &["create-md", RES]).ok();
    }
    cluster.start(A);
    cluster.start(ARBITRATOR);
    cluster.adm(A, &["up", RES]).ok();
    cluster.adm(A, &["primary", RES]).ok();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(4096, &[1; 8192]).unwrap();
    drop(nbd);
    cluster.start(B);
    cluster.adm(B, &["up", RES]).ok();
    cluster.wait_both_up_to_date(A);
    cluster.kill(A);
    cluster.kill(B);
    assert!(same_bytes(&cluster));
}

fn qemu_io(cluster: &Cluster, node: usize, commands: &[&str]) {
    let uri = cluster.nbd_uri(node);
    let mut arguments = vec!["-f", "raw", uri.as_str()];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    let said = program("qemu-io", &arguments).ok();
    assert!(!said.contains("Pattern verification failed"), "{said}");
}

fn same_bytes(cluster: &Cluster) -> bool {
    fs::read(cluster.disk(A)).unwrap() == fs::read(cluster.disk(B)).unwrap()
}
