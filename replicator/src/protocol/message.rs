//! Messages of a session between the two data nodes of a resource.
//!
//! A session is one TCP connection. Each frame carries the session id and the sender's view number
//! in its header (the codec's business); the receiver drops frames of any other session (R21).
//! Names follow DRBD's packets (drbd_protocol.h) where there is one: Data, WriteAck, NegAck,
//! Barrier, BarrierAck.

use core::num::NonZeroU64;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{
    BlockRange, DataGeneration, DiskError, InSync, NodeId, Payload, ReplicaId, ReplicationProtocol,
    ResourceId, ResyncRate, ViewNumber, VolumeId, WriteEpoch,
};

/// Names one write (or resync or read request) inside its session; chosen by the requester, echoed
/// by the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// What a replicated write does to its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// These bytes (exactly the range's length).
    Write(Payload),
    /// Zeroes; the blocks may be deallocated if they then read as zeroes.
    Zeroes {
        /// Whether deallocating is allowed.
        may_unmap: bool,
    },
}

/// Everything the handshake decides from. Sent once by each side, first thing in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's place in the cluster.
    pub node: NodeId,
    /// The resource.
    pub resource: ResourceId,
    /// The volume (only 0 for now).
    pub volume: VolumeId,
    /// What the sender's replica says of itself; `None` when Diskless.
    pub replica: Option<ReplicaClaim>,
    /// The newest view the sender knows (committed or learned); `NONE` before founding.
    pub view: ViewNumber,
    /// `in_sync` of that view.
    pub in_sync: InSync,
    /// The view the sender is activated in, if it is Primary.
    pub active: Option<ViewNumber>,
    /// Highest view the sender has sealed.
    pub seal: ViewNumber,
    /// Random id of the sender's boot.
    pub boot_id: u128,
    /// Random id of the sender's process.
    pub incarnation: u128,
    /// What the sender is configured with; the stricter of both counts.
    pub protocol: ReplicationProtocol,
}

/// What a replica says of itself, from its superblock, bitmap and activity log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaClaim {
    /// Its identity.
    pub replica: ReplicaId,
    /// Its lineage; `None` while blank.
    pub data_generation: Option<DataGeneration>,
    /// Size in blocks.
    pub size_blocks: u64,
    /// Never written through twinblk and never synced.
    pub blank: bool,
    /// Blank, and every block proven to read as zero when the metadata was made.
    pub zero_proven: bool,
    /// The replica its bitmap is relative to; `None` = a device full of zeroes.
    pub bitmap_base: Option<ReplicaId>,
    /// Blocks marked in its bitmap.
    pub dirty_blocks: u64,
    /// Some of those marks come from an activity log after a crash, so the blocks may be equal.
    pub marks_are_coarse: bool,
    /// It is a resync target in the middle.
    pub inconsistent: bool,
    /// It lost writes it had completed but not flushed (another boot since it was last open).
    pub lost_volatile: bool,
}

/// Why a session is refused. Waiting does not mend these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// The hello names another resource, volume or the receiver itself.
    Foreign,
    /// The data generations differ and neither replica is blank.
    Diverged,
    /// The replicas' sizes do not fit each other.
    SizeMismatch,
    /// Both claim to be Primary: one of them has been superseded and must find out first.
    BothActive,
    /// The sender's view is older than the receiver's seal.
    Sealed,
    /// The replica under this name is not the one the view recorded, and this node may not replace
    /// it by itself.
    UnknownReplica,
}

