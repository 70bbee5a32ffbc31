//! Random requests over several connections, beside a model of the volume in memory.
//!
//! The whole of it, a hundred seeds of ten thousand requests over 1 to 8 connections, with and without
//! failovers:
//!
//! ```text
//! TWINBLK_TEST_NBD_SEEDS=100 TWINBLK_TEST_NBD_REQUESTS=10000 cargo test --test process nbd_model
//! ```

use std::fs;
use std::time::Duration;

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{ClientCommand, ClientReply};

use crate::cluster::{A, B, Cluster, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::wait_for;

const LEN: usize = 64 << 20;
/// Connections of a seed, by its number; with each of them the number of slots in a part has no common
/// divisor with [`STRIDE`].
const CONNECTIONS: [usize; 8] = [4, 1, 8, 2, 7, 3, 6, 5];
/// Each connection has a part of the volume, cut into slots; requests in flight are in different
/// slots, so that what they leave does not depend on their order.
const SLOT_LEN: usize = 128 << 10;
const STRIDE: usize = 37;
const DEPTH: usize = 16;
const BLOCK_LEN: usize = 4096;

/// Seeds, and requests of each.
const SEEDS_VARIABLE: &str = "TWINBLK_TEST_NBD_SEEDS";
const SEEDS: usize = 1;
const REQUESTS_VARIABLE: &str = "TWINBLK_TEST_NBD_REQUESTS";
const REQUESTS: usize = 2_560;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// A request that can be sent again.
enum Order {
    Write { data: Vec<u8>, fua: bool },
    Read { wanted: Vec<u8> },
    Zeroes { no_hole: bool, fua: bool },
    Trim { fua: bool },
}

/// One in flight.
struct Flight {
    cookie: u64,
    offset: usize,
    len: usize,
    order: Order,
}

/// A client's connection.
struct Connection {
    nbd: Nbd,
    style: ReplyStyle,
    in_flight: Vec<Flight>,
}

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |number| number.parse().unwrap())
}

/// Everything is read back as a model says, whatever the alignment, over connections that speak each
/// reply style, with many requests in flight; and both replicas end the same.
#[test]
fn random_requests_over_connections_leave_what_a_model_holds() {
    let setup = Setup {
        disk_len: LEN as u64,
        ..Setup::default()
    };
    let cluster = Cluster::serving(&setup);
    let mut model = vec![0; LEN];
    for seed in 0..number(SEEDS_VARIABLE, SEEDS) {
        one_seed(&cluster, &mut model, seed, |_| {});
    }
    compare(cluster, A, &model);
}

/// The same with a Primary that dies in the middle of each seed, requests in flight: what was answered
/// is there at the other one, where clients send again what was not.
#[test]
fn random_requests_through_a_failover_leave_what_a_model_holds() {
    let mut cluster = Cluster::serving(&Setup {
        disk_len: LEN as u64,
        ..Setup::default()
    });
    let (mut model, mut primary) = (vec![0; LEN], A);
    for seed in 0..number(SEEDS_VARIABLE, SEEDS) {
        let signalled = std::cell::Cell::new(false);
        one_seed(&cluster, &mut model, seed, |half| {
            if half && !signalled.replace(true) {
                cluster.signal(primary, nix::sys::signal::Signal::SIGKILL);
            }
        });
        // Its end was awaited by the clients; this takes notice.
        cluster.kill(primary);
        cluster.start(primary);
        primary = 1 - primary;
        cluster.wait_both_up_to_date(primary);
    }
    compare(cluster, primary, &model);
}

fn compare(mut cluster: Cluster, primary: usize, model: &[u8]) {
    let mut whole = attach(&cluster, ReplyStyle::Extended);
    for (at, wanted) in (0..).step_by(1 << 20).zip(model.chunks(1 << 20)) {
        assert!(whole.read(at, 1 << 20).unwrap() == wanted, "at {at}");
    }
    drop(whole);
    cluster.adm(primary, &["down", RES]).ok();
    cluster.kill(A);
    cluster.kill(B);
    for node in [A, B] {
        let disk = fs::read(cluster.disk(node)).unwrap();
        assert!(disk[..LEN] == *model, "disk of node {node}");
    }
}

/// At whichever node serves.
fn attach(cluster: &Cluster, style: ReplyStyle) -> Nbd {
    let limit = Duration::from_secs(20);
    wait_for("a node serves", PATIENCE, || {
        let nodes = [A, B].into_iter();
        nodes
            .filter_map(|node| Nbd::attach_in(&cluster.nbd_socket(node), RES, limit, style).ok())
            .next()
    })
}

