//! Programs the tests drive, time, and skipping with a reason.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How often a state is looked at while waiting for it.
const POLL_EVERY: Duration = Duration::from_millis(25);

#[allow(
    clippy::disallowed_methods,
    reason = "these tests measure real processes"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[allow(
    clippy::disallowed_methods,
    reason = "between two looks at another process's state"
)]
fn rest() {
    thread::sleep(POLL_EVERY);
}

/// Looks again and again until `look` finds something; panics after `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < deadline, "waited {limit:?} in vain until {what}");
        rest();
    }
}

/// Lets time pass while something must not happen: panics as soon as `look` says that it did.
pub(crate) fn hold_for(time: Duration, mut look: impl FnMut()) {
    let end = now() + time;
    while now() < end {
        look();
        rest();
    }
}

/// Whether all of `programs` are there. If not, the calling test returns: its reason goes to where
/// `cargo xtask test` collects them, and with `CI=true` it is a failure.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| find(program).is_none())
        .collect();
    missing.is_empty() || skip(&format!("needs {}", missing.join(", ")))
}

/// Whether this is root; else as [`have`].
pub(crate) fn am_root() -> bool {
    nix::unistd::geteuid().is_root() || skip("needs root")
}

/// Says why the calling test cannot run; always false.
pub(crate) fn skip(reason: &str) -> bool {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} cannot run: {reason}"
    );
    eprintln!("skipped: {test}: {reason}");
    if let Some(list) = std::env::var_os("TWINBLK_TEST_SKIPS")
        && let Ok(mut list) = OpenOptions::new().append(true).create(true).open(list)
    {
        writeln!(list, "{test}: {reason}").expect("the list of skipped tests can be written");
    }
    false
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Path of `twinadm`.
pub(crate) fn twinadm() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| built("twinblk-tools", "twinadm"))
}

/// Path of a program of another package, built with the same cargo if it is not up to date: cargo
/// does not build those for these tests.
pub(crate) fn built(package: &str, program: &str) -> PathBuf {
    let daemon = Path::new(env!("CARGO_BIN_EXE_twinblkd"));
    let profile_dir = daemon.parent().expect("a program lies in a directory");
    let target_dir = profile_dir
        .parent()
        .expect("a profile's directory lies in the target directory");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", package, "--bins"]);
    build.arg("--target-dir").arg(target_dir);
    // This test's own, as cargo set them. `ring` is built anew wherever they are others.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            build.env_remove(&name);
        }
    }
    if profile_dir.ends_with("release") {
        build.arg("--release");
    }
    assert!(
        build.status().expect("cargo starts").success(),
        "{program} builds"
    );
    profile_dir.join(program)
}

/// Runs to the end; stdout and stderr as text and whether it exited 0.
pub(crate) fn run(command: &mut Command) -> Ran {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    Ran::of(&output)
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its stdout; panics unless it exited 0.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Its stderr; panics unless it exited with `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stderr
    }
}

/// Runs a program with arguments; see [`run`].
pub(crate) fn program(name: &str, arguments: &[&str]) -> Ran {
    run(Command::new(name).args(arguments))
}
