//! Random pairs: seeded, bounded. Guests, completions in any order, link cuts, crashes with the
//! cache kept or lost, and a small controller that decides as the real one may.
//!
//! Checked all the time: dirty superset on the disks (promise 4), reads (no acknowledged write lost,
//! nothing told that is later untold), nothing answered twice. Checked at the end: everything
//! answered, replicas equal, and flushed data survives the power loss of both.

use std::collections::{BTreeMap, BTreeSet};

use super::pair::Shape;
use super::*;
use crate::types::{InSync, Payload};

const BLOCKS: [u64; 10] = [0, 1, 2, 3, 1023, 1024, 1025, 5000, 9000, 16_000];
const SHAPE: Shape = Shape {
    blocks: [16 * 1024; 2],
    al_slots: 3,
    zero_proven: true,
    protocol: ReplicationProtocol::C,
    resync_rate: ResyncRate::Unlimited,
    second_at: 0,
};

/// splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap() % count
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What a half block (the unit the guest writes here) may hold.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// What a read may return, oldest first.
    may_hold: Vec<Held>,
}

/// One write's value.
#[derive(Clone, Debug)]
struct Held {
    value: u8,
    /// Which write: values repeat, zero above all. 0 is what the disk held at first.
    write: u64,
    /// The write is over (answered or lost).
    over: bool,
}

/// A guest write or read under way: the cells and, per cell, which were over at its issue.
#[derive(Clone, Debug)]
enum Asked {
    Write {
        node: NodeId,
        cells: Vec<(u64, u64)>,
        write: u64,
        over_before: BTreeMap<(u64, u64), BTreeSet<u64>>,
    },
    Read {
        node: NodeId,
        block: u64,
    },
    Flush {
        node: NodeId,
    },
}

impl Asked {
    fn node(&self) -> NodeId {
        match self {
            Self::Write { node, .. } | Self::Read { node, .. } | Self::Flush { node } => *node,
        }
    }
}

struct World {
    pair: Pair,
    random: Random,
    cells: BTreeMap<(u64, u64), Cell>,
    asked: BTreeMap<u64, Asked>,
    seen: usize,
    writes: u64,
    up: [bool; 2],
}

const HALF: u64 = BLOCK / 2;

impl World {
    fn new(seed: u64, protocol: ReplicationProtocol) -> Self {
        Self {
            pair: Pair::in_sync_shaped(Shape { protocol, ..SHAPE }),
            random: Random(seed),
            cells: BTreeMap::new(),
            asked: BTreeMap::new(),
            seen: 0,
            writes: 0,
            up: [true; 2],
        }
    }

    // --- The guest ---------------------------------------------------------------------------

    fn is_active(&self, node: NodeId) -> bool {
        self.pair.nodes[node.index()].engine.active.is_some()
    }

    /// The node that serves, as far as the register goes.
    fn primary(&self) -> Option<NodeId> {
        let primary = self.pair.view?.primary;
        self.is_active(primary).then_some(primary)
    }

    fn ask(&mut self) {
        // Some guests are still connected to a Primary that has not heard of its successor.
        let node = self.random.pick(&[A, B]);
        if !self.is_active(node) {
            return;
        }
        if self.asked.len() > 12 {
            return;
        }
        let block = self.random.pick(&BLOCKS);
        match self.random.below(10) {
            0..=1 => {
                let request = self.pair.read(node, block);
                self.asked.insert(request, Asked::Read { node, block });
            }
            2 => {
                let request = self.pair.flush(node);
                self.asked.insert(request, Asked::Flush { node });
            }
            _ => self.ask_write(node, block),
        }
    }

