//! The session with the peer: greeting, verdict, liveness, end.
//!
//! A session belongs to one role of each side: whoever changes role closes it (R3, R21), so a
//! verdict never goes stale. Nothing but greetings is exchanged while an operation of an earlier
//! session or activation may still land on the disk (R14).

use super::Engine;
use super::handshake::{self, Rule, Sync, Verdict};
use super::input::LinkDownReason;
use super::output::{Action, CloseReason, Event, Outbox};
use super::resync::{SourceSync, TargetSync};
use super::throttle::Advice;
use crate::protocol::{Hello, Message, Refusal};
use crate::types::{Instant, ReplicaId, ReplicationProtocol, SessionId, View, ViewNumber};

/// The connection to the peer and what was agreed on it.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) phase: Phase,
    hello_sent: Option<Box<Hello>>,
    /// This side's protocol.
    configured: ReplicationProtocol,
    pub(super) peer: Option<Box<Hello>>,
    pub(super) rule: Option<Rule>,
    /// Resynced from scratch although the view names it: not to be relied on before a Remove.
    pub(super) stranger: bool,
    last_received: Instant,
    /// When the peer last did what this side waits for, or began to owe it.
    pub(super) last_payment: Instant,
    /// When the peer's disk last was seen to have done something.
    pub(super) disk_seen: Instant,
    pinged: Option<Instant>,
    pub(super) rtt: Option<core::time::Duration>,
    /// The view from which on the peer has recorded itself as in sync (R19).
    pub(super) prepared: Option<ViewNumber>,
    /// The peer holds resyncs by an operator's order.
    pub(super) peer_paused: bool,
    /// What the peer's guests leave for this side's resync.
    pub(super) advice: Advice,
    /// The peer, Primary, compares the replicas.
    pub(super) peer_verifies: bool,
    /// Messages that came while this side's record of the session was being made durable.
    pub(super) deferred: std::collections::VecDeque<Message>,
}

/// How far the session is, and as what.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Hellos are under way.
    Greeting,
    /// Connected, nothing to replicate.
    Idle,
    /// Primary; the peer has everything.
    MirrorSource,
    /// Secondary of that.
    MirrorTarget,
    /// Primary; the peer is catching up.
    SyncSource(SourceSync),
    /// Secondary, catching up.
    SyncTarget(Box<TargetSync>),
    /// Primary without a disk.
    ForwardSource,
    /// Secondary that holds its only good replica.
    ForwardTarget,
}

impl Session {
    fn new(id: SessionId, configured: ReplicationProtocol, now: Instant) -> Self {
        Self {
            id,
            configured,
            phase: Phase::Greeting,
            hello_sent: None,
            peer: None,
            rule: None,
            stranger: false,
            last_received: now,
            last_payment: now,
            disk_seen: Instant::ZERO,
            pinged: None,
            rtt: None,
            prepared: None,
            peer_paused: false,
            advice: Advice::NONE,
            peer_verifies: false,
            deferred: std::collections::VecDeque::new(),
        }
    }

    /// The peer holds all that this Primary holds, apart from writes in flight. One that the view
    /// names but whose disk was a stranger's is only made a replica again by a Remove and an Add.
    pub(super) fn is_equal(&self) -> bool {
        matches!(self.phase, Phase::MirrorSource | Phase::ForwardSource) && !self.stranger
    }

    pub(super) fn is_forwarding(&self) -> bool {
        matches!(self.phase, Phase::ForwardSource)
    }

    /// Guest writes are sent to the peer.
    pub(super) fn is_replicating(&self) -> bool {
        matches!(
            self.phase,
            Phase::MirrorSource | Phase::SyncSource(_) | Phase::ForwardSource
        )
    }

    /// The peer may write to this side's disk. A resync target has first recorded that it is one
    /// (promise 8).
    pub(super) fn is_replica(&self) -> bool {
        match &self.phase {
            Phase::MirrorTarget | Phase::ForwardTarget => true,
            Phase::SyncTarget(target) => target.pulling,
            _ => false,
        }
    }

    /// The stricter of what both sides are configured with, so that neither is surprised while one
    /// of them has a new configuration already.
    pub(super) fn protocol(&self) -> ReplicationProtocol {
        match &self.peer {
            Some(peer) => self.configured.stricter(peer.protocol),
            None => ReplicationProtocol::C,
        }
    }

