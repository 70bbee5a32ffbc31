use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::meta::page::{PAGE_LEN, ZERO_PAGE};
use crate::types::{BlockCount, BlockIndex, EXTENT_BLOCKS};

const REPLICA: ReplicaId = ReplicaId(9);
const EXTENTS: u32 = 40;

fn layout(slots: u16) -> Layout {
    Layout::for_volume(BlockCount(u64::from(EXTENTS) * EXTENT_BLOCKS), slots).unwrap()
}

/// The blocks of `count` extents from `first` on.
fn extents(first: u32, count: u32) -> BlockRange {
    let block = |nr: u32| BlockIndex(u64::from(nr) * EXTENT_BLOCKS);
    BlockRange::between(block(first), block((first + count).min(EXTENTS)))
}

/// A ring on a disk.
#[derive(Clone)]
struct Ring {
    layout: Layout,
    bytes: Vec<u8>,
}

impl Ring {
    fn new(layout: Layout) -> Self {
        let len = usize::try_from(layout.activity_log_len().0).unwrap();
        let bytes = vec![0; len];
        Self { layout, bytes }
    }

    fn place(&mut self, page: &MetaPage) -> &mut [u8] {
        let start = usize::try_from(page.offset.0).unwrap() - PAGE_LEN;
        &mut self.bytes[start..start + PAGE_LEN]
    }

    fn write(&mut self, page: &MetaPage) {
        self.place(page).copy_from_slice(&page.bytes);
    }

    /// Only some 512-byte sectors arrive; one of them may be garbage.
    fn tear(&mut self, page: &MetaPage, sectors: u8, garbage: Option<usize>) {
        let place = self.place(page);
        for sector in 0..8 {
            let range = sector * 512..(sector + 1) * 512;
            if garbage == Some(sector) {
                place[range].fill(0x5a);
            } else if sectors & (1 << sector) != 0 {
                place[range.clone()].copy_from_slice(&page.bytes[range]);
            }
        }
    }

    fn replay(&self, slots: u16) -> (ActivityLog, BTreeSet<ExtentNr>) {
        let (log, listed) = replay(self.layout, slots, REPLICA, &self.bytes).unwrap();
        (log, listed.into_iter().collect())
    }
}

fn transaction(begin: Begin) -> Transaction {
    match begin {
        Begin::Transaction(transaction) => transaction,
        other => panic!("expected a transaction, not {other:?}"),
    }
}

fn commit(log: &mut ActivityLog, ring: &mut Ring, waiting: &[BlockRange]) -> Transaction {
    let transaction = transaction(log.begin_transaction(waiting.iter().copied()));
    ring.write(&transaction.page);
    log.commit_done();
    transaction
}

#[derive(Clone, Debug)]
enum Op {
    Request { first: u32, count: u32 },
    Release { which: usize, new_epoch: bool },
    Retire,
    Begin,
    Commit,
    Reset,
    Crash { sectors: u8, garbage: Option<usize> },
}

fn ops() -> impl Strategy<Value = Op> {
    let garbage = prop::option::of(0..8_usize);
    prop_oneof![
        8 => (0..EXTENTS, 1..4_u32).prop_map(|(first, count)| Op::Request { first, count }),
        8 => (any::<usize>(), any::<bool>())
            .prop_map(|(which, new_epoch)| Op::Release { which, new_epoch }),
        3 => Just(Op::Retire),
        6 => Just(Op::Begin),
        6 => Just(Op::Commit),
        1 => Just(Op::Reset),
        1 => (any::<u8>(), garbage).prop_map(|(sectors, garbage)| Op::Crash { sectors, garbage }),
    ]
}

/// The log and a dumb model of it: who holds what, and what the durable table may be.
struct Bench {
    slots: u16,
    log: ActivityLog,
    ring: Ring,
    /// Requests waiting for their extents, in order.
    waiting: Vec<BlockRange>,
    holding: Vec<BlockRange>,
    epoch: u64,
    retired: u64,
    /// Last epoch of each extent.
    last_epoch: BTreeMap<ExtentNr, u64>,
    /// The extents that are hot, or were until the transaction under way.
    table: BTreeSet<ExtentNr>,
    /// What the ring lists from before a crash, until the next transaction.
    stale: BTreeSet<ExtentNr>,
    /// The tables of transactions that crashes tore, all at the place of the next one.
    torn: Vec<BTreeSet<ExtentNr>>,
    /// The table after the transaction under way, and its page.
    next: Option<(BTreeSet<ExtentNr>, MetaPage)>,
}

