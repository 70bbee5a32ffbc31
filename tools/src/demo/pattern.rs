//! What the writer puts into a block: a block that says which write made it, and whether all of it
//! is there.
//!
//! ```text
//! 0..8 magic | 8..16 run | 16..24 block | 24..32 sequence | 32..4064 filler | 4064..4096 digest
//! ```

use super::random::Random;

/// Bytes of a block.
pub(super) const BLOCK_LEN: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"twbdemo1");
const DIGEST_LEN: usize = 32;
const DIGEST_AT: usize = BLOCK_LEN - DIGEST_LEN;

/// Which write made a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Which run of the demo.
    pub(super) run: u64,
    /// Where it belongs, in blocks from the start.
    pub(super) block: u64,
    /// The write's number, from 1, in the order of issuing.
    pub(super) sequence: u64,
}

/// What a block turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeroes: never written.
    Blank,
    /// One whole write.
    Written(Stamp),
    /// Anything else: torn, foreign, damaged.
    Damaged,
}

/// The bytes of a write.
pub(super) fn encode(stamp: Stamp) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_LEN);
    for word in [MAGIC, stamp.run, stamp.block, stamp.sequence] {
        bytes.extend(word.to_le_bytes());
    }
    let mut filler = Random::new(stamp.run ^ stamp.block.rotate_left(32) ^ stamp.sequence);
    while bytes.len() < DIGEST_AT {
        bytes.extend(filler.next().to_le_bytes());
    }
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// What one block's bytes are.
pub(super) fn decode(bytes: &[u8]) -> Content {
    if bytes == [0; BLOCK_LEN] {
        return Content::Blank;
    }
    let word = |index: usize| {
        bytes
            .get(index * 8..index * 8 + 8)
            .and_then(|word| word.try_into().ok())
            .map(u64::from_le_bytes)
    };
    let (Some(MAGIC), Some(run), Some(block), Some(sequence)) =
        (word(0), word(1), word(2), word(3))
    else {
        return Content::Damaged;
    };
    match bytes.split_at_checked(DIGEST_AT) {
        Some((body, digest)) if blake3::hash(body).as_bytes() == digest => {
            Content::Written(Stamp {
                run,
                block,
                sequence,
            })
        }
        _ => Content::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: 7,
        block: 65_535,
        sequence: 12_345,
    };

    #[test]
    fn a_block_tells_which_write_made_it() {
        let bytes = encode(STAMP);
        assert_eq!(bytes.len(), BLOCK_LEN);
        assert_eq!(decode(&bytes), Content::Written(STAMP));
        assert_eq!(decode(&[0; BLOCK_LEN]), Content::Blank);
    }

    #[test]
    fn any_flipped_byte_is_damage() {
        let bytes = encode(STAMP);
        for at in (0..BLOCK_LEN).step_by(61) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_eq!(decode(&damaged), Content::Damaged, "byte {at}");
        }
    }

    #[test]
    fn half_of_one_write_and_half_of_another_is_damage() {
        let older = encode(STAMP);
        let newer = encode(Stamp {
            sequence: 12_346,
            ..STAMP
        });
        let torn = [&newer[..2048], &older[2048..]].concat();
        assert_eq!(decode(&torn), Content::Damaged);
        assert_eq!(decode(&older[..512]), Content::Damaged);
    }
}
