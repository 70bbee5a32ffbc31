use proptest::prelude::*;

use super::*;

fn superblock() -> Superblock {
    Superblock {
        sequence: 7,
        resource: ResourceId(1),
        volume: VolumeId(0),
        node: NodeId::A,
        replica: ReplicaId(2),
        data_generation: Some(DataGeneration(3)),
        size: BlockCount(4096),
        al_slots: 67,
        state: ReplicaState::InSync {
            since: ViewNumber(4),
        },
        zero_proven: false,
        bitmap_base: Some(ReplicaId(5)),
        last_view: ViewNumber(6),
        in_sync_from: None,
        open: true,
        boot_id: 8,
        full_sync_needed: false,
        bits_coarse: false,
        unwritten_bits_set: true,
        may_be_ahead: false,
        may_be_behind: false,
        features: Features::default(),
    }
}

fn resealed(mut page: PageBytes) -> PageBytes {
    seal(&mut page, CRC_AT);
    page
}

fn states() -> impl Strategy<Value = ReplicaState> {
    prop_oneof![
        Just(ReplicaState::Blank),
        (0..=ViewNumber::MAX.0).prop_map(|view| ReplicaState::InSync {
            since: ViewNumber(view)
        }),
        Just(ReplicaState::Outdated),
        Just(ReplicaState::SyncTarget),
        Just(ReplicaState::Failed),
    ]
}

