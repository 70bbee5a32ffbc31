//! Verbs that change a resource: send, wait, tell.

use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, MaxRate, Request, Response, Status, Verb, exit};
use serde_json::json;

use crate::client::{CONNECT_PATIENCE, Conversation, ask};
use crate::context::{Context, Failure, Output};
use crate::plan::plan;
use crate::selector::Selector;

/// How long an order may wait for what can still arrive.
const ORDER_WAIT: Duration = Duration::from_secs(30);

/// How long `resize` may: a disk that cannot deallocate is written with zeroes where it is new. What
/// is not over by then goes on all the same.
const RESIZE_WAIT: Duration = Duration::from_secs(3600);

/// A verb that waits for its resource.
#[derive(Clone, Debug)]
pub(crate) enum MakeVerb {
    Up,
    Down(bool),
    Attach,
    Detach,
    Connect,
    Disconnect,
    PauseSync,
    ResumeSync,
    SuspendIo,
    ResumeIo,
    /// To which size.
    Resize(Option<u64>),
    Resync(MaxRate),
    Verify {
        repair: bool,
        stop: bool,
    },
    /// From which node, and how much may be lost.
    Invalidate(String, Option<u64>),
    /// The same on that peer.
    InvalidateRemote(String, Option<u64>),
    Primary,
    /// By force, and the name that was typed.
    Force(Option<String>),
    Secondary(bool),
    Move(String),
}

impl MakeVerb {
    fn verb(&self, resource: String, selector: &Selector) -> Verb {
        let (volume, peer) = (selector.volume, selector.peer.clone());
        match self.clone() {
            Self::Up => Verb::Up { resource },
            Self::Down(force) => Verb::Down { resource, force },
            Self::Attach => Verb::Attach { resource, volume },
            Self::Detach => Verb::Detach { resource, volume },
            Self::Connect => Verb::Connect { resource, peer },
            Self::Disconnect => Verb::Disconnect { resource, peer },
            Self::PauseSync => Verb::PauseSync { resource },
            Self::ResumeSync => Verb::ResumeSync { resource },
            Self::Resize(size) => Verb::Resize {
                resource,
                volume,
                size,
            },
            Self::SuspendIo => Verb::SuspendIo { resource },
            Self::ResumeIo => Verb::ResumeIo { resource },
            Self::Resync(max_rate) => Verb::Resync { resource, max_rate },
            Self::Verify { repair, stop } => Verb::Verify {
                resource,
                repair,
                stop,
            },
            Self::Invalidate(from, yes_discard) => Verb::Invalidate {
                resource,
                from,
                yes_discard,
            },
            Self::InvalidateRemote(peer, yes_discard) => Verb::InvalidateRemote {
                resource,
                peer,
                yes_discard,
            },
            Self::Primary => Verb::Primary {
                resource,
                force: false,
                yes_lose: None,
            },
            Self::Force(yes_lose) => Verb::Primary {
                resource,
                force: true,
                yes_lose,
            },
            Self::Secondary(force) => Verb::Secondary { resource, force },
            Self::Move(to) => Verb::Move {
                resource,
                to,
                passed_on: false,
            },
        }
    }
}

/// Gives the orders one after the other. One that fails does not keep the others from being
/// tried; the first failure decides the exit code.
///
/// # Errors
/// If the daemon cannot be reached or a selector fits nothing.
pub(crate) fn give(
    context: &Context,
    selectors: &[Selector],
    make: &MakeVerb,
) -> Result<u8, Failure> {
    let mut code = exit::OK;
    for (name, selector) in expand(context, selectors)? {
        let verb = make.verb(name.clone(), selector);
        let done = if context.dry_run {
            show_plan(context, &verb, &name)
        } else {
            order(context, verb, &name)
        };
        let this = match done {
            Ok(code) => code,
            Err(Failure::Report(report)) => {
                context.tell_error(&report);
                report.exit
            }
            Err(failure) => return Err(failure),
        };
        if code == exit::OK || (code == exit::PENDING && this != exit::OK) {
            code = this;
        }
    }
    Ok(code)
}

