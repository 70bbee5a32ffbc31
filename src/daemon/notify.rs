//! Telling the service manager that the daemon is ready, and giving it sockets to keep: sd_notify(3),
//! the part that is needed.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// Which socket the service manager listens on, if there is one.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// Sends `state` (such as `READY=1`) to the socket that `NOTIFY_SOCKET` names: a path, or an
/// abstract name after `@`.
///
/// # Errors
/// When the socket is not there or does not take it.
pub fn notify(socket: &OsStr, state: &str) -> io::Result<()> {
    send(&UnixDatagram::unbound()?, socket, state)
}

fn send(from: &UnixDatagram, socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    from.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

/// Gives the manager a descriptor to keep under `name` (`FDSTORE=1`): it comes back with the next start
/// of the service. Never waits.
///
/// # Errors
/// When the socket is not there or does not take it at once.
pub fn keep(socket: &OsStr, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(socket)?,
    };
    let state = format!("FDSTORE=1\nFDNAME={name}");
    let text = [IoSlice::new(state.as_bytes())];
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let from = UnixDatagram::unbound()?;
    let (flags, raw) = (MsgFlags::MSG_DONTWAIT, from.as_fd().as_raw_fd());
    sendmsg(raw, &text, &control, flags, Some(&address))?;
    Ok(())
}

/// The manager need not keep it any more. Never waits: of one that it keeps all the same the next start
/// finds that its path does not lead to it.
///
/// # Errors
/// As [`keep`].
pub fn forget(socket: &OsStr, name: &str) -> io::Result<()> {
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    send(&from, socket, &format!("FDSTOREREMOVE=1\nFDNAME={name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abstract_socket_gets_the_state() {
        let name = format!("twinblk-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        notify(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        let mut buffer = [0; 16];
        let len = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"READY=1");
        notify(OsStr::new("/nonexistent/socket"), "READY=1").unwrap_err();
    }

    #[test]
    fn a_manager_that_does_not_listen_holds_nobody_up() {
        let name = format!("twinblk-notify-full-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _manager = UnixDatagram::bind_addr(&address).unwrap();
        let socket = format!("@{name}");
        let full = std::iter::repeat_with(|| forget(OsStr::new(&socket), "a"))
            .take(100_000)
            .find_map(Result::err);
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
