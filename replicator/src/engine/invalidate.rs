//! An operator throws this replica's data away: everything is copied from the peer again.
//!
//! A replica that the view names in `in_sync` counts: it may be promoted, and guests were told of
//! writes because it has them. So the view goes first. The Secondary asks the Primary to leave it
//! out, goes on as a whole replica meanwhile, and gives its data up only once it knows of a view
//! without it that no Add of its own can be about to follow. What makes it a stranger is one
//! superblock: resync target, of no lineage, its marks relative to nothing. The next handshake then
//! copies everything, by rules that are there for a replaced disk.
//!
//! The wish lives in memory. A crash before the record leaves a replica as good as its view says,
//! one after it a resync target.

use super::output::{Action, CloseReason, Event, Outbox};
use super::{Engine, LocalDisk, MetaThen};
use crate::meta::ReplicaState;
use crate::protocol::Message;
use crate::types::{SessionId, ViewNumber};

/// What became of the orders to throw the data away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Invalidate {
    /// Ordered, and not recorded yet.
    wanted: bool,
    /// A view named this replica after the order: whether the Primary still has a disk may have
    /// changed since the order was checked.
    waited: bool,
    /// Being recorded: nobody can take that back.
    recording: bool,
    /// The session in which the Primary was asked last, and the newest view known then: an Add
    /// that was on its way may have named this replica again since.
    asked: Option<(SessionId, ViewNumber)>,
    /// How often it was recorded durably since the engine began.
    recorded: u64,
}

impl Engine {
    /// Throws this Secondary's data away, now or as soon as the view allows it.
    pub(super) fn begin_invalidate(&mut self, out: &mut Outbox) {
        self.invalidate.wanted = true;
        self.invalidate.waited = false;
        self.invalidate.asked = None;
        out.push(Action::Event(Event::Changed));
    }

    /// The order is taken back, as far as it was not carried out: a record that began ends.
    pub(super) fn end_invalidate(&mut self, out: &mut Outbox) {
        self.invalidate.wanted = false;
        out.push(Action::Event(Event::Changed));
    }

    /// An order waits for a view without this replica, or for its record.
    pub(super) fn invalidate_is_pending(&self) -> bool {
        self.invalidate.wanted || self.invalidate.recording
    }

    /// How often the data were thrown away, durably.
    pub(super) fn invalidations(&self) -> u64 {
        self.invalidate.recorded
    }

    pub(super) fn pump_invalidate(&mut self, out: &mut Outbox) {
        if !self.invalidate.wanted {
            return;
        }
        if self.active.is_some() || self.local != LocalDisk::Attached {
            // What guests read, or nothing at all.
            self.invalidate.wanted = false;
        } else if !self.is_left_out() {
            self.invalidate.waited = true;
            self.ask_to_be_left_out(out);
        } else if self.primary_has_disk().unwrap_or(!self.invalidate.waited) {
            self.invalidate.wanted = false;
            self.record_invalid(out);
        }
    }

    /// Whether the Primary of this session has a replica; `None` without a session with one. A view
    /// counts on a Primary's disk also after it failed, and what said so may have been lost with
    /// the link: the disk may never come back, and then this copy is the best there is.
    fn primary_has_disk(&self) -> Option<bool> {
        let hello = self.session.as_ref().and_then(|it| it.peer.as_ref())?;
        hello.active.map(|_| hello.replica.is_some())
    }

    /// Whether the newest view that this node knows of, by gossip or by the greeting of the Primary
    /// that serves in it, leaves this replica out for good: nothing it recorded lets a newer view
    /// name it. Only an Add could, and that needs a record of this very replica (R19).
    fn is_left_out(&self) -> bool {
        let node = self.config.node;
        let known = self.view.as_ref().map(|view| (view.number, view.in_sync));
        let told = self.session.as_ref().and_then(|session| {
            let peer = session.peer.as_ref()?;
            Some((peer.active?, peer.in_sync))
        });
        let newest = known.into_iter().chain(told).max_by_key(|(view, _)| *view);
        let Some((view, in_sync)) = newest else {
            return false;
        };
        let Some(replica) = &self.replica else {
            return false;
        };
        let superblock = replica.superblock.current();
        let recorded = match superblock.state {
            ReplicaState::InSync { since } => since,
            _ => ViewNumber::NONE,
        };
        let promised = superblock.in_sync_from.unwrap_or(ViewNumber::NONE);
        let heard_of = superblock.last_view.max(recorded).max(promised);
        !in_sync.contains(node) && heard_of <= view
    }

    fn ask_to_be_left_out(&mut self, out: &mut Outbox) {
        let known = self.view.as_ref().map_or(ViewNumber::NONE, |it| it.number);
        let Some(session) = &self.session else { return };
        let asked = (session.id, known);
        if self.invalidate.asked != Some(asked) && session.is_replica() && !self.recording {
            self.invalidate.asked = Some(asked);
            self.send(Message::Invalidate, out);
        }
    }

    fn record_invalid(&mut self, out: &mut Outbox) {
        self.end_session(CloseReason::DiskChanged, out);
        // Of another lineage no more: what kept the two apart is given up.
        self.refused = None;
        self.invalidate.recording = true;
        self.record(
            |superblock| {
                superblock.state = match superblock.state {
                    // Just as full a resync, and a mark that only a whole one takes away.
                    ReplicaState::Failed => ReplicaState::Failed,
                    _ => ReplicaState::SyncTarget,
                };
                superblock.in_sync_from = None;
                superblock.bitmap_base = None;
                superblock.data_generation = None;
                superblock.zero_proven = false;
            },
            MetaThen::Invalidated,
            out,
        );
    }

    /// The record ended. One that failed takes the replica with it.
    pub(super) fn on_invalidated(&mut self, durable: bool, out: &mut Outbox) {
        self.invalidate.recording = false;
        self.invalidate.recorded += u64::from(durable);
        out.push(Action::Event(Event::Changed));
    }

    /// The Secondary asks to be left out. It is equal until it is, so guests wait for nothing.
    pub(super) fn on_invalidate(&mut self, out: &mut Outbox) {
        // One that the view leaves out learns of it. A Primary whose own disk failed has no other
        // replica; nor can it propose a Remove (R18).
        if self.peer_is_named() && self.local_usable() {
            out.push(Action::Event(Event::PeerGivesUpData));
        }
    }
}
