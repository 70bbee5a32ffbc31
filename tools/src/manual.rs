//! `completions`, `man` and `version`: what the program says about itself.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory;
use replicator::admin::{ErrorId, ErrorReport, Response, Verb, exit};
use serde_json::json;

use crate::cli::{self, Cli};
use crate::client::ask_within;
use crate::context::{Context, Failure, Output};

/// Prints the versions of this program and, if one answers, of the daemon.
///
/// # Errors
/// If nobody reads them, or the daemon does not reach the node that was named.
pub(crate) fn version(context: &Context) -> Result<u8, Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let no_daemon = ErrorId::DaemonUnreachable.code();
    let daemon = match ask_within(context, Duration::ZERO, Verb::Version) {
        Ok(Response::Version(version)) => Some(version),
        // Without a daemon here its own version is what there is to say; but a node that was asked
        // for by name is not there.
        Err(report) if context.node.is_some() && report.id != no_daemon => {
            return Err(report.into());
        }
        _ => None,
    };
    match context.output {
        Output::Json => context.put_json(&json!({ "twinadm": own, "daemon": daemon }), true)?,
        Output::Plain => {
            context.put(&format!("twinadm {own}\n"))?;
            if let Some(daemon) = daemon {
                let line = format!("{} {} on {}\n", daemon.program, daemon.version, daemon.node);
                context.put(&line)?;
            }
        }
    }
    Ok(exit::OK)
}

/// Prints completions for a shell.
///
/// # Errors
/// If nobody reads them.
pub(crate) fn completions(context: &Context, arguments: &cli::Completions) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "twinadm", &mut text);
    context.put(&String::from_utf8_lossy(&text))?;
    Ok(exit::OK)
}

/// Writes `twinadm.1`, one `twinadm-VERB.1` for each verb, and `twinblk-errors.7`.
///
/// # Errors
/// If the directory cannot be written.
pub(crate) fn man(context: &Context, arguments: &cli::Man) -> Result<u8, Failure> {
    let directory = &arguments.directory;
    clap_mangen::generate_to(
        with_exit_codes(Cli::command().disable_help_subcommand(true)),
        directory,
    )
    .and_then(|()| fs::write(directory.join("twinblk-errors.7"), errors_page()))
    .map_err(|error| unwritable(directory, &error))?;
    context.tell(&format!("man pages are in {}", directory.display()));
    Ok(exit::OK)
}

/// The exit codes belong at the end of every page.
fn with_exit_codes(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|verb| verb.after_help(cli::EXIT_CODES))
}

fn unwritable(directory: &Path, error: &io::Error) -> ErrorReport {
    let id = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorId::Permission,
        _ => ErrorId::DirectoryUnusable,
    };
    ErrorReport::new(
        id,
        format!("cannot write into {}", directory.display()),
        error.to_string(),
    )
    .next("name an existing directory that you may write")
}

/// All errors and warnings with what to do about them.
fn errors_page() -> String {
    let mut page = String::from(
        ".TH twinblk-errors 7\n.SH NAME\ntwinblk-errors \\- errors and warnings of twinblk\n.SH DESCRIPTION\n\
         Each message begins with an id that keeps its meaning for ever.\n",
    );
    for id in ErrorId::ALL {
        page += &format!(".TP\n.B {}\n{}.\n", id.code(), roff(id.meaning()));
        page += &format!("Exit code {}.\n", id.exit());
        for step in id.next() {
            page += &format!(".br\nNext: {}.\n", roff(step));
        }
    }
    page
}

/// Text as roff reads it: no line begins with a control character, no backslash or hyphen is lost.
fn roff(text: &str) -> String {
    let text = text
        .trim()
        .trim_end_matches('.')
        .replace('\\', "\\e")
        .replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errors_page_has_every_id() {
        let page = errors_page();
        for id in ErrorId::ALL {
            assert!(
                page.contains(&format!(".B {}\n", id.code())),
                "{}",
                id.code()
            );
        }
    }
}
