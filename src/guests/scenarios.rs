//! One host's guest, story by story.

use core::time::Duration;

use replicator::types::Instant;

use super::*;
use crate::controller::lease::Timing;

const SECOND: Duration = Duration::from_secs(1);

/// A guest with a scripted host around it: every order of the hypervisor is kept until the test
/// answers it.
struct Host {
    guest: Guest,
    now: Instant,
    vm: Option<ProcessId>,
    domain: DomainState,
    made: u64,
    /// Whether a look finds its guardian; `None`: it is not looked for.
    guardian: Option<bool>,
    asked: Option<(OrderId, Order)>,
    signals: Vec<Order>,
}

impl Host {
    fn new(starts: bool) -> Self {
        let settings = GuestSettings {
            starts,
            on_demote: vec![StopStep::Shutdown(60 * SECOND), StopStep::Destroy],
            timing: GuestTiming::of(&Timing::DEFAULT),
        };
        let now = Instant(1_000_000_000_000);
        let mut host = Self {
            guest: Guest::new(settings, now),
            now,
            vm: None,
            domain: DomainState::Off(Ended::Never),
            made: 0,
            guardian: None,
            asked: None,
            signals: Vec::new(),
        };
        host.tell(|guest, now, out| guest.handle_tick(now, out));
        host
    }

    /// Primary, after the first look found nothing.
    fn primary(entry: Entry) -> Self {
        let mut host = Self::new(true);
        host.answers(Order::Look);
        host.stands(tenure(1, entry, None));
        host
    }

    /// The guest runs and is guarded.
    fn running() -> Self {
        let mut host = Self::primary(Entry::Vacated);
        host.starts();
        host
    }

    fn starts(&mut self) {
        self.answers(Order::Create);
        let vm = self.vm.unwrap();
        self.answers(Order::Guard(vm));
        self.answers(Order::Resume);
        assert_eq!(self.guest.state(), State::Running { unguarded: None });
    }

    fn tell(&mut self, what: impl FnOnce(&mut Guest, Instant, &mut Vec<(OrderId, Order)>)) {
        let mut out = Vec::new();
        what(&mut self.guest, self.now, &mut out);
        for (id, order) in out {
            match order {
                Order::Freeze(_) | Order::Thaw(_) | Order::Kill(_) => self.signals.push(order),
                asked => {
                    assert_eq!(self.asked, None, "one at a time");
                    self.asked = Some((id, asked));
                }
            }
        }
    }

    fn stands(&mut self, standing: Standing) {
        self.tell(|guest, now, out| guest.handle_standing(now, standing, out));
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.tell(|guest, now, out| guest.handle_tick(now, out));
    }

    #[track_caller]
    fn answers_with(&mut self, order: Order, result: Result<(), Fault>) {
        let asked = self.asked.take();
        let Some((id, _)) = asked.filter(|(_, asked)| *asked == order) else {
            panic!(
                "{asked:?} was asked, not {order:?}; {:?}",
                self.guest.state()
            );
        };
        if result.is_ok() {
            match order {
                Order::Create => {
                    self.made += 1;
                    self.vm = Some(ProcessId {
                        pid: 7,
                        start: self.made,
                    });
                    // libvirt's word for it is the same as for somebody's wish.
                    self.domain = DomainState::Paused(PauseReason::Other);
                }
                Order::Resume => self.domain = DomainState::Running,
                Order::Destroy => self.ends(Ended::ByHand),
                _ => {}
            }
        }
        let seen = Seen {
            process: self.vm,
            domain: Ok(self.domain),
            guarded: self.guardian,
        };
        self.tell(|guest, now, out| guest.handle_done(now, id, result, seen, out));
    }

    #[track_caller]
    fn answers(&mut self, order: Order) {
        self.answers_with(order, Ok(()));
    }

    fn ends(&mut self, how: Ended) {
        self.domain = DomainState::Off(how);
        if let Some(gone) = self.vm.take() {
            self.tell(|guest, now, out| guest.handle_exit(now, gone, out));
        }
    }

