//! The real program against a daemon that answers from a script.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::support::Scratch;
use replicator::admin::{
    ErrorId, ErrorReport, Event, Request, Response, Status, Verb, VersionInfo,
};

/// The documented sample, as a daemon sends it.
const SAMPLE: &str = r#"{"schema":"twinblk.status/1","generated":"2026-11-21T20:04:11Z","node":"kvm-a",
 "cluster":{"name":"lab","quorum":true,"voters":3,"voters_seen":3,"problems":1},
 "resources":[{"name":"vm-web","up":true,"role":"Primary","protocol":"C","io_backend":"io_uring","view":7,"in_sync":["kvm-a"],"prefer":"kvm-a","may_promote":false,"suspended":null,
  "guest":{"domain":"web","node":"kvm-a","state":"running"},
  "volumes":[{"volume":0,"disk":"UpToDate","size_bytes":42949672960,"disk_path":"/dev/vg0/vm-web",
    "export":"nbd+unix:///vm-web?socket=/run/twinblk/nbd/vm-web.sock","nbd_clients":1}],
  "peers":[{"node":"kvm-b","connection":"Connected","role":"Secondary","rtt_seconds":0.000041,
    "volumes":[{"volume":0,"disk":"Inconsistent","replication":"SyncSource","out_of_sync_bytes":26972389376,
      "lag_bytes":0,"lag_seconds":0.0,
        "last_resync":{"copied_bytes":0,"checked_bytes":0,"seconds":0.0,"ended":null,"why":null},
        "resync":{"done_bytes":15977152512,"total_bytes":42949541888,"done_ratio":0.372,"rate_bytes_per_second":222298112,"eta_seconds":121,"held":null}}]}],
  "status":"one up-to-date copy until the resync ends","action":null,"problem":"W0107"}]}"#;

fn sample() -> Status {
    serde_json::from_str(SAMPLE).expect("the documented sample")
}

fn synced() -> Status {
    let text = SAMPLE
        .replace("Inconsistent", "UpToDate")
        .replace("SyncSource", "Established");
    let mut status: Status = serde_json::from_str(&text).expect("the documented sample");
    status.resources[0].peers[0].volumes[0].resync = None;
    status
}

/// Answers as a daemon with the sample would; orders are done, with a change.
fn answer(request: &Request) -> Vec<Response> {
    let unknown = |name: &str| {
        ErrorReport::new(
            ErrorId::NoSuchResource,
            format!("no resource is called {name}"),
            "",
        )
    };
    match &request.verb {
        Verb::Status {
            resource: Some(name),
        } if name != "vm-web" => {
            vec![Response::Error(unknown(name))]
        }
        Verb::Status { .. } => vec![Response::Status(Box::new(sample()))],
        Verb::Events2 { .. } => {
            let mut events = Event::snapshot(&sample(), 1_795_291_451_402);
            events.push(Event::end_of_snapshot(1_795_291_451_402));
            events.into_iter().map(Response::Event).collect()
        }
        Verb::Version => vec![Response::Version(VersionInfo {
            program: "twinblkd".to_owned(),
            version: "9.9.9".to_owned(),
            node: "kvm-a".to_owned(),
            started: 0.0,
        })],
        _ => vec![
            Response::Progress {
                message: "waiting for kvm-b".to_owned(),
            },
            Response::Done {
                changed: false,
                message: "already up".to_owned(),
            },
        ],
    }
}

#[test]
fn the_documented_document_reads_and_prints_as_documented() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    let ran = scratch.twinadm(&["status"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.out,
        "\
lab  node:kvm-a  quorum:yes(3/3)  resources:1  problems:1
vm-web role:Primary disk:UpToDate prefer:kvm-a guest:web@kvm-a
  kvm-b role:Secondary replication:SyncSource peer-disk:Inconsistent
    [=======>............] 37.2%  14.9/40.0 GiB  212 MiB/s  eta 2m01s
status: vm-web: one up-to-date copy until the resync ends.
action: none; it continues by itself.
"
    );
    assert_eq!(ran.err, "");
}

