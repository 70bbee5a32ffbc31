//! `events2`: the status as a stream. Events are differences between two snapshots, so that a
//! client that adds them up always ends at what `status` says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::{PeerStatus, ResourceStatus, Status};
use crate::types::{DiskState, Role};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Part of the first snapshot.
    Exists,
    /// Came up.
    Create,
    /// A state changed.
    Change,
    /// Went down.
    Destroy,
}

impl EventKind {
    /// The word in the stream.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Create => "create",
            Self::Change => "change",
            Self::Destroy => "destroy",
        }
    }
}

/// One line of `events2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970-01-01 UTC.
    pub unix_millis: u64,
    /// What happened.
    pub event: EventKind,
    /// `resource`, `device`, `connection`, `peer-device`, or `-` at the end of the snapshot.
    pub object: String,
    /// Name and value in the order they are printed: which object, then its states.
    pub fields: Vec<(String, String)>,
}

/// Which object, in the order of the stream: a resource before its parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ObjectKey {
    resource: String,
    kind: ObjectKind,
    peer: String,
    volume: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ObjectKind {
    Resource,
    Device,
    Connection,
    PeerDevice,
}

type Objects = BTreeMap<ObjectKey, Vec<(&'static str, String)>>;

impl Event {
    /// `exists -`: what follows is change.
    #[must_use]
    pub fn end_of_snapshot(unix_millis: u64) -> Self {
        Self {
            unix_millis,
            event: EventKind::Exists,
            object: "-".to_owned(),
            fields: Vec::new(),
        }
    }

    /// Every object of a snapshot, without the end mark. Resources that are not up have none.
    #[must_use]
    pub fn snapshot(status: &Status, unix_millis: u64) -> Vec<Self> {
        objects(status)
            .iter()
            .map(|(key, states)| Self::of(EventKind::Exists, key, states, unix_millis))
            .collect()
    }

    /// What changed between two snapshots: what went (parts first), what changed, what came.
    #[must_use]
    pub fn changes(old: &Status, new: &Status, unix_millis: u64) -> Vec<Self> {
        let (old, new) = (objects(old), objects(new));
        let gone = old
            .iter()
            .rev()
            .filter(|(key, _)| !new.contains_key(key))
            .map(|(key, _)| Self::of(EventKind::Destroy, key, &[], unix_millis));
        let here = new.iter().filter_map(|(key, states)| match old.get(key) {
            None => Some(Self::of(EventKind::Create, key, states, unix_millis)),
            Some(before) if before != states => {
                Some(Self::of(EventKind::Change, key, states, unix_millis))
            }
            Some(_) => None,
        });
        gone.chain(here).collect()
    }

    fn of(
        event: EventKind,
        key: &ObjectKey,
        states: &[(&'static str, String)],
        unix_millis: u64,
    ) -> Self {
        let fields = key
            .fields()
            .into_iter()
            .chain(states.iter().cloned())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Self {
            unix_millis,
            event,
            object: key.kind.word().to_owned(),
            fields,
        }
    }
}

impl ObjectKind {
    fn word(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Device => "device",
            Self::Connection => "connection",
            Self::PeerDevice => "peer-device",
        }
    }
}

impl ObjectKey {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("name", self.resource.clone())];
        if matches!(self.kind, ObjectKind::Connection | ObjectKind::PeerDevice) {
            fields.push(("peer", self.peer.clone()));
        }
        if matches!(self.kind, ObjectKind::Device | ObjectKind::PeerDevice) {
            fields.push(("volume", self.volume.to_string()));
        }
        fields
    }
}

fn objects(status: &Status) -> Objects {
    let mut objects = Objects::new();
    for resource in status.resources.iter().filter(|resource| resource.up) {
        objects_of_resource(&status.node, resource, &mut objects);
    }
    objects
}

fn objects_of_resource(node: &str, resource: &ResourceStatus, objects: &mut Objects) {
    let key = |kind, peer: &str, volume| ObjectKey {
        resource: resource.name.clone(),
        kind,
        peer: peer.to_owned(),
        volume,
    };
    let states = vec![
        ("role", resource.role.unwrap_or(Role::Unknown).to_string()),
        (
            "suspended",
            resource
                .suspended
                .clone()
                .unwrap_or_else(|| "no".to_owned()),
        ),
        ("may_promote", yes_no(resource.may_promote)),
        (
            "promotion_score",
            promotion_score(node, resource).to_string(),
        ),
    ];
    objects.insert(key(ObjectKind::Resource, "", 0), states);
    for volume in &resource.volumes {
        let disk = volume.disk.unwrap_or(DiskState::Diskless);
        let clients = volume.nbd_clients > 0;
        let states = vec![("disk", disk.to_string()), ("open", yes_no(clients))];
        objects.insert(key(ObjectKind::Device, "", volume.volume), states);
    }
    for peer in &resource.peers {
        let states = vec![
            ("connection", peer.connection.to_string()),
            ("role", peer.role.to_string()),
        ];
        objects.insert(key(ObjectKind::Connection, &peer.node, 0), states);
        objects_of_peer(&key, peer, objects);
    }
}

fn objects_of_peer(
    key: &impl Fn(ObjectKind, &str, u16) -> ObjectKey,
    peer: &PeerStatus,
    objects: &mut Objects,
) {
    for volume in &peer.volumes {
        let states = vec![
            ("replication", volume.replication.to_string()),
            ("peer-disk", volume.disk.to_string()),
        ];
        objects.insert(
            key(ObjectKind::PeerDevice, &peer.node, volume.volume),
            states,
        );
    }
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// How good a Primary this node would be: 10000 for up-to-date data, 100 for each connected peer,
/// 1 for being the preferred node; 0 without up-to-date data. Consumers compare, never interpret.
fn promotion_score(node: &str, resource: &ResourceStatus) -> u32 {
    let up_to_date = !resource.volumes.is_empty()
        && resource
            .volumes
            .iter()
            .all(|volume| volume.disk == Some(DiskState::UpToDate));
    if !up_to_date {
        return 0;
    }
    let connected = resource
        .peers
        .iter()
        .filter(|peer| peer.connection == crate::types::ConnectionState::Connected)
        .fold(0_u32, |sum, _| sum.saturating_add(100));
    let preferred = u32::from(resource.prefer.as_deref() == Some(node));
    connected.saturating_add(10_000 + preferred)
}
