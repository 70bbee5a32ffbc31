//! Online verify, the Secondary's side: digests of its blocks for the Primary.
//!
//! Asked for "in turn", a range is read behind every write that came before the question: the same
//! overlap tracker that orders the writes themselves. Else it is read at once, whatever is under
//! way, and the answer proves equality at most.

use core::time::Duration;

use super::ops::DiskOp;
use super::output::{Action, DiskCommand, Event, Outbox};
use super::overlap::{Access, Ticket};
use super::resync::digests;
use super::session::Phase;
use super::slab::Key;
use super::{CloseReason, Engine, LockOwner};
use crate::protocol::{Message, WriteId};
use crate::types::{BlockRange, DiskError, Instant, Payload, SessionId};

/// A range that the Primary asked about.
#[derive(Clone, Debug)]
pub(super) struct Digesting {
    session: SessionId,
    id: WriteId,
    range: BlockRange,
    /// Of one that is read in turn.
    ticket: Option<Ticket>,
    /// When its read began.
    began: Option<Instant>,
}

impl Engine {
    /// Ranges read for digests at a time; a Primary that asks for more is broken. Twice what one
    /// verify has under way, because the next may begin before the answers to a stopped one.
    pub const DIGESTS_MAX: usize = 64;

    pub(super) fn on_verify_state(&mut self, running: bool, out: &mut Outbox) {
        if let Some(session) = &mut self.session {
            session.peer_verifies = running;
        }
        out.push(Action::Event(Event::Changed));
    }

    pub(super) fn on_verify_request(
        &mut self,
        id: WriteId,
        range: BlockRange,
        in_turn: bool,
        out: &mut Outbox,
    ) {
        let fits = !range.is_empty()
            && range.count().0 <= Self::VERIFY_BLOCKS_MAX
            && range.end().0 <= self.replica_blocks().0;
        let Some(session) = &self.session else { return };
        let whole = matches!(session.phase, Phase::MirrorTarget);
        if !fits || !whole || self.digesting.len() >= Self::DIGESTS_MAX {
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        let key = self.digesting.insert(Digesting {
            session: session.id,
            id,
            range,
            ticket: None,
            began: None,
        });
        let held = if in_turn {
            let owner = LockOwner::Digests(key);
            let (ticket, held) = self.overlap.acquire(range, Access::Shared, owner);
            if let Some(digesting) = self.digesting.get_mut(key) {
                digesting.ticket = Some(ticket);
            }
            held
        } else {
            true
        };
        if held {
            self.on_digests_locked(key, out);
        }
    }

    pub(super) fn on_digests_locked(&mut self, key: Key, out: &mut Outbox) {
        let Some(digesting) = self.digesting.get_mut(key) else {
            return;
        };
        digesting.began = Some(self.now);
        let range = digesting.range;
        if self.comparing_ops >= Self::COMPARING_OPS_MAX {
            // A disk that answers none of them is not asked for ever more.
            return self.on_digest_read(key, Err(DiskError::Timeout), out);
        }
        self.disk(DiskOp::DigestRead(key), DiskCommand::Read(range), out);
    }

    pub(super) fn on_digest_read(
        &mut self,
        key: Key,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(digesting) = self.digesting.remove(key) else {
            return;
        };
        if self.session.as_ref().map(|session| session.id) == Some(digesting.session) {
            let digest_key = self.digest_key();
            let (id, range) = (digesting.id, digesting.range);
            let digests = result.map(|data| digests(&data, &digest_key));
            let digests = digests.map_err(Into::into);
            self.send(Message::VerifyDigests { id, range, digests }, out);
        }
        if let Some(ticket) = digesting.ticket {
            self.release_lock(ticket, out);
        }
    }

    pub(super) fn oldest_digest_read(&self) -> Option<Instant> {
        self.digesting.iter().filter_map(|(_, it)| it.began).min()
    }

    pub(super) fn give_up_digest_reads(&mut self, patience: Duration, out: &mut Outbox) {
        let is_late = |it: &Digesting| it.began.is_some_and(|at| self.now.since(at) >= patience);
        let late: Vec<Key> = (self.digesting.iter())
            .filter_map(|(key, it)| is_late(it).then_some(key))
            .collect();
        for key in late {
            self.on_digest_read(key, Err(DiskError::Timeout), out);
        }
    }

    /// The session is gone: nobody waits for any of them, whether or not its read is over.
    pub(super) fn drop_digests(&mut self, out: &mut Outbox) {
        let mut tickets = Vec::new();
        for key in self.digesting.keys() {
            tickets.extend(self.digesting.remove(key).and_then(|it| it.ticket));
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
    }
}
