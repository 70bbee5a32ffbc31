//! Protocols A and B: guests are told before the peer's disk has it, and the peer stays a prefix of
//! what they were told.

use std::collections::BTreeMap;

use super::pair::Shape;
use super::*;
use crate::protocol::Message;
use crate::types::InSync;

const OK: Option<Result<GuestReply, GuestError>> = Some(Ok(GuestReply::Done));

fn under(protocol: ReplicationProtocol) -> Pair {
    Pair::in_sync_shaped(Shape::under(protocol))
}

#[test]
fn under_b_a_write_is_answered_once_the_peer_has_received_it() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.hold_inbox(B, true);
    let request = pair.write(A, 5, 0x11);
    pair.run();
    assert_eq!(pair.answer(request), None, "it may not have arrived");
    pair.hold_inbox(B, false);
    pair.run();
    assert_eq!(pair.answer(request), OK);
    assert_eq!(pair.disk(B, 5), block(0), "its disk is not waited for");
    let snapshot = pair.snapshot(A);
    assert_eq!(snapshot.lag_bytes, 4096);
    assert!(snapshot.lag_since.is_some());
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.disk(B, 5), block(0x11));
    assert_eq!(pair.snapshot(A).lag_bytes, 0);
    assert_eq!(pair.snapshot(A).lag_since, None);
}

#[test]
fn under_a_a_write_is_answered_once_it_is_sent() {
    let mut pair = under(ReplicationProtocol::A);
    pair.hold_inbox(B, true);
    let request = pair.write(A, 5, 0x11);
    pair.hold_disk(A, true);
    pair.run();
    assert_eq!(pair.answer(request), None, "its own disk is waited for");
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.answer(request), OK);
    pair.hold_inbox(B, false);
    pair.run();
    pair.assert_replicas_equal();
}

#[test]
fn flush_and_fua_wait_for_both_disks_under_every_protocol() {
    for protocol in [ReplicationProtocol::A, ReplicationProtocol::B] {
        let mut pair = under(protocol);
        pair.hold_disk(B, true);
        let plain = pair.write(A, 1, 0x11);
        pair.run();
        assert_eq!(pair.answer(plain), OK);
        let fua = pair.guest(
            A,
            GuestKind::Write {
                offset: ByteOffset(2 * BLOCK),
                payload: block(0x22).into(),
                fua: true,
            },
        );
        let flush = pair.flush(A);
        pair.run();
        assert_eq!((pair.answer(fua), pair.answer(flush)), (None, None));
        pair.hold_disk(B, false);
        pair.run();
        assert_eq!((pair.answer(fua), pair.answer(flush)), (OK, OK));
        assert_eq!(pair.durable(B, 1), block(0x11));
        assert_eq!(pair.durable(B, 2), block(0x22));
    }
}

#[test]
fn the_same_block_may_be_written_again_and_ends_newest_on_both() {
    // interleavings F4: the Primary's tracker has let go of w1 while the peer still has it.
    for protocol in [ReplicationProtocol::A, ReplicationProtocol::B] {
        let mut pair = under(protocol);
        pair.hold_disk(B, true);
        for value in 1..=9 {
            pair.written(A, 5, value);
            assert_eq!(pair.read_back(A, 5), block(value));
        }
        assert_eq!(pair.disk_ops(B).len(), 1, "one after the other");
        pair.hold_disk(B, false);
        pair.run();
        pair.assert_replicas_equal();
        assert_eq!(pair.disk(B, 5), block(9));
    }
}

#[test]
fn what_a_guest_wrote_after_an_answer_is_not_begun_before_what_was_answered() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    let first = [pair.write(A, 1, 0x11), pair.write(A, 2, 0x22)];
    pair.run();
    assert_eq!(first.map(|request| pair.answer(request)), [OK, OK]);
    assert_eq!(pair.disk_ops(B).len(), 2, "neither knew of the other");
    let second = pair.write(A, 3, 0x33);
    pair.run();
    assert_eq!(pair.answer(second), OK);
    assert_eq!(pair.disk_ops(B).len(), 2);
    pair.end_disk_op(B, 1);
    pair.run();
    assert_eq!(pair.disk_ops(B).len(), 1, "one of two is not both");
    pair.end_disk_op(B, 0);
    pair.run();
    assert_eq!(pair.disk_ops(B).len(), 1);
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.disk(B, 3), block(0x33));
}

