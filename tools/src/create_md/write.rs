//! Writing the metadata of a new replica: at each moment of a crash there is either no replica in
//! the area, or the whole new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::meta::layout::SUPERBLOCK_OFFSETS;
use replicator::meta::{FormatPlan, NewReplica, PAGE_LEN, Superblock, format};
use replicator::types::ReplicaId;

use super::decide::{Recipe, Wanted};
use super::probe::{Meta, failed, lock};

/// Zeroes written at once.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// Writes it; answers the new replica's identity.
pub(super) fn write(
    wanted: &Wanted,
    recipe: &Recipe,
    meta: Meta,
) -> Result<ReplicaId, ErrorReport> {
    let path = &wanted.meta;
    let failed = |error: io::Error| failed(path, &error);
    let replica = random_replica().map_err(failed)?;
    let plan = format(&superblock(wanted, recipe, replica)).map_err(|error| {
        ErrorReport::new(
            ErrorId::DeviceUnusable,
            "no metadata can be made",
            error.to_string(),
        )
    })?;
    match meta {
        Meta::Existing(file) => write_over(&file, &plan).map_err(failed)?,
        Meta::Missing => {
            if let Err(report) = write_new(path, recipe, &plan) {
                // Ours, and of no use; a second try shall find nothing.
                drop(fs::remove_file(path));
                return Err(report);
            }
        }
    }
    Ok(replica)
}

fn superblock(wanted: &Wanted, recipe: &Recipe, replica: ReplicaId) -> Superblock {
    Superblock::blank(NewReplica {
        resource: wanted.resource,
        volume: wanted.volume,
        node: wanted.node,
        replica,
        size: recipe.size,
        al_slots: wanted.al_slots,
        zero_proven: recipe.zero_proven,
    })
}

fn write_new(path: &Path, recipe: &Recipe, plan: &FormatPlan) -> Result<(), ErrorReport> {
    let failed = |error: io::Error| failed(path, &error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let file = lock(file, path)?;
    let written = file.set_len(recipe.needed.0).and_then(|()| {
        file.sync_all()?;
        write_pages(&file, plan)
    });
    written.and_then(|()| sync_directory(path)).map_err(failed)
}

/// First both superblock copies go, then the rest: with an old copy left beside a zeroed activity
/// log, a crash would leave an old replica that had forgotten what it must resync.
fn write_over(file: &File, plan: &FormatPlan) -> io::Result<()> {
    for offset in SUPERBLOCK_OFFSETS {
        file.write_all_at(&ZEROES[..PAGE_LEN], offset.0)?;
    }
    file.sync_all()?;
    let (mut at, end) = (plan.zero.offset().0, plan.zero.end().0);
    while at < end {
        let len = usize::try_from(end - at)
            .unwrap_or(ZEROES.len())
            .min(ZEROES.len());
        file.write_all_at(&ZEROES[..len], at)?;
        at += u64::try_from(len).unwrap_or(end);
    }
    file.sync_all()?;
    write_pages(file, plan)
}

fn write_pages(file: &File, plan: &FormatPlan) -> io::Result<()> {
    for page in &plan.pages {
        file.write_all_at(&page.bytes, page.offset.0)?;
    }
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

/// A fresh identity, never 0.
fn random_replica() -> io::Result<ReplicaId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(ReplicaId(u128::from_le_bytes(bytes).max(1)))
}
