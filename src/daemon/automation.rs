//! What an operator took from this node's own decisions, across restarts: one small file in the state
//! directory, replaced as a whole.
//!
//! ```text
//! twinblk-automation 1
//! standby
//! ```
//!
//! Invariant: what cannot be read is never taken for "nothing was taken": then maintenance is on, and
//! `status` says so.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::controller::Automation;

/// The file, under the state directory.
const NAME: &str = "automation";

/// Its first line.
const HEAD: &str = "twinblk-automation 1";

/// Longest file that is read: a few words.
const LEN_MAX: u64 = 4096;

const STANDBY: &str = "standby";
const MAINTENANCE: &str = "maintenance";

/// The state and its file.
#[derive(Debug)]
pub(super) struct AutomationFile {
    /// `None`: kept in memory alone.
    dir: Option<PathBuf>,
    now: Mutex<Automation>,
}

impl AutomationFile {
    /// What the file says; none is as good as an empty one.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join(NAME);
        let now = match read(&path) {
            Ok(text) => parse(&text).unwrap_or_else(|| distrust(&path, "it is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Automation::default(),
            Err(error) => distrust(&path, &error.to_string()),
        };
        Self {
            dir: Some(dir.to_owned()),
            now: Mutex::new(now),
        }
    }

    /// Without a file.
    pub(super) fn in_memory() -> Self {
        Self {
            dir: None,
            now: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Automation {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the change durable, then `told` what it is now. Whether anything changed.
    ///
    /// # Errors
    /// If it could not be made durable; then nothing changed.
    pub(super) fn change(
        &self,
        change: impl FnOnce(&mut Automation),
        told: impl FnOnce(Automation),
    ) -> io::Result<bool> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = *now;
        change(&mut next);
        if next == *now {
            return Ok(false);
        }
        if let Some(dir) = &self.dir {
            write(dir, &text(next))?;
        }
        *now = next;
        // Still held: two changes are told in the order in which they were made.
        told(next);
        Ok(true)
    }
}

fn distrust(path: &Path, why: &str) -> Automation {
    tracing::error!(
        "{}: {why}: maintenance is on until `twinadm maintenance off`",
        path.display()
    );
    Automation {
        maintenance: true,
        ..Automation::default()
    }
}

fn text(automation: Automation) -> String {
    let mut text = format!("{HEAD}\n");
    for (word, on) in [
        (STANDBY, automation.standby),
        (MAINTENANCE, automation.maintenance),
    ] {
        if on {
            text += word;
            text.push('\n');
        }
    }
    text
}

fn parse(text: &str) -> Option<Automation> {
    let mut automation = Automation::default();
    let mut lines = text.strip_suffix('\n')?.split('\n');
    if lines.next() != Some(HEAD) {
        return None;
    }
    for line in lines {
        match line {
            STANDBY => automation.standby = true,
            MAINTENANCE => automation.maintenance = true,
            _ => return None,
        }
    }
    Some(automation)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Under another name first, so that a crash leaves the old file or the new one.
fn write(dir: &Path, text: &str) -> io::Result<()> {
    let fresh = dir.join(format!("{NAME}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestDir(PathBuf);

    impl TestDir {
        fn new(name: &str) -> Self {
            let name = format!("twinblk-automation-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn all() -> [Automation; 4] {
        [(false, false), (true, false), (false, true), (true, true)].map(
            |(standby, maintenance)| Automation {
                standby,
                maintenance,
            },
        )
    }

    #[test]
    fn what_was_taken_is_taken_after_a_restart() {
        let dir = TestDir::new("kept");
        assert_eq!(AutomationFile::open(&dir.0).now(), Automation::default());
        for wanted in all().into_iter().chain(all().into_iter().rev()) {
            let file = AutomationFile::open(&dir.0);
            let differs = file.now() != wanted;
            let mut told = None;
            let changed = file.change(|now| *now = wanted, |now| told = Some(now));
            assert_eq!(changed.unwrap(), differs);
            assert_eq!(told, differs.then_some(wanted));
            assert_eq!(AutomationFile::open(&dir.0).now(), wanted);
        }
    }

    #[test]
    fn every_state_reads_as_it_was_written_and_nothing_else_reads() {
        for wanted in all() {
            let whole = text(wanted);
            assert_eq!(parse(&whole), Some(wanted));
            // Cut off anywhere it is damaged, or says the first words only.
            for len in 0..whole.len() {
                let cut = parse(&whole[..len]);
                assert!(cut.is_none() || whole[..len].ends_with('\n'), "{cut:?}");
            }
        }
        for bad in ["", "\n", "standby\n", "twinblk-automation 1\nstand by\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_maintenance() {
        let dir = TestDir::new("damaged");
        fs::write(dir.0.join(NAME), b"twinblk-automation 1\nmainte").unwrap();
        let file = AutomationFile::open(&dir.0);
        assert!(file.now().maintenance);
        file.change(|now| now.maintenance = false, |_| {}).unwrap();
        assert_eq!(AutomationFile::open(&dir.0).now(), Automation::default());
    }

    #[test]
    fn what_could_not_be_written_did_not_happen() {
        let dir = TestDir::new("unwritable");
        let file = AutomationFile::open(&dir.0.join("gone"));
        let changed = file.change(|now| now.standby = true, |_| panic!("not told"));
        assert!(changed.is_err() && !file.now().standby);
    }
}
