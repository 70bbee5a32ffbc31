//! Opening a backing device: a regular file or a block device.
//!
//! Owns what must be true before the first operation: nobody else uses the device, and no operation
//! of an earlier process can still land on it (R14). Both come from one lock on the open file,
//! which operations in flight keep alive even after their process was killed; on block devices
//! `O_EXCL` also keeps mounts and other users out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, ftruncate, lseek};
use thiserror::Error;

use super::buffer::{BUFFER_ALIGN, BufferPool};
use super::op::{FileRoute, IoFile};
use super::{BackendKind, sys};
use crate::types::{BLOCK_LEN, ByteLen, DiskError};

/// Magic of ramfs; nix has no name for it (linux/magic.h).
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, a mount, or operations of an earlier process have it. Worth trying again.
    #[error(
        "{path} is in use: mounted, opened by another program, or still being written to by a process that ended"
    )]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// No such file.
    #[error("{path} does not exist")]
    NotFound {
        /// Which.
        path: PathBuf,
    },
    /// No permission to read and write it.
    #[error("no permission to read and write {path}")]
    Permission {
        /// Which.
        path: PathBuf,
    },
    /// A directory, socket, pipe or character device.
    #[error("{path} is neither a regular file nor a block device")]
    NotADisk {
        /// Which.
        path: PathBuf,
    },
    /// The filesystem has no direct I/O, so a failed write could look like a good one later.
    #[error("the filesystem of {path} has no direct I/O (O_DIRECT)")]
    NoDirectIo {
        /// Which.
        path: PathBuf,
    },
    /// Its sectors are larger than a block.
    #[error(
        "{path} has sectors of {sector_len} bytes; at most {} are supported",
        BLOCK_LEN
    )]
    SectorTooLarge {
        /// Which.
        path: PathBuf,
        /// Its logical sector size in bytes.
        sector_len: u32,
    },
    /// It ends before the volume that is to be on it does.
    #[error("{path} has {} bytes, and its volume {}", len.0, needed.0)]
    TooShort {
        /// Which.
        path: PathBuf,
        /// Its length.
        len: ByteLen,
        /// Length of the volume.
        needed: ByteLen,
    },
    /// The kernel has not said anything yet.
    #[error("{path} does not answer: opening it takes too long")]
    NoAnswer {
        /// Which.
        path: PathBuf,
    },
    /// Anything else the kernel said.
    #[error("{path}: {}", errno.desc())]
    Os {
        /// Which.
        path: PathBuf,
        /// What.
        errno: Errno,
    },
}

impl OpenError {
    /// Whether trying again later may help without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }

    fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR) => Self::NotFound { path },
            Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => Self::Permission { path },
            Some(Errno::EBUSY | Errno::EWOULDBLOCK) => Self::InUse { path },
            Some(Errno::EINVAL) => Self::NoDirectIo { path },
            errno => Self::Os {
                path,
                errno: errno.unwrap_or(Errno::EIO),
            },
        }
    }
}

/// What lies below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// An open, exclusively held backing device.
#[derive(Clone, Debug)]
pub struct Disk {
    file: IoFile,
    kind: DiskKind,
    len: ByteLen,
}

