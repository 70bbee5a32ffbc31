//! The judge of NBD servers, on a replicated export.

use std::fs;
use std::path::PathBuf;

use crate::cluster::{A, B, Cluster, RES, Setup, Tcp};
use crate::nbd_tcp::Site;
use crate::tools::{built, program};

/// No sentence of the specification is breached, MUST or SHOULD, and both replicas are the same
/// bytes after everything the judge wrote, trimmed and zeroed.
#[test]
fn a_replicated_export_keeps_every_sentence() {
    let mut cluster = Cluster::serving(&Setup::default());
    judge(&cluster.nbd_uri(A), 400);
    expect_equal_replicas(&mut cluster);
}

#[test]
fn a_replicated_export_keeps_every_sentence_by_tcp() {
    let mut cluster = Cluster::serving(&Setup {
        tcp: Tcp::Clear,
        ..Setup::default()
    });
    judge(&format!("nbd://{}/{RES}", cluster.nbd_address(A)), 400);
    expect_equal_replicas(&mut cluster);
}

#[test]
fn a_replicated_export_keeps_every_sentence_within_tls() {
    let mut site = Site::serving("");
    let client = site.client("judge");
    judge(&site.uri(A, RES, &client), 400);
    expect_equal_replicas(&mut site.cluster);
}

/// At least so many cases apply, and none of those fails.
fn judge(uri: &str, count_min: usize) {
    let judge: PathBuf = built("nbd-conformance", "nbd-conformance");
    let judge = judge.to_str().unwrap();
    let said = program(judge, &["--strict", "--uri", uri]);
    let failed: Vec<&str> = said
        .stdout
        .lines()
        .filter(|l| l.starts_with("FAIL"))
        .collect();
    assert!(
        said.code == Some(0) && failed.is_empty(),
        "{failed:#?} {}",
        said.stderr
    );
    let passed = said
        .stdout
        .lines()
        .filter(|l| l.starts_with("pass"))
        .count();
    assert!(passed > count_min, "only {passed} cases apply");
}

fn expect_equal_replicas(cluster: &mut Cluster) {
    // An orderly end, so that nothing is under way.
    cluster.adm(A, &["down", "vm-web"]).ok();
    cluster.kill(A);
    cluster.kill(B);
    assert!(
        fs::read(cluster.disk(A)).unwrap() == fs::read(cluster.disk(B)).unwrap(),
        "replicas"
    );
}
