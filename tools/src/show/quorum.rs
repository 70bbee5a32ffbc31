//! The voters for people.

use replicator::admin::{BallotReport, QuorumReport, VoterReport};

use super::size::duration;
use super::status::wrapped;

/// The whole report, every line ended.
#[must_use]
pub fn quorum_text(report: &QuorumReport) -> String {
    let QuorumReport {
        cluster,
        node,
        votes_seen,
        votes_needed,
        ..
    } = report;
    let quorum = if report.quorum { "yes" } else { "no" };
    let count = report.voters.len();
    let mut lines = vec![format!(
        "{cluster}  node:{node}  quorum:{quorum}({votes_seen}/{count})  needed:{votes_needed}"
    )];
    lines.extend(report.voters.iter().map(|it| voter_line(it, node)));
    lines.extend(wrapped("then:", &format!("{}.", report.outlook)));
    if let Some(why) = &report.store_error {
        lines.extend(wrapped("status:", &format!("{node} has no vote: {why}.")));
    }
    let timing = &report.timing;
    lines.push(format!("timing {}", timing.profile));
    lines.extend(timing.words.iter().map(|words| format!("  {words}")));
    for ballot in &report.resources {
        push_ballot(ballot, &mut lines);
    }
    lines.join("\n") + "\n"
}

fn voter_line(voter: &VoterReport, here: &str) -> String {
    let VoterReport { node, role, .. } = voter;
    let seen = match (voter.seen, voter.last_seen_seconds) {
        _ if node == here => "here".to_owned(),
        (true, _) => "seen".to_owned(),
        (false, Some(ago)) => format!("silent for {}", span(ago)),
        (false, None) => "never heard".to_owned(),
    };
    let mut words = vec![format!("  {node} {role} {seen}")];
    if let Some(rtt) = voter.rtt_seconds {
        words.push(format!("rtt:{:.1}ms", rtt * 1000.0));
    }
    if node != here {
        words.push(format!("paths:{}", voter.paths_up));
    }
    if let Some(id) = &voter.id {
        words.push(format!("id:{id}"));
    }
    words.join(" ")
}

/// Time for people: tenths below a minute.
pub(super) fn span(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds, at least 60; a saturated cast is what is wanted"
    )]
    duration(seconds as u64)
}

fn push_ballot(ballot: &BallotReport, lines: &mut Vec<String>) {
    let mut words = vec![ballot.resource.clone()];
    match (&ballot.accepted_view, ballot.committed_view) {
        (Some(view), committed) => {
            words.push(format!("view:{}({})", view.number, view.cause));
            words.push(format!("primary:{}", view.primary));
            words.push(format!("in-sync:{}", view.in_sync.join(",")));
            if view.held {
                words.push("held:yes".to_owned());
            }
            if !view.committed {
                let known = committed.map_or("none".to_owned(), |number| number.to_string());
                words.push(format!("committed:{known}"));
            }
        }
        (None, Some(committed)) => words.push(format!("view:{committed}")),
        (None, None) => words.push("view:none".to_owned()),
    }
    lines.push(words.join(" "));
    let accepted = ballot.accepted.as_deref().unwrap_or("none");
    lines.push(format!(
        "  ballot promised:{} accepted:{accepted} refuses-up-to:{} voters:{}",
        ballot.promised,
        ballot.seal,
        ballot.recorded.join(",")
    ));
}

#[cfg(test)]
mod tests {
    use replicator::admin::{TimingReport, ViewReport};

    use super::*;

    fn voter(node: &str, seen: bool, ago: Option<f64>) -> VoterReport {
        VoterReport {
            node: node.to_owned(),
            role: "data".to_owned(),
            id: None,
            seen,
            last_seen_seconds: ago,
            rtt_seconds: seen.then_some(0.000_21),
            paths_up: u8::from(seen),
        }
    }

    #[test]
    fn voters_deadlines_and_ballots_are_lines() {
        let report = QuorumReport {
            schema: String::new(),
            generated: String::new(),
            node: "kvm-a".to_owned(),
            cluster: "lab".to_owned(),
            quorum: true,
            votes_seen: 2,
            votes_needed: 2,
            voters: vec![
                voter("kvm-a", true, Some(0.0)),
                voter("kvm-b", false, Some(75.0)),
                voter("arb", true, Some(0.2)),
            ],
            store_error: None,
            timing: TimingReport {
                profile: "fast".to_owned(),
                beacon_seconds: 0.05,
                suspicion_seconds: 0.2,
                lease_seconds: 0.5,
                grant_seconds: 0.65,
                words: vec!["its peer takes over after 0.65 s of silence".to_owned()],
            },
            outlook: "a data node is away".to_owned(),
            resources: vec![BallotReport {
                resource: "vm-web".to_owned(),
                promised: "4.0.1".to_owned(),
                accepted: Some("3.0.1".to_owned()),
                accepted_view: Some(ViewReport {
                    number: 7,
                    committed: false,
                    primary: "kvm-a".to_owned(),
                    in_sync: vec!["kvm-a".to_owned()],
                    held: false,
                    lossy: false,
                    cause: "Removed".to_owned(),
                }),
                committed_view: Some(6),
                recorded: vec!["kvm-a".to_owned(), "arb".to_owned()],
                seal: 2,
            }],
        };
        assert_eq!(
            quorum_text(&report),
            "lab  node:kvm-a  quorum:yes(2/3)  needed:2\n\
             \x20 kvm-a data here rtt:0.2ms\n\
             \x20 kvm-b data silent for 1m15s paths:0\n\
             \x20 arb data seen rtt:0.2ms paths:1\n\
             then: a data node is away.\n\
             timing fast\n\
             \x20 its peer takes over after 0.65 s of silence\n\
             vm-web view:7(Removed) primary:kvm-a in-sync:kvm-a committed:6\n\
             \x20 ballot promised:4.0.1 accepted:3.0.1 refuses-up-to:2 voters:kvm-a,arb\n"
        );
    }
}
