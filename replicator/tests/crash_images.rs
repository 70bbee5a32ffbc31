//! Cut the power at every moment of every metadata transaction, with every subset of what was not
//! flushed yet and one torn sector, and open what is left: the old or the new state, never "blank",
//! and a mark on every block that may differ from the peer (promises 4 and 7).
//!
//! A small replica lives through its whole life: made, opened, written to, cut off from its peer,
//! reconnected and resynced, a resync target itself, closed. Each step is a list of batches as the
//! engine gives them to the metadata device: pages of one batch reach the disk in any order, a
//! batch is durable before the next begins.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use replicator::meta::{
    Acquire, Begin, BitmapPageNr, Loader, MetaPage, NewReplica, OpenError, Recovered, ReplicaState,
    Superblock, format,
};
use replicator::types::{
    BlockCount, BlockIndex, BlockRange, ByteLen, DataGeneration, EXTENT_BLOCKS, ExtentNr, NodeId,
    ReplicaId, ResourceId, ViewNumber, VolumeId,
};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// Two bitmap pages, 60 extents.
const SIZE: u64 = 60 * EXTENT_BLOCKS - 5;

type Bytes = [u8; PAGE];

/// What survived of a metadata area, by page offset; missing pages are zero.
#[derive(Clone, Default)]
struct Disk(BTreeMap<u64, Rc<Bytes>>);

impl Disk {
    fn page(&self, offset: u64) -> Bytes {
        self.0.get(&offset).map_or([0; PAGE], |page| **page)
    }

    fn write(&mut self, page: &MetaPage) {
        let bytes = page.bytes[..].try_into().expect("pages are 4 KiB");
        self.0.insert(page.offset.0, Rc::new(bytes));
    }

    fn open(&self) -> Result<Recovered, OpenError> {
        let mut loader = Loader::new(ByteLen(1 << 20));
        while let Some(range) = loader.next_read() {
            let offsets = (range.offset().0..range.end().0).step_by(PAGE);
            let pages: Vec<Bytes> = offsets.map(|offset| self.page(offset)).collect();
            loader.feed(pages.as_flattened());
        }
        loader.finish()
    }
}

/// How the one torn sector ended.
#[derive(Clone, Copy)]
enum Tear {
    HalfOld,
    Garbage,
}

/// Calls `check` with every image a crash during `batch` can leave: each page's sectors in every
/// combination if the batch is one page, else each page old, new, or cut between two sectors; each
/// of these also with each sector torn in both ways.
fn crash_images(before: &Disk, batch: &[MetaPage], mut check: impl FnMut(&Disk)) -> u64 {
    let choices: Vec<u8> = if batch.len() == 1 {
        (0..=255).collect()
    } else {
        vec![
            0b0000_0000,
            0b0000_0001,
            0b0000_1111,
            0b1111_1110,
            0b1111_1111,
        ]
    };
    let combinations = choices
        .len()
        .pow(u32::try_from(batch.len()).expect("a few pages"));
    let mut images = 0;
    for combination in 0..combinations {
        let mut image = before.clone();
        let mut rest = combination;
        for page in batch {
            let arrived = choices[rest % choices.len()];
            rest /= choices.len();
            let mut mixed = before.page(page.offset.0);
            for sector in (0..8).filter(|sector| arrived & (1 << sector) != 0) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                mixed[range.clone()].copy_from_slice(&page.bytes[range]);
            }
            image.0.insert(page.offset.0, Rc::new(mixed));
        }
        check(&image);
        images += 1;
        for page in batch {
            let whole = image.page(page.offset.0);
            for (sector, tear) in (0..8).flat_map(|at| [(at, Tear::HalfOld), (at, Tear::Garbage)]) {
                let torn = torn(before, page, whole, sector, tear);
                if torn == whole {
                    continue;
                }
                image.0.insert(page.offset.0, Rc::new(torn));
                check(&image);
                images += 1;
            }
            image.0.insert(page.offset.0, Rc::new(whole));
        }
    }
    images
}

fn torn(before: &Disk, page: &MetaPage, whole: Bytes, sector: usize, tear: Tear) -> Bytes {
    let mut torn = whole;
    let (start, middle, end) = (
        sector * SECTOR,
        sector * SECTOR + 200,
        (sector + 1) * SECTOR,
    );
    match tear {
        Tear::HalfOld => {
            torn[start..middle].copy_from_slice(&page.bytes[start..middle]);
            torn[middle..end].copy_from_slice(&before.page(page.offset.0)[middle..end]);
        }
        Tear::Garbage => torn[start..end].fill(0xc3),
    }
    torn
}

