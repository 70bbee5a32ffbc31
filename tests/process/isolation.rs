//! Nodes that are alive but cut off, and voters that are gone.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cluster::{A, ARBITRATOR, B, Cluster, PATIENCE, RES, Setup};
use crate::nbd::{Nbd, NbdFailure};
use crate::tools::{am_root, have, hold_for, now, wait_for};

const LIMIT: Duration = Duration::from_secs(5);
/// The lease of the fast profile, and what a check may lag behind it.
const LEASE_OVER: Duration = Duration::from_millis(1000);

/// The Primary is cut off from both others. Its lease runs out: from then on it answers neither
/// reads nor writes, to nobody. The peer serves. Healed, it is Secondary without help.
#[test]
fn a_primary_cut_off_from_both_answers_nothing_and_steps_down_when_healed() {
    if !(am_root() && have(&["ip", "nft"])) {
        return;
    }
    let cluster = Cluster::serving(&Setup {
        namespace: true,
        ..Setup::default()
    });
    let mut old = Nbd::attach(&cluster.nbd_socket(A), RES, Duration::from_millis(100)).unwrap();
    old.write(0, &[1; 4096]).unwrap();

    cluster.isolate(A, true);
    let cut = now();
    let mut last_answer = cut;
    let mut attached = Some(old);
    let mut new = wait_for("the peer serves", LIMIT, || {
        if let Some(nbd) = &mut attached {
            match nbd.read(0, 4096) {
                Ok(_) => last_answer = now(),
                // Held requests get no answer; another one would queue behind it.
                Err(NbdFailure::Silent | NbdFailure::Closed(_)) => attached = None,
            }
        }
        Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).ok()
    });
    let served = now();
    assert!(
        last_answer.duration_since(cut) <= LEASE_OVER,
        "answered {:?} after the cut",
        last_answer - cut
    );
    assert!(last_answer < served, "two nodes answered at once");
    new.write(0, &[2; 4096]).unwrap();
    hold_for(Duration::from_secs(1), || {
        let stale = Nbd::attach(&cluster.nbd_socket(A), RES, Duration::from_millis(200))
            .and_then(|mut nbd| nbd.read(0, 4096));
        assert!(stale.is_err(), "a cut-off Primary served a read");
    });

    cluster.isolate(A, false);
    cluster.wait_status(A, "it is Secondary", |status| status["role"] == "Secondary");
    cluster.wait_both_up_to_date(B);
    assert_eq!(new.read(0, 4096).unwrap(), [2; 4096]);
}

/// A Primary stopped past its lease and continued must not believe its old clock.
#[test]
fn a_primary_paused_past_its_lease_answers_nothing_afterwards() {
    let cluster = Cluster::serving(&Setup::default());
    let mut old = Nbd::attach(&cluster.nbd_socket(A), RES, Duration::from_secs(2)).unwrap();
    old.write(0, &[1; 4096]).unwrap();
    cluster.signal(A, Signal::SIGSTOP);
    let mut new = wait_for("the peer serves", LIMIT, || {
        Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).ok()
    });
    new.write(0, &[2; 4096]).unwrap();
    cluster.signal(A, Signal::SIGCONT);
    assert!(old.read(0, 4096).is_err(), "the past was served");
    cluster.wait_both_up_to_date(B);
    assert_eq!(new.read(0, 4096).unwrap(), [2; 4096]);
}

/// The arbitrator dies: I/O does not notice. It returns and is seen again.
#[test]
fn a_dead_arbitrator_does_not_disturb() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    cluster.kill(ARBITRATOR);
    let mut longest = Duration::ZERO;
    hold_for(Duration::from_secs(3), || {
        let begun = now();
        nbd.write(0, &[5; 4096]).unwrap();
        longest = longest.max(begun.elapsed());
    });
    assert!(
        longest < Duration::from_millis(500),
        "a write took {longest:?}"
    );
    cluster.start(ARBITRATOR);
    cluster.wait_both_up_to_date(A);
}

/// The Secondary dies: the Primary goes on alone within the lease, and remembers what the peer
/// lacks.
#[test]
fn a_dead_secondary_stalls_the_primary_for_less_than_its_lease() {
    let mut cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[1; 4096]).unwrap();
    cluster.kill(B);
    let begun = now();
    nbd.write(4096, &[2; 4096]).unwrap();
    assert!(
        begun.elapsed() < LEASE_OVER,
        "a write took {:?}",
        begun.elapsed()
    );
    let alone = cluster.wait_status(A, "it serves alone", |status| {
        status["in_sync"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 1)
    });
    assert_eq!(alone["role"], "Primary");
    nbd.write(8192, &[3; 4096]).unwrap();
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    cluster.kill(A);
    let mut new = wait_for("the peer serves", PATIENCE, || {
        Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).ok()
    });
    assert_eq!(
        new.read(0, 12_288).unwrap(),
        [[1; 4096], [2; 4096], [3; 4096]].concat()
    );
}

/// Survivor and arbitrator may start cold; a node that was not in sync may not, whoever votes.
#[test]
fn a_stale_node_does_not_serve_even_with_the_arbitrator() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster.kill(B);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[4; 4096]).unwrap();
    drop(nbd);
    cluster.kill(A);
    cluster.start(B);
    cluster.wait_status(B, "it is up", |status| status["up"] == true);
    hold_for(Duration::from_secs(2), || {
        assert!(Nbd::attach(&cluster.nbd_socket(B), RES, Duration::from_secs(1)).is_err());
    });
    cluster.start(A);
    cluster.wait_both_up_to_date(A);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [4; 4096]);
}
