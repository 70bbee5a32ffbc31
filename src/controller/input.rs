//! What can happen to a controller.

use replicator::types::{Instant, OpId, ReplicaId, ResourceId, ViewNumber};

use super::Configured;
use super::message::Datagram;

/// One input of [`super::Controller::handle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A datagram of this cluster arrived and decoded.
    Received {
        /// Index of the configured path (address pair) it came by.
        path: u8,
        /// What; the header says from whom.
        datagram: Datagram,
    },
    /// A record given by [`super::Action::Persist`] is durable, or is not. Exactly once per action.
    Persisted {
        /// Which.
        op: OpId,
        /// Whether it is durable.
        ok: bool,
    },
    /// The engine of a resource says something.
    Engine {
        /// Which resource.
        resource: ResourceId,
        /// What.
        report: EngineReport,
    },
    /// Someone with a right to do so wants something; answered by [`super::Action::OrderDone`].
    Order {
        /// The asker's name for it.
        order: OrderId,
        /// Which resource.
        resource: ResourceId,
        /// What.
        what: Order,
        /// When to give up waiting for what may still arrive.
        deadline: Instant,
    },
    /// The resources configured on this node are these now. One that is not among them any more is
    /// down here; its record stays, since other nodes may ask for it.
    Configured(Vec<Configured>),
    /// What this node may do by itself is this from now on.
    Automation(Automation),
    /// Time has passed [`super::Controller::next_deadline`].
    Tick,
}

/// What an operator took from a node's own decisions. It goes on serving what it serves, and begins again
/// after a restart; orders by hand, and a peer that leaves in order, are followed all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Automation {
    /// It takes nothing over: it is to be worked on.
    pub standby: bool,
    /// Nothing changes its place: it takes nothing over, and hands nothing over when it stops.
    pub maintenance: bool,
}

/// The daemon's name for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub u64);

/// What an operator, or the daemon on an operator's behalf, can order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// This node shall be Primary. Done when the view is committed and the engine was activated.
    Primary,
    /// This node shall be Primary whatever the view and the voters say, over the data that it has: an
    /// operator knows what that gives up, and that the other node does not serve. Refused while the
    /// other node is heard as Primary.
    Force,
    /// This node shall not be Primary and no node shall promote itself. Done when the hold is
    /// committed (at once on a node that is not the Primary of record).
    Secondary,
    /// This process is about to stop: step down after a flush and let the peer take over at once.
    /// Nothing is held and nothing recorded. Done when the peer's view is known, or at once when
    /// this node does not serve or the peer could not follow.
    HandOver,
    /// The peer shall be Primary instead of this node, which stays: step down after a flush and let
    /// the peer take over at once. If it does not, this node serves again. Nothing is held. Done
    /// when the peer's view is known.
    Move,
    /// The peer certainly does not run: an operator says so. What this node promised it needs no waiting
    /// for any more, until the peer is heard again. Refused while it is. Done at once.
    Fenced,
    /// The resource takes part on this node from now on, across restarts too. On the Primary of
    /// record it ends a hold. Done when recorded.
    Up,
    /// The resource takes no part on this node; a Primary is demoted first. Done when recorded:
    /// the daemon then detaches and closes the export.
    Down,
}

/// What the controller must know about a replica and its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineReport {
    /// A backing device is attached. Sent after attach and whenever one of these facts changes.
    Replica(ReplicaFacts),
    /// The backing device was let go.
    ReplicaGone,
    /// The handshake of a session is done.
    SessionUp {
        /// The peer's replica, if it has one.
        peer_replica: Option<ReplicaId>,
    },
    /// Answer to [`super::EngineCommand::Activate`]: there is no replica to serve from any more.
    NotActivated {
        /// The view it was told to serve in.
        view: ViewNumber,
    },
    /// The session ended.
    SessionDown,
    /// An active Primary cannot go on without its in-sync peer's answer.
    PeerLost,
    /// The peer said that its disk failed.
    PeerDiskFailed,
    /// The peer's data are to be thrown away there: it asks to be left out, and is equal until then.
    PeerGivesUpData,
    /// The peer lacks writes that guests were told of (protocol A), and is to be made equal outside
    /// `in_sync`.
    PeerBehind,
    /// An Add was decided that the peer has no record of: it will never count itself as in sync, so
    /// this replica is the only one, whatever state it is in.
    PeerUnprepared,
    /// The local device failed.
    LocalDiskFailed,
    /// The local device failed, and the peer's replica, the only one left, restarted without
    /// acknowledged writes.
    PeerLostWrites,
    /// The peer misses nothing any more: an Add may begin.
    ResyncDone,
    /// Answer to [`super::EngineCommand::BeginAdd`]: R19 is done up to the accept.
    AddPrepared {
        /// For this view.
        view: ViewNumber,
        /// The replica to be named in it.
        replica: ReplicaId,
    },
    /// Answer to [`super::EngineCommand::BeginAdd`], or its end after `AddPrepared`: not now.
    AddAborted {
        /// For this view.
        view: ViewNumber,
    },
    /// The peer has the marks durably: Leave may be proposed as this view (R18).
    LeavePrepared {
        /// For this view.
        view: ViewNumber,
    },
    /// Both replicas have the blocks of a larger volume durably: it may be proposed as this view.
    GrowPrepared {
        /// For this view.
        view: ViewNumber,
        /// Blocks of the larger volume.
        size_blocks: u64,
    },
    /// Answer to [`super::EngineCommand::Drain`].
    Drained {
        /// The seal it was asked for.
        seal: ViewNumber,
        /// Whether every acknowledged write is on this disk; `false` vetoes the takeover.
        ok: bool,
    },
    /// Answer to [`super::EngineCommand::Quiesce`].
    Quiesced,
    /// Something that must outlive the replica's own disk (R23); answered by
    /// [`super::EngineCommand::MarkDone`].
    Mark {
        /// The engine's name for it.
        op: OpId,
        /// What.
        mark: ReplicaMark,
    },
}

/// What the voter store remembers about a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaMark {
    /// Its disk failed.
    Failed,
    /// It is whole again.
    Clean,
    /// It was attached.
    Attached(ReplicaId),
}

/// What an attached replica says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// Its identity.
    pub replica: ReplicaId,
    /// Its usable size in blocks; 0 if not known yet.
    pub size_blocks: u64,
    /// Its own superblock does not forbid promoting it (R10): whole, not outdated, not failed.
    pub eligible: bool,
    /// It was never part of a view.
    pub blank: bool,
    /// Its host restarted while acknowledged writes were not yet durable (R16).
    pub lost_volatile: bool,
    /// Its activity log named extents when it was attached: blocks may differ from the peer's.
    pub unclean: bool,
    /// Its disk has not answered for a while: the peer may have to serve soon.
    pub doubtful: bool,
    /// It took writes under protocol A: guests may know of more than it has, whatever is configured
    /// now.
    pub behind: bool,
}
