//! What a controller wants done, and what it shows.

use core::time::Duration;

use replicator::types::{
    Activation, CommittedView, Instant, NodeId, OpId, ResourceId, View, ViewNumber, VoterId,
};

use super::input::OrderId;
use super::message::Datagram;
use super::order::{Done, OrderRefusal};
use super::record::VoterRecord;
use super::view::{Abort, ProposalKind};

/// One effect, appended in order by [`super::Controller::handle`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send on every configured path to that node. May be lost, doubled and reordered.
    Send {
        /// To whom.
        to: NodeId,
        /// What; encodes to at most [`super::message::DATAGRAM_LEN_MAX`] bytes.
        datagram: Datagram,
    },
    /// Replace the resource's record in the voter store, durably, and answer with
    /// [`super::Input::Persisted`]. At most one per resource is outstanding.
    Persist {
        /// Echoed by the completion.
        op: OpId,
        /// Whose record.
        resource: ResourceId,
        /// The whole record.
        record: VoterRecord,
    },
    /// Tell the engine of a resource.
    Engine {
        /// Which resource.
        resource: ResourceId,
        /// What.
        command: EngineCommand,
    },
    /// An order ended.
    OrderDone {
        /// Which.
        order: OrderId,
        /// How.
        result: Result<Done, OrderRefusal>,
    },
    /// Something for the log, `events2` and metrics.
    Event(ControllerEvent),
}

/// What an engine is told. Mirrors the engine's inputs without naming them: the controller knows
/// only the leaf types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineCommand {
    /// Serve (R8). Always followed by a `Lease` once the peer granted one.
    Activate(Activation),
    /// Stop serving; fail what is in flight for ever (R9).
    StepDown,
    /// This node's own proposal was committed.
    Committed(CommittedView),
    /// A newer committed view is known from others: for caution, never for serving.
    Learned(View),
    /// The lease of the running activation now ends then.
    Lease {
        /// On this node's clock.
        until: Instant,
    },
    /// Close sessions of views up to `seal`, apply what was acknowledged, report `Drained` (R13).
    Drain {
        /// The view being sealed.
        seal: ViewNumber,
    },
    /// Prepare an Add as this view (R19), report `AddPrepared` or `AddAborted`.
    BeginAdd {
        /// The view that will be proposed.
        view: ViewNumber,
    },
    /// The Leave or Add the engine prepares or prepared was not committed and never will be. An Add
    /// under way is answered by `AddAborted`.
    ProposalAborted,
    /// Make everything durable and hold new requests, report `Quiesced`.
    Quiesce,
    /// Give the quiescence up.
    Unquiesce,
    /// The mark is durable in the voter store, or could not be made so.
    MarkDone {
        /// The engine's name for it.
        op: OpId,
        /// Whether it is durable.
        ok: bool,
    },
}

/// What shows that a Primary serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It said so itself.
    HandedOver,
    /// An operator said that it is dead.
    Fenced,
    /// It was silent for longer than any lease it may hold.
    Silence,
}

/// Why a Primary stops being one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepDownReason {
    /// A newer view names another Primary, or holds.
    Superseded,
    /// The peer sealed this view (F18); a Recover follows at once.
    Refused,
    /// An operator's order.
    Ordered,
    /// Its replica failed or was let go, and no other could serve for it.
    NoReplica,
    /// Its own disk failed, and the peer's lost acknowledged writes (R17).
    WritesLost,
}

