//! Second pass: do the parts make a cluster? Drafts in, [`Config`] out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use replicator::admin::ErrorId;
use replicator::types::{Failover, NodeId, ReplicationProtocol, ResourceId};

use super::diagnostic::Findings;
use super::nbd;
use super::reader::{PerNode, bad_value, shown};
use super::shape::{
    Draft, DraftNode, DraftResource, default_log, default_metrics, default_net, default_resync,
};
use super::source::{Located, Span};
use super::types::{Config, NetConfig, NodeConfig, NodeRole, ResourceConfig, Tls};
use super::units::did_you_mean;
use super::volumes;

/// Checks the rules; `None` when a part is missing so that there is no configuration to speak of.
/// Other errors are only noted: the caller looks at `found`.
pub(super) fn check(draft: Draft<'_>, found: &mut Findings) -> Option<Config> {
    let nodes = check_nodes(draft.nodes, found);
    let (tls_span, protocol_span, net) = match draft.net {
        Some(draft) => (draft.tls, draft.protocol, draft.net),
        None => (None, None, default_net()),
    };
    let nodes = nodes?;
    check_tls(&net, tls_span, &nodes, found);
    let mut devices = Devices::default();
    for resource in &draft.resources {
        check_protocol(resource, &net, protocol_span, found);
    }
    let resources = unique_resources(draft.resources, found).into_iter();
    let mut resources: Vec<_> = resources
        .filter_map(|resource| resolve(resource, &nodes, &mut devices, found))
        .collect();
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    check_guests(&resources, found);
    devices.check(&nodes, found);
    let nbd = nbd::resolve(draft.nbd, &nodes, found);
    Some(Config {
        cluster: draft.cluster?,
        nodes,
        quorum: draft.quorum,
        net,
        resync: draft.resync.unwrap_or_else(default_resync),
        verify: draft.verify,
        nbd,
        metrics: draft.metrics.unwrap_or_else(default_metrics),
        log: draft.log.unwrap_or_else(default_log),
        resources,
    })
}

/// Two data nodes in the order of their names, then the arbitrator.
fn check_nodes(mut drafts: Vec<DraftNode>, found: &mut Findings) -> Option<Vec<NodeConfig>> {
    drafts
        .sort_by(|a, b| (is_arbitrator(a), &a.name.value).cmp(&(is_arbitrator(b), &b.name.value)));
    check_addresses(&drafts, found);
    let data = drafts.iter().filter(|node| !is_arbitrator(node)).count();
    for surplus in drafts.iter().take(data).skip(2) {
        let message = format!("`{}` is the third data node", shown(&surplus.name.value));
        let label = "a cluster has two; a third machine can be role = \"arbitrator\"";
        found.at(ErrorId::ClusterShape, surplus.name.span, message, label);
    }
    for surplus in drafts.iter().skip(data + 1) {
        let message = format!("`{}` is the second arbitrator", shown(&surplus.name.value));
        found.at(
            ErrorId::ClusterShape,
            surplus.name.span,
            message,
            "a cluster has at most one",
        );
    }
    if data < 2 {
        let message = format!("{data} data nodes are configured, a cluster has two");
        let example = "add [node.NAME] with address = [\"IP:PORT\"]";
        found.nowhere(ErrorId::ClusterShape, message).next = Some(example.to_owned());
    }
    if data == 2 && drafts.len() == 2 {
        let message = "two data nodes and no arbitrator: a dead peer stops writes";
        found.nowhere(ErrorId::NoArbitrator, message);
    }
    let fits = data == 2 && drafts.len() <= 3;
    let nodes = drafts.into_iter().map(|draft| NodeConfig {
        name: draft.name.value,
        role: draft.role,
        libvirt: draft.libvirt,
        addresses: draft
            .addresses
            .into_iter()
            .map(|address| address.value)
            .collect(),
    });
    fits.then(|| nodes.collect())
}

fn is_arbitrator(node: &DraftNode) -> bool {
    node.role == NodeRole::Arbitrator
}

fn check_addresses(nodes: &[DraftNode], found: &mut Findings) {
    let mut seen: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    for node in nodes {
        for address in &node.addresses {
            if let Some(first) = seen.insert(address.value, &node.name.value) {
                let message = format!(
                    "{} is already an address of `{}`",
                    address.value,
                    shown(first)
                );
                found.at(
                    ErrorId::AddressTwice,
                    address.span,
                    message,
                    "write another IP or port",
                );
            }
        }
    }
}

