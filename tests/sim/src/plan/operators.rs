//! What operators do to the roles of a run: moves, takeovers by order, force, and what they keep nodes
//! from doing by themselves.

use replicator::types::{NodeId, ReplicationProtocol};

use super::{Fault, FaultWhat, Options};
use crate::clock::{MICROS, MILLIS, SECS, SimTime};
use crate::rng::{Rng, Stream};

/// Seeds below this one were kept for what they found when nobody moved a Primary in one order.
pub const MOVES_FROM: u64 = 4_000_000_000;
/// Key of the draw of such moves.
const MOVES: u64 = 1 << 38;

/// In half of the runs operators move the Primary, whoever it is; now and then right after another
/// fault began, or both nodes are told at nearly the same moment.
pub(super) fn draw_moves(seed: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, MOVES);
    if seed < MOVES_FROM || options.kinds.is_empty() || !rng.chance(500) {
        return Vec::new();
    }
    let mut moves = Vec::new();
    for _ in 0..rng.between(1, 5) {
        let at = SimTime(rng.below(options.safety.0));
        let first = rng.pick(&[NodeId::A, NodeId::B]);
        for node in [first, first.peer()] {
            let at = at.plus(rng.log_between(MICROS, SECS));
            if rng.chance(800) {
                moves.push(Fault {
                    at,
                    length: MILLIS,
                    what: FaultWhat::MoveAway(node),
                });
            }
        }
    }
    moves
}

/// Key of the draw of takeovers by order.
const TAKEOVERS: u64 = 1 << 39;

/// Under protocol A nobody takes over by itself: an operator does, of a Primary that died for longer
/// than a grant, mostly right after something that left the peer to be made equal.
pub(super) fn draw_takeovers(seed: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, TAKEOVERS);
    if options.protocol != ReplicationProtocol::A || options.kinds.is_empty() {
        return Vec::new();
    }
    let mut takeovers = Vec::new();
    let fault = |at, length, what| Fault { at, length, what };
    for _ in 0..rng.between(1, 3) {
        let at = SimTime(rng.below(options.safety.0));
        let dead = rng.pick(&[NodeId::A, NodeId::B]);
        let mut death = at;
        if rng.chance(800) {
            let hurt = match rng.below(4) {
                0 => FaultWhat::Kill(dead),
                1 => FaultWhat::Kill(dead.peer()),
                _ => FaultWhat::Disconnect(dead),
            };
            let length = rng.log_between(MILLIS, 300 * MILLIS);
            takeovers.push(fault(at, length, hurt));
            // About when the two have met again.
            death = at.plus(length + rng.log_between(20 * MILLIS, 300 * MILLIS));
        }
        let length = rng.between(4 * SECS, 8 * SECS);
        takeovers.push(fault(death, length, FaultWhat::Kill(dead)));
        let order = death.plus(rng.below(2 * SECS));
        takeovers.push(fault(order, MILLIS, FaultWhat::Promote(dead.peer())));
    }
    takeovers
}

/// Seeds below this one were kept for what they found when nobody forced anything, and every node took
/// over by itself.
pub const CONTROL_FROM: u64 = 8_000_000_000;
/// Key of the draw of such orders.
const CONTROL: u64 = 1 << 40;

/// In half of the runs operators keep nodes from taking over, say that dead ones are dead, and force
/// what was left behind when its better half has died.
pub(super) fn draw_control(seed: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, CONTROL);
    if seed < CONTROL_FROM || options.kinds.is_empty() || !rng.chance(500) {
        return Vec::new();
    }
    let mut orders = Vec::new();
    for _ in 0..rng.between(1, 4) {
        let at = SimTime(rng.below(options.safety.0));
        let node = rng.pick(&[NodeId::A, NodeId::B]);
        let mut add = |at, length, what| orders.push(Fault { at, length, what });
        match rng.below(3) {
            0 => {
                let maintenance = rng.chance(500);
                let length = rng.log_between(5 * MILLIS, 5 * SECS);
                add(at, length, FaultWhat::Automation { node, maintenance });
            }
            1 => {
                let dead = rng.log_between(300 * MILLIS, 5 * SECS);
                add(at, dead, FaultWhat::Kill(node.peer()));
                let told = at.plus(rng.log_between(10 * MILLIS, SECS));
                add(told, MILLIS, FaultWhat::Fenced(node));
            }
            _ => {
                // It is left behind, returns, and its peer dies before it has caught up, or after.
                let behind = rng.log_between(300 * MILLIS, 2 * SECS);
                add(at, behind, FaultWhat::Kill(node));
                let death = at.plus(behind + rng.log_between(MILLIS, SECS));
                let dead = rng.log_between(SECS, 8 * SECS);
                add(death, dead, FaultWhat::Kill(node.peer()));
                let told = death.plus(rng.log_between(100 * MILLIS, 4 * SECS));
                add(told, MILLIS, FaultWhat::Force(node));
            }
        }
    }
    orders
}

/// Seeds below this one were kept for what they found when no node was preferred.
pub const PLACEMENT_FROM: u64 = 11_000_000_000;
/// Key of the draw of the preferred node.
const PLACEMENT: u64 = 1 << 44;

/// In half of the runs a node is preferred.
pub(super) fn draw_prefer(seed: u64) -> Option<NodeId> {
    let mut rng = Rng::keyed(seed, Stream::Options, PLACEMENT);
    let drawn = seed >= PLACEMENT_FROM && rng.chance(500);
    drawn.then(|| rng.pick(&[NodeId::A, NodeId::B]))
}

/// Mostly short, so that it goes back while faults happen.
pub(super) fn draw_hold_down(seed: u64) -> u64 {
    let mut rng = Rng::keyed(seed, Stream::Options, PLACEMENT + 1);
    rng.log_between(MILLIS, 3 * SECS)
}
