//! Orders about the volume itself: writes suspended for snapshots, and a larger size.

use replicator::types::NodeId;

use super::{EXTENT_BLOCKS, Fault, FaultWhat, Op, Options};
use crate::clock::{MILLIS, SECS, SimTime};
use crate::rng::{Rng, Stream};
use crate::stamp::CELLS_PER_BLOCK;

/// Seeds below this one were kept for what they found when nobody suspended writes or grew a volume.
pub const VOLUME_ORDERS_FROM: u64 = 9_000_000_000;
/// Key of the draw of `suspend-io`.
const SUSPENSIONS: u64 = 1 << 42;

/// In some runs operators suspend writes, whoever is Primary.
pub(super) fn draw_suspensions(seed: u64, options: &Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, SUSPENSIONS);
    if seed < VOLUME_ORDERS_FROM || options.kinds.is_empty() || !rng.chance(400) {
        return Vec::new();
    }
    let order = |rng: &mut Rng| Fault {
        at: SimTime(rng.below(options.safety.0)),
        length: rng.log_between(5 * MILLIS, 3 * SECS),
        what: FaultWhat::SuspendIo(rng.pick(&[NodeId::A, NodeId::B])),
    };
    (0..rng.between(1, 4)).map(|_| order(&mut rng)).collect()
}

/// Key of the draw of `resize`.
const GROWTHS: u64 = 1 << 43;
/// Most blocks that a volume grows by at once: beyond an extent, and rarely slow.
const GROWTH_MAX: u64 = EXTENT_BLOCKS + 300;

/// In some runs the volume grows, once or a few times, ordered more than once in case something is in
/// the way.
pub(super) fn draw_growths(seed: u64, options: &mut Options) -> Vec<Fault> {
    let mut rng = Rng::keyed(seed, Stream::Faults, GROWTHS);
    if seed < VOLUME_ORDERS_FROM || !rng.chance(500) {
        return Vec::new();
    }
    let mut growths = Vec::new();
    for _ in 0..rng.between(1, 3) {
        options.device_blocks += rng.log_between(1, GROWTH_MAX);
        let to = options.device_blocks;
        for _ in 0..rng.between(1, 4) {
            growths.push(Fault {
                at: SimTime(rng.below(options.safety.0)),
                length: MILLIS,
                what: FaultWhat::Grow { to },
            });
        }
    }
    growths
}

/// Some requests after the first order go to where the volume grows.
pub(super) fn move_beyond(seed: u64, ops: &mut [Op], growths: &[Fault], options: &Options) {
    let Some(first) = growths.iter().map(|fault| fault.at).min() else {
        return;
    };
    let mut rng = Rng::keyed(seed, Stream::Ops, GROWTHS);
    for op in ops.iter_mut().filter(|op| op.at > first) {
        if rng.chance(300) {
            // Across the old end, too.
            let new = options.device_blocks - options.volume_blocks;
            let block = options.volume_blocks - 1 + rng.below(new.min(40) + 1);
            op.first_cell = block * CELLS_PER_BLOCK + rng.below(CELLS_PER_BLOCK);
            let end = options.device_blocks * CELLS_PER_BLOCK;
            op.cells = op.cells.min(end - op.first_cell);
        }
    }
}
