//! Threads that carry out file operations which may block.
//!
//! Each file has a lane of its own: what waits in it, and how many threads are at it. A device that
//! hangs keeps its lane's threads for as long as it likes, and nobody else's.
//!
//! Invariant: a file that no thread is at always gets one for its next operation, whatever all the
//! others do. So there are at most [`THREADS_SHARED`] threads and one more for each file.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::op::{Completion, Op, Token};
use super::waker::Waker;

/// Threads at one file at once. Disks behind such files (old or network filesystems) gain little
/// from more requests at once, and each thread costs a stack.
const THREADS_PER_FILE: usize = 8;

/// While so many threads work, a file gets no second one: as many as eight busy files need.
const THREADS_SHARED: usize = 8 * THREADS_PER_FILE;

/// A thread without work for so long ends: after a burst nothing stays of it.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// How long a dropped pool waits for operations that are under way. Those still missing then keep
/// their threads and memory to themselves until the process ends, as with a ring.
const DROP_WAIT: Duration = Duration::from_secs(2);

/// System calls and a loop around them, nothing deep.
const STACK_LEN: usize = 128 * 1024;

/// Carries an operation out, to its end.
pub(super) type Execute = dyn Fn(Token, Op) -> Completion + Send + Sync;

/// See the module.
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    queues: Mutex<Queues>,
    work_added: Condvar,
    thread_ended: Condvar,
    waker: Waker,
    execute: Box<Execute>,
}

/// Bounded by the submitters: disks have at most the engine's number of operations in flight.
#[derive(Default)]
struct Queues {
    /// By descriptor: the operations of a lane keep it open, so it names one file as long as the
    /// lane is there.
    lanes: BTreeMap<RawFd, Lane>,
    /// The lane that was served last; the next one's turn is now.
    served: RawFd,
    done: Vec<Completion>,
    threads: usize,
    /// Threads that carry an operation out.
    busy: usize,
    stop: bool,
}

#[derive(Default)]
struct Lane {
    work: VecDeque<(Token, Op)>,
    under_way: usize,
}

impl Pool {
    pub(super) fn new(waker: &Waker, execute: Box<Execute>) -> Self {
        Self {
            shared: Arc::new(Shared {
                queues: Mutex::default(),
                work_added: Condvar::new(),
                thread_ended: Condvar::new(),
                waker: waker.clone(),
                execute,
            }),
        }
    }

    pub(super) fn push(&self, token: Token, op: Op) {
        let file = op.file().map_or(-1, super::op::IoFile::raw);
        let mut queues = self.shared.lock();
        let lane = queues.lanes.entry(file).or_default();
        lane.work.push_back((token, op));
        self.start_missing(&mut queues);
        drop(queues);
        self.shared.work_added.notify_one();
    }

    /// Moves what is over to the end of `done`.
    pub(super) fn collect(&self, done: &mut Vec<Completion>) {
        let mut queues = self.shared.lock();
        done.append(&mut queues.done);
        // Should one not have been to be had before.
        self.start_missing(&mut queues);
    }

    fn start_missing(&self, queues: &mut Queues) {
        // Threads that were started and have not begun yet count nobody as busy: without the second
        // condition a burst over many files would start one for each operation.
        while queues.runnable() > queues.threads - queues.busy
            && queues.threads < THREADS_SHARED + queues.lanes.len()
        {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("file-io".to_owned())
                .stack_size(STACK_LEN);
            match thread.spawn(move || shared.serve()) {
                Ok(_) => queues.threads += 1,
                Err(error) => {
                    tracing::warn!(%error, "no thread for file I/O; tried again");
                    return;
                }
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        queues.stop = true;
        self.shared.work_added.notify_all();
        let ended = self
            .shared
            .thread_ended
            .wait_timeout_while(queues, DROP_WAIT, |queues| queues.threads > 0);
        let (mut queues, _) = ended.unwrap_or_else(PoisonError::into_inner);
        if queues.threads > 0 {
            tracing::error!(
                operations = queues.busy,
                "dropping file I/O with operations that do not end; their memory is given up"
            );
            // What was not begun is not begun any more.
            for lane in queues.lanes.values_mut() {
                lane.work.clear();
            }
        }
    }
}

impl Queues {
    /// How many threads may be at one file that has `under_way` of them.
    fn room(&self, under_way: usize) -> usize {
        let most = if self.busy < THREADS_SHARED {
            THREADS_PER_FILE
        } else {
            1
        };
        most.saturating_sub(under_way)
    }

    /// Operations that wait for nothing but a thread.
    fn runnable(&self) -> usize {
        let of_lane = |lane: &Lane| lane.work.len().min(self.room(lane.under_way));
        self.lanes.values().map(of_lane).sum()
    }

    /// The next operation to carry out, of the file after the one that was served last.
    fn begin_next(&mut self) -> Option<(RawFd, Token, Op)> {
        let after = (Bound::Excluded(self.served), Bound::Unbounded);
        let in_turn = self
            .lanes
            .range(after)
            .chain(self.lanes.range(..=self.served));
        let (&file, _) = in_turn
            .filter(|(_, lane)| !lane.work.is_empty())
            .find(|(_, lane)| self.room(lane.under_way) > 0)?;
        let lane = self.lanes.get_mut(&file)?;
        let (token, op) = lane.work.pop_front()?;
        lane.under_way += 1;
        self.served = file;
        self.busy += 1;
        Some((file, token, op))
    }

    fn end(&mut self, file: RawFd, completion: Completion) {
        self.busy -= 1;
        if let Some(lane) = self.lanes.get_mut(&file) {
            lane.under_way -= 1;
            if lane.under_way == 0 && lane.work.is_empty() {
                self.lanes.remove(&file);
            }
        }
        // Last: whoever takes it may close the file, and its number may come again.
        self.done.push(completion);
    }
}

/// Counts a thread out, also one that panics.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
        self.0.thread_ended.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let _leaving = Leaving(self);
        while let Some((file, token, op)) = self.next_work() {
            let completion = (self.execute)(token, op);
            self.lock().end(file, completion);
            self.waker.wake();
        }
    }

