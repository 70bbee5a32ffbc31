//! What `dump-md` prints: the schema `twinblk.metadata/1`, documented in docs/metadata.md. Pure.
//!
//! Within `/1` fields are only added. `null` means unknown or not applicable; ids are 32 hexadecimal
//! digits, sizes bytes, places offsets in the area.

use replicator::admin::{ErrorId, ErrorReport};
use replicator::meta::bitmap::BITS_PER_PAGE;
use replicator::meta::inspect::{Choice, Contents, Copy, LogContent};
use replicator::meta::layout::SUPERBLOCK_OFFSETS;
use replicator::meta::superblock::{FORMAT_VERSION, Place, SuperblockError};
use replicator::meta::{Features, Inspection, OpenError, ReplicaState, Superblock};
use replicator::types::{
    BLOCK_LEN, BlockCount, EXTENT_LEN, ExtentNr, NodeId, ResourceId, VolumeId,
};
use serde::Serialize;

/// Value of [`Metadata::schema`].
const SCHEMA: &str = "twinblk.metadata/1";

/// Whose metadata should be there.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// What the replica calls it.
    pub(super) resource: ResourceId,
    pub(super) resource_name: String,
    /// `RES/VOL`, or `RES` where there are several volumes.
    pub(super) label: String,
    /// Number of the first volume.
    pub(super) volume: VolumeId,
    /// Only volumes behind the first were named.
    pub(super) further: bool,
    pub(super) node: NodeId,
    pub(super) node_name: String,
    pub(super) path: std::path::PathBuf,
}

impl Wanted {
    /// For people.
    pub(super) fn label(&self) -> String {
        self.label.clone()
    }

