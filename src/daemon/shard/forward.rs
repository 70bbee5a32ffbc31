//! NBD clients of a Secondary that are passed on to the Primary (`forward`).
//!
//! The bytes are not looked at: the Primary's session is the one that counts, with its gate (R2) and
//! its refusals. One buffer a direction, filled, then sent, then filled again: a side that does not
//! read stops the other one, and nothing else. The call to the Primary is made by a thread of its
//! own, and comes back as a command.
//!
//! Invariant: a client is never passed on by a node that serves, nor on behalf of a process that may
//! have written here before this node was superseded ([`Resource::may_forward`]). It is cut off when this
//! node becomes Primary and when the data link ends, and comes again.
//!
//! [`Resource::may_forward`]: super::resource::Resource::may_forward

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use replicator::io::{AlignedBuf, Completion, Op, SendBatch, SendQueue, Socket};
use replicator::protocol::{ForwardPreamble, PreambleReply, PreambleStatus, VersionRange};
use replicator::types::{ResourceId, Role, View};

use super::Shard;
use super::client::Client;
use super::slots::Key;
use super::tls::Tls;
use super::token::Owner;
use crate::daemon::api::{NbdClient, ShardCommand, ShardHandle};
use crate::daemon::forward;
use crate::daemon::origin::process_began;
use crate::daemon::wire::Wire;

/// Clients passed on at once, of all resources: a guest that migrates has a connection or a few, each
/// takes a privileged port, and with [`BUFFER_LEN`], received and copied to be sent, this bounds their
/// memory to 32 MiB.
const FORWARDS_MAX: usize = 128;
/// Bytes on their way, each direction.
const BUFFER_LEN: usize = 64 << 10;

/// One client that is passed on.
pub(super) struct Forward {
    resource: Key,
    identity: NbdClient,
    stage: Stage,
}

enum Stage {
    /// The Primary is being called.
    Calling(Socket),
    /// The client, and the Primary.
    Open(Box<[End; 2]>),
}

/// One of the two connections.
struct End {
    socket: Socket,
    /// What the other end sent.
    queue: SendQueue,
    /// Within which it is, towards the Primary.
    tls: Option<Box<Tls>>,
    /// Of the direction that begins here; `None` while a receive is in flight.
    buffer: Option<AlignedBuf>,
    /// Nothing comes from here any more.
    ended: bool,
    /// It was told within TLS that nothing more goes there.
    told_end: bool,
}

/// Which of the two ends an operation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Primary,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Primary,
            Self::Primary => Self::Client,
        }
    }
}

impl End {
    fn push(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.queue.push(bytes),
            Some(tls) => tls.push(bytes),
        }
    }

    fn begin_send(&mut self) -> Option<SendBatch> {
        if let Some(tls) = &mut self.tls
            && self.queue.is_idle()
        {
            tls.seal(|bytes| self.queue.push(bytes));
        }
        self.queue.begin_send()
    }

    /// What is in bytes that were received here, or `None` if they are no good.
    fn open(&mut self, received: &[u8]) -> Option<Vec<u8>> {
        let Some(tls) = &mut self.tls else {
            return Some(received.to_vec());
        };
        let mut inside = tls.take_kept();
        let mut piece = Vec::new();
        let mut rest = received;
        while !rest.is_empty() {
            let taken = tls.open(rest, &mut piece).ok()?;
            rest = &rest[taken..];
            inside.append(&mut piece);
        }
        self.ended |= tls.has_ended();
        Some(inside)
    }

    /// Nothing more goes to it: what says so within TLS, if it has not been said.
    fn begin_farewell(&mut self) -> Option<SendBatch> {
        let tls = self.tls.as_mut().filter(|_| !self.told_end)?;
        tls.say_farewell();
        self.told_end = true;
        self.begin_send()
    }
}

impl Forward {
    fn end(&mut self, side: Side) -> Option<&mut End> {
        match &mut self.stage {
            Stage::Open(ends) => Some(match side {
                Side::Client => &mut ends[0],
                Side::Primary => &mut ends[1],
            }),
            Stage::Calling(_) => None,
        }
    }
}

impl Shard {
    /// Whether a new client of this resource is to be passed on.
    ///
    /// # Errors
    /// Why it is refused although others are.
    pub(super) fn is_to_forward(&self, key: Key, client: &NbdClient) -> Result<bool, String> {
        let Some(resource) = self.resources.get(key) else {
            return Ok(false);
        };
        if !resource.setup.forward || resource.role() == Role::Primary {
            return Ok(false);
        }
        if self.forwards.len() >= FORWARDS_MAX {
            return Err(format!("{FORWARDS_MAX} clients are passed on already"));
        }
        match client.pid.map(|pid| (pid, process_began(pid))) {
            Some((_, Some(began))) if resource.may_forward(began) => Ok(true),
            Some((pid, _)) => Err(format!(
                "process {pid} is older than this node's part as Secondary: what it knows of the data \
                 may be superseded, so it is not passed on; start it anew"
            )),
            None => Err("it is not known whose connection this is".to_owned()),
        }
    }

