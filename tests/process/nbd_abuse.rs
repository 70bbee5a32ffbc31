//! Clients that mean no good, and what they cost the others: nothing but the memory that is theirs.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_frontend::ClientCommand;

use crate::cluster::{A, Cluster, PATIENCE, RES, Setup};
use crate::idle::resident;
use crate::nbd::Nbd;
use crate::tools::{now, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// Connections held idle; more for a campaign, up to the process's limit of descriptors.
const IDLE: usize = 2_000;
const IDLE_VARIABLE: &str = "TWINBLK_TEST_NBD_IDLE";

/// What guests may hold together, a last request of each that never reads included
/// (`GUEST_BYTES_MAX` and `LONE_BYTES_MAX` of the daemon), and what else a busy daemon may have grown by.
const GUESTS: u64 = (256 + 128) * MIB;
const SLACK: u64 = 48 * MIB;

fn attach(cluster: &Cluster) -> Nbd {
    Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap()
}

/// What the shard's thread has worked.
fn shard_time(cluster: &Cluster) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", cluster.pid(A))).unwrap();
    let read = |task: &fs::DirEntry, file| fs::read_to_string(task.path().join(file));
    let shard = tasks
        .flatten()
        .find(|task| read(task, "comm").is_ok_and(|name| name.trim() == "shard"))
        .unwrap();
    let schedule = read(&shard, "schedstat").unwrap();
    Duration::from_nanos(schedule.split(' ').next().unwrap().parse().unwrap())
}

fn descriptors(cluster: &Cluster) -> usize {
    fs::read_dir(format!("/proc/{}/fd", cluster.pid(A)))
        .unwrap()
        .count()
}

/// Waits until the daemon has no more descriptors open than before.
fn no_descriptor_is_left(cluster: &Cluster, before: usize) {
    wait_for("the connections are closed", PATIENCE, || {
        (descriptors(cluster) <= before).then_some(())
    });
}

/// The slowest of a hundred writes but one: the best of some such that is short enough, or of all,
/// since other tests run beside this one.
fn p99(client: &mut Nbd, enough: Duration) -> Duration {
    let window = || {
        let mut times: Vec<Duration> = (0..100)
            .map(|nr| {
                let begun = now();
                client.write(nr * 4096, &[0x11; 4096]).unwrap();
                begun.elapsed()
            })
            .collect();
        times.sort();
        times[98]
    };
    let mut best = Duration::MAX;
    for window in std::iter::repeat_with(window).take(30) {
        best = best.min(window);
        if best <= enough {
            break;
        }
    }
    best
}

#[test]
fn thousands_of_idle_connections_cost_little_and_nobody_else() {
    let count = std::env::var(IDLE_VARIABLE).map_or(IDLE, |count| count.parse().unwrap());
    let cluster = Cluster::serving(&Setup {
        nbd: "max-connections = 16384\n",
        ..Setup::default()
    });
    let mut other = attach(&cluster);
    let (quiet, memory, before) = (
        p99(&mut other, Duration::from_millis(1)),
        resident(cluster.pid(A)),
        descriptors(&cluster),
    );
    let (mut idle, mut costs): (Vec<Nbd>, Vec<Duration>) = Default::default();
    for _ in 0..4 {
        let begun = shard_time(&cluster);
        idle.extend((0..count / 4).map(|_| attach(&cluster)));
        costs.push(shard_time(&cluster) - begun);
    }
    println!("{count} attached; each quarter of them took {costs:?}");
    // The last ones cost what the first did, give or take what else went on.
    assert!(
        costs[3] <= costs[0] * 2 + Duration::from_millis(50),
        "{costs:?}"
    );
    // Twice, and what a scheduler may add to one in a hundred.
    let most = quiet * 2 + Duration::from_millis(5);
    let busy = p99(&mut other, most);
    let grown = resident(cluster.pid(A)) - memory;
    println!(
        "p99 {quiet:?} without, {busy:?} with them; {} KiB each",
        grown / 1024 / count as u64
    );
    assert!(busy <= most, "{quiet:?} {busy:?}");
    // A receive buffer of 4 KiB, the session and its socket; what they share is below its cap.
    assert!(
        grown <= count as u64 * 16 * 1024 + SLACK,
        "{} MiB",
        grown / MIB
    );
    drop(idle);
    no_descriptor_is_left(&cluster, before);
    other.write(0, &[1; 512]).unwrap();
}

