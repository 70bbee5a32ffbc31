//! What each verb of the control socket does. Runs on the asking client's thread and may wait.

use super::metrics::{About, Source};
use replicator::protocol::ForwardPreamble;
use std::io;

use std::sync::Arc;
use std::time::Duration;

use replicator::admin::{
    ErrorId, ErrorReport, Event, Request, Response, Status, Verb, VersionInfo,
};
use replicator::engine::{AdminRequest, Input};
use replicator::types::{ConnectionState, DiskState, InSync, NodeId, Role};

use super::api::{NbdClient, ShardCommand};
use super::board::Presence;
use super::control::{Answers, Asker, ControlHandler};
use super::lifecycle::Claim;
use super::move_order::as_passed_on;
use super::node::Node;
use super::resize_orders::{ResizeOrder, all_volumes};
use super::what_if::as_asked_of;
use super::wire::Wire;
use super::{status, words};
use crate::config::ResourceConfig;
use crate::controller::{Done, Order, OrderRefusal};

/// How long `primary` waits for what can still arrive, unless the client says otherwise.
const PRIMARY_TIMEOUT: Duration = Duration::from_secs(30);

/// No order of itself takes longer.
pub(super) const LONGEST_ORDER: Duration = PRIMARY_TIMEOUT;

/// How long every other order waits: a commit and a few disk operations.
pub(super) const ORDER_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait a client may ask for: its place must come free some day.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// How long `secondary` and `down` wait for NBD clients to leave by themselves.
const CLIENTS_LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an idle `events2` looks whether its client is still there.
const EVENTS_LOOK: Duration = Duration::from_secs(1);

/// An order's end as the client sees it.
pub(super) type Outcome = Result<Response, ErrorReport>;

impl ControlHandler for Node {
    fn handle(&self, request: Request, asker: Asker, answers: &mut dyn Answers) -> io::Result<()> {
        match self.check(&request, asker) {
            Ok(None) => {}
            Ok(Some(other)) => return self.pass_on(other, &request, asker, answers),
            Err(report) => return answers.send(&Response::Error(report)),
        }
        let elsewhere = match &request.verb {
            Verb::Verify { .. } | Verb::Resize { .. } => self.primary_elsewhere(&request, asker),
            _ => self.invalidate_remote(&request, asker),
        };
        match elsewhere {
            Ok(None) => {}
            Ok(Some(order)) => return self.pass_on(self.node.peer(), &order, asker, answers),
            Err(report) => return answers.send(&Response::Error(report)),
        }
        match self.mover(&request.verb) {
            Ok(None) => {}
            Ok(Some(mover)) => {
                let request = as_passed_on(request, self.config.node_name(mover));
                return self.pass_on(mover, &request, asker, answers);
            }
            Err(report) => return answers.send(&Response::Error(report)),
        }
        match self.left_by(&request.verb) {
            Ok(None) => {}
            Ok(Some(left)) => {
                let request = as_asked_of(request, self.config.node_name(left));
                return self.pass_on(left, &request, asker, answers);
            }
            Err(report) => return answers.send(&Response::Error(report)),
        }
        if let Verb::Events2 { resource, now } = &request.verb {
            return self.stream_events(resource.as_deref(), *now, answers);
        }
        if request.verb == Verb::Reexec {
            return self.reexec(answers);
        }
        let timeout = request
            .timeout_ms
            .map(|millis| Duration::from_millis(millis).min(TIMEOUT_MAX));
        let order = words::order_words(&request.verb);
        let node_order = words::node_order_words(&request.verb);
        let response = match request.verb {
            Verb::Resize {
                resource,
                volume,
                size,
            } => {
                let order = ResizeOrder { volume, size };
                self.resize_order(&resource, &order, timeout, asker, answers)
            }
            verb => self.carry_out_and_place(verb, timeout, asker, answers),
        };
        if let Some((resource, order)) = order {
            self.note_order(&resource, &order, asker, &response);
        }
        if let Some(order) = node_order {
            for resource in self.resources.all() {
                self.note_order(&resource.name, &order, asker, &response);
            }
        }
        answers.send(&response.unwrap_or_else(Response::Error))
    }

