//! What this node must not forget of placement across restarts: orders by hand that hold against a
//! preference, and when resources went back. One small file in the state directory, replaced as a
//! whole.
//!
//! ```text
//! twinblk-placement 1
//! away vm-web 1795226400 user 0
//! here vm-db 1795226460 user 1000 on kvm-b
//! went vm-mail 1795226520
//! ```
//!
//! Invariant: what cannot be read is never taken for "nobody chose": then every resource stays where
//! it is until `up` is given.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::controller::placement::FAILBACKS_MAX;

/// The file, under the state directory.
const NAME: &str = "placement";

/// Its first line.
const HEAD: &str = "twinblk-placement 1";

/// Longest file that is read: a few short lines of each of the most resources a voter knows.
const LEN_MAX: u64 = 4 << 20;

/// What an order by hand chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Chosen {
    /// The other node, though this one is preferred.
    Away,
    /// This node, though the other one is preferred.
    Here,
}

/// Such an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Mark {
    pub(in crate::daemon) chosen: Chosen,
    /// When, in seconds since 1970-01-01 UTC.
    pub(in crate::daemon) unix_seconds: u64,
    /// Who gave it.
    pub(in crate::daemon) by: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// By resource.
    marks: BTreeMap<String, Mark>,
    /// When each went back, oldest first; [`FAILBACKS_MAX`] at most.
    went: BTreeMap<String, Vec<u64>>,
}

/// The file and what it says.
#[derive(Debug, Default)]
pub(in crate::daemon) struct PlacementFile {
    /// `None`: kept in memory alone.
    dir: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Known,
    /// The file was there and is damaged.
    distrusted: bool,
    /// Marks whose order is still being carried out: how things are says nothing about them.
    under_way: Vec<String>,
}