/// A write cut off anywhere is none; one that was whole is one. Nobody else notices.
#[test]
fn a_write_that_ends_at_any_byte_is_whole_or_nothing() {
    const HEADER: usize = 28;
    const LEN: usize = 512;
    let cluster = Cluster::serving(&Setup::default());
    let mut other = attach(&cluster);
    other.write(0, &[0x11; LEN]).unwrap();
    let before = descriptors(&cluster);
    for cut in 0..HEADER + LEN {
        let mut client = attach(&cluster);
        let (offset, data, fua) = (0, &[0xee; LEN][..], false);
        client
            .submit(ClientCommand::Write { offset, data, fua })
            .unwrap();
        client.send_part(cut).unwrap();
        drop(client);
        if cut % 64 == 0 {
            assert_eq!(other.read(0, 512).unwrap(), [0x11; LEN], "cut at {cut}");
        }
    }
    no_descriptor_is_left(&cluster, before);
    assert_eq!(other.read(0, 512).unwrap(), [0x11; LEN]);
}

/// Gone with answers on their way to it, again and again: nothing of it stays.
#[test]
fn clients_that_vanish_with_answers_on_the_way_leave_nothing() {
    let cluster = Cluster::serving(&Setup::default());
    let mut other = attach(&cluster);
    let (before, memory) = (descriptors(&cluster), resident(cluster.pid(A)));
    for round in 0..100 {
        let mut client = attach(&cluster);
        for nr in 0..32 {
            let (offset, len) = (nr * MIB, 1 << 20);
            client.submit(ClientCommand::Read { offset, len }).unwrap();
        }
        client.send().unwrap();
        if round % 2 == 0 {
            // Some of them are answered before it goes.
            client.answer().unwrap().result.unwrap();
        }
        drop(client);
        other.write(0, &[2; 4096]).unwrap();
    }
    no_descriptor_is_left(&cluster, before);
    let grown = resident(cluster.pid(A)).saturating_sub(memory);
    assert!(grown <= GUESTS + SLACK, "{} MiB", grown / MIB);
}

/// Clients that ask for all they may and never read hold no more than guests' memory has, and the
/// others go on.
#[test]
fn clients_that_never_read_hold_up_themselves_alone() {
    let cluster = Cluster::serving(&Setup::default());
    let mut other = attach(&cluster);
    let (quiet, memory) = (
        p99(&mut other, Duration::from_millis(1)),
        resident(cluster.pid(A)),
    );
    let greedy: Vec<Nbd> = (0..64)
        .map(|_| {
            let mut client = attach(&cluster);
            for nr in 0..48 {
                let (offset, len) = (nr * MIB, 1 << 20);
                client.submit(ClientCommand::Read { offset, len }).unwrap();
            }
            client.send().unwrap();
            client
        })
        .collect();
    let most = quiet * 2 + Duration::from_millis(5);
    let busy = p99(&mut other, most);
    println!("p99 {quiet:?} without, {busy:?} with them");
    assert!(busy <= most, "{quiet:?} {busy:?}");
    let grown = resident(cluster.pid(A)).saturating_sub(memory);
    assert!(grown <= GUESTS + SLACK, "{} MiB", grown / MIB);
    // They were not forgotten: whoever reads at last gets all of it.
    for mut client in greedy.into_iter().take(4) {
        for _ in 0..48 {
            assert_eq!(client.answer().unwrap().result.unwrap().len(), 1 << 20);
        }
    }
}

/// Connections that say nothing keep nobody from attaching, however many there are.
#[test]
fn strangers_keep_nobody_out() {
    let cluster = Cluster::serving(&Setup::default());
    let before = descriptors(&cluster);
    let strangers: Vec<UnixStream> = (0..500)
        .map(|_| UnixStream::connect(cluster.nbd_socket(A)).unwrap())
        .collect();
    for _ in 0..20 {
        attach(&cluster).read(0, 512).unwrap();
    }
    // The oldest gave way: no more than a few are kept.
    assert!(descriptors(&cluster) <= before + 100);
    drop(strangers);
    no_descriptor_is_left(&cluster, before);
}