    fn take_client(&self, stream: Wire, preamble: ForwardPreamble) {
        self.command(ShardCommand::Forwarded {
            resource: preamble.resource,
            stream,
        });
    }
}

impl Source for Node {
    fn status(&self) -> Status {
        self.status(None)
    }

    fn about(&self) -> About {
        About {
            program: self.program,
            started: self.started,
        }
    }
}

/// `changed` with its message.
pub(super) fn done(changed: bool, message: impl Into<String>) -> Outcome {
    Ok(Response::Done {
        changed,
        message: message.into(),
    })
}

impl Node {
    /// Who asks, for people.
    pub(super) fn asker_words(&self, asker: Asker) -> String {
        match asker.relayed_by {
            Some(node) => format!("user {} on {}", asker.uid, self.config.node_name(node)),
            None => format!("user {}", asker.uid),
        }
    }

    /// Keeps who ordered what, and how it ended.
    fn note_order(&self, resource: &str, order: &str, asker: Asker, ended: &Outcome) {
        let Some(resource) = self.resources.named(resource) else {
            return;
        };
        let by = self.asker_words(asker);
        let text = match ended {
            Ok(Response::Done { changed: false, .. }) => return,
            Ok(Response::Done { message, .. }) => format!("{order}: {message}"),
            Ok(_) => return,
            Err(report) => format!("{order} refused, {}: {}", report.id, report.why),
        };
        self.note_history(resource.id(), "order", None, Some(by), text);
    }

    /// Whether the request may be carried out, and on which other node it is to be.
    fn check(&self, request: &Request, asker: Asker) -> Result<Option<NodeId>, ErrorReport> {
        let reads = matches!(
            request.verb,
            Verb::Status { .. }
                | Verb::Events2 { .. }
                | Verb::Version
                | Verb::Why { .. }
                | Verb::Quorum
                | Verb::WhatIf { .. }
                | Verb::History { .. }
        );
        if !reads && !asker.may_change {
            return Err(self.not_permitted(asker));
        }
        let Some(wanted) = request
            .node
            .as_deref()
            .filter(|wanted| *wanted != self.name())
        else {
            return Ok(None);
        };
        // Two nodes that disagree about names would pass it on for ever.
        if let Some(by) = asker.relayed_by {
            let what = format!("{} does not pass on what was passed on", self.name());
            let why = format!("{} asks it about {wanted}", self.config.node_name(by));
            let next = "compare the configurations of the nodes: they must be the same";
            return Err(ErrorReport::new(ErrorId::BadRequest, what, why).next(next));
        }
        self.config.node_id(wanted).map(Some).ok_or_else(|| {
            let what = format!("there is no node {wanted}");
            ErrorReport::new(ErrorId::NoSuchNode, what, "it is not configured")
        })
    }

    fn not_permitted(&self, asker: Asker) -> ErrorReport {
        let by = asker.relayed_by.filter(|_| asker.doubted);
        let Some(by) = by.map(|by| self.config.node_name(by)) else {
            let why = format!("user {} may only look", asker.uid);
            return ErrorReport::new(ErrorId::Permission, "not permitted", why);
        };
        let why = format!(
            "what passes it on cannot show that it is the daemon of {by}: it has neither a port \
             below 1024 nor, on this machine, this daemon's user"
        );
        let next = format!(
            "run the daemon of {by} with CAP_NET_BIND_SERVICE, or the command on {}",
            self.name()
        );
        ErrorReport::new(ErrorId::Permission, "not permitted", why).next(next)
    }

    /// An order by hand that goes against a preference holds from its first moment on.
    fn carry_out_and_place(
        &self,
        verb: Verb,
        timeout: Option<Duration>,
        asker: Asker,
        answers: &mut dyn Answers,
    ) -> Outcome {
        let ends_choice = match &verb {
            Verb::Up { resource } => Some(resource.clone()),
            _ => None,
        };
        let choice = self.begin_choice(&verb, asker);
        let mut outcome = self.carry_out(verb, timeout, answers);
        if let Some(choice) = choice {
            self.end_choice(&choice, timeout, &mut outcome);
        }
        if let Some(resource) = ends_choice {
            self.end_choice_by_up(&resource, &mut outcome);
        }
        outcome
    }

