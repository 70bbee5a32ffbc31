//! All threads of a node: started in order, watched, and stopped in order.

use super::automation::AutomationFile;
use super::forward::Caller;
use super::resources::Resources;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use replicator::admin::{ErrorId, ErrorReport, Response};
use replicator::io::{clock, realtime};
use replicator::types::NodeId;

use super::adjust::blocks_min;
use super::api::{InheritedSocket, NbdTcp, ShardCommand, ShardSetup, StoredMarks};
use super::args::Flags;
use super::beacon_io::Carrier;
use super::certificates::Certificates;
use super::control::ControlServer;
use super::guests::{self, GuestsThread};
use super::history::History;
use super::join_door::Issuer;
use super::listeners::{Inherited, InheritedSockets, Keeper};
use super::mailbox::Mailbox;
use super::metrics::{Server, Source};
use super::node::{CONTROLLER_INPUTS_MAX, ControllerRequest, Node, NodeSink};
use super::placement::{self, PlacementFile};
use super::prepare::{Sockets, directory_refusal, system};
use super::relay_door::{Door, Doorkeeper, KNOCKS_MAX};
use super::security::Security;
use super::start::Failure;
use super::store_thread::{self, STORE_REQUESTS_MAX, StoreRequest};
use super::voter_store::VoterStore;
use super::{Program, beacon, notify, shard, status};
use crate::config::{Config, TimingProfile};
use crate::controller::{Configured, Controller, ControllerSettings, Timing};

pub(super) fn timing(profile: TimingProfile) -> Timing {
    match profile {
        TimingProfile::Fast => Timing::FAST,
        TimingProfile::Default => Timing::DEFAULT,
        TimingProfile::Relaxed => Timing::RELAXED,
    }
}

/// What was found in order before anything was started.
pub(super) struct Prepared {
    pub(super) store: VoterStore,
    pub(super) sockets: Sockets,
    pub(super) nbd_tcp: Option<NbdTcp>,
    pub(super) security: Option<Arc<Security>>,
    pub(super) inherited: InheritedSockets,
    pub(super) program_path: PathBuf,
}

/// How a daemon ended in order.
pub(super) enum End {
    Stopped,
    /// It is to become `program`, which gets these sockets.
    Again {
        program: PathBuf,
        sockets: Vec<(String, OwnedFd)>,
    },
}

/// What it was told.
enum Told {
    Stop,
    Again,
    /// It cannot go on.
    Fail(String),
}

/// All threads of a node.
pub(super) struct Running {
    program: Program,
    node: Arc<Node>,
    /// The arbitrator's: it has no data links, but takes what other nodes pass on to it.
    listeners: Vec<TcpListener>,
    beacon: JoinHandle<()>,
    store: JoinHandle<()>,
    shard: Option<JoinHandle<()>>,
    guests: Option<GuestsThread>,
    /// Those of NBD over TCP.
    certificates: Option<Arc<Certificates>>,
}

