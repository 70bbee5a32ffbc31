//! The daemon and the arbitrator of twinblk: configuration, the pure controller (who may be
//! Primary), and, with the default feature `daemon`, the wiring of all that to sockets and disks.

pub mod config;
pub mod controller;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod explorer;
pub mod guests;
pub mod identity;