    pub(super) fn peer_replica(&self) -> Option<ReplicaId> {
        Some(self.peer.as_ref()?.replica.as_ref()?.replica)
    }
}

impl Engine {
    pub(super) fn replicating(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_replicating)
    }

    pub(super) fn session_is_source(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|s| matches!(s.phase, Phase::MirrorSource | Phase::SyncSource(_)))
    }

    pub(super) fn handle_link_up(&mut self, id: SessionId, out: &mut Outbox) {
        self.end_session(CloseReason::Replaced, out);
        if !self.may_connect() {
            out.push(Action::CloseLink {
                session: id,
                reason: CloseReason::Ordered,
            });
            return;
        }
        self.session = Some(Session::new(id, self.config.protocol, self.now));
        self.era += 1;
        self.old_ops = self.ops_that_count();
        out.push(Action::Event(Event::Changed));
        self.pump_greeting(out);
    }

    /// Whether a session is wanted at all.
    fn may_connect(&self) -> bool {
        self.connect_wanted && self.draining.is_none()
    }

    /// Sends this side's hello as soon as nothing of before can land any more (R14) and the
    /// replica's own story is settled.
    pub(super) fn pump_greeting(&mut self, out: &mut Outbox) {
        let waiting = self
            .session
            .as_ref()
            .is_some_and(|s| s.hello_sent.is_none());
        if !waiting || !self.is_drained() || !self.story_is_settled() {
            return;
        }
        let hello = Box::new(self.hello());
        self.send(Message::Hello(hello.clone()), out);
        if let Some(session) = &mut self.session {
            session.hello_sent = Some(hello);
        }
        self.begin_verdict(out);
    }

    /// Whether nothing of before this connection can land any more (R14). A Primary that serves
    /// alone has operations of its guests under way all the time; those begun since are tracked and
    /// locked like any other. Held guests submit nothing, so whoever must be equal waits for all.
    fn is_drained(&self) -> bool {
        if self.active.is_some() && !self.strict() {
            self.old_ops == 0
        } else {
            self.disk_is_quiet() && self.peer_work.is_empty()
        }
    }

    fn story_is_settled(&self) -> bool {
        !matches!(
            self.local,
            super::LocalDisk::Attaching | super::LocalDisk::Detaching
        ) && self.active.as_ref().is_none_or(|active| active.serving)
    }

    /// The newest view this side knows of: it may have served in one that nobody told it of again
    /// since it started.
    fn known_view(&self) -> ViewNumber {
        let told = self.view.map_or(ViewNumber::NONE, |view| view.number);
        let recorded = self.replica.as_ref().map_or(ViewNumber::NONE, |replica| {
            replica.superblock.current().last_view
        });
        told.max(recorded)
    }

    /// A newer view has another Primary than the one whose writes this side takes: it takes none
    /// any more.
    pub(super) fn leave_superseded(&mut self, view: &View, out: &mut Outbox) {
        let peer = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref());
        let superseded = peer
            .is_some_and(|peer| peer.active.is_some() && (view.primary != peer.node || view.held));
        if superseded {
            self.end_session(CloseReason::RoleChanged, out);
        }
    }

    fn hello(&self) -> Hello {
        let view = self.view.as_ref();
        Hello {
            node: self.config.node,
            resource: self.config.resource,
            volume: self.config.volume,
            replica: self.claim(),
            view: self.known_view(),
            in_sync: view.map(|view| view.in_sync).unwrap_or_default(),
            active: self.active.as_ref().map(|active| active.view.number),
            seal: self.seal,
            boot_id: self.config.boot_id,
            incarnation: self.config.incarnation,
            protocol: self.told_under(),
        }
    }

    /// What guests of this node were told under: after a restart with another protocol, writes of
    /// the activation before may still be missing on the peer.
    fn told_under(&self) -> ReplicationProtocol {
        let record = self.replica.as_ref().map(|it| it.superblock.current());
        if self.active.is_some() && record.is_some_and(|it| it.may_be_ahead) {
            ReplicationProtocol::A
        } else {
            self.config.protocol
        }
    }

    pub(super) fn handle_received(&mut self, id: SessionId, message: Message, out: &mut Outbox) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.id != id {
            return;
        }
        session.last_received = self.now;
        match message {
            Message::Ping => self.send(Message::Pong, out),
            Message::Pong => {
                if let Some(sent) = session.pinged.take() {
                    session.rtt = Some(self.now.since(sent));
                }
            }
            Message::Goodbye => self.end_session(CloseReason::Ordered, out),
            Message::Refused(refusal) => self.on_refused(refusal, out),
            Message::Hello(hello) => self.on_hello(hello, out),
            message if self.recording => {
                if session.deferred.len() < Self::DEFERRED_MAX {
                    session.deferred.push_back(message);
                } else {
                    self.end_session(CloseReason::Protocol, out);
                }
            }
            message => self.on_message(message, out),
        }
    }

    fn on_hello(&mut self, hello: Box<Hello>, out: &mut Outbox) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.peer.is_some() {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        session.peer = Some(hello);
        self.begin_verdict(out);
    }

    fn on_refused(&mut self, refusal: Refusal, out: &mut Outbox) {
        self.refused = Some(refusal);
        out.push(Action::Event(Event::Refused(refusal)));
        self.end_session(CloseReason::Refused(refusal), out);
    }

    /// Both hellos are known: decide and start.
    fn begin_verdict(&mut self, out: &mut Outbox) {
        let Some(session) = &mut self.session else {
            return;
        };
        let (Some(own), Some(peer)) = (&session.hello_sent, &session.peer) else {
            return;
        };
        let (verdict, rule) = handshake::decide(own, peer);
        session.rule = Some(rule);
        if let Verdict::Refuse(refusal) = verdict {
            self.send(Message::Refused(refusal), out);
            self.on_refused(refusal, out);
            return;
        }
        self.refused = None;
        let peer_replica = session.peer_replica();
        out.push(Action::Event(Event::Connected { peer_replica }));
        out.push(Action::Event(Event::Changed));
        let mirror = matches!(verdict, Verdict::MirrorSource | Verdict::MirrorTarget);
        if mirror && self.dirty_blocks() > 0 {
            // Marked since its hello: the verdict rests on something else.
            self.end_session(CloseReason::DiskChanged, out);
            return;
        }
        self.begin_control(out);
        match verdict {
            Verdict::Refuse(_) => unreachable!("returned above"),
            Verdict::Idle => {
                self.report_lost_writes(rule, out);
                if rule == Rule::PeerBehind && self.active.is_some() {
                    out.push(Action::Event(Event::PeerBehind));
                }
                self.enter(Phase::Idle, out);
            }
            Verdict::MirrorSource => self.enter(Phase::MirrorSource, out),
            Verdict::MirrorTarget => {
                self.enter(Phase::MirrorTarget, out);
                self.record_whole(out);
            }
            Verdict::ForwardSource if !self.peer_is_recorded() => self.enter(Phase::Idle, out),
            // What guests were told of and only the failed disk has cannot be served from here.
            Verdict::ForwardSource if self.ahead_lost => {
                self.enter(Phase::Idle, out);
                out.push(Action::Event(Event::PeerLostWrites));
            }
            Verdict::ForwardSource => self.enter(Phase::ForwardSource, out),
            Verdict::ForwardTarget => {
                self.enter(Phase::ForwardTarget, out);
                self.record_whole(out);
            }
            Verdict::SyncSource(sync) => self.begin_source(sync, out),
            Verdict::SyncTarget(sync) => self.begin_target(sync, out),
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, out: &mut Outbox) {
        if let Some(session) = &mut self.session {
            session.phase = phase;
        }
        out.push(Action::Event(Event::Changed));
        if self.forwarding() {
            self.resend_forwarded(out);
        } else if self.peer_is_equal() {
            self.settle_equalised();
        }
    }

    /// The peer is to leave `in_sync` before anything is copied (protocol A).
    pub(super) fn waits_for_remove(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.rule == Some(Rule::PeerBehind))
    }

    /// A Primary without a disk met the replica that its view counts on, but not as it was left.
    fn report_lost_writes(&mut self, rule: Rule, out: &mut Outbox) {
        let peer = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref());
        let lost = peer
            .and_then(|peer| peer.replica.as_ref())
            .is_some_and(|claim| claim.lost_volatile && !claim.blank && !claim.inconsistent);
        let diskless = rule == Rule::PrimaryDiskless && self.active.is_some();
        if diskless && lost && self.peer_is_recorded() && self.peer_is_named() {
            out.push(Action::Event(Event::PeerLostWrites));
        }
    }

    /// Whether the peer's replica is the one the view counts on, as far as the view says which.
    pub(super) fn peer_is_recorded(&self) -> bool {
        let peer = self.session.as_ref().and_then(Session::peer_replica);
        self.active.as_ref().is_some_and(|active| {
            let recorded = active.view.replicas[self.config.node.peer().index()];
            recorded.is_none() || recorded == peer
        })
    }

    /// Messages other than greetings, routed by what this side is in the session.
    pub(super) fn on_message(&mut self, message: Message, out: &mut Outbox) {
        let Some(session) = &self.session else { return };
        let (source, target) = (session.is_replicating(), session.is_replica());
        match message {
            Message::WriteAck { write } if source => self.on_write_ack(write, out),
            Message::ReceiveAck { write } if source => self.on_receive_ack(write, out),
            Message::NegAck { .. } if source => self.on_peer_disk_failed(out),
            Message::BarrierAck { epoch } if source => self.on_barrier_ack(epoch, out),
            Message::ReadReply { read, range, data } if source => {
                self.on_read_reply(read, range, data.map_err(Into::into), out);
            }
            Message::AddReady { view } if source => self.on_add_ready(view, out),
            Message::LeaveReady { view } if source => {
                out.push(Action::Event(Event::LeavePrepared { view }));
            }
            Message::BitmapChunk { first_block, bits } => {
                self.on_bitmap_chunk(first_block, &bits, out);
            }
            Message::BitmapEnd => self.on_bitmap_end(out),
            Message::ResyncReady if source => {
                self.note_payment();
                self.on_resync_ready(out);
            }
            Message::ResyncRequest { id, range, digests } if source => {
                self.note_payment();
                self.on_resync_request(id, range, digests, out);
            }
            Message::ResyncAck { id: _, range } if source => {
                self.note_payment();
                self.on_resync_ack(range, out);
            }
            Message::Data {
                write,
                range,
                kind,
                terms,
            } if target => {
                self.on_data(write, range, kind, terms, out);
            }
            Message::Barrier { epoch } if target => self.on_barrier(epoch, out),
            Message::ReadRequest { read, range } if target => {
                self.on_read_request(read, range, out);
            }
            Message::ResyncData {
                id,
                range,
                reply,
                last,
            } if target => {
                self.on_resync_data(id, range, reply, last, out);
            }
            Message::ResyncControl { paused, rate } => self.on_resync_control(paused, rate, out),
            Message::ResyncAdvice { pace, latency } => {
                self.on_resync_advice(pace, latency, out);
            }
            Message::VerifyState { running } if target => self.on_verify_state(running, out),
            Message::VerifyRequest { id, range, in_turn } if target => {
                self.on_verify_request(id, range, in_turn, out);
            }
            Message::VerifyDigests { id, range, digests } if source => {
                self.on_verify_digests(id, range, digests.map_err(Into::into), out);
            }
            Message::Grow { id, range } if target => self.on_grow(id, range, out),
            Message::Grown { id, range, result } if source => {
                self.on_peer_grown(id, range, result.map_err(Into::into), out);
            }
            Message::Invalidate if source => self.on_invalidate(out),
            Message::PrepareAdd { view } if target => self.on_prepare_add(view, out),
            Message::LeaveMarks { view } if target => self.on_leave_marks(view, out),
            _ => self.end_session(CloseReason::Protocol, out),
        }
    }

    /// Lets deferred messages go once the record is durable.
    pub(super) fn pump_deferred(&mut self, out: &mut Outbox) {
        while !self.recording {
            let next = self
                .session
                .as_mut()
                .and_then(|session| session.deferred.pop_front());
            let Some(message) = next else { return };
            self.on_message(message, out);
        }
    }

    pub(super) fn handle_link_down(
        &mut self,
        id: SessionId,
        _reason: LinkDownReason,
        out: &mut Outbox,
    ) {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.id == id)
        {
            self.forget_session(out);
        }
    }

    /// Closes the session from this side.
    pub(super) fn end_session(&mut self, reason: CloseReason, out: &mut Outbox) {
        let Some(session) = &self.session else { return };
        out.push(Action::CloseLink {
            session: session.id,
            reason,
        });
        self.forget_session(out);
    }

    /// The id is dead from here on (R21): what the peer has not made durable becomes marks before
    /// anything is acknowledged without it.
    fn forget_session(&mut self, out: &mut Outbox) {
        let Some(session) = self.session.take() else {
            return;
        };
        // Not after a handshake that failed: a peer that never gets further is away all the time.
        if !matches!(session.phase, Phase::Greeting) {
            self.disconnected_at = Some(self.now);
        }
        self.recording = false;
        self.lose_legs();
        self.mark_unretired();
        self.lose_round();
        self.abandon_resync(session.phase, out);
        self.lose_verify(out);
        self.drop_peer_work(out);
        self.drop_digests(out);
        self.lose_grow(out);
        self.lose_remote_reads(session.id, out);
        self.abort_add(out);
        out.push(Action::Event(Event::Disconnected));
        out.push(Action::Event(Event::Changed));
        self.settle_round(out);
    }

    /// Pings, and the end of a peer that does not answer.
    pub(super) fn tick_session(&mut self, out: &mut Outbox) {
        let Some(session) = &self.session else {
            return;
        };
        let silent = self.now.since(session.last_received);
        let unpaid = self.now.since(session.last_payment);
        if silent >= self.config.timeout || (unpaid >= Self::PEER_STALLED_AFTER && self.peer_owes())
        {
            self.end_session(CloseReason::Timeout, out);
            return;
        }
        if let Some(session) = &mut self.session
            && silent >= self.config.timeout / 3
            && session.pinged.is_none()
        {
            session.pinged = Some(self.now);
            self.send(Message::Ping, out);
        }
    }

    // --- What the peer owes: its network may live while its disk hangs -----------------------

    /// Whether guests may be waiting for something that the peer has to do.
    fn peer_owes(&self) -> bool {
        let equalising = self.sync_of().is_some_and(|sync| sync.equalise);
        let writes = self.owed_acks > 0 || self.owes_barrier();
        writes || !self.remote_reads.is_empty() || equalising || self.owes_digests()
    }

    /// Whether digests are all that it owes.
    pub(super) fn owes_only_digests(&self) -> bool {
        self.owed_acks == 0 && !self.owes_barrier() && self.remote_reads.is_empty()
    }

    /// Called before the peer is asked for something: from now on it owes, if it did not before.
    pub(super) fn note_debt(&mut self) {
        if !self.peer_owes() {
            self.note_payment();
        }
    }

    /// Its disk completed something.
    pub(super) fn note_peer_disk(&mut self) {
        self.note_payment();
        if let Some(session) = &mut self.session {
            session.disk_seen = self.now;
        }
    }

    /// The peer did something that this side waited for.
    pub(super) fn note_payment(&mut self) {
        if let Some(session) = &mut self.session {
            session.last_payment = self.now;
        }
    }

    pub(super) fn session_deadline(&self) -> Option<Instant> {
        let session = self.session.as_ref()?;
        let patience = if session.pinged.is_some() {
            self.config.timeout
        } else {
            self.config.timeout / 3
        };
        let silence = session.last_received.plus(patience);
        let stall = session.last_payment.plus(Self::PEER_STALLED_AFTER);
        Some(if self.peer_owes() {
            silence.min(stall)
        } else {
            silence
        })
    }

    /// Whether the peer is being made equal and guests should wait for it.
    pub(super) fn will_be_equal(&self) -> bool {
        self.session.as_ref().is_some_and(
            |session| matches!(&session.phase, Phase::SyncSource(source) if source.will_be_equal()),
        )
    }

    pub(super) fn sync_of(&self) -> Option<Sync> {
        match &self.session.as_ref()?.phase {
            Phase::SyncSource(source) => Some(source.sync),
            Phase::SyncTarget(target) => Some(target.sync),
            _ => None,
        }
    }
}
