//! An engine's inputs and actions, as the daemon's shard carries them out.

use replicator::engine::{
    Action, AdminRequest, AttachRequest, Engine, EngineConfig, Event as EngineEvent, GuestError,
    GuestReply, Input, ReplicaFacts as EngineFacts, ReplicaMark as EngineMark,
};
use replicator::protocol::Message;
use replicator::types::time::Duration;
use replicator::types::{
    BlockCount, ByteLen, DiskError, NodeId, OpId, RequestId, ResyncRate, VolumeId, VolumeRow,
};
use twinblk::controller::input::ReplicaMark;
use twinblk::controller::{EngineReport, Input as ControllerInput, ReplicaFacts};

use crate::checkers::Violation;
use crate::rng::{Rng, Stream};
use crate::trace::code_of;

use super::node::Arrival;
use super::{Event, Planted, World};

impl World {
    pub(super) fn new_engine(&self, node: NodeId) -> Engine {
        let target = &self.nodes[node.index()];
        let life = u64::from(target.life);
        let incarnation = Rng::keyed(
            self.plan.seed,
            Stream::Identity,
            life << 8 | u64::from(node.raw()) | 128,
        );
        Engine::new(EngineConfig {
            node,
            resource: self.resource,
            volume: VolumeId(0),
            row: VolumeRow::only(VolumeId(0)),
            boot_id: target.boot_id,
            incarnation: incarnation.clone().next_id(),
            timeout: self.peer_timeout(),
            disk_timeout: Some(self.disk_timeout()),
            protocol: self.plan.options.protocol,
            checksum_first: self.plan.seed.is_multiple_of(4),
            resync_rate: match self.plan.seed % 3 {
                0 => ResyncRate::Unlimited,
                _ => ResyncRate::Auto,
            },
            guest_latency_target: Duration::from_millis(10),
        })
    }

    fn peer_timeout(&self) -> Duration {
        Duration::from_millis(match self.plan.options.profile {
            crate::plan::Profile::Fast => 400,
            crate::plan::Profile::Default => 2_000,
        })
    }

    /// Above the latency of a slow disk, and short enough to run out within a run.
    pub(super) fn disk_timeout(&self) -> Duration {
        self.peer_timeout()
    }

    /// The daemon wants the backing device attached as soon as nothing of before may land (R14).
    pub(super) fn want_attach(&mut self, node: NodeId) {
        if let Some(side) = self.node(node).engine_side() {
            side.attach_wanted = true;
        }
        self.attach_if_quiet(node);
    }

    pub(super) fn attach_if_quiet(&mut self, node: NodeId) {
        let planted = self.planted;
        let target = self.node(node);
        let quiet = match planted {
            Some(Planted::LateWrites) => true,
            Some(Planted::LateForgotten) => target.all_jobs_are_of_this_life(),
            _ => target.jobs.is_empty(),
        };
        let Some(side) = target.engine_side() else {
            return;
        };
        if side.attach_wanted && quiet {
            side.attach_wanted = false;
            self.send_to(node, 0, Arrival::AttachNow);
        }
    }

    pub(super) fn attach(&mut self, node: NodeId) {
        let target = self.node(node);
        let record = target.record();
        let request = AttachRequest {
            device_len: self.device_blocks().bytes(),
            meta_len: self.meta_len(),
            boot_id: self.node(node).boot_id,
            marked_failed: record.replica_failed,
            expected_replica: record.replica,
            seal: record.seal,
        };
        self.step_engine(node, Input::Admin(AdminRequest::Attach(request)));
    }

    pub(super) fn volume_blocks(&self) -> BlockCount {
        BlockCount(self.plan.options.volume_blocks)
    }

    pub(super) fn device_blocks(&self) -> BlockCount {
        BlockCount(self.plan.options.device_blocks)
    }

    pub(super) fn meta_len(&self) -> ByteLen {
        self.meta_layout().total()
    }

    pub(super) fn on_engine_tick(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(side) = self.node(node).engine_side() {
            if side.tick == Some(now) {
                side.tick = None;
            }
            self.step_engine(node, Input::Tick);
        }
    }

