//! Listening sockets that outlive this process: NBD clients that come while the daemon restarts wait
//! in them instead of being refused.
//!
//! They come with the start: from a life before that made room for this one (`twinadm reexec`), from
//! the service manager that kept them (`FDSTORE=1` of sd_notify(3)), or from a socket unit
//! (sd_listen_fds(3)). Sockets of a life before carry a name of ours; all others are known by what
//! they are bound to.
//!
//! Invariant: a Unix socket is used again only if its path still leads to it. The name says which file
//! that was.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, UnixAddr, getsockname, getsockopt, sockopt};
use replicator::io::inherited;

use super::notify;

/// Which process the descriptors are for, and their numbers and names, each after a semicolon.
const VARIABLE: &str = "TWINBLK_LISTENERS";
/// The service manager's way to say the same.
const MANAGER_PID: &str = "LISTEN_PID";
const MANAGER_COUNT: &str = "LISTEN_FDS";
const MANAGER_NAMES: &str = "LISTEN_FDNAMES";
/// Its first descriptor.
const MANAGER_FIRST: RawFd = 3;

/// Descriptors taken at most: a resource has one.
const INHERITED_MAX: usize = 4096;

/// What our names begin with; a Unix socket's goes on with device and number of its file.
const OWN_UNIX: &str = "twinblk-nbd";
const OWN_TCP: &str = "twinblk-nbd-tcp";
/// For those that somebody else made and that are passed on all the same.
const GIVEN: &str = "given";

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At a path.
    Unix(PathBuf),
    /// At an address.
    Tcp(SocketAddr),
}

/// A listening socket that this process was started with.
#[derive(Debug)]
pub struct Inherited {
    /// The socket.
    pub fd: OwnedFd,
    /// Made by a life of this daemon, not by a socket unit: its path is ours.
    pub own: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct InheritedSockets(BTreeMap<Place, Inherited>);

impl InheritedSockets {
    /// Takes what the environment says is there. What is no listening socket is closed.
    #[must_use]
    pub fn take() -> Self {
        let mut sockets = Self::default();
        let own = std::env::var(VARIABLE).unwrap_or_default();
        let variable = |name| std::env::var(name).unwrap_or_default();
        let (pid, count, names) = (
            variable(MANAGER_PID),
            variable(MANAGER_COUNT),
            variable(MANAGER_NAMES),
        );
        let me = std::process::id();
        let all = parse_own(&own, me)
            .into_iter()
            .chain(parse_managers(&pid, &count, &names, me));
        for (number, name) in all.take(INHERITED_MAX) {
            if let Ok(fd) = inherited::take(number) {
                sockets.add(fd, &name);
            }
        }
        sockets
    }

    fn add(&mut self, fd: OwnedFd, name: &str) {
        let listens = getsockopt(&fd, sockopt::AcceptConn) == Ok(true);
        let Some(place) = place_of(&fd).filter(|_| listens) else {
            return;
        };
        let own = name.starts_with(OWN_UNIX);
        let leads_here = match &place {
            Place::Unix(path) if own => own_name(path).is_ok_and(|it| it == name),
            Place::Unix(_) | Place::Tcp(_) => true,
        };
        if leads_here {
            self.0.insert(place, Inherited { fd, own });
        } else if let Some(manager) = std::env::var_os(notify::VARIABLE) {
            notify::forget(&manager, name).ok();
        }
    }

    /// Whether one listens at that path.
    #[must_use]
    pub fn has_path(&self, path: &Path) -> bool {
        self.0.keys().any(|place| match place {
            Place::Unix(bound) => is_same(bound, path),
            Place::Tcp(_) => false,
        })
    }

    /// The one at that path, if it is wanted.
    pub fn take_path(
        &mut self,
        path: &Path,
        wanted: impl Fn(&Inherited) -> bool,
    ) -> Option<Inherited> {
        let found = self.0.iter().find(|(place, it)| match place {
            Place::Unix(bound) => is_same(bound, path) && wanted(it),
            Place::Tcp(_) => false,
        });
        let place = found?.0.clone();
        self.0.remove(&place)
    }

    /// The one at that address.
    pub fn take_address(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let inherited = self.0.remove(&Place::Tcp(address))?;
        Some(TcpListener::from(inherited.fd))
    }