/// Protocol A answers guests for writes that the peer may never get: no node may act on the peer's
/// copy without a person who knows that.
fn check_protocol(
    resource: &DraftResource<'_>,
    net: &NetConfig,
    net_span: Option<Span>,
    found: &mut Findings,
) {
    let own = resource.protocol.as_ref();
    let protocol = own.map_or(net.protocol, |own| own.value);
    if protocol != ReplicationProtocol::A || resource.failover != Failover::Auto {
        return;
    }
    let span = own.map(|own| own.span).or(net_span);
    let span = span.unwrap_or(resource.name.span);
    let message = "protocol \"A\" with automatic failover can lose acknowledged writes";
    let label = "write \"B\" or \"C\", or failover = \"manual\" in the resource";
    found.at(ErrorId::ProtocolALossy, span, message, label);
}

fn check_tls(net: &NetConfig, span: Option<Span>, nodes: &[NodeConfig], found: &mut Findings) {
    let abroad = nodes
        .iter()
        .flat_map(|node| &node.addresses)
        .find(|a| !a.ip().is_loopback());
    match (net.tls, abroad, span) {
        (Tls::Off, Some(address), Some(span)) if !net.insecure => {
            let message = format!("tls = \"off\", and {address} is not a loopback address");
            let label = "add insecure = true if that network is the cluster's alone";
            found.at(ErrorId::TlsOffNotAllowed, span, message, label);
        }
        (Tls::Off, Some(_), Some(span)) => {
            let message = "data and votes travel in clear text";
            found.at(
                ErrorId::Insecure,
                span,
                message,
                "insecure = true allows it",
            );
        }
        (Tls::ControlOnly, Some(address), Some(span)) if !net.insecure => {
            let message =
                format!("tls = \"control-only\", and {address} is not a loopback address");
            let label = "add insecure = true if the data links' network is the cluster's alone";
            found.at(ErrorId::TlsOffNotAllowed, span, message, label);
        }
        (Tls::ControlOnly, Some(_), Some(span)) => {
            let message = "the guests' data travel in clear text between the nodes";
            let label = "\"required\" is for networks that others use too";
            found.at(ErrorId::Insecure, span, message, label);
        }
        (Tls::Off | Tls::Required | Tls::ControlOnly, ..) => {}
    }
}

/// The first resource of each name and id.
/// What a guest that is started and stopped here cannot be combined with.
fn check_guests(resources: &[ResourceConfig], found: &mut Findings) {
    let mut domains: BTreeMap<&str, &str> = BTreeMap::new();
    for resource in resources {
        let Some(guest) = &resource.guest else {
            continue;
        };
        let name = &resource.name;
        if let Some(first) = domains.insert(&guest.domain, name) {
            let domain = &guest.domain;
            let message = format!("{first} and {name} have the same guest, domain {domain}");
            found.nowhere(ErrorId::BadValue, message);
        }
        if resource.forward && guest.start_on_failover {
            // Moved there by hand it would be started here as well, and both would write.
            let message = format!(
                "{name}: `forward` lets a copy of its guest write from the other node, and \
                 on-failover = \"start\" may start one here"
            );
            let next = "on-failover = \"leave\", or no `forward`";
            found.nowhere(ErrorId::BadValue, message).next = Some(next.to_owned());
        }
    }
}

fn unique_resources<'a>(
    resources: Vec<DraftResource<'a>>,
    found: &mut Findings,
) -> Vec<DraftResource<'a>> {
    let mut seen: BTreeMap<ResourceId, String> = BTreeMap::new();
    let mut unique = Vec::new();
    for resource in resources {
        let (name, span) = (resource.name.value.clone(), resource.name.span);
        match seen.get(&ResourceId::of_name(&name)) {
            None => {
                seen.insert(ResourceId::of_name(&name), name);
                unique.push(resource);
            }
            Some(first) if *first == name => {
                let message = format!("resource `{}` is defined twice", shown(&name));
                found.at(ErrorId::DefinedTwice, span, message, "the second one");
            }
            Some(first) => {
                let message = format!(
                    "`{}` and `{}` have one internal id",
                    shown(first),
                    shown(&name)
                );
                found.at(ErrorId::ResourceIdClash, span, message, "rename one");
            }
        }
    }
    unique
}

fn resolve(
    draft: DraftResource<'_>,
    nodes: &[NodeConfig],
    devices: &mut Devices,
    found: &mut Findings,
) -> Option<ResourceConfig> {
    let prefer = draft
        .prefer
        .and_then(|name| data_node(&name, nodes, "prefer", found));
    let volumes = volumes::resolve(&draft.name.value, draft.volumes, nodes, devices, found);
    Some(ResourceConfig {
        name: draft.name.value,
        prefer,
        failback: draft.failback,
        hold_down: draft.hold_down,
        priority: draft.priority,
        protocol: draft.protocol.map(|word| word.value),
        failover: draft.failover,
        forward: draft.forward,
        read_only_export: draft.read_only_export,
        nbd_allow: draft.nbd_allow,
        volumes: volumes?,
        guest: draft.guest,
    })
}

