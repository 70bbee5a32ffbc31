//! System calls that nix does not offer, each in a safe coat.
#![allow(
    unsafe_code,
    reason = "listed in the project's rules: the thinnest layer over libc"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

mod ioctls {
    use nix::libc;

    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, libc::BLKSSZGET, libc::c_int);
}

/// Takes one connection off a listener's queue.
pub(super) fn accept(listener: BorrowedFd<'_>, nonblocking: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: null for "no address wanted" is allowed; the listener is open by its borrow.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads only if that needs no waiting (`RWF_NOWAIT`).
///
/// # Errors
/// `EAGAIN` if it would wait, `EOPNOTSUPP` if the file cannot tell.
pub(super) fn read_nowait(file: &impl AsFd, buf: &mut [u8]) -> Result<usize, Errno> {
    let iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: `iov` describes `buf`, which is exclusively borrowed for the whole call.
    let count = unsafe {
        libc::preadv2(
            file.as_fd().as_raw_fd(),
            &raw const iov,
            1,
            0,
            libc::RWF_NOWAIT,
        )
    };
    let count = Errno::result(count)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Size of a block device in bytes.
pub(super) fn block_device_len(device: &impl AsFd) -> Result<u64, Errno> {
    let mut len = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which is valid for the call.
    unsafe { ioctls::blkgetsize64(device.as_fd().as_raw_fd(), &raw mut len) }?;
    Ok(len)
}

/// Logical sector size of a block device in bytes.
pub(super) fn block_device_sector_len(device: &impl AsFd) -> Result<u32, Errno> {
    let mut len: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int through the pointer, which is valid for the call.
    unsafe { ioctls::blksszget(device.as_fd().as_raw_fd(), &raw mut len) }?;
    u32::try_from(len).map_err(|_| Errno::EINVAL)
}

/// Takes the exclusive advisory lock of an open file without waiting. It is released when the last
/// reference to the open file is gone, operations in flight included.
///
/// # Errors
/// `EWOULDBLOCK` while another open file has it.
pub(super) fn try_lock_exclusive(file: &impl AsFd) -> Result<(), Errno> {
    // SAFETY: takes a descriptor that is open by its borrow, and no pointer.
    let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    Errno::result(result).map(drop)
}

/// Puts the calling thread before every thread of the usual scheduling class.
pub(super) fn schedule_fifo(priority: i32) -> Result<(), Errno> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the pointer is to a whole sched_param, valid for the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(result).map(drop)
}

/// A descriptor of a process, which stays that process's whatever becomes of its number.
pub(super) fn pidfd_open(pid: libc::pid_t) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers and no pointer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process of a pidfd.
pub(super) fn pidfd_send_signal(process: &impl AsFd, signal: libc::c_int) -> Result<(), Errno> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open by its borrow; null stands for the usual signal information.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_fd().as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// Takes a descriptor that was open when this process began, and keeps it from its children.
///
/// # Errors
/// `EBADF` if none is open under that number, or none that was there at the beginning: whatever this
/// process opens is closed on exec, and what it was started with cannot be.
pub(super) fn take_inherited(number: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers and no pointer.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    if number <= libc::STDERR_FILENO || flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::EBADF);
    }
    let flags = flags | libc::FD_CLOEXEC;
    // SAFETY: takes three integers and no pointer; the descriptor is open.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, flags) })?;
    // SAFETY: it is open, and nobody else in this process owns it: it was not opened by it, and who
    // took it before would have set the flag that was just looked at.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
