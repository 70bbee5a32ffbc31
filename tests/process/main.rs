//! The real programs, three processes on this machine, driven as a user drives them: `twinadm`,
//! signals, NBD clients. Two clusters at a time, and one where time is measured (`turn.rs`).

// SPDX-License-Identifier: MIT OR Apache-2.0

#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    reason = "a step that fails is the test that fails"
)]

mod adjust;
#[path = "../common/authority.rs"]
mod authority;
mod bad_input;
mod cluster;
mod demo;
mod devices;
mod draining;
mod explain;
mod failover;
mod forcing;
mod forwarding;
mod guest;
mod guests;
mod identity;
mod idle;
mod invalidating;
mod isolation;
mod libvirt;
mod metadata;
mod metrics;
mod moving;
mod nbd;
mod nbd_abuse;
mod nbd_clients;
mod nbd_conformance;
mod nbd_model;
mod nbd_tcp;
mod passing_on;
mod placement;
mod protocols;
mod resizing;
mod restarting;
mod resync_orders;
mod suspending;
mod tools;
mod turn;
mod verifying;
mod volumes;