prop_compose! {
    fn superblocks()(
        state in states(),
        ids in any::<(u64, u16, u128, u128, u128, u128)>(),
        views in (any::<u64>(), 0..=ViewNumber::MAX.0, 0..=ViewNumber::MAX.0),
        bits in any::<[bool; 7]>(),
        size in 1..=1_u64 << 38,
        al_slots in 0..=65_534_u16,
        compat in any::<u64>(),
    ) -> Superblock {
        let some = |id: u128| (id != 0).then_some(id);
        Superblock {
            sequence: views.0 / 4,
            resource: ResourceId(ids.0),
            volume: VolumeId(ids.1),
            node: NodeId::B,
            replica: ReplicaId(ids.2.max(1)),
            data_generation: some(ids.3).map(DataGeneration),
            size: BlockCount(size),
            al_slots,
            state,
            zero_proven: bits[0],
            bitmap_base: some(ids.4).map(ReplicaId),
            last_view: ViewNumber(views.1),
            in_sync_from: (views.2 != 0).then_some(ViewNumber(views.2)),
            open: bits[1],
            boot_id: ids.5,
            full_sync_needed: bits[2],
            bits_coarse: bits[3],
            unwritten_bits_set: bits[4],
            may_be_ahead: bits[5],
            may_be_behind: bits[6],
            features: Features { compat, ..Features::default() },
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(superblock in superblocks()) {
        prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }

    #[test]
    fn any_bytes_with_a_right_checksum_are_read_or_refused(
        changes in prop::collection::vec((16..256_usize, any::<u8>()), 0..20),
    ) {
        let mut page = superblock().encode();
        for (at, byte) in changes {
            page[at] = byte;
        }
        let _verdict = Superblock::decode(&resealed(page));
    }
}

#[test]
fn no_flipped_bit_passes() {
    let good = superblock().encode();
    for bit in 0..PAGE_LEN * 8 {
        let mut page = good;
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::decode(&page).is_err(), "bit {bit}");
    }
}

#[test]
fn a_sequence_that_could_overflow_is_damage() {
    let forged = Superblock {
        sequence: u64::MAX,
        ..superblock()
    };
    let verdict = Superblock::decode(&forged.encode());
    assert_eq!(verdict, Err(SuperblockError::Damaged));
}

#[test]
fn a_view_whose_successor_could_overflow_is_damage() {
    let beyond = ViewNumber(ViewNumber::MAX.0 + 1);
    let forged = [
        Superblock {
            last_view: beyond,
            ..superblock()
        },
        Superblock {
            in_sync_from: Some(ViewNumber(u64::MAX)),
            ..superblock()
        },
        Superblock {
            state: ReplicaState::InSync { since: beyond },
            ..superblock()
        },
    ];
    for forged in forged {
        let verdict = Superblock::decode(&forged.encode());
        assert_eq!(verdict, Err(SuperblockError::Damaged));
    }
}

#[test]
fn a_newer_format_is_too_new_and_not_damaged() {
    let mut page = superblock().encode();
    page[8] = 2;
    let too_new = SuperblockError::TooNew {
        version: 2,
        features: Features::default(),
    };
    assert_eq!(Superblock::decode(&resealed(page)), Err(too_new));
    // Also when an older, valid copy lies beside it.
    let older = superblock().encode();
    let verdict = choose(&older, &resealed(page));
    assert!(matches!(verdict, Err(ChooseError::TooNew { .. })));
}

#[test]
fn only_unknown_compat_features_are_harmless() {
    let with = |features: Features| Superblock {
        features,
        ..superblock()
    };
    let none = Features::default();
    let compat = with(Features { compat: 1, ..none });
    assert_eq!(Superblock::decode(&compat.encode()), Ok(compat));
    for features in [
        Features {
            ro_compat: 1,
            ..none
        },
        Features {
            incompat: 1,
            ..none
        },
    ] {
        let verdict = Superblock::decode(&with(features).encode());
        let version = FORMAT_VERSION;
        assert_eq!(verdict, Err(SuperblockError::TooNew { version, features }));
    }
}

#[test]
fn the_newest_whole_copy_counts() {
    let old = superblock();
    let new = Superblock {
        sequence: 8,
        state: ReplicaState::SyncTarget,
        ..superblock()
    };
    let mut torn = new.encode();
    torn[100] ^= 1;
    let pages = [
        ZERO_PAGE,
        [0x5a; PAGE_LEN],
        torn,
        old.encode(),
        new.encode(),
    ];
    let [zero, foreign, torn, old_page, new_page] = &pages;
    let chosen =
        |first, second| choose(first, second).map(|(found, place)| (found.sequence, place));
    assert_eq!(chosen(old_page, new_page), Ok((8, Place::Second)));
    assert_eq!(chosen(new_page, old_page), Ok((8, Place::First)));
    assert_eq!(chosen(old_page, torn), Ok((7, Place::First)));
    assert_eq!(chosen(foreign, old_page), Ok((7, Place::Second)));
    assert_eq!(chosen(zero, zero), Err(ChooseError::NoMetadata));
    assert_eq!(chosen(foreign, zero), Err(ChooseError::NotOurs));
    assert_eq!(chosen(torn, zero), Err(ChooseError::Damaged));
    assert_eq!(chosen(torn, foreign), Err(ChooseError::Damaged));
}

#[test]
fn halves_of_two_replicas_are_no_replica() {
    let one = superblock();
    let other = Superblock {
        sequence: 20,
        replica: ReplicaId(99),
        ..superblock()
    };
    let verdict = choose(&one.encode(), &other.encode());
    assert_eq!(verdict, Err(ChooseError::Damaged));
}

#[test]
fn writes_take_turns_and_the_damaged_copy_is_written_first() {
    let mut torn = superblock().encode();
    torn[50] ^= 1;
    let (found, place) = choose(&superblock().encode(), &torn).unwrap();
    let mut writer = SuperblockWriter::new(found, place);
    let first = writer.next_write(|superblock| superblock.open = false);
    let second = writer.next_write(|superblock| superblock.state = ReplicaState::Failed);
    assert_eq!(first.offset, SUPERBLOCK_OFFSETS[1]);
    assert_eq!(second.offset, SUPERBLOCK_OFFSETS[0]);
    let last = Superblock::decode(&PageBytes::try_from(&second.bytes[..]).unwrap()).unwrap();
    assert_eq!(
        (last.sequence, last.state, last.open),
        (9, ReplicaState::Failed, false)
    );
}
