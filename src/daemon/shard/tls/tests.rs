//! A client of rustls against the transformer, over a wire in memory.

use proptest::prelude::*;
use rcgen::date_time_ymd;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};

use super::*;
use crate::daemon::certificates::Certificates;
use crate::daemon::certificates::tests::Scratch;
use crate::daemon::certificates::tests::authority::{Authority, Issued, Use};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

/// An authority and a server of it.
struct Site {
    scratch: Scratch,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            scratch: Scratch::new(),
            authority: Authority::new(),
        };
        site.authority.write_server(&site.scratch.0);
        site
    }

    fn config(&self) -> Arc<ServerConfig> {
        Certificates::open(&self.scratch.0).unwrap().0.current()
    }

    fn meet(&self, client: Option<&Issued>, version: &'static SupportedProtocolVersion) -> Pair {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.scratch.0.join("ca-cert.pem")).unwrap();
        roots.add(ca).unwrap();
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some(issued) => {
                let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes());
                config
                    .with_client_auth_cert(vec![certificate.unwrap()], key.unwrap())
                    .unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        client.set_buffer_limit(None);
        Pair {
            client,
            tls: Tls::new(self.config(), 0).unwrap(),
            to_server: Vec::new(),
            at_server: Vec::new(),
            at_client: Vec::new(),
            sent: 0,
        }
    }

    fn client(&self) -> Issued {
        self.authority
            .issue(&Authority::params(Use::Client, "kvm-a"))
    }
}

struct Pair {
    client: ClientConnection,
    tls: Tls,
    /// On the wire.
    to_server: Vec<u8>,
    /// Inside, as each side got it.
    at_server: Vec<u8>,
    at_client: Vec<u8>,
    /// Bytes inside that the server was told have left.
    sent: usize,
}

impl Pair {
    /// Moves bytes until nothing moves, `cut` at a time towards the server.
    fn settle(&mut self, cut: usize) -> Result<(), rustls::Error> {
        loop {
            while self.client.wants_write() {
                self.client.write_tls(&mut self.to_server).unwrap();
            }
            let arrived: Vec<u8> = self
                .to_server
                .drain(..cut.min(self.to_server.len()))
                .collect();
            let mut rest = &arrived[..];
            let mut opened = Ok(());
            while !rest.is_empty() && opened.is_ok() {
                let mut inside = Vec::new();
                opened = self
                    .tls
                    .open(rest, &mut inside)
                    .map(|taken| rest = &rest[taken..]);
                self.at_server.extend(inside);
            }
            let mut sealed = Vec::new();
            self.tls.seal(|bytes| sealed.extend_from_slice(bytes));
            self.sent += self.tls.take_sent();
            self.give_client(&sealed);
            opened?;
            if arrived.is_empty() && sealed.is_empty() && !self.client.wants_write() {
                return Ok(());
            }
        }
    }

