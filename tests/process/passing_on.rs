//! `--node N` for a node other than the one whose daemon is asked: the daemon passes it on.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use replicator::admin::REQUEST_LEN_MAX;
use replicator::protocol::{PREAMBLE_REPLY_LEN, RelayPreamble, VersionRange};
use replicator::types::{NodeId, ResourceId};
use serde_json::Value;

use crate::cluster::{A, ARBITRATOR, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{Ran, am_root, have, now, run, twinadm, wait_for};

/// How long a node that is not there may keep an operator waiting: connecting is tried for 3 s at
/// most, and the machine is busy.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(5);

/// What a daemon passes on at once.
const RELAYS_MAX: usize = 16;

const LIMIT: Duration = Duration::from_secs(5);

fn command(cluster: &Cluster, asked: usize, about: &str, words: &[&str]) -> Command {
    let mut command = Command::new(twinadm());
    command
        .arg("--config")
        .arg(cluster.dir.join("etc"))
        .arg("--run-dir")
        .arg(cluster.run_dir(asked))
        .args(["--node", about])
        .args(words);
    command
}

/// Asks the daemon of `asked` about `about`.
fn through(cluster: &Cluster, asked: usize, about: usize, words: &[&str]) -> Ran {
    run(&mut command(cluster, asked, NAMES[about], words))
}

#[track_caller]
fn status(cluster: &Cluster, asked: usize, about: usize) -> Value {
    let text = through(cluster, asked, about, &["status", "--json"]).ok();
    serde_json::from_str(&text).expect("status --json is JSON")
}

/// A program that goes on; ended with the test.
struct Watcher {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watcher {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads on to a line with all of `words`; a stream that ends first fails the test, and one
    /// that stays silent is ended by the test's own time limit.
    #[track_caller]
    fn until(&mut self, words: &[&str]) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let count = self.lines.read_line(&mut line).unwrap();
            assert!(count > 0, "no line with {words:?} in:\n{seen}");
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            seen.push_str(&line);
        }
    }

    /// Exit code and stderr once it ended by itself.
    fn end(mut self) -> (Option<i32>, String) {
        let status = wait_for("the watcher ends", PATIENCE, || {
            self.child.try_wait().unwrap()
        });
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        (status.code(), text)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Every verb that a daemon answers works from the other node, the arbitrator's included, and from
/// the arbitrator; what is changed is changed there.
#[test]
fn a_request_about_another_node_is_answered_by_that_node() {
    let cluster = Cluster::serving(&Setup::default());
    for asked in [A, B, ARBITRATOR] {
        for about in [A, B, ARBITRATOR] {
            let whole = status(&cluster, asked, about);
            assert_eq!(whole["node"], NAMES[about], "asked {}", NAMES[asked]);
        }
    }
    let role = |about| through(&cluster, A, about, &["role", RES]).ok();
    assert_eq!([role(A).trim(), role(B).trim()], ["Primary", "Secondary"]);
    let version = through(&cluster, A, ARBITRATOR, &["version"]).ok();
    assert!(
        version.contains("twinblk-arbitrator") && version.contains("on arb"),
        "{version}"
    );
    through(&cluster, B, A, &["wait-connect", RES]).ok();
    through(&cluster, A, B, &["wait-sync", RES]).ok();
    assert!(
        through(&cluster, A, ARBITRATOR, &["up", RES])
            .exits(4)
            .contains("E0414")
    );

    // The other node's own refusal, its progress, and its exit code.
    let words = through(&cluster, A, B, &["primary", RES]).exits(4);
    assert!(words.contains("E0412"), "{words}");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[1; 4096]).unwrap();
    drop(nbd);
    through(&cluster, B, A, &["secondary", RES]).ok();
    through(&cluster, A, B, &["primary", RES]).ok();
    cluster.wait_both_up_to_date(B);
    let plan = through(&cluster, A, B, &["-n", "down", RES]);
    assert_eq!(plan.code, Some(14), "{plan:?}");
    let mut nbd = Nbd::attach(&cluster.nbd_socket(B), RES, LIMIT).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [1; 4096]);
}

