use proptest::prelude::*;

use super::*;

const TARGET: Duration = Duration::from_millis(10);
const MIB: u64 = 1 << 20;

/// Disks and a link as guests feel them: a write takes `idle`, and the longer the nearer the copying
/// comes to what they can do.
struct Model {
    throttle: Throttle,
    now: Instant,
    moved: u64,
    /// Bytes a second that can be copied at all.
    most: u64,
    idle: Duration,
    /// Guest writes a second.
    writes: u64,
}

impl Model {
    fn new(most: u64, idle: Duration, writes: u64) -> Self {
        let mut throttle = Throttle::new();
        throttle.begin_window(Instant::ZERO, 0);
        Self {
            throttle,
            now: Instant::ZERO,
            moved: 0,
            most,
            idle,
            writes,
        }
    }

    fn rate(&self) -> u64 {
        let pace = self.throttle.advice.pace;
        pace.map_or(self.most, |pace| pace.get().min(self.most))
    }

    /// As in a queue: twice as long when half of it is used, twenty times when all is.
    fn latency(&self) -> Duration {
        let used = self.rate() * 100 / self.most;
        self.idle * 100 / u32::try_from(105 - used).unwrap()
    }

    fn window(&mut self) {
        let quarter = Engine::THROTTLE_WINDOW;
        for _ in 0..self.writes / 4 {
            self.throttle.note(self.latency());
        }
        self.now = self.now.plus(quarter);
        self.moved += self.rate() / 4 / BLOCK_LEN;
        self.throttle
            .turn(self.now, TARGET, self.moved, Duration::ZERO);
    }

    fn seconds(&mut self, seconds: u64) {
        (0..4 * seconds).for_each(|_| self.window());
    }
}

#[test]
fn nothing_is_held_back_that_guests_do_not_feel() {
    for writes in [0, 4, 10_000] {
        let mut model = Model::new(500 * MIB, Duration::from_micros(4), writes);
        for _ in 0..100 {
            model.window();
            assert_eq!(model.throttle.advice.pace, None, "{writes}");
        }
    }
}

/// 1 ms idle and 20 ms at full speed: nearly always guests are within the target, and most of what that
/// leaves is used.
#[test]
fn guests_stay_within_the_target_and_the_rest_is_used() {
    let mut model = Model::new(500 * MIB, Duration::from_millis(1), 400);
    model.seconds(3);
    let (mut slow, mut copied) = (0, 0);
    for _ in 0..400 {
        model.window();
        slow += u32::from(model.latency() > TARGET);
        copied += model.rate() / 4;
    }
    // 10 ms are reached at 95 of 100.
    assert!(slow < 50, "{slow} windows of 400");
    assert!(copied / 100 > 500 * MIB / 2, "{} MiB/s", copied / 100 / MIB);
}

#[test]
fn it_goes_at_full_speed_again_when_guests_are_idle() {
    let mut model = Model::new(500 * MIB, Duration::from_millis(1), 400);
    model.seconds(10);
    assert!(model.throttle.advice.pace.is_some());
    model.writes = 0;
    model.seconds(3);
    assert_eq!(model.throttle.advice.pace, None);
}

/// Slow disks: the target is out of reach whether something is copied or not.
#[test]
fn what_guests_wait_for_anyhow_holds_nothing_back_for_long() {
    let mut model = Model::new(100 * MIB, Duration::from_millis(30), 100);
    model.seconds(10);
    let (mut copied, mut slow) = (0, 0);
    for _ in 0..480 {
        model.window();
        copied += model.rate() / 4;
        slow += u32::from(model.latency() > Duration::from_millis(60));
    }
    assert!(copied / 120 > 12 * MIB, "{} MiB/s", copied / 120 / MIB);
    assert!(slow < 48, "{slow} windows of 480");
}

