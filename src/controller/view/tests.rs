use super::*;
use crate::controller::testing::founded;

const A: NodeId = NodeId::A;
const B: NodeId = NodeId::B;
const REPLICA_A: ReplicaId = ReplicaId(0xa);
const REPLICA_B: ReplicaId = ReplicaId(0xb);

fn both() -> View {
    View {
        number: ViewNumber(4),
        in_sync: InSync::BOTH,
        replicas: [Some(REPLICA_A), Some(REPLICA_B)],
        ..founded()
    }
}

fn propose(node: NodeId, change: Change, view: &View) -> Result<View, Abort> {
    Proposal { node, change }.apply(Some(view), &Rules::ALL)
}

const TAKEOVER: Change = Change::Takeover {
    replica: REPLICA_B,
    lossy: false,
};
const RECOVER: Change = Change::Recover {
    replica: REPLICA_A,
    lossy: false,
    ends_hold: false,
};
const HOLD: Change = Change::Hold { lossy: false };
const REMOVE: Change = Change::Remove { ends_add: false };
const CLAIM: Change = Change::Claim {
    replica: REPLICA_B,
    lossy: false,
};

#[test]
fn every_successor_adds_one_to_the_number() {
    let view = both();
    let changes = [
        (A, RECOVER),
        (B, TAKEOVER),
        (A, REMOVE),
        (
            A,
            Change::Leave {
                number: ViewNumber(5),
            },
        ),
        (A, HOLD),
    ];
    for (node, change) in changes {
        let next = propose(node, change, &view).unwrap();
        assert_eq!(next.number, ViewNumber(5), "{change:?}");
        assert_eq!(next.data_generation, view.data_generation);
        assert_eq!(next.voters, view.voters);
    }
}

#[test]
fn recover_keeps_who_is_in_sync() {
    let next = propose(A, RECOVER, &both()).unwrap();
    assert_eq!((next.primary, next.in_sync), (A, InSync::BOTH));
}

#[test]
fn takeover_leaves_the_old_primary_out() {
    let next = propose(B, TAKEOVER, &both()).unwrap();
    assert_eq!((next.primary, next.in_sync), (B, InSync::only(B)));
    assert_eq!(next.cause, ViewCause::TookOver);
}

#[test]
fn an_undecided_add_is_ended_by_a_view_of_its_own() {
    let solo = propose(A, REMOVE, &both()).unwrap();
    assert!(propose(A, REMOVE, &solo).is_err());
    let next = propose(A, Change::Remove { ends_add: true }, &solo).unwrap();
    assert_eq!(
        (next.number, next.in_sync),
        (ViewNumber(6), InSync::only(A))
    );
}

#[test]
fn a_replica_left_out_never_takes_over() {
    let solo = propose(A, REMOVE, &both()).unwrap();
    assert_eq!(
        propose(B, TAKEOVER, &solo),
        Err(Abort::NotInSync { view: solo.number })
    );
    let held = propose(A, HOLD, &solo).unwrap();
    assert_eq!(
        propose(B, CLAIM, &held),
        Err(Abort::NotInSync { view: held.number })
    );
}

#[test]
fn another_replica_in_the_same_place_is_vetoed() {
    let swapped = Change::Takeover {
        replica: ReplicaId(0xbad),
        lossy: false,
    };
    assert_eq!(
        propose(B, swapped, &both()),
        Err(Abort::WrongReplica {
            view: ViewNumber(4)
        })
    );
}

#[test]
fn nobody_proposes_for_the_other() {
    let view = both();
    assert!(propose(B, REMOVE, &view).is_err());
    assert!(propose(B, HOLD, &view).is_err());
    assert!(propose(B, RECOVER, &view).is_err());
    assert!(propose(A, TAKEOVER, &view).is_err());
}

#[test]
fn a_hold_stops_everyone_until_an_operator_speaks() {
    let held = propose(A, HOLD, &both()).unwrap();
    assert!(held.held);
    assert_eq!(
        propose(A, RECOVER, &held),
        Err(Abort::Held { view: held.number })
    );
    assert_eq!(
        propose(B, TAKEOVER, &held),
        Err(Abort::Held { view: held.number })
    );
    let ordered = Change::Recover {
        replica: REPLICA_A,
        lossy: false,
        ends_hold: true,
    };
    assert!(!propose(A, ordered, &held).unwrap().held);
    let claimed = propose(B, CLAIM, &held).unwrap();
    assert_eq!((claimed.primary, claimed.in_sync), (B, InSync::only(B)));
    assert!(!claimed.held);
    assert!(propose(B, CLAIM, &both()).is_err());
}

