//! Guests around their pure machines ([`crate::guests`]): one thread that decides and signals, one
//! driver thread per guest that may hang with its hypervisor, one guardian process per guest.
//!
//! ```text
//!   beacon ── lease ends ──▶ guardian process ── SIGKILL ──▶ QEMU        (also when we hang or die)
//!   board ──▶ guests thread ── machine ──┬── pidfd: freeze, thaw, kill ──▶ QEMU
//!     ▲            ▲                     └── Job ──▶ driver ── virsh ──▶ libvirt
//!     └── state    └───────────── Finished ───────────┘
//! ```
//!
//! Nothing here runs on the shard, the beacon or a client's thread; the beacon thread sends one
//! datagram when a lease moved.

mod driver;
pub(super) mod guardian;
mod links;
mod process;
mod thread;
mod virsh;

pub(super) use links::GuardLinks;
pub(super) use thread::{GuestsThread, start};
