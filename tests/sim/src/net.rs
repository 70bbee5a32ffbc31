//! The network: datagrams that are lost, doubled and reordered; connections that are ordered,
//! stall while a direction is cut, and end with a prefix of what was sent.
//!
//! Cuts are per direction and path, counted, so that two faults on one wire may overlap.

use std::collections::VecDeque;

use replicator::engine::LinkDownReason;
use replicator::types::{NodeId, SessionId};

use crate::clock::{MILLIS, SimTime};
use crate::rng::{Rng, Stream};

/// A way between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// The dedicated link of the two data nodes.
    Backplane,
    /// The LAN all three share.
    Lan,
}

impl Path {
    /// Both, in the order in which they are tried.
    pub const ALL: [Self; 2] = [Self::Backplane, Self::Lan];

    /// Whether it joins these two nodes at all.
    #[must_use]
    pub fn joins(self, from: NodeId, to: NodeId) -> bool {
        from != to && (self == Self::Lan || (from.is_data() && to.is_data()))
    }
}

/// One direction of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// Way.
    pub path: Path,
}

/// How the network behaves when nothing is cut.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// Shortest one-way delay, in nanoseconds.
    pub delay_min: u64,
    /// Longest one-way delay; draws are independent, so datagrams overtake each other.
    pub delay_max: u64,
    /// Datagrams lost, of 1000.
    pub loss_per_mille: u64,
    /// Datagrams doubled, of 1000.
    pub double_per_mille: u64,
}

/// All wires of the cluster.
#[derive(Clone, Debug)]
pub struct Wires {
    seed: u64,
    options: NetOptions,
    cuts: [[[u8; 2]; 3]; 3],
    datagrams: [[[u64; 2]; 3]; 3],
}

impl Wires {
    /// All wires whole.
    #[must_use]
    pub fn new(seed: u64, options: NetOptions) -> Self {
        Self {
            seed,
            options,
            cuts: [[[0; 2]; 3]; 3],
            datagrams: [[[0; 2]; 3]; 3],
        }
    }

    /// Cuts one direction once more.
    pub fn cut(&mut self, wire: Wire) {
        self.cuts[wire.from.index()][wire.to.index()][wire.path as usize] += 1;
    }

    /// Takes one cut back.
    ///
    /// # Panics
    /// If there was none.
    pub fn mend(&mut self, wire: Wire) {
        let cuts = &mut self.cuts[wire.from.index()][wire.to.index()][wire.path as usize];
        *cuts = cuts.checked_sub(1).expect("mend undoes a cut");
    }

    /// Whether something sent now gets there.
    #[must_use]
    pub fn is_up(&self, wire: Wire) -> bool {
        wire.path.joins(wire.from, wire.to)
            && self.cuts[wire.from.index()][wire.to.index()][wire.path as usize] == 0
    }

    /// The delays after which one datagram arrives: none, one or two.
    pub fn datagram(&mut self, wire: Wire) -> Vec<u64> {
        let count = &mut self.datagrams[wire.from.index()][wire.to.index()][wire.path as usize];
        *count += 1;
        let key =
            *count * 18 + (wire.from.index() * 6 + wire.to.index() * 2 + wire.path as usize) as u64;
        let mut rng = Rng::keyed(self.seed, Stream::Datagram, key);
        if !self.is_up(wire) || rng.chance(self.options.loss_per_mille) {
            return Vec::new();
        }
        let copies = 1 + usize::from(rng.chance(self.options.double_per_mille));
        (0..copies).map(|_| self.delay(&mut rng)).collect()
    }

    /// A one-way delay.
    pub fn delay(&self, rng: &mut Rng) -> u64 {
        rng.between(self.options.delay_min, self.options.delay_max)
    }
}

/// First and longest wait before a stalled connection tries again (Linux: 200 ms, doubling; the
/// production socket's user timeout ends it long before two minutes).
const RETRANSMIT_MIN: u64 = 200 * MILLIS;
const RETRANSMIT_MAX: u64 = 1_600 * MILLIS;

/// What travels on a connection.
#[derive(Clone, Debug)]
pub enum Segment<M> {
    /// One frame.
    Frame(M),
    /// The end of the stream, and what the receiver sees it as.
    End(LinkDownReason),
}

#[derive(Clone, Debug)]
struct Direction<M> {
    queue: VecDeque<(SimTime, Segment<M>)>,
    last: SimTime,
    /// A stalled direction tries again then.
    retry_at: SimTime,
    retransmit: u64,
}

