//! The replication state machine of one resource, Primary and Secondary alike.
//!
//! [`Engine`] is a value. [`Engine::handle`] takes one [`Input`] and appends every resulting
//! [`Action`]; it never blocks and never reads a clock. Completions come back as inputs, and
//! nothing that promises durability is emitted before the completion that makes it true.
//!
//! Read it as stories, one file each:
//!
//! * a guest's request: `guest` (admission, holding), `gate`, `write`, `read`, `flush`, `edge`
//!   (any alignment → whole blocks), `overlap` (who may touch which blocks), `suspend` (writes wait
//!   for a snapshot);
//! * the other side of a write: `replica`;
//! * what may differ: `tracking` (bitmap, activity log, unretired writes);
//! * meeting the peer: `session`, [`handshake`] (the decision table), `resync`, `target`,
//!   `invalidate` (start from nothing), `grow` (a larger volume), `verify` and `digests` (is it the same on both?);
//! * the local replica: `attach`, and `stall` when it does not answer; role and view: `role`; what
//!   others see: `snapshot`.
//!
//! Dropped alternatives: one state machine for each role (a node changes role with operations in
//! flight, R14, so both would need the same table of them); tasks with channels (their
//! interleavings cannot be enumerated).

mod attach;
pub mod control;
mod digests;
mod edge;
mod flush;
mod gate;
mod grow;
mod guest;
pub mod handshake;
pub mod input;
mod invalidate;
mod ops;
pub mod output;
mod overlap;
mod read;
mod replica;
mod resync;
mod role;
mod session;
mod slab;
mod slow_compare;
mod snapshot;
mod stall;
mod suspend;
mod target;
mod throttle;
mod tracking;
mod verify;
mod write;

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::VecDeque;

pub use control::ResyncOrder;
pub use grow::{GrowEnd, GrowReport, Room};
pub use input::{
    AdminRequest, AttachRequest, DiskReply, GuestKind, GuestRequest, Input, LinkDownReason,
};
pub use output::{
    Action, AttachError, CloseReason, Counters, DiskCommand, Event, GuestError, GuestReply,
    HeldReason, MarkRun, MetaPage, MetaRequest, Outbox, Progress, ReplicaFacts, ReplicaMark,
    Snapshot, Suspension, VerifyEnd, VerifyReport,
};
pub use verify::VerifyOrder;

use self::attach::{Attaching, MetaThen};
use self::flush::{NextRound, Round};
use self::ops::{DiskOp, Op};
use self::overlap::Overlap;
use self::role::{Active, Quiesce};
use self::session::Session;
use self::slab::{Key, Slab};
use self::tracking::{Replica, Unretired};
use crate::protocol::Refusal;
use crate::types::time::earliest;
use crate::types::{
    DiskError, Instant, NodeId, OpId, Payload, ReplicationProtocol, ResourceId, ResyncRate,
    SessionId, View, ViewNumber, VolumeId, VolumeRow, WriteEpoch,
};

/// What an engine is made with; never changes.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This node.
    pub node: NodeId,
    /// The resource.
    pub resource: ResourceId,
    /// The volume, the first of several.
    pub volume: VolumeId,
    /// Where the volumes start: each is a device, and one may hang while the others answer.
    pub row: VolumeRow,
    /// A peer that says nothing for this long is gone.
    pub timeout: Duration,
    /// A disk operation that is not over after this long counts as failed; `None`: never.
    pub disk_timeout: Option<Duration>,
    /// When guests' writes are answered. Below C the peer may lack what a guest was told of.
    pub protocol: ReplicationProtocol,
    /// Compare digests before copying in every resync, not only after a crash.
    pub checksum_first: bool,
    /// How fast resyncs may go, unless an operator orders otherwise.
    pub resync_rate: ResyncRate,
    /// The 99th percentile of guests' writes that a resync is to leave them.
    pub guest_latency_target: Duration,
    /// Random id of this boot.
    pub boot_id: u128,
    /// Random id of this process.
    pub incarnation: u128,
}

/// State of the local backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LocalDisk {
    Diskless,
    Attaching,
    Attached,
    Failed,
    /// Flushed and closed in order.
    Detaching,
    /// Done with; said once no operation of it is under way any more (R14): the executor forgets
    /// the device then, and with it whatever would have completed.
    LettingGo,
}

/// Who waits for or holds a range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LockOwner {
    Write(Key),
    Read(Key),
    Peer(Key),
    Source(Key),
    Target(Key),
    Verify(Key),
    Digests(Key),
}