    /// One turn of the shard: the newest lease first, then the input.
    pub(super) fn step_engine(&mut self, node: NodeId, input: Input) {
        let local = self.local_now(node);
        let mut out = Vec::new();
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        if side.lease != side.lease_seen {
            side.lease_seen = side.lease;
            side.engine
                .handle(local, Input::Lease { until: side.lease }, &mut out);
        }
        match &input {
            Input::Activate(activation) => side.activated = Some(activation.view().number),
            Input::StepDown => (side.activated, side.serving) = (None, false),
            // The view of an activation moves on with its own commits.
            Input::Committed(committed)
                if side.activated.is_some() && committed.view().primary == node =>
            {
                side.activated = side.activated.max(Some(committed.view().number));
            }
            _ => {}
        }
        if self.trace.is_text() && !is_dull(&input) {
            let text = short(&input);
            self.trace
                .say(self.now, || format!("{node:?} engine < {text}"));
        }
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        side.engine.handle(local, input, &mut out);
        self.carry_engine(node, out);
        self.schedule_engine_tick(node);
    }

    fn schedule_engine_tick(&mut self, node: NodeId) {
        let now = self.now;
        let target = self.node(node);
        let (life, clock) = (target.life, target.clock);
        let Some(side) = target.engine_side() else {
            return;
        };
        let Some(deadline) = side.engine.next_deadline() else {
            return;
        };
        let at = clock.when(deadline, now);
        if side.tick.is_none_or(|tick| tick > at || tick <= now) {
            side.tick = Some(at);
            self.schedule_at(
                at,
                Event::Arrive {
                    node,
                    life,
                    what: Arrival::EngineTick,
                },
            );
        }
    }

    fn carry_engine(&mut self, node: NodeId, actions: Vec<Action>) {
        for action in actions {
            if self.trace.is_text() && !is_dull_action(&action) {
                let text = short(&action);
                self.trace
                    .say(self.now, || format!("{node:?} engine > {text}"));
            }
            match action {
                Action::Disk { op, command } => self.submit_disk(node, op, command),
                Action::Meta { op, request } => self.submit_meta(node, op, request),
                Action::Mark { op, mark } => self.mark(node, op, mark),
                Action::Send { session, message } => self.send_frame(node, session, &message),
                Action::CloseLink { session, .. } => self.close_link(node, session),
                Action::Complete { request, result } => self.complete(node, request, result),
                Action::DropClients => self.drop_clients(node),
                Action::Event(event) => self.on_engine_event(node, event),
            }
        }
    }

    fn mark(&mut self, node: NodeId, op: OpId, mark: EngineMark) {
        let mark = match mark {
            EngineMark::Failed => ReplicaMark::Failed,
            EngineMark::Clean => ReplicaMark::Clean,
            EngineMark::Attached(replica) => ReplicaMark::Attached(replica),
        };
        let (resource, report) = (self.resource, EngineReport::Mark { op, mark });
        self.tell_controller(node, ControllerInput::Engine { resource, report });
    }

    fn complete(
        &mut self,
        node: NodeId,
        request: RequestId,
        result: Result<GuestReply, GuestError>,
    ) {
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        let activated = side.activated;
        let Some(asked) = side.asked.remove(&request) else {
            self.fail(Violation::new(
                "answered once",
                format!("{node:?} answers {request:?}, which is not asked (any more)"),
            ));
            return;
        };
        self.trace
            .note(self.now, request.0 << 8 | u64::from(result.is_ok()));
        if let Ok(reply) = result {
            let Some(view) = activated else {
                self.fail(Violation::new(
                    "one writer",
                    format!("{node:?} answers {request:?} without being activated"),
                ));
                return;
            };
            self.watch_answer(node, view, &asked, reply);
        } else {
            self.watch_error(node, &asked);
        }
        self.answer_client(node, request, &asked);
    }

