//! What will happen, decided before it does: options, requests with times, faults with times.
//!
//! A seed expands to one plan. Every item is drawn from its own key, and every fault brings its
//! own end, so a plan with items taken out is a plan, and the rest of it is unchanged.

mod operators;
mod volume_orders;

use replicator::types::{Failover, NodeId, ReplicationProtocol};

use crate::clock::{MICROS, MILLIS, SECS, SimTime};
use crate::net::{NetOptions, Path, Wire};
use crate::rng::{Rng, Stream};
use crate::stamp::CELLS_PER_BLOCK;

pub use operators::{CONTROL_FROM, MOVES_FROM, PLACEMENT_FROM};
use operators::{draw_control, draw_hold_down, draw_moves, draw_prefer, draw_takeovers};
pub use volume_orders::VOLUME_ORDERS_FROM;
use volume_orders::{draw_growths, draw_suspensions, move_beyond};

/// Blocks in a 4 MiB activity-log extent.
const EXTENT_BLOCKS: u64 = 1024;
/// Hottest blocks of a volume: all requests go there, so that they collide.
const HOT_BLOCKS_MAX: u64 = 48;
/// Requests of a run: enough for several failovers' worth, few enough for ten runs a second.
const OPS_MAX: u64 = 600;
/// Faults of a run.
const FAULTS_MAX: u64 = 12;

/// Lease and beacon times (`ha.md` names them fast and default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Failover in about 0.7 s.
    Fast,
    /// Failover in about 3 s.
    Default,
}

/// The constants of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Timing profile.
    pub profile: Profile,
    /// When writes are acknowledged.
    pub protocol: ReplicationProtocol,
    /// Whether the survivor takes over by itself.
    pub failover: Failover,
    /// Size of the volume, as it is made.
    pub volume_blocks: u64,
    /// Size of the devices, and so of the volume at most.
    pub device_blocks: u64,
    /// The blocks requests go to.
    pub hot_blocks: Vec<u64>,
    /// Slots of the activity log, in extents; small ones force evictions.
    pub al_slots: u16,
    /// Clients.
    pub clients: u64,
    /// Requests one client has in flight at most.
    pub depth: u64,
    /// How long faults happen.
    pub safety: SimTime,
    /// Network.
    pub net: NetOptions,
    /// Disk latency, shortest and longest, in nanoseconds.
    pub disk_latency: [u64; 2],
    /// Latency of a voter store's fsync.
    pub store_latency: [u64; 2],
    /// Delay of the queues between a node's two threads.
    pub thread_delay: [u64; 2],
    /// Clock rate error of each node, in parts per million.
    pub rate_ppm: [i64; 3],
    /// The node that serves if it can, if one is preferred.
    pub prefer: Option<NodeId>,
    /// How long it must have been well to have it back, in nanoseconds.
    pub hold_down: u64,
    /// Whether the devices are known to be zeroes when founded.
    pub zero_proven: bool,
    /// Fault kinds switched on.
    pub kinds: Vec<FaultKind>,
}

/// A kind of fault; each is on or off for a whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// SIGKILL of one process.
    Kill,
    /// SIGKILL of both data nodes' processes.
    KillBoth,
    /// Power cut of one machine.
    Power,
    /// Power cut of both data nodes.
    PowerBoth,
    /// SIGSTOP.
    Pause,
    /// One direction of one path.
    CutOneWay,
    /// All paths between two nodes.
    CutPair,
    /// All paths of one node.
    Isolate,
    /// A link that goes up and down.
    Flap,
    /// Datagrams and segments take long.
    Slow,
    /// Disk operations fail.
    DiskError,
    /// Metadata operations fail.
    MetaError,
    /// The disk answers nothing for a while.
    DiskStall,
    /// The voter store's fsync takes long.
    StoreStall,
    /// An operator demotes and promotes.
    Operator,
}

/// All kinds.
pub const FAULT_KINDS: [FaultKind; 15] = [
    FaultKind::Kill,
    FaultKind::KillBoth,
    FaultKind::Power,
    FaultKind::PowerBoth,
    FaultKind::Pause,
    FaultKind::CutOneWay,
    FaultKind::CutPair,
    FaultKind::Isolate,
    FaultKind::Flap,
    FaultKind::Slow,
    FaultKind::DiskError,
    FaultKind::MetaError,
    FaultKind::DiskStall,
    FaultKind::StoreStall,
    FaultKind::Operator,
];

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Read.
    Read,
    /// Write, durable on answer if `fua`.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// Trim.
    Trim,
    /// Write zeroes.
    Zeroes {
        /// Deallocating is allowed.
        may_unmap: bool,
    },
}

