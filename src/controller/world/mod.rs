//! A world for scenarios: three controllers, clocks that run at different rates, a network that
//! loses, doubles and delays, voter stores that take their time, and engines reduced to "which
//! acknowledged writes does this replica have". Time is virtual; a seed replays everything.
//!
//! After every event it is checked that at most one gate is open, that whoever has an open gate has
//! every acknowledged write, and that a view number names one view.

mod engines;
mod faults;
mod questions;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use replicator::types::{
    Ballot, DataGeneration, InSync, Instant, NodeId, ReplicaId, ResourceId, View, ViewNumber,
    VoterId,
};

use super::random::Random;
use super::*;

pub(crate) const RESOURCE: ResourceId = ResourceId(0x77);
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const T: usize = 2;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).expect("scenarios last minutes")
}

/// What may go wrong on its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Datagrams lost, in percent.
    pub(crate) loss: u64,
    /// Datagrams doubled, in percent.
    pub(crate) double: u64,
    /// Longest one-way delay.
    pub(crate) delay: Duration,
    /// Longest write of a voter store.
    pub(crate) store: Duration,
}

impl Weather {
    pub(crate) const CALM: Self = Self {
        loss: 0,
        double: 0,
        delay: Duration::from_millis(1),
        store: Duration::from_millis(5),
    };
    pub(crate) const ROUGH: Self = Self {
        loss: 15,
        double: 10,
        delay: Duration::from_millis(25),
        store: Duration::from_millis(20),
    };
}

/// The abstract engine and replica of a data node.
#[derive(Clone, Debug)]
struct Engine {
    /// Acknowledged writes on the disk: a prefix, as a number.
    data: u64,
    facts: Option<ReplicaFacts>,
    active: Option<View>,
    /// An Add was begun in this activation and no Remove followed (R4).
    add_begun: bool,
    lease: Instant,
    seal: ViewNumber,
    quiet: bool,
    /// The replica's superblock allows promotion.
    whole: bool,
    drain_fails: bool,
    peer_lost_told: bool,
    /// Whose data these are; `None` before the resource was founded, or after they were given up.
    lineage: Option<DataGeneration>,
}

struct Node {
    controller: Option<Controller>,
    durable: BTreeMap<ResourceId, VoterRecord>,
    voter: VoterId,
    incarnation: u32,
    boot: u128,
    engine: Engine,
    /// Nanoseconds added to the world's time, and rate error in percent.
    offset: u64,
    rate: i64,
    store_broken: bool,
    paused: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "a few dozen exist in a test world"
)]
enum Happening {
    Deliver {
        to: usize,
        bytes: Vec<u8>,
    },
    Persisted {
        node: usize,
        incarnation: u32,
        op: OpId,
        write: Option<(ResourceId, VoterRecord)>,
    },
    Report {
        node: usize,
        incarnation: u32,
        report: EngineReport,
    },
    SessionOpens {
        generation: u64,
    },
    ResyncEnds {
        generation: u64,
    },
}

pub(crate) struct World {
    pub(crate) weather: Weather,
    timing: Timing,
    has_arbitrator: bool,
    now: u64,
    nodes: Vec<Node>,
    happenings: BTreeMap<(u64, u64), Happening>,
    happened: u64,
    random: Random,
    /// Directed cuts.
    cut: BTreeSet<(usize, usize)>,
    /// The data connection alone is cut.
    pub(crate) data_cut: bool,
    beacons_lost: bool,
    /// What guests have in flight takes so long to become durable.
    pub(crate) quiesce_takes: Duration,
    session: Option<u64>,
    session_wanted: Option<u64>,
    sessions: u64,
    resynced: bool,
    pub(crate) acked: u64,
    /// The newest lineage: promises are about its writes.
    lineage: Option<DataGeneration>,
    views: BTreeMap<ViewNumber, View>,
    pub(crate) orders: BTreeMap<u64, Result<Done, OrderRefusal>>,
    pub(crate) events: Vec<(usize, ControllerEvent)>,
    told: Vec<(u64, usize, String)>,
    pub(crate) rules: Rules,
    pub(crate) datagrams: u64,
    /// World time of the first acknowledgement after the last call of `mark`.
    pub(crate) first_ack_after_mark: Option<u64>,
    /// Writers are off: nothing is acknowledged.
    pub(crate) idle: bool,
    /// What a data node is started with.
    pub(crate) configured: Configured,
}

