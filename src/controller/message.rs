//! What controllers say to each other: datagrams of at most [`DATAGRAM_LEN_MAX`] bytes.
//!
//! A datagram is a header and a few parts, so that many resources share one packet (a host failure
//! with 200 volumes is a handful of packets). Everything is idempotent: any datagram may be lost,
//! doubled, delayed or reordered. Layout, all little-endian, no padding:
//!
//! ```text
//! 0   magic "TBKC"      4   32  voter id of the sender  16
//! 4   version           1   48  incarnation of sender    4
//! 5   from              1   52  sequence number          8
//! 6   to                1   60  crc32c of all other      4
//! 7   number of parts   1   64  parts
//! 8   cluster hash      8
//! 16  boot id          16
//! ```

use replicator::types::{Ballot, Instant, NodeId, ResourceId, View, ViewNumber, VoterId};

use super::codec::{BALLOT_LEN, CodecError, Put, Reader, VIEW_LEN, unknown};

/// Largest datagram: fits an Ethernet frame of 1500 bytes with any IP header and tunnel, so that
/// it is never fragmented.
pub const DATAGRAM_LEN_MAX: usize = 1200;

/// Bytes that a carrier may put behind a datagram, to show who made it.
const SEAL_ROOM: usize = 32;

/// Version byte of the datagram layout.
pub const DATAGRAM_VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"TBKC";
const CRC_OFFSET: usize = 60;
const HEADER_LEN: usize = CRC_OFFSET + 4;
const _: () = assert!(HEADER_LEN == 4 + 4 + 8 + 16 + 16 + 4 + 8 + 4);

/// Room for parts in one datagram.
const PARTS_LEN_MAX: usize = DATAGRAM_LEN_MAX - HEADER_LEN;

/// Most beacon entries in one part, so that it fits a datagram of its own.
pub const BEACON_ENTRIES_MAX: usize = (PARTS_LEN_MAX - BEACON_LEN) / BEACON_ENTRY_LEN;

const BEACON_LEN: usize = 1 + 8 + 1;
const BEACON_ENTRY_LEN: usize = 8 + 8 + 1 + 8;
const ACK_LEN: usize = 1 + 8 + 4 + 1 + 1;
const ACK_ENTRY_LEN: usize = 8 + 8;
const _: () = assert!(ACK_LEN + BEACON_ENTRIES_MAX * ACK_ENTRY_LEN <= PARTS_LEN_MAX);
const _: () = assert!(BEACON_ENTRIES_MAX <= u8::MAX as usize);

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who says it, to whom.
    pub header: Header,
    /// What.
    pub parts: Vec<Part>,
}

/// Who says something to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Hash of the cluster's name and generation: others' datagrams are dropped.
    pub cluster: u64,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// Random id of the sender's boot.
    pub boot_id: u128,
    /// Identity of the sender's voter store.
    pub voter: VoterId,
    /// Number of the sender's start; grows.
    pub incarnation: u32,
    /// Number of the datagram in that life; grows.
    pub seq: u64,
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// "I am alive, and this is what I do": asks for leases of the active resources.
    Beacon {
        /// When it was sent, on the sender's clock; comes back in the ack.
        sent: Instant,
        /// At most [`BEACON_ENTRIES_MAX`].
        entries: Vec<BeaconEntry>,
    },
    /// Answer to a beacon.
    BeaconAck {
        /// The beacon's send time.
        sent: Instant,
        /// The incarnation of the beacon's sender: an ack never counts for another life.
        incarnation: u32,
        /// Active resources for which no takeover follows for G (R5), in this view.
        granted: Vec<(ResourceId, ViewNumber)>,
        /// Active resources whose view is sealed (R6), and the seal.
        refused: Vec<(ResourceId, ViewNumber)>,
    },
    /// First phase of a round.
    Prepare {
        /// Which register.
        resource: ResourceId,
        /// The round.
        ballot: Ballot,
    },
    /// The voter durably promised not to answer lower ballots.
    Promise {
        /// Which register.
        resource: ResourceId,
        /// The round.
        ballot: Ballot,
        /// What it accepted last.
        accepted: Option<(Ballot, View)>,
    },
    /// The voter promised a higher ballot.
    Nack {
        /// Which register.
        resource: ResourceId,
        /// The refused round.
        ballot: Ballot,
        /// The promised one.
        promised: Ballot,
    },
    /// Second phase of a round.
    Accept {
        /// Which register.
        resource: ResourceId,
        /// The round.
        ballot: Ballot,
        /// The view.
        view: View,
    },
    /// The voter durably accepted the round's view.
    Accepted {
        /// Which register.
        resource: ResourceId,
        /// The round.
        ballot: Ballot,
    },
    /// This view is committed.
    Learned {
        /// Which register.
        resource: ResourceId,
        /// The view.
        view: View,
    },
}

