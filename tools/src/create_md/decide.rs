//! What `create-md` may do with what it found. Pure.

use std::path::{Path, PathBuf};

use replicator::admin::{ErrorId, ErrorReport};
use replicator::meta::Layout;
use replicator::types::{BlockCount, ByteLen, NodeId, ResourceId, VolumeId};
use twinblk::config::size_text;

use crate::show::size::size;

/// The replica whose metadata is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) resource: ResourceId,
    /// Number of the first volume.
    pub(super) volume: VolumeId,
    pub(super) node: NodeId,
    /// `RES/VOL`, or `RES` when it has several volumes, for people.
    pub(super) label: String,
    pub(super) node_name: String,
    /// In the order of their numbers; never empty.
    pub(super) volumes: Vec<WantedVolume>,
    pub(super) al_slots: u16,
    pub(super) meta: PathBuf,
}

/// One volume of it.
#[derive(Clone, Debug)]
pub(super) struct WantedVolume {
    pub(super) disk: PathBuf,
    /// As configured.
    pub(super) size: Option<ByteLen>,
}

/// What is known of the data device.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskFacts {
    pub(super) len: ByteLen,
    /// Every byte is known to read as zero.
    pub(super) zero: bool,
}

/// What is known of the metadata area.
#[derive(Clone, Copy, Debug)]
pub(super) enum MetaFacts {
    /// There is nothing at that path, and a file can be made.
    Missing,
    /// There is something.
    Existing { len: ByteLen, content: Content },
}

impl MetaFacts {
    /// Whether metadata of any replica is there.
    pub(super) fn has_ours(&self) -> bool {
        matches!(
            self,
            Self::Existing {
                content: Content::Ours { .. } | Content::OursUnreadable,
                ..
            }
        )
    }
}

/// What an area holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes, as far as it matters.
    Zeroes,
    /// The metadata of a replica of this resource, volume and node.
    Ours {
        resource: ResourceId,
        volume: VolumeId,
        node: NodeId,
    },
    /// Metadata of ours that cannot be read: damaged, or of a newer version.
    OursUnreadable,
    /// Something else; where its first byte is.
    Foreign { offset: u64 },
}

/// What will be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    pub(super) size: BlockCount,
    /// Length of the metadata.
    pub(super) needed: ByteLen,
    pub(super) zero_proven: bool,
    /// The file has to be made.
    pub(super) make_file: bool,
    /// A replica's metadata is there and will be gone.
    pub(super) forget: bool,
}

/// Size of all volumes together and length of their metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) volumes: BlockCount,
    pub(super) meta: ByteLen,
}

impl Wanted {
    /// Whether the area holds this replica's metadata.
    pub(super) fn is_made(&self, meta: &MetaFacts) -> bool {
        let own = (self.resource, self.volume, self.node);
        matches!(
            *meta,
            MetaFacts::Existing {
                content: Content::Ours { resource, volume, node },
                ..
            } if (resource, volume, node) == own
        )
    }
}

/// How large both are with these disks, one for each volume, or why there can be none.
pub(super) fn sizes(wanted: &Wanted, disks: &[DiskFacts]) -> Result<Sizes, ErrorReport> {
    let mut volumes = BlockCount(0);
    for (volume, disk) in wanted.volumes.iter().zip(disks) {
        let own = volume_size(wanted, volume, disk)?;
        volumes = BlockCount(volumes.0.saturating_add(own.0));
    }
    match Layout::for_volume(volumes, wanted.al_slots) {
        Some(layout) => Ok(Sizes {
            volumes,
            meta: layout.total(),
        }),
        None => Err(too_large(wanted, volumes)),
    }
}

/// What to do, or why not.
pub(super) fn decide(
    wanted: &Wanted,
    sizes: Sizes,
    disks: &[DiskFacts],
    meta: &MetaFacts,
    force: bool,
) -> Result<Recipe, ErrorReport> {
    let forget = match *meta {
        MetaFacts::Missing => false,
        MetaFacts::Existing { len, content } => {
            // What is there decides first: "too small" would invite to enlarge a foreign device.
            let forget = check_content(wanted, content, force)?;
            if len < sizes.meta {
                return Err(area_too_small(wanted, len, sizes.meta));
            }
            forget
        }
    };
    Ok(Recipe {
        size: sizes.volumes,
        needed: sizes.meta,
        zero_proven: disks.iter().all(|disk| disk.zero),
        make_file: matches!(meta, MetaFacts::Missing),
        forget,
    })
}

