//! The voter store on its file: what is acknowledged survives any crash, one file, one owner.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use replicator::types::{ResourceId, VoterId};
use thiserror::Error;

use super::layout::{self, ENTRY_LEN, SECTOR_LEN};
use super::record::NodeRecord;
use crate::controller::VoterRecord;
use crate::identity::files::DAEMONS_LOCK;

/// Resources one voter can know, dead ones included. 16 KiB each: 64 MiB of root disk.
pub const RESOURCES_MAX: usize = 4096;

const STORE_FILE: &str = "voter-store";
const STORE_FILE_NEW: &str = "voter-store.new";
const LOCK_FILE: &str = DAEMONS_LOCK;

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// Another daemon holds it.
    #[error("{dir} is in use by another daemon: each node needs a state directory of its own")]
    Locked {
        /// The state directory.
        dir: PathBuf,
    },
    /// The system said no.
    #[error("{path}: {error}")]
    System {
        /// What was touched.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// It was made by another node or for another cluster.
    #[error(
        "{dir} belongs to node {found_node} of cluster {found_cluster}, not to {node} of {cluster}"
    )]
    Foreign {
        /// The state directory.
        dir: PathBuf,
        /// Who this is.
        node: String,
        /// Where this is.
        cluster: String,
        /// Whose it is.
        found_node: String,
        /// Which cluster it is of.
        found_cluster: String,
    },
    /// Something in it cannot be read. It is never taken as blank: a voter that forgot what it
    /// promised must not vote.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What cannot be read.
        what: String,
    },
}

/// What the store needs of a file. A trait so that a test can stop it between any two steps.
pub(super) trait StoreFile {
    fn read_all(&self) -> io::Result<Vec<u8>>;
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

impl StoreFile for File {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let len_max = (RESOURCES_MAX + 1) * ENTRY_LEN;
        let len = usize::try_from(self.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(len_max)];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// One resource as it lies in the file.
#[derive(Debug)]
struct Slot {
    entry: u32,
    sequence: u64,
    record: VoterRecord,
}

/// Whether what is in memory may be rested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Read, perhaps out of pages that the disk refused from the process before: a failed sync
    /// leaves them readable and clean on many filesystems.
    Read,
    /// All of it is on the disk.
    Durable,
    /// A write or a sync failed: what the disk holds is unknown, so nothing is written any more
    /// and nothing acknowledged (a second fsync would report success for lost pages).
    Failed,
}

/// What this voter promised, accepted and knows, durably.
#[derive(Debug)]
pub(super) struct Entries<F> {
    file: F,
    node: NodeRecord,
    node_sequence: u64,
    slots: BTreeMap<ResourceId, Slot>,
    trust: Trust,
    /// Copies that did not check when the store was read.
    damaged_copies: usize,
}

/// Whose store it must be, and what to call it when it is made.
#[derive(Clone, Debug)]
pub struct StoreIdentity {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
    /// Random; used only when the store is created.
    pub fresh_voter: VoterId,
}

/// What the lives of a new store are counted on from. Votes and grants name the life they were given
/// to and no store: what was recorded of the store before must name none of this one. 31 bits, so that
/// as many starts are left.
fn first_incarnation(fresh_voter: VoterId) -> u32 {
    let [a, b, c, d, ..] = fresh_voter.0.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) & (u32::MAX >> 1)
}

/// The bytes of a store that knows nothing yet.
pub(super) fn fresh_bytes(identity: &StoreIdentity) -> Vec<u8> {
    let node = NodeRecord {
        cluster: identity.cluster.clone(),
        node: identity.node.clone(),
        voter: identity.fresh_voter,
        incarnation: first_incarnation(identity.fresh_voter),
        entries: 0,
    };
    let mut bytes = vec![0; ENTRY_LEN];
    let sector = layout::encode(0, 1, &node.encode());
    for at in layout::copies_of(1) {
        bytes[at..at + SECTOR_LEN].copy_from_slice(&sector);
    }
    bytes
}

fn encode_resource(resource: ResourceId, record: &VoterRecord) -> Vec<u8> {
    let mut payload = resource.0.to_le_bytes().to_vec();
    payload.extend_from_slice(&record.encode());
    payload
}

fn decode_resource(payload: &[u8]) -> Result<(ResourceId, VoterRecord), String> {
    let (id, record) = payload.split_first_chunk().ok_or("it is cut short")?;
    let record = VoterRecord::decode(record).map_err(|error| error.to_string())?;
    Ok((ResourceId(u64::from_le_bytes(*id)), record))
}

