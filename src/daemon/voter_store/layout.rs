//! Bytes of the voter store: pure, no files.
//!
//! The file is an array of entries. Entry 0 is the node's own record, entry `1 + n` the record of
//! the n-th resource this voter ever met. An entry is four sectors of 4 KiB: a generation with an
//! even sequence number lies in sectors 0 and 2, one with an odd number in sectors 1 and 3.
//!
//! ```text
//! entry    ┌ even, copy 0 ┬ odd, copy 0 ┬ even, copy 1 ┬ odd, copy 1 ┐
//! ```
//!
//! So a write never touches the newest acknowledged generation (a torn write costs nothing), and
//! one sector gone bad never makes an older generation look like the newest: a voter that rolled
//! back silently would break its promises (R11).

use thiserror::Error;

/// Bytes of one sector: at least the atomic unit of any disk below.
pub(super) const SECTOR_LEN: usize = 4096;
/// Sectors of an entry.
pub(super) const ENTRY_SECTORS: usize = 4;
/// Bytes of an entry.
pub(super) const ENTRY_LEN: usize = SECTOR_LEN * ENTRY_SECTORS;

const MAGIC: [u8; 8] = *b"TWBVOTER";
const AT_ENTRY: usize = MAGIC.len();
const AT_LEN: usize = AT_ENTRY + 4;
const AT_SEQUENCE: usize = AT_LEN + 4;
const AT_PAYLOAD: usize = AT_SEQUENCE + 8;
const AT_CRC: usize = SECTOR_LEN - 4;

/// Longest payload of an entry in bytes.
pub(super) const PAYLOAD_MAX: usize = AT_CRC - AT_PAYLOAD;

/// Newest generation of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    /// Grows by one with each write of the entry.
    pub(super) sequence: u64,
    /// What was recorded.
    pub(super) payload: Vec<u8>,
    /// Copies of any generation that did not check: worth a warning, not an error.
    pub(super) damaged_copies: usize,
}

/// Nothing in an entry can be read although something was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("entry {entry} has no readable copy")]
pub(super) struct EntryDamaged {
    /// Which.
    pub(super) entry: u32,
}

/// The sectors of an entry, in bytes from its start, that hold generation `sequence`.
pub(super) fn copies_of(sequence: u64) -> [usize; 2] {
    let first = usize::from(sequence % 2 == 1);
    [first * SECTOR_LEN, (first + 2) * SECTOR_LEN]
}

/// One sector. Fails never: payloads are made by this crate and `PAYLOAD_MAX` is asserted.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_MAX`].
pub(super) fn encode(entry: u32, sequence: u64, payload: &[u8]) -> Vec<u8> {
    assert!(
        payload.len() <= PAYLOAD_MAX,
        "voter record of {} bytes",
        payload.len()
    );
    let mut sector = Vec::with_capacity(SECTOR_LEN);
    sector.extend_from_slice(&MAGIC);
    sector.extend_from_slice(&entry.to_le_bytes());
    let len = u32::try_from(payload.len()).expect("at most PAYLOAD_MAX");
    sector.extend_from_slice(&len.to_le_bytes());
    sector.extend_from_slice(&sequence.to_le_bytes());
    sector.extend_from_slice(payload);
    sector.resize(AT_CRC, 0);
    let crc = crc32c::crc32c(&sector);
    sector.extend_from_slice(&crc.to_le_bytes());
    sector
}

/// What one sector holds.
#[derive(Debug, PartialEq, Eq)]
enum Sector<'a> {
    Blank,
    Damaged,
    Valid { sequence: u64, payload: &'a [u8] },
}

/// The newest generation of entry `entry`, `None` if it was never written. `bytes` may be short: a
/// file that ends early is blank there.
pub(super) fn decode(entry: u32, bytes: &[u8]) -> Result<Option<Generation>, EntryDamaged> {
    let mut newest: Option<(u64, &[u8])> = None;
    let mut damaged_copies = 0;
    for nr in 0..ENTRY_SECTORS {
        let start = (nr * SECTOR_LEN).min(bytes.len());
        let end = (start + SECTOR_LEN).min(bytes.len());
        match decode_sector(entry, nr, &bytes[start..end]) {
            Sector::Blank => {}
            Sector::Damaged => damaged_copies += 1,
            Sector::Valid { sequence, payload } => {
                if newest.is_none_or(|(known, _)| known < sequence) {
                    newest = Some((sequence, payload));
                }
            }
        }
    }
    match newest {
        Some((sequence, payload)) => Ok(Some(Generation {
            sequence,
            payload: payload.to_vec(),
            damaged_copies,
        })),
        None if damaged_copies == 0 => Ok(None),
        None => Err(EntryDamaged { entry }),
    }
}

