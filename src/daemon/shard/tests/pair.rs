//! Two nodes: replication over TCP between two shards.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use nbd_frontend::ClientCommand;
use replicator::engine::{Event, Input};
use replicator::protocol::{PREAMBLE_REPLY_LEN, PreambleReply, PreambleStatus};
use replicator::types::{ConnectionState, DiskState, InSync, NodeId};

use super::clients::pattern;
use super::rig::{
    Guest, MakeBackend, NBD_CONNECTIONS_MAX, Node, PATIENCE, Register, SIZE, Scratch, backends,
};
use crate::daemon::security::Security;
use crate::daemon::shard::client::GUEST_BYTES_MAX;

pub(super) struct Pair {
    pub(super) a: Node,
    pub(super) b: Node,
    register: Register,
    pub(super) address: SocketAddr,
}

impl Pair {
    /// Both up, A Primary, B connected.
    fn start(backend: MakeBackend) -> Self {
        Self::start_with(backend, [None, None])
    }

    /// The same with keys.
    pub(super) fn start_with(backend: MakeBackend, security: [Option<Arc<Security>>; 2]) -> Self {
        Self::prepared(backend, security, |_| {})
    }

    /// The same, each node being prepared before its files are made.
    pub(super) fn prepared(
        backend: MakeBackend,
        [security_a, security_b]: [Option<Arc<Security>>; 2],
        prepare: impl Fn(&mut Node),
    ) -> Self {
        let scratch = Arc::new(Scratch::new());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // A path where nobody answers: the next one is tried.
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let network = (vec![listener], Vec::new(), security_a);
        let mut a = Node::start_secured(&scratch, NodeId::A, network, backend);
        let network = (Vec::new(), vec![closed, address], security_b);
        let mut b = Node::start_secured(&scratch, NodeId::B, network, backend);
        for node in [&mut a, &mut b] {
            prepare(node);
            node.create();
            node.up();
        }
        let mut register = Register::new();
        register.activate(&mut a, |_| {});
        Self {
            a,
            b,
            register,
            address,
        }
    }

    /// Waits until B caught up, then commits it into `in_sync`.
    pub(super) fn add_b(&mut self) {
        self.a.wait_event(|event| *event == Event::ResyncDone);
        let view = self.register.view().number.next();
        self.a.input(Input::BeginAdd { view });
        self.a
            .wait_event(|event| matches!(event, Event::AddPrepared { .. }));
        let committed = self
            .register
            .commit(NodeId::A, |view| view.in_sync = InSync::BOTH);
        self.a.input(Input::Committed(committed));
        self.b.input(Input::Learned(*committed.view()));
        self.b
            .wait_engine(|state| state.disk == DiskState::UpToDate);
        self.a
            .wait_engine(|state| state.peer_disk == DiskState::UpToDate);
    }
}

#[test]
fn a_peer_is_resynced_mirrored_and_takes_over_with_every_acknowledged_write() {
    for backend in backends() {
        let mut pair = Pair::start(backend);
        let mut guest = pair.a.client();
        let before = pattern(3 << 20, 1);
        guest.write(4096, &before);
        pair.add_b();
        let during = pattern(2 << 20, 2);
        guest.write(1 << 20, &during);
        for nr in 0..300_u64 {
            let data = vec![nr.to_le_bytes()[0]; 4096];
            guest.submit(ClientCommand::Write {
                offset: (8 << 20) + nr * 4096,
                data: &data,
                fua: false,
            });
        }
        for _ in 0..300 {
            assert!(guest.next_reply().unwrap().result.is_ok());
        }
        guest.flush();
        assert!(pair.a.image() == pair.b.image(), "both replicas are equal");

        // A is gone: B drains, takes over, and serves the same.
        pair.a.input(Input::StepDown);
        assert!(guest.next_reply().is_none());
        let seal = pair.register.view().number;
        pair.b.input(Input::Drain { seal });
        pair.b
            .wait_event(|event| *event == Event::Drained { seal, ok: true });
        pair.register.activate(&mut pair.b, |view| {
            view.primary = NodeId::B;
            view.in_sync = InSync::only(NodeId::B);
        });
        let mut guest = pair.b.client();
        assert!(guest.read(1 << 20, 2 << 20) == during);
        assert!(guest.read(4096, 65_536) == before[..65_536]);
        guest.write(0, &[0xbb; 4096]);

        // A comes back as Secondary and gets what it missed.
        pair.a.input(Input::Learned(pair.register.view()));
        pair.b.wait_event(|event| *event == Event::ResyncDone);
        guest.flush();
        assert!(pair.a.image() == pair.b.image(), "equal again");
    }
}

