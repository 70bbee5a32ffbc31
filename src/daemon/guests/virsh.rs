//! libvirt by way of `virsh`: the tool administrators use, no library to link, and a process that
//! can be given up when libvirt hangs.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::PollTimeout;
use replicator::io::pidfd::PidFd;

use crate::guests::{DomainState, Ended, Fault, PauseReason};

/// What a guest's driver asks of a hypervisor. Each call may take its time and ends with
/// [`Fault::TimedOut`] at last.
pub(super) trait Hypervisor: Send {
    fn state(&self) -> Result<DomainState, Fault>;
    /// Makes the guest, its processors stopped.
    fn create(&self) -> Result<(), Fault>;
    fn resume(&self) -> Result<(), Fault>;
    fn shutdown(&self) -> Result<(), Fault>;
    fn destroy(&self) -> Result<(), Fault>;
}

/// libvirt answers a question at once, or something is wrong with it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Making a guest takes a while on a busy host: memory, disks, networks.
const CREATE_PATIENCE: Duration = Duration::from_secs(60);

/// libvirt itself gives QEMU 10 s after SIGTERM, then 5 s after SIGKILL.
const DESTROY_PATIENCE: Duration = Duration::from_secs(20);

/// One domain.
#[derive(Clone, Debug)]
pub(super) struct Virsh {
    /// How libvirt is reached.
    pub(super) uri: String,
    pub(super) domain: String,
}

impl Hypervisor for Virsh {
    fn state(&self) -> Result<DomainState, Fault> {
        let said = self.run(&["domstate", &self.domain, "--reason"], ANSWER_PATIENCE)?;
        state_of(said.trim())
    }

    fn create(&self) -> Result<(), Fault> {
        // What was saved, by libvirt-guests at a shutdown say, is memory of before: the volume may have
        // been written elsewhere since.
        let words = ["start", &self.domain, "--paused", "--force-boot"];
        self.run(&words, CREATE_PATIENCE).map(drop)
    }

    fn resume(&self) -> Result<(), Fault> {
        self.run(&["resume", &self.domain], ANSWER_PATIENCE)
            .map(drop)
    }

    fn shutdown(&self) -> Result<(), Fault> {
        self.run(&["shutdown", &self.domain], ANSWER_PATIENCE)
            .map(drop)
    }

    fn destroy(&self) -> Result<(), Fault> {
        self.run(&["destroy", &self.domain], DESTROY_PATIENCE)
            .map(drop)
    }
}

impl Virsh {
    fn run(&self, words: &[&str], patience: Duration) -> Result<String, Fault> {
        let mut child = Command::new("virsh")
            .args(["--quiet", "--connect", &self.uri])
            .args(words)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Fault::Said(format!("virsh cannot be run: {error}")))?;
        let ended = wait(&child, patience);
        if !ended {
            // It is given up; what it asked libvirt for may still be done.
            child.kill().ok();
        }
        let status = child.wait();
        // It has ended, and says less than a pipe holds.
        let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
        match status {
            _ if !ended => Err(Fault::TimedOut),
            Ok(status) if status.success() => Ok(stdout),
            _ => Err(fault_of(&stderr)),
        }
    }
}

fn wait(child: &Child, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    let held = i32::try_from(child.id()).map(PidFd::open);
    matches!(held, Ok(Ok(held)) if held.wait(timeout))
}

fn read(pipe: Option<impl Read>) -> String {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut text).ok();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The last line that says something is the one that says what.
fn fault_of(stderr: &str) -> Fault {
    let lines = stderr.lines().map(|line| {
        let line = line.trim();
        line.strip_prefix("error: ").unwrap_or(line)
    });
    let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    if said
        .iter()
        .any(|line| line.contains("failed to get domain"))
    {
        return Fault::NoDomain;
    }
    Fault::Said(said.last().map_or("virsh failed", |line| line).to_owned())
}

/// `domstate --reason`.
fn state_of(said: &str) -> Result<DomainState, Fault> {
    let (state, reason) = said.split_once(" (").unwrap_or((said, ""));
    let reason = reason.trim_end_matches(')');
    Ok(match state {
        "running" | "idle" | "blocked" => DomainState::Running,
        "paused" => DomainState::Paused(match reason {
            "starting up" => PauseReason::Starting,
            // Its own word comes too late when QEMU stops before it says why.
            "I/O error" | "unknown" => PauseReason::IoError,
            _ => PauseReason::Other,
        }),
        "in shutdown" => DomainState::ShuttingDown,
        "shut off" | "crashed" => DomainState::Off(match reason {
            "shutdown" | "destroyed" | "saved" | "migrated" => Ended::ByHand,
            "unknown" => Ended::Never,
            _ => Ended::Crashed,
        }),
        _ => return Err(Fault::Said(format!("virsh says {said:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_domstate_has_its_meaning() {
        let cases = [
            ("running (unpaused)", DomainState::Running),
            ("paused (user)", DomainState::Paused(PauseReason::Other)),
            (
                "paused (I/O error)",
                DomainState::Paused(PauseReason::IoError),
            ),
            (
                "paused (starting up)",
                DomainState::Paused(PauseReason::Starting),
            ),
            ("shut off (crashed)", DomainState::Off(Ended::Crashed)),
            ("shut off (failed)", DomainState::Off(Ended::Crashed)),
            ("shut off (shutdown)", DomainState::Off(Ended::ByHand)),
            ("shut off (destroyed)", DomainState::Off(Ended::ByHand)),
            ("shut off (unknown)", DomainState::Off(Ended::Never)),
            ("in shutdown (user)", DomainState::ShuttingDown),
        ];
        for (said, state) in cases {
            assert_eq!(state_of(said), Ok(state), "{said}");
        }
        assert!(state_of("").is_err());
    }

    #[test]
    fn what_virsh_complains_of_is_told_on() {
        let missing = "error: failed to get domain 'nope'\n\n";
        assert_eq!(fault_of(missing), Fault::NoDomain);
        let failed = "error: Failed to start domain 'web'\nerror: internal error: no disk\n\n";
        let said = Fault::Said("internal error: no disk".to_owned());
        assert_eq!(fault_of(failed), said);
    }
}
