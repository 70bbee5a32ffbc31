//! How fast a resync goes when guests come first.
//!
//! The Primary knows how long its guests' writes take. While a resync or a verify runs it looks back
//! every [`Engine::THROTTLE_WINDOW`]: if the 99th percentile passes the target, less is copied; if it
//! does not, a little more, until something else is the limit. What is additive here and
//! multiplicative there converges without a model of the disks (TCP's rule, RFC 5681); DRBD's
//! `c-fill-target` controls the same by the fill of the link, which says nothing of guests.
//!
//! Whoever asks for blocks keeps the pace: the Primary itself when it verifies or is the target, and
//! otherwise the target, which is told. A pace is advice: nothing is safer or less safe for it.

use core::num::NonZeroU64;
use core::time::Duration;

use super::Engine;
use super::gate::Closed;
use super::output::Outbox;
use super::session::Phase;
use crate::protocol::Message;
use crate::types::{BLOCK_LEN, Instant, ResyncRate};

/// What guests leave for resyncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    /// Bytes a second; `None`: guests hold nothing back.
    pub(super) pace: Option<NonZeroU64>,
    /// The 99th percentile of guests' writes that led to it.
    pub(super) latency: Duration,
}

impl Advice {
    pub(super) const NONE: Self = Self {
        pace: None,
        latency: Duration::ZERO,
    };
}

/// Durations by quarters of octaves, from 1 µs to 16 s; what is older counts less.
#[derive(Clone, Debug)]
struct Latencies {
    weights: [u32; Self::BUCKETS],
}

impl Latencies {
    const BUCKETS: usize = 96;
    /// What one write weighs when it is new, so that it can fade in steps.
    const FRESH: u32 = 64;

    const EMPTY: Self = Self {
        weights: [0; Self::BUCKETS],
    };

    fn bucket(latency: Duration) -> usize {
        let micros = u64::try_from(latency.as_micros())
            .unwrap_or(u64::MAX)
            .max(1);
        let octave = micros.ilog2();
        let quarter = if octave < 2 {
            0
        } else {
            (micros >> (octave - 2)) & 3
        };
        let index = u64::from(octave) * 4 + quarter;
        usize::try_from(index).map_or(Self::BUCKETS - 1, |index| index.min(Self::BUCKETS - 1))
    }

    /// What no duration of the bucket passes.
    fn bound(bucket: usize) -> Duration {
        let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
        Duration::from_micros(((1 << octave) * (5 + quarter)).div_ceil(4))
    }

    fn note(&mut self, latency: Duration) {
        let weight = &mut self.weights[Self::bucket(latency)];
        *weight = weight.saturating_add(Self::FRESH);
    }

    /// A window is over: a quarter of its weight goes.
    fn fade(&mut self) {
        for weight in &mut self.weights {
            *weight = *weight / 4 * 3;
        }
    }

    /// What 99 of 100 writes do not pass; `None` without any.
    fn p99(&self) -> Option<Duration> {
        let total: u64 = self.weights.iter().copied().map(u64::from).sum();
        let mut above = 0;
        let mut rest = self.weights.iter().enumerate().rev();
        rest.find(|(_, weight)| {
            above += u64::from(**weight);
            above * 100 > total
        })
        .map(|(bucket, _)| Self::bound(bucket))
    }
}

/// The looking back. Watches while `window` is there.
#[derive(Clone, Debug)]
pub(super) struct Throttle {
    latencies: Latencies,
    window: Option<Window>,
    advice: Advice,
    /// The pace has just become less: what guests felt before says nothing of it.
    settling: bool,
    /// How often guests waited too long though hardly anything was copied.
    in_vain: u32,
    /// What the last window copied, in bytes a second.
    rate: u64,
    /// Since when requests wait at the gate because too much is in flight.
    busy_since: Option<Instant>,
    /// Windows in a row without a write.
    quiet: u32,
    /// What guests wait for anyhow, resync or not; `None`: not known to be beyond the target.
    anyhow: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Instant,
    ends: Instant,
    /// Blocks copied or compared before it.
    moved: u64,
    /// Guests' writes answered in it.
    writes: u32,
}

impl Throttle {
    /// A resync always goes on: so fast at least, in bytes a second. 1 TiB in a day and a half.
    const FLOOR: u64 = 8 << 20;
    /// What one window near the floor weighs in which guests felt too much; a bearable one takes one
    /// away.
    const IN_VAIN: u32 = 16;
    /// So much shows that it is not the resync that guests feel: six seconds of it, or a minute in
    /// which it comes back every two seconds.
    const IN_VAIN_MAX: u32 = 12 * Self::IN_VAIN;
    /// More windows than these without a write: nobody is there to feel anything.
    const QUIET: u32 = 2;
    /// Parts of the pace by which it grows: nobody there, far from the target, near it.
    const DOUBLE: u64 = 1;
    const WALK: u64 = 8;
    const CREEP: u64 = 32;

