//! `adjust`: files that change while the daemons run and guests are served.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cluster::{A, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::wait_for;

const NEW: &str = "vm-mail";

fn file_of(cluster: &Cluster, resource: &str) -> PathBuf {
    cluster.dir.join(format!("etc/resources.d/{resource}.toml"))
}

/// Writes a second resource; its disks are there.
fn write_new_resource(cluster: &Cluster) {
    let dir = cluster.dir.display();
    for node in NAMES.iter().take(2) {
        let disk = fs::File::create(cluster.dir.join(format!("{node}-{NEW}.img"))).unwrap();
        disk.set_len(16 << 20).unwrap();
    }
    let text = format!(
        "[resource.{NEW}]\n[[resource.{NEW}.volume]]\nid = 0\n\
         disk = {{ kvm-a = \"{dir}/kvm-a-{NEW}.img\", kvm-b = \"{dir}/kvm-b-{NEW}.img\" }}\n\
         meta = {{ kvm-a = \"{dir}/kvm-a-{NEW}.md\", kvm-b = \"{dir}/kvm-b-{NEW}.md\" }}\n"
    );
    fs::write(file_of(cluster, NEW), text).unwrap();
}

/// A resource is added, served, mirrored, survives its Primary, and goes again, while the guest of the
/// other one keeps its connection.
#[test]
fn a_resource_comes_and_goes_without_a_restart() {
    let mut cluster = Cluster::serving(&Setup::default());
    let limit = Duration::from_secs(10);
    let mut guest = Nbd::attach(&cluster.nbd_socket(A), RES, limit).unwrap();
    guest.write(0, &[1; 4096]).unwrap();
    write_new_resource(&cluster);
    let unknown = cluster.adm(A, &["up", NEW]).exits(7);
    assert!(unknown.contains("twinadm adjust"), "{unknown}");
    let told = cluster.adm(A, &["adjust", "--dry-run"]);
    assert_eq!(told.code, Some(14), "{told:?}");
    assert!(told.stdout.starts_with("+ resource vm-mail"), "{told:?}");
    cluster.adm(A, &["up", NEW]).exits(7);
    cluster.adm(A, &["adjust"]).ok();
    // The other node as its administrator does it who only knows signals.
    cluster.signal(B, Signal::SIGHUP);
    wait_for("the other node knows it", PATIENCE, || {
        (cluster.adm(B, &["role", NEW]).code == Some(0)).then_some(())
    });
    assert_eq!(cluster.adm(A, &["adjust", "--dry-run"]).ok(), "");
    for node in [A, B] {
        cluster.adm(node, &["create-md", NEW]).ok();
        cluster.adm(node, &["up", NEW]).ok();
    }
    cluster.adm(A, &["primary", NEW]).ok();
    cluster.adm(A, &["wait-sync", NEW]).ok();
    let socket = |node: usize| cluster.run_dir(node).join(format!("nbd/{NEW}.sock"));
    let (on_a, on_b) = (socket(A), socket(B));
    let mut mail = Nbd::attach(&on_a, NEW, limit).unwrap();
    mail.write(8192, &[2; 4096]).unwrap();
    // Nothing of this was noticed.
    guest.write(4096, &[1; 4096]).unwrap();
    drop((guest, mail));
    // It is one like the others: the survivor takes it over, and what was up comes up again.
    cluster.kill(A);
    let mut mail = wait_for("the survivor serves it", PATIENCE, || {
        Nbd::attach(&on_b, NEW, limit).ok()
    });
    assert_eq!(mail.read(8192, 4096).unwrap(), [2; 4096]);
    drop(mail);
    cluster.start(A);
    cluster.adm(A, &["wait-sync", NEW]).ok();
    // Removed from the files: kept while it is up, forgotten after.
    fs::remove_file(file_of(&cluster, NEW)).unwrap();
    let kept = cluster.adm(B, &["adjust"]).ok();
    assert!(kept.starts_with("! resource vm-mail"), "{kept}");
    cluster.adm(B, &["role", NEW]).ok();
    cluster.adm(B, &["down", NEW]).ok();
    let gone = cluster.adm(B, &["adjust"]).ok();
    assert!(gone.starts_with("- resource vm-mail"), "{gone}");
    cluster.adm(B, &["role", NEW]).exits(7);
}

/// What may change while a resource is up does; what may not waits, and counts once it was down.
#[test]
fn keys_change_live_or_wait_until_the_resource_is_down() {
    let cluster = Cluster::serving(&Setup::default());
    let path = file_of(&cluster, RES);
    let old = fs::read_to_string(&path).unwrap();
    let head = format!("[resource.{RES}]\n");
    let new = old.replace(
        &head,
        &format!("{head}failover = \"manual\"\nforward = true\n"),
    );
    fs::write(&path, new).unwrap();
    let cluster_file = cluster.dir.join("etc/twinblk.toml");
    let text = fs::read_to_string(&cluster_file).unwrap();
    fs::write(
        &cluster_file,
        text.replace("[net]\n", "[net]\ntimeout = \"4s\"\n"),
    )
    .unwrap();
    let told = cluster.adm(A, &["adjust"]).ok();
    let wanted = [
        "! net.timeout  \"3s\" → \"4s\"  with the next start of the daemon",
        "~ vm-web.failover  \"auto\" → \"manual\"  live, no interruption",
        "! vm-web.forward  false → true  kept while it is up: twinadm down, adjust, up",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), wanted);
    // What was taken over is no difference any more; one resource is asked about alone.
    let left = cluster.adm(A, &["adjust", RES, "--dry-run", "-o", "json"]);
    assert_eq!(left.code, Some(14), "{left:?}");
    let left: serde_json::Value = serde_json::from_str(&left.stdout).unwrap();
    assert_eq!(left["changes"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["changes"][0]["effect"], "waits-for-down");
    cluster.adm(A, &["down", RES]).ok();
    let told = cluster.adm(A, &["adjust", RES]).ok();
    assert_eq!(
        told,
        "~ vm-web.forward  false → true  live, no interruption\n"
    );
    cluster.adm(A, &["up", RES]).ok();
}

/// Files with a mistake change nothing, and the mistake is named.
#[test]
fn files_with_a_mistake_change_nothing() {
    let cluster = Cluster::serving(&Setup::default());
    write_new_resource(&cluster);
    let path = file_of(&cluster, NEW);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("id = 0", "id = 0\nsausage = 1")).unwrap();
    let refused = cluster.adm(A, &["adjust"]).exits(3);
    assert!(
        refused.contains("sausage") && refused.contains("twinadm check"),
        "{refused}"
    );
    cluster.adm(A, &["role", NEW]).exits(7);
    cluster.adm(A, &["role", RES]).ok();
    cluster.adm(A, &["adjust", "nosuch"]).exits(3);
    fs::remove_file(path).unwrap();
    cluster.adm(A, &["adjust", "nosuch"]).exits(7);
}
