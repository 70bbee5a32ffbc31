//! What `show-gi` prints: who is newest and what decides it. The schema `twinblk.generations/1`,
//! documented in docs/metadata.md. Pure.
//!
//! DRBD infers it from two sets of UUIDs. Here the voters' view says it, and identifiers only veto;
//! so this names each identifier with DRBD's word beside it, and then what it does *not* decide.

use replicator::admin::{PeerStatus, ResourceStatus};
use replicator::meta::inspect::{Contents, LogContent};
use replicator::meta::{ReplicaState, Superblock};
use replicator::types::{ConnectionState, DiskState, Role};
use serde::Serialize;

use super::report::{Replica, Wanted, id_text};
use crate::show::size::size;

/// Value of [`Generations::schema`].
const SCHEMA: &str = "twinblk.generations/1";

/// What is known besides the metadata.
pub(super) struct Surroundings<'a> {
    /// Its lock is held: a daemon may know more than the disk.
    pub(super) in_use: bool,
    /// This boot; `None` if the kernel does not say.
    pub(super) boot_id: Option<u128>,
    /// As configured.
    /// What this node's daemon says, if one answers.
    pub(super) status: Option<&'a ResourceStatus>,
}

#[derive(Debug, Serialize)]
pub(super) struct Generations {
    pub(super) schema: &'static str,
    pub(super) volume: String,
    pub(super) node: String,
    pub(super) meta: String,
    pub(super) in_use: bool,
    pub(super) replica: Replica,
    pub(super) claim: Claim,
    pub(super) view: Option<View>,
    pub(super) peer: Option<Peer>,
    pub(super) explanation: Vec<String>,
}

/// What the replica would say of itself in a handshake, as far as its disk knows.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Claim {
    pub(super) replica: String,
    pub(super) data_generation: Option<String>,
    pub(super) size_bytes: u64,
    pub(super) blank: bool,
    pub(super) zero_proven: bool,
    pub(super) bitmap_base: Option<String>,
    pub(super) dirty_blocks: u64,
    pub(super) dirty_bytes: u64,
    pub(super) marks_are_coarse: bool,
    pub(super) inconsistent: bool,
    /// `None`: it depends on what the voters know.
    pub(super) lost_volatile: Option<bool>,
}

/// The newest view that this node's daemon knows.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) number: u64,
    pub(super) primary: Option<String>,
    pub(super) in_sync: Vec<String>,
}

/// What the daemon knows of the peer.
#[derive(Debug, Serialize)]
pub(super) struct Peer {
    pub(super) node: String,
    pub(super) connection: ConnectionState,
    pub(super) role: Role,
    pub(super) disk: Option<DiskState>,
    pub(super) out_of_sync_bytes: Option<u64>,
    pub(super) refused: Option<String>,
}

impl Generations {
    pub(super) fn new(wanted: &Wanted, contents: &Contents, around: &Surroundings<'_>) -> Self {
        let claim = Claim::new(contents, around);
        let view = around.status.and_then(View::of);
        let peer = around.status.and_then(|it| it.peers.first());
        let peer = peer.map(|peer| Peer::of(wanted, peer));
        Self {
            schema: SCHEMA,
            volume: wanted.label(),
            node: wanted.node_name.clone(),
            meta: wanted.path.display().to_string(),
            in_use: around.in_use,
            replica: Replica::new(wanted, contents),
            explanation: explanation(
                wanted,
                &contents.superblock,
                &claim,
                view.as_ref(),
                peer.as_ref(),
            ),
            claim,
            view,
            peer,
        }
    }
}

impl Claim {
    /// As `replicator::engine` makes it after an attach.
    fn new(contents: &Contents, around: &Surroundings<'_>) -> Self {
        let it = &contents.superblock;
        let failed = it.state == ReplicaState::Failed;
        Self {
            replica: id_text(it.replica.0),
            data_generation: it.data_generation.map(|id| id_text(id.0)),
            size_bytes: it.size.bytes().0,
            blank: it.state == ReplicaState::Blank,
            zero_proven: it.zero_proven && !failed,
            bitmap_base: it.bitmap_base.filter(|_| !failed).map(|id| id_text(id.0)),
            dirty_blocks: contents.bitmap.marked.0,
            dirty_bytes: contents.bitmap.marked.bytes().0,
            marks_are_coarse: marks_are_coarse(contents),
            inconsistent: failed
                || (it.state == ReplicaState::SyncTarget && it.in_sync_from.is_none()),
            lost_volatile: lost_volatile(contents, around),
        }
    }
}