/// The state machine of one resource on one node.
#[derive(Clone, Debug)]
pub struct Engine {
    config: EngineConfig,
    /// Time of the input being handled.
    now: Instant,
    ops: Slab<Op>,
    /// Disk operations under way: nothing of a new session or activation may pass them (R14).
    disk_ops: usize,
    /// Those of them that only a verify waits for.
    comparing_ops: usize,
    /// Since when a verify has waited for one too long.
    comparing_late_since: Option<Instant>,
    meta_ops: usize,
    /// Grows with each connection.
    era: u64,
    /// Disk and metadata operations of before the present connection.
    old_ops: usize,
    stall: stall::Stall,

    local: LocalDisk,
    attaching: Option<Attaching>,
    replica: Option<Replica>,
    /// The marks may be of equal blocks: the next resync compares digests first.
    coarse: bool,
    detach_flushing: bool,

    active: Option<Active>,
    view: Option<View>,
    lease_until: Instant,
    seal: ViewNumber,
    draining: Option<ViewNumber>,
    /// The Leave the peer was last asked to prepare.
    leave_asked: Option<(SessionId, ViewNumber)>,
    quiesce: Option<Quiesce>,
    peer_lost_reported: bool,
    facts_reported: Option<ReplicaFacts>,

    session: Option<Session>,
    /// When a session whose handshake was done ended last.
    disconnected_at: Option<Instant>,
    connect_wanted: bool,
    refused: Option<Refusal>,
    /// The record that lets the session go on is being made durable; messages wait.
    recording: bool,

    held: VecDeque<GuestRequest>,
    suspend: suspend::Suspend,
    requests: Slab<guest::Request>,
    writes: Slab<write::Write>,
    reads: Slab<read::Read>,
    remote_reads: Slab<read::RemoteRead>,
    /// Parts of admitted requests for which there is no room yet.
    waiting_parts: VecDeque<(Key, edge::Part, bool)>,
    /// Parts that failed before they were submitted, while the gate was shut.
    failed_parts: Vec<(Key, DiskError)>,
    parked_reads: VecDeque<read::ParkedRead>,
    blocked: Vec<Key>,
    blocked_reads: Vec<Key>,
    lost_legs: Vec<Key>,
    overlap: Overlap<LockOwner>,
    /// Who got its blocks and has not started yet; see `release_lock`.
    granted: VecDeque<LockOwner>,
    granting: bool,

    epoch: WriteEpoch,
    /// Writes of the open epoch with a leg under way.
    open_writes: usize,
    /// A guest was told of a write that the peer may not have on its disk: the next one sent is not
    /// to be begun there before that one is over (protocols A and B; interleavings F4).
    answered_ahead: bool,
    /// Bytes of such writes.
    ahead_bytes: u64,
    /// A session of protocol A ended with such writes on their way: only this disk may have them.
    ahead_lost: bool,
    /// Writes the peer has not acknowledged in this session.
    owed_acks: usize,
    unretired: Unretired,
    round: Option<Round>,
    next_round: NextRound,
    last_write: Instant,
    /// Writes that wait for the activity log, in order.
    cold: VecDeque<Key>,
    starved: bool,

    peer_work: Slab<replica::PeerWork>,
    peer_epochs: replica::PeerEpochs,
    peer_order: replica::PeerOrder,
    source_reads: Slab<resync::SourceRead>,
    target_requests: Slab<target::TargetRequest>,
    target_writes: Slab<target::TargetWrite>,
    progress: Option<Progress>,
    control: control::Control,
    throttle: throttle::Throttle,
    invalidate: invalidate::Invalidate,
    grow: grow::Grow,
    verify: verify::Verify,
    digesting: Slab<digests::Digesting>,

    counters: Counters,
}

