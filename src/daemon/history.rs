//! What was decided about each resource, kept for `history` and `why`: the newest in memory, and
//! written by a thread of its own to the state directory, so that a restart forgets nothing.
//!
//! Nothing waits for it: what the disk does not take in time is in memory only.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use replicator::admin::{HISTORY_SCHEMA, HistoryEntry, HistoryReport, Response};
use replicator::types::ResourceId;

use super::history_file::{HistoryFile, Line};
use super::node::Node;
use super::orders::Outcome;
use crate::config::ResourceConfig;
use crate::controller::RESOURCES_MAX;

/// Decisions kept of each resource: months of a quiet one, and all of a bad day.
const ENTRIES_MAX: usize = 256;

/// Decisions waiting for the disk at most.
const LINES_MAX: usize = 1024;

/// How long an orderly stop waits for the last of them.
const FAREWELL: Duration = Duration::from_secs(1);

/// Stack of the writing thread.
const STACK_LEN: usize = 128 * 1024;

enum Request {
    Write(Line),
    Stop(SyncSender<()>),
}

/// The decisions of all resources.
pub(super) struct History {
    rings: Mutex<BTreeMap<ResourceId, VecDeque<HistoryEntry>>>,
    disk: Option<SyncSender<Request>>,
}

impl History {
    /// Only in memory: for tests, and where the state directory takes no file.
    pub(super) fn in_memory() -> Self {
        Self {
            rings: Mutex::default(),
            disk: None,
        }
    }

    /// With what an earlier process wrote into `dir`, and writing on there.
    pub(super) fn open(dir: &Path) -> Self {
        let mut history = Self::in_memory();
        match HistoryFile::open(dir).and_then(|(file, lines)| Ok((start(file)?, lines))) {
            Ok((disk, lines)) => {
                for line in lines {
                    history.keep(ResourceId::of_name(&line.resource), line.entry);
                }
                history.disk = Some(disk);
            }
            Err(error) => tracing::warn!(%error, "decisions are kept in memory only"),
        }
        history
    }

    /// Adds a decision. Never waits for the disk.
    pub(super) fn note(&self, resource: &ResourceConfig, entry: HistoryEntry) {
        if let Some(disk) = &self.disk {
            let line = Line {
                resource: resource.name.clone(),
                entry: entry.clone(),
            };
            if disk.try_send(Request::Write(line)).is_err() {
                tracing::debug!("a decision is not written: the disk does not keep up");
            }
        }
        self.keep(resource.id(), entry);
    }

    fn keep(&self, resource: ResourceId, entry: HistoryEntry) {
        let mut rings = self.lock();
        // Of resources that were removed since only what the files still have is kept.
        if rings.len() >= RESOURCES_MAX && !rings.contains_key(&resource) {
            return;
        }
        let ring = rings.entry(resource).or_default();
        if ring.len() == ENTRIES_MAX {
            ring.pop_front();
        }
        ring.push_back(entry);
    }

    /// The newest `count`, oldest first, and whether there were more.
    pub(super) fn newest(&self, resource: ResourceId, count: usize) -> (Vec<HistoryEntry>, bool) {
        let rings = self.lock();
        let Some(ring) = rings.get(&resource) else {
            return (Vec::new(), false);
        };
        let skipped = ring.len().saturating_sub(count);
        let more = skipped > 0 || ring.len() == ENTRIES_MAX;
        (ring.iter().skip(skipped).cloned().collect(), more)
    }

    /// Waits for what is to be written, not for ever.
    pub(super) fn flush(&self) {
        let Some(disk) = &self.disk else { return };
        let (sender, ended) = sync_channel(1);
        if disk.try_send(Request::Stop(sender)).is_ok() {
            ended.recv_timeout(FAREWELL).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ResourceId, VecDeque<HistoryEntry>>> {
        // Whole entries are pushed: a panic elsewhere leaves nothing half done.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start(file: HistoryFile) -> io::Result<SyncSender<Request>> {
    let (sender, requests) = sync_channel(LINES_MAX);
    thread::Builder::new()
        .name("history".to_owned())
        .stack_size(STACK_LEN)
        .spawn(move || write_all(file, &requests))?;
    Ok(sender)
}

/// Writes whatever waits in one go, until it is told to stop or nobody is left to tell.
fn write_all(mut file: HistoryFile, requests: &Receiver<Request>) {
    let mut well = true;
    while let Ok(first) = requests.recv() {
        let mut lines = Vec::new();
        let mut stop = None;
        for request in std::iter::once(first).chain(requests.try_iter()) {
            match request {
                Request::Write(line) => lines.push(line),
                Request::Stop(sender) => stop = Some(sender),
            }
        }
        match file.append(&lines) {
            Ok(()) => well = true,
            Err(error) if well => {
                well = false;
                tracing::warn!(%error, "decisions cannot be written: they are kept in memory only");
            }
            Err(_) => {}
        }
        if let Some(sender) = stop {
            sender.try_send(()).ok();
            return;
        }
    }
}

impl Node {
    pub(super) fn history(&self, resource: &ResourceConfig, count: u32) -> Outcome {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (entries, more) = self.history.newest(resource.id(), count);
        Ok(Response::History(HistoryReport {
            schema: HISTORY_SCHEMA.to_owned(),
            node: self.name().to_owned(),
            resource: resource.name.clone(),
            entries,
            more,
        }))
    }

    pub(super) fn newest_history(&self, resource: ResourceId, count: usize) -> Vec<HistoryEntry> {
        self.history.newest(resource, count).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(nr: u64) -> HistoryEntry {
        HistoryEntry {
            unix_millis: nr,
            kind: "view".to_owned(),
            view: None,
            by: None,
            text: String::new(),
        }
    }

    #[test]
    fn the_newest_are_kept_and_it_is_said_that_there_were_more() {
        let history = History::in_memory();
        let resource = ResourceId(7);
        assert_eq!(history.newest(resource, 9), (Vec::new(), false));
        for nr in 0..ENTRIES_MAX as u64 + 10 {
            history.keep(resource, entry(nr));
        }
        let (entries, more) = history.newest(resource, 2);
        let last = ENTRIES_MAX as u64 + 9;
        assert_eq!((entries, more), (vec![entry(last - 1), entry(last)], true));
        let (entries, more) = history.newest(resource, usize::MAX);
        assert_eq!((entries.len(), more), (ENTRIES_MAX, true));
    }
}
