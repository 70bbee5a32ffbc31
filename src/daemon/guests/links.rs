//! What the beacon thread tells the guardians: until when a guest may run if nothing more is heard.
//!
//! Invariant: a guardian that was told *for ever* hears of a lease that is needed before anything
//! leaves this node by which the peer could count on it.

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator::types::Instant;

use crate::guests::ProcessId;

/// Guardians of one resource at most: one per process of its guest, of which there is one, and what
/// is left of those that are ending.
const LINKS_MAX: usize = 4;

/// The guardians of one resource.
#[derive(Debug, Default)]
pub(in crate::daemon) struct GuardLinks {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: this node is not active.
    until: Option<Instant>,
    /// What was said last, by this life of the daemon.
    said: Option<Instant>,
    links: Vec<(PathBuf, UnixDatagram)>,
}

impl GuardLinks {
    /// Until when guests may run; `None` while this node is not active.
    pub(in crate::daemon) fn until(&self) -> Option<Instant> {
        self.lock().until
    }

    /// Tells the guardians, if it is news. A node that is not active any more says nothing: what
    /// it said last holds. Never blocks: a guardian that does not listen kills, which is safe.
    pub(in crate::daemon) fn set_until(&self, until: Option<Instant>) {
        let mut state = self.lock();
        if state.until == until {
            return;
        }
        state.until = until;
        let Some(until) = until else { return };
        state.said = Some(until);
        let bytes = until.0.to_le_bytes();
        // One whose process has ended is gone.
        state.links.retain(|(_, link)| match link.send(&bytes) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
    }

    /// Looks for guardians that an earlier life of the daemon left behind.
    pub(super) fn find(&self, dir: &Path, resource: &str) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if is_socket_of(&name.to_string_lossy(), resource) && !self.add(&entry.path()) {
                fs::remove_file(entry.path()).ok();
            }
        }
    }

    /// Whether a guardian listens there now.
    pub(super) fn is_there(path: &Path) -> bool {
        let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
        connected.is_ok()
    }

    /// Takes one back that does not listen any more.
    pub(super) fn forget(&self, path: &Path) {
        self.lock().links.retain(|(known, _)| known != path);
    }

    /// Counts on the guardian that listens there from now on; whether one does.
    pub(super) fn add(&self, path: &Path) -> bool {
        let mut state = self.lock();
        if state.links.iter().any(|(known, _)| known == path) {
            return true;
        }
        let connected = UnixDatagram::unbound().and_then(|socket| {
            socket.connect(path)?;
            socket.set_nonblocking(true)?;
            if let Some(until) = state.said {
                socket.send(&until.0.to_le_bytes())?;
            }
            Ok(socket)
        });
        let Ok(socket) = connected else { return false };
        if state.links.len() == LINKS_MAX {
            state.links.remove(0);
        }
        state.links.push((path.to_owned(), socket));
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole values, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the guardian of this very process listens that kills so long after the lease: one that was
/// started under another timing is not this one.
pub(super) fn socket_of(
    dir: &Path,
    resource: &str,
    process: ProcessId,
    kill_after: Duration,
) -> PathBuf {
    let ProcessId { pid, start } = process;
    dir.join(format!(
        "{resource}.{pid}.{start}.{}",
        kill_after.as_millis()
    ))
}

/// Whether this is a name of [`socket_of`]. Names of resources may hold dots and digits, too.
fn is_socket_of(name: &str, resource: &str) -> bool {
    let rest = name
        .strip_prefix(resource)
        .and_then(|rest| rest.strip_prefix('.'));
    let numbers = rest.map(|rest| rest.split('.').collect::<Vec<_>>());
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    numbers.is_some_and(|numbers| numbers.len() == 3 && numbers.iter().all(is_number))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Listening {
        dir: PathBuf,
        socket: UnixDatagram,
    }

    impl Listening {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("twinblk-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            let socket = UnixDatagram::bind(dir.join("vm-web.7.8.500")).unwrap();
            let limit = Duration::from_secs(10);
            socket.set_read_timeout(Some(limit)).unwrap();
            Self { dir, socket }
        }

        fn hears(&self) -> Instant {
            let mut bytes = [0; 8];
            assert_eq!(self.socket.recv(&mut bytes).unwrap(), 8);
            Instant(u64::from_le_bytes(bytes))
        }
    }

    impl Drop for Listening {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.dir).ok();
        }
    }

    /// The daemon is started again and finds the guardian that was told *for ever*: before it knows
    /// anything it says nothing, and its first lease is heard.
    #[test]
    fn a_guardian_of_an_earlier_life_hears_of_the_first_lease() {
        let guardian = Listening::new("links-found");
        fs::write(guardian.dir.join("vm-web.9.9.500"), "nobody").unwrap();
        fs::write(guardian.dir.join("vm-web.notes"), "not ours").unwrap();
        let links = GuardLinks::default();
        links.find(&guardian.dir, "vm-web");
        assert!(!guardian.dir.join("vm-web.9.9.500").exists(), "left over");
        assert!(guardian.dir.join("vm-web.notes").exists());
        links.set_until(None);
        links.set_until(Some(Instant(5)));
        assert_eq!(guardian.hears(), Instant(5));
        links.set_until(Some(Instant(5)));
        links.set_until(Some(Instant(6)));
        assert_eq!(guardian.hears(), Instant(6), "only news");
    }

    /// It was started with what was true before: it is told again what changed meanwhile, even if
    /// this node does not serve any more.
    #[test]
    fn a_guardian_that_comes_late_hears_the_newest() {
        let guardian = Listening::new("links-late");
        let links = GuardLinks::default();
        links.set_until(Some(Instant::NEVER));
        links.set_until(Some(Instant(7)));
        links.set_until(None);
        assert!(links.add(&guardian.dir.join("vm-web.7.8.500")));
        assert_eq!(guardian.hears(), Instant(7));
        assert!(
            !links.add(&guardian.dir.join("vm-web.1.1.500")),
            "nobody there"
        );
    }

    #[test]
    fn the_sockets_of_another_resource_are_not_taken() {
        for name in ["vm.7.8.500", "vm.1.7.8.500", "vm.1.2.7.8.500"] {
            let owners = ["vm", "vm.1", "vm.1.2"].map(|resource| is_socket_of(name, resource));
            assert_eq!(owners.iter().filter(|it| **it).count(), 1, "{name}");
        }
        for name in [
            "vm",
            "vm.7.8",
            "vm.7.8.",
            "vm.7..8",
            "vm.a.8.500",
            "vmx.7.8.500",
        ] {
            assert!(!is_socket_of(name, "vm"), "{name}");
        }
    }

    #[test]
    fn a_guardian_that_is_gone_is_missed() {
        let guardian = Listening::new("links-gone");
        let path = guardian.dir.join("vm-web.7.8.500");
        assert!(GuardLinks::is_there(&path));
        let links = GuardLinks::default();
        assert!(links.add(&path));
        fs::write(guardian.dir.join("vm-web.9.9.500"), "left over").unwrap();
        assert!(!GuardLinks::is_there(&guardian.dir.join("vm-web.9.9.500")));
        links.forget(&path);
        drop(guardian);
        assert!(!links.add(&path), "it is not counted on any more");
    }
}
