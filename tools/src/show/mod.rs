//! Values into text. Pure: no clock, no terminal, no socket.

pub mod drbd9;
pub mod event;
pub mod health;
pub mod history;
pub mod message;
pub mod quorum;
pub mod resync;
pub mod size;
pub mod status;
pub mod what_if;
pub mod why;
pub mod words;

#[cfg(test)]
pub(crate) mod samples;
