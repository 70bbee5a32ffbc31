//! Opening what `create-md` needs, locked, and looking at it without changing it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{Whence, lseek};
use replicator::admin::{ErrorId, ErrorReport};
use replicator::meta::layout::SUPERBLOCK_OFFSETS;
use replicator::meta::superblock::ChooseError;
use replicator::meta::{PAGE_LEN, Superblock, probe as probe_superblocks};
use replicator::types::ByteLen;

use super::decide::{Content, DiskFacts, MetaFacts, is_device};

/// Bytes looked at at once.
const CHUNK_LEN: usize = 1 << 20;

/// A locked data device.
pub(super) struct Disk {
    /// Held until the metadata is written: nobody attaches the disk meanwhile.
    _lock: Flock<File>,
    facts: DiskFacts,
}

impl Disk {
    /// Opens and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, ErrorReport> {
        let lock = open_locked(path, false)?.ok_or_else(|| missing(path))?;
        let facts = disk_facts(&lock).map_err(|error| failed(path, &error))?;
        Ok(Self { _lock: lock, facts })
    }

    pub(super) fn facts(&self) -> DiskFacts {
        self.facts
    }
}

fn disk_facts(mut file: &File) -> io::Result<DiskFacts> {
    let len = ByteLen(file.seek(SeekFrom::End(0))?);
    Ok(DiskFacts {
        len,
        zero: proves_zero(file, len)?,
    })
}

/// Only a file that is one hole proves that it reads as zeroes without being read.
fn proves_zero(file: &File, len: ByteLen) -> io::Result<bool> {
    Ok(file.metadata()?.is_file() && next_data(file, 0, len.0)?.is_none())
}

/// A metadata area, locked if it exists.
pub(super) enum Meta {
    /// There is none; a file can be made there.
    Missing,
    /// There is one.
    Existing(Flock<File>),
}

impl Meta {
    /// Opens and locks it, if it exists.
    pub(super) fn open(path: &Path) -> Result<Self, ErrorReport> {
        match open_locked(path, true)? {
            Some(lock) => Ok(Self::Existing(lock)),
            // A file in /dev would be gone at the next boot; a volume is what was meant.
            None if is_device(path) => Err(missing(path)),
            None => Ok(Self::Missing),
        }
    }

    /// What it holds: of a file all of it, of a device the first `needed` bytes, since what lies
    /// behind will not be touched and may be large.
    pub(super) fn facts(&self, needed: ByteLen) -> Result<MetaFacts, ErrorReport> {
        match self {
            Self::Missing => Ok(MetaFacts::Missing),
            Self::Existing(lock) => meta_facts(lock, needed).map_err(|error| {
                let what = "the metadata area cannot be read";
                ErrorReport::new(ErrorId::DeviceFailed, what, error.to_string())
            }),
        }
    }
}

fn meta_facts(mut file: &File, needed: ByteLen) -> io::Result<MetaFacts> {
    let len = ByteLen(file.seek(SeekFrom::End(0))?);
    let looked_at = if file.metadata()?.is_file() {
        len
    } else {
        len.min(needed)
    };
    let content = match superblock(file, len)? {
        Some(Ok(found)) => Content::Ours {
            resource: found.resource,
            volume: found.volume,
            node: found.node,
        },
        Some(Err(ChooseError::Damaged | ChooseError::TooNew { .. })) => Content::OursUnreadable,
        _ => match first_byte(file, looked_at)? {
            None => Content::Zeroes,
            Some(offset) => Content::Foreign { offset },
        },
    };
    Ok(MetaFacts::Existing { len, content })
}

/// What the two superblock places hold; `None` if the area ends before them.
fn superblock(file: &File, len: ByteLen) -> io::Result<Option<Result<Superblock, ChooseError>>> {
    let mut pages = [[0; PAGE_LEN]; 2];
    for (page, offset) in pages.iter_mut().zip(SUPERBLOCK_OFFSETS) {
        let end = offset.0 + u64::try_from(PAGE_LEN).unwrap_or(u64::MAX);
        if end > len.0 {
            return Ok(None);
        }
        file.read_exact_at(page, offset.0)?;
    }
    Ok(Some(probe_superblocks(&pages[0], &pages[1])))
}

/// Place of the first byte that is not zero. Holes are skipped, not read.
fn first_byte(file: &File, len: ByteLen) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; CHUNK_LEN];
    let mut from = 0;
    while let Some(at) = next_data(file, from, len.0)? {
        let rest = usize::try_from(len.0 - at)
            .unwrap_or(CHUNK_LEN)
            .min(CHUNK_LEN);
        let read = file.read_at(&mut chunk[..rest], at)?;
        if read == 0 {
            // Somebody without a lock made it shorter.
            return Ok(None);
        }
        if let Some(place) = chunk[..read].iter().position(|byte| *byte != 0) {
            return Ok(Some(at + u64::try_from(place).unwrap_or(0)));
        }
        from = at + u64::try_from(read).unwrap_or(len.0);
    }
    Ok(None)
}

/// The next place at or after `from` that may hold something else than zeroes.
fn next_data(file: &File, from: u64, len: u64) -> io::Result<Option<u64>> {
    if from >= len {
        return Ok(None);
    }
    let Ok(offset) = i64::try_from(from) else {
        return Ok(None);
    };
    match lseek(file, offset, Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).ok().filter(|at| *at < len)),
        Err(Errno::ENXIO) => Ok(None),
        // A device or filesystem without the question: anything may be there.
        Err(Errno::EINVAL) => Ok(Some(from)),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a regular file or block device for this program alone; `None` if there is none.
pub(crate) fn open_locked(path: &Path, write: bool) -> Result<Option<Flock<File>>, ErrorReport> {
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, &error)),
    };
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("{} cannot be used", path.display());
        let why = "it is neither a regular file nor a block device";
        return Err(ErrorReport::new(ErrorId::DeviceUnusable, what, why));
    }
    // On a block device O_EXCL keeps mounts, LVM, md and other users out.
    let flags = if kind.is_block_device() {
        OFlag::O_EXCL
    } else {
        OFlag::empty()
    };
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|error| failed(path, &error))?;
    lock(file, path).map(Some)
}

/// Takes the lock that an attached replica holds.
pub(super) fn lock(file: File, path: &Path) -> Result<Flock<File>, ErrorReport> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| failed(path, &errno.into()))
}

fn missing(path: &Path) -> ErrorReport {
    let what = format!("{} does not exist", path.display());
    ErrorReport::new(
        ErrorId::DeviceUnusable,
        what,
        "it is named in the resource's file",
    )
}

/// A report about a device that could not be opened, locked or read.
pub(crate) fn failed(path: &Path, error: &io::Error) -> ErrorReport {
    let path = path.display();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY | Errno::EWOULDBLOCK) => ErrorReport::new(
            ErrorId::DeviceInUse,
            format!("{path} is in use"),
            "it is attached by a daemon, mounted, or opened by another program",
        ),
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => ErrorReport::new(
            ErrorId::Permission,
            format!("{path} may not be used"),
            error.to_string(),
        ),
        _ => ErrorReport::new(
            ErrorId::DeviceFailed,
            format!("{path} cannot be used"),
            error.to_string(),
        ),
    }
}