#[test]
fn handing_over_waits_for_what_was_answered_ahead() {
    // The successor starts from its disk: what a guest was told must be there first.
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 5, 0x11);
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    let quiesced = |pair: &Pair| pair.saw(A, |event| *event == Event::Quiesced);
    assert!(!quiesced(&pair), "the peer's disk has not got it");
    pair.hold_disk(B, false);
    pair.run();
    assert!(quiesced(&pair));
    assert_eq!(pair.durable(B, 5), block(0x11));
}

/// A peer that may lack what guests of A were told leaves `in_sync` before anything is copied.
fn reconnect(pair: &mut Pair, protocol: ReplicationProtocol) {
    let before: Vec<_> = (0..16).map(|nr| pair.disk(B, nr)).collect();
    pair.connect();
    pair.run();
    let behind = pair.saw(A, |event| *event == Event::PeerBehind);
    assert_eq!(behind, protocol == ReplicationProtocol::A, "{protocol:?}");
    if behind {
        let now: Vec<_> = (0..16).map(|nr| pair.disk(B, nr)).collect();
        assert_eq!(
            now, before,
            "a prefix is not touched while the view counts on it"
        );
        pair.remove_peer(A);
        pair.input(B, Input::Learned(pair.view.unwrap()));
        pair.connect();
        pair.add_peer(A);
    }
}

#[test]
fn a_takeover_carries_out_all_that_was_received() {
    // interleavings F1, variant: what the peer said it holds is not the unacknowledged tail.
    for protocol in [ReplicationProtocol::A, ReplicationProtocol::B] {
        let mut pair = under(protocol);
        pair.hold_disk(B, true);
        for nr in 1..=5 {
            pair.written(A, nr, 0x40);
        }
        pair.crash(A);
        let seal = pair.view.unwrap().number;
        pair.input(B, Input::Drain { seal });
        pair.run();
        assert!(!pair.saw(B, |event| matches!(event, Event::Drained { .. })));
        for _ in 1..=5 {
            pair.end_disk_op(B, 0);
            pair.run();
        }
        assert!(pair.saw(B, |event| *event == Event::Drained { seal, ok: true }));
        pair.hold_disk(B, false);
        pair.take_over(B);
        for nr in 1..=5 {
            assert_eq!(pair.read_back(B, nr), block(0x40));
        }
    }
}

#[test]
fn what_is_still_to_be_carried_out_keeps_sessions_away() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 1, 0x11);
    pair.written(A, 2, 0x22);
    pair.cut_link();
    pair.connect();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Off);
    pair.end_disk_op(B, 0);
    pair.run();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Off);
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
    pair.assert_replicas_equal();
}

#[test]
fn a_write_that_fails_there_ends_the_ones_behind_it() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 1, 0x11);
    pair.written(A, 2, 0x22);
    pair.fail_disk(B);
    pair.end_disk_op(B, 0);
    pair.run();
    assert!(pair.disk_ops(B).is_empty(), "nothing passes the hole");
    assert!(pair.nodes[1].marked_failed);
    pair.crash(A);
    let seal = pair.view.unwrap().number;
    pair.input(B, Input::Drain { seal });
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Drained { seal, ok: false }));
}

#[test]
fn a_detach_in_order_gives_the_disk_what_was_received() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 1, 0x11);
    pair.written(A, 2, 0x22);
    pair.admin(B, AdminRequest::Detach);
    pair.run();
    assert!(!pair.saw(B, |event| *event == Event::Detached));
    pair.hold_disk(B, false);
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Detached));
    assert_eq!(pair.durable(B, 2), block(0x22));
}

#[test]
fn a_peer_whose_process_died_says_that_it_may_have_lost_something() {
    // interleavings F12 b, R16: a crash is enough, the host need not lose power.
    let lost = |pair: &Pair, node| pair.facts(node).map(|facts| facts.lost_volatile);
    for (protocol, wanted) in [
        (ReplicationProtocol::A, true),
        (ReplicationProtocol::B, true),
        (ReplicationProtocol::C, false),
    ] {
        let mut pair = under(protocol);
        pair.hold_disk(B, true);
        let request = pair.write(A, 1, 0x11);
        pair.run();
        assert_eq!(pair.answer(request).is_some(), wanted);
        pair.crash(B);
        pair.hold_disk(B, false);
        pair.restart(B);
        assert_eq!(lost(&pair, B), Some(wanted), "{protocol:?}");
        reconnect(&mut pair, protocol);
        assert_eq!(pair.answer(request), OK);
        pair.assert_replicas_equal();
        assert_eq!(lost(&pair, B), Some(false), "made good, {protocol:?}");
    }
}

