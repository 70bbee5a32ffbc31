//! What a verb is about that works on this machine's own files, with or without a daemon.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Response, Verb};
use replicator::types::NodeId;
use twinblk::config::{Config, ResourceConfig, VolumeConfig};

use crate::client::ask_within;
use crate::context::Context;
use crate::selector::Selector;

/// The node of the daemon that answers; without one the node that is named, else this host.
///
/// # Errors
/// If a daemon answers and another node is named: the devices are there.
pub(crate) fn node_name(context: &Context, verb: &str) -> Result<String, ErrorReport> {
    let anyone = Context {
        node: None,
        ..context.clone()
    };
    let Ok(Response::Version(daemon)) = ask_within(&anyone, Duration::ZERO, Verb::Version) else {
        return Ok(context.local_node());
    };
    match &context.node {
        Some(named) if *named != daemon.node => {
            let what = format!("{verb} for {named} cannot be done from here");
            let why = format!(
                "this is {}, and the devices of {named} are there",
                daemon.node
            );
            Err(
                ErrorReport::new(ErrorId::NodeUnreachable, what, why).next(format!(
                    "on {named}: twinadm {verb} RES; or here, with the --run-dir of its daemon"
                )),
            )
        }
        _ => Ok(daemon.node),
    }
}

/// The data node called `name`.
///
/// # Errors
/// If there is none.
pub(crate) fn data_node(config: &Config, name: &str) -> Result<NodeId, ErrorReport> {
    match config.node_id(name) {
        Some(node) if node.is_data() => Ok(node),
        Some(_) => Err(ErrorReport::new(
            ErrorId::ArbitratorHoldsNoData,
            format!("{name} has no metadata"),
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

/// What has metadata of its own: all volumes of a resource.
pub(crate) struct Replica<'c> {
    pub(crate) resource: &'c ResourceConfig,
    /// Its first volume, beside which stands what counts for all of them.
    pub(crate) first: &'c VolumeConfig,
    /// Only volumes behind it were selected.
    pub(crate) further: bool,
}

/// For people: `RES/VOL`, or `RES` where there are several volumes.
pub(crate) fn label(resource: &ResourceConfig) -> String {
    match resource.volumes.as_slice() {
        [only] => format!("{}/{}", resource.name, only.id.0),
        _ => resource.name.clone(),
    }
}

/// The replicas of the selected volumes, each once, in the order of the selectors.
///
/// # Errors
/// If a selector fits none.
pub(crate) fn replicas<'c>(
    config: &'c Config,
    selectors: &[Selector],
) -> Result<Vec<Replica<'c>>, ErrorReport> {
    let mut targets: Vec<Replica<'c>> = Vec::new();
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
            let found = resource.volumes.iter().find(fits);
            let (Some(found), Some(first)) = (found, resource.volumes.first()) else {
                return Err(no_such_volume(&resource.name, selector.volume));
            };
            let further = found.id != first.id;
            match targets
                .iter_mut()
                .find(|it| it.resource.name == resource.name)
            {
                Some(known) => known.further &= further,
                None => targets.push(Replica {
                    resource,
                    first,
                    further,
                }),
            }
        }
    }
    Ok(targets)
}

pub(crate) fn no_such_resource(name: &str) -> ErrorReport {
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
