//! `status`, once or watched, and the one-word verbs.

use std::io::IsTerminal;
use std::time::Duration;

use replicator::admin::{ErrorReport, ResourceStatus, Status, exit, rfc3339_seconds};

use crate::cli::{self, StatusSchema};
use crate::clock::{pause, unix_millis};
use crate::context::{Context, Failure, Output};
use crate::orders::snapshot;
use crate::show::drbd9::drbd9;
use crate::show::health::{health, nagios};
use crate::show::status::{Detail, resource_line, status_text};

/// Shortest pause between two looks of `--watch`.
const WATCH_MIN: Duration = Duration::from_millis(100);

/// Nagios' own code for "cannot tell".
const NAGIOS_UNKNOWN: u8 = 3;

/// Back to the top left, and erase from there: no flicker.
const REDRAW: &str = "\x1b[H\x1b[J";

/// `status`.
///
/// # Errors
/// If the daemon cannot be reached or there is no such resource.
pub(crate) fn status(context: &Context, arguments: &cli::Status) -> Result<u8, Failure> {
    if arguments.nagios {
        return show_nagios(context, arguments);
    }
    if let Some(interval) = arguments.watch {
        return watch(context, arguments, interval.max(WATCH_MIN));
    }
    let status = snapshot(context, arguments.resource.as_deref())?;
    match schema(context, arguments) {
        None => context.put(&status_text(&status, detail(context, arguments)))?,
        Some(schema) => put_status(context, &status, schema, arguments.problems, false)?,
    }
    Ok(if arguments.check {
        health(&status).exit()
    } else {
        exit::OK
    })
}

/// Prints a word about one resource.
///
/// # Errors
/// If the daemon cannot be reached or there is no such resource.
pub(crate) fn word(
    context: &Context,
    arguments: &cli::OneResource,
    word: fn(&ResourceStatus) -> String,
) -> Result<u8, Failure> {
    let status = snapshot(context, Some(&arguments.resource))?;
    for resource in &status.resources {
        let lines = word(resource);
        match context.output {
            Output::Plain => context.put(&format!("{lines}\n"))?,
            Output::Json => context.put_json(&lines.lines().collect::<Vec<_>>(), true)?,
        }
    }
    Ok(exit::OK)
}

fn schema(context: &Context, arguments: &cli::Status) -> Option<StatusSchema> {
    let by_output = (context.output == Output::Json).then_some(StatusSchema::Twinblk);
    arguments.json.or(by_output)
}

fn detail(context: &Context, arguments: &cli::Status) -> Detail {
    Detail {
        problems_only: arguments.problems,
        verbose: context.verbose > 0,
    }
}

fn put_status(
    context: &Context,
    status: &Status,
    schema: StatusSchema,
    problems_only: bool,
    one_line: bool,
) -> Result<(), Failure> {
    let mut status = status.clone();
    status
        .resources
        .retain(|resource| !problems_only || resource.problem.is_some());
    match schema {
        StatusSchema::Twinblk => context.put_json(&status, one_line),
        StatusSchema::Drbd9 => context.put_json(&drbd9(&status), one_line),
    }
}

fn show_nagios(context: &Context, arguments: &cli::Status) -> Result<u8, Failure> {
    match snapshot(context, arguments.resource.as_deref()) {
        Ok(status) => {
            let (line, code) = nagios(&status);
            context.put(&line)?;
            Ok(code)
        }
        Err(report) => {
            context.put(&format!("TWINBLK UNKNOWN - {}\n", report.what))?;
            Ok(NAGIOS_UNKNOWN)
        }
    }
}

/// Shows the status again and again. A daemon that goes away is waited for; a first look that
/// fails is an error.
fn watch(context: &Context, arguments: &cli::Status, interval: Duration) -> Result<u8, Failure> {
    let on_terminal = std::io::stdout().is_terminal();
    let resource = arguments.resource.as_deref();
    let mut last = Shown::default();
    let mut answer: Result<Status, ErrorReport> = Ok(snapshot(context, resource)?);
    loop {
        match (schema(context, arguments), on_terminal) {
            (None, true) => redraw(context, arguments, &answer)?,
            (schema, _) => last.put_changes(context, &answer, schema, arguments.problems)?,
        }
        pause(interval);
        answer = snapshot(context, resource);
    }
}

fn redraw(
    context: &Context,
    arguments: &cli::Status,
    answer: &Result<Status, ErrorReport>,
) -> Result<(), Failure> {
    let text = match answer {
        Ok(status) => status_text(status, detail(context, arguments)),
        Err(report) => crate::show::message::error_text(report),
    };
    context.put(&format!("{REDRAW}{text}"))
}

/// What was printed last: only what differs is printed again.
#[derive(Default)]
struct Shown {
    lines: Vec<(String, String)>,
    document: Option<Status>,
    error: Option<String>,
}

impl Shown {
    fn put_changes(
        &mut self,
        context: &Context,
        answer: &Result<Status, ErrorReport>,
        schema: Option<StatusSchema>,
        problems_only: bool,
    ) -> Result<(), Failure> {
        match answer {
            Ok(status) => {
                self.error = None;
                match schema {
                    None => self.put_lines(context, status, problems_only),
                    Some(schema) => self.put_document(context, status, schema, problems_only),
                }
            }
            Err(report) => {
                if self.error.replace(report.what.clone()).as_ref() != Some(&report.what) {
                    context.tell_error(report);
                }
                Ok(())
            }
        }
    }

    fn put_lines(
        &mut self,
        context: &Context,
        status: &Status,
        problems_only: bool,
    ) -> Result<(), Failure> {
        let shown = status
            .resources
            .iter()
            .filter(|r| !problems_only || r.problem.is_some());
        let lines: Vec<(String, String)> = shown
            .map(|resource| (resource.name.clone(), resource_line(resource)))
            .collect();
        let at = rfc3339_seconds(unix_millis());
        for line in &lines {
            if !self.lines.contains(line) {
                context.put(&format!("{at} {}\n", line.1))?;
            }
        }
        for (name, _) in &self.lines {
            if !lines.iter().any(|(other, _)| other == name) {
                context.put(&format!("{at} {name} gone\n"))?;
            }
        }
        self.lines = lines;
        Ok(())
    }

    fn put_document(
        &mut self,
        context: &Context,
        status: &Status,
        schema: StatusSchema,
        problems_only: bool,
    ) -> Result<(), Failure> {
        let mut compared = status.clone();
        compared.generated.clear();
        if self.document.as_ref() != Some(&compared) {
            self.document = Some(compared);
            put_status(context, status, schema, problems_only, true)?;
        }
        Ok(())
    }
}
