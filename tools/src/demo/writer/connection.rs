//! One NBD connection of the writer, nonblocking.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{Client, ClientCommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::pattern::{self, BLOCK_LEN, Stamp};

/// Bytes read from a socket at once.
const CHUNK_LEN: usize = 64 * 1024;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Write {
        stamp: Stamp,
    },
    /// `floor`: the last acknowledged write of the block when the read was sent.
    Read {
        block: u64,
        floor: u64,
    },
    Flush,
}

/// What came of it: the data of a read, or the server's words.
pub(super) struct Answer {
    pub(super) order: Order,
    pub(super) result: Result<Vec<u8>, String>,
}

/// The connection is of no further use: closed, refused, or not NBD.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended;

pub(super) struct Connection {
    node: usize,
    stream: UnixStream,
    client: Client,
    orders: BTreeMap<u64, Order>,
    unsent: VecDeque<u8>,
    /// When the server said something last, or was first owed an answer.
    heard: Instant,
}

impl Connection {
    pub(super) fn open(node: usize, socket: &Path, export: &str, at: Instant) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        let client = Client::new(export, ReplyStyle::Simple);
        Ok(Self {
            node,
            stream,
            client,
            orders: BTreeMap::new(),
            unsent: VecDeque::new(),
            heard: at,
        })
    }

    pub(super) fn node(&self) -> usize {
        self.node
    }

    pub(super) fn is_attached(&self) -> bool {
        self.client.export().is_some()
    }

    pub(super) fn outstanding(&self) -> usize {
        self.orders.len()
    }

    /// How long the server owes an answer without a word; zero while it owes none.
    pub(super) fn silent_for(&self, at: Instant) -> Duration {
        if self.is_attached() && self.orders.is_empty() {
            return Duration::ZERO;
        }
        at.saturating_duration_since(self.heard)
    }

    /// Sends a request, as far as the socket takes it now.
    pub(super) fn send(&mut self, order: Order, at: Instant) -> Result<(), Ended> {
        if self.orders.is_empty() {
            self.heard = at;
        }
        let len = u32::try_from(BLOCK_LEN).unwrap_or(u32::MAX);
        let offset = |block: u64| block * u64::from(len);
        let cookie = match order {
            Order::Write { stamp } => {
                let data = pattern::encode(stamp);
                let offset = offset(stamp.block);
                self.client.submit(ClientCommand::Write {
                    offset,
                    data: &data,
                    fua: false,
                })
            }
            Order::Read { block, .. } => self.client.submit(ClientCommand::Read {
                offset: offset(block),
                len,
            }),
            Order::Flush => self.client.submit(ClientCommand::Flush),
        };
        self.orders.insert(cookie.map_err(|_| Ended)?, order);
        self.flush()
    }

    /// Takes what arrived; answers are handed over even if the connection then turns out to have
    /// ended.
    pub(super) fn receive(&mut self, at: Instant, answers: &mut Vec<Answer>) -> Result<(), Ended> {
        let mut buffer = [0; CHUNK_LEN];
        let ended = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break Err(Ended),
                Ok(len) => {
                    self.heard = at;
                    if self.client.handle_bytes(&buffer[..len]).is_err() {
                        break Err(Ended);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break Err(Ended),
            }
        };
        while let Some(reply) = self.client.next_reply() {
            let Some(order) = self.orders.remove(&reply.cookie) else {
                return Err(Ended);
            };
            let result = reply.result.map_err(|error| error.to_string());
            answers.push(Answer { order, result });
        }
        if self.is_attached() && self.orders.is_empty() {
            self.heard = at;
        }
        ended.and_then(|()| self.flush())
    }

    fn flush(&mut self) -> Result<(), Ended> {
        self.unsent.extend(self.client.take_output());
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.as_slices().0) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended),
            }
        }
        Ok(())
    }
}

/// Waits until one of them has something to do, for at most `limit`.
pub(super) fn wait<'a>(
    connections: impl Iterator<Item = &'a mut Connection>,
    limit: Duration,
) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = connections
        .map(|connection| {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, !connection.unsent.is_empty());
            PollFd::new(connection.stream.as_fd(), events)
        })
        .collect();
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
