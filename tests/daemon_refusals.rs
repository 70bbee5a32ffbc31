//! Daemons as processes: what they refuse to start with, how they say so, and how they stop.

// SPDX-License-Identifier: MIT OR Apache-2.0

#![cfg(feature = "daemon")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator::admin::{Response, Status};
use replicator::io::clock;

/// How long a process may take for what it should do at once; only a broken one takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with a configuration of three nodes on loopback, gone afterwards.
struct Lab {
    dir: PathBuf,
    addresses: [SocketAddr; 3],
}

impl Lab {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("twinblk-{name}-{}", std::process::id()));
        fs::create_dir(&dir).expect("a fresh directory");
        let lab = Self {
            dir,
            addresses: own_addresses(),
        };
        let [a, b, t] = lab.addresses;
        lab.write_config(&format!(
            r#"
config-version = 1
[cluster]
name = "lab"
[net]
tls = "off"
[node.kvm-a]
address = ["{a}"]
[node.kvm-b]
address = ["{b}"]
[node.arb]
role = "arbitrator"
address = ["{t}"]
"#
        ));
        lab
    }

    fn write_config(&self, text: &str) {
        fs::create_dir_all(self.dir.join("etc/resources.d")).expect("a directory");
        fs::write(self.dir.join("etc/twinblk.toml"), text).expect("a file");
    }

    fn command(&self, program: Program, node: &str) -> Command {
        let mut command = Command::new(program.path());
        command
            .arg("--config")
            .arg(self.dir.join("etc"))
            .args(["--node", node])
            .arg("--state-dir")
            .arg(self.dir.join(format!("state-{node}")))
            .arg("--run-dir")
            .arg(self.dir.join(format!("run-{node}")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.dir.join(format!("run-{node}/control.sock"))
    }

    fn start(&self, program: Program, node: &str) -> Daemon {
        let child = self
            .command(program, node)
            .spawn()
            .expect("the program runs");
        let daemon = Daemon {
            child,
            socket: self.socket(node),
        };
        daemon.wait_ready();
        daemon
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

#[derive(Clone, Copy)]
enum Program {
    Daemon,
    Arbitrator,
}

impl Program {
    fn path(self) -> &'static str {
        match self {
            Self::Daemon => env!("CARGO_BIN_EXE_twinblkd"),
            Self::Arbitrator => env!("CARGO_BIN_EXE_twinblk-arbitrator"),
        }
    }
}

/// Three loopback addresses that no other test of this machine uses: the process and a counter
/// are in them, so that no port has to be guessed.
fn own_addresses() -> [SocketAddr; 3] {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let first = NEXT.fetch_add(3, Ordering::Relaxed);
    [0, 1, 2].map(|index| SocketAddr::from(([127, high | 0x80, low, first + index], 7790)))
}

/// A daemon of this test; killed with it.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn wait_ready(&self) {
        let deadline = clock::now().plus(PATIENCE);
        while self.ask(r#"{"verb":"version"}"#).is_none() {
            assert!(
                clock::now() < deadline,
                "{} does not answer",
                self.socket.display()
            );
            std::thread::yield_now();
        }
    }

    /// The last line of the answer.
    fn ask(&self, request: &str) -> Option<Response> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.lines().last()?).ok()
    }

    fn status(&self) -> Status {
        match self.ask(r#"{"verb":"status"}"#) {
            Some(Response::Status(status)) => *status,
            other => panic!("a status, not {other:?}"),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }

    fn wait(mut self) -> (Option<i32>, String) {
        let deadline = clock::now().plus(PATIENCE);
        let status = loop {
            match self.child.try_wait().expect("our own child") {
                Some(status) => break status,
                None => assert!(clock::now() < deadline, "it does not end"),
            }
            std::thread::yield_now();
        };
        let mut text = String::new();
        let stderr = self.child.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut text).expect("UTF-8");
        (status.code(), text)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs a daemon that must not start: its exit code and what it said.
fn refusal(command: &mut Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program runs");
    assert!(stdout.is_empty(), "refusals go to stderr");
    let text = String::from_utf8(stderr).expect("UTF-8");
    assert!(!text.contains("panicked"), "{text}");
    (status.code(), text)
}

/// A refusal must say what to do next and leave no socket behind.
fn assert_refused(lab: &Lab, program: Program, node: &str, exit: i32, words: &[&str]) {
    let (code, text) = refusal(&mut lab.command(program, node));
    assert_eq!(code, Some(exit), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in:\n{text}");
    }
    assert!(!lab.socket(node).exists());
}

#[test]
fn a_mistake_in_the_configuration_is_exit_3_with_its_place() {
    let lab = Lab::new("bad-config");
    lab.write_config("config-version = 1\n[cluster]\nname = \"lab\"\n[node.a]\nadress = []\n");
    assert_refused(
        &lab,
        Program::Daemon,
        "a",
        3,
        &["E0103", "twinblk.toml:5", "address"],
    );
    lab.write_config("config-version = ");
    assert_refused(&lab, Program::Arbitrator, "arb", 3, &["E0102"]);
    fs::remove_file(lab.dir.join("etc/twinblk.toml")).unwrap();
    assert_refused(&lab, Program::Daemon, "a", 3, &["twinblk.toml"]);
}

#[test]
fn a_node_that_is_not_configured_or_has_the_other_role_is_exit_3() {
    let lab = Lab::new("bad-node");
    assert_refused(
        &lab,
        Program::Daemon,
        "kvm-c",
        3,
        &["kvm-c", "kvm-a", "--node"],
    );
    assert_refused(&lab, Program::Daemon, "arb", 3, &["twinblk-arbitrator"]);
    assert_refused(&lab, Program::Arbitrator, "kvm-a", 3, &["twinblkd"]);
}

#[test]
fn a_cluster_that_must_be_encrypted_but_has_no_keys_does_not_start() {
    let lab = Lab::new("no-keys");
    let text = fs::read_to_string(lab.dir.join("etc/twinblk.toml")).unwrap();
    lab.write_config(&text.replace("\"off\"", "\"required\""));
    assert_refused(&lab, Program::Daemon, "kvm-a", 3, &["TLS", "next"]);
}

#[test]
fn a_taken_address_is_exit_1_and_named_whether_tcp_or_udp() {
    let lab = Lab::new("taken");
    let [a, _, t] = lab.addresses;
    let tcp = TcpListener::bind(a).unwrap();
    assert_refused(&lab, Program::Daemon, "kvm-a", 1, &[&format!("{a}"), "TCP"]);
    drop(tcp);
    let _udp = UdpSocket::bind(t).unwrap();
    assert_refused(
        &lab,
        Program::Arbitrator,
        "arb",
        1,
        &[&format!("{t}"), "UDP"],
    );
}

#[test]
fn a_directory_without_permission_is_exit_8() {
    if nix::unistd::Uid::effective().is_root() {
        // Root may write everywhere but where nobody can: the refusal is tested as another user.
        refused_as_nobody();
        return;
    }
    let lab = Lab::new("no-permission");
    lock_state_dir(&lab);
    assert_refused(&lab, Program::Daemon, "kvm-a", 8, &["state-kvm-a", "E0801"]);
}

fn lock_state_dir(lab: &Lab) {
    let state = lab.dir.join("state-kvm-a");
    fs::create_dir(&state).expect("our own files");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o000)).expect("our own files");
}

