//! What an engine wants done.

use super::grow::{GrowReport, Room};
use super::handshake::Rule;
pub use crate::meta::MetaPage;
use crate::protocol::{Message, Refusal};
use crate::types::{
    BlockCount, BlockRange, ByteLen, ByteOffset, ConnectionState, DiskError, DiskState, Instant,
    OpId, Payload, ReplicaId, ReplicationState, RequestId, ResyncRate, Role, SessionId, ViewNumber,
};

/// One effect. Filled into the caller's [`Outbox`] completely by each `handle`, in order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Do this to the data device and answer with `Input::DiskDone`.
    Disk {
        /// Echoed by the completion.
        op: OpId,
        /// What.
        command: DiskCommand,
    },
    /// Do this to the metadata area and answer with `Input::MetaDone`. Requests are carried out in
    /// order, one after the other. When a write fails, those queued behind it fail with it and are
    /// not carried out: they may rest on it (marks first, then the log that forgets them).
    Meta {
        /// Echoed by the completion.
        op: OpId,
        /// What.
        request: MetaRequest,
    },
    /// Record this durably in the voter store on the root disk and answer with `Input::MarkDone`.
    Mark {
        /// Echoed by the completion.
        op: OpId,
        /// What.
        mark: ReplicaMark,
    },
    /// Send on the session if it is still that one.
    Send {
        /// To which session.
        session: SessionId,
        /// What.
        message: Message,
    },
    /// Close the connection after what was sent.
    CloseLink {
        /// Which.
        session: SessionId,
        /// Why.
        reason: CloseReason,
    },
    /// Answer a guest. The gate was checked in this very step (R2).
    Complete {
        /// Which request.
        request: RequestId,
        /// With what.
        result: Result<GuestReply, GuestError>,
    },
    /// Close every guest connection without answering what is in flight (R9): clients reconnect
    /// and find out who serves.
    DropClients,
    /// Something others want to know: the controller, `events2`, the log.
    Event(Event),
}

/// Where the engine puts its actions; owned and drained by the caller.
pub type Outbox = Vec<Action>;

/// An operation on the data device, in whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskCommand {
    /// Read the blocks.
    Read(BlockRange),
    /// Write these bytes, exactly the range's length. `fua`: durable on completion.
    Write {
        /// Where.
        range: BlockRange,
        /// What.
        payload: Payload,
        /// Durable on completion.
        fua: bool,
    },
    /// Make the blocks read as zeroes; deallocate if allowed and possible.
    Zeroes {
        /// Where.
        range: BlockRange,
        /// Whether deallocating is allowed.
        may_unmap: bool,
        /// Durable on completion.
        fua: bool,
    },
    /// Make everything completed so far durable.
    Flush,
}

/// An operation on the metadata area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaRequest {
    /// Read `len` bytes at `offset`.
    Read {
        /// Where.
        offset: ByteOffset,
        /// How much.
        len: ByteLen,
    },
    /// Write the pages (in any order), then make them durable.
    Write(Vec<MetaPage>),
}

/// What must survive the death of the data device (R23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaMark {
    /// The replica's disk failed: not eligible for anything until replaced or fully resynced.
    Failed,
    /// The replica is whole again.
    Clean,
    /// This replica was attached.
    Attached(ReplicaId),
}

/// Why this side closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// `disconnect`, `down`, stop.
    Ordered,
    /// The role changed: a session belongs to one activation (R3).
    RoleChanged,
    /// The peer is out of the view (R21).
    Removed,
    /// A takeover is being decided (R13).
    Drained,
    /// No answer within the timeout.
    Timeout,
    /// The peer said something that makes no sense in this state.
    Protocol,
    /// The handshake refused it.
    Refused(Refusal),
    /// The local disk state changed so that the handshake no longer holds.
    DiskChanged,
    /// A newer connection replaced it.
    Replaced,
}

/// A guest's success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestReply {
    /// Done.
    Done,
    /// The bytes read, exactly as asked for.
    Data(Payload),
}

/// A guest's failure. Never given for a role change: those hold requests or drop the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// No replica could do it.
    Io(DiskError),
    /// Outside the volume (the session checks first; this is the second net).
    OutOfRange,
    /// Its client is gone, and it was not begun.
    Forgotten,
}