    /// Calls the Primary on behalf of a new client.
    pub(super) fn begin_forward(&mut self, key: Key, client: Socket, identity: NbdClient) {
        let Some(resource) = self.resources.get(key) else {
            return;
        };
        let id = resource.setup.resource;
        let forward = self.forwards.insert(Forward {
            resource: key,
            identity,
            stage: Stage::Calling(client),
        });
        let preamble = ForwardPreamble {
            versions: VersionRange::FORWARD,
            cluster: self.setup.cluster,
            from: self.setup.node,
            to: self.setup.node.peer(),
            resource: id,
        };
        let (caller, queue) = (Arc::clone(&self.setup.caller), Arc::clone(&self.queue));
        let call = move || {
            let answer = caller.call(&preamble);
            queue.send(ShardCommand::Called {
                forward: forward.to_u64(),
                answer,
            });
        };
        let thread = std::thread::Builder::new().name("forward".to_owned());
        if let Err(error) = thread.spawn(call) {
            self.on_called(forward, Err(format!("no thread to call it: {error}")));
        }
    }

    /// The Primary answered, or nobody did.
    pub(super) fn on_called(&mut self, key: Key, answer: Result<Wire, String>) {
        let Some(forward) = self.forwards.get_mut(key) else {
            return;
        };
        let resource = forward.resource;
        let Stage::Calling(client) = &forward.stage else {
            return;
        };
        let client = client.clone();
        let adopted = answer.and_then(|wire| {
            let (connection, stream) = wire.into_parts();
            let tls = connection.map(|it| Box::new(Tls::over(it, 0)));
            let adopted = self.backend.adopt(OwnedFd::from(stream));
            let socket = adopted.map_err(|errno| errno.desc().to_owned())?;
            Ok((socket, tls))
        });
        match adopted {
            Ok((primary, tls)) => {
                let end = |socket: Socket, tls| End {
                    socket,
                    queue: SendQueue::default(),
                    tls,
                    buffer: Some(self.forward_pool.take(BUFFER_LEN)),
                    ended: false,
                    told_end: false,
                };
                let mut ends = [end(client, None), end(primary, tls)];
                // The Primary may have begun to speak right behind its answer.
                let early = ends[1].tls.as_mut().map(|tls| tls.take_kept());
                let early = early.filter(|it| !it.is_empty());
                if let Some(early) = &early {
                    ends[0].push(early);
                }
                forward.stage = Stage::Open(Box::new(ends));
                self.note_clients_of(resource);
                self.receive_to_forward(key, Side::Client);
                match early {
                    Some(_) => self.send_forwarded(key, Side::Primary),
                    None => self.receive_to_forward(key, Side::Primary),
                }
            }
            Err(why) => {
                let identity = forward.identity.clone();
                self.forwards.remove(key);
                let refused = Some(format!("the Primary does not take it: {why}"));
                self.begin_session(resource, client, identity, refused, None);
            }
        }
    }

    /// The peer passes a client on: served like one that came to the Unix socket.
    pub(super) fn on_forwarded(&mut self, id: ResourceId, mut wire: Wire) {
        let key = self.by_id.get(&id).copied();
        let resource = key.and_then(|key| self.resources.get(key));
        let status = match resource {
            Some(it) if it.removing || !it.setup.forward => PreambleStatus::Resource,
            Some(it) if it.role() == Role::Primary => PreambleStatus::Accepted,
            Some(_) => PreambleStatus::Busy,
            None => PreambleStatus::Resource,
        };
        let reply = PreambleReply {
            status,
            version: VersionRange::FORWARD.max,
        };
        // The first bytes of a connection fit its buffer: this does not wait.
        let sent =
            forward::be_patient(wire.socket()).and_then(|()| wire.write_all(&reply.encode()));
        let (Ok(()), PreambleStatus::Accepted, Some(key)) = (sent, status, key) else {
            return;
        };
        let (connection, stream) = wire.into_parts();
        let tls = connection.map(|it| Box::new(Tls::over(it, 0)));
        match self.backend.adopt(OwnedFd::from(stream)) {
            Ok(socket) => {
                self.begin_session(key, socket, NbdClient::FORWARDED, None, tls);
            }
            Err(errno) => tracing::warn!(%errno, "a client passed on is dropped"),
        }
    }

