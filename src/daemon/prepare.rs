//! What a daemon needs for itself before it starts: addresses, directories, its store. Each refusal
//! says what, why and what next.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use replicator::admin::{ErrorId, ErrorReport};
use replicator::io::clock;
use replicator::types::{NodeId, VoterId};

use super::api::NbdTcp;
use super::args::Flags;
use super::certificates::Certificates;
use super::listeners::InheritedSockets;
use super::voter_store::{OpenStoreError, StoreIdentity, VoterStore};
use crate::config::{Config, MetricsConfig};

/// How long an address may still be held by a killed predecessor: its end took up to 0.4 s on a busy
/// machine, and `control.sock` is promised within 5 s.
const BIND_PATIENCE: Duration = Duration::from_secs(2);
const BIND_RETRY_AFTER: Duration = Duration::from_millis(20);

/// Both sockets of each address of this node.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listeners: Vec<TcpListener>,
    pub(super) datagrams: Vec<UdpSocket>,
}

/// Binds TCP and UDP on each address.
pub(super) fn bind_all(addresses: &[SocketAddr]) -> Result<Sockets, ErrorReport> {
    let mut sockets = Sockets {
        listeners: Vec::new(),
        datagrams: Vec::new(),
    };
    for address in addresses {
        let refuse = |protocol: &'static str| {
            move |error: io::Error| bind_refusal(*address, protocol, &error)
        };
        let listener = patiently(|| TcpListener::bind(address)).map_err(refuse("TCP"))?;
        listener.set_nonblocking(true).map_err(refuse("TCP"))?;
        sockets.listeners.push(listener);
        sockets
            .datagrams
            .push(patiently(|| UdpSocket::bind(address)).map_err(refuse("UDP"))?);
    }
    Ok(sockets)
}

/// Binds the address of the metrics. One that nobody wrote down may be taken, by the daemon of another
/// node on this machine, say: that is no reason not to start.
pub(super) fn bind_metrics(metrics: &MetricsConfig) -> Result<Option<TcpListener>, ErrorReport> {
    let Some(address) = metrics.listen else {
        return Ok(None);
    };
    match patiently(|| TcpListener::bind(address)) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if metrics.explicit => Err(bind_refusal(address, "metrics", &error)),
        Err(error) => {
            tracing::warn!(%address, %error, "no metrics: [metrics] listen names another address");
            Ok(None)
        }
    }
}

/// Binds the TCP listener of NBD and reads its certificates, if there is one.
pub(super) fn nbd_tcp(
    config: &Config,
    node: NodeId,
    inherited: &mut InheritedSockets,
) -> Result<Option<NbdTcp>, ErrorReport> {
    let Some(address) = config.nbd.listen_of(node) else {
        return Ok(None);
    };
    let certificates = config
        .nbd
        .tls_dir
        .as_deref()
        .map(certificates)
        .transpose()?;
    let refuse = |error: io::Error| bind_refusal(address, "TCP, for NBD", &error);
    let kept = inherited.take_address(address);
    let inherited = kept.is_some();
    let listener = kept.map_or_else(|| patiently(|| TcpListener::bind(address)), Ok);
    let listener = listener.map_err(refuse)?;
    listener.set_nonblocking(true).map_err(refuse)?;
    let (scheme, how) = match certificates {
        Some(_) => ("nbds", "TLS"),
        None => ("nbd", "clear text"),
    };
    tracing::info!("NBD is served on {scheme}://{address} ({how})");
    Ok(Some(NbdTcp {
        listener,
        certificates,
        has_default: config.resources.len() == 1,
        inherited,
    }))
}

/// The same without binding.
pub(super) fn check_nbd_tcp(config: &Config, node: NodeId) -> Result<(), ErrorReport> {
    let dir = config.nbd.tls_dir.as_deref();
    match dir.filter(|_| config.nbd.listen_of(node).is_some()) {
        Some(dir) => certificates(dir).map(drop),
        None => Ok(()),
    }
}

