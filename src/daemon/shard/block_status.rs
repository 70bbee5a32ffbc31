//! BLOCK_STATUS: what the disk knows of holes, and the engine of the peer.
//!
//! Holes are looked for on a thread, since a filesystem may have to read for it; then the engine is
//! asked for a read of nothing, because only what passes its gate may be answered (R2) and because
//! a request waits there, or is dropped, during a role change like any other.
//!
//! ```text
//! begin_status ──file, read by guests──▶ FindExtents ──▶ on_extents_found ─┐
//!       └───────any other disk, or not asked───────────────────────────────┴▶ engine ─▶ end_status
//! ```
//!
//! A disk that does not answer holds up no block status for long: after [`LOOK_TIMEOUT`] it goes on
//! without, and the look is left to itself.
//!
//! Invariant: a hole is claimed only of a file that guests read, both before it was looked at and
//! when the answer is given. Whatever is not known is left out, which the session takes for data.

// SPDX-License-Identifier: MIT OR Apache-2.0

use core::time::Duration;

use nbd_frontend::proto::constants::status;
use nbd_frontend::session::limits::STATUS_EXTENT_COUNT_MAX;
use nbd_frontend::{BlockStatus, StatusExtent};
use replicator::engine::{GuestError, GuestKind, GuestReply, GuestRequest, Input};
use replicator::io::{Completion, FileExtent, Op};
use replicator::types::{BLOCK_LEN, ByteLen, ByteRange, Instant, Payload, RequestId};

use super::slots::Key;
use super::token::Owner;
use super::{Shard, Timer};
use crate::daemon::bridge::{self, StatusQuestion};

/// Looks at a time, of all resources. Each occupies one of the backend's eight threads for files that
/// may block, and those of a disk that hangs for as long as it does; the others are left for reads
/// and writes. Whoever finds them all taken does without.
const LOOKS_MAX: usize = 4;
/// How long one look may take: a healthy filesystem answers in microseconds, or in a few reads.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// A block status under way.
#[derive(Debug)]
pub(super) struct StatusQuery {
    request: Key,
    resource: Key,
    /// Place of the volume asked about; the question's range is one of the row's.
    place: usize,
    question: StatusQuestion,
    holes: Vec<FileExtent>,
    /// When the look for holes is given up; `None` while there is none.
    look_until: Option<Instant>,
}

impl Shard {
    pub(super) fn begin_status(
        &mut self,
        request: Key,
        resource: Key,
        place: usize,
        question: StatusQuestion,
    ) {
        let StatusQuestion { range, .. } = question;
        let own = self.resources.get(resource);
        let start = own.map_or(0, |resource| resource.setup.row.offset(place).0);
        let file = own.and_then(|resource| {
            let asked = question.contexts.allocation;
            let file = || resource.file_of_guests(place).cloned();
            asked.then(file).flatten()
        });
        let file = file.filter(|_| self.looks < LOOKS_MAX);
        let look_until = file.is_some().then(|| self.now.plus(LOOK_TIMEOUT));
        let key = self.statuses.insert(StatusQuery {
            request,
            resource,
            place,
            holes: Vec::new(),
            question,
            look_until,
        });
        if let Some(guest) = self.requests.get_mut(request) {
            guest.status = Some(key);
        }
        let (Some(file), Some(until)) = (file, look_until) else {
            return self.ask_gate(key);
        };
        self.looks += 1;
        self.timers.insert((until, Timer::Look(key)));
        let find = Op::FindExtents {
            file,
            offset: range.offset().0 - start,
            len: range.len().0,
            count_max: question.count_max(),
            found: Vec::new(),
        };
        self.backend.submit(Owner::Extents(key).token(), find);
    }

    pub(super) fn on_extents_found(&mut self, key: Key, completion: Completion) {
        self.looks -= 1;
        let holes = match (completion.result, completion.op) {
            (Ok(_), Op::FindExtents { found, .. }) => found,
            (result, _) => {
                tracing::debug!(?result, "looking for holes");
                Vec::new()
            }
        };
        self.end_look(key, holes);
    }

    /// The look is over or given up: on to the engine, once.
    pub(super) fn end_look(&mut self, key: Key, holes: Vec<FileExtent>) {
        // None: its client was dropped meanwhile.
        let Some(query) = self.statuses.get_mut(key) else {
            return;
        };
        let Some(until) = query.look_until.take() else {
            return;
        };
        query.holes = holes;
        self.timers.remove(&(until, Timer::Look(key)));
        self.ask_gate(key);
    }

    fn ask_gate(&mut self, key: Key) {
        let Some(query) = self.statuses.get(key) else {
            return;
        };
        let request = GuestRequest {
            request: RequestId(query.request.to_u64()),
            kind: GuestKind::Read {
                offset: query.question.range.offset(),
                len: ByteLen(0),
            },
        };
        self.inputs
            .push_back((query.resource, Input::Guest(request)));
    }

    /// The gate was passed in this very step.
    pub(super) fn end_status(
        &self,
        query: StatusQuery,
        result: Result<GuestReply, GuestError>,
    ) -> nbd_frontend::Completion<Payload> {
        if result.is_err() {
            return bridge::completion(result);
        }
        let mut known = BlockStatus::default();
        if let Some(resource) = self.resources.get(query.resource) {
            if resource.file_of_guests(query.place).is_some() {
                known.allocation = query.holes.iter().map(allocation).collect();
            }
            let blocks = query.question.range.blocks_outward();
            let count_max = query.question.count_max();
            if query.question.contexts.dirty
                && let Some(runs) = resource.marks(blocks, count_max)
            {
                let runs = runs.iter().map(|run| StatusExtent {
                    len: run.count.bytes().0,
                    status: if run.is_marked { status::DIRTY } else { 0 },
                });
                known.dirty = from_within(runs.collect(), query.question.range);
            }
        }
        nbd_frontend::Completion::Status(known)
    }
}

impl StatusQuestion {
    fn count_max(self) -> usize {
        if self.one { 1 } else { STATUS_EXTENT_COUNT_MAX }
    }
}

fn allocation(extent: &FileExtent) -> StatusExtent {
    StatusExtent {
        len: extent.len,
        status: if extent.is_hole {
            status::HOLE | status::ZERO
        } else {
            0
        },
    }
}

/// Extents of whole blocks, without what lies before the first byte of `range`.
fn from_within(mut extents: Vec<StatusExtent>, range: ByteRange) -> Vec<StatusExtent> {
    if let Some(first) = extents.first_mut() {
        first.len -= range.offset().0 % BLOCK_LEN;
    }
    extents
}