impl<F: StoreFile> Entries<F> {
    /// Reads everything. `Err` holds what cannot be read, for people.
    pub(super) fn load(file: F) -> Result<Self, String> {
        let bytes = file.read_all().map_err(|error| error.to_string())?;
        let entry_bytes = |entry: u32| {
            let start = usize::try_from(entry)
                .unwrap_or(usize::MAX)
                .saturating_mul(ENTRY_LEN);
            let start = start.min(bytes.len());
            &bytes[start..(start + ENTRY_LEN).min(bytes.len())]
        };
        let node_entry = layout::decode(0, entry_bytes(0))
            .map_err(|_| "the node's own record has no readable copy".to_owned())?
            .ok_or("the node's own record is missing")?;
        let node = NodeRecord::decode(&node_entry.payload)
            .map_err(|error| format!("the node's own record: {error}"))?;
        let mut damaged_copies = node_entry.damaged_copies;
        let mut slots = BTreeMap::new();
        for entry in 1..=node.entries {
            let generation = layout::decode(entry, entry_bytes(entry))
                .map_err(|error| format!("the record of resource {error}"))?
                .ok_or_else(|| format!("the record of resource entry {entry} is missing"))?;
            damaged_copies += generation.damaged_copies;
            let (resource, record) = decode_resource(&generation.payload)
                .map_err(|error| format!("the record of resource entry {entry}: {error}"))?;
            slots.insert(
                resource,
                Slot {
                    entry,
                    sequence: generation.sequence,
                    record,
                },
            );
        }
        let node_sequence = node_entry.sequence;
        Ok(Self {
            file,
            node,
            node_sequence,
            slots,
            trust: Trust::Read,
            damaged_copies,
        })
    }

    fn write_entry(&self, entry: u32, sequence: u64, payload: &[u8]) -> io::Result<()> {
        let sector = layout::encode(entry, sequence, payload);
        for at in layout::copies_of(sequence) {
            let start = u64::from(entry) * ENTRY_LEN as u64;
            self.file.write_at(&sector, start + at as u64)?;
        }
        Ok(())
    }

    /// Makes `node` the node's record, durably.
    fn write_node(&mut self, node: NodeRecord) -> io::Result<()> {
        self.write_entry(0, self.node_sequence + 1, &node.encode())?;
        self.file.sync()?;
        self.node_sequence += 1;
        self.node = node;
        Ok(())
    }

    /// Writes the records and makes them durable with one sync (two when a resource is new: the
    /// node's record counts the entries, so that one that vanished is noticed).
    fn write_records(&mut self, records: BTreeMap<ResourceId, VoterRecord>) -> io::Result<()> {
        let mut entries = self.node.entries;
        for (resource, record) in records {
            let (entry, sequence) = if let Some(slot) = self.slots.get(&resource) {
                (slot.entry, slot.sequence + 1)
            } else if self.slots.len() < RESOURCES_MAX {
                entries += 1;
                (entries, 1)
            } else {
                return Err(io::Error::other("no room for another resource"));
            };
            self.write_entry(entry, sequence, &encode_resource(resource, &record))?;
            self.slots.insert(
                resource,
                Slot {
                    entry,
                    sequence,
                    record,
                },
            );
        }
        self.file.sync()?;
        if entries != self.node.entries {
            self.write_node(NodeRecord {
                entries,
                ..self.node.clone()
            })?;
        }
        Ok(())
    }

    /// Writes every generation that was read to the very sectors it was read from, and syncs.
    ///
    /// The generation before lies in the other sectors and stays: should the one that was read
    /// never have reached the disk, a power cut meanwhile still finds that one. Reading with
    /// `O_DIRECT` instead would tell what the disk holds, but not every filesystem has it (tmpfs,
    /// overlays), some read the same pages anyway, and pages still dirty it would have to flush.
    fn rewrite(&self) -> io::Result<()> {
        self.write_entry(0, self.node_sequence, &self.node.encode())?;
        for (resource, slot) in &self.slots {
            let payload = encode_resource(*resource, &slot.record);
            self.write_entry(slot.entry, slot.sequence, &payload)?;
        }
        self.file.sync()
    }

    fn count_life(&mut self) -> io::Result<()> {
        let incarnation = self.node.incarnation.checked_add(1);
        let incarnation =
            incarnation.ok_or_else(|| io::Error::other("the incarnation counter is exhausted"))?;
        self.rewrite()?;
        self.write_node(NodeRecord {
            incarnation,
            ..self.node.clone()
        })
    }

    /// Makes what was read durable again and counts a new life of this node's process, durably.
    /// Before that nothing is written and nothing may be answered.
    pub(super) fn begin_life(&mut self) -> io::Result<()> {
        let begun = self.count_life();
        self.trust = match begun {
            Ok(()) => Trust::Durable,
            Err(_) => Trust::Failed,
        };
        begun
    }

