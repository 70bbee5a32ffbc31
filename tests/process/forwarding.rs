//! A Secondary that passes its NBD clients on to the Primary.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nbd_frontend::ClientCommand;

use crate::cluster::{A, B, Cluster, PATIENCE, RES, Setup};
use crate::nbd::{Nbd, NbdFailure};
use crate::tools::{have, now, program, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

fn serving() -> Cluster {
    Cluster::serving(&Setup {
        resource: "forward = true\n",
        ..Setup::default()
    })
}

fn attach(cluster: &Cluster, node: usize) -> Result<Nbd, NbdFailure> {
    Nbd::attach(&cluster.nbd_socket(node), RES, LIMIT)
}

/// A process of its own between this one, which is older than any daemon it starts, and a socket: to the
/// daemon it is a new guest.
struct Carrier {
    process: Child,
    socket: PathBuf,
}

const CARRY_FROM: &str = "TWINBLK_TEST_CARRY_FROM";
const CARRY_TO: &str = "TWINBLK_TEST_CARRY_TO";

impl Carrier {
    fn new(cluster: &Cluster, node: usize) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let nr = COUNTER.fetch_add(1, Ordering::Relaxed);
        let socket = cluster.dir.join(format!("carrier-{nr}"));
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "forwarding::carry", "--ignored"])
            .env(CARRY_FROM, &socket)
            .env(CARRY_TO, cluster.nbd_socket(node))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the carrier listens", PATIENCE, || {
            socket.exists().then_some(())
        });
        Self { process, socket }
    }

    fn attach(&self) -> Result<Nbd, NbdFailure> {
        Nbd::attach(&self.socket, RES, LIMIT)
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The other process of [`Carrier`]; no test by itself.
#[test]
#[ignore = "started by the tests that need another process"]
fn carry() {
    let (Some(from), Some(to)) = (std::env::var_os(CARRY_FROM), std::env::var_os(CARRY_TO)) else {
        return;
    };
    let listener = UnixListener::bind(Path::new(&from)).unwrap();
    for client in listener.incoming() {
        let (client, server) = (
            client.unwrap(),
            UnixStream::connect(Path::new(&to)).unwrap(),
        );
        let (reader, writer) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || pour(reader, writer));
        std::thread::spawn(move || pour(server, client));
    }
}

fn pour(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = from.read(&mut buffer)
        && to.write_all(&buffer[..count]).is_ok()
    {}
    to.shutdown(Shutdown::Write).ok();
}

/// What a client of the Secondary writes is on both replicas, and both nodes' clients see one volume.
#[test]
fn a_client_of_the_secondary_works_on_the_primarys_volume() {
    let cluster = serving();
    let carrier = Carrier::new(&cluster, B);
    let mut here = attach(&cluster, A).unwrap();
    let mut there = carrier.attach().unwrap();
    there.write(4096, &[0x21; 8192]).unwrap();
    assert_eq!(here.read(4096, 8192).unwrap(), [0x21; 8192]);
    here.write(8192, &[0x22; 4096]).unwrap();
    assert_eq!(there.read(8192, 4096).unwrap(), [0x22; 4096]);
    // More than one buffer of the way, in both directions.
    let long: Vec<u8> = (0..5 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    there.write(16 << 20, &long).unwrap();
    assert_eq!(there.read(16 << 20, 5 << 20).unwrap(), long);
    there.flush().unwrap();
    for node in [A, B] {
        let disk = std::fs::read(cluster.disk(node)).unwrap();
        assert!(disk[16 << 20..21 << 20] == long, "replica of {node}");
    }
    let clients = |node| {
        let status = cluster.status(node)?;
        status["volumes"][0]["nbd_clients"].as_u64()
    };
    wait_for("both count their clients", PATIENCE, || {
        ((clients(A), clients(B)) == (Some(2), Some(1))).then_some(())
    });
    // `down` there waits for the client, as on the Primary, and names it.
    let refused = cluster.adm(B, &["down", RES]).exits(4);
    let its = format!("process {}", carrier.process.id());
    assert!(refused.contains(&its), "{refused}");
    // The Primary knows that one of its clients is not here.
    let refused = cluster.adm(A, &["secondary", RES]).exits(4);
    assert!(refused.contains("passed on by the peer"), "{refused}");
    // Closed in order, it is counted no more.
    drop(there);
    wait_for("it has left", PATIENCE, || {
        ((clients(A), clients(B)) == (Some(1), Some(0))).then_some(())
    });
}

/// Real clients, each a new process, do not notice.
#[test]
fn programs_work_through_the_secondary() {
    if !have(&["qemu-img", "fio"]) {
        return;
    }
    let cluster = serving();
    let uri = cluster.nbd_uri(B);
    let verified = program(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--size=8m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ],
    )
    .ok();
    assert!(verified.contains("err= 0"), "{verified}");
    let primary = cluster.nbd_uri(A);
    let compare = ["compare", "-f", "raw", "-F", "raw", &uri, &primary];
    program("qemu-img", &compare).ok();
}