impl PlacementFile {
    /// What the file says; none is as good as an empty one.
    pub(in crate::daemon) fn open(dir: &Path) -> Self {
        let path = dir.join(NAME);
        let read = match read(&path) {
            Ok(text) => parse(&text).ok_or_else(|| "it is damaged".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = &read {
            tracing::error!(
                "{}: {why}: nothing goes back to its preferred node by itself until `twinadm up`",
                path.display()
            );
        }
        let state = State {
            distrusted: read.is_err(),
            known: read.unwrap_or_default(),
            under_way: Vec::new(),
        };
        Self {
            dir: Some(dir.to_owned()),
            state: Mutex::new(state),
        }
    }

    /// Without a file.
    pub(in crate::daemon) fn in_memory() -> Self {
        Self::default()
    }

    /// The order by hand that holds for `resource`, if one does.
    pub(in crate::daemon) fn mark(&self, resource: &str) -> Option<Mark> {
        let state = self.lock();
        let distrust = state.distrusted.then(|| Mark {
            chosen: Chosen::Here,
            unix_seconds: 0,
            by: "somebody: what was chosen is not known any more".to_owned(),
        });
        state.known.marks.get(resource).cloned().or(distrust)
    }

    /// Whether its order is still being carried out.
    pub(in crate::daemon) fn is_under_way(&self, resource: &str) -> bool {
        self.lock().under_way.iter().any(|it| it == resource)
    }

    /// An order by hand begins to be carried out: it holds from now on, durably.
    pub(in crate::daemon) fn begin(&self, resource: &str, mark: Mark) -> io::Result<()> {
        let mut state = self.lock();
        self.change(&mut state, |known| {
            known.marks.insert(resource.to_owned(), mark);
        })?;
        state.under_way.push(resource.to_owned());
        Ok(())
    }

    /// It ended; one that was refused leaves what held before.
    pub(in crate::daemon) fn end(&self, resource: &str, before: Option<Mark>, done: bool) {
        let mut state = self.lock();
        if let Some(at) = state.under_way.iter().position(|it| it == resource) {
            state.under_way.remove(at);
        }
        if !done {
            let restored = self.change(&mut state, |known| {
                match before.filter(|_| known.marks.contains_key(resource)) {
                    Some(mark) => drop(known.marks.insert(resource.to_owned(), mark)),
                    None => drop(known.marks.remove(resource)),
                }
            });
            if let Err(error) = restored {
                tracing::error!(%error, "{resource}: a refused order still keeps it where it is");
            }
        }
    }

    /// No order by hand holds any more. Whether one did.
    pub(in crate::daemon) fn clear(&self, resource: &str) -> io::Result<bool> {
        let mut state = self.lock();
        let held = state.distrusted || state.known.marks.contains_key(resource);
        if held {
            self.change(&mut state, |known| drop(known.marks.remove(resource)))?;
            state.distrusted = false;
        }
        Ok(held)
    }

    /// It went back then. What cannot be written counts in this life.
    pub(in crate::daemon) fn note_went(&self, resource: &str, unix_seconds: u64) {
        let mut state = self.lock();
        let note = |known: &mut Known| {
            let went = known.went.entry(resource.to_owned()).or_default();
            if went.len() >= FAILBACKS_MAX {
                went.remove(0);
            }
            went.push(unix_seconds);
        };
        if let Err(error) = self.change(&mut state, note) {
            tracing::warn!(%error, "{resource}: that it went back is kept in memory only");
        }
    }

    /// When it went back, as far as that was kept.
    pub(in crate::daemon) fn went(&self, resource: &str) -> Vec<u64> {
        self.lock()
            .known
            .went
            .get(resource)
            .cloned()
            .unwrap_or_default()
    }

    /// Durable first, unless the file is one that cannot be read.
    fn change(&self, state: &mut State, change: impl FnOnce(&mut Known)) -> io::Result<()> {
        let mut next = state.known.clone();
        change(&mut next);
        if next != state.known || state.distrusted {
            if let Some(dir) = &self.dir {
                write(dir, &text(&next))?;
            }
            state.known = next;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole values are put in: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(known: &Known) -> String {
    let mut text = format!("{HEAD}\n");
    for (resource, mark) in &known.marks {
        let word = match mark.chosen {
            Chosen::Away => "away",
            Chosen::Here => "here",
        };
        let Mark {
            unix_seconds, by, ..
        } = mark;
        text += &format!("{word} {resource} {unix_seconds} {by}\n");
    }
    for (resource, went) in &known.went {
        for unix_seconds in went {
            text += &format!("went {resource} {unix_seconds}\n");
        }
    }
    text
}

fn parse(text: &str) -> Option<Known> {
    let mut known = Known::default();
    let mut lines = text.strip_suffix('\n')?.split('\n');
    if lines.next() != Some(HEAD) {
        return None;
    }
    for line in lines {
        let mut words = line.splitn(4, ' ');
        let (word, resource) = (words.next()?, words.next()?.to_owned());
        let unix_seconds = words.next()?.parse().ok()?;
        let chosen = match (word, words.next()) {
            ("away", Some(by)) => Some((Chosen::Away, by)),
            ("here", Some(by)) => Some((Chosen::Here, by)),
            ("went", None) => None,
            _ => return None,
        };
        match chosen {
            Some((chosen, by)) => {
                let by = by.to_owned();
                let mark = Mark {
                    chosen,
                    unix_seconds,
                    by,
                };
                known.marks.insert(resource, mark);
            }
            None => {
                let went = known.went.entry(resource).or_default();
                if went.len() < FAILBACKS_MAX {
                    went.push(unix_seconds);
                }
            }
        }
    }
    Some(known)
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
            let name = format!("twinblk-placement-{name}-{}", std::process::id());
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

    fn mark(chosen: Chosen) -> Mark {
        Mark {
            chosen,
            unix_seconds: 1_795_226_400,
            by: "user 0 on kvm-a".to_owned(),
        }
    }

    #[test]
    fn what_was_chosen_holds_after_a_restart_and_until_it_is_cleared() {
        let dir = TestDir::new("kept");
        let file = PlacementFile::open(&dir.0);
        assert_eq!(file.mark("vm-web"), None);
        file.begin("vm-web", mark(Chosen::Away)).unwrap();
        assert!(file.is_under_way("vm-web"));
        file.end("vm-web", None, true);
        file.note_went("vm-db", 7);
        let again = PlacementFile::open(&dir.0);
        assert_eq!(again.mark("vm-web"), Some(mark(Chosen::Away)));
        assert!(!again.is_under_way("vm-web"));
        assert_eq!(again.went("vm-db"), [7]);
        assert!(again.clear("vm-web").unwrap());
        assert!(!again.clear("vm-web").unwrap());
        assert_eq!(PlacementFile::open(&dir.0).mark("vm-web"), None);
    }

    #[test]
    fn a_refused_order_leaves_what_held_before() {
        let dir = TestDir::new("refused");
        let file = PlacementFile::open(&dir.0);
        file.begin("vm-web", mark(Chosen::Away)).unwrap();
        file.end("vm-web", None, false);
        assert_eq!(file.mark("vm-web"), None);
        file.begin("vm-web", mark(Chosen::Here)).unwrap();
        file.end("vm-web", None, true);
        let before = file.mark("vm-web");
        file.begin("vm-web", mark(Chosen::Away)).unwrap();
        file.end("vm-web", before, false);
        let again = PlacementFile::open(&dir.0);
        assert_eq!(again.mark("vm-web"), Some(mark(Chosen::Here)));
    }

    #[test]
    fn every_state_reads_as_it_was_written_and_cut_off_it_is_damaged_or_says_less() {
        let mut known = Known::default();
        known.marks.insert("vm-a".to_owned(), mark(Chosen::Away));
        known.marks.insert("vm-b".to_owned(), mark(Chosen::Here));
        known.went.insert("vm-a".to_owned(), vec![1, 2, 3]);
        let whole = text(&known);
        assert_eq!(parse(&whole), Some(known));
        for len in 0..whole.len() {
            let cut = parse(&whole[..len]);
            assert!(cut.is_none() || whole[..len].ends_with('\n'), "{cut:?}");
        }
        for line in [
            "away",
            "away a",
            "away a x by",
            "away a 1",
            "went a 1 by",
            "far a 1 by",
        ] {
            assert_eq!(parse(&format!("{HEAD}\n{line}\n")), None, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_read_holds_everything_until_up_is_given() {
        let dir = TestDir::new("damaged");
        fs::write(dir.0.join(NAME), b"twinblk-placement 1\nawa").unwrap();
        let file = PlacementFile::open(&dir.0);
        assert!(file.mark("vm-web").is_some() && file.mark("vm-db").is_some());
        assert!(file.clear("vm-web").unwrap());
        assert_eq!(file.mark("vm-db"), None);
        assert_eq!(PlacementFile::open(&dir.0).mark("vm-web"), None);
    }

    #[test]
    fn went_is_bounded() {
        let file = PlacementFile::in_memory();
        for second in 0..10 {
            file.note_went("vm-web", second);
        }
        assert_eq!(file.went("vm-web"), [7, 8, 9]);
    }
}
