//! `reexec`: the daemon starts its program again in its place, and this waits until it serves.

use std::time::Duration;

use replicator::admin::{
    ErrorId, ErrorReport, ResourceStatus, Response, Status, Verb, VersionInfo, exit,
};
use replicator::types::Role;
use serde_json::json;

use crate::client::{ask, ask_within};
use crate::clock::{Deadline, POLL, now, pause};
use crate::context::{Context, Failure, Output};
use crate::orders::{put_plan, snapshot, unexpected};

/// How long a start may take: metadata of large volumes are read, leases are waited for.
const START_WAIT: Duration = Duration::from_secs(30);

/// Has it done and waits.
///
/// # Errors
/// If the daemon refuses, does not come back, or does not serve again what it served.
pub(crate) fn reexec(context: &Context) -> Result<u8, Failure> {
    let before = version(context)?;
    let served = served_by(&snapshot(context, None)?);
    if context.dry_run {
        return put_plan(context, &[plan(&before, &served)]);
    }
    let begun = now();
    let deadline = Deadline::after(Some(context.timeout.unwrap_or(START_WAIT)));
    let Response::Done { .. } = ask(context, Verb::Reexec)? else {
        return Err(unexpected().into());
    };
    let after = wait_for_the_next(context, &before, deadline)?;
    wait_until_served(context, &served, deadline)?;
    let took = begun.elapsed();
    match context.output {
        Output::Plain => {
            let VersionInfo {
                program,
                version,
                node,
                ..
            } = &after;
            let words = match served.as_slice() {
                [] => String::new(),
                served => format!("; it serves {}", served.join(", ")),
            };
            let seconds = took.as_secs_f64();
            let earlier = match before.version == *version {
                true => "as before".to_owned(),
                false => format!("{} before", before.version),
            };
            context.tell(&format!(
                "{node} runs {program} {version} ({earlier}) again after {seconds:.1} s{words}"
            ));
        }
        Output::Json => {
            let done = json!({
                "node": after.node, "version_before": before.version, "version": after.version,
                "seconds": took.as_secs_f64(), "serves": served,
            });
            context.put_json(&done, true)?;
        }
    }
    Ok(exit::OK)
}

fn version(context: &Context) -> Result<VersionInfo, ErrorReport> {
    match ask(context, Verb::Version)? {
        Response::Version(version) => Ok(version),
        _ => Err(unexpected()),
    }
}

fn plan(daemon: &VersionInfo, served: &[String]) -> String {
    let VersionInfo { program, node, .. } = daemon;
    match served {
        [] => format!("{node}: start {program} again"),
        served => format!(
            "{node}: start {program} again; NBD clients of {} reconnect",
            served.join(", ")
        ),
    }
}

/// What that node serves.
fn served_by(status: &Status) -> Vec<String> {
    let serves = |it: &&ResourceStatus| it.role == Some(Role::Primary);
    let names = status.resources.iter().filter(serves);
    names.map(|it| it.name.clone()).collect()
}

/// Any failure to be answered is part of it, until the deadline.
fn wait_for_the_next(
    context: &Context,
    before: &VersionInfo,
    deadline: Deadline,
) -> Result<VersionInfo, ErrorReport> {
    loop {
        let failure = match ask_within(context, POLL, Verb::Version) {
            Ok(Response::Version(after)) if after.started > before.started => return Ok(after),
            Ok(_) => None,
            Err(report) => Some(report),
        };
        if deadline.is_over() {
            let what = format!("{} is not back on {}", before.program, before.node);
            let why = failure.map_or("it has not ended yet".to_owned(), |it| it.why);
            let report = ErrorReport::new(ErrorId::DaemonGone, what, why);
            return Err(report.next("see its log, and start it if it does not run"));
        }
        pause(POLL);
    }
}

/// Somebody serves each of them again: the peer may have taken over.
fn wait_until_served(
    context: &Context,
    served: &[String],
    deadline: Deadline,
) -> Result<(), ErrorReport> {
    loop {
        let verb = Verb::Status { resource: None };
        let status = match ask_within(context, POLL, verb) {
            Ok(Response::Status(status)) => Some(status),
            _ => None,
        };
        let missing = status.map_or_else(|| served.to_vec(), |it| unserved(&it, served));
        let Some(first) = missing.first() else {
            return Ok(());
        };
        if deadline.is_over() {
            let what = format!("{} is not served again yet", missing.join(", "));
            let why = "the daemon is back, and nobody is Primary";
            let report = ErrorReport::new(ErrorId::TimedOut, what, why);
            return Err(report.next(format!("twinadm why {first}")));
        }
        pause(POLL);
    }
}

fn unserved(status: &Status, served: &[String]) -> Vec<String> {
    let is_served = |it: &ResourceStatus| {
        let by_peer = it.peers.iter().any(|peer| peer.role == Role::Primary);
        it.role == Some(Role::Primary) || by_peer
    };
    let waits = status.resources.iter().filter(|it| !is_served(it));
    waits
        .filter(|it| served.contains(&it.name))
        .map(|it| it.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::samples::healthy;

    #[test]
    fn what_was_served_is_waited_for_and_may_be_served_by_the_peer() {
        let mut status = healthy();
        let served = served_by(&status);
        assert_eq!(served, ["vm-web"]);
        assert!(unserved(&status, &served).is_empty());
        let web = status.resources.iter_mut().find(|it| it.name == "vm-web");
        web.unwrap().role = Some(Role::Secondary);
        assert_eq!(unserved(&status, &served), ["vm-web"]);
        let web = status.resources.iter_mut().find(|it| it.name == "vm-web");
        web.unwrap().peers[0].role = Role::Primary;
        assert!(unserved(&status, &served).is_empty());
    }
}
