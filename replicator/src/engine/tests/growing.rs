//! `resize`: a larger volume, whatever happens in between (interleavings F24).

use super::pair::Shape;
use super::*;
use crate::protocol::{Message, WriteId};
use crate::types::{BlockCount, BlockIndex, BlockRange, ConnectionState};

const OLD: u64 = 4096;
/// Another bitmap page, and more than one piece to be zeroed.
const NEW: u64 = 40_000;
/// Looked at: the last old block, the first and the last new one, and some between.
const LOOKED_AT: [u64; 6] = [0, OLD - 1, OLD, 20_000, 32_256, NEW - 1];

/// `lvextend`, on both: what the new extents hold is anything, and the metadata area is long enough.
fn enlarge_devices(pair: &mut Pair, to: u64) {
    for node in [A, B] {
        let old = pair.shape.blocks[node.index()];
        let state = pair.state(node);
        state.meta.resize(1 << 20, 0x5a);
        for nr in LOOKED_AT.into_iter().filter(|nr| *nr >= old && *nr < to) {
            let byte = 0x70 + node.raw();
            state.disk.completed.insert(nr, block(byte));
            state.disk.durable.insert(nr, block(byte));
        }
    }
    pair.shape.blocks = [to; 2];
}

fn measure(pair: &mut Pair, node: NodeId) {
    let meta = ByteLen(pair.nodes[node.index()].meta.len() as u64);
    let device = BlockCount(pair.shape.blocks[node.index()]).bytes();
    pair.admin(node, AdminRequest::Measured { device, meta });
}

fn order(pair: &mut Pair, to: u64) {
    for node in [A, B] {
        measure(pair, node);
    }
    pair.admin(A, AdminRequest::Grow { to: BlockCount(to) });
}

fn is_prepared(pair: &Pair, node: NodeId) -> bool {
    let next = pair.view.unwrap().number.next();
    pair.saw(
        node,
        |event| matches!(event, Event::GrowPrepared { view, size_blocks: NEW } if *view == next),
    )
}

fn end(pair: &Pair) -> Option<GrowEnd> {
    pair.snapshot(A).grow.and_then(|report| report.end)
}

fn grown(shape: Shape) -> Pair {
    let mut pair = Pair::in_sync_shaped(shape);
    pair.written(A, OLD - 1, 0x11);
    enlarge_devices(&mut pair, NEW);
    order(&mut pair, NEW);
    pair.run();
    assert!(is_prepared(&pair, A));
    pair
}

fn commit(pair: &mut Pair) {
    let committed = pair.commit(A, |view| view.size_blocks = NEW);
    pair.input(A, Input::Committed(committed));
}

fn assert_equal(pair: &Pair, to: u64) {
    let differs = pair.differing().into_iter().find(|nr| *nr < to);
    assert_eq!(differs, None);
}

/// The volume has that size for guests of `node`.
fn assert_size(pair: &mut Pair, node: NodeId, blocks: u64) {
    assert_eq!(pair.snapshot(node).size_blocks, Some(blocks));
    let beyond = pair.read(node, blocks);
    let last = pair.read(node, blocks - 1);
    pair.run();
    assert_eq!(pair.answer(beyond), Some(Err(GuestError::OutOfRange)));
    assert!(matches!(pair.answer(last), Some(Ok(_))));
}

#[test]
fn a_volume_is_larger_once_both_have_room_and_the_view_says_so() {
    for zero_proven in [true, false] {
        let shape = Shape {
            zero_proven,
            ..Shape::SMALL
        };
        let mut pair = grown(shape);
        // Before the view says so, guests see nothing of it.
        assert_size(&mut pair, A, OLD);
        assert_eq!(end(&pair), None);
        commit(&mut pair);
        assert_eq!(end(&pair), Some(GrowEnd::Done));
        assert_size(&mut pair, A, NEW);
        for nr in [OLD, NEW - 1] {
            assert_eq!(pair.read_back(A, nr), block(0));
        }
        // B has not heard of that view, and takes what is written all the same.
        assert_eq!(pair.snapshot(B).size_blocks, Some(OLD));
        pair.written(A, NEW - 1, 0x22);
        pair.flushed(A);
        assert_eq!(pair.disk(B, NEW - 1), block(0x22));
        assert_equal(&pair, NEW);
        assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
        let view = pair.view.unwrap();
        pair.input(B, Input::Learned(view));
        assert_eq!(pair.snapshot(B).size_blocks, Some(NEW));
        // Nothing is to be resynced, now or after both restarted.
        for node in [A, B] {
            pair.crash(node);
        }
        for node in [A, B] {
            pair.restart(node);
        }
        pair.recover(A);
        pair.connect();
        assert!(
            pair.snapshot(A)
                .resync
                .is_none_or(|it| it.total_blocks < OLD)
        );
        assert_equal(&pair, NEW);
    }
}

