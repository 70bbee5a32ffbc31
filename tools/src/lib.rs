//! Shared by twinadm and its tests.

pub mod demo;