#[test]
fn a_primary_whose_process_died_lost_nothing_it_answered_for() {
    for protocol in [ReplicationProtocol::A, ReplicationProtocol::B] {
        let mut pair = under(protocol);
        pair.hold_inbox(B, true);
        let request = pair.write(A, 1, 0x11);
        pair.run();
        let answered = pair.answer(request).is_some();
        assert_eq!(answered, protocol == ReplicationProtocol::A);
        // Twice: the first start empties the log that tells of a Primary.
        for _ in 0..2 {
            pair.crash(A);
            pair.hold_inbox(B, false);
            pair.restart(A);
            assert!(!pair.facts(A).unwrap().lost_volatile);
        }
        pair.recover(A);
        reconnect(&mut pair, protocol);
        pair.assert_replicas_equal();
        assert_eq!(pair.read_back(A, 1), block(0x11));
        assert_eq!(
            pair.disk(B, 1),
            block(0x11),
            "the Primary's disk is the source"
        );
    }
}

#[test]
fn an_answer_for_the_peers_memory_means_nothing_once_the_session_is_over() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(A, true);
    pair.hold_disk(B, true);
    let request = pair.write(A, 1, 0x11);
    pair.run();
    pair.cut_link();
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.answer(request), None, "the peer may have died since");
    pair.remove_peer(A);
    pair.run();
    assert_eq!(pair.answer(request), OK);
    assert_eq!(pair.snapshot(A).out_of_sync_blocks, 1);
}

#[test]
fn what_was_answered_ahead_is_marked_when_the_session_ends() {
    let mut pair = under(ReplicationProtocol::A);
    pair.hold_inbox(B, true);
    pair.written(A, 7, 0x77);
    pair.cut_link();
    pair.hold_inbox(B, false);
    assert_eq!(pair.snapshot(A).out_of_sync_blocks, 1);
    assert_eq!(pair.snapshot(A).lag_bytes, 0, "no longer on its way");
    pair.assert_dirty_superset();
    reconnect(&mut pair, ReplicationProtocol::A);
    pair.assert_replicas_equal();
    assert_eq!(pair.view.unwrap().in_sync, InSync::BOTH);
}

#[test]
fn a_tail_of_before_a_restart_is_not_served_from_the_peer() {
    // A answered a write that B never got, and starts again. Its device fails before the two meet, or
    // while B is to leave: B lacks what guests were told of.
    for met in [false, true] {
        let mut pair = under(ReplicationProtocol::A);
        pair.hold_inbox(B, true);
        pair.written(A, 1, 0x11);
        pair.crash(A);
        pair.hold_inbox(B, false);
        pair.restart(A);
        pair.state(A).meta_failing = !met;
        pair.recover(A);
        if met {
            pair.connect();
            assert!(pair.saw(A, |event| *event == Event::PeerBehind));
            pair.state(A).meta_failing = true;
            let committed = pair.commit(A, |_| {});
            pair.input(A, Input::Committed(committed));
            pair.run();
        }
        assert_eq!(pair.snapshot(A).disk, DiskState::Failed, "met: {met}");
        pair.connect();
        assert!(
            pair.saw(A, |event| *event == Event::PeerLostWrites),
            "met: {met}"
        );
        assert!(!pair.saw(A, |event| matches!(event, Event::LeavePrepared { .. })));
        // Nobody else has it: it may be promoted again, as one that may have lost its cache.
        assert!(!pair.nodes[0].marked_failed, "met: {met}");
    }
}

#[test]
fn a_secondary_remembers_that_it_may_be_behind() {
    let behind = |pair: &Pair| pair.facts(B).unwrap().behind;
    for protocol in [
        ReplicationProtocol::A,
        ReplicationProtocol::B,
        ReplicationProtocol::C,
    ] {
        let mut pair = under(protocol);
        let wanted = protocol == ReplicationProtocol::A;
        pair.written(A, 1, 0x11);
        assert_eq!(behind(&pair), wanted, "{protocol:?}");
        pair.shape.protocol = ReplicationProtocol::C;
        pair.crash(B);
        pair.restart(B);
        assert_eq!(behind(&pair), wanted, "{protocol:?}, after a restart");
        pair.crash(A);
        pair.restart(A);
        pair.recover(A);
        reconnect(&mut pair, protocol);
        assert!(!behind(&pair), "made equal under C, {protocol:?}");
    }
}