#[test]
fn a_peer_that_has_not_heard_of_it_takes_over_with_the_new_size() {
    let mut pair = grown(Shape::SMALL);
    commit(&mut pair);
    pair.written(A, NEW - 1, 0x22);
    pair.crash(A);
    pair.take_over(B);
    assert_size(&mut pair, B, NEW);
    assert_eq!(pair.read_back(B, NEW - 1), block(0x22));
    pair.written(B, OLD + 5, 0x33);
    pair.restart(A);
    pair.connect();
    pair.add_peer(B);
    assert_equal(&pair, NEW);
}

#[test]
fn a_session_made_again_before_the_peer_hears_of_it_is_not_refused() {
    let mut pair = grown(Shape::SMALL);
    commit(&mut pair);
    pair.disconnect();
    pair.connect();
    assert_eq!(pair.snapshot(A).refused, None);
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
    pair.written(A, NEW - 1, 0x22);
    assert_equal(&pair, NEW);
}

#[test]
fn without_room_on_either_side_nothing_changes_and_it_can_be_ordered_again() {
    for short in [A, B] {
        let mut pair = Pair::in_sync();
        enlarge_devices(&mut pair, NEW);
        pair.shape.blocks[short.index()] = NEW - 1;
        order(&mut pair, NEW);
        pair.run();
        let wanted = if short == A {
            GrowEnd::NoRoom
        } else {
            GrowEnd::PeerFailed(DiskError::NoSpace)
        };
        assert_eq!(end(&pair), Some(wanted));
        assert!(!is_prepared(&pair, A));
        assert_size(&mut pair, A, OLD);
        pair.shape.blocks = [NEW; 2];
        order(&mut pair, NEW);
        pair.run();
        commit(&mut pair);
        assert_size(&mut pair, A, NEW);
        assert_equal(&pair, NEW);
    }
}

#[test]
fn a_metadata_area_that_is_too_short_has_no_room() {
    let mut pair = Pair::in_sync();
    let needed = pair.nodes[A.index()].meta.len();
    enlarge_devices(&mut pair, NEW);
    pair.state(A).meta.truncate(needed);
    order(&mut pair, NEW);
    assert_eq!(end(&pair), Some(GrowEnd::NoRoom));
}

#[test]
fn devices_larger_than_the_volume_from_the_beginning_are_zeroed_all_the_same() {
    let shape = Shape {
        blocks: [OLD, OLD + 900],
        ..Shape::SMALL
    };
    let mut pair = Pair::in_sync_shaped(shape);
    pair.state(B).disk.completed.insert(OLD + 5, block(0xbb));
    enlarge_devices(&mut pair, NEW);
    order(&mut pair, NEW);
    pair.run();
    commit(&mut pair);
    assert_equal(&pair, NEW);
    assert_eq!(pair.read_back(A, OLD + 5), block(0));
}

#[test]
fn whatever_crashes_at_whatever_moment_the_volume_has_one_size_and_equal_blocks() {
    // Each moment of the whole, a crash or a power cut of either side, then the order again.
    for (victim, power) in [(A, false), (A, true), (B, false), (B, true)] {
        for moment in 0.. {
            let mut pair = Pair::in_sync();
            pair.written(A, OLD - 1, 0x11);
            pair.flushed(A);
            enlarge_devices(&mut pair, NEW);
            order(&mut pair, NEW);
            pair.step(moment);
            let over = is_prepared(&pair, A);
            if power {
                pair.lose_power(victim);
            } else {
                pair.crash(victim);
            }
            pair.run();
            assert!(matches!(end(&pair), None | Some(GrowEnd::SessionLost)));
            pair.restart(victim);
            if victim == A {
                pair.recover(A);
            }
            pair.connect();
            pair.run();
            assert_size(&mut pair, A, OLD);
            assert_equal(&pair, OLD);
            order(&mut pair, NEW);
            pair.run();
            // One that both were ready for is not ordered twice.
            if is_prepared(&pair, A) {
                commit(&mut pair);
                assert_size(&mut pair, A, NEW);
                for nr in LOOKED_AT {
                    let byte = if nr == OLD - 1 { 0x11 } else { 0 };
                    assert_eq!(pair.read_back(A, nr), block(byte), "{nr} at {moment}");
                }
                assert_equal(&pair, NEW);
                pair.written(A, NEW - 1, 0x33);
                assert_equal(&pair, NEW);
            } else {
                assert!(over && victim == B, "{victim:?} at {moment}");
            }
            if over {
                break;
            }
        }
    }
}

