//! Waiting that Ctrl-C ends.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::error::DemoError;
use crate::clock::now;

/// How often a state is looked at while waiting for it.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Set once SIGINT or SIGTERM arrived.
#[derive(Clone)]
pub(super) struct Interrupt {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Interrupt {
    /// Takes SIGINT and SIGTERM over for the whole process. To be called before any thread starts:
    /// threads inherit the mask that keeps these signals for the one that waits for them.
    pub(super) fn on_signals() -> Result<Self, DemoError> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals
            .thread_block()
            .map_err(|error| DemoError::io("blocking signals", error.into()))?;
        let interrupt = Self::never();
        let shared = Arc::clone(&interrupt.shared);
        thread::spawn(move || {
            // An error means the set is invalid, which it is not; then Ctrl-C does nothing.
            if signals.wait().is_ok() {
                *lock(&shared.0) = true;
                shared.1.notify_all();
            }
        });
        Ok(interrupt)
    }

    /// One that no signal sets.
    pub(super) fn never() -> Self {
        Self {
            shared: Arc::new((Mutex::new(false), Condvar::new())),
        }
    }

    /// Waits for `time`; an error as soon as the demo was interrupted.
    pub(super) fn wait(&self, time: Duration) -> Result<(), DemoError> {
        let (flag, changed) = &*self.shared;
        let (set, _) = changed
            .wait_timeout_while(lock(flag), time, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner);
        if *set {
            Err(DemoError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Looks again and again until `look` finds something, for at most `limit`.
    pub(super) fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>, DemoError>,
    ) -> Result<T, DemoError> {
        let deadline = now() + limit;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if now() >= deadline {
                return Err(DemoError::Waited {
                    what: what.to_owned(),
                    limit,
                });
            }
            self.wait(POLL_EVERY)?;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_what_was_found_or_at_its_limit() {
        let interrupt = Interrupt::never();
        let mut looks = 0;
        let found = interrupt.wait_for("three looks", Duration::from_secs(10), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert!(matches!(found, Ok(3)));
        let never = interrupt.wait_for("nothing", Duration::ZERO, || Ok(None::<()>));
        assert!(matches!(never, Err(DemoError::Waited { .. })));
    }

    #[test]
    fn an_interrupt_ends_waiting_at_once() {
        let interrupt = Interrupt::never();
        *lock(&interrupt.shared.0) = true;
        assert!(matches!(
            interrupt.wait(Duration::from_secs(600)),
            Err(DemoError::Interrupted)
        ));
    }
}
