//! `verify`: give the order, and with `--wait` tell how it ended.

use replicator::admin::{
    ErrorId, ErrorReport, LastVerify, PeerVolumeStatus, ResourceStatus, VERIFY_DONE, exit,
};
use replicator::types::{ReplicationState, Role};

use crate::cli;
use crate::clock::{Deadline, POLL, pause};
use crate::context::{Context, Failure};
use crate::orders::{self, MakeVerb, snapshot};
use crate::show::size::size;

/// Gives the order; with `--wait` waits for each resource in turn.
///
/// # Errors
/// If the daemon cannot be reached, a selector fits nothing, or the replicas differ.
pub(crate) fn verify(context: &Context, arguments: &cli::Verify) -> Result<u8, Failure> {
    let make = MakeVerb::Verify {
        repair: arguments.repair,
        stop: arguments.stop,
    };
    let given = orders::give(context, &arguments.resources, &make)?;
    if !arguments.wait || context.dry_run || given != exit::OK {
        return Ok(given);
    }
    let mut code = exit::OK;
    for name in orders::names(context, &arguments.resources)? {
        if let Err(report) = wait(context, &name) {
            context.tell_error(&report);
            code = if code == exit::OK { report.exit } else { code };
        }
    }
    Ok(code)
}

fn wait(context: &Context, name: &str) -> Result<(), ErrorReport> {
    let deadline = Deadline::after(context.timeout);
    let mut context = context.clone();
    loop {
        let status = snapshot(&context, Some(name))?;
        let Some(resource) = status.resources.first() else {
            return Err(unfinished(name, "it is not configured any more"));
        };
        // The Primary knows what was found.
        if let Some(primary) = primary_elsewhere(resource) {
            context.node = Some(primary);
        } else if resource.role != Some(Role::Primary) {
            return Err(unfinished(name, "no node is Primary any more"));
        } else if let Some(ended) = ended(resource) {
            return conclude(&context, name, &ended);
        }
        if deadline.is_over() {
            let what = format!("{name} is still being compared");
            let why = "--timeout is over; the verify goes on";
            return Err(ErrorReport::new(ErrorId::TimedOut, what, why));
        }
        pause(POLL);
    }
}

fn primary_elsewhere(resource: &ResourceStatus) -> Option<String> {
    let mut peers = resource.peers.iter();
    let peer = peers.find(|peer| peer.role == Role::Primary)?;
    (resource.role != Some(Role::Primary)).then(|| peer.node.clone())
}

/// What was found, once nothing is compared any more.
fn ended(resource: &ResourceStatus) -> Option<Vec<LastVerify>> {
    let volumes: Vec<&PeerVolumeStatus> = resource
        .peers
        .iter()
        .flat_map(|peer| &peer.volumes)
        .collect();
    let runs = |volume: &&PeerVolumeStatus| {
        volume.verify.is_some() || volume.replication == ReplicationState::VerifyS
    };
    if volumes.iter().any(runs) {
        return None;
    }
    Some(
        volumes
            .iter()
            .filter_map(|volume| volume.last_verify.clone())
            .collect(),
    )
}

fn conclude(context: &Context, name: &str, found: &[LastVerify]) -> Result<(), ErrorReport> {
    let Some(worst) = found.iter().max_by_key(|it| it.unrepaired_bytes()) else {
        return Err(unfinished(name, "the daemon knows of no verify"));
    };
    let why = worst.why.as_deref().unwrap_or("it is not known why");
    if why != VERIFY_DONE {
        return Err(unfinished(name, why));
    }
    let compared = size(worst.checked_bytes);
    if worst.unrepaired_bytes() > 0 {
        let what = format!("the replicas of {name} differ");
        let report = ErrorReport::new(ErrorId::ReplicasDiffer, what, difference(worst));
        return Err(report.next(format!(
            "if the Primary's copy is the good one: twinadm verify {name} --repair"
        )));
    }
    let repaired = match worst.repaired_bytes {
        0 => "nothing differs".to_owned(),
        bytes => format!("{} differed and are repaired", size(bytes)),
    };
    context.tell(&format!("{name}: {compared} compared, {repaired}"));
    Ok(())
}

/// How much differs, and where.
fn difference(found: &LastVerify) -> String {
    let mut places: Vec<String> = found
        .ranges
        .iter()
        .map(|range| format!("{} at {}", size(range.len_bytes), range.offset_bytes))
        .collect();
    let told: u64 = found.ranges.iter().map(|range| range.len_bytes).sum();
    if told < found.differing_bytes {
        places.push("and more".to_owned());
    }
    let unreadable = match found.unreadable_bytes {
        0 => String::new(),
        bytes => format!(", {} could not be read", size(bytes)),
    };
    format!(
        "{} of {} differ{unreadable}: {}",
        size(found.differing_bytes),
        size(found.checked_bytes),
        places.join(", ")
    )
}

fn unfinished(name: &str, why: &str) -> ErrorReport {
    let what = format!("{name} was not compared to its end");
    ErrorReport::new(ErrorId::VerifyUnfinished, what, why)
        .next(format!("twinadm verify {name}, once both are up to date"))
}
