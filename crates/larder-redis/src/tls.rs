//! TLS: the roots to trust and the client certificate to present.

use std::fmt;

use redis::{Client, ClientTlsConfig, RedisResult, TlsCertificates, cluster::ClusterClientBuilder};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

/// Certificates for `rediss://` URLs. If no root is given, connections trust the roots of the system.
///
/// Its `Debug` output shows neither keys nor certificates.
#[derive(Clone, Default)]
#[must_use = "they do nothing until they are given to a Redis"]
pub struct Certificates {
    root: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// Trusts only servers whose certificate chains to these roots, which are PEM.
    ///
    /// # Errors
    ///
    /// When the input holds no certificate.
    pub fn root(mut self, certificates: impl Into<Vec<u8>>) -> Result<Self, CertificateError> {
        self.root = Some(checked(certificates.into())?);
        Ok(self)
    }

    /// Presents a client certificate to servers that request one. The certificate and the key are PEM.
    ///
    /// # Errors
    ///
    /// When there is no certificate or no key, or when the two do not match.
    #[doc(alias("mTLS", "mutual TLS"))]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Result<Self, CertificateError> {
        let (certificate, key) = (checked(certificate.into())?, key.into());
        let Ok(private) = PrivateKeyDer::from_pem_slice(&key) else {
            return Err(CertificateError::new(CertificateErrorKind::NoKey));
        };
        let chain = CertificateDer::pem_slice_iter(&certificate).flatten().collect();
        let provider = rustls::crypto::ring::default_provider();
        if CertifiedKey::from_der(chain, private, &provider).is_err() {
            return Err(CertificateError::new(CertificateErrorKind::Unusable));
        }
        self.client = Some((certificate, key));
        Ok(self)
    }

    pub(crate) fn client(&self, url: &str) -> RedisResult<Client> {
        choose_cryptography();
        Client::build_with_tls(url, self.all())
    }

    pub(crate) fn given_to(&self, cluster: ClusterClientBuilder) -> ClusterClientBuilder {
        choose_cryptography();
        cluster.certs(self.all())
    }

    fn all(&self) -> TlsCertificates {
        let client_tls = self
            .client
            .clone()
            .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        TlsCertificates { client_tls, root_cert: self.root.clone() }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

fn checked(pem: Vec<u8>) -> Result<Vec<u8>, CertificateError> {
    let mut found = CertificateDer::pem_slice_iter(&pem).peekable();
    if found.peek().is_some() && found.all(|one| one.is_ok()) {
        return Ok(pem);
    }
    Err(CertificateError::new(CertificateErrorKind::NoCertificate))
}

/// The error for certificates that cannot be used.
#[derive(Debug)]
pub struct CertificateError {
    kind: CertificateErrorKind,
    source: Option<redis::RedisError>,
}

/// The reason why certificates cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateErrorKind {
    /// The input holds no certificate.
    NoCertificate,
    /// The input holds no private key.
    NoKey,
    /// The certificate and the key do not match, or are of an unknown kind.
    Unusable,
    /// The URL does not use TLS, so others on the network could read the connection.
    NoTls,
}

impl CertificateError {
    pub(crate) fn new(kind: CertificateErrorKind) -> Self {
        Self { kind, source: None }
    }

    pub(crate) fn unusable(source: redis::RedisError) -> Self {
        Self { kind: CertificateErrorKind::Unusable, source: Some(source) }
    }

    /// Returns the reason why the certificates cannot be used.
    pub fn kind(&self) -> CertificateErrorKind {
        self.kind
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            CertificateErrorKind::NoCertificate => {
                "no certificate found, allowed is PEM with BEGIN CERTIFICATE"
            }
            CertificateErrorKind::NoKey => {
                "no private key found, allowed is PEM with BEGIN PRIVATE KEY"
            }
            CertificateErrorKind::Unusable => "the certificate and the key cannot be used together",
            CertificateErrorKind::NoTls => "certificates need a URL with TLS, allowed is rediss://",
        })
    }
}

impl std::error::Error for CertificateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Installs `ring` as the cryptography provider of rustls, unless the application has already installed a provider.
/// Without an installed provider, rustls panics unless exactly one provider is compiled in.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have installed it first, which has the same effect.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}
