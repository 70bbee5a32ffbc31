//! Links to the peer: listening, dialling, preambles, and what engines say to each other.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use core::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt,
};
use replicator::engine::{CloseReason, Input, LinkDownReason};
use replicator::io::{Completion, Done, Op, Socket};
use replicator::protocol::preamble::{Preamble, PreambleReply, PreambleStatus, VersionRange};
use replicator::protocol::{Message, Opening, Purpose};
use replicator::types::SessionId;

use super::client::GUEST_BYTES_MAX;
use super::link::{Arrived, Link, LinkPhase, Receive};
use super::secure_link::Opened;
use super::slots::Key;
use super::tcp::peer_address;
use super::token::Owner;
use super::{Shard, Timer};
use crate::daemon::api::ShardEvent;
use crate::daemon::relay_door::{Call, Knock};

/// Time for connecting, and for each side's part of the preamble. A path that needs longer is of no
/// use for mirroring.
const SET_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for what is queued to go out when this side closes.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that have not said who they are; the oldest gives way. The peer has one per
/// resource.
const STRANGERS_MAX: usize = 64;
/// Bytes received from the peer beyond which nothing more is received from it until some come back:
/// its windows are far below the half of it, so this only stops one that ignores them. The other
/// half may be held by guests that read from the peer's disk and do not take their answers.
const RECEIVED_BYTES_MAX: usize = 2 * GUEST_BYTES_MAX;

/// A listening TCP socket.
pub(super) struct Listener {
    socket: Socket,
}

impl Shard {
    pub(super) fn listen_for_links(&mut self, listeners: Vec<TcpListener>) -> io::Result<()> {
        for (index, listener) in (0..).zip(listeners) {
            let socket = self.backend.adopt(OwnedFd::from(listener))?;
            self.link_listeners.push(Listener { socket });
            self.arm_link_accept(index);
        }
        Ok(())
    }

    fn arm_link_accept(&mut self, index: u32) {
        if let Some(listener) = self.link_listeners.get(index as usize) {
            let accept = Op::Accept {
                listener: listener.socket.clone(),
            };
            self.backend
                .submit(Owner::LinkAccept { listener: index }.token(), accept);
        }
    }

    pub(super) fn on_link_accepted(&mut self, index: u32, completion: Completion) {
        match completion.result {
            Ok(Done::Accepted(socket)) => self.begin_incoming(socket),
            Ok(Done::Count(_)) | Err(Errno::ECONNABORTED) => {}
            // Out of descriptors or memory: not for long, and the peer dials again. The next
            // attempt waits in the kernel until somebody connects.
            Err(errno) => tracing::warn!(%errno, "accepting a connection of the peer"),
        }
        self.arm_link_accept(index);
    }

    fn begin_incoming(&mut self, socket: Socket) {
        let strangers = self
            .links
            .keys_where(|link| link.phase == LinkPhase::AwaitPreamble);
        // Those of the peer's addresses last, then the oldest.
        let rank = |key: &Key| self.links.get(*key).map(|link| (link.of_peer, link.born));
        if strangers.len() >= STRANGERS_MAX
            && let Some(oldest) = strangers.into_iter().min_by_key(rank)
        {
            self.drop_link(oldest);
        }
        send_at_once(&socket);
        let from = peer_address(&socket).map(|it| it.ip());
        let of_peer = from.is_some_and(|ip| {
            let mut all = self.setup.peer_addresses.iter();
            all.any(|address| address.ip().to_canonical() == ip)
        });
        let born = self.next_born();
        let mut link = Link::new(
            socket,
            None,
            LinkPhase::AwaitPreamble,
            born,
            &self.link_pool,
        );
        link.of_peer = of_peer;
        let key = self.links.insert(link);
        self.timers
            .insert((self.now.plus(SET_UP_TIMEOUT), Timer::Link(key)));
        self.pump_link(key);
    }

    /// Dials the peer for a resource, by the path whose turn it is.
    pub(super) fn dial(&mut self, resource_key: Key) {
        let Some(resource) = self.resources.get_mut(resource_key) else {
            return;
        };
        if !resource.wants_dial(self.now) || self.setup.peer_addresses.is_empty() {
            return;
        }
        let addresses = &self.setup.peer_addresses;
        let address = addresses[resource.dial.address % addresses.len()];
        let socket = match fresh_socket(address).and_then(|fd| self.backend.adopt(fd)) {
            Ok(socket) => socket,
            Err(errno) => {
                tracing::warn!(%errno, "no socket to dial with");
                resource.dial.note_failure(self.now);
                return;
            }
        };
        send_at_once(&socket);
        self.sessions_dialled = self.sessions_dialled.wrapping_add(1);
        let session = session_id(self.setup.incarnation, self.sessions_dialled);
        let phase = LinkPhase::AwaitReply { session };
        self.connections += 1;
        let born = self.connections;
        let key = self.links.insert(Link::new(
            socket.clone(),
            Some(resource_key),
            phase,
            born,
            &self.link_pool,
        ));
        let address = Box::new(SockaddrStorage::from(address));
        let connect = Op::Connect { socket, address };
        let operation = self
            .backend
            .submit(Owner::LinkConnect(key).token(), connect);
        if let Some(link) = self.links.get_mut(key) {
            link.phase = LinkPhase::Connecting { operation, session };
        }
        resource.dial.attempt = Some(key);
        self.timers
            .insert((self.now.plus(SET_UP_TIMEOUT), Timer::Link(key)));
    }

