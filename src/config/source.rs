//! Files and places in them.

use std::ops::Range;

/// What a file may define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// `twinblk.toml`: everything.
    Cluster,
    /// `resources.d/*.toml`: resources only.
    Resources,
}

/// One configuration file, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// What it may define.
    pub kind: FileKind,
    /// As shown to people.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A stretch of bytes of one file: what a mistake points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    /// Index of the file.
    pub(super) file: usize,
    /// First byte.
    pub(super) start: usize,
    /// One past the last byte.
    pub(super) end: usize,
}

impl Span {
    pub(super) fn new(file: usize, range: Range<usize>) -> Self {
        Self {
            file,
            start: range.start,
            end: range.end,
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// A place as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The whole line, without its end, tabs as blanks.
    pub text: String,
    /// Characters to mark, at least 1.
    pub marked: usize,
}

impl Place {
    /// The first line of `start..end` in `file`. Any numbers are allowed: what lies outside the
    /// text is pulled in, so that a wrong span cannot panic.
    #[must_use]
    pub(super) fn of(file: &SourceFile, start: usize, end: usize) -> Self {
        let text = file.text.as_str();
        let start = floor_char_boundary(text, start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..]
            .find('\n')
            .map_or(text.len(), |length| start + length);
        let end = floor_char_boundary(text, end.clamp(start, line_end));
        Self {
            path: file.path.clone(),
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: text[line_start..line_end].trim_end().replace('\t', " "),
            marked: text[start..end].trim_end().chars().count().max(1),
        }
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_characters_and_stays_on_its_line() {
        let file = SourceFile {
            kind: FileKind::Cluster,
            path: "x".into(),
            text: "a = 1\n\tname = \"äöü\" # ü\nlast".into(),
        };
        let at = file.text.find("äöü").unwrap();
        let place = Place::of(&file, at, usize::MAX);
        assert_eq!((place.line, place.column, place.marked), (2, 10, 8));
        assert_eq!(place.text, " name = \"äöü\" # ü");
        assert_eq!(Place::of(&file, at + 1, at + 3).column, 10);
        assert_eq!(Place::of(&file, usize::MAX, 0).line, 3);
    }
}
