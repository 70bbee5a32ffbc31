//! The engine's state as users see it.

use super::output::{MarkRun, ReplicaFacts, Snapshot};
use super::session::Phase;
use super::{Engine, LocalDisk};
use crate::meta::ReplicaState;
use crate::protocol::Refusal;
use crate::types::{
    BlockCount, BlockRange, ConnectionState, DiskState, NodeId, ReplicationState, Role, ViewNumber,
};

impl Engine {
    /// Primary only while activated. Cheap, unlike the whole snapshot.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.active {
            Some(active) if active.serving => Role::Primary,
            _ => Role::Secondary,
        }
    }

    /// The state as others may see it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let peer = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref());
        Snapshot {
            role: self.role(),
            disk: self.disk_state(),
            connection: self.connection_state(),
            disconnected_at: self
                .disconnected_at
                .filter(|_| self.connection_state() != ConnectionState::Connected),
            refused: self.refused,
            replication: self.replication_state(),
            peer_role: match peer {
                None => Role::Unknown,
                Some(hello) if hello.active.is_some() => Role::Primary,
                Some(_) => Role::Secondary,
            },
            peer_disk: self.peer_disk_state(),
            view: self
                .view
                .as_ref()
                .map_or(ViewNumber::NONE, |view| view.number),
            out_of_sync_blocks: self.dirty_blocks(),
            resync: self.progress,
            sync_paused: self.sync_is_paused_here(),
            peer_sync_paused: self.sync_is_paused_there(),
            resync_rate: self.resync_rate(),
            resync_pace: self.pace(),
            throttled: self.advice().pace.map(|_| self.advice().latency),
            invalidate_pending: self.invalidate_is_pending(),
            invalidations: self.invalidations(),
            verify: self.verify_report().cloned(),
            verifies_begun: self.verifies_begun(),
            held: self.held_reason(),
            room: self.room(),
            grow: self.grow_report(),
            suspension: self.suspension(),
            size_blocks: Some(self.volume_blocks().0).filter(|blocks| *blocks > 0),
            rtt: self.session.as_ref().and_then(|session| session.rtt),
            lag_bytes: self.ahead_bytes,
            lag_since: self.ahead_since(),
            inflight: self.requests.len() + self.held.len() + self.suspended_len(),
            counters: self.counters,
        }
    }

    /// What the controller must know of the local replica; `None` while there is none.
    #[must_use]
    pub fn replica_facts(&self) -> Option<ReplicaFacts> {
        if self.local != LocalDisk::Attached {
            return None;
        }
        let replica = self.replica.as_ref()?;
        let superblock = replica.superblock.current();
        let own = replica.bitmap.size().0;
        let peer = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref());
        let theirs = peer
            .and_then(|hello| hello.replica.as_ref())
            .map(|claim| claim.size_blocks);
        let founded = superblock.data_generation.is_some();
        let size_blocks = match theirs {
            _ if founded => self.volume_blocks().0,
            Some(theirs) => own.min(theirs),
            None => own,
        };
        Some(ReplicaFacts {
            replica: superblock.replica,
            eligible: self.eligible(),
            size_blocks,
            blank: superblock.state == ReplicaState::Blank,
            lost_volatile: replica.lost_volatile,
            unclean: !replica.bitmap.is_empty(),
            doubtful: self.disk_is_doubtful(),
            behind: superblock.may_be_behind,
        })
    }

    /// Whether guests read the local replica, so that it can be asked what the volume holds.
    #[must_use]
    pub fn reads_are_local(&self) -> bool {
        self.active.is_some() && self.local_usable()
    }

    /// What the peer may lack of `range`: runs from its start on, marked and not in turns, at most
    /// `count_max` of them. `None` without a local replica, which keeps the marks. Writes on their
    /// way to the peer are not marked.
    #[must_use]
    pub fn marks(&self, range: BlockRange, count_max: usize) -> Option<Vec<MarkRun>> {
        let bitmap = &self.replica.as_ref()?.bitmap;
        let mut runs = Vec::new();
        let mut at = range.start();
        while at < range.end() && runs.len() < count_max {
            let marked = bitmap.next_run(at, range.count());
            let (start, end) = marked.map_or((range.end(), range.end()), |run| {
                (run.start().min(range.end()), run.end().min(range.end()))
            });
            let is_marked = start == at;
            let stop = if is_marked { end } else { start };
            runs.push(MarkRun {
                count: BlockRange::between(at, stop).count(),
                is_marked,
            });
            at = stop;
        }
        Some(runs)
    }

    /// How many blocks of `range` the peer may lack; none without a local replica.
    #[must_use]
    pub fn marked_blocks(&self, range: BlockRange) -> BlockCount {
        let replica = self.replica.as_ref();
        replica.map_or(BlockCount(0), |replica| replica.bitmap.count_in(range))
    }

    /// Size of the volume: what the view says, never more than the replica has.
    #[must_use]
    pub fn volume_blocks(&self) -> BlockCount {
        let own = self.replica.as_ref().map(|replica| replica.bitmap.size().0);
        let agreed = self
            .view
            .as_ref()
            .map(|view| view.size_blocks)
            .filter(|size| *size > 0);
        BlockCount(match (agreed, own) {
            (Some(agreed), Some(own)) => agreed.min(own),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => 0,
        })
    }

    /// Blocks that the replica has durably: the volume's at least. What a Primary that knows of a newer
    /// view writes lies within.
    pub(super) fn replica_blocks(&self) -> BlockCount {
        let replica = self.replica.as_ref();
        replica.map_or(BlockCount(0), |replica| replica.bitmap.size())
    }

    fn disk_state(&self) -> DiskState {
        match self.local {
            LocalDisk::Diskless => DiskState::Diskless,
            LocalDisk::Attaching => DiskState::Attaching,
            LocalDisk::Failed => DiskState::Failed,
            // Whoever waits for Diskless waits for the last write.
            LocalDisk::Detaching | LocalDisk::LettingGo => DiskState::Detaching,
            LocalDisk::Attached => self.attached_state(),
        }
    }

    fn attached_state(&self) -> DiskState {
        let named = self.view_names(self.config.node);
        match self.replica_state() {
            Some(ReplicaState::InSync { .. }) => match named {
                Some(true) => DiskState::UpToDate,
                Some(false) => DiskState::Outdated,
                None => DiskState::Consistent,
            },
            Some(ReplicaState::Outdated) => DiskState::Outdated,
            Some(ReplicaState::Blank | ReplicaState::SyncTarget | ReplicaState::Failed) | None => {
                DiskState::Inconsistent
            }
        }
    }

    fn peer_disk_state(&self) -> DiskState {
        let peer = self
            .session
            .as_ref()
            .and_then(|session| session.peer.as_ref());
        let Some(hello) = peer else {
            return DiskState::DUnknown;
        };
        if self.view_names(hello.node) == Some(true)
            && (hello.replica.is_some() || hello.active.is_some())
        {
            return DiskState::UpToDate;
        }
        match &hello.replica {
            None => DiskState::Diskless,
            Some(claim) if claim.blank || claim.inconsistent => DiskState::Inconsistent,
            Some(_) if self.is_copying_to_peer() => DiskState::Inconsistent,
            Some(_) if self.view.is_none() => DiskState::Consistent,
            Some(_) => DiskState::Outdated,
        }
    }

    fn view_names(&self, node: NodeId) -> Option<bool> {
        self.view.as_ref().map(|view| view.in_sync.contains(node))
    }

    fn connection_state(&self) -> ConnectionState {
        let greeted = self
            .session
            .as_ref()
            .is_some_and(|session| !matches!(session.phase, Phase::Greeting));
        // A peer that is merely behind or ahead in views finds out by itself.
        let lasting = self
            .refused
            .is_some_and(|why| !matches!(why, Refusal::Sealed | Refusal::BothActive));
        match (greeted, self.connect_wanted && !lasting) {
            (true, _) => ConnectionState::Connected,
            (false, true) => ConnectionState::Connecting,
            (false, false) => ConnectionState::StandAlone,
        }
    }

    fn peer_verifies(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.peer_verifies)
    }

    fn is_copying_to_peer(&self) -> bool {
        let phase = self.session.as_ref().map(|session| &session.phase);
        matches!(phase, Some(Phase::SyncSource(source)) if !source.is_exchanging())
    }

    fn replication_state(&self) -> ReplicationState {
        match self.session.as_ref().map(|session| &session.phase) {
            None | Some(Phase::Greeting | Phase::Idle) => ReplicationState::Off,
            Some(Phase::SyncSource(source)) if source.is_exchanging() => {
                ReplicationState::WFBitMapS
            }
            Some(Phase::SyncSource(_)) if self.sync_is_paused() => ReplicationState::PausedSyncS,
            Some(Phase::SyncSource(_)) => ReplicationState::SyncSource,
            Some(Phase::SyncTarget(target)) if !target.pulling => ReplicationState::WFBitMapT,
            Some(Phase::SyncTarget(_)) if self.sync_is_paused() => ReplicationState::PausedSyncT,
            Some(Phase::SyncTarget(_)) => ReplicationState::SyncTarget,
            Some(Phase::MirrorSource) if self.is_verifying() => ReplicationState::VerifyS,
            Some(Phase::MirrorTarget) if self.peer_verifies() => ReplicationState::VerifyT,
            Some(_) => ReplicationState::Established,
        }
    }
}
