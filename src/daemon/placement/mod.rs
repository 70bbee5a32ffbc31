//! The thread that has resources go back to the nodes they are preferred on, and orders by hand that
//! hold against a preference.
//!
//! It decides nothing: facts of the board go to [`Placement`], and what that wishes is ordered as an
//! operator would order `move`. Where this thread ends or stands still, nothing goes back.

mod file;
mod words;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use replicator::admin::{ErrorReport, PlacementStatus, Request, Response, Verb};
use replicator::engine::Snapshot;
use replicator::io::clock;
use replicator::types::{Failback, Failover, Role};

use super::board::{BoardState, PlacementShown, ResourceBoard};
use super::control::Asker;
use super::node::Node;
use super::orders::Outcome;
use super::prepare::directory_refusal;
use super::relay::Kept;
use crate::config::ResourceConfig;
use crate::controller::placement::{Away, Busy, Clocks, Facts, Placement, Standing, Wish};
pub(super) use file::{Chosen, Mark, PlacementFile};

/// How often it is looked whether something may go back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is left of a wait is shown anew when it is so far from what was expected.
const SHOWN_SLACK: Duration = Duration::from_secs(2);

/// Stack of the thread.
const STACK_LEN: usize = 256 * 1024;

/// Starts the thread; it ends when the node stops.
pub(super) fn start(node: &Arc<Node>) -> io::Result<JoinHandle<()>> {
    let node = Arc::clone(node);
    let run = move || {
        let mut placement = Placement::default();
        for resource in node.resources.all() {
            for unix_seconds in node.placement.went(&resource.name) {
                placement.remember(resource.id(), unix_seconds);
            }
        }
        while node
            .board
            .wait(LOOK_EVERY, |board| board.stopping.then_some(()))
            .is_none()
        {
            node.look_at_places(&mut placement);
        }
    };
    thread::Builder::new()
        .name("placement".to_owned())
        .stack_size(STACK_LEN)
        .spawn(run)
}

fn clocks() -> Clocks {
    Clocks {
        now: clock::now(),
        unix_seconds: clock::unix_millis() / 1000,
    }
}

impl Node {
    fn look_at_places(&self, placement: &mut Placement) {
        let resources = self.resources.all();
        let mut due = Vec::new();
        for resource in &resources {
            self.end_mark(resource);
            let facts = self
                .board
                .read(|board| facts(board, resource, self.held_here(resource)));
            if !facts.serves {
                placement.note_gone(resource.id());
            }
            let wish = self.wish(resource);
            let clocks = clocks();
            let standing = placement.standing(self.node, resource.id(), &wish, &facts, clocks);
            if standing == Standing::Due {
                due.push((resource.id(), resource.priority));
            }
            self.show_place(resource, standing, clocks);
        }
        let next = placement.next(due.into_iter(), clock::now());
        if let Some(resource) = resources.iter().find(|it| Some(it.id()) == next) {
            self.go_back(resource, placement);
        }
    }

    /// The preferred node is asked, then the very order is carried out that an operator would give.
    fn go_back(&self, resource: &ResourceConfig, placement: &mut Placement) {
        let (id, name) = (resource.id(), &resource.name);
        let peer = self.config.node_name(self.node.peer());
        let away = self.ask_whether_away(resource);
        placement.note_peer(id, away, clock::now());
        if away.is_some() {
            return;
        }
        placement.begin(id);
        tracing::info!("{name}: going back to {peer}, which is preferred");
        let outcome = self.move_order(resource, peer, None);
        let clocks = clocks();
        placement.end(id, outcome.is_ok(), clocks);
        let text = match &outcome {
            Ok(Response::Done { message, .. }) => format!("back to its preferred node: {message}"),
            Ok(_) => return,
            Err(report) => format!("not back to {peer}, {}: {}", report.id, report.why),
        };
        match outcome {
            Ok(_) => {
                self.placement.note_went(name, clocks.unix_seconds);
                tracing::info!("{name}: {text}");
            }
            Err(_) => tracing::warn!("{name}: {text}"),
        }
        let by = Some(self.name().to_owned());
        self.note_history(id, "failback", None, by, text);
    }

