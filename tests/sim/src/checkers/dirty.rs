//! K7: blocks that differ, or would after a power cut, are marked somewhere durable.

use replicator::types::{BlockIndex, NodeId};

use crate::disk::Device;

use super::{Checked, Violation};

/// Blocks of which the two replicas may hold different content.
#[must_use]
pub fn differing(a: &Device, b: &Device) -> Vec<u64> {
    let mut pages: Vec<u64> = a.touched().chain(b.touched()).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.retain(|page| {
        a.is_volatile(*page) || b.is_volatile(*page) || !same(&a.current(*page), &b.current(*page))
    });
    pages
}

/// Whether two contents read the same; a written page of zeroes equals a hole.
#[must_use]
pub fn same(a: &crate::disk::Content, b: &crate::disk::Content) -> bool {
    let is_zero = |content: &crate::disk::Content| {
        content
            .as_ref()
            .is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0))
    };
    match (a, b) {
        (Some(a), Some(b)) => a == b,
        _ => is_zero(a) && is_zero(b),
    }
}

/// Checks that `marked` covers every block that may differ.
///
/// # Errors
/// Names the first block that is not covered.
pub fn check_superset(
    devices: [&Device; 2],
    when: &str,
    marked: impl Fn(BlockIndex) -> bool,
) -> Checked {
    for page in differing(devices[0], devices[1]) {
        if !marked(BlockIndex(page)) {
            let volatile = NodeId::ALL[..2]
                .iter()
                .zip(devices)
                .filter(|(_, device)| device.is_volatile(page))
                .map(|(node, _)| node.raw());
            return Err(Violation::new(
                "dirty superset",
                format!(
                    "{when}: block {page} is unmarked; differs {}, volatile on {:?}",
                    !same(&devices[0].current(page), &devices[1].current(page)),
                    volatile.collect::<Vec<_>>(),
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use replicator::types::Payload;

    use super::*;
    use crate::disk::PAGE_LEN;

    #[test]
    fn a_difference_without_a_mark_is_caught_and_written_zeroes_equal_a_hole() {
        let (mut a, b) = (Device::new(), Device::new());
        a.write(3, Some(Payload::from(vec![0; PAGE_LEN])), true);
        assert!(check_superset([&a, &b], "now", |_| false).is_ok());
        a.write(4, Some(Payload::from(vec![1; PAGE_LEN])), true);
        assert!(check_superset([&a, &b], "now", |_| false).is_err());
        assert!(check_superset([&a, &b], "now", |block| block.0 == 4).is_ok());
    }

    #[test]
    fn equal_but_volatile_content_needs_a_mark_too() {
        let (mut a, mut b) = (Device::new(), Device::new());
        for device in [&mut a, &mut b] {
            device.write(4, Some(Payload::from(vec![1; PAGE_LEN])), false);
        }
        assert!(check_superset([&a, &b], "now", |_| false).is_err());
    }
}
