use proptest::prelude::*;
use replicator::types::Window;

use super::*;

const RES: ResourceId = ResourceId(7);
/// 2026-11-21, a Saturday, 02:00:00 UTC.
const SATURDAY_AT_TWO: u64 = 1_795_226_400;

fn at(seconds: u64) -> Clocks {
    Clocks {
        now: Instant::ZERO.plus(Duration::from_secs(1_000_000 + seconds)),
        unix_seconds: SATURDAY_AT_TWO + seconds,
    }
}

fn wish() -> Wish {
    Wish {
        prefer: Some(NodeId::A),
        failback: Failback::WhenSynced,
        hold_down: Duration::from_secs(600),
        priority: 10,
        manual: false,
    }
}

/// A Primary that has waited long enough.
fn ready() -> Facts {
    Facts {
        serves: true,
        by_hand: false,
        maintenance: false,
        lossy: false,
        peer_well_since: Some(at(0).now),
        blocker: None,
        busy: None,
        guest_idle: false,
    }
}

fn standing(placement: &Placement, wish: &Wish, facts: &Facts, clocks: Clocks) -> Standing {
    placement.standing(NodeId::B, RES, wish, facts, clocks)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn it_goes_back_once_the_preferred_node_was_well_for_the_hold_down() {
    let placement = Placement::default();
    let early = standing(&placement, &wish(), &ready(), at(350));
    let left = seconds(250);
    assert_eq!(early, Standing::Stays(Stay::HoldDown { left }));
    assert_eq!(
        standing(&placement, &wish(), &ready(), at(600)),
        Standing::Due
    );
    let lost = Facts {
        peer_well_since: None,
        ..ready()
    };
    let stays = standing(&placement, &wish(), &lost, at(900));
    assert_eq!(stays, Standing::Stays(Stay::PeerNotWell));
}

#[test]
fn where_it_is_and_where_it_is_preferred_decide_whether_there_is_anything_to_do() {
    let placement = Placement::default();
    let of = |prefer, serves, node| {
        let (wish, facts) = (Wish { prefer, ..wish() }, Facts { serves, ..ready() });
        placement.standing(node, RES, &wish, &facts, at(900))
    };
    assert_eq!(of(None, true, NodeId::B), Standing::NoPreference);
    assert_eq!(of(Some(NodeId::B), true, NodeId::B), Standing::Home);
    assert_eq!(of(Some(NodeId::B), false, NodeId::B), Standing::NotHere);
    assert_eq!(of(Some(NodeId::A), false, NodeId::B), Standing::NotHere);
    assert_eq!(of(Some(NodeId::A), true, NodeId::B), Standing::Due);
}

#[test]
fn a_window_is_waited_for() {
    let window = Window::new(1 << 5, 120, 60).unwrap();
    let wish = Wish {
        failback: Failback::Window(window),
        ..wish()
    };
    let placement = Placement::default();
    assert_eq!(
        standing(&placement, &wish, &ready(), at(3599)),
        Standing::Due
    );
    let left = seconds(6 * 24 * 3600 + 23 * 3600);
    let shut = standing(&placement, &wish, &ready(), at(3600));
    assert_eq!(shut, Standing::Stays(Stay::Window { left }));
}

#[test]
fn after_three_failbacks_in_a_day_it_stays_until_the_first_is_a_day_old() {
    let mut placement = Placement::default();
    let day = FLAP_WINDOW.as_secs();
    for hour in [1, 5, 9] {
        let clocks = at(hour * 3600);
        assert_eq!(
            standing(&placement, &wish(), &ready(), clocks),
            Standing::Due
        );
        placement.begin(RES, clocks);
        placement.end(RES, Ended::Home, clocks);
    }
    let left = seconds(day - 9 * 3600);
    let limited = standing(&placement, &wish(), &ready(), at(10 * 3600));
    assert_eq!(limited, Standing::Stays(Stay::FlapLimit { left }));
    let later = at(day + 3600);
    assert_eq!(
        standing(&placement, &wish(), &ready(), later),
        Standing::Due
    );
    // What an earlier life did counts as well.
    let mut next_life = Placement::default();
    for went in placement.went(RES) {
        next_life.remember(RES, *went);
    }
    assert_eq!(
        standing(&next_life, &wish(), &ready(), at(10 * 3600)),
        limited
    );
}

#[test]
fn one_that_is_refused_before_it_begins_is_tried_again_later_and_later() {
    let mut placement = Placement::default();
    let mut now = 1_000;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        placement.end(RES, Ended::Failed, at(now));
        let stays = standing(&placement, &wish(), &ready(), at(now));
        let Standing::Stays(Stay::BackOff { left }) = stays else {
            panic!("{stays:?}");
        };
        pauses.push(left);
        now += left.as_secs();
        assert_eq!(
            standing(&placement, &wish(), &ready(), at(now)),
            Standing::Due
        );
    }
    assert_eq!(pauses[0], BACK_OFF_MIN);
    assert!(
        pauses
            .windows(2)
            .all(|pair| pair[1] == (pair[0] * 2).min(BACK_OFF_MAX))
    );
    assert_eq!(pauses.last(), Some(&BACK_OFF_MAX));
    // None of them began.
    assert!(placement.went(RES).is_empty());
}