    /// Why the peer, which is preferred, does not want the resource: only it knows what operators told
    /// it.
    fn ask_whether_away(&self, resource: &ResourceConfig) -> Option<Away> {
        let peer = self.node.peer();
        let request = Request {
            verb: Verb::Status {
                resource: Some(resource.name.clone()),
            },
            node: Some(self.config.node_name(peer).to_owned()),
            timeout_ms: None,
        };
        let asker = Asker {
            may_change: false,
            doubted: false,
            uid: 0,
            relayed_by: None,
        };
        let mut kept = Kept::default();
        let passed = self.pass_on(peer, &request, asker, &mut kept);
        let (Ok(()), Some(Response::Status(status))) = (passed, kept.0) else {
            return Some(Away::Unknown);
        };
        let place = status
            .resources
            .first()
            .and_then(|it| it.placement.as_ref());
        match place.map(|it| it.word.as_str()) {
            _ if status.cluster.standby => Some(Away::Standby),
            _ if status.cluster.maintenance => Some(Away::Maintenance),
            Some("by-hand") => Some(Away::ByHand),
            _ => None,
        }
    }

    fn wish(&self, resource: &ResourceConfig) -> Wish {
        Wish {
            prefer: resource.prefer,
            failback: resource.failback,
            hold_down: resource.hold_down,
            priority: resource.priority,
            manual: self.configured(resource).failover == Failover::Manual,
        }
    }

    /// An operator chose this node though the other one is preferred.
    fn held_here(&self, resource: &ResourceConfig) -> bool {
        let mark = self.placement.mark(&resource.name);
        mark.is_some_and(|mark| mark.chosen == Chosen::Here)
    }

    /// An order by hand holds until the resource is where it was sent away from, by whatever way it came
    /// there.
    fn end_mark(&self, resource: &ResourceConfig) {
        let name = &resource.name;
        let Some(mark) = self.placement.mark(name) else {
            return;
        };
        let primary = self.board.read(|board| {
            let known = board.resources.get(&resource.id())?;
            Some(known.controller.as_ref()?.view?.primary)
        });
        let over = match mark.chosen {
            Chosen::Away => primary == Some(self.node),
            Chosen::Here => primary == Some(self.node.peer()),
        };
        if over
            && !self.placement.is_under_way(name)
            && let Err(error) = self.placement.clear(name)
        {
            tracing::warn!(%error, "{name}: an order by hand that is over cannot be forgotten");
        }
    }

    /// On the board, when it is news.
    fn show_place(&self, resource: &ResourceConfig, standing: Standing, clocks: Clocks) {
        let id = resource.id();
        let fresh = PlacementShown {
            standing,
            at: clocks.now,
        };
        let is_news = self.board.read(|board| {
            let shown = board.resources.get(&id).and_then(|it| it.placement);
            shown.is_none_or(|old| !old.still_tells(&fresh))
        });
        if is_news {
            self.board
                .update(|board| board.resource(id).placement = Some(fresh));
        }
    }