/// A replica that held data when its node started, whole and without a doubt.
pub(crate) fn used_replica(node: usize) -> ReplicaFacts {
    ReplicaFacts {
        replica: ReplicaId(0xa0 + node as u128),
        size_blocks: 100 + node as u64,
        eligible: true,
        blank: false,
        lost_volatile: false,
        unclean: false,
        doubtful: false,
        behind: false,
    }
}

/// The same after its host restarted with acknowledged writes in its disk's cache.
pub(crate) fn lost_its_cache(node: usize) -> ReplicaFacts {
    ReplicaFacts {
        lost_volatile: true,
        unclean: true,
        ..used_replica(node)
    }
}

impl World {
    /// With every node running.
    pub(crate) fn new(seed: u64, timing: Timing, has_arbitrator: bool) -> Self {
        let all = if has_arbitrator {
            &[A, B, T][..]
        } else {
            &[A, B]
        };
        Self::of(seed, timing, has_arbitrator, all)
    }

    /// With these nodes running.
    pub(crate) fn of(seed: u64, timing: Timing, has_arbitrator: bool, running: &[usize]) -> Self {
        let node = |index: usize| Node {
            controller: None,
            durable: BTreeMap::new(),
            voter: VoterId(100 + index as u128),
            incarnation: 0,
            boot: 1,
            engine: Engine {
                data: 0,
                facts: None,
                active: None,
                add_begun: false,
                lease: Instant::ZERO,
                seal: ViewNumber::NONE,
                quiet: false,
                whole: true,
                drain_fails: false,
                peer_lost_told: false,
                lineage: None,
            },
            offset: 1_000_000_000 * (index as u64 + 1),
            rate: [-1, 1, 0][index],
            store_broken: false,
            paused: false,
        };
        let mut world = Self {
            weather: Weather::CALM,
            timing,
            has_arbitrator,
            now: 0,
            nodes: (0..3).map(node).collect(),
            happenings: BTreeMap::new(),
            happened: 0,
            random: Random::new(u128::from(seed) << 64 | 0x5eed),
            cut: BTreeSet::new(),
            data_cut: false,
            beacons_lost: false,
            quiesce_takes: ms(0),
            session: None,
            session_wanted: None,
            sessions: 0,
            resynced: false,
            acked: 0,
            lineage: None,
            views: BTreeMap::new(),
            orders: BTreeMap::new(),
            events: Vec::new(),
            told: Vec::new(),
            rules: Rules::ALL,
            datagrams: 0,
            first_ack_after_mark: None,
            idle: false,
            configured: Configured::usual(RESOURCE),
        };
        for index in running {
            world.start(*index);
        }
        world
    }

    /// All three up, the resource `up` and attached on both, founded by A and in sync.
    pub(crate) fn pair(seed: u64) -> Self {
        let mut world = Self::new(seed, Timing::FAST, true);
        world.found(A);
        world
    }

    /// Brings a resource up on both nodes and promotes `node`; returns when both are in sync.
    pub(crate) fn found(&mut self, node: usize) {
        self.up(A);
        self.up(B);
        self.order(1, node, Order::Primary);
        self.run(ms(3_000));
        assert!(
            matches!(self.orders.get(&1), Some(Ok(_))),
            "{:?}",
            self.orders
        );
        assert_eq!(
            self.view(node).in_sync,
            InSync::BOTH,
            "{:?}",
            self.view(node)
        );
    }

    pub(crate) fn up(&mut self, node: usize) {
        self.order(90 + node as u64, node, Order::Up);
        self.run(ms(30));
        self.attach(node);
    }

    pub(crate) fn attach(&mut self, node: usize) {
        let blank = self.nodes[node].engine.data == 0 && self.acked == 0;
        let facts = ReplicaFacts {
            eligible: self.nodes[node].engine.whole,
            blank,
            ..used_replica(node)
        };
        self.report_facts(node, facts);
    }

    pub(crate) fn report_facts(&mut self, node: usize, facts: ReplicaFacts) {
        self.nodes[node].engine.facts = Some(facts);
        self.report(node, EngineReport::Replica(facts));
    }

    /// What the node may do by itself; forgotten with its process.
    pub(crate) fn automate(&mut self, node: usize, automation: Automation) {
        self.input(node, Input::Automation(automation));
    }

    /// The node's files changed.
    pub(crate) fn configure(&mut self, node: usize, configured: Vec<Configured>) {
        self.input(node, Input::Configured(configured));
    }

