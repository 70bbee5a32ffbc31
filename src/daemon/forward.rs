//! Calling the Primary for an NBD client of the Secondary.
//!
//! The connection is made like that of a request passed on ([`super::relay`]): within TLS, or, with
//! `tls = "off"`, from the address that the other node knows, and from a privileged port where that is
//! to be had, since the Primary lets nobody else in ([`super::origin`]).

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use core::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use replicator::io::clock;
use replicator::protocol::{ForwardPreamble, PreambleStatus};

use super::beacon_io::source_for;
use super::relay::{Knocking, OTHER_TLS, knock, words};
use super::security::Security;
use super::wire::Wire;

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
    /// How it is known; `None`: by its address.
    pub security: Option<Arc<Security>>,
}

impl Caller {
    /// A connection that the other node accepted for this; NBD follows on it. Waits up to
    /// [`CALL_TIMEOUT`].
    ///
    /// # Errors
    /// Why not, for people: each address with what came of it.
    pub fn call(&self, preamble: &ForwardPreamble) -> Result<Wire, String> {
        let mut reasons = Vec::new();
        let addresses = u32::try_from(self.peer.len()).unwrap_or(u32::MAX);
        for (index, &to) in self.peer.iter().enumerate() {
            let deadline = clock::now().plus(CALL_TIMEOUT / addresses.max(1));
            let knocking = Knocking {
                from: source_for(&self.own, index, to).map(|at| self.own[at]),
                to,
                privileged: true,
                deadline,
                refusal,
                security: self.security.as_deref(),
                cluster: preamble.cluster,
                nodes: [preamble.from, preamble.to],
            };
            let opened = knock(&knocking, &preamble.encode()).and_then(|wire| {
                be_patient(wire.socket())?;
                forget_at_the_end(wire.socket())?;
                Ok(wire)
            });
            match opened {
                Ok(wire) => return Ok(wire),
                Err(error) => reasons.push(format!("{to}: {}", words(&error))),
            }
        }
        Err(reasons.join("; "))
    }
}

/// What both nodes want of a connection that carries a client, other than one with a request.
///
/// A client that does not read for long, a guest that is stopped, is no dead host: no limit on how long
/// bytes may wait for it. A host that died is noticed by the data link, with which these end.
pub(super) fn be_patient(stream: &TcpStream) -> io::Result<()> {
    Ok(setsockopt(stream, sockopt::TcpUserTimeout, &0)?)
}

/// When this end is closed, or its process dies, what was not sent yet must not arrive any more: the
/// client will have sent it anew on another connection, and newer writes after it.
fn forget_at_the_end(stream: &TcpStream) -> io::Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(stream, sockopt::Linger, &linger)?)
}

fn refusal(status: PreambleStatus) -> &'static str {
    match status {
        PreambleStatus::Version => "the daemon there is of another version",
        PreambleStatus::Cluster => "the daemon there is of another cluster",
        PreambleStatus::Node => {
            "it does not take this node for its peer: another address, or this daemon may not use \
             ports below 1024 (CAP_NET_BIND_SERVICE)"
        }
        PreambleStatus::Tls => OTHER_TLS,
        PreambleStatus::Busy => "it is not Primary",
        PreambleStatus::Resource => "the resource is not up there, or its `forward` is not set",
        PreambleStatus::Accepted => "accepted",
    }
}