impl Disk {
    /// Opens and locks `path` for reading and writing, past the page cache.
    ///
    /// Does not wait: while the device is in use it fails with [`OpenError::InUse`], and the caller
    /// tries again.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let error = |error: &io::Error| OpenError::from_io(path, error);
        let kind = kind_of(&std::fs::metadata(path).map_err(|e| error(&e))?).ok_or_else(|| {
            OpenError::NotADisk {
                path: path.to_owned(),
            }
        })?;
        let (file, in_memory) = open_direct(path, kind).map_err(|e| error(&e))?;
        // The path may have been replaced since it was looked at.
        if kind_of(&file.metadata().map_err(|e| error(&e))?) != Some(kind) {
            return Err(OpenError::InUse {
                path: path.to_owned(),
            });
        }
        sys::try_lock_exclusive(&file).map_err(|errno| error(&errno.into()))?;
        let len = match kind {
            DiskKind::File => file.metadata().map_err(|e| error(&e))?.size(),
            DiskKind::BlockDevice => {
                check_sectors(path, &file)?;
                sys::block_device_len(&file).map_err(|errno| error(&errno.into()))?
            }
        };
        let route = if in_memory {
            FileRoute::Inline
        } else {
            probe_route(&file)
        };
        Ok(Self {
            file: IoFile::new(OwnedFd::from(file), route),
            kind,
            len: ByteLen(len),
        })
    }

    /// Length in bytes when it was opened.
    #[must_use]
    pub fn len(&self) -> ByteLen {
        self.len
    }

    /// Its length in bytes now: it may have been extended.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn measure(&self) -> Result<ByteLen, Errno> {
        let len = match self.kind {
            DiskKind::BlockDevice => sys::block_device_len(&self.file)?,
            DiskKind::File => {
                let len = fstat(&self.file)?.st_size;
                u64::try_from(len).map_err(|_| Errno::EOVERFLOW)?
            }
        };
        Ok(ByteLen(len))
    }

    /// Makes a regular file at least so long, with space for all of it: a write inside cannot meet a
    /// full filesystem then. A device stays as it is, and so does the length of a file for which there
    /// is no space.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn lengthen(&self, len: ByteLen) -> Result<(), Errno> {
        if self.kind == DiskKind::BlockDevice {
            return Ok(());
        }
        let before = self.measure()?;
        let new = i64::try_from(len.0).map_err(|_| Errno::EFBIG)?;
        // Asked first: filesystems take all they have before they say that it was not enough.
        if !self.has_space_for(len)? {
            return Err(Errno::ENOSPC);
        }
        let reserved = fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, new);
        match reserved {
            // It cannot say; whoever made the file so long answers for it.
            Err(Errno::EOPNOTSUPP) if before >= len => return Ok(()),
            Err(errno) => {
                // Gives back what was found space for beyond its end.
                if let Ok(old) = i64::try_from(before.0) {
                    ftruncate(&self.file, old).ok();
                }
                return Err(errno);
            }
            Ok(()) => {}
        }
        match before < len {
            true => ftruncate(&self.file, new),
            false => Ok(()),
        }
    }

    fn has_space_for(&self, len: ByteLen) -> Result<bool, Errno> {
        /// What `st_blocks` counts.
        const UNIT: u64 = 512;
        let filesystem = fstatfs(&self.file)?;
        let unit = u64::try_from(filesystem.block_size()).unwrap_or(0);
        let free = filesystem.blocks_available().saturating_mul(unit);
        let own = u64::try_from(fstat(&self.file)?.st_blocks).unwrap_or(0) * UNIT;
        Ok(len.0.saturating_sub(own) <= free)
    }

    /// Whether it has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len.0 == 0
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> DiskKind {
        self.kind
    }

    /// The handle for operations.
    #[must_use]
    pub fn file(&self) -> &IoFile {
        &self.file
    }

    /// What carries its operations out, given the loop's backend: what `status` shows.
    #[must_use]
    pub fn backend(&self, of_loop: BackendKind) -> BackendKind {
        of_loop.for_route(self.file.route)
    }
}

fn kind_of(metadata: &std::fs::Metadata) -> Option<DiskKind> {
    let kind = metadata.file_type();
    if kind.is_file() {
        Some(DiskKind::File)
    } else {
        kind.is_block_device().then_some(DiskKind::BlockDevice)
    }
}

/// Opens past the page cache; the flag says that the file lives in memory anyway.
fn open_direct(path: &Path, kind: DiskKind) -> io::Result<(File, bool)> {
    let exclusive = if kind == DiskKind::BlockDevice {
        libc::O_EXCL
    } else {
        0
    };
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
    };
    match open(exclusive | libc::O_DIRECT) {
        Ok(file) => {
            // A device's node lies in devtmpfs, which calls itself tmpfs; the device does not.
            let in_memory = kind == DiskKind::File && is_in_memory(&file);
            Ok((file, in_memory))
        }
        // Before Linux 6.6 tmpfs has no O_DIRECT; its page cache is the disk, there is nothing that
        // could be bypassed.
        Err(error) if kind == DiskKind::File && error.raw_os_error() == Some(libc::EINVAL) => {
            match open(exclusive) {
                Ok(file) if is_in_memory(&file) => Ok((file, true)),
                Ok(_) | Err(_) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|fs| {
        let magic = fs.filesystem_type();
        magic == TMPFS_MAGIC || magic.0 == RAMFS_MAGIC
    })
}

fn check_sectors(path: &Path, file: &File) -> Result<(), OpenError> {
    let sector_len = sys::block_device_sector_len(file).map_err(|errno| OpenError::Os {
        path: path.to_owned(),
        errno,
    })?;
    if u64::from(sector_len) > BLOCK_LEN {
        return Err(OpenError::SectorTooLarge {
            path: path.to_owned(),
            sector_len,
        });
    }
    Ok(())
}

/// Whether a ring can work on the file without a kernel thread for each operation: whether the file
/// knows `RWF_NOWAIT`. Not knowing is the only answer that says no; a device that would wait, or
/// fails, knows.
fn probe_route(file: &File) -> FileRoute {
    let mut buffer = BufferPool::new().take(BUFFER_ALIGN);
    match sys::read_nowait(file, buffer.as_mut()) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => FileRoute::Threads,
        Ok(_) | Err(_) => FileRoute::Ring,
    }
}

