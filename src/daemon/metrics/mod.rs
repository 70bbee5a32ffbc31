//! `[metrics] listen`: what Prometheus scrapes, and a page for people. Read-only, and apart from
//! everything else: a thread that answers, and a short-lived one for each connection.
//!
//! HTTP as far as five fixed answers to GET need it: one request a connection, closed after the answer.
//! A server library would bring an executor, or hundreds of thousands of lines, for this.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | [`text`] |
//! | `/status.json` | as `twinadm status --json` |
//! | `/healthz` | 200 as long as the process answers |
//! | `/readyz` | 200 with a majority of the voters, else 503 |
//! | `/` | the resources as a table |

mod page;
mod text;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use replicator::admin::Status;

use super::control::Place;
use super::mailbox::Mailbox;

/// Connections at once: a scraper or two, and some browsers. More are closed.
const CONNECTIONS_MAX: usize = 16;
/// Longest request head: a browser's cookies for other ports of this host come with it.
const HEAD_LEN_MAX: usize = 16 << 10;
/// For the request, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Stack of a connection's thread.
const STACK_LEN: usize = 256 << 10;

/// Where the answers come from.
pub(super) trait Source: Send + Sync + 'static {
    /// What this node knows now.
    fn status(&self) -> Status;
    /// What does not change: the program, and when it started in seconds since 1970-01-01 UTC.
    fn about(&self) -> About;
}

/// What does not change while the process lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    /// `twinblkd` or `twinblk-arbitrator`.
    pub(super) program: &'static str,
    /// Seconds since 1970-01-01 UTC.
    pub(super) started: f64,
}

/// The running server; it ends when dropped.
#[derive(Debug)]
pub(super) struct Server {
    stop: Arc<Mailbox<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on `listener`.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn start(listener: TcpListener, source: Arc<dyn Source>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Mailbox::new(1)?);
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .stack_size(STACK_LEN)
            .spawn(move || accept_until_told(&listener, &told, &source))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Full: it was told already.
        self.stop.push(()).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn accept_until_told(listener: &TcpListener, stop: &Mailbox<()>, source: &Arc<dyn Source>) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // EINTR and the like: look again.
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        if !stop.drain().is_empty() {
            return;
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // Out of descriptors: the listener stays readable, so do not spin.
                tracing::warn!(%error, "metrics: accepting failed");
                let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(100_u8)).ok();
                continue;
            }
        };
        let Some(place) = Place::take(&connections, CONNECTIONS_MAX) else {
            continue;
        };
        let source = Arc::clone(source);
        let spawned = thread::Builder::new()
            .name("metrics-client".to_owned())
            .stack_size(STACK_LEN)
            .spawn(move || {
                let _place = place;
                if let Err(error) = serve(stream, &*source) {
                    tracing::debug!(%error, "metrics: a client left");
                }
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "metrics: no thread for a client");
        }
    }
}

fn serve(mut stream: TcpStream, source: &dyn Source) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    let answer = answer(&head, source);
    stream.write_all(answer.head().as_bytes())?;
    if !head.starts_with(b"HEAD ") {
        stream.write_all(answer.body.as_bytes())?;
    }
    Ok(())
}

/// The request up to its empty line, or as much as came.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = replicator::io::clock::now().plus(PATIENCE);
    let mut head = Vec::new();
    let mut buffer = [0; 2048];
    while head.len() < HEAD_LEN_MAX && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = deadline.since(replicator::io::clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(head)
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

const PLAIN: &str = "text/plain; charset=utf-8";

impl Answer {
    fn new(status: &'static str, kind: &'static str, body: impl Into<String>) -> Self {
        let body = body.into();
        Self { status, kind, body }
    }

    fn head(&self) -> String {
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\r\n",
            self.status,
            self.kind,
            self.body.len()
        )
    }
}

