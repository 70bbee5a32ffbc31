//! A bounded queue between threads whose reader waits in poll(2), never on a lock held for long.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Many writers, one reader.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: Mutex<VecDeque<T>>,
    capacity: usize,
    ready: EventFd,
}

impl<T> Mailbox<T> {
    /// A mailbox for at most `capacity` items.
    ///
    /// # Errors
    /// If the system gives no eventfd.
    pub fn new(capacity: usize) -> std::io::Result<Self> {
        let ready = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            queue: Mutex::new(VecDeque::new()),
            capacity,
            ready,
        })
    }

    /// Adds an item and wakes the reader.
    ///
    /// # Errors
    /// Gives the item back when the mailbox is full.
    pub fn push(&self, item: T) -> Result<(), T> {
        let mut queue = self.lock();
        if queue.len() >= self.capacity {
            return Err(item);
        }
        queue.push_back(item);
        let was_empty = queue.len() == 1;
        drop(queue);
        // The reader empties the queue at once, so only the first item has to wake it.
        if was_empty {
            self.wake();
        }
        Ok(())
    }

    /// Wakes the reader without an item.
    pub fn wake(&self) {
        // Fails only when the counter is at its maximum: then the reader is awake anyway.
        self.ready.write(1).ok();
    }

    /// Takes everything, in order, and rearms the wake-up.
    pub fn drain(&self) -> VecDeque<T> {
        // Rearmed before the queue is emptied: an item added in between wakes once too often
        // rather than never. Fails with EAGAIN when nothing woke us.
        self.ready.read().ok();
        core::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        // A writer that panicked left a whole queue behind: pushes are single steps.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_ready(mailbox: &Mailbox<u32>) -> bool {
        let mut fds = [PollFd::new(mailbox.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_push_wakes_the_reader_and_a_drain_lets_it_sleep() {
        let mailbox = Mailbox::new(2).unwrap();
        assert!(!is_ready(&mailbox));
        mailbox.push(1).unwrap();
        mailbox.push(2).unwrap();
        assert_eq!(mailbox.push(3), Err(3), "it is bounded");
        assert!(is_ready(&mailbox));
        assert_eq!(mailbox.drain(), [1, 2]);
        assert!(!is_ready(&mailbox));
    }
}
