//! Where requests and NBD clients come in that another node passes on.
//!
//! On a data node the shard accepts, reads the first bytes, and hands over what begins like a call;
//! the arbitrator has no shard, so its listening sockets are served here alone. A request that is let
//! in is given to the same handler as a client of the control socket; an NBD client goes back to the
//! shard.
//!
//! Who they are they show within TLS. With `tls = "off"` they come from an address of the cluster, and
//! changing anything takes more, and so does an NBD client: see [`super::origin`].
//!
//! Invariant: a connection that has not said who it is, in the cluster's words and with a certificate
//! or from an address of the cluster, holds a place for at most twice [`GREETING_TIMEOUT`] and no place
//! of those who have.

use std::io::{self, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use replicator::io::clock;
use replicator::protocol::{
    ForwardPreamble, Opening, PREAMBLE_LEN, PreambleReply, PreambleStatus, Purpose, RelayPreamble,
    SecurePreamble, VersionRange,
};
use replicator::types::NodeId;
use rustls::Connection;

use super::control::{ANSWER_TIMEOUT, Asker, ControlHandler, Place, converse};
use super::join_door::Issuer;
use super::mailbox::Mailbox;
use super::origin::Origin;
use super::relay::{RELAYS_MAX, tune};
use super::security::Security;
use super::wire::Wire;

/// Relays the shard may have handed over that nobody has looked at: the control thread takes them
/// at once. More are closed, and the asking node says that it was.
pub const KNOCKS_MAX: usize = 64;

/// Connections at once that have not been judged; a thread each. More are closed.
const STRANGERS_MAX: usize = 64;

/// Time for the first bytes, as on the data links.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// A call as the shard found it: nothing but the preamble was read, nothing answered.
#[derive(Debug)]
pub struct Knock {
    /// The connection.
    pub stream: OwnedFd,
    /// What it said.
    pub call: Call,
}

/// What a connection of another node is for, if it is no data link.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// A request of a control socket.
    Relay(RelayPreamble),
    /// An NBD client.
    Forward(ForwardPreamble),
    /// Either of them, within TLS, or a node that joins.
    Secure(SecurePreamble),
}

/// Who may pass something on to this node.
#[derive(Clone, Debug)]
pub struct Doorkeeper {
    /// This node.
    pub node: NodeId,
    /// Hash of the cluster's name.
    pub cluster: u64,
    /// The configured addresses of each node.
    pub addresses: [Vec<IpAddr>; 3],
    /// Their names.
    pub names: [String; 3],
    /// How they show who they are; `None`: by these addresses.
    pub security: Option<Arc<Security>>,
    /// Who may become one of them.
    pub issuer: Issuer,
}

impl Doorkeeper {
    /// What to answer to a call that comes from `address`, from the node that it showed to be, if it
    /// did.
    fn judge(&self, call: &Call, address: IpAddr, shown: Option<NodeId>) -> PreambleStatus {
        let (versions, ours, cluster, from, to) = match call {
            Call::Relay(it) => (it.versions, VersionRange::RELAY, it.cluster, it.from, it.to),
            Call::Forward(it) => (
                it.versions,
                VersionRange::FORWARD,
                it.cluster,
                it.from,
                it.to,
            ),
            Call::Secure(it) => (
                it.versions,
                VersionRange::SECURE,
                it.cluster,
                it.from,
                it.to,
            ),
        };
        let is_known = || match (shown, call) {
            (Some(shown), _) => shown == from,
            // It has yet to show it.
            (None, Call::Secure(_)) => true,
            (None, _) => self.addresses[from.index()].contains(&address.to_canonical()),
        };
        if versions.newest_common(ours).is_none() {
            PreambleStatus::Version
        } else if cluster != self.cluster {
            PreambleStatus::Cluster
        } else if to != self.node || from == to {
            PreambleStatus::Node
        } else if shown.is_none() && !self.begins_rightly(call) {
            PreambleStatus::Tls
        } else if !is_known() {
            PreambleStatus::Node
        } else if matches!(call, Call::Forward(_)) && !(to.is_data() && from == to.peer()) {
            // The arbitrator has no clients, and no business with the data.
            PreambleStatus::Node
        } else {
            PreambleStatus::Accepted
        }
    }

    /// Whether this is how a connection begins here.
    fn begins_rightly(&self, call: &Call) -> bool {
        match call {
            Call::Secure(opening) => match opening.purpose {
                Purpose::Join => self.issuer.is_here(),
                Purpose::Call => self.security.is_some(),
                // Where there is data the event loop has taken it.
                Purpose::Link => false,
            },
            Call::Relay(_) | Call::Forward(_) => self.security.is_none(),
        }
    }
}

/// Where relays come from, and who is let in.
#[derive(Debug)]
pub struct Door {
    /// From the shard.
    pub knocks: Arc<Mailbox<Knock>>,
    /// The arbitrator's, nonblocking; none where a shard listens.
    pub listeners: Vec<TcpListener>,
    /// Who may.
    pub keeper: Arc<Doorkeeper>,
    /// Not judged yet.
    strangers: Arc<AtomicUsize>,
    /// Being served.
    relays: Arc<AtomicUsize>,
}

