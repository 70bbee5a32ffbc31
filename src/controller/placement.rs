//! When a Primary goes back to the node its resource is preferred on. Pure: facts and two clocks in,
//! the name of one resource out.
//!
//! It decides only *when to wish* for the very move that an operator could order, and never who may
//! serve: a wish that comes at the wrong moment is refused by the move's own checks. The node that
//! serves decides; the preferred one is asked once before ([`Placement::note_peer`]), since nobody
//! else knows what operators told it.
//!
//! Invariant: one resource at a time, with a pause after each, and each no more often than
//! [`FAILBACKS_MAX`] times in [`FLAP_WINDOW`], whatever became of them: a host that fails whenever it
//! becomes Primary answers nothing.

use core::time::Duration;
use std::collections::BTreeMap;

use replicator::types::{Failback, Instant, NodeId, ResourceId};

use super::output::Blocker;

/// Most failbacks of one resource that are begun in [`FLAP_WINDOW`]: a host that fails for the third time in a day is
/// to be looked at.
pub const FAILBACKS_MAX: usize = 3;

/// See [`FAILBACKS_MAX`].
pub const FLAP_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Pause after one failback before the next of any resource: clients reconnect, guests boot.
pub const BREATH: Duration = Duration::from_secs(2);

/// Pause after a failback that came to nothing, each time twice as long, up to the longest: each may
/// have held guests, or stopped one for nothing.
pub const BACK_OFF_MIN: Duration = Duration::from_secs(60);
/// See [`BACK_OFF_MIN`].
pub const BACK_OFF_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// A preferred node that does not want a resource is asked again after this, each time after twice as
/// long, up to the longest.
pub const ASK_AGAIN_MIN: Duration = Duration::from_secs(3);
/// See [`ASK_AGAIN_MIN`].
pub const ASK_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Where a resource is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// On this node, if possible.
    pub prefer: Option<NodeId>,
    /// When it goes back there.
    pub failback: Failback,
    /// How long that node must have been well before.
    pub hold_down: Duration,
    /// Lower goes first.
    pub priority: u32,
    /// `failover = "manual"`: people decide where it is.
    pub manual: bool,
}

/// How a resource is at this node, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// This node serves it.
    pub serves: bool,
    /// An operator chose this node against the preference, and that order holds.
    pub by_hand: bool,
    /// Maintenance is on here.
    pub maintenance: bool,
    /// The view may lack acknowledged writes: somebody should look first.
    pub lossy: bool,
    /// Since when the peer could have taken it over at any moment.
    pub peer_well_since: Option<Instant>,
    /// What is in the way of a move, of which a well peer is none.
    pub blocker: Option<Blocker>,
    /// What is better not interrupted.
    pub busy: Option<Busy>,
    /// It has a guest, and that does not run here: a failback would start it.
    pub guest_idle: bool,
}

/// Work at a Primary that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// An order is being carried out.
    Order,
    /// Writes are suspended, or held for another reason.
    Held,
    /// Blocks are being copied.
    Resync,
    /// A verify runs.
    Verify,
}

/// Why the preferred node does not want it now, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// It is in standby.
    Standby,
    /// Maintenance is on there.
    Maintenance,
    /// An operator moved it away from there, and that order holds.
    ByHand,
    /// Its own file says otherwise: `prefer` or `failback` differ.
    OtherWish,
    /// The guest could not be started there.
    Guest,
    /// It did not answer, or what it said is not understood.
    Unknown,
}

/// What became of a failback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The preferred node serves.
    Home,
    /// There was nothing to do any more.
    Idle,
    /// Anything else: refused, or left and not known to be served.
    Failed,
}

/// How a resource stands to its preferred node, as seen by this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// None is preferred.
    NoPreference,
    /// This node is, and serves.
    Home,
    /// Another node serves it, or none.
    NotHere,
    /// This node serves it and another is preferred, but it stays for now.
    Stays(Stay),
    /// Nothing speaks against going back.
    Due,
}

/// Why it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// `failback = "never"`.
    Never,
    /// `failover = "manual"`, or protocol A.
    Manual,
    /// An order by hand holds here.
    ByHand,
    /// Maintenance is on here.
    Maintenance,
    /// Acknowledged writes may be missing.
    Lossy,
    /// The preferred node could not take it over.
    PeerNotWell,
    /// It could, but not for long enough yet.
    HoldDown {
        /// For so long still.
        left: Duration,
    },
    /// The window is shut.
    Window {
        /// For so long still.
        left: Duration,
    },
    /// It went back too often.
    FlapLimit {
        /// Until the first of them counts no more.
        left: Duration,
    },
    /// The last try came to nothing.
    BackOff {
        /// Until the next.
        left: Duration,
    },
    /// The preferred node does not want it.
    PeerAway(Away),
    /// Its guest does not run here, and is not started by a failback.
    GuestIdle,
    /// Something is not to be interrupted.
    Busy(Busy),
    /// A move would be refused.
    Blocked(Blocker),
}

