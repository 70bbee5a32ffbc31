//! File operations by ordinary system calls: at once, or by threads ([`super::file_pool`]).
//!
//! Used where a ring cannot help: io_uring is forbidden, or the file cannot tell whether it would
//! block, so that each operation would wake a kernel thread of the ring.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, fdatasync, lseek};

use super::file_pool::Pool;
use super::op::{Completion, Done, FileExtent, FileRoute, IoFile, Op, Token, ZeroMode};
use super::waker::Waker;

/// Runs file operations of both kinds and collects their completions.
pub(super) struct FileWork {
    waker: Waker,
    inline: Vec<(Token, Op)>,
    inline_bytes: usize,
    pool: Option<Pool>,
    in_pool: usize,
}

impl FileWork {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            waker,
            inline: Vec::new(),
            inline_bytes: 0,
            pool: None,
            in_pool: 0,
        }
    }

    pub(super) fn submit(&mut self, token: Token, op: Op, route: FileRoute) {
        if route == FileRoute::Inline {
            self.inline_bytes += op.wanted();
            self.inline.push((token, op));
        } else {
            self.in_pool += 1;
            self.pool
                .get_or_insert_with(|| Pool::new(&self.waker, Box::new(execute)))
                .push(token, op);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.inline.len() + self.in_pool
    }

    /// Bytes that `run_inline` is going to move: what it keeps everything else waiting for.
    pub(super) fn inline_bytes(&self) -> usize {
        self.inline_bytes
    }

    /// Operations that `run_inline` is going to carry out.
    pub(super) fn inline_len(&self) -> usize {
        self.inline.len()
    }

    /// Gives one of them away, to be carried out otherwise.
    pub(super) fn take_inline(&mut self) -> Option<(Token, Op)> {
        let (token, op) = self.inline.pop()?;
        self.inline_bytes -= op.wanted();
        Some((token, op))
    }

    pub(super) fn run_inline(&mut self, done: &mut Vec<Completion>) {
        self.inline_bytes = 0;
        done.extend(self.inline.drain(..).map(|(token, op)| execute(token, op)));
    }

    pub(super) fn collect(&mut self, done: &mut Vec<Completion>) {
        if let Some(pool) = self.pool.as_ref().filter(|_| self.in_pool > 0) {
            let before = done.len();
            pool.collect(done);
            self.in_pool -= done.len() - before;
        }
    }
}

/// Carries a file operation out, on this thread, to its end.
fn execute(token: Token, mut op: Op) -> Completion {
    let result = match &mut op {
        Op::Read { file, offset, buf } => read_all(file, *offset, buf.as_mut()),
        Op::Write {
            file,
            offset,
            payload,
            durable,
        } => write_all(file, *offset, payload).and_then(|count| {
            if *durable {
                sync(file).map(|()| count)
            } else {
                Ok(count)
            }
        }),
        Op::Sync { file } => sync(file).map(|()| 0),
        Op::Zero {
            file,
            offset,
            len,
            mode,
        } => zero(file, *offset, *len, *mode).map(|()| 0),
        Op::FindExtents {
            file,
            offset,
            len,
            count_max,
            found,
        } => find_extents(file, *offset, *len, *count_max, found).map(|()| found.len()),
        Op::Recv { .. } | Op::Send { .. } | Op::Accept { .. } | Op::Connect { .. } => {
            unreachable!("a socket operation has no file route")
        }
    };
    Completion {
        token,
        op,
        result: result.map(Done::Count),
    }
}

fn read_all(file: &IoFile, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    repeat(buf.len(), |moved| {
        pread(file, &mut buf[moved..], position(offset, moved)?)
    })
}

fn write_all(file: &IoFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
    repeat(bytes.len(), |moved| {
        pwrite(file, &bytes[moved..], position(offset, moved)?)
    })
}

fn sync(file: &IoFile) -> Result<(), Errno> {
    fdatasync(file)
}

fn zero(file: &IoFile, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
    let len = i64::try_from(len).map_err(|_| Errno::EFBIG)?;
    fallocate(file, zero_flags(mode), position(offset, 0)?, len)
}

/// Each step asks where the next data begins, so that a hole is only what the filesystem calls one.
/// A write that lands meanwhile may be seen or not, as by any reader beside it.
fn find_extents(
    file: &IoFile,
    offset: u64,
    len: u64,
    count_max: usize,
    found: &mut Vec<FileExtent>,
) -> Result<(), Errno> {
    let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
    let mut at = offset;
    while at < end && found.len() < count_max {
        let data = match lseek(file, position(at, 0)?, Whence::SeekData) {
            Ok(data) => u64::try_from(data).unwrap_or(end).clamp(at, end),
            // No data from here to the end of the file.
            Err(Errno::ENXIO) => end,
            Err(errno) => return Err(errno),
        };
        if data > at {
            found.push(FileExtent {
                len: data - at,
                is_hole: true,
            });
            at = data;
            continue;
        }
        let hole = lseek(file, position(at, 0)?, Whence::SeekHole)?;
        let hole = u64::try_from(hole).unwrap_or(end).clamp(at + 1, end);
        found.push(FileExtent {
            len: hole - at,
            is_hole: false,
        });
        at = hole;
    }
    Ok(())
}

/// The flags of `fallocate(2)` for `mode`.
pub(super) fn zero_flags(mode: ZeroMode) -> FallocateFlags {
    let what = match mode {
        ZeroMode::Punch => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        ZeroMode::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
    };
    what | FallocateFlags::FALLOC_FL_KEEP_SIZE
}

fn position(offset: u64, moved: usize) -> Result<i64, Errno> {
    offset
        .checked_add(moved as u64)
        .and_then(|position| i64::try_from(position).ok())
        .ok_or(Errno::EFBIG)
}

/// Repeats `step` until `wanted` bytes are moved or one step moves nothing.
fn repeat(
    wanted: usize,
    mut step: impl FnMut(usize) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut moved = 0;
    while moved < wanted {
        match step(moved) {
            Ok(0) => break,
            Ok(count) => moved += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(moved)
}
