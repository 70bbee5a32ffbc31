//! `create-md`: makes the metadata of a replica, with or without a running daemon. Whether a device
//! is in use is decided by its lock, not by asking.
//!
//! ```text
//! configuration → probe (opens and locks) → decide (pure) → write
//! ```

mod decide;
mod probe;
mod write;

use replicator::admin::exit;
use serde_json::json;

use crate::cli;
use crate::context::{Context, Failure, Output};
use crate::local;
use crate::orders::put_plan;
use crate::show::size::size;

pub(crate) use decide::is_device;
pub(crate) use probe::{failed, open_locked};

use decide::{Recipe, Wanted, decide, sizes};

/// Makes the metadata of all selected volumes on this node. The first that is refused ends it:
/// those before it are made.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn create_md(context: &Context, arguments: &cli::CreateMd) -> Result<u8, Failure> {
    let config = context.load_config()?.config;
    let node = local::data_node(&config, &local::node_name(context, "create-md")?)?;
    let mut code = exit::OK;
    for (resource, volume) in local::volumes(&config, &arguments.volumes)? {
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
