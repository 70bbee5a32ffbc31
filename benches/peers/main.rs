//! The end-to-end comparison: twinblk beside QEMU's synchronous mirror, interleaved passes in one
//! run, verified on both replicas. Absolute times of a machine mean nothing; the ratios, and the
//! counts per write, do. Run it with `cargo xtask bench-peers`.
//!
//! Options: `--passes N` (3), `--seconds S` (2), `--depth D` (32), `--dir DIR` (/dev/shm), `--files`
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
    passes: usize,
    seconds: f64,
    depth: usize,
    dir: PathBuf,
    loops: bool,
}

struct Row {
    iops: f64,
    p50_us: f64,
    cpu_us: [f64; 2],
    syscalls: Option<f64>,
    switches: Option<f64>,
}

type Start = fn(&systems::Place<'_>) -> Result<systems::System>;
const SYSTEMS: [(&str, Start); 2] = [
    ("twinblk C", systems::twinblk),
    ("QEMU mirror write-blocking", systems::qemu_mirror),
];

fn main() -> Result<()> {
    let options = options()?;
    let mut rows: [Vec<Row>; 2] = [Vec::new(), Vec::new()];
    for pass in 0..options.passes {
        // Alternating order: whatever drifts hits both.
        for nr in 0..SYSTEMS.len() {
            let which = (nr + pass) % SYSTEMS.len();
            let row = measure_one(SYSTEMS[which].1, &options)
                .with_context(|| format!("pass {pass}: {}", SYSTEMS[which].0))?;
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
    let cpu = |nr: usize| measure::cpu_seconds(system.servers[nr]);
    let before = [cpu(0)?, cpu(1)?];
    let perf = measure::Perf::start(&system.servers, time);
    let run = load::run(&system.socket, system.export, blocks, options.depth, time)?;
    let counts = perf.finish();
    let ops = run.ops as f64;
    let cpu_us = [
        (cpu(0)? - before[0]) * 1e6 / ops,
        (cpu(1)? - before[1]) * 1e6 / ops,
    ];
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

fn print_table(options: &Options, rows: &[Vec<Row>; 2]) {
    println!(
        "4 KiB random writes, depth {}, one connection, {} passes of {} s, both replicas on {} in {}, 0 mismatches",
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
        "| system | IOPS | p50 µs | CPU µs/write primary + secondary | syscalls/write | context switches/write |"
    );
    println!("|---|---|---|---|---|---|");
    for (which, (name, _)) in SYSTEMS.iter().enumerate() {
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
            "| {name} | {:.0} | {:.0} | {:.1} + {:.1} | {} | {} |",
            of(|row| row.iops),
            of(|row| row.p50_us),
            of(|row| row.cpu_us[0]),
            of(|row| row.cpu_us[1]),
            count(|row| row.syscalls),
            count(|row| row.switches),
        );
    }
    let cpu = |row: &Row| row.cpu_us[0] + row.cpu_us[1];
    let pairs = || rows[0].iter().zip(&rows[1]);
    println!(
        "ratio per pass, median: IOPS {:.2}×, CPU per write {:.2}×",
        median(pairs().map(|(ours, theirs)| ours.iops / theirs.iops)),
        median(pairs().map(|(ours, theirs)| cpu(ours) / cpu(theirs))),
    );
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn options() -> Result<Options> {
    let mut options = Options {
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
