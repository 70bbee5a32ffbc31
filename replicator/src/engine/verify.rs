//! Online verify, the Primary's side: do both replicas hold the same, and where not?
//!
//! ```text
//!   pass   both sides read a range beside everything else and digest it ── equal: done
//!            │ some digests differ: maybe only a write in between
//!            ▼
//!   look   one block, locked here against writes, read there behind every write sent before
//!            │ still differs: it is so             (guests' writes of that block wait so long)
//!            ▼
//!   mend   if asked for: the block is written again as it is here, to both, like a guest's write
//! ```
//! A pass takes no lock, so it holds up nobody and proves nothing but equality: digests that are
//! equal were made of equal bytes, and a write in between makes the block equal once more. A look
//! holds its block shared: writes that came before are over here and were sent, later ones wait.
//! The peer takes the question in stream order through its own tracker, so both sides read what
//! exactly the same writes left.
//!
//! Nothing is marked: a mark says that the peer misses a write, and would hold guests' reads of a
//! block of which nobody knows which copy is the good one. A block mended goes through the activity
//! log like any write, so that a crash in the middle is a crash in the middle of a write.

use core::time::Duration;
use std::collections::VecDeque;

use super::edge::{self, Part};
use super::gate::Closed;
use super::ops::DiskOp;
use super::output::{Action, DiskCommand, Event, Outbox, VerifyEnd, VerifyReport};
use super::overlap::{Access, Ticket};
use super::resync::digests;
use super::session::Phase;
use super::slab::{Key, Slab};
use super::{Engine, LockOwner};
use crate::protocol::{Message, WriteId};
use crate::types::{BlockCount, BlockIndex, BlockRange, DiskError, Instant, Payload};

/// What an operator wants of an online verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyOrder {
    /// Compare every block. Only on a Primary whose peer is equal; else it is no order.
    Start {
        /// Write what differs again, as it is here.
        repair: bool,
    },
    /// Stop the one that runs.
    Stop,
}

/// The verify that runs, and what the last one found.
#[derive(Clone, Debug, Default)]
pub(super) struct Verify {
    run: Option<Run>,
    report: Option<VerifyReport>,
    /// How many began since the engine did.
    begun: u64,
    compares: Slab<Compare>,
    /// Questions of this session without an answer, those of stopped verifies too.
    owed: usize,
}

#[derive(Clone, Debug)]
struct Run {
    cursor: BlockIndex,
    /// Differed in a pass, to be looked at.
    suspects: VecDeque<BlockIndex>,
    looks: usize,
    mending: usize,
    /// When the pace allows the next pass.
    due: Instant,
    /// The pace, and nothing else, holds up the next pass.
    paced: bool,
}

/// A range of which both sides make digests.
#[derive(Clone, Debug)]
struct Compare {
    range: BlockRange,
    kind: Kind,
    /// When both sides were asked.
    asked: Option<Instant>,
    ours: Option<Result<Payload, DiskError>>,
    theirs: Option<Result<Payload, DiskError>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pass,
    Look { ticket: Ticket },
}

impl Engine {
    /// Blocks in one pass: 512 KiB, read in one piece, and digested in less time than a guest
    /// notices.
    pub const VERIFY_BLOCKS_MAX: u64 = 128;
    /// The same while guests are at it.
    const VERIFY_BLOCKS_BUSY: u64 = 32;
    /// Passes under way; one while guests are at it.
    const VERIFY_WINDOW: usize = 8;
    /// Blocks looked at or mended at a time: writes of so many wait at most.
    const VERIFY_LOOKS: usize = 4;
    /// Places of differences that are remembered; beyond, they are only counted.
    pub const VERIFY_RANGES_MAX: usize = 16;
    /// What timers and full windows cost is made up for, but no more.
    const VERIFY_BURST: Duration = Duration::from_millis(100);

    pub(super) fn handle_verify_order(&mut self, order: VerifyOrder, out: &mut Outbox) {
        match order {
            VerifyOrder::Stop => self.end_verify(VerifyEnd::Stopped, out),
            VerifyOrder::Start { repair } => self.begin_verify(repair, out),
        }
    }

    fn begin_verify(&mut self, repair: bool, out: &mut Outbox) {
        let mirrors = self
            .session
            .as_ref()
            .is_some_and(|session| matches!(session.phase, Phase::MirrorSource));
        if !mirrors || self.verify.run.is_some() {
            return;
        }
        self.verify.begun += 1;
        self.verify.report = Some(VerifyReport {
            repair,
            total_blocks: self.volume_blocks().0,
            began: self.now,
            ..VerifyReport::default()
        });
        self.verify.run = Some(Run {
            cursor: BlockIndex(0),
            suspects: VecDeque::new(),
            looks: 0,
            mending: 0,
            due: self.now,
            paced: false,
        });
        self.send(Message::VerifyState { running: true }, out);
        out.push(Action::Event(Event::Changed));
    }