fn listed(contents: &Contents) -> bool {
    matches!(&contents.activity_log, LogContent::Whole { listed, .. } if !listed.is_empty())
}

fn marks_are_coarse(contents: &Contents) -> bool {
    contents.superblock.bits_coarse
        || contents.all_marked
        || listed(contents)
        || contents.bitmap.damaged > 0
}

/// Found open in another boot, completed writes may be gone. Below protocol C they may be after a
/// mere restart: such a replica names no boot while a daemon has it.
fn lost_volatile(contents: &Contents, around: &Surroundings<'_>) -> Option<bool> {
    let it = &contents.superblock;
    if !it.open || (around.in_use && it.boot_id == NO_BOOT) {
        return Some(false);
    }
    around.boot_id.map(|boot| boot != it.boot_id)
}

/// What a superblock names when the memory of its process counts.
const NO_BOOT: u128 = 0;

impl View {
    fn of(status: &ResourceStatus) -> Option<Self> {
        Some(Self {
            number: status.view?,
            primary: status.view_primary.clone(),
            in_sync: status.in_sync.clone(),
        })
    }
}

impl Peer {
    fn of(wanted: &Wanted, status: &PeerStatus) -> Self {
        let volume = status
            .volumes
            .iter()
            .find(|volume| volume.volume == wanted.volume.0);
        // One bitmap has the marks of all volumes.
        let marked = status.volumes.iter().map(|it| it.out_of_sync_bytes);
        Self {
            node: status.node.clone(),
            connection: status.connection,
            role: status.role,
            disk: volume.map(|it| it.disk),
            out_of_sync_bytes: marked.sum(),
            refused: status.refused.clone(),
        }
    }
}

// --- In words -------------------------------------------------------------------------------

fn explanation(
    wanted: &Wanted,
    superblock: &Superblock,
    claim: &Claim,
    view: Option<&View>,
    peer: Option<&Peer>,
) -> Vec<String> {
    let mut said = vec![
        state_words(superblock),
        generation_words(superblock),
        marks_words(superblock, claim),
    ];
    said.extend(volatile_words(claim));
    said.push(view_words(wanted, superblock, view));
    said.extend(peer.and_then(|peer| {
        peer.refused
            .as_ref()
            .map(|why| format!("{} is refused: {why}.", peer.node))
    }));
    said
}

fn state_words(superblock: &Superblock) -> String {
    match (superblock.state, superblock.in_sync_from) {
        (ReplicaState::Blank, _) => {
            "Blank: nothing of the resource was ever written here, so it never counts as newest \
             against a replica that has data (DRBD: just created)."
                .to_owned()
        }
        (ReplicaState::InSync { since }, _) => format!(
            "InSync: since view {since} it holds every acknowledged write, as far as this disk \
             knows; a later view may have left it out without this disk being told (DRBD: \
             Consistent)."
        ),
        (ReplicaState::Outdated, _) => {
            "Outdated: whole, but others went on without it; it serves nobody before a resync."
                .to_owned()
        }
        (ReplicaState::SyncTarget, None) => {
            "SyncTarget: a resync onto it did not end, so it is part old and part new; it serves \
             nobody before one did (DRBD: Inconsistent)."
                .to_owned()
        }
        (ReplicaState::SyncTarget, Some(view)) => format!(
            "SyncTarget, everything copied: it was about to join view {view}, and counts as in \
             sync only if the voters agreed to that view."
        ),
        (ReplicaState::Failed, _) => {
            "Failed: a write, flush or metadata write on it failed; only a full resync makes it a \
             replica again."
                .to_owned()
        }
    }
}

