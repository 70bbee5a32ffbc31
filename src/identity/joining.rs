//! The side of the node that joins: from a token to its keys.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use replicator::protocol::{
    PREAMBLE_REPLY_LEN, PreambleReply, PreambleStatus, Purpose, SecurePreamble, VersionRange,
};
use replicator::types::{NodeId, ResourceId};
use rustls::Connection;
use rustls::pki_types::CertificateDer;
use thiserror::Error;

use super::authority::{IssueError, NodeKey};
use super::files::NodeKeys;
use super::message::{Admission, JoinRefusal, JoinRequest, parse_answer};
use super::peers::{PeerTlsError, check_admission, join_client};
use super::stream::SecureStream;
use super::token::Token;

/// How long the issuer may take to say anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Who joins.
#[derive(Clone, Copy, Debug)]
pub struct Joiner<'a> {
    /// The cluster's name, as this node is configured.
    pub cluster: &'a str,
    /// This node's name.
    pub node: &'a str,
    /// This node.
    pub id: NodeId,
    /// The issuer, as this node is configured.
    pub issuer: NodeId,
}

/// Why nobody joined.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// No address of the issuer answers.
    #[error("{0}")]
    Unreachable(String),
    /// It was told the token, and its answer did not come.
    #[error("it did not answer the token, which may be used up: {0}")]
    Lost(String),
    /// Somebody answers, and does not let in.
    #[error("{0}")]
    TurnedAway(&'static str),
    /// The issuer says no.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// What answers is not the issuer.
    #[error("{0}")]
    Untrusted(String),
    /// No key could be made here.
    #[error(transparent)]
    Key(#[from] IssueError),
}

impl From<PeerTlsError> for JoinError {
    fn from(error: PeerTlsError) -> Self {
        Self::Untrusted(error.to_string())
    }
}

/// Makes a key here, and has the issuer certify it.
///
/// # Errors
/// If it does not. The token may be used up then.
pub fn join(token: &Token, joiner: Joiner<'_>) -> Result<NodeKeys, JoinError> {
    let socket = connect(&token.addresses)?;
    let key = NodeKey::new()?;
    let lost = |error: io::Error| JoinError::Lost(error.to_string());
    knock(&socket, joiner)?;
    let connection = Connection::Client(join_client(token)?);
    let mut stream = SecureStream::new(connection, socket, || ANSWER_TIMEOUT)
        .map_err(|error| JoinError::Untrusted(error.to_string()))?;
    let request = JoinRequest {
        token: token.id,
        secret: token.secret,
        node: joiner.node.to_owned(),
        public_key: key.public(),
    };
    stream.write_message(&request.encode()).map_err(lost)?;
    let answer = stream.read_message(|| ANSWER_TIMEOUT).map_err(lost)?;
    let answer = parse_answer(&answer);
    let admission = answer.ok_or_else(|| {
        JoinError::Untrusted("what it answers is not understood: another version".to_owned())
    })??;
    keys_of(token, joiner, &key, admission)
}

fn keys_of(
    token: &Token,
    joiner: Joiner<'_>,
    key: &NodeKey,
    admission: Admission,
) -> Result<NodeKeys, JoinError> {
    let certificate = CertificateDer::from(admission.certificate);
    let authority = CertificateDer::from(admission.authority);
    check_admission(token, joiner.node, &certificate, &authority)?;
    if admission.cluster != joiner.cluster {
        let why = format!(
            "it is of cluster {}, not {}",
            admission.cluster, joiner.cluster
        );
        return Err(JoinError::Untrusted(why));
    }
    Ok(NodeKeys {
        cluster: admission.cluster,
        cluster_id: token.cluster,
        node: joiner.node.to_owned(),
        secret: admission.secret,
        authority,
        certificate,
        key: key.private().to_vec(),
    })
}

fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, JoinError> {
    let mut reasons = Vec::new();
    for address in addresses {
        let connected = TcpStream::connect_timeout(address, ANSWER_TIMEOUT).and_then(|socket| {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    Err(JoinError::Unreachable(reasons.join("; ")))
}

fn knock(mut socket: &TcpStream, joiner: Joiner<'_>) -> Result<(), JoinError> {
    let preamble = SecurePreamble {
        versions: VersionRange::SECURE,
        cluster: ResourceId::of_name(joiner.cluster).0,
        from: joiner.id,
        to: joiner.issuer,
        purpose: Purpose::Join,
    };
    let mut reply = [0; PREAMBLE_REPLY_LEN];
    socket
        .write_all(&preamble.encode())
        .and_then(|()| socket.read_exact(&mut reply))
        .map_err(|error| JoinError::Unreachable(error.to_string()))?;
    let reply = PreambleReply::parse(&reply)
        .map_err(|_| JoinError::TurnedAway("what listens there is no twinblk"))?;
    Err(JoinError::TurnedAway(match reply.status {
        PreambleStatus::Accepted => return Ok(()),
        PreambleStatus::Version => "the daemon there is of another version",
        PreambleStatus::Cluster => "the daemon there is of another cluster",
        PreambleStatus::Node => "the configurations of the two nodes differ: [node.*]",
        PreambleStatus::Resource | PreambleStatus::Tls => {
            "the cluster's authority is not there: another state directory than `init` wrote to?"
        }
        PreambleStatus::Busy => "the daemon there has too many others to answer",
    }))
}
