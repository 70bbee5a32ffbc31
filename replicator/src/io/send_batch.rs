//! What goes out in one `sendmsg`.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// Most pieces in one batch: the kernel's IOV_MAX.
pub const BATCH_PIECES_MAX: usize = 1024;
/// A batch takes nothing more once it is this long: a larger one would only keep the first replies
/// in it waiting. One payload may exceed it (a read reply of 32 MiB is one piece).
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Payloads up to this length are copied into the batch: cheaper than a piece of their own.
const COPY_LEN_MAX: usize = 512;
/// Capacity kept of a used batch for the next one.
const KEEP_CAPACITY_MAX: usize = 256 << 10;

/// Bytes to send, in order: short ones copied together, long ones by handle.
#[derive(Debug, Default)]
pub struct SendBatch {
    copied: Vec<u8>,
    pieces: Vec<Piece>,
    len: usize,
}

#[derive(Debug)]
enum Piece {
    /// A range of `copied`.
    Copied {
        start: usize,
        end: usize,
    },
    Shared(Bytes),
}

impl SendBatch {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn is_full(&self) -> bool {
        self.len >= BATCH_BYTES_MAX || self.pieces.len() + 2 > BATCH_PIECES_MAX
    }

    fn push_copied(&mut self, bytes: &[u8]) {
        let start = self.copied.len();
        self.copied.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Copied { end, .. }) => *end = self.copied.len(),
            _ => self.pieces.push(Piece::Copied {
                start,
                end: self.copied.len(),
            }),
        }
    }

    fn push_shared(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        self.pieces.push(Piece::Shared(bytes));
    }

    /// The pieces after the first `skip` bytes.
    pub(super) fn slices(&self, skip: usize) -> impl Iterator<Item = IoSlice<'_>> {
        let mut skip = skip;
        self.pieces.iter().filter_map(move |piece| {
            let bytes = match piece {
                Piece::Copied { start, end } => &self.copied[*start..*end],
                Piece::Shared(bytes) => bytes,
            };
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            (skipped < bytes.len()).then(|| IoSlice::new(&bytes[skipped..]))
        })
    }

    fn clear(&mut self) {
        self.copied.clear();
        self.copied.shrink_to(KEEP_CAPACITY_MAX);
        self.pieces.clear();
        self.len = 0;
    }
}

/// What waits to be sent on one socket while a batch is in flight, so that everything queued goes
/// out in the next single send. Not bounded by itself: whoever fills it has a window.
#[derive(Debug, Default)]
pub struct SendQueue {
    waiting: VecDeque<SendBatch>,
    spare: Option<SendBatch>,
    len: usize,
    in_flight: bool,
}

impl SendQueue {
    /// Bytes queued, without those in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is queued and nothing in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.len == 0 && !self.in_flight
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a copy of `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.open_batch().push_copied(bytes);
        }
    }

    /// Appends `bytes`, by handle if that is cheaper.
    pub fn push_shared(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_LEN_MAX {
            self.push(&bytes);
        } else {
            self.len += bytes.len();
            self.open_batch().push_shared(bytes);
        }
    }

    /// The batch to send now, if there is one and none is in flight.
    pub fn begin_send(&mut self) -> Option<SendBatch> {
        if self.in_flight {
            return None;
        }
        let batch = self.waiting.pop_front()?;
        self.len -= batch.len();
        self.in_flight = true;
        Some(batch)
    }

    /// Takes back a batch that was sent (or failed: the caller then drops the connection).
    pub fn end_send(&mut self, mut batch: SendBatch) {
        self.in_flight = false;
        batch.clear();
        self.spare = Some(batch);
    }

    fn open_batch(&mut self) -> &mut SendBatch {
        if self.waiting.back().is_none_or(SendBatch::is_full) {
            self.waiting
                .push_back(self.spare.take().unwrap_or_default());
        }
        self.waiting.back_mut().expect("just pushed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(batch: &SendBatch, skip: usize) -> Vec<u8> {
        batch
            .slices(skip)
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn everything_queued_while_a_batch_is_in_flight_goes_out_in_the_next_one() {
        let mut queue = SendQueue::default();
        queue.push(b"one");
        let first = queue.begin_send().unwrap();
        queue.push(b"two");
        queue.push_shared(Bytes::from(vec![b'x'; 600]));
        queue.push(b"three");
        assert!(queue.begin_send().is_none(), "one send at a time");
        queue.end_send(first);
        let second = queue.begin_send().unwrap();
        assert_eq!(second.slices(0).count(), 3);
        let mut expected = b"two".to_vec();
        expected.extend([b'x'; 600]);
        expected.extend(b"three");
        for skip in [0, 1, 3, 10, 603, 604, 608] {
            assert_eq!(bytes_of(&second, skip), expected[skip..], "skipping {skip}");
        }
        queue.end_send(second);
        assert!(queue.is_idle());
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_and_pieces() {
        let mut queue = SendQueue::default();
        for _ in 0..3000 {
            queue.push(b"h");
            queue.push_shared(Bytes::from_static(&[0; 1000]));
        }
        let mut total = 0;
        while let Some(batch) = queue.begin_send() {
            assert!(batch.slices(0).count() <= BATCH_PIECES_MAX);
            assert!(batch.len() <= BATCH_BYTES_MAX + 1001);
            total += batch.len();
            queue.end_send(batch);
        }
        assert_eq!(total, 3000 * 1001);
    }

    #[test]
    fn a_used_batch_is_used_again() {
        let mut queue = SendQueue::default();
        queue.push(&[1; 100]);
        let batch = queue.begin_send().unwrap();
        let address = batch.copied.as_ptr();
        queue.end_send(batch);
        queue.push(&[2; 100]);
        assert_eq!(queue.begin_send().unwrap().copied.as_ptr(), address);
    }
}
