//! The beacon thread: runs the controller. Datagrams and requests in, datagrams and commands out;
//! no disk, no lock that is held for long, no log that could block (see `log`).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use replicator::engine::Input as EngineInput;
use replicator::io::clock::SuspendWatch;
use replicator::io::{clock, realtime};
use replicator::types::time::earliest;
use replicator::types::{Instant, NodeId, ResourceId, StoreError, ViewCause};

use super::api::ShardCommand;
use super::beacon_io::{Carrier, DATAGRAM_LEN_MAX};
use super::node::{Answer, ControllerRequest, Node, NodeSink, Question};
use super::security::{Mismatch, Mismatches};
use super::store_thread::StoreRequest;
use super::watchdog::{HUNG_LOOKS, LOOK_EVERY, Verdict, Watchdog};
use crate::controller::{Action, Controller, Datagram, EngineCommand, Input};
use crate::guests::Entry;
use crate::identity::sealing::DatagramKeys;

/// Stack of the thread: the controller recurses nowhere.
const STACK_LEN: usize = 256 * 1024;

/// Snapshots for `status` are renewed at least this often while anything is asked of the thread.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);

/// What is no datagram of this cluster's is shown for so long.
const MISMATCH_SHOWN: Duration = Duration::from_secs(5);

/// Starts the thread; it ends with [`ControllerRequest::Stop`].
///
/// # Errors
/// If there is no thread to be had.
pub(super) fn start(
    node: Arc<Node>,
    controller: Controller,
    carrier: Carrier,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("beacon".to_owned()).stack_size(STACK_LEN).spawn(move || {
        if let Err(errno) = realtime::schedule_current_thread() {
            tracing::info!(
                "the beacon thread runs at normal priority ({}): on a busy host leases may lapse",
                errno.desc()
            );
        }
        let _essential = NodeSink(Arc::clone(&node));
        let mut beacon = Beacon {
            keys: node.security.as_ref().map(|security| security.datagrams()),
            mismatch: None,
            mismatches: Mismatches::default(),
            node,
            controller,
            carrier,
            actions: Vec::new(),
            published: None,
            suspend: SuspendWatch::new(clock::suspended),
            watchdog: Watchdog::default(),
        };
        beacon.run();
    })
}

struct Beacon {
    node: Arc<Node>,
    controller: Controller,
    carrier: Carrier,
    /// Filled by the controller, emptied here; kept for its capacity.
    actions: Vec<Action>,
    /// When the board last got snapshots.
    published: Option<Instant>,
    suspend: SuspendWatch,
    watchdog: Watchdog,
    /// What datagrams are sealed with, if they are.
    keys: Option<Arc<DatagramKeys>>,
    /// The newest datagram that looks like another node's and has no effect, and when it came.
    mismatch: Option<(Instant, NodeId, Mismatch)>,
    /// And when such were told of.
    mismatches: Mismatches,
}

impl Beacon {
    fn run(&mut self) {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let mut more_waiting = false;
        loop {
            if !more_waiting {
                self.wait();
            }
            if self.has_slept() || self.shard_hangs() {
                return;
            }
            let mut changed = false;
            for request in self.node.controller.drain() {
                match request {
                    ControllerRequest::Stop => return,
                    // Nobody waits any more: then nobody is answered.
                    ControllerRequest::Ask(question, answer) => {
                        answer.try_send(self.answer(question)).ok();
                    }
                    ControllerRequest::Input(input) => {
                        self.step(input);
                        changed = true;
                    }
                }
            }
            more_waiting = self.receive(&mut buffer);
            if self
                .controller
                .next_deadline()
                .is_some_and(|deadline| deadline <= clock::now())
            {
                self.step(Input::Tick);
            }
            self.publish(changed);
        }
    }

    fn answer(&self, question: Question) -> Answer {
        let now = clock::now();
        match question {
            Question::Why(resource) => {
                Answer::Why(self.controller.why(now, resource).map(Box::new))
            }
            Question::Fates(dead) => {
                let all = self.node.resources.all();
                let fates = all.iter().filter_map(|resource| {
                    let id = resource.id();
                    Some((id, self.controller.fate(now, id, dead)?))
                });
                Answer::Fates(fates.collect(), self.controller.node_snapshot(now))
            }
            Question::Voters => Answer::Voters(Box::new(self.controller.voters(now))),
        }
    }