    fn receive_to_forward(&mut self, key: Key, side: Side) {
        let end = self.forwards.get_mut(key).and_then(|it| it.end(side));
        let Some(end) = end.filter(|end| !end.ended) else {
            return;
        };
        let Some(buf) = end.buffer.take() else {
            return;
        };
        let receive = Op::Recv {
            socket: end.socket.clone(),
            end: buf.len(),
            buf,
            start: 0,
            fill: false,
        };
        self.backend
            .submit(Owner::ForwardRecv(key, side).token(), receive);
    }

    pub(super) fn on_forward_received(&mut self, key: Key, side: Side, completion: Completion) {
        let count = completion.count();
        let Op::Recv { buf, .. } = completion.op else {
            return;
        };
        let Some(forward) = self.forwards.get_mut(key) else {
            return;
        };
        let Ok(count) = count else {
            return self.drop_forward(key);
        };
        let Some(from) = forward.end(side) else {
            return;
        };
        from.ended |= count == 0;
        let received = &buf.as_ref()[..count];
        if from.tls.is_none() {
            if let Some(to) = forward.end(side.other()) {
                to.push(received);
            }
        } else {
            let Some(inside) = from.open(received) else {
                return self.drop_forward(key);
            };
            if let Some(to) = forward.end(side.other()) {
                to.push(&inside);
            }
        }
        if let Some(from) = forward.end(side) {
            from.buffer = Some(buf);
        }
        self.send_forwarded(key, side);
    }

    /// Sends what came from `side` to the other one.
    fn send_forwarded(&mut self, key: Key, side: Side) {
        let Some(forward) = self.forwards.get_mut(key) else {
            return;
        };
        let ended = forward.end(side).is_none_or(|end| end.ended);
        let Some(to) = forward.end(side.other()) else {
            return;
        };
        let mut batch = to.begin_send();
        if batch.is_none() && ended && side == Side::Client {
            batch = to.begin_farewell();
        }
        if let Some(batch) = batch {
            let socket = to.socket.clone();
            let send = Op::Send { socket, batch };
            self.backend
                .submit(Owner::ForwardSend(key, side).token(), send);
        } else if ended && side == Side::Client {
            // As the client did: the session may still answer to one that only reads.
            to.socket.end_sending();
        } else if ended {
            // The session is over, and the client has all of it.
            self.drop_forward(key);
        } else {
            self.receive_to_forward(key, side);
        }
    }

    pub(super) fn on_forward_sent(&mut self, key: Key, side: Side, completion: Completion) {
        let count = completion.count();
        let Op::Send { batch, .. } = completion.op else {
            return;
        };
        let end = self
            .forwards
            .get_mut(key)
            .and_then(|it| it.end(side.other()));
        let Some(to) = end else {
            return;
        };
        let len = batch.len();
        to.queue.end_send(batch);
        if count == Ok(len) {
            self.send_forwarded(key, side);
        } else {
            self.drop_forward(key);
        }
    }

    /// Clients that are passed on.
    pub(super) fn forwarded_clients(&self, resource: Key) -> impl Iterator<Item = NbdClient> {
        let open = move |forward: &&Forward| {
            forward.resource == resource && matches!(forward.stage, Stage::Open(_))
        };
        let forwards = self.forwards.iter().map(|(_, forward)| forward);
        forwards
            .filter(open)
            .map(|forward| forward.identity.clone())
    }

    fn drop_forward(&mut self, key: Key) {
        let Some(forward) = self.forwards.remove(key) else {
            return;
        };
        match &forward.stage {
            Stage::Calling(client) => client.shutdown(),
            Stage::Open(ends) => ends.iter().for_each(|end| end.socket.shutdown()),
        }
        self.note_clients_of(forward.resource);
    }

    /// Those of a resource, by a node that does not serve it.
    pub(super) fn drop_forwards(&mut self, resource: Key) {
        for key in self.forwards.keys_where(|it| it.resource == resource) {
            self.drop_forward(key);
        }
    }

    /// When the data link ends nothing tells whether the other node is still there: on the Primary
    /// those go that the peer passes on. What they had in flight is still answered by the engine.
    pub(super) fn drop_forwards_at_link_end(&mut self, resource: Key) {
        let passed_on =
            |client: &Client| client.resource == Some(resource) && client.identity.forwarded;
        for key in self.clients.keys_where(passed_on) {
            self.drop_client(key);
        }
        self.drop_forwards(resource);
    }

    pub(super) fn note_view(&mut self, key: Key, view: &View) {
        if let Some(resource) = self.resources.get_mut(key) {
            resource.note_view(view);
        }
    }

    /// This node serves itself now: whoever is passed on comes again.
    pub(super) fn drop_forwards_of_primaries(&mut self) {
        let resources = &self.resources;
        let serves = |forward: &Forward| {
            let resource = resources.get(forward.resource);
            resource.is_none_or(|it| it.role() == Role::Primary)
        };
        for key in self.forwards.keys_where(serves) {
            self.drop_forward(key);
        }
    }
}
