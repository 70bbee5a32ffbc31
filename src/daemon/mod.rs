//! Wiring: threads, sockets and files around the pure controller, engine and NBD session.

pub mod api;
pub mod args;
pub mod beacon_io;
pub mod board;
mod bridge;
pub mod control;
pub mod mailbox;
pub mod notify;
pub mod shard;
pub mod store_thread;
pub mod voter_store;