/// One request of the workload.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// Earliest moment; a busy or unconnected client is later.
    pub at: SimTime,
    /// Who.
    pub client: u64,
    /// What.
    pub kind: OpKind,
    /// First 512-byte cell.
    pub first_cell: u64,
    /// Cells.
    pub cells: u64,
}

/// Which disk operations an error hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Reads.
    Read,
    /// Writes and zeroes.
    Write,
    /// Flushes.
    Flush,
    /// All.
    Any,
}

/// One fault; `length` is how long it lasts.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it begins.
    pub at: SimTime,
    /// How long it lasts, in nanoseconds.
    pub length: u64,
    /// What.
    pub what: FaultWhat,
}

/// What a fault does.
#[derive(Clone, Debug)]
pub enum FaultWhat {
    /// The process dies and is started again at the end.
    Kill(NodeId),
    /// The power goes and comes back.
    Power(NodeId),
    /// The process stands still.
    Pause(NodeId),
    /// These wires are cut.
    Cut(Vec<Wire>),
    /// Everything takes so much longer.
    Slow {
        /// Added to every delay.
        extra: u64,
    },
    /// Data operations fail.
    DiskError {
        /// Where.
        node: NodeId,
        /// Which.
        op: DiskOp,
        /// Of 1000.
        per_mille: u64,
    },
    /// Metadata operations fail.
    MetaError {
        /// Where.
        node: NodeId,
        /// Of 1000.
        per_mille: u64,
    },
    /// Disk operations end only afterwards.
    DiskStall(NodeId),
    /// Neither data nor metadata operations end before the fault does, and some long after it.
    DiskHang(NodeId),
    /// Store writes take so much longer.
    StoreStall {
        /// Where.
        node: NodeId,
        /// Added latency.
        extra: u64,
    },
    /// The daemon is told to stop: it hands over, and ends with the fault, to come back at once.
    Stop(NodeId),
    /// `pause-sync` and `resume-sync`.
    HoldResync(NodeId),
    /// `resync --max-rate`, and without limit at the end.
    PaceResync {
        /// Where it is ordered.
        node: NodeId,
        /// Bytes a second.
        rate: u64,
    },
    /// `invalidate`, taken back at the end as far as it waits.
    Invalidate(NodeId),
    /// `verify`, stopped at the end if it still runs.
    Verify {
        /// Where it is ordered; only a Primary does it.
        node: NodeId,
        /// What differs is mended.
        repair: bool,
    },
    /// A block of a disk changes, and nobody is told.
    Rot {
        /// Whose.
        node: NodeId,
        /// One that no request goes to.
        block: u64,
    },
    /// `resize`, given to both: the Primary does it.
    Grow {
        /// Blocks of the larger volume.
        to: u64,
    },
    /// `suspend-io`, and `resume-io` at the end.
    SuspendIo(NodeId),
    /// `move` to the peer, if this node is Primary.
    MoveAway(NodeId),
    /// `disconnect` here, `connect` at the end.
    Disconnect(NodeId),
    /// `primary`, whatever the other node does.
    Promote(NodeId),
    /// `primary --force`, where the other node's process is dead.
    Force(NodeId),
    /// `confirm-fenced`, where the other node's process is dead.
    Fenced(NodeId),
    /// Standby or maintenance until the end.
    Automation {
        /// Whose.
        node: NodeId,
        /// Maintenance, not standby.
        maintenance: bool,
    },
    /// `secondary` here, `primary` there at the end.
    Move {
        /// The node demoted.
        from: NodeId,
        /// The node promoted.
        to: NodeId,
    },
}

