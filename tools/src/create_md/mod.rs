//! `create-md`: makes the metadata of a replica, with or without a running daemon. Whether a device
//! is in use is decided by its lock, not by asking.
//!
//! ```text
//! configuration → probe (opens and locks) → decide (pure) → write
//! ```

mod decide;
mod probe;
mod write;

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Response, Verb, exit};
use replicator::types::NodeId;
use serde_json::json;
use twinblk::config::{Config, ResourceConfig, VolumeConfig};

use crate::cli;
use crate::client::ask_within;
use crate::context::{Context, Failure, Output};
use crate::orders::put_plan;
use crate::selector::Selector;
use crate::show::size::size;

use decide::{Recipe, Wanted, decide, sizes};

/// Makes the metadata of all selected volumes on this node. The first that is refused ends it:
/// those before it are made.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn create_md(context: &Context, arguments: &cli::CreateMd) -> Result<u8, Failure> {
    let config = context.load_config()?.config;
    let node = data_node(&config, &node_name(context)?)?;
    let mut code = exit::OK;
    for (resource, volume) in targets(&config, &arguments.volumes)? {
        let wanted = Wanted {
            resource: resource.id(),
            volume: volume.id,
            node,
            label: format!("{}/{}", resource.name, volume.id.0),
            node_name: config.node_name(node).to_owned(),
            size: volume.size,
            al_slots: volume.al_extents,
            paths: volume.replica(node).clone(),
        };
        code = code.max(create_one(context, &wanted, arguments.force)?);
    }
    Ok(code)
}

fn create_one(context: &Context, wanted: &Wanted, force: bool) -> Result<u8, Failure> {
    let disk = probe::Disk::open(&wanted.paths.disk)?;
    let meta = probe::Meta::open(&wanted.paths.meta)?;
    let sizes = sizes(wanted, &disk.facts())?;
    let recipe = decide(
        wanted,
        sizes,
        &disk.facts(),
        &meta.facts(sizes.meta)?,
        force,
    )?;
    if context.dry_run {
        return put_plan(context, &[would(wanted, &recipe)]);
    }
    let replica = write::write(wanted, &recipe, meta)?;
    match context.output {
        Output::Plain => context.tell(&did(wanted, &recipe)),
        Output::Json => context.put_json(
            &json!({
                "volume": wanted.label,
                "node": wanted.node_name,
                "meta": wanted.paths.meta,
                "meta_bytes": recipe.needed.0,
                "size_bytes": recipe.size.bytes().0,
                "zero_proven": recipe.zero_proven,
                "replica": format!("{:032x}", replica.0),
            }),
            true,
        )?,
    }
    Ok(exit::OK)
}

fn would(wanted: &Wanted, recipe: &Recipe) -> String {
    let how = if recipe.make_file {
        "make the file"
    } else {
        "use"
    };
    let forget = if recipe.forget {
        ", forgetting the replica that is there"
    } else {
        ""
    };
    format!(
        "{} on {}: {how} {} ({}) for a volume of {}{forget}",
        wanted.label,
        wanted.node_name,
        wanted.paths.meta.display(),
        size(recipe.needed.0),
        size(recipe.size.bytes().0),
    )
}

fn did(wanted: &Wanted, recipe: &Recipe) -> String {
    let zero = if recipe.zero_proven {
        "the disk is all zeroes: no first sync if the other one is too"
    } else {
        "the disk may hold data: the first Primary's are copied to the other node"
    };
    format!(
        "{} on {}: metadata made in {} ({}), volume of {}; {zero}",
        wanted.label,
        wanted.node_name,
        wanted.paths.meta.display(),
        size(recipe.needed.0),
        size(recipe.size.bytes().0),
    )
}

/// The node of the daemon that answers; without one the node that is named, else this host.
fn node_name(context: &Context) -> Result<String, ErrorReport> {
    let anyone = Context {
        node: None,
        ..context.clone()
    };
    let Ok(Response::Version(daemon)) = ask_within(&anyone, Duration::ZERO, Verb::Version) else {
        return Ok(context.local_node());
    };
    match &context.node {
        Some(named) if *named != daemon.node => {
            let what = format!("create-md for {named} cannot be done from here");
            let why = format!(
                "this is {}, and the devices of {named} are there",
                daemon.node
            );
            Err(
                ErrorReport::new(ErrorId::NodeUnreachable, what, why).next(format!(
                    "run it on {named}, or with that daemon's --run-dir"
                )),
            )
        }
        _ => Ok(daemon.node),
    }
}

fn data_node(config: &Config, name: &str) -> Result<NodeId, ErrorReport> {
    match config.node_id(name) {
        Some(node) if node.is_data() => Ok(node),
        Some(_) => Err(ErrorReport::new(
            ErrorId::ArbitratorHoldsNoData,
            format!("no metadata is made on {name}"),
            "it is the arbitrator and holds no data",
        )),
        None => {
            let names: Vec<_> = config.nodes.iter().map(|node| node.name.as_str()).collect();
            let why = format!("the configuration has {}", names.join(", "));
            Err(ErrorReport::new(
                ErrorId::NoSuchNode,
                format!("no node is called {name}"),
                why,
            ))
        }
    }
}

fn targets<'c>(
    config: &'c Config,
    selectors: &[Selector],
) -> Result<Vec<(&'c ResourceConfig, &'c VolumeConfig)>, ErrorReport> {
    let mut targets = Vec::new();
    for selector in selectors {
        let resources: Vec<&ResourceConfig> = match &selector.resource {
            None => config.resources.iter().collect(),
            Some(name) => vec![
                config
                    .resource(name)
                    .ok_or_else(|| no_such_resource(name))?,
            ],
        };
        for resource in resources {
            let fits = |volume: &&VolumeConfig| selector.volume.is_none_or(|id| volume.id.0 == id);
            let before = targets.len();
            targets.extend(
                resource
                    .volumes
                    .iter()
                    .filter(fits)
                    .map(|volume| (resource, volume)),
            );
            if targets.len() == before {
                return Err(no_such_volume(&resource.name, selector.volume));
            }
        }
    }
    Ok(targets)
}

fn no_such_resource(name: &str) -> ErrorReport {
    let what = format!("no resource is called {name}");
    ErrorReport::new(ErrorId::NoSuchResource, what, "it is not configured")
        .next("twinadm dump shows what is configured")
}

fn no_such_volume(resource: &str, volume: Option<u16>) -> ErrorReport {
    let volume = volume.unwrap_or_default();
    let what = format!("{resource} has no volume {volume}");
    ErrorReport::new(ErrorId::NoSuchPart, what, "it is not configured")
        .next("twinadm dump shows what is configured")
}
