//! TLS of outgoing connections, with the root certificates of Mozilla or those of a file.

use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

pub use rustls::pki_types::{InvalidDnsNameError, ServerName};
pub use tokio_rustls::client::TlsStream;

/// The configuration with Mozilla's certificates: they are parsed once in a process.
static CONFIG: LazyLock<Arc<ClientConfig>> =
    LazyLock::new(|| config(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }));

fn config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// The name that the certificate of a host must have. An IPv6 address may be in brackets, as in a URL.
///
/// # Errors
///
/// The text is neither a DNS name nor an address.
pub fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    Ok(ServerName::try_from(host.trim_matches(['[', ']']))?.to_owned())
}

/// Begins TLS on a connection to the server of a name.
///
/// # Errors
///
/// The handshake fails, or the certificate is not valid for the name.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    name: ServerName<'static>,
    stream: S,
) -> io::Result<TlsStream<S>> {
    TlsConnector::from(CONFIG.clone()).connect(name, stream).await
}

/// Root certificates other than Mozilla's.
pub struct Roots(Arc<ClientConfig>);

impl Roots {
    /// Reads the certificates of a file (PEM).
    ///
    /// # Errors
    ///
    /// The file cannot be read, has none, or has an invalid one.
    pub fn read(path: &Path) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let text = std::fs::read(path)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
            roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
        }
        match roots.is_empty() {
            true => Err(invalid("it has no certificate (PEM)".to_owned())),
            false => Ok(Self(config(roots))),
        }
    }

    /// [`connect`] with these certificates.
    ///
    /// # Errors
    ///
    /// The handshake fails, or the certificate is not valid for the name.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: ServerName<'static>,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        TlsConnector::from(self.0.clone()).connect(name, stream).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_negotiate_no_other_protocol_than_http_1_1() {
        assert!(CONFIG.alpn_protocols.is_empty());
    }

    #[test]
    fn names_and_addresses_of_urls_are_read() {
        for host in ["api.example.org", "127.0.0.1", "::1", "[::1]"] {
            assert_eq!(server_name(host).unwrap().to_str(), host.trim_matches(['[', ']']), "{host}");
        }
        assert!(server_name("no name").is_err());
    }
}
