//! What two replicas that meet should do: one pure function, a table of named rules.
//!
//! The view says who is newest; nothing is inferred from identifiers (DRBD's 24 rules exist because
//! UUID sets are circumstantial evidence, drbd.md §2.4). Both sides run it on both hellos and reach
//! mirrored verdicts, because every input travels in a hello.

use crate::protocol::{Hello, Refusal, ReplicaClaim};
use crate::types::{NodeId, ReplicationProtocol, ViewNumber};

/// What this side does in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not with this peer.
    Refuse(Refusal),
    /// Neither serves, or there is nothing to replicate: stay connected and wait.
    Idle,
    /// The Primary, and the peer in `in_sync` has everything.
    MirrorSource,
    /// The Secondary of such a pair.
    MirrorTarget,
    /// The Primary, and the peer misses something (or is not in `in_sync` yet).
    SyncSource(Sync),
    /// The Secondary that misses something.
    SyncTarget(Sync),
    /// The Primary without a disk: the peer serves its reads and takes its writes.
    ForwardSource,
    /// The Secondary that holds the only good replica for a diskless Primary.
    ForwardTarget,
}

/// How a resync goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sync {
    /// The bitmaps say nothing about this pair of replicas: every block is marked.
    pub full: bool,
    /// The marks are coarse (activity log after a crash): compare digests before copying.
    pub coarse: bool,
    /// Both are in `in_sync`: guests wait until they are equal (R15, R16).
    pub equalise: bool,
}

/// The rule that gave a verdict, for logs, `events2` and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each is explained where it is returned in `decide`"
)]
pub enum Rule {
    Foreign,
    SizeMismatch,
    BothActive,
    Sealed,
    Diverged,
    NoPrimary,
    PrimaryDiskless,
    SecondaryDiskless,
    BothInSync,
    BothInSyncMarked,
    PeerBehind,
    BitmapBaseMatches,
    BlankZeroes,
    BitmapBaseUnknown,
    NoLineage,
}

/// The verdict of the side that sent `local` about the side that sent `peer`.
#[must_use]
pub fn decide(local: &Hello, peer: &Hello) -> (Verdict, Rule) {
    if peer.resource != local.resource || peer.volume != local.volume || peer.node == local.node {
        return (Verdict::Refuse(Refusal::Foreign), Rule::Foreign);
    }
    match (local.active, peer.active) {
        (Some(_), Some(_)) => (Verdict::Refuse(Refusal::BothActive), Rule::BothActive),
        (None, None) => (Verdict::Idle, Rule::NoPrimary),
        (Some(active), None) if is_superseded(active, peer) => {
            (Verdict::Refuse(Refusal::Sealed), Rule::Sealed)
        }
        (None, Some(active)) if is_superseded(active, local) => {
            (Verdict::Refuse(Refusal::Sealed), Rule::Sealed)
        }
        (Some(_), None) => decide_pair(local, peer, Side::Source),
        (None, Some(_)) => decide_pair(peer, local, Side::Target),
    }
}

/// Whether a Primary active in that view must not write to the other side any more: the other side
/// sealed it, or served or heard of a newer one. A Primary cut off since then may not know.
fn is_superseded(active: ViewNumber, secondary: &Hello) -> bool {
    active <= secondary.seal || active < secondary.view
}

/// Which end of the pair asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

impl Side {
    fn pick(self, source: Verdict, target: Verdict) -> Verdict {
        if self == Self::Source { source } else { target }
    }
}

fn decide_pair(primary: &Hello, secondary: &Hello, side: Side) -> (Verdict, Rule) {
    let Some(target) = &secondary.replica else {
        return (Verdict::Idle, Rule::SecondaryDiskless);
    };
    let Some(source) = &primary.replica else {
        // Only a peer that the Primary's own view still trusts may serve for it (promise 3): with
        // the disk the view meant, and with every write the guests were told of (F12).
        let whole = !target.blank && !target.inconsistent && !target.lost_volatile;
        let verdict = if primary.in_sync.contains(secondary.node) && whole {
            side.pick(Verdict::ForwardSource, Verdict::ForwardTarget)
        } else {
            Verdict::Idle
        };
        return (verdict, Rule::PrimaryDiskless);
    };
    if source.size_blocks > target.size_blocks {
        return (Verdict::Refuse(Refusal::SizeMismatch), Rule::SizeMismatch);
    }
    // A replica without a lineage never held anything of another one: blank, or failed as blank.
    if target.data_generation.is_some() && target.data_generation != source.data_generation {
        return (Verdict::Refuse(Refusal::Diverged), Rule::Diverged);
    }
    // The view names nodes; a blank or replaced disk under a trusted name is a stranger (R10).
    let trusted = primary.in_sync.contains(secondary.node)
        && !target.inconsistent
        && !target.blank
        && matches!(bitmap_base(source, target), Base::Same);
    let marked = source.dirty_blocks > 0 || target.dirty_blocks > 0;
    if trusted && !marked {
        return (
            side.pick(Verdict::MirrorSource, Verdict::MirrorTarget),
            Rule::BothInSync,
        );
    }
    if trusted && primary.protocol == ReplicationProtocol::A {
        // The peer is a prefix of what guests were told (I4), and would be none while it is made
        // equal block by block: it leaves `in_sync` first.
        return (Verdict::Idle, Rule::PeerBehind);
    }
    let (full, rule) = match bitmap_base(source, target) {
        _ if trusted => (false, Rule::BothInSyncMarked),
        Base::Same => (false, Rule::BitmapBaseMatches),
        Base::Zeroes => (false, Rule::BlankZeroes),
        // Not new and of no lineage: its data were given up by order (or by a failure, when new).
        Base::Unknown if !target.blank && target.data_generation.is_none() => {
            (true, Rule::NoLineage)
        }
        Base::Unknown => (true, Rule::BitmapBaseUnknown),
    };
    let coarse = source.marks_are_coarse || target.marks_are_coarse;
    let sync = Sync {
        full,
        coarse,
        equalise: trusted,
    };
    (
        side.pick(Verdict::SyncSource(sync), Verdict::SyncTarget(sync)),
        rule,
    )
}

