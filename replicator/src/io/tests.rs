//! The behaviour of a backend, tried on each of them.

mod backends;
mod queues;
pub(super) mod scratch;
