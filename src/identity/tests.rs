//! Keys, seals and certificates together.

use std::fs;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use replicator::types::NodeId;
use rustls::Connection;

use super::authority::{Authority, NodeKey, fingerprint};
use super::files::{DAEMONS_LOCK, KeysError, NodeKeys, has_authority, is_in_use, remove};
use super::peers::{PeerTls, check_admission, join_client, join_server};
use super::sealing::{DatagramKeys, TAG_LEN};
use super::stream::SecureStream;
use super::token::Token;
use super::tokens::{Redeemed, TOKEN_LIFE, TOKENS_MAX, add, redeem};

const NOW: u64 = 1_800_000_000;
const NODES: [&str; 3] = ["kvm-a", "kvm-b", "arb"];

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("twinblk-identity-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The keys of a node, by an authority of its own or by `authority`.
fn keys(authority: &Authority, cluster_id: u128, node: &str) -> NodeKeys {
    let key = NodeKey::new().unwrap();
    NodeKeys {
        cluster: "lab".to_owned(),
        cluster_id,
        node: node.to_owned(),
        secret: [7; 32],
        authority: authority.certificate().clone(),
        certificate: authority.issue(node, &key.public()).unwrap(),
        key: key.private().to_vec(),
    }
}

fn authority(cluster_id: u128) -> Authority {
    Authority::new("lab", cluster_id).unwrap()
}

#[test]
fn keys_are_found_again_and_never_written_over() {
    let (dir, authority) = (Dir::new(), authority(5));
    let first = keys(&authority, 5, "kvm-a");
    assert!(matches!(NodeKeys::open(&dir.0), Err(KeysError::Missing(_))));
    first.write(&dir.0, Some(&authority)).unwrap();
    let found = NodeKeys::open(&dir.0).unwrap();
    assert_eq!(found.key, first.key);
    assert_eq!(
        (found.cluster_id, found.secret, found.node.as_str()),
        (5, [7; 32], "kvm-a")
    );
    assert!(has_authority(&dir.0));
    let again = found.authority(&dir.0).unwrap().unwrap();
    let public = NodeKey::new().unwrap().public();
    let issued = again.issue("kvm-b", &public).unwrap();
    let token = token_of(&first);
    check_admission(&token, "kvm-b", &issued, &first.authority).unwrap();
    assert!(check_admission(&token, "arb", &issued, &first.authority).is_err());

    let second = keys(&authority, 5, "kvm-a");
    let refused = second.write(&dir.0, None);
    assert!(matches!(refused, Err(KeysError::Exist(_))), "{refused:?}");
    assert_eq!(NodeKeys::open(&dir.0).unwrap().key, first.key);

    for entry in fs::read_dir(dir.0.join("keys")).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    let open = dir.0.join("keys/node-key.der");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = NodeKeys::open(&dir.0);
    assert!(
        matches!(refused, Err(KeysError::Damaged { .. })),
        "{refused:?}"
    );

    remove(&dir.0).unwrap();
    assert!(matches!(NodeKeys::open(&dir.0), Err(KeysError::Missing(_))));
    second.write(&dir.0, None).unwrap();
    assert!(!has_authority(&dir.0));
}

#[test]
fn what_an_interrupted_attempt_left_is_no_keys_and_in_nobodys_way() {
    let (dir, authority) = (Dir::new(), authority(5));
    fs::create_dir_all(dir.0.join("keys.new")).unwrap();
    fs::write(dir.0.join("keys.new/node-key.der"), b"half").unwrap();
    assert!(matches!(NodeKeys::open(&dir.0), Err(KeysError::Missing(_))));
    let whole = keys(&authority, 5, "kvm-a");
    whole.write(&dir.0, None).unwrap();
    assert_eq!(NodeKeys::open(&dir.0).unwrap().key, whole.key);
}

/// The daemon's user owns the state directory, and root works in it: whatever names lead to by then, only
/// what was made is given away or written to.
#[test]
fn links_in_the_state_directory_are_not_followed() {
    let (dir, elsewhere, authority) = (Dir::new(), Dir::new(), authority(5));
    let keys = keys(&authority, 5, "kvm-a");
    keys.write(&dir.0, Some(&authority)).unwrap();
    let add = || add(&dir.0, &keys, "kvm-b", &[], NOW);
    add().unwrap();
    // A name in the way is replaced and not written through.
    fs::create_dir_all(&elsewhere.0).unwrap();
    let victim = elsewhere.0.join("shadow");
    fs::write(&victim, "root").unwrap();
    symlink(&victim, dir.0.join("keys/tokens.new")).unwrap();
    add().unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "root");
    // Nor is anything put where the directory is said to be.
    fs::rename(dir.0.join("keys"), elsewhere.0.join("theirs")).unwrap();
    symlink(elsewhere.0.join("theirs"), dir.0.join("keys")).unwrap();
    let before = fs::read(elsewhere.0.join("theirs/tokens")).unwrap();
    add().unwrap_err();
    let after = fs::read(elsewhere.0.join("theirs/tokens")).unwrap();
    assert_eq!(before, after);
}