/// One write of eight seconds is no reason to take eight seconds for what guests are used to.
#[test]
fn what_guests_wait_for_anyhow_is_forgotten_when_they_wait_for_less() {
    let mut model = Model::new(500 * MIB, Duration::from_millis(1), 400);
    model.throttle.anyhow = Some(Duration::from_secs(10));
    model.seconds(40);
    assert_eq!(model.throttle.anyhow, None);
    assert!(model.rate() < 500 * MIB);
}

/// A database syncs every two seconds, whatever is copied.
#[test]
fn a_guest_that_is_slow_by_itself_now_and_then_holds_nothing_back_for_ever() {
    let mut model = Model::new(500 * MIB, Duration::from_micros(100), 400);
    let mut fastest = 0;
    for window in 0..1200 {
        let own = if window % 8 == 0 { 60 } else { 0 };
        model.idle = Duration::from_micros(100) + Duration::from_millis(own);
        model.window();
        if window > 600 {
            fastest = fastest.max(model.rate());
        }
    }
    assert!(fastest > 100 * MIB, "{}", fastest / MIB);
}

/// Guests are held by an order: nobody feels anything.
#[test]
fn what_nobody_feels_holds_nothing_back() {
    let mut model = Model::new(500 * MIB, Duration::from_millis(1), 400);
    model.seconds(10);
    assert!(model.throttle.advice.pace.is_some());
    for _ in 0..12 {
        model.now = model.now.plus(Engine::THROTTLE_WINDOW);
        model.moved += model.rate() / 4 / BLOCK_LEN;
        model.throttle.turn_unfelt(model.now, model.moved);
    }
    assert_eq!(model.throttle.advice.pace, None);
}

#[test]
fn a_write_that_does_not_end_is_felt_before_it_ends() {
    let mut model = Model::new(500 * MIB, Duration::from_micros(100), 0);
    let step = |model: &mut Model, waiting: u64| {
        model.now = model.now.plus(Engine::THROTTLE_WINDOW);
        model.moved += model.rate() / 4 / BLOCK_LEN;
        let waiting = Duration::from_millis(waiting);
        model.throttle.turn(model.now, TARGET, model.moved, waiting)
    };
    assert!(!step(&mut model, 9));
    assert!(step(&mut model, 260));
    assert_eq!(model.throttle.advice.latency, Duration::from_millis(260));
    let pace = model.throttle.advice.pace.unwrap().get();
    assert!((340 * MIB..351 * MIB).contains(&pace), "{pace}");
    // Once, until it shows what that was good for.
    assert!(!step(&mut model, 510));
    assert!(step(&mut model, 760));
}

proptest! {
    /// Against sorting them, within a quarter of an octave.
    #[test]
    fn the_percentile_is_that_of_the_sorted_latencies(
        mut micros in prop::collection::vec(1_u64..10_000_000, 1..400),
    ) {
        let mut latencies = Latencies::EMPTY;
        for one in &micros {
            latencies.note(Duration::from_micros(*one));
        }
        micros.sort_unstable();
        // The smallest that at most one of a hundred passes.
        let exact = micros[micros.len() - 1 - micros.len() / 100];
        let found = latencies.p99().unwrap();
        prop_assert!(found >= Duration::from_micros(exact));
        prop_assert!(found <= Duration::from_micros(exact * 5 / 4 + 4), "{found:?} of {exact}");
    }

    /// Whatever is felt: it goes on, and never faster than the numbers can say.
    #[test]
    fn a_resync_always_goes_on(felt in prop::collection::vec((0_u64..100_000, 0_u64..1 << 40), 1..200)) {
        let mut throttle = Throttle::new();
        throttle.begin_window(Instant::ZERO, 0);
        let mut now = Instant::ZERO;
        for (waiting, moved) in felt {
            now = now.plus(Engine::THROTTLE_WINDOW);
            throttle.turn(now, TARGET, moved, Duration::from_micros(waiting));
            let pace = throttle.advice.pace.map_or(u64::MAX, NonZeroU64::get);
            prop_assert!(pace >= Throttle::FLOOR);
        }
    }
}
