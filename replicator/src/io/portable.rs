//! The backend for hosts where io_uring is forbidden or missing: `poll(2)` for sockets, threads
//! for files.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, connect, getsockopt, recv, sendmsg, sockopt};

use super::file_work::FileWork;
use super::op::{Completion, Done, Op, OpKey, Socket, Token};
use super::send_batch::BATCH_PIECES_MAX;
use super::slab::Slab;
use super::waker::Waker;
use super::{Backend, BackendKind, Wait, sys};

/// See the module.
pub struct Portable {
    waker: Waker,
    files: FileWork,
    sockets: Slab<Pending>,
    /// Submitted since the last turn, not tried yet.
    fresh: Vec<OpKey>,
    /// Tried, and waiting for their socket.
    blocked: Vec<OpKey>,
}

struct Pending {
    token: Token,
    op: Op,
    moved: usize,
    /// For `Connect`: it was begun, its outcome comes with writability.
    begun: bool,
    cancelled: bool,
}

impl Portable {
    /// A backend without any operation.
    ///
    /// # Errors
    /// When the kernel has no descriptor left for the eventfd.
    pub fn new() -> Result<Self, Errno> {
        let waker = Waker::new()?;
        Ok(Self {
            files: FileWork::new(waker.clone()),
            waker,
            sockets: Slab::new(),
            fresh: Vec::new(),
            blocked: Vec::new(),
        })
    }

    /// Tries an operation; `true` if it ended.
    fn attempt(&mut self, key: OpKey, done: &mut Vec<Completion>) -> bool {
        let Some(pending) = self.sockets.get_mut(key) else {
            return true; // Cancelled, its completion is delivered.
        };
        let Some(result) = pending.attempt() else {
            return false;
        };
        self.finish(key, result, done);
        true
    }

    fn finish(&mut self, key: OpKey, result: Result<Done, Errno>, done: &mut Vec<Completion>) {
        if let Some(Pending { token, op, .. }) = self.sockets.remove(key) {
            done.push(Completion { token, op, result });
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<OpKey>, Errno> {
        let mut fds = vec![PollFd::new(self.waker.fd(), PollFlags::POLLIN)];
        let mut keys = Vec::with_capacity(self.blocked.len());
        for &key in &self.blocked {
            let Some(pending) = self.sockets.get(key) else {
                continue;
            };
            let (socket, flags) = pending.waits_for();
            fds.push(PollFd::new(socket.as_fd(), flags));
            keys.push(key);
        }
        match poll(&mut fds, poll_timeout(timeout)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        if fds[0].any().unwrap_or(true) {
            self.waker.consume();
        }
        let ready = keys
            .iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| fd.any().unwrap_or(true));
        Ok(ready.map(|(&key, _)| key).collect())
    }
}

impl Backend for Portable {
    fn kind(&self) -> BackendKind {
        BackendKind::Portable
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn adopt(&self, fd: OwnedFd) -> Result<Socket, Errno> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Socket::new(fd))
    }

    fn submit(&mut self, token: Token, op: Op) -> OpKey {
        if let Some(route) = op.route() {
            self.files.submit(token, op, route);
            return OpKey(0);
        }
        let key = self.sockets.insert(Pending {
            token,
            op,
            moved: 0,
            begun: false,
            cancelled: false,
        });
        self.fresh.push(key);
        key
    }

    fn cancel(&mut self, key: OpKey) {
        if let Some(pending) = self.sockets.get_mut(key) {
            pending.cancelled = true;
            self.fresh.push(key);
        }
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Errno> {
        for key in std::mem::take(&mut self.fresh) {
            if !self.attempt(key, done) {
                self.blocked.push(key);
            }
        }
        self.files.run_inline(done);
        self.files.collect(done);
        let timeout = if done.is_empty() {
            wait.timeout
        } else {
            Some(Duration::ZERO)
        };
        let ready = self.wait(timeout)?;
        for key in ready {
            self.attempt(key, done);
        }
        self.files.collect(done);
        let sockets = &self.sockets;
        self.blocked.retain(|&key| sockets.get(key).is_some());
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.sockets.len() + self.files.in_flight()
    }
}

impl Pending {
    fn waits_for(&self) -> (&Socket, PollFlags) {
        match &self.op {
            Op::Recv { socket, .. } | Op::Accept { listener: socket } => {
                (socket, PollFlags::POLLIN)
            }
            Op::Send { socket, .. } | Op::Connect { socket, .. } => (socket, PollFlags::POLLOUT),
            Op::Read { .. }
            | Op::Write { .. }
            | Op::Sync { .. }
            | Op::Zero { .. }
            | Op::FindExtents { .. } => {
                unreachable!("file operations are not polled for")
            }
        }
    }

    /// `None`: it has to wait.
    fn attempt(&mut self) -> Option<Result<Done, Errno>> {
        if self.cancelled {
            return Some(Err(Errno::ECANCELED));
        }
        loop {
            match self.step() {
                Ok(Done::Count(count)) => {
                    self.moved += count;
                    if count == 0 || self.moved >= self.op.wanted() {
                        return Some(Ok(Done::Count(self.moved)));
                    }
                }
                Ok(accepted) => return Some(Ok(accepted)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EINPROGRESS) => return None,
                Err(errno) => return Some(Err(errno)),
            }
        }
    }

    fn step(&mut self) -> Result<Done, Errno> {
        let moved = self.moved;
        match &mut self.op {
            Op::Recv {
                socket,
                buf,
                start,
                end,
                ..
            } => {
                let free = &mut buf.as_mut()[*start + moved..*end];
                recv(socket.raw(), free, MsgFlags::MSG_DONTWAIT).map(Done::Count)
            }
            Op::Send { socket, batch } => {
                let slices: Vec<IoSlice<'_>> = batch.slices(moved).take(BATCH_PIECES_MAX).collect();
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                sendmsg::<()>(socket.raw(), &slices, &[], flags, None).map(Done::Count)
            }
            Op::Accept { listener } => {
                sys::accept(listener.as_fd(), true).map(|fd| Done::Accepted(Socket::new(fd)))
            }
            Op::Connect { socket, .. } if self.begun => {
                match getsockopt(socket, sockopt::SocketError)? {
                    0 => Ok(Done::Count(0)),
                    error => Err(Errno::from_raw(error)),
                }
            }
            Op::Connect { socket, address } => {
                self.begun = true;
                connect(socket.raw(), address.as_ref()).map(|()| Done::Count(0))
            }
            Op::Read { .. }
            | Op::Write { .. }
            | Op::Sync { .. }
            | Op::Zero { .. }
            | Op::FindExtents { .. } => {
                unreachable!("file operations go to FileWork")
            }
        }
    }
}

/// Rounded up to milliseconds, so that a deadline has passed when `poll` says so.
fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else {
        return PollTimeout::NONE;
    };
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}
