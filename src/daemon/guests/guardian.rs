//! The guardian: a process that holds one guest and one deadline, and kills the guest when the
//! deadline passes. It outlives the daemon, which may hang or die, and ends with the guest.
//!
//! It knows nothing of views: until when the guest may run is told in datagrams of eight bytes,
//! little-endian nanoseconds of `CLOCK_MONOTONIC_RAW`, the newest counts, all ones is *for ever*.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use replicator::admin::exit;
use replicator::io::clock::SuspendWatch;
use replicator::io::pidfd::PidFd;
use replicator::io::{clock, realtime};
use replicator::types::Instant;

use super::process;
use crate::guests::ProcessId;

/// The first argument of a daemon that is to be a guardian.
pub(in crate::daemon) const GUARDIAN: &str = "--guardian";

/// Its word once it guards.
const READY: &str = "guards";

/// How long it may take to start.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// It looks at the clock this often, so that a suspended machine is noticed soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a guardian is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) process: ProcessId,
    /// Where it listens.
    pub(super) socket: PathBuf,
    /// Until when the guest may run.
    pub(super) until: Instant,
    /// Killed so long after that.
    pub(super) kill_after: Duration,
    /// For people.
    pub(super) name: String,
}

/// Starts a guardian and waits until it guards.
pub(super) fn start(charge: &Charge) -> Result<(), String> {
    let nanos = u64::try_from(charge.kill_after.as_nanos()).unwrap_or(u64::MAX);
    let numbers = [charge.process.start, charge.until.0, nanos].map(|number| number.to_string());
    let mut child = Command::new("/proc/self/exe")
        .arg0("twinblk-guardian")
        .args([GUARDIAN, &charge.name, &charge.process.pid.to_string()])
        .args(numbers)
        .arg(&charge.socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A signal to the daemon's group is none for it.
        .process_group(0)
        .spawn()
        .map_err(|error| error.to_string())?;
    let said = first_line(&mut child);
    if said.as_deref() != Some(READY) {
        child.kill().ok();
        child.wait().ok();
        return Err("the guardian does not start; see the daemon's log".to_owned());
    }
    // Somebody has to collect it when it ends with its guest.
    let collector = thread::Builder::new()
        .name("guardian".to_owned())
        .stack_size(64 * 1024);
    collector
        .spawn(move || child.wait().ok())
        .map(drop)
        .map_err(|error| error.to_string())
}

/// What a child says first, if it says so in time.
fn first_line(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take()?;
    let (sender, line) = mpsc::channel();
    // Ends with the child at the latest.
    let reader = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        let mut text = String::new();
        BufReader::new(stdout).read_line(&mut text).ok();
        sender.send(text).ok();
    });
    reader.ok()?;
    let text = line.recv_timeout(START_PATIENCE).ok()?;
    Some(text.trim_end().to_owned())
}

/// What `main` does in a process that is to be a guardian.
pub(in crate::daemon) fn main(arguments: &[OsString]) -> ExitCode {
    let Some(charge) = parse(arguments) else {
        complain("the guardian is started by the daemon only");
        return ExitCode::from(exit::USAGE);
    };
    match guard(&charge) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{}: no guardian: {error}", charge.name));
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[OsString]) -> Option<Charge> {
    let [name, pid, start, until, kill_after, socket] = arguments else {
        return None;
    };
    let number = |text: &OsString| text.to_str()?.parse::<u64>().ok();
    Some(Charge {
        process: ProcessId {
            pid: i32::try_from(number(pid)?).ok()?,
            start: number(start)?,
        },
        socket: socket.into(),
        until: Instant(number(until)?),
        kill_after: Duration::from_nanos(number(kill_after)?),
        name: name.to_str()?.to_owned(),
    })
}

