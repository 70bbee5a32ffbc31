//! Whose operation a completion ends, packed into the operation's token.

use replicator::io::Token;

use super::slots::Key;

/// Most values of one kind that a token can name; each kind has a lower cap of its own.
const INDEX_BITS: u32 = 24;

/// The owner of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The data device of the resource in this place. The low bits are the disk queue's own: the
    /// place is not used again before the queue is empty.
    Disk {
        resource: u32,
    },
    /// Its metadata area.
    Meta {
        resource: u32,
    },
    NbdAccept(Key),
    ClientRecv(Key),
    ClientSend(Key),
    LinkAccept {
        listener: u32,
    },
    LinkConnect(Key),
    LinkRecv(Key),
    LinkSend(Key),
}

impl Owner {
    pub(super) fn token(self) -> Token {
        let (kind, index, low): (u8, u32, u32) = match self {
            Self::Disk { resource } => (0, resource, 0),
            Self::Meta { resource } => (1, resource, 0),
            Self::NbdAccept(key) => (2, key.index, key.generation),
            Self::ClientRecv(key) => (3, key.index, key.generation),
            Self::ClientSend(key) => (4, key.index, key.generation),
            Self::LinkAccept { listener } => (5, listener, 0),
            Self::LinkConnect(key) => (6, key.index, key.generation),
            Self::LinkRecv(key) => (7, key.index, key.generation),
            Self::LinkSend(key) => (8, key.index, key.generation),
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
        Some(match kind {
            0 => Self::Disk { resource: index },
            1 => Self::Meta { resource: index },
            2 => Self::NbdAccept(key),
            3 => Self::ClientRecv(key),
            4 => Self::ClientSend(key),
            5 => Self::LinkAccept { listener: index },
            6 => Self::LinkConnect(key),
            7 => Self::LinkRecv(key),
            8 => Self::LinkSend(key),
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
            Owner::Disk { resource: 5 },
            Owner::Meta {
                resource: 0x00ff_ffff,
            },
            Owner::NbdAccept(key),
            Owner::ClientRecv(key),
            Owner::ClientSend(key),
            Owner::LinkAccept { listener: 3 },
            Owner::LinkConnect(key),
            Owner::LinkRecv(key),
            Owner::LinkSend(key),
        ] {
            assert_eq!(Owner::of(owner.token()), Some(owner));
        }
        let queue_local = Token(Owner::Disk { resource: 5 }.token().0 + 77);
        assert_eq!(Owner::of(queue_local), Some(Owner::Disk { resource: 5 }));
        assert_eq!(Owner::of(Token(u64::MAX)), None);
    }
}
