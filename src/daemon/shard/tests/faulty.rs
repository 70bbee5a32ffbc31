//! A backend whose data disks do what the test says.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use replicator::io::{
    Backend, BackendKind, Completion, Op, OpKey, Portable, Socket, Token, Wait, Waker, clock,
};

use crate::daemon::shard::Surroundings;
use crate::daemon::shard::token::Owner;

/// What is wrong with the data disks.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Operations on them do not end.
    hold: AtomicBool,
    /// Flushes of them fail, at once.
    fail_flushes: AtomicBool,
    /// Only of files this long; 0: of all.
    only_len: AtomicU64,
}

impl Faults {
    pub(super) fn hold(&self, held: bool) {
        self.hold.store(held, Ordering::Release);
    }

    pub(super) fn fail_flushes(&self) {
        self.fail_flushes.store(true, Ordering::Release);
    }

    /// Of the disk that is so long.
    pub(super) fn fail_flushes_of(&self, len: u64) {
        self.only_len.store(len, Ordering::Release);
        self.fail_flushes();
    }

    fn fails(&self, op: &Op) -> bool {
        let Op::Sync { file } = op else {
            return false;
        };
        let only = self.only_len.load(Ordering::Acquire);
        let len = || fstat(file).unwrap().st_size.unsigned_abs();
        self.fail_flushes.load(Ordering::Acquire) && (only == 0 || only == len())
    }

    /// A machine with such disks.
    pub(super) fn surroundings(self: &Arc<Self>) -> Surroundings {
        let faults = Arc::clone(self);
        let make = move || -> Result<Box<dyn Backend>, Errno> {
            let inner = Portable::new()?;
            let held = Vec::new();
            Ok(Box::new(Faulty {
                inner,
                faults,
                held,
            }))
        };
        Surroundings {
            backend: Box::new(make),
            suspended: Box::new(clock::suspended),
            ..Surroundings::real()
        }
    }
}

struct Faulty {
    inner: Portable,
    faults: Arc<Faults>,
    held: Vec<Completion>,
}

impl Backend for Faulty {
    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn adopt(&self, fd: OwnedFd) -> Result<Socket, Errno> {
        self.inner.adopt(fd)
    }

    fn submit(&mut self, token: Token, op: Op) -> OpKey {
        self.inner.submit(token, op)
    }

    fn cancel(&mut self, key: OpKey) {
        self.inner.cancel(key);
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Errno> {
        let mut ended = Vec::new();
        self.inner.turn(wait, &mut ended)?;
        for mut completion in ended {
            let owner = Owner::of(completion.token);
            let of_disk = matches!(owner, Some(Owner::Disk(_) | Owner::Extents(_)));
            if of_disk && self.faults.fails(&completion.op) {
                completion.result = Err(Errno::EIO);
                done.push(completion);
            } else if of_disk && self.faults.hold.load(Ordering::Acquire) {
                self.held.push(completion);
            } else {
                done.push(completion);
            }
        }
        if !self.faults.hold.load(Ordering::Acquire) {
            done.append(&mut self.held);
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }
}
