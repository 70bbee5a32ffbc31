//! The io_uring backend.
//!
//! One `io_uring_enter` per turn: it submits everything queued since the last one and waits. Set up
//! for a single issuer with deferred task work where the kernel can (6.1), stepping down to what it
//! has; kernels without the few operations used here get the portable backend.
#![allow(
    unsafe_code,
    reason = "listed in the project's rules: memory is lent to the kernel here"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::SockaddrLike;

use super::file_work::{FileWork, zero_flags};
use super::op::{Completion, Done, FileRoute, Op, OpKey, Socket, Token};
use super::send_batch::BATCH_PIECES_MAX;
use super::slab::Slab;
use super::waker::Waker;
use super::{Backend, BackendKind, Wait};

/// Submissions that fit between two `enter`s; when full, an extra `enter` makes room.
const SUBMISSIONS: u32 = 1024;
/// Completions that fit; beyond it the kernel keeps them in a list (`IORING_FEAT_NODROP`).
const COMPLETIONS: u32 = 4096;
/// More than this to be written inline is not let in front of queued submissions: 64 KiB take
/// about as long as the `enter` that is saved.
const INLINE_BYTES_FIRST_MAX: usize = 64 << 10;
/// More operations on files in memory than this go on the ring: it hands them to a kernel thread,
/// which costs as much as carrying them out here, but one `enter` for all instead of a call each.
const INLINE_OPS_MAX: usize = 4;
/// A send up to this length completes while it is submitted, unless the peer does not read.
const PROMPT_SEND_LEN_MAX: usize = 32 << 10;
/// How long such completions are awaited together with the first other one, should they not be
/// prompt after all. Seldom waited out: see [`Trust`].
const PROMPT_TIME: Duration = Duration::from_millis(1);
/// How long completions of disks and the peer are gathered: less than waking up once more costs on
/// an idle processor core, and nothing beside any network.
const GATHER_TIME: Duration = Duration::from_micros(50);
/// Of this many operations on disks in flight one more completion is gathered.
const GATHER_FILE_OPS: usize = 8;
/// Turns without trust after it was disappointed once, and at most, if it is every time.
const DISTRUST_TURNS_MIN: u32 = 64;
const DISTRUST_TURNS_MAX: u32 = 16_384;

/// Kernel threads the ring may use for operations that block: flushes always do, and writes where
/// they wait for the filesystem. By default there are four for each processor, which one hung disk
/// takes from all the others; they are made as they are needed, so a high limit costs nothing while
/// nothing hangs. It is what a guest has in flight, for a good many hung disks at once; each costs
/// some 20 KiB then.
const BLOCKED_WORKERS_MAX: u32 = 2048;

/// How long a dropped ring waits for operations that were cancelled. Disk operations cannot be
/// recalled; memory of those still missing is then given up for ever rather than reused.
const DROP_WAIT: Duration = Duration::from_secs(2);

/// User data of submissions whose completion nobody awaits. Never the key of an operation.
const USER_DATA_NOBODY: u64 = 0;
/// User data of the read of the waker's counter. Never a key: its generation is 0.
const USER_DATA_WAKER: u64 = 1;

/// See the module.
pub struct Ring {
    ring: IoUring,
    ops: Slab<Pending>,
    /// Spare message headers: stable addresses for what the kernel reads at submission.
    #[allow(
        clippy::vec_box,
        reason = "the addresses must stay while they move between owners"
    )]
    messages: Vec<Box<MessageHeader>>,
    files: FileWork,
    waker: Waker,
    /// What the kernel reads the waker's counter into; boxed, because the ring may move.
    waker_count: Box<u64>,
    waker_armed: bool,
    /// The last turn returned without entering the kernel.
    skipped: bool,
    /// The kernel can wait for several completions for a while and then for one (6.12).
    can_gather: bool,
    /// Operations on files in flight on the ring.
    file_ops: usize,
    /// Short sends submitted by this turn and not completed yet.
    prompt_sends: usize,
    sends_are_prompt: Trust,
    gathering_pays: Trust,
}

