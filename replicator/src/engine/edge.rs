//! The guest's edge: any byte alignment above, whole blocks below.
//!
//! A guest request becomes *parts*. A part that covers blocks only partly is completed by reading
//! its first and last block under the part's own lock and merging (read-modify-write); everything
//! below this file sees whole blocks.

use crate::types::{
    BLOCK_LEN, BlockCount, BlockIndex, BlockRange, ByteLen, ByteOffset, ByteRange, Payload,
};

/// Largest data part: one frame's payload.
pub(super) const PART_LEN_MAX: u64 = 1 << 20;
/// Largest part of zeroes: 16 activity-log extents, far below the smallest activity log.
pub(super) const ZERO_PART_LEN_MAX: u64 = 64 << 20;

/// One part of a guest write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The blocks it locks, tracks and writes.
    pub(super) range: BlockRange,
    pub(super) content: Content,
}

/// What a part puts into its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Whole blocks.
    Whole(Payload),
    /// Bytes from `skip` bytes into the range; the rest of the first and last block stays.
    Partial { skip: usize, bytes: Payload },
    /// One block as it is: read under the part's own lock, and written again.
    AsItIs,
    /// Zeroes over whole blocks.
    Zeroes { may_unmap: bool },
}

impl Part {
    /// One block, written again as it is.
    pub(super) fn as_it_is(block: BlockIndex) -> Self {
        Self {
            range: BlockRange::new(block, BlockCount(1)),
            content: Content::AsItIs,
        }
    }
}

/// Cuts a write into parts of at most [`PART_LEN_MAX`] bytes, on multiples of it.
pub(super) fn write_parts(offset: ByteOffset, payload: Payload) -> impl Iterator<Item = Part> {
    let end = offset.0 + payload.len() as u64;
    cuts(offset.0, end, PART_LEN_MAX).map(move |asked| {
        let at = asked.offset().0 - offset.0;
        let bytes = payload.slice(to_usize(at), to_usize(at + asked.len().0));
        let range = asked.blocks_outward();
        let content = if asked.is_block_aligned() {
            Content::Whole(bytes)
        } else {
            Content::Partial {
                skip: to_usize(asked.offset().0 - range.offset().0),
                bytes,
            }
        };
        Part { range, content }
    })
}

/// Cuts a request for zeroes: partial first and last blocks become small writes of zero bytes, the
/// whole blocks between stay "zeroes".
pub(super) fn zero_parts(
    offset: ByteOffset,
    len: ByteLen,
    may_unmap: bool,
) -> impl Iterator<Item = Part> {
    let (start, end) = (offset.0, offset.0 + len.0);
    let whole_start = start.next_multiple_of(BLOCK_LEN).min(end);
    let whole_end = (end - end % BLOCK_LEN).max(whole_start);
    write_parts(offset, zeroes(whole_start - start))
        .chain(whole_zero_parts(whole_start, whole_end, may_unmap))
        .chain(write_parts(ByteOffset(whole_end), zeroes(end - whole_end)))
}

/// Cuts a trim: whole blocks only (a trim is a hint and may round inwards), as zeroes, so that both
/// replicas read the same afterwards (interleavings F17).
pub(super) fn trim_parts(offset: ByteOffset, len: ByteLen) -> impl Iterator<Item = Part> {
    let whole_start = offset.0.next_multiple_of(BLOCK_LEN);
    let end = offset.0 + len.0;
    whole_zero_parts(whole_start, end - end % BLOCK_LEN, true)
}

fn whole_zero_parts(start: u64, end: u64, may_unmap: bool) -> impl Iterator<Item = Part> {
    cuts(start, end, ZERO_PART_LEN_MAX).map(move |asked| Part {
        range: asked.blocks_outward(),
        content: Content::Zeroes { may_unmap },
    })
}

/// The bytes from `start` to `end`, cut at multiples of `len_max`.
fn cuts(start: u64, end: u64, len_max: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = start;
    core::iter::from_fn(move || {
        let from = at;
        at = end.min((from / len_max + 1) * len_max);
        (from < end).then(|| byte_range(from, at))
    })
}

