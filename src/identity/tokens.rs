//! The tokens an issuer has given out: a file beside its keys, one line each.
//!
//! `ID HASH EXPIRES WRONG NODE`: the id and the SHA-256 of the secret in hexadecimal, seconds since 1970,
//! how often it was tried with another secret, and who may use it. The secret itself is nowhere but in the token.
//!
//! Invariant: a token is gone from the disk before what it buys is given away.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::authority::{fingerprint, hex};
use super::files::{KEYS_DIR, KeysError, NodeKeys, exists, lock, read, replace_file, unhex};
use super::token::{ADDRESSES_MAX, TOKEN_SECRET_LEN, Token};

/// How long a token may be used.
pub const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
/// Tokens at once; the oldest gives way.
pub const TOKENS_MAX: usize = 16;
/// Times a token may be tried with another secret.
const WRONG_MAX: u32 = 3;

const TOKENS: &str = "tokens";

struct Entry {
    id: u64,
    hash: [u8; 32],
    expires: u64,
    wrong: u32,
    node: String,
}

/// What came of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redeemed {
    /// It was good, and is no more.
    Yes,
    /// It is not, was used, or has run out.
    No,
    /// It is good, but for another node; and stays so.
    ForAnother,
}

/// Makes a token of the authority in this state directory for `node`, and remembers it.
///
/// # Errors
/// If it cannot be recorded.
pub fn add(
    state_dir: &Path,
    keys: &NodeKeys,
    node: &str,
    addresses: &[SocketAddr],
    now_unix: u64,
) -> Result<Token, KeysError> {
    let mut id = [0; 8];
    let mut secret = [0; TOKEN_SECRET_LEN];
    let random = SystemRandom::new();
    if random.fill(&mut id).is_err() || random.fill(&mut secret).is_err() {
        let error = std::io::Error::other("the system has no randomness");
        let path = state_dir.to_owned();
        return Err(KeysError::System { path, error });
    }
    let token = Token {
        cluster: keys.cluster_id,
        id: u64::from_le_bytes(id),
        secret,
        authority: fingerprint(&keys.authority),
        issuer: keys.node.clone(),
        addresses: addresses.iter().take(ADDRESSES_MAX).copied().collect(),
    };
    let dir = state_dir.join(KEYS_DIR);
    let _lock = lock(&dir)?;
    let mut entries = load(&dir, now_unix)?;
    if entries.len() >= TOKENS_MAX {
        entries.remove(0);
    }
    entries.push(Entry {
        id: token.id,
        hash: hash_of(&secret),
        expires: now_unix.saturating_add(TOKEN_LIFE.as_secs()),
        wrong: 0,
        node: node.to_owned(),
    });
    save(&dir, &entries)?;
    Ok(token)
}

/// Uses a token of `node`'s up, durably.
///
/// # Errors
/// If that cannot be recorded: then it must buy nothing.
pub fn redeem(
    state_dir: &Path,
    id: u64,
    secret: &[u8; TOKEN_SECRET_LEN],
    node: &str,
    now_unix: u64,
) -> Result<Redeemed, KeysError> {
    let dir = state_dir.join(KEYS_DIR);
    let _lock = lock(&dir)?;
    let mut entries = load(&dir, now_unix)?;
    let Some(at) = entries.iter().position(|entry| entry.id == id) else {
        return Ok(Redeemed::No);
    };
    // Of hashes: how long it takes to compare them tells nothing of the secret.
    let good = entries[at].hash == hash_of(secret);
    if good && entries[at].node != node {
        return Ok(Redeemed::ForAnother);
    }
    entries[at].wrong += u32::from(!good);
    if good || entries[at].wrong >= WRONG_MAX {
        entries.remove(at);
    }
    save(&dir, &entries)?;
    Ok(if good { Redeemed::Yes } else { Redeemed::No })
}

fn hash_of(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret).as_ref());
    hash
}

/// Those that have not run out. A clock that was set back by more than a token's life makes none good
/// again.
fn load(dir: &Path, now_unix: u64) -> Result<Vec<Entry>, KeysError> {
    let path = dir.join(TOKENS);
    if !exists(&path)? {
        return Ok(Vec::new());
    }
    let bytes = read(&path)?;
    let entries: Option<Vec<_>> = core::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.lines().map(parse).collect());
    let Some(mut entries) = entries else {
        let why = "not a list of tokens".to_owned();
        return Err(KeysError::Damaged { path, why });
    };
    let latest = now_unix.saturating_add(TOKEN_LIFE.as_secs());
    entries.retain(|entry| now_unix < entry.expires && entry.expires <= latest);
    Ok(entries)
}

fn save(dir: &Path, entries: &[Entry]) -> Result<(), KeysError> {
    let text: String = entries
        .iter()
        .map(|it| {
            format!(
                "{:016x} {} {} {} {}\n",
                it.id,
                hex(&it.hash),
                it.expires,
                it.wrong,
                it.node
            )
        })
        .collect();
    replace_file(dir, TOKENS, text.as_bytes())
}

fn parse(line: &str) -> Option<Entry> {
    let words: Vec<_> = line.split(' ').collect();
    let [id, hash, expires, wrong, node] = words[..] else {
        return None;
    };
    Some(Entry {
        id: u64::from_str_radix(id, 16).ok()?,
        hash: unhex(hash)?,
        expires: expires.parse().ok()?,
        wrong: wrong.parse().ok()?,
        node: node.to_owned(),
    })
}