impl Standing {
    /// Its stable word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoPreference => "none",
            Self::Home => "home",
            Self::NotHere => "not-here",
            Self::Due => "due",
            Self::Stays(stay) => stay.word(),
        }
    }
}

impl Stay {
    /// Its stable word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Manual => "manual",
            Self::ByHand | Self::PeerAway(Away::ByHand) => "by-hand",
            Self::Maintenance | Self::PeerAway(Away::Maintenance) => "maintenance",
            Self::Lossy => "lossy",
            Self::PeerNotWell => "not-ready",
            Self::HoldDown { .. } => "hold-down",
            Self::Window { .. } => "window",
            Self::FlapLimit { .. } => "flap-limit",
            Self::BackOff { .. } => "back-off",
            Self::PeerAway(Away::Standby) => "standby",
            Self::PeerAway(Away::OtherWish) => "other-wish",
            Self::GuestIdle | Self::PeerAway(Away::Guest) => "guest",
            Self::PeerAway(Away::Unknown) => "unknown",
            Self::Busy(_) => "busy",
            Self::Blocked(_) => "blocked",
        }
    }

    /// After which it is over, where only time is missing.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        match self {
            Self::HoldDown { left }
            | Self::Window { left }
            | Self::FlapLimit { left }
            | Self::BackOff { left } => Some(*left),
            _ => None,
        }
    }
}

/// What is remembered of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    /// When a move back was begun, in seconds since 1970, oldest first; at most [`FAILBACKS_MAX`].
    went: Vec<u64>,
    /// What is wanted, and since when in this life.
    wish: Option<(Wish, Instant)>,
    /// Tries in a row that came to nothing.
    failures: u32,
    /// The next one not before.
    retry_at: Option<Instant>,
    /// What the preferred node said, if it does not want it.
    refusal: Option<Refusal>,
}

/// A preferred node does not want a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    why: Away,
    /// When it said so last.
    at: Instant,
    /// How often, in a row.
    times: u32,
}

impl Refusal {
    /// When it is asked again.
    fn until(&self) -> Instant {
        let doublings = self.times.saturating_sub(1).min(16);
        self.at
            .plus((ASK_AGAIN_MIN * (1 << doublings)).min(ASK_AGAIN_MAX))
    }
}

/// What a node remembers of its failbacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    memories: BTreeMap<ResourceId, Memory>,
    /// None before.
    breath_until: Option<Instant>,
    /// The one that is being moved.
    under_way: Option<ResourceId>,
}

/// The two clocks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// For spans.
    pub now: Instant,
    /// For windows, and for what outlasts a restart: seconds since 1970-01-01 UTC. May jump, which
    /// makes a failback early or late, and nothing else.
    pub unix_seconds: u64,
}

impl Placement {
    /// How the resource stands, at `node`.
    #[must_use]
    pub fn standing(
        &self,
        node: NodeId,
        id: ResourceId,
        wish: &Wish,
        facts: &Facts,
        clocks: Clocks,
    ) -> Standing {
        let Some(preferred) = wish.prefer else {
            return Standing::NoPreference;
        };
        if !facts.serves {
            return Standing::NotHere;
        }
        if preferred == node {
            return Standing::Home;
        }
        let memory = self.memories.get(&id);
        match stay(memory, wish, facts, clocks) {
            Some(stay) => Standing::Stays(stay),
            None => Standing::Due,
        }
    }

    /// The resource whose turn it is, of those that are [`Standing::Due`]. The preferred node is to be
    /// asked about it; then [`Self::begin`]. Those that it refused before come last, the one first that
    /// it was asked about longest ago.
    #[must_use]
    pub fn next(
        &self,
        due: impl Iterator<Item = (ResourceId, u32)>,
        now: Instant,
    ) -> Option<ResourceId> {
        if self.under_way.is_some() || self.breath_until.is_some_and(|until| now < until) {
            return None;
        }
        let refused_at = |id: ResourceId| Some(self.memories.get(&id)?.refusal?.at);
        // The first of equals, in the order in which they are named.
        due.min_by_key(|(id, priority)| (refused_at(*id), *priority))
            .map(|(id, _)| id)
    }

    /// The preferred node says whether it wants the resource.
    pub fn note_peer(&mut self, id: ResourceId, away: Option<Away>, now: Instant) {
        let memory = self.memories.entry(id).or_default();
        memory.refusal = away.map(|why| Refusal {
            why,
            at: now,
            times: memory.refusal.map_or(0, |it| it.times).saturating_add(1),
        });
    }

    /// What is wanted from now on: one that is new waits for the whole hold-down.
    pub fn note_wish(&mut self, id: ResourceId, wish: &Wish, now: Instant) {
        let memory = self.memories.entry(id).or_default();
        if memory.wish.is_none_or(|(known, _)| known != *wish) {
            memory.wish = Some((*wish, now));
        }
    }

