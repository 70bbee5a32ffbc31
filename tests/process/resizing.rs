//! `resize` with real processes and files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::cluster::{A, B, Cluster, NAMES, RES, Setup};
use crate::nbd::Nbd;

const LIMIT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;
const PIECE: [u8; 4096] = [9; 4096];

/// `truncate -s`, and what is new there is not zero.
fn extend(cluster: &Cluster, node: usize, mib: u64) {
    let file = OpenOptions::new()
        .write(true)
        .open(cluster.disk(node))
        .unwrap();
    file.set_len(mib * MIB).unwrap();
    for at in [64 * MIB, 100 * MIB, (mib - 1) * MIB] {
        file.write_all_at(&[0xa0 + u8::try_from(node).unwrap(); 8192], at)
            .unwrap();
    }
}

fn assert_disks_equal(cluster: &Cluster, mib: u64) {
    let [a, b] = [A, B].map(|node| {
        let mut bytes = vec![0; usize::try_from(mib * MIB).unwrap()];
        let file = File::open(cluster.disk(node)).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    assert!(a == b, "both disks hold the same");
}

fn configure_size(cluster: &Cluster, size: &str) {
    let file = cluster.dir.join(format!("etc/resources.d/{RES}.toml"));
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("size"));
    let lines = lines.flat_map(|line| match line {
        "id = 0" => vec![line.to_owned(), format!("size = \"{size}\"")],
        _ => vec![line.to_owned()],
    });
    std::fs::write(file, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

#[test]
fn a_volume_grows_while_it_is_used_and_survives_a_failover() {
    let mut cluster = Cluster::new(&Setup::default());
    configure_size(&cluster, "64MiB");
    cluster.bring_up();
    let attach =
        |cluster: &Cluster, node| Nbd::attach(&cluster.nbd_socket(node), RES, LIMIT).unwrap();
    let mut old = attach(&cluster, A);
    old.write(5 * MIB, &PIECE).unwrap();

    let refused = cluster
        .adm(A, &["resize", RES, "--size", "160MiB"])
        .exits(4);
    assert!(refused.contains("E0452"), "{refused}");
    let next = format!("truncate -s {} {}", 160 * MIB, cluster.disk(A).display());
    assert!(
        refused.replace("\n         ", " ").contains(&next),
        "{refused}"
    );
    extend(&cluster, A, 192);
    let refused = cluster
        .adm(A, &["resize", RES, "--size", "160MiB"])
        .exits(4);
    assert!(refused.contains(&format!("on {}", NAMES[B])), "{refused}");
    extend(&cluster, B, 160);
    let refused = cluster.adm(A, &["resize", RES, "--size", "32MiB"]).exits(4);
    assert!(refused.contains("E0451"), "{refused}");
    cluster
        .adm(A, &["resize", RES, "--size", "100000001B"])
        .exits(1);
    cluster.adm(A, &["resize", RES, "--dry-run"]).exits(14);
    assert_eq!(
        cluster.status(A).unwrap()["volumes"][0]["size_bytes"],
        64 * MIB
    );

    // The Secondary passes it on, and without a size the smaller disk counts.
    // Its files say 64MiB: how much of the disks it is to have must be said.
    let unsaid = cluster.adm(A, &["resize", RES]).exits(1);
    assert!(unsaid.contains("--size"), "{unsaid}");
    let told = cluster.adm(B, &["resize", RES, "--size", "160MiB"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("160MiB now"), "{told:?}");
    for node in [A, B] {
        cluster.wait_status(node, "it is larger", |status| {
            status["volumes"][0]["size_bytes"] == 160 * MIB
        });
    }
    let again = cluster.adm(A, &["resize", RES, "--size", "160MiB"]);
    assert!(again.stderr.contains("already"), "{again:?}");
    let mut new = attach(&cluster, A);
    for at in [64 * MIB, 100 * MIB, 159 * MIB] {
        assert_eq!(
            new.read(at, 8192).unwrap(),
            vec![0; 8192],
            "what was there is gone"
        );
    }
    new.write(159 * MIB, &PIECE).unwrap();
    new.flush().unwrap();
    old.write(6 * MIB, &PIECE).unwrap();
    assert_disks_equal(&cluster, 160);
    let pair = &cluster.status(A).unwrap()["peers"][0]["volumes"][0];
    assert_eq!(pair["out_of_sync_bytes"], 0, "nothing is resynced for it");

    let check = cluster.adm(A, &["check"]);
    assert!(check.stderr.contains("W0151"), "{check:?}");
    configure_size(&cluster, "160MiB");
    let plan = cluster.adm(A, &["adjust", "--dry-run"]);
    assert!(plan.stdout.contains("for create-md"), "{plan:?}");
    cluster.adm(A, &["adjust"]).ok();
    let check = cluster.adm(A, &["check"]);
    assert!(!check.stderr.contains("W0151"), "{check:?}");

    // The peer serves the new size, and a node that starts with the old one in its files does, too.
    configure_size(&cluster, "64MiB");
    drop((old, new));
    cluster.kill(A);
    cluster.wait_status(B, "it took over", |status| status["role"] == "Primary");
    let mut after = attach(&cluster, B);
    assert_eq!(after.read(159 * MIB, 4096).unwrap(), PIECE);
    after.write(158 * MIB, &PIECE).unwrap();
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
    after.flush().unwrap();
    drop(after);
    assert_disks_equal(&cluster, 160);
}