impl Running {
    pub(super) fn start(
        program: Program,
        mut config: Config,
        id: NodeId,
        flags: &Flags,
        prepared: Prepared,
    ) -> Result<Self, ErrorReport> {
        let Prepared {
            store,
            sockets,
            nbd_tcp,
            security,
            mut inherited,
            program_path,
        } = prepared;
        let certificates = nbd_tcp.as_ref().and_then(|it| it.certificates.clone());
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
            configured: config
                .resources
                .iter()
                .map(|resource| Configured {
                    resource: resource.id(),
                    protocol: config.protocol_of(resource),
                    failover: resource.failover,
                    prefer: resource.prefer,
                    blocks_min: blocks_min(resource),
                })
                .collect(),
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
            program_path,
            keeper: Keeper::of_this_process(inherited.were_kept_by_manager()),
            started: Duration::from_millis(clock::unix_millis()).as_secs_f64(),
            node: id,
            run_dir: flags.run_dir.clone(),
            history: match program {
                Program::Daemon => History::open(&flags.state_dir),
                Program::Arbitrator => History::in_memory(),
            },
            state_dir: flags.state_dir.clone(),
            automation: match program {
                Program::Daemon => AutomationFile::open(&flags.state_dir),
                Program::Arbitrator => AutomationFile::in_memory(),
            },
            placement: match program {
                Program::Daemon => PlacementFile::open(&flags.state_dir),
                Program::Arbitrator => PlacementFile::in_memory(),
            },
            board: super::board::Board::default(),
            ended: Mailbox::new(1).map_err(failed("eventfd"))?,
            controller: Mailbox::new(CONTROLLER_INPUTS_MAX).map_err(failed("eventfd"))?,
            store: Arc::new(Mailbox::new(STORE_REQUESTS_MAX).map_err(failed("eventfd"))?),
            shard: OnceLock::new(),
            config_dir: flags.config.clone(),
            resources: Resources::new(std::mem::take(&mut config.resources)),
            adjusting: Mutex::new(()),
            hangups: AtomicBool::new(false),
            orders: AtomicU64::new(1),
            relays: Arc::new(AtomicUsize::new(0)),
            knocks: Arc::new(Mailbox::new(KNOCKS_MAX).map_err(failed("eventfd"))?),
            security,
            config,
        });
        note_marks(&node, &store);
        if let Some(nbd_tcp) = &nbd_tcp {
            node.keeper.keep_tcp(&nbd_tcp.listener);
        }
        let doors = doors(&node, &mut inherited);
        inherited.close(&node.keeper);
        // Before the controller's first turn; what it promised in an earlier life outlasts that anyway.
        node.tell_automation(node.automation.now());
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
                let addresses = node.config.node(id).map(|it| it.addresses.clone());
                let caller = Caller {
                    own: addresses.unwrap_or_default(),
                    peer: others[id.peer().index()].clone(),
                    security: node.security.clone(),
                };
                let setup = ShardSetup {
                    caller: Arc::new(caller),
                    node: id,
                    cluster: settings.cluster,
                    listeners: sockets.listeners,
                    peer_addresses: others[id.peer().index()].clone(),
                    boot_id: settings.boot_id,
                    incarnation: clock::random_id().map_err(failed("randomness"))?,
                    nbd_connections_max: usize::try_from(node.config.nbd.max_connections)
                        .unwrap_or(usize::MAX),
                    nbd_tcp,
                    doors,
                    security: node.security.clone(),
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
        // Before this node can be activated: it finds the guardians of an earlier life.
        let guests = match program {
            Program::Arbitrator => None,
            Program::Daemon => Some(
                guests::start(&node, &settings.timing).map_err(failed("thread for the guests"))?,
            ),
        };
        let beacon = beacon::start(Arc::clone(&node), controller, carrier)
            .map_err(failed("beacon thread"))?;
        Ok(Self {
            program,
            node,
            listeners,
            beacon,
            store,
            shard,
            guests,
            certificates,
        })
    }

    /// Serves until a signal or a failure, then stops in order.
    pub(super) fn serve(
        mut self,
        run_dir: &Path,
        metrics: Option<TcpListener>,
        signals: &SignalFd,
    ) -> Result<End, Failure> {
        let source: Arc<dyn Source> = Arc::clone(&self.node) as _;
        let _metrics = metrics
            .map(|listener| Server::start(listener, source))
            .transpose()
            .map_err(|error| system("thread for the metrics", &error))?;
        let ups = self.start_what_was_up();
        let handler = Arc::clone(&self.node);
        let listeners = std::mem::take(&mut self.listeners);
        let door = Door::new(Arc::clone(&self.node.knocks), listeners, keeper(&self.node));
        let control = ControlServer::start(run_dir, handler, door)
            .map_err(|error| directory_refusal(run_dir, &error))?;
        if let Some(socket) = std::env::var_os(notify::VARIABLE)
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
        if self.program == Program::Daemon {
            placement::start(&self.node)
                .map_err(|error| system("thread for the placement", &error))?;
        }
        let again = match self.wait_for_the_end(signals) {
            Told::Stop => false,
            Told::Again => true,
            Told::Fail(why) => {
                let what = format!("{} ends", self.program.name());
                return Err(ErrorReport::new(ErrorId::DaemonGone, what, why).into());
            }
        };
        drop(control);
        self.node.board.update(|board| board.stopping = true);
        for up in ups {
            up.join().ok();
        }
        let node = Arc::clone(&self.node);
        self.stop(again);
        Ok(match again {
            false => End::Stopped,
            true => End::Again {
                program: node.program_path.clone(),
                sockets: node.keeper.take(),
            },
        })
    }

    /// One thread per resource: a slow disk delays only its own.
    fn start_what_was_up(&self) -> Vec<JoinHandle<()>> {
        let mut threads = Vec::new();
        for resource in self.node.resources.all() {
            let node = Arc::clone(&self.node);
            if !node.claim_what_was_up(&resource) {
                continue;
            }
            let spawned = thread::Builder::new()
                .name("up".to_owned())
                .stack_size(256 * 1024)
                .spawn(move || node.up_again(&resource));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "no thread to bring a resource up"),
            }
        }
        threads
    }

    /// Waits for SIGTERM or SIGINT, for `reexec`, or for what makes going on impossible.
    fn wait_for_the_end(&self, signals: &SignalFd) -> Told {
        loop {
            let mut fds = [signals.as_fd(), self.node.ended.as_fd()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::NONE).ok();
            let (fatal, again) = self
                .node
                .board
                .read(|board| (board.fatal.clone(), board.again));
            if let Some(why) = fatal {
                return Told::Fail(why);
            }
            while let Ok(Some(signal)) = signals.read_signal() {
                if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32) {
                    self.begin_adjusting();
                } else {
                    return Told::Stop;
                }
            }
            if again {
                return Told::Again;
            }
        }
    }

    /// SIGHUP. On a thread of its own: files may lie on a disk that hangs, and this one has to see the
    /// end. One that is under way reads what is there.
    fn begin_adjusting(&self) {
        let node = Arc::clone(&self.node);
        if node.hangups.swap(true, Ordering::AcqRel) {
            return;
        }
        let certificates = self.certificates.clone();
        let adjust = move || {
            node.hangups.store(false, Ordering::Release);
            if let Some(certificates) = certificates {
                read_again(&certificates);
            }
            if let Some(security) = &node.security {
                match security.reload(&node.config.cluster) {
                    Ok(()) => {
                        tracing::info!(
                            "SIGHUP: new connections between nodes use the keys read now"
                        );
                    }
                    Err(report) => tracing::error!(
                        id = report.id,
                        "SIGHUP: {} ({}); the keys read before stay in use",
                        report.what,
                        report.why
                    ),
                }
            }
            match node.adjust(None, false) {
                Ok(Response::Adjusted { changes, .. }) => {
                    tracing::info!("SIGHUP: {} differences to the files", changes.len());
                }
                Ok(_) => {}
                Err(report) => tracing::error!(id = report.id, "{} ({})", report.what, report.why),
            }
        };
        if let Err(error) = thread::Builder::new()
            .name("adjust".to_owned())
            .spawn(adjust)
        {
            self.node.hangups.store(false, Ordering::Release);
            tracing::error!(%error, "no thread to read the files");
        }
    }

    fn stop(self, again: bool) {
        tracing::info!("stopping");
        // Before anybody is cut off, so that who comes back waits for the next life.
        if again || self.node.keeper.manager_has_some() {
            self.node.keeper.close();
            self.node.command(ShardCommand::KeepListeners);
        }
        // Guests run on; their guardians know until when.
        if let Some(guests) = self.guests {
            guests.stop();
        }
        if !again {
            self.node.hand_over_all();
        }
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
        self.node.history.flush();
        tracing::info!("stopped");
    }
}

