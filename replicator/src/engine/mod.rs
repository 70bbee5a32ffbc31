//! The replication state machine of one resource.

pub mod input;
pub mod output;

pub use input::{
    AdminRequest, AttachRequest, DiskReply, GuestKind, GuestRequest, Input, LinkDownReason,
    StepDownReason,
};
pub use output::{
    Action, CloseReason, Counters, DiskCommand, Event, GuestError, GuestReply, MetaPage,
    MetaRequest, Outbox, Progress, ReplicaFacts, ReplicaMark, Snapshot,
};
pub use output::{AttachError, HeldReason};
