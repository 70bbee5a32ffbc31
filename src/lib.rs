//! twinblk.