    fn on_engine_event(&mut self, node: NodeId, event: EngineEvent) {
        self.trace.note(self.now, code_of(&event));
        let resource = self.resource;
        let report = match &event {
            EngineEvent::Replica(facts) => Some(EngineReport::Replica(facts_of(facts))),
            EngineEvent::Detached => Some(EngineReport::ReplicaGone),
            EngineEvent::DiskFailed(_) => Some(EngineReport::LocalDiskFailed),
            EngineEvent::PeerLost => Some(EngineReport::PeerLost),
            EngineEvent::PeerBehind => Some(EngineReport::PeerBehind),
            EngineEvent::PeerDiskFailed => Some(EngineReport::PeerDiskFailed),
            EngineEvent::PeerGivesUpData => Some(EngineReport::PeerGivesUpData),
            EngineEvent::PeerUnprepared => Some(EngineReport::PeerUnprepared),
            EngineEvent::NotActivated { view } => Some(EngineReport::NotActivated { view: *view }),
            EngineEvent::PeerLostWrites => Some(EngineReport::PeerLostWrites),
            EngineEvent::Connected { peer_replica } => Some(EngineReport::SessionUp {
                peer_replica: *peer_replica,
            }),
            EngineEvent::Disconnected => Some(EngineReport::SessionDown),
            EngineEvent::ResyncDone => Some(EngineReport::ResyncDone),
            EngineEvent::AddPrepared { view, replica } => Some(EngineReport::AddPrepared {
                view: *view,
                replica: *replica,
            }),
            EngineEvent::AddAborted { view } => Some(EngineReport::AddAborted { view: *view }),
            EngineEvent::LeavePrepared { view } => {
                Some(EngineReport::LeavePrepared { view: *view })
            }
            EngineEvent::GrowPrepared { view, size_blocks } => Some(EngineReport::GrowPrepared {
                view: *view,
                size_blocks: *size_blocks,
            }),
            EngineEvent::Drained { seal, ok } => Some(EngineReport::Drained {
                seal: *seal,
                ok: *ok,
            }),
            EngineEvent::Quiesced => Some(EngineReport::Quiesced),
            EngineEvent::Attached(_)
            | EngineEvent::Verified(_)
            | EngineEvent::Changed
            | EngineEvent::Refused(_)
            | EngineEvent::Serving
            | EngineEvent::NotServing => None,
        };
        if let Some(report) = report {
            self.tell_controller(node, ControllerInput::Engine { resource, report });
        }
        if self.planted == Some(Planted::LateForgotten)
            && event == EngineEvent::DiskFailed(DiskError::Timeout)
        {
            self.forget_late_jobs(node);
        }
        if let EngineEvent::GrowPrepared { .. } = event {
            self.figures.grown += 1;
        }
        match event {
            EngineEvent::Verified(report) => self.watch_verified(node, &report),
            EngineEvent::Attached(Err(error)) => {
                if let Some(side) = self.node(node).engine_side() {
                    side.attach_failed = Some(format!("{error:?}"));
                }
                self.watch_attach_error(node, error);
            }
            EngineEvent::Attached(Ok(_)) => {
                if let Some(side) = self.node(node).engine_side() {
                    side.attach_failed = None;
                }
            }
            EngineEvent::Connected { .. } => {
                if let Some(side) = self.node(node).engine_side() {
                    side.reset_backoff();
                }
                self.disturbed = true;
                self.watch_marks("at a handshake");
            }
            EngineEvent::Serving => self.on_serving(node),
            EngineEvent::NotServing => {
                if let Some(side) = self.node(node).engine_side() {
                    side.serving = false;
                }
            }
            EngineEvent::Changed => self.watch_state(node),
            _ => {}
        }
    }

    fn on_serving(&mut self, node: NodeId) {
        if let Some(side) = self.node(node).engine_side() {
            side.serving = true;
        }
        self.watch_serving(node);
    }
}

fn is_dull(input: &Input) -> bool {
    match input {
        Input::Tick => true,
        Input::Received { message, .. } => matches!(message, Message::Ping | Message::Pong),
        _ => false,
    }
}

fn is_dull_action(action: &Action) -> bool {
    matches!(
        action,
        Action::Send {
            message: Message::Ping | Message::Pong,
            ..
        } | Action::Event(EngineEvent::Changed)
    )
}

fn facts_of(facts: &EngineFacts) -> ReplicaFacts {
    ReplicaFacts {
        replica: facts.replica,
        size_blocks: facts.size_blocks,
        eligible: facts.eligible,
        blank: facts.blank,
        lost_volatile: facts.lost_volatile,
        unclean: facts.unclean,
        doubtful: facts.doubtful,
        behind: facts.behind,
    }
}

/// Debug text cut to one line of reasonable length.
pub(super) fn short(value: &impl core::fmt::Debug) -> String {
    let mut text = format!("{value:?}");
    if text.len() > 400 {
        let mut end = 400;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
