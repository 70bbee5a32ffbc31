//! `wait-connect` and `wait-sync`: look until it is so.

use std::io::IsTerminal;

use replicator::admin::{ErrorId, ErrorReport, ResourceStatus, exit};
use replicator::types::{ConnectionState, DiskState};

use crate::cli;
use crate::clock::{Deadline, POLL, pause};
use crate::context::{Context, Failure, Output};
use crate::orders::snapshot;
use crate::show::resync::resync_line;
use crate::show::status::resource_line;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Every peer is connected.
    Connected,
    /// Every replica is up to date.
    InSync,
}

/// Waits until the goal is reached, or `--timeout` is over; without one for ever.
///
/// # Errors
/// If it takes too long, the resource is not up, or the daemon is gone.
pub(crate) fn wait(
    context: &Context,
    arguments: &cli::OneResource,
    goal: Goal,
) -> Result<u8, Failure> {
    let deadline = Deadline::after(context.timeout);
    let mut progress = ProgressLine::new(context);
    loop {
        let status = snapshot(context, Some(&arguments.resource))?;
        // `snapshot` keeps exactly the one that was asked for.
        let Some(resource) = status.resources.first() else {
            return Ok(exit::NOT_FOUND);
        };
        if !resource.up {
            progress.end();
            return Err(not_up(resource).into());
        }
        if is_reached(resource, goal) {
            progress.end();
            return Ok(exit::OK);
        }
        if deadline.is_over() {
            progress.end();
            return Err(timed_out(resource, goal).into());
        }
        progress.show(resource);
        pause(POLL);
    }
}

/// Whether it is so.
fn is_reached(resource: &ResourceStatus, goal: Goal) -> bool {
    match goal {
        Goal::Connected => resource
            .peers
            .iter()
            .all(|peer| peer.connection == ConnectionState::Connected),
        Goal::InSync => {
            let own = resource
                .volumes
                .iter()
                .all(|v| v.disk == Some(DiskState::UpToDate));
            let mut theirs = resource.peers.iter().flat_map(|peer| &peer.volumes);
            own && theirs.all(|volume| volume.disk == DiskState::UpToDate)
        }
    }
}

fn not_up(resource: &ResourceStatus) -> ErrorReport {
    let name = &resource.name;
    ErrorReport::new(
        ErrorId::NotUp,
        format!("{name} is not up here"),
        "so there is nothing to wait for",
    )
    .next(format!("twinadm up {name}"))
}

fn timed_out(resource: &ResourceStatus, goal: Goal) -> ErrorReport {
    let wanted = match goal {
        Goal::Connected => "connected",
        Goal::InSync => "in sync",
    };
    let what = format!("{} is not {wanted} yet", resource.name);
    ErrorReport::new(ErrorId::TimedOut, what, resource_line(resource))
}

/// The resync line on a terminal, redrawn in place; nothing elsewhere.
struct ProgressLine {
    active: bool,
    drawn: bool,
}

impl ProgressLine {
    fn new(context: &Context) -> Self {
        let wanted = !context.quiet && context.output == Output::Plain;
        Self {
            active: wanted && std::io::stderr().is_terminal(),
            drawn: false,
        }
    }

    fn show(&mut self, resource: &ResourceStatus) {
        let mut volumes = resource.peers.iter().flat_map(|peer| &peer.volumes);
        let line = match volumes.find_map(|volume| volume.resync.as_ref()) {
            Some(resync) => resync_line(resync),
            None => resource_line(resource),
        };
        if self.active {
            eprint!("\r\x1b[K{line}");
            self.drawn = true;
        }
    }

    fn end(&self) {
        if self.drawn {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::samples::{healthy, quorum_lost, resyncing};

    #[test]
    fn goals_are_reached_by_states_alone() {
        let (healthy, syncing, cut) = (healthy(), resyncing(), quorum_lost());
        assert!(is_reached(&healthy.resources[1], Goal::InSync));
        assert!(is_reached(&syncing.resources[0], Goal::Connected));
        assert!(!is_reached(&syncing.resources[0], Goal::InSync));
        assert!(!is_reached(&cut.resources[0], Goal::Connected));
    }
}
