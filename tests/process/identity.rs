//! Keys by `init` and `join`, and what a cluster that has them lets in.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{A, ARBITRATOR, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{Ran, twinadm, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

fn setup() -> Setup {
    Setup {
        tls: "required",
        disk_len: 16 << 20,
        ..Setup::default()
    }
}

#[track_caller]
fn cluster_status(cluster: &Cluster, node: usize) -> Option<Value> {
    let ran = cluster.adm(node, &["status", "--json"]);
    serde_json::from_str::<Value>(&ran.stdout)
        .ok()
        .map(|mut it| it["cluster"].take())
}

/// A state directory's token, passed on by standard input.
fn join_by_stdin(cluster: &Cluster, node: usize, token: &str) -> Ran {
    let mut command = Command::new(twinadm());
    command
        .arg("--config")
        .arg(cluster.dir.join("etc"))
        .args(["--node", NAMES[node], "join", "-", "--state-dir"])
        .arg(cluster.state_dir(node));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(token.as_bytes()).unwrap();
    drop(stdin);
    Ran::of(&child.wait_with_output().unwrap())
}

/// The whole way of a cluster with the default `tls = "required"`: refused without keys, keys by tokens
/// that buy once, a mirrored write, a failover by SIGKILL, requests of one node about another, nothing
/// secret told or readable, and no key taken away from under what runs.
#[test]
fn a_cluster_gets_its_keys_by_tokens_and_fails_over_within_tls() {
    let mut cluster = Cluster::new(&setup());
    // By hand here.
    cluster.has_keys = true;
    let refused = cluster.daemon(A).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{text}");
    assert!(
        text.contains("E0114") && text.contains("twinadm init lab"),
        "{text}"
    );

    assert!(
        cluster
            .with_state(A, &["init", "other"])
            .exits(3)
            .contains("lab")
    );
    cluster
        .with_state(A, &["init", "lab", "--dry-run"])
        .exits(14);
    let tokens = cluster.with_state(A, &["init", "lab"]).ok();
    let tokens: Vec<_> = tokens.lines().map(str::to_owned).collect();
    assert_eq!(tokens.len(), 2, "one for each other node: {tokens:?}");
    cluster.with_state(A, &["init", "lab"]).exits(4);
    // Its daemon is not there yet: the token stays good.
    cluster
        .with_state(B, &["join", &tokens[0], "--timeout", "0"])
        .exits(6);
    cluster.start(A);
    let another = cluster.with_state(B, &["join", &tokens[1]]).exits(4);
    assert!(another.contains("for another node"), "{another}");
    cluster.with_state(B, &["join", &tokens[0]]).ok();
    cluster.with_state(B, &["join", &tokens[1]]).exits(4);
    let used = cluster
        .with_state(ARBITRATOR, &["join", &tokens[0]])
        .exits(4);
    assert!(used.contains("E0441"), "{used}");
    cluster
        .with_state(ARBITRATOR, &["join", "tbj1.AAAA"])
        .exits(2);
    cluster
        .with_state(B, &["init", "--token", "kvm-a"])
        .exits(4);
    let joined = join_by_stdin(&cluster, ARBITRATOR, &format!("{}\n", tokens[1]));
    assert_eq!(joined.code, Some(0), "{joined:?}");
    for node in [A, B, ARBITRATOR] {
        let keys = cluster.state_dir(node).join("keys");
        for entry in fs::read_dir(&keys).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }

    for node in [A, B] {
        cluster.adm(node, &["create-md", RES]).ok();
    }
    for node in [B, ARBITRATOR] {
        cluster.start(node);
    }
    // Whoever is met when the resource is founded votes from then on.
    wait_for("all three see each other", PATIENCE, || {
        let all =
            [A, B].map(|node| cluster_status(&cluster, node).map(|it| it["voters_seen"] == 3));
        (all == [Some(true); 2]).then_some(())
    });
    for node in [A, B] {
        cluster.adm(node, &["up", RES]).ok();
    }
    cluster.adm(A, &["primary", RES]).ok();
    cluster.wait_both_up_to_date(A);
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    let pattern: Vec<u8> = (0..3 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    nbd.write(1 << 20, &pattern).unwrap();
    nbd.write(8192, &[0x5a; 4096]).unwrap();
    // Passed on within TLS, orders too, whatever port they come from.
    let status = cluster.passed_on(B, A, &["status", RES]).ok();
    assert!(status.contains("role:Primary"), "{status}");
    cluster.passed_on(ARBITRATOR, B, &["pause-sync", RES]).ok();
    cluster.passed_on(ARBITRATOR, B, &["resume-sync", RES]).ok();
    let log = fs::read(cluster.disk(B)).unwrap();
    assert!(log[1 << 20..4 << 20] == pattern, "mirrored");

    cluster.with_state(B, &["leave"]).exits(4);
    cluster.kill(A);
    let mut nbd = wait_for("the peer serves", PATIENCE, || {
        Nbd::attach(&cluster.nbd_socket(B), RES, Duration::from_secs(1)).ok()
    });
    assert_eq!(nbd.read(1 << 20, 3 << 20).unwrap(), pattern);
    assert_eq!(nbd.read(8192, 4096).unwrap(), [0x5a; 4096]);
    nbd.write(0, &[0x77; 8192]).unwrap();
    cluster.start(A);
    cluster.wait_both_up_to_date(B);

    let secrets = [tokens[0].as_str(), tokens[1].as_str()];
    let logs = NAMES.map(|name| fs::read_to_string(cluster.dir.join(format!("{name}.log"))));
    for log in logs {
        let log = log.unwrap();
        assert!(secrets.iter().all(|it| !log.contains(it)), "{log}");
    }
}

/// One node without keys among those with: both sides say so, and nothing flows.
#[test]
fn a_node_whose_tls_is_set_otherwise_is_told_of_and_not_heard() {
    let mut cluster = Cluster::new(&setup());
    for node in [A, B] {
        cluster.adm(node, &["create-md", RES]).ok();
    }
    for node in [A, ARBITRATOR] {
        cluster.start(node);
    }
    wait_for("the arbitrator is seen", PATIENCE, || {
        let status = cluster_status(&cluster, A)?;
        (status["voters_seen"] == 2).then_some(())
    });
    let config = cluster.dir.join("etc/twinblk.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"required\"", "\"off\"")).unwrap();
    cluster.start(B);
    for node in [A, B] {
        cluster.adm(node, &["up", RES]).ok();
    }
    for (node, word) in [
        (A, "kvm-b has [net] tls = \"off\""),
        (B, "kvm-a has [net] tls set"),
    ] {
        wait_for("it says so", PATIENCE, || {
            let status = cluster_status(&cluster, node)?;
            status["tls_mismatch"]
                .as_str()?
                .contains(word)
                .then_some(())
        });
        assert!(cluster.logs().contains(word), "{}", cluster.logs());
        let status = cluster.status(node).unwrap();
        assert_ne!(status["peers"][0]["connection"], "Connected");
    }
    let status = cluster.adm(A, &["status"]).stdout;
    assert!(status.contains("status: kvm-b has"), "{status}");
    let refused = cluster.passed_on(B, A, &["status"]).exits(6);
    assert!(refused.contains("tls is set there otherwise"), "{refused}");
    // What anybody may send has no effect, and stops nobody.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in [0, 1, 32, 64, 96, 1200, 1500] {
        let garbage = vec![0x54; len];
        stranger
            .send_to(&garbage, ("127.0.0.1", cluster.ports[A]))
            .unwrap();
    }
    wait_for("the arbitrator is seen still", PATIENCE, || {
        let status = cluster_status(&cluster, A)?;
        (status["voters_seen"] == 2).then_some(())
    });
}