/// A guess about what completes soon. Each time it is wrong it is not made for a while, longer each
/// time, so that a guess that does not fit the machine costs next to nothing.
#[derive(Default)]
struct Trust {
    turns_left: u32,
    turns_next: u32,
}

impl Trust {
    fn holds(&self) -> bool {
        self.turns_left == 0
    }

    fn note_turn(&mut self) {
        self.turns_left = self.turns_left.saturating_sub(1);
    }

    fn note(&mut self, was_right: bool) {
        if was_right {
            self.turns_next /= 2;
        } else {
            self.turns_left = self
                .turns_next
                .clamp(DISTRUST_TURNS_MIN, DISTRUST_TURNS_MAX);
            self.turns_next = self.turns_left * 2;
        }
    }
}

/// What a wait is for.
#[derive(Clone, Copy)]
struct Goal {
    /// Short sends that should be complete already.
    sends: usize,
    /// Completions worth gathering beyond the first.
    more: usize,
}

impl Goal {
    fn count(self) -> usize {
        1 + self.sends + self.more
    }

    /// How long to insist on all of them.
    fn time(self) -> Duration {
        if self.more > 0 {
            GATHER_TIME
        } else {
            PROMPT_TIME
        }
    }
}

struct Pending {
    token: Token,
    op: Op,
    moved: usize,
    message: Option<Box<MessageHeader>>,
}

struct MessageHeader {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

impl Ring {
    /// A ring with the best set-up this kernel has.
    ///
    /// # Errors
    /// When io_uring is forbidden (sysctl, seccomp), missing, or too old.
    pub fn new() -> io::Result<Self> {
        let ring = set_up()?;
        check_operations(&ring)?;
        allow_blocked_workers(&ring);
        let waker = Waker::new()?;
        let mut ring = Self {
            can_gather: ring.params().is_feature_min_timeout(),
            file_ops: 0,
            prompt_sends: 0,
            sends_are_prompt: Trust::default(),
            gathering_pays: Trust::default(),
            ring,
            ops: Slab::new(),
            messages: Vec::new(),
            files: FileWork::new(waker.clone()),
            waker,
            waker_count: Box::new(0),
            waker_armed: false,
            skipped: false,
        };
        ring.arm_waker();
        Ok(ring)
    }

    fn arm_waker(&mut self) {
        let address = (&raw mut *self.waker_count).cast();
        let entry = opcode::Read::new(Fd(self.waker.fd().as_raw_fd()), address, 8)
            .build()
            .user_data(USER_DATA_WAKER);
        // SAFETY: the eventfd and the boxed counter are owned by `self`, whose `drop` waits for
        // this read or leaks them.
        unsafe { self.push(&entry) };
        self.waker_armed = true;
    }

