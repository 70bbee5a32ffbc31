//! The writer's journal: one text line for each thing the writer did or learnt, in order.
//!
//! ```text
//! w SEQUENCE BLOCK NODE     a write was sent to a node
//! a SEQUENCE NODE           it was acknowledged
//! e SEQUENCE WORDS          it was answered with an error
//! r BLOCK FLOOR SEEN NODE   a read, sent when FLOOR was the last acknowledged write of the block,
//!                           was answered with the content of write SEEN (0: blank, `-`: damaged)
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A write was sent.
    Sent {
        sequence: u64,
        block: u64,
        node: usize,
    },
    /// It was acknowledged.
    Acknowledged { sequence: u64, node: usize },
    /// It was answered with an error.
    Failed { sequence: u64, words: String },
    /// A read was answered; `seen` is `None` for a damaged block.
    Read {
        block: u64,
        floor: u64,
        seen: Option<u64>,
        node: usize,
    },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent {
                sequence,
                block,
                node,
            } => write!(f, "w {sequence} {block} {node}"),
            Self::Acknowledged { sequence, node } => write!(f, "a {sequence} {node}"),
            Self::Failed { sequence, words } => write!(f, "e {sequence} {words}"),
            Self::Read {
                block,
                floor,
                seen: Some(seen),
                node,
            } => {
                write!(f, "r {block} {floor} {seen} {node}")
            }
            Self::Read {
                block,
                floor,
                seen: None,
                node,
            } => write!(f, "r {block} {floor} - {node}"),
        }
    }
}

impl Entry {
    /// The entry a line says; `None` if it says none.
    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| words.get(index)?.parse::<u64>().ok();
        let node = |index: usize| words.get(index)?.parse::<usize>().ok();
        Some(match (kind, words.len()) {
            ("w", 3) => Self::Sent {
                sequence: number(0)?,
                block: number(1)?,
                node: node(2)?,
            },
            ("a", 2) => Self::Acknowledged {
                sequence: number(0)?,
                node: node(1)?,
            },
            ("e", _) => Self::Failed {
                sequence: number(0)?,
                words: words[1..].join(" "),
            },
            ("r", 4) => Self::Read {
                block: number(0)?,
                floor: number(1)?,
                seen: if words[2] == "-" {
                    None
                } else {
                    Some(number(2)?)
                },
                node: node(3)?,
            },
            _ => return None,
        })
    }
}

/// A journal being written. What was noted is in the file at the latest after [`Journal::close`];
/// the writer outlives every fault of the demo, so nothing needs to be durable earlier.
pub(super) struct Journal {
    file: BufWriter<File>,
}

impl Journal {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::new(File::create_new(path)?),
        })
    }

    pub(super) fn note(&mut self, entry: &Entry) -> io::Result<()> {
        writeln!(self.file, "{entry}")
    }

    pub(super) fn close(mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Every entry of a journal; a line that is none is an error, since it could hide a loss.
pub(super) fn read(path: &Path) -> io::Result<Vec<Entry>> {
    BufReader::new(File::open(path)?)
        .lines()
        .map(|line| {
            let line = line?;
            Entry::parse(&line).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("not a journal line: {line}"),
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_reads_back_as_written() {
        for entry in [
            Entry::Sent {
                sequence: 1,
                block: 2,
                node: 0,
            },
            Entry::Acknowledged {
                sequence: u64::MAX,
                node: 1,
            },
            Entry::Failed {
                sequence: 3,
                words: "input/output error".to_owned(),
            },
            Entry::Read {
                block: 9,
                floor: 3,
                seen: Some(4),
                node: 1,
            },
            Entry::Read {
                block: 9,
                floor: 3,
                seen: None,
                node: 0,
            },
        ] {
            assert_eq!(Entry::parse(&entry.to_string()), Some(entry));
        }
    }

    #[test]
    fn garbage_is_no_entry() {
        for line in ["", "w", "w 1", "w 1 2 3 4", "a x 1", "r 1 2 3", "z 1 2"] {
            assert_eq!(Entry::parse(line), None, "{line}");
        }
    }
}
