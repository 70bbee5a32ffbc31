//! The guest's part: a client that writes stamped blocks over NBD, journals what happens to them,
//! and goes on wherever the volume is served.
//!
//! A block with an unanswered write is never touched again: two connections are two queues, and an
//! order between them is promised by nobody. A connection that fell silent stays open and is
//! listened to, so that an answer that comes late is held to be the promise that it is.

mod connection;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::DemoError;
use super::journal::{Entry, Journal};
use super::pattern::{self, Content, Stamp};
use super::random::Random;
use crate::clock::now;
use connection::{Answer, Connection, Ended, Order};

/// Requests in flight at most.
pub(super) const DEPTH: usize = 16;
/// Mean distance of two requests; the seed makes it between half and one and a half of this.
const PACE: Duration = Duration::from_micros(400);
/// A server that answers nothing for this long is left for the other one: a few fsyncs of a slow
/// disk are shorter, a takeover is longer.
const SILENCE_MAX: Duration = Duration::from_millis(300);
/// Rest between two attempts to connect.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// Silent connections that are still listened to; the oldest is closed for a newer one.
const LISTENED_TO_MAX: usize = 8;
/// Longest wait for something to happen on a connection.
const TURN_MAX: Duration = Duration::from_millis(5);
/// How long the last answers may take once the writer is told to finish.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// One request in this many is a read of something acknowledged.
const READ_EVERY: u64 = 8;
/// A guest's writes have their places: this many regions, chosen by the seed, of this many blocks.
/// A resync then copies what a guest's would, not the whole disk; half of the writes go to the
/// first blocks of a region, so that blocks are also rewritten.
const REGIONS: u64 = 5;
const REGION_BLOCKS: u64 = 1024;
const HOT_BLOCKS: u64 = 64;

/// What a writer needs to know.
pub(super) struct Plan {
    /// Id of this run, in every stamp.
    pub(super) run: u64,
    /// Decides blocks, order and pace.
    pub(super) seed: u64,
    /// Where the volume may be served, in the order of trying.
    pub(super) sockets: Vec<PathBuf>,
    /// Export name.
    pub(super) export: String,
    /// Blocks of the volume.
    pub(super) blocks: u64,
    /// Where to journal.
    pub(super) journal: PathBuf,
}

/// What the writer saw so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Writes acknowledged.
    pub(super) acknowledged: u64,
    /// Requests answered with an error.
    pub(super) errors: u64,
    /// When the last write was acknowledged, and by which node.
    pub(super) last: Option<(Instant, usize)>,
    /// First acknowledgement of each stretch served by one node.
    pub(super) stretches: Vec<(Instant, usize)>,
    /// Longest time between two acknowledgements since [`Writer::reset_stall`].
    pub(super) stall: Duration,
    finish: bool,
}

/// The running writer.
pub(super) struct Writer {
    progress: Arc<Mutex<Progress>>,
    thread: Option<JoinHandle<Result<(), DemoError>>>,
}

impl Writer {
    pub(super) fn start(plan: Plan) -> Result<Self, DemoError> {
        let journal = Journal::create(&plan.journal)
            .map_err(|error| DemoError::io("making the journal", error))?;
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shared = Arc::clone(&progress);
        let thread = thread::spawn(move || Work::new(plan, journal, shared).run());
        Ok(Self {
            progress,
            thread: Some(thread),
        })
    }

    pub(super) fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Begins to measure the longest stall anew.
    pub(super) fn reset_stall(&self) {
        lock(&self.progress).stall = Duration::ZERO;
    }

    /// An error if the writer ended by itself.
    pub(super) fn check(&mut self) -> Result<(), DemoError> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join()?;
            return Err(DemoError::Writer("without a reason".to_owned()));
        }
        Ok(())
    }

    /// Stops sending, awaits the answers, flushes, closes the journal.
    pub(super) fn finish(mut self) -> Result<Progress, DemoError> {
        lock(&self.progress).finish = true;
        self.join()?;
        Ok(self.progress())
    }

    fn join(&mut self) -> Result<(), DemoError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(DemoError::Writer("it panicked".to_owned())),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.progress).finish = true;
        // An error was reported by whoever drops us early, or comes too late to matter.
        drop(self.join());
    }
}

