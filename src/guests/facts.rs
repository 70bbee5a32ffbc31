//! The shapes of what a guest's machine is told, wants done and shows.

use core::time::Duration;

use replicator::types::Instant;

/// What this node may do with the resource, as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does not serve.
    Away {
        /// The newest view known names the peer Primary, or holds: whatever runs here is over.
        superseded: bool,
    },
    /// It serves, or is about to.
    Primary(Tenure),
}

/// One activation of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Which; grows within a life of the daemon, the first is 1.
    pub number: u64,
    /// The newest activation up to this one that did not follow one of this node; 0 if none.
    pub taken: u64,
    /// What came before it.
    pub entry: Entry,
    /// The engine serves clients.
    pub serves: bool,
    /// When the lease ends or ended; `None` while none is needed.
    pub lease: Option<Instant>,
}

/// What came before an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// This node was the Primary of record, or the resource is new.
    Own,
    /// The other node stopped its guest and gave the resource away by order.
    Vacated,
    /// The other node may just have lost it, and its guest may still run for κ.
    Taken,
}

/// A process that cannot be mistaken for another one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since boot.
    pub start: u64,
}

/// What one look found: the process by the kernel, the domain by the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The process that has the resource's disk.
    pub process: Option<ProcessId>,
    /// What the hypervisor says, which may hang or be wrong.
    pub domain: Result<DomainState, Fault>,
    /// Whether a guardian listens for that process; `None`: nobody looked.
    pub guarded: Option<bool>,
}

/// A hypervisor's word for a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// It runs.
    Running,
    /// It does not, and its process is there.
    Paused(PauseReason),
    /// It is on its way down.
    ShuttingDown,
    /// It is off.
    Off(Ended),
}

/// Why a domain is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// It was made so and never ran.
    Starting,
    /// Its disk gave an error.
    IoError,
    /// Somebody wanted it.
    Other,
}

/// How a guest came to be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was not on since its host started.
    Never,
    /// From within, or by somebody's order: it is to stay off.
    ByHand,
    /// Any other way.
    Crashed,
}

/// Why the hypervisor did not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No answer in time.
    TimedOut,
    /// It does not know the domain.
    NoDomain,
    /// The domain runs, and its disk is not this resource.
    OtherDisk,
    /// The guardian could not be made.
    NoGuardian(String),
    /// In its own words.
    Said(String),
}

/// Names one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderId(pub u64);

/// What is to be done. Those of the hypervisor may take long or for ever, at most one is under way;
/// the three signals are done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Only look.
    Look,
    /// Make the guest, paused.
    Create,
    /// Give the process its guardian.
    Guard(ProcessId),
    /// Let it run.
    Resume,
    /// Ask it to shut down.
    Shutdown,
    /// End it.
    Destroy,
    /// Signal: stop the process.
    Freeze(ProcessId),
    /// Signal: let it go on.
    Thaw(ProcessId),
    /// Signal: end the process.
    Kill(ProcessId),
}

/// One step of `on-demote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopStep {
    /// Ask, and wait that long.
    Shutdown(Duration),
    /// End it.
    Destroy,
}

/// What an operator wants of a guest before the resource is given away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// Nothing.
    #[default]
    No,
    /// Stop it as configured.
    Asked,
    /// The same, and end it whatever is configured.
    Forced,
}

/// Why a guest is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// The resource is, or was meanwhile, another node's.
    Superseded,
    /// The lease is over for longer than the successor waits.
    LeaseOver,
    /// An operator forced it.
    Forced,
}

/// Why a guest is not started any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The last of several tries.
    StartFailed(Fault),
    /// It crashed too often.
    Flapping,
}

/// What a guest is doing here, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not looked yet.
    Unknown,
    /// Off here, and nobody wants it on here.
    Off,
    /// Off by its own wish or somebody's hand.
    OffByHand,
    /// `on-failover = "leave"`, and nobody started it.
    Left,
    /// The old host's guest may still run.
    WaitingForFence {
        /// Until then.
        until: Instant,
    },
    /// The resource is not served yet, or its lease is over.
    WaitingForDisk,
    /// Between two tries.
    WaitingToRetry {
        /// Until then.
        until: Instant,
        /// What went wrong.
        fault: Fault,
    },
    /// Being started.
    Starting,
    /// It runs.
    Running {
        /// Why no guardian watches it.
        unguarded: Option<Fault>,
    },
    /// It is paused, not by us.
    Paused(PauseReason),
    /// Frozen since the lease ended.
    Frozen,
    /// Being stopped by order.
    Stopping,
    /// It did not stop by order.
    StopFailed,
    /// Killed, and not gone yet.
    Killing(KillReason),
    /// Not started any more until somebody looks.
    Blocked(Blocked),
}

impl State {
    /// The word of `status`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Off | Self::OffByHand | Self::Left => "off",
            Self::WaitingForFence { .. } => "waiting-for-fence",
            Self::WaitingForDisk => "waiting-for-disk",
            Self::WaitingToRetry { .. } => "waiting-to-retry",
            Self::Starting => "starting",
            Self::Running { unguarded: None } => "running",
            Self::Running { unguarded: Some(_) } => "running-unguarded",
            Self::Paused(PauseReason::IoError) => "paused-io",
            Self::Paused(_) => "paused",
            Self::Frozen => "frozen",
            Self::Stopping => "stopping",
            Self::StopFailed => "stop-failed",
            Self::Killing(_) => "killing",
            Self::Blocked(_) => "blocked",
        }
    }
}