    fn ask_write(&mut self, node: NodeId, block: u64) {
        // Whole blocks, halves, and two blocks from the middle of one to the middle of the other.
        let (start, halves) = self.random.pick(&[(0, 2), (0, 1), (1, 1), (1, 2), (0, 4)]);
        let offset = ByteOffset(block * BLOCK + start * HALF);
        let fua = self.random.one_in(6);
        let zero = self.random.one_in(5);
        self.writes += 1;
        let write = self.writes;
        let value = if zero {
            0
        } else {
            u8::try_from((write - 1) % 255 + 1).unwrap()
        };
        let len = halves * HALF;
        let kind = if zero {
            GuestKind::Zeroes {
                offset,
                len: ByteLen(len),
                may_unmap: true,
                fua,
            }
        } else {
            let payload = vec![value; usize::try_from(len).unwrap()].into();
            GuestKind::Write {
                offset,
                payload,
                fua,
            }
        };
        let cells: Vec<_> = (start..start + halves)
            .map(|half| (block + half / 2, half % 2))
            .collect();
        let mut over_before = BTreeMap::new();
        for cell in &cells {
            let known = self.cells.entry(*cell).or_insert_with(fresh);
            let over = known.may_hold.iter().filter(|held| held.over);
            over_before.insert(*cell, over.map(|held| held.write).collect());
            known.may_hold.push(Held {
                value,
                write,
                over: false,
            });
        }
        let asked = Asked::Write {
            node,
            cells,
            write,
            over_before,
        };
        let request = self.pair.guest(node, kind);
        self.asked.insert(request, asked);
    }

    /// Takes notice of answers, and of requests that will never have one.
    fn notice(&mut self) {
        while self.seen < self.pair.answered.len() {
            let request = self.pair.answered[self.seen];
            self.seen += 1;
            let answer = self.pair.answer(request).expect("just answered");
            match self.asked.remove(&request) {
                None => {}
                Some(asked) => self.on_answer(&asked, answer),
            }
        }
        let gone: Vec<u64> = self
            .asked
            .iter()
            .filter(|(request, asked)| {
                !self.pair.nodes[asked.node().index()]
                    .unanswered
                    .contains(request)
            })
            .map(|(request, _)| *request)
            .collect();
        for request in gone {
            if let Some(Asked::Write { cells, write, .. }) = self.asked.remove(&request) {
                for cell in cells {
                    self.end_write(cell, write);
                }
            }
        }
    }

    fn end_write(&mut self, cell: (u64, u64), write: u64) {
        let known = self.cells.entry(cell).or_insert_with(fresh);
        for held in known.may_hold.iter_mut().filter(|it| it.write == write) {
            held.over = true;
        }
    }

    fn on_answer(&mut self, asked: &Asked, answer: Result<GuestReply, GuestError>) {
        match asked {
            Asked::Flush { .. } => assert_eq!(answer, Ok(GuestReply::Done)),
            Asked::Write {
                cells,
                write,
                over_before,
                ..
            } => {
                assert_eq!(answer, Ok(GuestReply::Done));
                for cell in cells {
                    self.end_write(*cell, *write);
                    // What was over before this one began can never come back.
                    let old = &over_before[cell];
                    let known = self.cells.entry(*cell).or_insert_with(fresh);
                    known.may_hold.retain(|held| !old.contains(&held.write));
                }
            }
            Asked::Read { block, .. } => match answer {
                Ok(GuestReply::Data(data)) => self.check_block(*block, &data),
                other => panic!("a read was answered with {other:?}"),
            },
        }
    }

    fn check_block(&mut self, block: u64, data: &Payload) {
        for half in 0..2 {
            let start = usize::try_from(half * HALF).unwrap();
            let end = start + usize::try_from(HALF).unwrap();
            let bytes = &data[start..end];
            let value = bytes[0];
            assert!(bytes.iter().all(|byte| *byte == value), "torn half block");
            let known = self.cells.entry((block, half)).or_insert_with(fresh);
            assert!(
                known.may_hold.iter().any(|held| held.value == value),
                "block {block} half {half} holds {value}, may hold {:?}",
                known.may_hold
            );
            // Told once, told for ever: nothing older may come back, unless something is under way.
            if known.may_hold.iter().all(|held| held.over) {
                known.may_hold.retain(|held| held.value == value);
            }
        }
    }

    // --- Faults ------------------------------------------------------------------------------

    fn fault(&mut self) {
        match self.random.below(10) {
            9 => self.suspend(),
            8 => self.verify(),
            6 => self.order_resync(),
            7 => self.invalidate(),
            0 | 1 => self.pair.cut_link(),
            2 | 3 => {
                if self.up == [true; 2] && self.pair.link.is_none() {
                    self.pair.start_link();
                }
            }
            4 => {
                let node = self.random.pick(&[A, B]);
                if self.up[node.index()] && self.may_crash(node) {
                    self.crash(node);
                }
            }
            _ => {
                let node = self.random.pick(&[A, B]);
                if self.may_lose_power(node) {
                    self.lose_power(node);
                }
            }
        }
    }

