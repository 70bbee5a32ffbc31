//! Bringing a resource up and down: the steps between the shard, the controller and the disks.

use std::sync::Arc;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::engine::{AdminRequest, AttachError, Input};
use replicator::io::clock;
use replicator::types::{DiskState, Instant, ResourceId, Role};

use super::api::{AttachFailure, AttachSetup, ResourceSetup, ResourceSnapshot, ShardCommand};
use super::board::{BoardState, Presence};
use super::control::Answers;
use super::node::Node;
use super::orders::{Outcome, done, no_such_resource};
use super::{status, words};
use crate::config::{ResourceConfig, VolumeConfig};
use crate::controller::{Order, OrderRefusal};

/// How long bringing up may take: metadata of a large volume is read meanwhile.
const UP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long taking away may take: disk operations in flight must end.
const DOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// What was up before is tried again after this, each time twice as long, up to the longest.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(15);

/// How long a device in use is tried again: the process that held it may be dying (R14).
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// How long the replicas may take to flush on their way down, all together, before they are taken
/// away unflushed: what they hold is marked in their metadata.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// How long an orderly stop waits, after that, for operations that are under way, of all resources
/// together. What hangs longer may hang for ever; the process ends, and the lock on the device stays
/// with the operation until it is over.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// How long an orderly stop waits for the last flush on both replicas: a peer that hangs is given
/// up by then, and what was acknowledged survives a kill anyway.
const QUIESCE_PATIENCE: Duration = Duration::from_secs(5);

/// How long an orderly stop waits for the peer to take over: a flush, two round trips, two fsyncs.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// The right to bring one resource up or down; one at a time.
pub(super) struct Claim<'a> {
    node: &'a Node,
    resource: ResourceId,
}

impl<'a> Claim<'a> {
    /// Waits for whoever has it, at most `patience`. Refused if `adjust` gave the resource another
    /// meaning since it was looked up, or took it away.
    pub(super) fn take(
        node: &'a Node,
        resource: &ResourceConfig,
        patience: Duration,
    ) -> Result<Self, ErrorReport> {
        let claim = Self::take_unknown(node, resource, patience)?;
        match node.resources.with_id(resource.id()) {
            Some(known) if resource.with_live_values_of(&known).is_none() => Ok(claim),
            Some(_) => {
                let what = format!("the configuration of {} has just changed", resource.name);
                let why = "it was adjusted to its files meanwhile";
                Err(ErrorReport::new(ErrorId::OrderUnderWay, what, why))
            }
            None => Err(no_such_resource(&resource.name)),
        }
    }

    /// The same of one that need not be configured.
    pub(super) fn take_unknown(
        node: &'a Node,
        resource: &ResourceConfig,
        patience: Duration,
    ) -> Result<Self, ErrorReport> {
        let taken = node.board.wait(patience, |board| {
            let known = board.resource(resource.id());
            (!core::mem::replace(&mut known.claimed, true)).then_some(())
        });
        if taken.is_some() {
            return Ok(Self {
                node,
                resource: resource.id(),
            });
        }
        let what = format!("{} is being changed by someone else", resource.name);
        let why = "one order brings a resource up or down at a time";
        Err(ErrorReport::new(ErrorId::OrderUnderWay, what, why))
    }

    /// The claim that was set before anybody could ask for it.
    fn inherited(node: &'a Node, resource: &ResourceConfig) -> Self {
        Self {
            node,
            resource: resource.id(),
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.node
            .board
            .update(|board| board.resource(self.resource).claimed = false);
    }
}

impl Node {
    pub(super) fn up(
        &self,
        resource: &ResourceConfig,
        timeout: Option<Duration>,
        asker: &dyn Answers,
    ) -> Outcome {
        let timeout = timeout.unwrap_or(UP_TIMEOUT);
        let claim = Claim::take(self, resource, timeout)?;
        let mut changed = false;
        self.wait_left(resource, timeout)?;
        if self.check_running(resource).is_err() {
            changed = true;
            self.add(resource)?;
            if let Err(report) = self.attach(resource, timeout) {
                self.remove(resource, DOWN_TIMEOUT)?;
                return Err(report);
            }
            self.admin(resource, AdminRequest::Connect);
        }
        drop(claim);
        let outcome = self.order(resource, Order::Up, timeout, || !asker.is_gone());
        if matches!(outcome, Some(Err(OrderRefusal::UnknownResource))) {
            // The voter has no room for it: nothing of it is to stay.
            self.remove(resource, DOWN_TIMEOUT)?;
        }
        let ended = self.ended(resource, Order::Up, timeout, outcome)?;
        match changed || !ended.already {
            true => done(true, format!("{} is up", resource.name)),
            false => done(false, format!("{} is already up", resource.name)),
        }
    }