/// The blocks that must be read before a partial part can be written: the first, the last, or both.
pub(super) fn edges(range: BlockRange, skip: usize, len: usize) -> [Option<BlockIndex>; 2] {
    let last = BlockIndex(range.end().0 - 1);
    let ends_inside = !(skip as u64 + len as u64).is_multiple_of(BLOCK_LEN);
    let head = (skip > 0).then_some(range.start());
    let tail = (ends_inside && (head.is_none() || last != range.start())).then_some(last);
    [head, tail]
}

/// The whole blocks of a partial part: `edge` blocks as read, `bytes` laid over them from `skip`.
pub(super) fn merge(
    range: BlockRange,
    skip: usize,
    bytes: &[u8],
    edge: [Option<&Payload>; 2],
) -> Payload {
    let mut whole = vec![0; to_usize(range.len().0)];
    let block = to_usize(BLOCK_LEN);
    if let Some(head) = edge[0] {
        whole[..block].copy_from_slice(head);
    }
    if let Some(tail) = edge[1] {
        let at = whole.len() - block;
        whole[at..].copy_from_slice(tail);
    }
    whole[skip..skip + bytes.len()].copy_from_slice(bytes);
    whole.into()
}

/// The bytes `asked` out of the blocks `range` that were read for it.
pub(super) fn cut(asked: ByteRange, range: BlockRange, read: &Payload) -> Payload {
    let start = to_usize(asked.offset().0 - range.offset().0);
    read.slice(start, start + to_usize(asked.len().0))
}

/// Pieces of at most `max` blocks that cover `range`, in order.
pub(super) fn pieces(range: BlockRange, max: u64) -> impl Iterator<Item = BlockRange> {
    (range.start().0..range.end().0)
        .step_by(to_usize(max))
        .map(move |start| {
            BlockRange::new(
                BlockIndex(start),
                BlockCount(max.min(range.end().0 - start)),
            )
        })
}

fn byte_range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteLen(end - start)).expect("start + (end - start) = end")
}

fn zeroes(len: u64) -> Payload {
    vec![0; to_usize(len)].into()
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("lengths of requests fit in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Applies parts to an image the way the write path does: the dumb oracle's counterpart.
    fn apply(image: &mut [u8], parts: &[Part]) {
        for part in parts {
            let start = to_usize(part.range.offset().0);
            let stop = start + to_usize(part.range.len().0);
            match &part.content {
                Content::Whole(bytes) => image[start..stop].copy_from_slice(bytes),
                Content::AsItIs => {}
                Content::Zeroes { .. } => image[start..stop].fill(0),
                Content::Partial { skip, bytes } => {
                    let read = |block: BlockIndex| {
                        let at = to_usize(block.0 * BLOCK_LEN);
                        Payload::from(image[at..at + to_usize(BLOCK_LEN)].to_vec())
                    };
                    let edge = edges(part.range, *skip, bytes.len()).map(|b| b.map(read));
                    let edge = [edge[0].as_ref(), edge[1].as_ref()];
                    let whole = merge(part.range, *skip, bytes, edge);
                    image[start..stop].copy_from_slice(&whole);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn parts_do_to_an_image_what_the_request_says(
            offset in 0u64..5 << 20, len in 0u64..3 << 20, seed in any::<u8>(), zero in any::<bool>()
        ) {
            let mut image: Vec<u8> = (0u64..8 << 20).map(|i| i.to_le_bytes()[0] | 1).collect();
            let mut expected = image.clone();
            let (start, end) = (to_usize(offset), to_usize(offset + len));
            let parts = if zero {
                expected[start..end].fill(0);
                zero_parts(ByteOffset(offset), ByteLen(len), true).collect::<Vec<_>>()
            } else {
                let bytes: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[0] ^ seed).collect();
                expected[start..end].copy_from_slice(&bytes);
                write_parts(ByteOffset(offset), bytes.into()).collect()
            };
            apply(&mut image, &parts);
            prop_assert!(image == expected);
        }
    }

    #[test]
    fn a_trim_smaller_than_a_block_is_nothing() {
        assert_eq!(trim_parts(ByteOffset(10), ByteLen(4090)).count(), 0);
        assert_eq!(trim_parts(ByteOffset(1), ByteLen(8191)).count(), 1);
    }
}
