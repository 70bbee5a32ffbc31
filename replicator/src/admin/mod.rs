//! What the control socket speaks: requests, answers, the status snapshot, events, errors.
//!
//! Owns the types that `twinblkd` and `twinadm` share and the pure functions over them. Knows no
//! socket, no clock and no JSON library: both sides bring their own.
//!
//! One connection carries one request. Each line is one JSON value:
//!
//! ```text
//! → {"verb":"primary","resource":"vm-web","timeout_ms":30000}
//! ← {"reply":"progress","message":"waiting for the first handshake with kvm-b"}      (any number)
//! ← {"reply":"done","changed":true,"message":"vm-web is Primary on kvm-a"}           (exactly one final)
//! ```
//!
//! `events2` is the exception: it has no final answer unless `now` was asked for; the client ends
//! it by closing.

mod advice;
mod catalogue;
mod event;
mod history;
mod report;
mod request;
#[cfg(test)]
mod samples;
mod status;
mod time;
mod what_if;
mod why;

pub use catalogue::ErrorId;
pub use event::{Event, EventKind};
pub use history::{HISTORY_SCHEMA, HistoryEntry, HistoryReport};
pub use report::{ErrorReport, exit};
pub use request::{
    ChangeEffect, ConfigChange, MaxRate, Request, Response, RoomReport, Verb, VersionInfo,
};
pub use status::{
    ArbitratorStatus, ByteSpan, ClusterStatus, GuestStatus, LastResync, LastVerify, PAUSED_BY_USER,
    PeerStatus, PeerVolumeStatus, PlacementStatus, ResourceStatus, ResyncStatus, SCHEMA, Status,
    VERIFY_DONE, VerifyStatus, VolumeStatistics, VolumeStatus,
};
pub use time::{rfc3339_millis, rfc3339_seconds};
pub use what_if::{FateKind, FateReport, WHAT_IF_SCHEMA, WhatIfReport};
pub use why::{
    BallotReport, GrantReport, LeaseReport, PeerReport, PreconditionReport, QUORUM_SCHEMA,
    QuorumReport, TimingReport, Verdict, ViewReport, VoterReport, WHY_SCHEMA, WhyReport,
};

/// Longest request line a daemon reads, in bytes: the longest name is 64 bytes, so any honest
/// request is far below; what is longer is garbage and its connection is closed.
pub const REQUEST_LEN_MAX: usize = 16 * 1024;

/// Longest answer line a client reads, in bytes: a status of some thousand resources.
pub const RESPONSE_LEN_MAX: usize = 16 * 1024 * 1024;
