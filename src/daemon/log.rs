//! The log: lines go into a bounded queue and one thread writes them, so that a full pipe or a
//! slow journal never holds up a beacon or a write.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::mailbox::Mailbox;

/// Lines waiting at most; more are counted and dropped. Some seconds of a very talkative daemon.
const LINES_MAX: usize = 4096;

/// How long the end waits for the last lines to be written: a reader of stderr that is stuck must not
/// keep a process that has to end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Stack of the writing thread.
const STACK_LEN: usize = 128 * 1024;

/// The writing thread; dropping it writes what is waiting and ends it.
#[derive(Debug)]
pub(super) struct Log {
    queue: LogQueue,
    stopping: Arc<AtomicBool>,
    /// Hangs up when the writing thread ended, be it by a panic.
    ended: Receiver<()>,
}

/// Where the subscriber puts its lines.
#[derive(Clone, Debug)]
struct LogQueue {
    lines: Arc<Mailbox<Vec<u8>>>,
    dropped: Arc<AtomicU64>,
}

/// One line being written.
#[derive(Debug)]
struct Line(LogQueue);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The subscriber hands over each event in one piece.
        if self.0.lines.push(bytes.to_vec()).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.clone())
    }
}

/// Whether such a level can be parsed.
///
/// # Errors
/// In words: it cannot.
pub(super) fn check(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|error| format!("log level: {error}"))
}

/// Starts the log on stderr. `level` is as in `[log] level`.
///
/// # Errors
/// In words: a level that cannot be parsed, no thread, or a log that was started before.
pub(super) fn start(level: &str) -> Result<Log, String> {
    let filter = filter(level)?;
    let lines = Mailbox::new(LINES_MAX).map_err(|error| error.to_string())?;
    let queue = LogQueue {
        lines: Arc::new(lines),
        dropped: Arc::default(),
    };
    let stopping = Arc::new(AtomicBool::new(false));
    let ended = {
        let (queue, stopping) = (queue.clone(), Arc::clone(&stopping));
        let (alive, ended) = mpsc::channel();
        thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_LEN)
            .spawn(move || {
                let _alive = alive;
                write_lines(&queue, &stopping);
            })
            .map_err(|error| error.to_string())?;
        ended
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(queue.clone())
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(Log {
        queue,
        stopping,
        ended,
    })
}

fn write_lines(queue: &LogQueue, stopping: &AtomicBool) {
    loop {
        write_waiting(queue);
        // Looked at after the queue took its wake-up: one that comes later ends the `poll`. The
        // other way round the end could be announced in between, and its wake-up be taken.
        if stopping.load(Ordering::Acquire) {
            write_waiting(queue);
            return;
        }
        let mut fds = [PollFd::new(queue.lines.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).ok();
    }
}

fn write_waiting(queue: &LogQueue) {
    let mut text: Vec<u8> = queue.lines.drain().into_iter().flatten().collect();
    let dropped = queue.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        text.extend_from_slice(format!("{dropped} log lines were dropped\n").as_bytes());
    }
    // Nobody is left to tell when stderr is gone.
    io::stderr().write_all(&text).ok();
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.queue.lines.wake();
        // Hung up, or not in time: either way this is the end.
        self.ended.recv_timeout(FAREWELL).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> LogQueue {
        LogQueue {
            lines: Arc::new(Mailbox::new(LINES_MAX).unwrap()),
            dropped: Arc::default(),
        }
    }

    /// The end was once announced between the look at it and the wait for it, and its wake-up lost.
    #[test]
    fn a_log_ends_whenever_it_is_told_to() {
        for _ in 0..2_000 {
            let queue = queue();
            let stopping = Arc::new(AtomicBool::new(false));
            let (writer, told) = (queue.clone(), Arc::clone(&stopping));
            let thread = thread::spawn(move || write_lines(&writer, &told));
            let (_, ended) = mpsc::channel();
            drop(Log {
                queue,
                stopping,
                ended,
            });
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_stuck_reader_does_not_keep_the_process() {
        let (alive, ended) = mpsc::channel();
        drop(Log {
            queue: queue(),
            stopping: Arc::default(),
            ended,
        });
        // Returned although the writer never ended.
        drop(alive);
    }
}
