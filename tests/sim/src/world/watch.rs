//! Where the checkers are called, and what they are shown.

use replicator::engine::{AttachError, GuestReply, Suspension};
use replicator::meta::{Layout, Loader, NewReplica, Recovered, ReplicaState, Superblock, format};
use replicator::types::{
    BLOCK_LEN, BlockIndex, InSync, NodeId, ReplicationProtocol, Role, View, ViewCause, ViewNumber,
    VolumeId,
};

use crate::checkers::history::Must;
use crate::checkers::writer::Accepted;
use crate::checkers::{Checked, Violation, dirty, state};
use crate::disk::{Content, PAGE_LEN};
use crate::plan::{FaultKind, OpKind};
use crate::stamp::{self, CELL_LEN, CELLS_PER_BLOCK, Value};

use super::World;
use super::clients::Asked;

const DATA_NODES: [NodeId; 2] = [NodeId::A, NodeId::B];

fn cell_of(content: &Content, cell: u64) -> Value {
    let Some(bytes) = content else {
        return Value::Zero;
    };
    let at = usize::try_from(cell % CELLS_PER_BLOCK).expect("below eight") * CELL_LEN;
    stamp::identify(cell, &bytes[at..at + CELL_LEN])
}

impl World {
    // --- Answers ----------------------------------------------------------------------------

    pub(super) fn watch_answer(
        &mut self,
        node: NodeId,
        view: ViewNumber,
        asked: &Asked,
        reply: GuestReply,
    ) {
        let checked = self.check_answer(node, view, asked, &reply);
        self.check(checked.map_err(|violation| Violation {
            detail: format!("{node:?} answers {:?}: {}", asked.op, violation.detail),
            ..violation
        }));
    }

    fn check_answer(
        &mut self,
        node: NodeId,
        view: ViewNumber,
        asked: &Asked,
        reply: &GuestReply,
    ) -> Checked {
        self.writer.note_answer(node, view)?;
        match (asked.op.kind, reply) {
            (OpKind::Read, GuestReply::Data(data)) => {
                self.figures.reads += 1;
                let cells = asked.op.first_cell..asked.op.first_cell + asked.op.cells;
                if data.len() as u64 != asked.op.cells * CELL_LEN as u64 {
                    let detail = format!("{} bytes for {:?}", data.len(), asked.op);
                    return Err(Violation::new("read length", detail));
                }
                for (cell, bytes) in cells.zip(data.chunks_exact(CELL_LEN)) {
                    let value = stamp::identify(cell, bytes);
                    self.history.observe(cell, value, asked.invoked, self.now)?;
                }
            }
            (OpKind::Flush, GuestReply::Done) => {
                self.figures.flushes += 1;
                let cells = self.history.flush(asked.invoked);
                self.check_replicas(cells, Must::Flushed, false)?;
            }
            (kind, GuestReply::Done) => {
                let write = asked.write.expect("every other request writes");
                let fua = matches!(kind, OpKind::Write { fua: true });
                self.figures.writes += 1;
                self.history.acknowledge(self.now, write, fua)?;
                let cells = self.history.cells_of(write);
                self.check_replicas(cells.clone().collect(), Must::Acknowledged, false)?;
                if fua {
                    self.check_replicas(cells.collect(), Must::Flushed, false)?;
                }
            }
            (kind, reply) => {
                let detail = format!("{reply:?} to {kind:?}");
                return Err(Violation::new("answer fits", detail));
            }
        }
        if core::mem::take(&mut self.disturbed) {
            let cells: Vec<_> = self.history.touched().collect();
            self.check_replicas(cells, Must::Acknowledged, true)?;
            let in_sync = self
                .writer
                .newest()
                .map(|view| view.in_sync)
                .unwrap_or_default();
            for node in DATA_NODES
                .into_iter()
                .filter(|node| in_sync.contains(*node))
            {
                self.node(node).tainted = false;
            }
        }
        Ok(())
    }

    /// Every replica the newest view counts on holds these cells. One that lost its power may have
    /// lost what it had confirmed before: it is only asked about flushed data, and when `all`.
    fn check_replicas(&self, cells: Vec<u64>, must: Must, all: bool) -> Checked {
        let Some(in_sync) = self.writer.newest().map(|view| view.in_sync) else {
            return Ok(());
        };
        for node in DATA_NODES {
            let target = &self.nodes[node.index()];
            let excused =
                must == Must::Acknowledged && (target.tainted && !all || self.is_ahead_of(node));
            if !in_sync.contains(node) || excused {
                continue;
            }
            for cell in &cells {
                let page = cell / CELLS_PER_BLOCK;
                let content = match must {
                    Must::Acknowledged => target.data.current(page),
                    Must::Flushed => target.data.durable(page),
                };
                self.history
                    .check(*cell, cell_of(&content, *cell), self.now, must)
                    .map_err(|violation| on_replica(node, violation))?;
            }
        }
        Ok(())
    }

