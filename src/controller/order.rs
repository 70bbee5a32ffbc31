//! Orders by operators: how they end, and the words for it.

use core::time::Duration;

use replicator::types::ViewNumber;

use super::output::Blocker;

/// An order was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Nothing had to be done.
    pub already: bool,
    /// The newest committed view known then; 0 if the resource was never founded.
    pub view: ViewNumber,
}

/// An order was not carried out. Nothing stays half done: what was begun was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderRefusal {
    /// The resource is not configured on this node.
    UnknownResource,
    /// Another order for the resource is being carried out.
    Busy,
    /// `down` or `secondary` took its place.
    Superseded,
    /// The order cannot be carried out as things are, and waiting does not mend it; or it did not
    /// within the time given.
    Blocked {
        /// What stands in the way; never empty.
        blockers: Vec<Blocker>,
        /// How long was waited; zero if waiting cannot mend it.
        waited: Duration,
    },
}

/// How a refusal maps to `twinadm`'s exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// 4: refused by a safety rule.
    Safety,
    /// 5: no quorum, or a lease that is not over.
    Quorum,
    /// 7: no such resource.
    Unknown,
    /// 9: what was waited for did not come in time.
    Timeout,
    /// 1: anything else.
    Failed,
}

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Stable id, `E0412`.
    pub id: &'static str,
    /// For the exit code.
    pub kind: RefusalKind,
    /// What was refused.
    pub what: String,
    /// Why, one reason a line.
    pub why: Vec<String>,
    /// What to do next, one step a line; never empty.
    pub next: Vec<String>,
}

/// Names for people, which the controller does not know.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The resource.
    pub resource: &'a str,
    /// This node.
    pub node: &'a str,
    /// The other data node.
    pub peer: &'a str,
}

impl Names<'_> {
    /// The command line of an order, to be given again.
    fn command(&self, verb: &str) -> String {
        match verb {
            "move" => format!("twinadm move {} {}", self.resource, self.peer),
            "primary --force" => format!("twinadm primary {} --force", self.resource),
            _ => format!("twinadm {verb} {}", self.resource),
        }
    }
}

impl OrderRefusal {
    /// What, why and what next, for the order called `verb` ("primary", "secondary", "move", "down",
    /// "up").
    #[must_use]
    pub fn explain(&self, verb: &str, names: &Names<'_>) -> Explanation {
        let Names { resource, node, .. } = names;
        let one = |id, kind, what: String, why: &str, next: String| Explanation {
            id,
            kind,
            what,
            why: vec![why.to_owned()],
            next: vec![next],
        };
        match self {
            Self::UnknownResource => one(
                "E0701",
                RefusalKind::Unknown,
                format!("no resource {resource} on {node}"),
                "it is not in this node's configuration",
                "twinadm status".to_owned(),
            ),
            Self::Busy => one(
                "E0405",
                RefusalKind::Safety,
                format!("{verb} {resource}: another order is being carried out on {node}"),
                "one order for a resource at a time",
                format!("wait for it, then: {}", names.command(verb)),
            ),
            Self::Superseded => one(
                "E0406",
                RefusalKind::Safety,
                format!("{verb} {resource} was given up on {node}"),
                "a later order for the resource overruled it",
                format!("twinadm status {resource}"),
            ),
            Self::Blocked { blockers, waited } => explain_blocked(verb, names, blockers, *waited),
        }
    }
}

fn explain_blocked(
    verb: &str,
    names: &Names<'_>,
    blockers: &[Blocker],
    waited: Duration,
) -> Explanation {
    let Names { resource, node, .. } = names;
    // What waiting cannot mend comes first: it decides what the refusal is called.
    let first = blockers
        .iter()
        .find(|blocker| !blocker.may_pass())
        .or(blockers.first())
        .unwrap_or(&Blocker::Undecided);
    let (id, kind) = first.id();
    let what = match verb {
        "primary" | "primary --force" => {
            format!("{node} may not become Primary for {resource}")
        }
        "move" => format!("{resource} was not moved to {}", names.peer),
        _ => format!("{verb} {resource} on {node} was not carried out"),
    };
    let mut why: Vec<_> = blockers.iter().map(|blocker| blocker.why(names)).collect();
    if !waited.is_zero() {
        why.push(format!("waited {:.1} s for it", waited.as_secs_f64()));
    }
    Explanation {
        id,
        kind,
        what,
        why,
        next: first.next(verb, names),
    }
}

