//! Deterministic simulation of two engines, three controllers, their disks and their network.
//!
//! One seed expands to one [`plan`]; the [`world`] runs it in virtual time on the production
//! engine and controller, with models of everything they talk to ([`disk`], [`store`], [`net`],
//! [`clock`]); the [`checkers`] watch from outside. Two runs of one seed are equal, event by event.

pub mod checkers;
pub mod clock;
pub mod disk;
pub mod net;
pub mod plan;
pub mod rng;
pub mod run;
pub mod shrink;
pub mod stamp;
pub mod store;
pub mod trace;
pub mod world;
