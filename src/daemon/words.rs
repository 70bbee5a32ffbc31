//! Refusals and failures in words: what, why, what next.

use std::path::Path;

use replicator::admin::{ErrorId, ErrorReport, Verb};
use replicator::engine::AttachError;
use replicator::io::OpenError;
use replicator::types::NodeId;

use super::api::AttachFailure;
use super::node::Node;
use crate::config::ResourceConfig;
use crate::controller::{Blocker, Names, Order, OrderRefusal};
use crate::guests::{Blocked, Fault, KillReason, State};

impl Node {
    /// The names the controller does not know.
    pub(super) fn names<'a>(&'a self, resource: &'a ResourceConfig) -> Names<'a> {
        Names {
            resource: &resource.name,
            node: self.name(),
            peer: self.config.node_name(self.node.peer()),
        }
    }
}

/// The word of an order.
pub(super) fn verb_of(order: Order) -> &'static str {
    match order {
        Order::Primary => "primary",
        Order::Force => "primary --force",
        Order::Secondary => "secondary",
        Order::Up => "up",
        Order::Down => "down",
        Order::HandOver => "hand over",
        Order::Fenced => "confirm-fenced",
        Order::Move => "move",
    }
}

/// The resource that an order is about, and the order as it was typed; `None` for what only looks.
pub(super) fn order_words(verb: &Verb) -> Option<(String, String)> {
    let (word, resource) = match verb {
        Verb::Status { .. }
        | Verb::Events2 { .. }
        | Verb::Why { .. }
        | Verb::Quorum
        | Verb::WhatIf { .. }
        | Verb::History { .. }
        | Verb::Version
        | Verb::Reexec
        | Verb::NodeDrain
        | Verb::NodeResume
        | Verb::Maintenance { .. }
        | Verb::ConfirmFenced { .. }
        | Verb::Room { .. }
        | Verb::Adjust { .. } => return None,
        Verb::Up { resource } => ("up".to_owned(), resource),
        Verb::Down { resource, .. } => ("down".to_owned(), resource),
        Verb::Attach { resource, .. } => ("attach".to_owned(), resource),
        Verb::Detach { resource, .. } => ("detach".to_owned(), resource),
        Verb::Connect { resource, .. } => ("connect".to_owned(), resource),
        Verb::Disconnect { resource, .. } => ("disconnect".to_owned(), resource),
        Verb::PauseSync { resource } => ("pause-sync".to_owned(), resource),
        Verb::ResumeSync { resource } => ("resume-sync".to_owned(), resource),
        Verb::Resize { resource, .. } => ("resize".to_owned(), resource),
        Verb::SuspendIo { resource } => ("suspend-io".to_owned(), resource),
        Verb::ResumeIo { resource } => ("resume-io".to_owned(), resource),
        Verb::Resync { resource, .. } => ("resync".to_owned(), resource),
        Verb::Primary {
            resource,
            force: true,
            ..
        } => ("primary --force".to_owned(), resource),
        Verb::Primary { resource, .. } => ("primary".to_owned(), resource),
        Verb::Secondary { resource, .. } => ("secondary".to_owned(), resource),
        Verb::Invalidate { resource, .. } => ("invalidate".to_owned(), resource),
        Verb::InvalidateRemote { resource, .. } => ("invalidate-remote".to_owned(), resource),
        Verb::Verify { resource, .. } => ("verify".to_owned(), resource),
        Verb::Move { resource, to, .. } => (format!("move to {to}"), resource),
    };
    Some((resource.clone(), word))
}

/// An order about a node, as it was typed; `None` for any other.
pub(super) fn node_order_words(verb: &Verb) -> Option<String> {
    Some(match verb {
        Verb::NodeDrain => "node drain".to_owned(),
        Verb::NodeResume => "node resume".to_owned(),
        Verb::Maintenance { on: true } => "maintenance on".to_owned(),
        Verb::Maintenance { on: false } => "maintenance off".to_owned(),
        Verb::ConfirmFenced { dead } => format!("confirm-fenced {dead}"),
        _ => return None,
    })
}