impl Blocker {
    /// Stable id of a refusal for this reason, and what kind of refusal it is.
    #[must_use]
    pub fn id(&self) -> (&'static str, RefusalKind) {
        match self {
            Self::NotUp => ("E0401", RefusalKind::Safety),
            Self::NoReplica => ("E0402", RefusalKind::Safety),
            Self::Ineligible => ("E0403", RefusalKind::Safety),
            Self::WrongReplica => ("E0404", RefusalKind::Safety),
            Self::NotBlank => ("E0407", RefusalKind::Safety),
            Self::PeerNotBlank => ("E0408", RefusalKind::Safety),
            Self::NotInSync { .. } => ("E0410", RefusalKind::Safety),
            Self::PeerKeptMore => ("E0411", RefusalKind::Safety),
            Self::PeerActive { .. } => ("E0412", RefusalKind::Safety),
            Self::NoQuorum { .. } => ("E0501", RefusalKind::Quorum),
            Self::LeaseWait { .. } => ("E0502", RefusalKind::Quorum),
            Self::Undecided => ("E0503", RefusalKind::Quorum),
            Self::NotQuiet => ("E0901", RefusalKind::Timeout),
            Self::StoreSlow => ("E0902", RefusalKind::Timeout),
            Self::NobodyServes => ("E0413", RefusalKind::Safety),
            Self::Leaving => ("E0417", RefusalKind::Safety),
            Self::NotFounded => ("E0418", RefusalKind::Safety),
            Self::AwaitsPeer => ("E0904", RefusalKind::Timeout),
            Self::Held { .. } => ("E0419", RefusalKind::Safety),
            Self::ByHandOnly { .. } => ("E0420", RefusalKind::Safety),
            Self::PeerNotInSync { .. } => ("E0414", RefusalKind::Safety),
            Self::PeerNotUp => ("E0415", RefusalKind::Safety),
            Self::PeerNotReady => ("E0416", RefusalKind::Safety),
            Self::PeerSilent => ("E0601", RefusalKind::Timeout),
            Self::NotTaken => ("E0903", RefusalKind::Timeout),
            Self::NoData => ("E0421", RefusalKind::Safety),
            Self::Standby => ("E0422", RefusalKind::Safety),
            Self::ViewMoved { .. } => ("E0425", RefusalKind::Safety),
            Self::Maintenance => ("E0423", RefusalKind::Safety),
            Self::PeerHeard { .. } => ("E0424", RefusalKind::Safety),
            Self::DecidedAlone { .. } => ("E0426", RefusalKind::Safety),
            Self::HeadStart { .. } => ("E0905", RefusalKind::Timeout),
        }
    }

