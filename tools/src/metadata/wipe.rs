//! `wipe-md`: takes a replica's metadata away.
//!
//! Both superblock copies go first, durably: from then on there is no replica in the area, whatever
//! a crash leaves of the rest. What is left is recognised by the next `wipe-md` and erased then.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use replicator::admin::{ErrorId, ErrorReport, ResourceStatus};
use replicator::meta::inspect::{Copy, is_log_or_bitmap};
use replicator::meta::layout::{ACTIVITY_LOG_OFFSET, BITMAP_OFFSET, SUPERBLOCK_OFFSETS};
use replicator::meta::superblock::SuperblockError;
use replicator::meta::{Inspection, OpenError, PAGE_LEN};

use super::report::{self, Wanted};
use crate::show::size::size;

/// Bytes looked at at once.
const CHUNK_LEN: usize = 1 << 20;
const PAGE: u64 = PAGE_LEN as u64;
const ZERO_PAGE: [u8; PAGE_LEN] = [0; PAGE_LEN];

/// How much of the area is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// So many bytes from its begin, by the superblock.
    Bytes(u64),
    /// Not known: whatever looks like ours, up to the first page behind the activity log that does
    /// not.
    Recognised,
}

/// What erasing means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    reach: Reach,
    /// What is lost, in words.
    pub(super) lost: String,
}

/// What to do with an area that is locked; `None`: there is nothing of ours.
///
/// # Errors
/// If it is not this replica's to erase.
pub(super) fn plan(
    wanted: &Wanted,
    seen: &Inspection,
    leftovers: bool,
) -> Result<Option<Plan>, ErrorReport> {
    match seen.refusal {
        // Not even a magic number can be judged: nothing to erase, whatever it is.
        _ if seen.area.0 < PAGE => Ok(None),
        Some(OpenError::NoMetadata) if leftovers => Ok(Some(Plan {
            reach: Reach::Recognised,
            lost: "nothing more: only the rest of metadata that was erased before".to_owned(),
        })),
        Some(OpenError::NoMetadata) => Ok(None),
        Some(OpenError::NotOurs | OpenError::TooNew { .. }) => Err(not_ours(wanted, seen)),
        _ => {
            check_copies(wanted, seen)?;
            Ok(Some(plan_for(seen)))
        }
    }
}

/// Never erased: anything else, even in the place of one copy only (somebody may have made a
/// filesystem there since), and the metadata of another replica.
///
/// # Errors
/// If so.
pub(super) fn check_copies(wanted: &Wanted, seen: &Inspection) -> Result<(), ErrorReport> {
    for copy in &seen.copies {
        match copy {
            Copy::Not(SuperblockError::Foreign) => {
                let what = format!("{} is not erased", wanted.path.display());
                let why = "something else lies in the place of one superblock copy";
                return Err(ErrorReport::new(ErrorId::ForeignSignature, what, why));
            }
            Copy::Whole(superblock) if !wanted.fits(superblock) => {
                let what = format!("{} is not erased", wanted.path.display());
                let why = "it holds the metadata of another replica (resource, volume or node)";
                return Err(ErrorReport::new(ErrorId::MetadataForeign, what, why));
            }
            _ => {}
        }
    }
    Ok(())
}

fn not_ours(wanted: &Wanted, seen: &Inspection) -> ErrorReport {
    let path = wanted.path.display();
    let what = format!("{path} is not erased");
    match report::problem(wanted, seen) {
        Some(problem) => ErrorReport { what, ..problem },
        None => ErrorReport::new(ErrorId::ForeignSignature, what, "it is not ours"),
    }
}

fn plan_for(seen: &Inspection) -> Plan {
    let Some(contents) = &seen.contents else {
        return Plan {
            reach: Reach::Recognised,
            lost: "what is left of damaged metadata".to_owned(),
        };
    };
    let state = report::state_words(contents.superblock.state);
    let marked = contents.bitmap.marked;
    Plan {
        reach: Reach::Bytes(contents.layout.total().0),
        lost: format!(
            "that this replica is {state}, and which {} blocks ({}) may differ from the peer; a new \
             replica is a stranger, and a node that had this one attached does not take it",
            marked.0,
            size(marked.bytes().0)
        ),
    }
}

/// While a daemon means to use it, it is not taken away from under it, attached or not.
///
/// # Errors
/// If the resource is up.
pub(super) fn check_down(
    wanted: &Wanted,
    status: Option<&ResourceStatus>,
) -> Result<(), ErrorReport> {
    if !status.is_some_and(|status| status.up) {
        return Ok(());
    }
    let what = format!("the metadata of {} is not erased", wanted.label());
    let why = format!("{} is up on {}", wanted.resource_name, wanted.node_name);
    let down = format!("twinadm down {}, then try again", wanted.resource_name);
    Err(ErrorReport::new(ErrorId::DeviceInUse, what, why).next(down))
}

