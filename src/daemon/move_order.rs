//! `move RES NODE`: the planned change of the Primary, in one order, given on any node.
//!
//! Whoever is Primary carries it out, and that is the other data node than the one it goes to. A node
//! that is asked and is neither passes it on, once.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Request, Verb};
use replicator::types::{NodeId, Role};

use super::api::ResourceSnapshot;
use super::node::{Answer, Node, Question};
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use super::running::timing;
use super::words;
use crate::config::ResourceConfig;
use crate::controller::{Blocker, Order, OrderRefusal, PeerClaim};

/// How long the answer waits for the word that the successor's engine serves, after its view is
/// committed: a record in its metadata and a new session. Clients try again by themselves meanwhile.
const SERVES_PATIENCE: Duration = Duration::from_secs(2);

/// How long news of a change may take from a beacon to the board.
const NEWS_PATIENCE: Duration = Duration::from_millis(500);

/// Most of the time given that may go by before the Primary leaves, as a divisor: what comes after is
/// bounded by the deadlines of the cluster.
const LEAVE_SHARE: u32 = 2;

/// The request for the node that is to carry it out.
pub(super) fn as_passed_on(mut request: Request, mover: &str) -> Request {
    request.node = Some(mover.to_owned());
    if let Verb::Move { passed_on, .. } = &mut request.verb {
        *passed_on = true;
    }
    request
}

impl Node {
    /// The other node that has to carry out this move; `None` if this one answers. Nothing but a move
    /// is passed on by it.
    pub(super) fn mover(&self, verb: &Verb) -> Result<Option<NodeId>, ErrorReport> {
        let Verb::Move {
            resource,
            to,
            passed_on,
        } = verb
        else {
            return Ok(None);
        };
        let successor = self.successor(to)?;
        let mover = successor.peer();
        if mover == self.node {
            return Ok(None);
        }
        if !self.node.is_data() {
            return Ok(Some(mover));
        }
        let resource = &*self.resource(resource)?;
        if *passed_on {
            return Ok(None);
        }
        match self.who_serves(resource) {
            Some(serves) => Ok((serves == mover).then_some(mover)),
            None => Err(self.nobody_serves(resource, to)),
        }
    }

    /// The node that serves, as far as it is known here: what a beacon said may not be on the board
    /// yet.
    fn who_serves(&self, resource: &ResourceConfig) -> Option<NodeId> {
        self.board.wait(NEWS_PATIENCE, |board| {
            let known = board.resources.get(&resource.id())?;
            let here = |it: &ResourceSnapshot| it.engine.role == Role::Primary;
            if known.shard.as_ref().is_some_and(here) {
                return Some(self.node);
            }
            let claim = known.controller.as_ref().and_then(|it| it.peer);
            claim.is_some_and(|it| it.active).then(|| self.node.peer())
        })
    }

    /// The data node of that name.
    fn successor(&self, to: &str) -> Result<NodeId, ErrorReport> {
        match self.config.node_id(to) {
            Some(node) if node.is_data() => Ok(node),
            Some(_) => {
                let what = format!("{to} cannot be Primary");
                let why = "it is the arbitrator: it votes and holds no data";
                let report = ErrorReport::new(ErrorId::ArbitratorHoldsNoData, what, why);
                Err(report.next("name a data node"))
            }
            None => Err(no_such_node(self, to)),
        }
    }

    fn peer_claim(&self, resource: &ResourceConfig) -> Option<PeerClaim> {
        self.board.read(|board| {
            let known = board.resources.get(&resource.id())?;
            known.controller.as_ref()?.peer
        })
    }

    fn nobody_serves(&self, resource: &ResourceConfig, to: &str) -> ErrorReport {
        let name = &resource.name;
        let what = format!("{name} was not moved to {to}");
        let (one, other) = (NodeId::A, NodeId::B);
        let why = format!(
            "neither {} nor {} is Primary now, as far as {} knows",
            self.config.node_name(one),
            self.config.node_name(other),
            self.name()
        );
        let report = ErrorReport::new(ErrorId::NobodyServes, what, why);
        report
            .next(format!("twinadm why {name} {to}"))
            .next(format!(
                "on the node that is to serve: twinadm primary {name}"
            ))
    }

