//! The engines, reduced to which writes are where. Not production code: what the real engine does is
//! the simulator's business; here it only gives the register's promises a meaning.

use super::machine::{Action, Machine, Successor, end_session, node_id};
use super::state::{State, ViewIndex};

impl Machine {
    /// R4: the peer must have it too.
    pub(super) fn is_strict(&self, state: &State, node: usize) -> bool {
        let me = &state.nodes[node];
        let in_sync = self
            .table
            .view(me.active)
            .is_some_and(|view| view.in_sync.contains(node_id(1 - node)));
        in_sync || me.strict_add
    }

    /// R2.
    pub(super) fn is_open(&self, state: &State, node: usize) -> bool {
        let me = &state.nodes[node];
        !me.active.is_none() && (!self.is_strict(state, node) || me.lease)
    }

    fn number(&self, view: ViewIndex) -> u8 {
        let number = self.table.view(view).map_or(0, |view| view.number.0);
        u8::try_from(number).expect("view numbers of a scope are small")
    }

    pub(super) fn engine(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        self.connect(state, node, out);
        self.cut(state, node, out);
        self.write(state, node, out);
        self.replicate(state, node, out);
        self.land(state, node, out);
        self.complete(state, node, out);
        self.resync(state, node, out);
        self.begin_add(state, node, out);
    }

    /// A session begins when the other is no Primary, has not sealed the view (R6), is of the same
    /// lineage, and nothing of an earlier session can still land there (R14). In-sync replicas are made equal first.
    fn connect(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let (me, other) = (&state.nodes[node], &state.nodes[1 - node]);
        let Some(view) = self.table.view(me.active).filter(|_| !me.session) else {
            return;
        };
        let sealed = view.number.0 <= u64::from(other.seal);
        let diverged = me.forced != other.forced;
        if !other.active.is_none() || sealed || diverged || other.queue != 0 {
            return;
        }
        let mut next = *state;
        next.nodes[node].session = true;
        if view.in_sync.contains(node_id(1 - node)) {
            next.nodes[1 - node].data = me.data;
            next.nodes[node].peer_has = me.inflight;
        }
        out.push((Action::Connect { node }, next, None));
    }

    fn cut(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        if state.nodes[node].session && usize::from(state.cuts) < self.scope.cuts {
            let mut next = *state;
            next.cuts += 1;
            end_session(&mut next.nodes[node]);
            out.push((Action::Cut { node }, next, None));
        }
    }

    fn write(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        if usize::from(state.writes) < self.scope.writes && self.is_open(state, node) {
            let mut next = *state;
            let write = 1 << state.writes;
            next.writes += 1;
            next.nodes[node].data |= write;
            next.nodes[node].inflight |= write;
            out.push((Action::Write { node }, next, None));
        }
    }

    fn replicate(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let (me, other) = (&state.nodes[node], &state.nodes[1 - node]);
        for write in bits(me.inflight & !other.data & !other.queue) {
            if me.session {
                let mut next = *state;
                next.nodes[1 - node].queue |= write;
                next.nodes[1 - node].queue_view = self.number(me.active);
                out.push((Action::Replicate { node, write }, next, None));
            }
        }
    }

    /// A write of the other's session reaches this disk.
    fn land(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let me = &state.nodes[node];
        for write in bits(me.queue) {
            let mut next = *state;
            next.nodes[node].queue &= !write;
            next.nodes[node].data |= write;
            if next.nodes[1 - node].session {
                next.nodes[1 - node].peer_has |= write;
            }
            // It may overwrite what this node's own guests wrote meanwhile.
            let late = self.number(me.active) > me.queue_view;
            let violation = late.then_some(super::check::Violation::LateWrite);
            out.push((Action::Land { node, write }, next, violation));
        }
    }

    fn complete(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let me = &state.nodes[node];
        if !self.is_open(state, node) {
            return;
        }
        for write in bits(me.inflight) {
            if !self.is_strict(state, node) || me.peer_has & write != 0 {
                let mut next = *state;
                if me.forced {
                    next.acked_forced |= write;
                } else {
                    next.acked |= write;
                }
                next.nodes[node].inflight &= !write;
                out.push((Action::Complete { node, write }, next, None));
            }
        }
    }

    fn resync(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let (me, other) = (&state.nodes[node], &state.nodes[1 - node]);
        let target = self
            .table
            .view(me.active)
            .is_some_and(|view| !view.in_sync.contains(node_id(1 - node)));
        if me.session && target && other.data != me.data && other.queue == 0 {
            let mut next = *state;
            next.nodes[1 - node].data = me.data;
            next.nodes[node].peer_has |= me.inflight;
            out.push((Action::Resync { node }, next, None));
        }
    }

    /// R19: strict on, then nothing may be missing.
    fn begin_add(&mut self, state: &State, node: usize, out: &mut Vec<Successor>) {
        let (me, other) = (&state.nodes[node], &state.nodes[1 - node]);
        let target = self
            .table
            .view(me.active)
            .is_some_and(|view| !view.in_sync.contains(node_id(1 - node)));
        if me.session && target && !me.add_ready && other.data == me.data && other.queue == 0 {
            let mut next = *state;
            next.nodes[node].add_ready = true;
            next.nodes[node].strict_add |= self.rules.strict_add;
            out.push((Action::BeginAdd { node }, next, None));
        }
    }
}

fn bits(mask: u8) -> impl Iterator<Item = u8> {
    (0..8)
        .map(|bit| 1 << bit)
        .filter(move |bit| mask & bit != 0)
}
