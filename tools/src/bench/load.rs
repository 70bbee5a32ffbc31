//! The load: threads with one request each, past the page cache, and the clock.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;

use super::histogram::Histogram;
use crate::clock::now;

/// What every direct I/O may be aligned to.
const ALIGN: usize = 4096;
/// Written at once when a file is made.
const FILL_LEN: usize = 1 << 20;

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Durable before the next one begins.
    WriteFlush,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) name: &'static str,
    kind: Kind,
    pub(super) block_len: usize,
    pub(super) depth: usize,
}

impl Job {
    pub(super) const fn new(
        name: &'static str,
        kind: Kind,
        block_len: usize,
        depth: usize,
    ) -> Self {
        Self {
            name,
            kind,
            block_len,
            depth,
        }
    }

    pub(super) fn writes(&self) -> bool {
        self.kind != Kind::Read
    }

    /// Large blocks one after the other, small ones anywhere.
    fn is_sequential(&self) -> bool {
        self.block_len > ALIGN
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Read => "reads",
            Kind::Write => "writes",
            Kind::WriteFlush => "writes, each flushed",
        };
        let order = if self.is_sequential() {
            "in order"
        } else {
            "at random"
        };
        let (kib, depth) = (self.block_len / 1024, self.depth);
        write!(f, "{what} of {kib} KiB {order}, {depth} at a time")
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pub(super) latencies: Histogram,
    pub(super) time: Duration,
}

/// The file or device.
#[derive(Debug)]
pub(super) struct Target {
    file: File,
    len: u64,
    /// It was made for this. It has no name any more, so it goes with the process, however that ends.
    made: bool,
}

impl Target {
    /// An existing path is only read; of a missing one a file of `size` bytes is made.
    pub(super) fn open(path: &Path, size: u64) -> io::Result<Self> {
        let direct = OFlag::O_DIRECT.bits();
        let existing = OpenOptions::new()
            .read(true)
            .custom_flags(direct)
            .open(path);
        match existing {
            Ok(mut file) => {
                let len = file.seek(SeekFrom::End(0))?;
                if len < FILL_LEN as u64 {
                    return Err(io::Error::other("it is shorter than 1 MiB"));
                }
                Ok(Self {
                    file,
                    len,
                    made: false,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .custom_flags(direct)
                    .open(path)?;
                std::fs::remove_file(path)?;
                let target = Self {
                    file,
                    len: size - size % FILL_LEN as u64,
                    made: true,
                };
                target.fill()?;
                Ok(target)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn may_write(&self) -> bool {
        self.made
    }

    /// Blocks that were never written are slower to write and faster to read than a volume's.
    fn fill(&self) -> io::Result<()> {
        let mut buffer = Buffer::new(FILL_LEN);
        for (nr, at) in (0..self.len).step_by(FILL_LEN).enumerate() {
            buffer.scramble(nr as u64);
            self.file.write_all_at(buffer.bytes(), at)?;
        }
        self.file.sync_all()
    }

    /// Keeps `depth` requests under way for so long.
    pub(super) fn run(&self, job: &Job, time: Duration) -> io::Result<Measured> {
        let began = now();
        let end = began + time;
        let results: Vec<io::Result<Histogram>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..job.depth)
                .map(|nr| scope.spawn(move || self.one_thread(job, nr as u64, end)))
                .collect();
            let died = || io::Error::other("a thread of the measurement panicked");
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(died())))
                .collect()
        });
        let mut measured = Measured {
            latencies: Histogram::default(),
            time: now().duration_since(began),
        };
        for result in results {
            measured.latencies.merge(&result?);
        }
        Ok(measured)
    }

    fn one_thread(&self, job: &Job, nr: u64, end: std::time::Instant) -> io::Result<Histogram> {
        let mut latencies = Histogram::default();
        let mut buffer = Buffer::new(job.block_len);
        buffer.scramble(nr);
        let blocks = (self.len / job.block_len as u64).max(1);
        let mut turn = 0_u64;
        loop {
            let block = if job.is_sequential() {
                turn
            } else {
                scrambled(nr << 40 | turn)
            };
            turn += 1;
            let at = block % blocks * job.block_len as u64;
            let asked = now();
            if asked >= end {
                return Ok(latencies);
            }
            match job.kind {
                Kind::Read => self.file.read_exact_at(buffer.bytes_mut(), at)?,
                Kind::Write => self.file.write_all_at(buffer.bytes(), at)?,
                Kind::WriteFlush => {
                    self.file.write_all_at(buffer.bytes(), at)?;
                    self.file.sync_data()?;
                }
            }
            let nanos = now().duration_since(asked).as_nanos();
            latencies.add(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
    }
}

/// Memory aligned for direct I/O.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// Nothing that a disk could compress or take for zeroes.
    fn scramble(&mut self, seed: u64) {
        for (nr, word) in (0_u64..).zip(self.bytes_mut().chunks_exact_mut(8)) {
            word.copy_from_slice(&scrambled(seed << 32 | nr).to_le_bytes());
        }
    }
}

/// splitmix64: the same numbers in every run.
fn scrambled(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
