//! What happens, in which order: set up, write, break, watch, mend, compare.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use replicator::admin::{ResourceStatus, ResyncStatus, Status};
use replicator::types::{DiskState, Role};

use super::cluster::{A, ARBITRATOR, B, Cluster, DISK_LEN, NAMES, RESOURCE};
use super::error::DemoError;
use super::interrupt::Interrupt;
use super::options::{DemoArgs, Fault};
use super::pattern::BLOCK_LEN;
use super::random::Random;
use super::report::{Outcome, Reporter, grouped, mebibytes};
use super::verdict;
use super::writer::{DEPTH, Plan, Progress, Writer};
use crate::clock::{now, unix_millis};
use crate::show::resync::resync_line;

/// What the fast profile promises from a failure to the volume being served again: the grant
/// (650 ms) counted from the last beacon heard, a turn of the register with two fsyncs, and the
/// client, which notices after 300 ms and tries both nodes in turn.
const TAKEOVER_BOUND: Duration = Duration::from_millis(1500);
/// How long the pair may take for anything a healthy one does at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// Writing before the fault, after it, and after everything is mended.
const WRITE_BEFORE: Duration = Duration::from_millis(2000);
const WRITE_DURING: Duration = Duration::from_millis(1500);
const WRITE_AFTER: Duration = Duration::from_millis(1000);

/// Runs the whole story.
pub(super) fn tell(
    args: &DemoArgs,
    interrupt: &Interrupt,
    reporter: &mut Reporter,
) -> Result<Outcome, DemoError> {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let relayed = args.fault == Fault::Partition;
    let cluster = Cluster::prepare(seed, relayed, args.keep)?;
    reporter.say(&format!(
        "fault {} · seed {seed} · {}",
        args.fault,
        cluster.dir().display()
    ));
    let mut story = Story {
        cluster,
        interrupt,
        reporter,
        random: Random::new(!seed),
        run: seed ^ u64::from(std::process::id()).rotate_left(32),
    };
    story.set_up()?;
    let writer = story.start_writer(seed)?;
    let outcome = story.go_on(args, seed, writer);
    if outcome.is_err() && !matches!(outcome, Err(DemoError::Interrupted)) {
        // What went wrong is in the logs.
        story.cluster.keep();
        let dir = story.cluster.dir().display().to_string();
        story
            .reporter
            .say(&format!("logs, disks and journal are kept in {dir}"));
    }
    outcome
}

struct Story<'a> {
    cluster: Cluster,
    interrupt: &'a Interrupt,
    reporter: &'a mut Reporter,
    random: Random,
    /// In every stamp: what an earlier run left behind does not count.
    run: u64,
}

/// What the fault did to the service.
struct Outage {
    takeover: Option<Duration>,
    stall: Duration,
    resynced: u64,
}

