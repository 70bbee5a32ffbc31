//! `suspend-io` and `resume-io`: guests' writes wait while an administrator takes snapshots.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::engine::{AdminRequest, Snapshot, Suspension};
use replicator::types::{DiskState, ResourceId, Role};

use super::board::BoardState;
use super::node::Node;
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use crate::config::ResourceConfig;

/// What is under way of two kinds of orders that would undo each other: one kind at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    suspending: u32,
    leaving: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Guests' writes are being suspended.
    Suspending,
    /// The role is being given up, the guest stopped for it.
    Leaving,
}

impl Passage {
    /// Whether it may go on; then [`Self::end`] is owed.
    fn begin(&mut self, way: Way, force: bool) -> bool {
        let (own, other) = self.sides(way);
        let free = force || *other == 0;
        *own += u32::from(free);
        free
    }

    /// Whether nothing of either kind is under way.
    pub(super) fn is_free(&self) -> bool {
        *self == Self::default()
    }

    fn end(&mut self, way: Way) {
        *self.sides(way).0 -= 1;
    }

    fn sides(&mut self, way: Way) -> (&mut u32, &mut u32) {
        match way {
            Way::Suspending => (&mut self.suspending, &mut self.leaving),
            Way::Leaving => (&mut self.leaving, &mut self.suspending),
        }
    }
}

/// Held by an order to its end.
pub(super) struct Passing<'a> {
    node: &'a Node,
    resource: ResourceId,
    way: Way,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let change = |board: &mut BoardState| board.resource(self.resource).passage.end(self.way);
        self.node.board.update(change);
    }
}

impl Node {
    /// Done once nothing is under way and everything is durable; else nothing is suspended.
    pub(super) fn suspend_order(
        &self,
        resource: &ResourceConfig,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_running(resource)?;
        self.check_serves(resource)?;
        let name = &resource.name;
        let _passing = self.pass(resource, Way::Suspending, false).ok_or_else(|| {
            let what = format!("writes to {name} are not suspended");
            let why = "an order that ends its role is under way";
            ErrorReport::new(ErrorId::OrderUnderWay, what, why)
        })?;
        let is_settled = |it: &Snapshot| it.suspension == Some(Suspension::Settled);
        if self.engine(resource, is_settled) {
            return done(false, format!("writes to {name} are suspended already"));
        }
        self.admin(resource, AdminRequest::SuspendIo);
        if self.wait_engine(resource, timeout.unwrap_or(ORDER_TIMEOUT), is_settled) {
            return done(true, self.suspended_words(resource));
        }
        self.admin(resource, AdminRequest::ResumeIo);
        let serves = |it: &Snapshot| it.role == Role::Primary;
        if !self.engine(resource, serves) {
            return Err(self.no_longer_primary(resource));
        }
        let what = format!("writes to {name} are not suspended: they go on");
        let why = "what was begun before is still not durable on every replica in sync";
        Err(ErrorReport::new(ErrorId::TimedOut, what, why).next(format!("twinadm status {name}")))
    }

    fn suspended_words(&self, resource: &ResourceConfig) -> String {
        let name = &resource.name;
        let (node, peer) = (self.name(), self.config.node_name(self.node.peer()));
        let whole = |disk| disk == DiskState::UpToDate;
        let here = self.engine(resource, |it| whole(it.disk));
        let there = self.engine(resource, |it| whole(it.peer_disk));
        let disks = match (here, there) {
            (true, true) => "both disks hold the same, durably".to_owned(),
            (false, true) => format!("the disk of {peer} alone holds everything, durably"),
            (true | false, false) => format!("the disk of {node} alone holds everything, durably"),
        };
        format!("writes to {name} are suspended, and {disks}")
    }

    pub(super) fn resume_order(
        &self,
        resource: &ResourceConfig,
        timeout: Option<Duration>,
    ) -> Outcome {
        self.check_running(resource)?;
        let name = &resource.name;
        let goes_on = |it: &Snapshot| it.suspension.is_none();
        if self.engine(resource, goes_on) {
            self.check_serves(resource)?;
            let what = format!("writes to {name} were not suspended any more");
            let why =
                "nobody suspended them, or the role or the daemon ended it and guests wrote since";
            return Err(ErrorReport::new(ErrorId::NotSuspended, what, why));
        }
        self.admin(resource, AdminRequest::ResumeIo);
        if self.wait_engine(resource, timeout.unwrap_or(ORDER_TIMEOUT), goes_on) {
            return done(true, format!("writes to {name} go on"));
        }
        let what = format!("no answer about the writes to {name}");
        let why = "the engine did not take the order in time";
        Err(ErrorReport::new(ErrorId::TimedOut, what, why))
    }

    /// Guests write through the Primary alone, so only it can hold them.
    fn check_serves(&self, resource: &ResourceConfig) -> Result<(), ErrorReport> {
        if self.engine(resource, |it| it.role == Role::Primary) {
            return Ok(());
        }
        Err(self.no_longer_primary(resource))
    }

    fn no_longer_primary(&self, resource: &ResourceConfig) -> ErrorReport {
        let (name, node) = (&resource.name, self.name());
        let peer = self.config.node_name(self.node.peer());
        let what = format!("no writes to {name} are held on {node}");
        if self.engine(resource, |it| it.peer_role == Role::Primary) {
            let why = format!("{peer} is Primary: guests write there");
            let report = ErrorReport::new(ErrorId::PeerIsPrimary, what, why);
            return report.next(format!("give the order with --node {peer}"));
        }
        let why = format!("{node} is not Primary: no guest writes here");
        ErrorReport::new(ErrorId::NoPrimary, what, why)
    }

    fn pass(&self, resource: &ResourceConfig, way: Way, force: bool) -> Option<Passing<'_>> {
        let id = resource.id();
        let change = |board: &mut BoardState| board.resource(id).passage.begin(way, force);
        self.board.update(change).then_some(Passing {
            node: self,
            resource: id,
            way,
        })
    }

    /// Whoever suspended the writes counts on them to be held. Nobody suspends them while the answer
    /// is kept: until the role is gone a guest may take its time.
    pub(super) fn check_not_suspended(
        &self,
        resource: &ResourceConfig,
        force: bool,
    ) -> Result<Passing<'_>, ErrorReport> {
        let passing = self.pass(resource, Way::Leaving, force);
        if let Some(passing) = passing
            // No engine, no suspension: it may be half way up or down.
            && (force || !self.engine(resource, |it| it.suspension.is_some()))
        {
            return Ok(passing);
        }
        let what = format!("{} stays Primary on {}", resource.name, self.name());
        let why = "writes are suspended (suspend-io), and whoever serves next would let them go on";
        let next = format!("twinadm resume-io {}, then try again", resource.name);
        Err(ErrorReport::new(ErrorId::IoSuspended, what, why).next(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_suspends_and_who_gives_the_role_up_keep_out_of_each_others_way() {
        for (one, other) in [
            (Way::Suspending, Way::Leaving),
            (Way::Leaving, Way::Suspending),
        ] {
            let mut passage = Passage::default();
            assert!(passage.begin(one, false) && passage.begin(one, false));
            assert!(!passage.begin(other, false));
            passage.end(one);
            assert!(!passage.begin(other, false), "one of them is still at it");
            assert!(passage.begin(other, true), "by force");
            passage.end(other);
            passage.end(one);
            assert_eq!(passage, Passage::default());
            assert!(passage.begin(other, false));
        }
    }
}
