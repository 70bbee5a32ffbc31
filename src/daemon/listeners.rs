//! Listening sockets that outlive this process: NBD clients that come while the daemon restarts wait
//! in them instead of being refused.
//!
//! They come with the start: from a life before that made room for this one (`twinadm reexec`), from
//! the service manager that kept them (`FDSTORE=1` of sd_notify(3)), or from a socket unit
//! (sd_listen_fds(3)). Sockets of a life before carry a name of ours; all others are known by what
//! they are bound to.
//!
//! Invariant: a Unix socket is used again only if its path still leads to it: the name of one of ours
//! says which file that was, and of each it is tried.

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

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockname, getsockopt,
    socket, sockopt,
};
use replicator::io::inherited;

use super::notify;

/// Which process the descriptors are for, and their numbers and names, each after a semicolon.
const VARIABLE: &str = "TWINBLK_LISTENERS";
/// The service manager's way to say the same.
const MANAGER_PID: &str = "LISTEN_PID";
const MANAGER_COUNT: &str = "LISTEN_FDS";
const MANAGER_NAMES: &str = "LISTEN_FDNAMES";
/// How many it keeps for this service: one that was sent to it need not have been kept.
const MANAGER_STORE: &str = "FDSTORE";
/// Its first descriptor.
const MANAGER_FIRST: RawFd = 3;

/// Descriptors taken at most: a resource has one.
const INHERITED_MAX: usize = 4096;

/// What our names begin with; a Unix socket's goes on with device and number of its file, each after a
/// dot and in hexadecimal digits. A unit's socket is called like the unit, unless somebody says otherwise:
/// that may begin like ours.
const OWN_UNIX: &str = "twinblk-nbd";
const OWN_TCP: &str = "twinblk-nbd-tcp";
/// For those that somebody else made and that are passed on all the same.
const GIVEN: &str = "given";

