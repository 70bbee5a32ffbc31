//! What an administrator does with metadata, with or without a running daemon.
//!
//! ```text
//! configuration → area (opens read-only, looks) → report (pure values) → text or JSON
//! ```

mod area;
mod generations;
mod repair;
mod report;
mod text;
mod wipe;

use std::io;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, ResourceStatus, Response, Verb, exit};
use replicator::types::NodeId;
use serde_json::json;
use twinblk::config::Config;

use crate::cli;
use crate::client::ask_within;
use crate::context::{Context, Failure, Output};
use crate::create_md::{failed, is_device, open_locked};
use crate::local::{self, Replica};
use crate::orders::put_plan;

use self::area::Area;
use self::generations::{Generations, Surroundings};
use self::report::{Metadata, Wanted};

/// Shows the metadata of all selected volumes on this node. One that cannot be shown does not keep
/// the others from it; the first problem decides the exit code.
///
/// # Errors
/// If the configuration or a selector is wrong, or nobody reads the output.
pub(crate) fn dump_md(context: &Context, arguments: &cli::Volumes) -> Result<u8, Failure> {
    for_each(context, "dump-md", arguments, |wanted| {
        let seen = Area::open(&wanted.path)?.look()?;
        let metadata = Metadata::new(wanted, &seen.inspection, seen.in_use);
        match context.output {
            Output::Plain => context.put(&text::text(&metadata))?,
            Output::Json => context.put_json(&metadata, true)?,
        }
        if seen.in_use {
            let label = wanted.label();
            context.tell(&format!("{label}: in use, so this may be changing"));
        }
        match report::problem(wanted, &seen.inspection) {
            None => Ok(exit::OK),
            Some(report) => Err(report.into()),
        }
    })
}

/// Shows what decides who is newest: of the metadata, and with a daemon of the view and the peer.
///
/// # Errors
/// If the configuration or a selector is wrong, or nobody reads the output.
pub(crate) fn show_gi(context: &Context, arguments: &cli::Volumes) -> Result<u8, Failure> {
    for_each(context, "show-gi", arguments, |wanted| {
        let seen = Area::open(&wanted.path)?.look()?;
        let problem = report::problem(wanted, &seen.inspection);
        if let Some(contents) = &seen.inspection.contents {
            let status = resource_status(context, &wanted.resource_name);
            let around = Surroundings {
                in_use: seen.in_use,
                boot_id: area::boot_id(),
                status: status.as_ref(),
            };
            let shown = Generations::new(wanted, contents, &around);
            match context.output {
                Output::Plain => context.put(&text::generations(&shown))?,
                Output::Json => context.put_json(&shown, true)?,
            }
        }
        match problem {
            None => Ok(exit::OK),
            Some(report) => Err(report.into()),
        }
    })
}

/// Erases the metadata of all selected volumes on this node.
///
/// # Errors
/// If the configuration or a selector is wrong, or nobody reads the output.
pub(crate) fn wipe_md(context: &Context, arguments: &cli::Volumes) -> Result<u8, Failure> {
    for_each(context, "wipe-md", arguments, |wanted| {
        if wanted.further {
            // They are the whole replica's, and go when that, or its first volume, is named.
            let (label, node) = (wanted.label(), &wanted.node_name);
            context.tell(&format!(
                "{label} on {node}: only its first volume has metadata, of all of them"
            ));
            return match context.dry_run {
                true => put_plan(context, &[]),
                false => put_wiped(context, wanted, 0, None),
            };
        }
        let status = resource_status(context, &wanted.resource_name);
        wipe::check_down(wanted, status.as_ref())?;
        let path = &wanted.path;
        let Some(lock) = open_locked(path, !context.dry_run)? else {
            return nothing_to_wipe(context, wanted);
        };
        let failed = |error: io::Error| failed(path, &error);
        let seen = area::inspect(&lock).map_err(failed)?;
        let leftovers = wipe::has_leftovers(&lock, &seen).map_err(failed)?;
        let Some(plan) = wipe::plan(wanted, &seen, leftovers)? else {
            return nothing_to_wipe(context, wanted);
        };
        let (label, node, shown) = (wanted.label(), &wanted.node_name, path.display());
        if context.dry_run {
            let step = format!("{label} on {node}: erase {shown}; lost: {}", plan.lost);
            return put_plan(context, &[step]);
        }
        if !context.yes {
            let what = format!("the metadata of {label} in {shown} is not erased without --yes");
            let why = format!("lost would be: {}", plan.lost);
            return Err(ErrorReport::new(ErrorId::NeedsYes, what, why).into());
        }
        let erased = wipe::erase(&lock, seen.area.0, &plan).map_err(failed)?;
        context.tell(&format!(
            "{label} on {node}: metadata erased from {shown}; lost: {}. The data are untouched",
            plan.lost
        ));
        put_wiped(context, wanted, erased, Some(&plan.lost))
    })
}

