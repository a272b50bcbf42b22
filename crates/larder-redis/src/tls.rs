//! TLS: whom to trust, and as whom to come.

use redis::{Client, ClientTlsConfig, RedisResult, TlsCertificates, cluster::ClusterClientBuilder};

/// Certificates for `rediss://` URLs. Without any, servers are trusted whose certificate one of the roots of
/// the system vouches for.
///
/// Hands out neither keys nor certificates when it is shown.
#[derive(Clone, Default)]
#[must_use = "they do nothing until they are given to a Redis"]
pub struct Certificates {
    root: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// Trusts the servers that this root vouches for, and no others. PEM.
    pub fn root(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.root = Some(certificate.into());
        self
    }

    /// Comes with a certificate of its own, for servers that ask for one. Both PEM.
    #[doc(alias("mTLS", "mutual TLS"))]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.client = Some((certificate.into(), key.into()));
        self
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

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

/// rustls panics where a process has chosen no cryptography, or two are compiled in. An application that has
/// chosen keeps its choice.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been quicker, which is as well.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}
