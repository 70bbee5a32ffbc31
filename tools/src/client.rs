//! The client's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, RESPONSE_LEN_MAX, Request, Response, Verb};

use crate::clock::{Deadline, POLL, pause};
use crate::context::Context;

/// How long a missing or refused socket is tried again: a daemon that restarts is back by then.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// How long a daemon may take over an answer that needs no waiting. One that is stopped or hangs
/// counts as not reachable after that.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// One conversation: one request and its answers.
pub struct Conversation {
    socket: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Conversation {
    /// Connects and sends the request. Answers are waited for as long as `wait` and a little more;
    /// `None`: for ever.
    ///
    /// # Errors
    /// If no daemon takes it.
    pub fn begin(
        run_dir: &Path,
        patience: Duration,
        request: &Request,
        wait: Option<Duration>,
    ) -> Result<Self, ErrorReport> {
        let socket = run_dir.join("control.sock");
        let stream = connect(&socket, patience)?;
        let mut line = serde_json::to_string(request)
            .map_err(|error| unreachable_daemon(&socket, &error.into()))?;
        line.push('\n');
        let timeout = wait.map(|wait| wait.saturating_add(ANSWER_PATIENCE));
        stream
            .set_read_timeout(timeout)
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_PATIENCE)))
            .and_then(|()| (&stream).write_all(line.as_bytes()))
            .map_err(|error| unreachable_daemon(&socket, &error))?;
        Ok(Self {
            socket,
            reader: BufReader::new(stream),
        })
    }

    /// The next line of the answer.
    ///
    /// # Errors
    /// The daemon's own error, or that it is gone, silent or talks nonsense.
    pub fn next_answer(&mut self) -> Result<Response, ErrorReport> {
        let mut line = Vec::new();
        let limit = u64::try_from(RESPONSE_LEN_MAX).unwrap_or(u64::MAX);
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.last() == Some(&b'\n') => {}
            Ok(_) => return Err(self.gone("the connection ended in the middle of the answer")),
            Err(error) if is_timeout(&error) => return Err(self.silent()),
            Err(error) => return Err(self.gone(&error.to_string())),
        }
        match serde_json::from_slice(&line) {
            Ok(Response::Error(report)) => Err(report),
            Ok(response) => Ok(response),
            Err(error) => Err(self.nonsense(&error.to_string())),
        }
    }

    /// The final answer; `progress` hears the others.
    ///
    /// # Errors
    /// See [`Self::next_answer`].
    pub fn finish(mut self, mut progress: impl FnMut(&str)) -> Result<Response, ErrorReport> {
        loop {
            match self.next_answer()? {
                Response::Progress { message } => progress(&message),
                response if response.is_final() => return Ok(response),
                _ => return Err(self.nonsense("an event that nobody asked for")),
            }
        }
    }

    /// A report about an answer that does not fit the question.
    #[must_use]
    pub fn nonsense(&self, why: &str) -> ErrorReport {
        let what = format!("the answer on {} is not understood", self.socket.display());
        ErrorReport::new(ErrorId::BadRequest, what, why)
    }

    fn gone(&self, why: &str) -> ErrorReport {
        let what = format!("the daemon behind {} went away", self.socket.display());
        ErrorReport::new(ErrorId::DaemonGone, what, why)
    }

    fn silent(&self) -> ErrorReport {
        let what = format!(
            "the daemon behind {} does not answer",
            self.socket.display()
        );
        ErrorReport::new(
            ErrorId::DaemonUnreachable,
            what,
            "it took the request and stays silent",
        )
        .next("see whether twinblkd is stopped or hangs, and its log")
    }
}

/// Asks something that needs no waiting.
///
/// # Errors
/// See [`Conversation`].
pub fn ask(context: &Context, verb: Verb) -> Result<Response, ErrorReport> {
    ask_within(context, CONNECT_PATIENCE, verb)
}

/// The same with another patience for a missing socket.
///
/// # Errors
/// See [`Conversation`].
pub fn ask_within(
    context: &Context,
    patience: Duration,
    verb: Verb,
) -> Result<Response, ErrorReport> {
    let request = Request {
        node: context.node.clone(),
        ..verb.into()
    };
    let conversation =
        Conversation::begin(&context.run_dir, patience, &request, Some(Duration::ZERO))?;
    conversation.finish(|message| context.tell(message))
}

fn connect(socket: &Path, patience: Duration) -> Result<UnixStream, ErrorReport> {
    let deadline = Deadline::after(Some(patience));
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if may_come(&error) && !deadline.is_over() => pause(POLL),
            Err(error) => return Err(unreachable_daemon(socket, &error)),
        }
    }
}

/// Whether a daemon that starts or restarts looks like this.
fn may_come(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn unreachable_daemon(socket: &Path, error: &io::Error) -> ErrorReport {
    let what = format!("no daemon answers on {}", socket.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let what = format!("{} may not be used", socket.display());
            ErrorReport::new(ErrorId::Permission, what, "permission denied")
        }
        io::ErrorKind::NotFound => ErrorReport::new(
            ErrorId::DaemonUnreachable,
            what,
            "the socket does not exist",
        ),
        io::ErrorKind::ConnectionRefused => ErrorReport::new(
            ErrorId::DaemonUnreachable,
            what,
            "the daemon that made it is gone",
        ),
        _ => ErrorReport::new(ErrorId::DaemonUnreachable, what, error.to_string()),
    }
}
