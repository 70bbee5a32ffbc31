//! Making replicas equal: direction, order, durability of clearing, interruptions, sizes.

use super::pair::Shape;
use super::*;

fn behind_by(blocks: u64) -> Pair {
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    for nr in 0..blocks {
        pair.write(A, nr, 1);
    }
    pair.run();
    pair
}

#[test]
fn live_and_resync_writes_of_one_block_go_in_stream_order_at_the_target() {
    // interleavings F4: with every order of disk completions at B.
    for seed in 0..40 {
        let mut pair = behind_by(30);
        pair.start_link();
        let mut state = seed * 7919 + 1;
        let mut choose = |count: usize| {
            state = u64::wrapping_mul(state, 6_364_136_223_846_793_005) | 1;
            usize::try_from(state >> 33).unwrap() % count
        };
        for step in 0..300 {
            if step % 5 == 0 {
                pair.write(A, step % 30, u8::try_from(2 + step % 200).unwrap());
            }
            pair.step_any(&mut choose);
        }
        pair.run();
        pair.add_peer(A);
        pair.assert_replicas_equal();
    }
}

#[test]
fn an_interrupted_resync_loses_no_mark_wherever_it_is_cut() {
    // promise 4 and 8: cut and crash either side, cache kept or lost, after each number of steps.
    for steps in (0..400).step_by(9) {
        for (victim, power) in [(A, false), (B, false), (B, true)] {
            let mut pair = behind_by(60);
            pair.start_link();
            pair.step(steps);
            if power {
                pair.lose_power(victim);
            } else {
                pair.crash(victim);
            }
            pair.assert_dirty_superset();
            pair.restart(victim);
            assert!(
                victim == A || pair.snapshot(B).disk != DiskState::UpToDate,
                "promise 8"
            );
            if victim == A {
                pair.recover(A);
            }
            pair.connect();
            pair.add_peer(A);
            pair.assert_replicas_equal();
        }
    }
}

#[test]
fn a_mark_leaves_the_disk_only_when_both_hold_the_block_durably() {
    // I13: after the resync closed and the Add, either side may lose power.
    for victim in [A, B] {
        let mut pair = behind_by(60);
        pair.connect();
        pair.add_peer(A);
        assert!(pair.recovered(B).bitmap.is_empty());
        pair.admin(A, AdminRequest::Quiesce);
        pair.run();
        assert!(pair.recovered(A).bitmap.is_empty());
        pair.lose_power(victim);
        pair.assert_replicas_equal();
    }
}

#[test]
fn the_kept_replica_is_the_source_after_a_power_loss_of_the_primary() {
    // interleavings F6: A lost w1 with its cache and says so; the controller lets B take over.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 0x11);
    pair.lose_power(A);
    pair.restart(A);
    assert!(pair.facts(A).unwrap().lost_volatile && pair.facts(A).unwrap().unclean);
    assert!(!pair.facts(B).unwrap().lost_volatile);
    pair.take_over(B);
    pair.connect();
    pair.add_peer(B);
    assert_eq!(pair.disk(A, 1), block(0x11));
    pair.assert_replicas_equal();
}

#[test]
fn guests_wait_until_a_recovered_primary_and_its_peer_are_equal() {
    // interleavings F7a: x has w1 on A only; nobody is told before B has it too.
    let mut pair = Pair::in_sync();
    pair.hold_inbox(B, true);
    pair.write(A, 3, 0x33);
    pair.run();
    pair.crash(A);
    pair.hold_inbox(B, false);
    pair.run();
    pair.restart(A);
    pair.recover(A);
    let read = pair.read(A, 3);
    let flush = pair.flush(A);
    pair.start_link();
    while pair.step_any(|_| 0) {
        if pair.answer(read).is_some() || pair.answer(flush).is_some() {
            assert_eq!(pair.disk(B, 3), block(0x33));
        }
    }
    assert_eq!(
        pair.answer(read),
        Some(Ok(GuestReply::Data(block(0x33).into())))
    );
    assert!(pair.answer(flush).is_some());
}

#[test]
fn an_unreadable_block_while_guests_wait_for_equality_leaves_it_to_the_peer() {
    // promise 10, F9: the resync cannot end, and B holds everything that was acknowledged.
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 1);
    let write = pair.write_here_only(A, 3, 0x33);
    pair.state(A).disk.bad.insert(3);
    pair.connect();
    pair.connect();
    assert!(pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
    pair.leave(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    assert_eq!(pair.read_back(A, 3), block(0x33));
}

#[test]
fn an_unreadable_block_that_the_peer_lost_too_is_reported() {
    // promise 10: nobody can make B equal, so the controller must go on without it.
    let mut pair = Pair::in_sync();
    let write = pair.write_here_only(A, 3, 0x33);
    pair.lose_power(B);
    pair.restart(B);
    let lost = pair.count(A, |event| *event == Event::PeerLost);
    pair.state(A).disk.bad.insert(3);
    pair.connect();
    assert!(pair.count(A, |event| *event == Event::PeerLost) > lost);
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
}

#[test]
fn zeroes_and_trims_read_the_same_on_both() {
    // interleavings F17.
    let mut pair = Pair::in_sync();
    for nr in 0..20 {
        pair.written(A, nr, 0xff);
    }
    for kind in [
        GuestKind::Trim {
            offset: ByteOffset(100),
            len: ByteLen(3 * BLOCK),
            fua: true,
        },
        GuestKind::Zeroes {
            offset: ByteOffset(10 * BLOCK + 5),
            len: ByteLen(3 * BLOCK),
            may_unmap: false,
            fua: false,
        },
    ] {
        let request = pair.guest(A, kind);
        pair.run();
        assert!(pair.answer(request).is_some());
    }
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(B, 1), block(0));
    assert_eq!(pair.disk(B, 0), block(0xff));
    assert_eq!((pair.disk(B, 10)[4], pair.disk(B, 10)[5]), (0xff, 0));
}

