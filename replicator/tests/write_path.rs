//! What a replicated write costs in allocations: a count, so it means the same on any machine.
//!
//! Two engines, virtual disks that complete at once, a link that delivers at once. Only what the
//! engines themselves allocate is counted. A snapshot per input, a list per turn: anything that
//! creeps onto the path shows here.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use replicator::engine::{
    Action, AdminRequest, AttachRequest, DiskReply, Engine, EngineConfig, GuestKind, GuestRequest,
    Input, MetaRequest, Outbox,
};
use replicator::meta::{NewReplica, Superblock, format};
use replicator::protocol::Message;
use replicator::types::{
    Activation, BLOCK_LEN, Ballot, BlockCount, ByteLen, ByteOffset, CommittedView, DataGeneration,
    InSync, Instant, NodeId, OpId, Payload, QuorumEvidence, ReplicaId, ReplicationProtocol,
    RequestId, ResourceId, SessionId, View, ViewCause, ViewNumber, VolumeId, VoterId, VoterSet,
};

const BLOCKS: BlockCount = BlockCount(1 << 16);
const WARM_UP: u64 = 3_000;
const MEASURED: u64 = 4_000;

/// Counts what one thread allocates while it says so.
struct Counting;

thread_local! {
    static COUNTED: Cell<u64> = const { Cell::new(0) };
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note() {
    if COUNTING.get() {
        COUNTED.set(COUNTED.get() + 1);
    }
}

#[allow(unsafe_code, reason = "an allocator that counts")]
// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

enum Pending {
    Disk(OpId),
    Meta(OpId, MetaRequest),
    Mark(OpId),
    Deliver(SessionId, Message),
}

struct Pair {
    engines: [Engine; 2],
    areas: [Vec<u8>; 2],
    queue: VecDeque<(usize, Pending)>,
    out: Outbox,
    now: Instant,
    answered: u64,
}

fn superblock(node: NodeId) -> Superblock {
    Superblock::blank(NewReplica {
        resource: ResourceId(1),
        volume: VolumeId(0),
        node,
        replica: ReplicaId(100 + u128::from(node.raw())),
        size: BLOCKS,
        al_slots: 64,
        zero_proven: true,
    })
}

fn area(node: NodeId) -> Vec<u8> {
    let plan = format(&superblock(node)).unwrap();
    let mut area = vec![0; usize::try_from(plan.zero.len().0).unwrap()];
    for page in plan.pages {
        let at = usize::try_from(page.offset.0).unwrap();
        area[at..at + page.bytes.len()].copy_from_slice(&page.bytes);
    }
    area
}

fn config(node: NodeId, protocol: ReplicationProtocol) -> EngineConfig {
    EngineConfig {
        node,
        resource: ResourceId(1),
        volume: VolumeId(0),
        row: replicator::types::VolumeRow::only(VolumeId(0)),
        timeout: Duration::from_secs(3),
        disk_timeout: None,
        protocol,
        checksum_first: false,
        resync_rate: replicator::types::ResyncRate::Auto,
        guest_latency_target: Duration::from_millis(10),
        boot_id: 1,
        incarnation: 1,
    }
}

impl Pair {
    fn new(protocol: ReplicationProtocol) -> Self {
        let nodes = [NodeId::A, NodeId::B];
        let mut pair = Self {
            engines: nodes.map(|node| Engine::new(config(node, protocol))),
            areas: nodes.map(area),
            queue: VecDeque::new(),
            out: Outbox::new(),
            now: Instant(1_000_000_000),
            answered: 0,
        };
        for at in 0..2 {
            let request = AttachRequest {
                device_len: BLOCKS.bytes(),
                meta_len: ByteLen(pair.areas[at].len() as u64),
                boot_id: 1,
                marked_failed: false,
                expected_replica: None,
                seal: ViewNumber::NONE,
            };
            pair.input(at, Input::Admin(AdminRequest::Attach(request)));
        }
        pair.run();
        let activation = Activation::of(view(1, InSync::only(NodeId::A)), NodeId::A).unwrap();
        pair.input(0, Input::Activate(activation));
        let until = pair.now.plus(Duration::from_secs(3600));
        pair.input(0, Input::Lease { until });
        pair.run();
        pair
    }

    /// The peer connects, is equal, and is added.
    fn join(&mut self) {
        for at in 0..2 {
            let session = SessionId(1);
            self.input(at, Input::LinkUp { session });
        }
        self.run();
        let number = ViewNumber(2);
        self.input(0, Input::BeginAdd { view: number });
        self.run();
        self.input(0, Input::Committed(view(2, InSync::BOTH)));
        self.run();
    }

    fn input(&mut self, at: usize, input: Input) {
        let mut out = std::mem::take(&mut self.out);
        COUNTING.set(true);
        self.engines[at].handle(self.now, input, &mut out);
        COUNTING.set(false);
        for action in out.drain(..) {
            match action {
                Action::Disk { op, .. } => self.queue.push_back((at, Pending::Disk(op))),
                Action::Meta { op, request } => {
                    self.queue.push_back((at, Pending::Meta(op, request)));
                }
                Action::Mark { op, .. } => self.queue.push_back((at, Pending::Mark(op))),
                Action::Send { session, message } => {
                    self.queue
                        .push_back((1 - at, Pending::Deliver(session, message)));
                }
                Action::Complete { result, .. } => {
                    result.unwrap();
                    self.answered += 1;
                }
                Action::CloseLink { reason, .. } => panic!("the link ends: {reason:?}"),
                Action::DropClients => panic!("clients are dropped"),
                Action::Event(_) => {}
            }
        }
        self.out = out;
    }

    fn run(&mut self) {
        while let Some((at, pending)) = self.queue.pop_front() {
            self.now = self.now.plus(Duration::from_micros(1));
            let input = match pending {
                Pending::Disk(op) => Input::DiskDone {
                    op,
                    result: Ok(DiskReply::Done),
                },
                Pending::Meta(op, request) => Input::MetaDone {
                    op,
                    result: Ok(self.meta(at, request)),
                },
                Pending::Mark(op) => Input::MarkDone { op, result: Ok(()) },
                Pending::Deliver(session, message) => Input::Received { session, message },
            };
            self.input(at, input);
        }
    }

    fn meta(&mut self, at: usize, request: MetaRequest) -> DiskReply {
        let area = &mut self.areas[at];
        let index = |offset: ByteOffset| usize::try_from(offset.0).unwrap();
        match request {
            MetaRequest::Read { offset, len } => {
                let start = index(offset);
                let end = start + usize::try_from(len.0).unwrap();
                DiskReply::Data(area[start..end].to_vec().into())
            }
            MetaRequest::Write(pages) => {
                for page in pages {
                    let start = index(page.offset);
                    area[start..start + page.bytes.len()].copy_from_slice(&page.bytes);
                }
                DiskReply::Done
            }
        }
    }

    /// `count` writes of a block each, `depth` at a time, over 48 extents.
    fn write(&mut self, count: u64, depth: u64) {
        let payload = Payload::from(vec![7; 4096]);
        for nr in 0..count / depth {
            for of in 0..depth {
                let block = (nr * depth + of) * 7919 % (48 * 1024);
                let kind = GuestKind::Write {
                    offset: ByteOffset(block * BLOCK_LEN),
                    payload: payload.clone(),
                    fua: false,
                };
                let request = RequestId(1 + nr * depth + of);
                self.input(0, Input::Guest(GuestRequest { request, kind }));
            }
            self.run();
        }
    }

    /// Allocations of both engines per write, when nothing grows any more.
    fn cost(&mut self, depth: u64) -> f64 {
        self.write(WARM_UP, depth);
        COUNTED.set(0);
        let before = self.answered;
        self.write(MEASURED, depth);
        let answered = self.answered - before;
        assert_eq!(answered, MEASURED / depth * depth, "each is answered");
        let counted = u32::try_from(COUNTED.get()).unwrap();
        f64::from(counted) / f64::from(u32::try_from(answered).unwrap())
    }
}

fn view(number: u64, in_sync: InSync) -> CommittedView {
    let voters = VoterSet([1, 2, 3].map(|id| Some(VoterId(id))));
    let view = View {
        number: ViewNumber(number),
        primary: NodeId::A,
        in_sync,
        data_generation: DataGeneration(77),
        replicas: [None, None],
        voters,
        size_blocks: BLOCKS.0,
        held: false,
        lossy: false,
        forced: false,
        cause: ViewCause::Founded,
    };
    let evidence = QuorumEvidence {
        ballot: Ballot {
            round: 1,
            node: 0,
            incarnation: 1,
        },
        accepted_by: voters.0,
    };
    CommittedView::prove(view, evidence).unwrap()
}

/// The tolerance is for what is done once in many writes: a flush round retires 4,096 of them.
#[test]
fn a_write_in_steady_state_allocates_next_to_nothing() {
    for depth in [1, 32] {
        let alone = Pair::new(ReplicationProtocol::C).cost(depth);
        assert!(alone <= 0.05, "one replica, depth {depth}: {alone} a write");
        for protocol in [
            ReplicationProtocol::A,
            ReplicationProtocol::B,
            ReplicationProtocol::C,
        ] {
            let mut pair = Pair::new(protocol);
            pair.join();
            let both = pair.cost(depth);
            assert!(both <= 0.1, "{protocol:?}, depth {depth}: {both} a write");
        }
    }
}