/// A guest that was served here when this node was superseded is not passed on: another copy of it may
/// run where the volume is now. One that is started anew is.
#[test]
fn whoever_was_superseded_is_not_passed_on() {
    let mut cluster = serving();
    let old = Carrier::new(&cluster, A);
    old.attach().unwrap().write(0, &[0x41; 4096]).unwrap();
    cluster.kill(A);
    let on_b = wait_for("the survivor serves", PATIENCE, || attach(&cluster, B).ok());
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
    // Its reconnect delay is long, and its disk has moved on.
    let refused = old.attach().err();
    assert!(
        matches!(refused, Some(NbdFailure::Closed(_))),
        "{refused:?}"
    );
    let new = Carrier::new(&cluster, A);
    assert_eq!(new.attach().unwrap().read(0, 4096).unwrap(), [0x41; 4096]);
    // The same when the roles change in order: what it has in flight is not known here.
    drop(on_b);
    let guest = Carrier::new(&cluster, B);
    guest.attach().unwrap().write(0, &[0x42; 4096]).unwrap();
    cluster.adm(B, &["secondary", RES, "--force"]).ok();
    cluster.adm(A, &["primary", RES]).ok();
    guest.attach().err().unwrap();
    let guest = Carrier::new(&cluster, B);
    assert_eq!(guest.attach().unwrap().read(0, 4096).unwrap(), [0x42; 4096]);
}

/// Whoever was passed on is cut off when the Primary dies, and finds the volume where it is then.
#[test]
fn a_takeover_cuts_those_who_were_passed_on() {
    let mut cluster = serving();
    let carrier = Carrier::new(&cluster, B);
    let mut there = carrier.attach().unwrap();
    there.write(0, &[0x31; 4096]).unwrap();
    cluster.kill(A);
    let ended = there.read(0, 4096).unwrap_err();
    assert!(matches!(ended, NbdFailure::Closed(_)), "{ended:?}");
    // Nobody serves yet: refused at once, not left waiting.
    let begun = now();
    let early = carrier.attach();
    assert!(begun.elapsed() < Duration::from_millis(1500));
    drop(early);
    let mut own = wait_for("the survivor serves", PATIENCE, || carrier.attach().ok());
    assert_eq!(own.read(0, 4096).unwrap(), [0x31; 4096]);
    own.write(0, &[0x32; 4096]).unwrap();
}

/// A client that does not read its answers costs the others nothing, for however long.
#[test]
fn a_client_that_does_not_read_holds_up_itself_alone() {
    let cluster = serving();
    let carrier = Carrier::new(&cluster, B);
    let mut idle = carrier.attach().unwrap();
    for _ in 0..32 {
        let (offset, len) = (0, 1 << 20);
        idle.submit(ClientCommand::Read { offset, len }).unwrap();
    }
    idle.send().unwrap();
    let mut other = carrier.attach().unwrap();
    // Longer than an unanswered request passed on to another node is waited for.
    let begun = now();
    let mut nr = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        nr += 1;
        other.write(nr % 1000 * 4096, &[9; 4096]).unwrap();
    }
    for _ in 0..32 {
        assert!(idle.answer().unwrap().result.is_ok());
    }
}

/// Without the key nobody is passed on.
#[test]
fn without_the_key_a_secondary_refuses() {
    let cluster = Cluster::serving(&Setup::default());
    assert!(Carrier::new(&cluster, B).attach().is_err());
}
