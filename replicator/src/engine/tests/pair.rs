//! Two engines, their disks and the link between them, run one event at a time in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::engine::*;
use crate::meta::{NewReplica, Superblock, format};
use crate::protocol::Message;
use crate::types::{
    Activation, Ballot, BlockCount, ByteLen, ByteOffset, CommittedView, DataGeneration, InSync,
    QuorumEvidence, ReplicaId, RequestId, ResyncRate, Role, SessionId, ViewCause, VolumeRow,
    VoterId, VoterSet,
};

/// What engines in tests give their disks.
pub(super) const DISK_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

/// A disk with a volatile cache.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) completed: BTreeMap<u64, Vec<u8>>,
    pub(super) durable: BTreeMap<u64, Vec<u8>>,
    pub(super) failing: bool,
    /// Nothing completes.
    pub(super) held: bool,
    /// Nothing of blocks below it, nor a flush of all, completes.
    pub(super) held_below: u64,
    /// Blocks that cannot be read.
    pub(super) bad: BTreeSet<u64>,
    /// The next flush fails, and what was completed is lost all the same.
    pub(super) fail_next_flush: bool,
}

impl Disk {
    fn holds(&self, command: &DiskCommand) -> bool {
        let below = match command {
            DiskCommand::Flush => self.held_below > 0,
            DiskCommand::Read(range)
            | DiskCommand::Write { range, .. }
            | DiskCommand::Zeroes { range, .. } => range.start().0 < self.held_below,
        };
        self.held || below
    }

    pub(super) fn read(&self, nr: u64) -> Vec<u8> {
        self.completed.get(&nr).cloned().unwrap_or_else(|| block(0))
    }

    fn write(&mut self, nr: u64, bytes: &[u8], fua: bool) {
        self.completed.insert(nr, bytes.to_vec());
        if fua {
            self.durable.insert(nr, bytes.to_vec());
        }
    }

    pub(super) fn execute(&mut self, command: &DiskCommand) -> Result<DiskReply, DiskError> {
        if self.failing {
            return Err(DiskError::Io);
        }
        match command {
            DiskCommand::Read(range) => {
                if range.iter().any(|nr| self.bad.contains(&nr.0)) {
                    return Err(DiskError::Io);
                }
                let mut data = Vec::with_capacity(usize::try_from(range.len().0).unwrap());
                for nr in range.iter() {
                    data.extend_from_slice(&self.read(nr.0));
                }
                return Ok(DiskReply::Data(data.into()));
            }
            DiskCommand::Write {
                range,
                payload,
                fua,
            } => {
                for (nr, bytes) in range.iter().zip(payload.chunks(4096)) {
                    self.write(nr.0, bytes, *fua);
                }
            }
            DiskCommand::Zeroes { range, fua, .. } => {
                // Nothing there reads as zeroes.
                let range = range.start().0..range.end().0;
                self.completed.retain(|nr, _| !range.contains(nr));
                if *fua {
                    self.durable.retain(|nr, _| !range.contains(nr));
                }
            }
            DiskCommand::Flush if core::mem::take(&mut self.fail_next_flush) => {
                // What fsyncgate taught: the pages are dropped, the next flush succeeds.
                self.completed = self.durable.clone();
                return Err(DiskError::Io);
            }
            DiskCommand::Flush => self.durable = self.completed.clone(),
        }
        Ok(DiskReply::Done)
    }
}

pub(super) struct Node {
    pub(super) engine: Engine,
    pub(super) disk: Disk,
    pub(super) meta: Vec<u8>,
    pub(super) meta_failing: bool,
    /// Metadata operations do not complete.
    pub(super) meta_held: bool,
    /// Messages to this node stay on the link.
    pub(super) inbox_held: bool,
    pub(super) events: Vec<Event>,
    pub(super) boot_id: u128,
    /// What the voter store says of the replica.
    pub(super) marked_failed: bool,
    /// Guest requests without an answer.
    pub(super) unanswered: BTreeSet<u64>,
}

