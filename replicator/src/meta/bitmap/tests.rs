use proptest::prelude::*;

use super::*;
use crate::meta::page::{PAGE_LEN, ZERO_PAGE};

const REPLICA: ReplicaId = ReplicaId(77);
/// Two pages, the second partly beyond the volume and not ending at a word.
const SIZE: u64 = BITS_PER_PAGE + 203;

fn layout() -> Layout {
    Layout::for_volume(BlockCount(SIZE), 67).unwrap()
}

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

fn pages_of(bitmap: &Bitmap) -> Vec<BitmapPageNr> {
    bitmap.dirty_pages().collect()
}

fn load(disk: &[PageBytes], unwritten_bits_set: bool) -> Bitmap {
    let mut bitmap = Bitmap::new(layout(), REPLICA);
    for (nr, bytes) in (0..).map(BitmapPageNr).zip(disk) {
        bitmap.load_page(nr, decode(bytes, nr, REPLICA, unwritten_bits_set));
    }
    bitmap
}

fn marked_blocks(bitmap: &Bitmap) -> Vec<u64> {
    let mut found = Vec::new();
    let mut from = BlockIndex(0);
    while let Some(run) = bitmap.next_run(from, BlockCount(1000)) {
        assert!(!run.is_empty() && run.count().0 <= 1000);
        found.extend(run.iter().map(|block| block.0));
        from = run.end();
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    Clean,
    Marked,
    Unsettled,
    Settling,
}

/// The same thing, one fact and one disk bit for each block.
struct Oracle {
    facts: Vec<Fact>,
    disk: Vec<bool>,
}

impl Oracle {
    fn new() -> Self {
        let size = usize::try_from(SIZE).unwrap();
        Self {
            facts: vec![Fact::Clean; size],
            disk: vec![false; size],
        }
    }

    fn slice(&mut self, range: BlockRange) -> &mut [Fact] {
        let start = usize::try_from(range.start().0.min(SIZE)).unwrap();
        let end = usize::try_from(range.end().0.min(SIZE)).unwrap();
        &mut self.facts[start..end]
    }

    fn replace(&mut self, from: Fact, to: Fact) {
        for fact in self.facts.iter_mut().filter(|fact| **fact == from) {
            *fact = to;
        }
    }

    fn has(&self, wanted: Fact) -> bool {
        self.facts.contains(&wanted)
    }

    fn marked(&self) -> Vec<u64> {
        let numbered = (0..).zip(&self.facts);
        numbered
            .filter(|(_, fact)| **fact == Fact::Marked)
            .map(|(block, _)| block)
            .collect()
    }

    fn write(&mut self, page: BitmapPageNr) {
        for block in page.blocks().iter().take_while(|block| block.0 < SIZE) {
            let at = usize::try_from(block.0).unwrap();
            self.disk[at] = self.facts[at] != Fact::Clean;
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Set(BlockRange),
    Clear(BlockRange),
    BeginSettle,
    EndSettle,
    UnsettleAll,
    WriteGrown,
    WriteAll,
    Crash,
}

fn ranges() -> impl Strategy<Value = BlockRange> {
    let edge = prop_oneof![
        0..SIZE,
        BITS_PER_PAGE - 70..BITS_PER_PAGE + 70,
        SIZE - 70..SIZE + 70
    ];
    let len = prop_oneof![5 => 1..200_u64, 1 => 1..SIZE];
    (edge, len).prop_map(|(start, count)| blocks(start, count))
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => ranges().prop_map(Op::Set),
        6 => ranges().prop_map(Op::Clear),
        2 => Just(Op::BeginSettle),
        2 => Just(Op::EndSettle),
        1 => Just(Op::UnsettleAll),
        2 => Just(Op::WriteGrown),
        2 => Just(Op::WriteAll),
        1 => Just(Op::Crash),
    ]
}

/// The bitmap, its oracle and the disk below both.
struct Bench {
    bitmap: Bitmap,
    oracle: Oracle,
    disk: Vec<PageBytes>,
}

impl Bench {
    fn write(&mut self, pages: Vec<BitmapPageNr>) {
        for nr in pages {
            let page = self.bitmap.write_page(nr);
            assert_eq!(page.offset, layout().bitmap_page(nr));
            self.disk[nr.index()].copy_from_slice(&page.bytes);
            self.oracle.write(nr);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Set(range) => {
                self.bitmap.set(range);
                self.oracle.slice(range).fill(Fact::Marked);
            }
            Op::Clear(range) => {
                self.bitmap.clear(range);
                for fact in self.oracle.slice(range) {
                    if *fact == Fact::Marked {
                        *fact = Fact::Unsettled;
                    }
                }
            }
            Op::BeginSettle => {
                let expected = self.oracle.has(Fact::Unsettled) && !self.oracle.has(Fact::Settling);
                assert_eq!(self.bitmap.begin_settle(), expected);
                if expected {
                    self.oracle.replace(Fact::Unsettled, Fact::Settling);
                }
            }
            Op::EndSettle => {
                self.bitmap.end_settle();
                self.oracle.replace(Fact::Settling, Fact::Clean);
            }
            Op::UnsettleAll => {
                self.bitmap.unsettle_all();
                self.oracle.replace(Fact::Settling, Fact::Marked);
                self.oracle.replace(Fact::Unsettled, Fact::Marked);
            }
            Op::WriteGrown => {
                let grown = self.bitmap.grown_pages().collect();
                self.write(grown);
                assert!(!self.bitmap.is_grown());
            }
            Op::WriteAll => {
                let dirty = pages_of(&self.bitmap);
                self.write(dirty);
            }
            Op::Crash => {
                self.bitmap = load(&self.disk, false);
                for (fact, on_disk) in self.oracle.facts.iter_mut().zip(&self.oracle.disk) {
                    *fact = if *on_disk { Fact::Marked } else { Fact::Clean };
                }
            }
        }
    }

    fn check(&self) {
        let marked = self.oracle.marked();
        assert_eq!(self.bitmap.count().0, marked.len() as u64);
        for part in [
            blocks(0, BITS_PER_PAGE),
            blocks(67, SIZE / 2),
            blocks(BITS_PER_PAGE - 3, 400),
        ] {
            let inside = |block: &&u64| part.contains(blocks(**block, 1));
            let expected = marked.iter().filter(inside).count();
            assert_eq!(self.bitmap.count_in(part).0, expected as u64, "{part:?}");
        }
        assert_eq!(self.bitmap.is_empty(), marked.is_empty());
        assert_eq!(marked_blocks(&self.bitmap), marked);
        // What memory knows and the disk does not is exactly what the grown pages hold.
        for nr in (0..layout().bitmap_pages()).map(BitmapPageNr) {
            let in_volume = nr.blocks().iter().take_while(|block| block.0 < SIZE);
            let on_disk = |block: BlockIndex| {
                let at = usize::try_from(block.0).unwrap();
                self.oracle.disk[at] || self.oracle.facts[at] == Fact::Clean
            };
            let covered = in_volume.into_iter().all(on_disk);
            let grown = self.bitmap.grown_pages_in(nr.blocks()).next().is_some();
            assert!(covered || grown, "page {nr:?} lacks marks on disk");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_bitmap_does_what_one_fact_per_block_does(ops in prop::collection::vec(ops(), 1..40)) {
        let mut bench = Bench {
            bitmap: Bitmap::new(layout(), REPLICA),
            oracle: Oracle::new(),
            disk: vec![ZERO_PAGE; 2],
        };
        for op in ops {
            bench.apply(op);
            bench.check();
        }
    }

    #[test]
    fn a_bitmap_sent_in_chunks_arrives_whole(sets in prop::collection::vec(ranges(), 0..12)) {
        let mut source = Bitmap::new(layout(), REPLICA);
        for range in sets {
            source.set(range);
        }
        let mut target = Bitmap::new(layout(), ReplicaId(5));
        let mut from = BlockIndex(0);
        while let Some(chunk) = source.next_chunk(from) {
            prop_assert!(chunk.bits.len() <= PAGE_LEN && !chunk.bits.is_empty());
            target.union_chunk(chunk.first_block, &chunk.bits).unwrap();
            from = chunk.end();
        }
        prop_assert_eq!(marked_blocks(&target), marked_blocks(&source));
    }

    #[test]
    fn any_chunk_from_the_network_is_taken_or_refused(
        first_block in prop_oneof![any::<u64>(), (0..SIZE).prop_map(|block| block / 64 * 64)],
        bits in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bitmap = Bitmap::new(layout(), REPLICA);
        let result = bitmap.union_chunk(BlockIndex(first_block), &bits);
        prop_assert!(result.is_ok() || bitmap.is_empty());
    }
}

#[test]
fn a_mark_set_again_during_the_flush_stays_marked_on_disk() {
    // A resync clears a block and both replicas are asked to flush; before that is done, a write
    // to the block is lost by the peer. Settling the old clearing must not unmark the new mark.
    let mut bitmap = Bitmap::new(layout(), REPLICA);
    bitmap.set(blocks(10, 1));
    bitmap.write_page(BitmapPageNr(0));
    bitmap.clear(blocks(10, 1));
    assert!(bitmap.begin_settle());
    bitmap.set(blocks(10, 1));
    bitmap.clear(blocks(10, 1));
    bitmap.end_settle();
    assert_eq!(bitmap.unsettled_count(), BlockCount(1));
    let disk = [bitmap.page_bytes(BitmapPageNr(0)), ZERO_PAGE];
    assert!(load(&disk, false).is_set(BlockIndex(10)));
}

#[test]
fn a_larger_volume_has_the_old_marks_and_no_new_ones_on_disk_and_in_memory() {
    // From every kind of last page, within it and over its edge, whatever unwritten pages mean.
    let last = [0, 1, BITS_PER_PAGE - 1, BITS_PER_PAGE];
    let marks: [fn(u64) -> Vec<BlockRange>; 3] = [
        |_| Vec::new(),
        |size| vec![blocks(0, size)],
        |size| vec![blocks(size - 1, 1), blocks(3, 2)],
    ];
    for old in last.map(|rest| BITS_PER_PAGE + 7 + rest) {
        for new in [old, old + 1, old + 200, old + 2 * BITS_PER_PAGE] {
            for unwritten_set in [false, true] {
                for marked in marks {
                    let layout = |size| Layout::for_volume(BlockCount(size), 67).unwrap();
                    let mut bitmap = Bitmap::new(layout(old), REPLICA);
                    marked(old).into_iter().for_each(|range| bitmap.set(range));
                    let before = marked_blocks(&bitmap);
                    let larger = layout(new);
                    let mut disk = vec![ZERO_PAGE; larger.bitmap_pages() as usize];
                    for page in pages_of(&bitmap) {
                        disk[page.index()] = bitmap.page_bytes(page);
                        bitmap.write_page(page);
                    }
                    for nr in bitmap.first_growth_page().0..larger.bitmap_pages() {
                        let page = bitmap.write_growth_page(&larger, BitmapPageNr(nr));
                        assert_eq!(page.offset, larger.bitmap_page(BitmapPageNr(nr)));
                        disk[nr as usize].copy_from_slice(&page.bytes);
                    }
                    bitmap.grow(larger);
                    assert_eq!(bitmap.size(), BlockCount(new));
                    assert_eq!(marked_blocks(&bitmap), before);
                    assert_eq!(bitmap.count().0, before.len() as u64);
                    if !unwritten_set || before.len() as u64 == old {
                        let mut loaded = Bitmap::new(larger, REPLICA);
                        for (nr, bytes) in (0..).map(BitmapPageNr).zip(&disk) {
                            loaded.load_page(nr, decode(bytes, nr, REPLICA, unwritten_set));
                        }
                        assert_eq!(marked_blocks(&loaded), before);
                    }
                    // It goes on as if it had been made so.
                    bitmap.set(blocks(new - 1, 1));
                    assert!(bitmap.is_set(BlockIndex(new - 1)));
                    bitmap.set_all();
                    assert_eq!(bitmap.count().0, new);
                    bitmap.clear(blocks(0, new));
                    assert!(bitmap.is_empty() && bitmap.begin_settle());
                }
            }
        }
    }
}

#[test]
fn a_torn_page_marks_all_its_blocks_and_wants_rewriting() {
    let mut bitmap = Bitmap::new(layout(), REPLICA);
    bitmap.set(blocks(10, 1));
    let mut page = bitmap.page_bytes(BitmapPageNr(0));
    page[512..1024].fill(0xa5);
    let loaded = load(&[page, ZERO_PAGE], false);
    assert_eq!(loaded.count(), BlockCount(BITS_PER_PAGE));
    assert_eq!(loaded.grown_pages().collect::<Vec<_>>(), [BitmapPageNr(0)]);
}

#[test]
fn pages_never_written_are_as_the_superblock_says() {
    let untouched = [ZERO_PAGE; 2];
    assert!(load(&untouched, false).is_empty());
    let full = load(&untouched, true);
    assert_eq!(full.count(), BlockCount(SIZE));
    assert!(full.dirty_pages().next().is_none());
}

#[test]
fn a_page_in_the_wrong_place_or_of_another_replica_counts_as_all_marked() {
    let bitmap = Bitmap::new(layout(), REPLICA);
    let page = bitmap.page_bytes(BitmapPageNr(0));
    let (nr, other) = (BitmapPageNr(1), ReplicaId(1));
    assert_eq!(decode(&page, nr, REPLICA, false), Loaded::Damaged);
    assert_eq!(
        decode(&page, BitmapPageNr(0), other, false),
        Loaded::Damaged
    );
}

#[test]
fn a_tebibyte_all_marked_costs_no_page_of_memory_and_is_found_at_once() {
    let layout = Layout::for_volume(BlockCount(1 << 28), 1024).unwrap();
    let mut bitmap = Bitmap::new(layout, REPLICA);
    bitmap.set_all();
    assert_eq!(bitmap.count(), BlockCount(1 << 28));
    bitmap.clear(blocks(0, (1 << 28) - 1));
    let last = bitmap.next_run(BlockIndex(0), BlockCount(64)).unwrap();
    assert_eq!(last, blocks((1 << 28) - 1, 1));
}
