//! Flush rounds: the one way anything becomes durable on both replicas.
//!
//! A round closes the current write epoch. Locally it waits for the epoch's writes and flushes; at
//! the peer a barrier does the same. When both ends say so, the epoch is *retired*: its blocks need
//! no memory any more, its extents may leave the activity log, and clears made before the round
//! may reach the disk. Guest FLUSHes ride on rounds: one round runs, everything that asks meanwhile
//! shares the next (group commit). A flush covers the device, not the session (interleavings F23).

use super::Engine;
use super::ops::DiskOp;
use super::output::Action;
use super::output::{DiskCommand, Event, Outbox};
use super::role::AddStage;
use super::session::Session;
use super::slab::Key;
use super::write::Leg;
use crate::protocol::Message;
use crate::types::{DiskError, RequestId, ViewNumber, WriteEpoch};

/// A round in progress.
#[derive(Clone, Debug)]
pub(super) struct Round {
    epoch: WriteEpoch,
    /// Writes of the epoch with a leg still under way.
    writes: usize,
    local: Leg,
    local_started: bool,
    peer: Leg,
    /// The peer was equal when its barrier left: only then does the barrier's answer say that every
    /// acknowledged write is durable there (R15, R16).
    equal: bool,
    /// Guest flushes that ride on it.
    guests: Vec<Key>,
    add: Option<ViewNumber>,
    quiesce: bool,
    pub(super) suspend: bool,
}

/// What the next round is wanted for.
#[derive(Clone, Debug, Default)]
pub(super) struct NextRound {
    /// For the engine's own sake: it starts whether or not it can answer anybody.
    wanted: bool,
    guests: Vec<Key>,
    pub(super) add: Option<ViewNumber>,
    pub(super) quiesce: bool,
    pub(super) suspend: bool,
}

impl Engine {
    pub(super) fn begin_flush(&mut self, id: RequestId, out: &mut Outbox) {
        self.counters.flushes += 1;
        let request = self.begin_request(id, 1);
        self.next_round.guests.push(request);
        self.pump_round(out);
    }

    /// Starts a round now, or right after the one that runs.
    pub(super) fn want_round(&mut self, out: &mut Outbox) {
        self.next_round.wanted = true;
        self.pump_round(out);
    }

    pub(super) fn pump_round(&mut self, out: &mut Outbox) {
        let riders = !self.next_round.guests.is_empty() && self.round_can_answer();
        let closing =
            (self.next_round.quiesce || self.next_round.suspend) && self.round_can_close();
        if self.round.is_none() && (self.next_round.wanted || riders || closing) {
            self.start_round(out);
        }
    }

    fn start_round(&mut self, out: &mut Outbox) {
        let (can_answer, can_close) = (self.round_can_answer(), self.round_can_close());
        let next = &mut self.next_round;
        next.wanted = false;
        // Who cannot be answered by this round waits for one that can, and does not stop it.
        let guests = if can_answer {
            core::mem::take(&mut next.guests)
        } else {
            Vec::new()
        };
        let quiesce = can_close && core::mem::take(&mut next.quiesce);
        let suspend = can_close && core::mem::take(&mut next.suspend);
        let add = next.add.take();
        let epoch = self.epoch;
        self.epoch = WriteEpoch(epoch.0 + 1);
        let replicating = self.replicating();
        if replicating {
            self.note_debt();
        }
        self.round = Some(Round {
            epoch,
            writes: core::mem::take(&mut self.open_writes),
            local: if self.local_usable() {
                Leg::Pending
            } else {
                Leg::Unneeded
            },
            local_started: false,
            peer: if replicating {
                Leg::Pending
            } else {
                Leg::Unneeded
            },
            equal: self.peer_is_equal(),
            guests,
            add,
            quiesce,
            suspend,
        });
        if replicating {
            self.begin_settle();
            self.send(Message::Barrier { epoch }, out);
        }
        self.advance_round(out);
    }

    /// A write of `epoch` has no leg under way any more.
    pub(super) fn end_epoch_write(&mut self, epoch: WriteEpoch, out: &mut Outbox) {
        if let Some(round) = &mut self.round
            && epoch <= round.epoch
        {
            round.writes -= 1;
            self.advance_round(out);
        } else {
            self.open_writes -= 1;
        }
    }

    fn advance_round(&mut self, out: &mut Outbox) {
        let Some(round) = &mut self.round else { return };
        if round.local == Leg::Pending && !round.local_started && round.writes == 0 {
            round.local_started = true;
            let epoch = round.epoch;
            self.disk(DiskOp::RoundFlush(epoch), DiskCommand::Flush, out);
        }
        self.settle_round(out);
    }

    pub(super) fn on_round_flush(
        &mut self,
        epoch: WriteEpoch,
        result: Result<(), DiskError>,
        out: &mut Outbox,
    ) {
        if let Err(error) = result {
            // Never retried, never believed (promise 6): the replica is out.
            self.fail_local_disk(error, out);
        }
        if let Some(round) = &mut self.round
            && round.epoch == epoch
        {
            round.local = result.map_or_else(Leg::Failed, |()| Leg::Done);
        }
        self.settle_round(out);
    }