/// A fact worth telling people. Resource-less ones concern the node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControllerEvent {
    /// This node serves in that view.
    Activated {
        /// Which resource.
        resource: ResourceId,
        /// In which view.
        view: View,
    },
    /// This node serves no more.
    SteppedDown {
        /// Which resource.
        resource: ResourceId,
        /// Why.
        reason: StepDownReason,
    },
    /// A newer committed view is known, by own commit or from others.
    ViewChanged {
        /// Which resource.
        resource: ResourceId,
        /// The view.
        view: View,
    },
    /// The active Primary's lease ended: guests are held until it returns or a Remove commits.
    LeaseLapsed {
        /// Which resource.
        resource: ResourceId,
    },
    /// A lapsed lease returned.
    LeaseReturned {
        /// Which resource.
        resource: ResourceId,
    },
    /// This node refuses the views up to that one from now on: a takeover began.
    Sealed {
        /// Which resource.
        resource: ResourceId,
        /// The seal.
        seal: ViewNumber,
        /// What shows that its Primary serves no more.
        evidence: Evidence,
    },
    /// The replica itself forbade its promotion (R10, R13).
    Vetoed {
        /// Which resource.
        resource: ResourceId,
    },
    /// A proposal turned out not to apply to the view the register holds.
    Aborted {
        /// Which resource.
        resource: ResourceId,
        /// What was proposed.
        kind: ProposalKind,
        /// Why not.
        reason: Abort,
    },
    /// The voter store could not record something; this voter is silent about the resource. Tried
    /// again, and said again only after [`Self::StoreReturned`].
    StoreFailed {
        /// Which resource.
        resource: ResourceId,
    },
    /// The voter store recorded something again.
    StoreReturned {
        /// Which resource.
        resource: ResourceId,
    },
    /// A voter answers again.
    NodeSeen {
        /// Which node.
        node: NodeId,
    },
    /// A voter does not answer any more.
    NodeLost {
        /// Which node.
        node: NodeId,
    },
    /// Two of three voters name one view differently, or a voter contradicts itself: a human must
    /// look.
    Contradiction {
        /// Which resource.
        resource: ResourceId,
        /// The view number concerned.
        view: ViewNumber,
    },
    /// There is no round above the last one heard of: this node decides nothing any more. Only a
    /// forged or damaged ballot explains it; a human must look.
    RoundsExhausted {
        /// Which resource.
        resource: ResourceId,
    },
}

/// State of one resource as the controller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceSnapshot {
    /// The resource takes part on this node.
    pub up: bool,
    /// This node serves.
    pub activated: bool,
    /// The newest committed view known, if the resource was founded.
    pub view: Option<View>,
    /// Time left of the lease; `None` when not activated or when none is needed (solo).
    pub lease_remaining: Option<Duration>,
    /// The lease is needed and over: guests are held (`suspended:quorum`).
    pub lease_lapsed: bool,
    /// Whether this node may become Primary without further ado.
    pub may_promote: bool,
    /// If not, why not; each is one reason.
    pub blockers: Vec<Blocker>,
    /// The proposal being decided.
    pub proposal: Option<ProposalKind>,
    /// Why the last proposal was aborted, if it was the last thing that happened.
    pub last_abort: Option<(ProposalKind, Abort)>,
    /// What the peer's last beacon said about the resource, if it is heard.
    pub peer: Option<PeerClaim>,
    /// Since when the peer could have followed this active node at any moment: in sync, connected, and
    /// ready by its own word.
    pub peer_well_since: Option<Instant>,
    /// The first thing in the way of a move to the peer; `None` on a node that is not active.
    pub move_blocker: Option<Blocker>,
}

/// What the peer's beacons say about a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerClaim {
    /// It takes part there.
    pub up: bool,
    /// It serves there.
    pub active: bool,
    /// A replica is attached there.
    pub attached: bool,
    /// Its disk works, and its record lets it serve.
    pub eligible: bool,
    /// The newest view it knows.
    pub view: ViewNumber,
}

/// State of the node as the controller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSnapshot {
    /// By [`NodeId`]; this node counts as seen.
    pub voters: [VoterSnapshot; 3],
    /// How many of the configured voters are seen.
    pub voters_seen: usize,
    /// How many are configured: 3, or 2 without an arbitrator.
    pub voters_total: usize,
    /// Whether a majority (2) is seen.
    pub quorum: bool,
}

/// What is known of one voter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VoterSnapshot {
    /// It is configured at all.
    pub configured: bool,
    /// It answered recently.
    pub seen: bool,
    /// Time since its last answer; `None` if it never answered this process.
    pub last_seen: Option<Duration>,
    /// Round trip of the last answered beacon.
    pub rtt: Option<Duration>,
    /// Bit n is set if path n brought something from it recently.
    pub paths_up: u8,
}

/// This node as a voter: who it is, whom it knows, what it recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VotersSnapshot {
    /// Who is seen.
    pub seen: NodeSnapshot,
    /// Identity of each voter's store, by [`NodeId`]; `None` for one that was never heard.
    pub ids: [Option<VoterId>; 3],
    /// All records, of resources that are not configured here too.
    pub records: Vec<(ResourceId, VoterRecord)>,
}

