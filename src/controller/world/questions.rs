//! What a node of the world is asked, beside what the world sees of it.

use replicator::types::NodeId;

use super::super::{Fate, Why};
use super::{RESOURCE, World};

impl World {
    pub(crate) fn why(&self, node: usize) -> Why {
        let controller = self.nodes[node].controller.as_ref().expect("runs");
        controller
            .why(self.local_now(node), RESOURCE)
            .expect("configured")
    }

    /// What becomes of the resource at `node` if `dead` dies now.
    pub(crate) fn fate(&self, node: usize, dead: usize) -> Fate {
        let controller = self.nodes[node].controller.as_ref().expect("runs");
        controller
            .fate(self.local_now(node), RESOURCE, NodeId::ALL[dead])
            .expect("configured")
    }
}
