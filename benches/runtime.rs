//! The decision of docs/decisions/0002, measured again: random 4 KiB direct writes to one disk, on
//! the event loop of this project and on tokio-uring. Turns alternate, and only what hardly depends
//! on the machine is worth comparing: CPU and context switches per write, and the ratio of rates.
//!
//! Options: `--depth D` (32), `--passes N` (5), `--seconds S` (1), `--file PATH`: a disk or a file of
//! at least 64 MiB to overwrite; by default a file below /var/tmp.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(
    unsafe_code,
    reason = "tokio-uring asks for memory through an unsafe trait"
)]
#![allow(missing_docs, reason = "a program, not a library")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::O_DIRECT;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use replicator::io::{Backend, BufferPool, Disk, Op, Token, Wait, open_backend};
use replicator::types::Payload;

const BLOCK: usize = 4096;
const LEN: u64 = 64 << 20;

struct Options {
    depth: usize,
    passes: usize,
    time: Duration,
    file: Option<PathBuf>,
}

/// Writes for a while and tells how often.
type Run = fn(&Path, &Options) -> Result<u64>;

#[derive(Clone, Copy)]
struct Row {
    rate: f64,
    cpu_us: f64,
    switches: f64,
}

fn main() -> Result<()> {
    let options = options()?;
    let made = PathBuf::from(format!("/var/tmp/twinblk-runtime-{}", std::process::id()));
    let path = options.file.clone().unwrap_or_else(|| made.clone());
    if options.file.is_none() {
        // Written in full: an overwrite is what is measured, not an allocation.
        std::fs::write(&made, vec![1u8; usize::try_from(LEN)?])?;
        File::open(&made)?.sync_all()?;
    }
    let result = compare(&path, &options);
    if options.file.is_none() {
        std::fs::remove_file(&made)?;
    }
    result
}

fn compare(path: &Path, options: &Options) -> Result<()> {
    let systems: [(&str, Run); 2] = [("own loop", own_loop), ("tokio-uring", tokio_loop)];
    let mut rows: [Vec<Row>; 2] = [Vec::new(), Vec::new()];
    for pass in 0..options.passes {
        for nr in 0..2 {
            let which = (nr + pass) % 2;
            rows[which].push(measure(|| systems[which].1(path, options), options)?);
        }
    }
    println!("4 KiB random direct writes, depth {}", options.depth);
    println!("| loop | writes/s | CPU µs/write | context switches/write |");
    println!("|---|---|---|---|");
    for (which, (name, _)) in systems.iter().enumerate() {
        let of = |field: fn(&Row) -> f64| median(rows[which].iter().map(field));
        println!(
            "| {name} | {:.0} | {:.2} | {:.3} |",
            of(|row| row.rate),
            of(|row| row.cpu_us),
            of(|row| row.switches)
        );
    }
    let pairs = || rows[0].iter().zip(&rows[1]);
    println!(
        "own / tokio-uring per pass, median: rate {:.2}×, CPU per write {:.2}×",
        median(pairs().map(|(own, other)| own.rate / other.rate)),
        median(pairs().map(|(own, other)| own.cpu_us / other.cpu_us)),
    );
    Ok(())
}

fn measure(run: impl FnOnce() -> Result<u64>, options: &Options) -> Result<Row> {
    let cpu = |usage: &Usage| {
        let micros =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
        micros(usage.user_time()) + micros(usage.system_time())
    };
    let before = getrusage(UsageWho::RUSAGE_SELF)?;
    let writes = run()? as f64;
    let after = getrusage(UsageWho::RUSAGE_SELF)?;
    let switches = after.voluntary_context_switches() - before.voluntary_context_switches();
    Ok(Row {
        rate: writes / options.time.as_secs_f64(),
        cpu_us: (cpu(&after) - cpu(&before)) / writes,
        switches: switches as f64 / writes,
    })
}

/// Offsets in an order without pattern, the same for both.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % (LEN / BLOCK as u64) * BLOCK as u64
    }
}

fn own_loop(path: &Path, options: &Options) -> Result<u64> {
    let mut backend: Box<dyn Backend> = open_backend()?;
    let disk = Disk::open(path)?;
    let payload = BufferPool::new().copy_of(&[7; BLOCK]);
    let mut offsets = Offsets(1);
    let mut submit = |backend: &mut dyn Backend| {
        let op = Op::Write {
            file: disk.file().clone(),
            offset: offsets.next(),
            payload: payload.bytes().clone(),
            durable: false,
        };
        backend.submit(Token(0), op);
    };
    for _ in 0..options.depth {
        submit(&mut *backend);
    }
    let (end, mut writes, mut done) = (Instant::now() + options.time, 0, Vec::new());
    while backend.in_flight() > 0 {
        backend.turn(Wait::default(), &mut done)?;
        let more = Instant::now() < end;
        for completion in done.drain(..) {
            ensure!(completion.count()? == BLOCK, "a short write");
            writes += 1;
            if more {
                submit(&mut *backend);
            }
        }
    }
    Ok(writes)
}

/// A block as tokio-uring wants it.
struct Block(Payload);

// SAFETY: the payload's bytes never move nor change while any handle to it lives, and a `Block`
// owns one.
unsafe impl tokio_uring::buf::IoBuf for Block {
    fn stable_ptr(&self) -> *const u8 {
        self.0.bytes().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len()
    }

    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

fn tokio_loop(path: &Path, options: &Options) -> Result<u64> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)?;
    let payload = BufferPool::new().copy_of(&[7; BLOCK]);
    let end = Instant::now() + options.time;
    tokio_uring::start(async move {
        let file = Rc::new(tokio_uring::fs::File::from_std(file));
        let writers: Vec<_> = (0..options.depth)
            .map(|nr| {
                let (file, payload) = (Rc::clone(&file), payload.clone());
                tokio_uring::spawn(async move {
                    let mut offsets = Offsets(nr as u64);
                    let mut writes = 0;
                    while Instant::now() < end {
                        let block = Block(payload.clone());
                        let (result, _) = file.write_at(block, offsets.next()).submit().await;
                        ensure!(result? == BLOCK, "a short write");
                        writes += 1;
                    }
                    Ok(writes)
                })
            })
            .collect();
        let mut writes = 0;
        for writer in writers {
            writes += writer.await??;
        }
        Ok(writes)
    })
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn options() -> Result<Options> {
    let mut options = Options {
        depth: 32,
        passes: 5,
        time: Duration::from_secs(1),
        file: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value"))
        };
        match word.as_str() {
            "--depth" => options.depth = value()?.parse()?,
            "--passes" => options.passes = value()?.parse()?,
            "--seconds" => options.time = Duration::from_secs_f64(value()?.parse()?),
            "--file" => options.file = Some(value()?.into()),
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}
