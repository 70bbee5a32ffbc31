//! Processes that are watched and signalled without ever meaning another one with their number.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::sys;

/// One process. Readable in `poll(2)` once it has ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has this number now.
    ///
    /// # Errors
    /// `ESRCH` if there is none; `ENOSYS` before Linux 5.3.
    pub fn open(pid: i32) -> Result<Self, Errno> {
        sys::pidfd_open(pid).map(Self)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// `ESRCH` once it has ended, `EPERM` if this process may not.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        sys::pidfd_send_signal(&self.0, signal as i32)
    }

    /// Waits for its end, at most so long; whether it has ended.
    #[must_use]
    pub fn wait(&self, timeout: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.wait(PollTimeout::ZERO)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_stopped_continued_and_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!process.has_ended());
        process.signal(Signal::SIGSTOP).unwrap();
        process.signal(Signal::SIGCONT).unwrap();
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait(PollTimeout::from(10_000_u16)));
        child.wait().unwrap();
        assert_eq!(process.signal(Signal::SIGKILL), Err(Errno::ESRCH));
    }
}