/// As configured, else all of the disk in whole blocks: the smaller of the two disks counts once
/// both nodes have met.
fn volume_size(
    wanted: &Wanted,
    volume: &WantedVolume,
    disk: &DiskFacts,
) -> Result<BlockCount, ErrorReport> {
    let path = volume.disk.display();
    let node = &wanted.node_name;
    let whole = BlockCount::whole_blocks_in(disk.len);
    match volume.size {
        None if whole.0 > 0 => Ok(whole),
        None => Err(ErrorReport::new(
            ErrorId::DeviceTooSmall,
            format!("{path} on {node} has {} bytes", disk.len.0),
            "a volume has at least one block of 4 KiB",
        )),
        Some(size) if disk.len >= size => Ok(BlockCount::whole_blocks_in(size)),
        Some(wanted_size) => {
            let (has, wants) = (size(disk.len.0), size_text(wanted_size.0));
            let what = format!("{path} is {has} on {node} but `size` is {wants}");
            let why = format!(
                "{} bytes are missing",
                wanted_size.0.saturating_sub(disk.len.0)
            );
            Err(ErrorReport::new(ErrorId::DeviceTooSmall, what, why)
                .next(enlarge(&volume.disk, wanted_size.0)))
        }
    }
}

fn check_content(wanted: &Wanted, content: Content, force: bool) -> Result<bool, ErrorReport> {
    let path = wanted.meta.display();
    let keep_or_force = |what: String, why: &str| {
        ErrorReport::new(ErrorId::MetadataExists, what, why)
            .next(format!(
                "keep it and run: twinadm up {}",
                resource_of(wanted)
            ))
            .next(format!(
                "if what this replica knows may be forgotten: twinadm create-md {} --force",
                resource_of(wanted)
            ))
    };
    match content {
        Content::Zeroes => Ok(false),
        Content::Ours { .. } | Content::OursUnreadable if force => Ok(true),
        Content::Ours {
            resource,
            volume,
            node,
        } if (resource, volume, node) == (wanted.resource, wanted.volume, wanted.node) => {
            Err(keep_or_force(
                format!("{path} holds this replica's metadata already"),
                "it was made before",
            ))
        }
        Content::Ours { .. } => Err(keep_or_force(
            format!("{path} holds the metadata of another replica"),
            "it belongs to another resource or node, or to other volumes of this one",
        )),
        Content::OursUnreadable => Err(keep_or_force(
            format!("{path} holds metadata that cannot be read"),
            "it is damaged or was made by a newer version",
        )),
        Content::Foreign { offset } => Err(ErrorReport::new(
            ErrorId::ForeignSignature,
            format!("{path} holds something else"),
            format!("byte {offset} is not zero, and it is no metadata of ours"),
        )
        .next("name another path as `meta`; one that does not exist is made")
        .next(format!(
            "if nothing on it is needed, zero it yourself: {}",
            wipe(&wanted.meta)
        ))),
    }
}

fn area_too_small(wanted: &Wanted, len: ByteLen, needed: ByteLen) -> ErrorReport {
    let path = &wanted.meta;
    let what = format!("{} is too small for the metadata", path.display());
    let why = format!(
        "it has {} bytes and {} are needed ({})",
        len.0,
        needed.0,
        size(needed.0)
    );
    ErrorReport::new(ErrorId::MetadataTooSmall, what, why).next(enlarge(path, needed.0))
}

fn too_large(wanted: &Wanted, size: BlockCount) -> ErrorReport {
    let what = format!("{} cannot be that large", wanted.label);
    let why = format!(
        "{} blocks of 4 KiB are more than metadata can describe",
        size.0
    );
    ErrorReport::new(ErrorId::DeviceUnusable, what, why).next("write a `size` of at most 64TiB")
}

fn enlarge(path: &Path, bytes: u64) -> String {
    if is_device(path) {
        format!("lvextend -L {bytes}b {}", path.display())
    } else {
        format!("truncate -s {bytes} {}", path.display())
    }
}

fn wipe(path: &Path) -> String {
    if is_device(path) {
        format!("blkdiscard -z {}", path.display())
    } else {
        format!("rm {}", path.display())
    }
}

/// Whether only a device can be meant by `path`: /dev/shm holds files like any tmpfs.
pub(crate) fn is_device(path: &Path) -> bool {
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}

