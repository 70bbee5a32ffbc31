//! The documented samples, letter by letter.

use super::super::samples::{down, healthy, quorum_lost, resyncing};
use super::*;

fn text(status: &Status) -> String {
    status_text(status, Detail::default())
}

#[test]
fn all_is_well_in_three_lines_a_resource_at_most() {
    assert_eq!(
        text(&healthy()),
        "\
lab  node:kvm-a  quorum:yes(3/3)  arbitrator:arb(ok)  resources:2  problems:0
vm-db role:Secondary disk:UpToDate prefer:kvm-b guest:db@kvm-b
  kvm-b role:Primary peer-disk:UpToDate
vm-web role:Primary disk:UpToDate prefer:kvm-a guest:web@kvm-a
  kvm-b role:Secondary peer-disk:UpToDate
"
    );
}

#[test]
fn a_resync_shows_its_line_and_what_it_means() {
    assert_eq!(
        text(&resyncing()),
        "\
lab  node:kvm-a  quorum:yes(3/3)  arbitrator:arb(ok)  resources:1  problems:1
vm-web role:Primary disk:UpToDate prefer:kvm-a guest:web@kvm-a
  kvm-b role:Secondary replication:SyncSource peer-disk:Inconsistent
    [=======>............] 37.2%  14.9/40.0 GiB  212 MiB/s  eta 2m01s
status: vm-web: one up-to-date copy until the resync ends.
action: none; it continues by itself.
"
    );
}

#[test]
fn a_node_that_is_cut_off_says_what_it_sees_and_what_to_do() {
    assert_eq!(
        text(&quorum_lost()),
        "\
lab  node:kvm-a  quorum:no(1/3)  arbitrator:arb(lost)  resources:1  problems:2
vm-web role:Primary disk:UpToDate quorum:no suspended:quorum prefer:kvm-a guest:web@kvm-a(paused-io)
  kvm-b connection:Connecting last-seen:48s
status: vm-web: kvm-a sees 1 of 3 voters and holds all reads and writes; kvm-b
        may have taken over.
action: restore the link to kvm-b or arb; I/O then resumes, or, if kvm-b took
        over, kvm-a rejoins as Secondary by itself
status: the arbitrator arb does not answer.
action: bring it or the link to it back; until then the loss of a node holds
        I/O.
"
    );
}

#[test]
fn a_held_resource_and_one_that_is_down_say_so() {
    let mut status = healthy();
    status.resources[0].held = true;
    status.resources[1] = down();
    let shown = text(&status.concluded());
    assert!(
        shown.contains("vm-db role:Secondary disk:UpToDate held:yes prefer:kvm-b"),
        "{shown}"
    );
    assert!(
        shown.contains("status: vm-db: demoted by hand: no node promotes itself.\n"),
        "{shown}"
    );
    assert!(shown.contains("\nvm-web up:no\n"), "{shown}");
}

#[test]
fn a_node_without_a_vote_says_why_and_what_to_do() {
    let mut status = healthy();
    status.cluster.store_error = Some("writing /s/voter-store: no space left on device".to_owned());
    let shown = text(&status.concluded());
    assert!(shown.contains("problems:1"), "{shown}");
    let said = "\
status: kvm-a cannot record its votes, so it has none: writing /s/voter-store:
        no space left on device.
action: free space on the disk of its state directory, or mend it, then restart
        the daemon; until then the loss of another node holds I/O.
";
    assert!(shown.ends_with(said), "{shown}");
}

#[test]
fn clear_text_beyond_loopback_is_loud() {
    let mut status = healthy();
    status.cluster.insecure = true;
    assert!(
        text(&status)
            .lines()
            .next()
            .unwrap()
            .ends_with("INSECURE:clear-text")
    );
}

#[test]
fn the_portable_loop_is_named_and_the_usual_one_when_asked() {
    let mut status = healthy();
    assert!(!text(&status).contains("io:"));
    let verbose = Detail {
        verbose: true,
        ..Detail::default()
    };
    assert!(status_text(&status, verbose).contains("io:io_uring view:7 protocol:C size:40.0GiB"));
    status.resources[0].io_backend = Some("portable".to_owned());
    assert!(text(&status).contains("io:portable"));
}

#[test]
fn only_problems_when_asked() {
    let only = Detail {
        problems_only: true,
        ..Detail::default()
    };
    assert_eq!(status_text(&healthy(), only).lines().count(), 1);
    assert!(status_text(&resyncing(), only).contains("vm-web role:Primary"));
}

#[test]
fn one_line_a_change_has_no_number_that_moves_by_itself() {
    let line = resource_line(&resyncing().resources[0]);
    assert_eq!(
        line,
        "vm-web role:Primary disk:UpToDate prefer:kvm-a guest:web@kvm-a \
         | kvm-b role:Secondary replication:SyncSource peer-disk:Inconsistent"
    );
    assert!(!resource_line(&quorum_lost().resources[0]).contains("48s"));
}
