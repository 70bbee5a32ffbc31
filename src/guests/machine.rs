//! One guest on one node: facts in, orders out.
//!
//! Everything is level-triggered: a fact replaces the older one, then [`Guest::drive`] compares what
//! is with what is wanted. What must not wait for a hypervisor (freeze, thaw, kill) never does.

use core::time::Duration;
use std::collections::VecDeque;

use replicator::types::Instant;

use super::facts::{
    Blocked, DomainState, Ended, Entry, Fault, KillReason, Order, OrderId, PauseReason, ProcessId,
    Seen, Standing, State, Stop, StopStep, Tenure,
};
use super::timing::GuestTiming;

/// Tries to start a guest before somebody must look: with the pauses between them half a minute.
pub const STARTS_MAX: u32 = 5;

/// The pause after the first try, doubled after each.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// More crashes than this within [`CRASH_WINDOW`] and it is not started again: the fourth try of a
/// guest that dies of the same cause tells nobody anything new.
pub const CRASHES_MAX: usize = 3;
const CRASH_WINDOW: Duration = Duration::from_secs(600);

/// How often the hypervisor is asked about a guest whose process is watched anyway; where the node
/// does not serve; and while something is known to be about to change.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY_AWAY: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long the hypervisor may take to end a guest before the kernel is asked.
const DESTROY_PATIENCE: Duration = Duration::from_secs(20);

/// A process that was killed and is still there is killed again, so that `status` is about now.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What does not change while a daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSettings {
    /// Start it wherever the resource is promoted; else it is only stopped and killed.
    pub starts: bool,
    /// How it is stopped before the resource is given away.
    pub on_demote: Vec<StopStep>,
    /// Deadlines.
    pub timing: GuestTiming,
}

/// The guest's process.
#[derive(Clone, Debug)]
struct Process {
    id: ProcessId,
    /// The activation it was started or found in; 0: before this life of the daemon. `None`:
    /// somebody started it while this node did not serve, so it is no business of ours.
    born: Option<u64>,
    run: DomainState,
    /// We made it, paused, and it never ran: that pause is no wish of anybody.
    fresh: bool,
    guarded: bool,
    unguarded: Option<Fault>,
    /// `None`: an earlier life of the daemon may have frozen it.
    frozen: Option<bool>,
    killed: Option<(KillReason, Instant)>,
    /// Nothing is asked of the hypervisor about it before this: back-off.
    pause_until: Instant,
}

/// How far `on-demote` is.
#[derive(Clone, Copy, Debug)]
struct Stopping {
    step: usize,
    until: Option<Instant>,
    failed: bool,
}

/// One guest on one node. See the module's text.
#[derive(Clone, Debug)]
pub struct Guest {
    settings: GuestSettings,
    now: Instant,
    standing: Standing,
    standing_since: Instant,
    /// End of the newest lease, if one was needed last.
    lease_end: Option<Instant>,
    fence_until: Instant,
    process: Option<Process>,
    looked: bool,
    /// The hypervisor answered the last look, and knows the domain.
    known_there: bool,
    look_at: Instant,
    /// A process ended by itself, and the hypervisor was not asked why yet.
    autopsy: bool,
    by_hand: bool,
    stop: Stop,
    stopping: Stopping,
    busy: Option<(OrderId, Order)>,
    orders: u64,
    /// The activation in which a guest was last made.
    created_in: Option<u64>,
    /// The same of one whose making was not answered: it may still appear.
    late_create: Option<u64>,
    starts: u32,
    retry: Option<(Instant, Fault)>,
    crashes: VecDeque<Instant>,
    blocked: Option<Blocked>,
}

impl Process {
    fn note_run(&mut self, run: DomainState) {
        self.fresh &= run != DomainState::Running;
        self.run = match run {
            DomainState::Paused(PauseReason::Other) if self.fresh => {
                DomainState::Paused(PauseReason::Starting)
            }
            // A word from before it was there, or after it went.
            DomainState::Off(_) => return,
            run => run,
        };
    }
}

impl Stopping {
    const NOT: Self = Self {
        step: 0,
        until: None,
        failed: false,
    };
}

