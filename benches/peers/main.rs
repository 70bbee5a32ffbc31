//! The end-to-end comparison: twinblk beside QEMU's synchronous mirror, interleaved passes in one
//! run, verified on both replicas. Absolute times of a machine mean nothing; the ratios, and the
//! counts per write, do. Run it with `cargo xtask bench-peers`.
//!
//! Options: `--set mirror|export` (mirror: both replicas written; export: one replica beside plain NBD
//! servers), `--passes N` (3), `--seconds S` (2), `--depth D` (32), `--dir DIR` (/dev/shm), `--files`
//! (the files themselves instead of loop devices over them, which need root).

#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and waits"
)]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(missing_docs, reason = "a program, not a library")]

mod load;
mod measure;
mod systems;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const SIZE: u64 = 256 << 20;
/// Let a system settle before it is measured: caches, activity log, branch predictors.
const WARM_UP: Duration = Duration::from_millis(500);

struct Options {
    set: &'static [Named],
    passes: usize,
    seconds: f64,
    depth: usize,
    dir: PathBuf,
    loops: bool,
}

struct Row {
    iops: f64,
    p50_us: f64,
    /// Each server's.
    cpu_us: Vec<f64>,
    syscalls: Option<f64>,
    switches: Option<f64>,
}

type Start = fn(&systems::Place<'_>) -> Result<systems::System>;
type Named = (&'static str, Start);

/// Ours first; the others are compared with it.
const MIRRORS: &[Named] = &[
    ("twinblk C", systems::twinblk),
    ("QEMU mirror write-blocking", systems::qemu_mirror),
];
const EXPORTS: &[Named] = &[
    ("twinblk, one replica", systems::twinblk_alone),
    ("qemu-nbd native", systems::qemu_nbd_native),
    ("qemu-nbd io_uring", systems::qemu_nbd_io_uring),
    ("nbdkit null", systems::nbdkit_null),
];

fn main() -> Result<()> {
    let options = options()?;
    let mut rows: Vec<Vec<Row>> = options.set.iter().map(|_| Vec::new()).collect();
    for pass in 0..options.passes {
        // Alternating order: whatever drifts hits all.
        for nr in 0..options.set.len() {
            let which = (nr + pass) % options.set.len();
            let (name, start) = options.set[which];
            let row =
                measure_one(start, &options).with_context(|| format!("pass {pass}: {name}"))?;
            rows[which].push(row);
        }
    }
    print_table(&options, &rows);
    Ok(())
}

fn measure_one(start: Start, options: &Options) -> Result<Row> {
    let dir = options
        .dir
        .join(format!("twinblk-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure_in(&dir, start, options);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn measure_in(dir: &Path, start: Start, options: &Options) -> Result<Row> {
    let system = start(&systems::Place {
        dir,
        size: SIZE,
        loops: options.loops,
    })?;
    load::fill(&system.socket, system.export, SIZE)?;
    let blocks = usize::try_from(SIZE)? / load::BLOCK;
    load::run(
        &system.socket,
        system.export,
        blocks,
        options.depth,
        WARM_UP,
    )?;
    let time = Duration::from_secs_f64(options.seconds);
    let cpu = || {
        let each = system.servers.iter().map(|pid| measure::cpu_seconds(*pid));
        each.collect::<Result<Vec<f64>>>()
    };
    let before = cpu()?;
    let perf = measure::Perf::start(&system.servers, time);
    let run = load::run(&system.socket, system.export, blocks, options.depth, time)?;
    let counts = perf.finish();
    let ops = run.ops as f64;
    let cpu_us = cpu()?
        .iter()
        .zip(&before)
        .map(|(after, before)| (after - before) * 1e6 / ops)
        .collect();
    for image in &system.images {
        let wrong = load::mismatches(image, &run.written)?;
        if wrong > 0 {
            bail!(
                "{}: {wrong} blocks do not hold what was written",
                image.display()
            );
        }
    }
    Ok(Row {
        iops: ops / run.seconds,
        p50_us: run.p50_us,
        cpu_us,
        syscalls: counts.map(|counts| counts.syscalls / ops),
        switches: counts.map(|counts| counts.context_switches / ops),
    })
}

fn print_table(options: &Options, rows: &[Vec<Row>]) {
    println!(
        "4 KiB random writes, depth {}, one connection, {} passes of {} s, on {} in {}, 0 mismatches",
        options.depth,
        options.passes,
        options.seconds,
        if options.loops {
            "loop devices"
        } else {
            "files"
        },
        options.dir.display()
    );
    println!(
        "| system | IOPS | p50 µs | CPU µs/write (primary + secondary) | syscalls/write | context switches/write |"
    );
    println!("|---|---|---|---|---|---|");
    for (which, (name, _)) in options.set.iter().enumerate() {
        let of = |field: fn(&Row) -> f64| median(rows[which].iter().map(field));
        let count = |field: fn(&Row) -> Option<f64>| {
            let known: Vec<f64> = rows[which].iter().filter_map(field).collect();
            if known.is_empty() {
                "-".into()
            } else {
                format!("{:.2}", median(known))
            }
        };
        println!(
            "| {name} | {:.0} | {:.0} | {} | {} | {} |",
            of(|row| row.iops),
            of(|row| row.p50_us),
            cpu_of_each(&rows[which]),
            count(|row| row.syscalls),
            count(|row| row.switches),
        );
    }
    let cpu = |row: &Row| row.cpu_us.iter().sum::<f64>();
    for (which, (name, _)) in options.set.iter().enumerate().skip(1) {
        let pairs = || rows[0].iter().zip(&rows[which]);
        println!(
            "beside {name}, median of the ratios per pass: IOPS {:.2}×, p50 {:.2}×, CPU per write {:.2}×",
            median(pairs().map(|(ours, theirs)| ours.iops / theirs.iops)),
            median(pairs().map(|(ours, theirs)| ours.p50_us / theirs.p50_us)),
            median(pairs().map(|(ours, theirs)| cpu(ours) / cpu(theirs))),
        );
    }
}

/// Medians of the servers, as `15.1 + 11.9`.
fn cpu_of_each(rows: &[Row]) -> String {
    let servers = rows.first().map_or(0, |row| row.cpu_us.len());
    let each =
        (0..servers).map(|nr| format!("{:.1}", median(rows.iter().map(|row| row.cpu_us[nr]))));
    each.collect::<Vec<_>>().join(" + ")
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn options() -> Result<Options> {
    let mut options = Options {
        set: MIRRORS,
        passes: 3,
        seconds: 2.0,
        depth: 32,
        dir: PathBuf::from("/dev/shm"),
        loops: true,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value"))
        };
        match word.as_str() {
            "--set" => {
                options.set = match value()?.as_str() {
                    "mirror" => MIRRORS,
                    "export" => EXPORTS,
                    other => bail!("unknown set {other}: mirror or export"),
                }
            }
            "--passes" => options.passes = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--depth" => options.depth = value()?.parse()?,
            "--files" => options.loops = false,
            "--dir" => options.dir = value()?.into(),
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}
