//! The thread that has resources go back to the nodes they are preferred on, and orders by hand that
//! hold against a preference.
//!
//! It decides nothing: facts of the board go to [`Placement`], and what that wishes is ordered as an
//! operator would order `move`. Where this thread ends or stands still, nothing goes back.

mod ask;
mod file;
mod words;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, PlacementStatus, Request, Response, Verb};
use replicator::engine::Snapshot;
use replicator::io::clock;
use replicator::types::{Failback, Failover, Role};

use super::board::{BoardState, PlacementShown, ResourceBoard};
use super::control::Asker;
use super::node::Node;
use super::orders::{LONGEST_ORDER, Outcome};
use super::prepare::directory_refusal;
use crate::config::ResourceConfig;
use crate::controller::placement::{Away, Busy, Clocks, Ended, Facts, Placement, Standing, Wish};
pub(super) use file::{Chosen, Mark, PlacementFile};

/// How often it is looked whether something may go back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is left of a wait is shown anew when it is so far from what was expected.
const SHOWN_SLACK: Duration = Duration::from_secs(2);

/// How long the preferred node may take to answer: nobody else is asked meanwhile.
const ASK_TIMEOUT: Duration = Duration::from_secs(4);

/// How long an order by hand may take to be seen on the board after it was answered.
const SETTLE: Duration = Duration::from_secs(5);

/// A wall clock before this was never set, and nothing is corrected by it: 2023-11-14.
const CLOCK_MIN: u64 = 1_700_000_000;

/// Stack of the thread.
const STACK_LEN: usize = 256 * 1024;