    fn give_client(&mut self, mut sealed: &[u8]) {
        while !sealed.is_empty() && self.client.read_tls(&mut sealed).unwrap() > 0 {
            // An alert is an error, of the one who gets it.
            let Ok(state) = self.client.process_new_packets() else {
                return;
            };
            let start = self.at_client.len();
            self.at_client
                .resize(start + state.plaintext_bytes_to_read(), 0);
            let inside = &mut self.at_client[start..];
            self.client.reader().read_exact(inside).unwrap();
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.client.writer().write_all(bytes).unwrap();
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let byte = |at: usize| seed.wrapping_add((at % 251).to_le_bytes()[0]);
    (0..len).map(byte).collect()
}

#[test]
fn what_is_sealed_for_a_known_client_is_opened_by_it_and_back() {
    let site = Site::new();
    let client = site.client();
    for version in VERSIONS {
        let mut pair = site.meet(Some(&client), version);
        pair.settle(usize::MAX).unwrap();
        assert!(!pair.tls.is_handshaking());
        let der = CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap();
        assert_eq!(pair.tls.peer_certificate(), Some(&der));
        pair.say(&pattern(1 << 20, 1));
        pair.tls.push(b"head");
        pair.tls.push_shared(Bytes::from(pattern(3 << 20, 2)));
        pair.tls.push(b"tail");
        pair.settle(usize::MAX).unwrap();
        assert_eq!(pair.at_server, pattern(1 << 20, 1));
        let expected = [b"head", &pattern(3 << 20, 2)[..], b"tail"].concat();
        assert!(pair.at_client == expected);
        assert_eq!(pair.sent, expected.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However the wire cuts the stream, both sides get the same.
    #[test]
    fn any_cut_of_any_conversation_says_the_same(
        tls13 in any::<bool>(),
        cut in prop_oneof![1_usize..40, 40_usize..30_000, Just(usize::MAX)],
        lens in prop::collection::vec((0_usize..40_000, 0_usize..40_000, any::<bool>()), 1..6),
    ) {
        let site = Site::new();
        let mut pair = site.meet(Some(&site.client()), VERSIONS[usize::from(tls13)]);
        // What the client says behind its handshake may arrive together with the end of it.
        let (mut said, mut answered) = (Vec::new(), Vec::new());
        for (seed, (question, answer, settles)) in (1..).zip(lens) {
            said.extend(pattern(question, seed));
            pair.say(&pattern(question, seed));
            if settles {
                pair.settle(cut).unwrap();
            }
            answered.extend(pattern(answer, !seed));
            pair.tls.push(&pattern(answer / 3, !seed));
            let rest = pattern(answer, !seed).split_off(answer / 3);
            pair.tls.push_shared(Bytes::from(rest));
        }
        pair.settle(cut).unwrap();
        prop_assert!(pair.at_server == said);
        prop_assert!(pair.at_client == answered);
        prop_assert_eq!(pair.sent, answered.len());
    }

    /// Whatever a stranger sends, nothing of it gets inside.
    #[test]
    fn garbage_never_gets_inside(bytes in prop::collection::vec(any::<u8>(), 1..400)) {
        let mut tls = Tls::new(Site::new().config(), 0).unwrap();
        let mut inside = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match tls.open(rest, &mut inside) {
                Ok(taken) => rest = &rest[taken..],
                Err(_) => break,
            }
        }
        prop_assert!(inside.is_empty() && tls.is_handshaking());
        // At most an alert.
        let mut sealed = Vec::new();
        tls.seal(|bytes| sealed.extend_from_slice(bytes));
        prop_assert!(sealed.len() < 64);
    }

    /// One byte changed on the way ends the connection; nothing changed gets inside.
    #[test]
    fn a_changed_byte_is_noticed(at in 0_usize..5_000, bit in 0_u8..8) {
        let site = Site::new();
        let mut pair = site.meet(Some(&site.client()), &version::TLS13);
        pair.settle(usize::MAX).unwrap();
        let said = pattern(5_000, 9);
        pair.say(&said);
        pair.client.write_tls(&mut pair.to_server).unwrap();
        let at = at % pair.to_server.len();
        pair.to_server[at] ^= 1 << bit;
        // A length that grew waits for bytes that do not come.
        if pair.settle(usize::MAX).is_ok() {
            prop_assert!(at < 5);
        }
        prop_assert!(pair.at_server.is_empty());
    }
}

#[test]
fn clients_without_a_good_certificate_are_refused_with_an_alert() {
    let site = Site::new();
    let stranger = Authority::new().issue(&Authority::params(Use::Client, "kvm-a"));
    let with = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = Authority::params(Use::Client, "kvm-a");
        change(&mut params);
        site.authority.issue(&params)
    };
    let expired = with(&|it| it.not_after = date_time_ymd(2020, 1, 1));
    let not_yet = with(&|it| it.not_before = date_time_ymd(2900, 1, 1));
    let of_a_server = site
        .authority
        .issue(&Authority::params(Use::Server, "kvm-a"));
    let revoked = with(&|it| it.serial_number = Some(rcgen::SerialNumber::from_slice(&[7])));
    let list = site.authority.revoke(&[7]);
    std::fs::write(site.scratch.0.join("ca-crl.pem"), list).unwrap();
    let good = with(&|it| it.serial_number = Some(rcgen::SerialNumber::from_slice(&[8])));
    for version in VERSIONS {
        for (what, client) in [
            ("none", None),
            ("of another authority", Some(&stranger)),
            ("expired", Some(&expired)),
            ("not yet valid", Some(&not_yet)),
            ("of a server", Some(&of_a_server)),
            ("revoked", Some(&revoked)),
        ] {
            let mut pair = site.meet(client, version);
            pair.say(b"NBD");
            assert!(pair.settle(usize::MAX).is_err(), "{what}");
            assert!(pair.at_server.is_empty(), "{what}");
            pair.client.process_new_packets().unwrap_err();
        }
        site.meet(Some(&good), version).settle(usize::MAX).unwrap();
    }
}

/// A client that does not read costs one round beside what its session lets wait.
#[test]
fn only_a_round_is_sealed_at_a_time() {
    let site = Site::new();
    let mut pair = site.meet(Some(&site.client()), &version::TLS13);
    pair.settle(usize::MAX).unwrap();
    pair.tls.push_shared(Bytes::from(pattern(10 << 20, 1)));
    let mut sealed = 0;
    pair.tls.seal(|bytes| sealed += bytes.len());
    assert!((ROUND_BYTES_MAX..256 << 10).contains(&sealed), "{sealed}");
    assert_eq!(pair.tls.take_sent(), ROUND_BYTES_MAX);
    assert_eq!(pair.tls.take_sent(), 0);
}

#[test]
fn either_side_is_told_of_the_end() {
    let site = Site::new();
    let client = site.client();
    for version in VERSIONS {
        let mut pair = site.meet(Some(&client), version);
        pair.settle(usize::MAX).unwrap();
        pair.tls.push(b"last words");
        pair.tls.say_farewell();
        pair.say(b"bye");
        pair.settle(usize::MAX).unwrap();
        assert_eq!(pair.at_client, b"last words");
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
        assert!(!pair.tls.has_ended());
        pair.client.send_close_notify();
        pair.settle(usize::MAX).unwrap();
        assert_eq!(pair.at_server, b"bye");
        assert!(pair.tls.has_ended());
        // Bytes behind the end are taken and nobody's.
        let mut inside = Vec::new();
        assert_eq!(pair.tls.open(b"more", &mut inside).unwrap(), 4);
        assert!(inside.is_empty());
    }
}
