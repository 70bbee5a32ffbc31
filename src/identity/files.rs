//! A node's keys as files: `keys/` in its state directory, mode 0700, each file 0600.
//!
//! | file | what |
//! |---|---|
//! | `cluster` | version, cluster id, this node's name, the cluster's secret and name, a line each |
//! | `ca-cert.der` | the authority's certificate |
//! | `node-cert.der`, `node-key.der` | this node's |
//! | `ca-key.der`, `tokens` | only where `init` was run |
//!
//! Invariant: the directory appears whole and durable or not at all, and is never written over.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;

use super::SECRET_LEN;
use super::authority::{Authority, hex};

/// The directory in a state directory.
pub const KEYS_DIR: &str = "keys";

const CLUSTER: &str = "cluster";
const AUTHORITY: &str = "ca-cert.der";
const AUTHORITY_KEY: &str = "ca-key.der";
const CERTIFICATE: &str = "node-cert.der";
const KEY: &str = "node-key.der";
/// What keys are called while they are removed.
const KEYS_LEFT: &str = "keys.left";
/// What a daemon holds locked in its state directory while it runs.
pub const DAEMONS_LOCK: &str = "lock";
const FORMAT: &str = "twinblk keys 1";

/// Longest file of ours.
const FILE_LEN_MAX: u64 = 64 << 10;

/// All that a node needs to be one.
pub struct NodeKeys {
    /// The cluster's name.
    pub cluster: String,
    /// Random id of the cluster's keys.
    pub cluster_id: u128,
    /// This node's name.
    pub node: String,
    /// What all nodes of the cluster know.
    pub secret: [u8; SECRET_LEN],
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// This node's certificate.
    pub certificate: CertificateDer<'static>,
    /// And its key, PKCS #8.
    pub key: Vec<u8>,
}

impl core::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("NodeKeys")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Why there are no keys to use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeysError {
    /// There are none.
    #[error("there are no keys in {}", .0.display())]
    Missing(PathBuf),
    /// There are some already.
    #[error("{} is there already", .0.display())]
    Exist(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    System {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

fn system(path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |error| KeysError::System { path, error }
}

fn damaged(path: &Path, why: impl Into<String>) -> KeysError {
    KeysError::Damaged {
        path: path.to_owned(),
        why: why.into(),
    }
}

impl NodeKeys {
    /// Reads those of a state directory.
    ///
    /// # Errors
    /// If there are none that can be used.
    pub fn open(state_dir: &Path) -> Result<Self, KeysError> {
        let dir = state_dir.join(KEYS_DIR);
        if !exists(&dir)? {
            return Err(KeysError::Missing(dir));
        }
        let path = dir.join(CLUSTER);
        let text = String::from_utf8(read(&path)?).map_err(|_| damaged(&path, "not text"))?;
        let (cluster_id, secret, node, cluster) =
            parse_cluster(&text).ok_or_else(|| damaged(&path, "not the cluster's keys"))?;
        Ok(Self {
            cluster,
            cluster_id,
            node,
            secret,
            authority: CertificateDer::from(read(&dir.join(AUTHORITY))?),
            certificate: CertificateDer::from(read(&dir.join(CERTIFICATE))?),
            key: read(&dir.join(KEY))?,
        })
    }

    /// Puts them, and the authority's where that is here, into a state directory; makes both.
    ///
    /// # Errors
    /// If there are some already, or they cannot be written.
    pub fn write(&self, state_dir: &Path, authority: Option<&Authority>) -> Result<(), KeysError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir);
        made.map_err(system(state_dir))?;
        let _lock = lock(state_dir)?;
        let dir = state_dir.join(KEYS_DIR);
        if exists(&dir)? {
            return Err(KeysError::Exist(dir));
        }
        remove_left(state_dir)?;
        // What an attempt left behind that was killed.
        let new = state_dir.join("keys.new");
        if exists(&new)? {
            fs::remove_dir_all(&new).map_err(system(&new))?;
        }
        let made = DirBuilder::new().mode(0o700).create(&new);
        made.map_err(system(&new))?;
        let made = open_dir(&new)?;
        let owner = owner_of(state_dir)?;
        let cluster = format!(
            "{FORMAT}\n{:032x}\n{}\n{}\n{}\n",
            self.cluster_id,
            hex(&self.secret),
            self.node,
            self.cluster
        );
        let mut files: Vec<(&str, &[u8])> = vec![
            (CLUSTER, cluster.as_bytes()),
            (AUTHORITY, &self.authority),
            (CERTIFICATE, &self.certificate),
            (KEY, &self.key),
        ];
        if let Some(authority) = authority {
            files.push((AUTHORITY_KEY, authority.key()));
        }
        for (name, bytes) in files {
            write_file(&made, &new, name, bytes, owner)?;
        }
        give_to_owner(&made, owner).map_err(system(&new))?;
        made.sync_all().map_err(system(&new))?;
        // Fails where somebody else made it meanwhile: a directory that is not empty stays.
        fs::rename(&new, &dir).map_err(system(&dir))?;
        sync_dir(state_dir)
    }

    /// The key for TLS.
    #[must_use]
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    /// The authority, where `init` was run.
    ///
    /// # Errors
    /// If its key cannot be read. `None`: it is not here.
    pub fn authority(&self, state_dir: &Path) -> Result<Option<Authority>, KeysError> {
        let path = state_dir.join(KEYS_DIR).join(AUTHORITY_KEY);
        if !exists(&path)? {
            return Ok(None);
        }
        let key = read(&path)?;
        let certificate = self.authority.clone();
        Authority::from_parts(&self.cluster, self.cluster_id, &key, certificate)
            .map(Some)
            .map_err(|error| damaged(&path, error.to_string()))
    }
}

/// Whether the authority's key is in a state directory.
#[must_use]
pub fn has_authority(state_dir: &Path) -> bool {
    state_dir.join(KEYS_DIR).join(AUTHORITY_KEY).exists()
}

/// Takes all keys of a state directory away.
///
/// # Errors
/// If there are none, or they cannot be removed.
pub fn remove(state_dir: &Path) -> Result<(), KeysError> {
    let dir = state_dir.join(KEYS_DIR);
    if !exists(&dir)? {
        // One that was killed may have left some behind.
        if exists(state_dir)? {
            remove_left(state_dir)?;
        }
        return Err(KeysError::Missing(dir));
    }
    let _lock = lock(state_dir)?;
    // By rename first: half of the files are never taken for all of them.
    remove_left(state_dir)?;
    let old = state_dir.join(KEYS_LEFT);
    fs::rename(&dir, &old).map_err(system(&dir))?;
    sync_dir(state_dir)?;
    fs::remove_dir_all(&old).map_err(system(&old))?;
    sync_dir(state_dir)
}

/// Whether a daemon runs on this state directory.
///
/// # Errors
/// If that cannot be seen.
pub fn is_in_use(state_dir: &Path) -> Result<bool, KeysError> {
    let path = state_dir.join(DAEMONS_LOCK);
    if !exists(&path)? {
        return Ok(false);
    }
    let file = File::open(&path).map_err(system(&path))?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(system(&path)(errno.into())),
    }
}

