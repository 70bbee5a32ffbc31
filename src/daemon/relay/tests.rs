//! The passing node against other ends of every kind.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

/// A client that keeps what it is sent.
#[derive(Default)]
struct Client {
    lines: Vec<String>,
    gone: AtomicBool,
}

impl Answers for Client {
    fn send_line(&mut self, line: &[u8]) -> io::Result<()> {
        self.lines.push(String::from_utf8(line.to_vec()).unwrap());
        Ok(())
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connection of which the other end has said `bytes`; kept open only if `open`.
fn answered(bytes: Vec<u8>, open: bool) -> (TcpStream, Option<TcpStream>) {
    let (listener, address) = listener();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(CLIENT_LOOK)).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    let kept = other.try_clone().unwrap();
    thread::spawn(move || other.write_all(&bytes).unwrap_or(()));
    if open {
        return (stream, Some(kept));
    }
    // Closed once everything is written: the clone is dropped here, the original there.
    drop(kept);
    (stream, None)
}

fn handed_on(bytes: &str, open: bool, verb: &Verb) -> (End, Vec<String>) {
    let (stream, _kept) = answered(bytes.as_bytes().to_vec(), open);
    let mut client = Client::default();
    let end = hand_lines_on(Wire::Clear(stream), verb, &mut client);
    (end, client.lines)
}

#[test]
fn lines_go_on_as_they_are_up_to_the_final_one() {
    let progress = "{\"reply\":\"progress\",\"message\":\"m\",\"of-a-later-version\":[[1]]}\n";
    let last = "{\"changed\":true,\"reply\":\"done\",\"message\":\"m\"}\n";
    let text = format!("{progress}{progress}{last}{progress}");
    // The other node does not close: the last line is the end.
    let (end, lines) = handed_on(&text, true, &Verb::Version);
    assert!(matches!(end, End::Final), "{end:?}");
    assert_eq!(lines, [progress, progress, last]);
}

#[test]
fn an_answer_that_is_cut_is_told_from_one_that_ended() {
    let event = "{\"reply\":\"event\"}\n";
    let events2 = |now| Verb::Events2 {
        resource: None,
        now,
    };
    let (end, lines) = handed_on(event, false, &events2(false));
    assert!(matches!(end, End::Cut(_)), "{end:?}");
    assert_eq!(lines, [event]);
    let (end, lines) = handed_on(event, false, &events2(true));
    assert!(matches!(end, End::Final), "{end:?}");
    assert_eq!(lines, [event]);
    let (end, lines) = handed_on("{\"reply\":\"done\"", false, &Verb::Version);
    assert!(matches!(end, End::Cut(_)), "{end:?}");
    assert!(lines.is_empty(), "half a line goes to nobody");
}

#[test]
fn what_is_no_answer_is_not_handed_on() {
    for text in ["nonsense\n", "{}\n", "[]\n", "{\"reply\":7}\n", "\n"] {
        let (end, lines) = handed_on(text, true, &Verb::Version);
        assert!(matches!(end, End::Nonsense(_)), "{text:?}: {end:?}");
        assert!(lines.is_empty(), "{text:?}");
    }
}

#[test]
fn a_line_without_an_end_is_collected_only_up_to_its_limit() {
    let (stream, _kept) = answered(vec![b'x'; LINE_LEN_MAX + 1], true);
    let mut client = Client::default();
    let end = hand_lines_on(Wire::Clear(stream), &Verb::Version, &mut client);
    assert!(
        matches!(&end, End::Nonsense(why) if why.contains("longer")),
        "{end:?}"
    );
}

#[test]
fn a_line_that_trickles_in_ends_its_relay() {
    let (listener, address) = listener();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(CLIENT_LOOK)).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    other.set_nodelay(true).unwrap();
    let (stop, is_over) = std::sync::mpsc::channel::<()>();
    let trickle = thread::spawn(move || {
        // A byte now and then, until the other side is done with it.
        while is_over.recv_timeout(Duration::from_millis(50))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            && other.write_all(b"x").is_ok()
        {}
    });
    let begin = clock::now();
    let end = hand_lines_on(Wire::Clear(stream), &Verb::Version, &mut Client::default());
    assert!(
        matches!(&end, End::Cut(why) if why.contains("line")),
        "{end:?}"
    );
    assert!(clock::now().since(begin) < 4 * LINE_TIMEOUT);
    drop(stop);
    trickle.join().unwrap();
}

#[test]
fn a_client_that_left_ends_a_silent_relay() {
    let (stream, _kept) = answered(Vec::new(), true);
    let mut client = Client {
        gone: AtomicBool::new(true),
        ..Client::default()
    };
    let end = hand_lines_on(Wire::Clear(stream), &Verb::Version, &mut client);
    assert!(matches!(end, End::ClientGone(_)), "{end:?}");
}

fn preamble() -> RelayPreamble {
    RelayPreamble {
        versions: VersionRange::RELAY,
        cluster: 1,
        from: NodeId::A,
        to: NodeId::B,
        may_change: false,
        uid: 0,
    }
}

fn knocked(to: SocketAddr, patience: Duration) -> io::Result<Wire> {
    let knocking = Knocking {
        from: Some((Ipv4Addr::LOCALHOST, 0).into()),
        to,
        privileged: false,
        deadline: clock::now().plus(patience),
        refusal,
        security: None,
        cluster: 1,
        nodes: [NodeId::A, NodeId::B],
    };
    knock(&knocking, &preamble().encode())
}

#[test]
fn a_node_that_is_stopped_or_another_program_is_given_up() {
    let (silent, address) = listener();
    let error = knocked(address, Duration::from_millis(50)).unwrap_err();
    assert_eq!(words(&error), "no answer in time");
    drop(silent);
    let error = knocked(address, Duration::from_secs(1)).unwrap_err();
    assert_eq!(words(&error), "nothing listens there");

    for (reply, word) in [
        (b"SSH-2.0-".to_vec(), "does not begin like one of ours"),
        (Vec::new(), "closed the connection"),
        (
            PreambleReply {
                status: PreambleStatus::Cluster,
                version: 1,
            }
            .encode()
            .to_vec(),
            "another cluster",
        ),
    ] {
        let (listener, address) = listener();
        let other = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; replicator::protocol::PREAMBLE_LEN];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(&reply).unwrap();
            asked
        });
        let error = knocked(address, Duration::from_secs(5)).unwrap_err();
        assert!(words(&error).contains(word), "{error}");
        assert_eq!(other.join().unwrap(), preamble().encode());
    }
}

#[test]
fn who_may_change_things_comes_from_a_privileged_port_if_that_can_be() {
    let port_of = |privileged| {
        let (listener, address) = listener();
        let deadline = clock::now().plus(SET_UP_TIMEOUT);
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
        let _stream = dial(Some(own), address, privileged, deadline).unwrap();
        listener.accept().unwrap().1.port()
    };
    assert!(port_of(false) >= PRIVILEGED_PORTS_END);
    if nix::unistd::Uid::effective().is_root() {
        assert!(PRIVILEGED_PORTS.contains(&port_of(true)));
    } else {
        assert!(port_of(true) > 0, "it dials all the same");
    }
}
