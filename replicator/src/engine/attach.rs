//! The local replica: attaching, recording what it is, failing, letting go.
//!
//! What is promised is recorded first: "in sync as of this view" before guests are served, "resync
//! target" before the first foreign block lands, "failed" in two places before its effect (R23).

use super::grow::GrowEnd;
use super::input::{AttachRequest, DiskReply};
use super::ops::{DiskOp, Op};
use super::output::{
    Action, AttachError, CloseReason, DiskCommand, Event, MetaRequest, Outbox, VerifyEnd,
};
use super::session::{Phase, Session};
use super::slab::Key;
use super::tracking::Replica;
use super::{Engine, LocalDisk, ReplicaMark};
use crate::meta::{Loader, OpenError, ReplicaState, Superblock};
use crate::protocol::{Message, ReplicaClaim, WriteId};
use crate::types::{
    BlockCount, DiskError, OpId, ReplicaId, ReplicationProtocol, SessionId, ViewNumber,
};

/// What follows a metadata operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaThen {
    /// Nothing waits for it.
    Nothing,
    /// Feed the loader.
    Load,
    /// The attach is recorded.
    Attached,
    /// The activation is recorded: guests may be served.
    Activated(ViewNumber),
    /// An activity-log transaction is durable.
    ActivityLog,
    /// Union and "resync target" are recorded.
    TargetRecorded(SessionId),
    /// "Nothing is missing any more" is recorded.
    WholeRecorded(SessionId),
    /// "In sync from" is recorded.
    AddRecorded(ViewNumber, SessionId),
    /// "The Primary's replica needs everything" is recorded.
    LeaveRecorded(ViewNumber, SessionId),
    /// "Nothing here is of use" is recorded.
    Invalidated,
    /// A part of a larger bitmap is written, for this run.
    GrowPages(u64),
    /// The larger volume is recorded, for this run.
    Grown(u64),
    /// "Closed" is recorded.
    Closed,
}

/// An attach in progress.
#[derive(Clone, Debug)]
pub(super) struct Attaching {
    request: AttachRequest,
    loader: Loader,
}

impl Engine {
    pub(super) fn attach(&mut self, request: AttachRequest, out: &mut Outbox) {
        if matches!(
            self.local,
            LocalDisk::Attached
                | LocalDisk::Attaching
                | LocalDisk::Detaching
                | LocalDisk::LettingGo
        ) {
            return;
        }
        if self.active.is_some() {
            // The old image must not be taken for the one that serves.
            out.push(Action::Event(Event::Attached(Err(AttachError::Serving))));
            return;
        }
        if self.disk_ops > 0 || self.meta_ops > 0 {
            // What the failed disk still does may land on what is resynced (R14).
            let error = AttachError::Disk(DiskError::Timeout);
            out.push(Action::Event(Event::Attached(Err(error))));
            return;
        }
        self.end_session(CloseReason::DiskChanged, out);
        self.forget_replica();
        self.seal = self.seal.max(request.seal);
        let loader = Loader::new(request.meta_len);
        self.attaching = Some(Attaching { request, loader });
        self.set_local(LocalDisk::Attaching, out);
        self.load_next(out);
    }

    /// Writes still under way give no references back to the activity log of a later replica.
    fn forget_replica(&mut self) {
        self.replica = None;
        self.forget_room();
        for key in self.writes.keys() {
            if let Some(submitted) = self.submitted_mut(key) {
                submitted.logged = false;
            }
        }
    }

    fn set_local(&mut self, local: LocalDisk, out: &mut Outbox) {
        self.local = local;
        out.push(Action::Event(Event::Changed));
    }

    fn load_next(&mut self, out: &mut Outbox) {
        let Some(attaching) = &self.attaching else {
            return;
        };
        match attaching.loader.next_read() {
            Some(range) => {
                let (offset, len) = (range.offset(), range.len());
                self.meta(MetaRequest::Read { offset, len }, MetaThen::Load, out);
            }
            None => self.finish_load(out),
        }
    }

