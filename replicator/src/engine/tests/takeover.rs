//! Role changes: draining, late disk operations, step-down, refusal by a seal.

use super::*;
use crate::types::ConnectionState;
use crate::types::{InSync, Role};

#[test]
fn a_takeover_waits_for_every_disk_operation_of_the_old_session() {
    // interleavings F1: w1 of the dead Primary is in the peer's ring when the peer takes over.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    pair.write(A, 5, 0x11);
    pair.run();
    pair.crash(A);
    let seal = pair.view.unwrap().number;
    pair.input(B, Input::Drain { seal });
    pair.run();
    assert!(!pair.saw(B, |event| matches!(event, Event::Drained { .. })));
    pair.hold_disk(B, false);
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Drained { seal, ok: true }));
    pair.take_over(B);
    pair.written(B, 5, 0x22);
    assert_eq!(pair.disk(B, 5), block(0x22));
    assert!(pair.disk_ops(B).is_empty());
}

#[test]
fn a_takeover_drops_what_waited_behind_another_write() {
    // interleavings F1, promise 1: parked for a lock is unacknowledged, and never starts.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    pair.write(A, 5, 0x11);
    pair.step(50);
    // The second write of the block is at the peer too, as a broken Primary might send it.
    let range =
        crate::types::BlockRange::new(crate::types::BlockIndex(5), crate::types::BlockCount(1));
    pair.inject(
        B,
        crate::protocol::Message::Data {
            write: crate::protocol::WriteId(77),
            range,
            kind: crate::protocol::DataKind::Write(block(0x99).into()),
            terms: crate::protocol::WriteTerms::default(),
        },
    );
    assert_eq!(pair.disk_ops(B).len(), 1);
    pair.crash(A);
    pair.hold_disk(B, false);
    pair.take_over(B);
    assert_eq!(pair.disk(B, 5), block(0x11));
}

#[test]
fn a_write_that_failed_while_draining_vetoes_the_takeover() {
    // interleavings F1, last variant.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    pair.write(A, 5, 0x11);
    pair.run();
    pair.crash(A);
    let seal = pair.view.unwrap().number;
    pair.input(B, Input::Drain { seal });
    pair.fail_disk(B);
    pair.hold_disk(B, false);
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Drained { seal, ok: false }));
}

#[test]
fn a_flush_that_failed_after_its_session_ended_takes_the_replica_out() {
    // promise 6: the acknowledged write is gone from B's cache; the next flush would succeed.
    let mut pair = Pair::in_sync();
    pair.written(A, 5, 0x11);
    pair.hold_disk(B, true);
    pair.flush(A);
    pair.run();
    pair.crash(A);
    pair.state(B).disk.fail_next_flush = true;
    pair.hold_disk(B, false);
    pair.run();
    let seal = pair.view.unwrap().number;
    pair.input(B, Input::Drain { seal });
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Drained { seal, ok: false }));
    assert!(pair.nodes[1].marked_failed, "in a second place too (R23)");
}

#[test]
fn a_flush_that_fails_while_detaching_is_not_forgotten_by_the_next() {
    // promise 6: the closing flush succeeds, and says nothing about the one that failed.
    let mut pair = Pair::in_sync();
    pair.written(A, 5, 0x11);
    pair.hold_disk(B, true);
    pair.flush(A);
    pair.run();
    pair.state(B).disk.fail_next_flush = true;
    pair.admin(B, AdminRequest::Detach);
    pair.hold_disk(B, false);
    pair.run();
    assert!(pair.saw(B, |event| *event == Event::Detached));
    let superblock = pair.recovered(B).superblock.current().clone();
    assert_eq!(superblock.state, crate::meta::ReplicaState::Failed);
}

#[test]
fn a_late_write_of_an_earlier_activation_keeps_sessions_away() {
    // interleavings F2: w1 sits in A's ring; A steps down; no session may pass it.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    pair.write(A, 5, 0x11);
    pair.run();
    pair.cut_link();
    pair.take_over(B);
    pair.step_down(A);
    pair.written(B, 5, 0x22);
    pair.connect();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Off);
    pair.hold_disk(A, false);
    pair.run();
    pair.add_peer(B);
    pair.assert_replicas_equal();
    assert_eq!(pair.disk(A, 5), block(0x22));
}

#[test]
fn the_end_of_a_session_is_known_until_the_next_is_up() {
    let mut pair = Pair::in_sync();
    assert_eq!(pair.snapshot(A).disconnected_at, None);
    pair.input(A, Input::StepDown);
    let snapshot = pair.snapshot(A);
    assert_eq!(snapshot.connection, ConnectionState::Connecting);
    assert!(snapshot.disconnected_at.is_some());
    pair.run();
    pair.connect();
    assert_eq!(pair.snapshot(A).disconnected_at, None);
}