/// What the two bitmaps are relative to.
enum Base {
    /// Each to the other replica: the union of the marks covers every difference.
    Same,
    /// The source's to a device full of zeroes, which the blank target is proven to be.
    Zeroes,
    /// To something else: the marks prove nothing.
    Unknown,
}

fn bitmap_base(source: &ReplicaClaim, target: &ReplicaClaim) -> Base {
    if target.blank && source.bitmap_base == Some(target.replica) {
        // An earlier session recorded its base at the source and died before the target's record.
        return Base::Same;
    }
    if target.blank {
        let zeroes = source.bitmap_base.is_none() && source.zero_proven && target.zero_proven;
        return if zeroes { Base::Zeroes } else { Base::Unknown };
    }
    let mutual =
        source.bitmap_base == Some(target.replica) && target.bitmap_base == Some(source.replica);
    if mutual { Base::Same } else { Base::Unknown }
}

/// The node whose hello names it Primary, if just one does.
#[must_use]
pub fn primary_of(local: &Hello, peer: &Hello) -> Option<NodeId> {
    match (local.active, peer.active) {
        (Some(_), None) => Some(local.node),
        (None, Some(_)) => Some(peer.node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DataGeneration, InSync, ReplicaId, ResourceId, VolumeId};

    fn claim(id: u128, other: u128) -> ReplicaClaim {
        ReplicaClaim {
            replica: ReplicaId(id),
            data_generation: Some(DataGeneration(1)),
            size_blocks: 100,
            blank: false,
            zero_proven: false,
            bitmap_base: Some(ReplicaId(other)),
            dirty_blocks: 0,
            marks_are_coarse: false,
            inconsistent: false,
            lost_volatile: false,
        }
    }

    fn blank(id: u128) -> ReplicaClaim {
        ReplicaClaim {
            data_generation: None,
            blank: true,
            zero_proven: true,
            bitmap_base: None,
            ..claim(id, 0)
        }
    }

    fn hello(node: NodeId, replica: Option<ReplicaClaim>, active: Option<u64>) -> Hello {
        Hello {
            node,
            resource: ResourceId(5),
            volume: VolumeId(0),
            replica,
            view: ViewNumber(3),
            in_sync: InSync::BOTH,
            active: active.map(ViewNumber),
            seal: ViewNumber::NONE,
            boot_id: 0,
            incarnation: 0,
            protocol: ReplicationProtocol::C,
        }
    }

    fn mirrored(source: Verdict) -> Verdict {
        match source {
            Verdict::MirrorSource => Verdict::MirrorTarget,
            Verdict::SyncSource(sync) => Verdict::SyncTarget(sync),
            Verdict::ForwardSource => Verdict::ForwardTarget,
            other => other,
        }
    }

    /// The verdict of the Primary, after checking that the Secondary reaches its mirror.
    fn verdict(primary: &Hello, secondary: &Hello) -> (Verdict, Rule) {
        let (source, rule) = decide(primary, secondary);
        assert_eq!(decide(secondary, primary), (mirrored(source), rule));
        (source, rule)
    }

    #[test]
    fn both_in_sync_and_nothing_marked_mirror_at_once() {
        let (a, b) = (
            hello(NodeId::A, Some(claim(1, 2)), Some(3)),
            hello(NodeId::B, Some(claim(2, 1)), None),
        );
        assert_eq!(verdict(&a, &b), (Verdict::MirrorSource, Rule::BothInSync));
    }

    #[test]
    fn a_mark_on_either_side_overrides_in_sync() {
        // DRBD issue 145: a survivor's bits were dropped because the verdict said "no sync".
        for marked in 0..2 {
            let mut a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
            let mut b = hello(NodeId::B, Some(claim(2, 1)), None);
            let side = if marked == 0 { &mut a } else { &mut b };
            side.replica.as_mut().unwrap().dirty_blocks = 1;
            let sync = Sync {
                full: false,
                coarse: false,
                equalise: true,
            };
            assert_eq!(
                verdict(&a, &b),
                (Verdict::SyncSource(sync), Rule::BothInSyncMarked)
            );
        }
    }

    #[test]
    fn a_replica_left_behind_is_a_target_even_with_an_empty_bitmap() {
        let mut a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        a.in_sync = InSync::only(NodeId::A);
        let b = hello(NodeId::B, Some(claim(2, 1)), None);
        let sync = Sync {
            full: false,
            coarse: false,
            equalise: false,
        };
        assert_eq!(
            verdict(&a, &b),
            (Verdict::SyncSource(sync), Rule::BitmapBaseMatches)
        );
    }

    #[test]
    fn a_replaced_replica_gets_everything() {
        let mut a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        a.in_sync = InSync::only(NodeId::A);
        let b = hello(NodeId::B, Some(blank(9)), None);
        let sync = Sync {
            full: true,
            coarse: false,
            equalise: false,
        };
        assert_eq!(
            verdict(&a, &b),
            (Verdict::SyncSource(sync), Rule::BitmapBaseUnknown)
        );
    }

    #[test]
    fn two_blank_replicas_proven_zero_copy_nothing_but_the_marks() {
        let mut founded = blank(1);
        founded.blank = false;
        founded.data_generation = Some(DataGeneration(1));
        let mut a = hello(NodeId::A, Some(founded), Some(3));
        a.in_sync = InSync::only(NodeId::A);
        let b = hello(NodeId::B, Some(blank(2)), None);
        let sync = Sync {
            full: false,
            coarse: false,
            equalise: false,
        };
        assert_eq!(
            verdict(&a, &b),
            (Verdict::SyncSource(sync), Rule::BlankZeroes)
        );
    }

    #[test]
    fn a_blank_disk_under_a_trusted_name_is_a_stranger() {
        let a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        let b = hello(NodeId::B, Some(blank(9)), None);
        let sync = Sync {
            full: true,
            coarse: false,
            equalise: false,
        };
        assert_eq!(
            verdict(&a, &b),
            (Verdict::SyncSource(sync), Rule::BitmapBaseUnknown)
        );
    }

    #[test]
    fn another_lineage_is_refused_by_both() {
        let a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        let mut b = hello(NodeId::B, Some(claim(2, 1)), None);
        b.replica.as_mut().unwrap().data_generation = Some(DataGeneration(2));
        assert_eq!(
            verdict(&a, &b),
            (Verdict::Refuse(Refusal::Diverged), Rule::Diverged)
        );
    }

    #[test]
    fn a_blank_replica_that_failed_is_no_stranger() {
        let mut a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        a.in_sync = InSync::only(NodeId::A);
        let failed = ReplicaClaim {
            blank: false,
            zero_proven: false,
            inconsistent: true,
            ..blank(2)
        };
        let b = hello(NodeId::B, Some(failed), None);
        let (verdict, rule) = verdict(&a, &b);
        assert!(
            matches!(verdict, Verdict::SyncSource(sync) if sync.full),
            "{verdict:?}"
        );
        assert_eq!(rule, Rule::NoLineage);
    }

    #[test]
    fn a_sealed_view_gets_no_session() {
        let a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        let mut b = hello(NodeId::B, Some(claim(2, 1)), None);
        b.seal = ViewNumber(3);
        assert_eq!(
            verdict(&a, &b),
            (Verdict::Refuse(Refusal::Sealed), Rule::Sealed)
        );
    }

    #[test]
    fn a_primary_of_an_older_view_than_the_other_knows_gets_no_session() {
        // Cut off, it did not hear of the takeover; the successor restarted and looks like any
        // Secondary, but for the view it served in.
        let a = hello(NodeId::A, Some(claim(1, 2)), Some(3));
        let mut b = hello(NodeId::B, Some(claim(2, 1)), None);
        b.view = ViewNumber(4);
        assert_eq!(
            verdict(&a, &b),
            (Verdict::Refuse(Refusal::Sealed), Rule::Sealed)
        );
    }

    #[test]
    fn a_diskless_primary_is_served_only_by_a_trusted_peer() {
        let mut a = hello(NodeId::A, None, Some(3));
        let b = hello(NodeId::B, Some(claim(2, 1)), None);
        assert_eq!(
            verdict(&a, &b),
            (Verdict::ForwardSource, Rule::PrimaryDiskless)
        );
        a.in_sync = InSync::only(NodeId::A);
        assert_eq!(verdict(&a, &b), (Verdict::Idle, Rule::PrimaryDiskless));
    }
}
