//! A killed daemon's writes may still land (R14): the next one must not get the device before they
//! did.
//!
//! The story: a process submits a write to a filesystem that is frozen, so that it cannot complete,
//! and is killed. Its successor finds the device in use. Once the filesystem thaws, the write lands
//! and the device is free. Needs root, a loop device and mkfs; says so where it has none.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test of processes polls with a deadline, and its helpers fail by panicking"
)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use replicator::io::{Backend, BufferPool, Disk, Op, Portable, Ring, Token, Wait};

const CHILD_FILE: &str = "TWINBLK_TEST_LATE_WRITE_FILE";
const CHILD_BACKEND: &str = "TWINBLK_TEST_LATE_WRITE_BACKEND";
const PATIENCE: Duration = Duration::from_secs(20);

/// The process that is killed: not a test of its own.
#[test]
fn helper_that_writes_and_waits_for_ever() {
    let Some(path) = std::env::var_os(CHILD_FILE) else {
        return;
    };
    let mut backend: Box<dyn Backend> = match std::env::var(CHILD_BACKEND).as_deref() {
        Ok("portable") => Box::new(Portable::new().unwrap()),
        _ => Box::new(Ring::new().unwrap()),
    };
    let disk = Disk::open(Path::new(&path)).unwrap();
    // The parent freezes the filesystem now.
    println!("opened");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let write = Op::Write {
        file: disk.file().clone(),
        offset: 0,
        payload: BufferPool::new().copy_of(&[0x77; 4096]).bytes().clone(),
        durable: false,
    };
    backend.submit(Token(1), write);
    let mut done = Vec::new();
    backend
        .turn(Wait::at_most(Duration::from_millis(50)), &mut done)
        .unwrap();
    println!("submitted {}", done.len());
    loop {
        backend.turn(Wait::default(), &mut done).unwrap();
    }
}

/// A small filesystem on a loop device, unfrozen and unmounted with its value.
struct Filesystem {
    directory: PathBuf,
    frozen: bool,
}

impl Filesystem {
    fn make() -> Result<Self, String> {
        let directory = std::env::temp_dir().join(format!("twinblk-late-{}", std::process::id()));
        let mount = directory.join("mnt");
        std::fs::create_dir_all(&mount).map_err(|error| error.to_string())?;
        let image = directory.join("fs.img");
        File::create(&image)
            .and_then(|file| file.set_len(64 << 20))
            .map_err(|error| error.to_string())?;
        let filesystem = Self {
            directory,
            frozen: false,
        };
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&mount))?;
        Ok(filesystem)
    }

    fn mount(&self) -> PathBuf {
        self.directory.join("mnt")
    }

    fn freeze(&mut self) -> Result<(), String> {
        run(Command::new("fsfreeze").arg("-f").arg(self.mount()))?;
        self.frozen = true;
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), String> {
        self.frozen = false;
        run(Command::new("fsfreeze").arg("-u").arg(self.mount()))
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        if self.frozen {
            drop(self.thaw());
        }
        drop(run(Command::new("umount").arg("-l").arg(self.mount())));
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.trim()))
}

struct Writer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(file: &Path, backend: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "helper_that_writes_and_waits_for_ever",
                "--nocapture",
            ])
            .env(CHILD_FILE, file)
            .env(CHILD_BACKEND, backend)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line of its own that begins with `word` (the test harness prints others).
    fn await_line(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.lines.read_line(&mut line).unwrap() > 0,
                "it ended before {word:?}"
            );
            if let Some(at) = line.find(word) {
                return line[at..].trim().to_owned();
            }
        }
    }

    fn go_on(&mut self) {
        use std::io::Write;
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

#[test]
fn the_device_of_a_killed_process_is_free_only_when_its_last_write_has_landed() {
    let mut filesystem = match Filesystem::make() {
        Ok(filesystem) => filesystem,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    for backend in ["portable", "ring"] {
        if backend == "ring" && Ring::new().is_err() {
            eprintln!("skipped: no io_uring here");
            continue;
        }
        let path = filesystem.mount().join(backend);
        // Allocated and written, so that nothing but the write itself has to wait.
        std::fs::write(&path, vec![0x11; 1 << 20]).unwrap();
        let mut writer = Writer::start(&path, backend);
        writer.await_line("opened");
        filesystem.freeze().unwrap();
        writer.go_on();
        assert_eq!(
            writer.await_line("submitted"),
            "submitted 0",
            "the write must be stuck"
        );
        writer.child.kill().unwrap();
        for _ in 0..20 {
            let refused = Disk::open(&path).unwrap_err();
            assert!(refused.is_transient(), "{refused}");
            std::thread::sleep(Duration::from_millis(10));
        }
        filesystem.thaw().unwrap();
        let begin = Instant::now();
        while let Err(error) = Disk::open(&path) {
            assert!(
                error.is_transient() && begin.elapsed() < PATIENCE,
                "{error}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        writer.child.wait().unwrap();
        // A thread's write was on its way and landed; the ring's was withdrawn with its process.
        // Either is right, as long as nothing happens from here on.
        let content = std::fs::read(&path).unwrap()[0];
        assert!(matches!(content, 0x11 | 0x77), "{backend}: {content:#x}");
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(
                std::fs::read(&path).unwrap()[0],
                content,
                "{backend}: it landed late"
            );
        }
    }
}
