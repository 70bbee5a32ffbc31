//! Orders about a node: `node drain`, `node resume`, `maintenance`, `confirm-fenced`.

use std::sync::Arc;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Response};
use replicator::types::{NodeId, Role};

use super::control::Answers;
use super::move_order::no_such_node;
use super::node::Node;
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use super::prepare::directory_refusal;
use crate::config::ResourceConfig;
use crate::controller::{Automation, Input, Order};

impl Node {
    /// What this node may do by itself, for the controller and for `status`.
    pub(super) fn tell_automation(&self, automation: Automation) {
        self.board.update(|board| board.automation = automation);
        self.tell_controller(Input::Automation(automation));
    }

    fn change_automation(&self, change: impl FnOnce(&mut Automation)) -> Result<bool, ErrorReport> {
        if !self.node.is_data() {
            let what = format!("{} has nothing to leave to others", self.name());
            let why = "it is the arbitrator: it serves nothing and takes nothing over";
            return Err(ErrorReport::new(ErrorId::ArbitratorHoldsNoData, what, why));
        }
        let told = |automation| self.tell_automation(automation);
        let changed = self.automation.change(change, told);
        changed.map_err(|error| directory_refusal(&self.state_dir, &error))
    }

    pub(super) fn maintenance(&self, on: bool) -> Outcome {
        let changed = self.change_automation(|now| now.maintenance = on)?;
        let node = self.name();
        let already = if changed { "" } else { " already" };
        done(
            changed,
            match on {
                true => format!(
                    "maintenance is on at {node}{already}: it takes nothing over by itself, and hands \
                     nothing over when it stops"
                ),
                false => format!("maintenance is off at {node}{already}"),
            },
        )
    }

    pub(super) fn node_resume(&self) -> Outcome {
        let changed = self.change_automation(|now| now.standby = false)?;
        let node = self.name();
        match changed {
            true => done(true, format!("{node} takes over again")),
            false => done(false, format!("{node} is not in standby")),
        }
    }

    /// In standby first, so that nothing comes back meanwhile; then one resource after the other.
    pub(super) fn node_drain(
        &self,
        timeout: Option<Duration>,
        answers: &mut dyn Answers,
    ) -> Outcome {
        let mut changed = self.change_automation(|now| now.standby = true)?;
        let (node, peer) = (self.name(), self.config.node_name(self.node.peer()));
        let each = timeout.unwrap_or(ORDER_TIMEOUT).min(ORDER_TIMEOUT);
        let serving: Vec<_> = self.resources.all();
        let serving: Vec<_> = serving.iter().filter(|it| self.serves_here(it)).collect();
        let mut stays: Vec<(String, ErrorReport)> = Vec::new();
        let mut moved = 0_usize;
        let mut tell = |message: String| {
            // Whoever asked may be gone: what was begun for him is brought to its end.
            answers.send(&Response::Progress { message }).ok();
        };
        for (index, resource) in serving.iter().enumerate() {
            let name = &resource.name;
            let place = format!("{} of {}", index + 1, serving.len());
            tell(format!("{place}: moving {name} to {peer}"));
            match self.move_order(resource, peer, Some(each)) {
                Ok(_) => moved += 1,
                Err(report) => {
                    tell(format!("{place}: {name} stays: {}", report.why));
                    stays.push((name.clone(), report));
                }
            }
        }
        changed |= moved > 0;
        let Some((_, first)) = stays.first() else {
            return done(
                changed,
                match (changed, moved) {
                    (false, _) => format!("{node} is in standby already and serves nothing"),
                    (_, 0) => format!("{node} is in standby; it served nothing"),
                    _ => format!("{node} is in standby: {moved} moved to {peer}"),
                },
            );
        };
        let names: Vec<_> = stays.iter().map(|(name, _)| name.as_str()).collect();
        let reasons: Vec<_> = stays
            .iter()
            .map(|(name, report)| format!("{name}: {}", report.why))
            .collect();
        let what = format!("{node} is in standby and still serves {}", names.join(", "));
        let mut report = ErrorReport::new(ErrorId::NotDrained, what, reasons.join("; "));
        for step in &first.next {
            report = report.next(step.clone());
        }
        Err(report
            .next(format!("then: twinadm node drain {node}"))
            .next(format!("or let it be: twinadm node resume {node}")))
    }

    fn serves_here(&self, resource: &Arc<ResourceConfig>) -> bool {
        self.engine(resource, |it| it.role == Role::Primary)
    }

    /// The operator's word that another node is dead.
    pub(super) fn confirm_fenced(&self, dead: &str) -> Outcome {
        let what = format!("{dead} is not taken for dead");
        match self.config.node_id(dead) {
            None => return Err(no_such_node(self, dead)),
            Some(NodeId::ARBITRATOR) => {
                let why = "it is the arbitrator: it serves nothing, and nobody waits for its end";
                return Err(ErrorReport::new(ErrorId::ArbitratorHoldsNoData, what, why));
            }
            Some(node) if node == self.node => {
                let why = format!("{dead} itself was asked, and it is alive");
                let peer = self.config.node_name(self.node.peer());
                let next =
                    format!("ask the other node: twinadm confirm-fenced {dead} --node {peer}");
                return Err(ErrorReport::new(ErrorId::StillAlive, what, why).next(next));
            }
            Some(_) => {}
        }
        if !self.node.is_data() {
            let why = format!(
                "{} promised it nothing: the other data node is to be told",
                self.name()
            );
            return Err(ErrorReport::new(ErrorId::ArbitratorHoldsNoData, what, why));
        }
        let mut shortened = 0_usize;
        for resource in self.resources.all() {
            let outcome = self.order(&resource, Order::Fenced, ORDER_TIMEOUT, || true);
            match self.ended(&resource, Order::Fenced, ORDER_TIMEOUT, outcome) {
                Ok(ended) => shortened += usize::from(!ended.already),
                Err(mut report) => {
                    report.what = what;
                    return Err(report);
                }
            }
        }
        match shortened {
            0 => done(false, format!("nothing waits for {dead} here")),
            _ => done(
                true,
                format!(
                    "{dead} counts as dead until it is heard: {shortened} need not wait for it"
                ),
            ),
        }
    }
}
