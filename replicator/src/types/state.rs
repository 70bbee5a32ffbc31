//! The states users see, with DRBD's names and spelling.

use core::fmt;
use core::num::NonZeroU64;

use serde::{Deserialize, Serialize};

macro_rules! state {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident),+ $(,)? }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        $(#[$doc])*
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word users see in every output.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

state!(
    /// Whether a node serves the resource. Primary only while activated.
    Role {
        /// Serves the guests.
        Primary,
        /// Replicates, serves nothing.
        Secondary,
        /// The peer's role while it is unreachable.
        Unknown,
    }
);

state!(
    /// State of a replica's data.
    DiskState {
        /// No backing device attached.
        Diskless,
        /// Metadata is being read, or an earlier process's operations may still land (R14).
        Attaching,
        /// Being flushed and closed, so that the next start finds it whole.
        Detaching,
        /// The device failed; it is on its way to Diskless.
        Failed,
        /// Part old, part new: a resync target, or blank.
        Inconsistent,
        /// Whole but old: the view left it behind.
        Outdated,
        /// Whole; whether it is the newest is not known yet.
        Consistent,
        /// The committed view names it in `in_sync`.
        UpToDate,
        /// The peer's disk while it is unreachable.
        DUnknown,
    }
);

state!(
    /// State of the connection to the peer.
    ConnectionState {
        /// Told not to connect, or refused for a reason that waiting does not mend.
        StandAlone,
        /// Trying.
        Connecting,
        /// A session is up and its handshake done.
        Connected,
    }
);

state!(
    /// What a connected pair does with a volume.
    ReplicationState {
        /// Not connected, or no Primary.
        Off,
        /// Writes are mirrored, nothing else to do.
        Established,
        /// Bitmaps are being exchanged, this side is the source.
        WFBitMapS,
        /// Bitmaps are being exchanged, this side is the target.
        WFBitMapT,
        /// This side sends what the peer misses.
        SyncSource,
        /// This side receives what it misses.
        SyncTarget,
        /// Source of a resync that an operator holds.
        PausedSyncS,
        /// Target of a resync that an operator holds.
        PausedSyncT,
        /// This side, Primary, compares both replicas.
        VerifyS,
        /// The Primary compares both replicas.
        VerifyT,
    }
);

state!(
    /// Whether a survivor takes over by itself.
    #[derive(Default)]
    #[serde(rename_all = "lowercase")]
    Failover {
        /// As soon as it is certain that the Primary no longer serves.
        #[default]
        Auto,
        /// When an operator says so.
        Manual,
    }
);

state!(
    /// When a write is acknowledged (promise table in docs/failure-model.md).
    ReplicationProtocol {
        /// Local disk and send queue.
        A,
        /// Local disk and peer memory.
        B,
        /// Both disks.
        C,
    }
);

/// How fast a resync may go; ordered from slow to fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResyncRate {
    /// At most so many bytes a second, and less while guests feel it.
    BytesPerSecond(NonZeroU64),
    /// As fast as guests do not feel it.
    #[default]
    Auto,
    /// As fast as the disks and the link allow, whatever guests feel.
    Unlimited,
}

impl ResyncRate {
    /// The limit, if there is one.
    #[must_use]
    pub fn limit(self) -> Option<NonZeroU64> {
        match self {
            Self::Auto | Self::Unlimited => None,
            Self::BytesPerSecond(rate) => Some(rate),
        }
    }
}

impl ReplicationProtocol {
    /// The one of both that promises more.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::C, _) | (_, Self::C) => Self::C,
            (Self::B, _) | (_, Self::B) => Self::B,
            (Self::A, Self::A) => Self::A,
        }
    }
}