    /// A guest is not stopped for a move that would be refused.
    fn check_movable(&self, resource: &ResourceConfig) -> Result<(), ErrorReport> {
        if resource.guest.is_none() {
            return Ok(());
        }
        let Some(Answer::Why(Some(why))) = self.ask(Question::Why(resource.id())) else {
            return Err(self.controller_silent());
        };
        let hopeless = |blocker: &Blocker| !blocker.may_pass();
        if why.active.is_none() || !why.move_blockers.iter().any(hopeless) {
            return Ok(());
        }
        let refusal = OrderRefusal::Blocked {
            blockers: why.move_blockers,
            waited: Duration::ZERO,
        };
        Err(words::refusal_report(
            &refusal,
            Order::Move,
            self.names(resource),
        ))
    }

    pub(super) fn move_order(
        &self,
        resource: &ResourceConfig,
        to: &str,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.move_if(resource, to, timeout, || Ok(()))
    }

    /// `still` is asked last, once nothing is left but the order itself: its guest is stopped by then.
    pub(super) fn move_if(
        &self,
        resource: &ResourceConfig,
        to: &str,
        timeout: Option<Duration>,
        still: impl FnOnce() -> Result<(), ErrorReport>,
    ) -> Outcome {
        let name = &resource.name;
        if self.successor(to)? == self.node {
            // Asked as the one it goes to: by now it serves, or nobody does.
            return match self.who_serves(resource) == Some(self.node) {
                true => done(false, format!("{name} is Primary on {to} already")),
                false => Err(self.nobody_serves(resource, to)),
            };
        }
        self.check_running(resource)?;
        let _passing = self.check_not_suspended(resource, false)?;
        self.check_movable(resource)?;
        // Held to the end: an order that fails gives the guest back.
        let _stopped = self.stop_guest(resource, false)?;
        still()?;
        // After it left, the Primary waits for its successor, or for its own return, on its own time.
        let after = timing(self.config.quorum.timing).grant * 3;
        let timeout = timeout.unwrap_or(ORDER_TIMEOUT);
        let before = timeout.saturating_sub(after).max(timeout / LEAVE_SHARE);
        let mut order = self.begin_order(resource, Order::Move, before);
        order.prolong(after);
        // Bounded, and waited for even if nobody listens any more: the order stands, and so must what
        // was done for it.
        let outcome = self.end_order(order, || true);
        let ended = self.ended(resource, Order::Move, timeout, outcome)?;
        let (from, view) = (self.name(), ended.view);
        if ended.already {
            return done(false, format!("{name} is Primary on {to} already"));
        }
        let serves = self.wait_engine(resource, SERVES_PATIENCE, |it| {
            it.peer_role == Role::Primary
        }) || self.peer_claim(resource).is_some_and(|claim| claim.active);
        match serves {
            true => done(
                true,
                format!("{name} moved from {from} to {to} in view {view}"),
            ),
            false => {
                let what = format!("{name} left {from} and is not served by {to} yet");
                let why =
                    format!("view {view} names {to} Primary, but it does not say that it serves");
                let report = ErrorReport::new(ErrorId::TimedOut, what, why);
                Err(report.next(format!("twinadm status {name} --node {to}")))
            }
        }
    }
}

/// Nobody configured a node of that name.
pub(super) fn no_such_node(node: &Node, name: &str) -> ErrorReport {
    let what = format!("there is no node {name}");
    let names: Vec<_> = node
        .config
        .nodes
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    let why = format!("the nodes are {}", names.join(", "));
    ErrorReport::new(ErrorId::NoSuchNode, what, why).next("name one of them")
}
