//! What the node knows, for whoever asks: one place where the controller and the shard put their
//! newest snapshots and where the clients of the control socket read and wait.
//!
//! Nothing here decides anything. Writers replace whole values and never wait for readers longer
//! than a reader copies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use replicator::types::{Instant, ReplicaId, ResourceId};

use super::api::{AttachFailure, ResourceSnapshot, StoredMarks};
use super::suspend_orders::Passage;
use crate::controller;
use crate::controller::placement::Standing;
use crate::controller::{Automation, Done, NodeSnapshot, OrderId, OrderRefusal};
use crate::guests::{Entry, Stop};

/// Outcomes of orders kept for clients that did not fetch them (they were gone by then).
const OUTCOMES_MAX: usize = 256;

/// Samples of a resync's progress: two a second over the 30 s of its mean rate, and some room.
const RATE_SAMPLES_MAX: usize = 128;

/// The rate shown is the mean of this long.
const RATE_WINDOW: Duration = Duration::from_secs(30);

/// Everything on the board.
#[derive(Debug, Default)]
pub struct BoardState {
    /// Grows with each change.
    pub generation: u64,
    /// The node and its voters; `None` before the controller's first turn.
    pub node: Option<NodeSnapshot>,
    /// By resource; those that are configured or running.
    pub resources: BTreeMap<ResourceId, ResourceBoard>,
    /// Why the voter store takes no records any more, if it does not.
    pub store_error: Option<String>,
    /// What an operator took from this node's own decisions.
    pub automation: Automation,
    /// What another node says and has no effect, since its keys or its `[net] tls` are others.
    pub tls_mismatch: Option<String>,
    /// The process is about to end in order.
    pub stopping: bool,
    /// Its program is to be started again in its place.
    pub again: bool,
    /// Why the process must end, if it must.
    pub fatal: Option<String>,
    /// Orders that ended and were not fetched yet.
    outcomes: VecDeque<(OrderId, Result<Done, OrderRefusal>)>,
}

/// Whether the shard has a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It has not.
    #[default]
    Away,
    /// It has, or is about to: from `Add` on.
    Running,
    /// It was told to take it away, and operations on its devices are not over: until `Removed`.
    /// Another instance may not begin before (R14).
    Leaving,
}

/// What is known of one resource.
#[derive(Debug, Default)]
pub struct ResourceBoard {
    /// Whether the shard has it.
    pub presence: Presence,
    /// It was up before and its devices cannot be opened: that is tried again until somebody takes it
    /// in hand.
    pub retried: bool,
    /// Somebody is bringing it up or down, attaching or detaching.
    pub claimed: bool,
    /// Orders that end a suspension, and those that begin one, keep out of each other's way.
    pub passage: Passage,
    /// The controller's view.
    pub controller: Option<controller::ResourceSnapshot>,
    /// The shard's.
    pub shard: Option<ResourceSnapshot>,
    /// How the newest attach ended; cleared before the next.
    pub attach: Option<Result<ReplicaId, AttachFailure>>,
    /// It was up when the daemon stopped or died.
    pub was_up: bool,
    /// What the voter store says of the replica here.
    pub marks: StoredMarks,
    /// The engine answered the newest `Quiesce`: everything acknowledged is durable.
    pub quiesced: bool,
    /// Why the shard could not add it; cleared before the next try.
    pub add_failed: Option<String>,
    /// How fast the running resync or verify is.
    pub rate: RateMeter,
    /// Its guest.
    pub guest: GuestBoard,
    /// How it stands to its preferred node; `None` before the first look.
    pub placement: Option<PlacementShown>,
}

/// How a resource stood to its preferred node when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementShown {
    /// How.
    pub standing: Standing,
    /// When.
    pub at: Instant,
}

