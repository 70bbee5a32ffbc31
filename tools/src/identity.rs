//! `init`, `join` and `leave`: how a node comes to be one, and ceases to.
//!
//! They work on this node's state directory; only `join` speaks to another node, the one that issued
//! the token. Nothing secret is told but the tokens, on stdout.

use std::io::{self, Read};
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
    let Some(cluster) = &arguments.cluster else {
        return one_token(context, &place, state_dir);
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
    let others = place.config.nodes.len().saturating_sub(1);
    if context.dry_run {
        let step = format!(
            "make the authority of {cluster} and the keys of {} in {}, and {others} tokens",
            place.name,
            keys_dir.display()
        );
        return put_plan(context, &[step]);
    }
    let keys = new_keys(&place, state_dir)?;
    let tokens = (0..others)
        .map(|_| make_token(&place, state_dir, &keys))
        .collect::<Result<Vec<_>, _>>()?;
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

fn one_token(context: &Context, place: &Place, state_dir: &Path) -> Result<u8, Failure> {
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
        return put_plan(context, &["make a token".to_owned()]);
    }
    let token = make_token(place, state_dir, &keys)?;
    put_tokens(context, place, &[token])
}

fn make_token(place: &Place, state_dir: &Path, keys: &NodeKeys) -> Result<Token, ErrorReport> {
    tokens::add(state_dir, keys, place.addresses(), unix_millis() / 1000)
        .map_err(|error| keys_report(&error))
}

fn put_tokens(context: &Context, place: &Place, tokens: &[Token]) -> Result<u8, Failure> {
    let texts: Vec<_> = tokens.iter().map(Token::encode).collect();
    let minutes = TOKEN_LIFE.as_secs() / 60;
    match context.output {
        Output::Plain => {
            context.tell(&format!(
                "each token lets one node join within {minutes} minutes, while the daemon of {} \
                 runs; on that node: twinadm join TOKEN",
                place.name
            ));
            for text in &texts {
                context.put(&format!("{text}\n"))?;
            }
        }
        Output::Json => context.put_json(
            &json!({
                "cluster": place.config.cluster,
                "node": place.name,
                "tokens": texts,
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
        context.tell(&format!("there are no keys in {}", keys_dir.display()));
        return Ok(exit::OK);
    }
    if let Some(up) = something_up(context) {
        let why = format!("{up} is up on this node, and its peer would know this node no more");
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

/// A resource that is up here, if a daemon says so.
fn something_up(context: &Context) -> Option<String> {
    let anyone = Context {
        node: None,
        ..context.clone()
    };
    let verb = Verb::Status { resource: None };
    match ask_within(&anyone, Duration::ZERO, verb) {
        Ok(Response::Status(status)) => {
            let up = status.resources.into_iter().find(|resource| resource.up);
            up.map(|resource| resource.name)
        }
        _ => None,
    }
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
