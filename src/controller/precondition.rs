//! What must hold before a node that does not serve a resource begins to: each precondition is a
//! named value with one check. The wish to propose (`resource/desire.rs`), the refusals of orders
//! and `why` all ask these; there is no second copy of the rules.
//!
//! Invariant: a node proposes to serve only if no precondition is unmet, but for the majority and
//! the replica's identity: those the round of the register finds out, which decides anyway.

use core::time::Duration;

use replicator::types::{Failover, Instant, NodeId, View, ViewNumber, VoterSet};

use super::input::{Automation, ReplicaFacts};
use super::message::BeaconEntry;
use super::order::Names;
use super::output::Blocker;

/// What the checks look at: facts about one resource at one node, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Situation<'a> {
    pub(super) now: Instant,
    pub(super) node: NodeId,
    /// The resource takes part here.
    pub(super) up: bool,
    /// An order to stop serving is being carried out, or the process is about to end.
    pub(super) leaving: bool,
    /// An operator says `primary`.
    pub(super) ordered: bool,
    /// An operator said `up` on the Primary of record.
    pub(super) ends_hold: bool,
    /// The newest view this node's voter has heard of.
    pub(super) view: Option<&'a View>,
    pub(super) replica: Option<&'a ReplicaFacts>,
    /// Its disk failed in this activation.
    pub(super) disk_failed: bool,
    /// It could not drain (R13): it may miss acknowledged writes.
    pub(super) vetoed: bool,
    /// An operator gives up what this replica lacks: only what would make two Primaries, or leave
    /// nothing to serve from, still counts.
    pub(super) forced: bool,
    /// What the peer said last, and when; `None` if it is silent.
    pub(super) claim: Option<(Instant, BeaconEntry)>,
    /// When waiting for a peer that may have kept more ends (R16).
    pub(super) kept_wait_end: Instant,
    /// The peer may be about to tell what replica it has.
    pub(super) awaits_peer: bool,
    /// The newest view in which the peer said that it will never serve again.
    pub(super) peer_left: Option<ViewNumber>,
    /// The view in which an operator said that the peer is dead.
    pub(super) fenced: Option<ViewNumber>,
    /// When the grant given to the peer ends.
    pub(super) grant_until: Instant,
    /// For the explorer's mutants.
    pub(super) grant_counts: bool,
    pub(super) has_arbitrator: bool,
    pub(super) failover: Failover,
    pub(super) automation: Automation,
    /// Until when the peer, preferred and starting as this node did, has the first word.
    pub(super) head_start_until: Instant,
    pub(super) voters_seen: usize,
    /// Another voter is heard, in whichever way.
    pub(super) others_heard: bool,
    /// When no other voter was heard for as long as an unplanned takeover waits.
    pub(super) quiet_at: Instant,
}

/// One precondition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precondition {
    /// The resource takes part on this node.
    Up,
    /// No order to stop serving is being carried out here.
    NotLeaving,
    /// A backing device is attached.
    Attached,
    /// The first Primary is chosen by an operator.
    Founded,
    /// A replica for a first view was never used.
    Blank,
    /// Nor was the peer's.
    PeerBlank,
    /// It is known whether the peer is there, and how large its disk is.
    PeerMet,
    /// The view counts on this replica.
    InSync,
    /// The attached replica is the one that the view names.
    SameReplica,
    /// The replica's own record does not forbid it (R10).
    Whole,
    /// It lost nothing that the peer may have kept (R16).
    KeptEverything,
    /// Nobody may have gone on without a view that this node's vote alone decided.
    NotOverruled,
    /// No order by hand holds.
    NotHeld,
    /// The node may take over by itself, or is told to.
    Allowed,
    /// The peer certainly does not serve any more.
    PeerGone,
    /// Two of three voters are seen.
    Majority,
}

/// How a precondition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It does not arise as things are.
    NotAsked,
    /// It holds.
    Met,
    /// It does not.
    Unmet(Blocker),
}

impl Check {
    fn met(met: bool, otherwise: Blocker) -> Self {
        if met {
            Self::Met
        } else {
            Self::Unmet(otherwise)
        }
    }

    /// What stands in the way, if it does not hold.
    #[must_use]
    pub fn blocker(self) -> Option<Blocker> {
        match self {
            Self::Unmet(blocker) => Some(blocker),
            Self::NotAsked | Self::Met => None,
        }
    }
}