impl Bench {
    fn new(slots: u16) -> Self {
        Self {
            slots,
            log: ActivityLog::new(layout(slots), slots, REPLICA),
            ring: Ring::new(layout(slots)),
            waiting: Vec::new(),
            holding: Vec::new(),
            epoch: 1,
            retired: 0,
            last_epoch: BTreeMap::new(),
            table: BTreeSet::new(),
            stale: BTreeSet::new(),
            torn: Vec::new(),
            next: None,
        }
    }

    /// What the durable ring lists.
    fn on_disk(&self) -> BTreeSet<ExtentNr> {
        self.table.union(&self.stale).copied().collect()
    }

    fn is_hot(&self, extent: ExtentNr) -> bool {
        let stays = self
            .next
            .as_ref()
            .is_none_or(|(next, _)| next.contains(&extent));
        stays && self.table.contains(&extent)
    }

    fn is_pinned(&self, extent: ExtentNr) -> bool {
        let held = self
            .holding
            .iter()
            .any(|range| range.extents().any(|e| e == extent));
        held || self
            .last_epoch
            .get(&extent)
            .is_some_and(|epoch| *epoch > self.retired)
    }

    fn try_acquire(&mut self, range: BlockRange) -> bool {
        let expected = range.extents().all(|extent| self.is_hot(extent));
        let acquired = self.log.acquire(range) == Acquire::Hot;
        assert_eq!(acquired, expected, "{range:?}");
        if acquired {
            self.holding.push(range);
        }
        acquired
    }

    fn take_begun(&mut self, begun: Transaction) {
        let mut next = self.on_disk();
        for extent in &begun.leaving {
            assert!(!self.is_pinned(*extent), "{extent:?} leaves while pinned");
            assert!(next.remove(extent), "{extent:?} leaves without being there");
        }
        assert!(next.is_subset(&self.table), "stale extents stay");
        for extent in &begun.activated {
            assert!(next.insert(*extent), "{extent:?} comes twice");
        }
        assert!(next.len() <= usize::from(self.slots));
        self.next = Some((next, begun.page));
    }

    fn begin(&mut self) {
        let busy = self.next.is_some();
        match self.log.begin_transaction(self.waiting.iter().copied()) {
            Begin::InFlight => assert!(busy),
            Begin::NotNeeded => {
                assert!(!busy);
                let mut extents = self.waiting.iter().flat_map(|range| range.extents());
                assert!(extents.all(|extent| self.is_hot(extent)));
            }
            Begin::Starved => self.check_starved(),
            Begin::Transaction(begun) => {
                assert!(!busy && begun.activated.len() <= CHANGES_MAX);
                self.take_begun(begun);
            }
        }
    }

    /// The first request with a cold extent really cannot be served.
    fn check_starved(&self) {
        let cold = |range: &&BlockRange| range.extents().any(|extent| !self.is_hot(extent));
        let stuck = self.waiting.iter().find(cold).unwrap();
        let needed = stuck
            .extents()
            .filter(|extent| !self.is_hot(*extent))
            .count();
        // Slots of requests further ahead, all of them hot, are kept for those.
        let ahead: BTreeSet<ExtentNr> = self
            .waiting
            .iter()
            .take_while(|range| *range != stuck)
            .chain([stuck])
            .flat_map(|range| range.extents())
            .collect();
        let evictable = self
            .table
            .iter()
            .filter(|extent| !self.is_pinned(**extent) && !ahead.contains(extent))
            .count();
        let free = usize::from(self.slots) - self.table.len();
        assert!(
            needed > free + evictable,
            "{stuck:?} could have been served"
        );
    }

    fn commit(&mut self) {
        if let Some((next, page)) = self.next.take() {
            self.ring.write(&page);
            self.log.commit_done();
            self.table = next;
            self.stale.clear();
            self.torn.clear();
            // As the engine does: those who waited try again, in order.
            while let Some(range) = self.waiting.first().copied() {
                if !self.try_acquire(range) {
                    break;
                }
                self.waiting.remove(0);
            }
        }
    }

