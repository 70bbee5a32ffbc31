//! Certificates of the NBD listener: files of a directory into what TLS is set up with.
//!
//! Owns the names of the files, which are those of QEMU's `tls-creds-x509`, and the choice of
//! protocol versions and checks. Knows no connection: the shard asks for the set in force when it
//! sets TLS up, and whoever has it keeps it.

mod subject;

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use replicator::io::clock;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto, version};

pub(super) use subject::subject_of;

/// Who may sign clients' certificates.
const CA_CERTIFICATE: &str = "ca-cert.pem";
/// What that authority revoked; need not be there.
const CA_REVOCATIONS: &str = "ca-crl.pem";
/// What this node shows, with the intermediate certificates behind it if there are any.
const SERVER_CERTIFICATE: &str = "server-cert.pem";
/// Its key.
const SERVER_KEY: &str = "server-key.pem";

/// Longest file that is read; a bundle of many authorities has some 200 KiB.
const FILE_LEN_MAX: u64 = 4 << 20;

/// Why a directory has no set of certificates that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Each file can be read, and together they are of no use: another certificate's key, an
    /// algorithm that is not supported, a server certificate of another authority or beyond its
    /// time.
    #[error("{}: {why}", dir.display())]
    Unusable {
        /// Where.
        dir: PathBuf,
        /// Why.
        why: String,
    },
}

/// The set in force, and where the next one comes from.
pub struct Certificates {
    dir: PathBuf,
    current: Mutex<InForce>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("Certificates")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the set of `dir`, and whether clients will take it: a node whose certificate has run
    /// out must start all the same, for the sake of its other guests.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub fn open(dir: &Path) -> Result<(Self, Option<CertificateError>), CertificateError> {
        let set = read(dir)?;
        let certificates = Self {
            dir: dir.to_owned(),
            current: Mutex::new(InForce {
                config: Arc::new(set.config),
                chain: set.chain,
            }),
        };
        Ok((certificates, set.doubt))
    }

    /// Reads the directory again. Connections that stand go on with what they have.
    ///
    /// # Errors
    /// When the new set cannot be used, or no client would take a new server certificate: the old one
    /// stays. A doubt about the one that is in force does not keep a revocation from being applied.
    pub fn reload(&self) -> Result<Option<CertificateError>, CertificateError> {
        let set = read(&self.dir)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match set.doubt {
            Some(doubt) if set.chain != current.chain => Err(doubt),
            doubt => {
                *current = InForce {
                    config: Arc::new(set.config),
                    chain: set.chain,
                };
                Ok(doubt)
            }
        }
    }

    /// The set in force.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.config)
    }
}

struct InForce {
    config: Arc<ServerConfig>,
    /// The server's certificate, and those between it and the authority.
    chain: Vec<CertificateDer<'static>>,
}

struct Set {
    config: ServerConfig,
    chain: Vec<CertificateDer<'static>>,
    /// Why clients will not take the server's certificate, if they will not.
    doubt: Option<CertificateError>,
}

fn read(dir: &Path) -> Result<Set, CertificateError> {
    let unusable = |why: String| CertificateError::Unusable {
        dir: dir.to_owned(),
        why,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&dir.join(CA_CERTIFICATE))? {
        roots
            .add(certificate)
            .map_err(|error| unusable(format!("{CA_CERTIFICATE}: {error}")))?;
    }
    let chain = certificates(&dir.join(SERVER_CERTIFICATE))?;
    let key = server_key(&dir.join(SERVER_KEY))?;
    warn_of_readers(&dir.join(SERVER_KEY));
    let revoked = revocations(&dir.join(CA_REVOCATIONS))?;
    let doubt = doubt_of(&chain, &roots).map(unusable);

    let provider = Arc::new(endless_ciphers());
    let mut clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if !revoked.is_empty() {
        // The list is of the authority that is configured, not of those between.
        clients = clients
            .with_crls(revoked)
            .only_check_end_entity_revocation();
    }
    let clients = clients
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| unusable(error.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key)
        .map_err(|error| unusable(format!("{SERVER_CERTIFICATE}, {SERVER_KEY}: {error}")))?;
    // Each connection shows its certificate anew: one that was revoked or has run out must not come
    // back on the strength of an earlier connection.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Set {
        config,
        chain,
        doubt,
    })
}

/// Ciphers that a connection may keep for months. AES-GCM of TLS 1.2 has to end after 2^24 records, a few
/// hours of a busy disk, and has no way to change its key; that of TLS 1.3 has.
fn endless_ciphers() -> crypto::CryptoProvider {
    let mut provider = crypto::ring::default_provider();
    provider.cipher_suites.retain(|cipher| {
        let name = cipher.suite().as_str().unwrap_or_default();
        cipher.tls13().is_some() || name.contains("CHACHA20")
    });
    provider
}

/// Why a client that trusts the same authority would not take the server's certificate.
fn doubt_of(chain: &[CertificateDer<'_>], roots: &RootCertStore) -> Option<String> {
    let (first, between) = chain.split_first()?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::unix_millis()));
    let algorithms = crypto::ring::default_provider().signature_verification_algorithms;
    let usage = webpki::KeyUsage::server_auth();
    let checked = webpki::EndEntityCert::try_from(first).and_then(|certificate| {
        certificate
            .verify_for_usage(
                algorithms.all,
                &roots.roots,
                between,
                now,
                usage,
                None,
                None,
            )
            .map(drop)
    });
    let error = checked.err()?;
    Some(format!(
        "{SERVER_CERTIFICATE}: clients will refuse it: {error}"
    ))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found = items(path)?;
    if found.is_empty() {
        return Err(malformed(path, "there is no certificate in it".to_owned()));
    }
    Ok(found)
}

fn revocations(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, CertificateError> {
    match items(path) {
        Err(CertificateError::Unreadable { error, .. })
            if error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(Vec::new())
        }
        Ok(found) if found.is_empty() => {
            // As if nobody were revoked: surely not what was meant.
            Err(malformed(
                path,
                "there is no revocation list in it".to_owned(),
            ))
        }
        result => result,
    }
}

fn server_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    match PrivateKeyDer::from_pem_slice(&contents(path)?) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            let why = "there is no private key in it (one without a password is needed)";
            Err(malformed(path, why.to_owned()))
        }
        Err(error) => Err(malformed(path, error.to_string())),
    }
}

/// Everybody on this machine could be this node.
fn warn_of_readers(key: &Path) {
    let mode = std::fs::metadata(key).map_or(0, |it| it.permissions().mode());
    if mode & 0o007 != 0 {
        let mode = mode & 0o777;
        tracing::warn!("{} can be read by everybody (mode {mode:o})", key.display());
    }
}

fn items<T: PemObject>(path: &Path) -> Result<Vec<T>, CertificateError> {
    T::pem_slice_iter(&contents(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(path, error.to_string()))
}

fn contents(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let unreadable = |error| CertificateError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let len = std::fs::metadata(path).map_err(unreadable)?.len();
    if len > FILE_LEN_MAX {
        return Err(malformed(path, format!("longer than {FILE_LEN_MAX} bytes")));
    }
    std::fs::read(path).map_err(unreadable)
}

fn malformed(path: &Path, why: String) -> CertificateError {
    let path = path.to_owned();
    CertificateError::Malformed { path, why }
}

#[cfg(test)]
pub(super) mod tests;
