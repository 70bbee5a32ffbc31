//! Rules of `[nbd]`: where it listens by TCP, and whether that may be in clear text.

use std::net::SocketAddr;
use std::path::PathBuf;

use replicator::admin::ErrorId;
use replicator::types::NodeId;

use super::diagnostic::Findings;
use super::reader::{PerNode, bad_value};
use super::rules::{data_node, path};
use super::shape::{DraftNbd, default_nbd};
use super::source::{Located, Span};
use super::types::{NbdConfig, NodeConfig};

/// Certificates of a listener beyond loopback.
pub(super) const TLS_DIR_DEFAULT: &str = "/etc/twinblk/nbd-tls";

/// Where certificates are if nothing is written.
pub(super) fn tls_dir_default(listen: &[Option<SocketAddr>; 2]) -> Option<PathBuf> {
    let only_loopback = loopback(listen) == Some(true);
    (!only_loopback).then(|| PathBuf::from(TLS_DIR_DEFAULT))
}

/// Whether all addresses are loopback addresses; `None` if there is no address.
fn loopback(listen: &[Option<SocketAddr>; 2]) -> Option<bool> {
    let mut addresses = listen.iter().flatten().peekable();
    addresses.peek()?;
    Some(addresses.all(|address| address.ip().is_loopback()))
}

pub(super) fn resolve(
    draft: DraftNbd<'_>,
    nodes: &[NodeConfig],
    found: &mut Findings,
) -> NbdConfig {
    let listen = draft.listen.map(|listen| addresses(listen, nodes, found));
    let listen = listen.unwrap_or_default().map(|it| {
        let located = it?;
        refuse_taken(&located, nodes, found);
        Some(located)
    });
    let by_node = listen.each_ref().map(|it| it.as_ref().map(|at| at.value));
    let tls_dir = match draft.tls_dir {
        None => tls_dir_default(&by_node),
        Some(text) if text.value.is_empty() => {
            refuse_clear_text(&listen, text.span, found);
            None
        }
        Some(text) => path(&text, "tls-dir", found).map(|it| it.value),
    };
    NbdConfig {
        max_connections: draft
            .max_connections
            .unwrap_or(default_nbd().max_connections),
        listen: by_node,
        tls_dir,
    }
}

fn addresses(
    written: Located<PerNode<'_>>,
    nodes: &[NodeConfig],
    found: &mut Findings,
) -> [Option<Located<SocketAddr>>; 2] {
    match written.value {
        PerNode::Same(text) => {
            let address = address(&text, found);
            [address.clone(), address]
        }
        PerNode::Each(each) => {
            let mut addresses = [None, None];
            for (name, text) in &each {
                let node = data_node(name, nodes, "listen", found);
                let address = address(text, found);
                if let Some(node) = node {
                    addresses[node.index()] = address;
                }
            }
            addresses
        }
    }
}

/// The empty string is no address, and no mistake.
fn address(text: &Located<&str>, found: &mut Findings) -> Option<Located<SocketAddr>> {
    if text.value.is_empty() {
        return None;
    }
    let fault = match text.value.parse::<SocketAddr>() {
        Err(_) => "write \"IP:PORT\", such as \"10.0.0.1:10809\", or \"\" for none",
        Ok(address) if address.port() == 0 => "the port must be fixed: clients dial it",
        Ok(address) if address.ip().is_multicast() => "write an address of the node",
        Ok(value) => {
            let span = text.span;
            return Some(Located { value, span });
        }
    };
    bad_value(found, "listen", text.value, text.span, fault);
    None
}

/// Nodes listen there themselves.
fn refuse_taken(address: &Located<SocketAddr>, nodes: &[NodeConfig], found: &mut Findings) {
    let of_node = |node: &&NodeConfig| node.addresses.contains(&address.value);
    if let Some(node) = nodes.iter().find(of_node) {
        let message = format!("{} is already an address of `{}`", address.value, node.name);
        let label = "write another port";
        found.at(ErrorId::AddressTwice, address.span, message, label);
    }
}