/// The controller's reasons under the ids of the one catalogue.
fn id_of(refusal: &OrderRefusal) -> ErrorId {
    let blocker = match refusal {
        OrderRefusal::UnknownResource => return ErrorId::NoSuchResource,
        OrderRefusal::Blocked { blockers, .. } => {
            // What waiting cannot mend decides what the refusal is called.
            blockers
                .iter()
                .find(|blocker| !blocker.may_pass())
                .or(blockers.first())
        }
        _ => return ErrorId::OrderUnderWay,
    };
    match blocker {
        Some(Blocker::NotUp) => ErrorId::NotUp,
        Some(Blocker::NoReplica) => ErrorId::NotAttached,
        Some(Blocker::WrongReplica) => ErrorId::MetadataForeign,
        Some(Blocker::Ineligible | Blocker::NotInSync { .. } | Blocker::PeerKeptMore) => {
            ErrorId::NotUpToDate
        }
        Some(Blocker::NotBlank | Blocker::PeerNotBlank) => ErrorId::Unrelated,
        Some(Blocker::PeerActive { .. }) => ErrorId::PeerIsPrimary,
        Some(Blocker::LeaseWait { .. }) => ErrorId::NoLease,
        Some(Blocker::NotQuiet | Blocker::StoreSlow) => ErrorId::TimedOut,
        Some(Blocker::Leaving) => ErrorId::OrderUnderWay,
        Some(Blocker::AwaitsPeer) => ErrorId::TimedOut,
        Some(Blocker::NobodyServes) => ErrorId::NobodyServes,
        Some(Blocker::PeerNotInSync { .. } | Blocker::PeerNotReady) => ErrorId::PeerCannotFollow,
        Some(Blocker::PeerNotUp) => ErrorId::PeerCannotFollow,
        Some(Blocker::PeerSilent) => ErrorId::NodeUnreachable,
        Some(Blocker::NotTaken) => ErrorId::NotTaken,
        Some(Blocker::NoData) => ErrorId::NoDataHere,
        Some(Blocker::ViewMoved { .. }) => ErrorId::WouldLose,
        Some(Blocker::PeerHeard { .. }) => ErrorId::StillAlive,
        Some(Blocker::DecidedAlone { .. }) => ErrorId::DecidedAlone,
        _ => ErrorId::NoQuorum,
    }
}

/// A controller's refusal as the client sees it.
pub(super) fn refusal_report(
    refusal: &OrderRefusal,
    order: Order,
    names: Names<'_>,
) -> ErrorReport {
    let explanation = refusal.explain(verb_of(order), &names);
    let mut report = ErrorReport::new(id_of(refusal), explanation.what, explanation.why.join("; "));
    for step in explanation.next {
        report = report.next(step);
    }
    report
}

/// What `primary` waits for; empty if nothing is known.
pub(super) fn waiting_for(blockers: &[Blocker], names: Names<'_>) -> String {
    let words: Vec<_> = blockers.iter().map(|blocker| blocker.why(&names)).collect();
    if words.is_empty() {
        String::new()
    } else {
        format!("waiting: {}", words.join("; "))
    }
}

/// Why a resource that was taken down is not gone.
pub(super) const STILL_LEAVING: &str =
    "it was taken down, and operations on its disk are not over: they could still land";

/// Why there is no disk, in words.
#[must_use]
pub(super) fn attach_failure_words(failure: &AttachFailure) -> String {
    match failure {
        AttachFailure::Open(error) => error.to_string(),
        AttachFailure::Engine(error) => match error {
            AttachError::Disk(error) => format!("reading the metadata failed: {error}"),
            AttachError::NoMetadata => "there is no metadata of twinblk".to_owned(),
            AttachError::Damaged => {
                "both copies of the metadata's superblock are damaged".to_owned()
            }
            AttachError::TooNew => "the metadata was made by a newer version".to_owned(),
            AttachError::Foreign => {
                "the metadata belongs to another resource or node, or to other volumes of this one"
                    .to_owned()
            }
            AttachError::DeviceTooSmall => "the disk is smaller than the metadata says".to_owned(),
            AttachError::OtherReplica => {
                "this is another replica than the one attached here before".to_owned()
            }
            AttachError::Serving => {
                "this node serves from the peer's disk: it is attached once it is Secondary"
                    .to_owned()
            }
            other => format!("the metadata was refused: {other:?}"),
        },
    }
}

