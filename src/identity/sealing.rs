//! Datagrams that only a node of the cluster can have made.
//!
//! Behind each datagram stand 32 bytes: HMAC-SHA256 over all of it, by a key of its own for each
//! cluster, sender and receiver, derived from the cluster's secret (HKDF-SHA256). Who says it to whom
//! is in the datagram and under the HMAC; what was said before is told from what is new by its boot
//! id, incarnation and sequence number, which the controller looks at.

use replicator::types::NodeId;
use ring::{hkdf, hmac};

use super::SECRET_LEN;

/// Bytes behind a datagram.
pub const TAG_LEN: usize = 32;

/// Places of sender and receiver in a datagram (`src/controller/message.rs`).
const FROM_AT: usize = 5;
const TO_AT: usize = 6;

/// The keys of one node.
pub struct DatagramKeys {
    node: NodeId,
    to: [hmac::Key; 3],
    from: [hmac::Key; 3],
}

impl core::fmt::Debug for DatagramKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DatagramKeys").finish_non_exhaustive()
    }
}

impl DatagramKeys {
    /// Those of `node`.
    #[must_use]
    pub fn new(secret: &[u8; SECRET_LEN], cluster_id: u128, node: NodeId) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &cluster_id.to_le_bytes());
        let prk = salt.extract(secret);
        let key = |from: NodeId, to: NodeId| key(&prk, from, to);
        Self {
            node,
            to: NodeId::ALL.map(|other| key(node, other)),
            from: NodeId::ALL.map(|other| key(other, node)),
        }
    }

    /// Puts its seal behind a datagram for that node.
    pub fn seal(&self, to: NodeId, datagram: &mut Vec<u8>) {
        let tag = hmac::sign(&self.to[to.index()], datagram);
        datagram.extend_from_slice(tag.as_ref());
    }

    /// The datagram without its seal; `None` unless a node of the cluster made it, for this one.
    #[must_use]
    pub fn open<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let (datagram, tag) = split(bytes)?;
        let node = |at: usize| NodeId::from_raw(*datagram.get(at)?);
        let (from, to) = (node(FROM_AT)?, node(TO_AT)?);
        if from == self.node || to != self.node {
            return None;
        }
        hmac::verify(&self.from[from.index()], datagram, tag).ok()?;
        Some(datagram)
    }
}

/// What a sealed datagram is made of, whoever sealed it.
#[must_use]
pub fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.len().checked_sub(TAG_LEN)?;
    Some(bytes.split_at(at))
}

fn key(prk: &hkdf::Prk, from: NodeId, to: NodeId) -> hmac::Key {
    let direction = [from.raw(), to.raw()];
    let info: [&[u8]; 2] = [b"twinblk datagram 1", &direction];
    let okm = prk.expand(&info, hmac::HMAC_SHA256);
    hmac::Key::from(okm.expect("one block of output is always to be had"))
}