/// Keys that were being removed.
fn remove_left(state_dir: &Path) -> Result<(), KeysError> {
    let old = state_dir.join(KEYS_LEFT);
    match exists(&old)? {
        true => fs::remove_dir_all(&old).map_err(system(&old)),
        false => Ok(()),
    }
}

/// Held by whoever changes something in the directory, until it is dropped.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, KeysError> {
    let file = File::open(dir).map_err(system(dir))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| system(dir)(io::Error::from(errno)))
}

/// Replaces a file; durable when it returns.
pub(super) fn replace_file(path: &Path, name: &str, bytes: &[u8]) -> Result<(), KeysError> {
    let dir = open_dir(path)?;
    let new = format!("{name}.new");
    match unlinkat(&dir, new.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(system(&path.join(&new))(errno.into())),
    }
    let metadata = dir.metadata().map_err(system(path))?;
    let owner = (metadata.uid(), metadata.gid());
    write_file(&dir, path, &new, bytes, owner)?;
    let renamed = renameat(&dir, new.as_str(), &dir, name);
    renamed.map_err(|errno| system(&path.join(name))(errno.into()))?;
    dir.sync_all().map_err(system(path))
}

/// The whole of a file of ours. What others can read is refused: it is nobody's secret any more.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    let mut file = File::open(path).map_err(system(path))?;
    let metadata = file.metadata().map_err(system(path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("others may read it (mode {mode:o}); it must be 600");
        return Err(damaged(path, why));
    }
    if metadata.len() > FILE_LEN_MAX {
        return Err(damaged(path, "longer than any file of keys"));
    }
    let mut bytes = Vec::new();
    let read = Read::take(&mut file, FILE_LEN_MAX).read_to_end(&mut bytes);
    read.map_err(system(path))?;
    Ok(bytes)
}

pub(super) fn exists(path: &Path) -> Result<bool, KeysError> {
    path.try_exists().map_err(system(path))
}

/// A directory of ours, and no link to another: its owner may be less than who works here, root.
fn open_dir(path: &Path) -> Result<File, KeysError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(flags.bits()).open(path);
    opened.map_err(system(path))
}

/// Makes `name` in `dir`, which is called `path`; and gives it to `owner`, by its descriptor: whatever
/// the name leads to by then, only what was made here is given away.
fn write_file(
    dir: &File,
    path: &Path,
    name: &str,
    bytes: &[u8],
    owner: (u32, u32),
) -> Result<(), KeysError> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let made = openat(dir, name, flags, Mode::from_bits_truncate(0o600));
    let written = made.map_err(io::Error::from).and_then(|made| {
        let mut file = File::from(made);
        file.write_all(bytes)?;
        give_to_owner(&file, owner)?;
        file.sync_all()
    });
    written.map_err(system(&path.join(name)))
}

/// What root makes here has to be readable for the daemon's user, who owns the state directory.
fn give_to_owner(made: &File, (user, group): (u32, u32)) -> io::Result<()> {
    match nix::unistd::Uid::effective().is_root() {
        true => fchown(made, Some(user), Some(group)),
        false => Ok(()),
    }
}

fn owner_of(state_dir: &Path) -> Result<(u32, u32), KeysError> {
    let metadata = fs::metadata(state_dir).map_err(system(state_dir))?;
    Ok((metadata.uid(), metadata.gid()))
}

fn sync_dir(dir: &Path) -> Result<(), KeysError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(system(dir))
}

fn parse_cluster(text: &str) -> Option<(u128, [u8; SECRET_LEN], String, String)> {
    let lines: Vec<_> = text.lines().collect();
    let [FORMAT, id, secret, node, cluster] = lines[..] else {
        return None;
    };
    let id = u128::from_str_radix(id, 16).ok()?;
    Some((id, unhex(secret)?, node.to_owned(), cluster.to_owned()))
}

pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}