/// A failed attach as the client sees it.
pub(super) fn attach_report(
    failure: &AttachFailure,
    resource: &ResourceConfig,
    node: NodeId,
    name: &str,
) -> ErrorReport {
    let is_meta = |path: &Path| {
        resource
            .volumes
            .iter()
            .any(|volume| volume.replica(node).meta == path)
    };
    let id = match failure {
        AttachFailure::Open(OpenError::InUse { .. }) => ErrorId::DeviceInUse,
        AttachFailure::Open(OpenError::Permission { .. }) => ErrorId::Permission,
        AttachFailure::Open(OpenError::NotFound { path }) if is_meta(path) => ErrorId::NoMetadata,
        AttachFailure::Engine(AttachError::NoMetadata) => ErrorId::NoMetadata,
        AttachFailure::Engine(AttachError::DeviceTooSmall)
        | AttachFailure::Open(OpenError::TooShort { .. }) => ErrorId::DeviceTooSmall,
        AttachFailure::Engine(
            AttachError::Foreign | AttachError::OtherReplica | AttachError::TooNew,
        ) => ErrorId::MetadataForeign,
        AttachFailure::Engine(AttachError::Serving) => ErrorId::LastGoodCopy,
        _ => ErrorId::DeviceFailed,
    };
    let what = format!("{} cannot be attached on {name}", resource.name);
    let report = ErrorReport::new(id, what, attach_failure_words(failure));
    match id {
        ErrorId::LastGoodCopy => report.next(format!("twinadm secondary {}", resource.name)),
        ErrorId::NoMetadata => report.next(format!("twinadm create-md {}", resource.name)),
        ErrorId::MetadataForeign if resource.volumes.len() > 1 => {
            report.next("check `meta` of this node").next(
                "the volumes of a resource, and the `size` of each but the last, stay as they were \
                 when create-md made its metadata: write them so again",
            )
        }
        _ => report,
    }
}

/// Why a guest is in a state that does not explain itself.
pub(super) fn guest_why(state: &State) -> Option<String> {
    Some(match state {
        State::WaitingToRetry { fault, .. } => guest_fault(fault),
        State::Running { unguarded } => guest_fault(unguarded.as_ref()?),
        State::Blocked(Blocked::StartFailed(fault)) => {
            format!("it could not be started: {}", guest_fault(fault))
        }
        State::Blocked(Blocked::Flapping) => "it ended by itself too often".to_owned(),
        State::OffByHand => "it was switched off from within or by hand".to_owned(),
        State::WaitingForFence { .. } => "the other host's guest may still run".to_owned(),
        State::Frozen => "the lease is over".to_owned(),
        State::Killing(KillReason::Superseded) => "the volume is the other node's".to_owned(),
        State::Killing(KillReason::LeaseOver) => "the lease is over".to_owned(),
        State::Killing(KillReason::Forced) => "so ordered".to_owned(),
        State::StopFailed => "it did not stop as `on-demote` asks".to_owned(),
        _ => return None,
    })
}

/// What went wrong with a guest.
pub(super) fn guest_fault(fault: &Fault) -> String {
    match fault {
        Fault::TimedOut => "libvirt does not answer".to_owned(),
        Fault::NoDomain => "libvirt does not know the domain on this node".to_owned(),
        Fault::OtherDisk => {
            "it runs, and its disk is not the NBD socket of this node (twinadm guest xml)"
                .to_owned()
        }
        Fault::NoGuardian(why) => format!("it has no guardian: {why}"),
        Fault::Said(words) => words.clone(),
    }
}

/// A report as stderr shows it: what, why, what next.
#[must_use]
pub(super) fn render(report: &ErrorReport) -> String {
    let mut text = format!("error[{}]: {}\n", report.id, report.what);
    if !report.why.is_empty() {
        text.push_str(&format!("  why    {}\n", report.why));
    }
    for (index, step) in report.next.iter().enumerate() {
        let label = if index == 0 { "next" } else { "" };
        text.push_str(&format!("  {label:<6} {step}\n"));
    }
    text.push_str(&format!("  more   man twinblk-errors(7), {}\n", report.id));
    text
}
