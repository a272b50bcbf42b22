//! A caching reverse proxy: what the origin allows to be kept is kept, everything else passes as it came.

use std::{convert::Infallible, net::SocketAddr, process::ExitCode};

use clap::Parser;
use http::Uri;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use larder::{
    ByteSize, Larder,
    http::{InvalidationLayer, ResponseCacheLayer},
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

mod proxy;

/// A caching reverse proxy.
#[derive(Debug, Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The server behind, such as http://127.0.0.1:8000.
    #[arg(long)]
    origin: Uri,
    /// How many bytes to keep in memory.
    #[arg(long, default_value_t = 256 << 20)]
    memory: usize,
    /// Follow RFC 9111 where larder is stricter by default.
    #[arg(long)]
    conformance: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter("warn").init();
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", error.to_string().lines().next().unwrap_or("bad flags"));
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let larder = Larder::builder().memory(ByteSize::bytes(options.memory)).build()?;
    let proxy = proxy::Proxy::new(&options.origin)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    let mut cache = ResponseCacheLayer::as_received(&larder).name("edge");
    if options.conformance {
        cache = cache.conformance();
    }
    let service = ServiceBuilder::new()
        .layer(InvalidationLayer::as_received(&larder))
        .layer(cache)
        .service_fn(move |request| {
            let proxy = proxy.clone();
            async move { Ok::<_, Infallible>(proxy.forward(request).await) }
        });
    println!("edge on http://{}, in front of {}", listener.local_addr()?, options.origin);

    let connections = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    eprintln!("cannot accept: {error}");
                    continue;
                }
            },
            _ = tokio::signal::ctrl_c() => break,
        };
        let server = auto::Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(service.clone());
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = connections.watch(connection);
        // A connection that breaks concerns its client alone.
        tokio::spawn(async move { drop(connection.await) });
    }
    drop(connections.shutdown());
    larder.close(std::time::Duration::from_secs(5)).await;
    Ok(())
}
