//! The verdict: from the journal and the bytes of both backing files, from nothing else.
//!
//! A block was last acknowledged by some write. It has to hold that write or one sent later, on
//! both replicas: a write that was sent and never answered may have happened, an acknowledged one
//! must have. The writer never touches a block again while an answer for it is missing, so "sent
//! later" also means "happened later".

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::journal::{self, Entry};
use super::pattern::{self, BLOCK_LEN, Content};

/// What the journal and the files came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Writes sent.
    pub(super) sent: u64,
    /// Writes acknowledged.
    pub(super) acknowledged: u64,
    /// Requests answered with an error, which a guest would have seen.
    pub(super) errors: u64,
    /// Acknowledged writes that at least one replica does not hold.
    pub(super) lost: u64,
    /// Blocks that hold on at least one replica what was never written there.
    pub(super) damaged: u64,
    /// Reads that were answered with less than what was acknowledged when they were sent.
    pub(super) stale_reads: u64,
    /// Reads checked.
    pub(super) reads: u64,
    /// Digest of each replica.
    pub(super) digests: Vec<String>,
}

impl Verdict {
    pub(super) fn identical(&self) -> bool {
        self.digests.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Something was acknowledged, nothing of it is lost, no guest saw an error or the past, and
    /// the replicas are the same bytes.
    pub(super) fn passed(&self) -> bool {
        self.acknowledged > 0
            && self.lost == 0
            && self.damaged == 0
            && self.errors == 0
            && self.stale_reads == 0
            && self.identical()
    }
}

/// Judges a finished run.
pub(super) fn judge(run: u64, journal: &Path, disks: &[&Path]) -> io::Result<Verdict> {
    let history = History::of(&journal::read(journal)?);
    let mut verdict = history.verdict();
    let mut lost = BTreeSet::new();
    let mut damaged = BTreeSet::new();
    for disk in disks {
        let digest = for_each_block(disk, |block, bytes| match pattern::decode(bytes) {
            Content::Written(stamp) if stamp.run == run && stamp.block == block => {
                if !history.sent(block, stamp.sequence) {
                    damaged.insert(block);
                }
                lost.extend(history.acknowledged_after(block, stamp.sequence));
            }
            Content::Blank => lost.extend(history.acknowledged_after(block, 0)),
            Content::Written(_) | Content::Damaged => {
                damaged.insert(block);
                lost.extend(history.acknowledged_after(block, 0));
            }
        })?;
        verdict.digests.push(digest);
    }
    verdict.lost = count(lost.len());
    verdict.damaged = count(damaged.len());
    Ok(verdict)
}

/// The acknowledged blocks of a journal, for `--corrupt` to choose from.
pub(super) fn acknowledged_blocks(journal: &Path) -> io::Result<Vec<u64>> {
    let history = History::of(&journal::read(journal)?);
    Ok(history
        .blocks
        .iter()
        .filter(|(_, writes)| writes.values().any(|acked| *acked))
        .map(|(block, _)| *block)
        .collect())
}

/// What the journal says of each block.
#[derive(Default)]
struct History {
    /// Block → sequence → acknowledged.
    blocks: BTreeMap<u64, BTreeMap<u64, bool>>,
    errors: u64,
    reads: u64,
    stale_reads: u64,
}

impl History {
    fn of(entries: &[Entry]) -> Self {
        let mut history = Self::default();
        let mut block_of = BTreeMap::new();
        for entry in entries {
            match entry {
                Entry::Sent {
                    sequence, block, ..
                } => {
                    block_of.insert(*sequence, *block);
                    history
                        .blocks
                        .entry(*block)
                        .or_default()
                        .insert(*sequence, false);
                }
                Entry::Acknowledged { sequence, .. } => {
                    let block = block_of.get(sequence).copied();
                    let write =
                        block.and_then(|block| history.blocks.get_mut(&block)?.get_mut(sequence));
                    match write {
                        Some(acknowledged) => *acknowledged = true,
                        // An answer to nothing: the connection lied.
                        None => history.errors += 1,
                    }
                }
                Entry::Failed { .. } => history.errors += 1,
                Entry::Read {
                    block, floor, seen, ..
                } => {
                    history.reads += 1;
                    let known = |seen: u64| seen == 0 || history.sent(*block, seen);
                    if !seen.is_some_and(|seen| seen >= *floor && known(seen)) {
                        history.stale_reads += 1;
                    }
                }
            }
        }
        history
    }

    fn sent(&self, block: u64, sequence: u64) -> bool {
        self.blocks
            .get(&block)
            .is_some_and(|writes| writes.contains_key(&sequence))
    }

    /// Acknowledged writes of `block` that a content of write `held` does not include.
    fn acknowledged_after(&self, block: u64, held: u64) -> impl Iterator<Item = u64> + '_ {
        let later = self
            .blocks
            .get(&block)
            .into_iter()
            .flat_map(move |writes| writes.range(held + 1..));
        later
            .filter(|(_, acknowledged)| **acknowledged)
            .map(|(sequence, _)| *sequence)
    }

    fn verdict(&self) -> Verdict {
        let writes = || self.blocks.values().flat_map(BTreeMap::values);
        Verdict {
            sent: count(writes().count()),
            acknowledged: count(writes().filter(|acknowledged| **acknowledged).count()),
            errors: self.errors,
            stale_reads: self.stale_reads,
            reads: self.reads,
            ..Verdict::default()
        }
    }
}

/// Reads a file block by block; its digest in hex. A last partial block is handed on as it is.
fn for_each_block(path: &Path, mut look: impl FnMut(u64, &[u8])) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 * BLOCK_LEN];
    let mut block = 0;
    loop {
        let len = read_full(&mut file, &mut buffer)?;
        if len == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..len]);
        for bytes in buffer[..len].chunks(BLOCK_LEN) {
            look(block, bytes);
            block += 1;
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