    /// Closes what nobody took; what was ours is taken away for good.
    pub fn close(self, keeper: &Keeper) {
        for (place, Inherited { own, .. }) in self.0 {
            tracing::info!(?place, "a socket that is not needed any more is closed");
            match place {
                Place::Unix(path) if own => {
                    if let Ok(name) = own_name(&path) {
                        keeper.tell_manager_to_forget(&name);
                    }
                    fs::remove_file(path).ok();
                }
                Place::Tcp(_) if own => keeper.tell_manager_to_forget(OWN_TCP),
                Place::Unix(_) | Place::Tcp(_) => {}
            }
        }
    }
}

/// One path or two that lead to the same file.
fn is_same(bound: &Path, wanted: &Path) -> bool {
    let directory = |path: &Path| path.parent().and_then(|it| it.canonicalize().ok());
    bound == wanted
        || bound.file_name() == wanted.file_name()
            && directory(bound).is_some_and(|it| Some(it) == directory(wanted))
}

fn place_of(fd: &OwnedFd) -> Option<Place> {
    let raw = fd.as_fd().as_raw_fd();
    if let Ok(address) = getsockname::<UnixAddr>(raw) {
        return address.path().map(|path| Place::Unix(path.to_owned()));
    }
    let address: SockaddrStorage = getsockname(raw).ok()?;
    let v4 = address
        .as_sockaddr_in()
        .map(|it| SocketAddr::V4((*it).into()));
    let v6 = || {
        address
            .as_sockaddr_in6()
            .map(|it| SocketAddr::V6((*it).into()))
    };
    v4.or_else(v6).map(Place::Tcp)
}

/// What a socket of ours at that path is called: another file there is another socket.
fn own_name(path: &Path) -> io::Result<String> {
    let file = fs::symlink_metadata(path)?;
    Ok(format!("{OWN_UNIX}.{:x}.{:x}", file.dev(), file.ino()))
}

fn parse_own(text: &str, me: u32) -> Vec<(RawFd, String)> {
    let mut parts = text.split(';');
    if parts.next().and_then(|pid| pid.parse().ok()) != Some(me) {
        return Vec::new();
    }
    parts
        .filter_map(|part| {
            let (number, name) = part.split_once('=')?;
            Some((number.parse().ok()?, name.to_owned()))
        })
        .collect()
}

fn parse_managers(pid: &str, count: &str, names: &str, me: u32) -> Vec<(RawFd, String)> {
    let count = count.parse().unwrap_or(0_usize).min(INHERITED_MAX);
    if pid.parse() != Ok(me) {
        return Vec::new();
    }
    let names = names.split(':').chain(std::iter::repeat(""));
    (MANAGER_FIRST..)
        .zip(names)
        .take(count)
        .map(|(number, name)| (number, name.to_owned()))
        .collect()
}

/// Keeps a second handle of each listening socket, here and with the service manager.
#[derive(Debug)]
pub struct Keeper {
    manager: Option<OsString>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By what they are for, with their names.
    sockets: BTreeMap<String, (String, OwnedFd)>,
    /// Nothing is forgotten any more: the next life gets all there is.
    closed: bool,
    /// The manager took one.
    manager_has_some: bool,
}

impl Keeper {
    /// One that tells the service manager, if there is one.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self {
            manager: std::env::var_os(notify::VARIABLE),
            kept: Mutex::default(),
        }
    }

    /// Keeps the NBD socket of a resource.
    pub fn keep_unix(&self, resource: &str, path: &Path, fd: OwnedFd, own: bool) {
        let name = match own {
            true => own_name(path),
            false => Ok(GIVEN.to_owned()),
        };
        match name {
            Ok(name) => self.keep(format!("/{resource}"), name, fd),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a socket is not kept"),
        }
    }

    /// Keeps the TCP listener of NBD.
    pub fn keep_tcp(&self, listener: &TcpListener) {
        match listener.as_fd().try_clone_to_owned() {
            Ok(fd) => self.keep("tcp".to_owned(), OWN_TCP.to_owned(), fd),
            Err(error) => tracing::warn!(%error, "the NBD listener is not kept"),
        }
    }

    fn keep(&self, what: String, name: String, fd: OwnedFd) {
        let mut kept = self.lock();
        // What a socket unit made its manager has anyway.
        if let Some(manager) = self.manager.as_ref().filter(|_| name != GIVEN) {
            match notify::keep(manager, &name, fd.as_fd()) {
                Ok(()) => kept.manager_has_some = true,
                Err(error) => tracing::info!(%error, "the service manager keeps no socket"),
            }
        }
        kept.sockets.insert(what, (name, fd));
    }

    /// The NBD socket of a resource is not needed any more.
    pub fn forget(&self, resource: &str) {
        let mut kept = self.lock();
        if kept.closed {
            return;
        }
        if let Some((name, _)) = kept.sockets.remove(&format!("/{resource}")) {
            self.tell_manager_to_forget(&name);
        }
    }

    fn tell_manager_to_forget(&self, name: &str) {
        if let Some(manager) = &self.manager {
            notify::forget(manager, name).ok();
        }
    }

    /// Whether a life that follows finds the sockets with the service manager.
    #[must_use]
    pub fn manager_has_some(&self) -> bool {
        self.lock().manager_has_some
    }

    /// From now on all that is kept is for the next life.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// All that is kept, with their names.
    #[must_use]
    pub fn take(&self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.lock().sockets)
            .into_values()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Whole values, whoever panicked.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Becomes `program` with the same arguments, which gets the sockets. Returns only if that failed.