/// Everything a run needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where it came from; also the key of all latencies and coin flips.
    pub seed: u64,
    /// Constants.
    pub options: Options,
    /// Requests, in order of time.
    pub ops: Vec<Op>,
    /// Faults, in order of time.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut options = draw_options(seed);
        let mut rng = Rng::keyed(seed, Stream::Options, 1);
        let op_count = rng.log_between(OPS_MAX / 8, OPS_MAX);
        let fault_count = if options.kinds.is_empty() {
            0
        } else {
            rng.between(1, FAULTS_MAX)
        };
        let mut ops: Vec<_> = (0..op_count)
            .map(|nr| draw_op(seed, nr, &options))
            .collect();
        ops.sort_by_key(|op| op.at);
        let growths = draw_growths(seed, &mut options);
        move_beyond(seed, &mut ops, &growths, &options);
        let mut faults: Vec<_> = (0..fault_count)
            .flat_map(|nr| draw_faults(seed, nr, &options))
            .collect();
        faults.extend(draw_resync_orders(seed, &options));
        faults.extend(draw_invalidations(seed, &options));
        faults.extend(draw_verifies(seed, &options, &ops));
        faults.extend(draw_moves(seed, &options));
        faults.extend(draw_takeovers(seed, &options));
        faults.extend(draw_control(seed, &options));
        faults.extend(draw_suspensions(seed, &options));
        faults.extend(growths);
        faults.sort_by_key(|fault| fault.at);
        if let Some(hang) = draw_lone_hang(seed, &options) {
            faults = vec![hang];
        }
        Self {
            seed,
            options,
            ops,
            faults,
        }
    }
}

fn draw_options(seed: u64) -> Options {
    let mut rng = Rng::keyed(seed, Stream::Options, 0);
    // Most volumes are smaller than one extent: a crash then marks few blocks and a run is fast.
    let extents = if rng.chance(750) {
        0
    } else {
        rng.between(1, 5)
    };
    let volume_blocks = extents * EXTENT_BLOCKS + rng.between(8, 200);
    let hot_count = rng.between(1, HOT_BLOCKS_MAX.min(volume_blocks));
    let mut hot_blocks: Vec<_> = (0..hot_count).map(|_| rng.below(volume_blocks)).collect();
    hot_blocks.sort_unstable();
    hot_blocks.dedup();
    let swarm = !rng.chance(50);
    let kinds = FAULT_KINDS
        .into_iter()
        .filter(|_| rng.chance(400) && swarm)
        .collect();
    let delay_min = rng.log_between(20 * MICROS, MILLIS);
    let slow_disk = rng.log_between(100 * MICROS, 20 * MILLIS);
    let mut rate = || i64::try_from(rng.below(20_001)).expect("small") - 10_000;
    let rate_ppm = [rate(), rate(), rate()];
    Options {
        protocol: draw_protocol(seed),
        failover: draw_failover(seed),
        profile: if rng.chance(800) {
            Profile::Fast
        } else {
            Profile::Default
        },
        volume_blocks,
        device_blocks: volume_blocks,
        hot_blocks,
        al_slots: rng.pick(&[2, 3, 4, 16]),
        clients: rng.between(1, 3),
        depth: rng.log_between(1, 16),
        safety: SimTime(rng.between(4, 12) * SECS),
        net: NetOptions {
            delay_min,
            delay_max: delay_min + rng.log_between(MICROS, 10 * MILLIS),
            loss_per_mille: if rng.chance(500) {
                rng.log_between(1, 200)
            } else {
                0
            },
            double_per_mille: if rng.chance(300) {
                rng.log_between(1, 200)
            } else {
                0
            },
        },
        disk_latency: [20 * MICROS, slow_disk],
        store_latency: [100 * MICROS, rng.log_between(200 * MICROS, 40 * MILLIS)],
        thread_delay: [MICROS, rng.log_between(2 * MICROS, 2 * MILLIS)],
        rate_ppm,
        zero_proven: rng.chance(800),
        kinds,
        prefer: draw_prefer(seed),
        hold_down: draw_hold_down(seed),
    }
}

/// Seeds below this one were kept for what they found when there was only protocol C.
pub const PROTOCOLS_FROM: u64 = 1_000_000_000;

/// Protocol A from here on.
pub const PROTOCOL_A_FROM: u64 = 7_000_000_000;

