//! `invalidate` and `invalidate-remote`: a Secondary's data are thrown away.
//!
//! What can be known is refused here, at once and with words; what the order waits for is the
//! engine's business: a view without this replica, then a record.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Request, Verb};
use replicator::engine::{AdminRequest, Snapshot};
use replicator::types::{BLOCK_LEN, ConnectionState, DiskState, InSync, ResourceId, Role, View};

use super::board::BoardState;
use super::control::Asker;
use super::node::Node;
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use crate::config::{ResourceConfig, size_text};
use crate::controller::PeerClaim;

/// How long an order that was taken back waits for a record that had begun.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// How long an order waits for the first word of a peer that was heard only just now.
const WORD_PATIENCE: Duration = Duration::from_secs(2);

/// One client at a time waits for this order: the one that takes it back takes back its own.
struct Sole<'a> {
    all: &'a Mutex<BTreeSet<ResourceId>>,
    mine: ResourceId,
}

impl<'a> Sole<'a> {
    fn of(all: &'a Mutex<BTreeSet<ResourceId>>, mine: ResourceId) -> Option<Self> {
        let fresh = lock(all).insert(mine);
        fresh.then_some(Self { all, mine })
    }
}

impl Drop for Sole<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(&self.mine);
    }
}

fn lock(all: &Mutex<BTreeSet<ResourceId>>) -> MutexGuard<'_, BTreeSet<ResourceId>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What decides whether data may be thrown away.
struct Known {
    engine: Snapshot,
    view: Option<View>,
    /// The peer's daemon was heard lately, whether or not the replicas are connected.
    peer_seen: bool,
    /// What it says about the resource, if it has said anything lately.
    peer: Option<PeerClaim>,
}

impl Node {
    pub(super) fn invalidate_order(
        &self,
        resource: &ResourceConfig,
        from: &str,
        yes_discard: Option<u64>,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_peer(Some(from))?;
        self.check_running(resource)?;
        let Some(known) = self.known(resource) else {
            let what = format!("no answer about {}", resource.name);
            return Err(ErrorReport::new(
                ErrorId::TimedOut,
                what,
                "its engine has said nothing yet",
            ));
        };
        if is_copying_all(&known.engine) {
            let message = format!("all of {} is being copied from {from}", resource.name);
            return done(false, format!("{message} already"));
        }
        self.check_may_invalidate(resource, from, &known)?;
        self.check_discard(resource, from, &known, yes_discard)?;
        let Some(_sole) = Sole::of(&self.resources.invalidating, resource.id()) else {
            let why = "another client waits for the same order".to_owned();
            let what = self.refusing(&resource.name, from);
            return Err(ErrorReport::new(ErrorId::Busy, what, why));
        };
        let before = known.engine.invalidations;
        let given_up = |it: &Snapshot| it.invalidations > before;
        self.admin(resource, AdminRequest::Invalidate);
        let timeout = timeout.unwrap_or(ORDER_TIMEOUT);
        if !self.wait_engine(resource, timeout, given_up) {
            self.admin(resource, AdminRequest::KeepData);
            self.check_kept(resource, from, given_up)?;
        }
        let message = format!(
            "{} on {} counts for nothing any more: all of it is copied from {from}",
            resource.name,
            self.name()
        );
        done(true, message)
    }

    /// The order was taken back: an error that says what became of the data, unless they were given
    /// up all the same, by a record that had begun.
    fn check_kept(
        &self,
        resource: &ResourceConfig,
        from: &str,
        given_up: impl Fn(&Snapshot) -> bool,
    ) -> Result<(), ErrorReport> {
        let (name, node) = (&resource.name, self.name());
        let over = self.wait_engine(resource, RECORD_PATIENCE, |it| !it.invalidate_pending);
        if self.engine(resource, given_up) {
            return Ok(());
        }
        let (what, why) = if over {
            (
                format!("{name} on {node} keeps its data"),
                format!("no view without it came in time: {from} and the voters must agree"),
            )
        } else {
            (
                format!("whether {name} on {node} keeps its data is not known yet"),
                "that it counts for nothing is being recorded, and its disk does not answer".into(),
            )
        };
        let next = format!("twinadm status {name}");
        Err(ErrorReport::new(ErrorId::TimedOut, what, why).next(next))
    }

    /// A peer that began a moment ago is given the time for its first word about the resource.
    fn known(&self, resource: &ResourceConfig) -> Option<Known> {
        let told = |known: &Known| known.peer.is_some() || !known.peer_seen;
        let patient = self.board.wait(WORD_PATIENCE, |board| {
            self.known_to(board, resource).filter(told)
        });
        patient.or_else(|| self.board.read(|board| self.known_to(board, resource)))
    }

    fn known_to(&self, board: &BoardState, resource: &ResourceConfig) -> Option<Known> {
        let peer = self.node.peer().index();
        let known = board.resources.get(&resource.id())?;
        let voters = board.node.as_ref().map(|node| &node.voters);
        Some(Known {
            engine: known.shard.as_ref()?.engine.clone(),
            view: known.controller.as_ref().and_then(|it| it.view),
            peer: known.controller.as_ref().and_then(|it| it.peer),
            peer_seen: voters.is_some_and(|voters| voters[peer].seen),
        })
    }