/// Both data nodes died and one is back: `primary` there, asked for on the arbitrator's machine, has
/// to wait until no grant of its former life can hold any more, and tells so meanwhile.
#[test]
fn an_order_that_waits_tells_what_for_through_another_node() {
    let mut cluster = Cluster::serving(&Setup {
        timing: "default",
        ..Setup::default()
    });
    cluster.kill(A);
    cluster.kill(B);
    cluster.start(B);
    wait_for("it is up again", PATIENCE, || {
        let status = cluster.status(B)?;
        (status["up"] == true).then_some(())
    });
    let ran = through(&cluster, ARBITRATOR, B, &["primary", RES]);
    let told = ran.stderr.clone();
    ran.ok();
    assert!(
        told.lines().count() > 1 && told.contains("Primary on kvm-b"),
        "{told}"
    );
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
}

#[test]
fn events_and_a_watched_status_stream_through_the_other_node() {
    let mut cluster = Cluster::serving(&Setup::default());
    let snapshot = through(&cluster, A, B, &["events2", "--now"]).ok();
    assert!(snapshot.contains("role:Secondary"), "{snapshot}");
    assert!(snapshot.trim_end().ends_with("exists -"), "{snapshot}");

    let mut events = Watcher::start(&mut command(&cluster, A, NAMES[B], &["events2", RES]));
    events.until(&["exists -"]);
    let mut watch = Watcher::start(&mut command(
        &cluster,
        A,
        NAMES[B],
        &["status", "--watch=100ms"],
    ));
    watch.until(&["role:Secondary"]);
    cluster.adm(B, &["disconnect", RES]).ok();
    events.until(&["change connection", "connection:StandAlone"]);
    watch.until(&["StandAlone"]);
    cluster.adm(B, &["connect", RES]).ok();
    events.until(&["change", "connection:Connected"]);

    // The node that streams dies: the stream ends with the reason, and does not hang.
    cluster.kill(B);
    let (code, words) = events.end();
    assert_eq!(code, Some(6), "{words}");
    assert!(words.contains("kvm-b went away"), "{words}");
}

/// The other host vanishes without a word: a silent stream does not wait for it for ever, at either
/// end.
#[test]
fn a_stream_from_a_host_that_vanished_ends() {
    if !(am_root() && have(&["ip", "nft"])) {
        return;
    }
    let cluster = Cluster::serving(&Setup {
        namespace: true,
        tls: "off",
        ..Setup::default()
    });
    let mut watchers: Vec<_> = (0..RELAYS_MAX)
        .map(|_| Watcher::start(&mut command(&cluster, A, NAMES[B], &["events2", RES])))
        .collect();
    for watcher in &mut watchers {
        watcher.until(&["exists -"]);
    }
    cluster.isolate(B, true);
    for watcher in watchers {
        let (code, words) = watcher.end();
        assert_eq!(code, Some(6), "{words}");
        assert!(words.contains("kvm-b went away"), "{words}");
    }
    let words = through(&cluster, A, B, &["status"]).exits(6);
    assert!(words.contains("no answer in time"), "{words}");
    cluster.isolate(B, false);
    // Had it kept their places, there would be none.
    wait_for("it is passed on", PATIENCE, || {
        let ran = through(&cluster, A, B, &["status", "--json"]);
        (ran.code == Some(0)).then_some(())
    });
}

/// A client that goes away takes its relay with it: the places are not used up. One too many is told
/// so.
#[test]
fn watchers_that_leave_give_their_places_back() {
    let cluster = Cluster::serving(&Setup::default());
    for _ in 0..2 {
        let mut watchers = Vec::new();
        while watchers.len() < RELAYS_MAX {
            let watcher = wait_for("a place is free", LIMIT, || {
                let mut watcher =
                    Watcher::start(&mut command(&cluster, A, NAMES[B], &["events2", RES]));
                let mut line = String::new();
                let count = watcher.lines.read_line(&mut line).unwrap();
                (count > 0).then_some(watcher)
            });
            watchers.push(watcher);
        }
        let one_too_many = through(&cluster, A, B, &["status"]).exits(1);
        assert!(one_too_many.contains("E1007"), "{one_too_many}");
        assert_eq!(status(&cluster, A, A)["node"], NAMES[A], "its own is free");
    }
}

