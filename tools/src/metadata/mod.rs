//! What an administrator does with metadata, with or without a running daemon.
//!
//! ```text
//! configuration → area (opens read-only, looks) → report (pure values) → text or JSON
//! ```

mod area;
mod generations;
mod report;
mod text;

use std::time::Duration;

use replicator::admin::{ErrorReport, ResourceStatus, Response, Verb, exit};
use replicator::types::NodeId;
use twinblk::config::{Config, ResourceConfig, VolumeConfig};

use crate::cli;
use crate::client::ask_within;
use crate::context::{Context, Failure, Output};
use crate::local;

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
                protocol: wanted.protocol,
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
    for (resource, volume) in local::volumes(&config, &arguments.volumes)? {
        let wanted = wanted(&config, resource, volume, node);
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

fn wanted(
    config: &Config,
    resource: &ResourceConfig,
    volume: &VolumeConfig,
    node: NodeId,
) -> Wanted {
    Wanted {
        resource: resource.id(),
        resource_name: resource.name.clone(),
        volume: volume.id,
        node,
        node_name: config.node_name(node).to_owned(),
        protocol: config.protocol_of(resource),
        path: volume.replica(node).meta.clone(),
    }
}
