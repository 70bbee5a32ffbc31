//! Devices that are let go while something is still under way on them, and leases that are void.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use core::time::Duration;

use nbd_frontend::ClientCommand;
use replicator::engine::{Action, AdminRequest, DiskCommand, Event, HeldReason, Input, Outbox};
use replicator::engine::{Engine, Snapshot};
use replicator::io::{Disk, Portable};
use replicator::types::OpId;
use replicator::types::{BlockCount, BlockIndex, BlockRange, DiskState, InSync, Instant, NodeId};

use super::faulty::Faults;
use super::rig::{Node, Register, Scratch};
use crate::daemon::api::{ResourceSetup, ShardEvent, ShardSetup};
use crate::daemon::shard::{ReplicationEngine, Surroundings, engines};

fn assert_removed(node: &mut Node) {
    let event = node.wait_shard_event();
    assert!(matches!(event, ShardEvent::Removed { .. }), "{event:?}");
}

#[test]
fn a_failed_disk_that_is_taken_down_is_held_until_its_last_operation_ended() {
    // A read hangs, a flush fails, the operator takes the resource down and up again: the
    // late completion must not be taken for one of the new disk's (R14).
    let faults = Arc::new(Faults::default());
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, faults.surroundings(), engines());
    node.create();
    node.up();
    Register::new().activate(&mut node, |_| {});
    let mut guest = node.client();
    guest.write(8192, &[1; 4096]);
    faults.hold(true);
    guest.submit(ClientCommand::Read {
        offset: 0,
        len: 4096,
    });
    faults.fail_flushes();
    guest.submit(ClientCommand::Flush);
    guest.send();
    node.wait_engine(|state| state.disk == DiskState::Failed);
    node.input(Input::StepDown);
    node.input(Input::Admin(AdminRequest::Detach));
    node.remove();
    // Neither order may be taken for one to or of another instance: the id is in use, and its end
    // is told once.
    node.remove();
    node.add();
    node.attach();
    // Were it removed already, or again, that would be told first.
    node.settle();
    faults.hold(false);
    node.wake();
    assert_removed(&mut node);
    node.settle();
    node.add();
    node.attach();
    node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
}

/// Says that it let its disk go while it reads from it; tells of the end of that.
struct Hasty(Engine);

const LATE: OpId = OpId(u64::MAX);

impl ReplicationEngine for Hasty {
    fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox) {
        match input {
            Input::Admin(AdminRequest::Detach) => {
                let range = BlockRange::new(BlockIndex(0), BlockCount(1));
                let command = DiskCommand::Read(range);
                out.push(Action::Disk { op: LATE, command });
                out.push(Action::Event(Event::Detached));
            }
            Input::DiskDone { op: LATE, result } => {
                assert!(result.is_ok());
                out.push(Action::Event(Event::Quiesced));
            }
            other => self.0.handle(now, other, out),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.next_deadline()
    }

    fn snapshot(&self) -> Snapshot {
        self.0.snapshot()
    }
}

fn hasty(shard: &ShardSetup, resource: &ResourceSetup) -> Box<dyn ReplicationEngine> {
    Box::new(Hasty(Engine::new(crate::daemon::shard::engine::config(
        shard, resource,
    ))))
}

#[test]
fn an_operation_of_a_disk_that_was_let_go_still_ends_at_its_engine() {
    // An engine counts its operations; one whose end never comes would block it for ever.
    let faults = Arc::new(Faults::default());
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, faults.surroundings(), Box::new(hasty));
    node.create();
    node.up();
    faults.hold(true);
    node.input(Input::Admin(AdminRequest::Detach));
    node.wait_event(|event| *event == Event::Detached);
    node.wait_state(|state| state.io_backend.is_none());
    faults.hold(false);
    node.wake();
    node.wait_event(|event| *event == Event::Quiesced);
}

#[test]
fn a_detach_ends_an_attach_that_waits_for_its_device() {
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, Surroundings::real(), engines());
    node.create();
    node.add();
    let in_use = Disk::open(&scratch.path("0.img")).unwrap();
    node.attach();
    node.wait_engine(|state| state.disk == DiskState::Attaching);
    node.input(Input::Admin(AdminRequest::Detach));
    node.wait_event(|event| *event == Event::Detached);
    node.wait_engine(|state| state.disk == DiskState::Diskless);
    // Neither given up nor done meanwhile: nobody tries any more.
    node.settle();
    drop(in_use);
    node.attach();
    node.wait_event(|event| matches!(event, Event::Attached(Ok(_))));
}

/// A machine that slept as long as the test says.
fn sleeper(slept: &Arc<AtomicU64>) -> Surroundings {
    let slept = Arc::clone(slept);
    Surroundings {
        backend: Box::new(|| Ok(Box::new(Portable::new()?))),
        suspended: Box::new(move || Duration::from_secs(slept.load(Ordering::Acquire))),
        ..Surroundings::real()
    }
}

#[test]
fn after_a_suspend_no_guest_is_answered_before_the_lease_is_granted_anew() {
    // The clock of the leases stood still while the peer took over: reads would be stale (R2).
    let slept = Arc::new(AtomicU64::new(7));
    let scratch = Arc::new(Scratch::new());
    let mut node = Node::alone_in(&scratch, sleeper(&slept), engines());
    node.create();
    node.up();
    let mut register = Register::new();
    register.activate(&mut node, |_| {});
    // From here on the view names the peer: without a lease nothing may be answered.
    let mut guest = node.client();
    guest.write(0, &[1; 4096]);
    let committed = register.commit(NodeId::A, |view| view.in_sync = InSync::BOTH);
    node.input(Input::Committed(committed));
    node.wait_engine(|state| state.held == Some(HeldReason::Peer));
    slept.store(8, Ordering::Release);
    guest.submit(ClientCommand::Read {
        offset: 0,
        len: 4096,
    });
    assert!(guest.next_reply().is_none(), "closed, not answered");
    node.wait_engine(|state| state.held == Some(HeldReason::Lease));
    // One more that was granted before, late.
    node.renew_lease();
    node.settle();
    let _pending = node.client();
    node.wait_state(|state| !state.nbd_clients.is_empty());
    node.wait_engine(|state| state.held == Some(HeldReason::Lease));
    // The controller's thread noticed it too; what it stores from here on was granted since.
    node.store_lease(Instant::ZERO);
    node.settle();
    node.renew_lease();
    node.wait_engine(|state| state.held == Some(HeldReason::Peer));
}
