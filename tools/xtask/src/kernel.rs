//! The guest kernel for the QEMU tests: Debian's cloud kernel, unpacked under the target
//! directory. It is not installed: that would change how a developer's own machine boots.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// The package whose dependency is the kernel image of the release's current version.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Where the unpacked package is: `boot/vmlinuz-*` and `lib/modules` under it.
pub(crate) fn dir() -> PathBuf {
    run::target_dir().join("tools").join("guest-kernel")
}

/// Downloads and unpacks the kernel unless it is there; false when that is not possible here.
pub(crate) fn fetch() -> Result<bool, String> {
    let dir = dir();
    if has_kernel(&dir) {
        println!("guest kernel: there");
        return Ok(true);
    }
    if !run::has_program("apt-get") || !run::has_program("dpkg-deb") {
        println!("no apt-get and dpkg-deb here: the guest test is skipped");
        return Ok(false);
    }
    let Some(package) = image_package() else {
        println!("apt knows no {META_PACKAGE}: the guest test is skipped");
        return Ok(false);
    };
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    println!("guest kernel: {package}");
    let mut download = Command::new("apt-get");
    download.current_dir(&dir).args([
        "-q=2",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        &package,
    ]);
    if !run::passes(&mut download)? {
        return Ok(false);
    }
    for archive in archives(&dir) {
        let mut unpack = Command::new("dpkg-deb");
        unpack
            .current_dir(&dir)
            .arg("--extract")
            .arg(&archive)
            .arg(".");
        if !run::passes(&mut unpack)? {
            return Ok(false);
        }
        std::fs::remove_file(&archive)
            .map_err(|error| format!("{}: {error}", archive.display()))?;
    }
    Ok(has_kernel(&dir))
}

fn image_package() -> Option<String> {
    let said = run::output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    said.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends:"))
        .map(|name| name.trim().to_owned())
        .find(|name| name.starts_with("linux-image-"))
}

fn has_kernel(dir: &Path) -> bool {
    names(&dir.join("boot")).iter().any(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    })
}

fn archives(dir: &Path) -> Vec<PathBuf> {
    names(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect()
}

fn names(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}
