//! The writer against two small servers that share a disk, as a pair does.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use nbd_frontend::proto::error::NbdError;
use nbd_frontend::session::{BufferPool, Completion, Outbox, Output, RequestKind, Session};
use nbd_frontend::{Export, ExportList, Refusal};

use super::*;
use crate::demo::verdict;

const BLOCKS: u64 = 1024;
const PATIENCE: Duration = Duration::from_secs(20);

const SERVE: u8 = 0;
const REFUSE: u8 = 1;
const SILENT: u8 = 2;
const FAIL: u8 = 3;

/// Two nodes, of which one serves; ends its threads with the test process.
struct Bench {
    dir: PathBuf,
    disk: Arc<Mutex<Vec<u8>>>,
    modes: [Arc<AtomicU8>; 2],
}

struct Heap;

impl BufferPool for Heap {
    type Buffer = Vec<u8>;

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        Some(vec![0; len])
    }
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("twinblk-writer-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(&dir).unwrap();
        let bench = Self {
            dir,
            disk: Arc::new(Mutex::new(vec![0; usize::try_from(BLOCKS).unwrap() * 4096])),
            modes: [
                Arc::new(AtomicU8::new(SERVE)),
                Arc::new(AtomicU8::new(REFUSE)),
            ],
        };
        for node in 0..2 {
            let listener = UnixListener::bind(bench.socket(node)).unwrap();
            let (disk, mode) = (Arc::clone(&bench.disk), Arc::clone(&bench.modes[node]));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (disk, mode) = (Arc::clone(&disk), Arc::clone(&mode));
                    thread::spawn(move || serve(stream, &disk, &mode));
                }
            });
        }
        bench
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.dir.join(format!("{node}.sock"))
    }

    fn set(&self, node: usize, mode: u8) {
        self.modes[node].store(mode, Ordering::SeqCst);
    }

    fn writer(&self) -> Writer {
        Writer::start(Plan {
            run: 5,
            seed: 6,
            sockets: vec![self.socket(0), self.socket(1)],
            export: "vm".to_owned(),
            blocks: BLOCKS,
            journal: self.dir.join("journal"),
        })
        .unwrap()
    }

    fn judge(&self) -> verdict::Verdict {
        let image = self.dir.join("disk");
        fs::write(&image, &*self.disk.lock().unwrap()).unwrap();
        let image: &Path = &image;
        verdict::judge(5, &self.dir.join("journal"), &[image, image]).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

fn serve(mut stream: UnixStream, disk: &Mutex<Vec<u8>>, mode: &AtomicU8) -> Option<()> {
    if mode.load(Ordering::SeqCst) == SILENT {
        // As of a stopped process: the connection stands, and not even a greeting comes.
        fall_silent();
    }
    let mut export = Export::new("vm", BLOCKS * 4096);
    export.refusal =
        (mode.load(Ordering::SeqCst) == REFUSE).then(|| Refusal::NotNow("not Primary".to_owned()));
    let exports = ExportList::new(vec![export]).ok()?;
    let mut out: Outbox<Vec<u8>, Vec<u8>> = Outbox::new();
    let mut session = Session::new(exports, &mut out);
    let mut buffer = [0; 8192];
    loop {
        let mut done = Vec::new();
        for output in out.drain().collect::<Vec<_>>() {
            match output {
                Output::Send(bytes) => stream.write_all(bytes.as_ref()).ok()?,
                Output::SendPayload(data) => stream.write_all(&data).ok()?,
                Output::Submit(request) => {
                    if mode.load(Ordering::SeqCst) == SILENT {
                        fall_silent();
                    }
                    done.push((request.handle, execute(request.kind, disk, mode)));
                }
                Output::StartTls | Output::Close(_) => return None,
            }
        }
        for (handle, completion) in done {
            session.complete(handle, completion, &mut out);
        }
        if out.is_empty() {
            let len = stream.read(&mut buffer).ok().filter(|len| *len > 0)?;
            session.note_sent(usize::MAX);
            assert_eq!(
                session.handle_bytes(&buffer[..len], &mut Heap, &mut out),
                len
            );
        }
    }
}

/// This connection never says anything again.
fn fall_silent() -> ! {
    loop {
        thread::park();
    }
}

fn execute(
    kind: RequestKind<Vec<u8>>,
    disk: &Mutex<Vec<u8>>,
    mode: &AtomicU8,
) -> Completion<Vec<u8>> {
    if mode.load(Ordering::SeqCst) == FAIL {
        return Completion::Failed(NbdError::Io);
    }
    let mut disk = disk.lock().unwrap();
    match kind {
        RequestKind::Read { offset, len } => {
            let at = usize::try_from(offset).unwrap();
            Completion::Data(disk[at..at + usize::try_from(len).unwrap()].to_vec())
        }
        RequestKind::Write { offset, data, .. } => {
            let at = usize::try_from(offset).unwrap();
            disk[at..at + data.len()].copy_from_slice(&data);
            Completion::Done
        }
        _ => Completion::Done,
    }
}

/// Waits until the writer's progress is as wanted.
fn wait_until(writer: &mut Writer, wanted: impl Fn(&Progress) -> bool) -> Progress {
    let deadline = now() + PATIENCE;
    loop {
        writer.check().unwrap();
        let progress = writer.progress();
        if wanted(&progress) {
            return progress;
        }
        assert!(now() < deadline, "in vain: {progress:?}");
        thread::yield_now();
    }
}

#[test]
fn what_an_undisturbed_writer_journals_is_on_the_disk() {
    let bench = Bench::new("undisturbed");
    let mut writer = bench.writer();
    wait_until(&mut writer, |progress| progress.acknowledged >= 500);
    let progress = writer.finish().unwrap();
    let verdict = bench.judge();
    assert!(verdict.passed(), "{verdict:?}");
    assert_eq!(verdict.acknowledged, progress.acknowledged);
    assert_eq!(
        verdict.sent, verdict.acknowledged,
        "the last answers were awaited"
    );
    assert!(verdict.reads > 0);
    assert_eq!(progress.stretches.len(), 1);
}

#[test]
fn a_node_that_falls_silent_is_left_for_the_one_that_serves() {
    let bench = Bench::new("silent");
    let mut writer = bench.writer();
    wait_until(&mut writer, |progress| progress.acknowledged >= 50);
    bench.set(0, SILENT);
    // As in a takeover: for a while neither serves.
    let pause = now() + 2 * SILENCE_MAX;
    wait_until(&mut writer, |_| now() >= pause);
    bench.set(1, SERVE);
    let progress = wait_until(&mut writer, |progress| {
        progress.last.is_some_and(|(_, node)| node == 1)
    });
    assert!(progress.stall >= SILENCE_MAX);
    assert_eq!(progress.stretches.last().unwrap().1, 1);
    let after = progress.acknowledged;
    wait_until(&mut writer, |progress| progress.acknowledged >= after + 50);
    assert_eq!(writer.finish().unwrap().errors, 0);
    let verdict = bench.judge();
    assert!(verdict.passed(), "{verdict:?}");
    assert!(
        verdict.sent > verdict.acknowledged,
        "some writes were never answered"
    );
}

#[test]
fn a_dropped_acknowledged_write_is_found() {
    let bench = Bench::new("dropped");
    let mut writer = bench.writer();
    wait_until(&mut writer, |progress| progress.acknowledged >= 50);
    writer.finish().unwrap();
    let block = verdict::acknowledged_blocks(&bench.dir.join("journal")).unwrap()[0];
    let at = usize::try_from(block).unwrap() * 4096;
    bench.disk.lock().unwrap()[at..at + 4096].fill(0);
    let verdict = bench.judge();
    assert!(verdict.lost > 0 && !verdict.passed(), "{verdict:?}");
}

#[test]
fn an_error_answer_is_journaled_and_fails_the_run() {
    let bench = Bench::new("error");
    let mut writer = bench.writer();
    wait_until(&mut writer, |progress| progress.acknowledged >= 20);
    bench.set(0, FAIL);
    wait_until(&mut writer, |progress| progress.errors > 0);
    bench.set(0, SERVE);
    writer.finish().unwrap();
    let verdict = bench.judge();
    assert!(
        verdict.errors > 0 && verdict.lost == 0 && !verdict.passed(),
        "{verdict:?}"
    );
}
