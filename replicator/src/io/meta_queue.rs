//! The engine's metadata requests as operations on the metadata area: one request after the other,
//! each write durable before it is reported.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Backend;
use super::buffer::BufferPool;
use super::disk::{Disk, disk_error};
use super::disk_queue::{DiskResult, aligned, as_len};
use super::op::{Completion, Op, Token};
use crate::engine::{DiskReply, MetaPage, MetaRequest};
use crate::types::{BLOCK_LEN, ByteOffset, DiskError, OpId, Payload};

/// Pages next to each other are written together, up to this length in bytes.
const RUN_LEN_MAX: usize = 1 << 20;

/// Metadata requests of one resource, in order. The engine bounds their number.
pub struct MetaQueue {
    disk: Disk,
    /// Where the area begins on the device.
    origin: ByteOffset,
    pool: BufferPool,
    base: Token,
    waiting: VecDeque<(OpId, MetaRequest)>,
    current: Option<Current>,
}

struct Current {
    op: OpId,
    stage: Stage,
}

enum Stage {
    /// A read of more than was asked for, to whole pages.
    Read {
        skip: usize,
        len: usize,
    },
    /// Writes in flight, and the first failure.
    Writing {
        left: usize,
        error: Option<DiskError>,
        then_sync: bool,
    },
    Syncing,
}

impl MetaQueue {
    /// A queue for the area that begins at `origin` of the device.
    #[must_use]
    pub fn new(disk: Disk, origin: ByteOffset, pool: BufferPool, base: Token) -> Self {
        Self {
            disk,
            origin,
            pool,
            base,
            waiting: VecDeque::new(),
            current: None,
        }
    }

    /// The device.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Requests begun or waiting.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting.len() + usize::from(self.current.is_some())
    }

    /// Queues a request; its result comes from [`Self::on_completion`], never from here.
    pub fn begin(&mut self, backend: &mut dyn Backend, op: OpId, request: MetaRequest) {
        self.waiting.push_back((op, request));
        if self.current.is_none() {
            self.start_next(backend);
        }
    }

    /// Takes the completion of one of its operations; gives the requests that ended by it: none,
    /// one, or after a failed write all.
    pub fn on_completion(
        &mut self,
        backend: &mut dyn Backend,
        completion: Completion,
    ) -> Vec<(OpId, DiskResult)> {
        let Some(current) = self.current.as_mut() else {
            return Vec::new();
        };
        let is_write = !matches!(current.stage, Stage::Read { .. });
        let count = completion.count().map_err(disk_error);
        let result = match &mut current.stage {
            Stage::Read { skip, len } => {
                let (start, end) = (*skip, *skip + *len);
                count.and_then(|count| read_reply(completion.op, count, start, end))
            }
            Stage::Writing {
                left,
                error,
                then_sync,
            } => {
                *left -= 1;
                let wanted = completion.op.wanted();
                let written = count.and_then(|count| complete(count, wanted));
                *error = error.or(written.err());
                if *left > 0 {
                    return Vec::new();
                }
                match *error {
                    Some(error) => Err(error),
                    None if *then_sync => {
                        current.stage = Stage::Syncing;
                        backend.submit(
                            self.base,
                            Op::Sync {
                                file: self.disk.file().clone(),
                            },
                        );
                        return Vec::new();
                    }
                    None => Ok(DiskReply::Done),
                }
            }
            Stage::Syncing => count.map(|_| DiskReply::Done),
        };
        let mut ended = vec![(current.op, result.clone())];
        self.current = None;
        if let (Err(error), true) = (result, is_write) {
            // What waits may rest on what failed: marks first, then the log that forgets them.
            ended.extend(self.waiting.drain(..).map(|(op, _)| (op, Err(error))));
        }
        self.start_next(backend);
        ended
    }

    fn start_next(&mut self, backend: &mut dyn Backend) {
        let Some((op, request)) = self.waiting.pop_front() else {
            return;
        };
        let stage = match request {
            MetaRequest::Read { offset, len } => self.start_read(backend, offset, len.0),
            MetaRequest::Write(pages) => self.start_write(backend, pages),
        };
        self.current = Some(Current { op, stage });
    }

    fn start_read(&self, backend: &mut dyn Backend, offset: ByteOffset, len: u64) -> Stage {
        let skip = offset.0 % BLOCK_LEN;
        let buf = self
            .pool
            .take(as_len((skip + len).next_multiple_of(BLOCK_LEN)));
        let offset = self.origin.0 + offset.0 - skip;
        backend.submit(
            self.base,
            Op::Read {
                file: self.disk.file().clone(),
                offset,
                buf,
            },
        );
        Stage::Read {
            skip: as_len(skip),
            len: as_len(len),
        }
    }

    fn start_write(&self, backend: &mut dyn Backend, pages: Vec<MetaPage>) -> Stage {
        let runs = runs(&self.pool, pages);
        if runs.is_empty() {
            backend.submit(
                self.base,
                Op::Sync {
                    file: self.disk.file().clone(),
                },
            );
            return Stage::Syncing;
        }
        let (left, durable) = (runs.len(), runs.len() == 1);
        for (offset, payload) in runs {
            let file = self.disk.file().clone();
            let offset = self.origin.0 + offset.0;
            backend.submit(
                self.base,
                Op::Write {
                    file,
                    offset,
                    payload,
                    durable,
                },
            );
        }
        Stage::Writing {
            left,
            error: None,
            then_sync: !durable,
        }
    }
}

