//! The store against crashes at every step, and against what it must refuse.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use replicator::types::{ReplicaId, ResourceId, ViewNumber, VoterId};

use super::file::{Entries, OpenStoreError, StoreFile, StoreIdentity, VoterStore, fresh_bytes};
use super::layout::SECTOR_LEN;
use crate::controller::VoterRecord;

/// A file whose writes are durable only after a sync, and which dies after a number of steps.
struct CrashingFile {
    durable: RefCell<Vec<u8>>,
    /// What reads see: everything written, whatever became of it.
    pages: RefCell<Vec<u8>>,
    /// Written and still to be brought to the disk.
    pending: RefCell<Vec<(usize, Vec<u8>)>>,
    steps_left: Cell<usize>,
}

impl CrashingFile {
    fn new(durable: Vec<u8>, steps_left: usize) -> Self {
        Self {
            pages: RefCell::new(durable.clone()),
            durable: RefCell::new(durable),
            pending: RefCell::default(),
            steps_left: Cell::new(steps_left),
        }
    }

    /// The file after a failed sync as the next process finds it: the disk holds `durable`, the
    /// pages stay readable, and nothing is left to be written.
    fn with_lost_writes(&self, durable: Vec<u8>, steps_left: usize) -> Self {
        Self {
            pages: self.pages.clone(),
            ..Self::new(durable, steps_left)
        }
    }

    fn step(&self) -> io::Result<()> {
        match self.steps_left.get().checked_sub(1) {
            Some(left) => {
                self.steps_left.set(left);
                Ok(())
            }
            None => Err(io::Error::other("power cut")),
        }
    }

    /// Every image the disk may hold now: each pending sector write absent, whole, or torn either
    /// way in the middle.
    fn images(&self) -> Vec<Vec<u8>> {
        self.images_with(|len| vec![0..len, 0..len / 2, len / 2..len])
    }

    /// The same without torn sectors.
    fn untorn_images(&self) -> Vec<Vec<u8>> {
        self.images_with(|len| core::iter::once(0..len).collect())
    }

    fn images_with(&self, parts: impl Fn(usize) -> Vec<Range<usize>>) -> Vec<Vec<u8>> {
        let mut images = vec![self.durable.borrow().clone()];
        for (at, bytes) in self.pending.borrow().iter() {
            let parts = parts(bytes.len());
            let written: Vec<_> = images
                .iter()
                // The same bytes once more make no other image, however much of them arrives.
                .filter(|image| image.get(*at..at + bytes.len()) != Some(bytes))
                .flat_map(|image| {
                    parts
                        .iter()
                        .map(|part| overlay(image, at + part.start, &bytes[part.clone()]))
                })
                .collect();
            images.extend(written);
        }
        images
    }
}