/// The thread's own state.
struct Work {
    plan: Plan,
    journal: Journal,
    progress: Arc<Mutex<Progress>>,
    random: Random,
    /// The one that requests go to.
    current: Option<Connection>,
    /// Those that fell silent.
    silent: Vec<Connection>,
    next_node: usize,
    next_try: Instant,
    next_request: Instant,
    sequence: u64,
    /// Last acknowledged write of each block.
    acknowledged: BTreeMap<u64, u64>,
    /// The blocks of it, to choose from.
    readable: Vec<u64>,
    /// Blocks with an unanswered request.
    busy: BTreeSet<u64>,
}

impl Work {
    fn new(plan: Plan, journal: Journal, progress: Arc<Mutex<Progress>>) -> Self {
        let random = Random::new(plan.seed);
        Self {
            plan,
            journal,
            progress,
            random,
            current: None,
            silent: Vec::new(),
            next_node: 0,
            next_try: now(),
            next_request: now(),
            sequence: 0,
            acknowledged: BTreeMap::new(),
            readable: Vec::new(),
            busy: BTreeSet::new(),
        }
    }

    fn run(mut self) -> Result<(), DemoError> {
        while !lock(&self.progress).finish {
            self.turn(true)?;
        }
        self.finish()?;
        self.journal
            .close()
            .map_err(|error| DemoError::io("writing the journal", error))
    }

    /// Awaits what is outstanding, then flushes; gives up after [`FINISH_LIMIT`]: what is not
    /// answered is simply not acknowledged.
    fn finish(&mut self) -> Result<(), DemoError> {
        let deadline = now() + FINISH_LIMIT;
        let mut flushed = false;
        while now() < deadline {
            self.turn(false)?;
            let Some(connection) = &mut self.current else {
                continue;
            };
            if connection.is_attached() && connection.outstanding() == 0 {
                if flushed {
                    return Ok(());
                }
                flushed = connection.send(Order::Flush, now()).is_ok();
            }
        }
        Ok(())
    }

    /// Connects if needed, sends what is due, handles what arrived.
    fn turn(&mut self, may_send: bool) -> Result<(), DemoError> {
        let at = now();
        if self.current.is_none() && at >= self.next_try {
            self.connect(at);
        }
        if may_send {
            self.send_due(at)?;
        }
        let wait = self
            .next_request
            .saturating_duration_since(at)
            .clamp(Duration::from_millis(1), TURN_MAX);
        let everyone = self.current.iter_mut().chain(&mut self.silent);
        connection::wait(everyone, wait).map_err(|error| DemoError::io("polling NBD", error))?;
        self.receive()?;
        self.leave_if_silent(now());
        Ok(())
    }

    fn connect(&mut self, at: Instant) {
        let node = self.next_node;
        self.next_try = at + RETRY_AFTER;
        match Connection::open(node, &self.plan.sockets[node], &self.plan.export, at) {
            Ok(connection) => self.current = Some(connection),
            Err(_) => self.try_other(node),
        }
    }

    fn try_other(&mut self, node: usize) {
        self.next_node = (node + 1) % self.plan.sockets.len();
    }

    fn send_due(&mut self, at: Instant) -> Result<(), DemoError> {
        while at >= self.next_request {
            let Some(connection) = &self.current else {
                break;
            };
            if !connection.is_attached() || connection.outstanding() >= DEPTH {
                break;
            }
            self.send_one(at)?;
            let pace = u64::try_from(PACE.as_nanos()).unwrap_or(u64::MAX);
            let jitter = pace / 2 + self.random.below(pace);
            // After a stall no burst makes up for it.
            let earliest = at.checked_sub(PACE).unwrap_or(at);
            self.next_request = self.next_request.max(earliest) + Duration::from_nanos(jitter);
        }
        Ok(())
    }

    fn send_one(&mut self, at: Instant) -> Result<(), DemoError> {
        let draw = self.random.next();
        let block = self.choose_block(draw);
        let Some(connection) = &mut self.current else {
            return Ok(());
        };
        let node = connection.node();
        if draw.is_multiple_of(READ_EVERY) && !self.readable.is_empty() {
            let index = self
                .random
                .below(u64::try_from(self.readable.len()).unwrap_or(u64::MAX));
            let block = self.readable[usize::try_from(index).unwrap_or(0)];
            if self.busy.insert(block) {
                let floor = self.acknowledged.get(&block).copied().unwrap_or(0);
                drop(connection.send(Order::Read { block, floor }, at));
            }
            return Ok(());
        }
        if !self.busy.insert(block) {
            return Ok(());
        }
        self.sequence += 1;
        let stamp = Stamp {
            run: self.plan.run,
            block,
            sequence: self.sequence,
        };
        // Noted before it leaves: what is on a disk was sent.
        note(
            &mut self.journal,
            &Entry::Sent {
                sequence: self.sequence,
                block,
                node,
            },
        )?;
        // A send that fails shows when the connection is read; the write stays unanswered.
        drop(connection.send(Order::Write { stamp }, at));
        Ok(())
    }

