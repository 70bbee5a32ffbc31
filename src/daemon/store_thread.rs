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
use replicator::types::{OpId, ResourceId};

use super::mailbox::Mailbox;
use super::voter_store::VoterStore;
use crate::controller::VoterRecord;

/// Requests waiting at most. The controller has one outstanding per resource: more means that the
/// root disk hangs, and then refusing is what a voter must do.
pub const STORE_REQUESTS_MAX: usize = 16 * 1024;

/// Stack of the thread.
const STACK_LEN: usize = 128 * 1024;

/// What is to be made durable.
#[derive(Clone, Debug)]
pub enum StoreRequest {
    /// The controller's record of a resource.
    Persist {
        /// Echoed by the answer.
        op: OpId,
        /// Whose.
        resource: ResourceId,
        /// The record.
        record: Box<VoterRecord>,
    },
    /// End the thread after what was asked before.
    Stop,
}

/// Where the answers go. Never blocks.
pub trait StoreSink: Send + 'static {
    /// Answer to [`StoreRequest::Persist`]: the record is durable, or is not.
    fn persisted(&self, op: OpId, resource: ResourceId, record: &VoterRecord, ok: bool);

    /// The store takes no records any more. Said once, before the answers that follow from it.
    fn failed(&self, error: &io::Error);
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
            let mut store = Watched { store, ok: true };
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

/// The store, and whether it was said that it failed: it never comes back in this life.
struct Watched {
    store: VoterStore,
    ok: bool,
}

/// Writes all of it with one sync and answers; `false` once the end was asked for.
fn carry_out(
    watched: &mut Watched,
    sink: &impl StoreSink,
    requests: VecDeque<StoreRequest>,
) -> bool {
    // A resource's last record replaces its earlier ones: they are answered by the same write.
    let mut records = BTreeMap::new();
    for request in &requests {
        if let StoreRequest::Persist {
            resource, record, ..
        } = request
        {
            records.insert(*resource, **record);
        }
    }
    let written = if records.is_empty() {
        Ok(())
    } else {
        watched.store.write(records)
    };
    if let Err(error) = &written
        && core::mem::replace(&mut watched.ok, false)
    {
        sink.failed(error);
    }
    let mut going_on = true;
    for request in requests {
        match request {
            StoreRequest::Stop => going_on = false,
            StoreRequest::Persist {
                op,
                resource,
                record,
            } => {
                sink.persisted(op, resource, &record, written.is_ok());
            }
        }
    }
    going_on
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use replicator::types::{ViewNumber, VoterId};

    use super::*;
    use crate::daemon::voter_store::{RESOURCES_MAX, StoreIdentity};

    /// What was answered: which, whose seal, how.
    type Answers = Arc<Mutex<Vec<(OpId, ViewNumber, bool)>>>;

    struct Sink(Answers);

    impl StoreSink for Sink {
        fn persisted(&self, op: OpId, _resource: ResourceId, record: &VoterRecord, ok: bool) {
            self.0.lock().unwrap().push((op, record.seal, ok));
        }

        fn failed(&self, _error: &io::Error) {
            let failed = (OpId(0), ViewNumber::NONE, false);
            self.0.lock().unwrap().push(failed);
        }
    }

    fn sealed(op: u64, seal: u64) -> StoreRequest {
        StoreRequest::Persist {
            op: OpId(op),
            resource: ResourceId(1),
            record: Box::new(VoterRecord {
                seal: ViewNumber(seal),
                ..VoterRecord::default()
            }),
        }
    }

    /// Story: the root disk is full. Every write that follows is refused, and people are told once.
    #[test]
    fn a_store_that_failed_is_said_once_and_answers_no_for_ever() {
        let dir = std::env::temp_dir().join(format!("twinblk-store-full-{}", std::process::id()));
        let identity = StoreIdentity {
            cluster: "lab".to_owned(),
            node: "kvm-a".to_owned(),
            fresh_voter: VoterId(1),
        };
        let store = VoterStore::open(&dir, &identity).unwrap();
        let mut watched = Watched { store, ok: true };
        let answers = Answers::default();
        let sink = Sink(Arc::clone(&answers));
        let full = (0..=RESOURCES_MAX as u64).map(|nr| StoreRequest::Persist {
            op: OpId(1 + nr),
            resource: ResourceId(nr),
            record: Box::default(),
        });
        assert!(carry_out(&mut watched, &sink, full.collect()));
        assert!(carry_out(&mut watched, &sink, [sealed(9, 3)].into()));
        let answers = answers.lock().unwrap();
        assert_eq!(answers.len(), 1 + RESOURCES_MAX + 1 + 1);
        assert!(answers.iter().all(|(_, _, ok)| !ok));
        let said = |(nr, answer): (usize, &(OpId, _, _))| (answer.0 == OpId(0)).then_some(nr);
        let said: Vec<_> = answers.iter().enumerate().filter_map(said).collect();
        assert_eq!(said, [0], "before the first answer, and never again");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn each_request_is_answered_in_order_and_the_last_record_stays() {
        let dir = std::env::temp_dir().join(format!("twinblk-store-thread-{}", std::process::id()));
        let identity = StoreIdentity {
            cluster: "lab".to_owned(),
            node: "kvm-a".to_owned(),
            fresh_voter: VoterId(1),
        };
        let store = VoterStore::open(&dir, &identity).unwrap();
        let requests = Arc::new(Mailbox::new(STORE_REQUESTS_MAX).unwrap());
        for (op, seal) in [(1, 3), (2, 4)] {
            requests.push(sealed(op, seal)).unwrap();
        }
        requests.push(StoreRequest::Stop).unwrap();
        let answers = Answers::default();
        let thread = start(store, requests, Sink(Arc::clone(&answers))).unwrap();
        thread.join().unwrap();
        let expected = [
            (OpId(1), ViewNumber(3), true),
            (OpId(2), ViewNumber(4), true),
        ];
        assert_eq!(*answers.lock().unwrap(), expected);
        let again = VoterStore::open(&dir, &identity).unwrap();
        assert_eq!(again.record(ResourceId(1)).unwrap().seal, ViewNumber(4));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
