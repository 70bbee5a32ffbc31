//! Metadata contexts: what a client may select, and how an answer is made fit for it.
//!
//! The caller says what it knows; what it does not know is filled in on the safe side here, so that
//! no caller can make a client skip data that is there.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::limits::STATUS_EXTENT_COUNT_MAX;
use crate::proto::constants::{BASE_ALLOCATION, TWINBLK_DIRTY, status};
use crate::proto::reply::StatusExtent;

/// Metadata contexts, selected or asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contexts {
    /// `base:allocation`.
    pub allocation: bool,
    /// `twinblk:dirty`.
    pub dirty: bool,
}

impl Contexts {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        !self.allocation && !self.dirty
    }

    /// Names and ids, in the order of the ids.
    pub(super) fn iter(self) -> impl Iterator<Item = (u32, &'static str)> {
        let all = [
            (self.allocation, (ALLOCATION_ID, BASE_ALLOCATION)),
            (self.dirty, (DIRTY_ID, TWINBLK_DIRTY)),
        ];
        all.into_iter()
            .filter_map(|(selected, context)| selected.then_some(context))
    }

    /// What `queries` list: contexts by name, all of a namespace by its wildcard, all there are by
    /// no query at all. Unknown queries match nothing.
    pub(super) fn listed(queries: &[&str]) -> Self {
        let matches = |name: &str, namespace: &str| {
            let mut found = queries.iter();
            queries.is_empty() || found.any(|query| *query == name || *query == namespace)
        };
        Self {
            allocation: matches(BASE_ALLOCATION, "base:"),
            dirty: matches(TWINBLK_DIRTY, "twinblk:"),
        }
    }

    /// What `queries` select: by name only.
    pub(super) fn selected(queries: &[&str]) -> Self {
        Self {
            allocation: queries.contains(&BASE_ALLOCATION),
            dirty: queries.contains(&TWINBLK_DIRTY),
        }
    }
}

/// Id of `base:allocation` once selected.
const ALLOCATION_ID: u32 = 1;
/// Id of `twinblk:dirty` once selected.
const DIRTY_ID: u32 = 2;

/// What the caller knows of a range, from its first byte on.
///
/// A list may end early, and extents may be empty, equal to their neighbours, or reach beyond the
/// range. A list without bytes means: nothing is known, so the range may hold data, and other
/// copies may lack it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockStatus {
    /// For `base:allocation`: [`status::HOLE`] and [`status::ZERO`].
    pub allocation: Vec<StatusExtent>,
    /// For `twinblk:dirty`: [`status::DIRTY`].
    pub dirty: Vec<StatusExtent>,
}

impl BlockStatus {
    /// The answer for a context by its id, fit for a request of `len` bytes.
    pub(super) fn answer(&self, id: u32, len: u64, one: bool) -> Vec<StatusExtent> {
        let (known, unknown) = if id == ALLOCATION_ID {
            (&self.allocation, 0)
        } else {
            (&self.dirty, status::DIRTY)
        };
        let count_max = if one { 1 } else { STATUS_EXTENT_COUNT_MAX };
        let mut fit = fit(known, len, count_max);
        if fit.is_empty() {
            fit.push(StatusExtent {
                len,
                status: unknown,
            });
        }
        fit
    }
}

/// `extents` without empty ones, neighbours of one status joined, cut off at `len` bytes in all and
/// at `count_max`. Answering less than was asked is always right: the client asks again from there.
fn fit(extents: &[StatusExtent], len: u64, count_max: usize) -> Vec<StatusExtent> {
    let mut fit: Vec<StatusExtent> = Vec::new();
    let mut left = len;
    for extent in extents {
        let part = extent.len.min(left);
        if part == 0 {
            continue;
        }
        let is_full = fit.len() == count_max;
        match fit.last_mut() {
            Some(last) if last.status == extent.status => last.len += part,
            _ if is_full => break,
            _ => fit.push(StatusExtent {
                len: part,
                ..*extent
            }),
        }
        left -= part;
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(len: u64, status: u32) -> StatusExtent {
        StatusExtent { len, status }
    }

    #[test]
    fn extents_are_joined_and_cut_off_at_the_request() {
        let known = [
            extent(0, 1),
            extent(10, 3),
            extent(5, 3),
            extent(0, 0),
            extent(20, 0),
            extent(100, 3),
        ];
        let answer = |len, one| {
            let status = BlockStatus {
                allocation: known.to_vec(),
                dirty: Vec::new(),
            };
            status.answer(ALLOCATION_ID, len, one)
        };
        assert_eq!(
            answer(40, false),
            [extent(15, 3), extent(20, 0), extent(5, 3)]
        );
        assert_eq!(answer(40, true), [extent(15, 3)]);
        assert_eq!(answer(12, true), [extent(12, 3)]);
        assert_eq!(answer(15, false), [extent(15, 3)]);
    }

    #[test]
    fn what_is_not_known_may_hold_data_that_others_lack() {
        let unknown = BlockStatus::default();
        assert_eq!(unknown.answer(ALLOCATION_ID, 7, false), [extent(7, 0)]);
        assert_eq!(unknown.answer(DIRTY_ID, 7, true), [extent(7, 1)]);
    }

    #[test]
    fn an_answer_is_bounded() {
        let known: Vec<_> = (0..3000).map(|nr| extent(1, nr % 2)).collect();
        assert_eq!(fit(&known, 3000, STATUS_EXTENT_COUNT_MAX).len(), 1024);
    }
}
