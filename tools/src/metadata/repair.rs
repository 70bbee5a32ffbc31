//! `repair-md`: makes damaged metadata whole again, as far as something safe can be said: a lost
//! superblock copy is written anew from the other, and whatever a damaged page or ring may have said
//! is marked. What an attach does too; this does it at once, and says so.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::meta::inspect::{Copy, LogContent};
use replicator::meta::{Inspection, Loader, MetaPage, OpenError, Recovered};

use super::report::{self, Wanted};
use super::wipe::check_copies;
use crate::show::size::size;

/// What will be mended, in words; empty if everything is whole.
///
/// # Errors
/// If it is not this replica's, or nothing safe can be said about what was lost.
pub(super) fn plan(wanted: &Wanted, seen: &Inspection) -> Result<Vec<String>, ErrorReport> {
    let what = || format!("{} is not repaired", wanted.path.display());
    if seen.refusal.is_some() {
        let problem = report::problem(wanted, seen);
        let why = problem.map(|it| ErrorReport { what: what(), ..it });
        return Err(why.unwrap_or_else(|| {
            ErrorReport::new(ErrorId::MetadataDamaged, what(), "it cannot be opened")
        }));
    }
    check_copies(wanted, seen).map_err(|report| ErrorReport {
        what: what(),
        ..report
    })?;
    Ok(steps(seen))
}

fn steps(seen: &Inspection) -> Vec<String> {
    let mut steps = Vec::new();
    let Some(contents) = &seen.contents else {
        return steps;
    };
    if let LogContent::Lost(error) = contents.activity_log {
        steps.push(format!(
            "empty the activity log ({error}) and mark every block"
        ));
    }
    let damaged = contents.bitmap.damaged;
    if damaged > 0 {
        steps.push(format!(
            "write {damaged} damaged bitmap pages with every block of theirs marked"
        ));
    }
    for (nth, copy) in ["first", "second"].iter().zip(&seen.copies) {
        if !matches!(copy, Copy::Whole(_)) {
            steps.push(format!("write the {nth} superblock copy from the other"));
        }
    }
    if !steps.is_empty() {
        let marked = contents.bitmap.marked.bytes().0;
        steps.push(format!("marked is then {}", size(marked)));
    }
    steps
}

/// Mends it. Marks are durable before what they replace goes, and the whole superblock copy is
/// never touched: a crash at any moment leaves what can be opened with the same marks.
pub(super) fn repair(file: &File, seen: &Inspection) -> io::Result<()> {
    let mut opened = open(file, seen)?;
    let pages: Vec<_> = opened.bitmap.grown_pages().collect();
    for page in pages {
        write(file, &opened.bitmap.write_page(page))?;
    }
    file.sync_all()?;
    for page in opened.activity_log_repair.iter().flatten() {
        write(file, page)?;
    }
    file.sync_all()?;
    // Into the other place than the copy that counts: a lost one is there, if any is.
    write(file, &opened.superblock.next_write(|_| {}))?;
    file.sync_all()
}

fn open(file: &File, seen: &Inspection) -> io::Result<Recovered> {
    let mut loader = Loader::new(seen.area);
    let mut buffer = Vec::new();
    while let Some(range) = loader.next_read() {
        buffer.resize(usize::try_from(range.len().0).unwrap_or(0), 0);
        file.read_exact_at(&mut buffer, range.offset().0)?;
        loader.feed(&buffer);
    }
    loader
        .finish()
        .map_err(|error: OpenError| io::Error::other(error))
}

fn write(file: &File, page: &MetaPage) -> io::Result<()> {
    file.write_all_at(&page.bytes, page.offset.0)
}
