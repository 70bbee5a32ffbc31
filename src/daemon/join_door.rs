//! Where a node comes in that has no certificate yet, and a token: the side of the issuer.
//!
//! Runs on a thread of the control socket's. Whether this node is an issuer is looked up in the files
//! each time, whatever `[net] tls` is: a cluster gets its keys before it uses them.
//!
//! Invariant: a token is used up, durably, before its certificate leaves.

use std::io::{self, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use replicator::io::clock;
use rustls::Connection;

use super::control::Place;
use super::relay_door::Doorkeeper;
use super::security::Seldom;
use crate::identity::authority::Authority;
use crate::identity::files::{self, NodeKeys};
use crate::identity::message::{Admission, JoinAnswer, JoinRefusal, JoinRequest, encode_answer};
use crate::identity::peers::join_server;
use crate::identity::stream::SecureStream;
use crate::identity::tokens::{Redeemed, redeem};

/// Joins at once: a cluster has two other nodes.
const JOINS_MAX: usize = 4;

/// Time for all of it, from the first byte of TLS on.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// That somebody may not join is told at most so often.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// What is behind the door.
#[derive(Clone, Debug, Default)]
pub struct Issuer {
    /// Where the keys may be.
    pub state_dir: PathBuf,
    joins: Arc<AtomicUsize>,
}

impl Issuer {
    /// One for the keys of this state directory.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            joins: Arc::default(),
        }
    }

    /// Whether the cluster's authority is here.
    pub(super) fn is_here(&self) -> bool {
        files::has_authority(&self.state_dir)
    }

    /// A place for one that joins; `None` when too many are at it.
    pub(super) fn place(&self) -> Option<Place> {
        Place::take(&self.joins, JOINS_MAX)
    }

    /// Serves one that has a place and was told to begin TLS.
    pub(super) fn serve(&self, socket: TcpStream, keeper: &Doorkeeper) -> io::Result<()> {
        let deadline = clock::now().plus(JOIN_TIMEOUT);
        let left = || deadline.since(clock::now());
        let keys = NodeKeys::open(&self.state_dir).map_err(io::Error::other)?;
        let authority = keys.authority(&self.state_dir).map_err(io::Error::other)?;
        let authority = authority.ok_or_else(|| io::Error::other("no authority"))?;
        let server = Connection::Server(join_server(&keys).map_err(io::Error::other)?);
        let mut stream = SecureStream::new(server, socket, left)?;
        let request = stream.read_message(left)?;
        let request = JoinRequest::parse(&request)
            .ok_or_else(|| io::Error::other("what wants to join is not understood"))?;
        let answer = self.decide(&request, &keys, &authority, keeper);
        match &answer {
            Ok(_) => tracing::info!("{} has joined and has a certificate now", request.node),
            Err(why) => {
                // Anybody can bring this about, and say any name.
                static TOLD: Seldom = Seldom::new();
                if TOLD.is_due(clock::now(), TELL_INTERVAL) {
                    let names = &keeper.names;
                    let known = names.iter().find(|name| **name == request.node);
                    let who = known.map_or("somebody", |name| name);
                    tracing::warn!("{who} may not join: {why}");
                }
            }
        }
        stream.write_message(&encode_answer(&answer))?;
        stream.flush()?;
        stream.farewell();
        Ok(())
    }

    fn decide(
        &self,
        request: &JoinRequest,
        keys: &NodeKeys,
        authority: &Authority,
        keeper: &Doorkeeper,
    ) -> JoinAnswer {
        // The token first: who has none learns nothing of the configuration.
        let now = clock::unix_millis() / 1000;
        let JoinRequest {
            token,
            secret,
            node,
            ..
        } = request;
        match redeem(&self.state_dir, *token, secret, node, now) {
            Ok(Redeemed::Yes) => {}
            Ok(Redeemed::ForAnother) => return Err(JoinRefusal::Node),
            Ok(Redeemed::No) => return Err(JoinRefusal::Token),
            Err(error) => {
                tracing::error!("a token cannot be used up: {error}");
                return Err(JoinRefusal::Failed);
            }
        }
        if request.node == keys.node || !keeper.names.contains(&request.node) {
            return Err(JoinRefusal::Node);
        }
        let certificate = authority.issue(&request.node, &request.public_key);
        let certificate = certificate.map_err(|error| {
            tracing::error!("no certificate for {}: {error}", request.node);
            JoinRefusal::Failed
        })?;
        Ok(Admission {
            cluster: keys.cluster.clone(),
            secret: keys.secret,
            certificate: certificate.to_vec(),
            authority: keys.authority.to_vec(),
        })
    }
}
