//! `adjust`: what the files say differently, and what became of it.

use replicator::admin::{Response, Verb as Order, exit};
use serde_json::json;

use crate::cli::Adjust;
use crate::client::ask;
use crate::context::{Context, Failure, Output};
use crate::orders::unexpected;

/// Gives the order and prints a line for each difference.
///
/// # Errors
/// If the daemon cannot be reached, the files are not valid, or there is no such resource.
pub(crate) fn adjust(context: &Context, arguments: &Adjust) -> Result<u8, Failure> {
    let named = arguments.resource.as_ref();
    let order = Order::Adjust {
        resource: named.and_then(|selector| selector.resource.clone()),
        dry_run: context.dry_run,
    };
    let Response::Adjusted { changes, .. } = ask(context, order)? else {
        return Err(unexpected().into());
    };
    match context.output {
        Output::Json => context.put_json(&json!({ "changes": changes }), true)?,
        Output::Plain => {
            for change in &changes {
                context.put(&format!("{change}\n"))?;
            }
        }
    }
    if changes.is_empty() {
        context.tell("nothing differs from the files");
    }
    Ok(match context.dry_run && !changes.is_empty() {
        true => exit::PENDING,
        false => exit::OK,
    })
}
