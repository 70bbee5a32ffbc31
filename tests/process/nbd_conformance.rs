//! The judge of NBD servers, on a replicated export.

use std::fs;
use std::path::PathBuf;

use crate::cluster::{A, B, Cluster, Setup};
use crate::tools::{built, program};

/// No sentence of the specification is breached, MUST or SHOULD, and both replicas are the same
/// bytes after everything the judge wrote, trimmed and zeroed.
#[test]
fn a_replicated_export_keeps_every_sentence() {
    let judge: PathBuf = built("nbd-conformance", "nbd-conformance");
    let mut cluster = Cluster::serving(&Setup::default());
    let judge = judge.to_str().unwrap();
    let said = program(judge, &["--strict", "--uri", &cluster.nbd_uri(A)]);
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
    assert!(passed > 400, "only {passed} cases apply");
    // An orderly end, so that nothing is under way.
    cluster.adm(A, &["down", "vm-web"]).ok();
    cluster.kill(A);
    cluster.kill(B);
    assert!(
        fs::read(cluster.disk(A)).unwrap() == fs::read(cluster.disk(B)).unwrap(),
        "replicas"
    );
}
