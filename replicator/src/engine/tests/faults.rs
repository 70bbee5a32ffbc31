//! What can go wrong in a pair: links, disks, power; and what must hold all the same.

use std::collections::BTreeSet;

use super::pair::*;
use crate::engine::*;
use crate::protocol::Message;
use crate::types::{BlockCount, BlockIndex, ByteLen, SessionId};

impl Pair {
    pub(super) fn connect(&mut self) {
        self.start_link();
        self.run();
    }

    pub(super) fn start_link(&mut self) {
        self.cut_link();
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let open = [true; 2];
        self.link = Some(Link { session, open });
        for node in [NodeId::A, NodeId::B] {
            self.input(node, Input::LinkUp { session });
        }
    }

    pub(super) fn cut_link(&mut self) {
        let Some(Link { session, open }) = self.link.take() else {
            return;
        };
        for node in [NodeId::A, NodeId::B] {
            if !open[node.index()] {
                continue;
            }
            self.input(
                node,
                Input::LinkDown {
                    session,
                    reason: LinkDownReason::Broken,
                },
            );
        }
    }

    pub(super) fn disconnect(&mut self) {
        self.cut_link();
        self.run();
    }

    pub(super) fn attach(&mut self, node: NodeId) {
        self.begin_attach(node);
        self.run();
        assert!(self.saw(node, |event| matches!(event, Event::Attached(Ok(_)))));
    }

    pub(super) fn begin_attach(&mut self, node: NodeId) {
        let state = &self.nodes[node.index()];
        let request = AttachRequest {
            device_len: BlockCount(self.shape.blocks[node.index()]).bytes(),
            meta_len: ByteLen(state.meta.len() as u64),
            boot_id: state.boot_id,
            marked_failed: state.marked_failed,
            expected_replica: None,
            seal: ViewNumber::NONE,
        };
        self.admin(node, AdminRequest::Attach(request));
    }

    /// The process ends. What its disk was asked to do is done for the operations `lands` picks;
    /// of the first metadata operation any pages.
    pub(super) fn crash_with(&mut self, node: NodeId, mut lands: impl FnMut() -> bool) {
        self.cut_link();
        let at = node.index();
        let mut metadata_ended = false;
        for (owner, pending) in core::mem::take(&mut self.queue) {
            if owner != at {
                self.queue.push_back((owner, pending));
                continue;
            }
            match pending {
                Pending::Disk(_, command) if lands() => {
                    drop(self.nodes[at].disk.execute(&command));
                }
                Pending::Meta(_, MetaRequest::Write(pages)) if !metadata_ended => {
                    let whole = pages.len();
                    let landed: Vec<_> = pages.into_iter().filter(|_| lands()).collect();
                    metadata_ended = landed.len() < whole;
                    self.meta(at, MetaRequest::Write(landed));
                }
                _ => {}
            }
        }
        self.nodes[at].engine = Engine::new(config(node, self.nodes[at].boot_id, &self.shape));
        self.nodes[at].events.clear();
        self.nodes[at].unanswered.clear();
    }

    pub(super) fn crash(&mut self, node: NodeId) {
        self.crash_with(node, || false);
    }

    /// The host loses power: what was not flushed is gone.
    pub(super) fn lose_power(&mut self, node: NodeId) {
        self.lose_power_with(node, || false);
    }

    pub(super) fn lose_power_with(&mut self, node: NodeId, lands: impl FnMut() -> bool) {
        self.nodes[node.index()].boot_id += 1;
        self.crash_with(node, lands);
        let disk = &mut self.nodes[node.index()].disk;
        disk.completed = disk.durable.clone();
    }

    /// Another device with new metadata in place of the old one.
    pub(super) fn replace_disk(&mut self, node: NodeId, zero_proven: bool) {
        let shape = Shape {
            zero_proven,
            ..self.shape
        };
        let state = &mut self.nodes[node.index()];
        state.disk = Disk::default();
        state.meta = formatted(node, 900 + u128::from(node.raw()), &shape);
        state.marked_failed = false;
    }