fn draw_protocol(seed: u64) -> ReplicationProtocol {
    let mut rng = Rng::keyed(seed, Stream::Options, 2);
    let may_be_a = seed >= PROTOCOL_A_FROM && draw_failover(seed) == Failover::Manual;
    match rng.below(10) {
        _ if seed < PROTOCOLS_FROM => ReplicationProtocol::C,
        // Never with automatic failover.
        0..=7 if may_be_a => ReplicationProtocol::A,
        0..=3 => ReplicationProtocol::B,
        _ => ReplicationProtocol::C,
    }
}

fn draw_failover(seed: u64) -> Failover {
    let often = if seed < PROTOCOL_A_FROM { 100 } else { 700 };
    let manual = Rng::keyed(seed, Stream::Options, 3).chance(often);
    if manual && seed >= PROTOCOLS_FROM {
        Failover::Manual
    } else {
        Failover::Auto
    }
}

fn draw_op(seed: u64, nr: u64, options: &Options) -> Op {
    let mut rng = Rng::keyed(seed, Stream::Ops, nr);
    let block = rng.pick(&options.hot_blocks);
    let end = options.volume_blocks * CELLS_PER_BLOCK;
    let (first_cell, cells) = match rng.below(10) {
        // A few sectors, anywhere: read-modify-write at one or both edges.
        0..=2 => (block * CELLS_PER_BLOCK + rng.below(8), rng.between(1, 12)),
        3 => (block * CELLS_PER_BLOCK, CELLS_PER_BLOCK * rng.between(2, 8)),
        _ => (block * CELLS_PER_BLOCK, CELLS_PER_BLOCK),
    };
    let kind = match rng.below(100) {
        0..=29 => OpKind::Read,
        30..=79 => OpKind::Write {
            fua: rng.chance(100),
        },
        80..=91 => OpKind::Flush,
        92..=94 => OpKind::Trim,
        _ => OpKind::Zeroes {
            may_unmap: rng.chance(500),
        },
    };
    Op {
        at: SimTime(rng.below(options.safety.0)),
        client: rng.below(options.clients),
        kind,
        first_cell,
        cells: cells.min(end - first_cell),
    }
}

fn all_wires(joins: impl Fn(NodeId, NodeId) -> bool) -> Vec<Wire> {
    let mut wires = Vec::new();
    for from in NodeId::ALL {
        for to in NodeId::ALL {
            for path in Path::ALL {
                if path.joins(from, to) && joins(from, to) {
                    wires.push(Wire { from, to, path });
                }
            }
        }
    }
    wires
}

/// Keys of the draw whether an operator moves a Primary or stops its daemon.
const STOPS: u64 = 1 << 32;
/// Keys of the draw whether a disk stalls or hangs.
const HANGS: u64 = 1 << 33;
/// Key of the draw whether a disk that hangs is all that happens.
const ONLY_A_HANG: u64 = 1 << 34;
/// Longest hang: most last until the heal.
const HANG_MAX: u64 = 30 * SECS;

