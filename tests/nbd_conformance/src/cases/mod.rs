//! The cases, by what they are about. To add one: a line in a table and a function.

// SPDX-License-Identifier: MIT OR Apache-2.0

mod extended;
mod flush;
mod greeting;
mod info;
mod meta;
mod options;
mod read;
mod replies;
mod status;
mod tls;
mod write;
mod zeroes;

use crate::case::Case;

/// Every case, in the order of a connection's life.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        greeting::CASES,
        tls::CASES,
        options::CASES,
        info::CASES,
        meta::CASES,
        read::CASES,
        write::CASES,
        flush::CASES,
        zeroes::CASES,
        status::CASES,
        replies::CASES,
        extended::CASES,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_cites_a_heading() {
        let names: BTreeSet<&str> = all().map(|case| case.name).collect();
        assert_eq!(names.len(), all().count());
        for case in all() {
            assert!(
                !case.section.is_empty() && !case.says.is_empty(),
                "{}",
                case.name
            );
            let proper = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(case.name.chars().all(proper), "{}", case.name);
        }
    }

    #[test]
    fn the_documentation_says_how_many_there_are() {
        let styled: usize = all().map(|case| case.styles().count()).sum();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nbd.md");
        let text = std::fs::read_to_string(path).unwrap();
        let said = format!("{} sentences in {styled} cases", all().count());
        assert!(text.contains(&said), "docs/nbd.md should say: {said}");
    }
}
