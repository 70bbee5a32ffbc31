//! The thread that makes records durable, so that neither the beacon thread nor the event loop
//! ever waits for a disk.
//!
//! Everything that waits when a write begins goes out with it: one fsync for a hundred resources.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use replicator::engine::ReplicaMark;
use replicator::types::{OpId, ReplicaId, ResourceId, StoreError};

use super::mailbox::Mailbox;
use super::voter_store::VoterStore;
use crate::controller::VoterRecord;

/// Requests waiting at most. The controller has one outstanding per resource, an engine a few
/// marks: more means that the root disk hangs, and then refusing is what a voter must do.
pub const STORE_REQUESTS_MAX: usize = 16 * 1024;

/// Stack of the thread.
const STACK_LEN: usize = 128 * 1024;

/// What is to be made durable.
#[derive(Clone, Debug)]
pub enum StoreRequest {
    /// The controller's record of a resource, but for the marks in it: those are the shard's.
    Persist {
        /// Echoed by the answer.
        op: OpId,
        /// Whose.
        resource: ResourceId,
        /// The record.
        record: Box<VoterRecord>,
    },
    /// A mark of the shard's engine.
    Mark {
        /// Echoed by the answer.
        op: OpId,
        /// Whose.
        resource: ResourceId,
        /// The mark.
        mark: ReplicaMark,
    },
    /// End the thread after what was asked before.
    Stop,
}

/// Where the answers go. Never blocks.
pub trait StoreSink: Send + 'static {
    /// Answer to [`StoreRequest::Persist`].
    fn persisted(&self, op: OpId, ok: bool);
    /// Answer to [`StoreRequest::Mark`], with what is marked now: failed, and which replica.
    fn marked(
        &self,
        resource: ResourceId,
        op: OpId,
        marks: Result<(bool, Option<ReplicaId>), StoreError>,
    );
}

/// Starts the thread; it ends with [`StoreRequest::Stop`].
///
/// # Errors
/// If there is no thread to be had.
pub fn start(
    store: VoterStore,
    requests: Arc<Mailbox<StoreRequest>>,
    sink: impl StoreSink,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("store".to_owned())
        .stack_size(STACK_LEN)
        .spawn(move || {
            let mut store = store;
            loop {
                let mut fds = [PollFd::new(requests.as_fd(), PollFlags::POLLIN)];
                // EINTR and the like: look again.
                poll(&mut fds, PollTimeout::NONE).ok();
                if !carry_out(&mut store, &sink, requests.drain()) {
                    return;
                }
            }
        })
}

/// Writes all of it with one sync and answers; `false` once the end was asked for.
fn carry_out(
    store: &mut VoterStore,
    sink: &impl StoreSink,
    requests: VecDeque<StoreRequest>,
) -> bool {
    let mut records = BTreeMap::new();
    let mut stopping = false;
    for request in &requests {
        match request {
            StoreRequest::Stop => stopping = true,
            StoreRequest::Persist {
                resource, record, ..
            } => {
                let known = current(store, &records, *resource);
                records.insert(*resource, with_marks_of(**record, &known));
            }
            StoreRequest::Mark { resource, mark, .. } => {
                let mut record = current(store, &records, *resource);
                note_mark(&mut record, *mark);
                records.insert(*resource, record);
            }
        }
    }
    let written = if records.is_empty() {
        Ok(())
    } else {
        store.write(records)
    };
    if let Err(error) = &written {
        tracing::error!(%error, "the voter store cannot be written: this voter is silent from now");
    }
    for request in requests {
        match request {
            StoreRequest::Stop => {}
            StoreRequest::Persist { op, .. } => sink.persisted(op, written.is_ok()),
            StoreRequest::Mark { op, resource, .. } => {
                let record = store.record(resource).copied().unwrap_or_default();
                let marks = (record.replica_failed, record.replica);
                sink.marked(
                    resource,
                    op,
                    if written.is_ok() {
                        Ok(marks)
                    } else {
                        Err(StoreError)
                    },
                );
            }
        }
    }
    !stopping
}

fn current(
    store: &VoterStore,
    changed: &BTreeMap<ResourceId, VoterRecord>,
    resource: ResourceId,
) -> VoterRecord {
    let known = changed.get(&resource).or_else(|| store.record(resource));
    known.copied().unwrap_or_default()
}

/// The controller's copy of the marks may be older than what the shard had recorded meanwhile.
fn with_marks_of(record: VoterRecord, known: &VoterRecord) -> VoterRecord {
    VoterRecord {
        replica_failed: known.replica_failed,
        replica: known.replica,
        ..record
    }
}

fn note_mark(record: &mut VoterRecord, mark: ReplicaMark) {
    match mark {
        ReplicaMark::Failed => record.replica_failed = true,
        ReplicaMark::Clean => record.replica_failed = false,
        ReplicaMark::Attached(replica) => record.replica = Some(replica),
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::ViewNumber;

    use super::*;

    #[test]
    fn a_late_record_of_the_controller_does_not_undo_a_mark() {
        let mut known = VoterRecord::default();
        note_mark(&mut known, ReplicaMark::Attached(ReplicaId(5)));
        note_mark(&mut known, ReplicaMark::Failed);
        let late = VoterRecord {
            seal: ViewNumber(3),
            ..VoterRecord::default()
        };
        let merged = with_marks_of(late, &known);
        assert_eq!(merged.seal, ViewNumber(3));
        assert!(merged.replica_failed);
        assert_eq!(merged.replica, Some(ReplicaId(5)));
        note_mark(&mut known, ReplicaMark::Clean);
        assert!(!with_marks_of(late, &known).replica_failed);
    }
}
