//! Decisions on disk: lines of text with a checksum, in two files of bounded length.
//!
//! ```text
//! 5f3a90c1 {"resource":"vm-web","unix_millis":1795291451402,"kind":"view",…}
//! ```
//!
//! The checksum is the crc32c of what follows it and one space. It is a record for people, on which
//! nothing rests: a line that is damaged, cut off or of another version is left out when it is read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use replicator::admin::HistoryEntry;
use serde::{Deserialize, Serialize};

/// The file being written, under the state directory.
const NAME: &str = "history.log";

/// The one before it.
const OLD_NAME: &str = "history.log.1";

/// A file is put aside when it is longer: both together are some thousand decisions.
const FILE_LEN_MAX: u64 = 512 * 1024;

/// Longest line that is read.
const LINE_LEN_MAX: usize = 8 * 1024;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Name of the resource.
    pub(super) resource: String,
    /// What was decided.
    #[serde(flatten)]
    pub(super) entry: HistoryEntry,
}

/// The files, opened to append.
#[derive(Debug)]
pub(super) struct HistoryFile {
    dir: PathBuf,
    file: File,
    len: u64,
}

impl HistoryFile {
    /// Opens or makes the file, and everything readable in both, oldest first.
    ///
    /// # Errors
    /// If the file cannot be made. One that cannot be read is as good as empty.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Vec<Line>)> {
        let mut lines = read_lines(&dir.join(OLD_NAME)).unwrap_or_default();
        lines.extend(read_lines(&dir.join(NAME)).unwrap_or_default());
        let mut history = Self::begin(dir)?;
        // What a crash cut off must not swallow the next line.
        if history.len > 0 {
            history.write(b"\n")?;
        }
        Ok((history, lines))
    }

    fn begin(dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).open(dir.join(NAME))?;
        let len = file.metadata()?.len();
        let dir = dir.to_owned();
        Ok(Self { dir, file, len })
    }

    /// Appends lines and makes them durable.
    ///
    /// # Errors
    /// If the disk is full or broken.
    pub(super) fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            bytes.extend(encode(line)?);
        }
        self.write(&bytes)?;
        self.file.sync_data()?;
        if self.len > FILE_LEN_MAX {
            fs::rename(self.dir.join(NAME), self.dir.join(OLD_NAME))?;
            *self = Self::begin(&self.dir)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let text = serde_json::to_string(line)?;
    Ok(format!("{:08x} {text}\n", crc32c::crc32c(text.as_bytes())).into_bytes())
}

fn decode(line: &[u8]) -> Option<Line> {
    if line.len() > LINE_LEN_MAX {
        return None;
    }
    let text = str::from_utf8(line).ok()?;
    let (sum, text) = text.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == crc32c::crc32c(text.as_bytes())).then_some(())?;
    serde_json::from_str(text).ok()
}

fn read_lines(path: &Path) -> io::Result<Vec<Line>> {
    let mut bytes = Vec::new();
    // Twice the bound: one more batch of lines went in before it was put aside.
    File::open(path)?
        .take(2 * FILE_LEN_MAX)
        .read_to_end(&mut bytes)?;
    let lines = bytes.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(decode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestDir(PathBuf);

    impl TestDir {
        fn new(name: &str) -> Self {
            let name = format!("twinblk-history-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn line(nr: u64) -> Line {
        Line {
            resource: "vm-web".to_owned(),
            entry: HistoryEntry {
                unix_millis: nr,
                kind: "view".to_owned(),
                view: Some(nr),
                by: Some("kvm-a".to_owned()),
                text: format!("decision {nr}, \"quoted\"\nand broken"),
            },
        }
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let dir = TestDir::new("again");
        for nr in 0..3 {
            let (mut history, before) = HistoryFile::open(&dir.0).unwrap();
            assert_eq!(before, (0..nr).map(line).collect::<Vec<_>>());
            history.append(&[line(nr)]).unwrap();
        }
    }

    /// Every way a crash can cut the file, and every single damaged byte: the other lines are read,
    /// and what is appended afterwards is, too.
    #[test]
    fn a_damaged_or_cut_line_costs_only_itself() {
        let dir = TestDir::new("damaged");
        let whole: Vec<u8> = (0..3).flat_map(|nr| encode(&line(nr)).unwrap()).collect();
        let path = dir.0.join(NAME);
        let check = |bytes: &[u8], least: usize| {
            fs::write(&path, bytes).unwrap();
            let (mut history, before) = HistoryFile::open(&dir.0).unwrap();
            assert!(before.len() >= least, "{before:?}");
            assert!(
                before
                    .iter()
                    .all(|it| (0..3).map(line).any(|known| known == *it))
            );
            history.append(&[line(7)]).unwrap();
            drop(history);
            let (_, after) = HistoryFile::open(&dir.0).unwrap();
            assert_eq!(after.last(), Some(&line(7)));
            assert_eq!(after.len(), before.len() + 1);
        };
        for len in (0..whole.len()).step_by(7) {
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            check(&whole[..len], lines);
        }
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            check(&bytes, 1);
        }
    }

    #[test]
    fn the_files_do_not_grow_for_ever_and_the_newest_stay() {
        let dir = TestDir::new("grows");
        let (mut history, _) = HistoryFile::open(&dir.0).unwrap();
        for batch in 0..100 {
            let lines: Vec<_> = (batch * 100..batch * 100 + 100).map(line).collect();
            history.append(&lines).unwrap();
        }
        for name in [NAME, OLD_NAME] {
            let len = fs::metadata(dir.0.join(name)).unwrap().len();
            assert!(len < FILE_LEN_MAX + 100 * 200, "{name}: {len}");
        }
        let (_, lines) = HistoryFile::open(&dir.0).unwrap();
        assert_eq!(lines.last(), Some(&line(9_999)));
        let first = lines[0].entry.unix_millis;
        let count = u64::try_from(lines.len()).unwrap();
        assert_eq!(first + count, 10_000, "without gaps");
    }
}
