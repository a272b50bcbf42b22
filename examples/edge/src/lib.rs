//! Shows the layers without axum, as a caching reverse proxy that stores the responses which the origin marks as
//! storable and passes on all others unchanged: `cargo run --release -p edge -- --origin http://127.0.0.1:3000`.

use std::{convert::Infallible, future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use clap::Parser;
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use larder::{
    ByteSize, Larder,
    http::{BodyKeyLayer, CacheBody, InvalidationLayer, ResponseCacheLayer, Scheme},
};
use larder_semantics::fields::remove_hop_by_hop;
use program::interrupted;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower::{ServiceBuilder, ServiceExt as _};

use self::{framing::MalformedRequest, proxy::Proxy};

mod framing;
mod proxy;

/// The flags of the proxy.
#[derive(Clone, Debug, Parser)]
#[command(about = "A caching reverse proxy")]
pub struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The origin server, such as http://127.0.0.1:8000.
    #[arg(long)]
    pub origin: Uri,
    /// The size of the cache in memory, in bytes.
    #[arg(long, default_value_t = 256 << 20)]
    pub memory: usize,
    /// Follow RFC 9111 where larder is stricter by default.
    #[arg(long)]
    pub conformance: bool,
    /// Take the scheme of requests from X-Forwarded-Proto, behind a proxy that ends TLS and always sets it.
    #[arg(long)]
    pub trust_forwarded_proto: bool,
}

/// Removes the hop-by-hop fields of a request before its key is built: otherwise a client could name a field in
/// `Connection` that the key has and the origin does not receive.
fn as_all_see_it(mut request: Request<Incoming>) -> Request<CacheBody<Incoming>> {
    remove_hop_by_hop(request.headers_mut());
    request.map(CacheBody::inner)
}

/// Runs the proxy until Ctrl-C.
///
/// # Errors
///
/// One sentence with the cause: the port is taken, or an option is not allowed.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let edge = Edge::new(&options)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    println!("edge on http://{}, in front of {}", listener.local_addr()?, options.origin);
    edge.serve(listener, interrupted()).await;
    Ok(())
}

/// The parts of the proxy, built from valid options.
#[derive(Debug)]
pub struct Edge {
    larder: Larder,
    proxy: Proxy,
    conformance: bool,
    scheme: Scheme,
}

impl Edge {
    /// Checks the options, and builds the cache and the client.
    ///
    /// # Errors
    ///
    /// One sentence that names the option that is not allowed.
    pub fn new(options: &Options) -> Result<Self, String> {
        let memory = ByteSize::bytes(options.memory);
        let larder = Larder::builder().memory(memory).build();
        Ok(Self {
            larder: larder.map_err(|error| format!("--{error}"))?,
            proxy: Proxy::new(&options.origin)?,
            conformance: options.conformance,
            scheme: match options.trust_forwarded_proto {
                true => Scheme::TrustForwarded,
                false => Scheme::Http,
            },
        })
    }

    /// Accepts connections until `until` completes, and then finishes running requests within five seconds.
    pub async fn serve(self, listener: TcpListener, until: impl Future<Output = ()>) {
        let mut cache = ResponseCacheLayer::new(&self.larder).name("edge").scheme(self.scheme);
        if self.conformance {
            cache = cache.conformance();
        }
        let proxy = self.proxy;
        let pseudonym = proxy.pseudonym().to_owned();
        let cached = ServiceBuilder::new()
            .map_request(as_all_see_it)
            .layer(BodyKeyLayer::new().limit(ByteSize::mib(1)))
            .layer(InvalidationLayer::new(&self.larder))
            .layer(cache)
            .service_fn(move |request| {
                let proxy = proxy.clone();
                async move { Ok::<_, Infallible>(proxy.forward(request).await) }
            });
        let service = tower::service_fn(move |mut request: Request<Incoming>| {
            let (checked, cached) = (framing::check(&mut request, &pseudonym), cached.clone());
            async move {
                match checked {
                    Ok(()) => cached.oneshot(request).await,
                    Err(refused) => Ok(refusal(refused)),
                }
            }
        });
        let connections = GracefulShutdown::new();
        let mut until = std::pin::pin!(until);
        loop {
            let stream = tokio::select! {
                accepted = accept(&listener) => accepted,
                () = &mut until => break,
            };
            let mut server = auto::Builder::new(TokioExecutor::new());
            // A client may close its sending side and still wait for the response.
            server.http1().half_close(true);
            let service = TowerToHyperService::new(service.clone());
            let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
            let connection = connections.watch(connection);
            // An error of a connection affects its client only.
            tokio::spawn(async move { drop(connection.await) });
        }
        drop(listener);
        if timeout(GRACE, connections.shutdown()).await.is_err() {
            tracing::warn!("requests that did not finish within the grace period were aborted");
        }
        self.larder.close(GRACE).await;
    }
}

/// A response of the proxy's own.
fn refusal<R>(refused: MalformedRequest) -> Response<CacheBody<R>> {
    let mut response =
        Response::new(CacheBody::held(Bytes::from_static(refused.text().as_bytes())));
    *response.status_mut() = refused.status();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Accepts the next connection. After an error, such as no file descriptors being left, it pauses so that others may
/// close.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted: retrying after a pause");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The time that running requests get to finish at shutdown.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