#[test]
fn a_step_down_leaves_the_log_until_its_marks_are_durable() {
    // interleavings F3: the activity log is emptied only behind durable marks.
    let mut pair = Pair::in_sync();
    pair.write_here_only(A, 4, 0x44);
    pair.take_over(B);
    pair.state(A).meta_held = true;
    pair.step_down(A);
    pair.run();
    // Each metadata request by itself: whenever the host dies, the block is named.
    pair.assert_dirty_superset();
    pair.state(A).meta_held = false;
    while pair.step_any(|_| 0) {
        pair.assert_dirty_superset();
    }
    pair.crash(A);
    pair.restart(A);
    assert!(pair.snapshot(A).out_of_sync_blocks > 0);
}

#[test]
fn writes_under_way_at_a_step_down_are_never_answered_and_never_forgotten() {
    // R9, promise 1: neither what was local only, nor what waited for a lock or the log.
    let mut pair = Pair::in_sync();
    pair.hold_disk(A, true);
    let mut requests = Vec::new();
    for byte in 1..5 {
        requests.push(pair.write(A, 4, byte));
    }
    requests.push(pair.read(A, 4));
    requests.push(pair.flush(A));
    let partial = GuestKind::Write {
        offset: ByteOffset(9 * BLOCK + 10),
        payload: vec![9; 100].into(),
        fua: false,
    };
    requests.push(pair.guest(A, partial));
    pair.run();
    pair.cut_link();
    pair.take_over(B);
    pair.step_down(A);
    pair.hold_disk(A, false);
    pair.run();
    for request in requests {
        assert_eq!(pair.answer(request), None);
    }
    pair.assert_dirty_superset();
    pair.connect();
    pair.add_peer(B);
    pair.assert_replicas_equal();
}

#[test]
fn a_sealed_view_gets_no_session_and_the_primary_hears_of_it() {
    // interleavings F18: the takeover was never committed; the Primary must move.
    let mut pair = Pair::in_sync();
    let seal = pair.view.unwrap().number;
    pair.input(B, Input::Drain { seal });
    pair.run();
    pair.input(B, Input::ProposalAborted);
    pair.connect();
    let refused = Event::Refused(Refusal::Sealed);
    assert!(pair.saw(A, |event| *event == refused));
    pair.input(A, Input::StepDown);
    pair.run();
    pair.recover(A);
    pair.connect();
    pair.written(A, 1, 1);
    pair.assert_replicas_equal();
}

#[test]
fn a_restarted_successor_takes_nothing_from_the_primary_it_replaced() {
    // A, cut off, still thinks that it serves. B took over, its guests wrote, its process was
    // killed; nobody has told the new one which view counts when the link heals.
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 1);
    pair.cut_link();
    pair.take_over(B);
    pair.written(B, 3, 2);
    pair.crash(B);
    pair.attach(B);
    pair.connect();
    let refused = Event::Refused(Refusal::Sealed);
    assert!(pair.saw(A, |event| *event == refused));
    pair.recover(B);
    assert_eq!(pair.read_back(B, 3)[0], 2);
}

#[test]
fn a_session_ends_when_its_secondary_hears_of_a_newer_primary() {
    let mut pair = Pair::in_sync();
    let committed = pair.commit(B, |view| {
        view.primary = B;
        view.in_sync = InSync::only(B);
    });
    pair.input(B, Input::Learned(*committed.view()));
    assert!(pair.saw(B, |event| *event == Event::Disconnected));
}

#[test]
fn a_node_that_is_not_primary_answers_nobody() {
    // promise 3; and a guest that comes before anything is known is sent away, not failed.
    let mut pair = Pair::in_sync();
    let at_secondary = pair.read(B, 0);
    pair.run();
    assert_eq!(pair.answer(at_secondary), None);
    let mut engine = Engine::new(EngineConfig {
        node: A,
        resource: ResourceId(1),
        volume: VolumeId(0),
        row: crate::types::VolumeRow::only(VolumeId(0)),
        timeout: Duration::from_secs(3),
        disk_timeout: Some(super::pair::DISK_TIMEOUT),
        protocol: crate::types::ReplicationProtocol::C,
        checksum_first: false,
        resync_rate: ResyncRate::Unlimited,
        guest_latency_target: Duration::from_millis(10),
        boot_id: 1,
        incarnation: 1,
    });
    let mut out = Outbox::new();
    let request = crate::types::RequestId(1);
    let kind = GuestKind::Read {
        offset: ByteOffset(0),
        len: ByteLen(512),
    };
    engine.handle(
        Instant(1),
        Input::Guest(GuestRequest { request, kind }),
        &mut out,
    );
    assert!(matches!(out[..], [Action::DropClients]), "{out:?}");
}

