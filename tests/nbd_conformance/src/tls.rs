//! TLS of the judge: what `nbds://` and its `tls-certificates` stand for.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

/// How the judge shows who it is, and whom it expects.
pub(crate) struct Credentials {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

impl Credentials {
    /// Reads `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, libnbd's and QEMU's names.
    pub(crate) fn read(dir: &Path, server: &str) -> Result<Self, String> {
        let file = |name: &str| dir.join(name);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&file("ca-cert.pem"))? {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let chain = certificates(&file("client-cert.pem"))?;
        let key = file("client-key.pem");
        let key = PrivateKeyDer::from_pem_file(&key)
            .map_err(|error| format!("{}: {error}", key.display()))?;
        let config =
            ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .map_err(|error| error.to_string())?;
        let server = ServerName::try_from(server.to_owned())
            .map_err(|_| format!("{server} is no name of a host"))?;
        Ok(Self {
            config: Arc::new(config),
            server,
        })
    }

    /// TLS on a connection whose server has said that it may begin.
    pub(crate) fn start(
        &self,
        mut stream: TcpStream,
    ) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.server.clone());
        let mut connection = connection.map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(connection, stream))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    found.map_err(|error| format!("{}: {error}", path.display()))
}
