//! `init`, `join` and `leave`: how a node comes to be one, and ceases to.
//!
//! They work on this node's state directory; only `join` speaks to another node, the one that issued
//! the token. Nothing secret is told but the tokens, on stdout.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Response, Verb, exit};
use replicator::types::NodeId;
use serde_json::json;
use twinblk::config::{Config, Scope, load};
use twinblk::identity::authority::{Authority, IssueError, NodeKey};
use twinblk::identity::files::{self, KEYS_DIR, KeysError, NodeKeys};
use twinblk::identity::joining::{JoinError, Joiner, join as join_cluster};
use twinblk::identity::token::{NAME_LEN_MAX, TOKEN_LEN_MAX, Token};
use twinblk::identity::tokens::{self, TOKEN_LIFE};

use crate::cli;
use crate::client::ask_within;
use crate::clock::{Deadline, POLL, pause, unix_millis};
use crate::context::{Context, Failure, Output, exit_of};
use crate::local;
use crate::orders::put_plan;

/// How long the issuer's daemon may take to be there, unless said otherwise.
const ISSUER_PATIENCE: Duration = Duration::from_secs(5);

/// What all three need to know.
struct Place {
    config: Config,
    node: NodeId,
    name: String,
}

impl Place {
    fn find(context: &Context, verb: &str) -> Result<Self, Failure> {
        // Resources are none of an arbitrator's business, nor of these verbs.
        let checked = load(&context.config_dir, Scope::Cluster).map_err(|found| {
            context.tell_diagnostics(&found);
            Failure::Told(exit_of(&found))
        })?;
        let name = match &context.node {
            Some(named) => named.clone(),
            None => local::node_name(context, verb)?,
        };
        let config = checked.config;
        let Some(node) = config.node_id(&name) else {
            let names: Vec<_> = config.nodes.iter().map(|node| node.name.as_str()).collect();
            let what = format!("no node is called {name}");
            let why = format!("the configuration has {}", names.join(", "));
            return Err(ErrorReport::new(ErrorId::NoSuchNode, what, why).into());
        };
        if name.len() > NAME_LEN_MAX {
            let what = format!("{name} is too long a name for a certificate");
            let why = format!("it has more than {NAME_LEN_MAX} bytes");
            return Err(ErrorReport::new(ErrorId::BadValue, what, why).into());
        }
        Ok(Self { config, node, name })
    }

    /// The nodes that can join by tokens of this one.
    fn others(&self) -> Vec<&str> {
        let names = self.config.nodes.iter().map(|node| node.name.as_str());
        names.filter(|name| *name != self.name).collect()
    }

    fn addresses(&self) -> &[std::net::SocketAddr] {
        self.config
            .node(self.node)
            .map_or(&[], |node| node.addresses.as_slice())
    }
}

/// Makes the cluster's authority here and this node's keys, or one more token.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn init(context: &Context, arguments: &cli::Init) -> Result<u8, Failure> {
    let place = Place::find(context, "init")?;
    let state_dir = &arguments.state_dir.state_dir;
    if let Some(node) = &arguments.token {
        return one_token(context, &place, state_dir, node);
    }
    let Some(cluster) = &arguments.cluster else {
        let what = "which cluster begins here?";
        return Err(ErrorReport::new(ErrorId::BadValue, what, "no name is given").into());
    };
    if *cluster != place.config.cluster {
        let what = format!("the configuration is not that of {cluster}");
        let why = format!(
            "[cluster] name is {} in {}",
            place.config.cluster,
            context.config_dir.display()
        );
        let next = format!("twinadm init {}", place.config.cluster);
        return Err(ErrorReport::new(ErrorId::BadValue, what, why)
            .next(next)
            .into());
    }
    refuse_existing(state_dir)?;
    let keys_dir = state_dir.join(KEYS_DIR);
    let others = place.others();
    if context.dry_run {
        let step = format!(
            "make the authority of {cluster} and the keys of {} in {}, and {} tokens",
            place.name,
            keys_dir.display(),
            others.len()
        );
        return put_plan(context, &[step]);
    }
    let keys = new_keys(&place, state_dir)?;
    let tokens = others
        .into_iter()
        .map(|other| Ok((other, make_token(&place, state_dir, &keys, other)?)))
        .collect::<Result<Vec<_>, ErrorReport>>()?;
    context.tell(&format!(
        "{cluster}: its authority and the keys of {} are in {}",
        place.name,
        keys_dir.display()
    ));
    put_tokens(context, &place, &tokens)
}

