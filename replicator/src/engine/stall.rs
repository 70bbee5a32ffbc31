//! A disk that does not answer.
//!
//! An operation may fail; it may also never end. One that is not over after the disk timeout is
//! *late*. What follows depends on who else has the data:
//!
//! * A Primary whose peer is whole treats it like an error: the replica is out and the peer serves
//!   from here on (`fail_local_disk`, `pump_leave`). But a late operation may still land (R14), so
//!   it is counted until the disk says that it is over: before that the device is neither let go
//!   of nor attached again. Guests do not wait for it: a failed replica is written to by nobody,
//!   so its blocks need no lock.
//! * The only replica waits. An error would be a lie: the write may land a second later.
//! * A Secondary says so and ends the session, so that the Primary goes on without it. It wrote
//!   nothing off: it greets again when its disk has answered, and gets what it missed.
//!
//! A disk that does other things meanwhile is slow rather than hung, and one that flushes has a
//! whole cache to write back: both get [`Engine::SLOW_DISK_TIMEOUTS`] times as long.
//!
//! Each volume has its own device. What one of them does says nothing of another: they are watched
//! one by one, and the first that is late or in doubt decides for the replica.
//!
//! Reads of an online verify are not watched here: no guest waits for them (`slow_compare.rs`).

use core::time::Duration;
use std::collections::VecDeque;

use super::ops::{DiskOp, Op};
use super::output::{Action, CloseReason, DiskCommand, Event, Outbox};
use super::session::Phase;
use super::slab::Key;
use super::{Engine, LocalDisk, MetaThen};
use crate::protocol::{Message, WriteId};
use crate::types::time::earliest;
use crate::types::{BlockIndex, DiskError, InSync, Instant};

/// When the operations under way on a device began, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Some may be over already; the first one never is.
    begun: VecDeque<(Instant, Key)>,
    last_end: Instant,
    /// One that began after the first has ended before it: the disk is not just working through a
    /// long queue in order.
    overtaken: bool,
}

impl Watch {
    /// Entries of operations that are over, before they are swept out: twice what is under way and
    /// this many.
    const SWEEP_ABOVE: usize = 64;

    fn begin(&mut self, now: Instant, op: Key) {
        self.begun.push_back((now, op));
    }

    /// One operation ended, `mine` if it was one of these.
    fn end(&mut self, now: Instant, mine: bool, under_way: usize, is_live: impl Fn(Key) -> bool) {
        self.last_end = now;
        if mine {
            self.overtaken = self.begun.front().is_some_and(|(_, op)| is_live(*op));
        }
        while self.begun.front().is_some_and(|(_, op)| !is_live(*op)) {
            self.begun.pop_front();
        }
        if self.begun.len() > 2 * under_way + Self::SWEEP_ABOVE {
            self.begun.retain(|(_, op)| is_live(*op));
        }
    }

    fn oldest(&self) -> Option<Instant> {
        self.begun.front().map(|(began, _)| *began)
    }

    /// The oldest, if others passed it by.
    fn oldest_overtaken(&self) -> Option<Instant> {
        self.oldest().filter(|_| self.overtaken)
    }

    /// When nothing has ended for `patience`, however long the queue.
    fn silent_at(&self, patience: Duration) -> Option<Instant> {
        Some(self.oldest()?.max(self.last_end).plus(patience))
    }
}

/// The devices that an operation is on, from one place to another: few are on more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Devices {
    first: usize,
    last: usize,
}

/// What is known of a data device's answers.
#[derive(Clone, Debug, Default)]
struct DeviceWatch {
    data: Watch,
    flushes: Watch,
}

/// What is known of the local disk's answers.
#[derive(Clone, Debug)]
pub(super) struct Stall {
    /// One for each volume.
    devices: Vec<DeviceWatch>,
    meta: Watch,
    /// Data operations given up and not over.
    given_up: usize,
    /// Since when an operation has been late.
    late_since: Option<Instant>,
    /// It was given its moment, and waiting for it is all that is left.
    silent: bool,
}

impl Stall {
    pub(super) fn new(devices: usize) -> Self {
        Self {
            devices: vec![DeviceWatch::default(); devices],
            meta: Watch::default(),
            given_up: 0,
            late_since: None,
            silent: false,
        }
    }

    /// The earliest of what each device's watch says.
    fn earliest_of(&self, of: impl Fn(&DeviceWatch) -> Option<Instant>) -> Option<Instant> {
        self.devices.iter().filter_map(of).min()
    }
}

