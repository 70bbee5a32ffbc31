//! Sessions between the data nodes: node 1 dials, node 0 listens, frames go through the codec.

use replicator::engine::{Input, LinkDownReason};
use replicator::protocol::Message;
use replicator::types::{NodeId, SessionId, ViewNumber};

use crate::clock::MILLIS;
use crate::net::{Connection, End, Path, Polled, Segment, Socket, Wire};
use crate::rng::Stream;

use super::node::Arrival;
use super::{Event, Planted, World, frames};

/// How long a dialler waits for an answer on one path.
const CONNECT_TIMEOUT: u64 = 250 * MILLIS;

impl World {
    fn link_delay(&self) -> u64 {
        self.wires.delay(&mut self.rng(Stream::Link)) + self.slow
    }

    /// The dialler's turn: each path in order, then a pause.
    pub(super) fn dial(&mut self, life: u32) {
        let dialler = self.node(NodeId::B);
        if dialler.life != life || dialler.process.is_none() {
            return;
        }
        if dialler.paused > 0 {
            self.schedule(50 * MILLIS, Event::Dial { life });
            return;
        }
        let Some(side) = dialler.engine_side() else {
            return;
        };
        if !side.sessions.is_empty() {
            return;
        }
        let backoff = side.next_backoff();
        let mut waited = 0;
        for path in Path::ALL {
            let there = Wire {
                from: NodeId::B,
                to: NodeId::A,
                path,
            };
            let back = Wire {
                from: NodeId::A,
                to: NodeId::B,
                path,
            };
            if !self.wires.is_up(there) || !self.wires.is_up(back) || !self.node(NodeId::A).powered
            {
                waited += CONNECT_TIMEOUT;
                continue;
            }
            if self.node(NodeId::A).process.is_none() {
                continue;
            }
            self.connect(path, waited);
            return;
        }
        self.schedule(waited + backoff, Event::Dial { life });
    }

    fn connect(&mut self, path: Path, waited: u64) {
        self.sessions += 1;
        let session = SessionId(self.plan.seed << 32 | self.sessions);
        let mut connection = Connection::new(session, path, NodeId::B, NodeId::A);
        let (there, back) = (self.link_delay(), self.link_delay());
        connection.not_before(End::Dialler, self.now.plus(waited + there));
        connection.not_before(End::Listener, self.now.plus(waited + there + back));
        self.connections.insert(session, connection);
        for node in [NodeId::A, NodeId::B] {
            if let Some(side) = self.node(node).engine_side() {
                side.sessions.push(session);
            }
        }
        self.send_to(NodeId::A, waited + there, Arrival::LinkUp(session));
        self.send_to(NodeId::B, waited + there + back, Arrival::LinkUp(session));
    }

    fn is_open(&self, node: NodeId, session: SessionId) -> bool {
        self.connections
            .get(&session)
            .is_some_and(|connection| connection.socket(connection.end_of(node)) == Socket::Open)
    }

    pub(super) fn on_link_up(&mut self, node: NodeId, session: SessionId) {
        if self.is_open(node, session) {
            self.step_engine(node, Input::LinkUp { session });
        }
    }

    pub(super) fn send_frame(&mut self, node: NodeId, session: SessionId, message: &Message) {
        let delay = self.link_delay();
        let now = self.now;
        let view = self.nodes[node.index()]
            .engine()
            .map_or(ViewNumber::NONE, |engine| engine.snapshot().view);
        let Some(connection) = self.connections.get_mut(&session) else {
            return;
        };
        let end = connection.end_of(node);
        if connection.socket(end) != Socket::Open {
            return;
        }
        let bytes = frames::encode(session, view, message);
        connection.send(end, now, delay, Segment::Frame(bytes));
        self.arm(session, end);
        if self.planted == Some(Planted::AckWithoutPeer)
            && let Message::Data { write, .. } = message
        {
            let ack = Message::WriteAck { write: *write };
            let bytes = frames::encode(session, view, &ack);
            self.send_to(node, 0, Arrival::Frame { session, bytes });
        }
    }

