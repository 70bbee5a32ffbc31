//! Wiring: threads, sockets and files around the pure controller, engine and NBD session.

pub mod api;
pub mod beacon_io;
pub mod control;
pub mod mailbox;
pub mod notify;

