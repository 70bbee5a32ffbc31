//! A metadata area, opened for reading only: whatever is done here, nothing of it changes.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use replicator::admin::{ErrorId, ErrorReport};
use replicator::meta::{Inspection, Inspector};
use replicator::types::ByteLen;

use crate::create_md::{failed, is_device};

/// How often a damaged area that is in use is looked at again: a page caught half written is whole
/// at the next look.
const LOOKS_MAX: u32 = 3;

/// What one look at an area gave.
pub(super) struct Seen {
    pub(super) inspection: Inspection,
    /// Somebody held its lock meanwhile, so parts may be of different moments.
    pub(super) in_use: bool,
}

/// An open area.
pub(super) struct Area {
    file: File,
    path: PathBuf,
}

impl Area {
    /// Opens it; nobody is kept from using it, and nobody's use keeps us out.
    pub(super) fn open(path: &Path) -> Result<Self, ErrorReport> {
        let refuse = |error: &io::Error| match error.kind() {
            io::ErrorKind::NotFound => missing(path),
            _ => failed(path, error),
        };
        check_kind(path, &std::fs::metadata(path).map_err(|e| refuse(&e))?)?;
        // What has become a pipe since it was looked at must not be waited for.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|error| refuse(&error))?;
        check_kind(path, &file.metadata().map_err(|e| refuse(&e))?)?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Looks at all of it.
    pub(super) fn look(&self) -> Result<Seen, ErrorReport> {
        let mut looks = 1;
        loop {
            let before = self.is_locked();
            let inspection = self.inspect().map_err(|error| self.unreadable(&error))?;
            let in_use = before || self.is_locked();
            if !in_use || !inspection.is_damaged() || looks == LOOKS_MAX {
                return Ok(Seen { inspection, in_use });
            }
            looks += 1;
        }
    }

    fn inspect(&self) -> io::Result<Inspection> {
        inspect(&self.file)
    }

    /// Whether an attached replica, or a program that changes it, holds its lock. The shared lock
    /// is let go at once; who wants the area for himself in that moment tries again.
    fn is_locked(&self) -> bool {
        let Ok(again) = self.file.try_clone() else {
            return false;
        };
        match Flock::lock(again, FlockArg::LockSharedNonblock) {
            Ok(lock) => {
                drop(lock);
                false
            }
            Err((_, errno)) => errno == Errno::EWOULDBLOCK,
        }
    }

    fn unreadable(&self, error: &io::Error) -> ErrorReport {
        let what = format!("{} cannot be read", self.path.display());
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it became shorter meanwhile".to_owned(),
            _ => error.to_string(),
        };
        ErrorReport::new(ErrorId::DeviceFailed, what, why)
    }
}

/// Looks at all of it, once.
pub(super) fn inspect(mut file: &File) -> io::Result<Inspection> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut inspector = Inspector::new(ByteLen(len));
    let mut buffer = Vec::new();
    while let Some(range) = inspector.next_read() {
        buffer.resize(usize::try_from(range.len().0).unwrap_or(0), 0);
        file.read_exact_at(&mut buffer, range.offset().0)?;
        inspector.feed(&buffer);
    }
    Ok(inspector.finish())
}

fn check_kind(path: &Path, metadata: &std::fs::Metadata) -> Result<(), ErrorReport> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = format!("{} cannot hold metadata", path.display());
    let why = "it is neither a regular file nor a block device";
    Err(ErrorReport::new(ErrorId::DeviceUnusable, what, why))
}

/// Where a device should be nothing was made; where a file may be there is none yet.
pub(super) fn missing(path: &Path) -> ErrorReport {
    let what = format!("{} does not exist", path.display());
    if is_device(path) {
        let why = "it is named as `meta` in the resource's file";
        ErrorReport::new(ErrorId::DeviceUnusable, what, why)
    } else {
        ErrorReport::new(ErrorId::NoMetadata, what, "no metadata was made there")
    }
}

/// Random id of this boot; `None` if the kernel does not say.
pub(super) fn boot_id() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.trim().split('-').collect();
    u128::from_str_radix(&digits, 16).ok()
}
