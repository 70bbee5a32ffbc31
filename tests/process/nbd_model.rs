//! Random requests over several connections, beside a model of the volume in memory.

use std::fs;
use std::time::Duration;

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{ClientCommand, ClientReply};

use crate::cluster::{A, B, Cluster, RES, Setup};
use crate::nbd::Nbd;

const LEN: usize = 64 << 20;
const CONNECTIONS: usize = 4;
/// Each connection has a part of the volume, cut into slots; requests in flight are in different
/// slots, so that what they leave does not depend on their order.
const SLOT_LEN: usize = 128 << 10;
const SLOTS: usize = LEN / CONNECTIONS / SLOT_LEN;
const DEPTH: usize = 16;
const ROUNDS: usize = 40;
const BLOCK_LEN: usize = 4096;

/// Seeds beyond the first; each is `CONNECTIONS * DEPTH * ROUNDS` requests.
const SEEDS_VARIABLE: &str = "TWINBLK_TEST_NBD_SEEDS";

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

/// A request in flight: its cookie, and the data if it is a read.
type Expected = (u64, Option<Vec<u8>>);

/// Everything is read back as a model says, whatever the alignment, over connections that speak each
/// reply style, with many requests in flight; and both replicas end the same.
#[test]
fn random_requests_over_four_connections_leave_what_a_model_holds() {
    let mut cluster = Cluster::serving(&Setup {
        disk_len: LEN as u64,
        ..Setup::default()
    });
    let mut model = vec![0; LEN];
    let more = std::env::var(SEEDS_VARIABLE).map_or(0, |seeds| seeds.parse::<u64>().unwrap());
    for seed in 0..=more {
        one_seed(&cluster, &mut model, seed);
    }
    let mut whole = attach(&cluster, ReplyStyle::Extended);
    for (at, wanted) in (0..).step_by(1 << 20).zip(model.chunks(1 << 20)) {
        assert!(whole.read(at, 1 << 20).unwrap() == wanted, "at {at}");
    }
    drop(whole);
    cluster.adm(A, &["down", RES]).ok();
    cluster.kill(A);
    cluster.kill(B);
    for node in [A, B] {
        let disk = fs::read(cluster.disk(node)).unwrap();
        assert!(disk[..LEN] == model, "disk of node {node}");
    }
}

fn attach(cluster: &Cluster, style: ReplyStyle) -> Nbd {
    let limit = Duration::from_secs(20);
    Nbd::attach_in(&cluster.nbd_socket(A), RES, limit, style).unwrap()
}

fn one_seed(cluster: &Cluster, model: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    let styles = [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ];
    let mut connections: Vec<Nbd> = (0..CONNECTIONS)
        .map(|nr| attach(cluster, styles[(nr + random.below(3)) % 3]))
        .collect();
    for round in 0..ROUNDS {
        // Whose part is whose changes, so that each sees what the others wrote.
        let mut in_flight: Vec<Vec<Expected>> = Vec::new();
        for (nr, connection) in connections.iter_mut().enumerate() {
            let part = (nr + round) % CONNECTIONS;
            in_flight.push(submit_round(connection, model, part, &mut random));
        }
        for (connection, mut expected) in connections.iter_mut().zip(in_flight) {
            while !expected.is_empty() {
                let ClientReply { cookie, result } = connection.answer().unwrap();
                let at = expected.iter().position(|(it, _)| *it == cookie).unwrap();
                let (_, wanted) = expected.swap_remove(at);
                let data = result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                assert!(
                    data == wanted.unwrap_or_default(),
                    "seed {seed}, round {round}"
                );
            }
        }
    }
}

fn submit_round(
    connection: &mut Nbd,
    model: &mut [u8],
    part: usize,
    random: &mut Random,
) -> Vec<Expected> {
    let first = random.below(SLOTS);
    let mut expected = Vec::new();
    for nr in 0..DEPTH {
        // 37 and the number of slots have no common divisor: all different.
        let slot = part * SLOTS + (first + nr * 37) % SLOTS;
        expected.push(submit_one(connection, model, slot * SLOT_LEN, random));
    }
    connection.send().unwrap();
    expected
}

fn submit_one(
    connection: &mut Nbd,
    model: &mut [u8],
    slot: usize,
    random: &mut Random,
) -> Expected {
    let at = random.below(SLOT_LEN);
    let len = match random.below(4) {
        0 => 1 + random.below(16),
        1 => 1 + random.below(BLOCK_LEN),
        _ => 1 + random.below(SLOT_LEN),
    }
    .min(SLOT_LEN - at);
    let (offset, end) = (slot + at, slot + at + len);
    let (offset64, len32) = (offset as u64, u32::try_from(len).unwrap());
    let fua = random.below(8) == 0;
    let (command, wanted) = match random.below(10) {
        0..4 => {
            for byte in &mut model[offset..end] {
                *byte = random.next().to_le_bytes()[0];
            }
            let data = &model[offset..end];
            let write = ClientCommand::Write {
                offset: offset64,
                data,
                fua,
            };
            (write, None)
        }
        4..8 => {
            let data = model[offset..end].to_vec();
            let read = ClientCommand::Read {
                offset: offset64,
                len: len32,
            };
            (read, Some(data))
        }
        8 => {
            model[offset..end].fill(0);
            let zeroes = ClientCommand::WriteZeroes {
                offset: offset64,
                len: len32,
                no_hole: random.below(2) == 0,
                fua,
            };
            (zeroes, None)
        }
        _ => {
            // A trim zeroes the whole blocks of its range here, which makes both replicas equal.
            let from = offset.next_multiple_of(BLOCK_LEN);
            let to = end - end % BLOCK_LEN;
            if from < to {
                model[from..to].fill(0);
            }
            let trim = ClientCommand::Trim {
                offset: offset64,
                len: len32,
                fua,
            };
            (trim, None)
        }
    };
    (connection.submit(command).unwrap(), wanted)
}