/// `leave` was killed between the rename and the removal.
#[test]
fn keys_that_were_being_removed_do_not_stay() {
    let (dir, authority) = (Dir::new(), authority(5));
    let left = dir.0.join("keys.left");
    for _ in 0..2 {
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("node-key.der"), b"secret").unwrap();
        assert!(matches!(remove(&dir.0), Err(KeysError::Missing(_))));
        assert!(!left.exists());
    }
    fs::create_dir_all(&left).unwrap();
    keys(&authority, 5, "kvm-a").write(&dir.0, None).unwrap();
    assert!(!left.exists());
}

#[test]
fn a_daemon_on_the_state_directory_is_seen() {
    let dir = Dir::new();
    fs::create_dir_all(&dir.0).unwrap();
    assert!(!is_in_use(&dir.0).unwrap());
    let lock = fs::File::create(dir.0.join(DAEMONS_LOCK)).unwrap();
    assert!(!is_in_use(&dir.0).unwrap());
    let _held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    assert!(is_in_use(&dir.0).unwrap());
}

fn token_of(keys: &NodeKeys) -> Token {
    Token {
        cluster: keys.cluster_id,
        id: 1,
        secret: [0; 16],
        authority: fingerprint(&keys.authority),
        issuer: keys.node.clone(),
        addresses: Vec::new(),
    }
}

#[test]
fn a_token_buys_once_in_its_time_and_not_after_three_wrong_secrets() {
    let (dir, authority) = (Dir::new(), authority(5));
    let keys = keys(&authority, 5, "kvm-a");
    keys.write(&dir.0, Some(&authority)).unwrap();
    let addresses = ["127.0.0.1:7790".parse().unwrap()];
    let make = |now| add(&dir.0, &keys, "kvm-b", &addresses, now).unwrap();
    let redeem_as =
        |token: &Token, node, now| redeem(&dir.0, token.id, &token.secret, node, now).unwrap();
    let redeem = |token: &Token, now| redeem_as(token, "kvm-b", now);

    let token = make(NOW);
    let stored = fs::read_to_string(dir.0.join("keys/tokens")).unwrap();
    let secret: String = token.secret.iter().map(|it| format!("{it:02x}")).collect();
    assert!(!stored.contains(&secret), "only its hash is kept");
    for _ in 0..4 {
        assert_eq!(redeem_as(&token, "arb", NOW), Redeemed::ForAnother);
    }
    assert_eq!(redeem(&token, NOW + 1), Redeemed::Yes);
    assert_eq!(redeem(&token, NOW + 1), Redeemed::No, "once");

    let token = make(NOW);
    assert_eq!(redeem(&token, NOW + TOKEN_LIFE.as_secs()), Redeemed::No);
    let token = make(NOW);
    assert_eq!(redeem(&token, NOW - 1), Redeemed::No, "not of the future");

    let token = make(NOW);
    let wrong = Token {
        secret: [3; 16],
        ..token.clone()
    };
    for _ in 0..3 {
        assert_eq!(redeem(&wrong, NOW), Redeemed::No);
    }
    assert_eq!(redeem(&token, NOW), Redeemed::No, "tried too often");

    let oldest = make(NOW);
    let newer: Vec<_> = (0..TOKENS_MAX).map(|_| make(NOW)).collect();
    assert_eq!(redeem(&oldest, NOW), Redeemed::No, "it gave way");
    assert!(newer.iter().all(|it| redeem(it, NOW) == Redeemed::Yes));
}

#[test]
fn only_what_a_node_of_this_cluster_sealed_for_this_node_is_opened() {
    let keys = |secret, cluster, node| DatagramKeys::new(&[secret; 32], cluster, node);
    let (a, b) = (NodeId::A, NodeId::B);
    let mut datagram = b"TBKC\x01".to_vec();
    datagram.extend([a.raw(), b.raw(), 0, 9, 9]);
    let whole = datagram.clone();
    keys(1, 5, a).seal(b, &mut datagram);
    assert_eq!(datagram.len(), whole.len() + TAG_LEN);
    assert_eq!(keys(1, 5, b).open(&datagram), Some(&whole[..]));
    let others = [
        ("another secret", keys(2, 5, b)),
        ("another cluster", keys(1, 6, b)),
        ("its sender", keys(1, 5, a)),
        ("somebody else", keys(1, 5, NodeId::ARBITRATOR)),
    ];
    for (who, keys) in others {
        assert_eq!(keys.open(&datagram), None, "{who}");
    }
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(keys(1, 5, b).open(&changed), None, "bit {bit}");
    }
    for end in 0..datagram.len() {
        assert_eq!(keys(1, 5, b).open(&datagram[..end]), None, "{end} bytes");
    }
    // The arbitrator's key for B says nothing about A.
    let mut forged = whole;
    keys(1, 5, NodeId::ARBITRATOR).seal(b, &mut forged);
    assert_eq!(keys(1, 5, b).open(&forged), None);
}

