//! Devices whose open takes as long as it likes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use replicator::engine::{AdminRequest, Event, Input};
use replicator::types::DiskState;

use super::rig::{Node, Scratch};
use crate::daemon::api::ShardEvent;
use crate::daemon::shard::attach::open_devices;
use crate::daemon::shard::{Surroundings, engines};

/// Devices that open when the test says so.
fn slow_devices(go: Receiver<()>) -> Surroundings {
    let go = Mutex::new(go);
    Surroundings {
        opener: Arc::new(move |disk, meta| {
            let go = go.lock().unwrap();
            go.recv().ok();
            drop(go);
            open_devices(disk, meta)
        }),
        ..Surroundings::real()
    }
}

#[test]
fn an_open_that_hangs_stops_nobody_and_a_detach_meanwhile_counts() {
    let (allow, go) = channel();
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, slow_devices(go), engines());
    node.create();
    node.add();
    node.attach();
    // Published by the thread that would be stuck.
    node.wait_engine(|state| state.disk == DiskState::Attaching);
    node.input(Input::Admin(AdminRequest::Detach));
    node.wait_engine(|state| state.disk == DiskState::Diskless);
    // The first open is still under way, and holds the devices when it ends.
    node.attach();
    node.wait_engine(|state| state.disk == DiskState::Attaching);
    allow.send(()).unwrap();
    allow.send(()).unwrap();
    node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
}

#[test]
fn a_resource_that_is_taken_away_while_its_devices_open_comes_back() {
    let (allow, go) = channel();
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, slow_devices(go), engines());
    node.create();
    node.add();
    node.attach();
    node.wait_engine(|state| state.disk == DiskState::Attaching);
    node.remove();
    let event = node.wait_shard_event();
    assert!(matches!(event, ShardEvent::Removed { .. }), "{event:?}");
    node.add();
    node.attach();
    allow.send(()).unwrap();
    allow.send(()).unwrap();
    node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
}

#[test]
fn an_open_that_panics_is_a_failure_like_any_other() {
    let first = Arc::new(AtomicBool::new(true));
    let surroundings = Surroundings {
        opener: Arc::new(move |disk, meta| {
            assert!(!first.swap(false, Ordering::Relaxed), "as if it had a bug");
            open_devices(disk, meta)
        }),
        ..Surroundings::real()
    };
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, surroundings, engines());
    node.create();
    node.add();
    node.attach();
    let event = node.wait_shard_event();
    assert!(matches!(event, ShardEvent::OpenFailed { .. }), "{event:?}");
    node.attach();
    node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
}