/// One message. Order inside a session is the order of effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First from each side.
    Hello(Box<Hello>),
    /// The receiver of a hello will not have this session; the connection is then closed.
    Refused(Refusal),
    /// A piece of the sender's bitmap: `bits` holds whole little-endian 64-bit words from the block
    /// `first_block` (a multiple of 64) on; all-zero pieces are not sent.
    BitmapChunk {
        /// Block of the first bit.
        first_block: u64,
        /// The words; at most [`Message::MAX_BITMAP_CHUNK`] bytes.
        bits: Payload,
    },
    /// All pieces were sent.
    BitmapEnd,
    /// Target → source: marks united and durable, this replica recorded as resync target.
    ResyncReady,
    /// Primary → Secondary: a write. Answered by `WriteAck` or `NegAck`, under protocol B by
    /// `ReceiveAck` before that.
    Data {
        /// Echoed by the answer.
        write: WriteId,
        /// Blocks written.
        range: BlockRange,
        /// What with.
        kind: DataKind,
        /// What the peer owes it beyond writing it.
        terms: WriteTerms,
    },
    /// The write completed on the peer's disk (durable if it was FUA).
    WriteAck {
        /// Which.
        write: WriteId,
    },
    /// The peer's disk failed it; the peer's replica is out.
    NegAck {
        /// Which.
        write: WriteId,
        /// How it failed.
        error: DiskErrorCode,
    },
    /// Primary → Secondary: make every earlier write of this session durable.
    Barrier {
        /// Echoed by the answer; grows by one.
        epoch: WriteEpoch,
    },
    /// Every write before that barrier is durable on the peer.
    BarrierAck {
        /// Which.
        epoch: WriteEpoch,
    },
    /// Primary → Secondary: read for me (the Primary's disk failed).
    ReadRequest {
        /// Echoed by the answer.
        read: WriteId,
        /// Blocks wanted.
        range: BlockRange,
    },
    /// Answer to `ReadRequest`.
    ReadReply {
        /// Which.
        read: WriteId,
        /// The blocks asked for.
        range: BlockRange,
        /// The bytes, or why not.
        data: Result<Payload, DiskErrorCode>,
    },
    /// Target → source: send me these blocks (all marked). With `digests`, 16 bytes for each block
    /// of what the target holds: equal blocks need not be sent.
    ResyncRequest {
        /// Echoed by the answer.
        id: WriteId,
        /// Blocks wanted.
        range: BlockRange,
        /// Digests of the target's blocks, or empty.
        digests: Payload,
    },
    /// Source → target.
    ResyncData {
        /// Which request.
        id: WriteId,
        /// The blocks of the request, or a part of them.
        range: BlockRange,
        /// What they hold.
        reply: ResyncReply,
        /// Whether this is the request's last piece.
        last: bool,
    },
    /// Target → source: the request's blocks are completed on the target's disk.
    ResyncAck {
        /// Which request.
        id: WriteId,
        /// Its range.
        range: BlockRange,
    },
    /// Primary → Secondary: record durably "in sync from `view` on" (void unless the register
    /// agrees, R19).
    PrepareAdd {
        /// The view that will name the receiver in `in_sync`.
        view: ViewNumber,
    },
    /// It is recorded.
    AddReady {
        /// For which view.
        view: ViewNumber,
    },
    /// Primary → Secondary, on Leave (R18): from now on set a bit for every write; these extents may
    /// already differ. Sent as `BitmapChunk`s before it.
    LeaveMarks {
        /// The view that will leave the Primary's disk out.
        view: ViewNumber,
    },
    /// The marks are durable.
    LeaveReady {
        /// For which view.
        view: ViewNumber,
    },
    /// Are you there? Answered by `Pong`; also the answer's carrier of nothing else.
    Ping,
    /// Yes.
    Pong,
    /// The sender closes the session on purpose.
    Goodbye,
    /// The peer holds the write in memory and will carry it out whatever becomes of the session
    /// (DRBD's `P_RECV_ACK`).
    ReceiveAck {
        /// Which.
        write: WriteId,
    },
    /// Either way: what operators want of this resource's resyncs, as the sender knows it. Said
    /// once a session, if anything was ordered, and whenever it changes.
    ResyncControl {
        /// The sender holds them.
        paused: bool,
        /// The newest order about their speed that the sender knows.
        rate: Option<RateOrder>,
    },
    /// Secondary → Primary: leave this replica out of the view, its data are to be thrown away.
    Invalidate,
    /// Primary → Secondary: a verify runs from now on, or none does any more.
    VerifyState {
        /// One runs.
        running: bool,
    },
    /// Primary → Secondary: what do these blocks hold?
    VerifyRequest {
        /// Echoed by the answer.
        id: WriteId,
        /// Which blocks.
        range: BlockRange,
        /// Behind every earlier write of them; else at once.
        in_turn: bool,
    },
    /// Answer to `VerifyRequest`.
    VerifyDigests {
        /// Which.
        id: WriteId,
        /// The blocks asked about.
        range: BlockRange,
        /// 16 bytes for each, or why not.
        digests: Result<Payload, DiskErrorCode>,
    },
    /// Primary → Secondary: the volume shall be larger. Make these blocks, from its present end to its
    /// new one, read as zeroes, and record durably that the replica has them.
    Grow {
        /// Echoed by the answer.
        id: WriteId,
        /// The new blocks.
        range: BlockRange,
    },
    /// Answer to `Grow`: the replica has them durably, or cannot.
    Grown {
        /// Which.
        id: WriteId,
        /// The blocks asked for.
        range: BlockRange,
        /// Why not.
        result: Result<(), DiskErrorCode>,
    },
    /// Primary → the target of a resync: how much guests leave for it. Of this session only, and
    /// advice: nothing depends on it.
    ResyncAdvice {
        /// Bytes a second; `None`: guests hold nothing back.
        pace: Option<NonZeroU64>,
        /// The 99th percentile of guests' write latencies that led to it, in microseconds on the
        /// wire.
        latency: Duration,
    },
}

/// An operator's order about the speed of resyncs. It counts on both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateOrder {
    /// Grows with each order that follows one it knows of: the newer counts. Of two that did not
    /// know of each other and are equal, the slower.
    pub number: u32,
    /// How fast.
    pub rate: ResyncRate,
}