    fn finish_load(&mut self, out: &mut Outbox) {
        let Some(Attaching { request, loader }) = self.attaching.take() else {
            return;
        };
        let recovered = match loader.finish() {
            Ok(recovered) => recovered,
            Err(error) => return self.refuse_attach(attach_error(error), out),
        };
        let superblock = recovered.superblock.current();
        if let Err(error) = self.check_identity(superblock, &request) {
            return self.refuse_attach(error, out);
        }
        let lost_volatile = superblock.open && superblock.boot_id != request.boot_id;
        let replica_id = superblock.replica;
        self.coarse = superblock.bits_coarse;
        self.replica = Some(Replica {
            superblock: recovered.superblock,
            activity_log: recovered.activity_log,
            bitmap: recovered.bitmap,
            lost_volatile,
        });
        if let Some(repair) = recovered.activity_log_repair {
            self.persist_bitmap(MetaThen::Nothing, out);
            self.meta_write(repair, MetaThen::Nothing, out);
        }
        self.persist_bitmap(MetaThen::Nothing, out);
        self.reset_activity_log(out);
        let failed = request.marked_failed;
        self.mark(ReplicaMark::Attached(replica_id), out);
        self.record(
            |superblock| {
                superblock.open = true;
                // While writes of another boot are missing, that stays known to the next attach.
                if !lost_volatile {
                    superblock.boot_id = request.boot_id;
                }
                if failed {
                    superblock.state = ReplicaState::Failed;
                }
            },
            MetaThen::Attached,
            out,
        );
    }

    fn check_identity(
        &self,
        superblock: &Superblock,
        request: &AttachRequest,
    ) -> Result<(), AttachError> {
        let own = superblock.resource == self.config.resource
            && superblock.volume == self.config.volume
            && superblock.node == self.config.node;
        if !own {
            return Err(AttachError::Foreign);
        }
        if request
            .expected_replica
            .is_some_and(|expected| expected != superblock.replica)
        {
            return Err(AttachError::OtherReplica);
        }
        if BlockCount::whole_blocks_in(request.device_len) < superblock.size {
            return Err(AttachError::DeviceTooSmall);
        }
        Ok(())
    }

    fn refuse_attach(&mut self, error: AttachError, out: &mut Outbox) {
        self.forget_replica();
        self.attaching = None;
        self.set_local(LocalDisk::Diskless, out);
        out.push(Action::Event(Event::Attached(Err(error))));
    }

    /// Changes the superblock durably.
    pub(super) fn record(
        &mut self,
        change: impl FnOnce(&mut Superblock),
        then: MetaThen,
        out: &mut Outbox,
    ) {
        let coarse = self.coarse;
        let Some(replica) = &mut self.replica else {
            return;
        };
        let page = replica.superblock.next_write(|superblock| {
            superblock.bits_coarse = coarse;
            change(superblock);
        });
        self.counters.superblock_writes += 1;
        self.meta_write(vec![page], then, out);
    }

    pub(super) fn mark(&mut self, mark: ReplicaMark, out: &mut Outbox) {
        let key = self.ops.insert(Op::Mark);
        out.push(Action::Mark {
            op: OpId(key.0),
            mark,
        });
    }

    pub(super) fn handle_meta_done(
        &mut self,
        op: OpId,
        result: Result<DiskReply, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(Op::Meta { then, era }) = self.ops.remove(Key(op.0)) else {
            return;
        };
        self.meta_ops -= 1;
        self.note_op_ended(era);
        self.note_meta_answer();
        match result {
            Ok(reply) => self.on_meta(then, reply, out),
            Err(error) if self.local == LocalDisk::Attaching => {
                self.refuse_attach(AttachError::Disk(error), out);
            }
            Err(error) => {
                if then == MetaThen::Closed {
                    self.on_closed(out);
                }
                if then == MetaThen::Invalidated {
                    self.on_invalidated(false, out);
                }
                self.fail_local_disk(error, out);
            }
        }
    }

