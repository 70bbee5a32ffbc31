//! The thread that runs every guest's machine: facts from the board, the drivers and the kernel in,
//! signals and jobs out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use replicator::io::clock;
use replicator::io::pidfd::PidFd;
use replicator::types::time::earliest;
use replicator::types::{Instant, NodeId, ResourceId, Role};

use super::driver::{Driver, Job};
use super::links::GuardLinks;
use super::process::Mark;
use super::virsh::Virsh;
use crate::config::{DemoteStep, GuestConfig, ResourceConfig};
use crate::controller::Timing;
use crate::daemon::board::{BoardState, GuestShown};
use crate::daemon::mailbox::Mailbox;
use crate::daemon::node::{Node, NodeSink};
use crate::daemon::{status, words};
use crate::guests::{
    Fault, Guest, GuestSettings, GuestTiming, Order, OrderId, ProcessId, Seen, Standing, State,
    Stop, StopStep, Tenure,
};

/// Answers waiting: one for each guest, and the end.
const ANSWERS_MAX: usize = 8 * 1024;

/// What the thread is told. A change of the board wakes it without a word.
pub(in crate::daemon) enum Finished {
    /// A driver's job ended, and this is what it saw afterwards.
    Job {
        resource: ResourceId,
        order: OrderId,
        result: Result<(), Fault>,
        seen: Seen,
        process: Option<(ProcessId, PidFd)>,
    },
    /// End the thread. Guests run on.
    Stop,
}

/// The running thread.
pub(in crate::daemon) struct GuestsThread {
    mailbox: Arc<Mailbox<Finished>>,
    thread: JoinHandle<()>,
}

impl GuestsThread {
    /// Ends it. Guests and guardians stay: the next life of the daemon finds them.
    pub(in crate::daemon) fn stop(self) {
        // A full mailbox would mean a stuck thread; the process ends either way.
        if self.mailbox.push(Finished::Stop).is_ok() {
            self.thread.join().ok();
        }
    }
}

/// Looks for guardians of an earlier life, then starts the thread. To be called before the beacon
/// thread is started.
pub(in crate::daemon) fn start(node: &Arc<Node>, timing: &Timing) -> io::Result<GuestsThread> {
    let mailbox = Arc::new(Mailbox::new(ANSWERS_MAX)?);
    let mut run = Guests {
        _essential: NodeSink(Arc::clone(node)),
        node: Arc::clone(node),
        timing: GuestTiming::of(timing),
        mailbox: Arc::clone(&mailbox),
        watched: BTreeMap::new(),
    };
    run.follow_configuration();
    let waker = Arc::clone(&mailbox);
    node.board.watch(Box::new(move || waker.wake()));
    let thread = thread::Builder::new()
        .name("guests".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || run.run())?;
    Ok(GuestsThread { mailbox, thread })
}

/// One guest.
struct Watched {
    name: String,
    resource: ResourceId,
    config: GuestConfig,
    links: Arc<GuardLinks>,
    guest: Guest,
    driver: SyncSender<Job>,
    process: Option<(ProcessId, PidFd)>,
    stop: Stop,
    shown: Option<GuestShown>,
}

struct Guests {
    _essential: NodeSink,
    node: Arc<Node>,
    timing: GuestTiming,
    mailbox: Arc<Mailbox<Finished>>,
    watched: BTreeMap<ResourceId, Watched>,
}

impl Guests {
    fn run(mut self) {
        loop {
            self.wait();
            for finished in self.mailbox.drain() {
                match finished {
                    Finished::Stop => return,
                    Finished::Job {
                        resource,
                        order,
                        result,
                        seen,
                        process,
                    } => {
                        // Before what it did is judged, what the node may do now.
                        self.look_at(resource);
                        if let Some(one) = self.watched.get_mut(&resource) {
                            one.job_done(order, result, seen, process);
                        }
                    }
                }
            }
            self.follow_configuration();
            let all: Vec<_> = self.watched.keys().copied().collect();
            for resource in all {
                self.look_at(resource);
                self.show(resource);
            }
        }
    }

