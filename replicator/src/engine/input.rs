//! What can happen to an engine.

use super::control::ResyncOrder;
use super::verify::VerifyOrder;
use crate::protocol::Message;
use crate::types::{
    Activation, BlockCount, ByteLen, ByteOffset, CommittedView, DiskError, Instant, OpId, Payload,
    ReplicaId, RequestId, SessionId, StoreError, View, ViewNumber,
};

/// One input of [`super::Engine::handle`].
#[derive(Clone, Debug)]
pub enum Input {
    /// A guest wants something. Parsed and range-checked against the export by the NBD session.
    Guest(GuestRequest),
    /// The client of a request is gone. If it waits for the end of a
    /// suspension it is not begun any more; else it ends as usual.
    GuestGone(RequestId),
    /// A disk operation asked for by `Action::Disk` ended.
    DiskDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<DiskReply, DiskError>,
    },
    /// A metadata operation asked for by `Action::Meta` ended.
    MetaDone {
        /// Which.
        op: OpId,
        /// How; for a read the bytes.
        result: Result<DiskReply, DiskError>,
    },
    /// A mark asked for by `Action::Mark` is durable in the voter store, or is not.
    MarkDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<(), StoreError>,
    },
    /// A connection to the peer is up; both sides know it by this id.
    LinkUp {
        /// Its id.
        session: SessionId,
    },
    /// A message arrived on that connection.
    Received {
        /// On which.
        session: SessionId,
        /// What.
        message: Message,
    },
    /// The connection is gone.
    LinkDown {
        /// Which.
        session: SessionId,
        /// Why.
        reason: LinkDownReason,
    },
    /// The peer's promise not to take over now holds until `until` on this node's clock (R5).
    /// The latest counts; [`Instant::ZERO`] takes all of them back (the machine slept).
    Lease {
        /// End of the lease, or [`Instant::ZERO`].
        until: Instant,
    },
    /// A majority holds this view and this node knows it by its own commit.
    Committed(CommittedView),
    /// Gossip of a newer committed view: enough for caution (stepping down, "I am outdated"),
    /// never for serving.
    Learned(View),
    /// This node may serve (R8).
    Activate(Activation),
    /// This node may not serve any more; every request in flight fails for ever (R9).
    StepDown,
    /// A takeover is being decided: close the session, let every submitted operation end, and say
    /// so (`Event::Drained`) (R13). `seal` is the view being sealed.
    Drain {
        /// Views up to this one are refused from now on.
        seal: ViewNumber,
    },
    /// Start an Add of the peer as view `view` (R19). Answered by `Event::AddPrepared` or
    /// `Event::AddAborted`.
    BeginAdd {
        /// The view to be proposed.
        view: ViewNumber,
    },
    /// The Remove or Leave being proposed was not committed and will not be.
    ProposalAborted,
    /// An operator or the daemon's start wants something.
    Admin(AdminRequest),
    /// Time has passed `next_deadline()`.
    Tick,
}

/// What an operation returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskReply {
    /// Nothing but success.
    Done,
    /// The bytes read; exactly as many as asked for.
    Data(Payload),
}

/// A guest's request.
#[derive(Clone, Debug)]
pub struct GuestRequest {
    /// The shell's name for it.
    pub request: RequestId,
    /// What.
    pub kind: GuestKind,
}

/// What a guest can want. Offsets and lengths are in bytes, any alignment, inside the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "NBD's own words: offset, len, FUA, NO_HOLE")]
pub enum GuestKind {
    Read {
        offset: ByteOffset,
        len: ByteLen,
    },
    Write {
        offset: ByteOffset,
        payload: Payload,
        fua: bool,
    },
    Flush,
    Trim {
        offset: ByteOffset,
        len: ByteLen,
        fua: bool,
    },
    Zeroes {
        offset: ByteOffset,
        len: ByteLen,
        may_unmap: bool,
        fua: bool,
    },
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDownReason {
    /// The peer closed it.
    Closed,
    /// The kernel reported an error.
    Broken,
    /// A frame did not parse or its checksum did not match.
    BadFrame,
    /// This side closed it (`Action::CloseLink`).
    Local,
}

/// A request from an operator, from the start-up code or from the controller.
#[derive(Clone, Debug)]
pub enum AdminRequest {
    /// Attach this backing device; its metadata area was opened and locked (R14).
    Attach(AttachRequest),
    /// Let go of the backing device, flushing first. Refused while it is the only good copy in use.
    Detach,
    /// Connect to the peer and stay so.
    Connect,
    /// Drop the session and do not reconnect.
    Disconnect,
    /// Hold resyncs, let them go on, or set their speed.
    Resync(ResyncOrder),
    /// Compare the replicas, or stop.
    Verify(VerifyOrder),
    /// Throw this Secondary's data away and copy everything from the peer: done once
    /// `Snapshot::invalidations` has grown. It may wait for the Primary's Remove.
    Invalidate,
    /// Take that back, as far as it waits.
    KeepData,
    /// How long the attached devices are now; they may have grown since.
    Measured {
        /// The data device.
        device: ByteLen,
        /// The metadata area.
        meta: ByteLen,
    },
    /// Make the volume larger: first on both replicas, which were measured, then in the view. The
    /// newest [`super::GrowReport`] says how it goes.
    Grow {
        /// Blocks of the larger volume.
        to: BlockCount,
    },
    /// Hold guests' writes from now on, and make what they wrote durable on every in-sync replica:
    /// done once `Snapshot::suspension` says so. Reads go on.
    SuspendIo,
    /// Let guests write again.
    ResumeIo,
    /// Make everything acknowledged durable on every in-sync replica, hold new requests meanwhile,
    /// and answer with `Event::Quiesced`: the way to an orderly demotion.
    Quiesce,
    /// Give the quiescence up; held requests go on.
    Unquiesce,
}

/// A backing device offered to the engine. The engine reads the metadata itself.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Usable length of the data device in bytes.
    pub device_len: ByteLen,
    /// Length of the metadata area in bytes.
    pub meta_len: ByteLen,
    /// Random id of this boot.
    pub boot_id: u128,
    /// Whether the voter store says this replica failed earlier (R23); the worse wins.
    pub marked_failed: bool,
    /// The replica the voter store last saw attached, if any (a swapped disk is refused).
    pub expected_replica: Option<ReplicaId>,
    /// The highest view that this node sealed, in whichever life (R6): nothing of it is taken.
    pub seal: ViewNumber,
}