#[test]
fn a_primary_restarted_under_c_remembers_that_it_answered_under_a() {
    let mut pair = under(ReplicationProtocol::A);
    pair.hold_inbox(B, true);
    pair.written(A, 1, 0x11);
    pair.shape.protocol = ReplicationProtocol::C;
    pair.crash(A);
    pair.hold_inbox(B, false);
    pair.restart(A);
    pair.recover(A);
    reconnect(&mut pair, ReplicationProtocol::A);
    pair.assert_replicas_equal();
    pair.hold_disk(B, true);
    let request = pair.write(A, 2, 0x22);
    pair.run();
    assert_eq!(pair.answer(request), None);
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.answer(request), OK);
}

#[test]
fn what_is_answered_ahead_is_bounded() {
    let mut pair = under(ReplicationProtocol::A);
    pair.hold_inbox(B, true);
    let most = usize::try_from(Engine::AHEAD_BYTES_MAX / (1 << 20)).unwrap();
    let mut answered = 0;
    for _ in 0..most + 4 {
        let request = pair.guest(
            A,
            GuestKind::Write {
                offset: ByteOffset(0),
                payload: vec![3; 1 << 20].into(),
                fua: false,
            },
        );
        pair.run();
        answered += usize::from(pair.answer(request).is_some());
    }
    assert_eq!(answered, most);
    pair.hold_inbox(B, false);
    pair.run();
    assert_eq!(pair.snapshot(A).inflight, 0, "they go on");
}

/// The oracle of both protocols: a guest that waits for each answer before its next write finds, on
/// a survivor, all its writes up to some point and none after it; under B all that was answered,
/// unless the survivor's process died as well.
#[test]
fn the_survivor_holds_a_prefix() {
    let trials = 400;
    let mut shorter = 0;
    for seed in 0..trials {
        let protocol = if seed % 2 == 0 {
            ReplicationProtocol::A
        } else {
            ReplicationProtocol::B
        };
        let mut random = super::random::Random(seed);
        let mut pair = under(protocol);
        let mut history: Vec<(u64, u8)> = Vec::new();
        let mut answered = 0;
        let mut writing: Vec<u64> = Vec::new();
        for _ in 0..random.below(300) {
            if writing
                .iter()
                .all(|request| pair.answer(*request).is_some())
            {
                answered = history.len();
                writing.clear();
                let value = u8::try_from(history.len() + 1).unwrap();
                let nr = random.below(6) as u64;
                writing.push(pair.write(A, nr, value));
                history.push((nr, value));
                if random.one_in(9) {
                    let flush = pair.flush(A);
                    writing.push(flush);
                }
            }
            pair.step_any(|count| random.below(count));
            if history.len() == 250 {
                break;
            }
        }
        pair.crash_with(A, || random.one_in(2));
        // Its own process dying is what shows the order in which its disk was given them.
        let both = random.one_in(2);
        if both {
            for _ in 0..random.below(6) {
                pair.step_any(|count| random.below(count));
            }
            pair.crash_with(B, || random.one_in(2));
            pair.restart(B);
        }
        while pair.step_any(|count| random.below(count)) {}
        pair.take_over(B);
        let mut image = BTreeMap::new();
        let held: BTreeMap<u64, Vec<u8>> = (0..6).map(|nr| (nr, pair.disk(B, nr))).collect();
        let holds = |image: &BTreeMap<u64, u8>| {
            held.iter()
                .all(|(nr, bytes)| *bytes == block(image.get(nr).copied().unwrap_or(0)))
        };
        let mut points = Vec::new();
        for point in 0..=history.len() {
            if let Some((nr, value)) = point.checked_sub(1).map(|at| history[at]) {
                image.insert(nr, value);
            }
            if holds(&image) {
                points.push(point);
            }
        }
        let last = points.last().copied();
        assert!(last.is_some(), "seed {seed}: no prefix of {history:?}");
        if protocol == ReplicationProtocol::B && !both {
            assert!(last >= Some(answered), "seed {seed}: acknowledged and lost");
        }
        shorter += usize::from(last < Some(answered));
    }
    assert!(shorter > 0, "protocol A never lagged: nothing was tried");
}

#[test]
fn a_peer_says_received_once_and_only_under_b() {
    let count = |protocol| {
        let mut pair = under(protocol);
        pair.hold_inbox(A, true);
        pair.write(A, 5, 0x11);
        pair.run();
        let messages = pair.messages_to(A);
        messages
            .into_iter()
            .filter(|message| matches!(message, Message::ReceiveAck { .. }))
            .count()
    };
    assert_eq!(count(ReplicationProtocol::A), 0);
    assert_eq!(count(ReplicationProtocol::B), 1);
    assert_eq!(count(ReplicationProtocol::C), 0);
}

