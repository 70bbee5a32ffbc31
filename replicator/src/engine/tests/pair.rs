//! Two engines, their disks and the link between them, run one event at a time in order.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::*;
use crate::meta::{Features, ReplicaState, Superblock, format};
use crate::protocol::Message;
use crate::types::{
    Activation, Ballot, BlockCount, ByteLen, ByteOffset, CommittedView, DataGeneration, InSync,
    QuorumEvidence, ReplicaId, RequestId, Role, SessionId, ViewCause, VoterId, VoterSet,
};

const VOLUME: BlockCount = BlockCount(4096);

pub(super) fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

/// A disk with a volatile cache.
#[derive(Clone, Default)]
struct Disk {
    completed: BTreeMap<u64, Vec<u8>>,
    durable: BTreeMap<u64, Vec<u8>>,
    failing: bool,
    held: bool,
}

impl Disk {
    fn read(&self, nr: u64) -> Vec<u8> {
        self.completed.get(&nr).cloned().unwrap_or_else(|| block(0))
    }

    fn execute(&mut self, command: DiskCommand) -> Result<DiskReply, DiskError> {
        if self.failing {
            return Err(DiskError::Io);
        }
        match command {
            DiskCommand::Read(range) => {
                let data: Vec<u8> = range.iter().flat_map(|nr| self.read(nr.0)).collect();
                return Ok(DiskReply::Data(data.into()));
            }
            DiskCommand::Write {
                range,
                payload,
                fua,
            } => {
                for (nr, bytes) in range.iter().zip(payload.chunks(4096)) {
                    self.completed.insert(nr.0, bytes.to_vec());
                    if fua {
                        self.durable.insert(nr.0, bytes.to_vec());
                    }
                }
            }
            DiskCommand::Zeroes { range, .. } => {
                for nr in range.iter() {
                    self.completed.insert(nr.0, block(0));
                }
            }
            DiskCommand::Flush => self.durable = self.completed.clone(),
        }
        Ok(DiskReply::Done)
    }
}

struct Node {
    engine: Engine,
    disk: Disk,
    meta: Vec<u8>,
    events: Vec<Event>,
    boot_id: u128,
}

enum Pending {
    Disk(OpId, DiskCommand),
    Meta(OpId, MetaRequest),
    Mark(OpId),
    Deliver(SessionId, Message),
}

pub(super) struct Pair {
    nodes: [Node; 2],
    /// What is under way, with its node; carried out in order.
    queue: VecDeque<(usize, Pending)>,
    now: Instant,
    link: Option<SessionId>,
    sessions: u64,
    view: Option<View>,
    requests: u64,
    answers: BTreeMap<u64, Result<GuestReply, GuestError>>,
}

fn config(node: NodeId) -> EngineConfig {
    EngineConfig {
        node,
        resource: ResourceId(1),
        volume: VolumeId(0),
        timeout: Duration::from_secs(3),
        checksum_first: false,
        boot_id: 1,
        incarnation: u128::from(node.raw()) + 1,
    }
}