/// The data node called `name`, or a note that there is none.
pub(super) fn data_node(
    name: &Located<&str>,
    nodes: &[NodeConfig],
    key: &str,
    found: &mut Findings,
) -> Option<NodeId> {
    let data = || nodes.iter().take(2).map(|node| node.name.as_str());
    let place = data().position(|node| node == name.value);
    if place.is_none() {
        let message = format!(
            "`{key}` names `{}`, which is no data node",
            shown(name.value)
        );
        let label = match did_you_mean(name.value, data()) {
            Some(close) => format!("did you mean `{close}`?"),
            None => format!("data nodes: {}", data().collect::<Vec<_>>().join(", ")),
        };
        found.at(ErrorId::UnknownNode, name.span, message, label);
    }
    [NodeId::A, NodeId::B].get(place?).copied()
}

/// A path for each data node.
pub(super) fn paths(
    written: Located<PerNode<'_>>,
    nodes: &[NodeConfig],
    key: &str,
    found: &mut Findings,
) -> Option<[Located<PathBuf>; 2]> {
    match written.value {
        PerNode::Same(text) => {
            let path = path(&text, key, found)?;
            Some([path.clone(), path])
        }
        PerNode::Each(each) => {
            let mut paths = [None, None];
            for (name, text) in &each {
                let node = data_node(name, nodes, key, found);
                let path = path(text, key, found);
                if let Some(node) = node {
                    paths[node.index()] = path;
                }
            }
            for node in nodes.iter().take(2) {
                if !each.iter().any(|(name, _)| name.value == node.name) {
                    let message = format!("`{key}` has no path for `{}`", node.name);
                    let label = format!("add {} = \"/path\"", node.name);
                    found.at(ErrorId::MissingKey, written.span, message, label);
                }
            }
            let [a, b] = paths;
            Some([a?, b?])
        }
    }
}

/// An absolute path, without `.` and doubled slashes, so that equal devices compare equal.
pub(super) fn path(
    text: &Located<&str>,
    key: &str,
    found: &mut Findings,
) -> Option<Located<PathBuf>> {
    let hint = if text.value == "internal" {
        let message = "internal metadata is not in this version";
        let label = "write the path of a device or file of its own";
        found.at(ErrorId::NotInThisVersion, text.span, message, label);
        return None;
    } else if !text.value.starts_with('/') {
        "write an absolute path: the daemon's directory is not yours"
    } else if text.value.contains('\0') {
        "no path contains NUL"
    } else if Path::new(text.value)
        .components()
        .any(|part| part == Component::ParentDir)
    {
        "write it without `..`"
    } else if Path::new(text.value).file_name().is_none() || text.value.ends_with('/') {
        "write the path of a device or file"
    } else {
        let value = Path::new(text.value).components().collect();
        return Some(Located {
            value,
            span: text.span,
        });
    };
    bad_value(found, key, text.value, text.span, hint);
    None
}

/// Which paths are used for what, to find those used twice.
#[derive(Default)]
pub(super) struct Devices {
    used: Vec<Use>,
}

struct Use {
    node: NodeId,
    what: String,
    path: Located<PathBuf>,
}

impl Devices {
    pub(super) fn note(&mut self, node: NodeId, what: String, path: &Located<PathBuf>) {
        self.used.push(Use {
            node,
            what,
            path: path.clone(),
        });
    }

    fn check(&self, nodes: &[NodeConfig], found: &mut Findings) {
        let one_machine = nodes
            .iter()
            .flat_map(|node| &node.addresses)
            .all(|address| address.ip().is_loopback());
        let mut seen: BTreeMap<(NodeId, &Path), &str> = BTreeMap::new();
        for Use { node, what, path } in &self.used {
            let shown_path = shown(&path.value.to_string_lossy());
            if let Some(first) = seen.insert((*node, &path.value), what) {
                // Written once for both nodes it would be reported twice.
                if *node == NodeId::A || !seen.contains_key(&(NodeId::A, path.value.as_path())) {
                    let message = format!("{shown_path} is used twice: {first}, {what}");
                    found.at(
                        ErrorId::DeviceTwice,
                        path.span,
                        message,
                        "write another path",
                    );
                }
            } else if one_machine
                && *node == NodeId::B
                && seen.contains_key(&(NodeId::A, path.value.as_path()))
            {
                let message = format!("both nodes are on this machine and share {shown_path}");
                let label = "write { NODE = \"path\", NODE = \"path\" }";
                found.at(ErrorId::SharedPath, path.span, message, label);
            }
        }
    }
}
