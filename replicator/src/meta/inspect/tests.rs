use proptest::prelude::*;

use super::*;
use crate::meta::superblock::NewReplica;
use crate::meta::{Begin, Loader, MetaPage, Recovered, SuperblockWriter, format};
use crate::types::{NodeId, ReplicaId, ResourceId, VolumeId};

/// Two bitmap pages and a bit: extents straddle the pages' edges, the last word is not full.
const SIZE: u64 = 2 * BITS_PER_PAGE + 203;

/// A small area in memory.
#[derive(Clone)]
struct Area(Vec<u8>);

impl Area {
    fn made(superblock: &Superblock) -> Self {
        let plan = format(superblock).unwrap();
        let len = usize::try_from(plan.zero.len().0).unwrap();
        let mut area = Self(vec![0; len]);
        plan.pages.iter().for_each(|page| area.write(page));
        area
    }

    fn write(&mut self, page: &MetaPage) {
        let at = usize::try_from(page.offset.0).unwrap();
        self.0[at..at + PAGE_LEN].copy_from_slice(&page.bytes);
    }

    fn len(&self) -> ByteLen {
        ByteLen(u64::try_from(self.0.len()).unwrap())
    }

    fn read(&self, range: ByteRange) -> &[u8] {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        &self.0[at(range.offset().0)..at(range.end().0)]
    }

    fn open(&self) -> Result<Recovered, OpenError> {
        let mut loader = Loader::new(self.len());
        while let Some(range) = loader.next_read() {
            loader.feed(self.read(range));
        }
        loader.finish()
    }

    fn inspect(&self) -> Inspection {
        let mut inspector = Inspector::new(self.len());
        while let Some(range) = inspector.next_read() {
            inspector.feed(self.read(range));
        }
        inspector.finish()
    }

    fn damage(&mut self, offset: u64) {
        self.0[usize::try_from(offset).unwrap()] ^= 0xff;
    }
}

fn superblock(al_slots: u16) -> Superblock {
    Superblock::blank(NewReplica {
        resource: ResourceId(5),
        volume: VolumeId(0),
        node: NodeId::A,
        replica: ReplicaId(77),
        size: BlockCount(SIZE),
        al_slots,
        zero_proven: true,
    })
}

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

/// Marks `range` as a write that was in flight and one that the peer missed would.
fn write_to(area: &mut Area, listed: &[BlockRange], marked: &[BlockRange]) {
    let mut opened = area.open().unwrap();
    if let Begin::Transaction(transaction) = opened.activity_log.begin_transaction(listed.to_vec())
    {
        area.write(&transaction.page);
        opened.activity_log.commit_done();
    }
    marked.iter().for_each(|range| opened.bitmap.set(*range));
    let pages: Vec<_> = opened.bitmap.grown_pages().collect();
    for page in pages {
        area.write(&opened.bitmap.write_page(page));
    }
    area.write(&opened.superblock.next_write(|it| it.open = true));
}

#[test]
fn a_new_area_is_whole_and_marks_nothing() {
    let seen = Area::made(&superblock(67)).inspect();
    assert!(!seen.is_damaged() && seen.refusal.is_none());
    let contents = seen.contents.unwrap();
    assert_eq!(contents.choice, Choice::Same);
    let none = LogContent::Whole {
        newest: 0,
        listed: Vec::new(),
    };
    assert_eq!(contents.activity_log, none);
    assert_eq!((contents.bitmap.unwritten, contents.bitmap.written), (3, 0));
    assert_eq!(contents.bitmap.marked, BlockCount(0));
    let mut imported = superblock(67);
    imported.unwritten_bits_set = true;
    let contents = Area::made(&imported).inspect().contents.unwrap();
    assert_eq!(contents.bitmap.marked, BlockCount(SIZE));
}

#[test]
fn listed_extents_count_with_the_marks_and_not_twice() {
    let mut area = Area::made(&superblock(67));
    write_to(
        &mut area,
        &[blocks(1024, 1)],
        &[blocks(1030, 4), blocks(SIZE - 1, 1)],
    );
    let contents = area.inspect().contents.unwrap();
    assert_eq!(contents.choice, Choice::Newer(Place::Second));
    let listed = LogContent::Whole {
        newest: 1,
        listed: vec![ExtentNr(1)],
    };
    assert_eq!(contents.activity_log, listed);
    assert_eq!(contents.bitmap.marked_on_disk, BlockCount(5));
    assert_eq!(contents.bitmap.marked, BlockCount(1025));
}

#[test]
fn a_lost_copy_leaves_the_other_and_is_told() {
    let mut area = Area::made(&superblock(67));
    area.damage(SUPERBLOCK_OFFSETS[0].0 + 100);
    let seen = area.inspect();
    assert!(seen.is_damaged() && seen.refusal.is_none());
    assert_eq!(seen.copies[0], Copy::Not(SuperblockError::Damaged));
    assert_eq!(
        seen.contents.unwrap().choice,
        Choice::OnlyWhole(Place::Second)
    );
    area.damage(SUPERBLOCK_OFFSETS[1].0 + 100);
    let seen = area.inspect();
    assert_eq!(
        (seen.refusal, seen.contents),
        (Some(OpenError::Damaged), None)
    );
}

