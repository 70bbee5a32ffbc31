//! Why a node is Primary or is not, for people: the answer, the evidence, what helps.

use replicator::admin::{PreconditionReport, Verdict, ViewReport, WhyReport};

use super::history::entry_line;
use super::quorum::span;

/// The whole report, every line ended.
#[must_use]
pub fn why_text(report: &WhyReport) -> String {
    let serves = report.verdict == Verdict::Primary;
    let mut lines = vec![format!("{}.", report.summary)];
    lines.extend(report.preconditions.iter().filter_map(precondition_line));
    lines.push(label("view", &view_words(report.view.as_ref())));
    lines.push(label("votes", &votes_words(report)));
    if report.lease.needed {
        let left = report
            .lease
            .remaining_seconds
            .filter(|_| !report.lease.lapsed);
        let words = left.map_or("none".to_owned(), |left| format!("runs for {}", span(left)));
        lines.push(label("lease", &words));
    }
    if let Some(left) = report.grant.remaining_seconds.filter(|_| !serves) {
        let after = if report.grant.boot_wait {
            ", for all that is known after the start"
        } else {
            ""
        };
        let words = format!("the peer may rely on this node for {}{after}", span(left));
        lines.push(label("grant", &words));
    }
    lines.push(label(
        "failover",
        &report.failover.to_string().to_lowercase(),
    ));
    lines.extend(report.placement.as_ref().map(|it| label("place", &it.text)));
    for (name, value) in [
        ("order", &report.order),
        ("deciding", &report.proposal),
        ("given up", &report.last_abort),
    ] {
        lines.extend(value.as_ref().map(|value| label(name, value)));
    }
    lines.push(label(
        "force",
        &format!("would lose {}", report.force_loses),
    ));
    lines.extend(labelled("history", report.history.iter().map(entry_line)));
    lines.extend(labelled("next", report.help.iter().cloned()));
    lines.join("\n") + "\n"
}

fn precondition_line(it: &PreconditionReport) -> Option<String> {
    let mark = match it.met? {
        true => "yes",
        false => "NO",
    };
    Some(format!("  {mark:<3}  {:<15}  {}", it.name, it.text))
}

fn label(name: &str, words: &str) -> String {
    format!("{name:<8} {words}")
}

/// The label before the first, and the same indent before the others.
fn labelled(name: &str, words: impl Iterator<Item = String>) -> Vec<String> {
    let names = std::iter::once(name).chain(std::iter::repeat(""));
    words
        .zip(names)
        .map(|(words, name)| label(name, &words))
        .collect()
}

fn view_words(view: Option<&ViewReport>) -> String {
    let Some(view) = view else {
        return "none: it never had a Primary".to_owned();
    };
    let mut words = format!(
        "{} ({}): Primary {}, in sync {}",
        view.number,
        view.cause,
        view.primary,
        view.in_sync.join(" and ")
    );
    for (said, text) in [
        (view.held, ", held by hand"),
        (view.lossy, ", acknowledged writes may be missing"),
        (!view.committed, ", not known to be committed"),
    ] {
        if said {
            words.push_str(text);
        }
    }
    words
}

fn votes_words(report: &WhyReport) -> String {
    let seen = report.voters.iter().filter(|voter| voter.seen).count();
    let silent = report.voters.iter().filter(|voter| !voter.seen);
    let silent: Vec<_> = silent
        .map(|voter| match voter.last_seen_seconds {
            Some(ago) => format!("{} silent for {}", voter.node, span(ago)),
            None => format!("{} never heard", voter.node),
        })
        .collect();
    let mut words = format!(
        "{seen} of {} seen, {} needed",
        report.voters.len(),
        report.votes_needed
    );
    if !silent.is_empty() {
        words += &format!(": {}", silent.join(", "));
    }
    words
}

#[cfg(test)]
mod tests {
    use replicator::admin::{GrantReport, LeaseReport, VoterReport};
    use replicator::types::Failover;

    use super::*;

    fn precondition(name: &str, met: Option<bool>, text: &str) -> PreconditionReport {
        PreconditionReport {
            name: name.to_owned(),
            met,
            text: text.to_owned(),
        }
    }

    fn voter(node: &str, seen: bool) -> VoterReport {
        VoterReport {
            node: node.to_owned(),
            role: "data".to_owned(),
            id: None,
            seen,
            last_seen_seconds: Some(if seen { 0.1 } else { 75.0 }),
            rtt_seconds: None,
            paths_up: 1,
        }
    }

    #[test]
    fn a_secondary_is_explained_by_what_is_in_its_way() {
        let report = WhyReport {
            schema: String::new(),
            generated: String::new(),
            node: "kvm-b".to_owned(),
            resource: "vm-web".to_owned(),
            verdict: Verdict::Waiting,
            summary: "kvm-b is not Primary for vm-web: kvm-a may still serve".to_owned(),
            preconditions: vec![
                precondition("up", Some(true), "the resource is up on kvm-b"),
                precondition("founded", None, "does not arise"),
                precondition("peer-gone", Some(false), "kvm-a may still serve"),
            ],
            view: Some(ViewReport {
                number: 7,
                committed: true,
                primary: "kvm-a".to_owned(),
                in_sync: vec!["kvm-a".to_owned(), "kvm-b".to_owned()],
                held: false,
                lossy: false,
                cause: "Added".to_owned(),
            }),
            voters: vec![
                voter("kvm-a", false),
                voter("kvm-b", true),
                voter("arb", true),
            ],
            votes_needed: 2,
            lease: LeaseReport::default(),
            grant: GrantReport {
                remaining_seconds: Some(1.25),
                boot_wait: false,
                seal: 3,
            },
            failover: Failover::Auto,
            order: None,
            proposal: None,
            last_abort: None,
            peer: None,
            force_loses: "no acknowledged write".to_owned(),
            force_loses_bytes: Some(0),
            placement: None,
            history: Vec::new(),
            help: vec!["first".to_owned(), "second".to_owned()],
        };
        assert_eq!(
            why_text(&report),
            "kvm-b is not Primary for vm-web: kvm-a may still serve.\n\
             \x20 yes  up               the resource is up on kvm-b\n\
             \x20 NO   peer-gone        kvm-a may still serve\n\
             view     7 (Added): Primary kvm-a, in sync kvm-a and kvm-b\n\
             votes    2 of 3 seen, 2 needed: kvm-a silent for 1m15s\n\
             grant    the peer may rely on this node for 1.2 s\n\
             failover auto\n\
             force    would lose no acknowledged write\n\
             next     first\n\
             \x20        second\n"
        );
    }
}