#[test]
fn the_last_view_has_no_successor() {
    let last = View {
        number: ViewNumber::MAX,
        ..both()
    };
    let exhausted = Err(Abort::Exhausted { view: last.number });
    for (node, change) in [(A, REMOVE), (A, RECOVER), (B, TAKEOVER), (A, HOLD)] {
        assert_eq!(propose(node, change, &last), exhausted);
    }
}

#[test]
fn an_add_counts_only_as_the_view_it_was_prepared_for() {
    let solo = propose(A, REMOVE, &both()).unwrap();
    let add = |number| Change::Add {
        replica: ReplicaId(0xb2),
        number: ViewNumber(number),
    };
    assert_eq!(
        propose(A, add(5), &solo),
        Err(Abort::WrongNumber { view: solo.number })
    );
    let next = propose(A, add(6), &solo).unwrap();
    assert_eq!(next.in_sync, InSync::BOTH);
    assert_eq!(next.replicas, [Some(REPLICA_A), Some(ReplicaId(0xb2))]);
}

#[test]
fn a_volume_only_grows_and_only_as_both_replicas_were_prepared() {
    let view = both();
    let resize = |size_blocks, number| Change::Resize {
        size_blocks,
        number: ViewNumber(number),
    };
    let larger = view.size_blocks + 1;
    let next = propose(A, resize(larger, 5), &view).unwrap();
    assert_eq!((next.size_blocks, next.cause), (larger, ViewCause::Resized));
    assert_eq!((next.primary, next.in_sync), (A, InSync::BOTH));
    let number = view.number;
    for (node, change, view, reason) in [
        (
            B,
            resize(larger, 5),
            view,
            Abort::PeerIsPrimary { view: number },
        ),
        (
            A,
            resize(larger, 6),
            view,
            Abort::WrongNumber { view: number },
        ),
        (
            A,
            resize(larger - 1, 5),
            view,
            Abort::NotLarger { view: number },
        ),
        (A, resize(0, 5), view, Abort::NotLarger { view: number }),
    ] {
        assert_eq!(propose(node, change, &view), Err(reason));
    }
    let solo = propose(A, REMOVE, &view).unwrap();
    let alone = propose(A, resize(larger, 6), &solo);
    assert_eq!(alone, Err(Abort::PeerNotInSync { view: solo.number }));
    let left = propose(
        A,
        Change::Leave {
            number: ViewNumber(5),
        },
        &view,
    )
    .unwrap();
    let gone = propose(A, resize(larger, 6), &left);
    assert_eq!(gone, Err(Abort::NotInSync { view: left.number }));
}

#[test]
fn a_primary_that_left_returns_by_an_add_of_itself() {
    let left = propose(
        A,
        Change::Leave {
            number: ViewNumber(5),
        },
        &both(),
    )
    .unwrap();
    assert_eq!((left.primary, left.in_sync), (A, InSync::only(B)));
    assert!(propose(A, REMOVE, &left).is_err());
    assert!(propose(A, RECOVER, &left).is_err());
    assert!(propose(B, TAKEOVER, &left).is_ok());
    let back = Change::Add {
        replica: ReplicaId(0xa2),
        number: ViewNumber(6),
    };
    let next = propose(A, back, &left).unwrap();
    assert_eq!(next.replicas, [Some(ReplicaId(0xa2)), Some(REPLICA_B)]);
}

#[test]
fn founding_needs_two_voters_and_an_empty_register() {
    let found = |voters| Proposal {
        node: B,
        change: Change::Found {
            replica: REPLICA_B,
            data_generation: DataGeneration(9),
            size_blocks: 128,
            voters: VoterSet(voters),
        },
    };
    let one = found([None, Some(VoterId(2)), None]);
    assert_eq!(one.apply(None, &Rules::ALL), Err(Abort::TooFewVoters));
    let two = found([None, Some(VoterId(2)), Some(VoterId(3))]);
    let view = two.apply(None, &Rules::ALL).unwrap();
    assert_eq!((view.primary, view.in_sync), (B, InSync::only(B)));
    assert_eq!(view.replicas, [None, Some(REPLICA_B)]);
    assert_eq!(
        two.apply(Some(&view), &Rules::ALL),
        Err(Abort::AlreadyFounded)
    );
    let remove = Proposal {
        node: B,
        change: REMOVE,
    };
    assert_eq!(remove.apply(None, &Rules::ALL), Err(Abort::NotFounded));
}

#[test]
fn a_voter_is_recorded_once() {
    let mut view = both();
    view.voters.0[2] = None;
    let add = Change::AddVoter {
        voter: NodeId::ARBITRATOR,
        id: VoterId(33),
    };
    let next = propose(A, add, &view).unwrap();
    assert_eq!(next.voters.0[2], Some(VoterId(33)));
    let replaced = Change::AddVoter {
        voter: NodeId::ARBITRATOR,
        id: VoterId(34),
    };
    assert!(propose(A, replaced, &next).is_err());
}