    fn carry_out(
        &self,
        verb: Verb,
        timeout: Option<Duration>,
        answers: &mut dyn Answers,
    ) -> Outcome {
        match verb {
            Verb::Version => Ok(Response::Version(VersionInfo {
                program: self.program.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                node: self.name().to_owned(),
                started: self.started,
            })),
            Verb::Status { resource } => {
                self.check_known(resource.as_deref())?;
                Ok(Response::Status(Box::new(self.status(resource.as_deref()))))
            }
            Verb::Events2 { .. }
            | Verb::InvalidateRemote { .. }
            | Verb::Resize { .. }
            | Verb::Reexec => {
                unreachable!("streams, and what is passed on, are handled before")
            }
            Verb::Why { resource } => self.why(&*self.resource(&resource)?),
            Verb::Quorum => self.quorum(),
            Verb::WhatIf { kill } => self.what_if(&kill),
            Verb::History { resource, count } => self.history(&*self.resource(&resource)?, count),
            Verb::Up { resource } => self.up(&*self.resource(&resource)?, timeout, answers),
            Verb::Down { resource, force } => {
                self.down(&*self.resource(&resource)?, force, timeout, answers)
            }
            Verb::Attach { resource, volume } => {
                let resource = &*self.resource(&resource)?;
                check_volume(resource, volume)?;
                self.attach_order(resource, timeout)
            }
            Verb::Detach { resource, volume } => {
                let resource = &*self.resource(&resource)?;
                check_volume(resource, volume)?;
                self.detach_order(resource, timeout)
            }
            Verb::Connect { resource, peer } => {
                let resource = &*self.resource(&resource)?;
                self.check_peer(peer.as_deref())?;
                self.connection_order(resource, true, timeout)
            }
            Verb::Disconnect { resource, peer } => {
                let resource = &*self.resource(&resource)?;
                self.check_peer(peer.as_deref())?;
                self.connection_order(resource, false, timeout)
            }
            Verb::PauseSync { resource } => {
                self.hold_resync_order(&*self.resource(&resource)?, true, timeout)
            }
            Verb::ResumeSync { resource } => {
                self.hold_resync_order(&*self.resource(&resource)?, false, timeout)
            }
            Verb::Room { resource, size } => self.room_order(&*self.resource(&resource)?, size),
            Verb::SuspendIo { resource } => {
                self.suspend_order(&*self.resource(&resource)?, timeout)
            }
            Verb::ResumeIo { resource } => self.resume_order(&*self.resource(&resource)?, timeout),
            Verb::Resync { resource, max_rate } => {
                self.resync_rate_order(&*self.resource(&resource)?, max_rate, timeout)
            }
            Verb::Adjust { resource, dry_run } => self.adjust(resource.as_deref(), dry_run),
            Verb::Primary {
                resource,
                force,
                yes_lose,
            } => {
                let resource = &*self.resource(&resource)?;
                let order = match force {
                    true => self.forced_order(resource, yes_lose.as_deref())?,
                    false => Order::Primary,
                };
                self.primary(resource, order, timeout, answers)
            }
            Verb::Verify {
                resource,
                repair,
                stop,
            } => self.verify_order(&*self.resource(&resource)?, repair, stop, timeout),
            Verb::Invalidate {
                resource,
                from,
                yes_discard,
            } => self.invalidate_order(&*self.resource(&resource)?, &from, yes_discard, timeout),
            Verb::Secondary { resource, force } => {
                self.secondary(&*self.resource(&resource)?, force, timeout, answers)
            }
            Verb::NodeDrain => self.node_drain(timeout, answers),
            Verb::NodeResume => self.node_resume(),
            Verb::Maintenance { on } => self.maintenance(on),
            Verb::ConfirmFenced { dead } => self.confirm_fenced(&dead),
            Verb::Move { resource, to, .. } => {
                self.move_order(&*self.resource(&resource)?, &to, timeout)
            }
        }
    }