    /// The volume is larger: a verify that runs compares its new blocks, too.
    pub(super) fn widen_verify(&mut self) {
        let blocks = self.volume_blocks().0;
        if self.is_verifying()
            && let Some(report) = &mut self.verify.report
        {
            report.total_blocks = blocks;
        }
    }

    /// The running or the last one.
    pub(super) fn verify_report(&self) -> Option<&VerifyReport> {
        self.verify.report.as_ref()
    }

    pub(super) fn verify_runs(&self) -> bool {
        self.verify.run.is_some()
    }

    pub(super) fn verifies_begun(&self) -> u64 {
        self.verify.begun
    }

    pub(super) fn is_verifying(&self) -> bool {
        self.verify.run.is_some()
    }

    /// Digests that the peer was asked for.
    pub(super) fn owes_digests(&self) -> bool {
        self.verify.owed > 0
    }

    pub(super) fn verify_deadline(&self) -> Option<Instant> {
        let run = self.verify.run.as_ref()?;
        run.paced.then_some(run.due)
    }

    /// Keeps both windows full, as long as a guest's write would be served, too.
    pub(super) fn pump_verify(&mut self, out: &mut Outbox) {
        // While it is held, its moment may come and go: whatever lets it go on is an input itself.
        if let Some(run) = &mut self.verify.run {
            run.paced = false;
        }
        while self.verify.run.is_some()
            && self.may_admit().is_ok()
            && !self.is_suspended()
            && self.advance_verify(out)
        {}
        self.end_verify_when_done(out);
    }

    /// Begins one thing; `false` if there is nothing to begin now.
    fn advance_verify(&mut self, out: &mut Outbox) -> bool {
        let busy = !self.requests.is_empty();
        let (volume, now) = (self.volume_blocks(), self.now);
        let passes = self.verify.compares.len();
        // A verify that was stopped may have left questions there.
        let full = self.comparing_ops >= Self::COMPARING_OPS_MAX;
        if full || self.verify.owed >= Self::DIGESTS_MAX / 2 {
            return false;
        }
        let Some(run) = &mut self.verify.run else {
            return false;
        };
        if run.looks + run.mending < Self::VERIFY_LOOKS
            && let Some(block) = run.suspects.pop_front()
        {
            run.looks += 1;
            self.begin_look(block, out);
            return true;
        }
        let window = if busy { 1 } else { Self::VERIFY_WINDOW };
        let rest = BlockRange::between(run.cursor, BlockIndex(volume.0));
        if !run.suspects.is_empty() || run.looks > 0 || passes >= window || rest.is_empty() {
            return false;
        }
        if run.due > now {
            run.paced = true;
            return false;
        }
        let most = if busy {
            Self::VERIFY_BLOCKS_BUSY
        } else {
            Self::VERIFY_BLOCKS_MAX
        };
        let range = edge::pieces(rest, most).next().unwrap_or(rest);
        run.cursor = range.end();
        self.note_verify_pace(range.count());
        self.begin_pass(range, out);
        true
    }

    /// A verify keeps to the limit that resyncs have.
    fn note_verify_pace(&mut self, blocks: BlockCount) {
        let Some(rate) = self.limit() else {
            return;
        };
        let age = self.now.since(Instant::ZERO.plus(Self::VERIFY_BURST));
        if let Some(run) = &mut self.verify.run {
            let from = run.due.max(Instant::ZERO.plus(age));
            run.due = from.plus(super::control::time_of(blocks, rate));
        }
    }

    /// The limit is another one from here on.
    pub(super) fn begin_verify_pace(&mut self) {
        if let Some(run) = &mut self.verify.run {
            run.due = self.now;
        }
    }

    fn begin_pass(&mut self, range: BlockRange, out: &mut Outbox) {
        let key = self.verify.compares.insert(Compare {
            range,
            kind: Kind::Pass,
            asked: None,
            ours: None,
            theirs: None,
        });
        self.ask_digests(key, range, false, out);
    }

    fn begin_look(&mut self, block: BlockIndex, out: &mut Outbox) {
        let range = BlockRange::new(block, BlockCount(1));
        let key = self.verify.compares.insert(Compare {
            range,
            kind: Kind::Look {
                ticket: Ticket::default(),
            },
            asked: None,
            ours: None,
            theirs: None,
        });
        let owner = LockOwner::Verify(key);
        let (ticket, held) = self.overlap.acquire(range, Access::Shared, owner);
        if let Some(compare) = self.verify.compares.get_mut(key) {
            compare.kind = Kind::Look { ticket };
        }
        if held {
            self.on_verify_locked(key, out);
        }
    }