    fn took_signals(&mut self) -> Vec<Order> {
        core::mem::take(&mut self.signals)
    }
}

fn tenure(number: u64, entry: Entry, lease: Option<Instant>) -> Standing {
    let taken = if entry == Entry::Own { 0 } else { number };
    Standing::Primary(Tenure {
        number,
        taken,
        entry,
        serves: true,
        lease,
    })
}

const SUPERSEDED: Standing = Standing::Away { superseded: true };
const INACTIVE: Standing = Standing::Away { superseded: false };

/// The other host was lost: its guest may still run for κ, so ours waits that long.
#[test]
fn after_a_takeover_the_guest_waits_for_the_fence() {
    let mut host = Host::primary(Entry::Taken);
    assert!(matches!(host.guest.state(), State::WaitingForFence { .. }));
    host.wait(SECOND);
    // Not a moment too early: it only looks.
    host.answers(Order::Look);
    assert_eq!(host.asked, None);
    host.wait(SECOND / 10);
    host.starts();
}

/// The other host gave it away by order, its guest stopped: nothing to wait for.
#[test]
fn after_an_orderly_change_the_guest_starts_at_once() {
    let mut host = Host::primary(Entry::Vacated);
    host.starts();
}

/// It never runs unguarded: made paused, and left so while there is no guardian.
#[test]
fn a_guest_without_a_guardian_stays_paused() {
    let mut host = Host::primary(Entry::Vacated);
    host.answers(Order::Create);
    let vm = host.vm.unwrap();
    host.answers_with(
        Order::Guard(vm),
        Err(Fault::NoGuardian("no memory".to_owned())),
    );
    assert_eq!(host.asked, None);
    assert!(matches!(host.guest.state(), State::WaitingToRetry { .. }));
    host.wait(5 * SECOND);
    host.answers(Order::Guard(vm));
    host.answers(Order::Resume);
}

/// A short silence of the peer is not noticed, a longer one freezes, the lease's return thaws, and
/// what lasts as long as the successor waits kills.
#[test]
fn a_lost_lease_freezes_then_kills_and_one_that_returns_thaws() {
    let mut host = Host::running();
    let vm = host.vm.unwrap();
    let end = host.now.plus(SECOND);
    host.stands(tenure(1, Entry::Vacated, Some(end)));
    host.wait(SECOND * 12 / 10);
    assert_eq!(host.took_signals(), []);
    host.wait(SECOND / 10);
    assert_eq!(host.took_signals(), [Order::Freeze(vm)]);
    assert_eq!(host.guest.state(), State::Frozen);
    let end = host.now.plus(SECOND);
    host.stands(tenure(1, Entry::Vacated, Some(end)));
    assert_eq!(host.took_signals(), [Order::Thaw(vm)]);
    host.wait(SECOND * 15 / 10);
    assert_eq!(host.took_signals(), [Order::Kill(vm)]);
    assert_eq!(host.guest.state(), State::Killing(KillReason::LeaseOver));
}

/// A libvirt that hangs has the order it was given; the signals do not wait behind it.
#[test]
fn a_hung_hypervisor_delays_no_kill() {
    let mut host = Host::running();
    let vm = host.vm.unwrap();
    host.wait(6 * SECOND);
    assert!(
        matches!(host.asked, Some((_, Order::Look))),
        "and no answer"
    );
    host.stands(SUPERSEDED);
    assert_eq!(host.took_signals(), [Order::Kill(vm)]);
}

/// Both outcomes of `secondary`: the guest goes when asked, or is ended after its time.
#[test]
fn an_order_stops_the_guest_as_configured() {
    let mut host = Host::running();
    host.tell(|guest, now, out| guest.handle_stop(now, Stop::Asked, out));
    host.answers(Order::Shutdown);
    assert!(!host.guest.is_stopped());
    host.ends(Ended::ByHand);
    assert!(host.guest.is_stopped());
    host.answers(Order::Look);
    host.wait(10 * SECOND);
    assert!(
        !matches!(host.asked, Some((_, Order::Create))),
        "it stays off"
    );

    let mut host = Host::running();
    host.tell(|guest, now, out| guest.handle_stop(now, Stop::Asked, out));
    host.answers(Order::Shutdown);
    host.wait(60 * SECOND);
    host.answers(Order::Destroy);
    assert!(host.guest.is_stopped());
}

