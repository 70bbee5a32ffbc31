//! What a replica lies on: block devices of either sector size, and a filesystem that is full.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{A, ARBITRATOR, B, Cluster, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{am_root, have, program};

const LIMIT: Duration = Duration::from_secs(5);

/// Loop devices over files, detached when dropped. Declared before the cluster that uses them, so
/// that they go after it.
#[derive(Default)]
struct Loops(Vec<String>);

impl Loops {
    fn attach(&mut self, file: &Path, sector: &str) -> PathBuf {
        let file = file.to_str().unwrap();
        let flags = ["--find", "--show", "--sector-size", sector, file];
        let device = program("losetup", &flags).ok().trim().to_owned();
        self.0.push(device.clone());
        device.into()
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            program("losetup", &["--detach", device]).ok();
        }
    }
}

/// As an LV is configured: by a link in /dev that names a block device.
#[test]
fn block_devices_of_either_sector_size_fail_over_with_any_alignment() {
    if !(am_root() && have(&["losetup"])) {
        return;
    }
    for sector in ["512", "4096"] {
        let mut loops = Loops::default();
        let mut cluster = Cluster::new(&Setup::default());
        for node in [A, B] {
            let backing = cluster.disk(node).with_extension("backing");
            fs::rename(cluster.disk(node), &backing).unwrap();
            symlink(loops.attach(&backing, sector), cluster.disk(node)).unwrap();
        }
        cluster.bring_up();
        let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
        nbd.write(1, &[1; 511]).unwrap();
        nbd.write(4095, &[2; 2]).unwrap();
        nbd.write(1 << 20, &[3; 1 << 16]).unwrap();
        drop(nbd);
        cluster.kill(A);
        cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
        let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
        assert_eq!(nbd.read(0, 2).unwrap(), [0, 1], "{sector}");
        assert_eq!(nbd.read(4094, 4).unwrap(), [0, 2, 2, 0], "{sector}");
        assert_eq!(nbd.read((1 << 20) + 65_535, 2).unwrap(), [3, 0], "{sector}");
        drop(nbd);
        cluster.start(A);
        cluster.wait_both_up_to_date(B);
        cluster.kill(A);
        cluster.kill(B);
        let bytes = [A, B].map(|node| fs::read(cluster.disk(node)).unwrap());
        assert!(
            bytes[0] == bytes[1],
            "both devices hold the same ({sector})"
        );
    }
}

/// A small filesystem in memory, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let at = path.to_str().unwrap();
        program("mount", &["-t", "tmpfs", "-o", "size=4m", "small", at]).ok();
        Self(path)
    }

    fn grow(&self) {
        let at = self.0.to_str().unwrap();
        program("mount", &["-o", "remount,size=64m", at]).ok();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        program("umount", &["--lazy", self.0.to_str().unwrap()]).ok();
    }
}

fn on_small_disk(cluster: &Cluster, node: usize) -> Small {
    let small = Small::mount(cluster.dir.join("small"));
    let image = small.0.join("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    fs::remove_file(cluster.disk(node)).unwrap();
    symlink(image, cluster.disk(node)).unwrap();
    small
}

fn fill(nbd: &mut Nbd, bytes: u64) -> Result<(), crate::nbd::NbdFailure> {
    (0..bytes >> 16).try_for_each(|nr| nbd.write(nr << 16, &[7; 1 << 16]))
}

/// The guest hears what any full disk says; nothing else stops, and nothing has to be repaired.
#[test]
fn a_full_filesystem_under_the_only_replica_fails_writes_until_there_is_room() {
    if !(am_root() && have(&["mount", "umount"])) {
        return;
    }
    let mut cluster = Cluster::new(&Setup {
        disk_len: 32 << 20,
        ..Setup::default()
    });
    let small = on_small_disk(&cluster, A);
    for node in [A, B] {
        cluster.adm(node, &["create-md", RES]).ok();
    }
    cluster.start(A);
    cluster.start(ARBITRATOR);
    cluster.adm(A, &["up", RES]).ok();
    cluster.adm(A, &["primary", RES]).ok();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    fill(&mut nbd, 16 << 20).expect_err("the filesystem has 4 MiB");
    drop(nbd);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 3).unwrap(), [7; 3], "reads go on");
    small.grow();
    fill(&mut nbd, 16 << 20).unwrap();
    drop(nbd);
    cluster.start(B);
    cluster.adm(B, &["up", RES]).ok();
    cluster.wait_both_up_to_date(A);
    drop(cluster);
}

