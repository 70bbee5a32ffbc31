//! What an engine says when it is asked about ranges: what the peer may lack, who serves reads, and
//! whether it may answer at all.

use super::*;
use crate::types::{BlockCount, BlockIndex, BlockRange};

fn marks(pair: &mut Pair, node: NodeId, start: u64, end: u64, max: usize) -> Vec<(u64, bool)> {
    let range = BlockRange::between(BlockIndex(start), BlockIndex(end));
    let runs = pair.state(node).engine.marks(range, max).unwrap();
    let run = |run: &MarkRun| (run.count.0, run.is_marked);
    assert!(runs.iter().all(|run| run.count > BlockCount(0)));
    runs.iter().map(run).collect()
}

#[test]
fn what_a_lost_peer_lacks_is_told_in_runs() {
    let mut pair = Pair::in_sync();
    pair.written(A, 3, 3);
    assert_eq!(marks(&mut pair, A, 0, 16, 9), [(16, false)], "both have it");
    pair.disconnect();
    pair.remove_peer(A);
    for nr in [7, 8, 10] {
        pair.written(A, nr, 1);
    }
    // Block 3 may be unretired still, and is then marked as well: look behind it.
    let all = [(3, false), (2, true), (1, false), (1, true), (5, false)];
    assert_eq!(marks(&mut pair, A, 4, 16, 9), all);
    assert_eq!(marks(&mut pair, A, 4, 16, 2), all[..2]);
    assert_eq!(marks(&mut pair, A, 8, 9, 9), [(1, true)]);
    assert_eq!(marks(&mut pair, A, 8, 8, 9), []);
}

#[test]
fn a_read_of_nothing_waits_at_the_gate_like_any_other() {
    // The shard answers a block status once one of these was answered (R2).
    let mut pair = Pair::in_sync();
    pair.lapse_lease(A);
    let ask = |pair: &mut Pair| {
        let (offset, len) = (ByteOffset(4096), ByteLen(0));
        let nr = pair.guest(A, GuestKind::Read { offset, len });
        pair.run();
        nr
    };
    let held = ask(&mut pair);
    assert_eq!(pair.answer(held), None);
    pair.renew_lease(A);
    pair.run();
    assert!(matches!(pair.answer(held), Some(Ok(GuestReply::Data(data))) if data.is_empty()));
    pair.step_down(A);
    let late = ask(&mut pair);
    assert_eq!(pair.answer(late), None, "its client is dropped");
}

#[test]
fn reads_are_local_only_while_guests_read_the_local_replica() {
    let mut pair = Pair::in_sync();
    let local = |pair: &mut Pair, node| pair.state(node).engine.reads_are_local();
    assert!(local(&mut pair, A));
    assert!(!local(&mut pair, B), "nobody reads there");
    pair.leave(A);
    assert!(!local(&mut pair, A), "the peer's is the only good one");
    pair.step_down(A);
    assert!(!local(&mut pair, A));
}
