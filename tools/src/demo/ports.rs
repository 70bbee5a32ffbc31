//! Free loopback ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use super::random::Random;

/// Ports are tried here: above the well-known ones, below those that Linux hands to outgoing
/// connections, so that a picked one is still free when its daemon binds it.
const FIRST: u64 = 10_240;
const COUNT: u64 = 32_768 - FIRST;

/// Tries before giving up; with even half of the range taken, one in 2^64 runs would fail.
const TRIES_MAX: usize = 64;

/// A TCP listener and a UDP socket on one free loopback port.
pub(super) fn bind_pair(random: &mut Random) -> io::Result<(SocketAddr, TcpListener, UdpSocket)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES_MAX {
        let port = u16::try_from(FIRST + random.below(COUNT)).unwrap_or(u16::MAX);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(address).and_then(|tcp| Ok((tcp, UdpSocket::bind(address)?))) {
            Ok((tcp, udp)) => return Ok((address, tcp, udp)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pairs_never_share_a_port() {
        let mut random = Random::new(u64::from(std::process::id()));
        let first = bind_pair(&mut random).unwrap();
        let mut again = Random::new(u64::from(std::process::id()));
        let second = bind_pair(&mut again).unwrap();
        assert_ne!(first.0, second.0, "the first one is taken while it is held");
        assert_eq!(first.1.local_addr().unwrap(), first.2.local_addr().unwrap());
    }
}
