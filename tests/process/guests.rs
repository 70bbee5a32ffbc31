//! Guests that follow their volumes: real QEMUs under two real libvirts, started, stopped and killed
//! by the daemons alone.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{A, B, Cluster, NAMES, RES, Setup};
use crate::libvirt::Libvirt;
use crate::nbd::Nbd;
use crate::tools::{am_root, have, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
const DOMAIN: &str = "web";

/// A boot sector: counts its starts in the second sector's first word, then the timer's ticks in the
/// second word, and writes the sector to the disk at each.
const BOOT: &[u8] = &[
    0xfa, // cli
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // ax = ds = es = ss = 0
    0xbc, 0x00, 0x7c, // mov sp, 0x7c00
    0xfb, 0xfc, // sti; cld
    0xb4, 0x42, 0xbe, 0x2a, 0x7c, 0xcd, 0x13, // read sector 1 to 0x7e00
    0x66, 0xff, 0x06, 0x00, 0x7e, // inc dword [0x7e00]
    0x66, 0xff, 0x06, 0x04, 0x7e, // again: inc dword [0x7e04]
    0xb8, 0x00, 0x43, 0xbe, 0x2a, 0x7c, 0xcd, 0x13, // write it
    0xf4, 0xeb, 0xf0, // hlt; jmp again
    16, 0, 1, 0, 0x00, 0x7e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // one sector, number 1
];

/// Two hosts with a libvirt and the guest's definition each.
struct Hosts {
    cluster: Cluster,
    libvirts: [Option<Libvirt>; 2],
}

impl Hosts {
    /// Serving on `kvm-a`, where the guest runs.
    fn running(setup: &Setup, guest: &str) -> Option<Self> {
        let programs = ["libvirtd", "virsh", "qemu-system-x86_64", "unshare"];
        if !have(&programs) || !am_root() {
            return None;
        }
        let mut cluster = Cluster::new(setup);
        let libvirts = [A, B].map(|node| {
            let number = u8::try_from(node).unwrap();
            Libvirt::start(&cluster.dir.join(format!("libvirt-{node}")), number)
        });
        configure(&cluster, &libvirts, guest);
        boot_sector(&cluster);
        for node in [A, B] {
            let xml = cluster.adm(node, &["guest", "xml", RES]).ok();
            libvirts[node].define(DOMAIN, &xml);
        }
        cluster.bring_up();
        let hosts = Self {
            cluster,
            libvirts: libvirts.map(Some),
        };
        hosts.wait_guest(A, "running");
        hosts.wait_boots(A, 1);
        Some(hosts)
    }

    /// What `node` says of the guest.
    fn guest(&self, node: usize) -> Option<Value> {
        Some(self.cluster.status(node)?["guest"].take())
    }

    /// Waits for a state of the guest on `node`; meanwhile no two of it may run.
    #[track_caller]
    fn wait_guest(&self, node: usize, state: &str) {
        let mut last = None;
        let deadline = crate::tools::now() + LIMIT;
        loop {
            self.judge();
            last = self.guest(node).or(last);
            let is = |guest: &Value| guest["state"] == state && guest["node"] == NAMES[node];
            if last.as_ref().is_some_and(is) {
                return;
            }
            assert!(
                crate::tools::now() < deadline,
                "the guest is not {state} on {}: {last:?}\n{}",
                NAMES[node],
                self.cluster.logs()
            );
        }
    }

    /// From outside: never two processes of the guest that are not stopped.
    fn judge(&self) {
        let alive = [A, B].map(|node| self.process(node).filter(|pid| is_running(*pid)));
        assert!(
            alive[A].is_none() || alive[B].is_none(),
            "two guests: {alive:?}\n{}",
            self.cluster.logs()
        );
    }

    /// The guest's process on `node`: it has that node's socket.
    fn process(&self, node: usize) -> Option<i32> {
        let socket = self.cluster.nbd_socket(node).display().to_string();
        let mut pids = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_string_lossy().parse::<i32>().ok()?;
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).into_owned();
                (line.contains("guest=web") && line.contains(&socket)).then_some(pid)
            });
        pids.next()
    }

    /// Starts and ticks as the volume has them.
    fn counters(&self, node: usize) -> Option<(u32, u32)> {
        let socket = self.cluster.nbd_socket(node);
        let mut nbd = Nbd::attach(&socket, RES, Duration::from_secs(1)).ok()?;
        let sector = nbd.read(512, 8).ok()?;
        let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// Waits until the guest has booted that often, and goes on.
    #[track_caller]
    fn wait_boots(&self, node: usize, boots: u32) {
        let before = wait_for("the guest has booted", LIMIT, || {
            self.judge();
            self.counters(node).filter(|(counted, _)| *counted == boots)
        });
        wait_for("the guest goes on", LIMIT, || {
            let after = self.counters(node)?;
            (after.1 > before.1 + 3).then_some(())
        });
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // The daemons first: they would start it again.
        for node in [A, B] {
            self.cluster.kill(node);
        }
        for node in [A, B] {
            if let Some(pid) = self.process(node) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        // Before their directory goes.
        self.libvirts = [None, None];
    }
}

fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !"TtZX".contains(state))
}

