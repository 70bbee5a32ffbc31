//! Disk operations: latency, errors, stalls, and what a crash leaves of them.

use replicator::engine::{DiskCommand, DiskReply, Input as EngineInput, MetaRequest};
use replicator::meta::layout::{ACTIVITY_LOG_OFFSET, BITMAP_OFFSET, SUPERBLOCK_OFFSETS};
use replicator::types::{BLOCK_LEN, BlockRange, ByteOffset, DiskError, NodeId, OpId, Payload};

use crate::checkers::Violation;
use crate::clock::SECS;
use crate::disk::{Content, FlushTicket, PAGE_LEN};
use crate::plan::DiskOp;
use crate::rng::Stream;

use super::node::{Arrival, Node};
use super::{Event, Planted, World};

/// What a hanging disk was asked lands at most this long after it answers again.
const LATE_LANDING_MAX: u64 = 3 * SECS;

/// A data operation under way.
#[derive(Debug)]
pub(super) struct Job {
    /// Number of the process that wants to know.
    life: u32,
    op: OpId,
    command: DiskCommand,
    ticket: FlushTicket,
}

/// A metadata request, waiting or (at the head of the queue) under way.
#[derive(Debug)]
pub(super) struct MetaJob {
    op: OpId,
    request: MetaRequest,
}

/// What is wrong with a node's disks now.
#[derive(Debug, Default)]
pub(super) struct Broken {
    pub(super) data: Vec<(DiskOp, u64)>,
    pub(super) meta: Vec<u64>,
    pub(super) stalls: u32,
    stalled: Vec<u64>,
    /// Hangs are stalls of the metadata too, and what stalled in one ends late.
    hangs: u32,
    meta_stalled: bool,
    pub(super) store_extra: u64,
}

fn written(command: &DiskCommand) -> Option<BlockRange> {
    match command {
        DiskCommand::Write { range, .. } | DiskCommand::Zeroes { range, .. } => Some(*range),
        DiskCommand::Read(_) | DiskCommand::Flush => None,
    }
}

/// The pages a write puts, with their content.
fn pages(command: &DiskCommand) -> Vec<(u64, Content)> {
    let Some(range) = written(command) else {
        return Vec::new();
    };
    let payload = match command {
        DiskCommand::Write { payload, .. } => Some(payload),
        _ => None,
    };
    range
        .iter()
        .enumerate()
        .map(|(nr, block)| {
            let cut = |payload: &Payload| payload.slice(nr * PAGE_LEN, (nr + 1) * PAGE_LEN);
            (block.0, payload.map(cut))
        })
        .collect()
}

impl Node {
    pub(super) fn all_jobs_are_of_this_life(&self) -> bool {
        self.jobs.values().all(|job| job.life == self.life)
    }
}

impl World {
    pub(super) fn submit_disk(&mut self, node: NodeId, op: OpId, command: DiskCommand) {
        if let Some(range) = written(&command) {
            self.check_overlap(node, range);
        }
        let latency = self.draw(Stream::Disk, self.plan.options.disk_latency);
        let target = self.node(node);
        target.job_count += 1;
        let (job, life, ticket) = (target.job_count, target.life, target.data.begin_flush());
        target.jobs.insert(
            job,
            Job {
                life,
                op,
                command,
                ticket,
            },
        );
        self.schedule(latency, Event::JobEnds { node, job });
    }

    /// Two writes of one block in flight end in any order: the engine must never ask for that.
    fn check_overlap(&mut self, node: NodeId, range: BlockRange) {
        let clash = self
            .node(node)
            .jobs
            .values()
            .find_map(|job| written(&job.command).filter(|other| other.overlaps(range)));
        if let Some(other) = clash {
            self.fail(Violation::new(
                "ordered disk writes",
                format!("{node:?} writes {range:?} while {other:?} is still being written"),
            ));
        }
    }

    pub(super) fn job_ends(&mut self, node: NodeId, job: u64) {
        let target = self.node(node);
        if target.broken.stalls > 0 {
            target.broken.stalled.push(job);
            return;
        }
        let Some(Job {
            life,
            op,
            command,
            ticket,
        }) = target.jobs.remove(&job)
        else {
            return;
        };
        let result = self.carry_out(node, &command, ticket);
        if let Err(error) = result {
            self.trace.say(self.now, || {
                format!("{node:?} disk: {command:?} fails, {error}")
            });
        }
        let what = Arrival::Engine(EngineInput::DiskDone { op, result });
        self.arrive(node, life, what);
        self.attach_if_quiet(node);
    }

