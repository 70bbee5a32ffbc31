//! The volumes of a resource, end to end in one row of blocks.
//!
//! A resource has one engine, one view and one stream to the peer, whatever its volumes: they are laid
//! behind each other, in the order of their numbers, and everything below the guests' edge knows only
//! the row (ADR 0018). So there is one write order over all of them, and no way to serve one without
//! the others. The disks themselves are told apart again where operations meet them.
//!
//! Invariant: where a volume starts never changes. Only the last one can grow.

use super::ids::{ResourceId, VolumeId};
use super::units::{BlockCount, BlockIndex, BlockRange, ByteOffset};

/// Where each volume starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRow {
    /// Never empty; the first starts at 0, numbers and starts grow.
    volumes: Vec<(VolumeId, BlockIndex)>,
}

impl VolumeRow {
    /// Volumes of one resource at most: each is a disk that one flush of the resource waits for.
    pub const VOLUMES_MAX: usize = 16;

    /// The row of a resource with one volume.
    #[must_use]
    pub fn only(volume: VolumeId) -> Self {
        Self {
            volumes: vec![(volume, BlockIndex(0))],
        }
    }

    /// Volumes in the order of their numbers, each with its size; that of the last does not count.
    /// `None` if there are none, too many, or one before the last is empty.
    #[must_use]
    pub fn new(sizes: &[(VolumeId, BlockCount)]) -> Option<Self> {
        if sizes.is_empty() || sizes.len() > Self::VOLUMES_MAX {
            return None;
        }
        let ascending = sizes.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let before_last = &sizes[..sizes.len() - 1];
        if !ascending || before_last.iter().any(|(_, size)| size.0 == 0) {
            return None;
        }
        let mut start = Some(0_u64);
        let volumes = sizes.iter().map(|(volume, size)| {
            let own = start?;
            start = own.checked_add(size.0);
            Some((*volume, BlockIndex(own)))
        });
        volumes
            .collect::<Option<_>>()
            .map(|volumes| Self { volumes })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.volumes.len()
    }

    /// Whether there is more than one.
    #[must_use]
    pub fn is_several(&self) -> bool {
        self.volumes.len() > 1
    }

    /// Number of the first.
    #[must_use]
    pub fn first(&self) -> VolumeId {
        self.volumes[0].0
    }

    /// Numbers of all, in order.
    pub fn ids(&self) -> impl Iterator<Item = VolumeId> {
        self.volumes.iter().map(|(volume, _)| *volume)
    }

    /// Place of the last.
    #[must_use]
    pub fn last_place(&self) -> usize {
        self.volumes.len() - 1
    }

    /// Where the volume in that place starts.
    ///
    /// # Panics
    /// If there is no such place.
    #[must_use]
    pub fn start(&self, place: usize) -> BlockIndex {
        self.volumes[place].1
    }

    /// The same in bytes.
    ///
    /// # Panics
    /// If there is no such place.
    #[must_use]
    pub fn offset(&self, place: usize) -> ByteOffset {
        ByteOffset(BlockCount(self.start(place).0).bytes().0)
    }

    /// Blocks of the volume in that place, of a row of `total` blocks; empty where that ends before.
    ///
    /// # Panics
    /// If there is no such place.
    #[must_use]
    pub fn blocks(&self, place: usize, total: BlockCount) -> BlockRange {
        let start = self.start(place);
        let next = self.volumes.get(place + 1).map(|(_, start)| start.0);
        let end = next.unwrap_or(total.0).min(total.0).max(start.0);
        BlockRange::between(start, BlockIndex(end))
    }

    /// Whether a row of `total` blocks has a block of each volume.
    #[must_use]
    pub fn is_whole(&self, total: BlockCount) -> bool {
        self.start(self.last_place()).0 < total.0
    }

    /// Place of the volume that has the block.
    #[must_use]
    pub fn place_of(&self, block: BlockIndex) -> usize {
        let behind = self.volumes.partition_point(|(_, start)| *start <= block);
        behind.saturating_sub(1)
    }

