//! Online verify: finds what differs, never what only is under way, and mends it if told.

use std::collections::BTreeSet;

use super::pair::Shape;
use super::random::Random;
use super::*;
use crate::protocol::Message;
use crate::types::{BlockCount, BlockIndex, BlockRange, ConnectionState, ReplicationState};

const LOOK: VerifyOrder = VerifyOrder::Start { repair: false };
const MEND: VerifyOrder = VerifyOrder::Start { repair: true };

fn order(pair: &mut Pair, order: VerifyOrder) {
    pair.admin(A, AdminRequest::Verify(order));
}

fn report(pair: &Pair) -> VerifyReport {
    pair.snapshot(A).verify.expect("one began")
}

fn ended(pair: &Pair) -> Option<VerifyEnd> {
    report(pair).end.map(|(_, why)| why)
}

/// A block of `node`'s disk changes below the engine.
fn spoil(pair: &mut Pair, node: NodeId, nr: u64) {
    let disk = &mut pair.state(node).disk;
    disk.completed.insert(nr, block(0xbd));
    disk.durable.insert(nr, block(0xbd));
}

fn range(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

#[test]
fn equal_replicas_are_found_equal() {
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 3);
    order(&mut pair, LOOK);
    assert_eq!(pair.snapshot(A).replication, ReplicationState::VerifyS);
    pair.step(4);
    assert_eq!(pair.snapshot(B).replication, ReplicationState::VerifyT);
    pair.run();
    let found = report(&pair);
    assert_eq!(ended(&pair), Some(VerifyEnd::Done));
    assert_eq!((found.checked_blocks, found.differing_blocks), (4096, 0));
    for node in [A, B] {
        let state = pair.snapshot(node).replication;
        assert_eq!(state, ReplicationState::Established);
    }
    assert_eq!(pair.count(A, |it| matches!(it, Event::Verified(_))), 1);
}

#[test]
fn what_differs_is_told_and_left_alone() {
    for side in [A, B] {
        let mut pair = Pair::in_sync();
        for nr in [7, 8, 9, 130, 4095] {
            spoil(&mut pair, side, nr);
        }
        order(&mut pair, LOOK);
        pair.run();
        let found = report(&pair);
        assert_eq!((found.checked_blocks, found.differing_blocks), (4096, 5));
        assert_eq!(found.ranges, [range(7, 3), range(130, 1), range(4095, 1)]);
        assert_eq!(found.repaired_blocks, 0);
        assert_eq!(pair.disk(side, 8), block(0xbd));
        assert_eq!(pair.snapshot(A).out_of_sync_blocks, 0, "nothing is marked");
        assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    }
}

#[test]
fn a_repair_copies_the_primary_s_blocks_and_survives_like_a_write() {
    let mut pair = Pair::in_sync();
    pair.written(A, 8, 8);
    pair.flushed(A);
    for nr in [7, 8, 9, 4095] {
        spoil(&mut pair, B, nr);
    }
    order(&mut pair, MEND);
    pair.run();
    let found = report(&pair);
    assert_eq!((found.differing_blocks, found.repaired_blocks), (4, 4));
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(B, 8), block(8));
    order(&mut pair, LOOK);
    pair.run();
    assert_eq!(report(&pair).differing_blocks, 0);
    pair.flushed(A);
    assert_eq!(pair.durable(B, 8), block(8));
}

#[test]
fn a_cut_or_crash_in_a_repair_is_one_in_the_middle_of_a_write() {
    for steps in 0..120 {
        for victim in [None, Some(A), Some(B)] {
            let mut pair = Pair::in_sync();
            for nr in 20..30 {
                spoil(&mut pair, B, nr);
            }
            order(&mut pair, MEND);
            pair.step(steps);
            match victim {
                None => pair.cut_link(),
                Some(victim) => {
                    pair.crash(victim);
                    pair.restart(victim);
                }
            }
            if victim == Some(A) {
                pair.recover(A);
            }
            pair.connect();
            pair.renew_lease(A);
            order(&mut pair, MEND);
            pair.run();
            assert_eq!(ended(&pair), Some(VerifyEnd::Done), "{steps} {victim:?}");
            pair.assert_replicas_equal();
            pair.assert_dirty_superset();
        }
    }
}

