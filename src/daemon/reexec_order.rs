//! `reexec`: the daemon becomes its own program anew, which may be a newer one by now. NBD clients are
//! cut off after what was acknowledged is durable, and wait in the listening sockets, which stay.
//!
//! Invariant: before anything is let go of, the program on the disk has said that it would start with
//! the files of now. From then on nobody suspends writes here: the next life would let them go on.

use std::io;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::poll::PollTimeout;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use replicator::admin::{ErrorId, ErrorReport, Response};
use replicator::io::pidfd::PidFd;
use replicator::types::Role;

use super::control::Answers;
use super::node::Node;
use super::orders::client_names;
use super::prepare::held_ports;
use super::suspend_orders::Passing;

/// First argument of a program that is only to say whether it would start.
pub(super) const REHEARSAL: &str = "--rehearse";

/// What it says on stdout if it would: another program in its place might end well, too.
pub(super) const WOULD_START: &str = "would start\n";

/// Which ports whoever asks holds, and lets go of before a start.
pub(super) const HELD_PORTS: &str = "TWINBLK_HELD_PORTS";

/// How long it may take over that; whoever ordered it waits a little longer for the answer.
const REHEARSAL_PATIENCE_MS: u16 = 4_000;

/// A thread that only waits.
const COLLECTOR_STACK_LEN: usize = 64 * 1024;

/// Of what it says about that, so much is passed on.
const REHEARSAL_WORDS_MAX: u64 = 4096;

impl Node {
    /// Answers, then has the main thread do it: the answer would be lost with this thread.
    pub(super) fn reexec(&self, answers: &mut dyn Answers) -> io::Result<()> {
        let passings = match self.check_reexec() {
            Ok(passings) => passings,
            Err(report) => return answers.send(&Response::Error(report)),
        };
        let taken = self.board.update(|board| {
            let free = !board.stopping && !board.again;
            board.again |= free;
            free
        });
        if !taken {
            let why = "the daemon is already about to end";
            let report = ErrorReport::new(ErrorId::OrderUnderWay, self.not_again(), why);
            return answers.send(&Response::Error(report));
        }
        // To the end of this process.
        let _held = ManuallyDrop::new(passings);
        tracing::info!("reexec: starting again as {}", self.program_path.display());
        let message = format!("{} starts its program again", self.name());
        let changed = true;
        let told = answers.send(&Response::Done { changed, message });
        self.ended.wake();
        told
    }

    fn not_again(&self) -> String {
        format!("{} does not start again on {}", self.program, self.name())
    }

    fn check_reexec(&self) -> Result<Vec<Passing<'_>>, ErrorReport> {
        let resources = self.resources.all();
        // An operator's snapshots rest on the writes held here.
        let passings = resources
            .iter()
            .map(|resource| self.check_not_suspended(resource, false))
            .collect::<Result<_, _>>()?;
        self.check_served_again()?;
        rehearse(&self.program_path, &held_ports(&self.config, self.node))
            .map_err(|why| ErrorReport::new(ErrorId::RestartRefused, self.not_again(), why))?;
        // That took a while.
        self.check_served_again()?;
        Ok(passings)
    }

    /// Who has a disk here would have it after a start, too.
    fn check_served_again(&self) -> Result<(), ErrorReport> {
        for resource in self.resources.all() {
            let id = resource.id();
            let passed_on = self.board.read(|board| {
                let shard = board.resources.get(&id).and_then(|it| it.shard.as_ref());
                let secondary = shard.filter(|it| it.engine.role != Role::Primary);
                secondary.map_or_else(String::new, |it| client_names(&it.nbd_clients))
            });
            if !passed_on.is_empty() {
                let why = format!(
                    "clients of {} reach the Primary through this node, and would not be let in again: \
                     those that began before a start may have been superseded ({passed_on})",
                    resource.name
                );
                let report = ErrorReport::new(ErrorId::ClientsAttached, self.not_again(), why);
                return Err(report.next(format!(
                    "move {} here or its guest away, or end them; then: twinadm reexec",
                    resource.name
                )));
            }
            let serves = self.engine(&resource, |it| it.role == Role::Primary);
            let quorum = |it: &crate::controller::NodeSnapshot| it.quorum;
            let seen = self
                .board
                .read(|board| board.node.as_ref().is_none_or(quorum));
            if serves && !seen {
                let why = format!(
                    "it serves {}, and would have to ask a majority of the voters before it serves it \
                     again: too few of them are seen",
                    resource.name
                );
                return Err(ErrorReport::new(ErrorId::NoQuorum, self.not_again(), why));
            }
        }
        Ok(())
    }
}

/// Guardians that a life before started are this process's children still: somebody has to collect them
/// when they end. Called before anything else is started.
pub(super) fn collect_children() {
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children"));
    for pid in children.unwrap_or_default().split_ascii_whitespace() {
        let Ok(pid) = pid.parse() else { continue };
        let collector = thread::Builder::new()
            .name("guardian".to_owned())
            .stack_size(COLLECTOR_STACK_LEN);
        let collect = move || waitpid(Pid::from_raw(pid), None).ok();
        if let Err(error) = collector.spawn(collect) {
            tracing::warn!(%error, pid, "nobody collects this child when it ends");
        }
    }
}

/// Has the program that would be started say whether it would start.
fn rehearse(program: &Path, held: &[u16]) -> Result<(), String> {
    if program.as_os_str().is_empty() {
        return Err("where its program is could not be learnt at its start".to_owned());
    }
    let shown = program.display();
    let failed = |error: io::Error| format!("{shown}: {error}");
    let held: Vec<String> = held.iter().map(u16::to_string).collect();
    let mut child = Command::new(program)
        .arg(REHEARSAL)
        .env(HELD_PORTS, held.join(","))
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let ended = i32::try_from(child.id())
        .ok()
        .and_then(|pid| PidFd::open(pid).ok())
        .is_some_and(|process| process.wait(PollTimeout::from(REHEARSAL_PATIENCE_MS)));
    if !ended {
        child.kill().map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if !ended {
        return Err(format!("{shown} does not say whether it would start"));
    }
    if status.success() && said(child.stdout.take()) == WOULD_START {
        return Ok(());
    }
    let words = said(child.stderr.take());
    let words = words.trim();
    Err(match words.is_empty() {
        true => format!("{shown} would not start ({status})"),
        false => format!("{shown} would not start:\n{words}"),
    })
}

/// What it said there; what cannot be read is left out.
fn said(stream: Option<impl Read>) -> String {
    let mut words = String::new();
    if let Some(stream) = stream {
        stream
            .take(REHEARSAL_WORDS_MAX)
            .read_to_string(&mut words)
            .ok();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_or_says_no_is_not_started() {
        let missing = rehearse(Path::new("/nonexistent/twinblkd"), &[]).unwrap_err();
        assert!(missing.contains("/nonexistent/twinblkd"), "{missing}");
        let refused = rehearse(Path::new("/bin/false"), &[]).unwrap_err();
        assert!(refused.contains("would not start"), "{refused}");
        let other = rehearse(Path::new("/bin/true"), &[]).unwrap_err();
        assert!(other.contains("would not start"), "{other}");
    }
}
