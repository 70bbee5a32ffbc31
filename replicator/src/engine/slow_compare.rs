//! Reads of an online verify that do not end.
//!
//! A verify meets the sectors that nobody has read for years, and some take a disk very long. No
//! guest, resync or takeover waits for such a read: it fails no disk (`stall.rs`), and holds up no
//! session and no drain. Whoever waits for it is told after the disk timeout that it failed, so that
//! the block's lock is free again; what it reads in the end nobody hears.

use super::Engine;
use crate::types::Instant;
use crate::types::time::earliest;

impl Engine {
    /// Reads under way to be compared, with those that nobody waits for any more.
    pub(super) const COMPARING_OPS_MAX: usize = Self::DIGESTS_MAX;

    /// When the oldest read that somebody waits for is late.
    fn comparing_due(&self) -> Option<Instant> {
        let patience = self.config.disk_timeout?;
        let oldest = earliest(self.oldest_verify_read(), self.oldest_digest_read())?;
        Some(oldest.plus(patience))
    }

    pub(super) fn comparing_deadline(&self) -> Option<Instant> {
        let due = self.comparing_due()?;
        let late = self.comparing_late_since;
        Some(late.map_or(due, |since| since.plus(Self::LATE_GRACE)))
    }

    /// Gives up reads that are late, as in `tick_disk` after a moment in which they may be heard.
    pub(super) fn tick_comparing(&mut self, out: &mut super::Outbox) {
        let late = self.comparing_due().is_some_and(|at| at <= self.now);
        let since = late.then(|| self.comparing_late_since.unwrap_or(self.now));
        self.comparing_late_since = since;
        let over = since.is_some_and(|since| self.now >= since.plus(Self::LATE_GRACE));
        if let Some(patience) = self.config.disk_timeout.filter(|_| over) {
            self.comparing_late_since = None;
            self.give_up_verify_reads(patience, out);
            self.give_up_digest_reads(patience, out);
        }
    }
}
