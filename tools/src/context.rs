//! What every verb needs: where things are, how to speak.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport};
use serde::Serialize;
use twinblk::config::{Checked, Diagnostic, Scope, load};

use crate::cli::{ColorChoice, Globals, OutputForm};
use crate::show::message;

/// Form of the output.
pub type Output = OutputForm;

/// Why a verb ends early.
#[derive(Debug)]
pub enum Failure {
    /// Not told yet.
    Report(Box<ErrorReport>),
    /// Told already; only the exit code is left.
    Told(u8),
    /// Whoever read our output does not any more: nothing is wrong, and nothing more to say.
    ReaderGone,
}

impl From<ErrorReport> for Failure {
    fn from(report: ErrorReport) -> Self {
        Self::Report(Box::new(report))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => ErrorReport::new(
                ErrorId::DeviceFailed,
                "cannot write the output",
                error.to_string(),
            )
            .next("make room, or write it elsewhere")
            .into(),
        }
    }
}

/// What every verb needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// Directory of the configuration.
    pub config_dir: PathBuf,
    /// Directory of the daemon's sockets.
    pub run_dir: PathBuf,
    /// The node the verb is about, if named.
    pub node: Option<String>,
    /// Only say what would change.
    pub dry_run: bool,
    /// What is lost by the verb may be.
    pub yes: bool,
    /// Form of data and errors.
    pub output: Output,
    /// No messages but errors.
    pub quiet: bool,
    /// Detail, 0 to 255.
    pub verbose: u8,
    /// How long to wait, if said.
    pub timeout: Option<Duration>,
    /// Colour messages.
    pub color: bool,
}

impl Context {
    /// Most bytes that may be lost, if that was said: `--yes` is a yes to all of them.
    #[must_use]
    pub fn discards(&self, said: Option<u64>) -> Option<u64> {
        said.or(self.yes.then_some(u64::MAX))
    }

    /// From the command line and the environment.
    #[must_use]
    pub fn new(globals: &Globals) -> Self {
        let from_environment = || std::env::var_os("TWINBLK_CONFIG").map(PathBuf::from);
        let config = globals.config.clone().or_else(from_environment);
        Self {
            config_dir: config.unwrap_or_else(|| PathBuf::from("/etc/twinblk")),
            run_dir: globals.run_dir.clone(),
            node: globals.node.clone(),
            dry_run: globals.dry_run,
            yes: globals.yes,
            output: globals.output,
            quiet: globals.quiet,
            verbose: globals.verbose,
            timeout: globals.timeout,
            color: wants_color(globals.color),
        }
    }

    /// The whole configuration; its mistakes are told here.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn load_config(&self) -> Result<Checked, Failure> {
        load(&self.config_dir, Scope::All).map_err(|found| {
            self.tell_diagnostics(&found);
            Failure::Told(exit_of(&found))
        })
    }

    /// Tells mistakes and warnings on stderr.
    pub fn tell_diagnostics(&self, found: &[Diagnostic]) {
        for diagnostic in found {
            match self.output {
                Output::Plain => tell(&message::coloured(&diagnostic.render(), self.color)),
                Output::Json => tell(&message::error_json(&ErrorReport::from(diagnostic))),
            }
        }
    }

    /// Tells an error on stderr.
    pub fn tell_error(&self, report: &ErrorReport) {
        match self.output {
            Output::Plain => tell(&message::coloured(&message::error_text(report), self.color)),
            Output::Json => tell(&message::error_json(report)),
        }
    }

    /// Tells something that is not an error on stderr, unless asked to be quiet.
    pub fn tell(&self, text: &str) {
        if !self.quiet && self.output == Output::Plain {
            tell(&format!("{text}\n"));
        }
    }

    /// Puts data on stdout, whole lines.
    ///
    /// # Errors
    /// If nobody reads it, or it cannot be written.
    pub fn put(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Puts one JSON value on stdout: on one line, or readable.
    ///
    /// # Errors
    /// If nobody reads it, or it cannot be written.
    pub fn put_json(&self, value: &impl Serialize, one_line: bool) -> Result<(), Failure> {
        let text = if one_line {
            serde_json::to_string(value)
        } else {
            serde_json::to_string_pretty(value)
        };
        let text = text.map_err(io::Error::from)?;
        self.put(&format!("{text}\n"))
    }

    /// Name of the node that data on this machine belong to when no daemon says so.
    #[must_use]
    pub fn local_node(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            nix::unistd::gethostname().map_or_else(
                |_| "localhost".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            )
        })
    }
}

/// Exit code for a refused configuration: that of its first error.
pub(crate) fn exit_of(found: &[Diagnostic]) -> u8 {
    let first = found.iter().find(|diagnostic| !diagnostic.id.is_warning());
    first.map_or(replicator::admin::exit::OK, |diagnostic| {
        diagnostic.id.exit()
    })
}

/// Writes to stderr. That nobody reads there is no reason to stop.
fn tell(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

fn wants_color(choice: ColorChoice) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if set("NO_COLOR") => false,
        ColorChoice::Auto if std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| v != "0") => true,
        ColorChoice::Auto => {
            io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}
