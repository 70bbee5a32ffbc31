//! The engine's disk commands as operations on the data devices: one for each volume, laid end to end
//! ([`VolumeRow`]). A command that meets several of them is over when its last piece is, and fails when
//! one of them does; most meet one, and cost no more for it.

use bytes::Bytes;

use super::Backend;
use super::buffer::{AlignedBuf, BUFFER_ALIGN, BufferPool};
use super::disk::{Disk, DiskKind, disk_error};
use super::op::{Completion, Op, Token, ZeroMode};
use crate::engine::{DiskCommand, DiskReply};
use crate::types::{BlockRange, DiskError, OpId, Payload, VolumeRow};

/// How a command ended, for `Input::DiskDone`.
pub type DiskResult = Result<DiskReply, DiskError>;

/// Longest single write when zeroes have to be written out: long enough to be fast, short enough
/// not to hold up a guest's write behind it.
const ZEROES_LEN_MAX: u64 = 1 << 20;

/// Commands in flight on the data devices of one replica. The engine bounds their number.
pub struct DiskQueue {
    row: VolumeRow,
    /// In the order of the row.
    devices: Vec<Device>,
    pool: BufferPool,
    base: Token,
    commands: Vec<Option<Command>>,
    free: Vec<u32>,
    /// Commands in several pieces. Few: a flush, and what crosses from one volume into the next.
    split: Vec<Option<Split>>,
    zeroes: Option<Payload>,
    failed: Option<usize>,
    /// Grows with each operation.
    begun: u64,
}

struct Device {
    disk: Disk,
    /// The fastest way to make zeroes that was not refused yet.
    zeroing: Zeroing,
}

#[derive(Clone, Copy)]
struct Command {
    of: Of,
    place: usize,
    stage: Stage,
    begun: u64,
}

/// What an operation ends.
#[derive(Clone, Copy)]
enum Of {
    Whole(OpId),
    /// A piece of the command with that index; a read puts what it read there.
    Piece {
        split: usize,
        at: usize,
    },
}

struct Split {
    op: OpId,
    left: usize,
    result: Result<(), DiskError>,
    failed: Option<usize>,
    read: Option<AlignedBuf>,
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

    /// A queue on these devices, one for each volume of the row, whose operations carry tokens
    /// `base.0 + n`, n below [`Self::COMMANDS_MAX`].
    ///
    /// # Panics
    /// If there are not as many devices as volumes.
    #[must_use]
    pub fn new(row: VolumeRow, disks: Vec<Disk>, pool: BufferPool, base: Token) -> Self {
        assert_eq!(row.count(), disks.len(), "a device for each volume");
        let device = |disk| Device {
            disk,
            zeroing: Zeroing::default(),
        };
        Self {
            row,
            devices: disks.into_iter().map(device).collect(),
            pool,
            base,
            commands: Vec::new(),
            free: Vec::new(),
            split: Vec::new(),
            zeroes: None,
            failed: None,
            begun: 0,
        }
    }

    /// The devices, in the order of the row.
    pub fn disks(&self) -> impl ExactSizeIterator<Item = &Disk> {
        self.devices.iter().map(|device| &device.disk)
    }

    /// The device of the volume in that place.
    #[must_use]
    pub fn disk(&self, place: usize) -> Option<&Disk> {
        self.devices.get(place).map(|device| &device.disk)
    }

    /// Place of the device that failed the command that ended last with an error, if one did: of one in
    /// several pieces the first that failed.
    #[must_use]
    pub fn failed(&self) -> Option<usize> {
        self.failed
    }

    /// Place of the device that has not answered for longest.
    #[must_use]
    pub fn slowest(&self) -> Option<usize> {
        let commands = self.commands.iter().flatten();
        let oldest = commands.min_by_key(|command| command.begun);
        oldest.map(|command| command.place)
    }

