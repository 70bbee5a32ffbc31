//! The control socket: JSON lines between `twinadm` and the daemon.
//!
//! Owns the listener and one thread per client; what other nodes pass on comes in by the
//! [`Door`] and is served alike. Knows nothing of what the verbs do: a [`ControlHandler`] does.
//! Whatever a client sends, the daemon answers with one line that says what was wrong, or closes; it
//! never waits for a silent client longer than [`REQUEST_TIMEOUT`].

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;
use replicator::admin::{ErrorId, ErrorReport, REQUEST_LEN_MAX, Request, Response};
use replicator::io::clock;
use replicator::protocol::ForwardPreamble;
use replicator::types::NodeId;

use super::mailbox::Mailbox;
use super::relay_door::{Call, Door, Knock};
use super::wire::Wire;

/// Clients served at once. Scripts ask one question at a time; some `events2` and waiting orders
/// stay for long. More are told to come again.
pub const CLIENTS_MAX: usize = 64;

/// How long a client may take to send its request line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may leave an answer unread before it is dropped.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Stack of a client's thread: JSON of a bounded line and a status document, nothing recursive.
const CLIENT_STACK_LEN: usize = 256 * 1024;

/// Name of the socket in the run directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Whether it may change anything: root or the daemon's own user.
    pub may_change: bool,
    /// The node that passes it on says that it may, and what says so need not be that node's daemon.
    pub doubted: bool,
    /// Its user id, for the refusal.
    pub uid: u32,
    /// The node that passes the request on; `None`: it asks here.
    pub relayed_by: Option<NodeId>,
}

/// Where a handler puts its answers.
pub trait Answers {
    /// Sends one line. An error means that the client is gone.
    ///
    /// # Errors
    /// When the client is gone or does not read.
    fn send(&mut self, response: &Response) -> io::Result<()> {
        let mut line = serde_json::to_vec(response)?;
        line.push(b'\n');
        self.send_line(&line)
    }
    /// Sends one line as it is, its end included.
    ///
    /// # Errors
    /// When the client is gone or does not read.
    fn send_line(&mut self, line: &[u8]) -> io::Result<()>;
    /// Whether the client has closed its end; checked by streams that have nothing to send.
    fn is_gone(&self) -> bool;
}

/// Does what a request asks. Called on the client's thread; may wait.
pub trait ControlHandler: Send + Sync + 'static {
    /// Answers `request` with any number of lines, the last one final.
    ///
    /// # Errors
    /// When the client is gone.
    fn handle(&self, request: Request, asker: Asker, answers: &mut dyn Answers) -> io::Result<()>;
    /// Serves an NBD client that the peer passes on; nothing was answered yet.
    fn take_client(&self, stream: Wire, preamble: ForwardPreamble);
}