    /// Time passes; both sides notice. Nothing that is under way ends meanwhile.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        for node in [NodeId::A, NodeId::B] {
            self.input(node, Input::Tick);
        }
    }

    /// Time passes in small steps, with everything under way going on.
    pub(super) fn live(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while self.now < end {
            self.pass(Duration::from_millis(200));
            self.run();
        }
    }

    /// A message that the other side's engine did not send, though its link carried it.
    pub(super) fn inject(&mut self, to: NodeId, message: Message) {
        let session = self.link.expect("there is a link").session;
        self.input(to, Input::Received { session, message });
    }

    /// Messages on their way to `node`.
    pub(super) fn messages_to(&self, node: NodeId) -> Vec<&Message> {
        self.queue
            .iter()
            .filter_map(|(at, pending)| match pending {
                Pending::Deliver(_, message) if *at == node.index() => Some(message),
                _ => None,
            })
            .collect()
    }

    /// Disk operations under way at `node`.
    pub(super) fn disk_ops(&self, node: NodeId) -> Vec<&DiskCommand> {
        self.queue
            .iter()
            .filter_map(|(at, pending)| match pending {
                Pending::Disk(_, command) if *at == node.index() => Some(command),
                _ => None,
            })
            .collect()
    }

    /// Lets the `nr`th of the disk operations under way at `node` end, whatever is held.
    pub(super) fn end_disk_op(&mut self, node: NodeId, nr: usize) {
        let index = (0..self.queue.len())
            .filter(|index| {
                let (at, pending) = &self.queue[*index];
                *at == node.index() && matches!(pending, Pending::Disk(..))
            })
            .nth(nr)
            .expect("that many are under way");
        self.carry_out(index);
    }

    /// Metadata operations under way at `node`.
    pub(super) fn meta_ops(&self, node: NodeId) -> usize {
        let of_node = |(at, pending): &&(usize, Pending)| {
            *at == node.index() && matches!(pending, Pending::Meta(..))
        };
        self.queue.iter().filter(of_node).count()
    }

    /// Lets the oldest metadata operation under way at `node` end, whatever is held.
    pub(super) fn end_meta_op(&mut self, node: NodeId) {
        let index = self
            .queue
            .iter()
            .position(|(at, pending)| *at == node.index() && matches!(pending, Pending::Meta(..)));
        self.carry_out(index.expect("one is under way"));
    }

    /// What a start of `node` would find marked: its metadata area as it is on the disk now.
    pub(super) fn recovered(&self, node: NodeId) -> crate::meta::Recovered {
        let area = &self.nodes[node.index()].meta;
        let mut loader = crate::meta::Loader::new(ByteLen(area.len() as u64));
        while let Some(range) = loader.next_read() {
            let start = usize::try_from(range.offset().0).unwrap();
            let end = start + usize::try_from(range.len().0).unwrap();
            loader.feed(&area[start..end]);
        }
        loader
            .finish()
            .expect("a metadata area opens after any crash")
    }

    /// Promise 4: blocks that differ are marked on a disk, by a bit or an activity-log extent.
    pub(super) fn assert_dirty_superset(&self) {
        let marks = [NodeId::A, NodeId::B].map(|node| self.recovered(node).bitmap);
        let differing = self.differing();
        for nr in differing {
            assert!(
                marks.iter().any(|bitmap| bitmap.is_set(BlockIndex(nr))),
                "block {nr} differs ({}, {}) and no disk says so",
                self.disk(NodeId::A, nr)[0],
                self.disk(NodeId::B, nr)[0],
            );
        }
    }

    pub(super) fn differing(&self) -> Vec<u64> {
        let [a, b] = [0, 1].map(|at| &self.nodes[at].disk.completed);
        let named: BTreeSet<u64> = a.keys().chain(b.keys()).copied().collect();
        named
            .into_iter()
            .filter(|nr| self.disk(NodeId::A, *nr) != self.disk(NodeId::B, *nr))
            .collect()
    }

    pub(super) fn restart(&mut self, node: NodeId) {
        self.attach(node);
        if let Some(view) = self.view {
            self.input(node, Input::Learned(view));
        }
        self.run();
    }

    pub(super) fn hold_disk(&mut self, node: NodeId, held: bool) {
        self.nodes[node.index()].disk.held = held;
    }

    pub(super) fn fail_disk(&mut self, node: NodeId) {
        self.nodes[node.index()].disk.failing = true;
    }

    pub(super) fn heal_disk(&mut self, node: NodeId) {
        self.nodes[node.index()].disk.failing = false;
    }
}
