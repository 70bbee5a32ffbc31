//! From the command line to the exit code.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use clap::error::ErrorKind;
use nix::sys::signal::{SigSet, Signal};
use replicator::admin::exit;

use crate::cli::{self, Cli, Verb};
use crate::context::{Context, Failure, Output};
use crate::orders::MakeVerb;
use crate::show::words;
use crate::wait::Goal;
use crate::{
    adjust, bench, config_verbs, create_md, demo, events, explain, force, guest, identity, manual,
    metadata, nodes, orders, reexec, split_brain, status, verify, wait,
};

/// Runs `twinadm` with these arguments, the program's name first; answers the exit code.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> u8 {
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &arguments),
    };
    let mut context = Context::new(&cli.globals);
    if wants_json(&cli.verb) {
        context.output = Output::Json;
    }
    // The demo has children to end first, and so its own way with signals.
    if !matches!(cli.verb, Verb::Demo(_)) {
        exit_on_interrupt();
    }
    match run(&context, &cli.verb) {
        Ok(code) | Err(Failure::Told(code)) => code,
        Err(Failure::ReaderGone) => exit::OK,
        Err(Failure::Report(report)) => {
            context.tell_error(&report);
            report.exit
        }
    }
}

fn run(context: &Context, verb: &Verb) -> Result<u8, Failure> {
    match verb {
        Verb::Demo(arguments) => Ok(demo::run(arguments, context.output == Output::Json)),
        Verb::Up(arguments) => orders::give(context, &arguments.resources, &MakeVerb::Up),
        Verb::Down(arguments) => orders::give(
            context,
            &arguments.resources,
            &MakeVerb::Down(arguments.force),
        ),
        Verb::Attach(arguments) => orders::give(context, &arguments.volumes, &MakeVerb::Attach),
        Verb::Detach(arguments) => orders::give(context, &arguments.volumes, &MakeVerb::Detach),
        Verb::Connect(arguments) => orders::give(context, &arguments.peers, &MakeVerb::Connect),
        Verb::Disconnect(arguments) => {
            orders::give(context, &arguments.peers, &MakeVerb::Disconnect)
        }
        Verb::PauseSync(arguments) => {
            orders::give(context, &arguments.resources, &MakeVerb::PauseSync)
        }
        Verb::ResumeSync(arguments) => {
            orders::give(context, &arguments.resources, &MakeVerb::ResumeSync)
        }
        Verb::Resize(arguments) => orders::give(
            context,
            std::slice::from_ref(&arguments.resource),
            &MakeVerb::Resize(arguments.size),
        ),
        Verb::SuspendIo(arguments) => {
            orders::give(context, &arguments.resources, &MakeVerb::SuspendIo)
        }
        Verb::ResumeIo(arguments) => {
            orders::give(context, &arguments.resources, &MakeVerb::ResumeIo)
        }
        Verb::Resync(arguments) => orders::give(
            context,
            &arguments.resources,
            &MakeVerb::Resync(arguments.max_rate),
        ),
        Verb::Verify(arguments) => verify::verify(context, arguments),
        Verb::Invalidate(arguments) => {
            let make = MakeVerb::Invalidate(
                arguments.from.clone(),
                context.discards(arguments.yes_discard),
            );
            orders::give(context, core::slice::from_ref(&arguments.resource), &make)
        }
        Verb::InvalidateRemote(arguments) => {
            let make = MakeVerb::InvalidateRemote(
                arguments.peer.clone(),
                context.discards(arguments.yes_discard),
            );
            orders::give(context, core::slice::from_ref(&arguments.resource), &make)
        }
        Verb::Primary(arguments) if arguments.force => force::primary(context, arguments),
        Verb::Primary(arguments) => orders::give(context, &arguments.resources, &MakeVerb::Primary),
        Verb::SplitBrain(cli::SplitBrain::Show(arguments)) => split_brain::show(context, arguments),
        Verb::SplitBrain(cli::SplitBrain::Resolve(arguments)) => {
            split_brain::resolve(context, arguments)
        }
        Verb::Secondary(arguments) => orders::give(
            context,
            &arguments.resources,
            &MakeVerb::Secondary(arguments.force),
        ),
        Verb::Adjust(arguments) => adjust::adjust(context, arguments),
        Verb::Move(arguments) => orders::give(
            context,
            std::slice::from_ref(&arguments.resource),
            &MakeVerb::Move(arguments.to.clone()),
        ),
        Verb::Node(cli::NodeVerb::Drain(arguments)) => nodes::drain(context, arguments),
        Verb::Node(cli::NodeVerb::Resume(arguments)) => nodes::resume(context, arguments),
        Verb::Maintenance(arguments) => nodes::maintenance(context, arguments),
        Verb::Reexec => reexec::reexec(context),
        Verb::ConfirmFenced(arguments) => nodes::confirm_fenced(context, arguments),
        Verb::Why(arguments) => explain::why(context, arguments),
        Verb::Bench(cli::Bench::Disk(arguments)) => bench::disk(context, arguments),
        Verb::Bench(cli::Bench::Compare(arguments)) => bench::compare(context, arguments),
        Verb::Quorum(cli::Quorum::Show) => explain::quorum(context),
        Verb::WhatIf(cli::WhatIf::Kill(arguments)) => explain::what_if(context, arguments),
        Verb::History(arguments) => explain::history(context, arguments),
        Verb::Init(arguments) => identity::init(context, arguments),
        Verb::Join(arguments) => identity::join(context, arguments),
        Verb::Leave(arguments) => identity::leave(context, arguments),
        Verb::CreateMd(arguments) => create_md::create_md(context, arguments),
        Verb::DumpMd(arguments) => metadata::dump_md(context, arguments),
        Verb::ShowGi(arguments) => metadata::show_gi(context, arguments),
        Verb::WipeMd(arguments) => metadata::wipe_md(context, arguments),
        Verb::RepairMd(arguments) => metadata::repair_md(context, arguments),
        Verb::Status(arguments) => status::status(context, arguments),
        Verb::Role(arguments) => status::word(context, arguments, words::role),
        Verb::Cstate(arguments) => status::word(context, arguments, words::cstate),
        Verb::Dstate(arguments) => status::word(context, arguments, words::dstate),
        Verb::WaitConnect(arguments) => wait::wait(context, arguments, Goal::Connected),
        Verb::WaitSync(arguments) => wait::wait(context, arguments, Goal::InSync),
        Verb::Events2(arguments) => events::events2(context, arguments),
        Verb::Guest(cli::Guest::Xml(arguments)) => guest::xml(context, arguments),
        Verb::Dump(arguments) => config_verbs::dump(context, arguments),
        Verb::Check(arguments) => config_verbs::check(context, arguments),
        Verb::Version => manual::version(context),
        Verb::Completions(arguments) => manual::completions(context, arguments),
        Verb::Man(arguments) => manual::man(context, arguments),
    }
}

