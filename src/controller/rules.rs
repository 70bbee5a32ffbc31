//! The safety rules as switches, so that the explorer can take one away and must then fail.

/// Which rules hold. Production uses [`Rules::ALL`], a constant; nothing reads it from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// R6: the seal is part of the durable record.
    pub durable_seal: bool,
    /// R6: a takeover seals at all.
    pub seal: bool,
    /// R5: no takeover before the peer's lease is certainly over.
    pub grant_outlives_lease: bool,
    /// R7: a restarted node assumes that it granted a lease just before.
    pub boot_wait: bool,
    /// R4: the stricter view counts while an Add is undecided.
    pub strict_add: bool,
    /// R4: an Add of unknown outcome is ended by a committed view before anything is loosened.
    pub end_undecided_add: bool,
    /// R8: only an own commit activates; a restart begins inactive.
    pub own_commit: bool,
    /// Takeover and Recover only from within `in_sync`.
    pub in_sync: bool,
    /// R1: ballots are compared.
    pub ballots: bool,
    /// R1: promises and acceptances are durable before they are told.
    pub durable_votes: bool,
    /// R9: a step-down fails what is in flight.
    pub drop_inflight: bool,
    /// R13: a takeover drains before its accept leaves.
    pub drain: bool,
    /// R11: only voters that the view recorded count.
    pub known_voters: bool,
    /// What is forced begins a lineage of its own.
    pub new_lineage: bool,
    /// R5: not even by force before the peer's lease is certainly over.
    pub force_waits: bool,
}

impl Rules {
    /// How many there are.
    pub const COUNT: usize = 15;

    /// All of them: the only value outside the explorer.
    pub const ALL: Self = Self {
        durable_seal: true,
        seal: true,
        grant_outlives_lease: true,
        boot_wait: true,
        strict_add: true,
        end_undecided_add: true,
        own_commit: true,
        in_sync: true,
        ballots: true,
        durable_votes: true,
        drop_inflight: true,
        drain: true,
        known_voters: true,
        new_lineage: true,
        force_waits: true,
    };

    /// Those that hold for a promotion by force.
    #[must_use]
    pub const fn of_force(self) -> Self {
        Self {
            grant_outlives_lease: self.grant_outlives_lease && self.force_waits,
            ..self
        }
    }
}
