//! The engine's disk commands as operations on the data device.

use bytes::Bytes;

use super::Backend;
use super::buffer::{BUFFER_ALIGN, BufferPool};
use super::disk::{Disk, DiskKind, disk_error};
use super::op::{Completion, Op, Token, ZeroMode};
use crate::engine::{DiskCommand, DiskReply};
use crate::types::{BlockRange, DiskError, OpId, Payload};

/// How a command ended, for `Input::DiskDone`.
pub type DiskResult = Result<DiskReply, DiskError>;

/// Longest single write when zeroes have to be written out: long enough to be fast, short enough
/// not to hold up a guest's write behind it.
const ZEROES_LEN_MAX: u64 = 1 << 20;

/// Commands in flight on one data device. The engine bounds their number.
pub struct DiskQueue {
    disk: Disk,
    pool: BufferPool,
    base: Token,
    commands: Vec<Option<Command>>,
    free: Vec<u32>,
    /// The fastest way to make zeroes that was not refused yet.
    zeroing: Zeroing,
    zeroes: Option<Payload>,
}

#[derive(Clone, Copy)]
struct Command {
    op: OpId,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    /// The operation in flight is all there is to do.
    Only { len: usize },
    /// A range is being made zero by the filesystem or device.
    Zero {
        range: BlockRange,
        mode: ZeroMode,
        fua: bool,
    },
    /// Zeroes are being written; from `at` on is left, after this write of `len`.
    WriteZeroes {
        at: u64,
        end: u64,
        len: u64,
        fua: bool,
    },
}

#[derive(Clone, Copy, Default)]
struct Zeroing {
    punch_refused: bool,
    zero_refused: bool,
}

impl DiskQueue {
    /// Commands in flight at most: their numbers fit in the low [`Self::TOKEN_BITS`] of a token.
    /// Ten times what the engine's own bounds add up to.
    pub const COMMANDS_MAX: usize = 1 << Self::TOKEN_BITS;
    /// Bits of a token that are this queue's.
    pub const TOKEN_BITS: u32 = 16;

    /// A queue whose operations carry tokens `base.0 + n`, n below [`Self::COMMANDS_MAX`].
    #[must_use]
    pub fn new(disk: Disk, pool: BufferPool, base: Token) -> Self {
        Self {
            disk,
            pool,
            base,
            commands: Vec::new(),
            free: Vec::new(),
            zeroing: Zeroing::default(),
            zeroes: None,
        }
    }

    /// The device.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Whether zeroes are surely faster than a write of as many bytes: the filesystem or the device
    /// makes them, and has never refused. A device may take longer over zeroes that stay allocated,
    /// and says whether it can do without only when asked.
    #[must_use]
    pub fn zeroes_are_fast(&self, may_unmap: bool) -> bool {
        match self.disk.kind() {
            DiskKind::File if may_unmap => !self.zeroing.punch_refused,
            DiskKind::File => !self.zeroing.zero_refused,
            DiskKind::BlockDevice => false,
        }
    }