/// `destroy` is meant: when the hypervisor cannot, the kernel does.
#[test]
fn a_destroy_that_fails_becomes_a_kill() {
    let mut host = Host::running();
    let vm = host.vm.unwrap();
    host.tell(|guest, now, out| guest.handle_stop(now, Stop::Asked, out));
    host.answers(Order::Shutdown);
    host.wait(60 * SECOND);
    host.answers_with(Order::Destroy, Err(Fault::TimedOut));
    assert_eq!(host.took_signals(), [Order::Kill(vm)]);
}

/// The order was refused after all: what it stopped starts again.
#[test]
fn a_guest_stopped_for_nothing_starts_again() {
    let mut host = Host::running();
    host.tell(|guest, now, out| guest.handle_stop(now, Stop::Asked, out));
    host.answers(Order::Shutdown);
    host.ends(Ended::ByHand);
    host.answers(Order::Look);
    host.tell(|guest, now, out| guest.handle_stop(now, Stop::No, out));
    host.starts();
}

/// Five tries with growing pauses, then somebody has to look. A new activation tries anew.
#[test]
fn a_guest_that_does_not_start_is_blocked_after_some_tries() {
    let mut host = Host::primary(Entry::Vacated);
    let fault = Fault::Said("no such machine type".to_owned());
    for _ in 0..STARTS_MAX {
        while !matches!(host.asked, Some((_, Order::Create))) {
            if host.asked.is_some() {
                host.answers(Order::Look);
            }
            host.wait(SECOND);
        }
        host.answers_with(Order::Create, Err(fault.clone()));
    }
    let blocked = State::Blocked(Blocked::StartFailed(fault));
    assert_eq!(host.guest.state(), blocked);
    for _ in 0..100 {
        host.wait(SECOND);
        assert!(!matches!(host.asked, Some((_, Order::Create))));
    }
    if host.asked.is_some() {
        host.answers(Order::Look);
    }
    host.stands(tenure(2, Entry::Vacated, None));
    host.starts();
}

/// A crash inside is no failover: it is started again here, but not for ever.
#[test]
fn a_guest_that_crashes_is_started_here_until_it_flaps() {
    let mut host = Host::running();
    for _ in 0..CRASHES_MAX {
        host.ends(Ended::Crashed);
        host.answers(Order::Look);
        host.starts();
    }
    host.ends(Ended::Crashed);
    host.answers(Order::Look);
    assert_eq!(host.guest.state(), State::Blocked(Blocked::Flapping));
}

/// Switched off from within, or by its administrator: that was meant.
#[test]
fn a_guest_that_was_switched_off_stays_off() {
    let mut host = Host::running();
    host.ends(Ended::ByHand);
    host.answers(Order::Look);
    assert_eq!(host.guest.state(), State::OffByHand);
    host.wait(20 * SECOND);
    host.answers(Order::Look);
    assert_eq!(host.asked, None);
}

/// A daemon that is started again finds its guest: guarded, not made twice, never paused.
#[test]
fn a_guest_that_runs_already_is_adopted() {
    let mut host = Host::new(true);
    let vm = ProcessId { pid: 9, start: 9 };
    (host.vm, host.domain) = (Some(vm), DomainState::Running);
    host.answers(Order::Look);
    host.stands(tenure(1, Entry::Own, None));
    host.answers(Order::Guard(vm));
    assert_eq!(host.guest.state(), State::Running { unguarded: None });
    // The life before may have been killed while the guest was frozen.
    assert_eq!(host.took_signals(), [Order::Thaw(vm)]);
}

