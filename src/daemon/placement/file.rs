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
//! Invariant: what cannot be read, or is of a newer version, is never taken for "nobody chose", and
//! never overwritten: every resource stays where it is until `up` names it, and after a restart
//! again, until somebody takes the file away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use replicator::types::Instant;

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
    /// The file cannot be read: anything may have been chosen.
    Unknown,
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
    /// Held while the file is written, so that nobody who reads waits for a disk.
    writing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Known,
    /// The file was there and is damaged.
    distrusted: bool,
    /// Resources that are free of that, by order.
    freed: BTreeSet<String>,
    /// Marks whose order may still be carried out, until then: how things are says nothing about them.
    under_way: Vec<(String, Instant)>,
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
                "{}: {why}: it is left alone, and nothing goes back to its preferred node by itself \
                 until `twinadm up` names it; once the file is moved away, a restart ends that",
                path.display()
            );
        }
        let state = State {
            distrusted: read.is_err(),
            known: read.unwrap_or_default(),
            ..State::default()
        };
        Self {
            dir: Some(dir.to_owned()),
            writing: Mutex::default(),
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
        let distrust = state.distrusts(resource).then(|| Mark {
            chosen: Chosen::Unknown,
            unix_seconds: 0,
            by: "somebody: what was chosen is not known any more".to_owned(),
        });
        state.known.marks.get(resource).cloned().or(distrust)
    }

    /// Whether its order may still be carried out.
    pub(in crate::daemon) fn is_under_way(&self, resource: &str, now: Instant) -> bool {
        let state = self.lock();
        let mut all = state.under_way.iter();
        all.any(|(name, until)| name == resource && now < *until)
    }

    /// An order by hand begins to be carried out: it holds from now on, durably if that is possible; a
    /// disk that is full keeps nobody from moving a resource.
    pub(in crate::daemon) fn begin(&self, resource: &str, mark: Mark) {
        self.lock()
            .under_way
            .push((resource.to_owned(), Instant::NEVER));
        let kept = self.change(|known| drop(known.marks.insert(resource.to_owned(), mark)));
        if let Err(error) = kept {
            tracing::error!(%error, "{resource}: an order by hand is kept in memory only");
        }
    }

    /// It was answered, and may have its effect until then. The mark stays, whatever the answer was: one
    /// that came to nothing is over as soon as the resource is seen at home.
    pub(in crate::daemon) fn end(&self, resource: &str, until: Instant) {
        let mut state = self.lock();
        let mut all = state.under_way.iter_mut();
        if let Some((_, end)) = all.find(|(name, end)| name == resource && *end == Instant::NEVER) {
            *end = until;
        }
    }

    /// Forgets orders that were answered long enough ago.
    pub(in crate::daemon) fn forget_ended(&self, now: Instant) {
        self.lock().under_way.retain(|(_, until)| now < *until);
    }

    /// No order by hand holds any more, by order. Whether one did.
    pub(in crate::daemon) fn clear(&self, resource: &str) -> io::Result<bool> {
        let distrusted = self.lock().distrusts(resource);
        let held = self.end_mark(resource)?;
        if distrusted {
            self.lock().freed.insert(resource.to_owned());
        }
        Ok(held || distrusted)
    }

    /// The order that is known to hold is over. Whether there was one.
    pub(in crate::daemon) fn end_mark(&self, resource: &str) -> io::Result<bool> {
        let held = self.lock().known.marks.contains_key(resource);
        if held {
            let without = |known: &mut Known| drop(known.marks.remove(resource));
            self.change(without)?;
        }
        Ok(held)
    }

    /// A move back begins then. What cannot be written counts in this life.
    pub(in crate::daemon) fn note_went(&self, resource: &str, unix_seconds: u64) {
        let note = |known: &mut Known| {
            let went = known.went.entry(resource.to_owned()).or_default();
            if went.len() >= FAILBACKS_MAX {
                went.remove(0);
            }
            went.push(unix_seconds);
        };
        self.change_if_possible(resource, note);
    }

    /// The newest did not begin after all.
    pub(in crate::daemon) fn forget_newest(&self, resource: &str) {
        let forget = |known: &mut Known| {
            if let Some(went) = known.went.get_mut(resource) {
                went.pop();
            }
        };
        self.change_if_possible(resource, forget);
    }

    /// What is noted for later than now counts from now on.
    pub(in crate::daemon) fn note_clock(&self, resource: &str, unix_seconds: u64) {
        if self.went(resource).iter().any(|it| *it > unix_seconds) {
            let clamp = |known: &mut Known| {
                for went in known.went.get_mut(resource).into_iter().flatten() {
                    *went = (*went).min(unix_seconds);
                }
            };
            self.change_if_possible(resource, clamp);
        }
    }

    /// When moves back began, as far as that was kept.
    pub(in crate::daemon) fn went(&self, resource: &str) -> Vec<u64> {
        self.lock()
            .known
            .went
            .get(resource)
            .cloned()
            .unwrap_or_default()
    }

    fn change_if_possible(&self, resource: &str, change: impl FnOnce(&mut Known)) {
        if let Err(error) = self.change(change) {
            tracing::warn!(%error, "{resource}: that it went back is kept in memory only");
        }
    }

    /// In memory in any case, and durable unless that fails or the file is one that cannot be read.
    fn change(&self, change: impl FnOnce(&mut Known)) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let text = {
            let mut state = self.lock();
            let before = state.known.clone();
            change(&mut state.known);
            let is_news = state.known != before && !state.distrusted;
            is_news.then(|| text(&state.known))
        };
        match (&self.dir, text) {
            (Some(dir), Some(text)) => write(dir, &text),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole values are put in: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn distrusts(&self, resource: &str) -> bool {
        self.distrusted && !self.freed.contains(resource)
    }
}

