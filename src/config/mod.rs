//! The configuration: TOML text in, a checked [`Config`] or every mistake at once out.
//!
//! Owns the file format, its defaults, its rules and its words for mistakes. Knows no file but in
//! [`load`], and neither the node it runs on nor the state of any disk. Once a `Config` exists its
//! parts need no second look: names are valid, there are exactly two data nodes, each resource has
//! its volume with a device and a metadata area on each of them.
//!
//! ```text
//! load (files) → SourceFile → read (shape: types, keys, units) → rules (cluster) → Config
//!                                         └──────── Diagnostic ────────┘
//! ```

mod types;

pub use types::{
    Config, GuestConfig, LogConfig, LogTarget, MetricsConfig, NbdConfig, NetConfig, NodeConfig,
    NodeRole, OnNoQuorum, QuorumConfig, Rate, ReplicaPaths, ResourceConfig, ResyncConfig,
    TimingProfile, Tls, VerifyConfig, VolumeConfig, Watchdog,
};