    /// Records durably; after the first failure nothing is ever written again. Each resource once:
    /// a second generation in one batch would destroy the last durable one before the sync.
    pub(super) fn write(&mut self, records: BTreeMap<ResourceId, VoterRecord>) -> io::Result<()> {
        match self.trust {
            Trust::Durable => {}
            Trust::Read => return Err(io::Error::other("no life was begun")),
            Trust::Failed => return Err(io::Error::other("an earlier write failed")),
        }
        let written = self.write_records(records);
        if written.is_err() {
            self.trust = Trust::Failed;
        }
        written
    }

    pub(super) fn node(&self) -> &NodeRecord {
        &self.node
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (ResourceId, &VoterRecord)> {
        self.slots
            .iter()
            .map(|(resource, slot)| (*resource, &slot.record))
    }

    pub(super) fn record(&self, resource: ResourceId) -> Option<&VoterRecord> {
        self.slots.get(&resource).map(|slot| &slot.record)
    }
}

/// The store of this node, opened and locked for this process.
#[derive(Debug)]
pub struct VoterStore {
    entries: Entries<File>,
    /// Held, never read: the lock goes with it.
    _lock: Flock<File>,
    created: bool,
}

impl VoterStore {
    /// Opens the store in `dir`, makes both if missing, and counts a new incarnation. What was
    /// read is durable when this returns, whatever became of the writes of an earlier process.
    ///
    /// # Errors
    /// If it is in use, foreign, damaged, or the system refuses; see [`OpenStoreError`].
    pub fn open(dir: &Path, identity: &StoreIdentity) -> Result<Self, OpenStoreError> {
        let system = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenStoreError::System { path, error }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(system(dir))?;
        let lock = lock_dir(dir)?;
        let path = dir.join(STORE_FILE);
        let created = !path.try_exists().map_err(system(&path))?;
        if created {
            create(dir, &fresh_bytes(identity)).map_err(system(&path))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(system(&path))?;
        let mut entries = Entries::load(file).map_err(|what| OpenStoreError::Damaged {
            path: path.clone(),
            what,
        })?;
        is_of(entries.node(), dir, identity)?;
        // As with the file's pages: a name that is seen need not be on the disk yet.
        sync_names(dir).map_err(system(dir))?;
        entries.begin_life().map_err(system(&path))?;
        Ok(Self {
            entries,
            _lock: lock,
            created,
        })
    }

    /// Whether the store in `dir`, if there is one, could be opened but for its lock. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn check(dir: &Path, identity: &StoreIdentity) -> Result<(), OpenStoreError> {
        let path = dir.join(STORE_FILE);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|error| OpenStoreError::System {
                path: path.clone(),
                error,
            })?,
        };
        let entries = Entries::load(file).map_err(|what| OpenStoreError::Damaged { path, what })?;
        is_of(entries.node(), dir, identity)
    }

    /// The node's own record, this life counted.
    #[must_use]
    pub fn node(&self) -> &NodeRecord {
        self.entries.node()
    }

    /// Whether this start made the store.
    #[must_use]
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// Copies that did not check; the other copy served. The root disk deserves a look.
    #[must_use]
    pub fn damaged_copies(&self) -> usize {
        self.entries.damaged_copies
    }

    /// Everything known, in order of the resources' ids.
    pub fn records(&self) -> impl Iterator<Item = (ResourceId, &VoterRecord)> {
        self.entries.records()
    }

    /// What is known of one resource.
    #[must_use]
    pub fn record(&self, resource: ResourceId) -> Option<&VoterRecord> {
        self.entries.record(resource)
    }

    /// Records durably, all with one sync where they were known before.
    ///
    /// # Errors
    /// If a write or sync failed, now or ever before: nothing may be acknowledged.
    pub fn write(&mut self, records: BTreeMap<ResourceId, VoterRecord>) -> io::Result<()> {
        self.entries.write(records)
    }
}

fn is_of(node: &NodeRecord, dir: &Path, identity: &StoreIdentity) -> Result<(), OpenStoreError> {
    if node.cluster == identity.cluster && node.node == identity.node {
        return Ok(());
    }
    Err(OpenStoreError::Foreign {
        dir: dir.to_owned(),
        node: identity.node.clone(),
        cluster: identity.cluster.clone(),
        found_node: node.node.clone(),
        found_cluster: node.cluster.clone(),
    })
}

fn lock_dir(dir: &Path) -> Result<Flock<File>, OpenStoreError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| OpenStoreError::System {
            path: path.clone(),
            error,
        })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => OpenStoreError::Locked {
            dir: dir.to_owned(),
        },
        other => OpenStoreError::System {
            path,
            error: other.into(),
        },
    })
}

/// Makes the file appear whole or not at all.
fn create(dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(STORE_FILE_NEW);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(STORE_FILE))
}

/// Makes the store's name durable, and the directory's, which may be new too.
fn sync_names(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    match dir.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
