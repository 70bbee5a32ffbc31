//! Data links within TLS (`[net] tls = "required"`).
//!
//! What is said in clear text only leads here; the preamble that counts is the one within. On the
//! side that listens nothing of it is read before the other end has shown that it is the peer.
//!
//! Invariant: a link that is within TLS never sends or takes a byte outside of it again, and without
//! TLS there is nothing of this but one look at an `Option`.

use std::time::Duration;

use replicator::io::clock;
use replicator::protocol::preamble::{PreambleReply, PreambleStatus, VersionRange};
use replicator::protocol::{PREAMBLE_LEN, Preamble, Purpose, SecurePreamble};
use replicator::types::SessionId;
use rustls::Connection;

use replicator::engine::LinkDownReason;

use super::link::{Incoming, LinkPhase};
use super::slots::Key;
use super::tls::Tls;
use super::{Shard, Timer};
use crate::daemon::security::Seldom;

/// What anybody can bring about is told at most so often for each cause.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// TLS of one link.
pub(super) struct LinkTls {
    pub(super) tls: Tls,
    /// What it opened; taken up to `taken`.
    pub(super) plain: Vec<u8>,
    pub(super) taken: usize,
    /// This side listens: who the other end is has yet to be seen.
    listens: bool,
}

impl LinkTls {
    pub(super) fn new(tls: Tls, listens: bool) -> Self {
        Self {
            tls,
            plain: Vec::new(),
            taken: 0,
            listens,
        }
    }

    /// What was taken makes room; what is left is less than a header.
    fn begin_round(&mut self) {
        self.plain.drain(..self.taken);
        self.taken = 0;
    }
}

/// What opening came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// There may be something to take now.
    More,
    /// All that was received is opened.
    All,
    /// Not now; or the link is gone.
    Wait,
}

impl Shard {
    /// What a link to the peer begins with here: clear text that asks for TLS, or nothing.
    pub(super) fn secure_opening(&self) -> Option<[u8; PREAMBLE_LEN]> {
        let security = self.setup.security.as_ref()?;
        let opening = SecurePreamble {
            versions: VersionRange::SECURE,
            cluster: self.setup.cluster,
            from: self.setup.node,
            to: self.setup.node.peer(),
            purpose: Purpose::Link,
        };
        security.covers_links().then(|| opening.encode())
    }

    /// The peer asks for TLS before its preamble.
    pub(super) fn on_secure_opening(&mut self, key: Key, opening: &SecurePreamble) {
        // Within TLS it has no business: the answer would go out in clear.
        if self.links.get(key).is_some_and(|it| it.tls.is_some()) {
            return self.drop_link(key);
        }
        let status = self.judge_secure(opening);
        let reply = PreambleReply {
            status,
            version: VersionRange::SECURE.max,
        };
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        link.queue.push(&reply.encode());
        self.note_dirty_link(key);
        if status != PreambleStatus::Accepted {
            static TOLD: Seldom = Seldom::new();
            let due = TOLD.is_due(self.now, TELL_INTERVAL);
            if due && status == PreambleStatus::Tls {
                tracing::warn!(
                    "a connection of the peer wants TLS, and [net] tls is not \"required\" here"
                );
            } else if due {
                tracing::info!(?status, "the peer's connection is refused");
            }
            return self.close_link(key);
        }
        let security = self.setup.security.as_ref();
        let server = security.map(|it| it.peers().accept().map(Connection::Server));
        self.begin_link_tls(key, server, true);
    }

    fn judge_secure(&self, opening: &SecurePreamble) -> PreambleStatus {
        let covers_links =
            |it: &std::sync::Arc<crate::daemon::security::Security>| it.covers_links();
        if opening
            .versions
            .newest_common(VersionRange::SECURE)
            .is_none()
        {
            PreambleStatus::Version
        } else if opening.cluster != self.setup.cluster {
            PreambleStatus::Cluster
        } else if opening.to != self.setup.node || opening.from != self.setup.node.peer() {
            PreambleStatus::Node
        } else if !self.setup.security.as_ref().is_some_and(covers_links) {
            PreambleStatus::Tls
        } else {
            PreambleStatus::Accepted
        }
    }

    /// The peer, that was asked for TLS, agrees: the preamble goes out within.
    pub(super) fn begin_dialled_tls(&mut self, key: Key, session: SessionId) {
        let peer = self.setup.node.peer().index();
        let security = self.setup.security.as_ref();
        let client = security.map(|it| it.peers().call(peer).map(Connection::Client));
        self.begin_link_tls(key, client, false);
        self.introduce(key, session);
    }