    fn on_meta(&mut self, then: MetaThen, reply: DiskReply, out: &mut Outbox) {
        let session = self.session.as_ref().map(|session| session.id);
        match then {
            MetaThen::Nothing => {}
            MetaThen::Load => {
                if let (Some(attaching), DiskReply::Data(bytes)) = (&mut self.attaching, reply) {
                    attaching.loader.feed(&bytes);
                    self.load_next(out);
                }
            }
            MetaThen::Attached => {
                if self.local == LocalDisk::Attaching
                    && let Some(replica) = self.replica_id()
                {
                    self.set_local(LocalDisk::Attached, out);
                    out.push(Action::Event(Event::Attached(Ok(replica))));
                    self.align_with_view(out);
                }
            }
            MetaThen::Activated(view) => self.on_activation_recorded(view, out),
            MetaThen::ActivityLog => self.on_activity_log_written(out),
            MetaThen::TargetRecorded(of) if session == Some(of) => self.on_target_recorded(out),
            MetaThen::WholeRecorded(of) if session == Some(of) => self.on_whole_recorded(out),
            MetaThen::AddRecorded(view, of) if session == Some(of) => {
                self.send(Message::AddReady { view }, out);
            }
            MetaThen::LeaveRecorded(view, of) if session == Some(of) => {
                self.send(Message::LeaveReady { view }, out);
            }
            MetaThen::TargetRecorded(_)
            | MetaThen::WholeRecorded(_)
            | MetaThen::AddRecorded(..)
            | MetaThen::LeaveRecorded(..) => {}
            MetaThen::Invalidated => self.on_invalidated(true, out),
            MetaThen::GrowPages(run) => self.write_growth(run, out),
            MetaThen::Grown(run) => self.on_growth_recorded(run, out),
            MetaThen::Closed => self.on_closed(out),
        }
    }

    pub(super) fn replica_id(&self) -> Option<ReplicaId> {
        Some(self.replica.as_ref()?.superblock.current().replica)
    }

    pub(super) fn replica_state(&self) -> Option<ReplicaState> {
        Some(self.replica.as_ref()?.superblock.current().state)
    }

    /// What the replica says of itself; nothing when it cannot be used, or when this node serves
    /// from the peer's because its own was left out of the view.
    pub(super) fn claim(&self) -> Option<ReplicaClaim> {
        let left = self
            .active
            .as_ref()
            .is_some_and(|active| !active.view.in_sync.contains(self.config.node));
        if self.local != LocalDisk::Attached || left {
            return None;
        }
        let replica = self.replica.as_ref()?;
        let superblock = replica.superblock.current();
        let failed = superblock.state == ReplicaState::Failed;
        let founded = superblock.data_generation.is_some();
        Some(ReplicaClaim {
            replica: superblock.replica,
            data_generation: superblock.data_generation,
            // A Primary's volume, and what another replica has room for: it may not have heard of the
            // view yet that made the volume larger.
            size_blocks: if founded && self.active.is_some() {
                self.volume_blocks().0
            } else {
                replica.bitmap.size().0
            },
            blank: superblock.state == ReplicaState::Blank,
            zero_proven: superblock.zero_proven && !failed,
            bitmap_base: superblock.bitmap_base.filter(|_| !failed),
            dirty_blocks: replica.bitmap.count().0,
            marks_are_coarse: self.coarse,
            inconsistent: failed
                || (superblock.state == ReplicaState::SyncTarget
                    && superblock.in_sync_from.is_none()),
            lost_volatile: replica.lost_volatile,
        })
    }

    /// Source: the marks are relative to this peer from now on, and durable before that is said.
    pub(super) fn record_base(&mut self, peer: Option<ReplicaId>, out: &mut Outbox) {
        self.persist_bitmap(MetaThen::Nothing, out);
        self.record(
            |superblock| {
                superblock.bitmap_base = peer;
                superblock.zero_proven = false;
                superblock.full_sync_needed = false;
            },
            MetaThen::Nothing,
            out,
        );
    }

