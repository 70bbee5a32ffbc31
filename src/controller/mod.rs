//! The controller: who may serve a resource, decided by three voters. Pure; one per node.
//!
//! It owns views, leases and grants of all resources of its node, as voter and as proposer; the
//! arbitrator runs the same code without resources of its own. It knows nothing of blocks, sessions
//! or guests: engines report facts ([`EngineReport`]) and get commands ([`EngineCommand`]).
//!
//! A failover, with the files to read on:
//!
//! 1. While A serves view n with B in sync, it sends a beacon every h (`beacon.rs`, `message.rs`).
//!    B's answer is a *grant*: no takeover for G; A's *lease* counts from the send time for L
//!    (`lease.rs`). A solo Primary needs neither.
//! 2. A dies. B's grant runs out. B wishes a Takeover (`resource/desire.rs`) and begins a round of
//!    the register (`register.rs`, `resource/propose.rs`): Prepare to all three voters, each of which
//!    makes its promise durable before it answers (`resource/vote.rs`, `store.rs`, `record.rs`).
//! 3. A majority says that view n stands. The Takeover applies to it (`view.rs`): B in `in_sync`,
//!    not held. In the same step B checks the grant once more and *seals* n: from now on, and after
//!    any restart, it refuses A's beacons of views up to n.
//! 4. While the seal is written, B's engine drains: what it acknowledged is applied, nothing of the
//!    old session can land later. Then the Accept leaves; a majority accepts; the view n+1 is
//!    committed, and B's own commit is its activation.
//! 5. A returns. Its Recover reads n+1, which names B, so A stays Secondary, resyncs, and B adds it.
//!
//! If instead B dies, A suspects it after S, which is shorter than L, and removes it the same way
//! before the lease ends: guests wait about S. If A is cut off, its lease ends before B's grant does,
//! so its gate is shut before B's opens.
//!
//! The one invariant: at any time at most one node has an activation whose gate can be open, and it
//! has every acknowledged write. `crate::explorer` checks it exhaustively on these very functions.

mod beacon;
mod codec;
pub mod decision;
pub mod input;
pub mod lease;
pub mod message;
pub mod order;
pub mod output;
pub mod placement;
pub mod precondition;
mod random;
pub mod record;
pub mod register;
mod resource;
pub mod rules;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod scenarios_automation;
#[cfg(test)]
mod scenarios_exhausted;
#[cfg(test)]
mod scenarios_force;
#[cfg(test)]
mod scenarios_hand_over;
#[cfg(test)]
mod scenarios_loose_ends;
#[cfg(test)]
mod scenarios_move;
#[cfg(test)]
mod scenarios_placement;
#[cfg(test)]
mod scenarios_protocols;
#[cfg(test)]
mod scenarios_what_if;
#[cfg(test)]
mod scenarios_why;
mod store;
#[cfg(test)]
mod testing;
pub mod view;
pub mod what_if;
pub mod why;
#[cfg(test)]
mod world;

use core::time::Duration;
use std::collections::BTreeMap;

use replicator::types::{
    Failover, Instant, NodeId, OpId, ReplicationProtocol, ResourceId, ViewNumber, VoterId, VoterSet,
};

pub use codec::CodecError;
pub use input::{Automation, EngineReport, Input, Order, OrderId, ReplicaFacts, ReplicaMark};
pub use lease::{Timing, TimingError};
pub use message::{DATAGRAM_LEN_MAX, Datagram, Header};
pub use order::{Done, Explanation, Names, OrderRefusal, RefusalKind};
pub use output::{
    Action, Blocker, ControllerEvent, EngineCommand, Evidence, NodeSnapshot, PeerClaim,
    ResourceSnapshot, StepDownReason, VoterSnapshot, VotersSnapshot,
};
pub use precondition::{Check, Precondition};
pub use record::VoterRecord;
pub use rules::Rules;
pub use what_if::Fate;
pub use why::{ForceLoss, GrantFacts, LeaseFacts, Why};

