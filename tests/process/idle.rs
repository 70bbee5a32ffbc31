//! What an idle cluster costs.

use std::fs;

use crate::cluster::{A, ARBITRATOR, B, Cluster, Setup};

const MIB: u64 = 1 << 20;
/// A bit for each 4 KiB of 1 TiB.
const BITMAP: u64 = 32 * MIB;
/// A program that is not optimised has three times the code; its pages are the page cache's.
const ARBITRATOR_MAX: u64 = if cfg!(debug_assertions) { 14 } else { 10 } * MIB;

/// A daemon with one volume of 1 TiB stays within 64 MiB and its bitmap, the arbitrator within
/// 10 MiB when it is built for use.
#[test]
fn an_idle_terabyte_costs_its_bitmap_and_little_more() {
    let cluster = Cluster::serving(&Setup {
        disk_len: 1 << 40,
        timing: "default",
        ..Setup::default()
    });
    for node in [A, B] {
        let resident = resident(cluster.pid(node));
        assert!(resident <= 64 * MIB + BITMAP, "{} MiB", resident / MIB);
    }
    let resident = resident(cluster.pid(ARBITRATOR));
    assert!(
        resident <= ARBITRATOR_MAX,
        "arbitrator: {} KiB",
        resident / 1024
    );
}

/// VmRSS in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
