//! A daemon that starts again under running guests: `reexec`, stop and start, the service manager's
//! store of descriptors, and its socket units.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use replicator::io::inherited;

use crate::cluster::{A, B, Cluster, PATIENCE, RES, Setup, Tcp};
use crate::nbd::{Nbd, NbdFailure};
use crate::tools::{have, now, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
/// How long a client waits for the daemon to serve again.
const RETURN_PATIENCE: Duration = Duration::from_millis(900);
const BLOCK: usize = 4096;
const BLOCKS: usize = 256;

/// A guest: writes one block after the other, and after a lost connection sends again what was not
/// answered, as QEMU does.
struct Guest {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<Outcome>,
}

/// What a guest saw.
#[derive(Default)]
struct Outcome {
    /// The number last written to each block.
    model: Vec<Option<u64>>,
    reconnects: usize,
    /// Nobody listened on the socket.
    refused: usize,
    /// Somebody did, and did not serve.
    turned_away: usize,
}

impl Guest {
    fn start(socket: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let (stopping, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = thread::spawn(move || run(&socket, &stopping, &count));
        Self {
            stop,
            written,
            thread,
        }
    }

    /// Waits until it has written some more.
    fn goes_on(&self) {
        let before = self.written.load(Ordering::Relaxed);
        wait_for("the guest writes", LIMIT, || {
            (self.written.load(Ordering::Relaxed) > before + 50).then_some(())
        });
    }

    fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Connects by TCP, again and again.
struct Knocker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Knocker {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let knock = move || {
            let mut refused = 0;
            while !stopping.load(Ordering::Relaxed) {
                let mut greeting = [0; 18];
                match TcpStream::connect(address) {
                    // Answered, or cut off in the middle.
                    Ok(mut stream) => drop(stream.read(&mut greeting)),
                    Err(error) => {
                        refused += usize::from(error.kind() == ErrorKind::ConnectionRefused);
                    }
                }
                thread::park_timeout(Duration::from_millis(2));
            }
            refused
        };
        let thread = thread::spawn(knock);
        Self { stop, thread }
    }

    /// How often it was refused.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn run(socket: &Path, stop: &AtomicBool, written: &AtomicU64) -> Outcome {
    let mut outcome = Outcome {
        model: vec![None; BLOCKS],
        ..Outcome::default()
    };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut nbd = match Nbd::attach(socket, RES, LIMIT) {
            Ok(nbd) => nbd,
            Err(failure) => {
                let nobody =
                    matches!(&failure, NbdFailure::Closed(why) if why.contains("os error"));
                outcome.refused += usize::from(nobody);
                outcome.turned_away += usize::from(!nobody);
                thread::yield_now();
                continue;
            }
        };
        outcome.reconnects += 1;
        while !stop.load(Ordering::Relaxed) {
            let block = usize::try_from(number).unwrap() % BLOCKS;
            match nbd.write((block * BLOCK) as u64, &content(number)) {
                Ok(()) => {}
                Err(NbdFailure::Closed(why)) => {
                    assert!(
                        !why.contains("answered"),
                        "an error reached the guest: {why}"
                    );
                    break;
                }
                Err(NbdFailure::Silent) => panic!("write {number} was not answered"),
            }
            outcome.model[block] = Some(number);
            number += 1;
            written.store(number, Ordering::Relaxed);
        }
    }
    outcome
}

fn content(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    block
}

fn holds(cluster: &Cluster, outcome: &Outcome) {
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    for (block, number) in outcome.model.iter().enumerate() {
        let Some(number) = number else { continue };
        let found = nbd.read((block * BLOCK) as u64, 4096).unwrap();
        assert!(found == content(*number), "block {block}, write {number}");
    }
}

fn descriptors(cluster: &Cluster) -> usize {
    let dir = format!("/proc/{}/fd", cluster.pid(A));
    fs::read_dir(dir).unwrap().count()
}

/// Story: `twinblkd` is upgraded while a guest writes. Its program is started again twice, and then it
/// is stopped and started the long way; the guest reconnects and never sees an error, and the peer is
/// brought up to date by what changed alone.
#[test]
fn a_guest_that_writes_sees_no_error_when_the_daemon_starts_again() {
    let mut cluster = Cluster::serving(&Setup {
        timing: "default",
        tcp: Tcp::Clear,
        ..Setup::default()
    });
    let plan = cluster.adm(A, &["reexec", "--dry-run"]);
    assert!(
        plan.code == Some(14) && plan.stdout.contains(RES),
        "{plan:?}"
    );
    // On a busy machine the peer may be faster than a start; what is asked here is the start.
    cluster
        .adm(B, &["maintenance", "on", "--node", "kvm-b"])
        .ok();
    let guest = Guest::start(cluster.nbd_socket(A));
    guest.goes_on();
    let (pid, before) = (cluster.pid(A), descriptors(&cluster));
    let knocker = Knocker::start(cluster.nbd_address(A));
    let mut in_time = true;
    for _ in 0..2 {
        let begun = now();
        let again = cluster.adm(A, &["reexec"]);
        in_time &= begun.elapsed() < RETURN_PATIENCE;
        println!("{} in {:?}", again.stderr.trim(), begun.elapsed());
        assert_eq!(again.code, Some(0), "{again:?}\n{}", cluster.logs());
        assert!(again.stderr.contains(RES), "{again:?}");
        guest.goes_on();
    }
    assert_eq!(knocker.end(), 0, "somebody found nobody listening by TCP");
    assert!(
        Path::new(&format!("/proc/{pid}")).exists(),
        "it is the same process"
    );
    wait_for("nothing more is open than before", PATIENCE, || {
        (descriptors(&cluster) <= before).then_some(())
    });
    // Files that no daemon would start with: nothing happens.
    let broken = cluster.dir.join("etc/resources.d/zz.toml");
    fs::write(&broken, "[resource.zz]\nprefered = 1\n").unwrap();
    let refused = cluster.adm(A, &["reexec"]).exits(4);
    assert!(
        refused.contains("E0454") && refused.contains("E0103"),
        "{refused}"
    );
    fs::remove_file(&broken).unwrap();
    guest.goes_on();
    let seen = guest.end();
    assert_eq!(
        (seen.refused, seen.reconnects),
        (0, 3),
        "{}",
        cluster.logs()
    );
    // QEMU would come back a second later; on a busy machine a start may take longer than clients wait.
    assert!(!in_time || seen.turned_away == 0, "{}", cluster.logs());
    holds(&cluster, &seen);
    let status = cluster.wait_both_up_to_date(A);
    let last = &status["peers"][0]["volumes"][0]["last_resync"];
    assert!(last["copied_bytes"].as_u64().unwrap() <= 16 << 20, "{last}");

    let guest = Guest::start(cluster.nbd_socket(A));
    guest.goes_on();
    cluster.terminate(A, LIMIT);
    cluster.start(A);
    guest.goes_on();
    let seen = guest.end();
    assert_eq!(seen.reconnects, 2, "{}", cluster.logs());
    holds(&cluster, &seen);
    cluster.wait_both_up_to_date(A);
    for node in [B, crate::cluster::ARBITRATOR] {
        cluster.adm(node, &["reexec"]).ok();
    }
    cluster.wait_both_up_to_date(A);
}

/// Takes what the daemon gives the service manager to keep: the socket and its name.
fn next_kept(manager: &UnixDatagram) -> (String, OwnedFd) {
    loop {
        let mut text = [0; 512];
        let mut control = nix::cmsg_space!([i32; 4]);
        let mut pieces = [std::io::IoSliceMut::new(&mut text)];
        let raw = manager.as_fd().as_raw_fd();
        let got = recvmsg::<()>(raw, &mut pieces, Some(&mut control), MsgFlags::empty()).unwrap();
        let fds = got.cmsgs().unwrap().find_map(|it| match it {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let len = got.bytes;
        let state = String::from_utf8_lossy(&text[..len]).into_owned();
        if let Some(fd) = fds {
            let name = state.lines().find_map(|line| line.strip_prefix("FDNAME="));
            assert!(state.contains("FDSTORE=1"), "{state}");
            return (name.unwrap().to_owned(), inherited::take(fd).unwrap());
        }
    }
}

/// Story: `systemctl restart`. The manager keeps the socket in between; who comes meanwhile waits in it.
#[test]
fn a_client_waits_in_the_socket_that_the_service_manager_keeps() {
    if !have(&["bash"]) {
        return;
    }
    let mut cluster = Cluster::serving(&Setup {
        timing: "default",
        ..Setup::default()
    });
    let path = cluster.dir.join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    // Nobody takes over: what is asked here is what the sockets do.
    cluster
        .adm(B, &["maintenance", "on", "--node", "kvm-b"])
        .ok();
    cluster.kill(A);
    cluster.start_with(A, |daemon| {
        daemon.env("NOTIFY_SOCKET", &path).env("FDSTORE", "16")
    });
    let (name, socket) = next_kept(&manager);
    let mut guest = wait_for("it serves", PATIENCE, || {
        Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).ok()
    });
    guest.write(0, &[5; 512]).unwrap();
    cluster.terminate(A, LIMIT);
    assert!(guest.read(0, 512).is_err());
    let at = cluster.nbd_socket(A);
    let waiting = thread::spawn(move || Nbd::attach(&at, RES, LIMIT));
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let script = format!(
        "exec 3<&{}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name}; exec \"$@\"",
        socket.as_raw_fd()
    );
    cluster.start_with(A, |daemon| {
        wrap(daemon, &["bash", "-c", &script, "manager"])
    });
    let mut guest = waiting.join().unwrap().unwrap();
    assert_eq!(guest.read(0, 512).unwrap(), [5; 512]);
    drop((guest, socket));
    cluster.adm(A, &["down", RES]).ok();
    assert!(
        !cluster.nbd_socket(A).exists(),
        "its path goes with the resource"
    );
}

/// Has `words` start the command.
fn wrap<'a>(command: &'a mut Command, words: &[&str]) -> &'a mut Command {
    let mut wrapped = Command::new(words[0]);
    wrapped
        .args(&words[1..])
        .arg(command.get_program())
        .args(command.get_args());
    *command = wrapped;
    command
}

