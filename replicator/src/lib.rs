//! The replication engine of twinblk.
//!
//! Everything but [`io`] is pure: values with `handle(now, input, &mut outbox)`, no clock, thread,
//! socket, file, environment or source of randomness. An effect is data ([`engine::Action`]), its
//! completion comes back as an input ([`engine::Input`]), and two runs with equal inputs give equal
//! actions. The arrows, held by `tests/architecture.rs`:
//!
//! ```text
//! io → engine → { protocol, meta } → types        nothing points at io
//! ```
//!
//! * [`types`]: units, identities, states, the agreed view, time as an input.
//! * [`protocol`]: frames and messages between the two data nodes; bytes ↔ values.
//! * [`meta`]: on-disk structures (superblock, activity log, bitmap); bytes ↔ values.
//! * [`engine`]: the state machine of one resource, Primary and Secondary alike.
//! * [`admin`]: what the control socket speaks (status snapshot, requests).
//! * [`io`] (feature `io`): rings, disks, links, clock: the only place with file descriptors.

pub mod admin;
pub mod engine;
#[cfg(feature = "io")]
pub mod io;
pub mod meta;
pub mod protocol;
pub mod types;