/// What a beacon says about one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeaconEntry {
    /// Which.
    pub resource: ResourceId,
    /// If active the view served, else the newest committed view known.
    pub view: ViewNumber,
    /// The resource takes part on the sender.
    pub up: bool,
    /// The sender serves it.
    pub active: bool,
    /// A replica is attached there.
    pub attached: bool,
    /// That replica would allow its promotion.
    pub eligible: bool,
    /// It did not lose volatile state (R16).
    pub kept: bool,
    /// It was never part of a view.
    pub blank: bool,
    /// The sender was Primary in this very view and will never serve in it again.
    pub handed_over: bool,
    /// Its size in blocks, 0 if unknown.
    pub size_blocks: u64,
}

const UP: u8 = 1;
const ACTIVE: u8 = 2;
const ATTACHED: u8 = 4;
const ELIGIBLE: u8 = 8;
const KEPT: u8 = 16;
const BLANK: u8 = 32;
const HANDED_OVER: u8 = 64;

impl Part {
    /// Bytes it takes in a datagram.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Beacon { entries, .. } => BEACON_LEN + entries.len() * BEACON_ENTRY_LEN,
            Self::BeaconAck {
                granted, refused, ..
            } => ACK_LEN + (granted.len() + refused.len()) * ACK_ENTRY_LEN,
            Self::Prepare { .. } | Self::Accepted { .. } => 1 + 8 + BALLOT_LEN,
            Self::Promise { accepted, .. } => {
                let accepted_len = if accepted.is_some() {
                    BALLOT_LEN + VIEW_LEN
                } else {
                    0
                };
                1 + 8 + BALLOT_LEN + 1 + accepted_len
            }
            Self::Nack { .. } => 1 + 8 + 2 * BALLOT_LEN,
            Self::Accept { .. } => 1 + 8 + BALLOT_LEN + VIEW_LEN,
            Self::Learned { .. } => 1 + 8 + VIEW_LEN,
        }
    }

    /// Never: every part has a kind.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let before = out.len();
        match self {
            Self::Beacon { sent, entries } => {
                out.put_u8(1);
                out.put_u64(sent.0);
                out.put_u8(count(entries.len()));
                for entry in entries {
                    entry.encode(out);
                }
            }
            Self::BeaconAck {
                sent,
                incarnation,
                granted,
                refused,
            } => {
                out.put_u8(2);
                out.put_u64(sent.0);
                out.put_u32(*incarnation);
                out.put_u8(count(granted.len()));
                out.put_u8(count(refused.len()));
                for (resource, view) in granted.iter().chain(refused) {
                    out.put_u64(resource.0);
                    out.put_u64(view.0);
                }
            }
            Self::Prepare { resource, ballot } => {
                out.put_u8(3);
                out.put_u64(resource.0);
                out.put_ballot(*ballot);
            }
            Self::Promise {
                resource,
                ballot,
                accepted,
            } => {
                out.put_u8(4);
                out.put_u64(resource.0);
                out.put_ballot(*ballot);
                out.put_u8(u8::from(accepted.is_some()));
                if let Some((ballot, view)) = accepted {
                    out.put_ballot(*ballot);
                    out.put_view(view);
                }
            }
            Self::Nack {
                resource,
                ballot,
                promised,
            } => {
                out.put_u8(5);
                out.put_u64(resource.0);
                out.put_ballot(*ballot);
                out.put_ballot(*promised);
            }
            Self::Accept {
                resource,
                ballot,
                view,
            } => {
                out.put_u8(6);
                out.put_u64(resource.0);
                out.put_ballot(*ballot);
                out.put_view(view);
            }
            Self::Accepted { resource, ballot } => {
                out.put_u8(7);
                out.put_u64(resource.0);
                out.put_ballot(*ballot);
            }
            Self::Learned { resource, view } => {
                out.put_u8(8);
                out.put_u64(resource.0);
                out.put_view(view);
            }
        }
        debug_assert_eq!(out.len() - before, self.len(), "{self:?}");
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let kind = reader.u8()?;
        match kind {
            1 => {
                let sent = Instant(reader.u64()?);
                let count = reader.u8()?;
                let entries = (0..count).map(|_| BeaconEntry::decode(reader));
                Ok(Self::Beacon {
                    sent,
                    entries: entries.collect::<Result<_, _>>()?,
                })
            }
            2 => {
                let sent = Instant(reader.u64()?);
                let incarnation = reader.u32()?;
                let granted = reader.u8()?;
                let refused = reader.u8()?;
                Ok(Self::BeaconAck {
                    sent,
                    incarnation,
                    granted: resource_views(reader, granted)?,
                    refused: resource_views(reader, refused)?,
                })
            }
            3 => Ok(Self::Prepare {
                resource: ResourceId(reader.u64()?),
                ballot: reader.ballot()?,
            }),
            4 => Ok(Self::Promise {
                resource: ResourceId(reader.u64()?),
                ballot: reader.ballot()?,
                accepted: match reader.bool("accepted")? {
                    true => Some((reader.ballot()?, reader.view()?)),
                    false => None,
                },
            }),
            5 => Ok(Self::Nack {
                resource: ResourceId(reader.u64()?),
                ballot: reader.ballot()?,
                promised: reader.ballot()?,
            }),
            6 => Ok(Self::Accept {
                resource: ResourceId(reader.u64()?),
                ballot: reader.ballot()?,
                view: reader.view()?,
            }),
            7 => Ok(Self::Accepted {
                resource: ResourceId(reader.u64()?),
                ballot: reader.ballot()?,
            }),
            8 => Ok(Self::Learned {
                resource: ResourceId(reader.u64()?),
                view: reader.view()?,
            }),
            _ => Err(unknown("part", kind)),
        }
    }
}