    /// Target: marks united, lineage and base taken over, "resync target" unless it still holds
    /// every acknowledged write (promise 8).
    pub(super) fn record_target(&mut self, out: &mut Outbox) {
        let Some(session) = &self.session else { return };
        let (Some(sync), Some(peer)) = (self.sync_of(), &session.peer) else {
            return;
        };
        let Some(source) = peer.replica.clone() else {
            return;
        };
        let (id, marked) = (session.id, self.dirty_blocks() > 0);
        self.recording = true;
        self.coarse |= sync.coarse;
        self.persist_bitmap(MetaThen::Nothing, out);
        self.record(
            |superblock| {
                superblock.data_generation = source.data_generation;
                superblock.bitmap_base = Some(source.replica);
                superblock.zero_proven = false;
                superblock.full_sync_needed = false;
                if !sync.equalise {
                    superblock.in_sync_from = None;
                    superblock.state = match superblock.state {
                        _ if marked => ReplicaState::SyncTarget,
                        ReplicaState::SyncTarget => ReplicaState::SyncTarget,
                        _ => ReplicaState::Outdated,
                    };
                }
            },
            MetaThen::TargetRecorded(id),
            out,
        );
    }

    /// Target that the Primary's view names in `in_sync`: the source has made good whatever was
    /// missing. From here on this replica counts as one that kept everything (R16), durably before
    /// anything is acknowledged because of that.
    pub(super) fn record_whole(&mut self, out: &mut Outbox) {
        let Some(session) = &self.session else { return };
        let view = session
            .peer
            .as_ref()
            .map_or(ViewNumber::NONE, |peer| peer.view);
        let (session, boot_id, behind) = (session.id, self.keeper(), self.takes_under_a());
        let Some(replica) = &mut self.replica else {
            return;
        };
        let current = replica.superblock.current();
        let recorded = current.boot_id == boot_id && current.may_be_behind == behind;
        let lost = core::mem::take(&mut replica.lost_volatile);
        let state = replica.superblock.current().state;
        if !lost && recorded && matches!(state, ReplicaState::InSync { .. }) {
            return;
        }
        self.recording = true;
        self.record(
            |superblock| {
                superblock.boot_id = boot_id;
                superblock.may_be_behind = behind;
                if !matches!(state, ReplicaState::InSync { .. }) {
                    superblock.state = ReplicaState::InSync { since: view };
                    superblock.in_sync_from = None;
                }
            },
            MetaThen::WholeRecorded(session),
            out,
        );
    }

    /// What keeps that for which this replica answers in the present session: its host's memory, or
    /// below protocol C not even that, but this process's. Of no boot, any start but one after an
    /// orderly end finds it lost (R16), whatever that process is configured with.
    fn keeper(&self) -> u128 {
        let session = self.session.as_ref();
        // A Primary without a disk writes under C.
        let forwarded = session.is_some_and(|it| matches!(it.phase, Phase::ForwardTarget));
        match session.map(Session::protocol) {
            Some(ReplicationProtocol::A | ReplicationProtocol::B) if !forwarded => 0,
            _ => self.config.boot_id,
        }
    }

    /// Guests of the present session's Primary may be told of writes before they come here.
    fn takes_under_a(&self) -> bool {
        let session = self.session.as_ref();
        let forwarded = session.is_some_and(|it| matches!(it.phase, Phase::ForwardTarget));
        !forwarded && session.is_some_and(|it| it.protocol() == ReplicationProtocol::A)
    }

