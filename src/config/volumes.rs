//! The volumes of a resource: which of them make one replica.

use std::path::PathBuf;
use std::time::Duration;

use replicator::admin::ErrorId;
use replicator::types::{BLOCK_LEN, ByteLen, NodeId, VolumeId, VolumeRow};

use super::diagnostic::Findings;
use super::reader::bad_value;
use super::rules::{Devices, paths};
use super::shape::DraftVolume;
use super::source::{Located, Span};
use super::types::{NodeConfig, ReplicaPaths, VolumeConfig};
use super::units::size_text;

/// The largest a resource may be, all its volumes together: its bitmap, one bit for 4 KiB, is held in
/// memory, 2 GiB for this.
const VOLUMES_LEN_MAX: u64 = 64 << 40;

/// A volume with its metadata still its own.
struct Read {
    id: VolumeId,
    at: Span,
    size: Option<Located<u64>>,
    disk_timeout: Option<Duration>,
    al_extents: u16,
    disk: [Located<PathBuf>; 2],
    /// Of volume 0.
    meta: Option<[Located<PathBuf>; 2]>,
}

/// The volumes in the order of their numbers; `None` if there is none to speak of.
pub(super) fn resolve(
    resource: &str,
    drafts: Vec<DraftVolume<'_>>,
    nodes: &[NodeConfig],
    devices: &mut Devices,
    found: &mut Findings,
) -> Option<Vec<VolumeConfig>> {
    let wanted = drafts.len();
    let mut volumes: Vec<Read> = drafts
        .into_iter()
        .filter_map(|draft| read(resource, draft, nodes, devices, found))
        .collect();
    if volumes.is_empty() || volumes.len() < wanted {
        return None;
    }
    // The one written first keeps its place: the other is the mistake.
    volumes.sort_by_key(|volume| volume.id);
    check_numbers(resource, &volumes, found);
    check_sizes(resource, &volumes, found);
    // One area for all of them, so that what may differ between the nodes is recorded in one order.
    let meta = volumes.iter().find_map(|volume| volume.meta.clone())?;
    for node in [NodeId::A, NodeId::B] {
        devices.note(node, format!("meta of {resource}"), &meta[node.index()]);
    }
    let meta = meta.map(|path| path.value);
    let volumes = volumes.into_iter().map(|volume| VolumeConfig {
        id: volume.id,
        size: volume.size.map(|size| ByteLen(size.value)),
        disk_timeout: volume.disk_timeout,
        al_extents: volume.al_extents,
        replicas: [NodeId::A, NodeId::B].map(|node| ReplicaPaths {
            disk: volume.disk[node.index()].value.clone(),
            meta: meta[node.index()].clone(),
        }),
    });
    Some(volumes.collect())
}

fn read(
    resource: &str,
    draft: DraftVolume<'_>,
    nodes: &[NodeConfig],
    devices: &mut Devices,
    found: &mut Findings,
) -> Option<Read> {
    let (number, at) = (draft.id.value, draft.id.span);
    if let Some(size) = &draft.size {
        check_size(size, found);
    }
    let disk = draft
        .disk
        .and_then(|disk| paths(disk, nodes, "disk", found));
    let is_first = number == 0;
    let meta = draft
        .meta
        .filter(|_| is_first)
        .map(|meta| paths(meta, nodes, "meta", found));
    for (key, span) in draft.of_replica.into_iter().filter(|_| !is_first) {
        let message = format!("`{key}` of volume {number} of {resource} has no effect");
        let label = "volume 0's counts for all of them: they are one replica";
        found.at(ErrorId::NoEffectHere, span, message, label);
    }
    let disk = disk?;
    let meta = match meta {
        Some(None) => return None,
        Some(meta) => meta,
        None => None,
    };
    for node in [NodeId::A, NodeId::B] {
        let what = match is_first {
            true => format!("disk of {resource}"),
            false => format!("disk of {resource}/{number}"),
        };
        devices.note(node, what, &disk[node.index()]);
    }
    Some(Read {
        id: VolumeId(u16::try_from(number).unwrap_or(u16::MAX)),
        at,
        size: draft.size,
        disk_timeout: draft.disk_timeout,
        al_extents: draft.al_extents,
        disk,
        meta,
    })
}

/// Each number once, and 0 among them: what clients get who ask for the resource.
fn check_numbers(resource: &str, volumes: &[Read], found: &mut Findings) {
    for pair in volumes.windows(2).filter(|pair| pair[0].id == pair[1].id) {
        let message = format!("volume {} of {resource} is defined twice", pair[1].id.0);
        found.at(ErrorId::DefinedTwice, pair[1].at, message, "the second one");
    }
    if let Some(first) = volumes.first().filter(|first| first.id.0 != 0) {
        let message = format!("{resource} has no volume 0");
        let label = "the first volume has id = 0";
        found.at(ErrorId::BadValue, first.at, message, label);
    }
    if let Some(beyond) = volumes.get(VolumeRow::VOLUMES_MAX) {
        let message = format!("{resource} has {} volumes", volumes.len());
        let label = format!("a resource has at most {}", VolumeRow::VOLUMES_MAX);
        found.at(ErrorId::BadValue, beyond.at, message, label);
    }
}

/// Where a volume starts has to be the same on both nodes and for ever: what lies before it says so.
fn check_sizes(resource: &str, volumes: &[Read], found: &mut Findings) {
    let before_last = volumes.split_last().map_or(&[][..], |(_, before)| before);
    for volume in before_last.iter().filter(|volume| volume.size.is_none()) {
        let number = volume.id.0;
        let message =
            format!("volume {number} of {resource} has no `size`, and another follows it");
        found.at(
            ErrorId::MissingKey,
            volume.at,
            message,
            "add size = \"40GiB\", say",
        );
    }
    let mut total = 0_u64;
    for size in volumes.iter().filter_map(|volume| volume.size.as_ref()) {
        total = total.saturating_add(size.value);
        if total > VOLUMES_LEN_MAX {
            let text = size_text(size.value);
            let hint = "64TiB is the most, all volumes of a resource together";
            return bad_value(found, "size", &text, size.span, hint);
        }
    }
}

fn check_size(size: &Located<u64>, found: &mut Findings) {
    if size.value == 0 || !size.value.is_multiple_of(BLOCK_LEN) {
        let text = size_text(size.value);
        let hint = "a size is a multiple of 4KiB, and not 0";
        bad_value(found, "size", &text, size.span, hint);
    }
}
