//! NBD clients that come by TCP: one listener for all resources, TLS, and who may open what.
//!
//! Until a client has chosen an export it is of no resource. What it may choose from is looked up
//! once, when it is known who it is; what it chose is looked at again when it attaches, since roles
//! may have changed meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use core::time::Duration;

use nbd_frontend::{Export, ExportList, Phase, Refusal, Session};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getpeername, setsockopt, sockopt};
use replicator::io::{Completion, Done, Op, Socket, clock};
use replicator::types::{Instant, ResourceId};

use super::client::{Chosen, Client, Incoming};
use super::links::send_at_once;
use super::nbd::{ACCEPT_PAUSE, exports};
use super::slots::Key;
use super::tls::Tls;
use super::token::Owner;
use super::{Shard, Timer};
use crate::config::CertificateSubject;
use crate::daemon::api::{NbdAccess, NbdClient, NbdTcp};
use crate::daemon::certificates::{Certificates, subject_of};

/// After a step of a TLS handshake the next one, of any client, waits this many times as long as it
/// took: strangers cost at most a fifth of this thread, and never two steps in a row.
const HANDSHAKE_REST: u32 = 4;
/// Bits of an IPv6 address that tell one site from the next; the rest it may choose as it likes.
const SITE_BITS: u32 = 64;
/// A client whose host is gone is noticed after about a minute, so that it does not keep a resource
/// from being demoted for ever.
const KEEP_ALIVE_IDLE_S: u32 = 30;
const KEEP_ALIVE_INTERVAL_S: u32 = 10;
const KEEP_ALIVE_COUNT: u32 = 3;
const UNANSWERED_MS: u32 = 120_000;
/// Failed handshakes are told at most this often, so that strangers cannot fill the log.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// The listener.
pub(super) struct Door {
    listener: Socket,
    certificates: Option<Arc<Certificates>>,
    has_default: bool,
    /// As the files were taken over last; what was configured at the start is not in it.
    allowed: BTreeMap<ResourceId, Option<Vec<CertificateSubject>>>,
    ration: Ration,
    /// Failed handshakes are not told before.
    tell_next: Instant,
    /// How many were not told.
    untold: u64,
    /// What TLS opened; kept for its capacity.
    inside: Vec<u8>,
}

/// Who a client is.
enum Who {
    /// Of this machine, and nothing else is known.
    Anybody,
    /// One with a certificate of the authority; `None`: with a subject that nobody could name.
    Certified(Option<CertificateSubject>),
}

impl Shard {
    pub(super) fn listen_for_clients(&mut self, setup: Option<NbdTcp>) -> io::Result<()> {
        if let Some(setup) = setup {
            self.tcp = Some(Door {
                listener: self.backend.adopt(OwnedFd::from(setup.listener))?,
                certificates: setup.certificates,
                has_default: setup.has_default,
                allowed: BTreeMap::new(),
                ration: Ration::new(self.now),
                tell_next: self.now,
                untold: 0,
                inside: Vec::new(),
            });
            if setup.inherited {
                self.timers.insert((self.return_end(), Timer::Accept));
            } else {
                self.arm_tcp_accept();
            }
        }
        Ok(())
    }

    pub(super) fn arm_tcp_accept(&mut self) {
        let armed = self.tcp_accept.is_some() || self.keeps_listeners;
        if let Some(door) = self.tcp.as_ref().filter(|_| !armed) {
            let accept = Op::Accept {
                listener: door.listener.clone(),
            };
            let token = Owner::NbdTcpAccept.token();
            self.tcp_accept = Some(self.backend.submit(token, accept));
        }
    }

    pub(super) fn on_tcp_accepted(&mut self, completion: Completion) {
        self.tcp_accept = None;
        match completion.result {
            Ok(Done::Accepted(socket)) => self.begin_tcp_client(socket),
            Ok(Done::Count(_)) | Err(Errno::ECONNABORTED) => {}
            // Asked for.
            Err(_) if self.keeps_listeners => return,
            Err(errno) => {
                tracing::warn!(%errno, "accepting an NBD client by TCP");
                self.timers
                    .insert((self.now.plus(ACCEPT_PAUSE), Timer::Accept));
                return;
            }
        }
        self.arm_tcp_accept();
    }