fn read_again(certificates: &Certificates) {
    match certificates.reload() {
        Ok(None) => tracing::info!("SIGHUP: new NBD clients get the certificates read now"),
        Ok(Some(doubt)) => {
            tracing::error!("SIGHUP: {doubt}; who is let in is as it was read now all the same");
        }
        Err(error) => {
            tracing::error!("SIGHUP: {error}; the certificates read before stay in use");
        }
    }
}

/// Lets in who is configured.
fn keeper(node: &Node) -> Doorkeeper {
    Doorkeeper {
        node: node.node,
        cluster: node.cluster(),
        addresses: NodeId::ALL.map(|other| {
            let known = node.config.node(other).map(|it| it.addresses.iter());
            known
                .into_iter()
                .flatten()
                .map(|address| address.ip().to_canonical())
                .collect()
        }),
        names: NodeId::ALL.map(|id| {
            node.config
                .node(id)
                .map_or_else(String::new, |it| it.name.clone())
        }),
        security: node.security.clone(),
        issuer: Issuer::new(node.state_dir.clone()),
    }
}

/// The sockets that NBD clients of this node's resources may be waiting in, and those of socket units for
/// what may be configured yet. All of them are kept from now on: the next life may come before they are
/// taken.
fn doors(node: &Node, inherited: &mut InheritedSockets) -> Vec<InheritedSocket<OwnedFd>> {
    let mut doors = Vec::new();
    for resource in node.resources.all() {
        let path = status::nbd_socket(&node.run_dir, &resource.name);
        let awaited = node
            .board
            .update(|board| board.resource(resource.id()).was_up);
        // One of ours belongs to a resource that is up.
        let wanted = |it: &Inherited| awaited || !it.own;
        if let Some(Inherited { fd, own }) = inherited.take_path(&path, wanted) {
            keep(node, &resource.name, &path, &fd, own);
            doors.push(InheritedSocket {
                path,
                socket: fd,
                own,
                awaited,
            });
        }
    }
    let directory = status::nbd_directory(&node.run_dir);
    for (bound, Inherited { fd, own }) in inherited.take_given(&directory) {
        let (Some(name), Some(file)) = (bound.file_stem(), bound.file_name()) else {
            continue;
        };
        let path = directory.join(file);
        keep(node, &name.to_string_lossy(), &path, &fd, own);
        doors.push(InheritedSocket {
            path,
            socket: fd,
            own,
            awaited: false,
        });
    }
    doors
}

fn keep(node: &Node, resource: &str, path: &Path, fd: &OwnedFd, own: bool) {
    match fd.try_clone() {
        Ok(fd) => node.keeper.keep_unix(resource, path, fd, own),
        Err(error) => tracing::warn!(path = %path.display(), %error, "a socket is not kept"),
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
