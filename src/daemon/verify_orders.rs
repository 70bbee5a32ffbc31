//! `verify`: compare both replicas, mend what differs if told, stop.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Request, Verb};
use replicator::engine::{AdminRequest, Snapshot, VerifyOrder};
use replicator::types::{ConnectionState, DiskState, ReplicationState, Role};

use super::control::Asker;
use super::node::Node;
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use crate::config::ResourceConfig;

impl Node {
    pub(super) fn verify_order(
        &self,
        resource: &ResourceConfig,
        repair: bool,
        stop: bool,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_running(resource)?;
        if stop {
            self.stop_verify(resource, timeout)
        } else {
            self.start_verify(resource, repair, timeout)
        }
    }

    fn stop_verify(&self, resource: &ResourceConfig, timeout: Option<Duration>) -> Outcome {
        let name = &resource.name;
        if !self.engine(resource, is_verifying) {
            return done(false, format!("no verify of {name} runs here already"));
        }
        let order = AdminRequest::Verify(VerifyOrder::Stop);
        self.admin(resource, order);
        self.await_verify(resource, timeout, |it| !is_verifying(it))?;
        done(true, format!("the verify of {name} is stopped"))
    }

    fn start_verify(
        &self,
        resource: &ResourceConfig,
        repair: bool,
        timeout: Option<Duration>,
    ) -> Outcome {
        let name = &resource.name;
        let Some(engine) = self.newest(resource) else {
            return Err(no_answer(resource));
        };
        let runs = engine.verify.as_ref().filter(|_| is_verifying(&engine));
        let word = if repair { " and repaired" } else { "" };
        if let Some(report) = runs {
            if report.repair == repair {
                return done(false, format!("{name} is being compared{word} already"));
            }
            let why = "a verify with another purpose runs";
            let report = ErrorReport::new(ErrorId::OrderUnderWay, refusing(name), why);
            return Err(report
                .next(format!("twinadm verify {name} --stop"))
                .next("then give the order again"));
        }
        self.check_may_verify(resource, &engine)?;
        let before = engine.verifies_begun;
        self.admin(
            resource,
            AdminRequest::Verify(VerifyOrder::Start { repair }),
        );
        self.await_verify(resource, timeout, |it| it.verifies_begun > before)?;
        done(true, format!("{name} is being compared{word}"))
    }

    fn check_may_verify(
        &self,
        resource: &ResourceConfig,
        engine: &Snapshot,
    ) -> Result<(), ErrorReport> {
        let name = &resource.name;
        let peer = self.config.node_name(self.node.peer());
        if engine.role != Role::Primary {
            let why = "the Primary compares, and neither node is one as far as is known here";
            return Err(ErrorReport::new(ErrorId::NoPrimary, refusing(name), why));
        }
        if engine.connection != ConnectionState::Connected {
            let why = format!("{peer} is not connected");
            let report = ErrorReport::new(ErrorId::NodeUnreachable, refusing(name), why);
            return Err(report.next(format!("twinadm wait-connect {name}")));
        }
        let whole = engine.disk == DiskState::UpToDate && engine.peer_disk == DiskState::UpToDate;
        if !whole || engine.replication != ReplicationState::Established {
            let why = format!(
                "both replicas must be up to date: here {}, on {peer} {}",
                engine.disk, engine.peer_disk
            );
            let report = ErrorReport::new(ErrorId::NotUpToDate, refusing(name), why);
            return Err(report.next(format!("twinadm wait-sync {name}")));
        }
        Ok(())
    }

    fn await_verify(
        &self,
        resource: &ResourceConfig,
        timeout: Option<Duration>,
        is_so: impl Fn(&Snapshot) -> bool,
    ) -> Result<(), ErrorReport> {
        if self.wait_engine(resource, timeout.unwrap_or(ORDER_TIMEOUT), is_so) {
            return Ok(());
        }
        Err(no_answer(resource))
    }

    fn newest(&self, resource: &ResourceConfig) -> Option<Snapshot> {
        self.board.read(|board| {
            let known = board.resources.get(&resource.id())?;
            Some(known.shard.as_ref()?.engine.clone())
        })
    }

    /// The order as the Primary gets it, if that is the peer.
    pub(super) fn primary_elsewhere(
        &self,
        request: &Request,
        asker: Asker,
    ) -> Result<Option<Request>, ErrorReport> {
        let (Verb::Verify { resource, .. } | Verb::Resize { resource, .. }) = &request.verb else {
            return Ok(None);
        };
        let resource = self.resource(resource)?;
        let elsewhere = self.engine(&resource, |it| {
            it.role != Role::Primary && it.peer_role == Role::Primary
        });
        // Passed on once: the nodes may disagree about who is Primary.
        if !elsewhere || asker.relayed_by.is_some() {
            return Ok(None);
        }
        Ok(Some(Request {
            node: Some(self.config.node_name(self.node.peer()).to_owned()),
            ..request.clone()
        }))
    }
}

fn is_verifying(engine: &Snapshot) -> bool {
    engine.replication == ReplicationState::VerifyS
}

fn refusing(name: &str) -> String {
    format!("{name} is not compared")
}

fn no_answer(resource: &ResourceConfig) -> ErrorReport {
    let what = format!("no answer about a verify of {}", resource.name);
    let why = "the engine did not take the order in time";
    ErrorReport::new(ErrorId::TimedOut, what, why)
}