fn text(known: &Known) -> String {
    let mut text = format!("{HEAD}\n");
    for (resource, mark) in &known.marks {
        let word = match mark.chosen {
            Chosen::Away => "away",
            // Unknown is never kept; if it were, it would hold the resource where it is.
            Chosen::Here | Chosen::Unknown => "here",
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
        file.begin("vm-web", mark(Chosen::Away));
        assert!(file.is_under_way("vm-web", Instant(7)));
        file.end("vm-web", Instant(9));
        assert!(file.is_under_way("vm-web", Instant(8)));
        assert!(!file.is_under_way("vm-web", Instant(9)));
        file.note_went("vm-db", 7);
        let again = PlacementFile::open(&dir.0);
        assert_eq!(again.mark("vm-web"), Some(mark(Chosen::Away)));
        assert!(!again.is_under_way("vm-web", Instant(0)));
        assert_eq!(again.went("vm-db"), [7]);
        assert!(again.clear("vm-web").unwrap());
        assert!(!again.clear("vm-web").unwrap());
        assert_eq!(PlacementFile::open(&dir.0).mark("vm-web"), None);
    }

    #[test]
    fn of_two_orders_the_end_of_one_says_nothing_about_the_other() {
        let file = PlacementFile::in_memory();
        file.begin("vm-web", mark(Chosen::Here));
        file.begin("vm-web", mark(Chosen::Here));
        file.end("vm-web", Instant(5));
        file.forget_ended(Instant(9));
        assert!(file.is_under_way("vm-web", Instant(9)));
        assert_eq!(file.mark("vm-web"), Some(mark(Chosen::Here)));
        file.end("vm-web", Instant(10));
        assert!(!file.is_under_way("vm-web", Instant(10)));
    }

    #[test]
    fn a_mark_holds_in_memory_where_it_cannot_be_kept() {
        let file = PlacementFile::open(Path::new("/nonexistent/state"));
        file.begin("vm-web", mark(Chosen::Away));
        assert_eq!(file.mark("vm-web"), Some(mark(Chosen::Away)));
    }

    #[test]
    fn a_clock_that_was_ahead_is_mended_in_the_file_too() {
        let dir = TestDir::new("clock");
        let file = PlacementFile::open(&dir.0);
        file.note_went("vm-web", 7);
        file.note_went("vm-web", 9_000);
        file.note_clock("vm-web", 100);
        assert_eq!(PlacementFile::open(&dir.0).went("vm-web"), [7, 100]);
        file.forget_newest("vm-web");
        assert_eq!(PlacementFile::open(&dir.0).went("vm-web"), [7]);
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
    fn what_cannot_be_read_is_never_overwritten_and_holds_until_up_names_the_resource() {
        for content in ["twinblk-placement 1\nawa", "twinblk-placement 2\n", ""] {
            let dir = TestDir::new("damaged");
            fs::write(dir.0.join(NAME), content).unwrap();
            let file = PlacementFile::open(&dir.0);
            let chosen = |name| file.mark(name).map(|mark| mark.chosen);
            // What the thread does by itself.
            for name in ["vm-web", "vm-db"] {
                assert!(!file.end_mark(name).unwrap());
                file.note_went(name, 7);
                file.note_clock(name, 1);
                assert_eq!(chosen(name), Some(Chosen::Unknown));
            }
            file.begin("vm-db", mark(Chosen::Away));
            file.end("vm-db", Instant(0));
            assert!(file.clear("vm-web").unwrap());
            assert_eq!(
                (chosen("vm-web"), chosen("vm-db")),
                (None, Some(Chosen::Away))
            );
            assert!(file.end_mark("vm-db").unwrap());
            assert_eq!(chosen("vm-db"), Some(Chosen::Unknown));
            assert_eq!(fs::read_to_string(dir.0.join(NAME)).unwrap(), content);
            assert!(PlacementFile::open(&dir.0).mark("vm-web").is_some());
        }
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
