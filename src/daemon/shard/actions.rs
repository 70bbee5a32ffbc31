//! Carrying out what engines ask for, and bringing the answers back.

use replicator::engine::{Action, Event, Input};
use replicator::io::{Completion, DiskQueue};
use replicator::types::DiskError;

use super::Shard;
use super::slots::Key;
use super::token::Place;
use crate::daemon::api::{AttachFailure, ShardEvent};

impl Shard {
    pub(super) fn act(&mut self, key: Key, action: Action) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        match action {
            Action::Disk { op, command } => match resource.disk_in_use() {
                Some(queue) => queue.begin(self.backend.as_mut(), op, command),
                None => {
                    let result = Err(DiskError::Gone);
                    self.inputs.push_back((key, Input::DiskDone { op, result }));
                }
            },
            Action::Meta { op, request } => match resource.meta_in_use() {
                Some(queue) => queue.begin(self.backend.as_mut(), op, request),
                None => {
                    let result = Err(DiskError::Gone);
                    self.inputs.push_back((key, Input::MetaDone { op, result }));
                }
            },
            Action::Mark { op, mark } => {
                let resource = resource.setup.resource;
                self.sink.tell(ShardEvent::Mark { resource, op, mark });
            }
            Action::Send { session, message } => self.send_message(key, session, &message),
            Action::CloseLink { session, reason } => self.close_session(key, session, reason),
            Action::Complete { request, result } => self.complete_request(request, result),
            Action::DropClients => self.drop_clients(key),
            Action::Event(event) => self.on_event(key, event),
        }
    }

    fn on_event(&mut self, key: Key, event: Event) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        resource.note_change();
        match &event {
            Event::Attached(Ok(_)) => {
                resource.attach_error = None;
                resource.failed_place = None;
            }
            Event::Attached(Err(error)) => {
                resource.attach_error = Some(AttachFailure::Engine(*error));
                resource.let_go();
            }
            // Of a metadata area that failed no volume's disk is blamed.
            Event::DiskFailed(DiskError::Timeout) => {
                resource.failed_place = resource.disk.as_ref().and_then(DiskQueue::slowest);
            }
            Event::DiskFailed(_) => resource.failed_place = resource.blamed,
            Event::Detached => resource.let_go(),
            _ => {}
        }
        let resource = resource.setup.resource;
        self.sink.tell(ShardEvent::Engine { resource, event });
    }

    /// Who is in the place now, unless the completion is of somebody before.
    fn resource_in(&self, place: Place) -> Option<Key> {
        let key = self
            .resources
            .key_at(place.index)
            .filter(|key| Place::of(*key) == place);
        if key.is_none() {
            tracing::error!(?place, "completion on a device of a resource that is gone");
        }
        key
    }

    pub(super) fn on_disk(&mut self, place: Place, completion: Completion) {
        let Some(key) = self.resource_in(place) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        let Some(queue) = &mut resource.disk else {
            return;
        };
        if let Some((op, result)) = queue.on_completion(self.backend.as_mut(), completion) {
            if let (Err(_), Some(failed)) = (&result, queue.failed()) {
                resource.errors.push((op, failed));
            }
            self.inputs.push_back((key, Input::DiskDone { op, result }));
        }
        resource.close_when_idle();
        self.end_removal(key);
    }

    pub(super) fn on_meta(&mut self, place: Place, completion: Completion) {
        let Some(key) = self.resource_in(place) else {
            return;
        };
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        let Some(queue) = &mut resource.meta else {
            return;
        };
        for (op, result) in queue.on_completion(self.backend.as_mut(), completion) {
            self.inputs.push_back((key, Input::MetaDone { op, result }));
        }
        resource.close_when_idle();
        self.end_removal(key);
    }
}
