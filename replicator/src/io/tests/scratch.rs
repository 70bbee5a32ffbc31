//! Files, loop devices and sockets to try things on.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes away with its value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Where tests usually are: a disk.
    pub(crate) fn on_disk() -> Self {
        Self::under(&std::env::temp_dir())
    }

    /// In tmpfs, where there is one.
    pub(crate) fn in_memory() -> Self {
        Self::under(Path::new("/dev/shm"))
    }

    fn under(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nr = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("twinblk-io-{}-{nr}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A sparse file of `len` bytes.
    pub(crate) fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A loop device, detached with its value.
pub(crate) struct LoopDevice(PathBuf);

impl LoopDevice {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(Command::new("losetup").arg("-d").arg(&self.0).status());
    }
}

/// A loop device over `file`; `None`, with a line saying why, where that is not possible.
pub(crate) fn loop_device(file: &Path) -> Option<LoopDevice> {
    let output = Command::new("losetup")
        .args(["--find", "--show", "--direct-io=on"])
        .arg(file)
        .output();
    match output {
        Ok(output) if output.status.success() => Some(LoopDevice(
            String::from_utf8(output.stdout).unwrap().trim().into(),
        )),
        Ok(output) => {
            eprintln!(
                "skipped: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            None
        }
        Err(error) => {
            eprintln!("skipped: losetup: {error}");
            None
        }
    }
}

/// A mounted filesystem whose writes can be made to hang; goes away with its value.
pub(crate) struct Hanging(PathBuf);

impl Hanging {
    /// `None`, with a line saying why, where that is not possible.
    pub(crate) fn mount(scratch: &Scratch) -> Option<Self> {
        let image = scratch.file("hanging.img", 32 << 20);
        let at = scratch.path("hanging");
        std::fs::create_dir_all(&at).unwrap();
        let ran = |program: &str, args: &[&OsStr]| {
            let output = Command::new(program).args(args).output();
            output.is_ok_and(|it| it.status.success())
        };
        let mounted = ran("mkfs.ext4", &["-q".as_ref(), image.as_ref()])
            && ran(
                "mount",
                &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()],
            );
        if !mounted {
            eprintln!("skipped: no filesystem can be mounted");
        }
        mounted.then_some(Self(at))
    }

    /// A file of `len` bytes, written out.
    pub(crate) fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, vec![0; len]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        path
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        let flag = if frozen { "--freeze" } else { "--unfreeze" };
        let status = Command::new("fsfreeze").arg(flag).arg(&self.0).status();
        assert!(status.is_ok_and(|it| it.success()));
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let unfreeze = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(&self.0)
            .output();
        drop(unfreeze);
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}