/// The listening socket; its path goes away with it.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    stop: Arc<Mailbox<()>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Makes the socket appear in `run_dir`, replacing a left-over, and serves it and the door.
    ///
    /// # Errors
    /// If the socket or the thread cannot be made.
    pub fn start(run_dir: &Path, handler: Arc<dyn ControlHandler>, door: Door) -> io::Result<Self> {
        let path = run_dir.join(CONTROL_SOCKET);
        let new = run_dir.join("control.sock.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        // The group may read; what it may not do is decided per request by its credentials.
        fs::set_permissions(&new, fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Mailbox::new(1)?);
        let stopping = Arc::new(AtomicBool::new(false));
        let acceptor = Acceptor {
            listener,
            handler,
            door,
            stop: Arc::clone(&stop),
            stopping: Arc::clone(&stopping),
            clients: Arc::new(AtomicUsize::new(0)),
        };
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .stack_size(CLIENT_STACK_LEN)
            .spawn(move || acceptor.run())?;
        // By rename and last: whoever sees the path gets an answer on it.
        fs::rename(&new, &path)?;
        Ok(Self {
            path,
            stop,
            stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
        // Another process may have replaced it by now only if the run directory's lock was broken.
        drop(fs::remove_file(&self.path));
    }
}

struct Acceptor {
    listener: UnixListener,
    handler: Arc<dyn ControlHandler>,
    door: Door,
    stop: Arc<Mailbox<()>>,
    stopping: Arc<AtomicBool>,
    clients: Arc<AtomicUsize>,
}

impl Acceptor {
    fn run(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            let mut fds: Vec<_> = [self.listener.as_fd(), self.stop.as_fd()]
                .into_iter()
                .chain([self.door.knocks.as_fd()])
                .chain(self.door.listeners.iter().map(AsFd::as_fd))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            // EINTR and the like: look again.
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            for Knock { stream, call } in self.door.knocks.drain() {
                self.admit_visitor(TcpStream::from(stream), Some(call));
            }
            for listener in &self.door.listeners {
                self.accept(
                    || listener.accept(),
                    |stream| self.admit_visitor(stream, None),
                );
            }
            self.accept(|| self.listener.accept(), |stream| self.admit(stream));
        }
    }

    /// Takes one connection, if one waits.
    fn accept<S, A>(&self, accept: impl FnOnce() -> io::Result<(S, A)>, admit: impl FnOnce(S)) {
        match accept() {
            Ok((stream, _)) => admit(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors: the listener stays readable, so wait a moment for the
                // stop signal instead of spinning.
                tracing::warn!(%error, "control: accepting failed");
                let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(100_u8)).ok();
            }
        }
    }

    fn admit(&self, stream: UnixStream) {
        let Some(place) = Place::take(&self.clients, CLIENTS_MAX) else {
            refuse_busy(stream);
            return;
        };
        self.spawn(move |handler| {
            let _place = place;
            serve(stream, handler)
        });
    }

    fn admit_visitor(&self, stream: TcpStream, call: Option<Call>) {
        match self.door.visitor(stream, call) {
            Some(visitor) => self.spawn(move |handler| visitor.serve(handler)),
            None => tracing::debug!("too many strangers: one is sent away"),
        }
    }

    fn spawn(&self, serve: impl FnOnce(&dyn ControlHandler) -> io::Result<()> + Send + 'static) {
        let handler = Arc::clone(&self.handler);
        let spawned = thread::Builder::new()
            .name("control-client".to_owned())
            .stack_size(CLIENT_STACK_LEN)
            .spawn(move || {
                if let Err(error) = serve(&*handler) {
                    tracing::debug!(%error, "control client left");
                }
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "control: no thread for a client");
        }
    }
}