impl Guest {
    /// Of a daemon that just started: nothing is known yet.
    #[must_use]
    pub fn new(settings: GuestSettings, now: Instant) -> Self {
        Self {
            settings,
            now,
            standing: Standing::Away { superseded: false },
            standing_since: now,
            lease_end: None,
            fence_until: now,
            process: None,
            looked: false,
            known_there: false,
            look_at: now,
            autopsy: false,
            by_hand: false,
            stop: Stop::No,
            stopping: Stopping::NOT,
            busy: None,
            orders: 0,
            created_in: None,
            late_create: None,
            starts: 0,
            retry: None,
            crashes: VecDeque::new(),
            blocked: None,
        }
    }

    // ---- inputs; each appends what follows from it ----

    /// What this node may do with the resource. Told whenever it changed, and again before each
    /// deadline: leases are renewed without a word.
    pub fn handle_standing(
        &mut self,
        now: Instant,
        standing: Standing,
        out: &mut Vec<(OrderId, Order)>,
    ) {
        self.now = self.now.max(now);
        let before = core::mem::replace(&mut self.standing, standing);
        match (before, standing) {
            (Standing::Primary(old), Standing::Primary(new)) if old.number == new.number => {}
            (_, Standing::Primary(new)) => self.begin_tenure(new),
            (Standing::Primary(_), Standing::Away { .. }) => self.standing_since = self.now,
            (Standing::Away { .. }, Standing::Away { .. }) => {}
        }
        if let Standing::Primary(tenure) = standing {
            self.lease_end = tenure.lease;
        }
        self.drive(out);
    }

    /// The end of an order of the hypervisor, with a look that was taken after it.
    pub fn handle_done(
        &mut self,
        now: Instant,
        order: OrderId,
        result: Result<(), Fault>,
        seen: Seen,
        out: &mut Vec<(OrderId, Order)>,
    ) {
        self.now = self.now.max(now);
        let Some((_, what)) = self.busy.take_if(|(id, _)| *id == order) else {
            return;
        };
        self.note_seen(seen, what);
        if (what, &result) == (Order::Create, &Err(Fault::TimedOut)) {
            self.late_create = self.created_in;
        }
        self.note_result(what, result);
        self.drive(out);
    }

    /// The process ended.
    pub fn handle_exit(
        &mut self,
        now: Instant,
        process: ProcessId,
        out: &mut Vec<(OrderId, Order)>,
    ) {
        self.now = self.now.max(now);
        if self.process.as_ref().is_some_and(|it| it.id == process) {
            self.note_gone();
        }
        self.drive(out);
    }

    /// What operators want.
    pub fn handle_stop(&mut self, now: Instant, stop: Stop, out: &mut Vec<(OrderId, Order)>) {
        self.now = self.now.max(now);
        if core::mem::replace(&mut self.stop, stop) == Stop::No {
            self.stopping = Stopping::NOT;
        }
        self.stopping.failed &= stop == Stop::Asked;
        self.drive(out);
    }

    /// Time passed.
    pub fn handle_tick(&mut self, now: Instant, out: &mut Vec<(OrderId, Order)>) {
        self.now = self.now.max(now);
        self.drive(out);
    }

    // ---- questions ----

