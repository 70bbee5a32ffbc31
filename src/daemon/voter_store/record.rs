//! The node's own record: who this voter is. Pure. Resources' records are the controller's.

use replicator::types::VoterId;

use super::codec::{BadField, Reader, Writer};

/// Layout version. A reader refuses what it does not know rather than lose what lies in a field
/// it cannot see.
const RECORD_VERSION: u8 = 1;

/// Who this voter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Name of the cluster it belongs to.
    pub cluster: String,
    /// Its node's name.
    pub node: String,
    /// Its identity: random, made with the store, recorded in views.
    pub voter: VoterId,
    /// Starts of this node's process so far.
    pub incarnation: u32,
    /// Resource entries in use, so that one that vanished is noticed.
    pub(super) entries: u32,
}

impl NodeRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(RECORD_VERSION);
        out.text(&self.cluster);
        out.text(&self.node);
        out.u128(self.voter.0);
        out.u32(self.incarnation);
        out.u32(self.entries);
        out.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadField> {
        let mut fields = Reader(bytes);
        if fields.u8("version")? != RECORD_VERSION {
            return Err(BadField("version"));
        }
        Ok(Self {
            cluster: fields.text("cluster")?.to_owned(),
            node: fields.text("node")?.to_owned(),
            voter: VoterId(fields.u128("voter id")?),
            incarnation: fields.u32("incarnation")?,
            entries: fields.u32("entries")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_record_reads_back_and_no_cut_of_it_does() {
        let record = NodeRecord {
            cluster: "lab".to_owned(),
            node: "kvm-ä".to_owned(),
            voter: VoterId(7),
            incarnation: 9,
            entries: 2,
        };
        let bytes = record.encode();
        assert_eq!(NodeRecord::decode(&bytes), Ok(record));
        for len in 0..bytes.len() {
            assert!(NodeRecord::decode(&bytes[..len]).is_err(), "length {len}");
        }
    }
}
