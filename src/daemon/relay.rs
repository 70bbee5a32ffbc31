//! Passing a request on to the node it is about.
//!
//! Runs on the asking client's thread: dials the node's addresses in order, says on whose behalf it
//! asks, sends the request, and hands the answer's lines back as they come. It looks into a line
//! only to see whether it is the last one. The other side is [`super::relay_door`].
//!
//! Invariant: whatever the other node does, the client gets a final line or its connection ends,
//! and setting up takes no longer than [`SET_UP_TIMEOUT`].

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
    socket, sockopt,
};
use replicator::admin::{ErrorId, ErrorReport, Request, Response, Verb};
use replicator::io::clock;
use replicator::protocol::{
    PREAMBLE_LEN, PREAMBLE_REPLY_LEN, PreambleReply, PreambleStatus, Purpose, RelayPreamble,
    SecurePreamble, VersionRange,
};
use replicator::types::{Instant, NodeId};
use rustls::Connection;
use serde::Deserialize;

use super::beacon_io::source_for;
use super::control::{Answers, Asker, Place};
use super::node::Node;
use super::origin::PRIVILEGED_PORTS_END;
use super::security::Security;
use super::wire::Wire;

/// Requests passed on at once, and served at once for others: scripts ask one question at a time,
/// and this many watchers of a node from elsewhere are plenty. An answer line is held whole, so
/// this bounds memory too.
pub(super) const RELAYS_MAX: usize = 16;

/// Time until the other node has taken the request, all its addresses together: less than `twinadm`
/// waits for an answer (5 s).
const SET_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// The same for one address; the data links give a path no longer either.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest line that is handed on: the status of well over a thousand resources. Each place holds one
/// at most, so all of them 64 MiB.
const LINE_LEN_MAX: usize = 4 << 20;

/// From its first byte to its end a line may take this long.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a privileged port is taken from: those below are services' (bindresvport(3)).
const PRIVILEGED_PORTS: Range<u16> = 600..PRIVILEGED_PORTS_END;

/// Well-known services among them, which may be started at any time: ipp, ldaps, domain-s, rsync, ftps
/// and telnets, imaps, pop3s.
const SERVICE_PORTS: [u16; 9] = [631, 636, 853, 873, 989, 990, 992, 993, 995];

/// How often a silent answer is an occasion to look whether the client is still there.
const CLIENT_LOOK: Duration = Duration::from_millis(500);

/// A connection that has been silent for so long is probed, so often, this many times; then the
/// host behind it is taken for dead. `events2` may be silent for days.
const PROBE_AFTER_SECS: u32 = 5;
const PROBE_EVERY_SECS: u32 = 2;
const PROBES: u32 = 3;

/// The same for one that has sent something: probes are only for the idle.
const UNANSWERED_MILLIS: u32 = 10_000;

/// How the answer came to its end.
#[derive(Debug)]
enum End {
    /// The final line was handed on, or nothing final was to come.
    Final,
    /// The client is gone; what it asked for is carried out or not.
    ClientGone(io::Error),
    /// The other node's side ended or broke before the final line.
    Cut(String),
    /// What came is no answer.
    Nonsense(String),
}

/// What of a line has to be understood here. Everything else goes on unread: the other node may be
/// of a newer version than this one.
#[derive(Deserialize)]
struct LineKind {
    reply: String,
}

/// The final answer of another node, kept.
#[derive(Debug, Default)]
pub(super) struct Kept(pub(super) Option<Response>);

impl Answers for Kept {
    fn send_line(&mut self, line: &[u8]) -> io::Result<()> {
        let response: Response = serde_json::from_slice(line)?;
        if response.is_final() {
            self.0 = Some(response);
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        false
    }
}

impl Node {
    /// Has `target` answer, and hands its answer on.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) fn pass_on(
        &self,
        target: NodeId,
        request: &Request,
        asker: Asker,
        answers: &mut dyn Answers,
    ) -> io::Result<()> {
        let name = self.config.node_name(target);
        let Some(_place) = Place::take(&self.relays, RELAYS_MAX) else {
            let what = format!("too many requests are being passed on by {}", self.name());
            let why = format!("{RELAYS_MAX} wait for their answers");
            let report = ErrorReport::new(ErrorId::Busy, what, why);
            return answers.send(&Response::Error(report));
        };
        let stream = match self.call(target, request, asker) {
            Ok(stream) => stream,
            Err(report) => return answers.send(&Response::Error(report)),
        };
        match hand_lines_on(stream, &request.verb, answers) {
            End::Final => Ok(()),
            End::ClientGone(error) => Err(error),
            End::Cut(why) => {
                let what = format!("{name} went away in the middle of its answer");
                answers.send(&Response::Error(ErrorReport::new(
                    ErrorId::DaemonGone,
                    what,
                    why,
                )))
            }
            End::Nonsense(why) => {
                let what = format!("the answer of {name} is not understood");
                answers.send(&Response::Error(ErrorReport::new(
                    ErrorId::BadRequest,
                    what,
                    why,
                )))
            }
        }
    }

