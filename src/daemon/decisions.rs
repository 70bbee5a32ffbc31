//! The controller's events in words: one sentence each, for the log and for `history`.

use replicator::admin::HistoryEntry;
use replicator::io::clock;
use replicator::types::{BLOCK_LEN, ResourceId, View, ViewCause, ViewNumber};

use super::node::Node;
use crate::controller::{ControllerEvent, Evidence, StepDownReason};

/// How loud the log is about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Info,
    Warn,
    Error,
}

/// A decision about a resource in words.
struct Decision {
    resource: ResourceId,
    level: Level,
    kind: &'static str,
    view: Option<ViewNumber>,
    /// The node that decided, where it is not this one.
    by: Option<String>,
    text: String,
}

impl Node {
    /// Logs an event and keeps what it decided.
    pub(super) fn note_event(&self, event: &ControllerEvent) {
        match event {
            ControllerEvent::NodeSeen { node } => {
                tracing::info!("{} answers", self.config.node_name(*node));
            }
            ControllerEvent::NodeLost { node } => {
                tracing::warn!("{} does not answer", self.config.node_name(*node));
            }
            _ => {
                if let Some(decision) = self.decision(event) {
                    self.note_decision(decision);
                }
            }
        }
    }

    fn note_decision(&self, decision: Decision) {
        let name = self.resource_name(decision.resource);
        let text = decision.text;
        match decision.level {
            Level::Info => tracing::info!("{name}: {text}"),
            Level::Warn => tracing::warn!("{name}: {text}"),
            Level::Error => tracing::error!("{name}: {text}"),
        }
        let by = decision.by.unwrap_or_else(|| self.name().to_owned());
        let view = decision.view.map(|view| view.0);
        self.note_history(decision.resource, decision.kind, view, Some(by), text);
    }

    /// Keeps something that was decided about a resource that is configured here.
    pub(super) fn note_history(
        &self,
        resource: ResourceId,
        kind: &str,
        view: Option<u64>,
        by: Option<String>,
        text: String,
    ) {
        // The arbitrator votes for thousands and is asked about none.
        let Some(resource) = self
            .resources
            .with_id(resource)
            .filter(|_| self.node.is_data())
        else {
            return;
        };
        let entry = HistoryEntry {
            unix_millis: clock::unix_millis(),
            kind: kind.to_owned(),
            view,
            by,
            text,
        };
        self.history.note(&resource, entry);
    }

    fn decision(&self, event: &ControllerEvent) -> Option<Decision> {
        use Level::{Error, Info, Warn};
        let said = |resource: &ResourceId, level, kind, view, text: String| {
            Some(Decision {
                resource: *resource,
                level,
                kind,
                view,
                by: None,
                text,
            })
        };
        match event {
            ControllerEvent::Activated { resource, view } => {
                let number = view.number;
                let text = format!("Primary here in view {number}");
                said(resource, Info, "primary", Some(number), text)
            }
            ControllerEvent::SteppedDown { resource, reason } => {
                let text = format!("Primary here no more: {}", step_down_words(*reason));
                said(resource, Warn, "secondary", None, text)
            }
            ControllerEvent::ViewChanged { resource, view } => Some(Decision {
                resource: *resource,
                level: Info,
                kind: "view",
                view: Some(view.number),
                by: Some(self.config.node_name(view.primary).to_owned()),
                text: self.view_words(view),
            }),
            ControllerEvent::LeaseLapsed { resource } => {
                let text = "the lease is over, requests are held".to_owned();
                said(resource, Warn, "lease", None, text)
            }
            ControllerEvent::LeaseReturned { resource } => said(
                resource,
                Info,
                "lease",
                None,
                "the lease is back".to_owned(),
            ),
            ControllerEvent::Sealed {
                resource,
                seal,
                evidence,
            } => {
                let peer = self.config.node_name(self.node.peer());
                let why = match evidence {
                    Evidence::HandedOver => format!("{peer} said that it serves no more"),
                    Evidence::Fenced => format!("{peer} is said to be dead"),
                    Evidence::Silence => {
                        format!("{peer} was silent for as long as it may rely on this node")
                    }
                };
                let text = format!("taking over, because {why}; views up to {seal} are refused");
                said(resource, Info, "takeover", Some(*seal), text)
            }
            ControllerEvent::Vetoed { resource } => {
                let text = "the replica here forbids its own promotion".to_owned();
                said(resource, Error, "refused", None, text)
            }
            ControllerEvent::Aborted {
                resource,
                kind,
                reason,
            } => {
                let text = format!("{kind} given up: {reason}");
                said(resource, Info, "refused", None, text)
            }
            ControllerEvent::StoreFailed { resource } => {
                let text = "the voter store failed; no vote from here".to_owned();
                said(resource, Error, "store", None, text)
            }
            ControllerEvent::StoreReturned { resource } => {
                let text = "the voter store writes again".to_owned();
                said(resource, Info, "store", None, text)
            }
            ControllerEvent::Contradiction { resource, view } => {
                let text = format!("voters contradict each other about view {view}");
                said(resource, Error, "alarm", Some(*view), text)
            }
            ControllerEvent::RoundsExhausted { resource } => {
                let text = "no round is left: a forged or damaged ballot used the last one";
                said(resource, Error, "alarm", None, text.to_owned())
            }
            ControllerEvent::NodeSeen { .. } | ControllerEvent::NodeLost { .. } => None,
        }
    }

    /// `view 7 (TookOver), Primary kvm-b: kvm-b serves instead of kvm-a, alone`.
    fn view_words(&self, view: &View) -> String {
        let name = |node| self.config.node_name(node);
        let (primary, other) = (name(view.primary), name(view.primary.peer()));
        let why = match view.cause {
            ViewCause::Founded => format!("its first, chosen by hand: {primary} serves alone"),
            ViewCause::Recovered => format!("{primary} serves again"),
            ViewCause::TookOver => format!("{primary} serves instead of {other}"),
            ViewCause::Removed => format!("{primary} goes on without {other}"),
            ViewCause::Added => format!("{primary} and {other} hold the same"),
            ViewCause::Left => format!("{primary} serves from {other}: its own disk failed"),
            ViewCause::Held => "held by hand: nobody promotes itself".to_owned(),
            ViewCause::Claimed => format!("{primary} serves instead of {other}, by hand"),
            ViewCause::VoterAdded => "a voter was met for the first time".to_owned(),
            ViewCause::Forced => format!(
                "an operator made {} Primary by force: what it lacked is given up here, and a \
                 replica that has it is refused",
                self.config.node_name(view.primary)
            ),
            ViewCause::Resized => format!(
                "it has {} now",
                crate::config::size_text(view.size_blocks.saturating_mul(BLOCK_LEN))
            ),
        };
        let lossy = if view.lossy {
            "; acknowledged writes may be missing"
        } else {
            ""
        };
        let (number, cause) = (view.number, view.cause);
        format!("view {number} ({cause:?}), Primary {primary}: {why}{lossy}")
    }
}

fn step_down_words(reason: StepDownReason) -> &'static str {
    match reason {
        StepDownReason::Superseded => "a newer view says so",
        StepDownReason::Refused => "the peer takes over",
        StepDownReason::Ordered => "so ordered",
        StepDownReason::NoReplica => "its replica is gone",
        StepDownReason::WritesLost => {
            "its disk failed, and the peer lost power with acknowledged writes"
        }
    }
}
