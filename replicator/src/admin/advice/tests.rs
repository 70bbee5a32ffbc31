use super::super::samples::healthy;
use super::*;
use crate::admin::{GuestStatus, LastVerify, PAUSED_BY_USER, ResyncStatus};

fn conclude(change: impl FnOnce(&mut Status)) -> (Option<String>, Option<String>, u32) {
    let mut status = healthy();
    change(&mut status);
    let status = status.concluded();
    let resource = &status.resources[0];
    (
        resource.problem.clone(),
        resource.status.clone(),
        status.cluster.problems,
    )
}

#[test]
fn a_healthy_resource_needs_no_words() {
    assert_eq!(conclude(|_| ()), (None, None, 0));
}

#[test]
fn a_resource_that_is_not_up_is_no_problem() {
    let (problem, ..) = conclude(|status| {
        status.resources[0].up = false;
        status.resources[0].volumes[0].disk = None;
    });
    assert_eq!(problem, None);
}

#[test]
fn a_node_that_cannot_record_its_votes_is_a_problem_of_its_own() {
    let (problem, _, problems) =
        conclude(|status| status.cluster.store_error = Some("no space left".to_owned()));
    assert_eq!((problem, problems), (None, 1));
}

/// Story: `twinadm status` right after `secondary`: the role changed, the session is made anew.
#[test]
fn a_session_that_is_made_anew_is_no_problem_for_a_second() {
    let away = |seconds: Option<f64>, change: fn(&mut PeerStatus)| {
        let (problem, ..) = conclude(|status| {
            let peer = &mut status.resources[0].peers[0];
            peer.connection = ConnectionState::Connecting;
            peer.role = Role::Unknown;
            peer.volumes[0].disk = DiskState::DUnknown;
            peer.disconnected_seconds = seconds;
            change(peer);
        });
        problem
    };
    let lost = Some("W0108".to_owned());
    assert_eq!(away(Some(0.9), |_| {}), None);
    assert_eq!(away(Some(1.0), |_| {}), lost);
    assert_eq!(away(None, |_| {}), lost, "it never was here");
    let refused = |peer: &mut PeerStatus| peer.refused = Some("different histories".to_owned());
    assert_eq!(away(Some(0.1), refused), lost);
    let alone = |peer: &mut PeerStatus| peer.connection = ConnectionState::StandAlone;
    assert_eq!(away(Some(0.1), alone), lost);
}

#[test]
fn held_guests_come_before_the_missing_peer() {
    let (problem, sentence, problems) = conclude(|status| {
        status.cluster.voters_seen = 1;
        status.resources[0].suspended = Some("quorum".to_owned());
        status.resources[0].peers[0].connection = ConnectionState::Connecting;
    });
    assert_eq!(problem.as_deref(), Some("E0503"));
    assert_eq!(problems, 1);
    assert!(sentence.unwrap().starts_with("kvm-a sees 1 of 3 voters"));
}

#[test]
fn a_resync_says_that_there_is_one_copy() {
    let (problem, sentence, _) = conclude(|status| {
        let volume = &mut status.resources[0].peers[0].volumes[0];
        volume.disk = DiskState::Inconsistent;
        volume.resync = Some(ResyncStatus::new(1, 2, None, None));
    });
    assert_eq!(problem.as_deref(), Some("W0107"));
    assert_eq!(
        sentence.as_deref(),
        Some("one up-to-date copy until the resync ends")
    );
}

#[test]
fn a_resync_held_by_order_says_which_words_let_it_go_on() {
    let mut both = healthy();
    let resource = &mut both.resources[0];
    resource.sync_paused = true;
    resource.peers[0].sync_paused = true;
    let held = Some(PAUSED_BY_USER.to_owned());
    resource.peers[0].volumes[0].resync = Some(ResyncStatus::new(1, 2, None, held));
    let resource = both.concluded().resources.remove(0);
    assert_eq!(resource.problem.as_deref(), Some("W0139"));
    assert_eq!(
        resource.action.as_deref(),
        Some("twinadm resume-sync vm-web and twinadm resume-sync vm-web --node kvm-b")
    );
}

