//! The systems compared; each serves a volume on a Unix socket. The mirrors write synchronously to two
//! files, over TCP on loopback; the plain exports to one.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running system; its processes end with it.
pub(crate) struct System {
    pub(crate) socket: PathBuf,
    pub(crate) export: &'static str,
    /// The files that must hold what was written.
    pub(crate) images: Vec<PathBuf>,
    /// Processes on the write path: primary, and secondary of a mirror.
    pub(crate) servers: Vec<u32>,
    children: Vec<Child>,
    /// Goes last: the processes hold the devices.
    _replicas: Replicas,
}

/// Where and on what the replicas lie.
pub(crate) struct Place<'a> {
    /// Directory of everything.
    pub(crate) dir: &'a Path,
    /// Bytes of the volume.
    pub(crate) size: u64,
    /// Block devices over the files instead of the files: what a disk costs, not what a page cache
    /// does. Needs root.
    pub(crate) loops: bool,
}

/// Two files, or loop devices over them.
struct Replicas {
    files: [PathBuf; 2],
    devices: [PathBuf; 2],
}

impl Drop for Replicas {
    fn drop(&mut self) {
        for (device, file) in self.devices.iter().zip(&self.files) {
            if device != file {
                let _status = Command::new("losetup").arg("-d").arg(device).status();
            }
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// twinblk, protocol C, with arbitrator.
pub(crate) fn twinblk(place: &Place<'_>) -> Result<System> {
    start_twinblk(place, &["a", "b"])
}

/// The same resource with its peer never started: served by one replica, every block marked for the
/// peer.
pub(crate) fn twinblk_alone(place: &Place<'_>) -> Result<System> {
    start_twinblk(place, &["a"])
}

fn start_twinblk(place: &Place<'_>, replicas_up: &[&str]) -> Result<System> {
    let dir = place.dir;
    let ports = free_ports(3)?;
    let replicas = Replicas::make(place)?;
    let [disk_a, disk_b] = replicas.devices.each_ref().map(|path| path.display());
    let config = dir.join("etc");
    std::fs::create_dir_all(config.join("resources.d"))?;
    std::fs::write(
        config.join("twinblk.toml"),
        format!(
            "config-version = 1\n[cluster]\nname = \"bench\"\n\
             [node.a]\naddress = [\"127.0.0.1:{}\"]\n[node.b]\naddress = [\"127.0.0.1:{}\"]\n\
             [node.arb]\nrole = \"arbitrator\"\naddress = [\"127.0.0.1:{}\"]\n\
             [net]\ntls = \"off\"\n[metrics]\nlisten = \"\"\n",
            ports[0], ports[1], ports[2]
        ),
    )?;
    std::fs::write(
        config.join("resources.d/vol.toml"),
        format!(
            "[resource.vol]\n[[resource.vol.volume]]\nid = 0\n\
             disk = {{ a = \"{disk_a}\", b = \"{disk_b}\" }}\n\
             meta = {{ a = \"{0}/a.md\", b = \"{0}/b.md\" }}\n",
            dir.display()
        ),
    )?;
    let mut children = Vec::new();
    let data = replicas_up.iter().map(|node| (*node, "twinblkd"));
    for (node, program) in data.chain([("arb", "twinblk-arbitrator")]) {
        let mut command = Command::new(beside(program)?);
        command.arg("--config").arg(&config).args(["--node", node]);
        command.arg("--state-dir").arg(dir.join(node).join("state"));
        command.arg("--run-dir").arg(dir.join(node).join("run"));
        let log = File::create(dir.join(format!("{node}.log")))?;
        children.push(command.stdin(Stdio::null()).stderr(log).spawn()?);
    }
    for node in replicas_up {
        twinadm(dir, &config, node, &["create-md", "vol"])?;
        twinadm(dir, &config, node, &["up", "vol"])?;
    }
    twinadm(dir, &config, "a", &["primary", "vol"])?;
    let count = replicas_up.len();
    if count == 2 {
        twinadm(dir, &config, "a", &["wait-sync", "vol", "--timeout", "30s"])?;
    }
    let servers = children[..count].iter().map(Child::id).collect();
    let socket = dir.join("a/run/nbd/vol.sock");
    Ok(System {
        socket,
        export: "vol",
        images: replicas.files[..count].to_vec(),
        servers,
        children,
        _replicas: replicas,
    })
}

fn twinadm(dir: &Path, config: &Path, node: &str, verb: &[&str]) -> Result<()> {
    let output = Command::new(beside("twinadm")?)
        .arg("--config")
        .arg(config)
        .args(["--node", node, "--run-dir"])
        .arg(dir.join(node).join("run"))
        .args(verb)
        .output()?;
    if !output.status.success() {
        bail!(
            "twinadm {verb:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// A program built in the same profile as this benchmark: `cargo xtask bench-peers` builds all.
fn beside(program: &str) -> Result<PathBuf> {
    // Benchmarks lie in `deps/` below the programs of their profile.
    let ours = std::env::current_exe()?;
    let profile = ours
        .parent()
        .and_then(Path::parent)
        .context("target/PROFILE/deps/peers")?;
    let path = profile.join(program);
    if !path.exists() {
        bail!(
            "{program} is not built beside {}: cargo xtask bench-peers does",
            ours.display()
        );
    }
    Ok(path)
}

/// QEMU's mirror in write-blocking mode towards a second machine's qemu-nbd. The export must exist
/// on the source node before the mirror starts: attached afterwards it sits below the mirror's
/// filter, nothing is replicated, and it looks three times as fast.
pub(crate) fn qemu_mirror(place: &Place<'_>) -> Result<System> {
    let dir = place.dir;
    let replicas = Replicas::make(place)?;
    let driver = if place.loops { "host_device" } else { "file" };
    let port = free_ports(1)?[0];
    let mut children = Vec::new();
    let secondary = Command::new("qemu-nbd")
        .args([
            "-t",
            "-e",
            "8",
            "-f",
            "raw",
            "--cache=none",
            "--discard=unmap",
            "--aio=native",
        ])
        .args(["-b", "127.0.0.1", "-p", &port.to_string(), "-x", "dst"])
        .arg(&replicas.devices[1])
        .stdin(Stdio::null())
        .spawn()
        .context("qemu-nbd")?;
    children.push(secondary);
    wait_until("qemu-nbd listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    let (socket, monitor) = (dir.join("nbd.sock"), dir.join("qmp.sock"));
    let primary = Command::new("qemu-storage-daemon")
        .args(["--chardev", &format!("socket,id=m,path={},server=on,wait=off", monitor.display())])
        .args(["--monitor", "chardev=m"])
        .args(["--blockdev", &format!(
            "driver={driver},node-name=src,filename={},aio=native,cache.direct=on,discard=unmap",
            replicas.devices[0].display()
        )])
        .args(["--blockdev", &format!(
            "driver=nbd,node-name=dst,server.type=inet,server.host=127.0.0.1,server.port={port},export=dst"
        )])
        .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())])
        .args(["--export", "nbd,id=e,node-name=src,name=vol,writable=on"])
        .stdin(Stdio::null())
        .spawn()
        .context("qemu-storage-daemon")?;
    children.push(primary);
    wait_until("qemu-storage-daemon answers", || {
        monitor.exists() && socket.exists()
    })?;
    let mut qmp = Qmp::connect(&monitor)?;
    qmp.execute(r#"{"execute":"qmp_capabilities"}"#)?;
    qmp.execute(
        r#"{"execute":"blockdev-mirror","arguments":{"job-id":"m","device":"src","target":"dst","sync":"none","copy-mode":"write-blocking"}}"#,
    )?;
    let servers = vec![children[1].id(), children[0].id()];
    Ok(System {
        socket,
        export: "vol",
        images: replicas.files.to_vec(),
        servers,
        children,
        _replicas: replicas,
    })
}

/// qemu-nbd with Linux's native asynchronous I/O.
pub(crate) fn qemu_nbd_native(place: &Place<'_>) -> Result<System> {
    qemu_nbd(place, "native")
}

/// qemu-nbd with io_uring.
pub(crate) fn qemu_nbd_io_uring(place: &Place<'_>) -> Result<System> {
    qemu_nbd(place, "io_uring")
}

fn qemu_nbd(place: &Place<'_>, aio: &str) -> Result<System> {
    let replicas = Replicas::make(place)?;
    let socket = place.dir.join("nbd.sock");
    let server = Command::new("qemu-nbd")
        .args([
            "-t",
            "-f",
            "raw",
            "--cache=none",
            "--discard=unmap",
            "-x",
            "vol",
        ])
        .args([&format!("--aio={aio}"), "-k"])
        .args([&socket, &replicas.devices[0]])
        .stdin(Stdio::null())
        .spawn()
        .context("qemu-nbd")?;
    one_server(server, socket, vec![replicas.files[0].clone()], replicas)
}

/// nbdkit's plugin that keeps nothing: what a server costs that has no disk at all.
pub(crate) fn nbdkit_null(place: &Place<'_>) -> Result<System> {
    let replicas = Replicas {
        files: [PathBuf::new(), PathBuf::new()],
        devices: [PathBuf::new(), PathBuf::new()],
    };
    let socket = place.dir.join("nbd.sock");
    let server = Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(&socket)
        .args(["null", &place.size.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .context("nbdkit")?;
    one_server(server, socket, Vec::new(), replicas)
}

fn one_server(
    server: Child,
    socket: PathBuf,
    images: Vec<PathBuf>,
    replicas: Replicas,
) -> Result<System> {
    let system = System {
        export: "vol",
        images,
        servers: vec![server.id()],
        children: vec![server],
        _replicas: replicas,
        socket,
    };
    wait_until("the server answers", || {
        UnixStream::connect(&system.socket).is_ok()
    })?;
    Ok(system)
}

struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut qmp = Self(BufReader::new(stream));
        let mut greeting = String::new();
        qmp.0.read_line(&mut greeting)?;
        Ok(qmp)
    }

    fn execute(&mut self, command: &str) -> Result<()> {
        self.0
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            if line.contains("\"return\"") {
                return Ok(());
            }
            if line.is_empty() || line.contains("\"error\"") {
                bail!("{command}: {line}");
            }
        }
    }
}

impl Replicas {
    /// Both written once in full, so that no system allocates while it is measured.
    fn make(place: &Place<'_>) -> Result<Self> {
        let files = [place.dir.join("a.img"), place.dir.join("b.img")];
        for path in &files {
            let mut file = File::create(path)?;
            let chunk = vec![0u8; 1 << 20];
            for _ in 0..place.size >> 20 {
                file.write_all(&chunk)?;
            }
            file.sync_all()?;
        }
        let mut replicas = Self {
            devices: files.clone(),
            files,
        };
        if place.loops {
            for (device, file) in replicas.devices.iter_mut().zip(&replicas.files) {
                *device = loop_device(file)?;
            }
        }
        Ok(replicas)
    }
}

fn loop_device(file: &Path) -> Result<PathBuf> {
    let output = Command::new("losetup")
        .args(["--direct-io=on", "--show", "-f"])
        .arg(file)
        .output()
        .context("losetup")?;
    if !output.status.success() {
        bail!("losetup: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    held.iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

fn wait_until(what: &str, ready: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ready() {
        if Instant::now() > deadline {
            bail!("gave up waiting: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