#[test]
fn a_disk_that_fails_with_writes_only_it_has_ends_the_activation() {
    // Found by the simulator (seed 1000006542): answered under A, lost with its session, and then
    // the Leave left the peer as the only replica, without them.
    let mut pair = under(ReplicationProtocol::A);
    pair.hold_inbox(B, true);
    pair.written(A, 7, 0x77);
    pair.fail_disk(A);
    let unanswered = pair.write(A, 8, 0x88);
    pair.run();
    pair.cut_link();
    pair.hold_inbox(B, false);
    pair.connect();
    assert!(pair.saw(A, |event| *event == Event::PeerLostWrites));
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Off);
    assert_eq!(pair.answer(unanswered), None);
}

#[test]
fn a_read_waits_for_its_blocks_and_for_no_turn() {
    // The Primary's disk failed; a guest reads what is still to be carried out there.
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 1, 0x11);
    pair.written(A, 2, 0x22);
    pair.fail_disk(A);
    let write = pair.write(A, 4, 0x44);
    pair.run();
    pair.leave(A);
    pair.run();
    let read = pair.read(A, 2);
    pair.run();
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.answer(write), OK);
    let data = Some(Ok(GuestReply::Data(block(0x22).into())));
    assert_eq!(pair.answer(read), data);
    // A bad sector beside a block that is written there: a read for both.
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 1, 0x11);
    pair.written(A, 2, 0x22);
    pair.state(A).disk.bad.insert(3);
    let (offset, len) = (ByteOffset(2 * BLOCK), ByteLen(2 * BLOCK));
    let read = pair.guest(A, GuestKind::Read { offset, len });
    pair.run();
    pair.hold_disk(B, false);
    pair.run();
    assert!(pair.answer(read).is_some());
    pair.written(A, 2, 0x33);
}

#[test]
fn a_failed_write_leaves_no_turn_behind() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.state(A).disk.bad.insert(9);
    pair.written(A, 1, 0x11);
    // Under way at the peer when the write fails there.
    pair.read(A, 9);
    pair.run();
    pair.fail_disk(B);
    pair.end_disk_op(B, 0);
    pair.run();
    pair.remove_peer(A);
    pair.run();
    pair.hold_disk(B, false);
    pair.heal_disk(B);
    pair.state(A).disk.bad.clear();
    pair.run();
    pair.admin(B, AdminRequest::Detach);
    pair.run();
    pair.state(B).marked_failed = false;
    pair.attach(B);
    pair.connect();
    pair.add_peer(A);
    pair.hold_disk(B, true);
    for nr in 1..=3 {
        pair.written(A, nr, 0x21);
    }
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.snapshot(A).lag_bytes, 0);
    pair.crash(A);
    pair.take_over(B);
    assert_eq!(pair.read_back(B, 3), block(0x21));
}

#[test]
fn the_only_good_replica_may_restart_without_suspicion() {
    // Its Primary has no disk: what it answered for was on its own, as under C.
    for protocol in [ReplicationProtocol::C, ReplicationProtocol::B] {
        let mut pair = under(protocol);
        pair.written(A, 1, 0x11);
        pair.fail_disk(A);
        let write = pair.write(A, 2, 0x22);
        pair.run();
        pair.leave(A);
        let view = pair.view.unwrap();
        pair.input(B, Input::Learned(view));
        pair.run();
        assert_eq!(pair.answer(write), OK);
        pair.cut_link();
        pair.connect();
        pair.written(A, 3, 0x33);
        pair.crash(B);
        pair.restart(B);
        pair.connect();
        assert!(!pair.saw(A, |event| *event == Event::PeerLostWrites));
        assert_eq!(pair.read_back(A, 3), block(0x33));
    }
}

#[test]
fn what_was_only_received_is_missed_whatever_the_next_process_is_configured_with() {
    let mut pair = under(ReplicationProtocol::B);
    pair.hold_disk(B, true);
    pair.written(A, 1, 0x11);
    pair.crash(B);
    pair.hold_disk(B, false);
    pair.nodes[1].engine.config.protocol = ReplicationProtocol::C;
    pair.restart(B);
    assert!(pair.facts(B).unwrap().lost_volatile);
}

#[test]
fn a_word_that_nobody_asked_for_ends_the_session() {
    let mut pair = under(ReplicationProtocol::C);
    pair.hold_disk(B, true);
    let request = pair.write(A, 1, 0x11);
    pair.run();
    let writes: Vec<_> = pair.nodes[0].engine.writes.keys().into_iter().collect();
    let write = crate::protocol::WriteId(writes[0].0);
    pair.inject(A, Message::ReceiveAck { write });
    pair.run();
    assert_eq!(pair.answer(request), None);
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Off);
}
