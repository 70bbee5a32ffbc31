//! NBD clients of the resources: listening, accepting, receiving, answering.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use core::time::Duration;

use nbd_frontend::{
    DirectReceive, Export, ExportList, HANDSHAKE_TIMEOUT, NbdError, Output, Pause, Phase, Refusal,
    Request, RequestKind, Session,
};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use replicator::engine::{GuestError, GuestReply, GuestRequest, Input};
use replicator::io::{AlignedBuf, Backend, Completion, Done, Op, Socket};
use replicator::types::{BlockCount, Payload, RequestId, Role, VolumeId};

use super::block_status::StatusQuery;
use super::client::{Chosen, Client, GuestRef, Incoming};
use super::resource::{Accept, Resource};
use super::slots::Key;
use super::standing::Standing;
use super::tcp::site_of;
use super::tls::Tls;
use super::token::Owner;
use super::{Shard, Timer};
use crate::daemon::api::{NbdClient, READ_ONLY_SUFFIX, ShardHandle};
use crate::daemon::bridge::{self, Order};

/// Unfinished handshakes per resource, and as many over TCP; the oldest gives way to a new one, so
/// that idle connections cannot lock a guest out.
const HANDSHAKES_MAX: usize = 64;
/// Pause of accepting when the process is out of descriptors.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Time a client has to take what is queued for it when its session is over.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Listens on a Unix socket at `path`, replacing what a killed daemon left there.
pub(super) fn listen(backend: &dyn Backend, path: &Path) -> io::Result<Socket> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    Ok(backend.adopt(OwnedFd::from(listener))?)
}

