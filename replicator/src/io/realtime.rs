//! Making one thread answer in time on a busy machine.

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};

use super::sys;

/// Priority of the beacon thread among real-time threads: above the lowest, below what audio or
/// the kernel's own interrupt threads (50) use.
const FIFO_PRIORITY: i32 = 20;

/// Puts the calling thread before every thread of the usual scheduling class, for work that is
/// short and rare.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE` or a limit (`RLIMIT_RTPRIO`) that allows it.
pub fn schedule_current_thread() -> Result<(), Errno> {
    sys::schedule_fifo(FIFO_PRIORITY)
}

/// Keeps the memory of this process from being paged out, from the first touch on: pages never
/// touched (most of each thread's stack) stay unused.
///
/// # Errors
/// `EPERM` or `ENOMEM` when `RLIMIT_MEMLOCK` does not allow it.
pub fn lock_memory() -> Result<(), Errno> {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)
}
