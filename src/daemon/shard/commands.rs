//! Commands of the rest of the daemon.

use std::path::PathBuf;

use replicator::engine::{AdminRequest, Input};
use replicator::io::Socket;
use replicator::types::{NodeId, ResourceId};

use super::resource::{Accept, Dial, Resource};
use super::slots::Key;
use super::{Shard, nbd};
use crate::daemon::api::{InheritedSocket, ResourceSetup, ShardCommand, ShardEvent};

impl Shard {
    pub(super) fn on_command(&mut self, command: ShardCommand) {
        match command {
            ShardCommand::Add(setup) => self.add(*setup),
            ShardCommand::Remove { resource } => self.remove(resource),
            ShardCommand::Attach { resource, setup } => self.attach(resource, *setup),
            ShardCommand::Opened {
                resource,
                order,
                devices,
            } => self.on_opened(resource, order, devices.map(|it| *it)),
            ShardCommand::Measure { resource, meta } => self.measure(resource, meta),
            ShardCommand::Engine { resource, input } => self.input_for(resource, *input),
            ShardCommand::MarkDone {
                resource,
                op,
                result,
            } => {
                self.input_for(resource, Input::MarkDone { op, result });
            }
            ShardCommand::Called { forward, answer } => {
                self.on_called(Key::from_u64(forward), answer);
            }
            ShardCommand::Forwarded { resource, stream } => self.on_forwarded(resource, stream),
            ShardCommand::NbdAccess(access) => self.set_access(*access),
            ShardCommand::KeepListeners => self.keep_listeners(),
            ShardCommand::Stop => self.stopping = true,
        }
    }

    /// For a resource that was just removed the command is late, and void.
    fn input_for(&mut self, resource: ResourceId, input: Input) {
        if let Some(&key) = self.by_id.get(&resource) {
            if let Input::Learned(view) = &input {
                self.note_view(key, view);
            }
            let detach = matches!(input, Input::Admin(AdminRequest::Detach));
            if let Some(resource) = self.resources.get_mut(key).filter(|it| !it.removing) {
                self.inputs.push_back((key, input));
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
        let door = self.open_door(&setup.nbd_socket);
        let (own, awaited) = door
            .as_ref()
            .map_or((true, false), |it| (it.own, it.awaited));
        let listener = match door {
            Some(door) => Ok(door.socket),
            None => nbd::listen(self.backend.as_ref(), &setup.nbd_socket),
        };
        let listener = match listener {
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
            resource.own_listener = own;
        }
        self.tell_of_listener(key, own);
        self.begin_to_accept(key, awaited);
    }

    fn remove(&mut self, id: ResourceId) {
        let Some(&key) = self.by_id.get(&id) else {
            self.sink.tell(ShardEvent::Removed { resource: id });
            return;
        };
        if self.resources.get(key).is_none_or(|it| it.removing) {
            // Told once, when it is gone.
            return;
        }
        self.drop_clients(key);
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        resource.removing = true;
        resource.attaching = None;
        let listener = resource.listener.take();
        if let Accept::InFlight(operation) = resource.accept {
            self.backend.cancel(operation);
        }
        let path = resource.setup.nbd_socket.clone();
        let own = resource.own_listener;
        for link in [resource.link, resource.dial.attempt].into_iter().flatten() {
            self.close_link(link);
        }
        self.leave_listener(path, listener, own);
        self.end_removal(key);
    }

    /// A socket of ours goes with its path; one of a socket unit stays.
    fn leave_listener(&mut self, path: PathBuf, listener: Option<Socket>, own: bool) {
        if self.keeps_listeners {
            return;
        }
        if own {
            if let Err(error) = std::fs::remove_file(&path) {
                let path = path.display();
                tracing::warn!(%path, %error, "removing the NBD socket");
            }
        } else if let Some(socket) = listener {
            self.keep_door(InheritedSocket {
                path,
                socket,
                own,
                awaited: false,
            });
        }
    }

    /// Lets go of a removed resource once nothing can land on its devices any more. It keeps its id
    /// until then: what is told at its end must not be taken for the end of another instance.
    pub(super) fn end_removal(&mut self, key: Key) {
        let idle = |resource: &Resource| resource.removing && resource.operations_in_flight() == 0;
        if !self.resources.get(key).is_some_and(idle) {
            return;
        }
        if let Some(resource) = self.resources.remove(key) {
            let id = resource.setup.resource;
            self.by_id.remove(&id);
            // Closes the devices before anybody is told.
            drop(resource);
            self.sink.publish(id, None);
            self.sink.tell(ShardEvent::Removed { resource: id });
        }
    }
}