    pub(super) fn on_link_connected(&mut self, key: Key, completion: &Completion) {
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        let LinkPhase::Connecting { session, .. } = link.phase else {
            return;
        };
        if let Err(errno) = completion.count() {
            tracing::debug!(%errno, "the peer cannot be reached");
            self.drop_link(key);
            return;
        }
        match self.secure_opening() {
            None => self.introduce(key, session),
            Some(opening) => {
                if let Some(link) = self.links.get_mut(key) {
                    link.phase = LinkPhase::AwaitTls { session };
                    link.push_bytes(&opening);
                }
                self.note_dirty_link(key);
            }
        }
        self.pump_link(key);
    }

    pub(super) fn on_link_received(&mut self, key: Key, completion: Completion) {
        let count = completion.count();
        let Op::Recv { buf, start, .. } = completion.op else {
            return;
        };
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        link.end_receive(buf, start, count.unwrap_or(0));
        match count {
            Ok(0) => self.lose_link(key, LinkDownReason::Closed),
            Ok(_) => self.pump_link(key),
            Err(errno) => {
                tracing::debug!(%errno, "receiving from the peer");
                self.lose_link(key, LinkDownReason::Broken);
            }
        }
    }

    /// Takes everything complete off the stream, then receives more.
    pub(super) fn pump_link(&mut self, key: Key) {
        loop {
            let Some(link) = self.links.get_mut(key) else {
                return;
            };
            if link.closing {
                return;
            }
            if self.link_pool.out_bytes() > RECEIVED_BYTES_MAX {
                self.note_starved(Owner::LinkRecv(key));
                return;
            }
            match link.next(&self.link_pool) {
                Ok(Some(arrived)) => self.on_arrived(key, arrived),
                Ok(None) => match self.open_link(key) {
                    Opened::More => {}
                    Opened::All => break,
                    Opened::Wait => return,
                },
                Err(error) => {
                    tracing::warn!(%error, "the peer sent something that is no frame");
                    self.lose_link(key, LinkDownReason::BadFrame);
                    return;
                }
            }
        }
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        if let Some(Receive {
            buf,
            start,
            end,
            fill,
        }) = link.begin_receive()
        {
            let receive = Op::Recv {
                socket: link.socket.clone(),
                buf,
                start,
                end,
                fill,
            };
            self.backend.submit(Owner::LinkRecv(key).token(), receive);
        }
    }

    fn on_arrived(&mut self, key: Key, arrived: Arrived) {
        match arrived {
            Arrived::Preamble(bytes) => match Opening::parse(&bytes) {
                Ok(Opening::Link(preamble)) => self.on_preamble(key, &preamble),
                Ok(Opening::Relay(preamble)) => self.hand_call_over(key, Call::Relay(preamble)),
                Ok(Opening::Forward(preamble)) => {
                    self.hand_call_over(key, Call::Forward(preamble));
                }
                Ok(Opening::Secure(opening)) if opening.purpose == Purpose::Link => {
                    self.on_secure_opening(key, &opening);
                }
                Ok(Opening::Secure(opening)) => self.hand_call_over(key, Call::Secure(opening)),
                Err(error) => {
                    tracing::warn!(%error, "a connection to the data port is not the peer's");
                    self.drop_link(key);
                }
            },
            Arrived::Reply(bytes) => match PreambleReply::parse(&bytes) {
                Ok(reply) => self.on_reply(key, reply),
                Err(error) => {
                    tracing::warn!(%error, "the peer's address is somebody else's");
                    self.drop_link(key);
                }
            },
            Arrived::Frame(session, message) => {
                let Some(link) = self.links.get(key) else {
                    return;
                };
                // R21: a frame of another session than its connection's is late or foreign.
                if link.session() != Some(session) {
                    tracing::warn!(session = session.0, "frame of another session");
                    self.lose_link(key, LinkDownReason::BadFrame);
                } else if let Some(resource) = link.resource {
                    self.inputs
                        .push_back((resource, Input::Received { session, message }));
                }
            }
        }
    }

