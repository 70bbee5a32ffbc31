//! The three processes: their directory, configuration, addresses, and what can be done to them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator::admin::Status;

use super::error::DemoError;
use super::interrupt::Interrupt;
use super::ports;
use super::random::Random;
use super::relay::Relay;

/// Nodes of the demo: two data nodes, then the arbitrator.
pub(super) const NODES: usize = 3;
/// The first Primary.
pub(super) const A: usize = 0;
/// Its peer.
pub(super) const B: usize = 1;
/// The arbitrator.
pub(super) const ARBITRATOR: usize = 2;
/// Their names.
pub(super) const NAMES: [&str; NODES] = ["kvm-a", "kvm-b", "arb"];
/// The resource.
pub(super) const RESOURCE: &str = "vm-demo";
/// Bytes of each disk.
pub(super) const DISK_LEN: u64 = 256 << 20;

/// Longest socket path that is sure to fit, in bytes: what Linux takes, less a zero.
const SOCKET_PATH_LEN_MAX: usize = 107;
/// How long a verb may take: twice what its own timeout allows it.
const VERB_LIMIT: Duration = Duration::from_secs(20);
/// How much of a child's log is quoted when it ended by itself.
const LAST_WORDS_LEN: usize = 600;

/// Everything the demo started and made; gone when dropped, but for the directory if kept.
pub(super) struct Cluster {
    dir: PathBuf,
    keep: bool,
    twinadm: PathBuf,
    programs: [PathBuf; NODES],
    children: [Option<Child>; NODES],
    relay: Option<Relay>,
}