fn overlay(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image.resize(image.len().max(at + bytes.len()), 0);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

impl StoreFile for &CrashingFile {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        Ok(self.pages.borrow().clone())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.step()?;
        let at = usize::try_from(at).unwrap();
        let pages = overlay(&self.pages.borrow(), at, bytes);
        self.pages.replace(pages);
        self.pending.borrow_mut().push((at, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.step()?;
        let mut durable = self.durable.borrow_mut();
        for (at, bytes) in self.pending.borrow_mut().drain(..) {
            *durable = overlay(&durable, at, &bytes);
        }
        Ok(())
    }
}

fn identity() -> StoreIdentity {
    StoreIdentity {
        cluster: "lab".to_owned(),
        node: "kvm-a".to_owned(),
        fresh_voter: VoterId(77),
    }
}

fn record(round: u32) -> VoterRecord {
    VoterRecord {
        seal: ViewNumber(u64::from(round)),
        replica: Some(ReplicaId(u128::from(round))),
        up: round.is_multiple_of(2),
        ..VoterRecord::default()
    }
}

type Records = BTreeMap<ResourceId, VoterRecord>;

fn batch(rounds: &[(u64, u32)]) -> Records {
    rounds
        .iter()
        .map(|(id, round)| (ResourceId(*id), record(*round)))
        .collect()
}

fn records<F: StoreFile>(entries: &Entries<F>) -> Records {
    entries
        .records()
        .map(|(id, record)| (id, *record))
        .collect()
}

const ONE: u64 = 1;
const TWO: u64 = 2;
const THREE: u64 = 3;

/// Batches written one after the other; each is acknowledged before the next.
fn script() -> [Records; 4] {
    [
        batch(&[(ONE, 1)]),
        batch(&[(ONE, 2)]),
        batch(&[(ONE, 3), (TWO, 3)]),
        batch(&[(TWO, 4), (ONE, 4)]),
    ]
}

/// Story: power is cut between any two steps of the script, with any mix of lost, whole and torn
/// sectors. The next start must know everything acknowledged, and of what was not acknowledged
/// each record either whole or not at all; and it must be able to go on.
#[test]
fn after_a_crash_at_any_step_everything_acknowledged_is_read_again() {
    let mut images_checked = 0;
    for steps in 0.. {
        let file = CrashingFile::new(fresh_bytes(&identity()), steps);
        let mut entries = Entries::load(&file).unwrap();
        let (mut acknowledged, mut attempted) = (Records::new(), Records::new());
        let mut lives = 0;
        let mut crashed = entries.begin_life().is_err();
        if !crashed {
            lives = 1;
        }
        for batch in script() {
            if crashed {
                break;
            }
            attempted.clone_from(&acknowledged);
            attempted.extend(&batch);
            crashed = entries.write(batch).is_err();
            if !crashed {
                acknowledged.clone_from(&attempted);
            }
        }
        for image in file.images() {
            images_checked += 1;
            check_image(image, &acknowledged, &attempted, lives);
        }
        if !crashed {
            assert!(steps > 15, "the script has more steps than {steps}");
            assert!(images_checked > 500, "only {images_checked} images");
            return;
        }
    }
}

fn check_image(image: Vec<u8>, acknowledged: &Records, attempted: &Records, lives: u32) {
    let file = CrashingFile::new(image, usize::MAX);
    let mut entries = Entries::load(&file).expect("a crash never makes the store unreadable");
    assert_eq!(entries.node().voter, VoterId(77));
    assert!(entries.node().incarnation >= lives);
    let found = records(&entries);
    for (id, record) in acknowledged {
        let known = found.get(id);
        assert!(
            known == Some(record) || known == attempted.get(id),
            "{id:?}: {known:?}"
        );
    }
    for (id, record) in &found {
        let known = [acknowledged.get(id), attempted.get(id)];
        assert!(
            known.contains(&Some(record)),
            "{id:?} holds {record:?}, never written"
        );
    }
    entries.begin_life().unwrap();
    entries.write(batch(&[(ONE, 9), (THREE, 9)])).unwrap();
    let again = records(&Entries::load(&file).unwrap());
    assert_eq!(again[&ResourceId(ONE)], record(9));
    assert_eq!(again[&ResourceId(THREE)], record(9));
    assert_eq!(again.get(&ResourceId(TWO)), found.get(&ResourceId(TWO)));
}

/// Runs the script until a step fails. What was acknowledged by then; `None` if none failed.
fn run_script(file: &CrashingFile) -> Option<Records> {
    let mut acknowledged = Records::new();
    let mut entries = Entries::load(file).unwrap();
    entries.begin_life().ok()?;
    for batch in script() {
        if entries.write(batch.clone()).is_err() {
            return Some(acknowledged);
        }
        acknowledged.extend(batch);
    }
    None
}

/// Story: a sync fails. The disk has any part of what was written, but the pages can still be
/// read, and nothing will ever write them again. The process is started again on the same machine
/// and answers for what it reads ("that very view was accepted already"). Then power is cut: what
/// was answered must be there, and so must be what was acknowledged in the life before, even if
/// the power goes while the start is under way.
#[test]
fn what_a_start_read_after_a_failed_sync_survives_a_power_cut() {
    let (mut starts, mut recovered) = (0, 0);
    for failing in 0.. {
        let file = CrashingFile::new(fresh_bytes(&identity()), failing);
        let failed = run_script(&file);
        let Some(acknowledged) = failed else {
            // Failed before the first record, or not at all.
            match starts {
                0 => continue,
                _ => break,
            }
        };
        for durable in file.untorn_images() {
            for steps in 0.. {
                let file = file.with_lost_writes(durable.clone(), steps);
                let mut entries = Entries::load(&file).unwrap();
                let begun = entries.begin_life().is_ok();
                starts += 1;
                let answered = match begun {
                    true => records(&entries),
                    false => acknowledged.clone(),
                };
                recovered += usize::from(begun && answered != acknowledged);
                for image in file.images() {
                    let file = CrashingFile::new(image, 0);
                    let entries = Entries::load(&file).expect("readable after the power cut");
                    let found = records(&entries);
                    for (id, record) in &answered {
                        let newer = |it: &VoterRecord| !begun && it.seal > record.seal;
                        let kept = found.get(id).is_some_and(|it| it == record || newer(it));
                        assert!(
                            kept,
                            "step {failing}, {steps}: {id:?} is {:?}",
                            found.get(id)
                        );
                    }
                }
                if begun {
                    break;
                }
            }
        }
    }
    assert!(starts > 500, "only {starts} starts");
    assert!(
        recovered > 10,
        "only {recovered} read what was not acknowledged"
    );
}

#[test]
fn a_start_whose_records_cannot_be_made_durable_fails() {
    let file = CrashingFile::new(fresh_bytes(&identity()), usize::MAX);
    let mut entries = Entries::load(&file).unwrap();
    entries.write(batch(&[(ONE, 1)])).unwrap_err();
    entries.begin_life().unwrap();
    entries.write(batch(&[(ONE, 1)])).unwrap();
    for steps in 0..7 {
        file.steps_left.set(steps);
        let mut entries = Entries::load(&file).unwrap();
        entries.begin_life().unwrap_err();
        file.steps_left.set(usize::MAX);
        entries.write(batch(&[(ONE, 1)])).unwrap_err();
    }
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_any_more() {
    let file = CrashingFile::new(fresh_bytes(&identity()), usize::MAX);
    let mut entries = Entries::load(&file).unwrap();
    entries.begin_life().unwrap();
    file.steps_left.set(1);
    entries.write(batch(&[(ONE, 1)])).unwrap_err();
    file.steps_left.set(usize::MAX);
    entries.write(batch(&[(ONE, 1)])).unwrap_err();
    assert_eq!(file.steps_left.get(), usize::MAX, "it was not even tried");
}

#[test]
fn a_counted_record_that_vanished_is_damage_and_not_a_blank_voter() {
    let file = CrashingFile::new(fresh_bytes(&identity()), usize::MAX);
    let mut entries = Entries::load(&file).unwrap();
    entries.begin_life().unwrap();
    entries.write(batch(&[(ONE, 1)])).unwrap();
    Entries::load(&file).unwrap().begin_life().unwrap();
    let whole = file.durable.borrow().clone();
    let read = |len: usize| {
        let shortened = CrashingFile::new(whole[..len].to_vec(), 0);
        Entries::load(&shortened).map(|it| records(&it))
    };
    assert_eq!(
        read(whole.len() - 1),
        Ok(batch(&[(ONE, 1)])),
        "one lost copy hurts nobody"
    );
    assert!(read(SECTOR_LEN * 4).is_err());
    assert!(read(SECTOR_LEN).is_err());
}

/// A directory of its own for one test, gone afterwards.
struct TestDir(PathBuf);

impl TestDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("twinblk-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn a_missing_store_is_made_and_the_next_start_is_another_life_of_the_same_voter() {
    let dir = TestDir::new("store-made");
    let state = dir.0.join("deep/state");
    let mut first = VoterStore::open(&state, &identity()).unwrap();
    assert!(first.was_created());
    first.write(batch(&[(ONE, 1)])).unwrap();
    let incarnation = first.node().incarnation;
    drop(first);
    let other = StoreIdentity {
        fresh_voter: VoterId(78),
        ..identity()
    };
    let second = VoterStore::open(&state, &other).unwrap();
    assert!(!second.was_created());
    assert_eq!(second.node().voter, VoterId(77));
    assert_eq!(second.node().incarnation, incarnation + 1);
    assert_eq!(second.records().count(), 1);
}

/// Votes and grants that were recorded before a store was replaced name a life of the old one.
#[test]
fn a_store_made_anew_repeats_no_life_of_the_one_before() {
    let lives = |fresh_voter| {
        let identity = StoreIdentity {
            fresh_voter: VoterId(fresh_voter),
            ..identity()
        };
        let dir = TestDir::new("store-lives");
        [(); 3].map(|()| {
            let store = VoterStore::open(&dir.0, &identity).unwrap();
            store.node().incarnation
        })
    };
    let (old, new) = (lives(0x1234_5678_9abc_def0_8899), lives(u128::MAX));
    assert!(
        new.iter().all(|life| !old.contains(life)),
        "{old:?} {new:?}"
    );
    assert_eq!(new[2], new[0] + 2, "and none is the last");
}

#[test]
fn a_state_directory_in_use_or_of_another_node_is_refused() {
    let dir = TestDir::new("store-refused");
    VoterStore::check(&dir.0, &identity()).unwrap();
    let first = VoterStore::open(&dir.0, &identity()).unwrap();
    let second = VoterStore::open(&dir.0, &identity()).unwrap_err();
    assert!(matches!(second, OpenStoreError::Locked { .. }), "{second}");
    VoterStore::check(&dir.0, &identity()).unwrap();
    drop(first);
    let other = StoreIdentity {
        node: "kvm-b".to_owned(),
        ..identity()
    };
    let foreign = VoterStore::open(&dir.0, &other).unwrap_err();
    let checked = VoterStore::check(&dir.0, &other).unwrap_err();
    for foreign in [foreign, checked] {
        assert!(
            matches!(foreign, OpenStoreError::Foreign { .. }),
            "{foreign}"
        );
    }
}

#[test]
fn a_damaged_store_is_an_error_that_changes_nothing() {
    let dir = TestDir::new("store-damaged");
    drop(VoterStore::open(&dir.0, &identity()).unwrap());
    let path = dir.0.join("voter-store");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xff; SECTOR_LEN * 4], 0).unwrap();
    let before = std::fs::read(&path).unwrap();
    let damaged = VoterStore::open(&dir.0, &identity()).unwrap_err();
    assert!(
        matches!(damaged, OpenStoreError::Damaged { .. }),
        "{damaged}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