    /// A connection to `target` that has taken the request.
    fn call(&self, target: NodeId, request: &Request, asker: Asker) -> Result<Wire, ErrorReport> {
        let addresses = |node| self.config.node(node).map(|it| it.addresses.as_slice());
        let own = addresses(self.node).unwrap_or_default();
        let theirs = addresses(target).unwrap_or_default();
        let preamble = RelayPreamble {
            versions: VersionRange::RELAY,
            cluster: self.cluster(),
            from: self.node,
            to: target,
            may_change: asker.may_change,
            uid: asker.uid,
        };
        let deadline = clock::now().plus(SET_UP_TIMEOUT);
        let mut reasons = Vec::new();
        for (index, &to) in theirs.iter().enumerate() {
            let attempt = deadline.min(clock::now().plus(ATTEMPT_TIMEOUT));
            // From the address that the other node knows for this one on that path.
            let knocking = Knocking {
                from: source_for(own, index, to).map(|at| own[at]),
                to,
                privileged: preamble.may_change,
                deadline: attempt,
                refusal,
                security: self.security.as_deref(),
                cluster: preamble.cluster,
                nodes: [preamble.from, preamble.to],
            };
            match knock(&knocking, &preamble.encode()).and_then(|wire| ask(wire, request)) {
                Ok(wire) => return Ok(wire),
                Err(error) => reasons.push(format!("{to}: {}", words(&error))),
            }
        }
        let name = self.config.node_name(target);
        let what = format!("{name} cannot be reached from {}", self.name());
        Err(
            ErrorReport::new(ErrorId::NodeUnreachable, what, reasons.join("; "))
                .next(format!(
                    "see whether its daemon runs, and the link to {name}"
                ))
                .next(format!(
                    "or run the command on {name}, or name its run directory with --run-dir"
                )),
        )
    }
}

/// How another node is called.
pub(super) struct Knocking<'a> {
    /// From this address of this machine, if it matters.
    pub(super) from: Option<SocketAddr>,
    pub(super) to: SocketAddr,
    /// From a privileged port, where nothing else says who calls.
    pub(super) privileged: bool,
    /// By when it must have answered.
    pub(super) deadline: Instant,
    /// What its refusals mean.
    pub(super) refusal: fn(PreambleStatus) -> &'static str,
    /// Within TLS.
    pub(super) security: Option<&'a Security>,
    pub(super) cluster: u64,
    /// This node, and the one that is called.
    pub(super) nodes: [NodeId; 2],
}

/// What a node says whose `[net] tls` is another.
pub(super) const OTHER_TLS: &str =
    "[net] tls is set there otherwise than here: \"off\" on one side, and not on the other";

/// Connects and says who asks; the connection is one that accepted.
pub(super) fn knock(call: &Knocking<'_>, preamble: &[u8; PREAMBLE_LEN]) -> io::Result<Wire> {
    // A certificate says more than a port.
    let privileged = call.privileged && call.security.is_none();
    let stream = dial(call.from, call.to, privileged, call.deadline)?;
    tune(&stream)?;
    stream.set_write_timeout(Some(ATTEMPT_TIMEOUT))?;
    let mut wire = Wire::Clear(stream);
    if let Some(security) = call.security {
        let [from, to] = call.nodes;
        let opening = SecurePreamble {
            versions: VersionRange::SECURE,
            cluster: call.cluster,
            from,
            to,
            purpose: Purpose::Call,
        };
        introduce(&mut wire, &opening.encode(), call)?;
        let client = security.peers().call(to.index());
        let client = Connection::Client(client.map_err(io::Error::other)?);
        wire = wire.secure(client, call.deadline)?;
    }
    introduce(&mut wire, preamble, call)?;
    Ok(wire)
}

fn introduce(
    wire: &mut Wire,
    preamble: &[u8; PREAMBLE_LEN],
    call: &Knocking<'_>,
) -> io::Result<()> {
    wire.write_all(preamble)?;
    let mut reply = [0; PREAMBLE_REPLY_LEN];
    wire.read_until(&mut reply, call.deadline)?;
    let reply = PreambleReply::parse(&reply).map_err(io::Error::other)?;
    match reply.status {
        PreambleStatus::Accepted => Ok(()),
        status => Err(io::Error::other((call.refusal)(status))),
    }
}