fn new_keys(place: &Place, state_dir: &Path) -> Result<NodeKeys, ErrorReport> {
    let cluster = &place.config.cluster;
    let failed = |error: IssueError| no_randomness(&error.to_string());
    let random = |error: io::Error| no_randomness(&error.to_string());
    let (first, second) = (
        random_bytes().map_err(random)?,
        random_bytes().map_err(random)?,
    );
    let cluster_id = u128::from_le_bytes(random_bytes().map_err(random)?);
    let mut secret = [0; twinblk::identity::SECRET_LEN];
    secret[..16].copy_from_slice(&first);
    secret[16..].copy_from_slice(&second);
    let authority = Authority::new(cluster, cluster_id).map_err(failed)?;
    let key = NodeKey::new().map_err(failed)?;
    let certificate = authority.issue(&place.name, &key.public());
    let keys = NodeKeys {
        cluster: cluster.clone(),
        cluster_id,
        node: place.name.clone(),
        secret,
        authority: authority.certificate().clone(),
        certificate: certificate.map_err(failed)?,
        key: key.private().to_vec(),
    };
    keys.write(state_dir, Some(&authority))
        .map_err(|error| keys_report(&error))?;
    Ok(keys)
}

fn one_token(
    context: &Context,
    place: &Place,
    state_dir: &Path,
    node: &str,
) -> Result<u8, Failure> {
    let others = place.others();
    if !others.contains(&node) {
        let what = format!("{node} can join by no token of {}", place.name);
        let why = format!("the other nodes are {}", others.join(", "));
        return Err(ErrorReport::new(ErrorId::NoSuchNode, what, why).into());
    }
    let keys = NodeKeys::open(state_dir).map_err(|error| keys_report(&error))?;
    if !files::has_authority(state_dir) {
        let what = format!("{} cannot make tokens", place.name);
        let why = format!(
            "the key of the authority of {} is on another node",
            keys.cluster
        );
        return Err(ErrorReport::new(ErrorId::NotTheAuthority, what, why).into());
    }
    if context.dry_run {
        return put_plan(context, &[format!("make a token for {node}")]);
    }
    let token = make_token(place, state_dir, &keys, node)?;
    put_tokens(context, place, &[(node, token)])
}

fn make_token(
    place: &Place,
    state_dir: &Path,
    keys: &NodeKeys,
    node: &str,
) -> Result<Token, ErrorReport> {
    let now = unix_millis() / 1000;
    tokens::add(state_dir, keys, node, place.addresses(), now).map_err(|error| keys_report(&error))
}

fn put_tokens(context: &Context, place: &Place, tokens: &[(&str, Token)]) -> Result<u8, Failure> {
    let minutes = TOKEN_LIFE.as_secs() / 60;
    match context.output {
        Output::Plain => {
            context.tell(&format!(
                "each token lets the node it is for join within {minutes} minutes, while the daemon \
                 of {} runs; on that node: twinadm join TOKEN",
                place.name
            ));
            for (node, token) in tokens {
                context.tell(&format!("for {node}:"));
                context.put(&format!("{}\n", token.encode()))?;
            }
        }
        Output::Json => context.put_json(
            &json!({
                "cluster": place.config.cluster,
                "node": place.name,
                "tokens": tokens
                    .iter()
                    .map(|(node, token)| json!({ "node": node, "token": token.encode() }))
                    .collect::<Vec<_>>(),
                "valid_seconds": TOKEN_LIFE.as_secs(),
            }),
            true,
        )?,
    }
    Ok(exit::OK)
}