impl Engine {
    /// The devices that a command meets: all of them for a flush.
    pub(super) fn devices_of(&self, command: &DiskCommand) -> Devices {
        let row = &self.config.row;
        match command {
            DiskCommand::Flush => Devices {
                first: 0,
                last: row.last_place(),
            },
            DiskCommand::Read(range)
            | DiskCommand::Write { range, .. }
            | DiskCommand::Zeroes { range, .. } => {
                let end = BlockIndex(range.end().0.saturating_sub(1));
                let first = row.place_of(range.start());
                Devices {
                    first,
                    last: row.place_of(end).max(first),
                }
            }
        }
    }

    pub(super) fn watch_disk_op(&mut self, op: Key, command: &DiskCommand, on: Devices) {
        for device in &mut self.stall.devices[on.first..=on.last] {
            let watch = match command {
                DiskCommand::Flush => &mut device.flushes,
                _ => &mut device.data,
            };
            watch.begin(self.now, op);
        }
    }

    pub(super) fn watch_meta_op(&mut self, op: Key) {
        self.stall.meta.begin(self.now, op);
    }

    pub(super) fn note_disk_answer(&mut self, what: DiskOp, on: Devices) {
        if what == DiskOp::Late {
            self.stall.given_up -= 1;
        }
        let flushed = matches!(
            what,
            DiskOp::RoundFlush(_) | DiskOp::PeerFlush | DiskOp::GrowFlush(_) | DiskOp::DetachFlush
        );
        let (now, under_way, ops) = (self.now, self.disk_ops, &self.ops);
        for device in &mut self.stall.devices[on.first..=on.last] {
            for (watch, mine) in [(&mut device.data, !flushed), (&mut device.flushes, flushed)] {
                watch.end(now, mine, under_way, |op| ops.get(op).is_some());
            }
        }
    }

    pub(super) fn note_meta_answer(&mut self) {
        let (now, under_way, ops) = (self.now, self.meta_ops, &self.ops);
        let watch = &mut self.stall.meta;
        watch.end(now, true, under_way, |op| ops.get(op).is_some());
    }

    /// Whether nothing that may still touch the disk matters to a session: a replica that is out
    /// is neither read nor written by any, until it is attached again after all of it (R14).
    pub(super) fn disk_is_quiet(&self) -> bool {
        if matches!(self.local, LocalDisk::Failed | LocalDisk::LettingGo) {
            self.disk_ops - self.comparing_ops == self.stall.given_up
        } else {
            self.ops_that_count() == 0
        }
    }

    /// Whether nothing has come from the disk for so long that what waits for it may wait longer.
    /// No moment to expel the peer: it may be the one that has to serve.
    pub(super) fn disk_is_doubtful(&self) -> bool {
        self.doubtful_at().is_some_and(|at| at <= self.now)
    }

    fn doubtful_at(&self) -> Option<Instant> {
        let patience = self.config.disk_timeout? / Self::DISK_DOUBT_PARTS;
        let stall = &self.stall;
        let of_data = stall.earliest_of(|device| device.data.silent_at(patience));
        let at = earliest(of_data, stall.meta.silent_at(patience));
        at.filter(|_| self.local == LocalDisk::Attached)
    }

    /// Whether an operation is late and was not given up: nobody else has what this disk has.
    pub(super) fn disk_is_silent(&self) -> bool {
        self.stall.silent
    }

    /// When the oldest operation is late, if it is one that somebody may wait for.
    fn late_at(&self) -> Option<Instant> {
        let short = self.config.disk_timeout?;
        let long = short * Self::SLOW_DISK_TIMEOUTS;
        let of_data = self.stall.earliest_of(|DeviceWatch { data, flushes }| {
            let slow = data.oldest_overtaken().map(|began| began.plus(long));
            let hung = earliest(slow, data.silent_at(short));
            earliest(hung, flushes.oldest().map(|began| began.plus(long)))
        });
        let meta = &self.stall.meta;
        match self.local {
            LocalDisk::Attached => earliest(of_data, meta.silent_at(long)),
            LocalDisk::Failed | LocalDisk::LettingGo => of_data,
            LocalDisk::Diskless | LocalDisk::Attaching | LocalDisk::Detaching => None,
        }
    }

    pub(super) fn stall_deadline(&self) -> Option<Instant> {
        let doubtful = self.doubtful_at().filter(|at| *at > self.now);
        earliest(doubtful, self.late_deadline())
    }

    fn late_deadline(&self) -> Option<Instant> {
        match self.stall.late_since {
            None => self.late_at(),
            // Beyond that it depends on others, who are inputs themselves.
            Some(since) => Some(since.plus(Self::LATE_GRACE)).filter(|at| *at > self.now),
        }
    }