    /// The peer dialled and says what for.
    fn on_preamble(&mut self, key: Key, preamble: &Preamble) {
        let within_tls = self.links.get(key).is_some_and(|it| it.tls.is_some());
        let (status, resource) = self.judge(preamble, within_tls);
        let version = preamble.versions.newest_common(VersionRange::OURS);
        let reply = PreambleReply {
            status,
            version: version.unwrap_or(VersionRange::OURS.max),
        };
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        link.push_bytes(&reply.encode());
        self.note_dirty_link(key);
        match resource {
            Some(resource) => self.link_is_up(key, resource, preamble.session),
            None => {
                tracing::info!(?status, "the peer's connection is refused");
                self.close_link(key);
            }
        }
    }

    /// A request of a control socket or an NBD client, not a data link. The control thread judges it;
    /// of this loop that takes nothing but these bytes.
    fn hand_call_over(&mut self, key: Key, call: Call) {
        let Some(link) = self.links.get(key) else {
            return;
        };
        // Who asks waits for an answer before it says more. What was received here could not be
        // handed over.
        if !link.is_taken() || link.tls.is_some() {
            tracing::warn!("what is passed on came without waiting for the answer");
            return self.drop_link(key);
        }
        match link.socket.as_fd().try_clone_to_owned() {
            Ok(stream) => {
                // No operation is in flight on it, so nothing more happens to it here; not shut
                // down, as that would end it for its new owner too.
                self.links.remove(key);
                self.sink.tell(ShardEvent::Call(Knock { stream, call }));
            }
            Err(error) => {
                tracing::warn!(%error, "what is passed on is dropped");
                self.drop_link(key);
            }
        }
    }

    fn judge(&self, preamble: &Preamble, within_tls: bool) -> (PreambleStatus, Option<Key>) {
        if preamble
            .versions
            .newest_common(VersionRange::OURS)
            .is_none()
        {
            return (PreambleStatus::Version, None);
        }
        if preamble.cluster != self.setup.cluster {
            return (PreambleStatus::Cluster, None);
        }
        if !self.setup.node.is_data() || preamble.from != self.setup.node.peer() {
            return (PreambleStatus::Node, None);
        }
        if !within_tls && self.secure_opening().is_some() {
            return (PreambleStatus::Tls, None);
        }
        let Some(&key) = self.by_id.get(&preamble.resource) else {
            return (PreambleStatus::Resource, None);
        };
        match self.resources.get(key) {
            Some(resource) if resource.wants_link() => (PreambleStatus::Accepted, Some(key)),
            _ => (PreambleStatus::Busy, None),
        }
    }

    fn on_reply(&mut self, key: Key, reply: PreambleReply) {
        let Some(link) = self.links.get(key) else {
            return;
        };
        let (session, resource) = match (link.phase, link.resource) {
            (LinkPhase::AwaitTls { session }, Some(_))
                if reply.status == PreambleStatus::Accepted =>
            {
                return self.begin_dialled_tls(key, session);
            }
            (
                LinkPhase::AwaitTls { session } | LinkPhase::AwaitReply { session },
                Some(resource),
            ) => (session, resource),
            _ => return self.drop_link(key),
        };
        match reply.status {
            PreambleStatus::Accepted => self.link_is_up(key, resource, session),
            PreambleStatus::Tls => {
                tracing::warn!(
                    "the peer refuses the connection: [net] tls is set there otherwise than here"
                );
                self.drop_link(key);
            }
            PreambleStatus::Busy | PreambleStatus::Resource => {
                tracing::debug!(status = ?reply.status, "the peer does not take the connection yet");
                self.drop_link(key);
            }
            status => {
                tracing::warn!(
                    ?status,
                    version = reply.version,
                    "the peer refuses the connection"
                );
                self.drop_link(key);
            }
        }
    }

    fn link_is_up(&mut self, key: Key, resource_key: Key, session: SessionId) {
        let Some(resource) = self.resources.get_mut(resource_key) else {
            return self.drop_link(key);
        };
        resource.dial.note_up(self.now);
        let old = resource.link.replace(key);
        if let Some(link) = self.links.get_mut(key) {
            link.phase = LinkPhase::Up { session };
            link.resource = Some(resource_key);
        }
        // The peer dials again only when it lost the old one: this side has not noticed yet.
        if let Some(old) = old.filter(|&old| old != key) {
            self.lose_link(old, LinkDownReason::Closed);
        }
        self.inputs
            .push_back((resource_key, Input::LinkUp { session }));
    }

