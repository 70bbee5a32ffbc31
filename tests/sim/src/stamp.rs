//! Self-identifying data: each 512-byte cell of a write names the write and the place.
//!
//! A cell that is torn, misplaced or mixed is therefore recognised for what it is, not only as
//! "wrong".

use replicator::types::Payload;

/// Bytes in a cell: the sector, which is also the unit a power cut tears at.
pub const CELL_LEN: usize = 512;
/// Cells in a 4 KiB block.
pub const CELLS_PER_BLOCK: u64 = 8;

/// Names one write of the workload; 0 is the initial content (zeroes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteNr(pub u32);

/// What a cell holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Zeroes: never written, zeroed or trimmed.
    Zero,
    /// All of this write's data for this cell.
    Written(WriteNr),
    /// None of the above: torn inside a sector, or another cell's data.
    Garbage,
}

fn word(write: WriteNr, cell: u64, index: u64) -> u64 {
    (u64::from(write.0) << 32 | cell).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The data `write` puts into `count` cells from `first` on.
#[must_use]
pub fn fill(write: WriteNr, first: u64, count: u64) -> Payload {
    let len = usize::try_from(count).expect("a request fits in memory") * CELL_LEN;
    let mut bytes = Vec::with_capacity(len);
    for cell in first..first + count {
        for index in 0..(CELL_LEN as u64 / 8) {
            bytes.extend_from_slice(&word(write, cell, index).to_le_bytes());
        }
    }
    Payload::from(bytes)
}

/// What one cell's bytes are.
///
/// # Panics
/// If `bytes` is not one cell long.
#[must_use]
pub fn identify(cell: u64, bytes: &[u8]) -> Value {
    assert_eq!(bytes.len(), CELL_LEN);
    let mut words = bytes
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes")));
    let first = words.next().expect("a cell has words");
    if first == 0 {
        return if words.all(|word| word == 0) {
            Value::Zero
        } else {
            Value::Garbage
        };
    }
    let write = WriteNr(u32::try_from(first >> 32).expect("the upper half"));
    let whole = first & 0xffff_ffff == cell
        && words
            .zip(1..)
            .all(|(found, index)| found == word(write, cell, index));
    if whole {
        Value::Written(write)
    } else {
        Value::Garbage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_names_its_write_and_its_place_and_nothing_else_does() {
        let data = fill(WriteNr(7), 40, 2);
        assert_eq!(identify(41, &data[CELL_LEN..]), Value::Written(WriteNr(7)));
        assert_eq!(identify(40, &data[CELL_LEN..]), Value::Garbage);
        assert_eq!(identify(3, &[0; CELL_LEN]), Value::Zero);
        let mut torn = data[..CELL_LEN].to_vec();
        torn[CELL_LEN / 2..].fill(0);
        assert_eq!(identify(40, &torn), Value::Garbage);
    }
}
