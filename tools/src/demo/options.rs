//! What `twinadm demo` can be asked for.

use std::fmt;

use clap::{Args, ValueEnum};

/// Flags of `twinadm demo`.
#[derive(Args, Clone, Debug, Default)]
pub struct DemoArgs {
    /// What to do to the running pair
    #[arg(long, value_enum, default_value_t)]
    pub fault: Fault,
    /// Replay the choices of an earlier run: blocks, order, pace (default: a fresh one)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Keep the directory with configuration, disks, logs and journal
    #[arg(long)]
    pub keep: bool,
    /// Print the verdict as one JSON object; the story goes to stderr
    #[arg(long)]
    pub json: bool,
    /// Flip one byte of one disk before the verdict, which then has to be FAIL
    #[arg(long)]
    pub corrupt: bool,
}

/// What happens to the running pair.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the Primary's daemon
    #[default]
    Kill,
    /// SIGSTOP of the Primary past its lease, then SIGCONT
    Pause,
    /// The Primary cut off from both others, TCP and UDP, then healed
    Partition,
    /// SIGKILL of the arbitrator
    ArbitratorLoss,
    /// SIGKILL of both daemons at once
    BothPowerLoss,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::ArbitratorLoss => "arbitrator-loss",
            Self::BothPowerLoss => "both-power-loss",
        })
    }
}