impl Precondition {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 16] = [
        Self::Up,
        Self::NotLeaving,
        Self::Attached,
        Self::Founded,
        Self::Blank,
        Self::PeerBlank,
        Self::PeerMet,
        Self::InSync,
        Self::SameReplica,
        Self::Whole,
        Self::KeptEverything,
        Self::NotOverruled,
        Self::NotHeld,
        Self::Allowed,
        Self::PeerGone,
        Self::Majority,
    ];

    /// Whether an unmet one keeps the node from trying.
    fn decides(self) -> bool {
        !matches!(self, Self::SameReplica | Self::Majority)
    }

    /// How it stands.
    pub(super) fn check(self, s: &Situation<'_>) -> Check {
        match self {
            Self::Up => Check::met(s.up, Blocker::NotUp),
            Self::NotLeaving => Check::met(!s.leaving, Blocker::Leaving),
            Self::Attached => Check::met(s.replica.is_some(), Blocker::NoReplica),
            Self::Majority if s.forced => Check::NotAsked,
            Self::Majority => {
                let seen = s.voters_seen;
                Check::met(seen >= s.votes_needed(), Blocker::NoQuorum { seen })
            }
            Self::Founded | Self::Blank | Self::PeerBlank | Self::PeerMet => match s.view {
                Some(_) => Check::NotAsked,
                None => self.check_founding(s),
            },
            _ => match s.view {
                Some(view) => self.check_view(s, view),
                None => Check::NotAsked,
            },
        }
    }

    fn check_founding(self, s: &Situation<'_>) -> Check {
        let Some(replica) = s.replica else {
            return Check::NotAsked;
        };
        let claim = s.claim.map(|(_, claim)| claim);
        match self {
            Self::Founded => Check::met(s.ordered, Blocker::NotFounded),
            Self::Blank => Check::met(replica.blank, Blocker::NotBlank),
            Self::PeerBlank => {
                let used = claim.is_some_and(|claim| claim.attached && !claim.blank);
                Check::met(!used, Blocker::PeerNotBlank)
            }
            Self::PeerMet => Check::met(!s.awaits_peer, Blocker::AwaitsPeer),
            _ => Check::NotAsked,
        }
    }

    fn check_view(self, s: &Situation<'_>, view: &View) -> Check {
        let number = view.number;
        let ours = view.primary == s.node;
        // Positive evidence needs neither the wait nor a third voter (R12).
        let left = s.peer_left == Some(number);
        let gone = left || s.fenced == Some(number);
        match self {
            Self::InSync
            | Self::SameReplica
            | Self::KeptEverything
            | Self::NotOverruled
            | Self::NotHeld
            | Self::Allowed
                if s.forced =>
            {
                Check::NotAsked
            }
            // Also of a held view, and of one that names this node: nobody else looks.
            Self::PeerGone if s.forced => {
                let serves = s.claim.is_some_and(|(_, claim)| claim.active);
                let over = gone || s.now >= s.grant_until || !s.grant_counts;
                Check::met(over && !serves, s.peer_serves(view))
            }
            // Its own vote proves only that it was once the last one left.
            Self::NotOverruled if view.voters.needed() > 1 => Check::NotAsked,
            Self::NotOverruled if !s.ordered || s.others_heard => {
                let heard = s.others_heard;
                let view = number;
                Check::Unmet(Blocker::DecidedAlone { view, heard })
            }
            Self::NotOverruled => {
                let remaining = s.quiet_at.since(s.now);
                let otherwise = Blocker::LeaseWait { remaining };
                Check::met(remaining.is_zero(), otherwise)
            }
            Self::InSync => {
                let counts = view.in_sync.contains(s.node);
                Check::met(counts, Blocker::NotInSync { view: number })
            }
            Self::NotHeld => {
                let met = !view.held || s.ordered || (ours && s.ends_hold);
                Check::met(met, Blocker::Held { view: number })
            }
            Self::Allowed | Self::PeerGone if ours || view.held => Check::NotAsked,
            Self::Allowed if s.ordered || left => Check::Met,
            Self::Allowed if s.automation.standby => Check::Unmet(Blocker::Standby),
            Self::Allowed if s.automation.maintenance => Check::Unmet(Blocker::Maintenance),
            Self::Allowed if automatic(s) && !gone && s.now < s.head_start_until => {
                let remaining = s.head_start_until.since(s.now);
                Check::Unmet(Blocker::HeadStart { remaining })
            }
            Self::Allowed => {
                let has_arbitrator = s.has_arbitrator;
                let otherwise = Blocker::ByHandOnly { has_arbitrator };
                Check::met(automatic(s), otherwise)
            }
            Self::PeerGone => {
                let over = gone || s.now >= s.grant_until || !s.grant_counts;
                Check::met(over, s.peer_serves(view))
            }
            _ => match s.replica {
                Some(replica) => self.check_replica(s, view, replica),
                None => Check::NotAsked,
            },
        }
    }

    fn check_replica(self, s: &Situation<'_>, view: &View, replica: &ReplicaFacts) -> Check {
        let named = view.replicas[s.node.index()] == Some(replica.replica);
        match self {
            Self::SameReplica => Check::met(named, Blocker::WrongReplica),
            Self::Whole if s.forced && replica.blank && !named => Check::Unmet(Blocker::NoData),
            Self::Whole if s.forced => Check::met(!s.disk_failed, Blocker::Ineligible),
            Self::Whole => {
                // Its own word, or that it is the blank replica with which the resource was founded.
                // That one becomes not blank durably before its first acknowledged write, so blank
                // means that there was none, even after a crash in between.
                let whole = replica.eligible || (replica.blank && named);
                let forbidden = s.disk_failed || s.vetoed;
                Check::met(whole && !forbidden, Blocker::Ineligible)
            }
            Self::KeptEverything => {
                Check::met(!s.waits_for_kept(view, replica), Blocker::PeerKeptMore)
            }
            _ => Check::NotAsked,
        }
    }

    /// Its word in `why`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::NotLeaving => "not-leaving",
            Self::Attached => "attached",
            Self::Founded => "founded",
            Self::Blank => "blank",
            Self::PeerBlank => "peer-blank",
            Self::PeerMet => "peer-met",
            Self::InSync => "in-sync",
            Self::SameReplica => "same-replica",
            Self::Whole => "whole",
            Self::KeptEverything => "kept-everything",
            Self::NotOverruled => "not-overruled",
            Self::NotHeld => "not-held",
            Self::Allowed => "allowed",
            Self::PeerGone => "peer-gone",
            Self::Majority => "majority",
        }
    }

    /// What it says when it holds.
    #[must_use]
    pub fn when_met(self, names: &Names<'_>) -> String {
        let Names { node, peer, .. } = names;
        match self {
            Self::Up => format!("the resource is up on {node}"),
            Self::NotLeaving => "no order to stop serving is being carried out".to_owned(),
            Self::Attached => format!("a backing device is attached on {node}"),
            Self::Founded => "an operator chooses the first Primary".to_owned(),
            Self::Blank => format!("the replica on {node} was never used"),
            Self::PeerBlank => format!("nor was that on {peer}, as far as it is known"),
            Self::PeerMet => format!("{peer} had its time to say what replica it has"),
            Self::InSync => format!(
                "the view counts on {node}: it has every acknowledged write (under protocol A: \
                 every flushed one)"
            ),
            Self::SameReplica => "the attached replica is the one that the view names".to_owned(),
            Self::Whole => "the replica itself does not forbid it".to_owned(),
            Self::KeptEverything => "it lost nothing that the peer may have kept".to_owned(),
            Self::NotOverruled => "nobody else is there who may have gone on".to_owned(),
            Self::NotHeld => "no order by hand holds".to_owned(),
            Self::Allowed => "it may take over by itself, or was told to".to_owned(),
            Self::PeerGone => format!("{peer} certainly does not serve any more"),
            Self::Majority => "a majority of the voters is seen".to_owned(),
        }
    }
}

