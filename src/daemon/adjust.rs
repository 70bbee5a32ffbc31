//! `adjust`: making what runs match the files, as far as that is possible without an interruption.
//!
//! Resources come and go, those that are down are taken as they are written now, and of one that is
//! up what may change meanwhile. The rest waits, and is said: for the resource to be down, or for the
//! next start of the daemon.

use std::sync::Arc;
use std::time::Duration;

use replicator::admin::{ChangeEffect, ConfigChange, ErrorId, ErrorReport, Response};

use replicator::types::{Failover, NodeId, ReplicationProtocol};

use super::api::{NbdAccess, ShardCommand};
use super::board::Presence;
use super::lifecycle::Claim;
use super::node::Node;
use super::orders::{Outcome, no_such_resource};
use crate::config::{self, Config, Difference, ResourceConfig, Scope};
use crate::controller::{Configured, Input};

impl Node {
    /// Takes over what the files say of `resource`, or of all; with `dry_run` only says what would
    /// change.
    pub(super) fn adjust(&self, resource: Option<&str>, dry_run: bool) -> Outcome {
        let alone = self.adjusting.lock();
        let _alone = alone.unwrap_or_else(std::sync::PoisonError::into_inner);
        let new = self.read_files()?;
        let in_force = self.config_in_force();
        if let Some(name) = resource
            && in_force.resource(name).is_none()
            && new.resource(name).is_none()
        {
            return Err(no_such_resource(name));
        }
        let asked = |name: &str| resource.is_none_or(|only| only == name);
        let mut claims = Vec::new();
        let mut list = Vec::new();
        let mut busy = Vec::new();
        let names = in_force.resources.iter().chain(&new.resources);
        let mut names: Vec<&str> = names.map(|it| it.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let (old, new) = (in_force.resource(name), new.resource(name));
            let Some(one) = old.or(new).filter(|_| asked(name) && old != new) else {
                list.extend(old.cloned());
                continue;
            };
            // Nobody brings it up or down while it is replaced.
            let claim = Claim::take_unknown(self, one, Duration::ZERO);
            let free = claim.is_ok() && self.is_away(one, new.is_none());
            claims.extend(claim);
            match (old, new) {
                _ if free => list.extend(new.cloned()),
                (Some(old), Some(new)) => {
                    busy.push(name);
                    let mixed = old.with_live_values_of(new);
                    list.push(mixed.unwrap_or_else(|| new.clone()));
                }
                _ => {
                    busy.push(name);
                    list.extend(old.cloned());
                }
            }
        }
        if let Some(twice) = config::device_used_twice(&list, self.node) {
            let what = format!("{} would be used twice", twice.path.display());
            let why = format!("{} has it, and {} is to get it", twice.first, twice.second);
            let next = format!("twinadm adjust, once {} is down", twice.first);
            return Err(ErrorReport::new(ErrorId::DeviceTwice, what, why).next(next));
        }
        let differences = in_force.differences(&new);
        let of_asked = |it: &&Difference| match it.resource() {
            Some(name) => asked(name),
            None => resource.is_none(),
        };
        let changes: Vec<_> = differences
            .iter()
            .filter(of_asked)
            .map(|difference| change(difference, &in_force, &new, &busy))
            .collect();
        if !dry_run {
            self.put_in_force(list);
            for change in &changes {
                tracing::info!("adjust: {change}");
            }
        }
        Ok(Response::Adjusted { changes, dry_run })
    }

    fn read_files(&self) -> Result<Config, ErrorReport> {
        let scope = match self.node.is_data() {
            true => Scope::All,
            false => Scope::Cluster,
        };
        let checked = config::load(&self.config_dir, scope).map_err(|mistakes| {
            let first = mistakes.iter().find(|it| !it.id.is_warning());
            let id = first.map_or(ErrorId::ConfigSyntax, |it| it.id);
            let what = format!("the files in {} are not valid", self.config_dir.display());
            let why = first.map_or_else(String::new, |it| it.message.clone());
            let next = format!(
                "twinadm check {}",
                self.config_dir.join("twinblk.toml").display()
            );
            ErrorReport::new(id, what, why).next(next)
        })?;
        for warning in &checked.warnings {
            tracing::warn!("[{}] {}", warning.id.code(), warning.message);
        }
        let new = checked.config;
        // Paths and preferences are told by the nodes' places, and these are this process's.
        let same = |id: NodeId| new.node_name(id) == self.config.node_name(id);
        if ![NodeId::A, NodeId::B, self.node].into_iter().all(same) {
            let what = "the files have other nodes than this daemon was started with";
            let why = "which node is which cannot change while it runs";
            let next = "restart the daemons, one after the other";
            return Err(ErrorReport::new(ErrorId::ClusterShape, what, why).next(next));
        }
        Ok(new)
    }