    /// The pieces of a range, volume by volume: place, and blocks counted from the volume's start.
    pub fn pieces(&self, range: BlockRange) -> impl Iterator<Item = (usize, BlockRange)> + '_ {
        let mut at = range.start();
        core::iter::from_fn(move || {
            if at >= range.end() {
                return None;
            }
            let place = self.place_of(at);
            let next = self.volumes.get(place + 1).map(|(_, start)| *start);
            let end = next.map_or(range.end(), |next| next.min(range.end()));
            let start = self.start(place).0;
            let piece = BlockRange::between(BlockIndex(at.0 - start), BlockIndex(end.0 - start));
            at = end;
            Some((place, piece))
        })
    }

    /// What the replicas of a resource with these volumes call it, on disk and to each other: one made
    /// for volumes that start elsewhere is of another resource, and none of its blocks is taken for one
    /// of these. With one volume it is the resource's own id.
    #[must_use]
    pub fn identity(&self, resource: ResourceId) -> ResourceId {
        use core::fmt::Write as _;
        if !self.is_several() {
            return resource;
        }
        // No resource has such a name.
        let mut name = format!("{:016x}", resource.0);
        for (volume, start) in &self.volumes {
            // Writing to a string does not fail.
            _ = write!(name, "/{}@{}", volume.0, start.0);
        }
        ResourceId::of_name(&name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(sizes: &[u64]) -> VolumeRow {
        let sizes: Vec<_> = (0..)
            .zip(sizes)
            .map(|(nr, size)| (VolumeId(nr), BlockCount(*size)))
            .collect();
        VolumeRow::new(&sizes).unwrap()
    }

    #[test]
    fn one_volume_has_the_resources_own_id_and_others_have_none_in_common() {
        let resource = ResourceId::of_name("vm-db");
        let named = |sizes: &[u64]| row(sizes).identity(resource);
        assert_eq!(VolumeRow::only(VolumeId(0)).identity(resource), resource);
        assert_eq!(named(&[7]), resource);
        assert_eq!(named(&[7, 5]), named(&[7, 9]), "the last may grow");
        // On disk and on the wire: never another one for the same volumes.
        assert_eq!(named(&[7, 5]), ResourceId(0x1393_bfae_2f1a_9879));
        let mut all = [&[7][..], &[7, 5], &[8, 5], &[7, 5, 1], &[7, 6, 1]].map(named);
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_row_that_makes_no_sense_is_none() {
        let of = |sizes: &[(u16, u64)]| {
            let sizes: Vec<_> = sizes
                .iter()
                .map(|(nr, size)| (VolumeId(*nr), BlockCount(*size)))
                .collect();
            VolumeRow::new(&sizes)
        };
        assert!(of(&[]).is_none());
        assert!(of(&[(0, 4), (0, 4)]).is_none(), "a number twice");
        assert!(of(&[(1, 4), (0, 4)]).is_none(), "not in order");
        assert!(of(&[(0, 0), (1, 4)]).is_none(), "an empty one");
        assert!(of(&[(0, u64::MAX), (1, 4), (2, 1)]).is_none(), "too long");
        assert!(
            of(&[(0, 4), (7, 0)]).is_some(),
            "the last one's does not count"
        );
        let many: Vec<_> = (0..17).map(|nr| (nr, 1)).collect();
        assert!(of(&many).is_none() && of(&many[..16]).is_some());
    }

    #[test]
    fn a_row_is_whole_when_its_last_volume_has_a_block() {
        let row = row(&[4, 3]);
        assert!(!row.is_whole(BlockCount(4)) && row.is_whole(BlockCount(5)));
        assert_eq!(row.blocks(1, BlockCount(5)).count(), BlockCount(1));
        assert!(row.blocks(1, BlockCount(2)).is_empty());
        assert_eq!(row.blocks(0, BlockCount(2)).count(), BlockCount(2));
    }

    proptest! {
        /// The oracle writes the row out, block by block.
        #[test]
        fn pieces_cover_a_range_block_by_block(
            sizes in prop::collection::vec(1_u64..6, 1..6),
            start in 0_u64..24,
            count in 0_u64..24,
        ) {
            let row = row(&sizes);
            let mut written_out = Vec::new();
            for (place, size) in sizes.iter().enumerate() {
                let size = if place == sizes.len() - 1 { 64 } else { *size };
                written_out.extend((0..size).map(|block| (place, block)));
            }
            let wanted: Vec<_> = written_out
                .iter()
                .skip(usize::try_from(start).unwrap())
                .take(usize::try_from(count).unwrap())
                .copied()
                .collect();
            let range = BlockRange::new(BlockIndex(start), BlockCount(count));
            let mut last = None;
            let mut got = Vec::new();
            for (place, piece) in row.pieces(range) {
                prop_assert!(!piece.is_empty() && last < Some(place), "one piece a volume");
                last = Some(place);
                got.extend(piece.iter().map(|block| (place, block.0)));
            }
            prop_assert_eq!(got, wanted);
        }
    }
}
