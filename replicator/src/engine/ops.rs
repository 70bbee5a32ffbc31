//! Effects asked of the executor, and what each is for.

use super::output::{Action, DiskCommand, MetaPage, MetaRequest, Outbox};
use super::slab::Key;
use super::stall::Devices;
use super::{Engine, MetaThen};
use crate::protocol::Message;
use crate::types::{OpId, WriteEpoch};

/// What a disk operation is for. Its completion is routed by this, never by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskOp {
    /// The local leg of a guest write.
    Write(Key),
    /// The first (0) or last (1) block of a partial guest write.
    Edge { write: Key, edge: usize },
    /// A guest read.
    Read(Key),
    /// The local flush of a flush round.
    RoundFlush(WriteEpoch),
    /// A replicated write.
    PeerWrite(Key),
    /// The flush that a barrier asked for.
    PeerFlush,
    /// A read for the Primary.
    PeerRead(Key),
    /// A read at the source of a resync.
    SourceRead(Key),
    /// A read at the target of a resync, to be digested.
    TargetDigest(Key),
    /// A write at the target of a resync.
    TargetWrite(Key),
    /// A read at the Primary, to be compared.
    VerifyRead(Key),
    /// A read at the Secondary, to be compared there.
    DigestRead(Key),
    /// Zeroes for the new blocks of a larger volume, of this run.
    GrowZeroes(u64),
    /// The flush after them.
    GrowFlush(u64),
    /// The flush before the device is let go.
    DetachFlush,
    /// Given up: it counts until the disk says that it is over (R14).
    Late,
}

impl DiskOp {
    /// A read of an online verify: it changes nothing, and no guest, resync or takeover waits for
    /// it. A sector that takes for ever to be read is then none of theirs.
    pub(super) fn only_compares(self) -> bool {
        matches!(self, Self::VerifyRead(_) | Self::DigestRead(_))
    }
}

/// An operation in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// On data devices, those in places `on`; `era` says of which connection or none.
    Disk {
        what: DiskOp,
        era: u64,
        on: Devices,
    },
    /// On the metadata area.
    Meta {
        then: MetaThen,
        era: u64,
    },
    Mark,
}

impl Engine {
    pub(super) fn disk(&mut self, what: DiskOp, command: DiskCommand, out: &mut Outbox) {
        let era = self.era;
        let on = self.devices_of(&command);
        let key = self.ops.insert(Op::Disk { what, era, on });
        self.disk_ops += 1;
        if what.only_compares() {
            self.comparing_ops += 1;
        } else {
            self.watch_disk_op(key, &command, on);
        }
        out.push(Action::Disk {
            op: OpId(key.0),
            command,
        });
    }

    /// Operations under way that may still change something or tell somebody something.
    pub(super) fn ops_that_count(&self) -> usize {
        self.disk_ops - self.comparing_ops + self.meta_ops
    }

    /// An operation that counts, begun in `era`, ended.
    pub(super) fn note_op_ended(&mut self, era: u64) {
        if era < self.era {
            self.old_ops -= 1;
        }
    }

    /// Writes pages durably, in requests of bounded size; `then` happens after the last.
    pub(super) fn meta_write(&mut self, pages: Vec<MetaPage>, then: MetaThen, out: &mut Outbox) {
        let mut rest = pages;
        while rest.len() > Self::META_PAGES_MAX {
            let tail = rest.split_off(Self::META_PAGES_MAX);
            self.meta(MetaRequest::Write(rest), MetaThen::Nothing, out);
            rest = tail;
        }
        self.meta(MetaRequest::Write(rest), then, out);
    }

    pub(super) fn meta(&mut self, request: MetaRequest, then: MetaThen, out: &mut Outbox) {
        let era = self.era;
        let key = self.ops.insert(Op::Meta { then, era });
        self.meta_ops += 1;
        self.watch_meta_op(key);
        out.push(Action::Meta {
            op: OpId(key.0),
            request,
        });
    }

    /// Sends in the current session, if there is one.
    pub(super) fn send(&mut self, message: Message, out: &mut Outbox) {
        if let Some(session) = &self.session {
            out.push(Action::Send {
                session: session.id,
                message,
            });
        }
    }
}
