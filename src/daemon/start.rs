//! From flags to a running node and back: every refusal to start comes before `control.sock`.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use replicator::admin::{ErrorId, ErrorReport};
use replicator::io::{clock, realtime};
use replicator::types::{NodeId, VoterId};

use super::api::{ShardCommand, ShardSetup, StoredMarks};
use super::args::Flags;
use super::beacon_io::Carrier;
use super::control::ControlServer;
use super::mailbox::Mailbox;
use super::node::{CONTROLLER_INPUTS_MAX, ControllerRequest, Node, NodeSink};
use super::store_thread::{self, STORE_REQUESTS_MAX, StoreRequest};
use super::voter_store::{OpenStoreError, StoreIdentity, VoterStore};
use super::{Program, beacon, log, notify, shard, words};
use crate::config::{self, Checked, Config, NodeRole, Scope, TimingProfile};
use crate::controller::{Controller, ControllerSettings, Timing};

/// How long an address may still be held by a killed predecessor: its end took up to 0.4 s on a busy
/// machine, and `control.sock` is promised within 5 s.
const BIND_PATIENCE: Duration = Duration::from_secs(2);
const BIND_RETRY_AFTER: Duration = Duration::from_millis(20);

/// Why a daemon did not start, or ended.
#[derive(Debug)]
pub(super) struct Failure {
    /// For stderr.
    pub(super) text: String,
    /// Exit code.
    pub(super) exit: u8,
}

impl From<ErrorReport> for Failure {
    fn from(report: ErrorReport) -> Self {
        Self {
            text: words::render(&report),
            exit: report.exit,
        }
    }
}

/// Runs a daemon until it is told to stop.
pub(super) fn run(program: Program, flags: &Flags) -> Result<(), Failure> {
    let Checked { config, warnings } = load_config(program, flags)?;
    let node = own_id(program, &config, flags)?;
    // Before any thread is started, so that all of them leave the signals to this one.
    let signals = block_signals().map_err(|error| system("signals", &error))?;
    let level = std::env::var("TWINBLK_LOG").unwrap_or_else(|_| config.log.level.clone());
    let _log = log::start(&level)
        .map_err(|why| ErrorReport::new(ErrorId::BadValue, "the log cannot be started", why))?;
    for warning in warnings {
        let place = warning.place.as_ref().map_or_else(String::new, |place| {
            format!(" ({}:{})", place.path, place.line)
        });
        tracing::warn!("[{}] {}{place}", warning.id.code(), warning.message);
    }
    if config.net.insecure && !config.is_loopback() {
        tracing::warn!("[net] insecure = true: everything travels in clear text");
    }
    let addresses = config
        .node(node)
        .map(|it| it.addresses.clone())
        .unwrap_or_default();
    let sockets = bind_all(&addresses)?;
    let _run_lock = prepare_run_dir(&flags.run_dir)?;
    let store = open_store(&config, node, &flags.state_dir)?;
    let running = Running::start(program, config, node, flags, store, sockets)?;
    running.serve(&flags.run_dir, &signals)
}

fn load_config(program: Program, flags: &Flags) -> Result<Checked, Failure> {
    let scope = match program {
        Program::Daemon => Scope::All,
        Program::Arbitrator => Scope::Cluster,
    };
    let checked = config::load(&flags.config, scope).map_err(|mistakes| {
        // Nothing but missing rights: that is another exit code than a mistake in a file.
        let permission = mistakes.iter().all(|it| it.id == ErrorId::Permission);
        Failure {
            text: mistakes.iter().map(config::Diagnostic::render).collect(),
            exit: if permission {
                ErrorId::Permission
            } else {
                ErrorId::ConfigSyntax
            }
            .exit(),
        }
    })?;
    match checked.config.start_refusal() {
        Some(report) => Err(report.into()),
        None => Ok(checked),
    }
}

fn own_id(program: Program, config: &Config, flags: &Flags) -> Result<NodeId, ErrorReport> {
    let Some(id) = config.node_id(&flags.node) else {
        let known: Vec<_> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        let what = format!("there is no [node.{}] in the configuration", flags.node);
        let mut report = ErrorReport::new(
            ErrorId::UnknownNode,
            what,
            format!("it has {}", known.join(", ")),
        );
        report = report.next("name one of them with --node NAME");
        return Err(report);
    };
    let role = config.node(id).map(|node| node.role);
    let (wanted, other) = match program {
        Program::Daemon => (NodeRole::Data, Program::Arbitrator),
        Program::Arbitrator => (NodeRole::Arbitrator, Program::Daemon),
    };
    if role == Some(wanted) {
        return Ok(id);
    }
    let what = format!("{} does not run as {}", program.name(), flags.node);
    let why = "the configuration gives that node the other role";
    Err(
        ErrorReport::new(ErrorId::ClusterShape, what, why).next(format!(
            "start {} there, or name another node with --node",
            other.name()
        )),
    )
}