    /// An operator holds resyncs, lets them go on, or sets their speed.
    fn order_resync(&mut self) {
        let node = self.random.pick(&[A, B]);
        let slow = core::num::NonZeroU64::new(4 << 20).expect("not 0");
        let order = self.random.pick(&[
            ResyncOrder::Pause,
            ResyncOrder::Resume,
            ResyncOrder::Rate(ResyncRate::BytesPerSecond(slow)),
            ResyncOrder::Rate(ResyncRate::Unlimited),
        ]);
        if self.up[node.index()] {
            self.pair.admin(node, AdminRequest::Resync(order));
        }
    }

    /// An operator suspends guests' writes, or lets them go on.
    fn suspend(&mut self) {
        let node = self.random.pick(&[A, B]);
        let order = if self.random.one_in(2) {
            AdminRequest::SuspendIo
        } else {
            AdminRequest::ResumeIo
        };
        if self.up[node.index()] {
            self.pair.admin(node, order);
        }
    }

    /// While a Primary's writes are suspended, snapshots of all good replicas are equal: nothing of
    /// them is in a cache.
    fn assert_settled_means_equal(&self) {
        let Some(node) = self.primary() else { return };
        let both = self
            .pair
            .view
            .is_some_and(|view| view.in_sync == InSync::BOTH);
        let settled = self.pair.snapshot(node).suspension == Some(Suspension::Settled);
        if settled && both && self.pair.nodes[node.index()].engine.peer_is_equal() {
            self.pair.assert_replicas_equal();
            for node in [A, B] {
                let disk = &self.pair.nodes[node.index()].disk;
                assert_eq!(disk.completed, disk.durable, "{node:?} has it in a cache");
            }
        }
    }

    /// An operator verifies, and whatever is under way, nothing is ever found to differ.
    fn verify(&mut self) {
        let node = self.random.pick(&[A, B]);
        let repair = self.random.one_in(2);
        let order = if self.random.one_in(6) {
            VerifyOrder::Stop
        } else {
            VerifyOrder::Start { repair }
        };
        if self.up[node.index()] {
            self.pair.admin(node, AdminRequest::Verify(order));
        }
    }

    fn assert_nothing_differs(&self) {
        for node in [A, B] {
            let report = self.pair.snapshot(node).verify.unwrap_or_default();
            let found = (report.differing_blocks, report.unreadable_blocks);
            assert_eq!(found, (0, 0), "{report:?}");
        }
    }

    /// An operator throws a replica's data away, whichever it is: the engine knows when it may.
    fn invalidate(&mut self) {
        let node = self.random.pick(&[A, B]);
        if self.up[node.index()] {
            self.pair.admin(node, AdminRequest::Invalidate);
        }
    }

    /// The peer asked to be left out, and the register agreed; it may or may not hear of that.
    fn leave_out(&mut self, node: NodeId) {
        self.pair.remove_peer(node);
        let events = &mut self.pair.state(node).events;
        events.retain(|event| *event != Event::PeerGivesUpData);
        if self.up[node.peer().index()] && self.random.one_in(2) {
            let view = self.pair.view.unwrap();
            self.pair.input(node.peer(), Input::Learned(view));
        }
    }

    /// Any process, under C. Under B what a Secondary received is in its memory: the other replica
    /// must have all of its own.
    fn may_crash(&self, node: NodeId) -> bool {
        let kept = |node| {
            let facts = self.pair.facts(node);
            facts.is_some_and(|facts| facts.eligible && !facts.lost_volatile)
        };
        self.pair.shape.protocol == ReplicationProtocol::C || kept(node.peer())
    }

    /// Only what protocol C promises to survive: the other replica is up, in sync and has its cache.
    fn may_lose_power(&self, node: NodeId) -> bool {
        let Some(view) = self.pair.view else {
            return false;
        };
        let kept = self
            .pair
            .facts(node.peer())
            .is_some_and(|facts| facts.eligible && !facts.lost_volatile);
        let alone = view.in_sync == InSync::only(node);
        self.up == [true; 2] && !alone && (kept || !view.in_sync.contains(node))
    }