    fn carry_out(
        &mut self,
        node: NodeId,
        command: &DiskCommand,
        ticket: FlushTicket,
    ) -> Result<DiskReply, DiskError> {
        if self.disk_fails(node, command) {
            let mut rng = self.rng(Stream::Disk);
            let target = self.node(node);
            for (page, content) in pages(command) {
                target.data.write_torn(page, &content, &mut rng);
            }
            return Err(DiskError::Io);
        }
        let ignored = self.planted == Some(Planted::FlushIgnored)
            && self
                .node(node)
                .engine_side()
                .is_some_and(|side| side.activated.is_none());
        let target = self.node(node);
        match command {
            DiskCommand::Read(range) => {
                let data = target.data.read(range.start().0, range.count().0);
                return Ok(DiskReply::Data(data));
            }
            DiskCommand::Flush if ignored => {}
            DiskCommand::Flush => target.data.end_flush(ticket),
            DiskCommand::Write { fua, .. } | DiskCommand::Zeroes { fua, .. } => {
                for (page, content) in pages(command) {
                    target.data.write(page, content, *fua && !ignored);
                }
            }
        }
        Ok(DiskReply::Done)
    }

    fn disk_fails(&mut self, node: NodeId, command: &DiskCommand) -> bool {
        let mut rng = self.rng(Stream::Disk);
        self.node(node).broken.data.iter().any(|(op, per_mille)| {
            let hit = match command {
                DiskCommand::Read(_) => matches!(op, DiskOp::Read | DiskOp::Any),
                DiskCommand::Flush => matches!(op, DiskOp::Flush | DiskOp::Any),
                _ => matches!(op, DiskOp::Write | DiskOp::Any),
            };
            hit && rng.chance(*per_mille)
        })
    }

    pub(super) fn submit_meta(&mut self, node: NodeId, op: OpId, request: MetaRequest) {
        let target = self.node(node);
        target.meta_queue.push_back(MetaJob { op, request });
        if target.meta_queue.len() == 1 {
            self.begin_meta(node);
        }
    }

    fn begin_meta(&mut self, node: NodeId) {
        let latency = self.draw(Stream::Disk, self.plan.options.disk_latency);
        let life = self.node(node).life;
        self.schedule(latency, Event::MetaEnds { node, life });
    }

    pub(super) fn meta_ends(&mut self, node: NodeId, life: u32) {
        let target = self.node(node);
        if target.life != life {
            return;
        }
        if target.broken.hangs > 0 {
            target.broken.meta_stalled = true;
            return;
        }
        let mut rng = self.rng(Stream::Disk);
        let planted = self.planted;
        let target = self.node(node);
        let failed = target
            .broken
            .meta
            .iter()
            .any(|per_mille| rng.chance(*per_mille));
        let Some(MetaJob { op, request }) = target.meta_queue.pop_front() else {
            return;
        };
        let result = match request {
            _ if failed => {
                for (page, content) in meta_pages(&request) {
                    target.meta.write_torn(page, &content, &mut rng);
                }
                Err(DiskError::Io)
            }
            MetaRequest::Read { offset, len } => {
                assert!(offset.0.is_multiple_of(BLOCK_LEN) && len.0.is_multiple_of(BLOCK_LEN));
                let (first, count) = (offset.0 / BLOCK_LEN, len.0 / BLOCK_LEN);
                Ok(DiskReply::Data(target.meta.read(first, count)))
            }
            MetaRequest::Write(_) => {
                for (page, content) in meta_pages(&request) {
                    if !is_dropped(planted, page) {
                        target.meta.write(page, content, false);
                    }
                }
                let ticket = target.meta.begin_flush();
                target.meta.end_flush(ticket);
                Ok(DiskReply::Done)
            }
        };
        let mut ended = vec![(op, result)];
        if let (_, Err(error)) = ended[0] {
            // As in production: what waits behind a failed write fails with it.
            ended.extend(target.meta_queue.drain(..).map(|job| (job.op, Err(error))));
        }
        if !target.meta_queue.is_empty() {
            self.begin_meta(node);
        }
        for (op, result) in ended {
            self.arrive(
                node,
                life,
                Arrival::Engine(EngineInput::MetaDone { op, result }),
            );
        }
    }