    // ---- faults ----

    pub(crate) fn start(&mut self, index: usize) {
        let now = self.local_now(index);
        let node = &mut self.nodes[index];
        assert!(node.controller.is_none(), "node {index} runs already");
        node.incarnation += 1;
        let is_data = index < 2;
        let settings = ControllerSettings {
            node: NodeId::ALL[index],
            cluster: 0xc1,
            voter: node.voter,
            boot_id: node.boot,
            incarnation: node.incarnation,
            timing: self.timing,
            has_arbitrator: self.has_arbitrator,
            seed: self.random.next_u128(),
            configured: if is_data {
                vec![self.configured]
            } else {
                Vec::new()
            },
            stored: node
                .durable
                .iter()
                .map(|(id, record)| (*id, *record))
                .collect(),
        };
        let controller = Controller::with_rules(settings, now, self.rules).expect("safe timing");
        node.controller = Some(controller);
        node.engine.active = None;
        node.engine.seal = node
            .durable
            .get(&RESOURCE)
            .map_or(ViewNumber::NONE, |r| r.seal);
        self.input(index, Input::Tick);
    }

    /// Starts it and attaches what was up.
    pub(crate) fn restart(&mut self, index: usize) {
        self.start(index);
        if index < 2
            && self.nodes[index]
                .durable
                .get(&RESOURCE)
                .is_some_and(|r| r.up)
        {
            self.attach(index);
        }
    }

