//! May this node serve? Asked when a guest request is admitted and again before it is answered
//! (R2), from the activation, the lease and the state of the session: no clock is read here.

use super::Engine;
use super::output::HeldReason;
use crate::types::InSync;

/// Why a request is not admitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// This node is not Primary: the guest must go elsewhere.
    NotPrimary,
    /// It is, and the request waits.
    Held(HeldReason),
    /// It is, and too much is in flight: the request waits for some of that.
    Busy,
}

impl Engine {
    /// Whether every write needs the peer: it is in `in_sync`, or an Add that would make it so may
    /// have been committed without this node knowing (R4).
    pub(super) fn strict(&self) -> bool {
        self.active.as_ref().is_some_and(|active| {
            active.view.in_sync.contains(self.config.node.peer()) || active.add_begun.is_some()
        })
    }

    /// Whether the view of this activation names the peer in `in_sync`.
    pub(super) fn peer_is_named(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.view.in_sync.contains(self.config.node.peer()))
    }

    /// Whether this is the Primary (at least of record), and the view counts on no replica but this
    /// one. Nobody but this node could have changed such a view since.
    pub(super) fn is_only_replica(&self) -> bool {
        let node = self.config.node;
        self.view
            .as_ref()
            .is_some_and(|view| view.primary == node && view.in_sync == InSync::only(node))
    }

    /// Whether the lease covers this moment, as far as one is needed.
    pub(super) fn lease_holds(&self) -> bool {
        !self.strict() || self.now < self.lease_until
    }

    /// The gate before a reply: activated, recorded, and the lease not over.
    pub(super) fn may_reply(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.serving) && self.lease_holds()
    }

    /// Whether the peer in the session holds what this replica holds, apart from writes in flight.
    pub(super) fn peer_is_equal(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(super::session::Session::is_equal)
    }

    /// The gate at admission.
    pub(super) fn may_admit(&self) -> Result<(), Closed> {
        let Some(active) = &self.active else {
            return Err(Closed::NotPrimary);
        };
        if self.quiesce.is_some() || !active.serving {
            return Err(Closed::Held(HeldReason::Quiesce));
        }
        if !self.lease_holds() {
            return Err(Closed::Held(HeldReason::Lease));
        }
        if self.strict() && !self.peer_is_equal() {
            return Err(Closed::Held(HeldReason::Peer));
        }
        if !self.local_usable() && !self.forwarding() {
            return Err(Closed::Held(HeldReason::NoData));
        }
        if self.leaving() {
            return Err(Closed::Held(HeldReason::NoData));
        }
        let full = self.writes.len() >= Self::WRITES_MAX
            || !self.waiting_parts.is_empty()
            || self.reads.len() >= Self::READS_MAX
            || self.unretired_is_full()
            || self.ahead_bytes >= Self::AHEAD_BYTES_MAX;
        if full {
            return Err(Closed::Busy);
        }
        Ok(())
    }

    /// What `status` says about held requests.
    pub(super) fn held_reason(&self) -> Option<HeldReason> {
        match self.may_admit() {
            Err(Closed::Held(reason)) => Some(reason),
            Ok(()) | Err(_) if self.disk_is_silent() => Some(HeldReason::Disk),
            Ok(()) | Err(Closed::Busy) if self.is_suspended() => Some(HeldReason::User),
            Ok(()) | Err(Closed::NotPrimary | Closed::Busy) => None,
        }
    }

    /// Whether the local replica can serve reads and take writes. One that was attached after the
    /// Leave is no replica of this view, whatever it holds (promise 3).
    pub(super) fn local_usable(&self) -> bool {
        self.local == super::LocalDisk::Attached
            && self
                .active
                .as_ref()
                .is_none_or(|active| active.view.in_sync.contains(self.config.node))
    }

    /// Whether the peer serves for this diskless Primary.
    pub(super) fn forwarding(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(super::session::Session::is_forwarding)
    }

    /// Whether the local disk failed in this activation and the Leave is not committed yet.
    pub(super) fn leaving(&self) -> bool {
        self.active.as_ref().is_some_and(|active| {
            !self.local_usable() && active.view.in_sync.contains(self.config.node)
        })
    }
}