    /// Marks a resource that was up as running and claimed, before the control socket appears: an
    /// order that comes early waits for [`Self::up_again`] and is not told that it is down.
    pub(super) fn claim_what_was_up(&self, resource: &ResourceConfig) -> bool {
        self.board.update(|board| {
            let known = board.resource(resource.id());
            if known.was_up {
                known.presence = Presence::Running;
            }
            known.claimed |= known.was_up;
            known.was_up
        })
    }

    /// What was up when the daemon stopped comes up again. A disk that is missing, or does not
    /// answer yet, is said and leaves the resource up without one: it votes and learns, and its disk
    /// is tried again until it is there or somebody takes the resource in hand.
    pub(super) fn up_again(&self, resource: &ResourceConfig) {
        let claim = Claim::inherited(self, resource);
        let brought = self.add(resource).map(|()| {
            let attached = self.attach(resource, UP_TIMEOUT);
            self.admin(resource, AdminRequest::Connect);
            attached
        });
        let failure = match brought {
            Ok(Ok(())) => return tracing::info!("{} is up", resource.name),
            Ok(Err(report)) | Err(report) => report,
        };
        let (name, what, why) = (&resource.name, &failure.what, &failure.why);
        tracing::error!(id = failure.id, "{name}: {what} ({why})");
        if self.may_be_there_later(resource) {
            self.board
                .update(|board| board.resource(resource.id()).retried = true);
            drop(claim);
            self.attach_again(resource);
        }
    }

    /// Whether the newest attach failed for what may pass: not for what the metadata says.
    fn may_be_there_later(&self, resource: &ResourceConfig) -> bool {
        let id = resource.id();
        self.presence(resource) == Presence::Running
            && self.board.read(|board| {
                let shard = board.resources.get(&id).and_then(|it| it.shard.as_ref());
                let failure = shard.and_then(|it| it.attach_error.as_ref());
                !matches!(failure, Some(AttachFailure::Engine(error)) if !is_of_disk(*error))
            })
    }

    /// Tries until it is attached, somebody took the resource in hand, or the daemon stops.
    fn attach_again(&self, resource: &ResourceConfig) {
        let id = resource.id();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let ended = self.board.wait(pause, |board| {
                let stopping = board.stopping;
                let known = board.resource(id);
                known.retried &= known.presence == Presence::Running;
                (stopping || !known.retried).then_some(())
            });
            if ended.is_some() {
                return;
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
            // Whoever has it is listened to first.
            let Ok(_claim) = Claim::take(self, resource, Duration::ZERO) else {
                continue;
            };
            // One that reads its metadata still is not disturbed.
            let over = match self.board.read(|board| self.disk_of(board, id)) {
                Some(DiskState::Diskless) => self.attach(resource, UP_TIMEOUT).is_ok(),
                Some(DiskState::Attaching | DiskState::Detaching) | None => false,
                Some(_) => true,
            };
            if over || !self.may_be_there_later(resource) {
                self.board
                    .update(|board| board.resource(id).retried = false);
                return;
            }
        }
    }

    fn disk_of(&self, board: &BoardState, id: ResourceId) -> Option<DiskState> {
        let shard = board.resources.get(&id)?.shard.as_ref()?;
        Some(shard.engine.disk)
    }

    pub(super) fn down(
        &self,
        resource: &ResourceConfig,
        force: bool,
        timeout: Option<Duration>,
        asker: &dyn Answers,
    ) -> Outcome {
        let timeout = timeout.unwrap_or(DOWN_TIMEOUT);
        let _claim = Claim::take(self, resource, timeout)?;
        let _passing = self.check_not_suspended(resource, force)?;
        let _stopped = self.stop_guest(resource, force)?;
        self.clients_leave(resource, Order::Down, force)?;
        let was_there = self.presence(resource) != Presence::Away;
        let outcome = self.order(resource, Order::Down, timeout, || !asker.is_gone());
        let ended = self.ended(resource, Order::Down, timeout, outcome)?;
        if was_there {
            self.remove(resource, timeout)?;
        }
        match was_there || !ended.already {
            true => done(true, format!("{} is down", resource.name)),
            false => done(false, format!("{} is already down", resource.name)),
        }
    }

