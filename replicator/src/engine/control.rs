//! What operators want of a resync: that it is held, or at most so fast.
//!
//! Either side may hold it; it goes on when neither does. An order about its speed counts on both
//! sides. Unless it says "unlimited", guests come first (`throttle.rs`). Neither concerns a resync that guests wait for (both replicas are in `in_sync` and are
//! made equal): that one runs on, at full speed. The target asks for what it lacks, so it is the
//! target that stops asking or asks at a pace; what was asked for before is still answered, and
//! marks stay until their blocks are copied, so that a held resync makes nobody equal (promise 4).

use core::num::NonZeroU64;
use core::time::Duration;

use super::Engine;
use super::output::{Action, CloseReason, Event, Outbox};
use super::session::Phase;
use crate::protocol::{Message, RateOrder};
use crate::types::{BLOCK_LEN, BlockCount, Instant, ResyncRate};

/// The orders, and how far the pace allows to go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Control {
    /// Held by an order given here.
    paused: bool,
    /// The newest order about the speed, wherever it was given.
    rate: Option<RateOrder>,
    /// When the pace allows the next request.
    pub(super) due: Instant,
}

/// What an order given here changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResyncOrder {
    /// Hold resyncs, those to come too.
    Pause,
    /// Do not hold them any more.
    Resume,
    /// How fast they may go.
    Rate(ResyncRate),
}

impl Engine {
    /// A request that the pace held up may be followed by others at once until the mean is reached
    /// again: what timers and full windows cost is made up for, but no more.
    const PACE_BURST: Duration = Duration::from_millis(100);
    /// Requests a second at least, as far as blocks can be divided: a slow resync is even.
    const PACED_REQUESTS_PER_SECOND: u64 = 8;

    pub(super) fn handle_resync_order(&mut self, order: ResyncOrder, out: &mut Outbox) {
        match order {
            ResyncOrder::Pause => self.control.paused = true,
            ResyncOrder::Resume => self.control.paused = false,
            ResyncOrder::Rate(rate) => {
                let number = self.control.rate.map_or(0, |known| known.number);
                let number = number.saturating_add(1);
                self.control.rate = Some(RateOrder { number, rate });
                self.begin_pace();
            }
        }
        if self.is_greeted() {
            self.send_control(out);
        }
        out.push(Action::Event(Event::Changed));
        self.pull(out);
    }

    /// What was asked for at another rate is not waited for.
    fn begin_pace(&mut self) {
        self.control.due = self.now;
        self.begin_verify_pace();
    }

    /// The pace is another one: what was asked for at the old one is not waited for long.
    pub(super) fn shorten_pace_wait(&mut self) {
        self.control.due = self.control.due.min(self.now.plus(Self::PACE_BURST));
    }

    /// A session begins: the peer need not be told that there are no orders.
    pub(super) fn begin_control(&mut self, out: &mut Outbox) {
        self.control.due = self.now;
        if self.control.paused || self.control.rate.is_some() {
            self.send_control(out);
        }
    }

    fn send_control(&mut self, out: &mut Outbox) {
        let Control { paused, rate, .. } = self.control;
        self.send(Message::ResyncControl { paused, rate }, out);
    }

    pub(super) fn on_resync_control(
        &mut self,
        paused: bool,
        rate: Option<RateOrder>,
        out: &mut Outbox,
    ) {
        if !self.is_greeted() {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        if let Some(session) = &mut self.session {
            session.peer_paused = paused;
        }
        if rate.is_some_and(|theirs| self.is_newer(theirs)) {
            self.control.rate = rate;
            self.begin_pace();
        }
        out.push(Action::Event(Event::Changed));
        self.pull(out);
    }

    fn is_newer(&self, theirs: RateOrder) -> bool {
        self.control.rate.is_none_or(|own| {
            let slower = theirs.rate < own.rate;
            theirs.number > own.number || (theirs.number == own.number && slower)
        })
    }

    fn is_greeted(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !matches!(session.phase, Phase::Greeting))
    }

    /// Resyncs are held by an order given here.
    pub(super) fn sync_is_paused_here(&self) -> bool {
        self.control.paused
    }

    /// Resyncs are held by an order given at the peer, as far as it said so in this session.
    pub(super) fn sync_is_paused_there(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.peer_paused)
    }

    /// A resync runs, no guest waits for it, and somebody holds it.
    pub(super) fn sync_is_paused(&self) -> bool {
        let paused = self.sync_is_paused_here() || self.sync_is_paused_there();
        paused && self.sync_of().is_some_and(|sync| !sync.equalise)
    }

    /// How fast resyncs may go.
    pub(super) fn resync_rate(&self) -> ResyncRate {
        self.control
            .rate
            .map_or(self.config.resync_rate, |order| order.rate)
    }

    /// What orders and guests leave for resyncs and verifies, in bytes a second.
    pub(super) fn limit(&self) -> Option<u64> {
        let (ordered, left) = (self.resync_rate().limit(), self.advice().pace);
        let limits = [ordered, left].into_iter().flatten();
        limits.map(NonZeroU64::get).min()
    }

    /// The pace of the running resync, in bytes a second.
    pub(super) fn pace(&self) -> Option<u64> {
        let runs = self.sync_of().is_some_and(|sync| !sync.equalise);
        self.limit().filter(|_| runs)
    }

    /// When the pace allows the next request, if that is not now.
    pub(super) fn pace_due(&self) -> Option<Instant> {
        self.pace()?;
        Some(self.control.due).filter(|due| *due > self.now)
    }

    /// Most blocks of one request at this pace.
    pub(super) fn paced_blocks_max(&self) -> u64 {
        self.pace().map_or(Self::RESYNC_REQUEST_BLOCKS, |pace| {
            let blocks = pace / Self::PACED_REQUESTS_PER_SECOND / BLOCK_LEN;
            blocks.clamp(1, Self::RESYNC_REQUEST_BLOCKS)
        })
    }

    /// A request of so many blocks goes out.
    pub(super) fn note_paced(&mut self, blocks: BlockCount) {
        if let Some(pace) = self.pace() {
            let age = self.now.since(Instant::ZERO.plus(Self::PACE_BURST));
            let from = self.control.due.max(Instant::ZERO.plus(age));
            self.control.due = from.plus(time_of(blocks, pace));
        }
    }
}

/// How long so many blocks take at `pace` bytes a second.
pub(super) fn time_of(blocks: BlockCount, pace: u64) -> Duration {
    let nanos = u128::from(blocks.0) * u128::from(BLOCK_LEN) * 1_000_000_000 / u128::from(pace);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_blocks_never_overflows() {
        assert_eq!(time_of(BlockCount(256), 1 << 20), Duration::from_secs(1));
        assert_eq!(time_of(BlockCount(1), u64::MAX), Duration::ZERO);
        let longest = time_of(BlockCount(u64::MAX), 1);
        assert_eq!(longest, Duration::from_nanos(u64::MAX));
    }
}
