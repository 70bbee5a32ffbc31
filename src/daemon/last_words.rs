//! What a process says when it must end: to stderr itself, past everything that may be stuck.
//!
//! The log's thread may be blocked on a pipe that nobody empties, holding std's lock of stderr. A
//! daemon whose event loop is gone must not wait for that: its beacons would go on, and the peer
//! would not take over.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;

use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::write;

/// How long a reader of stderr may take to make room, in milliseconds.
const PATIENCE_MS: u16 = 300;

/// A pipe that is ready takes this much at once (`PIPE_BUF`).
const PIECE_LEN: usize = 4096;

/// Says it, as far as somebody listens.
pub(super) fn say(text: &str) {
    say_to(&io::stderr(), text);
}

fn say_to(stream: &impl AsFd, text: &str) {
    for piece in text.as_bytes().chunks(PIECE_LEN) {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PATIENCE_MS).is_ok_and(|ready| ready > 0);
        // Nobody is left to tell when this fails.
        if !ready || write(stream, piece).is_err() {
            return;
        }
    }
}

/// Instead of the default hook, which waits for stderr.
pub(super) fn on_panic() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a thread without name");
        let mut text = format!("{name}: {info}\n");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text += &format!("{backtrace}\n");
        }
        say(&text);
    }));
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::{pipe, read};

    use super::*;

    #[test]
    fn whoever_listens_hears_it_and_nobody_is_waited_for() {
        let (reader, writer) = pipe().unwrap();
        say_to(&writer, "farewell");
        let mut heard = [0; 16];
        let len = read(&reader, &mut heard).unwrap();
        assert_eq!(&heard[..len], b"farewell");
        let flags = OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
        fcntl(&writer, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
        while write(&writer, &[0; PIECE_LEN]).is_ok() {}
        fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
        // Returns: that is the test.
        say_to(&writer, "nobody hears this");
    }
}