/// Its metadata cannot be written: guests are held until the disk is attached again by hand, and the
/// view then says that something may be missing (docs/decisions/0008).
#[test]
fn the_only_replica_whose_metadata_failed_is_attached_again_in_place() {
    if !(am_root() && have(&["mount", "umount", "losetup"])) {
        return;
    }
    let mut loops = Loops::default();
    let mut cluster = Cluster::new(&Setup {
        disk_len: 256 << 20,
        ..Setup::default()
    });
    // A device over a file in a full filesystem: where the file has a hole it cannot be written.
    let small = Small::mount(cluster.dir.join("small"));
    let backing = small.0.join("meta");
    File::create(&backing).unwrap().set_len(2 << 20).unwrap();
    let meta = cluster.dir.join("kvm-a.md");
    symlink(loops.attach(&backing, "512"), meta).unwrap();
    for node in [A, B] {
        cluster.adm(node, &["create-md", RES]).ok();
    }
    cluster.start(A);
    cluster.start(ARBITRATOR);
    cluster.adm(A, &["up", RES]).ok();
    cluster.adm(A, &["primary", RES]).ok();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, Duration::from_secs(1)).unwrap();
    nbd.write(0, &[5; 4096]).unwrap();
    nbd.flush().unwrap();
    let hole = ["--punch-hole", "--offset", "8192", "--length", "16384"];
    let at = [&hole[..], &[backing.to_str().unwrap()]].concat();
    program("fallocate", &at).ok();
    fs::write(small.0.join("filler"), vec![1; 4 << 20]).expect_err("it is full now");
    // Each in an extent of its own: the log comes to the hole.
    for extent in 1..60_u64 {
        if nbd.write(extent << 22, &[5; 4096]).is_err() {
            break;
        }
    }
    drop(nbd);
    let failed = |status: &serde_json::Value| status["volumes"][0]["disk"] == "Failed";
    cluster.wait_status(A, "its metadata failed", failed);
    small.grow();
    cluster.adm(A, &["attach", RES]).ok();
    // What was not flushed may be gone, and the view says so.
    let served = |status: &serde_json::Value| {
        status["role"] == "Primary" && status["view"] == 2 && status["lossy"] == true
    };
    cluster.wait_status(A, "it serves again", served);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 1).unwrap(), [5]);
    nbd.write(0, &[6; 4096]).unwrap();
    drop(nbd);
    cluster.start(B);
    cluster.adm(B, &["up", RES]).ok();
    cluster.wait_both_up_to_date(A);
    drop(cluster);
}

/// With a peer in sync the guest hears nothing: this replica leaves, the peer has everything.
#[test]
fn a_full_filesystem_under_one_of_two_replicas_costs_the_guest_nothing() {
    if !(am_root() && have(&["mount", "umount"])) {
        return;
    }
    let mut cluster = Cluster::new(&Setup {
        disk_len: 32 << 20,
        ..Setup::default()
    });
    let _small = on_small_disk(&cluster, A);
    cluster.bring_up();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    fill(&mut nbd, 16 << 20).unwrap();
    assert_eq!(nbd.read(15 << 20, 3).unwrap(), [7; 3]);
    cluster.wait_status(A, "its replica failed", |status| {
        status["role"] == "Primary" && status["volumes"][0]["disk"] == "Failed"
    });
    drop(nbd);
    drop(cluster);
}

/// A filesystem on a disk of its own, whose writes can be made to hang.
struct Hanging(PathBuf);

impl Hanging {
    fn mount(cluster: &Cluster) -> Self {
        let image = cluster.dir.join("hanging.img");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        program("mkfs.ext4", &["-q", image.to_str().unwrap()]).ok();
        let at = cluster.dir.join("hanging");
        fs::create_dir_all(&at).unwrap();
        let (image, at_text) = (image.to_str().unwrap(), at.to_str().unwrap());
        program("mount", &["-o", "loop", image, at_text]).ok();
        Self(at)
    }

    fn freeze(&self, frozen: bool) {
        let flag = if frozen { "--freeze" } else { "--unfreeze" };
        program("fsfreeze", &[flag, self.0.to_str().unwrap()]).ok();
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let at = self.0.to_str().unwrap();
        // Whether or not it is frozen still: a process that waits for it could not be killed.
        program("fsfreeze", &["--unfreeze", at]);
        program("umount", &["--lazy", at]).ok();
    }
}

/// The guest waits for `disk-timeout` and goes on with the peer; what lands when the disk answers
/// again is made good by the resync.
#[test]
fn a_disk_that_hangs_costs_a_stall_and_what_lands_late_is_overwritten() {
    if !(am_root() && have(&["mount", "umount", "mkfs.ext4", "fsfreeze"])) {
        return;
    }
    let mut cluster = Cluster::new(&Setup {
        disk_len: 16 << 20,
        ..Setup::default()
    });
    let hanging = Hanging::mount(&cluster);
    let image = hanging.0.join("image");
    fs::write(&image, vec![0; 16 << 20]).unwrap();
    fs::remove_file(cluster.disk(A)).unwrap();
    symlink(image, cluster.disk(A)).unwrap();
    cluster.bring_up();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, 4 * LIMIT).unwrap();
    nbd.write(4096, &[1; 4096]).unwrap();
    hanging.freeze(true);
    nbd.write(4096, &[2; 4096]).unwrap();
    nbd.write(4096, &[3; 4096]).unwrap();
    nbd.flush().unwrap();
    assert_eq!(nbd.read(4096, 4096).unwrap(), [3; 4096]);
    cluster.wait_status(A, "its replica is out", |status| {
        status["role"] == "Primary" && status["volumes"][0]["disk"] == "Failed"
    });
    drop(nbd);
    hanging.freeze(false);
    cluster.adm(A, &["move", RES, "kvm-b"]).ok();
    // As `status` advises.
    cluster.adm(A, &["attach", RES]).ok();
    cluster.wait_both_up_to_date(B);
    cluster.kill(A);
    cluster.kill(B);
    let bytes = [A, B].map(|node| fs::read(cluster.disk(node)).unwrap());
    assert!(bytes[0] == bytes[1], "both devices hold the same");
    assert_eq!(bytes[0][4096..8192], [3; 4096]);
    drop(cluster);
}

