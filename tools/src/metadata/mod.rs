//! What an administrator does with metadata, with or without a running daemon.
//!
//! ```text
//! configuration → area (opens read-only, looks) → report (pure values) → text or JSON
//! ```

mod area;
mod report;
mod text;

use replicator::admin::{ErrorReport, exit};
use twinblk::config::{ResourceConfig, VolumeConfig};

use crate::cli;
use crate::context::{Context, Failure, Output};
use crate::local;

use self::area::Area;
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
        let wanted = wanted(resource, volume, node, config.node_name(node));
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
    resource: &ResourceConfig,
    volume: &VolumeConfig,
    node: replicator::types::NodeId,
    node_name: &str,
) -> Wanted {
    Wanted {
        resource: resource.id(),
        resource_name: resource.name.clone(),
        volume: volume.id,
        node,
        node_name: node_name.to_owned(),
        path: volume.replica(node).meta.clone(),
    }
}
