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
fn ended(resource: &ResourceStatus) -> Option<Vec<(u16, LastVerify)>> {
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
            .filter_map(|volume| Some((volume.volume, volume.last_verify.clone()?)))
            .collect(),
    )
}

fn conclude(context: &Context, name: &str, found: &[(u16, LastVerify)]) -> Result<(), ErrorReport> {
    let Some((_, first)) = found.first() else {
        return Err(unfinished(name, "the daemon knows of no verify"));
    };
    let why = first.why.as_deref().unwrap_or("it is not known why");
    if why != VERIFY_DONE {
        return Err(unfinished(name, why));
    }
    let compared = size(sum(found, |it| it.checked_bytes));
    if sum(found, LastVerify::unrepaired_bytes) > 0 {
        let what = format!("the replicas of {name} differ");
        let report = ErrorReport::new(ErrorId::ReplicasDiffer, what, difference(found));
        return Err(report.next(format!(
            "if the Primary's copy is the good one: twinadm verify {name} --repair"
        )));
    }
    let repaired = match sum(found, |it| it.repaired_bytes) {
        0 => "nothing differs".to_owned(),
        bytes => format!("{} differed and are repaired", size(bytes)),
    };
    context.tell(&format!("{name}: {compared} compared, {repaired}"));
    Ok(())
}

/// Of all volumes of the resource, which are compared as one.
fn sum(found: &[(u16, LastVerify)], of: impl Fn(&LastVerify) -> u64) -> u64 {
    found.iter().map(|(_, it)| of(it)).sum()
}

/// How much differs, and where.
fn difference(found: &[(u16, LastVerify)]) -> String {
    let place = |(volume, it): &(u16, LastVerify)| {
        let of_volume = match volume {
            0 => String::new(),
            volume => format!(" of volume {volume}"),
        };
        let ranges = it.ranges.iter();
        let ranges = ranges.map(move |range| {
            let len = size(range.len_bytes);
            format!("{len} at {}{of_volume}", range.offset_bytes)
        });
        ranges.collect::<Vec<_>>()
    };
    let mut places: Vec<String> = found.iter().flat_map(place).collect();
    let told = sum(found, |it| {
        it.ranges.iter().map(|range| range.len_bytes).sum()
    });
    let differing = sum(found, |it| it.differing_bytes);
    if told < differing {
        places.push("and more".to_owned());
    }
    let unreadable = match sum(found, |it| it.unreadable_bytes) {
        0 => String::new(),
        bytes => format!(", {} could not be read", size(bytes)),
    };
    format!(
        "{} of {} differ{unreadable}: {}",
        size(differing),
        size(sum(found, |it| it.checked_bytes)),
        places.join(", ")
    )
}

fn unfinished(name: &str, why: &str) -> ErrorReport {
    let what = format!("{name} was not compared to its end");
    ErrorReport::new(ErrorId::VerifyUnfinished, what, why)
        .next(format!("twinadm verify {name}, once both are up to date"))
}

#[cfg(test)]
mod tests {
    use replicator::admin::ByteSpan;

    use super::*;

    /// The daemon says the sums with the first volume, and each volume's places with it.
    #[test]
    fn what_differs_is_told_of_all_volumes_with_its_place() {
        let place = |offset_bytes| ByteSpan {
            offset_bytes,
            len_bytes: 4096,
        };
        let first = LastVerify {
            checked_bytes: 8 << 20,
            differing_bytes: 12_288,
            ranges: vec![place(0)],
            ..LastVerify::default()
        };
        let log = LastVerify {
            ranges: vec![place(4096)],
            ..LastVerify::default()
        };
        assert_eq!(
            difference(&[(0, first), (3, log)]),
            "12.0 KiB of 8.0 MiB differ: 4.0 KiB at 0, 4.0 KiB at 4096 of volume 3, and more"
        );
    }
}