#[test]
fn what_an_edge_read_says_passes_the_gate_too() {
    // promise 3: an error is an answer.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.connect();
    pair.add_peer(A);
    pair.state(A).disk.bad.insert(9);
    pair.state(B).disk.bad.insert(9);
    pair.hold_disk(A, true);
    let partial = GuestKind::Write {
        offset: ByteOffset(9 * BLOCK + 10),
        payload: vec![9; 100].into(),
        fua: false,
    };
    let write = pair.guest(A, partial);
    pair.run();
    pair.lapse_lease(A);
    pair.hold_disk(A, false);
    pair.run();
    assert_eq!(pair.answer(write), None);
    pair.renew_lease(A);
    pair.run();
    assert_eq!(pair.answer(write), Some(Err(GuestError::Io(DiskError::Io))));
}

#[test]
fn in_sync_from_counts_even_if_the_view_was_learned_before_the_disk_was_attached() {
    // interleavings F5, last part: the Add was committed, B crashed before it heard of it.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 3, 3);
    pair.connect();
    pair.run();
    let view = pair.view.unwrap().number.next();
    pair.input(A, Input::BeginAdd { view });
    pair.run();
    let committed = pair.commit(A, |view| view.in_sync = crate::types::InSync::BOTH);
    pair.input(A, Input::Committed(committed));
    pair.crash(B);
    pair.input(B, Input::Learned(*committed.view()));
    pair.attach(B);
    assert_eq!(pair.snapshot(B).disk, DiskState::UpToDate);
    pair.connect();
    assert_eq!(pair.snapshot(A).replication, ReplicationState::Established);
    pair.written(A, 4, 4);
    pair.crash(A);
    pair.take_over(B);
    assert_eq!(pair.snapshot(B).role, Role::Primary);
    assert_eq!(pair.disk(B, 3), block(3));
}

#[test]
fn an_orderly_demotion_with_the_peer_away_waits_for_its_remove_without_flushing_in_circles() {
    // interleavings F21, promise 10.
    let mut pair = Pair::in_sync();
    pair.written(A, 1, 1);
    pair.cut_link();
    pair.admin(A, AdminRequest::Quiesce);
    for _ in 0..200 {
        pair.step(1);
    }
    assert!(pair.disk_ops(A).is_empty(), "it flushes and flushes");
    assert!(!pair.saw(A, |event| *event == Event::Quiesced));
    pair.remove_peer(A);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
}

#[test]
fn an_orderly_demotion_ends_though_the_session_does_in_its_middle() {
    // interleavings F21, promise 10: not strict, a round under way when the session ends.
    let mut pair = Pair::in_sync();
    pair.disconnect();
    pair.remove_peer(A);
    pair.written(A, 1, 1);
    pair.connect();
    pair.written(A, 2, 2);
    pair.hold_disk(A, true);
    pair.admin(A, AdminRequest::Quiesce);
    pair.run();
    pair.cut_link();
    pair.hold_disk(A, false);
    pair.run();
    assert!(pair.saw(A, |event| *event == Event::Quiesced));
    assert!(pair.recovered(A).replayed.is_empty());
    pair.assert_dirty_superset();
}

#[test]
fn a_claim_serves_nobody_before_the_old_primarys_writes_have_landed() {
    // A held view is claimed without a drain; B's slow disk still has a write of A's guests.
    let mut pair = Pair::in_sync();
    pair.hold_disk(B, true);
    pair.write(A, 7, 7);
    pair.run();
    pair.cut_link();
    pair.step_down(A);
    let committed = pair.commit(B, |view| {
        view.primary = B;
        view.in_sync = InSync::only(B);
    });
    pair.input(
        B,
        Input::Activate(crate::types::Activation::of(committed, B).unwrap()),
    );
    pair.run();
    let flush = pair.flush(B);
    let read = pair.read(B, 7);
    pair.run();
    assert_eq!((pair.answer(flush), pair.answer(read)), (None, None));
    pair.hold_disk(B, false);
    pair.run();
    assert_eq!(pair.answer(flush), Some(Ok(GuestReply::Done)));
    assert_eq!(
        pair.durable(B, 7),
        block(7),
        "what was read is what was flushed"
    );
}

/// Story: acknowledged writes are gone, the process records that it may serve, and dies before it does.
#[test]
fn a_loss_that_no_guest_was_told_of_is_left_to_the_next_activation() {
    let mut pair = Pair::in_sync();
    let lossy = |pair: &mut Pair| pair.commit(A, |view| view.lossy = true);
    let committed = lossy(&mut pair);
    pair.input(
        A,
        Input::Activate(crate::types::Activation::of(committed, A).unwrap()),
    );
    while !pair.queue.is_empty() && pair.snapshot(A).role != Role::Primary {
        let (at, pending) = pair.queue.pop_front().unwrap();
        if let super::pair::Pending::Meta(_, request) = pending {
            pair.meta(at, request);
        }
    }
    pair.crash(A);
    pair.restart(A);
    assert!(pair.facts(A).unwrap().lost_volatile);
    let committed = lossy(&mut pair);
    pair.activate(A, committed);
    pair.crash(A);
    pair.restart(A);
    assert!(!pair.facts(A).unwrap().lost_volatile, "they were served");
}