/// Both ends of a TLS connection in memory, until neither has anything to say.
fn shake_hands(client: &mut Connection, server: &mut Connection) -> Result<(), rustls::Error> {
    for _ in 0..8 {
        for (from, to) in [(0, 1), (1, 0)] {
            let mut wire = Vec::new();
            let [sender, receiver] = match (from, to) {
                (0, _) => [&mut *client, &mut *server],
                _ => [&mut *server, &mut *client],
            };
            while sender.wants_write() {
                sender.write_tls(&mut wire).unwrap();
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                receiver.read_tls(&mut rest).unwrap();
                receiver.process_new_packets()?;
            }
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

#[test]
fn nodes_trust_each_other_by_authority_and_name() {
    let authority = authority(5);
    let tls = |node| PeerTls::new(&keys(&authority, 5, node), NODES).unwrap();
    let (a, b) = (tls("kvm-a"), tls("kvm-b"));
    let call = |from: &PeerTls, to: &PeerTls, as_node| {
        let mut client = Connection::Client(from.call(as_node).unwrap());
        let mut server = Connection::Server(to.accept().unwrap());
        shake_hands(&mut client, &mut server)?;
        Ok::<_, rustls::Error>(server)
    };
    let server = call(&b, &a, 0).unwrap();
    let certificate = server.peer_certificates().and_then(|all| all.first());
    assert!(a.is_of(certificate, 1), "it is kvm-b");
    assert!(!a.is_of(certificate, 2) && !a.is_of(None, 1));
    assert!(call(&b, &a, 2).is_err(), "kvm-a is not the arbitrator");

    // Another authority, with the same names and even the same cluster id.
    let foreign = PeerTls::new(&keys(&self::authority(5), 5, "kvm-b"), NODES).unwrap();
    assert!(call(&foreign, &a, 0).is_err() && call(&b, &foreign, 1).is_err());
}

#[test]
fn keys_that_are_not_this_nodes_are_noticed_before_anybody_is_called() {
    let authority = authority(5);
    let mut wrong = keys(&authority, 5, "kvm-b");
    wrong.node = "kvm-a".to_owned();
    assert!(PeerTls::new(&wrong, NODES).is_err(), "another node's");
    let mut wrong = keys(&authority, 5, "kvm-a");
    wrong.key = keys(&authority, 5, "kvm-a").key;
    assert!(PeerTls::new(&wrong, NODES).is_err(), "another key");
    let mut wrong = keys(&authority, 5, "kvm-a");
    wrong.authority = self::authority(5).certificate().clone();
    assert!(PeerTls::new(&wrong, NODES).is_err(), "another authority");
}

#[test]
fn who_joins_trusts_only_the_issuer_its_token_names() {
    let (authority, other) = (authority(5), authority(5));
    let issuer = keys(&authority, 5, "kvm-a");
    let meet = |token: &Token, keys: &NodeKeys| {
        let mut client = Connection::Client(join_client(token).unwrap());
        let mut server = Connection::Server(join_server(keys).unwrap());
        shake_hands(&mut client, &mut server)
    };
    let token = token_of(&issuer);
    assert_eq!(meet(&token, &issuer), Ok(()));
    assert!(meet(&token, &keys(&other, 5, "kvm-a")).is_err());
    assert!(meet(&token, &keys(&authority, 5, "kvm-b")).is_err());
    let elsewhere = Token {
        cluster: 6,
        ..token
    };
    assert!(meet(&elsewhere, &issuer).is_err());
}

/// A record of TLS may be 16 KiB and come byte by byte: nothing of it can be read, and its sender gets no
/// more time for it.
#[test]
fn a_record_that_trickles_in_has_the_deadline_of_its_message() {
    let authority = authority(5);
    let tls = |node| PeerTls::new(&keys(&authority, 5, node), NODES).unwrap();
    let (a, b) = (tls("kvm-a"), tls("kvm-b"));
    let mut client = Connection::Client(b.call(0).unwrap());
    let mut server = Connection::Server(a.accept().unwrap());
    shake_hands(&mut client, &mut server).unwrap();
    client.writer().write_all(&[7; 1000]).unwrap();
    let mut record = Vec::new();
    client.write_tls(&mut record).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let mut stream = SecureStream::new(server, socket, || Duration::ZERO).unwrap();
    let mut looks = 0;
    let ended = stream.read_message(|| {
        sender.write_all(&record[looks..=looks]).unwrap();
        looks += 1;
        match looks {
            10 => Duration::ZERO,
            _ => Duration::from_secs(2),
        }
    });
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(looks, 10);
}