    /// Target: "in sync from `view` on", void unless the register agrees (R19).
    pub(super) fn record_in_sync_from(&mut self, view: ViewNumber, out: &mut Outbox) {
        let Some(session) = self.session.as_ref().map(|session| session.id) else {
            return;
        };
        let (boot_id, behind) = (self.keeper(), self.takes_under_a());
        if let Some(replica) = &mut self.replica {
            replica.lost_volatile = false;
        }
        // Or a restart before this node hears of the view would find the replica failed.
        self.mark(ReplicaMark::Clean, out);
        self.record(
            |superblock| {
                superblock.in_sync_from = Some(view);
                superblock.boot_id = boot_id;
                superblock.may_be_behind = behind;
            },
            MetaThen::AddRecorded(view, session),
            out,
        );
    }

    /// The Primary's disk failed: its replica gets everything when it comes back, so no mark has to
    /// be kept for it (R18).
    pub(super) fn on_leave_marks(&mut self, view: ViewNumber, out: &mut Outbox) {
        let Some(session) = self.session.as_ref().map(|session| session.id) else {
            return;
        };
        // A Remove that is still on its way makes this no copy to give up: it is the whole one.
        self.end_invalidate(out);
        self.record(
            |superblock| {
                superblock.bitmap_base = None;
                superblock.zero_proven = false;
            },
            MetaThen::LeaveRecorded(view, session),
            out,
        );
    }

    /// A write, flush or metadata write failed: this replica is out, at once and for good (promise
    /// 6), and that is written down in two places before anything depends on it (R23).
    pub(super) fn fail_local_disk(&mut self, error: DiskError, out: &mut Outbox) {
        self.counters.io_errors += 1;
        if !matches!(self.local, LocalDisk::Attached | LocalDisk::Detaching) {
            return;
        }
        // The only replica of the view stays what it is: nothing can be acknowledged without it, so
        // nothing depends on the mark, and one that outlived the cause (a full filesystem) could
        // never be promoted again. But what was not flushed may be gone, as after a power cut: of
        // no boot, so that the next activation is a lossy one (R17).
        // The same goes for one that alone has what guests were told of (protocol A).
        if self.is_only_replica() || (self.active.is_some() && self.ahead_lost) {
            self.record(|superblock| superblock.boot_id = 0, MetaThen::Nothing, out);
        } else {
            self.mark(ReplicaMark::Failed, out);
            self.record(
                |superblock| superblock.state = ReplicaState::Failed,
                MetaThen::Nothing,
                out,
            );
        }
        if self.local == LocalDisk::Detaching {
            // It is let go of all the same, as what it is.
            return;
        }
        self.set_local(LocalDisk::Failed, out);
        out.push(Action::Event(Event::DiskFailed(error)));
        self.fail_round(error);
        self.end_verify(VerifyEnd::DiskFailed, out);
        self.end_grow(GrowEnd::DiskFailed(error), out);
        // An activation this replica could not record any more goes on from the peer's.
        if let Some(view) = self.active.as_ref().map(|active| active.began) {
            self.on_activation_recorded(view, out);
        }
        // A Primary leaves (`pump_leave`), and the only replica is no source any more: it can flush
        // nothing, so no mark may be cleared for it. A Secondary says so and goes.
        if self.active.is_some() && self.is_only_replica() {
            self.end_session(CloseReason::DiskChanged, out);
        } else if self.active.is_none() && self.session.is_some() {
            self.send(
                Message::NegAck {
                    write: WriteId(0),
                    error: error.into(),
                },
                out,
            );
            self.end_session(CloseReason::DiskChanged, out);
        }
    }

    /// The replica had failed when a Remove that was on its way made it the only one: what would
    /// have been written down then (`fail_local_disk`) counts, or nobody could ever serve again.
    pub(super) fn record_only(&mut self, view: ViewNumber, out: &mut Outbox) {
        self.mark(ReplicaMark::Clean, out);
        self.record(
            |superblock| {
                superblock.state = ReplicaState::InSync { since: view };
                superblock.boot_id = 0;
            },
            MetaThen::Nothing,
            out,
        );
    }

