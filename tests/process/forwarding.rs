//! A Secondary that passes its NBD clients on to the Primary.

use std::time::Duration;

use nbd_frontend::proto::reply::ReplyStyle;

use crate::cluster::{A, B, Cluster, PATIENCE, RES, Setup};
use crate::nbd::{Nbd, NbdFailure};
use crate::tools::{have, now, program, wait_for};

const LIMIT: Duration = Duration::from_secs(5);

fn serving(resource: &'static str) -> Cluster {
    Cluster::serving(&Setup {
        resource,
        ..Setup::default()
    })
}

fn attach(cluster: &Cluster, node: usize) -> Result<Nbd, NbdFailure> {
    Nbd::attach(&cluster.nbd_socket(node), RES, LIMIT)
}

/// What a client of the Secondary writes is on both replicas, and both nodes' clients see one volume.
#[test]
fn a_client_of_the_secondary_works_on_the_primarys_volume() {
    let cluster = serving("forward = true\n");
    let mut here = attach(&cluster, A).unwrap();
    let mut there = attach(&cluster, B).unwrap();
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
    let mine = format!("process {}", std::process::id());
    assert!(refused.contains(&mine), "{refused}");
    // The Primary knows that one of its clients is not here.
    let refused = cluster.adm(A, &["secondary", RES]).exits(4);
    assert!(refused.contains("passed on by the peer"), "{refused}");
}

/// The real clients do not notice: the same copy, the same map, many at once.
#[test]
fn programs_work_through_the_secondary() {
    if !have(&["qemu-img", "qemu-io", "fio"]) {
        return;
    }
    let cluster = serving("forward = true\n");
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
    program(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &uri,
            &cluster.nbd_uri(A),
        ],
    )
    .ok();
}

/// With `read-only-export` a client there may look, and not touch.
#[test]
fn a_read_only_export_is_one() {
    let cluster = serving("read-only-export = true\n");
    attach(&cluster, A).unwrap().write(0, &[7; 4096]).unwrap();
    let mut there = attach(&cluster, B).unwrap();
    assert_eq!(there.read(0, 4096).unwrap(), [7; 4096]);
    let refused = there.write(0, &[8; 4096]).unwrap_err();
    assert_eq!(
        refused,
        NbdFailure::Closed("answered operation not permitted".to_owned())
    );
    assert_eq!(there.read(0, 4096).unwrap(), [7; 4096]);
}

/// Whoever was passed on is cut off when the roles change, and finds the volume where it is now.
#[test]
fn a_takeover_cuts_those_who_were_passed_on() {
    let mut cluster = serving("forward = true\n");
    let mut there = attach(&cluster, B).unwrap();
    there.write(0, &[0x31; 4096]).unwrap();
    cluster.kill(A);
    let ended = there.read(0, 4096).unwrap_err();
    assert!(matches!(ended, NbdFailure::Closed(_)), "{ended:?}");
    // Nobody serves yet: refused at once, not left waiting.
    let begun = now();
    let early = attach(&cluster, B);
    assert!(now() - begun < Duration::from_millis(1500));
    drop(early);
    let mut own = wait_for("the survivor serves", PATIENCE, || attach(&cluster, B).ok());
    assert_eq!(own.read(0, 4096).unwrap(), [0x31; 4096]);
    own.write(0, &[0x32; 4096]).unwrap();
    // The old Primary comes back as the Secondary: now it is the one that passes on.
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
    let mut there = attach(&cluster, A).unwrap();
    assert_eq!(there.read(0, 4096).unwrap(), [0x32; 4096]);
    // A Secondary with a client is made Primary: the client is not left with the old one.
    drop(own);
    drop(there);
    let mut there = attach(&cluster, A).unwrap();
    cluster.adm(B, &["secondary", RES, "--force"]).ok();
    cluster.adm(A, &["primary", RES]).ok();
    there.read(0, 4096).unwrap_err();
    assert_eq!(
        attach(&cluster, A).unwrap().read(0, 4096).unwrap(),
        [0x32; 4096]
    );
}

/// A client that stops half-way through anything costs nobody else anything.
#[test]
fn a_client_that_does_not_read_holds_up_itself_alone() {
    let cluster = serving("forward = true\n");
    let mut idle = Nbd::attach_in(&cluster.nbd_socket(B), RES, LIMIT, ReplyStyle::Simple).unwrap();
    for _ in 0..16 {
        let offset = 0;
        let len = 1 << 20;
        idle.submit(nbd_frontend::ClientCommand::Read { offset, len })
            .unwrap();
    }
    idle.send().unwrap();
    let mut other = attach(&cluster, B).unwrap();
    for nr in 0..50 {
        other.write(nr * 4096, &[9; 4096]).unwrap();
    }
    for _ in 0..16 {
        assert!(idle.answer().unwrap().result.is_ok());
    }
}
