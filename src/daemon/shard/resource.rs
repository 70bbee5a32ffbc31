//! One resource on the shard: its engine, its devices, and what is due when.

use core::time::Duration;
use std::sync::atomic::Ordering;

use replicator::engine::{Input, MarkRun, Outbox, Snapshot};
use replicator::io::disk::DiskKind;
use replicator::io::{BackendKind, DiskQueue, IoFile, MetaQueue, OpKey, Socket, clock};
use replicator::types::{
    BlockCount, BlockRange, ConnectionState, DiskState, Instant, OpId, Role, View, ViewNumber,
    time::earliest,
};

use super::PUBLISH_INTERVAL;
use super::engine::ReplicationEngine;
use super::slots::Key;
use super::standing::Standings;
use crate::daemon::api::{
    AttachFailure, AttachSetup, ResourceSetup, ResourceSnapshot, Traffic, VolumeSnapshot,
};

/// First and longest pause between two attempts to reach the peer.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(50);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Resource {
    pub(super) setup: ResourceSetup,
    engine: Box<dyn ReplicationEngine>,
    lease_seen: u64,
    /// What is stored was granted before the machine slept.
    lease_void: bool,
    /// Since when, in time since boot, no other writer was served from here whose data may have been
    /// superseded: younger processes may be passed on to the Primary.
    forwards_since: Duration,
    /// Was Primary when last looked at.
    was_primary: bool,
    /// The newest view known that may lack acknowledged writes.
    lossy_view: ViewNumber,
    /// Taken away; only waits for its last disk operation.
    pub(super) removing: bool,

    pub(super) disk: Option<DiskQueue>,
    pub(super) meta: Option<MetaQueue>,
    /// The engine is done with its devices; they are closed after the last operation on them.
    letting_go: bool,
    pub(super) attaching: Option<Attaching>,
    pub(super) attach_error: Option<AttachFailure>,
    /// Of each volume, where there are several; of one the engine knows.
    pub(super) traffic: Vec<Traffic>,
    /// Place of the volume whose disk failed.
    pub(super) failed_place: Option<usize>,
    /// Errors that the engine has not heard of yet, and whose; bounded by what it has under way.
    pub(super) errors: Vec<(OpId, usize)>,
    /// Whose error the input being handled is.
    pub(super) blamed: Option<usize>,

    pub(super) listener: Option<Socket>,
    pub(super) clients: Standings,
    /// Its path is ours to remove.
    pub(super) own_listener: bool,
    pub(super) accept: Accept,

    pub(super) link: Option<Key>,
    pub(super) dial: Dial,

    /// The engine's state as of the last event.
    state: Snapshot,
    state_changed: bool,
    /// Something was handled since the last publication.
    touched: bool,
    published: Option<ResourceSnapshot>,
    publish_next: Instant,
}

/// Devices that are in use and will be tried again.
pub(super) struct Attaching {
    pub(super) setup: AttachSetup,
    /// Number of the attach: what was opened for another is not for this one.
    pub(super) order: u64,
    /// Tried before, and told.
    pub(super) waiting: bool,
    pub(super) retry_at: Instant,
    pub(super) give_up_at: Instant,
}

/// The one accept of the NBD socket.
pub(super) enum Accept {
    /// Not begun, or not wanted.
    Idle,
    InFlight(OpKey),
    /// The system had no descriptor left.
    PausedUntil(Instant),
    /// This daemon was restarted: clients wait for it to serve again, at most until then.
    UntilPrimary(Instant),
}

/// Attempts to reach the peer, on the side that dials.
pub(super) struct Dial {
    /// This side dials at all.
    pub(super) enabled: bool,
    /// The address tried next.
    pub(super) address: usize,
    pause: Duration,
    not_before: Instant,
    pub(super) attempt: Option<Key>,
    up_since: Instant,
}

impl Dial {
    pub(super) fn new(enabled: bool, now: Instant) -> Self {
        Self {
            enabled,
            address: 0,
            pause: DIAL_PAUSE_MIN,
            not_before: now,
            attempt: None,
            up_since: now,
        }
    }

    /// An attempt failed: later again, and by the next path.
    pub(super) fn note_failure(&mut self, now: Instant) {
        self.attempt = None;
        self.address = self.address.wrapping_add(1);
        self.pause_from(now);
    }

    pub(super) fn note_up(&mut self, now: Instant) {
        self.attempt = None;
        self.address = 0;
        self.up_since = now;
    }

    /// A link that was up ended. One that lasted makes the next trouble news; one that did not is
    /// part of the old trouble.
    pub(super) fn note_lost(&mut self, now: Instant) {
        if now.since(self.up_since) >= DIAL_PAUSE_MAX {
            self.pause = DIAL_PAUSE_MIN;
        }
        self.pause_from(now);
    }

    fn pause_from(&mut self, now: Instant) {
        self.not_before = now.plus(self.pause);
        self.pause = (self.pause * 2).min(DIAL_PAUSE_MAX);
    }
}

