//! What the shard needs of an engine, so that it can be driven by a simpler one in tests.

use replicator::engine::{Engine, EngineConfig, Input, MarkRun, Outbox, Snapshot};
use replicator::types::{BlockCount, BlockRange, Instant, Role};

use crate::daemon::api::{ResourceSetup, ShardSetup};

/// The state machine of one resource, as the shard drives it.
pub trait ReplicationEngine {
    /// Consumes one input, appends every resulting action.
    fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox);
    /// When it wants an `Input::Tick`.
    fn next_deadline(&self) -> Option<Instant>;
    /// Its state as others may see it.
    fn snapshot(&self) -> Snapshot;
    /// See [`Engine::role`]: asked for each input, where a snapshot costs too much.
    fn role(&self) -> Role {
        self.snapshot().role
    }
    /// See [`Engine::reads_are_local`].
    fn reads_are_local(&self) -> bool {
        false
    }
    /// See [`Engine::suspended_bytes`].
    fn suspended_bytes(&self) -> usize {
        0
    }
    /// See [`Engine::marks`].
    fn marks(&self, range: BlockRange, count_max: usize) -> Option<Vec<MarkRun>> {
        let _ = (range, count_max);
        None
    }
    /// See [`Engine::marked_blocks`].
    fn marked_blocks(&self, range: BlockRange) -> BlockCount {
        let _ = range;
        BlockCount(0)
    }
}

/// Makes the engine of a resource.
pub type EngineFactory =
    Box<dyn Fn(&ShardSetup, &ResourceSetup) -> Box<dyn ReplicationEngine> + Send>;

impl ReplicationEngine for Engine {
    fn handle(&mut self, now: Instant, input: Input, out: &mut Outbox) {
        Engine::handle(self, now, input, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        Engine::next_deadline(self)
    }

    fn snapshot(&self) -> Snapshot {
        Engine::snapshot(self)
    }

    fn role(&self) -> Role {
        Engine::role(self)
    }

    fn reads_are_local(&self) -> bool {
        Engine::reads_are_local(self)
    }

    fn suspended_bytes(&self) -> usize {
        Engine::suspended_bytes(self)
    }

    fn marks(&self, range: BlockRange, count_max: usize) -> Option<Vec<MarkRun>> {
        Engine::marks(self, range, count_max)
    }

    fn marked_blocks(&self, range: BlockRange) -> BlockCount {
        Engine::marked_blocks(self, range)
    }
}

/// Makes the engines that replicate.
#[must_use]
pub fn engines() -> EngineFactory {
    Box::new(|shard, resource| Box::new(Engine::new(config(shard, resource))))
}

pub(super) fn config(shard: &ShardSetup, resource: &ResourceSetup) -> EngineConfig {
    EngineConfig {
        node: shard.node,
        resource: resource.row.identity(resource.resource),
        volume: resource.row.first(),
        row: resource.row.clone(),
        timeout: resource.peer_timeout,
        disk_timeout: resource.disk_timeout,
        protocol: resource.protocol,
        checksum_first: resource.checksum_first,
        resync_rate: resource.resync_rate,
        guest_latency_target: resource.guest_latency_target,
        boot_id: shard.boot_id,
        incarnation: shard.incarnation,
    }
}
