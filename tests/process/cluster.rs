//! A pair and an arbitrator on loopback, in a directory that goes when the test ends.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator::meta::{PAGE_LEN, Superblock, layout::SUPERBLOCK_OFFSETS};
use serde_json::Value;

use crate::tools::{Ran, program, run, twinadm, wait_for};
use crate::turn::Turn;

/// The data nodes, then the arbitrator.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const ARBITRATOR: usize = 2;
pub(crate) const NAMES: [&str; 3] = ["kvm-a", "kvm-b", "arb"];
/// The resource.
pub(crate) const RES: &str = "vm-web";
/// How long a healthy pair may take for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What a cluster is made with.
pub(crate) struct Setup {
    pub(crate) disk_len: u64,
    pub(crate) timing: &'static str,
    /// In a network namespace of its own, where it can be cut (root only).
    pub(crate) namespace: bool,
    /// Lines of the resource's table.
    pub(crate) resource: &'static str,
    /// Lines of `[nbd]`.
    pub(crate) nbd: &'static str,
    /// NBD by TCP.
    pub(crate) tcp: Tcp,
    /// `[net] tls`; with any but "off" the nodes get their keys by `init` and `join`.
    pub(crate) tls: &'static str,
}

/// How NBD is served by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tcp {
    Off,
    Clear,
    /// With the certificates of [`Cluster::tls_dir`], which the test makes.
    Tls,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            disk_len: 64 << 20,
            timing: "fast",
            namespace: false,
            resource: "",
            nbd: "",
            tcp: Tcp::Off,
            // By hand, all of these tests: TWINBLK_TEST_TLS=required cargo test --test process
            tls: match std::env::var("TWINBLK_TEST_TLS").as_deref() {
                Ok("required") => "required",
                Ok("control-only") => "control-only",
                _ => "off",
            },
        }
    }
}

/// The running cluster.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) ports: [u16; 3],
    nbd_ports: [u16; 2],
    children: [Option<Child>; 3],
    /// Nodes that need keys get them before the first of them starts.
    pub(crate) has_keys: bool,
    namespace: Option<String>,
    _turn: Turn,
}

impl Cluster {
    /// Directory, disks and configuration; nothing runs yet.
    pub(crate) fn new(setup: &Setup) -> Self {
        let turn = Turn::take();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("twinblk-test-{}-{number}", std::process::id());
        // Direct I/O is what is tested: /var/tmp is a disk where /tmp may be memory.
        let dir = Path::new("/var/tmp").join(&name);
        fs::create_dir_all(dir.join("etc/resources.d")).unwrap();
        let namespace = setup.namespace.then(|| {
            program("ip", &["netns", "add", &name]).ok();
            program("ip", &["-n", &name, "link", "set", "lo", "up"]).ok();
            name
        });
        let [a, b, arbitrator, nbd_a, nbd_b] = free_ports();
        let cluster = Self {
            dir,
            ports: [a, b, arbitrator],
            nbd_ports: [nbd_a, nbd_b],
            children: Default::default(),
            has_keys: setup.tls == "off",
            namespace,
            _turn: turn,
        };
        for node in [A, B] {
            File::create(cluster.disk(node))
                .unwrap()
                .set_len(setup.disk_len)
                .unwrap();
        }
        cluster.configure(setup);
        cluster
    }

    /// The same, all three running, the resource up on both and Primary on `kvm-a`, both UpToDate.
    pub(crate) fn serving(setup: &Setup) -> Self {
        let mut cluster = Self::new(setup);
        cluster.bring_up();
        cluster
    }

    /// From disks without metadata to a pair of which `kvm-a` serves.
    pub(crate) fn bring_up(&mut self) {
        for node in [A, B] {
            self.adm(node, &["create-md", RES]).ok();
        }
        // First, since one that is not there yet is asked again only after a second.
        for node in [ARBITRATOR, A, B] {
            self.start(node);
        }
        for node in [A, B] {
            self.adm(node, &["up", RES]).ok();
        }
        // View 1 records the voters it met: a test may take one of them away at once.
        crate::tools::wait_for("all voters are met", PATIENCE, || {
            let shown = self.adm(A, &["status", "--json"]);
            let status: Value = serde_json::from_str(&shown.stdout).ok()?;
            (status["cluster"]["voters_seen"] == 3).then_some(())
        });
        self.adm(A, &["primary", RES]).ok();
        self.wait_both_up_to_date(A);
    }

    /// `init` on `kvm-a` and, while its daemon runs, `join` on the others.
    fn make_keys(&mut self) {
        self.has_keys = true;
        let tokens = self.with_state(A, &["init", "lab"]).ok();
        self.start(A);
        for (node, token) in [B, ARBITRATOR].into_iter().zip(tokens.lines()) {
            self.with_state(node, &["join", token]).ok();
        }
        self.kill(A);
    }

    /// Runs twinadm for `node`, on its state directory.
    pub(crate) fn with_state(&self, node: usize, words: &[&str]) -> Ran {
        let state_dir = self.state_dir(node).display().to_string();
        self.adm(node, &[words, &["--state-dir", &state_dir]].concat())
    }