    /// Commands begun and not ended: operations that may still land (R14).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.commands.len() - self.free.len()
    }

    /// Begins a command; its result comes from [`Self::on_completion`], never from here.
    pub fn begin(&mut self, backend: &mut dyn Backend, op: OpId, command: DiskCommand) {
        let file = self.disk.file().clone();
        match command {
            DiskCommand::Read(range) => {
                let len = as_len(range.len().0);
                let buf = self.pool.take(len);
                let read = Op::Read {
                    file,
                    offset: range.offset().0,
                    buf,
                };
                self.submit(backend, op, Stage::Only { len }, read);
            }
            DiskCommand::Write {
                range,
                payload,
                fua,
            } => {
                let len = payload.len();
                debug_assert_eq!(len as u64, range.len().0, "a payload covers its range");
                let payload = aligned(&self.pool, payload);
                let offset = range.offset().0;
                let write = Op::Write {
                    file,
                    offset,
                    payload,
                    durable: fua,
                };
                self.submit(backend, op, Stage::Only { len }, write);
            }
            DiskCommand::Zeroes {
                range,
                may_unmap,
                fua,
            } => {
                let mode = if may_unmap {
                    ZeroMode::Punch
                } else {
                    ZeroMode::Zero
                };
                self.begin_zeroes(backend, op, range, mode, fua);
            }
            DiskCommand::Flush => {
                self.submit(backend, op, Stage::Only { len: 0 }, Op::Sync { file });
            }
        }
    }

    /// Takes the completion of one of its operations; `Some` when that ended a command.
    pub fn on_completion(
        &mut self,
        backend: &mut dyn Backend,
        completion: Completion,
    ) -> Option<(OpId, DiskResult)> {
        let index = u32::try_from(completion.token.0 - self.base.0).ok()?;
        let command = self.commands.get_mut(index as usize)?.take()?;
        self.free.push(index);
        let Command { op, stage } = command;
        let result = completion.count();
        match (stage, result) {
            (Stage::Zero { range, mode, fua }, Err(errno)) if falls_back(errno) => {
                match mode {
                    ZeroMode::Punch => self.zeroing.punch_refused = true,
                    ZeroMode::Zero => self.zeroing.zero_refused = true,
                }
                self.begin_zeroes(backend, op, range, mode, fua);
                None
            }
            (Stage::Zero { fua: true, .. }, Ok(_)) => {
                let sync = Op::Sync {
                    file: self.disk.file().clone(),
                };
                self.submit(backend, op, Stage::Only { len: 0 }, sync);
                None
            }
            (Stage::WriteZeroes { at, end, len, fua }, Ok(count))
                if count as u64 == len && at < end =>
            {
                self.write_zeroes(backend, op, at, end, fua);
                None
            }
            (_, Err(errno)) => Some((op, Err(disk_error(errno)))),
            (stage, Ok(count)) => Some((op, stage.check(count).map(|()| reply(completion.op)))),
        }
    }

    fn begin_zeroes(
        &mut self,
        backend: &mut dyn Backend,
        op: OpId,
        range: BlockRange,
        mode: ZeroMode,
        fua: bool,
    ) {
        let mode = match mode {
            ZeroMode::Punch if !self.zeroing.punch_refused => ZeroMode::Punch,
            _ if !self.zeroing.zero_refused => ZeroMode::Zero,
            _ => {
                let at = range.offset().0;
                return self.write_zeroes(backend, op, at, at + range.len().0, fua);
            }
        };
        let file = self.disk.file().clone();
        let zero = Op::Zero {
            file,
            offset: range.offset().0,
            len: range.len().0,
            mode,
        };
        self.submit(backend, op, Stage::Zero { range, mode, fua }, zero);
    }

    fn write_zeroes(&mut self, backend: &mut dyn Backend, op: OpId, at: u64, end: u64, fua: bool) {
        let len = (end - at).min(ZEROES_LEN_MAX);
        let zeroes = self.zeroes.get_or_insert_with(|| {
            let mut buffer = self.pool.take(as_len(ZEROES_LEN_MAX));
            buffer.as_mut().fill(0);
            buffer.freeze()
        });
        let payload = zeroes.slice(0, as_len(len)).bytes().clone();
        let file = self.disk.file().clone();
        let write = Op::Write {
            file,
            offset: at,
            payload,
            durable: fua,
        };
        self.submit(
            backend,
            op,
            Stage::WriteZeroes {
                at: at + len,
                end,
                len,
                fua,
            },
            write,
        );
    }

    fn submit(&mut self, backend: &mut dyn Backend, op: OpId, stage: Stage, operation: Op) {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.commands.len() < Self::COMMANDS_MAX,
                "{} commands on one disk",
                self.commands.len()
            );
            self.commands.push(None);
            u32::try_from(self.commands.len() - 1).expect("the engine bounds its operations")
        });
        self.commands[index as usize] = Some(Command { op, stage });
        backend.submit(Token(self.base.0 + u64::from(index)), operation);
    }
}

impl Stage {
    fn check(self, count: usize) -> Result<(), DiskError> {
        let complete = match self {
            Self::Only { len } => count == len,
            Self::WriteZeroes { len, .. } => count as u64 == len,
            Self::Zero { .. } => true,
        };
        complete.then_some(()).ok_or(DiskError::Short)
    }
}

fn reply(op: Op) -> DiskReply {
    match op {
        Op::Read { buf, .. } => DiskReply::Data(buf.freeze()),
        _ => DiskReply::Done,
    }
}

/// Refusals of a way to make zeroes that say nothing about the next way.
fn falls_back(errno: nix::errno::Errno) -> bool {
    use nix::errno::Errno;
    matches!(
        errno,
        Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV
    )
}

/// The payload in memory that O_DIRECT takes.
pub(super) fn aligned(pool: &BufferPool, payload: Payload) -> Bytes {
    if (payload.as_ptr() as usize).is_multiple_of(BUFFER_ALIGN) {
        payload.bytes().clone()
    } else {
        pool.copy_of(&payload).bytes().clone()
    }
}

pub(super) fn as_len(len: u64) -> usize {
    usize::try_from(len).expect("twinblk runs on 64-bit machines only")
}