/// What is due for a resource now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Duties {
    pub(super) tick: bool,
    pub(super) attach: bool,
    pub(super) dial: bool,
    pub(super) accept: bool,
}

impl Resource {
    pub(super) fn new(
        setup: ResourceSetup,
        engine: Box<dyn ReplicationEngine>,
        dial: Dial,
        now: Instant,
    ) -> Self {
        let state = engine.snapshot();
        let traffic = match setup.row.is_several() {
            true => vec![Traffic::default(); setup.row.count()],
            false => Vec::new(),
        };
        Self {
            setup,
            traffic,
            engine,
            lease_seen: 0,
            lease_void: false,
            forwards_since: clock::since_boot(),
            was_primary: false,
            lossy_view: ViewNumber::NONE,
            removing: false,
            disk: None,
            meta: None,
            letting_go: false,
            attaching: None,
            attach_error: None,
            failed_place: None,
            errors: Vec::new(),
            blamed: None,
            listener: None,
            clients: Standings::default(),
            own_listener: true,
            accept: Accept::Idle,
            link: None,
            dial,
            state,
            state_changed: true,
            touched: true,
            published: None,
            publish_next: now,
        }
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox) {
        self.touched = true;
        self.blamed = None;
        if let Input::DiskDone { op, result: Err(_) } = &input
            && let Some(nr) = self.errors.iter().position(|(failed, _)| failed == op)
        {
            self.blamed = Some(self.errors.swap_remove(nr).1);
        }
        self.engine.handle(now, input, out);
        let is_primary = self.role() == Role::Primary;
        if std::mem::replace(&mut self.was_primary, is_primary) && !is_primary {
            self.forwards_since = clock::since_boot();
        }
    }

    /// A view of which this node is not the Primary.
    pub(super) fn note_view(&mut self, view: &View) {
        if view.lossy && view.number > self.lossy_view {
            self.lossy_view = view.number;
            self.forwards_since = clock::since_boot();
        }
    }

    /// Whether a process that began then may write through this node, which does not serve itself. An
    /// older one may be a guest of which another copy runs elsewhere since this node was superseded, or
    /// one that holds for durable what is lost (R17): whoever was there before must be started anew.
    pub(super) fn may_forward(&self, began: Duration) -> bool {
        began > self.forwards_since
    }

    /// The engine's state may differ from what was published.
    pub(super) fn note_change(&mut self) {
        self.touched = true;
        self.state_changed = true;
    }

    /// Its clients may differ from what was published.
    pub(super) fn note_clients(&mut self) {
        self.touched |= self.clients.has_changed();
        self.state_changed |= self.clients.is_due();
    }

    /// The list of its clients is to be made anew.
    pub(super) fn is_list_due(&self, now: Instant) -> bool {
        self.clients.has_changed() && (self.clients.is_due() || self.publish_next <= now)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.engine.snapshot()
    }

    pub(super) fn role(&self) -> Role {
        self.engine.role()
    }

    /// Payloads that wait for the end of a suspension.
    pub(super) fn suspended_bytes(&self) -> usize {
        self.engine.suspended_bytes()
    }

    /// The newest view the engine knew when it was last looked at: what its frames are labelled with.
    pub(super) fn view(&self) -> ViewNumber {
        self.state.view
    }

    pub(super) fn lease_changed(&self) -> bool {
        let stored = self.setup.lease.load(Ordering::Acquire);
        stored != self.lease_seen && (!self.lease_void || stored == 0)
    }

    /// No lease counts until the controller's thread has noticed the suspension as well, which it
    /// says with a zero: until then it may still store what was granted before.
    pub(super) fn void_lease(&mut self) {
        self.lease_seen = self.setup.lease.load(Ordering::Acquire);
        self.lease_void = self.lease_seen != 0;
    }

    pub(super) fn take_lease(&mut self) -> Instant {
        self.lease_seen = self.setup.lease.load(Ordering::Acquire);
        self.lease_void = false;
        Instant(self.lease_seen)
    }

    /// The queue for what the engine asks now; none once it said that it let the device go.
    pub(super) fn disk_in_use(&mut self) -> Option<&mut DiskQueue> {
        self.disk.as_mut().filter(|_| !self.letting_go)
    }

    /// The same for the metadata area.
    pub(super) fn meta_in_use(&mut self) -> Option<&mut MetaQueue> {
        self.meta.as_mut().filter(|_| !self.letting_go)
    }

    /// Whether zeroes on the local disk of the volume in that place are surely faster than a write.
    pub(super) fn zeroes_are_fast(&self, place: usize, may_unmap: bool) -> bool {
        let disk = self.disk.as_ref().filter(|_| !self.letting_go);
        disk.is_some_and(|queue| queue.zeroes_are_fast(place, may_unmap))
    }