fn complete(count: usize, wanted: usize) -> Result<(), DiskError> {
    if count == wanted {
        Ok(())
    } else {
        Err(DiskError::Short)
    }
}

fn read_reply(op: Op, count: usize, start: usize, end: usize) -> DiskResult {
    let Op::Read { buf, .. } = op else {
        return Err(DiskError::Short);
    };
    if count < end {
        return Err(DiskError::Short);
    }
    Ok(DiskReply::Data(buf.freeze().slice(start, end)))
}

/// The pages sorted and joined where they are neighbours. Two pages at one offset: the later wins.
fn runs(pool: &BufferPool, mut pages: Vec<MetaPage>) -> Vec<(ByteOffset, Bytes)> {
    pages.sort_by_key(|page| page.offset);
    let mut runs: Vec<(ByteOffset, Vec<Payload>)> = Vec::new();
    let mut end = ByteOffset(0);
    for page in pages {
        let len = page.bytes.len();
        match runs.last_mut() {
            Some((_, run)) if page.offset.0 + len as u64 == end.0 => {
                run.pop();
                run.push(page.bytes);
                continue;
            }
            Some((start, run))
                if page.offset == end && as_len(end.0 - start.0) + len <= RUN_LEN_MAX =>
            {
                run.push(page.bytes);
            }
            _ => runs.push((page.offset, vec![page.bytes])),
        }
        end = ByteOffset(page.offset.0 + len as u64);
    }
    runs.into_iter()
        .map(|(offset, run)| (offset, joined(pool, run)))
        .collect()
}

fn joined(pool: &BufferPool, mut run: Vec<Payload>) -> Bytes {
    if run.len() == 1 {
        return aligned(pool, run.remove(0));
    }
    let mut buffer = pool.take(run.iter().map(Payload::len).sum());
    let mut free = buffer.as_mut();
    for page in &run {
        let (place, rest) = free.split_at_mut(page.len());
        place.copy_from_slice(page);
        free = rest;
    }
    buffer.freeze().bytes().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_pages_are_written_together_and_of_two_the_later_wins() {
        let page = |nr: u64, fill: u8| MetaPage {
            offset: ByteOffset(nr * BLOCK_LEN),
            bytes: vec![fill; as_len(BLOCK_LEN)].into(),
        };
        let pages = vec![page(9, 9), page(2, 2), page(1, 1), page(1, 7), page(3, 3)];
        let runs = runs(&BufferPool::new(), pages);
        let shape: Vec<_> = runs
            .iter()
            .map(|(at, bytes)| (at.0 / BLOCK_LEN, bytes.len()))
            .collect();
        assert_eq!(shape, [(1, 3 * 4096), (9, 4096)]);
        assert_eq!((runs[0].1[0], runs[0].1[4096], runs[0].1[8192]), (7, 2, 3));
    }
}