    pub(super) const fn new() -> Self {
        Self {
            latencies: Latencies::EMPTY,
            window: None,
            advice: Advice::NONE,
            settling: false,
            in_vain: 0,
            rate: 0,
            busy_since: None,
            quiet: 0,
            anyhow: None,
        }
    }

    fn is_watching(&self) -> bool {
        self.window.is_some()
    }

    fn begin_window(&mut self, now: Instant, moved: u64) {
        self.window = Some(Window {
            begun: now,
            ends: now.plus(Engine::THROTTLE_WINDOW),
            moved,
            writes: 0,
        });
    }

    fn note(&mut self, latency: Duration) {
        if let Some(window) = &mut self.window {
            window.writes += 1;
            self.latencies.note(latency);
        }
    }

    /// Looks back. `moved`: blocks copied or compared so far; `waiting`: how long the oldest write
    /// under way has been. Whether the advice is another one.
    fn turn(&mut self, now: Instant, target: Duration, moved: u64, waiting: Duration) -> bool {
        let Some(window) = self.window else {
            return false;
        };
        let before = self.advice.pace;
        let rate = rate_of(moved.saturating_sub(window.moved), now.since(window.begun));
        // The last but one counts as well: a target that paused for a moment is no slow one.
        let rate = rate.max(core::mem::replace(&mut self.rate, rate));
        // Who stopped writing feels nothing any more.
        let p99 = self.latencies.p99().filter(|_| window.writes > 0);
        let felt = p99.map_or(waiting, |p99| p99.max(waiting));
        let bearable = self.anyhow.map_or(target, |anyhow| anyhow.max(target));
        if felt > Duration::ZERO {
            self.advice.latency = felt;
        }
        if felt > bearable {
            if !core::mem::take(&mut self.settling) {
                self.slow_down(rate, p99);
            }
        } else {
            self.settling = false;
            self.in_vain = self.in_vain.saturating_sub(1);
            if let (Some(anyhow), Some(p99)) = (self.anyhow, p99) {
                // Fading, too: what was learnt while something else was wrong is tried again.
                let less = (anyhow - anyhow / 256).min(beyond(p99));
                self.anyhow = Some(less).filter(|less| *less > target);
            }
            self.quiet = match window.writes {
                0 => self.quiet + 1,
                _ => 0,
            };
            let more = match felt {
                _ if self.quiet > Self::QUIET => Self::DOUBLE,
                felt if felt <= bearable / 2 => Self::WALK,
                _ => Self::CREEP,
            };
            self.speed_up(rate, more);
        }
        self.latencies.fade();
        self.begin_window(now, moved);
        self.advice.pace != before
    }

    /// Nobody is served, or nobody writes by order: no guest can feel anything.
    fn turn_unfelt(&mut self, now: Instant, moved: u64) -> bool {
        self.latencies = Latencies::EMPTY;
        self.quiet = Self::QUIET;
        if let Some(window) = &mut self.window {
            window.writes = 0;
        }
        self.turn(now, Duration::MAX, moved, Duration::ZERO)
    }

    fn slow_down(&mut self, rate: u64, p99: Option<Duration>) {
        let pace = self.advice.pace.map_or(rate, |pace| pace.get().min(rate));
        if pace <= 2 * Self::FLOOR
            && let Some(p99) = p99
        {
            self.in_vain += Self::IN_VAIN;
            if self.in_vain >= Self::IN_VAIN_MAX {
                self.in_vain = 0;
                self.anyhow = Some(beyond(p99));
            }
        }
        self.set(Some(pace / 10 * 7));
        self.settling = true;
        self.quiet = 0;
        // What comes now shows what it was good for.
        self.latencies = Latencies::EMPTY;
    }

    /// By a part of the pace.
    fn speed_up(&mut self, rate: u64, part: u64) {
        let Some(pace) = self.advice.pace.map(NonZeroU64::get) else {
            return;
        };
        let pace = pace.saturating_add((pace / part).max(1));
        // What it does not come near to is no limit. At the floor nothing says so yet.
        let idle = pace > 2 * Self::FLOOR && pace / 2 > rate;
        self.set((!idle).then_some(pace));
    }

    fn set(&mut self, pace: Option<u64>) {
        self.advice.pace = pace.and_then(|pace| NonZeroU64::new(pace.max(Self::FLOOR)));
    }
}

/// Half as much again: two buckets.
fn beyond(latency: Duration) -> Duration {
    latency.saturating_add(latency / 2)
}