impl Door {
    /// A door for these.
    #[must_use]
    pub fn new(
        knocks: Arc<Mailbox<Knock>>,
        listeners: Vec<TcpListener>,
        keeper: Doorkeeper,
    ) -> Self {
        Self {
            knocks,
            listeners,
            keeper: Arc::new(keeper),
            strangers: Arc::default(),
            relays: Arc::default(),
        }
    }

    /// Somebody who has not said anything yet, or whose words the shard has read. `None` when too
    /// many stand there: then it is closed.
    pub(super) fn visitor(&self, stream: TcpStream, call: Option<Call>) -> Option<Visitor> {
        let place = Place::take(&self.strangers, STRANGERS_MAX)?;
        Some(Visitor {
            stream,
            call,
            keeper: Arc::clone(&self.keeper),
            relays: Arc::clone(&self.relays),
            place,
        })
    }
}

/// A connection that is to be judged.
pub(super) struct Visitor {
    stream: TcpStream,
    call: Option<Call>,
    keeper: Arc<Doorkeeper>,
    relays: Arc<AtomicUsize>,
    place: Place,
}

impl Visitor {
    /// Hears who it is, answers, and serves its one request. On a thread of its own.
    pub(super) fn serve(self, handler: &dyn ControlHandler) -> io::Result<()> {
        let stream = self.stream;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        tune(&stream)?;
        let mut wire = Wire::Clear(stream);
        let call = match self.call {
            Some(call) => call,
            None => read_call(&mut wire)?,
        };
        let address = wire.socket().peer_addr()?.ip();
        let (mut wire, call, shown) = match call {
            Call::Secure(opening) => {
                let mut status = self.keeper.judge(&call, address, None);
                let joins = opening.purpose == Purpose::Join;
                let join_place = joins.then(|| self.keeper.issuer.place()).flatten();
                if joins && join_place.is_none() && status == PreambleStatus::Accepted {
                    status = PreambleStatus::Busy;
                }
                answer(&mut wire, status, VersionRange::SECURE, address)?;
                if status != PreambleStatus::Accepted {
                    return Ok(());
                }
                if joins {
                    let (_, socket) = wire.into_parts();
                    return self.keeper.issuer.serve(socket, &self.keeper);
                }
                let mut wire = shake_hands(wire, &opening, &self.keeper)?;
                let call = read_call(&mut wire)?;
                (wire, call, Some(opening.from))
            }
            call => (wire, call, None),
        };
        let mut status = self.keeper.judge(&call, address, shown);
        // Before anything is answered, while the other end must still be there.
        let believed = match shown {
            Some(_) => true,
            None => Origin::of(wire.socket()).is_ok_and(Origin::speaks_for_its_node),
        };
        let preamble = match call {
            Call::Relay(preamble) => preamble,
            Call::Forward(preamble) => {
                if status == PreambleStatus::Accepted && !believed {
                    status = PreambleStatus::Node;
                }
                if status != PreambleStatus::Accepted {
                    return answer(&mut wire, status, VersionRange::FORWARD, address);
                }
                handler.take_client(wire, preamble);
                return Ok(());
            }
            Call::Secure(_) => return Err(io::Error::other("TLS within TLS")),
        };
        let place = Place::take(&self.relays, RELAYS_MAX);
        if status == PreambleStatus::Accepted && place.is_none() {
            status = PreambleStatus::Busy;
        }
        answer(&mut wire, status, VersionRange::RELAY, address)?;
        if status != PreambleStatus::Accepted {
            return Ok(());
        }
        drop(self.place);
        let asker = Asker {
            may_change: preamble.may_change && believed,
            doubted: preamble.may_change && !believed,
            uid: preamble.uid,
            relayed_by: Some(preamble.from),
        };
        converse(Box::new(wire), asker, handler)
    }
}

/// TLS with the node that it says it is.
fn shake_hands(wire: Wire, opening: &SecurePreamble, keeper: &Doorkeeper) -> io::Result<Wire> {
    let security = keeper.security.as_ref();
    let peers = security
        .ok_or_else(|| io::Error::other("no TLS here"))?
        .peers();
    let server = Connection::Server(peers.accept().map_err(io::Error::other)?);
    let deadline = clock::now().plus(GREETING_TIMEOUT);
    let wire = wire.secure(server, deadline).inspect_err(|error| {
        tracing::info!(%error, "no TLS with who calls");
    })?;
    let shown = match &wire {
        Wire::Secure(stream) => stream.peer_certificate(),
        Wire::Clear(_) => None,
    };
    if !peers.is_of(shown, opening.from.index()) {
        tracing::warn!("who calls has the certificate of another node than it says");
        return Err(io::Error::other("another node's certificate"));
    }
    Ok(wire)
}