fn refusal(status: PreambleStatus) -> &'static str {
    match status {
        PreambleStatus::Version => "the daemon there is of another version",
        PreambleStatus::Cluster => "the daemon there is of another cluster",
        PreambleStatus::Node => {
            "the configuration there has another node at that address, or not this one's address"
        }
        PreambleStatus::Busy => "the daemon there answers too many others already",
        PreambleStatus::Tls => OTHER_TLS,
        PreambleStatus::Resource | PreambleStatus::Accepted => "the daemon there refuses it",
    }
}

/// What the system says, without its number.
pub(super) fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the daemon there closed the connection".to_owned()
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).desc().to_owned(),
            None => error.to_string(),
        },
    }
}

fn ask(mut wire: Wire, request: &Request) -> io::Result<Wire> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    wire.write_all(&line)?;
    wire.socket().set_read_timeout(Some(CLIENT_LOOK))?;
    Ok(wire)
}

/// A connection from the machine's address `from` to `to`, made by `deadline`; from a privileged port
/// if one is wanted and to be had.
fn dial(
    from: Option<SocketAddr>,
    to: SocketAddr,
    privileged: bool,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
    let any = match to {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let mut from = from.unwrap_or(SocketAddr::new(any, 0));
    if !(privileged && bind_privileged(&stream, from)?) {
        from.set_port(0);
        bind(stream.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
            let left = deadline.since(clock::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, left)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let error = getsockopt(&stream, sockopt::SocketError)?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Binds a free one of [`PRIVILEGED_PORTS`], which tells the other host that no ordinary user asks;
/// `false` where this process may not.
fn bind_privileged(stream: &TcpStream, mut from: SocketAddr) -> io::Result<bool> {
    let free = |port: &u16| !SERVICE_PORTS.contains(port);
    for port in PRIVILEGED_PORTS.rev().filter(free) {
        from.set_port(port);
        match bind(stream.as_raw_fd(), &SockaddrStorage::from(from)) {
            Ok(()) => return Ok(true),
            Err(Errno::EADDRINUSE) => {}
            Err(Errno::EACCES | Errno::EPERM) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

/// What both ends want of their socket: lines go out at once, and a host that died is noticed.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &PROBE_AFTER_SECS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &PROBE_EVERY_SECS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &UNANSWERED_MILLIS)?;
    Ok(())
}

fn hand_lines_on(wire: Wire, verb: &Verb, answers: &mut dyn Answers) -> End {
    let mut reader = BufReader::new(wire);
    // Has no final line; its client knows the end by the last event.
    let ends_by_itself = matches!(verb, Verb::Events2 { now: true, .. });
    let mut line = Vec::new();
    loop {
        line.clear();
        match next_line(&mut reader, &mut line, answers) {
            Ok(true) => {}
            Ok(false) if ends_by_itself => return End::Final,
            Ok(false) => return End::Cut("it closed the connection".to_owned()),
            Err(end) => return end,
        }
        let kind = match serde_json::from_slice::<LineKind>(&line) {
            Ok(kind) => kind.reply,
            Err(error) => return End::Nonsense(error.to_string()),
        };
        if let Err(error) = answers.send_line(&line) {
            return End::ClientGone(error);
        }
        if !matches!(kind.as_str(), "progress" | "event") {
            return End::Final;
        }
    }
}

/// Puts the next line with its end into `line`; `false` when none comes any more.
fn next_line(
    reader: &mut BufReader<Wire>,
    line: &mut Vec<u8>,
    answers: &dyn Answers,
) -> Result<bool, End> {
    let mut deadline = None;
    loop {
        match reader.fill_buf() {
            Ok([]) => return Ok(false),
            Ok(bytes) => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let count = end.map_or(bytes.len(), |at| at + 1);
                if line.len() + count > LINE_LEN_MAX {
                    let why = format!("a line is longer than {LINE_LEN_MAX} bytes");
                    return Err(End::Nonsense(why));
                }
                line.extend_from_slice(&bytes[..count]);
                reader.consume(count);
                if end.is_some() {
                    return Ok(true);
                }
                let now = clock::now();
                if now >= *deadline.get_or_insert(now.plus(LINE_TIMEOUT)) {
                    return Err(End::Cut("a line of it does not end".to_owned()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What came before the time was over is in `line` already.
            Err(error) if is_timeout(&error) => {
                if answers.is_gone() {
                    return Err(End::ClientGone(io::ErrorKind::BrokenPipe.into()));
                }
                if deadline.is_some_and(|deadline| clock::now() >= deadline) {
                    return Err(End::Cut("a line of it does not end".to_owned()));
                }
            }
            Err(error) => return Err(End::Cut(words(&error))),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests;