/// Gives one order about one resource.
///
/// # Errors
/// What the daemon says, or if it cannot be reached.
pub(crate) fn give_one(context: &Context, make: &MakeVerb, name: &str) -> Result<u8, Failure> {
    let whole = Selector {
        resource: Some(name.to_owned()),
        peer: None,
        volume: None,
    };
    let verb = make.verb(name.to_owned(), &whole);
    if context.dry_run {
        show_plan(context, &verb, name)
    } else {
        order(context, verb, name)
    }
}

/// The names of the resources that are meant.
///
/// # Errors
/// If the daemon cannot be reached.
pub(crate) fn names(context: &Context, selectors: &[Selector]) -> Result<Vec<String>, Failure> {
    let targets = expand(context, selectors)?;
    Ok(targets.into_iter().map(|(name, _)| name).collect())
}

/// The resources that are meant, `all` resolved by the daemon's own list.
fn expand<'s>(
    context: &Context,
    selectors: &'s [Selector],
) -> Result<Vec<(String, &'s Selector)>, Failure> {
    let mut targets = Vec::new();
    for selector in selectors {
        match &selector.resource {
            Some(name) => targets.push((name.clone(), selector)),
            None => {
                let all = snapshot(context, None)?.resources;
                targets.extend(all.into_iter().map(|resource| (resource.name, selector)));
            }
        }
    }
    Ok(targets)
}

fn order(context: &Context, verb: Verb, name: &str) -> Result<u8, Failure> {
    let usual = match verb {
        Verb::Resize { .. } => RESIZE_WAIT,
        _ => ORDER_WAIT,
    };
    let wait = context.timeout.unwrap_or(usual);
    let request = Request {
        verb,
        node: context.node.clone(),
        timeout_ms: Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    };
    let conversation =
        Conversation::begin(&context.run_dir, CONNECT_PATIENCE, &request, Some(wait))?;
    let answer = conversation.finish(|message| context.tell(&with_name(name, message)))?;
    let Response::Done { changed, message } = answer else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Plain => context.tell(&with_name(name, &message)),
        Output::Json => {
            let done = json!({ "resource": name, "changed": changed, "message": message });
            context.put_json(&done, true)?;
        }
    }
    Ok(exit::OK)
}

/// A message that does not name its resource gets the name in front: several may be told.
fn with_name(name: &str, message: &str) -> String {
    if message.split([' ', ':', ',']).any(|word| word == name) {
        message.to_owned()
    } else {
        format!("{name}: {message}")
    }
}

fn show_plan(context: &Context, verb: &Verb, name: &str) -> Result<u8, Failure> {
    let status = snapshot(context, Some(name))?;
    let steps: Vec<String> = status
        .resources
        .iter()
        .flat_map(|resource| plan(verb, resource))
        .collect();
    put_plan(context, &steps)
}

/// Prints what would change; the exit code says whether anything would.
///
/// # Errors
/// If nobody reads it.
pub(crate) fn put_plan(context: &Context, steps: &[String]) -> Result<u8, Failure> {
    match context.output {
        Output::Plain => {
            for step in steps {
                context.put(&format!("{step}\n"))?;
            }
        }
        Output::Json => context.put_json(&json!({ "would": steps }), true)?,
    }
    Ok(if steps.is_empty() {
        exit::OK
    } else {
        exit::PENDING
    })
}

/// The daemon's status, of one resource or all.
///
/// # Errors
/// If the daemon cannot be reached or there is no such resource.
pub(crate) fn snapshot(context: &Context, resource: Option<&str>) -> Result<Status, ErrorReport> {
    let verb = Verb::Status {
        resource: resource.map(str::to_owned),
    };
    let Response::Status(mut status) = ask(context, verb)? else {
        return Err(unexpected());
    };
    if let Some(name) = resource {
        status.resources.retain(|found| found.name == name);
        if status.resources.is_empty() {
            let what = format!("no resource is called {name}");
            return Err(ErrorReport::new(
                ErrorId::NoSuchResource,
                what,
                "it is not configured",
            ));
        }
    }
    Ok(*status)
}

/// The daemon answered something else than was asked.
pub(crate) fn unexpected() -> ErrorReport {
    let what = "the daemon's answer does not fit the question";
    ErrorReport::new(
        ErrorId::BadRequest,
        what,
        "it answered another kind of request",
    )
}
