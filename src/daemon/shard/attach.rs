//! Opening a resource's devices and offering them to its engine.
//!
//! An open may take as long as the device likes: a thread of its own does it, at most one for each
//! resource, and its result comes back as a command. Until then the shard serves everybody else,
//! and a detach or the end of the resource leaves the thread to itself: what it opens is closed.

use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use replicator::engine::{AdminRequest, AttachRequest, Input};
use replicator::io::{Disk, DiskQueue, MetaQueue, OpenError};
use replicator::types::{BLOCK_LEN, ByteLen, ByteOffset, DiskState, ResourceId, VolumeRow};

use super::Shard;
use super::resource::Attaching;
use super::slots::Key;
use super::token::{Owner, Place};
use crate::daemon::api::{AttachFailure, AttachSetup, ShardCommand, ShardEvent, ShardHandle};

/// The data device of each volume and the metadata area, held.
pub type Devices = (Vec<Disk>, Disk);

/// Opens all of them; may block.
pub type Opener = Arc<dyn Fn(&[PathBuf], &Path) -> Result<Devices, OpenError> + Send + Sync>;

/// Devices in use are tried again this often, and given up after [`ATTACH_WAIT`].
const ATTACH_PAUSE: Duration = Duration::from_millis(100);
/// How long an attach waits for operations of an earlier process to end (R14). A disk answers or
/// fails its operations within this; what holds the device longer is a stranger, and a person must
/// look.
const ATTACH_WAIT: Duration = Duration::from_secs(10);

pub(super) fn open_devices(disks: &[PathBuf], meta: &Path) -> Result<Devices, OpenError> {
    let opened: Result<Vec<_>, _> = disks.iter().map(|disk| Disk::open(disk)).collect();
    opened.and_then(|disks| Disk::open(meta).map(|meta| (disks, meta)))
}

impl Shard {
    pub(super) fn attach(&mut self, id: ResourceId, setup: AttachSetup) {
        let Some(&key) = self.by_id.get(&id) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(key).filter(|it| !it.removing) else {
            return;
        };
        self.attach_orders += 1;
        resource.attaching = Some(Attaching {
            setup,
            order: self.attach_orders,
            waiting: false,
            retry_at: self.now,
            give_up_at: self.now.plus(ATTACH_WAIT),
        });
        self.try_attach(key);
    }