    /// # Safety
    /// What the entry points to must stay valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: passed on to the caller.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // Full: hand over what is there. If that fails the next `turn` reports it; here only
            // a transient shortage (EAGAIN, EBUSY, EINTR) can be waited out by trying again.
            if let Err(error) = self.ring.submit() {
                tracing::debug!(%error, "submitting to make room");
            }
        }
    }

    /// Queues the rest of an operation.
    fn push_op(&mut self, key: OpKey) {
        let Some(pending) = self.ops.get_mut(key) else {
            return;
        };
        if matches!(pending.op, Op::Send { .. }) && pending.message.is_none() {
            pending.message = Some(self.messages.pop().unwrap_or_default());
        }
        let entry = pending.entry().user_data(key.0);
        // SAFETY: every pointer in the entry is into heap memory owned by the `Pending` (its
        // buffer, payload, batch, boxed header or boxed address), which stays in the slab, whatever
        // moves around it, until the completion of this key is reaped or the ring is dropped, and
        // `drop` waits or leaks. `msghdr` and `iovec`s are read by the kernel during submission.
        unsafe { self.push(&entry) };
    }

    /// What to wait for. Waking for the completion of a send, which is there before the wait begins,
    /// would be a turn for nothing; so those come on top of what is worth a turn.
    fn goal(&self, wait: Wait) -> Goal {
        let short = wait.timeout.is_some_and(|timeout| timeout <= PROMPT_TIME);
        if !self.can_gather || short {
            return Goal { sends: 0, more: 0 };
        }
        let pair = usize::from(wait.for_two && self.file_ops > 0);
        let more = pair.max(self.file_ops / GATHER_FILE_OPS);
        Goal {
            sends: if self.sends_are_prompt.holds() {
                self.prompt_sends
            } else {
                0
            },
            more: if self.gathering_pays.holds() { more } else { 0 },
        }
    }

    /// Submits what is queued without waiting.
    fn hand_over(&mut self) -> Result<(), Errno> {
        let result = self.ring.submit();
        Self::after_enter(result)
    }

    fn enter(&mut self, wait: Wait, goal: Goal) -> Result<(), Errno> {
        let timeout = wait.timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        if goal.count() > 1 {
            args = args.min_wait_usec(u32::try_from(goal.time().as_micros()).unwrap_or(0));
        }
        let result = self.ring.submitter().submit_with_args(goal.count(), &args);
        Self::after_enter(result)
    }

    fn after_enter(result: io::Result<usize>) -> Result<(), Errno> {
        match result.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
            // ETIME: the timeout. EINTR: a signal. EBUSY, EAGAIN: completions must be reaped
            // first, then it goes on.
            Ok(_) | Err(Some(Errno::ETIME | Errno::EINTR | Errno::EBUSY | Errno::EAGAIN)) => Ok(()),
            Err(errno) => Err(errno.unwrap_or(Errno::EIO)),
        }
    }

    /// Takes every completion there is, and learns from it.
    fn reap(&mut self, goal: Goal, done: &mut Vec<Completion>) {
        let before = done.len();
        self.reap_all(done);
        self.sends_are_prompt.note_turn();
        self.gathering_pays.note_turn();
        if goal.sends > 0 {
            self.sends_are_prompt.note(self.prompt_sends == 0);
        }
        if goal.more > 0 {
            self.gathering_pays
                .note(done.len() - before >= goal.count());
        }
        self.prompt_sends = 0;
    }

    fn reap_all(&mut self, done: &mut Vec<Completion>) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            match entry.user_data() {
                USER_DATA_NOBODY => {}
                USER_DATA_WAKER => {
                    self.waker_armed = false;
                    self.waker.note_consumed();
                    self.arm_waker();
                }
                key => self.complete(OpKey(key), entry.result(), done),
            }
        }
    }

    fn complete(&mut self, key: OpKey, result: i32, done: &mut Vec<Completion>) {
        let Some(pending) = self.ops.get_mut(key) else {
            tracing::error!(key = key.0, "completion of an unknown operation");
            return;
        };
        let result = match usize::try_from(result) {
            Err(_) if matches!(Errno::from_raw(-result), Errno::EINTR | Errno::EAGAIN) => {
                return self.push_op(key);
            }
            Err(_) => Err(Errno::from_raw(-result)),
            Ok(_) if matches!(pending.op, Op::Accept { .. }) => {
                // SAFETY: a successful accept returns a new descriptor that nobody else owns.
                Ok(Done::Accepted(Socket::new(unsafe {
                    OwnedFd::from_raw_fd(result)
                })))
            }
            Ok(count) => {
                pending.moved += count;
                if count > 0 && pending.moved < pending.op.wanted() {
                    return self.push_op(key);
                }
                Ok(Done::Count(pending.moved))
            }
        };
        if let Some(Pending {
            token, op, message, ..
        }) = self.ops.remove(key)
        {
            self.note_completed(&op);
            self.messages.extend(message);
            done.push(Completion { token, op, result });
        }
    }
}

/// Counting what is surely going to complete.
impl Ring {
    fn note_submitted(&mut self, op: &Op) {
        match op {
            Op::Send { batch, .. } if batch.len() <= PROMPT_SEND_LEN_MAX => self.prompt_sends += 1,
            _ if op.file().is_some() => self.file_ops += 1,
            _ => {}
        }
    }