    fn begin_tcp_client(&mut self, socket: Socket) {
        let Some(door) = &self.tcp else {
            return;
        };
        let secured = door.certificates.is_some();
        self.make_room_for_handshake(None);
        send_at_once(&socket);
        if let Err(errno) = keep_alive(&socket) {
            tracing::debug!(%errno, "keep-alive of an NBD client");
        }
        let (session, choice) = if secured {
            let session = Session::new_awaiting_tls(&mut self.nbd_out);
            (session, Vec::new())
        } else {
            let (exports, choice) = self.choice_of(&Who::Anybody);
            (Session::new(exports, &mut self.nbd_out), choice)
        };
        let identity = NbdClient {
            address: peer_address(&socket),
            ..NbdClient::default()
        };
        let born = self.next_born();
        let mut client = Client::new(None, socket, session, identity, born, &self.guest_buffers);
        client.choice = choice;
        self.admit(client);
    }

    /// The files say something else now. Clients that have not chosen yet come again.
    pub(super) fn set_access(&mut self, access: NbdAccess) {
        let Some(door) = &mut self.tcp else {
            return;
        };
        door.has_default = access.has_default;
        door.allowed = access.allowed;
        // Offers that were made no longer hold.
        for key in self.clients.keys_where(|client| client.resource.is_none()) {
            self.drop_client(key);
        }
    }

    /// What a client may choose from, and the volumes behind it.
    fn choice_of(&self, who: &Who) -> (ExportList, Vec<(Key, usize)>) {
        let mut offered: Vec<(Export, (Key, usize))> = self
            .by_id
            .values()
            .flat_map(|key| {
                let exports = self.exports_for(*key, who).into_iter();
                exports.map(|(export, place)| (export, (*key, place)))
            })
            .collect();
        offered.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (exports, keys) = offered.into_iter().unzip();
        let has_default = self.tcp.as_ref().is_some_and(|door| door.has_default);
        match ExportList::new(exports) {
            Ok(exports) if has_default => (exports, keys),
            Ok(exports) => (exports.without_default(), keys),
            Err(error) => {
                tracing::error!(%error, "no exports to offer");
                (ExportList::empty(), Vec::new())
            }
        }
    }

    fn exports_for(&self, key: Key, who: &Who) -> Vec<(Export, usize)> {
        let resource = self.resources.get(key).filter(|it| !it.removing);
        let (Some(resource), Some(door)) = (resource, &self.tcp) else {
            return Vec::new();
        };
        // An `up` under way when the files were taken over began with those before.
        let newest = door.allowed.get(&resource.setup.resource);
        let allowed = newest.unwrap_or(&resource.setup.nbd_allow);
        let allowed = allowed.as_ref();
        let name = &resource.setup.name;
        let forbidden = allowed.and_then(|allowed| forbidden(name, allowed, who));
        let refusal = match forbidden {
            Some(text) => Some(Refusal::NotAllowed(text)),
            None => self.refusal(key).map(Refusal::NotNow),
        };
        exports(resource, refusal)
    }

    /// A client chose: it becomes one of that volume's, unless something changed since the offer. Then
    /// it is cut off without an answer, and comes back.
    pub(super) fn attach_chosen(&mut self, key: Key, phase: Phase) -> bool {
        let (Phase::Transmission(export) | Phase::Draining(export)) = phase else {
            // Closed: only waits for its last words.
            return true;
        };
        let Some(client) = self.clients.get(key) else {
            return false;
        };
        let Some(&(resource, place)) = client.choice.get(export.0) else {
            return false;
        };
        let by_tcp = client.resource.is_none();
        let Some(own) = self.resources.get(resource).filter(|it| !it.removing) else {
            return false;
        };
        let start = own.setup.row.offset(place);
        if by_tcp && self.refusal(resource).is_some() {
            return false;
        }
        if let Some(client) = self.clients.get_mut(key) {
            client.identity.place = place;
            client.chosen = Some(Chosen { place, start });
            client.choice = Vec::new();
        }
        if by_tcp {
            self.choose(key, resource);
        }
        true
    }

    /// What follows is TLS.
    pub(super) fn begin_tls(&mut self, key: Key) {
        let certificates = self
            .tcp
            .as_ref()
            .and_then(|door| door.certificates.as_ref());
        let config = certificates.map(|certificates| certificates.current());
        let (Some(client), Some(config)) = (self.clients.get_mut(key), config) else {
            return;
        };
        match Tls::new(config, client.session.unsent_bytes()) {
            Ok(tls) => client.tls = Some(Box::new(tls)),
            Err(error) => {
                tracing::error!(%error, "TLS cannot be begun");
                self.drop_client(key);
            }
        }
    }