fn formatted(node: NodeId) -> Vec<u8> {
    let superblock = Superblock {
        sequence: 1,
        resource: ResourceId(1),
        volume: VolumeId(0),
        node,
        replica: ReplicaId(100 + u128::from(node.raw())),
        data_generation: None,
        size: VOLUME,
        al_slots: 67,
        state: ReplicaState::Blank,
        zero_proven: true,
        bitmap_base: None,
        last_view: ViewNumber::NONE,
        in_sync_from: None,
        open: false,
        boot_id: 0,
        full_sync_needed: false,
        bits_coarse: false,
        unwritten_bits_set: false,
        features: Features::default(),
    };
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
        let node = |node: NodeId| Node {
            engine: Engine::new(config(node)),
            disk: Disk::default(),
            meta: formatted(node),
            events: Vec::new(),
            boot_id: 1,
        };
        let mut pair = Self {
            nodes: [node(NodeId::A), node(NodeId::B)],
            queue: VecDeque::new(),
            now: Instant(1_000_000_000),
            link: None,
            sessions: 0,
            view: None,
            requests: 0,
            answers: BTreeMap::new(),
        };
        for node in [NodeId::A, NodeId::B] {
            pair.attach(node);
        }
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
            Action::Mark { op, .. } => self.queue.push_back((at, Pending::Mark(op))),
            Action::Send { session, message } => {
                if self.link == Some(session) {
                    self.queue
                        .push_back((1 - at, Pending::Deliver(session, message)));
                }
            }
            Action::CloseLink { session, .. } => {
                if self.link == Some(session) {
                    self.link = None;
                    let down = Input::LinkDown {
                        session,
                        reason: LinkDownReason::Closed,
                    };
                    self.input(node.peer(), down);
                }
            }
            Action::Complete { request, result } => {
                assert!(
                    self.answers.insert(request.0, result).is_none(),
                    "answered twice"
                );
            }
            Action::DropClients => {}
            Action::Event(event) => self.nodes[at].events.push(event),
        }
    }

    /// Carries out up to `count` things that are under way.
    pub(super) fn step(&mut self, count: usize) {
        for _ in 0..count {
            let next = self.queue.iter().position(|(at, pending)| {
                !(self.nodes[*at].disk.held && matches!(pending, Pending::Disk(..)))
            });
            let Some((at, pending)) = next.and_then(|nr| self.queue.remove(nr)) else {
                return;
            };
            self.now = self.now.plus(Duration::from_micros(10));
            let node = if at == 0 { NodeId::A } else { NodeId::B };
            match pending {
                Pending::Disk(op, command) => {
                    let result = self.nodes[at].disk.execute(command);
                    self.input(node, Input::DiskDone { op, result });
                }
                Pending::Meta(op, request) => {
                    let result = Ok(self.meta(at, request));
                    self.input(node, Input::MetaDone { op, result });
                }
                Pending::Mark(op) => self.input(node, Input::MarkDone { op, result: Ok(()) }),
                Pending::Deliver(session, message) => {
                    if self.link == Some(session) {
                        self.input(node, Input::Received { session, message });
                    }
                }
            }
        }
    }

    fn meta(&mut self, at: usize, request: MetaRequest) -> DiskReply {
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

    /// Until nothing is under way.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            let before = self.queue.len();
            self.step(1);
            if self.queue.is_empty() || (self.queue.len() == before && self.all_held()) {
                return;
            }
        }
        panic!("never quiet");
    }

    fn all_held(&self) -> bool {
        self.queue
            .iter()
            .all(|(at, p)| self.nodes[*at].disk.held && matches!(p, Pending::Disk(..)))
    }

    // --- The controller's part -------------------------------------------------------------

    fn commit(&mut self, proposer: NodeId, change: impl FnOnce(&mut View)) -> CommittedView {
        let voters = VoterSet([Some(VoterId(1)), Some(VoterId(2)), Some(VoterId(3))]);
        let mut view = self.view.unwrap_or(View {
            number: ViewNumber::NONE,
            primary: proposer,
            in_sync: InSync::only(proposer),
            data_generation: DataGeneration(77),
            replicas: [None, None],
            voters,
            size_blocks: VOLUME.0,
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

    fn activate(&mut self, node: NodeId, committed: CommittedView) {
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
        self.input(node, Input::StepDown(StepDownReason::Superseded));
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
        if let Some(session) = self.link {
            for side in [node.peer(), node] {
                self.nodes[side.index()].engine.now = self.now;
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

    // --- Link, disks, crashes --------------------------------------------------------------

    pub(super) fn connect(&mut self) {
        self.start_link();
        self.run();
    }

    pub(super) fn start_link(&mut self) {
        self.cut_link();
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.link = Some(session);
        for node in [NodeId::A, NodeId::B] {
            self.input(node, Input::LinkUp { session });
        }
    }

    pub(super) fn cut_link(&mut self) {
        let Some(session) = self.link.take() else {
            return;
        };
        for node in [NodeId::A, NodeId::B] {
            self.input(
                node,
                Input::LinkDown {
                    session,
                    reason: LinkDownReason::Broken,
                },
            );
        }
    }

    pub(super) fn disconnect(&mut self) {
        self.cut_link();
        self.run();
    }

    pub(super) fn attach(&mut self, node: NodeId) {
        let meta_len = ByteLen(self.nodes[node.index()].meta.len() as u64);
        let request = AttachRequest {
            device_len: VOLUME.bytes(),
            meta_len,
            boot_id: self.nodes[node.index()].boot_id,
            marked_failed: false,
            expected_replica: None,
        };
        self.admin(node, AdminRequest::Attach(request));
        self.run();
        assert!(self.saw(node, |event| matches!(event, Event::Attached(Ok(_)))));
    }

    pub(super) fn crash(&mut self, node: NodeId) {
        self.cut_link();
        self.queue.retain(|(at, _)| *at != node.index());
        self.nodes[node.index()].engine = Engine::new(config(node));
        self.nodes[node.index()].events.clear();
    }

    pub(super) fn restart(&mut self, node: NodeId) {
        self.attach(node);
        if let Some(view) = self.view {
            self.input(node, Input::Learned(view));
        }
        self.run();
    }

    pub(super) fn hold_disk(&mut self, node: NodeId, held: bool) {
        self.nodes[node.index()].disk.held = held;
    }

    pub(super) fn fail_disk(&mut self, node: NodeId) {
        self.nodes[node.index()].disk.failing = true;
    }

    // --- Guests and what can be seen -------------------------------------------------------

    pub(super) fn admin(&mut self, node: NodeId, request: AdminRequest) {
        self.input(node, Input::Admin(request));
    }

    pub(super) fn guest(&mut self, node: NodeId, kind: GuestKind) -> u64 {
        self.requests += 1;
        let request = RequestId(self.requests);
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
        for nr in 0..VOLUME.0 {
            let (a, b) = (self.disk(NodeId::A, nr), self.disk(NodeId::B, nr));
            assert!(a == b, "block {nr} differs: {} and {}", a[0], b[0]);
        }
    }
}
