//! What orders do with a resource's guest: it is stopped before the resource is given away.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::types::ResourceId;

use super::board::BoardState;
use super::node::Node;
use crate::config::{DemoteStep, ResourceConfig};
use crate::guests::Stop;

/// Beyond what `on-demote` allows: a hung hypervisor is given up, the kernel ends a process.
const STOP_GRACE: Duration = Duration::from_secs(45);

/// While it lives the guest stays stopped here.
pub(super) struct GuestStopped<'a> {
    node: &'a Node,
    resource: Option<ResourceId>,
}

impl Drop for GuestStopped<'_> {
    /// If the order came to nothing and this node still serves, the guest starts again.
    fn drop(&mut self) {
        if let Some(resource) = self.resource {
            self.node.board.update(|board| {
                let guest = &mut board.resource(resource).guest;
                guest.stoppers -= 1;
                if guest.stoppers == 0 {
                    guest.stop = Stop::No;
                }
            });
        }
    }
}

impl Node {
    /// Stops the resource's guest on this node as `on-demote` says, if there is one; with `force`
    /// it is ended whatever is configured.
    pub(super) fn stop_guest(
        &self,
        resource: &ResourceConfig,
        force: bool,
    ) -> Result<GuestStopped<'_>, ErrorReport> {
        let id = resource.id();
        let Some(guest) = &resource.guest else {
            return Ok(GuestStopped {
                node: self,
                resource: None,
            });
        };
        let stop = if force { Stop::Forced } else { Stop::Asked };
        self.board.update(|board| {
            let guest = &mut board.resource(id).guest;
            guest.stoppers += 1;
            // Another order may have forced it: it is not taken back by one that asks.
            if guest.stop != Stop::Forced {
                guest.stop = stop;
            }
        });
        let stopped = GuestStopped {
            node: self,
            resource: Some(id),
        };
        let patience = guest
            .on_demote
            .iter()
            .fold(STOP_GRACE, |sum, step| match step {
                DemoteStep::Shutdown(time) => sum.saturating_add(*time),
                DemoteStep::Destroy => sum,
            });
        let ended = self.board.wait(patience, |board| {
            let shown = board.resource(id).guest.shown.as_ref();
            let failed = shown.is_some_and(|it| it.stop_failed);
            match shown.is_some_and(|it| it.stopped) {
                true => Some(true),
                false => (failed || board.stopping).then_some(false),
            }
        });
        if ended == Some(true) {
            return Ok(stopped);
        }
        let (name, domain) = (&resource.name, &guest.domain);
        let what = format!(
            "{name} stays on {}: its guest {domain} runs there",
            self.name()
        );
        let why = match ended {
            Some(_) => "it did not stop as `on-demote` asks",
            None => "it could not be ended in time",
        };
        Err(ErrorReport::new(ErrorId::GuestStays, what, why)
            .next(format!("shut {domain} down from within, then try again"))
            .next("or end it: the same command with --force"))
    }

    /// Whether a process of the resource's guest is on this node.
    pub(super) fn has_guest(board: &BoardState, resource: ResourceId) -> bool {
        let known = board.resources.get(&resource);
        let shown = known.and_then(|it| it.guest.shown.as_ref());
        shown.is_some_and(|it| it.here)
    }
}