#[test]
fn copies_that_differ_are_a_problem_until_they_are_mended() {
    for (repaired_bytes, expected) in [(0, Some("W0140")), (8192, None)] {
        let (problem, ..) = conclude(|status| {
            status.resources[0].peers[0].volumes[0].last_verify = Some(LastVerify {
                differing_bytes: 4096,
                unreadable_bytes: 4096,
                repaired_bytes,
                ..LastVerify::default()
            });
        });
        assert_eq!(problem.as_deref(), expected);
    }
}

#[test]
fn each_way_of_losing_a_copy_is_a_problem() {
    let (problem, ..) = conclude(|s| s.resources[0].volumes[0].disk = Some(DiskState::Failed));
    assert_eq!(problem.as_deref(), Some("W0109"));
    let (problem, ..) =
        conclude(|s| s.resources[0].peers[0].connection = ConnectionState::StandAlone);
    assert_eq!(problem.as_deref(), Some("W0108"));
    let (problem, ..) = conclude(|s| s.resources[0].peers[0].volumes[0].disk = DiskState::Diskless);
    assert_eq!(problem.as_deref(), Some("W0136"));
}

#[test]
fn a_disk_that_does_not_answer_is_a_problem_for_guests_or_for_the_second_copy() {
    let (problem, sentence, _) =
        conclude(|status| status.resources[0].suspended = Some("disk".to_owned()));
    assert_eq!(problem.as_deref(), Some("E0503"));
    assert!(sentence.unwrap().contains("does not answer"));
    let (problem, sentence, _) = conclude(|status| {
        let volume = &mut status.resources[0].volumes[0];
        volume.disk_error = Some("the disk does not answer".to_owned());
    });
    assert_eq!(problem.as_deref(), Some("W0109"));
    assert!(sentence.unwrap().ends_with("the disk does not answer"));
}

#[test]
fn why_a_disk_is_away_is_told_with_it() {
    let (_, sentence, _) = conclude(|status| {
        let volume = &mut status.resources[0].volumes[0];
        volume.disk = Some(DiskState::Diskless);
        volume.disk_error = Some("there is no metadata".to_owned());
    });
    let sentence = sentence.unwrap();
    assert!(
        sentence.ends_with("is Diskless: there is no metadata"),
        "{sentence}"
    );
}

#[test]
fn a_replica_that_is_behind_without_a_resync_is_a_problem() {
    let (problem, ..) = conclude(|s| s.resources[0].volumes[0].disk = Some(DiskState::Outdated));
    assert_eq!(problem.as_deref(), Some("W0109"));
}

#[test]
fn a_lost_arbitrator_counts_although_no_resource_suffers() {
    let (problem, _, problems) = conclude(|status| {
        status.cluster.voters_seen = 2;
        if let Some(arbitrator) = &mut status.cluster.arbitrator {
            arbitrator.seen = false;
        }
    });
    assert_eq!((problem, problems), (None, 1));
}

#[test]
fn new_and_held_resources_say_how_to_go_on() {
    let (problem, sentence, _) = conclude(|status| {
        status.resources[0].view = None;
        status.resources[0].peers[0].volumes[0].disk = DiskState::Inconsistent;
    });
    assert_eq!(problem, None);
    assert!(sentence.unwrap().starts_with("new"));
    let (problem, sentence, _) = conclude(|status| status.resources[0].held = true);
    assert_eq!(problem, None);
    assert!(sentence.unwrap().contains("by hand"));
}

/// Story: the disk of the Primary failed, its guests are served from the peer's. `attach` on a Primary
/// is refused, so that is not what it is told to do.
#[test]
fn a_failed_disk_is_attached_where_no_guest_is_served() {
    let advised = |role| {
        let mut status = healthy();
        let resource = &mut status.resources[0];
        resource.role = Some(role);
        resource.volumes[0].disk = Some(DiskState::Failed);
        status.concluded().resources[0].action.clone().unwrap()
    };
    let primary = advised(Role::Primary);
    assert!(primary.contains("then: twinadm move"), "{primary}");
    let secondary = advised(Role::Secondary);
    assert!(secondary.contains("then: twinadm attach"), "{secondary}");
}