/// The replica, its disk, and what is true of its data.
struct Life {
    disk: Disk,
    replica: Recovered,
    /// Blocks that may differ from the peer's, whatever the metadata says.
    differs: BTreeSet<u64>,
    /// What may be opened: the superblock before and after the batch under way.
    superblocks: Vec<Superblock>,
    images: u64,
    /// One image in so many is opened, attached and crashed again.
    deeper_every: u64,
}

fn blank() -> Superblock {
    Superblock::blank(NewReplica {
        resource: ResourceId(11),
        volume: VolumeId(0),
        node: NodeId::A,
        replica: ReplicaId(12),
        size: BlockCount(SIZE),
        al_slots: 8,
        zero_proven: true,
    })
}

fn extent(nr: u32) -> BlockRange {
    ExtentNr(nr).blocks(BlockCount(SIZE))
}

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

/// What must hold of any image. `bits_coarse` is set by opening and therefore not compared.
fn check_image(image: &Disk, superblocks: &[Superblock], differs: &BTreeSet<u64>) -> Recovered {
    let opened = image
        .open()
        .expect("an area once made can always be opened");
    let mut found = opened.superblock.current().clone();
    let allowed = superblocks.iter().any(|allowed| {
        found.bits_coarse = allowed.bits_coarse;
        *allowed == found
    });
    assert!(allowed, "{found:?} is none of {superblocks:?}");
    for block in differs {
        assert!(
            opened.bitmap.is_set(BlockIndex(*block)),
            "block {block} is not marked"
        );
    }
    for extent in &opened.replayed {
        let blocks = extent.blocks(BlockCount(SIZE));
        let run = opened.bitmap.next_run(blocks.start(), blocks.count());
        assert_eq!(run, Some(blocks), "not all of {extent:?} is marked");
    }
    assert!(
        opened.activity_log_repair.is_none(),
        "a crash alone never damages the ring"
    );
    opened
}

/// What the engine writes when it attaches, in its batches.
fn attach_batches(replica: &mut Recovered) -> Vec<Vec<MetaPage>> {
    let mut batches = vec![bitmap_batch(replica)];
    if let Begin::Transaction(reset) = replica.activity_log.begin_reset() {
        batches.push(vec![reset.page]);
        replica.activity_log.commit_done();
    }
    batches.push(vec![replica.superblock.next_write(|superblock| {
        superblock.open = true;
        superblock.boot_id += 1;
    })]);
    batches.retain(|batch| !batch.is_empty());
    batches
}

fn bitmap_batch(replica: &mut Recovered) -> Vec<MetaPage> {
    let pages: Vec<_> = replica.bitmap.dirty_pages().collect();
    let write = |page| replica.bitmap.write_page(page);
    pages.into_iter().map(write).collect()
}

impl Life {
    /// Crashes everywhere inside each batch, then lets it become durable.
    fn run(&mut self, batches: Vec<Vec<MetaPage>>) {
        for batch in batches.into_iter().filter(|batch| !batch.is_empty()) {
            let new = self.replica.superblock.current().clone();
            self.superblocks.push(new);
            let mut counted = 0;
            let mut deeper = 0;
            self.images += crash_images(&self.disk, &batch, |image| {
                counted += 1;
                let opened = check_image(image, &self.superblocks, &self.differs);
                if counted % self.deeper_every == 0 {
                    deeper += crash_again(
                        image.clone(),
                        opened,
                        self.superblocks.clone(),
                        &self.differs,
                    );
                }
            });
            self.images += deeper;
            for page in &batch {
                self.disk.write(page);
            }
        }
        // Only the last one counts from here on; what the disk has must be just that.
        let current = self.replica.superblock.current().clone();
        self.superblocks = vec![current];
        check_image(&self.disk, &self.superblocks, &self.differs);
    }

    fn record(&mut self, change: impl FnOnce(&mut Superblock)) {
        let page = self.replica.superblock.next_write(change);
        self.run(vec![vec![page]]);
    }

    /// A guest's write to those blocks, with or without a peer that gets it too.
    fn write(&mut self, range: BlockRange, epoch: u64, alone: bool) {
        while self.replica.activity_log.acquire(range) == Acquire::Cold {
            let Begin::Transaction(begun) = self.replica.activity_log.begin_transaction([range])
            else {
                panic!("no slot");
            };
            let first = self.leaving_pages(&begun.leaving);
            self.run(vec![first, vec![begun.page]]);
            self.replica.activity_log.commit_done();
        }
        // The data is on its way to the disk: from now on the blocks may differ.
        self.differs.extend(range.iter().map(|block| block.0));
        if alone {
            self.replica.bitmap.set(range);
        }
        self.replica.activity_log.release(range, epoch);
    }

    fn leaving_pages(&mut self, leaving: &[ExtentNr]) -> Vec<MetaPage> {
        let pages: BTreeSet<_> = leaving
            .iter()
            .flat_map(|nr| self.replica.bitmap.grown_pages_in(extent(nr.0)))
            .collect();
        let write = |page| self.replica.bitmap.write_page(page);
        pages.into_iter().map(write).collect()
    }

