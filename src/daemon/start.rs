//! From flags to a running node: every refusal to start comes before `control.sock`.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use replicator::admin::{ErrorId, ErrorReport};
use replicator::types::NodeId;

use super::args::Flags;
use super::listeners::InheritedSockets;
use super::reexec_order::{HELD_PORTS, collect_children};
use super::running::{End, Prepared, Running};
use super::security::Security;
use super::{Program, log, prepare, words};
use crate::config::{self, Checked, Config, NodeRole, Scope, Tls};

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
pub(super) fn run(program: Program, flags: &Flags) -> Result<End, Failure> {
    // Before this process opens anything of its own.
    let mut inherited = InheritedSockets::take();
    // Before a newer one takes its place on the disk.
    let program_path = program_path(std::env::args_os().next(), std::env::current_exe());
    let Checked { config, warnings } = load_config(program, flags)?;
    let node = own_id(program, &config, flags)?;
    let security = Security::open(&config, node, &flags.state_dir)?;
    // Before any thread is started, so that all of them leave the signals to this one.
    let signals = block_signals().map_err(|error| prepare::system("signals", &error))?;
    let _log = log::start(&log_level(&config)).map_err(log_refusal)?;
    collect_children();
    for warning in warnings {
        let place = warning.place.as_ref().map_or_else(String::new, |place| {
            format!(" ({}:{})", place.path, place.line)
        });
        tracing::warn!("[{}] {}{place}", warning.id.code(), warning.message);
    }
    if config.is_insecure() {
        tracing::warn!("[net] insecure = true: everything travels in clear text");
    }
    if config.net.tls == Tls::ControlOnly {
        tracing::warn!("[net] tls = \"control-only\": the guests' data travel in clear text");
    }
    raise_descriptor_limit();
    let addresses = config
        .node(node)
        .map(|it| it.addresses.clone())
        .unwrap_or_default();
    inherited.close_addresses_but(config.nbd.listen_of(node));
    let sockets = prepare::bind_all(&addresses)?;
    let metrics = prepare::bind_metrics(&config.metrics)?;
    let nbd_tcp = prepare::nbd_tcp(&config, node, &mut inherited)?;
    let _run_lock = prepare::run_dir(&flags.run_dir, &inherited)?;
    let store = prepare::voter_store(&config, node, &flags.state_dir)?;
    let prepared = Prepared {
        store,
        sockets,
        nbd_tcp,
        security,
        inherited,
        program_path,
    };
    let running = Running::start(program, config, node, flags, prepared)?;
    running.serve(&flags.run_dir, metrics, &signals)
}

/// Looks at everything that a start needs and that another daemon of this node does not hold.
pub(super) fn rehearse(program: Program, flags: &Flags) -> Result<(), Failure> {
    let Checked { config, .. } = load_config(program, flags)?;
    let node = own_id(program, &config, flags)?;
    Security::open(&config, node, &flags.state_dir)?;
    prepare::check_nbd_tcp(&config, node)?;
    log::check(&log_level(&config)).map_err(log_refusal)?;
    let held = std::env::var(HELD_PORTS).ok().map(|ports| {
        let ports = ports.split(',').filter_map(|it| it.parse().ok());
        ports.collect::<Vec<u16>>()
    });
    prepare::check_addresses(&config, node, held)?;
    prepare::check_directories(&config, node, flags)?;
    Ok(())
}

fn log_level(config: &Config) -> String {
    std::env::var("TWINBLK_LOG").unwrap_or_else(|_| config.log.level.clone())
}

fn log_refusal(why: String) -> ErrorReport {
    ErrorReport::new(ErrorId::BadValue, "the log cannot be started", why)
}

/// Where a newer program is looked for: under the name by which this one was started, which may be a
/// link that leads elsewhere by then, or else where this one is. Without either nothing is there that
/// could say that it would start.
fn program_path(called: Option<OsString>, found: io::Result<PathBuf>) -> PathBuf {
    let called = called.map(PathBuf::from);
    called
        .filter(|path| path.is_absolute() && path.is_file())
        .or_else(|| found.ok())
        .unwrap_or_default()
}

fn load_config(program: Program, flags: &Flags) -> Result<Checked, Failure> {
    let scope = match program {
        Program::Daemon => Scope::All,
        Program::Arbitrator => Scope::Cluster,
    };
    config::load(&flags.config, scope).map_err(|mistakes| {
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
    })
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

/// As many descriptors as the system allows: an NBD connection takes one, and the usual soft limit of
/// 1,024, which is for programs with select(2), is less than `max-connections` of two resources.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays as it is");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_program_is_looked_for_where_a_link_leads_then() {
        let dir = std::env::temp_dir().join(format!("twinblk-link-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (link, program) = (dir.join("current"), std::env::current_exe().unwrap());
        std::os::unix::fs::symlink(&program, &link).unwrap();
        let found = || Ok(program.clone());
        assert_eq!(program_path(Some(link.clone().into()), found()), link);
        for called in ["twinblkd", "./twinblkd", "/nonexistent/twinblkd", "/", ""] {
            assert_eq!(program_path(Some(called.into()), found()), program);
        }
        let lost = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(program_path(None, lost()), PathBuf::new());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
