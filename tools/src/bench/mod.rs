//! `bench`: what a disk can do, and two results side by side.
//!
//! ```text
//! disk: load (files, threads, the clock) → histogram → report (pure) ─▶ text, Markdown, JSON
//! compare: two JSON files → report → text, Markdown
//! ```
//!
//! Nothing is ever written to what exists: of an existing path only reads are measured, and writes
//! into a file that the command makes and whose name it takes away at once.

mod histogram;
mod load;
mod report;

use std::fs;
use std::path::Path;

use replicator::admin::{ErrorId, ErrorReport, exit};

use crate::cli;
use crate::context::{Context, Failure, Output};
use load::{Job, Kind, Target};
use report::{Case, Machine, Report};

/// What is measured of a disk, in this order. Depth 1 is what a database's commit waits for.
const JOBS: [Job; 7] = [
    Job::new("4k-write-flush-1", Kind::WriteFlush, 4096, 1),
    Job::new("4k-write-1", Kind::Write, 4096, 1),
    Job::new("4k-write-32", Kind::Write, 4096, 32),
    Job::new("1m-write-1", Kind::Write, 1 << 20, 1),
    Job::new("4k-read-1", Kind::Read, 4096, 1),
    Job::new("4k-read-32", Kind::Read, 4096, 32),
    Job::new("1m-read-1", Kind::Read, 1 << 20, 1),
];

/// `bench disk`.
///
/// # Errors
/// If the path cannot be measured, or a result cannot be written.
pub(crate) fn disk(context: &Context, arguments: &cli::BenchDisk) -> Result<u8, Failure> {
    let path = &arguments.path;
    let target = Target::open(path, arguments.size).map_err(|error| unusable(path, &error))?;
    let jobs = JOBS
        .iter()
        .filter(|job| target.may_write() || !job.writes());
    let mut cases = Vec::new();
    for job in jobs {
        context.tell(&format!("{}: {job}", path.display()));
        let measured = target.run(job, arguments.time);
        let measured = measured.map_err(|error| unusable(path, &error))?;
        cases.push(Case::of(job.name, job.block_len, job.depth, &measured));
    }
    let report = Report::new("disk", path.display().to_string(), Machine::here(), cases);
    show(context, &report)?;
    export(arguments.export_json.as_deref(), &report.to_json())?;
    export(arguments.export_markdown.as_deref(), &report.to_markdown())?;
    Ok(exit::OK)
}

fn show(context: &Context, report: &Report) -> Result<(), Failure> {
    match context.output {
        Output::Plain => context.put(&report.to_text()),
        Output::Json => context.put(&report.to_json()),
    }
}

/// `bench compare`.
///
/// # Errors
/// If a file is no result of `bench`, or what is read from them cannot be shown.
pub(crate) fn compare(context: &Context, arguments: &cli::BenchCompare) -> Result<u8, Failure> {
    let (a, b) = (read(&arguments.first)?, read(&arguments.second)?);
    let rows = report::compare(&a, &b);
    if rows.is_empty() {
        let what = "the two results have no case in common";
        let why = format!(
            "one is of `bench {}`, the other of `bench {}`",
            a.kind, b.kind
        );
        return Err(ErrorReport::new(ErrorId::BadRequest, what, why)
            .next("compare two results of the same verb")
            .into());
    }
    match context.output {
        Output::Plain => context.put(&report::comparison_text(&a, &b, &rows))?,
        Output::Json => context.put_json(&rows, false)?,
    }
    Ok(exit::OK)
}

fn read(path: &Path) -> Result<Report, Failure> {
    let text = fs::read_to_string(path).map_err(|error| unusable(path, &error))?;
    serde_json::from_str(&text)
        .map_err(|error| error.to_string())
        .and_then(|report: Report| match report.schema == report::SCHEMA {
            true => Ok(report),
            false => Err(format!("its schema is {}", report.schema)),
        })
        .map_err(|why| {
            let what = format!("{} is no result of `twinadm bench`", path.display());
            ErrorReport::new(ErrorId::BadRequest, what, why)
                .next("make one: twinadm bench disk PATH --export-json FILE")
                .into()
        })
}

fn export(path: Option<&Path>, text: &str) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, text).map_err(|error| unusable(path, &error).into())
}

fn unusable(path: &Path, error: &std::io::Error) -> ErrorReport {
    let what = format!("{} cannot be used", path.display());
    ErrorReport::new(ErrorId::DeviceUnusable, what, error.to_string())
        .next("name a file or device that can be opened with direct I/O, or a new file beside it")
}
