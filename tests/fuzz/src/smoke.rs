//! Smoke runs of the peer and metadata targets: a few thousand mutated inputs on stable Rust.

// SPDX-License-Identifier: MIT OR Apache-2.0

use replicator::protocol::{
    DataKind, ForwardPreamble, Message, Preamble, Purpose, RelayPreamble, SecurePreamble, VersionRange, WriteId,
    WriteTerms, encode,
};
use replicator::types::{
    BlockCount, BlockIndex, BlockRange, NodeId, ReplicationProtocol, ResourceId, SessionId, ViewNumber,
};

use twinblk::identity::message::{Admission, JoinRequest, encode_answer};

/// A small generator, so that the smoke run needs nothing and repeats exactly.
struct Lcg(u64);

impl Lcg {
    fn byte(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.to_le_bytes()[6]
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % bound
    }
}

fn frames() -> Vec<u8> {
    let range = BlockRange::new(BlockIndex(8), BlockCount(1));
    let messages = [
        Message::Data {
            write: WriteId(1),
            range,
            kind: DataKind::Write(vec![7; 4096].into()),
            terms: WriteTerms {
                fua: true,
                protocol: ReplicationProtocol::B,
                after_earlier: true,
            },
        },
        Message::WriteAck { write: WriteId(1) },
        Message::BitmapChunk {
            first_block: 64,
            bits: vec![1; 16].into(),
        },
        Message::Goodbye,
    ];
    let mut stream = Vec::new();
    for message in messages {
        let encoded = encode(SessionId(1), ViewNumber(2), &message);
        stream.extend(encoded.header);
        stream.extend(encoded.payload.iter().flat_map(|payload| payload.to_vec()));
    }
    stream
}

#[test]
fn a_peer_that_sends_anything_breaks_nothing() {
    let seed = frames();
    let mut random = Lcg(1);
    for round in 0..20_000 {
        let mut data = vec![1];
        data.extend_from_slice(&seed);
        // Most changes go into the headers at the front.
        for _ in 0..random.below(4) {
            let bound = if round % 2 == 0 { 66 } else { data.len() };
            let at = random.below(bound);
            data[at] = random.byte();
        }
        data.truncate(data.len() - random.below(3) * random.below(200));
        crate::peer::frame(&data);
    }
}

#[test]
fn a_connection_may_begin_with_anything() {
    let link = Preamble {
        versions: VersionRange::OURS,
        cluster: 1,
        resource: ResourceId(9),
        from: NodeId::B,
        session: SessionId(10),
    };
    let relay = RelayPreamble {
        versions: VersionRange::RELAY,
        cluster: 1,
        from: NodeId::B,
        to: NodeId::A,
        may_change: true,
        uid: 0,
    };
    let forward = ForwardPreamble {
        versions: VersionRange::FORWARD,
        cluster: 1,
        from: NodeId::B,
        to: NodeId::A,
        resource: ResourceId(9),
    };
    let secure = SecurePreamble {
        versions: VersionRange::SECURE,
        cluster: 1,
        from: NodeId::B,
        to: NodeId::A,
        purpose: Purpose::Join,
    };
    let openings = [link.encode(), relay.encode(), forward.encode(), secure.encode()];
    let mut random = Lcg(3);
    for round in 0..30_000 {
        let opening = openings[round % openings.len()];
        let mut data = vec![0];
        data.extend_from_slice(&opening);
        for _ in 0..random.below(4) {
            let at = 1 + random.below(opening.len());
            data[at] = random.byte();
        }
        crate::peer::frame(&data);
    }
}

#[test]
fn whoever_joins_may_be_told_anything() {
    let mut token = vec![7; 72];
    token.extend(*b"\x05kvm-a\x02");
    token.extend(*b"\x04\x7f\0\0\x01\x6e\x1e\x06");
    token.extend([9; 18]);
    let request = JoinRequest {
        token: 1,
        secret: [2; 16],
        node: "kvm-b".to_owned(),
        public_key: [4; 65],
    };
    let admission = Admission {
        cluster: "lab".to_owned(),
        secret: [5; 32],
        certificate: vec![6; 40],
        authority: vec![7; 30],
    };
    let seeds = [token, request.encode(), encode_answer(&Ok(admission))];
    let mut random = Lcg(4);
    for round in 0..30_000 {
        let mut data = vec![1];
        data.extend_from_slice(&seeds[round % seeds.len()]);
        for _ in 0..random.below(3) {
            let at = 1 + random.below(data.len() - 1);
            data[at] = random.byte();
        }
        data.truncate(data.len() - random.below(2) * random.below(20));
        crate::joining::join(&data);
    }
}

#[test]
fn an_area_that_holds_anything_opens_or_is_refused() {
    let mut random = Lcg(2);
    for round in 0..5_000 {
        let patches = 1 + random.below(4);
        let mut data: Vec<u8> = (0..patches * 12).map(|_| random.byte()).collect();
        for patch in data.chunks_exact_mut(12) {
            // Every other round stays in the headers.
            if round % 2 == 0 {
                patch[2] = 0;
            }
        }
        crate::metadata::open(&data);
    }
}
