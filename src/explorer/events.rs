//! Steps besides rounds: gossip, beacons, the end of leases, crashes, orders.

use replicator::types::ViewNumber;

use super::check::Violation;
use super::machine::{Action, Machine, NOW, Successor, TIMING, end_session, node_id};
use super::state::{NUMBERS_MAX, Node, State, Voter};
use crate::controller::decision::{News, answer_beacon};
use crate::controller::lease::{Grant, GrantAnswer};

impl Machine {
    pub(super) fn learn(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        for number in 1..NUMBERS_MAX {
            let Some(view) = self.table.view(state.chosen[number]) else {
                continue;
            };
            let mut next = *state;
            let mut violation = None;
            match News::of(&view, &self.knowledge(state, node)) {
                News::Old => continue,
                News::Contradiction => violation = Some(Violation::TwoViews),
                News::Own => {}
                News::StepDown => self.step_down(&mut next, node),
                News::Learn => {
                    let ours = view.primary == node_id(node) && !view.held;
                    if ours && !self.rules.own_commit {
                        self.activate(&mut next, node, state.chosen[number]);
                    }
                }
            }
            next.nodes[node].committed = state.chosen[number];
            out.push((Action::Learn { node, number }, next, violation));
        }
    }

    pub(super) fn beacon(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let Some(active) = self.table.view(state.nodes[node].active) else {
            return;
        };
        if !self.is_strict(state, node) && !state.nodes[node].add_ready {
            return; // A solo Primary needs no lease.
        }
        let other = 1 - node;
        let committed = self.table.view(state.nodes[other].committed);
        let mut grant = self.grant(&state.nodes[other]);
        let from = node_id(node);
        let answer = answer_beacon(&mut grant, committed, from, active.number, NOW, &TIMING);
        for reply in [true, false] {
            let mut next = *state;
            next.nodes[other].granted = grant.runs(NOW);
            match answer {
                GrantAnswer::Granted if reply => next.nodes[node].lease = true,
                GrantAnswer::Refused { seal } if reply && active.number <= seal => {
                    self.step_down(&mut next, node);
                }
                _ => {}
            }
            if next != *state {
                out.push((Action::Beacon { node, reply }, next, None));
            }
        }
    }

    /// Leases may end at any time; a grant only after the lease it backs.
    pub(super) fn ends(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        if state.nodes[node].lease {
            let mut next = *state;
            next.nodes[node].lease = false;
            out.push((Action::LeaseEnds { node }, next, None));
        }
        if state.nodes[node].granted && !state.nodes[1 - node].lease {
            let mut next = *state;
            next.nodes[node].granted = false;
            out.push((Action::GrantEnds { node }, next, None));
        }
    }

    pub(super) fn crash(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        if usize::from(state.crashes) >= self.scope.crashes {
            return;
        }
        for lands in [true, false] {
            let mut next = *state;
            let old = &state.nodes[node];
            if lands && old.queue == 0 {
                continue;
            }
            next.crashes += 1;
            let seal = ViewNumber(u64::from(old.seal_on_disk));
            let grant = Grant::at_start(NOW, seal, &TIMING, &self.rules);
            next.nodes[node] = Node {
                incarnation: old.incarnation + 1,
                seal: old.seal_on_disk,
                seal_on_disk: old.seal_on_disk,
                granted: grant.runs(NOW),
                data: if lands {
                    old.data | old.queue
                } else {
                    old.data
                },
                forced: old.forced,
                ..Node::default()
            };
            if !self.rules.own_commit {
                next.nodes[node].active = old.active;
                next.nodes[node].committed = old.committed;
            }
            if !self.rules.durable_votes {
                next.voters[node] = Voter {
                    replaced: state.voters[node].replaced,
                    ..Voter::default()
                };
            }
            end_session(&mut next.nodes[1 - node]);
            out.push((Action::Crash { node, lands }, next, None));
        }
    }

    /// The arbitrator's store is lost and made anew.
    pub(super) fn wipe(&mut self, state: &State, out: &mut Vec<Successor>) {
        if usize::from(state.wipes) < self.scope.wipes {
            let mut next = *state;
            next.wipes += 1;
            next.voters[2] = Voter {
                replaced: true,
                ..Voter::default()
            };
            out.push((Action::Wipe, next, None));
        }
    }

    /// `secondary` by hand: quiesced, everything acknowledged and on both disks, then stopped.
    pub(super) fn stop(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let me = &state.nodes[node];
        let quiet = me.inflight == 0 && (!me.session || state.nodes[1 - node].queue == 0);
        if usize::from(state.orders) < self.scope.orders && !me.active.is_none() && quiet {
            let mut next = *state;
            next.orders += 1;
            self.step_down(&mut next, node);
            next.nodes[node].stopped = true;
            out.push((Action::Stop { node }, next, None));
        }
        if me.stopped {
            let mut next = *state;
            next.nodes[node].stopped = false;
            out.push((Action::GiveStopUp { node }, next, None));
        }
    }
}
