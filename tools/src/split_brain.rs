//! `split-brain`: both sides of a resource whose replicas served apart, and the end of it.
//!
//! Nothing here decides: each side says what it holds, and the side that loses carries out an
//! `invalidate`, with all its refusals.

use std::fmt::Write;

use replicator::admin::{ErrorId, ErrorReport, ResourceStatus, exit};
use replicator::types::Role;
use serde_json::{Value, json};

use crate::cli;
use crate::context::{Context, Failure, Output};
use crate::orders::{self, MakeVerb, snapshot};
use crate::show::size::size;

/// One node's own words about the resource, or why there are none.
struct Side {
    node: String,
    said: Result<ResourceStatus, ErrorReport>,
}

impl Side {
    /// What it wrote that the other one never acknowledged, as far as it knows; `None`: not known.
    fn marked_bytes(&self) -> Option<u64> {
        let said = self.said.as_ref().ok()?;
        let volumes = said.peers.iter().flat_map(|peer| &peer.volumes);
        volumes
            .map(|volume| volume.out_of_sync_bytes)
            .try_fold(0_u64, |sum, bytes| Some(sum.saturating_add(bytes?)))
    }

    fn is_primary(&self) -> bool {
        self.said
            .as_ref()
            .is_ok_and(|said| said.role == Some(Role::Primary))
    }

    fn is_diverged(&self) -> bool {
        self.said
            .as_ref()
            .is_ok_and(|said| said.peers.iter().any(|peer| peer.diverged))
    }
}

/// Both sides, the one that was asked first.
fn sides(context: &Context, name: &str) -> Result<Vec<Side>, Failure> {
    let own = snapshot(context, Some(name))?;
    let peers: Vec<_> = own
        .resources
        .iter()
        .flat_map(|resource| resource.peers.iter().map(|peer| peer.node.clone()))
        .collect();
    let mut sides = Vec::new();
    for resource in own.resources {
        sides.push(Side {
            node: own.node.clone(),
            said: Ok(resource),
        });
    }
    for peer in peers {
        let there = Context {
            node: Some(peer.clone()),
            ..context.clone()
        };
        let said = snapshot(&there, Some(name)).and_then(|mut status| {
            let nothing =
                || ErrorReport::new(ErrorId::NoSuchResource, name, "it says nothing of it");
            status.resources.pop().ok_or_else(nothing)
        });
        sides.push(Side { node: peer, said });
    }
    Ok(sides)
}

/// `split-brain show`.
///
/// # Errors
/// If the daemon cannot be reached or there is no such resource.
pub(crate) fn show(context: &Context, arguments: &cli::OneResource) -> Result<u8, Failure> {
    let name = &arguments.resource;
    let sides = sides(context, name)?;
    match context.output {
        Output::Plain => context.put(&text(name, &sides))?,
        Output::Json => context.put_json(&document(name, &sides), false)?,
    }
    Ok(exit::OK)
}

fn diverged(sides: &[Side]) -> bool {
    sides.iter().any(Side::is_diverged)
}

fn text(name: &str, sides: &[Side]) -> String {
    let mut text = format!(
        "{name}: {}\n",
        if diverged(sides) {
            "the two replicas have different histories; neither is overwritten"
        } else {
            "the two replicas were not found to have different histories"
        }
    );
    for side in sides {
        let node = &side.node;
        let line = match &side.said {
            Err(report) => format!("  {node} does not answer: {}", report.what),
            Ok(said) => {
                let disk = said.volumes.first().and_then(|volume| volume.disk);
                let mut line = format!(
                    "  {node} role:{} disk:{} view:{}{}",
                    word(said.role.as_ref()),
                    word(disk.as_ref()),
                    said.view.map_or("none".to_owned(), |view| view.to_string()),
                    if said.forced && side.is_primary() {
                        " forced:yes"
                    } else {
                        ""
                    }
                );
                let other = said.peers.first().map_or("the other", |peer| &peer.node);
                match side.marked_bytes() {
                    Some(0) => {
                        line += &format!("\n    wrote nothing that {other} is known to lack")
                    }
                    Some(bytes) => {
                        line += &format!("\n    wrote {} that {other} may lack", size(bytes));
                    }
                    None => {
                        line += &format!("\n    what it wrote that {other} may lack is not known")
                    }
                }
                line
            }
        };
        text += &line;
        text.push('\n');
    }
    if !diverged(sides) {
        return text;
    }
    for keep in sides {
        let resolve = format!("twinadm split-brain resolve {name} --keep {}", keep.node);
        let first = match sides.iter().find(|side| side.is_primary()) {
            Some(primary) if primary.node != keep.node => format!(
                "twinadm secondary {name} --node {}, then twinadm primary {name} --force --node {}, \
                 then ",
                primary.node, keep.node
            ),
            Some(_) => String::new(),
            None => format!("twinadm primary {name} --force --node {}, then ", keep.node),
        };
        writeln!(text, "keep {}: {first}{resolve}", keep.node).unwrap_or(());
    }
    text
}

fn word(state: Option<&impl ToString>) -> String {
    state.map_or("none".to_owned(), ToString::to_string)
}