    /// The reason in one line.
    #[must_use]
    pub fn why(&self, names: &Names<'_>) -> String {
        let Names { node, peer, .. } = names;
        match self {
            Self::NotUp => format!("the resource is not up on {node}"),
            Self::NoReplica => format!("no backing device is attached on {node}"),
            Self::Ineligible => {
                format!(
                    "the replica on {node} is not whole: a resync or a disk failure is on record"
                )
            }
            Self::WrongReplica => {
                format!("the replica attached on {node} is not the one the view names")
            }
            Self::NotBlank => {
                format!("the replica on {node} was in use before, but no voter knows its resource")
            }
            Self::PeerNotBlank => {
                format!("the replica on {peer} was in use before, but no voter knows its resource")
            }
            Self::NotInSync { view } => {
                format!("view {view} leaves {node} out: it misses acknowledged writes")
            }
            Self::PeerKeptMore => format!(
                "{node} lost acknowledged writes when it restarted; {peer} may have kept them"
            ),
            Self::PeerActive { view, last_seen } => format!(
                "{peer} is Primary in view {view} and is alive: last seen {:.1} s ago",
                last_seen.as_secs_f64()
            ),
            Self::NoQuorum { seen } => format!("{node} sees {seen} of 3 voters, 2 are needed"),
            Self::LeaseWait { remaining } => format!(
                "{peer} may still serve: its lease is certainly over in {:.1} s",
                remaining.as_secs_f64()
            ),
            Self::Undecided => {
                "the voters have not decided: it may still happen when they are back".to_owned()
            }
            Self::NotQuiet => "guests' writes are still being made durable".to_owned(),
            Self::StoreSlow => "the voter store has not written yet".to_owned(),
            Self::NobodyServes => format!("neither {node} nor {peer} is Primary now"),
            Self::Leaving => format!("an order to stop serving is being carried out on {node}"),
            Self::NotFounded => "it never had a Primary: an operator chooses the first".to_owned(),
            Self::AwaitsPeer => format!("{peer} may be about to tell what replica it has"),
            Self::Held { view } => {
                format!("an order by hand holds since view {view}: nobody promotes itself")
            }
            Self::ByHandOnly {
                has_arbitrator: true,
            } => "failover is manual: nobody takes over without an operator".to_owned(),
            Self::ByHandOnly {
                has_arbitrator: false,
            } => "there is no arbitrator, so nobody takes over without an operator".to_owned(),
            Self::PeerNotInSync { view } => {
                format!("view {view} leaves {peer} out: it misses acknowledged writes")
            }
            Self::PeerNotUp => format!("the resource is not up on {peer}"),
            Self::PeerSilent => format!("{peer} is not heard"),
            Self::PeerNotReady => format!("the replica on {peer} is not attached and whole"),
            Self::NotTaken => {
                format!("{peer} did not take over, and so {node} serves again: nothing was lost")
            }
            Self::ViewMoved { view } => format!(
                "view {view} was decided meanwhile, or was not known here: something else would be lost"
            ),
            Self::Standby => format!("{node} is in standby: it takes nothing over by itself"),
            Self::Maintenance => {
                format!("maintenance is on at {node}: it takes nothing over by itself")
            }
            Self::HeadStart { remaining } => format!(
                "{peer} is preferred and may be starting, too: it has the first word for {:.1} s",
                remaining.as_secs_f64()
            ),
            Self::PeerHeard { last_seen } => format!(
                "{peer} is alive: it was heard {:.1} s ago",
                last_seen.as_secs_f64()
            ),
            Self::DecidedAlone { view, heard } => {
                let others = if *heard {
                    "another voter is heard, and may have gone on without it"
                } else {
                    "others may have gone on without it"
                };
                format!(
                    "view {view} was forced on {node} alone, and counts on no other voter: {others}"
                )
            }
            Self::NoData => {
                format!("the replica on {node} is new: it holds nothing of the resource")
            }
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn next(&self, verb: &str, names: &Names<'_>) -> Vec<String> {
        let Names {
            resource,
            node,
            peer,
        } = names;
        let again = format!("then: {}", names.command(verb));
        match self {
            Self::NotUp => vec![format!("twinadm up {resource}"), again],
            Self::ViewMoved { .. } => vec![format!(
                "see what would be lost now: twinadm primary {resource} --force"
            )],
            Self::Standby => vec![
                format!("twinadm node resume {node}"),
                format!("or by hand: twinadm primary {resource} --node {node}"),
            ],
            Self::Maintenance => vec![
                "twinadm maintenance off".to_owned(),
                format!("or by hand: twinadm primary {resource} --node {node}"),
            ],
            Self::PeerHeard { .. } => vec![
                format!("to have it here: twinadm move {resource} {node}"),
                format!("power {peer} off first, then: twinadm confirm-fenced {peer}"),
            ],
            Self::DecidedAlone { heard: false, .. } => vec![
                format!("nobody else served it since? twinadm primary {resource} --node {node}"),
                format!("else start {peer}, which then serves"),
            ],
            Self::DecidedAlone { heard: true, .. } => vec![
                format!("see who has the newest data: twinadm status {resource} --node {peer}"),
                format!(
                    "{peer} serves by itself if it may, or: on {peer}, twinadm primary {resource}"
                ),
                format!(
                    "{node}'s are the ones to keep? what that would lose: twinadm primary {resource} --force"
                ),
            ],
            Self::NoData => vec![
                format!("attach the replica that was in use: twinadm attach {resource}"),
                format!("or let {node} copy it from {peer}: on {peer}, twinadm primary {resource}"),
            ],
            Self::NoReplica => vec![format!("twinadm attach {resource}"), again],
            Self::Ineligible | Self::WrongReplica | Self::NotInSync { .. } => vec![
                format!("on {peer}: twinadm primary {resource}"),
                format!("{node} then resyncs by itself: twinadm wait-sync {resource}"),
                format!(
                    "{peer} gone for good? what force would lose: twinadm primary {resource} --force"
                ),
            ],
            Self::NotBlank | Self::PeerNotBlank => vec![
                "bring back the voters that knew it, or".to_owned(),
                format!(
                    "make new metadata where the data may go: twinadm create-md {resource} --force"
                ),
            ],
            Self::PeerKeptMore => vec![
                format!("on {peer}: twinadm primary {resource}"),
                format!("{peer} gone for good? this wait ends by itself, {again}"),
            ],
            Self::PeerActive { .. } => vec![
                format!("move it: twinadm move {resource} {node}"),
                format!(
                    "{peer} truly dead? a takeover is possible once its lease is over, {again}"
                ),
            ],
            Self::NoQuorum { .. } => vec![
                "start the other node or the arbitrator, or mend the network".to_owned(),
                again,
                format!(
                    "both gone for good? what force would lose: twinadm primary {resource} --force"
                ),
            ],
            Self::NobodyServes => vec![format!("on {peer}: twinadm primary {resource}")],
            Self::NotFounded | Self::Held { .. } | Self::ByHandOnly { .. } => {
                vec![format!("twinadm primary {resource} --node {node}")]
            }
            Self::Leaving | Self::AwaitsPeer => {
                vec![format!("twinadm status {resource}"), again]
            }
            Self::PeerNotInSync { .. } => {
                vec![
                    format!("wait for its resync: twinadm wait-sync {resource}"),
                    again,
                ]
            }
            Self::PeerNotUp => vec![format!("on {peer}: twinadm up {resource}"), again],
            Self::PeerSilent | Self::PeerNotReady | Self::NotTaken => {
                vec![
                    format!("look at {peer}: twinadm status {resource} --node {peer}"),
                    again,
                ]
            }
            Self::LeaseWait { .. }
            | Self::HeadStart { .. }
            | Self::Undecided
            | Self::NotQuiet
            | Self::StoreSlow => {
                vec![format!("twinadm status {resource}"), again]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::ViewNumber;

    use super::*;

    const NAMES: Names<'_> = Names {
        resource: "vm-web",
        node: "kvm-b",
        peer: "kvm-a",
    };

    fn every_blocker() -> Vec<Blocker> {
        vec![
            Blocker::NotUp,
            Blocker::NoReplica,
            Blocker::Ineligible,
            Blocker::WrongReplica,
            Blocker::NotBlank,
            Blocker::PeerNotBlank,
            Blocker::NotInSync {
                view: ViewNumber(7),
            },
            Blocker::PeerActive {
                view: ViewNumber(7),
                last_seen: Duration::from_millis(400),
            },
            Blocker::LeaseWait {
                remaining: Duration::from_secs(3),
            },
            Blocker::NoQuorum { seen: 1 },
            Blocker::PeerKeptMore,
            Blocker::NotQuiet,
            Blocker::StoreSlow,
            Blocker::Undecided,
            Blocker::Leaving,
            Blocker::NotFounded,
            Blocker::AwaitsPeer,
            Blocker::Held {
                view: ViewNumber(7),
            },
            Blocker::ByHandOnly {
                has_arbitrator: true,
            },
            Blocker::NobodyServes,
            Blocker::PeerNotInSync {
                view: ViewNumber(7),
            },
            Blocker::PeerNotUp,
            Blocker::PeerSilent,
            Blocker::PeerNotReady,
            Blocker::NotTaken,
            Blocker::NoData,
            Blocker::ViewMoved {
                view: ViewNumber(7),
            },
            Blocker::DecidedAlone {
                view: ViewNumber(7),
                heard: true,
            },
            Blocker::Standby,
            Blocker::Maintenance,
            Blocker::HeadStart {
                remaining: Duration::from_secs(3),
            },
            Blocker::PeerHeard {
                last_seen: Duration::from_millis(400),
            },
        ]
    }

    #[test]
    fn every_reason_has_an_id_of_its_own_and_a_next_step() {
        let mut ids = Vec::new();
        for blocker in every_blocker() {
            let refusal = OrderRefusal::Blocked {
                blockers: vec![blocker],
                waited: Duration::ZERO,
            };
            let words = refusal.explain("primary", &NAMES);
            assert!(!words.next.is_empty() && !words.why.is_empty(), "{words:?}");
            assert!(!ids.contains(&words.id), "{words:?}");
            ids.push(words.id);
        }
        for refusal in [
            OrderRefusal::UnknownResource,
            OrderRefusal::Busy,
            OrderRefusal::Superseded,
        ] {
            let words = refusal.explain("down", &NAMES);
            assert!(
                !ids.contains(&words.id) && !words.next.is_empty(),
                "{words:?}"
            );
            ids.push(words.id);
        }
    }

    #[test]
    fn a_live_primary_elsewhere_is_named_with_its_view() {
        let refusal = OrderRefusal::Blocked {
            blockers: vec![
                Blocker::NoQuorum { seen: 1 },
                Blocker::PeerActive {
                    view: ViewNumber(7),
                    last_seen: Duration::from_millis(400),
                },
            ],
            waited: Duration::ZERO,
        };
        let words = refusal.explain("primary", &NAMES);
        assert_eq!((words.id, words.kind), ("E0412", RefusalKind::Safety));
        assert_eq!(words.what, "kvm-b may not become Primary for vm-web");
        assert_eq!(
            words.why[1],
            "kvm-a is Primary in view 7 and is alive: last seen 0.4 s ago"
        );
    }
}