    pub(crate) fn state_dir(&self, node: usize) -> PathBuf {
        self.dir.join(NAMES[node]).join("state")
    }

    fn configure(&self, setup: &Setup) {
        let [a, b, arbitrator] = self.ports;
        let dir = self.dir.display();
        let (timing, resource, tls) = (setup.timing, setup.resource, setup.tls);
        let nbd = self.nbd_table(setup.tcp) + setup.nbd;
        fs::write(
            self.dir.join("etc/twinblk.toml"),
            format!(
                "config-version = 1\n[cluster]\nname = \"lab\"\n\
                 [node.kvm-a]\naddress = [\"127.0.0.1:{a}\"]\n\
                 [node.kvm-b]\naddress = [\"127.0.0.1:{b}\"]\n\
                 [node.arb]\nrole = \"arbitrator\"\naddress = [\"127.0.0.1:{arbitrator}\"]\n\
                 [quorum]\ntiming = \"{timing}\"\nwatchdog = \"off\"\n[net]\ntls = \"{tls}\"\n\
                 [metrics]\nlisten = \"\"\n[nbd]\n{nbd}"
            ),
        )
        .unwrap();
        fs::write(
            self.dir.join(format!("etc/resources.d/{RES}.toml")),
            format!(
                "[resource.{RES}]\n{resource}[[resource.{RES}.volume]]\nid = 0\n\
                 disk = {{ kvm-a = \"{dir}/kvm-a.img\", kvm-b = \"{dir}/kvm-b.img\" }}\n\
                 meta = {{ kvm-a = \"{dir}/kvm-a.md\", kvm-b = \"{dir}/kvm-b.md\" }}\n"
            ),
        )
        .unwrap();
    }

    fn nbd_table(&self, tcp: Tcp) -> String {
        let [a, b] = self.nbd_ports;
        let listen =
            format!("listen = {{ kvm-a = \"127.0.0.1:{a}\", kvm-b = \"127.0.0.1:{b}\" }}\n");
        match tcp {
            Tcp::Off => String::new(),
            Tcp::Clear => listen,
            Tcp::Tls => format!("{listen}tls-dir = \"{}\"\n", self.tls_dir().display()),
        }
    }

    /// Both nodes' certificates for NBD by TCP.
    pub(crate) fn tls_dir(&self) -> PathBuf {
        self.dir.join("nbd-tls")
    }

