//! A resource with two volumes: one replica on two disks.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_frontend::{ClientCommand, ClientError};
use replicator::engine::{Event, HeldReason};
use replicator::protocol::Refusal;
use replicator::types::{DiskState, NodeId, Role};

use super::clients::pattern;
use super::faulty::Faults;
use super::pair::Pair;
use super::rig::{Guest, Node, Register, SIZE, Scratch, backends};
use crate::daemon::shard::{Surroundings, engines};

/// Where the second begins: neither at an extent nor at a bitmap page.
const START: u64 = 5 << 20;

fn alone_in(surroundings: Surroundings) -> Node {
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, surroundings, engines());
    node.split_at(START);
    node.create();
    node.up();
    node
}

fn serving(surroundings: Surroundings) -> Node {
    let mut node = alone_in(surroundings);
    Register::new().activate(&mut node, |_| {});
    node
}

#[test]
fn each_client_has_its_own_volume_and_no_byte_of_the_others() {
    let mut node = serving(Surroundings::real());
    let attach = |name| Guest::connect_to(&node.socket(), name);
    let (mut data, mut log) = (attach("r0").unwrap(), attach("r0/5").unwrap());
    assert_eq!(attach("r0/0").unwrap().size(), START, "the other name");
    let unknown = attach("r0/1").map(|_| ());
    assert!(
        matches!(unknown, Err(ClientError::Refused { .. })),
        "{unknown:?}"
    );
    assert_eq!((data.size(), log.size()), (START, SIZE - START));
    let (of_data, of_log) = (pattern(1 << 20, 1), pattern(1 << 20, 2));
    // The last bytes of one, the first of the other, not aligned.
    data.write(START - (1 << 20), &of_data);
    log.write(0, &of_log[..(1 << 20) - 7]);
    log.write(SIZE - START - 512, &of_log[..512]);
    assert_eq!(log.read(0, 512), of_log[..512]);
    let beyond = data.run(ClientCommand::Read {
        offset: START - 512,
        len: 1024,
    });
    assert!(beyond.result.is_err(), "its volume ends there");
    log.flush();
    let mut expected = vec![0; usize::try_from(SIZE).unwrap()];
    let start = usize::try_from(START).unwrap();
    expected[start - (1 << 20)..start].copy_from_slice(&of_data);
    expected[start..start + (1 << 20) - 7].copy_from_slice(&of_log[..(1 << 20) - 7]);
    let end = expected.len();
    expected[end - 512..].copy_from_slice(&of_log[..512]);
    assert!(node.image() == expected);
    node.wait_state(|state| {
        let traffic = |nr: usize| state.volumes[nr].traffic;
        traffic(0).writes == 1 && traffic(1).writes == 2 && traffic(1).flushes == 1
    });
    node.wait_state(|state| {
        let mut places: Vec<_> = state
            .nbd_clients
            .iter()
            .map(|client| client.place)
            .collect();
        places.sort_unstable();
        places == [0, 1]
    });
}

#[test]
fn a_view_without_the_last_volume_serves_none_of_them() {
    let mut node = alone_in(Surroundings::real());
    Register::new().activate(&mut node, |view| view.size_blocks = START / 4096);
    for name in ["r0", "r0/5"] {
        assert!(Guest::connect_to(&node.socket(), name).is_err(), "{name}");
    }
}

/// One node's files have a second volume already, the other's do not: no byte is taken from one that
/// means other blocks.
#[test]
fn replicas_with_other_volumes_refuse_each_other() {
    for split in [NodeId::A, NodeId::B] {
        let mut pair = Pair::prepared(backends()[0], [None, None], |node| {
            if node.id == split {
                node.split_at(START);
            }
        });
        for node in [&mut pair.a, &mut pair.b] {
            node.wait_engine(|state| state.refused == Some(Refusal::Foreign));
        }
    }
}

#[test]
fn two_volumes_are_mirrored_in_one_stream() {
    let prepare = |node: &mut Node| node.split_at(START);
    let mut pair = Pair::prepared(backends()[0], [None, None], prepare);
    let socket = pair.a.socket();
    let attach = |name| Guest::connect_to(&socket, name).unwrap();
    let (mut data, mut log) = (attach("r0"), attach("r0/5"));
    // What is copied runs from one volume into the other.
    data.write(START - (1 << 20), &pattern(1 << 20, 3));
    log.write(0, &pattern(1 << 20, 4));
    pair.add_b();
    for nr in 0..64_u64 {
        let bytes = [u8::try_from(nr).unwrap(); 4096];
        data.write(nr * 4096, &bytes);
        log.write(nr * 4096, &bytes);
    }
    data.flush();
    assert!(pair.a.image() == pair.b.image(), "both replicas are equal");
    pair.a.wait_state(|state| {
        let marked = state.volumes.iter().map(|volume| volume.marked_blocks);
        marked.sum::<u64>() == 0
    });
}

/// What is on the other disk is of no use alone (interleavings F20).
#[test]
fn one_disk_that_fails_takes_the_whole_replica_out() {
    let faults = Arc::new(Faults::default());
    let mut node = serving(faults.surroundings());
    let mut data = Guest::connect_to(&node.socket(), "r0").unwrap();
    data.write(0, &[7; 4096]);
    data.flush();
    faults.fail_flushes_of(SIZE - START);
    data.submit(ClientCommand::Flush);
    data.send();
    node.wait_event(|event| matches!(event, Event::DiskFailed(_)));
    node.wait_state(|state| {
        let failed = (state.failed_place, state.engine.disk);
        failed == (Some(1), DiskState::Failed) && state.engine.held == Some(HeldReason::NoData)
    });
    assert_eq!(node.id, NodeId::A);
    node.wait_engine(|state| state.role == Role::Primary);
}

/// It chooses the second volume, asks for something and breaks the protocol, all in one breath.
#[test]
fn what_a_broken_client_asks_of_one_volume_is_not_done_to_another() {
    const WRITE: u16 = 1;
    const TRIM: u16 = 4;
    let mut node = serving(Surroundings::real());
    let mut data = Guest::connect_to(&node.socket(), "r0").unwrap();
    data.write(0, &pattern(64 << 10, 9));
    data.flush();
    let before = node.image();
    for (command, len, payload) in [(WRITE, 512_u32, 512), (TRIM, 4096, 0)] {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(b"IHAVEOPT");
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend(4_u32.to_be_bytes());
        bytes.extend(b"r0/5");
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(4096_u64.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(vec![0xaa; payload]);
        bytes.extend([0xff; 28]);
        let mut broken = UnixStream::connect(node.socket()).unwrap();
        broken.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        // Cut off, in order or not.
        drop(broken.read_to_end(&mut answer));
        node.settle();
        data.flush();
        let start = usize::try_from(START).unwrap();
        assert!(node.image()[..start] == before[..start], "{command}");
    }
}