/// Whether an area without a superblock holds the rest of metadata and nothing else where that lies.
pub(super) fn has_leftovers(file: &File, seen: &Inspection) -> io::Result<bool> {
    if seen.refusal != Some(OpenError::NoMetadata) {
        return Ok(false);
    }
    let (mut ours, mut foreign) = (false, false);
    visit(file, seen.area.0, |page, offset| {
        match (is_log_or_bitmap(page), offset < BITMAP_OFFSET.0) {
            (true, _) => ours = true,
            (false, true) => foreign = true,
            (false, false) => return Ok(Visit::Stop),
        }
        Ok(Visit::Further)
    })?;
    Ok(ours && !foreign)
}

/// Erases it; answers how many bytes of the area were not zero.
pub(super) fn erase(file: &File, len: u64, plan: &Plan) -> io::Result<u64> {
    let mut erased = 0;
    let mut page = ZERO_PAGE;
    for offset in SUPERBLOCK_OFFSETS {
        let there = usize::try_from(len.saturating_sub(offset.0)).unwrap_or(PAGE_LEN);
        let there = there.min(PAGE_LEN);
        file.read_exact_at(&mut page[..there], offset.0)?;
        if page[..there] != ZERO_PAGE[..there] {
            file.write_all_at(&ZERO_PAGE[..there], offset.0)?;
            erased += u64::try_from(there).unwrap_or(0);
        }
    }
    file.sync_all()?;
    let end = match plan.reach {
        Reach::Bytes(bytes) => bytes.min(len),
        Reach::Recognised => len,
    };
    visit(file, end, |page, offset| {
        let ours = plan.reach != Reach::Recognised || is_log_or_bitmap(page);
        if ours {
            erased += PAGE;
            file.write_all_at(&ZERO_PAGE, offset)?;
        } else if offset >= BITMAP_OFFSET.0 {
            return Ok(Visit::Stop);
        }
        Ok(Visit::Further)
    })?;
    file.sync_all()?;
    Ok(erased)
}

/// Whether the rest is wanted too.
#[derive(PartialEq, Eq)]
enum Visit {
    Further,
    Stop,
}

/// Each page behind the first superblock, up to `end`, that is not zero. A part of a page at the
/// end is none of ours.
fn visit(
    file: &File,
    end: u64,
    mut each: impl FnMut(&[u8; PAGE_LEN], u64) -> io::Result<Visit>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_LEN];
    let end = end - end % PAGE;
    let mut at = ACTIVITY_LOG_OFFSET.0;
    while at < end {
        let rest = usize::try_from(end - at).map_or(CHUNK_LEN, |rest| rest.min(CHUNK_LEN));
        file.read_exact_at(&mut chunk[..rest], at)?;
        let (pages, _) = chunk[..rest].as_chunks::<PAGE_LEN>();
        for page in pages {
            if *page != ZERO_PAGE && each(page, at)? == Visit::Stop {
                return Ok(());
            }
            at += PAGE;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use replicator::meta::inspect::Inspector;
    use replicator::types::{ByteLen, NodeId, ResourceId, VolumeId};

    use super::*;
    use crate::show::samples;

    fn wanted() -> Wanted {
        Wanted {
            resource: ResourceId::of_name("vm-web"),
            resource_name: "vm-web".to_owned(),
            label: "vm-web/0".to_owned(),
            volume: VolumeId(0),
            further: false,
            node: NodeId::A,
            node_name: "kvm-a".to_owned(),
            path: "/x/a.md".into(),
        }
    }

    fn seen(page: [u8; PAGE_LEN]) -> Inspection {
        let mut inspector = Inspector::new(ByteLen(1 << 20));
        while inspector.next_read().is_some() {
            inspector.feed(&page);
        }
        inspector.finish()
    }

    #[test]
    fn while_the_resource_is_up_it_is_refused_and_down_or_unknown_it_is_not() {
        let up = samples::healthy().resources.remove(1);
        let refused = check_down(&wanted(), Some(&up)).unwrap_err();
        assert_eq!((refused.id.as_str(), refused.exit), ("E0404", 4));
        assert_eq!(refused.next, ["twinadm down vm-web, then try again"]);
        assert_eq!(check_down(&wanted(), Some(&samples::down())), Ok(()));
        assert_eq!(check_down(&wanted(), None), Ok(()));
    }

    #[test]
    fn nothing_is_planned_for_an_empty_area_unless_something_is_left_over() {
        let empty = seen(ZERO_PAGE);
        assert_eq!(plan(&wanted(), &empty, false), Ok(None));
        let rest = plan(&wanted(), &empty, true).unwrap().unwrap();
        assert_eq!(rest.reach, Reach::Recognised);
        let foreign = seen([7; PAGE_LEN]);
        assert_eq!(plan(&wanted(), &foreign, false).unwrap_err().id, "E0402");
    }
}