/// Something others want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A state users see changed; `snapshot()` has the new one.
    Changed,
    /// Attach ended; on success the replica is usable as its disk state says.
    Attached(Result<ReplicaId, AttachError>),
    /// What the attached replica says of itself: right after `Attached(Ok(..))`, and again whenever
    /// one of these facts changed. The controller decides from them.
    Replica(ReplicaFacts),
    /// The device was let go.
    Detached,
    /// The local device failed; a Primary now needs a Leave, a Secondary is of no use.
    DiskFailed(DiskError),
    /// The peer does not answer or there is no session while it is in `in_sync`: guests wait for a
    /// Remove. Repeated each time it becomes true.
    PeerLost,
    /// The peer said its disk failed.
    PeerDiskFailed,
    /// The peer's operator throws its data away: it asks to leave `in_sync`, and is equal until then.
    PeerGivesUpData,
    /// Guests were told of writes that the peer may lack (protocol A): it is a prefix of them and
    /// would be none while it is made equal, so it has to leave `in_sync` first.
    PeerBehind,
    /// An Add was decided late, after the peer's record of it went with its session: it has to
    /// leave and be added again, even if the local disk has failed meanwhile.
    PeerUnprepared,
    /// The local device of this Primary failed, and the peer, whose replica is the only one left,
    /// restarted without writes that guests were told of (R16): nothing of this activation can be
    /// served any more.
    PeerLostWrites,
    /// The session's handshake is done.
    Connected {
        /// The peer's replica, if it has one.
        peer_replica: Option<ReplicaId>,
    },
    /// Answer to `Input::Activate`: the replica failed or was let go meanwhile.
    NotActivated {
        /// The view it was to serve in.
        view: ViewNumber,
    },
    /// The session ended.
    Disconnected,
    /// Handshake refused.
    Refused(Refusal),
    /// Everything the peer missed is on its disk; an Add may begin.
    ResyncDone,
    /// R19 is done up to the accept: the peer recorded it, both flushed, no bit is set.
    AddPrepared {
        /// For this view.
        view: ViewNumber,
        /// The peer's replica, to be named in the view.
        replica: ReplicaId,
    },
    /// A bit was set meanwhile or the session ended: no accept may leave.
    AddAborted {
        /// For this view.
        view: ViewNumber,
    },
    /// Leave may be proposed: the peer has the marks durably (R18).
    LeavePrepared {
        /// For this view.
        view: ViewNumber,
    },
    /// Answer to `Input::Drain`: nothing can land any more. `false` vetoes the promotion (R10).
    Drained {
        /// The seal it was asked for.
        seal: ViewNumber,
        /// Whether every acknowledged write is on this disk.
        ok: bool,
    },
    /// Both replicas have the new blocks of a larger volume durably: a view with that size may be
    /// proposed.
    GrowPrepared {
        /// As this view.
        view: ViewNumber,
        /// Blocks of the larger volume.
        size_blocks: u64,
    },
    /// A verify ended.
    Verified(VerifyReport),
    /// Answer to `AdminRequest::Quiesce`.
    Quiesced,
    /// The first gate check of an activation passed: guests are served.
    Serving,
    /// No longer.
    NotServing,
}

/// What an attached replica says of itself to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// Its identity.
    pub replica: ReplicaId,
    /// Its usable size in blocks.
    pub size_blocks: u64,
    /// Its superblock does not forbid promoting it (R10): whole, not outdated, not failed.
    pub eligible: bool,
    /// It was never part of a view.
    pub blank: bool,
    /// Its host restarted while acknowledged writes were not durable yet (R16).
    pub lost_volatile: bool,
    /// Its activity log named extents at attach: blocks may differ from the peer's.
    pub unclean: bool,
    /// Its disk has not answered for a while: the peer may have to serve soon.
    pub doubtful: bool,
    /// It took writes under protocol A: guests may know of more than it has.
    pub behind: bool,
}

/// Why a backing device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachError {
    /// Reading or writing the metadata failed.
    Disk(DiskError),
    /// No metadata of ours in the area.
    NoMetadata,
    /// Both superblock copies are damaged.
    Damaged,
    /// Made by a newer version.
    TooNew,
    /// It belongs to another resource, volume or node.
    Foreign,
    /// The data device is smaller than the metadata says.
    DeviceTooSmall,
    /// Another replica than the one last attached here.
    OtherReplica,
    /// This node serves from its peer's replica; its own can only be resynced once the peer is
    /// Primary.
    Serving,
}

/// How far a resync is. Pure data for `status`, the demo and the TUI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks this resync began with (both bitmaps united).
    pub total_blocks: u64,
    /// Of these done.
    pub done_blocks: u64,
    /// Of the done ones: sent and written.
    pub copied_blocks: u64,
    /// Of the done ones: found equal by digest.
    pub same_blocks: u64,
    /// Why it was needed, by the rule of the handshake.
    pub rule: Option<Rule>,
    /// Nothing was taken to be there already: it began with every block.
    pub full: bool,
    /// When it began.
    pub began: Instant,
    /// When it ended; `None` while it runs.
    pub ended: Option<Instant>,
}

