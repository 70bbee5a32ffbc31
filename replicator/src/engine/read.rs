//! Guest reads: local, or from the peer when the local disk cannot.

use super::edge;
use super::ops::DiskOp;
use super::output::{DiskCommand, Outbox};
use super::overlap::{Access, Ticket};
use super::slab::Key;
use super::{CloseReason, Engine, LockOwner};
use crate::protocol::{Message, WriteId};
use crate::types::{
    BlockRange, ByteLen, ByteOffset, ByteRange, DiskError, Payload, RequestId, SessionId,
};

/// A guest read in progress. It holds its blocks shared, so it never sees a write that the peer
/// does not have yet (R15).
#[derive(Clone, Debug)]
pub(super) struct Read {
    request: Key,
    asked: ByteRange,
    range: BlockRange,
    ticket: Ticket,
    started: bool,
}

/// A read that waits until the peer can answer it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkedRead {
    for_op: DiskOp,
    range: BlockRange,
    error: DiskError,
}

/// Blocks being fetched from the peer, in pieces of one frame.
#[derive(Clone, Debug)]
pub(super) struct RemoteRead {
    for_op: DiskOp,
    range: BlockRange,
    /// Why the local disk did not answer.
    error: DiskError,
    session: SessionId,
    pieces: Vec<(BlockRange, Option<Payload>)>,
}

impl Engine {
    pub(super) fn begin_read(
        &mut self,
        id: RequestId,
        offset: ByteOffset,
        len: ByteLen,
        out: &mut Outbox,
    ) {
        self.counters.reads += 1;
        self.counters.read_bytes += len.0;
        let request = self.begin_request(id, 1);
        let asked = ByteRange::new(offset, len).expect("checked against the volume at admission");
        if asked.is_empty() {
            self.end_part(request, Ok(Some(Payload::default())), out);
            return;
        }
        let range = asked.blocks_outward();
        let ticket = Ticket::default();
        let key = self.reads.insert(Read {
            request,
            asked,
            range,
            ticket,
            started: false,
        });
        self.lock_read(key, range, out);
    }

    fn lock_read(&mut self, key: Key, range: BlockRange, out: &mut Outbox) {
        let (ticket, held) = self
            .overlap
            .acquire(range, Access::Shared, LockOwner::Read(key));
        if let Some(read) = self.reads.get_mut(key) {
            read.ticket = ticket;
        }
        if held {
            self.on_read_locked(key, out);
        }
    }

    pub(super) fn on_read_locked(&mut self, key: Key, out: &mut Outbox) {
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        read.started = true;
        let range = read.range;
        self.read_blocks(DiskOp::Read(key), range, out);
    }

    /// Reads for a guest: from the local disk, or from the peer when there is none.
    pub(super) fn read_blocks(&mut self, what: DiskOp, range: BlockRange, out: &mut Outbox) {
        if self.local_usable() {
            self.disk(what, DiskCommand::Read(range), out);
        } else {
            self.read_from_peer(what, range, DiskError::Gone, out);
        }
    }

    /// A local read failed, or there is no local disk. Only a peer in `in_sync` without a mark may
    /// answer (interleavings F16); being equal says both. If it has the only good replica and is
    /// away, the read waits for it; if it is only slow, for room in its window.
    pub(super) fn read_from_peer(
        &mut self,
        what: DiskOp,
        range: BlockRange,
        error: DiskError,
        out: &mut Outbox,
    ) {
        let hopeless = !self.strict() && error != DiskError::Timeout;
        if hopeless || (self.local_usable() && !self.peer_is_equal()) {
            self.on_guest_blocks(what, Err(error), out);
            return;
        }
        self.parked_reads.push_back(ParkedRead {
            for_op: what,
            range,
            error,
        });
        self.pump_parked_reads(out);
    }

    fn ask_peer(&mut self, parked: ParkedRead, out: &mut Outbox) {
        let Some(session) = self.session.as_ref().map(|session| session.id) else {
            return;
        };
        self.note_debt();
        let pieces = remote_pieces(parked.range);
        let wanted: Vec<_> = pieces.iter().map(|(piece, _)| *piece).collect();
        let key = self.remote_reads.insert(RemoteRead {
            for_op: parked.for_op,
            range: parked.range,
            error: parked.error,
            session,
            pieces,
        });
        for range in wanted {
            self.send(
                Message::ReadRequest {
                    read: WriteId(key.0),
                    range,
                },
                out,
            );
        }
    }

    pub(super) fn on_read_reply(
        &mut self,
        id: WriteId,
        range: BlockRange,
        data: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        let key = Key(id.0);
        let Some(remote) = self.remote_reads.get_mut(key) else {
            return;
        };
        if remote.pieces.iter().all(|(piece, _)| *piece != range) {
            // Never asked for: waiting for the right answer could be for ever.
            self.end_session(CloseReason::Protocol, out);
            return;
        }
        if let Some(session) = &mut self.session {
            session.last_payment = self.now;
        }
        let data = data.and_then(|data| {
            if data.len() as u64 == range.len().0 {
                Ok(data)
            } else {
                Err(DiskError::Short)
            }
        });
        match data {
            Err(error) => {
                let what = remote.for_op;
                self.remote_reads.remove(key);
                self.on_guest_blocks(what, Err(error), out);
                return;
            }
            Ok(data) => {
                for (piece, slot) in &mut remote.pieces {
                    if *piece == range {
                        *slot = Some(data.clone());
                    }
                }
            }
        }
        if remote.pieces.iter().all(|(_, data)| data.is_some()) {
            let Some(remote) = self.remote_reads.remove(key) else {
                return;
            };
            let whole = join(remote.pieces);
            self.on_guest_blocks(remote.for_op, Ok(whole), out);
        }
    }