    /// How the resource stands to its preferred node, for `status` and `why`.
    pub(super) fn place_of(&self, resource: &ResourceConfig) -> Option<PlacementStatus> {
        let shown = self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            known.and_then(|it| it.placement)
        });
        let prefer = resource.prefer?;
        let mark = self.placement.mark(&resource.name);
        Some(words::tell(&words::Told {
            names: self.names(resource),
            is_preferred: prefer == self.node,
            mark: mark.as_ref(),
            automation: self.automation.now(),
            shown,
            now: clock::now(),
        }))
    }

    // --- Orders by hand -----------------------------------------------------------------------

    /// Before an order by hand is carried out that chooses a node against the preference: it holds from
    /// now on, whatever becomes of this process. `None` for every other.
    pub(super) fn begin_choice(
        &self,
        verb: &Verb,
        asker: Asker,
    ) -> Result<Option<Choice>, ErrorReport> {
        let (name, chosen) = match verb {
            Verb::Move { resource, to, .. } => {
                let to_peer = self.config.node_id(to) == Some(self.node.peer());
                (resource, to_peer.then_some(Chosen::Away))
            }
            Verb::Primary { resource, .. } => (resource, Some(Chosen::Here)),
            _ => return Ok(None),
        };
        let (Some(resource), Some(chosen)) = (self.resources.named(name), chosen) else {
            return Ok(None);
        };
        let against = match chosen {
            Chosen::Away => self.node,
            Chosen::Here => self.node.peer(),
        };
        if resource.prefer != Some(against) {
            return Ok(None);
        }
        let mark = Mark {
            chosen,
            unix_seconds: clock::unix_millis() / 1000,
            by: self.asker_words(asker),
        };
        let before = self.placement.mark(name);
        self.placement
            .begin(name, mark)
            .map_err(|error| directory_refusal(&self.state_dir, &error))?;
        let resource = name.clone();
        Ok(Some(Choice {
            resource,
            chosen,
            before,
        }))
    }

    /// The order ended. One that changed nothing chose nothing.
    pub(super) fn end_choice(&self, choice: Choice, outcome: &mut Outcome) {
        let Choice {
            resource: name,
            chosen,
            before,
        } = choice;
        let done = matches!(outcome, Ok(Response::Done { changed: true, .. }));
        self.placement.end(&name, before, done);
        let Some(resource) = self.resources.named(&name).filter(|_| done) else {
            return;
        };
        let wish = self.wish(&resource);
        let goes_back = wish.failback != Failback::Never && !wish.manual;
        if let Ok(Response::Done { message, .. }) = outcome
            && goes_back
        {
            let preferred = match chosen {
                Chosen::Away => self.node,
                Chosen::Here => self.node.peer(),
            };
            let preferred = self.config.node_name(preferred);
            *message += &format!(
                "; it goes back to {preferred} by itself only after: twinadm up {name} --node {}",
                self.name()
            );
        }
    }

    /// `up` ends an order by hand that holds against a preference.
    pub(super) fn end_choice_by_up(&self, name: &str, outcome: &mut Outcome) {
        let Ok(Response::Done { changed, message }) = outcome else {
            return;
        };
        match self.placement.clear(name) {
            Ok(true) => {
                *changed = true;
                *message += ", and no order by hand keeps it from its preferred node any more";
            }
            Ok(false) => {}
            Err(error) => {
                *outcome = Err(directory_refusal(&self.state_dir, &error));
            }
        }
    }
}

/// An order by hand against a preference, while it is carried out.
pub(super) struct Choice {
    resource: String,
    chosen: Chosen,
    before: Option<Mark>,
}

fn facts(board: &BoardState, resource: &ResourceConfig, by_hand: bool) -> Facts {
    let known = board.resources.get(&resource.id());
    let controller = known.and_then(|it| it.controller.as_ref());
    let engine = known.and_then(|it| it.shard.as_ref()).map(|it| &it.engine);
    let serves = engine.is_some_and(|it| it.role == Role::Primary)
        && controller.is_some_and(|it| it.activated);
    Facts {
        serves,
        by_hand,
        maintenance: board.automation.maintenance,
        lossy: controller.is_some_and(|it| it.view.is_some_and(|view| view.lossy)),
        peer_well_since: controller.and_then(|it| it.peer_well_since),
        blocker: controller.and_then(|it| it.move_blocker),
        busy: known
            .zip(engine)
            .and_then(|(known, engine)| busy(known, engine)),
    }
}

/// What a move would interrupt.
fn busy(known: &ResourceBoard, engine: &Snapshot) -> Option<Busy> {
    let resyncs = engine.resync.is_some_and(|it| it.ended.is_none());
    let verifies = engine.verify.as_ref().is_some_and(|it| it.end.is_none());
    let grows = engine.grow.is_some_and(|it| it.end.is_none());
    let ordered = known.claimed
        || known.guest.stoppers > 0
        || !known.passage.is_free()
        || engine.invalidate_pending
        || grows;
    if engine.held.is_some() || engine.suspension.is_some() {
        Some(Busy::Held)
    } else if ordered {
        Some(Busy::Order)
    } else if resyncs {
        Some(Busy::Resync)
    } else {
        verifies.then_some(Busy::Verify)
    }
}

impl PlacementShown {
    /// Whether `fresh` says nothing that could not be told from this.
    fn still_tells(&self, fresh: &Self) -> bool {
        let left = |it: &Self| match it.standing {
            Standing::Stays(stay) => stay.left(),
            _ => None,
        };
        match (left(self), left(fresh)) {
            (Some(old), Some(new)) => {
                let expected = old.saturating_sub(fresh.at.since(self.at));
                self.standing.word() == fresh.standing.word()
                    && expected.abs_diff(new) < SHOWN_SLACK
            }
            _ => self.standing == fresh.standing,
        }
    }
}