    /// Whether zeroes on the volume in that place are surely faster than a write of as many bytes: the
    /// filesystem or the device makes them, and has never refused. A device may take longer over zeroes
    /// that stay allocated, and says whether it can do without only when asked.
    #[must_use]
    pub fn zeroes_are_fast(&self, place: usize, may_unmap: bool) -> bool {
        let Some(Device { disk, zeroing }) = self.devices.get(place) else {
            return false;
        };
        match disk.kind() {
            DiskKind::File if may_unmap => !zeroing.punch_refused,
            DiskKind::File => !zeroing.zero_refused,
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
        let range = match &command {
            DiskCommand::Read(range)
            | DiskCommand::Write { range, .. }
            | DiskCommand::Zeroes { range, .. } => *range,
            DiskCommand::Flush if self.devices.len() == 1 => {
                return self.begin_piece(backend, Of::Whole(op), 0, command);
            }
            DiskCommand::Flush => {
                let split = self.begin_split(op, self.devices.len(), None);
                for place in 0..self.devices.len() {
                    let of = Of::Piece { split, at: 0 };
                    self.begin_piece(backend, of, place, DiskCommand::Flush);
                }
                return;
            }
        };
        let first = self.row.pieces(range).next();
        match first {
            Some((_, piece)) if piece.count() != range.count() => {
                self.begin_pieces(backend, op, range, &command);
            }
            Some((place, piece)) => {
                self.begin_piece(backend, Of::Whole(op), place, in_device(command, piece));
            }
            // Of no block; the engine makes none such.
            None => self.begin_piece(backend, Of::Whole(op), 0, command),
        }
    }

    /// Begins a command that crosses from one volume into the next.
    fn begin_pieces(
        &mut self,
        backend: &mut dyn Backend,
        op: OpId,
        range: BlockRange,
        command: &DiskCommand,
    ) {
        let pieces: Vec<_> = self.row.pieces(range).collect();
        let read = matches!(command, DiskCommand::Read(_));
        let read = read.then(|| self.pool.take(as_len(range.len().0)));
        let split = self.begin_split(op, pieces.len(), read);
        let mut at = 0;
        for (place, piece) in pieces {
            let end = at + as_len(piece.len().0);
            let command = match command {
                DiskCommand::Write { payload, fua, .. } => DiskCommand::Write {
                    range: piece,
                    payload: payload.slice(at, end),
                    fua: *fua,
                },
                other => in_device(other.clone(), piece),
            };
            self.begin_piece(backend, Of::Piece { split, at }, place, command);
            at = end;
        }
    }

    fn begin_split(&mut self, op: OpId, left: usize, read: Option<AlignedBuf>) -> usize {
        let split = Some(Split {
            op,
            left,
            result: Ok(()),
            failed: None,
            read,
        });
        match self.split.iter().position(Option::is_none) {
            Some(free) => {
                self.split[free] = split;
                free
            }
            None => {
                self.split.push(split);
                self.split.len() - 1
            }
        }
    }

    /// Begins what is to be done on one device, in its own blocks.
    fn begin_piece(
        &mut self,
        backend: &mut dyn Backend,
        of: Of,
        place: usize,
        command: DiskCommand,
    ) {
        let file = self.devices[place].disk.file().clone();
        match command {
            DiskCommand::Read(range) => {
                let len = as_len(range.len().0);
                let buf = self.pool.take(len);
                let read = Op::Read {
                    file,
                    offset: range.offset().0,
                    buf,
                };
                self.submit(backend, of, place, Stage::Only { len }, read);
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
                self.submit(backend, of, place, Stage::Only { len }, write);
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
                self.begin_zeroes(backend, of, place, range, mode, fua);
            }
            DiskCommand::Flush => {
                self.submit(
                    backend,
                    of,
                    place,
                    Stage::Only { len: 0 },
                    Op::Sync { file },
                );
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
        let Command {
            of, place, stage, ..
        } = command;
        let result = completion.count();
        match (stage, result) {
            (Stage::Zero { range, mode, fua }, Err(errno)) if falls_back(errno) => {
                let zeroing = &mut self.devices[place].zeroing;
                match mode {
                    ZeroMode::Punch => zeroing.punch_refused = true,
                    ZeroMode::Zero => zeroing.zero_refused = true,
                }
                self.begin_zeroes(backend, of, place, range, mode, fua);
                None
            }
            (Stage::Zero { fua: true, .. }, Ok(_)) => {
                let sync = Op::Sync {
                    file: self.devices[place].disk.file().clone(),
                };
                self.submit(backend, of, place, Stage::Only { len: 0 }, sync);
                None
            }
            (Stage::WriteZeroes { at, end, len, fua }, Ok(count))
                if count as u64 == len && at < end =>
            {
                self.write_zeroes(backend, of, place, at, end, fua);
                None
            }
            (_, Err(errno)) => self.end_piece(of, place, Err(disk_error(errno))),
            (stage, Ok(count)) => {
                let result = stage.check(count).map(|()| completion.op);
                self.end_piece(of, place, result)
            }
        }
    }

    fn end_piece(
        &mut self,
        of: Of,
        place: usize,
        result: Result<Op, DiskError>,
    ) -> Option<(OpId, DiskResult)> {
        let (index, at) = match of {
            Of::Whole(op) => {
                if result.is_err() {
                    self.failed = Some(place);
                }
                return Some((op, result.map(reply)));
            }
            Of::Piece { split, at } => (split, at),
        };
        let split = self.split.get_mut(index)?.as_mut()?;
        match (result, &mut split.read) {
            (Ok(Op::Read { buf, .. }), Some(read)) => {
                let len = buf.len();
                read.as_mut()[at..at + len].copy_from_slice(buf.as_ref());
            }
            (Ok(_), _) => {}
            // The first that failed says why. The command is over only with its last piece, whatever
            // became of the others (R14).
            (Err(error), _) => {
                split.failed.get_or_insert(place);
                split.result = split.result.and(Err(error));
            }
        }
        split.left -= 1;
        if split.left > 0 {
            return None;
        }
        let Split {
            op,
            result,
            failed,
            read,
            ..
        } = self.split[index].take()?;
        self.failed = failed.or(self.failed);
        let reply = match read {
            Some(read) => DiskReply::Data(read.freeze()),
            None => DiskReply::Done,
        };
        Some((op, result.map(|()| reply)))
    }

    fn begin_zeroes(
        &mut self,
        backend: &mut dyn Backend,
        of: Of,
        place: usize,
        range: BlockRange,
        mode: ZeroMode,
        fua: bool,
    ) {
        let Device { disk, zeroing } = &self.devices[place];
        let mode = match mode {
            ZeroMode::Punch if !zeroing.punch_refused => ZeroMode::Punch,
            _ if !zeroing.zero_refused => ZeroMode::Zero,
            _ => {
                let at = range.offset().0;
                return self.write_zeroes(backend, of, place, at, at + range.len().0, fua);
            }
        };
        let zero = Op::Zero {
            file: disk.file().clone(),
            offset: range.offset().0,
            len: range.len().0,
            mode,
        };
        self.submit(backend, of, place, Stage::Zero { range, mode, fua }, zero);
    }

    fn write_zeroes(
        &mut self,
        backend: &mut dyn Backend,
        of: Of,
        place: usize,
        at: u64,
        end: u64,
        fua: bool,
    ) {
        let len = (end - at).min(ZEROES_LEN_MAX);
        let zeroes = self.zeroes.get_or_insert_with(|| {
            let mut buffer = self.pool.take(as_len(ZEROES_LEN_MAX));
            buffer.as_mut().fill(0);
            buffer.freeze()
        });
        let payload = zeroes.slice(0, as_len(len)).bytes().clone();
        let file = self.devices[place].disk.file().clone();
        let write = Op::Write {
            file,
            offset: at,
            payload,
            durable: fua,
        };
        let stage = Stage::WriteZeroes {
            at: at + len,
            end,
            len,
            fua,
        };
        self.submit(backend, of, place, stage, write);
    }

    fn submit(
        &mut self,
        backend: &mut dyn Backend,
        of: Of,
        place: usize,
        stage: Stage,
        operation: Op,
    ) {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.commands.len() < Self::COMMANDS_MAX,
                "{} commands on one replica",
                self.commands.len()
            );
            self.commands.push(None);
            u32::try_from(self.commands.len() - 1).expect("the engine bounds its operations")
        });
        self.begun += 1;
        self.commands[index as usize] = Some(Command {
            of,
            place,
            stage,
            begun: self.begun,
        });
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

/// The command with its range counted from the start of the one device it meets.
fn in_device(command: DiskCommand, range: BlockRange) -> DiskCommand {
    match command {
        DiskCommand::Read(_) => DiskCommand::Read(range),
        DiskCommand::Write { payload, fua, .. } => DiskCommand::Write {
            range,
            payload,
            fua,
        },
        DiskCommand::Zeroes { may_unmap, fua, .. } => DiskCommand::Zeroes {
            range,
            may_unmap,
            fua,
        },
        DiskCommand::Flush => DiskCommand::Flush,
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
