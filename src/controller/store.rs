//! A voter record on its way to the disk: what waits for which write.
//!
//! One write per resource is outstanding; everything changed meanwhile goes into the next one, so a
//! slow disk makes groups. What a write makes true (a promise may be told, a seal is kept) is held
//! back as a *dependent* of the record's version and handed out when that version is durable.

use core::time::Duration;

use replicator::types::{Instant, NodeId, OpId};

use super::message::Part;
use super::record::VoterRecord;

/// Replies held back per resource. Three voters with a round each and their repetitions need fewer;
/// what does not fit is dropped and asked again.
const DEPENDENTS_MAX: usize = 24;

/// Time before a failed write is tried again: a full disk does not mend faster.
const RETRY: Duration = Duration::from_secs(1);

/// Something that may happen once the record is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "at most DEPENDENTS_MAX exist per resource, for the length of a disk write"
)]
pub(super) enum Dependent {
    /// A voter's answer may leave.
    Reply { to: NodeId, part: Part },
    /// The engine's mark is kept.
    Mark { op: OpId },
    /// The order to change `up` is carried out.
    UpRecorded,
}

/// A record, its version in memory and on disk.
#[derive(Clone, Debug)]
pub(super) struct Store {
    record: VoterRecord,
    version: u64,
    durable: u64,
    writing: Option<(OpId, u64)>,
    retry_at: Option<Instant>,
    /// The newest write that ended failed.
    failing: bool,
    dependents: Vec<(u64, Dependent)>,
}

impl Store {
    /// `record` as read from the disk.
    pub(super) fn new(record: VoterRecord) -> Self {
        Self {
            record,
            version: 0,
            durable: 0,
            writing: None,
            retry_at: None,
            failing: false,
            dependents: Vec::new(),
        }
    }

    pub(super) fn record(&self) -> &VoterRecord {
        &self.record
    }

    /// Changes the record in memory; a write follows if it really changed. Returns the version that
    /// must be durable before the change may be told.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut VoterRecord)) -> u64 {
        let before = self.record;
        change(&mut self.record);
        if self.record != before {
            self.version += 1;
        }
        self.version
    }

    pub(super) fn is_durable(&self, version: u64) -> bool {
        self.durable >= version
    }

    /// Holds `dependent` back until `version` is durable.
    pub(super) fn when_durable(&mut self, version: u64, dependent: Dependent) {
        if self.dependents.contains(&(version, dependent.clone())) {
            return;
        }
        if self.dependents.len() == DEPENDENTS_MAX {
            let oldest_reply = self
                .dependents
                .iter()
                .position(|(_, waiting)| matches!(waiting, Dependent::Reply { .. }));
            match oldest_reply {
                Some(index) => drop(self.dependents.remove(index)),
                None => return,
            }
        }
        self.dependents.push((version, dependent));
    }

    /// What became true; call after every change and completion.
    pub(super) fn take_ready(&mut self) -> Vec<Dependent> {
        let durable = self.durable;
        let (ready, waiting) = self
            .dependents
            .drain(..)
            .partition(|(version, _)| *version <= durable);
        self.dependents = waiting;
        ready.into_iter().map(|(_, dependent)| dependent).collect()
    }

    /// The write to begin now, if any; `op` names it.
    pub(super) fn next_write(&mut self, now: Instant, op: OpId) -> Option<VoterRecord> {
        let due = self.retry_at.is_none_or(|at| at <= now);
        if self.writing.is_some() || self.durable >= self.version || !due {
            return None;
        }
        self.retry_at = None;
        self.writing = Some((op, self.version));
        Some(self.record)
    }

    /// A write ended; nothing happens if `op` is not the outstanding one. Whether the disk turned
    /// by that: from taking writes to failing them, or back.
    pub(super) fn note_written(&mut self, now: Instant, op: OpId, ok: bool) -> bool {
        let Some((_, version)) = self.writing.take_if(|(writing, _)| *writing == op) else {
            return false;
        };
        if ok {
            self.durable = version;
        } else {
            self.retry_at = Some(now.plus(RETRY));
        }
        core::mem::replace(&mut self.failing, !ok) == ok
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(store: &mut Store, up: bool) -> u64 {
        store.change(|record| record.up = up)
    }

    #[test]
    fn nothing_is_ready_before_its_version_is_durable() {
        let mut store = Store::new(VoterRecord::default());
        let version = up(&mut store, true);
        store.when_durable(version, Dependent::UpRecorded);
        assert!(store.take_ready().is_empty());
        assert!(store.next_write(Instant(0), OpId(1)).unwrap().up);
        // Changed while the write is under way: the write does not cover it.
        let later = up(&mut store, false);
        store.when_durable(later, Dependent::Mark { op: OpId(9) });
        assert!(store.next_write(Instant(0), OpId(2)).is_none());
        store.note_written(Instant(1), OpId(1), true);
        assert_eq!(store.take_ready(), [Dependent::UpRecorded]);
        assert!(store.next_write(Instant(1), OpId(2)).is_some());
        store.note_written(Instant(1), OpId(2), true);
        assert_eq!(store.take_ready(), [Dependent::Mark { op: OpId(9) }]);
        assert!(store.next_write(Instant(1), OpId(3)).is_none());
    }

    #[test]
    fn a_failed_write_is_repeated_later_and_promises_nothing() {
        let mut store = Store::new(VoterRecord::default());
        let version = up(&mut store, true);
        store.when_durable(version, Dependent::UpRecorded);
        assert!(store.next_write(Instant(0), OpId(1)).is_some());
        store.note_written(Instant(0), OpId(1), false);
        assert!(store.take_ready().is_empty());
        assert!(store.next_write(Instant(1), OpId(2)).is_none());
        let retry = store.next_deadline().unwrap();
        assert!(store.next_write(retry, OpId(2)).is_some());
        store.note_written(retry, OpId(2), true);
        assert_eq!(store.take_ready(), [Dependent::UpRecorded]);
    }

    #[test]
    fn a_completion_of_another_write_changes_nothing() {
        let mut store = Store::new(VoterRecord::default());
        let version = up(&mut store, true);
        assert!(store.next_write(Instant(0), OpId(1)).is_some());
        store.note_written(Instant(0), OpId(7), true);
        assert!(!store.is_durable(version));
    }

    #[test]
    fn a_change_that_changes_nothing_writes_nothing() {
        let mut store = Store::new(VoterRecord::default());
        let version = up(&mut store, false);
        assert!(store.is_durable(version));
        assert!(store.next_write(Instant(0), OpId(1)).is_none());
    }

    #[test]
    fn the_number_of_held_back_replies_is_bounded() {
        let mut store = Store::new(VoterRecord::default());
        let version = up(&mut store, true);
        store.when_durable(version, Dependent::UpRecorded);
        for round in 0..100 {
            let part = Part::Prepare {
                resource: replicator::types::ResourceId(round),
                ballot: Default::default(),
            };
            let to = NodeId::A;
            store.when_durable(version, Dependent::Reply { to, part });
        }
        assert_eq!(store.dependents.len(), DEPENDENTS_MAX);
        assert!(store.dependents.contains(&(version, Dependent::UpRecorded)));
    }
}