    pub(super) fn try_attach(&mut self, key: Key) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        let Some(mut attaching) = resource.attaching.take() else {
            return;
        };
        let closing = resource.is_letting_go() || resource.snapshot().disk == DiskState::Detaching;
        if resource.disk.is_some() && !closing {
            // Opening it a second time would wait for our own lock; the engine knows what it has.
            tracing::error!(name = resource.setup.name, "attach of an attached resource");
            return;
        }
        resource.note_change();
        let id = resource.setup.resource;
        let disks = attaching.setup.disks.clone();
        let path = disks.first().cloned().unwrap_or_default();
        if closing {
            // Its own last operations hold the lock.
            self.attach_failed(key, attaching, OpenError::InUse { path });
        } else if self.opening.contains_key(&id) {
            if self.now >= attaching.give_up_at {
                self.attach_failed(key, attaching, OpenError::NoAnswer { path });
                return;
            }
            // `on_opened` comes first, or never.
            attaching.retry_at = attaching.give_up_at;
            resource.attaching = Some(attaching);
        } else {
            let (order, meta) = (attaching.order, attaching.setup.meta.clone());
            let (queue, opener) = (Arc::clone(&self.queue), Arc::clone(&self.opener));
            let name = resource.setup.name.clone();
            let failed_path = path.clone();
            let open = move || {
                let opened = catch_unwind(AssertUnwindSafe(|| opener(&disks, &meta)));
                let devices = opened.unwrap_or_else(|_| {
                    // A bug; but without an answer the resource could never be attached again.
                    tracing::error!(name, "opening a device panicked; its message is above");
                    let errno = Errno::EIO;
                    Err(OpenError::Os { path, errno })
                });
                let devices = devices.map(Box::new);
                queue.send(ShardCommand::Opened {
                    resource: id,
                    order,
                    devices,
                });
            };
            let thread = std::thread::Builder::new().name("open".to_owned());
            attaching.retry_at = match thread.spawn(open) {
                Ok(_) => {
                    self.opening.insert(id, order);
                    attaching.give_up_at
                }
                Err(error) if self.now < attaching.give_up_at => {
                    tracing::warn!(%error, "no thread to open a device; tried again");
                    self.now.plus(ATTACH_PAUSE)
                }
                Err(error) => {
                    let errno = error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw);
                    let path = failed_path;
                    return self.attach_failed(key, attaching, OpenError::Os { path, errno });
                }
            };
            resource.attaching = Some(attaching);
        }
    }

    /// The thread that opens devices is done.
    pub(super) fn on_opened(
        &mut self,
        id: ResourceId,
        order: u64,
        devices: Result<Devices, OpenError>,
    ) {
        self.opening.remove(&id);
        let Some(&key) = self.by_id.get(&id) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        let Some(attaching) = resource.attaching.take_if(|it| it.order == order) else {
            // Nobody waits for these any more; whoever waits now tries for himself.
            drop(devices);
            self.try_attach(key);
            return;
        };
        let row = &resource.setup.row;
        let measured = devices.and_then(|devices| {
            let len = row_len(row, &attaching.setup.disks, &devices.0)?;
            Ok((devices, len))
        });
        match measured {
            Ok((devices, len)) => self.offer(key, &attaching.setup, devices, len),
            Err(error) => self.attach_failed(key, attaching, error),
        }
    }

    /// Later again, if that may help and there is time left.
    fn attach_failed(&mut self, key: Key, mut attaching: Attaching, error: OpenError) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        resource.note_change();
        if error.is_transient() && self.now < attaching.give_up_at {
            if !attaching.waiting {
                tracing::info!(name = resource.setup.name, %error, "attach waits");
            }
            attaching.waiting = true;
            attaching.retry_at = self.now.plus(ATTACH_PAUSE);
            resource.attaching = Some(attaching);
            return;
        }
        resource.attach_error = Some(AttachFailure::Open(error.clone()));
        let resource = resource.setup.resource;
        self.sink.tell(ShardEvent::OpenFailed { resource, error });
    }

    /// Tells the engine how long its devices are now.
    pub(super) fn measure(&mut self, id: ResourceId, meta_len: Option<ByteLen>) {
        let Some(&key) = self.by_id.get(&id) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        let (Some(disk), Some(meta)) = (&resource.disk, &resource.meta) else {
            return;
        };
        let last = resource.setup.row.last_place();
        let before_last = resource.setup.row.offset(last).0;
        let (Some(disk), meta) = (disk.disk(last), meta.disk()) else {
            return;
        };
        // A file without space for it counts as too short, however long it calls itself: whoever asked
        // sees that, and nothing is begun that would fail this replica.
        let most = meta_len.and_then(|len| {
            let error = meta.lengthen(len).err()?;
            tracing::warn!(%error, "making a metadata file longer");
            Some(ByteLen(len.0.saturating_sub(BLOCK_LEN)))
        });
        match (disk.measure(), meta.measure()) {
            (Ok(device), Ok(meta)) => {
                let device = ByteLen(before_last.saturating_add(whole_blocks(device).0));
                let meta = most.map_or(meta, |most| meta.min(most));
                let request = AdminRequest::Measured { device, meta };
                self.inputs.push_back((key, Input::Admin(request)));
                resource.note_change();
            }
            (Err(error), _) | (_, Err(error)) => tracing::warn!(%error, "measuring a device"),
        }
    }

    /// `len`: of the row of volumes.
    fn offer(&mut self, key: Key, setup: &AttachSetup, (disks, meta): Devices, len: ByteLen) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        resource.note_change();
        let request = AttachRequest {
            device_len: len,
            meta_len: meta.len(),
            boot_id: self.setup.boot_id,
            marked_failed: setup.stored.failed,
            expected_replica: setup.stored.replica,
            seal: setup.stored.seal,
        };
        let place = Place::of(key);
        let (disk_tokens, meta_tokens) = (Owner::Disk(place).token(), Owner::Meta(place).token());
        let row = resource.setup.row.clone();
        resource.disk = Some(DiskQueue::new(row, disks, self.pool.clone(), disk_tokens));
        resource.meta = Some(MetaQueue::new(
            meta,
            ByteOffset(0),
            self.pool.clone(),
            meta_tokens,
        ));
        self.inputs
            .push_back((key, Input::Admin(AdminRequest::Attach(request))));
    }
}

/// Length of the row that these devices hold: each but the last has to have all of its volume, and of
/// the last counts what it has.
fn row_len(row: &VolumeRow, paths: &[PathBuf], disks: &[Disk]) -> Result<ByteLen, OpenError> {
    if disks.len() != row.count() {
        // A bug; but not one to end all resources for.
        let path = paths.first().cloned().unwrap_or_default();
        let errno = Errno::EINVAL;
        return Err(OpenError::Os { path, errno });
    }
    let last = row.last_place();
    let mut len = ByteLen(0);
    for (place, (disk, path)) in disks.iter().zip(paths).enumerate() {
        let start = row.offset(place).0;
        let own = whole_blocks(disk.len());
        if place < last {
            let needed = ByteLen(row.offset(place + 1).0 - start);
            if own < needed {
                return Err(OpenError::TooShort {
                    path: path.clone(),
                    len: disk.len(),
                    needed,
                });
            }
        }
        len = ByteLen(start.saturating_add(own.0));
    }
    Ok(len)
}

fn whole_blocks(device: ByteLen) -> ByteLen {
    ByteLen(device.0 - device.0 % BLOCK_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usable_length_is_whole_blocks() {
        let usable = |device| whole_blocks(ByteLen(device)).0;
        assert_eq!(
            (usable(10_000), usable(8192), usable(4095)),
            (8192, 8192, 0)
        );
    }
}