/// Blocks in a time as bytes a second.
fn rate_of(blocks: u64, time: Duration) -> u64 {
    let bytes = u128::from(blocks) * u128::from(BLOCK_LEN) * 1_000_000;
    u64::try_from(bytes / time.as_micros().max(1)).unwrap_or(u64::MAX)
}

impl Engine {
    /// How often guests' latencies are looked back at while something is copied: long enough for a
    /// pace to show, short against what a person would call slow.
    pub const THROTTLE_WINDOW: Duration = Duration::from_millis(250);

    /// A guest's write was answered.
    pub(super) fn note_write_latency(&mut self, began: Instant) {
        self.throttle.note(self.now.since(began));
    }

    pub(super) fn throttle_deadline(&self) -> Option<Instant> {
        self.throttle.window.map(|window| window.ends)
    }

    /// What guests leave for what is asked for here.
    pub(super) fn advice(&self) -> Advice {
        if self.resync_rate() == ResyncRate::Unlimited {
            Advice::NONE
        } else if self.active.is_some() {
            self.throttle.advice
        } else {
            let session = self.session.as_ref().filter(|_| self.resync_copies());
            session.map_or(Advice::NONE, |session| session.advice)
        }
    }

    /// Looks back when a window is over, begins with the first thing to copy and ends with the last.
    pub(super) fn pump_throttle(&mut self, out: &mut Outbox) {
        if !self.guests_come_first() {
            if self.throttle.is_watching() {
                self.throttle = Throttle::new();
                // A target that was told otherwise would keep to that after a pause.
                self.pass_advice_on(out);
            }
            return;
        }
        let (now, moved) = (self.now, self.moved_blocks());
        match self.throttle.window {
            None => self.throttle.begin_window(now, moved),
            Some(window) if now < window.ends => {}
            Some(_) => {
                let changed = match self.may_admit() {
                    Err(Closed::NotPrimary | Closed::Held(_)) => {
                        self.throttle.turn_unfelt(now, moved)
                    }
                    _ if self.is_suspended() => self.throttle.turn_unfelt(now, moved),
                    Ok(()) | Err(Closed::Busy) => {
                        let target = self.config.guest_latency_target;
                        self.throttle.turn(now, target, moved, self.longest_wait())
                    }
                };
                if changed {
                    self.pass_advice_on(out);
                }
            }
        }
    }

    /// Whether guests are served here while something is copied or compared that they do not wait for.
    fn guests_come_first(&self) -> bool {
        let served = self.active.as_ref().is_some_and(|active| active.serving);
        let wanted = self.resync_rate() != ResyncRate::Unlimited;
        served && wanted && (self.resync_copies() || self.verify_runs())
    }

    /// Bitmaps are exchanged, and neither does a guest wait for the resync nor an operator hold it.
    fn resync_copies(&self) -> bool {
        let copies = match self.session.as_ref().map(|session| &session.phase) {
            Some(Phase::SyncSource(source)) => !source.is_exchanging() && !source.sync.equalise,
            Some(Phase::SyncTarget(target)) => target.pulling && !target.sync.equalise,
            _ => false,
        };
        copies && !self.sync_is_paused()
    }

    /// How long the oldest write under way or at the gate has been waiting.
    fn longest_wait(&self) -> Duration {
        let waits = [self.oldest_write(), self.throttle.busy_since];
        let since = waits.into_iter().flatten().min();
        since.map_or(Duration::ZERO, |since| self.now.since(since))
    }

    /// A request waits at the gate, or none does any more.
    pub(super) fn note_gate(&mut self, busy: bool) {
        let since = self.throttle.busy_since.take();
        self.throttle.busy_since = since.or(Some(self.now)).filter(|_| busy);
    }

    fn moved_blocks(&self) -> u64 {
        let resynced = self.progress.map_or(0, |progress| progress.done_blocks);
        let verified = self
            .verify_report()
            .map_or(0, |report| report.checked_blocks);
        resynced + verified
    }

    fn pass_advice_on(&mut self, out: &mut Outbox) {
        if self.session_is_source() {
            let Advice { pace, latency } = self.throttle.advice;
            self.send(Message::ResyncAdvice { pace, latency }, out);
        }
    }

    /// The Primary says what its guests leave.
    pub(super) fn on_resync_advice(
        &mut self,
        pace: Option<NonZeroU64>,
        latency: Duration,
        out: &mut Outbox,
    ) {
        if let Some(session) = &mut self.session {
            let floor = NonZeroU64::new(Throttle::FLOOR);
            let pace = pace.max(floor.filter(|_| pace.is_some()));
            session.advice = Advice { pace, latency };
        }
        self.shorten_pace_wait();
        self.pull(out);
    }
}

#[cfg(test)]
mod tests;