fn refuse_clear_text(listen: &[Option<Located<SocketAddr>>; 2], span: Span, found: &mut Findings) {
    let abroad = listen.iter().flatten();
    let abroad = abroad.map(|it| it.value).find(|it| !it.ip().is_loopback());
    if let Some(address) = abroad {
        let message = format!("`tls-dir` is empty, and {address} is not a loopback address");
        let label = "write the directory of the certificates: NBD leaves a machine only within TLS";
        found.at(ErrorId::NbdCertificates, span, message, label);
    }
}

impl NbdConfig {
    /// Where `node` listens; nowhere on the arbitrator.
    #[must_use]
    pub fn listen_of(&self, node: NodeId) -> Option<SocketAddr> {
        self.listen.get(node.index()).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, FileKind, SourceFile, parse};
    use super::*;

    fn parsed(nbd: &str, resource: &str) -> Config {
        let text = format!(
            "config-version = 1\n[cluster]\nname = \"lab\"\n\
             [node.a]\naddress = [\"127.0.0.1:7790\"]\n[node.b]\naddress = [\"127.0.0.1:7791\"]\n\
             [node.arb]\nrole = \"arbitrator\"\naddress = [\"127.0.0.1:7792\"]\n\
             [net]\ntls = \"off\"\n[nbd]\n{nbd}\n[resource.r]\n{resource}\n\
             [[resource.r.volume]]\nid = 0\ndisk = {{ a = \"/d/a\", b = \"/d/b\" }}\n\
             meta = {{ a = \"/m/a\", b = \"/m/b\" }}\n"
        );
        let file = SourceFile {
            kind: FileKind::Cluster,
            path: "x".to_owned(),
            text,
        };
        parse(&[file]).unwrap().config
    }

    #[test]
    fn only_a_loopback_listener_goes_without_certificates() {
        let both = |address: &str| [address.parse().ok(); 2];
        let dir = |path: &str| Some(PathBuf::from(path));
        for (text, listen, tls_dir) in [
            ("", [None; 2], dir(TLS_DIR_DEFAULT)),
            ("listen = \"\"", [None; 2], dir(TLS_DIR_DEFAULT)),
            ("listen = \"127.0.0.1:1\"", both("127.0.0.1:1"), None),
            (
                "listen = \"127.0.0.1:1\"\ntls-dir = \"\"",
                both("127.0.0.1:1"),
                None,
            ),
            (
                "listen = \"127.0.0.1:1\"\ntls-dir = \"/etc/t\"",
                both("127.0.0.1:1"),
                dir("/etc/t"),
            ),
            (
                "listen = \"10.0.0.1:1\"",
                both("10.0.0.1:1"),
                dir(TLS_DIR_DEFAULT),
            ),
            (
                "listen = \"[::]:1\"\ntls-dir = \"/etc/t\"",
                both("[::]:1"),
                dir("/etc/t"),
            ),
            (
                "listen = { b = \"127.0.0.1:1\" }",
                [None, both("127.0.0.1:1")[1]],
                None,
            ),
            (
                "listen = { a = \"127.0.0.1:1\", b = \"10.0.0.1:1\" }",
                [both("127.0.0.1:1")[0], both("10.0.0.1:1")[1]],
                dir(TLS_DIR_DEFAULT),
            ),
        ] {
            let config = parsed(text, "nbd-allow = [\"O=x, CN=a\\\\,b\"]");
            assert_eq!(config.nbd.listen, listen, "{text}");
            assert_eq!(config.nbd.tls_dir, tls_dir, "{text}");
            assert_eq!(config.nbd.listen_of(NodeId::B), listen[1]);
            assert_eq!(config.nbd.listen_of(NodeId::ARBITRATOR), None);
            for show_defaults in [false, true] {
                let text = config.to_toml(show_defaults);
                let file = SourceFile {
                    kind: FileKind::Cluster,
                    path: "x".to_owned(),
                    text: text.clone(),
                };
                let mut back = parse(&[file]).unwrap().config;
                back.metrics.explicit = config.metrics.explicit;
                assert_eq!(back, config, "{text}");
            }
        }
    }
}
