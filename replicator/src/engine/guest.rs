//! Guest requests: admission, holding, and answering once.

use super::Engine;
use super::edge;
use super::gate::Closed;
use super::input::{GuestKind, GuestRequest};
use super::output::{Action, GuestError, GuestReply, Outbox};
use super::slab::Key;
use crate::types::{ByteLen, ByteOffset, ByteRange, DiskError, Instant, Payload, RequestId};

/// A request that was admitted and not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Request {
    id: RequestId,
    /// When it was admitted, if it writes.
    write_began: Option<Instant>,
    /// Parts still going on.
    parts: usize,
    failed: Option<DiskError>,
    data: Option<Payload>,
}

impl Engine {
    pub(super) fn handle_guest(&mut self, guest: GuestRequest, out: &mut Outbox) {
        // Who does not serve says nothing about the volume either.
        if self.active.is_none() {
            out.push(Action::DropClients);
            return;
        }
        if !self.in_range(&guest.kind) {
            let result = Err(GuestError::OutOfRange);
            out.push(Action::Complete {
                request: guest.request,
                result,
            });
            return;
        }
        // Behind held ones, a new one is held too: nobody overtakes.
        match self.may_admit() {
            Ok(()) if self.held.is_empty() => self.admit(guest, out),
            Err(Closed::NotPrimary) => out.push(Action::DropClients),
            Ok(()) | Err(Closed::Held(_)) => self.held.push_back(guest),
            Err(Closed::Busy) => {
                self.held.push_back(guest);
                self.note_gate(true);
            }
        }
    }

    /// Admits what was held, as far as the gate lets it.
    pub(super) fn pump_held(&mut self, out: &mut Outbox) {
        while !self.held.is_empty() && self.may_admit().is_ok() {
            let Some(guest) = self.held.pop_front() else {
                return;
            };
            self.admit(guest, out);
        }
        if self.held.is_empty() {
            self.note_gate(false);
        }
    }

    fn admit(&mut self, guest: GuestRequest, out: &mut Outbox) {
        let Some(guest) = self.hold_if_suspended(guest) else {
            return;
        };
        match guest.kind {
            GuestKind::Read { offset, len } => self.begin_read(guest.request, offset, len, out),
            GuestKind::Flush => self.begin_flush(guest.request, out),
            GuestKind::Write {
                offset,
                payload,
                fua,
            } => {
                self.counters.writes += 1;
                self.counters.written_bytes += payload.len() as u64;
                self.begin_parts(guest.request, edge::write_parts(offset, payload), fua, out);
            }
            GuestKind::Trim { offset, len, fua } => {
                self.begin_parts(guest.request, edge::trim_parts(offset, len), fua, out);
            }
            GuestKind::Zeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => {
                let parts = edge::zero_parts(offset, len, may_unmap);
                self.begin_parts(guest.request, parts, fua, out);
            }
        }
    }

    fn begin_parts(
        &mut self,
        id: RequestId,
        parts: impl Iterator<Item = edge::Part>,
        fua: bool,
        out: &mut Outbox,
    ) {
        let request = self.begin_request(id, 0);
        let now = self.now;
        if let Some(request) = self.requests.get_mut(request) {
            request.write_began = Some(now);
        }
        let before = self.waiting_parts.len();
        self.waiting_parts
            .extend(parts.map(|part| (request, part, fua)));
        let count = self.waiting_parts.len() - before;
        if count == 0 {
            self.finish_request(request, out);
        } else if let Some(request) = self.requests.get_mut(request) {
            request.parts = count;
        }
        self.pump_waiting_parts(out);
    }

    /// Begins parts as far as the window goes: zeroes over a large volume are thousands of them.
    pub(super) fn pump_waiting_parts(&mut self, out: &mut Outbox) {
        while self.writes.len() < Self::WRITES_MAX {
            let Some((request, part, fua)) = self.waiting_parts.pop_front() else {
                return;
            };
            self.begin_write(request, part, fua, out);
        }
    }

    pub(super) fn begin_request(&mut self, id: RequestId, parts: usize) -> Key {
        self.requests.insert(Request {
            id,
            write_began: None,
            parts,
            failed: None,
            data: None,
        })
    }

    /// One part of a request ended; the last one answers it. The caller has just passed the gate.
    pub(super) fn end_part(
        &mut self,
        key: Key,
        result: Result<Option<Payload>, DiskError>,
        out: &mut Outbox,
    ) {
        let Some(request) = self.requests.get_mut(key) else {
            return;
        };
        match result {
            Ok(data) => request.data = data,
            Err(error) => request.failed = Some(error),
        }
        request.parts -= 1;
        if request.parts == 0 {
            self.finish_request(key, out);
        }
    }

    fn finish_request(&mut self, key: Key, out: &mut Outbox) {
        let Some(request) = self.requests.remove(key) else {
            return;
        };
        if let Some(began) = request.write_began {
            self.note_write_latency(began);
        }
        let result = match (request.failed, request.data) {
            (Some(error), _) => Err(GuestError::Io(error)),
            (None, Some(data)) => Ok(GuestReply::Data(data)),
            (None, None) => Ok(GuestReply::Done),
        };
        out.push(Action::Complete {
            request: request.id,
            result,
        });
    }

    /// When the oldest write under way was admitted.
    pub(super) fn oldest_write(&self) -> Option<Instant> {
        let began = self.requests.iter().filter_map(|(_, it)| it.write_began);
        began.min()
    }

    /// Forgets every request for ever (R9). What they wrote is remembered elsewhere, as marks.
    pub(super) fn drop_guests(&mut self, out: &mut Outbox) {
        self.held.clear();
        self.forget_suspend();
        // One by one: the keys must stay dead, writes in flight still hold them.
        for key in self.requests.keys() {
            self.requests.remove(key);
        }
        out.push(Action::DropClients);
    }

    fn in_range(&self, kind: &GuestKind) -> bool {
        let (offset, len) = match kind {
            GuestKind::Flush => return true,
            GuestKind::Write {
                offset, payload, ..
            } => (*offset, ByteLen(payload.len() as u64)),
            GuestKind::Read { offset, len }
            | GuestKind::Trim { offset, len, .. }
            | GuestKind::Zeroes { offset, len, .. } => (*offset, *len),
        };
        byte_range_within(offset, len, self.volume_blocks().bytes())
    }
}

fn byte_range_within(offset: ByteOffset, len: ByteLen, volume: ByteLen) -> bool {
    ByteRange::new(offset, len).is_some_and(|range| range.end().0 <= volume.0)
}