fn guard(charge: &Charge) -> io::Result<()> {
    let gone = || io::Error::other("its process has ended");
    let guest = process::hold(charge.process).ok_or_else(gone)?;
    let socket = listen(&charge.socket)?;
    // Both make it quicker; without them it is as quick as any process.
    realtime::lock_memory().ok();
    realtime::schedule_current_thread().ok();
    writeln!(io::stdout(), "{READY}")?;
    let mut guardian = Guardian {
        until: charge.until,
        kill_after: charge.kill_after,
        suspend: SuspendWatch::new(clock::suspended),
        killed: false,
    };
    loop {
        guardian.listen(&socket);
        if let Some(why) = guardian.verdict(clock::now(), clock::suspended()) {
            // Said after it was done: the log may be slow.
            let result = guest.signal(Signal::SIGKILL);
            if !guardian.killed {
                complain(&format!(
                    "{}: guest killed: {why} ({result:?})",
                    charge.name
                ));
            }
            guardian.killed = true;
        }
        if wait(&socket, &guest, guardian.patience(clock::now())) {
            fs::remove_file(&charge.socket).ok();
            return Ok(());
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixDatagram> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
        // Who may write here may let guests live.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    // The daemon asked there first: nobody listens.
    fs::remove_file(path).ok();
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Waits for a word, the guest's end, or the time; whether the guest has ended.
fn wait(socket: &UnixDatagram, guest: &PidFd, patience: Duration) -> bool {
    // Rounded up: a little early would only spin.
    let millis = patience.as_nanos().div_ceil(1_000_000);
    let timeout = u16::try_from(millis).map_or(PollTimeout::from(u16::MAX), PollTimeout::from);
    let mut fds = [socket.as_fd(), guest.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    // EINTR and the like: everything is looked at anyway.
    poll(&mut fds, timeout).ok();
    guest.has_ended()
}

struct Guardian {
    until: Instant,
    kill_after: Duration,
    suspend: SuspendWatch,
    killed: bool,
}

impl Guardian {
    fn listen(&mut self, socket: &UnixDatagram) {
        let mut bytes = [0; 8];
        while let Ok(len) = socket.recv(&mut bytes) {
            if len == bytes.len() {
                self.until = Instant(u64::from_le_bytes(bytes));
            }
        }
    }

    /// Why the guest must go, if it must.
    fn verdict(&mut self, now: Instant, suspended: Duration) -> Option<&'static str> {
        let slept = self.suspend.look(suspended).is_some();
        if self.until == Instant::NEVER {
            return None;
        }
        let over = now >= self.until.plus(self.kill_after);
        match (self.killed, over, slept) {
            (_, true, _) => Some("the lease was not renewed"),
            (true, _, _) => Some("it is being killed"),
            (_, _, true) => Some("this machine was suspended, its lease is void"),
            _ => None,
        }
    }

    fn patience(&self, now: Instant) -> Duration {
        let left = self.until.plus(self.kill_after).since(now);
        if self.killed {
            LOOK_EVERY
        } else {
            left.min(LOOK_EVERY)
        }
    }
}

fn complain(what: &str) {
    // Nobody reads it: then nothing is lost.
    writeln!(io::stderr(), "twinblk-guardian: {what}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL_AFTER: Duration = Duration::from_millis(100);

    fn guardian(until: Instant) -> Guardian {
        Guardian {
            until,
            kill_after: KILL_AFTER,
            suspend: SuspendWatch::new(|| Duration::ZERO),
            killed: false,
        }
    }

    #[test]
    fn a_lease_that_is_renewed_lets_the_guest_live() {
        let end = Instant(1_000_000_000);
        let mut guardian = guardian(end);
        assert_eq!(guardian.verdict(end, Duration::ZERO), None);
        let late = end.plus(KILL_AFTER);
        assert!(guardian.patience(end) == KILL_AFTER);
        guardian.until = late;
        assert_eq!(guardian.verdict(late, Duration::ZERO), None);
        assert!(
            guardian
                .verdict(late.plus(KILL_AFTER), Duration::ZERO)
                .is_some()
        );
    }

    #[test]
    fn alone_there_is_no_deadline_and_a_suspension_is_none() {
        let mut alone = guardian(Instant::NEVER);
        assert_eq!(
            alone.verdict(Instant(u64::MAX - 1), Duration::from_secs(9)),
            None
        );
        let mut leased = guardian(Instant(u64::MAX / 2));
        assert!(leased.verdict(Instant(1), Duration::from_secs(9)).is_some());
    }

    #[test]
    fn arguments_come_back_as_they_went() {
        let text = ["web", "7", "8", "9", "10", "/run/x"].map(OsString::from);
        let charge = parse(&text).unwrap();
        assert_eq!(charge.process, ProcessId { pid: 7, start: 8 });
        assert_eq!(
            (charge.until, charge.kill_after),
            (Instant(9), Duration::from_nanos(10))
        );
        assert_eq!(parse(&text[1..]), None);
    }
}
