//! The cluster's authority: who may say that a key is a node's.
//!
//! Certificates hold from 1970 on and do not run out. A cluster must fail over on a machine whose clock was lost, and one
//! whose redundancy ends on a night somebody forgot is worse off than one whose keys are taken away
//! by a new authority (docs/security.md).

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
    date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;

use super::message::PUBLIC_KEY_LEN;

/// The key that signs, and the certificate that all nodes trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    cluster_id: u128,
    cluster: String,
    key: Vec<u8>,
}

/// A key pair of a node.
pub struct NodeKey(KeyPair);

/// The making of keys or certificates failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IssueError(#[from] rcgen::Error);

impl Authority {
    /// A new one, for a cluster of this name.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn new(cluster: &str, cluster_id: u128) -> Result<Self, IssueError> {
        let key = KeyPair::generate()?;
        let certificate = params(cluster, cluster_id).self_signed(&key)?;
        let der = key.serialize_der();
        Ok(Self {
            issuer: Issuer::new(params(cluster, cluster_id), key),
            certificate: certificate.der().clone(),
            cluster_id,
            cluster: cluster.to_owned(),
            key: der,
        })
    }

    /// One that was made before.
    ///
    /// # Errors
    /// If that is no key.
    pub fn from_parts(
        cluster: &str,
        cluster_id: u128,
        key: &[u8],
        certificate: CertificateDer<'static>,
    ) -> Result<Self, IssueError> {
        let pair = KeyPair::try_from(key)?;
        Ok(Self {
            issuer: Issuer::new(params(cluster, cluster_id), pair),
            certificate,
            cluster_id,
            cluster: cluster.to_owned(),
            key: key.to_vec(),
        })
    }

    /// What nodes trust.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its private key, PKCS #8.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Says that this public key is that of the node.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn issue(
        &self,
        node: &str,
        public_key: &[u8; PUBLIC_KEY_LEN],
    ) -> Result<CertificateDer<'static>, IssueError> {
        let mut params = CertificateParams::new(vec![name_of(self.cluster_id, node)])?;
        params.distinguished_name = distinguished(node, &self.cluster);
        params.not_before = date_time_ymd(1970, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&TheirKey(public_key), &self.issuer)?;
        Ok(signed.der().clone())
    }
}

impl NodeKey {
    /// A new one.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn new() -> Result<Self, IssueError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// The half for everybody.
    ///
    /// # Panics
    /// Never: keys of ours are of P-256.
    #[must_use]
    pub fn public(&self) -> [u8; PUBLIC_KEY_LEN] {
        let bytes = self.0.public_key_raw().try_into();
        bytes.expect("a public key of P-256 has 65 bytes")
    }

    /// The half for nobody, PKCS #8.
    #[must_use]
    pub fn private(&self) -> &[u8] {
        self.0.serialized_der()
    }
}

/// What the certificate of a node is made out to, as TLS asks for it. A hash, as names of nodes may be
/// none of DNS; the subject says them for people.
#[must_use]
pub fn name_of(cluster_id: u128, node: &str) -> String {
    let mut text = b"twinblk node\0".to_vec();
    text.extend_from_slice(&cluster_id.to_le_bytes());
    text.extend_from_slice(node.as_bytes());
    let hash = digest(&SHA256, &text);
    let (head, _) = hash.as_ref().split_at(16);
    format!("{}.node.twinblk", hex(head))
}

/// SHA-256 of a certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let hash = digest(&SHA256, certificate);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    bytes
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use core::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Into memory: it cannot fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

fn params(cluster: &str, cluster_id: u128) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(1970, 1, 1);
    params.distinguished_name = distinguished(&format!("authority {cluster_id:032x}"), cluster);
    params
}

fn distinguished(name: &str, cluster: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, cluster);
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A key of which only the public half is here.
struct TheirKey<'a>(&'a [u8; PUBLIC_KEY_LEN]);

impl PublicKeyData for TheirKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