#[test]
fn a_node_that_is_not_there_is_said_so_within_its_time() {
    let mut cluster = Cluster::serving(&Setup::default());
    let words = run(&mut command(&cluster, A, "kvm-z", &["status"])).exits(7);
    assert!(
        words.contains("E0702") && words.contains("kvm-z"),
        "{words}"
    );
    let gone = |cluster: &Cluster, words: &[&str]| {
        let start = now();
        let ran = through(cluster, A, B, words);
        let took = now() - start;
        assert!(took < UNREACHABLE_LIMIT, "{words:?} took {took:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
        let text = ran.exits(6);
        for part in ["E0602", "kvm-b", "why", "next"] {
            assert!(text.contains(part), "{part} not in: {text}");
        }
    };
    // Stopped: its kernel takes the connection, nobody answers.
    cluster.signal(B, Signal::SIGSTOP);
    gone(&cluster, &["status", "--json"]);
    cluster.signal(B, Signal::SIGCONT);
    cluster.kill(B);
    for words in [
        &["status", RES, "--json"][..],
        &["role", RES],
        &["secondary", RES],
        &["events2"],
        &["wait-sync", RES],
        &["version"],
    ] {
        gone(&cluster, words);
    }
    assert_eq!(status(&cluster, A, A)["node"], NAMES[A]);
}

/// Opens a connection as the node at `from` does, and says whether it was accepted.
fn relay(cluster: &Cluster, preamble: RelayPreamble, to: usize) -> (TcpStream, bool) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, cluster.ports[to])).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(&preamble.encode()).unwrap();
    let mut reply = [0; PREAMBLE_REPLY_LEN];
    stream.read_exact(&mut reply).unwrap();
    (stream, reply[4] == 1)
}

/// What comes in by the data port is judged before it is heard, and never passed on again.
#[test]
fn a_relay_is_refused_unless_it_is_meant_for_this_node() {
    let cluster = Cluster::serving(&Setup {
        tls: "off",
        ..Setup::default()
    });
    let good = RelayPreamble {
        versions: VersionRange::RELAY,
        cluster: ResourceId::of_name("lab").0,
        from: NodeId::A,
        to: NodeId::B,
        may_change: false,
        uid: 4711,
    };
    for (to, id) in [(B, NodeId::B), (ARBITRATOR, NodeId::ARBITRATOR)] {
        let good = RelayPreamble { to: id, ..good };
        let wrong_cluster = RelayPreamble { cluster: 1, ..good };
        assert!(!relay(&cluster, wrong_cluster, to).1);
        let for_another = RelayPreamble {
            to: NodeId::A,
            ..good
        };
        assert!(!relay(&cluster, for_another, to).1);
        let ask = |line: &str| {
            let (mut stream, accepted) = relay(&cluster, good, to);
            assert!(accepted);
            stream.write_all(line.as_bytes()).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(ask("{\"verb\":\"version\"}\n").contains(NAMES[to]));
        let again = ask("{\"verb\":\"version\",\"node\":\"kvm-a\"}\n");
        assert!(again.contains("E1004"), "{again}");
        assert!(ask("nonsense\n").contains("E1004"));
        assert!(ask(&"x".repeat(REQUEST_LEN_MAX + 1)).contains("longer than"));
        // Who may only look there may only look here.
        let order = format!("{{\"verb\":\"down\",\"resource\":\"{RES}\"}}\n");
        let refused = ask(&order);
        assert!(
            refused.contains("E0801") && refused.contains("4711"),
            "{refused}"
        );
    }
}

/// What was sent before the answer cannot be given away with the connection, so it ends it.
#[test]
fn a_relay_that_does_not_wait_for_the_answer_is_closed() {
    let cluster = Cluster::serving(&Setup::default());
    let preamble = RelayPreamble {
        versions: VersionRange::RELAY,
        cluster: ResourceId::of_name("lab").0,
        from: NodeId::A,
        to: NodeId::B,
        may_change: false,
        uid: 0,
    };
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, cluster.ports[B])).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = preamble.encode().to_vec();
    bytes.extend_from_slice(b"{\"verb\":\"version\"}\n");
    stream.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty(), "{answer:?}");
}

