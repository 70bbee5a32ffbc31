//! Verbs that explain: `why`, `quorum show`, `what-if`, `history`.

use replicator::admin::{Response, Verb, exit};

use crate::cli;
use crate::client::ask;
use crate::context::{Context, Failure, Output};
use crate::orders::unexpected;
use crate::show::history::history_text;
use crate::show::quorum::quorum_text;
use crate::show::what_if::what_if_text;
use crate::show::why::why_text;

/// `why`: the node that it is about answers.
///
/// # Errors
/// If that node cannot be reached or does not know the resource.
pub(crate) fn why(context: &Context, arguments: &cli::Why) -> Result<u8, Failure> {
    let node = arguments.about.clone().or_else(|| context.node.clone());
    let there = Context {
        node,
        ..context.clone()
    };
    let resource = arguments.resource.clone();
    let Response::Why(report) = ask(&there, Verb::Why { resource })? else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Plain => context.put(&why_text(&report))?,
        Output::Json => context.put_json(&report, false)?,
    }
    Ok(exit::OK)
}

/// `quorum show`.
///
/// # Errors
/// If the daemon cannot be reached.
pub(crate) fn quorum(context: &Context) -> Result<u8, Failure> {
    let Response::Quorum(report) = ask(context, Verb::Quorum)? else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Plain => context.put(&quorum_text(&report))?,
        Output::Json => context.put_json(&report, false)?,
    }
    Ok(exit::OK)
}

/// `what-if kill`.
///
/// # Errors
/// If no node that would be left can be reached.
pub(crate) fn what_if(context: &Context, arguments: &cli::WhatIfKill) -> Result<u8, Failure> {
    let kill = arguments.dead.clone();
    let Response::WhatIf(report) = ask(context, Verb::WhatIf { kill })? else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Plain => context.put(&what_if_text(&report))?,
        Output::Json => context.put_json(&report, false)?,
    }
    Ok(exit::OK)
}

/// `history`.
///
/// # Errors
/// If the daemon cannot be reached or there is no such resource.
pub(crate) fn history(context: &Context, arguments: &cli::History) -> Result<u8, Failure> {
    let verb = Verb::History {
        resource: arguments.resource.clone(),
        count: arguments.last,
    };
    let Response::History(report) = ask(context, verb)? else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Plain => context.put(&history_text(&report))?,
        Output::Json => context.put_json(&report, false)?,
    }
    Ok(exit::OK)
}
