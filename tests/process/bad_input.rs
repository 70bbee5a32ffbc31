//! Wrong orders, wrong files, taken ports, garbage: a clear word each, and nothing is lost.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use crate::cluster::{A, ARBITRATOR, B, Cluster, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{Ran, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

/// What a daemon says that cannot start, and its exit code.
fn refused_start(cluster: &Cluster, node: usize) -> Ran {
    let mut child = cluster.daemon(node).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the daemon gives up", LIMIT, || child.try_wait().unwrap());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    let cluster = Cluster::new(&Setup::default());
    for node in [A, ARBITRATOR] {
        let address = (Ipv4Addr::LOCALHOST, cluster.ports[node]);
        let port = cluster.ports[node].to_string();
        let tcp = TcpListener::bind(address).unwrap();
        assert!(refused_start(&cluster, node).exits(1).contains(&port));
        drop(tcp);
        let _udp = UdpSocket::bind(address).unwrap();
        assert!(refused_start(&cluster, node).exits(1).contains(&port));
        assert!(!cluster.run_dir(node).join("control.sock").exists());
    }
}

#[test]
fn a_wrong_configuration_is_shown_with_its_line_and_a_hint() {
    let cluster = Cluster::new(&Setup::default());
    let file = cluster.dir.join(format!("etc/resources.d/{RES}.toml"));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("[[resource", "prefered = \"kvm-a\"\n[[resource"),
    )
    .unwrap();
    for words in [
        refused_start(&cluster, A).exits(3),
        cluster.adm(A, &["create-md", RES]).exits(3),
    ] {
        for part in ["prefered", "did you mean `prefer`", ".toml:2"] {
            assert!(words.contains(part), "{part} not in: {words}");
        }
    }
}

#[test]
fn orders_that_cannot_be_carried_out_say_why_and_what_next() {
    let mut cluster = Cluster::new(&Setup::default());
    let unreachable = cluster.adm(A, &["status", RES, "--json"]);
    assert!(unreachable.stdout.is_empty());
    assert!(unreachable.exits(6).contains("next"));

    cluster.adm(A, &["create-md", RES]).ok();
    assert!(
        cluster
            .adm(A, &["create-md", RES])
            .exits(4)
            .contains("next"),
        "metadata is there"
    );
    cluster.start(A);
    wait_for("the daemon answers", PATIENCE, || cluster.status(A));
    assert!(
        cluster
            .adm(A, &["up", "vm-none"])
            .exits(7)
            .contains("vm-none")
    );
    assert_eq!(
        cluster.adm(A, &["invalidate", RES]).code,
        Some(2),
        "a verb that is not built"
    );
    cluster.adm(A, &["up", RES]).ok();
    let twice = cluster.adm(A, &["up", RES]);
    assert!(format!("{}{}", twice.stdout, twice.stderr).contains("already up"));
    assert_eq!(twice.code, Some(0));
    // One of three voters: nothing that waiting could mend within a second.
    let alone = cluster.adm(A, &["--timeout", "1s", "primary", RES]);
    assert!(matches!(alone.code, Some(5 | 9)), "{alone:?}");
}

#[test]
fn primary_on_the_other_node_is_refused_while_one_serves() {
    let cluster = Cluster::serving(&Setup::default());
    let words = cluster.adm(B, &["primary", RES]).exits(4);
    assert!(
        words.contains("E0412") && words.contains("kvm-a") && words.contains("next"),
        "{words}"
    );
}

#[test]
fn secondary_names_the_client_it_waits_for_in_vain() {
    let cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[1; 4096]).unwrap();
    let words = cluster.adm(A, &["secondary", RES]).exits(4);
    assert!(words.contains(&std::process::id().to_string()), "{words}");
    nbd.write(0, &[2; 4096]).unwrap();
    cluster.adm(A, &["secondary", "--force", RES]).ok();
    assert!(nbd.write(0, &[3; 4096]).is_err());
}

#[test]
fn disks_and_metadata_that_do_not_belong_together_are_not_attached() {
    let mut cluster = Cluster::new(&Setup::default());
    for node in [A, B] {
        cluster.adm(node, &["create-md", RES]).ok();
    }
    // The administrator mixed the metadata files up.
    let [a, b, aside] = ["kvm-a.md", "kvm-b.md", "aside"].map(|name| cluster.dir.join(name));
    fs::rename(&a, &aside).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(&aside, &b).unwrap();
    cluster.start(A);
    let up = cluster.adm(A, &["up", RES]);
    assert_ne!(up.code, Some(0), "{up:?}");
    assert!(up.stderr.contains("next"), "{up:?}");

    fs::write(&a, vec![0xee; 1 << 20]).unwrap();
    let foreign = cluster.adm(A, &["create-md", "--force", RES]).exits(4);
    assert!(foreign.contains("next"), "{foreign}");
}

#[test]
fn garbage_on_every_socket_disturbs_nobody() {
    let cluster = Cluster::serving(&Setup::default());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    let mut garbage = vec![0_u8; 8192];
    let mut state = 9_u32;
    for round in 0_u32..40 {
        for byte in &mut garbage {
            state = state
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223 + round);
            *byte = state.to_le_bytes()[3];
        }
        for node in [A, B, ARBITRATOR] {
            let address = (Ipv4Addr::LOCALHOST, cluster.ports[node]);
            // What is not liked may be cut off at any byte.
            if let Ok(mut stream) = TcpStream::connect(address) {
                stream.write_all(&garbage).ok();
            }
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            udp.send_to(&garbage[..1200], address).unwrap();
            for socket in [
                cluster.run_dir(node).join("control.sock"),
                cluster.nbd_socket(node),
            ] {
                if let Ok(mut stream) = UnixStream::connect(socket) {
                    stream.write_all(&garbage).ok();
                }
            }
        }
        nbd.write(u64::from(round) * 4096, &[7; 4096]).unwrap();
    }
    cluster.wait_both_up_to_date(A);
    assert_eq!(nbd.read(0, 4096).unwrap(), [7; 4096]);
}

#[test]
fn idle_handshakes_do_not_lock_a_guest_out() {
    let cluster = Cluster::serving(&Setup::default());
    let idle: Vec<_> = (0..200)
        .filter_map(|_| UnixStream::connect(cluster.nbd_socket(A)).ok())
        .collect();
    assert!(!idle.is_empty());
    let mut nbd = Nbd::attach(&cluster.nbd_socket(A), RES, LIMIT).unwrap();
    nbd.write(0, &[1; 4096]).unwrap();
}