    /// Whether guests may know of writes that this node has in memory, or on its way.
    fn is_ahead_of(&self, node: NodeId) -> bool {
        let active = self.nodes[node.index()]
            .engine()
            .is_some_and(|engine| engine.snapshot().role == Role::Primary);
        self.plan.options.protocol != ReplicationProtocol::C && !active
    }

    /// A guest got an error: only a broken disk excuses that.
    pub(super) fn watch_error(&mut self, node: NodeId, asked: &Asked) {
        if let Some(write) = asked.write {
            self.history.forget(write);
        }
        let kinds = &self.plan.options.kinds;
        let broken = kinds.contains(&FaultKind::DiskError) || kinds.contains(&FaultKind::MetaError);
        if !broken {
            let detail = format!("{node:?} fails {:?} though no disk does", asked.op);
            self.fail(Violation::new("needless error", detail));
        }
    }

    /// A view whose only good replica had just lost its power was decided while it was down: what
    /// was in its cache is gone, as for any single disk. One whose disk failed is none.
    fn excuse_if_all_lost(&mut self) {
        let Some(in_sync) = self.writer.newest().map(|view| view.in_sync) else {
            return;
        };
        let kept = DATA_NODES
            .into_iter()
            .filter(|node| in_sync.contains(*node) && !self.is_marked_failed(*node))
            .any(|node| !self.nodes[node.index()].tainted);
        if !kept {
            let checked = self.history.power_cut(self.now, |_| Vec::new());
            self.check(checked);
        }
    }

    // --- Activations and views --------------------------------------------------------------

    /// A Primary begins to serve: its replica holds everything acknowledged, and nothing asked of
    /// an earlier activation may have an effect any more.
    pub(super) fn watch_serving(&mut self, node: NodeId) {
        self.forget_unanswered(node.peer());
        self.history.close_unknown(self.now);
        self.watch_marks("at activation");
        let Some(view) = self.writer.newest().copied() else {
            return;
        };
        if !view.in_sync.contains(node) {
            return;
        }
        if view.lossy && self.plan.options.protocol == ReplicationProtocol::A {
            let target = &self.nodes[node.index()];
            let holds = |cell| cell_of(&target.data.current(cell / CELLS_PER_BLOCK), cell);
            let checked = self.history.survive(self.now, !target.tainted, holds);
            self.check(checked);
        }
        let checked = self.check_image(node);
        self.check(checked);
        self.node(node).tainted = false;
    }

    /// Requests of another activation stay with their engine, but count as unknown.
    fn forget_unanswered(&mut self, node: NodeId) {
        let Some(side) = self.node(node).engine_side() else {
            return;
        };
        let writes: Vec<_> = side
            .asked
            .values()
            .filter_map(|asked| asked.write)
            .collect();
        for write in writes {
            self.history.forget(write);
        }
    }

    fn check_image(&self, node: NodeId) -> Checked {
        let data = &self.nodes[node.index()].data;
        for cell in self.history.touched() {
            let content = data.current(cell / CELLS_PER_BLOCK);
            self.history
                .check(cell, cell_of(&content, cell), self.now, Must::Acknowledged)
                .map_err(|violation| on_replica(node, violation))?;
        }
        Ok(())
    }

    /// A voter's record may have become durable.
    pub(super) fn note_store(&mut self, node: NodeId) {
        let target = &self.nodes[node.index()];
        let Some((ballot, view)) = target.record().acceptor.accepted else {
            return;
        };
        let accepted = Accepted {
            voter: target.voter,
            ballot,
            view,
        };
        let before = self.writer.newest().map(|view| view.number);
        let checked = self.writer.note_accepted(node, accepted);
        self.check(checked);
        if self.writer.newest().map(|view| view.number) != before {
            self.excuse_if_all_lost();
            if view.cause == ViewCause::Forced {
                self.history.force();
                self.figures.forced += 1;
            }
        }
        if self.trace.is_text() && self.writer.newest().map(|view| view.number) != before {
            let view = self.writer.newest().copied();
            self.trace.say(self.now, || {
                format!("CHOSEN {}", view.map_or_else(String::new, tell))
            });
        }
    }

