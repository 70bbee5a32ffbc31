//! How this node knows the others, and they it: `[net] tls`, the keys of the state directory, and
//! what tells that the other side has them set otherwise.
//!
//! Owns which connections are within TLS: with "required" all, with "control-only" all but the data
//! links. Whoever connects asks for the set in force and keeps it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport};
use replicator::types::{Instant, NodeId};

use crate::config::{Config, Tls};
use crate::controller::Datagram;
use crate::identity::files::{KeysError, NodeKeys};
use crate::identity::peers::PeerTls;
use crate::identity::sealing::{DatagramKeys, split};

/// See the module. There is none where `tls = "off"`.
pub struct Security {
    mode: Tls,
    node: NodeId,
    names: [String; 3],
    state_dir: PathBuf,
    cluster_id: u128,
    /// As it was at the start: seals of datagrams do not change while the process runs.
    datagrams: Arc<DatagramKeys>,
    peers: Mutex<Arc<PeerTls>>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the keys.
        f.debug_struct("Security")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Security {
    /// Reads the keys, if the configuration asks for any.
    ///
    /// # Errors
    /// If there are none that can be used: then nothing may start.
    pub fn open(
        config: &Config,
        node: NodeId,
        state_dir: &Path,
    ) -> Result<Option<Arc<Self>>, ErrorReport> {
        if config.net.tls == Tls::Off {
            return Ok(None);
        }
        let names = NodeId::ALL.map(|id| config.node_name(id).to_owned());
        let (keys, peers) = read(&config.cluster, node, &names, state_dir)?;
        Ok(Some(Arc::new(Self {
            mode: config.net.tls,
            node,
            names,
            state_dir: state_dir.to_owned(),
            cluster_id: keys.cluster_id,
            datagrams: Arc::new(DatagramKeys::new(&keys.secret, keys.cluster_id, node)),
            peers: Mutex::new(Arc::new(peers)),
        })))
    }

    /// Whether data links are within TLS too.
    #[must_use]
    pub fn covers_links(&self) -> bool {
        self.mode == Tls::Required
    }

    /// What TLS is set up with now.
    #[must_use]
    pub fn peers(&self) -> Arc<PeerTls> {
        Arc::clone(&self.peers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What datagrams are sealed with.
    #[must_use]
    pub fn datagrams(&self) -> Arc<DatagramKeys> {
        Arc::clone(&self.datagrams)
    }

    /// Reads this node's certificate and key again: new connections have them.
    ///
    /// # Errors
    /// If they cannot be used, or are of another cluster: those before stay.
    pub fn reload(&self, cluster: &str) -> Result<(), ErrorReport> {
        let (keys, peers) = read(cluster, self.node, &self.names, &self.state_dir)?;
        if keys.cluster_id != self.cluster_id {
            let what = "the keys read now are not taken";
            let why = "they are of a new authority: all nodes have to be started again";
            return Err(ErrorReport::new(ErrorId::KeysUnusable, what, why));
        }
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(peers);
        Ok(())
    }
}

fn read(
    cluster: &str,
    node: NodeId,
    names: &[String; 3],
    state_dir: &Path,
) -> Result<(NodeKeys, PeerTls), ErrorReport> {
    let keys = NodeKeys::open(state_dir).map_err(|error| refusal(cluster, &error))?;
    let own = &names[node.index()];
    let unusable = |why: String| {
        let what = format!("the keys in {} cannot be used", state_dir.display());
        ErrorReport::new(ErrorId::KeysUnusable, what, why)
    };
    if keys.cluster != cluster || keys.node != *own {
        let (theirs, whose) = (&keys.node, &keys.cluster);
        return Err(unusable(format!(
            "they are those of {theirs} in cluster {whose}, and this is {own} in cluster {cluster}"
        ))
        .next("name this node's own directory with --state-dir DIR"));
    }
    let peers = PeerTls::new(&keys, [&names[0], &names[1], &names[2]]);
    peers
        .map_err(|error| unusable(error.to_string()))
        .map(|peers| (keys, peers))
}

/// Why there are no keys, for whoever starts a daemon.
fn refusal(cluster: &str, error: &KeysError) -> ErrorReport {
    match error {
        KeysError::Missing(_) => {
            let what = "refusing to start: this node has no keys for TLS";
            let why = format!("[net] tls is not \"off\", and {error}");
            ErrorReport::new(ErrorId::TlsKeysMissing, what, why)
                .next(format!(
                    "on the cluster's first node: twinadm init {cluster}"
                ))
                .next("on each other node, with a token that it prints: twinadm join TOKEN")
        }
        KeysError::System { error: system, .. }
            if system.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            let what = "the keys cannot be read";
            ErrorReport::new(ErrorId::Permission, what, error.to_string())
        }
        _ => {
            let what = "the keys cannot be used";
            ErrorReport::new(ErrorId::KeysUnusable, what, error.to_string())
        }
    }
}

/// Tells of something that strangers can bring about, at most so often.
#[derive(Debug, Default)]
pub(super) struct Seldom(AtomicU64);

impl Seldom {
    /// One that has told of nothing.
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether it is time to tell again.
    pub(super) fn is_due(&self, now: Instant, every: Duration) -> bool {
        let next = self.0.load(Ordering::Relaxed);
        let due = now.0 >= next;
        if due {
            self.0.store(now.plus(every).0, Ordering::Relaxed);
        }
        due
    }
}

/// What is no datagram of this cluster's is told of at most so often for each node and kind.
const MISMATCH_TOLD_EVERY: Duration = Duration::from_secs(60);
/// And looked at at most so often.
const MISMATCH_LOOKED_EVERY: Duration = Duration::from_millis(100);

/// When what was told of.
#[derive(Debug, Default)]
pub(super) struct Mismatches {
    looked: Seldom,
    told: [[Seldom; 3]; 3],
}

impl Mismatches {
    /// Whether what is not taken may be looked at.
    pub(super) fn may_look(&self, now: Instant) -> bool {
        self.looked.is_due(now, MISMATCH_LOOKED_EVERY)
    }

    /// Whether this is to be told of.
    pub(super) fn may_tell(&self, now: Instant, from: NodeId, what: Mismatch) -> bool {
        let kind = match what {
            Mismatch::Sealed => 0,
            Mismatch::Bare => 1,
            Mismatch::Foreign => 2,
        };
        self.told[from.index()][kind].is_due(now, MISMATCH_TOLD_EVERY)
    }
}

/// Why a datagram that could be another node's has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It is sealed, and `tls = "off"` here.
    Sealed,
    /// It is not, and it has to be.
    Bare,
    /// It is sealed with other keys.
    Foreign,
}

impl Mismatch {
    /// What a datagram that was not taken looks like, if like anything: of this cluster, from another
    /// node, for this one. Anybody can make one that does: it is told, and nothing else comes of it.
    pub(super) fn of(
        bytes: &[u8],
        keys: Option<&DatagramKeys>,
        cluster: u64,
        node: NodeId,
    ) -> Option<(NodeId, Self)> {
        let ours = |bytes: &[u8]| {
            let header = Datagram::decode(bytes).ok()?.header;
            (header.cluster == cluster && header.to == node && header.from != node)
                .then_some(header.from)
        };
        let sealed = || split(bytes).and_then(|(inside, _)| ours(inside));
        match keys {
            None => sealed().map(|from| (from, Self::Sealed)),
            Some(_) => ours(bytes)
                .map(|from| (from, Self::Bare))
                .or_else(|| sealed().map(|from| (from, Self::Foreign))),
        }
    }