    fn wait(&self) {
        // A node without a shard has nobody to watch.
        let look = self.node.shard.get().map(|_| clock::now().plus(LOOK_EVERY));
        let timeout = match earliest(self.controller.next_deadline(), look) {
            None => PollTimeout::NONE,
            Some(deadline) => {
                // Rounded up: waking a little early would only spin.
                let millis = deadline.since(clock::now()).as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX))
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds: Vec<_> = self
            .carrier
            .fds()
            .chain([self.node.controller.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // EINTR and the like: everything is looked at anyway.
        poll(&mut fds, timeout).ok();
    }

    /// The clock did not count while the machine slept, so every lease and grant is void. Nothing
    /// of this life is worth keeping: gates are shut and the process ends, the next one starts
    /// with a boot wait like any other.
    fn has_slept(&mut self) -> bool {
        let Some(slept) = self.suspend.look(clock::suspended()) else {
            return false;
        };
        for lease in self.node.resources.leases() {
            lease.store(0, Ordering::Release);
        }
        self.node.fatal(&format!(
            "this machine was suspended for {} ms: its leases are void; ending, to be started anew",
            slept.as_millis()
        ));
        true
    }

    /// The data path's thread is stuck. Guests wait, and the peer would wait for ever while beacons
    /// go out: the process ends.
    fn shard_hangs(&mut self) -> bool {
        let Some(shard) = self.node.shard.get() else {
            return false;
        };
        match self.watchdog.look(clock::now(), shard.turns()) {
            Verdict::Fine => return false,
            Verdict::Poke => {
                shard.wake();
                return false;
            }
            Verdict::Hung => {}
        }
        self.node.fatal(&format!(
            "the data path has not moved for {HUNG_LOOKS} s; ending, so that the peer can take over"
        ));
        true
    }

    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        let mut arrived = Vec::new();
        let mut strange = None;
        let keys = self.keys.as_deref();
        let (cluster, node) = (self.node.cluster(), self.node.node);
        let mismatches = &self.mismatches;
        let more = self.carrier.receive(buffer, |path, bytes| {
            // Nothing is read of what no node of the cluster has sealed.
            let datagram = match keys {
                None => Some(bytes),
                Some(keys) => keys.open(bytes),
            };
            match datagram.map(Datagram::decode) {
                Some(Ok(datagram)) => arrived.push((path, datagram)),
                Some(Err(_)) | None if mismatches.may_look(clock::now()) => {
                    strange = Mismatch::of(bytes, keys, cluster, node).or(strange);
                }
                Some(Err(_)) | None => {}
            }
        });
        if let Some((from, what)) = strange {
            self.note_mismatch(from, what);
        }
        for (path, datagram) in arrived {
            let path = u8::try_from(path).unwrap_or(u8::MAX);
            self.step(Input::Received { path, datagram });
        }
        more
    }

    /// For people: nothing is decided by it. A node that is heard has the keys of this one, whatever
    /// somebody sends in its name.
    fn note_mismatch(&mut self, from: NodeId, what: Mismatch) {
        let now = clock::now();
        if self.controller.node_snapshot(now).voters[from.index()].seen {
            return;
        }
        self.mismatch = Some((now, from, what));
        if self.mismatches.may_tell(now, from, what) {
            let other = self.node.config.node_name(from);
            tracing::warn!("{}", what.words(other));
        }
    }

    fn step(&mut self, input: Input) {
        let mut actions = core::mem::take(&mut self.actions);
        self.controller.handle(clock::now(), input, &mut actions);
        // A guest must know what an activation follows before it hears of it.
        for action in &actions {
            if let Action::Engine { resource, command } = action
                && let EngineCommand::Activate(activation) = command
            {
                self.begin_tenure(*resource, activation.view().cause);
            }
        }
        // Before anything leaves by which the peer could count on a lease that guardians do not
        // know of.
        for (resource, guards) in self.node.resources.guards() {
            guards.set_until(self.controller.serves_until(resource));
        }
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { to, datagram } => {
                let mut bytes = datagram.encode();
                if let Some(keys) = &self.keys {
                    keys.seal(to, &mut bytes);
                }
                self.carrier.send(to.index(), &bytes);
            }
            Action::Persist {
                op,
                resource,
                record,
            } => {
                let request = StoreRequest::Persist {
                    op,
                    resource,
                    record: Box::new(record),
                };
                if self.node.store.push(request).is_err() {
                    self.node
                        .tell_controller(Input::Persisted { op, ok: false });
                }
            }
            Action::Engine { resource, command } => self.command(resource, command),
            Action::OrderDone { order, result } => {
                self.published = None;
                self.node
                    .board
                    .update(|board| board.note_outcome(order, result));
            }
            Action::Event(event) => {
                self.published = None;
                self.node.note_event(&event);
            }
        }
    }

