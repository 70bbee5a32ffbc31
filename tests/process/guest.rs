//! A QEMU guest (software emulation is enough) on the NBD socket, across a daemon's death.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::cluster::{A, B, Cluster, Setup};
use crate::tools::{have, run, skip};

/// Booting under emulation and all writes, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What the guest needs beside a bare kernel, in the order of loading. Parts that a kernel has
/// built in are not there as files.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "crc16",
    "crc32c_generic",
    "libcrc32c",
    "mbcache",
    "jbd2",
    "ext4",
];

/// The guest: a file system on the volume, files with checksums, everything read again at the end.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module; done < /modules/order
mke2fs /dev/vda > /dev/null 2>&1 || echo GUEST FAILED mke2fs
mkdir /mnt; mount -t ext2 /dev/vda /mnt || echo GUEST FAILED mount
cd /mnt
for i in $(seq 1 80); do
  dd if=/dev/urandom of=file$i bs=64k count=4 2> /dev/null || echo GUEST FAILED write
  md5sum file$i >> /sums || echo GUEST FAILED sum
  sync
  echo GUEST WROTE $i
done
cd /; umount /mnt; mount -t ext2 /dev/vda /mnt || echo GUEST FAILED remount
cd /mnt; md5sum -c -s /sums && echo GUEST PASSED || echo GUEST FAILED compare
cd /; umount /mnt; sync; poweroff -f
"#;

/// The guest writes, its daemon is killed with SIGKILL and started again, the guest waits and goes
/// on: no error inside, every file as written.
#[test]
fn a_guest_survives_a_daemon_restart() {
    let Some(kernel) = kernel() else { return };
    let mut cluster = Cluster::serving(&Setup::default());
    // Alone with the arbitrator: the peer would take over, and this guest knows one socket.
    cluster.kill(B);
    cluster.wait_status(A, "it serves alone", |status| {
        status["in_sync"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 1)
    });
    let initrd = cluster.dir.join("initrd");
    fs::write(&initrd, initramfs(&kernel)).unwrap();
    let mut guest = Guest::boot(&kernel.image, &initrd, &cluster.nbd_socket(A));
    guest.wait_for("GUEST WROTE 5");
    cluster.kill(A);
    cluster.start(A);
    guest.wait_for("GUEST PASSED");
    drop(guest);
    cluster.start(B);
    cluster.wait_both_up_to_date(A);
}

struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

/// The kernel that `cargo xtask test` unpacks; without it the test cannot run.
fn kernel() -> Option<Kernel> {
    if !have(&["qemu-system-x86_64", "busybox"]) {
        return None;
    }
    let dir = std::env::var_os("TWINBLK_TEST_GUEST_KERNEL").map_or_else(
        || {
            Path::new(env!("CARGO_BIN_EXE_twinblkd"))
                .ancestors()
                .nth(2)
                .unwrap()
                .join("tools/guest-kernel")
        },
        PathBuf::from,
    );
    let image = fs::read_dir(dir.join("boot")).ok().and_then(|entries| {
        let mut paths = entries.flatten().map(|entry| entry.path());
        paths.find(|path| path.to_string_lossy().contains("/vmlinuz-"))
    });
    let Some(image) = image else {
        skip("needs a guest kernel: cargo xtask packages");
        return None;
    };
    let mut files = Vec::new();
    walk(&dir.join("lib/modules"), &mut files);
    walk(&dir.join("usr/lib/modules"), &mut files);
    let modules = MODULES
        .iter()
        .filter_map(|name| {
            let is_it = |path: &&PathBuf| {
                path.file_name().is_some_and(|file| {
                    let file = file.to_string_lossy();
                    file.split('.').next() == Some(*name) && file.contains(".ko")
                })
            };
            files.iter().find(is_it).cloned()
        })
        .collect();
    Some(Kernel { image, modules })
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// An initramfs of busybox, the modules and [`INIT`]: a cpio archive in the "newc" format.
fn initramfs(kernel: &Kernel) -> Vec<u8> {
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("busybox"))
        .find(|path| path.is_file())
        .unwrap();
    let mut archive = Vec::new();
    for dir in ["bin", "dev", "proc", "sys", "modules"] {
        cpio_entry(&mut archive, dir, 0o040_755, &[]);
    }
    cpio_entry(
        &mut archive,
        "bin/busybox",
        0o100_755,
        &fs::read(busybox).unwrap(),
    );
    cpio_entry(&mut archive, "init", 0o100_755, INIT.as_bytes());
    let mut order = String::new();
    for (index, module) in kernel.modules.iter().enumerate() {
        let name = format!("{index}.ko");
        cpio_entry(
            &mut archive,
            &format!("modules/{name}"),
            0o100_644,
            &module_bytes(module),
        );
        order += &format!("{name}\n");
    }
    cpio_entry(&mut archive, "modules/order", 0o100_644, order.as_bytes());
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

/// A module's bytes; newer releases ship them compressed.
fn module_bytes(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|end| end == "xz") {
        let output = Command::new("xz")
            .arg("-dc")
            .arg(path)
            .output()
            .expect("xz starts");
        return output.stdout;
    }
    fs::read(path).unwrap()
}

fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let inode = archive.len();
    let fields = [
        inode,
        mode as usize,
        0,
        0,
        1,
        0,
        data.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        write!(archive, "{field:08x}").unwrap();
    }
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

struct Guest {
    qemu: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Guest {
    fn boot(kernel: &Path, initrd: &Path, socket: &Path) -> Self {
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg,thread=multi",
                "-machine",
                "q35",
                "-m",
                "256",
                "-nodefaults",
            ])
            .args([
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
                "-kernel",
            ])
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args([
                "-append",
                "console=ttyS0 panic=-1 quiet tsc=reliable clocksource=tsc",
            ])
            .arg("-blockdev")
            .arg(format!(
                "driver=nbd,node-name=volume,server.type=unix,server.path={},export=vm-web,\
                 reconnect-delay=60,cache.direct=on,discard=unmap",
                socket.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=volume"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU starts");
        let stdout = qemu.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).trim().to_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        Self {
            qemu,
            lines,
            heard: Vec::new(),
        }
    }

    /// Waits for a line on the guest's console; panics when the guest says that it failed.
    fn wait_for(&mut self, wanted: &str) {
        let deadline = crate::tools::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(crate::tools::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("the guest never said {wanted:?}; it said {:#?}", self.heard);
            };
            assert!(
                !line.contains("GUEST FAILED"),
                "{line}; before: {:#?}",
                self.heard
            );
            let found = line.contains(wanted);
            self.heard.push(line);
            if found {
                return;
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

/// The archive is one that busybox, and so the kernel's cousin, reads back.
#[test]
fn the_initramfs_is_a_readable_archive() {
    if !have(&["busybox"]) {
        return;
    }
    let mut archive = Vec::new();
    cpio_entry(&mut archive, "dir", 0o040_755, &[]);
    cpio_entry(&mut archive, "dir/file", 0o100_644, b"seven b");
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[]);
    let path = std::env::temp_dir().join(format!("twinblk-cpio-{}", std::process::id()));
    fs::write(&path, archive).unwrap();
    let listed = run(Command::new("busybox")
        .args(["cpio", "-t", "-F"])
        .arg(&path))
    .ok();
    fs::remove_file(&path).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["dir", "dir/file"]);
}