#[test]
fn a_cut_link_is_dialled_again_and_the_peer_catches_up() {
    for backend in backends() {
        let mut pair = Pair::start(backend);
        pair.add_b();
        let mut guest = pair.a.client();
        pair.b
            .input(Input::Admin(replicator::engine::AdminRequest::Disconnect));
        pair.b
            .wait_engine(|state| state.connection == ConnectionState::StandAlone);
        pair.a.wait_event(|event| *event == Event::PeerLost);
        // While the peer is in in_sync and away, the write is held, not answered.
        guest.submit(ClientCommand::Write {
            offset: 0,
            data: &[7; 4096],
            fua: false,
        });
        let committed = pair
            .register
            .commit(NodeId::A, |view| view.in_sync = InSync::only(NodeId::A));
        pair.a.input(Input::Committed(committed));
        assert!(guest.next_reply().unwrap().result.is_ok());
        pair.b.input(Input::Learned(*committed.view()));
        pair.b
            .input(Input::Admin(replicator::engine::AdminRequest::Connect));
        pair.add_b();
        guest.write(4096, &[8; 4096]);
        guest.flush();
        assert!(pair.a.image() == pair.b.image());
    }
}

#[test]
fn strangers_on_the_data_port_are_shown_out() {
    for backend in backends() {
        let mut pair = Pair::start(backend);
        let dial = || {
            let stream = TcpStream::connect(pair.address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let mut rude = dial();
        rude.write_all(b"GET / HTTP/1.1\r\nHost: localhost and quite a lot more of it\r\n\r\n")
            .unwrap();
        assert_eq!(rude.read(&mut [0; 64]).unwrap_or(0), 0);
        let _silent: Vec<TcpStream> = (0..80).map(|_| dial()).collect();
        let mut foreign = dial();
        let preamble = replicator::protocol::Preamble {
            versions: replicator::protocol::VersionRange::OURS,
            cluster: 0xbad,
            resource: replicator::types::ResourceId(1),
            from: NodeId::B,
            session: replicator::types::SessionId(5),
        };
        foreign.write_all(&preamble.encode()).unwrap();
        let mut reply = [0; PREAMBLE_REPLY_LEN];
        foreign.read_exact(&mut reply).unwrap();
        assert_eq!(
            PreambleReply::parse(&reply).unwrap().status,
            PreambleStatus::Cluster
        );
        assert_eq!(foreign.read(&mut [0; 8]).unwrap_or(0), 0);
        pair.add_b();
    }
}

#[test]
fn guests_that_never_read_their_answers_do_not_hold_up_the_peer() {
    // Each may have 96 MiB of answers; together they once took all memory, and the peer's
    // acknowledgements were not received any more.
    for backend in backends() {
        let mut pair = Pair::start(backend);
        pair.add_b();
        let mut honest = pair.a.client();
        let all = u32::try_from(SIZE).unwrap();
        let mut deaf: Vec<Guest> = (1..NBD_CONNECTIONS_MAX).map(|_| pair.a.client()).collect();
        for guest in &mut deaf {
            for _ in 0..6 {
                guest.submit(ClientCommand::Read {
                    offset: 0,
                    len: all,
                });
            }
            guest.send();
        }
        pair.a.wait_engine(|state| {
            state.inflight == 0 && state.counters.read_bytes >= GUEST_BYTES_MAX as u64 * 3 / 4
        });
        for nr in 0..100 {
            honest.write(nr * 4096, &[7; 4096]);
        }
        assert_eq!(honest.read(8192, 4096), vec![7; 4096]);
        pair.a.wait_engine(|state| {
            state.inflight == 0 && state.counters.read_bytes < GUEST_BYTES_MAX as u64 * 5 / 4
        });
        // Those who read after all get every answer, the ones that waited for room too.
        for guest in &mut deaf {
            for _ in 0..6 {
                let answer = guest.next_reply().unwrap().result.unwrap();
                assert_eq!(answer.len(), all as usize);
            }
        }
    }
}