impl Story<'_> {
    fn set_up(&mut self) -> Result<(), DemoError> {
        for node in [A, B] {
            self.verb(node, &["create-md", RESOURCE])?;
        }
        for node in [A, B, ARBITRATOR] {
            self.cluster.start(node)?;
        }
        for node in [A, B] {
            self.verb(node, &["up", RESOURCE])?;
        }
        self.reporter.say(&format!(
            "kvm-a, kvm-b and arb are up on loopback; two sparse disks of {}",
            mebibytes(DISK_LEN)
        ));
        self.verb(A, &["primary", RESOURCE])?;
        let status = self.wait_until_both_up_to_date(A)?;
        let view = view_of(&status);
        self.reporter.say(&format!(
            "kvm-a is Primary (view {view}), both replicas UpToDate"
        ));
        Ok(())
    }

    fn start_writer(&mut self, seed: u64) -> Result<Writer, DemoError> {
        let writer = Writer::start(Plan {
            run: self.run,
            seed,
            sockets: [A, B].map(|node| self.cluster.socket(node)).to_vec(),
            export: RESOURCE.to_owned(),
            blocks: DISK_LEN / BLOCK_LEN as u64,
            journal: self.cluster.journal(),
        })?;
        self.reporter.say(&format!(
            "writer attached over NBD: stamped 4 KiB writes, depth {DEPTH}, each acknowledgement journaled"
        ));
        Ok(writer)
    }

    fn go_on(
        &mut self,
        args: &DemoArgs,
        seed: u64,
        mut writer: Writer,
    ) -> Result<Outcome, DemoError> {
        self.write_for(&mut writer, WRITE_BEFORE)?;
        writer.reset_stall();
        let outage = match args.fault {
            Fault::Kill => self.kill(&mut writer)?,
            Fault::Pause => self.pause(&mut writer)?,
            Fault::Partition => self.partition(&mut writer)?,
            Fault::ArbitratorLoss => self.lose_arbitrator(&mut writer)?,
            Fault::BothPowerLoss => self.lose_power(&mut writer)?,
        };
        self.write_for(&mut writer, WRITE_AFTER)?;
        writer.finish()?;
        let serving = self.serving()?;
        self.wait_until_both_up_to_date(serving)?;
        self.reporter.say(
            "writer finished, everything flushed; the processes are ended and the disks compared",
        );
        self.cluster.kill_all(&[A, B, ARBITRATOR]);
        if args.corrupt {
            self.corrupt()?;
        }
        let disks = [A, B].map(|node| self.cluster.disk(node));
        let verdict = verdict::judge(self.run, &self.cluster.journal(), &[&disks[A], &disks[B]])
            .map_err(|error| DemoError::io("reading journal and disks", error))?;
        Ok(Outcome {
            fault: args.fault,
            seed,
            verdict,
            takeover: outage.takeover,
            takeover_bound: TAKEOVER_BOUND,
            stall: outage.stall,
            resynced: outage.resynced,
            wall: self.reporter.elapsed(),
            dir: args.keep.then(|| self.cluster.dir().to_owned()),
            corrupted: args.corrupt,
        })
    }

    fn kill(&mut self, writer: &mut Writer) -> Result<Outage, DemoError> {
        let at = self.strike(writer, "SIGKILL kvm-a");
        self.cluster.kill(A);
        let takeover = self.wait_for_takeover(writer, B, at)?;
        self.write_for(writer, WRITE_DURING)?;
        self.cluster.start(A)?;
        self.reporter.say("kvm-a is started again");
        self.finish_outage(writer, Some(takeover))
    }

    fn pause(&mut self, writer: &mut Writer) -> Result<Outage, DemoError> {
        let at = self.strike(writer, "SIGSTOP kvm-a, past its lease");
        self.cluster.pause(A, true);
        let takeover = self.wait_for_takeover(writer, B, at)?;
        self.write_for(writer, WRITE_DURING)?;
        self.cluster.pause(A, false);
        self.reporter
            .say("SIGCONT kvm-a: it still believes to be Primary until it looks at its clock");
        self.finish_outage(writer, Some(takeover))
    }

    fn partition(&mut self, writer: &mut Writer) -> Result<Outage, DemoError> {
        let at = self.strike(writer, "kvm-a is cut off from kvm-b and arb, TCP and UDP");
        self.cluster.isolate(A, true);
        let takeover = self.wait_for_takeover(writer, B, at)?;
        self.write_for(writer, WRITE_DURING)?;
        self.cluster.isolate(A, false);
        self.reporter.say("the cut is healed");
        self.finish_outage(writer, Some(takeover))
    }

    fn lose_arbitrator(&mut self, writer: &mut Writer) -> Result<Outage, DemoError> {
        self.strike(writer, "SIGKILL arb");
        self.cluster.kill(ARBITRATOR);
        self.write_for(writer, WRITE_DURING * 2)?;
        let stall = writer.progress().stall;
        self.reporter.say(&format!(
            "writes went on, longest stall {} ms",
            stall.as_millis()
        ));
        self.cluster.start(ARBITRATOR)?;
        self.wait("the arbitrator is back", |story| {
            let status = story.cluster.status(A, story.interrupt)?;
            Ok(status
                .filter(|status| status.cluster.voters_seen == 3)
                .map(drop))
        })?;
        self.reporter.say("arb is back, three of three voters");
        Ok(Outage {
            takeover: None,
            stall,
            resynced: 0,
        })
    }

    fn lose_power(&mut self, writer: &mut Writer) -> Result<Outage, DemoError> {
        self.strike(writer, "SIGKILL kvm-a and kvm-b at once");
        self.cluster.kill_all(&[A, B]);
        let order = if self.random.below(2) == 0 {
            [A, B]
        } else {
            [B, A]
        };
        let between = Duration::from_millis(self.random.below(500));
        let at = now();
        self.cluster.start(order[0])?;
        self.interrupt.wait(between)?;
        self.cluster.start(order[1])?;
        self.reporter.say(&format!(
            "{} is started again, then, {} ms later, {}",
            NAMES[order[0]],
            between.as_millis(),
            NAMES[order[1]]
        ));
        self.wait("writes are acknowledged again", |story| {
            story.look_after(writer)?;
            Ok(writer
                .progress()
                .last
                .filter(|(last, _)| *last > at)
                .map(drop))
        })?;
        let served = writer.progress();
        let node = served.last.map_or(A, |(_, node)| node);
        self.reporter.say(&format!(
            "{} serves again {:.2} s after the restart, {} errors",
            NAMES[node],
            served.stall.as_secs_f64(),
            served.errors
        ));
        self.reporter.say("(a kill loses no disk cache: power cuts with torn and lost sectors are shown by the simulator)");
        self.finish_outage(writer, None)
    }

    /// Says what is done now, and to how many writes.
    fn strike(&mut self, writer: &Writer, what: &str) -> Instant {
        let acknowledged = grouped(writer.progress().acknowledged);
        self.reporter
            .say(&format!("{what}   ({acknowledged} writes acknowledged)"));
        now()
    }

    /// Waits until `node` has acknowledged a write sent after the fault at `since`.
    fn wait_for_takeover(
        &mut self,
        writer: &mut Writer,
        node: usize,
        since: Instant,
    ) -> Result<Duration, DemoError> {
        let first = |progress: &Progress| {
            let serves = |stretch: &&(Instant, usize)| stretch.0 > since && stretch.1 == node;
            progress
                .stretches
                .iter()
                .find(serves)
                .map(|stretch| stretch.0)
        };
        let what = format!("{} takes over and acknowledges a write", NAMES[node]);
        let at = self.wait(&what, |story| {
            story.look_after(writer)?;
            Ok(first(&writer.progress()))
        })?;
        let takeover = at.saturating_duration_since(since);
        let progress = writer.progress();
        let view = self
            .cluster
            .status(node, self.interrupt)?
            .as_ref()
            .map_or(0, view_of);
        self.reporter.say(&format!(
            "{} promoted (view {view})   takeover took {:.2} s   writer stalled {:.2} s, {} errors",
            NAMES[node],
            takeover.as_secs_f64(),
            progress.stall.as_secs_f64(),
            progress.errors
        ));
        Ok(takeover)
    }

    /// Waits until the replica that was away is back in sync, showing the resync.
    fn finish_outage(
        &mut self,
        writer: &mut Writer,
        takeover: Option<Duration>,
    ) -> Result<Outage, DemoError> {
        let mut shown = 0;
        let serving = self.serving_of(writer)?;
        let away = if serving == A { B } else { A };
        let status = self.wait("both replicas are UpToDate again", |story| {
            story.look_after(writer)?;
            let Some(status) = story.cluster.status(serving, story.interrupt)? else {
                return Ok(None);
            };
            if let Some(resync) = resync_of(&status)
                && resync.done_bytes > shown
            {
                shown = resync.done_bytes;
                story.reporter.say(&resync_line(resync));
            }
            Ok(both_up_to_date(&status).then_some(status))
        })?;
        let resynced = copied(&status);
        self.reporter.say(&format!(
            "{} is Secondary and UpToDate (view {}); resynced {} of {} (bitmap)",
            NAMES[away],
            view_of(&status),
            mebibytes(resynced),
            mebibytes(DISK_LEN)
        ));
        Ok(Outage {
            takeover,
            stall: writer.progress().stall,
            resynced,
        })
    }

    fn wait_until_both_up_to_date(&mut self, node: usize) -> Result<Status, DemoError> {
        self.wait("both replicas are UpToDate", |story| {
            let status = story.cluster.status(node, story.interrupt)?;
            Ok(status.filter(both_up_to_date))
        })
    }

    /// The node that acknowledged last.
    fn serving_of(&mut self, writer: &Writer) -> Result<usize, DemoError> {
        match writer.progress().last {
            Some((_, node)) => Ok(node),
            None => self.serving(),
        }
    }

    fn serving(&mut self) -> Result<usize, DemoError> {
        self.wait("one node is Primary", Self::primary)
    }

    /// The Primary of the newest view: an older one may not have heard yet.
    fn primary(&mut self) -> Result<Option<usize>, DemoError> {
        let mut newest = None;
        for node in [A, B] {
            let status = self.cluster.status(node, self.interrupt)?;
            let Some(resource) = status.as_ref().and_then(resource) else {
                continue;
            };
            if resource.role == Some(Role::Primary) {
                newest = newest.max(Some((resource.view, node)));
            }
        }
        Ok(newest.map(|(_, node)| node))
    }

    fn write_for(&mut self, writer: &mut Writer, time: Duration) -> Result<(), DemoError> {
        let end = now() + time;
        while now() < end {
            self.look_after(writer)?;
            self.interrupt.wait(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// An error if a process or the writer ended that nobody ended.
    fn look_after(&mut self, writer: &mut Writer) -> Result<(), DemoError> {
        self.cluster.check()?;
        writer.check()
    }

    fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, DemoError>,
    ) -> Result<T, DemoError> {
        let interrupt = self.interrupt;
        interrupt.wait_for(what, PATIENCE, || {
            self.cluster.check()?;
            look(self)
        })
    }

    fn verb(&mut self, node: usize, words: &[&str]) -> Result<(), DemoError> {
        let result = self.cluster.verb(node, words, self.interrupt).map(drop);
        // A daemon that died is the better explanation.
        self.cluster.check()?;
        result
    }

    /// Flips one bit of an acknowledged block on one disk.
    fn corrupt(&mut self) -> Result<(), DemoError> {
        let failed = |error: io::Error| DemoError::io("corrupting a disk", error);
        let blocks = verdict::acknowledged_blocks(&self.cluster.journal()).map_err(failed)?;
        let count = u64::try_from(blocks.len()).unwrap_or(u64::MAX).max(1);
        let index = usize::try_from(self.random.below(count)).unwrap_or(0);
        let block = blocks.get(index).copied().unwrap_or(0);
        let len = BLOCK_LEN as u64;
        let at = block * len + self.random.below(len);
        let node = if self.random.below(2) == 0 { A } else { B };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.cluster.disk(node))
            .map_err(failed)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).map_err(failed)?;
        byte[0] ^= 1;
        file.write_all_at(&byte, at).map_err(failed)?;
        self.reporter.say(&format!(
            "--corrupt: one bit of byte {at} of {}'s disk flipped",
            NAMES[node]
        ));
        Ok(())
    }
}

