//! The bytes of every metadata page, frozen for format version 1. If this test fails, replicas made
//! by an earlier release can no longer be opened: change the version, not the fixture.

// SPDX-License-Identifier: MIT OR Apache-2.0

mod hex;

use replicator::meta::{
    ActivityLog, Begin, Bitmap, BitmapPageNr, Features, Layout, MetaPage, ReplicaState, Superblock,
};
use replicator::types::{
    BlockCount, BlockIndex, BlockRange, DataGeneration, EXTENT_BLOCKS, NodeId, ReplicaId,
    ResourceId, ViewNumber, VolumeId,
};

const REPLICA: ReplicaId = ReplicaId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const SIZE: BlockCount = BlockCount(262_144);
const SLOTS: u16 = 67;

fn superblock() -> Superblock {
    Superblock {
        sequence: 42,
        resource: ResourceId::of_name("vm-web"),
        volume: VolumeId(0),
        node: NodeId::B,
        replica: REPLICA,
        data_generation: Some(DataGeneration(0x1112_1314)),
        size: SIZE,
        al_slots: SLOTS,
        state: ReplicaState::InSync {
            since: ViewNumber(5),
        },
        zero_proven: true,
        bitmap_base: Some(ReplicaId(0x2122_2324)),
        last_view: ViewNumber(6),
        in_sync_from: Some(ViewNumber(7)),
        open: true,
        boot_id: 0x3132_3334,
        full_sync_needed: false,
        bits_coarse: true,
        unwritten_bits_set: false,
        may_be_ahead: false,
        may_be_behind: false,
        features: Features {
            compat: 1 << 63,
            ro_compat: 0,
            incompat: 0,
        },
    }
}

fn layout() -> Layout {
    Layout::for_volume(SIZE, SLOTS).expect("a valid size")
}

fn transaction_page(begun: Begin) -> MetaPage {
    match begun {
        Begin::Transaction(transaction) => transaction.page,
        other => panic!("{other:?}"),
    }
}

/// The first transaction, the second (three more extents) and a reset.
fn transactions() -> [MetaPage; 3] {
    let extent = |nr: u64, count: u64| {
        BlockRange::new(
            BlockIndex(nr * EXTENT_BLOCKS),
            BlockCount(count * EXTENT_BLOCKS),
        )
    };
    let mut log = ActivityLog::new(layout(), SLOTS, REPLICA);
    let first = transaction_page(log.begin_transaction([extent(200, 1)]));
    log.commit_done();
    let second = transaction_page(log.begin_transaction([extent(7, 3)]));
    log.commit_done();
    let reset = transaction_page(log.begin_reset());
    log.commit_done();
    [first, second, reset]
}

fn bitmap_page() -> MetaPage {
    let mut bitmap = Bitmap::new(layout(), REPLICA);
    let first = BitmapPageNr(1).blocks().start().0;
    bitmap.set(BlockRange::new(BlockIndex(first + 9), BlockCount(1)));
    bitmap.set(BlockRange::new(BlockIndex(first + 1000), BlockCount(100)));
    bitmap.write_page(BitmapPageNr(1))
}

#[test]
fn no_byte_of_format_version_1_has_changed() {
    let [first, second, reset] = transactions();
    let mut text = hex::block("superblock", &superblock().encode());
    text += &hex::block("activity log, first transaction", &first.bytes);
    text += &hex::block("activity log, second transaction", &second.bytes);
    text += &hex::block("activity log, reset", &reset.bytes);
    text += &hex::block("bitmap page 1", &bitmap_page().bytes);
    hex::assert_same(
        &text,
        include_str!("golden/meta-1.txt"),
        "golden/meta-1.txt",
    );
}

#[test]
fn the_frozen_pages_are_still_understood() {
    let frozen = hex::read(include_str!("golden/meta-1.txt"));
    let page = |title: &str| -> [u8; 4096] {
        let bytes = frozen[title].as_slice();
        bytes.try_into().expect("pages are 4 KiB")
    };
    assert_eq!(Superblock::decode(&page("superblock")), Ok(superblock()));

    let ring_len = usize::try_from(layout().activity_log_len().0).expect("a few pages");
    let mut ring = vec![0; ring_len];
    ring[4096..8192].copy_from_slice(&page("activity log, first transaction"));
    ring[8192..12288].copy_from_slice(&page("activity log, second transaction"));
    let replay = |ring: &[u8]| {
        let replayed = replicator::meta::activity_log::replay(layout(), SLOTS, REPLICA, ring);
        let (_, listed) = replayed.expect("frozen pages are whole");
        listed
            .into_iter()
            .map(|extent| extent.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(replay(&ring), [200, 7, 8, 9]);
    ring[12288..16384].copy_from_slice(&page("activity log, reset"));
    assert!(replay(&ring).is_empty());
}

#[test]
fn pages_go_where_the_format_says() {
    let offsets = transactions().map(|page| page.offset.0);
    assert_eq!(offsets, [8192, 12288, 16384]);
    assert_eq!(bitmap_page().offset.0, 512 * 1024 + 4096);
}
