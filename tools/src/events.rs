//! `events2`.

use replicator::admin::{Request, Response, Verb, exit};

use crate::cli;
use crate::client::{CONNECT_PATIENCE, Conversation};
use crate::context::{Context, Failure, Output};
use crate::show::event::{EventForm, EventPrinter, event_json};

/// Prints events until the daemon goes away or, with `--now`, the snapshot is complete.
///
/// # Errors
/// If the daemon cannot be reached or goes away.
pub(crate) fn events2(context: &Context, arguments: &cli::Events2) -> Result<u8, Failure> {
    let verb = Verb::Events2 {
        resource: arguments.resource.clone(),
        now: arguments.now,
    };
    let request = Request {
        node: context.node.clone(),
        ..verb.into()
    };
    let mut conversation = Conversation::begin(&context.run_dir, CONNECT_PATIENCE, &request, None)?;
    let mut printer = EventPrinter::new(EventForm {
        timestamps: arguments.timestamps,
        statistics: arguments.statistics,
        diff: arguments.diff,
    });
    loop {
        let Response::Event(event) = conversation.next_answer()? else {
            return Err(conversation.nonsense("an event was expected").into());
        };
        if context.output == Output::Json {
            context.put_json(&event_json(&event, arguments.statistics), true)?;
        } else {
            context.put(&printer.line(&event))?;
        }
        if arguments.now && event.object == "-" {
            return Ok(exit::OK);
        }
    }
}