    /// Opens what was received and gives the session what is inside, as long as it takes more.
    pub(super) fn pump_secured(&mut self, key: Key) {
        let mut inside = self.tcp.as_mut().map_or_else(Vec::new, |door| {
            door.inside.clear();
            std::mem::take(&mut door.inside)
        });
        while self.pump_round(key, &mut inside) {
            inside.clear();
        }
        if let Some(door) = &mut self.tcp {
            door.inside = inside;
        }
    }

    /// One round of it; whether there may be another.
    fn pump_round(&mut self, key: Key, inside: &mut Vec<u8>) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let (Some(tls), Incoming::Here { buffer, start, end }) =
            (&mut client.tls, &mut client.incoming)
        else {
            return false;
        };
        if tls.kept().is_empty() && start != end {
            let handshaking = tls.is_handshaking();
            let begun = clock::now();
            let ration = self.tcp.as_ref().map(|door| door.ration);
            if handshaking && let Some(wait_until) = ration.and_then(|it| it.wait_until(begun)) {
                let born = client.born;
                let timer = Timer::Handshake { born, client: key };
                self.timers.insert((wait_until, timer));
                return false;
            }
            let opened = tls.open(&buffer.as_ref()[*start..*end], inside);
            if handshaking && let Some(door) = &mut self.tcp {
                door.ration.note_step(begun, clock::now());
            }
            match opened {
                Ok(taken) => *start += taken,
                Err(error) => {
                    *start = *end;
                    return self.fail_tls(key, &error);
                }
            }
            if handshaking && !tls.is_handshaking() {
                self.greet_secured(key);
            }
        }
        self.give_inside(key, inside)
    }

    /// Gives the session what it did not take before and what was opened now; whether it took all
    /// and there is more to open.
    fn give_inside(&mut self, key: Key, inside: &[u8]) -> bool {
        self.note_suspended(key);
        let clients = self.clients.len();
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let before = client.session.phase();
        self.guest_buffers.begin_serving(client, clients);
        let Some(tls) = &mut client.tls else {
            return false;
        };
        let pool = &mut self.guest_buffers;
        if tls.kept().is_empty() {
            let taken = client.session.handle_bytes(inside, pool, &mut self.nbd_out);
            tls.keep(&inside[taken..]);
        } else {
            let taken = client
                .session
                .handle_bytes(tls.kept(), pool, &mut self.nbd_out);
            tls.drop_kept(taken);
        }
        client.reads.room += pool.end_serving();
        let all_given = tls.kept().is_empty();
        let all_opened = match &client.incoming {
            Incoming::Here { start, end, .. } => start == end,
            Incoming::Receiving | Incoming::Direct { .. } => true,
        };
        if tls.has_ended() && all_given && client.session.can_receive() {
            client.session.handle_eof(&mut self.nbd_out);
            self.forget_requests_of(key);
        }
        self.mark_dirty(key);
        self.end_pump(key, before, all_given && all_opened);
        all_given && !all_opened
    }

    /// TLS stands: says who the client is, and so what it may choose from.
    fn greet_secured(&mut self, key: Key) {
        let tls = self.clients.get(key).and_then(|client| client.tls.as_ref());
        let certificate = tls.and_then(|tls| tls.peer_certificate());
        let who = Who::Certified(certificate.and_then(subject_of));
        let (exports, choice) = self.choice_of(&who);
        if let Some(client) = self.clients.get_mut(key) {
            client.choice = choice;
            client.session.note_secured(exports, &mut self.nbd_out);
        }
    }

    /// No TLS, or no more of it. What the client is owed is an alert.
    fn fail_tls(&mut self, key: Key, error: &rustls::Error) -> bool {
        self.tell_tls_failure(key, error);
        if let Some(client) = self.clients.get_mut(key) {
            client.session.handle_eof(&mut self.nbd_out);
        }
        self.forget_requests_of(key);
        self.take_outputs(key);
        self.mark_dirty(key);
        false
    }

    fn tell_tls_failure(&mut self, key: Key, error: &rustls::Error) {
        let address = self.clients.get(key).and_then(|it| it.identity.address);
        let client = address.map_or_else(|| "?".to_owned(), |address| address.to_string());
        let Some(door) = &mut self.tcp else {
            return;
        };
        if self.now < door.tell_next {
            door.untold += 1;
            tracing::debug!(client, %error, "no TLS with an NBD client");
            return;
        }
        let untold = std::mem::take(&mut door.untold);
        door.tell_next = self.now.plus(TELL_INTERVAL);
        tracing::warn!(client, %error, untold, "no TLS with an NBD client");
    }
}