    /// What is noted for later than now was noted before the clock was set back: it counts from now on,
    /// for a day and no longer.
    pub fn note_clock(&mut self, unix_seconds: u64) {
        for memory in self.memories.values_mut() {
            for went in &mut memory.went {
                *went = (*went).min(unix_seconds);
            }
        }
    }

    /// Its move begins, and counts whatever becomes of it.
    pub fn begin(&mut self, id: ResourceId, clocks: Clocks) {
        self.under_way = Some(id);
        let memory = self.memories.entry(id).or_default();
        memory.note_went(clocks.unix_seconds);
    }

    /// Its move ended, or did not begin at all.
    pub fn end(&mut self, id: ResourceId, ended: Ended, clocks: Clocks) {
        let begun = self.under_way.take() == Some(id);
        self.breath_until = Some(clocks.now.plus(BREATH));
        let memory = self.memories.entry(id).or_default();
        memory.refusal = None;
        match ended {
            Ended::Home => {
                memory.failures = 0;
                memory.retry_at = None;
            }
            Ended::Idle if begun => drop(memory.went.pop()),
            Ended::Idle => {}
            Ended::Failed => {
                let long_ago = |at: Instant| clocks.now.since(at) >= BACK_OFF_MAX;
                if memory.retry_at.is_some_and(long_ago) {
                    memory.failures = 0;
                }
                let doublings = memory.failures.min(16);
                memory.failures = memory.failures.saturating_add(1);
                let pause = (BACK_OFF_MIN * (1 << doublings)).min(BACK_OFF_MAX);
                memory.retry_at = Some(clocks.now.plus(pause));
            }
        }
    }

    /// It is not served here any more, for whatever reason: what the peer said of it is old. What failed
    /// is not forgotten, since a host that fails whenever it becomes Primary comes by here each time.
    pub fn note_gone(&mut self, id: ResourceId) {
        if let Some(memory) = self.memories.get_mut(&id) {
            memory.refusal = None;
        }
    }

    /// An earlier life of this node began a move back then.
    pub fn remember(&mut self, id: ResourceId, unix_seconds: u64) {
        self.memories.entry(id).or_default().note_went(unix_seconds);
    }

    /// When its moves back began, as far as that still counts.
    #[must_use]
    pub fn went(&self, id: ResourceId) -> &[u64] {
        self.memories.get(&id).map_or(&[], |memory| &memory.went)
    }
}

impl Memory {
    fn note_went(&mut self, unix_seconds: u64) {
        if self.went.len() >= FAILBACKS_MAX {
            self.went.remove(0);
        }
        self.went.push(unix_seconds);
    }

    fn flap_limit(&self, unix_seconds: u64) -> Option<Duration> {
        if self.went.len() < FAILBACKS_MAX {
            return None;
        }
        // One that lies in the future was noted before the clock was set back.
        let age = unix_seconds.saturating_sub(*self.went.first()?);
        let left = FLAP_WINDOW.saturating_sub(Duration::from_secs(age));
        Some(left).filter(|left| !left.is_zero())
    }
}

/// Why it stays; `None`: nothing speaks against going back. What only people can change comes first, then
/// what lasts longest.
fn stay(memory: Option<&Memory>, wish: &Wish, facts: &Facts, clocks: Clocks) -> Option<Stay> {
    let Clocks { now, unix_seconds } = clocks;
    if wish.failback == Failback::Never {
        return Some(Stay::Never);
    }
    if wish.manual {
        return Some(Stay::Manual);
    }
    if facts.by_hand {
        return Some(Stay::ByHand);
    }
    if facts.maintenance {
        return Some(Stay::Maintenance);
    }
    if facts.lossy {
        return Some(Stay::Lossy);
    }
    let Some(since) = facts.peer_well_since else {
        return Some(Stay::PeerNotWell);
    };
    if let Some(left) = memory.and_then(|memory| memory.flap_limit(unix_seconds)) {
        return Some(Stay::FlapLimit { left });
    }
    let wished = memory.and_then(|memory| memory.wish);
    let since = wished.map_or(since, |(_, wished)| since.max(wished));
    let left = since.plus(wish.hold_down).since(now);
    if !left.is_zero() {
        return Some(Stay::HoldDown { left });
    }
    if let Failback::Window(window) = wish.failback {
        let left = window.opens_in(unix_seconds);
        if !left.is_zero() {
            return Some(Stay::Window { left });
        }
    }
    let retry = memory.and_then(|memory| memory.retry_at);
    if let Some(left) = retry.map(|at| at.since(now)).filter(|left| !left.is_zero()) {
        return Some(Stay::BackOff { left });
    }
    let refusal = memory.and_then(|memory| memory.refusal);
    if let Some(refusal) = refusal.filter(|it| now < it.until()) {
        return Some(Stay::PeerAway(refusal.why));
    }
    if let Some(blocker) = facts.blocker {
        return Some(Stay::Blocked(blocker));
    }
    if facts.guest_idle {
        return Some(Stay::GuestIdle);
    }
    facts.busy.map(Stay::Busy)
}

#[cfg(test)]
mod tests;