fn draw_faults(seed: u64, nr: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, nr);
    let at = SimTime(rng.below(options.safety.0));
    // Shorter than a suspicion, or longer than a takeover: both matter.
    let length = rng.log_between(5 * MILLIS, 5 * SECS);
    let node = rng.pick(&NodeId::ALL);
    let data = rng.pick(&[NodeId::A, NodeId::B]);
    let one = |what| vec![Fault { at, length, what }];
    match rng.pick(&options.kinds) {
        FaultKind::Kill => one(FaultWhat::Kill(node)),
        FaultKind::KillBoth => both(&mut rng, at, length, FaultWhat::Kill),
        FaultKind::Power => one(FaultWhat::Power(node)),
        FaultKind::PowerBoth => both(&mut rng, at, length, FaultWhat::Power),
        FaultKind::Pause => one(FaultWhat::Pause(node)),
        FaultKind::CutOneWay => {
            let wires = all_wires(|_, _| true);
            one(FaultWhat::Cut(vec![
                wires[usize::try_from(rng.below(wires.len() as u64)).expect("below a length")],
            ]))
        }
        FaultKind::CutPair => {
            let other = rng.pick(
                &NodeId::ALL
                    .into_iter()
                    .filter(|other| *other != node)
                    .collect::<Vec<_>>(),
            );
            let both_ways = rng.chance(800);
            one(FaultWhat::Cut(all_wires(|from, to| {
                (from, to) == (node, other) || (both_ways && (from, to) == (other, node))
            })))
        }
        FaultKind::Isolate => one(FaultWhat::Cut(all_wires(|from, to| {
            from == node || to == node
        }))),
        FaultKind::Flap => {
            let path = rng.pick(&Path::ALL);
            let period = rng.between(10 * MILLIS, 500 * MILLIS);
            let wires: Vec<_> = all_wires(|from, to| from.is_data() && to.is_data())
                .into_iter()
                .filter(|wire| wire.path == path)
                .collect();
            (0..rng.between(2, 8))
                .map(|turn| Fault {
                    at: at.plus(turn * period * 2),
                    length: period,
                    what: FaultWhat::Cut(wires.clone()),
                })
                .collect()
        }
        FaultKind::Slow => one(FaultWhat::Slow {
            extra: rng.log_between(MILLIS, 300 * MILLIS),
        }),
        FaultKind::DiskError => one(FaultWhat::DiskError {
            node: data,
            op: rng.pick(&[DiskOp::Read, DiskOp::Write, DiskOp::Flush, DiskOp::Any]),
            per_mille: rng.log_between(5, 1000),
        }),
        FaultKind::MetaError => one(FaultWhat::MetaError {
            node: data,
            per_mille: rng.log_between(5, 1000),
        }),
        FaultKind::DiskStall => {
            // With a key of its own, so that the other draws stay what they were.
            let mut rng = Rng::keyed(seed, Stream::Faults, HANGS + nr);
            if rng.chance(500) {
                let length = rng.log_between(SECS, HANG_MAX);
                let what = FaultWhat::DiskHang(data);
                vec![Fault { at, length, what }]
            } else {
                one(FaultWhat::DiskStall(data))
            }
        }
        FaultKind::StoreStall => one(FaultWhat::StoreStall {
            node,
            extra: rng.log_between(10 * MILLIS, 2 * SECS),
        }),
        // With a key of its own, so that the other draws stay what they were.
        FaultKind::Operator if Rng::keyed(seed, Stream::Faults, STOPS + nr).chance(400) => {
            one(FaultWhat::Stop(data))
        }
        FaultKind::Operator => one(FaultWhat::Move {
            from: data,
            to: rng.pick(&[NodeId::A, NodeId::B]),
        }),
    }
}

/// With other faults about, nobody can be asked for an answer in bounded time: now and then a disk
/// that hangs, early enough for the bound to end before the heal, is the only one.
fn draw_lone_hang(seed: u64, options: &Options) -> Option<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, ONLY_A_HANG);
    rng.chance(30).then(|| Fault {
        at: SimTime(rng.between(options.safety.0 / 8, options.safety.0 / 4)),
        length: HANG_MAX,
        what: FaultWhat::DiskHang(rng.pick(&[NodeId::A, NodeId::B])),
    })
}

/// Seeds below this one were kept for what they found when nobody gave orders about a resync.
pub const RESYNC_ORDERS_FROM: u64 = 2_000_000_000;
/// Key of the draw of orders about a resync.
const RESYNC_ORDERS: u64 = 1 << 35;
/// Slowest pace ordered: the largest volume is copied within the time to settle.
const PACE_MIN: u64 = 16 << 20;

/// In some runs operators hold or slow down resyncs, whether one runs or not.
fn draw_resync_orders(seed: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, RESYNC_ORDERS);
    if seed < RESYNC_ORDERS_FROM || options.kinds.is_empty() || !rng.chance(400) {
        return Vec::new();
    }
    let order = |rng: &mut Rng| {
        let node = rng.pick(&[NodeId::A, NodeId::B]);
        let what = if rng.chance(600) {
            FaultWhat::HoldResync(node)
        } else {
            let rate = rng.log_between(PACE_MIN, 16 * PACE_MIN);
            FaultWhat::PaceResync { node, rate }
        };
        Fault {
            at: SimTime(rng.below(options.safety.0)),
            length: rng.log_between(5 * MILLIS, 5 * SECS),
            what,
        }
    };
    (0..rng.between(1, 4)).map(|_| order(&mut rng)).collect()
}

/// Seeds below this one were kept for what they found when nobody threw data away.
pub const INVALIDATIONS_FROM: u64 = 3_000_000_000;
/// Key of the draw of `invalidate`.
const INVALIDATIONS: u64 = 1 << 36;

