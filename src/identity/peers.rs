//! What TLS between the nodes is set up with: version 1.3, both sides certified by the cluster's
//! authority, and each for the very node the other one means to speak to.

use core::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, ServerConnection, SignatureScheme, version,
};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::authority::{fingerprint, name_of};
use super::files::NodeKeys;
use super::token::Token;

/// Why keys are of no use for TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PeerTlsError {
    /// A certificate or key is none, or they do not belong together.
    #[error("{0}")]
    Tls(#[from] Error),
    /// The authority's certificate cannot be trusted.
    #[error("the authority's certificate: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
    /// No name for a certificate.
    #[error("{0}")]
    Name(#[from] InvalidDnsNameError),
    /// This node's certificate is another node's, or of another authority.
    #[error("node-cert.der is no certificate of this authority for {0}")]
    Foreign(String),
}

/// See the module.
pub struct PeerTls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    names: [ServerName<'static>; 3],
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").finish_non_exhaustive()
    }
}

impl PeerTls {
    /// For the nodes of these names, by their index.
    ///
    /// # Errors
    /// If the keys are no keys, or not those of this node.
    pub fn new(keys: &NodeKeys, nodes: [&str; 3]) -> Result<Self, PeerTlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(keys.authority.clone())?;
        let roots = Arc::new(roots);
        let chain = vec![keys.certificate.clone()];
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), keys.private_key())?;
        // Each connection shows its certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let servers =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(chain, keys.private_key())?;
        client.resumption = Resumption::disabled();
        // The name is a hash that only both ends know what to do with.
        client.enable_sni = false;
        let [a, b, arbitrator] = nodes.map(|node| server_name(keys.cluster_id, node));
        let own = server_name(keys.cluster_id, &keys.node)?;
        check_own(keys, &own)?;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
            names: [a?, b?, arbitrator?],
        })
    }

    /// For somebody who called.
    ///
    /// # Errors
    /// Of rustls.
    pub fn accept(&self) -> Result<ServerConnection, Error> {
        ServerConnection::new(Arc::clone(&self.server))
    }

    /// To call the node of this index.
    ///
    /// # Errors
    /// Of rustls.
    pub fn call(&self, node: usize) -> Result<ClientConnection, Error> {
        ClientConnection::new(Arc::clone(&self.client), self.names[node].clone())
    }

    /// Whether a certificate, of the authority already, is that of the node of this index.
    #[must_use]
    pub fn is_of(&self, certificate: Option<&CertificateDer<'_>>, node: usize) -> bool {
        certificate.is_some_and(|it| is_for(it, &self.names[node]))
    }
}

fn server_name(cluster_id: u128, node: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(name_of(cluster_id, node))
}

fn is_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let certificate = EndEntityCert::try_from(certificate);
    certificate.is_ok_and(|it| it.verify_is_valid_for_subject_name(name).is_ok())
}

/// What all others would find out, and refuse.
fn check_own(keys: &NodeKeys, name: &ServerName<'_>) -> Result<(), PeerTlsError> {
    let pinned = Pinned {
        authority: fingerprint(&keys.authority),
        algorithms: ring::default_provider().signature_verification_algorithms,
    };
    let chain = [keys.authority.clone()];
    // Certificates are of all times: a clock is not asked.
    let now = UnixTime::since_unix_epoch(core::time::Duration::ZERO);
    let checked = pinned.verify_server_cert(&keys.certificate, &chain, name, &[], now);
    checked
        .map(drop)
        .map_err(|_| PeerTlsError::Foreign(keys.node.clone()))
}

/// The side of the issuer when somebody joins, who has no certificate yet: shows its own, and the
/// authority's, by whose fingerprint it is known.
///
/// # Errors
/// If the keys are no keys.
pub fn join_server(keys: &NodeKeys) -> Result<ServerConnection, PeerTlsError> {
    let chain = vec![keys.certificate.clone(), keys.authority.clone()];
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, keys.private_key())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(ServerConnection::new(Arc::new(config))?)
}

/// The side of who joins.
///
/// # Errors
/// If the token's issuer cannot be called.
pub fn join_client(token: &Token) -> Result<ClientConnection, PeerTlsError> {
    let provider = ring::default_provider();
    let pinned = Pinned {
        authority: token.authority,
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let name = server_name(token.cluster, &token.issuer)?;
    Ok(ClientConnection::new(Arc::new(config), name)?)
}

/// Whether the node's certificate is of this authority, for this node.
///
/// # Errors
/// If it is not.
pub fn check_admission(
    token: &Token,
    node: &str,
    certificate: &CertificateDer<'static>,
    authority: &CertificateDer<'static>,
) -> Result<(), PeerTlsError> {
    let pinned = Pinned {
        authority: token.authority,
        algorithms: ring::default_provider().signature_verification_algorithms,
    };
    let name = server_name(token.cluster, node)?;
    let now = UnixTime::since_unix_epoch(core::time::Duration::ZERO);
    let chain = core::slice::from_ref(authority);
    let checked = pinned.verify_server_cert(certificate, chain, &name, &[], now);
    checked
        .map(drop)
        .map_err(|_| PeerTlsError::Foreign(node.to_owned()))
}

/// Trusts exactly one authority, of which nothing but the fingerprint is known.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = chain.iter().find(|it| fingerprint(it) == self.authority);
        let refused = |why| Error::InvalidCertificate(why);
        let authority = authority.ok_or(refused(CertificateError::UnknownIssuer))?;
        let anchor = anchor_from_trusted_cert(authority)
            .map_err(|_| refused(CertificateError::BadEncoding))?;
        let certificate = EndEntityCert::try_from(end_entity)
            .map_err(|_| refused(CertificateError::BadEncoding))?;
        let usage = KeyUsage::server_auth();
        certificate
            .verify_for_usage(self.algorithms.all, &[anchor], &[], now, usage, None, None)
            .map_err(|_| refused(CertificateError::BadSignature))?;
        certificate
            .verify_is_valid_for_subject_name(server_name)
            .map_err(|_| refused(CertificateError::NotValidForName))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