/// Binds each address once, and lets go of it. A port that is taken is one that `held` names: whoever asks
/// has it, and lets go of it before. Without that nobody knows who has one.
pub(super) fn check_addresses(
    config: &Config,
    node: NodeId,
    held: Option<Vec<u16>>,
) -> Result<(), ErrorReport> {
    let looks = Looks { held };
    for address in config.node(node).into_iter().flat_map(|it| &it.addresses) {
        looks.tcp(*address, "TCP")?;
        looks.udp(*address)?;
    }
    if let Some(address) = config.metrics.listen.filter(|_| config.metrics.explicit) {
        looks.tcp(address, "metrics")?;
    }
    config
        .nbd
        .listen_of(node)
        .map_or(Ok(()), |address| looks.tcp(address, "TCP, for NBD"))
}

/// Binds an address, and lets go of it.
struct Looks {
    /// Ports that may be taken; `None`: any.
    held: Option<Vec<u16>>,
}

impl Looks {
    fn tcp(&self, address: SocketAddr, protocol: &str) -> Result<(), ErrorReport> {
        self.judge(address, protocol, TcpListener::bind(address).map(drop))
    }

    fn udp(&self, address: SocketAddr) -> Result<(), ErrorReport> {
        self.judge(address, "UDP", UdpSocket::bind(address).map(drop))
    }

    fn judge(
        &self,
        address: SocketAddr,
        protocol: &str,
        tried: io::Result<()>,
    ) -> Result<(), ErrorReport> {
        let by_whoever_asks = || {
            let held = self.held.as_ref();
            held.is_none_or(|held| held.contains(&address.port()))
        };
        match tried {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && by_whoever_asks() => Ok(()),
            Err(error) => Err(bind_refusal(address, protocol, &error)),
            Ok(()) => Ok(()),
        }
    }
}

/// The ports that [`check_addresses`] finds taken by a daemon with this configuration.
pub(super) fn held_ports(config: &Config, node: NodeId) -> Vec<u16> {
    let own = config.node(node).into_iter().flat_map(|it| &it.addresses);
    own.copied()
        .chain(config.metrics.listen)
        .chain(config.nbd.listen_of(node))
        .map(|address| address.port())
        .collect()
}

/// Whether both directories can be used, and the voter store is this node's; without their locks.
pub(super) fn check_directories(
    config: &Config,
    node: NodeId,
    flags: &Flags,
) -> Result<(), ErrorReport> {
    let (run_dir, state_dir) = (&flags.run_dir, &flags.state_dir);
    open_run_lock(run_dir).map_err(|error| directory_refusal(run_dir, &error))?;
    let identity = identity(config, node)?;
    VoterStore::check(state_dir, &identity).map_err(|error| store_refusal(state_dir, &error))
}

fn certificates(dir: &Path) -> Result<Arc<Certificates>, ErrorReport> {
    let (certificates, doubt) = Certificates::open(dir).map_err(|error| {
        let what = "no certificates for NBD over TCP";
        ErrorReport::new(ErrorId::NbdCertificates, what, error.to_string())
    })?;
    if let Some(doubt) = doubt {
        tracing::error!("{doubt}; mend the files and send SIGHUP");
    }
    Ok(Arc::new(certificates))
}

/// Binds, giving a predecessor that was killed the time to let go: its sockets close only once the
/// kernel has taken its ring apart.
fn patiently<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = clock::now().plus(BIND_PATIENCE);
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && clock::now() < deadline => {
                thread::park_timeout(BIND_RETRY_AFTER);
            }
            result => return result,
        }
    }
}

fn bind_refusal(address: SocketAddr, protocol: &str, error: &io::Error) -> ErrorReport {
    let what = format!("cannot listen on {address} ({protocol})");
    match error.kind() {
        io::ErrorKind::AddrInUse => ErrorReport::new(
            ErrorId::AddressTaken,
            what,
            "another program has that address",
        ),
        io::ErrorKind::PermissionDenied => {
            let why = "ports below 1024 need a privilege this user lacks";
            ErrorReport::new(ErrorId::Permission, what, why)
        }
        io::ErrorKind::AddrNotAvailable => ErrorReport::new(
            ErrorId::AddressTaken,
            what,
            "this machine does not have that address",
        )
        .next("bring the interface up, or correct [node.*] address"),
        _ => ErrorReport::new(ErrorId::AddressTaken, what, error.to_string()),
    }
}