    /// The process died: the kernel finishes what it was given, mostly.
    pub(super) fn abandon_jobs(&mut self, node: NodeId) {
        let mut rng = self.rng(Stream::Disk);
        let target = self.node(node);
        target.jobs.retain(|_, _| rng.chance(750));
        if let Some(job) = target.meta_queue.pop_front() {
            for (page, content) in meta_pages(&job.request) {
                if rng.chance(500) {
                    target.meta.write(page, content, false);
                }
            }
        }
        target.meta_queue.clear();
        target.broken.meta_stalled = false;
    }

    /// The power went: what was under way is torn.
    pub(super) fn lose_jobs(&mut self, node: NodeId) {
        let mut rng = self.rng(Stream::Disk);
        let target = self.node(node);
        for job in core::mem::take(&mut target.jobs).into_values() {
            for (page, content) in pages(&job.command) {
                target.data.write_torn(page, &content, &mut rng);
            }
        }
        if let Some(job) = target.meta_queue.pop_front() {
            for (page, content) in meta_pages(&job.request) {
                target.meta.write_torn(page, &content, &mut rng);
            }
        }
        target.meta_queue.clear();
        target.broken.meta_stalled = false;
    }

    /// A stalled disk answers again.
    pub(super) fn disk_resumes(&mut self, node: NodeId) {
        self.end_stall(node, self.plan.options.disk_latency);
    }

    fn end_stall(&mut self, node: NodeId, latency: [u64; 2]) {
        if self.node(node).broken.stalls > 0 {
            return;
        }
        let mut rng = self.rng(Stream::Disk);
        for job in core::mem::take(&mut self.node(node).broken.stalled) {
            let latency = rng.between(latency[0], latency[1]);
            self.schedule(latency, Event::JobEnds { node, job });
        }
    }

    /// From now on the disk answers nothing at all.
    pub(super) fn disk_hangs(&mut self, node: NodeId) {
        let broken = &mut self.node(node).broken;
        broken.stalls += 1;
        broken.hangs += 1;
    }

    /// A planted defect: the engine is told that what hangs is over, and it is not.
    pub(super) fn forget_late_jobs(&mut self, node: NodeId) {
        let target = self.node(node);
        let life = target.life;
        let ops: Vec<_> = target.jobs.values().map(|job| job.op).collect();
        for op in ops {
            let result = Err(DiskError::Io);
            let what = Arrival::Engine(EngineInput::DiskDone { op, result });
            self.schedule(0, Event::Arrive { node, life, what });
        }
    }

    /// It does again, to what is asked now; what it was asked before lands some time.
    pub(super) fn disk_answers(&mut self, node: NodeId) {
        let broken = &mut self.node(node).broken;
        broken.stalls -= 1;
        broken.hangs -= 1;
        let meta = broken.hangs == 0 && core::mem::take(&mut broken.meta_stalled);
        self.end_stall(node, [0, LATE_LANDING_MAX]);
        if meta && !self.node(node).meta_queue.is_empty() {
            self.begin_meta(node);
        }
    }
}

fn meta_pages(request: &MetaRequest) -> Vec<(u64, Content)> {
    match request {
        MetaRequest::Read { .. } => Vec::new(),
        MetaRequest::Write(pages) => pages
            .iter()
            .map(|page| {
                assert!(page.offset.0.is_multiple_of(BLOCK_LEN), "{page:?}");
                (page.offset.0 / BLOCK_LEN, Some(page.bytes.clone()))
            })
            .collect(),
    }
}

/// Whether a planted defect keeps this metadata page from the disk.
fn is_dropped(planted: Option<Planted>, page: u64) -> bool {
    let first = |offset: ByteOffset| offset.0 / BLOCK_LEN;
    let log = first(ACTIVITY_LOG_OFFSET)..first(SUPERBLOCK_OFFSETS[1]);
    match planted {
        Some(Planted::BitmapNotWritten) => page >= first(BITMAP_OFFSET),
        Some(Planted::ActivityLogNotWritten) => log.contains(&page),
        _ => false,
    }
}
