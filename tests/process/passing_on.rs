//! `--node N` for a node other than the one whose daemon is asked: the daemon passes it on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use replicator::protocol::{PREAMBLE_REPLY_LEN, RelayPreamble, VersionRange};
use replicator::types::{NodeId, ResourceId};
use serde_json::Value;

use crate::cluster::{A, ARBITRATOR, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{Ran, now, run, twinadm, wait_for};

/// How long a node that is not there may keep an operator waiting: connecting is tried for 3 s at
/// most, and the machine is busy.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(5);

/// What is held still by a stream that is silent.
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

/// The Primary died and its lease has to run out: `primary` on the other node, asked for on the
/// arbitrator's machine, waits for that and tells so meanwhile.
#[test]
fn an_order_that_waits_tells_what_for_through_another_node() {
    let mut cluster = Cluster::serving(&Setup {
        timing: "default",
        ..Setup::default()
    });
    cluster.kill(A);
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

/// A client that goes away takes its relay with it: the places are not used up.
#[test]
fn watchers_that_leave_give_their_places_back() {
    let cluster = Cluster::serving(&Setup::default());
    for _ in 0..3 {
        let mut watchers: Vec<_> = (0..10)
            .map(|_| Watcher::start(&mut command(&cluster, A, NAMES[B], &["events2", RES])))
            .collect();
        for watcher in &mut watchers {
            watcher.until(&["exists -"]);
        }
        drop(watchers);
        wait_for("their places are free", LIMIT, || {
            let mut fresh: Vec<_> = (0..16)
                .map(|_| Watcher::start(&mut command(&cluster, A, NAMES[B], &["events2", RES])))
                .collect();
            let mut first = String::new();
            fresh
                .iter_mut()
                .all(|it| it.lines.read_line(&mut first).is_ok_and(|count| count > 0))
                .then_some(())
        });
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
    let cluster = Cluster::serving(&Setup::default());
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
        // Who may only look there may only look here.
        let order = format!("{{\"verb\":\"down\",\"resource\":\"{RES}\"}}\n");
        let refused = ask(&order);
        assert!(
            refused.contains("E0801") && refused.contains("4711"),
            "{refused}"
        );
    }
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
