//! A network that can be cut, for `--fault partition`.
//!
//! Between each two nodes stand two doors, one port each (TCP and UDP): the one that `x` knows as
//! `y`'s address, and the one that `y` knows as `x`'s. What arrives at one leaves for the other
//! node's real address, datagrams from the opposite door, so that each sees the sender it knows.
//!
//! While a node is isolated everything to and from it vanishes: datagrams are dropped, and TCP
//! connections fall silent. A connection that lost a byte is closed once the cut is healed, since a
//! stream with a gap is none.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::cluster::NODES;
use super::ports;
use super::random::Random;

/// How long a thread of the relay waits before it looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Longest datagram that is passed on, in bytes: any UDP has.
const DATAGRAM_LEN_MAX: usize = 65_536;

/// Bytes of a stream passed on at once.
const CHUNK_LEN: usize = 64 * 1024;

struct Switches {
    isolated: [AtomicBool; NODES],
    stop: AtomicBool,
}

impl Switches {
    fn cut(&self, link: Link) -> bool {
        [link.from, link.to]
            .iter()
            .any(|node| self.isolated[*node].load(Ordering::SeqCst))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A direction between two nodes.
#[derive(Clone, Copy)]
struct Link {
    from: usize,
    to: usize,
}

/// The running relay; ends its threads when dropped.
pub(super) struct Relay {
    doors: [[Option<SocketAddr>; NODES]; NODES],
    switches: Arc<Switches>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Opens all doors between nodes with these real addresses.
    pub(super) fn start(real: [SocketAddr; NODES], random: &mut Random) -> io::Result<Self> {
        let switches = Arc::new(Switches {
            isolated: Default::default(),
            stop: AtomicBool::new(false),
        });
        let mut relay = Self {
            doors: Default::default(),
            switches,
            threads: Vec::new(),
        };
        for x in 0..NODES {
            for y in 0..x {
                let (there, there_tcp, there_udp) = ports::bind_pair(random)?;
                let (back, back_tcp, back_udp) = ports::bind_pair(random)?;
                relay.doors[x][y] = Some(there);
                relay.doors[y][x] = Some(back);
                let forth = Link { from: x, to: y };
                let reverse = Link { from: y, to: x };
                relay.pass_datagrams(
                    there_udp.try_clone()?,
                    back_udp.try_clone()?,
                    real[y],
                    forth,
                )?;
                relay.pass_datagrams(back_udp, there_udp, real[x], reverse)?;
                relay.pass_streams(there_tcp, real[y], forth)?;
                relay.pass_streams(back_tcp, real[x], reverse)?;
            }
        }
        Ok(relay)
    }

    /// The address under which `from` reaches `to`; `None` for a node and itself.
    pub(super) fn door(&self, from: usize, to: usize) -> Option<SocketAddr> {
        self.doors[from][to]
    }

    /// Cuts `node` off from all others, or heals that.
    pub(super) fn isolate(&self, node: usize, cut: bool) {
        self.switches.isolated[node].store(cut, Ordering::SeqCst);
    }

    fn pass_datagrams(
        &mut self,
        arrive: UdpSocket,
        leave: UdpSocket,
        to: SocketAddr,
        link: Link,
    ) -> io::Result<()> {
        arrive.set_read_timeout(Some(LOOK_EVERY))?;
        let switches = Arc::clone(&self.switches);
        self.threads.push(thread::spawn(move || {
            let mut buffer = vec![0; DATAGRAM_LEN_MAX];
            while !switches.stopped() {
                let Ok(len) = arrive.recv(&mut buffer) else {
                    continue;
                };
                if !switches.cut(link) {
                    // A datagram that cannot be sent is a lost one: what datagrams are for.
                    drop(leave.send_to(&buffer[..len], to));
                }
            }
        }));
        Ok(())
    }

    fn pass_streams(&mut self, door: TcpListener, to: SocketAddr, link: Link) -> io::Result<()> {
        door.set_nonblocking(true)?;
        let switches = Arc::clone(&self.switches);
        self.threads.push(thread::spawn(move || {
            let mut pumps = Vec::new();
            while !switches.stopped() {
                if !readable(&door) || switches.cut(link) {
                    // Cut: whoever dials waits, as for an answer that never comes.
                    if switches.cut(link) {
                        thread::park_timeout(LOOK_EVERY);
                    }
                    continue;
                }
                if let Ok((near, _)) = door.accept() {
                    pumps.extend(connect(near, to, link, &switches).unwrap_or_default());
                }
                pumps.retain(|pump: &JoinHandle<()>| !pump.is_finished());
            }
            for pump in pumps {
                drop(pump.join());
            }
        }));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.switches.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Two pumps between an accepted connection and a new one to `to`.
fn connect(
    near: TcpStream,
    to: SocketAddr,
    link: Link,
    switches: &Arc<Switches>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let far = TcpStream::connect(to)?;
    for stream in [&near, &far] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        // A reader that takes nothing for this long is gone; its connection is closed.
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    }
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    let (forth, back) = (Arc::clone(switches), Arc::clone(switches));
    Ok(vec![
        thread::spawn(move || pump(near, far, link, &forth)),
        thread::spawn(move || pump(far_too, near_too, link, &back)),
    ])
}

fn pump(mut from: TcpStream, mut to: TcpStream, link: Link, switches: &Switches) {
    let mut buffer = vec![0; CHUNK_LEN];
    let mut severed = false;
    while !switches.stopped() {
        severed |= switches.cut(link);
        if severed {
            if !switches.cut(link) {
                break;
            }
            thread::park_timeout(LOOK_EVERY);
            continue;
        }
        if !readable(&from) {
            continue;
        }
        match from.read(&mut buffer) {
            Ok(len) if len > 0 => {
                if switches.cut(link) {
                    severed = true;
                } else if to.write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

/// Whether something can be read, accepted, or has ended; waits [`LOOK_EVERY`] for it.
fn readable(socket: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO);
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    struct Bench {
        relay: Relay,
        tcp: Vec<TcpListener>,
        udp: Vec<UdpSocket>,
    }

    fn bench(salt: u64) -> Bench {
        let mut random = Random::new(u64::from(std::process::id()) << 8 | salt);
        let (mut real, mut tcp, mut udp) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..NODES {
            let pair = ports::bind_pair(&mut random).unwrap();
            real.push(pair.0);
            tcp.push(pair.1);
            pair.2.set_read_timeout(Some(PATIENCE)).unwrap();
            udp.push(pair.2);
        }
        let relay = Relay::start(real.try_into().unwrap(), &mut random).unwrap();
        Bench { relay, tcp, udp }
    }

    fn ask(from: &UdpSocket, door: SocketAddr, words: &[u8], to: &UdpSocket) -> Option<SocketAddr> {
        let mut buffer = [0; 64];
        from.send_to(words, door).unwrap();
        let (len, sender) = to.recv_from(&mut buffer).ok()?;
        assert_eq!(&buffer[..len], words);
        Some(sender)
    }

    #[test]
    fn a_datagram_arrives_from_the_address_its_receiver_knows() {
        let bench = bench(1);
        let sender = ask(
            &bench.udp[0],
            bench.relay.door(0, 1).unwrap(),
            b"hello",
            &bench.udp[1],
        );
        assert_eq!(sender, bench.relay.door(1, 0));
        let answer = ask(&bench.udp[1], sender.unwrap(), b"you too", &bench.udp[0]);
        assert_eq!(answer, bench.relay.door(0, 1));
    }

    #[test]
    fn an_isolated_node_hears_nothing_and_the_others_still_do() {
        let bench = bench(2);
        bench.relay.isolate(0, true);
        bench.udp[1]
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        assert_eq!(
            ask(
                &bench.udp[0],
                bench.relay.door(0, 1).unwrap(),
                b"lost",
                &bench.udp[1]
            ),
            None
        );
        bench.udp[1].set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(
            ask(
                &bench.udp[2],
                bench.relay.door(2, 1).unwrap(),
                b"kept",
                &bench.udp[1]
            )
            .is_some()
        );
        bench.relay.isolate(0, false);
        assert!(
            ask(
                &bench.udp[0],
                bench.relay.door(0, 1).unwrap(),
                b"again",
                &bench.udp[1]
            )
            .is_some()
        );
    }

    #[test]
    fn a_stream_falls_silent_when_cut_and_is_closed_when_healed() {
        let bench = bench(3);
        let mut near = TcpStream::connect(bench.relay.door(0, 1).unwrap()).unwrap();
        let (mut far, _) = bench.tcp[1].accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 8];
        near.write_all(b"before").unwrap();
        far.read_exact(&mut buffer[..6]).unwrap();

        bench.relay.isolate(1, true);
        near.write_all(b"during").unwrap();
        far.set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let silence = far.read(&mut buffer).unwrap_err();
        assert!(matches!(
            silence.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ));

        bench.relay.isolate(1, false);
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = far.read(&mut buffer);
        assert!(
            matches!(ended, Ok(0) | Err(_)),
            "no byte after the gap: {ended:?}"
        );
        let mut near = TcpStream::connect(bench.relay.door(0, 1).unwrap()).unwrap();
        let (mut far, _) = bench.tcp[1].accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        near.write_all(b"after").unwrap();
        far.read_exact(&mut buffer[..5]).unwrap();
    }
}