    /// A process that was stopped finds everything late, and the answers waiting behind: they get
    /// a moment to be heard.
    pub(super) fn tick_disk(&mut self, out: &mut Outbox) {
        self.try_peer_disk(out);
        let late = self.late_at().is_some_and(|at| at <= self.now);
        let since = late.then(|| self.stall.late_since.unwrap_or(self.now));
        self.stall.late_since = since;
        if since.is_some_and(|since| self.now >= since.plus(Self::LATE_GRACE)) {
            self.act_on_late_ops(out);
        }
        let silent = self
            .stall
            .late_since
            .is_some_and(|since| self.now >= since.plus(Self::LATE_GRACE));
        if silent != self.stall.silent {
            self.stall.silent = silent;
            out.push(Action::Event(Event::Changed));
        }
    }

    fn act_on_late_ops(&mut self, out: &mut Outbox) {
        if self.local != LocalDisk::Attached {
            // It failed, or is let go of. Guests of the only replica wait all the same.
            if !self.is_only_replica() {
                self.give_up_disk_ops(out);
            }
        } else if self.active.is_some() {
            if self.can_go_on_without_disk() {
                self.fail_local_disk(DiskError::Timeout, out);
                self.give_up_disk_ops(out);
            }
        } else if self.holds_up_primary() {
            let error = DiskError::Timeout.into();
            let write = WriteId(0);
            self.send(Message::NegAck { write, error }, out);
            self.end_session(CloseReason::DiskChanged, out);
        }
    }

    /// Whether the peer's replica is as good as this one, and the peer is there to serve from it.
    fn can_go_on_without_disk(&self) -> bool {
        let whole = self.session.as_ref().is_some_and(|session| {
            let claim = session
                .peer
                .as_ref()
                .and_then(|hello| hello.replica.as_ref());
            !session.stranger
                && claim.is_some_and(|claim| {
                    !claim.blank && !claim.inconsistent && !claim.lost_volatile
                })
        });
        // What stopped this disk may have stopped that one too, and then whoever writes his own off
        // first has lost: it is seen to work first.
        let works = self.owed_acks == 0 && !self.owes_barrier() && self.peer_disk_answers();
        // What guests were told of and only this disk has is nowhere else (R18).
        let good = self.peer_is_equal() || (whole && !self.ahead_lost);
        self.peer_is_named() && self.peer_is_recorded() && good && works
    }

    /// Whether the peer's disk did something since this one fell silent. One that greets, and has
    /// nothing to answer yet, is taken at its word.
    fn peer_disk_answers(&self) -> bool {
        let stall = &self.stall;
        let of_data = stall
            .earliest_of(|DeviceWatch { data, flushes }| earliest(data.oldest(), flushes.oldest()));
        let since = earliest(of_data, stall.meta.oldest());
        let greeting = !self.replicating();
        let seen = self.session.as_ref().map(|session| session.disk_seen);
        greeting || seen.zip(since).is_some_and(|(seen, since)| seen > since)
    }

    /// A peer that owes nothing proves nothing: a barrier asks its disk, before this one is late.
    fn try_peer_disk(&mut self, out: &mut Outbox) {
        if self.active.is_some()
            && self.disk_is_doubtful()
            && self.peer_is_equal()
            && self.round.is_none()
            && !self.peer_disk_answers()
        {
            self.want_round(out);
        }
    }

    /// Whether a Primary may be waiting for this Secondary's disk although it need not.
    fn holds_up_primary(&self) -> bool {
        let only = InSync::only(self.config.node);
        let needed = self.view.is_some_and(|view| view.in_sync == only);
        let phase = self.session.as_ref().map(|session| &session.phase);
        let waited_for = match phase {
            Some(Phase::MirrorTarget) => true,
            Some(Phase::SyncTarget(target)) => target.sync.equalise,
            _ => false,
        };
        !needed && waited_for
    }

    /// Whoever waits for the disk is told that it failed; what it does with the operations after
    /// all is only counted.
    fn give_up_disk_ops(&mut self, out: &mut Outbox) {
        for device in &mut self.stall.devices {
            device.data.begun.clear();
            device.flushes.begun.clear();
        }
        self.stall.meta.begun.clear();
        self.stall.late_since = None;
        let mut waiting = Vec::new();
        for key in self.ops.keys() {
            match self.ops.get_mut(key) {
                Some(Op::Disk { what, .. }) if *what != DiskOp::Late && !what.only_compares() => {
                    waiting.push(core::mem::replace(what, DiskOp::Late));
                }
                Some(Op::Meta { then, .. }) if *then != MetaThen::Invalidated => {
                    *then = MetaThen::Nothing;
                }
                Some(_) | None => {}
            }
        }
        self.stall.given_up += waiting.len();
        for what in waiting {
            self.route_disk_result(what, Err(DiskError::Timeout), out);
        }
    }
}