fn resource_of(wanted: &Wanted) -> &str {
    wanted.label.split('/').next().unwrap_or(&wanted.label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn wanted(size: Option<u64>) -> Wanted {
        Wanted {
            resource: ResourceId(1),
            volume: VolumeId(0),
            node: NodeId::A,
            label: "vm-web/0".to_owned(),
            node_name: "kvm-a".to_owned(),
            volumes: vec![WantedVolume {
                disk: "/x/a.img".into(),
                size: size.map(ByteLen),
            }],
            al_slots: 1024,
            meta: "/x/a.md".into(),
        }
    }

    fn decide_with(
        wanted: &Wanted,
        disk: &DiskFacts,
        meta: &MetaFacts,
        force: bool,
    ) -> Result<Recipe, ErrorReport> {
        let disks = [*disk];
        decide(wanted, sizes(wanted, &disks)?, &disks, meta, force)
    }

    fn ours(resource: u64) -> Content {
        Content::Ours {
            resource: ResourceId(resource),
            volume: VolumeId(0),
            node: NodeId::A,
        }
    }

    fn disk(len: u64) -> DiskFacts {
        DiskFacts {
            len: ByteLen(len),
            zero: true,
        }
    }

    fn existing(len: u64, content: Content) -> MetaFacts {
        MetaFacts::Existing {
            len: ByteLen(len),
            content,
        }
    }

    #[test]
    fn a_missing_file_is_made_at_the_size_it_needs() {
        let recipe = decide_with(
            &wanted(Some(64 * MIB)),
            &disk(64 * MIB),
            &MetaFacts::Missing,
            false,
        )
        .unwrap();
        assert!(recipe.make_file && recipe.zero_proven && !recipe.forget);
        assert_eq!(recipe.size.bytes().0, 64 * MIB);
        assert_eq!(
            recipe.needed,
            Layout::for_volume(recipe.size, 1024).unwrap().total()
        );
    }

    #[test]
    fn without_a_size_the_disk_counts_in_whole_blocks() {
        let recipe =
            decide_with(&wanted(None), &disk(MIB + 4095), &MetaFacts::Missing, false).unwrap();
        assert_eq!(recipe.size.bytes().0, MIB);
        let tiny = decide_with(&wanted(None), &disk(4095), &MetaFacts::Missing, false).unwrap_err();
        assert_eq!(tiny.id, "E0117");
    }

    #[test]
    fn several_volumes_are_as_large_as_they_are_together_and_zero_only_all_of_them() {
        let volume = |size: Option<u64>| WantedVolume {
            disk: "/x/log.img".into(),
            size: size.map(ByteLen),
        };
        let mut wanted = wanted(Some(2 * MIB));
        wanted.volumes.push(volume(None));
        let made = |second: DiskFacts| {
            let disks = [disk(3 * MIB), second];
            let sizes = sizes(&wanted, &disks).unwrap();
            decide(&wanted, sizes, &disks, &MetaFacts::Missing, false).unwrap()
        };
        let both = made(disk(MIB));
        assert_eq!((both.size.bytes().0, both.zero_proven), (3 * MIB, true));
        let with_data = DiskFacts {
            zero: false,
            ..disk(MIB)
        };
        assert!(!made(with_data).zero_proven);
        wanted.volumes[1] = volume(Some(MIB));
        let refused = sizes(&wanted, &[disk(3 * MIB), disk(4096)]).unwrap_err();
        assert_eq!(refused.id, "E0117");
        assert!(refused.what.contains("/x/log.img"), "{}", refused.what);
    }

    #[test]
    fn a_disk_smaller_than_size_is_refused_with_the_command_that_mends_it() {
        let refused = decide_with(
            &wanted(Some(2 * MIB)),
            &disk(MIB),
            &MetaFacts::Missing,
            false,
        )
        .unwrap_err();
        assert_eq!((refused.id.as_str(), refused.exit), ("E0117", 3));
        assert_eq!(refused.next, ["truncate -s 2097152 /x/a.img"]);
    }

    #[test]
    fn metadata_of_ours_needs_force_and_foreign_bytes_do_not_yield_to_it() {
        let try_it = |content, force| {
            decide_with(
                &wanted(Some(MIB)),
                &disk(MIB),
                &existing(16 * MIB, content),
                force,
            )
        };
        for ours in [ours(1), ours(2), Content::OursUnreadable] {
            assert_eq!(try_it(ours, false).unwrap_err().exit, 4);
            assert!(try_it(ours, true).unwrap().forget);
        }
        for force in [false, true] {
            let refused = try_it(Content::Foreign { offset: 1080 }, force).unwrap_err();
            assert_eq!((refused.id.as_str(), refused.exit), ("E0402", 4));
        }
        assert!(!try_it(Content::Zeroes, false).unwrap().forget);
    }

    #[test]
    fn an_area_that_is_too_small_is_refused_after_its_content_was_looked_at() {
        let small = |content| {
            decide_with(
                &wanted(Some(MIB)),
                &disk(MIB),
                &existing(4096, content),
                true,
            )
        };
        assert_eq!(small(Content::Zeroes).unwrap_err().id, "E0403");
        assert_eq!(
            small(Content::Foreign { offset: 0 }).unwrap_err().id,
            "E0402"
        );
    }
}