    /// The peer has everything up to `epoch`, durably, but for the marked blocks.
    fn retire_with_peer(&mut self, epoch: u64) {
        let bitmap = &self.replica.bitmap;
        self.differs
            .retain(|block| bitmap.is_set(BlockIndex(*block)));
        self.replica.activity_log.retire(epoch);
    }

    fn reopen(&mut self) {
        self.replica = self.disk.open().expect("checked by every image");
        let batches = attach_batches(&mut self.replica);
        self.run(batches);
    }
}

/// Attaches what a crash left and crashes that too. A page torn twice may be whole again as the
/// first writer meant it: what the first crash could leave is allowed here, too.
fn crash_again(
    mut disk: Disk,
    mut replica: Recovered,
    mut superblocks: Vec<Superblock>,
    differs: &BTreeSet<u64>,
) -> u64 {
    let mut images = 0;
    for batch in attach_batches(&mut replica) {
        superblocks.push(replica.superblock.current().clone());
        let mut counted = 0;
        crash_images(&disk, &batch, |image| {
            counted += 1;
            if counted % 41 == 0 {
                check_image(image, &superblocks, differs);
                images += 1;
            }
        });
        for page in &batch {
            disk.write(page);
        }
    }
    images
}

#[test]
fn whatever_a_crash_leaves_opens_as_old_or_new_and_marks_all_that_differs() {
    let mut images = crash_while_making();

    let mut disk = Disk::default();
    for page in format(&blank()).unwrap().pages {
        disk.write(&page);
    }
    let mut life = Life {
        replica: disk.open().unwrap(),
        superblocks: vec![blank()],
        disk,
        differs: BTreeSet::new(),
        images: 0,
        deeper_every: 1009,
    };
    let batches = attach_batches(&mut life.replica);
    life.run(batches);

    // Founded, in sync with the peer, served: the log fills and evicts.
    life.record(|superblock| {
        superblock.state = ReplicaState::InSync {
            since: ViewNumber(1),
        };
        superblock.data_generation = Some(DataGeneration(77));
        superblock.last_view = ViewNumber(1);
    });
    for nr in 0..10_u64 {
        life.write(blocks(nr * EXTENT_BLOCKS + 3, 2), 1 + nr, false);
        if nr >= 4 {
            life.retire_with_peer(nr - 3);
        }
    }

    // The peer is removed: unretired writes become marks, durable before the next solo answer.
    life.record(|superblock| superblock.last_view = ViewNumber(2));
    let unretired: Vec<u64> = life.differs.iter().copied().collect();
    for block in unretired {
        life.replica.bitmap.set(blocks(block, 1));
    }
    let batch = bitmap_batch(&mut life.replica);
    life.run(vec![batch]);
    life.replica.activity_log.retire(100);
    for nr in 20..26_u64 {
        life.write(blocks(nr * EXTENT_BLOCKS, 10), 100, true);
    }
    life.write(blocks(41 * EXTENT_BLOCKS - 10, 20), 100, true);

    // A crash in the middle of all that, and back.
    life.reopen();

    // Resync to the peer: marks are cleared, both flush, the pages follow lazily.
    let marks = blocks(0, SIZE);
    life.replica.bitmap.clear(blocks(0, SIZE / 2));
    let batch = bitmap_batch(&mut life.replica);
    life.run(vec![batch]);
    assert!(life.replica.bitmap.begin_settle());
    life.replica.bitmap.clear(marks);
    life.replica.bitmap.end_settle();
    life.differs.retain(|block| *block >= SIZE / 2);
    let batch = bitmap_batch(&mut life.replica);
    life.run(vec![batch]);
    assert!(life.replica.bitmap.begin_settle());
    life.replica.bitmap.end_settle();
    life.differs.clear();
    let batch = bitmap_batch(&mut life.replica);
    life.run(vec![batch]);
    life.record(|superblock| superblock.bits_coarse = false);

    // Now it is the target of a resync itself: recorded before the first foreign block lands.
    life.record(|superblock| superblock.state = ReplicaState::SyncTarget);
    life.replica.bitmap.set(blocks(5, 100));
    let batch = bitmap_batch(&mut life.replica);
    life.run(vec![batch]);
    life.differs.extend(5..105);
    life.replica.bitmap.clear(blocks(5, 100));
    life.replica.bitmap.begin_settle();
    life.replica.bitmap.end_settle();
    life.differs.clear();
    let batch = bitmap_batch(&mut life.replica);
    life.run(vec![batch]);
    life.record(|superblock| superblock.in_sync_from = Some(ViewNumber(3)));
    life.record(|superblock| {
        superblock.state = ReplicaState::InSync {
            since: ViewNumber(3),
        };
        superblock.in_sync_from = None;
    });

    // Everything to be resynced again, a failure, and a clean end.
    life.record(|superblock| superblock.full_sync_needed = true);
    life.record(|superblock| superblock.full_sync_needed = false);
    life.write(blocks(7, 1), 200, false);
    life.retire_with_peer(200);
    let Begin::Transaction(reset) = life.replica.activity_log.begin_reset() else {
        panic!("nothing holds an extent");
    };
    life.run(vec![vec![reset.page]]);
    life.replica.activity_log.commit_done();
    life.record(|superblock| superblock.open = false);
    life.record(|superblock| superblock.state = ReplicaState::Failed);

    images += life.images;
    println!("{images} crash images");
    assert!(images >= 100_000, "only {images} images");
}

