//! Latencies by size: bounded memory however many there are, and every percentile within 1/32.

/// Buckets of one power of two.
const PARTS: u64 = 32;
const BUCKETS: usize = 64 * 32;

/// Counts of latencies in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
        }
    }
}

impl Histogram {
    pub(super) fn add(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (own, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *own += theirs;
        }
        self.total += other.total;
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The latency that this many of 1000 do not exceed; 0 without any.
    pub(super) fn per_mille(&self, per_mille: u64) -> u64 {
        let wanted = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, middle)
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < PARTS {
        return usize::try_from(nanos).expect("below 32");
    }
    let power = u64::from(nanos.ilog2());
    let part = (nanos >> (power - 5)) - PARTS;
    usize::try_from((power - 4) * PARTS + part).expect("below the number of buckets")
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).expect("a few thousand");
    let (row, part) = (bucket / PARTS, bucket % PARTS);
    if row == 0 {
        return part;
    }
    let width = 1 << (row - 1);
    (PARTS + part) * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_a_sorted_list_within_a_32nd() {
        let mut state = 9_u64;
        let mut sorted = Vec::new();
        let mut histogram = Histogram::default();
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let nanos = state >> (24 + state % 30);
            sorted.push(nanos);
            histogram.add(nanos);
        }
        sorted.sort_unstable();
        for per_mille in [1_u64, 500, 990, 999, 1000] {
            let at = usize::try_from((10_000 * per_mille).div_ceil(1000_u64)).unwrap() - 1;
            let (found, exact) = (histogram.per_mille(per_mille), sorted[at]);
            let most = exact / PARTS + 1;
            assert!(
                found.abs_diff(exact) <= most,
                "{per_mille}: {found}, {exact}"
            );
        }
        assert_eq!(histogram.total(), 10_000);
    }

    #[test]
    fn the_smallest_and_the_largest_have_a_bucket_and_none_has_no_percentile() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.per_mille(500), 0);
        histogram.add(0);
        histogram.add(u64::MAX);
        assert_eq!(histogram.per_mille(500), 0);
        let mut sum = Histogram::default();
        sum.merge(&histogram);
        assert!(sum.per_mille(1000) > u64::MAX / 2);
    }
}