impl Cluster {
    /// Makes the directory, the disks and the configuration; starts nothing yet. With `relayed`
    /// the nodes reach each other only through a relay that can be cut.
    pub(super) fn prepare(seed: u64, relayed: bool, keep: bool) -> Result<Self, DemoError> {
        let twinadm = std::env::current_exe()
            .map_err(|error| DemoError::io("finding twinadm's own file", error))?;
        let daemon = beside(&twinadm, "twinblkd")?;
        let arbitrator = beside(&twinadm, "twinblk-arbitrator")?;
        let mut cluster = Self {
            dir: make_dir(seed)?,
            keep,
            twinadm,
            programs: [daemon.clone(), daemon, arbitrator],
            children: Default::default(),
            relay: None,
        };
        cluster.make_disks()?;
        cluster.configure(relayed)?;
        Ok(cluster)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves the directory where it is.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// The backing file of a data node.
    pub(super) fn disk(&self, node: usize) -> PathBuf {
        self.dir.join(format!("{}.img", NAMES[node]))
    }

    /// The NBD socket of a data node.
    pub(super) fn socket(&self, node: usize) -> PathBuf {
        self.run_dir(node)
            .join("nbd")
            .join(format!("{RESOURCE}.sock"))
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Starts a node's process; its log is `NAME.log`.
    pub(super) fn start(&mut self, node: usize) -> Result<(), DemoError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log(node))
            .map_err(|error| DemoError::io("opening a log", error))?;
        let mut command = Command::new(&self.programs[node]);
        command
            .arg("--config")
            .arg(self.config_dir(node))
            .args(["--node", NAMES[node], "--state-dir"])
            .arg(self.node_dir(node).join("state"))
            .arg("--run-dir")
            .arg(self.run_dir(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo; it ends its children itself.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|error| DemoError::io(format!("starting {}", NAMES[node]), error))?;
        self.children[node] = Some(child);
        Ok(())
    }

    /// SIGKILL, and its end awaited.
    pub(super) fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node].take() {
            end(&mut child);
        }
    }

    /// SIGKILL of several at once: nobody outlives another by more than the two system calls.
    pub(super) fn kill_all(&mut self, nodes: &[usize]) {
        for child in nodes
            .iter()
            .filter_map(|node| self.children[*node].as_ref())
        {
            signal(child, Signal::SIGKILL);
        }
        for node in nodes {
            self.kill(*node);
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(super) fn pause(&self, node: usize, stop: bool) {
        if let Some(child) = &self.children[node] {
            signal(
                child,
                if stop {
                    Signal::SIGSTOP
                } else {
                    Signal::SIGCONT
                },
            );
        }
    }

    /// Cuts a node off from both others, or heals that.
    pub(super) fn isolate(&self, node: usize, cut: bool) {
        if let Some(relay) = &self.relay {
            relay.isolate(node, cut);
        }
    }

    /// An error if a child ended that nobody killed.
    pub(super) fn check(&mut self) -> Result<(), DemoError> {
        for node in [A, B, ARBITRATOR] {
            let Some(child) = &mut self.children[node] else {
                continue;
            };
            if let Ok(Some(status)) = child.try_wait() {
                self.children[node] = None;
                return Err(DemoError::ChildEnded {
                    node: NAMES[node].to_owned(),
                    status: status.to_string(),
                    words: last_words(&self.log(node)),
                });
            }
        }
        Ok(())
    }

    /// Runs a verb of twinadm for `node`; what it printed.
    pub(super) fn verb(
        &self,
        node: usize,
        words: &[&str],
        interrupt: &Interrupt,
    ) -> Result<String, DemoError> {
        let mut child = Command::new(&self.twinadm)
            .arg("--config")
            .arg(self.config_dir(node))
            .arg("--run-dir")
            .arg(self.run_dir(node))
            .args(["--node", NAMES[node], "--timeout", "10s"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| DemoError::io("starting twinadm", error))?;
        // Its few lines fit into a pipe, so it never waits for us to read.
        let ended = interrupt.wait_for(
            &format!("`twinadm {}` ends", words.join(" ")),
            VERB_LIMIT,
            || {
                child
                    .try_wait()
                    .map_err(|error| DemoError::io("waiting for twinadm", error))
            },
        );
        if ended.is_err() {
            end(&mut child);
        }
        ended?;
        let output = child
            .wait_with_output()
            .map_err(|error| DemoError::io("reading twinadm", error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(DemoError::Verb {
            verb: words.join(" "),
            node: NAMES[node].to_owned(),
            words: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// What `node` says of the resource; `None` while it does not answer.
    pub(super) fn status(
        &self,
        node: usize,
        interrupt: &Interrupt,
    ) -> Result<Option<Status>, DemoError> {
        match self.verb(node, &["status", RESOURCE, "--json"], interrupt) {
            Ok(text) => Ok(serde_json::from_str(&text).ok()),
            Err(DemoError::Verb { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn node_dir(&self, node: usize) -> PathBuf {
        self.dir.join(NAMES[node])
    }

    fn run_dir(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("run")
    }

    fn log(&self, node: usize) -> PathBuf {
        self.dir.join(format!("{}.log", NAMES[node]))
    }

    /// One directory for all where they share their bytes, one for each behind a relay.
    fn config_dir(&self, node: usize) -> PathBuf {
        if self.relay.is_some() {
            self.node_dir(node).join("etc")
        } else {
            self.dir.join("etc")
        }
    }

    fn make_disks(&self) -> Result<(), DemoError> {
        for node in [A, B] {
            File::create_new(self.disk(node))
                .and_then(|file| file.set_len(DISK_LEN))
                .map_err(|error| DemoError::io("making a sparse disk", error))?;
        }
        Ok(())
    }

    fn configure(&mut self, relayed: bool) -> Result<(), DemoError> {
        let failed = |error| DemoError::io("finding free ports", error);
        // Not from the seed: two demos with one seed may run at once.
        let mut random = Random::new(u64::from(std::process::id()));
        let mut held = Vec::new();
        for _ in 0..NODES {
            held.push(ports::bind_pair(&mut random).map_err(failed)?);
        }
        let real = [held[A].0, held[B].0, held[ARBITRATOR].0];
        if relayed {
            self.relay = Some(Relay::start(real, &mut random).map_err(failed)?);
        }
        drop(held);
        let disks = [A, B].map(|node| self.disk(node));
        for node in 0..NODES {
            let addresses = std::array::from_fn(|other| {
                self.relay
                    .as_ref()
                    .and_then(|relay| relay.door(node, other))
                    .unwrap_or(real[other])
            });
            let dir = self.config_dir(node);
            write_config(&dir, addresses, &disks)
                .map_err(|error| DemoError::io(format!("writing {}", dir.display()), error))?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all(&[A, B, ARBITRATOR]);
        if !self.keep {
            drop(fs::remove_dir_all(&self.dir));
        }
    }
}

fn write_config(
    dir: &Path,
    addresses: [SocketAddr; NODES],
    disks: &[PathBuf; 2],
) -> io::Result<()> {
    let [a, b, arbitrator] = addresses;
    let [disk_a, disk_b] = disks.each_ref().map(|disk| disk.display());
    fs::create_dir_all(dir.join("resources.d"))?;
    fs::write(
        dir.join("twinblk.toml"),
        format!(
            "config-version = 1\n[cluster]\nname = \"demo\"\n\
             [node.kvm-a]\naddress = [\"{a}\"]\n[node.kvm-b]\naddress = [\"{b}\"]\n\
             [node.arb]\nrole = \"arbitrator\"\naddress = [\"{arbitrator}\"]\n\
             [quorum]\ntiming = \"fast\"\nwatchdog = \"off\"\n[net]\ntls = \"off\"\n\
             [metrics]\nlisten = \"\"\n"
        ),
    )?;
    fs::write(
        dir.join("resources.d").join(format!("{RESOURCE}.toml")),
        format!(
            "[resource.{RESOURCE}]\nprefer = \"kvm-a\"\nfailback = \"never\"\n\
             [[resource.{RESOURCE}.volume]]\nid = 0\nsize = \"{}MiB\"\n\
             disk = {{ kvm-a = \"{disk_a}\", kvm-b = \"{disk_b}\" }}\n\
             meta = {{ kvm-a = \"{disk_a}.md\", kvm-b = \"{disk_b}.md\" }}\n",
            DISK_LEN >> 20
        ),
    )
}

/// A directory of its own on a file system that takes direct I/O, with room for socket paths.
fn make_dir(seed: u64) -> Result<PathBuf, DemoError> {
    let name = format!("twinblk-demo-{}-{seed:x}", std::process::id());
    let longest = format!("{}/run/nbd/{RESOURCE}.sock", NAMES[A]);
    let bases = [
        std::env::temp_dir(),
        PathBuf::from("/tmp"),
        PathBuf::from("/var/tmp"),
    ];
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for base in bases {
        let dir = base.join(&name);
        if dir.join(&longest).as_os_str().len() > SOCKET_PATH_LEN_MAX {
            continue;
        }
        if let Err(error) = fs::DirBuilder::new().mode(0o700).create(&dir) {
            last = error;
            continue;
        }
        match takes_direct_io(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => last = error,
        }
        drop(fs::remove_dir_all(&dir));
    }
    Err(DemoError::io(
        "making a directory for direct I/O in the temporary directories",
        last,
    ))
}

fn takes_direct_io(dir: &Path) -> io::Result<()> {
    let probe = dir.join("probe");
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(&probe)?;
    fs::remove_file(probe)
}

fn beside(twinadm: &Path, program: &'static str) -> Result<PathBuf, DemoError> {
    let path = twinadm.with_file_name(program);
    if path.is_file() {
        return Ok(path);
    }
    let dir = twinadm
        .parent()
        .unwrap_or(Path::new("/"))
        .display()
        .to_string();
    Err(DemoError::NoProgram { program, dir })
}

/// A child is ours and not reaped, so its id is still its own.
fn signal(child: &Child, signal: Signal) {
    if let Ok(id) = i32::try_from(child.id()) {
        // It fails only if the child is gone already.
        kill(Pid::from_raw(id), signal).ok();
    }
}

fn end(child: &mut Child) {
    drop(child.kill());
    drop(child.wait());
}

fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(LAST_WORDS_LEN);
    String::from_utf8_lossy(&text[from..]).trim().to_owned()
}