#[test]
fn a_host_that_fails_whenever_it_becomes_primary_is_not_given_it_again_and_again() {
    let mut placement = Placement::default();
    let mut now = 1_000;
    for _ in 0..FAILBACKS_MAX {
        let due = standing(&placement, &wish(), &ready(), at(now));
        assert_eq!(due, Standing::Due);
        placement.begin(RES, at(now));
        // It left, nobody said that he serves, and then this node took over again.
        placement.end(RES, Ended::Failed, at(now));
        placement.note_gone(RES);
        let stays = standing(&placement, &wish(), &ready(), at(now));
        let Standing::Stays(stay) = stays else {
            panic!("{stays:?}");
        };
        now += BACK_OFF_MAX.as_secs() / 4;
        assert!(matches!(stay.word(), "back-off" | "flap-limit"));
    }
    let stays = standing(&placement, &wish(), &ready(), at(now));
    assert!(matches!(stays, Standing::Stays(Stay::FlapLimit { .. })));
    // One that found nothing to do any more does not count.
    let mut idle = Placement::default();
    idle.begin(RES, at(now));
    idle.end(RES, Ended::Idle, at(now));
    assert!(idle.went(RES).is_empty());
}

#[test]
fn a_clock_that_was_ahead_blocks_for_a_day_at_most() {
    let mut placement = Placement::default();
    let year = 365 * FLAP_WINDOW.as_secs();
    for _ in 0..FAILBACKS_MAX {
        placement.remember(RES, at(year).unix_seconds);
    }
    placement.note_clock(at(1_000).unix_seconds);
    let stays = standing(&placement, &wish(), &ready(), at(2_000));
    assert!(matches!(stays, Standing::Stays(Stay::FlapLimit { .. })));
    let later = at(1_000 + FLAP_WINDOW.as_secs());
    placement.note_clock(later.unix_seconds);
    let due = standing(&placement, &wish(), &ready(), later);
    assert_eq!(due, Standing::Due);
}

#[test]
fn a_new_wish_waits_for_its_whole_hold_down() {
    let mut placement = Placement::default();
    let never = Wish {
        failback: Failback::Never,
        ..wish()
    };
    placement.note_wish(RES, &never, at(0).now);
    placement.note_wish(RES, &wish(), at(90_000).now);
    placement.note_wish(RES, &wish(), at(90_300).now);
    let left = seconds(300);
    let stays = standing(&placement, &wish(), &ready(), at(90_300));
    assert_eq!(stays, Standing::Stays(Stay::HoldDown { left }));
    let due = standing(&placement, &wish(), &ready(), at(90_600));
    assert_eq!(due, Standing::Due);
}

#[test]
fn a_guest_that_does_not_run_is_not_started_by_a_failback() {
    let facts = Facts {
        guest_idle: true,
        ..ready()
    };
    let stays = standing(&Placement::default(), &wish(), &facts, at(900));
    assert_eq!(stays, Standing::Stays(Stay::GuestIdle));
}

#[test]
fn the_preferred_node_is_believed_for_a_while_and_asked_again_less_and_less() {
    for away in [
        Away::Standby,
        Away::Maintenance,
        Away::ByHand,
        Away::OtherWish,
        Away::Guest,
        Away::Unknown,
    ] {
        let mut placement = Placement::default();
        let mut now = 1_000;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            placement.note_peer(RES, Some(away), at(now).now);
            let stays = standing(&placement, &wish(), &ready(), at(now));
            assert_eq!(stays, Standing::Stays(Stay::PeerAway(away)));
            let until = (now..).find(|second| {
                standing(&placement, &wish(), &ready(), at(*second)) == Standing::Due
            });
            pauses.push(until.unwrap() - now);
            now = until.unwrap();
        }
        assert_eq!(pauses, [3, 6, 12, 24, 48, 60, 60, 60]);
        placement.note_peer(RES, None, at(now).now);
        placement.note_peer(RES, Some(away), at(now + 1).now);
        let soon = standing(&placement, &wish(), &ready(), at(now + 4));
        assert_eq!(soon, Standing::Due);
    }
}