/// `sent` is called when requests are in flight, and told whether half of all were sent.
fn one_seed(cluster: &Cluster, model: &mut [u8], seed: usize, sent: impl Fn(bool)) {
    let mut random = Random(seed as u64);
    let styles = [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ];
    let count = CONNECTIONS[seed % CONNECTIONS.len()];
    let mut connections: Vec<Connection> = (0..count)
        .map(|nr| styles[(nr + random.below(3)) % 3])
        .map(|style| Connection {
            nbd: attach(cluster, style),
            style,
            in_flight: Vec::new(),
        })
        .collect();
    let rounds = number(REQUESTS_VARIABLE, REQUESTS).div_ceil(count * DEPTH);
    for round in 0..rounds {
        // Whose part is whose changes, so that each sees what the others wrote.
        for (nr, connection) in connections.iter_mut().enumerate() {
            connection.submit_round(model, ((nr + round) % count, count), &mut random);
        }
        sent(round >= rounds / 2);
        for connection in &mut connections {
            connection.take_answers(cluster, (seed, round));
        }
    }
}

impl Connection {
    fn submit_round(
        &mut self,
        model: &mut [u8],
        (part, parts): (usize, usize),
        random: &mut Random,
    ) {
        let slots = LEN / parts / SLOT_LEN;
        let first = random.below(slots);
        for nr in 0..DEPTH {
            let slot = part * slots + (first + nr * STRIDE) % slots;
            let flight = one_order(model, slot * SLOT_LEN, random);
            self.in_flight.push(flight);
        }
        self.send_all();
    }

    /// Sends everything in flight; what that comes to shows in the answers.
    fn send_all(&mut self) {
        for flight in &mut self.in_flight {
            let (offset, len) = (flight.offset as u64, u32::try_from(flight.len).unwrap());
            let command = match &flight.order {
                Order::Write { data, fua } => ClientCommand::Write {
                    offset,
                    data,
                    fua: *fua,
                },
                Order::Read { .. } => ClientCommand::Read { offset, len },
                Order::Zeroes { no_hole, fua } => ClientCommand::WriteZeroes {
                    offset,
                    len,
                    no_hole: *no_hole,
                    fua: *fua,
                },
                Order::Trim { fua } => ClientCommand::Trim {
                    offset,
                    len,
                    fua: *fua,
                },
            };
            flight.cookie = self.nbd.submit(command).unwrap();
        }
        self.nbd.send().ok();
    }

    fn take_answers(&mut self, cluster: &Cluster, place: (usize, usize)) {
        while !self.in_flight.is_empty() {
            let Ok(ClientReply { cookie, result }) = self.nbd.answer() else {
                self.nbd = attach(cluster, self.style);
                self.send_all();
                continue;
            };
            let at = self.in_flight.iter().position(|it| it.cookie == cookie);
            let flight = self.in_flight.swap_remove(at.unwrap());
            // An error for a failover would be one, too.
            let data = result.unwrap_or_else(|error| panic!("{place:?}: {error}"));
            let wanted = match flight.order {
                Order::Read { wanted } => wanted,
                Order::Write { .. } | Order::Zeroes { .. } | Order::Trim { .. } => Vec::new(),
            };
            assert!(data == wanted, "seed and round {place:?}");
        }
    }
}

fn one_order(model: &mut [u8], slot: usize, random: &mut Random) -> Flight {
    let at = random.below(SLOT_LEN);
    let len = match random.below(4) {
        0 => 1 + random.below(16),
        1 => 1 + random.below(BLOCK_LEN),
        _ => 1 + random.below(SLOT_LEN),
    }
    .min(SLOT_LEN - at);
    let (offset, end) = (slot + at, slot + at + len);
    let fua = random.below(8) == 0;
    let order = match random.below(10) {
        0..4 => {
            for byte in &mut model[offset..end] {
                *byte = random.next().to_le_bytes()[0];
            }
            let data = model[offset..end].to_vec();
            Order::Write { data, fua }
        }
        4..8 => Order::Read {
            wanted: model[offset..end].to_vec(),
        },
        8 => {
            model[offset..end].fill(0);
            Order::Zeroes {
                no_hole: random.below(2) == 0,
                fua,
            }
        }
        _ => {
            // A trim zeroes the whole blocks of its range here, which makes both replicas equal.
            let from = offset.next_multiple_of(BLOCK_LEN);
            let to = end - end % BLOCK_LEN;
            if from < to {
                model[from..to].fill(0);
            }
            Order::Trim { fua }
        }
    };
    Flight {
        cookie: 0,
        offset,
        len,
        order,
    }
}
