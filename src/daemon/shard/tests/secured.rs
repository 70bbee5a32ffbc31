//! Data links within TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use replicator::io::clock;
use replicator::protocol::{
    PREAMBLE_REPLY_LEN, Preamble, PreambleReply, PreambleStatus, Purpose, SecurePreamble,
    VersionRange,
};
use replicator::types::{NodeId, ResourceId, SessionId};
use rustls::Connection;

use super::clients::pattern;
use super::pair::Pair;
use super::rig::{PATIENCE, backends};
use crate::config::Tls;
use crate::daemon::security::{Security, tests::keys_of};
use crate::daemon::wire::Wire;
use crate::identity::authority::Authority;

const CLUSTER: u64 = 0xc1;

fn preamble(resource: ResourceId) -> Preamble {
    Preamble {
        versions: VersionRange::OURS,
        cluster: CLUSTER,
        resource,
        from: NodeId::B,
        session: SessionId(5),
    }
}

fn opening() -> SecurePreamble {
    SecurePreamble {
        versions: VersionRange::SECURE,
        cluster: CLUSTER,
        from: NodeId::B,
        to: NodeId::A,
        purpose: Purpose::Link,
    }
}

fn reply(stream: &mut impl Read) -> std::io::Result<PreambleStatus> {
    let mut reply = [0; PREAMBLE_REPLY_LEN];
    stream.read_exact(&mut reply)?;
    Ok(PreambleReply::parse(&reply).unwrap().status)
}

/// What is mirrored, resynchronised and read within TLS is what was written, however large.
#[test]
fn a_pair_mirrors_within_tls() {
    for backend in backends() {
        let authority = Authority::new("lab", 5).unwrap();
        let security = |node| Some(keys_of(&authority, 5, node, Tls::Required));
        let mut pair = Pair::start_with(backend, [security(NodeId::A), security(NodeId::B)]);
        let mut guest = pair.a.client();
        guest.write(1 << 20, &pattern(3 << 20, 1));
        pair.add_b();
        for (nr, len) in (0_u8..).zip([512, 4096, 12_288, 1 << 20]) {
            guest.write(u64::from(nr) * (2 << 20), &pattern(len, nr));
        }
        guest.flush();
        assert!(pair.a.image() == pair.b.image(), "both hold the same");
    }
}

/// Whoever else dials, with or without a certificate of the cluster, says nothing to an engine.
#[test]
fn a_link_within_tls_is_the_peers_and_nobody_elses() {
    let backend = backends()[0];
    let authority = Authority::new("lab", 5).unwrap();
    let security = |node| keys_of(&authority, 5, node, Tls::Required);
    let (a, b) = (security(NodeId::A), security(NodeId::B));
    let mut pair = Pair::start_with(backend, [Some(a), Some(Arc::clone(&b))]);
    let address = pair.address;
    let dial = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut clear = dial();
    clear.write_all(&preamble(ResourceId(1)).encode()).unwrap();
    assert_eq!(reply(&mut clear).unwrap(), PreambleStatus::Tls);
    assert_eq!(clear.read(&mut [0; 8]).unwrap_or(0), 0, "and it ends");

    let within = |security: &Security| {
        let mut stream = dial();
        stream.write_all(&opening().encode()).unwrap();
        assert_eq!(reply(&mut stream).unwrap(), PreambleStatus::Accepted);
        let client = security.peers().call(NodeId::A.index()).unwrap();
        let deadline = clock::now().plus(PATIENCE);
        let mut wire = Wire::Clear(stream).secure(Connection::Client(client), deadline)?;
        wire.write_all(&preamble(ResourceId(77)).encode())?;
        reply(&mut wire)
    };
    assert_eq!(within(&b).unwrap(), PreambleStatus::Resource, "the peer");
    let arbitrator = security(NodeId::ARBITRATOR);
    assert!(within(&arbitrator).is_err(), "another node of the cluster");
    let foreign = Authority::new("lab", 5).unwrap();
    let foreign = keys_of(&foreign, 5, NodeId::B, Tls::Required);
    assert!(within(&foreign).is_err(), "another authority");

    let mut garbage = dial();
    garbage.write_all(&opening().encode()).unwrap();
    assert_eq!(reply(&mut garbage).unwrap(), PreambleStatus::Accepted);
    garbage.write_all(&pattern(300 << 10, 3)).ok();
    // An alert at most, then the end.
    let mut rest = Vec::new();
    garbage.read_to_end(&mut rest).ok();
    assert!(rest.len() < 64, "{rest:?}");
    // None of them was in the peer's way.
    pair.add_b();
}
