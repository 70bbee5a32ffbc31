//! Datagrams between the controllers of three nodes, over every configured path.
//!
//! Owns the UDP sockets of this node: one per address. Knows nothing of what the datagrams say. A
//! datagram that cannot be sent is lost, like any other: the controller repeats what matters.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

/// Longest datagram taken, in bytes: controller messages are at most 1200, and 32 with their seal; a
/// longer one is cut by the kernel and then fails its checksum.
pub const DATAGRAM_LEN_MAX: usize = 2048;

/// Datagrams taken from one socket in one turn, so that a flood on one path delays neither the
/// other paths nor the timers.
const DATAGRAMS_PER_TURN: usize = 64;

/// One way to reach another node: from one of our sockets to one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    socket: usize,
    to: SocketAddr,
}

/// The sockets of this node and the paths to the other voters, by node index.
#[derive(Debug)]
pub struct Carrier {
    sockets: Vec<UdpSocket>,
    paths: [Vec<Path>; 3],
}

impl Carrier {
    /// Makes `sockets` (bound to `own`, one each, nonblocking) the carrier to `others` (addresses
    /// by node index; this node's own entry is not used and may be empty).
    ///
    /// # Errors
    /// If a socket cannot be made nonblocking.
    pub fn new(sockets: Vec<UdpSocket>, others: &[Vec<SocketAddr>; 3]) -> io::Result<Self> {
        let mut own = Vec::with_capacity(sockets.len());
        for socket in &sockets {
            socket.set_nonblocking(true)?;
            own.push(socket.local_addr()?);
        }
        let paths = [0, 1, 2].map(|node: usize| {
            let targets = others[node].iter().enumerate();
            targets
                .filter_map(|(index, to)| {
                    source_for(&own, index, *to).map(|socket| Path { socket, to: *to })
                })
                .collect()
        });
        Ok(Self { sockets, paths })
    }

    /// Sends `bytes` to the node with this index on every path to it. Returns on how many paths
    /// the kernel took it.
    pub fn send(&self, node: usize, bytes: &[u8]) -> usize {
        let paths = self.paths.get(node).map_or(&[][..], Vec::as_slice);
        // An unreachable network or a full buffer is a lost datagram; ICMP errors of an earlier
        // one are not worth more.
        paths
            .iter()
            .filter(|path| self.sockets[path.socket].send_to(bytes, path.to).is_ok())
            .count()
    }

    /// Hands over what arrived, with the index of the local socket; returns whether more may be
    /// waiting.
    pub fn receive(&self, buffer: &mut [u8], mut handle: impl FnMut(usize, &[u8])) -> bool {
        let mut more = false;
        for (index, socket) in self.sockets.iter().enumerate() {
            let mut taken = 0;
            while taken < DATAGRAMS_PER_TURN {
                match socket.recv_from(buffer) {
                    Ok((len, _)) => handle(index, &buffer[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error of an earlier datagram, reported once and then gone.
                    Err(_) => {}
                }
                taken += 1;
            }
            more |= taken == DATAGRAMS_PER_TURN;
        }
        more
    }

    /// The descriptors to wait on.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }
}

/// Which of `own` to send from towards `to`, the target's address number `index`: the one that
/// shares most leading bits with it (the same subnet), else the one with the same number. Sending
/// from the other link's address would have the answer come back on a link that may be down.
pub(super) fn source_for(own: &[SocketAddr], index: usize, to: SocketAddr) -> Option<usize> {
    let shared = |source: &SocketAddr| shared_bits(source.ip(), to.ip());
    let best = own.iter().filter_map(shared).max()?;
    let same_number = own
        .get(index)
        .is_some_and(|source| shared(source) == Some(best));
    if same_number {
        return Some(index);
    }
    own.iter().position(|source| shared(source) == Some(best))
}

/// Leading bits two addresses share; `None` across address families.
fn shared_bits(a: IpAddr, b: IpAddr) -> Option<u32> {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        (IpAddr::V6(a), IpAddr::V6(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_target_is_reached_from_the_address_in_its_subnet() {
        let own = addresses(&["10.9.0.1:7790", "192.168.1.11:7790"]);
        let arbitrator = "192.168.1.13:7790".parse().unwrap();
        assert_eq!(source_for(&own, 0, arbitrator), Some(1));
        assert_eq!(
            source_for(&own, 0, "10.9.0.2:7790".parse().unwrap()),
            Some(0)
        );
    }

    #[test]
    fn equal_candidates_are_paired_by_number() {
        let own = addresses(&["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(source_for(&own, 1, "127.0.0.1:4".parse().unwrap()), Some(1));
        assert_eq!(source_for(&own, 7, "127.0.0.1:4".parse().unwrap()), Some(0));
    }

    #[test]
    fn no_address_of_that_family_is_no_path() {
        assert_eq!(
            source_for(&addresses(&["127.0.0.1:1"]), 0, "[::1]:2".parse().unwrap()),
            None
        );
    }

    fn bound() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn a_datagram_arrives_once_per_path_and_a_dead_target_is_only_a_loss() {
        let (here, first, second) = (bound(), bound(), bound());
        let gone = bound().local_addr().unwrap();
        let there = vec![first.local_addr().unwrap(), second.local_addr().unwrap()];
        let sender = Carrier::new(vec![here], &[vec![], there, vec![gone]]).unwrap();
        let receiver = Carrier::new(vec![first, second], &[const { Vec::new() }; 3]).unwrap();
        assert_eq!(sender.send(1, b"beacon"), 2);
        sender.send(2, b"nobody listens");
        assert_eq!(
            sender.send(1, b"again"),
            2,
            "the refusal of the dead target hurts nobody"
        );
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let mut seen = Vec::new();
        receiver.receive(&mut buffer, |path, bytes| seen.push((path, bytes.to_vec())));
        seen.sort();
        let expected = [
            (0, &b"again"[..]),
            (0, b"beacon"),
            (1, b"again"),
            (1, b"beacon"),
        ];
        assert_eq!(seen, expected.map(|(path, bytes)| (path, bytes.to_vec())));
    }
}