#[test]
fn a_lost_session_ends_it_and_what_comes_late_of_it_counts_for_nothing() {
    let mut pair = Pair::in_sync();
    enlarge_devices(&mut pair, NEW);
    pair.hold_disk(B, true);
    order(&mut pair, NEW);
    pair.run();
    pair.disconnect();
    assert_eq!(end(&pair), Some(GrowEnd::SessionLost));
    pair.hold_disk(B, false);
    pair.connect();
    let range = BlockRange::between(BlockIndex(OLD), BlockIndex(NEW));
    let (id, result) = (WriteId(1), Ok(()));
    pair.inject(A, Message::Grown { id, range, result });
    pair.run();
    assert!(!is_prepared(&pair, A));
    assert_size(&mut pair, A, OLD);
    order(&mut pair, NEW);
    pair.run();
    commit(&mut pair);
    assert_equal(&pair, NEW);
}

#[test]
fn what_is_known_to_be_the_volumes_is_never_zeroed() {
    let mut pair = grown(Shape::SMALL);
    commit(&mut pair);
    pair.written(A, NEW - 1, 0x22);
    let view = pair.view.unwrap();
    pair.input(B, Input::Learned(view));
    let range = BlockRange::between(BlockIndex(NEW - 1), BlockIndex(NEW));
    let id = WriteId(7);
    pair.inject(B, Message::Grow { id, range });
    pair.run();
    assert_eq!(pair.disk(B, NEW - 1), block(0x22));
    assert_ne!(pair.snapshot(B).connection, ConnectionState::Connected);
}

#[test]
fn a_disk_that_cannot_zero_stays_the_replica_it_was() {
    let mut pair = Pair::in_sync();
    enlarge_devices(&mut pair, NEW);
    pair.hold_disk(A, true);
    order(&mut pair, NEW);
    pair.run();
    pair.state(A).disk.failing = true;
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(end(&pair), Some(GrowEnd::DiskFailed(DiskError::Io)));
    pair.state(A).disk.failing = false;
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    pair.written(A, 1, 0x11);
    assert_equal(&pair, OLD);
}

#[test]
fn whether_the_view_came_is_not_said_by_who_cannot_know() {
    for lost in [true, false] {
        let mut pair = grown(Shape::SMALL);
        if lost {
            pair.step_down(A);
        } else {
            pair.hold_disk(A, true);
            pair.write(A, 1, 0x22);
            pair.run();
            pair.state(A).disk.failing = true;
            pair.hold_disk(A, false);
        }
        pair.run();
        assert_eq!(end(&pair), Some(GrowEnd::Undecided));
    }
}

#[test]
fn it_is_refused_unless_both_replicas_are_in_sync_and_connected() {
    let mut pair = Pair::in_sync();
    enlarge_devices(&mut pair, NEW);
    pair.disconnect();
    order(&mut pair, NEW);
    assert_eq!(end(&pair), Some(GrowEnd::NotMirrored));
    pair.remove_peer(A);
    pair.run();
    order(&mut pair, NEW);
    assert_eq!(end(&pair), Some(GrowEnd::NotMirrored));
    assert_size(&mut pair, A, OLD);
}

#[test]
fn another_view_in_between_ends_it() {
    let mut pair = Pair::in_sync();
    enlarge_devices(&mut pair, NEW);
    pair.hold_disk(B, true);
    order(&mut pair, NEW);
    pair.run();
    let committed = pair.commit(A, |_| {});
    pair.input(A, Input::Committed(committed));
    assert_eq!(end(&pair), Some(GrowEnd::ViewChanged));
    pair.hold_disk(B, false);
    pair.run();
    assert!(!is_prepared(&pair, A));
    order(&mut pair, NEW);
    pair.run();
    commit(&mut pair);
    assert_eq!(end(&pair), Some(GrowEnd::Done));
    assert_equal(&pair, NEW);
}

#[test]
fn guests_go_on_while_it_grows_and_a_smaller_size_is_nothing_to_do() {
    let mut pair = Pair::in_sync();
    enlarge_devices(&mut pair, NEW);
    order(&mut pair, NEW);
    for nr in 0..20 {
        pair.step(3);
        pair.write(A, nr, 0x40);
    }
    pair.run();
    assert!(is_prepared(&pair, A));
    assert_equal(&pair, NEW);
    commit(&mut pair);
    pair.admin(
        A,
        AdminRequest::Grow {
            to: BlockCount(OLD),
        },
    );
    assert_eq!(end(&pair), Some(GrowEnd::Done));
    assert_size(&mut pair, A, NEW);
}