#[test]
fn a_write_under_way_is_no_difference_and_is_not_held_up() {
    // A's disk has the write, B's has not: the pass sees a difference, and the look waits for it.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let write = pair.write(A, 5, 5);
    pair.run();
    assert_eq!(pair.disk(A, 5), block(5));
    order(&mut pair, LOOK);
    pair.run();
    assert_eq!(report(&pair).checked_blocks, 0);
    // B's reads go first.
    let reads =
        |pending: &pair::Pending| matches!(pending, pair::Pending::Disk(_, DiskCommand::Read(_)));
    pair.hold_disk(B, false);
    while let Some(at) = pair.queue.iter().position(|(_, pending)| reads(pending)) {
        pair.carry_out(at);
    }
    assert_eq!(pair.answer(write), None);
    pair.run();
    assert_eq!(pair.answer(write), Some(Ok(GuestReply::Done)));
    let found = report(&pair);
    assert_eq!((found.checked_blocks, found.differing_blocks), (4096, 0));
}

#[test]
fn only_writes_of_the_block_being_looked_at_wait() {
    let mut pair = Pair::in_sync();
    spoil(&mut pair, B, 9);
    order(&mut pair, LOOK);
    // Until the look is under way: its block is locked, and B does not answer.
    while report(&pair).checked_blocks < 128 {
        pair.step(1);
    }
    pair.hold_inbox(B, true);
    pair.run();
    let (other, same) = (pair.write(A, 10, 1), pair.write(A, 9, 1));
    let read = pair.read(A, 9);
    pair.run();
    assert_eq!(pair.disk(A, 10), block(1), "the neighbour is written");
    assert_eq!(pair.disk(A, 9), block(0), "this one waits");
    assert_eq!(pair.answer(read), None, "behind the write");
    pair.hold_inbox(B, false);
    pair.run();
    assert!(pair.answer(other).is_some() && pair.answer(same).is_some());
    assert_eq!(report(&pair).differing_blocks, 1);
    pair.assert_replicas_equal();
}

#[test]
fn it_ends_with_its_session_role_or_disk_and_says_so() {
    type Fault = fn(&mut Pair);
    let faults: [(Fault, VerifyEnd); 6] = [
        (|pair| pair.cut_link(), VerifyEnd::SessionLost),
        (|pair| pair.crash(B), VerifyEnd::SessionLost),
        (|pair| order(pair, VerifyOrder::Stop), VerifyEnd::Stopped),
        (|pair| pair.step_down(A), VerifyEnd::RoleChanged),
        (
            |pair| {
                pair.fail_disk(A);
                pair.write(A, 1, 1);
            },
            VerifyEnd::DiskFailed,
        ),
        (
            |pair| {
                pair.fail_disk(B);
                pair.write(A, 1, 1);
            },
            VerifyEnd::DiskFailed,
        ),
    ];
    for (fault, why) in faults {
        for steps in [3, 9, 30, 60] {
            let mut pair = Pair::in_sync();
            for nr in 0..40 {
                spoil(&mut pair, B, nr * 3);
            }
            order(&mut pair, LOOK);
            pair.step(steps);
            fault(&mut pair);
            pair.run();
            assert_eq!(ended(&pair), Some(why), "after {steps}");
            let engine = &pair.nodes[A.index()].engine;
            assert!(!engine.is_verifying() && !engine.owes_digests());
            assert!(pair.nodes[B.index()].engine.digesting.is_empty());
        }
    }
}

#[test]
fn a_stopped_one_leaves_no_lock_and_the_next_begins_anew() {
    let mut pair = Pair::in_sync();
    for nr in 0..50 {
        spoil(&mut pair, B, nr);
    }
    for steps in 0..60 {
        order(&mut pair, MEND);
        pair.step(steps);
        order(&mut pair, VerifyOrder::Stop);
        order(&mut pair, MEND);
        pair.step(steps);
        order(&mut pair, VerifyOrder::Stop);
    }
    for nr in 0..50 {
        pair.written(A, nr, 1);
    }
    order(&mut pair, MEND);
    pair.run();
    assert_eq!(ended(&pair), Some(VerifyEnd::Done));
    assert_eq!(report(&pair).checked_blocks, 4096);
    pair.assert_replicas_equal();
}

#[test]
fn blocks_that_cannot_be_read_are_counted_and_mended_from_the_primary() {
    let mut pair = Pair::in_sync();
    pair.state(B).disk.bad.insert(300);
    pair.state(A).disk.bad.insert(900);
    order(&mut pair, LOOK);
    pair.run();
    let found = report(&pair);
    assert_eq!((found.differing_blocks, found.unreadable_blocks), (0, 2));
    assert_eq!(found.checked_blocks, 4096);
    assert_eq!(pair.snapshot(A).disk, DiskState::UpToDate);
    order(&mut pair, MEND);
    pair.run();
    assert_eq!(report(&pair).repaired_blocks, 1, "B's, from A");
    assert_eq!(ended(&pair), Some(VerifyEnd::Done));
}