    /// Whether it is this replica's.
    pub(super) fn fits(&self, superblock: &Superblock) -> bool {
        (superblock.resource, superblock.volume, superblock.node)
            == (self.resource, self.volume, self.node)
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Metadata {
    pub(super) schema: &'static str,
    pub(super) volume: String,
    pub(super) node: String,
    pub(super) meta: String,
    pub(super) area_bytes: u64,
    pub(super) in_use: bool,
    pub(super) superblocks: [CopyReport; 2],
    pub(super) choice: Option<&'static str>,
    pub(super) replica: Option<Replica>,
    pub(super) activity_log: Option<Log>,
    pub(super) bitmap: Option<Bitmap>,
    pub(super) problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct CopyReport {
    pub(super) copy: u8,
    pub(super) offset: u64,
    /// `whole`, `empty`, `foreign`, `damaged`, `too-new`, `beyond-end`.
    pub(super) content: &'static str,
    pub(super) format: Option<u16>,
    pub(super) sequence: Option<u64>,
    pub(super) replica: Option<String>,
    pub(super) counts: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Replica {
    pub(super) id: String,
    pub(super) ours: bool,
    pub(super) resource: String,
    pub(super) volume: u16,
    pub(super) node_index: u8,
    pub(super) state: &'static str,
    pub(super) in_sync_since: Option<u64>,
    pub(super) last_view: Option<u64>,
    pub(super) in_sync_from: Option<u64>,
    pub(super) data_generation: Option<String>,
    pub(super) bitmap_base: Option<String>,
    pub(super) boot_id: String,
    pub(super) size_bytes: u64,
    pub(super) needed_bytes: u64,
    pub(super) flags: Flags,
    pub(super) features: FeatureBits,
}

#[derive(Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "the flags of the superblock")]
pub(super) struct Flags {
    pub(super) open: bool,
    pub(super) full_sync_needed: bool,
    pub(super) bits_coarse: bool,
    pub(super) zero_proven: bool,
    pub(super) unwritten_bits_set: bool,
    pub(super) may_be_ahead: bool,
    pub(super) may_be_behind: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct FeatureBits {
    pub(super) compat: String,
    pub(super) ro_compat: String,
    pub(super) incompat: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Log {
    /// `whole`, `none`, `lost`, `cut-off`.
    pub(super) content: &'static str,
    pub(super) why: Option<String>,
    pub(super) slots: u16,
    pub(super) slots_used: Option<u64>,
    pub(super) pages: u32,
    pub(super) newest: Option<u64>,
    pub(super) extent_bytes: u64,
    /// Runs of consecutive extents, ascending.
    pub(super) extents: Vec<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Bitmap {
    pub(super) pages: u32,
    pub(super) written: u32,
    pub(super) unwritten: u32,
    pub(super) damaged: u32,
    pub(super) missing: u32,
    /// The first ones.
    pub(super) damaged_pages: Vec<u32>,
    pub(super) block_bytes: u64,
    pub(super) blocks_per_page: u64,
    pub(super) marked_on_disk_blocks: u64,
    pub(super) marked_on_disk_bytes: u64,
    pub(super) marked_blocks: u64,
    pub(super) marked_bytes: u64,
    pub(super) all_marked: bool,
}

impl Metadata {
    pub(super) fn new(wanted: &Wanted, seen: &Inspection, in_use: bool) -> Self {
        let contents = seen.contents.as_ref();
        let counting = contents.map(|it| counting(it.choice));
        let copy = |at: usize| copy_report(at, &seen.copies[at], counting == Some(at));
        Self {
            schema: SCHEMA,
            volume: wanted.label(),
            node: wanted.node_name.clone(),
            meta: wanted.path.display().to_string(),
            area_bytes: seen.area.0,
            in_use,
            superblocks: [copy(0), copy(1)],
            choice: contents.map(|it| choice_words(it.choice)),
            replica: contents.map(|it| Replica::new(wanted, it)),
            activity_log: contents.map(Log::new),
            bitmap: contents.map(Bitmap::new),
            problem: problem(wanted, seen).map(|report| report.why),
        }
    }
}

/// Index of the copy that counts.
fn counting(choice: Choice) -> usize {
    match choice {
        Choice::Same | Choice::Newer(Place::First) | Choice::OnlyWhole(Place::First) => 0,
        Choice::Newer(Place::Second) | Choice::OnlyWhole(Place::Second) => 1,
    }
}

fn choice_words(choice: Choice) -> &'static str {
    match choice {
        Choice::Newer(_) => "newer",
        Choice::Same => "both-same",
        Choice::OnlyWhole(_) => "only-whole",
    }
}

fn copy_report(at: usize, copy: &Copy, counts: bool) -> CopyReport {
    let (content, format) = match copy {
        Copy::Beyond => ("beyond-end", None),
        Copy::Whole(_) => ("whole", Some(FORMAT_VERSION)),
        Copy::Not(SuperblockError::Empty) => ("empty", None),
        Copy::Not(SuperblockError::Foreign) => ("foreign", None),
        Copy::Not(SuperblockError::TooNew { version, .. }) => ("too-new", Some(*version)),
        Copy::Not(_) => ("damaged", None),
    };
    let whole = match copy {
        Copy::Whole(superblock) => Some(superblock),
        Copy::Beyond | Copy::Not(_) => None,
    };
    CopyReport {
        copy: if at == 0 { 1 } else { 2 },
        offset: SUPERBLOCK_OFFSETS[at].0,
        content,
        format,
        sequence: whole.map(|it| it.sequence),
        replica: whole.map(|it| id_text(it.replica.0)),
        counts,
    }
}

impl Replica {
    pub(super) fn new(wanted: &Wanted, contents: &Contents) -> Self {
        let it = &contents.superblock;
        let resource = if it.resource == wanted.resource {
            wanted.resource_name.clone()
        } else {
            // Only the hash of a name is in the metadata.
            format!("0x{:016x}", it.resource.0)
        };
        let in_sync_since = match it.state {
            ReplicaState::InSync { since } => Some(since.0),
            _ => None,
        };
        Self {
            id: id_text(it.replica.0),
            ours: wanted.fits(it),
            resource,
            volume: it.volume.0,
            node_index: it.node.raw(),
            state: state_word(it.state),
            in_sync_since,
            last_view: Some(it.last_view.0).filter(|view| *view > 0),
            in_sync_from: it.in_sync_from.map(|view| view.0),
            data_generation: it.data_generation.map(|id| id_text(id.0)),
            bitmap_base: it.bitmap_base.map(|id| id_text(id.0)),
            boot_id: id_text(it.boot_id),
            size_bytes: it.size.bytes().0,
            needed_bytes: contents.layout.total().0,
            flags: Flags {
                open: it.open,
                full_sync_needed: it.full_sync_needed,
                bits_coarse: it.bits_coarse,
                zero_proven: it.zero_proven,
                unwritten_bits_set: it.unwritten_bits_set,
                may_be_ahead: it.may_be_ahead,
                may_be_behind: it.may_be_behind,
            },
            features: FeatureBits::new(it.features),
        }
    }
}

fn state_word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Blank => "Blank",
        ReplicaState::InSync { .. } => "InSync",
        ReplicaState::Outdated => "Outdated",
        ReplicaState::SyncTarget => "SyncTarget",
        ReplicaState::Failed => "Failed",
    }
}

/// `Outdated`, `InSync since view 3`.
pub(super) fn state_words(state: ReplicaState) -> String {
    match state {
        ReplicaState::InSync { since } => format!("InSync since view {since}"),
        other => state_word(other).to_owned(),
    }
}

impl FeatureBits {
    fn new(features: Features) -> Self {
        let bits = |word: u64| format!("0x{word:x}");
        Self {
            compat: bits(features.compat),
            ro_compat: bits(features.ro_compat),
            incompat: bits(features.incompat),
        }
    }
}

impl Log {
    fn new(contents: &Contents) -> Self {
        let (content, why, newest, listed) = match &contents.activity_log {
            LogContent::Absent => ("none", None, None, &[][..]),
            LogContent::Whole { newest, listed } => ("whole", None, Some(*newest), &listed[..]),
            LogContent::Lost(error) => ("lost", Some(error.to_string()), None, &[][..]),
            LogContent::CutOff => ("cut-off", None, None, &[][..]),
        };
        let used = u64::try_from(listed.len()).unwrap_or(u64::MAX);
        Self {
            content,
            why,
            slots: contents.superblock.al_slots,
            slots_used: newest.map(|_| used),
            pages: contents.layout.ring_pages(),
            newest,
            extent_bytes: EXTENT_LEN,
            extents: runs(listed),
        }
    }
}

/// Consecutive numbers put together.
fn runs(ascending: &[ExtentNr]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in ascending {
        match runs.last_mut() {
            Some(run) if run.first + run.count == extent.0 => run.count += 1,
            _ => runs.push(Run {
                first: extent.0,
                count: 1,
            }),
        }
    }
    runs
}

impl Bitmap {
    fn new(contents: &Contents) -> Self {
        let it = &contents.bitmap;
        let bytes = |blocks: BlockCount| blocks.bytes().0;
        Self {
            pages: contents.layout.bitmap_pages(),
            written: it.written,
            unwritten: it.unwritten,
            damaged: it.damaged,
            missing: it.missing,
            damaged_pages: it.damaged_pages.iter().map(|page| page.0).collect(),
            block_bytes: BLOCK_LEN,
            blocks_per_page: BITS_PER_PAGE,
            marked_on_disk_blocks: it.marked_on_disk.0,
            marked_on_disk_bytes: bytes(it.marked_on_disk),
            marked_blocks: it.marked.0,
            marked_bytes: bytes(it.marked),
            all_marked: contents.all_marked,
        }
    }
}

/// Ids as they are printed everywhere.
pub(super) fn id_text(id: u128) -> String {
    format!("{id:032x}")
}

/// What is wrong with it, if anything is.
pub(super) fn problem(wanted: &Wanted, seen: &Inspection) -> Option<ErrorReport> {
    let path = wanted.path.display();
    let report = |id, what: String, why: String| Some(ErrorReport::new(id, what, why));
    match seen.refusal {
        Some(OpenError::NoMetadata) => report(
            ErrorId::NoMetadata,
            format!("{path} holds no metadata"),
            "both superblock places are empty: create-md was never run, or did not end".to_owned(),
        ),
        Some(OpenError::NotOurs) => report(
            ErrorId::ForeignSignature,
            format!("{path} holds something else"),
            "there is no superblock of ours in either place".to_owned(),
        ),
        Some(OpenError::TooNew { version, features }) => report(
            ErrorId::MetadataTooNew,
            format!("{path} was made by a newer version"),
            format!(
                "it has format {version}, features ro-compat 0x{:x} incompat 0x{:x}; this program reads format {FORMAT_VERSION} without features",
                features.ro_compat, features.incompat
            ),
        ),
        Some(refusal) => report(
            ErrorId::MetadataDamaged,
            format!("the metadata in {path} is damaged and cannot be used"),
            refusal_words(seen, refusal),
        ),
        None if seen.is_damaged() => report(
            ErrorId::MetadataDamaged,
            format!("the metadata in {path} is damaged"),
            damage_words(seen),
        )
        .map(|it| {
            it.next(format!(
                "it can still be used, and is mended: twinadm up {}",
                wanted.resource_name
            ))
        }),
        None => belonging(wanted, seen),
    }
}

fn belonging(wanted: &Wanted, seen: &Inspection) -> Option<ErrorReport> {
    let superblock = &seen.contents.as_ref()?.superblock;
    if wanted.fits(superblock) {
        return None;
    }
    let mut differs = Vec::new();
    let mut note = |differs_here: bool, word: &'static str| {
        if differs_here {
            differs.push(word);
        }
    };
    note(
        superblock.resource != wanted.resource,
        "resource (or to other volumes of this one)",
    );
    note(superblock.volume != wanted.volume, "volume");
    note(superblock.node != wanted.node, "node");
    let what = format!(
        "{} holds the metadata of another replica",
        wanted.path.display()
    );
    let why = format!("it belongs to another {}", differs.join(" and "));
    Some(ErrorReport::new(ErrorId::MetadataForeign, what, why))
}

fn refusal_words(seen: &Inspection, refusal: OpenError) -> String {
    match (refusal, &seen.copies) {
        (OpenError::Damaged, [Copy::Whole(a), Copy::Whole(b)]) if a.replica != b.replica => {
            "its two superblock copies are of different replicas".to_owned()
        }
        (OpenError::Damaged, [Copy::Whole(_), Copy::Whole(_)]) => {
            "its two superblock copies have one sequence and different contents".to_owned()
        }
        (refusal, _) => refusal.to_string(),
    }
}

/// Everything that is lost, most telling first.
fn damage_words(seen: &Inspection) -> String {
    let mut lost = Vec::new();
    for (at, copy) in seen.copies.iter().enumerate() {
        if !matches!(copy, Copy::Whole(_)) {
            let nth = if at == 0 { "first" } else { "second" };
            lost.push(format!("the {nth} superblock copy is not whole"));
        }
    }
    if let Some(contents) = &seen.contents {
        if let LogContent::Lost(error) = contents.activity_log {
            lost.push(format!("{error}: every block counts as out of sync"));
        }
        match contents.bitmap.damaged {
            0 => {}
            1 => {
                lost.push("1 bitmap page is not whole: its blocks count as out of sync".to_owned())
            }
            many => lost.push(format!(
                "{many} bitmap pages are not whole: their blocks count as out of sync"
            )),
        }
    }
    lost.join("; ")
}