    fn crash(&mut self, sectors: u8, garbage: Option<usize>) {
        if let Some((next, page)) = self.next.take() {
            self.ring.tear(&page, sectors, garbage);
            self.torn.push(next);
        }
        let (log, listed) = self.ring.replay(self.slots);
        // Nothing that may differ from the peer is missing.
        let must = self.table.iter().filter(|extent| self.is_pinned(**extent));
        for extent in must {
            assert!(listed.contains(extent), "{extent:?} is not in {listed:?}");
        }
        // And it is the old table, or the one of a transaction that this or an earlier crash tore.
        if listed != self.on_disk() {
            assert!(
                self.torn.contains(&listed),
                "where does {listed:?} come from?"
            );
            self.torn.clear();
        }
        assert_eq!(log.listed().collect::<BTreeSet<_>>(), listed);
        self.log = log;
        self.stale = listed;
        self.table = BTreeSet::new();
        self.waiting.clear();
        self.holding.clear();
        self.last_epoch.clear();
        (self.epoch, self.retired) = (1, 0);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Request { first, count } => {
                let range = extents(first, count);
                if !self.waiting.is_empty() || !self.try_acquire(range) {
                    self.waiting.push(range);
                }
            }
            Op::Release { which, new_epoch } if !self.holding.is_empty() => {
                let range = self.holding.swap_remove(which % self.holding.len());
                self.epoch += u64::from(new_epoch);
                self.log.release(range, self.epoch);
                for extent in range.extents() {
                    self.last_epoch.insert(extent, self.epoch);
                }
            }
            Op::Release { .. } => {}
            Op::Retire => {
                self.retired = self.epoch;
                self.log.retire(self.epoch);
            }
            Op::Begin => self.begin(),
            Op::Commit => self.commit(),
            Op::Reset => {
                if let Begin::Transaction(begun) = self.log.begin_reset() {
                    assert!(begun.activated.is_empty());
                    assert_eq!(begun.leaving.len(), self.on_disk().len());
                    self.take_begun(begun);
                }
            }
            Op::Crash { sectors, garbage } => self.crash(sectors, garbage),
        }
        for extent in (0..EXTENTS).map(ExtentNr) {
            let block = extents(extent.0, 1);
            assert_eq!(self.log.is_unsettled(block), self.is_pinned(extent));
        }
        let mut listed = self.on_disk();
        listed.extend(self.next.iter().flat_map(|(next, _)| next.iter().copied()));
        assert!(self.log.listed().all(|extent| listed.contains(&extent)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_does_what_a_table_of_names_does(
        slots in 4..12_u16,
        ops in prop::collection::vec(ops(), 1..150),
    ) {
        let mut bench = Bench::new(slots);
        for op in ops {
            bench.apply(op);
        }
    }

    #[test]
    fn no_ring_of_any_bytes_panics(
        pages in prop::collection::vec((0..7_usize, any::<[u8; 32]>()), 0..8),
    ) {
        let mut ring = Ring::new(layout(67));
        for (place, bytes) in pages {
            ring.bytes[place * 512 * 8..][..32].copy_from_slice(&bytes);
        }
        let _outcome = replay(ring.layout, 67, REPLICA, &ring.bytes);
    }
}

#[test]
fn the_whole_table_survives_rings_full_of_other_transactions() {
    // 2000 slots need three windows. The extents of the first transactions stay, while the ring is
    // overwritten several times with changes of other slots.
    let slots = 2000;
    let size = BlockCount(100_000 * EXTENT_BLOCKS);
    let layout = Layout::for_volume(size, slots).unwrap();
    let mut log = ActivityLog::new(layout, slots, REPLICA);
    let mut ring = Ring::new(layout);
    let one = |nr: u32| BlockRange::new(BlockIndex(u64::from(nr) * EXTENT_BLOCKS), BlockCount(1));
    let all: Vec<BlockRange> = (0..1990).map(one).collect();
    for batch in all.chunks(CHANGES_MAX) {
        commit(&mut log, &mut ring, batch);
    }
    for round in 0..60 {
        // Use every old extent, so that the new ones replace each other.
        for range in &all {
            assert_eq!(log.acquire(*range), Acquire::Hot);
            log.release(*range, 1);
        }
        log.retire(1);
        commit(&mut log, &mut ring, &[one(50_000 + round)]);
        let (_, listed) = ring.replay(slots);
        assert!((0..1990).all(|nr| listed.contains(&ExtentNr(nr))));
        assert!(listed.contains(&ExtentNr(50_000 + round)));
    }
}

#[test]
fn a_torn_transaction_that_comes_back_whole_hides_no_later_write() {
    // Two crashes tear two transactions at one place. Between them a write went to an extent that
    // the first one, whole again from the sectors of both, would have replaced.
    let mut ring = Ring::new(layout(4));
    let mut log = ActivityLog::new(layout(4), 4, REPLICA);
    commit(&mut log, &mut ring, &[extents(0, 4)]);
    let torn = transaction(log.begin_transaction([extents(7, 1)]));
    assert_eq!(torn.leaving, [ExtentNr(0)]);
    ring.tear(&torn.page, 0b0000_0011, Some(2));

    let (mut log, listed) = ring.replay(4);
    assert_eq!(listed, (0..4).map(ExtentNr).collect());
    assert_eq!(log.acquire(extents(0, 1)), Acquire::Cold);
    let again = transaction(log.begin_transaction([extents(0, 1)]));
    assert_eq!(again.leaving.len(), 4);
    ring.write(&again.page);
    log.commit_done();
    assert_eq!(log.acquire(extents(0, 1)), Acquire::Hot);
    let next = transaction(log.begin_transaction([extents(8, 1)]));
    ring.tear(&next.page, 0b1111_0000, None);
    let (_, listed) = ring.replay(4);
    assert_eq!(listed, [ExtentNr(0)].into());
}

#[test]
fn without_slots_everything_is_hot_and_nothing_is_written() {
    let mut log = ActivityLog::new(layout(0), 0, REPLICA);
    let range = extents(0, 3);
    assert_eq!(log.acquire(range), Acquire::Hot);
    assert_eq!(log.begin_transaction([range]), Begin::NotNeeded);
    log.release(range, 5);
    assert_eq!(log.begin_reset(), Begin::NotNeeded);
    assert!(!log.is_unsettled(range));
}

#[test]
fn the_last_epoch_left_open_starves_instead_of_evicting() {
    // F19 b: every slot is pinned by the open epoch; the engine must be told to close it.
    let mut log = ActivityLog::new(layout(4), 4, REPLICA);
    let mut ring = Ring::new(layout(4));
    commit(&mut log, &mut ring, &[extents(0, 4)]);
    assert_eq!(log.acquire(extents(0, 4)), Acquire::Hot);
    log.release(extents(0, 4), 1);
    assert_eq!(log.begin_transaction([extents(9, 1)]), Begin::Starved);
    assert_eq!(log.begin_reset(), Begin::Starved);
    log.retire(1);
    let begun = transaction(log.begin_transaction([extents(9, 1)]));
    assert_eq!(begun.leaving, [ExtentNr(0)]);
}

#[test]
fn a_large_request_is_not_overtaken_by_small_ones_behind_it() {
    // F19 c: the first of the waiting needs three slots, two can be had; the small one behind it
    // must not take one of them.
    let mut log = ActivityLog::new(layout(4), 4, REPLICA);
    let mut ring = Ring::new(layout(4));
    commit(&mut log, &mut ring, &[extents(0, 4)]);
    assert_eq!(log.acquire(extents(0, 2)), Acquire::Hot);
    let waiting = [extents(10, 3), extents(20, 1)];
    assert_eq!(log.begin_transaction(waiting), Begin::Starved);
    log.release(extents(0, 2), 0);
    let begun = transaction(log.begin_transaction(waiting));
    assert_eq!(begun.activated.len(), 4);
}

#[test]
fn a_half_hot_request_does_not_lose_the_hot_half_to_itself() {
    let mut log = ActivityLog::new(layout(4), 4, REPLICA);
    let mut ring = Ring::new(layout(4));
    commit(&mut log, &mut ring, &[extents(1, 4)]);
    // Extent 1 is the least recently used, and wanted together with the cold extent 0.
    let begun = commit(&mut log, &mut ring, &[extents(0, 2)]);
    assert_eq!(begun.leaving, [ExtentNr(2)]);
    assert_eq!(log.acquire(extents(0, 2)), Acquire::Hot);
}

#[test]
fn a_hole_in_the_ring_is_an_error_not_an_empty_table() {
    let mut log = ActivityLog::new(layout(4), 4, REPLICA);
    let mut ring = Ring::new(layout(4));
    let mut pages = Vec::new();
    for nr in 0..5 {
        pages.push(commit(&mut log, &mut ring, &[extents(nr, 1)]).page);
        log.retire(u64::from(nr));
    }
    for (lost, page) in pages.iter().enumerate().take(4) {
        let mut damaged = ring.clone();
        damaged.place(page)[700] ^= 1;
        let expected = lost as u64 + 1;
        let found = replay(damaged.layout, 4, REPLICA, &damaged.bytes).unwrap_err();
        assert_eq!(found, ReplayError::Missing { expected });
        damaged.place(page).copy_from_slice(&ZERO_PAGE);
        assert!(replay(damaged.layout, 4, REPLICA, &damaged.bytes).is_err());
    }
}

#[test]
fn another_replicas_ring_is_not_believed() {
    let mut log = ActivityLog::new(layout(4), 4, ReplicaId(1));
    let mut ring = Ring::new(layout(4));
    commit(&mut log, &mut ring, &[extents(0, 1)]);
    commit(&mut log, &mut ring, &[extents(1, 1)]);
    assert!(replay(ring.layout, 4, REPLICA, &ring.bytes).is_err());
}
