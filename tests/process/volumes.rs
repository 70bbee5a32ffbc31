//! A resource with two volumes, as a database has them: data and log.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{A, ARBITRATOR, B, Cluster, NAMES, RES, Setup};
use crate::nbd::Nbd;

const LIMIT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;
/// Not a multiple of what is copied at once.
const DATA_LEN: u64 = 21 * MIB;
const LOG_LEN: u64 = 8 * MIB;

fn log_disk(cluster: &Cluster, node: usize) -> PathBuf {
    cluster.dir.join(format!("{}.log.img", NAMES[node]))
}

/// Gives the resource its second volume, before anything runs.
fn add_log(cluster: &Cluster) {
    for node in [A, B] {
        let file = File::create(log_disk(cluster, node)).unwrap();
        file.set_len(LOG_LEN).unwrap();
    }
    let path = cluster.dir.join(format!("etc/resources.d/{RES}.toml"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("id = 0", "id = 0\nsize = \"21MiB\"")).unwrap();
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    let [a, b] = [A, B].map(|node| log_disk(cluster, node));
    write!(
        file,
        "[[resource.{RES}.volume]]\nid = 1\nsize = \"8MiB\"\n\
         disk = {{ kvm-a = \"{}\", kvm-b = \"{}\" }}\n",
        a.display(),
        b.display()
    )
    .unwrap();
}

fn attach(cluster: &Cluster, node: usize) -> [Nbd; 2] {
    let log = format!("{RES}/1");
    let to = |name| Nbd::attach(&cluster.nbd_socket(node), name, LIMIT).unwrap();
    [to(RES), to(&log)]
}

fn bytes(path: PathBuf, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    bytes
}

#[test]
fn both_volumes_are_on_the_other_node_after_a_kill_and_equal_after_the_return() {
    let mut cluster = Cluster::new(&Setup::default());
    add_log(&cluster);
    cluster.adm(A, &["create-md", &format!("{RES}/1")]).ok();
    cluster.adm(A, &["create-md", &format!("{RES}/1")]).ok();
    cluster.adm(A, &["create-md", RES]).exits(4);
    cluster.adm(B, &["create-md", RES]).ok();
    for node in [ARBITRATOR, A, B] {
        cluster.start(node);
    }
    for node in [A, B] {
        cluster.adm(node, &["up", RES]).ok();
    }
    cluster.adm(A, &["primary", RES]).ok();
    cluster.wait_both_up_to_date(A);
    let lines = cluster.adm(B, &["dstate", RES]).ok();
    assert_eq!(lines, "UpToDate/UpToDate\nUpToDate/UpToDate\n");
    let shown = cluster.adm(A, &["status", RES]).ok();
    assert!(shown.contains("\n  volume:1 disk:UpToDate\n"), "{shown}");

    let [mut data, mut log] = attach(&cluster, A);
    assert_eq!((data.size(), log.size()), (DATA_LEN, LOG_LEN));
    for nr in 0..20 {
        log.write(nr * 65_536, &[1; 4096]).unwrap();
        data.write(DATA_LEN - (nr + 1) * 65_536, &[2; 4096])
            .unwrap();
    }
    cluster.kill(A);
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
    let [mut data, mut log] = attach(&cluster, B);
    for nr in 0..20 {
        assert_eq!(log.read(nr * 65_536, 4096).unwrap(), [1; 4096]);
        let at = DATA_LEN - (nr + 1) * 65_536;
        assert_eq!(data.read(at, 4096).unwrap(), [2; 4096]);
    }
    data.write(DATA_LEN - MIB, &vec![3; 1 << 20]).unwrap();
    log.write(0, &[4; 4096]).unwrap();
    let marked = cluster.wait_status(B, "both are marked", |status| {
        let volumes = &status["peers"][0]["volumes"];
        let [data, log] = [0, 1].map(|nr: usize| volumes[nr]["out_of_sync_bytes"].as_u64());
        data >= Some(MIB) && log >= Some(4096)
    });
    assert_eq!(marked["volumes"][1]["nbd_clients"], 1);

    cluster.start(A);
    cluster.wait_both_up_to_date(B);
    data.flush().unwrap();
    log.flush().unwrap();
    for (path, len) in [
        (Cluster::disk as fn(&_, _) -> _, DATA_LEN),
        (log_disk, LOG_LEN),
    ] {
        let [a, b] = [A, B].map(|node| bytes(path(&cluster, node), len));
        assert!(a == b, "both disks hold the same");
    }

    // Only the last one can grow, and only what is said to.
    let refused = cluster.adm(B, &["resize", RES]).exits(4);
    assert!(refused.contains("E0455"), "{refused}");
    let refused = cluster.adm(B, &["resize", &format!("{RES}/0")]).exits(4);
    assert!(refused.contains("E0455"), "{refused}");
    let beyond = cluster.adm(B, &["attach", &format!("{RES}/2")]).exits(7);
    assert!(beyond.contains("E0703"), "{beyond}");
}