    pub(super) fn watch_state(&mut self, node: NodeId) {
        let Some(engine) = self.nodes[node.index()].engine() else {
            return;
        };
        let snapshot = engine.snapshot();
        let checked = state::check_truth(node, &snapshot, self.writer.newest());
        self.check(checked);
        if snapshot.suspension == Some(Suspension::Settled) {
            self.watch_suspended(node);
        }
    }

    /// A Primary says that snapshots can be taken: whatever a power cut may leave now, every replica
    /// that the view counts on holds the same.
    fn watch_suspended(&mut self, node: NodeId) {
        let both = |view: &View| view.primary == node && view.in_sync == InSync::BOTH;
        if !self.writer.newest().is_some_and(both) {
            return;
        }
        let [a, b] = [&self.nodes[0].data, &self.nodes[1].data];
        let pages = dirty::differing(a, b).into_iter();
        let found = pages
            .filter(|page| self.is_inside(*page))
            .find(|page| !self.is_rotten(*page));
        if let Some(page) = found {
            let detail =
                format!("{node:?} says that writes are suspended, and block {page} differs");
            self.fail(Violation::new("suspended means equal", detail));
        }
    }

    pub(super) fn watch_attach_error(&mut self, node: NodeId, error: AttachError) {
        if !matches!(error, AttachError::Disk(_) | AttachError::Serving) {
            let detail = format!("{node:?} cannot attach: {error:?}");
            self.fail(Violation::new("metadata is atomic", detail));
        }
    }

    // --- Crashes ----------------------------------------------------------------------------

    /// The power of a node went: what had its last copy there and was never flushed is excused.
    pub(super) fn watch_power(&mut self, node: NodeId) {
        self.disturbed = false;
        if !node.is_data() {
            return;
        }
        let Some(in_sync) = self.writer.newest().map(|view| view.in_sync) else {
            return;
        };
        self.node(node).tainted = true;
        let good: Vec<_> = DATA_NODES
            .into_iter()
            .filter(|node| in_sync.contains(*node) && !self.is_marked_failed(*node))
            .collect();
        let nodes = &self.nodes;
        let holds = |node: &NodeId, cell: u64| {
            cell_of(
                &nodes[node.index()].data.current(cell / CELLS_PER_BLOCK),
                cell,
            )
        };
        let untainted: Vec<_> = good
            .iter()
            .filter(|node| !nodes[node.index()].tainted)
            .copied()
            .collect();
        let checked = if untainted.iter().any(|node| self.is_ahead_of(*node)) {
            // What it has in memory shows when it serves.
            Ok(())
        } else {
            self.history.power_cut(self.now, |cell| {
                untainted.iter().map(|node| holds(node, cell)).collect()
            })
        };
        let flushed = self.history.touched().try_for_each(|cell| {
            good.iter().try_for_each(|node| {
                self.history
                    .check(cell, holds(node, cell), self.now, Must::Flushed)
                    .map_err(|violation| on_replica(*node, violation))
            })
        });
        self.check(checked.and(flushed));
    }

    /// A process dies. Below protocol C it may take with it what the other one's guests know of.
    pub(super) fn watch_kill(&mut self, node: NodeId) {
        if !node.is_data() || !self.is_ahead_of(node) {
            return;
        }
        self.node(node).tainted = true;
        self.excuse_if_all_lost();
    }

    pub(super) fn watch_crash(&mut self, node: NodeId, when: &str) {
        if node.is_data() {
            self.watch_marks(when);
        }
    }

    // --- Marks ------------------------------------------------------------------------------

    /// Blocks that differ are marked in somebody's durable metadata.
    pub(super) fn watch_marks(&mut self, when: &str) {
        if self.violation.is_some()
            || self.is_marked_failed(NodeId::A)
            || self.is_marked_failed(NodeId::B)
        {
            return;
        }
        let [Ok(a), Ok(b)] = DATA_NODES.map(|node| self.load_metadata(node)) else {
            return;
        };
        if everything_is_marked(&a, &b) {
            return;
        }
        let devices = [&self.nodes[0].data, &self.nodes[1].data];
        let checked = dirty::check_superset(devices, when, |block: BlockIndex| {
            !self.is_inside(block.0)
                || a.bitmap.is_set(block)
                || b.bitmap.is_set(block)
                || self.is_rotten(block.0)
        });
        self.check(checked);
    }