impl Node {
    pub(super) fn boot_id(&self) -> u128 {
        self.boot_id
    }
}

pub(super) enum Pending {
    Disk(OpId, DiskCommand),
    Meta(OpId, MetaRequest),
    Mark(OpId),
    Deliver(SessionId, Message),
    /// The other side closed the connection, after what it had sent.
    Closed(SessionId),
}

/// A connection; a side that closed it hears nothing more.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) session: SessionId,
    pub(super) open: [bool; 2],
}

/// What a pair is made with.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Blocks of the two devices.
    pub(super) blocks: [u64; 2],
    pub(super) al_slots: u16,
    /// Whether the devices are known to be full of zeroes.
    pub(super) zero_proven: bool,
    pub(super) protocol: ReplicationProtocol,
    pub(super) resync_rate: ResyncRate,
    /// Where a second volume begins; 0: there is none.
    pub(super) second_at: u64,
}

impl Shape {
    pub(super) const SMALL: Self = Self {
        blocks: [4096; 2],
        al_slots: 67,
        zero_proven: true,
        protocol: ReplicationProtocol::C,
        resync_rate: ResyncRate::Unlimited,
        second_at: 0,
    };

    fn row(&self) -> VolumeRow {
        match self.second_at {
            0 => VolumeRow::only(VolumeId(0)),
            at => VolumeRow::new(&[(VolumeId(0), BlockCount(at)), (VolumeId(1), BlockCount(0))])
                .unwrap(),
        }
    }

    pub(super) fn under(protocol: ReplicationProtocol) -> Self {
        Self {
            protocol,
            ..Self::SMALL
        }
    }
}

pub(super) struct Pair {
    pub(super) nodes: [Node; 2],
    pub(super) shape: Shape,
    /// What is under way, with its node.
    pub(super) queue: VecDeque<(usize, Pending)>,
    pub(super) now: Instant,
    pub(super) link: Option<Link>,
    pub(super) sessions: u64,
    pub(super) view: Option<View>,
    requests: u64,
    answers: BTreeMap<u64, Result<GuestReply, GuestError>>,
    /// Answers in the order they came, for whoever watches.
    pub(super) answered: Vec<u64>,
}

pub(super) fn config(node: NodeId, boot_id: u128, shape: &Shape) -> EngineConfig {
    EngineConfig {
        node,
        resource: ResourceId(1),
        volume: VolumeId(0),
        row: shape.row(),
        timeout: Duration::from_secs(3),
        disk_timeout: Some(DISK_TIMEOUT),
        protocol: shape.protocol,
        checksum_first: false,
        resync_rate: shape.resync_rate,
        guest_latency_target: Duration::from_millis(10),
        boot_id,
        incarnation: u128::from(node.raw()) + 1,
    }
}

