//! `what-if kill NODE`: a dry run on the live state, answered by a data node that would be left.

use std::time::Duration;

use replicator::admin::{
    ErrorReport, FateKind, FateReport, Request, Response, Verb, WHAT_IF_SCHEMA, WhatIfReport,
    rfc3339_seconds,
};
use replicator::types::{NodeId, ResourceId, Role};

use super::move_order::no_such_node;
use super::node::{Answer, Node, Question};
use super::orders::Outcome;
use super::voters::outlook;
use crate::config::ResourceConfig;
use crate::controller::{Fate, Names};

/// The request for the node that is left.
pub(super) fn as_asked_of(mut request: Request, left: &str) -> Request {
    request.node = Some(left.to_owned());
    request
}

impl Node {
    /// The other node that has to answer what would become of things without the one named; `None` if
    /// this one can. Nothing but that question is passed on by it.
    pub(super) fn left_by(&self, verb: &Verb) -> Result<Option<NodeId>, ErrorReport> {
        let Verb::WhatIf { kill } = verb else {
            return Ok(None);
        };
        let dead = self
            .config
            .node_id(kill)
            .ok_or_else(|| no_such_node(self, kill))?;
        // A data node answers for its peer and for the arbitrator; each of the two is left by the other.
        let can = self.node.is_data() && dead != self.node;
        let left = if dead.is_data() {
            dead.peer()
        } else {
            NodeId::A
        };
        Ok((!can).then_some(left))
    }

    pub(super) fn what_if(&self, kill: &str) -> Outcome {
        let dead = self
            .config
            .node_id(kill)
            .ok_or_else(|| no_such_node(self, kill))?;
        let Some(Answer::Fates(fates, mut seen)) = self.ask(Question::Fates(dead)) else {
            return Err(self.controller_silent());
        };
        let gone = &mut seen.voters[dead.index()];
        seen.voters_seen -= usize::from(core::mem::replace(&mut gone.seen, false));
        let resources = self.resources.all();
        let mut told: Vec<_> = resources
            .iter()
            .filter_map(|resource| {
                let fate = find(&fates, resource.id())?;
                Some(self.fate_report(resource, kill, fate))
            })
            .collect();
        told.sort_by(|one, other| one.resource.cmp(&other.resource));
        Ok(Response::WhatIf(Box::new(WhatIfReport {
            schema: WHAT_IF_SCHEMA.to_owned(),
            generated: rfc3339_seconds(Self::moment().unix_millis),
            node: self.name().to_owned(),
            dead: kill.to_owned(),
            resources: told,
            outlook: outlook(&seen, self.config.arbitrator().is_some()).to_owned(),
        })))
    }

    fn fate_report(&self, resource: &ResourceConfig, dead: &str, fate: &Fate) -> FateReport {
        let names = self.names(resource);
        let now = self.primary_now(resource);
        let told = tell(fate, &names, dead, now.as_deref());
        FateReport {
            resource: resource.name.clone(),
            fate: told.kind,
            text: told.text,
            primary_then: match told.kind {
                FateKind::Unaffected => now.clone(),
                FateKind::GoesOn | FateKind::Moves => Some(self.name().to_owned()),
                FateKind::Held | FateKind::NobodyServes => None,
            },
            primary_now: now,
            after_seconds: told.after.map(|after| after.as_secs_f64()),
            why: told.why,
            help: told.help,
        }
    }

    /// Who serves it, as far as it is known here.
    fn primary_now(&self, resource: &ResourceConfig) -> Option<String> {
        let serves = self.board.read(|board| {
            let known = board.resources.get(&resource.id())?;
            let here = known
                .shard
                .as_ref()
                .is_some_and(|it| it.engine.role == Role::Primary);
            let claim = known.controller.as_ref().and_then(|it| it.peer);
            let there = claim.is_some_and(|it| it.active);
            here.then_some(self.node)
                .or(there.then(|| self.node.peer()))
        });
        serves.map(|node| self.config.node_name(node).to_owned())
    }
}

fn find(fates: &[(ResourceId, Fate)], resource: ResourceId) -> Option<&Fate> {
    fates
        .iter()
        .find(|(id, _)| *id == resource)
        .map(|(_, fate)| fate)
}

struct Told {
    kind: FateKind,
    text: String,
    after: Option<Duration>,
    why: Vec<String>,
    help: Vec<String>,
}

fn tell(fate: &Fate, names: &Names<'_>, dead: &str, now: Option<&str>) -> Told {
    let Names {
        resource,
        node,
        peer,
    } = names;
    let told = |kind, text: String| Told {
        kind,
        text,
        after: None,
        why: Vec::new(),
        help: Vec::new(),
    };
    let about = |after: Duration| format!("about {:.1} s", after.as_secs_f64());
    match fate {
        Fate::Unaffected => {
            let now = now.unwrap_or("nobody");
            told(
                FateKind::Unaffected,
                format!("served by {now} as before; its guests notice nothing"),
            )
        }
        Fate::GoesOn { after } => {
            let wait = about(*after);
            let text = format!("stays on {node}; writes wait {wait}, until {dead} is left behind");
            Told {
                after: Some(*after),
                ..told(FateKind::GoesOn, text)
            }
        }
        Fate::ServesHere { after } => {
            let text = format!("moves to {node} after {}", about(*after));
            Told {
                after: Some(*after),
                ..told(FateKind::Moves, text)
            }
        }
        Fate::Held { blocker } => {
            let text =
                format!("stays on {node}, but its guests wait: {dead} cannot be left behind");
            Told {
                why: vec![blocker.why(names)],
                help: vec!["bring the other voters back first: twinadm quorum show".to_owned()],
                ..told(FateKind::Held, text)
            }
        }
        Fate::NoData => {
            let text = format!("nobody could serve it: only {peer} has the data");
            Told {
                why: vec![format!("{node} serves it from the disk of {peer}")],
                help: vec![format!(
                    "attach a disk on {node}: twinadm attach {resource}, then twinadm wait-sync \
                     {resource}"
                )],
                ..told(FateKind::NobodyServes, text)
            }
        }
        Fate::NobodyServes { blockers } => {
            let text = match now {
                Some(_) => format!("nobody would serve it: {node} may not"),
                None => "nobody serves it, and that stays so".to_owned(),
            };
            // What waiting cannot mend says more than what it can.
            let first = blockers
                .iter()
                .find(|it| !it.may_pass())
                .or(blockers.first());
            Told {
                why: blockers.iter().map(|it| it.why(names)).collect(),
                help: first
                    .map(|it| it.next("primary", names))
                    .unwrap_or_default(),
                ..told(FateKind::NobodyServes, text)
            }
        }
    }
}