    /// What the node's durable metadata says, as an attach would read it.
    fn load_metadata(&self, node: NodeId) -> Result<Recovered, String> {
        let meta = &self.nodes[node.index()].meta;
        let mut loader = Loader::new(self.meta_len());
        while let Some(range) = loader.next_read() {
            let first = range.offset().0 / BLOCK_LEN;
            let mut bytes = Vec::new();
            for page in first..first + range.len().0 / BLOCK_LEN {
                match meta.durable(page) {
                    Some(content) => bytes.extend_from_slice(&content),
                    None => bytes.resize(bytes.len() + PAGE_LEN, 0),
                }
            }
            loader.feed(&bytes);
        }
        loader.finish().map_err(|error| error.to_string())
    }

    pub(super) fn superblock_says_failed(&self, node: NodeId) -> bool {
        self.load_metadata(node)
            .is_ok_and(|recovered| recovered.superblock.current().state == ReplicaState::Failed)
    }

    // --- The end ----------------------------------------------------------------------------

    /// Healed and settled: both replicas are equal and hold everything.
    pub(super) fn watch_end(&mut self) {
        self.watch_marks("at the end");
        let inside = |page: u64| self.is_inside(page);
        let checked = state::check_identical(&self.nodes[0].data, &self.nodes[1].data, inside)
            .and_then(|()| self.check_image(NodeId::A))
            .and_then(|()| self.check_image(NodeId::B));
        self.check(checked);
    }

    /// Whether the newest view has the block in its volume.
    pub(super) fn is_inside(&self, block: u64) -> bool {
        let newest = self.writer.newest().map(|view| view.size_blocks);
        block < newest.unwrap_or(self.plan.options.volume_blocks)
    }

    /// A guest sees the size of the volume: no later one is smaller.
    pub(super) fn watch_size(&mut self, node: NodeId, size: u64) {
        if size < self.largest {
            let detail = format!(
                "{node:?} shows {size} blocks, and {} were shown",
                self.largest
            );
            self.fail(Violation::new("a volume only grows", detail));
        }
        self.largest = size;
    }

    // --- The beginning ----------------------------------------------------------------------

    pub(super) fn meta_layout(&self) -> Layout {
        Layout::for_volume(self.device_blocks(), self.plan.options.al_slots)
            .expect("plans have volumes of sane size")
    }

    /// `create-md` on both data nodes.
    pub(super) fn create_metadata(&mut self) {
        for node in DATA_NODES {
            let superblock = Superblock::blank(NewReplica {
                resource: self.resource,
                volume: VolumeId(0),
                node,
                replica: self.node(node).replica,
                size: self.volume_blocks(),
                al_slots: self.plan.options.al_slots,
                zero_proven: self.plan.options.zero_proven,
            });
            let plan = format(&superblock).expect("plans have volumes of sane size");
            for page in self.volume_blocks().0..self.device_blocks().0 {
                // Whatever is there before the volume grows is none of it.
                let garbage = vec![0xd0 + node.raw(); PAGE_LEN];
                self.node(node).data.write(page, Some(garbage.into()), true);
            }
            for page in plan.pages {
                let at = page.offset.0 / BLOCK_LEN;
                self.node(node).meta.write(at, Some(page.bytes), true);
            }
        }
    }
}

/// Whether the next handshake of these two marks every block anyway.
fn everything_is_marked(a: &Recovered, b: &Recovered) -> bool {
    let [a, b] = [a.superblock.current(), b.superblock.current()];
    let blank = |one: &Superblock| one.state == ReplicaState::Blank;
    let knows = |one: &Superblock, other: &Superblock| one.bitmap_base == Some(other.replica);
    match (blank(a), blank(b)) {
        (true, true) => true,
        (true, false) => {
            !(knows(b, a) || b.bitmap_base.is_none() && b.zero_proven && a.zero_proven)
        }
        (false, true) => {
            !(knows(a, b) || a.bitmap_base.is_none() && a.zero_proven && b.zero_proven)
        }
        (false, false) => !(knows(a, b) && knows(b, a)),
    }
}

fn on_replica(node: NodeId, violation: Violation) -> Violation {
    Violation {
        detail: format!("replica of {node:?}: {}", violation.detail),
        ..violation
    }
}

fn tell(view: View) -> String {
    let InSync { a, b } = view.in_sync;
    let members = match (a, b) {
        (true, true) => "A,B",
        (true, false) => "A",
        (false, true) => "B",
        (false, false) => "-",
    };
    format!(
        "view {} {:?}: {{{members}}}|{:?}{}{}",
        view.number,
        view.cause,
        view.primary,
        if view.held { " held" } else { "" },
        if view.lossy { " lossy" } else { "" },
    )
}