fn refused_as_nobody() {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let lab = Lab::new("no-permission");
    lock_state_dir(&lab);
    fs::set_permissions(&lab.dir, fs::Permissions::from_mode(0o777)).expect("our own files");
    // The test's binary may lie where only root can look.
    let program = lab.dir.join("twinblkd");
    fs::copy(Program::Daemon.path(), &program).expect("our own files");
    let template = lab.command(Program::Daemon, "kvm-a");
    let mut command = Command::new(&program);
    command.args(template.get_args()).uid(NOBODY).gid(NOBODY);
    let (code, text) = refusal(&mut command);
    assert_eq!(code, Some(8), "{text}");
    assert!(
        text.contains("state-kvm-a") && text.contains("E0801"),
        "{text}"
    );
}

#[test]
fn wrong_arguments_are_exit_2_and_help_is_exit_0() {
    let lab = Lab::new("arguments");
    let (code, text) = refusal(lab.command(Program::Daemon, "kvm-a").arg("--bogus"));
    assert_eq!(code, Some(2));
    assert!(text.contains("--bogus"), "{text}");
    for flag in ["--help", "--version"] {
        let output = Command::new(Program::Arbitrator.path())
            .arg(flag)
            .output()
            .unwrap();
        assert!(output.status.success() && !output.stdout.is_empty());
    }
}

