//! Who may use the machine: two cores are few, and some tests measure time.

use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Tests that measure time or keep both cores busy, by the beginning of their names: each alone.
const ALONE: &[&str] = &[
    "demo::",
    "failover::",
    "guest::",
    "guests::",
    "isolation::",
    "libvirt::",
    "nbd_abuse::",
    "protocols::under_a_writes",
    "resync_orders::",
];

/// So many of the others at once: most of the time they wait for a disk or for a second to pass.
const AT_ONCE: usize = 2;

static MACHINE: RwLock<()> = RwLock::new(());
static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// The right to run a cluster, until it is dropped.
pub(crate) struct Turn {
    _use: Use,
}

#[allow(dead_code, reason = "held, and dropped in this order")]
enum Use {
    Alone(RwLockWriteGuard<'static, ()>),
    Shared(RwLockReadGuard<'static, ()>, Place),
}

impl Turn {
    /// The turn of the test that this thread runs.
    pub(crate) fn take() -> Self {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or_default();
        let _use = if ALONE.iter().any(|one| test.starts_with(one)) {
            Use::Alone(MACHINE.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            // The place first: who waits for it keeps nobody from being alone.
            let place = Place::take();
            let machine = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
            Use::Shared(machine, place)
        };
        Self { _use }
    }
}

struct Place;

impl Place {
    fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = GIVEN_BACK
            .wait_while(taken, |taken| *taken == AT_ONCE)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        GIVEN_BACK.notify_one();
    }
}