    fn crash(&mut self, node: NodeId) {
        let mut random = Random(self.random.next());
        self.pair.crash_with(node, || random.one_in(2));
        self.up[node.index()] = false;
        self.pair.assert_dirty_superset();
    }

    fn lose_power(&mut self, node: NodeId) {
        let mut random = Random(self.random.next());
        self.pair.lose_power_with(node, || random.one_in(2));
        self.up[node.index()] = false;
        self.pair.assert_dirty_superset();
    }

    // --- The controller ----------------------------------------------------------------------

    fn control(&mut self) {
        for node in [A, B] {
            if !self.up[node.index()] {
                self.pair.begin_attach(node);
                self.up[node.index()] = true;
                return;
            }
        }
        let Some(view) = self.pair.view else { return };
        let stale = view.primary.peer();
        if self.is_active(stale) && self.random.one_in(2) {
            self.pair.step_down(stale);
        }
        match self.primary() {
            Some(node) => self.control_primary(node),
            None => self.control_nobody(&view),
        }
    }

    fn control_primary(&mut self, node: NodeId) {
        let view = self.pair.view.unwrap();
        self.pair.renew_lease(node);
        let engine = &self.pair.nodes[node.index()].engine;
        let equal = engine.peer_is_equal();
        let strict = engine.strict();
        let add = engine.active.as_ref().and_then(|active| active.add_begun);
        let prepared = add.filter(|number| {
            self.pair.saw(
                node,
                |event| matches!(event, Event::AddPrepared { view, .. } if view == number),
            ) && *number == view.number.next()
        });
        if let Some(number) = prepared.filter(|_| equal) {
            let committed = self.pair.commit(node, |view| view.in_sync = InSync::BOTH);
            assert_eq!(committed.view().number, number);
            self.pair.input(node, Input::Committed(committed));
            if self.up[node.peer().index()] {
                self.pair
                    .input(node.peer(), Input::Learned(*committed.view()));
            }
        } else if view.in_sync == InSync::BOTH
            && self
                .pair
                .saw(node, |event| *event == Event::PeerGivesUpData)
        {
            self.leave_out(node);
        } else if strict && !equal && self.random.one_in(3) {
            self.pair.remove_peer(node);
        } else if equal && !strict && view.in_sync == InSync::only(node) {
            self.pair.input(
                node,
                Input::BeginAdd {
                    view: view.number.next(),
                },
            );
        } else if self.random.one_in(12) && strict && equal {
            self.take_over_from(node);
        }
    }

    /// The peer's grant has run out while the Primary is cut off and has not noticed.
    fn take_over_from(&mut self, node: NodeId) {
        let peer = node.peer();
        let kept = self
            .pair
            .facts(peer)
            .is_some_and(|facts| facts.eligible && !facts.lost_volatile);
        let view = self.pair.view.unwrap();
        if !kept || !view.in_sync.contains(peer) {
            return;
        }
        self.pair.cut_link();
        self.pair.lapse_lease(node);
        self.begin_take_over(peer);
    }

    fn begin_take_over(&mut self, node: NodeId) {
        let seal = self.pair.view.unwrap().number;
        self.pair.input(node, Input::Drain { seal });
        // The rest of the world goes on while it drains.
        for _ in 0..400 {
            if self.pair.saw(
                node,
                |event| matches!(event, Event::Drained { seal: of, ok: true } if *of == seal),
            ) {
                let committed = self.pair.commit(node, |view| {
                    view.primary = node;
                    view.in_sync = InSync::only(node);
                });
                let activation = crate::types::Activation::of(committed, node).unwrap();
                self.pair.input(node, Input::Activate(activation));
                self.pair.renew_lease(node);
                return;
            }
            self.step();
        }
        self.pair.input(node, Input::ProposalAborted);
    }