/// Makes the run directory and takes it for this process.
pub(super) fn run_dir(
    dir: &Path,
    inherited: &InheritedSockets,
) -> Result<Flock<File>, ErrorReport> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .and_then(|()| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir.join("nbd"))
        });
    made.map_err(|error| directory_refusal(dir, &error))?;
    let lock = open_run_lock(dir).map_err(|error| directory_refusal(dir, &error))?;
    let locked = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            let what = format!("{} is in use by another daemon", dir.display());
            let why = "each node needs a run directory of its own";
            ErrorReport::new(ErrorId::AlreadyRunning, what, why)
        } else {
            directory_refusal(dir, &errno.into())
        }
    })?;
    remove_left_over_exports(&dir.join("nbd"), inherited)
        .map_err(|error| directory_refusal(dir, &error))?;
    Ok(locked)
}

fn open_run_lock(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
}

/// A killed daemon could not take its NBD sockets away; clients of what is not up again would find
/// a socket that nobody answers on.
fn remove_left_over_exports(dir: &Path, inherited: &InheritedSockets) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() && !inherited.has_path(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A directory that cannot be used.
pub(super) fn directory_refusal(dir: &Path, error: &io::Error) -> ErrorReport {
    let what = format!("cannot use {}", dir.display());
    let id = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorId::Permission,
        _ => ErrorId::DirectoryUnusable,
    };
    ErrorReport::new(id, what, error.to_string())
}

/// Opens the voter store, and says what is odd about it.
pub(super) fn voter_store(
    config: &Config,
    node: NodeId,
    dir: &Path,
) -> Result<VoterStore, ErrorReport> {
    let identity = identity(config, node)?;
    let store = VoterStore::open(dir, &identity).map_err(|error| store_refusal(dir, &error))?;
    if store.was_created() {
        tracing::info!("{}: a new voter store, a new voter", dir.display());
    }
    if store.damaged_copies() > 0 {
        tracing::warn!(
            "{}: {} damaged sectors, their copies are good: look at this disk",
            dir.display(),
            store.damaged_copies()
        );
    }
    Ok(store)
}

fn identity(config: &Config, node: NodeId) -> Result<StoreIdentity, ErrorReport> {
    let fresh = clock::random_id().map_err(|error| system("randomness", &error))?;
    Ok(StoreIdentity {
        cluster: config.cluster.clone(),
        node: config.node_name(node).to_owned(),
        fresh_voter: VoterId(fresh),
    })
}

fn store_refusal(dir: &Path, error: &OpenStoreError) -> ErrorReport {
    let what = format!("cannot use {}", dir.display());
    let why = error.to_string();
    match error {
        OpenStoreError::Locked { .. } => ErrorReport::new(ErrorId::AlreadyRunning, what, why),
        OpenStoreError::System { error, .. } => directory_refusal(dir, error),
        OpenStoreError::Foreign { .. } => ErrorReport::new(ErrorId::DirectoryUnusable, what, why)
            .next("name this node's own directory with --state-dir DIR"),
        OpenStoreError::Damaged { path, .. } => {
            ErrorReport::new(ErrorId::StoreDamaged, what, why).next(format!(
                "keep {} aside and start again: this node then begins as a new voter, without a vote in resources founded before",
                path.display()
            ))
        }
    }
}

/// Something of the system that is always there is not.
pub(super) fn system(what: &str, error: &io::Error) -> ErrorReport {
    ErrorReport::new(
        ErrorId::DirectoryUnusable,
        format!("no {what}"),
        error.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_rehearsed_with_its_addresses() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let by = |held: Option<&[u16]>| Looks {
            held: held.map(<[u16]>::to_vec),
        };
        let refused = by(Some(&[])).tcp(address, "TCP").unwrap_err();
        assert_eq!(refused.id, ErrorId::AddressTaken.code());
        // By whoever asks.
        by(Some(&[1, address.port()])).tcp(address, "TCP").unwrap();
        by(None).tcp(address, "TCP").unwrap();
        // TEST-NET-1: no machine has it.
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], address.port()));
        by(None).tcp(elsewhere, "TCP").unwrap_err();
        by(None).udp(elsewhere).unwrap_err();
        drop(taken);
        by(Some(&[])).tcp(address, "TCP").unwrap();
    }
}
