//! `why RES [NODE]`: the controller's own facts in words. What is decided is decided by the same
//! checks; nothing here judges.

use std::time::Duration;

use replicator::admin::{
    ErrorId, ErrorReport, GrantReport, LeaseReport, PeerReport, PreconditionReport, Response,
    Verdict, ViewReport, WHY_SCHEMA, WhyReport, rfc3339_seconds,
};
use replicator::engine::Snapshot;
use replicator::types::{BLOCK_LEN, DiskState, NodeId, View, ViewNumber, VoterSet};

use super::node::{Answer, Node, Question};
use super::orders::Outcome;
use super::words;
use crate::config::{Config, ResourceConfig};
use crate::controller::{Blocker, Check, ForceLoss, Names, PeerClaim, Precondition, Why};

/// Decisions shown with the answer.
const HISTORY_SHOWN: usize = 3;

/// Votes that change a view.
pub(super) fn votes_needed() -> u8 {
    u8::try_from(VoterSet::MAJORITY).unwrap_or(u8::MAX)
}

impl Node {
    pub(super) fn why(&self, resource: &ResourceConfig) -> Outcome {
        let name = &resource.name;
        let Some(Answer::Why(why)) = self.ask(Question::Why(resource.id())) else {
            return Err(self.controller_silent());
        };
        let Some(why) = why else {
            let what = format!("nothing is known of {name} on {}", self.name());
            return Err(ErrorReport::new(
                ErrorId::NoSuchResource,
                what,
                "it is not configured",
            ));
        };
        let (engine, claim) = self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            let engine = known
                .and_then(|it| it.shard.as_ref())
                .map(|it| it.engine.clone());
            let claim = known.and_then(|it| it.controller.as_ref()?.peer);
            (engine, claim)
        });
        let told = self.told(resource, &why, engine.as_ref());
        Ok(Response::Why(Box::new(WhyReport {
            schema: WHY_SCHEMA.to_owned(),
            generated: rfc3339_seconds(Self::moment().unix_millis),
            node: self.name().to_owned(),
            resource: name.clone(),
            verdict: told.verdict(),
            summary: told.summary(),
            preconditions: told.preconditions(),
            view: why
                .view
                .map(|view| view_report(&self.config, &view, why.committed)),
            voters: self.voter_reports(),
            votes_needed: votes_needed(),
            lease: LeaseReport {
                needed: why.lease.needed,
                lapsed: why.lease.lapsed,
                remaining_seconds: why.lease.remaining.map(|left| left.as_secs_f64()),
            },
            grant: GrantReport {
                remaining_seconds: why.grant.remaining.map(|left| left.as_secs_f64()),
                boot_wait: why.grant.boot_wait && why.grant.remaining.is_some(),
                seal: why.grant.seal.0,
            },
            failover: why.failover,
            order: why.order.map(|order| words::verb_of(order).to_owned()),
            proposal: why.proposal.map(|kind| kind.to_string()),
            last_abort: why
                .last_abort
                .map(|(kind, abort)| format!("{kind}: {abort}")),
            peer: claim.map(|claim| peer_report(&self.config, self.node.peer(), claim)),
            force_loses: told.force_loses().0,
            force_loses_bytes: told.force_loses().1,
            placement: self.place_of(resource),
            history: self.newest_history(resource.id(), HISTORY_SHOWN),
            help: told.help(),
        })))
    }

    pub(super) fn told<'a>(
        &'a self,
        resource: &'a ResourceConfig,
        why: &'a Why,
        engine: Option<&'a Snapshot>,
    ) -> Told<'a> {
        Told {
            config: &self.config,
            node: self.node,
            names: self.names(resource),
            why,
            engine,
        }
    }

    pub(super) fn controller_silent(&self) -> ErrorReport {
        let what = format!("the controller of {} does not answer", self.name());
        ErrorReport::new(
            ErrorId::TimedOut,
            what,
            "its thread is busy, or the daemon stops",
        )
        .next("see the daemon's log, then try again")
    }
}