    /// Nothing of it runs here; nor is it to come up again by itself, which counts when it is `removed`.
    fn is_away(&self, resource: &ResourceConfig, removed: bool) -> bool {
        let up = self.board.read(|board| {
            let known = board.resources.get(&resource.id());
            known.is_some_and(|it| it.controller.as_ref().is_some_and(|it| it.up))
        });
        self.presence(resource) == Presence::Away && !(removed && up)
    }

    /// The configuration of the start with the resources of now.
    fn config_in_force(&self) -> Config {
        let mut config = self.config.clone();
        let resources = self.resources.all();
        config.resources = resources.iter().map(|it| (**it).clone()).collect();
        config
    }

    fn put_in_force(&self, list: Vec<ResourceConfig>) {
        let configured = list.iter().map(|it| self.configured(it)).collect();
        let access = NbdAccess {
            has_default: list.len() == 1,
            allowed: list
                .iter()
                .map(|it| (it.id(), it.nbd_allow.clone()))
                .collect(),
        };
        // First, so that the controller's first word about a new one finds its lease.
        self.resources.put(list.into_iter().map(Arc::new).collect());
        self.tell_controller(Input::Configured(configured));
        self.command(ShardCommand::NbdAccess(Box::new(access)));
        self.board.update(|_| ());
    }

    pub(super) fn configured(&self, resource: &ResourceConfig) -> Configured {
        let protocol = self.config.protocol_of(resource);
        // Not `auto`, which may be in force before a change of the protocol is.
        let failover = match protocol {
            ReplicationProtocol::A => Failover::Manual,
            ReplicationProtocol::B | ReplicationProtocol::C => resource.failover,
        };
        Configured {
            resource: resource.id(),
            protocol,
            failover,
            prefer: resource.prefer,
            blocks_min: blocks_min(resource),
        }
    }
}

/// With one volume any size will do; of several the last one has a block at least.
pub(super) fn blocks_min(resource: &ResourceConfig) -> u64 {
    let row = resource.row();
    match row.is_several() {
        true => row.start(row.last_place()).0 + 1,
        false => 0,
    }
}

/// A difference with what becomes of it.
fn change(difference: &Difference, in_force: &Config, new: &Config, busy: &[&str]) -> ConfigChange {
    let is_fixed = |name: &str, key: &str| {
        let (old, new) = (in_force.resource(name), new.resource(name));
        old.zip(new)
            .is_some_and(|(old, new)| old.is_fixed(new, key))
    };
    let is_busy = |name: &str| busy.contains(&name);
    match difference {
        Difference::Added(name) => ConfigChange {
            key: format!("resource {name}"),
            from: None,
            to: None,
            effect: match is_busy(name) {
                true => ChangeEffect::WaitsForDown,
                false => ChangeEffect::Added,
            },
        },
        Difference::Removed(name) => ConfigChange {
            key: format!("resource {name}"),
            from: None,
            to: None,
            effect: match is_busy(name) {
                true => ChangeEffect::WaitsForDown,
                false => ChangeEffect::Removed,
            },
        },
        Difference::Key {
            resource,
            key,
            from,
            to,
        } => ConfigChange {
            key: key.clone(),
            from: from.clone(),
            to: to.clone(),
            effect: match resource.as_deref() {
                None => ChangeEffect::WaitsForRestart,
                Some(name) if is_fixed(name, key) => ChangeEffect::OnlyForNewMetadata,
                Some(name) if in_force.resource(name).is_some_and(|it| it.is_size(key)) => {
                    ChangeEffect::ForNewMetadata
                }
                Some(name) if !is_busy(name) => ChangeEffect::Live,
                Some(name) => match in_force.resource(name) {
                    Some(old) if old.is_live(key) => ChangeEffect::Live,
                    _ => ChangeEffect::WaitsForDown,
                },
            },
        },
    }
}