    fn choose_block(&mut self, draw: u64) -> u64 {
        let region = self.random.below(REGIONS);
        let range = if draw.is_multiple_of(2) {
            REGION_BLOCKS
        } else {
            HOT_BLOCKS
        };
        let within = self.random.below(range);
        // Regions keep their places for the whole run; two may share one.
        let places = (self.plan.blocks / REGION_BLOCKS).max(1);
        let place = Random::new(self.plan.seed ^ region).below(places);
        (place * REGION_BLOCKS + within).min(self.plan.blocks - 1)
    }

    fn receive(&mut self) -> Result<(), DemoError> {
        if let Some(mut connection) = self.current.take() {
            let ended = self.receive_from(&mut connection)?;
            if ended {
                self.try_other(connection.node());
            } else {
                self.current = Some(connection);
            }
        }
        for mut connection in std::mem::take(&mut self.silent) {
            if !self.receive_from(&mut connection)? {
                self.silent.push(connection);
            }
        }
        Ok(())
    }

    /// Handles every answer there is; true when the connection ended.
    fn receive_from(&mut self, connection: &mut Connection) -> Result<bool, DemoError> {
        let mut answers = Vec::new();
        let ended = matches!(connection.receive(now(), &mut answers), Err(Ended));
        for answer in answers {
            self.on_answer(connection.node(), answer)?;
        }
        Ok(ended)
    }

    fn on_answer(&mut self, node: usize, answer: Answer) -> Result<(), DemoError> {
        let entry = match (answer.order, answer.result) {
            (Order::Write { stamp }, Ok(_)) => {
                self.busy.remove(&stamp.block);
                if self
                    .acknowledged
                    .insert(stamp.block, stamp.sequence)
                    .is_none()
                {
                    self.readable.push(stamp.block);
                }
                self.note_acknowledged(node);
                Entry::Acknowledged {
                    sequence: stamp.sequence,
                    node,
                }
            }
            (Order::Write { stamp }, Err(words)) => {
                lock(&self.progress).errors += 1;
                Entry::Failed {
                    sequence: stamp.sequence,
                    words,
                }
            }
            (Order::Read { block, floor }, Ok(bytes)) => {
                self.busy.remove(&block);
                let seen = match pattern::decode(&bytes) {
                    Content::Blank => Some(0),
                    Content::Written(stamp)
                        if stamp.run == self.plan.run && stamp.block == block =>
                    {
                        Some(stamp.sequence)
                    }
                    Content::Written(_) | Content::Damaged => None,
                };
                Entry::Read {
                    block,
                    floor,
                    seen,
                    node,
                }
            }
            (Order::Read { .. } | Order::Flush, Err(words)) => {
                lock(&self.progress).errors += 1;
                Entry::Failed { sequence: 0, words }
            }
            (Order::Flush, Ok(_)) => return Ok(()),
        };
        note(&mut self.journal, &entry)
    }

    fn note_acknowledged(&self, node: usize) {
        let at = now();
        let mut progress = lock(&self.progress);
        progress.acknowledged += 1;
        match progress.last {
            Some((before, same)) => {
                progress.stall = progress.stall.max(at.saturating_duration_since(before));
                if same != node {
                    progress.stretches.push((at, node));
                }
            }
            None => progress.stretches.push((at, node)),
        }
        progress.last = Some((at, node));
    }

    fn leave_if_silent(&mut self, at: Instant) {
        let Some(connection) = self
            .current
            .take_if(|connection| connection.silent_for(at) > SILENCE_MAX)
        else {
            return;
        };
        self.try_other(connection.node());
        if connection.is_attached() {
            if self.silent.len() == LISTENED_TO_MAX {
                self.silent.remove(0);
            }
            self.silent.push(connection);
        }
    }
}

fn note(journal: &mut Journal, entry: &Entry) -> Result<(), DemoError> {
    journal
        .note(entry)
        .map_err(|error: io::Error| DemoError::io("writing the journal", error))
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
