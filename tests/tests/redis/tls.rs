//! Redis over TLS.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU32, Ordering},
};

use larder::{LoadHandle, Policy};
use larder_redis::{Certificates, Redis};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::server::{MINUTE, PATIENCE, Server, larder, load, synced, until};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A root, and a certificate that it signed, as files in one directory.
struct Authority {
    directory: std::path::PathBuf,
    root: String,
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let unique = format!("larder-tls-{}-{name}", std::process::id());
        let directory = std::env::temp_dir().join(&unique);
        std::fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, unique);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let own = own.signed_by(&own_key, &issuer).unwrap().pem();
        for (file, text) in [("ca", &root), ("crt", &own), ("key", &own_key.serialize_pem())] {
            std::fs::write(directory.join(file), text).unwrap();
        }
        Self { directory, root }
    }

    fn path(&self, file: &str) -> String {
        self.directory.join(file).display().to_string()
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.directory.join(file)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn only_certificates_of_a_trusted_root_are_accepted_by_both_sides() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let tls_port = super::server::free_port();
    let flags = [
        ["--tls-port", &tls_port.to_string()],
        ["--tls-cert-file", &ours.path("crt")],
        ["--tls-key-file", &ours.path("key")],
        ["--tls-ca-cert-file", &ours.path("ca")],
    ];
    let _server = Server::start(flags.as_flattened()).await;
    let redis = |certificates: Certificates| {
        let redis = Redis::open(&format!("rediss://127.0.0.1:{tls_port}")).unwrap();
        redis.certificates(certificates).unwrap()
    };
    let known = || Certificates::default().root(ours.root.clone()).unwrap();
    let as_ours = known().client_certificate(ours.read("crt"), ours.read("key")).unwrap();
    let [one, other] = [larder(redis(as_ours.clone())), larder(redis(as_ours))];
    synced(&one).await;
    synced(&other).await;
    assert_eq!(load(&one, 1).await, 1);
    assert!(one.close(PATIENCE).await);
    // The first read may time out during the handshake.
    until("it is connected", || async {
        let late = other.stats().shared.errors;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let load = |_: LoadHandle| async { Ok::<_, Infallible>(()) };
        other.get_or_load(("warm", number), Policy::ttl(MINUTE), load).await.unwrap();
        other.stats().shared.errors == late
    })
    .await;
    assert_eq!(load(&other, 2).await, 1);
    let strangers = [
        // The server does not know the client, or the client does not know the server.
        known(),
        known().client_certificate(theirs.read("crt"), theirs.read("key")).unwrap(),
        Certificates::default().root(theirs.root.clone()).unwrap(),
        Certificates::default(),
    ];
    for stranger in strangers {
        let redis = redis(stranger);
        assert!(redis.advice().await.is_err());
        assert_eq!(load(&larder(redis), 3).await, 3, "it costs hits and never a response");
    }
}

#[test]
fn invalid_certificates_are_refused_before_connecting() {
    use larder_redis::CertificateErrorKind::{NoCertificate, NoKey, NoTls, Unusable};
    let (ours, theirs) = (Authority::new("a"), Authority::new("b"));
    let none = Certificates::default;
    let kinds = [
        none().root("nonsense").unwrap_err().kind(),
        none().root("").unwrap_err().kind(),
        none().client_certificate(ours.read("key"), ours.read("key")).unwrap_err().kind(),
        none().client_certificate(ours.read("crt"), ours.read("crt")).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [NoCertificate, NoCertificate, NoCertificate, NoKey]);
    let plain = Redis::open("redis://127.0.0.1:1").unwrap();
    assert_eq!(plain.certificates(none()).unwrap_err().kind(), NoTls);
    let mixed = none().client_certificate(ours.read("crt"), theirs.read("key")).unwrap_err();
    assert_eq!(mixed.kind(), Unusable);
    let tls = || Redis::open("rediss://127.0.0.1:1").unwrap();
    assert!(tls().certificates(none()).is_ok());
}