#[test]
fn a_survivor_under_manual_failover_says_whose_turn_it_is() {
    let said = |failover, in_sync: &[&str]| {
        let (problem, text, _) = conclude(|status| {
            let (node, resource) = (status.node.clone(), &mut status.resources[0]);
            let peer = &mut resource.peers[0];
            peer.connection = ConnectionState::Connecting;
            peer.disconnected_seconds = Some(60.0);
            resource.role = Some(Role::Secondary);
            resource.failover = failover;
            resource.view_primary = Some(peer.node.clone());
            let named = |name: &&str| match *name {
                "here" => node.clone(),
                _ => peer.node.clone(),
            };
            resource.in_sync = in_sync.iter().map(named).collect();
        });
        assert_eq!(problem.as_deref(), Some("W0108"));
        text.unwrap()
    };
    let both = &["here", "there"][..];
    assert!(said(Failover::Manual, both).contains("failover is manual"));
    assert!(!said(Failover::Auto, both).contains("manual"));
    let outdated = said(Failover::Manual, &["there"]);
    assert!(
        !outdated.contains("manual"),
        "`primary` would be refused here"
    );
}

/// Story: the volume is served, and nobody is there for whom it is.
#[test]
fn a_guest_that_does_not_run_is_a_problem_and_one_that_is_off_by_hand_is_none() {
    let said = |state: &str| {
        conclude(|status| {
            status.resources[0].guest = Some(GuestStatus {
                domain: "web".to_owned(),
                node: Some("kvm-a".to_owned()),
                state: state.to_owned(),
                why: Some("no such machine type".to_owned()),
            });
        })
    };
    for state in [
        "blocked",
        "waiting-to-retry",
        "running-unguarded",
        "stop-failed",
    ] {
        let (problem, status, problems) = said(state);
        assert_eq!(
            (problem.as_deref(), problems),
            (Some("W0145"), 1),
            "{state}"
        );
        assert!(status.is_some_and(|words| words.contains("no such machine type")));
    }
    for state in ["running", "off", "starting", "waiting-for-fence", "unknown"] {
        assert_eq!(said(state), (None, None, 0), "{state}");
    }
}

/// Story: a node that was left behind serves by force. First its peer is away, then it is back with
/// what it held.
#[test]
fn a_forced_primary_is_a_problem_until_one_history_is_given_up() {
    let forced = |diverged| {
        conclude(|status| {
            let resource = &mut status.resources[0];
            resource.role = Some(Role::Primary);
            resource.forced = true;
            let peer = &mut resource.peers[0];
            peer.connection = ConnectionState::Connecting;
            peer.disconnected_seconds = Some(60.0);
            if diverged {
                peer.connection = ConnectionState::StandAlone;
                peer.refused = Some("the two replicas have different histories".to_owned());
                peer.diverged = true;
            }
        })
    };
    let (problem, sentence, _) = forced(false);
    assert_eq!(problem.as_deref(), Some("W0141"));
    assert!(sentence.unwrap().contains("by force"));
    let (problem, sentence, _) = forced(true);
    assert_eq!(problem.as_deref(), Some("E0301"));
    assert!(sentence.unwrap().contains("another history"));
}

/// Story: the arbitrator died, then the peer. Nothing here goes on by itself any more.
#[test]
fn a_primary_held_without_any_other_voter_is_not_told_to_wait() {
    let action = |quorum| {
        let mut status = healthy();
        status.cluster.quorum = quorum;
        status.resources[0].suspended = Some("peer".to_owned());
        status.concluded().resources[0].action.clone()
    };
    assert_eq!(action(true), None);
    assert!(action(false).unwrap().contains("another voter back"));
}