/// What an online verify found so far, or in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// What differs is written again, as it is on the Primary.
    pub repair: bool,
    /// Blocks of the volume.
    pub total_blocks: u64,
    /// Of these compared.
    pub checked_blocks: u64,
    /// Found to differ, with no write of them under way on either side.
    pub differing_blocks: u64,
    /// Could not be read on one side.
    pub unreadable_blocks: u64,
    /// Written again on both.
    pub repaired_blocks: u64,
    /// Where the first differences are, at most [`super::Engine::VERIFY_RANGES_MAX`].
    pub ranges: Vec<BlockRange>,
    /// When it began.
    pub began: Instant,
    /// When it ended and why; `None` while it runs.
    pub end: Option<(Instant, VerifyEnd)>,
}

/// Why a verify ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyEnd {
    /// Every block was compared.
    Done,
    /// By order.
    Stopped,
    /// The session with the peer ended.
    SessionLost,
    /// This node is not Primary any more.
    RoleChanged,
    /// A disk failed.
    DiskFailed,
}

/// Counters for status and metrics; monotone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it; all are counts since attach")]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub activity_log_writes: u64,
    pub bitmap_writes: u64,
    pub superblock_writes: u64,
    pub io_errors: u64,
}

/// State of an engine as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Primary only while activated.
    pub role: Role,
    /// The local replica.
    pub disk: DiskState,
    /// The session.
    pub connection: ConnectionState,
    /// When the last session that got through its handshake ended; `None` while one is up and
    /// before the first.
    pub disconnected_at: Option<Instant>,
    /// Why it is StandAlone, if it was refused.
    pub refused: Option<Refusal>,
    /// What the pair does.
    pub replication: ReplicationState,
    /// The peer's role, as its hello said.
    pub peer_role: Role,
    /// The peer's replica.
    pub peer_disk: DiskState,
    /// The newest view known.
    pub view: ViewNumber,
    /// Marked blocks toward the peer.
    pub out_of_sync_blocks: u64,
    /// The running or the last resync.
    pub resync: Option<Progress>,
    /// An order given here holds resyncs.
    pub sync_paused: bool,
    /// An order given at the connected peer does.
    pub peer_sync_paused: bool,
    /// How fast resyncs may go.
    pub resync_rate: ResyncRate,
    /// What that means for the running one: bytes a second. Guests' waiting lifts it.
    pub resync_pace: Option<u64>,
    /// Guests hold resyncs and verifies back: the 99th percentile of their writes.
    pub throttled: Option<core::time::Duration>,
    /// An order to throw the data away waits for a view without this replica, or is being recorded
    /// and cannot be taken back.
    pub invalidate_pending: bool,
    /// How often such an order was carried out durably since the engine began.
    pub invalidations: u64,
    /// The running or the last verify that this Primary did.
    pub verify: Option<VerifyReport>,
    /// How many verifies began since the engine did.
    pub verifies_begun: u64,
    /// Guests are being held, and why.
    pub held: Option<HeldReason>,
    /// How long the attached devices were when they were measured last.
    pub room: Option<Room>,
    /// The running or the last order to make the volume larger.
    pub grow: Option<GrowReport>,
    /// An order holds guests' writes.
    pub suspension: Option<Suspension>,
    /// Size in blocks, if attached or known from the view.
    pub size_blocks: Option<u64>,
    /// Round trip of the last ping, if any.
    pub rtt: Option<core::time::Duration>,
    /// Bytes guests were told of and the peer may not have on its disk yet (protocols A and B).
    pub lag_bytes: u64,
    /// Since when, for the oldest of them.
    pub lag_since: Option<Instant>,
    /// Guest requests in flight.
    pub inflight: usize,
    /// Counters.
    pub counters: Counters,
}

/// A run of blocks that the peer may lack, or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRun {
    /// How long; not 0.
    pub count: BlockCount,
    /// Whether the peer may lack them.
    pub is_marked: bool,
}

/// How far an order to hold guests' writes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspension {
    /// What was begun before is not over, or not durable yet.
    Settling,
    /// Everything guests were told of is durable on every in-sync replica, and nothing follows.
    Settled,
}

/// Why a Primary holds its guests' requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldReason {
    /// The lease is over (`suspended:quorum`).
    Lease,
    /// The peer is in `in_sync` but not connected, or not equal yet.
    Peer,
    /// The only good replica is not attached (`suspended:no-data`).
    NoData,
    /// An orderly demotion or stop.
    Quiesce,
    /// This node's disk does not answer, and nobody can serve instead (`suspended:disk`); or this
    /// is a Secondary that joins its Primary again once it does.
    Disk,
    /// An order (`suspended:user`): writes wait, reads go on.
    User,
}
