//! One node alone: what guests see of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use core::time::Duration;

use nbd_frontend::{ClientCommand, ClientError};
use replicator::engine::{Event, Input};
use replicator::io::clock;
use replicator::types::NodeId;

use super::rig::{Guest, NBD_CONNECTIONS_MAX, Node, Register, SIZE, Scratch, backends};
use crate::daemon::api::{AttachFailure, ShardCommand, ShardEvent};

/// Runs the test on a node that serves alone, on each backend.
fn each_primary(test: impl Fn(&mut Node, &mut Register)) {
    for backend in backends() {
        let scratch = Arc::new(Scratch::new());
        let mut node = Node::start(&scratch, NodeId::A, Vec::new(), Vec::new(), backend);
        node.create();
        node.up();
        let mut register = Register::new();
        register.activate(&mut node, |_| {});
        test(&mut node, &mut register);
    }
}

/// A pattern that differs in every block.
pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| seed.wrapping_add((at / 512 + at % 7).to_le_bytes()[0]))
        .collect()
}

#[test]
fn a_guest_reads_back_what_it_wrote_whatever_the_alignment_and_length() {
    each_primary(|node, _| {
        let mut guest = node.client();
        assert_eq!(guest.size(), SIZE);
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        for (seed, (offset, len)) in (1..).zip([
            (0, 4096),
            (1, 1),
            (4095, 2),
            (100_000, 70_001),
            (8192, 1 << 20),
            (65_536, 5 << 20),
        ]) {
            let data = pattern(len, seed);
            guest.write(offset, &data);
            let at = usize::try_from(offset).unwrap();
            model[at..at + len].copy_from_slice(&data);
        }
        let zeroes = ClientCommand::WriteZeroes {
            offset: 10_000,
            len: 50_000,
            no_hole: false,
            fua: true,
        };
        assert!(guest.run(zeroes).result.is_ok());
        model[10_000..60_000].fill(0);
        guest.flush();
        assert!(guest.read(0, u32::try_from(SIZE).unwrap()) == model);
        for (offset, len) in [(3, 5), (99_999, 4097), (4 << 20, 1 << 20)] {
            let at = usize::try_from(offset).unwrap();
            let expected = &model[at..at + usize::try_from(len).unwrap()];
            assert!(
                guest.read(offset, len) == expected,
                "{len} bytes at {offset}"
            );
        }
        guest.disconnect();
        assert!(node.image() == model, "what is on the disk");
    });
}

#[test]
fn many_requests_at_once_are_all_answered() {
    each_primary(|node, _| {
        let mut guest = node.client();
        for round in 0..4_u8 {
            for nr in 0..500_u64 {
                let data = vec![round.wrapping_add(nr.to_le_bytes()[0]); 4096];
                guest.submit(ClientCommand::Write {
                    offset: nr * 4096,
                    data: &data,
                    fua: nr % 50 == 0,
                });
            }
            for _ in 0..500 {
                assert_eq!(guest.next_reply().unwrap().result, Ok(Vec::new()));
            }
        }
        let all = guest.read(0, 500 * 4096);
        for (nr, block) in all.chunks(4096).enumerate() {
            let expected = 3_u8.wrapping_add(nr.to_le_bytes()[0]);
            assert!(block.iter().all(|&byte| byte == expected), "block {nr}");
        }
    });
}

#[test]
fn a_node_that_is_not_primary_refuses_the_handshake_at_once() {
    for backend in backends() {
        let scratch = Arc::new(Scratch::new());
        let mut node = Node::start(&scratch, NodeId::A, Vec::new(), Vec::new(), backend);
        node.create();
        node.up();
        let begin = clock::now();
        let refused = Guest::connect(&node.socket()).err().unwrap();
        assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
        assert!(clock::now().since(begin) < Duration::from_secs(1));
    }
}

#[test]
fn stepping_down_drops_the_clients_without_an_answer_and_coming_back_serves_new_ones() {
    each_primary(|node, register| {
        let mut guest = node.client();
        guest.write(0, &[1; 4096]);
        node.wait_state(|state| state.nbd_clients.len() == 1);
        node.input(Input::StepDown);
        assert!(guest.next_reply().is_none(), "closed, not answered");
        node.wait_state(|state| state.nbd_clients.is_empty());
        assert!(matches!(
            Guest::connect(&node.socket()),
            Err(ClientError::Refused { .. })
        ));
        register.activate(node, |_| {});
        let mut guest = node.client();
        assert_eq!(guest.read(0, 4096), vec![1; 4096]);
    });
}

