//! Whose operation a completion ends, packed into the operation's token.

use replicator::io::{DiskQueue, Token};

use super::forward::Side;
use super::slots::Key;

/// Most values of one kind that a token can name; each kind has a lower cap of its own.
const INDEX_BITS: u32 = 24;

/// A resource's key as far as it fits beside a disk queue's bits. Enough to tell one resource from
/// the next in its place: that one comes only after the last operation of the earlier one (R14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u32,
    generation: u16,
}

impl Place {
    pub(super) fn of(key: Key) -> Self {
        let [g0, g1, ..] = key.generation.to_le_bytes();
        Self {
            index: key.index,
            generation: u16::from_le_bytes([g0, g1]),
        }
    }

    fn low_bits(self) -> u32 {
        u32::from(self.generation) << DiskQueue::TOKEN_BITS
    }
}

/// The owner of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The data device of a resource. The low bits of the token are the disk queue's own.
    Disk(Place),
    /// Its metadata area.
    Meta(Place),
    NbdAccept(Key),
    ClientRecv(Key),
    ClientSend(Key),
    LinkAccept {
        listener: u32,
    },
    LinkConnect(Key),
    LinkRecv(Key),
    LinkSend(Key),
    /// A block status that looks for holes.
    Extents(Key),
    /// A client that is passed on: what comes from this side.
    ForwardRecv(Key, Side),
    /// The same on its way to the other side.
    ForwardSend(Key, Side),
    NbdTcpAccept,
    /// Who comes to a socket without a resource.
    Door(Key),
}

impl Owner {
    pub(super) fn token(self) -> Token {
        let (kind, index, low): (u8, u32, u32) = match self {
            Self::Disk(place) => (0, place.index, place.low_bits()),
            Self::Meta(place) => (1, place.index, place.low_bits()),
            Self::NbdAccept(key) => (2, key.index, key.generation),
            Self::ClientRecv(key) => (3, key.index, key.generation),
            Self::ClientSend(key) => (4, key.index, key.generation),
            Self::LinkAccept { listener } => (5, listener, 0),
            Self::LinkConnect(key) => (6, key.index, key.generation),
            Self::LinkRecv(key) => (7, key.index, key.generation),
            Self::LinkSend(key) => (8, key.index, key.generation),
            Self::Extents(key) => (9, key.index, key.generation),
            Self::ForwardRecv(key, Side::Client) => (10, key.index, key.generation),
            Self::ForwardRecv(key, Side::Primary) => (11, key.index, key.generation),
            Self::ForwardSend(key, Side::Client) => (12, key.index, key.generation),
            Self::ForwardSend(key, Side::Primary) => (13, key.index, key.generation),
            Self::NbdTcpAccept => (14, 0, 0),
            Self::Door(key) => (15, key.index, key.generation),
        };
        assert!(
            index < 1 << INDEX_BITS,
            "{index} values of one kind in one shard"
        );
        Token(u64::from(kind) << 56 | u64::from(index) << 32 | u64::from(low))
    }

    /// `None` for a token this shard never gave.
    pub(super) fn of(token: Token) -> Option<Self> {
        let [kind, i0, i1, i2, g0, g1, g2, g3] = token.0.to_be_bytes();
        let index = u32::from_be_bytes([0, i0, i1, i2]);
        let key = Key {
            index,
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
        };
        let place = Place {
            index,
            generation: u16::from_be_bytes([g0, g1]),
        };
        Some(match kind {
            0 => Self::Disk(place),
            1 => Self::Meta(place),
            2 => Self::NbdAccept(key),
            3 => Self::ClientRecv(key),
            4 => Self::ClientSend(key),
            5 => Self::LinkAccept { listener: index },
            6 => Self::LinkConnect(key),
            7 => Self::LinkRecv(key),
            8 => Self::LinkSend(key),
            9 => Self::Extents(key),
            10 => Self::ForwardRecv(key, Side::Client),
            11 => Self::ForwardRecv(key, Side::Primary),
            12 => Self::ForwardSend(key, Side::Client),
            13 => Self::ForwardSend(key, Side::Primary),
            14 => Self::NbdTcpAccept,
            15 => Self::Door(key),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_comes_back_from_its_token() {
        let key = Key {
            index: 0x00ab_cdef,
            generation: 0xfedc_ba98,
        };
        for owner in [
            Owner::Disk(Place::of(key)),
            Owner::Meta(Place::of(key)),
            Owner::NbdAccept(key),
            Owner::ClientRecv(key),
            Owner::ClientSend(key),
            Owner::LinkAccept { listener: 3 },
            Owner::LinkConnect(key),
            Owner::LinkRecv(key),
            Owner::LinkSend(key),
            Owner::Extents(key),
            Owner::NbdTcpAccept,
            Owner::Door(key),
        ] {
            assert_eq!(Owner::of(owner.token()), Some(owner));
        }
        let disk = Owner::Disk(Place::of(key));
        let last = DiskQueue::COMMANDS_MAX as u64 - 1;
        assert_eq!(Owner::of(Token(disk.token().0 + last)), Some(disk));
        let next = Key {
            generation: key.generation + 1,
            ..key
        };
        assert_ne!(Place::of(next), Place::of(key), "a place used again");
        assert_eq!(Owner::of(Token(u64::MAX)), None);
    }
}