    /// Makes sure that somebody looks when the next segment arrives.
    fn arm(&mut self, session: SessionId, from: End) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&session) else {
            return;
        };
        if let Some(at) = connection.arm(from, now) {
            self.schedule_at(at, Event::Wire { session, from });
        }
    }

    pub(super) fn wire(&mut self, session: SessionId, from: End) {
        let now = self.now;
        if let Some(connection) = self.connections.get_mut(&session) {
            connection.disarm(from);
        }
        loop {
            let Some(connection) = self.connections.get_mut(&session) else {
                return;
            };
            let up = self.wires.is_up(connection.wire(from));
            let segment = match connection.poll(from, now, up) {
                Polled::Empty => break,
                Polled::Later(_) => {
                    self.arm(session, from);
                    break;
                }
                Polled::Arrived(segment) => segment,
            };
            let to = from.other();
            let node = connection.node(to);
            match (connection.socket(to), segment) {
                (Socket::Open, Segment::Frame(bytes)) => {
                    self.send_to(node, 0, Arrival::Frame { session, bytes });
                }
                (Socket::Open, Segment::End(reason)) => {
                    connection.note_ended(to);
                    self.send_to(node, 0, Arrival::LinkDown { session, reason });
                }
                (Socket::Closed, Segment::Frame(_)) => self.reset(session, to),
                (Socket::Vanished, Segment::Frame(_)) if self.nodes[node.index()].powered => {
                    self.reset(session, to);
                }
                _ => {}
            }
        }
        if self
            .connections
            .get(&session)
            .is_some_and(Connection::is_over)
        {
            self.connections.remove(&session);
        }
    }

    fn reset(&mut self, session: SessionId, from: End) {
        let delay = self.link_delay();
        let now = self.now;
        if let Some(connection) = self.connections.get_mut(&session) {
            connection.reset_from(from, now, delay);
            self.arm(session, from);
        }
    }

    pub(super) fn on_frame(&mut self, node: NodeId, session: SessionId, bytes: &[u8]) {
        if !self.nodes[node.index()].has_session(session) {
            return;
        }
        let message = match frames::decode(session, bytes) {
            Ok(message) => message,
            Err(error) => {
                let detail = format!("{node:?} cannot decode a frame: {error}");
                self.fail(crate::checkers::Violation::new("codec", detail));
                return;
            }
        };
        self.step_engine(node, Input::Received { session, message });
    }

    pub(super) fn on_link_down(
        &mut self,
        node: NodeId,
        session: SessionId,
        reason: LinkDownReason,
    ) {
        if self.nodes[node.index()].has_session(session) {
            self.forget_session(node, session);
            self.step_engine(node, Input::LinkDown { session, reason });
        }
    }

    pub(super) fn close_link(&mut self, node: NodeId, session: SessionId) {
        let delay = self.link_delay();
        let now = self.now;
        if let Some(connection) = self.connections.get_mut(&session) {
            let end = connection.end_of(node);
            if connection.socket(end) == Socket::Open {
                connection.close(end, now, delay);
                self.arm(session, end);
            }
        }
        self.forget_session(node, session);
    }

    /// The process has this session no more; the dialler makes another.
    fn forget_session(&mut self, node: NodeId, session: SessionId) {
        let target = self.node(node);
        let life = target.life;
        let Some(side) = target.engine_side() else {
            return;
        };
        side.sessions.retain(|open| *open != session);
        if node == NodeId::B {
            let backoff = side.next_backoff();
            self.schedule(backoff, Event::Dial { life });
        }
    }

    /// The process or the machine is gone, and with it its ends of all connections.
    pub(super) fn end_connections(&mut self, node: NodeId, vanished: bool) {
        let now = self.now;
        let sessions: Vec<_> = self.connections.keys().copied().collect();
        for session in sessions {
            let delay = self.link_delay();
            let mut rng = self.rng(Stream::Link);
            let Some(connection) = self.connections.get_mut(&session) else {
                continue;
            };
            let end = connection.end_of(node);
            match (connection.socket(end), vanished) {
                (Socket::Open, false) => connection.kill(end, now, delay, &mut rng),
                (Socket::Open | Socket::Closed, true) => connection.vanish(end, &mut rng),
                _ => continue,
            }
            self.arm(session, end);
        }
    }
}