fn configure(cluster: &Cluster, libvirts: &[Libvirt; 2], guest: &str) {
    let file = cluster.dir.join("etc/twinblk.toml");
    let mut text = fs::read_to_string(&file).unwrap();
    for node in [A, B] {
        let table = format!("[node.{}]\n", NAMES[node]);
        let with = format!("{table}libvirt = \"{}\"\n", libvirts[node].uri());
        text = text.replace(&table, &with);
    }
    fs::write(&file, text).unwrap();
    let file = cluster.dir.join(format!("etc/resources.d/{RES}.toml"));
    let mut text = fs::read_to_string(&file).unwrap();
    text += &format!("[resource.{RES}.guest]\ndomain = \"{DOMAIN}\"\ntarget = \"vda\"\n{guest}");
    fs::write(&file, text).unwrap();
}

/// Both disks begin the same: a resource whose replicas are blank is not synced.
fn boot_sector(cluster: &Cluster) {
    let mut sector = BOOT.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    for node in [A, B] {
        use std::os::unix::fs::FileExt;
        let disk = fs::File::options()
            .write(true)
            .open(cluster.disk(node))
            .unwrap();
        disk.write_all_at(&sector, 0).unwrap();
    }
}

/// The mission: a host dies with its daemon, its libvirt and its guest; the guest runs on the other
/// one, from the same disk. Then it is moved by hand, stopped before its volume goes.
#[test]
fn a_guest_follows_its_volume_when_a_host_dies_and_by_order() {
    let on_demote = "on-demote = \"shutdown:1s,destroy\"\n";
    let Some(mut hosts) = Hosts::running(&Setup::default(), on_demote) else {
        return;
    };
    // By order first: the guest does not heed the power button, so it is ended after a second.
    hosts.cluster.adm(A, &["secondary", RES]).ok();
    assert_eq!(
        hosts.process(A),
        None,
        "stopped before the volume is given away"
    );
    hosts.cluster.adm(B, &["primary", RES]).ok();
    hosts.wait_guest(B, "running");
    hosts.wait_boots(B, 2);
    hosts.cluster.wait_both_up_to_date(B);
    let guest = hosts.guest(A).unwrap();
    assert_eq!(guest["node"], NAMES[B], "the other side knows where it is");

    // In one order, asked of the node that it goes to; there and back.
    for (from, to, boots) in [(B, A, 3), (A, B, 4)] {
        hosts.cluster.adm(to, &["move", RES, NAMES[to]]).ok();
        assert_eq!(hosts.process(from), None, "stopped before its volume goes");
        hosts.wait_guest(to, "running");
        hosts.wait_boots(to, boots);
        hosts.cluster.wait_both_up_to_date(to);
    }

    // A host dies: everything of it at once, as far as signals can.
    let pid = hosts.process(B).unwrap();
    hosts.libvirts[B].take().unwrap().signal(Signal::SIGKILL);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    hosts.cluster.kill(B);
    hosts.wait_guest(A, "running");
    hosts.wait_boots(A, 5);
}

/// The Primary's daemon hangs, its guest and libvirt do not: the guardian kills the guest before the
/// other host starts it, and what wakes up later is Secondary and starts nothing.
#[test]
fn the_guest_of_a_daemon_that_hangs_is_killed_before_the_next_one_runs() {
    let Some(hosts) = Hosts::running(&Setup::default(), "") else {
        return;
    };
    hosts.cluster.signal(A, Signal::SIGSTOP);
    hosts.wait_guest(B, "running");
    assert_eq!(hosts.process(A), None);
    hosts.wait_boots(B, 2);
    hosts.cluster.signal(A, Signal::SIGCONT);
    hosts.cluster.wait_both_up_to_date(B);
    hosts.judge();
    assert_eq!(hosts.process(A), None);
}

/// A daemon is killed and started again while it is alone: its guest was never in doubt, and runs on
/// under the same process. It does not stop when asked, so its volume stays, unless by force.
#[test]
fn a_guest_survives_its_daemons_restart_and_keeps_its_volume_until_forced() {
    let on_demote = "on-demote = \"shutdown:1s\"\n";
    let Some(mut hosts) = Hosts::running(&Setup::default(), on_demote) else {
        return;
    };
    hosts.cluster.kill(B);
    hosts.cluster.wait_status(A, "it serves alone", |status| {
        status["in_sync"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 1)
    });
    let pid = hosts.process(A).unwrap();
    hosts.cluster.kill(A);
    hosts.cluster.start(A);
    hosts.wait_guest(A, "running");
    hosts.wait_boots(A, 1);
    assert_eq!(hosts.process(A), Some(pid));

    // It does not heed the power button, and nothing harder is configured: it stays, until forced.
    let refused = hosts.cluster.adm(A, &["secondary", RES]).exits(4);
    assert!(refused.contains("E0430"), "{refused}");
    hosts.wait_guest(A, "running");
    assert_eq!(hosts.process(A), Some(pid));
    assert_eq!(hosts.cluster.status(A).unwrap()["role"], "Primary");
    hosts.cluster.adm(A, &["secondary", RES, "--force"]).ok();
    assert_eq!(hosts.process(A), None);
    hosts.wait_guest(A, "off");
}

/// It crashes: started again where it is. libvirt hangs: nothing else does, and the guest is killed
/// all the same when its volume is taken over.
#[test]
fn a_crash_is_mended_in_place_and_a_hung_libvirt_saves_no_guest() {
    let Some(mut hosts) = Hosts::running(&Setup::default(), "") else {
        return;
    };
    let pid = hosts.process(A).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    hosts.wait_boots(A, 2);
    assert_eq!(hosts.cluster.status(A).unwrap()["role"], "Primary");

    hosts.libvirts[A].as_ref().unwrap().signal(Signal::SIGSTOP);
    hosts.cluster.kill(A);
    hosts.wait_guest(B, "running");
    assert_eq!(hosts.process(A), None);
    hosts.wait_boots(B, 3);
}