    fn check_may_invalidate(
        &self,
        resource: &ResourceConfig,
        from: &str,
        known: &Known,
    ) -> Result<(), ErrorReport> {
        let (name, node) = (&resource.name, self.name());
        let engine = &known.engine;
        let refuse = |id, why: String| Err(ErrorReport::new(id, self.refusing(name, from), why));
        if engine.role == Role::Primary {
            let why = format!("{node} is Primary: its guests read and write these data");
            let report = ErrorReport::new(ErrorId::LastGoodCopy, self.refusing(name, from), why);
            return Err(report
                .next(format!("twinadm secondary {name}"))
                .next(format!("on {from}: twinadm primary {name}"))
                .next(format!("then: twinadm invalidate {name} --from {from}")));
        }
        if matches!(
            engine.disk,
            DiskState::Diskless | DiskState::Attaching | DiskState::Detaching | DiskState::Failed
        ) {
            return refuse(
                ErrorId::NotAttached,
                format!("no disk is attached on {node}"),
            );
        }
        let Some(view) = known.view else {
            let why = format!("no node was ever Primary for {name}: there is nothing to copy");
            return Err(
                ErrorReport::new(ErrorId::NoPrimary, self.refusing(name, from), why)
                    .next(format!("twinadm primary {name}")),
            );
        };
        if view.in_sync == InSync::only(self.node) {
            let why = format!(
                "{node} has the only up-to-date copy, by view {}",
                view.number.0
            );
            return refuse(ErrorId::LastGoodCopy, why);
        }
        let connected = engine.connection == ConnectionState::Connected;
        let named = view.in_sync.contains(self.node);
        if !connected && (named || !known.peer_seen) {
            let why = format!("{from} is not connected, and its copy is to replace this one");
            return Err(
                ErrorReport::new(ErrorId::NodeUnreachable, self.refusing(name, from), why)
                    .next(format!("twinadm wait-connect {name}")),
            );
        }
        if named && engine.peer_role != Role::Primary {
            let why = format!(
                "view {} counts on this copy, and only a Primary can leave it out",
                view.number.0
            );
            return Err(
                ErrorReport::new(ErrorId::NoPrimary, self.refusing(name, from), why)
                    .next(format!("on {from}: twinadm primary {name}"))
                    .next(format!("then: twinadm invalidate {name} --from {from}")),
            );
        }
        let Some(peer) = known.peer else {
            let why =
                format!("{from} says nothing about {name}: whether its disk works is not known");
            let report = ErrorReport::new(ErrorId::NodeUnreachable, self.refusing(name, from), why);
            return Err(report.next(format!("on {from}: twinadm status {name}")));
        };
        // Its record lets it serve: the disk works and holds everything.
        if !(peer.attached && peer.eligible) {
            // A view names a Primary whose disk has failed all the same.
            let why = format!("{from} has no disk that works: there may be no other copy");
            let report = ErrorReport::new(ErrorId::LastGoodCopy, self.refusing(name, from), why);
            return Err(report.next(format!("on {from}: twinadm status {name}")));
        }
        Ok(())
    }

    /// A replica that is left out but was never overwritten holds what it wrote and the peer was
    /// not told of: its own marks.
    fn check_discard(
        &self,
        resource: &ResourceConfig,
        from: &str,
        known: &Known,
        yes_discard: Option<u64>,
    ) -> Result<(), ErrorReport> {
        let engine = &known.engine;
        let own = matches!(engine.disk, DiskState::Outdated | DiskState::Consistent);
        let blocks = if own { engine.out_of_sync_blocks } else { 0 };
        let bytes = blocks.saturating_mul(BLOCK_LEN);
        if bytes == 0 || yes_discard.is_some_and(|most| bytes <= most) {
            return Ok(());
        }
        let (name, size) = (&resource.name, size_text(bytes));
        let why = format!(
            "{} holds {size} ({blocks} blocks of 4 KiB) that {from} may never have had",
            self.name()
        );
        let discard = format!("twinadm invalidate {name} --from {from} --yes-discard={size}");
        Err(
            ErrorReport::new(ErrorId::WouldDiscard, self.refusing(name, from), why)
                .next(format!("look first: twinadm split-brain show {name}"))
                .next(format!("discard them: {discard}")),
        )
    }

    fn refusing(&self, name: &str, from: &str) -> String {
        format!(
            "refusing `invalidate {name} --from {from}` on {}",
            self.name()
        )
    }

    /// The same order as the peer gets it, to be passed on.
    pub(super) fn invalidate_remote(
        &self,
        request: &Request,
        asker: Asker,
    ) -> Result<Option<Request>, ErrorReport> {
        let Verb::InvalidateRemote {
            resource,
            peer,
            yes_discard,
        } = &request.verb
        else {
            return Ok(None);
        };
        let resource = self.resource(resource)?;
        self.check_peer(Some(peer))?;
        if asker.relayed_by.is_some() {
            let what = format!("{} does not pass on what was passed on", self.name());
            let why = format!("the order is {peer}'s to carry out");
            let next = format!(
                "twinadm invalidate {} --from {} --node {peer}",
                resource.name,
                self.name()
            );
            return Err(ErrorReport::new(ErrorId::BadRequest, what, why).next(next));
        }
        Ok(Some(Request {
            verb: Verb::Invalidate {
                resource: resource.name.clone(),
                from: self.name().to_owned(),
                yes_discard: *yes_discard,
            },
            node: Some(peer.clone()),
            timeout_ms: request.timeout_ms,
        }))
    }
}

/// Whether the running resync copies everything.
fn is_copying_all(engine: &Snapshot) -> bool {
    let running = engine.resync.filter(|resync| resync.ended.is_none());
    engine.role != Role::Primary && running.is_some_and(|resync| resync.full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_belongs_to_one_client_until_it_is_over() {
        let all = Mutex::default();
        let first = Sole::of(&all, ResourceId(1)).expect("nobody else waits");
        assert!(Sole::of(&all, ResourceId(1)).is_none());
        assert!(Sole::of(&all, ResourceId(2)).is_some());
        drop(first);
        assert!(Sole::of(&all, ResourceId(1)).is_some());
    }
}