/// What a poll of one direction found.
#[derive(Clone, Debug)]
pub enum Polled<M> {
    /// This arrives now.
    Arrived(Segment<M>),
    /// Nothing before then.
    Later(SimTime),
    /// Nothing under way.
    Empty,
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Dialled.
    Dialler,
    /// Accepted.
    Listener,
}

impl End {
    /// The other side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Listener,
            Self::Listener => Self::Dialler,
        }
    }
}

/// State of one side's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// In use.
    Open,
    /// The process closed it or died; what arrives is refused with a reset.
    Closed,
    /// The machine lost its power; nothing answers until it is up again, then resets.
    Vanished,
}

/// One TCP connection with its session.
#[derive(Clone, Debug)]
pub struct Connection<M> {
    /// Session both ends know.
    pub session: SessionId,
    /// Way it takes.
    pub path: Path,
    nodes: [NodeId; 2],
    sockets: [Socket; 2],
    directions: [Direction<M>; 2],
    armed: [bool; 2],
}

impl<M> Connection<M> {
    /// A fresh connection.
    #[must_use]
    pub fn new(session: SessionId, path: Path, dialler: NodeId, listener: NodeId) -> Self {
        let direction = || Direction {
            queue: VecDeque::new(),
            last: SimTime(0),
            retry_at: SimTime(0),
            retransmit: RETRANSMIT_MIN,
        };
        Self {
            session,
            path,
            nodes: [dialler, listener],
            sockets: [Socket::Open; 2],
            directions: [direction(), direction()],
            armed: [false; 2],
        }
    }

    /// Nothing that `from` sends arrives before `at`.
    pub fn not_before(&mut self, from: End, at: SimTime) {
        self.directions[from as usize].last = at;
    }

    /// When somebody should poll what `from` sends, unless somebody will anyway.
    pub fn arm(&mut self, from: End, now: SimTime) -> Option<SimTime> {
        let (at, _) = self.directions[from as usize].queue.front()?;
        let at = (*at).max(self.directions[from as usize].retry_at).max(now);
        (!core::mem::replace(&mut self.armed[from as usize], true)).then_some(at)
    }

    /// Somebody polls now.
    pub fn disarm(&mut self, from: End) {
        self.armed[from as usize] = false;
    }

    /// The node at that end.
    #[must_use]
    pub fn node(&self, end: End) -> NodeId {
        self.nodes[end as usize]
    }

    /// The end at that node.
    #[must_use]
    pub fn end_of(&self, node: NodeId) -> End {
        if self.nodes[0] == node {
            End::Dialler
        } else {
            End::Listener
        }
    }

    /// The state of that end's socket.
    #[must_use]
    pub fn socket(&self, end: End) -> Socket {
        self.sockets[end as usize]
    }