/// Both sockets of each address of this node.
struct Sockets {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
}

fn bind_all(addresses: &[SocketAddr]) -> Result<Sockets, ErrorReport> {
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
fn prepare_run_dir(dir: &Path) -> Result<Flock<File>, ErrorReport> {
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
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(|error| directory_refusal(dir, &error))?;
    let locked = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            let what = format!("{} is in use by another daemon", dir.display());
            let why = "each node needs a run directory of its own";
            ErrorReport::new(ErrorId::AlreadyRunning, what, why)
        } else {
            directory_refusal(dir, &errno.into())
        }
    })?;
    remove_left_over_exports(&dir.join("nbd")).map_err(|error| directory_refusal(dir, &error))?;
    Ok(locked)
}

/// A killed daemon could not take its NBD sockets away; clients of what is not up again would find
/// a socket that nobody answers on.
fn remove_left_over_exports(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn directory_refusal(dir: &Path, error: &io::Error) -> ErrorReport {
    let what = format!("cannot use {}", dir.display());
    let id = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorId::Permission,
        _ => ErrorId::DirectoryUnusable,
    };
    ErrorReport::new(id, what, error.to_string())
}

fn open_store(config: &Config, node: NodeId, dir: &Path) -> Result<VoterStore, ErrorReport> {
    let fresh = clock::random_id().map_err(|error| system("randomness", &error))?;
    let identity = StoreIdentity {
        cluster: config.cluster.clone(),
        node: config.node_name(node).to_owned(),
        fresh_voter: VoterId(fresh),
    };
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

fn system(what: &str, error: &io::Error) -> ErrorReport {
    ErrorReport::new(
        ErrorId::DirectoryUnusable,
        format!("no {what}"),
        error.to_string(),
    )
}

fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

fn timing(profile: TimingProfile) -> Timing {
    match profile {
        TimingProfile::Fast => Timing::FAST,
        TimingProfile::Default => Timing::DEFAULT,
        TimingProfile::Relaxed => Timing::RELAXED,
    }
}

/// All threads of a node.
struct Running {
    program: Program,
    node: Arc<Node>,
    /// The arbitrator's: bound so that a clash shows, and whoever connects is sent away.
    listeners: Vec<TcpListener>,
    beacon: JoinHandle<()>,
    store: JoinHandle<()>,
    shard: Option<JoinHandle<()>>,
}

impl Running {
    fn start(
        program: Program,
        config: Config,
        id: NodeId,
        flags: &Flags,
        store: VoterStore,
        sockets: Sockets,
    ) -> Result<Self, ErrorReport> {
        let failed = |what: &'static str| move |error: io::Error| system(what, &error);
        let settings = ControllerSettings {
            node: id,
            cluster: replicator::types::ResourceId::of_name(&config.cluster).0,
            voter: store.node().voter,
            boot_id: clock::boot_id().map_err(failed("boot id"))?,
            incarnation: store.node().incarnation,
            timing: timing(config.quorum.timing),
            has_arbitrator: config.arbitrator().is_some(),
            seed: clock::random_id().map_err(failed("randomness"))?,
            configured: config.resources.iter().map(|it| it.id()).collect(),
            stored: store
                .records()
                .map(|(resource, record)| (resource, *record))
                .collect(),
        };
        let others = [NodeId::A, NodeId::B, NodeId::ARBITRATOR].map(|other| {
            let addresses = config.node(other).map(|node| node.addresses.clone());
            addresses.filter(|_| other != id).unwrap_or_default()
        });
        let carrier = Carrier::new(sockets.datagrams, &others).map_err(failed("UDP sockets"))?;
        let node = Arc::new(Node {
            program: program.name(),
            node: id,
            run_dir: flags.run_dir.clone(),
            board: super::board::Board::default(),
            ended: Mailbox::new(1).map_err(failed("eventfd"))?,
            controller: Mailbox::new(CONTROLLER_INPUTS_MAX).map_err(failed("eventfd"))?,
            store: Arc::new(Mailbox::new(STORE_REQUESTS_MAX).map_err(failed("eventfd"))?),
            shard: OnceLock::new(),
            leases: config
                .resources
                .iter()
                .map(|it| (it.id(), Arc::new(AtomicU64::new(0))))
                .collect::<BTreeMap<_, _>>(),
            orders: AtomicU64::new(1),
            config,
        });
        note_marks(&node, &store);
        if let Err(errno) = realtime::lock_memory() {
            tracing::info!(
                "memory may be paged out ({}): on a busy host leases may lapse",
                errno.desc()
            );
        }
        let controller = Controller::new(settings.clone(), clock::now()).map_err(|error| {
            ErrorReport::new(
                ErrorId::BadValue,
                "these deadlines are not safe",
                error.to_string(),
            )
        })?;
        let (shard, listeners) = match program {
            Program::Arbitrator => (None, sockets.listeners),
            Program::Daemon => {
                let setup = ShardSetup {
                    node: id,
                    cluster: settings.cluster,
                    listeners: sockets.listeners,
                    peer_addresses: others[id.peer().index()].clone(),
                    boot_id: settings.boot_id,
                    incarnation: clock::random_id().map_err(failed("randomness"))?,
                    nbd_connections_max: usize::try_from(node.config.nbd.max_connections)
                        .unwrap_or(usize::MAX),
                };
                (
                    Some(start_shard(&node, setup).map_err(failed("event loop"))?),
                    Vec::new(),
                )
            }
        };
        let requests = Arc::clone(&node.store);
        let store = store_thread::start(store, requests, NodeSink(Arc::clone(&node)))
            .map_err(failed("thread for the voter store"))?;
        let beacon = beacon::start(Arc::clone(&node), controller, carrier)
            .map_err(failed("beacon thread"))?;
        Ok(Self {
            program,
            node,
            listeners,
            beacon,
            store,
            shard,
        })
    }

    /// Serves until a signal or a failure, then stops in order.
    fn serve(self, run_dir: &Path, signals: &SignalFd) -> Result<(), Failure> {
        let ups = self.start_what_was_up();
        let handler = Arc::clone(&self.node);
        let control = ControlServer::start(run_dir, handler)
            .map_err(|error| directory_refusal(run_dir, &error))?;
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
            && let Err(error) = notify::notify(&socket, "READY=1")
        {
            tracing::warn!(%error, "the service manager cannot be told");
        }
        tracing::info!(
            "{} {} runs as {} of cluster {}",
            self.program.name(),
            env!("CARGO_PKG_VERSION"),
            self.node.name(),
            self.node.config.cluster
        );
        let fatal = self.wait_for_the_end(signals);
        if let Some(why) = fatal {
            let what = format!("{} ends", self.program.name());
            return Err(ErrorReport::new(ErrorId::DaemonGone, what, why).into());
        }
        drop(control);
        self.node.board.update(|board| board.stopping = true);
        for up in ups {
            up.join().ok();
        }
        self.stop();
        Ok(())
    }

    /// One thread per resource: a slow disk delays only its own.
    fn start_what_was_up(&self) -> Vec<JoinHandle<()>> {
        let mut threads = Vec::new();
        for index in 0..self.node.config.resources.len() {
            let node = Arc::clone(&self.node);
            if !node.claim_what_was_up(&node.config.resources[index]) {
                continue;
            }
            let spawned = thread::Builder::new()
                .name("up".to_owned())
                .stack_size(256 * 1024)
                .spawn(move || node.up_again(&node.config.resources[index]));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "no thread to bring a resource up"),
            }
        }
        threads
    }

    /// Waits for SIGTERM or SIGINT (`None`) or for what makes going on impossible.
    fn wait_for_the_end(&self, signals: &SignalFd) -> Option<String> {
        loop {
            let mut fds: Vec<_> = [signals.as_fd(), self.node.ended.as_fd()]
                .into_iter()
                .chain(self.listeners.iter().map(AsFd::as_fd))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            poll(&mut fds, PollTimeout::NONE).ok();
            for listener in &self.listeners {
                // Accepted and closed: the arbitrator has no data links.
                while listener.accept().is_ok() {}
            }
            if let Some(why) = self.node.board.read(|board| board.fatal.clone()) {
                return Some(why);
            }
            while let Ok(Some(signal)) = signals.read_signal() {
                if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32) {
                    tracing::warn!("SIGHUP: this version reads its configuration only at start");
                } else {
                    return None;
                }
            }
        }
    }

    fn stop(self) {
        tracing::info!("stopping");
        self.node.quiesce_all();
        // Full mailboxes would mean a stuck thread; the process ends either way.
        if self.node.controller.push(ControllerRequest::Stop).is_ok() {
            self.beacon.join().ok();
        }
        self.node.remove_all();
        if let Some(shard) = self.shard {
            self.node.command(ShardCommand::Stop);
            shard.join().ok();
        }
        if self.node.store.push(StoreRequest::Stop).is_ok() {
            self.store.join().ok();
        }
        tracing::info!("stopped");
    }
}

fn note_marks(node: &Node, store: &VoterStore) {
    node.board.update(|board| {
        for (resource, record) in store.records() {
            let known = board.resource(resource);
            known.marks = StoredMarks::of(record);
            known.was_up = record.up;
        }
    });
}

fn start_shard(node: &Arc<Node>, setup: ShardSetup) -> io::Result<JoinHandle<()>> {
    let sink = Box::new(NodeSink(Arc::clone(node)));
    let started = shard::start(setup, sink, shard::engines())?;
    if node.shard.set(started.queue).is_err() {
        return Err(io::Error::other("a second shard"));
    }
    Ok(started.thread)
}