/// What the peer owes a replicated write beyond writing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteTerms {
    /// Durable before the ack (FUA).
    pub fua: bool,
    /// What the sender's guest is answered after. C: the peer's disk, so what was not begun when the
    /// session ends is dropped. A and B: less than that, so everything received is carried out, in
    /// order; B says at once that it was received.
    pub protocol: ReplicationProtocol,
    /// A guest may have known an earlier write to be complete when it made this one: it is not
    /// begun before every earlier write of the session has completed on the peer.
    pub after_earlier: bool,
}

impl Default for WriteTerms {
    /// Protocol C, nothing special.
    fn default() -> Self {
        Self {
            fua: false,
            protocol: ReplicationProtocol::C,
            after_earlier: false,
        }
    }
}

impl Message {
    /// Largest bitmap piece in bytes: one 4 KiB bitmap page, 128 MiB of volume.
    pub const MAX_BITMAP_CHUNK: usize = 4096;
    /// Largest payload of one frame. The shell splits nothing: the engine never makes larger ones.
    pub const MAX_PAYLOAD: usize = 1 << 20;
}

/// Content of resynced blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncReply {
    /// These bytes.
    Data(Payload),
    /// All zeroes.
    Zeroes,
    /// What the digests said: the target has them already.
    Same,
    /// The source cannot read them; the request is over.
    Unreadable,
}

/// A disk error on the wire: a byte, so that a newer peer's kind never fails decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskErrorCode(pub u8);

impl From<DiskError> for DiskErrorCode {
    fn from(error: DiskError) -> Self {
        Self(match error {
            DiskError::Io => 1,
            DiskError::NoSpace => 2,
            DiskError::Gone => 3,
            DiskError::ReadOnly => 4,
            DiskError::Short => 5,
            DiskError::Timeout => 6,
            DiskError::Other(_) => 0,
        })
    }
}

impl From<DiskErrorCode> for DiskError {
    fn from(code: DiskErrorCode) -> Self {
        match code.0 {
            2 => Self::NoSpace,
            3 => Self::Gone,
            4 => Self::ReadOnly,
            5 => Self::Short,
            6 => Self::Timeout,
            _ => Self::Io,
        }
    }
}

/// The kind of a message, without its content: for counters, logs and the codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the message of the same name")]
pub enum MessageKind {
    Hello,
    Refused,
    BitmapChunk,
    BitmapEnd,
    ResyncReady,
    Data,
    WriteAck,
    NegAck,
    Barrier,
    BarrierAck,
    ReadRequest,
    ReadReply,
    ResyncRequest,
    ResyncData,
    ResyncAck,
    PrepareAdd,
    AddReady,
    LeaveMarks,
    LeaveReady,
    Ping,
    Pong,
    Goodbye,
    ReceiveAck,
    ResyncControl,
    Invalidate,
    VerifyState,
    VerifyRequest,
    VerifyDigests,
    Grow,
    Grown,
    ResyncAdvice,
}

impl Message {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Hello(_) => MessageKind::Hello,
            Self::Refused(_) => MessageKind::Refused,
            Self::BitmapChunk { .. } => MessageKind::BitmapChunk,
            Self::BitmapEnd => MessageKind::BitmapEnd,
            Self::ResyncReady => MessageKind::ResyncReady,
            Self::Data { .. } => MessageKind::Data,
            Self::WriteAck { .. } => MessageKind::WriteAck,
            Self::NegAck { .. } => MessageKind::NegAck,
            Self::Barrier { .. } => MessageKind::Barrier,
            Self::BarrierAck { .. } => MessageKind::BarrierAck,
            Self::ReadRequest { .. } => MessageKind::ReadRequest,
            Self::ReadReply { .. } => MessageKind::ReadReply,
            Self::ResyncRequest { .. } => MessageKind::ResyncRequest,
            Self::ResyncData { .. } => MessageKind::ResyncData,
            Self::ResyncAck { .. } => MessageKind::ResyncAck,
            Self::PrepareAdd { .. } => MessageKind::PrepareAdd,
            Self::AddReady { .. } => MessageKind::AddReady,
            Self::LeaveMarks { .. } => MessageKind::LeaveMarks,
            Self::LeaveReady { .. } => MessageKind::LeaveReady,
            Self::Ping => MessageKind::Ping,
            Self::Pong => MessageKind::Pong,
            Self::Goodbye => MessageKind::Goodbye,
            Self::ReceiveAck { .. } => MessageKind::ReceiveAck,
            Self::ResyncControl { .. } => MessageKind::ResyncControl,
            Self::Invalidate => MessageKind::Invalidate,
            Self::VerifyState { .. } => MessageKind::VerifyState,
            Self::VerifyRequest { .. } => MessageKind::VerifyRequest,
            Self::VerifyDigests { .. } => MessageKind::VerifyDigests,
            Self::Grow { .. } => MessageKind::Grow,
            Self::Grown { .. } => MessageKind::Grown,
            Self::ResyncAdvice { .. } => MessageKind::ResyncAdvice,
        }
    }
}