    pub(super) fn on_verify_locked(&mut self, key: Key, out: &mut Outbox) {
        if let Some(range) = self.verify.compares.get(key).map(|it| it.range) {
            self.ask_digests(key, range, true, out);
        }
    }

    fn ask_digests(&mut self, key: Key, range: BlockRange, in_turn: bool, out: &mut Outbox) {
        let id = WriteId(key.0);
        if let Some(compare) = self.verify.compares.get_mut(key) {
            compare.asked = Some(self.now);
        }
        self.note_debt();
        self.verify.owed += 1;
        self.send(Message::VerifyRequest { id, range, in_turn }, out);
        self.disk(DiskOp::VerifyRead(key), DiskCommand::Read(range), out);
    }

    pub(super) fn on_verify_read(
        &mut self,
        key: Key,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let digest_key = self.digest_key();
        // One that was late was given up.
        if let Some(compare) = self.verify.compares.get_mut(key)
            && compare.ours.is_none()
        {
            compare.ours = Some(result.map(|data| digests(&data, &digest_key)));
            self.settle_compare(key, out);
        }
    }

    pub(super) fn oldest_verify_read(&self) -> Option<Instant> {
        let compares = self.verify.compares.iter();
        let waiting = compares.filter(|(_, it)| it.ours.is_none());
        waiting.filter_map(|(_, it)| it.asked).min()
    }

    pub(super) fn give_up_verify_reads(&mut self, patience: Duration, out: &mut Outbox) {
        let is_late = |it: &Compare| it.asked.is_some_and(|at| self.now.since(at) >= patience);
        let compares = self.verify.compares.iter();
        let late: Vec<Key> = compares
            .filter_map(|(key, it)| (it.ours.is_none() && is_late(it)).then_some(key))
            .collect();
        for key in late {
            self.on_verify_read(key, Err(DiskError::Timeout), out);
        }
    }

    pub(super) fn on_verify_digests(
        &mut self,
        id: WriteId,
        range: BlockRange,
        theirs: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        // While something else is owed, this is no sign that it comes.
        if self.owes_only_digests() {
            self.note_payment();
        }
        if self.verify.owed == 0 {
            self.end_session(super::CloseReason::Protocol, out);
            return;
        }
        self.verify.owed -= 1;
        let key = Key(id.0);
        // Asked for by a verify that was stopped since.
        let Some(compare) = self.verify.compares.get_mut(key) else {
            return;
        };
        if compare.range != range || compare.theirs.is_some() {
            self.end_session(super::CloseReason::Protocol, out);
            return;
        }
        compare.theirs = Some(theirs);
        self.settle_compare(key, out);
    }

    /// Both sides have answered: compare.
    fn settle_compare(&mut self, key: Key, out: &mut Outbox) {
        let over = self
            .verify
            .compares
            .get(key)
            .is_some_and(|it| it.ours.is_some() && it.theirs.is_some());
        if !over {
            return;
        }
        let Some(compare) = self.verify.compares.remove(key) else {
            return;
        };
        match compare.kind {
            Kind::Pass => self.end_pass(&compare),
            Kind::Look { ticket } => {
                self.end_look(&compare, out);
                self.release_lock(ticket, out);
            }
        }
    }

    fn end_pass(&mut self, compare: &Compare) {
        let Verify {
            run: Some(run),
            report: Some(report),
            ..
        } = &mut self.verify
        else {
            return;
        };
        report.checked_blocks += compare.range.count().0;
        run.suspects.extend(compare.differing());
    }

    fn end_look(&mut self, compare: &Compare, out: &mut Outbox) {
        let held = self.is_suspended()
            || matches!(self.may_admit(), Err(Closed::Held(_) | Closed::NotPrimary));
        let Verify {
            run: Some(run),
            report: Some(report),
            ..
        } = &mut self.verify
        else {
            return;
        };
        run.looks -= 1;
        let Some(block) = compare.differing().next() else {
            return;
        };
        // What cannot be read here is not to be copied from here.
        let mends = report.repair && matches!(compare.ours, Some(Ok(_)));
        if mends && held {
            // It is looked at again when guests may write again: an order may have closed the gate
            // and said that nothing is under way any more.
            run.suspects.push_front(block);
            return;
        }
        match (&compare.ours, &compare.theirs) {
            (Some(Ok(_)), Some(Ok(_))) => report.note_difference(block),
            _ => report.unreadable_blocks += 1,
        }
        if mends {
            run.mending += 1;
            let part = Part::as_it_is(block);
            self.begin_write(Key::default(), part, false, out);
        }
    }

