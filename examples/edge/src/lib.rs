//! A caching reverse proxy: what the origin allows to be kept is kept, everything else passes as it came.

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
    http::{CacheBody, InvalidationLayer, QueryMethodLayer, ResponseCacheLayer, Scheme},
};
use larder_semantics::fields::remove_hop_by_hop;
use program::interrupted;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower::{ServiceBuilder, ServiceExt as _};

use self::{framing::Refused, proxy::Proxy};

mod framing;
mod proxy;

/// The flags of the proxy.
#[derive(Clone, Debug, Parser)]
#[command(about = "A caching reverse proxy")]
pub struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// The server behind, such as http://127.0.0.1:8000.
    #[arg(long)]
    pub origin: Uri,
    /// How many bytes to keep in memory.
    #[arg(long, default_value_t = 256 << 20)]
    pub memory: usize,
    /// Follow RFC 9111 where larder is stricter by default.
    #[arg(long)]
    pub conformance: bool,
    /// Take the scheme of requests from X-Forwarded-Proto, behind a proxy that ends TLS and always sets it.
    #[arg(long)]
    pub trust_forwarded_proto: bool,
}

/// The request without what concerns only its connection: before a key is made of it, or a client could
/// name there what the origin is not to see and the key has.
fn as_all_see_it(mut request: Request<Incoming>) -> Request<CacheBody<Incoming>> {
    remove_hop_by_hop(request.headers_mut());
    request.map(CacheBody::inner)
}

/// Runs the proxy until Ctrl-C.
///
/// # Errors
///
/// One sentence that says what is wrong: a taken port, or an option that is not allowed.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let edge = Edge::new(&options)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    println!("edge on http://{}, in front of {}", listener.local_addr()?, options.origin);
    edge.serve(listener, interrupted()).await;
    Ok(())
}

/// What the proxy is made of, once its options were found to be allowed.
#[derive(Debug)]
pub struct Edge {
    larder: Larder,
    proxy: Proxy,
    conformance: bool,
    scheme: Scheme,
}

impl Edge {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// One sentence that says which is not allowed.
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

    /// Serves on this listener until `until` is done, and then what has begun, for a few seconds.
    pub async fn serve(self, listener: TcpListener, until: impl Future<Output = ()>) {
        let mut cache = ResponseCacheLayer::new(&self.larder).name("edge").scheme(self.scheme);
        if self.conformance {
            cache = cache.conformance();
        }
        let proxy = self.proxy;
        let pseudonym = proxy.pseudonym().to_owned();
        let cached = ServiceBuilder::new()
            .map_request(as_all_see_it)
            .layer(QueryMethodLayer::new().limit(ByteSize::mib(1)))
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
            // A client may say that it sends no more, and wait for the answer.
            server.http1().half_close(true);
            let service = TowerToHyperService::new(service.clone());
            let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
            let connection = connections.watch(connection);
            // A connection that breaks concerns its client alone.
            tokio::spawn(async move { drop(connection.await) });
        }
        drop(listener);
        if timeout(GRACE, connections.shutdown()).await.is_err() {
            tracing::warn!("requests that did not end were cut off");
        }
        self.larder.close(GRACE).await;
    }
}

/// An answer of the proxy's own.
fn refusal<R>(refused: Refused) -> Response<CacheBody<R>> {
    let mut response =
        Response::new(CacheBody::held(Bytes::from_static(refused.text().as_bytes())));
    *response.status_mut() = refused.status();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// The next connection. One that cannot be taken, as for want of file descriptors, leaves time to others.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// How long requests that have begun may take once the proxy is to end.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