#[test]
fn guests_that_may_not_be_served_stop_it_for_so_long() {
    let mut pair = Pair::in_sync();
    order(&mut pair, LOOK);
    pair.step(6);
    pair.lapse_lease(A);
    pair.run();
    assert_eq!(ended(&pair), None);
    let checked = report(&pair).checked_blocks;
    assert!(checked < 4096);
    pair.renew_lease(A);
    pair.run();
    assert_eq!(report(&pair).checked_blocks, 4096);
    // An orderly demotion is not held up either.
    order(&mut pair, LOOK);
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
    assert_eq!(ended(&pair), None);
    pair.admin(A, AdminRequest::Unquiesce);
    pair.run();
    assert_eq!(ended(&pair), Some(VerifyEnd::Done));
}

#[test]
fn it_keeps_to_the_limit_of_resyncs() {
    let mut pair = Pair::in_sync();
    let rate = core::num::NonZeroU64::new(4 << 20).unwrap();
    pair.admin(
        A,
        AdminRequest::Resync(ResyncOrder::Rate(ResyncRate::BytesPerSecond(rate))),
    );
    pair.run();
    order(&mut pair, LOOK);
    let began = pair.now;
    for _ in 0..2000 {
        pair.run();
        if ended(&pair).is_some() {
            break;
        }
        let deadline = |node: NodeId| pair.nodes[node.index()].engine.next_deadline();
        let next = earliest(deadline(A), deadline(B)).expect("something is waited for");
        pair.pass(next.since(pair.now));
    }
    assert_eq!(ended(&pair), Some(VerifyEnd::Done));
    let took = pair.now.since(began);
    assert!(
        (3.5..4.5).contains(&took.as_secs_f64()),
        "16 MiB at 4 MiB/s: {took:?}"
    );
}

#[test]
fn one_that_is_held_asks_for_no_moment_that_is_over() {
    // The pace held it up, then guests were held: its moment came and nothing could begin.
    let mut pair = Pair::in_sync();
    let rate = core::num::NonZeroU64::new(1 << 20).unwrap();
    let rate = ResyncOrder::Rate(ResyncRate::BytesPerSecond(rate));
    pair.admin(A, AdminRequest::Resync(rate));
    order(&mut pair, LOOK);
    pair.run();
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    pair.pass(Duration::from_secs(2));
    pair.run();
    assert_eq!(ended(&pair), None);
    let next = pair.nodes[A.index()].engine.next_deadline();
    assert!(
        next.is_none_or(|at| at > pair.now),
        "{next:?} at {:?}",
        pair.now
    );
    pair.admin(A, AdminRequest::Unquiesce);
    let checked = report(&pair).checked_blocks;
    pair.run();
    assert!(report(&pair).checked_blocks > checked, "it goes on");
}

#[test]
fn it_begins_only_on_a_primary_whose_peer_is_equal() {
    let mut pair = Pair::in_sync();
    pair.admin(B, AdminRequest::Verify(LOOK));
    pair.run();
    assert_eq!(pair.snapshot(B).verify, None);
    pair.disconnect();
    order(&mut pair, LOOK);
    assert_eq!(pair.snapshot(A).verify, None);
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.admin(B, AdminRequest::Resync(ResyncOrder::Pause));
    pair.connect();
    order(&mut pair, LOOK);
    assert_eq!(pair.snapshot(A).verify, None, "a resync runs");
}

#[test]
fn a_peer_that_asks_for_more_than_a_verify_does_loses_its_session() {
    let wild = [
        (range(0, 129), false),
        (range(4090, 8), false),
        (range(5000, 1), true),
    ];
    for (range, in_turn) in wild {
        let mut pair = Pair::in_sync();
        let session = pair.link.unwrap().session;
        let id = crate::protocol::WriteId(1);
        let message = Message::VerifyRequest { id, range, in_turn };
        pair.input(B, Input::Received { session, message });
        assert_ne!(pair.snapshot(B).connection, ConnectionState::Connected);
    }
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    let session = pair.link.unwrap().session;
    for nr in 0..=Engine::DIGESTS_MAX as u64 {
        assert_eq!(pair.snapshot(B).connection, ConnectionState::Connected);
        let message = Message::VerifyRequest {
            id: crate::protocol::WriteId(nr),
            range: range(nr, 1),
            in_turn: nr % 2 == 0,
        };
        pair.input(B, Input::Received { session, message });
    }
    assert_ne!(pair.snapshot(B).connection, ConnectionState::Connected);
}