    fn status(&self, resource: Option<&str>) -> Status {
        let moment = Self::moment();
        let configured = self.resources.all();
        let mut status = self
            .board
            .read(|board| status::assemble(self.place(&configured), board, moment, resource));
        for shown in &mut status.resources {
            let resource = configured.iter().find(|it| it.name == shown.name);
            shown.placement = resource.and_then(|it| self.place_of(it));
        }
        status
    }

    fn stream_events(
        &self,
        resource: Option<&str>,
        now_only: bool,
        answers: &mut dyn Answers,
    ) -> io::Result<()> {
        if let Err(report) = self.check_known(resource) {
            return answers.send(&Response::Error(report));
        }
        // The generation is read before the status: a change in between is only seen twice.
        let mut seen = self.board.read(|board| board.generation);
        let mut old = self.status(resource);
        let millis = Self::moment().unix_millis;
        for event in Event::snapshot(&old, millis) {
            answers.send(&Response::Event(event))?;
        }
        answers.send(&Response::Event(Event::end_of_snapshot(millis)))?;
        while !now_only && !answers.is_gone() {
            let changed = self.board.wait(EVENTS_LOOK, |board| {
                (board.generation != seen).then_some(board.generation)
            });
            let Some(generation) = changed else { continue };
            seen = generation;
            let new = self.status(resource);
            for event in Event::changes(&old, &new, Self::moment().unix_millis) {
                answers.send(&Response::Event(event))?;
            }
            old = new;
        }
        Ok(())
    }

    fn check_known(&self, resource: Option<&str>) -> Result<(), ErrorReport> {
        match resource {
            Some(name) if self.resources.named(name).is_none() => Err(no_such_resource(name)),
            _ => Ok(()),
        }
    }

    /// A configured resource, on a node that holds data.
    pub(super) fn resource(&self, name: &str) -> Result<Arc<ResourceConfig>, ErrorReport> {
        if !self.node.is_data() {
            let what = format!("{} takes no orders about resources", self.name());
            let why = "it is the arbitrator: it votes and holds no data";
            return Err(ErrorReport::new(ErrorId::ArbitratorHoldsNoData, what, why));
        }
        self.resources
            .named(name)
            .ok_or_else(|| no_such_resource(name))
    }

