//! Replicator.
