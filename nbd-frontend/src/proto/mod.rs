//! The wire format: constants, parsers and encoders, without any state.
//!
//! Parsers take slices of untrusted bytes and give types or a named refusal; nothing here panics on
//! any input. All integers on the wire are big-endian.

// SPDX-License-Identifier: MIT OR Apache-2.0

pub mod constants;
pub mod error;
pub mod handshake;
pub mod reply;
pub mod request;
pub mod wire;
