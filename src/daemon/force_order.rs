//! `primary RES --force`: what would be given up is told first, and done only by whoever types the
//! resource's name and the view that it gives up. What may be forced at all is the controller's business.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::types::NodeId;

use super::node::{Answer, Node, Question};
use crate::config::ResourceConfig;
use crate::controller::{Blocker, ForceLoss, Order, Why};

/// Whether the order without force would fail, or wait for voters that may never come.
fn is_needed(why: &Why) -> bool {
    let stays =
        |blocker: &Blocker| !blocker.may_pass() || matches!(blocker, Blocker::NoQuorum { .. });
    why.view.is_some() && (why.lease.lapsed || why.order_blockers.iter().any(stays))
}

/// Whether the controller refuses it whatever is typed.
fn is_hopeless(why: &Why) -> bool {
    let hopeless =
        |blocker: &Blocker| matches!(blocker, Blocker::PeerActive { .. } | Blocker::NotUp);
    why.order_blockers.iter().any(hopeless)
}

/// What is to be typed: the resource, and the view that is given up.
fn word_for(resource: &ResourceConfig, why: &Why) -> String {
    let number = why.view.map_or(0, |view| view.number.0);
    format!("{}@{number}", resource.name)
}

impl Node {
    /// The order that a forced promotion comes to.
    pub(super) fn forced_order(
        &self,
        resource: &ResourceConfig,
        yes_lose: Option<&str>,
    ) -> Result<Order, ErrorReport> {
        self.check_running(resource)?;
        let Some(Answer::Why(Some(why))) = self.ask(Question::Why(resource.id())) else {
            return Err(self.controller_silent());
        };
        if !is_needed(&why) {
            return Ok(Order::Primary);
        }
        // The name alone might be typed about a view that is not the one that was told of.
        if why.view.is_some() && yes_lose == Some(word_for(resource, &why).as_str()) {
            return Ok(Order::Force);
        }
        if is_hopeless(&why) {
            // Refused without force, too, and never done without that word.
            return Ok(Order::Primary);
        }
        Err(self.would_lose(resource, &why))
    }

    fn would_lose(&self, resource: &ResourceConfig, why: &Why) -> ErrorReport {
        let (name, node) = (&resource.name, self.name());
        let peer = self.config.node_name(self.node.peer());
        let engine = self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            known
                .and_then(|it| it.shard.as_ref())
                .map(|it| it.engine.clone())
        });
        let told = self.told(resource, why, engine.as_ref());
        let mut reasons = vec![format!("this would lose {}", told.force_loses().0)];
        reasons.push(self.peer_words(why));
        if let Some(view) = &why.view {
            let counts = view.in_sync.contains(self.node);
            let since = if counts {
                "the view that counts on"
            } else {
                "the view that left out"
            };
            reasons.push(format!(
                "{since} {node} is {}{}",
                view.number,
                self.noted_at(resource, view.number.0)
            ));
        }
        if why
            .order_blockers
            .iter()
            .any(|it| matches!(it, Blocker::NoQuorum { .. }))
            || why.lease.lapsed
        {
            reasons.push(format!(
                "no majority is seen: {node} would decide alone, after waiting, and overrule whatever the \
                 other voters agreed on meanwhile"
            ));
        }
        let what = format!("refusing `primary {name} --force` on {node}");
        let mut report = ErrorReport::new(ErrorId::WouldLose, what, reasons.join("; "));
        report = report.next(match why.force_loss(self.node) {
            ForceLoss::LeftOut | ForceLoss::Replica(_) => {
                format!("lose nothing: bring {peer} back; it serves by itself")
            }
            ForceLoss::MayBeOverruled => {
                format!("lose nothing: see what {peer} has: twinadm status {name} --node {peer}")
            }
            _ => "lose nothing: bring another voter back".to_owned(),
        });
        report
            .next(format!("see everything: twinadm why {name} {node}"))
            .next(format!(
                "that may be lost: twinadm primary {name} --force --yes-lose={}",
                word_for(resource, why)
            ))
    }

    /// Whether the peer may be serving, as far as this node can tell.
    fn peer_words(&self, why: &Why) -> String {
        let peer = self.node.peer();
        let name = self.config.node_name(peer);
        let seen = self.board.read(|board| {
            let voter = board.node.as_ref().map(|node| node.voters[peer.index()]);
            voter.map(|voter| (voter.seen, voter.last_seen))
        });
        let alone = why.view.is_some_and(|view| {
            view.primary == peer && !view.in_sync.contains(self.node) && peer != NodeId::ARBITRATOR
        });
        let serves = if alone {
            "it needs nobody to serve, and may do so"
        } else {
            "it may serve"
        };
        match seen {
            Some((true, _)) => format!("{name} is heard and says that it does not serve"),
            Some((false, Some(ago))) => {
                format!("{name} was last seen {} ago: {serves}", seconds(ago))
            }
            _ => format!("{name} was not seen since the daemon here started: {serves}"),
        }
    }

    /// When this node noted the view, if it still knows.
    fn noted_at(&self, resource: &ResourceConfig, view: u64) -> String {
        let noted = self.newest_history(resource.id(), usize::MAX);
        let entry = noted
            .into_iter()
            .rev()
            .find(|entry| entry.view == Some(view));
        entry.map_or_else(String::new, |entry| {
            format!(
                ", known here since {}",
                replicator::admin::rfc3339_seconds(entry.unix_millis)
            )
        })
    }
}

fn seconds(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}