/// A path that is down, and one on which nobody answers, do not hide the one that works.
#[test]
fn each_address_of_the_other_node_is_tried() {
    let mut cluster = Cluster::new(&Setup {
        tls: "off",
        ..Setup::default()
    });
    cluster.start(B);
    wait_for("the daemon answers", PATIENCE, || {
        let ran = cluster.adm(B, &["version"]);
        ran.stdout.contains("kvm-b").then_some(())
    });
    // As if two of its interfaces had gone: nothing listens on the first, the second is silent.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = (silent.local_addr().unwrap(), silent);
    let file = cluster.dir.join("etc/twinblk.toml");
    let text = fs::read_to_string(&file).unwrap();
    let own = format!("\"127.0.0.1:{}\"", cluster.ports[B]);
    let more = format!("\"127.0.0.1:1\", \"{}\", {own}", silent.0);
    fs::write(&file, text.replace(&own, &more)).unwrap();
    cluster.start(A);
    wait_for("the daemon answers", PATIENCE, || cluster.status(A));
    assert_eq!(status(&cluster, A, B)["node"], NAMES[B]);

    cluster.kill(B);
    let words = through(&cluster, A, B, &["status"]).exits(6);
    assert_eq!(words.matches("127.0.0.1:").count(), 3, "{words}");
    assert!(words.contains("no answer in time"), "{words}");
}

/// Strangers that say nothing, half a preamble or nonsense hold neither guests nor orders up.
#[test]
fn strangers_on_the_port_do_not_keep_requests_from_being_passed_on() {
    let cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    let mut strangers = Vec::new();
    for round in 0_u8..20 {
        for node in [A, B, ARBITRATOR] {
            for bytes in [&b""[..], b"twinblkC", b"twinblkL", &[round; 600]] {
                let address = (Ipv4Addr::LOCALHOST, cluster.ports[node]);
                // Each stays open: nobody who is silent may hold a place for long.
                if let Ok(mut stream) = TcpStream::connect(address) {
                    stream.write_all(bytes).ok();
                    strangers.push(stream);
                }
            }
        }
        nbd.write(u64::from(round) * 4096, &[round; 4096]).unwrap();
    }
    for about in [B, ARBITRATOR] {
        wait_for("it is passed on", LIMIT, || {
            let ran = through(&cluster, A, about, &["status", "--json"]);
            (ran.code == Some(0)).then_some(())
        });
    }
    assert_eq!(nbd.read(0, 4096).unwrap(), [0; 4096]);
    cluster.wait_both_up_to_date(A);
}

/// Any account of a machine of the cluster can connect from its address. What such a connection says
/// of itself gives no right to change anything; what it asks for is refused, and said why.
#[test]
fn an_order_of_a_stranger_on_a_node_of_the_cluster_is_refused() {
    if !(am_root() && have(&["bash", "setpriv"])) {
        return;
    }
    let cluster = Cluster::serving(&Setup {
        tls: "off",
        ..Setup::default()
    });
    let preamble = RelayPreamble {
        versions: VersionRange::RELAY,
        cluster: ResourceId::of_name("lab").0,
        from: NodeId::A,
        to: NodeId::B,
        may_change: true,
        uid: 0,
    };
    let file = std::env::temp_dir().join(format!("twinblk-preamble-{}", std::process::id()));
    fs::write(&file, preamble.encode()).unwrap();
    let order = format!("{{\"verb\":\"disconnect\",\"resource\":\"{RES}\"}}");
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; cat {} >&3; head -c {PREAMBLE_REPLY_LEN} <&3 >/dev/null; \
         echo '{order}' >&3; cat <&3",
        cluster.ports[B],
        file.display()
    );
    let ask = |uid: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", uid, "--clear-groups", "bash", "-c", &script]);
        run(&mut command).ok()
    };
    let refused = ask("65534");
    assert!(
        refused.contains("E0801") && refused.contains("kvm-a"),
        "{refused}"
    );
    let whole = status(&cluster, B, B);
    let connection = &whole["resources"][0]["peers"][0]["connection"];
    assert_eq!(connection, "Connected");
    let done = ask("0");
    assert!(done.contains("disconnected from"), "{done}");
    fs::remove_file(&file).unwrap();
}