    pub(super) fn on_barrier_ack(&mut self, epoch: WriteEpoch, out: &mut Outbox) {
        if let Some(round) = &mut self.round
            && round.epoch == epoch
            && round.peer == Leg::Pending
        {
            round.peer = Leg::Done;
            self.note_peer_disk();
            self.settle_round(out);
        }
    }

    /// Whether the peer has a barrier to answer.
    pub(super) fn owes_barrier(&self) -> bool {
        self.round
            .as_ref()
            .is_some_and(|round| round.peer == Leg::Pending)
    }

    /// The session ended: what the barrier said is unknown.
    pub(super) fn lose_round(&mut self) {
        if let Some(round) = &mut self.round
            && matches!(round.peer, Leg::Pending | Leg::Done)
        {
            round.peer = Leg::Lost;
        }
    }

    /// The local disk failed: a round that has not flushed yet never will.
    pub(super) fn fail_round(&mut self, error: DiskError) {
        if let Some(round) = &mut self.round
            && round.local == Leg::Pending
            && !round.local_started
        {
            round.local = Leg::Failed(error);
        }
    }

    /// Answers the guests as soon as the promise holds, ends the round when both legs are over.
    pub(super) fn settle_round(&mut self, out: &mut Outbox) {
        self.answer_flushes(out);
        let over = self.round.as_ref().is_some_and(|round| {
            round.local != Leg::Pending && round.peer != Leg::Pending && round.writes == 0
        });
        if !over {
            return;
        }
        let Some(round) = self.round.take() else {
            return;
        };
        let local_ok = matches!(round.local, Leg::Done | Leg::Unneeded);
        let retired = local_ok && round.peer != Leg::Lost;
        if retired {
            self.retire(round.epoch, round.peer == Leg::Done, out);
        }
        // Whose promise does not hold yet (the peer went away, or became needed): a later round.
        self.next_round.guests.extend(round.guests);
        if let Some(view) = round.add {
            self.on_add_round(view, round.peer == Leg::Done && local_ok, out);
        }
        self.on_round_over(round.peer == Leg::Done, out);
        if round.quiesce {
            self.on_quiesce_round(retired, round.peer == Leg::Done, out);
        }
        if round.suspend {
            let there = round.peer == Leg::Done && round.equal;
            self.on_suspend_round(retired && (there || !self.strict()), out);
        }
    }

    /// Whether a round could answer the guests that wait for it: with the lease over, the peer
    /// away or not equal while strict, or a Leave not committed yet it could not, and would flush
    /// in circles.
    fn round_can_answer(&self) -> bool {
        self.may_reply() && self.round_can_close()
    }

    /// Whether everything acknowledged is durable wherever it must be once a round is over.
    fn round_can_close(&self) -> bool {
        (!self.strict() || self.peer_is_equal()) && !self.leaving()
    }

    fn answer_flushes(&mut self, out: &mut Outbox) {
        if !self.may_reply() {
            return;
        }
        let strict = self.strict();
        let mine_counts = self
            .active
            .as_ref()
            .is_some_and(|active| active.view.in_sync.contains(self.config.node));
        let Some(round) = &mut self.round else { return };
        let local_durable = match round.local {
            Leg::Done => true,
            Leg::Failed(_) | Leg::Unneeded => !mine_counts,
            Leg::Pending | Leg::Lost => false,
        };
        let failed = match round.local {
            Leg::Failed(error) if !strict && error != DiskError::Timeout => Some(error),
            Leg::Unneeded if !strict => Some(DiskError::Gone),
            _ => None,
        };
        let durable = local_durable && (!strict || (round.peer == Leg::Done && round.equal));
        if !durable && failed.is_none() {
            return;
        }
        for request in core::mem::take(&mut round.guests) {
            self.end_part(request, failed.map_or(Ok(None), Err), out);
        }
    }

    /// Keeps memory and the activity log from filling while nobody flushes.
    pub(super) fn round_when_due(&mut self, out: &mut Outbox) {
        let idle = self.now >= self.last_write.plus(Self::IDLE_ROUND_AFTER);
        let due = self.unretired_is_long()
            || (self.unretired_len() > 0 && idle)
            || self.activity_log_is_short();
        if due && self.round.is_none() && self.active.is_some() {
            self.want_round(out);
        }
    }

    /// Starts an Add's round (R19): everything admitted before `strict` went on is in it.
    pub(super) fn begin_add(&mut self, view: ViewNumber, out: &mut Outbox) {
        let ready = self.peer_is_equal() && self.session_is_source();
        let Some(active) = &mut self.active else {
            out.push(Action::Event(Event::AddAborted { view }));
            return;
        };
        if !ready {
            out.push(Action::Event(Event::AddAborted { view }));
            return;
        }
        if active.add_begun == Some(view) && active.add_stage != AddStage::Prepared {
            return; // Asked twice; the answer counts for both.
        }
        let prepared = self
            .session
            .as_ref()
            .filter(|session| session.prepared == Some(view));
        if let Some(replica) = prepared.and_then(Session::peer_replica)
            && active.add_begun == Some(view)
        {
            out.push(Action::Event(Event::AddPrepared { view, replica }));
            return;
        }
        active.add_begun = Some(view);
        active.add_stage = AddStage::Round;
        self.next_round.add = Some(view);
        self.want_round(out);
    }
}