    /// Queues a message, if its session is still the connected one.
    pub(super) fn send_message(&mut self, key: Key, session: SessionId, message: &Message) {
        let Some(resource) = self.resources.get(key) else {
            return;
        };
        let view = resource.view();
        let Some(link_key) = resource.link else {
            return;
        };
        let Some(link) = self.links.get_mut(link_key) else {
            return;
        };
        if link.session() == Some(session) && !link.closing {
            self.fresh_mirrored_writes += usize::from(matches!(message, Message::Data { .. }));
            link.push(session, view, message);
            self.note_dirty_link(link_key);
        }
    }

    /// The engine closes its session; what it sent before still goes out.
    pub(super) fn close_session(&mut self, key: Key, session: SessionId, reason: CloseReason) {
        let of_session =
            |link: &Link| link.resource == Some(key) && link.session() == Some(session);
        for link in self.links.keys_where(of_session) {
            tracing::info!(
                session = session.0,
                ?reason,
                "closing the connection to the peer"
            );
            self.close_link(link);
        }
    }

    /// Sends what is queued, then closes. Its resource is without a link from here on.
    pub(super) fn close_link(&mut self, key: Key) {
        self.forget_link(key);
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        if matches!(link.phase, LinkPhase::Connecting { .. }) {
            return self.drop_link(key);
        }
        link.closing = true;
        self.timers
            .insert((self.now.plus(FAREWELL_TIMEOUT), Timer::Link(key)));
        self.note_dirty_link(key);
    }

    /// The stream ended: the engine is told if it was a session's.
    pub(super) fn lose_link(&mut self, key: Key, reason: LinkDownReason) {
        if let Some(link) = self.links.get(key).filter(|link| !link.closing)
            && let (Some(session), Some(resource)) = (link.session(), link.resource)
        {
            self.inputs
                .push_back((resource, Input::LinkDown { session, reason }));
            self.drop_forwards_at_link_end(resource);
        }
        self.drop_link(key);
    }

    pub(super) fn drop_link(&mut self, key: Key) {
        self.forget_link(key);
        if let Some(link) = self.links.remove(key) {
            if let LinkPhase::Connecting { operation, .. } = link.phase {
                self.backend.cancel(operation);
            }
            link.socket.shutdown();
        }
    }

    /// Its resource has no link any more; the dialling side tries again later.
    fn forget_link(&mut self, key: Key) {
        let resource = self.links.get(key).and_then(|link| link.resource);
        let Some(resource) = resource.and_then(|key| self.resources.get_mut(key)) else {
            return;
        };
        if resource.link.take_if(|link| *link == key).is_some() {
            resource.dial.note_lost(self.now);
        } else if resource.dial.attempt == Some(key) {
            resource.dial.note_failure(self.now);
        }
    }

    pub(super) fn note_dirty_link(&mut self, key: Key) {
        if let Some(link) = self.links.get_mut(key).filter(|link| !link.dirty) {
            link.dirty = true;
            self.dirty_links.push(key);
        }
    }

    pub(super) fn flush_link(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        link.dirty = false;
        if let Some(secure) = &mut link.tls
            && link.queue.is_idle()
        {
            secure.tls.seal(|bytes| link.queue.push(bytes));
        }
        if let Some(batch) = link.queue.begin_send() {
            let send = Op::Send {
                socket: link.socket.clone(),
                batch,
            };
            self.backend.submit(Owner::LinkSend(key).token(), send);
        } else if link.closing && link.queue.is_idle() {
            self.drop_link(key);
        }
    }

    pub(super) fn on_link_sent(&mut self, key: Key, completion: Completion) {
        let count = completion.count();
        let Op::Send { batch, .. } = completion.op else {
            return;
        };
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        let len = batch.len();
        link.queue.end_send(batch);
        if count == Ok(len) {
            self.note_dirty_link(key);
        } else {
            self.lose_link(key, LinkDownReason::Broken);
        }
    }

    pub(super) fn on_link_timer(&mut self, key: Key) {
        let Some(link) = self.links.get(key) else {
            return;
        };
        if link.closing || link.session().is_none() {
            self.drop_link(key);
        }
    }
}

/// Never reused by this side: another process has other high bits, this one counts.
fn session_id(incarnation: u128, nr: u32) -> SessionId {
    let [a, b, c, d, ..] = incarnation.to_le_bytes();
    SessionId(u64::from(u32::from_le_bytes([a, b, c, d])) << 32 | u64::from(nr))
}

fn fresh_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// Frames are queued for a whole turn already; the kernel need not wait for more.
pub(super) fn send_at_once(socket: &Socket) {
    if let Err(errno) = setsockopt(socket, sockopt::TcpNoDelay, &true) {
        tracing::debug!(%errno, "TCP_NODELAY");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_and_two_sessions_of_one_have_different_ids() {
        assert_ne!(session_id(1, 1), session_id(1, 2));
        assert_ne!(session_id(1, 1), session_id(2, 1));
    }
}