/// Time for TLS handshakes: their arithmetic shares a thread with everybody's writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ration {
    rest_until: Instant,
}

impl Ration {
    pub(super) fn new(now: Instant) -> Self {
        Self { rest_until: now }
    }

    /// Until when the next step has to wait, if it has to.
    pub(super) fn wait_until(self, now: Instant) -> Option<Instant> {
        (now < self.rest_until).then_some(self.rest_until)
    }

    pub(super) fn note_step(&mut self, begun: Instant, ended: Instant) {
        self.rest_until = ended.plus(ended.since(begun) * HANDSHAKE_REST);
    }
}

/// Where a client comes from, as far as that tells strangers apart: an address that is cheap to have
/// many of counts as one.
pub(super) fn site_of(client: &NbdClient) -> Option<u128> {
    client.address.map(|address| match address.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() >> SITE_BITS << SITE_BITS,
    })
}

/// Why a client may not open an export, if it may not.
fn forbidden(name: &str, allowed: &[CertificateSubject], who: &Who) -> Option<String> {
    match who {
        Who::Anybody => Some(format!("{name} is for clients with a certificate")),
        Who::Certified(Some(subject)) if allowed.contains(subject) => None,
        Who::Certified(Some(subject)) => Some(format!(
            "nbd-allow of {name} does not name the certificate {subject}"
        )),
        Who::Certified(None) => Some(format!(
            "nbd-allow of {name} does not name this certificate, whose subject is none that could be"
        )),
    }
}

fn keep_alive(socket: &Socket) -> Result<(), Errno> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_S)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL_S)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEP_ALIVE_COUNT)?;
    // While something is unanswered nothing is probed, so that has a limit of its own.
    setsockopt(socket, sockopt::TcpUserTimeout, &UNANSWERED_MS)
}

pub(super) fn peer_address(socket: &Socket) -> Option<SocketAddr> {
    let peer: SockaddrStorage = getpeername(socket.as_fd().as_raw_fd()).ok()?;
    let v4 = peer.as_sockaddr_in().map(|it| SocketAddr::V4((*it).into()));
    let v6 = || {
        peer.as_sockaddr_in6()
            .map(|it| SocketAddr::V6((*it).into()))
    };
    let address = v4.or_else(v6)?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever strangers do, of a second at most a fifth goes to their handshakes, and between two
    /// steps there is a pause.
    #[test]
    fn handshakes_get_a_fifth_of_the_thread() {
        let begun = Instant(1_000_000_000);
        let mut now = begun;
        let mut ration = Ration::new(now);
        let mut worked = Duration::ZERO;
        for step_us in [1, 300, 700, 4_000, 20_000].into_iter().cycle().take(500) {
            now = ration.wait_until(now).unwrap_or(now);
            assert_eq!(ration.wait_until(now), None);
            let ended = now.plus(Duration::from_micros(step_us));
            ration.note_step(now, ended);
            assert!(ration.wait_until(ended).is_some(), "never two in a row");
            worked += ended.since(now);
            now = ended;
        }
        let until = ration.wait_until(now).unwrap();
        assert_eq!(worked * 5, until.since(begun));
    }

    #[test]
    fn addresses_that_are_cheap_to_have_count_as_one() {
        let site = |address: &str| {
            site_of(&NbdClient {
                address: Some(SocketAddr::new(address.parse().unwrap(), 7)),
                ..NbdClient::default()
            })
        };
        assert_eq!(site("2001:db8::1"), site("2001:db8::ffff:1"));
        assert_ne!(site("2001:db8::1"), site("2001:db8:0:1::1"));
        assert_ne!(site("10.0.0.1"), site("10.0.0.2"));
        assert_eq!(site_of(&NbdClient::default()), None);
    }
}
