//! The format documents say what the code does: every table of fields, constants and numbers in
//! docs/on-disk-format.md and docs/protocol.md is compared with the code it describes.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::Path;

use replicator::meta::{activity_log, bitmap, layout, page};
use replicator::protocol::{Message, codec, frame, preamble};
use replicator::types::fixed::FieldLayout;
use replicator::types::{BLOCK_LEN, EXTENT_LEN};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    std::fs::read_to_string(path).expect("the document is in docs/")
}

/// The rows of all tables whose first heading cell is `heading`, one list for each table.
fn tables(text: &str, heading: &str) -> Vec<Vec<Vec<String>>> {
    let mut found: Vec<Vec<Vec<String>>> = Vec::new();
    let mut wanted = false;
    let mut in_table = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix('|') else {
            in_table = false;
            continue;
        };
        let cells: Vec<String> = row
            .trim_end_matches('|')
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect();
        if !in_table {
            in_table = true;
            wanted = cells[0] == heading;
            if wanted {
                found.push(Vec::new());
            }
        } else if wanted && !cells[0].starts_with("---") {
            found.last_mut().expect("pushed above").push(cells);
        }
    }
    found
}

/// Tables with an offset column, as (name, offset, length).
fn field_tables(text: &str) -> Vec<Vec<(String, usize, usize)>> {
    let number = |cell: &String| cell.parse::<usize>().ok();
    let row =
        |cells: &Vec<String>| Some((cells[0].clone(), number(&cells[1])?, number(&cells[2])?));
    tables(text, "field")
        .iter()
        .filter_map(|table| table.iter().map(row).collect())
        .collect()
}

fn assert_fields(text: &str, layouts: &[(&str, &[FieldLayout])]) {
    let documented = field_tables(text);
    assert_eq!(documented.len(), layouts.len(), "one table for each layout");
    for (table, (name, fields)) in documented.iter().zip(layouts) {
        let in_code: Vec<(String, usize, usize)> = fields
            .iter()
            .map(|field| (field.name.to_owned(), field.offset, field.len))
            .collect();
        assert_eq!(*table, in_code, "{name}");
    }
}

fn assert_constants(text: &str, constants: &[(&str, u64)]) {
    let documented: Vec<(String, u64)> = tables(text, "constant")[0]
        .iter()
        .map(|row| (row[0].clone(), row[1].parse().expect("a number")))
        .collect();
    let in_code: Vec<(String, u64)> = constants
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect();
    assert_eq!(documented, in_code);
}

/// First two columns of the only table with this heading.
fn numbered(text: &str, heading: &str) -> Vec<(u32, String)> {
    tables(text, heading)[0]
        .iter()
        .map(|row| (row[0].parse().expect("a number"), row[1].clone()))
        .collect()
}

#[test]
fn the_metadata_document_has_the_codes_offsets_and_constants() {
    let text = document("on-disk-format.md");
    assert_fields(&text, &replicator::meta::FIXED_LAYOUTS);
    assert_constants(
        &text,
        &[
            ("PAGE_LEN", page::PAGE_LEN as u64),
            ("BLOCK_LEN", BLOCK_LEN),
            ("EXTENT_LEN", EXTENT_LEN),
            ("CHANGES_MAX", activity_log::CHANGES_MAX as u64),
            ("CONTEXT_SLOTS", activity_log::CONTEXT_SLOTS.into()),
            ("BITS_PER_PAGE", bitmap::BITS_PER_PAGE),
            ("SLOTS_MAX", activity_log::SLOTS_MAX.into()),
            ("SLOTS_DEFAULT", activity_log::SLOTS_DEFAULT.into()),
            ("VOLUME_BLOCKS_MAX", layout::VOLUME_BLOCKS_MAX.0),
        ],
    );
    let places: Vec<u64> = tables(&text, "what")[0]
        .iter()
        .filter_map(|row| row[1].parse().ok())
        .collect();
    let [first, second] = layout::SUPERBLOCK_OFFSETS;
    let in_code = [
        first.0,
        layout::ACTIVITY_LOG_OFFSET.0,
        second.0,
        layout::BITMAP_OFFSET.0,
    ];
    assert_eq!(places, in_code);
}

#[test]
fn the_protocol_document_has_the_codes_offsets_constants_and_numbers() {
    let text = document("protocol.md");
    assert_fields(&text, &replicator::protocol::FIXED_LAYOUTS);
    assert_constants(
        &text,
        &[
            ("HEADER_LEN", frame::HEADER_LEN as u64),
            ("MAX_PAYLOAD", Message::MAX_PAYLOAD as u64),
            ("MAX_BITMAP_CHUNK", Message::MAX_BITMAP_CHUNK as u64),
            ("CONTROL_LEN_MAX", frame::CONTROL_LEN_MAX as u64),
            ("DIGEST_LEN", frame::DIGEST_LEN as u64),
            ("PROTOCOL_VERSION", frame::PROTOCOL_VERSION.into()),
        ],
    );
    let kinds: Vec<(u32, String)> = frame::kind_numbers()
        .map(|(number, kind)| (number.into(), format!("{kind:?}")))
        .collect();
    assert_eq!(numbered(&text, "kind"), kinds);
    let statuses =
        preamble::STATUSES.map(|(number, status)| (number.into(), format!("{status:?}")));
    assert_eq!(numbered(&text, "status"), statuses);
    let refusals = codec::REFUSALS.map(|(code, refusal)| (code, format!("{refusal:?}")));
    assert_eq!(numbered(&text, "reason"), refusals);
}