    fn begin_link_tls(
        &mut self,
        key: Key,
        connection: Option<Result<Connection, rustls::Error>>,
        listens: bool,
    ) {
        match (connection, self.links.get_mut(key)) {
            (Some(Ok(connection)), Some(link)) => {
                let tls = Tls::over(connection, 0);
                link.tls = Some(Box::new(LinkTls::new(tls, listens)));
                self.note_dirty_link(key);
            }
            (Some(Err(error)), Some(_)) => {
                tracing::error!(%error, "TLS with the peer cannot be begun");
                self.drop_link(key);
            }
            (None, _) | (_, None) => self.drop_link(key),
        }
    }

    /// Says what this connection is for.
    pub(super) fn introduce(&mut self, key: Key, session: SessionId) {
        let resource = self.links.get(key).and_then(|link| link.resource);
        let Some(resource) = resource.and_then(|key| self.resources.get(key)) else {
            return self.drop_link(key);
        };
        let preamble = Preamble {
            versions: VersionRange::OURS,
            cluster: self.setup.cluster,
            resource: resource.setup.resource,
            from: self.setup.node,
            session,
        };
        if let Some(link) = self.links.get_mut(key) {
            link.phase = LinkPhase::AwaitReply { session };
            link.push_bytes(&preamble.encode());
        }
        self.note_dirty_link(key);
    }

    /// Opens more of what was received within TLS, if this link is.
    pub(super) fn open_link(&mut self, key: Key) -> Opened {
        let Some(link) = self.links.get_mut(key) else {
            return Opened::Wait;
        };
        let (Some(secure), Incoming::Here { buffer, start, end }) =
            (&mut link.tls, &mut link.incoming)
        else {
            return Opened::All;
        };
        if start == end {
            return Opened::All;
        }
        let handshaking = secure.tls.is_handshaking();
        // Strangers' arithmetic is rationed; whom this side dials it has chosen itself.
        let rationed = handshaking && secure.listens;
        let begun = clock::now();
        // The peer's own address has a ration that nobody else takes from.
        let ration = match link.of_peer {
            true => &mut self.peer_ration,
            false => &mut self.link_ration,
        };
        if rationed && let Some(wait_until) = ration.wait_until(begun) {
            let born = link.born;
            self.timers
                .insert((wait_until, Timer::LinkHandshake { born, link: key }));
            return Opened::Wait;
        }
        secure.begin_round();
        let opened = secure
            .tls
            .open(&buffer.as_ref()[*start..*end], &mut secure.plain);
        if rationed {
            ration.note_step(begun, clock::now());
        }
        match opened {
            Ok(taken) => *start += taken,
            Err(error) => {
                static TOLD: Seldom = Seldom::new();
                if TOLD.is_due(self.now, TELL_INTERVAL) {
                    tracing::warn!(%error, "no TLS with the peer");
                }
                // What the other end is owed is an alert.
                *start = *end;
                let link_queue = &mut link.queue;
                if link_queue.is_idle() {
                    secure.tls.seal(|bytes| link_queue.push(bytes));
                }
                self.end_broken_link(key);
                return Opened::Wait;
            }
        }
        if secure.tls.has_ended() && secure.plain.is_empty() {
            self.lose_link(key, LinkDownReason::Closed);
            return Opened::Wait;
        }
        if handshaking && !secure.tls.is_handshaking() && secure.listens {
            let peer = self.setup.node.peer().index();
            let security = self.setup.security.as_ref();
            let shown = secure.tls.peer_certificate();
            if !security.is_some_and(|it| it.peers().is_of(shown, peer)) {
                static TOLD: Seldom = Seldom::new();
                if TOLD.is_due(self.now, TELL_INTERVAL) {
                    tracing::warn!(
                        "who connects has the certificate of another node than the peer"
                    );
                }
                self.drop_link(key);
                return Opened::Wait;
            }
        }
        if handshaking {
            self.note_dirty_link(key);
        }
        Opened::More
    }

    /// A stream of no use any more: its engine is told, and what is queued still goes out.
    fn end_broken_link(&mut self, key: Key) {
        let Some(link) = self.links.get(key) else {
            return;
        };
        if link.session().is_some() {
            self.lose_link(key, LinkDownReason::BadFrame);
        } else {
            self.close_link(key);
        }
    }
}