/// One of so many places, given back when dropped.
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// One more than `taken` counts, unless that is `max`.
    pub(super) fn take(taken: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        // Dropping `place` gives the count back when there was no room.
        (taken.fetch_add(1, Ordering::AcqRel) < max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client's socket, of either kind; blocking.
pub(super) trait ClientStream: Read + Write + AsFd {
    /// What poll(2) is asked for, and says when nobody listens any more. A hang-up is reported
    /// unasked.
    fn gone(&self) -> (PollFlags, PollFlags);
    /// A receive ends with an error after this.
    fn limit_read(&self, timeout: Duration) -> io::Result<()>;
    /// Nothing more will be said: where that has to be told apart from a cut, it is told.
    fn farewell(&mut self) {}
}

impl ClientStream for UnixStream {
    fn gone(&self) -> (PollFlags, PollFlags) {
        // A client that only shut its sending side still listens.
        (PollFlags::empty(), PollFlags::POLLHUP | PollFlags::POLLERR)
    }

    fn limit_read(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

fn refuse_busy(stream: UnixStream) {
    let mut answers = StreamAnswers(Box::new(stream));
    let why = format!("{CLIENTS_MAX} clients are being served");
    let report = ErrorReport::new(ErrorId::Busy, "too many clients on the control socket", why);
    // On the accepting thread: a fresh socket's buffer takes one line without waiting.
    drop(answers.send(&Response::Error(report)));
}

struct StreamAnswers(Box<dyn ClientStream>);

impl Answers for StreamAnswers {
    fn send_line(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.write_all(line)
    }

    fn is_gone(&self) -> bool {
        let (asked, gone) = self.0.gone();
        let mut fds = [PollFd::new(self.0.as_fd(), asked)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| {
            ready > 0
                && fds[0]
                    .revents()
                    .is_some_and(|events| events.intersects(gone))
        })
    }
}

fn serve(stream: UnixStream, handler: &dyn ControlHandler) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let uid = getsockopt(&stream, sockopt::PeerCredentials)?.uid();
    let asker = Asker {
        may_change: uid == 0 || uid == Uid::effective().as_raw(),
        doubted: false,
        uid,
        relayed_by: None,
    };
    converse(Box::new(stream), asker, handler)
}

/// Takes one request and has it answered.
pub(super) fn converse(
    mut stream: Box<dyn ClientStream>,
    asker: Asker,
    handler: &dyn ControlHandler,
) -> io::Result<()> {
    let line = read_line(&mut *stream)?;
    let mut answers = StreamAnswers(stream);
    let answered = match parse(&line) {
        Ok(Some(request)) => handler.handle(request, asker, &mut answers),
        // Opened and closed, by a health check for instance.
        Ok(None) => Ok(()),
        Err(why) => {
            let what = "this is no request to twinblk";
            let report = ErrorReport::new(ErrorId::BadRequest, what, why);
            answers.send(&Response::Error(report))
        }
    };
    answers.0.farewell();
    answered
}

/// The first line, cut at one byte more than a request may have. All of it has to come within
/// [`REQUEST_TIMEOUT`]: a client that sends a byte now and then would keep its place for ever.
fn read_line(stream: &mut dyn ClientStream) -> io::Result<Vec<u8>> {
    let deadline = clock::now().plus(REQUEST_TIMEOUT);
    let mut line = Vec::new();
    let mut piece = [0; 1024];
    while line.len() <= REQUEST_LEN_MAX && !line.contains(&b'\n') {
        let left = deadline.since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.limit_read(left)?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => line.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // One request per connection: what follows it is not read.
    let end = line
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(line.len(), |at| at + 1);
    line.truncate(end);
    Ok(line)
}

/// A request from its line, `None` from an empty one. `Err` says for people what is wrong.
fn parse(line: &[u8]) -> Result<Option<Request>, String> {
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > REQUEST_LEN_MAX {
        return Err(format!("the line is longer than {REQUEST_LEN_MAX} bytes"));
    }
    serde_json::from_slice(line)
        .map(Some)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use replicator::admin::{Verb, VersionInfo};

    use super::*;
    use crate::daemon::join_door::Issuer;
    use crate::daemon::relay_door::Doorkeeper;

    /// Answers `version` and waits in `events2` until the client is gone.
    struct Echo;

    impl ControlHandler for Echo {
        fn take_client(&self, _: Wire, _: ForwardPreamble) {}

        fn handle(
            &self,
            request: Request,
            _asker: Asker,
            answers: &mut dyn Answers,
        ) -> io::Result<()> {
            if matches!(request.verb, Verb::Events2 { .. }) {
                while !answers.is_gone() {
                    let message = "still here".to_owned();
                    answers.send(&Response::Progress { message })?;
                }
                return Ok(());
            }
            answers.send(&Response::Version(VersionInfo {
                program: "echo".to_owned(),
                version: "0".to_owned(),
                node: "kvm-a".to_owned(),
                started: 0.0,
            }))
        }
    }

    /// Nobody comes by it.
    fn door() -> Door {
        let keeper = Doorkeeper {
            node: NodeId::A,
            cluster: 0,
            addresses: Default::default(),
            names: Default::default(),
            security: None,
            issuer: Issuer::default(),
        };
        Door::new(Arc::new(Mailbox::new(1).unwrap()), Vec::new(), keeper)
    }

    struct TestDir(PathBuf);

    impl TestDir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("twinblk-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    /// What the daemon answers to these bytes, until it closes.
    fn ask(dir: &Path, bytes: &[u8]) -> Vec<Response> {
        let mut stream = UnixStream::connect(dir.join(CONTROL_SOCKET)).unwrap();
        // The daemon may have closed before all of a huge line is written: its answer counts.
        drop(stream.write_all(bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut text = Vec::new();
        drop(stream.read_to_end(&mut text));
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    fn refusal(answers: &[Response]) -> &ErrorReport {
        match answers {
            [Response::Error(report)] => report,
            other => panic!("one refusal expected, not {other:?}"),
        }
    }

    #[test]
    fn whatever_is_no_request_is_answered_with_what_was_wrong() {
        let dir = TestDir::new("control-garbage");
        let _server = ControlServer::start(&dir.0, Arc::new(Echo), door()).unwrap();
        let deep = [b"[".repeat(5000), b"\n".to_vec()].concat();
        let nested = b"{\"verb\":\"status\",\"x\":".to_vec();
        let nested = [nested, b"{\"a\":[".repeat(2500), b"\n".to_vec()].concat();
        let cases: [&[u8]; 8] = [
            b"hello\n",
            b"\xff\xfe\x00\n",
            b"{}\n",
            b"{\"verb\":\"explode\"}\n",
            b"{\"verb\":\"primary\"}\n",
            b"{\"verb\":",
            &deep,
            &nested,
        ];
        for bytes in cases {
            let answers = ask(&dir.0, bytes);
            assert_eq!(
                refusal(&answers).id,
                ErrorId::BadRequest.code(),
                "{bytes:?}"
            );
            assert!(!refusal(&answers).why.is_empty());
        }
        assert_eq!(ask(&dir.0, b""), [], "opened and closed");
        let version = ask(&dir.0, b"{\"verb\":\"version\"}\n");
        assert!(
            matches!(&version[..], [Response::Version(_)]),
            "it still answers"
        );
    }

    #[test]
    fn a_line_without_an_end_is_cut_off_and_not_collected() {
        let dir = TestDir::new("control-long");
        let _server = ControlServer::start(&dir.0, Arc::new(Echo), door()).unwrap();
        let mut stream = UnixStream::connect(dir.0.join(CONTROL_SOCKET)).unwrap();
        // Never ended, never closed by us: the daemon must answer at its limit.
        stream.write_all(&vec![b'x'; REQUEST_LEN_MAX + 1]).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let response: Response = serde_json::from_str(text.trim_end()).unwrap();
        assert!(refusal(&[response]).why.contains("longer than"));
    }

    #[test]
    fn one_client_too_many_is_told_so_and_a_place_is_given_back() {
        let dir = TestDir::new("control-busy");
        let _server = ControlServer::start(&dir.0, Arc::new(Echo), door()).unwrap();
        let idle: Vec<_> = (0..CLIENTS_MAX)
            .map(|_| UnixStream::connect(dir.0.join(CONTROL_SOCKET)).unwrap())
            .collect();
        let busy = ask(&dir.0, b"{\"verb\":\"version\"}\n");
        assert_eq!(refusal(&busy).id, ErrorId::Busy.code());
        drop(idle);
        // Their threads see the closed sockets one after the other.
        loop {
            let answers = ask(&dir.0, b"{\"verb\":\"version\"}\n");
            match &answers[..] {
                [Response::Version(_)] => return,
                _ => assert_eq!(refusal(&answers).id, ErrorId::Busy.code()),
            }
        }
    }

    #[test]
    fn a_left_over_socket_is_replaced_and_a_stream_ends_with_its_client() {
        let dir = TestDir::new("control-left-over");
        drop(UnixListener::bind(dir.0.join(CONTROL_SOCKET)).unwrap());
        let server = ControlServer::start(&dir.0, Arc::new(Echo), door()).unwrap();
        let mut stream = UnixStream::connect(dir.0.join(CONTROL_SOCKET)).unwrap();
        stream.write_all(b"{\"verb\":\"events2\"}\n").unwrap();
        let mut first = [0; 16];
        stream.read_exact(&mut first).unwrap();
        drop(stream);
        drop(server);
        assert!(!dir.0.join(CONTROL_SOCKET).exists());
    }
}
