//! Aligned memory for O_DIRECT, pooled.
//!
//! Owns the buffers that disks read into and sockets receive into. A buffer is handed out as
//! [`AlignedBuf`], filled, and frozen into a [`Payload`]; when the last handle to it is dropped,
//! on whichever thread, its memory returns to the pool. Invariant: memory returns exactly once,
//! and never while a handle to it exists (the handle owns it).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::types::Payload;

/// Alignment of every buffer: a page, at least what any O_DIRECT device asks for.
pub const BUFFER_ALIGN: usize = 4096;

/// Lengths kept in the pool, ascending. A larger buffer (a guest may write up to 32 MiB in one
/// request) is allocated for the purpose and freed after it.
const CLASS_LENS: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Bytes of idle buffers kept for each class: enough for the deepest queue of small requests that
/// one guest can have (1024 × 4 KiB), little enough to forget about (5 classes: 20 MiB, and only
/// after a load that needed them).
const IDLE_BYTES_MAX: usize = 4 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; BUFFER_ALIGN]);

/// A source of aligned buffers; cloning it makes another handle to the same pool.
#[derive(Clone, Default)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Idle buffers by class. A `Vec` and not a box: memory that the kernel writes into must not
    /// be claimed to be unaliased when its owner moves.
    idle: [Mutex<Vec<Vec<Page>>>; CLASS_LENS.len()],
    out_bytes: AtomicUsize,
}

impl BufferPool {
    /// An empty pool; it grows with use.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `len` bytes, aligned to [`BUFFER_ALIGN`]. Its content is whatever was in it.
    ///
    /// # Panics
    /// When the machine is out of memory.
    #[must_use]
    pub fn take(&self, len: usize) -> AlignedBuf {
        let class = CLASS_LENS.iter().position(|&class_len| len <= class_len);
        let pages = class
            .and_then(|class| self.shared.reuse(class))
            .unwrap_or_else(|| {
                let capacity = class.map_or(len, |class| CLASS_LENS[class]);
                Page::new_vec_zeroed(capacity.div_ceil(BUFFER_ALIGN))
                    .expect("memory for a buffer: allocation failure ends the process anyway")
            });
        self.shared
            .out_bytes
            .fetch_add(pages.len() * BUFFER_ALIGN, Ordering::Relaxed);
        AlignedBuf {
            pages,
            len,
            class,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Bytes that a buffer of `len` takes.
    #[must_use]
    pub fn footprint(len: usize) -> usize {
        let class = CLASS_LENS.iter().find(|&&class_len| len <= class_len);
        class.map_or_else(
            || len.next_multiple_of(BUFFER_ALIGN),
            |class_len| *class_len,
        )
    }

    /// Bytes handed out and not yet returned: what admission of more work is decided by.
    #[must_use]
    pub fn out_bytes(&self) -> usize {
        self.shared.out_bytes.load(Ordering::Relaxed)
    }

    /// A copy of `bytes` in an aligned buffer.
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> Payload {
        let mut buffer = self.take(bytes.len());
        buffer.as_mut().copy_from_slice(bytes);
        buffer.freeze()
    }
}

impl Shared {
    fn reuse(&self, class: usize) -> Option<Vec<Page>> {
        self.idle[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    fn give_back(&self, class: Option<usize>, pages: Vec<Page>) {
        self.out_bytes
            .fetch_sub(pages.len() * BUFFER_ALIGN, Ordering::Relaxed);
        let Some(class) = class else { return };
        let mut idle = self.idle[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_BYTES_MAX / CLASS_LENS[class] {
            idle.push(pages);
        }
    }
}

/// A buffer with one owner, to be filled.
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
    class: Option<usize>,
    shared: Arc<Shared>,
}

impl AlignedBuf {
    /// Usable length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes.
    ///
    /// # Panics
    /// If it is shorter: callers cut what they measured.
    pub fn truncate(&mut self, len: usize) {
        assert!(
            len <= self.len,
            "truncating a buffer of {} bytes to {len}",
            self.len
        );
        self.len = len;
    }

    /// Turns it into shared bytes; the memory returns to the pool with the last handle.
    #[must_use]
    pub fn freeze(self) -> Payload {
        Payload::from(Bytes::from_owner(self))
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        self.shared
            .give_back(self.class, std::mem::take(&mut self.pages));
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_page_aligned_and_as_long_as_asked() {
        let pool = BufferPool::new();
        for len in [0, 1, 4096, 4097, 65_536, 1 << 20, (1 << 20) + 1, 5 << 20] {
            let buffer = pool.take(len);
            assert_eq!(pool.out_bytes(), BufferPool::footprint(len));
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ref().as_ptr().align_offset(BUFFER_ALIGN), 0);
        }
        assert_eq!(pool.out_bytes(), 0);
    }

    #[test]
    fn memory_returns_when_the_last_slice_of_a_payload_is_dropped() {
        let pool = BufferPool::new();
        let payload = pool.copy_of(&[7; 8192]);
        let address = payload.as_ptr();
        let slice = payload.slice(4096, 8192);
        drop(payload);
        assert_eq!(pool.out_bytes(), 16 << 10);
        assert_eq!(slice[0], 7);
        drop(slice);
        assert_eq!(pool.out_bytes(), 0);
        assert_eq!(
            pool.take(8192).as_ref().as_ptr(),
            address,
            "reused, not allocated"
        );
    }

    #[test]
    fn idle_memory_is_bounded() {
        let pool = BufferPool::new();
        let many: Vec<_> = (0..64).map(|_| pool.take(1 << 20)).collect();
        drop(many);
        let idle = pool.shared.idle[4].lock().unwrap().len();
        assert_eq!(idle, IDLE_BYTES_MAX >> 20);
    }

    #[test]
    fn a_payload_may_be_dropped_on_another_thread() {
        let pool = BufferPool::new();
        let payload = pool.copy_of(&[1; 100]);
        std::thread::spawn(move || drop(payload)).join().unwrap();
        assert_eq!(pool.out_bytes(), 0);
    }
}