use beacon::{Freshness, Peer};
use lease::GrantAnswer;
use message::{BEACON_ENTRIES_MAX, BeaconEntry, Part};
use random::Random;
use resource::{Context, Me, Outlet, Resource, seen_window};

/// What a controller is made with. Nothing of it changes during a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerSettings {
    /// This node.
    pub node: NodeId,
    /// Hash of the cluster's identity: datagrams of others are dropped.
    pub cluster: u64,
    /// Identity of this node's voter store.
    pub voter: VoterId,
    /// Random id of this boot.
    pub boot_id: u128,
    /// Number of this start, durably one more than the last: makes ballots unique.
    pub incarnation: u32,
    /// The same on all nodes.
    pub timing: Timing,
    /// Whether the cluster has an arbitrator.
    pub has_arbitrator: bool,
    /// Randomness for back-off and for the ids of new lineages.
    pub seed: u128,
    /// Resources configured on this node, whether up or not; none on an arbitrator.
    pub configured: Vec<Configured>,
    /// All records of the voter store.
    pub stored: Vec<(ResourceId, VoterRecord)>,
}

/// What the controller must know of a resource's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// Which.
    pub resource: ResourceId,
    /// Under A a Primary's guests know of writes that its peer never got.
    pub protocol: ReplicationProtocol,
    /// Whether this node takes over by itself.
    pub failover: Failover,
    /// The node that serves if it is as good as the other.
    pub prefer: Option<NodeId>,
    /// What has fewer blocks is no replica of it: some of its volumes would be missing.
    pub blocks_min: u64,
}

impl Configured {
    /// Protocol C, automatic failover.
    #[must_use]
    pub fn usual(resource: ResourceId) -> Self {
        Self {
            resource,
            protocol: ReplicationProtocol::C,
            failover: Failover::Auto,
            prefer: None,
            blocks_min: 0,
        }
    }
}

/// Time between beacons to the arbitrator: it grants nothing, so this only shows that it is there.
pub const ARBITRATOR_BEACON: Duration = Duration::from_secs(1);

/// Most resources one voter keeps a record for: about 2 MiB of memory. More are not answered.
pub const RESOURCES_MAX: usize = 4096;

/// The controller of one node. See the module's text for the story.
#[derive(Debug)]
pub struct Controller {
    me: Me,
    cluster: u64,
    boot_id: u128,
    now: Instant,
    peers: [Peer; 3],
    resources: BTreeMap<ResourceId, Resource>,
    /// Whose record each outstanding write is.
    writing: BTreeMap<OpId, ResourceId>,
    random: Random,
    ops: u64,
    seq: u64,
}

impl Controller {
    /// A controller that just started: inactive everywhere (R8), and bound by a grant it may have
    /// given in an earlier life (R7).
    ///
    /// # Errors
    /// [`TimingError`] if the timing could let two nodes serve.
    pub fn new(settings: ControllerSettings, now: Instant) -> Result<Self, TimingError> {
        Self::with_rules(settings, now, Rules::ALL)
    }