/// An instance whose disk does not answer is not gone after `down`, and says so; a new one begins
/// only after it, and is not taken away by its end.
#[test]
fn a_resource_taken_down_on_a_hanging_disk_is_up_again_only_after_it_answered() {
    if !(am_root() && have(&["mount", "umount", "mkfs.ext4", "fsfreeze"])) {
        return;
    }
    let mut cluster = Cluster::new(&Setup {
        disk_len: 16 << 20,
        ..Setup::default()
    });
    let hanging = Hanging::mount(&cluster);
    let image = hanging.0.join("image");
    fs::write(&image, vec![0; 16 << 20]).unwrap();
    fs::remove_file(cluster.disk(A)).unwrap();
    symlink(image, cluster.disk(A)).unwrap();
    cluster.bring_up();
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, 4 * LIMIT).unwrap();
    hanging.freeze(true);
    nbd.write(4096, &[2; 4096]).unwrap();
    cluster.wait_status(A, "its replica is out", |status| {
        status["volumes"][0]["disk"] == "Failed"
    });
    let words = cluster.adm(A, &["attach", RES]).exits(4);
    assert!(
        words.contains("E0408") && words.contains("twinadm move"),
        "{words}"
    );
    nbd.flush().unwrap();
    drop(nbd);
    cluster.adm(A, &["move", RES, "kvm-b"]).ok();
    let words = cluster.adm(A, &["--timeout", "1s", "attach", RES]).exits(9);
    assert!(
        words.contains("E0901") && words.contains("not over"),
        "{words}"
    );
    for _ in 0..2 {
        let words = cluster.adm(A, &["--timeout", "1s", "down", RES]).exits(9);
        assert!(
            words.contains("E0901") && words.contains("not over"),
            "{words}"
        );
    }
    let words = cluster.adm(A, &["--timeout", "1s", "up", RES]).exits(9);
    assert!(words.contains("mend the disk"), "{words}");
    cluster.adm(A, &["attach", RES]).exits(4);
    let status = cluster.wait_status(A, "it leaves", |status| {
        status["volumes"][0]["disk"] == "Detaching"
    });
    assert_eq!(status["up"], true);
    hanging.freeze(false);
    cluster.wait_status(A, "it is gone", |status| status["up"] == false);
    cluster.adm(A, &["up", RES]).ok();
    cluster.wait_both_up_to_date(B);
    drop(cluster);
}

/// A device may appear after the daemon did, or be held by what died with the host's last boot: what
/// was up comes up again by itself, and says meanwhile what it waits for.
#[test]
fn what_was_up_is_attached_once_its_device_is_there() {
    let mut cluster = Cluster::serving(&Setup::default());
    let away = cluster.disk(B).with_extension("away");
    let start_without_disk = |cluster: &mut Cluster| {
        cluster.kill(B);
        fs::rename(cluster.disk(B), &away).unwrap();
        cluster.start(B);
        let status = cluster.wait_status(B, "it waits for its disk", |status| {
            let volume = &status["volumes"][0];
            volume["disk"] == "Attaching" && volume["disk_error"].is_string()
        });
        assert_eq!(status["up"], true);
        let action = status["action"].as_str().unwrap();
        assert!(action.contains("by itself"), "{action}");
    };
    start_without_disk(&mut cluster);
    fs::rename(&away, cluster.disk(B)).unwrap();
    cluster.wait_both_up_to_date(A);

    // Whoever wants it detached is listened to.
    start_without_disk(&mut cluster);
    cluster.adm(B, &["detach", RES]).ok();
    cluster.wait_status(B, "nobody tries", |status| {
        status["volumes"][0]["disk"] == "Diskless"
    });
    cluster.adm(B, &["attach", RES]).exits(1);
    fs::rename(&away, cluster.disk(B)).unwrap();
    cluster.adm(B, &["attach", RES]).ok();
    cluster.wait_both_up_to_date(A);
    // A stop does not wait for the next try.
    start_without_disk(&mut cluster);
    cluster.terminate(B, LIMIT);
    drop(cluster);
}