    /// The file that holds what guests of the volume in that place read now, if it is a file and the
    /// local one.
    pub(super) fn file_of_guests(&self, place: usize) -> Option<&IoFile> {
        let disk = self.disk.as_ref().filter(|_| !self.letting_go)?;
        let disk = disk.disk(place)?;
        let knows_holes = disk.kind() == DiskKind::File && self.engine.reads_are_local();
        knows_holes.then(|| disk.file())
    }

    pub(super) fn marks(&self, range: BlockRange, count_max: usize) -> Option<Vec<MarkRun>> {
        self.engine.marks(range, count_max)
    }

    fn volumes(&self, total: BlockCount) -> Vec<VolumeSnapshot> {
        let row = &self.setup.row;
        if !row.is_several() {
            return Vec::new();
        }
        (0..row.count())
            .map(|place| {
                let blocks = row.blocks(place, total);
                VolumeSnapshot {
                    start: blocks.start(),
                    size_blocks: blocks.count().0,
                    marked_blocks: self.engine.marked_blocks(blocks).0,
                    traffic: self.traffic.get(place).copied().unwrap_or_default(),
                }
            })
            .collect()
    }

    pub(super) fn is_letting_go(&self) -> bool {
        self.letting_go
    }

    /// The devices are of no use any more. They stay, with their locks, until nothing can land on
    /// them (R14): completions of a queue that is gone would be lost to the engine.
    pub(super) fn let_go(&mut self) {
        self.letting_go = true;
        self.close_when_idle();
    }

    pub(super) fn close_when_idle(&mut self) {
        if self.letting_go && self.operations_in_flight() == 0 {
            self.letting_go = false;
            self.disk = None;
            self.meta = None;
            self.note_change();
        }
    }

    /// Operations that may still land on its devices (R14).
    pub(super) fn operations_in_flight(&self) -> usize {
        self.disk.as_ref().map_or(0, DiskQueue::in_flight)
            + self.meta.as_ref().map_or(0, MetaQueue::in_flight)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.removing {
            return None;
        }
        let attach = self.attaching.as_ref().map(|attaching| attaching.retry_at);
        let dial = self.needs_dial().then_some(self.dial.not_before);
        let accept = match self.accept {
            Accept::PausedUntil(until) | Accept::UntilPrimary(until) => Some(until),
            Accept::Idle | Accept::InFlight(_) => None,
        };
        let publish = self.touched.then_some(self.publish_next);
        [attach, dial, accept, publish]
            .into_iter()
            .fold(self.engine.next_deadline(), earliest)
    }

    pub(super) fn duties(&self, now: Instant) -> Option<Duties> {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if !due(self.next_deadline()) {
            return None;
        }
        Some(Duties {
            tick: due(self.engine.next_deadline()),
            attach: due(self.attaching.as_ref().map(|attaching| attaching.retry_at)),
            dial: self.wants_dial(now),
            accept: matches!(
                self.accept,
                Accept::PausedUntil(until) | Accept::UntilPrimary(until) if until <= now
            ),
        })
    }

    /// Right after a restart: who comes waits for this node to serve it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.removing && matches!(self.accept, Accept::UntilPrimary(_))
    }

    /// The engine wants a session.
    pub(super) fn wants_link(&self) -> bool {
        !self.removing && self.state.connection != ConnectionState::StandAlone
    }

    fn needs_dial(&self) -> bool {
        let dialling = self.dial.attempt.is_some();
        self.dial.enabled && self.wants_link() && self.link.is_none() && !dialling
    }

    pub(super) fn wants_dial(&self, now: Instant) -> bool {
        self.needs_dial() && self.dial.not_before <= now
    }

    pub(super) fn is_publication_due(&self, now: Instant) -> bool {
        !self.removing && (self.state_changed || self.touched && self.publish_next <= now)
    }

    /// What to publish, unless nothing changed since.
    pub(super) fn next_publication(
        &mut self,
        now: Instant,
        of_loop: BackendKind,
    ) -> Option<ResourceSnapshot> {
        self.touched = self.clients.has_changed();
        self.state_changed = false;
        self.publish_next = now.plus(PUBLISH_INTERVAL);
        self.state = self.engine.snapshot();
        let mut engine = self.state.clone();
        if self.attaching.is_some() && engine.disk == DiskState::Diskless {
            engine.disk = DiskState::Attaching;
        }
        let volumes = self.volumes(BlockCount(engine.size_blocks.unwrap_or(0)));
        let snapshot = ResourceSnapshot {
            engine,
            at: now,
            nbd_clients: self.clients.list(),
            io_backend: self
                .disk
                .as_ref()
                .filter(|_| !self.letting_go)
                .and_then(|queue| queue.disk(0))
                .map(|disk| disk.backend(of_loop).word()),
            attach_error: self.attach_error.clone(),
            volumes,
            failed_place: self.failed_place,
        };
        let differs = self.published.as_ref().is_none_or(|published| {
            published
                != &ResourceSnapshot {
                    at: published.at,
                    ..snapshot.clone()
                }
        });
        if differs {
            self.published = Some(snapshot.clone());
        }
        differs.then_some(snapshot)
    }
}
