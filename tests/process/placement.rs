//! A resource goes back to the node it is preferred on, and stays where an operator put it.

use serde_json::Value;

use crate::cluster::{A, B, Cluster, NAMES, PATIENCE, RES, Setup};
use crate::tools::wait_for;

fn word(cluster: &Cluster, node: usize) -> Option<String> {
    let status = cluster.status(node)?;
    Some(status["placement"]["word"].as_str()?.to_owned())
}

#[track_caller]
fn wait_word(cluster: &Cluster, node: usize, wanted: &str) {
    wait_for(wanted, PATIENCE, || {
        (word(cluster, node)? == wanted).then_some(())
    });
}

fn place(cluster: &Cluster, node: usize) -> String {
    let ran = cluster.adm(node, &["why", RES, "-o", "json"]);
    let why: Value = serde_json::from_str(&ran.stdout).unwrap();
    why["placement"]["text"].as_str().unwrap_or("").to_owned()
}

/// After a failure it goes back; an order by hand holds, across a restart too, until `up`.
#[test]
fn a_resource_goes_home_by_itself_and_stays_where_people_put_it() {
    let mut cluster = Cluster::serving(&Setup {
        resource: "prefer = \"kvm-a\"\nhold-down = \"500ms\"\n",
        ..Setup::default()
    });
    wait_word(&cluster, A, "home");
    wait_word(&cluster, B, "not-here");

    cluster.kill(A);
    cluster.wait_status(B, "it serves", |status| status["role"] == "Primary");
    wait_word(&cluster, B, "not-ready");
    let shown = cluster.adm(B, &["status", RES]);
    assert!(
        shown.stdout.contains("prefer:kvm-a failback:not-ready"),
        "{shown:?}"
    );
    cluster.start(A);
    cluster.wait_both_up_to_date(A);
    let told = cluster.adm(B, &["history", RES]);
    assert!(
        told.stdout.contains("back to its preferred node"),
        "{told:?}"
    );

    let moved = cluster.adm(A, &["move", RES, NAMES[B]]);
    assert!(
        moved.code == Some(0)
            && moved
                .stderr
                .contains("only after: twinadm up vm-web --node kvm-a"),
        "{moved:?}"
    );
    cluster.wait_both_up_to_date(B);
    wait_word(&cluster, B, "by-hand");
    assert_eq!(word(&cluster, A).as_deref(), Some("by-hand"));
    // Not forgotten by a restart either.
    cluster.kill(A);
    cluster.start(A);
    cluster.wait_both_up_to_date(B);
    wait_word(&cluster, B, "by-hand");
    assert!(
        place(&cluster, A).contains("moved to kvm-b by hand at"),
        "{}",
        place(&cluster, A)
    );
    let up = cluster.adm(A, &["up", RES]);
    assert!(up.stderr.contains("no order by hand keeps it"), "{up:?}");
    cluster.wait_both_up_to_date(A);
}

/// `prefer` and `failback` are taken over while the resource serves.
#[test]
fn a_preference_is_adjusted_while_it_serves() {
    let cluster = Cluster::serving(&Setup {
        resource: "prefer = \"kvm-b\"\nhold-down = \"0s\"\nfailback = \"never\"\n",
        ..Setup::default()
    });
    wait_word(&cluster, A, "never");
    for node in [A, B] {
        let file = cluster.dir.join("etc/resources.d/vm-web.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"never\"", "\"when-synced\"")).unwrap();
        cluster.adm(node, &["adjust", RES]).ok();
    }
    // `primary` was given here, by hand.
    wait_word(&cluster, A, "by-hand");
    cluster.adm(A, &["up", RES]).ok();
    cluster.wait_both_up_to_date(B);
}