    /// Gives the resource to the shard: engine and NBD socket, no disk yet.
    fn add(&self, resource: &ResourceConfig) -> Result<(), ErrorReport> {
        let id = resource.id();
        let lease = self.resources.lease(id).unwrap_or_default();
        self.board.update(|board| {
            let known = board.resource(id);
            known.presence = Presence::Running;
            known.add_failed = None;
            known.attach = None;
        });
        self.command(ShardCommand::Add(Box::new(ResourceSetup {
            resource: id,
            name: resource.name.clone(),
            row: resource.row(),
            nbd_socket: status::nbd_socket(&self.run_dir, &resource.name),
            nbd_allow: resource.nbd_allow.clone(),
            lease,
            peer_timeout: self.config.net.timeout,
            disk_timeout: resource
                .volumes
                .first()
                .and_then(|volume| volume.disk_timeout),
            protocol: self.config.protocol_of(resource),
            resync_rate: self.config.resync.max_rate.resync_rate(),
            guest_latency_target: self.config.resync.guest_latency_target,
            checksum_first: self.config.resync.checksum_first,
            forward: resource.forward,
            read_only_export: resource.read_only_export,
        })));
        let added = self.board.wait(DOWN_TIMEOUT, |board| {
            let known = board.resource(id);
            match known.add_failed.take() {
                Some(error) => Some(Err(error)),
                None => known.shard.is_some().then_some(Ok(())),
            }
        });
        let what = format!("{} cannot be exported on {}", resource.name, self.name());
        match added {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(ErrorReport::new(ErrorId::DirectoryUnusable, what, error)),
            None => Err(ErrorReport::new(
                ErrorId::TimedOut,
                what,
                "the event loop does not answer",
            )),
        }
    }

    /// Opens and attaches the backing devices of the resource's volumes.
    pub(super) fn attach(
        &self,
        resource: &ResourceConfig,
        timeout: Duration,
    ) -> Result<(), ErrorReport> {
        let busy_until = clock::now().plus(BUSY_PATIENCE);
        loop {
            match self.attach_once(resource, timeout)? {
                Ok(()) => return Ok(()),
                Err(AttachFailure::Open(error))
                    if error.is_transient() && clock::now() < busy_until =>
                {
                    // Waits for the pause; any change of the board may as well end it early.
                    self.board.wait(BUSY_PAUSE, |_| None::<()>);
                }
                Err(failure) => {
                    return Err(words::attach_report(
                        &failure,
                        resource,
                        self.node,
                        self.name(),
                    ));
                }
            }
        }
    }

    fn attach_once(
        &self,
        resource: &ResourceConfig,
        timeout: Duration,
    ) -> Result<Result<(), AttachFailure>, ErrorReport> {
        let id = resource.id();
        let Some(first) = resource.volumes.first() else {
            return Ok(Ok(()));
        };
        let disk = |volume: &VolumeConfig| volume.replica(self.node).disk.clone();
        self.board.update(|board| board.resource(id).attach = None);
        self.command(ShardCommand::Attach {
            resource: id,
            setup: Box::new(AttachSetup {
                disks: resource.volumes.iter().map(disk).collect(),
                meta: first.replica(self.node).meta.clone(),
                stored: self.marks(id),
            }),
        });
        let ended = self.board.wait(timeout, |board| {
            let ended = board.resource(id).attach.take().map(Some);
            // An orderly stop does not wait for a disk.
            ended.or(board.stopping.then_some(None))
        });
        let ended = ended.flatten().map(|result| result.map(|_| ()));
        ended.ok_or_else(|| {
            let what = format!("{} is not attached on {}", resource.name, self.name());
            let why = "opening the disk and reading the metadata takes too long";
            ErrorReport::new(ErrorId::TimedOut, what, why)
        })
    }

    /// Takes the resource off the shard, its replica flushed and closed.
    fn remove(&self, resource: &ResourceConfig, timeout: Duration) -> Result<(), ErrorReport> {
        let detached_by = clock::now().plus(DETACH_PATIENCE.min(timeout));
        self.begin_to_leave(resource);
        self.end_leaving(resource, detached_by, detached_by.plus(timeout))
    }

    /// Waits for an instance that was taken away before and has operations on its devices left: they
    /// would land beside those of a new one (R14).
    fn wait_left(&self, resource: &ResourceConfig, timeout: Duration) -> Result<(), ErrorReport> {
        let id = resource.id();
        let left = self.board.wait(timeout, |board| {
            (board.resource(id).presence != Presence::Leaving).then_some(())
        });
        left.ok_or_else(|| self.still_leaving(resource))
    }

    fn still_leaving(&self, resource: &ResourceConfig) -> ErrorReport {
        let name = &resource.name;
        let what = format!("{name} is not down on {} yet", self.name());
        ErrorReport::new(ErrorId::TimedOut, what, words::STILL_LEAVING)
            .next("mend the disk that does not answer; the rest then happens by itself")
            .next(format!("then: twinadm up {name}"))
    }