/// `resize`: the pages of the larger bitmap, then the superblock. What is open afterwards has the old
/// size or the new one, every old mark, and of the new blocks only marks that a torn page explains.
#[test]
fn a_crash_while_a_volume_grows_leaves_the_old_size_or_the_new_one() {
    const LARGER: u64 = SIZE + 40_000;
    let mut images = 0;
    for unwritten_bits_set in [false, true] {
        let superblock = Superblock {
            unwritten_bits_set,
            zero_proven: !unwritten_bits_set,
            ..blank()
        };
        let mut disk = Disk::default();
        for page in format(&superblock).unwrap().pages {
            disk.write(&page);
        }
        let mut replica = disk.open().unwrap();
        replica.bitmap.clear(blocks(0, SIZE));
        replica.bitmap.begin_settle();
        replica.bitmap.end_settle();
        let marks = [blocks(7, 3), blocks(SIZE - 2, 2)];
        marks.iter().for_each(|range| replica.bitmap.set(*range));
        for batch in attach_batches(&mut replica) {
            batch.iter().for_each(|page| disk.write(page));
        }
        let layout = Superblock {
            size: BlockCount(LARGER),
            ..superblock
        }
        .layout()
        .unwrap();
        // What the area holds beyond the old bitmap is anything.
        for nr in 0..layout.bitmap_pages() {
            let offset = layout.bitmap_page(BitmapPageNr(nr)).0;
            disk.0
                .entry(offset)
                .or_insert_with(|| Rc::new([0xa7; PAGE]));
        }
        let old = replica.superblock.current().clone();
        let first = replica.bitmap.first_growth_page().0;
        let growth: Vec<_> = (first..layout.bitmap_pages())
            .map(|nr| replica.bitmap.write_growth_page(&layout, BitmapPageNr(nr)))
            .collect();
        assert!(growth.len() > 2, "pages beyond the old ones");
        let grow = |superblock: &mut Superblock| superblock.size = BlockCount(LARGER);
        let record = replica.superblock.next_write(grow);
        let new = replica.superblock.current().clone();
        for batch in [growth, vec![record]] {
            let last = batch.len() == 1;
            images += crash_images(&disk, &batch, |image| {
                let opened = image.open().expect("it can always be opened");
                let mut found = opened.superblock.current().clone();
                found.bits_coarse = old.bits_coarse;
                assert!(found == old || last && found == new, "{found:?}");
                assert_eq!(opened.bitmap.size(), found.size);
                let marked = |range: &BlockRange| {
                    opened.bitmap.next_run(range.start(), range.count()) == Some(*range)
                };
                assert!(marks.iter().all(marked), "an old mark is lost");
                let beyond = BlockRange::between(BlockIndex(SIZE), BlockIndex(LARGER));
                assert!(!opened.bitmap.any_in(beyond), "nothing new is marked");
            });
            batch.iter().for_each(|page| disk.write(page));
        }
        let opened = disk.open().unwrap();
        assert_eq!(*opened.superblock.current(), new);
        let marked: u64 = marks.iter().map(|range| range.count().0).sum();
        assert_eq!(
            opened.bitmap.count(),
            BlockCount(marked),
            "just the old marks"
        );
    }
    println!("{images} crash images of a growing volume");
    assert!(images >= 10_000, "only {images} images");
}

/// Making the area: not there, or there, or visibly broken off.
fn crash_while_making() -> u64 {
    let plan = format(&blank()).expect("a valid size");
    assert_eq!(plan.zero.offset().0, 0);
    assert_eq!(plan.pages.len(), 2);
    crash_images(&Disk::default(), &plan.pages, |image| match image.open() {
        Ok(opened) => assert_eq!(*opened.superblock.current(), blank()),
        Err(OpenError::NoMetadata | OpenError::Damaged | OpenError::NotOurs) => {}
        Err(other) => panic!("{other}"),
    })
}
