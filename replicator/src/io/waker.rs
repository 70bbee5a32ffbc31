//! Waking the loop from another thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Makes a `turn` of the loop return soon. Cheap to clone; calls between two turns cost one
/// system call together.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: EventFd,
    pending: AtomicBool,
}

impl Waker {
    pub(crate) fn new() -> Result<Self, Errno> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            shared: Arc::new(Shared {
                event,
                pending: AtomicBool::new(false),
            }),
        })
    }

    /// Wakes the loop. Whatever was queued for it before this call is visible to it after.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // The counter cannot overflow (one write per `clear`) and the descriptor is ours, so the
        // write cannot fail; if the kernel disagrees, the loop still wakes at its next deadline.
        if let Err(errno) = self.shared.event.write(1) {
            tracing::error!(%errno, "waking the event loop failed");
        }
    }

    /// Called by a portable loop whose poll found the descriptor readable.
    pub(crate) fn consume(&self) {
        // Cannot block: readable, and this thread is the only reader.
        if let Err(errno) = self.shared.event.read() {
            tracing::error!(%errno, "reading the wake-up counter failed");
        }
        self.note_consumed();
    }

    /// Called after the counter was read and before the loop looks at its queues: a wake-up whose
    /// write was spared because this one was pending put its work there before.
    pub(crate) fn note_consumed(&self) {
        self.shared.pending.store(false, Ordering::Release);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}