    /// For the explorer and the simulator's planted bugs: with some rules missing.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_rules(
        settings: ControllerSettings,
        now: Instant,
        rules: Rules,
    ) -> Result<Self, TimingError> {
        settings.timing.check()?;
        let me = Me {
            node: settings.node,
            voter: settings.voter,
            incarnation: settings.incarnation,
            timing: settings.timing,
            rules,
            has_arbitrator: settings.has_arbitrator,
            automation: Automation::default(),
        };
        let mut random = Random::new(settings.seed);
        let mut records: BTreeMap<_, _> = settings.stored.into_iter().collect();
        for configured in &settings.configured {
            records.entry(configured.resource).or_default();
        }
        let resources = records
            .into_iter()
            .map(|(id, record)| {
                let all = settings.configured.iter();
                let configured = all.copied().find(|one| one.resource == id);
                let resource = Resource::new(id, configured, record, now, &me, &mut random);
                (id, resource)
            })
            .collect();
        Ok(Self {
            me,
            cluster: settings.cluster,
            boot_id: settings.boot_id,
            now,
            peers: [Peer::new(now), Peer::new(now), Peer::new(now)],
            resources,
            writing: BTreeMap::new(),
            random,
            ops: 0,
            seq: 0,
        })
    }

    /// Consumes one input and appends every resulting action. Never blocks, never reads a clock;
    /// `now` must not go back.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        let mut outlet = Outlet::default();
        match input {
            Input::Received { path, datagram } => self.on_datagram(path, datagram, &mut outlet),
            Input::Persisted { op, ok } => self.on_persisted(op, ok, &mut outlet),
            Input::Engine { resource, report } => {
                self.with(resource, &mut outlet, |resource, cx| {
                    resource.on_report(cx, report);
                });
            }
            Input::Order {
                order,
                resource,
                what,
                deadline,
            } => {
                let known = self.with(resource, &mut outlet, |resource, cx| {
                    resource.on_order(cx, order, what, deadline);
                });
                if !known {
                    let result = Err(OrderRefusal::UnknownResource);
                    outlet.actions.push(Action::OrderDone { order, result });
                }
            }
            Input::Configured(configured) => self.configure(&configured, &mut outlet),
            Input::Automation(automation) => {
                self.me.automation = automation;
                self.drive_all(&mut outlet);
            }
            Input::Tick => self.drive_all(&mut outlet),
        }
        self.note_liveness(&mut outlet);
        self.send_beacons(&mut outlet);
        self.flush(outlet, out);
    }

    /// When [`Input::Tick`] is due even if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let beacons = self
            .others()
            .filter(|_| self.me.node.is_data())
            .map(|node| self.peers[node.index()].beacon_at);
        let losses = self
            .others()
            .filter(|node| self.peers[node.index()].was_seen)
            .filter_map(|node| Some(self.last_seen(node)?.plus(seen_window(node, &self.me))));
        let resources = self
            .resources
            .values()
            .filter_map(|resource| resource.next_deadline(self.now, &self.me, &self.peers));
        beacons.chain(losses).chain(resources).min()
    }

    /// State of one resource as of `now`, `None` if it is neither configured nor recorded.
    #[must_use]
    pub fn snapshot(&self, now: Instant, resource: ResourceId) -> Option<ResourceSnapshot> {
        self.look(now, resource, |resource, cx| resource.snapshot(cx))
    }

    /// Why this node is Primary of the resource or is not, as of `now`; by the very checks that
    /// decide it. `None` if it is neither configured nor recorded.
    #[must_use]
    pub fn why(&self, now: Instant, resource: ResourceId) -> Option<Why> {
        self.look(now, resource, |resource, cx| resource.why(cx))
    }

    /// What would become of the resource if `dead`, another node, died now; as far as this node is
    /// concerned. `None` if it is neither configured nor recorded.
    #[must_use]
    pub fn fate(&self, now: Instant, resource: ResourceId, dead: NodeId) -> Option<Fate> {
        self.look(now, resource, |resource, cx| resource.fate(cx, dead))
    }

    fn look<T>(
        &self,
        now: Instant,
        resource: ResourceId,
        look: impl FnOnce(&Resource, &Context<'_>) -> T,
    ) -> Option<T> {
        let mut outlet = Outlet::default();
        let cx = Context {
            now,
            me: &self.me,
            peers: &self.peers,
            random: &mut self.random.clone(),
            ops: &mut self.ops.clone(),
            outlet: &mut outlet,
        };
        Some(look(self.resources.get(&resource)?, &cx))
    }

    /// Until when guests of a resource may run on this node if nothing more is heard; `None` when
    /// it is not active. Looked at before any action leaves, it is never later than what the peer
    /// may infer from that action.
    #[must_use]
    pub fn serves_until(&self, resource: ResourceId) -> Option<Instant> {
        self.resources.get(&resource)?.serves_until(&self.me)
    }

    /// Who is seen, as of `now`.
    #[must_use]
    pub fn node_snapshot(&self, now: Instant) -> NodeSnapshot {
        let mut voters = [VoterSnapshot::default(); 3];
        voters[self.me.node.index()] = VoterSnapshot {
            configured: true,
            seen: true,
            last_seen: Some(Duration::ZERO),
            rtt: None,
            paths_up: 0,
        };
        for node in self.others() {
            let peer = &self.peers[node.index()];
            let window = seen_window(node, &self.me);
            voters[node.index()] = VoterSnapshot {
                configured: true,
                seen: self.sees(now, node),
                last_seen: self.last_seen(node).map(|at| now.since(at)),
                rtt: peer.rtt(),
                paths_up: peer.paths_up(now, window),
            };
        }
        let voters_seen = voters.iter().filter(|voter| voter.seen).count();
        NodeSnapshot {
            voters,
            voters_seen,
            voters_total: voters.iter().filter(|voter| voter.configured).count(),
            quorum: voters_seen >= VoterSet::MAJORITY,
        }
    }

    /// This node as a voter, as of `now`.
    #[must_use]
    pub fn voters(&self, now: Instant) -> VotersSnapshot {
        let mut ids = [None; 3];
        ids[self.me.node.index()] = Some(self.me.voter);
        for node in self.others() {
            ids[node.index()] = self.peers[node.index()].voter();
        }
        VotersSnapshot {
            seen: self.node_snapshot(now),
            ids,
            records: self
                .resources
                .iter()
                .map(|(id, resource)| (*id, *resource.record()))
                .collect(),
        }
    }

    /// Data nodes count answers to their beacons. The arbitrator sends none, it only listens.
    fn sees(&self, now: Instant, node: NodeId) -> bool {
        let window = seen_window(node, &self.me);
        self.last_seen(node).is_some_and(|at| now < at.plus(window))
    }

    fn last_seen(&self, node: NodeId) -> Option<Instant> {
        let peer = &self.peers[node.index()];
        if self.me.node.is_data() {
            peer.answered()
        } else {
            peer.heard()
        }
    }

    /// The resources that are `up` on this node, as recorded.
    pub fn up(&self) -> impl Iterator<Item = ResourceId> + '_ {
        self.resources
            .iter()
            .filter(|(_, resource)| resource.is_up())
            .map(|(id, _)| *id)
    }

    // ---- inputs ----

    fn on_datagram(&mut self, path: u8, datagram: Datagram, outlet: &mut Outlet) {
        let header = datagram.header;
        let for_us = header.cluster == self.cluster
            && header.to == self.me.node
            && self.others().any(|node| node == header.from);
        if !for_us {
            return;
        }
        let answers = datagram.parts.iter().filter_map(|part| match part {
            Part::BeaconAck {
                sent, incarnation, ..
            } => (*incarnation == self.me.incarnation && *sent <= self.now).then_some(*sent),
            _ => None,
        });
        let answers = answers.max();
        let peer = &mut self.peers[header.from.index()];
        match peer.note_datagram(self.now, path, &header, answers) {
            Freshness::Old => return,
            Freshness::NewLife => {
                for resource in self.resources.values_mut() {
                    resource.forget_claim();
                }
            }
            Freshness::New => {}
        }
        for part in datagram.parts {
            self.on_part(&header, part, outlet);
        }
    }

    fn on_part(&mut self, header: &Header, part: Part, outlet: &mut Outlet) {
        let from = header.from;
        match part {
            Part::Beacon { sent, entries } => self.on_beacon(header, sent, entries, outlet),
            Part::BeaconAck {
                sent,
                incarnation,
                granted,
                refused,
            } => {
                // An ack to another life's beacon speaks of another clock.
                if incarnation == self.me.incarnation && sent <= self.now {
                    self.on_beacon_ack(from, sent, &granted, &refused, outlet);
                }
            }
            Part::Prepare { resource, ballot } => {
                if ballot.node == from.raw() {
                    self.with_any(resource, outlet, |resource, cx| {
                        resource.on_prepare(cx, from, ballot);
                    });
                }
            }
            Part::Accept {
                resource,
                ballot,
                view,
            } => {
                if ballot.node == from.raw() {
                    self.with_any(resource, outlet, |resource, cx| {
                        resource.on_accept(cx, from, ballot, &view);
                    });
                }
            }
            Part::Promise { resource, .. }
            | Part::Accepted { resource, .. }
            | Part::Nack { resource, .. } => {
                let voter = header.voter;
                self.with(resource, outlet, |resource, cx| {
                    resource.on_reply(cx, from, voter, &part);
                });
            }
            Part::Learned { resource, view } => {
                self.with(resource, outlet, |resource, cx| {
                    resource.on_learned(cx, view)
                });
            }
        }
    }

    fn on_beacon(
        &mut self,
        header: &Header,
        sent: Instant,
        entries: Vec<BeaconEntry>,
        outlet: &mut Outlet,
    ) {
        let from = header.from;
        let is_successor = from.is_data() && self.me.node.is_data();
        let (mut granted, mut refused) = (Vec::new(), Vec::new());
        for entry in entries {
            let (id, view) = (entry.resource, entry.view);
            let mut news = None;
            let known = self.with(id, outlet, |resource, cx| {
                news = resource.news_for(cx.me, view);
                if !is_successor {
                    return;
                }
                match resource.on_beacon(cx, from, entry) {
                    Some(GrantAnswer::Granted) => granted.push((id, view)),
                    Some(GrantAnswer::Refused { seal }) => refused.push((id, seal)),
                    None => {}
                }
            });
            if !known && is_successor && entry.active {
                // Not configured here: this node cannot take it over.
                granted.push((id, view));
            }
            if let Some(view) = news {
                let part = Part::Learned { resource: id, view };
                outlet.parts[from.index()].push(part);
            }
        }
        outlet.parts[from.index()].push(Part::BeaconAck {
            sent,
            incarnation: header.incarnation,
            granted,
            refused,
        });
    }

    fn on_beacon_ack(
        &mut self,
        from: NodeId,
        sent: Instant,
        granted: &[(ResourceId, ViewNumber)],
        refused: &[(ResourceId, ViewNumber)],
        outlet: &mut Outlet,
    ) {
        self.peers[from.index()].note_answer(self.now, sent);
        if !from.is_data() || !self.me.node.is_data() {
            return; // Only the possible successor's silence is worth anything.
        }
        for (resource, view) in granted {
            self.with(*resource, outlet, |resource, cx| {
                resource.on_granted(cx, *view, sent);
            });
        }
        for (resource, seal) in refused {
            self.with(*resource, outlet, |resource, cx| {
                resource.on_refused(cx, *seal)
            });
        }
    }

    fn on_persisted(&mut self, op: OpId, ok: bool, outlet: &mut Outlet) {
        if let Some(id) = self.writing.remove(&op) {
            self.with(id, outlet, |resource, cx| resource.on_persisted(cx, op, ok));
        }
    }

    fn drive_all(&mut self, outlet: &mut Outlet) {
        let ids: Vec<_> = self.resources.keys().copied().collect();
        for id in ids {
            self.with(id, outlet, |_, _| {});
        }
    }

    // ---- beacons ----

    fn send_beacons(&mut self, outlet: &mut Outlet) {
        if !self.me.node.is_data() {
            return;
        }
        let urgent = core::mem::take(&mut outlet.urgent);
        let others: Vec<_> = self.others().collect();
        for node in others {
            let peer = &mut self.peers[node.index()];
            let due = self.now >= peer.beacon_at;
            if due {
                peer.beacon_at = self.now.plus(if node.is_data() {
                    self.me.timing.beacon
                } else {
                    ARBITRATOR_BEACON
                });
            } else if urgent.is_empty() || !node.is_data() {
                continue;
            }
            let entries: Vec<_> = self
                .resources
                .values()
                .map(|resource| (resource.configured(), resource.beacon_entry(&self.me)))
                .filter(|(configured, entry)| {
                    *configured && (due || urgent.contains(&entry.resource))
                })
                .map(|(_, entry)| entry)
                .collect();
            push_beacons(&mut outlet.parts[node.index()], self.now, &entries);
        }
    }

    fn note_liveness(&mut self, outlet: &mut Outlet) {
        let others: Vec<_> = self.others().collect();
        for node in others {
            let seen = self.sees(self.now, node);
            let peer = &mut self.peers[node.index()];
            if seen == peer.was_seen {
                continue;
            }
            peer.was_seen = seen;
            outlet.actions.push(Action::Event(if seen {
                ControllerEvent::NodeSeen { node }
            } else {
                ControllerEvent::NodeLost { node }
            }));
            if !seen {
                self.drive_all(outlet);
            }
        }
    }

    // ---- plumbing ----

    fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let (me, has_arbitrator) = (self.me.node, self.me.has_arbitrator);
        NodeId::ALL
            .into_iter()
            .filter(move |node| *node != me && (has_arbitrator || node.is_data()))
    }

    /// Gives a known resource a fact and lets it act. `false` if it is not known.
    fn with(
        &mut self,
        id: ResourceId,
        outlet: &mut Outlet,
        fact: impl FnOnce(&mut Resource, &mut Context<'_>),
    ) -> bool {
        let Some(resource) = self.resources.get_mut(&id) else {
            return false;
        };
        let mut cx = Context {
            now: self.now,
            me: &self.me,
            peers: &self.peers,
            random: &mut self.random,
            ops: &mut self.ops,
            outlet,
        };
        fact(resource, &mut cx);
        resource.drive(&mut cx);
        true
    }

    /// The same for a vote: voters keep records of resources that are not theirs.
    fn with_any(
        &mut self,
        id: ResourceId,
        outlet: &mut Outlet,
        fact: impl FnOnce(&mut Resource, &mut Context<'_>),
    ) {
        if !self.resources.contains_key(&id) && self.resources.len() < RESOURCES_MAX {
            let record = VoterRecord::default();
            let resource = Resource::new(id, None, record, self.now, &self.me, &mut self.random);
            self.resources.insert(id, resource);
        }
        self.with(id, outlet, fact);
    }

    fn configure(&mut self, configured: &[Configured], outlet: &mut Outlet) {
        for one in configured {
            self.with_any(one.resource, outlet, |resource, cx| {
                resource.configure(cx.now, Some(*one));
            });
        }
        let listed = |id: &ResourceId| configured.iter().any(|one| one.resource == *id);
        for (id, resource) in &mut self.resources {
            if !listed(id) {
                resource.configure(self.now, None);
            }
        }
    }

    /// Packs what is to be said into datagrams.
    fn flush(&mut self, outlet: Outlet, out: &mut Vec<Action>) {
        for action in &outlet.actions {
            if let Action::Persist { op, resource, .. } = action {
                self.writing.insert(*op, *resource);
            }
        }
        out.extend(outlet.actions);
        for (node, parts) in NodeId::ALL.into_iter().zip(outlet.parts) {
            for parts in message::pack(parts) {
                self.seq += 1;
                let header = Header {
                    cluster: self.cluster,
                    from: self.me.node,
                    to: node,
                    boot_id: self.boot_id,
                    voter: self.me.voter,
                    incarnation: self.me.incarnation,
                    seq: self.seq,
                };
                let datagram = Datagram { header, parts };
                out.push(Action::Send { to: node, datagram });
            }
        }
    }
}

/// As many parts as the entries need; one even without entries, for liveness.
fn push_beacons(parts: &mut Vec<Part>, sent: Instant, entries: &[BeaconEntry]) {
    if entries.is_empty() {
        let entries = Vec::new();
        parts.push(Part::Beacon { sent, entries });
    }
    for entries in entries.chunks(BEACON_ENTRIES_MAX) {
        let entries = entries.to_vec();
        parts.push(Part::Beacon { sent, entries });
    }
}