pub(super) fn formatted(node: NodeId, replica: u128, shape: &Shape) -> Vec<u8> {
    let superblock = Superblock::blank(NewReplica {
        resource: ResourceId(1),
        volume: VolumeId(0),
        node,
        replica: ReplicaId(replica),
        size: BlockCount(shape.blocks[node.index()]),
        al_slots: shape.al_slots,
        zero_proven: shape.zero_proven,
    });
    let plan = format(&superblock).unwrap();
    let mut area = vec![0; usize::try_from(plan.zero.len().0).unwrap()];
    for page in plan.pages {
        let at = usize::try_from(page.offset.0).unwrap();
        area[at..at + 4096].copy_from_slice(&page.bytes);
    }
    area
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::shaped(Shape::SMALL)
    }

    pub(super) fn shaped(shape: Shape) -> Self {
        let node = |node: NodeId| Node {
            engine: Engine::new(config(node, 1, &shape)),
            disk: Disk::default(),
            meta: formatted(node, 100 + u128::from(node.raw()), &shape),
            meta_failing: false,
            meta_held: false,
            inbox_held: false,
            events: Vec::new(),
            boot_id: 1,
            marked_failed: false,
            unanswered: BTreeSet::new(),
        };
        let mut pair = Self {
            nodes: [node(NodeId::A), node(NodeId::B)],
            shape,
            queue: VecDeque::new(),
            now: Instant(1_000_000_000),
            link: None,
            sessions: 0,
            view: None,
            requests: 0,
            answers: BTreeMap::new(),
            answered: Vec::new(),
        };
        for node in [NodeId::A, NodeId::B] {
            pair.attach(node);
        }
        pair
    }

    pub(super) fn in_sync_shaped(shape: Shape) -> Self {
        let mut pair = Self::shaped(shape);
        pair.found(NodeId::A);
        pair.connect();
        pair.add_peer(NodeId::A);
        pair
    }

    pub(super) fn in_sync() -> Self {
        let mut pair = Self::new();
        pair.found(NodeId::A);
        pair.connect();
        pair.add_peer(NodeId::A);
        pair
    }

    // --- Inputs ----------------------------------------------------------------------------

    pub(super) fn input(&mut self, node: NodeId, input: Input) {
        let mut out = Outbox::new();
        self.nodes[node.index()]
            .engine
            .handle(self.now, input, &mut out);
        for action in out {
            self.perform(node, action);
        }
    }

    fn perform(&mut self, node: NodeId, action: Action) {
        let at = node.index();
        match action {
            Action::Disk { op, command } => self.queue.push_back((at, Pending::Disk(op, command))),
            Action::Meta { op, request } => self.queue.push_back((at, Pending::Meta(op, request))),
            Action::Mark { op, mark } => {
                match mark {
                    ReplicaMark::Failed => self.nodes[at].marked_failed = true,
                    ReplicaMark::Clean => self.nodes[at].marked_failed = false,
                    ReplicaMark::Attached(_) => {}
                }
                self.queue.push_back((at, Pending::Mark(op)));
            }
            Action::Send { session, message } => {
                if self.is_open(at, session) {
                    self.queue
                        .push_back((1 - at, Pending::Deliver(session, message)));
                }
            }
            Action::CloseLink { session, .. } => {
                if self.is_open(at, session) {
                    self.close_side(at);
                    self.queue.push_back((1 - at, Pending::Closed(session)));
                }
            }
            Action::Complete { request, result } => {
                assert!(
                    self.nodes[at].unanswered.remove(&request.0),
                    "answered twice, after it was dropped, or by another node"
                );
                assert!(self.answers.insert(request.0, result).is_none());
                self.answered.push(request.0);
            }
            Action::DropClients => self.nodes[at].unanswered.clear(),
            Action::Event(event) => self.nodes[at].events.push(event),
        }
    }

    pub(super) fn is_open(&self, at: usize, session: SessionId) -> bool {
        self.link
            .is_some_and(|link| link.session == session && link.open[at])
    }

    pub(super) fn close_side(&mut self, at: usize) {
        if let Some(link) = &mut self.link {
            link.open[at] = false;
            if link.open == [false; 2] {
                self.link = None;
            }
        }
    }

    fn may_go(&self, index: usize) -> bool {
        let (at, pending) = &self.queue[index];
        let node = &self.nodes[*at];
        let first = |same: fn(&Pending) -> bool| {
            !self
                .queue
                .iter()
                .take(index)
                .any(|(other, earlier)| other == at && same(earlier))
        };
        match pending {
            Pending::Disk(_, command) => !node.disk.holds(command),
            Pending::Meta(..) => !node.meta_held && first(|p| matches!(p, Pending::Meta(..))),
            Pending::Mark(_) => true,
            Pending::Deliver(..) | Pending::Closed(_) => {
                !node.inbox_held
                    && first(|p| matches!(p, Pending::Deliver(..) | Pending::Closed(_)))
            }
        }
    }

    /// Carries out up to `count` things that are under way, in order.
    pub(super) fn step(&mut self, count: usize) {
        for _ in 0..count {
            if !self.step_first() {
                return;
            }
        }
    }

    fn step_first(&mut self) -> bool {
        let index = (0..self.queue.len()).find(|index| self.may_go(*index));
        if let Some(index) = index {
            self.carry_out(index);
        }
        index.is_some()
    }

    /// Carries out one of the things that may go next, chosen by `choose(count)`.
    pub(super) fn step_any(&mut self, choose: impl FnOnce(usize) -> usize) -> bool {
        let ready: Vec<_> = (0..self.queue.len()).filter(|i| self.may_go(*i)).collect();
        if ready.is_empty() {
            return false;
        }
        self.carry_out(ready[choose(ready.len())]);
        true
    }

    pub(super) fn carry_out(&mut self, index: usize) {
        let Some((at, pending)) = self.queue.remove(index) else {
            return;
        };
        self.now = self.now.plus(Duration::from_micros(10));
        let node = NodeId::from_raw(u8::try_from(at).unwrap()).unwrap();
        match pending {
            Pending::Disk(op, command) => {
                let result = self.nodes[at].disk.execute(&command);
                self.input(node, Input::DiskDone { op, result });
            }
            Pending::Meta(op, request) => {
                let result = if self.nodes[at].meta_failing {
                    Err(DiskError::Io)
                } else {
                    Ok(self.meta(at, request))
                };
                self.input(node, Input::MetaDone { op, result });
            }
            Pending::Mark(op) => self.input(node, Input::MarkDone { op, result: Ok(()) }),
            Pending::Deliver(session, message) => {
                if self.is_open(at, session) {
                    self.input(node, Input::Received { session, message });
                }
            }
            Pending::Closed(session) => {
                if self.is_open(at, session) {
                    self.close_side(at);
                    let reason = LinkDownReason::Closed;
                    self.input(node, Input::LinkDown { session, reason });
                }
            }
        }
    }

    pub(super) fn meta(&mut self, at: usize, request: MetaRequest) -> DiskReply {
        let area = &mut self.nodes[at].meta;
        match request {
            MetaRequest::Read { offset, len } => {
                let start = usize::try_from(offset.0).unwrap();
                DiskReply::Data(
                    area[start..start + usize::try_from(len.0).unwrap()]
                        .to_vec()
                        .into(),
                )
            }
            MetaRequest::Write(pages) => {
                for page in pages {
                    let start = usize::try_from(page.offset.0).unwrap();
                    area[start..start + 4096].copy_from_slice(&page.bytes);
                }
                DiskReply::Done
            }
        }
    }

    /// Until nothing that may go is under way.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            if !self.step_first() {
                return;
            }
        }
        panic!("never quiet");
    }

    // --- The controller's part -------------------------------------------------------------

    pub(super) fn commit(
        &mut self,
        proposer: NodeId,
        change: impl FnOnce(&mut View),
    ) -> CommittedView {
        let voters = VoterSet([Some(VoterId(1)), Some(VoterId(2)), Some(VoterId(3))]);
        let mut view = self.view.unwrap_or(View {
            number: ViewNumber::NONE,
            primary: proposer,
            in_sync: InSync::only(proposer),
            data_generation: DataGeneration(77),
            replicas: [None, None],
            voters,
            size_blocks: self.shape.blocks[0].min(self.shape.blocks[1]),
            held: false,
            lossy: false,
            forced: false,
            cause: ViewCause::Founded,
        });
        view.number = view.number.next();
        change(&mut view);
        self.view = Some(view);
        let ballot = Ballot {
            round: 1,
            node: proposer.raw(),
            incarnation: 1,
        };
        let evidence = QuorumEvidence {
            ballot,
            accepted_by: voters.0,
        };
        CommittedView::prove(view, evidence).unwrap()
    }

    pub(super) fn found(&mut self, node: NodeId) {
        let committed = self.commit(node, |_| {});
        self.activate(node, committed);
    }

    pub(super) fn activate(&mut self, node: NodeId, committed: CommittedView) {
        self.input(
            node,
            Input::Activate(Activation::of(committed, node).unwrap()),
        );
        self.renew_lease(node);
        self.run();
        assert_eq!(self.snapshot(node).role, Role::Primary);
    }

    pub(super) fn take_over(&mut self, node: NodeId) {
        let seal = self.view.unwrap().number;
        self.input(node, Input::Drain { seal });
        self.run();
        assert!(self.saw(node, |event| *event == Event::Drained { seal, ok: true }));
        let committed = self.commit(node, |view| {
            view.primary = node;
            view.in_sync = InSync::only(node);
        });
        self.activate(node, committed);
    }

    pub(super) fn step_down(&mut self, node: NodeId) {
        self.input(node, Input::StepDown);
        self.input(node, Input::Learned(self.view.unwrap()));
    }

    pub(super) fn remove_peer(&mut self, node: NodeId) {
        let committed = self.commit(node, |view| view.in_sync = InSync::only(node));
        self.input(node, Input::Committed(committed));
    }

    pub(super) fn leave(&mut self, node: NodeId) {
        let committed = self.commit(node, |view| view.in_sync = InSync::only(node.peer()));
        self.input(node, Input::Committed(committed));
    }

    pub(super) fn add_peer(&mut self, node: NodeId) {
        self.run();
        assert!(
            self.saw(node, |event| *event == Event::ResyncDone),
            "resync has not ended"
        );
        let view = self.view.unwrap().number.next();
        self.input(node, Input::BeginAdd { view });
        self.run();
        assert!(self.saw(
            node,
            |e| matches!(e, Event::AddPrepared { view: v, .. } if *v == view)
        ));
        let committed = self.commit(node, |view| view.in_sync = InSync::BOTH);
        self.input(node, Input::Committed(committed));
        self.input(node.peer(), Input::Learned(*committed.view()));
        self.run();
        // A later Add's must not be taken for this one's.
        self.nodes[node.index()]
            .events
            .retain(|event| !matches!(event, Event::AddPrepared { .. }));
    }

    pub(super) fn renew_lease(&mut self, node: NodeId) {
        self.input(
            node,
            Input::Lease {
                until: self.now.plus(Duration::from_secs(1000)),
            },
        );
    }

    pub(super) fn lapse_lease(&mut self, node: NodeId) {
        self.now = self.now.plus(Duration::from_secs(1001));
        // Time passes on the link too: both sides have just heard of each other.
        if let Some(Link { session, .. }) = self.link {
            for side in [node.peer(), node] {
                let engine = &mut self.nodes[side.index()].engine;
                engine.now = self.now;
                engine.note_payment();
                self.input(
                    side,
                    Input::Received {
                        session,
                        message: Message::Pong,
                    },
                );
            }
        }
    }

    // --- Guests and what can be seen -------------------------------------------------------

    pub(super) fn admin(&mut self, node: NodeId, request: AdminRequest) {
        self.input(node, Input::Admin(request));
    }

    pub(super) fn guest(&mut self, node: NodeId, kind: GuestKind) -> u64 {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.nodes[node.index()].unanswered.insert(request.0);
        self.input(node, Input::Guest(GuestRequest { request, kind }));
        self.requests
    }

    pub(super) fn write(&mut self, node: NodeId, nr: u64, byte: u8) -> u64 {
        let offset = ByteOffset(nr * 4096);
        self.guest(
            node,
            GuestKind::Write {
                offset,
                payload: block(byte).into(),
                fua: false,
            },
        )
    }

    pub(super) fn answer(&self, request: u64) -> Option<Result<GuestReply, GuestError>> {
        self.answers.get(&request).cloned()
    }

    pub(super) fn snapshot(&self, node: NodeId) -> Snapshot {
        self.nodes[node.index()].engine.snapshot()
    }

    pub(super) fn saw(&self, node: NodeId, wanted: impl Fn(&Event) -> bool) -> bool {
        self.nodes[node.index()].events.iter().any(wanted)
    }

    pub(super) fn count(&self, node: NodeId, wanted: impl Fn(&Event) -> bool) -> usize {
        self.nodes[node.index()]
            .events
            .iter()
            .filter(|event| wanted(event))
            .count()
    }

    pub(super) fn disk(&self, node: NodeId, nr: u64) -> Vec<u8> {
        self.nodes[node.index()].disk.read(nr)
    }

    pub(super) fn durable(&self, node: NodeId, nr: u64) -> Vec<u8> {
        self.nodes[node.index()]
            .disk
            .durable
            .get(&nr)
            .cloned()
            .unwrap_or_else(|| block(0))
    }

    pub(super) fn assert_replicas_equal(&self) {
        if let Some(nr) = self.differing().first().copied() {
            let (a, b) = (self.disk(NodeId::A, nr), self.disk(NodeId::B, nr));
            panic!("block {nr} differs: {} and {}", a[0], b[0]);
        }
    }

    // --- Short words for stories -----------------------------------------------------------

    pub(super) fn read(&mut self, node: NodeId, nr: u64) -> u64 {
        let offset = ByteOffset(nr * 4096);
        let len = ByteLen(4096);
        self.guest(node, GuestKind::Read { offset, len })
    }

    pub(super) fn flush(&mut self, node: NodeId) -> u64 {
        self.guest(node, GuestKind::Flush)
    }

    /// Writes and waits for the answer.
    pub(super) fn written(&mut self, node: NodeId, nr: u64, byte: u8) {
        let request = self.write(node, nr, byte);
        self.run();
        assert_eq!(self.answer(request), Some(Ok(GuestReply::Done)));
    }

    /// A write that `node`'s disk has and the peer's has not, whose session is gone.
    pub(super) fn write_here_only(&mut self, node: NodeId, nr: u64, byte: u8) -> u64 {
        self.hold_inbox(node.peer(), true);
        let request = self.write(node, nr, byte);
        self.run();
        self.cut_link();
        self.hold_inbox(node.peer(), false);
        self.run();
        assert_eq!(self.answer(request), None);
        assert_eq!(self.disk(node, nr), block(byte));
        assert_ne!(self.disk(node.peer(), nr), block(byte));
        request
    }

    /// Flushes and waits for the answer.
    pub(super) fn flushed(&mut self, node: NodeId) {
        let request = self.flush(node);
        self.run();
        assert_eq!(self.answer(request), Some(Ok(GuestReply::Done)));
    }

    /// Reads a block and waits for its bytes.
    pub(super) fn read_back(&mut self, node: NodeId, nr: u64) -> Vec<u8> {
        let request = self.read(node, nr);
        self.run();
        match self.answer(request) {
            Some(Ok(GuestReply::Data(data))) => data.to_vec(),
            other => panic!("block {nr} was answered with {other:?}"),
        }
    }

    /// The Primary of record serves again, with the same `in_sync`.
    pub(super) fn recover(&mut self, node: NodeId) {
        let committed = self.commit(node, |view| view.primary = node);
        self.activate(node, committed);
    }

    pub(super) fn state(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    pub(super) fn facts(&self, node: NodeId) -> Option<ReplicaFacts> {
        self.nodes[node.index()].engine.replica_facts()
    }

    /// Ends every disk operation as a success that changes nothing, until there is none.
    pub(super) fn end_all_without_effect(&mut self) {
        loop {
            self.run();
            let index = (0..self.queue.len())
                .find(|index| matches!(self.queue[*index].1, Pending::Disk(..)));
            let Some((at, Pending::Disk(op, _))) = index.and_then(|nr| self.queue.remove(nr))
            else {
                return;
            };
            let node = NodeId::from_raw(u8::try_from(at).unwrap()).unwrap();
            let result = Ok(DiskReply::Done);
            self.input(node, Input::DiskDone { op, result });
        }
    }

    pub(super) fn hold_inbox(&mut self, node: NodeId, held: bool) {
        self.state(node).inbox_held = held;
    }
}
