//! `twinadm`: the command line of twinblk.
//!
//! ```text
//! cli (words) → run (dispatch) → orders | explain | watch | wait | create_md | metadata | config_verbs → client (socket)
//!                                       └──────────── show (pure: values → text) ─────────────┘
//! ```
//!
//! Owns what users type and read. Everything in [`show`] and [`plan`] is pure; sockets are in
//! [`client`], files in [`create_md`], [`metadata`], [`bench`] and [`identity`], the clock in `clock`. A verb of its own (the demo) is one
//! module, one variant of [`cli::Verb`] and one line of [`run`].

mod adjust;
mod bench;
pub mod cli;
pub mod client;
mod clock;
mod config_verbs;
mod context;
mod create_md;
pub mod demo;
mod events;
mod explain;
mod force;
mod guest;
mod identity;
mod local;
mod manual;
mod metadata;
mod nodes;
mod orders;
pub mod plan;
mod reexec;
pub mod run;
mod selector;
pub mod show;
mod split_brain;
mod status;
mod verify;
mod wait;

pub use context::{Context, Failure, Output};
pub use selector::Selector;
