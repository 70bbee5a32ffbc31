//! Silent corruption, and the online verify that must find it, all of it and nothing else.
//!
//! Bytes change below an engine only where no request of the plan ever goes: whoever serves then
//! may serve them, and no other checker minds. At the end a verify that mends must find exactly
//! what differs then, and the replicas must be equal after it.

use std::collections::BTreeSet;

use replicator::engine::{AdminRequest, VerifyEnd, VerifyOrder, VerifyReport};
use replicator::types::{NodeId, Payload, Role};

use crate::checkers::{Violation, dirty};
use crate::disk::PAGE_LEN;
use crate::plan::VERIFIES_FROM;

use super::World;

/// What is known of rot and of verifies.
#[derive(Debug, Default)]
pub(super) struct Verified {
    /// Blocks that ever changed below an engine.
    rotten: BTreeSet<u64>,
    /// The last verify of the run.
    last: Last,
}

#[derive(Debug, Default)]
enum Last {
    #[default]
    Wanted,
    /// It is to find these.
    Running(Vec<u64>),
    Done,
}

impl World {
    pub(super) fn rot(&mut self, node: NodeId, block: u64) {
        let page = Payload::from(vec![0xbd; PAGE_LEN]);
        self.node(node).data.write(block, Some(page), true);
        self.verified.rotten.insert(block);
    }

    pub(super) fn is_rotten(&self, block: u64) -> bool {
        self.verified.rotten.contains(&block)
    }

    /// Whatever was under way, only what changed below the engines may be found to differ.
    pub(super) fn watch_verified(&mut self, node: NodeId, report: &VerifyReport) {
        let told: Vec<u64> = report
            .ranges
            .iter()
            .flat_map(|range| range.iter())
            .map(|block| block.0)
            .collect();
        let invented = told.iter().find(|block| !self.is_rotten(**block));
        if let Some(block) = invented {
            let detail = format!("{node:?} finds block {block} to differ: {report:?}");
            self.fail(Violation::new("verify is true", detail));
        }
        let Last::Running(expected) = &self.verified.last else {
            return;
        };
        let done = matches!(report.end, Some((_, VerifyEnd::Done)));
        let found = *expected == told && report.differing_blocks == expected.len() as u64;
        let mended = report.repaired_blocks == report.differing_blocks;
        if done && !(found && mended) {
            let detail = format!("{expected:?} differ, and {node:?} finds {report:?}");
            self.fail(Violation::new("verify is complete", detail));
        }
        self.verified.last = if done { Last::Done } else { Last::Wanted };
    }

    /// Whether the settled pair was verified; begins that if not.
    pub(super) fn is_verified_at_end(&mut self) -> bool {
        if self.plan.seed < VERIFIES_FROM {
            return true;
        }
        match self.verified.last {
            Last::Done => true,
            Last::Running(_) => false,
            Last::Wanted => {
                self.verify_at_end();
                false
            }
        }
    }

    fn verify_at_end(&mut self) {
        let serves = |node: &NodeId| {
            let engine = self.nodes[node.index()].engine();
            engine.is_some_and(|engine| engine.snapshot().role == Role::Primary)
        };
        let Some(primary) = [NodeId::A, NodeId::B].into_iter().find(serves) else {
            return;
        };
        let [a, b] = [&self.nodes[0].data, &self.nodes[1].data];
        let mut touched: Vec<u64> = a.touched().chain(b.touched()).collect();
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|page| self.is_inside(*page));
        touched.retain(|page| !dirty::same(&a.current(*page), &b.current(*page)));
        self.verified.last = Last::Running(touched);
        let order = VerifyOrder::Start { repair: true };
        self.admin(primary, AdminRequest::Verify(order));
    }
}
