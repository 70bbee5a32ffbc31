//! Keys that are accepted but change nothing yet. A capability that arrives deletes its words here.

/// `[quorum]`
pub(super) const QUORUM: &[&str] = &["on-no-quorum", "watchdog"];
/// `[net]`
pub(super) const NET: &[&str] = &[];
/// `[resync]`
pub(super) const RESYNC: &[&str] = &["parallel"];
/// `[verify]`
pub(super) const VERIFY: &[&str] = &["schedule", "repair"];
/// `[nbd]`
pub(super) const NBD: &[&str] = &[];
/// `[metrics]`
pub(super) const METRICS: &[&str] = &[];
/// `[log]`
pub(super) const LOG: &[&str] = &["target"];
/// `[resource.NAME]`
pub(super) const RESOURCE: &[&str] = &[];