    fn note_completed(&mut self, op: &Op) {
        match op {
            // One of an earlier turn counts as one of this: at worst one turn is for nothing.
            Op::Send { batch, .. } if batch.len() <= PROMPT_SEND_LEN_MAX => {
                self.prompt_sends = self.prompt_sends.saturating_sub(1);
            }
            _ if op.file().is_some() => self.file_ops -= 1,
            _ => {}
        }
    }

    fn submit_to_ring(&mut self, token: Token, op: Op) -> OpKey {
        self.note_submitted(&op);
        let key = self.ops.insert(Pending {
            token,
            op,
            moved: 0,
            message: None,
        });
        self.push_op(key);
        key
    }
}

impl Backend for Ring {
    fn kind(&self) -> BackendKind {
        BackendKind::IoUring
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn adopt(&self, fd: OwnedFd) -> Result<Socket, Errno> {
        // On a non-blocking socket the ring would report EAGAIN instead of waiting by itself.
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        Ok(Socket::new(fd))
    }

    fn submit(&mut self, token: Token, op: Op) -> OpKey {
        if let Some(route) = op.route()
            && route != FileRoute::Ring
        {
            self.files.submit(token, op, route);
            return OpKey(0);
        }
        self.submit_to_ring(token, op)
    }

    fn cancel(&mut self, key: OpKey) {
        if self.ops.get(key).is_some() {
            let entry = opcode::AsyncCancel::new(key.0)
                .build()
                .user_data(USER_DATA_NOBODY);
            // SAFETY: the entry points to nothing.
            unsafe { self.push(&entry) };
        }
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Errno> {
        if self.files.inline_len() > INLINE_OPS_MAX {
            while let Some((token, op)) = self.files.take_inline() {
                self.submit_to_ring(token, op);
            }
        }
        if self.files.inline_bytes() > INLINE_BYTES_FIRST_MAX {
            self.hand_over()?;
        }
        let inline = self.files.inline_len() > 0;
        self.files.run_inline(done);
        self.files.collect(done);
        // What these completions lead to may join what is queued in one `enter`. But never twice in
        // a row, or inline work that begets inline work would starve everything else.
        if inline && !self.skipped {
            self.skipped = true;
            return Ok(());
        }
        self.skipped = false;
        let wait = if done.is_empty() {
            wait
        } else {
            Wait::at_most(Duration::ZERO)
        };
        let goal = self.goal(wait);
        self.enter(wait, goal)?;
        self.reap(goal, done);
        self.files.collect(done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.ops.len() + self.files.in_flight()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for key in self.ops.keys().collect::<Vec<_>>() {
            self.cancel(key);
        }
        self.waker.wake();
        let begin = super::clock::now();
        let mut done = Vec::new();
        let (wait, goal) = (
            Wait::at_most(Duration::from_millis(50)),
            Goal { sends: 0, more: 0 },
        );
        while self.ops.len() > 0 && super::clock::now().since(begin) < DROP_WAIT {
            if self.enter(wait, goal).is_err() {
                break;
            }
            self.reap(goal, &mut done);
            done.clear();
        }
        if self.ops.len() > 0 {
            tracing::error!(
                operations = self.ops.len(),
                "dropping a ring with operations that do not end; their memory is given up"
            );
            std::mem::forget(std::mem::replace(&mut self.ops, Slab::new()));
        }
        // The waker's read is always in flight; eight bytes are not worth waiting for.
        Box::leak(std::mem::take(&mut self.waker_count));
    }
}

impl Default for MessageHeader {
    fn default() -> Self {
        // SAFETY: msghdr consists of integers and pointers, for which zeroes are valid.
        let header = unsafe { std::mem::zeroed() };
        Self {
            header,
            pieces: Vec::new(),
        }
    }
}

impl Pending {
    /// The submission for what is left of the operation.
    fn entry(&mut self) -> squeue::Entry {
        let moved = self.moved;
        match &mut self.op {
            Op::Read { file, offset, buf } => {
                let rest = &mut buf.as_mut()[moved..];
                opcode::Read::new(Fd(file.raw()), rest.as_mut_ptr(), len32(rest.len()))
                    .offset(*offset + moved as u64)
                    .build()
            }
            Op::Write {
                file,
                offset,
                payload,
                durable,
            } => {
                let rest = &payload[moved..];
                opcode::Write::new(Fd(file.raw()), rest.as_ptr(), len32(rest.len()))
                    .offset(*offset + moved as u64)
                    .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            Op::FindExtents { .. } => unreachable!("extents are looked for by threads"),
            Op::Sync { file } => opcode::Fsync::new(Fd(file.raw()))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            Op::Zero {
                file,
                offset,
                len,
                mode,
            } => opcode::Fallocate::new(Fd(file.raw()), *len)
                .offset(*offset)
                .mode(zero_flags(*mode).bits())
                .build(),
            Op::Recv {
                socket,
                buf,
                start,
                end,
                fill,
            } => {
                let free = &mut buf.as_mut()[*start + moved..*end];
                opcode::Recv::new(Fd(socket.raw()), free.as_mut_ptr(), len32(free.len()))
                    .flags(if *fill { libc::MSG_WAITALL } else { 0 })
                    .build()
            }
            Op::Send { socket, batch } => {
                let message = self.message.get_or_insert_default();
                message.pieces.clear();
                message
                    .pieces
                    .extend(
                        batch
                            .slices(moved)
                            .take(BATCH_PIECES_MAX)
                            .map(|slice| libc::iovec {
                                iov_base: slice.as_ptr().cast_mut().cast(),
                                iov_len: slice.len(),
                            }),
                    );
                message.header.msg_iov = message.pieces.as_mut_ptr();
                message.header.msg_iovlen = message.pieces.len() as _;
                opcode::SendMsg::new(Fd(socket.raw()), &raw const message.header)
                    .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL).unsigned_abs())
                    .build()
            }
            Op::Accept { listener } => opcode::Accept::new(
                Fd(listener.raw()),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
            .flags(libc::SOCK_CLOEXEC)
            .build(),
            Op::Connect { socket, address } => {
                opcode::Connect::new(Fd(socket.raw()), address.as_ptr(), address.len()).build()
            }
        }
    }
}

/// One step moves at most what 32 bits hold; a larger operation goes on from there.
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(1 << 30)
}

/// Tries set-ups from the best to the plainest.
fn set_up() -> io::Result<IoUring> {
    let deferred = |builder: &mut io_uring::Builder| {
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
    };
    let cooperative = |builder: &mut io_uring::Builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    };
    let plain = |_: &mut io_uring::Builder| {};
    let tries: [&dyn Fn(&mut io_uring::Builder); 3] = [&deferred, &cooperative, &plain];
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for adjust in tries {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(COMPLETIONS);
        adjust(&mut builder);
        match builder.build(SUBMISSIONS) {
            Ok(ring) => return Ok(ring),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Since Linux 5.15; before it a disk that hangs may hold up the flushes of others.
fn allow_blocked_workers(ring: &IoUring) {
    // 0 leaves those for sockets as they are.
    let mut limits = [BLOCKED_WORKERS_MAX, 0];
    if let Err(error) = ring.submitter().register_iowq_max_workers(&mut limits) {
        tracing::info!(%error, "the ring's threads stay few: one hung disk may hold up others");
    }
}

/// Refuses kernels without what this file uses without asking.
fn check_operations(ring: &IoUring) -> io::Result<()> {
    let params = ring.params();
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::Recv::CODE,
        opcode::SendMsg::CODE,
        opcode::Accept::CODE,
        opcode::Connect::CODE,
        opcode::AsyncCancel::CODE,
    ];
    let complete = needed.iter().all(|&code| probe.is_supported(code))
        && params.is_feature_nodrop()
        && params.is_feature_submit_stable()
        && params.is_feature_ext_arg();
    let too_old = || {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel's io_uring is too old",
        )
    };
    complete.then_some(()).ok_or_else(too_old)
}
