//! `[metrics] listen`, as Prometheus and a browser see it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::cluster::{A, B, Cluster, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{now, program, skip, wait_for};

/// A cluster whose `kvm-a` was started with metrics at that port.
fn with_metrics() -> (Cluster, u16) {
    let mut cluster = Cluster::serving(&Setup::default());
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let path = cluster.dir.join("etc/twinblk.toml");
    let text = fs::read_to_string(&path).unwrap();
    let listen = format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    fs::write(&path, text.replace("[metrics]\nlisten = \"\"\n", &listen)).unwrap();
    // Taken: an address that somebody wrote down is an error, and named.
    cluster.terminate(A, PATIENCE);
    let refused = cluster.daemon(A).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    drop(held);
    cluster.start(A);
    wait_for("both are there again", PATIENCE, || {
        let status = cluster.status(A)?;
        let peers = &status["peers"][0]["volumes"][0]["disk"];
        (status["volumes"][0]["disk"] == "UpToDate" && peers == "UpToDate").then_some(())
    });
    (cluster, port)
}

fn get(port: u16, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn page(port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = get(port, request.as_bytes());
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
    let len = format!("Content-Length: {}", body.len());
    assert!(head.contains(&len), "{path}: {head}");
    body
}

/// The value of a series, given as it is written.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

/// Prometheus' own parser reads it, and the numbers are those of what was done.
#[test]
fn metrics_say_what_status_says() {
    let (cluster, port) = with_metrics();
    let serving = if cluster.adm(A, &["role", RES]).ok().trim() == "Primary" {
        A
    } else {
        B
    };
    let mut guest = Nbd::attach(&cluster.nbd_socket(serving), RES, PATIENCE).unwrap();
    guest.write(0, &[7; 4096]).unwrap();
    guest.flush().unwrap();
    let text = wait_for("the client is counted", PATIENCE, || {
        let text = page(port, "/metrics");
        let clients = value(
            &text,
            "twinblk_nbd_clients{resource=\"vm-web\",volume=\"0\"}",
        );
        (clients == Some(1.0) || serving == B).then_some(text)
    });
    assert_eq!(value(&text, "twinblk_quorum "), Some(1.0));
    assert_eq!(value(&text, "twinblk_voters_seen "), Some(3.0));
    let up_to_date =
        "twinblk_volume_disk_state{resource=\"vm-web\",volume=\"0\",state=\"UpToDate\"}";
    assert_eq!(value(&text, up_to_date), Some(1.0), "{text}");
    assert_eq!(
        value(&text, "twinblk_in_sync_replicas{resource=\"vm-web\"}"),
        Some(2.0)
    );
    let json: serde_json::Value = serde_json::from_str(&page(port, "/status.json")).unwrap();
    assert_eq!(json["schema"], "twinblk.status/1");
    assert!(page(port, "/").contains("vm-web"));
    assert_eq!(page(port, "/healthz"), "ok\n");
    let python = "/usr/bin/python3";
    let parser = "from prometheus_client.parser import text_string_to_metric_families as parse\n\
                  import sys\nprint(sum(len(f.samples) for f in parse(sys.stdin.read())))";
    let probe = program(python, &["-c", "import prometheus_client"]);
    if probe.code == Some(0) {
        let path = cluster.dir.join("metrics.txt");
        fs::write(&path, &text).unwrap();
        let parser = parser.replace(
            "sys.stdin",
            &format!("open({:?})", path.display().to_string()),
        );
        let count: usize = program(python, &["-c", &parser])
            .ok()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(
            count,
            text.lines().filter(|line| !line.starts_with('#')).count()
        );
    } else {
        skip("python3-prometheus-client is not installed");
    }
}

/// Garbage, silence and many at once cost the others nothing.
#[test]
fn clients_that_are_none_are_sent_away() {
    let (cluster, port) = with_metrics();
    for garbage in [
        &b"\r\n\r\n"[..],
        b"POST /metrics HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.1\r\n\r\n",
    ] {
        let (head, _) = get(port, garbage);
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    }
    let begun = now();
    let mut endless = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Cut off by length, or by time: its end comes either way.
    while endless.write_all(&[b'a'; 4096]).is_ok() && begun.elapsed() < PATIENCE {}
    assert!(begun.elapsed() < Duration::from_secs(5));
    let silent: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    // Their places come free after two seconds.
    wait_for("somebody is served again", PATIENCE, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.ends_with("ok\n").then_some(())
    });
    drop(silent);
    cluster.adm(A, &["status", RES]).ok();
}