#[test]
fn resynced_zeroes_become_zeroes() {
    // interleavings F17, last case.
    let mut pair = Pair::in_sync();
    pair.written(A, 5, 0xff);
    pair.disconnect();
    pair.remove_peer(A);
    let len = ByteLen(BLOCK);
    let offset = ByteOffset(5 * BLOCK);
    let (may_unmap, fua) = (true, false);
    pair.guest(
        A,
        GuestKind::Zeroes {
            offset,
            len,
            may_unmap,
            fua,
        },
    );
    pair.run();
    pair.connect();
    pair.add_peer(A);
    assert_eq!(pair.disk(B, 5), block(0));
}

#[test]
fn devices_of_different_size_become_equal_as_far_as_the_volume_goes() {
    // interleavings F24: the agreed size is the smaller; either side may be the larger, and a
    // device not known to be zero is marked up to its own end.
    for blocks in [[4096, 5000], [5000, 4096]] {
        for zero_proven in [true, false] {
            let mut pair = Pair::shaped(Shape {
                blocks,
                zero_proven,
                ..Shape::SMALL
            });
            pair.found(A);
            assert_eq!(pair.snapshot(A).size_blocks, Some(4096));
            pair.written(A, 4095, 7);
            pair.connect();
            pair.add_peer(A);
            pair.assert_replicas_equal();
            assert_eq!(pair.snapshot(B).out_of_sync_blocks, 0);
            pair.crash(A);
            pair.take_over(B);
            assert_eq!(pair.snapshot(B).size_blocks, Some(4096));
        }
    }
}

#[test]
fn a_device_smaller_than_the_volume_is_refused() {
    // I29.
    let mut pair = Pair::in_sync();
    pair.crash(B);
    let meta = pair.nodes[1].boot_id();
    pair.admin(
        B,
        AdminRequest::Attach(AttachRequest {
            device_len: ByteLen(4095 * BLOCK),
            meta_len: ByteLen(1 << 20),
            boot_id: meta,
            marked_failed: false,
            expected_replica: None,
            seal: ViewNumber::NONE,
        }),
    );
    pair.run();
    assert!(pair.saw(B, |event| *event
        == Event::Attached(Err(AttachError::DeviceTooSmall))));
}

#[test]
fn a_replaced_disk_is_made_whole_and_another_lineage_is_refused() {
    // I30.
    for zero_proven in [true, false] {
        let mut pair = Pair::in_sync();
        for nr in 0..50 {
            pair.written(A, nr, 3);
        }
        pair.disconnect();
        pair.remove_peer(A);
        pair.crash(B);
        pair.replace_disk(B, zero_proven);
        pair.restart(B);
        pair.connect();
        pair.add_peer(A);
        pair.assert_replicas_equal();
    }
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.crash(B);
    pair.restart(B);
    let forced = pair.commit(B, |view| {
        view.primary = B;
        view.in_sync = crate::types::InSync::only(B);
        view.data_generation = crate::types::DataGeneration(78);
        view.forced = true;
    });
    pair.activate(B, forced);
    pair.step_down(A);
    pair.written(B, 1, 9);
    pair.connect();
    assert!(pair.saw(A, |event| *event == Event::Refused(Refusal::Diverged)));
    assert_eq!(pair.disk(A, 1), block(0));
}

#[test]
fn a_primary_under_load_still_greets_its_peer() {
    // promise 10, I14: the guest never leaves the disk idle.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.hold_disk(A, true);
    pair.write(A, 1, 1);
    pair.run();
    pair.start_link();
    for round in 0_u64..200 {
        pair.write(A, 2 + round % 50, 2);
        pair.run();
        // The oldest ends; the one just submitted is still under way.
        if !pair.disk_ops(A).is_empty() {
            pair.end_disk_op(A, 0);
        }
    }
    assert_ne!(pair.snapshot(A).replication, ReplicationState::Off);
    pair.hold_disk(A, false);
    pair.run();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn many_messages_while_the_target_records_are_served_in_order_afterwards() {
    let mut pair = behind_by(10);
    pair.start_link();
    while pair.messages_to(B).len() < 2 {
        assert!(pair.step_any(|_| 0));
    }
    pair.state(B).meta_held = true;
    pair.run();
    for nr in 0..100 {
        pair.write(A, nr % 7, u8::try_from(nr).unwrap());
    }
    pair.run();
    pair.state(B).meta_held = false;
    pair.run();
    pair.add_peer(A);
    pair.assert_replicas_equal();
}

#[test]
fn an_attach_of_a_crashed_replica_is_safe_at_every_step() {
    // Replay: bits durable, then the log emptied, then the record; a crash anywhere between.
    for steps in 0..30 {
        let mut pair = Pair::in_sync();
        pair.write_here_only(A, 9, 9);
        pair.crash(A);
        pair.begin_attach(A);
        pair.step(steps);
        pair.crash(A);
        pair.assert_dirty_superset();
        pair.restart(A);
        assert!(pair.snapshot(A).out_of_sync_blocks > 0);
    }
}