/// What was planted before it began and never written since is found; nothing else ever is.
fn random_plants(seed: u64, shape: Shape, repair: bool) {
    const BLOCKS: u64 = 40;
    let mut pair = Pair::in_sync_shaped(shape);
    let mut random = Random(seed);
    let mut planted = BTreeSet::new();
    let write = |pair: &mut Pair, random: &mut Random| {
        let nr = random.below(usize::try_from(BLOCKS).unwrap()) as u64;
        let byte = u8::try_from(random.below(200)).unwrap();
        let offset = ByteOffset(nr * BLOCK + if random.one_in(3) { 100 } else { 0 });
        let payload = vec![byte; 4096].into();
        let fua = random.one_in(8);
        pair.guest(
            A,
            GuestKind::Write {
                offset,
                payload,
                fua,
            },
        );
    };
    for _ in 0..60 {
        write(&mut pair, &mut random);
        pair.step_any(|count| random.below(count));
    }
    for _ in 0..12 {
        let nr = random.below(usize::try_from(BLOCKS).unwrap()) as u64;
        let side = if random.one_in(3) { A } else { B };
        spoil(&mut pair, side, nr);
        planted.insert(nr);
    }
    order(&mut pair, VerifyOrder::Start { repair });
    for _ in 0..60_000 {
        if random.one_in(3) && pair.nodes[A.index()].unanswered.len() < 24 {
            write(&mut pair, &mut random);
        }
        if random.one_in(400) {
            pair.guest(A, GuestKind::Flush);
        }
        pair.step_any(|count| random.below(count));
        if ended(&pair).is_some() {
            break;
        }
    }
    pair.run();
    assert_eq!(ended(&pair), Some(VerifyEnd::Done));
    let found = report(&pair);
    assert_eq!((found.checked_blocks, found.unreadable_blocks), (256, 0));
    let told: BTreeSet<u64> = found
        .ranges
        .iter()
        .flat_map(|range| range.iter().map(|block| block.0))
        .collect();
    let left: BTreeSet<u64> = pair.differing().into_iter().collect();
    assert_eq!(told.len() as u64, found.differing_blocks);
    assert!(told.is_subset(&planted), "{told:?} but {planted:?}");
    if repair {
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(found.repaired_blocks, found.differing_blocks);
    } else {
        assert!(left.is_subset(&told), "{left:?} but told {told:?}");
    }
}

#[test]
fn exactly_the_planted_differences_are_found_whatever_guests_do() {
    for protocol in [
        ReplicationProtocol::A,
        ReplicationProtocol::B,
        ReplicationProtocol::C,
    ] {
        for seed in 0..20 {
            let shape = Shape {
                blocks: [256; 2],
                ..Shape::under(protocol)
            };
            random_plants(seed, shape, seed % 2 == 0);
        }
    }
}

/// Until a look is under way that B does not hear of: block 9 is locked.
fn looking(pair: &mut Pair, how: VerifyOrder) {
    spoil(pair, B, 9);
    order(pair, how);
    while report(pair).checked_blocks < 128 {
        pair.step(1);
    }
    pair.hold_inbox(B, true);
    pair.run();
}

#[test]
fn nothing_is_mended_after_everything_was_said_to_be_quiet() {
    let mut pair = Pair::in_sync();
    spoil(&mut pair, B, 9);
    order(&mut pair, MEND);
    while report(&pair).checked_blocks < 128 {
        pair.step(1);
    }
    // B's answer is on its way; the gate is shut before it comes.
    pair.hold_inbox(A, true);
    pair.run();
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    pair.hold_inbox(A, false);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
    assert_eq!(pair.disk(B, 9), block(0xbd), "nothing is written");
    pair.admin(A, AdminRequest::Unquiesce);
    pair.run();
    let found = report(&pair);
    assert_eq!((found.differing_blocks, found.repaired_blocks), (1, 1));
    pair.assert_replicas_equal();
}

