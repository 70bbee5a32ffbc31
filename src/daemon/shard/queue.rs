//! How other threads reach the shard.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use replicator::io::Waker;

use crate::daemon::api::{SHARD_COMMANDS_MAX, ShardCommand, ShardHandle};

/// The shard's bounded command queue and its wake-up.
#[derive(Debug)]
pub struct ShardQueue {
    commands: Mutex<VecDeque<ShardCommand>>,
    waker: Waker,
    turns: AtomicU64,
}

impl ShardQueue {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            commands: Mutex::default(),
            waker,
            turns: AtomicU64::new(0),
        }
    }

    /// All commands waiting, in order.
    pub(super) fn take(&self) -> VecDeque<ShardCommand> {
        let mut commands = self.lock();
        if commands.is_empty() {
            VecDeque::new()
        } else {
            std::mem::take(&mut commands)
        }
    }

    pub(super) fn note_turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<ShardCommand>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShardHandle for ShardQueue {
    fn send(&self, command: ShardCommand) {
        let mut commands = self.lock();
        assert!(
            commands.len() < SHARD_COMMANDS_MAX,
            "{SHARD_COMMANDS_MAX} commands wait for a shard that does not take them"
        );
        commands.push_back(command);
        drop(commands);
        self.waker.wake();
    }

    fn wake(&self) {
        self.waker.wake();
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
