//! The NBD protocol as values: bytes in, bytes out.
//!
//! Owns the wire format ([`proto`]), the server's side of one connection ([`Session`]) and a small
//! client side ([`Client`]). Knows no socket, clock, thread or replication: the caller moves bytes
//! and time, executes what a session submits, and reports completions in any order.
//!
//! The life of a connection, as the caller sees it:
//!
//! ```text
//! Session::new ──greeting──▶ handle_bytes ─┬─▶ Output::Send, SendPayload   to the socket, in order
//!                              ▲           ├─▶ Output::Submit              to the engine
//!                              │           ├─▶ Output::StartTls ──note_secured──▶ inside TLS
//!      socket ──bytes──────────┘           └─▶ Output::Close               flush, then close
//!      engine ──complete(handle, result)──▶ Output::Send, SendPayload
//!      socket ──note_sent(bytes)──▶ room for more requests
//! ```
//!
//! Invariant: whatever the bytes say, a session neither panics nor holds more than its named
//! limits ([`session::limits`]).

// SPDX-License-Identifier: MIT OR Apache-2.0

#![forbid(unsafe_code)]

pub mod client;
pub mod export;
pub mod proto;
pub mod session;

pub use client::{Client, ClientCommand, ClientError, ClientReply, ExportInfo};
pub use export::{Access, Export, ExportError, ExportIndex, ExportList, Refusal};
pub use proto::error::NbdError;
pub use proto::reply::StatusExtent;
pub use proto::wire::WireBytes;
pub use session::{
    BlockStatus, BufferPool, CloseReason, Completion, Contexts, DirectReceive, HANDSHAKE_TIMEOUT,
    Outbox, Output, Pause, Phase, Request, RequestHandle, RequestKind, Session,
};
