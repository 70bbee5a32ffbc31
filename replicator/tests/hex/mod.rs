//! Bytes as text for the golden fixtures: a title, then rows of 32 bytes with their offset; rows
//! like the one before are left out.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;
use std::fmt::Write as _;

const ROW: usize = 32;

/// The text of one structure.
pub(crate) fn block(title: &str, bytes: &[u8]) -> String {
    let mut text = format!("# {title} ({} bytes)\n", bytes.len());
    let mut before: &[u8] = &[];
    for (row, bytes) in bytes.chunks(ROW).enumerate() {
        if bytes != before {
            write!(text, "{:04x}:", row * ROW).expect("strings take all");
            for word in bytes.chunks(4) {
                text.push(' ');
                for byte in word {
                    write!(text, "{byte:02x}").expect("strings take all");
                }
            }
            text.push('\n');
        }
        before = bytes;
    }
    text
}

/// The structures of a fixture, by title.
pub(crate) fn read(text: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for part in text.split("# ").skip(1) {
        let (head, rows) = part.split_once('\n').expect("a title line");
        let (title, len) = head.rsplit_once(" (").expect("a length");
        let len: usize = len
            .trim_end_matches(" bytes)")
            .parse()
            .expect("a length in bytes");
        found.insert(title.to_owned(), read_rows(rows, len));
    }
    found
}

fn read_rows(rows: &str, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for row in rows.lines() {
        let (offset, digits) = row.split_once(':').expect("an offset");
        let offset = usize::from_str_radix(offset, 16).expect("a hexadecimal offset");
        repeat_last_row(&mut bytes, offset);
        let digits: String = digits.split_whitespace().collect();
        for at in (0..digits.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits"));
        }
    }
    repeat_last_row(&mut bytes, len);
    bytes
}

fn repeat_last_row(bytes: &mut Vec<u8>, until: usize) {
    while bytes.len() < until {
        bytes.extend_from_within(bytes.len() - ROW..);
    }
}

/// Fails with the new text and the first difference.
pub(crate) fn assert_same(now: &str, frozen: &str, path: &str) {
    let mut title = "";
    for (line, (new, old)) in now.lines().zip(frozen.lines()).enumerate() {
        if new.starts_with('#') {
            title = new;
        }
        let line = line + 1;
        assert_eq!(new, old, "{path}:{line}, in {title}; all bytes now:\n{now}");
    }
    assert_eq!(now, frozen, "{path} has fewer or more lines");
}