fn answer(
    wire: &mut Wire,
    status: PreambleStatus,
    ours: VersionRange,
    address: IpAddr,
) -> io::Result<()> {
    if status != PreambleStatus::Accepted {
        tracing::info!(?status, %address, "what another node passes on is refused");
    }
    // Each of these has had one form so far: the version agreed is the only one.
    let version = ours.max;
    wire.write_all(&PreambleReply { status, version }.encode())
}

fn read_call(wire: &mut Wire) -> io::Result<Call> {
    let mut bytes = [0; PREAMBLE_LEN];
    wire.read_until(&mut bytes, clock::now().plus(GREETING_TIMEOUT))?;
    match Opening::parse(&bytes) {
        Ok(Opening::Relay(preamble)) => Ok(Call::Relay(preamble)),
        Ok(Opening::Forward(preamble)) => Ok(Call::Forward(preamble)),
        Ok(Opening::Secure(preamble)) => Ok(Call::Secure(preamble)),
        Ok(Opening::Link(_)) => Err(io::Error::other("a data link, and there is no data here")),
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use replicator::types::ResourceId;

    use super::*;

    fn keeper() -> Doorkeeper {
        Doorkeeper {
            node: NodeId::A,
            cluster: 7,
            addresses: ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| vec![ip.parse().unwrap()]),
            names: ["a", "b", "c"].map(str::to_owned),
            security: None,
            issuer: Issuer::default(),
        }
    }

    #[test]
    fn only_another_node_of_this_cluster_from_its_own_address_is_let_in() {
        let good = RelayPreamble {
            versions: VersionRange::RELAY,
            cluster: 7,
            from: NodeId::B,
            to: NodeId::A,
            may_change: true,
            uid: 0,
        };
        let judge =
            |preamble, ip: &str| keeper().judge(&Call::Relay(preamble), ip.parse().unwrap(), None);
        assert_eq!(judge(good, "10.0.0.2"), PreambleStatus::Accepted);
        assert_eq!(judge(good, "::ffff:10.0.0.2"), PreambleStatus::Accepted);
        assert_eq!(judge(good, "10.0.0.3"), PreambleStatus::Node);
        let versions = VersionRange { min: 2, max: 3 };
        let cases = [
            (RelayPreamble { versions, ..good }, PreambleStatus::Version),
            (
                RelayPreamble { cluster: 8, ..good },
                PreambleStatus::Cluster,
            ),
            (
                RelayPreamble {
                    to: NodeId::B,
                    ..good
                },
                PreambleStatus::Node,
            ),
        ];
        for (preamble, status) in cases {
            assert_eq!(judge(preamble, "10.0.0.2"), status, "{preamble:?}");
        }
        let from = NodeId::A;
        let own = RelayPreamble { from, ..good };
        assert_eq!(judge(own, "10.0.0.1"), PreambleStatus::Node, "its own");
        let client = ForwardPreamble {
            versions: VersionRange::FORWARD,
            cluster: 7,
            from: NodeId::B,
            to: NodeId::A,
            resource: ResourceId(1),
        };
        let judge =
            |client, ip: &str| keeper().judge(&Call::Forward(client), ip.parse().unwrap(), None);
        assert_eq!(judge(client, "10.0.0.2"), PreambleStatus::Accepted);
        assert_eq!(judge(client, "10.0.0.9"), PreambleStatus::Node);
        let from = NodeId::ARBITRATOR;
        let arbitrators = ForwardPreamble { from, ..client };
        assert_eq!(judge(arbitrators, "10.0.0.3"), PreambleStatus::Node);
        let cluster = 8;
        let client = ForwardPreamble { cluster, ..client };
        assert_eq!(judge(client, "10.0.0.2"), PreambleStatus::Cluster);
    }
    #[test]
    fn who_showed_a_certificate_is_known_by_it_and_by_nothing_else() {
        let relay = RelayPreamble {
            versions: VersionRange::RELAY,
            cluster: 7,
            from: NodeId::B,
            to: NodeId::A,
            may_change: true,
            uid: 0,
        };
        let judge = |shown| {
            let address = "192.0.2.1".parse().unwrap();
            keeper().judge(&Call::Relay(relay), address, shown)
        };
        assert_eq!(judge(Some(NodeId::B)), PreambleStatus::Accepted);
        assert_eq!(judge(Some(NodeId::ARBITRATOR)), PreambleStatus::Node);
        assert_eq!(judge(None), PreambleStatus::Node);
    }

    #[test]
    fn without_keys_nobody_is_asked_to_show_any() {
        for purpose in [Purpose::Call, Purpose::Link, Purpose::Join] {
            let opening = SecurePreamble {
                versions: VersionRange::SECURE,
                cluster: 7,
                from: NodeId::B,
                to: NodeId::A,
                purpose,
            };
            let address = "10.0.0.2".parse().unwrap();
            let status = keeper().judge(&Call::Secure(opening), address, None);
            assert_eq!(status, PreambleStatus::Tls, "{purpose:?}");
        }
    }
}
