//! Guests: each keeps a few requests in flight, reconnects when dropped, and changes the node when
//! nobody answers.

use std::collections::{BTreeSet, VecDeque};

use replicator::engine::{GuestKind, GuestRequest, Input};
use replicator::types::{ByteLen, ByteOffset, NodeId, RequestId, Role};

use crate::checkers::history::Effect;
use crate::clock::{MICROS, MILLIS, SECS, SimTime};
use crate::plan::{Op, OpKind};
use crate::rng::Stream;
use crate::stamp::{self, CELL_LEN, CELLS_PER_BLOCK, WriteNr};

use super::node::Arrival;
use super::{Event, World};

/// One NBD client.
#[derive(Debug, Default)]
pub(super) struct Client {
    connection: Option<Connected>,
    connections: u64,
    /// Next item of the plan to look at.
    cursor: usize,
    waiting: VecDeque<Op>,
    inflight: BTreeSet<RequestId>,
    /// When something last went well.
    moved: SimTime,
    tries: u64,
}

#[derive(Clone, Copy, Debug)]
struct Connected {
    node: NodeId,
    serial: u64,
}

/// A request as the world remembers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    client: usize,
    serial: u64,
    pub(super) op: Op,
    pub(super) invoked: SimTime,
    pub(super) write: Option<WriteNr>,
}

impl Client {
    /// Nothing to do and nothing expected.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.inflight.is_empty()
    }
}

impl World {
    pub(super) fn client_turn(&mut self, nr: usize) {
        let now = self.now;
        let client = &mut self.clients[nr];
        while let Some(op) = self.plan.ops.get(client.cursor)
            && op.at <= now
        {
            client.cursor += 1;
            if op.client == nr as u64 {
                client.waiting.push_back(*op);
            }
        }
        if client.is_idle() {
            return;
        }
        let patience = 2 * SECS + (nr as u64) * SECS;
        if client.connection.is_some() && now.0 - client.moved.0 > patience {
            self.disconnect(nr);
        }
        if self.clients[nr].connection.is_none() {
            self.try_connect(nr);
        }
        while let Some(connected) = self.clients[nr].connection
            && self.clients[nr].inflight.len()
                < usize::try_from(self.plan.options.depth).unwrap_or(1)
            && let Some(op) = self.clients[nr].waiting.pop_front()
        {
            // As the NBD session does with what is beyond the size that it told.
            if self.is_beyond(connected.node, &op) {
                continue;
            }
            self.ask(nr, connected, op);
        }
        if !self.clients[nr].is_idle() {
            let pause = self.draw(Stream::Client, [20 * MILLIS, 100 * MILLIS]);
            self.schedule(pause, Event::Client(nr));
        }
    }

    /// Whether every client has done all its work.
    pub(super) fn clients_done(&self) -> bool {
        self.clients.iter().enumerate().all(|(nr, client)| {
            let mut ahead = self.plan.ops[client.cursor..].iter();
            client.is_idle() && ahead.all(|op| op.client != nr as u64)
        })
    }

    fn try_connect(&mut self, nr: usize) {
        let client = &mut self.clients[nr];
        client.tries += 1;
        let node = if client.tries.is_multiple_of(2) {
            NodeId::A
        } else {
            NodeId::B
        };
        let target = &self.nodes[node.index()];
        let accepts = target.paused == 0
            && target
                .engine()
                .is_some_and(|engine| engine.snapshot().role == Role::Primary);
        if !accepts {
            return;
        }
        let client = &mut self.clients[nr];
        client.connections += 1;
        client.connection = Some(Connected {
            node,
            serial: client.connections,
        });
        client.moved = self.now;
    }

    /// The client gives its connection up; what it asked stays with the engine.
    fn disconnect(&mut self, nr: usize) {
        let client = &mut self.clients[nr];
        client.connection = None;
        client.inflight.clear();
    }

    fn is_beyond(&mut self, node: NodeId, op: &Op) -> bool {
        let engine = self.nodes[node.index()].engine();
        let size = engine.map_or(0, |engine| engine.volume_blocks().0);
        if size > 0 {
            self.watch_size(node, size);
        }
        op.first_cell + op.cells > size * CELLS_PER_BLOCK && op.kind != OpKind::Flush
    }

    fn ask(&mut self, nr: usize, connected: Connected, op: Op) {
        let now = self.now;
        let request = self.next_request();
        let effect = match op.kind {
            OpKind::Write { .. } => Some(Effect::Data),
            OpKind::Zeroes { .. } => Some(Effect::Zeroes),
            OpKind::Trim => Some(Effect::Trim),
            OpKind::Read | OpKind::Flush => None,
        };
        let write = effect.map(|effect| self.history.invoke(now, effect, op.first_cell, op.cells));
        let asked = Asked {
            client: nr,
            serial: connected.serial,
            op,
            invoked: now,
            write,
        };
        let node = connected.node;
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        side.asked.insert(request, asked);
        self.clients[nr].inflight.insert(request);
        let delay = self.draw(Stream::Client, [2 * MICROS, 60 * MICROS]);
        self.send_to(node, delay, Arrival::Guest { request, asked });
    }

    pub(super) fn on_guest(&mut self, node: NodeId, request: RequestId, asked: Asked) {
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        if side.asked.contains_key(&request) {
            let kind = guest_kind(&asked);
            self.step_engine(node, Input::Guest(GuestRequest { request, kind }));
        }
    }

    pub(super) fn answer_client(&mut self, node: NodeId, request: RequestId, asked: &Asked) {
        let now = self.now;
        let client = &mut self.clients[asked.client];
        let current = client
            .connection
            .is_some_and(|connected| connected.node == node && connected.serial == asked.serial);
        if current {
            client.inflight.remove(&request);
            client.moved = now;
            let delay = self.draw(Stream::Client, [2 * MICROS, 60 * MICROS]);
            self.schedule(delay, Event::Client(asked.client));
        }
    }

    /// The engine or its process lets go of all clients: nothing asked is answered any more (R9).
    pub(super) fn drop_clients(&mut self, node: NodeId) {
        self.forget_requests(node);
        for nr in 0..self.clients.len() {
            if self.clients[nr]
                .connection
                .is_some_and(|connected| connected.node == node)
            {
                self.disconnect(nr);
                self.schedule(20 * MILLIS, Event::Client(nr));
            }
        }
    }

    /// What was asked of this node stays unanswered for ever.
    pub(super) fn forget_requests(&mut self, node: NodeId) {
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        for asked in core::mem::take(&mut side.asked).into_values() {
            if let Some(write) = asked.write {
                self.history.forget(write);
            }
        }
        for nr in 0..self.clients.len() {
            if self.clients[nr]
                .connection
                .is_some_and(|connected| connected.node == node)
            {
                self.disconnect(nr);
            }
        }
    }
}

fn guest_kind(asked: &Asked) -> GuestKind {
    let op = &asked.op;
    let offset = ByteOffset(op.first_cell * CELL_LEN as u64);
    let len = ByteLen(op.cells * CELL_LEN as u64);
    match op.kind {
        OpKind::Read => GuestKind::Read { offset, len },
        OpKind::Flush => GuestKind::Flush,
        OpKind::Trim => GuestKind::Trim {
            offset,
            len,
            fua: false,
        },
        OpKind::Zeroes { may_unmap } => GuestKind::Zeroes {
            offset,
            len,
            may_unmap,
            fua: false,
        },
        OpKind::Write { fua } => {
            let write = asked.write.expect("a write has a number");
            GuestKind::Write {
                offset,
                payload: stamp::fill(write, op.first_cell, op.cells),
                fua,
            }
        }
    }
}