/// Starts the thread. It ends when the node stops, which does not wait for it: what it waits for may be
/// a guest or another host.
pub(super) fn start(node: &Arc<Node>) -> io::Result<()> {
    let node = Arc::clone(node);
    let run = move || {
        let mut placement = Placement::default();
        for resource in node.resources.all() {
            node.mend_clock(&resource, &mut placement, clocks());
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
        .map(drop)
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
        self.placement.forget_ended(clock::now());
        for resource in &resources {
            self.end_mark(resource);
            let clocks = clocks();
            self.mend_clock(resource, placement, clocks);
            let serves = self.board.read(|board| serves(board, resource));
            if !serves {
                placement.note_gone(resource.id());
            }
            let standing = self.standing(resource, placement, clocks, false);
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

    /// `own`: as the failback itself sees it that is under way.
    fn standing(
        &self,
        resource: &ResourceConfig,
        placement: &mut Placement,
        clocks: Clocks,
        own: bool,
    ) -> Standing {
        let id = resource.id();
        let wish = self.wish(resource);
        placement.note_wish(id, &wish, clocks.now);
        let by_hand = self.held_here(resource);
        let facts = self
            .board
            .read(|board| facts(board, resource, by_hand, own));
        placement.standing(self.node, id, &wish, &facts, clocks)
    }

    fn mend_clock(&self, resource: &ResourceConfig, placement: &mut Placement, clocks: Clocks) {
        if clocks.unix_seconds >= CLOCK_MIN {
            placement.note_clock(clocks.unix_seconds);
            self.placement
                .note_clock(&resource.name, clocks.unix_seconds);
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
        tracing::info!("{name}: going back to {peer}, which is preferred");
        let mut begun = false;
        let outcome = self.move_if(resource, peer, None, || {
            self.check_still_due(name, placement)?;
            let clocks = clocks();
            placement.begin(id, clocks);
            self.placement.note_went(name, clocks.unix_seconds);
            begun = true;
            Ok(())
        });
        let ended = match &outcome {
            Ok(Response::Done { changed: true, .. }) => Ended::Home,
            Ok(_) => Ended::Idle,
            Err(_) => Ended::Failed,
        };
        placement.end(id, ended, clocks());
        if begun && ended == Ended::Idle {
            self.placement.forget_newest(name);
        }
        let text = match &outcome {
            Ok(Response::Done { message, .. }) => format!("back to its preferred node: {message}"),
            Ok(_) => return,
            Err(report) => format!("not back to {peer}, {}: {}", report.id, report.why),
        };
        match outcome {
            Ok(_) => tracing::info!("{name}: {text}"),
            Err(_) => tracing::warn!("{name}: {text}"),
        }
        let by = Some(self.name().to_owned());
        self.note_history(id, "failback", None, by, text);
    }

    /// Right before the step that cannot be undone: a guest may have taken a minute to stop, and operators
    /// may have said something meanwhile, here or there.
    fn check_still_due(&self, name: &str, placement: &mut Placement) -> Result<(), ErrorReport> {
        let stays = |why: String| {
            let what = format!("{name} stays on {}", self.name());
            Err(ErrorReport::new(ErrorId::Busy, what, why))
        };
        let Some(resource) = self.resources.named(name) else {
            return stays("it is not configured any more".to_owned());
        };
        let away = self.ask_whether_away(&resource);
        placement.note_peer(resource.id(), away, clock::now());
        let standing = self.standing(&resource, placement, clocks(), true);
        if self.board.read(|board| board.stopping) {
            return stays("the daemon stops".to_owned());
        }
        match (away, standing) {
            (None, Standing::Due) => Ok(()),
            (_, standing) => stays(format!(
                "things changed while it was being prepared: {}",
                standing.word()
            )),
        }
    }

    /// Why the peer, which is preferred, does not want the resource: only it knows what operators told
    /// it, and what its own file says.
    fn ask_whether_away(&self, resource: &ResourceConfig) -> Option<Away> {
        let peer = self.node.peer();
        let target = self.config.node_name(peer);
        let request = Request {
            verb: Verb::Status {
                resource: Some(resource.name.clone()),
            },
            node: Some(target.to_owned()),
            timeout_ms: None,
        };
        let asker = Asker {
            may_change: false,
            doubted: false,
            uid: 0,
            relayed_by: None,
        };
        let mut asked = ask::Asked {
            board: &self.board,
            deadline: clock::now().plus(ASK_TIMEOUT),
            response: None,
        };
        let passed = self.pass_on(peer, &request, asker, &mut asked);
        let (Ok(()), Some(Response::Status(status))) = (passed, asked.response) else {
            return Some(Away::Unknown);
        };
        let shown = status.resources.first();
        let said = ask::Said {
            standby: status.cluster.standby,
            maintenance: status.cluster.maintenance,
            prefer: shown.and_then(|it| it.prefer.as_deref()),
            place: shown.and_then(|it| it.placement.as_ref()),
        };
        ask::away(&said, target, &ask::wish_text(&self.wish(resource)))
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
        mark.is_some_and(|mark| mark.chosen != Chosen::Away)
    }

    /// An order by hand holds until the resource is where it was sent away from, by whatever way it came
    /// there.
    fn end_mark(&self, resource: &ResourceConfig) {
        let name = &resource.name;
        let Some(mark) = self.placement.mark(name) else {
            return;
        };
        // By what was heard in this life: a view that was read from the disk may be an old one.
        let (here, there) = self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            let controller = known.and_then(|it| it.controller.as_ref());
            let primary = controller.and_then(|it| Some(it.view?.primary));
            let here = controller.is_some_and(|it| it.activated);
            let there = controller.is_some_and(|it| it.peer.is_some_and(|it| it.active));
            (
                here && primary == Some(self.node),
                there && primary == Some(self.node.peer()),
            )
        });
        let over = match mark.chosen {
            Chosen::Away => here,
            Chosen::Here => there,
            Chosen::Unknown => false,
        };
        if over
            && !self.placement.is_under_way(name, clock::now())
            && let Err(error) = self.placement.end_mark(name)
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
        let prefer = resource.prefer?;
        let (shown, automation, can_start) = self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            let guest = known.and_then(|it| it.guest.shown.as_ref());
            (
                known.and_then(|it| it.placement),
                board.automation,
                guest.is_some_and(|it| it.can_start),
            )
        });
        let mark = self.placement.mark(&resource.name);
        Some(words::tell(&words::Told {
            names: self.names(resource),
            is_preferred: prefer == self.node,
            mark: mark.as_ref(),
            automation,
            guest_fails: resource.guest.is_some() && !can_start,
            failback: &ask::wish_text(&self.wish(resource)),
            shown,
            now: clock::now(),
            unix_seconds: clocks().unix_seconds,
        }))
    }

    // --- Orders by hand -----------------------------------------------------------------------

    /// Before an order by hand is carried out that chooses a node against the preference: it holds from
    /// now on, whatever becomes of this process. `None` for every other.
    pub(super) fn begin_choice(&self, verb: &Verb, asker: Asker) -> Option<Choice> {
        let (name, chosen) = match verb {
            Verb::Move { resource, to, .. } => {
                let to = self.config.node_id(to)?;
                let chosen = match to == self.node {
                    true => Chosen::Here,
                    false => Chosen::Away,
                };
                (resource, (to.is_data()).then_some(chosen)?)
            }
            Verb::Primary { resource, .. } => (resource, Chosen::Here),
            _ => return None,
        };
        let resource = self.resources.named(name)?;
        let against = match chosen {
            Chosen::Away => self.node,
            Chosen::Here | Chosen::Unknown => self.node.peer(),
        };
        if resource.prefer != Some(against) {
            return None;
        }
        let mark = Mark {
            chosen,
            unix_seconds: clock::unix_millis() / 1000,
            by: self.asker_words(asker),
        };
        let before = self.placement.mark(name);
        self.placement.begin(name, mark);
        Some(Choice {
            resource: name.clone(),
            chosen,
            is_new: before.is_none_or(|before| before.chosen != chosen),
        })
    }

    /// The order was answered. What it chose holds, whatever the answer was: an order that timed out, or
    /// whose client left, may have been carried out or still be; [`Self::end_mark`] forgets it if the
    /// resource is at home after that.
    pub(super) fn end_choice(
        &self,
        choice: &Choice,
        timeout: Option<Duration>,
        outcome: &mut Outcome,
    ) {
        let name = &choice.resource;
        let patience = match outcome {
            Ok(_) => SETTLE,
            Err(_) => timeout
                .unwrap_or_default()
                .max(LONGEST_ORDER)
                .saturating_add(SETTLE),
        };
        self.placement.end(name, clock::now().plus(patience));
        let Some(resource) = self.resources.named(name) else {
            return;
        };
        let wish = self.wish(&resource);
        let goes_back = wish.failback != Failback::Never && !wish.manual;
        if let Ok(Response::Done { message, changed }) = outcome
            && (*changed || choice.is_new)
            && goes_back
        {
            // That it stays there is news, even if it was there already.
            *changed = true;
            let preferred = match choice.chosen {
                Chosen::Away => self.node,
                Chosen::Here | Chosen::Unknown => self.node.peer(),
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
    /// None that chose the same was known before.
    is_new: bool,
}

fn serves(board: &BoardState, resource: &ResourceConfig) -> bool {
    let known = board.resources.get(&resource.id());
    let engine = known.and_then(|it| it.shard.as_ref()).map(|it| &it.engine);
    let controller = known.and_then(|it| it.controller.as_ref());
    engine.is_some_and(|it| it.role == Role::Primary) && controller.is_some_and(|it| it.activated)
}

/// `own`: a failback is under way, and what it does itself does not count.
fn facts(board: &BoardState, resource: &ResourceConfig, by_hand: bool, own: bool) -> Facts {
    let known = board.resources.get(&resource.id());
    let controller = known.and_then(|it| it.controller.as_ref());
    let engine = known.and_then(|it| it.shard.as_ref()).map(|it| &it.engine);
    let guest = known.and_then(|it| it.guest.shown.as_ref());
    Facts {
        serves: serves(board, resource),
        by_hand,
        maintenance: board.automation.maintenance,
        lossy: controller.is_some_and(|it| it.view.is_some_and(|view| view.lossy)),
        peer_well_since: controller.and_then(|it| it.peer_well_since),
        blocker: controller.and_then(|it| it.move_blocker),
        busy: known
            .zip(engine)
            .and_then(|(known, engine)| busy(known, engine, own)),
        guest_idle: !own && resource.guest.is_some() && !guest.is_some_and(|it| it.runs),
    }
}

/// What a move would interrupt.
fn busy(known: &ResourceBoard, engine: &Snapshot, own: bool) -> Option<Busy> {
    let resyncs = engine.resync.is_some_and(|it| it.ended.is_none());
    let verifies = engine.verify.as_ref().is_some_and(|it| it.end.is_none());
    let grows = engine.grow.is_some_and(|it| it.end.is_none());
    let ordered = known.claimed
        || known.guest.stoppers > usize::from(own)
        || !(own || known.passage.is_free())
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