/// In some runs operators throw a replica's data away, whichever it is: the engines know when they
/// may.
fn draw_invalidations(seed: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, INVALIDATIONS);
    if seed < INVALIDATIONS_FROM || options.kinds.is_empty() || !rng.chance(350) {
        return Vec::new();
    }
    let order = |rng: &mut Rng| Fault {
        at: SimTime(rng.below(options.safety.0)),
        length: rng.log_between(5 * MILLIS, 5 * SECS),
        what: FaultWhat::Invalidate(rng.pick(&[NodeId::A, NodeId::B])),
    };
    (0..rng.between(1, 3)).map(|_| order(&mut rng)).collect()
}

/// Seeds below this one were kept for what they found when nobody verified.
pub const VERIFIES_FROM: u64 = INVALIDATIONS_FROM;
/// Key of the draw of `verify` and of what it finds.
const VERIFIES: u64 = 1 << 37;

/// In some runs operators verify, and in some of these disks rot.
fn draw_verifies(seed: u64, options: &Options, ops: &[Op]) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, VERIFIES);
    if seed < VERIFIES_FROM || options.kinds.is_empty() || !rng.chance(500) {
        return Vec::new();
    }
    let verify = |rng: &mut Rng| Fault {
        at: SimTime(rng.below(options.safety.0)),
        length: rng.log_between(5 * MILLIS, 5 * SECS),
        what: FaultWhat::Verify {
            node: rng.pick(&[NodeId::A, NodeId::B]),
            repair: rng.chance(500),
        },
    };
    let mut faults: Vec<_> = (0..rng.between(1, 6)).map(|_| verify(&mut rng)).collect();
    let idle = untouched_blocks(options, ops);
    if !idle.is_empty() && rng.chance(500) {
        let rot = |rng: &mut Rng| Fault {
            at: SimTime(rng.below(options.safety.0)),
            length: MILLIS,
            what: FaultWhat::Rot {
                node: rng.pick(&[NodeId::A, NodeId::B]),
                block: rng.pick(&idle),
            },
        };
        faults.extend((0..rng.between(1, 6)).map(|_| rot(&mut rng)));
    }
    faults
}

/// Blocks that no request goes to.
fn untouched_blocks(options: &Options, ops: &[Op]) -> Vec<u64> {
    let touched: std::collections::BTreeSet<u64> = ops
        .iter()
        .flat_map(|op| {
            let end = (op.first_cell + op.cells).div_ceil(CELLS_PER_BLOCK);
            op.first_cell / CELLS_PER_BLOCK..end
        })
        .collect();
    (0..options.volume_blocks)
        .filter(|block| !touched.contains(block))
        .collect()
}

/// Both data nodes, at nearly the same moment, returning in either order.
fn both(rng: &mut Rng, at: SimTime, length: u64, what: impl Fn(NodeId) -> FaultWhat) -> Vec<Fault> {
    let gap = if rng.chance(500) {
        0
    } else {
        rng.log_between(MICROS, SECS)
    };
    let first = rng.pick(&[NodeId::A, NodeId::B]);
    vec![
        Fault {
            at,
            length,
            what: what(first),
        },
        Fault {
            at: at.plus(gap),
            length: rng.log_between(5 * MILLIS, 5 * SECS),
            what: what(first.peer()),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_plan_and_seeds_differ() {
        let text = |seed| format!("{:?}", Plan::of_seed(seed));
        assert_eq!(text(11), text(11));
        assert_ne!(text(11), text(12));
    }

    #[test]
    fn requests_stay_inside_the_volume() {
        for seed in (0..200)
            .chain(VOLUME_ORDERS_FROM..VOLUME_ORDERS_FROM + 200)
            .chain(PLACEMENT_FROM..PLACEMENT_FROM + 200)
        {
            let plan = Plan::of_seed(seed);
            let end = plan.options.device_blocks * CELLS_PER_BLOCK;
            assert!(
                plan.ops
                    .iter()
                    .all(|op| op.cells > 0 && op.first_cell + op.cells <= end)
            );
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn_by_some_seed() {
        for kind in FAULT_KINDS {
            assert!((0..200).any(|seed| Plan::of_seed(seed).options.kinds.contains(&kind)));
        }
    }
}