#[test]
fn json_has_every_documented_key_with_its_value() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    let documented: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
    for line in [
        &["status", "--json"][..],
        &["status", "vm-web", "--json"],
        &["-o", "json", "status"],
    ] {
        let ran = scratch.twinadm(line);
        let printed: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_contains(&printed, &documented, "");
    }
    let drbd = scratch.twinadm(&["status", "--json=drbd9"]);
    let drbd: serde_json::Value = serde_json::from_str(&drbd.out).unwrap();
    assert_eq!(
        drbd[0]["connections"][0]["peer_devices"][0]["peer-disk-state"],
        "Inconsistent"
    );
}

/// Fields may be added, never lost.
fn assert_contains(printed: &serde_json::Value, documented: &serde_json::Value, at: &str) {
    use serde_json::Value::{Array, Object};
    match (printed, documented) {
        (Object(printed), Object(documented)) => {
            for (key, value) in documented {
                let found = printed
                    .get(key)
                    .unwrap_or_else(|| panic!("{at}.{key} is missing"));
                assert_contains(found, value, &format!("{at}.{key}"));
            }
        }
        (Array(printed), Array(documented)) => {
            assert_eq!(printed.len(), documented.len(), "{at}");
            for (printed, documented) in printed.iter().zip(documented) {
                assert_contains(printed, documented, at);
            }
        }
        _ => assert_eq!(printed, documented, "{at}"),
    }
}

#[test]
fn scripts_get_one_word_and_unknown_resources_exit_7() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    for (verb, word) in [
        ("role", "Primary\n"),
        ("cstate", "Connected\n"),
        ("dstate", "UpToDate/Inconsistent\n"),
    ] {
        let ran = scratch.twinadm(&[verb, "vm-web"]);
        assert_eq!((ran.code, ran.out.as_str()), (0, word));
        let ran = scratch.twinadm(&[verb, "vm-x"]);
        assert_eq!((ran.code, ran.out.as_str(), ran.id()), (7, "", "E0701"));
    }
}

#[test]
fn check_and_nagios_have_their_codes() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    assert_eq!(scratch.twinadm(&["status", "--check"]).code, 12);
    let nagios = scratch.twinadm(&["status", "--nagios"]);
    assert_eq!(nagios.code, 1);
    assert!(nagios.out.starts_with("TWINBLK WARNING"), "{}", nagios.out);
}

#[test]
fn orders_carry_their_words_and_tell_what_happened() {
    let scratch = Scratch::new();
    let heard = scratch.daemon(answer);
    let ran = scratch.twinadm(&[
        "--node",
        "kvm-b",
        "--timeout",
        "7s",
        "down",
        "vm-web",
        "--force",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.err, "vm-web: waiting for kvm-b\nvm-web: already up\n");
    let request = heard.lock().unwrap().pop().unwrap();
    assert_eq!(
        request.verb,
        Verb::Down {
            resource: "vm-web".to_owned(),
            force: true
        }
    );
    assert_eq!(
        (request.node.as_deref(), request.timeout_ms),
        (Some("kvm-b"), Some(7000))
    );
    let quiet = scratch.twinadm(&["-q", "up", "all"]);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
    let request = heard.lock().unwrap().pop().unwrap();
    assert_eq!(
        request.verb,
        Verb::Up {
            resource: "vm-web".to_owned()
        }
    );
    let json = scratch.twinadm(&["-o", "json", "connect", "vm-web:kvm-b"]);
    assert_eq!(
        json.out,
        "{\"changed\":false,\"message\":\"already up\",\"resource\":\"vm-web\"}\n"
    );
}

#[test]
fn a_refusal_keeps_its_exit_code_and_its_words() {
    let scratch = Scratch::new();
    scratch.daemon(|request| match request.verb {
        Verb::Primary { .. } => vec![Response::Error(
            ErrorReport::new(
                ErrorId::PeerIsPrimary,
                "kvm-b may not become Primary",
                "kvm-a is alive",
            )
            .next("move it"),
        )],
        _ => answer(request),
    });
    let ran = scratch.twinadm(&["promote", "vm-web"]);
    assert_eq!(ran.code, 4);
    assert_eq!(
        ran.err,
        "error[E0412]: kvm-b may not become Primary\n  why    kvm-a is alive\n  next   move it\n  \
         more   man twinblk-errors(7), E0412\n"
    );
}

#[test]
fn dry_run_sends_no_order() {
    let scratch = Scratch::new();
    let heard = scratch.daemon(answer);
    let down = scratch.twinadm(&["-n", "down", "vm-web"]);
    assert_eq!((down.code, down.out.lines().count()), (14, 2), "{down:?}");
    let up = scratch.twinadm(&["up", "vm-web", "--dry-run"]);
    assert_eq!((up.code, up.out.as_str()), (0, ""));
    let heard = heard.lock().unwrap();
    assert!(
        heard
            .iter()
            .all(|request| matches!(request.verb, Verb::Status { .. })),
        "{heard:?}"
    );
}

#[test]
fn events_are_lines_and_now_ends_them() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    let ran = scratch.twinadm(&["events2", "vm-web", "--now", "--timestamps"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines.len(), 6);
    assert!(
        lines[0].starts_with("2026-11-21T20:04:11.402Z exists resource name:vm-web role:Primary")
    );
    assert!(lines[1].contains("exists guest name:vm-web domain:web node:kvm-a state:running"));
    assert_eq!(lines[5], "2026-11-21T20:04:11.402Z exists -");
    let json = scratch.twinadm(&["events2", "--now", "--json", "--statistics"]);
    let first: serde_json::Value = serde_json::from_str(json.out.lines().next().unwrap()).unwrap();
    assert_eq!(first["object"], "resource");
    // Without --now the daemon's going away is an error.
    assert_eq!(scratch.twinadm(&["events2"]).code, 6);
}

#[test]
fn wait_sync_waits_for_the_state_and_not_longer_than_told() {
    let scratch = Scratch::new();
    let looks = std::sync::atomic::AtomicUsize::new(0);
    scratch.daemon(move |_| {
        let status = match looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0..2 => sample(),
            _ => synced(),
        };
        vec![Response::Status(Box::new(status))]
    });
    assert_eq!(scratch.twinadm(&["wait-sync", "vm-web"]).code, 0);
    let never = Scratch::new();
    never.daemon(answer);
    let ran = never.twinadm(&["wait-sync", "vm-web", "--timeout", "300ms"]);
    assert_eq!((ran.code, ran.id()), (9, "E0901"), "{ran:?}");
    assert_eq!(
        never
            .twinadm(&["wait-connect", "vm-web", "--timeout", "0"])
            .code,
        0
    );
}