/// One reason why this node may not become Primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blocker {
    /// `up` was not given.
    NotUp,
    /// No backing device is attached.
    NoReplica,
    /// The replica itself says that it is not whole (R10).
    Ineligible,
    /// The attached replica is not the one the view names.
    WrongReplica,
    /// The replica was part of a resource whose view the voters do not know.
    NotBlank,
    /// The same of the peer's replica.
    PeerNotBlank,
    /// The view leaves this replica out.
    NotInSync {
        /// Since this view.
        view: ViewNumber,
    },
    /// The peer serves.
    PeerActive {
        /// In this view.
        view: ViewNumber,
        /// When it was last heard.
        last_seen: Duration,
    },
    /// The peer may still serve for this long.
    LeaseWait {
        /// Until a takeover is allowed.
        remaining: Duration,
    },
    /// Fewer than two voters are seen.
    NoQuorum {
        /// How many.
        seen: usize,
    },
    /// The peer's replica kept acknowledged writes that this one lost (R16).
    PeerKeptMore,
    /// Guests' writes are still being made durable.
    NotQuiet,
    /// The voter store has not written yet.
    StoreSlow,
    /// A majority is seen but has not decided yet.
    Undecided,
    /// An order to stop serving is being carried out here.
    Leaving,
    /// No view exists: an operator chooses the first Primary.
    NotFounded,
    /// The peer may be about to tell what replica it has.
    AwaitsPeer,
    /// An order by hand holds.
    Held {
        /// Since this view.
        view: ViewNumber,
    },
    /// Nobody takes over without an operator: so configured, or for want of an arbitrator.
    ByHandOnly {
        /// There is one.
        has_arbitrator: bool,
    },
    /// There is nothing to move: this node does not serve, nor does the peer.
    NobodyServes,
    /// The view leaves the peer's replica out, so that it cannot follow.
    PeerNotInSync {
        /// Since this view.
        view: ViewNumber,
    },
    /// The resource is not up on the peer.
    PeerNotUp,
    /// The peer is not heard.
    PeerSilent,
    /// The peer's replica is not attached, or does not allow its promotion yet.
    PeerNotReady,
    /// The peer could have taken over and did not; this node serves again.
    NotTaken,
    /// The replica never was part of the resource: there is nothing to serve from it, by force either.
    NoData,
    /// Another view than the one that the operator was told of is the newest now.
    ViewMoved {
        /// That one.
        view: ViewNumber,
    },
    /// The node is in standby.
    Standby,
    /// Maintenance is on here.
    Maintenance,
    /// This node's vote alone decided the view, and others may have gone on without it.
    DecidedAlone {
        /// Which view.
        view: ViewNumber,
        /// One of them is heard.
        heard: bool,
    },
    /// Both nodes may be starting, and the peer, which served last, is preferred.
    HeadStart {
        /// Until this node takes over without it.
        remaining: Duration,
    },
    /// The peer, said to be dead, was heard.
    PeerHeard {
        /// How long ago.
        last_seen: Duration,
    },
}

impl Blocker {
    /// Whether waiting may mend it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoReplica
            | Self::LeaseWait { .. }
            | Self::HeadStart { .. }
            | Self::NoQuorum { .. }
            | Self::PeerKeptMore
            | Self::NotQuiet
            | Self::StoreSlow
            | Self::Undecided
            | Self::Leaving
            | Self::AwaitsPeer
            | Self::PeerSilent
            | Self::PeerNotReady => true,
            Self::NotUp
            | Self::Ineligible
            | Self::WrongReplica
            | Self::NotBlank
            | Self::PeerNotBlank
            | Self::NotInSync { .. }
            | Self::PeerActive { .. }
            | Self::NotFounded
            | Self::Held { .. }
            | Self::ByHandOnly { .. }
            | Self::NobodyServes
            | Self::PeerNotInSync { .. }
            | Self::PeerNotUp
            | Self::NotTaken
            | Self::NoData
            | Self::ViewMoved { .. }
            | Self::Standby
            | Self::Maintenance
            | Self::DecidedAlone { .. }
            | Self::PeerHeard { .. } => false,
        }
    }
}