fn count(len: usize) -> u8 {
    u8::try_from(len).expect("makers of parts keep to BEACON_ENTRIES_MAX, which fits a byte")
}

fn resource_views(
    reader: &mut Reader<'_>,
    count: u8,
) -> Result<Vec<(ResourceId, ViewNumber)>, CodecError> {
    (0..count)
        .map(|_| Ok((ResourceId(reader.u64()?), reader.view_number("view")?)))
        .collect()
}

impl BeaconEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.resource.0);
        out.put_u64(self.view.0);
        out.put_u8(
            u8::from(self.up) * UP
                + u8::from(self.active) * ACTIVE
                + u8::from(self.attached) * ATTACHED
                + u8::from(self.eligible) * ELIGIBLE
                + u8::from(self.kept) * KEPT
                + u8::from(self.blank) * BLANK
                + u8::from(self.handed_over) * HANDED_OVER,
        );
        out.put_u64(self.size_blocks);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let resource = ResourceId(reader.u64()?);
        let view = reader.view_number("view")?;
        let flags = reader.bits(
            "beacon flags",
            UP | ACTIVE | ATTACHED | ELIGIBLE | KEPT | BLANK | HANDED_OVER,
        )?;
        Ok(Self {
            resource,
            view,
            up: flags & UP != 0,
            active: flags & ACTIVE != 0,
            attached: flags & ATTACHED != 0,
            eligible: flags & ELIGIBLE != 0,
            kept: flags & KEPT != 0,
            blank: flags & BLANK != 0,
            handed_over: flags & HANDED_OVER != 0,
            size_blocks: reader.u64()?,
        })
    }
}

impl Datagram {
    /// The bytes to send.
    ///
    /// # Panics
    /// If the parts do not fit: [`pack`] makes datagrams that do.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(DATAGRAM_LEN_MAX + SEAL_ROOM);
        out.extend_from_slice(&MAGIC);
        out.put_u8(DATAGRAM_VERSION);
        out.put_u8(self.header.from.raw());
        out.put_u8(self.header.to.raw());
        out.put_u8(count(self.parts.len()));
        out.put_u64(self.header.cluster);
        out.put_u128(self.header.boot_id);
        out.put_u128(self.header.voter.0);
        out.put_u32(self.header.incarnation);
        out.put_u64(self.header.seq);
        out.put_u32(0);
        for part in &self.parts {
            part.encode(&mut out);
        }
        assert!(
            out.len() <= DATAGRAM_LEN_MAX,
            "datagram of {} bytes",
            out.len()
        );
        let crc = checksum(&out);
        out[CRC_OFFSET..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The datagram from bytes off the network.
    ///
    /// # Errors
    /// [`CodecError`] for everything that [`Datagram::encode`] would not have made; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != u32::from_le_bytes(MAGIC) {
            return Err(CodecError::Magic);
        }
        let version = reader.u8()?;
        if version != DATAGRAM_VERSION {
            return Err(CodecError::Version(version));
        }
        if bytes.len() > DATAGRAM_LEN_MAX {
            return Err(CodecError::Trailing(bytes.len() - DATAGRAM_LEN_MAX));
        }
        let from = reader.node("from")?;
        let to = reader.node("to")?;
        let part_count = reader.u8()?;
        let header = Header {
            from,
            to,
            cluster: reader.u64()?,
            boot_id: reader.u128()?,
            voter: VoterId(reader.u128()?),
            incarnation: reader.u32()?,
            seq: reader.u64()?,
        };
        if reader.u32()? != checksum(bytes) {
            return Err(CodecError::Checksum);
        }
        let parts = (0..part_count)
            .map(|_| Part::decode(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { header, parts })
    }
}

