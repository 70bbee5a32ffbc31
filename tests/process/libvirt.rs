//! A libvirt of its own for one node: started by hand in a mount namespace, so that two of them and
//! the machine's own, if it has one, know nothing of each other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tools::{Ran, run, wait_for};

/// How long libvirt may take to start.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Everything below the five directories that Debian's libvirt has compiled in. The user that its
/// QEMU driver asks for is made with a package that starts system services, so it is made up here.
const START: &str = r#"
set -e
mount --make-rprivate /
for name in /run /var/lib /var/cache /var/log /etc; do
  mkdir -p "$name/libvirt" "$0$name/libvirt"
  mount --bind "$0$name/libvirt" "$name/libvirt"
done
for file in passwd group; do cp "/etc/$file" "$0/$file"; done
id libvirt-qemu > /dev/null 2>&1 || echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >> "$0/passwd"
getent group libvirt-qemu > /dev/null || echo 'libvirt-qemu:x:64055:' >> "$0/group"
getent group kvm > /dev/null || echo 'kvm:x:64056:' >> "$0/group"
for file in passwd group; do mount --bind "$0/$file" "/etc/$file"; done
exec libvirtd -f "$0/libvirtd.conf" -p "$0/libvirtd.pid"
"#;

/// One host's libvirt.
pub(crate) struct Libvirt {
    dir: PathBuf,
    daemon: Child,
}

impl Libvirt {
    /// `number` tells hosts apart.
    pub(crate) fn start(dir: &Path, number: u8) -> Self {
        fs::create_dir_all(dir.join("etc/libvirt")).unwrap();
        let sockets = dir.display();
        let conf = format!(
            "unix_sock_dir = \"{sockets}\"\nauth_unix_rw = \"none\"\n\
             host_uuid = \"6ba7b810-9dad-41d1-80b4-00c04fd430{number:02x}\"\n\
             log_outputs = \"3:file:{sockets}/libvirtd.log\"\n"
        );
        fs::write(dir.join("libvirtd.conf"), conf).unwrap();
        let qemu = "security_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n\
                    stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\nremember_owner = 0\n";
        fs::write(dir.join("etc/libvirt/qemu.conf"), qemu).unwrap();
        let log = File::create(dir.join("out")).unwrap();
        let daemon = Command::new("unshare")
            .args(["--mount", "sh", "-c", START])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let libvirt = Self {
            dir: dir.to_owned(),
            daemon,
        };
        wait_for("libvirt answers", START_PATIENCE, || {
            (libvirt.virsh(&["version"]).code == Some(0)).then_some(())
        });
        libvirt
    }

    pub(crate) fn uri(&self) -> String {
        let socket = self.dir.join("libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    pub(crate) fn virsh(&self, words: &[&str]) -> Ran {
        run(Command::new("virsh")
            .args(["--quiet", "--connect", &self.uri()])
            .args(words)
            .env("LC_ALL", "C"))
    }

    /// Defines a guest of one disk; `disk` is an element of the domain.
    pub(crate) fn define(&self, domain: &str, disk: &str) {
        let file = self.dir.join(format!("{domain}.xml"));
        let path = file.display().to_string();
        let write = |disk: &str| {
            let text = format!(
                "<domain type='qemu'><name>{domain}</name><memory unit='MiB'>64</memory>\
                 <vcpu>1</vcpu><iothreads>1</iothreads><os><type arch='x86_64' machine='q35'>hvm\
                 </type></os><features><acpi/></features><devices>{disk}</devices></domain>\n"
            );
            fs::write(&file, text).unwrap();
        };
        // By libvirt's own schema, which in 9.0 lacks this one element: it is dropped there.
        let lines = disk.lines().filter(|line| !line.contains("<reconnect "));
        write(&lines.collect::<String>());
        self.virsh(&["define", "--validate", &path]).ok();
        self.virsh(&["undefine", domain]).ok();
        write(disk);
        self.virsh(&["define", &path]).ok();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.daemon.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.daemon.kill().ok();
        self.daemon.wait().ok();
    }
}
