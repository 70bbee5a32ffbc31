//! The unit of all metadata I/O: a 4 KiB page with its place, and how its checksum is made.

use crate::types::{ByteOffset, Payload};

/// Bytes in a metadata page: superblock copy, activity-log transaction or bitmap page.
pub const PAGE_LEN: usize = 4096;

/// A page's bytes.
pub type PageBytes = [u8; PAGE_LEN];

/// What a page holds that was never written since `create-md` zeroed the area.
pub(crate) const ZERO_PAGE: PageBytes = [0; PAGE_LEN];

/// One metadata page to write: whole 4 KiB, 4 KiB-aligned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaPage {
    /// Where in the metadata area.
    pub offset: ByteOffset,
    /// 4096 bytes.
    pub bytes: Payload,
}

impl MetaPage {
    pub(crate) fn new(offset: ByteOffset, bytes: &PageBytes) -> Self {
        Self {
            offset,
            bytes: Payload::from(bytes.to_vec()),
        }
    }
}

/// Checksum of a page whose own checksum field, 4 bytes at `crc_at`, counts as zero: any torn mix
/// of two versions of the page fails it.
pub(crate) fn checksum(page: &PageBytes, crc_at: usize) -> u32 {
    let before = crc32c::crc32c(&page[..crc_at]);
    let field = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(field, &page[crc_at + 4..])
}

/// Writes the checksum into its field.
pub(crate) fn seal(page: &mut PageBytes, crc_at: usize) {
    let crc = checksum(page, crc_at);
    page[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the checksum in the page is that of the page.
pub(crate) fn is_sealed(page: &PageBytes, crc_at: usize) -> bool {
    page[crc_at..crc_at + 4] == checksum(page, crc_at).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_anywhere_breaks_the_seal() {
        let mut page = ZERO_PAGE;
        page[100] = 7;
        seal(&mut page, 12);
        assert!(is_sealed(&page, 12));
        for at in [0, 11, 12, 15, 16, 100, PAGE_LEN - 1] {
            page[at] ^= 1;
            assert!(!is_sealed(&page, 12), "byte {at}");
            page[at] ^= 1;
        }
    }
}