    /// When [`Self::handle_tick`] is due even if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let timing = &self.settings.timing;
        let shut = self.shut_since();
        let process = self.process.as_ref();
        let times = [
            shut.map(|at| at.plus(timing.freeze_after)),
            self.lease_end.map(|at| at.plus(timing.kill_after)),
            process.and_then(|it| Some(it.killed?.1.plus(KILL_AGAIN))),
            process.map(|it| it.pause_until),
            self.busy.is_none().then_some(self.look_at),
            self.retry.as_ref().map(|(at, _)| *at),
            Some(self.fence_until),
            self.stopping.until,
        ];
        times
            .into_iter()
            .flatten()
            .filter(|at| *at > self.now)
            .min()
    }

    /// Nothing of it runs here, and nothing is about to by our doing.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let creating = matches!(self.busy, Some((_, Order::Create)));
        let ours = self.process.as_ref().is_some_and(|it| !self.is_foreign(it));
        self.looked && !creating && !ours
    }

    /// Whether it could be started here, as far as the last look tells: it may be started at all, the
    /// hypervisor answers and knows the domain.
    #[must_use]
    pub fn can_start(&self) -> bool {
        self.settings.starts && self.known_there
    }

    /// Its process, if it is watched.
    #[must_use]
    pub fn process(&self) -> Option<ProcessId> {
        self.process.as_ref().map(|it| it.id)
    }

    /// What to show.
    #[must_use]
    pub fn state(&self) -> State {
        if let Some(process) = &self.process {
            return self.state_alive(process);
        }
        if !self.looked {
            return State::Unknown;
        }
        let Standing::Primary(_) = self.standing else {
            return State::Off;
        };
        if self.stop != Stop::No {
            return State::Off;
        }
        if let Some(blocked) = &self.blocked {
            return State::Blocked(blocked.clone());
        }
        match (&self.retry, self.settings.starts) {
            _ if self.by_hand => State::OffByHand,
            (_, false) => State::Left,
            (Some((until, fault)), _) => State::WaitingToRetry {
                until: *until,
                fault: fault.clone(),
            },
            _ if self.now < self.fence_until => State::WaitingForFence {
                until: self.fence_until,
            },
            _ if !self.gate_is_open() => State::WaitingForDisk,
            _ => State::Starting,
        }
    }

    fn state_alive(&self, process: &Process) -> State {
        match (process.killed, self.stop, process.run) {
            (Some((why, _)), _, _) => State::Killing(why),
            _ if process.frozen == Some(true) => State::Frozen,
            (_, Stop::Asked | Stop::Forced, _) if !self.is_foreign(process) => {
                match self.stopping.failed {
                    true => State::StopFailed,
                    false => State::Stopping,
                }
            }
            (_, _, DomainState::Paused(PauseReason::Starting)) => match &process.unguarded {
                None => State::Starting,
                Some(fault) => State::WaitingToRetry {
                    until: process.pause_until,
                    fault: fault.clone(),
                },
            },
            (_, _, DomainState::Paused(why)) => State::Paused(why),
            _ => State::Running {
                unguarded: process.unguarded.clone(),
            },
        }
    }

    // ---- facts ----

    fn begin_tenure(&mut self, tenure: Tenure) {
        self.standing_since = self.now;
        self.fence_until = match tenure.entry {
            Entry::Vacated => self.now,
            Entry::Own | Entry::Taken => self.now.plus(self.settings.timing.start_after),
        };
        // A guest that was left without its disk for a moment may have been paused by that.
        self.look_at = self.look_at.min(self.now.plus(LOOK_AGAIN));
        self.starts = 0;
        self.retry = None;
        self.blocked = None;
        self.by_hand = false;
        self.autopsy = false;
        if let Some(process) = &mut self.process {
            process.born.get_or_insert(tenure.number);
        }
    }

    fn note_seen(&mut self, seen: Seen, after: Order) {
        let first = !core::mem::replace(&mut self.looked, true);
        self.known_there = seen.domain.is_ok();
        let known = self.process.as_ref().map(|it| it.id);
        match seen.process {
            Some(id) if known == Some(id) => {
                if let Some(process) = &mut self.process
                    && seen.guarded == Some(false)
                {
                    // It was killed, or ran out of memory: another one is due.
                    process.guarded = false;
                }
                if let (Some(process), Ok(run)) = (&mut self.process, seen.domain) {
                    process.note_run(run);
                }
            }
            Some(id) => {
                let fresh = after == Order::Create || self.late_create.is_some();
                let born = self.birth(first, after);
                let mut process = Process {
                    id,
                    born,
                    run: DomainState::Running,
                    fresh,
                    guarded: false,
                    unguarded: None,
                    frozen: (born != Some(0)).then_some(false),
                    killed: None,
                    pause_until: self.now,
                };
                process.note_run(seen.domain.unwrap_or(DomainState::Running));
                self.process = Some(process);
                self.blocked = None;
                self.retry = None;
                self.by_hand = false;
                self.autopsy = false;
            }
            None => {
                if self.process.is_some() {
                    self.note_gone();
                }
                self.note_end(&seen.domain);
            }
        }
        self.look_at = self.now.plus(self.look_pause());
    }

    /// Which activation a process that was just found after this order belongs to.
    fn birth(&mut self, first_look: bool, after: Order) -> Option<u64> {
        let late = self.late_create.take();
        match self.standing {
            _ if after == Order::Create => self.created_in,
            _ if late.is_some() => late,
            _ if first_look => Some(0),
            Standing::Primary(tenure) => Some(tenure.number),
            Standing::Away { .. } => None,
        }
    }

    fn look_pause(&self) -> Duration {
        let changing = self
            .process
            .as_ref()
            .is_some_and(|it| it.run != DomainState::Running);
        match self.standing {
            _ if changing || self.autopsy => LOOK_AGAIN,
            Standing::Primary(_) => LOOK_EVERY,
            Standing::Away { .. } => LOOK_EVERY_AWAY,
        }
    }

    /// The process is not there any more. Why, decides what becomes of the guest.
    fn note_gone(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        let kill_after = self.settings.timing.kill_after;
        let lease_over = self
            .lease_end
            .is_some_and(|at| self.now >= at.plus(kill_after));
        let by_us = process.killed.is_some() || self.stop != Stop::No || lease_over;
        self.autopsy = !by_us;
        self.look_at = self.now;
    }

    /// What the hypervisor says about a guest that is off.
    fn note_end(&mut self, domain: &Result<DomainState, Fault>) {
        // A hypervisor that has not noticed yet is asked again.
        let noticed = matches!(domain, Ok(DomainState::Off(_)) | Err(_));
        if !self.autopsy || !noticed {
            return;
        }
        self.autopsy = false;
        if *domain == Ok(DomainState::Off(Ended::ByHand)) {
            self.by_hand = true;
            return;
        }
        self.crashes.push_back(self.now);
        while self
            .crashes
            .front()
            .is_some_and(|at| self.now.since(*at) > CRASH_WINDOW)
        {
            self.crashes.pop_front();
        }
        if self.crashes.len() > CRASHES_MAX {
            self.crashes.clear();
            self.blocked = Some(Blocked::Flapping);
        }
    }

    fn note_result(&mut self, what: Order, result: Result<(), Fault>) {
        let now = self.now;
        match (what, result, &mut self.process) {
            (Order::Create, result, None) => {
                self.start_failed(result.err().unwrap_or(Fault::OtherDisk))
            }
            (Order::Guard(id), Ok(()), Some(process)) if process.id == id => {
                process.guarded = true;
                process.unguarded = None;
                // What was made paused and is guarded now may run at once.
                process.pause_until = now;
            }
            (Order::Guard(id), Err(fault), Some(process)) if process.id == id => {
                process.unguarded = Some(fault);
                process.pause_until = now.plus(LOOK_EVERY);
            }
            (Order::Resume, result, Some(process)) => {
                process.pause_until = now.plus(LOOK_AGAIN);
                if result.is_ok() && process.run == DomainState::Running {
                    self.starts = 0;
                }
            }
            // The hypervisor could not: the kernel can.
            (Order::Destroy, Err(_), Some(_)) => self.stopping.until = Some(now),
            _ => {}
        }
    }

    fn start_failed(&mut self, fault: Fault) {
        if self.starts >= STARTS_MAX {
            self.retry = None;
            self.blocked = Some(Blocked::StartFailed(fault));
            return;
        }
        let pause = RETRY_PAUSE * 2_u32.saturating_pow(self.starts.saturating_sub(1));
        self.retry = Some((self.now.plus(pause), fault));
    }

    // ---- what follows ----

    fn drive(&mut self, out: &mut Vec<(OrderId, Order)>) {
        self.drive_signals(out);
        if self.busy.is_some() {
            return;
        }
        if self.stop != Stop::No {
            self.drive_stop(out);
        } else {
            self.drive_run(out);
        }
        if self.busy.is_none() && (!self.looked || self.now >= self.look_at) {
            self.ask(Order::Look, out);
        }
    }

    /// Kill, freeze, thaw: never behind a hypervisor.
    fn drive_signals(&mut self, out: &mut Vec<(OrderId, Order)>) {
        let why = self.process.as_ref().and_then(|it| self.must_die(it));
        if let Some(why) = why {
            self.kill(why, out);
        }
        let wanted = self.process.as_ref().map(|it| self.must_freeze(it));
        let (Some(frozen), Some(process)) = (wanted, &mut self.process) else {
            return;
        };
        if process.frozen != Some(frozen) && process.killed.is_none() {
            process.frozen = Some(frozen);
            let id = process.id;
            let order = if frozen {
                Order::Freeze(id)
            } else {
                Order::Thaw(id)
            };
            self.signal(order, out);
        }
    }

    fn must_die(&self, process: &Process) -> Option<KillReason> {
        let born = process.born?;
        let superseded = match self.standing {
            Standing::Away { superseded } => superseded,
            Standing::Primary(tenure) => born < tenure.taken,
        };
        let kill_after = self.settings.timing.kill_after;
        let over = self
            .lease_end
            .is_some_and(|at| self.now >= at.plus(kill_after));
        match (superseded, over) {
            (true, _) => Some(KillReason::Superseded),
            (false, true) => Some(KillReason::LeaseOver),
            (false, false) => None,
        }
    }

    fn must_freeze(&self, process: &Process) -> bool {
        let freeze_after = self.settings.timing.freeze_after;
        let shut = self
            .shut_since()
            .is_some_and(|at| self.now >= at.plus(freeze_after));
        shut && !self.is_foreign(process)
    }

    fn is_foreign(&self, process: &Process) -> bool {
        process.born.is_none()
    }

    /// Since when clients are not served, or will not be.
    fn shut_since(&self) -> Option<Instant> {
        match self.standing {
            Standing::Primary(tenure) => tenure.lease,
            Standing::Away { .. } => Some(self.standing_since),
        }
    }

    fn gate_is_open(&self) -> bool {
        match self.standing {
            Standing::Away { .. } => false,
            Standing::Primary(tenure) => {
                tenure.serves && tenure.lease.is_none_or(|end| self.now < end)
            }
        }
    }

    fn kill(&mut self, why: KillReason, out: &mut Vec<(OrderId, Order)>) {
        let now = self.now;
        let Some(process) = &mut self.process else {
            return;
        };
        if process
            .killed
            .is_some_and(|(_, at)| now < at.plus(KILL_AGAIN))
        {
            return;
        }
        process.killed = Some((why, now));
        let order = Order::Kill(process.id);
        self.signal(order, out);
    }

    fn drive_run(&mut self, out: &mut Vec<(OrderId, Order)>) {
        let Standing::Primary(tenure) = self.standing else {
            return;
        };
        let may_run = self.gate_is_open() && self.now >= self.fence_until;
        match &self.process {
            Some(process) if process.killed.is_some() || self.now < process.pause_until => {}
            Some(process) if !process.guarded => {
                let order = Order::Guard(process.id);
                self.ask(order, out);
            }
            Some(process) => {
                let paused = matches!(
                    process.run,
                    DomainState::Paused(PauseReason::Starting | PauseReason::IoError)
                );
                if paused && may_run && self.settings.starts && process.frozen == Some(false) {
                    self.ask(Order::Resume, out);
                }
            }
            None => {
                let waits = self.retry.as_ref().is_some_and(|(at, _)| self.now < *at);
                let wanted = self.settings.starts && self.blocked.is_none() && !self.by_hand;
                if self.looked && !self.autopsy && wanted && may_run && !waits {
                    self.retry = None;
                    self.starts += 1;
                    self.created_in = Some(tenure.number);
                    self.ask(Order::Create, out);
                }
            }
        }
    }

    fn drive_stop(&mut self, out: &mut Vec<(OrderId, Order)>) {
        let Some(process) = &self.process else {
            return;
        };
        if self.is_foreign(process) || process.killed.is_some() {
            return;
        }
        let over = self.stopping.until.is_some_and(|until| self.now >= until);
        let step = self.settings.on_demote.get(self.stopping.step).copied();
        match (step, self.stopping.until) {
            (Some(_), Some(_)) if !over => {}
            (Some(StopStep::Shutdown(_)), Some(_)) => {
                self.stopping.step += 1;
                self.stopping.until = None;
                self.drive_stop(out);
            }
            (Some(StopStep::Destroy), Some(_)) => self.kill(KillReason::Forced, out),
            (Some(StopStep::Shutdown(patience)), None) => {
                self.stopping.until = Some(self.now.plus(patience));
                self.ask(Order::Shutdown, out);
            }
            (Some(StopStep::Destroy), None) => {
                self.stopping.until = Some(self.now.plus(DESTROY_PATIENCE));
                self.ask(Order::Destroy, out);
            }
            (None, _) if self.stop == Stop::Forced => self.kill(KillReason::Forced, out),
            (None, _) => self.stopping.failed = true,
        }
    }

    fn ask(&mut self, order: Order, out: &mut Vec<(OrderId, Order)>) {
        debug_assert!(self.busy.is_none(), "{order:?} beside {:?}", self.busy);
        let id = self.signal(order, out);
        self.busy = Some((id, order));
    }

    fn signal(&mut self, order: Order, out: &mut Vec<(OrderId, Order)>) -> OrderId {
        self.orders += 1;
        let id = OrderId(self.orders);
        out.push((id, order));
        id
    }
}