#[test]
fn a_second_daemon_on_the_same_directories_or_node_is_refused() {
    let lab = Lab::new("second");
    let first = lab.start(Program::Arbitrator, "arb");
    // Its address is looked at first: the same node twice is what the clash means.
    let (code, text) = refusal(&mut lab.command(Program::Arbitrator, "arb"));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        first.ask(r#"{"verb":"version"}"#).is_some(),
        "the first one is not disturbed"
    );
    let mut other = Command::new(Program::Daemon.path());
    other
        .arg("--config")
        .arg(lab.dir.join("etc"))
        .args(["--node", "kvm-a"]);
    other.arg("--state-dir").arg(lab.dir.join("state-arb"));
    other.arg("--run-dir").arg(lab.dir.join("run-kvm-a"));
    let (code, text) = refusal(&mut other);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("state-arb") && text.contains("in use"),
        "{text}"
    );
}

#[test]
fn a_store_of_another_node_or_a_damaged_one_is_refused_and_kept() {
    let lab = Lab::new("store");
    let daemon = lab.start(Program::Arbitrator, "arb");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    fs::rename(lab.dir.join("state-arb"), lab.dir.join("state-kvm-a")).unwrap();
    assert_refused(
        &lab,
        Program::Daemon,
        "kvm-a",
        1,
        &["belongs to node arb", "--state-dir"],
    );
    let path = lab.dir.join("state-kvm-a/voter-store");
    fs::write(&path, vec![0xa5; 65_536]).unwrap();
    assert_refused(
        &lab,
        Program::Daemon,
        "kvm-a",
        1,
        &["E1006", "voter-store", "next"],
    );
    assert_eq!(fs::read(&path).unwrap(), vec![0xa5; 65_536]);
}

#[test]
fn the_arbitrator_answers_sends_connections_away_and_stops_on_sigterm() {
    let lab = Lab::new("arbitrator");
    let daemon = lab.start(Program::Arbitrator, "arb");
    let status = daemon.status();
    assert_eq!(status.node, "arb");
    assert_eq!(status.cluster.name, "lab");
    assert!(status.resources.is_empty());
    let mut stream = TcpStream::connect(lab.addresses[2]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(
        stream.read(&mut [0; 1]).unwrap_or(0),
        0,
        "it has no data link"
    );
    match daemon.ask(r#"{"verb":"primary","resource":"vm"}"#) {
        Some(Response::Error(report)) => assert_eq!(report.exit, 4, "{report:?}"),
        other => panic!("a refusal, not {other:?}"),
    }
    let socket = daemon.socket.clone();
    daemon.signal(Signal::SIGTERM);
    let (code, text) = daemon.wait();
    assert_eq!(code, Some(0), "{text}");
    assert!(!socket.exists());
}

#[test]
fn the_arbitrator_stays_below_ten_mebibytes() {
    // A program that is not optimised has three times the code; its pages are the page cache's.
    const RSS_MAX_KIB: u64 = if cfg!(debug_assertions) { 14 } else { 10 } * 1024;
    const ANONYMOUS_MAX_KIB: u64 = 3 * 1024;
    let lab = Lab::new("rss");
    let daemon = lab.start(Program::Arbitrator, "arb");
    for _ in 0..100 {
        daemon.status();
    }
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.expect(name).trim().trim_end_matches(" kB");
        number.parse().expect("a number")
    };
    let (all, own) = (kib("VmRSS:"), kib("RssAnon:"));
    assert!(all < RSS_MAX_KIB, "VmRSS is {all} KiB");
    assert!(own < ANONYMOUS_MAX_KIB, "RssAnon is {own} KiB");
}

#[test]
fn left_overs_of_a_killed_daemon_are_replaced() {
    let lab = Lab::new("left-over");
    let daemon = lab.start(Program::Arbitrator, "arb");
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(lab.socket("arb").exists(), "nobody could clean up");
    let again = lab.start(Program::Arbitrator, "arb");
    assert_eq!(again.status().node, "arb");
}
