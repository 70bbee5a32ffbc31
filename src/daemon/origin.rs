//! Where a connection comes from, and what its other end may therefore be believed.
//!
//! A relay says on whose behalf it asks, and there is no TLS yet that would show who says so. What
//! the kernels vouch for takes its place: on this machine the user that owns the other end's socket,
//! from another one a source port that only privileged programs there can have.
//!
//! Invariant: what cannot be found out counts against who asks.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use core::time::Duration;

use nix::unistd::Uid;

/// The kernel's lists of this network namespace's TCP sockets (proc(5)).
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// State of an open connection there. Only such a socket surely belongs to a program: one that was
/// closed is listed as root's.
const ESTABLISHED: &str = "01";

/// Ports below this are for programs with `CAP_NET_BIND_SERVICE` (ip(7)).
pub(super) const PRIVILEGED_PORTS_END: u16 = 1024;

/// Where the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// On this machine, in this network namespace, owned by this user.
    Here { uid: u32 },
    /// Elsewhere, with this port.
    Elsewhere { port: u16 },
    /// On this machine, and its owner is not known.
    Unknown,
}

impl Origin {
    /// That of an accepted connection.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        let (theirs, ours) = (stream.peer_addr()?, stream.local_addr()?);
        for table in TABLES {
            match File::open(table).map(BufReader::new) {
                Ok(table) => {
                    if let Some(uid) = owner_in(table, theirs, ours)? {
                        return Ok(Self::Here { uid });
                    }
                }
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let (address, port) = (theirs.ip().to_canonical(), theirs.port());
        let here = address.is_loopback() || address == ours.ip().to_canonical();
        Ok(if here {
            Self::Unknown
        } else {
            Self::Elsewhere { port }
        })
    }

    /// Whether it can be believed what the daemon of a node would say.
    pub(super) fn speaks_for_its_node(self) -> bool {
        match self {
            Self::Here { uid } => uid == 0 || uid == Uid::effective().as_raw(),
            Self::Elsewhere { port } => port < PRIVILEGED_PORTS_END,
            Self::Unknown => false,
        }
    }
}

/// When a process began, as time since the machine booted; `None`: it is gone, or not to be seen.
pub(super) fn process_began(pid: i32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the name, in parentheses, may contain anything; 20 fields after it.
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: u64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_millis(
        ticks.checked_mul(1000 / TICKS_PER_SECOND)?,
    ))
}

/// USER_HZ, of every Linux that Debian builds.
const TICKS_PER_SECOND: u64 = 100;

/// Owner of the socket at `local` that is connected to `remote`, if the table has it.
fn owner_in(table: impl BufRead, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let same = |text: &str, address: SocketAddr| {
        let parsed = parse_address(text);
        parsed == Some((address.ip().to_canonical(), address.port()))
    };
    for line in table.lines().skip(1) {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, from, to, state, _, _, _, uid, ..] = words[..] else {
            continue;
        };
        if state == ESTABLISHED && same(from, local) && same(to, remote) {
            return Ok(uid.parse().ok());
        }
    }
    Ok(None)
}

#[allow(
    clippy::host_endian_bytes,
    reason = "the kernel prints each word of an address as the machine reads it"
)]
/// `0100007F:1F90`: words of 32 bits as this machine reads them, and the port.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        let word = u32::from_str_radix(digits, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            IpAddr::from(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((address.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn it_is_known_when_a_process_began() {
        let now = replicator::io::clock::since_boot();
        let own = process_began(std::process::id().cast_signed()).unwrap();
        assert!(
            own <= now && now - own < Duration::from_secs(3600),
            "{own:?} {now:?}"
        );
        assert!(process_began(1).unwrap() <= own);
        assert_eq!(process_began(i32::MAX), None);
    }

    #[test]
    fn the_owner_of_a_connection_on_this_machine_is_known() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                eprintln!("skipped: no {address} here");
                continue;
            };
            let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, _) = listener.accept().unwrap();
            let uid = Uid::effective().as_raw();
            assert_eq!(Origin::of(&ours).unwrap(), Origin::Here { uid });
            // What was closed is nobody's, and must not be taken for root's.
            drop(theirs);
            assert_eq!(Origin::of(&ours).unwrap(), Origin::Unknown);
        }
    }

    #[test]
    fn only_its_own_user_root_and_privileged_ports_speak_for_a_node() {
        let own = Uid::effective().as_raw();
        for (origin, believed) in [
            (Origin::Here { uid: 0 }, true),
            (Origin::Here { uid: own }, true),
            (Origin::Here { uid: own + 1 }, false),
            (Origin::Elsewhere { port: 1023 }, true),
            (Origin::Elsewhere { port: 1024 }, false),
            (Origin::Unknown, false),
        ] {
            assert_eq!(origin.speaks_for_its_node(), believed, "{origin:?}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_table_of_the_kernel_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
            0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     7        0\n\
            1: 0100007F:C350 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0\n\
            2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  4711        0\n\
            3: 0000000000000000FFFF00000100007F:C351 0100007F:1F90 01 0:0 00:0 0 12 0\n\
            nonsense\n";
        let owner = |from: &str, to: &str| {
            owner_in(table.as_bytes(), from.parse().unwrap(), to.parse().unwrap()).unwrap()
        };
        assert_eq!(owner("127.0.0.1:50000", "127.0.0.1:8080"), Some(4711));
        assert_eq!(
            owner("[::ffff:127.0.0.1]:50001", "127.0.0.1:8080"),
            Some(12)
        );
        assert_eq!(owner("127.0.0.1:50002", "127.0.0.1:8080"), None);
    }
}