    /// The session is gone: reads from the peer are asked again when there is one.
    pub(super) fn lose_remote_reads(&mut self, session: SessionId, out: &mut Outbox) {
        for key in self.remote_reads.keys() {
            let lost = self
                .remote_reads
                .get(key)
                .is_some_and(|remote| remote.session == session);
            if lost && let Some(remote) = self.remote_reads.remove(key) {
                let RemoteRead {
                    for_op,
                    range,
                    error,
                    ..
                } = remote;
                self.read_from_peer(for_op, range, error, out);
            }
        }
    }

    /// Asks the peer what waits for it, as far as its window goes; fails it if the peer is out.
    pub(super) fn pump_parked_reads(&mut self, out: &mut Outbox) {
        while let Some(parked) = self.parked_reads.front().copied() {
            let answerable = self.strict() && self.peer_is_equal();
            let late = parked.error == DiskError::Timeout;
            let waits = (self.strict() || late) && !self.local_usable();
            if answerable && self.remote_window_fits(parked.range) {
                self.parked_reads.pop_front();
                self.ask_peer(parked, out);
            } else if answerable || waits {
                return;
            } else {
                self.parked_reads.pop_front();
                self.on_guest_blocks(parked.for_op, Err(parked.error), out);
            }
        }
    }

    /// Whether the peer may be asked for `range` too. One request of any size always may.
    fn remote_window_fits(&self, range: BlockRange) -> bool {
        let asked: usize = self.remote_reads.iter().map(|(_, r)| r.pieces.len()).sum();
        asked == 0 || asked + remote_pieces(range).len() <= Self::WRITES_MAX
    }

    /// A local read failed: the peer may have the blocks. The replica stays: nothing it promised is
    /// broken by a block it cannot read.
    pub(super) fn on_local_read_error(&mut self, what: DiskOp, error: DiskError, out: &mut Outbox) {
        self.counters.io_errors += 1;
        let range = match what {
            DiskOp::Read(key) => self.reads.get(key).map(|read| read.range),
            DiskOp::Edge { write, edge } => self.edge_block(write, edge),
            _ => None,
        };
        match range {
            Some(range) => self.read_from_peer(what, range, error, out),
            None => self.on_guest_blocks(what, Err(error), out),
        }
    }

    /// Blocks read for a guest arrived from whichever replica.
    pub(super) fn on_guest_blocks(
        &mut self,
        what: DiskOp,
        result: Result<Payload, DiskError>,
        out: &mut Outbox,
    ) {
        match what {
            DiskOp::Edge { write, edge } => self.on_edge_read(write, edge, result, out),
            DiskOp::Read(key) => self.on_guest_read(key, result, out),
            _ => unreachable!("only guest reads and edges are read this way"),
        }
    }

    fn on_guest_read(&mut self, key: Key, result: Result<Payload, DiskError>, out: &mut Outbox) {
        let may_tell = self.may_tell();
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        let wanted = self.requests.get(read.request).is_some();
        if wanted && !may_tell {
            // The data is dropped and the lock given back: it may be what the resync waits for.
            read.started = false;
            let ticket = read.ticket;
            self.blocked_reads.push(key);
            self.release_lock(ticket, out);
            return;
        }
        let Some(read) = self.reads.remove(key) else {
            return;
        };
        self.release_lock(read.ticket, out);
        if wanted {
            let data = result.map(|data| Some(edge::cut(read.asked, read.range, &data)));
            self.end_part(read.request, data, out);
        }
    }

    /// Whether what a read found may be told. A write that only this disk has may be in it: not
    /// before the peer has that too or is out (R15).
    fn may_tell(&self) -> bool {
        self.may_reply() && (!self.strict() || self.peer_is_equal())
    }

    /// Reads again what could not be told when the data came.
    pub(super) fn pump_blocked_reads(&mut self, out: &mut Outbox) {
        if self.blocked_reads.is_empty() || !self.may_tell() {
            return;
        }
        for key in core::mem::take(&mut self.blocked_reads) {
            if let Some(range) = self.reads.get(key).map(|read| read.range) {
                self.lock_read(key, range, out);
            }
        }
    }

    /// Step-down: reads that only wait are forgotten, those on the disk end by themselves.
    pub(super) fn drop_waiting_reads(&mut self, out: &mut Outbox) {
        // Their requests are gone already: this only gives the locks back.
        for parked in core::mem::take(&mut self.parked_reads) {
            self.on_guest_blocks(parked.for_op, Err(parked.error), out);
        }
        self.blocked_reads.clear();
        let mut tickets = Vec::new();
        for key in self.reads.keys() {
            let waiting = self.reads.get(key).is_some_and(|read| !read.started);
            if waiting && let Some(read) = self.reads.remove(key) {
                tickets.push(read.ticket);
            }
        }
        for ticket in tickets {
            self.release_lock(ticket, out);
        }
    }
}

fn remote_pieces(range: BlockRange) -> Vec<(BlockRange, Option<Payload>)> {
    let blocks_max = edge::PART_LEN_MAX / crate::types::BLOCK_LEN;
    edge::pieces(range, blocks_max)
        .map(|piece| (piece, None))
        .collect()
}

fn join(mut pieces: Vec<(BlockRange, Option<Payload>)>) -> Payload {
    if pieces.len() == 1
        && let Some((_, Some(only))) = pieces.pop()
    {
        return only;
    }
    let mut whole = Vec::new();
    for (_, data) in pieces {
        whole.extend_from_slice(&data.unwrap_or_default());
    }
    whole.into()
}
