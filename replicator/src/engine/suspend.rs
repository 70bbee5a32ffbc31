//! `suspend-io`: guests' writes wait, and what they wrote is durable wherever the view counts on it.
//!
//! For snapshots: while it is *settled*, the backing device of every replica in `in_sync` holds, on
//! stable storage, just what guests were told of, so that snapshots of them taken then are equal.
//! Reads and flushes go on; a verify waits, because a repair writes.
//!
//! It belongs to an activation: the order ends it, or the end of the role, however that comes. What
//! waited then goes where every request without an answer goes: to whoever serves next. Nothing else
//! ends it, least of all time: a snapshot that takes longer than somebody thought would be torn
//! without a word.

use std::collections::VecDeque;

use super::Engine;
use super::input::{GuestKind, GuestRequest};
use super::output::{Action, Event, Outbox, Suspension};

/// How far a suspension is.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspend {
    stage: Option<Stage>,
    /// Guests' writes in the order they came. As many as guests may have under way, which the
    /// sessions they come by limit; like `Engine::held`.
    held: VecDeque<GuestRequest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for writes that were admitted.
    Writes,
    /// Waiting for the round that makes them durable.
    Flush,
    /// It holds.
    Settled,
}

impl Engine {
    pub(super) fn begin_suspend(&mut self, out: &mut Outbox) {
        if self.active.is_some() && self.suspend.stage.is_none() {
            self.suspend.stage = Some(Stage::Writes);
            out.push(Action::Event(Event::Changed));
        }
    }

    pub(super) fn end_suspend(&mut self, out: &mut Outbox) {
        if self.suspend.stage.take().is_none() {
            return;
        }
        self.next_round.suspend = false;
        // They came before whatever waits for the gate now.
        let mut held = core::mem::take(&mut self.suspend.held);
        held.append(&mut self.held);
        self.held = held;
        out.push(Action::Event(Event::Changed));
    }

    /// The activation is over, or begins: nothing of an earlier order counts.
    pub(super) fn forget_suspend(&mut self) {
        self.suspend = Suspend::default();
        self.next_round.suspend = false;
    }

    pub(super) fn suspension(&self) -> Option<Suspension> {
        self.suspend.stage.map(|stage| match stage {
            Stage::Writes | Stage::Flush => Suspension::Settling,
            Stage::Settled => Suspension::Settled,
        })
    }

    /// Guest requests that wait for its end.
    pub(super) fn suspended_len(&self) -> usize {
        self.suspend.held.len()
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.suspend.stage.is_some()
    }

    /// Takes a write that the gate would admit; gives back what need not wait.
    pub(super) fn hold_if_suspended(&mut self, guest: GuestRequest) -> Option<GuestRequest> {
        let waits = match guest.kind {
            GuestKind::Write { .. } | GuestKind::Trim { .. } | GuestKind::Zeroes { .. } => {
                self.is_suspended()
            }
            GuestKind::Read { .. } | GuestKind::Flush => false,
        };
        if !waits {
            return Some(guest);
        }
        self.suspend.held.push_back(guest);
        None
    }

    pub(super) fn pump_suspend(&mut self, out: &mut Outbox) {
        let idle = self.writes.is_empty() && self.waiting_parts.is_empty();
        if self.suspend.stage == Some(Stage::Writes) && idle {
            self.suspend.stage = Some(Stage::Flush);
            self.next_round.suspend = true;
            self.pump_round(out);
        }
    }

    /// The round that began after the last write was over has ended. One that retired nothing, or
    /// did not reach a peer that counts by now, promises nothing.
    pub(super) fn on_suspend_round(&mut self, durable: bool, out: &mut Outbox) {
        if self.suspend.stage != Some(Stage::Flush) {
            return;
        }
        let stage = if durable {
            Stage::Settled
        } else {
            Stage::Writes
        };
        self.suspend.stage = Some(stage);
        out.push(Action::Event(Event::Changed));
    }
}