fn generation_words(superblock: &Superblock) -> String {
    match superblock.data_generation {
        None => "No data generation: it may be resynced from any lineage.".to_owned(),
        Some(_) => "The data generation is its lineage. It does not change at each promotion as \
             DRBD's current UUID does: two replicas with the same one may resync, with different \
             ones they refuse each other (DRBD: split brain or unrelated data)."
            .to_owned(),
    }
}

fn marks_words(superblock: &Superblock, claim: &Claim) -> String {
    if superblock.state == ReplicaState::Failed {
        return "Its bitmap counts for nothing: a resync copies everything.".to_owned();
    }
    let coarse = if claim.marks_are_coarse && claim.dirty_blocks > 0 {
        "; some of them may be equal, so digests are compared first"
    } else {
        ""
    };
    let marked = format!(
        "{} blocks ({}) are marked",
        claim.dirty_blocks,
        size(claim.dirty_bytes)
    );
    match superblock.bitmap_base {
        None => format!(
            "{marked} as differing from a disk full of zeroes{coarse}. That suffices only between \
             replicas whose disks were proven to be all zeroes; else everything is copied (DRBD: \
             day-0 bitmap)."
        ),
        Some(base) => format!(
            "{marked} as differing from replica {}{coarse}. That suffices only for a resync with \
             it, and only if its bitmap is relative to this one; else everything is copied (DRBD: \
             bitmap UUID).",
            id_text(base.0)
        ),
    }
}

fn volatile_words(claim: &Claim) -> Option<String> {
    match claim.lost_volatile {
        Some(false) => None,
        Some(true) => Some(
            "It was in use when its host went down (below protocol C: when its daemon did): writes \
             that were completed and not flushed may be missing, and it says so in the handshake."
                .to_owned(),
        ),
        None => Some(
            "It was in use when its daemon ended; whether its host restarted since cannot be said here."
                .to_owned(),
        ),
    }
}

fn view_words(wanted: &Wanted, superblock: &Superblock, view: Option<&View>) -> String {
    let Some(view) = view else {
        return "Who is newest is decided by the newest view that a majority of the voters accepted: \
             the nodes that it names in sync. The metadata alone cannot say; ask a running daemon: \
             twinadm status."
            .to_owned();
    };
    let (number, node) = (view.number, &wanted.node_name);
    let names = view.in_sync.join(" and ");
    // A daemon that was cut off may not have heard of the newest view, and says so in `status`.
    let newest = format!("The newest view known here is {number}, in sync: {names}.");
    if !view.in_sync.contains(node) {
        return format!("{newest} So {names} is newer, and {node} is resynced from there.");
    }
    let stranger = superblock.state == ReplicaState::Blank;
    if stranger {
        format!(
            "{newest} It means another replica of {node}: this one is blank and a stranger to it."
        )
    } else if view.in_sync.len() > 1 {
        format!(
            "{newest} So both are newest; where marks are left, the Primary's bytes are copied."
        )
    } else {
        format!("{newest} So {node} is newest, and the peer is resynced from here.")
    }
}

#[cfg(test)]
mod tests {
    use replicator::meta::inspect::{BitmapContent, Choice};
    use replicator::meta::{Layout, NewReplica};
    use replicator::types::{
        BlockCount, DataGeneration, ExtentNr, NodeId, ReplicaId, ResourceId, ViewNumber, VolumeId,
    };

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

    fn contents(change: impl FnOnce(&mut Contents)) -> Contents {
        let size = BlockCount(1024);
        let superblock = Superblock {
            sequence: 9,
            data_generation: Some(DataGeneration(3)),
            state: ReplicaState::InSync {
                since: ViewNumber(3),
            },
            bitmap_base: Some(ReplicaId(2)),
            last_view: ViewNumber(7),
            boot_id: 5,
            unwritten_bits_set: false,
            ..Superblock::blank(NewReplica {
                resource: ResourceId::of_name("vm-web"),
                volume: VolumeId(0),
                node: NodeId::A,
                replica: ReplicaId(1),
                size,
                al_slots: 64,
                zero_proven: false,
            })
        };
        let mut contents = Contents {
            superblock,
            choice: Choice::Same,
            layout: Layout::for_volume(size, 64).unwrap(),
            activity_log: LogContent::Whole {
                newest: 0,
                listed: Vec::new(),
            },
            bitmap: BitmapContent::default(),
            all_marked: false,
        };
        change(&mut contents);
        contents
    }