/// Story: a socket unit. The first client starts the daemon, and the socket outlives `down`: who comes
/// then is sent away at once.
#[test]
fn a_socket_of_the_service_manager_starts_the_daemon_and_stays() {
    if !have(&["systemd-socket-activate"]) {
        return;
    }
    let mut cluster = Cluster::serving(&Setup {
        timing: "default",
        ..Setup::default()
    });
    cluster
        .adm(B, &["maintenance", "on", "--node", "kvm-b"])
        .ok();
    cluster.kill(A);
    let socket = cluster.nbd_socket(A);
    let listen = format!("--listen={}", socket.display());
    cluster.start_with(A, |daemon| {
        wrap(
            daemon,
            &["systemd-socket-activate", &listen, "--fdname=vm-web"],
        )
    });
    let mut guest = wait_for("the first client is served", PATIENCE, || {
        Nbd::attach(&socket, RES, LIMIT).ok()
    });
    guest.write(0, &[6; 512]).unwrap();
    drop(guest);
    cluster.wait_status(A, "it is reached", |status| status["role"] == "Primary");
    cluster.adm(A, &["reexec"]).ok();
    let mut guest = Nbd::attach(&socket, RES, LIMIT).unwrap();
    assert_eq!(guest.read(0, 512).unwrap(), [6; 512]);
    drop(guest);
    cluster.adm(A, &["down", RES]).ok();
    assert!(socket.exists(), "it is not ours");
    let begun = now();
    assert!(matches!(
        Nbd::attach(&socket, RES, LIMIT),
        Err(NbdFailure::Closed(_))
    ));
    assert!(begun.elapsed() < LIMIT);
    cluster.adm(A, &["up", RES]).ok();
    cluster.adm(A, &["primary", RES]).ok();
    let mut guest = Nbd::attach(&socket, RES, LIMIT).unwrap();
    assert_eq!(guest.read(0, 512).unwrap(), [6; 512]);
}