impl Engine {
    /// Guest write parts in progress; more wait at the gate. Bounds the payload memory of a
    /// Primary whose peer is slow: 1,024 parts of at most 1 MiB, and NBD's own cap is far lower.
    pub const WRITES_MAX: usize = 1024;
    /// Bytes guests were told of before the peer has them on its disk (protocols A and B); more
    /// waits at the gate. What a lost Primary may cost, and what a slow link may hold in memory.
    pub const AHEAD_BYTES_MAX: u64 = 64 << 20;
    /// Guest reads in progress; more wait at the gate, like writes.
    pub const READS_MAX: usize = 1024;
    /// A peer that answers pings but none of what it owes for so long has a hanging disk: it is
    /// lost. Longer than a healthy disk takes to write back its whole cache.
    pub const PEER_STALLED_AFTER: Duration = Duration::from_secs(20);
    /// A disk that does something else meanwhile, or flushes, gets so many disk timeouts.
    pub const SLOW_DISK_TIMEOUTS: u32 = 4;
    /// A disk from which nothing has come for this part of its timeout is no reason to expel the
    /// peer any more.
    pub const DISK_DOUBT_PARTS: u32 = 5;
    /// What is late may be over already and wait to be heard, after the process was stopped: for
    /// so long.
    pub const LATE_GRACE: Duration = Duration::from_millis(100);
    /// Writes between two barriers, so that memory and the marks after a lost session are bounded.
    pub const UNRETIRED_MAX: usize = 4096;
    /// Blocks of such writes: 128 MiB. After a short cut of the link guests wait until they are equal
    /// again, so a second of what a disk writes, not the gigabytes that large writes add up to. Twice as
    /// many wait at the gate.
    pub const UNRETIRED_BLOCKS_MAX: u64 = 1 << 15;
    /// A round closes the last epoch after this much idleness, so that the activity log is not
    /// pinned for ever (interleavings F19).
    pub const IDLE_ROUND_AFTER: Duration = Duration::from_secs(1);
    /// Work for the peer in progress: its window is `WRITES_MAX` writes and as many reads.
    pub const PEER_WORK_MAX: usize = 2 * Self::WRITES_MAX + 64;
    /// Barriers not acknowledged: a source has one under way at a time.
    pub const PEER_EPOCHS_MAX: usize = 16;
    /// Messages kept while a record is made durable: a window of writes and some control.
    pub const DEFERRED_MAX: usize = 2 * Self::WRITES_MAX + 64;
    /// Blocks in one resync request: 512 KiB, large enough for any disk, small enough that guest
    /// writes do not wait long behind its lock.
    pub const RESYNC_REQUEST_BLOCKS: u64 = 128;
    /// Blocks a source could not read are asked for again after this long: short enough that a
    /// passing fault does not show, long enough not to hammer a bad sector.
    pub const RESYNC_RETRY_AFTER: Duration = Duration::from_secs(1);
    /// Resync requests a target keeps under way: 8 MiB in flight.
    pub const RESYNC_WINDOW: usize = 16;
    /// Resync requests a source serves at once; a target that asks for more is broken.
    pub const RESYNC_REQUESTS_MAX: usize = 64;
    /// Cleared marks reach the disk after this many blocks: 1 GiB is copied again at most.
    pub const SETTLE_EVERY_BLOCKS: u64 = 1 << 18;
    /// Pages in one metadata request: 1 MiB.
    pub const META_PAGES_MAX: usize = 256;