/// Mends the damaged metadata of all selected volumes on this node.
///
/// # Errors
/// If the configuration or a selector is wrong, or nobody reads the output.
pub(crate) fn repair_md(context: &Context, arguments: &cli::Volumes) -> Result<u8, Failure> {
    for_each(context, "repair-md", arguments, |wanted| {
        let path = &wanted.path;
        let lock = open_locked(path, !context.dry_run)?.ok_or_else(|| area::missing(path))?;
        let failed = |error: io::Error| failed(path, &error);
        let seen = area::inspect(&lock).map_err(failed)?;
        let steps = repair::plan(wanted, &seen)?;
        let (label, node) = (wanted.label(), &wanted.node_name);
        if context.dry_run {
            let step = |step: &String| format!("{label} on {node}: {step}");
            return put_plan(context, &steps.iter().map(step).collect::<Vec<_>>());
        }
        if steps.is_empty() {
            context.tell(&format!("{label} on {node}: nothing to repair"));
        } else {
            repair::repair(&lock, &seen).map_err(failed)?;
        }
        for step in &steps {
            context.tell(&format!("{label} on {node}: done: {step}"));
        }
        if context.output == Output::Json {
            let done = json!({
                "volume": label,
                "node": node,
                "meta": path,
                "repaired": steps,
            });
            context.put_json(&done, true)?;
        }
        Ok(exit::OK)
    })
}

fn nothing_to_wipe(context: &Context, wanted: &Wanted) -> Result<u8, Failure> {
    if is_device(&wanted.path) && !wanted.path.exists() {
        return Err(area::missing(&wanted.path).into());
    }
    if context.dry_run {
        return put_plan(context, &[]);
    }
    let (label, node) = (wanted.label(), &wanted.node_name);
    context.tell(&format!("{label} on {node}: no metadata"));
    put_wiped(context, wanted, 0, None)
}

fn put_wiped(
    context: &Context,
    wanted: &Wanted,
    erased: u64,
    lost: Option<&str>,
) -> Result<u8, Failure> {
    if context.output == Output::Json {
        let done = json!({
            "volume": wanted.label(),
            "node": wanted.node_name,
            "meta": wanted.path,
            "erased_bytes": erased,
            "lost": lost,
        });
        context.put_json(&done, true)?;
    }
    Ok(exit::OK)
}

/// What this node's daemon says of the resource; `None` if none answers or it does not know it.
fn resource_status(context: &Context, resource: &str) -> Option<ResourceStatus> {
    let verb = Verb::Status {
        resource: Some(resource.to_owned()),
    };
    match ask_within(context, Duration::ZERO, verb) {
        Ok(Response::Status(status)) => status
            .resources
            .into_iter()
            .find(|found| found.name == resource),
        _ => None,
    }
}

fn for_each(
    context: &Context,
    verb: &str,
    arguments: &cli::Volumes,
    mut each: impl FnMut(&Wanted) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let config = context.load_config()?.config;
    let node = local::data_node(&config, &local::node_name(context, verb)?)?;
    let mut code = exit::OK;
    for replica in local::replicas(&config, &arguments.volumes)? {
        let wanted = wanted(&config, &replica, node);
        let this = match each(&wanted) {
            Ok(code) => code,
            Err(Failure::Report(report)) => tell(context, &report),
            Err(failure) => return Err(failure),
        };
        if code == exit::OK || (code == exit::PENDING && this != exit::OK) {
            code = this;
        }
    }
    Ok(code)
}

fn tell(context: &Context, report: &ErrorReport) -> u8 {
    context.tell_error(report);
    report.exit
}

fn wanted(config: &Config, replica: &Replica<'_>, node: NodeId) -> Wanted {
    let Replica {
        resource,
        first,
        further,
    } = replica;
    Wanted {
        further: *further,
        resource: resource.replica_id(),
        resource_name: resource.name.clone(),
        label: local::label(resource),
        volume: first.id,
        node,
        node_name: config.node_name(node).to_owned(),
        path: first.replica(node).meta.clone(),
    }
}