    pub(super) fn check_peer(&self, peer: Option<&str>) -> Result<(), ErrorReport> {
        let known = self.config.node_name(self.node.peer());
        match peer {
            Some(name) if name != known => {
                let what = format!("{name} is no peer of {}", self.name());
                Err(ErrorReport::new(
                    ErrorId::NoSuchPart,
                    what,
                    format!("its peer is {known}"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Refuses unless the resource runs here.
    pub(super) fn check_running(&self, resource: &ResourceConfig) -> Result<(), ErrorReport> {
        let what = format!("{} is not up on {}", resource.name, self.name());
        let (why, next) = match self.presence(resource) {
            Presence::Running => return Ok(()),
            Presence::Away => ("nothing of it is attached or connected", ""),
            Presence::Leaving => (words::STILL_LEAVING, "mend the disk, then: "),
        };
        let next = format!("{next}twinadm up {}", resource.name);
        Err(ErrorReport::new(ErrorId::NotUp, what, why).next(next))
    }

    /// Whether the shard has the resource.
    pub(super) fn presence(&self, resource: &ResourceConfig) -> Presence {
        let id = resource.id();
        self.board.read(|board| {
            let known = board.resources.get(&id);
            known.map_or(Presence::Away, |it| it.presence)
        })
    }

    fn primary(
        &self,
        resource: &ResourceConfig,
        order: Order,
        timeout: Option<Duration>,
        answers: &mut dyn Answers,
    ) -> Outcome {
        self.check_running(resource)?;
        let timeout = timeout.unwrap_or(PRIMARY_TIMEOUT);
        let mut told = String::new();
        let outcome = self.order(resource, order, timeout, || {
            let waiting = self.waiting_for(resource);
            if !waiting.is_empty() && waiting != told {
                answers
                    .send(&Response::Progress {
                        message: waiting.clone(),
                    })
                    .ok();
                told = waiting;
            }
            // Of a client that left only the place is taken back: the controller has its order.
            !answers.is_gone()
        });
        let ended = self.ended(resource, order, timeout, outcome)?;
        // Committed; the engine is told and serves within a few turns of its loop.
        let serves = self.wait_engine(resource, ORDER_TIMEOUT, |engine| {
            engine.role == Role::Primary
        });
        let (name, node) = (&resource.name, self.name());
        if !serves {
            let what = format!("{name} does not serve on {node}");
            let why = format!(
                "view {} is committed, but the engine did not activate",
                ended.view
            );
            return Err(ErrorReport::new(ErrorId::TimedOut, what, why));
        }
        match ended.already {
            true => done(false, format!("{name} is Primary on {node} already")),
            false => done(
                true,
                format!("{name} is Primary on {node} in view {}", ended.view),
            ),
        }
    }

    /// What stands in the way of `primary`, for the progress line; empty if nothing is known.
    fn waiting_for(&self, resource: &ResourceConfig) -> String {
        let names = self.names(resource);
        self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            let controller = known.and_then(|it| it.controller.as_ref());
            controller.map_or_else(String::new, |it| words::waiting_for(&it.blockers, names))
        })
    }

    fn secondary(
        &self,
        resource: &ResourceConfig,
        force: bool,
        timeout: Option<Duration>,
        asker: &dyn Answers,
    ) -> Outcome {
        self.check_running(resource)?;
        let _passing = self.check_not_suspended(resource, force)?;
        // Held to the end: an order that fails gives the guest back.
        let _stopped = self.stop_guest(resource, force)?;
        self.clients_leave(resource, Order::Secondary, force)?;
        let timeout = timeout.unwrap_or(ORDER_TIMEOUT);
        let outcome = self.order(resource, Order::Secondary, timeout, || !asker.is_gone());
        let ended = self.ended(resource, Order::Secondary, timeout, outcome)?;
        self.wait_engine(resource, ORDER_TIMEOUT, |engine| {
            engine.role != Role::Primary
        });
        let (name, node) = (&resource.name, self.name());
        match ended.already {
            true => done(false, format!("{name} is Secondary on {node} already")),
            false => done(
                true,
                format!("{name} is Secondary on {node} and held there"),
            ),
        }
    }

    /// Waits a while for NBD clients to leave that the order would cut off: those of a Primary, and
    /// with `down` those that a Secondary passes on. Refuses, naming them, if they stay.
    pub(super) fn clients_leave(
        &self,
        resource: &ResourceConfig,
        order: Order,
        force: bool,
    ) -> Result<(), ErrorReport> {
        if force {
            return Ok(());
        }
        let (mut clients, mut role) = (Vec::new(), Role::Primary);
        let left = self.board.wait(CLIENTS_LEAVE_TIMEOUT, |board| {
            let shard = board
                .resources
                .get(&resource.id())
                .and_then(|it| it.shard.as_ref());
            let shard = shard.filter(|it| order == Order::Down || it.engine.role == Role::Primary);
            role = shard.map_or(role, |it| it.engine.role);
            clients = shard.map_or_else(Vec::new, |it| it.nbd_clients.to_vec());
            clients.is_empty().then_some(())
        });
        if left.is_some() {
            return Ok(());
        }
        let stays = match role {
            Role::Primary => "stays Primary",
            Role::Secondary | Role::Unknown => "stays up",
        };
        let what = format!("{} {stays} on {}", resource.name, self.name());
        let why = format!("NBD clients are attached: {}", client_names(&clients));
        Err(ErrorReport::new(ErrorId::ClientsAttached, what, why))
    }

    /// The controller's answer to an order as the client sees it.
    pub(super) fn ended(
        &self,
        resource: &ResourceConfig,
        order: Order,
        timeout: Duration,
        outcome: Option<Result<Done, OrderRefusal>>,
    ) -> Result<Done, ErrorReport> {
        match outcome {
            Some(Ok(done)) => Ok(done),
            Some(Err(refusal)) => Err(words::refusal_report(&refusal, order, self.names(resource))),
            None => {
                let what = format!("no answer about {} within {timeout:?}", resource.name);
                let why = "the order may still be carried out";
                Err(ErrorReport::new(ErrorId::TimedOut, what, why))
            }
        }
    }

    fn attach_order(&self, resource: &ResourceConfig, timeout: Option<Duration>) -> Outcome {
        self.check_running(resource)?;
        let timeout = timeout.unwrap_or(ORDER_TIMEOUT);
        let _claim = Claim::take(self, resource, timeout)?;
        let attached = |disk| {
            !matches!(
                disk,
                DiskState::Diskless
                    | DiskState::Detaching
                    | DiskState::Attaching
                    | DiskState::Failed
            )
        };
        if self.engine(resource, |it| attached(it.disk)) {
            return done(false, format!("{} is attached already", resource.name));
        }
        if self.engine(resource, |it| it.disk == DiskState::Failed) {
            self.let_failed_disk_go(resource, timeout)?;
        }
        self.attach(resource, timeout)?;
        self.board
            .update(|board| board.resource(resource.id()).retried = false);
        done(
            true,
            format!("{}{} is attached", resource.name, all_volumes(resource)),
        )
    }

    /// A disk that failed is attached anew from the beginning, once nothing can land on it any more.
    fn let_failed_disk_go(
        &self,
        resource: &ResourceConfig,
        timeout: Duration,
    ) -> Result<(), ErrorReport> {
        let (name, peer) = (&resource.name, self.config.node_name(self.node.peer()));
        // The only replica holds its guests anyway: let go of, it serves again once it is attached.
        let serves = self.engine(resource, |it| it.role == Role::Primary);
        if serves && !self.is_only_replica(resource) {
            let what = format!("{name} cannot be attached on {} now", self.name());
            let why =
                "it is Primary here, and what is on the failed disk is not what its guests see";
            return Err(ErrorReport::new(ErrorId::LastGoodCopy, what, why)
                .next(format!("twinadm move {name} {peer}"))
                .next(format!("then, here: twinadm attach {name}")));
        }
        self.admin(resource, AdminRequest::Detach);
        let gone = |it: &replicator::engine::Snapshot| {
            it.disk == DiskState::Diskless && it.role != Role::Primary
        };
        if self.wait_engine(resource, timeout, gone) {
            return Ok(());
        }
        let what = format!("{name} is not attached on {}", self.name());
        let why = "operations on the failed disk are not over: they could still land";
        Err(ErrorReport::new(ErrorId::TimedOut, what, why)
            .next("mend the disk that does not answer")
            .next(format!("then: twinadm attach {name}")))
    }

    /// Whether the newest view known here counts on this node's replica alone.
    fn is_only_replica(&self, resource: &ResourceConfig) -> bool {
        self.board.update(|board| {
            let controller = board.resource(resource.id()).controller.as_ref();
            let view = controller.and_then(|it| it.view.as_ref());
            view.is_some_and(|view| view.in_sync == InSync::only(self.node))
        })
    }

    fn detach_order(&self, resource: &ResourceConfig, timeout: Option<Duration>) -> Outcome {
        self.check_running(resource)?;
        let timeout = timeout.unwrap_or(ORDER_TIMEOUT);
        let _claim = Claim::take(self, resource, timeout)?;
        let name = &resource.name;
        let retried = self.board.update(|board| {
            let known = board.resource(resource.id());
            core::mem::replace(&mut known.retried, false)
        });
        if self.engine(resource, |it| it.disk == DiskState::Diskless) {
            return match retried {
                true => done(true, format!("{name} is not attached any more by itself")),
                false => done(false, format!("{name} is detached already")),
            };
        }
        let failed = self.engine(resource, |it| it.disk == DiskState::Failed);
        let serves = self.engine(resource, |it| it.role == Role::Primary);
        if serves && !(failed && self.is_only_replica(resource)) {
            let what = format!("{name} stays attached on {}", self.name());
            let why = "it is Primary here: its guests read and write this disk";
            let peer = self.config.node_name(self.node.peer());
            return Err(ErrorReport::new(ErrorId::LastGoodCopy, what, why)
                .next(format!("twinadm move {name} {peer}"))
                .next(format!("then: twinadm detach {name}")));
        }
        self.admin(resource, AdminRequest::Detach);
        if self.wait_engine(resource, timeout, |it| it.disk == DiskState::Diskless) {
            return done(true, format!("{name}{} is detached", all_volumes(resource)));
        }
        let what = format!("{name} is still attached on {}", self.name());
        Err(ErrorReport::new(
            ErrorId::TimedOut,
            what,
            "the engine did not let the disk go",
        ))
    }

    fn connection_order(
        &self,
        resource: &ResourceConfig,
        connect: bool,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_running(resource)?;
        let is_so = |state: ConnectionState| (state != ConnectionState::StandAlone) == connect;
        let (name, peer) = (&resource.name, self.config.node_name(self.node.peer()));
        let word = if connect {
            "connecting to"
        } else {
            "disconnected from"
        };
        if self.engine(resource, |it| is_so(it.connection) && it.refused.is_none()) {
            return done(false, format!("{name} is {word} {peer} already"));
        }
        self.admin(
            resource,
            if connect {
                AdminRequest::Connect
            } else {
                AdminRequest::Disconnect
            },
        );
        let timeout = timeout.unwrap_or(ORDER_TIMEOUT);
        if self.wait_engine(resource, timeout, |it| is_so(it.connection)) {
            return done(true, format!("{name} is {word} {peer}"));
        }
        let refused = self.board.read(|board| {
            let shard = board
                .resources
                .get(&resource.id())
                .and_then(|it| it.shard.as_ref());
            shard.and_then(|it| it.engine.refused)
        });
        let what = format!("{name} is not {word} {peer}");
        let why = refused.map_or_else(
            || "the engine did not answer".to_owned(),
            status::refusal_words,
        );
        Err(ErrorReport::new(ErrorId::Unrelated, what, why))
    }

    /// Hands an operator's request to the resource's engine.
    pub(super) fn admin(&self, resource: &ResourceConfig, request: AdminRequest) {
        self.command(ShardCommand::Engine {
            resource: resource.id(),
            input: Box::new(Input::Admin(request)),
        });
    }

    /// Whether the newest snapshot of the engine is so.
    pub(super) fn engine(
        &self,
        resource: &ResourceConfig,
        is_so: impl Fn(&replicator::engine::Snapshot) -> bool,
    ) -> bool {
        self.wait_engine(resource, Duration::ZERO, is_so)
    }

    /// Waits until the engine's snapshot is so.
    pub(super) fn wait_engine(
        &self,
        resource: &ResourceConfig,
        timeout: Duration,
        is_so: impl Fn(&replicator::engine::Snapshot) -> bool,
    ) -> bool {
        let found = self.board.wait(timeout, |board| {
            let shard = board
                .resources
                .get(&resource.id())
                .and_then(|it| it.shard.as_ref());
            shard.filter(|it| is_so(&it.engine)).map(|_| ())
        });
        found.is_some()
    }
}

fn check_volume(resource: &ResourceConfig, volume: Option<u16>) -> Result<(), ErrorReport> {
    match volume {
        Some(wanted) if resource.volumes.iter().all(|known| known.id.0 != wanted) => {
            let what = format!("{} has no volume {wanted}", resource.name);
            Err(ErrorReport::new(
                ErrorId::NoSuchPart,
                what,
                "it is not configured",
            ))
        }
        _ => Ok(()),
    }
}

pub(super) fn no_such_resource(name: &str) -> ErrorReport {
    let what = format!("there is no resource {name}");
    let next = "written to the files after the daemon started? twinadm adjust";
    ErrorReport::new(ErrorId::NoSuchResource, what, "it is not configured").next(next)
}

pub(super) fn client_names(clients: &[NbdClient]) -> String {
    let names = clients
        .iter()
        .map(|client| match (client.pid, client.address) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(address)) => format!("a client at {address}"),
            (None, None) if client.forwarded => "a client passed on by the peer".to_owned(),
            (None, None) => "a client that is not known".to_owned(),
        });
    names.collect::<Vec<_>>().join(", ")
}
