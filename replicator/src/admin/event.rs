//! `events2`: the status as a stream. Events are differences between two snapshots, so that a
//! client that adds them up always ends at what `status` says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::{
    GuestStatus, PeerStatus, PeerVolumeStatus, ResourceStatus, Status, VolumeStatus,
};
use crate::types::{ConnectionState, DiskState, Role};

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
    /// `resource`, `guest`, `device`, `connection`, `peer-device`, or `-` at the end of the snapshot.
    pub object: String,
    /// Name and value in the order they are printed: which object, then its states.
    pub fields: Vec<(String, String)>,
    /// Sizes and counters, printed when asked for. They alone never make an event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statistics: Vec<(String, String)>,
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
    Guest,
    Device,
    Connection,
    PeerDevice,
}

type Fields = Vec<(&'static str, String)>;

#[derive(Default)]
struct Object {
    states: Fields,
    statistics: Fields,
}

type Objects = BTreeMap<ObjectKey, Object>;

impl Event {
    /// `exists -`: what follows is change.
    #[must_use]
    pub fn end_of_snapshot(unix_millis: u64) -> Self {
        Self {
            unix_millis,
            event: EventKind::Exists,
            object: "-".to_owned(),
            fields: Vec::new(),
            statistics: Vec::new(),
        }
    }

    /// Every object of a snapshot, without the end mark. Resources that are not up have none.
    #[must_use]
    pub fn snapshot(status: &Status, unix_millis: u64) -> Vec<Self> {
        objects(status)
            .iter()
            .map(|(key, object)| Self::of(EventKind::Exists, key, object, unix_millis))
            .collect()
    }

    /// What changed between two snapshots: what went (parts first), what changed, what came.
    #[must_use]
    pub fn changes(old: &Status, new: &Status, unix_millis: u64) -> Vec<Self> {
        let (old, new) = (objects(old), objects(new));
        let nothing = Object::default();
        let gone = old
            .keys()
            .rev()
            .filter(|key| !new.contains_key(key))
            .map(|key| Self::of(EventKind::Destroy, key, &nothing, unix_millis));
        let here = new.iter().filter_map(|(key, object)| {
            let kind = match old.get(key) {
                None => EventKind::Create,
                Some(before) if before.states != object.states => EventKind::Change,
                Some(_) => return None,
            };
            Some(Self::of(kind, key, object, unix_millis))
        });
        gone.chain(here).collect()
    }

    fn of(event: EventKind, key: &ObjectKey, object: &Object, unix_millis: u64) -> Self {
        let owned = |(name, value): &(&'static str, String)| ((*name).to_owned(), value.clone());
        let fields = key.fields();
        Self {
            unix_millis,
            event,
            object: key.kind.word().to_owned(),
            fields: fields.iter().chain(&object.states).map(owned).collect(),
            statistics: object.statistics.iter().map(owned).collect(),
        }
    }
}

impl ObjectKind {
    fn word(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Guest => "guest",
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
    objects.insert(
        key(ObjectKind::Resource, "", 0),
        resource_object(node, resource),
    );
    if let Some(guest) = &resource.guest {
        objects.insert(key(ObjectKind::Guest, "", 0), guest_object(guest));
    }
    for volume in &resource.volumes {
        objects.insert(
            key(ObjectKind::Device, "", volume.volume),
            device_object(volume),
        );
    }
    for peer in &resource.peers {
        objects.insert(
            key(ObjectKind::Connection, &peer.node, 0),
            connection_object(peer),
        );
        for volume in &peer.volumes {
            let object = peer_device_object(volume);
            objects.insert(
                key(ObjectKind::PeerDevice, &peer.node, volume.volume),
                object,
            );
        }
    }
}

fn resource_object(node: &str, resource: &ResourceStatus) -> Object {
    let suspended = resource.suspended.as_deref().unwrap_or("no");
    Object {
        states: vec![
            ("role", resource.role.unwrap_or(Role::Unknown).to_string()),
            ("suspended", suspended.to_owned()),
            ("may_promote", yes_no(resource.may_promote)),
            (
                "promotion_score",
                promotion_score(node, resource).to_string(),
            ),
        ],
        statistics: Vec::new(),
    }
}

fn guest_object(guest: &GuestStatus) -> Object {
    let node = guest.node.as_deref().unwrap_or("-");
    Object {
        states: vec![
            ("domain", guest.domain.clone()),
            ("node", node.to_owned()),
            ("state", guest.state.clone()),
        ],
        statistics: Vec::new(),
    }
}

fn device_object(volume: &VolumeStatus) -> Object {
    let disk = volume.disk.unwrap_or(DiskState::Diskless);
    let mut statistics = Vec::new();
    if let Some(size) = volume.size_bytes {
        statistics.push(("size", size.to_string()));
    }
    if let Some(counters) = volume.statistics {
        statistics.extend([
            ("read", counters.read_bytes.to_string()),
            ("written", counters.written_bytes.to_string()),
            ("al-writes", counters.activity_log_writes.to_string()),
            ("bm-writes", counters.bitmap_writes.to_string()),
        ]);
    }
    Object {
        states: vec![
            ("disk", disk.to_string()),
            ("open", yes_no(volume.nbd_clients > 0)),
        ],
        statistics,
    }
}

fn connection_object(peer: &PeerStatus) -> Object {
    Object {
        states: vec![
            ("connection", peer.connection.to_string()),
            ("role", peer.role.to_string()),
        ],
        statistics: Vec::new(),
    }
}

fn peer_device_object(volume: &PeerVolumeStatus) -> Object {
    let mut statistics = Vec::new();
    if let Some(bytes) = volume.out_of_sync_bytes {
        statistics.push(("out-of-sync", bytes.to_string()));
    }
    if let Some(resync) = &volume.resync {
        statistics.push(("done", resync.done_bytes.to_string()));
        statistics.push(("total", resync.total_bytes.to_string()));
    }
    Object {
        states: vec![
            ("replication", volume.replication.to_string()),
            ("peer-disk", volume.disk.to_string()),
        ],
        statistics,
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
        .filter(|peer| peer.connection == ConnectionState::Connected)
        .fold(0_u32, |sum, _| sum.saturating_add(100));
    let preferred = u32::from(resource.prefer.as_deref() == Some(node));
    connected.saturating_add(10_000 + preferred)
}

#[cfg(test)]
mod tests;