impl Shard {
    pub(super) fn arm_nbd_accept(&mut self, key: Key) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        let Some(listener) = resource.listener.clone() else {
            return;
        };
        if self.keeps_listeners {
            resource.accept = Accept::Idle;
            return;
        }
        let accept = Op::Accept { listener };
        let operation = self.backend.submit(Owner::NbdAccept(key).token(), accept);
        resource.accept = Accept::InFlight(operation);
    }

    pub(super) fn on_client_accepted(&mut self, key: Key, completion: Completion) {
        let Some(resource) = self.resources.get_mut(key) else {
            return;
        };
        if resource.removing {
            return;
        }
        resource.accept = Accept::Idle;
        match completion.result {
            Ok(Done::Accepted(socket)) => {
                let identity = identity(&socket);
                match self.is_to_forward(key, &identity) {
                    Ok(true) => self.begin_forward(key, socket, identity),
                    Ok(false) => self.begin_session(key, socket, identity, None, None),
                    Err(why) => self.begin_session(key, socket, identity, Some(why), None),
                }
                self.arm_nbd_accept(key);
            }
            Ok(Done::Count(_)) | Err(Errno::ECONNABORTED) => self.arm_nbd_accept(key),
            // Asked for.
            Err(_) if self.keeps_listeners => {}
            Err(errno) => {
                tracing::warn!(name = resource.setup.name, %errno, "accepting an NBD client");
                resource.accept = Accept::PausedUntil(self.now.plus(ACCEPT_PAUSE));
            }
        }
    }

    pub(super) fn begin_session(
        &mut self,
        resource_key: Key,
        socket: Socket,
        identity: NbdClient,
        refused: Option<String>,
        tls: Option<Box<Tls>>,
    ) {
        self.make_room_for_handshake(Some(resource_key));
        let Some(resource) = self.resources.get(resource_key) else {
            return;
        };
        let refusal = refused.or_else(|| self.refusal(resource_key));
        let offered = exports(resource, refusal.map(Refusal::NotNow));
        let choice = offered.iter().map(|(_, place)| (resource_key, *place));
        let choice = choice.collect();
        let exports = offered.into_iter().map(|(export, _)| export).collect();
        let exports = match ExportList::new(exports) {
            Ok(exports) => exports,
            Err(error) => {
                tracing::error!(name = resource.setup.name, %error, "no export to offer");
                return;
            }
        };
        let session = Session::new(exports, &mut self.nbd_out);
        let born = self.next_born();
        let buffers = &self.guest_buffers;
        let mut client = Client::new(Some(resource_key), socket, session, identity, born, buffers);
        client.tls = tls;
        client.choice = choice;
        self.admit(client);
    }

    /// Of the handshakes on one resource's socket, or of those over TCP, at most so many. Of the latter
    /// one of the site with the most gives way, so that a flood from one place keeps only that one out.
    pub(super) fn make_room_for_handshake(&mut self, resource: Option<Key>) {
        let standings = match resource {
            None => Some(&self.undecided),
            Some(resource) => self.resources.get(resource).map(|it| &it.clients),
        };
        let Some(standings) = standings.filter(|it| it.greeting().len() >= HANDSHAKES_MAX) else {
            return;
        };
        let handshakes: Vec<Key> = standings.greeting().collect();
        let site = |key: &Key| self.clients.get(*key).map(|it| site_of(&it.identity));
        let mut sites: BTreeMap<_, usize> = BTreeMap::new();
        for key in &handshakes {
            *sites.entry(site(key)).or_default() += 1;
        }
        let busiest = sites.values().max().copied();
        let born = |key: &Key| self.clients.get(*key).map(|client| client.born);
        let of_busiest = |key: &Key| sites.get(&site(key)).copied() == busiest;
        let oldest = handshakes.into_iter().filter(of_busiest).min_by_key(born);
        if let Some(oldest) = oldest {
            self.drop_client(oldest);
        }
    }

    /// Greets a client and begins to listen to it.
    pub(super) fn admit(&mut self, client: Client) {
        let key = self.clients.insert(client);
        self.note_standing(key);
        self.timers
            .insert((self.now.plus(HANDSHAKE_TIMEOUT), Timer::Client(key)));
        self.take_outputs(key);
        self.pump_client(key);
    }

    /// Makes the list of clients past their handshake anew, if it is time to.
    pub(super) fn renew_list(&mut self, key: Key) {
        let Some(resource) = self
            .resources
            .get(key)
            .filter(|it| it.is_list_due(self.now))
        else {
            return;
        };
        let clients = resource.clients.attached();
        let clients = clients.filter_map(|client| self.clients.get(client));
        let own = clients.map(|client| client.identity.clone());
        let list = own.chain(self.forwarded_clients(key)).collect();
        if let Some(resource) = self.resources.get_mut(key) {
            resource.clients.renew(list);
        }
    }

    /// A client may have got further since it was looked at last.
    pub(super) fn note_standing(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let now = Some(client.standing());
        let before = std::mem::replace(&mut client.standing, now);
        if before != now {
            let (of, born) = (client.resource, client.born);
            self.note_in_standings(of, key, born, before, now);
        }
    }

    fn note_in_standings(
        &mut self,
        of: Option<Key>,
        client: Key,
        born: u64,
        before: Option<Standing>,
        now: Option<Standing>,
    ) {
        match of {
            None => self.undecided.note(client, born, before, now),
            Some(resource) => {
                if let Some(resource) = self.resources.get_mut(resource) {
                    resource.clients.note(client, born, before, now);
                    resource.note_clients();
                }
            }
        }
    }

    /// It is of that resource from now on.
    pub(super) fn choose(&mut self, key: Key, resource: Key) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.choice = Vec::new();
        let of = client.resource.replace(resource);
        let (born, before) = (client.born, client.standing.take());
        self.note_in_standings(of, key, born, before, None);
        self.note_standing(key);
    }

    /// Why this node may not serve a new client of a resource now, in words for it.
    pub(super) fn refusal(&self, key: Key) -> Option<String> {
        let resource = self.resources.get(key)?;
        let (name, snapshot) = (&resource.setup.name, resource.snapshot());
        if snapshot.role != Role::Primary {
            return Some(format!("{name} is not Primary on this node"));
        }
        let Some(size) = snapshot.size_blocks else {
            return Some(format!("the size of {name} is not known yet"));
        };
        if !resource.setup.row.is_whole(BlockCount(size)) {
            // Never one volume without the others.
            return Some(format!("{name} was made without some of its volumes"));
        }
        let (attached, most) = (
            resource.clients.attached().len() + self.forwarded_clients(key).count(),
            self.setup.nbd_connections_max,
        );
        (attached >= most).then(|| format!("{name} has {most} clients already"))
    }

    pub(super) fn on_client_received(&mut self, key: Key, completion: Completion) {
        let count = completion.count();
        let Op::Recv { buf, start, .. } = completion.op else {
            return;
        };
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        match std::mem::replace(&mut client.incoming, Incoming::Receiving) {
            Incoming::Direct { buffer } => {
                client.incoming = Incoming::Here {
                    buffer,
                    start: 0,
                    end: 0,
                };
                let direct = DirectReceive::from_parts(buf, start);
                let received = count.unwrap_or(0);
                client
                    .session
                    .end_direct_receive(direct, received, &mut self.nbd_out);
            }
            Incoming::Receiving | Incoming::Here { .. } => {
                let end = count.unwrap_or(0);
                client.sends_much |= end == buf.len();
                client.incoming = Incoming::Here {
                    buffer: buf,
                    start: 0,
                    end,
                };
            }
        }
        if count.is_ok_and(|count| count > 0) {
            self.take_outputs(key);
            self.pump_client(key);
        } else {
            client.session.handle_eof(&mut self.nbd_out);
            self.note_standing(key);
            self.forget_requests_of(key);
            self.take_outputs(key);
        }
    }

    /// It sends no more and waits for nothing: what an engine has not begun of it must not land
    /// under its successor.
    pub(super) fn forget_requests_of(&mut self, client: Key) {
        let Some(client) = self.clients.get(client) else {
            return;
        };
        let Some(resource) = client.resource else {
            return;
        };
        for request in client.requests() {
            let gone = Input::GuestGone(RequestId(request.to_u64()));
            self.inputs.push_back((resource, gone));
        }
    }

    /// Gives the session what was received, and receives more as long as it takes more.
    pub(super) fn pump_client(&mut self, key: Key) {
        self.note_suspended(key);
        let clients = self.clients.len();
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if client.tls.is_some() {
            return self.pump_secured(key);
        }
        let before = client.session.phase();
        self.guest_buffers.begin_serving(client, clients);
        let Incoming::Here { buffer, start, end } = &mut client.incoming else {
            return;
        };
        let bytes = &buffer.as_ref()[*start..*end];
        let pool = &mut self.guest_buffers;
        *start += client.session.handle_bytes(bytes, pool, &mut self.nbd_out);
        client.reads.room += pool.end_serving();
        let all_taken = start == end;
        self.end_pump(key, before, all_taken);
    }

    /// Before a client is served: what held writes take, if its resource holds some.
    pub(super) fn note_suspended(&mut self, client: Key) {
        let resource = self.clients.get(client).and_then(|it| it.resource);
        let own = resource.and_then(|key| self.resources.get(key));
        let all = match own.map_or(0, Resource::suspended_bytes) {
            0 => 0,
            _ => self
                .resources
                .iter()
                .map(|(_, it)| it.suspended_bytes())
                .sum(),
        };
        self.guest_buffers.note_suspended(all);
    }

    /// What follows when the session has taken what it takes now.
    pub(super) fn end_pump(&mut self, key: Key, before: Phase, all_taken: bool) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let phase = client.session.phase();
        let starved = client.session.pause() == Some(Pause::Pool);
        let receive = all_taken && client.session.can_receive();
        let ended = before == Phase::Handshake && phase != Phase::Handshake;
        if ended && !self.attach_chosen(key, phase) {
            self.drop_client(key);
        }
        self.note_standing(key);
        if starved {
            self.note_starved(Owner::ClientRecv(key));
        }
        if receive {
            self.receive_from_client(key);
        }
        self.take_outputs(key);
    }

    fn receive_from_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let Incoming::Here { buffer, .. } =
            std::mem::replace(&mut client.incoming, Incoming::Receiving)
        else {
            return;
        };
        let socket = client.socket.clone();
        // What TLS carries has to be opened first.
        let direct = match client.tls {
            None => client.session.begin_direct_receive(),
            Some(_) => None,
        };
        let receive = match direct {
            Some(direct) => {
                client.incoming = Incoming::Direct { buffer };
                let (buf, start) = direct.into_parts();
                let end = buf.len();
                Op::Recv {
                    socket,
                    buf,
                    start,
                    end,
                    fill: true,
                }
            }
            None => {
                let buf = client.receive_buffer(buffer, &self.guest_buffers);
                let end = buf.len();
                Op::Recv {
                    socket,
                    buf,
                    start: 0,
                    end,
                    fill: false,
                }
            }
        };
        self.backend.submit(Owner::ClientRecv(key).token(), receive);
    }

    /// Carries out what the session asked for.
    pub(super) fn take_outputs(&mut self, key: Key) {
        if self.nbd_out.is_empty() {
            return;
        }
        let mut out = std::mem::take(&mut self.nbd_out);
        for output in out.drain() {
            self.take_output(key, output);
        }
        self.nbd_out = out;
    }

    fn take_output(&mut self, key: Key, output: Output<AlignedBuf, Payload>) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        match output {
            Output::Send(bytes) => client.push(bytes.as_ref()),
            Output::SendPayload(payload) => client.push_shared(payload.bytes().clone()),
            Output::Submit(request) => {
                // None: it chose, asked and broke the protocol in one breath, and is being closed.
                if let (Some(resource), Some(chosen)) = (client.resource, client.chosen) {
                    self.submit_request(key, resource, chosen, request);
                }
                return;
            }
            Output::StartTls => return self.begin_tls(key),
            Output::Close(reason) => {
                tracing::debug!(%reason, "NBD session ended");
                client.close();
                self.timers
                    .insert((self.now.plus(FAREWELL_TIMEOUT), Timer::Client(key)));
                self.note_standing(key);
            }
        }
        self.mark_dirty(key);
    }

    /// Something may have to be sent to it at the end of this turn.
    pub(super) fn mark_dirty(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(key)
            && !client.dirty
        {
            client.dirty = true;
            self.dirty_clients.push(key);
        }
    }

    fn submit_request(
        &mut self,
        client: Key,
        resource: Key,
        chosen: Chosen,
        request: Request<AlignedBuf>,
    ) {
        let read_len = match request.kind {
            RequestKind::Read { len, .. } => usize::try_from(len).unwrap_or(usize::MAX),
            _ => 0,
        };
        let id = self.requests.insert(GuestRef {
            client,
            handle: request.handle,
            read_len,
            status: None,
        });
        if let Some(client) = self.clients.get_mut(client) {
            client.note_submitted(request.handle, id);
        }
        let Chosen { place, start } = chosen;
        let kind = match bridge::order(request.kind, start) {
            Order::Engine(kind) => kind,
            Order::FastZeroes { kind, may_unmap } => {
                let resource = self.resources.get(resource);
                if !resource.is_some_and(|resource| resource.zeroes_are_fast(place, may_unmap)) {
                    self.refused.push_back((id, NbdError::NotSupported));
                    return;
                }
                kind
            }
            Order::Status(question) => return self.begin_status(id, resource, place, question),
        };
        if let Some(own) = self.resources.get_mut(resource)
            && let Some(traffic) = own.traffic.get_mut(place)
        {
            traffic.note(&kind);
        }
        let request = RequestId(id.to_u64());
        let request = GuestRequest { request, kind };
        self.inputs.push_back((resource, Input::Guest(request)));
    }

    /// One that is passed on came or went.
    pub(super) fn note_clients_of(&mut self, resource: Key) {
        if let Some(resource) = self.resources.get_mut(resource) {
            resource.clients.note_change();
            resource.note_clients();
        }
    }

    pub(super) fn complete_request(
        &mut self,
        request: RequestId,
        result: Result<GuestReply, GuestError>,
    ) {
        self.answer_request(Key::from_u64(request.0), |shard, status| match status {
            None => bridge::completion(result),
            Some(query) => shard.end_status(query, result),
        });
    }

    /// Answers a request with what `completion` makes of it and, for a block status, of what that
    /// found.
    pub(super) fn answer_request(
        &mut self,
        request: Key,
        completion: impl FnOnce(&Self, Option<StatusQuery>) -> nbd_frontend::Completion<Payload>,
    ) {
        // None: its client is gone, or was dropped with everything in flight (R9).
        let Some(request) = self.requests.remove(request) else {
            return;
        };
        let query = request.status.and_then(|key| self.statuses.remove(key));
        let completion = completion(self, query);
        let Some(client) = self.clients.get_mut(request.client) else {
            return;
        };
        client.note_completed(request.handle);
        client
            .session
            .complete(request.handle, completion, &mut self.nbd_out);
        client.note_answered(request.read_len);
        let paused = client.session.pause().is_some();
        self.take_outputs(request.client);
        if paused {
            self.pump_client(request.client);
        }
    }

    pub(super) fn flush_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.dirty = false;
        if let Some(tls) = &mut client.tls
            && client.queue.is_idle()
        {
            tls.seal(|bytes| client.queue.push(bytes));
        }
        if let Some(batch) = client.queue.begin_send() {
            let send = Op::Send {
                socket: client.socket.clone(),
                batch,
            };
            self.backend.submit(Owner::ClientSend(key).token(), send);
        } else if client.closing && client.queue.is_idle() {
            self.drop_client(key);
        }
    }

    pub(super) fn on_client_sent(&mut self, key: Key, completion: Completion) {
        let count = completion.count();
        let Op::Send { batch, .. } = completion.op else {
            return;
        };
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let len = batch.len();
        client.queue.end_send(batch);
        if count != Ok(len) {
            self.drop_client(key);
            return;
        }
        let len = match &mut client.tls {
            None => len,
            Some(tls) if client.queue.is_idle() => tls.take_sent(),
            Some(_) => 0,
        };
        let freed = client.note_sent(len);
        self.guest_buffers.free_read_room(freed);
        let paused = client.session.pause().is_some();
        self.mark_dirty(key);
        if paused {
            self.pump_client(key);
        }
    }

    pub(super) fn on_client_timer(&mut self, key: Key) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        if client.closing || client.is_shaking_hands() {
            self.drop_client(key);
        }
    }

    /// Cuts a client off. What it had in flight is answered to nobody.
    pub(super) fn drop_client(&mut self, key: Key) {
        self.forget_requests_of(key);
        if let Some(client) = self.clients.remove(key) {
            self.note_in_standings(client.resource, key, client.born, client.standing, None);
            self.guest_buffers.free_read_room(client.reads.room);
            if !self.starved.is_empty() {
                // Nothing else may come that would make this loop look at who waits for the room.
                self.queue.wake();
            }
            client.socket.shutdown();
        }
    }

    /// Cuts every client of a resource off without an answer (R9): they reconnect and find out who
    /// serves.
    pub(super) fn drop_clients(&mut self, resource: Key) {
        self.drop_forwards(resource);
        let clients = self
            .clients
            .keys_where(|client| client.resource == Some(resource));
        for client in clients {
            let requests = self.clients.get(client).map(Client::requests);
            for request in requests.into_iter().flatten() {
                let status = self.requests.remove(request).and_then(|gone| gone.status);
                status.and_then(|key| self.statuses.remove(key));
            }
            self.drop_client(client);
        }
    }
}

