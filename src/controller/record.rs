//! What a voter keeps per resource, and its bytes.
//!
//! One record holds everything that must survive a restart, so that one atomic write makes a
//! promise, an acceptance or a seal durable. The store around it (append, checksum, two slots) is
//! the daemon's.

use replicator::types::{ReplicaId, View, ViewNumber};

use super::codec::{BALLOT_LEN, CodecError, Put, Reader, VIEW_LEN, unknown};
use super::register::Acceptor;

/// The durable state of one resource at one voter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VoterRecord {
    /// This voter's part of the register (R1).
    pub acceptor: Acceptor,
    /// Views up to this one are refused for ever (R6). 0: none.
    pub seal: ViewNumber,
    /// The newest view known to be committed. Only a hint after a restart: it never activates.
    pub committed: Option<View>,
    /// The resource was `up` on this node: it comes up again when the daemon starts.
    pub up: bool,
    /// The replica's disk failed (R23): mirrored here because the disk may forget it.
    pub replica_failed: bool,
    /// The replica attached last (R23): another one is refused.
    pub replica: Option<ReplicaId>,
}

/// First byte of an encoded record.
const RECORD_VERSION: u8 = 1;

const HAS_ACCEPTED: u8 = 1;
const HAS_COMMITTED: u8 = 2;
const UP: u8 = 4;
const REPLICA_FAILED: u8 = 8;

impl VoterRecord {
    /// Bytes of an encoded record; always the same, absent fields are zero.
    pub const LEN: usize = 1 + 1 + 2 * BALLOT_LEN + 2 * VIEW_LEN + 8 + 16;

    /// The record as bytes, without checksum: the store adds one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.put_u8(RECORD_VERSION);
        out.put_u8(
            u8::from(self.acceptor.accepted.is_some()) * HAS_ACCEPTED
                + u8::from(self.committed.is_some()) * HAS_COMMITTED
                + u8::from(self.up) * UP
                + u8::from(self.replica_failed) * REPLICA_FAILED,
        );
        out.put_ballot(self.acceptor.promised);
        match &self.acceptor.accepted {
            Some((ballot, view)) => {
                out.put_ballot(*ballot);
                out.put_view(view);
            }
            None => out.resize(out.len() + BALLOT_LEN + VIEW_LEN, 0),
        }
        match &self.committed {
            Some(view) => out.put_view(view),
            None => out.resize(out.len() + VIEW_LEN, 0),
        }
        out.put_u64(self.seal.0);
        out.put_u128(self.replica.map_or(0, |id| id.0));
        assert_eq!(out.len(), Self::LEN, "the layout has one length");
        out
    }

    /// The record from bytes made by [`Self::encode`].
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are anything else; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != RECORD_VERSION {
            return Err(CodecError::Version(version));
        }
        let flags = reader.bits(
            "record flags",
            HAS_ACCEPTED | HAS_COMMITTED | UP | REPLICA_FAILED,
        )?;
        let promised = reader.ballot()?;
        let ballot = reader.ballot()?;
        let accepted = optional_view(&mut reader, flags & HAS_ACCEPTED != 0)?;
        let committed = optional_view(&mut reader, flags & HAS_COMMITTED != 0)?;
        let seal = reader.view_number("seal")?;
        let replica = Some(ReplicaId(reader.u128()?)).filter(|id| id.0 != 0);
        reader.end()?;
        Ok(Self {
            acceptor: Acceptor {
                promised,
                accepted: accepted.map(|view| (ballot, view)),
            },
            seal,
            committed,
            up: flags & UP != 0,
            replica_failed: flags & REPLICA_FAILED != 0,
            replica,
        })
    }

    /// The newest view this voter has heard of, accepted or committed: a hint about what to try,
    /// never a right.
    #[must_use]
    pub fn newest(&self) -> Option<&View> {
        let accepted = self.acceptor.accepted.as_ref().map(|(_, view)| view);
        [accepted, self.committed.as_ref()]
            .into_iter()
            .flatten()
            .max_by_key(|view| view.number)
    }
}

fn optional_view(reader: &mut Reader<'_>, present: bool) -> Result<Option<View>, CodecError> {
    if present {
        return reader.view().map(Some);
    }
    for _ in 0..VIEW_LEN {
        let byte = reader.u8()?;
        if byte != 0 {
            return Err(unknown("absent view", byte));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use replicator::types::Ballot;

    use super::*;
    use crate::controller::testing::{ballot, founded};

    fn full() -> VoterRecord {
        VoterRecord {
            acceptor: Acceptor {
                promised: ballot(7, 1),
                accepted: Some((ballot(6, 0), founded())),
            },
            seal: ViewNumber(3),
            committed: Some(founded()),
            up: true,
            replica_failed: true,
            replica: Some(ReplicaId(0xbeef)),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for record in [VoterRecord::default(), full()] {
            let bytes = record.encode();
            assert_eq!(bytes.len(), VoterRecord::LEN);
            assert_eq!(VoterRecord::decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn a_cut_or_longer_record_is_refused() {
        let bytes = full().encode();
        for len in 0..bytes.len() {
            assert!(VoterRecord::decode(&bytes[..len]).is_err(), "length {len}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(VoterRecord::decode(&longer), Err(CodecError::Trailing(1)));
    }

    /// Story: a record with a number near its maximum is loaded, the next view is counted from it,
    /// and the daemon dies of the overflow at this and every later start.
    #[test]
    fn a_number_whose_successor_could_overflow_is_refused() {
        let mut last = full();
        last.seal = ViewNumber::MAX;
        last.acceptor.promised.round = Ballot::ROUND_MAX;
        last.committed.as_mut().unwrap().number = ViewNumber::MAX;
        assert_eq!(VoterRecord::decode(&last.encode()), Ok(last));
        let beyond = ViewNumber(ViewNumber::MAX.0 + 1);
        let refused = |change: fn(&mut VoterRecord, ViewNumber), number: ViewNumber| {
            let mut forged = full();
            change(&mut forged, number);
            match VoterRecord::decode(&forged.encode()) {
                Err(CodecError::Value { field, value }) if value == number.0 => field,
                other => panic!("{other:?}"),
            }
        };
        for number in [beyond, ViewNumber(u64::MAX)] {
            assert_eq!(refused(|it, number| it.seal = number, number), "seal");
            let accepted = |it: &mut VoterRecord, number| {
                it.acceptor.accepted.as_mut().unwrap().1.number = number;
            };
            assert_eq!(refused(accepted, number), "view number");
            let committed = |it: &mut VoterRecord, number| {
                it.committed.as_mut().unwrap().number = number;
            };
            assert_eq!(refused(committed, number), "view number");
        }
        for round in [Ballot::ROUND_MAX + 1, u32::MAX] {
            let mut forged = full();
            forged.acceptor.promised.round = round;
            let (field, value) = ("round", u64::from(round));
            let refusal = Err(CodecError::Value { field, value });
            assert_eq!(VoterRecord::decode(&forged.encode()), refusal);
        }
    }

    #[test]
    fn the_newest_view_may_be_accepted_or_committed() {
        let mut record = full();
        record.acceptor.accepted.as_mut().unwrap().1.number = ViewNumber(9);
        assert_eq!(record.newest().unwrap().number, ViewNumber(9));
        record.committed.as_mut().unwrap().number = ViewNumber(10);
        assert_eq!(record.newest().unwrap().number, ViewNumber(10));
        assert_eq!(VoterRecord::default().newest(), None);
    }
}