/// What this process is, also when its file is no longer there.
const THIS_PROGRAM: &str = "/proc/self/exe";

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
pub struct InheritedSockets {
    sockets: BTreeMap<Place, Inherited>,
    /// The service manager gave back one that it was given to keep.
    kept_by_manager: bool,
}

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
        let managers = parse_managers(&pid, &count, &names, me);
        sockets.kept_by_manager = managers
            .iter()
            .any(|(_, name)| is_own_unix(name) || name == OWN_TCP);
        let all = parse_own(&own, me).into_iter().chain(managers);
        for (number, name) in all.take(INHERITED_MAX) {
            if let Ok(fd) = inherited::take(number) {
                sockets.add(fd, &name);
            }
        }
        sockets
    }

    fn add(&mut self, fd: OwnedFd, name: &str) {
        let listens = getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
            && getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream);
        let Some(place) = place_of(&fd).filter(|_| listens) else {
            return;
        };
        let (own, leads_here) = match &place {
            Place::Unix(path) => {
                let own = is_own_unix(name);
                let same_file = !own || own_name(path).is_ok_and(|it| it == name);
                (own, same_file && leads_to(path, &fd))
            }
            Place::Tcp(_) => (name == OWN_TCP, true),
        };
        if leads_here {
            self.sockets.insert(place, Inherited { fd, own });
        } else if !own {
            // It is the manager's, and comes again until its unit is started again.
            tracing::warn!(
                ?place,
                name,
                "a socket whose path does not lead to it is not used"
            );
        } else if let Some(manager) = std::env::var_os(notify::VARIABLE) {
            notify::forget(&manager, name).ok();
        }
    }

    /// Whether the service manager is known to keep sockets.
    #[must_use]
    pub fn were_kept_by_manager(&self) -> bool {
        self.kept_by_manager
    }

    /// Closes what listens at addresses other than that one. Before anything is bound: a socket of a life
    /// before would be in the way of its own successor.
    pub fn close_addresses_but(&mut self, wanted: Option<SocketAddr>) {
        let manager = std::env::var_os(notify::VARIABLE);
        self.sockets.retain(|place, it| {
            let Place::Tcp(address) = place else {
                return true;
            };
            if Some(*address) == wanted {
                return true;
            }
            tracing::info!(%address, "a socket that is not needed any more is closed");
            if let Some(manager) = manager.as_ref().filter(|_| it.own) {
                notify::forget(manager, OWN_TCP).ok();
            }
            false
        });
    }

    /// Those in that directory that somebody else made.
    pub fn take_given(&mut self, directory: &Path) -> Vec<(PathBuf, Inherited)> {
        let is_there = |place: &Place| match place {
            Place::Unix(path) => path
                .file_name()
                .is_some_and(|name| is_same(path, &directory.join(name))),
            Place::Tcp(_) => false,
        };
        let (given, others) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(place, it)| !it.own && is_there(place));
        self.sockets = others;
        given
            .into_iter()
            .filter_map(|(place, it)| match place {
                Place::Unix(path) => Some((path, it)),
                Place::Tcp(_) => None,
            })
            .collect()
    }

    /// Whether one listens at that path.
    #[must_use]
    pub fn has_path(&self, path: &Path) -> bool {
        self.sockets.keys().any(|place| match place {
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
        let found = self.sockets.iter().find(|(place, it)| match place {
            Place::Unix(bound) => is_same(bound, path) && wanted(it),
            Place::Tcp(_) => false,
        });
        let place = found?.0.clone();
        self.sockets.remove(&place)
    }

    /// The one at that address.
    pub fn take_address(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let inherited = self.sockets.remove(&Place::Tcp(address))?;
        Some(TcpListener::from(inherited.fd))
    }

    /// Closes what nobody took; what was ours is taken away for good.
    pub fn close(self, keeper: &Keeper) {
        for (place, Inherited { own, .. }) in self.sockets {
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

/// Whether who connects to `path` gets to that socket: tried. Of one in which somebody waits already it is
/// enough that the path leads to some socket.
fn leads_to(path: &Path, listener: &OwnedFd) -> bool {
    let (kind, flags) = (
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
    );
    let connected = UnixAddr::new(path).and_then(|address| {
        let probe = socket(AddressFamily::Unix, kind, flags, None)?;
        connect(probe.as_raw_fd(), &address)?;
        Ok(probe)
    });
    // So many wait that nobody else gets in.
    if matches!(connected, Err(Errno::EAGAIN)) {
        return true;
    }
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    connected.is_ok() && matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
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

fn is_own_unix(name: &str) -> bool {
    let is_number = |text: &str| u64::from_str_radix(text, 16).is_ok();
    name.strip_prefix(OWN_UNIX)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(device, file)| is_number(device) && is_number(file))
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
    /// It keeps what it is sent, as far as is known.
    manager_keeps: bool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By what they are for, with their names.
    sockets: BTreeMap<String, (String, OwnedFd)>,
    /// Nothing is forgotten any more: the next life gets all there is.
    closed: bool,
    /// The manager was sent one.
    sent: bool,
}

impl Keeper {
    /// One that tells the service manager, if there is one, which `kept_some` before or did not.
    #[must_use]
    pub fn of_this_process(kept_some: bool) -> Self {
        let places = std::env::var(MANAGER_STORE).unwrap_or_default();
        Self {
            manager: std::env::var_os(notify::VARIABLE),
            manager_keeps: kept_some || places.parse().is_ok_and(|places: u64| places > 0),
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
                Ok(()) => kept.sent = true,
                Err(error) => tracing::info!(%error, "the service manager keeps no socket"),
            }
        }
        kept.sockets.insert(what, (name, fd));
    }

    /// The NBD socket of a resource is not needed any more. One that somebody else made stays.
    pub fn forget(&self, resource: &str) {
        let mut kept = self.lock();
        if kept.closed {
            return;
        }
        let what = format!("/{resource}");
        if kept
            .sockets
            .get(&what)
            .is_none_or(|(name, _)| name == GIVEN)
        {
            return;
        }
        if let Some((name, _)) = kept.sockets.remove(&what) {
            drop(kept);
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
        self.manager_keeps && self.lock().sent
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

/// Becomes `program` with the same arguments, which gets the sockets; if that is not to be had, what this
/// process is already, and `complain` is told why. Returns only if both failed.
#[must_use]
pub fn become_again(
    program: &Path,
    sockets: &[(String, OwnedFd)],
    complain: impl Fn(&io::Error),
) -> io::Error {
    let mut text = std::process::id().to_string();
    for (name, fd) in sockets {
        // Stays open across the exec.
        if let Err(errno) = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())) {
            return errno.into();
        }
        write!(text, ";{}={name}", fd.as_raw_fd()).ok();
    }
    let start = |file: &Path| {
        Command::new(file)
            // By this name it is found the next time.
            .arg0(program)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, &text)
            .env_remove(MANAGER_PID)
            .env_remove(MANAGER_COUNT)
            .env_remove(MANAGER_NAMES)
            .exec()
    };
    complain(&start(program));
    start(Path::new(THIS_PROGRAM))
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
        sockets.add(socket(), "vm-web");
        assert!(sockets.take_path(&path, |it| !it.own).is_some());
        while_nobody_waits_in(&listener);
        // Somebody made another one in its place. The file's number may be the same by chance, so the
        // old one is kept from being given again.
        let aside = dir.join("aside");
        fs::rename(&path, &aside).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        for name in [&name, &own_name(&path).unwrap(), "vm-web"] {
            sockets.add(socket(), name);
            assert!(!sockets.has_path(&path), "{name}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    fn while_nobody_waits_in(listener: &UnixListener) {
        listener.set_nonblocking(true).unwrap();
        while listener.accept().is_ok() {}
    }

    #[test]
    fn what_does_not_listen_is_not_taken() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let mut sockets = InheritedSockets::default();
        sockets.add(reader, "a");
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        sockets.add(OwnedFd::from(one), "a");
        assert!(sockets.sockets.is_empty());
    }

    #[test]
    fn what_is_closed_is_not_forgotten() {
        let keeper = Keeper {
            manager: None,
            manager_keeps: true,
            kept: Mutex::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = || listener.as_fd().try_clone_to_owned().unwrap();
        keeper.keep_unix("a", Path::new("/"), fd(), true);
        keeper.keep_unix("b", Path::new("/"), fd(), false);
        keeper.keep_tcp(&listener);
        keeper.keep_unix("c", Path::new("/"), fd(), true);
        for resource in ["b", "c"] {
            keeper.forget(resource);
        }
        keeper.close();
        keeper.forget("a");
        let names: Vec<String> = keeper.take().into_iter().map(|it| it.0).collect();
        assert_eq!(names.len(), 3);
        assert!(
            is_own_unix(&names[0]) && names[1..] == [GIVEN, OWN_TCP],
            "{names:?}"
        );
    }

    #[test]
    fn a_unit_may_be_called_almost_like_our_sockets() {
        assert!(is_own_unix("twinblk-nbd.1f.3a9"));
        for name in [
            "twinblk-nbd.socket",
            "twinblk-nbd-vm-web.socket",
            "twinblk-nbd",
            "twinblk-nbd.1f",
            "twinblk-nbd.1f.x.socket",
            "twinblk-nbd-tcp",
            "",
        ] {
            assert!(!is_own_unix(name), "{name}");
        }
        let dir = std::env::temp_dir().join(format!("twinblk-units-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut sockets = InheritedSockets::default();
        sockets.add(listener.into(), "twinblk-nbd-a.socket");
        let given = sockets.take_given(&dir);
        assert!(
            matches!(&given[..], [(at, Inherited { own: false, .. })] if *at == path),
            "{given:?}"
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_listens_elsewhere_is_not_in_the_way_of_its_successor() {
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let here = SocketAddr::from(([127, 0, 0, 1], port));
        let mut sockets = InheritedSockets::default();
        sockets.add(everywhere.into(), OWN_TCP);
        TcpListener::bind(here).unwrap_err();
        sockets.close_addresses_but(Some(here));
        let listener = TcpListener::bind(here).unwrap();
        sockets.add(listener.into(), OWN_TCP);
        sockets.close_addresses_but(Some(here));
        assert!(sockets.take_address(here).is_some());
    }

    /// Runs itself, and that becomes a program that is not there.
    #[test]
    fn a_program_that_cannot_be_started_leaves_the_one_that_runs() {
        const STAGE: &str = "TWINBLK_TEST_BECOMES";
        if std::env::var_os(VARIABLE).is_some() {
            return;
        }
        if std::env::var_os(STAGE).is_some() {
            let error = become_again(Path::new("/nonexistent/twinblkd"), &[], |_| {});
            panic!("{error}");
        }
        let ended = Command::new(std::env::current_exe().unwrap())
            .arg("a_program_that_cannot_be_started_leaves_the_one_that_runs")
            .env(STAGE, "")
            .output()
            .unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }
}
