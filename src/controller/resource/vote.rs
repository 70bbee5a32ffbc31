//! This node as a voter: answers to other nodes' rounds, and to its own.

use replicator::types::{Ballot, NodeId, View};

use super::super::message::Part;
use super::super::register::Verdict;
use super::super::store::Dependent;
use super::{Context, Resource};

impl Resource {
    /// First phase of somebody's round.
    pub(in super::super) fn on_prepare(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        ballot: Ballot,
    ) {
        if from != cx.me.node {
            self.others_round_at = cx.now;
            if self.is_idle_alone(cx.me) {
                return;
            }
            self.yield_to(cx, ballot);
        }
        let mut verdict = Verdict::Agreed;
        let version = self.store.change(|record| {
            verdict = record.acceptor.prepare(ballot, &cx.me.rules);
        });
        let resource = self.id;
        match verdict {
            Verdict::Agreed => {
                // Told as of now and only when durable: a later acceptance has a higher ballot.
                let part = Part::Promise {
                    resource,
                    ballot,
                    accepted: self.record().acceptor.accepted,
                };
                self.store
                    .when_durable(version, Dependent::Reply { to: from, part });
            }
            Verdict::Refused { promised } => self.refuse(cx, from, ballot, promised),
        }
    }

    /// Second phase of somebody's round.
    pub(in super::super) fn on_accept(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        ballot: Ballot,
        view: &View,
    ) {
        if from != cx.me.node {
            self.others_round_at = cx.now;
            self.may_be_behind = true;
            if self.is_idle_alone(cx.me) {
                return;
            }
        }
        let mut verdict = Verdict::Agreed;
        let version = self.store.change(|record| {
            verdict = record.acceptor.accept(ballot, view, &cx.me.rules);
        });
        match verdict {
            Verdict::Agreed => {
                let part = Part::Accepted {
                    resource: self.id,
                    ballot,
                };
                self.store
                    .when_durable(version, Dependent::Reply { to: from, part });
            }
            Verdict::Refused { promised } => self.refuse(cx, from, ballot, promised),
        }
    }

    /// A refusal promises nothing, so it need not wait for the disk.
    fn refuse(&mut self, cx: &mut Context<'_>, from: NodeId, ballot: Ballot, promised: Ballot) {
        let part = Part::Nack {
            resource: self.id,
            ballot,
            promised,
        };
        if from == cx.me.node {
            self.on_reply(cx, from, cx.me.voter, &part);
        } else {
            cx.send(from, part);
        }
    }
}
