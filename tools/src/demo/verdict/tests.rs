//! Small runs told by hand: what was sent and acknowledged, what each disk holds, what follows.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::demo::journal::Journal;
use crate::demo::pattern::{Stamp, encode};

const RUN: u64 = 99;
const BLOCKS: u64 = 4;

/// A journal and two disks in a directory of their own, removed at the end.
struct Bench {
    dir: PathBuf,
}

impl Bench {
    fn new(name: &str, entries: &[Entry]) -> Self {
        let dir =
            std::env::temp_dir().join(format!("twinblk-verdict-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("journal");
        fs::remove_file(&path).ok();
        let mut journal = Journal::create(&path).unwrap();
        for entry in entries {
            journal.note(entry).unwrap();
        }
        journal.close().unwrap();
        Self { dir }
    }

    /// Judges with these (block, write) on the two disks.
    fn judge(&self, disks: [&[(u64, u64)]; 2]) -> Verdict {
        let paths = [self.dir.join("a.img"), self.dir.join("b.img")];
        for (path, writes) in paths.iter().zip(disks) {
            let mut bytes = vec![0; BLOCK_LEN * usize::try_from(BLOCKS).unwrap()];
            for (block, sequence) in writes {
                let at = usize::try_from(*block).unwrap() * BLOCK_LEN;
                let stamp = Stamp {
                    run: RUN,
                    block: *block,
                    sequence: *sequence,
                };
                bytes[at..at + BLOCK_LEN].copy_from_slice(&encode(stamp));
            }
            fs::write(path, bytes).unwrap();
        }
        judge(RUN, &self.dir.join("journal"), &[&paths[0], &paths[1]]).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

fn sent(sequence: u64, block: u64) -> Entry {
    Entry::Sent {
        sequence,
        block,
        node: 0,
    }
}

fn acknowledged(sequence: u64) -> Entry {
    Entry::Acknowledged { sequence, node: 0 }
}

#[test]
fn everything_in_place_passes() {
    let bench = Bench::new(
        "pass",
        &[sent(1, 0), acknowledged(1), sent(2, 3), acknowledged(2)],
    );
    let verdict = bench.judge([&[(0, 1), (3, 2)], &[(0, 1), (3, 2)]]);
    assert!(verdict.passed(), "{verdict:?}");
    assert_eq!((verdict.sent, verdict.acknowledged), (2, 2));
}

#[test]
fn a_write_missing_on_either_replica_is_lost() {
    let bench = Bench::new(
        "lost",
        &[sent(1, 0), acknowledged(1), sent(2, 0), acknowledged(2)],
    );
    assert_eq!(bench.judge([&[(0, 2)], &[(0, 1)]]).lost, 1);
    assert_eq!(bench.judge([&[], &[(0, 2)]]).lost, 2);
    assert_eq!(bench.judge([&[], &[]]).lost, 2);
}

#[test]
fn an_unanswered_write_may_have_happened_or_not() {
    let bench = Bench::new("unanswered", &[sent(1, 0), acknowledged(1), sent(2, 0)]);
    assert!(bench.judge([&[(0, 2)], &[(0, 2)]]).passed());
    assert!(bench.judge([&[(0, 1)], &[(0, 1)]]).passed());
    let differing = bench.judge([&[(0, 2)], &[(0, 1)]]);
    assert_eq!(differing.lost, 0);
    assert!(!differing.passed(), "the replicas differ");
}

#[test]
fn content_that_was_never_written_there_is_damage() {
    let bench = Bench::new("damage", &[sent(1, 0), acknowledged(1)]);
    let never_sent = bench.judge([&[(0, 7)], &[(0, 7)]]);
    assert_eq!((never_sent.damaged, never_sent.lost), (1, 0));
    // Write 1 of block 0 found in the untouched block 2.
    let misdirected = bench.judge([&[(0, 1), (2, 1)], &[(0, 1), (2, 1)]]);
    assert_eq!(misdirected.damaged, 1);
    assert!(!misdirected.passed());
}

#[test]
fn a_flipped_byte_fails_both_ways() {
    let bench = Bench::new("flip", &[sent(1, 1), acknowledged(1)]);
    bench.judge([&[(1, 1)], &[(1, 1)]]);
    let disk = bench.dir.join("a.img");
    let mut bytes = fs::read(&disk).unwrap();
    bytes[BLOCK_LEN + 100] ^= 1;
    fs::write(&disk, bytes).unwrap();
    let verdict = judge(
        RUN,
        &bench.dir.join("journal"),
        &[&disk, &bench.dir.join("b.img")],
    )
    .unwrap();
    assert_eq!((verdict.lost, verdict.damaged), (1, 1));
    assert!(!verdict.identical() && !verdict.passed());
}

#[test]
fn errors_stale_reads_and_answers_to_nothing_fail() {
    let base = [sent(1, 0), acknowledged(1), sent(2, 0), acknowledged(2)];
    let read = |floor, seen| Entry::Read {
        block: 0,
        floor,
        seen,
        node: 1,
    };
    for (name, entry, ok) in [
        ("fresh", read(1, Some(2)), true),
        ("stale", read(2, Some(1)), false),
        ("torn", read(1, None), false),
        ("invented", read(1, Some(9)), false),
        (
            "error",
            Entry::Failed {
                sequence: 2,
                words: "input/output error".to_owned(),
            },
            false,
        ),
        ("nothing", acknowledged(5), false),
    ] {
        let mut entries = base.to_vec();
        entries.push(entry);
        let bench = Bench::new(name, &entries);
        let verdict = bench.judge([&[(0, 2)], &[(0, 2)]]);
        assert_eq!(verdict.passed(), ok, "{name}: {verdict:?}");
    }
}

#[test]
fn a_run_without_a_single_acknowledged_write_proves_nothing() {
    let bench = Bench::new("empty", &[sent(1, 0)]);
    assert!(!bench.judge([&[], &[]]).passed());
}