/// A guardian that died is missed at the next look, and another one is started.
#[test]
fn a_guest_gets_another_guardian_when_its_own_died() {
    let mut host = Host::new(true);
    let vm = ProcessId { pid: 9, start: 9 };
    (host.vm, host.domain) = (Some(vm), DomainState::Running);
    host.answers(Order::Look);
    host.stands(tenure(1, Entry::Own, None));
    host.guardian = Some(true);
    host.answers(Order::Guard(vm));
    host.wait(20 * SECOND);
    host.guardian = Some(false);
    host.answers(Order::Look);
    host.guardian = Some(true);
    host.answers(Order::Guard(vm));
    assert_eq!(host.guest.state(), State::Running { unguarded: None });
}

/// The same, but the volume was another node's meanwhile: its memory is of a past that is gone.
#[test]
fn a_left_over_of_before_another_nodes_turn_is_killed() {
    for standing in [SUPERSEDED, tenure(1, Entry::Taken, None)] {
        let mut host = Host::new(true);
        let vm = ProcessId { pid: 9, start: 9 };
        (host.vm, host.domain) = (Some(vm), DomainState::Running);
        host.stands(standing);
        host.answers(Order::Look);
        assert_eq!(host.took_signals(), [Order::Kill(vm)]);
    }
}

/// Its making was given up on, the host was superseded, and then it appears.
#[test]
fn a_guest_that_appears_late_is_killed_where_the_volume_is_not() {
    let mut host = Host::primary(Entry::Vacated);
    host.answers_with(Order::Create, Err(Fault::TimedOut));
    host.stands(SUPERSEDED);
    let vm = ProcessId { pid: 9, start: 9 };
    (host.vm, host.domain) = (Some(vm), DomainState::Paused(PauseReason::Starting));
    host.wait(20 * SECOND);
    host.answers(Order::Look);
    assert_eq!(host.took_signals(), [Order::Kill(vm)]);
}

/// What somebody starts where the volume is not served reads nothing of it: not our business.
#[test]
fn a_guest_that_others_start_elsewhere_is_left_alone() {
    let mut host = Host::new(true);
    host.answers(Order::Look);
    host.stands(SUPERSEDED);
    (host.vm, host.domain) = (Some(ProcessId { pid: 9, start: 9 }), DomainState::Running);
    host.wait(20 * SECOND);
    host.answers(Order::Look);
    host.wait(20 * SECOND);
    assert_eq!(host.took_signals(), []);
}

/// `on-failover = "leave"`: never started by us, and yet never left on a superseded host.
#[test]
fn a_guest_to_be_left_is_not_started_but_killed_all_the_same() {
    let mut host = Host::new(false);
    host.answers(Order::Look);
    host.stands(tenure(1, Entry::Vacated, None));
    host.wait(6 * SECOND);
    assert_eq!(host.guest.state(), State::Left);
    let vm = ProcessId { pid: 9, start: 9 };
    (host.vm, host.domain) = (Some(vm), DomainState::Running);
    host.answers(Order::Look);
    host.answers(Order::Guard(vm));
    host.stands(INACTIVE);
    host.wait(SECOND / 2);
    assert_eq!(host.took_signals(), [Order::Freeze(vm)]);
    host.stands(SUPERSEDED);
    assert_eq!(host.took_signals(), [Order::Kill(vm)]);
}

/// An I/O error paused it (`error_policy='stop'`); the volume is served, so it goes on.
#[test]
fn a_guest_paused_by_an_io_error_goes_on_and_one_paused_by_hand_does_not() {
    let mut host = Host::running();
    host.wait(6 * SECOND);
    host.domain = DomainState::Paused(PauseReason::IoError);
    host.answers(Order::Look);
    host.answers(Order::Resume);
    host.wait(6 * SECOND);
    host.domain = DomainState::Paused(PauseReason::Other);
    host.answers(Order::Look);
    assert_eq!(host.asked, None);
    assert_eq!(host.guest.state(), State::Paused(PauseReason::Other));
}
