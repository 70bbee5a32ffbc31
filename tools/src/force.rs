//! `primary --force`: tells what would be given up, and on a terminal asks for the resource's name and
//! the view that is given up.

use std::io::{self, BufRead, IsTerminal, Write};

use replicator::admin::{ErrorId, exit};

use crate::cli;
use crate::context::{Context, Failure, Output};
use crate::orders::{self, MakeVerb};

/// Longest answer that is read.
const ANSWER_LEN_MAX: u64 = 256;

/// Gives the orders one after the other; the first failure decides the exit code. `--yes` is no
/// answer to this question.
///
/// # Errors
/// If the daemon cannot be reached or a selector fits nothing.
pub(crate) fn primary(context: &Context, arguments: &cli::Primary) -> Result<u8, Failure> {
    let mut code = exit::OK;
    for name in orders::names(context, &arguments.resources)? {
        let make = MakeVerb::Force(arguments.yes_lose.clone());
        let this = match orders::give_one(context, &make, &name) {
            Err(Failure::Report(report)) => {
                context.tell_error(&report);
                let would_lose = report.id == ErrorId::WouldLose.code();
                match would_lose.then(|| ask(context, &name)).flatten() {
                    Some(typed) => confirmed(context, &name, typed)?,
                    None => report.exit,
                }
            }
            done => done?,
        };
        if code == exit::OK || (code == exit::PENDING && this != exit::OK) {
            code = this;
        }
    }
    Ok(code)
}

fn confirmed(context: &Context, name: &str, typed: String) -> Result<u8, Failure> {
    match orders::give_one(context, &MakeVerb::Force(Some(typed)), name) {
        Err(Failure::Report(report)) => {
            context.tell_error(&report);
            Ok(report.exit)
        }
        done => done,
    }
}

/// The resource's name and a view, if a person typed just that; `None` where nobody can be asked.
fn ask(context: &Context, name: &str) -> Option<String> {
    let person = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !person || context.output == Output::Json {
        return None;
    }
    let mut stderr = io::stderr().lock();
    write!(
        stderr,
        "type {name}@VIEW, with the view's number as told above, to lose that, anything else to leave it: "
    )
    .ok()?;
    stderr.flush().ok()?;
    let mut answer = String::new();
    let mut limited = io::Read::take(io::stdin().lock(), ANSWER_LEN_MAX);
    limited.read_line(&mut answer).ok()?;
    let answer = answer.trim();
    // Which view it is about the daemon compares.
    let view = answer.strip_prefix(name)?.strip_prefix('@')?;
    let digits = !view.is_empty() && view.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| answer.to_owned())
}