#[test]
fn what_the_preferred_node_refuses_keeps_nothing_else_from_its_turn() {
    let mut placement = Placement::default();
    let ids: Vec<_> = (0..100).map(ResourceId).collect();
    let mut asked = std::collections::BTreeSet::new();
    for second in 1_000..1_400 {
        let due = ids.iter().filter(|id| {
            let wish = wish();
            let facts = ready();
            placement.standing(NodeId::B, **id, &wish, &facts, at(second)) == Standing::Due
        });
        // The last one is wanted back, and has the lowest claim.
        let due: Vec<_> = due
            .map(|id| (*id, if id.0 == 99 { 1_000 } else { 10 }))
            .collect();
        if let Some(id) = placement.next(due.into_iter(), at(second).now) {
            asked.insert(id);
            let away = (id.0 != 99).then_some(Away::ByHand);
            placement.note_peer(id, away, at(second).now);
        }
    }
    assert_eq!(asked.len(), 100);
}

#[test]
fn they_go_one_after_the_other_the_lowest_priority_first() {
    let mut placement = Placement::default();
    let due = [(ResourceId(1), 10), (ResourceId(2), 1), (ResourceId(3), 1)];
    let next = |placement: &Placement, second| placement.next(due.into_iter(), at(second).now);
    assert_eq!(next(&placement, 0), Some(ResourceId(2)));
    placement.begin(ResourceId(2), at(0));
    assert_eq!(next(&placement, 0), None);
    placement.end(ResourceId(2), Ended::Failed, at(10));
    assert_eq!(next(&placement, 11), None);
    assert_eq!(next(&placement, 12), Some(ResourceId(2)));
    assert_eq!(placement.next([].into_iter(), at(12).now), None);
}