#[test]
fn copies_of_two_replicas_are_both_shown_and_neither_counts() {
    let mut area = Area::made(&superblock(67));
    let mut other = superblock(67);
    other.replica = ReplicaId(78);
    let mut writer = SuperblockWriter::new(other, Place::First);
    area.write(&writer.next_write(|_| {}));
    let seen = area.inspect();
    assert_eq!(seen.refusal, Some(OpenError::Damaged));
    assert!(seen.copies.iter().all(|it| matches!(it, Copy::Whole(_))));
}

#[test]
fn a_short_area_shows_what_there_is() {
    let mut area = Area::made(&superblock(67));
    write_to(&mut area, &[blocks(0, 1)], &[blocks(0, 3)]);
    let whole = area.0.clone();
    let needed = area.len().0;
    for (len, log_there, missing) in [
        (needed - 4096, true, 1),
        (needed - 4097, true, 2),
        (BITMAP_OFFSET.0, true, 3),
        (BITMAP_OFFSET.0 - 1, true, 3),
        (4096 * 3, false, 3),
        (4096, false, 3),
    ] {
        area.0.truncate(usize::try_from(len).unwrap());
        let seen = area.inspect();
        let too_small = OpenError::AreaTooSmall { needed, found: len };
        assert_eq!(seen.refusal, Some(too_small), "{len}");
        assert!(seen.is_damaged());
        let contents = seen.contents.unwrap();
        assert_eq!(contents.bitmap.missing, missing, "{len}");
        let cut_off = contents.activity_log == LogContent::CutOff;
        assert_eq!(cut_off, !log_there, "{len}");
        area.0.clone_from(&whole);
    }
}

#[test]
fn what_is_not_ours_is_not_called_short_or_damaged() {
    let inspect = |bytes: Vec<u8>| Area(bytes).inspect();
    for len in [4096, 5000, 1 << 20] {
        assert_eq!(
            inspect(vec![0; len]).refusal,
            Some(OpenError::NoMetadata),
            "{len}"
        );
        let foreign = inspect(vec![7; len]);
        assert_eq!(foreign.refusal, Some(OpenError::NotOurs), "{len}");
        assert!(!foreign.is_damaged());
    }
    assert_eq!(inspect(Vec::new()).refusal, Some(OpenError::NoMetadata));
}

#[test]
fn a_newer_format_is_named_with_its_version() {
    let mut area = Area::made(&superblock(67));
    for at in SUPERBLOCK_OFFSETS {
        let at = usize::try_from(at.0).unwrap();
        let page: &mut PageBytes = (&mut area.0[at..at + PAGE_LEN]).try_into().unwrap();
        page[8] = 2;
        crate::meta::page::seal(page, 12);
    }
    let seen = area.inspect();
    assert!(matches!(
        seen.refusal,
        Some(OpenError::TooNew { version: 2, .. })
    ));
    assert!(seen.contents.is_none() && !seen.is_damaged());
}

fn range() -> impl Strategy<Value = BlockRange> {
    (0..SIZE, 1_u64..3000).prop_map(|(start, count)| blocks(start, count.min(SIZE - start)))
}

proptest! {
    /// What is counted here is what an opening marks, whatever was written and whatever rotted.
    #[test]
    fn it_counts_what_an_opening_marks(
        slots in prop_oneof![Just(0_u16), Just(67)],
        unwritten_bits_set: bool,
        full_sync_needed: bool,
        listed in prop::collection::vec((0..SIZE).prop_map(|at| blocks(at, 1)), 0..20),
        marked in prop::collection::vec(range(), 0..8),
        rot in prop::collection::vec((0_u32..24, 0_u64..4096), 0..4),
    ) {
        let mut made = superblock(slots);
        made.unwritten_bits_set = unwritten_bits_set;
        made.full_sync_needed = full_sync_needed && unwritten_bits_set;
        let mut area = Area::made(&made);
        write_to(&mut area, &listed, &marked);
        for (page, at) in rot {
            // The ring's pages, the second copy and the bitmap's.
            let page = if page < 12 { page } else { page + 115 };
            let offset = u64::from(page) * PAGE + at;
            if offset < area.len().0 {
                area.damage(offset);
            }
        }
        let seen = area.inspect();
        match area.open() {
            Err(error) => prop_assert_eq!(seen.refusal, Some(error)),
            Ok(opened) => {
                prop_assert_eq!(seen.refusal, None);
                let contents = seen.contents.unwrap();
                prop_assert_eq!(&contents.superblock.replica, &opened.superblock.current().replica);
                prop_assert_eq!(contents.bitmap.marked, opened.bitmap.count());
                prop_assert_eq!(contents.bitmap.damaged, opened.damaged_bitmap_pages);
                let mut replayed = opened.replayed.clone();
                replayed.sort_unstable();
                let found = match contents.activity_log {
                    LogContent::Whole { listed, .. } => listed,
                    _ => Vec::new(),
                };
                prop_assert_eq!(found, replayed);
            }
        }
    }
}