/// Whether the node may take over without an operator.
fn automatic(s: &Situation<'_>) -> bool {
    s.has_arbitrator && s.failover == Failover::Auto
}

impl Situation<'_> {
    /// Whether nothing keeps the node from proposing to serve.
    pub(super) fn allows(&self) -> bool {
        Precondition::ALL
            .into_iter()
            .all(|it| !it.decides() || it.check(self).blocker().is_none())
    }

    /// Each precondition and how it stands. Of what is wrong with a replica the first is told.
    pub(super) fn checks(&self) -> Vec<(Precondition, Check)> {
        let mut replica_blocked = false;
        let checks = Precondition::ALL.into_iter().map(|it| {
            let of_replica = (Precondition::InSync..=Precondition::KeptEverything).contains(&it);
            if of_replica && replica_blocked {
                return (it, Check::NotAsked);
            }
            let check = it.check(self);
            replica_blocked |= of_replica && check.blocker().is_some();
            (it, check)
        });
        checks.collect()
    }

    /// What a grant that runs means.
    fn peer_serves(&self, view: &View) -> Blocker {
        match self.claim.filter(|(_, claim)| claim.active) {
            Some((at, claim)) => Blocker::PeerActive {
                view: claim.view.max(view.number),
                last_seen: self.now.since(at),
            },
            None => Blocker::LeaseWait {
                remaining: self.grant_remaining(),
            },
        }
    }

    /// Votes that change the view.
    pub(super) fn votes_needed(&self) -> usize {
        self.view
            .map_or(VoterSet::MAJORITY, |view| view.voters.needed())
    }

    pub(super) fn grant_remaining(&self) -> Duration {
        self.grant_until.since(self.now)
    }

    /// R16: this replica lost acknowledged writes that the peer's in-sync replica may have kept.
    fn waits_for_kept(&self, view: &View, replica: &ReplicaFacts) -> bool {
        if !replica.lost_volatile || !view.in_sync.contains(self.node.peer()) {
            return false;
        }
        let may_still_come = self.now < self.kept_wait_end;
        match self.claim.filter(|(_, claim)| claim.attached) {
            None => may_still_come,
            Some((_, claim)) if !claim.eligible => false,
            Some((_, claim)) if claim.kept => true,
            // Both lost it: the Primary of record goes first.
            Some(_) => view.primary != self.node && may_still_come,
        }
    }
}
