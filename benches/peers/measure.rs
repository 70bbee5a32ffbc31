//! What a run cost the servers: CPU time from /proc, system calls and context switches from perf.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU seconds (user and system) a process has used so far, all its threads.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("stat has a name")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux that Debian builds.
    Ok(ticks as f64 / 100.0)
}

/// Counts of one process over a stretch of time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) syscalls: f64,
    pub(crate) context_switches: f64,
}

/// perf attached to some processes.
pub(crate) struct Perf(Option<Child>);

impl Perf {
    /// Counts for `time`, then ends by itself. Without perf, or without the right to count, there
    /// is no figure rather than a wrong one.
    pub(crate) fn start(pids: &[u32], time: Duration) -> Self {
        let pids = pids
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let child = Command::new("perf")
            .args([
                "stat",
                "-x",
                ",",
                "-e",
                "raw_syscalls:sys_enter,context-switches",
                "-p",
                &pids,
            ])
            .args(["--", "sleep", &format!("{:.2}", time.as_secs_f64())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.ok())
    }

    pub(crate) fn finish(self) -> Option<Counts> {
        let output = self.0?.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let count = |event: &str| {
            let line = text.lines().find(|line| line.contains(event))?;
            line.split(',').next()?.parse::<f64>().ok()
        };
        Some(Counts {
            syscalls: count("raw_syscalls:sys_enter")?,
            context_switches: count("context-switches")?,
        })
    }
}