/// Everything that there is to a decision, and whether it should be `Due`: the slow and obvious way.
/// All combinations, and each reason given must be one that holds.
#[test]
fn it_is_due_exactly_when_nothing_speaks_against_it() {
    let now = at(10_000);
    let shut = Window::new(1, 0, 1).unwrap();
    let open = Window::new(Window::DAILY, 0, Window::DAY_MINUTES).unwrap();
    let failbacks = [
        Failback::Never,
        Failback::WhenSynced,
        Failback::Window(open),
        Failback::Window(shut),
    ];
    let well = [None, Some(now.now), Some(at(0).now)];
    let day = FLAP_WINDOW.as_secs();
    let recent = now.unix_seconds - 60;
    let went: [&[u64]; 5] = [
        &[],
        &[recent, recent],
        &[recent, recent, recent],
        &[now.unix_seconds - day, recent, recent],
        &[
            now.unix_seconds + 99,
            now.unix_seconds + 99,
            now.unix_seconds + 99,
        ],
    ];
    let retry = [None, Some(now.now), Some(now.now.plus(seconds(1)))];
    let refused = |why, at, times| Some(Refusal { why, at, times });
    let refusals = [
        None,
        refused(Away::Standby, now.now, 1),
        refused(Away::ByHand, at(9_000).now, 9),
        refused(Away::Maintenance, at(9_990).now, 3),
    ];
    let (mut seen, mut due_seen) = (0, 0);
    for bits in 0..64_u32 {
        let bit = |nr: u32| bits >> nr & 1 == 1;
        for failback in failbacks {
            for peer_well_since in well {
                for went in went {
                    for retry_at in retry {
                        for refusal in refusals {
                            let wish = Wish {
                                failback,
                                manual: bit(0),
                                ..wish()
                            };
                            let facts = Facts {
                                by_hand: bit(1),
                                maintenance: bit(2),
                                lossy: bit(3),
                                peer_well_since,
                                blocker: bit(4).then_some(Blocker::Undecided),
                                busy: bit(5).then_some(Busy::Verify),
                                ..ready()
                            };
                            let memory = Memory {
                                went: went.to_vec(),
                                retry_at,
                                refusal,
                                ..Memory::default()
                            };
                            let mut placement = Placement::default();
                            placement.memories.insert(RES, memory);
                            let found = standing(&placement, &wish, &facts, now);
                            let against =
                                speaks_against(&wish, &facts, went, retry_at, refusal, now);
                            seen += 1;
                            match found {
                                Standing::Due => {
                                    due_seen += 1;
                                    assert!(against.is_empty(), "{against:?}");
                                }
                                Standing::Stays(stay) => {
                                    assert!(against.contains(&stay.word()), "{stay:?} {against:?}");
                                }
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(seen, 64 * 4 * 3 * 5 * 3 * 4);
    assert!(due_seen > 0);
}

fn speaks_against(
    wish: &Wish,
    facts: &Facts,
    went: &[u64],
    retry_at: Option<Instant>,
    refusal: Option<Refusal>,
    clocks: Clocks,
) -> Vec<&'static str> {
    let mut against = Vec::new();
    let mut add = |speaks: bool, word| against.extend(speaks.then_some(word));
    add(wish.failback == Failback::Never, "never");
    add(wish.manual, "manual");
    add(facts.by_hand, "by-hand");
    add(facts.maintenance, "maintenance");
    add(facts.lossy, "lossy");
    add(facts.peer_well_since.is_none(), "not-ready");
    let waited = facts.peer_well_since.map(|since| clocks.now.since(since));
    add(waited.is_some_and(|it| it < wish.hold_down), "hold-down");
    let shut = matches!(wish.failback, Failback::Window(window)
        if window.opens_in(clocks.unix_seconds) > Duration::ZERO);
    add(shut, "window");
    let counted = went.iter().filter(|went| {
        let age = clocks.unix_seconds.saturating_sub(**went);
        seconds(age) < FLAP_WINDOW
    });
    add(counted.count() >= FAILBACKS_MAX, "flap-limit");
    add(retry_at.is_some_and(|it| it > clocks.now), "back-off");
    if let Some(it) = refusal {
        let counts = [3, 6, 12, 24, 48, 60, 60, 60, 60][it.times as usize - 1];
        let fresh = clocks.now.since(it.at) < seconds(counts);
        add(fresh, Stay::PeerAway(it.why).word());
    }
    add(facts.blocker.is_some(), "blocked");
    add(facts.busy.is_some(), "busy");
    against
}

proptest! {
    /// Whatever happens to hosts and moves, in whatever order: a move back begins at most three times
    /// in any day, never two at once, never before the hold-down; and once its host stays well, nothing
    /// fails any more and the limit is not reached, it is home.
    #[test]
    fn no_ping_pong_and_home_in_the_end(
        steps in prop::collection::vec((0..2_usize, 0..4_u8, 1..4_000_u64), 1..300),
    ) {
        let ids = [ResourceId(1), ResourceId(2)];
        let wish = wish();
        let mut placement = Placement::default();
        let mut well = [None, None];
        let mut here = [true, true];
        let mut went: [Vec<u64>; 2] = Default::default();
        let mut now = 0;
        let facts = |well: Option<u64>, serves| Facts {
            serves,
            peer_well_since: well.map(|second| at(second).now),
            ..ready()
        };
        let one_turn = |placement: &mut Placement, well: &[Option<u64>; 2], here: &mut [bool; 2],
                            went: &mut [Vec<u64>; 2], now: u64, works: bool| {
            let due = (0..2).filter(|nr| {
                let facts = facts(well[*nr], here[*nr]);
                placement.standing(NodeId::B, ids[*nr], &wish, &facts, at(now)) == Standing::Due
            });
            let due: Vec<_> = due.map(|nr| (ids[nr], 10)).collect();
            let Some(id) = placement.next(due.into_iter(), at(now).now) else { return };
            let nr = usize::from(id == ids[1]);
            assert!(well[nr].is_some_and(|since| now - since >= 600), "before the hold-down");
            placement.begin(id, at(now));
            assert_eq!(placement.next([(ids[1 - nr], 0)].into_iter(), at(now).now), None);
            let ended = if works { Ended::Home } else { Ended::Failed };
            placement.end(id, ended, at(now));
            went[nr].push(now);
            here[nr] = !works;
            // One that failed may have left all the same, and was taken over again.
            placement.note_gone(id);
        };
        for (nr, what, pause) in steps {
            match what {
                // Its host fails: it is served here.
                0 => (well[nr], here[nr]) = (None, true),
                1 => well[nr] = Some(well[nr].unwrap_or(now)),
                _ => one_turn(&mut placement, &well, &mut here, &mut went, now, what == 2),
            }
            now += pause;
        }
        well = [Some(now), Some(now)];
        let limited = |went: &Vec<u64>, now: u64| {
            went.iter().filter(|it| now - **it < FLAP_WINDOW.as_secs()).count() >= FAILBACKS_MAX
        };
        let end = now + 2 * BACK_OFF_MAX.as_secs();
        while now < end {
            one_turn(&mut placement, &well, &mut here, &mut went, now, true);
            now += 300;
        }
        for nr in 0..2 {
            let times = &went[nr];
            for window in times.windows(FAILBACKS_MAX + 1) {
                prop_assert!(window[FAILBACKS_MAX] - window[0] >= FLAP_WINDOW.as_secs());
            }
            prop_assert!(!here[nr] || limited(times, now - 600), "left behind: {times:?}");
        }
    }
}
