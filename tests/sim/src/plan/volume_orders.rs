//! Orders about the volume itself.

use replicator::types::NodeId;

use super::{Fault, FaultWhat, Options};
use crate::clock::{MILLIS, SECS, SimTime};
use crate::rng::{Rng, Stream};

/// Seeds below this one were kept for what they found when nobody suspended writes.
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
