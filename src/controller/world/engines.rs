//! The engines and the session between them, reduced to what the controller can tell apart: who has
//! which acknowledged writes, and whether the other end is there.

use replicator::types::{InSync, Instant, NodeId, View, ViewCause};

use super::super::*;
use super::{A, B, Happening, RESOURCE, World, ms};

impl World {
    /// When the Accept of an Add leaves, the peer may soon count on a lease: guests of this node
    /// must not be allowed to run for ever any more.
    pub(super) fn check_guests(&self, index: usize, datagram: &Datagram) {
        let adds = datagram.parts.iter().any(|part| {
            matches!(part, Part::Accept { view, .. } if view.in_sync == InSync::BOTH
                && view.cause == replicator::types::ViewCause::Added)
        });
        let Some(controller) = self.nodes[index].controller.as_ref().filter(|_| adds) else {
            return;
        };
        let until = controller.serves_until(RESOURCE);
        assert!(until < Some(Instant::NEVER), "{until:?} while adding");
    }

    pub(super) fn command(&mut self, index: usize, command: EngineCommand) {
        let incarnation = self.nodes[index].incarnation;
        let later = |report| Happening::Report {
            node: index,
            incarnation,
            report,
        };
        let engine = &mut self.nodes[index].engine;
        match command {
            EngineCommand::Activate(activation) => {
                engine.active = Some(*activation.view());
                engine.add_begun = false;
                engine.lease = Instant::ZERO;
                engine.quiet = false;
                engine.peer_lost_told = false;
                engine.whole = true;
                if let Some(facts) = &mut engine.facts {
                    facts.blank = false;
                    facts.eligible = true;
                }
                engine.lineage = Some(activation.view().data_generation);
                self.note_lineage(index, activation.view());
                self.close_session();
            }
            EngineCommand::StepDown => {
                engine.active = None;
                engine.add_begun = false;
                engine.quiet = false;
                self.close_session();
            }
            EngineCommand::Committed(committed) => {
                let view = *committed.view();
                let peer = NodeId::ALL[1 - index];
                if engine.active.is_some() {
                    engine.active = Some(view);
                    if !view.in_sync.contains(peer) {
                        engine.add_begun = false;
                        self.close_session();
                    }
                }
            }
            EngineCommand::Learned(view) => {
                engine.whole = view.in_sync.contains(NodeId::ALL[index]);
                if !engine.whole {
                    if let Some(facts) = &mut engine.facts {
                        facts.eligible = false;
                    }
                } else if let Some(facts) = &mut engine.facts {
                    facts.blank = false;
                    if !facts.eligible {
                        facts.eligible = true;
                        let facts = *facts;
                        self.later(ms(1), later(EngineReport::Replica(facts)));
                    }
                }
            }
            EngineCommand::Lease { until } => engine.lease = engine.lease.max(until),
            EngineCommand::Drain { seal } => {
                engine.seal = engine.seal.max(seal);
                let ok = !engine.drain_fails;
                self.close_session();
                self.later(ms(10), later(EngineReport::Drained { seal, ok }));
            }
            EngineCommand::BeginAdd { view } => {
                engine.add_begun = true;
                let replica = self.nodes[1 - index]
                    .engine
                    .facts
                    .map(|facts| facts.replica);
                let report = match replica.filter(|_| self.session.is_some()) {
                    Some(replica) => EngineReport::AddPrepared { view, replica },
                    None => EngineReport::AddAborted { view },
                };
                self.later(ms(5), later(report));
            }
            EngineCommand::Quiesce => {
                engine.quiet = true;
                let least = self.quiesce_takes;
                self.later_between(least, ms(5), later(EngineReport::Quiesced));
            }
            EngineCommand::Unquiesce => engine.quiet = false,
            EngineCommand::ProposalAborted => {
                let begun = core::mem::take(&mut engine.add_begun);
                if let Some(active) = engine.active.filter(|_| begun) {
                    let view = active.number.next();
                    self.later(ms(1), later(EngineReport::AddAborted { view }));
                }
            }
            EngineCommand::MarkDone { .. } => {}
        }
    }

    /// A forced view gives up what its replica lacks; from then on its own lineage is promised.
    fn note_lineage(&mut self, index: usize, view: &View) {
        if matches!(view.cause, ViewCause::Founded | ViewCause::Forced) {
            self.lineage = Some(view.data_generation);
            self.acked = self.nodes[index].engine.data;
        }
    }