    /// The local disk failed: as soon as the peer is equal it serves from here on, once the Leave
    /// is committed. Asked once a session and view.
    pub(super) fn pump_leave(&mut self, out: &mut Outbox) {
        if !self.leaving() {
            return;
        }
        if !self.peer_is_equal() {
            // One that was still being made equal is met again, as the only replica left.
            if self.strict() && (self.session_is_source() || self.waits_for_remove()) {
                self.end_session(CloseReason::DiskChanged, out);
            }
            return;
        }
        let peer = self.config.node.peer();
        let (Some(active), Some(session)) = (&self.active, &mut self.session) else {
            return;
        };
        let asked = (session.id, active.view.number.next());
        if self.leave_asked == Some(asked) || !active.view.in_sync.contains(peer) {
            return;
        }
        self.leave_asked = Some(asked);
        session.phase = Phase::ForwardSource;
        self.send(Message::LeaveMarks { view: asked.1 }, out);
    }

    /// The peer said that its disk failed: it acknowledges nothing any more.
    pub(super) fn on_peer_disk_failed(&mut self, out: &mut Outbox) {
        out.push(Action::Event(Event::PeerDiskFailed));
        self.end_verify(VerifyEnd::DiskFailed, out);
        self.end_session(CloseReason::DiskChanged, out);
    }

    /// Lets go of the device: flushed and marked closed, so that the next attach is a clean one.
    pub(super) fn detach(&mut self, out: &mut Outbox) {
        match self.local {
            LocalDisk::Attached if self.active.is_none() => {
                self.end_session(CloseReason::DiskChanged, out);
                self.set_local(LocalDisk::Detaching, out);
            }
            // There is nothing to flush for; what it still does may land all the same.
            LocalDisk::Failed => self.let_go(out),
            // Nobody counted on it yet. Its last metadata operation may hang: that is waited for.
            LocalDisk::Attaching => {
                self.attaching = None;
                self.let_go(out);
            }
            LocalDisk::Diskless => out.push(Action::Event(Event::Detached)),
            LocalDisk::Attached | LocalDisk::Detaching | LocalDisk::LettingGo => {}
        }
    }

    /// Flushes, or says that the device is let go, once nothing else is under way.
    pub(super) fn pump_detach(&mut self, out: &mut Outbox) {
        if self.disk_ops > 0 || self.meta_ops > 0 || !self.peer_work.is_empty() {
            return;
        }
        match self.local {
            LocalDisk::Detaching if !self.detach_flushing => {
                self.detach_flushing = true;
                self.disk(DiskOp::DetachFlush, DiskCommand::Flush, out);
            }
            LocalDisk::LettingGo => {
                self.set_local(LocalDisk::Diskless, out);
                out.push(Action::Event(Event::Detached));
            }
            _ => {}
        }
    }

    fn let_go(&mut self, out: &mut Outbox) {
        self.forget_replica();
        self.set_local(LocalDisk::LettingGo, out);
    }

    pub(super) fn on_detach_flush(&mut self, result: Result<(), DiskError>, out: &mut Outbox) {
        self.persist_bitmap(MetaThen::Nothing, out);
        let clean = result.is_ok();
        // Writes that an earlier boot lost are not there because this one flushed.
        let whole = self.replica.as_ref().is_some_and(|it| !it.lost_volatile);
        let only = self.is_only_replica();
        self.record(
            |superblock| {
                superblock.open &= !(clean && whole);
                // As in `fail_local_disk`.
                if !clean && only {
                    superblock.boot_id = 0;
                } else if !clean {
                    superblock.state = ReplicaState::Failed;
                }
            },
            MetaThen::Closed,
            out,
        );
    }

    fn on_closed(&mut self, out: &mut Outbox) {
        self.detach_flushing = false;
        // The record of a failure while it was closed may still be under way.
        self.let_go(out);
    }
}

fn attach_error(error: OpenError) -> AttachError {
    match error {
        OpenError::NoMetadata => AttachError::NoMetadata,
        OpenError::NotOurs => AttachError::Foreign,
        OpenError::TooNew { .. } => AttachError::TooNew,
        _ => AttachError::Damaged,
    }
}