    fn command(&self, resource: ResourceId, command: EngineCommand) {
        let input = match command {
            EngineCommand::Lease { until } => return self.renew_lease(resource, until),
            EngineCommand::Activate(activation) => {
                // A lease of an earlier activation says nothing about this one.
                self.set_lease(resource, Instant::ZERO);
                EngineInput::Activate(activation)
            }
            EngineCommand::StepDown => {
                self.set_lease(resource, Instant::ZERO);
                EngineInput::StepDown
            }
            EngineCommand::Committed(view) => EngineInput::Committed(view),
            EngineCommand::Learned(view) => EngineInput::Learned(view),
            EngineCommand::Drain { seal } => EngineInput::Drain { seal },
            EngineCommand::BeginAdd { view } => EngineInput::BeginAdd { view },
            EngineCommand::ProposalAborted => EngineInput::ProposalAborted,
            EngineCommand::Quiesce => EngineInput::Admin(replicator::engine::AdminRequest::Quiesce),
            EngineCommand::Unquiesce => {
                EngineInput::Admin(replicator::engine::AdminRequest::Unquiesce)
            }
            EngineCommand::MarkDone { op, ok } => {
                let result = if ok { Ok(()) } else { Err(StoreError) };
                return self.node.command(ShardCommand::MarkDone {
                    resource,
                    op,
                    result,
                });
            }
        };
        self.node.command(ShardCommand::Engine {
            resource,
            input: Box::new(input),
        });
    }

    /// Before the engine serves: the resource's guest must know what it follows.
    fn begin_tenure(&self, resource: ResourceId, cause: ViewCause) {
        let (entry, follows_another) = match cause {
            ViewCause::Founded => (Entry::Vacated, false),
            ViewCause::Claimed => (Entry::Vacated, true),
            ViewCause::TookOver => (Entry::Taken, true),
            _ => (Entry::Own, false),
        };
        self.node.board.update(|board| {
            let guest = &mut board.resource(resource).guest;
            guest.begin_tenure(entry, follows_another);
        });
    }

    fn set_lease(&self, resource: ResourceId, until: Instant) -> Instant {
        let lease = self.node.resources.lease(resource);
        lease.map_or(Instant::NEVER, |lease| {
            Instant(lease.swap(until.0, Ordering::AcqRel))
        })
    }

    /// The shard looks at the lease each turn; it is woken only when the old one had run out,
    /// because then guests may be waiting.
    fn renew_lease(&self, resource: ResourceId, until: Instant) {
        let before = self.set_lease(resource, until);
        if before < clock::now()
            && let Some(shard) = self.node.shard()
        {
            shard.wake();
        }
    }

    /// Puts snapshots on the board: after what others asked for, and now and then.
    fn publish(&mut self, changed: bool) {
        let now = clock::now();
        let fresh = self
            .published
            .is_some_and(|then| now.since(then) < PUBLISH_INTERVAL);
        if fresh && !changed {
            return;
        }
        self.published = Some(now);
        let node = self.controller.node_snapshot(now);
        let configured = self.node.resources.all();
        let resources: BTreeMap<_, _> = configured
            .iter()
            .filter_map(|it| Some((it.id(), self.controller.snapshot(now, it.id())?)))
            .collect();
        let mismatch = self
            .mismatch
            .filter(|(then, from, _)| {
                now.since(*then) < MISMATCH_SHOWN && !node.voters[from.index()].seen
            })
            .map(|(_, from, what)| what.words(self.node.config.node_name(from)));
        self.node.board.update(|board| {
            board.node = Some(node);
            board.tls_mismatch = mismatch;
            for (resource, snapshot) in resources {
                board.resource(resource).controller = Some(snapshot);
            }
        });
    }
}

#[cfg(test)]
mod tests;