#[test]
fn more_clients_than_allowed_are_refused_and_a_vanished_one_makes_room() {
    each_primary(|node, _| {
        let mut guests: Vec<Guest> = (0..NBD_CONNECTIONS_MAX).map(|_| node.client()).collect();
        assert!(matches!(
            Guest::connect(&node.socket()),
            Err(ClientError::Refused { .. })
        ));
        for (nr, guest) in (0..).zip(&mut guests) {
            guest.write(nr * 4096, &[9; 4096]);
        }
        node.wait_state(|state| state.nbd_clients.len() == NBD_CONNECTIONS_MAX);
        assert!(node_client_pid_is_ours(node));
        drop(guests.pop());
        node.wait_state(|state| state.nbd_clients.len() == NBD_CONNECTIONS_MAX - 1);
        node.client().write(0, &[8; 4096]);
    });
}

fn node_client_pid_is_ours(node: &mut Node) -> bool {
    let ours = i32::try_from(std::process::id()).unwrap();
    node.newest_clients()
        .iter()
        .all(|client| client.pid == Some(ours))
}

#[test]
fn garbage_and_silence_on_the_socket_harm_nobody() {
    each_primary(|node, _| {
        let mut guest = node.client();
        let idle: Vec<UnixStream> = (0..100)
            .map(|_| UnixStream::connect(node.socket()).unwrap())
            .collect();
        let mut rude = UnixStream::connect(node.socket()).unwrap();
        rude.write_all(&[0xff; 10_000]).unwrap();
        let mut greeting = Vec::new();
        drop(rude.read_to_end(&mut greeting));
        guest.write(0, &[5; 4096]);
        node.client().write(4096, &[6; 4096]);
        drop(idle);
        assert_eq!(guest.read(4095, 2), [5, 6]);
    });
}

#[test]
fn a_guest_that_leaves_in_the_middle_of_a_payload_leaves_nothing_behind() {
    each_primary(|node, _| {
        for sent in [10, 100, 70_000, 1 << 20] {
            let mut guest = node.client();
            guest.send_part_of_a_write(0, 2 << 20, sent);
        }
        let mut guest = node.client();
        assert_eq!(guest.read(0, 4096), vec![0; 4096], "half a write is none");
        node.wait_state(|state| state.nbd_clients.len() == 1);
    });
}

#[test]
fn a_removed_resource_lets_go_of_its_socket_and_devices() {
    each_primary(|node, _| {
        let mut guest = node.client();
        guest.write(0, &[1; 4096]);
        node.input(Input::StepDown);
        node.remove();
        assert!(matches!(
            node.wait_shard_event(),
            ShardEvent::Removed { .. }
        ));
        assert!(!node.socket().exists());
        assert!(guest.next_reply().is_none());
        node.add();
        node.attach();
        node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
    });
}

#[test]
fn devices_that_cannot_be_used_are_named() {
    for backend in backends() {
        let scratch = Arc::new(Scratch::new());
        let mut node = Node::start(&scratch, NodeId::A, Vec::new(), Vec::new(), backend);
        node.add();
        node.attach();
        let ShardEvent::OpenFailed { error, .. } = node.wait_shard_event() else {
            panic!()
        };
        assert!(
            error.to_string().contains("0.img does not exist"),
            "{error}"
        );
        node.wait_state(|state| matches!(state.attach_error, Some(AttachFailure::Open(_))));
        node.create();
        std::fs::write(scratch.path("0.md"), vec![7; 1 << 20]).unwrap();
        node.attach();
        let attached = node.wait_event(|event| matches!(event, Event::Attached(_)));
        assert!(matches!(attached, Event::Attached(Err(_))), "{attached:?}");
        node.create();
        node.attach();
        node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
        node.wait_state(|state| state.attach_error.is_none() && state.io_backend.is_some());
    }
}

#[test]
fn a_socket_that_cannot_be_made_is_reported_with_its_path() {
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::start(&scratch, NodeId::A, Vec::new(), Vec::new(), backends()[0]);
    std::fs::create_dir(node.socket()).unwrap();
    node.add();
    let ShardEvent::AddFailed { error, .. } = node.wait_shard_event() else {
        panic!()
    };
    assert!(error.contains("0.sock"), "{error}");
    node.send(ShardCommand::Remove {
        resource: replicator::types::ResourceId(1),
    });
    assert!(matches!(
        node.wait_shard_event(),
        ShardEvent::Removed { .. }
    ));
}