fn answer(head: &[u8], source: &dyn Source) -> Answer {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else {
        return Answer::new("400 Bad Request", PLAIN, "not a request\n");
    };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Answer::new("400 Bad Request", PLAIN, "not a request\n");
    };
    if !version.starts_with("HTTP/1.") {
        return Answer::new(
            "505 HTTP Version Not Supported",
            PLAIN,
            "HTTP/1.1 is spoken here\n",
        );
    }
    if !matches!(method, "GET" | "HEAD") {
        return Answer::new("405 Method Not Allowed", PLAIN, "only GET and HEAD\n");
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match path {
        "/metrics" => Answer::new(
            "200 OK",
            "text/plain; version=0.0.4; charset=utf-8",
            text::encode(&source.status(), source.about()),
        ),
        "/status.json" => match serde_json::to_string(&source.status()) {
            Ok(json) => Answer::new("200 OK", "application/json", json + "\n"),
            Err(error) => Answer::new("500 Internal Server Error", PLAIN, error.to_string()),
        },
        "/healthz" => Answer::new("200 OK", PLAIN, "ok\n"),
        "/readyz" => match source.status().cluster {
            cluster if cluster.quorum => Answer::new("200 OK", PLAIN, "quorum\n"),
            cluster => {
                let body = format!("{} of {} voters\n", cluster.voters_seen, cluster.voters);
                Answer::new("503 Service Unavailable", PLAIN, body)
            }
        },
        "/" => Answer::new(
            "200 OK",
            "text/html; charset=utf-8",
            page::render(&source.status()),
        ),
        _ => Answer::new(
            "404 Not Found",
            PLAIN,
            "/metrics, /status.json, /healthz, /readyz or /\n",
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::daemon::status::tests::of_a_serving_primary;

    use super::*;

    /// Sees so many of three voters.
    struct Sees(u8);

    impl Source for Sees {
        fn status(&self) -> Status {
            let mut status = of_a_serving_primary();
            status.cluster.voters_seen = self.0;
            status.cluster.quorum = self.0 > 1;
            status
        }

        fn about(&self) -> About {
            About {
                program: "twinblkd",
                started: 1.5,
            }
        }
    }

    fn status_of(request: &str) -> &'static str {
        answer(request.as_bytes(), &Sees(3)).status
    }

    #[test]
    fn each_path_has_its_answer_and_nothing_else_has_one() {
        for path in [
            "/metrics",
            "/metrics?x=1",
            "/status.json",
            "/healthz",
            "/readyz",
            "/",
        ] {
            assert_eq!(
                status_of(&format!("GET {path} HTTP/1.1\r\n\r\n")),
                "200 OK",
                "{path}"
            );
        }
        for path in [
            "/metrics/",
            "/../etc/passwd",
            "//",
            "*",
            "/%00",
            "http://a/metrics",
        ] {
            let status = status_of(&format!("GET {path} HTTP/1.1\r\n\r\n"));
            assert_eq!(status, "404 Not Found", "{path}");
        }
        assert_eq!(status_of("HEAD / HTTP/1.0\r\n\r\n"), "200 OK");
        assert_eq!(
            status_of("POST / HTTP/1.1\r\n\r\n"),
            "405 Method Not Allowed"
        );
        assert_eq!(
            status_of("PRI * HTTP/2.0\r\n\r\n"),
            "505 HTTP Version Not Supported"
        );
        for garbage in ["", "\r\n", "GET", "GET /", "\u{1}\u{2}\r\n"] {
            assert_eq!(status_of(garbage), "400 Bad Request", "{garbage:?}");
        }
        assert_eq!(
            answer(b"GET /\xff HTTP/1.1\r\n", &Sees(3)).status,
            "400 Bad Request"
        );
    }

    #[test]
    fn a_minority_is_alive_and_not_ready() {
        let at = |path: &str| answer(format!("GET {path} HTTP/1.1\r\n").as_bytes(), &Sees(1));
        assert_eq!(at("/healthz").status, "200 OK");
        let ready = at("/readyz");
        let wanted = ("503 Service Unavailable", "1 of 3 voters\n");
        assert_eq!((ready.status, &*ready.body), wanted);
    }
}