    /// The replica's data are given up by order.
    pub(crate) fn forget_lineage(&mut self, index: usize) {
        self.nodes[index].engine.lineage = None;
    }

    /// A guest writes wherever a gate is open.
    pub(super) fn write(&mut self) {
        if self.idle {
            return;
        }
        let Some(node) = self.who_serves() else {
            return;
        };
        let view = self.nodes[node].engine.active.expect("serves");
        let peer = 1 - node;
        let mirrored = self.session.is_some() && self.resynced;
        if self.strict(node, &view) && !mirrored {
            return;
        }
        if self.nodes[node].paused || (mirrored && self.nodes[peer].paused) {
            return;
        }
        self.acked += 1;
        self.nodes[node].engine.data = self.acked;
        if mirrored {
            self.nodes[peer].engine.data = self.acked;
        }
        self.first_ack_after_mark
            .get_or_insert(self.now / 1_000_000);
    }

    /// Whether a session could exist now, and for which Primary.
    fn session_primary(&self) -> Option<usize> {
        let connected = !self.data_cut
            && !self.cut.contains(&(A, B))
            && !self.cut.contains(&(B, A))
            && (0..2).all(|node| {
                self.nodes[node].controller.is_some() && self.nodes[node].engine.facts.is_some()
            });
        let mut active = (0..2).filter(|node| self.nodes[*node].engine.active.is_some());
        let (primary, other) = (active.next(), active.next());
        let primary = primary.filter(|_| connected && other.is_none())?;
        let view = self.nodes[primary].engine.active?;
        // Of another lineage: refused, on both sides.
        let theirs = self.nodes[1 - primary].engine.lineage;
        let diverged = theirs.is_some_and(|it| it != view.data_generation);
        // R6: nothing of a sealed view is taken.
        (!diverged && view.number > self.nodes[1 - primary].engine.seal).then_some(primary)
    }

    pub(super) fn tend_session(&mut self) {
        match self.session_primary() {
            None => self.close_session(),
            Some(_) if self.session.is_none() && self.session_wanted.is_none() => {
                self.sessions += 1;
                let generation = self.sessions;
                self.session_wanted = Some(generation);
                // After the engines told that the last one ended.
                self.later_between(ms(5), ms(60), Happening::SessionOpens { generation });
            }
            Some(_) => {}
        }
        for node in 0..2 {
            let Some(view) = self.nodes[node].engine.active else {
                continue;
            };
            let lost = self.strict(node, &view) && self.session.is_none();
            if lost && !self.nodes[node].engine.peer_lost_told && !self.nodes[node].paused {
                self.report(node, EngineReport::PeerLost);
            }
            self.nodes[node].engine.peer_lost_told = lost;
        }
    }

    pub(super) fn open_session(&mut self, generation: u64) {
        if self.session_wanted != Some(generation) {
            return;
        }
        self.session_wanted = None;
        let Some(primary) = self.session_primary() else {
            return;
        };
        self.session = Some(generation);
        let view = self.nodes[primary].engine.active.expect("Primary");
        let peer = 1 - primary;
        self.nodes[peer].engine.lineage = Some(view.data_generation);
        self.resynced = view.in_sync == InSync::BOTH;
        if self.resynced {
            // What one of them has beyond the acknowledged ones was never acknowledged.
            let data = self.nodes[primary].engine.data;
            self.nodes[peer].engine.data = data;
        }
        for node in 0..2 {
            let peer_replica = self.nodes[1 - node].engine.facts.map(|facts| facts.replica);
            self.report(node, EngineReport::SessionUp { peer_replica });
        }
        self.later(ms(80), Happening::ResyncEnds { generation });
    }

    pub(super) fn end_resync(&mut self, generation: u64) {
        let Some(primary) = self.session_primary() else {
            return;
        };
        if self.session != Some(generation) || self.resynced {
            return;
        }
        self.resynced = true;
        self.nodes[1 - primary].engine.data = self.nodes[primary].engine.data;
        self.report(primary, EngineReport::ResyncDone);
    }

    pub(super) fn close_session(&mut self) {
        self.session_wanted = None;
        if self.session.take().is_none() {
            return;
        }
        self.resynced = false;
        for node in 0..2 {
            let incarnation = self.nodes[node].incarnation;
            let report = EngineReport::SessionDown;
            self.later(
                ms(1),
                Happening::Report {
                    node,
                    incarnation,
                    report,
                },
            );
        }
    }
}
