//! Wiring: threads, sockets and files around the pure controller, engine and NBD session.

pub mod api;
