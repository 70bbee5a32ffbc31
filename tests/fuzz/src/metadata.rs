//! Opening a metadata area that holds anything.
//!
//! The input is a list of patches on a small, valid area; a patch can give its page a right checksum,
//! so that values behind the checksum are reached. Beyond "does not panic": every listed extent is
//! marked, and an area that opened once opens again with at least these marks after an attach.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;

use replicator::meta::{
    ActivityLog, Begin, Bitmap, BitmapPageNr, Loader, MetaPage, NewReplica, PAGE_LEN, Recovered,
    Superblock, format,
};
use replicator::types::{
    BlockCount, BlockIndex, BlockRange, ByteLen, EXTENT_BLOCKS, NodeId, ReplicaId, ResourceId,
    ViewNumber, VolumeId,
};

/// Length of the area: enough for the base, and for no volume of another size but small ones.
const AREA: u64 = 1 << 20;
const SIZE: BlockCount = BlockCount(40_000);
const REPLICA: ReplicaId = ReplicaId(3);
/// Every page has its checksum here.
const CRC_AT: usize = 12;
/// Bytes of a patch: page, place in the page (two bytes), choices, and eight bytes to put there.
const PATCH_LEN: usize = 12;
/// Pages of the base a patch can be about, in order of their numbers in the patch.
const PATCHED: [u64; 8] = [0, 127, 1, 2, 3, 8, 128, 129];

type Page = [u8; PAGE_LEN];

/// Fuzzes opening: patches of twelve bytes.
pub fn open(data: &[u8]) {
    let mut area = base();
    for patch in data.chunks_exact(PATCH_LEN) {
        apply(&mut area, patch);
    }
    let Ok(mut opened) = load(&area) else {
        return;
    };
    check(&opened);
    let marks = opened.bitmap.count();
    for page in attach_pages(&mut opened) {
        write(&mut area, &page);
    }
    let again = load(&area).expect("an attached area opens");
    check(&again);
    assert!(again.bitmap.count() >= marks, "marks were lost");
    assert!(again.replayed.is_empty(), "the log was emptied");
}

fn check(opened: &Recovered) {
    let size = opened.bitmap.size();
    for extent in &opened.replayed {
        let blocks = extent.blocks(size);
        let run = opened.bitmap.next_run(blocks.start(), blocks.count());
        assert_eq!(run, Some(blocks), "a listed extent is not marked");
    }
    assert!(opened.bitmap.count() <= size);
    let last_view = opened.superblock.current().last_view;
    assert!(
        last_view <= ViewNumber::MAX,
        "its successor is near an overflow"
    );
}

/// What an engine writes when it attaches, in order.
fn attach_pages(opened: &mut Recovered) -> Vec<MetaPage> {
    let dirty: Vec<BitmapPageNr> = opened.bitmap.dirty_pages().collect();
    let mut pages: Vec<MetaPage> = dirty
        .into_iter()
        .map(|page| opened.bitmap.write_page(page))
        .collect();
    pages.extend(opened.activity_log_repair.take().into_iter().flatten());
    if let Begin::Transaction(reset) = opened.activity_log.begin_reset() {
        pages.push(reset.page);
        opened.activity_log.commit_done();
    }
    pages.push(opened.superblock.next_write(|superblock| {
        superblock.open = true;
    }));
    pages
}

fn load(area: &BTreeMap<u64, Page>) -> Result<Recovered, replicator::meta::OpenError> {
    let mut loader = Loader::new(ByteLen(AREA));
    while let Some(range) = loader.next_read() {
        assert!(range.end().0 <= AREA, "a read beyond the area");
        let offsets = (range.offset().0..range.end().0).step_by(PAGE_LEN);
        let pages: Vec<Page> = offsets
            .map(|offset| area.get(&offset).copied().unwrap_or([0; PAGE_LEN]))
            .collect();
        loader.feed(pages.as_flattened());
    }
    loader.finish()
}

fn write(area: &mut BTreeMap<u64, Page>, page: &MetaPage) {
    let bytes = page.bytes[..].try_into().expect("pages are 4 KiB");
    area.insert(page.offset.0, bytes);
}

fn apply(area: &mut BTreeMap<u64, Page>, patch: &[u8]) {
    let page_nr = PATCHED[usize::from(patch[0]) % PATCHED.len()];
    let page = area
        .entry(page_nr * PAGE_LEN as u64)
        .or_insert([0; PAGE_LEN]);
    let at = usize::from(u16::from_le_bytes([patch[1], patch[2]])) % (PAGE_LEN - 8);
    page[at..at + 8].copy_from_slice(&patch[4..12]);
    if patch[3] & 1 != 0 {
        page[CRC_AT..CRC_AT + 4].fill(0);
        let crc = crc32c::crc32c(page);
        page[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// An open replica with three transactions and a written bitmap page.
fn base() -> BTreeMap<u64, Page> {
    let superblock = Superblock {
        last_view: ViewNumber(1),
        open: true,
        boot_id: 1,
        unwritten_bits_set: false,
        ..Superblock::blank(NewReplica {
            resource: ResourceId(1),
            volume: VolumeId(0),
            node: NodeId::A,
            replica: REPLICA,
            size: SIZE,
            al_slots: 67,
            zero_proven: false,
        })
    };
    let layout = superblock.layout().expect("a valid size");
    let mut area = BTreeMap::new();
    for page in format(&superblock).expect("a valid size").pages {
        write(&mut area, &page);
    }
    let mut log = ActivityLog::new(layout, superblock.al_slots, REPLICA);
    for extent in [5, 9, 2] {
        let range = BlockRange::new(BlockIndex(extent * EXTENT_BLOCKS), BlockCount(1));
        if let Begin::Transaction(begun) = log.begin_transaction([range]) {
            write(&mut area, &begun.page);
            log.commit_done();
        }
    }
    let mut bitmap = Bitmap::new(layout, REPLICA);
    bitmap.set(BlockRange::new(BlockIndex(100), BlockCount(50)));
    write(&mut area, &bitmap.write_page(BitmapPageNr(0)));
    area
}
