//! Calling the Primary for an NBD client of the Secondary.
//!
//! The connection is made like that of a request passed on ([`super::relay`]): from the address that
//! the other node knows, and from a privileged port where that is to be had, since the Primary lets
//! nobody else in ([`super::origin`]).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use core::time::Duration;

use replicator::io::clock;
use replicator::protocol::ForwardPreamble;

use super::beacon_io::source_for;
use super::relay::{knock, words};

/// Time for a call, all the addresses together: a client that cannot be passed on is refused within a
/// second.
const CALL_TIMEOUT: Duration = Duration::from_millis(900);

/// How the peer is called.
#[derive(Debug, Default)]
pub struct Caller {
    /// This node's addresses.
    pub own: Vec<SocketAddr>,
    /// The peer's, in order of preference.
    pub peer: Vec<SocketAddr>,
}

impl Caller {
    /// A connection that the other node accepted for this; NBD follows on it. Waits up to
    /// [`CALL_TIMEOUT`].
    ///
    /// # Errors
    /// Why not, for people: each address with what came of it.
    pub fn call(&self, preamble: &ForwardPreamble) -> Result<OwnedFd, String> {
        let mut reasons = Vec::new();
        let addresses = u32::try_from(self.peer.len()).unwrap_or(u32::MAX);
        for (index, &to) in self.peer.iter().enumerate() {
            let deadline = clock::now().plus(CALL_TIMEOUT / addresses.max(1));
            let from = source_for(&self.own, index, to).map(|at| self.own[at]);
            match knock(from, to, &preamble.encode(), true, deadline) {
                Ok(stream) => return Ok(OwnedFd::from(stream)),
                Err(error) => reasons.push(format!("{to}: {}", words(&error))),
            }
        }
        Err(reasons.join("; "))
    }
}