/// What is known and wanted of a resource's guest.
#[derive(Debug, Default)]
pub struct GuestBoard {
    /// This node's newest activation.
    pub tenure: Option<TenureBoard>,
    /// What orders under way want of it.
    pub stop: Stop,
    /// How many of them.
    pub stoppers: usize,
    /// What it does here; `None` without a guest, and before the first look.
    pub shown: Option<GuestShown>,
}

/// One activation of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenureBoard {
    /// Grows.
    pub number: u64,
    /// The newest one that did not follow one of this node.
    pub taken: u64,
    /// What came before.
    pub entry: Entry,
}

/// A guest as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestShown {
    /// Its state in a word.
    pub word: &'static str,
    /// Why, where that is not plain.
    pub why: Option<String>,
    /// A process of it is here.
    pub here: bool,
    /// Nothing of it runs here or is about to.
    pub stopped: bool,
    /// It did not go when it was told to.
    pub stop_failed: bool,
    /// It runs here.
    pub runs: bool,
    /// It could be started here.
    pub can_start: bool,
}

impl GuestBoard {
    /// This node was activated.
    pub fn begin_tenure(&mut self, entry: Entry, follows_another: bool) {
        let old = self.tenure;
        let number = old.map_or(0, |it| it.number) + 1;
        let taken = match follows_another {
            true => number,
            false => old.map_or(0, |it| it.taken),
        };
        self.tenure = Some(TenureBoard {
            number,
            taken,
            entry,
        });
    }
}

impl BoardState {
    /// The resource's place on the board, made if it has none.
    pub fn resource(&mut self, resource: ResourceId) -> &mut ResourceBoard {
        self.resources.entry(resource).or_default()
    }

    /// Records how an order ended.
    pub fn note_outcome(&mut self, order: OrderId, result: Result<Done, OrderRefusal>) {
        if self.outcomes.len() == OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back((order, result));
    }

    /// Takes the outcome of an order, if it ended.
    pub fn take_outcome(&mut self, order: OrderId) -> Option<Result<Done, OrderRefusal>> {
        let index = self.outcomes.iter().position(|(id, _)| *id == order)?;
        self.outcomes.remove(index).map(|(_, result)| result)
    }
}

impl ResourceBoard {
    /// Takes a new snapshot of the shard in, `None` when the resource is gone from it.
    pub fn note_shard(&mut self, snapshot: Option<ResourceSnapshot>) {
        if let Some(snapshot) = &snapshot {
            let engine = &snapshot.engine;
            let resync = engine.resync.filter(|progress| progress.ended.is_none());
            let resync = resync.map(|it| (it.began, it.done_blocks));
            let verify = engine.verify.as_ref().filter(|it| it.end.is_none());
            let verify = verify.map(|it| (it.began, it.checked_blocks));
            self.rate.note(snapshot.at, resync.or(verify));
        }
        self.shard = snapshot;
    }
}

