//! The configured resources as this process has them: what the files said when it started, and what
//! [`super::adjust`] took over since.
//!
//! Everything else of the configuration stays as it was read at the start. Readers get handles, so that
//! an order under way keeps the configuration it began with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use replicator::types::ResourceId;

use super::guests::GuardLinks;
use crate::config::ResourceConfig;

/// See the module. Its lock is held for lookups only: the beacon thread is among the readers.
#[derive(Debug, Default)]
pub(super) struct Resources {
    known: RwLock<Known>,
    /// Those whose data here a client waits to have thrown away.
    pub(super) invalidating: Mutex<BTreeSet<ResourceId>>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order of the configuration.
    list: Vec<Arc<ResourceConfig>>,
    /// End of each resource's lease, shared with the shard. One that is configured no more keeps its
    /// own: the same if it comes back.
    leases: BTreeMap<ResourceId, Arc<AtomicU64>>,
    /// Guardians of each resource that has or had a guest.
    guards: BTreeMap<ResourceId, Arc<GuardLinks>>,
}

impl Resources {
    pub(super) fn new(list: Vec<ResourceConfig>) -> Self {
        let resources = Self::default();
        resources.put(list.into_iter().map(Arc::new).collect());
        resources
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these are the configured ones.
    pub(super) fn put(&self, list: Vec<Arc<ResourceConfig>>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for resource in &list {
            known.leases.entry(resource.id()).or_default();
            if resource.guest.is_some() {
                known.guards.entry(resource.id()).or_default();
            }
        }
        known.list = list;
    }

    pub(super) fn all(&self) -> Vec<Arc<ResourceConfig>> {
        self.known().list.clone()
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<ResourceConfig>> {
        let known = self.known();
        known.list.iter().find(|it| it.name == name).cloned()
    }

    pub(super) fn with_id(&self, id: ResourceId) -> Option<Arc<ResourceConfig>> {
        let known = self.known();
        known.list.iter().find(|it| it.id() == id).cloned()
    }

    /// End of a resource's lease on this node's clock, in nanoseconds; 0: none.
    pub(super) fn lease(&self, id: ResourceId) -> Option<Arc<AtomicU64>> {
        self.known().leases.get(&id).cloned()
    }

    /// The guardians of a resource's guest.
    pub(super) fn guards_of(&self, id: ResourceId) -> Option<Arc<GuardLinks>> {
        self.known().guards.get(&id).cloned()
    }

    pub(super) fn guards(&self) -> Vec<(ResourceId, Arc<GuardLinks>)> {
        let known = self.known();
        let guards = known.guards.iter();
        guards.map(|(id, links)| (*id, Arc::clone(links))).collect()
    }

    pub(super) fn leases(&self) -> Vec<Arc<AtomicU64>> {
        self.known().leases.values().cloned().collect()
    }
}