    /// Guests come and go with `adjust`, while their resources are down.
    fn follow_configuration(&mut self) {
        let resources = self.node.resources.all();
        let configured = |id: ResourceId, guest: &GuestConfig| {
            let found = resources.iter().find(|it| it.id() == id);
            found.is_some_and(|it| it.guest.as_ref() == Some(guest))
        };
        self.watched.retain(|id, one| configured(*id, &one.config));
        for resource in &resources {
            let id = resource.id();
            let Some(guest) = resource.guest.as_ref() else {
                continue;
            };
            if self.watched.contains_key(&id) {
                continue;
            }
            match Watched::start(&self.node, resource, guest, self.timing, &self.mailbox) {
                Ok(one) => drop(self.watched.insert(id, one)),
                // Tried again with the next change of anything.
                Err(error) => tracing::error!(%error, "{}: no thread for its guest", resource.name),
            }
        }
    }

    fn wait(&self) {
        let next = self
            .watched
            .values()
            .fold(None, |next, one| earliest(next, one.guest.next_deadline()));
        let timeout = next.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up: waking a little early would only spin.
            let millis = deadline.since(clock::now()).as_nanos().div_ceil(1_000_000);
            let millis = i32::try_from(millis).unwrap_or(i32::MAX);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        let processes = self.watched.values().filter_map(|one| one.process.as_ref());
        let mut fds: Vec<_> = processes
            .map(|(_, process)| process.as_fd())
            .chain([self.mailbox.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // EINTR and the like: everything is looked at anyway.
        poll(&mut fds, timeout).ok();
    }

    /// Tells one guest what the node may do, what operators want, and whether its process lives.
    fn look_at(&mut self, resource: ResourceId) {
        let Some(one) = self.watched.get_mut(&resource) else {
            return;
        };
        let until = one.links.until();
        let me = self.node.node;
        let (standing, stop) = self.node.board.read(|board| {
            (
                standing(board, one.resource, me, until),
                stop(board, one.resource),
            )
        });
        one.look(clock::now(), standing, stop);
    }

    /// Puts the state on the board when it changed.
    fn show(&mut self, resource: ResourceId) {
        let Some(one) = self.watched.get_mut(&resource) else {
            return;
        };
        let state = one.guest.state();
        let shown = GuestShown {
            word: state.word(),
            why: words::guest_why(&state),
            here: one.guest.process().is_some(),
            stopped: one.guest.is_stopped(),
            stop_failed: state == State::StopFailed,
            runs: matches!(state, State::Running { .. }),
            can_start: one.guest.can_start(),
        };
        if one.shown.as_ref() == Some(&shown) {
            return;
        }
        let name = &one.name;
        if one.shown.as_ref().is_none_or(|it| it.word != shown.word) {
            match &shown.why {
                Some(why) => tracing::warn!("{name}: guest {}: {why}", shown.word),
                None => tracing::info!("{name}: guest {}", shown.word),
            }
        }
        one.shown = Some(shown.clone());
        self.node
            .board
            .update(|board| board.resource(resource).guest.shown = Some(shown));
    }
}

fn standing(
    board: &BoardState,
    resource: ResourceId,
    me: NodeId,
    until: Option<Instant>,
) -> Standing {
    let known = board.resources.get(&resource);
    let view = known
        .and_then(|it| it.controller.as_ref())
        .and_then(|it| it.view.as_ref());
    let tenure = known.and_then(|it| it.guest.tenure);
    match (until, tenure) {
        (Some(until), Some(tenure)) => Standing::Primary(Tenure {
            number: tenure.number,
            taken: tenure.taken,
            entry: tenure.entry,
            serves: known
                .and_then(|it| it.shard.as_ref())
                .is_some_and(|it| it.engine.role == Role::Primary),
            lease: (until != Instant::NEVER).then_some(until),
        }),
        _ => Standing::Away {
            superseded: view.is_some_and(|view| view.primary != me || view.held),
        },
    }
}

fn stop(board: &BoardState, resource: ResourceId) -> Stop {
    let known = board.resources.get(&resource);
    known.map_or(Stop::No, |it| it.guest.stop)
}

impl Watched {
    fn start(
        node: &Arc<Node>,
        resource: &ResourceConfig,
        guest: &GuestConfig,
        timing: GuestTiming,
        answers: &Arc<Mailbox<Finished>>,
    ) -> io::Result<Self> {
        let id = resource.id();
        let links = node.resources.guards_of(id).unwrap_or_default();
        let guardians = node.run_dir.join("guardian");
        links.find(&guardians, &resource.name);
        let uri = node.config.node(node.node).map(|it| it.libvirt.clone());
        let driver = Driver {
            id,
            resource: resource.name.clone(),
            hypervisor: Box::new(Virsh {
                uri: uri.unwrap_or_default(),
                domain: guest.domain.clone(),
            }),
            mark: Mark::new(
                &guest.domain,
                &status::nbd_socket(&node.run_dir, &resource.name),
            ),
            links: Arc::clone(&links),
            guardians,
            kill_after: timing.kill_after,
            answers: Arc::clone(answers),
        };
        let settings = GuestSettings {
            starts: guest.start_on_failover,
            on_demote: guest.on_demote.iter().copied().map(step_of).collect(),
            timing,
        };
        Ok(Self {
            name: resource.name.clone(),
            resource: id,
            config: guest.clone(),
            links,
            guest: Guest::new(settings, clock::now()),
            driver: driver.start()?,
            process: None,
            stop: Stop::No,
            shown: None,
        })
    }

    fn look(&mut self, now: Instant, standing: Standing, stop: Stop) {
        let mut orders = Vec::new();
        self.guest.handle_standing(now, standing, &mut orders);
        if core::mem::replace(&mut self.stop, stop) != stop {
            self.guest.handle_stop(now, stop, &mut orders);
        }
        if let Some((id, _)) = self.process.take_if(|(_, process)| process.has_ended()) {
            self.guest.handle_exit(now, id, &mut orders);
        }
        self.perform(orders);
    }

    fn job_done(
        &mut self,
        order: OrderId,
        result: Result<(), Fault>,
        mut seen: Seen,
        process: Option<(ProcessId, PidFd)>,
    ) {
        if let Err(fault) = &result {
            tracing::warn!("{}: {}", self.name, words::guest_fault(fault));
        }
        match process {
            Some((id, held)) if self.process.as_ref().is_none_or(|(known, _)| *known != id) => {
                self.process = Some((id, held));
            }
            Some(_) => {}
            None => {
                // A look that failed, or missed it: what is held has not ended, so it is there.
                self.process.take_if(|(_, held)| held.has_ended());
                seen.process = self.process.as_ref().map(|(id, _)| *id);
            }
        }
        let mut orders = Vec::new();
        let now = clock::now();
        self.guest
            .handle_done(now, order, result, seen, &mut orders);
        self.perform(orders);
    }

    fn perform(&mut self, orders: Vec<(OrderId, Order)>) {
        for (id, order) in orders {
            match order {
                Order::Freeze(process) => self.signal(process, Signal::SIGSTOP),
                Order::Thaw(process) => self.signal(process, Signal::SIGCONT),
                Order::Kill(process) => self.signal(process, Signal::SIGKILL),
                job => {
                    // One at a time, so that there is room; a driver that panicked is seen below.
                    if self.driver.try_send((id, job)).is_err() {
                        tracing::error!("{}: the guest's driver is gone", self.name);
                    }
                }
            }
        }
    }

    fn signal(&self, process: ProcessId, signal: Signal) {
        let held = self.process.as_ref().filter(|(id, _)| *id == process);
        let Some((_, held)) = held else { return };
        tracing::warn!(
            "{}: {signal} to its guest, process {}",
            self.name,
            process.pid
        );
        match held.signal(signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => tracing::error!(
                "{}: {signal} to process {}: {}",
                self.name,
                process.pid,
                errno.desc()
            ),
        }
    }
}

fn step_of(step: DemoteStep) -> StopStep {
    match step {
        DemoteStep::Shutdown(patience) => StopStep::Shutdown(patience),
        DemoteStep::Destroy => StopStep::Destroy,
    }
}