/// crc32c of everything but the checksum itself. `bytes` is at least a header long.
fn checksum(bytes: &[u8]) -> u32 {
    let before = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    crc32c::crc32c_append(before, &bytes[HEADER_LEN..])
}

/// Divides parts among as few datagrams as their order allows.
#[must_use]
pub fn pack(parts: Vec<Part>) -> Vec<Vec<Part>> {
    let mut packets: Vec<Vec<Part>> = Vec::new();
    let mut room = 0;
    for part in parts {
        let full = packets
            .last()
            .is_none_or(|packet| packet.len() >= usize::from(u8::MAX));
        if full || part.len() > room {
            packets.push(Vec::new());
            room = PARTS_LEN_MAX;
        }
        room -= part.len();
        if let Some(packet) = packets.last_mut() {
            packet.push(part);
        }
    }
    packets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::controller::testing::{ballot, founded};

    fn header() -> Header {
        Header {
            cluster: 0x1122_3344_5566_7788,
            from: NodeId::A,
            to: NodeId::ARBITRATOR,
            boot_id: 0xb007,
            voter: VoterId(0x01d),
            incarnation: 5,
            seq: 9,
        }
    }

    fn entry(resource: u64) -> BeaconEntry {
        BeaconEntry {
            resource: ResourceId(resource),
            view: ViewNumber(3),
            up: true,
            active: true,
            attached: true,
            eligible: true,
            kept: true,
            blank: false,
            handed_over: resource.is_multiple_of(2),
            size_blocks: 256,
        }
    }

    fn one_of_each() -> Vec<Part> {
        let resource = ResourceId(77);
        let ballot = ballot(2, 1);
        vec![
            Part::Beacon {
                sent: Instant(1_000),
                entries: vec![entry(77), entry(78)],
            },
            Part::BeaconAck {
                sent: Instant(1_000),
                incarnation: 4,
                granted: vec![(resource, ViewNumber(3))],
                refused: vec![(ResourceId(78), ViewNumber(4))],
            },
            Part::Prepare { resource, ballot },
            Part::Promise {
                resource,
                ballot,
                accepted: Some((ballot, founded())),
            },
            Part::Promise {
                resource,
                ballot,
                accepted: None,
            },
            Part::Nack {
                resource,
                ballot,
                promised: ballot,
            },
            Part::Accept {
                resource,
                ballot,
                view: founded(),
            },
            Part::Accepted { resource, ballot },
            Part::Learned {
                resource,
                view: founded(),
            },
        ]
    }

    #[test]
    fn every_part_reads_back_as_it_was_sent() {
        let datagram = Datagram {
            header: header(),
            parts: one_of_each(),
        };
        assert_eq!(Datagram::decode(&datagram.encode()), Ok(datagram));
    }

    /// The layout is a promise to every other version: a change here needs a new version byte.
    #[test]
    fn the_layout_is_frozen() {
        let datagram = Datagram {
            header: header(),
            parts: one_of_each(),
        };
        let bytes = datagram.encode();
        assert_eq!(&bytes[..8], b"TBKC\x01\x00\x02\x09");
        assert_eq!(bytes.len(), GOLDEN_LEN);
        assert_eq!(crc32c::crc32c(&bytes), GOLDEN_CRC);
    }

    const GOLDEN_LEN: usize = 656;
    const GOLDEN_CRC: u32 = 1_146_428_078;

    #[test]
    fn any_damage_is_noticed() {
        let bytes = Datagram {
            header: header(),
            parts: one_of_each(),
        }
        .encode();
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x10;
            assert!(Datagram::decode(&damaged).is_err(), "byte {index}");
            assert!(Datagram::decode(&bytes[..index]).is_err(), "length {index}");
        }
    }

    #[test]
    fn numbers_whose_successors_could_overflow_are_refused() {
        let refusal = |part: Part| {
            let datagram = Datagram {
                header: header(),
                parts: vec![part],
            };
            match Datagram::decode(&datagram.encode()) {
                Err(CodecError::Value { field, .. }) => Some(field),
                Ok(_) => None,
                other => panic!("{other:?}"),
            }
        };
        let resource = ResourceId(77);
        let parts = |number: ViewNumber, round: u32| {
            let view = View {
                number,
                ..founded()
            };
            let ballot = ballot(round, 1);
            let low = super::super::testing::ballot(1, 1);
            let of_views = vec![
                Part::Beacon {
                    sent: Instant(1),
                    entries: vec![BeaconEntry {
                        view: number,
                        ..entry(77)
                    }],
                },
                Part::BeaconAck {
                    sent: Instant(1),
                    incarnation: 4,
                    granted: vec![(resource, number)],
                    refused: vec![],
                },
                Part::BeaconAck {
                    sent: Instant(1),
                    incarnation: 4,
                    granted: vec![],
                    refused: vec![(resource, number)],
                },
                Part::Promise {
                    resource,
                    ballot: low,
                    accepted: Some((low, view)),
                },
                Part::Accept {
                    resource,
                    ballot: low,
                    view,
                },
                Part::Learned { resource, view },
            ];
            let of_rounds = vec![
                Part::Prepare { resource, ballot },
                Part::Promise {
                    resource,
                    ballot: low,
                    accepted: Some((ballot, founded())),
                },
                Part::Nack {
                    resource,
                    ballot: low,
                    promised: ballot,
                },
                Part::Accept {
                    resource,
                    ballot,
                    view: founded(),
                },
                Part::Accepted { resource, ballot },
            ];
            (of_views, of_rounds)
        };
        let (views, rounds) = parts(ViewNumber::MAX, Ballot::ROUND_MAX);
        assert!(
            views
                .into_iter()
                .chain(rounds)
                .all(|part| refusal(part).is_none())
        );
        for (number, round) in [
            (ViewNumber::MAX.0 + 1, Ballot::ROUND_MAX + 1),
            (u64::MAX, u32::MAX),
        ] {
            let (views, rounds) = parts(ViewNumber(number), round);
            for part in views {
                let field = refusal(part.clone());
                assert!(matches!(field, Some("view" | "view number")), "{part:?}");
            }
            for part in rounds {
                assert_eq!(refusal(part.clone()), Some("round"), "{part:?}");
            }
        }
        let none = View {
            number: ViewNumber::NONE,
            ..founded()
        };
        let learned = Part::Learned {
            resource,
            view: none,
        };
        assert_eq!(refusal(learned), Some("view number"));
    }

    #[test]
    fn two_hundred_resources_fit_few_datagrams() {
        let entries: Vec<_> = (0..200).map(entry).collect();
        let parts = entries
            .chunks(BEACON_ENTRIES_MAX)
            .map(|chunk| Part::Beacon {
                sent: Instant(1),
                entries: chunk.to_vec(),
            });
        let packets = pack(parts.collect());
        assert_eq!(packets.len(), 5);
        let accepts = (0..200).map(|resource| Part::Accept {
            resource: ResourceId(resource),
            ballot: ballot(1, 0),
            view: founded(),
        });
        let packets = pack(accepts.collect());
        assert_eq!(packets.iter().map(Vec::len).sum::<usize>(), 200);
        for parts in packets.iter().cloned() {
            let datagram = Datagram {
                header: header(),
                parts,
            };
            assert!(datagram.encode().len() <= DATAGRAM_LEN_MAX);
        }
        assert!(packets.len() <= 29, "{}", packets.len());
    }

    proptest! {
        #[test]
        fn bytes_off_the_network_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            assert!(Datagram::decode(&bytes).is_err());
            // The same behind a valid header and checksum, so that the parts are reached.
            if bytes.len() > HEADER_LEN {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = DATAGRAM_VERSION;
                bytes[5] = 0;
                bytes[6] = 1;
                let crc = checksum(&bytes);
                bytes[CRC_OFFSET..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
                if let Ok(datagram) = Datagram::decode(&bytes) {
                    assert_eq!(datagram.encode(), bytes);
                }
            }
        }
    }
}