/// Makes this node's key and has it certified by the token's issuer.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn join(context: &Context, arguments: &cli::Join) -> Result<u8, Failure> {
    let token = read_token(&arguments.token)?;
    let place = Place::find(context, "join")?;
    let state_dir = &arguments.state_dir.state_dir;
    refuse_existing(state_dir)?;
    let issuer = place.config.node_id(&token.issuer);
    let Some(issuer) = issuer.filter(|issuer| *issuer != place.node) else {
        let what = format!("{} cannot join by this token", place.name);
        let why = format!(
            "it was issued by {}, which is no other node of the configuration here",
            token.issuer
        );
        return Err(ErrorReport::new(ErrorId::JoinRefused, what, why).into());
    };
    let keys_dir = state_dir.join(KEYS_DIR);
    if context.dry_run {
        let step = format!(
            "make the key of {} in {}, and have {} certify it",
            place.name,
            keys_dir.display(),
            token.issuer
        );
        return put_plan(context, &[step]);
    }
    let joiner = Joiner {
        cluster: &place.config.cluster,
        node: &place.name,
        id: place.node,
        issuer,
    };
    let deadline = Deadline::after(Some(context.timeout.unwrap_or(ISSUER_PATIENCE)));
    let keys = loop {
        match join_cluster(&token, joiner) {
            // Its daemon may be about to start.
            Err(JoinError::Unreachable(_)) if !deadline.is_over() => pause(POLL),
            result => break result.map_err(|error| join_report(&place, &token, &error))?,
        }
    };
    keys.write(state_dir, None)
        .map_err(|error| keys_report(&error))?;
    let (name, cluster) = (&place.name, &place.config.cluster);
    match context.output {
        Output::Plain => context.tell(&format!(
            "{name} has joined {cluster}; its keys are in {}",
            keys_dir.display()
        )),
        Output::Json => {
            context.put_json(&json!({ "cluster": cluster, "node": name }), true)?;
        }
    }
    Ok(exit::OK)
}

/// Takes this node's keys away.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn leave(context: &Context, arguments: &cli::Leave) -> Result<u8, Failure> {
    let state_dir = &arguments.state_dir.state_dir;
    let keys_dir = state_dir.join(KEYS_DIR);
    let what = format!("the keys in {} stay", keys_dir.display());
    if !files_exist(&keys_dir)? {
        // What one that was killed left behind goes, if anything.
        if !context.dry_run {
            match files::remove(state_dir) {
                Ok(()) | Err(KeysError::Missing(_)) => {}
                Err(error) => return Err(keys_report(&error).into()),
            }
        }
        context.tell(&format!("there are no keys in {}", keys_dir.display()));
        return Ok(exit::OK);
    }
    if let Some(why) = in_use(context, state_dir)? {
        return Err(ErrorReport::new(ErrorId::KeysInUse, what, why).into());
    }
    let has_authority = files::has_authority(state_dir);
    if has_authority && !context.yes {
        let why = "the cluster's authority is among them: without it no node can ever join";
        return Err(ErrorReport::new(ErrorId::NeedsYes, what, why).into());
    }
    if context.dry_run {
        let step = format!("remove {}", keys_dir.display());
        return put_plan(context, &[step]);
    }
    files::remove(state_dir).map_err(|error| keys_report(&error))?;
    match context.output {
        Output::Plain => context.tell(&format!(
            "{} is gone; a daemon that runs has them until it is stopped",
            keys_dir.display()
        )),
        Output::Json => context.put_json(&json!({ "removed": keys_dir }), true)?,
    }
    Ok(exit::OK)
}