fn decode_sector(entry: u32, nr: usize, bytes: &[u8]) -> Sector<'_> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Sector::Blank;
    }
    let checked = bytes.len() == SECTOR_LEN
        && bytes[..AT_ENTRY] == MAGIC
        && read_u32(bytes, AT_CRC) == crc32c::crc32c(&bytes[..AT_CRC])
        && read_u32(bytes, AT_ENTRY) == entry;
    if !checked {
        return Sector::Damaged;
    }
    let sequence =
        u64::from(read_u32(bytes, AT_SEQUENCE)) | u64::from(read_u32(bytes, AT_SEQUENCE + 4)) << 32;
    let len = usize::try_from(read_u32(bytes, AT_LEN)).unwrap_or(usize::MAX);
    if len > PAYLOAD_MAX || !copies_of(sequence).contains(&(nr * SECTOR_LEN)) {
        return Sector::Damaged;
    }
    Sector::Valid {
        sequence,
        payload: &bytes[AT_PAYLOAD..AT_PAYLOAD + len],
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_with(generations: &[(u64, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY_LEN];
        for (sequence, payload) in generations {
            for at in copies_of(*sequence) {
                bytes[at..at + SECTOR_LEN].copy_from_slice(&encode(3, *sequence, payload));
            }
        }
        bytes
    }

    #[test]
    fn the_layout_is_these_bytes() {
        let sector = encode(3, 0x0102, b"hi");
        assert_eq!(
            &sector[..26],
            b"TWBVOTER\x03\0\0\0\x02\0\0\0\x02\x01\0\0\0\0\0\0hi"
        );
        assert_eq!(sector.len(), SECTOR_LEN);
        assert_eq!(
            read_u32(&sector, AT_CRC),
            0x260c_44a4,
            "crc32c of the first 4092 bytes"
        );
    }

    #[test]
    fn the_document_has_the_same_numbers() {
        let document = include_str!("../../../docs/voter-store-format.md");
        let rows = [
            ("magic", 0, MAGIC.len()),
            ("entry", AT_ENTRY, 4),
            ("len", AT_LEN, 4),
            ("sequence", AT_SEQUENCE, 8),
            ("record", AT_PAYLOAD, PAYLOAD_MAX),
            ("crc", AT_CRC, 4),
        ];
        for (name, at, len) in rows {
            let row = format!("| `{name}` | {at} | {len} |");
            assert!(document.contains(&row), "{row}");
        }
        assert!(document.contains(&format!("entries of {ENTRY_LEN} bytes")));
        let record = crate::controller::VoterRecord::LEN;
        assert_eq!(
            record,
            1 + 1 + 9 + 9 + 116 + 116 + 8 + 16,
            "the table of the document"
        );
    }

    #[test]
    fn the_newest_of_two_generations_wins() {
        let bytes = entry_with(&[(4, b"old"), (5, b"new")]);
        assert_eq!(decode(3, &bytes).unwrap().unwrap().payload, b"new");
    }

    #[test]
    fn any_one_bad_sector_never_brings_the_older_generation_back() {
        for bad in 0..ENTRY_SECTORS {
            let mut bytes = entry_with(&[(4, b"old"), (5, b"new")]);
            bytes[bad * SECTOR_LEN + 20] ^= 0x40;
            let newest = decode(3, &bytes).unwrap().unwrap();
            assert_eq!(
                (newest.payload.as_slice(), newest.damaged_copies),
                (&b"new"[..], 1)
            );
        }
    }

    #[test]
    fn an_entry_without_a_readable_copy_is_an_error_and_not_blank() {
        let mut bytes = entry_with(&[(1, b"x")]);
        for nr in 0..ENTRY_SECTORS {
            bytes[nr * SECTOR_LEN] ^= 1;
        }
        assert_eq!(decode(3, &bytes), Err(EntryDamaged { entry: 3 }));
        assert_eq!(decode(3, &vec![0; ENTRY_LEN]), Ok(None));
        assert_eq!(decode(3, &[]), Ok(None));
    }

    #[test]
    fn a_sector_of_another_entry_is_no_copy_of_this_one() {
        let bytes = entry_with(&[(1, b"x")]);
        assert_eq!(decode(4, &bytes), Err(EntryDamaged { entry: 4 }));
    }

    #[test]
    fn every_cut_of_an_entry_is_read_without_a_panic() {
        let bytes = entry_with(&[(4, b"old"), (5, b"new")]);
        for len in 0..bytes.len() {
            let read = decode(3, &bytes[..len]);
            assert!(read.is_err() || read.is_ok_and(|it| it.is_none_or(|it| it.sequence >= 4)));
        }
    }
}