/// A view for people.
pub(super) fn view_report(config: &Config, view: &View, committed: ViewNumber) -> ViewReport {
    let in_sync = [NodeId::A, NodeId::B].into_iter();
    ViewReport {
        number: view.number.0,
        committed: view.number <= committed,
        primary: config.node_name(view.primary).to_owned(),
        in_sync: in_sync
            .filter(|node| view.in_sync.contains(*node))
            .map(|node| config.node_name(node).to_owned())
            .collect(),
        held: view.held,
        lossy: view.lossy,
        cause: format!("{:?}", view.cause),
    }
}

fn peer_report(config: &Config, peer: NodeId, claim: PeerClaim) -> PeerReport {
    PeerReport {
        node: config.node_name(peer).to_owned(),
        up: claim.up,
        active: claim.active,
        attached: claim.attached,
        view: claim.view.0,
    }
}

/// The facts and the names to tell them with.
pub(super) struct Told<'a> {
    config: &'a Config,
    node: NodeId,
    names: Names<'a>,
    why: &'a Why,
    engine: Option<&'a Snapshot>,
}

impl Told<'_> {
    fn verdict(&self) -> Verdict {
        if self.why.active.is_some() {
            return Verdict::Primary;
        }
        match self.why.first_blocker() {
            None => Verdict::Proposing,
            Some(Blocker::PeerActive { .. }) => Verdict::Secondary,
            Some(_) if self.why.awaits_order() => Verdict::AwaitsOrder,
            Some(blocker) if blocker.may_pass() => Verdict::Waiting,
            Some(_) => Verdict::Blocked,
        }
    }

    fn summary(&self) -> String {
        let Names { resource, node, .. } = &self.names;
        if let Some(view) = &self.why.active {
            let text = format!("{node} is Primary for {resource} in view {}", view.number);
            return format!("{text}: {}", self.lease_words());
        }
        let blocker = self.why.first_blocker();
        let reason = blocker.map(|blocker| blocker.why(&self.names));
        match (self.verdict(), reason) {
            (Verdict::Secondary, Some(reason)) => {
                format!("{node} is Secondary for {resource}: {reason}")
            }
            (_, Some(reason)) => format!("{node} is not Primary for {resource}: {reason}"),
            (_, None) => {
                let deciding = self.why.proposal.map_or_else(
                    || "it asks the voters".to_owned(),
                    |kind| format!("{kind} is being decided"),
                );
                format!("{node} is about to be Primary for {resource}: {deciding}")
            }
        }
    }

    fn lease_words(&self) -> String {
        let peer = self.names.peer;
        let lease = &self.why.lease;
        let seconds = |left: Duration| format!("{:.1} s", left.as_secs_f64());
        match lease.remaining {
            _ if !lease.needed => {
                format!("the view does not count on {peer}, so no lease is needed")
            }
            _ if lease.lapsed => format!(
                "but its lease is over, so requests wait for {peer} to be heard or left behind"
            ),
            Some(left) => format!("{peer} promised not to take over for {}", seconds(left)),
            None => format!("and waits for the first promise of {peer} not to take over"),
        }
    }

    /// Of a Primary what lets it go on; of another node what must hold before it may begin.
    fn preconditions(&self) -> Vec<PreconditionReport> {
        let Some(view) = &self.why.active else {
            let checks = self.why.checks.iter();
            return checks
                .map(|(it, check)| self.precondition(*it, *check))
                .collect();
        };
        let row = |name: &str, met, text| PreconditionReport {
            name: name.to_owned(),
            met,
            text,
        };
        let lease = &self.why.lease;
        let held = self.engine.and_then(|it| it.held);
        let gate = match held {
            None => "requests are answered".to_owned(),
            Some(_) => "requests are held: see twinadm status".to_owned(),
        };
        vec![
            row(
                "activated",
                Some(true),
                format!("it committed view {} itself, in this life", view.number),
            ),
            row(
                "lease",
                lease.needed.then_some(!lease.lapsed),
                self.lease_words(),
            ),
            row("gate", self.engine.map(|_| held.is_none()), gate),
        ]
    }

    fn precondition(&self, it: Precondition, check: Check) -> PreconditionReport {
        let (met, text) = match check {
            Check::Met => (Some(true), it.when_met(&self.names)),
            Check::Unmet(blocker) => (Some(false), self.evidence(blocker)),
            Check::NotAsked => (None, "does not arise as things are".to_owned()),
        };
        PreconditionReport {
            name: it.word().to_owned(),
            met,
            text,
        }
    }

    fn waits_for_lease(&self) -> bool {
        let mut unmet = self
            .why
            .checks
            .iter()
            .filter_map(|(_, check)| check.blocker());
        unmet.all(|blocker| matches!(blocker, Blocker::LeaseWait { .. }))
    }

    fn evidence(&self, blocker: Blocker) -> String {
        let text = blocker.why(&self.names);
        match blocker {
            Blocker::LeaseWait { .. } if self.why.grant.boot_wait => {
                format!("{text} (the daemon here has just started: it may have promised so before)")
            }
            _ => text,
        }
    }

    /// What making this node Primary by force would lose.
    pub(super) fn force_loses(&self) -> (String, Option<u64>) {
        let Names { node, peer, .. } = self.names;
        let Some(view) = &self.why.view else {
            return ("nothing: it never had a Primary".to_owned(), Some(0));
        };
        let number = view.number;
        let text = match self.why.force_loss(self.node) {
            ForceLoss::NeverServed | ForceLoss::LeftOut => None,
            ForceLoss::Replica(blocker) => Some(format!(
                "what this replica may lack, and how much that is is not known: {}. {peer} may have it",
                blocker.why(&self.names)
            )),
            ForceLoss::MayBeOverruled => Some(format!(
                "what others acknowledged since view {number} was forced on {node} alone, if they went on: \
                 it is not known here"
            )),
            ForceLoss::MayBeOld => Some(format!(
                "nothing that is known here, since view {number} counts on {node}; but too few voters are \
                 seen to know that it is the newest"
            )),
            ForceLoss::Nothing => {
                let text = format!("no acknowledged write: view {number} counts on {node}");
                return (text, Some(0));
            }
        };
        if let Some(text) = text {
            return (text, None);
        }
        let known = self
            .engine
            .filter(|it| it.disk != DiskState::Diskless && it.out_of_sync_blocks > 0)
            .map(|it| it.out_of_sync_blocks.saturating_mul(BLOCK_LEN));
        let amount = known.map_or_else(
            || "how much is not known here".to_owned(),
            |bytes| format!("at least {bytes} bytes are known here"),
        );
        let only = [NodeId::A, NodeId::B]
            .into_iter()
            .find(|it| view.in_sync.contains(*it))
            .map_or("", |it| self.config.node_name(it));
        let text = format!(
            "what was acknowledged on {only} since it left {node} out: {amount}. It stays on {only}, \
             which is refused from then on"
        );
        (text, known)
    }

    fn help(&self) -> Vec<String> {
        let Names { resource, peer, .. } = &self.names;
        match self.verdict() {
            Verdict::Primary if self.why.lease.lapsed => vec![
                format!(
                    "bring {peer} or the link to it back; or the arbitrator, to go on without it"
                ),
                "twinadm quorum show".to_owned(),
                format!(
                    "both gone for good? what force would lose: twinadm primary {resource} --force"
                ),
            ],
            Verdict::Primary | Verdict::Proposing => Vec::new(),
            // Nothing to type: what runs out is waited for by itself.
            Verdict::Waiting if self.waits_for_lease() => {
                vec!["none: it takes over by itself then".to_owned()]
            }
            _ => {
                let blocker = self.why.first_blocker();
                let next = blocker.map(|blocker| blocker.next("primary", &self.names));
                next.unwrap_or_else(|| vec![format!("twinadm status {resource}")])
            }
        }
    }
}