/// The board behind its lock.
#[derive(Default)]
pub struct Board {
    state: Mutex<BoardState>,
    changed: Condvar,
    watcher: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Board {
    /// Changes something and wakes everyone who waits.
    pub fn update<T>(&self, change: impl FnOnce(&mut BoardState) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        state.generation += 1;
        drop(state);
        self.changed.notify_all();
        if let Some(wake) = self.watcher.get() {
            wake();
        }
        result
    }

    /// Has `wake` called after each change, for who waits for other things too. It must not block.
    /// Once; a second watcher is not taken.
    pub fn watch(&self, wake: Box<dyn Fn() + Send + Sync>) {
        debug_assert!(self.watcher.get().is_none());
        self.watcher.get_or_init(|| wake);
    }

    /// Looks at the board.
    pub fn read<T>(&self, look: impl FnOnce(&BoardState) -> T) -> T {
        look(&self.lock())
    }

    /// Waits until `look` finds something, at most `timeout`. `look` may take what it finds.
    pub fn wait<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut(&mut BoardState) -> Option<T>,
    ) -> Option<T> {
        let mut found = None;
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| {
                found = look(state);
                found.is_none()
            });
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        found
    }

    fn lock(&self) -> MutexGuard<'_, BoardState> {
        // A panic elsewhere ends the process; until then snapshots are whole values.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mean rate of a resync over the last [`RATE_WINDOW`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateMeter {
    /// Start of the resync measured.
    began: Option<Instant>,
    /// When, and how many blocks were done by then; oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl RateMeter {
    /// Takes a sample: when the running resync began and how many blocks it did; `None` when no
    /// resync runs.
    pub fn note(&mut self, at: Instant, progress: Option<(Instant, u64)>) {
        let Some((began, done)) = progress else {
            *self = Self::default();
            return;
        };
        if self.began != Some(began) {
            self.began = Some(began);
            self.samples = VecDeque::from([(began, 0)]);
        }
        self.samples.push_back((at, done));
        // The oldest sample stays until the second oldest is as old as the window.
        while self.samples.len() > RATE_SAMPLES_MAX
            || self
                .samples
                .get(1)
                .is_some_and(|(then, _)| at.since(*then) >= RATE_WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// Blocks per second; `None` until there are two moments to compare.
    #[must_use]
    pub fn blocks_per_second(&self) -> Option<u64> {
        let ((first, before), (last, after)) = (self.samples.front()?, self.samples.back()?);
        let nanos = last.since(*first).as_nanos();
        let blocks = u128::from(after.saturating_sub(*before));
        (blocks * 1_000_000_000)
            .checked_div(nanos)
            .and_then(|rate| u64::try_from(rate).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn the_rate_is_the_mean_of_the_last_half_minute() {
        let mut meter = RateMeter::default();
        assert_eq!(meter.blocks_per_second(), None);
        for second in 1..=100 {
            // 10 blocks a second at first, 30 from second 50 on.
            let done = if second <= 50 {
                second * 10
            } else {
                500 + (second - 50) * 30
            };
            meter.note(at(second), Some((at(0), done)));
        }
        assert_eq!(meter.blocks_per_second(), Some(30));
    }

    #[test]
    fn another_resync_starts_at_nothing() {
        let mut meter = RateMeter::default();
        meter.note(at(9), Some((at(0), 900)));
        assert_eq!(meter.blocks_per_second(), Some(100));
        meter.note(at(12), Some((at(10), 4)));
        assert_eq!(meter.blocks_per_second(), Some(2));
        meter.note(at(13), None);
        assert_eq!(meter, RateMeter::default());
    }

    #[test]
    fn samples_are_bounded_however_often_one_is_taken() {
        let mut meter = RateMeter::default();
        for nano in 0..10_000 {
            meter.note(Instant(nano), Some((Instant::ZERO, nano)));
        }
        assert!(meter.samples.len() <= RATE_SAMPLES_MAX);
    }

    #[test]
    fn an_outcome_is_fetched_once_and_forgotten_ones_do_not_pile_up() {
        let mut state = BoardState::default();
        for order in 0..1000 {
            state.note_outcome(OrderId(order), Err(OrderRefusal::Busy));
        }
        assert_eq!(state.outcomes.len(), OUTCOMES_MAX);
        assert!(state.take_outcome(OrderId(999)).is_some());
        assert!(state.take_outcome(OrderId(999)).is_none());
    }

    #[test]
    fn waiting_ends_with_what_another_thread_writes() {
        let board = std::sync::Arc::new(Board::default());
        let writer = std::sync::Arc::clone(&board);
        let thread = std::thread::spawn(move || {
            writer.update(|state| state.fatal = Some("over".to_owned()));
        });
        let found = board.wait(Duration::from_secs(60), |state| state.fatal.take());
        assert_eq!(found.as_deref(), Some("over"));
        thread.join().unwrap();
        assert_eq!(board.wait(Duration::ZERO, |state| state.fatal.take()), None);
    }
}