fn resource(status: &Status) -> Option<&ResourceStatus> {
    status
        .resources
        .iter()
        .find(|resource| resource.name == RESOURCE)
}

fn view_of(status: &Status) -> u64 {
    resource(status)
        .and_then(|resource| resource.view)
        .unwrap_or(0)
}

/// As the serving node sees it: its own replica and the peer's, and both in the agreed view.
fn both_up_to_date(status: &Status) -> bool {
    let Some(resource) = resource(status) else {
        return false;
    };
    let peer = resource
        .peers
        .first()
        .and_then(|peer| peer.volumes.first())
        .map(|volume| volume.disk);
    resource.role == Some(Role::Primary)
        && resource.disk(0) == Some(DiskState::UpToDate)
        && peer == Some(DiskState::UpToDate)
        && resource.in_sync.len() == 2
}

fn resync_of(status: &Status) -> Option<&ResyncStatus> {
    let volume = resource(status)?.peers.first()?.volumes.first()?;
    volume.resync.as_ref()
}

fn copied(status: &Status) -> u64 {
    let peer = resource(status).and_then(|resource| resource.peers.first());
    peer.and_then(|peer| peer.volumes.first())
        .map_or(0, |volume| volume.last_resync.copied_bytes)
}

/// Differs from run to run; what it decides is then replayed with `--seed`. Short, so that it can be
/// typed again.
fn fresh_seed() -> u64 {
    Random::new(unix_millis() ^ u64::from(std::process::id()) << 48).below(1_000_000)
}