    /// SIGKILL: what is not durable is gone.
    pub(crate) fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.controller = None;
        node.engine.active = None;
        node.engine.facts = None;
        node.engine.quiet = false;
        node.engine.add_begun = false;
        self.close_session();
        self.check();
    }

    /// The voter's record says that the last round there can be was promised.
    pub(crate) fn use_up_rounds(&mut self, index: usize) {
        for record in self.nodes[index].durable.values_mut() {
            record.acceptor.promised.round = Ballot::ROUND_MAX;
        }
    }

    pub(crate) fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(crate) fn cut(&mut self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
        self.tend_session();
    }

    /// Datagrams between the hosts are lost; the data session lives on.
    pub(crate) fn silence_beacons_between_hosts(&mut self) {
        self.beacons_lost = true;
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.data_cut = false;
    }

    pub(crate) fn order(&mut self, id: u64, node: usize, what: Order) {
        self.order_within(id, node, what, Duration::from_secs(30));
    }

    pub(crate) fn order_within(&mut self, id: u64, node: usize, what: Order, limit: Duration) {
        let deadline = self.local_now(node).plus(limit);
        let input = Input::Order {
            order: OrderId(id),
            resource: RESOURCE,
            what,
            deadline,
        };
        self.input(node, input);
    }

    pub(crate) fn report(&mut self, node: usize, report: EngineReport) {
        let resource = RESOURCE;
        self.input(node, Input::Engine { resource, report });
    }

    // ---- looking ----

    pub(crate) fn view(&self, node: usize) -> View {
        self.snapshot(node).view.expect("founded")
    }

    pub(crate) fn snapshot(&self, node: usize) -> ResourceSnapshot {
        let controller = self.nodes[node].controller.as_ref().expect("runs");
        controller
            .snapshot(self.local_now(node), RESOURCE)
            .expect("configured")
    }

    pub(crate) fn node_snapshot(&self, node: usize) -> NodeSnapshot {
        let controller = self.nodes[node].controller.as_ref().expect("runs");
        controller.node_snapshot(self.local_now(node))
    }

    pub(crate) fn record(&self, node: usize) -> VoterRecord {
        self.nodes[node]
            .durable
            .get(&RESOURCE)
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn active(&self, node: usize) -> bool {
        self.nodes[node].engine.active.is_some()
    }

    /// Whether a guest would be served now.
    pub(crate) fn serves(&self, node: usize) -> bool {
        let engine = &self.nodes[node].engine;
        let Some(view) = engine.active else {
            return false;
        };
        self.nodes[node].controller.is_some()
            && !engine.quiet
            && (!self.strict(node, &view) || self.local_now(node) < engine.lease)
    }

    /// Whether A's engine prepares an Add.
    pub(crate) fn add_is_begun(&self) -> bool {
        self.nodes[A].engine.add_begun
    }

    pub(crate) fn who_serves(&self) -> Option<usize> {
        (0..2).find(|node| self.serves(*node) && self.nodes[*node].engine.lineage == self.lineage)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now / 1_000_000
    }

    pub(crate) fn mark(&mut self) -> u64 {
        self.first_ack_after_mark = None;
        self.now_ms()
    }

    fn strict(&self, node: usize, view: &View) -> bool {
        let peer = NodeId::ALL[1 - node];
        view.in_sync.contains(peer) || self.nodes[node].engine.add_begun
    }

    // ---- running ----

    fn local_now(&self, node: usize) -> Instant {
        self.local_at(node, self.now)
    }

    fn local_at(&self, node: usize, at: u64) -> Instant {
        let rate = self.nodes[node].rate;
        let skew = (at / 100).wrapping_mul(rate.unsigned_abs());
        let local = if rate < 0 { at - skew } else { at + skew };
        Instant(local + self.nodes[node].offset)
    }

    /// World time at which the node's clock shows `local`, or a little after.
    fn world_at(&self, node: usize, local: Instant) -> u64 {
        let own = local.0.saturating_sub(self.nodes[node].offset);
        let rate = self.nodes[node].rate;
        let mut at = match rate {
            -1 => own / 99 * 100,
            1 => own / 101 * 100,
            _ => own,
        };
        while self.local_at(node, at) < local {
            at += 50;
        }
        at
    }

    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + nanos(span);
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `condition` holds; fails after `limit`. Returns the milliseconds it took.
    pub(crate) fn run_until(&mut self, limit: Duration, condition: impl Fn(&Self) -> bool) -> u64 {
        let (begin, end) = (self.now, self.now + nanos(limit));
        while !condition(self) {
            assert!(self.step(end), "not within {limit:?}: {}", self.describe());
        }
        (self.now - begin) / 1_000_000
    }

    /// The last events, a line each, for failed assertions.
    pub(crate) fn story(&self) -> String {
        let last = self.events.len().saturating_sub(40);
        let line =
            |(at, node, event): &(u64, usize, String)| format!("\n{at:6} ms {node}: {event}");
        self.told[last.min(self.told.len())..]
            .iter()
            .map(line)
            .collect()
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for node in 0..2 {
            if self.nodes[node].controller.is_some() {
                text += &format!("\nnode {node}: {:?}", self.snapshot(node));
            }
        }
        text + &self.story()
    }

    /// One event before `end`; `false` if there is none.
    fn step(&mut self, end: u64) -> bool {
        let happening = self.happenings.first_key_value().map(|(key, _)| key.0);
        let writer = self.now / 1_000_000 * 1_000_000 + 1_000_000;
        let (tick_at, tick) = (0..3)
            .filter(|node| !self.nodes[*node].paused)
            .filter_map(|node| {
                let controller = self.nodes[node].controller.as_ref()?;
                let at = self.world_at(node, controller.next_deadline()?);
                Some((at.max(self.now), node))
            })
            .min()
            .unwrap_or((u64::MAX, 0));
        let next = tick_at.min(writer).min(happening.unwrap_or(u64::MAX));
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        if happening.is_some_and(|at| at <= next) {
            let (_, happening) = self.happenings.pop_first().expect("looked at");
            self.happen(happening);
        } else if tick_at <= next {
            self.input(tick, Input::Tick);
        } else {
            self.write();
        }
        self.tend_session();
        self.check();
        true
    }

    fn later(&mut self, longest: Duration, happening: Happening) {
        self.later_between(Duration::from_micros(10), longest, happening);
    }

    fn later_between(&mut self, least: Duration, more: Duration, happening: Happening) {
        let delay = nanos(least + self.random.below(more));
        self.happened += 1;
        self.happenings
            .insert((self.now + delay, self.happened), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Deliver { to, bytes } => {
                if self.nodes[to].paused {
                    // The kernel's socket buffer keeps it.
                    self.later(ms(20), Happening::Deliver { to, bytes });
                    return;
                }
                let datagram = Datagram::decode(&bytes).expect("undamaged");
                self.input(to, Input::Received { path: 0, datagram });
            }
            Happening::Persisted {
                node,
                incarnation,
                op,
                write,
            } => {
                // A killed process's write may still land; then it must be the old one's last.
                let ok = write.is_some();
                if self.nodes[node].incarnation != incarnation {
                    return;
                }
                if self.nodes[node].controller.is_none() {
                    return;
                }
                if let Some((resource, record)) = write {
                    let bytes = record.encode();
                    let record = VoterRecord::decode(&bytes).expect("just encoded");
                    self.nodes[node].durable.insert(resource, record);
                }
                if self.nodes[node].paused {
                    self.later(
                        ms(20),
                        Happening::Persisted {
                            node,
                            incarnation,
                            op,
                            write,
                        },
                    );
                    return;
                }
                self.input(node, Input::Persisted { op, ok });
            }
            Happening::Report {
                node,
                incarnation,
                report,
            } => {
                if self.nodes[node].incarnation == incarnation {
                    if self.nodes[node].paused {
                        self.later(
                            ms(20),
                            Happening::Report {
                                node,
                                incarnation,
                                report,
                            },
                        );
                        return;
                    }
                    if self.nodes[node].controller.is_some() {
                        self.report(node, report);
                    }
                }
            }
            Happening::SessionOpens { generation } => self.open_session(generation),
            Happening::ResyncEnds { generation } => self.end_resync(generation),
        }
    }

    fn input(&mut self, index: usize, input: Input) {
        let now = self.local_now(index);
        let mut out = Vec::new();
        let Some(controller) = &mut self.nodes[index].controller else {
            return;
        };
        controller.handle(now, input, &mut out);
        if let Some(deadline) = controller.next_deadline() {
            assert!(
                deadline > now,
                "node {index} would spin: {deadline:?} at {now:?}"
            );
        }
        for action in out {
            self.act(index, action);
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        match action {
            Action::Send { to, datagram } => {
                self.check_guests(index, &datagram);
                self.send(index, to.index(), &datagram);
            }
            Action::Persist {
                op,
                resource,
                record,
            } => {
                let broken = self.nodes[index].store_broken;
                let happening = Happening::Persisted {
                    node: index,
                    incarnation: self.nodes[index].incarnation,
                    op,
                    write: (!broken).then_some((resource, record)),
                };
                self.later(self.weather.store, happening);
            }
            Action::Engine { command, .. } => {
                assert_ne!(index, T, "the arbitrator has no engine for {command:?}");
                self.command(index, command);
            }
            Action::OrderDone { order, result } => {
                self.orders.insert(order.0, result);
            }
            Action::Event(event) => self.note_event(index, event),
        }
    }

    fn note_event(&mut self, index: usize, event: ControllerEvent) {
        if let ControllerEvent::ViewChanged { view, .. } = &event {
            let known = self.views.entry(view.number).or_insert(*view);
            assert_eq!(known, view, "two views with one number");
        }
        assert!(
            !matches!(event, ControllerEvent::Contradiction { .. }),
            "{event:?}"
        );
        let text = match &event {
            ControllerEvent::ViewChanged { view, .. } | ControllerEvent::Activated { view, .. } => {
                let name = if matches!(event, ControllerEvent::Activated { .. }) {
                    "Activated"
                } else {
                    "ViewChanged"
                };
                let View {
                    number,
                    primary,
                    in_sync,
                    held,
                    cause,
                    ..
                } = view;
                let primary = primary.raw();
                let InSync { a, b } = in_sync;
                format!("{name} {number} {cause:?} primary {primary} a {a} b {b} held {held}")
            }
            other => format!("{other:?}"),
        };
        self.told.push((self.now_ms(), index, text));
        self.events.push((index, event));
    }

    fn send(&mut self, from: usize, to: usize, datagram: &Datagram) {
        self.datagrams += 1;
        let bytes = datagram.encode();
        let copies = if self.chance(self.weather.loss) {
            0
        } else if self.chance(self.weather.double) {
            2
        } else {
            1
        };
        let silenced = self.beacons_lost && from != T && to != T;
        if silenced || self.cut.contains(&(from, to)) {
            return;
        }
        for _ in 0..copies {
            let bytes = bytes.clone();
            self.later(self.weather.delay, Happening::Deliver { to, bytes });
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.next_u64() % 100 < percent
    }

    /// The promises.
    fn check(&self) {
        // What was forced apart from the rest is promised to be no worse than it was: see `lineage`.
        let serving: Vec<_> = (0..2)
            .filter(|node| self.serves(*node) && self.nodes[*node].engine.lineage == self.lineage)
            .collect();
        assert!(
            serving.len() < 2,
            "two gates are open at {} ms",
            self.now_ms()
        );
        for node in serving {
            assert_eq!(
                self.nodes[node].engine.data,
                self.acked,
                "node {node} serves without every acknowledged write: {}",
                self.describe()
            );
        }
    }
}