    /// A block was written again for that verify, on this disk and on the peer's if `both`.
    pub(super) fn on_mended(&mut self, verify: u64, both: bool) {
        // One of a verify that was stopped may still be under way.
        if let Verify {
            run: Some(run),
            report: Some(report),
            begun,
            ..
        } = &mut self.verify
            && *begun == verify
        {
            run.mending -= 1;
            report.repaired_blocks += u64::from(both);
        }
    }

    fn end_verify_when_done(&mut self, out: &mut Outbox) {
        let volume = self.volume_blocks();
        let done = self.verify.run.as_ref().is_some_and(|run| {
            run.cursor.0 >= volume.0 && run.suspects.is_empty() && run.mending == 0
        });
        if done && self.verify.compares.is_empty() {
            self.end_verify(VerifyEnd::Done, out);
        }
    }

    /// The session is over, and with it the verify and what the peer owed it.
    pub(super) fn lose_verify(&mut self, out: &mut Outbox) {
        self.verify.owed = 0;
        self.end_verify(VerifyEnd::SessionLost, out);
    }

    /// Ends the one that runs, if one does: reads under way end by themselves.
    pub(super) fn end_verify(&mut self, end: VerifyEnd, out: &mut Outbox) {
        if self.verify.run.take().is_none() {
            return;
        }
        if let Some(report) = &mut self.verify.report {
            report.end = Some((self.now, end));
            out.push(Action::Event(Event::Verified(report.clone())));
        }
        self.send(Message::VerifyState { running: false }, out);
        out.push(Action::Event(Event::Changed));
        let mut tickets = Vec::new();
        for key in self.verify.compares.keys() {
            if let Some(compare) = self.verify.compares.remove(key)
                && let Kind::Look { ticket } = compare.kind
            {
                tickets.push(ticket);
            }
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
    }
}

impl Compare {
    /// The blocks whose digests differ; all of them if one side could not read.
    fn differing(&self) -> impl Iterator<Item = BlockIndex> {
        let len = super::resync::DIGEST_LEN;
        let (ours, theirs) = (self.ours.clone(), self.theirs.clone());
        self.range
            .iter()
            .enumerate()
            .filter_map(move |(nr, block)| {
                let digest = |side: &Option<Result<Payload, DiskError>>| match side {
                    Some(Ok(digests)) => digests.get(nr * len..(nr + 1) * len).map(<[u8]>::to_vec),
                    _ => None,
                };
                let (ours, theirs) = (digest(&ours), digest(&theirs));
                (ours.is_none() || ours != theirs).then_some(block)
            })
    }
}

impl VerifyReport {
    /// Blocks are looked at a few at a time, so they come nearly in order.
    fn note_difference(&mut self, block: BlockIndex) {
        self.differing_blocks += 1;
        let next = BlockIndex(block.0 + 1);
        let at = self.ranges.partition_point(|range| range.start() < block);
        let joins_last = at > 0 && self.ranges[at - 1].end() == block;
        let joins_next = self
            .ranges
            .get(at)
            .is_some_and(|range| range.start() == next);
        match (joins_last, joins_next) {
            (true, true) => {
                let end = self.ranges.remove(at).end();
                self.ranges[at - 1] = BlockRange::between(self.ranges[at - 1].start(), end);
            }
            (true, false) => {
                self.ranges[at - 1] = BlockRange::between(self.ranges[at - 1].start(), next);
            }
            (false, true) => {
                self.ranges[at] = BlockRange::between(block, self.ranges[at].end());
            }
            (false, false) if self.ranges.len() < Engine::VERIFY_RANGES_MAX => {
                self.ranges
                    .insert(at, BlockRange::new(block, BlockCount(1)));
            }
            (false, false) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range_whichever_came_first_and_their_number_is_bounded() {
        let mut report = VerifyReport::default();
        for block in [7, 5, 6, 9, 4, 20] {
            report.note_difference(BlockIndex(block));
        }
        let found: Vec<_> = report
            .ranges
            .iter()
            .map(|range| (range.start().0, range.count().0))
            .collect();
        assert_eq!(found, [(4, 4), (9, 1), (20, 1)]);
        for block in 0..1000 {
            report.note_difference(BlockIndex(100 + 2 * block));
        }
        assert_eq!(report.ranges.len(), Engine::VERIFY_RANGES_MAX);
        assert_eq!(report.differing_blocks, 1006);
    }
}
