//! Little-endian fields, one by one: what the datagrams and the voter record are made of.
//!
//! Reading never panics: a [`Reader`] that runs out says so, and enums refuse unknown values.

use replicator::types::{
    Ballot, DataGeneration, InSync, NodeId, ReplicaId, View, ViewCause, ViewNumber, VoterId,
    VoterSet,
};
use thiserror::Error;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Fewer bytes than the structure needs.
    #[error("cut short")]
    Short,
    /// More bytes than the structure has.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// Not ours.
    #[error("not a twinblk structure")]
    Magic,
    /// Another version.
    #[error("version {0} is not understood")]
    Version(u8),
    /// Damaged on the way.
    #[error("checksum mismatch")]
    Checksum,
    /// A field holds a value that means nothing.
    #[error("{field} cannot be {value}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: u64,
    },
}

/// Bytes of an encoded [`Ballot`].
pub(crate) const BALLOT_LEN: usize = 4 + 1 + 4;
/// Bytes of an encoded [`View`].
pub(crate) const VIEW_LEN: usize = 8 + 1 + 1 + 16 + 2 * 16 + 3 * 16 + 8 + 1 + 1;

const IN_SYNC_A: u8 = 1;
const IN_SYNC_B: u8 = 2;
const HELD: u8 = 1;
const LOSSY: u8 = 2;
const FORCED: u8 = 4;

/// Appends fields.
pub(crate) trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_u128(&mut self, value: u128);
    fn put_ballot(&mut self, ballot: Ballot);
    fn put_view(&mut self, view: &View);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u128(&mut self, value: u128) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_ballot(&mut self, ballot: Ballot) {
        self.put_u32(ballot.round);
        self.put_u8(ballot.node);
        self.put_u32(ballot.incarnation);
    }

    fn put_view(&mut self, view: &View) {
        let before = self.len();
        self.put_u64(view.number.0);
        self.put_u8(view.primary.raw());
        self.put_u8(u8::from(view.in_sync.a) * IN_SYNC_A + u8::from(view.in_sync.b) * IN_SYNC_B);
        self.put_u128(view.data_generation.0);
        for replica in view.replicas {
            self.put_u128(replica.map_or(0, |id| id.0));
        }
        for voter in view.voters.0 {
            self.put_u128(voter.map_or(0, |id| id.0));
        }
        self.put_u64(view.size_blocks);
        self.put_u8(
            u8::from(view.held) * HELD
                + u8::from(view.lossy) * LOSSY
                + u8::from(view.forced) * FORCED,
        );
        self.put_u8(cause_to_raw(view.cause));
        debug_assert_eq!(self.len() - before, VIEW_LEN);
    }
}

/// Takes fields off the front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, CodecError> {
        Ok(u128::from_le_bytes(self.take()?))
    }

    /// Exactly 0 or 1.
    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(unknown(field, value)),
        }
    }

    /// Bits outside `known` are refused: a newer writer means something we would miss.
    pub(crate) fn bits(&mut self, field: &'static str, known: u8) -> Result<u8, CodecError> {
        let bits = self.u8()?;
        if bits & !known == 0 {
            Ok(bits)
        } else {
            Err(unknown(field, bits))
        }
    }

    pub(crate) fn node(&mut self, field: &'static str) -> Result<NodeId, CodecError> {
        let raw = self.u8()?;
        NodeId::from_raw(raw).ok_or(unknown(field, raw))
    }

    /// At most [`ViewNumber::MAX`].
    pub(crate) fn view_number(&mut self, field: &'static str) -> Result<ViewNumber, CodecError> {
        let value = self.u64()?;
        ViewNumber::from_raw(value).ok_or(CodecError::Value { field, value })
    }

    fn round(&mut self) -> Result<u32, CodecError> {
        let round = self.u32()?;
        if round > Ballot::ROUND_MAX {
            let (field, value) = ("round", u64::from(round));
            return Err(CodecError::Value { field, value });
        }
        Ok(round)
    }

    pub(crate) fn ballot(&mut self) -> Result<Ballot, CodecError> {
        Ok(Ballot {
            round: self.round()?,
            node: self.u8()?,
            incarnation: self.u32()?,
        })
    }

    pub(crate) fn view(&mut self) -> Result<View, CodecError> {
        let number = self.view_number("view number")?;
        if number == ViewNumber::NONE {
            return Err(unknown("view number", 0));
        }
        let primary = self.node("primary")?;
        if !primary.is_data() {
            return Err(unknown("primary", primary.raw()));
        }
        let in_sync = self.bits("in_sync", IN_SYNC_A | IN_SYNC_B)?;
        if in_sync == 0 {
            return Err(unknown("in_sync", 0));
        }
        let data_generation = DataGeneration(self.u128()?);
        let mut replicas = [None; 2];
        for replica in &mut replicas {
            *replica = Some(ReplicaId(self.u128()?)).filter(|id| id.0 != 0);
        }
        let mut voters = [None; 3];
        for voter in &mut voters {
            *voter = Some(VoterId(self.u128()?)).filter(|id| id.0 != 0);
        }
        let size_blocks = self.u64()?;
        let flags = self.bits("view flags", HELD | LOSSY | FORCED)?;
        let cause = self.u8()?;
        Ok(View {
            number,
            primary,
            in_sync: InSync {
                a: in_sync & IN_SYNC_A != 0,
                b: in_sync & IN_SYNC_B != 0,
            },
            data_generation,
            replicas,
            voters: VoterSet(voters),
            size_blocks,
            held: flags & HELD != 0,
            lossy: flags & LOSSY != 0,
            forced: flags & FORCED != 0,
            cause: cause_from_raw(cause).ok_or(unknown("cause", cause))?,
        })
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing(self.rest.len()))
        }
    }
}

pub(crate) fn unknown(field: &'static str, value: u8) -> CodecError {
    CodecError::Value {
        field,
        value: u64::from(value),
    }
}

fn cause_to_raw(cause: ViewCause) -> u8 {
    match cause {
        ViewCause::Founded => 1,
        ViewCause::Recovered => 2,
        ViewCause::TookOver => 3,
        ViewCause::Removed => 4,
        ViewCause::Added => 5,
        ViewCause::Left => 6,
        ViewCause::Held => 7,
        ViewCause::Claimed => 8,
        ViewCause::VoterAdded => 9,
        ViewCause::Forced => 10,
        ViewCause::Resized => 11,
    }
}

fn cause_from_raw(raw: u8) -> Option<ViewCause> {
    Some(match raw {
        1 => ViewCause::Founded,
        2 => ViewCause::Recovered,
        3 => ViewCause::TookOver,
        4 => ViewCause::Removed,
        5 => ViewCause::Added,
        6 => ViewCause::Left,
        7 => ViewCause::Held,
        8 => ViewCause::Claimed,
        9 => ViewCause::VoterAdded,
        10 => ViewCause::Forced,
        11 => ViewCause::Resized,
        _ => return None,
    })
}
