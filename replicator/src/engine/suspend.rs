//! `suspend-io`: guests' writes wait, and what they wrote is durable wherever the view counts on it.
//!
//! For snapshots: while it is *settled*, the backing device of every replica in `in_sync` holds, on
//! stable storage, just what guests were told of, so that snapshots of them taken then are equal.
//! Reads and flushes go on, but no read overtakes a write of its blocks: its client may be gone, and
//! the next one must not see what was there before and find it changed later. A verify waits, because a
//! repair writes.
//!
//! It belongs to an activation: the order ends it, or the end of the role, however that comes. What
//! waited then goes where every request without an answer goes: to whoever serves next. Nothing else
//! ends it, least of all time: a snapshot that takes longer than somebody thought would be torn
//! without a word.

use std::collections::VecDeque;

use super::Engine;
use super::input::{GuestKind, GuestRequest};
use super::output::{Action, Event, GuestError, Outbox, Suspension};
use crate::types::RequestId;

/// How far a suspension is.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspend {
    stage: Option<Stage>,
    /// Guests' writes, and reads of what they write, in the order they came. As many as guests may have under way, which the
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
        self.forget_suspend_round();
        // They came before whatever waits for the gate now.
        let mut held = core::mem::take(&mut self.suspend.held);
        held.append(&mut self.held);
        self.held = held;
        out.push(Action::Event(Event::Changed));
    }

    /// The activation is over, or begins: nothing of an earlier order counts.
    pub(super) fn forget_suspend(&mut self) {
        self.suspend = Suspend::default();
        self.forget_suspend_round();
    }

    /// A round that runs for an order which is over settles nothing for the next one: guests may
    /// have written since it began.
    fn forget_suspend_round(&mut self) {
        self.next_round.suspend = false;
        if let Some(round) = &mut self.round {
            round.suspend = false;
        }
    }

    /// The client of a request is gone: what waits for the end of the suspension is never begun, so
    /// that nothing of it lands under whoever comes next. What was begun ends by itself.
    pub(super) fn forget_guest(&mut self, gone: RequestId, out: &mut Outbox) {
        let before = self.suspend.held.len();
        self.suspend.held.retain(|it| it.request != gone);
        if self.suspend.held.len() == before {
            return;
        }
        let result = Err(GuestError::Forgotten);
        out.push(Action::Complete {
            request: gone,
            result,
        });
        self.admit_overtaken();
    }

    /// Reads whose write was forgotten go on.
    fn admit_overtaken(&mut self) {
        let held = core::mem::take(&mut self.suspend.held);
        for guest in held {
            if let Some(free) = self.hold_if_suspended(guest) {
                self.held.push_back(free);
            }
        }
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

    /// Bytes of guests' payloads that wait for the end of a suspension.
    #[must_use]
    pub fn suspended_bytes(&self) -> usize {
        let len = |guest: &GuestRequest| match &guest.kind {
            GuestKind::Write { payload, .. } => payload.len(),
            _ => 0,
        };
        self.suspend.held.iter().map(len).sum()
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
            GuestKind::Read { offset, len } => {
                let held = self.suspend.held.iter();
                held.filter_map(|it| written(&it.kind))
                    .any(|(at, len_held)| at < offset.0 + len.0 && offset.0 < at + len_held)
            }
            GuestKind::Flush => false,
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

/// Where a request writes, in bytes.
fn written(kind: &GuestKind) -> Option<(u64, u64)> {
    match kind {
        GuestKind::Write {
            offset, payload, ..
        } => Some((offset.0, payload.len() as u64)),
        GuestKind::Trim { offset, len, .. } | GuestKind::Zeroes { offset, len, .. } => {
            Some((offset.0, len.0))
        }
        GuestKind::Read { .. } | GuestKind::Flush => None,
    }
}
