//! Sessions driven byte by byte, without sockets. One binary: each further one costs a link.

// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod extended;
mod handshake;
mod harness;
mod limits;
mod model;
mod robustness;
mod tls;
mod transmission;