    /// For people.
    pub(super) fn words(self, other: &str) -> String {
        match self {
            Self::Sealed => format!(
                "{other} has [net] tls set, and it is \"off\" here: nothing it says is taken"
            ),
            Self::Bare => format!(
                "{other} has [net] tls = \"off\", and it is not here: nothing it says is taken"
            ),
            Self::Foreign => format!(
                "{other} has keys of another cluster or of an earlier `init`: nothing it says is taken"
            ),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use replicator::types::VoterId;

    use super::*;
    use crate::controller::Header;
    use crate::identity::authority::{Authority, NodeKey};

    /// A node's keys, which no file holds.
    pub(in crate::daemon) fn keys_of(
        authority: &Authority,
        cluster_id: u128,
        node: NodeId,
        mode: Tls,
    ) -> Arc<Security> {
        let names = ["kvm-a", "kvm-b", "arb"];
        let key = NodeKey::new().unwrap();
        let name = names[node.index()];
        let keys = NodeKeys {
            cluster: "lab".to_owned(),
            cluster_id,
            node: name.to_owned(),
            secret: [7; 32],
            authority: authority.certificate().clone(),
            certificate: authority.issue(name, &key.public()).unwrap(),
            key: key.private().to_vec(),
        };
        Arc::new(Security {
            mode,
            node,
            names: names.map(str::to_owned),
            state_dir: PathBuf::new(),
            cluster_id,
            datagrams: Arc::new(DatagramKeys::new(&keys.secret, cluster_id, node)),
            peers: Mutex::new(Arc::new(PeerTls::new(&keys, names).unwrap())),
        })
    }

    /// Somebody sends what looks like each other node's in turn, as fast as it goes.
    #[test]
    fn what_anybody_can_send_is_told_of_once_a_minute_for_each_node_and_kind() {
        let seen = Mismatches::default();
        let (mut looks, mut lines) = (0, 0);
        for millis in 0..120_000 {
            let now = Instant::ZERO.plus(Duration::from_millis(millis));
            looks += usize::from(seen.may_look(now));
            for from in [NodeId::B, NodeId::ARBITRATOR] {
                for what in [Mismatch::Bare, Mismatch::Foreign] {
                    lines += usize::from(seen.may_tell(now, from, what));
                }
            }
        }
        assert_eq!((looks, lines), (1_200, 8));
    }

    #[test]
    fn what_is_not_taken_is_told_apart_and_garbage_is_nothing() {
        let (a, b) = (NodeId::A, NodeId::B);
        let datagram = Datagram {
            header: Header {
                cluster: 7,
                from: b,
                to: a,
                boot_id: 1,
                voter: VoterId(1),
                incarnation: 1,
                seq: 1,
            },
            parts: Vec::new(),
        };
        let bare = datagram.encode();
        let seal = |secret: u8| {
            let mut bytes = bare.clone();
            DatagramKeys::new(&[secret; 32], 5, b).seal(a, &mut bytes);
            bytes
        };
        let keys = DatagramKeys::new(&[1; 32], 5, a);
        assert_eq!(keys.open(&seal(1)), Some(&bare[..]));
        let of = |bytes: &[u8], keys| Mismatch::of(bytes, keys, 7, a).map(|(_, what)| what);
        assert_eq!(of(&bare, Some(&keys)), Some(Mismatch::Bare));
        assert_eq!(of(&seal(2), Some(&keys)), Some(Mismatch::Foreign));
        assert_eq!(of(&seal(1), None), Some(Mismatch::Sealed));
        for garbage in [&[][..], &[0; 20], &[9; 1200], &bare[..60]] {
            assert_eq!(of(garbage, None), None);
            assert_eq!(of(garbage, Some(&keys)), None);
        }
        let another = |bytes: &[u8], cluster, node| Mismatch::of(bytes, None, cluster, node);
        assert_eq!(another(&seal(1), 8, a), None, "another cluster");
        assert_eq!(another(&seal(1), 7, b), None, "not for this node");
    }
}
