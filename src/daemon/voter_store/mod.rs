//! The voter store: what this node promised, accepted and marked, on its root disk.
//!
//! Owns one small file per node and the only copy of it in memory. Knows nothing of views' meaning.
//! The one invariant: what was acknowledged once is what the next start reads, or the start fails.

mod codec;
mod file;
mod layout;
mod record;

pub use file::{OpenStoreError, RESOURCES_MAX, StoreIdentity, VoterStore};
pub use record::NodeRecord;

#[cfg(test)]
mod tests;