/// What a resource has to offer, each with the place of its volume: its volumes in their order, the
/// first being the usual one, and the same read-only where that is wanted.
pub(super) fn exports(resource: &Resource, refusal: Option<Refusal>) -> Vec<(Export, usize)> {
    let total = BlockCount(resource.snapshot().size_blocks.unwrap_or(0));
    let row = &resource.setup.row;
    let named = |name: &String| format!("{name}{READ_ONLY_SUFFIX}");
    let mut offered = Vec::new();
    for (place, volume) in row.ids().enumerate() {
        let size = row.blocks(place, total).len().0;
        let mut usual = export(&resource.setup.name, place, volume, size);
        usual.refusal.clone_from(&refusal);
        let aliases = usual.aliases.iter().map(named).collect();
        let read_only = usual.read_only(named(&usual.name), aliases);
        offered.push((usual, place));
        if resource.setup.read_only_export {
            offered.push((read_only, place));
        }
    }
    offered
}

/// Each under one name in a list; the first volume's is the resource's.
fn export(name: &str, place: usize, volume: VolumeId, size: u64) -> Export {
    let own = format!("{name}/{}", volume.0);
    if place > 0 {
        return Export::new(own, size);
    }
    let mut export = Export::new(name, size);
    export.aliases.push(own);
    export
}

fn identity(socket: &Socket) -> NbdClient {
    let credentials = getsockopt(socket, sockopt::PeerCredentials).ok();
    NbdClient {
        pid: credentials.map(|credentials| credentials.pid()),
        uid: credentials.map(|credentials| credentials.uid()),
        forwarded: false,
        address: None,
        place: 0,
    }
}