#[test]
fn watch_on_a_pipe_prints_one_line_a_change() {
    let scratch = Scratch::new();
    let looks = std::sync::atomic::AtomicUsize::new(0);
    scratch.daemon(move |_| {
        let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        vec![Response::Status(Box::new(if look < 3 {
            sample()
        } else {
            synced()
        }))]
    });
    let mut command = scratch.command(&["status", "--watch=100ms"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(2).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lines[0].contains("peer-disk:Inconsistent"), "{lines:?}");
    assert!(lines[1].contains("peer-disk:UpToDate"), "{lines:?}");
}

#[test]
fn ctrl_c_has_its_own_exit_code() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    let mut child = scratch
        .command(&["status", "--watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line says that it runs.
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    let mut child = scratch
        .command(&["status", "--watch=100ms", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn garbage_on_the_socket_is_a_clear_error() {
    use std::io::{Read, Write};
    for garbage in [
        "nonsense\n",
        "{\"reply\":\"unheard-of\"}\n",
        "{\"reply\":",
        "",
    ] {
        let scratch = Scratch::new();
        let path = scratch.path("run/control.sock");
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
            stream.write_all(garbage.as_bytes()).unwrap();
        });
        let ran = scratch.twinadm(&["status"]);
        server.join().unwrap();
        assert!([1, 6].contains(&ran.code), "{garbage:?}: {ran:?}");
        assert!(ran.err.starts_with("error[E"), "{}", ran.err);
    }
}

#[test]
fn create_md_for_another_node_than_the_daemons_is_refused() {
    let scratch = Scratch::with_resource(4 << 20);
    scratch.daemon(answer);
    let ran = scratch.twinadm(&["--node", "kvm-b", "create-md", "vm-web"]);
    assert_eq!((ran.code, ran.id()), (6, "E0602"), "{ran:?}");
    assert_eq!(
        scratch.twinadm(&["create-md", "vm-web"]).code,
        0,
        "the daemon says it is kvm-a"
    );
    assert!(scratch.path("a.md").exists());
}

#[test]
fn version_names_the_daemon_too() {
    let scratch = Scratch::new();
    scratch.daemon(answer);
    assert!(
        scratch
            .twinadm(&["version"])
            .out
            .ends_with("twinblkd 9.9.9 on kvm-a\n")
    );
}
