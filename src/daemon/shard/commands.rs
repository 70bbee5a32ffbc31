//! Commands of the rest of the daemon.

use core::time::Duration;

use replicator::engine::{AdminRequest, AttachRequest, Input};
use replicator::io::{Disk, DiskQueue, MetaQueue, OpenError};
use replicator::types::{BLOCK_LEN, ByteLen, ByteOffset, DiskState, NodeId, ResourceId};

use super::resource::{Accept, Attaching, Dial, Resource};
use super::slots::Key;
use super::token::{Owner, Place};
use super::{Shard, nbd};
use crate::daemon::api::{AttachFailure, AttachSetup, ResourceSetup, ShardCommand, ShardEvent};

/// Devices in use are tried again this often, and given up after [`ATTACH_WAIT`].
const ATTACH_PAUSE: Duration = Duration::from_millis(100);
/// How long an attach waits for operations of an earlier process to end (R14). A disk answers or
/// fails its operations within this; what holds the device longer is a stranger, and a person must
/// look.
const ATTACH_WAIT: Duration = Duration::from_secs(10);

impl Shard {
    pub(super) fn on_command(&mut self, command: ShardCommand) {
        match command {
            ShardCommand::Add(setup) => self.add(*setup),
            ShardCommand::Remove { resource } => self.remove(resource),
            ShardCommand::Attach { resource, setup } => self.attach(resource, *setup),
            ShardCommand::Engine { resource, input } => self.input_for(resource, *input),
            ShardCommand::MarkDone {
                resource,
                op,
                result,
            } => {
                self.input_for(resource, Input::MarkDone { op, result });
            }
            ShardCommand::Stop => self.stopping = true,
        }
    }

    /// For a resource that was just removed the command is late, and void.
    fn input_for(&mut self, resource: ResourceId, input: Input) {
        if let Some(&key) = self.by_id.get(&resource) {
            let detach = matches!(input, Input::Admin(AdminRequest::Detach));
            self.inputs.push_back((key, input));
            if let Some(resource) = self.resources.get_mut(key) {
                // The engine knows nothing of an attach that waits for its device, and would say
                // that it is detached.
                resource.attaching.take_if(|_| detach);
                resource.note_change();
            }
        }
    }

    fn add(&mut self, setup: ResourceSetup) {
        let resource = setup.resource;
        if self.by_id.contains_key(&resource) {
            tracing::error!(name = setup.name, "resource added twice");
            return;
        }
        let listener = match nbd::listen(self.backend.as_ref(), &setup.nbd_socket) {
            Ok(listener) => listener,
            Err(error) => {
                let error = format!("{}: {error}", setup.nbd_socket.display());
                self.sink.tell(ShardEvent::AddFailed { resource, error });
                return;
            }
        };
        let engine = (self.engines)(&self.setup, &setup);
        // Data node 1 dials, node 0 listens: one connection is enough, and two would race.
        let dial = Dial::new(self.setup.node == NodeId::B, self.now);
        let key = self
            .resources
            .insert(Resource::new(setup, engine, dial, self.now));
        self.by_id.insert(resource, key);
        if let Some(resource) = self.resources.get_mut(key) {
            resource.listener = Some(listener);
        }
        self.arm_nbd_accept(key);
    }

    fn remove(&mut self, id: ResourceId) {
        let Some(key) = self.by_id.remove(&id) else {
            self.sink.tell(ShardEvent::Removed { resource: id });
            return;
        };
        self.drop_clients(key);
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        resource.removing = true;
        resource.attaching = None;
        resource.listener = None;
        if let Accept::InFlight(operation) = resource.accept {
            self.backend.cancel(operation);
        }
        if let Err(error) = std::fs::remove_file(&resource.setup.nbd_socket) {
            let path = resource.setup.nbd_socket.display();
            tracing::warn!(%path, %error, "removing the NBD socket");
        }
        for link in [resource.link, resource.dial.attempt].into_iter().flatten() {
            self.close_link(link);
        }
        self.end_removal(key);
    }

    /// Lets go of a removed resource once nothing can land on its devices any more.
    pub(super) fn end_removal(&mut self, key: Key) {
        let idle = |resource: &Resource| resource.removing && resource.operations_in_flight() == 0;
        if !self.resources.get(key).is_some_and(idle) {
            return;
        }
        if let Some(resource) = self.resources.remove(key) {
            let id = resource.setup.resource;
            // Closes the devices before anybody is told.
            drop(resource);
            self.sink.publish(id, None);
            self.sink.tell(ShardEvent::Removed { resource: id });
        }
    }

    fn attach(&mut self, id: ResourceId, setup: AttachSetup) {
        let Some(&key) = self.by_id.get(&id) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        resource.attaching = Some(Attaching {
            setup,
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
        let devices = if closing {
            // Its own last operations hold the lock.
            let path = attaching.setup.disk.clone();
            Err(OpenError::InUse { path })
        } else {
            Disk::open(&attaching.setup.disk)
                .and_then(|disk| Disk::open(&attaching.setup.meta).map(|meta| (disk, meta)))
        };
        let (disk, meta) = match devices {
            Ok(devices) => devices,
            Err(error) if error.is_transient() && self.now < attaching.give_up_at => {
                if !attaching.waiting {
                    tracing::info!(name = resource.setup.name, %error, "attach waits");
                }
                attaching.waiting = true;
                attaching.retry_at = self.now.plus(ATTACH_PAUSE);
                resource.attaching = Some(attaching);
                return;
            }
            Err(error) => {
                resource.attach_error = Some(AttachFailure::Open(error.clone()));
                let resource = resource.setup.resource;
                self.sink.tell(ShardEvent::OpenFailed { resource, error });
                return;
            }
        };
        let request = AttachRequest {
            device_len: usable_len(disk.len(), attaching.setup.size_max),
            meta_len: meta.len(),
            boot_id: self.setup.boot_id,
            marked_failed: attaching.setup.stored.failed,
            expected_replica: attaching.setup.stored.replica,
            seal: attaching.setup.stored.seal,
        };
        let place = Place::of(key);
        let (disk_tokens, meta_tokens) = (Owner::Disk(place).token(), Owner::Meta(place).token());
        resource.disk = Some(DiskQueue::new(disk, self.pool.clone(), disk_tokens));
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

fn usable_len(device: ByteLen, size_max: Option<u64>) -> ByteLen {
    let len = size_max.map_or(device.0, |max| device.0.min(max));
    ByteLen(len - len % BLOCK_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usable_length_is_whole_blocks_of_the_configured_size_at_most() {
        let usable = |device, max| usable_len(ByteLen(device), max).0;
        assert_eq!(usable(10_000, None), 8192);
        assert_eq!(usable(1 << 20, Some(8192)), 8192);
        assert_eq!(usable(4096, Some(1 << 20)), 4096);
    }
}