    /// The engine steps down, if it is Primary still, and lets go of its replica: one that is left
    /// open would count as one that lost writes when the host boots next. It does so in this order,
    /// whatever its newest snapshot says.
    fn begin_to_leave(&self, resource: &ResourceConfig) {
        self.board
            .update(|board| board.resource(resource.id()).retried = false);
        self.admin(resource, AdminRequest::Disconnect);
        self.command(ShardCommand::Engine {
            resource: resource.id(),
            input: Box::new(Input::StepDown),
        });
        self.admin(resource, AdminRequest::Detach);
    }

    /// Waits until `deadline` for the replica to be closed, then takes the resource away.
    fn end_leaving(
        &self,
        resource: &ResourceConfig,
        detached_by: Instant,
        gone_by: Instant,
    ) -> Result<(), ErrorReport> {
        let id = resource.id();
        let patience = detached_by.since(clock::now());
        // One that is leaving already was told everything.
        if self.presence(resource) == Presence::Running {
            if !self.wait_engine(resource, patience, |it| it.disk == DiskState::Diskless) {
                tracing::warn!("{}: the disk was not let go in time", resource.name);
            }
            self.board
                .update(|board| board.resource(id).presence = Presence::Leaving);
            self.command(ShardCommand::Remove { resource: id });
        }
        self.wait_left(resource, gone_by.since(clock::now()))
    }

    /// Before an orderly stop: what has no NBD client here is handed to the peer, if it can follow.
    /// With a client attached it stays the Primary of record: the daemon is expected back within
    /// the client's reconnect delay.
    pub(super) fn hand_over_all(&self) {
        let idle = self.running().into_iter().filter(|resource| {
            let id = resource.id();
            self.board.read(|board| {
                let shard = board.resources.get(&id).and_then(|it| it.shard.as_ref());
                // Those that the peer passes on find it there, at the same socket.
                let serves_here =
                    |it: &ResourceSnapshot| it.nbd_clients.iter().any(|client| !client.forwarded);
                // A guest between two connections is no reason to give its disk away either.
                shard.is_some_and(|it| it.engine.role == Role::Primary && !serves_here(it))
                    && !Self::has_guest(board, id)
            })
        });
        let begun: Vec<_> = idle
            .map(|resource| {
                let order = self.begin_order(&resource, Order::HandOver, HAND_OVER_PATIENCE);
                (resource, order)
            })
            .collect();
        for (resource, order) in begun {
            match self.end_order(order, || true) {
                Some(Ok(done)) if !done.already => {
                    let peer = self.config.node_name(self.node.peer());
                    tracing::info!("{}: handed over to {peer}", resource.name);
                }
                Some(Ok(_)) => {}
                _ => tracing::info!("{}: not handed over in time", resource.name),
            }
        }
    }

    /// The first half of an orderly stop: everything acknowledged becomes durable and new requests
    /// are held. The controller still runs, so that a lease or a Remove may be waited for.
    pub(super) fn quiesce_all(&self) {
        for resource in self.running() {
            self.board
                .update(|board| board.resource(resource.id()).quiesced = false);
            self.admin(&resource, AdminRequest::Quiesce);
        }
        for resource in self.running() {
            // Not by what is in flight: requests that came meanwhile are held, not answered.
            let flushed = self.board.wait(QUIESCE_PATIENCE, |board| {
                let known = board.resource(resource.id());
                let shard = known.shard.as_ref();
                let serves = shard.is_some_and(|it| it.engine.role == Role::Primary);
                (known.quiesced || !serves).then_some(())
            });
            let flushed = flushed.is_some();
            if !flushed {
                tracing::warn!("{}: stopping without the last flush", resource.name);
            }
        }
    }

    /// The second half, after the controller's end: it must not take the closing sessions for a
    /// lost peer and remove it, since that peer is to take over. Nothing is recorded as `down`, so
    /// all of it comes up again with the next start, a Primary of record as what it was.
    pub(super) fn remove_all(&self) {
        let running = self.running();
        for resource in &running {
            self.begin_to_leave(resource);
        }
        let detached_by = clock::now().plus(DETACH_PATIENCE);
        let gone_by = detached_by.plus(LEAVE_PATIENCE);
        for resource in running {
            if let Err(report) = self.end_leaving(&resource, detached_by, gone_by) {
                tracing::warn!("{}: {} ({})", resource.name, report.what, report.why);
            }
        }
    }

    fn running(&self) -> Vec<Arc<ResourceConfig>> {
        let all = self.resources.all().into_iter();
        all.filter(|resource| self.check_running(resource).is_ok())
            .collect()
    }
}

/// Whether the disk said so, and not what is on it.
fn is_of_disk(error: AttachError) -> bool {
    matches!(error, AttachError::Disk(_))
}