#[test]
fn a_write_behind_a_look_is_begun_by_no_step_down() {
    let mut pair = Pair::in_sync();
    // Its extent is hot: nothing else is waited for.
    pair.written(A, 10, 1);
    looking(&mut pair, LOOK);
    pair.write(A, 9, 9);
    pair.run();
    let under_way = pair.queue.len();
    pair.input(A, Input::StepDown);
    let begun = pair.queue.iter().skip(under_way).any(|(_, pending)| {
        matches!(
            pending,
            pair::Pending::Disk(_, DiskCommand::Write { .. })
                | pair::Pending::Deliver(_, Message::Data { .. })
        )
    });
    assert!(!begun, "nobody waits for it any more");
    pair.hold_inbox(B, false);
    pair.run();
    assert_eq!(pair.disk(A, 9), block(0));
}

#[test]
fn a_limit_that_is_lifted_is_lifted_for_the_running_one() {
    for orderer in [A, B] {
        let mut pair = Pair::in_sync();
        let rate = core::num::NonZeroU64::new(1 << 10).unwrap();
        let rate = ResyncRate::BytesPerSecond(rate);
        pair.admin(orderer, AdminRequest::Resync(ResyncOrder::Rate(rate)));
        pair.run();
        order(&mut pair, LOOK);
        pair.run();
        assert_eq!(ended(&pair), None);
        let rate = ResyncRate::Unlimited;
        pair.admin(orderer, AdminRequest::Resync(ResyncOrder::Rate(rate)));
        pair.run();
        assert_eq!(ended(&pair), Some(VerifyEnd::Done));
    }
}

/// Takes `node`'s reads of `block` off its disk: they do not end.
fn hang_reads(pair: &mut Pair, node: NodeId, block: u64) -> Vec<OpId> {
    let mut hung = Vec::new();
    pair.queue.retain(|(at, pending)| match pending {
        pair::Pending::Disk(op, DiskCommand::Read(range))
            if *at == node.index() && range.iter().any(|it| it.0 == block) =>
        {
            hung.push(*op);
            false
        }
        _ => true,
    });
    hung
}

/// Time passes in which `node` reads everything but `block`.
fn live_without(pair: &mut Pair, node: NodeId, block: u64, time: Duration) -> Vec<OpId> {
    let mut hung = Vec::new();
    let end = pair.now.plus(time);
    while pair.now < end {
        while !pair.queue.is_empty() {
            hung.extend(hang_reads(pair, node, block));
            pair.step(1);
        }
        pair.pass(Duration::from_millis(200));
    }
    hung
}

#[test]
fn a_sector_that_is_never_read_costs_nobody_his_replica() {
    for side in [A, B] {
        let mut pair = Pair::in_sync();
        pair.written(A, 8, 8);
        order(&mut pair, LOOK);
        let hung = live_without(&mut pair, side, 8, Duration::from_secs(25));
        assert!(!hung.is_empty());
        for node in [A, B] {
            assert_eq!(pair.snapshot(node).disk, DiskState::UpToDate, "{side:?}");
        }
        assert_eq!(pair.count(A, |event| *event == Event::Disconnected), 0);
        assert_eq!(ended(&pair), Some(VerifyEnd::Done));
        let found = report(&pair);
        assert_eq!((found.differing_blocks, found.unreadable_blocks), (0, 1));
        // Nothing is locked any more, and what is read in the end is heard by nobody.
        pair.renew_lease(A);
        pair.written(A, 8, 9);
        for op in hung {
            let result = Ok(DiskReply::Data(vec![1; 4096].into()));
            pair.input(side, Input::DiskDone { op, result });
        }
        pair.run();
        assert_eq!(pair.disk(B, 8), block(9));
    }
}

#[test]
fn a_read_that_hangs_delays_no_takeover_and_no_session() {
    for crash in [true, false] {
        let mut pair = Pair::in_sync();
        pair.written(A, 8, 8);
        order(&mut pair, LOOK);
        let mut hung = Vec::new();
        while hung.is_empty() {
            pair.step(1);
            hung = hang_reads(&mut pair, B, 8);
        }
        if crash {
            pair.crash(A);
            pair.take_over(B);
            assert_eq!(pair.read_back(B, 8), block(8));
        } else {
            pair.cut_link();
            pair.connect();
            pair.written(A, 8, 9);
        }
        let engine = &pair.nodes[B.index()].engine;
        assert_eq!(engine.comparing_ops, hung.len());
        for op in hung {
            let result = Err(DiskError::Io);
            pair.input(B, Input::DiskDone { op, result });
        }
        pair.run();
        assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    }
}