    fn control_nobody(&mut self, view: &View) {
        let able = |world: &Self, node: NodeId| {
            world
                .pair
                .facts(node)
                .filter(|facts| facts.eligible && view.in_sync.contains(node))
        };
        let record = view.primary;
        for node in [A, B] {
            if self.up[node.index()] {
                self.pair.input(node, Input::Learned(*view));
            }
        }
        let of_record = able(self, record);
        let of_peer = able(self, record.peer());
        let peer_kept = of_peer.is_some_and(|facts| !facts.lost_volatile);
        if of_record.is_some_and(|facts| !facts.lost_volatile) && !self.random.one_in(4) {
            let committed = self.pair.commit(record, |_| {});
            let activation = crate::types::Activation::of(committed, record).unwrap();
            self.pair.input(record, Input::Activate(activation));
            self.pair.renew_lease(record);
        } else if peer_kept {
            self.begin_take_over(record.peer());
        }
    }

    // --- Running -----------------------------------------------------------------------------

    fn step(&mut self) -> bool {
        let random = &mut self.random;
        let moved = self.pair.step_any(|count| random.below(count));
        self.notice();
        moved
    }

    fn run_randomly(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.random.below(100) {
                0..=19 => self.ask(),
                20..=20 => self.fault(),
                21..=24 => self.control(),
                _ => {
                    self.step();
                }
            }
            if self.random.one_in(40) {
                self.assert_nothing_differs();
                self.assert_settled_means_equal();
                self.pair.assert_dirty_superset();
            }
        }
    }

    /// No more faults: within a bound everything is answered and equal.
    fn heal(&mut self) {
        for node in [A, B] {
            self.pair
                .admin(node, AdminRequest::Resync(ResyncOrder::Resume));
            self.pair.admin(node, AdminRequest::ResumeIo);
        }
        for _ in 0..200 {
            if self.up == [true; 2] && self.pair.link.is_none() {
                self.pair.start_link();
            }
            self.control();
            while self.step() {}
            if self.is_healed() {
                return;
            }
            self.pair.pass(Duration::from_millis(100));
        }
        panic!(
            "not healed: {:?}\n{:?}\nunanswered {:?}",
            self.pair.snapshot(A),
            self.pair.snapshot(B),
            self.asked
        );
    }

    fn is_healed(&self) -> bool {
        let equal = self
            .primary()
            .is_some_and(|node| self.pair.nodes[node.index()].engine.peer_is_equal());
        let both = self.pair.view.is_some_and(|v| v.in_sync == InSync::BOTH);
        equal && both && self.asked.is_empty()
    }

    fn check_all(&mut self) {
        self.assert_nothing_differs();
        self.pair.assert_replicas_equal();
        let node = self.primary().expect("healed");
        for block in BLOCKS.into_iter().chain([4, 1026, 5001, 9001, 16_001]) {
            let data = self.pair.read_back(node, block);
            self.check_block(block, &data.into());
        }
    }

    fn check_power_loss_of_both(&mut self) {
        let node = self.primary().expect("healed");
        self.pair.flushed(node);
        for victim in [A, B] {
            self.pair.lose_power(victim);
        }
        for victim in [A, B] {
            self.pair.restart(victim);
        }
        self.pair.recover(node);
        self.pair.remove_peer(node);
        for block in BLOCKS {
            let data = self.pair.read_back(node, block);
            self.check_block(block, &data.into());
        }
    }
}

fn fresh() -> Cell {
    Cell {
        may_hold: vec![Held {
            value: 0,
            write: 0,
            over: true,
        }],
    }
}

fn story(seed: u64, protocol: ReplicationProtocol) {
    let mut world = World::new(seed, protocol);
    world.run_randomly(1500);
    world.heal();
    world.check_all();
    world.check_power_loss_of_both();
}

#[test]
fn random_pairs_keep_their_promises() {
    stories(ReplicationProtocol::C);
}

/// Nobody takes over here who lost what it had in memory, so B promises what C does.
#[test]
fn random_pairs_keep_their_promises_under_b() {
    stories(ReplicationProtocol::B);
}

fn stories(protocol: ReplicationProtocol) {
    let seeds = match option_env!("TWINBLK_PAIR_SEEDS") {
        Some(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            from.parse().unwrap()..to.parse().unwrap()
        }
        None => 0..40,
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| story(seed, protocol));
        assert!(result.is_ok(), "seed {seed} failed; the reason is above");
    }
}
