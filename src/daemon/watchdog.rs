//! Whether the data path's thread still turns.
//!
//! A thread that waits for work and one that is stuck in a system call look the same from outside,
//! so it is poked: whoever waits makes a turn, whoever hangs does not. A daemon whose data path
//! hangs must not go on sending beacons, or its peer would never take over.

use core::time::Duration;

use replicator::types::Instant;

/// How often it is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So many looks in a row without a turn, and it hangs. Looks are counted, not seconds: of a
/// process that was stopped, both threads stood still.
pub(super) const HUNG_LOOKS: u32 = 10;

/// What one look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It turned since the last look, or it is not time to look yet.
    Fine,
    /// It did not: wake it, and see.
    Poke,
    /// It was poked often enough.
    Hung,
}

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watchdog {
    looked: Option<Instant>,
    turns: u64,
    pokes: u32,
}

impl Watchdog {
    /// Looks, if it is time to: `turns` is the number of turns the thread has made.
    pub(super) fn look(&mut self, now: Instant, turns: u64) -> Verdict {
        if self
            .looked
            .is_some_and(|looked| now.since(looked) < LOOK_EVERY)
        {
            return Verdict::Fine;
        }
        self.looked = Some(now);
        if turns != self.turns {
            self.turns = turns;
            self.pokes = 0;
            return Verdict::Fine;
        }
        self.pokes += 1;
        if self.pokes > HUNG_LOOKS {
            Verdict::Hung
        } else {
            Verdict::Poke
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verdicts of looks a second apart at a thread that answers pokes as `answers` says.
    fn watch(seconds: u32, answers: impl Fn(u32) -> bool) -> Vec<Verdict> {
        let (mut dog, mut turns) = (Watchdog::default(), 0);
        let mut verdicts = Vec::new();
        for second in 0..seconds {
            let now = Instant::ZERO.plus(LOOK_EVERY * second);
            let verdict = dog.look(now, turns);
            if verdict == Verdict::Poke && answers(second) {
                turns += 1;
            }
            verdicts.push(verdict);
        }
        verdicts
    }

    #[test]
    fn a_thread_that_waits_is_poked_now_and_then_and_left_alone() {
        let verdicts = watch(100, |_| true);
        assert!(!verdicts.contains(&Verdict::Hung));
        let pokes = verdicts.iter().filter(|it| **it == Verdict::Poke).count();
        assert_eq!(pokes, 50, "an idle one is woken every other second");
    }

    #[test]
    fn a_thread_that_answers_no_poke_hangs() {
        let verdicts = watch(20, |second| second < 5);
        let hung = verdicts.iter().position(|it| *it == Verdict::Hung);
        assert_eq!(hung, Some(5 + 1 + 10));
    }

    #[test]
    fn a_thread_that_is_slow_once_does_not() {
        let verdicts = watch(100, |second| second % 9 == 0);
        assert!(!verdicts.contains(&Verdict::Hung));
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_is_judged_by_looks() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.look(Instant::ZERO, 0), Verdict::Poke);
        let later = Instant::ZERO.plus(Duration::from_secs(3600));
        assert_eq!(dog.look(later, 0), Verdict::Poke);
        assert_eq!(dog.look(later, 0), Verdict::Fine, "not again at once");
        assert_eq!(dog.look(later.plus(LOOK_EVERY), 1), Verdict::Fine);
    }
}
