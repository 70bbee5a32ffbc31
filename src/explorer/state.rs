//! One state of the small world, packed: views and ballots are numbers into a table, so that
//! millions of states fit the memory and hash fast. The production types are made from it for each
//! call of a production function.

use replicator::types::{Ballot, View};

/// Index of a view in [`Table`]; 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ViewIndex(pub(super) u8);

impl ViewIndex {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// A ballot: four bits of round, one of node, three of incarnation, so that order is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BallotCode(pub(super) u8);

impl BallotCode {
    pub(super) fn pack(ballot: Ballot) -> Self {
        let field = |value: u32, bits: u32| {
            assert!(value < 1 << bits, "{ballot:?} is beyond every scope");
            u8::try_from(value).expect("checked above")
        };
        Self(
            field(ballot.round, 4) << 4
                | field(u32::from(ballot.node), 1) << 3
                | field(ballot.incarnation, 3),
        )
    }

    pub(super) fn unpack(self) -> Ballot {
        Ballot {
            round: u32::from(self.0 >> 4),
            node: self.0 >> 3 & 1,
            incarnation: u32::from(self.0 & 7),
        }
    }
}

/// A voter's durable part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Voter {
    pub(super) promised: BallotCode,
    pub(super) accepted: Accepted,
    /// Its store was lost: it has another identity since.
    pub(super) replaced: bool,
}

/// A ballot and the view accepted under it; the view is `NONE` if nothing was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Accepted {
    pub(super) ballot: BallotCode,
    pub(super) view: ViewIndex,
}

/// Stage of a proposer's round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    #[default]
    None,
    Preparing,
    Draining,
    Accepting,
}

/// Kind of change behind a proposed view; what `Change` carries besides is fixed in the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Another's view that is only being finished.
    #[default]
    Finish,
    Recover,
    Takeover,
    Remove,
    EndAdd,
    Add,
    Hold,
    Claim,
    /// A Recover that ends a hold, by order.
    Resume,
    /// By force, by order.
    Force,
}

/// A promise as the proposer holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PromiseNote {
    pub(super) given: bool,
    /// By which identity of the voter.
    pub(super) replaced: bool,
    pub(super) accepted: Accepted,
}

/// Everything of a data node but its voter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) incarnation: u8,
    pub(super) highest_round: u8,
    pub(super) committed: ViewIndex,
    pub(super) active: ViewIndex,
    pub(super) undecided: ViewIndex,
    pub(super) undecided_kind: Kind,

    pub(super) ballot: BallotCode,
    /// What it knew when that round began.
    pub(super) committed_at_begin: ViewIndex,
    pub(super) stage: Stage,
    pub(super) kind: Kind,
    pub(super) proposed: ViewIndex,
    pub(super) promises: [PromiseNote; 3],
    /// Bit n: voter n accepted, with the identity it has now or had.
    pub(super) accepted_by: u8,
    /// Of these, those whose identity was replaced.
    pub(super) accepted_by_replaced: u8,

    pub(super) lease: bool,
    pub(super) granted: bool,
    pub(super) seal: u8,
    pub(super) seal_on_disk: u8,

    /// R4: an Add was begun since the last committed Remove.
    pub(super) strict_add: bool,
    /// The engines prepared an Add.
    pub(super) add_ready: bool,
    /// An operator demoted it: stopped, the hold not committed yet.
    pub(super) stopped: bool,
    /// It has a session to the other as its Primary.
    pub(super) session: bool,
    /// Writes on the disk, as bits.
    pub(super) data: u8,
    /// Writes of the other, received and not on the disk yet.
    pub(super) queue: u8,
    /// View of the session they came by.
    pub(super) queue_view: u8,
    /// Writes of guests that wait for their acknowledgement.
    pub(super) inflight: u8,
    /// Of these, those the other has on its disk.
    pub(super) peer_has: u8,
    /// Its data are of the lineage that a force began.
    pub(super) forced: bool,
}

/// A round that was begun: its messages may arrive at any time, more than once, or never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    pub(super) ballot: BallotCode,
    /// The view of its accept, once that left.
    pub(super) view: ViewIndex,
}

/// Most rounds of any scope.
pub(super) const ROUNDS_MAX: usize = 8;
/// Most view numbers of any scope.
pub(super) const NUMBERS_MAX: usize = 12;

/// The whole world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) voters: [Voter; 3],
    pub(super) nodes: [Node; 2],
    pub(super) sent: [Sent; ROUNDS_MAX],
    pub(super) rounds: u8,
    pub(super) crashes: u8,
    pub(super) wipes: u8,
    pub(super) cuts: u8,
    pub(super) orders: u8,
    pub(super) forces: u8,
    pub(super) writes: u8,
    /// Writes that guests believe in.
    pub(super) acked: u8,
    /// The same of the lineage that a force began.
    pub(super) acked_forced: u8,
    /// The committed view of each number, for the monitor.
    pub(super) chosen: [ViewIndex; NUMBERS_MAX],
}

/// The views met so far, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    views: Vec<View>,
}

impl Table {
    pub(super) fn index(&mut self, view: &View) -> ViewIndex {
        let place = match self.views.iter().position(|known| known == view) {
            Some(place) => place,
            None => {
                self.views.push(*view);
                self.views.len() - 1
            }
        };
        ViewIndex(u8::try_from(place + 1).expect("no scope has 255 views"))
    }

    pub(super) fn view(&self, index: ViewIndex) -> Option<View> {
        let place = usize::from(index.0).checked_sub(1)?;
        Some(self.views[place])
    }

    /// A view that is known to be there.
    pub(super) fn get(&self, index: ViewIndex) -> View {
        self.view(index).expect("asked only where a view is")
    }
}
