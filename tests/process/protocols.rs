//! Protocols A and B and manual failover with real processes: what is promised, and who may take over.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cluster::{A, B, Cluster, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{now, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

fn serving(resource: &'static str) -> Cluster {
    Cluster::serving(&Setup {
        resource,
        ..Setup::default()
    })
}

/// 200 writes of which each was answered before the next, over 40 blocks.
fn write_some(nbd: &mut Nbd) {
    for nr in 0..200_u64 {
        let value = u8::try_from(nr % 251 + 1).unwrap();
        nbd.write(nr % 40 * 4096, &[value; 4096]).unwrap();
    }
}

/// What `write_some` left in each block.
fn newest(block: u64) -> [u8; 4096] {
    [u8::try_from((160 + block) % 251 + 1).unwrap(); 4096]
}

/// The peer's process lives, so what it had received is there.
#[test]
fn under_b_a_killed_primary_costs_nothing_that_was_answered() {
    let mut cluster = serving("protocol = \"B\"\n");
    assert_eq!(cluster.status(A).unwrap()["protocol"], "B");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    write_some(&mut nbd);
    cluster.kill(A);
    let mut nbd = wait_for("the peer serves", LIMIT, || {
        Nbd::attach(&cluster.nbd_socket(B), RES, Duration::from_secs(1)).ok()
    });
    for block in 0..40 {
        assert_eq!(nbd.read(block * 4096, 4096).unwrap(), newest(block));
    }
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
}

#[test]
fn under_manual_failover_nobody_takes_over_without_a_person() {
    let mut cluster = serving("protocol = \"B\"\nfailover = \"manual\"\n");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    write_some(&mut nbd);
    nbd.flush().unwrap();
    let lag = &cluster.status(A).unwrap()["peers"][0]["volumes"][0]["lag_bytes"];
    assert_eq!(lag.as_u64(), Some(0), "all of it is durable on both");
    cluster.kill(A);
    let late = now() + Duration::from_secs(3);
    while now() < late {
        let taken = Nbd::attach(&cluster.nbd_socket(B), RES, Duration::from_millis(200));
        assert!(taken.is_err(), "nobody said so");
    }
    let said = cluster.wait_status(B, "it says whose turn it is", |status| {
        status["status"]
            .as_str()
            .is_some_and(|text| text.contains("failover is manual"))
    });
    assert!(said["action"].as_str().unwrap().contains("twinadm primary"));
    cluster.adm(B, &["primary", RES]).ok();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
    for block in 0..40 {
        assert_eq!(nbd.read(block * 4096, 4096).unwrap(), newest(block));
    }
    assert_eq!(cluster.status(B).unwrap()["lossy"], false);
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
}

/// Guests wait for the local disk alone; a flush waits for both, and a takeover is a person's and said
/// to be one that may have lost something.
#[test]
fn under_a_writes_do_not_wait_for_the_peer_and_a_flush_does() {
    let mut cluster = serving("protocol = \"A\"\nfailover = \"manual\"\n");
    assert_eq!(cluster.status(A).unwrap()["protocol"], "A");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    write_some(&mut nbd);
    nbd.flush().unwrap();
    // While the peer stands still; a machine that does too gets more tries.
    let quick = (0..5).any(|_| {
        cluster.signal(B, Signal::SIGSTOP);
        let begin = now();
        nbd.write(0, &[0xaa; 4096]).unwrap();
        let waited = now() - begin;
        cluster.signal(B, Signal::SIGCONT);
        cluster.wait_both_up_to_date(A);
        waited < Duration::from_millis(50)
    });
    assert!(quick, "five writes waited for the peer");
    nbd.flush().unwrap();
    cluster.kill(A);
    cluster.wait_status(B, "it says whose turn it is", |status| {
        let action = status["action"].as_str().unwrap_or_default();
        action.contains("twinadm primary") && action.contains("is lost then")
    });
    cluster.adm(B, &["primary", RES]).ok();
    assert_eq!(cluster.status(B).unwrap()["lossy"], true);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [0xaa; 4096], "it was flushed");
    for block in 1..40 {
        assert_eq!(nbd.read(block * 4096, 4096).unwrap(), newest(block));
    }
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
}

/// A peer that may lack what guests were told of leaves the view before it is made equal.
#[test]
fn under_a_a_peer_that_comes_back_is_made_equal_outside_the_view() {
    let mut cluster = serving("protocol = \"A\"\nfailover = \"manual\"\n");
    let before = cluster.status(A).unwrap()["view"].as_u64().unwrap();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    write_some(&mut nbd);
    cluster.kill(B);
    cluster.start(B);
    nbd.write(0, &[0xbb; 4096]).unwrap();
    // What was told of the time before B died may still be shown.
    cluster.wait_status(A, "a Remove and an Add", |status| {
        status["view"].as_u64().unwrap() >= before + 2
    });
    cluster.wait_both_up_to_date(A);
    drop(nbd);
    cluster.kill(B);
    cluster.kill(A);
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(a == b, "both disks hold the same");
}

/// What the peer had only received is gone with its process; the Primary's own disk has it.
#[test]
fn under_b_a_pair_that_dies_together_comes_back_with_all_that_was_answered() {
    let mut cluster = serving("protocol = \"B\"\n");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    write_some(&mut nbd);
    cluster.kill(B);
    cluster.kill(A);
    cluster.start(A);
    cluster.start(B);
    let mut nbd = wait_for("it serves again", LIMIT, || {
        Nbd::attach(&cluster.nbd_socket(A), RES, Duration::from_secs(1)).ok()
    });
    for block in 0..40 {
        assert_eq!(nbd.read(block * 4096, 4096).unwrap(), newest(block));
    }
    drop(nbd);
    cluster.wait_both_up_to_date(A);
    cluster.kill(B);
    cluster.kill(A);
    let [a, b] = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
    assert!(a == b, "both disks hold the same");
}
