//! Descriptors that whoever started this process left open for it.

use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;

use super::sys;

/// Takes one by its number; a second time there is none.
///
/// # Errors
/// `EBADF` if there is none, or it was opened by this process itself.
pub fn take(number: RawFd) -> Result<OwnedFd, Errno> {
    sys::take_inherited(number)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn what_this_process_opened_cannot_be_taken_and_the_rest_once() {
        let (reader, writer) = pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        assert_eq!(take(reader.as_raw_fd()).unwrap_err(), Errno::EBADF);
        assert_eq!(take(2).unwrap_err(), Errno::EBADF);
        assert_eq!(take(-1).unwrap_err(), Errno::EBADF);
        // pipe(2) leaves the flag out, as it is after an exec.
        let number = writer.into_raw_fd();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(take(number).unwrap_err(), Errno::EBADF);
    }
}
