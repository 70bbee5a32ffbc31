//! NBD sockets that are there before their resource is, or after it: what this process was started
//! with, and what belongs to a socket unit and outlives `down`.
//!
//! Invariant: on a socket whose resource is not up, and is not about to be, nobody is left waiting:
//! who comes is closed at once.

use core::time::Duration;
use std::path::Path;

use nix::errno::Errno;
use replicator::io::{Completion, Done, Op, OpKey, Socket};
use replicator::types::{Instant, Role};

use super::nbd::ACCEPT_PAUSE;
use super::resource::{Accept, Resource};
use super::slots::Key;
use super::token::Owner;
use super::{Shard, Timer};
use crate::daemon::api::{InheritedSocket, ShardEvent};

/// After a restart clients wait so long for this node to serve again before they are told that it does
/// not: less than the second within which everybody is to have an answer.
const RETURN_PATIENCE: Duration = Duration::from_millis(900);

/// One such socket.
pub(super) struct Door {
    socket: InheritedSocket<Socket>,
    /// Of the accept in flight; none while its resource is awaited.
    turning_away: Option<OpKey>,
}

impl Shard {
    pub(super) fn set_up_doors(&mut self) -> Result<(), Errno> {
        for inherited in std::mem::take(&mut self.setup.doors) {
            let InheritedSocket {
                path,
                socket,
                own,
                awaited,
            } = inherited;
            let socket = self.backend.adopt(socket)?;
            self.keep_door(InheritedSocket {
                path,
                socket,
                own,
                awaited,
            });
        }
        Ok(())
    }

    /// Nobody is behind that socket now.
    pub(super) fn keep_door(&mut self, socket: InheritedSocket<Socket>) {
        let awaited = socket.awaited;
        let key = self.doors.insert(Door {
            socket,
            turning_away: None,
        });
        if awaited {
            self.timers.insert((self.return_end(), Timer::Door(key)));
        } else {
            self.turn_away(key);
        }
    }

    /// Its resource is not there, or not in time.
    pub(super) fn turn_away(&mut self, key: Key) {
        if self.keeps_listeners {
            return;
        }
        let Some(door) = self.doors.get_mut(key) else {
            return;
        };
        let listener = door.socket.socket.clone();
        let accept = Op::Accept { listener };
        let token = Owner::Door(key).token();
        door.turning_away = Some(self.backend.submit(token, accept));
    }

    pub(super) fn on_turned_away(&mut self, key: Key, completion: Completion) {
        match completion.result {
            // Closes it.
            Ok(Done::Accepted(stranger)) => drop(stranger),
            Ok(Done::Count(_)) | Err(Errno::ECONNABORTED) => {}
            Err(_) => {
                // No descriptor left: not at once. For one whose resource is up now this is void.
                let at = self.now.plus(ACCEPT_PAUSE);
                if let Some(door) = self.doors.get_mut(key) {
                    door.turning_away = None;
                    self.timers.insert((at, Timer::Door(key)));
                }
                return;
            }
        }
        self.turn_away(key);
    }

    /// The socket at `path`, if there is one; whoever waits in it goes on waiting.
    pub(super) fn open_door(&mut self, path: &Path) -> Option<InheritedSocket<Socket>> {
        let key = self.doors.keys_where(|door| door.socket.path == path);
        let door = self.doors.remove(*key.first()?)?;
        if let Some(accept) = door.turning_away {
            self.backend.cancel(accept);
        }
        Some(door.socket)
    }

    /// From when on clients are accepted: at once, or, right after a restart, once this node serves.
    pub(super) fn begin_to_accept(&mut self, key: Key, awaited: bool) {
        if !awaited {
            return self.arm_nbd_accept(key);
        }
        let until = self.now.plus(RETURN_PATIENCE);
        if let Some(resource) = self.resources.get_mut(key) {
            resource.accept = Accept::UntilPrimary(until);
        }
    }

    /// This node serves, or it is known that it does not: who waits is let in.
    pub(super) fn look_at_returning(&mut self, key: Key) {
        let Some(resource) = self.resources.get(key).filter(|it| it.is_awaited()) else {
            return;
        };
        let snapshot = resource.snapshot();
        let serves = resource.role() == Role::Primary && snapshot.size_blocks.is_some();
        if serves {
            self.arm_nbd_accept(key);
        }
        if serves || snapshot.peer_role == Role::Primary {
            self.let_tcp_clients_in();
        }
    }

    /// Once all are here that are to come: one listener serves clients of all resources.
    fn let_tcp_clients_in(&mut self) {
        let comes = |resource: &Resource| {
            resource.is_awaited() && resource.snapshot().peer_role != Role::Primary
        };
        let awaits = |door: &Door| door.socket.awaited && door.turning_away.is_none();
        if !self.resources.iter().any(|(_, it)| comes(it))
            && !self.doors.iter().any(|(_, door)| awaits(door))
        {
            self.arm_tcp_accept();
        }
    }

    /// Until when the TCP listener waits, if it does.
    pub(super) fn return_end(&self) -> Instant {
        self.now.plus(RETURN_PATIENCE)
    }

    /// Clients that come from now on wait for the next life of this daemon; the sockets stay.
    pub(super) fn keep_listeners(&mut self) {
        self.keeps_listeners = true;
        let mut accepts: Vec<OpKey> = Vec::new();
        for key in self.resources.keys_where(|_| true) {
            if let Some(resource) = self.resources.get_mut(key)
                && let Accept::InFlight(accept) =
                    std::mem::replace(&mut resource.accept, Accept::Idle)
            {
                accepts.push(accept);
            }
        }
        accepts.extend(self.doors.iter().filter_map(|(_, door)| door.turning_away));
        accepts.extend(self.tcp_accept.take());
        for accept in accepts {
            self.backend.cancel(accept);
        }
    }

    /// Tells of a socket, so that it can be kept.
    pub(super) fn tell_of_listener(&self, key: Key, own: bool) {
        let Some(resource) = self.resources.get(key) else {
            return;
        };
        let Some(Ok(fd)) = resource.listener.as_ref().map(Socket::try_clone) else {
            return;
        };
        self.sink.tell(ShardEvent::Listening {
            resource: resource.setup.resource,
            path: resource.setup.nbd_socket.clone(),
            fd,
            own,
        });
    }
}
