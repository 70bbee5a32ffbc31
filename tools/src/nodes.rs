//! Verbs about a node: drain, resume, maintenance, confirm-fenced.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Request, Response, Status, Verb, exit};
use replicator::types::Role;
use serde_json::json;

use crate::cli::{self, Switch};
use crate::client::{CONNECT_PATIENCE, Conversation, ask};
use crate::context::{Context, Failure, Output};
use crate::orders::{put_plan, snapshot, unexpected};

/// How long one answer may take: a drain tells of each resource that it moves.
const ORDER_WAIT: Duration = Duration::from_secs(30);

/// `node drain`.
///
/// # Errors
/// If the node cannot be reached, or something stays on it.
pub(crate) fn drain(context: &Context, arguments: &cli::WhichNode) -> Result<u8, Failure> {
    let there = at(context, &arguments.which)?;
    if context.dry_run {
        let status = snapshot(&there, None)?;
        return put_plan(context, &drain_plan(&status));
    }
    order(&there, &arguments.which, Verb::NodeDrain)
}

fn drain_plan(status: &Status) -> Vec<String> {
    let mut steps = Vec::new();
    if !status.cluster.standby {
        steps.push(format!("{}: take nothing over by itself", status.node));
    }
    for resource in &status.resources {
        if resource.role == Some(Role::Primary) {
            let peer = resource.peers.first().map_or("its peer", |peer| &peer.node);
            steps.push(format!("{}: move to {peer}", resource.name));
        }
    }
    steps
}

/// `node resume`.
///
/// # Errors
/// If the node cannot be reached.
pub(crate) fn resume(context: &Context, arguments: &cli::WhichNode) -> Result<u8, Failure> {
    let there = at(context, &arguments.which)?;
    if context.dry_run {
        let status = snapshot(&there, None)?;
        let step = format!("{}: take over by itself again", arguments.which);
        let steps: Vec<_> = status.cluster.standby.then_some(step).into_iter().collect();
        return put_plan(context, &steps);
    }
    order(&there, &arguments.which, Verb::NodeResume)
}

/// `maintenance`, on each data node or on the one that is named. One that fails does not keep the other
/// from being told.
///
/// # Errors
/// If no daemon can be reached.
pub(crate) fn maintenance(context: &Context, arguments: &cli::Maintenance) -> Result<u8, Failure> {
    let on = arguments.switch == Switch::On;
    let nodes = match &context.node {
        Some(node) => vec![node.clone()],
        None => data_nodes(context)?,
    };
    let mut code = exit::OK;
    let mut steps = Vec::new();
    for node in nodes {
        let there = at(context, &node)?;
        let told = if context.dry_run {
            snapshot(&there, None).map_err(Failure::from).map(|status| {
                if status.cluster.maintenance != on {
                    let word = if on { "on" } else { "off" };
                    steps.push(format!("{node}: maintenance {word}"));
                }
                exit::OK
            })
        } else {
            order(&there, &node, Verb::Maintenance { on })
        };
        match told {
            Ok(_) => {}
            Err(Failure::Report(report)) => {
                context.tell_error(&report);
                if code == exit::OK {
                    code = report.exit;
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    if context.dry_run && code == exit::OK {
        return put_plan(context, &steps);
    }
    Ok(code)
}

fn data_nodes(context: &Context) -> Result<Vec<String>, Failure> {
    let Response::Quorum(report) = ask(context, Verb::Quorum)? else {
        return Err(unexpected().into());
    };
    let voters = report.voters.into_iter();
    Ok(voters
        .filter(|voter| voter.role == "data")
        .map(|voter| voter.node)
        .collect())
}

/// `confirm-fenced`: the node that answers is told.
///
/// # Errors
/// If the daemon cannot be reached, or the node is alive.
pub(crate) fn confirm_fenced(
    context: &Context,
    arguments: &cli::ConfirmFenced,
) -> Result<u8, Failure> {
    let dead = arguments.dead.clone();
    if context.dry_run {
        let step = format!("{dead}: taken for dead until it is heard");
        return put_plan(context, &[step]);
    }
    order(context, &arguments.dead, Verb::ConfirmFenced { dead })
}

/// The same context about that node.
fn at(context: &Context, node: &str) -> Result<Context, Failure> {
    match &context.node {
        Some(other) if other != node => {
            let what = format!("two nodes are named: {node} and, by --node, {other}");
            let report = ErrorReport::new(ErrorId::NoSuchNode, what, "the order is about one");
            Err(report.next("leave --node out").into())
        }
        _ => Ok(Context {
            node: Some(node.to_owned()),
            ..context.clone()
        }),
    }
}

fn order(context: &Context, node: &str, verb: Verb) -> Result<u8, Failure> {
    let wait = context.timeout.unwrap_or(ORDER_WAIT);
    let request = Request {
        verb,
        node: context.node.clone(),
        timeout_ms: Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    };
    let conversation =
        Conversation::begin(&context.run_dir, CONNECT_PATIENCE, &request, Some(wait))?;
    let answer = conversation.finish(|message| context.tell(message))?;
    let Response::Done { changed, message } = answer else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Plain => context.tell(&message),
        Output::Json => {
            let done = json!({ "node": node, "changed": changed, "message": message });
            context.put_json(&done, true)?;
        }
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::samples::healthy;

    #[test]
    fn a_drain_is_planned_from_what_the_node_serves() {
        let mut status = healthy();
        assert_eq!(
            drain_plan(&status),
            [
                "kvm-a: take nothing over by itself",
                "vm-web: move to kvm-b"
            ]
        );
        status.cluster.standby = true;
        status.resources.remove(1);
        assert!(drain_plan(&status).is_empty());
    }
}
