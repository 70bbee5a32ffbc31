//! Requests submitted and not completed.
//!
//! A slab of slots with generations: a completion that comes twice finds its generation gone
//! instead of another request.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::block_status::Contexts;
use super::limits::{REQUEST_BYTES_MAX, REQUEST_COUNT_MAX};
use crate::proto::reply::ReplyTo;

/// Names a submitted request within its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestHandle {
    slot: u32,
    generation: u32,
}

impl RequestHandle {
    /// The handle as one number, for callers that carry it through another table.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.slot)
    }

    /// Which of the session's places it has: below the number of requests in flight at most, and that
    /// of no other one under way.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// The handle that [`Self::to_u64`] gave `number` for.
    #[must_use]
    pub const fn from_u64(number: u64) -> Self {
        let [g0, g1, g2, g3, s0, s1, s2, s3] = number.to_be_bytes();
        Self {
            slot: u32::from_be_bytes([s0, s1, s2, s3]),
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
        }
    }
}

/// What the reply to a request will need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) to: ReplyTo,
    pub(super) answer: Answer,
    /// Payload bytes counted against [`REQUEST_BYTES_MAX`].
    pub(super) bytes: u32,
}

/// The shape of a successful reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The data of a read.
    Data { len: u32 },
    /// Extents of these contexts, for a range of `len` bytes.
    Status {
        contexts: Contexts,
        len: u64,
        one: bool,
    },
    /// No data.
    Done,
}

#[derive(Debug, Default)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    bytes: u64,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

impl InFlight {
    pub(super) const fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(super) const fn has_slot(&self) -> bool {
        self.count() < REQUEST_COUNT_MAX
    }

    /// Whether `bytes` more payload fit; always, when nothing is in flight.
    pub(super) fn has_room_for(&self, bytes: u32) -> bool {
        self.bytes.saturating_add(u64::from(bytes)) <= REQUEST_BYTES_MAX
    }

    pub(super) fn insert(&mut self, pending: Pending) -> RequestHandle {
        assert!(
            self.has_slot(),
            "{} requests in flight already",
            self.count()
        );
        self.bytes += u64::from(pending.bytes);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                pending: None,
            });
            u32::try_from(self.slots.len() - 1).expect("at most REQUEST_COUNT_MAX slots")
        });
        let entry = self
            .slot_mut(slot)
            .expect("the slot is free or was just pushed");
        entry.pending = Some(pending);
        RequestHandle {
            slot,
            generation: entry.generation,
        }
    }

    /// Ends a request; `None` when the handle names none.
    pub(super) fn remove(&mut self, handle: RequestHandle) -> Option<Pending> {
        let slot = self.slot_mut(handle.slot)?;
        if slot.generation != handle.generation {
            return None;
        }
        let pending = slot.pending.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(handle.slot);
        self.bytes -= u64::from(pending.bytes);
        Some(pending)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(slot).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(cookie: u64, bytes: u32) -> Pending {
        Pending {
            to: ReplyTo { cookie, offset: 0 },
            answer: Answer::Done,
            bytes,
        }
    }

    #[test]
    fn a_handle_is_good_for_one_completion_even_when_its_slot_is_reused() {
        let mut in_flight = InFlight::default();
        let first = in_flight.insert(pending(1, 10));
        assert_eq!(in_flight.remove(first), Some(pending(1, 10)));
        let second = in_flight.insert(pending(2, 10));
        assert_eq!(in_flight.remove(first), None);
        assert_eq!(in_flight.remove(second), Some(pending(2, 10)));
        assert!(in_flight.is_empty());
    }

    #[test]
    fn requests_and_bytes_are_bounded_and_come_back() {
        let mut in_flight = InFlight::default();
        let handles: Vec<_> = (0..128)
            .map(|cookie| in_flight.insert(pending(cookie, 512 << 10)))
            .collect();
        assert!(!in_flight.has_slot());
        assert!(in_flight.has_room_for(32 << 20));
        assert!(!in_flight.has_room_for((32 << 20) + 1));
        for handle in handles {
            assert!(in_flight.remove(handle).is_some());
        }
        assert!(in_flight.has_slot() && in_flight.has_room_for(64 << 20));
    }

    #[test]
    fn a_handle_survives_the_trip_through_a_number() {
        let handle = RequestHandle {
            slot: 3,
            generation: 0xdead_beef,
        };
        assert_eq!(RequestHandle::from_u64(handle.to_u64()), handle);
    }
}
