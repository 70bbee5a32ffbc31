//! Wiring: threads, sockets and files around the pure controller, engine and NBD session.
//!
//! ```text
//!   main ── signals, start, ordered stop
//!   control ── one thread per client: orders, status ─┐ reads and waits on the board
//!      ▲ what other nodes pass on, from the shard
//!   beacon ── controller, UDP ──┬── commands ──▶ shard ── engines, disks, links, NBD
//!      ▲ persisted              │ records        │ marks
//!      └────── store ◀──────────┴────────────────┘        log ── writes what all others say
//! ```
//!
//! The arbitrator is the same without a shard.

mod adjust;
pub mod api;
pub mod args;
mod automation;
mod beacon;
pub mod beacon_io;
pub mod board;
mod bridge;
mod certificates;
pub mod control;
mod decisions;
pub mod force_order;
mod forward;
mod guest_orders;
mod guests;
mod history;
mod history_file;
mod invalidate_orders;
pub mod join_door;
mod last_words;
mod lifecycle;
pub mod listeners;
mod log;
pub mod mailbox;
mod metrics;
mod move_order;
mod node;
mod node_orders;
pub mod notify;
mod orders;
mod origin;
mod placement;
mod prepare;
mod reexec_order;
mod relay;
pub mod relay_door;
mod resize_orders;
mod resources;
mod resync_orders;
mod running;
pub mod security;
pub mod shard;
mod start;
pub mod status;
pub mod store_thread;
mod suspend_orders;
mod verify_orders;
pub mod voter_store;
mod voters;
mod watchdog;
mod what_if;
mod why;
pub mod wire;
mod words;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use args::{Command, Flags};
use replicator::admin::exit;
use running::End;

/// Which of the two daemons this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Holds data, serves guests, votes.
    Daemon,
    /// Votes.
    Arbitrator,
}

impl Program {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Daemon => "twinblkd",
            Self::Arbitrator => "twinblk-arbitrator",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Daemon => "Mirrors volumes with a peer and serves them to guests over NBD.",
            Self::Arbitrator => "Third voter of a pair: stores views, holds no data.",
        }
    }
}

/// What `main` of both programs does: reads the arguments, runs, and says how it ended.
#[must_use]
pub fn main(program: Program) -> ExitCode {
    last_words::on_panic();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == guests::guardian::GUARDIAN
    {
        return guests::guardian::main(rest);
    }
    if let Some((first, rest)) = arguments.split_first()
        && first == reexec_order::REHEARSAL
    {
        return rehearsal(program, rest);
    }
    let code = match args::parse(arguments, defaults()) {
        Ok(Command::Help) => {
            print(&args::help(program.name(), program.what()));
            exit::OK
        }
        Ok(Command::Version) => {
            print(&format!(
                "{} {}\n",
                program.name(),
                env!("CARGO_PKG_VERSION")
            ));
            exit::OK
        }
        Ok(Command::Run(flags)) => match start::run(program, &flags) {
            Ok(End::Stopped) => exit::OK,
            Ok(End::Again { program, sockets }) => {
                let shown = program.display();
                let complain = |error: &std::io::Error| {
                    last_words::say(&format!(
                        "error: {shown} cannot be started: {error}; what ran until now starts again\n"
                    ));
                };
                let error = listeners::become_again(&program, &sockets, complain);
                last_words::say(&format!("error: {shown} cannot be started: {error}\n"));
                exit::FAILED
            }
            Err(failure) => {
                last_words::say(&failure.text);
                failure.exit
            }
        },
        Err(wrong) => {
            last_words::say(&format!(
                "error: {wrong}\n  next   {} --help\n",
                program.name()
            ));
            exit::USAGE
        }
    };
    ExitCode::from(code)
}

/// Only says whether a start would come to serve; see [`reexec_order`].
fn rehearsal(program: Program, arguments: &[OsString]) -> ExitCode {
    let failure = match args::parse(arguments.iter().cloned(), defaults()) {
        Ok(Command::Run(flags)) => start::rehearse(program, &flags).err(),
        Ok(Command::Help | Command::Version) => None,
        Err(text) => Some(start::Failure {
            text,
            exit: exit::USAGE,
        }),
    };
    let Some(failure) = failure else {
        print(reexec_order::WOULD_START);
        return ExitCode::SUCCESS;
    };
    last_words::say(&failure.text);
    ExitCode::from(failure.exit)
}

fn defaults() -> Flags {
    let config = std::env::var_os("TWINBLK_CONFIG").unwrap_or_else(|| "/etc/twinblk".into());
    let node = nix::unistd::gethostname().unwrap_or_else(|_| OsString::from("localhost"));
    Flags {
        config: config.into(),
        node: node.to_string_lossy().into_owned(),
        state_dir: PathBuf::from("/var/lib/twinblk"),
        run_dir: PathBuf::from("/run/twinblk"),
    }
}

fn print(text: &str) {
    // Nobody reads it: then nothing is lost.
    std::io::stdout().write_all(text.as_bytes()).ok();
}