/// Why the keys may be needed. Only where no daemon can be is there none.
fn in_use(context: &Context, state_dir: &Path) -> Result<Option<String>, ErrorReport> {
    let anyone = Context {
        node: None,
        ..context.clone()
    };
    let socket = context.run_dir.join("control.sock");
    let absent = match UnixStream::connect(socket) {
        Ok(_) => false,
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        ),
    };
    if absent {
        let held = files::is_in_use(state_dir).map_err(|error| keys_report(&error))?;
        return Ok(held.then(|| {
            format!(
                "a daemon runs on {} and does not answer in {}: see --run-dir",
                state_dir.display(),
                context.run_dir.display()
            )
        }));
    }
    let verb = Verb::Status { resource: None };
    Ok(match ask_within(&anyone, Duration::ZERO, verb) {
        Ok(Response::Status(status)) => {
            let up = status.resources.into_iter().find(|resource| resource.up);
            up.map(|up| {
                let name = up.name;
                format!("{name} is up on this node, and its peer would know this node no more")
            })
        }
        Ok(_) => Some("the daemon does not say what is up".to_owned()),
        Err(report) => Some(format!(
            "the daemon does not say what is up: {}",
            report.why
        )),
    })
}

fn read_token(argument: &str) -> Result<Token, ErrorReport> {
    let unreadable = |why: String| {
        let what = "this is no token of `twinadm init`";
        ErrorReport::new(ErrorId::TokenUnreadable, what, why)
    };
    let mut text = String::new();
    if argument == "-" {
        let limit = u64::try_from(2 * TOKEN_LEN_MAX).unwrap_or(u64::MAX);
        io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(|error| unreadable(format!("standard input: {error}")))?;
    } else {
        argument.clone_into(&mut text);
    }
    Token::parse(&text).map_err(|error| unreadable(error.to_string()))
}

fn files_exist(keys_dir: &Path) -> Result<bool, ErrorReport> {
    keys_dir.try_exists().map_err(|error| {
        let path = keys_dir.to_owned();
        keys_report(&KeysError::System { path, error })
    })
}

fn refuse_existing(state_dir: &Path) -> Result<(), ErrorReport> {
    let keys_dir = state_dir.join(KEYS_DIR);
    match files_exist(&keys_dir)? {
        true => Err(keys_report(&KeysError::Exist(keys_dir))),
        false => Ok(()),
    }
}

fn no_randomness(why: &str) -> ErrorReport {
    ErrorReport::new(ErrorId::DeviceFailed, "no key can be made", why)
}

fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn keys_report(error: &KeysError) -> ErrorReport {
    let text = error.to_string();
    match error {
        KeysError::Missing(_) => {
            let what = "this node has no keys";
            ErrorReport::new(ErrorId::TlsKeysMissing, what, text)
        }
        KeysError::Exist(_) => {
            let what = "this node has keys already, and they are never written over";
            ErrorReport::new(ErrorId::KeysExist, what, text)
        }
        KeysError::System { error, .. } => {
            let id = match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorId::Permission,
                _ => ErrorId::DirectoryUnusable,
            };
            ErrorReport::new(id, "the keys cannot be read or written", text)
        }
        _ => ErrorReport::new(ErrorId::KeysUnusable, "the keys cannot be used", text),
    }
}

fn join_report(place: &Place, token: &Token, error: &JoinError) -> ErrorReport {
    let (name, issuer) = (&place.name, &token.issuer);
    let why = error.to_string();
    match error {
        JoinError::Unreachable(_) => {
            let what = format!("{issuer} does not answer {name}");
            ErrorReport::new(ErrorId::NodeUnreachable, what, why).next(format!(
                "start twinblkd on {issuer}, then try again: the token is not used"
            ))
        }
        JoinError::Untrusted(_) => {
            let what = format!("what answers for {issuer} is not trusted");
            ErrorReport::new(ErrorId::IssuerNotTrusted, what, why)
        }
        JoinError::Key(_) => no_randomness(&why),
        _ => {
            let what = format!("{issuer} does not let {name} join");
            ErrorReport::new(ErrorId::JoinRefused, what, why)
        }
    }
}