    /// Whether nothing can happen on it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.sockets.iter().all(|socket| *socket != Socket::Open)
            && self
                .directions
                .iter()
                .all(|direction| direction.queue.is_empty())
    }

    /// The wire that carries what `from` sends.
    #[must_use]
    pub fn wire(&self, from: End) -> Wire {
        Wire {
            from: self.node(from),
            to: self.node(from.other()),
            path: self.path,
        }
    }

    /// Queues a segment; it arrives after `delay`, never before an earlier one.
    pub fn send(&mut self, from: End, now: SimTime, delay: u64, segment: Segment<M>) {
        let direction = &mut self.directions[from as usize];
        direction.last = direction.last.max(now.plus(delay));
        direction.queue.push_back((direction.last, segment));
    }

    /// Looks for what has arrived from `from`; `up` says whether the wire is whole.
    pub fn poll(&mut self, from: End, now: SimTime, up: bool) -> Polled<M> {
        let direction = &mut self.directions[from as usize];
        match direction.queue.front() {
            None => Polled::Empty,
            Some((at, _)) if *at > now => Polled::Later(*at),
            Some(_) if !up => {
                let again = now.plus(direction.retransmit);
                direction.retransmit = (direction.retransmit * 2).min(RETRANSMIT_MAX);
                direction.last = direction.last.max(again);
                direction.retry_at = again;
                Polled::Later(again)
            }
            Some(_) => {
                direction.retransmit = RETRANSMIT_MIN;
                let (_, segment) = direction.queue.pop_front().expect("looked at just now");
                Polled::Arrived(segment)
            }
        }
    }

    /// The process at `end` closes the socket; what it sent still goes out.
    pub fn close(&mut self, end: End, now: SimTime, delay: u64) {
        self.sockets[end as usize] = Socket::Closed;
        self.send(end, now, delay, Segment::End(LinkDownReason::Closed));
        self.directions[end.other() as usize].queue.clear();
    }

    /// The process at `end` dies: a prefix of what it sent gets out, then a reset.
    pub fn kill(&mut self, end: End, now: SimTime, delay: u64, rng: &mut Rng) {
        self.cut_off(end, rng);
        self.sockets[end as usize] = Socket::Closed;
        self.send(end, now, delay, Segment::End(LinkDownReason::Broken));
    }

    /// The machine at `end` loses its power: a prefix gets out, then silence.
    pub fn vanish(&mut self, end: End, rng: &mut Rng) {
        self.cut_off(end, rng);
        self.sockets[end as usize] = Socket::Vanished;
    }

    /// Something arrived at an end that is no more: the sender gets a reset.
    pub fn reset_from(&mut self, end: End, now: SimTime, delay: u64) {
        self.directions[end.other() as usize].queue.clear();
        self.directions[end as usize].queue.clear();
        self.send(end, now, delay, Segment::End(LinkDownReason::Broken));
    }

    /// That end saw the stream's end.
    pub fn note_ended(&mut self, end: End) {
        self.sockets[end as usize] = Socket::Closed;
    }

    fn cut_off(&mut self, end: End, rng: &mut Rng) {
        let queue = &mut self.directions[end as usize].queue;
        let kept = rng.below(queue.len() as u64 + 1);
        queue.truncate(usize::try_from(kept).expect("at most the queue's length"));
        self.directions[end.other() as usize].queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: NetOptions = NetOptions {
        delay_min: MILLIS,
        delay_max: 3 * MILLIS,
        loss_per_mille: 0,
        double_per_mille: 0,
    };
    const WIRE: Wire = Wire {
        from: NodeId::A,
        to: NodeId::B,
        path: Path::Lan,
    };

    fn connection() -> Connection<u32> {
        Connection::new(SessionId(1), Path::Lan, NodeId::B, NodeId::A)
    }

    fn arrived(connection: &mut Connection<u32>, now: SimTime) -> Vec<u32> {
        let mut frames = Vec::new();
        while let Polled::Arrived(segment) = connection.poll(End::Dialler, now, true) {
            if let Segment::Frame(frame) = segment {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn overlapping_cuts_are_over_when_both_are_mended() {
        let mut wires = Wires::new(1, QUIET);
        wires.cut(WIRE);
        wires.cut(WIRE);
        wires.mend(WIRE);
        assert!(!wires.is_up(WIRE));
        assert!(wires.datagram(WIRE).is_empty());
        wires.mend(WIRE);
        assert_eq!(wires.datagram(WIRE).len(), 1);
    }

    #[test]
    fn the_backplane_does_not_reach_the_arbitrator() {
        assert!(!Path::Backplane.joins(NodeId::A, NodeId::ARBITRATOR));
        assert!(Path::Lan.joins(NodeId::A, NodeId::ARBITRATOR));
    }

    #[test]
    fn frames_arrive_in_order_whatever_their_delays() {
        let mut connection = connection();
        connection.send(End::Dialler, SimTime(0), 9, Segment::Frame(1));
        connection.send(End::Dialler, SimTime(0), 2, Segment::Frame(2));
        assert!(arrived(&mut connection, SimTime(8)).is_empty());
        assert_eq!(arrived(&mut connection, SimTime(9)), [1, 2]);
    }

    #[test]
    fn a_cut_stalls_a_connection_and_loses_nothing() {
        let mut connection = connection();
        connection.send(End::Dialler, SimTime(0), 1, Segment::Frame(1));
        let Polled::Later(again) = connection.poll(End::Dialler, SimTime(1), false) else {
            panic!("a stalled direction says when to look again");
        };
        assert_eq!(again, SimTime(1 + RETRANSMIT_MIN));
        assert_eq!(arrived(&mut connection, again), [1]);
    }

    #[test]
    fn a_killed_process_leaves_a_prefix_and_a_reset() {
        let mut lengths = [false; 4];
        for ordinal in 0..100 {
            let mut connection = connection();
            for frame in 0..3 {
                connection.send(End::Dialler, SimTime(0), 1, Segment::Frame(frame));
            }
            let mut rng = Rng::keyed(1, Stream::Link, ordinal);
            connection.kill(End::Dialler, SimTime(0), 1, &mut rng);
            let frames = arrived(&mut connection, SimTime(1));
            assert_eq!(frames, (0..3).take(frames.len()).collect::<Vec<_>>());
            lengths[frames.len()] = true;
        }
        assert_eq!(lengths, [true; 4]);
    }
}