/// Whether every byte of `path` is known to read as zero without reading it: a regular file that is
/// one hole. A block device proves nothing (it would have to be read whole, or discarded, and
/// nothing is discarded without being told to).
///
/// # Errors
/// When it cannot be opened or asked.
pub fn proves_zero(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    match lseek(&file, 0, Whence::SeekData) {
        // ENXIO: no data from there to the end.
        Err(Errno::ENXIO) => Ok(true),
        Ok(_) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What the engine is told about an errno.
#[must_use]
pub fn disk_error(errno: Errno) -> DiskError {
    match errno {
        // A timeout of the kernel's is over like any other error; the engine's own means that it
        // is not.
        Errno::EIO | Errno::EREMOTEIO | Errno::EBADMSG | Errno::EILSEQ | Errno::ETIMEDOUT => {
            DiskError::Io
        }
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => DiskError::NoSpace,
        Errno::ENODEV | Errno::ENXIO | Errno::ENOTCONN | Errno::ESTALE => DiskError::Gone,
        Errno::EROFS | Errno::EPERM | Errno::EACCES | Errno::EBADF => DiskError::ReadOnly,
        other => DiskError::Other(other as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::scratch::{Scratch, loop_device};
    use super::*;

    #[test]
    fn a_device_in_use_is_refused_until_its_last_operation_lets_go() {
        let scratch = Scratch::on_disk();
        let path = scratch.file("a.img", 1 << 20);
        let disk = Disk::open(&path).unwrap();
        assert_eq!(disk.len(), ByteLen(1 << 20));
        let in_flight = disk.file().clone();
        drop(disk);
        assert!(Disk::open(&path).unwrap_err().is_transient());
        drop(in_flight);
        Disk::open(&path).unwrap();
    }

    #[test]
    fn a_file_is_measured_again_and_lengthened_but_never_shortened() {
        let scratch = Scratch::on_disk();
        let path = scratch.file("a.img", 8192);
        let disk = Disk::open(&path).unwrap();
        scratch.file("a.img", 16_384);
        assert_eq!(disk.measure(), Ok(ByteLen(16_384)));
        disk.lengthen(ByteLen(4096)).unwrap();
        assert_eq!(disk.measure(), Ok(ByteLen(16_384)));
        disk.lengthen(ByteLen(1 << 20)).unwrap();
        assert_eq!(disk.measure(), Ok(ByteLen(1 << 20)));
    }

    #[test]
    fn a_lengthened_file_has_its_space_and_one_without_stays_as_it_is() {
        let scratch = Scratch::on_disk();
        // All of it a hole.
        let path = scratch.file("a.img", 1 << 20);
        let disk = Disk::open(&path).unwrap();
        let space = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(space() < 1 << 20);
        disk.lengthen(ByteLen(1 << 20)).unwrap();
        assert!(space() >= 1 << 20, "as long as before, and no hole");
        disk.lengthen(ByteLen(2 << 20)).unwrap();
        assert!(space() >= 2 << 20);
        // No filesystem has that much: sparse it would fit.
        disk.lengthen(ByteLen(8 << 40)).unwrap_err();
        assert_eq!(disk.measure(), Ok(ByteLen(2 << 20)));
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_name() {
        let scratch = Scratch::on_disk();
        let missing = Disk::open(&scratch.path("missing")).unwrap_err();
        assert!(matches!(missing, OpenError::NotFound { .. }), "{missing}");
        assert!(missing.to_string().contains("missing"));
        let directory = Disk::open(Path::new("/")).unwrap_err();
        assert!(
            matches!(directory, OpenError::NotADisk { .. }),
            "{directory}"
        );
        let null = Disk::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(null, OpenError::NotADisk { .. }), "{null}");
    }

    #[test]
    fn files_in_memory_are_worked_on_at_once_and_files_on_disk_by_the_ring() {
        let memory = Scratch::in_memory();
        let disk = Disk::open(&memory.file("a.img", 8192)).unwrap();
        assert_eq!(disk.backend(BackendKind::IoUring), BackendKind::Portable);
        let on_disk = Scratch::on_disk();
        let disk = Disk::open(&on_disk.file("a.img", 8192)).unwrap();
        if disk.file().route == FileRoute::Ring {
            assert_eq!(disk.backend(BackendKind::IoUring), BackendKind::IoUring);
        }
        assert_eq!(disk.backend(BackendKind::Portable), BackendKind::Portable);
    }

    #[test]
    fn only_a_whole_hole_proves_zero() {
        let scratch = Scratch::on_disk();
        let path = scratch.file("a.img", 1 << 20);
        assert!(proves_zero(&path).unwrap());
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(
            !proves_zero(&path).unwrap(),
            "zeroes that were written are data"
        );
        assert!(!proves_zero(Path::new("/dev/null")).unwrap());
    }

    #[test]
    fn a_block_device_is_no_file_in_memory_although_its_node_is() {
        let scratch = Scratch::on_disk();
        let Some(device) = loop_device(&scratch.file("a.img", 1 << 20)) else {
            return;
        };
        let disk = Disk::open(device.path()).unwrap();
        assert_ne!(disk.file().route, FileRoute::Inline);
    }

    #[test]
    fn a_block_device_is_held_exclusively() {
        let scratch = Scratch::on_disk();
        let Some(device) = loop_device(&scratch.file("a.img", 1 << 20)) else {
            return;
        };
        let disk = Disk::open(device.path()).unwrap();
        assert_eq!(
            (disk.kind(), disk.len()),
            (DiskKind::BlockDevice, ByteLen(1 << 20))
        );
        assert!(Disk::open(device.path()).unwrap_err().is_transient());
    }
}