    fn next_work(&self) -> Option<(RawFd, Token, Op)> {
        let mut queues = self.lock();
        loop {
            if let Some(work) = queues.begin_next() {
                return Some(work);
            }
            if queues.stop {
                return None;
            }
            let waited = self.work_added.wait_timeout(queues, IDLE_TIME);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queues = woken;
            if timeout.timed_out() && queues.runnable() == 0 {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::{Receiver, channel};

    use super::super::clock;
    use super::super::op::{Done, FileRoute, IoFile};
    use super::*;

    const HUNG: Token = Token(1);
    const HEALTHY: Token = Token(2);

    /// Operations of a device that hangs end when `go` says so, or its sender is gone.
    fn pool(waker: &Waker, go: Receiver<()>) -> Pool {
        let go = Mutex::new(go);
        let execute = move |token, op| {
            if token == HUNG {
                let go = go.lock().unwrap_or_else(PoisonError::into_inner);
                go.recv().ok();
            }
            let result = Ok(Done::Count(0));
            Completion { token, op, result }
        };
        Pool::new(waker, Box::new(execute))
    }

    fn file() -> IoFile {
        let file = File::open("/dev/null").unwrap();
        IoFile::new(file.into(), FileRoute::Threads)
    }

    fn sync(file: &IoFile) -> Op {
        Op::Sync { file: file.clone() }
    }

    fn wait_for(pool: &Pool, count: usize) -> Vec<Completion> {
        let begin = clock::now();
        let mut done = Vec::new();
        while done.len() < count {
            assert!(clock::now().since(begin) < Duration::from_secs(10));
            pool.collect(&mut done);
            std::thread::yield_now();
        }
        done
    }

    #[test]
    fn devices_that_hang_keep_no_thread_from_the_others() {
        // More of them than fill the shared threads, each with more operations than it gets threads.
        let (hang, go) = channel::<()>();
        let waker = Waker::new().unwrap();
        let pool = pool(&waker, go);
        let hung: Vec<_> = (0..12).map(|_| file()).collect();
        for file in &hung {
            for _ in 0..20 {
                pool.push(HUNG, sync(file));
            }
        }
        for file in [file(), file()] {
            for _ in 0..3 {
                pool.push(HEALTHY, sync(&file));
            }
        }
        let done = wait_for(&pool, 6);
        assert!(done.iter().all(|it| it.token == HEALTHY), "{done:?}");
        let threads = pool.shared.lock().threads;
        let most = THREADS_SHARED + hung.len() + 2; // And no more, however slowly they begin.
        assert!(threads <= most, "{threads} threads, {most} at most");
        drop(hang);
        assert_eq!(wait_for(&pool, 240).len(), 240, "late ones end too");
        assert!(pool.shared.lock().lanes.is_empty());
    }

    #[test]
    fn the_end_waits_for_what_moves_and_not_for_ever_for_what_hangs() {
        let (hang, go) = channel::<()>();
        let waker = Waker::new().unwrap();
        let pool = pool(&waker, go);
        let (one, other) = (file(), file());
        for _ in 0..20 {
            pool.push(HUNG, sync(&one));
        }
        pool.push(HEALTHY, sync(&other));
        let shared = Arc::clone(&pool.shared);
        let begin = clock::now();
        drop(pool);
        assert!(clock::now().since(begin) < Duration::from_secs(10));
        let queues = shared.lock();
        assert_eq!(queues.done.len(), 1, "the healthy one ended");
        assert_eq!(queues.busy, THREADS_PER_FILE);
        let waiting: usize = queues.lanes.values().map(|lane| lane.work.len()).sum();
        assert_eq!(waiting, 0, "nothing begins after the end");
        drop(queues);
        drop(hang);
    }
}