/// `--json` of a verb is `-o json`, errors included.
fn wants_json(verb: &Verb) -> bool {
    match verb {
        Verb::Status(arguments) => arguments.json.is_some(),
        Verb::Events2(arguments) => arguments.json,
        _ => false,
    }
}

/// Help and version are no errors; an unknown verb may be a program `twinadm-VERB` on PATH.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> u8 {
    if error.kind() == ErrorKind::InvalidSubcommand
        && let [_, verb, rest @ ..] = arguments
        && let Some(program) = find_program(verb)
    {
        let failed = Command::new(&program).args(rest).exec();
        eprintln!("{}: {failed}", program.display());
        return exit::FAILED;
    }
    // Nobody reading is no reason for another exit code.
    drop(error.print());
    if error.use_stderr() {
        exit::USAGE
    } else {
        exit::OK
    }
}

fn find_program(verb: &OsString) -> Option<PathBuf> {
    let verb = verb
        .to_str()
        .filter(|verb| !verb.contains('/') && !verb.starts_with('-'))?;
    let name = format!("twinadm-{verb}");
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(&name))
        .find(|file| file.is_file())
}

/// Makes Ctrl-C end the program with the documented code. Nothing needs cleaning up: a client that
/// goes away ends its conversation, and `create-md` leaves nothing half-made that looks whole.
fn exit_on_interrupt() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    if signals.thread_block().is_err() {
        return;
    }
    let wait = move || {
        if signals.wait().is_ok() {
            #[allow(
                clippy::disallowed_methods,
                reason = "the main thread may be waiting in a read"
            )]
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
    };
    // Without the thread Ctrl-C would do nothing at all.
    if std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(wait)
        .is_err()
    {
        signals.thread_unblock().unwrap_or(());
    }
}
