//! `twinadm move`: the planned change of the Primary, with real processes and a client that writes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{A, ARBITRATOR, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{now, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

/// What a planned change must not wait for (timing `default`): the lease of a Primary that is gone.
const GRANT: Duration = Duration::from_secs(3);

/// When a client's writes were acknowledged, and by which node.
type Acknowledged = Vec<(Instant, usize)>;

/// A guest of either node: writes one block after the other and, where it is cut off, connects to
/// whoever takes it. Ends when told; every write it counts as acknowledged is in the last content.
fn write_on(
    sockets: [PathBuf; 2],
    stop: Arc<AtomicBool>,
    newest: Arc<AtomicUsize>,
) -> thread::JoinHandle<Acknowledged> {
    thread::spawn(move || {
        let mut acknowledged = Vec::new();
        let mut attached: Option<(usize, Nbd)> = None;
        let mut nr = 0_u64;
        while !stop.load(Ordering::Acquire) {
            let Some((node, nbd)) = &mut attached else {
                attached = [A, B].into_iter().find_map(|node| {
                    let nbd = Nbd::attach(&sockets[node], RES, LIMIT).ok()?;
                    Some((node, nbd))
                });
                continue;
            };
            let block = block_of(nr);
            match nbd.write(nr % 1024 * 4096, &block) {
                Ok(()) => {
                    acknowledged.push((now(), *node));
                    newest.store(*node, Ordering::Release);
                    nr += 1;
                }
                Err(_) => attached = None,
            }
        }
        acknowledged
    })
}

fn block_of(nr: u64) -> Vec<u8> {
    nr.to_le_bytes().repeat(512)
}

/// The volume was down for so long: from the last acknowledgement of one node to the first of the
/// other, for each change.
fn downtimes(acknowledged: &Acknowledged) -> Vec<Duration> {
    acknowledged
        .windows(2)
        .filter(|pair| pair[0].1 != pair[1].1)
        .map(|pair| pair[1].0.duration_since(pair[0].0))
        .collect()
}

/// There and back again under load, in orders given on each of the three nodes: no wait for a lease,
/// nothing lost, and the pair is whole again after each.
#[test]
fn a_primary_is_moved_under_load_without_waiting_for_a_lease() {
    for timing in ["default", "fast"] {
        let mut cluster = Cluster::serving(&Setup {
            timing,
            ..Setup::default()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let sockets = [A, B].map(|node| cluster.nbd_socket(node));
        let newest = Arc::new(AtomicUsize::new(usize::MAX));
        let served_by = |node: usize| {
            wait_for("a write is acknowledged", PATIENCE, || {
                (newest.load(Ordering::Acquire) == node).then_some(())
            });
        };
        let writer = write_on(sockets, Arc::clone(&stop), Arc::clone(&newest));
        served_by(A);
        let mut primary = A;
        let asked = [A, B, B, A, ARBITRATOR, ARBITRATOR];
        for asked in asked {
            let to = 1 - primary;
            let told = cluster.adm(asked, &["move", RES, NAMES[to]]);
            assert_eq!(told.code, Some(0), "{told:?}{}", cluster.logs());
            assert!(told.stderr.contains("moved from"), "{told:?}");
            cluster.wait_both_up_to_date(to);
            served_by(to);
            primary = to;
        }
        stop.store(true, Ordering::Release);
        let acknowledged = writer.join().unwrap();
        let downtimes = downtimes(&acknowledged);
        let count = acknowledged.len();
        eprintln!("timing {timing}: {count} writes, volume down for {downtimes:?}");
        assert_eq!(downtimes.len(), asked.len(), "each change was noticed once");
        if timing == "default" {
            assert!(downtimes.iter().all(|it| *it < GRANT), "{downtimes:?}");
        }
        let mut nbd = Nbd::attach(&cluster.nbd_socket(primary), RES, LIMIT).unwrap();
        for nr in u64::try_from(count).unwrap().saturating_sub(1024)..count as u64 {
            let found = nbd.read(nr % 1024 * 4096, 4096).unwrap();
            // The write after the last acknowledged one may have happened too.
            let next = block_of(nr + 1024);
            assert!(
                found == block_of(nr) || found == next,
                "block of write {nr}"
            );
        }
        drop(nbd);
        cluster.kill(A);
        cluster.kill(B);
        let disks = [A, B].map(|node| std::fs::read(cluster.disk(node)).unwrap());
        assert!(disks[A] == disks[B], "both disks hold the same");
    }
}

#[test]
fn a_move_that_has_nothing_to_do_or_cannot_be_done_says_so_at_once() {
    let mut cluster = Cluster::serving(&Setup::default());
    for asked in [A, B, ARBITRATOR] {
        let told = cluster.adm(asked, &["move", RES, NAMES[A]]);
        assert_eq!(told.code, Some(0), "{told:?}");
        assert!(told.stderr.contains("already"), "{told:?}");
    }
    let plan = cluster.adm(A, &["move", RES, NAMES[A], "--dry-run"]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let plan = cluster.adm(B, &["move", RES, NAMES[B], "--dry-run"]);
    assert_eq!(plan.code, Some(14), "{plan:?}");
    let json = cluster.adm(A, &["move", RES, NAMES[A], "-o", "json"]).ok();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["changed"], false);
    for (words, code, id) in [
        (["move", RES, "kvm-z"], 7, "E0702"),
        (["move", "vm-none", NAMES[B]], 7, "E0701"),
        (["move", RES, NAMES[ARBITRATOR]], 4, "E0414"),
    ] {
        for asked in [A, B] {
            let said = cluster.adm(asked, &words).exits(code);
            assert!(said.contains(id), "{said}");
        }
    }
    // Asked of the peer alone the order comes to the Primary all the same.
    cluster.kill(B);
    cluster.wait_status(A, "it serves alone", |status| {
        status["in_sync"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 1)
    });
    let began = now();
    let said = cluster.adm(A, &["move", RES, NAMES[B]]).exits(4);
    assert!(
        said.contains("E0419") && said.contains("leaves kvm-b out"),
        "{said}"
    );
    assert!(began.elapsed() < LIMIT, "at once");
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    cluster.adm(A, &["secondary", RES]).ok();
    for asked in [A, B] {
        let said = cluster.adm(asked, &["move", RES, NAMES[B]]).exits(4);
        assert!(
            said.contains("E0418") && said.contains("twinadm primary"),
            "{said}"
        );
    }
}

/// Story: the successor stops answering between the order and the change. Nobody is left without a
/// volume by an order: it is served, and not by a hold that somebody has to lift.
#[test]
fn a_successor_that_stands_still_leaves_the_volume_served() {
    let mut cluster = Cluster::serving(&Setup::default());
    cluster.signal(B, Signal::SIGSTOP);
    let told = cluster.adm(A, &["move", RES, NAMES[B]]);
    assert!(
        [Some(4), Some(6), Some(9)].contains(&told.code),
        "{told:?}{}",
        cluster.logs()
    );
    let status = cluster.wait_status(A, "it serves", |status| {
        status["role"] == "Primary" && status["suspended"].is_null()
    });
    assert_eq!(status["held"], false, "{status}");
    let mut nbd = wait_for("it takes clients", PATIENCE, || {
        Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).ok()
    });
    nbd.write(0, &[1; 4096]).unwrap();
    drop(nbd);
    cluster.kill(B);
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
    cluster.adm(B, &["move", RES, NAMES[B]]).ok();
    cluster.wait_both_up_to_date(B);
}
