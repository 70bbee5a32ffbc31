//! `create-md`: makes the metadata of a replica, with or without a running daemon. Whether a device
//! is in use is decided by its lock, not by asking.
//!
//! ```text
//! configuration → probe (opens and locks) → decide (pure) → write
//! ```

mod decide;
mod probe;
mod write;

use replicator::admin::{ErrorId, ErrorReport, exit};
use serde_json::json;
use twinblk::config::VolumeConfig;

use crate::cli;
use crate::context::{Context, Failure, Output};
use crate::local::{self, Replica};
use crate::orders::put_plan;
use crate::show::size::size;

pub(crate) use decide::is_device;
pub(crate) use probe::{failed, open_locked};

use decide::{Recipe, Wanted, WantedVolume, decide, sizes};

/// Makes the metadata of all selected volumes on this node. The volumes of one resource are one
/// replica, with one metadata area. The first that is refused ends it: those before it are made.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn create_md(context: &Context, arguments: &cli::CreateMd) -> Result<u8, Failure> {
    let config = context.load_config()?.config;
    let node = local::data_node(&config, &local::node_name(context, "create-md")?)?;
    let mut code = exit::OK;
    for Replica {
        resource,
        first,
        further,
    } in local::replicas(&config, &arguments.volumes)?
    {
        let volume = |volume: &VolumeConfig| WantedVolume {
            disk: volume.replica(node).disk.clone(),
            size: volume.size,
        };
        let wanted = Wanted {
            resource: resource.replica_id(),
            volume: first.id,
            node,
            label: local::label(resource),
            node_name: config.node_name(node).to_owned(),
            volumes: resource.volumes.iter().map(volume).collect(),
            al_slots: first.al_extents,
            meta: first.replica(node).meta.clone(),
        };
        code = code.max(create_one(context, &wanted, further, arguments.force)?);
    }
    Ok(code)
}

/// `further`: only volumes behind the first were named.
fn create_one(
    context: &Context,
    wanted: &Wanted,
    further: bool,
    force: bool,
) -> Result<u8, Failure> {
    let disks = wanted.volumes.iter();
    let disks: Vec<_> = disks
        .map(|volume| probe::Disk::open(&volume.disk))
        .collect::<Result<_, _>>()?;
    let meta = probe::Meta::open(&wanted.meta)?;
    let facts: Vec<_> = disks.iter().map(probe::Disk::facts).collect();
    let sizes = sizes(wanted, &facts)?;
    let found = meta.facts(sizes.meta)?;
    if further && force && found.has_ours() {
        let label = &wanted.label;
        let what = format!("the metadata of {label} are those of all its volumes");
        let why = "with --force the whole replica that is there is forgotten, not one volume of it: \
                   a volume is not added to a resource that has data, make it one of its own";
        let report = ErrorReport::new(ErrorId::MetadataExists, what, why);
        let next = format!("if it may be forgotten: twinadm create-md {label} --force");
        return Err(report.next(next).into());
    }
    if further && wanted.is_made(&found) {
        // Made with the first: whoever goes through the volumes one by one is not to be refused.
        let label = &wanted.label;
        context.tell(&format!(
            "{label} on {}: the metadata are made already, of all its volumes",
            wanted.node_name
        ));
        return Ok(exit::OK);
    }
    let recipe = decide(wanted, sizes, &facts, &found, force)?;
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
                "meta": wanted.meta,
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
        "{} on {}: {how} {} ({}) for {} of {}{forget}",
        wanted.label,
        wanted.node_name,
        wanted.meta.display(),
        size(recipe.needed.0),
        volumes(wanted),
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
        "{} on {}: metadata made in {} ({}), for {} of {}; {zero}",
        wanted.label,
        wanted.node_name,
        wanted.meta.display(),
        size(recipe.needed.0),
        volumes(wanted),
        size(recipe.size.bytes().0),
    )
}

/// `a volume`, or how many.
fn volumes(wanted: &Wanted) -> String {
    match wanted.volumes.len() {
        1 => "a volume".to_owned(),
        count => format!("{count} volumes"),
    }
}
