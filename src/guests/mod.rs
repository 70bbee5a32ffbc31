//! Guests that follow their volumes: when one is started, frozen, stopped and killed. Pure; one
//! [`Guest`] per guest and node.
//!
//! It owns the decision and nothing else: what the node may do comes in as [`Standing`], what the
//! hypervisor and the kernel say as [`Seen`], and what is to be done goes out as [`Order`]s. It knows
//! no processes, no libvirt, no clocks.
//!
//! The one invariant: the guest's processor runs on at most one host by our doing. Its two halves
//! meet in [`GuestTiming`]:
//!
//! ```text
//!  the holder:    lease ends E ── freeze ──▶ frozen ── kill ──▶ gone         all within κ of E + σ
//!  the successor: takes over (not before E + σ) ───────── start_after ──▶ starts   later than κ
//! ```
//!
//! The holder's half is also kept by a guardian process that knows only E and a process, so that it
//! holds when the daemon hangs or dies. A guest is therefore made *paused*, given its guardian, and
//! only then let run.

mod facts;
mod machine;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod scenarios;
mod timing;

pub use facts::{
    Blocked, DomainState, Ended, Entry, Fault, KillReason, Order, OrderId, PauseReason, ProcessId,
    Seen, Standing, State, Stop, StopStep, Tenure,
};
pub use machine::{CRASHES_MAX, Guest, GuestSettings, STARTS_MAX};
pub use timing::GuestTiming;