    fn around(status: Option<&ResourceStatus>) -> Surroundings<'_> {
        Surroundings {
            in_use: false,
            boot_id: Some(5),
            status,
        }
    }

    fn last_words(contents: &Contents, status: Option<&ResourceStatus>) -> String {
        let shown = Generations::new(&wanted(), contents, &around(status));
        shown.explanation.last().unwrap().clone()
    }

    #[test]
    fn the_view_decides_and_without_a_daemon_nothing_does() {
        let closed = contents(|_| {});
        assert!(last_words(&closed, None).contains("metadata alone cannot say"));
        let mut status = samples::healthy().resources.remove(1);
        status.view = Some(7);
        status.in_sync = vec!["kvm-a".to_owned(), "kvm-b".to_owned()];
        assert!(last_words(&closed, Some(&status)).contains("both are newest"));
        status.in_sync = vec!["kvm-a".to_owned()];
        assert!(last_words(&closed, Some(&status)).contains("So kvm-a is newest"));
        let blank = contents(|it| it.superblock.state = ReplicaState::Blank);
        assert!(last_words(&blank, Some(&status)).contains("a stranger"));
        status.in_sync = vec!["kvm-b".to_owned()];
        assert!(last_words(&closed, Some(&status)).contains("So kvm-b is newer"));
        status.peers[0].refused = Some("the data diverged".to_owned());
        assert_eq!(
            last_words(&closed, Some(&status)),
            "kvm-b is refused: the data diverged."
        );
    }

    #[test]
    fn a_failed_replica_claims_no_base_and_is_inconsistent() {
        let failed = contents(|it| it.superblock.state = ReplicaState::Failed);
        let claim = Claim::new(&failed, &around(None));
        assert!(claim.inconsistent && claim.bitmap_base.is_none());
    }

    #[test]
    fn a_sync_target_is_inconsistent_until_everything_was_copied() {
        let claim = |from| {
            let target = contents(|it| {
                it.superblock.state = ReplicaState::SyncTarget;
                it.superblock.in_sync_from = from;
            });
            Claim::new(&target, &around(None)).inconsistent
        };
        assert!(claim(None) && !claim(Some(ViewNumber(8))));
    }

    #[test]
    fn marks_are_coarse_after_a_crash_and_never_from_the_bitmap_alone() {
        let coarse = |change: fn(&mut Contents)| marks_are_coarse(&contents(change));
        assert!(!coarse(|it| it.bitmap.marked = BlockCount(5)));
        assert!(coarse(|it| it.all_marked = true));
        assert!(coarse(|it| it.bitmap.damaged = 1));
        assert!(coarse(|it| it.superblock.bits_coarse = true));
        assert!(coarse(|it| it.activity_log = LogContent::Whole {
            newest: 1,
            listed: vec![ExtentNr(0)],
        }));
    }

    /// Closed in order: nothing lost. Another boot, or none named and no daemon any more: lost.
    #[test]
    fn what_was_in_memory_is_lost_by_boot_and_below_c_by_restart() {
        let ask = |open, recorded, boot_id, in_use| {
            let found =
                contents(|it| (it.superblock.open, it.superblock.boot_id) = (open, recorded));
            let around = Surroundings {
                boot_id,
                in_use,
                ..around(None)
            };
            lost_volatile(&found, &around)
        };
        assert_eq!(ask(false, 5, Some(6), false), Some(false));
        assert_eq!(ask(true, 5, Some(6), false), Some(true));
        assert_eq!(ask(true, 5, Some(5), false), Some(false));
        assert_eq!(ask(true, NO_BOOT, Some(5), false), Some(true));
        assert_eq!(ask(true, NO_BOOT, Some(5), true), Some(false));
        assert_eq!(ask(true, 5, None, false), None);
    }
}