#[must_use]
pub fn become_again(program: &Path, sockets: &[(String, OwnedFd)]) -> io::Error {
    let mut text = std::process::id().to_string();
    for (name, fd) in sockets {
        // Stays open across the exec.
        if let Err(errno) = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())) {
            return errno.into();
        }
        write!(text, ";{}={name}", fd.as_raw_fd()).ok();
    }
    Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(VARIABLE, text)
        .env_remove(MANAGER_PID)
        .env_remove(MANAGER_COUNT)
        .env_remove(MANAGER_NAMES)
        .exec()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        let named = |list: &[(RawFd, &str)]| -> Vec<(RawFd, String)> {
            list.iter()
                .map(|(nr, name)| (*nr, (*name).to_owned()))
                .collect()
        };
        assert_eq!(parse_own("7;4=a;9=b.1", 7), named(&[(4, "a"), (9, "b.1")]));
        assert_eq!(parse_own("8;4=a", 7), []);
        for text in ["", "7", "7;", "7;=", "7;x=a", "a;4=b"] {
            assert_eq!(parse_own(text, 7), [], "{text}");
        }
        let managers = |count, names| parse_managers("7", count, names, 7);
        assert_eq!(managers("2", "a:b"), named(&[(3, "a"), (4, "b")]));
        assert_eq!(managers("2", ""), named(&[(3, ""), (4, "")]));
        assert_eq!(managers("x", "a"), []);
        assert_eq!(managers("99999999", "").len(), INHERITED_MAX);
        assert_eq!(parse_managers("8", "1", "a", 7), []);
        assert_eq!(parse_managers("", "1", "a", 7), []);
    }

    #[test]
    fn a_socket_is_used_again_only_if_its_path_leads_to_it() {
        let dir = std::env::temp_dir().join(format!("twinblk-listeners-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let name = own_name(&path).unwrap();
        let socket = || listener.as_fd().try_clone_to_owned().unwrap();
        let mut sockets = InheritedSockets::default();
        sockets.add(socket(), &name);
        assert!(
            sockets.has_path(&path)
                && sockets.has_path(
                    &dir.join("../")
                        .join(dir.file_name().unwrap())
                        .join("a.sock")
                )
        );
        assert!(sockets.take_path(&path, |it| it.own).is_some());
        assert!(!sockets.has_path(&path));
        // A stranger's is known by its path alone.
        sockets.add(socket(), "vm-web");
        assert!(sockets.take_path(&path, |it| !it.own).is_some());
        // Somebody made another one in its place. The file's number may be the same by chance, so the
        // old one is kept from being given again.
        let aside = dir.join("aside");
        fs::rename(&path, &aside).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        sockets.add(socket(), &name);
        assert!(!sockets.has_path(&path));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_does_not_listen_is_not_taken() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let mut sockets = InheritedSockets::default();
        sockets.add(reader, "a");
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        sockets.add(OwnedFd::from(one), "a");
        assert!(sockets.0.is_empty());
    }

    #[test]
    fn what_is_closed_is_not_forgotten() {
        let keeper = Keeper {
            manager: None,
            kept: Mutex::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = || listener.as_fd().try_clone_to_owned().unwrap();
        keeper.keep_unix("a", Path::new("/"), fd(), true);
        keeper.keep_unix("b", Path::new("/"), fd(), false);
        keeper.keep_tcp(&listener);
        keeper.forget("b");
        keeper.close();
        keeper.forget("a");
        let names: Vec<String> = keeper.take().into_iter().map(|it| it.0).collect();
        assert_eq!(names.len(), 2);
        assert!(
            names[0].starts_with(OWN_UNIX) && names[1] == OWN_TCP,
            "{names:?}"
        );
    }
}