fn document(name: &str, sides: &[Side]) -> Value {
    let of = |side: &Side| {
        let said = side.said.as_ref().ok();
        json!({
            "node": side.node,
            "reachable": said.is_some(),
            "role": said.and_then(|said| said.role).map(|role| role.to_string()),
            "view": said.and_then(|said| said.view),
            "forced": said.map(|said| said.forced),
            "marked_bytes": side.marked_bytes(),
        })
    };
    json!({
        "schema": "twinblk.split-brain/1",
        "resource": name,
        "diverged": diverged(sides),
        "sides": sides.iter().map(of).collect::<Vec<_>>(),
    })
}

/// `split-brain resolve`.
///
/// # Errors
/// If the two have one history, the one to be kept is not Primary, or the other one refuses.
pub(crate) fn resolve(context: &Context, arguments: &cli::Resolve) -> Result<u8, Failure> {
    let name = arguments.resource.resource.as_deref().unwrap_or_default();
    let keep = &arguments.keep;
    let sides = sides(context, name)?;
    let what = format!("refusing `split-brain resolve {name} --keep {keep}`");
    let Some(kept) = sides.iter().find(|side| side.node == *keep) else {
        let report = ErrorReport::new(
            ErrorId::NoSuchPart,
            what,
            format!("{keep} holds no replica"),
        );
        return Err(report.into());
    };
    let Some(other) = sides.iter().find(|side| side.node != *keep) else {
        let report = ErrorReport::new(ErrorId::NoSuchPart, what, "there is no other replica");
        return Err(report.into());
    };
    if !diverged(&sides) {
        let why = "the two replicas were not found to have different histories";
        let report = ErrorReport::new(ErrorId::Unrelated, what, why);
        return Err(report.next(format!("twinadm status {name}")).into());
    }
    if !kept.is_primary() {
        let why = format!("{keep} is not Primary, so nothing can be copied from it");
        let mut report = ErrorReport::new(ErrorId::NoPrimary, what, why);
        if other.is_primary() {
            report = report.next(format!("twinadm secondary {name} --node {}", other.node));
        }
        let report = report
            .next(format!("twinadm primary {name} --force --node {keep}"))
            .next(format!(
                "then: twinadm split-brain resolve {name} --keep {keep}"
            ));
        return Err(report.into());
    }
    let there = Context {
        node: Some(other.node.clone()),
        ..context.clone()
    };
    let discard = context.discards(arguments.yes_discard);
    let make = MakeVerb::Invalidate(keep.clone(), discard);
    let code = orders::give_one(&there, &make, name)
        .map_err(|failure| in_own_words(failure, name, keep))?;
    if code == exit::OK {
        // Both gave up after the refusal.
        for node in [&other.node, keep] {
            let there = Context {
                node: Some(node.clone()),
                ..context.clone()
            };
            orders::give_one(&there, &MakeVerb::Connect, name)?;
        }
    }
    Ok(code)
}

/// The side that loses names the verb it was given; its user gave another one.
fn in_own_words(failure: Failure, name: &str, keep: &str) -> Failure {
    let Failure::Report(mut report) = failure else {
        return failure;
    };
    let typed = report
        .next
        .iter()
        .find_map(|step| step.split_once("--yes-discard="));
    if let Some((_, size)) = typed {
        let resolve = format!("twinadm split-brain resolve {name} --keep {keep}");
        report.next = vec![
            format!("look first: twinadm split-brain show {name}"),
            format!("discard them: {resolve} --yes-discard={size}"),
        ];
    }
    Failure::Report(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::samples::healthy;

    fn side(node: &str, role: Role, forced: bool, bytes: u64) -> Side {
        let mut said = healthy().resources.remove(1);
        said.role = Some(role);
        said.forced = forced;
        said.peers[0].node = if node == "kvm-a" { "kvm-b" } else { "kvm-a" }.to_owned();
        said.peers[0].diverged = true;
        said.peers[0].volumes[0].out_of_sync_bytes = Some(bytes);
        Side {
            node: node.to_owned(),
            said: Ok(said),
        }
    }

    #[test]
    fn both_sides_and_both_ways_out_are_told() {
        let sides = [
            side("kvm-b", Role::Primary, true, 0),
            side("kvm-a", Role::Secondary, false, 4 << 20),
        ];
        let text = text("vm-web", &sides);
        for wanted in [
            "different histories",
            "kvm-b role:Primary disk:UpToDate view:7 forced:yes",
            "wrote 4.0 MiB that kvm-b may lack",
            "keep kvm-b: twinadm split-brain resolve vm-web --keep kvm-b",
            "keep kvm-a: twinadm secondary vm-web --node kvm-b, then twinadm primary vm-web --force",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        let document = document("vm-web", &sides);
        assert_eq!(document["sides"][1]["marked_bytes"], 4 << 20);
        assert_eq!(document["diverged"], true);
    }

    #[test]
    fn a_side_that_does_not_answer_is_named() {
        let gone = Side {
            node: "kvm-a".to_owned(),
            said: Err(ErrorReport::new(ErrorId::NodeUnreachable, "no route", "")),
        };
        let text = text("vm-web", &[side("kvm-b", Role::Primary, true, 0), gone]);
        assert!(text.contains("kvm-a does not answer: no route"), "{text}");
    }
}