    /// An engine with no disk, no session and no role.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        let stall = stall::Stall::new(config.row.count());
        Self {
            config,
            now: Instant::ZERO,
            ops: Slab::default(),
            disk_ops: 0,
            comparing_ops: 0,
            comparing_late_since: None,
            meta_ops: 0,
            era: 0,
            old_ops: 0,
            stall,
            local: LocalDisk::Diskless,
            attaching: None,
            replica: None,
            coarse: false,
            detach_flushing: false,
            active: None,
            view: None,
            lease_until: Instant::ZERO,
            seal: ViewNumber::NONE,
            draining: None,
            leave_asked: None,
            quiesce: None,
            peer_lost_reported: false,
            facts_reported: None,
            session: None,
            disconnected_at: None,
            connect_wanted: true,
            refused: None,
            recording: false,
            held: VecDeque::new(),
            suspend: suspend::Suspend::default(),
            requests: Slab::default(),
            writes: Slab::default(),
            reads: Slab::default(),
            remote_reads: Slab::default(),
            waiting_parts: VecDeque::new(),
            failed_parts: Vec::new(),
            parked_reads: VecDeque::new(),
            blocked: Vec::new(),
            blocked_reads: Vec::new(),
            lost_legs: Vec::new(),
            overlap: Overlap::default(),
            granted: VecDeque::new(),
            granting: false,
            epoch: WriteEpoch(1),
            open_writes: 0,
            answered_ahead: false,
            ahead_bytes: 0,
            ahead_lost: false,
            owed_acks: 0,
            unretired: Unretired::default(),
            round: None,
            next_round: NextRound::default(),
            last_write: Instant::ZERO,
            cold: VecDeque::new(),
            starved: false,
            peer_work: Slab::default(),
            peer_epochs: replica::PeerEpochs::default(),
            peer_order: replica::PeerOrder::default(),
            source_reads: Slab::default(),
            target_requests: Slab::default(),
            target_writes: Slab::default(),
            progress: None,
            control: control::Control::default(),
            throttle: throttle::Throttle::new(),
            invalidate: invalidate::Invalidate::default(),
            grow: grow::Grow::default(),
            verify: verify::Verify::default(),
            digesting: Slab::default(),
            counters: Counters::default(),
        }
    }

    /// Consumes one input and appends every resulting action, in order. `now` never goes back.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox) {
        debug_assert!(
            now >= self.now,
            "time went back from {:?} to {now:?}",
            self.now
        );
        self.now = now;
        match input {
            Input::Guest(guest) => self.handle_guest(guest, out),
            Input::GuestGone(request) => self.forget_guest(request, out),
            Input::DiskDone { op, result } => self.handle_disk_done(op, result, out),
            Input::MetaDone { op, result } => self.handle_meta_done(op, result, out),
            // The superblock holds the same mark; that both places failed changes nothing here.
            Input::MarkDone { op, result: _ } => drop(self.ops.remove(Key(op.0))),
            Input::LinkUp { session } => self.handle_link_up(session, out),
            Input::Received { session, message } => self.handle_received(session, message, out),
            Input::LinkDown { session, reason } => self.handle_link_down(session, reason, out),
            // None: what was granted is void (R2). Any other is a grant, and a later one counts.
            Input::Lease { until } if until == Instant::ZERO => self.lease_until = until,
            Input::Lease { until } => self.lease_until = self.lease_until.max(until),
            Input::Committed(committed) => self.committed(&committed, out),
            Input::Learned(view) => self.learned(view, out),
            Input::Activate(activation) => self.activate(&activation, out),
            Input::StepDown => self.step_down(out),
            Input::Drain { seal } => self.drain(seal, out),
            Input::BeginAdd { view } => self.begin_add(view, out),
            Input::ProposalAborted => self.on_proposal_aborted(out),
            Input::Admin(request) => self.handle_admin(request, out),
            Input::Tick => {}
        }
        self.pump(out);
    }

    /// When `Input::Tick` is wanted, if nothing else comes before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let idle = (self.unretired_len() > 0 && self.round.is_none() && self.active.is_some())
            .then(|| self.last_write.plus(Self::IDLE_ROUND_AFTER));
        let session = earliest(self.session_deadline(), self.target_deadline());
        let verify = earliest(self.verify_deadline(), self.comparing_deadline());
        let session = earliest(earliest(session, verify), self.throttle_deadline());
        earliest(earliest(session, idle), self.stall_deadline())
    }

    fn handle_admin(&mut self, request: AdminRequest, out: &mut Outbox) {
        match request {
            AdminRequest::Attach(request) => self.attach(request, out),
            AdminRequest::Detach => self.detach(out),
            AdminRequest::Connect => {
                self.connect_wanted = true;
                self.refused = None;
            }
            AdminRequest::Disconnect => {
                self.connect_wanted = false;
                self.end_session(CloseReason::Ordered, out);
            }
            AdminRequest::Resync(order) => self.handle_resync_order(order, out),
            AdminRequest::Verify(order) => self.handle_verify_order(order, out),
            AdminRequest::Invalidate => self.begin_invalidate(out),
            AdminRequest::KeepData => self.end_invalidate(out),
            AdminRequest::Measured { device, meta } => self.note_room(device, meta, out),
            AdminRequest::Grow { to } => self.begin_grow(to, out),
            AdminRequest::SuspendIo => self.begin_suspend(out),
            AdminRequest::ResumeIo => self.end_suspend(out),
            AdminRequest::Quiesce => self.begin_quiesce(out),
            AdminRequest::Unquiesce => {
                self.quiesce = None;
                self.next_round.quiesce = false;
            }
        }
    }

    fn handle_disk_done(
        &mut self,
        op: OpId,
        result: Result<DiskReply, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(Op::Disk { what, era, on }) = self.ops.remove(Key(op.0)) else {
            return;
        };
        self.disk_ops -= 1;
        if what.only_compares() {
            self.comparing_ops -= 1;
        } else {
            self.note_op_ended(era);
        }
        self.note_disk_answer(what, on);
        self.route_disk_result(what, result, out);
    }

    fn route_disk_result(
        &mut self,
        what: DiskOp,
        result: Result<DiskReply, DiskError>,
        out: &mut Outbox,
    ) {
        match what {
            DiskOp::Late => {}
            DiskOp::Write(key) => self.on_local_write(key, done(result), out),
            DiskOp::Edge { .. } | DiskOp::Read(_) => match data(result) {
                Ok(data) => self.on_guest_blocks(what, Ok(data), out),
                Err(error) => self.on_local_read_error(what, error, out),
            },
            DiskOp::RoundFlush(epoch) => self.on_round_flush(epoch, done(result), out),
            DiskOp::PeerWrite(key) => self.on_peer_write(key, done(result), out),
            DiskOp::PeerFlush => self.on_peer_flush(done(result), out),
            DiskOp::PeerRead(key) => self.on_peer_read(key, data(result), out),
            DiskOp::SourceRead(key) => self.on_source_read(key, data(result), out),
            DiskOp::TargetDigest(key) => self.on_target_digest(key, data(result), out),
            DiskOp::TargetWrite(key) => self.on_target_write(key, done(result), out),
            DiskOp::VerifyRead(key) => self.on_verify_read(key, data(result), out),
            DiskOp::DigestRead(key) => self.on_digest_read(key, data(result), out),
            DiskOp::GrowZeroes(run) => self.on_grow_zeroes(run, done(result), out),
            DiskOp::GrowFlush(run) => self.on_grow_flush(run, done(result), out),
            DiskOp::DetachFlush => self.on_detach_flush(done(result), out),
        }
    }

    /// Everything that the input may have made possible, cheap when nothing is. Two passes: what
    /// the first lets go may open the gate for what it held.
    fn pump(&mut self, out: &mut Outbox) {
        self.tick_disk(out);
        self.pump_serving(out);
        for _ in 0..2 {
            for key in core::mem::take(&mut self.lost_legs) {
                self.settle_write(key, out);
            }
            self.pump_activity_log(out);
            self.pump_blocked(out);
            self.pump_failed_parts(out);
            self.pump_blocked_reads(out);
            self.pump_parked_reads(out);
            self.pump_waiting_parts(out);
            self.pump_held(out);
            self.settle_round(out);
            self.round_when_due(out);
            self.pump_round(out);
        }
        self.tick_comparing(out);
        self.pump_throttle(out);
        self.pump_verify(out);
        self.tick_session(out);
        self.tick_target(out);
        self.pump_leave(out);
        self.pump_invalidate(out);
        self.pump_grow(out);
        self.pump_detach(out);
        self.pump_drain(out);
        self.pump_quiesce(out);
        self.pump_suspend(out);
        self.tidy_secondary(out);
        self.pump_greeting(out);
        self.report_facts(out);
        self.report_lost_peer(out);
    }

    /// The controller decides from what the replica says of itself: told whenever that changed.
    fn report_facts(&mut self, out: &mut Outbox) {
        let facts = self.replica_facts();
        if facts != self.facts_reported
            && let Some(facts) = facts
        {
            out.push(Action::Event(Event::Replica(facts)));
        }
        self.facts_reported = facts;
    }

    /// Guests wait for the peer or for its Remove: the controller must know, once each time. A peer
    /// that is being made equal again is not lost, unless a block that cannot be read makes that
    /// impossible; one that needs a resync as a stranger is, even while connected, because only a
    /// Remove and an Add can make it a replica again.
    fn report_lost_peer(&mut self, out: &mut Outbox) {
        let serving = self.active.as_ref().is_some_and(|active| active.serving);
        let equalising = self.will_be_equal();
        // What keeps the session from being made again may be this side's own disk: no reason to
        // do without the replica that may answer.
        let own_fault = !self.disk_is_quiet();
        let lost = serving && self.strict() && !self.peer_is_equal() && !equalising && !own_fault;
        if lost && !self.peer_lost_reported {
            out.push(Action::Event(Event::PeerLost));
        }
        self.peer_lost_reported = lost;
    }
}

fn done(result: Result<DiskReply, DiskError>) -> Result<(), DiskError> {
    result.map(|_| ())
}

fn data(result: Result<DiskReply, DiskError>) -> Result<Payload, DiskError> {
    match result? {
        DiskReply::Data(data) => Ok(data),
        DiskReply::Done => Err(DiskError::Short),
    }
}