    /// Where `node` serves NBD by TCP.
    pub(crate) fn nbd_address(&self, node: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.nbd_ports[node]).into()
    }

    pub(crate) fn disk(&self, node: usize) -> PathBuf {
        self.dir.join(format!("{}.img", NAMES[node]))
    }

    pub(crate) fn run_dir(&self, node: usize) -> PathBuf {
        self.dir.join(NAMES[node]).join("run")
    }

    pub(crate) fn nbd_socket(&self, node: usize) -> PathBuf {
        self.run_dir(node).join(format!("nbd/{RES}.sock"))
    }

    /// For qemu and libnbd programs.
    pub(crate) fn nbd_uri(&self, node: usize) -> String {
        format!(
            "nbd+unix:///{RES}?socket={}",
            self.nbd_socket(node).display()
        )
    }

    /// The command that starts `node`.
    pub(crate) fn daemon(&self, node: usize) -> Command {
        let daemon = if node == ARBITRATOR {
            env!("CARGO_BIN_EXE_twinblk-arbitrator")
        } else {
            env!("CARGO_BIN_EXE_twinblkd")
        };
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, daemon]);
                command
            }
            None => Command::new(daemon),
        };
        command
            .arg("--config")
            .arg(self.dir.join("etc"))
            .args(["--node", NAMES[node], "--state-dir"])
            .arg(self.state_dir(node))
            .arg("--run-dir")
            .arg(self.run_dir(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts `node`; its log is `NAME.log`.
    pub(crate) fn start(&mut self, node: usize) {
        self.start_with(node, |command| command);
    }

    /// The same by a command that is changed before.
    pub(crate) fn start_with(
        &mut self,
        node: usize,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) {
        if !self.has_keys {
            self.make_keys();
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{}.log", NAMES[node])))
            .unwrap();
        // A group of its own: Ctrl-C on the tests ends it through our Drop.
        let mut command = self.daemon(node);
        let child = change(&mut command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.children[node] = Some(child);
    }

    pub(crate) fn pid(&self, node: usize) -> u32 {
        self.children[node]
            .as_ref()
            .map(Child::id)
            .expect("the node runs")
    }

    /// SIGKILL, and its end awaited.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; how long it then took to end, at most `limit`.
    pub(crate) fn terminate(&mut self, node: usize, limit: Duration) {
        self.signal(node, Signal::SIGTERM);
        let mut child = self.children[node].take().expect("the node runs");
        let status = wait_for("the daemon ends on SIGTERM", limit, || {
            child.try_wait().unwrap()
        });
        assert!(status.success(), "{status}");
    }

    pub(crate) fn signal(&self, node: usize, signal: Signal) {
        let pid = i32::try_from(self.pid(node)).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// What `node` looks like after its host booted: the metadata is of another boot. Only between
    /// its daemon's end and its next start. Whether the replica had been closed in order.
    pub(crate) fn reboot(&self, node: usize) -> bool {
        assert!(self.children[node].is_none(), "{} runs", NAMES[node]);
        let path = self.dir.join(format!("{}.md", NAMES[node]));
        let mut bytes = fs::read(&path).unwrap();
        let mut newest: Option<Superblock> = None;
        for offset in SUPERBLOCK_OFFSETS {
            let at = usize::try_from(offset.0).unwrap();
            let page = &mut bytes[at..at + PAGE_LEN];
            let before: &[u8; PAGE_LEN] = (&*page).try_into().unwrap();
            let Ok(mut superblock) = Superblock::decode(before) else {
                continue;
            };
            superblock.boot_id ^= 1;
            page.copy_from_slice(&superblock.encode());
            if newest
                .as_ref()
                .is_none_or(|it| it.sequence < superblock.sequence)
            {
                newest = Some(superblock);
            }
        }
        fs::write(&path, bytes).unwrap();
        !newest.expect("a superblock").open
    }

    /// Drops every packet to and from `node`, or none. Needs [`Setup::namespace`].
    pub(crate) fn isolate(&self, node: usize, cut: bool) {
        let namespace = self.namespace.as_ref().expect("a namespace to cut in");
        let nft = |rule: &str| {
            program("ip", &["netns", "exec", namespace, "nft", rule]).ok();
        };
        if !cut {
            return nft("flush ruleset");
        }
        let port = self.ports[node];
        nft("add table inet cut; add chain inet cut wall { type filter hook input priority 0; }");
        for direction in ["dport", "sport"] {
            nft(&format!(
                "add rule inet cut wall tcp {direction} {port} drop"
            ));
            nft(&format!(
                "add rule inet cut wall udp {direction} {port} drop"
            ));
        }
    }

    /// Runs twinadm for `node`.
    pub(crate) fn adm(&self, node: usize, words: &[&str]) -> Ran {
        run(Command::new(twinadm())
            .arg("--config")
            .arg(self.dir.join("etc"))
            .arg("--run-dir")
            .arg(self.run_dir(node))
            .args(["--node", NAMES[node]])
            .args(words))
    }

    /// Has the daemon of `asked` pass on what is about `node`.
    pub(crate) fn passed_on(&self, asked: usize, node: usize, words: &[&str]) -> Ran {
        run(Command::new(twinadm())
            .arg("--config")
            .arg(self.dir.join("etc"))
            .arg("--run-dir")
            .arg(self.run_dir(asked))
            .args(["--node", NAMES[node]])
            .args(words))
    }

    /// The resource as `node` sees it; `None` while it does not answer.
    pub(crate) fn status(&self, node: usize) -> Option<Value> {
        let ran = self.adm(node, &["status", RES, "--json"]);
        if ran.code != Some(0) {
            return None;
        }
        let mut status: Value = serde_json::from_str(&ran.stdout).expect("status --json is JSON");
        Some(status["resources"][0].take())
    }

    /// Waits until `node` says what `wanted` asks for; that status.
    #[track_caller]
    pub(crate) fn wait_status(
        &self,
        node: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = None;
        let deadline = crate::tools::now() + PATIENCE;
        loop {
            if let Some(status) = self.status(node) {
                if wanted(&status) {
                    return status;
                }
                last = Some(status);
            }
            assert!(
                crate::tools::now() < deadline,
                "waited in vain until {what} on {}: {last:#?}\n{}",
                NAMES[node],
                self.logs()
            );
        }
    }

    /// Waits until `primary` serves and both replicas are in the agreed view; its status.
    #[track_caller]
    pub(crate) fn wait_both_up_to_date(&self, primary: usize) -> Value {
        self.wait_status(primary, "both are UpToDate", |status| {
            status["role"] == "Primary"
                && status["volumes"][0]["disk"] == "UpToDate"
                && status["peers"][0]["volumes"][0]["disk"] == "UpToDate"
                && status["in_sync"]
                    .as_array()
                    .is_some_and(|nodes| nodes.len() == 2)
        })
    }

    /// The end of each node's log, for a failed test's message.
    pub(crate) fn logs(&self) -> String {
        let tail = |node: &str| {
            let text = fs::read_to_string(self.dir.join(format!("{node}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!(
                "-- {node}\n{}\n",
                lines[lines.len().saturating_sub(25)..].join("\n")
            )
        };
        NAMES.map(tail).concat()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
        if let Some(namespace) = &self.namespace {
            run(Command::new("ip").args(["netns", "del", namespace]));
        }
        if std::env::var_os("TWINBLK_TEST_KEEP").is_none() {
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// Ports that are free for TCP and UDP, below those that Linux hands to outgoing
/// connections, so that they still are when the daemons bind them.
fn free_ports() -> [u16; 5] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 10_240 + std::process::id() % 1_000 * 20;
    let next = || {
        loop {
            let candidate = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
            let port = u16::try_from(candidate).unwrap();
            let address = (Ipv4Addr::LOCALHOST, port);
            if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
                return port;
            }
        }
    };
    [next(), next(), next(), next(), next()]
}
